"""What the driver does when a point begins, reports or ends: its run, the table, the counts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flyball.datapaths.errors import CodeSkew, FlyballError, StorageError
from flyball.platform.job import Job
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.progress_table import ProgressTable
from flyball.platform.sweep.result import PointResult
from flyball.platform.tracking.sweep_runs import SweepRuns

__all__ = ["SweepWatch", "point_summary"]

# What ends the sweep and not only the point: it would befall every other.
ENDING: dict[str, type[FlyballError]] = {
    error.__name__: error for error in (StorageError, CodeSkew)
}


class SweepWatch:
    """Listens to Tune (see `tuning.Listener`).

    Attributes:
        trained: keys of points that were finished by this process.
        failures: (kind, message) of points that could not be trained, by key.
        repeats: why points were begun again, by key.
    """

    def __init__(
        self, folder: SweepFolder, base: Job, runs: SweepRuns, table: ProgressTable
    ) -> None:
        self._folder, self._base, self._runs, self._table = folder, base, runs, table
        self._names: dict[str, str] = {}
        self._there = set(folder.results())
        self.trained: set[str] = set()
        self.failures: dict[str, tuple[str, str]] = {}
        self.repeats: dict[str, str] = {}

    def reuse(self) -> int:
        """Makes sure that all points which lie there are recorded; gives how many are finished."""
        for result in self._folder.results().values():
            self._record(result)
            self._table.finished(result, is_reused=True)
        for key, record in self._folder.stopped().items():
            point = Point(key, tuple((name, value) for name, value in record["settings"]))
            self._start(point)
            self._finish_stopped(key, record)
            self._table.ended(key, point.name, f"early, at {record['percent']:.0f} % (reused)")
        return len(self._there)

    def started(self, point: Point) -> None:
        """Starts its run."""
        if self._folder.starts(point.key) and point.key not in self._there:
            self.repeats.setdefault(point.key, "the sweep was interrupted while it learned")
        self._start(point)
        self._table.started(point.key, point.name)

    def looked(self, key: str, updates: int, figures: dict[str, float]) -> None:
        """Records a look at the validation rows."""
        self._runs.log(key, updates, figures)
        self._table.looked(key, updates)

    def finished(self, key: str) -> None:
        """Records the result."""
        result = PointResult.load(self._folder.result_file(key))
        if key not in self._there:
            self.trained.add(key)
        self._record(result)
        self._table.finished(result, is_reused=key in self._there)

    def failed(self, key: str, kind: str, message: str) -> None:
        """Ends the run of a point that cannot be trained.

        Raises:
            StorageError: it could not be written, and so could no other.
            CodeSkew: its node runs other code.
        """
        if kind in ENDING:
            raise ENDING[kind](f"{message} Then run the same command with --resume.")
        if self._folder.result_file(key).exists():
            return  # of a batch that broke later
        self.failures[key] = (kind, message)
        if key in self._names:
            tags = {"flyball.failure": f"{kind}: {message}"[:480]}
            self._runs.finish_point(key, summary={}, tags=tags, status="FAILED")
        self._table.ended(key, self._names.get(key, key), f"{kind}: {message}")

    def ended_early(self, point: Point, percent: float, score: float) -> None:
        """Notes where it was when it was ended, so that it is not begun again."""
        record = {
            "settings": [list(pair) for pair in point.settings],
            "percent": percent,
            "gain_over_static": score,
        }
        self._folder.stop_point(point.key, record)
        self._finish_stopped(point.key, record)
        self._table.ended(point.key, point.name, f"early, at {percent:.0f} % of its updates")

    def repeated(self, points: Sequence[Point], reason: str) -> None:
        """Says what is begun again, and why."""
        for point in points:
            if not self._folder.result_file(point.key).exists():
                self.repeats[point.key] = reason
                self._table.repeated(point.name, reason)

    def _start(self, point: Point) -> None:
        self._names[point.key] = point.name
        job = point.job(self._base)
        self._runs.start_point(
            point.key,
            point.name,
            params={
                "arms": job.arms,
                "reward": asdict(job.reward),
                "controller": asdict(job.controller),
                "learn": asdict(job.learn),
            },
            tags={"flyball.preset": job.name},
        )

    def _record(self, result: PointResult) -> None:
        self._start(Point(result.key, result.settings))
        tags = {f"flyball.{name}": value for name, value in result.fingerprints.items()}
        tags |= {f"flyball.version.{name}": value for name, value in result.versions.items()}
        self._runs.finish_point(
            result.key,
            summary=point_summary(result),
            curve=result.curve,
            tags=tags | {"flyball.seed": str(result.seed), "flyball.starts": str(result.starts)},
        )

    def _finish_stopped(self, key: str, record: dict[str, Any]) -> None:
        self._runs.finish_point(
            key,
            summary={"gain_over_static": record["gain_over_static"]},
            tags={"flyball.ended_early": f"{record['percent']:.0f} %"},
        )


def point_summary(result: PointResult) -> dict[str, float]:
    """The figures that points are compared by."""
    figures: dict[str, float] = {}
    for name in ("accuracy", "utilization", "gross", "net", "reward", "gain_over_static"):
        interval = getattr(result, name)
        figures |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    figures |= {
        "controller_macs": result.controller_macs,
        "parameters": result.parameters,
        "best_update": result.best_update,
        "beats_static": float(result.beats_static),
        "dominated": float(result.dominated),
    }
    return figures
