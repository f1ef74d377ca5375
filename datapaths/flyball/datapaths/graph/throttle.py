"""`throttle`: from a user's plain network to a throttleable one, and what could not be converted.

The model is traced, its channels are grouped by what must be switched together, and its
convolutions, norms and linear layers are replaced by T-layers with the same weights. Everything
else runs as it is. At full utilization the result equals the model in evaluation mode.
"""

import copy
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

from flyball.datapaths.axes import is_gated
from flyball.datapaths.checks import check_choice
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.graph.channels import Divisor, Settled
from flyball.datapaths.graph.conversion import AsItIs, Conversion, report_of
from flyball.datapaths.graph.coupling import BATCH_NORMS, Analysis, analyse, name_of
from flyball.datapaths.graph.layers import throttled_conv, throttled_linear, throttled_norm
from flyball.datapaths.graph.throttled import Fill, Parts, Silence, ThrottledNetwork
from flyball.datapaths.graph.tracing import Traced, describe_node, trace
from flyball.datapaths.network import Gating

__all__ = ["convert", "throttle"]


def throttle(
    model: nn.Module,
    example: Tensor | Sequence[int],
    *,
    components: int = 16,
    divisor: Divisor = "exact",
    keep_dense: Sequence[str] = (),
    gate_maps: bool = False,
    gating: Gating = "nested",
    strict: bool = False,
) -> tuple[ThrottledNetwork, Conversion]:
    """Converts a network; the model itself stays as it was.

    A layer makes a group of channels that its T-module gates. Additions and products tie groups
    together (a residual stream is one group), concatenations keep them apart, a grouped
    convolution is cut between its groups. The network's input and outputs are never gated.

    Args:
        model: takes one tensor; gives logits, or feature maps in any structure.
        example: an input (B, C, H, W) or (B, C, T, H, W), or the shape of one sample.
        components: n of every T-module.
        divisor: for channels that n does not divide: "exact" leaves them dense, "largest" takes
            the largest number below that does.
        keep_dense: layers, or what they lie in, whose outputs are never gated.
        gate_maps: gate feature maps among the outputs too; they come with all their channels,
            zeros where they are off.
        gating: "nested" or "independent" (TNN Fig. 2).
        strict: refuse a model of which any inner layer would stay dense.

    Returns:
        The network, and what was gated, what stays dense and why.

    Raises:
        InvalidSetting: the model cannot be followed, a name or number is wrong, nothing could be
            gated, or `strict` and something stays dense; names the layer.
        UnknownName: there is no such gating.
    """
    check_choice("gating", gating, get_args(Gating))
    shape = tuple(example.shape[1:]) if isinstance(example, Tensor) else tuple(example)
    copied = copy.deepcopy(model)
    parts, report = convert(
        copied,
        shape,
        components=components,
        divisor=divisor,
        keep_dense=tuple(keep_dense),
        gate_maps=gate_maps,
        strict=strict,
    )
    return ThrottledNetwork(parts, gating=gating).train(model.training), report


def convert(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    components: int,
    divisor: Divisor = "exact",
    keep_dense: tuple[str, ...] = (),
    gate_maps: bool = False,
    strict: bool = False,
) -> tuple[Parts, Conversion]:
    """As `throttle`, but takes the model's layers and weights over.

    Raises:
        InvalidSetting: as `throttle`.
    """
    _check(model, input_shape, components, divisor, keep_dense)
    traced = trace(model.eval(), input_shape)
    found = analyse(traced, keep_dense=keep_dense, gate_maps=gate_maps)
    settled = found.couplings.settle(components, divisor)
    left = {describe_node(traced.module, node): why for node, why in found.as_they_are.items()}
    report = report_of(settled, tuple(AsItIs(layer, why) for layer, why in left.items()))
    if not report.modules or (strict and report.unexpected):
        raise InvalidSetting(_refusal(report, components))
    body, frozen = _Rewriter(traced, found, settled).rewritten()
    output = next(iter(reversed(traced.module.graph.nodes))).args[0]
    logits = traced.shape(output) if isinstance(output, fx.Node) else None
    macs: dict[str, int] = {}
    for node in found.unknown:
        name = describe_node(traced.module, node)
        macs[name] = macs.get(name, 0) + traced.macs(node)
    parts = Parts(
        body=body,
        components=tuple(module.components for module in report.modules),
        input_shape=input_shape,
        classes=logits[1] if logits is not None and len(logits) == 2 else 0,
        macs=macs,
        frozen=frozen,
    )
    return parts, report


class _Rewriter:
    """Writes the graph again, with T-layers that take the gates."""

    def __init__(self, traced: Traced, found: Analysis, settled: Settled) -> None:
        self.traced, self.found, self.settled = traced, found, settled
        self.graph, self.layers = fx.Graph(), dict[str, nn.Module]()
        self.new: dict[fx.Node, fx.Node] = {}
        self.frozen: list[nn.Module] = []
        self._calls: dict[str, int] = {}
        for node in found.layers:
            self._calls[str(node.target)] = self._calls.get(str(node.target), 0) + 1

    def rewritten(self) -> tuple[fx.GraphModule, tuple[nn.Module, ...]]:
        """The graph and the norms that were frozen."""
        nodes = list(self.traced.module.graph.nodes)
        last = [node for node in nodes if node in self.found.layers and not self._is_norm(node)]
        linears = [node for node in last if isinstance(self._layer(node), nn.Linear)]
        for node in nodes:
            if node.op == "output":
                output = fx.node.map_arg(node.args[0], self._given_out)
                self.graph.output((output, self.new[self._entering((linears or last)[-1])]))
            elif node not in self.new:
                self._copy(node)
                if node.op == "placeholder" and not node.args:
                    self.gates = self.graph.placeholder("gates")
        with_parameters = {
            str(n.target): _attribute(self.traced.module, str(n.target))
            for n in self.graph.nodes
            if n.op == "get_attr"
        }
        body = fx.GraphModule({**self.layers, **with_parameters}, self.graph)
        return body, tuple(self.frozen)

    def _copy(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            # Further arguments have defaults, which are written where they are used.
            if not node.args:
                self.new[node] = self.graph.node_copy(node)
            return
        if node in self.found.layers:
            self._throttle(node)
        elif node in self.found.flattens:
            read = self.new[node.all_input_nodes[0]]
            self.new[node] = self.graph.call_function(torch.flatten, (read, 1))
        else:
            self.new[node] = self.graph.node_copy(node, self.new.__getitem__)
            if node.op == "call_module":
                self.layers[str(node.target)] = self._layer(node)
        if node in self.found.resets:
            self.new[node] = self._gated(node, Silence)

    def _given_out(self, node: fx.Node) -> fx.Node:
        shape = self.traced.shape(node)
        return self._gated(node, Fill) if shape is not None and len(shape) > 2 else self.new[node]

    def _gated(self, node: fx.Node, kind: type[Silence] | type[Fill]) -> fx.Node:
        """What a node gives, after a layer that takes the gates; as it is where none are."""
        axis = self.settled.axis(self.found.values[node])
        if not is_gated(axis):
            return self.new[node]
        name = f"{kind.__name__.lower()}.{node.name}"
        self.layers[name] = kind(axis)
        return self.graph.call_module(name, (self.new[node], self.gates))

    def _throttle(self, node: fx.Node) -> None:
        """A T-layer for a layer, the norm right behind it and the ReLU behind that."""
        name, layer = str(node.target), self._layer(node)
        read = node.all_input_nodes[0]
        tail = [node]
        if self._calls[name] == 1:
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                self._extend(tail, self._is_batch_norm)
            self._extend(tail, self._is_relu)
        relu = self._is_relu(tail[-1])
        if name not in self.layers:
            axis_in = self.settled.axis(self.found.values[read])
            axis_out = self.settled.axis(self.found.values[node])
            self.layers[name] = self._made(layer, axis_in, axis_out, tail, relu)
        made = self.graph.call_module(name, (self.new[read], self.gates))
        self.new.update(dict.fromkeys(tail, made))

    def _made(
        self, layer: Any, axis_in: Any, axis_out: Any, tail: list[fx.Node], relu: bool
    ) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return throttled_linear(layer, axis_in, axis_out, relu=relu)
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            follows = [node for node in tail[1:] if self._is_batch_norm(node)]
            norm = self._layer(follows[0]) if follows else None
            conv = throttled_conv(layer, axis_in, axis_out, norm=norm, relu=relu)
            if isinstance(norm, FrozenBatchNorm2d) and conv.norm is not None:
                self.frozen.append(conv.norm)
            return conv
        like = next(self.traced.module.parameters())
        made = throttled_norm(layer, axis_in, relu=relu, like=like)
        if isinstance(layer, FrozenBatchNorm2d):
            self.frozen.append(made)
        return made

    def _extend(self, tail: list[fx.Node], fits: Any) -> None:
        """Adds the only reader of the last node where it fits."""
        readers = list(tail[-1].users)
        if len(readers) == 1 and fits(readers[0]) and readers[0].all_input_nodes == [tail[-1]]:
            tail.append(readers[0])

    def _entering(self, node: fx.Node) -> fx.Node:
        """What enters a layer, before it was flattened."""
        read = node.all_input_nodes[0]
        return read.all_input_nodes[0] if read in self.found.flattens else read

    def _is_norm(self, node: fx.Node) -> bool:
        return not isinstance(self._layer(node), (nn.Linear, nn.Conv2d, nn.Conv3d))

    def _is_batch_norm(self, node: fx.Node) -> bool:
        if node not in self.found.layers or self._calls[str(node.target)] > 1:
            return False
        return isinstance(self._layer(node), BATCH_NORMS)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._layer(node)) is nn.ReLU
        return node.target in (F.relu, torch.relu, torch.relu_) or name_of(node) in (
            "relu",
            "relu_",
        )

    def _layer(self, node: fx.Node) -> nn.Module:
        return self.traced.module.get_submodule(str(node.target))


def _attribute(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def _check(
    model: nn.Module,
    input_shape: tuple[int, ...],
    components: int,
    divisor: str,
    keep_dense: tuple[str, ...],
) -> None:
    if components < 2:
        raise InvalidSetting(
            f"A T-module has two or more components to switch; got {components}. "
            "Set components to 2 or more, for example 16."
        )
    if divisor not in ("exact", "largest"):
        raise InvalidSetting(f"divisor is 'exact' or 'largest'; got {divisor!r}.")
    if len(input_shape) not in (3, 4) or min(input_shape) < 1:
        raise InvalidSetting(
            f"One sample has the shape (C, H, W) or (C, T, H, W); got {input_shape}. "
            "Give an example batch or such a shape."
        )
    names = {name for name, _ in model.named_modules()}
    for kept in keep_dense:
        if kept not in names:
            raise InvalidSetting(
                f"keep_dense names layers of the model; it has no {kept!r}. "
                f"Its parts are {[name for name, _ in model.named_children()]}."
            )


def _refusal(report: Conversion, components: int) -> str:
    first = (report.unexpected or report.dense)[:1]
    if not first:
        return "throttle() gates convolutions and linear layers; this model has none that it knows."
    layers, why = first[0].layers, first[0].why
    if report.modules:
        return (
            f"{layers[0]} would stay dense: {why} ({len(report.unexpected)} such groups in all). "
            "Choose other components, set divisor='largest', name it in keep_dense, or leave "
            "strict off."
        )
    return (
        f"Nothing in this model could be gated with {components} components. "
        f"{layers[0]} stays dense: {why}. Choose fewer components or divisor='largest', or give "
        "throttle() a part of the model."
    )
