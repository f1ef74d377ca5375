"""Evaluation: what a learned controller saves beside everything simpler, from the atlas alone.

Whatever is chosen (best arm, hull, thresholds, arms of classes, prices) is chosen on
controller_val; test is only measured. No data-path forward takes place.

Axis letters: N samples, K arms, R resamples, H hull arms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.controllers import baselines as base
from flyball.controllers.bootstrap import Interval, interval_of, resampled_means
from flyball.controllers.budget import Calibration, calibrate
from flyball.controllers.evaluation import Choices, Evaluation, Rung
from flyball.controllers.informed import InformedHead, fit_informed_head
from flyball.controllers.ladder import Subject, budget_curve, choose_baselines, ladder, notes_on
from flyball.controllers.protocol import Controller, check_arms
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.progress import Progress, Report
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL, TEST, split_code
from flyball.envs.reward import Reward, RewardConfig, account_of

__all__ = ["Evaluation", "EvaluationConfig", "evaluate"]

Floats = NDArray[np.float64]

_USED = (CONTROLLER_TRAIN, CONTROLLER_VAL, TEST)


@dataclass(frozen=True)
class EvaluationConfig:
    """How sure the figures are made.

    Attributes:
        bootstrap: resamples behind every interval, >= 1.
        seed: of the resamples and of the informed head.
        confidence_level: of every interval, in (0, 1).
        budgets: points of the learned controller's budget curve, >= 0.

    Raises:
        InvalidSetting: a value breaks its rule.
    """

    bootstrap: int = 1000
    seed: int = 0
    confidence_level: float = 0.95
    budgets: int = 16

    def __post_init__(self) -> None:
        if self.bootstrap < 1 or self.budgets < 0:
            raise InvalidSetting(
                "An evaluation needs at least 1 resample and 0 budgets or more; bootstrap is "
                f"{self.bootstrap}, budgets {self.budgets}. Set evaluation.bootstrap=1000."
            )
        if not 0.0 < self.confidence_level < 1.0:
            raise InvalidSetting(
                f"A confidence level lies in (0, 1); it is {self.confidence_level}. "
                "Set evaluation.confidence_level=0.95."
            )


def evaluate(
    atlas: OutcomeAtlas,
    controller: Controller,
    observations: NDArray[np.float32],
    reward: Reward | None = None,
    config: EvaluationConfig | None = None,
    *,
    report: Report | None = None,
) -> Evaluation:
    """Measures a learned controller and every baseline on controller_val and on test.

    Args:
        atlas: outcomes of N samples; needs rows in controller_train, controller_val and test.
        controller: what was learned.
        observations: what the controller sees of every row of the atlas, (N, ...).
        reward: what a choice is paid; TNN Eq. 3 by default.
        config: how many resamples, which level, which seed.
        report: told of every stage.

    Raises:
        ArmMismatch: the controller has other arms than the atlas.
        InvalidSetting: a split has no rows, the observations are not those of the atlas, or the
            controller chose an arm that does not exist.
        NotFinite: a reward is NaN or infinite.
    """
    reward = RewardConfig() if reward is None else reward
    config = EvaluationConfig() if config is None else config
    tell = report or (lambda progress: None)
    check_arms(controller, atlas.arms, "the outcome table")
    _check_rows(atlas, observations)
    parts = {split: atlas.take(split) for split in _USED}
    tell(Progress("evaluate", 0, 4, "baselines"))
    choices = choose_baselines(parts[CONTROLLER_VAL], reward)
    tell(Progress("evaluate", 1, 4, "informed ceiling"))
    head = fit_informed_head(
        parts[CONTROLLER_TRAIN], parts[CONTROLLER_VAL], reward, seed=config.seed
    )
    calibration: Calibration | None = None
    measures: dict[str, _Measure] = {}
    for done, split in enumerate((CONTROLLER_VAL, TEST), start=2):
        tell(Progress("evaluate", done, 4, split))
        seen = np.asarray(
            observations[np.flatnonzero(np.asarray(atlas.split) == split_code(split))]
        )
        subject = Subject(parts[split], controller, seen, reward, split)
        if calibration is None:
            calibration = calibrate(subject.propensities, subject.own.net)
        measures[split] = _measure(subject, choices, head, calibration, config)
    tell(Progress("evaluate", 4, 4))
    test = measures[TEST]
    return Evaluation(
        arms=atlas.arms,
        classes=atlas.header.classes,
        account=account_of(reward),
        level=config.confidence_level,
        samples={split: len(part) for split, part in parts.items()},
        full_macs=atlas.header.full_macs,
        controller_macs=controller.macs,
        context_macs=_mean_context(parts[TEST]) if controller.observation == "context" else 0,
        rungs=test.rungs,
        validation_rungs=measures[CONTROLLER_VAL].rungs,
        budget_curve=test.budget_curve,
        gain_over_static={split: m.gain_over_static for split, m in measures.items()},
        gain_at_gross={split: m.gain_at_gross for split, m in measures.items()},
        share_of_informed_ceiling={split: m.share for split, m in measures.items()},
        choices=choices,
        histogram=test.histogram,
        class_histogram=test.class_histogram,
        notes=tuple(note for m in measures.values() for note in m.notes),
    )


@dataclass(frozen=True)
class _Measure:
    """What was found on one split."""

    rungs: tuple[Rung, ...]
    budget_curve: tuple[Rung, ...]
    gain_over_static: Interval
    gain_at_gross: Interval
    share: float | None
    histogram: tuple[float, ...]
    class_histogram: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...]


def _measure(
    subject: Subject,
    choices: Choices,
    head: InformedHead,
    calibration: Calibration,
    config: EvaluationConfig,
) -> _Measure:
    rungs_of = ladder(subject, choices, head)
    curve = budget_curve(subject, calibration, config.budgets)
    named = rungs_of | curve
    samples = _Samples(named, config, split_code(subject.split))
    rungs = {name: samples.rung(name, detail) for name, (_, detail) in named.items()}
    share, share_note = _share_of_ceiling(samples, subject.split)
    policy = base.of_choice(subject.chosen, len(subject.atlas.arms))
    by_class = []
    for label in range(len(subject.atlas.header.classes)):
        rows = policy[np.asarray(subject.atlas.label) == label]
        by_class.append(tuple(float(s) for s in rows.sum(axis=0) / max(1, len(rows))))
    return _Measure(
        rungs=tuple(rungs[name] for name in rungs_of),
        budget_curve=tuple(rungs[name] for name in curve),
        gain_over_static=samples.gain(subject.atlas.arms, choices.hull, "net"),
        gain_at_gross=samples.gain(subject.atlas.arms, choices.hull, "gross"),
        share=share,
        histogram=tuple(float(s) for s in policy.mean(axis=0)),
        class_histogram=tuple(by_class),
        notes=(*notes_on(subject, choices, rungs["learned"]), *share_note),
    )


class _Samples:
    """Means and resampled means of every rung of one split; all rungs share the resamples."""

    def __init__(
        self,
        named: dict[str, tuple[base.Outcomes, str]],
        config: EvaluationConfig,
        split: int,
    ) -> None:
        columns = np.concatenate([outcomes for outcomes, _ in named.values()], axis=1)
        rng = np.random.default_rng([config.seed, split])
        self.level = config.confidence_level
        self.start = {name: len(base.METRICS) * i for i, name in enumerate(named)}
        self.mean = columns.mean(axis=0)[None, :]
        self.resampled = resampled_means(columns, config.bootstrap, rng)

    def column(self, name: str, metric: str) -> tuple[Floats, Floats]:
        """A figure on the samples as they are, (1,), and on every resample, (R,)."""
        index = self.start[name] + base.METRICS.index(metric)
        return self.mean[:, index], self.resampled[:, index]

    def interval(self, estimate: Floats, resampled: Floats) -> Interval:
        return interval_of(float(estimate[0]), resampled, self.level)

    def rung(self, name: str, detail: str) -> Rung:
        figures = {m: self.interval(*self.column(name, m)) for m in base.METRICS}
        return Rung(name=name, detail=detail, **figures)

    def gain(self, arms: tuple[float, ...], hull: tuple[int, ...], account: str) -> Interval:
        """Accuracy over the static mixture that spends as much as the learned controller.

        In every resample the mixture is moved to that resample's cost.
        """
        names = [f"fixed_{arms[arm]:g}" for arm in hull]
        learned = self.column("learned", "accuracy")
        budget = self.column("learned", account)
        gains = []
        for which in (0, 1):
            cost = np.stack([self.column(name, "gross")[which] for name in names], axis=1)
            accuracy = np.stack([self.column(name, "accuracy")[which] for name in names], axis=1)
            gains.append(learned[which] - _mixture_accuracy(cost, accuracy, budget[which]))
        return self.interval(*gains)

    def advantage(self, name: str) -> tuple[float, Interval]:
        """Reward over the best fixed arm, paired."""
        pairs = zip(self.column(name, "reward"), self.column("best_fixed", "reward"), strict=True)
        gains = [theirs - fixed for theirs, fixed in pairs]
        return float(gains[0][0]), self.interval(*gains)


def _mixture_accuracy(cost: Floats, accuracy: Floats, budget: Floats) -> Floats:
    """Accuracy of the hull (R, H) at one budget a resample, (R,)."""
    order = np.argsort(cost, axis=1, kind="stable")
    cost, accuracy = np.take_along_axis(cost, order, 1), np.take_along_axis(accuracy, order, 1)
    rows = zip(budget, cost, accuracy, strict=True)
    return np.array([np.interp(b, c, a) for b, c, a in rows], np.float64)


def _share_of_ceiling(samples: _Samples, split: str) -> tuple[float | None, tuple[str, ...]]:
    learned, _ = samples.advantage("learned")
    ceiling, interval = samples.advantage("informed_ceiling")
    if interval.low <= 1e-9:
        note = (
            f"On {split} the informed ceiling is not above the best fixed arm beyond chance "
            f"({ceiling:+.4f} reward): there is nothing to take a share of."
        )
        return None, (note,)
    return learned / ceiling, ()


def _mean_context(part: OutcomeAtlas) -> int:
    """MACs of one context, mean over samples."""
    return round(float(part.context_costs().mean()))


def _check_rows(atlas: OutcomeAtlas, observations: NDArray[np.float32]) -> None:
    if len(observations) != len(atlas):
        raise InvalidSetting(
            f"An evaluation needs one observation for every row of the outcome table; got "
            f"{len(observations)} for {len(atlas)} rows. Give those of the table's samples."
        )
    sizes = atlas.split_sizes()
    empty = [split for split in _USED if not sizes[split]]
    if empty:
        raise InvalidSetting(
            f"An evaluation needs samples in {', '.join(_USED)}; {empty[0]} has none. "
            "Build the outcomes of more samples, or with other data.fractions."
        )
