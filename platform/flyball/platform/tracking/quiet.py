"""Keeps MLflow to itself: no chatter on the terminal, no borrowed settings left behind."""

import contextlib
import logging
import os
from collections.abc import Iterator

__all__ = ["borrowed_environment", "quiet", "set_defaults"]

# Read by MLflow when it is imported, so `tracking/__init__` sets them before. A user's own value
# stays. Nothing about a run leaves the machine but to the tracking server that the user named.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_CHATTERERS = ("mlflow", "alembic", "urllib3.connectionpool")


def set_defaults() -> None:
    """Switches off usage statistics, upload bars and printed links, unless the user chose."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block MLflow and the database migration log errors alone."""
    loggers = [logging.getLogger(name) for name in _CHATTERERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def borrowed_environment(**values: str) -> Iterator[None]:
    """Sets environment variables within the block and puts back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
