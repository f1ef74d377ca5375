"""MPII Human Pose as published: photographs, and who is where in them.

```text
images/<n>.jpg                      anywhere below the root
annot/train.json, valid.json        as HRNet and Fast Pose Distillation have them (also mpii_*.json)
mpii_human_pose_v1_u12_1.mat        the release, read where there is no JSON
```

Every person is a sample: the square around them, sized. valid.json is the test part where there is
a train.json. N people, S side of a sample.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data.class_layout import is_image
from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import Sizing, decode
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Part
from flyball.datapaths.data.random_files import Entries, Files, open_files
from flyball.datapaths.data.samples import name_table
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.pose.mpii_records import Person, read_release, read_split
from flyball.datapaths.progress import Progress, Report

__all__ = ["CLASSES", "PersonReader", "is_mpii_file", "list_mpii"]

Name = tuple[str, ...]

CLASSES = ("person",)

_SPLITS = {
    "train": ("train.json", "mpii_train.json"),
    "valid": ("valid.json", "val.json", "mpii_valid.json", "mpii_val.json"),
}
_RELEASE = "mpii_human_pose_v1_u12_1.mat"
_LAYOUT = (
    "MPII is a folder or archive with its photographs and train.json, valid.json or "
    f"{_RELEASE} anywhere in it"
)
_SIDE_PER_SCALE = 250.0  # 200 pixels are the person, a quarter more keeps limbs in
_LOWER_PER_SCALE = 15.0  # the annotated centre is too high
VERSION = 1  # of how a person is cut out


@dataclass(frozen=True)
class _Square(Sizing):
    """Cuts a square out of a photograph; what lies beyond its edges is black.

    Attributes:
        left, top, side: in pixels of the photograph.
    """

    left: float = 0.0
    top: float = 0.0
    side: float = 1.0

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """See `Sizing`."""
        first_x, first_y = int(np.floor(self.left)) - 2, int(np.floor(self.top)) - 2
        reach = int(np.ceil(self.side)) + 5
        around = image.crop((first_x, first_y, first_x + reach, first_y + reach))
        left, top = self.left - first_x, self.top - first_y
        size = self.height or reach
        square = around.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + self.side, top + self.side),
        )
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


@dataclass(frozen=True, eq=False)
class PersonReader:
    """People, each cut out of a photograph.

    Attributes:
        files: where the photographs are.
        names: photograph of each person; (N,).
        squares: left, top and side of what is cut out, in its pixels; float64 (N, 3).
        image_size: S.
        key_points: x, y in the sample's pixels, and visible; float32 (N, 16, 3).
        head_sizes: in the sample's pixels; float32 (N,).
    """

    files: Files
    names: NDArray[np.bytes_]
    squares: NDArray[np.float64]
    image_size: int
    key_points: NDArray[np.float32]
    head_sizes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """See `samples.Reader`."""
        return bytes(self.names[row]).decode()

    def decode(self, row: int) -> NDArray[np.uint8]:
        """See `samples.Reader`."""
        name, (left, top, side) = self.name(row), self.squares[row].tolist()
        square = _Square(self.image_size, left=left, top=top, side=side)
        where = self.files.where(name)
        return decode(self.files.read(name), where, channels=3, image_size=square)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """See `samples.Reader`."""
        return replace(
            self,
            names=self.names[rows],
            squares=self.squares[rows],
            key_points=self.key_points[rows],
            head_sizes=self.head_sizes[rows],
        )


def is_mpii_file(name: Name) -> bool:
    """Whether a file of the source says anything here."""
    return is_image(name) or name[-1] == _RELEASE or any(name[-1] in n for n in _SPLITS.values())


def list_mpii(
    container: Container,
    entries: Entries,
    *,
    image_size: int,
    limit: int | None,
    skip_corrupt: bool,
    report: Report,
) -> Listing:
    """Reads who is where; opens no photograph.

    Args:
        container: folder, zip, or tar that is not compressed.
        entries: its files that `is_mpii_file` admits.
        image_size: S.
        limit: at most so many people, the first of each part.
        skip_corrupt: records that cannot be used, or whose photograph is missing, are left out.
        report: told of the stage "survey", once.

    Raises:
        DataError: there are no annotations, or a record cannot be used; names it.
    """
    files = open_files(container, entries)
    images = _images(container, entries)
    skipped: list[str] = []

    def reject(name: str, reason: str) -> None:
        if not skip_corrupt:
            raise DataError(
                f"An MPII record has an image, center, scale, joints and joints_vis; {name} cannot "
                f"be used: {reason}. Correct it, or leave out all such records with "
                "--set data.skip_corrupt=true."
            )
        skipped.append(name)

    parts: list[Part] = []
    people: list[Person] = []
    found = _annotations(container, entries)
    for part, file in found.items():
        where, data = files.where("/".join(file)), files.read("/".join(file))
        read = read_release if file[-1] == _RELEASE else read_split
        known = []
        for person in read(data, where, reject):
            if person.image not in images:
                reject(person.where, f"its photograph {person.image} is not in {container.path}")
            else:
                known.append(person)
        if not known:
            raise DataError(
                f"MPII's annotations name people in photographs; {where} leaves none that can be "
                f"used ({len(skipped)} left out). Fetch it again."
            )
        parts.append(Part(part, (len(known[:limit]),), part == "valid" and len(found) == 2))
        people += known[:limit]
    report(Progress("survey", len(people), len(people), f"{len(skipped)} left out"))
    reader = _reader(files, people, images, image_size)
    content = hashlib.sha256()
    for array in (reader.names, reader.squares, reader.key_points, reader.head_sizes):
        content.update(np.ascontiguousarray(array).tobytes())
    sizes = [entries.sizes[images[person.image]] for person in people]
    return Listing(
        classes=CLASSES,
        parts=tuple(parts),
        shape=(3, image_size, image_size),
        reader=reader,
        token=fingerprint_of("mpii", VERSION, content.hexdigest(), sizes, image_size),
        state=fingerprint_of(container.state),
        where=container.path,
        skipped=tuple(skipped),
    )


def _reader(
    files: Files, people: list[Person], images: Mapping[str, Name], image_size: int
) -> PersonReader:
    side = np.array([_SIDE_PER_SCALE * person.scale for person in people])
    x = np.array([person.x for person in people])
    y = np.array([person.y + _LOWER_PER_SCALE * person.scale for person in people])
    squares = np.stack([x - side / 2, y - side / 2, side], axis=1)
    shrink = image_size / side
    points = np.stack([person.key_points for person in people])
    places = (points[..., :2] - squares[:, None, :2]) * shrink[:, None, None]
    places *= points[..., 2:]  # what is not annotated stays at zero
    heads = np.array([person.head_size for person in people]) * shrink
    return PersonReader(
        files=files,
        names=name_table(["/".join(images[person.image]) for person in people]),
        squares=squares,
        image_size=image_size,
        key_points=np.concatenate([places, points[..., 2:]], axis=2).astype(np.float32),
        head_sizes=heads.astype(np.float32),
    )


def _images(container: Container, entries: Entries) -> dict[str, Name]:
    """Photographs by their file names, which MPII gives once."""
    images: dict[str, Name] = {}
    for name in entries.sizes:
        if not is_image(name):
            continue
        if name[-1] in images:
            raise DataError(
                f"MPII's photographs have a name each; {container.path} has {name[-1]} as "
                f"{'/'.join(images[name[-1]])} and as {'/'.join(name)}. Name the folder of one "
                "with --set data.root=FOLDER."
            )
        images[name[-1]] = name
    return images


def _annotations(container: Container, entries: Entries) -> dict[str, Name]:
    """The annotation files by part: JSON where there is any, else the release."""
    found: dict[str, Name] = {}
    for part, known in (*_SPLITS.items(), ("all", (_RELEASE,))):
        own = [name for name in entries.sizes if name[-1] in known]
        if len(own) > 1:
            raise DataError(
                f"{_LAYOUT}, each once; {container.path} has {'/'.join(own[0])} and "
                f"{'/'.join(own[1])}. Keep one of them."
            )
        if own and (part != "all" or not found):
            found[part] = own[0]
    if not found:
        raise DataError(
            f"{_LAYOUT}; {container.path} has no annotations. Put train.json and valid.json of the "
            "MPII annotations beside its images folder."
        )
    return found
