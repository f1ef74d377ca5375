"""People in MPII's annotation files: the JSON of the common pose code, and the MATLAB release.

Both count pixels from 1, so 1 is the centre of the first pixel and .5 is taken off every length.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.errors import DataError
from flyball.datapaths.pose.joints import JOINTS

__all__ = ["HEAD_PER_SCALE", "Person", "read_release", "read_split"]

HEAD_PER_SCALE = 25.0
"""MPII derives a person's `scale` from the head box: 0.6 of its diagonal is 25 pixels a scale."""

_HEAD_BIAS = 0.6  # of the head box's diagonal; MPII's evaluation calls the product head size
_MOST_SCALE = 30.0


class Person(NamedTuple):
    """One annotated person; lengths in pixels of the photograph, which spans 0 to its width.

    Attributes:
        image: file name of the photograph.
        x, y: rough centre.
        scale: height over 200 pixels.
        key_points: x, y, and 1 where the joint is annotated, else three zeros; float64 (16, 3).
        head_size: 0.6 of the head box's diagonal.
        where: what a message calls the record.
    """

    image: str
    x: float
    y: float
    scale: float
    key_points: NDArray[np.float64]
    head_size: float
    where: str


Reject = Callable[[str, str], None]
"""Hears of a record that cannot be used, by name and reason; raises or notes it."""


def read_split(data: bytes, where: str, reject: Reject) -> list[Person]:
    """Reads train.json or valid.json, a list of records, one a person.

    A record has `image`, `center`, `scale`, `joints` (16 of x, y) and `joints_vis` (16 of 0 or 1);
    it may have the head box as `headbox`, x1, y1, x2, y2.

    Args:
        data: the file.
        where: names it in messages.
        reject: told of records that break this.

    Raises:
        DataError: it is no JSON list.
    """
    try:
        records = json.loads(data)
    except ValueError as error:
        raise DataError(
            f"MPII's annotations are JSON; {where} ({len(data)} bytes) is not ({error}). "
            "Fetch it again."
        ) from error
    if not isinstance(records, list) or not records:
        raise DataError(
            f"MPII's annotations are a list of people; {where} is {type(records).__name__}"
            f"{' without any' if isinstance(records, list) else ''}. Give train.json or valid.json "
            "of the MPII annotations for HRNet or Fast Pose Distillation."
        )
    people = []
    for number, record in enumerate(records):
        name = f"record {number} of {where}"
        try:
            people.append(_of_record(record, name))
        except (DataError, KeyError, TypeError, ValueError, IndexError) as error:
            reject(name, _reason(error))
    return people


def read_release(data: bytes, where: str, reject: Reject) -> list[Person]:
    """Reads mpii_human_pose_v1_u12_1.mat: everybody in its training images whose joints are known.

    Joint ids run from 0, coordinates from 1. People without joints, centre or scale are bystanders
    and no error.

    Args, Raises: as of `read_split`.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped,unused-ignore]

    try:
        release = loadmat(io.BytesIO(data), simplify_cells=True)["RELEASE"]
        images = _several(release["annolist"])
        is_train = np.atleast_1d(release["img_train"])
        if len(images) != len(is_train):
            raise ValueError(f"{len(images)} images and {len(is_train)} flags")
    except Exception as error:  # scipy raises whatever a broken file makes it raise
        raise DataError(
            "MPII's release is a MATLAB file with RELEASE.annolist and RELEASE.img_train; "
            f"{where} ({len(data)} bytes) is not ({error or type(error).__name__}). Fetch it again."
        ) from error
    people = []
    for number, image in enumerate(images):
        if not is_train[number]:
            continue
        for place, person in enumerate(_several(image.get("annorect"))):
            points = person.get("annopoints")
            known = _several(points.get("point")) if isinstance(points, Mapping) else []
            objpos, scale = person.get("objpos"), person.get("scale")
            if not known or not isinstance(objpos, Mapping) or not isinstance(scale, float | int):
                continue
            name = f"person {place} of image {number} of {where}"
            try:
                people.append(_of_release(image, person, known, name))
            except (DataError, KeyError, TypeError, ValueError, IndexError) as error:
                reject(name, _reason(error))
    return people


def _of_record(record: Mapping[str, Any], where: str) -> Person:
    joints = np.asarray(record["joints"], np.float64)
    visible = np.asarray(record["joints_vis"], np.float64)
    if joints.shape != (len(JOINTS), 2) or visible.shape != (len(JOINTS),):
        raise DataError(f"joints are {joints.shape}, not ({len(JOINTS)}, 2) with a flag each")
    if not np.isin(visible, (0, 1)).all():
        raise DataError("joints_vis is not made of 0 and 1")
    return _person(
        record["image"], record["center"], record["scale"], joints, visible, _box(record), where
    )


def _of_release(
    image: Mapping[str, Any],
    person: Mapping[str, Any],
    points: list[Mapping[str, Any]],
    where: str,
) -> Person:
    joints, visible = np.zeros((len(JOINTS), 2)), np.zeros(len(JOINTS))
    for point in points:
        joint = int(point["id"])
        if not 0 <= joint < len(JOINTS):
            raise DataError(f"joint id {joint} is not in 0 to {len(JOINTS) - 1}")
        joints[joint] = float(point["x"]), float(point["y"])
        visible[joint] = 1.0
    centre = person["objpos"]["x"], person["objpos"]["y"]
    sides = tuple(person.get(name) for name in ("x1", "y1", "x2", "y2"))
    box = sides if all(isinstance(side, float | int) for side in sides) else None
    return _person(image["image"]["name"], centre, person["scale"], joints, visible, box, where)


def _person(
    image: Any,
    centre: Iterable[Any],
    scale: Any,
    joints: NDArray[np.float64],
    visible: NDArray[np.float64],
    box: tuple[Any, ...] | None,
    where: str,
) -> Person:
    x, y = (float(value) for value in centre)
    scale = float(scale)
    if not isinstance(image, str) or not image:
        raise DataError(f"its image is {image!r}, no file name")
    if not (math.isfinite(x) and math.isfinite(y) and 0.0 < scale <= _MOST_SCALE):
        raise DataError(
            f"centre ({x:g}, {y:g}) and scale {scale:g} are no place and height over 200 pixels"
        )
    is_known = visible > 0
    if not is_known.any() or not np.isfinite(joints[is_known]).all():
        raise DataError("none of its joints is annotated, or one is not finite")
    points = np.concatenate([joints - 0.5, visible[:, None]], axis=1)
    points[~is_known] = 0.0
    head = HEAD_PER_SCALE * scale
    if box is not None:
        x1, y1, x2, y2 = (float(value) for value in box)
        head = _HEAD_BIAS * math.hypot(x2 - x1, y2 - y1)
        if not (math.isfinite(head) and head > 0.0):
            raise DataError(f"its head box {box} has no size")
    return Person(image, x - 0.5, y - 0.5, scale, points, head, where)


def _box(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    box = record.get("headbox")
    return None if box is None else tuple(box)


def _several(value: Any) -> list[Mapping[str, Any]]:
    """MATLAB's struct, struct array or nothing as a list."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list | np.ndarray):
        return [each for each in value if isinstance(each, Mapping)]
    return []


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
