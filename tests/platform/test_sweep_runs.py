"""What a sweep says is kept before it is sent, sent once, and found again after a kill."""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

from flyball.datapaths.errors import (
    CorruptArtifact,
    InvalidSetting,
    StorageError,
    TrackingUnreachable,
)
from flyball.platform.tracking import Tracking, open_tracking
from flyball.platform.tracking.journal import Event, Journal
from flyball.platform.tracking.sweep_runs import POINT_METRICS, SweepRuns
from flyball.platform.tracking.sweep_sending import is_passing

REWARD = "train/reward"


@pytest.fixture
def place(tracking: Tracking, tmp_path: Path) -> Path:
    """A run folder of its own, with a database that is migrated already."""
    assert tracking.address.database is not None
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copyfile(tracking.address.database, folder / "mlflow.db")
    return folder


def _recorder(place: Path, sweep: str = "demo", patience_s: float = 60.0) -> SweepRuns:
    return SweepRuns(
        lambda: open_tracking(None, place), place / "journal", sweep, patience_s=patience_s
    )


def _runs(place: Path, wanted: str) -> list[tuple[str, str, dict[str, float], dict[str, str]]]:
    tracking = open_tracking(None, place)
    found = tracking.client.search_runs([tracking.experiment_id], wanted)
    return [(r.info.run_name, r.info.status, r.data.metrics, r.data.tags) for r in found]


def _points(place: Path) -> list[tuple[str, str, dict[str, float], dict[str, str]]]:
    return _runs(place, "tags.`flyball.sweep` = 'demo'")


def _history(place: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    history = open_tracking(None, place).client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_a_point_is_a_flat_run_with_settings_curve_and_summary(place: Path, tmp_path: Path) -> None:
    picture = tmp_path / "front.png"
    picture.write_bytes(b"a picture")
    with _recorder(place) as runs:
        runs.start_parent("digits sweep", params={"samples": 1}, tags={"flyball.preset": "digits"})
        runs.start_point("aa", "g1 0.5", params={"reward": {"gamma1": 0.5}}, tags={"seed": "0"})
        runs.log("aa", 10, {REWARD: 0.25, "time_total_s": 3.0})
        curve = [(10, {"val/accuracy_at_utilization": 0.8}), (90, {"val/other": 0.9})]
        summary = {"accuracy": 0.9, "gain": math.nan, "summary/net": 0.4}
        runs.finish_point("aa", summary=summary, curve=curve, tags={"ended": "well"})
        runs.log_table("aa", {"rung": ["a", "b"], "net": [0.1, 0.2]}, "points.json")
        runs.finish_parent({"hypervolume": 0.7}, files=[picture])
        runs.flush()
        parent, point = runs.run_id(None), runs.run_id("aa")
        page, command = runs.link("aa").splitlines()
        assert page.endswith(f"/runs/{point}")
        assert "mlflow ui" in command
    client = open_tracking(None, place).client
    run = client.get_run(point)
    assert (run.info.run_name, run.info.status) == ("g1 0.5", "FINISHED")
    assert run.data.params == {"reward.gamma1": "0.5"}
    assert run.data.metrics == {
        REWARD: 0.25,
        "val/accuracy_at_utilization": 0.8,
        "val/other": 0.9,
        "summary/accuracy": 0.9,
        "summary/net": 0.4,
    }
    tags = run.data.tags
    assert (tags["flyball.sweep"], tags["flyball.point"], tags["seed"], tags["ended"]) == (
        "demo",
        "aa",
        "0",
        "well",
    )
    assert not {"mlflow.parentRunId", "flyball.sweep_parent"} & set(tags)
    assert _history(place, point, "val/accuracy_at_utilization") == [(10, 0.8)]
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "points.json", "type": "table"}]
    over = client.get_run(parent)
    assert over.data.metrics == {"summary/hypervolume": 0.7}
    assert over.data.tags["flyball.sweep_parent"] == "demo"
    assert "flyball.sweep" not in over.data.tags
    assert [each.path for each in client.list_artifacts(parent)] == ["front.png"]


def test_the_chart_link_opens_a_view_of_the_sweeps_own_once_it_has_ended(place: Path) -> None:
    with _recorder(place) as runs:
        runs.start_parent("sweep", params={}, tags={})
        for number, gamma in enumerate(("0", "0.5")):
            key = f"point {number}"
            params = {"reward.gamma1": gamma, "learn.seed": "0"}
            runs.start_point(key, key, params=params, tags={})
            runs.finish_point(key, summary={"net": 0.4, "accuracy": 0.9, "reward": 1.0})
        runs.flush()
        filtered = (
            "runs?compareRunsMode=CHART&searchFilter=tags.%60flyball.sweep%60%20%3D%20%27demo%27"
        )
        assert filtered in runs.chart_link()
        runs.finish_parent({})
        runs.flush()
        page, _ = runs.chart_link().splitlines()
    tracking = open_tracking(None, place)
    tags = tracking.client.get_experiment(tracking.experiment_id).tags
    key = page.partition("&viewStateShareKey=")[2]
    state = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    assert state["searchFilter"] == "tags.`flyball.sweep` = 'demo'"
    parallel, curves, scatter = state["compareRunCharts"]
    assert parallel["selectedParams"] == ["reward.gamma1"]  # what differs between points
    assert parallel["selectedMetrics"] == ["summary/accuracy", "summary/net"]
    assert curves["metricKey"] == "val/accuracy_at_utilization"
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("summary/net", "summary/accuracy")


def test_steps_that_a_restored_trial_reports_again_are_recorded_once(place: Path) -> None:
    with _recorder(place) as runs:
        runs.start_point("aa", "a", params={}, tags={})
        for step, value in [(0, 1.0), (1, 2.0), (0, 1.5), (1, 2.5), (2, 3.0)]:
            runs.log("aa", step, {REWARD: value})
    with _recorder(place) as runs:
        runs.start_point("aa", "a", params={}, tags={})
        for step in range(4):
            runs.log("aa", step, {REWARD: 1.0 + step})
        runs.finish_point("aa", summary={"accuracy": 0.5})
        runs.finish_point("aa", summary={"accuracy": 0.5})
        runs.flush()
        found = runs.run_id("aa")
    assert _history(place, found, REWARD) == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]
    assert _history(place, found, "summary/accuracy") == [(0, 0.5)]
    assert [(name, status) for name, status, _, _ in _points(place)] == [("a", "FINISHED")]


def test_only_listed_figures_of_a_report_are_recorded(place: Path) -> None:
    with _recorder(place) as runs:
        runs.start_point("aa", "a", params={}, tags={})
        runs.log("aa", 0, {name: 1.0 for name in (*POINT_METRICS, "timestamp", "config/lr")})
        runs.finish_point("aa", summary={})
    ((_, _, metrics, _),) = _points(place)
    assert set(metrics) == POINT_METRICS


def test_an_interrupted_sweep_leaves_no_run_running_and_goes_on_with_the_same_runs(
    place: Path,
) -> None:
    with contextlib.suppress(KeyboardInterrupt), _recorder(place) as runs:
        runs.start_parent("sweep", params={}, tags={})
        runs.start_point("aa", "a", params={}, tags={})
        runs.start_point("bb", "b", params={}, tags={})
        runs.finish_point("aa", summary={})
        raise KeyboardInterrupt
    assert sorted((name, status) for name, status, _, _ in _points(place)) == [
        ("a", "FINISHED"),
        ("b", "KILLED"),
    ]
    with _recorder(place) as runs:
        runs.start_parent("sweep", params={}, tags={})
        runs.start_point("bb", "b", params={}, tags={})
        runs.finish_point("bb", summary={})
        runs.finish_parent({})
    statuses = sorted((name, status) for name, status, _, _ in _runs(place, ""))
    assert statuses == [("a", "FINISHED"), ("b", "FINISHED"), ("sweep", "FINISHED")]


_KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from flyball.platform.tracking import open_tracking
    from flyball.platform.tracking.sweep_runs import SweepRuns

    place = Path(sys.argv[1])
    with SweepRuns(lambda: open_tracking(None, place), place / "journal", "demo") as runs:
        runs.start_parent("sweep", params={}, tags={})
        for point in range(40):
            key = f"{point:03d}"
            runs.start_point(key, key, params={"n": point}, tags={})
            for step in range(20):
                runs.log(key, step, {"train/reward": point + step / 32})
            runs.finish_point(key, summary={"n": point})
        while not runs.run_id("004"):
            pass
        print("some are sent", flush=True)
        sys.stdin.read()
    """
)


def test_a_driver_that_is_killed_loses_and_doubles_nothing(place: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"some are sent\n"
        driver.send_signal(signal.SIGKILL)
    assert 5 <= len(_points(place)) < 40
    with (place / "journal" / "events.jsonl").open("ab") as journal:
        journal.write(b'{"n":99999,"at":17')  # a line that the kill cut short
    with _recorder(place) as runs:
        runs.start_parent("sweep", params={}, tags={})
        for point in range(40):
            key = f"{point:03d}"
            runs.start_point(key, key, params={"n": point}, tags={})
            for step in range(20):
                runs.log(key, step, {REWARD: point + step / 32})
            runs.finish_point(key, summary={"n": point})
        runs.finish_parent({})
        runs.flush()
        found = {point: runs.run_id(f"{point:03d}") for point in range(40)}
    everything = _runs(place, "")
    assert len(everything) == 40 + 1
    assert {status for _, status, _, _ in everything} == {"FINISHED"}
    for point, run_id in found.items():
        curve = [(step, point + step / 32) for step in range(20)]
        assert _history(place, run_id, REWARD) == curve
        assert _history(place, run_id, "summary/n") == [(0, float(point))]


def test_a_server_that_never_comes_is_told_in_the_end_and_all_goes_elsewhere_later(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as opened:  # bound and not listening: nobody can be there
        opened.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{opened.getsockname()[1]}"
        said: list[str] = []
        away = SweepRuns(
            lambda: open_tracking(uri, place),
            place / "journal",
            "demo",
            patience_s=0.5,
            tell=said.append,
        )
        rule = r"5 events are kept in .*journal; start the server and run .* with --resume"
        with pytest.raises(TrackingUnreachable, match=rule):
            _record_in_vain(away)
    assert len(said) == 1
    assert "keeps what it records" in said[0]
    with _recorder(place) as runs:
        runs.flush()
        assert _history(place, runs.run_id("aa"), REWARD) == [(3, 1.0)]
    # The same journal in another place again: what is there is sent whole.
    other = place.parent / "other"
    other.mkdir()
    shutil.copyfile(place / "mlflow.db", other / "mlflow.db")
    with SweepRuns(lambda: open_tracking(None, other), place / "journal", "demo") as runs:
        runs.flush()
        assert _history(other, runs.run_id("aa"), REWARD) == [(3, 1.0)]
    assert len(_points(other)) == len(_points(place)) == 1


def test_runs_that_were_deleted_are_recorded_again_with_the_next_resume(place: Path) -> None:
    with _recorder(place) as runs:
        _record_one(runs)
        runs.flush()
        first = runs.run_id("aa")
    open_tracking(None, place).client.delete_run(first)
    with _recorder(place) as runs:
        runs.flush()
        again = runs.run_id("aa")
    assert again != first
    assert _history(place, again, REWARD) == [(3, 1.0)]


def test_a_sweep_whose_folder_was_deleted_gets_runs_of_its_own(place: Path) -> None:
    for _ in range(2):
        with _recorder(place) as runs:
            _record_one(runs)
        shutil.rmtree(place / "journal")
    assert [metrics for _, _, metrics, _ in _points(place)] == [{REWARD: 1.0, "summary/n": 1.0}] * 2


def test_what_no_retry_heals_is_raised_at_once_by_the_next_call(place: Path) -> None:
    with pytest.raises(StorageError, match=r"deleted.*events are kept in"):
        _record_in_deleted_run(place)


def test_a_point_that_was_never_started_has_no_run_to_record_in(place: Path) -> None:
    with _recorder(place) as runs:
        with pytest.raises(InvalidSetting, match="point bb has no run"):
            runs.log("bb", 0, {REWARD: 1.0})
        with pytest.raises(StorageError, match="there is no such file"):
            runs.log_file(None, place / "missing.png", "")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MlflowException("API request to http://h failed with exception ..."), True),
        (MlflowException("(psycopg2.InterfaceError) connection already closed", BAD_REQUEST), True),
        (MlflowException("Invalid metric name", INVALID_PARAMETER_VALUE), False),
        (MlflowException("value too long", BAD_REQUEST), False),
        (ConnectionRefusedError("refused"), True),
        (ImportError("No module named psycopg2"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_what_may_succeed_later_is_told_from_a_refusal(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes
    told = TrackingUnreachable("Recording the metrics failed")
    told.__cause__ = error
    assert is_passing(told) is passes


def test_a_locked_local_database_passes_and_a_full_disk_does_not() -> None:
    for said, passes in [("database is locked", True), ("database or disk is full", False)]:
        told = StorageError(f"Recording the metrics failed: {said}")
        told.__cause__ = MlflowException(said)
        assert is_passing(told) is passes


def test_a_journal_keeps_events_in_order_and_knows_which_are_sent(tmp_path: Path) -> None:
    with _journal(tmp_path) as journal:
        for step in range(4):
            journal.append("metrics", "aa", {"rows": [[step, {REWARD: 1.0}]]})
        journal.mark_sent([1, 3])
        assert journal.sent_to == 1
        journal.mark_sent([2])
        assert journal.sent_to == 3
    with _journal(tmp_path) as again:
        assert again.name == journal.name
        assert again.sent_to == 3
        assert [event.number for event in again.events] == [1, 2, 3, 4, 5]
        assert [event.content["rows"][0][0] for event in again.events[1:]] == [0, 1, 2, 3]
        again.begin_again_at("elsewhere")
        assert (again.place, again.sent_to) == ("elsewhere", 0)


def test_a_line_that_was_cut_short_is_taken_out(tmp_path: Path) -> None:
    with _journal(tmp_path) as journal:
        journal.append("tags", "aa", {"tags": {"a": "b"}})
    file = tmp_path / "events.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"n":3,"at":5,"ki')
    with _journal(tmp_path) as journal:
        assert len(journal.events) == 2
        assert file.read_bytes() == whole
        assert journal.append("finish", "aa", {"status": "FINISHED"}).number == 3
    file.write_bytes(b"no event\n" + whole)
    with pytest.raises(CorruptArtifact, match=r"Line 1 of .*events\.jsonl is no event"):
        Journal(tmp_path)


def test_a_disk_that_is_full_is_told_and_leaves_no_half_event(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _journal(tmp_path) as journal:
        journal.append("tags", "aa", {"tags": {"text": "short"}})
        whole = (tmp_path / "events.jsonl").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot be kept in .*Free some space"):
                journal.append("tags", "aa", {"tags": {"text": "long" * (1 << 18)}})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "events.jsonl").read_bytes() == whole
        journal.append("tags", "aa", {"tags": {"text": "room again"}})
    assert [event.number for event in _events(tmp_path)] == [1, 2, 3]


def _record_one(runs: SweepRuns) -> None:
    runs.start_point("aa", "a", params={"n": 1}, tags={})
    runs.log("aa", 3, {REWARD: 1.0})
    runs.finish_point("aa", summary={"n": 1.0})


def _record_in_vain(away: SweepRuns) -> None:
    with away as runs:
        _record_one(runs)
        assert (runs.run_id("aa"), runs.link("aa"), runs.chart_link()) == ("", "", "")
        runs.flush()


def _record_in_deleted_run(place: Path) -> None:
    with _recorder(place) as runs:
        _record_one(runs)
        runs.flush()
        open_tracking(None, place).client.delete_run(runs.run_id("aa"))
        for step in range(1000):
            runs.log("aa", 10 + step, {REWARD: 1.0})
            time.sleep(0.02)


@contextlib.contextmanager
def _journal(folder: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal(folder)) as journal:
        yield journal


def _events(folder: Path) -> list[Event]:
    with _journal(folder) as journal:
        return list(journal.events)
