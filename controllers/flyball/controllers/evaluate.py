"""Evaluation: what a learned controller saves beside everything simpler, from the atlas alone.

Whatever is chosen (best arm, hull, thresholds, arms of classes, prices) is chosen on
controller_val; test is only measured. No data-path forward takes place.

Axis letters: N samples, K arms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.controllers import baselines as base
from flyball.controllers.bootstrap import Interval
from flyball.controllers.budget import Calibration, calibrate
from flyball.controllers.evaluation import Choices, Evaluation, Rung
from flyball.controllers.informed import InformedHead, fit_informed_head
from flyball.controllers.ladder import (
    Subject,
    budget_curve,
    check_rows,
    choose_baselines,
    ladder,
    notes_on,
    seen_in,
)
from flyball.controllers.protocol import Controller, check_arms
from flyball.controllers.rung_samples import RungSamples
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.progress import Progress, Report
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL, TEST, split_code
from flyball.envs.reward import Reward, RewardConfig, account_of

__all__ = ["Evaluation", "EvaluationConfig", "evaluate"]

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
    check_rows(atlas, observations, _USED)
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
        seen = seen_in(atlas, observations, split)
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
    samples = RungSamples(
        named,
        resamples=config.bootstrap,
        level=config.confidence_level,
        seed=(config.seed, split_code(subject.split)),
    )
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


def _share_of_ceiling(samples: RungSamples, split: str) -> tuple[float | None, tuple[str, ...]]:
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
