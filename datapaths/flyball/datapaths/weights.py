"""Weights into a network: every name and shape must be that network's own."""

import numpy as np
import torch
from torch import nn

from flyball.datapaths.errors import ShapeMismatch
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["load_weights"]


def load_weights(network: nn.Module, weights: dict[str, np.ndarray], *, where: str) -> None:
    """Copies arrays into a network whose every parameter and buffer they must match.

    Raises:
        ShapeMismatch: a name is missing or left over, or a shape differs.
    """
    calibrated = weights.get("calibrated")
    if calibrated is not None and isinstance(network, ThrottleableNetwork):
        network.reserve_statistics(calibrated.tolist())
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        raise ShapeMismatch(
            f"{where} holds the weights of another network: "
            f"missing {missing[:3] or 'none'}, left over {extra[:3] or 'none'}. "
            "Load it with the specification it was saved with."
        )
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != weights[name].shape:
            raise ShapeMismatch(
                f"{where}: {name} has shape {weights[name].shape}, this network needs "
                f"{tuple(tensor.shape)}. Load it with the specification it was saved with."
            )
    network.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in wanted})
