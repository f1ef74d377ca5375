"""The main job on real digits, with real RLlib and MLflow: what it makes, reuses and resumes."""

import json
from pathlib import Path

import numpy as np
import pytest

from flyball.controllers.evaluation import Evaluation
from flyball.datapaths.data import load_images
from flyball.datapaths.progress import Progress
from flyball.platform.cli import main
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.stages import JobResult, run_job
from flyball.platform.tracking import open_tracking
from flyball.platform.tracking.registry import load_governor

QUICK = (
    "phase1.epochs=6",
    "learn.updates=200",
    "learn.validations=10",
    "evaluation.bootstrap=100",
    "arms=0.25,0.5,0.75,1",
)


def quick_job(root: Path, *settings: str) -> Job:
    return with_overrides(preset("digits"), [f"storage.root={root}", *QUICK, *settings])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job") / "runs"


@pytest.fixture(scope="module")
def first(root: Path) -> JobResult:
    return run_job(quick_job(root))


def test_it_goes_from_images_to_a_registered_controller(root: Path, first: JobResult) -> None:
    job = quick_job(root)
    rows = len(load_images(job.data).rows("path_train"))
    # the sandwich runs full, lowest and two in the middle on every image of every epoch
    assert first.forwards["phase1"] == rows * 4 * job.phase1.epochs
    assert first.forwards["outcomes"] == (1797 - rows) * 4
    assert first.reused == {}
    names = {"evaluation.json", "job.json", "ladder.png", "ladder.txt"}
    assert names <= {file.name for file in first.folder.iterdir()}
    assert first.picture.read_bytes().startswith(b"\x89PNG")
    assert "learned controller" in (first.folder / "ladder.txt").read_text()
    wanted = "champion" if first.evaluation.beats_static else "challenger"
    assert first.published.version.alias == wanted
    assert not list(root.rglob("*.pkl"))
    assert not list(root.glob("*/*/checkpoint"))


def test_mlflow_has_the_run_with_its_curve_ladder_and_picture(root: Path, first: JobResult) -> None:
    client = open_tracking(None, root).client
    run = client.get_run(first.published.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["reward.gamma1"] == "0.5"
    curve = client.get_metric_history(run.info.run_id, "val/accuracy_at_utilization")
    assert [point.step for point in curve] == [25, 50, 75, 100]
    fixed = first.evaluation.curve("controller_val")
    assert [point.value for point in curve] == [rung.accuracy.mean for rung in fixed]
    assert len(client.get_metric_history(run.info.run_id, "train/reward")) == 200 // 16 + 1
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/ladder.png", "evaluation/job.json"} <= files


def test_a_second_run_makes_no_forward_and_the_same_figures(root: Path, first: JobResult) -> None:
    again = run_job(quick_job(root))
    assert again.forwards == {"phase1": 0, "outcomes": 0}
    assert set(again.reused) == {"phase1", "outcomes", "controller"}
    assert again.evaluation.to_json() == first.evaluation.to_json()
    assert again.published.run_id == first.published.run_id
    assert again.published.version.version == first.published.version.version
    assert not again.published.version.is_new


def test_another_reward_trains_another_controller_on_the_same_atlas(
    root: Path, first: JobResult
) -> None:
    other = run_job(quick_job(root, "reward.gamma1=0", "reward.gamma2=0", "learn.algorithm=plain"))
    assert other.forwards == {"phase1": 0, "outcomes": 0}
    assert set(other.reused) == {"phase1", "outcomes"}
    assert other.published.version.version == first.published.version.version + 1


def test_other_arms_build_another_atlas_on_the_same_data_path(root: Path, first: JobResult) -> None:
    other = run_job(quick_job(root, "arms=0.5,1", "learn.algorithm=plain"))
    assert set(other.reused) == {"phase1"}
    assert other.forwards["phase1"] == 0
    assert other.forwards["outcomes"] == first.forwards["outcomes"] // 2


def test_a_controller_may_look_at_the_image(root: Path, first: JobResult) -> None:
    settings = ("controller.kind=image_cnn", "controller.width=2", "learn.updates=50")
    seen = run_job(quick_job(root, *settings))
    assert set(seen.reused) == {"phase1", "outcomes"}
    assert seen.evaluation.context_macs == 0
    assert seen.evaluation.controller_macs > 0


def test_the_registered_governor_answers_as_the_evaluation_says(
    root: Path, first: JobResult
) -> None:
    job = quick_job(root)
    run_job(job)  # takes its alias back from the jobs above
    governor = load_governor(
        open_tracking(None, root), job.model_name, first.published.version.alias
    )
    images = load_images(job.data)
    rows = images.rows("test")
    given = governor.predict(np.asarray(images.images[rows]).astype(np.float32) / 255)
    learned = first.evaluation.rung("learned")
    right = given.prediction == images.labels[rows]
    assert right.mean() == pytest.approx(learned.accuracy.mean, abs=1e-12)
    assert given.utilization.mean() == pytest.approx(learned.utilization.mean, rel=1e-6)
    ratio = given.macs.mean() / governor.path.full_macs
    assert ratio == pytest.approx(learned.net.mean, rel=1e-12)


def test_an_interrupted_job_goes_on_to_the_same_figures(root: Path, first: JobResult) -> None:
    elsewhere = root.parent / "elsewhere"

    def interrupt(progress: Progress) -> None:
        if progress.stage == "outcomes":
            raise KeyboardInterrupt

    job = quick_job(elsewhere, "outcomes.shard_size=300")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, report=interrupt)
    resumed = run_job(job)
    assert resumed.forwards["phase1"] == 0
    assert resumed.forwards["outcomes"] == first.forwards["outcomes"] - 300 * 4
    assert resumed.evaluation.to_json() == first.evaluation.to_json()


def test_the_verbs_of_the_command(
    root: Path, first: JobResult, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"storage.root={root}", *QUICK]
    settings = [part for text in texts for part in ("--set", text)]

    def told(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    assert "digits" in told("presets")
    assert json.loads(told("presets", "digits", "--json"))["reward.gamma1"] == 0.5
    path = json.loads(told("path", "digits", "--json", *settings))
    assert path["was_reused"]
    assert path["arms"] == [0.25, 0.5, 0.75, 1.0]
    outcomes = json.loads(told("outcomes", "digits", "--json", "--arms", "4", *settings))
    assert (outcomes["forwards"], outcomes["was_reused"]) == (0, True)
    assert "learned controller" in told("report", "digits", "--set", f"storage.root={root}")
    report = json.loads(told("report", "digits", "--json", "--set", f"storage.root={root}"))
    Evaluation.from_json(report["evaluation"])
    versions = json.loads(told("models", "digits", "--json", *settings))
    assert {alias for version in versions for alias in version["aliases"]} <= {
        "champion",
        "challenger",
    }
    shown = told("demo", "digits", "--count", "3", "--budget", "0.5", *settings)
    assert "of 3 right at a mean net throttle ratio of" in shown
    train = json.loads(told("train", "digits", "--json", *settings))
    assert train["forwards"] == {"phase1": 0, "outcomes": 0}
