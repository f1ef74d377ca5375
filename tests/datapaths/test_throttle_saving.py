"""Converted networks by configuration: made again, read from files, refused where they differ."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from flyball.datapaths.cost import executed_macs
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    InvalidSetting,
    PickleRefused,
    ShapeMismatch,
    UnknownName,
)
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.graph import (
    CustomConfig,
    TorchvisionConfig,
    densenet169_wn,
    pretrained,
    register_model,
    resnet50_wn,
    resnext50_wn,
    throttle,
)
from flyball.datapaths.networks import config_from_json, config_to_json, make_network

CLASSES = ("cat", "dog", "owl")


def small(**changes: Any) -> TorchvisionConfig:
    return TorchvisionConfig(**{"name": "resnet18", "classes": 3, "image_size": 32, **changes})


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(num_classes=3)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "convolutions"),
    [(resnet50_wn(), 4_087_136_256), (densenet169_wn(), None), (resnext50_wn(), 4_228_431_872)],
)
def test_the_imagenet_networks_have_the_papers_size(
    config: TorchvisionConfig, convolutions: int | None
) -> None:
    # MACs of all convolutions; 4.087, 3.358 and 4.228 G. The last linear layer comes on top.
    with torch.device("meta"):
        model = torchvision.models.get_model(config.name, weights=None)
    network, report = throttle(model, config.input_shape, components=config.components, strict=True)
    costs = network.layer_costs()
    macs = executed_macs(costs[:-1], network.components)
    assert macs == (convolutions or 3_358_179_328)
    assert executed_macs(costs[-1:], network.components) == 1000 * network.pooled_channels(
        network.components
    )
    # Half of the components on both sides of every layer: about a quarter of the work.
    assert 0.25 < executed_macs(costs, network.counts_at(0.5)) / macs < 0.275
    assert len(report.dense_layers) == 1


def test_a_configuration_survives_json() -> None:
    config = small(keep_dense=("layer1", "layer2.0"), divisor="largest", weights="DEFAULT")
    assert config_to_json(config)["kind"] == "torchvision"
    assert config_from_json(config_to_json(config)) == config


def test_a_frozen_path_is_read_without_its_pretrained_weights(tmp_path: Path) -> None:
    # Nothing is fetched: a saved path holds its own weights.
    config = small(weights="DEFAULT")
    network = make_network(config)
    spec = PathSpec(config, (1.0,), CLASSES, (0.5,) * 3, (0.25,) * 3)
    path = FrozenDataPath(network, spec)
    path.save(tmp_path)
    read = FrozenDataPath.load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(read(images, 1.0).output, path(images, 1.0).output)
    with pytest.raises(InvalidSetting, match=r"in \[0, 1\], not nan"):
        path(images, float("nan"))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_local_state_dict_gives_the_original_network(
    tmp_path: Path, original: nn.Module, ending: str
) -> None:
    file = tmp_path / f"weights{ending}"
    state = original.state_dict()
    if ending == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    network = pretrained(small(weights=str(file))).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = original(images)
        torch.testing.assert_close(network.sliced(images, network.components).logits, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), "layer2.0.conv1.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is left over"),
        (
            lambda s: s.update({"layer1.0.conv1.weight": torch.zeros(1, 2)}),
            r"layer1.0.conv1.weight has shape \(1, 2\), not \(64, 64, 3, 3\)",
        ),
        (
            lambda s: s.update({"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}),
            r"fc.weight has shape \(7, 512\), not \(3, 512\)",
        ),
    ],
)
def test_a_state_dict_of_another_network_is_refused(
    tmp_path: Path, original: nn.Module, change: Any, message: str
) -> None:
    state = dict(original.state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ShapeMismatch, match=message):
        pretrained(small(weights=str(tmp_path / "w.safetensors")))


def test_a_file_without_a_head_gets_a_new_one(tmp_path: Path, original: nn.Module) -> None:
    state = {n: t for n, t in original.state_dict().items() if not n.startswith("fc.")}
    save_file(state, tmp_path / "w.safetensors")
    network = pretrained(small(classes=5, weights=str(tmp_path / "w.safetensors")))
    assert network.classes == 5
    given = network.state_dict()["body.layer3.1.conv2.weight"]
    assert torch.equal(given, state["layer3.1.conv2.weight"])


def test_published_weights_keep_their_head_for_their_own_classes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    published = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(
        torchvision.models._api.WeightsEnum, "get_state_dict", lambda self, **_: published
    )
    whole = pretrained(small(classes=1000, weights="IMAGENET1K_V1")).state_dict()
    assert torch.equal(whole["body.fc.weight"], published["fc.weight"])
    assert torch.equal(
        whole["body.bn1.weight" if "body.bn1.weight" in whole else "body.conv1.norm.weight"],
        published["bn1.weight"],
    )
    other = pretrained(small(classes=3, weights="DEFAULT")).state_dict()
    assert other["body.fc.weight"].shape == (3, 512)
    assert torch.equal(other["body.conv1.weight"], published["conv1.weight"])


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any, **_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(DataError, match=r"no route to host.*--set path.weights=FILE"):
        pretrained(small(weights="DEFAULT"))


def test_the_older_names_of_densenet_files_are_known(tmp_path: Path) -> None:
    model = torchvision.models.densenet121(num_classes=3)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        old = name
        for layer in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    old = old.replace(f".{layer}{number}.", f".{layer}.{number}.")
        state[old] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    network = pretrained(small(name="densenet121", weights=str(tmp_path / "w.pth")))
    given = network.state_dict()["body.features.denseblock1.denselayer2.conv2.weight"]
    assert torch.equal(given, model.features.denseblock1.denselayer2.conv2.weight)


def test_files_that_hold_more_than_tensors_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), bad)
    with pytest.raises(PickleRefused, match="more than tensors"):
        pretrained(small(weights=str(bad)))
    bad.write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(PickleRefused):
        pretrained(small(weights=str(bad)))
    torch.save({"epoch": 3, "state": {}}, bad)
    with pytest.raises(CorruptArtifact, match="not a state dict"):
        pretrained(small(weights=str(bad)))
    bad.write_bytes(b"")
    with pytest.raises(CorruptArtifact, match="not a whole file"):
        pretrained(small(weights=str(bad)))
    with pytest.raises(CorruptArtifact, match="does not exist"):
        pretrained(small(weights=str(tmp_path / "none.pth")))


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'resnet50'"):
        small(name="resnet5O")
    with pytest.raises(UnknownName, match="set of weights for resnet18 'IMAGENET1K_V9'"):
        small(weights="IMAGENET1K_V9")
    with pytest.raises(UnknownName, match="divisor"):
        small(divisor="nearest")
    with pytest.raises(InvalidSetting, match="classes"):
        small(classes=0)
    with pytest.raises(InvalidSetting, match="Nothing in this model could be gated with 7"):
        make_network(small(components=7))


def test_an_own_model_is_made_again_once_it_is_registered() -> None:
    def tiny(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )

    config = CustomConfig("tiny_of_this_test", (1, 8, 8), {"width": 8}, components=4)
    with pytest.raises(UnknownName, match="Call register_model"):
        make_network(config)
    register_model("tiny_of_this_test", tiny)
    network = make_network(config_from_json(config_to_json(config)))
    assert network.components == (4,)
    assert network.classes == 3


def test_another_model_does_not_take_over_a_registered_name() -> None:
    def first() -> nn.Module:
        return nn.Identity()

    register_model("taken_in_this_test", first)
    register_model("taken_in_this_test", first)
    with pytest.raises(InvalidSetting, match=r"'taken_in_this_test' is registered for .*first"):
        register_model("taken_in_this_test", nn.Identity)


class Touches:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.file,)


def test_what_torch_fetched_before_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    url = torchvision.models.get_model_weights("resnet18")["DEFAULT"].url
    kept = tmp_path / "hub" / "checkpoints" / Path(url).name
    kept.parent.mkdir(parents=True)
    torch.save({"fc.weight": Touches(tmp_path / "it_ran")}, kept)
    with pytest.raises(PickleRefused, match="Delete it from hub/checkpoints"):
        pretrained(small(weights="DEFAULT"))
    assert not (tmp_path / "it_ran").exists()


def test_a_gating_that_does_not_exist_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3))
    with pytest.raises(UnknownName, match="Did you mean 'nested'"):
        throttle(model, (3, 8, 8), components=4, gating="nestde")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="Did you mean 'nested'"):
        CustomConfig("any", (3, 8, 8), gating="nestde")  # type: ignore[arg-type]
