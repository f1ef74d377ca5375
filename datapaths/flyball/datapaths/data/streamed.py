"""Pixels that are decoded when they are asked for, by threads; nothing is kept, nothing written.

N samples, M of them asked for, C channels, T frames, H, W.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flyball.datapaths.data.decode import quiet_pillow
from flyball.datapaths.data.samples import Reader
from flyball.datapaths.errors import DataError
from flyball.datapaths.progress import Progress, Report

__all__ = ["StreamedPixels", "corrupt_rows"]

_MOST_AHEAD = 4  # batches that are read ahead and not yet asked for


class StreamedPixels:
    """An array of N samples that decodes the rows it is indexed with.

    It can be pickled and forked: each process has its own threads and opens files itself. The same
    rows give the same bytes, whatever the number of threads.

    Args:
        reader: of the samples.
        sample: shape of one sample, (C, H, W) or (C, T, H, W).
        workers: threads; 0 decodes in the caller's.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, reader: Reader, sample: tuple[int, ...], workers: int = 0) -> None:
        self.reader, self.workers = reader, workers
        self.shape: tuple[int, ...] = (len(reader), *sample)
        self._pool: tuple[ThreadPoolExecutor, int] | None = None
        self._ahead: OrderedDict[bytes, list[Future[NDArray[np.uint8]]]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def ndim(self) -> int:
        """4 of images, 5 of clips."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples, decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamedPixels, (self.reader, self.shape[1:], self.workers)

    def __repr__(self) -> str:
        return f"StreamedPixels(shape={self.shape}, workers={self.workers})"

    def __getitem__(self, rows: int | slice | ArrayLike) -> NDArray[np.uint8]:
        """Decodes some rows.

        Args:
            rows: one index, a slice, int indices (M,), or a mask (N,); negative ones count back.

        Returns:
            uint8, of one sample's shape for one index, else (M, ...) in the order of the indices.

        Raises:
            IndexError: a row does not exist, or this is no index of rows.
            DataError: a sample went away or does not decode; names the file.
        """
        index, is_one = self._index(rows)
        pixels = np.empty((len(index), *self.shape[1:]), np.uint8)
        with self._lock:
            ahead = self._ahead.pop(index.tobytes(), None)
        if ahead is not None:
            decoded: Iterable[NDArray[np.uint8]] = (future.result() for future in ahead)
        elif self.workers and len(index) > 1:
            decoded = self._threads().map(self._decode, index.tolist())
        else:
            decoded = map(self._decode, index.tolist())
        for place, sample in enumerate(decoded):
            pixels[place] = sample
        return pixels[0] if is_one else pixels

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.uint8]:
        raise DataError(
            f"Streamed images are read by rows, images[rows], never whole: {len(self)} of them "
            f"take {self.nbytes / 1e6:,.0f} MB. Index them, or hold them decoded with "
            "--set data.access=cache."
        )

    def prefetch(self, rows: slice | ArrayLike) -> None:
        """Starts to decode rows that the same index will ask for; does nothing without threads.

        The last few calls are kept; what an older one decoded is dropped.

        Raises:
            IndexError: as of an index.
        """
        index, _ = self._index(rows)
        if not self.workers or not len(index):
            return
        threads = self._threads()
        with self._lock:
            if index.tobytes() in self._ahead:
                return
            self._ahead[index.tobytes()] = [
                threads.submit(self._decode, row) for row in index.tolist()
            ]
            while len(self._ahead) > _MOST_AHEAD:
                for future in self._ahead.popitem(last=False)[1]:
                    future.cancel()

    def _decode(self, row: int) -> NDArray[np.uint8]:
        with quiet_pillow():
            sample = self.reader.decode(row)
        if sample.shape != self.shape[1:]:
            raise DataError(
                f"A data set must stay as it is while it is read; {self.reader.name(row)} is now "
                f"{sample.shape}, not {self.shape[1:]}. Start again."
            )
        return sample

    def _index(self, rows: Any) -> tuple[NDArray[np.int64], bool]:
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)), dtype=np.int64), False
        given = np.asarray(rows)
        if given.dtype == np.bool_ and given.shape == (len(self),):
            return np.flatnonzero(given).astype(np.int64), False
        if given.ndim > 1 or (given.size and given.dtype.kind not in "iu"):
            raise IndexError(
                "Streamed images are indexed by rows: an integer, a slice, integers (M,), or a "
                f"mask ({len(self)},); got {given.dtype} of shape {given.shape}."
            )
        index = given.reshape(-1).astype(np.int64)
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"There are {len(self)} images; row {index[outside][0]} is not one.")
        return np.where(index < 0, index + len(self), index), given.ndim == 0

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[1] != os.getpid():
                self._ahead.clear()
                self._pool = ThreadPoolExecutor(self.workers, "flyball-decode"), os.getpid()
            return self._pool[0]


def corrupt_rows(pixels: StreamedPixels, report: Report) -> dict[int, str]:
    """Decodes every sample once; the rows that do not decode, each with what is wrong with it."""
    found: dict[int, str] = {}

    def reason(row: int) -> str | None:
        try:
            pixels[row]
        except DataError as error:
            return str(error)
        return None

    chunk = 16 * max(pixels.workers, 1)
    with ThreadPoolExecutor(max(pixels.workers, 1)) as threads:
        for start in range(0, len(pixels), chunk):
            rows = range(start, min(start + chunk, len(pixels)))
            for row, said in zip(rows, threads.map(reason, rows), strict=True):
                if said is not None:
                    found[row] = said
            report(Progress("check", rows.stop, len(pixels), f"{len(found)} corrupt"))
    return found
