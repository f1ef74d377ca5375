"""What detection data to load, which boxes to keep of it and how to deal it; `load` does it."""

from dataclasses import dataclass
from typing import Literal, get_args

from flyball.datapaths.data.config import DataConfig, Fractions
from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = ["BoxFormat", "DetectionDataConfig"]

BoxFormat = Literal["voc", "yolo", "drawn"]


@dataclass(frozen=True)
class DetectionDataConfig:
    """One set of images with boxes, its size and its splits.

    Attributes:
        format: "voc" (VOCdevkit/VOC2007: JPEGImages, Annotations, ImageSets/Main) or "yolo"
            (images/ beside labels/, one text file an image, names in a .yaml or classes.txt), or
            "drawn" (shapes drawn from the seed, `limit` images or 1,000; needs nothing).
        root: folder or archive; needed to load anything.
        image_size: side of the square that every image is fitted into, >= 16 pixels.
        classes: the source's class names, in the order of its indices; None reads them from the
            source, or takes VOC's twenty.
        keep: only boxes of these classes count, the others are as if not drawn; None: all.
        merged: one name for all classes that are kept, such as "object"; None keeps them apart.
        difficult_below: boxes with a side shorter than so many pixels, once resized, count as
            difficult: not to be found, and no mistake if they are. >= 0.
        clip_boxes: cut boxes at the image's edge, and count them, instead of refusing them.
        skip_corrupt: leave out samples with a fault, and count and name them, instead of stopping.
        require_labels: a "yolo" image without a label file is an error, not one without objects.
        use_test_part: the source's own test part (else its val part) is `test`; False deals all
            of its images to the four splits.
        seed: of the deal, >= 0.
        fractions: shares of (path_train, controller_train, controller_val, test), summing to 1;
            as in `DataConfig`.
        limit: at most so many images, the first by name, of each part; None takes all.
        cache: folder of decoded images; as in `DataConfig`.

    Raises:
        UnknownName: there is no such format.
        InvalidSetting: another field breaks its rule.
    """

    format: BoxFormat = "yolo"
    root: str | None = None
    image_size: int = 224
    classes: tuple[str, ...] | None = None
    keep: tuple[str, ...] | None = None
    merged: str | None = None
    difficult_below: float = 0.0
    clip_boxes: bool = False
    skip_corrupt: bool = False
    require_labels: bool = False
    use_test_part: bool = True
    seed: int = 0
    fractions: Fractions = (0.5, 0.25, 0.1, 0.15)
    limit: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(BoxFormat):
            raise unknown_name("box format", str(self.format), get_args(BoxFormat))
        if self.image_size < 16:
            raise InvalidSetting(
                f"A detector's images have at least 16 pixels a side, one cell of its feature "
                f"map; data.image_size is {self.image_size}. Give --set data.image_size=224."
            )
        if not 0.0 <= self.difficult_below < self.image_size:
            raise InvalidSetting(
                "data.difficult_below is a side in pixels, at least 0 and below the image's "
                f"{self.image_size}; got {self.difficult_below}. Give --set data.difficult_below=8."
            )
        if self.format == "drawn" and (self.root or self.classes or self.keep or self.merged):
            raise InvalidSetting(
                "Drawn shapes come from the seed alone: data.root, data.classes, data.keep and "
                "data.merged are for voc and yolo. Leave them out, or give --set data.format=yolo."
            )
        for field, names in (("classes", self.classes), ("keep", self.keep)):
            if names is not None and (not names or len(set(names)) != len(names)):
                raise InvalidSetting(
                    f"data.{field} are one or more different class names; got {names}. "
                    f"Give e.g. --set data.{field}=person,car."
                )
        _ = self.shared

    @property
    def shared(self) -> DataConfig:
        """The settings that every data set has, checked as there."""
        return DataConfig(
            name="folder",
            root=self.root,
            image_size=self.image_size,
            seed=self.seed,
            fractions=self.fractions,
            limit=self.limit,
            cache=self.cache,
        )
