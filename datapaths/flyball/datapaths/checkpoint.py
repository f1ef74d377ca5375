"""Phase 1's checkpoints: weights, optimiser and losses in safetensors; for its own resume only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from flyball.datapaths.networks import config_to_json
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.weights import load_weights

__all__ = ["plan_of", "resume_checkpoint", "save_checkpoint"]

STATE_FILE = "phase1.safetensors"
PLAN_FILE = "phase1.json"
SAMPLED = 64


def plan_of(
    network: Any,
    config: Phase1Config,
    images: Any,
    labels: NDArray[np.int64],
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """Names a training, so that no other one goes on from its checkpoint.

    Of the images, some evenly spaced ones count; of the network, the weights it starts with.
    """
    settings = {**asdict(config), "checkpoint_seconds": None}
    some = np.unique(np.linspace(0, len(labels) - 1, SAMPLED).astype(np.int64))
    start = {name: t.detach().cpu().numpy() for name, t in network.state_dict().items()}
    content = (hash_bytes(np.asarray(images[some])), hash_bytes(np.asarray(labels)))
    scale = ([float(v) for v in mean], [float(v) for v in std])
    described = config_to_json(network.config)
    return {"fingerprint": fingerprint_of(described, settings, content, scale, hash_bytes(start))}


def save_checkpoint(
    folder: Path,
    plan: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    forwards: int,
    tables: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Writes the state after an epoch, all or nothing.

    Args:
        folder: of the checkpoint; an older one there is replaced.
        plan: of this training.
        network: its weights.
        optimizer: its momentum or moments.
        losses: of the finished epochs.
        forwards: sample passes so far.
        tables: what else was noted, by name.
    """
    tensors = {f"weight/{k}": v.detach().cpu().numpy() for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().numpy()
    tensors["losses"] = np.asarray(losses, np.float64)
    tensors["forwards"] = np.asarray([forwards], np.int64)
    tensors |= {f"table/{name}": np.asarray(table) for name, table in (tables or {}).items()}
    write_json(folder / PLAN_FILE, plan)
    write_tensors(folder / STATE_FILE, tensors)


def resume_checkpoint(
    folder: Path | None,
    plan: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    tables: dict[str, NDArray[Any]] | None = None,
) -> tuple[list[float], int]:
    """Puts a checkpoint's state into network, optimizer and tables; gives losses and forwards.

    Raises:
        ForeignArtifact: it is the checkpoint of another training.
        CorruptArtifact: it cannot be read.
    """
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
    if tables is not None:
        tables |= {
            k.removeprefix("table/"): v for k, v in tensors.items() if k.startswith("table/")
        }
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, entry, name = key.split("/", 2)
            parameter = parameters[name]
            # Adam counts its steps on the CPU, whatever device it trains on.
            device = "cpu" if entry == "step" else parameter.device
            optimizer.state[parameter][entry] = torch.from_numpy(value.copy()).to(device)
    return [float(v) for v in tensors["losses"]], int(tensors["forwards"][0])
