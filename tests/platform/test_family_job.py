"""torchvision's ResNets as the arms of a data path, through the whole main job, on real files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.learn import LearnConfig
from flyball.datapaths.data import DataConfig, load_images
from flyball.datapaths.errors import DataError, InvalidArms, UnknownName
from flyball.datapaths.family import ModelFamily
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.paths import open_path
from flyball.datapaths.schedules import Phase1Config
from flyball.envs import ThrottleBanditVector
from flyball.envs.reward import RewardConfig
from flyball.platform.job import ComputeConfig, Job, StorageConfig
from flyball.platform.overrides import with_overrides
from flyball.platform.stages import JobResult, run_job
from flyball.platform.tracking import open_tracking
from flyball.platform.tracking.registry import load_governor

ROOT = Path(__file__).parents[2]
SHAPES = ("disc", "ring", "square")

# multiply-accumulates of torchvision's models at 32 pixels, their last layer for three classes
MACS = (37_012_992, 74_761_728, 83_417_088)

# Answers with the sources that a model carries, where Flyball is not installed.
ELSEWHERE = """
import json, sys
root, code, weights, images = sys.argv[1:]
sys.path[:] = [code] + [p for p in sys.path if p and not p.startswith(root) or "site-packages" in p]
import numpy
from flyball.platform.governor import Governor
said = Governor.load(weights).predict(numpy.load(images))
print(json.dumps({
    "prediction": said.prediction.tolist(), "macs": said.macs.tolist(),
    "sources": [m.__file__ for n, m in sys.modules.items()
                if n.startswith("flyball.") and getattr(m, "__file__", None)],
}))
"""


def draw_folder(folder: Path, count: int) -> None:
    """A class of coloured shapes a sub-folder, each at its own place and in its own colour."""
    generator = np.random.default_rng(3)
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (32, 32), tuple(generator.integers(0, 90, 3).tolist()))
            x, y, size = (int(generator.integers(*span)) for span in ((2, 12), (2, 12), (12, 18)))
            colour = tuple(generator.integers(120, 256, 3).tolist())
            box, pen = (x, y, x + size, y + size), ImageDraw.Draw(image)
            if name == "square":
                pen.rectangle(box, fill=colour)
            else:
                pen.ellipse(box, outline=colour, fill=colour if name == "disc" else None, width=3)
            image.save(folder / name / f"{number:02d}.png")


def family_job(folder: Path) -> Job:
    return Job(
        name="shapes",
        data=DataConfig("folder", root=str(folder / "data"), cache=str(folder / "cache")),
        path=FamilyConfig(("resnet18", "resnet34", "resnet50"), image_size=32),
        phase1=Phase1Config(epochs=4, batch_size=16),
        reward=RewardConfig(account="net"),
        learn=LearnConfig(updates=60, validations=3, algorithm="plain"),
        evaluation=EvaluationConfig(bootstrap=50),
        storage=StorageConfig(root=str(folder / "runs")),
        compute=ComputeConfig(threads=1),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images; runs come beside them, and go with them: three ResNets are 220 MB a copy."""
    made = tmp_path_factory.mktemp("family")
    draw_folder(made / "data", count=20)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def done(folder: Path) -> JobResult:
    return run_job(family_job(folder))


@pytest.fixture(scope="module")
def pixels(folder: Path) -> np.ndarray:
    images = load_images(family_job(folder).data)
    return np.asarray(images.images[images.rows("test")]).astype(np.float32) / np.float32(255)


def test_it_goes_from_a_folder_of_images_to_a_registered_governor(
    folder: Path, done: JobResult, pixels: np.ndarray
) -> None:
    job = family_job(folder)
    images = load_images(job.data)
    learned, asked = (len(images.rows(split)) for split in ("path_train", "test"))
    assert done.forwards["phase1"] == 3 * learned  # a probe sees every image once
    assert done.forwards["outcomes"] == 3 * (len(images) - learned)
    fixed = done.evaluation.curve("controller_val")
    assert [rung.gross.mean for rung in fixed] == pytest.approx([m / MACS[-1] for m in MACS])

    tracking = open_tracking(None, folder / "runs")
    version = done.published.version
    governor = load_governor(tracking, job.model_name, version.alias)
    path = governor.path
    assert isinstance(path, ModelFamily)
    assert path.arm_macs == MACS
    said = governor.predict(pixels)
    assert len(said) == asked
    for row, arm in enumerate(said.arm):
        own = path(torch.from_numpy(pixels[row : row + 1]), path.arms[arm])
        assert said.prediction[row] == own.output.argmax()
        # the context pass is the lowest model's: choosing that one costs nothing more
        spent = MACS[0] + (MACS[arm] if arm else 0) + governor.controller.macs
        assert said.macs[row] == spent
    right = said.prediction == images.labels[images.rows("test")]
    rung = done.evaluation.rung("learned")
    assert right.mean() == pytest.approx(rung.accuracy.mean, abs=1e-12)
    assert said.macs.mean() / path.full_macs == pytest.approx(rung.net.mean, rel=1e-12)
    assert not [f for f in (folder / "runs").rglob("*") if f.suffix in {".pkl", ".pth", ".pt"}]


def test_a_second_run_trains_and_asks_nothing_also_if_it_names_the_arms(
    folder: Path, done: JobResult
) -> None:
    (path_folder,) = (folder / "runs" / "paths").iterdir()
    again = run_job(replace(family_job(folder), arms=open_path(path_folder).arms))
    assert again.forwards == {"phase1": 0, "outcomes": 0}
    assert set(again.reused) == {"phase1", "outcomes", "controller"}
    assert again.evaluation.to_json() == done.evaluation.to_json()
    assert not again.published.version.is_new


def test_the_version_carries_all_that_serves_it(
    folder: Path, done: JobResult, pixels: np.ndarray
) -> None:
    version = done.published.version
    client = open_tracking(None, folder / "runs").client
    uri = client.get_model_version_download_uri(version.name, str(version.version))
    model = Path(uri.removeprefix("file://"))
    requirements = (model / "requirements.txt").read_text().splitlines()
    assert "torchvision" in [line.split("==")[0] for line in requirements]
    np.save(folder / "pixels.npy", pixels)
    weights = model / "artifacts" / "weights"
    given = (str(ROOT), str(model / "code"), str(weights), str(folder / "pixels.npy"))
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *given],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [file for file in found["sources"] if file.startswith(str(ROOT))] == []
    tracking = open_tracking(None, folder / "runs")
    here = load_governor(tracking, version.name, version.alias).predict(pixels)
    assert found["prediction"] == here.prediction.tolist()
    assert found["macs"] == here.macs.tolist()


def test_live_outcomes_of_a_family_are_the_atlas_own(folder: Path, done: JobResult) -> None:
    images = load_images(family_job(folder).data)
    (path_folder,) = (folder / "runs" / "paths").iterdir()
    (atlas_folder,) = (folder / "runs" / "outcomes").iterdir()
    live, stored = (
        ThrottleBanditVector(16, images=images, atlas=atlas_folder, path=path)
        for path in (path_folder, None)
    )
    actions = np.arange(16) % 3
    for seed in range(2):
        assert live.reset(seed=seed)[0].tobytes() == stored.reset(seed=seed)[0].tobytes()
        assert live.step(actions)[1].tobytes() == stored.step(actions)[1].tobytes()


def test_bad_input_is_found_before_anything_is_trained(folder: Path) -> None:
    job = replace(family_job(folder), storage=StorageConfig(root=str(folder / "other")))
    for settings, error, message in (
        (("path.models=resnet18,resnet340",), UnknownName, "Did you mean 'resnet34'"),
        (("path.models=resnet34,resnet18",), InvalidArms, "path.models=resnet18,resnet34"),
        (("arms=0.5,1",), InvalidArms, "Leave --set arms out"),
        (("path.image_size=48",), DataError, r"takes inputs of shape \(3, 48, 48\)"),
        ((f"path.weights={folder / 'nowhere'}",), DataError, r"neither resnet18\.safetensors"),
    ):
        with pytest.raises(error, match=message):
            run_job(with_overrides(job, settings))
    assert not list((folder / "other").rglob("*.safetensors"))
