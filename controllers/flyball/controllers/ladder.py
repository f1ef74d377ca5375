"""The rungs that a learned controller is compared with, sample by sample, from the atlas alone.

What is chosen (best arm, hull, thresholds, arms of classes) is chosen by `choose_baselines` on
controller_val; `ladder` only applies it. Means and intervals are taken in `evaluate`.

Axis letters: N samples, K arms.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flyball.controllers import baselines as base
from flyball.controllers.budget import Calibration, priced_choice
from flyball.controllers.cascade import cascade_outcomes, tune_cascade
from flyball.controllers.evaluation import Choices, Rung
from flyball.controllers.informed import InformedHead
from flyball.controllers.protocol import Controller
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import split_code
from flyball.envs.reward import Reward

__all__ = [
    "Subject",
    "budget_curve",
    "check_rows",
    "choose_baselines",
    "fixed_rungs",
    "ladder",
    "learned_rung",
    "mixed_arms",
    "notes_on",
    "seen_in",
]

Floats = NDArray[np.float64]


def choose_baselines(validation: OutcomeAtlas, reward: Reward) -> Choices:
    """Everything that a baseline chooses, on the rows of controller_val."""
    table = base.outcome_table(validation, reward)
    classes = len(validation.header.classes)
    by_class = base.best_arm_of_class(table, validation.label, classes)
    return Choices(
        best_fixed=base.best_fixed_arm(table),
        hull=mixed_arms(table),
        cascade=tune_cascade(validation, reward),
        class_arms=tuple(int(arm) for arm in by_class),
    )


def mixed_arms(table: base.OutcomeTable) -> tuple[int, ...]:
    """The arms that the static mixture uses, chosen on the rows of controller_val."""
    return base.concave_hull(table.gross.mean(axis=0), table.correct.mean(axis=0))


def seen_in(
    atlas: OutcomeAtlas, observations: NDArray[np.float32], split: str
) -> NDArray[np.float32]:
    """The observations of one split's rows, in order."""
    rows = np.flatnonzero(np.asarray(atlas.split) == split_code(split))
    return np.asarray(observations[rows])


def check_rows(atlas: OutcomeAtlas, observations: NDArray[np.float32], used: Sequence[str]) -> None:
    """Refuses observations that are not the atlas's, and an atlas without rows in a split.

    Raises:
        InvalidSetting: either.
    """
    if len(observations) != len(atlas):
        raise InvalidSetting(
            f"An evaluation needs one observation for every row of the outcome table; got "
            f"{len(observations)} for {len(atlas)} rows. Give those of the table's samples."
        )
    sizes = atlas.split_sizes()
    empty = [split for split in used if not sizes[split]]
    if empty:
        raise InvalidSetting(
            f"An evaluation needs samples in {', '.join(used)}; {empty[0]} has none. "
            "Build the outcomes of more samples, or with other data.fractions."
        )


class Subject:
    """One split, the controller's choices on it, and what every arm would give."""

    def __init__(
        self,
        atlas: OutcomeAtlas,
        controller: Controller,
        seen: NDArray[np.float32],
        reward: Reward,
        split: str,
    ) -> None:
        self.atlas, self.reward, self.split = atlas, reward, split
        self.free = base.outcome_table(atlas, reward)
        self.own = base.outcome_table(
            atlas,
            reward,
            controller_macs=controller.macs,
            uses_context=controller.observation == "context",
        )
        self.chosen = np.asarray(controller.choose(seen), np.int64)
        self._controller, self._seen = controller, seen
        arm_count = len(atlas.arms)
        is_known = (self.chosen >= 0) & (self.chosen < arm_count)
        if self.chosen.shape != (len(atlas),) or not is_known.all():
            raise InvalidSetting(
                f"A controller chooses one of {arm_count} arms for each of {len(atlas)} samples; "
                f"it returned shape {self.chosen.shape}, values from "
                f"{self.chosen.min(initial=0)} to {self.chosen.max(initial=0)}. "
                "Return indices of arms, int64 (N,)."
            )

    @cached_property
    def propensities(self) -> NDArray[np.float32]:
        """What the controller gives every arm on every sample, (N, K); asked for once."""
        return self._controller.propensities(self._seen)


def learned_rung(subject: Subject) -> tuple[base.Outcomes, str]:
    """The controller's own outcomes, sample by sample, and what they are called."""
    policy = base.of_choice(subject.chosen, len(subject.atlas.arms))
    return base.outcomes_of(subject.own, policy), "the controller"


def fixed_rungs(subject: Subject) -> dict[str, tuple[base.Outcomes, str]]:
    """Every arm taken on every sample, as "fixed_<u>"."""
    arms = subject.atlas.arms
    return {
        f"fixed_{arm:g}": (base.outcomes_of(subject.free, np.eye(len(arms))[k]), f"u = {arm:g}")
        for k, arm in enumerate(arms)
    }


def ladder(
    subject: Subject, choices: Choices, head: InformedHead
) -> dict[str, tuple[base.Outcomes, str]]:
    """Outcomes and description of every rung, from the worst to the oracle."""
    atlas, free = subject.atlas, subject.free
    arms, count = atlas.arms, len(atlas.arms)
    learned = learned_rung(subject)
    budget = float(learned[0][:, base.METRICS.index("net")].mean())
    mixture = base.static_mixture(choices.hull, free.gross.mean(axis=0), budget)
    by_class = np.asarray(choices.class_arms)[np.asarray(atlas.label)]
    best = choices.best_fixed

    def free_choice(chosen: NDArray[np.int64]) -> base.Outcomes:
        return base.outcomes_of(free, base.of_choice(chosen, count))

    return {
        "worst": (free_choice(base.worst_choice(free)), "the worst-paid arm of every sample"),
        "random": (base.outcomes_of(free, np.full(count, 1 / count)), "every arm alike"),
        **fixed_rungs(subject),
        "best_fixed": (base.outcomes_of(free, np.eye(count)[best]), f"u = {arms[best]:g}"),
        "static_mixture": (base.outcomes_of(free, mixture), _mixture_in_words(arms, mixture)),
        "confidence_cascade": (
            cascade_outcomes(atlas, choices.cascade, subject.reward),
            _cascade_in_words(arms, choices),
        ),
        "learned": learned,
        "per_class_oracle": (free_choice(by_class), "knows the true class"),
        "informed_ceiling": (free_choice(head.choose(atlas)), "sees every arm's answer first"),
        "per_sample_oracle": (free_choice(base.oracle_choice(free)), "knows which arms are right"),
    }


def budget_curve(
    subject: Subject, calibration: Calibration, points: int
) -> dict[str, tuple[base.Outcomes, str]]:
    """The learned controller at budgets between its cheapest and its dearest arm.

    Spread evenly in the root of the cost, as the arms about are.
    """
    curve = {}
    lowest, highest = calibration.budgets[0], calibration.budgets[-1]
    budgets = np.linspace(np.sqrt(lowest), np.sqrt(highest), points) ** 2
    for budget in np.clip(budgets, lowest, highest):
        price = calibration.price(float(budget))
        chosen = priced_choice(subject.propensities, calibration.ratios, price)
        policy = base.of_choice(chosen, len(subject.atlas.arms))
        curve[f"budget_{budget:.4g}"] = (
            base.outcomes_of(subject.own, policy),
            f"asked to spend {budget:.3f} net",
        )
    return curve


def notes_on(subject: Subject, choices: Choices, learned: Rung) -> list[str]:
    notes: list[str] = []
    cost = subject.free.gross.mean(axis=0)[list(choices.hull)]
    if learned.net.mean < cost.min():
        notes.append(
            f"On {subject.split} the learned controller costs {learned.net.mean:.3f} net, less "
            f"than the cheapest arm ({cost.min():.3f}): it is compared with that arm, as no static "
            "mixture costs less."
        )
    if learned.net.mean > cost.max():
        notes.append(
            f"On {subject.split} the learned controller costs {learned.net.mean:.3f} net, more "
            f"than the most accurate fixed arm ({cost.max():.3f}): it is compared with that arm, "
            "as spending more gains a static mixture nothing."
        )
    if len(np.unique(subject.chosen)) == 1:
        notes.append(
            f"On {subject.split} the learned controller chose u = "
            f"{subject.atlas.arms[subject.chosen[0]]:g} for every sample: it is a fixed arm that "
            "also pays for a controller."
        )
    return notes


def _mixture_in_words(arms: tuple[float, ...], policy: Floats) -> str:
    return ", ".join(f"u = {arms[k]:g} for {policy[k]:.0%}" for k in np.flatnonzero(policy))


def _cascade_in_words(arms: tuple[float, ...], choices: Choices) -> str:
    cascade = choices.cascade
    words = f"u = {arms[cascade.arms[0]]:g}"
    for arm, threshold in zip(cascade.arms[1:], cascade.thresholds, strict=True):
        when = "always" if threshold > 1 else f"if less sure than {threshold:.3f}"
        words += f", {when} u = {arms[arm]:g}"
    return words
