"""How one vector of gates is shared out to T-modules, and what it costs each sample.

B batch, n components of one T-module, N components of all T-modules together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.axes import Axis, channel_mask, channels_of
from flyball.datapaths.cost import LayerCost
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["module_names", "path_fingerprint", "sample_macs", "split_gates"]


def split_gates(gates: Tensor, components: Sequence[int]) -> tuple[Tensor, ...]:
    """(B, N) as one mask (B, n) for every T-module.

    Raises:
        InvalidSetting: N is not the sum of the components.
    """
    if gates.ndim != 2 or gates.shape[1] != sum(components):
        raise InvalidSetting(
            f"Gates have one column for each of the {sum(components)} components of "
            f"{len(components)} T-modules; their shape is {tuple(gates.shape)}. "
            "Use a gate that was made for this network."
        )
    return torch.split(gates, list(components), dim=1)


def sample_macs(layers: Sequence[LayerCost], masks: Sequence[Tensor]) -> Tensor:
    """MACs that every sample executes under its own gates: `cost.executed_macs`, row by row.

    Args:
        layers: of the network.
        masks: for every T-module (B, n) of zeros and ones.

    Returns:
        int64 (B,), exact.
    """
    hard = [mask.double() for mask in masks]
    total = hard[0].new_zeros(len(hard[0]))
    for layer in layers:
        if layer.groups > 1:
            read: Tensor | int = channels_of(layer.axis_in) // layer.groups
        else:
            read = _active_channels(layer.axis_in, hard)
        macs = layer.unit * read * _active_channels(layer.axis_out, hard)
        if layer.component is not None:
            module, component = layer.component
            macs = macs * hard[module][:, component]
        total = total + macs
    return total.long()


def module_names(network: ThrottleableNetwork) -> tuple[str, ...]:
    """Every T-module by the name of the first layer that it gates."""
    names: dict[int, str] = {}
    for layer in network.layer_costs():
        owners = {s.module for s in layer.axis_out if s.module is not None}
        if layer.component is not None:
            owners = {layer.component[0]}
        for module in owners:
            names.setdefault(module, layer.name)
    return tuple(names.get(m, f"module {m}") for m in range(len(network.components)))


def path_fingerprint(network: ThrottleableNetwork) -> str:
    """Names a network's structure and weights; 16 hex digits."""
    weights = {name: t.detach().cpu().numpy() for name, t in network.state_dict().items()}
    return fingerprint_of(repr(network.config), hash_bytes(weights))


def _active_channels(axis: Axis, masks: Sequence[Tensor]) -> Tensor | int:
    mask = channel_mask(axis, masks)
    return channels_of(axis) if mask is None else mask.sum(dim=1)
