"""What a controller sees of a sample: its image or clip, or the context of the lowest arm.

Axis letters: N samples, C channels, T frames, H, W, D context features, B batch.
"""

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard, cast, get_args

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import DataError, InvalidSetting, NotFinite, unknown_name
from flyball.datapaths.files import refuse_pickle

__all__ = [
    "Images",
    "ObservationKind",
    "as_unit_range",
    "check_size",
    "is_image_set",
    "observations",
    "open_images",
]

ObservationKind = Literal["context", "image"]
Images: TypeAlias = NDArray[Any] | ImageSet | str | Path

MOST_BYTES = 8 * 10**9  # of image observations, which are held in memory as float32


def observations(
    atlas: OutcomeAtlas, images: Images | None, kind: ObservationKind
) -> NDArray[np.float32]:
    """What a controller sees of every row of an atlas.

    Args:
        atlas: outcomes of N samples; its `sample` names rows of the images.
        images: the image set, its array (uint8 or float32 in [0, 1], (M, C, H, W), or clips
            (M, C, T, H, W)), or the .npy file that holds it; may be None for "context".
        kind: "context" or "image".

    Returns:
        float32 (N, D), or (N, C, H, W) or (N, C, T, H, W) in [0, 1].

    Raises:
        UnknownName: there is no such kind of observation.
        InvalidSetting: the atlas has no context, image observations come without images, or those
            of all rows take more than 8 GB.
        DataError: the images have too few rows, another layout or another type.
        NotFinite: a context value is NaN or infinite; names the row.
    """
    check_kind(kind)
    if kind == "context":
        return context_rows(atlas)
    if images is None:
        raise missing_images("Image observations")
    array = open_images(images)
    check_samples(array, atlas.sample)
    check_size(len(atlas.sample), array.shape[1:])
    return as_unit_range(image_rows(array, atlas.sample))


def open_images(images: Images) -> NDArray[Any]:
    """The array of an image set, of a .npy file (memory-mapped), or itself.

    Returns:
        (M, C, H, W), or (M, C, T, H, W) of clips. That of an image set may be streamed: it then has
        a shape, a type and a length, and gives rows for an array of indices, and no more.

    Raises:
        DataError: the file is missing or is no array, or the array is no stack of images in range.
    """
    if isinstance(images, str | Path):
        array = _map_file(Path(images))
    else:
        array = cast(NDArray[Any], images.images if is_image_set(images) else images)
    is_stack = len(array.shape) in (4, 5)
    if not is_stack or array.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
        raise DataError(
            "Images are uint8, or float32 in [0, 1], of shape (samples, channels, height, width); "
            f"{array.dtype} of shape {array.shape} came. Convert them; clips have an axis of "
            "frames after the channels."
        )
    is_float = array.dtype == np.float32
    if is_float and len(array) and not 0.0 <= float(array.min()) <= float(array.max()) <= 1.0:
        raise DataError(
            f"Images of floats lie in [0, 1]; these reach from {array.min()} to {array.max()}. "
            "Divide them by their largest possible value, or give bytes."
        )
    return array


def is_image_set(images: Any) -> TypeGuard[ImageSet]:
    """Whether it carries images with their splits, as an `ImageSet` does: also one with boxes."""
    return hasattr(images, "images") and hasattr(images, "rows")


def as_unit_range(images: NDArray[Any]) -> NDArray[np.float32]:
    """Images as float32 in [0, 1]; bytes are divided by 255, floats stay as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255.0)
    return np.asarray(images, np.float32)


def image_rows(images: NDArray[Any], sample: NDArray[np.int64]) -> NDArray[Any]:
    """The images of some samples, copied out of what may be mapped or streamed."""
    return np.asarray(images[np.asarray(sample)])


def check_samples(images: NDArray[Any], sample: NDArray[np.int64]) -> None:
    """Refuses samples that are no row of the images.

    Raises:
        DataError: one lies beyond the last image.
    """
    if len(sample) and not 0 <= int(np.min(sample)) <= int(np.max(sample)) < len(images):
        raise DataError(
            f"The atlas names samples {int(np.min(sample))} to {int(np.max(sample))}, and there "
            f"are {len(images)} images. Give the images that the atlas was built from."
        )


def context_rows(atlas: OutcomeAtlas) -> NDArray[np.float32]:
    """The context of every row, (N, D), in memory.

    Raises:
        InvalidSetting: the atlas has none.
        NotFinite: a value is NaN or infinite; names the row.
    """
    if atlas.context is None:
        raise InvalidSetting(
            "Context observations need an atlas that holds contexts; this one "
            f"({atlas.header.fingerprint}) has none. Build it from a data path that gives "
            'contexts, or observe images: observation="image".'
        )
    context = np.array(atlas.context, np.float32)
    broken = np.flatnonzero(~np.isfinite(context).all(axis=1))
    if len(broken):
        row = int(broken[0])
        raise NotFinite(
            f"Every context value must be finite; row {row} (sample {int(atlas.sample[row])}) "
            f"holds one that is not, and so do {len(broken)} rows in all. Rebuild the atlas."
        )
    return context


def check_kind(kind: str) -> None:
    """Refuses a kind of observation that does not exist.

    Raises:
        UnknownName: there is no such kind.
    """
    if kind not in get_args(ObservationKind):
        raise unknown_name("observation", str(kind), get_args(ObservationKind))


def missing_images(what: str) -> InvalidSetting:
    """The error for images that are needed and did not come."""
    return InvalidSetting(
        f"{what} need the images that the samples name, and none came. Give images=: the image "
        "set, its array, or the .npy file it is mapped from."
    )


def check_size(rows: int, sample: tuple[int, ...]) -> None:
    """Refuses image observations that would not fit in memory.

    Args:
        rows: samples that are observed.
        sample: shape of one.

    Raises:
        InvalidSetting: as float32 they take more than `MOST_BYTES`.
    """
    count = 4 * rows * math.prod(int(size) for size in sample)
    if count > MOST_BYTES:
        raise InvalidSetting(
            f"Image observations are held in memory and take at most {MOST_BYTES / 1e9:g} GB; "
            f"{rows} of shape {tuple(sample)} take {count / 1e9:,.1f} GB as float32. Let the "
            "controller look at contexts, --set controller.kind=context_head, or take fewer "
            "images with --set data.limit=COUNT."
        )


def _map_file(file: Path) -> NDArray[Any]:
    if file.suffix != ".npy":
        raise DataError(
            f"Images are mapped from a .npy file, and {file.name} is none. Give the array itself, "
            "or the file that holds it alone, as numpy.save writes it."
        )
    refuse_pickle(file)
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"There are no images at {file}. Give the .npy file they are in."
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{file} is not a whole .npy array of numbers ({error}). Decode the images again."
        ) from error
