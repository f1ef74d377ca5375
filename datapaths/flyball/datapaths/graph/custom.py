"""A user's own model as a network that can be saved and read again.

A saved specification names the model; only code that this process registered under that name is
run, so that reading a file never imports what the file asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from flyball.datapaths.checks import check_choice
from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.graph.channels import Divisor
from flyball.datapaths.graph.throttle import convert
from flyball.datapaths.graph.throttled import ThrottledNetwork
from flyball.datapaths.network import Gating

__all__ = ["CustomConfig", "CustomNetwork", "register_model"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


@dataclass(frozen=True)
class CustomConfig:
    """A registered model and how it is throttled; see `throttle` for the fields.

    Attributes:
        builder: name it was registered under.
        input_shape: of one sample, (C, H, W) or (C, T, H, W).
        arguments: for the builder, by name; plain values that JSON knows.

    Raises:
        UnknownName: there is no such gating.
    """

    builder: str
    input_shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    components: int = 16
    divisor: Divisor = "exact"
    keep_dense: tuple[str, ...] = ()
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        check_choice("gating", self.gating, get_args(Gating))


def register_model(name: str, builder: Callable[..., nn.Module]) -> None:
    """Lets configurations name a model; call it in every process that reads them.

    Args:
        name: for `CustomConfig.builder`.
        builder: a function or class that gives the model; it must not need weights.

    Raises:
        InvalidSetting: another builder has this name; the same one may register again.
    """
    taken = _BUILDERS.get(name, builder)
    if taken != builder:
        raise InvalidSetting(
            f"A name stands for one model: {name!r} is registered for {_described(taken)}, now "
            f"came {_described(builder)}. Register it under another name."
        )
    _BUILDERS[name] = builder


class CustomNetwork(ThrottledNetwork):
    """A registered model, throttled.

    Attributes:
        report: what was gated and what stays dense.

    Raises:
        UnknownName: this process registered no model of that name.
        InvalidSetting: as `throttle`.
    """

    def __init__(self, config: CustomConfig) -> None:
        if config.builder not in _BUILDERS:
            raise unknown_name(
                "registered model",
                config.builder,
                _BUILDERS,
                advice="Call register_model(name, builder) before the network is made or read.",
            )
        parts, report = convert(
            _BUILDERS[config.builder](**config.arguments),
            config.input_shape,
            components=config.components,
            divisor=config.divisor,
            keep_dense=config.keep_dense,
        )
        super().__init__(parts, config=config, gating=config.gating)
        self.report = report
        self.train()


def _described(builder: Callable[..., nn.Module]) -> str:
    name = getattr(builder, "__qualname__", repr(builder))
    return f"{getattr(builder, '__module__', '?')}.{name}"
