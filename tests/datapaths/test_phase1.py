"""Phase 1: every schedule teaches every arm, and an interrupted run ends with the same weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from flyball.datapaths.errors import ForeignArtifact, InvalidSetting, NotFinite
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.phase1 import Phase1Config, Phase1Result, batches, train_phase1
from flyball.datapaths.progress import Progress
from flyball.datapaths.schedules import incremental_utilization, learning_rate_at, plateaus
from flyball.datapaths.tasks import judge
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig, small_vgg

CONFIG = small_vgg(stages=((16,), (32,)), hidden=32, in_channels=1, image_size=8)
SHORT = Phase1Config(epochs=3, batch_size=128, checkpoint_seconds=0.0)


def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    digits = load_digits()
    return (digits.images * 15).astype(np.uint8)[:, None], digits.target.astype(np.int64)


def trained(
    config: Phase1Config, network: VggConfig = CONFIG, folder: Path | None = None, **more: object
) -> Phase1Result:
    images, labels = digit_images()
    torch.manual_seed(0)
    return train_phase1(
        ThrottleableVgg(network),
        images[:1200],
        labels[:1200],
        config,
        mean=(0.3,),
        std=(0.36,),
        folder=folder,
        **more,  # type: ignore[arg-type]
    )


def accuracies(network: ThrottleableNetwork, arms: tuple[float, ...]) -> list[float]:
    images, labels = digit_images()
    spec = PathSpec(network.config, arms, tuple("0123456789"), (0.3,), (0.36,))
    path = FrozenDataPath(network, spec)
    x, y = torch.from_numpy(images[1200:]).float() / 255, torch.from_numpy(labels[1200:])
    return [float(judge(path(x, u).output, y).correct.mean()) for u in arms]


@pytest.mark.parametrize("schedule", ["sandwich", "uniform", "incremental"])
def test_every_schedule_teaches_every_arm(schedule: str) -> None:
    config = Phase1Config(
        schedule=schedule,  # type: ignore[arg-type]
        epochs=12,
        batch_size=64,
        increment=0.25,
        epochs_per_increment=3,
    )
    low, half, full = accuracies(trained(config).network, (0.25, 0.5, 1.0))
    # chance is 0.1; the three schedules reach 0.5-0.9 / 0.8-0.95 / 0.9-0.97 in 12 epochs
    assert low > 0.35
    assert half > 0.6
    assert full > 0.8


def test_independent_gates_train_by_masks() -> None:
    config = Phase1Config(schedule="uniform", epochs=8, batch_size=64)
    (full,) = accuracies(trained(config, replace(CONFIG, gating="independent")).network, (1.0,))
    assert full > 0.6


def test_the_sandwich_counts_its_forwards() -> None:
    result = trained(Phase1Config(epochs=1, middle_arms=2, batch_size=400))
    assert result.forwards == 1200 * 4  # full, lowest and two in the middle, on every image
    assert trained(Phase1Config(schedule="uniform", epochs=2)).forwards == 1200 * 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupted_training_ends_with_the_same_weights(
    optimizer: Literal["sgd", "adam"], tmp_path: Path
) -> None:
    config = replace(
        SHORT, optimizer=optimizer, learning_rate=0.05 if optimizer == "sgd" else 0.002
    )
    undisturbed = trained(config).network.state_dict()

    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total - 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, folder=tmp_path, report=interrupt)
    resumed = trained(config, folder=tmp_path)
    assert resumed.resumed_from == 2
    assert resumed.forwards == 1200 * 4  # one epoch was left
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, undisturbed[name]), name


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    trained(SHORT, folder=tmp_path)
    with pytest.raises(ForeignArtifact, match="checkpoint of another training"):
        trained(replace(SHORT, learning_rate=0.01), folder=tmp_path)


def test_a_checkpoint_of_other_pixels_is_refused(tmp_path: Path) -> None:
    images, labels = digit_images()
    network = ThrottleableVgg(CONFIG)
    config = replace(SHORT, epochs=2)
    arguments: dict[str, Any] = {"mean": (0.3,), "std": (0.36,), "folder": tmp_path}
    start = copy.deepcopy(network)
    train_phase1(network, images[:200], labels[:200], config, **arguments)
    with pytest.raises(ForeignArtifact, match="checkpoint of another training"):
        train_phase1(start, 255 - images[:200], labels[:200], config, **arguments)


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(part) for part in batches(np.arange(9), 4)] == [4, 5]
    assert [len(part) for part in batches(np.arange(10), 4)] == [4, 4, 2]


def test_batch_norm_of_independent_gates_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"path\.norm=group"):
        trained(
            replace(SHORT, schedule="uniform"), replace(CONFIG, gating="independent", norm="batch")
        )


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    config = Phase1Config(epochs=2, learning_rate=1e30, clip_norm=1e30, warmup_epochs=0)
    with pytest.raises(NotFinite, match=r"at epoch \d+, step \d+ of \d+\. Lower the rate"):
        trained(config)


def test_the_sandwich_refuses_independent_gates() -> None:
    with pytest.raises(InvalidSetting, match=r"nested gates.*phase1\.schedule=uniform"):
        trained(SHORT, replace(CONFIG, gating="independent"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("lowest", 0.0),
        ("increment", 1.5),
        ("schedule", "random"),
        ("precision", "float16"),
    ],
)
def test_settings_outside_their_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=rf"phase1\.{field} must be"):
        Phase1Config(**{field: value})  # type: ignore[arg-type]


def test_the_incremental_schedule_is_the_papers() -> None:
    config = Phase1Config(schedule="incremental", epochs=20)
    u = [round(incremental_utilization(config, epoch), 1) for epoch in range(20)]
    assert u == [k / 10 for k in range(1, 11) for _ in range(2)]


def test_a_plateau_is_counted_as_torch_counts_it() -> None:
    losses = [
        2.0,
        1.5,
        1.5,
        1.6,
        1.49999,
        1.5,
        1.5,
        1.4,
        1.4,
        1.4,
        1.4,
        1.4,
        1.4,
        1.4,
        1.4,
        1.4,
        1.0,
    ]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    config = Phase1Config(learning_rate=1.0, warmup_epochs=0, rate_schedule="plateau", patience=3)
    for epoch, loss in enumerate(losses, start=1):
        scheduler.step(loss)
        ours = learning_rate_at(config, epoch, losses[:epoch])
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateaus(losses, 3) == 3


def test_the_learning_rate_warms_up_then_falls_to_zero() -> None:
    config = Phase1Config(epochs=10, learning_rate=0.4, warmup_epochs=2)
    assert learning_rate_at(config, 0.0) < 0.01
    assert learning_rate_at(config, 2.0) == pytest.approx(0.4)
    assert learning_rate_at(config, 6.0) == pytest.approx(0.2)
    assert learning_rate_at(config, 10.0) == pytest.approx(0.0, abs=1e-12)
