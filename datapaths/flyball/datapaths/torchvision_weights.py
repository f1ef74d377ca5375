"""Weights of torchvision's ResNets, ResNeXts and DenseNets into the throttleable ones.

| torchvision | ResNet, ResNeXt |
|---|---|
| conv1, bn1 | stem, stem.norm |
| layer{s}.{b}.conv{i}, .bn{i} | stages.{s - 1}.{b}.conv{i}, .conv{i}.norm |
| layer{s}.{b}.downsample.0, .1 | stages.{s - 1}.{b}.shortcut, .shortcut.norm |
| fc | classifier |

| torchvision, after `features.` | DenseNet |
|---|---|
| conv0, norm0; norm5 | stem, stem.norm; norm |
| denseblock{b}.denselayer{l}.norm1, .conv1 | blocks.{b - 1}.layers.{l - 1}.norm, .conv1 |
| denseblock{b}.denselayer{l}.norm2, .conv2 | blocks.{b - 1}.layers.{l - 1}.conv1.norm, .conv2 |
| transition{b}.norm, .conv | transitions.{b - 1}.norm, .conv |
"""

import re
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.weights import load_weights

__all__ = ["load_torchvision"]

# Theirs, ours; a number in angle brackets counts from 0 where theirs counts from 1.
_NAMES = (
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d+)\.", "stages.<{}>."),
    (r"\.bn(\d+)\.", ".conv{}.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "classifier."),
    (r"^features\.", ""),
    (r"^conv0\.", "stem."),
    (r"^norm0\.", "stem.norm."),
    (r"^norm5\.", "norm."),
    (r"^denseblock(\d+)\.", "blocks.<{}>."),
    (r"\.denselayer(\d+)\.", ".layers.<{}>."),
    (r"\.norm1\.", ".norm."),
    (r"\.norm2\.", ".conv1.norm."),
    (r"^transition(\d+)\.", "transitions.<{}>."),
)


def load_torchvision(network: ThrottleableNetwork, state: Mapping[str, Tensor]) -> None:
    """Copies weights by torchvision's names into a network of the same structure.

    Running statistics become row 0; the counters num_batches_tracked are left out.

    Args:
        network: with norm="batch".
        state: torchvision's `state_dict()`.

    Raises:
        ShapeMismatch: a name is missing or left over, or a shape differs.
    """
    weights: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            values = tensor.detach().cpu().numpy()
            weights[_renamed(name)] = values[None] if ".running_" in name else values
    load_weights(network, weights, where="torchvision's state_dict")


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours.replace("{}", r"\1"), name)
    return re.sub(r"<(\d+)>", lambda found: str(int(found[1]) - 1), name)
