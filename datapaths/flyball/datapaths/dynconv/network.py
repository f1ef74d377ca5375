"""What every dynamic convolution network shares: numbered blocks, the requested budget, exact cost.

B batch, C channels, H, W pixels, b conditional blocks.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flyball.datapaths.dynconv.blocks import BlockCost, ConditionalBlock, ConvNorm
from flyball.datapaths.dynconv.masks import Decision, Masking, TrainingMasking
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.network import NetworkOutput
from flyball.kernels.dispatch import Requested

__all__ = ["BudgetShift", "DynConvNetwork", "NetworkCost", "check_budget"]

KNOTS = 11
EXTREME = 0.03
"""Budgets nearer to 0 or 1 than this start with the shift of this one."""


def check_budget(budget: float, name: str = "A budget") -> float:
    """A requested share of the conditional MACs.

    Raises:
        InvalidSetting: it is not in (0, 1].
    """
    if not 0.0 < budget <= 1.0:
        raise InvalidSetting(
            f"{name} is a share of the conditional MACs in (0, 1]; it is {budget}. "
            "Ask for example for 0.3."
        )
    return float(budget)


class BudgetShift(nn.Module):
    """What a requested budget adds to every block's soft decisions: linear between 11 knots.

    It starts at the logit of the budget, so that Gumbel noise alone executes about that share.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        knots = torch.linspace(0.0, 1.0, KNOTS).clamp(EXTREME, 1.0 - EXTREME)
        self.table = nn.Parameter(torch.logit(knots).repeat(blocks, 1).T.contiguous())

    def forward(self, budget: Tensor) -> Tensor:
        """Shifts (B, b) of budgets (B,) in [0, 1]."""
        place = budget.clamp(0.0, 1.0) * (KNOTS - 1)
        below = place.floor().clamp(max=KNOTS - 2).long()
        share = (place - below).to(self.table.dtype)[:, None]
        return self.table[below] * (1 - share) + self.table[below + 1] * share


@dataclass(frozen=True)
class NetworkCost:
    """Exact MACs of one sample, by what decides whether they are executed.

    Attributes:
        fixed: always: stem, shortcuts, dense blocks, heads.
        units: of all mask units; not executed where everything is.
        blocks: of the conditional blocks, in order.
    """

    fixed: int
    units: int
    blocks: tuple[BlockCost, ...]

    @property
    def conditional(self) -> int:
        """MACs of all conditional branches when every pixel runs."""
        return sum(block.dense for block in self.blocks)

    @property
    def full(self) -> int:
        """MACs when everything runs; mask units are then not asked."""
        return self.fixed + self.conditional

    def executed(self, decisions: list[Decision]) -> Tensor:
        """Conditional MACs of every sample, float64 (B,) (Eq. 11); no gradients.

        Args:
            decisions: of one pass, one for each conditional block.
        """
        total: Tensor | None = None
        for decision in decisions:
            block = self.blocks[decision.block]
            spent = (
                decision.active.detach().double() * block.active_macs
                + decision.dilated.double() * block.dilated_macs
            )
            total = spent if total is None else total + spent
        if total is None:
            raise InvalidSetting(
                "No conditional block decided anything: the network has no mask units, or the pass "
                "ran everywhere. Ask a network with mask units at a budget below 1."
            )
        return total


class DynConvNetwork(nn.Module):
    """A network of conditional residual blocks (DynConv section 3).

    A subclass sets the attributes, makes `ConditionalBlock`s among its layers, writes `run`, and
    calls `number_blocks` at the end of its constructor.

    Attributes:
        config: what it is made of; `networks` turns it into the same structure again.
        input_shape: (C, H, W).
        classes: how many it tells apart; key points of a pose network.
        conditional: its blocks that have a mask unit, in order of execution.
        shift: what a requested budget adds to soft decisions; None: a network for one budget.
    """

    config: Any
    input_shape: tuple[int, ...]
    classes: int
    conditional: tuple[ConditionalBlock, ...]
    shift: BudgetShift | None

    def run(self, x: Tensor, masking: Masking) -> NetworkOutput:
        """One pass: normalised inputs (B, C, H, W)."""
        raise NotImplementedError

    def number_blocks(self, *, is_budgeted: bool) -> None:
        """Gives every block its name and every conditional block its position."""
        found: list[ConditionalBlock] = []
        for name, module in self.named_modules():
            if isinstance(module, ConditionalBlock):
                module.name = name
                if module.unit is not None:
                    module.position = len(found)
                    found.append(module)
        self.conditional = tuple(found)
        self.shift = BudgetShift(len(found)) if is_budgeted and found else None

    def shifts(self, budget: Tensor) -> Tensor | None:
        """What budgets (B,) add to the soft decisions, (B, b); None for a network of one budget."""
        return None if self.shift is None else self.shift(budget)

    def masked(
        self,
        x: Tensor,
        budget: Tensor | None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[NetworkOutput, list[Decision]]:
        """Dense execution under masks, with gradients.

        Args:
            x: normalised inputs, (B, C, H, W).
            budget: requested shares (B,) in (0, 1]; None for a network of one budget.
            temperature: tau of the Gumbel-softmax.
            generator: of the Gumbel noise; None: none.
        """
        shifts = None if budget is None else self.shifts(budget.to(x.device))
        masking = TrainingMasking(shifts, temperature=temperature, generator=generator)
        return self.run(x, masking), masking.decisions

    def costs(self) -> NetworkCost:
        """Every MAC of one sample, found by one pass of no samples."""
        counts = {"fixed": 0, "units": 0}
        kinds = _kinds_of_layers(self)

        def count(layer: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
            kind = kinds[layer]
            if kind == "branch":
                return
            if isinstance(layer, nn.Conv2d):
                counts[kind] += y.shape[1:].numel() * layer.weight[0].numel()
            elif isinstance(layer, nn.Linear):
                counts[kind] += y.shape[1:].numel() * layer.in_features

        hooks = [layer.register_forward_hook(count) for layer in kinds]
        masking, was_training = _Visiting(), self.training
        like = next(self.parameters())
        try:
            self.eval()
            with torch.no_grad():
                self.run(like.new_empty(0, *self.input_shape), masking)
        finally:
            self.train(was_training)
            for hook in hooks:
                hook.remove()
        blocks = [block.cost(*size) for block, size in masking.visits if block.unit is not None]
        return NetworkCost(counts["fixed"], counts["units"], tuple(blocks))

    def prepared(self, implementation: Requested = "auto") -> "DynConvNetwork":
        """A copy for inference: norms folded, blocks packed, channels last.

        Args:
            implementation: of the sparse blocks; see `flyball.kernels`.
        """
        made = copy.deepcopy(self).eval().requires_grad_(False)
        made = made.to(memory_format=torch.channels_last)
        for block in [m for m in made.modules() if isinstance(m, ConditionalBlock)]:
            block.prepare(implementation)
        for layer in [m for m in made.modules() if isinstance(m, ConvNorm)]:
            layer.fold()
        return made


class _Visiting(Masking):
    """Runs every mask unit, and everything everywhere."""

    def decide(self, block: ConditionalBlock, x: Tensor) -> Tensor | None:
        if block.unit is not None:
            block.unit(x)
        return super().decide(block, x)


def _kinds_of_layers(network: nn.Module) -> dict[nn.Module, str]:
    """Convolutions and linear layers as "fixed", "units", or "branch" of a conditional block."""
    kinds: dict[nn.Module, str] = {
        m: "fixed" for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    for block in network.modules():
        if not isinstance(block, ConditionalBlock) or block.unit is None:
            continue
        aside = set() if block.shortcut is None else set(block.shortcut.modules())
        unit = set(block.unit.modules())
        for layer in block.modules():
            if layer in kinds and layer not in aside:
                kinds[layer] = "units" if layer in unit else "branch"
    return kinds
