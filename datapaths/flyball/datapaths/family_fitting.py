"""How one model of a family learns: its last layer on fixed features, or all of it.

N samples, B batch, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.errors import InvalidSetting, NotFinite
from flyball.datapaths.family_models import head_of, penultimate, watch
from flyball.datapaths.phase1 import augmented, batches, make_optimizer
from flyball.datapaths.progress import Progress, Report
from flyball.datapaths.schedules import Phase1Config, learning_rate_at

__all__ = ["Examples", "Pace", "fit_all", "fit_last"]

IN_MEMORY = 2 * 10**9
"""Features of more bytes lie in a file that is mapped."""

Step = Callable[[NDArray[np.int64], torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Examples:
    """What a model learns from: pixels on demand, normalised on the device.

    Attributes:
        images: uint8 (N, *input_shape), or anything that gives rows for an array of indices.
        labels: int64 (N,).
        mean, std: of the channels, shaped to broadcast over a batch; on the device.
    """

    images: Any
    labels: NDArray[np.int64]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_clips(self) -> bool:
        """Whether a sample is a clip of frames."""
        return self.mean.ndim == 5

    def inputs(self, rows: NDArray[np.int64]) -> Tensor:
        """Normalised pixels of some rows; float32 (B, *input_shape)."""
        x = torch.from_numpy(np.asarray(self.images[rows])).to(self.mean.device).float() / 255.0
        return (x - self.mean) / self.std

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Tells streamed images what will be asked for next."""
        ahead = getattr(self.images, "prefetch", None)
        if ahead is not None:
            ahead(rows)

    def answers(self, rows: NDArray[np.int64]) -> Tensor:
        """Labels of some rows; int64 (B,)."""
        return torch.from_numpy(self.labels[rows]).to(self.mean.device)


@dataclass
class Pace:
    """How far the training of all models is, what it has run, and who hears of it."""

    report: Report
    total: int
    done: int = 0
    forwards: int = 0
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def step(self, note: str, loss: float) -> None:
        """Counts a step and reports it."""
        self.done += 1
        self.report(Progress("phase1", self.done, self.total, note, {"loss": loss}))


def fit_all(
    model: nn.Module, name: str, examples: Examples, config: Phase1Config, pace: Pace
) -> tuple[float, ...]:
    """Trains every weight, dropout from torch's generator; gives the mean loss of every epoch.

    Raises:
        InvalidSetting: clips are to be augmented.
        NotFinite: a loss is NaN or infinite; names model, epoch and step.
    """
    if config.augment and examples.is_clips:
        raise InvalidSetting(
            "Crops and flips are for images: flipping a clip can change its class. "
            "Train without them: --set phase1.augment=false."
        )
    layout = torch.channels_last_3d if examples.is_clips else torch.channels_last
    model.to(memory_format=layout).train()

    def step(rows: NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = examples.inputs(rows).to(memory_format=layout)
        x = augmented(x, generator) if config.augment else x
        pace.forwards += len(rows)
        output = model(x)
        # Some of torchvision's models add the logits of side branches while they train.
        return output if isinstance(output, Tensor) else output[0], examples.answers(rows)

    return _epochs(model, name, len(examples), step, config, pace, examples.prefetch)


def fit_last(
    model: nn.Module,
    name: str,
    classes: int,
    examples: Examples,
    config: Phase1Config,
    pace: Pace,
    *,
    folder: Path | None = None,
) -> tuple[float, ...]:
    """Trains the last layer on what the rest, frozen, shows it; gives the loss of every epoch.

    The features are standardised while it learns, and that is then put into the layer's weights:
    one learning rate suits every model. It starts from zero.

    Args:
        model: in evaluation mode from here on.
        name: of the model.
        classes: outputs of the last layer.
        examples: what it learns from.
        config: optimiser and epochs.
        pace: of the whole training.
        folder: where features beyond `IN_MEMORY` lie while it learns; None: they stay in memory.

    Raises:
        InvalidSetting: the model does not end in a linear layer.
        NotFinite: a loss is NaN or infinite; names model, epoch and step.
    """
    key = head_of(model.eval(), classes)
    head = model.get_submodule(key) if key else None
    if not isinstance(head, nn.Linear) or not _ends_in(model, head, classes, examples):
        raise InvalidSetting(
            f"{name} does not end in a linear layer over a vector of features, so its last layer "
            "cannot be trained alone. Train all of it with --set path.train=all."
        )
    file = None if folder is None else folder / f".{name.replace(':', '.')}.features.npy"
    table = _features(model, head, classes, examples, config, pace, file)
    mean, std = _statistics(table, has_bias=head.bias is not None)
    probe = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)
    device = examples.mean.device
    probe.to(device)
    shift, scale = (torch.from_numpy(values).to(device) for values in (mean, std))

    def step(rows: NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = (torch.from_numpy(np.asarray(table[rows])).to(device) - shift) / scale
        return probe(x), examples.answers(rows)

    losses = _epochs(probe, name, len(examples), step, config, pace)
    with torch.no_grad():
        head.weight.copy_(probe.weight / scale)
        if head.bias is not None:
            head.bias.copy_(probe.bias - head.weight @ shift)
    if file is not None:
        file.unlink(missing_ok=True)
    return losses


def _epochs(
    model: nn.Module,
    name: str,
    count: int,
    step: Step,
    config: Phase1Config,
    pace: Pace,
    prefetch: Callable[[NDArray[np.int64]], None] | None = None,
) -> tuple[float, ...]:
    """Runs every epoch; an epoch's randomness comes from the seed and its number."""
    optimizer = make_optimizer(model, config)
    device = next(model.parameters()).device.type
    losses: list[float] = []
    for epoch in range(config.epochs):
        seed = config.seed * 1_000_003 + epoch
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        order = torch.randperm(count, generator=generator).numpy()
        parts = batches(order, config.batch_size)
        total = 0.0
        for number, rows in enumerate(parts):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, epoch + number / len(parts), losses)
            optimizer.zero_grad(set_to_none=True)
            if prefetch is not None and number + 1 < len(parts):
                prefetch(parts[number + 1])
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits, answers = step(rows, generator)
            loss = F.cross_entropy(logits.float(), answers, label_smoothing=config.label_smoothing)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NotFinite(
                    f"The loss of {name} became {value} at epoch {epoch}, step {number} of "
                    f"{len(parts)}. Lower the rate: --set phase1.learning_rate="
                    f"{config.learning_rate / 4:g}."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            total += value * len(rows)
            pace.step(f"{name}, epoch {epoch + 1}/{config.epochs}", value)
        losses.append(total / count)
    return tuple(losses)


def _ends_in(model: nn.Module, head: nn.Linear, classes: int, examples: Examples) -> bool:
    """Whether the model's answer is this layer's answer to one vector a sample."""
    hook = watch(model, classes)
    with torch.inference_mode(), penultimate() as seen:
        logits = model(examples.inputs(np.arange(min(2, len(examples)))))
    hook.remove()
    if len(seen) != 1 or seen[0].shape != (len(logits), head.in_features):
        return False
    with torch.inference_mode():
        answer = torch.softmax(head(seen[0]).float(), dim=1)
    # float32, summed in another order at most
    return torch.allclose(answer, torch.softmax(logits.float(), dim=1), atol=1e-4)


def _features(
    model: nn.Module,
    head: nn.Linear,
    classes: int,
    examples: Examples,
    config: Phase1Config,
    pace: Pace,
    file: Path | None,
) -> NDArray[np.float32]:
    """What the last layer is given for every example; float32 (N, D)."""
    shape = (len(examples), head.in_features)
    if file is not None and 4 * shape[0] * shape[1] > IN_MEMORY:
        file.parent.mkdir(parents=True, exist_ok=True)
        table: NDArray[np.float32] = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    else:
        table = np.empty(shape, np.float32)
    hook = watch(model, classes)
    parts = batches(np.arange(len(examples)), config.batch_size)
    for number, rows in enumerate(parts):
        if number + 1 < len(parts):
            examples.prefetch(parts[number + 1])
        with torch.inference_mode(), penultimate() as seen:
            model(examples.inputs(rows))
        table[rows] = seen[0].float().cpu().numpy()
        pace.forwards += len(rows)
    hook.remove()
    return table


def _statistics(
    table: NDArray[np.float32], *, has_bias: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of every feature; a layer without bias cannot take a mean off."""
    sums = np.zeros((2, table.shape[1]))
    for start in range(0, len(table), 4096):
        rows = np.asarray(table[start : start + 4096], np.float64)
        sums += np.stack([rows.sum(axis=0), (rows**2).sum(axis=0)])
    mean, square = sums / len(table)
    mean = mean if has_bias else np.zeros_like(mean)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)
