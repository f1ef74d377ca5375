"""Exact cost in multiply-accumulates (MACs) of convolutions and linear layers.

`executed` counts what really runs when both sides of a layer are sliced: the default. `linear` is
the TNN paper's count: a layer's dense MACs times the share of its own components that is on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.flop_counter import FlopCounterMode

__all__ = ["CostModel", "LayerCost", "executed_macs", "linear_macs", "measured_macs"]

CostModel = Literal["executed", "linear"]


@dataclass(frozen=True)
class LayerCost:
    """One layer that multiplies.

    Attributes:
        name: of the layer in its network.
        unit: MACs for one input channel and one output channel: output pixels x kernel area.
        inputs, outputs: channels or features when everything is on.
        input_module: position of the T-module whose components are the inputs; None: never gated.
        output_module: position of the T-module that gates the outputs; None: never gated.
    """

    name: str
    unit: int
    inputs: int
    outputs: int
    input_module: int | None
    output_module: int | None


def executed_macs(
    layers: Sequence[LayerCost], active: Sequence[int], components: Sequence[int]
) -> int:
    """MACs of one sample with both sides of every layer sliced.

    Args:
        layers: of the network.
        active: active components of every T-module.
        components: all components of every T-module.
    """
    return sum(
        layer.unit
        * _share(layer.inputs, layer.input_module, active, components)
        * _share(layer.outputs, layer.output_module, active, components)
        for layer in layers
    )


def linear_macs(
    layers: Sequence[LayerCost], active: Sequence[int], components: Sequence[int]
) -> int:
    """MACs of one sample as the TNN paper counts them: linear in the share of components."""
    return sum(
        layer.unit * layer.inputs * _share(layer.outputs, layer.output_module, active, components)
        for layer in layers
    )


def measured_macs(run: Callable[[], Any]) -> int:
    """MACs of the convolutions and matrix products that `run` really executes.

    torch counts two floating-point operations for each MAC.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return int(counter.get_total_flops()) // 2


def _share(
    channels: int, module: int | None, active: Sequence[int], components: Sequence[int]
) -> int:
    return channels if module is None else channels * active[module] // components[module]
