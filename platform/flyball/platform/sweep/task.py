"""What Tune hands to a trial: paths and plain values, and the points that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flyball.platform.job import Job
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.space import Settings, number_text

__all__ = ["POINTS", "TASK", "TrialTask", "points_of"]

TASK, POINTS = "task", "points"  # of a trial's configuration


@dataclass(frozen=True)
class TrialTask:
    """What is the same for all trials of a sweep.

    Attributes:
        base: the job that the points vary.
        folder: of the sweep.
        atlas: folder of its atlas.
        atlas_fingerprint: of it.
        fields: the swept fields.
        images: .npy of the images, where controllers look at images.
        measures_looks: every look is measured and reported alone, to end points early.
        gpus: of a trial.
        code: see `nodes.check_code`.
    """

    base: Job
    folder: str
    atlas: str
    atlas_fingerprint: str
    fields: tuple[str, ...]
    images: str | None = None
    measures_looks: bool = False
    gpus: float = 0.0
    code: str = ""


def points_of(config: Mapping[str, Any]) -> tuple[Point, ...]:
    """The points of a trial, from the configuration that Tune gives it.

    Raises:
        UnknownName, InvalidSetting: the values make no job.
    """
    task: TrialTask = config[TASK]
    chosen: Sequence[Settings] = config.get(POINTS) or (
        tuple((name, _text(config[name])) for name in task.fields),
    )
    return tuple(Point.of(task.base, settings, task.atlas_fingerprint) for settings in chosen)


def _text(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else str(value)
