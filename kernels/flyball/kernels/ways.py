"""The ways to run a residual block: dense and masked, sparse with torch, C++ or Triton.

B batch, C channels, O outputs, H, W input pixels, Ho, Wo output pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flyball.kernels.dispatch import Name
from flyball.kernels.layers import Layer
from flyball.kernels.layout import rows_of
from flyball.kernels.operators import DenseLayer, TorchOperators
from flyball.kernels.sparse_index import (
    Executed,
    SparseIndex,
    build_index,
    executed_rows,
    neighbours,
    taps,
)

__all__ = ["Again", "Counts", "Cpp", "Kind", "Plan", "Way", "way_for"]

Kind = Literal["inverted_residual", "basic_block", "bottleneck"]
Counts = Callable[[], dict[str, int]]
Again = Callable[[Tensor, Tensor | None, Tensor, Tensor], Counts]


@dataclass(frozen=True)
class Plan:
    """A block: its kind, its convolutions in order, and the stride of the first 3x3 one."""

    kind: Kind
    layers: tuple[Layer, ...]
    stride: int

    @property
    def is_narrow(self) -> bool:
        """Whether a pointwise convolution comes first, so that its input grid is dilated."""
        return self.layers[0].taps == 1

    def executed(self, mask: Tensor, height: int, width: int) -> Executed:
        """Pixels of each image that the later and the first convolutions compute."""
        if self.is_narrow:
            return executed_rows(mask, stride=self.stride, size=(height, width))
        return executed_rows(mask)

    def index(self, mask: Tensor, height: int, width: int) -> SparseIndex:
        """Lists of a mask, on the grid that the first convolution writes."""
        if self.is_narrow:
            return build_index(mask, stride=self.stride, size=(height, width))
        return build_index(mask)

    def shares(self, mask: Tensor, height: int, width: int) -> list[float]:
        """Multiply-accumulates of each image over dense ones; DynConv Eqs. (11) and (10)."""
        active, dilated = self.executed(mask, height, width)
        first, *rest = (layer.macs for layer in self.layers)
        out_pixels = mask.shape[-2] * mask.shape[-1]
        pixels = height * width if self.is_narrow else out_pixels
        shares = (dilated * first + active * sum(rest)) / (pixels * first + out_pixels * sum(rest))
        return [float(share) for share in shares]

    def by_name(self, counts: list[int]) -> dict[str, int]:
        """Row counts by the convolutions' names."""
        return {layer.name: count for layer, count in zip(self.layers, counts, strict=True)}

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        """Weights and biases in turn, as the `pack_` functions take them."""
        found = []
        for layer in self.layers:
            weight = layer.weight
            if self.kind == "inverted_residual":
                weight = weight[:, 0] if layer.is_depthwise else weight[:, :, 0, 0]
            found += [weight.to(dtype), layer.bias.to(dtype)]
        return found

    def finish(self, out: Tensor) -> None:
        """What follows the sum: ReLU in ResNets, nothing in MobileNetV2."""
        if self.kind != "inverted_residual":
            out.relu_()


class Way(Protocol):
    """One way to run a block, its weights in the form that it needs."""

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
        """Writes the block's result to `out`.

        Args:
            x: (B, C, H, W), channels_last like the others.
            mask: (B, Ho, Wo), bool; None for every pixel.
            identity: (B, O, Ho, Wo).
            out: (B, O, Ho, Wo), memory of its own or the identity's; x's if that is the identity.

        Returns:
            A function that gives the rows that each convolution processed.
        """
        ...


def way_for(name: Name, plan: Plan) -> Way:
    """Packs a block for an implementation that can run."""
    ways: dict[Name, Callable[[Plan], Way]] = {
        "cpu": Cpp,
        "triton": _Triton,
        "torch": _Torch,
        "dense": _Dense,
    }
    return ways[name](plan)


class _Dense:
    """Every pixel, then the mask; image by image on CPU, where libraries look at the batch."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layers = [DenseLayer(layer) for layer in plan.layers]

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
        counts = [0 for _ in self._layers]
        step = 1 if x.device.type == "cpu" else len(x)
        for first in range(0, len(x), step):
            images = slice(first, first + step)
            y = x[images]
            for place, layer in enumerate(self._layers):
                y = layer(y)
                counts[place] += y.shape[0] * y.shape[2] * y.shape[3]
            if mask is not None:
                y = torch.where(mask[images, None], y, y.new_zeros(()))
            torch.add(identity[images], y, out=out[images])
        self._plan.finish(out)
        return lambda: self._plan.by_name(counts)


class _Torch:
    """Lists of rows and plain operators, image by image."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._dense = _Dense(plan)
        self._layers = [TorchOperators(layer) for layer in plan.layers]

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
        if mask is None:
            return self._dense(x, mask, identity, out)
        counts = [0 for _ in self._layers]
        for place in range(len(x)):
            one = slice(place, place + 1)
            found = self._image(x[one], mask[one], identity[one], out[one])
            counts = [count + rows for count, rows in zip(counts, found, strict=True)]
        self._plan.finish(out)
        return lambda: self._plan.by_name(counts)

    def _image(self, x: Tensor, mask: Tensor, identity: Tensor, out: Tensor) -> list[int]:
        height, width = x.shape[2:]
        index = self._plan.index(mask, height, width)
        table = index.dilated[:, None]
        if not self._plan.is_narrow:
            grid = replace(index, height=height, width=width, stride=self._plan.stride)
            table = taps(grid, index.dilated)
        first, *middle, last = self._layers
        rows = first.rows(rows_of(x)[0], table)
        counts = [len(rows)]
        around: Tensor | None = neighbours(index)
        for layer in middle:
            rows, around = layer.rows(rows, around), None
            counts.append(len(rows))
        if out.data_ptr() != identity.data_ptr():
            out.copy_(identity)
        counts.append(last.add(rows, around, rows_of(out)[0], index.active))
        return counts


class Cpp:
    """The fused C++ block, the whole batch at once."""

    def __init__(self, plan: Plan) -> None:
        from flyball.kernels import cpu

        self._plan = plan
        parts = plan.parts(torch.float32)
        if plan.kind == "inverted_residual":
            activation = plan.layers[0].activation
            packed = cpu.pack_inverted_residual(*parts, stride=plan.stride, activation=activation)
        elif plan.kind == "basic_block":
            packed = cpu.pack_basic_block(*parts, stride=plan.stride)
        else:
            packed = cpu.pack_bottleneck(*parts, stride=plan.stride)
        self._packed = packed
        self._run = cpu.run_block

    def again(self, size: tuple[int, int, int]) -> Again:
        """The same on tensors of one size that were right before; not in place in ResNet blocks."""
        from flyball.kernels import cpu

        call, names = cpu.BlockCall(self._packed, size), [layer.name for layer in self._plan.layers]

        def run(x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
            dilated, active = call(x, mask, identity, out)
            return lambda: dict(zip(names, [dilated, *[active] * (len(names) - 1)], strict=True))

        return run

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
        is_in_place = out.data_ptr() == x.data_ptr()
        target = torch.empty_like(out) if is_in_place and not self._packed.may_be_in_place else out
        size = (len(x), x.shape[2], x.shape[3])
        rows = (rows_of(tensor)[0] for tensor in (x, identity, target))
        x_rows, identity_rows, target_rows = rows
        listed = self._run(self._packed, x_rows, mask, size, identity_rows, target_rows)
        if target is not out:
            out.copy_(target)
        later = [listed.active for _ in self._plan.layers[1:]]
        return lambda: self._plan.by_name([listed.dilated, *later])


class _Triton:
    """The Triton kernels, the whole batch at once; nothing waits for the device."""

    def __init__(self, plan: Plan) -> None:
        from flyball.kernels import gpu

        self._plan = plan
        weights = [gpu.pack_taps(layer.weight) for layer in plan.layers]
        biases = [layer.bias.float().contiguous() for layer in plan.layers]
        parts = [part for pair in zip(weights, biases, strict=True) for part in pair]
        options: dict[str, Any] = {"stride": plan.stride}
        if plan.kind == "inverted_residual":
            options["activation"] = plan.layers[0].activation
        forms: dict[Kind, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
            "inverted_residual": (gpu.TritonInvertedResidual, gpu.inverted_residual),
            "basic_block": (gpu.TritonBasicBlock, gpu.basic_block),
            "bottleneck": (gpu.TritonBottleneck, gpu.bottleneck),
        }
        pack, self._run = forms[plan.kind]
        self._packed = pack(*parts, **options)

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Counts:
        self._run(x, mask, self._packed, identity=identity, out=out)
        batch, _, out_height, out_width = out.shape
        height, width = x.shape[2:]

        def counts() -> dict[str, int]:
            run = mask
            if run is None:
                run = torch.ones((batch, out_height, out_width), dtype=torch.bool, device=x.device)
            active, dilated = self._plan.executed(run, height, width)
            later = [int(active.sum()) for _ in self._plan.layers[1:]]
            return self._plan.by_name([int(dilated.sum()), *later])

        return counts
