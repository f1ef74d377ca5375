"""CIFAR-10 as published and as torchvision keeps it: pickled batches, read without trusting them.

The published files are pickles by nature. They are read by an unpickler that knows the few names
that such a batch needs (an array, its type, bytes) and refuses every other.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import fit, resized_shape
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["CIFAR10_CLASSES", "CIFAR10_SHAPE", "holds_batches", "plan_batches"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_SHAPE = (3, 32, 32)
FOLDER = "cifar-10-batches-py"

_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_BATCHES = (*_TRAIN, _TEST)
_META = "batches.meta"


def holds_batches(container: Container) -> bool:
    """Whether the first file is one of the published archive's."""
    for member in container.members(lambda name: False):
        if FOLDER in member.name:
            return True
        if not member.is_folder:
            return member.name[-1] in (*_BATCHES, _META)
    return False


def plan_batches(
    container: Container, *, image_size: int | None, limit: int | None, report: Report
) -> Plan:
    """Looks through the batches, one in memory at a time.

    Args:
        container: the folder or archive.
        image_size: as in `decode.fit`.
        limit: at most so many images, the first in the batches, of each class in each part.
        report: told of the stage "survey", in batches.

    Raises:
        DataError: a batch is missing, truncated, or not what a CIFAR-10 batch is.
    """
    labels: dict[str, NDArray[np.int64]] = {}
    digests: dict[str, str] = {}
    has_meta = False
    for member in container.members(_is_batch):
        if member.data is None:
            continue
        name, where = member.name[-1], f"{member.name[-1]} in {container.path}"
        if name == _META:
            _check_meta(_unpickle(member.data, where), where)
            has_meta = True
            continue
        labels[name] = _batch(member.data, where)[1]
        digests[name] = hashlib.sha256(member.data).hexdigest()
        report(Progress("survey", len(labels), len(_BATCHES)))
    missing = [name for name in (*_BATCHES, _META) if name not in labels and name != _META]
    missing += [] if has_meta else [_META]
    if missing:
        raise DataError(
            f"CIFAR-10's {FOLDER} has {', '.join((*_BATCHES, _META))}; {container.path} lacks "
            f"{', '.join(missing)}. Fetch cifar-10-python.tar.gz again."
        )
    rows, parts = _rows_of(labels, limit)

    def read(report: Report) -> Pixels:
        total = sum(sum(part.counts) for part in parts)
        done = 0
        for member in container.members(lambda name: name[-1] in _BATCHES):
            if member.data is None:
                continue
            name = member.name[-1]
            data, seen = _batch(member.data, f"{name} in {container.path}")
            if not np.array_equal(seen, labels[name]):
                raise DataError(
                    "A data set must stay as it is while it is read; "
                    f"{name} in {container.path} changed. Start again."
                )
            for row, pixels in zip(rows[name].tolist(), data, strict=True):
                if row >= 0:
                    yield row, _resized(pixels, image_size)
                    done += 1
            report(Progress("decode", done, total))

    return Plan(
        classes=CIFAR10_CLASSES,
        parts=parts,
        shape=resized_shape(*CIFAR10_SHAPE, image_size),
        content=fingerprint_of("cifar batches", digests, limit, image_size),
        read=read,
    )


def _rows_of(
    labels: dict[str, NDArray[np.int64]], limit: int | None
) -> tuple[dict[str, NDArray[np.int64]], tuple[Part, ...]]:
    """The row of every image of every batch, -1 where the limit leaves it out; and the parts."""
    rows: dict[str, NDArray[np.int64]] = {}
    parts: list[Part] = []
    start = 0
    for part, names in (("train", _TRAIN), ("test", (_TEST,))):
        together = np.concatenate([labels[name] for name in names])
        placed = np.full(len(together), -1, np.int64)
        counts: list[int] = []
        for label in range(len(CIFAR10_CLASSES)):
            own = np.flatnonzero(together == label)[:limit]
            placed[own] = np.arange(start, start + len(own))
            start += len(own)
            counts.append(len(own))
        ends = np.cumsum([len(labels[name]) for name in names])[:-1]
        rows.update(zip(names, np.split(placed, ends), strict=True))
        parts.append(Part(part, tuple(counts), part == "test"))
    return rows, tuple(parts)


def _resized(pixels: NDArray[np.uint8], image_size: int | None) -> NDArray[np.uint8]:
    if image_size is None:
        return pixels
    return fit(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), image_size)


def _batch(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (n, 3, 32, 32) and labels (n,) of one batch."""
    batch = _unpickle(data, where)
    pixels = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    width = int(np.prod(CIFAR10_SHAPE))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (width,)
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < len(CIFAR10_CLASSES) for label in labels)
    ):
        raise DataError(
            f"A CIFAR-10 batch holds 'data', n x {width} bytes, and 'labels', n integers in 0 to "
            f"{len(CIFAR10_CLASSES) - 1}; {where} does not. Fetch cifar-10-python.tar.gz again."
        )
    return pixels.reshape(-1, *CIFAR10_SHAPE), np.asarray(labels, np.int64)


def _check_meta(meta: Any, where: str) -> None:
    names = meta.get(b"label_names") if isinstance(meta, dict) else None
    if names != [name.encode() for name in CIFAR10_CLASSES]:
        raise DataError(
            f"CIFAR-10's label_names are {', '.join(CIFAR10_CLASSES)}; {where} has {names!r}. "
            "Fetch cifar-10-python.tar.gz again."
        )


def _is_batch(name: tuple[str, ...]) -> bool:
    return name[-1] in (*_BATCHES, _META)


def _unpickle(data: bytes, where: str) -> Any:
    try:
        return _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise DataError(
            f"A CIFAR-10 batch must be whole; {where} ({len(data)} bytes) is truncated or corrupt "
            f"({error or type(error).__name__}). Fetch cifar-10-python.tar.gz again."
        ) from error


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _ADMITTED.get((module, name))
        if known is None:
            raise DataError(
                f"A CIFAR-10 batch holds an array and numbers; this one asks for {module}.{name}, "
                "which could run any code. Fetch cifar-10-python.tar.gz from a source you trust."
            )
        return known


def _dtype(text: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    """np.dtype for integers alone: an array of objects could hold anything."""
    dtype = np.dtype(text.decode() if isinstance(text, bytes) else text)
    if dtype.kind not in "ui":
        raise ValueError(f"an array of {dtype}")
    return np.dtype(dtype, align=bool(align), copy=bool(copy))


def _latin1(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes in the old protocol; other codecs are not run."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"bytes in the codec {encoding!r}")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}
