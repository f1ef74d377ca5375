"""A whole sweep whose MLflow server goes away: all that it records is there once it is back."""

import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flyball.platform.sweep.run as run_module
from flyball.datapaths.errors import TrackingUnreachable
from flyball.platform.cluster import ray_session
from flyball.platform.overrides import with_overrides
from flyball.platform.stages import Tell
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.registration import register_points
from flyball.platform.sweep.run import SweepResult, run_sweep
from flyball.platform.sweep.space import parse_space
from flyball.platform.tracking import list_versions, open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns
from mlflow_server import Server
from sweeping import PLAIN, a_job, beside, keys_of, make_atlas

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

POINTS = 3


@pytest.fixture(scope="module")
def server(server_on: Callable[[str], Server]) -> Server:
    """On one database: what is sent to which is tested beside this file."""
    return server_on("sqlite")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data path and atlas of all sweeps."""
    root = tmp_path_factory.mktemp("made")
    make_atlas(a_job(root))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A run folder for one sweep."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """One Ray."""
    with ray_session(None):
        yield


def swept(
    server: Server,
    root: Path,
    seed: int,
    *,
    points: int = POINTS,
    resume: bool = False,
    registers: bool = False,
    tell: Tell | None = None,
) -> SweepResult:
    """The seed makes it another sweep: they share a server."""
    job = a_job(root, PLAIN, "learn.updates=200", f"learn.seed={seed}")
    job = with_overrides(job, [f"tracking.uri={server.uri}"])
    gammas = ",".join(str(1 + number) for number in range(points))
    config = SweepConfig(parse_space([f"reward.gamma2={gammas}"], job), concurrent=1)
    return run_sweep(job, config, resume=resume, registers=registers, tell=tell)


def stopped_after(
    results: int, server: Server, root: Path, gap_s: float | None
) -> contextlib.AbstractContextManager[None]:
    """Stops the server once so many points are finished, and starts it again after the gap."""

    def act() -> None:
        server.stop()
        if gap_s is not None:
            time.sleep(gap_s)
            server.start()

    return beside(lambda: len(keys_of(root, "result.json")) >= results, act)


def check_whole(server: Server, root: Path, result: SweepResult) -> None:
    """One finished run a point, with every look once; one parent."""
    tracking = open_tracking(server.uri, root)
    runs = [
        run
        for run in tracking.client.search_runs([tracking.experiment_id], max_results=1000)
        if result.folder.name in run.data.tags.values()
    ]
    assert Counter(run.info.status for run in runs) == {"FINISHED": len(result.front.points) + 1}
    points = {p.key: p for p in result.front.points}
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


def test_a_server_that_goes_away_in_mid_sweep_is_waited_for(server: Server, root: Path) -> None:
    """It is away while the last points end."""
    said: list[str] = []
    gap_s = float(os.environ.get("FLYBALL_TEST_GAP_S", "10"))
    with stopped_after(2, server, root, gap_s):
        result = swept(server, root, 1, tell=said.append)
    assert not result.counts.failed
    assert not result.counts.repeated
    assert len(result.front.points) == POINTS
    assert any(line.startswith("The sweep goes on and keeps what it records") for line in said)
    check_whole(server, root, result)


def test_a_server_that_stays_away_ends_the_sweep_and_a_resume_records_it(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SweepRuns", partial(SweepRuns, patience_s=3.0))
    with (
        stopped_after(2, server, root, None),
        pytest.raises(TrackingUnreachable, match=r"events are kept in .* --resume"),
    ):
        swept(server, root, 2)
    server.start()
    server.wait()
    monkeypatch.undo()
    result = swept(server, root, 2, resume=True)
    assert (result.counts.trained, result.counts.reused) == (0, POINTS)
    check_whole(server, root, result)


def test_a_server_that_goes_away_while_the_front_is_registered_is_waited_for(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
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
    result = swept(server, root, 3, points=1, registers=True, tell=said.append)
    calls[0].join()
    assert sum(line.startswith("The sweep waits for MLflow") for line in said) == 1
    check_whole(server, root, result)
    assert set(result.versions) == {point.key for point in result.front.front}
    known = list_versions(open_tracking(server.uri, root), "flyball-digits")
    assert {alias for version in known for alias in version.aliases} == set(result.front.aliases)
