"""From the bytes of an image file to pixels: grey or colour, resized or not.

C channels, H, W. EXIF orientation is not applied (as in torchvision's ImageFolder).
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.errors import DataError

__all__ = ["SUFFIXES", "Header", "decode", "fit", "header_of", "quiet_pillow", "resized_shape"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_GREY_MODES = ("1", "L", "LA", "La")
_REFUSED_MODES = ("I", "F")


class Header(NamedTuple):
    """What an image file says of itself before it is decoded."""

    width: int
    height: int
    is_grey: bool


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's remarks on odd metadata are dropped; an absurdly large image is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def header_of(data: bytes, where: str) -> Header:
    """Reads size and mode without decoding.

    Args:
        data: the whole file.
        where: names the file in an error.

    Raises:
        DataError: it is no image, or one whose samples have 32 bits.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them raise
        raise _undecodable(where, data, error) from error
    if mode in _REFUSED_MODES:
        raise DataError(
            f"Images have 8 or 16 bits a channel; {where} has 32 (mode {mode}). Convert it to PNG."
        )
    return Header(*size, mode in _GREY_MODES or mode.startswith("I;16"))


def decode(data: bytes, where: str, *, channels: int, image_size: int | None) -> NDArray[np.uint8]:
    """Decodes one image; uint8 (C, H, W).

    Args:
        data: the whole file.
        where: names the file in an error.
        channels: 1 for grey, 3 for colour; a grey image becomes three equal channels.
        image_size: as `fit` takes it; None keeps the size.

    Raises:
        DataError: it does not decode.
    """
    mode = "L" if channels == 1 else "RGB"
    flat: Image.Image
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):
                flat = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            else:
                image.load()
                flat = image
            flat = flat if flat.mode == mode else flat.convert(mode)
            return fit(flat, image_size)
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
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized_shape(
    channels: int, height: int, width: int, image_size: int | None
) -> tuple[int, int, int]:
    """The (C, H, W) that `fit` gives."""
    return (channels, height, width) if image_size is None else (channels, image_size, image_size)


def _undecodable(where: str, data: bytes, error: Exception) -> DataError:
    reason = str(error).replace("<_io.BytesIO object at ", "<").split(" <")[0]
    return DataError(
        f"Every image must decode; {where} ({len(data)} bytes) does not "
        f"({reason or type(error).__name__}). Replace or remove that file."
    )
