"""The user's cache of decoded samples: one .npy and one .json per content, whole or not there.

What was learnt of a source is remembered under its path, sizes and times, so that the second run
need not read it; the arrays themselves are found by content.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Part, Plan
from flyball.datapaths.errors import CorruptArtifact, DataError, StorageError
from flyball.datapaths.files import fingerprint_of, read_json, write_atomically, write_json
from flyball.datapaths.progress import Report

__all__ = [
    "Stored",
    "cache_folder",
    "find",
    "key_of",
    "recall",
    "recall_corrupt",
    "remember",
    "remember_corrupt",
    "store",
]

FORMAT = 1
_CHUNK = 1 << 24
_ABANDONED_S = 86_400.0


@dataclass(frozen=True)
class Stored:
    """Decoded images in the cache.

    Attributes:
        file: the .npy, uint8 (N, C, H, W) or (N, C, T, H, W).
        classes: class names.
        parts: the source's parts, in the order of the rows.
        pixels: digest of the array's bytes.
        skipped: names of samples that were left out.
    """

    file: Path
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    pixels: str
    skipped: tuple[str, ...] = ()

    @property
    def decoded_bytes(self) -> int:
        """Of all samples."""
        return int(self.images().nbytes)

    def images(self) -> NDArray[np.uint8]:
        """Maps the images read-only."""
        images: NDArray[np.uint8] = np.load(self.file, mmap_mode="r", allow_pickle=False)
        return images


def cache_folder(config: DataConfig) -> Path:
    """data.cache, else $FLYBALL_CACHE, else $XDG_CACHE_HOME/flyball, else ~/.cache/flyball."""
    given = config.cache or os.environ.get("FLYBALL_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flyball"


def recall(cache: Path, container: Container, config: DataConfig) -> Stored | None:
    """What is stored of a source whose files have not changed since it was remembered."""
    try:
        return find(cache, str(read_json(_memory_file(cache, container, config))["key"]))
    except (CorruptArtifact, KeyError, TypeError, OSError):
        return None


def remember(cache: Path, container: Container, config: DataConfig, key: str) -> None:
    """Notes under which key a source is stored; a cache that takes no note only costs time."""
    with contextlib.suppress(StorageError, OSError):
        write_json(_memory_file(cache, container, config), {"key": key})


def key_of(plan: Plan) -> str:
    """Of the content, whatever it is packed in."""
    parts = [asdict(part) for part in plan.parts]
    skipped = [plan.skipped] if plan.skipped else []
    return fingerprint_of(FORMAT, plan.content, plan.classes, parts, plan.shape, *skipped)


def recall_corrupt(cache: Path, listing: Listing) -> list[int] | None:
    """Rows of a listing that were found corrupt before; None where nobody looked, or it changed."""
    try:
        return [int(row) for row in read_json(_corrupt_file(cache, listing))["rows"]]
    except (CorruptArtifact, KeyError, TypeError, ValueError, OSError):
        return None


def remember_corrupt(cache: Path, listing: Listing, rows: Iterable[int]) -> None:
    """Notes which rows are corrupt; a cache that takes no note only costs time."""
    with contextlib.suppress(StorageError, OSError):
        write_json(_corrupt_file(cache, listing), {"rows": sorted(rows)})


def find(cache: Path, key: str) -> Stored | None:
    """The images stored under a key, None where they are missing or not whole."""
    file = cache / "images" / f"{key}.npy"
    try:
        header = read_json(file.with_suffix(".json"))
        if header["format"] != FORMAT or file.stat().st_size != header["bytes"]:
            return None
        parts = tuple(
            Part(part["name"], tuple(part["counts"]), part["is_test"]) for part in header["parts"]
        )
        skipped = tuple(header.get("skipped", ()))
        return Stored(file, tuple(header["classes"]), parts, header["pixels"], skipped)
    except (CorruptArtifact, KeyError, TypeError, OSError):
        return None


def store(cache: Path, plan: Plan, report: Report) -> Stored:
    """Decodes what a plan reads into the cache, unless it is there.

    Raises:
        DataError: an image does not decode; nothing of the set stays in the cache.
        StorageError: the cache cannot be written or is full.
    """
    key = key_of(plan)
    found = find(cache, key)
    if found is not None:
        return found
    file = cache / "images" / f"{key}.npy"
    shape = (plan.count, *plan.shape)
    with _advice(cache):
        made = _make_folders(file.parent)
        _remove_abandoned(file)
    try:
        with _advice(cache), write_atomically(file) as partial:
            with partial.open("wb+") as opened:
                np.lib.format.write_array_header_1_0(
                    opened, {"descr": "|u1", "fortran_order": False, "shape": shape}
                )
                start = opened.tell()
                _fill(opened.fileno(), start, plan, report)
            pixels = _digest(partial, start)
        with _advice(cache):
            write_json(
                file.with_suffix(".json"),
                {
                    "format": FORMAT,
                    "bytes": file.stat().st_size,
                    "classes": plan.classes,
                    "parts": [asdict(part) for part in plan.parts],
                    "pixels": pixels,
                    "skipped": plan.skipped,
                },
            )
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    stored = find(cache, key)
    if stored is None:
        raise StorageError(
            f"What was written to {file} cannot be read back. Name another folder with "
            "--set data.cache=FOLDER or FLYBALL_CACHE."
        )
    return stored


def _fill(file: int, start: int, plan: Plan, report: Report) -> None:
    """Writes rows where they belong, by plain writes: on a full disk a mapped page would kill."""
    row_bytes = int(np.prod(plan.shape, dtype=np.int64))
    seen = np.zeros(plan.count, np.bool_)
    for row, pixels in plan.read(report):
        if pixels.shape != plan.shape:
            raise DataError(
                f"A data set must stay as it is while it is read; image {row} is {pixels.shape}, "
                f"not {plan.shape}. Start again."
            )
        _write_all(file, pixels.tobytes(), start + row * row_bytes)
        seen[row] = True
    if not seen.all():
        raise DataError(
            "A data set must stay as it is while it is read; "
            f"{int((~seen).sum())} of {plan.count} images went away. Start again."
        )


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _digest(file: Path, start: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        opened.seek(start)
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _memory_file(cache: Path, container: Container, config: DataConfig) -> Path:
    where = str(container.path.resolve())
    state = hashlib.sha256(json.dumps(container.state).encode()).hexdigest()
    source = (FORMAT, where, state, config.name, config.image_size, config.limit)
    if config.short_side is not None or config.skip_corrupt:
        return _source_file(cache, *source, config.short_side, config.skip_corrupt)
    return _source_file(cache, *source)


def _corrupt_file(cache: Path, listing: Listing) -> Path:
    where = str(listing.where.resolve())
    return _source_file(cache, FORMAT, "corrupt", where, listing.token, listing.state)


def _source_file(cache: Path, *source: Any) -> Path:
    return cache / "sources" / f"{fingerprint_of(*source)}.json"


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder and those above it, tries whether it takes a file; those made, deepest first.

    Raises:
        OSError: it cannot be made or written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return missing


def _remove_abandoned(file: Path) -> None:
    """What a killed process left of this file a day ago or earlier."""
    for partial in file.parent.glob(f".{file.name}.*.partial"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_S:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _advice(cache: Path) -> Iterator[None]:
    """Says of any failure to write where the cache is and how to name another."""
    try:
        yield
    except (OSError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        reason = getattr(cause, "strerror", None) or cause or error
        raise StorageError(
            f"Decoded images are kept in {cache}, which cannot be written: {reason}. Free some "
            "space, or name another folder with --set data.cache=FOLDER or FLYBALL_CACHE."
        ) from error
