"""What a trial reports to Tune, and when: each report is a call from the driver and back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from flyball.controllers.learn import LearnConfig
from flyball.controllers.learned import is_look_due
from flyball.datapaths.errors import FlyballError
from flyball.datapaths.progress import Progress
from flyball.platform.sweep.result import PointResult
from flyball.platform.sweep.task import TrialTask

__all__ = ["PERCENT", "SCORE", "Told"]

SCORE, PERCENT = "gain_over_static", "percent"
LEAST_SCORE = -1.0  # of a point that is not measured yet: no gain is lower
_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass
class Told:
    """What was reported to Tune, and what waits to be."""

    task: TrialTask
    looks: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    broken: dict[str, tuple[str, str]] = field(default_factory=dict)
    score: float = LEAST_SCORE
    percent: float = 0.0
    seen: int = 0
    at: float = field(default_factory=time.monotonic)

    def begin(self, updates: int) -> None:
        """A point begins, or goes on after so many updates, at which it was looked at."""
        self.seen = updates

    def is_due(self, config: LearnConfig, progress: Progress) -> bool:
        """Whether this report of a learner came with a look at the validation rows."""
        return "validation_reward" in progress.values and is_look_due(
            self.seen, progress.done, updates=config.updates, looks=config.validations
        )

    def look(
        self,
        key: str,
        config: LearnConfig,
        progress: Progress,
        gain: float | None,
        *,
        is_mean: bool = False,
    ) -> None:
        """Takes one report; tells Tune in time, and of every look if those are measured."""
        is_due = self.is_due(config, progress)
        self.seen = progress.done
        self.percent = 100.0 * progress.done / progress.total
        if not is_due:
            return
        if gain is not None:
            self.score = gain
        figures = {
            "val/reward": float(progress.values["validation_reward"]),
            "train/reward": float(progress.values["reward"]),
            "train/entropy": float(progress.values["entropy"]),
        }
        if not is_mean:
            self.looks.append((key, progress.done, figures))
        is_time = time.monotonic() - self.at >= _SECONDS_BETWEEN_REPORTS
        if self.task.measures_looks or is_time:
            self.flush(is_forced=True)

    def finished(self, result: PointResult) -> None:
        self.done.append(result.key)
        self.score, self.percent = result.gain_over_static.mean, 100.0

    def failed(self, key: str, error: FlyballError) -> None:
        self.broken[key] = (type(error).__name__, str(error))
        self.flush()

    @contextmanager
    def failing(self, key: str) -> Iterator[None]:
        """Reports an error of Flyball as this point's; Tune would only try it again."""
        try:
            yield
        except FlyballError as error:
            self.failed(key, error)

    def flush(self, *, is_forced: bool = False) -> None:
        """Reports what waits."""
        if not (self.looks or self.done or self.broken or is_forced):
            return
        report: Callable[[dict[str, Any]], None] = tune.report
        content = {
            "looks": self.looks,
            "finished": self.done,
            "failed": self.broken,
            SCORE: self.score,
            PERCENT: self.percent,
        }
        self.looks, self.done, self.broken = [], [], {}
        report(content)
        self.at = time.monotonic()
