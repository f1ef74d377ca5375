"""ImageNet's development kit: the class of each validation image, and what classes are called."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyball.datapaths.data.random_files import Files
from flyball.datapaths.errors import DataError

__all__ = ["GROUND_TRUTH", "META", "Devkit", "read_devkit", "read_names"]

META = "meta.mat"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """What the kit says.

    Attributes:
        names: synonyms of each wnid, such as "tench, Tinca tinca".
        truth: wnid of each validation image, in the order of their numbers; None without the key.
    """

    names: dict[str, str]
    truth: tuple[str, ...] | None


def read_devkit(files: Files, meta: str, truth: str | None) -> Devkit:
    """Reads meta.mat (MATLAB 5, which holds data alone) and the key of the validation part.

    Args:
        files: where they are.
        meta, truth: names of the two files.

    Raises:
        DataError: one of them is not what the kit has, or they do not fit each other.
    """
    wnids: dict[int, str] = {}
    names: dict[str, str] = {}
    for number, wnid, words, children in _synsets(files.read(meta), files.where(meta)):
        if children == 0:  # the others are groups of classes
            wnids[number], names[wnid] = wnid, words
    if truth is None:
        return Devkit(names, None)
    key: list[str] = []
    lines = files.read(truth).decode("ascii", "replace").split()
    for number, line in enumerate(lines, start=1):
        named = wnids.get(int(line)) if line.isdigit() else None
        if named is None:
            raise DataError(
                f"The key has the ILSVRC2012_ID of a class on each line; line {number} of "
                f"{files.where(truth)} is {line!r}, and {META} has {len(wnids)} classes. "
                "Unpack ILSVRC2012_devkit_t12.tar.gz again."
            )
        key.append(named)
    return Devkit(names, tuple(key))


def read_names(file: Path, wnids: Iterable[str]) -> dict[str, str]:
    """Names of classes from lines such as "n01440764 tench, Tinca tinca".

    Raises:
        DataError: the file cannot be read, a line is another, or a wnid has none.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Names of classes are a text file; {file} cannot be read ({error}). "
            "Give another with --set data.names=FILE."
        ) from error
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"(n\d{8})[\s,]+(\S.*)", line.strip())
        if line.strip() and not match:
            raise DataError(
                f"A line of names is a wnid and its name, as in n01440764 tench; line {number} of "
                f"{file} is {line.strip()!r}. Correct it."
            )
        if match:
            names[match[1]] = match[2].strip()
    missing = [wnid for wnid in wnids if wnid not in names]
    if missing:
        raise DataError(
            f"Every class needs its name; {file} has none for {missing[0]} and {len(missing)} "
            "wnids in all. Add them, or leave --set data.names out."
        )
    return names


def _synsets(data: bytes, where: str) -> list[tuple[int, str, str, int]]:
    """ILSVRC2012_ID, WNID, words and number of children of every synset."""
    from scipy.io import loadmat  # type: ignore[import-untyped,unused-ignore]

    try:
        rows: Any = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"].reshape(-1)
        return [
            (
                int(row["ILSVRC2012_ID"]),
                str(row["WNID"]),
                str(row["words"]),
                int(row["num_children"]),
            )
            for row in rows
        ]
    except Exception as error:  # scipy raises whatever a broken file makes it raise
        raise DataError(
            f"{META} is the development kit's MATLAB file with its `synsets`; {where} "
            f"({len(data)} bytes) is not ({error or type(error).__name__}). "
            "Unpack ILSVRC2012_devkit_t12.tar.gz again."
        ) from error
