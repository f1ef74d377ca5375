"""What a family is made of, as one typed value; `family_models` makes the models it names."""

from dataclasses import dataclass
from typing import Literal, get_args

from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = ["FamilyConfig", "Train"]

Train = Literal["head", "all", "none"]


@dataclass(frozen=True)
class FamilyConfig:
    """A data path whose arms are whole models, from the cheapest to the dearest.

    Attributes:
        models: names, in order of cost: torchvision's classifiers ("resnet18", also those added
            with `torchvision.models.register_model`), or a class of your own,
            "package.module:Class", made as Class(num_classes=...) and, if it takes that,
            in_channels=... too.
        image_size: H and W.
        in_channels: C.
        classes: how many the images have.
        frames: T of clips; None: images.
        weights: "none": drawn from the seed; "imagenet": torchvision's best pretrained ones; else
            a folder that holds NAME.safetensors or NAME.pth (a state dict) for every model.
        train: what Phase 1 trains. "head": the last layer of each model, on features of the
            frozen rest, computed once; "all": every weight of each model; "none": nothing, for
            weights that tell these very classes apart.
        mean, std: of the channels on the [0, 1] scale, as the weights were trained; None:
            ImageNet's for given weights of three channels, else those of the training images.

    Raises:
        InvalidSetting: a field breaks its rule.
        UnknownName: there is no such way to train.
    """

    models: tuple[str, ...] = ("resnet18", "resnet34", "resnet50")
    image_size: int = 224
    in_channels: int = 3
    classes: int = 10
    frames: int | None = None
    weights: str = "none"
    train: Train = "head"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.models, str) or not self.models:
            raise InvalidSetting(
                f"A family has at least one model; path.models is {self.models!r}. "
                "Give names in order of cost: --set path.models=resnet18,resnet50."
            )
        if len(set(self.models)) < len(self.models):
            raise InvalidSetting(
                f"Every model of a family is an arm of its own; {', '.join(self.models)} names "
                "one twice. Name each once with --set path.models=resnet18,resnet50."
            )
        for field in ("image_size", "in_channels", "classes", "frames"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidSetting(
                    f"path.{field} is 1 or more, not {value}. Set it with --set path.{field}=3."
                )
        if self.train not in get_args(Train):
            raise unknown_name("value of path.train", str(self.train), get_args(Train))
        for field in ("mean", "std"):
            values = getattr(self, field)
            if values is not None and len(values) != self.in_channels:
                raise InvalidSetting(
                    f"path.{field} has a number for each of {self.in_channels} channels; "
                    f"{len(values)} came. Give them all, or leave it out."
                )
        if self.std is not None and min(self.std) <= 0:
            raise InvalidSetting(
                f"path.std divides the pixels, so it is above 0; it is {self.std}. "
                "Leave it out to take it from the training images."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, or (C, T, H, W) of a clip."""
        time = () if self.frames is None else (self.frames,)
        return (self.in_channels, *time, self.image_size, self.image_size)
