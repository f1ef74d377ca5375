"""What a dynamic convolution data path is made of and how its masks are trained, as one value."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flyball.datapaths.dynconv.hourglass import HourglassConfig
from flyball.datapaths.dynconv.resnet import DynConvResNetConfig, resnet_101
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.errors import DataError, InvalidSetting

__all__ = ["DynConvConfig"]


@dataclass(frozen=True)
class DynConvConfig:
    """A data path whose utilization is the share of its conditional MACs.

    Attributes:
        network: a `DynConvResNetConfig` or a `HourglassConfig`.
        sparsity: how the masks are trained.
        calibration_samples: at most so many images of controller_train set the offsets that keep
            the budgets; their labels are not read.
        sigma: of a key point's Gaussian, in pixels of the heat map; of pose alone.
        weights: a file with a state dict of torchvision's ResNet of the same layers (.pth or
            .safetensors) to start from, or "DEFAULT" for torchvision's best; None: drawn from the
            seed.
        resized_crops: augment with random resized crops, as published for ImageNet, not by padding
            and cropping; of classification alone.

    Raises:
        InvalidSetting: a field breaks its rule.
    """

    network: Any = field(default_factory=DynConvResNetConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    calibration_samples: int = 2048
    sigma: float = 2.0
    weights: str | None = None
    resized_crops: bool = False

    def __post_init__(self) -> None:
        if self.calibration_samples < 1:
            raise InvalidSetting(
                "Budgets are calibrated on at least one image, not "
                f"{self.calibration_samples}. Set --set path.calibration_samples=2048."
            )
        if not self.sigma > 0:
            raise InvalidSetting(
                f"A key point's Gaussian has a sigma above 0, in pixels of the heat map; it is "
                f"{self.sigma}. Set --set path.sigma=2."
            )
        if not self.network.is_budgeted and self.sparsity.target is None:
            raise InvalidSetting(
                "A network that is not budgeted is trained for one budget, and none is given. Set "
                "--set path.sparsity.target=0.5, or --set path.network.is_budgeted=true."
            )
        if self.network.mask_unit == "none":
            raise InvalidSetting(
                "A dynamic convolution network is throttled by its masks. Set --set "
                "path.network.mask_unit=squeeze (classification) or conv (pose)."
            )
        if self.weights is not None and self.task == "pose":
            raise InvalidSetting(
                "Weights to start from are torchvision's, and it has no hourglass. "
                "Leave --set path.weights out."
            )

        self._check_weights()

    def _check_weights(self) -> None:
        if self.weights is None or self.task == "pose":
            return
        network = self.network
        if not network.bottleneck or network.stem != "imagenet":
            raise InvalidSetting(
                "Weights to start from are of torchvision's ResNets of bottlenecks; this network "
                "is none. Leave --set path.weights out, or set path.network.bottleneck=true and "
                "path.network.stem=imagenet with their layers."
            )
        if self.weights == "DEFAULT" and network.layers != resnet_101().layers:
            raise InvalidSetting(
                "path.weights=DEFAULT are torchvision's of ResNet-101, with layers 3,4,23,3; "
                f"path.network.layers is {network.layers}. Set them, or name a file."
            )

    @property
    def task(self) -> Literal["classification", "pose"]:
        """What an output means."""
        return "pose" if isinstance(self.network, HourglassConfig) else "classification"

    @property
    def weights_file(self) -> Path | None:
        """The file that training starts from, if there is one."""
        return None if self.weights in (None, "DEFAULT") else Path(str(self.weights))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        shape: tuple[int, ...] = self.network.input_shape
        return shape

    def fitted(self, images: Any) -> "DynConvConfig":
        """The same for a set of images: a classifier gets as many classes as they have.

        Raises:
            DataError: a pose network is given images without key points.
        """
        if self.task == "pose":
            if not hasattr(images, "key_points"):
                raise DataError(
                    f"A pose network learns key points, and {images.name} has none. "
                    "Set --set data.name=figures or data.name=mpii."
                )
            return self
        return replace(self, network=replace(self.network, classes=len(images.classes)))
