"""Sparsity losses: what makes a network execute the share of its MACs that was asked for.

DynConv section 3.3. B batch, b conditional blocks, G budgets in a batch.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flyball.datapaths.checks import check_rules
from flyball.datapaths.dynconv.masks import Decision
from flyball.datapaths.dynconv.network import NetworkCost, check_budget
from flyball.datapaths.errors import unknown_name

__all__ = [
    "Criterion",
    "Execution",
    "SparsityConfig",
    "bound_share",
    "execution_of",
    "lower_bound_loss",
    "network_loss",
    "per_layer_loss",
    "sparsity_loss",
    "temperature_at",
    "upper_bound_loss",
]

Criterion = Literal["bounds", "network", "per_layer"]


@dataclass(frozen=True)
class SparsityConfig:
    """How the masks of a network are trained.

    Attributes:
        criterion: "bounds": the network loss with annealed bounds on every block (Eq. 17);
            "network": Eq. 13 alone; "per_layer": Eq. 14.
        alpha: weight of the sparsity loss; 10 for classification, .01 for pose as published.
        target: theta, the one budget of a network that is not budgeted, in (0, 1]; a budgeted
            network draws its budgets and has no target.
        lowest: the least budget that is drawn, in (0, 1).
        budgets: how many budgets share a batch; each is drawn from its own part of [lowest, 1].
        bounds_end: share of the epochs after which the bounds have reached 0 and 1; 1 as in the
            paper's text, about 1/3 in its authors' schedule.
        temperature: tau of the Gumbel-softmax in the first epoch.
        last_temperature: of the last; None: the same.
        quiet: share of the epochs, at the end, that are trained without Gumbel noise.

    Raises:
        InvalidSetting: a field breaks its rule.
    """

    criterion: Criterion = "bounds"
    alpha: float = 10.0
    target: float | None = None
    lowest: float = 0.05
    budgets: int = 4
    bounds_end: float = 1.0
    temperature: float = 1.0
    last_temperature: float | None = None
    quiet: float = 0.2

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise unknown_name("sparsity criterion", str(self.criterion), get_args(Criterion))
        if self.target is not None:
            check_budget(self.target, "path.sparsity.target")
        last = self.temperature if self.last_temperature is None else self.last_temperature
        rules = [
            ("alpha", self.alpha >= 0 and math.isfinite(self.alpha), "a finite number, 0 or more"),
            ("lowest", 0 < self.lowest < 1, "in (0, 1)"),
            ("budgets", self.budgets >= 1, "at least 1"),
            ("bounds_end", 0 < self.bounds_end <= 1, "in (0, 1]"),
            ("temperature", self.temperature > 0, "above 0"),
            ("last_temperature", last > 0, "above 0"),
            ("quiet", 0 <= self.quiet <= 1, "in [0, 1]"),
        ]
        check_rules(self, "path.sparsity", rules)


@dataclass(frozen=True)
class Execution:
    """Shares of the conditional MACs that a batch executed, with gradients through N_b alone.

    Attributes:
        network: of every budget's part of the batch, (G,).
        blocks: of every block, (G, b).
        budgets: what was asked of every part, (G,).
    """

    network: Tensor
    blocks: Tensor
    budgets: Tensor


def execution_of(
    decisions: list[Decision], cost: NetworkCost, budgets: Tensor, part: Tensor
) -> Execution:
    """F_sp / F of every part of a batch that shares a budget (Eqs. 11 and 12).

    Args:
        decisions: of one pass, one for each conditional block.
        cost: of the network.
        budgets: of every part, (G,).
        part: which part a sample belongs to, int64 (B,) in [0, G).
    """
    count = torch.bincount(part, minlength=len(budgets)).clamp_min(1).float()
    spent = torch.stack(
        [
            d.active * cost.blocks[d.block].active_macs
            + d.dilated * cost.blocks[d.block].dilated_macs
            for d in decisions
        ],
        dim=1,
    )
    sums = spent.new_zeros(len(budgets), spent.shape[1]).index_add(0, part, spent)
    means = sums / count.to(sums.device)[:, None]
    dense = torch.tensor([float(block.dense) for block in cost.blocks], device=means.device)
    return Execution(means.sum(dim=1) / dense.sum(), means / dense, budgets.to(means.device))


def network_loss(execution: Execution) -> Tensor:
    """(F_sp / F - theta)^2 of the whole network (Eq. 13), mean over the budgets."""
    return (execution.network - execution.budgets).square().mean()


def per_layer_loss(execution: Execution) -> Tensor:
    """The same of every block, summed over blocks (Eq. 14), mean over the budgets."""
    return (execution.blocks - execution.budgets[:, None]).square().sum(dim=1).mean()


def lower_bound_loss(execution: Execution, p: float) -> Tensor:
    """Charges blocks that execute less than p theta (Eq. 15), mean over the budgets."""
    least = p * execution.budgets[:, None]
    return (least - execution.blocks).clamp_min(0).square().mean()


def upper_bound_loss(execution: Execution, p: float) -> Tensor:
    """Charges blocks that execute more than 1 - p (1 - theta) (Eq. 16), mean over the budgets."""
    most = 1 - p * (1 - execution.budgets[:, None])
    return (execution.blocks - most).clamp_min(0).square().mean()


def sparsity_loss(execution: Execution, config: SparsityConfig, p: float) -> Tensor:
    """The criterion in force, without alpha (Eq. 17)."""
    if config.criterion == "per_layer":
        return per_layer_loss(execution)
    loss = network_loss(execution)
    if config.criterion == "bounds":
        loss = loss + lower_bound_loss(execution, p) + upper_bound_loss(execution, p)
    return loss


def bound_share(epoch: float, epochs: int, end: float) -> float:
    """p of Eqs. 15 and 16: half a cosine from 1 at the start to 0 at `end` of the epochs."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, epoch / max(1e-9, epochs * end))))


def temperature_at(epoch: float, epochs: int, config: SparsityConfig) -> float:
    """tau: linear from the first to the last temperature."""
    last = config.temperature if config.last_temperature is None else config.last_temperature
    share = min(1.0, epoch / max(1, epochs - 1))
    return config.temperature + (last - config.temperature) * share
