"""What a controller is, and the one that wraps a network; how it is saved lives in `export`.

Imports neither the environments nor Ray: a server needs this file and `export` alone.

Axis letters: N samples, K arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.controllers.budget import Calibration, priced_choice
from flyball.datapaths.arms import validated_arms
from flyball.datapaths.errors import (
    ArmMismatch,
    DataError,
    ForeignArtifact,
    InvalidSetting,
    NotFinite,
    ShapeMismatch,
    unknown_name,
)

__all__ = ["Controller", "NetworkController", "ObservationKind", "check_arms", "check_path"]

ObservationKind = Literal["context", "image"]

_ROWS_AT_ONCE = 1024


@runtime_checkable
class Controller(Protocol):
    """Chooses an arm for every observation."""

    @property
    def arms(self) -> tuple[float, ...]:
        """The K utilizations it chooses among, increasing, in (0, 1]."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates that one choice costs, its context not counted."""

    @property
    def observation(self) -> ObservationKind:
        """What it sees: "image", or the lowest arm's "context"."""

    def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every arm on every observation; float32 (N, K)."""

    def choose(
        self, observations: NDArray[np.float32], budget: float | None = None
    ) -> NDArray[np.int64]:
        """Index of the arm chosen for every observation; int64 (N,).

        Args:
            observations: (N, ...).
            budget: mean net throttle ratio to spend; None: what the controller was trained for.
        """


@dataclass(frozen=True, eq=False)
class NetworkController:
    """A controller that is a network from observations to one logit an arm.

    Attributes:
        network: float32 (N, *observation_shape) to logits (N, K), in evaluation mode.
        arms: K utilizations, increasing, in (0, 1].
        macs: multiply-accumulates of the network on one observation.
        observation: "context" or "image".
        observation_shape: (D,) or (C, H, W).
        calibration: which price spends which budget; None: it serves no budgets.
        classes: class names of the data path it governs.
        path_fingerprint: of that data path; empty where unknown.
        atlas_fingerprint: of the outcomes it was trained on; empty where unknown.

    Raises:
        InvalidArms: the arms are out of order or outside (0, 1].
        UnknownName: there is no such kind of observation.
        ArmMismatch: the calibration is that of another number of arms.
    """

    network: nn.Module
    arms: tuple[float, ...]
    macs: int
    observation: ObservationKind
    observation_shape: tuple[int, ...]
    calibration: Calibration | None = None
    classes: tuple[str, ...] = ()
    path_fingerprint: str = ""
    atlas_fingerprint: str = ""

    def __post_init__(self) -> None:
        validated_arms(self.arms)
        if self.observation not in get_args(ObservationKind):
            raise unknown_name(
                "kind of observation", str(self.observation), get_args(ObservationKind)
            )
        if self.calibration is not None and len(self.calibration.ratios) != len(self.arms):
            raise ArmMismatch(
                f"The controller chooses among {len(self.arms)} arms, its calibration was "
                f"measured on {len(self.calibration.ratios)}. Calibrate it again."
            )

    def logits(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output; float32 (N, K).

        The last bits of a row may depend on how many rows came with it.

        Raises:
            DataError: the observations have another shape.
            ShapeMismatch: the network gives another number of logits than there are arms.
            NotFinite: a logit is NaN or infinite; names the first such row.
        """
        observations = np.asarray(observations, np.float32)
        if observations.shape[1:] != self.observation_shape or observations.ndim < 2:
            raise DataError(
                f"The controller observes {self.observation} of shape "
                f"(samples, {', '.join(map(str, self.observation_shape))}); "
                f"{observations.shape} came. Give it what it was trained on."
            )
        logits = np.empty((len(observations), len(self.arms)), np.float32)
        with torch.no_grad():
            for start in range(0, len(observations), _ROWS_AT_ONCE):
                rows = np.array(observations[start : start + _ROWS_AT_ONCE])
                output = self.network(torch.from_numpy(rows).to(self._device()))
                if output.shape != (len(rows), len(self.arms)):
                    raise ShapeMismatch(
                        f"A controller of {len(self.arms)} arms gives logits of shape "
                        f"{(len(rows), len(self.arms))}; its network gave {tuple(output.shape)}. "
                        "Build the network for these arms."
                    )
                logits[start : start + len(rows)] = output.float().cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(broken):
            raise NotFinite(
                f"Every logit of a controller must be finite; observation {int(broken[0])} gave "
                f"{logits[broken[0]].tolist()}, and {len(broken)} in all are not. "
                "Look at its observation, or train the controller again."
            )
        return logits

    def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax of the logits; float32 (N, K)."""
        return torch.softmax(torch.from_numpy(self.logits(observations)), dim=1).numpy()

    def choose(
        self, observations: NDArray[np.float32], budget: float | None = None
    ) -> NDArray[np.int64]:
        """The most probable arm, or at a budget the best after its price; int64 (N,).

        Args:
            observations: float32 (N, *observation_shape).
            budget: mean net throttle ratio to spend, which must lie within the calibration.

        Raises:
            InvalidSetting: the budget is outside what the arms cost, or nothing was calibrated.
        """
        if budget is None:
            chosen: NDArray[np.int64] = np.argmax(self.logits(observations), axis=1)
            return chosen
        if self.calibration is None:
            raise InvalidSetting(
                f"A budget ({budget}) needs a calibrated controller; this one has no calibration. "
                "Calibrate it on controller_val, or ask without a budget."
            )
        price = self.calibration.price(budget)
        return priced_choice(self.propensities(observations), self.calibration.ratios, price)

    def _device(self) -> torch.device:
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device


def check_arms(controller: Controller, arms: Sequence[float], where: str) -> None:
    """Refuses a controller whose arms are not those at hand.

    Args:
        controller: the controller.
        arms: arms of the atlas or data path at hand.
        where: what has those arms, such as "the outcome table (runs/digits/outcomes)".

    Raises:
        ArmMismatch: they differ.
    """
    if len(controller.arms) != len(arms):
        raise ArmMismatch(
            f"The controller chooses among {len(controller.arms)} arms, {where} has {len(arms)}. "
            f"Rebuild it with `flyball outcomes --arms {len(controller.arms)}`, or load the "
            f"controller that was trained on {len(arms)}."
        )
    for position, (ours, theirs) in enumerate(zip(controller.arms, arms, strict=True)):
        if ours != theirs:
            raise ArmMismatch(
                f"Arm {position} of the controller is u = {ours:g}, of {where} u = {theirs:g}. "
                f"Rebuild it with arms {', '.join(f'{arm:g}' for arm in controller.arms)}, or "
                "load the controller that was trained on these."
            )


def check_path(controller: NetworkController, path_fingerprint: str, where: str) -> None:
    """Refuses a controller that was trained over another data path than the one at hand.

    A controller that does not know its data path is accepted.

    Raises:
        ForeignArtifact: the fingerprints differ.
    """
    if controller.path_fingerprint and controller.path_fingerprint != path_fingerprint:
        raise ForeignArtifact(
            f"The controller was trained over data path {controller.path_fingerprint}, {where} is "
            f"{path_fingerprint}. Train a controller for it with `flyball train`, or load the "
            "data path that this controller governs."
        )
