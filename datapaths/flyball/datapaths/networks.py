"""The throttleable networks by kind: from a configuration to a network, and to JSON and back."""

import importlib
import types
import typing
from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["KINDS", "NetworkKind", "config_from_json", "config_to_json", "kind_of", "make_network"]


class NetworkKind(NamedTuple):
    """Where a kind of network lives.

    Attributes:
        module: of flyball.datapaths.
        config: name of its configuration, a frozen dataclass.
        network: name of the network, which is made from the configuration alone.
    """

    module: str
    config: str
    network: str


KINDS: dict[str, NetworkKind] = {
    "vgg": NetworkKind("vgg", "VggConfig", "ThrottleableVgg"),
    "resnet": NetworkKind("resnet", "ResNetConfig", "ThrottleableResNet"),
    "resnext": NetworkKind("resnext", "ResNeXtConfig", "ThrottleableResNeXt"),
    "densenet": NetworkKind("densenet", "DenseNetConfig", "ThrottleableDenseNet"),
    "c3d": NetworkKind("c3d", "C3dConfig", "ThrottleableC3d"),
    "torchvision": NetworkKind(
        "graph.torchvision_models", "TorchvisionConfig", "TorchvisionNetwork"
    ),
    "custom": NetworkKind("graph.custom", "CustomConfig", "CustomNetwork"),
    "dynconv_resnet": NetworkKind("dynconv.resnet", "DynConvResNetConfig", "DynConvResNet"),
    "hourglass": NetworkKind("dynconv.hourglass", "HourglassConfig", "Hourglass"),
}


def make_network(config: Any) -> ThrottleableNetwork:
    """A network of this structure, its weights drawn from torch's global generator."""
    found = KINDS[kind_of(config)]
    network: ThrottleableNetwork = _home(found, found.network)(config)
    return network


def kind_of(config: Any) -> str:
    """Name of the kind a configuration belongs to.

    Raises:
        InvalidSetting: there is none: the network came from `throttle`.
        UnknownName: it is no network's configuration.
    """
    if config is None:
        raise InvalidSetting(
            "This network came from throttle(), and no name stands for its model, so it cannot be "
            "saved or frozen. Name it with register_model(name, builder), and load its weights "
            "into make_network(CustomConfig(name, input_shape))."
        )
    name = type(config).__name__
    for kind, found in KINDS.items():
        if found.config == name:
            return kind
    raise unknown_name("network configuration", name, [k.config for k in KINDS.values()])


def config_to_json(config: Any) -> dict[str, Any]:
    """Plain values with the kind among them."""
    return {"kind": kind_of(config), **asdict(config)}


def config_from_json(values: dict[str, Any]) -> Any:
    """The configuration that `config_to_json` described.

    Raises:
        UnknownName: there is no such kind.
        KeyError, TypeError: a field is missing or strange.
    """
    kind = str(values["kind"])
    if kind not in KINDS:
        raise unknown_name("network", kind, KINDS)
    found = KINDS[kind]
    rest = {name: value for name, value in values.items() if name != "kind"}
    return _typed(_home(found, found.config), rest)


def _home(found: NetworkKind, name: str) -> Any:
    return getattr(importlib.import_module(f"flyball.datapaths.{found.module}"), name)


def _typed(hint: Any, value: Any) -> Any:
    """JSON knows lists only: gives back tuples and dataclasses as the type hints say."""
    if is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        made: Any = hint
        return made(**{name: _typed(hints[name], item) for name, item in value.items()})
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
        return _typed(hint, value)
    if isinstance(value, list):
        options = typing.get_args(hint)
        inner = options[0] if options else Any
        return tuple(_typed(inner, item) for item in value)
    return value
