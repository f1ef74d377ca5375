"""Ray: started on this machine, or joined where it runs; nothing else of a job lives here."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray

from flyball.datapaths.errors import BadInput

__all__ = ["check_ray_address", "ray_session"]

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


@contextlib.contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Ray for the time of a block; what was started here is stopped at its end.

    A session that runs already in this process is used and left running.

    Args:
        address: HOST:PORT of a cluster; None or "local": Ray is started for this process alone,
            without dashboard; a bare `ray.init` would join whatever happens to run.

    Raises:
        BadInput: there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # RLlib warns at every start that its new API stack is on, which is what we want.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    is_local = address in (None, "local")
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
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise BadInput(
            f"No Ray cluster answers at {address!r} ({error}). Start one with `ray start --head`, "
            "or leave compute.ray_address out to start Ray here."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
