"""Whole sweeps of a tiny job, and what is asserted of them."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.prepare import prepare
from flyball.platform.presets import digits
from flyball.platform.stages import build_outcomes, build_path, served_path
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.run import SweepResult, run_sweep
from flyball.platform.sweep.space import parse_space
from flyball.platform.tracking import open_tracking

QUICK = ("phase1.epochs=2", "learn.updates=60", "learn.validations=5", "evaluation.bootstrap=50")
PLAIN = "learn.algorithm=plain"


def a_job(root: Path, *settings: str) -> Job:
    return with_overrides(digits(), [*QUICK, f"storage.root={root}", *settings])


def make_atlas(job: Job) -> None:
    """Trains the data path and asks it, once for all sweeps in a folder."""
    ready = prepare(job)
    build_outcomes(ready, served_path(build_path(ready).path, job))


def sweep(
    job: Job, *space: str, resume: bool = False, registers: bool = False, **changes: Any
) -> SweepResult:
    """One trial at a time where nothing else is asked for: each process takes seconds to start."""
    config = SweepConfig(parse_space(space, job), **{"concurrent": 1, **changes})
    return run_sweep(job, config, resume=resume, registers=registers)


def figures(result: SweepResult) -> dict[str, dict[str, Any]]:
    """Everything that is not a time, a count of starts or a name of a run."""
    left_out = ("seconds", "starts", "run_id")
    return {
        point.key: {name: v for name, v in point.to_json().items() if name not in left_out}
        for point in result.front.points
    }


def recorded(job: Job, result: SweepResult) -> list[Any]:
    """Every run of the sweep in MLflow, the parent last; no look is in one twice."""
    tracking = open_tracking(job.tracking.uri, Path(job.storage.root))
    runs = [
        run
        for run in tracking.client.search_runs([tracking.experiment_id], max_results=1000)
        if result.folder.name in run.data.tags.values()
    ]
    for run in runs:
        steps = Counter(
            point.step
            for point in tracking.client.get_metric_history(run.info.run_id, "val/reward")
        )
        assert all(count == 1 for count in steps.values())
        run.data.tags["steps"] = str(sorted(steps))
    return sorted(runs, key=lambda run: "flyball.point" not in run.data.tags)


def check_recorded(job: Job, result: SweepResult) -> None:
    """One finished run a point with every look once, and one parent."""
    runs = recorded(job, result)
    assert {run.info.status for run in runs} == {"FINISHED"}
    points = {run.data.tags["flyball.point"]: run for run in runs[:-1]}
    assert len(points) == len(runs) - 1 == len(result.front.points)
    for point in result.front.points:
        looks = [updates for updates, row in point.curve if "val/reward" in row]
        assert points[point.key].data.tags["steps"] == str(looks), point.name
        assert point.run_id in ("", points[point.key].info.run_id)
        assert points[point.key].data.metrics["summary/accuracy"] == point.accuracy.mean


@contextlib.contextmanager
def beside(is_time: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """Acts once from another thread, when it is time; gives up where the block ends first."""
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.wait(0.01):
            if is_time():
                act()
                return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        if not is_time():
            is_over.set()
        thread.join(timeout=120)


def keys_of(root: Path, file: str) -> set[str]:
    """Points in whose folder such a file lies."""
    return {found.parent.name for found in root.glob(f"sweeps/*/points/*/{file}")}


def under_way(root: Path) -> set[str]:
    """Points that were begun and are not finished."""
    return keys_of(root, "starts.txt") - keys_of(root, "result.json")
