"""Dynamic convolution networks: residual blocks that run on the pixels of a learned mask."""

from flyball.datapaths.dynconv.calibration import Calibration, calibrate
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.hourglass import (
    Hourglass,
    HourglassConfig,
    mpii_hourglass,
    small_hourglass,
)
from flyball.datapaths.dynconv.masks import Masking, SparseMasking, TrainingMasking
from flyball.datapaths.dynconv.network import DynConvNetwork, NetworkCost
from flyball.datapaths.dynconv.path import DynConvPath, DynConvSpec, Examined
from flyball.datapaths.dynconv.resnet import (
    DynConvResNet,
    DynConvResNetConfig,
    cifar_resnet,
    load_torchvision_resnet,
    resnet_101,
)
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.dynconv.training import train_dynconv

__all__ = [
    "Calibration",
    "DynConvConfig",
    "DynConvNetwork",
    "DynConvPath",
    "DynConvResNet",
    "DynConvResNetConfig",
    "DynConvSpec",
    "Examined",
    "Hourglass",
    "HourglassConfig",
    "Masking",
    "NetworkCost",
    "SparseMasking",
    "SparsityConfig",
    "TrainingMasking",
    "calibrate",
    "cifar_resnet",
    "load_torchvision_resnet",
    "mpii_hourglass",
    "resnet_101",
    "small_hourglass",
    "train_dynconv",
]
