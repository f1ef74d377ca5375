"""How a controller learns: settings, loss, and the plain torch learner the others must match.

RLlib's learners live in `rllib`, what learners give back in `learned`, which arm a trained network
serves under a budget in `budget`.
Axis letters: N samples, K arms, B batch.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from flyball.controllers.estimators import (
    Estimator,
    all_arm_loss,
    behaviour,
    entropy_of,
    epsilon_at,
    paper_loss,
    ratio_loss,
    sample_arms,
)
from flyball.controllers.learned import BanditTable, BestByValidation, Learned, UpdateLog
from flyball.controllers.networks import fit_standardisation
from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.progress import Progress, Report, silent

__all__ = [
    "BanditTable",
    "LearnConfig",
    "Learned",
    "bandit_loss",
    "learn_plain",
    "make_optimizer",
    "paper_settings",
    "run_updates",
    "watch_validation",
]

Algorithm = Literal["rllib_atlas", "rllib_runner", "plain", "ppo", "dqn"]
OptimizerName = Literal["adam", "rmsprop"]
STAGE = "controller"


@dataclass(frozen=True)
class LearnConfig:
    """How a controller learns.

    Attributes:
        algorithm: "rllib_atlas", RLlib with the reward table in its Learner; "rllib_runner",
            RLlib sampling an environment in batches; "plain", torch alone; "ppo" and "dqn",
            RLlib's own, as baselines.
        estimator: the gradient (see `estimators`); PPO and DQN have their own.
        learning_rate: > 0.
        batch_size: samples of an update, >= 1.
        updates: updates in all, >= 1.
        updates_per_iteration: updates between two looks at the figures, >= 1.
        entropy: weight of the entropy bonus, >= 0.
        epsilon_start, epsilon_end: share of uniform choices, in [0, 1), falling in a straight
            line over the run.
        optimizer: "adam" or "rmsprop".
        weight_decay: decoupled for adam, >= 0.
        validations: looks at the validation table in a run, >= 1.
        seed: of weights, samples and choices.

    Raises:
        UnknownName: no such algorithm, estimator or optimizer.
        InvalidSetting: a value breaks its rule.
    """

    algorithm: Algorithm = "rllib_atlas"
    estimator: Estimator = "all_arm"
    learning_rate: float = 1e-3
    batch_size: int = 512
    updates: int = 2000
    updates_per_iteration: int = 16
    entropy: float = 0.1
    epsilon_start: float = 0.3
    epsilon_end: float = 0.02
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    validations: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("algorithm", get_args(Algorithm)),
            ("estimator", get_args(Estimator)),
            ("optimizer", get_args(OptimizerName)),
        ):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        for name in ("batch_size", "updates", "updates_per_iteration", "validations"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, int) and value >= 1, "a whole number >= 1")
        for name in ("learning_rate", "entropy", "weight_decay"):
            value = getattr(self, name)
            is_finite = isinstance(value, int | float) and math.isfinite(value)
            least = "> 0" if name == "learning_rate" else ">= 0"
            is_fine = is_finite and (value > 0 or (value == 0 and least == ">= 0"))
            _check(name, value, is_fine, f"finite and {least}")
        for name in ("epsilon_start", "epsilon_end"):
            value = getattr(self, name)
            is_share = isinstance(value, int | float) and 0.0 <= value < 1.0
            _check(name, value, is_share, "in [0, 1)")
        _check("seed", self.seed, isinstance(self.seed, int) and self.seed >= 0, "an int >= 0")
        if self.algorithm == "rllib_runner" and self.estimator == "all_arm":
            raise InvalidSetting(
                "The all_arm gradient needs what every arm would have paid, and rllib_runner sees "
                "the chosen arm's reward alone. Set learn.estimator=ratio, or "
                "learn.algorithm=rllib_atlas."
            )

    @property
    def samples(self) -> int:
        """Contexts drawn in a whole run."""
        return self.updates * self.batch_size

    def epsilon(self, samples_done: int) -> float:
        """Share of uniform choices after so many samples."""
        return epsilon_at(samples_done, self.samples, self.epsilon_start, self.epsilon_end)


def paper_settings(**changes: Any) -> LearnConfig:
    """Phase 2 as published for gestures (TNN 4.5 and Alg. 1): RMSprop 1e-7, batch 15.

    No baseline, no correction for exploration, no entropy bonus. How large epsilon was is not
    published: 0.1 throughout is our reading. `changes` override fields by name.
    """
    published = LearnConfig(
        estimator="paper",
        optimizer="rmsprop",
        learning_rate=1e-7,
        batch_size=15,
        entropy=0.0,
        epsilon_start=0.1,
        epsilon_end=0.1,
    )
    return replace(published, **changes)


def learn_plain(
    table: BanditTable,
    network: nn.Module,
    config: LearnConfig,
    *,
    validation: BanditTable | None = None,
    report: Report = silent,
) -> Learned:
    """Trains a copy of `network` on a table with torch alone.

    The copy's `Standardise`, if it has one, is fitted from the table's observations first.

    Args:
        table: what to learn from.
        network: gives logits (B, K); its weights are the start, and stay as they are.
        config: everything but `algorithm` is used.
        validation: keeps the weights whose greedy policy earns most here, instead of the last.
        report: told once an iteration.

    Raises:
        NotFinite: a reward or a loss is NaN or infinite; names the update that made it.
    """
    network = copy.deepcopy(network).train()
    fit_standardisation(network, table.observations)
    optimizer = make_optimizer(
        network.parameters(),
        config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    observations, rewards = table.tensors()
    rows = np.random.default_rng(config.seed)
    arms = torch.Generator().manual_seed(config.seed)
    best, log = watch_validation(config, validation), UpdateLog()
    updates = 0
    while updates < config.updates:
        count = min(config.updates_per_iteration, config.updates - updates)
        drawn = torch.from_numpy(rows.integers(len(table), size=(count, config.batch_size)))
        run_updates(
            network,
            optimizer,
            ((observations[row], rewards[row]) for row in drawn),
            config,
            epsilon=config.epsilon(updates * config.batch_size),
            generator=arms,
            log=log,
        )
        updates += count
        best.note(log.finish(updates), lambda: network)
        report(Progress(STAGE, updates, config.updates, values=best.figures()))
    return best.learned(network)


def run_updates(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: LearnConfig,
    *,
    epsilon: float,
    generator: torch.Generator,
    log: UpdateLog,
) -> None:
    """One gradient step for each batch of observations (B, ...) and all rewards (B, K)."""
    for observations, rewards in batches:
        loss, reward, entropy = bandit_loss(
            network(observations),
            rewards,
            config.estimator,
            epsilon=epsilon,
            entropy_weight=config.entropy,
            generator=generator,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        log.add(loss, reward, entropy)


def bandit_loss(
    logits: Tensor,
    rewards: Tensor,
    estimator: Estimator,
    *,
    epsilon: float,
    entropy_weight: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One update's loss from what every arm would pay; samples arms where the estimator does.

    Args:
        logits: of the policy, with gradient; (B, K).
        rewards: what every arm pays; (B, K).
        estimator: which gradient.
        epsilon: share of uniform choices, in [0, 1).
        entropy_weight: of the bonus, >= 0.
        generator: draws the arms.

    Returns:
        The loss, and without gradient the batch's mean reward and the policy's mean entropy:
        the reward of the arms drawn, or under "all_arm" what the policy would expect.
    """
    log_policy = torch.log_softmax(logits, -1)
    policy = log_policy.exp()
    if estimator == "all_arm":
        loss = all_arm_loss(policy, rewards)
        reward = -loss.detach()
    else:
        with torch.no_grad():
            behaved = behaviour(policy, epsilon)
            arm = sample_arms(behaved, generator)
            paid = rewards.gather(1, arm)
            reward = paid.mean()
        if estimator == "ratio":
            chance = behaved.gather(1, arm)
            loss = ratio_loss(log_policy, arm, chance, paid, epsilon=epsilon)
        else:
            loss = paper_loss(log_policy, arm, paid)
    if entropy_weight == 0.0:
        with torch.no_grad():
            return loss, reward, entropy_of(policy, log_policy)
    entropy = entropy_of(policy, log_policy)
    return loss - entropy_weight * entropy, reward, entropy.detach()


def watch_validation(config: LearnConfig, table: BanditTable | None) -> BestByValidation:
    """The bookkeeping of a run with these settings."""
    return BestByValidation(
        table,
        updates=config.updates,
        looks=config.validations,
        batch_size=config.batch_size,
    )


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerName,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer of that name; "adam" is AdamW, which without weight decay is Adam."""
    if optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def _check(name: str, value: Any, is_fine: bool, rule: str) -> None:
    if not is_fine or isinstance(value, bool):
        known = {field.name: field.default for field in fields(LearnConfig)}
        raise InvalidSetting(
            f"{name} must be {rule}; it is {value!r}. Set it with --set learn.{name}={known[name]}."
        )
