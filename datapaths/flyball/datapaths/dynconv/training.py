"""Phase 1 of a dynamic convolution network: weights, masks and budgets learned together.

DynConv section 3: dense execution under sampled masks, straight-through gradients, a task loss plus
alpha times a sparsity loss. B batch, N samples, b conditional blocks.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.checkpoint import plan_of, resume_checkpoint, save_checkpoint
from flyball.datapaths.dynconv.network import DynConvNetwork, NetworkCost
from flyball.datapaths.dynconv.sparsity import (
    SparsityConfig,
    bound_share,
    execution_of,
    sparsity_loss,
    temperature_at,
)
from flyball.datapaths.errors import InvalidSetting, NotFinite
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.phase1 import augmented, batches, make_optimizer, resized_crop
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.schedules import Phase1Config, learning_rate_at

__all__ = ["Classification", "DynConvResult", "TrainingTask", "draw_budgets", "train_dynconv"]


class TrainingTask(Protocol):
    """What a network learns: the truth about some rows, and how far from it an output is.

    Attributes:
        fingerprint: of the truth and the loss: a checkpoint of another task is not resumed.
    """

    @property
    def fingerprint(self) -> str: ...

    def truth(self, rows: NDArray[np.int64], device: str) -> Any:
        """What `loss` needs about training rows."""
        ...

    def augmented(self, x: Tensor, truth: Any, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Inputs (B, C, H, W) and their truth, changed at random."""
        ...

    def loss(self, output: Tensor, truth: Any) -> Tensor:
        """Mean task loss of a batch."""
        ...


class Classification:
    """Cross-entropy of class labels, int64 (N,).

    Inputs are augmented by padding, cropping and flipping, or by resized crops and flipping as
    published for ImageNet.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        label_smoothing: float = 0.0,
        *,
        resized_crops: bool = False,
    ) -> None:
        self.labels, self.label_smoothing = labels, label_smoothing
        self.resized_crops = resized_crops
        self.fingerprint = fingerprint_of(
            "classification", hash_bytes(labels), label_smoothing, resized_crops
        )

    def truth(self, rows: NDArray[np.int64], device: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.labels[rows])).to(device)

    def augmented(
        self, x: Tensor, truth: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        change = resized_crop if self.resized_crops else augmented
        return change(x, generator), truth

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(output, truth, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class DynConvResult:
    """What training gave.

    Attributes:
        network: trained, in evaluation mode.
        losses: mean task loss plus weighted sparsity loss of every epoch.
        history: mean share of its MACs that every block executed in every epoch, (epochs, b).
        forwards: sample passes in this call.
        seconds: wall-clock time of this call.
        resumed_from: epochs that a checkpoint had already done.
    """

    network: DynConvNetwork
    losses: tuple[float, ...]
    history: NDArray[np.float64]
    forwards: int
    seconds: float
    resumed_from: int


def train_dynconv(
    network: DynConvNetwork,
    images: Any,
    task: TrainingTask,
    config: Phase1Config,
    sparsity: SparsityConfig,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    labels: NDArray[np.int64],
    folder: Path | None = None,
    device: str = "cpu",
    report: Report = silent,
) -> DynConvResult:
    """Trains a network in place; a network without mask units trains densely, alike in all else.

    Args:
        network: initialised.
        images: uint8 (N, C, H, W), path_train's alone; anything that gives rows for indices.
        task: what it learns.
        config: optimiser, epochs, precision; its `schedule` of T-modules is not used.
        sparsity: losses and schedules of the masks.
        mean, std: of the channels on the [0, 1] scale.
        labels: int64 (N,); with the images they name the training.
        folder: where checkpoints go; one found there is resumed. None: none are made.
        device: torch device.
        report: hears of every step.

    Raises:
        NotFinite: a loss is NaN or infinite; names epoch and step.
        ForeignArtifact: the folder holds the checkpoint of another training.
        InvalidSetting: a network of one budget has no target.
    """
    has_masks = bool(network.conditional)
    if has_masks and network.shift is None and sparsity.target is None:
        raise InvalidSetting(
            "A network that is not budgeted is trained for one budget, and none is given. "
            "Set --set path.sparsity.target=0.5, or --set path.network.is_budgeted=true."
        )
    start = time.monotonic()
    layout = torch.contiguous_format if device == "cpu" else torch.channels_last
    network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    cost = network.costs()
    optimizer = make_optimizer(network, config)
    plan = plan_of(network, config, images, labels, mean, std)
    plan = {"fingerprint": fingerprint_of(plan["fingerprint"], asdict(sparsity), task.fingerprint)}
    tables = {"history": np.zeros((0, len(cost.blocks)))}
    losses, forwards = resume_checkpoint(folder, plan, network, optimizer, tables)
    before, resumed, saved = forwards, len(losses), time.monotonic()
    scale = [torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (mean, std)]
    ahead = getattr(images, "prefetch", None)
    for epoch in range(resumed, config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(labels), generator=generator).numpy()
        parts = batches(order, config.batch_size)
        steps, total, shares = len(parts), 0.0, np.zeros(len(cost.blocks))
        for step, rows in enumerate(parts):
            if ahead is not None and step + 1 < steps:
                ahead(parts[step + 1])
            x = torch.from_numpy(np.asarray(images[rows])).to(device).float() / 255.0
            x = ((x - scale[0]) / scale[1]).to(memory_format=layout)
            truth = task.truth(rows, device)
            if config.augment:
                x, truth = task.augmented(x, truth, generator)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, epoch + step / steps, losses)
            optimizer.zero_grad(set_to_none=True)
            at = epoch + step / steps
            loss, spent = _backward(network, x, truth, task, cost, config, sparsity, at, generator)
            if not math.isfinite(loss):
                raise NotFinite(
                    f"Phase 1's loss became {loss} at epoch {epoch}, step {step} of {steps}. "
                    f"Lower the rate: --set phase1.learning_rate={config.learning_rate / 4:g}."
                )
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            total += loss * len(rows)
            shares += spent * len(rows)
            forwards += len(rows)
            report(
                Progress(
                    "phase1",
                    epoch * steps + step + 1,
                    config.epochs * steps,
                    f"epoch {epoch + 1}/{config.epochs}",
                    {"loss": loss},
                )
            )
        losses.append(total / len(labels))
        tables["history"] = np.vstack([tables["history"], shares[None] / len(labels)])
        is_due = time.monotonic() - saved >= config.checkpoint_seconds
        if folder is not None and is_due and epoch + 1 < config.epochs:
            save_checkpoint(folder, plan, network, optimizer, losses, forwards, tables)
            saved = time.monotonic()
    network.to("cpu").eval()
    return DynConvResult(
        network,
        tuple(losses),
        tables["history"],
        forwards - before,
        time.monotonic() - start,
        resumed,
    )


def draw_budgets(config: SparsityConfig, generator: torch.Generator) -> Tensor:
    """One budget from each of as many equal parts of [lowest, 1] as share a batch, (G,)."""
    place = torch.arange(config.budgets) + torch.rand(config.budgets, generator=generator)
    return config.lowest + (1.0 - config.lowest) * place / config.budgets


def _backward(
    network: DynConvNetwork,
    x: Tensor,
    truth: Any,
    task: TrainingTask,
    cost: NetworkCost,
    config: Phase1Config,
    sparsity: SparsityConfig,
    epoch: float,
    generator: torch.Generator,
) -> tuple[float, NDArray[np.float64]]:
    """Adds the gradients of one step; gives its loss, and the share every block executed."""
    budgets, part = _asked(network, len(x), sparsity, generator)
    is_quiet = epoch >= config.epochs * (1.0 - sparsity.quiet)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        output, decisions = network.masked(
            x,
            budgets[part] if network.shift is not None else None,
            temperature=temperature_at(epoch, config.epochs, sparsity),
            generator=None if is_quiet else generator,
        )
    loss = task.loss(output.logits.float(), truth)
    spent = np.ones(len(cost.blocks))
    if decisions:
        execution = execution_of(decisions, cost, budgets, part.to(x.device))
        p = bound_share(epoch, config.epochs, sparsity.bounds_end)
        loss = loss + sparsity.alpha * sparsity_loss(execution, sparsity, p)
        spent = execution.blocks.detach().mean(dim=0).cpu().double().numpy()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), spent


def _asked(
    network: DynConvNetwork, count: int, sparsity: SparsityConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The budgets of a step, (G,), and which of them each sample is asked for, (B,)."""
    if network.shift is None:
        return torch.tensor([sparsity.target or 1.0]), torch.zeros(count, dtype=torch.int64)
    # A batch may be smaller than the number of budgets: none is left without a sample.
    budgets = draw_budgets(replace(sparsity, budgets=min(count, sparsity.budgets)), generator)
    return budgets, torch.arange(count) % len(budgets)
