"""20BN-Jester as published: a folder of numbered JPEG frames for each clip, and lists of labels.

```text
20bn-jester-v1/<id>/00001.jpg ...   frames, 12 a second, 100 pixels high, of varying width
jester-v1-labels.csv                one class a line
jester-v1-train.csv                 "<id>;<class>" a line
jester-v1-validation.csv            likewise: the test split here, as in TNN section 4.4
```

The lists may lie in a folder beside the clips. `jester-v1-test.csv` has no labels and is not read.
T frames.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.decode import Sizing
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Part
from flyball.datapaths.data.random_files import FolderFiles
from flyball.datapaths.data.samples import ClipReader, name_table
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["frames_taken", "list_jester"]

CLIPS = "20bn-jester-v1"
_LABELS, _TRAIN, _VALIDATION = (
    f"jester-v1-{name}.csv" for name in ("labels", "train", "validation")
)
_LIST_FOLDERS = ("", "annotation", "annotations", "label", "labels")
_FRAME = re.compile(r"(\d{5})\.jpg")
_PATTERN = "{:05d}.jpg"
_SIZE = (100, 160)  # TNN, training details of C3D-W: height, width
_EVERY = 500  # clips between two reports


class _Clip(NamedTuple):
    folder: str
    label: int
    line: str


def list_jester(
    root: Path,
    *,
    frames: int,
    image_size: int | None,
    width: int | None,
    limit: int | None,
    report: Report,
    skip_corrupt: bool = False,
) -> Listing:
    """Looks through the lists and the folders of the clips they name; decodes nothing.

    Args:
        root: folder that holds the clips' folder.
        frames: T, taken from each clip by `frames_taken`.
        image_size, width: height and width that frames are stretched to; None: 100 x 160.
        limit: at most so many clips, the first in its list, of each class in each part.
        report: told of the stage "survey", in clips.
        skip_corrupt: a clip with missing frames is left out. It still counts to the limit.

    Returns:
        Two parts, in the lists' order within a class; the validation list is the test part.

    Raises:
        DataError: a list or a clip's folder is missing, a line is malformed or names an unknown
            class, a clip is listed twice, or a frame of it is missing.
    """
    _check_root(root)
    classes = _classes(_list_file(root, _LABELS))
    named: dict[str, str] = {}
    listed = [_clips(_list_file(root, name), classes, named) for name in (_TRAIN, _VALIDATION)]
    chosen: list[_Clip] = []
    parts: list[Part] = []
    for name, clips in zip(("train", "validation"), listed, strict=True):
        counts = []
        for label in range(len(classes)):
            own = [clip for clip in clips if clip.label == label][:limit]
            chosen += own
            counts.append(len(own))
        parts.append(Part(name, tuple(counts), name == "validation"))
    height, wide = (
        (image_size, width or image_size) if image_size else (_SIZE[0], width or _SIZE[1])
    )
    sizing = Sizing(height, wide)
    token, state = hashlib.sha256(), hashlib.sha256()
    taken = np.ones((len(chosen), frames), np.int64)
    broken: list[int] = []
    for row, clip in enumerate(chosen):
        try:
            count = _frames_of(root, clip)
        except DataError:
            if not skip_corrupt:
                raise
            broken.append(row)
            continue
        finally:
            if (row + 1) % _EVERY == 0 or row + 1 == len(chosen):
                report(Progress("survey", row + 1, len(chosen)))
        taken[row] = frames_taken(count, frames) + 1
        sizes, times = _status_of(root / CLIPS / clip.folder, taken[row])
        token.update(repr((clip.folder, clip.label, count, sizes)).encode())
        state.update(repr(times).encode())
    listing = Listing(
        classes=classes,
        parts=tuple(parts),
        shape=(3, frames, height, wide),
        reader=ClipReader(
            FolderFiles(root / CLIPS),
            name_table([clip.folder for clip in chosen]),
            taken,
            _PATTERN,
            sizing,
        ),
        token=fingerprint_of("jester", token.hexdigest(), classes, frames, sizing.token),
        state=state.hexdigest(),
        where=root,
    )
    return listing.without(broken) if broken else listing


def frames_taken(count: int, wanted: int) -> NDArray[np.int64]:
    """Which of `count` frames stand for a clip, from 0; int64 (wanted,).

    Of a longer clip the middle frame of each of `wanted` equal segments; of a shorter one all, and
    the last again and again, so that every motion keeps its speed.
    """
    place = np.arange(wanted, dtype=np.int64)
    if count < wanted:
        return np.minimum(place, count - 1)
    return (2 * place + 1) * count // (2 * wanted)


def _check_root(root: Path) -> None:
    if not (root / CLIPS).is_dir():
        raise DataError(
            f"20BN-Jester is a folder that holds {CLIPS}/ with a folder of frames for each clip, "
            f"and {_TRAIN}, {_VALIDATION}, {_LABELS}; {root} holds no {CLIPS}. Unpack the parts "
            f"there with `cat {CLIPS}-?? | tar zx`, or name the folder with "
            "--set data.root=FOLDER."
        )


def _list_file(root: Path, name: str) -> Path:
    for folder in _LIST_FOLDERS:
        if (root / folder / name).is_file():
            return root / folder / name
    raise DataError(
        f"20BN-Jester has the lists {_LABELS}, {_TRAIN} and {_VALIDATION}; there is no {name} in "
        f"{root}. Put it beside {CLIPS}."
    )


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"A list must be text; {file} is not ({error}). Fetch it again.") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in lines if line]


def _classes(file: Path) -> tuple[str, ...]:
    classes: list[str] = []
    for number, line in _lines(file):
        if line in classes:
            raise DataError(
                f"Every class is listed once; line {number} of {file} repeats {line!r}. "
                "Fetch the list again."
            )
        classes.append(line)
    if len(classes) < 2:
        raise DataError(f"There are at least two classes; {file} lists {len(classes)}.")
    return tuple(classes)


def _clips(file: Path, classes: tuple[str, ...], named: dict[str, str]) -> list[_Clip]:
    """The clips of a list; `named` tells where each was named before."""
    index = {name: label for label, name in enumerate(classes)}
    clips: list[_Clip] = []
    for number, line in _lines(file):
        here = f"line {number} of {file}"
        folder, separator, name = line.partition(";")
        if not separator or not re.fullmatch(r"\w+", folder):
            raise DataError(
                f"A line of Jester's lists is <id>;<class>; {here} is {line!r}. "
                "Fetch the list again."
            )
        if name not in index:
            raise DataError(
                f"Every class of a clip is in {_LABELS}; {here} names {name!r}, which is not one "
                f"of {len(classes)}: {', '.join(classes[:5])}... Use lists of one version."
            )
        if folder in named:
            raise DataError(
                f"Every clip is listed once; {folder} is in {named[folder]} and in {here}. "
                "Remove one of them."
            )
        named[folder] = here
        clips.append(_Clip(folder, index[name], here))
    return clips


def _frames_of(root: Path, clip: _Clip) -> int:
    """How many frames a clip has: 00001.jpg to that number, none missing between."""
    folder = root / CLIPS / clip.folder
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"Every listed clip has its folder; {clip.line} names clip {clip.folder}, and {folder} "
            f"cannot be read ({error.strerror}). Unpack all parts, or leave such clips out with "
            "--set data.skip_corrupt=true."
        ) from error
    numbers = sorted(int(match[1]) for name in names if (match := _FRAME.fullmatch(name)))
    if numbers != list(range(1, len(numbers) + 1)) or not numbers:
        there = set(numbers)
        missing = next(number for number in range(1, len(numbers) + 2) if number not in there)
        raise DataError(
            f"The frames of a clip are numbered from 00001.jpg without a gap; clip {clip.folder} "
            f"has {len(numbers)} frames and lacks {_PATTERN.format(missing)} (in {folder}). Unpack "
            "it again, or leave such clips out with --set data.skip_corrupt=true."
        )
    return len(numbers)


def _status_of(folder: Path, numbers: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Bytes and times of the frames that are taken."""
    found = [(folder / _PATTERN.format(number)).stat() for number in np.unique(numbers).tolist()]
    return [status.st_size for status in found], [status.st_mtime_ns for status in found]
