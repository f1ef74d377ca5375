"""How far a training of gates is, and its checkpoint in safetensors; for its own resume only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.errors import ForeignArtifact
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.learned_gates.config import GateConfig
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.weights import load_weights

__all__ = ["GateState", "pixel_digest", "plan_of", "resume_state", "save_state"]

STATE_FILE = "gates.safetensors"
PLAN_FILE = "gates.json"
_DIGESTED_ROWS = 64


@dataclass
class GateState:
    """What changes while gates train.

    Attributes:
        gate_network: being trained.
        path: the data path, when it is fine-tuned too.
        average: moving average of the objective; 0 before the first step.
        has_average: whether a step has entered it.
        forwards: sample passes through the data path so far.
        forwards_before: of these, in calls before this one.
        history: mean task loss and |c - u| of every finished epoch.
    """

    gate_network: nn.Module
    path: ThrottleableNetwork | None
    average: float = 0.0
    has_average: bool = False
    forwards: int = 0
    forwards_before: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Everything that the optimiser moves."""
        named = [(f"gate/{name}", p) for name, p in self.gate_network.named_parameters()]
        if self.path is not None:
            named += [(f"path/{name}", p) for name, p in self.path.named_parameters()]
        return named


def plan_of(
    path: str,
    config: GateConfig,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """Names a training, so that no other one goes on from its checkpoint.

    Args:
        path: fingerprint of the data path.
        config: of the training; how often it writes checkpoints does not enter.
        images: uint8 (M, *input_shape), at least one; `pixel_digest` stands for them.
        labels: int64 (M,).
        mean, std: of the channels.
    """
    settings = {**asdict(config), "checkpoint_seconds": None}
    scale = [[float(v) for v in values] for values in (mean, std)]
    digest = fingerprint_of(
        path, settings, np.asarray(labels).tolist(), pixel_digest(images), scale
    )
    return {"fingerprint": digest, "path": path}


def pixel_digest(images: NDArray[np.uint8]) -> str:
    """Digest of the shape and of 64 evenly spaced images, or of all where there are fewer.

    Few enough to be decoded at once where images are streamed; an exchange of single images
    between them goes unseen.

    Args:
        images: (M, *input_shape), M at least 1, an array or anything that gives rows of one.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, _DIGESTED_ROWS).astype(np.int64))
    return fingerprint_of([int(size) for size in images.shape], hash_bytes(images[rows]))


def save_state(
    folder: Path, plan: dict[str, Any], state: GateState, optimizer: torch.optim.Adam
) -> None:
    """Writes the state after an epoch, all or nothing."""
    tensors = {
        f"weight/gate/{k}": v.detach().cpu().numpy()
        for k, v in state.gate_network.state_dict().items()
    }
    if state.path is not None:
        for name, tensor in state.path.state_dict().items():
            tensors[f"weight/path/{name}"] = tensor.detach().cpu().numpy()
    for name, parameter in state.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam/{key}/{name}"] = value.detach().cpu().numpy()
    tensors["history"] = np.asarray(state.history, np.float64)
    tensors["average"] = np.asarray([state.average, float(state.has_average)], np.float64)
    tensors["forwards"] = np.asarray([state.forwards], np.int64)
    write_json(folder / PLAN_FILE, plan)
    write_tensors(folder / STATE_FILE, tensors)


def resume_state(
    folder: Path | None, plan: dict[str, Any], state: GateState, optimizer: torch.optim.Adam
) -> int:
    """Puts a checkpoint into state and optimizer; gives the epochs it had done, 0 if none.

    Raises:
        ForeignArtifact: it is the checkpoint of another training.
        CorruptArtifact: it cannot be read.
    """
    if folder is None or not (folder / STATE_FILE).exists():
        return 0
    if read_json(folder / PLAN_FILE) != plan:
        raise ForeignArtifact(
            f"{folder} holds the checkpoint of another training of gates. "
            "Delete the folder, or repeat the settings and the data path it was started with."
        )
    tensors = read_tensors(folder / STATE_FILE)
    where = str(folder / STATE_FILE)
    load_weights(state.gate_network, _under("weight/gate/", tensors), where=where)
    if state.path is not None:
        load_weights(state.path, _under("weight/path/", tensors), where=where)
    for name, parameter in state.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"adam/{key}/{name}")
            if value is None:
                continue
            # Adam counts its steps on the CPU and keeps the averages beside the weights.
            place = torch.device("cpu") if key == "step" else parameter.device
            shape = () if key == "step" else parameter.shape
            optimizer.state[parameter][key] = (
                torch.from_numpy(value.copy()).reshape(shape).to(place)
            )
    state.history = [(float(a), float(b)) for a, b in tensors["history"]]
    state.average = float(tensors["average"][0])
    state.has_average = bool(tensors["average"][1])
    state.forwards = state.forwards_before = int(tensors["forwards"][0])
    return len(state.history)


def _under(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
