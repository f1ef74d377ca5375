"""The outcome atlas: what every arm answers and costs on every input, computed once.

A value and its file; `outcomes` computes it. N samples, K arms, D context features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.arms import validated_arms
from flyball.datapaths.errors import CorruptArtifact, ForeignArtifact
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.mapped import map_tensors
from flyball.datapaths.splits import SPLITS, split_code

__all__ = ["AtlasHeader", "OutcomeAtlas"]

HEADER_FILE = "atlas.json"
TENSOR_FILE = "atlas.safetensors"
FORMAT = 1
TABLES = ("correct", "confidence", "answer", "macs")
COLUMNS = ("split", "sample", "label")


@dataclass(frozen=True)
class AtlasHeader:
    """Where an atlas comes from.

    Attributes:
        fingerprint: of the atlas: its configuration and its parents'.
        path_fingerprint: of the frozen data path that answered.
        data_fingerprint: of the image set that was asked about.
        classes: class names; `answer` and `label` index them.
        full_macs: multiply-accumulates of the data path at u = 1, counted by `cost_model`.
        context_macs: multiply-accumulates that the context of one sample costs; the context
            pass is the lowest arm. Their mean, where they depend on the sample.
        context_arm: the arm whose pass is the context, and whose MACs it costs, sample by sample;
            None: `context_macs` for all.
        cost_model: how `macs` was counted, "executed" or "linear".
        forwards: sample passes through the data path that building the atlas took.
        versions: of the libraries that computed it.
    """

    fingerprint: str
    path_fingerprint: str
    data_fingerprint: str
    classes: tuple[str, ...]
    full_macs: int
    context_macs: int = 0
    context_arm: int | None = None
    cost_model: str = "executed"
    forwards: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OutcomeAtlas:
    """What every arm would have answered and cost on every input.

    Attributes:
        arms: K utilizations, increasing, in (0, 1].
        correct: 1 where the arm answers right, graded in [0, 1]; float32 (N, K).
        confidence: the data path's probability of its own answer, in [0, 1]; float32 (N, K).
        answer: class index that the arm answers; int32 (N, K).
        macs: multiply-accumulates executed; int64 (N, K).
        split: code of the row's split (`splits.SPLITS`); int8 (N,).
        sample: row of the image set; int64 (N,).
        label: true class index; int32 (N,).
        context: pooled features and answer of the lowest arm; float32 (N, D), or None.
        header: provenance.
    """

    arms: tuple[float, ...]
    correct: NDArray[np.float32]
    confidence: NDArray[np.float32]
    answer: NDArray[np.int32]
    macs: NDArray[np.int64]
    split: NDArray[np.int8]
    sample: NDArray[np.int64]
    label: NDArray[np.int32]
    context: NDArray[np.float32] | None
    header: AtlasHeader

    def __len__(self) -> int:
        return len(self.sample)

    @classmethod
    def from_arrays(
        cls,
        arms: Sequence[float],
        *,
        correct: Any,
        confidence: Any,
        macs: Any,
        answer: Any = None,
        split: Any = None,
        sample: Any = None,
        label: Any = None,
        context: Any = None,
        classes: Sequence[str] = (),
        full_macs: int | None = None,
        context_macs: int = 0,
    ) -> "OutcomeAtlas":
        """An atlas from arrays, for outcomes that were computed elsewhere.

        Left out: `answer` and `label` become 0, `sample` 0 ... N - 1, `split` path_train's code;
        `full_macs` the largest of `macs`. `macs` may be (K,): the same for every sample.
        """
        correct = np.asarray(correct, np.float32)
        count, arm_count = correct.shape
        macs = np.broadcast_to(np.asarray(macs, np.int64), (count, arm_count)).copy()
        full = int(macs.max()) if full_macs is None else int(full_macs)
        atlas = cls(
            arms=validated_arms(arms),
            correct=correct,
            confidence=np.asarray(confidence, np.float32),
            answer=np.zeros((count, arm_count), np.int32) if answer is None else _as(answer, "i4"),
            macs=macs,
            split=np.zeros(count, np.int8) if split is None else _as(split, "i1"),
            sample=np.arange(count, dtype=np.int64) if sample is None else _as(sample, "i8"),
            label=np.zeros(count, np.int32) if label is None else _as(label, "i4"),
            context=None if context is None else _as(context, "f4"),
            header=AtlasHeader("", "", "", tuple(classes) or ("0",), full, int(context_macs)),
        )
        digest = fingerprint_of(atlas.arms, *(hash_bytes(a) for a in atlas._tensors().values()))
        return replace(atlas, header=replace(atlas.header, fingerprint=digest)).checked()

    def take(self, split: str) -> "OutcomeAtlas":
        """The rows of one split, in order.

        Raises:
            UnknownName: there is no such split.
        """
        return self.rows(np.flatnonzero(np.asarray(self.split) == split_code(split)))

    def rows(self, index: NDArray[np.int64]) -> "OutcomeAtlas":
        """The rows at `index`, (M,) of ints, as an atlas of M samples."""
        picked: dict[str, Any] = {n: np.asarray(a)[index] for n, a in self._tensors().items()}
        return replace(self, **picked)

    def throttle_ratio(self) -> NDArray[np.float64]:
        """Gross: MACs of the data path over its MACs at u = 1; (N, K), in (0, 1]."""
        return np.asarray(self.macs, np.float64) / float(self.header.full_macs)

    def context_costs(self) -> NDArray[np.int64]:
        """MACs of the context of every sample; int64 (N,)."""
        if self.header.context_arm is None:
            return np.full(len(self), self.header.context_macs, np.int64)
        return np.array(self.macs[:, self.header.context_arm], np.int64)

    def net_macs(self, controller_macs: int, *, uses_context: bool) -> NDArray[np.int64]:
        """MACs of the data path, the controller and its context; int64 (N, K).

        The context pass is the lowest arm, so choosing that arm after it costs nothing more.
        """
        net = np.array(self.macs, np.int64)
        if uses_context:
            context = self.context_costs()
            net += context[:, None]
            net[:, 0] = np.maximum(context, np.asarray(self.macs)[:, 0])
        return net + int(controller_macs)

    def net_throttle_ratio(
        self, controller_macs: int, *, uses_context: bool
    ) -> NDArray[np.float64]:
        """Net: data path, controller and context over the full data path; (N, K), > 0."""
        net = self.net_macs(controller_macs, uses_context=uses_context)
        return net.astype(np.float64) / float(self.header.full_macs)

    def save(self, folder: Path | str) -> None:
        """Writes the tensors, then the header that names their bytes: all or nothing.

        Raises:
            StorageError: the folder cannot be written.
        """
        folder = Path(folder)
        write_tensors(folder / TENSOR_FILE, self._tensors())
        header = {
            **asdict(self.header),
            "format": FORMAT,
            "arms": self.arms,
            "bytes": (folder / TENSOR_FILE).stat().st_size,
            "sha256": hash_bytes({n: np.asarray(a) for n, a in self._tensors().items()}),
        }
        write_json(folder / HEADER_FILE, header)

    @classmethod
    def open(
        cls, folder: Path | str, *, path_fingerprint: str | None = None, verify: bool = False
    ) -> "OutcomeAtlas":
        """Opens an atlas memory-mapped.

        Args:
            folder: what `save` wrote.
            path_fingerprint: of the data path at hand, if the atlas must belong to it.
            verify: also read every byte and compare its digest.

        Raises:
            CorruptArtifact: a file is missing, truncated or altered.
            PickleRefused: a file is a pickle.
            ForeignArtifact: the atlas belongs to another data path.
        """
        folder = Path(folder)
        header = read_json(folder / HEADER_FILE)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise CorruptArtifact(
                f"{folder / HEADER_FILE} is not the header of an outcome atlas of format {FORMAT}. "
                "Delete the folder and run `flyball outcomes` again."
            )
        theirs = str(header.get("path_fingerprint"))
        if path_fingerprint is not None and theirs != path_fingerprint:
            raise ForeignArtifact(
                f"The atlas in {folder} holds the outcomes of data path {theirs}, "
                f"not of {path_fingerprint}. Build this path's own with `flyball outcomes`, "
                "or load the data path that the atlas was built from."
            )
        file = folder / TENSOR_FILE
        size = file.stat().st_size if file.exists() else 0
        if size != header.get("bytes"):
            raise CorruptArtifact(
                f"{file} must have {header.get('bytes')} bytes, it has {size}: it was truncated "
                "or altered. Delete the folder and run `flyball outcomes` again."
            )
        tensors = map_tensors(file)
        if verify and hash_bytes(read_tensors(file)) != header.get("sha256"):
            raise CorruptArtifact(
                f"The bytes of {file} are not those its header names: it was altered. "
                "Delete the folder and run `flyball outcomes` again."
            )
        try:
            known = AtlasHeader.__dataclass_fields__
            fields = {name: header[name] for name in known if name in header}
            fields["classes"] = tuple(header["classes"])
            return cls(
                arms=validated_arms(header["arms"]),
                context=tensors.pop("context", None),
                header=AtlasHeader(**fields),
                **tensors,
            ).checked()
        except (KeyError, TypeError) as error:
            raise CorruptArtifact(
                f"{folder} lacks a table or a field of an outcome atlas ({error}). "
                "Delete the folder and run `flyball outcomes` again."
            ) from error

    def checked(self) -> "OutcomeAtlas":
        """Itself, if every table has N rows and K columns.

        Raises:
            CorruptArtifact: a table has another shape.
        """
        table, rows = (len(self.sample), len(self.arms)), (len(self.sample),)
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(TABLES, table)
        wanted |= dict.fromkeys(COLUMNS, rows)
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise CorruptArtifact(
                    f"Table {name!r} of an atlas of {table[0]} samples and {table[1]} arms has "
                    f"shape {getattr(self, name).shape}, not {shape}. Rebuild the atlas."
                )
        if self.context is not None and len(self.context) != table[0]:
            raise CorruptArtifact(
                f"The context has {len(self.context)} rows for {table[0]} samples. Rebuild it."
            )
        return self

    def split_sizes(self) -> dict[str, int]:
        """Rows of each split."""
        codes = np.asarray(self.split)
        return {name: int((codes == code).sum()) for code, name in enumerate(SPLITS)}

    def _tensors(self) -> dict[str, NDArray[Any]]:
        names = (*TABLES, *COLUMNS, "context")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def hash_bytes(arrays: Any) -> str:
    """SHA-256, hex, of the contents of one array or of a dict of arrays in sorted order."""
    digest = hashlib.sha256()
    if isinstance(arrays, dict):
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    else:
        digest.update(np.ascontiguousarray(arrays).tobytes())
    return digest.hexdigest()


def _as(values: Any, dtype: str) -> NDArray[Any]:
    return np.asarray(values, np.dtype(dtype))
