"""What worker processes of a joined cluster are given."""

import json
from pathlib import Path

import pytest

import flyball
from flyball.platform.cluster import worker_environment

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def test_threads_are_ray_s_own_choice_unless_they_are_given() -> None:
    assert worker_environment() == {}
    assert worker_environment(threads=3) == {"OMP_NUM_THREADS": "3"}


def test_workers_of_a_shipped_folder_import_from_their_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = "/opt/flyball/kernels/flyball"
    shipped = [str(tmp_path / name / "flyball") for name in ("kernels", "platform")]
    monkeypatch.setattr(flyball, "__path__", [*shipped, installed])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SUBMITTED, raising=False)
    assert worker_environment() == {}
    monkeypatch.setenv(SUBMITTED, json.dumps({"runtime_env": {}}))
    assert worker_environment() == {}
    monkeypatch.setenv(SUBMITTED, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    assert worker_environment() == {"PYTHONPATH": "kernels:platform"}
