"""Real MLflow servers, on sqlite and on PostgreSQL."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlflow_server import Server, free_port, wait_for_port

POSTGRES_USER = "postgres"  # PostgreSQL refuses to run as root


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
    port = free_port()
    command = [program, "-D", str(folder / "data"), "-k", str(folder), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        wait_for_port(port)
        yield f"postgresql+psycopg2://flyball@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server_on(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    """Starts `mlflow server` on "sqlite" or "postgresql" and waits until it answers."""
    with contextlib.ExitStack() as stack:

        def started(name: str) -> Server:
            folder = tmp_path_factory.mktemp(name)
            if name == "sqlite":
                database = f"sqlite:///{folder / 'mlflow.db'}"
            else:
                database = request.getfixturevalue("postgres")
            server = Server(name, database, folder)
            stack.callback(server.stop)
            server.start()
            server.wait()
            return server

        yield started


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, server_on: Callable[[str], Server]) -> Server:
    """On each of them; without PostgreSQL, on sqlite alone."""
    return server_on(request.param)


@pytest.fixture(autouse=True)
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a gap of seconds is longer than any request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
