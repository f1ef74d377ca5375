"""Which channels of a traced model belong together, and how every operation treats them.

What no rule knows is left as it is: everything that reaches it stays dense. Dimension 1 of a
tensor holds its channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from flyball.datapaths.graph.channels import Channels, Couplings, Piece, Reason
from flyball.datapaths.graph.rules import CALLS, MODULES
from flyball.datapaths.graph.tracing import Traced, describe_node

__all__ = ["BATCH_NORMS", "Analysis", "analyse", "name_of"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, FrozenBatchNorm2d)
INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
Value = Any  # Channels of a tensor, SizeOf of a shape, or None


@dataclass(frozen=True)
class SizeOf:
    """The shape of a tensor, as a model reads it."""

    channels: Channels
    dims: int


@dataclass
class Analysis:
    """What `analyse` found.

    Attributes:
        couplings: the channel groups.
        values: the channels of every node that gives a tensor of two or more dimensions.
        layers: nodes that become T-layers.
        resets: nodes after which masked execution sets switched-off channels to zero again.
        flattens: nodes that are written as a flatten of everything after the batch.
        as_they_are: nodes that no rule knows, and why; of those behind another one, which read
            only what is dense anyway, the layers of weights alone.
        unknown: every node that no rule knows, in order of execution; each may multiply.
    """

    couplings: Couplings = field(default_factory=Couplings)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    layers: set[fx.Node] = field(default_factory=set)
    resets: set[fx.Node] = field(default_factory=set)
    flattens: set[fx.Node] = field(default_factory=set)
    as_they_are: dict[fx.Node, str] = field(default_factory=dict)
    unknown: list[fx.Node] = field(default_factory=list)


def analyse(
    traced: Traced, *, keep_dense: tuple[str, ...] = (), gate_maps: bool = False
) -> Analysis:
    """Goes through the graph once.

    Args:
        traced: the model.
        keep_dense: layers, or what they lie in, whose outputs are never gated.
        gate_maps: feature maps among the network's outputs may be gated.
    """
    return _Analyst(traced, keep_dense, gate_maps).run()


class _Analyst:
    def __init__(self, traced: Traced, keep_dense: tuple[str, ...], gate_maps: bool) -> None:
        self.traced, self.keep_dense, self.gate_maps = traced, keep_dense, gate_maps
        self.found = Analysis()
        self.couplings = self.found.couplings
        # Layers that run more than once: their channels are the same at every call.
        self._calls: dict[str, tuple[Channels, Channels]] = {}
        self._rules: dict[str, Callable[[fx.Node, list[fx.Node]], Value]] = {
            "keep": self._keep,
            "reset": self._reset,
            "add": self._add,
            "multiply": self._multiply,
            "divide": self._divide,
            "cat": self._cat,
            "reduce": self._reduce,
            "flatten": self._flatten,
            "view": self._flatten,
            "read": self._read,
            "item": self._item,
        }

    def run(self) -> Analysis:
        for node in self.traced.module.graph.nodes:
            self.found.values[node] = self._value(node)
        return self.found

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return self._fresh(node, Reason("it is the network's input", is_expected=True))
        if node.op == "get_attr":
            return self._fresh(node, Reason(f"it is combined with the parameter {node.target}"))
        operands = [n for n in _nodes_in((node.args, node.kwargs)) if self._channels(n)]
        if node.op == "output":
            reason = Reason("it is an output of the network", is_expected=True)
            for operand in operands:
                shape = self.traced.shape(operand)
                if not (self.gate_maps and shape is not None and len(shape) > 2):
                    self.couplings.keep_dense(self._channels(operand), reason)
            return None
        if node.op == "call_module":
            layer = self.traced.module.get_submodule(str(node.target))
            rule = self._rule_of_layer(layer)
        else:
            rule = self._rules.get(CALLS.get(name_of(node), ""))
        if rule is None or not operands:
            return self._unknown(node)
        return rule(node, operands)

    def _rule_of_layer(self, layer: nn.Module) -> Callable[[fx.Node, list[fx.Node]], Value] | None:
        if type(layer) in (nn.Conv2d, nn.Conv3d):
            return self._conv
        if type(layer) is nn.Linear:
            return self._linear
        if isinstance(layer, (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm)):
            return self._norm
        return self._rules.get(MODULES.get(type(layer), ""))

    def _conv(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        layer: Any = self.traced.module.get_submodule(str(node.target))
        channels, name = self._channels(operands[0]), str(node.target)
        why = _unfit_conv(layer)
        if why is not None:
            return self._unknown(node, why)
        if (known := self._known(node, channels)) is not None:
            return known
        if layer.groups == 1:
            return self._made(node, channels, self.couplings.made_by(name, layer.out_channels))
        width_in = layer.in_channels // layer.groups
        width_out = layer.out_channels // layer.groups
        if self.couplings.share(channels, width_in, name):
            made = tuple(Piece(p.group, p.channels // width_in * width_out) for p in channels)
            self.couplings.note(name, made)
        else:
            made = self.couplings.made_by(name, layer.out_channels)
            reason = Reason(f"a group of {name} spans concatenated channels")
            self.couplings.keep_dense(made, reason)
        return self._made(node, channels, made)

    def _linear(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        layer: Any = self.traced.module.get_submodule(str(node.target))
        channels, shape = self._channels(operands[0]), self.traced.shape(node)
        if shape is None or len(shape) != 2:
            return self._unknown(node, "it multiplies the last of several dimensions")
        if (known := self._known(node, channels)) is not None:
            return known
        made = self.couplings.made_by(str(node.target), layer.out_features)
        return self._made(node, channels, made)

    def _norm(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        layer: Any = self.traced.module.get_submodule(str(node.target))
        channels, shape = self._channels(operands[0]), self.traced.shape(node)
        has_statistics = getattr(layer, "running_mean", None) is not None
        if isinstance(layer, BATCH_NORMS) and not has_statistics:
            return self._unknown(node, "it keeps no running statistics")
        if isinstance(layer, INSTANCE_NORMS) and has_statistics:
            return self._unknown(node, "it keeps running statistics of single samples")
        if shape is None or shape[1] != sum(piece.channels for piece in channels):
            return self._unknown(node)
        if (known := self._known(node, channels)) is not None:
            return known
        if isinstance(layer, nn.GroupNorm):
            width = layer.num_channels // layer.num_groups
            self.couplings.share(channels, width, str(node.target))
        return self._made(node, channels, channels)

    def _known(self, node: fx.Node, channels: Channels) -> Channels | None:
        """The output of a layer that ran before; its inputs are tied to those of that time."""
        before = self._calls.get(str(node.target))
        if before is None:
            return None
        self.couplings.tie(before[0], channels, f"{node.target}, which runs more than once,")
        self.found.layers.add(node)
        return before[1]

    def _made(self, node: fx.Node, channels: Channels, made: Channels) -> Channels:
        name = str(node.target)
        self._calls[name] = (channels, made)
        self.found.layers.add(node)
        if any(name == kept or name.startswith(f"{kept}.") for kept in self.keep_dense):
            self.couplings.keep_dense(made, Reason("it was asked to stay dense", is_expected=True))
        return made

    def _keep(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        before, shape = self.traced.shape(operands[0]), self.traced.shape(node)
        if before is None or shape is None or len(operands) > 1 or before[:2] != shape[:2]:
            return self._unknown(node)
        return self._channels(operands[0])

    def _reset(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        self.found.resets.add(node)
        return self._keep(node, operands)

    def _add(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        return self._combine(node, operands, needs_both=True)

    def _multiply(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        return self._combine(node, operands, needs_both=False)

    def _divide(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        is_by_number = len(operands) == 1 and node.args[0] is operands[0]
        return self._multiply(node, operands) if is_by_number else self._unknown(node)

    def _combine(self, node: fx.Node, operands: list[fx.Node], *, needs_both: bool) -> Value:
        """Two tensors of the same channels, or one and a number.

        Args:
            node: the operation.
            operands: its tensors.
            needs_both: the result is zero only where both are zero.
        """
        shapes = [self.traced.shape(n) for n in _nodes_in((node.args, node.kwargs))]
        sizes = [shape for shape in shapes if shape is not None and shape.numel() > 1]
        if len(operands) > 2 or len({len(shape) for shape in sizes}) > 1:
            return self._unknown(node)
        if len(operands) == 1:
            if needs_both:
                self.found.resets.add(node)
            return self._channels(operands[0])
        one, other = (self.traced.values[operand].shape[1] for operand in operands)
        first, second = (self._channels(operand) for operand in operands)
        where = describe_node(self.traced.module, node)
        if one == other:
            self.couplings.tie(first, second, where)
            return first
        # One map for all channels: (B, 1, H, W) with (B, C, H, W).
        wide, narrow = (first, second) if one > other else (second, first)
        self.couplings.keep_dense(narrow, Reason(f"{where} spreads it over other channels"))
        if needs_both:
            self.found.resets.add(node)
        return wide

    def _cat(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        listed, shape = len(_nodes_in((node.args, node.kwargs))), self.traced.shape(node)
        if shape is None or not isinstance(dim, int) or listed != len(operands):
            return self._unknown(node)
        parts = [self._channels(operand) for operand in operands]
        if dim % len(shape) == 1:
            return tuple(piece for part in parts for piece in part)
        for part in parts[1:]:
            self.couplings.tie(parts[0], part, describe_node(self.traced.module, node))
        return parts[0]

    def _reduce(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        """Over pixels: the channels stay."""
        before = self.traced.shape(operands[0])
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        each = [dims] if isinstance(dims, int) else dims
        if before is None or not isinstance(each, (list, tuple)) or len(operands) > 1:
            return self._unknown(node)
        places = [d % len(before) for d in each if isinstance(d, int)]
        is_spatial = len(places) == len(each) and min(places, default=0) >= 2
        return self._channels(operands[0]) if is_spatial else self._unknown(node)

    def _flatten(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        """(B, C, ...) to (B, C x pixels), written as a flatten or as a view."""
        before, shape = self.traced.shape(operands[0]), self.traced.shape(node)
        if before is None or shape is None or len(shape) != 2 or shape[0] != before[0]:
            return self._unknown(node)
        self.found.flattens.add(node)
        pixels = before[2:].numel()
        channels = self._channels(operands[0])
        return tuple(Piece(piece.group, piece.channels * pixels) for piece in channels)

    def _read(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        """Of its shape: harmless unless the number of channels is read."""
        before = self.traced.shape(operands[0])
        which = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if before is None:
            return self._unknown(node)
        if name_of(node) == "dim" or which in _HARMLESS:
            return None
        if isinstance(which, int) and which % len(before) != 1:
            return None
        if which in (None, "shape"):
            return SizeOf(self._channels(operands[0]), len(before))
        return self._unknown(node, "it reads the number of channels")

    def _item(self, node: fx.Node, operands: list[fx.Node]) -> Value:
        value, place = self.found.values[operands[0]], node.args[1]
        if isinstance(value, SizeOf) and isinstance(place, (int, slice)):
            taken = range(value.dims)[place]
            if 1 not in ([taken] if isinstance(taken, int) else taken) or not node.users:
                return None
            return self._unknown(node, "it reads the number of channels")
        if isinstance(place, tuple) and len(place) >= 2 and place[1] == slice(None):
            is_cut = all(isinstance(part, slice) for part in place)
            return self._channels(operands[0]) if is_cut else self._unknown(node)
        return self._unknown(node)

    def _unknown(self, node: fx.Node, why: str = "no rule for it") -> Value:
        """Runs as it is: everything it reads and gives stays dense."""
        self.found.unknown.append(node)
        where = describe_node(self.traced.module, node)
        why = self.traced.untraced.get(str(node.target), why)
        reads = [self._channels(n) for n in _nodes_in((node.args, node.kwargs))]
        touches = any(not self.couplings.is_dense(channels) for channels in reads)
        has_weights = node.op == "call_module" and any(
            True for _ in self.traced.module.get_submodule(str(node.target)).parameters()
        )
        if touches or has_weights:
            self.found.as_they_are[node] = why
        for channels in reads:
            self.couplings.keep_dense(channels, Reason(f"it enters {where}: {why}"))
        self.found.resets.discard(node)
        return self._fresh(node, Reason(f"it leaves {where}: {why}"))

    def _fresh(self, node: fx.Node, reason: Reason) -> Value:
        shape = self.traced.shape(node)
        return None if shape is None or len(shape) < 2 else self.couplings.dense(shape[1], reason)

    def _channels(self, node: fx.Node) -> Channels:
        """Of a tensor or of its shape; () for anything else."""
        value = self.found.values[node]
        if isinstance(value, SizeOf):
            return value.channels
        return value or ()


_HARMLESS = ("ndim", "dtype", "device", "is_cuda", "requires_grad")


def name_of(node: fx.Node) -> str:
    """Of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def _nodes_in(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def _unfit_conv(layer: Any) -> str | None:
    """Why a convolution cannot be sliced."""
    if any(step != 1 for step in layer.dilation):
        return "a dilated convolution"
    if layer.padding_mode != "zeros":
        return f"its padding mode is {layer.padding_mode!r}"
    if layer.padding == "same" and any(side % 2 == 0 for side in layer.kernel_size):
        return "padding 'same' around an even kernel"
    return None
