"""ImageNet (ILSVRC2012) as published: folders of wnids, or a flat validation part and its key.

```text
train/<wnid>/<wnid>_<n>.JPEG
val/<wnid>/ILSVRC2012_val_<n>.JPEG         or val/ILSVRC2012_val_<n>.JPEG and
ILSVRC2012_devkit_t12/data/                    meta.mat, ILSVRC2012_validation_ground_truth.txt
```

Classes are the sorted wnids, the order of torchvision's weights. `val` is the test part where there
is a `train`. Folders above these are skipped.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flyball.datapaths.data.class_layout import is_image
from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import Sizing
from flyball.datapaths.data.devkit import GROUND_TRUTH, META, Devkit, read_devkit, read_names
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Part
from flyball.datapaths.data.random_files import Entries, Files, open_files
from flyball.datapaths.data.samples import ImageReader, name_table
from flyball.datapaths.errors import DataError, PickleRefused
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["is_imagenet_file", "list_imagenet"]

Name = tuple[str, ...]

_WNID = re.compile(r"n\d{8}")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.[A-Za-z]+")
_LAYOUT = (
    "ImageNet is train/<wnid>/*.JPEG beside val/<wnid>/*.JPEG or val/ILSVRC2012_val_*.JPEG with "
    f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH} and {META}"
)


def is_imagenet_file(name: Name) -> bool:
    """Whether a file of the source says anything here."""
    return is_image(name) or name[-1] in (GROUND_TRUTH, META, "meta.bin") or _is_class_tar(name)


def list_imagenet(
    container: Container,
    entries: Entries,
    *,
    sizing: Sizing,
    limit: int | None,
    names: Path | None,
    report: Report,
) -> Listing:
    """Looks through names and sizes; opens no image.

    Args:
        container: folder, zip, or tar that is not compressed.
        entries: its files that `is_imagenet_file` admits.
        sizing: how an image comes to its size.
        limit: at most so many images, the first by name, of each class in each part.
        names: file of the classes' names.
        report: told of the stage "survey", once.

    Raises:
        DataError: the layout is another, parts differ in their classes, an image lies in the
            folder of another class, or the key does not fit the images.
        PickleRefused: the only key is torchvision's meta.bin, a pickle.
    """
    files = open_files(container, entries)
    base = _base(container, entries.sizes)
    below: dict[Name, Name] = {
        name[len(base) :]: name
        for name in entries.sizes
        if name[: len(base)] == base and is_image(name) and len(name) > len(base)
    }
    devkit = _devkit(entries, files)
    found = {part: _by_class(container, part, below) for part in ("train", "val")}
    flat: dict[Name, Name] = {
        name: whole for name, whole in below.items() if len(name) == 2 and name[0] == "val"
    }
    if flat and found["val"]:
        raise DataError(
            f"{_LAYOUT}; {container.path} has images in val and in folders below it. "
            "Keep one of the two."
        )
    if flat:
        found["val"] = _by_key(container, entries, flat, devkit)
    present = [part for part in ("train", "val") if found[part]]
    if not present:
        raise _no_images(container, entries)
    wnids = _wnids(container, found, present)
    chosen: list[Name] = []
    parts: list[Part] = []
    for part in present:
        own = [sorted(found[part].get(wnid, ()))[:limit] for wnid in wnids]
        chosen += [name for images in own for name in images]
        parts.append(Part(part, tuple(map(len, own)), part == "val" and len(present) == 2))
    content = hashlib.sha256()
    for name in chosen:
        content.update(repr(("/".join(name[len(base) :]), entries.sizes[name])).encode())
    report(Progress("survey", len(chosen), len(chosen), f"{len(wnids)} classes"))
    classes = _class_names(wnids, names, devkit)
    return Listing(
        classes=classes,
        parts=tuple(parts),
        shape=sizing.shape(3, 0, 0),
        reader=ImageReader(files, name_table(["/".join(name) for name in chosen]), 3, sizing),
        token=fingerprint_of("imagenet", content.hexdigest(), classes, sizing.token),
        state=fingerprint_of(container.state),
        where=container.path,
    )


def _base(container: Container, names: Iterable[Name]) -> Name:
    """The folders above `train` and `val`."""
    found = {
        name[:depth]
        for name in names
        if is_image(name)
        for depth, part in enumerate(name[:-1])
        if part in ("train", "val")
    }
    shallow = sorted(found, key=lambda base: (len(base), base))
    if len(shallow) > 1 and len(shallow[0]) == len(shallow[1]):
        raise DataError(
            f"{_LAYOUT}; {container.path} has train or val in {'/'.join(shallow[0])} and in "
            f"{'/'.join(shallow[1])}. Name one of them with --set data.root=FOLDER."
        )
    return shallow[0] if shallow else ()


def _by_class(container: Container, part: str, below: dict[Name, Name]) -> dict[str, list[Name]]:
    """A part's images by the wnid of their folder."""
    found: dict[str, list[Name]] = {}
    for name, whole in below.items():
        if name[0] != part or len(name) < 3:
            continue
        wnid, file = name[1], name[-1]
        if not _WNID.fullmatch(wnid):
            raise DataError(
                f"ImageNet's class folders are wnids, n and eight digits; {'/'.join(whole)} in "
                f"{container.path} lies in {wnid!r}. Remove it, or give --set data.name=folder."
            )
        own = file.partition("_")[0]
        if _WNID.fullmatch(own) and own != wnid:
            raise DataError(
                f"An image is named after its class; {'/'.join(whole)} in {container.path} lies "
                f"in the folder of {wnid}. Move it."
            )
        found.setdefault(wnid, []).append(whole)
    return found


def _by_key(
    container: Container, entries: Entries, flat: dict[Name, Name], devkit: Devkit | None
) -> dict[str, list[Name]]:
    """The images of a flat validation part by the wnid that the development kit gives each."""
    if devkit is None or devkit.truth is None:
        pickled = next((name for name in entries.sizes if name[-1] == "meta.bin"), None)
        if pickled is not None:
            raise PickleRefused(
                f"{'/'.join(pickled)} in {container.path} is a pickle, and Flyball loads none: a "
                "pickle can run any code. Unpack ILSVRC2012_devkit_t12.tar.gz beside val, whose "
                f"{META} and {GROUND_TRUTH} say the same."
            )
        raise DataError(
            f"{_LAYOUT}; {container.path} has a flat val and lacks the key. Unpack "
            "ILSVRC2012_devkit_t12.tar.gz beside it."
        )
    found: dict[str, list[Name]] = {}
    for name, whole in flat.items():
        match = _FLAT.fullmatch(name[-1])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(devkit.truth):
            raise DataError(
                "Images of a flat val are named ILSVRC2012_val_00000001.JPEG to the number of "
                f"lines of {GROUND_TRUTH}, {len(devkit.truth)}; {'/'.join(whole)} in "
                f"{container.path} is not. Remove it."
            )
        found.setdefault(devkit.truth[number - 1], []).append(whole)
    return found


def _wnids(
    container: Container, found: dict[str, dict[str, list[Name]]], present: list[str]
) -> list[str]:
    wnids = sorted(found[present[0]])
    if len(present) == 2 and wnids != sorted(found["val"]):
        odd = sorted(set(wnids) ^ set(found["val"]))
        raise DataError(
            f"train and val must have the same classes; of {container.path} only "
            f"{'train' if odd[0] in found['train'] else 'val'} has {odd[0]}, and {len(odd)} "
            "classes differ in all. Add or remove their images."
        )
    if len(wnids) < 2:
        raise DataError(
            f"A data set has at least two classes; {container.path} has {', '.join(wnids)} alone. "
            "Add another."
        )
    return wnids


def _devkit(entries: Entries, files: Files) -> Devkit | None:
    there = {name[-1]: "/".join(name) for name in entries.sizes if name[-1] in (META, GROUND_TRUTH)}
    if META not in there:
        return None
    truth = there.get(GROUND_TRUTH)
    return read_devkit(files, there[META], truth)


def _class_names(wnids: list[str], names: Path | None, devkit: Devkit | None) -> tuple[str, ...]:
    """A name for each wnid, its first synonym; with the wnid where two share one."""
    if names is not None:
        named = read_names(names, wnids)
    elif devkit is not None:
        named = devkit.names
    else:
        return tuple(wnids)
    first = [named[wnid].partition(",")[0].strip() if wnid in named else wnid for wnid in wnids]
    often = Counter(first)
    return tuple(
        name if often[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(first, wnids, strict=True)
    )


def _is_class_tar(name: Name) -> bool:
    return bool(re.fullmatch(r"n\d{8}\.tar", name[-1]))


def _no_images(container: Container, entries: Entries) -> DataError:
    packed = next((name for name in entries.sizes if _is_class_tar(name)), None)
    if packed is not None:
        return DataError(
            f"{_LAYOUT}; {container.path} holds {'/'.join(packed)}, a class that is still packed. "
            "Unpack every class's tar into train/<wnid>."
        )
    return DataError(
        f"{_LAYOUT}; {container.path} has neither. Name the folder above train and val with "
        "--set data.root=FOLDER, or give --set data.name=folder for a data set of your own."
    )
