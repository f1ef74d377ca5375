"""Which folders of a source are its classes and parts, and which images they hold; names alone."""

from collections.abc import Iterable
from typing import NamedTuple

from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import SUFFIXES
from flyball.datapaths.data.plan import Part
from flyball.datapaths.errors import DataError

__all__ = ["TEST_PARTS", "TRAIN_PARTS", "VAL_PARTS", "choose", "is_image", "where"]

TRAIN_PARTS, VAL_PARTS = ("train", "training"), ("val", "valid", "validation")
TEST_PARTS = ("test", "testing")
_PART_NAMES = (*TRAIN_PARTS, *VAL_PARTS, *TEST_PARTS)

Name = tuple[str, ...]


class _Layout(NamedTuple):
    """Where the classes are: `base` is skipped, then comes a part (if there are any), then a class.

    `parts` holds the folder names of the parts; ("",) where there are none.
    """

    base: Name
    parts: tuple[str, ...]
    test_part: str | None
    classes: tuple[str, ...]


class Chosen(NamedTuple):
    """The images to read in the order of the rows, and what each part has of each class."""

    classes: tuple[str, ...]
    names: list[Name]
    parts: tuple[Part, ...]


def choose(
    container: Container, images: Iterable[Name], folders: Iterable[Name], limit: int | None
) -> Chosen:
    """Finds classes and parts by the names of images and folders.

    Args:
        container: for messages.
        images: names of all images.
        folders: names of all folders.
        limit: at most so many images, the first by name, of each class in each part.

    Raises:
        DataError: the folders are no class folders, a class has no image, or parts differ in
            their classes.
    """
    images, folders = list(images), set(folders)
    if not images:
        raise DataError(
            f"A data set holds images ({', '.join(SUFFIXES)}); {container.path} has none. "
            "Name another folder or archive with --set data.root=FILE."
        )
    layout = _layout_of(container, images, folders)
    if len(layout.classes) < 2:
        raise DataError(
            f"A data set has at least two class folders; {container.path} has "
            f"{len(layout.classes)}: {', '.join(layout.classes)}. Add another class."
        )
    depth = len(layout.base) + (layout.parts != ("",))
    by_folder: dict[Name, list[Name]] = {}
    for name in sorted(images):
        by_folder.setdefault(name[: depth + 1], []).append(name)
    chosen: list[Name] = []
    parts: list[Part] = []
    for part in layout.parts:
        above = (*layout.base, part) if part else layout.base
        counts: list[int] = []
        for label in layout.classes:
            folder = (*above, label)
            if folder not in by_folder:
                raise _missing_class(container, layout, folder, is_there=folder in folders)
            chosen += by_folder[folder][:limit]
            counts.append(len(by_folder[folder][:limit]))
        parts.append(Part(part or "all", tuple(counts), part == layout.test_part and part != ""))
    return Chosen(layout.classes, chosen, tuple(parts))


def is_image(name: Name) -> bool:
    """Whether a file has the ending of an image."""
    return name[-1].lower().endswith(SUFFIXES)


def where(container: Container, name: Name) -> str:
    """What a message calls a member."""
    return f"{'/'.join(name)} in {container.path}"


def _layout_of(container: Container, images: list[Name], folders: set[Name]) -> _Layout:
    base: Name = ()
    while min(len(name) for name in images) > len(base) + 2:
        below = {name[len(base)] for name in (*images, *folders) if len(name) > len(base)}
        if len(below) > 1:
            break
        base = (*base, *below)
    tops = {folder[len(base)] for folder in folders if len(folder) > len(base)}
    parts: tuple[str, ...] = ("",)
    if tops & set(TRAIN_PARTS) and tops & {*VAL_PARTS, *TEST_PARTS}:
        order = {name: place for place, name in enumerate(_PART_NAMES)}
        parts = tuple(sorted(tops & set(_PART_NAMES), key=order.__getitem__))
    depth = len(base) + (parts != ("",))
    for name in images:
        if len(name) <= depth + 1:
            raise DataError(
                "Every image lies in the folder of its class, as in <class>/1.png or "
                f"train/<class>/1.png; {where(container, name)} lies in none. Move or remove it."
            )
        if parts != ("",) and name[len(base)] not in parts:
            raise DataError(
                f"Beside {' and '.join(parts)} no other folder may hold images; "
                f"{where(container, name)} is in one. Move it into a part, or remove it."
            )
    held_out = [part for part in parts if part in TEST_PARTS] or [
        p for p in parts if p in VAL_PARTS
    ]
    if len(held_out) > 1:
        raise DataError(
            f"A data set has one test part; {container.path} has {' and '.join(held_out)}. "
            "Keep one of them."
        )
    in_parts = [f for f in folders if len(f) == depth + 1 and (parts == ("",) or f[-2] in parts)]
    return _Layout(
        base, parts, held_out[0] if held_out else None, tuple(sorted({f[depth] for f in in_parts}))
    )


def _missing_class(
    container: Container, layout: _Layout, folder: Name, *, is_there: bool
) -> DataError:
    here = where(container, folder)
    if is_there:
        return DataError(
            f"Every class folder holds images ({', '.join(SUFFIXES)}); {here} has none. "
            "Fill or remove it."
        )
    return DataError(
        f"{' and '.join(layout.parts)} must have the same class folders; there is no {here}. "
        "Add it, or remove that class from the other parts."
    )
