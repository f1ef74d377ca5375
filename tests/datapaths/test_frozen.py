"""The frozen data path: same bits in any batch, refuses to change, and saved without a pickle."""

import copy
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    FrozenPathChanged,
    InvalidSetting,
    PickleRefused,
    ShapeMismatch,
)
from flyball.datapaths.files import read_tensors, write_tensors
from flyball.datapaths.forwards import forwards_here
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg

CLASSES = tuple("0123456789")


def frozen(**changes: object) -> FrozenDataPath:
    config = small_vgg(in_channels=1, image_size=8, **changes)
    torch.manual_seed(0)
    network = ThrottleableVgg(config)
    torch.nn.init.normal_(network.classifier.weight)
    return FrozenDataPath(network, PathSpec(config, (), CLASSES, (0.3,), (0.4,)))


@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_a_samples_bits_do_not_depend_on_its_batch(gating: str) -> None:
    path = frozen(gating=gating)
    images = torch.rand(130, 1, 8, 8)
    whole = path(images, 0.4).output
    alone = torch.cat([path(images[i : i + 1], 0.4).output for i in range(130)])
    assert torch.equal(whole, alone)
    order = torch.randperm(130)
    assert torch.equal(path(images[order], 0.4).output, whole[order])


def test_a_copy_of_a_used_path_answers_alike() -> None:
    path, images = frozen(), torch.rand(3, 1, 8, 8)
    answer = path(images, 0.4).output  # weights are packed by now
    assert torch.equal(copy.deepcopy(path)(images, 0.4).output, answer)


def test_whatever_asks_for_the_same_components_runs_together() -> None:
    path, images = frozen(), torch.rand(200, 1, 8, 8)
    u = torch.rand(200, generator=torch.Generator().manual_seed(0))
    answer = path(images, u)
    assert len(path._executions) <= 16  # no more than there are settings of 16 components
    for row in (0, 57, 199):
        assert torch.equal(answer.output[row], path(images[row : row + 1], float(u[row])).output[0])


@pytest.mark.parametrize("bad", [float("nan"), 1.5, -0.1])
def test_a_utilization_that_cannot_be_is_refused_before_anything_runs(bad: float) -> None:
    path = frozen()
    with pytest.raises(InvalidSetting, match=r"a number in \[0, 1\]"):
        path(torch.rand(3, 1, 8, 8), torch.tensor([0.1, 0.5, bad]))
    assert path.forwards == 0


def test_a_process_counts_the_passes_of_all_its_paths() -> None:
    first, second, before = frozen(), frozen(), forwards_here()
    first(torch.rand(3, 1, 8, 8), 0.5)
    second(torch.rand(2, 1, 8, 8), 1.0)
    assert forwards_here() - before == first.forwards + second.forwards == 5


def test_single_precision_asks_for_what_double_does() -> None:
    path = frozen(components=8, stages=((16,), (32,)), hidden=64)
    images, u = torch.rand(1, 1, 8, 8), torch.tensor([0.1], dtype=torch.float32) * 3 * 1.25
    assert path(images, u).macs.tolist() == [path.macs_at(0.375)]


def test_a_refused_network_stays_trainable() -> None:
    network = ThrottleableVgg(small_vgg(in_channels=1, image_size=8, norm="batch"))
    spec = PathSpec(network.config, (0.5, 1.0), CLASSES, (0.3,), (0.4,))
    with pytest.raises(InvalidSetting, match="never calibrated"):
        FrozenDataPath(network, spec)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("mean", "std"), [((0.3, 0.3), (0.4,)), ((0.3,), (0.0,))])
def test_every_channel_has_a_mean_and_a_deviation(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    network = ThrottleableVgg(small_vgg(in_channels=1, image_size=8))
    with pytest.raises(InvalidSetting, match="has a mean and a standard deviation above 0"):
        FrozenDataPath(network, PathSpec(network.config, (), CLASSES, mean, std))


def test_bytes_are_refused_as_inputs() -> None:
    with pytest.raises(DataError, match="Divide bytes by 255"):
        frozen()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0.5)


def test_a_mixed_batch_gives_every_sample_its_own_arm() -> None:
    path = frozen()
    images, u = torch.rand(30, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0]).repeat(10)
    mixed = path(images, u)
    for value in (0.1, 0.5, 1.0):
        rows = (u == value).nonzero().flatten()
        assert torch.equal(mixed.output[rows], path(images[rows], value).output)
        assert mixed.macs[rows].unique().tolist() == [path.macs_at(value)]


def test_the_batch_as_it_is_gives_the_same_numbers() -> None:
    path = frozen()
    images = torch.rand(5, 1, 8, 8)
    # float32 in another batch shape: other algorithms, rounding of a few units in the last place
    torch.testing.assert_close(
        path(images, 0.7, fixed_shape=False).output, path(images, 0.7).output, rtol=1e-4, atol=1e-5
    )


def test_arms_cost_more_the_higher_they_are_and_the_last_costs_everything() -> None:
    path = frozen()
    assert list(path.arm_macs) == sorted(set(path.arm_macs))
    assert path.arm_macs[-1] == path.full_macs == 347_392
    assert path.context_macs == path.arm_macs[0]


def test_the_context_is_what_the_lowest_arm_saw_and_said() -> None:
    path = frozen()
    images = torch.rand(7, 1, 8, 8)
    context, lowest = path.context(images)
    assert context.shape == (7, path.context_size)
    assert torch.equal(lowest.output, path(images, path.arms[0]).output)
    probabilities = torch.softmax(lowest.output, dim=1)
    assert torch.equal(context[:, -12:-2], torch.log_softmax(lowest.output, dim=1))
    torch.testing.assert_close(context[:, -2], probabilities.amax(dim=1))
    torch.testing.assert_close(context[:, -1], torch.special.entr(probabilities).sum(dim=1))


def test_other_arms_keep_the_fingerprint_and_other_weights_change_it() -> None:
    path = frozen()
    assert path.with_arms((0.5, 1.0)).fingerprint == path.fingerprint
    assert path.with_arms((0.5, 1.0)).arm_macs == (path.macs_at(0.5), path.full_macs)
    weights = dict(path.network.named_parameters())["classifier.weight"]
    with torch.no_grad():
        weights[0, 0] += 1e-3
    assert FrozenDataPath(path.network, path.spec).fingerprint != path.fingerprint


def test_it_refuses_to_be_trained() -> None:
    path = frozen()
    with pytest.raises(FrozenPathChanged, match="cannot be trained"):
        path.train()
    with pytest.raises(FrozenPathChanged, match="no gradients"):
        path.requires_grad_(True)
    assert path.eval() is path
    assert not path(torch.rand(2, 1, 8, 8), 1.0).output.requires_grad
    assert not any(parameter.requires_grad for parameter in path.parameters())


def test_bad_questions_are_refused() -> None:
    path = frozen()
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\).*these are \(3, 8, 8\)"):
        path(torch.rand(2, 3, 8, 8), 1.0)
    with pytest.raises(InvalidSetting, match=r"in \[0, 1\], not nan"):
        path(torch.rand(2, 1, 8, 8), float("nan"))
    with pytest.raises(InvalidSetting, match="one for each of the 2 samples"):
        path(torch.rand(2, 1, 8, 8), torch.tensor([0.5]))
    with pytest.raises(InvalidSetting, match="10 classes apart, 2 are named"):
        FrozenDataPath(path.network, PathSpec(path.spec.network, (), ("a", "b"), (0.3,), (0.4,)))


def test_it_comes_back_from_disk_with_the_same_answers(tmp_path: Path) -> None:
    path = frozen()
    path.save(tmp_path)
    again = FrozenDataPath.load(tmp_path)
    images = torch.rand(9, 1, 8, 8)
    assert again.fingerprint == path.fingerprint
    assert torch.equal(again(images, 0.6).output, path(images, 0.6).output)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["path.json", "path.safetensors"]


def test_a_path_fresh_from_training_answers_as_the_saved_one(tmp_path: Path) -> None:
    """Training leaves weights in channels-last order, which rounds differently."""
    config = small_vgg(in_channels=1, image_size=8)
    network = ThrottleableVgg(config)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    path = FrozenDataPath(network, PathSpec(config, (), CLASSES, (0.3,), (0.4,)))
    path.save(tmp_path)
    images = torch.rand(9, 1, 8, 8)
    assert torch.equal(FrozenDataPath.load(tmp_path)(images, 1.0).output, path(images, 1.0).output)
    assert all(parameter.is_contiguous() for parameter in path.parameters())


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_a_truncated_weights_file_is_refused(tmp_path: Path, keep: int) -> None:
    frozen().save(tmp_path)
    file = tmp_path / "path.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        CorruptArtifact, match=rf"path\.safetensors \({keep} bytes\) is not a whole"
    ):
        FrozenDataPath.load(tmp_path)


def test_an_altered_weight_is_found(tmp_path: Path) -> None:
    frozen().save(tmp_path)
    weights = read_tensors(tmp_path / "path.safetensors")
    weights["classifier.bias"][0] += 1.0
    write_tensors(tmp_path / "path.safetensors", weights)
    with pytest.raises(CorruptArtifact, match="a file was altered"):
        FrozenDataPath.load(tmp_path)


def test_weights_of_other_shapes_name_the_layer(tmp_path: Path) -> None:
    frozen().save(tmp_path)
    weights = read_tensors(tmp_path / "path.safetensors")
    weights["hidden.weight"] = np.zeros((3, 3), np.float32)
    write_tensors(tmp_path / "path.safetensors", weights)
    with pytest.raises(ShapeMismatch, match=r"hidden\.weight has shape \(3, 3\)"):
        FrozenDataPath.load(tmp_path)
    del weights["hidden.weight"]
    write_tensors(tmp_path / "path.safetensors", weights)
    with pytest.raises(ShapeMismatch, match=r"missing \['hidden\.weight'\]"):
        FrozenDataPath.load(tmp_path)


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_a_pickle_is_refused(tmp_path: Path, kind: str) -> None:
    path = frozen()
    path.save(tmp_path)
    if kind == "bare":
        (tmp_path / "path.safetensors").write_bytes(pickle.dumps({"weights": 1}))
    else:
        buffer = io.BytesIO()
        torch.save(path.network.state_dict(), buffer)
        (tmp_path / "path.safetensors").write_bytes(buffer.getvalue())
    with pytest.raises(PickleRefused, match="is a pickle, and Flyball loads none"):
        FrozenDataPath.load(tmp_path)


def test_a_specification_of_something_else_is_refused(tmp_path: Path) -> None:
    frozen().save(tmp_path)
    (tmp_path / "path.json").write_text(json.dumps({"format": 1, "network": {"stages": 3}}))
    with pytest.raises(CorruptArtifact, match="not the specification of a data path"):
        FrozenDataPath.load(tmp_path)
    (tmp_path / "path.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="not valid JSON"):
        FrozenDataPath.load(tmp_path)
