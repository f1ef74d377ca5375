"""The preset of dynamic convolutions in small form: digits through the whole real job."""

import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch

from flyball.controllers.evaluation import Evaluation
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import ImageSet, load_images
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.paths import open_path
from flyball.envs import ThrottleBanditVector
from flyball.platform.cli import main
from flyball.platform.governor import Governor, sees_poses
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.stages import JobResult, run_job
from flyball.platform.tracking import open_tracking
from flyball.platform.tracking.registry import load_governor

PRESET = "cifar10_dynconv"
ARMS = (0.2, 0.5, 1.0)
CALIBRATED_ON = 200

# The preset's own job, but for its images and what makes it long.
SMALL = (
    "data.name=digits",
    "path.network.in_channels=1",
    "path.network.image_size=8",
    "path.network.layers=1,1",
    "path.network.widths=8,16",
    f"path.calibration_samples={CALIBRATED_ON}",
    "phase1.epochs=5",
    "phase1.batch_size=64",
    "phase1.augment=false",
    "phase1.precision=float32",
    "arms=0.2,0.5,1",
    "learn.updates=100",
    "learn.validations=5",
    "evaluation.bootstrap=100",
)


def small_job(root: Path, *settings: str) -> Job:
    return with_overrides(preset(PRESET), [f"storage.root={root}", *SMALL, *settings])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dynconv") / "runs"


@pytest.fixture(scope="module")
def done(root: Path) -> JobResult:
    return run_job(small_job(root))


@pytest.fixture(scope="module")
def images(root: Path) -> ImageSet:
    return load_images(small_job(root).data)


@pytest.fixture(scope="module")
def path(root: Path, done: JobResult) -> DynConvPath:
    (folder,) = (root / "paths").iterdir()
    found = open_path(folder)
    assert isinstance(found, DynConvPath)
    return found


@pytest.fixture(scope="module")
def governor(root: Path, done: JobResult) -> Governor:
    version = done.published.version
    return load_governor(open_tracking(None, root), version.name, version.alias)


def pixels_of(images: ImageSet, split: str) -> np.ndarray:
    rows = images.rows(split)
    return np.asarray(images.images[rows]).astype(np.float32) / np.float32(255)


def test_it_trains_calibrates_and_asks_every_arm_about_every_other_image(
    root: Path, done: JobResult, images: ImageSet, path: DynConvPath
) -> None:
    job, rows = small_job(root), len(images.rows("path_train"))
    calibration = path.spec.calibration
    assert calibration.samples == CALIBRATED_ON
    assert done.forwards["phase1"] == rows * job.phase1.epochs + calibration.passes
    assert done.forwards["outcomes"] == (len(images) - rows) * len(ARMS)
    assert done.reused == {}
    assert path.arms == ARMS
    assert path.spec.provenance["data_fingerprint"] == images.fingerprint
    shares = np.asarray(path.spec.provenance["executed_shares"])
    assert shares.shape == (job.phase1.epochs, len(path.cost.blocks))
    for u in ARMS[:2]:
        asked = u * path.cost.conditional + path.cost.fixed + path.cost.units
        assert path.macs_at(u) == pytest.approx(asked, abs=0.01 * path.cost.conditional)


def test_evaluation_bills_what_every_image_executed(root: Path, done: JobResult) -> None:
    (folder,) = (root / "outcomes").iterdir()
    atlas = OutcomeAtlas.open(folder)
    rows = atlas.take("test")
    macs = np.asarray(rows.macs)
    assert len(set(macs[:, 0].tolist())) > 10, "images differ in cost, else this shows little"
    assert set(macs[:, -1].tolist()) == {atlas.header.full_macs}
    fixed = done.evaluation.curve("test")
    for arm, rung in enumerate(fixed):
        spent = macs[:, arm].mean() / atlas.header.full_macs
        assert rung.gross.mean == pytest.approx(spent, rel=1e-12)
        assert rung.accuracy.mean == np.asarray(rows.correct)[:, arm].mean(dtype=np.float64)
    assert done.evaluation.context_macs == round(float(macs[:, 0].mean()))


def test_mlflow_has_the_run_with_its_curve_ladder_and_picture(root: Path, done: JobResult) -> None:
    client = open_tracking(None, root).client
    run = client.get_run(done.published.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["path.network.widths"] == "[8, 16]"
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/ladder.png", "evaluation/job.json"} <= files
    record = json.loads((done.folder / "job.json").read_text())
    assert record["phase1_losses"][-1] < record["phase1_losses"][0]
    assert not list(root.rglob("*.pkl"))
    assert not list(root.glob("*/*/checkpoint"))


def test_the_registered_governor_answers_and_bills_as_the_evaluation_says(
    images: ImageSet, done: JobResult, governor: Governor, path: DynConvPath
) -> None:
    x = pixels_of(images, "test")
    said = governor.predict(x)
    learned = done.evaluation.rung("learned")
    right = said.prediction == images.labels[images.rows("test")]
    assert right.mean() == pytest.approx(learned.accuracy.mean, abs=1e-12)
    assert said.macs.mean() / path.full_macs == pytest.approx(learned.net.mean, rel=1e-12)
    assert said.key_points is None
    assert "key_points" not in said.columns()
    assert not sees_poses(governor.path)
    context = path.context(torch.from_numpy(x))[1].macs.numpy()
    for row, arm in enumerate(said.arm[:40]):
        own = path(torch.from_numpy(x[row : row + 1]), path.arms[arm])
        assert said.prediction[row] == own.output.argmax()
        extra = int(own.macs) if arm else 0
        assert said.macs[row] == context[row] + extra + governor.controller.macs


def test_mlflow_serves_the_same_answers(
    root: Path, images: ImageSet, done: JobResult, governor: Governor
) -> None:
    x = pixels_of(images, "test")[:5]
    version = done.published.version
    uri = open_tracking(None, root).client.get_model_version_download_uri(
        version.name, str(version.version)
    )
    model = mlflow.pyfunc.load_model(uri)
    said = governor.predict(x)
    table = model.predict(x)
    assert table.to_dict("list") == {
        name: np.asarray(column).tolist() for name, column in said.columns().items()
    }
    assert list(table.columns) == model.metadata.signature.outputs.input_names()


def test_a_second_run_makes_no_forward_and_the_same_figures(root: Path, done: JobResult) -> None:
    again = run_job(small_job(root))
    assert again.forwards == {"phase1": 0, "outcomes": 0}
    assert set(again.reused) == {"phase1", "outcomes", "controller"}
    assert again.evaluation.to_json() == done.evaluation.to_json()
    assert again.published.version.version == done.published.version.version
    assert not again.published.version.is_new


def test_live_outcomes_are_the_atlas_own(root: Path, images: ImageSet, path: DynConvPath) -> None:
    (folder,) = (root / "outcomes").iterdir()
    live = ThrottleBanditVector(30, images=images, atlas=folder, path=path)
    stored = ThrottleBanditVector(30, images=images, atlas=folder)
    for seed in range(2):
        assert live.reset(seed=seed)[0].tobytes() == stored.reset(seed=seed)[0].tobytes()
        actions = (np.arange(30) + seed) % len(ARMS)
        assert live.step(actions)[1].tobytes() == stored.step(actions)[1].tobytes()


def test_the_verbs_of_the_command(
    root: Path, done: JobResult, path: DynConvPath, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"storage.root={root}", *SMALL]
    settings = [part for text in texts for part in ("--set", text)]

    def told(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    fields = json.loads(told("presets", PRESET, "--json"))
    assert fields["path.sparsity.bounds_end"] == 0.5
    learned = json.loads(told("path", PRESET, "--json", *settings))
    assert learned["was_reused"]
    assert learned["macs"] == list(path.arm_macs)
    fixed = done.evaluation.curve("controller_val")
    for rung, share, macs in zip(
        fixed, learned["controller_val_accuracy"], learned["controller_val_macs"], strict=True
    ):
        assert share == pytest.approx(rung.accuracy.mean, abs=1e-12)
        assert macs / path.full_macs == pytest.approx(rung.gross.mean, rel=1e-12)
    assert "accuracy" in told("path", PRESET, *settings)
    outcomes = json.loads(told("outcomes", PRESET, "--json", *settings))
    assert (outcomes["forwards"], outcomes["was_reused"]) == (0, True)
    report = json.loads(told("report", PRESET, "--json", "--set", f"storage.root={root}"))
    Evaluation.from_json(report["evaluation"])
    (version,) = json.loads(told("models", PRESET, "--json", *settings))
    assert done.published.version.alias in version["aliases"]
    shown = told("demo", PRESET, "--count", "3", "--budget", "0.6", *settings)
    assert "of 3 right at a mean net throttle ratio of" in shown
    demo = json.loads(told("demo", PRESET, "--json", "--count", "4", *settings))
    is_right = [label == truth for label, truth in zip(demo["label"], demo["truth"], strict=True)]
    assert [bool(share) for share in demo["correct"]] == is_right
    for verb in ("train", "evaluate"):
        again = json.loads(told(verb, PRESET, "--json", *settings))
        assert again["forwards"] == {"phase1": 0, "outcomes": 0}


def test_a_cost_that_its_masks_do_not_have_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "runs"
    with pytest.raises(InvalidSetting, match=r"--set outcomes\.cost_model=executed"):
        run_job(small_job(elsewhere, "outcomes.cost_model=linear"))
    assert not list(tmp_path.rglob("*"))


def test_images_of_another_size_are_refused_by_the_field_that_fits_the_network(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"--set path\.network\.image_size=8"):
        run_job(small_job(tmp_path / "runs", "path.network.image_size=16"))
    assert not list(tmp_path.rglob("*"))
