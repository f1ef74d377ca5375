"""Where runs go is settled before work starts: it answers within seconds, or nothing is written."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flyball.datapaths.errors import InvalidSetting, StorageError, TrackingUnreachable
from flyball.platform.tracking import Tracking, check_tracking, open_tracking
from flyball.platform.tracking.address import resolve_address

SECONDS = 10  # the probe waits 3 s for a connection or an answer; the rest is a busy machine


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def other_server() -> Iterator[str]:
    """A web server that is not MLflow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_by_default_everything_lies_in_the_runs_folder(tracking: Tracking) -> None:
    database = tracking.address.database
    assert database is not None
    assert database.is_absolute()
    assert tracking.uri == f"sqlite:///{database}"
    experiment = tracking.client.get_experiment(tracking.experiment_id)
    assert experiment.artifact_location == (database.parent / "mlartifacts").as_uri()
    assert tracking.client._registry_uri == tracking.uri
    files = {file.name for file in database.parent.iterdir() if file.is_file()}
    assert files - {".mlflow.db.aliases.lock"} == {"mlflow.db"}


def test_the_address_given_comes_before_the_environment_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_address(None, tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_address(None, tmp_path).uri == "http://tracking:5000"
    given = resolve_address(f"sqlite:///{tmp_path}/mine.db", tmp_path / "runs")
    assert given.database == tmp_path / "mine.db"
    assert given.artifacts == tmp_path / "mlartifacts"


def test_a_relative_file_means_one_place_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_address("sqlite:///a/b.db", Path("runs")).database == tmp_path / "a" / "b.db"
    assert resolve_address(None, Path("runs")).database == tmp_path / "runs" / "mlflow.db"


def test_the_first_opening_is_silent_and_leaves_no_trace_outside(tmp_path: Path) -> None:
    code = (
        "import os; before = dict(os.environ);"
        "from flyball.platform.tracking import open_tracking;"
        "tracking = open_tracking(None, 'runs');"
        "run = tracking.start_run('a', key='1', params={'x': 1}); run.finish();"
        "import mlflow, logging; from mlflow.telemetry import get_telemetry_client;"
        "assert get_telemetry_client() is None;"
        "assert mlflow.active_run() is None;"
        "assert not mlflow.tracking.is_tracking_uri_set();"
        "assert logging.getLogger('mlflow').level == logging.INFO;"
        "new = set(os.environ) - set(before);"
        "assert all(n.startswith('MLFLOW_') for n in new) and 'MLFLOW_TRACKING_URI' not in new, new"
    )
    named = ("PYTEST_CURRENT_TEST", "CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


def test_a_server_that_is_not_there_is_told_within_seconds_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    before, environment = time.monotonic(), dict(os.environ)
    with pytest.raises(TrackingUnreachable, match=r"Connection refused.*Nothing was run") as caught:
        open_tracking(f"http://user:secret@127.0.0.1:{port}", tmp_path / "runs")
    assert time.monotonic() - before < SECONDS
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(TrackingUnreachable):
        check_tracking(f"http://127.0.0.1:{port}", tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers_is_told_within_seconds(
    tmp_path: Path, silent_server: str
) -> None:
    before = time.monotonic()
    with pytest.raises(TrackingUnreachable, match="timed out"):
        open_tracking(silent_server, tmp_path / "runs")
    assert time.monotonic() - before < SECONDS
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_mlflow_is_refused(tmp_path: Path, other_server: str) -> None:
    with pytest.raises(TrackingUnreachable, match="Nothing that speaks MLflow"):
        open_tracking(other_server, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_database_server_that_is_not_there_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    before = time.monotonic()
    with pytest.raises(TrackingUnreachable, match="postgresql\\+psycopg2://127"):
        open_tracking(f"postgresql+psycopg2://me:secret@127.0.0.1:{port}/runs", tmp_path)
    assert time.monotonic() - before < SECONDS


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "sqlite://", "ftp://host/runs"])
def test_a_kind_of_address_that_mlflow_does_not_take_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InvalidSetting, match="sqlite:///FILE or http://HOST:PORT"):
        open_tracking(uri, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_address_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="question mark"):
        open_tracking(None, tmp_path / "runs?")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="Name a folder that you may write"):
        open_tracking(None, tmp_path / "file" / "runs")
    with pytest.raises(StorageError, match="is no folder"):
        check_tracking(None, tmp_path / "file" / "runs")
    with pytest.raises(StorageError):
        open_tracking("sqlite:////proc/flyball/mlflow.db", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError):
            open_tracking(None, tmp_path / "runs")
        with pytest.raises(StorageError, match="may not be written"):
            check_tracking(None, tmp_path / "runs")
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"my own notes" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        open_tracking(None, tmp_path)
    with pytest.raises(StorageError, match="file is not a database"):
        check_tracking(None, tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == b"my own notes" * 100


def test_a_check_finds_nothing_wrong_with_a_good_place_and_makes_nothing(
    tmp_path: Path, tracking: Tracking
) -> None:
    check_tracking(None, tmp_path / "deep" / "runs")
    assert list(tmp_path.iterdir()) == []
    check_tracking(tracking.uri, tmp_path)
    assert list(tmp_path.iterdir()) == []
