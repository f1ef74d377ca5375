"""What a learner is given and gives back, and the bookkeeping in between; nothing here learns.

Axis letters: N samples, K arms, B batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.datapaths.errors import NotFinite, ShapeMismatch

__all__ = [
    "BanditTable",
    "BestByValidation",
    "CurvePoint",
    "Learned",
    "UpdateLog",
    "broken_update",
    "greedy_reward",
    "is_look_due",
]

CHUNK = 4096

CurvePoint = tuple[int, float, float]
"""(updates made, mean reward of the samples drawn, entropy of the policy in nats)."""


@dataclass(frozen=True, eq=False)
class BanditTable:
    """Contexts, and what every arm pays in each.

    Attributes:
        observations: float32 (N, ...).
        rewards: float32 (N, K).

    Raises:
        ShapeMismatch: the two have not the same number of rows, or none.
        NotFinite: a reward is NaN or infinite; names the first such row and arm.
    """

    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.rewards.ndim != 2 or not len(self.rewards) == len(self.observations) > 0:
            raise ShapeMismatch(
                "A bandit table has one row of rewards (N, K) for each of N >= 1 observations; "
                f"shapes {self.observations.shape} and {self.rewards.shape} came. "
                "Take both from the same split of the same atlas."
            )
        broken = np.argwhere(~np.isfinite(self.rewards))
        if len(broken):
            row, arm = (int(index) for index in broken[0])
            raise NotFinite(
                f"Every reward must be finite; row {row}, arm {arm} is {self.rewards[row, arm]}. "
                "Look at that row of the atlas, or at the reward function."
            )

    def __len__(self) -> int:
        return len(self.rewards)

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Observations and rewards on a device; copied only where they must be."""
        arrays = (self.observations, self.rewards)
        writable = [array if array.flags.writeable else array.copy() for array in arrays]
        first, second = (torch.from_numpy(array).to(device) for array in writable)
        return first, second


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained policy and how it got there.

    Attributes:
        network: in eval mode on the CPU; gives logits (B, K).
        curve: one point for each iteration.
        validation: (updates, mean reward of the greedy policy) at every look; () without a table.
        samples: contexts drawn.
        updates: gradient steps made.
        best_update: after which update the network's weights were taken: the best on the
            validation table, or the last one without a table.
    """

    network: nn.Module
    curve: tuple[CurvePoint, ...]
    validation: tuple[tuple[int, float], ...]
    samples: int
    updates: int
    best_update: int


def greedy_reward(network: nn.Module, table: BanditTable) -> float:
    """Mean reward on a table of the policy that always takes its likeliest arm."""
    total = 0.0
    device = next(network.parameters()).device
    parts = zip(*(torch.split(whole, CHUNK) for whole in table.tensors()), strict=True)
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for observations, rewards in parts:
            arm = network(observations.to(device)).argmax(-1, keepdim=True).cpu()
            total += float(rewards.gather(1, arm).double().sum())
    network.train(was_training)
    return total / len(table)


class UpdateLog:
    """Figures of the updates of one iteration, read once at its end: no wait for the device."""

    def __init__(self) -> None:
        self._figures: list[tuple[Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._figures)

    def add(self, loss: Tensor, reward: Tensor, entropy: Tensor) -> None:
        """Keeps the loss, mean reward and entropy of one update, all scalars."""
        self._figures.append((loss.detach(), reward, entropy))

    def finish(self, updates: int) -> CurvePoint:
        """The iteration's point, once `updates` are made in all; starts the next iteration.

        Raises:
            NotFinite: a reward or a loss of the iteration is not; names its update.
        """
        figures = torch.stack([torch.stack(row) for row in self._figures]).cpu().double().numpy()
        self._figures.clear()
        broken = broken_update(figures, updates)
        if broken is not None:
            raise broken
        return updates, float(figures[:, 1].mean()), float(figures[:, 2].mean())


def broken_update(
    figures: NDArray[np.float64], updates: int, *, where: str = ""
) -> NotFinite | None:
    """The error for the first update whose mean reward or loss is not finite; None: all are.

    Args:
        figures: loss, mean reward and entropy of the last updates, one row each, (U, 3).
        updates: made in all, these among them.
        where: words that go behind the update's number.
    """
    broken = np.argwhere(~np.isfinite(figures[:, [1, 0]]))
    if not len(broken):
        return None
    row, column = broken[0]
    what = ("mean reward", "loss")[column]
    return NotFinite(
        f"Rewards and losses must be finite; the {what} of update "
        f"{updates - len(figures) + int(row) + 1}{where} is {figures[row, 1 - column]}. Look at "
        "the rewards that the environment pays, or lower learn.learning_rate."
    )


def is_look_due(before: int, now: int, *, updates: int, looks: int) -> bool:
    """A look at the validation table falls between two counts of updates, or on the run's end.

    Args:
        before, now: updates made at the last point of the curve and at this one.
        updates: of the whole run.
        looks: spread over the run; one more falls on its end.
    """
    between = math.ceil(updates / looks)
    return now // between > before // between or now >= updates


class BestByValidation:
    """Collects a run's curve, looks at the validation table, and keeps the best weights.

    Args:
        table: to choose on; None keeps the last weights.
        updates: of the whole run.
        looks: at the table, spread over the run; one more falls on its end.
        batch_size: samples of an update.
    """

    def __init__(
        self, table: BanditTable | None, *, updates: int, looks: int, batch_size: int
    ) -> None:
        self._table = table
        self._updates = updates
        self._planned_looks = looks
        self._batch_size = batch_size
        self._curve: list[CurvePoint] = []
        self._looked = 0
        self._looks: list[tuple[int, float]] = []
        self._best: tuple[int, float, dict[str, Tensor]] | None = None

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._curve[-1][0] if self._curve else 0

    @property
    def looks(self) -> int:
        """Looks at the table so far, counted whether there is a table or not."""
        return self._looked

    def note(self, point: CurvePoint, network: Callable[[], nn.Module]) -> None:
        """Takes a point of the curve; calls `network()` for the policy if a look is due."""
        is_due = is_look_due(
            self.updates, point[0], updates=self._updates, looks=self._planned_looks
        )
        self._curve.append(point)
        self._looked += is_due
        if self._table is None or not is_due:
            return
        policy = network()
        reward = greedy_reward(policy, self._table)
        self._looks.append((point[0], reward))
        if self._best is None or reward > self._best[1]:
            weights = {name: value.cpu().clone() for name, value in policy.state_dict().items()}
            self._best = (point[0], reward, weights)

    def figures(self) -> dict[str, float]:
        """The latest figures, for a progress report."""
        _, reward, entropy = self._curve[-1]
        values = {"reward": reward, "entropy": entropy}
        return values | ({"validation_reward": self._looks[-1][1]} if self._looks else {})

    def learned(self, network: nn.Module) -> Learned:
        """The outcome, with the best weights put into `network`, or its own without a table."""
        updates = self._curve[-1][0]
        if self._best is not None:
            network.load_state_dict(self._best[2])
        return Learned(
            network=network.cpu().eval(),
            curve=tuple(self._curve),
            validation=tuple(self._looks),
            samples=updates * self._batch_size,
            updates=updates,
            best_update=updates if self._best is None else self._best[0],
        )

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, as plain values and tensors."""
        curve, looks = list(self._curve), list(self._looks)
        return {"curve": curve, "looked": self._looked, "looks": looks, "best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` gave."""
        self._curve, self._looks = list(state["curve"]), list(state["looks"])
        self._looked, self._best = state["looked"], state["best"]
