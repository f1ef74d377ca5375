"""How operations treat channels: tables of what keeps them, and what of it keeps a zero a zero.

Masked execution computes switched-off channels as zeros; where an operation turns zero into
something else, they are set to zero again.
"""

from typing import Literal

from torch import nn
from torchvision.ops import StochasticDepth

__all__ = ["CALLS", "MODULES", "Treatment"]

Treatment = Literal[
    "keep",
    "reset",
    "add",
    "multiply",
    "divide",
    "cat",
    "reduce",
    "flatten",
    "view",
    "read",
    "item",
]

# Layers that give every channel from the same channel of their input.
_KEEPING: tuple[type[nn.Module], ...] = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.CELU,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.LeakyReLU,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.SELU,
    nn.SiLU,
    nn.Softsign,
    nn.Tanh,
    nn.Upsample,
    nn.ZeroPad2d,
    StochasticDepth,
)

# The same, but a zero does not stay a zero.
_RESETTING: tuple[type[nn.Module], ...] = (
    nn.ConstantPad2d,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.Sigmoid,
    nn.Softplus,
)

MODULES: dict[type[nn.Module], Treatment] = {
    **dict.fromkeys(_KEEPING, "keep"),
    **dict.fromkeys(_RESETTING, "reset"),
    nn.Flatten: "flatten",
}

_KEEPING_CALLS = (
    "abs",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "avg_pool3d",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "dropout2d",
    "elu",
    "gelu",
    "hardswish",
    "interpolate",
    "leaky_relu",
    "max_pool2d",
    "max_pool3d",
    "mish",
    "relu",
    "relu6",
    "relu_",
    "selu",
    "silu",
    "softsign",
    "stochastic_depth",
    "tanh",
    "tanh_",
)

# Functions and methods by name.
CALLS: dict[str, Treatment] = {
    **dict.fromkeys(_KEEPING_CALLS, "keep"),
    **dict.fromkeys(("hardsigmoid", "hardtanh", "pad", "sigmoid", "sigmoid_", "softplus"), "reset"),
    **dict.fromkeys(("add", "add_", "iadd", "isub", "sub", "sub_"), "add"),
    **dict.fromkeys(("maximum", "minimum"), "add"),
    **dict.fromkeys(("imul", "mul", "mul_", "multiply"), "multiply"),
    **dict.fromkeys(("div", "div_", "itruediv", "truediv"), "divide"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("amax", "amin", "mean", "sum"), "reduce"),
    "flatten": "flatten",
    **dict.fromkeys(("reshape", "view"), "view"),
    **dict.fromkeys(("dim", "getattr", "size"), "read"),
    "getitem": "item",
}
