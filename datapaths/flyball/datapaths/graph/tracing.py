"""From a user's model to a graph of its operations with the shape of every tensor.

Nothing is computed: shapes are found on the meta device. What cannot be followed raises, and the
message names the layer. B batch, C channels, H, W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import FrozenBatchNorm2d

from flyball.datapaths.errors import InvalidSetting

__all__ = ["Traced", "describe_node", "on_meta", "place_of", "trace"]

# Two samples: a layer that mixes the batch up shows in the shapes.
_BATCH = 2


class Traced:
    """A model as a graph.

    Attributes:
        module: the graph with the model's own layers.
        values: what every node gives, tensors on the meta device.
        untraced: layers whose inside could not be followed, and why; they run as they are.
    """

    def __init__(
        self, module: fx.GraphModule, values: dict[fx.Node, Any], untraced: dict[str, str]
    ) -> None:
        self.module, self.values, self.untraced = module, values, untraced
        # Nodes that run on samples; the others run on weights alone, once a pass.
        self._on_samples: set[fx.Node] = set()
        for node in module.graph.nodes:
            is_input = node.op == "placeholder" and not node.args
            if is_input or any(read in self._on_samples for read in node.all_input_nodes):
                self._on_samples.add(node)

    def shape(self, node: fx.Node) -> torch.Size | None:
        """Shape of a node that gives a tensor."""
        value = self.values[node]
        return value.shape if isinstance(value, Tensor) else None

    def macs(self, node: fx.Node) -> int:
        """Multiply-accumulates of one node in a pass of one sample, as torch counts them."""
        counter = FlopCounterMode(display=False)
        with counter:
            _run_on_meta(self.module, [node], dict(self.values))
        samples = _BATCH if node in self._on_samples else 1
        return int(counter.get_total_flops()) // 2 // samples


def trace(model: nn.Module, input_shape: Sequence[int]) -> Traced:
    """Follows a model from its one input to its outputs.

    Args:
        model: in evaluation mode.
        input_shape: of one sample, (C, H, W) or (C, T, H, W).

    Raises:
        InvalidSetting: a layer's path depends on values, or it cannot take this shape; names it.
    """
    untraced: dict[str, str] = {}
    while True:
        tracer = _Tracer(untraced)
        try:
            graph = tracer.trace(model)
            break
        except Exception as error:
            # Whatever the model's own code raises when it meets a stand-in for a tensor.
            layer = tracer.path[-1] if tracer.path else ""
            if not layer or layer in untraced:
                raise InvalidSetting(
                    f"throttle() follows a model without values, and {_named(model, layer)} "
                    f"decides by them: {_one_line(error)}. Move the decision out of forward, or "
                    "give throttle() a part of the model that has none."
                ) from error
            untraced[layer] = _one_line(error)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        names = [node.target for node in inputs]
        raise InvalidSetting(
            f"throttle() takes models of one input tensor; this one has {names}. "
            "Wrap it in a module whose forward takes the image alone."
        )
    module = fx.GraphModule(model, graph)
    return Traced(module, _values(module, model, input_shape), untraced)


def on_meta(module: nn.Module) -> dict[str, Tensor]:
    """Every weight and buffer by name, float32 where it is a floating-point number, valueless."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {
        name: torch.empty_like(
            tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None
        )
        for name, tensor in tensors
    }


def place_of(node: fx.Node) -> str:
    """The layer that a node belongs to, as the user's model names it."""
    if node.op in {"call_module", "get_attr"}:
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path or "forward"


def describe_node(module: nn.Module, node: fx.Node) -> str:
    """A node for people: its layer and what it does."""
    if node.op == "call_module":
        return f"{node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"{name} in {place_of(node)}"


class _Tracer(fx.Tracer):
    """Knows where it is when tracing fails, and leaves given layers whole."""

    def __init__(self, whole: dict[str, str]) -> None:
        super().__init__()
        self._whole = whole
        self.path: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._whole or isinstance(
            m, (StochasticDepth, FrozenBatchNorm2d)
        ):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.path.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return result


def _values(
    module: fx.GraphModule, model: nn.Module, input_shape: Sequence[int]
) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node in inputs:
        values[node] = node.args[0] if node.args else None
    values[next(node for node in inputs if not node.args)] = torch.empty(
        _BATCH, *input_shape, device="meta"
    )
    rest = [node for node in module.graph.nodes if node.op not in {"placeholder", "output"}]
    try:
        _run_on_meta(module, rest, values)
    except Exception as error:
        # Whatever a layer raises on a shape it cannot take.
        failed = next((node for node in rest if node not in values), None)
        where = "The model" if failed is None else describe_node(module, failed)
        raise InvalidSetting(
            f"{where} cannot take an input of shape {tuple(input_shape)}, or needs values to "
            f"know its shape: {_one_line(error)}. Give throttle() the shape of one sample that "
            "the model takes."
        ) from error
    return values


def _run_on_meta(
    module: fx.GraphModule, nodes: Sequence[fx.Node], values: dict[fx.Node, Any]
) -> None:
    """Runs nodes on the meta device and keeps what they give; the weights stay where they are."""
    metas = {f"module.{name}": tensor for name, tensor in on_meta(module).items()}
    with torch.device("meta"), torch.no_grad():
        functional_call(_Runner(module), metas, (nodes, values))


class _Runner(nn.Module):
    """Runs nodes of a graph one by one."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any]) -> None:
        for node in nodes:
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            values[node] = _call(self.module, node, args, kwargs)


def _call(module: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), name)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def _named(model: nn.Module, layer: str) -> str:
    owner = model.get_submodule(layer) if layer else model
    return f"{layer} ({type(owner).__name__})" if layer else f"{type(owner).__name__}.forward"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
