"""Phase 1: trains a throttleable network so that it works at every utilization (TNN section 3.4).

Three schedules: utilization uniform for every example, incremental, and the sandwich rule with
in-place distillation. An epoch's randomness comes from the seed and its number alone, so a run that
was interrupted goes on from its last checkpoint to the same weights. B batch, N samples.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.checkpoint import plan_of, resume_checkpoint, save_checkpoint
from flyball.datapaths.errors import InvalidSetting, NotFinite
from flyball.datapaths.gates import independent_mask, nested_mask
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.schedules import (
    Phase1Config,
    check_schedule,
    incremental_utilization,
    learning_rate_at,
)

__all__ = [
    "Phase1Config",
    "Phase1Result",
    "augmented",
    "batches",
    "make_optimizer",
    "resized_crop",
    "train_phase1",
]


@dataclass(frozen=True)
class Phase1Result:
    """What training gave.

    Attributes:
        network: trained, in evaluation mode.
        losses: mean loss of every epoch.
        forwards: sample passes through the network in this call, all arms counted.
        seconds: wall-clock time of this call.
        resumed_from: epochs that a checkpoint had already done; 0 if none.
    """

    network: ThrottleableNetwork
    losses: tuple[float, ...]
    forwards: int
    seconds: float
    resumed_from: int


def train_phase1(
    network: ThrottleableNetwork,
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
        images: uint8 (N, C, H, W), or clips (N, C, T, H, W); only path_train's. Anything that
            gives rows for an array of indices will do.
        labels: int64 (N,).
        config: schedule and optimiser.
        mean, std: of the channels on the [0, 1] scale.
        folder: where checkpoints go; one found there is resumed. None: none are made.
        device: torch device.
        report: hears of every step.

    Raises:
        NotFinite: a loss is NaN or infinite; names epoch and step.
        ForeignArtifact: the folder holds the checkpoint of another training.
        InvalidSetting: the sandwich is asked of independent gates, which have no full-to-low order.
    """
    check_schedule(config, network)
    start = time.monotonic()
    is_clip = len(network.input_shape) == 4
    if config.augment and is_clip:
        raise InvalidSetting(
            "Crops and flips are for images: flipping a clip can change its class. "
            "Train without them: --set phase1.augment=false."
        )
    layout = torch.contiguous_format
    if device != "cpu":
        # On a CPU channels-last training is slower: twice with bfloat16, alike with float32.
        layout = torch.channels_last_3d if is_clip else torch.channels_last
    network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config)
    plan = plan_of(network, config, images, labels, mean, std)
    losses, forwards = resume_checkpoint(folder, plan, network, optimizer)
    before, resumed, saved = forwards, len(losses), time.monotonic()
    ahead = getattr(images, "prefetch", None)
    per_channel = (1, -1, *(1,) * (len(network.input_shape) - 1))
    scale = [
        torch.tensor(v, dtype=torch.float32, device=device).reshape(per_channel)
        for v in (mean, std)
    ]
    for epoch in range(resumed, config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(labels), generator=generator).numpy()
        parts = batches(order, config.batch_size)
        steps, total = len(parts), 0.0
        for step, rows in enumerate(parts):
            if ahead is not None and step + 1 < steps:
                ahead(parts[step + 1])
            x = torch.from_numpy(np.asarray(images[rows])).to(device).float() / 255.0
            x = ((x - scale[0]) / scale[1]).to(memory_format=layout)
            x = augmented(x, generator) if config.augment else x
            y = torch.from_numpy(np.asarray(labels[rows])).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, epoch + step / steps, losses)
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
            save_checkpoint(folder, plan, network, optimizer, losses, forwards)
            saved = time.monotonic()
    network.to("cpu").eval()
    seconds = time.monotonic() - start
    return Phase1Result(network, tuple(losses), forwards - before, seconds, resumed)


def batches(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Rows in batches; a last one of a single row joins the one before: batch norm needs two."""
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def _backward(
    network: ThrottleableNetwork,
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

    if config.schedule == "uniform" and not network.norms:
        drawn = torch.rand(len(x), generator=generator, dtype=torch.float64).tolist()
        counts = [network.sampled_counts(u) for u in drawn]
        masks = _masks(network, counts, generator, x.device)
        loss, _ = pass_through(lambda: network.masked(x, masks), None)
        return loss, 1
    if config.schedule != "sandwich":
        if config.schedule == "uniform":
            # Batch norm needs one setting of the gates for the whole batch.
            u = float(torch.rand(1, generator=generator, dtype=torch.float64))
            served = network.sampled_counts(u)
        else:
            served = network.counts_at(incremental_utilization(config, epoch))
        if network.gating == "nested":
            loss, _ = pass_through(lambda: network.sliced(x, served).logits, None)
        else:
            masks = _masks(network, [served] * len(x), generator, x.device)
            loss, _ = pass_through(lambda: network.masked(x, masks), None)
        return loss, 1
    full, logits = pass_through(lambda: network.sliced(x, network.components).logits, None)
    soft = torch.softmax(logits, dim=1)
    losses = [full]
    for u in _sandwich(config, generator):
        served = network.counts_at(u)
        losses.append(pass_through(lambda k=served: network.sliced(x, k).logits, soft)[0])  # type: ignore[misc]
    return sum(losses) / len(losses), len(losses)


def _sandwich(config: Phase1Config, generator: torch.Generator) -> list[float]:
    drawn = torch.rand(config.middle_arms, generator=generator, dtype=torch.float64).tolist()
    return [config.lowest, *(config.lowest + (1 - config.lowest) * u for u in drawn)]


def _masks(
    network: ThrottleableNetwork,
    counts: Sequence[Sequence[int]],
    generator: torch.Generator,
    device: torch.device,
) -> list[Tensor]:
    """A mask (B, n) for every T-module, from the counts of every sample."""
    masks = []
    for column, n in zip(torch.tensor(counts).T, network.components, strict=True):
        if network.gating == "nested":
            masks.append(nested_mask(column, n).to(device))
        else:
            masks.append(independent_mask(column, n, generator).to(device))
    return masks


def make_optimizer(network: nn.Module, config: Phase1Config) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over every parameter of a network."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(), lr=rate, betas=config.betas, weight_decay=decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=rate,
        momentum=config.momentum,
        weight_decay=decay,
        nesterov=config.momentum > 0,
    )


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
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


def resized_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Cuts a random part out of every image, resizes it to the whole, flips half of them.

    8 to 100 % of the area, sides 3:4 to 4:3: the augmentation of InceptionV3 and ImageNet.
    """
    count = len(x)
    area, ratio, across, down = torch.rand(4, count, generator=generator)
    area, ratio = 0.08 + 0.92 * area, torch.exp((2 * ratio - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = [
        torch.stack([width * flip, zero, (1 - width) * (2 * across - 1)], dim=1),
        torch.stack([zero, height, (1 - height) * (2 * down - 1)], dim=1),
    ]
    places = F.affine_grid(torch.stack(rows, dim=1).to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="reflection", align_corners=False)
