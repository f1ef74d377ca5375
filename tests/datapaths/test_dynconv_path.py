"""Training, calibration and the frozen path of dynamic convolution networks, on real digits."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.dynconv.calibration import Calibration, calibrate
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.hourglass import small_hourglass
from flyball.datapaths.dynconv.masks import Masking
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.dynconv.resnet import (
    DynConvResNet,
    DynConvResNetConfig,
    load_torchvision_resnet,
)
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.dynconv.stage import train_dynconv_path
from flyball.datapaths.dynconv.training import Classification, train_dynconv
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    FrozenPathChanged,
    InvalidArms,
    InvalidSetting,
    NotFinite,
    ShapeMismatch,
)
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.paths import open_path
from flyball.datapaths.phase1 import resized_crop
from flyball.datapaths.progress import Progress
from flyball.datapaths.schedules import Phase1Config, learning_rate_at

NETWORK = DynConvResNetConfig(layers=(1, 1), widths=(8, 16), in_channels=1, image_size=8)
CONFIG = DynConvConfig(network=NETWORK, sparsity=SparsityConfig(bounds_end=0.5))
PHASE1 = Phase1Config(epochs=4, batch_size=64, learning_rate=0.1, checkpoint_seconds=0.0)
ARMS = (0.2, 0.5, 1.0)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataConfig(name="digits", fractions=(0.3, 0.3, 0.2, 0.2)))


@pytest.fixture(scope="module")
def path(digits: ImageSet) -> DynConvPath:
    pixels = np.asarray(digits.images)[digits.rows("path_train")]
    return train_dynconv_path(
        CONFIG, PHASE1, digits, pixels, mean=(0.3,), std=(0.37,), arms=ARMS
    ).path


def images_of(digits: ImageSet, split: str, count: int | None = None) -> torch.Tensor:
    rows = digits.rows(split)[:count]
    return torch.from_numpy(np.asarray(digits.images)[rows]).float() / 255.0


def test_a_requested_budget_is_executed_within_a_point_where_it_was_calibrated(
    path: DynConvPath, digits: ImageSet
) -> None:
    x = images_of(digits, "controller_train")
    always = path.cost.fixed + path.cost.units
    for u in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        spent = (path(x, u).macs - always).double().mean() / path.cost.conditional
        assert abs(float(spent) - u) < 0.01
    for u in (0.2, 0.5):
        assert abs(path.macs_at(u) - float(path(x, u).macs.double().mean())) < 2


def test_everything_runs_at_u_1(path: DynConvPath, digits: ImageSet) -> None:
    x = images_of(digits, "test", 5)
    assert path(x, 1.0).macs.tolist() == [path.full_macs] * 5
    assert path.full_macs == path.cost.fixed + path.cost.conditional


def test_cost_depends_on_the_image(path: DynConvPath, digits: ImageSet) -> None:
    macs = path(images_of(digits, "test"), 0.5).macs
    assert len(set(macs.tolist())) > 10


def test_a_batch_of_mixed_u_gives_each_image_the_bits_it_has_alone(
    path: DynConvPath, digits: ImageSet
) -> None:
    x = images_of(digits, "test", 9)
    u = torch.tensor([0.2, 1, 0.5, 0.35, 1, 0.2, 0.9, 0, 0.5], dtype=torch.float64)
    mixed = path(x, u)
    for row in range(9):
        alone = path(x[row : row + 1], float(u[row]))
        assert torch.equal(alone.output[0], mixed.output[row])
        assert alone.macs[0] == mixed.macs[row]


def test_the_context_is_the_lowest_arm(path: DynConvPath, digits: ImageSet) -> None:
    x = images_of(digits, "test", 4)
    features, answer = path.context(x)
    lowest = path(x, ARMS[0])
    assert torch.equal(answer.output, lowest.output)
    assert torch.equal(answer.macs, lowest.macs)
    assert features.shape == (4, path.context_size)
    assert torch.allclose(features[:, -1], lowest.macs / path.full_macs)


def test_examining_counts_the_blocks_that_ran_at_every_pixel(
    path: DynConvPath, digits: ImageSet
) -> None:
    x = images_of(digits, "test", 70)
    seen = path.examine(x, 0.5)
    assert torch.equal(seen.macs, path(x, 0.5).macs)
    assert seen.ponder.shape == (70, 8, 8)
    # two blocks, one on every pixel and one on every second
    assert float(seen.ponder.max()) <= 2
    assert torch.allclose(seen.ponder.mean(dim=(1, 2)), seen.rates.sum(dim=1))
    assert path.examine(x[:2], 1.0).ponder.tolist() == torch.full((2, 8, 8), 2.0).tolist()


def test_an_atlas_keeps_the_macs_of_every_image(
    path: DynConvPath, digits: ImageSet, tmp_path: Path
) -> None:
    atlas = build_atlas(path, digits, tmp_path / "atlas", OutcomesConfig(shard_size=300))
    rows = np.asarray(atlas.sample)
    x = torch.from_numpy(np.asarray(digits.images)[rows]).float() / 255.0
    for arm, u in enumerate(ARMS):
        assert np.array_equal(atlas.macs[:, arm], path(x, u).macs.numpy())
    assert atlas.header.full_macs == path.full_macs
    own = atlas.net_macs(7, uses_context=True)
    assert np.array_equal(own[:, 0], atlas.macs[:, 0] + 7)
    assert np.array_equal(own[:, 1], atlas.macs[:, 1] + atlas.macs[:, 0] + 7)


def test_macs_are_not_counted_as_the_tnn_paper_does(
    path: DynConvPath, digits: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSetting, match="costs what its masks execute"):
        build_atlas(path, digits, tmp_path / "a", OutcomesConfig(cost_model="linear"))
    assert not (tmp_path / "a").exists()


def test_a_saved_path_answers_alike(path: DynConvPath, digits: ImageSet, tmp_path: Path) -> None:
    path.save(tmp_path)
    again = open_path(tmp_path)
    x = images_of(digits, "test", 6)
    assert again.fingerprint == path.fingerprint
    assert torch.equal(again(x, 0.3).output, path(x, 0.3).output)
    assert copy.deepcopy(path)(x, 0.3).macs.tolist() == path(x, 0.3).macs.tolist()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text["calibration"]["offsets"].__setitem__(0, 9.0),
        lambda text: text.pop("calibration"),
        lambda text: text.update(format=99),
    ],
)
def test_an_altered_specification_is_refused(
    path: DynConvPath, tmp_path: Path, spoil: Callable[[Any], Any]
) -> None:
    path.save(tmp_path)
    text = json.loads((tmp_path / "path.json").read_text())
    spoil(text)
    (tmp_path / "path.json").write_text(json.dumps(text))
    with pytest.raises(CorruptArtifact, match="path"):
        open_path(tmp_path)


def test_a_frozen_path_refuses_to_train(path: DynConvPath) -> None:
    with pytest.raises(FrozenPathChanged, match="flyball path"):
        path.train()


@pytest.mark.parametrize("u", [-0.1, 1.1, float("nan")])
def test_a_utilization_outside_0_1_is_refused(
    path: DynConvPath, digits: ImageSet, u: float
) -> None:
    x = images_of(digits, "test", 2)
    with pytest.raises(InvalidSetting):
        path(x, u)
    with pytest.raises(InvalidSetting):
        path(x, torch.tensor([0.5, u]))


def test_u_is_one_number_or_one_for_each_image(path: DynConvPath, digits: ImageSet) -> None:
    with pytest.raises(InvalidSetting, match="one for each of the 2 samples"):
        path(images_of(digits, "test", 2), torch.tensor([0.5]))


def test_images_of_another_shape_or_kind_are_refused(path: DynConvPath) -> None:
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\)"):
        path(torch.zeros(1, 1, 9, 9), 0.5)
    with pytest.raises(DataError, match="Divide bytes by 255"):
        path(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0.5)


@pytest.mark.parametrize("fixed_shape", [True, False])
def test_no_images_have_no_answers(path: DynConvPath, fixed_shape: bool) -> None:
    answer = path(torch.zeros(0, 1, 8, 8), 0.5, fixed_shape=fixed_shape)
    assert answer.output.shape == (0, 10)
    assert answer.macs.shape == (0,)
    with pytest.raises(DataError, match="nothing to examine"):
        path.examine(torch.zeros(0, 1, 8, 8), 0.5)


def test_an_interrupted_training_ends_with_the_same_weights(
    digits: ImageSet, tmp_path: Path
) -> None:
    rows = digits.rows("path_train")[:192]
    pixels, labels = np.asarray(digits.images)[rows], np.asarray(digits.labels)[rows]

    def trained(folder: Path | None, stop_after: int | None = None) -> Any:
        torch.manual_seed(0)
        network = DynConvResNet(NETWORK)

        def stop(progress: Progress) -> None:
            if stop_after is not None and progress.done == stop_after:
                raise KeyboardInterrupt

        return train_dynconv(
            network,
            pixels,
            Classification(labels),
            PHASE1,
            CONFIG.sparsity,
            mean=(0.3,),
            std=(0.37,),
            labels=labels,
            folder=folder,
            report=stop,
        )

    whole = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_after=7)
    resumed = trained(tmp_path)
    assert resumed.resumed_from == 2
    assert resumed.losses == whole.losses
    assert np.array_equal(resumed.history, whole.history)
    assert resumed.history.shape == (4, 2)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    other = replace(CONFIG.sparsity, alpha=1.0)
    torch.manual_seed(0)
    with pytest.raises(ForeignArtifact, match="another training"):
        train_dynconv(
            DynConvResNet(NETWORK),
            pixels,
            Classification(labels),
            PHASE1,
            other,
            mean=(0.3,),
            std=(0.37,),
            labels=labels,
            folder=tmp_path,
        )


def test_training_says_where_its_loss_went(digits: ImageSet) -> None:
    rows = digits.rows("path_train")[:64]
    with pytest.raises(NotFinite, match="epoch 0, step 0"):
        train_dynconv(
            DynConvResNet(NETWORK),
            np.asarray(digits.images)[rows],
            Classification(np.asarray(digits.labels)[rows]),
            PHASE1,
            CONFIG.sparsity,
            mean=(float("nan"),),
            std=(0.37,),
            labels=np.asarray(digits.labels)[rows],
        )


def test_a_network_of_one_budget_is_trained_for_it_and_throttled_all_the_same(
    digits: ImageSet,
) -> None:
    """The published networks have one theta; calibration alone makes them obey u."""
    config = DynConvConfig(
        network=replace(NETWORK, is_budgeted=False),
        sparsity=SparsityConfig(target=0.5, bounds_end=0.33),
    )
    pixels = np.asarray(digits.images)[digits.rows("path_train")]
    made = train_dynconv_path(config, PHASE1, digits, pixels, mean=(0.3,), std=(0.37,), arms=ARMS)
    assert made.path.network.shift is None
    x = images_of(digits, "controller_train")
    always = made.path.cost.fixed + made.path.cost.units
    spent = (made.path(x, 0.2).macs - always).double().mean() / made.path.cost.conditional
    assert abs(float(spent) - 0.2) < 0.01


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"calibration_samples": 0}, "at least one image"),
        ({"network": replace(NETWORK, is_budgeted=False)}, "trained for one budget"),
        ({"network": replace(NETWORK, mask_unit="none")}, "throttled by its masks"),
        ({"sigma": 0.0}, "sigma above 0"),
    ],
)
def test_a_configuration_that_cannot_be_throttled_is_refused(
    changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InvalidSetting, match=rule):
        DynConvConfig(**{"network": NETWORK, **changes})


def test_training_for_one_budget_needs_it(digits: ImageSet) -> None:
    rows = digits.rows("path_train")[:8]
    with pytest.raises(InvalidSetting, match="none is given"):
        train_dynconv(
            DynConvResNet(replace(NETWORK, is_budgeted=False)),
            np.asarray(digits.images)[rows],
            Classification(np.asarray(digits.labels)[rows]),
            PHASE1,
            SparsityConfig(),
            mean=(0.3,),
            std=(0.37,),
            labels=np.asarray(digits.labels)[rows],
        )


def test_calibration_needs_inputs_and_budgets_in_range() -> None:
    network = DynConvResNet(NETWORK)
    with pytest.raises(InvalidSetting, match="there are none"):
        calibrate(network.prepared(), network.costs(), [], (0.5,))
    with pytest.raises(InvalidSetting, match=r"\(0, 1\]"):
        calibrate(network.prepared(), network.costs(), [torch.zeros(1, 1, 8, 8)], (0.0, 0.5))


def test_offsets_are_linear_between_budgets_and_constant_beyond() -> None:
    kept = Calibration((0.2, 0.4), (-1.0, 1.0), (0.2, 0.4), 10)
    given = kept.offset_at(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.8]))
    assert given.tolist() == pytest.approx([-1, -1, 0, 1, 1], abs=1e-6)
    assert kept.share_at(0.3) == pytest.approx(0.3)
    assert kept.held(torch.tensor([0.1, 0.3, 0.9])).tolist() == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize("budgets", [(), (0.5, 0.3), (0.3, 0.3)])
def test_calibrated_budgets_increase(budgets: tuple[float, ...]) -> None:
    with pytest.raises(InvalidSetting, match="each above the one before"):
        Calibration(budgets, (0.0,) * len(budgets), budgets, 1)


def test_calibration_sorts_budgets_and_refuses_those_out_of_reach() -> None:
    torch.manual_seed(0)
    network = DynConvResNet(NETWORK)
    x = [torch.randn(64, 1, 8, 8)]
    kept = calibrate(network.prepared(), network.costs(), x, (0.5, 0.3, 0.3, 1.0))
    assert kept.budgets == (0.3, 0.5)
    assert kept.shares == pytest.approx((0.3, 0.5), abs=1e-3)
    for block in network.conditional:
        assert block.unit is not None
        torch.nn.init.constant_(block.unit.linear.bias, 1e3)  # type: ignore[union-attr, arg-type]
    with pytest.raises(InvalidSetting, match=r"No offset .* executes 30%"):
        calibrate(network.prepared(), network.costs(), x, (0.3,))


@pytest.mark.parametrize("arms", [(0.05, 1.0), (0.5, 0.95)])
def test_arms_that_were_not_calibrated_are_refused(
    path: DynConvPath, arms: tuple[float, ...]
) -> None:
    with pytest.raises(InvalidArms, match=r"between 0\.1 and 0\.9"):
        path.with_arms(arms)
    assert path.with_arms((1.0,)).arm_macs == (path.full_macs,)


def test_a_utilization_beyond_the_calibration_is_served_as_the_nearest_within(
    path: DynConvPath, digits: ImageSet
) -> None:
    x = images_of(digits, "test", 3)
    assert torch.equal(path(x, 0.0).output, path(x, 0.1).output)
    assert path(x, 0.97).macs.tolist() == path(x, 0.9).macs.tolist()
    assert path.macs_at(0.97) == path.macs_at(0.9) < path.full_macs


def test_sparse_execution_needs_packed_weights_and_a_copy_can_be_packed_again() -> None:
    network = DynConvResNet(NETWORK).eval()
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(InvalidSetting, match=r"prepared\(\)"):
        network.run(x, Masking(is_sparse=True))
    made = network.prepared()
    with pytest.raises(InvalidSetting, match=r"prepared\(\)"):
        copy.deepcopy(made).run(x, Masking(is_sparse=True))
    with torch.no_grad():
        again = made.prepared().run(x, Masking(is_sparse=True)).logits
        assert torch.equal(again, made.run(x, Masking(is_sparse=True)).logits)


def test_every_budget_of_a_small_batch_has_a_sample(digits: ImageSet) -> None:
    rows = digits.rows("path_train")[:2]
    labels = np.asarray(digits.labels)[rows]
    torch.manual_seed(0)
    given = train_dynconv(
        DynConvResNet(NETWORK),
        np.asarray(digits.images)[rows],
        Classification(labels),
        replace(PHASE1, epochs=1),
        replace(CONFIG.sparsity, lowest=0.9),
        mean=(0.3,),
        std=(0.37,),
        labels=labels,
    )
    # budgets of .9 and more at the start of training: nearly everything runs
    assert given.history.min() > 0.7


def test_weights_of_torchvision_start_a_network_of_its_layers() -> None:
    config = DynConvResNetConfig(
        layers=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        bottleneck=True,
        stem="imagenet",
        image_size=64,
        classes=10,
    )
    torch.manual_seed(0)
    network, theirs = DynConvResNet(config).eval(), torchvision.models.resnet50(num_classes=10)
    load_torchvision_resnet(network, theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.run(x, Masking()).logits, theirs.eval()(x))
    head = network.head.weight.clone()
    load_torchvision_resnet(network, torchvision.models.resnet50().state_dict())
    assert torch.equal(network.head.weight, head)
    with pytest.raises(ShapeMismatch, match=r"--set path.weights=FILE"):
        load_torchvision_resnet(network, torchvision.models.resnet34().state_dict())


@pytest.mark.parametrize(
    ("network", "weights", "rule"),
    [
        (NETWORK, "DEFAULT", "ResNets of bottlenecks"),
        (replace(NETWORK, bottleneck=True, stem="imagenet"), "DEFAULT", "layers 3,4,23,3"),
        (small_hourglass(), "DEFAULT", "it has no hourglass"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_fetched(
    network: Any, weights: str, rule: str
) -> None:
    with pytest.raises(InvalidSetting, match=rule):
        DynConvConfig(network=network, weights=weights)


def test_a_random_resized_crop_shows_a_part_of_the_image() -> None:
    x = torch.linspace(0, 1, 64).expand(200, 1, 64, 64).contiguous()
    given = resized_crop(x, torch.Generator().manual_seed(0))
    assert given.shape == x.shape
    spread = given.amax(dim=(1, 2, 3)) - given.amin(dim=(1, 2, 3))
    # widths of .24 to 1 of the ramp, either way round
    assert 0.2 < float(spread.min()) < 0.5
    assert 0.9 < float(spread.max()) <= 1.0
    is_flipped = given[:, 0, 0, 0] > given[:, 0, 0, -1]
    assert 60 < int(is_flipped.sum()) < 140


def test_a_rate_falls_to_a_tenth_at_every_milestone() -> None:
    config = Phase1Config(
        learning_rate=0.1, warmup_epochs=0, rate_schedule="steps", milestones=(150, 250)
    )
    rates = [learning_rate_at(config, epoch) for epoch in (0, 149.9, 150, 250)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
