"""What an evaluation found, as values and as JSON; `evaluate` computes it, a report draws it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from flyball.controllers.baselines import METRICS
from flyball.controllers.bootstrap import Interval
from flyball.controllers.cascade import Cascade
from flyball.datapaths.errors import CorruptArtifact, unknown_name
from flyball.datapaths.splits import CONTROLLER_VAL, TEST

__all__ = ["Choices", "Evaluation", "Rung", "is_beaten_by_static", "is_beyond_chance"]

FORMAT = 1

_ROUNDING = 1e-9
"""A gain below this is the rounding of equal figures, not a gain."""


@dataclass(frozen=True)
class Rung:
    """How one way of choosing arms did on one split.

    Attributes:
        name: such as "best_fixed" or "learned".
        accuracy: mean share of right answers, in [0, 1].
        utilization: mean u of the arm that answered, in (0, 1].
        gross: mean throttle ratio of the data path alone.
        net: mean throttle ratio with the controller and its context, where it has them.
        reward: mean reward in the evaluation's account.
        detail: what was chosen, in words.
    """

    name: str
    accuracy: Interval
    utilization: Interval
    gross: Interval
    net: Interval
    reward: Interval
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields; an interval is [mean, low, high]."""
        figures = {metric: getattr(self, metric).to_json() for metric in METRICS}
        return {"name": self.name, "detail": self.detail, **figures}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Rung":
        """The inverse of `to_json`."""
        figures = {metric: Interval.from_json(value[metric]) for metric in METRICS}
        return cls(name=str(value["name"]), detail=str(value["detail"]), **figures)


@dataclass(frozen=True)
class Choices:
    """Everything that the baselines chose, all of it on controller_val.

    Attributes:
        best_fixed: index of the arm with the largest mean reward.
        hull: indices of the arms that the static mixture uses.
        cascade: arms and thresholds of the confidence cascade.
        class_arms: index of the best arm of every true class.
    """

    best_fixed: int
    hull: tuple[int, ...]
    cascade: Cascade
    class_arms: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """The ladder of a learned controller; rungs on `test`, and on `controller_val`.

    Attributes:
        arms: the K utilizations.
        classes: class names.
        account: throttle ratio that the reward charges, "gross" or "net".
        level: confidence level of every interval.
        samples: rows of each split that was used.
        full_macs: multiply-accumulates of the data path at u = 1.
        controller_macs: of one choice, the context not counted.
        context_macs: of the context; 0 where the controller sees the image.
        rungs: on test; the fixed arms are among them as "fixed_<u>".
        validation_rungs: the same on controller_val.
        budget_curve: the learned controller on test at a row of budgets, calibrated on
            controller_val; named "budget_<net throttle ratio asked>".
        gain_over_static: per split, accuracy of the learned controller less that of the static
            mixture at the same net cost; 0.01 is one point. Paired intervals.
        gain_at_gross: the same at the same gross cost: the controller taken as free, as published.
        share_of_informed_ceiling: per split, (learned - best fixed) / (informed - best fixed) in
            reward; None where the ceiling is not above the best fixed arm beyond chance.
        choices: what the baselines chose on controller_val.
        histogram: share of the test samples that each arm was chosen for, (K,).
        class_histogram: the same within every true class; zeros for a class without samples.
        notes: what a reader must know to read the figures.
    """

    arms: tuple[float, ...]
    classes: tuple[str, ...]
    account: str
    level: float
    samples: dict[str, int]
    full_macs: int
    controller_macs: int
    context_macs: int
    rungs: tuple[Rung, ...]
    validation_rungs: tuple[Rung, ...]
    budget_curve: tuple[Rung, ...]
    gain_over_static: dict[str, Interval]
    gain_at_gross: dict[str, Interval]
    share_of_informed_ceiling: dict[str, float | None]
    choices: Choices
    histogram: tuple[float, ...]
    class_histogram: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def beats_static(self) -> bool:
        """The gain over the static mixture on controller_val is positive beyond chance."""
        return is_beyond_chance(self.gain_over_static[CONTROLLER_VAL])

    @property
    def dominated(self) -> bool:
        """A static mixture of the same net cost does as well or better on controller_val."""
        return is_beaten_by_static(self.gain_over_static[CONTROLLER_VAL])

    def rung(self, name: str, split: str = TEST) -> Rung:
        """One rung by name.

        Raises:
            UnknownName: there is none of that name.
        """
        rungs = self._of_split(split)
        for rung in rungs:
            if rung.name == name:
                return rung
        raise unknown_name("rung", name, [rung.name for rung in rungs])

    def curve(self, split: str = TEST) -> tuple[Rung, ...]:
        """The fixed arms in order: the accuracy-utilization curve."""
        return tuple(rung for rung in self._of_split(split) if rung.name.startswith("fixed_"))

    def summary(self) -> dict[str, float]:
        """The figures that a table of runs compares, flat; fixed arms left out."""
        figures: dict[str, float] = {}
        for split in (CONTROLLER_VAL, TEST):
            for rung in self._of_split(split):
                if not rung.name.startswith("fixed_"):
                    for metric in METRICS:
                        figures[f"{split}/{rung.name}/{metric}"] = getattr(rung, metric).mean
            gain = self.gain_over_static[split]
            figures[f"{split}/gain_over_static"] = gain.mean
            figures[f"{split}/gain_over_static_low"] = gain.low
            figures[f"{split}/gain_over_static_high"] = gain.high
            figures[f"{split}/gain_at_gross"] = self.gain_at_gross[split].mean
            share = self.share_of_informed_ceiling[split]
            if share is not None:
                figures[f"{split}/share_of_informed_ceiling"] = share
        figures["beats_static"] = float(self.beats_static)
        figures["dominated"] = float(self.dominated)
        return figures

    def to_json(self) -> dict[str, Any]:
        """Plain values, `summary`, `dominated` and `beats_static` among them."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("rungs", "validation_rungs", "budget_curve"):
            plain[name] = [rung.to_json() for rung in plain[name]]
        for name in ("gain_over_static", "gain_at_gross"):
            plain[name] = {split: gain.to_json() for split, gain in plain[name].items()}
        for name in ("arms", "classes", "histogram", "notes"):
            plain[name] = list(plain[name])
        plain["class_histogram"] = [list(shares) for shares in self.class_histogram]
        plain["choices"] = {
            "best_fixed": self.choices.best_fixed,
            "hull": list(self.choices.hull),
            "cascade_arms": list(self.choices.cascade.arms),
            "cascade_thresholds": list(self.choices.cascade.thresholds),
            "class_arms": list(self.choices.class_arms),
        }
        return plain | {
            "format": FORMAT,
            "beats_static": self.beats_static,
            "dominated": self.dominated,
            "summary": self.summary(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_json`.

        Raises:
            CorruptArtifact: a field is missing or of another type.
        """
        try:
            return cls(**_parsed(value))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptArtifact(
                f"This is no evaluation of format {FORMAT} ({error!r}). "
                "Run `flyball evaluate` again."
            ) from error

    def _of_split(self, split: str) -> tuple[Rung, ...]:
        known = {TEST: self.rungs, CONTROLLER_VAL: self.validation_rungs}
        if split not in known:
            raise unknown_name("evaluated split", split, known)
        return known[split]


def is_beyond_chance(gain: Interval) -> bool:
    """A gain over the static mixture whose whole interval is above zero."""
    return gain.low > _ROUNDING


def is_beaten_by_static(gain: Interval) -> bool:
    """A gain that is none: a static mixture of the same net cost does as well or better."""
    return gain.mean <= _ROUNDING


def _parsed(value: Mapping[str, Any]) -> dict[str, Any]:
    parsed = {field.name: value[field.name] for field in fields(Evaluation)}
    for name in ("rungs", "validation_rungs", "budget_curve"):
        parsed[name] = tuple(Rung.from_json(rung) for rung in parsed[name])
    for name in ("gain_over_static", "gain_at_gross"):
        parsed[name] = {k: Interval.from_json(gain) for k, gain in parsed[name].items()}
    for name in ("arms", "classes", "histogram", "notes"):
        parsed[name] = tuple(parsed[name])
    parsed["class_histogram"] = tuple(tuple(shares) for shares in parsed["class_histogram"])
    chosen = parsed["choices"]
    parsed["choices"] = Choices(
        best_fixed=int(chosen["best_fixed"]),
        hull=tuple(chosen["hull"]),
        cascade=Cascade(tuple(chosen["cascade_arms"]), tuple(chosen["cascade_thresholds"])),
        class_arms=tuple(chosen["class_arms"]),
    )
    return parsed
