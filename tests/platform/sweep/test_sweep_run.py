"""Whole sweeps on real Ray, Tune and MLflow: what they give, and what killing anything costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from flyball.datapaths.errors import BadInput, InvalidSetting, StorageError
from flyball.platform.cluster import ray_session
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.prepare import prepare
from flyball.platform.presets import digits
from flyball.platform.stages import build_outcomes, build_path, served_path
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.result import PointResult
from flyball.platform.sweep.run import SweepResult, run_sweep
from flyball.platform.sweep.space import parse_space
from flyball.platform.tracking import list_versions, open_tracking

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

QUICK = ("phase1.epochs=2", "learn.updates=60", "learn.validations=5", "evaluation.bootstrap=50")
STORE = 100 * 2**20
PLAIN = "learn.algorithm=plain"
DRIVER = """
import sys
from flyball.platform.cli import main
sys.exit(main(["sweep", "--population", "1", *sys.argv[1:]]))
"""
IN_A_SMALL_PLACE = """
import os, signal, threading, time
from pathlib import Path
from flyball.datapaths.errors import StorageError
from flyball.platform.cluster import ray_session
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import digits
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.run import run_sweep
from flyball.platform.sweep.space import parse_space
from flyball.platform.tracking import open_tracking

root = Path("{root}")
job = with_overrides(digits(), {settings!r})
config = SweepConfig(parse_space(["reward.gamma2=1,2,3,4,5,6"], job), concurrent=1)


def after(results, act):
    def wait():
        while len(list(root.glob("sweeps/*/points/*/result.json"))) < results:
            time.sleep(0.01)
        act()
    threading.Thread(target=wait).start()


def fill():
    with open(root / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


with ray_session(None):
    after(1, fill)
    try:
        run_sweep(job, config, registers=False)
    except StorageError as error:
        print("full: StorageError", error)
    (root / "filler").unlink()
    done = len(list(root.glob("sweeps/*/points/*/result.json")))
    after(done + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run_sweep(job, config, registers=False, resume=True)
    except KeyboardInterrupt:
        tracking = open_tracking(None, root)
        found = tracking.client.search_runs([tracking.experiment_id])
        status = [run.info.status for run in found]
        has = "KILLED" if "KILLED" in status else "nothing killed"
        print("interrupted:", has, status.count("RUNNING") or "none", "RUNNING")
    result = run_sweep(job, config, registers=False, resume=True)
    print("done:", len(result.front.points), "points,", result.counts.failed or "no failure")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which data path and atlas of the tiny job lie."""
    root = tmp_path_factory.mktemp("sweeps") / "runs"
    job = a_job(root)
    ready = prepare(job)
    build_outcomes(ready, served_path(build_path(ready).path, job))
    return root


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One Ray for the tests that need none of their own."""
    with ray_session(None):
        yield


def a_job(root: Path, *settings: str) -> Job:
    return with_overrides(digits(), [*QUICK, f"storage.root={root}", *settings])


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
        assert points[point.key].data.tags["steps"] == str(looks)
        assert point.run_id in ("", points[point.key].info.run_id)
        assert points[point.key].data.metrics["summary/accuracy"] == point.accuracy.mean


def test_a_sweep_gives_front_runs_and_counts_and_the_same_bits_again(
    root: Path, session: None
) -> None:
    job = a_job(root)
    space = ("reward.gamma2=1.5,8", "arms=0.1,0.5,1|0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1")
    first = sweep(job, *space, registers=True)
    assert first.counts.trained == 4
    assert not first.counts.failed
    assert not first.was_finished
    assert first.counts.forwards["trials"] == 0
    for name in ("front.json", "front.txt", "front.png", "points.csv", "sweep.json"):
        assert (first.folder / name).stat().st_size > 0
    check_recorded(job, first)
    assert set(first.versions) == {point.key for point in first.front.front}
    known = list_versions(open_tracking(None, root), job.model_name)
    assert {a for version in known for a in version.aliases} == set(first.front.aliases)
    assert all(point.run_id for point in SweepFolder(first.folder).results().values())

    shown = sweep(job, *space)
    assert shown.was_finished
    assert shown.counts.trained == 0
    assert shown.counts.reused == 4
    assert figures(shown) == figures(first)
    assert shown.counts.forwards == {"phase1": 0, "outcomes": 0, "trials": 0}

    shutil.rmtree(first.folder)
    again = sweep(job, *space, concurrent=2)
    assert again.counts.trained == 4
    assert figures(again) == figures(first)


def test_points_end_early_where_asked_and_stay_ended(root: Path, session: None) -> None:
    job = a_job(root, "learn.validations=10")
    space = ("learn.learning_rate=1e-7,1e-3,3e-3,1e-2,2e-7,3e-7",)
    result = sweep(job, *space, asha=True)
    folder = SweepFolder(result.folder)
    assert result.counts.ended_early == len(folder.stopped()) > 0
    assert len(folder.stopped()) + len(folder.results()) == 6
    assert {run.info.status for run in recorded(job, result)} == {"FINISHED"}
    folder.outcome_file.unlink()
    resumed = sweep(job, *space, asha=True, resume=True)
    assert resumed.counts.trained == 0
    assert figures(resumed) == figures(result)


def test_optuna_proposes_the_same_points_from_a_seed_though_it_is_interrupted(
    root: Path, session: None
) -> None:
    job = a_job(root, PLAIN)
    space = ("reward.gamma2=uniform(0.5,8)", "learn.entropy=0,0.1")
    result = sweep(job, *space, search="optuna", samples=5)
    assert len(figures(result)) == 5
    shutil.rmtree(result.folder)

    def interrupt() -> None:
        while len(list(result.folder.glob("points/*/result.json"))) < 2:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sweep(job, *space, search="optuna", samples=5)
    thread.join()
    assert 2 <= len(SweepFolder(result.folder).results()) < 5
    # Tune's own state holds what the sampler had drawn.
    resumed = sweep(job, *space, search="optuna", samples=5, resume=True)
    assert figures(resumed) == figures(result)


def test_a_population_finds_what_points_find_alone(root: Path, session: None) -> None:
    job = a_job(root, PLAIN)
    space = ("reward.gamma2=1.5,8", "learn.learning_rate=1e-3,1e-2")
    alone = sweep(job, *space)
    together = sweep(job, *space, population=4)
    assert set(figures(together)) == set(figures(alone))
    for one, other in zip(alone.front.points, together.front.points, strict=True):
        # A batched product may add in another order: a logit, and a choice, may differ.
        assert one.accuracy.mean == pytest.approx(other.accuracy.mean, abs=0.02)
    check_recorded(job, together)


def test_a_point_that_breaks_costs_the_others_nothing(root: Path, session: None) -> None:
    job = a_job(root, PLAIN, "learn.optimizer=rmsprop")
    result = sweep(job, "learn.learning_rate=1e-3,1e30")
    assert [text.partition(":")[0] for text in result.counts.failed.values()] == ["NotFinite"]
    assert len(result.front.points) == 1
    assert Counter(run.info.status for run in recorded(job, result)) == {"FINISHED": 2, "FAILED": 1}
    with pytest.raises(BadInput, match="unfinished sweep"):
        sweep(job, "learn.learning_rate=1e-3,1e30")


def test_trials_that_fit_nowhere_are_refused(root: Path, session: None) -> None:
    job = a_job(root, PLAIN)
    with pytest.raises(InvalidSetting, match="GPUs"):
        sweep(a_job(root), "reward.gamma1=0,1", gpus_per_trial=64.0)
    with pytest.raises(InvalidSetting, match="4096 CPUs"):
        sweep(job, "reward.gamma1=0,1", cpus_per_trial=4096.0)


def test_a_killed_trial_process_is_begun_again(root: Path, session: None) -> None:
    job = a_job(root, "learn.updates=800", "learn.seed=5")
    killed: list[int] = []

    def kill_one() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            running = list((root / "sweeps").glob("*/points/*/checkpoint/updates-*"))
            mine = [
                folder for folder in running if not (folder.parents[1] / "result.json").exists()
            ]
            for folder in mine:
                pid = int((folder.parents[1] / "starts.txt").read_text().split()[1])
                with suppress(ProcessLookupError):  # of a point that another test ended early
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    result = sweep(job, "reward.gamma2=1.5,4")
    thread.join()
    assert killed
    assert list(result.counts.repeated.values()) == ["its process died"]
    (repeated,) = result.counts.repeated
    assert {p.key: p.starts for p in result.front.points}[repeated] == 2
    check_recorded(job, result)
    # It went on from its checkpoint, with the end that a run without a kill has.
    shutil.rmtree(result.folder)
    assert figures(sweep(job, "reward.gamma2=1.5,4")) == figures(result)


def test_a_killed_driver_loses_nothing(root: Path, session: None, tmp_path: Path) -> None:
    for part in ("paths", "outcomes"):
        shutil.copytree(root / part, tmp_path / part)
    settings = [*QUICK, f"storage.root={tmp_path}", PLAIN, "learn.updates=1000"]
    space = "reward.gamma2=1,2,3,4,5,6"
    code = [sys.executable, "-c", DRIVER, "digits", "--sweep", space, "--concurrent", "1"]
    driver = subprocess.Popen(
        [*code, "--no-models", *(part for text in settings for part in ("--set", text))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 200
    while len(list(tmp_path.glob("sweeps/*/points/*/result.json"))) < 2:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    job = with_overrides(digits(), settings)
    with pytest.raises(StorageError, match=f"Another process.*process {driver.pid} on"):
        sweep(job, space)
    driver.kill()
    driver.communicate(timeout=120)
    with pytest.raises(BadInput, match=r"unfinished sweep.*--resume"):
        sweep(job, space)

    result = sweep(job, space, resume=True)
    assert len(result.front.points) == 6
    assert result.counts.trained + result.counts.reused == 6
    assert result.counts.reused >= 2
    assert all("interrupted" in why for why in result.counts.repeated.values())
    check_recorded(job, result)


def test_a_full_disk_and_sigterm_end_a_sweep_cleanly_and_it_goes_on(
    root: Path, tmp_path: Path
) -> None:
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=40m tmpfs {small}"
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of its own")
    settings = [*QUICK, f"storage.root={small}", "storage.least_free_mb=0", PLAIN]
    (tmp_path / "run.py").write_text(IN_A_SMALL_PLACE.format(root=small, settings=settings))
    script = f"""
        {mount} && cp -r {root}/paths {root}/outcomes {small}
        {sys.executable} {tmp_path / "run.py"}
    """
    run = subprocess.run(
        [*unshare, "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert "full: StorageError" in run.stdout, said
    assert "interrupted: KILLED none RUNNING" in run.stdout, said
    assert "done: 6 points, no failure" in run.stdout, said


def test_a_killed_node_costs_a_sweep_nothing(root: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes()
        address = f"compute.ray_address={cluster.address}"
        job = a_job(root, PLAIN, "learn.updates=1000", "learn.seed=9", address)
        before = len(list((root / "sweeps").glob("*/points/*/starts.txt")))
        killed: list[str] = []

        def kill_a_node() -> None:
            until = time.monotonic() + 120
            while not killed and time.monotonic() < until:
                if len(list((root / "sweeps").glob("*/points/*/starts.txt"))) >= before + 2:
                    # The driver hangs on one of the nodes, and would end with it.
                    mine = ray.get_runtime_context().get_node_id()
                    doomed = next(n for n in cluster.worker_nodes if n.node_id != mine)
                    killed.append(doomed.node_id)
                    cluster.remove_node(doomed, allow_graceful=False)
                time.sleep(0.02)

        thread = threading.Thread(target=kill_a_node)
        thread.start()
        result = sweep(job, "reward.gamma2=1,2,3,4", concurrent=2)
        thread.join()
        assert killed
        assert len(result.front.points) == 4
        assert not result.counts.failed
        (why,) = result.counts.repeated.values()
        assert why in ("its node died", "its node did not answer", "its process died")
        check_recorded(job, result)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def test_results_are_plain_json(root: Path) -> None:
    for file in (root / "sweeps").glob("*/points/*/result.json"):
        assert PointResult.from_json(json.loads(file.read_text())).to_json() is not None
