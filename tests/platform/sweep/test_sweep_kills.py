"""Whole sweeps on real Ray, Tune and MLflow: what killing anything costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from flyball.datapaths.errors import BadInput, StorageError
from flyball.platform.cli import main
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import digits
from flyball.platform.sweep.folder import SweepFolder
from sweeping import (
    PLAIN,
    QUICK,
    a_job,
    beside,
    check_recorded,
    figures,
    keys_of,
    recorded,
    sweep,
    under_way,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

STORE = 100 * 2**20
DRIVER = """
import sys
from flyball.platform.cli import main
sys.exit(main(sys.argv[1:]))
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
config = SweepConfig(parse_space(["reward.gamma2=1,2,3,4"], job), concurrent=1)


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


def test_a_killed_trial_process_is_begun_again(root: Path, session: None) -> None:
    job = a_job(root, "learn.updates=800", "learn.seed=5")
    killed: list[int] = []
    before = list((root / "sweeps").glob("*"))

    def kill_one() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            running = list((root / "sweeps").glob("*/points/*/checkpoint/updates-*"))
            points = [folder.parents[1] for folder in running if folder.parents[3] not in before]
            for point in (one for one in points if not (one / "result.json").exists()):
                pid = int((point / "starts.txt").read_text().split()[1])
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


def test_a_search_that_ends_points_early_goes_on_after_an_interruption(
    root: Path, session: None
) -> None:
    job = a_job(root, "learn.validations=10", "learn.updates=200")
    space = "learn.learning_rate=1e-7,1e-3,3e-3,1e-2,2e-7,3e-7"
    before = keys_of(root, "starts.txt")

    def has_begun_three() -> bool:
        return len(keys_of(root, "starts.txt") - before) >= 3

    with (
        beside(has_begun_three, lambda: signal.raise_signal(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        sweep(job, space, asha=True)
    done = keys_of(root, "result.json")
    weights = [file for file in root.glob("sweeps/*/points/*/weights*") if file.parent.name in done]
    kept = {file: file.stat().st_mtime_ns for file in weights}
    result = sweep(job, space, asha=True, resume=True)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    folder = SweepFolder(result.folder)
    assert set(folder.results()).isdisjoint(folder.stopped())
    assert len(folder.results()) + len(folder.stopped()) == 6
    assert result.counts.reused == len([file for file in kept if folder.root in file.parents]) < 6
    runs = recorded(job, result)
    assert len(runs) == 7
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("population", [1, 2])
def test_a_killed_driver_loses_nothing(
    root: Path,
    session: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    population: int,
) -> None:
    for part in ("paths", "outcomes"):
        shutil.copytree(root / part, tmp_path / part)
    settings = [*QUICK, f"storage.root={tmp_path}", PLAIN, "learn.updates=1500"]
    space = "reward.gamma2=1,2,3,4,5,6"
    command = ["sweep", "digits", "--sweep", space, "--concurrent", "1"]
    command += ["--population", str(population), "--no-models"]
    command += [part for text in settings for part in ("--set", text)]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 200
    # Killed while a point is under way.
    while not (len(keys_of(tmp_path, "result.json")) >= 2 and under_way(tmp_path)):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    job = with_overrides(digits(), settings)
    with pytest.raises(StorageError, match=f"Another process.*process {driver.pid} on"):
        sweep(job, space, population=population)
    with pytest.raises(StorageError, match=f"Another process.*process {driver.pid} on"):
        sweep(job, space, population=population, resume=True)
    driver.kill()
    driver.communicate(timeout=120)
    with pytest.raises(BadInput, match=r"unfinished sweep.*--resume"):
        sweep(job, space, population=population)

    assert main([*command, "--resume", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    counts, (folder,) = said["counts"], (tmp_path / "sweeps").iterdir()
    assert said["folder"] == str(folder)
    points = SweepFolder(folder).results()
    assert len(points) == 6
    assert counts["trained"] + counts["reused"] == 6
    assert counts["reused"] >= 2
    # A trial outlives its driver by a moment, and may finish what it was at.
    assert set(counts["repeated"]) == {key for key, point in points.items() if point.starts > 1}
    assert all("interrupted" in why for why in counts["repeated"].values())
    assert counts["forwards"] == {"phase1": 0, "outcomes": 0, "trials": 0}

    assert main(command) == 0
    lines = capsys.readouterr().out
    assert f"the whole sweep lay finished in {folder}" in lines
    assert "0 trained, 6 reused, 0 ended early, 0 failed" in lines
    assert "0 (phase1) + 0 (outcomes) + 0 (trials) data-path forwards" in lines
    assert ("learned as one batch" in lines) == (population > 1)
    result = sweep(job, space, population=population)
    check_recorded(job, result)
    if population > 1:  # of points alone another test looks whether they are the same again
        shutil.rmtree(folder)
        assert figures(sweep(job, space, population=population)) == figures(result)


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
    assert "done: 4 points, no failure" in run.stdout, said


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
