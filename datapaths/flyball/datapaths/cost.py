"""Exact cost in multiply-accumulates (MACs) of convolutions and linear layers.

`executed` counts what really runs when both sides of a layer are sliced: the default. `linear` is
the TNN paper's count: a layer's dense MACs times the share of its own components that is on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.flop_counter import FlopCounterMode

from flyball.datapaths.axes import Axis, channels_of, count_active
from flyball.kernels import Active

__all__ = ["CostModel", "LayerCost", "executed_macs", "linear_macs", "measured_macs"]

CostModel = Literal["executed", "linear"]


@dataclass(frozen=True)
class LayerCost:
    """One layer that multiplies.

    Attributes:
        name: of the layer in its network.
        unit: MACs for one input channel and one output channel: output pixels x kernel area.
        axis_in, axis_out: its channels or features, and what gates them.
        groups: of a grouped convolution; each output reads channels_in / groups inputs.
        component: the layer runs only where this component (T-module, position) is on.
    """

    name: str
    unit: int
    axis_in: Axis
    axis_out: Axis
    groups: int = 1
    component: tuple[int, int] | None = None

    def is_off(self, active: Sequence[Active]) -> bool:
        """Whether its component is switched off."""
        if self.component is None:
            return False
        gate = active[self.component[0]]
        if isinstance(gate, int):
            return self.component[1] >= gate
        return not bool((gate == self.component[1]).any())


def executed_macs(layers: Sequence[LayerCost], active: Sequence[Active]) -> int:
    """MACs of one sample with both sides of every layer sliced.

    Args:
        layers: of the network.
        active: for every T-module a count (the first so many) or indices of components.
    """
    total = 0
    for layer in layers:
        if layer.is_off(active):
            continue
        if layer.groups > 1:
            read = channels_of(layer.axis_in) // layer.groups
        else:
            read = count_active(layer.axis_in, active)
        total += layer.unit * read * count_active(layer.axis_out, active)
    return total


def linear_macs(layers: Sequence[LayerCost], active: Sequence[Active]) -> int:
    """MACs of one sample as the TNN paper counts them: linear in the share of components."""
    return sum(
        layer.unit
        * (channels_of(layer.axis_in) // layer.groups)
        * count_active(layer.axis_out, active)
        for layer in layers
        if not layer.is_off(active)
    )


def measured_macs(run: Callable[[], Any]) -> int:
    """MACs of the convolutions and matrix products that `run` really executes.

    torch counts two floating-point operations for each MAC.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return int(counter.get_total_flops()) // 2
