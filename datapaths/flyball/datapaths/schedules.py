"""How Phase 1 runs: its settings and what they say about every epoch; `phase1` trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flyball.datapaths.checks import check_rules
from flyball.datapaths.errors import InvalidSetting

__all__ = [
    "Phase1Config",
    "Schedule",
    "check_schedule",
    "incremental_utilization",
    "learning_rate_at",
    "plateaus",
]

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
        optimizer: "sgd", or "adam" as published for C3D-W.
        learning_rate: at the start.
        rate_schedule: "cosine": half a cosine to 0 after `warmup_epochs`; "plateau": a tenth of
            it whenever the epoch's loss has not fallen for more than `patience` epochs; "steps":
            a tenth of it from each of the `milestones` on.
        milestones: epochs of "steps", such as 150,250.
        patience: of "plateau", in epochs.
        momentum: of SGD.
        betas: of Adam.
        weight_decay: of either.
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
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.05
    rate_schedule: Literal["cosine", "plateau", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    patience: int = 3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
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
            (
                "milestones",
                bool(self.milestones) or self.rate_schedule != "steps",
                "one epoch or more for rate_schedule=steps",
            ),
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            ("optimizer", self.optimizer in ("sgd", "adam"), "sgd or adam"),
            (
                "rate_schedule",
                self.rate_schedule in ("cosine", "plateau", "steps"),
                "cosine, plateau or steps",
            ),
            ("patience", self.patience >= 0, "at least 0"),
            (
                "betas",
                len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
                "two in [0, 1)",
            ),
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
        check_rules(self, "phase1", rules)


def learning_rate_at(config: Phase1Config, epoch: float, losses: Sequence[float] = ()) -> float:
    """The rate of a step.

    Args:
        config: of the training.
        epoch: counts from 0 and may be a fraction.
        losses: of the finished epochs; "plateau" follows them.
    """
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch + 1e-2) / (config.warmup_epochs + 1e-2)
    if config.rate_schedule == "steps":
        return config.learning_rate * 0.1 ** sum(epoch >= mark for mark in config.milestones)
    if config.rate_schedule == "plateau":
        return config.learning_rate * 0.1 ** plateaus(losses, config.patience)
    left = config.epochs - config.warmup_epochs
    share = min(1.0, (epoch - config.warmup_epochs) / left) if left > 0 else 1.0
    return 0.5 * config.learning_rate * (1.0 + math.cos(math.pi * share))


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often the loss stood still for more than `patience` epochs, each counted anew.

    As torch's ReduceLROnPlateau counts by default: an epoch is better if its loss is lower than
    the best by more than a ten-thousandth of it.
    """
    best, bad, count = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - 1e-4):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            count, bad = count + 1, 0
    return count


def incremental_utilization(config: Phase1Config, epoch: int) -> float:
    """u of the incremental schedule: + `increment` every `epochs_per_increment` epochs, up to 1."""
    return min(1.0, config.increment * (1 + epoch // config.epochs_per_increment))


def check_schedule(config: Phase1Config, network: Any) -> None:
    """Refuses a schedule that the network's gates cannot follow.

    Args:
        config: of the training.
        network: the network or its configuration.

    Raises:
        InvalidSetting: the sandwich is asked of independent gates, which have no order to teach
            by, or batch norm of independent gates.
    """
    if config.schedule == "sandwich" and getattr(network, "gating", "nested") != "nested":
        raise InvalidSetting(
            "The sandwich rule needs nested gates: it teaches each smaller network as a part of "
            "the full one. Train independent gates with --set phase1.schedule=uniform."
        )
    has_batch_norm = getattr(network, "norm", "") == "batch" or bool(getattr(network, "norms", ()))
    if getattr(network, "gating", "nested") != "nested" and has_batch_norm:
        raise InvalidSetting(
            "Batch-norm statistics hold for one setting of the gates, and independent gates have "
            "too many. Set --set path.norm=group, or --set path.gating=nested."
        )
