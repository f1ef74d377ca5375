"""A throttleable network whose layers are run by the graph of a user's model.

B batch, C channels, H, W pixels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from flyball.datapaths.axes import Axis, dense
from flyball.datapaths.checks import check_choice
from flyball.datapaths.cost import LayerCost
from flyball.datapaths.execution import Gates
from flyball.datapaths.graph.tracing import on_meta
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork
from flyball.kernels import Active

__all__ = ["Fill", "Parts", "Silence", "ThrottledNetwork"]


class Silence(nn.Module):
    """Sets switched-off channels to zero again, where everything is computed.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        """(B, C or active C, ...) to the same."""
        return gates.silence(self.axis, x)


class Fill(nn.Module):
    """Gives all channels, zeros where they are switched off.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        """(B, C or active C, ...) to (B, C, ...)."""
        return gates.fill(self.axis, x)


class Parts(NamedTuple):
    """What a converted model is made of.

    Attributes:
        body: its graph; called with inputs and gates it gives the model's output and what
            enters the last layer that multiplies.
        components: n of every T-module.
        input_shape: of one sample.
        classes: features of the output where that is (B, classes), else 0.
        macs: multiply-accumulates of every layer that runs as it is, by name.
        frozen: batch norms whose statistics training must not change.
    """

    body: fx.GraphModule
    components: tuple[int, ...]
    input_shape: tuple[int, ...]
    classes: int
    macs: dict[str, int]
    frozen: tuple[nn.Module, ...]


class ThrottledNetwork(ThrottleableNetwork):
    """T(x, u) of a user's model; made by `throttle`.

    Every T-module runs one component at least: a converted layer knows no way around itself.

    Attributes:
        body: the model's graph; its layers keep their names, so `body.layer1.0.conv1` is the
            model's `layer1.0.conv1`.

    Raises:
        UnknownName: there is no such gating.
    """

    def __init__(self, parts: Parts, *, config: Any = None, gating: Gating = "nested") -> None:
        check_choice("gating", gating, get_args(Gating))
        super().__init__()
        self.config, self.gating = config, gating
        self.body = parts.body
        self.components, self.least = parts.components, (1,) * len(parts.components)
        self.input_shape, self.classes = parts.input_shape, parts.classes
        self._has_values = True
        self._macs, self._frozen = parts.macs, parts.frozen

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass.

        Args:
            x: normalised inputs, (B, *input_shape).
            gates: of the T-modules.

        Returns:
            The model's own output, all channels of it, as `logits`, whatever its structure; and
            the mean over pixels of what enters the last layer that multiplies.
        """
        output, last = self._both(x, gates)
        return NetworkOutput(
            output, last.mean(dim=tuple(range(2, last.ndim))) if last.ndim > 2 else last
        )

    def run_raw(self, x: Tensor, gates: Gates) -> Any:
        """The model's own output in its own structure: a tensor, dict or list, all channels."""
        return self._both(x, gates)[0]

    def layer_costs(self) -> tuple[LayerCost, ...]:
        """Every layer that multiplies; those that run as they are cost the same at every gate."""
        fixed = (LayerCost(name, m, dense(1), dense(1)) for name, m in self._macs.items() if m)
        with self._valueless():
            return (*super().layer_costs(), *fixed)

    def pooled_channels(self, active: Sequence[Active]) -> int:
        """C' of `NetworkOutput.pooled` under these gates; nothing is computed."""
        with self._valueless():
            return super().pooled_channels(active)

    def train(self, mode: bool = True) -> Self:
        """As of any module; frozen batch norms keep their statistics."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def _both(self, x: Tensor, gates: Gates) -> tuple[Any, Tensor]:
        if self._has_values:
            output, last = self.body(x, gates)
            return output, last
        # Layers that run as they are compute; on the meta device they do not, and may not mix it
        # with the device of their weights.
        blank = torch.empty(1, *x.shape[1:], device="meta")
        with torch.device("meta"):
            output, last = functional_call(self.body, on_meta(self.body), (blank, gates))
        return output, last

    @contextlib.contextmanager
    def _valueless(self) -> Iterator[None]:
        """Within it a pass gives tensors of the right shape that hold nothing."""
        self._has_values = False
        try:
            yield
        finally:
            self._has_values = True
