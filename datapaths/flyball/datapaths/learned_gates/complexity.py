"""Complexity of gates and the penalties on it (TNN Eqs. 4 to 6), for training and for reports.

`flyball.envs.reward.complexity_penalty` is the same penalty in numpy on a throttle ratio.
B batch, N components of all T-modules together.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.learned_gates.structure import sample_macs, split_gates
from flyball.datapaths.network import ThrottleableNetwork

__all__ = [
    "Penalty",
    "Weighting",
    "complexity",
    "component_weights",
    "distance_penalty",
    "hinge_penalty",
    "penalty_of",
]

Penalty = Literal["distance", "hinge"]
Weighting = Literal["uniform", "macs"]


def complexity(gates: Tensor, weights: Tensor) -> Tensor:
    """Weighted share of the components that is on: TNN Eq. (4), c = sum w_i 1(g_i != 0) / |w|_1.

    A relaxed gate counts with its own value, so that a gradient reaches it; gates of zeros and
    ones give Eq. (4) itself.

    Args:
        gates: in [0, 1], (..., N).
        weights: of the components, at least 0, (N,).

    Returns:
        c in [0, 1], (...).

    Raises:
        InvalidSetting: a weight is negative or not finite, all are 0, or there are not N.
    """
    if weights.shape != gates.shape[-1:]:
        raise InvalidSetting(
            f"Every component has one weight: {gates.shape[-1]} components, weights of shape "
            f"{tuple(weights.shape)}. Make them with component_weights(network, ...)."
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not weights.any():
        raise InvalidSetting(
            "Weights of components are finite, at least 0 and not all 0; they are "
            f"{weights.tolist()[:8]}... Make them with component_weights(network, ...)."
        )
    return (gates * weights.to(gates)).sum(dim=-1) / weights.sum().to(gates)


def hinge_penalty(c: Tensor, u: Tensor, *, power: int = 2) -> Tensor:
    """max(0, c - u)^p: only what is spent above the target is charged, TNN Eq. (5).

    Args:
        c: complexity, in [0, 1].
        u: target, in [0, 1]; broadcasts with `c`.
        power: p, 1 or 2.

    Raises:
        InvalidSetting: p is neither 1 nor 2.
    """
    return _raised(torch.clamp(c - u, min=0.0), power)


def distance_penalty(c: Tensor, u: Tensor, *, power: int = 2) -> Tensor:
    """|c - u|^p: both sides of the target are charged, TNN Eq. (6).

    Arguments and errors are those of `hinge_penalty`.
    """
    return _raised((c - u).abs(), power)


def penalty_of(c: Tensor, u: Tensor, *, penalty: Penalty, power: int) -> Tensor:
    """The penalty of a name.

    Raises:
        InvalidSetting: there is no such penalty, or p is neither 1 nor 2.
    """
    if penalty not in get_args(Penalty):
        raise InvalidSetting(
            f"The penalty on complexity is 'distance' or 'hinge'; it is {penalty!r}. "
            "Give GateConfig(penalty='distance')."
        )
    charge = distance_penalty if penalty == "distance" else hinge_penalty
    return charge(c, u, power=power)


def component_weights(network: ThrottleableNetwork, weighting: Weighting = "uniform") -> Tensor:
    """w of Eq. (4), one weight for every component in order of the T-modules; float64 (N,).

    Args:
        network: whose components are weighed.
        weighting: "uniform", all 1; or "macs", the executed MACs that the whole network saves
            when this component alone is switched off, in its own layers and in those that read it.

    Raises:
        InvalidSetting: there is no such weighting.
    """
    if weighting not in get_args(Weighting):
        raise InvalidSetting(
            f"Components are weighed 'uniform' or by 'macs', not {weighting!r}. "
            "Give GateConfig(weighting='uniform')."
        )
    if weighting == "uniform":
        return torch.ones(sum(network.components), dtype=torch.float64)
    total = sum(network.components)
    # Row 0 has everything on, row i + 1 everything but component i.
    gates = torch.ones(total + 1, total) - torch.eye(total + 1, total).roll(1, dims=0)
    macs = sample_macs(network.layer_costs(), split_gates(gates, network.components))
    return (macs[0] - macs[1:]).double()


def _raised(distance: Tensor, power: int) -> Tensor:
    if isinstance(power, bool) or power not in (1, 2):
        raise InvalidSetting(
            f"The power of a complexity penalty is 1 or 2 (TNN Eqs. 5 and 6); it is {power!r}. "
            "Give GateConfig(power=2)."
        )
    return distance if power == 1 else distance * distance
