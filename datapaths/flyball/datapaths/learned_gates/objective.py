"""What one step of Phase 2 for gates optimises: L(y, T(x, g)) + lambda C(g, u) under drawn gates.

B batch, N components, K draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.learned_gates.complexity import complexity, component_weights, penalty_of
from flyball.datapaths.learned_gates.config import GateConfig, temperature_at
from flyball.datapaths.learned_gates.estimators import (
    bernoulli_gates,
    concrete_gates,
    keep_least,
    leave_one_out,
    log_probability,
    score_function_loss,
)
from flyball.datapaths.learned_gates.progress_state import GateState
from flyball.datapaths.learned_gates.structure import split_gates
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["GateObjective", "StepFigures"]

# Weight of the past in the moving-average baseline, over steps.
_MEMORY = 0.9


class StepFigures(NamedTuple):
    """What one step saw.

    Attributes:
        loss: whose gradient was taken; for REINFORCE its value means nothing.
        task: mean task loss under the drawn gates.
        miss: mean |c - u|.
        passes: through the data path, for every sample.
    """

    loss: float
    task: float
    miss: float
    passes: int


class GateObjective:
    """The objective of a gate network on a data path, under either estimator."""

    def __init__(
        self,
        network: ThrottleableNetwork,
        gate_network: nn.Module,
        config: GateConfig,
        least: tuple[int, ...],
        device: str,
    ) -> None:
        self.network = network
        self.gate_network = gate_network
        self.config = config
        self.least = least
        self.components = tuple(network.components)
        self.weights = component_weights(network, config.weighting).to(device, torch.float32)
        self.autocast = torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=config.precision == "bfloat16"
        )

    def step(
        self,
        x: Tensor,
        y: Tensor,
        u: Tensor,
        share: float,
        generator: torch.Generator,
        state: GateState,
    ) -> StepFigures:
        """Adds the gradients of one batch to the gate and, when joint, to the data path.

        Args:
            x: normalised images, (B, *input_shape).
            y: labels, (B,).
            u: targets, (B,).
            share: of the training that is done, in [0, 1]; Concrete's temperature follows it.
            generator: draws the gates.
            state: keeps the moving average.
        """
        logits = self.gate_network(x, u)
        noise = torch.rand(self.config.draws, *logits.shape, generator=generator).to(x.device)
        if self.config.estimator == "concrete":
            loss, task, miss = self._concrete(x, y, u, logits, noise, share)
            passes = self.config.draws
        else:
            loss, task, miss = self._reinforce(x, y, u, logits, noise, state)
            passes = self.config.draws + (self.config.baseline == "self_critical")
        loss.backward()  # type: ignore[no-untyped-call]
        return StepFigures(float(loss.detach()), float(task), float(miss), passes)

    def _concrete(
        self, x: Tensor, y: Tensor, u: Tensor, logits: Tensor, noise: Tensor, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        temperature = temperature_at(self.config, share)
        pairs = []
        for one in noise:
            gates = concrete_gates(logits, one, temperature)
            pairs.append(self._outcome(x, y, keep_least(gates, logits, *self._rule())))
        task, c = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        loss = (task + self._charge(c, u)).mean()
        return loss, task.detach().mean(), (c.detach() - u).abs().mean()

    def _reinforce(
        self, x: Tensor, y: Tensor, u: Tensor, logits: Tensor, noise: Tensor, state: GateState
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn = torch.stack([bernoulli_gates(logits, one) for one in noise])
        with torch.set_grad_enabled(self.config.joint):
            pairs = [self._outcome(x, y, keep_least(g, logits, *self._rule())) for g in drawn]
        task, c = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        objective = (task + self._charge(c, u)).detach()
        baseline = self._baseline(x, y, u, logits, objective, state)
        loss = score_function_loss(log_probability(logits, drawn), objective, baseline)
        if self.config.joint:
            loss = loss + task.mean()
        return loss, task.detach().mean(), (c - u).abs().mean()

    def _baseline(
        self, x: Tensor, y: Tensor, u: Tensor, logits: Tensor, objective: Tensor, state: GateState
    ) -> Tensor:
        if self.config.baseline == "leave_one_out":
            return leave_one_out(objective)
        if self.config.baseline == "self_critical":
            with torch.no_grad():
                served = keep_least((logits >= 0).float(), logits, *self._rule())
                task, c = self._outcome(x, y, served)
                return task + self._charge(c, u)
        if self.config.baseline == "moving_average":
            # Only earlier batches enter, so that the baseline knows nothing of these draws.
            before = objective.new_tensor(state.average)
            now = float(objective.mean())
            weight = _MEMORY if state.has_average else 0.0
            state.average = weight * state.average + (1.0 - weight) * now
            state.has_average = True
            return before
        return objective.new_zeros(())

    def _outcome(self, x: Tensor, y: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Task loss and complexity of every sample; (B,) each."""
        with self.autocast:
            output = self.network.masked(x, split_gates(gates, self.components)).float()
        return F.cross_entropy(output, y, reduction="none"), complexity(gates, self.weights)

    def _charge(self, c: Tensor, u: Tensor) -> Tensor:
        config = self.config
        return config.complexity_weight * penalty_of(
            c, u, penalty=config.penalty, power=config.power
        )

    def _rule(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.components, self.least
