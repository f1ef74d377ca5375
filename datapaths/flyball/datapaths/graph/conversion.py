"""What `throttle` did to a model: values for programs, sentences for people."""

from dataclasses import dataclass

from flyball.datapaths.graph.channels import Settled

__all__ = ["AsItIs", "Conversion", "DenseLayers", "GatedLayers", "report_of"]


@dataclass(frozen=True)
class GatedLayers:
    """Layers that one T-module gates together.

    Attributes:
        layers: names in the user's model, in order of execution.
        channels: of the first of them.
        components: n.
    """

    layers: tuple[str, ...]
    channels: int
    components: int


@dataclass(frozen=True)
class DenseLayers:
    """Layers whose outputs are never gated.

    Attributes:
        layers: names in the user's model, in order of execution.
        channels: of the first of them.
        why: the reason, a clause.
        is_expected: they give the network's output or were asked to stay dense.
    """

    layers: tuple[str, ...]
    channels: int
    why: str
    is_expected: bool


@dataclass(frozen=True)
class AsItIs:
    """A layer or operation that no rule knows: it runs unchanged among dense channels.

    Attributes:
        layer: its name and kind.
        why: the reason, a clause.
    """

    layer: str
    why: str


@dataclass(frozen=True)
class Conversion:
    """What became of every layer.

    Attributes:
        modules: by position of the T-module.
        dense: what stays dense.
        as_they_are: what runs unchanged.
    """

    modules: tuple[GatedLayers, ...]
    dense: tuple[DenseLayers, ...]
    as_they_are: tuple[AsItIs, ...]

    @property
    def dense_layers(self) -> dict[str, str]:
        """From the name of every layer with dense outputs to the reason."""
        return {name: group.why for group in self.dense for name in group.layers}

    @property
    def unexpected(self) -> tuple[DenseLayers, ...]:
        """What stays dense though it is no output of the network and nobody asked for it."""
        return tuple(group for group in self.dense if not group.is_expected)

    def __str__(self) -> str:
        gated = sum(len(module.layers) for module in self.modules)
        lines = [f"{gated} layers are gated, by {len(self.modules)} T-modules."]
        lines += [f"Dense: {_listed(group.layers)}: {group.why}." for group in self.dense]
        lines += [f"As it is: {item.layer}: {item.why}." for item in self.as_they_are]
        return "\n".join(lines)


def report_of(settled: Settled, as_they_are: tuple[AsItIs, ...]) -> Conversion:
    """The report of settled channel groups."""
    modules, dense = [], []
    for group in settled.groups:
        if group.components is not None:
            modules.append(GatedLayers(group.layers, group.channels, group.components))
        elif group.layers and group.reason is not None:
            reason = group.reason
            dense.append(DenseLayers(group.layers, group.channels, reason.text, reason.is_expected))
    return Conversion(tuple(modules), tuple(dense), as_they_are)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"... ({len(names)} in all)"])
