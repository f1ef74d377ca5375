"""A point of a sweep: values of the swept fields, the job they make, and its key."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.sweep.space import Settings

__all__ = ["Point", "make_points"]


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        key: 16 hex digits; the same for the same preset, overrides, settings and atlas.
        settings: (field, value as text) of every swept field.
    """

    key: str
    settings: Settings

    @classmethod
    def of(cls, base: Job, settings: Settings, atlas: str) -> "Point":
        """The point of these settings.

        Args:
            base: the job that the sweep varies.
            settings: (field, value as text).
            atlas: fingerprint of the sweep's atlas.

        Raises:
            UnknownName, InvalidSetting: the settings make no job.
        """
        job = with_overrides(base, [f"{field}={value}" for field, value in settings])
        parts = (asdict(part) for part in (job.reward, job.controller, job.learn, job.evaluation))
        return cls(fingerprint_of("point", atlas, job.name, job.arms, *parts), settings)

    def job(self, base: Job) -> Job:
        """The base job with this point's settings."""
        return with_overrides(base, [f"{field}={value}" for field, value in self.settings])

    @property
    def name(self) -> str:
        """For people: last parts of the fields with their values."""
        return " ".join(f"{field.rpartition('.')[2]}={value}" for field, value in self.settings)


def make_points(base: Job, settings: Iterable[Settings], atlas: str) -> tuple[Point, ...]:
    """The points of a sweep.

    Raises:
        UnknownName, InvalidSetting: some settings make no job, or two make the same one.
    """
    points: dict[str, Point] = {}
    for chosen in settings:
        point = Point.of(base, chosen, atlas)
        if point.key in points:
            raise InvalidSetting(
                f"Points of a sweep differ; {point.name!r} and {points[point.key].name!r} are the "
                "same job. Give every value once."
            )
        points[point.key] = point
    return tuple(points.values())
