"""A governor answers what its data path answers at the chosen arm, and bills what was run."""

import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flyball.controllers.protocol import NetworkController
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import (
    ArmMismatch,
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    InvalidSetting,
    PickleRefused,
    ShapeMismatch,
)
from flyball.datapaths.frozen import FrozenDataPath
from flyball.datapaths.tasks import judge
from flyball.platform.governor import CONTROLLER_FOLDER, Governor

Images = NDArray[np.float32]
BOTH = pytest.mark.parametrize("which", ["governor", "image_governor"])


@BOTH
def test_an_answer_is_the_data_paths_own_at_the_chosen_arm(
    which: str, images: Images, request: pytest.FixtureRequest
) -> None:
    governor: Governor = request.getfixturevalue(which)
    said = governor.predict(images)
    assert len(set(said.arm.tolist())) > 1, "else this test shows little"
    assert len(set(said.label)) > 1
    for row in range(0, len(images), 5):
        u = governor.path.arms[said.arm[row]]
        answer = governor.path(torch.from_numpy(images[row : row + 1]), u)
        judged = judge(answer.output, torch.zeros(1, dtype=torch.int64))
        assert said.prediction[row] == judged.answer.item()
        assert said.confidence[row] == judged.confidence.item()
        assert said.utilization[row] == np.float32(u)
        assert said.label[row] == governor.path.classes[int(judged.answer)]


@BOTH
def test_the_bill_is_the_atlas_account_of_net_cost(
    which: str, images: Images, costs: OutcomeAtlas, request: pytest.FixtureRequest
) -> None:
    governor: Governor = request.getfixturevalue(which)
    said = governor.predict(images)
    uses_context = governor.controller.observation == "context"
    net = costs.net_macs(governor.controller.macs, uses_context=uses_context)
    np.testing.assert_array_equal(said.macs, net[np.arange(len(images)), said.arm])


def test_the_context_pass_answers_for_the_lowest_arm(governor: Governor, images: Images) -> None:
    before = governor.path.forwards
    said = governor.predict(images)
    climbed = int((said.arm != 0).sum())
    assert governor.path.forwards - before == len(images) + climbed
    assert said.forwards_avoided == len(images) - climbed > 0


def test_a_controller_that_sees_the_image_needs_no_context_pass(
    image_governor: Governor, images: Images
) -> None:
    before = image_governor.path.forwards
    said = image_governor.predict(images)
    assert image_governor.path.forwards - before == len(images)
    assert said.forwards_avoided == 0


@BOTH
def test_no_answer_depends_on_the_other_images(
    which: str, images: Images, request: pytest.FixtureRequest
) -> None:
    governor: Governor = request.getfixturevalue(which)
    order = np.random.default_rng(0).permutation(len(images))
    whole, shuffled = governor.predict(images), governor.predict(images[order])
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(np.asarray(column)[order], shuffled.columns()[name])
    alone = governor.predict(images[:1])
    assert alone.columns() == {name: column[:1] for name, column in whole.columns().items()}


@BOTH
@pytest.mark.parametrize("budget", [0.4, 0.7, 1.0])
def test_a_budget_is_held_on_average(
    which: str, budget: float, images: Images, request: pytest.FixtureRequest
) -> None:
    governor: Governor = request.getfixturevalue(which)
    spent = governor.predict(images, budget=budget).macs.mean() / governor.path.full_macs
    # 0.005 is what `calibrate` promises; it was calibrated on these very images.
    assert abs(spent - budget) <= 0.005


def test_no_images_give_no_answers(governor: Governor) -> None:
    said = governor.predict(np.zeros((0, 1, 8, 8), np.float32))
    assert len(said) == 0
    assert all(len(column) == 0 for column in said.columns().values())


def test_a_read_only_array_is_answered(governor: Governor, images: Images) -> None:
    locked = images[:4].copy()
    locked.setflags(write=False)
    np.testing.assert_array_equal(governor.predict(locked).macs, governor.predict(images[:4]).macs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 1, 9, 9), np.float32), r"\(B, 1, 8, 8\).*\(2, 1, 9, 9\) came"),
        (np.zeros((1, 8, 8), np.float32), "add the batch axis"),
        (np.zeros((2, 1, 8, 8), np.uint8), "uint8 came. Divide bytes by 255"),
        (np.zeros((2, 1, 8, 8)), "float64 came"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "image 0 has NaN"),
        (np.full((2, 1, 8, 8), 255, np.float32), "from 255 to 255"),
        (np.full((2, 1, 8, 8), -0.1, np.float32), "do not normalise"),
    ],
)
def test_images_that_cannot_be_answered_are_refused_before_anything_runs(
    governor: Governor, given: NDArray[np.generic], message: str
) -> None:
    before = governor.path.forwards
    with pytest.raises(DataError, match=message):
        governor.predict(given)
    assert governor.path.forwards == before


@pytest.mark.parametrize("budget", [0.0, 5.0, float("nan")])
def test_a_budget_that_no_arm_costs_is_refused(
    governor: Governor, images: Images, budget: float
) -> None:
    with pytest.raises(InvalidSetting, match="budget"):
        governor.predict(images[:2], budget=budget)


def test_a_controller_of_other_arms_is_refused(governor: Governor) -> None:
    controller = _network(governor)
    with pytest.raises(ArmMismatch, match=r"u = 0\.3"):
        Governor(governor.path, replace(controller, arms=(0.3, 0.5, 1.0)))
    with pytest.raises(ArmMismatch, match="2 arms"):
        Governor(governor.path, replace(controller, arms=(0.5, 1.0), calibration=None))


def test_a_controller_of_another_data_path_is_refused(
    governor: Governor, other_path: FrozenDataPath
) -> None:
    with pytest.raises(ForeignArtifact, match=governor.path.fingerprint):
        Governor(other_path, _network(governor))


def test_a_controller_that_observes_something_else_is_refused(governor: Governor) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(5,\)"):
        Governor(governor.path, replace(_network(governor), observation_shape=(5,)))


def test_what_is_loaded_answers_as_what_was_saved(
    governor: Governor, governor_folder: Path, images: Images
) -> None:
    loaded = Governor.load(governor_folder)
    for budget in (None, 0.6):
        ours, theirs = governor.predict(images, budget), loaded.predict(images, budget)
        for name, column in ours.columns().items():
            np.testing.assert_array_equal(column, theirs.columns()[name])


def test_single_images_may_run_as_they_are(
    governor: Governor, governor_folder: Path, images: Images
) -> None:
    quick = Governor.load(governor_folder, fixed_shape=False)
    ours, theirs = governor.predict(images), quick.predict(images)
    np.testing.assert_array_equal(ours.macs, theirs.macs)
    # Other shapes take other algorithms: a few units in the last place of float32.
    np.testing.assert_allclose(ours.confidence, theirs.confidence, rtol=1e-5)


def test_a_folder_without_its_controller_and_a_pickle_are_refused(
    governor_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "governor"
    shutil.copytree(governor_folder, copy)
    program = copy / CONTROLLER_FOLDER / "controller.pt2"
    program.write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(PickleRefused):
        Governor.load(copy)
    shutil.rmtree(copy / CONTROLLER_FOLDER)
    with pytest.raises(CorruptArtifact, match=r"controller\.json does not exist"):
        Governor.load(copy)


def test_serving_imports_neither_environments_nor_ray_nor_mlflow() -> None:
    unwanted = ("ray", "mlflow", "gymnasium", "torchvision", "flyball.envs")
    code = (
        "import sys; import flyball.platform.governor;"
        f"print([name for name in {unwanted} if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    assert found.stdout.strip() == "[]"


def _network(governor: Governor) -> NetworkController:
    assert isinstance(governor.controller, NetworkController)
    return governor.controller
