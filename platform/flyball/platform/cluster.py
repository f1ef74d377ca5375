"""Ray: started on this machine, or joined where it runs, and what it says of a cluster file."""

import contextlib
import gc
import importlib
import io
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from flyball.datapaths.errors import BadInput

__all__ = [
    "check_ray_address",
    "is_joined",
    "ray_session",
    "refusal_of_cluster_file",
    "worker_environment",
]

_CONNECT_SECONDS = 5.0


def check_ray_address(address: str | None) -> str | None:
    """The cluster's address, from the job or $RAY_ADDRESS, once something listens there.

    Raises:
        BadInput: nothing answers at the address.
    """
    given = address or os.environ.get("RAY_ADDRESS") or None
    if given in (None, "local", "auto"):
        return given
    host, _, port = given.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
            return given
    except (OSError, ValueError) as error:
        raise BadInput(
            f"No Ray cluster answers at {given!r} ({error}). Give the head's HOST:PORT with "
            "--set compute.ray_address=HOST:6379, or leave it out to start Ray here."
        ) from error


def is_joined(address: str | None) -> bool:
    """Whether a session at this address joins a cluster that others started."""
    return address not in (None, "local")


def worker_environment(threads: int = 0) -> dict[str, str]:
    """Environment variables that worker processes on other machines need.

    Args:
        threads: of each; 0: as many as CPUs were asked for, which is Ray's own rule.
    """
    found: dict[str, str] = {}
    if threads:
        found["OMP_NUM_THREADS"] = str(threads)
    # `ray job submit --working-dir` starts workers in their copy of the folder: sources that this
    # process imports from its own copy are imported from theirs.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    here = Path.cwd()
    roots = [Path(portion).parent for portion in importlib.import_module("flyball").__path__]
    shipped = [root.relative_to(here).as_posix() for root in roots if root.is_relative_to(here)]
    if shipped and "working_dir" in submitted.get("runtime_env", {}):
        found["PYTHONPATH"] = os.pathsep.join(shipped)
    return found


@contextlib.contextmanager
def ray_session(address: str | None = None, *, threads: int = 0) -> Iterator[None]:
    """Ray for the time of a block; what was started here is stopped at its end.

    A session that runs already in this process is used and left running.

    Args:
        address: HOST:PORT of a cluster, or "auto" for the one of this machine; None or "local":
            Ray is started for this process alone, without dashboard; a bare `ray.init` would join
            whatever happens to run.
        threads: of each worker process of a cluster that is joined; 0 leaves it to Ray.

    Raises:
        BadInput: there is no cluster at the address, or it takes another token.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # RLlib warns at every start that its new API stack is on, which is what we want.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    is_local = not is_joined(address)
    if is_local:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        if is_local:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(
                address=address,
                runtime_env={"env_vars": worker_environment(threads)},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        if "AuthenticationError" in str(error.__cause__):  # Ray hands its own on as text
            raise BadInput(
                f"The Ray cluster at {address!r} takes another token than this process has. Copy "
                "~/.ray/auth_token from the machine that ran `ray up`, or set RAY_AUTH_TOKEN_PATH "
                "to it, and RAY_AUTH_MODE=token."
            ) from error
        raise BadInput(
            f"No Ray cluster answers at {address!r} ({error}). Start one with `ray start --head`, "
            "or leave compute.ray_address out to start Ray here."
        ) from error
    try:
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """Ends the session, while no thread of this process can collect a handle of Ray's.

    A collection that another thread happens to begin in the middle of `ray.shutdown` asks the
    worker that is gone, and Ray then ends the process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def refusal_of_cluster_file(config: dict[str, Any]) -> str:
    """Why `ray up` would refuse a cluster file, in Ray's words; "" where it would take it.

    Asks nobody, provided that a cloud's node types name their resources.

    Args:
        config: the file, parsed.
    """
    # Only whoever checks a file needs Ray's launcher.
    util = importlib.import_module("ray.autoscaler._private.util")
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            util.validate_config(util.prepare_config(config))
    except SystemExit:
        return _last_line(said.getvalue())
    except Exception as error:  # jsonschema's, click's and bare ones, by the kind of fault
        return _last_line(getattr(error, "message", None) or str(error) or said.getvalue())
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
