"""The preset of poses in small form: drawn people through the whole real job, to key points."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch

from flyball.controllers.evaluation import Evaluation
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import load_images
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.paths import open_path
from flyball.datapaths.pose import JOINTS, POSE, PoseSet, image_pckh
from flyball.envs import ThrottleBanditVector
from flyball.platform.cli import main
from flyball.platform.governor import Governor, sees_poses
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.stages import JobResult, run_job
from flyball.platform.tracking import open_tracking
from flyball.platform.tracking.registry import load_governor

ROOT = Path(__file__).parents[2]
PRESET = "figures_pose"
ARMS = (0.3, 0.6, 1.0)
SIDE = 32
CALIBRATED_ON = 40

# The preset's own job, but for fewer and smaller images and what makes it long.
SMALL = (
    "data.limit=40",
    f"data.image_size={SIDE}",
    "data.fractions=0.4,0.3,0.15,0.15",
    f"path.network.image_size={SIDE}",
    "path.network.features=8",
    "path.network.expansion=2",
    f"path.calibration_samples={CALIBRATED_ON}",
    "path.sigma=1",
    "phase1.epochs=4",
    "phase1.precision=float32",
    "arms=0.3,0.6,1",
    "learn.updates=60",
    "learn.validations=3",
    "learn.algorithm=plain",
    "evaluation.bootstrap=50",
)

# Answers with the sources that a model carries, where Flyball is not installed.
ELSEWHERE = """
import json, sys
root, code, weights, images = sys.argv[1:]
sys.path[:] = [code] + [p for p in sys.path if p and not p.startswith(root) or "site-packages" in p]
import numpy
from flyball.platform.governor import Governor
said = Governor.load(weights).predict(numpy.load(images))
print(json.dumps({
    "columns": {name: numpy.asarray(column).tolist() for name, column in said.columns().items()},
    "sources": [m.__file__ for n, m in sys.modules.items()
                if n.startswith("flyball.") and getattr(m, "__file__", None)],
}))
"""


def small_job(root: Path, *settings: str) -> Job:
    places = [f"storage.root={root / 'runs'}", f"data.cache={root / 'cache'}"]
    return with_overrides(preset(PRESET), [*places, *SMALL, *settings])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pose")


@pytest.fixture(scope="module")
def done(root: Path) -> JobResult:
    return run_job(small_job(root))


@pytest.fixture(scope="module")
def figures(root: Path) -> PoseSet:
    images = load_images(small_job(root).data)
    assert isinstance(images, PoseSet)
    return images


@pytest.fixture(scope="module")
def path(root: Path, done: JobResult) -> DynConvPath:
    (folder,) = (root / "runs" / "paths").iterdir()
    found = open_path(folder)
    assert isinstance(found, DynConvPath)
    return found


@pytest.fixture(scope="module")
def governor(root: Path, done: JobResult) -> Governor:
    version = done.published.version
    return load_governor(open_tracking(None, root / "runs"), version.name, version.alias)


@pytest.fixture(scope="module")
def model_folder(root: Path, done: JobResult) -> Path:
    version = done.published.version
    client = open_tracking(None, root / "runs").client
    uri = client.get_model_version_download_uri(version.name, str(version.version))
    return Path(uri.removeprefix("file://"))


@pytest.fixture(scope="module")
def pixels(figures: PoseSet) -> np.ndarray:
    rows = figures.rows("test")
    return np.asarray(figures.images[rows]).astype(np.float32) / np.float32(255)


def test_it_goes_from_figures_to_an_atlas_of_graded_answers(
    root: Path, done: JobResult, figures: PoseSet, path: DynConvPath
) -> None:
    job, rows = small_job(root), len(figures.rows("path_train"))
    assert path.spec.task == "pose"
    assert path.classes == (*figures.classes, POSE)
    calibration = path.spec.calibration
    assert calibration.samples == CALIBRATED_ON
    assert done.forwards["phase1"] == rows * job.phase1.epochs + calibration.passes
    assert done.forwards["outcomes"] == (len(figures) - rows) * len(ARMS)
    losses = path.spec.provenance["losses"]
    assert losses[-1] < losses[0]
    (folder,) = (root / "runs" / "outcomes").iterdir()
    atlas = OutcomeAtlas.open(folder)
    correct = np.asarray(atlas.correct)
    # no figure has more than 14 joints that count: shares of them, not right or wrong
    assert ((correct > 0) & (correct < 1)).any()
    assert set(np.asarray(atlas.answer).ravel().tolist()) == {len(figures.classes)}


def test_the_governor_gives_key_points_as_its_path_sees_them_at_the_chosen_arm(
    pixels: np.ndarray, done: JobResult, governor: Governor, path: DynConvPath
) -> None:
    said = governor.predict(pixels)
    assert sees_poses(governor.path)
    assert said.key_points is not None
    assert said.key_points.shape == (len(pixels), len(JOINTS), 3)
    assert said.key_points.dtype == np.float32
    assert set(said.label) == {POSE}
    context = path.context(torch.from_numpy(pixels))[1].macs.numpy()
    for row, arm in enumerate(said.arm):
        own = path(torch.from_numpy(pixels[row : row + 1]), path.arms[arm])
        np.testing.assert_array_equal(said.key_points[row], path.key_points(own.output)[0])
        extra = int(own.macs) if arm else 0
        assert said.macs[row] == context[row] + extra + governor.controller.macs
    assert said.key_points[..., 2].mean(axis=1) == pytest.approx(said.confidence, abs=1e-6)


def test_the_governor_finds_what_the_evaluation_says(
    pixels: np.ndarray, figures: PoseSet, done: JobResult, governor: Governor
) -> None:
    said = governor.predict(pixels)
    assert said.key_points is not None
    truth = figures.truth_rows(figures.rows("test"))
    found = image_pckh(torch.from_numpy(said.key_points[..., :2]), truth)
    learned = done.evaluation.rung("learned")
    assert found.double().mean().item() == pytest.approx(learned.accuracy.mean, abs=1e-12)
    ratio = said.macs.mean() / governor.path.full_macs
    assert ratio == pytest.approx(learned.net.mean, rel=1e-12)


def test_no_images_give_no_key_points(governor: Governor) -> None:
    said = governor.predict(np.zeros((0, 3, SIDE, SIDE), np.float32))
    assert said.key_points is not None
    assert said.key_points.shape == (0, len(JOINTS), 3)
    assert {name: len(column) for name, column in said.columns().items()}["key_points"] == 0


def test_mlflow_serves_key_points_as_its_signature_says(
    pixels: np.ndarray, model_folder: Path, governor: Governor
) -> None:
    model = mlflow.pyfunc.load_model(str(model_folder))
    outputs = model.metadata.signature.outputs
    table = model.predict(pixels[:3])
    assert list(table.columns) == outputs.input_names()
    assert outputs.to_dict()[-1] == {
        "type": "array",
        "items": {"type": "array", "items": {"type": "float"}},
        "name": "key_points",
        "required": True,
    }
    said = governor.predict(pixels[:3])
    assert said.key_points is not None
    assert table["key_points"].tolist() == said.key_points.tolist()
    json.loads(table.to_json(orient="records"))


def test_the_version_carries_all_that_serves_it(
    tmp_path: Path, pixels: np.ndarray, model_folder: Path, governor: Governor
) -> None:
    np.save(tmp_path / "pixels.npy", pixels[:4])
    weights = model_folder / "artifacts" / "weights"
    given = (str(ROOT), str(model_folder / "code"), str(weights), str(tmp_path / "pixels.npy"))
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [file for file in found["sources"] if file.startswith(str(ROOT))] == []
    here = governor.predict(pixels[:4]).columns()
    assert found["columns"] == {name: np.asarray(c).tolist() for name, c in here.items()}


def test_a_second_run_makes_no_forward_and_the_same_figures(root: Path, done: JobResult) -> None:
    again = run_job(small_job(root))
    assert again.forwards == {"phase1": 0, "outcomes": 0}
    assert set(again.reused) == {"phase1", "outcomes", "controller"}
    assert again.evaluation.to_json() == done.evaluation.to_json()
    assert not again.published.version.is_new


def test_live_outcomes_are_the_atlas_own(root: Path, figures: PoseSet, path: DynConvPath) -> None:
    (folder,) = (root / "runs" / "outcomes").iterdir()
    live = ThrottleBanditVector(16, images=figures, atlas=folder, path=path)
    stored = ThrottleBanditVector(16, images=figures, atlas=folder)
    for seed in range(2):
        assert live.reset(seed=seed)[0].tobytes() == stored.reset(seed=seed)[0].tobytes()
        actions = (np.arange(16) + seed) % len(ARMS)
        assert live.step(actions)[1].tobytes() == stored.step(actions)[1].tobytes()


def test_the_verbs_of_the_command(
    root: Path, done: JobResult, path: DynConvPath, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"storage.root={root / 'runs'}", f"data.cache={root / 'cache'}", *SMALL]
    settings = [part for text in texts for part in ("--set", text)]

    def told(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    learned = json.loads(told("path", PRESET, "--json", *settings))
    assert learned["macs"] == list(path.arm_macs)
    shares = [rung.accuracy.mean for rung in done.evaluation.curve("controller_val")]
    assert learned["controller_val_accuracy"] == pytest.approx(shares, abs=1e-6)
    assert "key points" in told("path", PRESET, *settings)
    outcomes = json.loads(told("outcomes", PRESET, "--json", *settings))
    assert outcomes["was_reused"]
    report = json.loads(told("report", PRESET, "--json", *settings[:2]))
    Evaluation.from_json(report["evaluation"])
    (version,) = json.loads(told("models", PRESET, "--json", *settings))
    assert done.published.version.alias in version["aliases"]
    shown = told("demo", PRESET, "--count", "3", *settings)
    assert "of the key points right at a mean net throttle ratio of" in shown
    demo = json.loads(told("demo", PRESET, "--json", "--count", "4", *settings))
    assert np.asarray(demo["key_points"]).shape == (4, len(JOINTS), 3)
    assert all(0 <= share <= 1 for share in demo["correct"])
    for verb in ("train", "evaluate"):
        again = json.loads(told(verb, PRESET, "--json", *settings))
        assert again["forwards"] == {"phase1": 0, "outcomes": 0}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["data.name=digits"], DataError, r"digits has none.*--set data\.name=figures"),
        (["path.network.image_size=64"], DataError, r"--set path\.network\.image_size=32"),
        (["data.image_size=64"], DataError, r"--set path\.network\.image_size=64"),
        (["path.network.classes=12"], InvalidSetting, r"--set path\.network\.classes=16"),
        (["outcomes.cost_model=linear"], InvalidSetting, r"outcomes\.cost_model=executed"),
        (["path.weights=DEFAULT"], InvalidSetting, r"Leave --set path\.weights out"),
        (["path.network.mask_unit=none"], InvalidSetting, r"mask_unit=squeeze"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, settings: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_job(small_job(tmp_path, *settings))
    assert not (tmp_path / "runs").exists()
