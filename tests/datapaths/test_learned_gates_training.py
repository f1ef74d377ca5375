"""Phase 2 for gates: what each estimator finds, resume to the same bits, refusals before work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.datapaths.axes import dense, gated
from flyball.datapaths.cost import LayerCost
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    InvalidSetting,
    NotFinite,
)
from flyball.datapaths.files import read_tensors, write_tensors
from flyball.datapaths.learned_gates import (
    GateConfig,
    GateResult,
    LearnedGate,
    accuracy_at,
    fixed_curve,
    gate_curve,
    train_gates,
)
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.progress import Progress
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg

USEFUL = 2
SCALE: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
QUICK = GateConfig(epochs=8, batch_size=64, learning_rate=0.02, checkpoint_seconds=0.0)


@dataclass(frozen=True)
class ToyConfig:
    modules: int = 1
    least: int = 0


class Toy(ThrottleableNetwork):
    """Tells dark from bright by one of its components; the other ones say nothing."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.components = (4,) * config.modules
        self.least = (config.least,) * config.modules
        self.input_shape, self.classes = (1, 1, 1), 2
        self.strength = nn.Parameter(torch.tensor([8.0]))

    def masked(self, x: Tensor, masks: Any, statistics: Any = None) -> Tensor:
        side = self.strength * (x.flatten(1)[:, 0] - 0.5) * masks[0][:, USEFUL]
        return torch.stack([-side, side], dim=1)

    def layer_costs(self) -> tuple[LayerCost, ...]:
        return tuple(
            LayerCost(f"part.{m}", 10, dense(1), gated(4, m, 4)) for m in range(self.config.modules)
        )


def toy_images(count: int = 640) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.arange(count) % 2
    return (labels * 255).astype(np.uint8).reshape(-1, 1, 1, 1), labels.astype(np.int64)


def trained(config: GateConfig, network: ThrottleableNetwork, **more: Any) -> GateResult:
    images, labels = toy_images()
    return train_gates(network, images, labels, config, **SCALE, **more)


def weights_of(result: GateResult) -> dict[str, Tensor]:
    return dict(result.gate.network.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "reinforce", "baseline": "leave_one_out"},
        {"estimator": "reinforce", "baseline": "moving_average", "epochs": 24},
        {"estimator": "reinforce", "baseline": "self_critical"},
        {"estimator": "concrete"},
        {"estimator": "concrete", "gate": "contextual", "weighting": "macs"},
    ],
    ids=lambda changes: "-".join(str(v) for v in changes.values()),
)
def test_every_estimator_finds_the_useful_component_and_the_target(changes: Any) -> None:
    network = Toy(ToyConfig())
    gate = trained(replace(QUICK, **changes), network).gate
    blank = torch.zeros(1, 1, 1, 1)
    for u in (0.25, 0.5, 0.75):
        (mask,) = gate.serve(blank, u)
        assert mask[0, USEFUL] == 1.0
        # |c - u| at most one component of four, u being between two whole numbers at times
        assert abs(float(mask.mean()) - u) <= 0.25
    images, labels = toy_images()
    curve = gate_curve(network, gate, images, labels, (0.25, 0.5, 1.0), **SCALE)
    assert curve.accuracy == (1.0, 1.0, 1.0)


def test_blind_gates_do_not_look_and_contextual_ones_do() -> None:
    images = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    blind = trained(replace(QUICK, epochs=1), Toy(ToyConfig())).gate
    contextual = trained(replace(QUICK, epochs=1, gate="contextual"), Toy(ToyConfig())).gate
    unseen, seen = (gate.probabilities(images, 0.5) for gate in (blind, contextual))
    assert torch.equal(unseen, unseen[:1].expand_as(unseen))
    assert len(set(seen[:, 0].tolist())) == 6


def test_a_module_without_skip_connection_always_keeps_one_component() -> None:
    network = Toy(ToyConfig(modules=2, least=1))
    gate = trained(replace(QUICK, epochs=2, complexity_weight=50.0), network).gate
    for mask in gate.serve(torch.zeros(1, 1, 1, 1), 0.0):
        assert mask.sum() >= 1


def test_serving_is_deterministic_and_thresholds_at_one_half() -> None:
    gate = trained(replace(QUICK, epochs=1), Toy(ToyConfig())).gate
    images, u = torch.zeros(5, 1, 1, 1), torch.linspace(0, 1, 5)
    (mask,) = gate.serve(images, u)
    assert torch.equal(mask, (gate.probabilities(images, u) >= 0.5).float())
    assert torch.equal(mask, gate.serve(images, u)[0])


def test_the_frozen_data_path_stays_and_the_joint_one_moves() -> None:
    for joint in (False, True):
        for estimator in ("reinforce", "concrete"):
            network = Toy(ToyConfig())
            config = replace(QUICK, epochs=1, joint=joint, estimator=estimator)
            gate = trained(config, network).gate
            assert (network.strength.item() != 8.0) is joint
            assert network.strength.requires_grad
            gate.check_network(network)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("estimator", ["reinforce", "concrete"])
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, joint: bool, estimator: str
) -> None:
    config = replace(
        QUICK,
        epochs=3,
        joint=joint,
        estimator=estimator,  # type: ignore[arg-type]
        baseline="moving_average",
    )
    whole = Toy(ToyConfig())
    undisturbed = trained(config, whole)

    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, Toy(ToyConfig()), folder=tmp_path, report=interrupt)
    again = Toy(ToyConfig())
    resumed = trained(config, again, folder=tmp_path)
    assert resumed.resumed_from == 2
    assert resumed.forwards == 640 * 2  # one epoch of two draws was left
    assert resumed.task_losses == undisturbed.task_losses
    assert torch.equal(again.strength, whole.strength)
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, weights_of(undisturbed)[name]), name


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    config = replace(QUICK, epochs=2)
    trained(config, Toy(ToyConfig()), folder=tmp_path)
    with pytest.raises(ForeignArtifact, match="another training of gates"):
        trained(replace(config, complexity_weight=1.0), Toy(ToyConfig()), folder=tmp_path)


@pytest.mark.parametrize("change", ["pixels", "mean", "std"])
def test_a_checkpoint_of_other_images_or_another_scale_is_refused(
    change: str, tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=2)
    images, labels = toy_images()
    trained(config, Toy(ToyConfig()), folder=tmp_path)
    scale = SCALE if change == "pixels" else {**SCALE, change: (0.5,)}
    pixels = 255 - images if change == "pixels" else images
    with pytest.raises(ForeignArtifact, match="another training of gates"):
        train_gates(Toy(ToyConfig()), pixels, labels, config, **scale, folder=tmp_path)


def test_passes_through_the_data_path_are_counted() -> None:
    config = replace(QUICK, epochs=2)
    assert trained(config, Toy(ToyConfig())).forwards == 640 * 2 * 2
    critical = replace(config, baseline="self_critical", draws=1)
    assert trained(critical, Toy(ToyConfig())).forwards == 640 * 2 * 2
    assert trained(replace(critical, baseline="none"), Toy(ToyConfig())).forwards == 640 * 2


def test_a_saved_gate_serves_the_same(tmp_path: Path) -> None:
    network = Toy(ToyConfig())
    gate = trained(replace(QUICK, epochs=1, gate="contextual"), network).gate
    gate.save(tmp_path)
    loaded = LearnedGate.load(tmp_path)
    assert loaded.spec == replace(gate.spec, provenance=loaded.spec.provenance)
    images = torch.rand(4, 1, 1, 1)
    assert torch.equal(loaded.probabilities(images, 0.3), gate.probabilities(images, 0.3))
    loaded.check_network(network)
    with torch.no_grad():
        network.strength.add_(1.0)
    with pytest.raises(ForeignArtifact, match="trained for the network"):
        loaded.check_network(network)


def test_an_altered_gate_file_is_refused(tmp_path: Path) -> None:
    trained(replace(QUICK, epochs=1), Toy(ToyConfig())).gate.save(tmp_path)
    file = tmp_path / "gate.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CorruptArtifact, match="not a whole safetensors file"):
        LearnedGate.load(tmp_path)
    (tmp_path / "gate.json").write_text('{"format": 1}')
    with pytest.raises(CorruptArtifact, match="not the specification of a learned gate"):
        LearnedGate.load(tmp_path)


def test_a_gate_with_other_weights_than_it_was_saved_with_is_refused(tmp_path: Path) -> None:
    trained(replace(QUICK, epochs=1), Toy(ToyConfig())).gate.save(tmp_path)
    file = tmp_path / "gate.safetensors"
    write_tensors(file, {name: -value for name, value in read_tensors(file).items()})
    with pytest.raises(CorruptArtifact, match="one of the two was altered"):
        LearnedGate.load(tmp_path)


def test_a_gate_that_closes_a_module_is_refused_by_name_on_request() -> None:
    gate = trained(replace(QUICK, epochs=1), Toy(ToyConfig(modules=2, least=1))).gate
    with torch.no_grad():
        gate.network.layers[2].bias[4:] = -50.0  # type: ignore[index, union-attr]
    served = gate.serve(torch.zeros(3, 1, 1, 1), 1.0)
    assert served[1].sum(dim=1).tolist() == [1.0, 1.0, 1.0]
    refusing = LearnedGate(gate.network, replace(gate.spec, when_off="refuse"))
    with pytest.raises(InvalidSetting, match=r"0 of the 4 components of T-module part\.1 on at u"):
        refusing.serve(torch.zeros(3, 1, 1, 1), 1.0)


def test_a_module_without_skip_connection_may_not_be_allowed_to_close() -> None:
    config = replace(QUICK, min_active=0)
    with pytest.raises(InvalidSetting, match=r"T-module part\.0 has no skip connection"):
        trained(config, Toy(ToyConfig(least=1)))
    with pytest.raises(InvalidSetting, match=r"part\.0 has 4 components; .* keeps 5 on"):
        trained(replace(QUICK, min_active=5), Toy(ToyConfig()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gate", "seeing"),
        ("estimator", "straight_through"),
        ("baseline", "critic"),
        ("draws", 0),
        ("temperature", 0.0),
        ("final_temperature", float("nan")),
        ("penalty", "linear"),
        ("power", 3),
        ("complexity_weight", -1.0),
        ("weighting", "params"),
        ("min_active", -1),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", float("inf")),
        ("path_learning_rate", 0.0),
        ("precision", "float16"),
        ("seed", -1),
    ],
)
def test_settings_outside_their_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=rf"gates\.{field} must be"):
        GateConfig(**{field: value})  # type: ignore[arg-type]


def test_leave_one_out_needs_two_draws() -> None:
    with pytest.raises(InvalidSetting, match=r"GateConfig\(draws=2\)"):
        GateConfig(draws=1)


@pytest.mark.parametrize(("field", "value"), [("hidden", 0), ("channels", ())])
def test_gate_networks_that_cannot_be_made_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match=rf"gates\.{field} must be"):
        trained(replace(QUICK, **{field: value}), Toy(ToyConfig()))


@pytest.mark.parametrize("u", [-0.1, 1.1, float("nan"), [0.5, 2.0], [0.5]])
def test_utilizations_outside_their_range_are_refused(u: Any) -> None:
    gate = trained(replace(QUICK, epochs=1), Toy(ToyConfig())).gate
    asked = torch.tensor(u) if isinstance(u, list) else u
    with pytest.raises(InvalidSetting, match=r"number in \[0, 1\]|one number, or one for each"):
        gate.serve(torch.zeros(2, 1, 1, 1), asked)


def test_images_that_do_not_fit_are_refused() -> None:
    images, labels = toy_images()
    network = Toy(ToyConfig())
    with pytest.raises(DataError, match="640 images and 639 labels"):
        train_gates(network, images, labels[:-1], QUICK, **SCALE)
    with pytest.raises(DataError, match=r"shape \(1, 1, 1\)"):
        train_gates(network, images.reshape(320, 2, 1, 1), labels[:320], QUICK, **SCALE)


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    network = Toy(ToyConfig())
    with torch.no_grad():
        network.strength.fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"at epoch 0, step 0 of 10\. Lower the rate"):
        trained(QUICK, network)


def test_batch_norms_are_refused() -> None:
    network = ThrottleableVgg(
        small_vgg(stages=((8,),), hidden=8, components=4, norm="batch", image_size=8)
    )
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)
    with pytest.raises(InvalidSetting, match="group norm"):
        train_gates(network, images, labels, QUICK, mean=(0.0,) * 3, std=(1.0,) * 3)


def vgg(gating: str) -> ThrottleableVgg:
    torch.manual_seed(0)
    return ThrottleableVgg(
        small_vgg(stages=((8,),), hidden=8, components=4, image_size=8, gating=gating)
    )


def test_a_fixed_curve_spends_what_the_arms_spend() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8)).astype(np.uint8)
    labels = np.arange(10)
    scale: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for gating in ("nested", "independent"):
        curve = fixed_curve(vgg(gating), images, labels, (0.1, 0.5, 1.0), draws=2, **scale)
        assert curve.complexity == (0.25, 0.5, 1.0)  # ceil(.1 x 4) / 4
        # by hand: conv 64 x 9 x 3 x 2k, FC 16 x 2k x 2k, classifier 2k x 10
        by_hand = [3456 * k + 64 * k * k + 20 * k for k in (1, 2, 4)]
        assert curve.macs == tuple(by_hand)
        assert curve.mac_share[-1] == 1.0
        assert curve.modules == ("convs.0", "hidden")
        assert curve.module_use == ((0.25, 0.5, 1.0), (0.25, 0.5, 1.0))
        assert curve.samples == 10


def test_random_gates_have_no_statistics_of_a_batch_norm() -> None:
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)
    scale: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    config = replace(vgg("independent").config, norm="batch")
    with pytest.raises(InvalidSetting, match=r"Gates drawn at random .*path\.norm=group"):
        fixed_curve(ThrottleableVgg(config), images, labels, (1.0,), **scale)
    nested = ThrottleableVgg(replace(config, gating="nested"))
    assert fixed_curve(nested, images, labels, (1.0,), **scale).samples == 4


def test_a_curve_of_the_vgg_agrees_with_its_sliced_execution() -> None:
    network = vgg("independent")
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 8, 8)).astype(np.uint8)
    labels = np.arange(32) % 10
    scale: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    config = replace(QUICK, epochs=2, gate="contextual")
    gate = train_gates(network, images, labels, config, **scale).gate
    curve = gate_curve(network, gate, images, labels, (0.3,), batch_size=5, **scale)
    x = (torch.from_numpy(images).float() / 255 - 0.5) / 0.25
    right = 0
    with torch.no_grad():
        masks = gate.serve(x, 0.3)
        for row in range(32):
            active = [mask[row].nonzero().flatten() for mask in masks]
            answer = network.sliced(x[row : row + 1], active).logits.argmax()
            right += int(answer) == labels[row]
    assert curve.accuracy[0] == right / 32
    assert curve.gate_macs > 0


def test_accuracy_at_a_complexity_lies_between_the_points_around_it() -> None:
    images, labels = toy_images()
    curve = replace(
        fixed_curve(Toy(ToyConfig()), images, labels, (0.25, 0.5, 1.0), **SCALE),
        complexity=(0.5, 0.2, 0.9),
        accuracy=(0.6, 0.4, 0.8),
    )
    assert accuracy_at(curve, 0.35) == pytest.approx(0.5)
    assert np.isnan(accuracy_at(curve, 0.1))
    assert np.isnan(accuracy_at(curve, 0.95))
