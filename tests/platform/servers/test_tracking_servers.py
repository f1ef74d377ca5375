"""With real MLflow servers on sqlite and on PostgreSQL: all that a sweep records is there, once."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flyball.datapaths.errors import TrackingUnreachable
from flyball.platform.cluster import ray_session
from flyball.platform.tracking import Tracking, open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns
from mlflow_server import Server

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

POINTS, STEPS = 16, 100
PATIENCE_S = 120.0  # for a server that starts on a busy machine


def test_16_concurrent_trials_of_100_steps_are_recorded_whole(
    server: Server, tmp_path: Path
) -> None:
    from ray import tune

    class Recorder(tune.Callback):
        """Tune pickles its callbacks, and runs that are being recorded cannot be."""

        def __init__(self, runs: SweepRuns) -> None:
            self.runs = runs
            self.most_at_once = 0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_start(
            self, iteration: int, trials: list["Trial"], trial: "Trial", **_: Any
        ) -> None:
            self.runs.start_point(trial.trial_id, trial.trial_id, params=trial.config, tags={})

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
            self.runs.log(trial.trial_id, result["training_iteration"] - 1, result)

        def on_trial_complete(
            self, iteration: int, trials: list["Trial"], trial: "Trial", **_: Any
        ) -> None:
            self.runs.finish_point(trial.trial_id, summary={"seed": trial.config["seed"]})

    def report(config: dict[str, int]) -> None:
        (barrier / str(config["seed"])).touch()
        while len(list(barrier.iterdir())) < points:
            time.sleep(0.02)
        for step in range(steps):
            tune.report({"train/reward": config["seed"] + step / 128, "time": 1.0})

    points, steps = POINTS, STEPS  # a trial's process does not import this file
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    with _recorder(server, tmp_path / "journal", "tuned") as runs:
        runs.start_parent("tuned", params={}, tags={})
        recorder = Recorder(runs)
        with ray_session():
            grid = tune.Tuner(
                tune.with_resources(report, {"cpu": 1 / POINTS}),
                param_space={"seed": tune.grid_search(list(range(POINTS)))},
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path / "tune"), callbacks=[recorder], verbose=0
                ),
            ).fit()
        assert grid.num_errors == 0
        runs.finish_parent({"points": POINTS})
    assert recorder.most_at_once == POINTS
    assert _recorded(server, tmp_path, "tuned") == _all_points(POINTS)


def test_a_server_that_is_stopped_and_started_in_mid_sweep_loses_nothing(
    server: Server, tmp_path: Path
) -> None:
    gap_s = float(os.environ.get("FLYBALL_TEST_GAP_S", "5"))  # longer than a request or a wait
    said: list[str] = []
    picture = tmp_path / "front.png"
    half = POINTS // 2
    with _recorder(server, tmp_path / "journal", "stopped", said.append) as runs:
        runs.start_parent("stopped", params={}, tags={})
        for seed in range(half):
            _start(runs, seed)
            _report(runs, seed, range(STEPS // 2))
        while not runs.run_id(f"point {half - 1}"):
            time.sleep(0.01)
        server.stop(signal.SIGTERM if server.name == "sqlite" else signal.SIGKILL)
        for seed in range(POINTS):
            _start(runs, seed)
            _report(runs, seed, range(STEPS))
        picture.write_bytes(b"as it was")
        runs.log_file(None, picture, "front")
        picture.write_bytes(b"as it became later")
        time.sleep(gap_s)
        server.start()
        for seed in range(POINTS):
            runs.finish_point(f"point {seed}", summary={"seed": seed})
        runs.finish_parent({"points": POINTS})
        runs.flush()
        parent = runs.run_id(None)
    went, came = said
    assert went.startswith("The sweep goes on and keeps what it records")
    assert came == "MLflow answers again; what was kept is being sent."
    assert _recorded(server, tmp_path, "stopped") == _all_points(POINTS)
    client = _opened(server, tmp_path).client
    copied = client.download_artifacts(parent, "front/front.png", str(tmp_path))
    assert Path(copied).read_bytes() == b"as it was"


def test_16_writers_with_a_client_each_disturb_each_other_in_nothing(
    server: Server, tmp_path: Path
) -> None:
    failed: list[Exception] = []

    def write(seed: int) -> None:
        try:
            with _recorder(server, tmp_path / f"{seed}", "crowd") as runs:
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
    assert _recorded(server, tmp_path, "crowd") == _all_points(POINTS)


def test_a_server_that_hangs_holds_nothing_up_and_makes_no_run_twice(
    server: Server, tmp_path: Path
) -> None:
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
    assert _recorded(server, tmp_path, "hung") == _all_points(2)


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


def _all_points(count: int) -> dict[int, list[tuple[int, float]]]:
    """What `_recorded` gives where nothing is lost or doubled."""
    return {seed: [(step, _figure(seed, step)) for step in range(STEPS)] for seed in range(count)}
