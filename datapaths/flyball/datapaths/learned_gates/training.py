"""Phase 2 for gates: trains a gating function on a data path that stays as it is (TNN section 4.4).

Every example draws its target u ~ Uniform[0, 1]; `objective` draws its gates and says what they
cost. An epoch's randomness comes from the seed and its number alone, so an interrupted run goes on
to the same bits.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.datapaths.errors import DataError, InvalidSetting, NotFinite
from flyball.datapaths.learned_gates.config import GateConfig, least_in_force, rate_at
from flyball.datapaths.learned_gates.gate_networks import GateShape, make_gate_network
from flyball.datapaths.learned_gates.learned import GateSpec, LearnedGate
from flyball.datapaths.learned_gates.objective import GateObjective
from flyball.datapaths.learned_gates.progress_state import (
    GateState,
    plan_of,
    resume_state,
    save_state,
)
from flyball.datapaths.learned_gates.structure import (
    module_names,
    path_fingerprint,
)
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.progress import Progress, Report, silent

__all__ = ["GateResult", "train_gates"]


@dataclass(frozen=True)
class GateResult:
    """What training gave.

    Attributes:
        gate: trained.
        task_losses: mean task loss of every epoch, under drawn gates.
        misses: mean |c - u| of every epoch.
        forwards: sample passes through the data path in this call.
        seconds: wall-clock time of this call.
        resumed_from: epochs that a checkpoint had already done; 0 if none.
    """

    gate: LearnedGate
    task_losses: tuple[float, ...]
    misses: tuple[float, ...]
    forwards: int
    seconds: float
    resumed_from: int


def train_gates(
    network: ThrottleableNetwork,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: GateConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path | None = None,
    device: str = "cpu",
    report: Report = silent,
) -> GateResult:
    """Trains a gating function; the data path changes only when `config.joint`, then in place.

    Args:
        network: trained with random gates, independent or nested.
        images: uint8 (M, *input_shape), an array or anything that gives rows of one.
        labels: int64 (M,).
        config: gate, estimator and optimiser.
        mean, std: of the channels on the [0, 1] scale, as in Phase 1.
        folder: where checkpoints go; one found there is resumed. None: none are made.
        device: torch device.
        report: hears of every step.

    Raises:
        InvalidSetting: `min_active` does not suit the network, the gate network cannot be made,
            or the data path has batch norms.
        DataError: images and labels differ in number, there are none, or they have another shape.
        NotFinite: a loss is NaN or infinite; names epoch and step.
        ForeignArtifact: the folder holds the checkpoint of another training.
    """
    start = time.monotonic()
    _check_images(network, images, labels)
    if network.norms:
        raise InvalidSetting(
            "Learned gates switch components on in settings that no statistics of a batch norm "
            "were calibrated for. Use a network with group norm: --set path.norm=group."
        )
    least = least_in_force(network, config.min_active)
    shape = GateShape(
        config.gate, tuple(network.components), network.input_shape, config.hidden, config.channels
    )
    network.to(device).eval()
    if device == "cpu":
        # bfloat16 group norms are several times slower there in the layout that Phase 1 leaves.
        network.to(memory_format=torch.contiguous_format)
    gate_network = make_gate_network(shape, config.seed).to(device)
    state = GateState(gate_network, network if config.joint else None)
    plan = plan_of(path_fingerprint(network), config, images, labels, mean=mean, std=std)
    optimizer = _optimizer(state, config)
    resumed = resume_state(folder, plan, state, optimizer)
    trainer = GateObjective(network, gate_network, config, least, device)
    saved = time.monotonic()
    steps = math.ceil(len(labels) / config.batch_size)
    scale = [
        torch.tensor(v, dtype=torch.float32, device=device).reshape(
            -1, *(1,) * (len(network.input_shape) - 1)
        )
        for v in (mean, std)
    ]
    was_trainable = [p.requires_grad for p in network.parameters()]
    network.requires_grad_(config.joint)
    try:
        for epoch in range(resumed, config.epochs):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(labels), generator=generator).numpy()
            sums = np.zeros(2)
            for step in range(steps):
                rows = order[step * config.batch_size : (step + 1) * config.batch_size]
                x = torch.from_numpy(np.asarray(images[rows])).to(device).float() / 255.0
                y = torch.from_numpy(np.asarray(labels[rows])).to(device)
                share = (epoch + step / steps) / config.epochs
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(group["start"], share)
                optimizer.zero_grad(set_to_none=True)
                u = torch.rand(len(rows), generator=generator).to(device)
                drawn = trainer.step((x - scale[0]) / scale[1], y, u, share, generator, state)
                if not math.isfinite(drawn.loss + drawn.task):
                    raise NotFinite(
                        f"The loss of gates became {drawn.task} (objective {drawn.loss}) at epoch "
                        f"{epoch}, step {step} of {steps}. Lower the rate: "
                        f"GateConfig(learning_rate={config.learning_rate / 4:g})."
                    )
                for group in optimizer.param_groups:
                    nn.utils.clip_grad_norm_(group["params"], config.clip_norm)
                optimizer.step()
                sums += len(rows) * np.array([drawn.task, drawn.miss])
                state.forwards += drawn.passes * len(rows)
                report(
                    Progress(
                        "gates",
                        epoch * steps + step + 1,
                        config.epochs * steps,
                        f"epoch {epoch + 1}/{config.epochs}",
                        {"loss": drawn.task, "miss": drawn.miss},
                    )
                )
            state.history.append((float(sums[0] / len(labels)), float(sums[1] / len(labels))))
            is_due = time.monotonic() - saved >= config.checkpoint_seconds
            if folder is not None and is_due and epoch + 1 < config.epochs:
                save_state(folder, plan, state, optimizer)
                saved = time.monotonic()
    finally:
        for parameter, flag in zip(network.parameters(), was_trainable, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
        network.to("cpu")
    settings = {"config": asdict(config), "images": len(labels), "trained_for": plan["path"]}
    names = module_names(network)
    spec = GateSpec(shape, least, names, path_fingerprint(network), provenance=settings)
    task, miss = zip(*state.history, strict=True)
    return GateResult(
        LearnedGate(gate_network, spec),
        task,
        miss,
        state.forwards - state.forwards_before,
        time.monotonic() - start,
        resumed,
    )


def _optimizer(state: GateState, config: GateConfig) -> torch.optim.Adam:
    groups = [
        {
            "params": list(state.gate_network.parameters()),
            "lr": config.learning_rate,
            "start": config.learning_rate,
        }
    ]
    if state.path is not None:
        rate = config.path_learning_rate
        groups.append({"params": list(state.path.parameters()), "lr": rate, "start": rate})
    return torch.optim.Adam(groups)


def _check_images(
    network: ThrottleableNetwork, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"Every image has one label; there are {len(images)} images and {len(labels)} "
            "labels. Give at least one image, and a label for each."
        )
    if tuple(images.shape[1:]) != tuple(network.input_shape):
        raise DataError(
            f"This network takes images of shape {tuple(network.input_shape)}; these are "
            f"{tuple(images.shape[1:])}. Resize them, or train a network for this size."
        )
