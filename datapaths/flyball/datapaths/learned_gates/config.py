"""How Phase 2 for gates runs: its settings, and what they say about every step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from flyball.datapaths.checks import check_rules
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.learned_gates.complexity import Penalty, Weighting
from flyball.datapaths.learned_gates.gate_networks import GateKind
from flyball.datapaths.learned_gates.structure import module_names
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["Baseline", "Estimator", "GateConfig", "least_in_force", "rate_at", "temperature_at"]

Estimator = Literal["reinforce", "concrete"]
Baseline = Literal["none", "moving_average", "leave_one_out", "self_critical"]


@dataclass(frozen=True)
class GateConfig:
    """How a gating function is trained (TNN section 4.4).

    Attributes:
        gate: "blind" (u in, gates out) or "contextual" (image and u in).
        estimator: "reinforce" (score function) or "concrete" (binary Concrete relaxation).
        baseline: of REINFORCE: "none" as published; "moving_average" of the objective over
            earlier batches; "leave_one_out", the mean of the example's other draws;
            "self_critical", the objective of the gates that would be served, one more pass.
        draws: gates drawn for every example and step; leave-one-out needs at least 2.
        temperature, final_temperature: t of Concrete at the start and at the end, geometric
            between; equal ones keep it constant.
        penalty: "distance" (Eq. 6) or "hinge" (Eq. 5).
        power: p of the penalty, 1 or 2.
        complexity_weight: lambda of Eq. 1; the paper shows 10.
        weighting: weights of Eq. 4, "uniform" or by "macs".
        min_active: components of every T-module that stay on; None: what the network needs, 0
            where a skip connection passes and 1 where none does.
        joint: also fine-tunes the data path (the paper's Contextual+fine).
        path_learning_rate: of the data path when `joint`.
        epochs: passes over the images.
        batch_size: B.
        learning_rate: of Adam, at the start; follows half a cosine to 0.
        hidden: features of the gate network's layer between.
        channels: of a contextual gate's convolutions.
        clip_norm: largest norm of the gradient, gate and data path each; larger ones are scaled.
        precision: "float32", or "bfloat16" for the data path's arithmetic.
        checkpoint_seconds: least time between two checkpoints.
        seed: of initialisation, order, targets and gates.
    """

    gate: GateKind = "blind"
    estimator: Estimator = "reinforce"
    baseline: Baseline = "leave_one_out"
    draws: int = 2
    temperature: float = 1.0
    final_temperature: float = 0.3
    penalty: Penalty = "distance"
    power: Literal[1, 2] = 2
    complexity_weight: float = 10.0
    weighting: Weighting = "uniform"
    min_active: int | None = None
    joint: bool = False
    path_learning_rate: float = 2e-4
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 5e-3
    hidden: int = 64
    channels: tuple[int, ...] = (16, 32)
    clip_norm: float = 10.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every range; `gate_networks.GateShape` checks the gate network's.

        Raises:
            InvalidSetting: a value is outside its range; names the field.
        """
        rules: list[tuple[str, bool, str]] = [
            ("gate", self.gate in ("blind", "contextual"), "'blind' or 'contextual'"),
            (
                "estimator",
                self.estimator in ("reinforce", "concrete"),
                "'reinforce' or 'concrete'",
            ),
            (
                "baseline",
                self.baseline in ("none", "moving_average", "leave_one_out", "self_critical"),
                "'none', 'moving_average', 'leave_one_out' or 'self_critical'",
            ),
            ("draws", _is_count(self.draws), "an integer of at least 1"),
            ("temperature", _is_positive(self.temperature), "above 0 and finite"),
            ("final_temperature", _is_positive(self.final_temperature), "above 0 and finite"),
            ("penalty", self.penalty in ("distance", "hinge"), "'distance' or 'hinge'"),
            ("power", self.power in (1, 2) and not isinstance(self.power, bool), "1 or 2"),
            (
                "complexity_weight",
                0 <= self.complexity_weight < math.inf,
                "at least 0 and finite",
            ),
            ("weighting", self.weighting in ("uniform", "macs"), "'uniform' or 'macs'"),
            (
                "min_active",
                self.min_active is None or _is_count(self.min_active, least=0),
                "an integer of at least 0, or unset",
            ),
            ("path_learning_rate", _is_positive(self.path_learning_rate), "above 0 and finite"),
            ("epochs", _is_count(self.epochs), "an integer of at least 1"),
            ("batch_size", _is_count(self.batch_size), "an integer of at least 1"),
            ("learning_rate", _is_positive(self.learning_rate), "above 0 and finite"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            ("checkpoint_seconds", self.checkpoint_seconds >= 0, "at least 0"),
            ("seed", _is_count(self.seed, least=0), "an integer of at least 0"),
        ]
        check_rules(self, "gates", rules, advice="Give GateConfig(NAME=VALUE).")
        is_alone = self.estimator == "reinforce" and self.draws < 2
        if is_alone and self.baseline == "leave_one_out":
            raise InvalidSetting(
                "A leave-one-out baseline compares an example's draws with each other; there is "
                f"{self.draws}. Give GateConfig(draws=2), or GateConfig(baseline='moving_average')."
            )


def temperature_at(config: GateConfig, share: float) -> float:
    """t of Concrete after a share of the training, in [0, 1]."""
    return float(config.temperature * (config.final_temperature / config.temperature) ** share)


def rate_at(rate: float, share: float) -> float:
    """A learning rate after a share of the training, in [0, 1]: half a cosine to 0."""
    return 0.5 * rate * (1.0 + math.cos(math.pi * share))


def least_in_force(network: ThrottleableNetwork, min_active: int | None) -> tuple[int, ...]:
    """How many components of every T-module stay on.

    Raises:
        InvalidSetting: fewer than the network needs, or more than a T-module has; names it.
    """
    if min_active is None:
        return tuple(network.least)
    names = module_names(network)
    for name, need, n in zip(names, network.least, network.components, strict=True):
        if min_active < need:
            raise InvalidSetting(
                f"T-module {name} has no skip connection, so at least {need} of its {n} "
                f"components stays on; gates.min_active is {min_active}, and a learned gate could "
                f"switch it off whole. Give GateConfig(min_active={max(network.least)}), or leave "
                "it unset."
            )
        if min_active > n:
            raise InvalidSetting(
                f"T-module {name} has {n} components; gates.min_active keeps {min_active} on. "
                f"Give GateConfig(min_active={min(network.components)}) or less."
            )
    return (min_active,) * len(network.components)


def _is_count(value: Any, *, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf
