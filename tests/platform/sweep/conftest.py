"""The data path and the atlas of a tiny job, made once; one Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flyball.platform.cluster import ray_session
from flyball.platform.prepare import prepare
from flyball.platform.stages import build_outcomes, build_path, served_path
from sweeping import a_job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which data path and atlas of the tiny job lie."""
    root = tmp_path_factory.mktemp("sweeps") / "runs"
    job = a_job(root)
    ready = prepare(job)
    build_outcomes(ready, served_path(build_path(ready).path, job))
    return root


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One Ray for the tests that need none of their own."""
    with ray_session(None):
        yield
