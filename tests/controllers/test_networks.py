"""The controllers' networks: exact cost, stored standardisation, a start that prefers no arm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from flyball.controllers.export import load_controller, save_controller
from flyball.controllers.networks import (
    ControllerConfig,
    NetworkKind,
    Standardise,
    build_network,
    c3d_controller,
    fit_standardisation,
    network_macs,
)
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.c3d import C3dConfig, c3d_w, small_c3d
from flyball.datapaths.cost import executed_macs
from flyball.datapaths.errors import InvalidSetting, UnknownName
from flyball.datapaths.networks import make_network

VGG_D_MACS = 207_000_000
DIGITS = (1, 8, 8)
CIFAR = (3, 32, 32)
CLIPS = (1, 16, 32, 32)
GESTURES = (3, 16, 100, 160)


def test_macs_of_a_context_head_are_the_products_of_its_layer_sizes() -> None:
    network = build_network(ControllerConfig(width=32), (74,), 10)
    assert network_macs(network, (74,)) == 74 * 32 + 32 * 10


def test_a_head_without_hidden_layers_is_one_product() -> None:
    network = build_network(ControllerConfig(layers=0), (12,), 5)
    assert network_macs(network, (12,)) == 12 * 5


def test_macs_of_the_cnn_on_digits_by_hand() -> None:
    network = build_network(ControllerConfig(kind="image_cnn", width=32), DIGITS, 10)
    first = 4 * 4 * 16 * (1 * 3 * 3)
    second = 2 * 2 * 32 * (16 * 3 * 3)
    assert network_macs(network, DIGITS) == first + second + 128 * 32 + 32 * 10


def test_macs_of_the_cnn_on_cifar_by_hand_and_a_thousandth_of_the_data_path() -> None:
    network = build_network(ControllerConfig(kind="image_cnn", width=32), CIFAR, 10)
    first = 8 * 8 * 16 * (3 * 5 * 5)
    second = 4 * 4 * 32 * (16 * 3 * 3)
    macs = network_macs(network, CIFAR)
    assert macs == first + second + 512 * 32 + 32 * 10
    assert macs < 0.001 * VGG_D_MACS


@pytest.mark.parametrize("shape", [DIGITS, CIFAR, (3, 17, 5), (1, 1, 1), (2, 64, 48)])
def test_the_cnn_takes_any_size_and_gives_one_logit_an_arm(shape: tuple[int, int, int]) -> None:
    network = build_network(ControllerConfig(kind="image_cnn", width=4), shape, 7)
    assert network(torch.zeros(3, *shape)).shape == (3, 7)


def test_macs_of_the_clip_cnn_by_hand() -> None:
    network = build_network(ControllerConfig(kind="clip_cnn", width=32), CLIPS, 10)
    first = 4 * 8 * 8 * 8 * (1 * 5**3)
    second = 2 * 4 * 4 * 32 * (8 * 3**3)
    assert network_macs(network, CLIPS) == first + second + 1024 * 32 + 32 * 10


@pytest.mark.parametrize(
    ("path", "shape"), [(small_c3d(), CLIPS), (c3d_w(), GESTURES)], ids=["small", "published"]
)
def test_the_default_clip_cnn_costs_at_most_a_fiftieth_of_its_data_path(
    path: C3dConfig, shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        controller = build_network(ControllerConfig(kind="clip_cnn"), shape, 10)
        network = make_network(path)
    full = executed_macs(network.layer_costs(), network.components)
    assert network_macs(controller, shape) < 0.02 * full


@pytest.mark.parametrize("shape", [CLIPS, (3, 5, 17, 9), (1, 1, 1, 1), (2, 40, 6, 6)])
def test_the_clip_cnn_takes_any_size_and_gives_one_logit_an_arm(shape: tuple[int, ...]) -> None:
    network = build_network(ControllerConfig(kind="clip_cnn", width=4), shape, 7)
    assert network(torch.zeros(3, *shape)).shape == (3, 7)


def test_the_papers_controller_costs_most_of_what_its_data_path_costs() -> None:
    with torch.device("meta"):
        controller = build_network(c3d_controller(), GESTURES, 10).eval()
        network = make_network(c3d_w())
    full = executed_macs(network.layer_costs(), network.components)
    assert 0.69 < network_macs(controller, GESTURES) / full < 0.70


def test_a_clip_that_the_c3d_would_use_up_is_refused() -> None:
    assert build_network(ControllerConfig("c3d", width=4), (1, 5, 21, 21), 2) is not None
    for shape in [(1, 4, 21, 21), (1, 5, 20, 21), (1, 5, 21, 20)]:
        with pytest.raises(InvalidSetting, match=r"leave nothing of .*controller\.kind=clip_cnn"):
            build_network(ControllerConfig("c3d", width=4), shape, 2)


def clip_controller(kind: NetworkKind) -> tuple[NetworkController, NDArray[np.float32]]:
    """A controller that has seen clips, and these clips."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 5, 22, 24)
    network = build_network(ControllerConfig(kind, width=4), shape, 3, generator=generator)
    clips = np.random.default_rng(0).random((6, *shape), np.float32)
    fit_standardisation(network, clips)
    network.train()(torch.from_numpy(clips))  # running statistics that are not 0 and 1
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.mul_(100.0)
    return NetworkController(network.eval(), (0.2, 0.5, 1.0), 1, "image", shape), clips


@pytest.mark.parametrize("kind", ["clip_cnn", "c3d"])
def test_a_controller_for_clips_survives_its_file(kind: NetworkKind, tmp_path: Path) -> None:
    controller, clips = clip_controller(kind)
    loaded = load_controller(save_controller(controller, tmp_path, onnx=False))
    for count in (1, 2, 6):
        rows = clips[:count]
        assert np.array_equal(loaded.logits(rows), controller.logits(rows))


def test_the_onnx_file_of_a_c3d_computes_the_same_logits(tmp_path: Path) -> None:
    controller, clips = clip_controller("c3d")
    save_controller(controller, tmp_path)
    evaluator = ReferenceEvaluator(str(tmp_path / "controller.onnx"))
    (said,) = evaluator.run(None, {"observations": clips[:2]})
    # float32 in another order of summation
    expected = controller.logits(clips[:2])
    np.testing.assert_allclose(np.asarray(said), expected, rtol=1e-4, atol=1e-5)


def test_clips_are_standardised_by_channel() -> None:
    clips = np.random.default_rng(0).random((20, 3, 4, 8, 8), dtype=np.float32)
    clips[:, 1] *= 0.1
    network = build_network(ControllerConfig(kind="clip_cnn"), (3, 4, 8, 8), 2)
    fit_standardisation(network, clips)
    seen = network[0](torch.from_numpy(clips)).numpy()
    # Sums of 5120 float32 values.
    np.testing.assert_allclose(seen.std(axis=(0, 2, 3, 4)), 1.0, atol=1e-4)
    np.testing.assert_allclose(seen.mean(axis=(0, 2, 3, 4)), 0.0, atol=1e-4)


def test_standardised_training_observations_have_mean_0_and_spread_1() -> None:
    generator = np.random.default_rng(0)
    observations = generator.normal(5.0, [0.1, 10.0, 0.0], (500, 3)).astype(np.float32)
    network = build_network(ControllerConfig(), (3,), 2)
    fit_standardisation(network, observations)
    seen = network[0](torch.from_numpy(observations)).numpy()
    # float32 keeps 7 digits of a value 50 times its spread.
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(seen[:, :2].std(0), 1.0, atol=1e-4)
    np.testing.assert_array_equal(seen[:, 2], 0.0)


def test_images_are_standardised_by_channel() -> None:
    images = np.random.default_rng(0).random((50, 3, 8, 8), dtype=np.float32)
    images[:, 1] *= 0.1
    network = build_network(ControllerConfig(kind="image_cnn"), (3, 8, 8), 2)
    fit_standardisation(network, images)
    seen = network[0](torch.from_numpy(images)).numpy()
    # Sums of 3200 float32 values.
    np.testing.assert_allclose(seen.std(axis=(0, 2, 3)), 1.0, atol=1e-4)


def test_the_exported_program_carries_its_standardisation() -> None:
    observations = np.random.default_rng(0).normal(3.0, 2.0, (64, 6)).astype(np.float32)
    network = build_network(ControllerConfig(), (6,), 4).eval()
    fit_standardisation(network, observations)
    batch = torch.from_numpy(observations)
    program = torch.export.export(network, (batch,), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.testing.assert_close(program.module()(batch[:5]), network(batch[:5]))
    assert {name for name, _ in program.named_buffers()} == {"0.scale", "0.shift"}


def test_a_new_network_prefers_no_arm() -> None:
    generator = torch.Generator().manual_seed(0)
    network = build_network(ControllerConfig(), (20,), 10, generator=generator)
    policy = torch.softmax(network(torch.randn(100, 20, generator=generator)).detach(), -1)
    assert float((policy - 0.1).abs().max()) < 0.005


def test_one_generator_state_gives_one_network() -> None:
    def weights(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        network = build_network(ControllerConfig(), (6,), 4, generator=generator)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_standardise_takes_plain_numbers_in_its_own_shape() -> None:
    layer = Standardise((3, 1, 1))
    layer.assign([1.0, 2.0, 3.0], [1.0, 0.5, 0.25])
    assert layer(torch.full((1, 3, 1, 1), 3.0)).flatten().tolist() == [2.0, 0.5, 0.0]


def test_a_kind_that_does_not_fit_the_observation_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"context_head needs .*\(features,\).*\(3, 32, 32\)"):
        build_network(ControllerConfig(kind="context_head"), CIFAR, 10)
    with pytest.raises(InvalidSetting, match=r"clip_cnn needs .*\(channels, frames, height, width"):
        build_network(ControllerConfig(kind="clip_cnn"), CIFAR, 10)
    with pytest.raises(InvalidSetting, match=r"image_cnn needs .*\(channels, height, width\)"):
        build_network(ControllerConfig(kind="image_cnn"), (74,), 10)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'image_cnn'"):
        ControllerConfig(kind="image_cn")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="width is a whole number, 2 or more; it is 1"):
        ControllerConfig(width=1)
    with pytest.raises(InvalidSetting, match="layers is a whole number, 0 or more; it is -1"):
        ControllerConfig(layers=-1)
