"""Gates: how many components a utilization switches on, and which. B batch, n components."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import Active

__all__ = [
    "checked_utilization",
    "depthwise_nested_counts",
    "independent_components",
    "independent_mask",
    "nested_mask",
    "sampled_components",
    "served_components",
]

# u arrives as a float such as 0.30000000000000004 = 3 x 0.1, or in single precision; a product
# this near to a whole number is that number.
_SLACK = 1e-5


def checked_utilization(u: float) -> float:
    """u as a float in [0, 1].

    Raises:
        InvalidSetting: u is outside [0, 1] or NaN.
    """
    if not 0.0 <= u <= 1.0:
        raise InvalidSetting(
            f"A utilization is a number in [0, 1], not {u}. "
            "Give 1 for the whole network, 0.5 for half of its components."
        )
    return float(u)


def served_components(u: float, components: int, *, min_active: int = 1) -> int:
    """How many components serve a requested u: ceil(u n), TNN Algorithm 2.

    Args:
        u: requested utilization, in [0, 1].
        components: n, how many the module has.
        min_active: at least so many; 1 where there is no skip connection (TNN section 4.1).
    """
    return max(min_active, math.ceil(checked_utilization(u) * components - _SLACK))


def sampled_components(u: float, components: int, *, min_active: int = 1) -> int:
    """How many components train under a sampled u: min(n, floor(u (n + 1))).

    With u uniform on [0, 1] the count is uniform on 0 ... n before `min_active` is applied.
    """
    count = math.floor(checked_utilization(u) * (components + 1) + _SLACK)
    return max(min_active, min(components, count))


def depthwise_nested_counts(u: float, layers: Sequence[int]) -> tuple[int, ...]:
    """Active layers of every stage under depthwise nested gating (TNN section 4.2, ImageNet).

    Goes through the stages from output to input, again and again, and turns on one more layer of
    each whose active share does not exceed u; stops once the share of all layers exceeds u.

    Args:
        u: requested utilization, in [0, 1].
        layers: of every stage that a gate can skip, from input to output.

    Returns:
        Active layers of every stage; all of them at u = 1.
    """
    checked_utilization(u)
    active, total = [0] * len(layers), sum(layers)
    while sum(active) < total:
        before = sum(active)
        for stage in reversed(range(len(layers))):
            if sum(active) > u * total + _SLACK:
                return tuple(active)
            if active[stage] < layers[stage] and active[stage] <= u * layers[stage] + _SLACK:
                active[stage] += 1
        if sum(active) == before:
            break
    return tuple(active)


def nested_mask(counts: Tensor, components: int) -> Tensor:
    """The first counts[b] components of sample b: g_i > 0 implies g_j > 0 for j < i.

    Args:
        counts: int64 (B,).
        components: n.

    Returns:
        float32 (B, n) of zeros and ones.
    """
    order = torch.arange(components, device=counts.device)
    return (order < counts[:, None]).float()


def independent_mask(counts: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """counts[b] components of sample b, each subset of that size equally likely; (B, n)."""
    scores = torch.rand(len(counts), components, generator=generator, device=generator.device)
    rank = scores.argsort(dim=1).argsort(dim=1).to(counts.device)
    return (rank < counts[:, None]).float()


def independent_components(count: int, components: int, *, module: int, seed: int) -> Active:
    """The sorted components that serve `count` of one module under independent gating.

    A frozen network must answer alike every time, so the subset is drawn once from the seed, the
    module's position and the count. Counts 0 and n leave no choice.
    """
    if count >= components:
        return components
    drawn = np.random.default_rng([seed, module, count]).permutation(components)[:count]
    return torch.from_numpy(np.sort(drawn))
