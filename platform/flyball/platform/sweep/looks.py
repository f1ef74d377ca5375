"""The best network so far of a point under way, from the checkpoint of its last look."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.controllers.networks import build_network
from flyball.platform.job import Job

__all__ = ["best_network", "updates_saved"]


def updates_saved(checkpoints: Path) -> int:
    """How many updates the newest checkpoint holds; 0 without one."""
    found = sorted(checkpoints.glob("updates-*"))
    return int(found[-1].name.partition("-")[2]) if found else 0


def best_network(
    checkpoints: Path, job: Job, seen: NDArray[np.float32], arms: int
) -> nn.Module | None:
    """The network that earned most on the validation rows so far; None without a checkpoint.

    Args:
        checkpoints: folder that the learner saves to at every look.
        job: of the point.
        seen: what its controller sees, (N, ...).
        arms: how many it chooses among.
    """
    # RLlib takes seconds to import, and is there already where it has written a checkpoint.
    from flyball.controllers.rllib.checkpoints import PREFIX, RECORD

    found = sorted(checkpoints.glob(f"{PREFIX}*"))
    if not found:
        return None
    content: dict[str, Any] = torch.load(found[-1] / RECORD, weights_only=True)
    best = content["record"]["best"]
    if best is None:
        return None
    network = build_network(job.controller, seen.shape[1:], arms)
    network.load_state_dict(best[2])
    return network.eval()
