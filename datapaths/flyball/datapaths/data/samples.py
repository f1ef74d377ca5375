"""One sample of a source by its row, decoded: an image from one file, a clip from one a frame.

N samples, C channels, T frames, H, W.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.decode import Sizing, decode
from flyball.datapaths.data.random_files import Files

__all__ = ["ClipReader", "ImageReader", "Reader", "name_table"]


class Reader(Protocol):
    """What decodes samples; a value that can be pickled."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What a report calls the sample."""
        ...

    def decode(self, row: int) -> NDArray[np.uint8]:
        """Its pixels, (C, H, W) or (C, T, H, W).

        Raises:
            DataError: a file of it is gone or does not decode; names the file.
        """
        ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """A reader of those samples alone, in their order."""
        ...


def name_table(names: Sequence[str]) -> NDArray[np.bytes_]:
    """Names as one array, which a million of them leave small."""
    return np.array([name.encode() for name in names], np.bytes_)


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Images, one a file.

    Attributes:
        files: where they are.
        names: of the files, in the order of the rows; (N,).
        channels: 1 or 3.
        sizing: how an image comes to its size.
    """

    files: Files
    names: NDArray[np.bytes_]
    channels: int
    sizing: Sizing

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """See `Reader`."""
        return bytes(self.names[row]).decode()

    def decode(self, row: int) -> NDArray[np.uint8]:
        """See `Reader`."""
        name = self.name(row)
        data = self.files.read(name)
        where = self.files.where(name)
        return decode(data, where, channels=self.channels, image_size=self.sizing)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """See `Reader`."""
        return replace(self, names=self.names[rows])


@dataclass(frozen=True, eq=False)
class ClipReader:
    """Clips in colour, a folder each, its frames in numbered files.

    Attributes:
        files: where they are.
        folders: of the clips, in the order of the rows; (N,).
        frames: numbers of the frames that are taken; int64 (N, T).
        pattern: name of a frame's file, such as "{:05d}.jpg".
        sizing: how a frame comes to its size; to the same for all.
    """

    files: Files
    folders: NDArray[np.bytes_]
    frames: NDArray[np.int64]
    pattern: str
    sizing: Sizing

    def __len__(self) -> int:
        return len(self.folders)

    def name(self, row: int) -> str:
        """See `Reader`."""
        return bytes(self.folders[row]).decode()

    def decode(self, row: int) -> NDArray[np.uint8]:
        """See `Reader`."""
        folder = self.name(row)
        decoded: dict[int, NDArray[np.uint8]] = {}
        for number in self.frames[row].tolist():
            if number not in decoded:
                name = f"{folder}/{self.pattern.format(number)}"
                decoded[number] = decode(
                    self.files.read(name),
                    self.files.where(name),
                    channels=3,
                    image_size=self.sizing,
                )
        return np.stack([decoded[number] for number in self.frames[row].tolist()], axis=1)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """See `Reader`."""
        return replace(self, folders=self.folders[rows], frames=self.frames[rows])
