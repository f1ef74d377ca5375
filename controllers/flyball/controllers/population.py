"""Many controllers learn at once: one network each, all of one shape, by batched products.

Point p of a population learns what `learn.learn_plain` learns alone from the same table, settings
and seed: the same initial weights, the same rows and arms drawn, the same looks at the validation
table. Its figures agree up to rounding, for a batched product may add in another order.

How one step is made lives in `stacked_heads`.

Axis letters: P points, N samples, B batch, K arms, D features, M weights, U updates.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.controllers.learn import STAGE, LearnConfig
from flyball.controllers.learned import (
    CHUNK,
    BanditTable,
    CurvePoint,
    Learned,
    broken_update,
    is_look_due,
)
from flyball.controllers.networks import (
    ControllerConfig,
    Standardise,
    build_network,
    standardisation_of,
)
from flyball.controllers.stacked_heads import StackedHeads, optimizer_of, slope_of_logits
from flyball.datapaths.errors import InvalidSetting, NotFinite, ShapeMismatch
from flyball.datapaths.progress import Progress, Report, silent

__all__ = ["learn_population", "shared_settings"]

_OWN = ("algorithm", "learning_rate", "entropy", "epsilon_start", "epsilon_end", "weight_decay")
"""What may differ between the points of a population, beside the seed and the rewards."""


def shared_settings(config: LearnConfig) -> tuple[tuple[str, Any], ...]:
    """What all points of a population must agree in; those that do can learn together."""
    settings = asdict(config).items()
    return tuple((name, value) for name, value in settings if name not in (*_OWN, "seed"))


def learn_population(
    tables: Sequence[BanditTable],
    controller: ControllerConfig,
    configs: Sequence[LearnConfig],
    *,
    validation: Sequence[BanditTable] | None = None,
    device: torch.device | str = "cpu",
    report: Report = silent,
) -> list[Learned | NotFinite]:
    """Trains P context heads at once; a point that breaks does not stop the others.

    Args:
        tables: what each point learns from; the same observations (N, D), its own rewards (N, K).
        controller: of kind "context_head"; the networks' one shape. Their weights are drawn from
            their configs' seeds, as `build_network` does.
        configs: of each point; `shared_settings` of all must be equal.
        validation: of each point, one for each table; keeps the weights whose greedy policy earns
            most there, instead of the last.
        device: where the products run; rows, arms and initial weights are drawn on the CPU.
        report: told once an iteration, with the means over the points.

    Returns:
        For every point what `learn_plain` would give, in order; for one whose reward or loss
        became NaN or infinite the error that names its update and its place.

    Raises:
        InvalidSetting: no points, not as many configs as tables, another kind of controller, or
            settings that must be shared and are not.
        ShapeMismatch: the tables do not share their observations or their arms.
    """
    _check_points(tables, controller, configs, validation)
    shared = configs[0]
    networks = _initial(tables[0], controller, configs)
    heads = StackedHeads(networks, device)
    step = optimizer_of(heads, configs)
    learning = _Table(tables, networks[0], device)
    looked_at = None if validation is None else _Table(validation, networks[0], device)
    draws = _Draws(configs, len(tables[0]), device)
    book = _Book(configs)
    entropy_weight = heads.column([config.entropy for config in configs])[..., None]
    updates = 0
    while updates < shared.updates and not book.is_over:
        count = min(shared.updates_per_iteration, shared.updates - updates)
        epsilon = heads.column([c.epsilon(updates * c.batch_size) for c in configs])[..., None]
        figures = []
        for rows, uniform in draws.iteration(count):
            seen, rewards = learning.batch(rows)
            layers = heads.forward(seen)
            slope, told = slope_of_logits(
                layers.pop(),
                rewards,
                shared.estimator,
                epsilon=epsilon,
                entropy_weight=entropy_weight,
                uniform=uniform,
            )
            step(heads.backward(layers, slope))
            figures.append(told)
        before, updates = updates, updates + count
        book.note(torch.stack(figures).cpu().double().numpy(), updates)
        if looked_at is not None and is_look_due(
            before, updates, updates=shared.updates, looks=shared.validations
        ):
            book.look(updates, looked_at.greedy_rewards(heads), heads.weights)
        report(Progress(STAGE, updates, shared.updates, values=book.figures()))
    kept = heads.weights if book.best is None else book.best
    return [
        book.outcome(point, heads.into(network, kept[point]))
        for point, network in enumerate(networks)
    ]


class _Table:
    """Standardised observations (N, D) that all points share, and each one's rewards."""

    def __init__(
        self, tables: Sequence[BanditTable], network: nn.Sequential, device: torch.device | str
    ) -> None:
        with torch.no_grad():
            self.observations = network[0](tables[0].tensors()[0]).to(device)
        rewards = torch.stack([table.tensors()[1] for table in tables])
        self.points, self.samples, _ = rewards.shape
        self.rewards = rewards.to(device)
        self._flat = self.rewards.flatten(0, 1)
        self._start = torch.arange(self.points, device=device)[:, None] * self.samples

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (P, B, D) and rewards (P, B, K) of rows (P, B), or (1, B) for all alike."""
        seen = self.observations[rows].expand(self.points, -1, -1)
        return seen, self._flat[rows + self._start]

    def greedy_rewards(self, heads: StackedHeads) -> Tensor:
        """Mean reward of every point's likeliest arms; float64 (P,)."""
        total = torch.zeros(self.points, dtype=torch.float64, device=self.rewards.device)
        parts = (torch.split(self.observations, CHUNK), torch.split(self.rewards, CHUNK, 1))
        for seen, rewards in zip(*parts, strict=True):
            logits = heads.forward(seen.expand(self.points, -1, -1))[-1]
            arm = logits.argmax(-1, keepdim=True)
            total += rewards.gather(2, arm)[..., 0].double().sum(1)
        return total / self.samples


class _Draws:
    """The rows of every update, and what arms are drawn by, from each point's own seed."""

    def __init__(
        self, configs: Sequence[LearnConfig], samples: int, device: torch.device | str
    ) -> None:
        seeds = [config.seed for config in configs]
        known = list(dict.fromkeys(seeds))
        self._rows = [np.random.default_rng(seed) for seed in known]
        self._arms = [torch.Generator().manual_seed(seed) for seed in known]
        # One seed for all: one set of rows, that no point copies.
        self._of = None if len(known) == 1 else torch.tensor([known.index(s) for s in seeds])
        self._samples, self._size, self._device = samples, configs[0].batch_size, device
        self._draws_arms = configs[0].estimator != "all_arm"

    def iteration(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Of every update the rows (P, B), int64, and numbers in [0, 1), (P, B, 1); or (1, ...)."""
        size = (count, self._size)
        rows = torch.stack(
            [torch.from_numpy(r.integers(self._samples, size=size)) for r in self._rows]
        )
        uniform = torch.zeros(len(self._rows), count, 0, 1)
        if self._draws_arms:
            drawn = [
                torch.stack([torch.rand(self._size, 1, generator=g) for _ in range(count)])
                for g in self._arms
            ]
            uniform = torch.stack(drawn)
        if self._of is not None:
            rows, uniform = rows[self._of], uniform[self._of]
        moved = (whole.transpose(0, 1).contiguous().to(self._device) for whole in (rows, uniform))
        return list(zip(*moved, strict=True))


class _Book:
    """Curves, looks and best weights of every point, and which broke where."""

    def __init__(self, configs: Sequence[LearnConfig]) -> None:
        self._configs = configs
        self._curves: list[list[CurvePoint]] = [[] for _ in configs]
        self._looks: list[list[tuple[int, float]]] = [[] for _ in configs]
        self._broken: dict[int, NotFinite] = {}
        self._best_reward: Tensor | None = None
        self._best_update = np.zeros(len(configs), np.int64)
        self.best: Tensor | None = None

    @property
    def is_over(self) -> bool:
        """Every point broke."""
        return len(self._broken) == len(self._configs)

    def note(self, figures: NDArray[np.float64], updates: int) -> None:
        """Takes loss, reward and entropy of an iteration's updates, (U, 3, P)."""
        means = figures.mean(axis=0)
        for point, curve in enumerate(self._curves):
            where = f" of point {point} of {len(self._curves)}"
            broken = broken_update(figures[:, :, point], updates, where=where)
            if broken is not None:
                self._broken.setdefault(point, broken)
            curve.append((updates, float(means[1, point]), float(means[2, point])))

    def look(self, updates: int, rewards: Tensor, weights: Tensor) -> None:
        """Takes the rewards (P,) on the validation table; keeps weights (P, M) that earn more."""
        if self.best is None or self._best_reward is None:
            is_better = torch.ones_like(rewards, dtype=torch.bool)
            self.best, self._best_reward = weights.clone(), rewards
        else:
            is_better = rewards > self._best_reward
            self.best = torch.where(is_better[:, None], weights, self.best)
            self._best_reward = torch.where(is_better, rewards, self._best_reward)
        self._best_update[is_better.cpu().numpy()] = updates
        for looks, reward in zip(self._looks, rewards.tolist(), strict=True):
            looks.append((updates, reward))

    def figures(self) -> dict[str, float]:
        """The latest figures, means over the points that did not break."""
        whole = [point for point in range(len(self._curves)) if point not in self._broken]
        if not whole:
            return {}
        last = np.mean([self._curves[point][-1][1:] for point in whole], axis=0)
        values = {"reward": float(last[0]), "entropy": float(last[1])}
        if self._looks[0]:
            looks = [self._looks[point][-1][1] for point in whole]
            values["validation_reward"] = float(np.mean(looks))
        return values

    def outcome(self, point: int, network: nn.Module) -> Learned | NotFinite:
        """What came of one point."""
        if point in self._broken:
            return self._broken[point]
        updates = self._curves[point][-1][0]
        return Learned(
            network=network,
            curve=tuple(self._curves[point]),
            validation=tuple(self._looks[point]),
            samples=updates * self._configs[point].batch_size,
            updates=updates,
            best_update=updates if self.best is None else int(self._best_update[point]),
        )


def _initial(
    table: BanditTable, controller: ControllerConfig, configs: Sequence[LearnConfig]
) -> list[nn.Sequential]:
    """Each point's network as `learn_plain` is given it, standardised alike."""
    mean, scale = standardisation_of(table.observations)
    shape, arms = table.observations.shape[1:], table.rewards.shape[1]
    networks = []
    for config in configs:
        generator = torch.Generator().manual_seed(config.seed)
        network = build_network(controller, shape, arms, generator=generator)
        for module in network:
            if isinstance(module, Standardise):
                module.assign(mean, scale)
        networks.append(network)
    return networks


def _check_points(
    tables: Sequence[BanditTable],
    controller: ControllerConfig,
    configs: Sequence[LearnConfig],
    validation: Sequence[BanditTable] | None,
) -> None:
    counts = {len(tables), len(configs), len(tables if validation is None else validation)}
    if counts != {len(tables)} or not tables:
        raise InvalidSetting(
            "A population has one table, one configuration and, if any, one validation table for "
            f"each of 1 point or more; {len(tables)}, {len(configs)} and "
            f"{'none' if validation is None else len(validation)} came. Give one of each."
        )
    if controller.kind != "context_head":
        raise InvalidSetting(
            f"Only context heads learn as a population; controller.kind is {controller.kind!r}. "
            "Set controller.kind=context_head, or train the points one by one."
        )
    wanted = dict(shared_settings(configs[0]))
    for point, config in enumerate(configs):
        for name, value in shared_settings(config):
            if value != wanted[name]:
                raise InvalidSetting(
                    f"All points of a population share learn.{name}; point 0 has {wanted[name]!r}, "
                    f"point {point} {value!r}. Train them in two populations."
                )
    for split in (tables, validation or ()):
        for point, table in enumerate(split):
            _check_alike(split[0], table, point)


def _check_alike(first: BanditTable, other: BanditTable, point: int) -> None:
    is_same = first.observations is other.observations or np.array_equal(
        first.observations, other.observations
    )
    if not is_same or first.rewards.shape != other.rewards.shape:
        raise ShapeMismatch(
            "All points of a population see the same observations and choose among the same arms; "
            f"those of point {point} are not those of point 0 (rewards of shape "
            f"{other.rewards.shape} and {first.rewards.shape}). Take all tables from one atlas, "
            "and train points with other arms apart."
        )
