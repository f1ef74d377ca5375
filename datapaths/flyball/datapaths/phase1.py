"""Phase 1: trains a throttleable network so that it works at every utilization (TNN section 3.4).

Three schedules: utilization uniform for every example, incremental, and the sandwich rule with
in-place distillation. An epoch's randomness comes from the seed and its number alone, so a run that
was interrupted goes on from its last checkpoint to the same weights. B batch, N samples.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.errors import ForeignArtifact, InvalidSetting, NotFinite
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.frozen import load_weights
from flyball.datapaths.gates import (
    independent_mask,
    nested_mask,
    sampled_components,
    served_components,
)
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.vgg import ThrottleableVgg

__all__ = ["Phase1Config", "Phase1Result", "train_phase1"]

STATE_FILE = "phase1.safetensors"
PLAN_FILE = "phase1.json"

Schedule = Literal["uniform", "incremental", "sandwich"]


@dataclass(frozen=True)
class Phase1Config:
    """How the data path is trained.

    Attributes:
        schedule: "uniform": u ~ U[0, 1] for every example, gates by masks, as published;
            "incremental": u from `increment`, + `increment` every `epochs_per_increment` epochs,
            as published for C3D-W; "sandwich": full, lowest and `middle_arms` random arms each
            step, sliced, the smaller ones taught by the full one (in-place distillation).
        epochs: passes over path_train.
        batch_size: B.
        learning_rate: at the start; follows half a cosine to 0, after `warmup_epochs`.
        momentum, weight_decay: of SGD.
        warmup_epochs: epochs of linear rise; may be a fraction.
        middle_arms: random arms of a sandwich step besides the full and the lowest one.
        lowest: the sandwich's lowest utilization, in (0, 1].
        increment: of the incremental schedule, in (0, 1].
        epochs_per_increment: epochs between two increments.
        augment: pad by 4, crop at random, flip left and right (not for digits).
        label_smoothing: of the cross-entropy, in [0, 1).
        precision: "float32", or "bfloat16" for the forward and backward arithmetic.
        clip_norm: largest norm of the gradient; larger ones are scaled down to it.
        checkpoint_seconds: least time between two checkpoints.
        seed: of initialisation, order, gates and augmentation.
    """

    schedule: Schedule = "sandwich"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    middle_arms: int = 2
    lowest: float = 0.1
    increment: float = 0.1
    epochs_per_increment: int = 2
    augment: bool = False
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float = 1.0
    checkpoint_seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every range.

        Raises:
            InvalidSetting: a value is outside its range; names the field.
        """
        rules: list[tuple[str, bool, str]] = [
            ("schedule", self.schedule in ("uniform", "incremental", "sandwich"), "a schedule"),
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("warmup_epochs", 0 <= self.warmup_epochs < math.inf, "at least 0"),
            ("middle_arms", self.middle_arms >= 0, "at least 0"),
            ("lowest", 0 < self.lowest <= 1, "in (0, 1]"),
            ("increment", 0 < self.increment <= 1, "in (0, 1]"),
            ("epochs_per_increment", self.epochs_per_increment >= 1, "at least 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise InvalidSetting(
                    f"phase1.{name} must be {rule}; it is {getattr(self, name)!r}. "
                    f"Change it with --set phase1.{name}=VALUE."
                )


@dataclass(frozen=True)
class Phase1Result:
    """What training gave.

    Attributes:
        network: trained, in evaluation mode.
        losses: mean loss of every epoch.
        forwards: sample passes through the network, all arms counted.
        seconds: wall-clock time of this call.
        resumed_from: epochs that a checkpoint had already done; 0 if none.
    """

    network: ThrottleableVgg
    losses: tuple[float, ...]
    forwards: int
    seconds: float
    resumed_from: int


def train_phase1(
    network: ThrottleableVgg,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: Phase1Config,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    folder: Path | None = None,
    device: str = "cpu",
    report: Report = silent,
) -> Phase1Result:
    """Trains a network in place.

    Args:
        network: initialised; its gating decides which components a count switches on.
        images: uint8 (N, C, H, W); only path_train's.
        labels: int64 (N,).
        config: schedule and optimiser.
        mean, std: of the channels on the [0, 1] scale.
        folder: where checkpoints go; one found there is resumed. None: none are made.
        device: torch device.
        report: hears of progress a few times a second.

    Raises:
        NotFinite: a loss is NaN or infinite; names epoch and step.
        ForeignArtifact: the folder holds the checkpoint of another training.
        InvalidSetting: the sandwich is asked of independent gates, which have no full-to-low order.
    """
    if config.schedule == "sandwich" and network.config.gating != "nested":
        raise InvalidSetting(
            "The sandwich rule needs nested gates: it teaches each smaller network as a part of "
            "the full one. Train independent gates with --set phase1.schedule=uniform."
        )
    start = time.monotonic()
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    plan = _plan(network, config, labels)
    losses, forwards = _resume(folder, plan, network, optimizer)
    resumed, saved = len(losses), time.monotonic()
    steps = math.ceil(len(labels) / config.batch_size)
    scale = [torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (mean, std)]
    for epoch in range(resumed, config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(labels), generator=generator).numpy()
        total = 0.0
        for step in range(steps):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            x = torch.from_numpy(np.asarray(images[rows])).to(device).float() / 255.0
            x = ((x - scale[0]) / scale[1]).to(memory_format=torch.channels_last)
            x = _augmented(x, generator) if config.augment else x
            y = torch.from_numpy(np.asarray(labels[rows])).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, epoch + step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss, passes = _backward(network, x, y, config, epoch, generator)
            if not math.isfinite(loss):
                raise NotFinite(
                    f"Phase 1's loss became {loss} at epoch {epoch}, step {step} of {steps}. "
                    "Lower the rate: --set phase1.learning_rate="
                    f"{config.learning_rate / 4:g}."
                )
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            total += loss * len(rows)
            forwards += passes * len(rows)
            done = epoch * steps + step + 1
            report(
                Progress(
                    "phase1",
                    done,
                    config.epochs * steps,
                    f"epoch {epoch + 1}/{config.epochs}",
                    {"loss": loss},
                )
            )
        losses.append(total / len(labels))
        is_due = time.monotonic() - saved >= config.checkpoint_seconds
        if folder is not None and is_due and epoch + 1 < config.epochs:
            _checkpoint(folder, plan, network, optimizer, losses, forwards)
            saved = time.monotonic()
    network.to("cpu").eval()
    seconds = time.monotonic() - start
    return Phase1Result(network, tuple(losses), forwards, seconds, resumed)


def learning_rate_at(config: Phase1Config, epoch: float) -> float:
    """Linear warm-up, then half a cosine to 0; `epoch` counts from 0 and may be a fraction."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch + 1e-2) / (config.warmup_epochs + 1e-2)
    left = config.epochs - config.warmup_epochs
    share = min(1.0, (epoch - config.warmup_epochs) / left) if left > 0 else 1.0
    return 0.5 * config.learning_rate * (1.0 + math.cos(math.pi * share))


def incremental_utilization(config: Phase1Config, epoch: int) -> float:
    """u of the incremental schedule: + `increment` every `epochs_per_increment` epochs, up to 1."""
    return min(1.0, config.increment * (1 + epoch // config.epochs_per_increment))


def _backward(
    network: ThrottleableVgg,
    x: Tensor,
    y: Tensor,
    config: Phase1Config,
    epoch: int,
    generator: torch.Generator,
) -> tuple[float, int]:
    """Adds the gradients of one step; gives the mean loss of its passes, and their number."""
    context = torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")

    def pass_through(forward: Callable[[], Tensor], soft: Tensor | None) -> tuple[float, Tensor]:
        with context:
            logits = forward().float()
        if soft is None:
            loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        else:
            loss = -(soft * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), logits.detach()

    if config.schedule == "uniform":
        drawn = torch.rand(len(x), generator=generator, dtype=torch.float64).tolist()
        masks = [
            _mask(network, [sampled_components(u, n) for u in drawn], n, generator, x.device)
            for n in network.components
        ]
        loss, _ = pass_through(lambda: network.masked(x, masks), None)
        return loss, 1
    if config.schedule == "incremental":
        counts = [
            served_components(incremental_utilization(config, epoch), n) for n in network.components
        ]
        if network.config.gating == "nested":
            loss, _ = pass_through(lambda: network.sliced(x, counts).logits, None)
        else:
            pairs = zip(counts, network.components, strict=True)
            masks = [_mask(network, [k] * len(x), n, generator, x.device) for k, n in pairs]
            loss, _ = pass_through(lambda: network.masked(x, masks), None)
        return loss, 1
    full, logits = pass_through(lambda: network.sliced(x, network.components).logits, None)
    soft = torch.softmax(logits, dim=1)
    losses = [full]
    for u in _sandwich(config, generator):
        counts = [served_components(u, n) for n in network.components]
        losses.append(pass_through(lambda k=counts: network.sliced(x, k).logits, soft)[0])  # type: ignore[misc]
    return sum(losses) / len(losses), len(losses)


def _sandwich(config: Phase1Config, generator: torch.Generator) -> list[float]:
    drawn = torch.rand(config.middle_arms, generator=generator, dtype=torch.float64).tolist()
    return [config.lowest, *(config.lowest + (1 - config.lowest) * u for u in drawn)]


def _mask(
    network: ThrottleableVgg,
    counts: list[int],
    components: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    tensor = torch.tensor(counts)
    if network.config.gating == "nested":
        return nested_mask(tensor, components).to(device)
    return independent_mask(tensor, components, generator).to(device)


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pads by 4 zeros, crops every image at its own place, flips half of them left to right."""
    count, _, height, width = x.shape
    top, left = torch.randint(0, 9, (2, count), generator=generator).to(x.device)
    flip = (torch.rand(count, generator=generator) < 0.5).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(count, -1)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    padded = F.pad(x, (4, 4, 4, 4))
    samples = torch.arange(count, device=x.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def _plan(
    network: ThrottleableVgg, config: Phase1Config, labels: NDArray[np.int64]
) -> dict[str, Any]:
    settings = {**asdict(config), "checkpoint_seconds": None}
    digest = fingerprint_of(asdict(network.config), settings, np.asarray(labels).tolist())
    return {"fingerprint": digest}


def _checkpoint(
    folder: Path,
    plan: dict[str, Any],
    network: ThrottleableVgg,
    optimizer: torch.optim.SGD,
    losses: list[float],
    forwards: int,
) -> None:
    tensors = {f"weight/{k}": v.detach().cpu().numpy() for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum/{name}"] = buffer.detach().cpu().numpy()
    tensors["losses"] = np.asarray(losses, np.float64)
    tensors["forwards"] = np.asarray([forwards], np.int64)
    write_json(folder / PLAN_FILE, plan)
    write_tensors(folder / STATE_FILE, tensors)


def _resume(
    folder: Path | None,
    plan: dict[str, Any],
    network: ThrottleableVgg,
    optimizer: torch.optim.SGD,
) -> tuple[list[float], int]:
    if folder is None or not (folder / STATE_FILE).exists():
        return [], 0
    if read_json(folder / PLAN_FILE) != plan:
        raise ForeignArtifact(
            f"{folder} holds the checkpoint of another training. "
            "Delete the folder, or repeat the settings that it was started with."
        )
    tensors = read_tensors(folder / STATE_FILE)
    prefix = "weight/"
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    load_weights(network, weights, where=str(folder / STATE_FILE))
    for name, parameter in network.named_parameters():
        if f"momentum/{name}" in tensors:
            buffer = torch.from_numpy(tensors[f"momentum/{name}"]).to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(
                memory_format=torch.preserve_format
            )
    return [float(v) for v in tensors["losses"]], int(tensors["forwards"][0])
