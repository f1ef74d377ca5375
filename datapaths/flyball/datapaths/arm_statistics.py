"""Batch-norm statistics for every arm of a throttleable network, and a check that they are its own.

A running mean and variance hold for one setting of the gates: fewer active inputs give other sums.
So every arm gets its own row. B samples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.datapaths.axes import active_channels
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.execution import Sliced
from flyball.datapaths.gates import independent_components
from flyball.datapaths.modules import TNorm
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.progress import Progress, Report, silent
from flyball.kernels import Active, take_active

__all__ = ["ArmCheck", "Recalibration", "check_calibrated", "recalibrate"]

Arm = float | Sequence[int]

# Mean divergence, in nats, of a layer's channels from their stored statistics. Measured on five
# networks: fresh samples differ by less than .015; a row copied from the whole network by .18 to 1
# at u = .75 and .7 to 3 at u = .25.
LIMIT = 0.1


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did.

    Attributes:
        counts: components of every T-module, row by row of the statistics.
        norms: batch norms whose statistics were taken; 0: the network has none, nothing was done.
        samples: that each row was taken from.
        forwards: samples that went through the network, all rows together.
    """

    counts: tuple[tuple[int, ...], ...]
    norms: int
    samples: int
    forwards: int


@dataclass(frozen=True)
class ArmCheck:
    """How far the statistics of one arm are from those of other samples.

    Attributes:
        counts: components of every T-module.
        layer: the batch norm that is furthest off.
        divergence: its channels' mean Kullback-Leibler divergence between normal distributions,
            in nats, less what a sample of this size explains; >= 0.
    """

    counts: tuple[int, ...]
    layer: str
    divergence: float


def recalibrate(
    network: ThrottleableNetwork,
    batches: Iterable[Tensor],
    arms: Sequence[Arm],
    *,
    keep_whole: bool = False,
    gate_seed: int = 0,
    report: Report = silent,
) -> Recalibration:
    """Takes the batch-norm statistics of every arm, sliced, over all batches.

    Mean and unbiased variance of everything a norm sees, joined in float64: no momentum, so the
    order of batches does not matter. Within a pass each batch is normalised by its own
    statistics, as in training, so batches should be about as large as those. The table of rows
    becomes the whole network and these arms; nothing is written before all are taken.

    Args:
        network: its weights stay as they are.
        batches: normalised inputs (B, *input_shape), B >= 2, on the network's device; read once
            for every row, so a list or a data set, not a generator.
        arms: utilizations in [0, 1], or components of every T-module.
        keep_whole: leave the whole network's own statistics alone. Right for pretrained weights
            that were never trained with gates; after such training row 0 is a mixture.
        gate_seed: of `PathSpec`, which draws the components of independent gates.
        report: hears after every arm.

    Raises:
        InvalidSetting: an arm is outside [0, 1] or not a count for every T-module, or the batches
            can be read only once.
        DataError: there are no batches, or one is too small or of the wrong shape.
    """
    if iter(batches) is batches:
        raise InvalidSetting(
            "The batches are read once for every arm, and this iterator can be read only once. "
            "Give list(batches), or a data set that can be gone through again."
        )
    whole = tuple(network.components)
    rows = list(dict.fromkeys([whole, *(_counts(network, arm) for arm in arms)]))
    if not network.norms:
        return Recalibration((), 0, 0, 0)
    kept = 1 if keep_whole else 0
    taken, samples, forwards = [], 0, 0
    for done, counts in enumerate(rows[kept:], start=1):
        gates = _Collecting(_active(network, counts, gate_seed), None, settled=False)
        samples = _go_through(network, batches, gates)
        forwards += samples
        taken.append(gates.moments)
        report(Progress("recalibrate", done, len(rows) - kept, note=f"{samples} samples"))
    network.reserve_statistics(rows)
    for row, moments in enumerate(taken, start=kept):
        for norm, seen in moments.items():
            seen.write(norm, row)
    return Recalibration(tuple(rows), len(network.norms), samples, forwards)


def check_calibrated(
    network: ThrottleableNetwork,
    batches: Iterable[Tensor],
    arms: Sequence[Arm],
    *,
    limit: float = LIMIT,
    gate_seed: int = 0,
) -> tuple[ArmCheck, ...]:
    """Compares the stored statistics of every arm with those of samples that were held out.

    Args:
        network: as it will be served.
        batches: normalised inputs (B, *input_shape) that `recalibrate` did not see, 64 or more.
        arms: utilizations in [0, 1], or components of every T-module.
        limit: the largest divergence that passes, in nats.
        gate_seed: as in `recalibrate`.

    Returns:
        For every arm its worst layer; nothing for a network without batch norms.

    Raises:
        InvalidSetting: an arm was never calibrated, or its statistics are not its own.
        DataError: as in `recalibrate`.
    """
    if not network.norms:
        return ()
    names = {module: name for name, module in network.named_modules()}
    checks = []
    for counts in dict.fromkeys(_counts(network, arm) for arm in arms):
        row = network.statistics_of(counts)
        gates = _Collecting(_active(network, counts, gate_seed), row, settled=True)
        _go_through(network, batches, gates)
        far = {norm: seen.divergence(norm, row or 0) for norm, seen in gates.moments.items()}
        worst = max(far, key=lambda norm: (math.isnan(far[norm]), far[norm]))
        checks.append(ArmCheck(counts, names[worst], far[worst]))
    wrong = [check for check in checks if not check.divergence <= limit]
    if wrong:
        first = max(wrong, key=lambda check: (math.isnan(check.divergence), check.divergence))
        raise InvalidSetting(
            f"The batch-norm statistics of {len(wrong)} of {len(checks)} arms are not their own: "
            f"with {_short(first.counts)} components {first.layer} is {first.divergence:.3g} nats "
            f"off, {limit:g} at most are allowed. Call recalibrate(network, batches, arms) after "
            "the last change of the weights, on images like those that are served."
        )
    return tuple(checks)


class _Moments:
    """Count, mean and mean squared deviation of every active channel."""

    def __init__(self, active: Active) -> None:
        self.active = active
        self.count = 0
        self.mean = self.spread = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Takes x of (B, active channels, ...) in.

        Each map is summed by torch's stable one-pass rule; maps and batches are joined in float64
        (Chan, Golub and LeVeque).
        """
        maps = x.detach().flatten(2) if x.ndim > 2 else x.detach()[:, :, None]
        spreads, means = torch.var_mean(maps, dim=2, correction=0)
        mean = means.double().mean(dim=0)
        spread = spreads.double().mean(dim=0) + (means.double() - mean).square().mean(dim=0)
        count = maps.shape[0] * maps.shape[2]
        share = count / (self.count + count)
        if self.count:
            shift = mean - self.mean
            spread = self.spread + share * (spread - self.spread)
            spread = spread + share * (1 - share) * shift.square()
            mean = self.mean + share * shift
        self.count, self.mean, self.spread = self.count + count, mean, spread

    @property
    def variance(self) -> Tensor:
        """Unbiased, as torch's running variance."""
        return self.spread * (self.count / (self.count - 1))

    def write(self, norm: TNorm, row: int) -> None:
        """Stores them; channels that are off at this row keep what they had and are never read."""
        place = self.active if isinstance(self.active, Tensor) else torch.arange(self.active)
        for table, values in ((norm.running_mean, self.mean), (norm.running_var, self.variance)):
            table[row].index_copy_(0, place.to(table.device), values.to(table))

    def divergence(self, norm: TNorm, row: int) -> float:
        """KL(seen || stored) between normal distributions, mean over channels, in nats.

        Less what so few values explain: about 1 / count, and up to four times that in deep
        networks, where the layers before add to it.
        """
        place = self.active if isinstance(self.active, Tensor) else torch.arange(self.active)
        place = place.to(norm.running_mean.device)
        mean, var = norm.running_mean[row][place].double(), norm.running_var[row][place].double()
        ratio = (self.variance + norm.eps) / (var + norm.eps)
        shift = (self.mean - mean).square() / (var + norm.eps)
        found = float(0.5 * (ratio - 1 - ratio.log() + shift).mean())
        return found if math.isnan(found) else max(0.0, found - 4 / self.count)


class _Collecting(Sliced):
    """`Sliced` that notes what every batch norm sees.

    Attributes:
        settled: normalise by the stored row; else every batch by its own statistics.
        moments: of every norm that ran.
    """

    def __init__(self, active: Sequence[Active], row: int | None, *, settled: bool) -> None:
        super().__init__(active, row)
        self.settled = settled
        self.moments: dict[TNorm, _Moments] = {}

    def normalise(self, layer: TNorm, x: Tensor) -> Tensor:
        if layer.kind != "batch" or not x.shape[1]:
            return super().normalise(layer, x)
        active = active_channels(layer.axis, self.active)
        if layer not in self.moments:
            self.moments[layer] = _Moments(active)
        self.moments[layer].add(x)
        if self.settled:
            return super().normalise(layer, x)
        weight, bias = take_active(layer.weight, 0, active), take_active(layer.bias, 0, active)
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=layer.eps)
        return F.relu(y) if layer.relu else y


def _go_through(network: ThrottleableNetwork, batches: Iterable[Tensor], gates: _Collecting) -> int:
    """Runs all batches in evaluation mode; how many samples they held."""
    samples, was_training = 0, network.training
    network.eval()
    try:
        with torch.no_grad():
            for position, batch in enumerate(batches):
                if not isinstance(batch, Tensor) or tuple(batch.shape[1:]) != network.input_shape:
                    came = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
                    raise DataError(
                        f"Batches are normalised inputs of shape (B, *{network.input_shape}); "
                        f"batch {position} is {came}. Give the images alone, without labels."
                    )
                if len(batch) < 2:
                    raise DataError(
                        f"A variance needs two samples or more; batch {position} has "
                        f"{len(batch)}. Use larger batches, or drop the last one."
                    )
                network.run(batch, gates)
                samples += len(batch)
    finally:
        network.train(was_training)
    if not samples:
        raise DataError("Statistics are taken from images; there are no batches. Give some.")
    return samples


def _counts(network: ThrottleableNetwork, arm: Arm) -> tuple[int, ...]:
    if isinstance(arm, (int, float)):
        return tuple(network.counts_at(float(arm)))
    counts = tuple(arm)
    fits = len(counts) == len(network.components) and all(
        0 <= count <= n for count, n in zip(counts, network.components, strict=True)
    )
    if not fits:
        raise InvalidSetting(
            f"An arm is a utilization or a count for each of {len(network.components)} T-modules "
            f"of {_short(network.components)} components; got {_short(counts)}. "
            "Give network.counts_at(u)."
        )
    return counts


def _active(network: ThrottleableNetwork, counts: Sequence[int], gate_seed: int) -> list[Active]:
    """As `FrozenDataPath` serves them."""
    if network.gating == "nested":
        return list(counts)
    pairs = enumerate(zip(counts, network.components, strict=True))
    return [independent_components(c, n, module=m, seed=gate_seed) for m, (c, n) in pairs]


def _short(counts: Sequence[int]) -> str:
    texts = [str(count) for count in counts]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:5], f"... ({len(texts)} in all)"])
