"""What to load and how to deal it into splits; `load` does it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.splits import SPLITS

__all__ = ["DATA_SETS", "DEFAULT_FRACTIONS", "DataConfig", "Fractions"]

Fractions = tuple[float, float, float, float]

DATA_SETS: tuple[str, ...] = ("digits", "cifar10", "folder")

# CIFAR-10 brings its own 10,000 test images; .56/.16/.08 deals the others as 35/10/5 thousand.
DEFAULT_FRACTIONS: Mapping[str, Fractions] = {
    "digits": (0.5, 0.25, 0.1, 0.15),
    "cifar10": (0.56, 0.16, 0.08, 0.2),
    "folder": (0.56, 0.16, 0.08, 0.2),
}


@dataclass(frozen=True)
class DataConfig:
    """One data set, its image size and its splits.

    Attributes:
        name: "digits" (scikit-learn's, needs nothing), "cifar10", or "folder" (the user's own).
        root: folder or archive of "cifar10" and "folder"; None for "digits".
        image_size: side in pixels; the short side is resized to it, then the centre is cut out.
            None keeps the images as they are: all of one size.
        seed: of the deal into splits, >= 0.
        fractions: shares of (path_train, controller_train, controller_val, test), summing to 1;
            None takes `DEFAULT_FRACTIONS` of the data set. Where the source has its own test part
            that part is `test`, its share is unused and the other three are scaled to sum to 1.
        limit: at most so many images of each class from each part of the source; None takes all.
        cache: folder of decoded arrays; None takes $FLYBALL_CACHE, else the user's cache folder.

    Raises:
        UnknownName: there is no such data set.
        InvalidSetting: another field breaks its rule.
    """

    name: Literal["digits", "cifar10", "folder"] = "digits"
    root: str | None = None
    image_size: int | None = None
    seed: int = 0
    fractions: Fractions | None = None
    limit: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.name not in DATA_SETS:
            raise unknown_name("data set", self.name, DATA_SETS)
        for field, value in (("image_size", self.image_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise InvalidSetting(
                    f"data.{field} is at least 1, or unset; got {value}. "
                    f"Give e.g. --set data.{field}=32, or leave it out."
                )
        if self.seed < 0:
            raise InvalidSetting(
                f"data.seed is an integer of at least 0; got {self.seed}. Give --set data.seed=0."
            )
        if self.fractions is not None:
            _check_fractions(self.fractions)

    @property
    def shares(self) -> Fractions:
        """The fractions in force: those given, or the data set's defaults."""
        return DEFAULT_FRACTIONS[self.name] if self.fractions is None else self.fractions


def _check_fractions(fractions: Fractions) -> None:
    if (
        len(fractions) != len(SPLITS)
        or not all(0.0 < share < 1.0 for share in fractions[:3])
        or not 0.0 <= fractions[3] < 1.0
        or not math.isclose(math.fsum(fractions), 1.0, abs_tol=1e-6)
    ):
        raise InvalidSetting(
            f"data.fractions are the shares of {', '.join(SPLITS)}: four numbers above 0 "
            "(test may be 0 where the source has its own test part) that sum to 1; got "
            f"{', '.join(str(share) for share in fractions)}, which sum to "
            f"{math.fsum(fractions):g}. Give e.g. --set data.fractions=0.5,0.25,0.1,0.15."
        )
