"""What every throttleable network T(x, u) shares; a network file adds its layers and `run`.

B batch, C channels, T frames, H, W pixels, n components of a T-module.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flyball.datapaths.axes import count_active
from flyball.datapaths.cost import LayerCost
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates, Masked, Sliced
from flyball.datapaths.gates import sampled_components, served_components
from flyball.datapaths.modules import TConv, TLinear, TNorm
from flyball.kernels import Active

__all__ = ["Gating", "NetworkOutput", "ThrottleableNetwork"]

Gating = Literal["nested", "independent"]


class NetworkOutput(NamedTuple):
    """What a pass gives; B samples.

    Attributes:
        logits: (B, classes).
        pooled: mean over pixels of the last feature map; sliced: of its active channels, (B, C').
    """

    logits: Tensor
    pooled: Tensor


class ThrottleableNetwork(nn.Module):
    """T(x, u) with the gates of every T-module given from outside (TNN section 3.2).

    A subclass sets the attributes, makes T-layers, and writes `run` once; whether that computes
    the active part alone or everything under masks is the gates' business (`execution`).

    Attributes:
        config: what it is made of; `networks` turns it into the same structure again.
        components: n of every T-module, in order of execution.
        least: the fewest components each may run: 0 beside a skip connection, 1 without.
        input_shape: (C, H, W) of an image or (C, T, H, W) of a clip.
        classes: how many it tells apart.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    config: Any
    components: tuple[int, ...]
    least: tuple[int, ...]
    input_shape: tuple[int, ...]
    classes: int
    gating: Gating = "nested"
    calibrated: Tensor

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass: normalised inputs (B, *input_shape) through the T-layers."""
        raise NotImplementedError

    def sliced(
        self, x: Tensor, active: Sequence[Active], statistics: int | None = None
    ) -> NetworkOutput:
        """Runs the active components alone.

        Args:
            x: normalised inputs, (B, *input_shape).
            active: for every T-module a count (the first so many) or indices of components.
            statistics: row of batch-norm statistics; None: row 0.
        """
        return self.run(x, Sliced(active, statistics))

    def masked(
        self, x: Tensor, masks: Sequence[Tensor], statistics: int | Tensor | None = None
    ) -> Tensor:
        """Runs everything and multiplies by a mask for each sample; logits (B, classes).

        Args:
            x: normalised inputs, (B, *input_shape).
            masks: for every T-module (B, n), in [0, 1].
            statistics: row of batch-norm statistics, for all or for each sample; None: row 0.
        """
        return self.run(x, Masked(masks, statistics)).logits

    def counts_at(self, u: float) -> tuple[int, ...]:
        """How many components of every T-module serve a requested u: ceil(u n)."""
        pairs = zip(self.components, self.least, strict=True)
        return tuple(served_components(u, n, min_active=least) for n, least in pairs)

    def sampled_counts(self, u: float) -> tuple[int, ...]:
        """How many train under a sampled u: min(n, floor(u (n + 1))) (TNN section 4.4)."""
        pairs = zip(self.components, self.least, strict=True)
        return tuple(sampled_components(u, n, min_active=least) for n, least in pairs)

    def layer_costs(self) -> tuple[LayerCost, ...]:
        """Every layer that multiplies, in order of execution, for `cost`; nothing is computed."""
        gates = _Costing(self, self.components)
        self.run(torch.empty(0, *self.input_shape), gates)
        return tuple(gates.layers)

    def pooled_channels(self, active: Sequence[Active]) -> int:
        """C' of `NetworkOutput.pooled` under these gates; nothing is computed."""
        blank = torch.empty(0, *self.input_shape)
        return self.run(blank, _Costing(self, active)).pooled.shape[1]

    @property
    def norms(self) -> tuple[TNorm, ...]:
        """Its batch norms, whose statistics hold for one setting of the gates each."""
        return tuple(m for m in self.modules() if isinstance(m, TNorm) and m.kind == "batch")

    def statistics_of(self, counts: Sequence[int]) -> int | None:
        """The row of batch-norm statistics that was calibrated for these counts.

        Returns:
            None where the network has no batch norm.

        Raises:
            InvalidSetting: the statistics of these counts were never calibrated.
        """
        if not self.norms:
            return None
        table = getattr(self, "calibrated", None)
        known = [tuple(self.components)] if table is None else [tuple(r) for r in table.tolist()]
        if tuple(counts) in known:
            return known.index(tuple(counts))
        raise InvalidSetting(
            "Batch-norm statistics hold for one setting of the gates: those of components "
            f"{_short(counts)} were never calibrated ({len(known)} settings were). "
            "Call recalibrate(network, images, arms) with every arm that will be served."
        )

    def reserve_statistics(self, counts: Sequence[Sequence[int]]) -> None:
        """Makes one row of batch-norm statistics for each of these settings of the gates.

        Args:
            counts: components of every T-module, setting by setting; the first must be all of
                them: the network's own statistics.

        Raises:
            InvalidSetting: the first setting is not the whole network.
        """
        if tuple(counts[0]) != tuple(self.components):
            raise InvalidSetting(
                f"Row 0 of the statistics is the whole network's, {_short(self.components)}; "
                f"{_short(counts[0])} came first. Put all components first."
            )
        table = torch.tensor([list(row) for row in counts], dtype=torch.int64)
        self.register_buffer("calibrated", table)
        for norm in self.norms:
            norm.reserve(len(counts))


class _Costing(Sliced):
    """Runs nothing: notes every layer that multiplies, and gives tensors of the right shape."""

    def __init__(self, network: nn.Module, active: Sequence[Active]) -> None:
        super().__init__(active)
        self.layers: list[LayerCost] = []
        self._names = {module: name for name, module in network.named_modules()}

    def convolve(self, layer: TConv, x: Tensor) -> Tensor:
        pixels = layer.output_size(x.shape[2:])
        unit = int(torch.Size(pixels).numel() * torch.Size(layer.kernel).numel())
        self._note(layer, unit, layer.groups, layer.component)
        return x.new_empty(x.shape[0], count_active(layer.axis_out, self.active), *pixels)

    def normalise(self, layer: TNorm, x: Tensor) -> Tensor:
        return x

    def project(self, layer: TLinear, x: Tensor) -> Tensor:
        self._note(layer, 1, 1, None)
        return x.new_empty(*x.shape[:-1], count_active(layer.axis_out, self.active))

    def _note(
        self, layer: TConv | TLinear, unit: int, groups: int, component: tuple[int, int] | None
    ) -> None:
        name = self._names[layer]
        self.layers.append(LayerCost(name, unit, layer.axis_in, layer.axis_out, groups, component))


def _short(counts: Sequence[int]) -> str:
    texts = [str(count) for count in counts]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:5], f"... ({len(texts)} in all)"])
