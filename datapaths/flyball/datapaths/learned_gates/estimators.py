"""Gradients of an expectation over discrete gates: REINFORCE and binary Concrete (TNN section 4.4).

Gates are Bernoulli (Eq. 7), g_i ~ Bernoulli(sigmoid(logit_i)), each drawn from one number of
uniform noise, so a generator on the CPU decides on every device. B batch, N components, K draws.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "bernoulli_gates",
    "concrete_gates",
    "keep_least",
    "leave_one_out",
    "log_probability",
    "score_function_loss",
]

# Noise this near to 0 or 1 would make an infinite logistic number.
_EDGE = 1e-7


def bernoulli_gates(logits: Tensor, noise: Tensor) -> Tensor:
    """Gates of zeros and ones: on where the noise is below sigmoid(logit).

    Args:
        logits: log(p / (1 - p)) of every gate, any shape.
        noise: uniform on [0, 1), in the same shape.
    """
    return (noise < torch.sigmoid(logits.detach())).to(logits.dtype)


def concrete_gates(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Relaxed gates sigmoid((L + log alpha) / t), L logistic noise, alpha = p / (1 - p).

    The paper prints the temperature as an exponent -t of the sum; it divides it, as in the
    distribution's definition. A gate is above 1/2 exactly as often as its Bernoulli is on.

    Args:
        logits: log alpha, any shape.
        noise: uniform on [0, 1), in the same shape.
        temperature: t > 0; at t = 0 the gates are `bernoulli_gates`' of the mirrored noise.

    Returns:
        In [0, 1], differentiable in the logits.
    """
    uniform = noise.clamp(_EDGE, 1.0 - _EDGE)
    logistic = torch.log(uniform) - torch.log1p(-uniform)
    return torch.sigmoid((logistic + logits) / temperature)


def log_probability(logits: Tensor, gates: Tensor) -> Tensor:
    """log Pr(g) = sum_i log(g_i p_i + (1 - g_i)(1 - p_i)).

    Args:
        logits: broadcast to (..., N).
        gates: zeros and ones, (..., N).

    Returns:
        (...), differentiable in the logits.
    """
    return -F.binary_cross_entropy_with_logits(
        logits.expand_as(gates), gates, reduction="none"
    ).sum(dim=-1)


def score_function_loss(log_probabilities: Tensor, objective: Tensor, baseline: Tensor) -> Tensor:
    """A loss whose gradient is REINFORCE's: E[(J - b) grad log Pr(g)] estimates grad E[J].

    Args:
        log_probabilities: of the gates that were drawn, any shape; differentiable.
        objective: J of each draw, in the same shape.
        baseline: b, broadcast; must not depend on the draw it is taken from.

    Returns:
        The mean over all draws, a scalar; its value means nothing.
    """
    return ((objective - baseline).detach() * log_probabilities).mean()


def leave_one_out(objectives: Tensor) -> Tensor:
    """For every draw the mean J of the other draws of the same example.

    Args:
        objectives: (K, B), K at least 2.

    Returns:
        (K, B).
    """
    draws = len(objectives)
    return (objectives.sum(dim=0, keepdim=True) - objectives) / (draws - 1)


def keep_least(
    gates: Tensor, logits: Tensor, components: Sequence[int], least: Sequence[int]
) -> Tensor:
    """Forces components on where a T-module has fewer on than it needs.

    The components of highest probability go on, the first of equals, until `least` are on. A
    relaxed gate counts as on from 1/2; one that is forced becomes 1 and keeps its gradient.

    Args:
        gates: in [0, 1], (B, N).
        logits: (B, N).
        components: n of every T-module.
        least: how many of each must be on.
    """
    parts = []
    sizes = list(components)
    for part, score, need in zip(
        torch.split(gates, sizes, 1), torch.split(logits, sizes, 1), least, strict=True
    ):
        if need == 0:
            parts.append(part)
            continue
        is_on = part.detach() >= 0.5
        ranked = torch.where(is_on, torch.inf, score.detach())
        order = ranked.argsort(dim=1, descending=True, stable=True)[:, :need]
        is_forced = torch.zeros_like(is_on).scatter(1, order, True) & ~is_on
        parts.append(part + is_forced * (1.0 - part).detach())
    return torch.cat(parts, dim=1)
