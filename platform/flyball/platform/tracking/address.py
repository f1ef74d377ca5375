"""Where runs are recorded: the address, and whether it answers; nothing of what is recorded.

An address is a local sqlite file, an MLflow server, or a database server.
"""

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

from flyball.datapaths.errors import (
    FlyballError,
    InvalidSetting,
    StorageError,
    TrackingUnreachable,
)
from flyball.platform.tracking.quiet import borrowed_environment, quiet

__all__ = ["Address", "check_address", "connect", "resolve_address", "told_plainly"]

PROBE_SECONDS = 3
_SERVERS = ("http", "https", "databricks")
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Address:
    """Where runs go, and where their files go.

    Attributes:
        uri: what MLflow is given, for tracking and for the registry.
        artifacts: folder of the files, absolute; None where the server decides.
        database: the sqlite file, absolute; None for a server.
    """

    uri: str
    artifacts: Path | None
    database: Path | None

    @property
    def shown(self) -> str:
        """The uri without a password, fit for a message."""
        return _without_password(self.uri)


def resolve_address(uri: str | None, runs_folder: Path) -> Address:
    """Chooses the address: the one given, else MLFLOW_TRACKING_URI, else a file in `runs_folder`.

    Writes nothing and asks nobody.

    Raises:
        InvalidSetting: the uri is of a kind that MLflow does not take.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    runs_folder = runs_folder.expanduser().absolute()
    if not uri:
        return _sqlite_address(runs_folder / "mlflow.db")
    kind = uri.split(":", 1)[0].split("+", 1)[0]
    if kind in _SERVERS:
        return Address(uri, artifacts=None, database=None)
    if kind in _DATABASES:
        return Address(uri, artifacts=runs_folder / "mlartifacts", database=None)
    database = make_url(uri).database if uri.startswith("sqlite:///") else None
    if database and database != ":memory:":
        return _sqlite_address(Path(database).absolute())
    raise InvalidSetting(
        "Runs are recorded in a sqlite file, a database or an MLflow server (MLflow keeps no "
        f"plain folders any more); {_without_password(uri)!r} is none of them. Give "
        "sqlite:///FILE or http://HOST:PORT, or unset MLFLOW_TRACKING_URI to use "
        f"{runs_folder / 'mlflow.db'}."
    )


def check_address(address: Address) -> None:
    """Makes sure that the address can be used, and writes nothing.

    Takes a few seconds at most when nobody answers.

    Raises:
        TrackingUnreachable: no MLflow server, or no database, answers.
        StorageError: the sqlite file cannot be read or written, or not be made.
    """
    if address.database is None:
        _connect_server(address)
        return
    try:
        if address.database.exists():
            _check_writable(address.database)
        else:
            _check_creatable(address.database)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(address.database, error) from error


def connect(address: Address) -> MlflowClient:
    """Opens the address and makes sure that it answers; a new sqlite file is made whole.

    Takes a few seconds at most when nobody answers. Leaves nothing behind when it fails.

    Raises:
        TrackingUnreachable: no MLflow server, or no database, answers.
        StorageError: the sqlite file cannot be made, read or written.
    """
    if address.database is not None:
        return _connect_sqlite(address, address.database)
    return _connect_server(address)


@contextlib.contextmanager
def told_plainly(address: Address, doing: str) -> Iterator[None]:
    """Turns what MLflow raises within the block into Flyball's own errors.

    Args:
        address: where the runs go.
        doing: what was being done, such as "recording the metrics".

    Raises:
        StorageError: the local database or its files cannot be written.
        TrackingUnreachable: the server refuses or stopped answering.
    """
    try:
        with quiet():
            yield
    except FlyballError:
        raise
    except (MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        said = _first_line(error)
        is_local = address.database is not None or isinstance(error, OSError)
        if address.artifacts is not None and is_local:
            raise StorageError(
                f"{doing} in {address.shown} failed: {said}. Look whether "
                f"{address.artifacts.parent} has room and may be written, then run again: "
                "finished stages are kept."
            ) from error
        raise TrackingUnreachable(
            f"{doing} at {address.shown} failed: {said}. Look after the server, then run again: "
            "finished stages are kept."
        ) from error


def _sqlite_address(file: Path) -> Address:
    if "?" in str(file):
        raise InvalidSetting(
            f"The address of a sqlite file ends at a question mark, and {file} has one. "
            "Name another folder."
        )
    # Three slashes, then the absolute path; its own first slash makes the fourth.
    return Address(f"sqlite:///{file}", file.parent / "mlartifacts", file)


def _connect_server(address: Address) -> MlflowClient:
    kind = address.uri.split(":", 1)[0].split("+", 1)[0]
    if kind in _DATABASES:
        _knock(address, _DATABASES[kind])
    patience = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    try:
        with borrowed_environment(**patience), quiet():
            client = MlflowClient(tracking_uri=address.uri, registry_uri=address.uri)
            client.search_experiments(max_results=1)
    except (MlflowException, OSError, ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError) as e:
        raise _unreachable(address, e) from e
    return client


def _connect_sqlite(address: Address, file: Path) -> MlflowClient:
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _create_database(file)
        _check_writable(file)
        with quiet():
            client = MlflowClient(tracking_uri=address.uri, registry_uri=address.uri)
            client.search_experiments(max_results=1)
    except (OSError, sqlite3.Error, MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise _unusable(file, error) from error
    return client


def _create_database(file: Path) -> None:
    # MLflow's tables come by some fifty migrations. They run on a file of another name, which
    # appears under its own only when it is whole, and never over one that appeared meanwhile.
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        _check_writable(partial)
        with quiet():
            uri = f"sqlite:///{partial}"
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        _appear(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _appear(partial: Path, file: Path) -> None:
    try:
        os.link(partial, file)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not file.exists():
            os.replace(partial, file)


def _check_writable(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, timeout=PROBE_SECONDS)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        database.rollback()


def _check_creatable(file: Path) -> None:
    folder = next(folder for folder in file.parents if folder.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} may not be written")


def _unusable(file: Path, error: Exception) -> StorageError:
    return StorageError(
        f"The run database {file} cannot be used: {_first_line(error)}. Name a folder that "
        "you may write, with room left, or move the file away; a database of an older MLflow "
        f"is brought up to date by `mlflow db upgrade sqlite:///{file}`."
    )


def _knock(address: Address, default_port: int) -> None:
    url = make_url(address.uri)
    try:
        where = (url.host or "localhost", url.port or default_port)
        socket.create_connection(where, timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: Address, error: Exception) -> TrackingUnreachable:
    return TrackingUnreachable(
        f"Nothing that speaks MLflow answers at {address.shown}: {_first_line(error)}. "
        "Start it (`mlflow server --host 127.0.0.1 --port 5000`), correct MLFLOW_TRACKING_URI, or "
        "unset it to record runs in a local file. Nothing was run or written."
    )


def _first_line(error: Exception) -> str:
    if "disk is full" in str(error):
        return "the disk is full"  # which SQLAlchemy says after a word on its autoflush
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "Caused by" in text:
        # urllib3 nests the cause in its own words; what the system said comes last.
        text = text.rsplit(": ", 1)[-1].strip("\"'()")
    return _without_password(text)[:300]


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)
