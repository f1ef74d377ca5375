"""With real MLflow servers on sqlite and on PostgreSQL: all that a sweep records is there, once."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from flyball.datapaths.errors import TrackingUnreachable
from flyball.platform.cluster import ray_session
from flyball.platform.tracking import Tracking, open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

POINTS, STEPS = 16, 100
PATIENCE_S = 120.0  # for a server that starts on a busy machine
POSTGRES_USER = "postgres"  # PostgreSQL refuses to run as root


class Server:
    """`mlflow server` in a process group of its own, on a port that stays its own."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port = _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._command += ["--backend-store-uri", database]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns at once."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"{self.uri}/health", timeout=2).raise_for_status()
                return
            time.sleep(0.1)
        raise AssertionError(self._log.read_text()[-2000:])

    def send(self, number: signal.Signals) -> None:
        """To the server and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Stops it and waits until it is gone; one that is gone is left alone."""
        if self._process is not None:
            self.send(number)
            self._process.wait(timeout=60)
            self._process = None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own, without sync to disk; gives its address."""
    programs = [shutil.which(name) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed: initdb and postgres are not on the path.")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed.")
    user = None
    if os.getuid() == 0:
        if POSTGRES_USER not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip(f"PostgreSQL does not run as root, and there is no user {POSTGRES_USER}.")
        user = POSTGRES_USER
    initdb, program = map(str, programs)
    # pytest's own folders are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="flyball-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
    subprocess.run(
        [initdb, "--no-sync", "--auth=trust", "--username=flyball", "-D", str(folder / "data")],
        check=True,
        **options,  # type: ignore[call-overload]
    )
    port = _free_port()
    command = [program, "-D", str(folder / "data"), "-k", str(folder), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        _wait_for_port(port)
        yield f"postgresql+psycopg2://flyball@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def servers(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One on sqlite, one on PostgreSQL, started together."""
    folder = tmp_path_factory.mktemp("sqlite")
    started = {
        "sqlite": Server(f"sqlite:///{folder / 'mlflow.db'}", folder),
        "postgresql": Server(postgres, tmp_path_factory.mktemp("postgresql")),
    }
    try:
        for server in started.values():
            server.start()
        for server in started.values():
            server.wait()
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture(autouse=True)
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a gap of seconds is longer than any request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def test_16_concurrent_trials_of_100_steps_are_recorded_whole_on_both(
    servers: dict[str, Server], tmp_path: Path
) -> None:
    from ray import tune

    class Recorder(tune.Callback):
        """Tune pickles its callbacks, and runs that are being recorded cannot be."""

        def __init__(self, recorders: list[SweepRuns]) -> None:
            self.recorders = recorders
            self.most_at_once = 0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_start(
            self, iteration: int, trials: list["Trial"], trial: "Trial", **_: Any
        ) -> None:
            for runs in self.recorders:
                runs.start_point(trial.trial_id, trial.trial_id, params=trial.config, tags={})

        def on_trial_result(
            self,
            iteration: int,
            trials: list["Trial"],
            trial: "Trial",
            result: dict[str, Any],
            **_: Any,
        ) -> None:
            running = sum(each.status == "RUNNING" for each in trials)
            self.most_at_once = max(self.most_at_once, running)
            for runs in self.recorders:
                runs.log(trial.trial_id, result["training_iteration"] - 1, result)

        def on_trial_complete(
            self, iteration: int, trials: list["Trial"], trial: "Trial", **_: Any
        ) -> None:
            for runs in self.recorders:
                runs.finish_point(trial.trial_id, summary={"seed": trial.config["seed"]})

    def report(config: dict[str, int]) -> None:
        (barrier / str(config["seed"])).touch()
        while len(list(barrier.iterdir())) < points:
            time.sleep(0.02)
        for step in range(steps):
            tune.report({"train/reward": config["seed"] + step / 128, "time": 1.0})

    points, steps = POINTS, STEPS  # a trial's process does not import this file
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    with contextlib.ExitStack() as stack:
        recorders = [
            stack.enter_context(_recorder(server, tmp_path / name, "tuned"))
            for name, server in servers.items()
        ]
        for runs in recorders:
            runs.start_parent("tuned", params={}, tags={})
        recorder = Recorder(recorders)
        with ray_session():
            grid = tune.Tuner(
                tune.with_resources(report, {"cpu": 1 / POINTS}),
                param_space={"seed": tune.grid_search(list(range(POINTS)))},
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path / "tune"), callbacks=[recorder], verbose=0
                ),
            ).fit()
        assert grid.num_errors == 0
        for runs in recorders:
            runs.finish_parent({"points": POINTS})
    assert recorder.most_at_once == POINTS
    for server in servers.values():
        assert _recorded(server, tmp_path, "tuned") == {
            seed: [(step, _figure(seed, step)) for step in range(STEPS)] for seed in range(POINTS)
        }


def test_servers_that_are_stopped_and_started_in_mid_sweep_lose_nothing(
    servers: dict[str, Server], tmp_path: Path
) -> None:
    stops = {"sqlite": signal.SIGTERM, "postgresql": signal.SIGKILL}
    gap_s = float(os.environ.get("FLYBALL_TEST_GAP_S", "5"))  # longer than a request or a wait
    said: dict[str, list[str]] = {name: [] for name in servers}
    picture = tmp_path / "front.png"
    half = POINTS // 2
    with contextlib.ExitStack() as stack:
        recorders = {
            name: stack.enter_context(
                _recorder(server, tmp_path / name, "stopped", said[name].append)
            )
            for name, server in servers.items()
        }
        for name, runs in recorders.items():
            runs.start_parent("stopped", params={}, tags={})
            for seed in range(half):
                _start(runs, seed)
                _report(runs, seed, range(STEPS // 2))
            while not runs.run_id(f"point {half - 1}"):
                time.sleep(0.01)
            servers[name].stop(stops[name])
        for runs in recorders.values():
            for seed in range(POINTS):
                _start(runs, seed)
                _report(runs, seed, range(STEPS))
            picture.write_bytes(b"as it was")
            runs.log_file(None, picture, "front")
            picture.write_bytes(b"as it became later")
        time.sleep(gap_s)
        for server in servers.values():
            server.start()
        for runs in recorders.values():
            for seed in range(POINTS):
                runs.finish_point(f"point {seed}", summary={"seed": seed})
            runs.finish_parent({"points": POINTS})
            runs.flush()
        parents = {name: runs.run_id(None) for name, runs in recorders.items()}
    for name, server in servers.items():
        went, came = said[name]
        assert went.startswith("The sweep goes on and keeps what it records")
        assert came == "MLflow answers again; what was kept is being sent."
        assert _recorded(server, tmp_path, "stopped") == {
            seed: [(step, _figure(seed, step)) for step in range(STEPS)] for seed in range(POINTS)
        }
        folder = tmp_path / f"{name} files"
        folder.mkdir()
        client = _opened(server, folder).client
        copied = client.download_artifacts(parents[name], "front/front.png", str(folder))
        assert Path(copied).read_bytes() == b"as it was"


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_16_writers_with_a_client_each_disturb_each_other_in_nothing(
    servers: dict[str, Server], tmp_path: Path, name: str
) -> None:
    failed: list[Exception] = []

    def write(seed: int) -> None:
        try:
            with _recorder(servers[name], tmp_path / f"{name} {seed}", "crowd") as runs:
                _start(runs, seed)
                for step in range(STEPS):
                    _report(runs, seed, range(step, step + 1))
                runs.finish_point(f"point {seed}", summary={"seed": seed})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(POINTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert _recorded(servers[name], tmp_path, "crowd") == {
        seed: [(step, _figure(seed, step)) for step in range(STEPS)] for seed in range(POINTS)
    }


def test_a_server_that_hangs_holds_nothing_up_and_makes_no_run_twice(
    servers: dict[str, Server], tmp_path: Path
) -> None:
    server = servers["postgresql"]
    runs = _recorder(server, tmp_path / "journal", "hung", patience_s=4.0)
    with contextlib.suppress(TrackingUnreachable), runs:
        _start(runs, 0)
        runs.flush()
        server.send(signal.SIGSTOP)
        try:
            for seed in range(2):
                _start(runs, seed)
                _report(runs, seed, range(STEPS))
                runs.finish_point(f"point {seed}", summary={"seed": seed})
            with pytest.raises(TrackingUnreachable, match=r"\d+ events are kept in .* --resume"):
                runs.flush()
        finally:
            server.send(signal.SIGCONT)
    with _recorder(server, tmp_path / "journal", "hung") as runs:
        runs.start_parent("hung", params={}, tags={})
        runs.finish_parent({})
    assert _recorded(server, tmp_path, "hung") == {
        seed: [(step, _figure(seed, step)) for step in range(STEPS)] for seed in range(2)
    }


def _recorder(
    server: Server,
    folder: Path,
    sweep: str,
    tell: Callable[[str], None] | None = None,
    patience_s: float = PATIENCE_S,
) -> SweepRuns:
    return SweepRuns(
        lambda: _opened(server, folder), folder, sweep, patience_s=patience_s, tell=tell
    )


def _opened(server: Server, folder: Path) -> Tracking:
    return open_tracking(server.uri, folder)


def _start(runs: SweepRuns, seed: int) -> None:
    runs.start_point(f"point {seed}", f"seed {seed}", params={"seed": seed}, tags={})


def _report(runs: SweepRuns, seed: int, steps: range) -> None:
    for step in steps:
        runs.log(f"point {seed}", step, {"train/reward": _figure(seed, step), "time": 1.0})


def _figure(seed: int, step: int) -> float:
    return seed + step / 128


def _recorded(server: Server, folder: Path, sweep: str) -> dict[int, list[tuple[int, float]]]:
    """(step, figure) of the points of a sweep, all of which are finished, by seed."""
    tracking = _opened(server, folder)
    runs = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.`flyball.sweep` = '{sweep}'", max_results=1000
    )
    assert Counter(run.info.status for run in runs) == {"FINISHED": len(runs)}
    assert {tuple(sorted(run.data.metrics)) for run in runs} == {("summary/seed", "train/reward")}
    found = {}
    for run in runs:
        history = tracking.client.get_metric_history(run.info.run_id, "train/reward")
        seed = int(run.data.params["seed"])
        assert seed not in found
        found[seed] = sorted((point.step, point.value) for point in history)
    return dict(sorted(found.items()))


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens at {port}")
