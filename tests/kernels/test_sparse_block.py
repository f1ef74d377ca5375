"""Packed residual blocks equal the masked dense ones, however they run."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels import (
    PackedBlock,
    dispatch,
    executed_rows,
    explain,
    forget,
    pack_basic_block,
    pack_bottleneck,
    pack_inverted_residual,
    reference,
)

MaskOf = Callable[..., Tensor]
KINDS = ("inverted_residual", "basic_block", "bottleneck")
PACK: dict[str, Callable[..., PackedBlock]] = {
    "inverted_residual": pack_inverted_residual,
    "basic_block": pack_basic_block,
    "bottleneck": pack_bottleneck,
}
MASKED: dict[str, Callable[..., Tensor]] = {
    "inverted_residual": reference.masked_inverted_residual,
    "basic_block": reference.masked_basic_block,
    "bottleneck": reference.masked_bottleneck,
}
CPP = dispatch.choose("auto", torch.float32, torch.device("cpu")).name == "cpu"
needs_cpp = pytest.mark.skipif(not CPP, reason="no C++ compiler")
IMPLEMENTATIONS = ["auto", "torch", "dense", pytest.param("cpu", marks=needs_cpp)]

# Batch, inputs, outputs, height, width; none a multiple of what vectors hold but the last.
SIZES = [(1, 5, 5, 1, 1), (3, 7, 9, 6, 11), (1, 16, 16, 17, 13)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A block's weights and input in float64."""

    kind: str
    stride: int
    weights: tuple[Tensor, ...]
    x: Tensor
    identity: Tensor

    def pack(self, implementation: str, dtype: torch.dtype = torch.float32) -> PackedBlock:
        weights = (weight.to(dtype) for weight in self.weights)
        return PACK[self.kind](*weights, stride=self.stride, implementation=implementation)

    def masked(self, mask: Tensor | None) -> Tensor:
        at = {"stride": self.stride, "identity": self.identity}
        return MASKED[self.kind](self.x, mask, *self.weights, **at)

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        last = torch.channels_last
        return (
            self.x.to(dtype).contiguous(memory_format=last),
            self.identity.to(dtype).contiguous(memory_format=last),
        )

    @property
    def out_size(self) -> tuple[int, int, int]:
        return (len(self.x), self.identity.shape[2], self.identity.shape[3])


def case_of(kind: str, stride: int, size: tuple[int, int, int, int, int]) -> Case:
    batch, inputs, outputs, height, width = size
    middle = 2 * inputs + 3
    shapes: list[tuple[int, ...]]
    if kind == "inverted_residual":
        shapes = [(middle, inputs), (middle, 3, 3), (outputs, middle)]
    elif kind == "basic_block":
        shapes = [(middle, inputs, 3, 3), (outputs, middle, 3, 3)]
    else:
        shapes = [(middle, inputs, 1, 1), (middle, middle, 3, 3), (outputs, middle, 1, 1)]
    weights = []
    for place, shape in enumerate(shapes):
        weights.append(drawn(*shape, seed=place + 1) / prod(shape[1:]) ** 0.5)
        weights.append(drawn(shape[0], seed=place + 11))
    out = (batch, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1)
    x = drawn(batch, inputs, height, width, seed=21)
    return Case(kind, stride, tuple(weights), x, drawn(*out, seed=22))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the norm in float32, which sums in another order; 1e-12 in float64."""
    tolerance = 1e-12 if got.dtype == torch.float64 else 1e-5
    assert got.shape == wanted.shape
    assert bool(torch.isfinite(got).all())
    error = torch.linalg.vector_norm(got.double() - wanted)
    assert error <= tolerance * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_is_masked_dense(
    kind: str, stride: int, implementation: str, family: str, mask_of: MaskOf
) -> None:
    for size in SIZES:
        case = case_of(kind, stride, size)
        mask = mask_of(family, *case.out_size)
        wanted = case.masked(mask)
        x, identity = case.inputs()
        block = case.pack(implementation)
        out = torch.full_like(identity, torch.nan)
        assert block(x, mask, identity=identity, out=out) is out
        assert_close(out, wanted)
        new = block(x, mask[:, 0], identity=identity)
        assert torch.equal(new, out)
        assert new.is_contiguous(memory_format=torch.channels_last)
        passed = identity if kind == "inverted_residual" else identity.relu()
        assert torch.equal(out[~mask.expand_as(out)], passed[~mask.expand_as(out)])


@pytest.mark.parametrize("implementation", ["torch", "dense", "auto"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_exact_but_for_the_order_of_sums(
    kind: str, stride: int, implementation: str, family: str, mask_of: MaskOf
) -> None:
    case = case_of(kind, stride, SIZES[1])
    mask = mask_of(family, *case.out_size)
    x, identity = case.inputs(torch.float64)
    got = case.pack(implementation, torch.float64)(x, mask, identity=identity)
    assert_close(got, case.masked(mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_takes_biases_in_float32(
    kind: str, dtype: torch.dtype, mask_of: MaskOf
) -> None:
    case = case_of(kind, 1, SIZES[1])
    mask = mask_of("blobs", *case.out_size)
    parts = [part.to(torch.float32 if part.ndim == 1 else dtype) for part in case.weights]
    x, identity = case.inputs(dtype)
    got = PACK[kind](*parts, implementation="torch")(x, mask, identity=identity)
    assert got.dtype == dtype
    wanted = case.masked(mask)
    # Every rounding is half a unit of the last place; intermediates are rounded three times.
    error = (got.double() - wanted).norm() / wanted.norm()
    assert error < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_means_every_pixel(kind: str, implementation: str, mask_of: MaskOf) -> None:
    for stride in (1, 2):
        case = case_of(kind, stride, SIZES[2])
        x, identity = case.inputs()
        got = case.pack(implementation)(x, None, identity=identity)
        assert_close(got, case.masked(None))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_an_image_depend_on_neither_its_batch_nor_the_threads(
    kind: str, stride: int, implementation: str, mask_of: MaskOf
) -> None:
    """So what holds for one image on one thread holds for batches and threads."""
    case = case_of(kind, stride, (7, 24, 24, 14, 15))
    mask = mask_of("mixed", *case.out_size)
    x, identity = case.inputs()
    block = case.pack(implementation)
    before = torch.get_num_threads()
    try:
        for run in (mask, None):
            torch.set_num_threads(1)
            together = block(x, run, identity=identity)
            torch.set_num_threads(2)
            assert torch.equal(block(x, run, identity=identity), together)
            for image in range(7):
                one = slice(image, image + 1)
                own = None if run is None else run[one]
                assert torch.equal(block(x[one], own, identity=identity[one]), together[one])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_may_be_written_over_the_input_or_the_identity(
    kind: str, implementation: str, family: str, mask_of: MaskOf
) -> None:
    case = case_of(kind, 1, (2, 9, 9, 12, 10))
    mask = mask_of(family, *case.out_size)
    block = case.pack(implementation)
    x, identity = case.inputs()
    wanted, wanted_of_x = block(x, mask, identity=identity), block(x, mask)
    over = x.clone(memory_format=torch.channels_last)
    assert block(over, mask, out=over) is over
    assert torch.equal(over, wanted_of_x)
    over = x.clone(memory_format=torch.channels_last)
    assert torch.equal(block(over, mask, identity=identity, out=over), wanted)
    over = identity.clone(memory_format=torch.channels_last)
    assert torch.equal(block(x, mask, identity=over, out=over), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_layouts_are_converted_with_a_note(
    kind: str, implementation: str, mask_of: MaskOf
) -> None:
    case = case_of(kind, 1, SIZES[2])
    mask = mask_of("independent", *case.out_size)
    block = case.pack(implementation)
    x, identity = case.inputs()
    wanted = block(x, mask, identity=identity)
    forget()
    cut = torch.cat([x, x], dim=3)[:, :, :, : x.shape[3]]
    planes = torch.full_like(identity, torch.nan, memory_format=torch.contiguous_format)
    got = block(cut, mask, identity=identity.contiguous(), out=planes)
    assert got is planes
    assert torch.equal(got, wanted)
    for ran in explain():
        assert "x was copied to channels_last" in ran.why
        assert "identity was copied" in ran.why
        assert "out was written through a copy" in ran.why
    columns = mask.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(block(x, columns, identity=identity), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_and_gradients_change_nothing(
    kind: str, implementation: str, mask_of: MaskOf
) -> None:
    case = case_of(kind, 1, SIZES[2])
    mask = mask_of("blobs", *case.out_size)
    x, identity = case.inputs()
    with torch.inference_mode():
        block = case.pack(implementation)
        inside = block(x.clone(), mask.clone(), identity=identity.clone())
        again = block(inside, mask, out=inside.clone())
    outside = block(x.clone().requires_grad_(), mask, identity=identity)
    assert not outside.requires_grad
    assert torch.equal(inside, outside)
    assert torch.equal(again, block(outside, mask))


class RowsOfProducts:
    """Hooks of torch's own product and row gather: what they compute while in force, in MACs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.macs = 0
        linear, select = F.linear, torch.index_select

        def counted_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            self.macs += len(rows) * weight.numel()
            return linear(rows, weight, bias)

        def counted_select(rows: Tensor, dim: int, places: Tensor, *, out: Tensor) -> Tensor:
            self.macs += len(places) * rows.shape[1]  # a tap of a depthwise convolution
            return select(rows, dim, places, out=out)

        patch.setattr(F, "linear", counted_linear)
        patch.setattr(torch, "index_select", counted_select)


def test_rows_really_computed_are_those_of_the_flops_formula(family: str, mask_of: MaskOf) -> None:
    """DynConv Eqs. (10) and (11), for one image: FLOPs counted as multiply-accumulates."""
    channels, expanded = 6, 15
    for stride in (1, 2):
        case = case_of("inverted_residual", stride, (1, channels, channels, 11, 8))
        mask = mask_of(family, *case.out_size)
        n, dilated = (int(part) for part in executed_rows(mask, stride=stride, size=(11, 8)))
        x, identity = case.inputs(torch.float64)
        block = case.pack("torch", torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            counted = RowsOfProducts(patch)
            block(x, mask, identity=identity)
        sparse = dilated * channels * expanded + n * (9 * expanded + expanded * channels)
        assert counted.macs == sparse
        assert block.rows == {"expand": dilated, "depthwise": n, "project": n}
        assert sum(block.rows[name] * each for name, each in block.macs.items()) == sparse
    dense = case_of("inverted_residual", 1, (2, channels, channels, 11, 8))
    block = dense.pack("dense")
    block(dense.inputs()[0], None)
    full = 2 * 11 * 8 * (9 * expanded + 2 * channels * expanded)
    assert sum(block.rows[name] * each for name, each in block.macs.items()) == full


@pytest.mark.parametrize("implementation", ["torch", pytest.param("cpu", marks=needs_cpp)])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_convolution_counts_the_rows_it_computed(
    stride: int, implementation: str, family: str, mask_of: MaskOf
) -> None:
    for kind in KINDS:
        case = case_of(kind, stride, (3, 8, 8, 9, 10))
        mask = mask_of(family, *case.out_size)
        block = case.pack(implementation)
        x, identity = case.inputs()
        block(x, mask, identity=identity)
        if kind == "basic_block":
            executed = executed_rows(mask)
        else:
            executed = executed_rows(mask, stride=stride, size=(9, 10))
        first, *rest = block.rows.values()
        assert first == int(executed.dilated.sum())
        assert set(rest) == {int(executed.active.sum())}


def test_auto_decides_image_by_image(mask_of: MaskOf, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("inverted_residual", 1, (7, 8, 8, 10, 10))
    mask = mask_of("mixed", *case.out_size)
    x, identity = case.inputs()
    auto, dense = case.pack("auto"), case.pack("dense")
    sparse = "cpu" if CPP else "torch"
    by_name = case.pack(sparse)
    table = {sparse: {"inverted_residual": ((50, 1.0), (100, 0.6), (200, 1.0))}}
    monkeypatch.setattr(dispatch, "BREAK_EVEN", table)
    forget()
    got = auto(x, mask, identity=identity)
    assert {ran.implementation for ran in explain()} == {sparse, "dense"}
    assert any("above a share of 0.6" in ran.why for ran in explain())
    macs = sum(auto.macs.values())
    for image in range(7):
        one = slice(image, image + 1)
        alone = (x[one], mask[one])
        small = by_name(*alone, identity=identity[one])
        share = sum(by_name.rows[name] * each for name, each in auto.macs.items()) / (100 * macs)
        large = dense(*alone, identity=identity[one])
        assert torch.equal(got[one], large if share > 0.6 else small)
        assert torch.equal(auto(*alone, identity=identity[one]), got[one])
