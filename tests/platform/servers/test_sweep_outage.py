"""A whole sweep whose MLflow server goes away: all that it records is there once it is back."""

import os
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flyball.platform.sweep.run as run_module
from flyball.datapaths.errors import TrackingUnreachable
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import digits
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.registration import register_points
from flyball.platform.sweep.run import SweepResult, run_sweep
from flyball.platform.sweep.space import parse_space
from flyball.platform.tracking import list_versions, open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns
from mlflow_server import Server

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

SETTINGS = (
    "phase1.epochs=2",
    "learn.algorithm=plain",
    "learn.updates=200",
    "learn.validations=5",
    "evaluation.bootstrap=50",
)
POINTS = 6


def swept(server: Server, root: Path, said: list[str], *, resume: bool = False) -> SweepResult:
    settings = [*SETTINGS, f"storage.root={root}", f"tracking.uri={server.uri}"]
    job = with_overrides(digits(), settings)
    gammas = ",".join(str(1 + number) for number in range(POINTS))
    config = SweepConfig(parse_space([f"reward.gamma2={gammas}"], job), concurrent=1)
    return run_sweep(job, config, resume=resume, tell=said.append)


def stop_after(results: int, server: Server, root: Path, gap_s: float | None) -> threading.Thread:
    """Stops the server once so many points are finished, and starts it again after the gap."""

    def act() -> None:
        while len(list(root.glob("sweeps/*/points/*/result.json"))) < results:
            time.sleep(0.01)
        server.stop()
        if gap_s is not None:
            time.sleep(gap_s)
            server.start()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def check_whole(server: Server, root: Path, result: SweepResult) -> None:
    """One finished run a point, with every look once; one parent; the front is registered."""
    tracking = open_tracking(server.uri, root)
    runs = [
        run
        for run in tracking.client.search_runs([tracking.experiment_id], max_results=1000)
        if result.folder.name in run.data.tags.values()
    ]
    assert Counter(run.info.status for run in runs) == {"FINISHED": POINTS + 1}
    points = {p.key: p for p in result.front.points}
    assert len(points) == POINTS
    for run in runs:
        key = run.data.tags.get("flyball.point")
        if key is not None:
            steps = [
                metric.step
                for metric in tracking.client.get_metric_history(run.info.run_id, "val/reward")
            ]
            looks = [step for step, row in points.pop(key).curve if "val/reward" in row]
            assert sorted(steps) == looks
    assert not points
    assert set(result.versions) == {point.key for point in result.front.front}
    known = list_versions(tracking, "flyball-digits")
    assert {alias for version in known for alias in version.aliases} >= {"eco", "peak"}


def test_a_server_that_goes_away_in_mid_sweep_is_waited_for(server: Server, tmp_path: Path) -> None:
    """It is away while the last points end, and while the front is to be registered."""
    said: list[str] = []
    gap_s = float(os.environ.get("FLYBALL_TEST_GAP_S", "15"))
    thread = stop_after(3, server, tmp_path, gap_s)
    result = swept(server, tmp_path, said)
    thread.join()
    assert not result.counts.failed
    assert not result.counts.repeated
    assert any(line.startswith("The sweep goes on and keeps what it records") for line in said)
    check_whole(server, tmp_path, result)


def test_a_server_that_stays_away_ends_the_sweep_and_a_resume_records_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SweepRuns", partial(SweepRuns, patience_s=3.0))
    thread = stop_after(3, server, tmp_path, None)
    with pytest.raises(TrackingUnreachable, match=r"events are kept in .* --resume"):
        swept(server, tmp_path, [])
    thread.join()
    server.start()
    server.wait()
    monkeypatch.undo()
    result = swept(server, tmp_path, [], resume=True)
    assert (result.counts.trained, result.counts.reused) == (0, POINTS)
    check_whole(server, tmp_path, result)


def test_a_server_that_goes_away_while_the_front_is_registered_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    calls: list[threading.Timer] = []

    def stopping(*given: Any) -> Any:
        if not calls:
            server.stop()
            calls.append(threading.Timer(5.0, server.start))
            calls[0].start()
        return register_points(*given)

    monkeypatch.setattr(run_module, "register_points", stopping)
    result = swept(server, tmp_path, said)
    calls[0].join()
    assert sum(line.startswith("The sweep waits for MLflow") for line in said) == 1
    check_whole(server, tmp_path, result)
