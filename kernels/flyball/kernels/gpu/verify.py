"""Checks every Triton kernel on a device against masked dense convolutions in float64.

Random inputs, results in buffers full of NaN; the interpreter's CPU is a device like a GPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels import reference
from flyball.kernels.gpu.blocks import (
    TritonBasicBlock,
    TritonBottleneck,
    TritonInvertedResidual,
    basic_block,
    bottleneck,
    inverted_residual,
    pack_taps,
)
from flyball.kernels.gpu.index import build_index, list_mask
from flyball.kernels.gpu.rows import gather, scatter_add
from flyball.kernels.sparse_index import dilate_mask

__all__ = [
    "FAMILIES",
    "TOLERANCE",
    "Check",
    "correctness",
    "example_mask",
    "example_pixels",
    "example_weights",
    "packed",
    "repeated_bits",
]

FAMILIES = ("empty", "full", "isolated", "border", "checkerboard", "blobs", "independent")
# float32 sums in another order than float64. Half precision rounds the expanded rows, the depthwise
# rows and the result: three times half a unit, 2^-11 or 2^-8. The interpreter cuts bfloat16 off
# instead of rounding, which doubles its error.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# What was checked, under which names; its error, the limit, and whether it passed.
Check = dict[str, Any]


def correctness(
    device: torch.device, shapes: Sequence[tuple[int, int, int, int, int]], families: Sequence[str]
) -> Iterator[Check]:
    """One check for each operator, dtype, mask family, stride and shape.

    Args:
        device: where the kernels run.
        shapes: (images, channels, expanded channels, height, width).
        families: of FAMILIES.
    """
    for shape in shapes:
        for family in families:
            for stride in (1, 2):
                batch, _, _, height, width = shape
                size = (-(-height // stride), -(-width // stride))
                mask = torch.stack([example_mask(family, *size, image) for image in range(batch)])
                mask = mask[:, None].to(device)
                about: Check = {"shape": list(shape), "mask": family, "stride": stride}
                wrong = _index_errors(mask, stride, height, width)
                yield _checked("index", about, float(wrong), 0)
                for dtype, limit in TOLERANCE.items():
                    of_dtype = {**about, "dtype": str(dtype).removeprefix("torch.")}
                    is_cut = dtype == torch.bfloat16 and device.type == "cpu"
                    for operator, error in _operators(mask, shape, dtype, stride):
                        yield _checked(operator, of_dtype, error, limit * (2 if is_cut else 1))


def repeated_bits(
    device: torch.device, shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> Iterator[Check]:
    """An image's bits are the same again, alone, in slices, and replayed from a captured graph."""
    batch, channels, expanded, height, width = shape
    shapes = ((expanded, channels), (expanded, 3, 3), (channels, expanded))
    block = TritonInvertedResidual(*packed(example_weights(dtype, device, *shapes)))
    x = example_pixels(batch, channels, height, width, dtype, device)
    mask = torch.stack([example_mask("blobs", height, width, image) for image in range(batch)])
    mask = mask[:, None].to(device)
    y = inverted_residual(x, mask, block)
    alone = [inverted_residual(x[i : i + 1], mask[i : i + 1], block) for i in range(batch)]
    pairs = {
        "again": (inverted_residual(x, mask, block), y),
        "in slices": (inverted_residual(x, mask, block, images=1), y),
        "alone": (torch.cat(alone), y),
    }
    if device.type == "cuda":
        out, flags = torch.full_like(y, float("nan")), mask.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            inverted_residual(x, flags, block, out=out)
        # Another mask in the captured memory: what depends on data is read on the device.
        flags.copy_(~mask)
        graph.replay()
        pairs["replayed, other mask"] = (out, inverted_residual(x, ~mask, block))
    about: Check = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
    for name, (other, wanted) in pairs.items():
        yield _checked(f"bits, {name}", about, float((other != wanted).sum()), 0)


def example_mask(family: str, height: int, width: int, image: int, ratio: float = 0.4) -> Tensor:
    """One image's mask, bool (H, W), another one for every image.

    Args:
        family: of FAMILIES.
        height, width: pixels.
        image: the seed.
        ratio: share of active pixels, of "blobs" exactly and of "independent" on average.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    generator = torch.Generator().manual_seed(image)
    if family == "full":
        mask[:] = True
    elif family == "isolated":
        mask[image % 2 :: 4, image % 3 :: 5] = True
    elif family == "border":
        mask[[0, -1]] = mask[:, [0, -1]] = True
    elif family == "checkerboard":
        mask = (rows + columns) % 2 == image % 2
    elif family == "blobs":
        coarse = torch.randn(1, 1, 4, 4, generator=generator)
        field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        count = max(1, round(ratio * height * width))
        mask.view(-1)[field.flatten().topk(count).indices] = True
    elif family == "independent":
        mask = torch.rand(height, width, generator=generator) < ratio
    return mask


def example_pixels(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Normal activations (B, C, H, W), channels_last."""
    x = torch.randn(batch, channels, height, width, device=device)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def example_weights(
    dtype: torch.dtype, device: torch.device, *shapes: tuple[int, ...]
) -> list[Tensor]:
    """Weights that keep the size of activations, each followed by its float32 bias."""
    parts = []
    for shape in shapes:
        weight = torch.randn(shape, device=device)
        parts.append((weight / weight[0].numel() ** 0.5).to(dtype))
        parts.append(torch.randn(shape[0], device=device) / 2)
    return parts


def packed(parts: list[Tensor]) -> list[Tensor]:
    """The weights among the parts as the kernels read them, the biases as they are."""
    return [pack_taps(part) if part.ndim > 1 else part for part in parts]


def _checked(operator: str, about: Check, error: float, limit: float) -> Check:
    # NaN is not below any limit.
    return {"operator": operator, **about, "error": error, "limit": limit, "passed": error <= limit}


def _index_errors(mask: Tensor, stride: int, height: int, width: int) -> int:
    """How many entries of lists, ranks, counts and starts are wrong, also in short lists."""
    near = dilate_mask(mask.cpu(), stride=stride, size=(height, width)).to(mask.device)
    counts = [int(mask.sum()), int(near.sum())]
    wrong = 0
    for room in (None, counts[1] // 2):
        listed = list_mask(mask, stride, room, size=(height, width), dilated_capacity=room)
        index = listed.index
        for places, flags in ((index.active, mask), (index.dilated, near)):
            found = flags.flatten().nonzero().flatten()[: len(places)]
            wanted = torch.full_like(places, -1)
            wanted[: len(found)] = found.to(torch.int32)
            wrong += int((places != wanted).sum())
        rank = torch.where(near.flatten(), near.flatten().cumsum(0) - 1, -1)
        rank = rank if room is None else torch.where(rank < room, rank, -1)
        wrong += int((index.rank != rank).sum()) + int(index.counts.tolist() != counts)
        starts = F.pad(mask.flatten(1).sum(1).cumsum(0), (1, 0))
        wrong += int((listed.active_starts != starts).sum())
    return wrong


def _operators(
    mask: Tensor, shape: tuple[int, int, int, int, int], dtype: torch.dtype, stride: int
) -> Iterator[tuple[str, float]]:
    batch, channels, expanded, height, width = shape
    outputs, hidden = (channels if stride == 1 else channels + 4), 24
    device = mask.device
    x = example_pixels(batch, channels, height, width, dtype, device)
    size = (mask.shape[2], mask.shape[3])
    identity = example_pixels(batch, outputs, *size, dtype, device)
    wide, wide_identity = x.double(), identity.double()

    shapes: tuple[tuple[int, ...], ...]
    shapes = ((expanded, channels), (expanded, 3, 3), (outputs, expanded))
    parts = example_weights(dtype, device, *shapes)
    block = TritonInvertedResidual(*packed(parts), stride=stride)
    w1, b1, wd, bd, w2, b2 = (part.double() for part in parts)
    wanted = reference.masked_inverted_residual(
        wide, mask, w1, b1, wd, bd, w2, b2, stride=stride, identity=wide_identity
    )
    for name, images, is_fused in (
        ("inverted_residual", None, True),
        ("inverted_residual, one image a slice", 1, True),
        ("inverted_residual, depthwise apart", None, False),
    ):
        out = torch.full_like(identity, float("nan"))
        inverted_residual(
            x, mask, block, identity=identity, out=out, images=images, is_fused=is_fused
        )
        yield name, _distance(out, wanted)
    place = identity.clone()
    inverted_residual(x, mask, block, identity=place, out=place)
    yield "inverted_residual, in place", _distance(place, wanted)

    shapes = ((outputs, channels, 3, 3), (outputs, outputs, 3, 3))
    parts = example_weights(dtype, device, *shapes)
    out = torch.full_like(identity, float("nan"))
    basic = TritonBasicBlock(*packed(parts), stride=stride)
    basic_block(x, mask, basic, identity=identity, out=out)
    w1, b1, w2, b2 = (part.double() for part in parts)
    wanted = reference.masked_basic_block(
        wide, mask, w1, b1, w2, b2, stride=stride, identity=wide_identity
    )
    yield "basic_block", _distance(out, wanted)

    shapes = ((hidden, channels, 1, 1), (hidden, hidden, 3, 3), (outputs, hidden, 1, 1))
    parts = example_weights(dtype, device, *shapes)
    out = torch.full_like(identity, float("nan"))
    narrow = TritonBottleneck(*packed(parts), stride=stride)
    bottleneck(x, mask, narrow, identity=identity, out=out)
    w1, b1, w2, b2, w3, b3 = (part.double() for part in parts)
    wanted = reference.masked_bottleneck(
        wide, mask, w1, b1, w2, b2, w3, b3, stride=stride, identity=wide_identity
    )
    yield "bottleneck", _distance(out, wanted)
    yield from _row_operators(mask, identity)


def _row_operators(mask: Tensor, grid: Tensor) -> Iterator[tuple[str, float]]:
    """Gather and scatter-add alone; what is not listed is left as it was."""
    rows = grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])
    index, places = build_index(mask), mask.flatten().nonzero().flatten()
    taken = torch.full_like(rows, float("nan"))
    gather(rows, index.active, index.counts[:1], taken)
    is_kept = bool(taken[len(places) :].isnan().all())
    found = taken[: len(places)]
    yield "gather", _distance(found, rows[places].double()) if is_kept else float("nan")
    wanted = rows.double()
    wanted[places] *= 2
    added = rows.clone()
    scatter_add(taken, index.active, index.counts[:1], added)
    yield "scatter_add", _distance(added, wanted)


def _distance(y: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm; NaN stays NaN."""
    if not wanted.numel():
        return 0.0
    return float((y.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
