"""What gates make of a data path at every utilization: accuracy, complexity, MACs, use of modules.

M samples, U utilizations, n components of one T-module.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.gates import checked_utilization, independent_mask, nested_mask
from flyball.datapaths.learned_gates.learned import LearnedGate
from flyball.datapaths.learned_gates.structure import module_names, sample_macs
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["GateCurve", "accuracy_at", "fixed_curve", "gate_curve"]

Masks = tuple[Tensor, ...]


@dataclass(frozen=True)
class GateCurve:
    """A way of gating, measured; a mean over samples wherever samples differ.

    Attributes:
        utilizations: requested, (U,).
        accuracy: share of right answers, (U,).
        complexity: share of all components that was on (Eq. 4, uniform weights), (U,).
        macs: executed by the data path for one sample, both sides of layers sliced, (U,).
        mac_share: `macs` over those of the whole network, (U,).
        modules: names of the T-modules.
        module_use: share of its components that every T-module had on, (T-modules, U).
        gate_macs: executed by the gate itself for one sample.
        samples: M.
    """

    utilizations: tuple[float, ...]
    accuracy: tuple[float, ...]
    complexity: tuple[float, ...]
    macs: tuple[float, ...]
    mac_share: tuple[float, ...]
    modules: tuple[str, ...]
    module_use: tuple[tuple[float, ...], ...]
    gate_macs: int
    samples: int


def gate_curve(
    network: ThrottleableNetwork,
    gate: LearnedGate,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    utilizations: Sequence[float],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    precision: str = "float32",
    device: str = "cpu",
) -> GateCurve:
    """Serves a learned gate at every requested utilization.

    Args:
        network: the gate's own.
        gate: trained for it.
        images: uint8 (M, *input_shape).
        labels: int64 (M,).
        utilizations: requested, each in [0, 1].
        mean, std: of the channels on the [0, 1] scale, as in training.
        batch_size: rows of one pass; the result does not depend on it but for rounding.
        precision: "float32", or "bfloat16" for the data path's arithmetic.
        device: torch device.

    Raises:
        ForeignArtifact: the gate was trained for another network.
        DataError: there are no images, or not one label for each.
        InvalidSetting: a utilization is outside [0, 1], or the gate refuses to serve one.
    """
    gate.check_network(network)
    meter = _Meter(network, utilizations, gate.macs)
    gate.to(device)

    def masks_at(x: Tensor, u: float) -> Iterator[tuple[Masks, int | None]]:
        yield gate.serve(x, u), None

    try:
        meter.measure(images, labels, masks_at, mean, std, batch_size, precision, device)
    finally:
        gate.to("cpu")
    return meter.curve()


def fixed_curve(
    network: ThrottleableNetwork,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    utilizations: Sequence[float],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    draws: int = 3,
    seed: int = 0,
    batch_size: int = 256,
    precision: str = "float32",
    device: str = "cpu",
) -> GateCurve:
    """Serves static gates: nested ones, or independent ones drawn at random for every sample.

    Args:
        network: its gating says which.
        images, labels, utilizations, mean, std, batch_size, precision, device: as in `gate_curve`.
        draws: of independent gates for every sample; the curve is their mean. Nested gates leave
            nothing to draw.
        seed: of the draws.

    Raises:
        DataError: there are no images, or not one label for each.
        InvalidSetting: a utilization is outside [0, 1], `draws` is below 1, or independent gates
            meet batch norms, or nested ones a batch norm not calibrated for them.
    """
    if draws < 1:
        raise InvalidSetting(f"A mean over random gates takes at least 1 draw; draws is {draws}.")
    if network.norms and network.gating != "nested":
        raise InvalidSetting(
            "Gates drawn at random switch components on in settings that no statistics of a batch "
            "norm were calibrated for. Use a network with group norm: --set path.norm=group."
        )
    meter = _Meter(network, utilizations, 0)
    generator = torch.Generator().manual_seed(seed)

    def masks_at(x: Tensor, u: float) -> Iterator[tuple[Masks, int | None]]:
        counts = network.counts_at(u)
        rows = [torch.full((len(x),), count) for count in counts]
        pairs = list(zip(rows, network.components, strict=True))
        if network.gating == "nested":
            masks = tuple(nested_mask(k, n).to(x.device) for k, n in pairs)
            yield masks, network.statistics_of(counts)
            return
        for _ in range(draws):
            yield tuple(independent_mask(k, n, generator).to(x.device) for k, n in pairs), None

    meter.measure(images, labels, masks_at, mean, std, batch_size, precision, device)
    return meter.curve()


def accuracy_at(curve: GateCurve, complexity: float) -> float:
    """Accuracy at a realised complexity, between the two nearest points of the curve.

    Learned gates rarely spend just what was asked: equal requests compare unequal spending, equal
    complexities do not.

    Returns:
        NaN outside what the curve covers.
    """
    order = np.argsort(curve.complexity, kind="stable")
    spent = np.asarray(curve.complexity)[order]
    if not spent[0] - 1e-9 <= complexity <= spent[-1] + 1e-9:
        return float("nan")
    return float(np.interp(complexity, spent, np.asarray(curve.accuracy)[order]))


class _Meter:
    """Sums over batches what a curve is the mean of."""

    def __init__(
        self, network: ThrottleableNetwork, utilizations: Sequence[float], gate_macs: int
    ) -> None:
        self.network = network
        self.utilizations = tuple(checked_utilization(u) for u in utilizations)
        if not self.utilizations:
            raise InvalidSetting("A curve has at least one utilization; none was given.")
        self.layers = network.layer_costs()
        self.gate_macs = gate_macs
        size = len(self.utilizations)
        self.right, self.macs = np.zeros(size), np.zeros(size)
        self.use = np.zeros((len(network.components), size))
        self.passes = np.zeros(size, np.int64)
        self.samples = 0

    def measure(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        masks_at: Callable[[Tensor, float], Iterator[tuple[Masks, int | None]]],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        precision: str,
        device: str,
    ) -> None:
        if not len(labels) or len(images) != len(labels):
            raise DataError(
                f"Every image has one label; there are {len(images)} images and {len(labels)} "
                "labels. Give at least one image, and a label for each."
            )
        per_channel = (-1, *(1,) * (len(self.network.input_shape) - 1))
        scale = [
            torch.tensor(v, dtype=torch.float32, device=device).reshape(per_channel)
            for v in (mean, std)
        ]
        autocast = torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"
        )
        self.network.to(device).eval()
        if device == "cpu":
            self.network.to(memory_format=torch.contiguous_format)
        try:
            with torch.no_grad():
                for start in range(0, len(labels), batch_size):
                    rows = slice(start, start + batch_size)
                    x = torch.from_numpy(np.array(images[rows])).to(device).float() / 255.0
                    x = (x - scale[0]) / scale[1]
                    y = torch.from_numpy(np.asarray(labels[rows])).to(device)
                    for column, u in enumerate(self.utilizations):
                        for masks, statistics in masks_at(x, u):
                            with autocast:
                                output = self.network.masked(x, masks, statistics)
                            self._add(column, output, y, masks)
                    self.samples += len(y)
        finally:
            self.network.to("cpu")

    def curve(self) -> GateCurve:
        passes = self.passes
        sizes = np.asarray(self.network.components)[:, None]
        full = [torch.ones(1, n) for n in self.network.components]
        whole = int(sample_macs(self.layers, full)[0])
        return GateCurve(
            utilizations=self.utilizations,
            accuracy=_floats(self.right / passes),
            complexity=_floats(self.use.sum(axis=0) / passes / sizes.sum()),
            macs=_floats(self.macs / passes),
            mac_share=_floats(self.macs / passes / whole),
            modules=module_names(self.network),
            module_use=tuple(_floats(row) for row in self.use / passes / sizes),
            gate_macs=self.gate_macs,
            samples=self.samples,
        )

    def _add(self, column: int, output: Tensor, labels: Tensor, masks: Masks) -> None:
        self.right[column] += float((output.argmax(dim=1) == labels).sum())
        self.macs[column] += float(sample_macs(self.layers, masks).sum())
        for module, mask in enumerate(masks):
            self.use[module, column] += float(mask.sum())
        self.passes[column] += len(labels)


def _floats(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
