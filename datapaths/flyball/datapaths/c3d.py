"""C3D-W: the widthwise throttleable 3D network for clips of TNN section 4.4 and Table 3."""

from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.axes import Axis, component_width, dense, gated, times
from flyball.datapaths.checks import check_choice, check_counts
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates
from flyball.datapaths.modules import Norm, TConv, TLinear
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork

__all__ = ["C3dConfig", "ThrottleableC3d", "c3d_w", "small_c3d"]

Pool = tuple[int, int, int]


@dataclass(frozen=True)
class C3dConfig:
    """What a C3D-W is made of.

    Attributes:
        stages: channels of every 3x3x3 convolution, stage by stage; each stage ends in a max pool.
        pools: frames, height and width that every stage's pool takes together; odd rests are
            dropped.
        hidden: features of every fully-connected layer before the classifier.
        components: of every convolution and hidden layer, in order; 1: never gated.
        classes: how many the dense classifier tells apart.
        in_channels: of the clip.
        frames: of the clip.
        image_size: height of a frame, in pixels.
        image_width: width of a frame, in pixels; None: as wide as high.
        norm: "none" as published, or "group" (one group a component).
        gating: "nested" as published, or "independent" (TNN Fig. 2).
    """

    stages: tuple[tuple[int, ...], ...]
    pools: tuple[Pool, ...]
    hidden: tuple[int, ...]
    components: tuple[int, ...]
    classes: int = 10
    in_channels: int = 1
    frames: int = 16
    image_size: int = 32
    image_width: int | None = None
    norm: Norm = "group"
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        """Checks every field by itself, and that the clip survives its pools.

        Raises:
            InvalidSetting: a number is below 1, a pool or a number of components is missing,
                components do not divide a layer, or the clip is too small for the pools.
            UnknownName: norm or gating have another value.
        """
        if not all(isinstance(part, tuple) for part in (*self.stages, *self.pools)):
            raise InvalidSetting(
                f"Every stage and every pool is a list; the stages are {self.stages}, the pools "
                f"{self.pools}. Give for example --set 'path.stages=((8,),(32,),(64,))'."
            )
        check_counts(components=self.components, classes=self.classes, frames=self.frames)
        check_counts(in_channels=self.in_channels, image_size=self.image_size)
        check_counts(image_width=self.input_shape[-1])
        check_choice("norm", self.norm, ("none", "group"))
        check_choice("gating", self.gating, get_args(Gating))
        if not self.stages or not all(self.stages) or len(self.pools) != len(self.stages):
            raise InvalidSetting(
                "Every stage has a convolution and ends in a pool: the stages are "
                f"{self.stages}, the pools {self.pools}. "
                "Give for example stages=((8,), (32,)) and pools=((1, 2, 2), (2, 2, 2))."
            )
        outputs = [*sum(self.stages, ()), *self.hidden]
        if len(self.components) != len(outputs):
            raise InvalidSetting(
                f"Every convolution and hidden layer has its number of components: "
                f"{len(outputs)} layers, {len(self.components)} numbers. "
                f"Set --set path.components={','.join(['1'] * len(outputs))} for a dense network."
            )
        for layer, (count, n) in enumerate(zip(outputs, self.components, strict=True)):
            component_width(f"layer {layer + 1} of a C3D", count, n)
        if min(self.pooled_shape) < 1:
            raise InvalidSetting(
                f"The pools {self.pools} leave {self.pooled_shape} of {self.input_shape[1:]} "
                "(frames, height, width): something of each must be left. Take larger clips, "
                "or smaller pools with --set path.pools."
            )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W)."""
        width = self.image_size if self.image_width is None else self.image_width
        return self.in_channels, self.frames, self.image_size, width

    @property
    def pooled_shape(self) -> tuple[int, ...]:
        """(T, H, W) after the last pool."""
        shape = self.input_shape[1:]
        for pool in self.pools:
            shape = tuple(size // side for size, side in zip(shape, pool, strict=True))  # type: ignore[assignment]
        return shape


def c3d_w(**changes: Any) -> C3dConfig:
    """C3D-W exactly as TNN Table 3 has it, for clips of 16 frames of 100 x 160 pixels."""
    whole = {
        "stages": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
        "pools": ((1, 2, 2), *((2, 2, 2),) * 4),
        "hidden": (512, 512),
        "components": (1, 16, *(32,) * 6, 16, 16),
        "classes": 27,
        "in_channels": 3,
        "image_size": 100,
        "image_width": 160,
        "norm": "none",
    }
    return C3dConfig(**{**whole, **changes})


def small_c3d(**changes: Any) -> C3dConfig:
    """Three convolutions and two hidden layers: 32 M MACs on clips of 16 frames of 32x32."""
    small = {
        "stages": ((8,), (32,), (64,)),
        "pools": ((2, 2, 2),) * 3,
        "hidden": (128, 128),
        "components": (1, 16, 16, 16, 16),
    }
    return C3dConfig(**{**small, **changes})


class ThrottleableC3d(ThrottleableNetwork):
    """T(x, u): every layer of more than one component is a T-module; nothing can be skipped."""

    def __init__(self, config: C3dConfig) -> None:
        super().__init__()
        self.config, self.gating, self.classes = config, config.gating, config.classes
        self.input_shape = config.input_shape
        self.convs, self.hidden = nn.ModuleList(), nn.ModuleList()
        self.pools: list[Pool | None] = []
        counts, modules = iter(config.components), list[int]()

        def axis_of(outputs: int) -> Axis:
            n = next(counts)
            if n == 1:
                return dense(outputs)
            modules.append(n)
            return gated(outputs, len(modules) - 1, n)

        axis = dense(config.in_channels)
        for stage, pool in zip(config.stages, config.pools, strict=True):
            for position, outputs in enumerate(stage):
                out = axis_of(outputs)
                conv = TConv(axis, out, 3, padding=1, dims=3, norm=config.norm, relu=True)
                self.convs.append(conv)
                self.pools.append(pool if position == len(stage) - 1 else None)
                axis = out
        frames, height, width = config.pooled_shape
        axis = times(axis, frames * height * width)
        for outputs in config.hidden:
            out = axis_of(outputs)
            self.hidden.append(TLinear(axis, out, relu=True))
            axis = out
        self.classifier = TLinear(axis, dense(config.classes))
        self.components = tuple(modules)
        self.least = (1,) * len(modules)

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass: normalised clips (B, C, T, H, W) through the T-layers."""
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = conv(x, gates)
            x = x if pool is None else F.max_pool3d(x, pool)
        pooled, x = x.mean(dim=(2, 3, 4)), x.flatten(1)
        for layer in self.hidden:
            x = layer(x, gates)
        return NetworkOutput(self.classifier(x, gates), pooled)
