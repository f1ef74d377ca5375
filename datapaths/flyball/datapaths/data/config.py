"""What to load, how to hold it and how to deal it into splits; `load` does it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.splits import SPLITS

__all__ = [
    "CLIP_SETS",
    "DATA_SETS",
    "DEFAULT_FRACTIONS",
    "STREAMED_SETS",
    "DataConfig",
    "Fractions",
]

Fractions = tuple[float, float, float, float]

DATA_SETS: tuple[str, ...] = (
    *("digits", "digit_clips", "cifar10", "folder", "imagenet", "jester"),
    *("figures", "mpii"),
)
CLIP_SETS: tuple[str, ...] = ("digit_clips", "jester")
STREAMED_SETS: tuple[str, ...] = ("mpii", "folder", "imagenet", "jester")

# CIFAR-10 brings its own 10,000 test images; .56/.16/.08 deals the others as 35/10/5 thousand.
DEFAULT_FRACTIONS: Mapping[str, Fractions] = {
    "digits": (0.5, 0.25, 0.1, 0.15),
    "digit_clips": (0.5, 0.25, 0.1, 0.15),
    "cifar10": (0.56, 0.16, 0.08, 0.2),
    "folder": (0.56, 0.16, 0.08, 0.2),
    "imagenet": (0.56, 0.16, 0.08, 0.2),
    "jester": (0.56, 0.16, 0.08, 0.2),
    "figures": (0.5, 0.25, 0.1, 0.15),
    "mpii": (0.56, 0.16, 0.08, 0.2),
}

# Which data sets know a field that not all know.
_ONLY: Mapping[str, tuple[str, ...]] = {
    "frames": CLIP_SETS,
    "width": ("jester",),
    "short_side": ("folder", "imagenet"),
    "names": ("imagenet",),
}
_LEAST = {
    "image_size": 1,
    "limit": 1,
    "frames": 1,
    "width": 1,
    "short_side": 1,
    "cache_limit_mb": 0,
    "workers": 0,
}
_EXAMPLES = {"frames": 16, "width": 160, "short_side": 256, "cache_limit_mb": 20_000, "workers": 2}


@dataclass(frozen=True)
class DataConfig:
    """One data set, its image size, its splits and how it is held.

    Attributes:
        name: "digits" (scikit-learn's), "digit_clips" (those digits in motion) or "figures"
            (rendered people with known joints), which need nothing; "cifar10", "imagenet"
            (ILSVRC2012), "jester" (20BN-Jester clips) or "mpii" (human pose) in their published
            forms; or "folder" (the user's own class folders).
        root: folder or archive the data set is read from; None for what needs nothing.
        image_size: side in pixels; the short side is resized to it, then the centre is cut out; of
            "mpii" the square around a person is. None keeps the images as they are, all of one
            size; for "digit_clips" it means 32, for "imagenet" 224, for "jester" 100 (its frames'
            height), for "figures" 128, for "mpii" 256.
        seed: of the deal into splits, and of what "digit_clips" and "figures" show; >= 0.
        fractions: shares of (path_train, controller_train, controller_val, test), summing to 1;
            None takes `DEFAULT_FRACTIONS` of the data set. Where the source has its own test part
            that part is `test`, its share is unused and the other three are scaled to sum to 1.
        limit: at most so many samples of each class from each part of the source; None takes all.
            Of "digit_clips" and "figures" exactly so many are made; None: 600 and 1500.
        cache: folder of decoded arrays; None takes $FLYBALL_CACHE, else the user's cache folder.
        frames: T of a clip; None: 16. Clips alone have it.
        width: of a "jester" frame, which is stretched to image_size x width; None: 160 without an
            image_size, else as wide as high.
        short_side: of "imagenet" and "folder": the short side before the centre of `image_size` is
            cut out; None: 8/7 of image_size for "imagenet" (256 for 224), image_size for "folder".
        names: of "imagenet": a file that gives each wnid its name, one a line ("n01440764 tench");
            None takes the development kit's names where it lies beside the images, else wnids.
        skip_corrupt: samples that cannot be decoded are left out, counted and reported; without it
            the first one is an error. Every sample is then decoded once more, to look.
        access: "cache" decodes once to a memory-mapped file; "stream" decodes what is asked for,
            each time; "auto" caches what decodes to at most `cache_limit_mb` and streams the rest.
        cache_limit_mb: of "auto", in 10^6 bytes.
        workers: threads that decode single samples (streaming, "imagenet", "jester", "mpii"); 0
            decodes in the caller's.

    Raises:
        UnknownName: there is no such data set or access.
        InvalidSetting: another field breaks its rule.
    """

    name: Literal[
        "digits", "digit_clips", "cifar10", "folder", "imagenet", "jester", "figures", "mpii"
    ] = "digits"
    root: str | None = None
    image_size: int | None = None
    seed: int = 0
    fractions: Fractions | None = None
    limit: int | None = None
    cache: str | None = None
    frames: int | None = None
    width: int | None = None
    short_side: int | None = None
    names: str | None = None
    skip_corrupt: bool = False
    access: Literal["auto", "cache", "stream"] = "auto"
    cache_limit_mb: int = 20_000
    workers: int = 2

    def __post_init__(self) -> None:
        if self.name not in DATA_SETS:
            raise unknown_name("data set", self.name, DATA_SETS)
        if self.access not in ("auto", "cache", "stream"):
            raise unknown_name("data.access", self.access, ("auto", "cache", "stream"))
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if value is not None and value < least:
                raise InvalidSetting(
                    f"data.{field} is at least {least}, or unset; got {value}. Give e.g. "
                    f"--set data.{field}={_EXAMPLES.get(field, 32)}, or leave it out."
                )
        for field, names in _ONLY.items():
            if getattr(self, field) is not None and self.name not in names:
                raise InvalidSetting(
                    f"data.{field} is of {' and '.join(names)} alone; data.name is {self.name}. "
                    f"Leave --set data.{field} out."
                )
        if self.access == "stream" and self.name not in STREAMED_SETS:
            raise InvalidSetting(
                f"{', '.join(STREAMED_SETS)} can be streamed, {self.name} cannot. "
                "Give --set data.access=auto."
            )
        if self.seed < 0:
            raise InvalidSetting(
                f"data.seed is an integer of at least 0; got {self.seed}. Give --set data.seed=0."
            )
        if self.fractions is not None:
            _check_fractions(self.fractions)
        if self.short_side is not None:
            self._check_short_side(self.short_side)

    @property
    def shares(self) -> Fractions:
        """The fractions in force: those given, or the data set's defaults."""
        return DEFAULT_FRACTIONS[self.name] if self.fractions is None else self.fractions

    def _check_short_side(self, short_side: int) -> None:
        side = 224 if self.name == "imagenet" and self.image_size is None else self.image_size
        if side is None or short_side < side:
            raise InvalidSetting(
                "data.short_side is at least data.image_size, whose square is cut out of it; got "
                f"{short_side} and {side}. Give e.g. --set data.image_size=224 "
                "--set data.short_side=256."
            )


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
