"""From the bytes of an image file to pixels: grey or colour, resized or not.

C channels, H, W. EXIF orientation is not applied (as in torchvision's ImageFolder).
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.errors import DataError

__all__ = [
    "SUFFIXES",
    "Header",
    "Sizing",
    "decode",
    "fit",
    "header_of",
    "quiet_pillow",
    "resized_shape",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_GREY_MODES = ("1", "L", "LA", "La")
_REFUSED_MODES = ("I", "F")


class Header(NamedTuple):
    """What an image file says of itself before it is decoded."""

    width: int
    height: int
    is_grey: bool


@dataclass(frozen=True)
class Sizing:
    """How an image comes to its size. Resizing is bilinear and antialiased.

    Without a height it stays as it is. With a height alone the short side is resized to it and the
    central square cut out. With a `short_side` too, that is what the short side is resized to, by
    the rounding of torchvision's Resize and CenterCrop. With a width the image is stretched.

    Attributes:
        height, width, short_side: in pixels; at most one of the last two is given.
    """

    height: int | None = None
    width: int | None = None
    short_side: int | None = None

    @property
    def token(self) -> int | list[int | None] | None:
        """What a fingerprint keeps of it."""
        if self.width is None and self.short_side is None:
            return self.height
        return [self.height, self.width, self.short_side]

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The (C, H, W) of an image of the given size once it is sized."""
        if self.height is None:
            return channels, height, width
        return channels, self.height, self.width or self.height

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Sizes an image in mode L or RGB; uint8 (C, H, W)."""
        if self.width is not None and self.height is not None:
            if image.size != (self.width, self.height):
                image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
            return _channels_first(image)
        if self.short_side is None or self.height is None:
            return fit(image, self.height)
        short = min(image.size)
        width, height = (
            self.short_side if side == short else int(self.short_side * side / short)
            for side in image.size
        )
        left, top = round((width - self.height) / 2), round((height - self.height) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return _channels_first(image.crop((left, top, left + self.height, top + self.height)))


class _Quiet:
    """One change of the warnings' filters, however many threads decode at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._filters = warnings.catch_warnings()

    def enter(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def leave(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._filters.__exit__(None, None, None)


_quiet = [_Quiet()]
# a forked process has none of the threads that would leave
os.register_at_fork(after_in_child=lambda: _quiet.__setitem__(0, _Quiet()))


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's remarks on odd metadata are dropped; an absurdly large image is an error."""
    quiet = _quiet[0]
    quiet.enter()
    try:
        yield
    finally:
        quiet.leave()


def header_of(data: bytes | IO[bytes], where: str) -> Header:
    """Reads size and mode without decoding.

    Args:
        data: the whole file, or the file opened.
        where: names the file in an error.

    Raises:
        DataError: it is no image, or one whose samples have 32 bits.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them raise
        raise _undecodable(where, data, error) from error
    if mode in _REFUSED_MODES:
        raise DataError(
            f"Images have 8 or 16 bits a channel; {where} has 32 (mode {mode}). Convert it to PNG."
        )
    return Header(*size, mode in _GREY_MODES or mode.startswith("I;16"))


def decode(
    data: bytes, where: str, *, channels: int, image_size: Sizing | int | None
) -> NDArray[np.uint8]:
    """Decodes one image; uint8 (C, H, W).

    Args:
        data: the whole file.
        where: names the file in an error.
        channels: 1 for grey, 3 for colour; a grey image becomes three equal channels.
        image_size: how it comes to its size; a number is the height of a `Sizing`.

    Raises:
        DataError: it does not decode.
    """
    mode = "L" if channels == 1 else "RGB"
    sizing = image_size if isinstance(image_size, Sizing) else Sizing(image_size)
    flat: Image.Image
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):
                flat = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            else:
                image.load()
                flat = image
            flat = flat if flat.mode == mode else flat.convert(mode)
            return sizing.apply(flat)
    except Exception as error:  # as above
        raise _undecodable(where, data, error) from error


def fit(image: Image.Image, image_size: int | None) -> NDArray[np.uint8]:
    """Resizes the short side to `image_size` (bilinear, antialiased), then cuts out the centre."""
    if image_size is not None and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + image_size, top + image_size))
    return _channels_first(image)


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized_shape(
    channels: int, height: int, width: int, image_size: int | None
) -> tuple[int, int, int]:
    """The (C, H, W) that `fit` gives."""
    return (channels, height, width) if image_size is None else (channels, image_size, image_size)


def _undecodable(where: str, data: bytes | IO[Any], error: Exception) -> DataError:
    reason = str(error).replace("<_io.BytesIO object at ", "<").split(" <")[0]
    size = f" ({len(data)} bytes)" if isinstance(data, bytes) else ""
    return DataError(
        f"Every image must decode; {where}{size} does not ({reason or type(error).__name__}). "
        "Replace or remove that file, or leave out all such files with "
        "--set data.skip_corrupt=true."
    )
