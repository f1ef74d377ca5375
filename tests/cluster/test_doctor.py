"""What `flyball doctor` says, and how it ends."""

import argparse
import json
from pathlib import Path

import pytest

from flyball.datapaths.errors import UnknownName
from flyball.platform.doctor import add_doctor_arguments, run_doctor

REPOSITORY = Path(__file__).parents[2]


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    add_doctor_arguments(parser)
    return run_doctor(parser.parse_args(arguments))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_sound_machine_has_one_line_for_each_thing_and_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    manifest = REPOSITORY / "platform" / "clusters" / "kuberay-job.yaml"
    assert _run(f"--set=storage.root={root}", str(manifest)) == 0
    lines = capsys.readouterr().out.splitlines()
    named = ["versions", "kernels", "GPUs", "storage", "tracking", "Ray", "cluster"]
    assert [line.split()[1] for line in lines] == named
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert not root.exists()


def test_each_problem_says_what_to_do_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("cluster_name: mine\nprovder: {type: local}\n", encoding="utf-8")
    asked = [f"storage.root={file}/runs", "compute.ray_address=127.0.0.1:1"]
    asked.append("tracking.uri=postgresql://me:secret@127.0.0.1:1/runs")
    assert _run("--json", *(f"--set={text}" for text in asked), str(file)) == 1
    printed = capsys.readouterr().out
    told = json.loads(printed)
    assert told["ok"] is False
    problems = [check for check in told["checks"] if check["state"] == "problem"]
    wanted = [
        ("storage", "--set storage.root=FOLDER"),
        ("tracking", "correct MLFLOW_TRACKING_URI"),
        ("Ray", "--set compute.ray_address=HOST:6379"),
        ("cluster", "Additional properties are not allowed ('provder' was unexpected)"),
        ("cluster", "'provider' is a required property"),
    ]
    found = sorted((check["name"], check["said"]) for check in problems)
    for (name, said), (wanted_name, words) in zip(found, sorted(wanted), strict=True):
        assert name == wanted_name
        assert words in said
    assert "secret" not in printed


def test_a_setting_that_does_not_exist_is_bad_input() -> None:
    with pytest.raises(UnknownName, match=r"storage\.root"):
        _run("--set=storage.rot=x")
