"""The governor: a frozen data path and the controller that says how much of it each input gets.

It serves; it neither trains nor records. It imports no environment, Ray or MLflow, so that it runs
where those are not installed. B batch, C channels, T frames, H, W, K arms, J key points.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.controllers.export import load_controller
from flyball.controllers.protocol import Controller, NetworkController, check_arms, check_path
from flyball.datapaths.errors import DataError, ShapeMismatch
from flyball.datapaths.paths import DataPath, device_of, open_path

__all__ = ["CONTROLLER_FOLDER", "PATH_FOLDER", "Governor", "PosePath", "Predictions", "sees_poses"]

PATH_FOLDER = "path"
CONTROLLER_FOLDER = "controller"


class PosePath(DataPath, Protocol):
    """A data path whose output is heat maps of key points."""

    def key_points(self, output: torch.Tensor) -> torch.Tensor:
        """x, y in input pixels and the peak of every key point; float32 (B, J, 3)."""
        ...


def sees_poses(path: DataPath) -> TypeGuard[PosePath]:
    """Whether a data path finds key points; one of another task tells classes apart."""
    return getattr(path.spec, "task", None) == "pose"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a governor says about B images, and what saying it took.

    Attributes:
        prediction: class index, int64 (B,).
        label: name of the class, B texts.
        confidence: the data path's probability of its own answer, in [0, 1], float32 (B,).
        arm: index of the chosen arm, int64 (B,).
        utilization: the chosen u, float32 (B,).
        macs: multiply-accumulates of data path, controller and context together, int64 (B,).
        forwards_avoided: images whose answer was the context pass's own: arm 0 never runs twice.
        key_points: x, y in input pixels and the heat map's peak in [0, 1], float32 (B, J, 3);
            None of a classifier.
    """

    prediction: NDArray[np.int64]
    label: tuple[str, ...]
    confidence: NDArray[np.float32]
    arm: NDArray[np.int64]
    utilization: NDArray[np.float32]
    macs: NDArray[np.int64]
    forwards_avoided: int
    key_points: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.prediction)

    def columns(self) -> dict[str, Any]:
        """The per-image figures by name, each of length B: a table.

        `key_points`, J lists of x, y and peak, is a column of pose networks alone.
        """
        seen = {} if self.key_points is None else {"key_points": self.key_points.tolist()}
        return {
            "prediction": self.prediction,
            "label": list(self.label),
            "confidence": self.confidence,
            "utilization": self.utilization,
            "macs": self.macs,
            **seen,
        }


class Governor:
    """Answers images with a frozen data path, as much of it as the controller asks for.

    Attributes:
        path: the data path.
        controller: chooses an arm for every image.
    """

    def __init__(self, path: DataPath, controller: Controller, *, fixed_shape: bool = True) -> None:
        """Joins the two.

        Args:
            path: the data path.
            controller: trained on that path's outcomes.
            fixed_shape: answers bit-equal whatever the batch; False is faster for single images.

        Raises:
            ArmMismatch: the controller chooses among other arms.
            ForeignArtifact: the controller was trained for another data path.
            ShapeMismatch: the controller observes something of another shape.
        """
        check_arms(controller, path.arms, f"data path {path.fingerprint}")
        if isinstance(controller, NetworkController):
            check_path(controller, path.fingerprint, "the one beside it")
            _check_observation(controller, path)
        self.path = path
        self.controller = controller
        self._fixed_shape = fixed_shape

    @classmethod
    def load(cls, folder: Path | str, *, fixed_shape: bool = True) -> "Governor":
        """Reads `path/` and `controller/` of a folder; no pickle is read.

        Raises:
            ArtifactError: a file is missing, damaged, a pickle, or belongs to something else.
        """
        path = open_path(Path(folder) / PATH_FOLDER)
        controller = load_controller(Path(folder) / CONTROLLER_FOLDER)
        return cls(path, controller, fixed_shape=fixed_shape)

    def predict(self, images: NDArray[Any], budget: float | None = None) -> Predictions:
        """Chooses an arm for every image, and answers it there.

        Images are grouped by arm once, at the data path's input.

        Args:
            images: float32 in [0, 1], (B, C, H, W), or clips (B, C, T, H, W).
            budget: mean net throttle ratio to hold; None spends what the reward taught.

        Raises:
            DataError: the images have another shape, type or range, or are not finite.
            InvalidSetting: the budget is outside what the arms cost, or the controller serves none.
        """
        device, shape = device_of(self.path), self._fixed_shape
        x = torch.tensor(_checked(images, self.path.input_shape))
        output: torch.Tensor | None = None
        macs = torch.full((len(x),), self.controller.macs, dtype=torch.int64)
        observed, pending = x, torch.ones(len(x), dtype=torch.bool)
        if self.controller.observation == "context":
            observed, lowest = self.path.context(x.to(device), fixed_shape=shape)
            output, macs = lowest.output.cpu().clone(), macs + lowest.macs.cpu()
        arm = torch.from_numpy(self.controller.choose(observed.cpu().numpy(), budget=budget))
        if self.controller.observation == "context":
            pending = arm != 0
        for index in torch.unique(arm[pending]).tolist():
            rows = torch.nonzero(pending & (arm == index)).flatten()
            answer = self.path(x[rows].to(device), self.path.arms[index], fixed_shape=shape)
            if output is None:
                output = torch.zeros(len(x), *answer.output.shape[1:])
            output[rows] = answer.output.cpu()
            macs[rows] += answer.macs.cpu()
        if output is None:
            output = self.path(x.to(device), self.path.arms[0]).output.cpu()
        judged = self.path.read(output)
        return Predictions(
            prediction=judged.answer.numpy(),
            label=tuple(self.path.classes[index] for index in judged.answer.tolist()),
            confidence=judged.confidence.numpy(),
            arm=arm.numpy(),
            utilization=np.asarray(self.path.arms, np.float32)[arm.numpy()],
            macs=macs.numpy(),
            forwards_avoided=len(x) - int(pending.sum()),
            key_points=self._key_points(output),
        )

    def _key_points(self, output: torch.Tensor) -> NDArray[np.float32] | None:
        if not sees_poses(self.path):
            return None
        return self.path.key_points(output).numpy().astype(np.float32)


def _checked(images: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = np.asarray(images)
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        is_clip = len(shape) == 4
        raise DataError(
            f"This governor takes a batch of {'clips' if is_clip else 'images'} of shape "
            f"(B, {', '.join(map(str, shape))}) (channels, {'frames, ' if is_clip else ''}height, "
            f"width); {array.shape} came. Resize them, and add the batch axis."
        )
    if array.dtype != np.float32:
        advice = " Divide bytes by 255 first." if array.dtype == np.uint8 else ""
        raise DataError(
            f"Images are float32 in [0, 1]; {array.dtype} came.{advice} "
            "Give images.astype(numpy.float32)."
        )
    if not np.isfinite(array).all():
        bad = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(f"Every pixel is a number; image {bad} has NaN or infinity. Drop it.")
    if array.size and (array.min() < 0.0 or array.max() > 1.0):
        raise DataError(
            f"Pixels are in [0, 1]; these reach from {array.min():g} to {array.max():g}. "
            "Divide by 255, and do not normalise: the data path does it."
        )
    return np.ascontiguousarray(array)


def _check_observation(controller: NetworkController, path: DataPath) -> None:
    is_context = controller.observation == "context"
    given = (path.context_size,) if is_context else path.input_shape
    if controller.observation_shape != given:
        raise ShapeMismatch(
            f"The controller observes {controller.observation} of shape "
            f"{controller.observation_shape}; data path {path.fingerprint} gives {given}. "
            "Load the controller that was trained for this data path."
        )
