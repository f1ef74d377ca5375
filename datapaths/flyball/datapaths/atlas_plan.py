"""An outcome atlas before it is whole: which shards it is made of, which are there, and their sum.

Whoever computes a shard, here or on another machine, writes its file under a name of its own and
renames it, so two that work on one shard do no harm: their bytes are the same. N samples, S of them
in a shard.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import CorruptArtifact, ForeignArtifact, StorageError
from flyball.datapaths.files import read_json, read_tensors, write_json, write_tensors
from flyball.datapaths.mapped import map_tensors

__all__ = ["AtlasPlan", "Columns"]

Columns = dict[str, NDArray[Any]]
"""The tables and columns of some samples, by name."""

SHARD_FOLDER = "shards"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, eq=False)
class AtlasPlan:
    """The shards of an atlas.

    Attributes:
        folder: where the atlas goes.
        fingerprint: of the atlas.
        rows: of the image set, in the order of the atlas; int64 (N,).
        shard_size: S; the last shard may have fewer.
    """

    folder: Path
    fingerprint: str
    rows: NDArray[np.int64]
    shard_size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """Rows of the image set in one shard; (S,)."""
        start = number * self.shard_size
        return self.rows[start : start + self.shard_size]

    def file_of(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / SHARD_FOLDER / f"{number:06d}.safetensors"

    def claim(self) -> None:
        """Marks the folder as this plan's.

        Raises:
            ForeignArtifact: it holds shards of another plan.
            StorageError: it cannot be written.
        """
        file, plan = self.folder / PLAN_FILE, self._described()
        if file.exists() and read_json(file) != plan:
            raise ForeignArtifact(
                f"{self.folder} holds the unfinished atlas of another data path, data set or shard "
                f"size ({read_json(file)}; wanted {plan}). Delete the folder, or name another one."
            )
        write_json(file, plan)

    def is_claimed(self) -> bool:
        """Whether the folder, as it is seen from here, is this plan's."""
        file = self.folder / PLAN_FILE
        return file.exists() and bool(read_json(file) == self._described())

    def has(self, number: int) -> bool:
        """Whether a shard is there, whole and of these rows; a torn one is removed."""
        file = self.file_of(number)
        if not file.exists():
            return False
        try:
            return np.array_equal(map_tensors(file).get("sample", ()), self.rows_of(number))
        except CorruptArtifact:
            file.unlink(missing_ok=True)
            return False

    def write(self, number: int, columns: Columns, *, writer: str = "") -> None:
        """Writes a shard, all or nothing.

        Args:
            number: of the shard.
            columns: of its rows.
            writer: a name that no other writer has, where there may be others: process ids repeat
                between machines.

        Raises:
            StorageError: the folder cannot be written.
        """
        file = self.file_of(number)
        if not writer:
            write_tensors(file, columns)
            return
        own = file.with_name(f".{file.stem}.{writer}{file.suffix}")
        write_tensors(own, columns)
        os.replace(own, file)

    def columns(self) -> Columns:
        """The shards one after another; holds the atlas and one shard in memory.

        Raises:
            StorageError: a shard is missing or of other rows.
            CorruptArtifact: a shard's file is damaged.
        """
        found: Columns = {}
        for number in range(len(self)):
            start, shard = number * self.shard_size, read_tensors(self.file_of(number))
            if not np.array_equal(shard.get("sample", ()), self.rows_of(number)):
                raise StorageError(
                    f"{self.file_of(number)} must hold the rows that the plan gives it, and holds "
                    "others: something else writes to the folder. Run the command again."
                )
            if not found:
                found = {
                    name: np.empty((len(self.rows), *table.shape[1:]), table.dtype)
                    for name, table in shard.items()
                }
            for name, table in found.items():
                table[start : start + self.shard_size] = shard[name]
        return found

    def finish(self, atlas: OutcomeAtlas) -> None:
        """Saves the whole atlas, then removes the shards.

        Raises:
            StorageError: the folder cannot be written.
        """
        atlas.save(self.folder)
        shutil.rmtree(self.folder / SHARD_FOLDER, ignore_errors=True)
        (self.folder / PLAN_FILE).unlink(missing_ok=True)

    def _described(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "samples": len(self.rows),
            "shard_size": self.shard_size,
        }
