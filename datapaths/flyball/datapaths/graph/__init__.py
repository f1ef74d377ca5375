"""Throttleable networks from plain ones: tracing, channel groups, conversion, torchvision."""

from flyball.datapaths.graph.conversion import Conversion
from flyball.datapaths.graph.custom import CustomConfig, register_model
from flyball.datapaths.graph.throttle import throttle
from flyball.datapaths.graph.throttled import ThrottledNetwork
from flyball.datapaths.graph.torchvision_models import (
    TorchvisionConfig,
    densenet169_wn,
    pretrained,
    resnet50_wn,
    resnext50_wn,
)

__all__ = [
    "Conversion",
    "CustomConfig",
    "ThrottledNetwork",
    "TorchvisionConfig",
    "densenet169_wn",
    "pretrained",
    "register_model",
    "resnet50_wn",
    "resnext50_wn",
    "throttle",
]
