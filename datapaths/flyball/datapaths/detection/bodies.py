"""torchvision's networks as detector bodies: cut in two at stride 16 and made throttleable.

The first half ends in a feature map with a sixteenth of the image's side; the second half turns
the features of one proposal into a vector.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchvision.models import densenet169, resnet50, resnext50_32x4d
from torchvision.models.resnet import BasicBlock, ResNet

from flyball.datapaths.errors import InvalidSetting, ShapeMismatch, unknown_name
from flyball.datapaths.graph import ThrottledNetwork, throttle

__all__ = ["BodyConfig", "BodyName", "Halves", "make_halves"]

BodyName = Literal["resnet18", "resnet50", "resnext50", "densenet169"]

_WIDTH = 64


@dataclass(frozen=True)
class BodyConfig:
    """Which network a detector stands on.

    Attributes:
        name: of torchvision's network.
        width: channels of the first stage of "resnet18"; the others have 64.
        components: n of every T-module, where its channels can be shared so; else the largest
            number below.
        norm: "group": GroupNorm of one group a component, for training from drawn weights;
            "batch": BatchNorm as in torchvision, whose statistics are calibrated for every arm.

    Raises:
        UnknownName: there is no such network or norm.
        InvalidSetting: the width or the norm is not the network's, or too narrow to share.
    """

    name: BodyName = "resnet18"
    width: int = _WIDTH
    components: int = 8
    norm: Literal["group", "batch"] = "group"

    def __post_init__(self) -> None:
        if self.name not in get_args(BodyName):
            raise unknown_name("body", str(self.name), get_args(BodyName))
        if self.norm not in ("group", "batch"):
            raise unknown_name("norm of a body", str(self.norm), ("group", "batch"))
        if self.components < 2 or self.width < 1 or self.width % self.components:
            raise InvalidSetting(
                f"The components of a body share its channels equally, two or more of them: "
                f"{self.components} components, {self.width} channels in the first stage. "
                "Set --set detector.body.components=8."
            )
        if self.width != _WIDTH and self.name != "resnet18":
            raise InvalidSetting(
                f"Only resnet18 comes in other widths than {_WIDTH}; {self.name} of width "
                f"{self.width} was asked for. Set --set detector.body.width={_WIDTH}."
            )
        if self.norm == "group" and self.name == "densenet169":
            raise InvalidSetting(
                "A densenet169 normalises concatenated channels by BatchNorm. "
                "Set --set detector.body.norm=batch."
            )


class Halves(NamedTuple):
    """A body cut in two.

    Attributes:
        features: images to a feature map of all channels, zeros where they are off.
        classifier: features of proposals, (P, channels, r, r), to vectors (P, width).
        channels: of the feature map.
        width: of the vectors.
    """

    features: ThrottledNetwork
    classifier: ThrottledNetwork
    channels: int
    width: int


def make_halves(
    config: BodyConfig,
    image_size: int,
    roi_size: int,
    weights: Mapping[str, Tensor] | None = None,
) -> Halves:
    """Builds a body and converts both halves.

    The map between them is gated too, and handed on with zeros in the channels that are off, so
    that the RPN and the second half read it as they are; the vectors stay dense.

    Args:
        config: which network.
        image_size: side of the images.
        roi_size: side of the feature map of one proposal.
        weights: of torchvision's network, such as its own state dict; those of its last linear
            layer are not used. None draws them from torch's global generator.

    Raises:
        ShapeMismatch: the weights are those of another network.
    """
    model = _model(config)
    if weights is not None:
        _load(model, weights, config)
    first, second, channels, width = _cut(model)
    share = partial(throttle, components=config.components, divisor="largest")
    features, _ = share(first, (3, image_size, image_size), gate_maps=True)
    classifier, _ = share(second, (channels, roi_size, roi_size))
    return Halves(features, classifier, channels, width)


def _model(config: BodyConfig) -> Any:
    norm: Callable[[int], nn.Module] | None = None
    if config.norm == "group":

        def norm(channels: int) -> nn.Module:
            return nn.GroupNorm(config.components, channels)

    if config.name == "densenet169":
        return densenet169(weights=None)
    if config.name == "resnet50":
        return resnet50(weights=None, norm_layer=norm)
    if config.name == "resnext50":
        return resnext50_32x4d(weights=None, norm_layer=norm)
    return _resnet18(config.width, norm)


def _resnet18(width: int, norm: Callable[[int], nn.Module] | None) -> ResNet:
    """torchvision's ResNet-18 of another width, its weights drawn as there."""
    model = ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=norm)
    if width == _WIDTH:
        return model
    model.inplanes = width
    model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    model.bn1 = model._norm_layer(width)
    for stage in range(4):
        stride = 1 if stage == 0 else 2
        made = model._make_layer(BasicBlock, width * 2**stage, 2, stride=stride)
        setattr(model, f"layer{stage + 1}", made)
    model.fc = nn.Linear(8 * width, model.fc.out_features)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _cut(model: Any) -> tuple[nn.Module, nn.Module, int, int]:
    """Both halves, the channels between them and the width of the last vector."""
    ends = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten(1))]
    if isinstance(model, ResNet):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        first = [(name, getattr(model, name)) for name in names]
        second = [("layer4", model.layer4), *ends]
        width = model.fc.in_features
        return _chain(first), _chain(second), width // 2, width
    layers = list(model.features.named_children())
    cut = [name for name, _ in layers].index("transition3")
    ends = [("relu", nn.ReLU(inplace=True)), *ends]
    channels = model.features.transition3.norm.num_features
    width = model.classifier.in_features
    return _chain(layers[:cut]), _chain([*layers[cut:], *ends]), channels, width


def _chain(layers: list[tuple[str, nn.Module]]) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def _load(model: nn.Module, weights: Mapping[str, Tensor], config: BodyConfig) -> None:
    wanted = model.state_dict()
    head = ("fc.", "classifier.")
    needed = {name for name in wanted if not name.startswith(head)}
    missing, extra = sorted(needed - weights.keys()), sorted(weights.keys() - wanted.keys())
    other = [n for n in needed & weights.keys() if weights[n].shape != wanted[n].shape]
    if missing or extra or other:
        raise ShapeMismatch(
            f"The weights are not those of {config.name} with norm {config.norm!r} and width "
            f"{config.width}: missing {missing[:3] or 'none'}, left over {extra[:3] or 'none'}, "
            f"of another shape {sorted(other)[:3] or 'none'}. Give the state dict of that network."
        )
    with torch.no_grad():
        for name in needed:
            wanted[name].copy_(weights[name])
