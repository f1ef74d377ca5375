"""Channel groups: which channels of a network are switched together, and into how many components.

A layer makes a new group of channels; an addition ties the groups of its operands into one; a
concatenation keeps them apart. At the end every group becomes a T-module or stays dense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flyball.datapaths.axes import Axis, Segment

__all__ = ["Channels", "Couplings", "Divisor", "Group", "Piece", "Reason"]

Divisor = Literal["exact", "largest"]


@dataclass(frozen=True)
class Piece:
    """Neighbouring channels of a tensor that belong to one group.

    Attributes:
        group: number of the group.
        channels: how many.
    """

    group: int
    channels: int


Channels = tuple[Piece, ...]


@dataclass(frozen=True)
class Reason:
    """Why a group stays dense.

    Attributes:
        text: for people.
        is_expected: it belongs to the network's input or output, or it was asked for.
    """

    text: str
    is_expected: bool = False


@dataclass(frozen=True)
class Group:
    """A settled channel group.

    Attributes:
        layers: whose outputs belong to it, in order of execution.
        channels: of its first layer.
        components: n; None: it stays dense.
        reason: why it stays dense.
    """

    layers: tuple[str, ...]
    channels: int
    components: int | None
    reason: Reason | None


class Couplings:
    """Union-find over channel groups."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        # Into how many equal parts the channels of a group may be cut at most.
        self._parts: list[int] = []
        self._layers: list[list[str]] = []
        self._widths: list[int] = []
        self._reasons: list[Reason | None] = []

    def made_by(self, layer: str, channels: int) -> Channels:
        """A new group, made by a layer."""
        self._parent.append(len(self._parent))
        self._parts.append(channels)
        self._layers.append([layer])
        self._widths.append(channels)
        self._reasons.append(None)
        return (Piece(len(self._parent) - 1, channels),)

    def dense(self, channels: int, reason: Reason) -> Channels:
        """Channels that are never gated and that no layer of weights made."""
        made = self.made_by("", channels)
        self.keep_dense(made, reason)
        return made

    def note(self, layer: str, channels: Channels) -> None:
        """A layer whose outputs belong to groups that exist already."""
        for piece in channels:
            layers = self._layers[self._root(piece.group)]
            if layer not in layers:
                layers.append(layer)

    def keep_dense(self, channels: Channels, reason: Reason) -> None:
        """These channels are never gated."""
        for piece in channels:
            root = self._root(piece.group)
            self._reasons[root] = _first(self._reasons[root], reason)

    def is_dense(self, channels: Channels) -> bool:
        """Whether it is settled already that all of them stay dense."""
        return all(self._reasons[self._root(piece.group)] is not None for piece in channels)

    def tie(self, one: Channels, other: Channels, where: str) -> None:
        """Channels at equal positions are switched together; dense where they do not line up."""
        if [piece.channels for piece in one] != [piece.channels for piece in other]:
            reason = Reason(f"{where} combines channels that are concatenated differently")
            self.keep_dense(one, reason)
            self.keep_dense(other, reason)
            return
        for mine, yours in zip(one, other, strict=True):
            self._unite(mine.group, yours.group)

    def share(self, channels: Channels, width: int, where: str) -> bool:
        """Every component holds a whole number of blocks of `width` neighbouring channels.

        Returns:
            Whether the blocks fit; where one would span two groups, all stay dense.
        """
        if any(piece.channels % width for piece in channels):
            self.keep_dense(channels, Reason(f"a group of {where} spans concatenated channels"))
            return False
        for piece in channels:
            root = self._root(piece.group)
            self._parts[root] = math.gcd(self._parts[root], piece.channels // width)
        return True

    def settle(self, components: int, divisor: Divisor) -> "Settled":
        """Decides for every group.

        Args:
            components: how many every T-module should have.
            divisor: "exact": a group that cannot have so many stays dense; "largest": it gets
                the largest number up to `components` that it can have, if that is above 1.
        """
        groups: list[Group] = []
        positions: dict[int, int] = {}
        position: dict[int, int] = {}
        for index in range(len(self._parent)):
            root = self._root(index)
            if root not in position:
                group = self._settled(root, components, divisor)
                position[root] = len(groups)
                groups.append(group)
            positions[index] = position[root]
        return Settled(tuple(groups), positions)

    def _settled(self, root: int, components: int, divisor: Divisor) -> Group:
        layers = tuple(name for name in self._layers[root] if name)
        parts, reason = self._parts[root], self._reasons[root]
        channels, found = self._widths[root], None
        if reason is None:
            candidates = range(components, 1, -1) if divisor == "largest" else (components,)
            found = next((n for n in candidates if parts % n == 0), None)
            if found is None:
                unit = "channels" if parts == channels else "inseparable groups of channels"
                reason = Reason(f"{components} components do not divide its {parts} {unit}")
        return Group(layers, channels, found, reason)

    def _root(self, group: int) -> int:
        while self._parent[group] != group:
            self._parent[group] = self._parent[self._parent[group]]
            group = self._parent[group]
        return group

    def _unite(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        if low == high:
            return
        self._parent[high] = low
        self._parts[low] = math.gcd(self._parts[low], self._parts[high])
        self._layers[low] += [name for name in self._layers[high] if name not in self._layers[low]]
        self._reasons[low] = _first(self._reasons[low], self._reasons[high])


@dataclass(frozen=True)
class Settled:
    """Every group with its components; gives the axis of any tensor.

    Attributes:
        groups: in the order in which their first layers run.
        positions: from the number in a `Piece` to the position in `groups`.
    """

    groups: tuple[Group, ...]
    positions: dict[int, int]

    @property
    def gated(self) -> tuple[Group, ...]:
        """The groups that became T-modules, in order."""
        return tuple(group for group in self.groups if group.components is not None)

    def axis(self, channels: Sequence[Piece]) -> Axis:
        """What gates these channels."""
        modules: dict[int, int] = {}
        for position, group in enumerate(self.groups):
            if group.components is not None:
                modules[position] = len(modules)
        segments: list[Segment] = []
        for piece in channels:
            position = self.positions[piece.group]
            components = self.groups[position].components
            if components is not None:
                segments.append(Segment(piece.channels, modules[position], 0, components))
            elif segments and segments[-1].module is None:
                segments[-1] = Segment(segments[-1].channels + piece.channels)
            else:
                segments.append(Segment(piece.channels))
        return tuple(segments)


def _first(one: Reason | None, other: Reason | None) -> Reason | None:
    """The reason that counts: an expected one, else the one that came first."""
    if one is None or (other is not None and other.is_expected and not one.is_expected):
        return other
    return one
