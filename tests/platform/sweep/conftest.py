"""The data path and the atlas of a tiny job, made once; one Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flyball.platform.cluster import ray_session
from sweeping import a_job, make_atlas


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which data path and atlas of the tiny job lie."""
    root = tmp_path_factory.mktemp("sweeps") / "runs"
    make_atlas(a_job(root))
    return root


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One Ray for the tests that need none of their own."""
    with ray_session(None):
        yield
