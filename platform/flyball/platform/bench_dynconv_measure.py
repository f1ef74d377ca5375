"""The measuring half of `flyball bench dynconv`: one block, and where its time goes.

A process of its own, whose parent set its allocator (`bench_process`); whole networks are in
`bench_dynconv_networks`. B batch, C channels, E expanded channels, P active pixels.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball import kernels
from flyball.kernels import dispatch, sparse_ops
from flyball.kernels.layers import Layer
from flyball.kernels.operators import operators_for
from flyball.kernels.reference import masked_inverted_residual
from flyball.platform.bench_dynconv_masks import blob_mask
from flyball.platform.bench_dynconv_measurement import (
    STEPS,
    Call,
    Measurement,
    Note,
    Shares,
    Split,
    check_agreement,
    compiled,
    described,
    of_one,
)
from flyball.platform.bench_process import in_turn, say

__all__ = ["IMAGES", "BlockCase", "measure_block"]

IMAGES = 8
"""Each with its own figure for a mask: what one saves says little of another."""

SHORT_TURN = 0.02


@dataclass(frozen=True)
class BlockCase:
    """MobileNetV2's inverted residual block at one size, on `IMAGES` images.

    Attributes:
        side: height and width in pixels.
        batch: B, so many images at a time: with 1 they come one after the other.
        ratios: of active pixels, at which it is measured.
        channels, expanded: C, E.
        is_split: measure its steps too.
        inductor: also measure what torch.compile makes of the dense block.
        rounds: in which every competitor has a turn.
    """

    side: int
    batch: int
    ratios: tuple[float, ...]
    channels: int = 96
    expanded: int = 576
    is_split: bool = False
    inductor: bool = True
    rounds: int = 9


def measure_block(case: BlockCase, note: Note) -> tuple[list[Measurement], list[Split]]:
    """Measures a block of drawn weights.

    Args:
        case: what to measure.
        note: told rounds done and what is being done.

    Raises:
        RuntimeError: competitors that compute the same disagree.
    """
    weights = _Weights(case.channels, case.expanded)
    size = (IMAGES, case.channels, case.side, case.side)
    images = torch.randn(size, generator=torch.Generator().manual_seed(1))
    batches = _cut(images.contiguous(memory_format=torch.channels_last), case.batch)
    block = kernels.pack_inverted_residual(*weights.parts())
    calls = _dense_calls(weights, batches, case.inductor, lambda text: note(0, text))
    calls["own dense mode"] = _each(lambda x: block(x, None), batches)
    for name, call in calls.items():
        check_agreement(name, call, masked_inverted_residual(batches[-1], None, *weights.parts()))
    shares = {}
    masks = {ratio: blob_mask(IMAGES, case.side, ratio) for ratio in case.ratios}
    for ratio, mask in masks.items():
        parts = _cut(mask, case.batch)
        calls[f"r = {ratio:g}"] = call = _each(block, batches, parts)
        expected = masked_inverted_residual(batches[-1], parts[-1], *weights.parts())
        check_agreement(f"r = {ratio:g}", call, expected)
        shares[f"r = {ratio:g}"] = Shares(ratio, *_counted(block, batches, parts))
    seconds = in_turn(calls, case.rounds, lambda done: note(done, ""))
    measured = described("block", batches[0], calls, shares, seconds, len(batches))
    splits = []
    for ratio, mask in masks.items() if case.is_split else ():
        parts = _cut(mask, case.batch)
        each = [_steps(weights, block, x, part) for x, part in zip(batches, parts, strict=True)]
        steps = {name: _all([one[name] for one in each]) for name in (*STEPS, "fused")}
        times = in_turn(steps, case.rounds, turn=SHORT_TURN)
        shorter = {name: of_one(values, len(batches)) for name, values in times.items()}
        splits.append(Split(case.side, case.batch, ratio, shorter))
    return measured, splits


class _Weights:
    """Drawn weights of an inverted residual block, as its kernels take them."""

    def __init__(self, channels: int, expanded: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        self.expand = drawn(expanded, channels, scale=channels**-0.5)
        self.expand_bias = drawn(expanded, scale=0.5)
        self.depthwise = drawn(expanded, 3, 3, scale=1 / 3)
        self.depthwise_bias = drawn(expanded, scale=0.5)
        self.project = drawn(channels, expanded, scale=expanded**-0.5)
        self.project_bias = drawn(channels, scale=0.5)

    def parts(self) -> tuple[Tensor, ...]:
        return (
            self.expand,
            self.expand_bias,
            self.depthwise,
            self.depthwise_bias,
            self.project,
            self.project_bias,
        )


class _Dense(nn.Module):
    """The block in torch's own layers."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        expanded, channels = weights.expand.shape
        self.expand = nn.Conv2d(channels, expanded, 1)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded)
        self.project = nn.Conv2d(expanded, channels, 1)
        layers = (self.expand, self.depthwise, self.project)
        parts = weights.parts()
        for layer, weight, bias in zip(layers, parts[::2], parts[1::2], strict=True):
            layer.weight = nn.Parameter(weight.reshape(layer.weight.shape).clone(), False)
            layer.bias = nn.Parameter(bias.clone(), False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y


def _dense_calls(
    weights: _Weights, batches: Sequence[Tensor], inductor: bool, note: Callable[[str], None]
) -> dict[str, Call]:
    plain, turned = _Dense(weights).eval(), _Dense(weights).eval()
    turned.to(memory_format=torch.channels_last)
    ways = {
        "contiguous": (plain, [x.contiguous() for x in batches]),
        "channels last": (turned, batches),
    }
    calls = {f"eager, {name}": _each(run, given) for name, (run, given) in ways.items()}
    for name, (run, given) in ways.items() if inductor else ():
        note(f"compiling, {name}")
        calls[f"inductor, frozen, {name}"] = _each(compiled(run, given[0]), given)
    return calls


def _cut(x: Tensor, batch: int) -> list[Tensor]:
    return [x[first : first + batch] for first in range(0, len(x), batch)]


def _each(run: Callable[..., Tensor], *columns: Sequence[Tensor]) -> Call:
    """Runs every batch, one after the other; gives the last result."""

    def call() -> Tensor:
        result = None
        for given in zip(*columns, strict=True):
            result = run(*given)
        assert result is not None
        return result

    return call


def _all(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [call() for call in calls]


def _counted(
    block: kernels.PackedBlock, batches: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[float, float, float]:
    """Shares of active pixels, dilated pixels and MACs, from the rows that were processed."""
    rows = dict.fromkeys(block.macs, 0)
    for x, mask in zip(batches, masks, strict=True):
        block(x, mask)
        for layer, count in block.rows.items():
            rows[layer] += count
    pixels = sum(mask.numel() for mask in masks)
    spent = sum(count * block.macs[layer] for layer, count in rows.items())
    macs = spent / (pixels * sum(block.macs.values()))
    return rows["project"] / pixels, rows["expand"] / pixels, macs


def _steps(
    weights: _Weights, block: kernels.PackedBlock, x: Tensor, mask: Tensor
) -> dict[str, Callable[[], object]]:
    """The steps of a sparse block with operators of their own, each on the result before."""
    implementation = dispatch.choose("auto", x.dtype, x.device).name
    expand, depthwise, project = (
        operators_for("torch" if implementation == "dense" else implementation, layer)
        for layer in (
            Layer("expand", weights.expand[:, :, None, None], weights.expand_bias, "relu6"),
            Layer(
                "depthwise", weights.depthwise[:, None], weights.depthwise_bias, "relu6", 1, True
            ),
            Layer("project", weights.project[:, :, None, None], weights.project_bias, "none"),
        )
    )
    unit = torch.ones(1, x.shape[1], 1, 1) / x.shape[1]
    index = kernels.build_index(mask)
    around = kernels.neighbours(index)
    rows = sparse_ops.gather(x, index)

    def listed() -> object:
        return kernels.neighbours(kernels.build_index(mask))

    def function() -> Tensor:
        return project.rows(depthwise.rows(expand.rows(rows, None), around), None)

    outputs, into = function(), x.clone(memory_format=torch.preserve_format)
    return {
        "mask": lambda: kernels.hard_mask(F.conv2d(x, unit)),
        "bookkeeping": listed,
        "gather": lambda: sparse_ops.gather(x, index),
        "residual function": function,
        "scatter": lambda: sparse_ops.scatter_add(outputs, index, into),
        "fused": lambda: block(x, mask),
    }


def main(arguments: Sequence[str]) -> None:
    """Measures the plan given as JSON: cases by what they are of."""
    from flyball.platform import bench_dynconv_networks as networks

    torch.set_num_threads(1)
    plan: Mapping[str, list[dict[str, Any]]] = json.loads(arguments[0])
    total = sum(case["rounds"] for cases in plan.values() for case in cases)
    done = 0
    for part, cases in plan.items():
        for values in cases:

            def note(rounds: int, text: str, before: int = done, name: str = part) -> None:
                named = name if not text else f"{name}: {text}"
                say(progress=[before + rounds, total, named])

            measured: Sequence[Measurement]
            splits: Sequence[Split] = ()
            if part == "block":
                case = BlockCase(**{**values, "ratios": tuple(values["ratios"])})
                measured, splits = measure_block(case, note)
            elif part == "network":
                measured = networks.measure_network(networks.NetworkCase(**values), note)
            else:
                trained = networks.TrainedCase(**{**values, "us": tuple(values["us"])})
                measured = networks.measure_trained(trained, note)
            for one in measured:
                say(measurement=asdict(one))
            for split in splits:
                say(split=asdict(split))
            done += values["rounds"]


if __name__ == "__main__":
    main(sys.argv[1:])
