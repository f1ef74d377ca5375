"""Phase 1 of a detector: trains Faster R-CNN on a throttleable body so that it works at every u.

Every step has one utilization for its whole batch and runs sliced, so that small ones cost little.
A step's randomness comes from the seed and its number alone: a run that was interrupted goes on
from its last checkpoint to the same weights. B batch, N images.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.datapaths.checkpoint import resume_checkpoint, save_checkpoint
from flyball.datapaths.checks import check_rules
from flyball.datapaths.detection.detection_set import DetectionSet, ImageTruth
from flyball.datapaths.detection.detector import ThrottleableDetector
from flyball.datapaths.errors import DataError, NotFinite, unknown_name
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import PATH_TRAIN

__all__ = ["DetectorResult", "DetectorTraining", "train_detector"]

Schedule = Literal["uniform", "incremental", "sandwich"]
Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True)
class DetectorTraining:
    """How a detector is trained.

    Attributes:
        schedule: "uniform": u ~ U[0, 1] for every step, as published (TNN section 4.3);
            "incremental": u from `increment`, + `increment` after equal shares of the steps;
            "sandwich": the mean loss of the whole, the lowest and one random sub-network.
        optimizer: "sgd", as published, for weights that were trained before; "adam" (decoupled
            weight decay), which gets further in few steps from drawn weights.
        steps: >= 1.
        batch_size: B, >= 1.
        learning_rate: after `warmup_steps` of linear rise; then half a cosine to 0; > 0.
        momentum: of SGD.
        weight_decay: of either.
        warmup_steps: >= 0.
        lowest: the sandwich's lowest utilization, in (0, 1].
        increment: of the incremental schedule, in (0, 1].
        flip: turn half of the images left to right.
        clip_norm: largest norm of the gradient; larger ones are scaled down to it.
        checkpoint_seconds: least time between two checkpoints.
        seed: of weights, order, utilizations, flips and sampled proposals; >= 0.

    Raises:
        UnknownName: there is no such schedule or optimizer.
        InvalidSetting: another value breaks its rule.
    """

    schedule: Schedule = "uniform"
    optimizer: Optimizer = "sgd"
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    lowest: float = 0.1
    increment: float = 0.1
    flip: bool = True
    clip_norm: float = 10.0
    checkpoint_seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("schedule", get_args(Schedule)), ("optimizer", get_args(Optimizer))):
            if getattr(self, name) not in known:
                raise unknown_name(f"training.{name}", str(getattr(self, name)), known)
        rules = [
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("lowest", 0 < self.lowest <= 1, "in (0, 1]"),
            ("increment", 0 < self.increment <= 1, "in (0, 1]"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("seed", self.seed >= 0, "at least 0"),
        ]
        check_rules(self, "training", rules)


@dataclass(frozen=True)
class DetectorResult:
    """What training gave.

    Attributes:
        detector: trained, in evaluation mode.
        losses: of every step.
        forwards: image passes of this call, all utilizations counted.
        seconds: wall-clock time of this call.
        resumed_from: steps that a checkpoint had already done; 0 if none.
    """

    detector: ThrottleableDetector
    losses: tuple[float, ...]
    forwards: int
    seconds: float
    resumed_from: int


def train_detector(
    detector: ThrottleableDetector,
    data: DetectionSet,
    config: DetectorTraining,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    folder: Path | None = None,
    device: str = "cpu",
    report: Report = silent,
) -> DetectorResult:
    """Trains a detector in place on the path_train images.

    Args:
        detector: initialised.
        data: images with boxes; other splits are not touched.
        config: schedule and optimiser.
        mean, std: of the channels on the [0, 1] scale.
        folder: where checkpoints go; one found there is resumed. None: none are made.
        device: torch device.
        report: hears of every step.

    Raises:
        DataError: the images have another size, or none of them has a box to find.
        NotFinite: a loss is NaN or infinite; names the step.
        ForeignArtifact: the folder holds the checkpoint of another training.
    """
    rows = _checked_rows(detector, data)
    start = time.monotonic()
    detector.to(device).train()
    optimizer = _optimizer(detector, config)
    settings = {**asdict(config), "checkpoint_seconds": None}
    plan = {"fingerprint": fingerprint_of(asdict(detector.config), settings, data.fingerprint)}
    network = cast(Any, detector)  # a checkpoint needs no more than a module
    losses, forwards = resume_checkpoint(folder, plan, network, optimizer)
    before, resumed, saved = forwards, len(losses), time.monotonic()
    scale = [torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (mean, std)]
    devices = [torch.device(device)] if device.startswith("cuda") else []
    for step in range(resumed, config.steps):
        draws = np.random.default_rng([config.seed, step])
        size = min(config.batch_size, len(rows))
        chosen = np.sort(draws.choice(rows, size=size, replace=False))
        images = torch.from_numpy(np.asarray(data.images[chosen])).to(device).float() / 255.0
        x, truths = (images - scale[0]) / scale[1], data.truth_rows(chosen)
        if config.flip:
            x, truths = _flipped(x, truths, draws.random(size) < 0.5)
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        settings_of_gates = _counts(detector, config, step, draws)
        with torch.random.fork_rng(devices=devices):
            for counts in settings_of_gates:
                torch.manual_seed(int(draws.integers(2**62)))
                gates = detector.gates(counts, calibrated=False)
                parts = detector.losses(x, truths, gates)
                loss = torch.stack(list(parts.values())).sum() / len(settings_of_gates)
                _check_finite(loss, step, config)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        nn.utils.clip_grad_norm_(detector.parameters(), config.clip_norm)
        optimizer.step()
        losses.append(total)
        forwards += size * len(settings_of_gates)
        report(Progress("detector", step + 1, config.steps, values={"loss": total}))
        is_due = time.monotonic() - saved >= config.checkpoint_seconds
        if folder is not None and is_due and step + 1 < config.steps:
            save_checkpoint(folder, plan, network, optimizer, losses, forwards)
            saved = time.monotonic()
    detector.to("cpu").eval()
    seconds = time.monotonic() - start
    return DetectorResult(detector, tuple(losses), forwards - before, seconds, resumed)


def _optimizer(detector: nn.Module, config: DetectorTraining) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.AdamW(detector.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(
        detector.parameters(), lr=rate, momentum=config.momentum, weight_decay=decay
    )


def _checked_rows(detector: ThrottleableDetector, data: DetectionSet) -> np.ndarray:
    if tuple(data.shape) != detector.input_shape:
        raise DataError(
            f"This detector takes images of shape {detector.input_shape}, {data.name} has "
            f"{tuple(data.shape)}. Resize with --set data.image_size={detector.input_shape[1]}."
        )
    if len(data.classes) != detector.config.classes:
        raise DataError(
            f"This detector tells {detector.config.classes} kinds of object apart, {data.name} "
            f"has {len(data.classes)}. Set --set detector.classes={len(data.classes)}."
        )
    rows = data.rows(PATH_TRAIN)
    if all(truth.is_difficult.all() for truth in data.truth_rows(rows)):
        raise DataError(
            f"A detector learns from boxes; none of the {len(rows)} images of path_train in "
            f"{data.name} has one to find. Keep more classes with --set data.keep=A,B, or lower "
            "--set data.difficult_below."
        )
    return rows


def _counts(
    detector: ThrottleableDetector, config: DetectorTraining, step: int, draws: np.random.Generator
) -> list[tuple[int, ...]]:
    """Which components a step switches on, once or three times."""
    u = float(draws.random())
    if config.schedule == "uniform":
        return [detector.sampled_counts(u)]
    if config.schedule == "incremental":
        stages = math.ceil(1.0 / config.increment - 1e-9)
        stage = step * stages // config.steps
        return [detector.counts_at(min(1.0, config.increment * (stage + 1)))]
    middle = config.lowest + (1.0 - config.lowest) * u
    return [detector.counts_at(one) for one in (1.0, config.lowest, middle)]


def _rate(config: DetectorTraining, step: int) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * config.learning_rate * (1.0 + math.cos(math.pi * share))


def _flipped(
    x: Tensor, truths: tuple[ImageTruth, ...], is_flipped: np.ndarray
) -> tuple[Tensor, tuple[ImageTruth, ...]]:
    """Turns some images and their boxes left to right."""
    turned = torch.from_numpy(is_flipped).to(x.device)
    x = torch.where(turned[:, None, None, None], x.flip(3), x)
    side = np.float32(x.shape[3])
    return x, tuple(
        truth._replace(boxes=_mirrored(truth.boxes, side)) if turn else truth
        for truth, turn in zip(truths, is_flipped, strict=True)
    )


def _mirrored(boxes: NDArray[np.float32], side: np.float32) -> NDArray[np.float32]:
    x1, y1, x2, y2 = boxes.T
    return np.stack([side - x2, y1, side - x1, y2], axis=1)


def _check_finite(loss: Tensor, step: int, config: DetectorTraining) -> None:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NotFinite(
            f"The detector's loss became {value} at step {step} of {config.steps}. Lower the rate: "
            f"--set training.learning_rate={config.learning_rate / 4:g}."
        )
