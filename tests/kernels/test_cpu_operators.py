"""The C++ operators equal float64 references, write only their own rows, and are deterministic.

B batch, C inputs, E expanded channels, O outputs, H, W pixels; P rows computed, T taps.
"""

from collections.abc import Iterator
from copy import deepcopy
from math import sqrt

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels.cpu import (
    CpuBlock,
    Listed,
    available,
    depthwise,
    gather_gemm,
    gather_gemm_scatter,
    pack_basic_block,
    pack_bottleneck,
    pack_inverted_residual,
    pack_rows_weight,
    run_block,
)

CANARY = 12345.0
GUARD = 3  # rows before and after


@pytest.fixture(autouse=True)
def cpp() -> None:
    """Only a missing compiler is an excuse; a failed build is a failure."""
    can, why = available()
    if not can and why.startswith("no C++ compiler"):
        pytest.skip(why)
    assert can, why


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, where a test asks for no other; as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Draw:
    """Values of a fixed seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        values: Tensor = torch.randn(shape, generator=self.generator)
        return values

    def weight(self, *shape: int, inputs: int) -> Tensor:
        return self.normal(*shape) / sqrt(inputs)

    def mask(self, family: str, batch: int, height: int, width: int) -> Tensor:
        shape = (batch, height, width)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        if family == "empty":
            return torch.zeros(shape, dtype=torch.bool)
        if family == "full":
            return torch.ones(shape, dtype=torch.bool)
        if family == "isolated":
            return ((y % 4 == 2) & (x % 5 == 1)).expand(shape).contiguous()
        if family == "border":
            inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
            return (~inner).expand(shape).contiguous()
        if family == "checkerboard":
            return ((x + y) % 2 == 0).expand(shape).contiguous()
        if family == "blob":
            centre = torch.rand((batch, 2, 1, 1), generator=self.generator)
            far = ((y / height - centre[:, 0]) ** 2 + (x / width - centre[:, 1]) ** 2).sqrt()
            return far < 0.3
        assert family == "independent"
        return torch.rand(shape, generator=self.generator) < 0.15


FAMILIES = ["empty", "full", "isolated", "border", "checkerboard", "blob", "independent"]


def guarded(rows: int, columns: int, fill: float) -> tuple[Tensor, Tensor]:
    """Rows to use, and the memory they lie in, canaries around them."""
    memory = torch.full((rows + 2 * GUARD, columns), CANARY)
    memory[GUARD : GUARD + rows] = fill
    return memory[GUARD : GUARD + rows], memory


def assert_guards(memory: Tensor) -> None:
    assert (memory[:GUARD] == CANARY).all()
    assert (memory[-GUARD:] == CANARY).all()


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest value: float32 against float64, in another order."""
    assert wanted.dtype == torch.float64
    assert torch.isfinite(got).all()
    assert (got - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def pixels(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Rows as (B, C, H, W) in float64."""
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2).double()


def as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


Weights = tuple[Tensor, ...]


def block_of(
    kind: str, draw: Draw, inputs: int, inner: int, outputs: int, stride: int
) -> tuple[CpuBlock, Weights]:
    first, second, third = (draw.normal(size) * 0.5 for size in (inner, inner, outputs))
    if kind == "inverted":
        expand = draw.weight(inner, inputs, inputs=inputs)
        deep = draw.weight(inner, 3, 3, inputs=9)
        project = draw.weight(outputs, inner, inputs=inner)
        packed = pack_inverted_residual(expand, first, deep, second, project, third, stride=stride)
        return packed, (expand, first, deep, second, project, third)
    if kind == "basic":
        one = draw.weight(inner, inputs, 3, 3, inputs=9 * inputs)
        two = draw.weight(outputs, inner, 3, 3, inputs=9 * inner)
        return pack_basic_block(one, first, two, third, stride=stride), (one, first, two, third)
    one = draw.weight(inner, inputs, 1, 1, inputs=inputs)
    two = draw.weight(inner, inner, 3, 3, inputs=9 * inner)
    three = draw.weight(outputs, inner, 1, 1, inputs=inner)
    weights = (one, first, two, second, three, third)
    return pack_bottleneck(one, first, two, second, three, third, stride=stride), weights


def reference(
    kind: str, weights: Weights, x: Tensor, mask: Tensor, identity: Tensor, stride: int
) -> Tensor:
    """The block, dense and masked, in float64."""
    w = [weight.double() for weight in weights]
    if kind == "inverted":
        y = F.relu6(F.conv2d(x, w[0][:, :, None, None], w[1]))
        y = F.relu6(F.conv2d(y, w[2][:, None], w[3], stride, 1, 1, len(w[2])))
        return identity + mask[:, None] * F.conv2d(y, w[4][:, :, None, None], w[5])
    if kind == "basic":
        y = F.relu(F.conv2d(x, w[0], w[1], stride, 1))
        return F.relu(identity + mask[:, None] * F.conv2d(y, w[2], w[3], padding=1))
    y = F.relu(F.conv2d(F.relu(F.conv2d(x, w[0], w[1])), w[2], w[3], stride, 1))
    return F.relu(identity + mask[:, None] * F.conv2d(y, w[4], w[5]))


def listed_by(mask: Tensor, kind: str, stride: int, height: int, width: int) -> Listed:
    """How many pixels a 3x3 window of this stride around active ones touches, and how many run."""
    batch, tall, wide = mask.shape
    if kind == "basic":
        stride, height, width = 1, tall, wide
    touched = torch.zeros(batch, height + 2, width + 2, dtype=torch.bool)
    for image, y, x in mask.nonzero().tolist():
        touched[image, y * stride : y * stride + 3, x * stride : x * stride + 3] = True
    return Listed(int(touched[:, 1:-1, 1:-1].sum()), int(mask.sum()))


# inputs, inner, outputs: what a pose network has, what fits no vector, single channels.
CHANNELS = [(24, 144, 24), (17, 70, 21), (1, 3, 1), (64, 33, 50)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["inverted", "basic", "bottleneck"])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_equal_the_masked_dense_block(kind: str, family: str, stride: int) -> None:
    draw = Draw()
    batch, height, width = 2, 19, 13
    tall, wide = -(-height // stride), -(-width // stride)
    for inputs, inner, outputs in CHANNELS:
        packed, weights = block_of(kind, draw, inputs, inner, outputs, stride)
        x, memory = guarded(batch * height * width, inputs, torch.nan)
        x.copy_(draw.normal(*x.shape))
        memory[:GUARD] = memory[-GUARD:] = torch.nan  # read by mistake, they would spread
        identity = draw.normal(batch * tall * wide, outputs)
        mask = draw.mask(family, batch, tall, wide)
        out, around = guarded(len(identity), outputs, torch.nan)
        listed = run_block(packed, x, mask, (batch, height, width), identity, out)
        given = pixels(x, batch, height, width)
        wanted = reference(kind, weights, given, mask, pixels(identity, batch, tall, wide), stride)
        assert_close(out, as_rows(wanted))
        assert_guards(around)
        assert listed == listed_by(mask, kind, stride, height, width)


def test_the_block_of_the_pose_network() -> None:
    draw = Draw()
    packed, weights = block_of("inverted", draw, 96, 576, 96, 1)
    x = draw.normal(2 * 9 * 17, 96)
    for mask in (draw.mask("blob", 2, 9, 17), None):
        out = torch.full_like(x, torch.nan)
        run_block(packed, x, mask, (2, 9, 17), x, out)
        given = pixels(x, 2, 9, 17)
        used = torch.ones(2, 9, 17) if mask is None else mask
        assert_close(out, as_rows(reference("inverted", weights, given, used, given, 1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_wide_images_go_around_the_ring_many_times(family: str) -> None:
    draw = Draw()
    packed, weights = block_of("inverted", draw, 5, 20, 5, 1)
    x, mask = draw.normal(61 * 45, 5), draw.mask(family, 1, 61, 45)
    out = torch.full_like(x, torch.nan)
    run_block(packed, x, mask, (1, 61, 45), x, out)
    given = pixels(x, 1, 61, 45)
    assert_close(out, as_rows(reference("inverted", weights, given, mask, given, 1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_place_gives_the_same_bits(family: str) -> None:
    draw = Draw()
    packed, _ = block_of("inverted", draw, 17, 70, 17, 1)
    for batch, height, width, threads in ((1, 40, 23, 1), (1, 40, 23, 2), (3, 12, 31, 2)):
        torch.set_num_threads(threads)
        mask = draw.mask(family, batch, height, width)
        x, memory = guarded(batch * height * width, 17, 0.0)
        x.copy_(draw.normal(*x.shape))
        out = torch.full_like(x, torch.nan)
        run_block(packed, x, mask, (batch, height, width), x, out)
        run_block(packed, x, mask, (batch, height, width), x, x)
        assert torch.equal(x, out)
        assert_guards(memory)


@pytest.mark.parametrize("kind", ["inverted", "basic", "bottleneck"])
def test_out_may_be_the_identity(kind: str) -> None:
    draw = Draw()
    packed, _ = block_of(kind, draw, 6, 20, 9, 1)
    x, mask = draw.normal(20 * 20, 6), draw.mask("independent", 1, 20, 20)
    identity = draw.normal(20 * 20, 9)
    out = torch.full_like(identity, torch.nan)
    run_block(packed, x, mask, (1, 20, 20), identity, out)
    run_block(packed, x, mask, (1, 20, 20), identity, identity)
    assert torch.equal(identity, out)


@pytest.mark.parametrize("kind", ["inverted", "basic", "bottleneck"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(
    kind: str, family: str
) -> None:
    draw = Draw()
    packed, _ = block_of(kind, draw, 10, 40, 10, 1)
    batch, height, width = 3, 23, 17
    x, mask = draw.normal(batch, height * width, 10), draw.mask(family, batch, height, width)
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        whole, single = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        flat = x.view(-1, 10)
        run_block(packed, flat, mask, (batch, height, width), flat, whole.view(-1, 10))
        for i in range(batch):
            run_block(packed, x[i], mask[i : i + 1], (1, height, width), x[i], single[i])
        outs += [whole, single]
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_more_threads_than_pixels_have_work_for() -> None:
    draw = Draw()
    packed, _ = block_of("inverted", draw, 5, 20, 5, 1)
    mask = torch.zeros(1, 30, 30, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 29, 29] = True
    x = draw.normal(900, 5)
    outs = [torch.full_like(x, torch.nan), x.clone(), torch.full_like(x, torch.nan)]
    run_block(packed, x, mask, (1, 30, 30), x, outs[0])
    torch.set_num_threads(5)
    run_block(packed, outs[1], mask, (1, 30, 30), outs[1], outs[1])
    run_block(packed, x, mask, (1, 30, 30), x, outs[2])
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_mask_gives_the_bits_of_a_full_mask() -> None:
    draw = Draw()
    for stride in (1, 2):
        packed, _ = block_of("inverted", draw, 6, 40, 9, stride)
        size = (2, 15, 21)
        tall, wide = -(-15 // stride), -(-21 // stride)
        x, identity = draw.normal(2 * 15 * 21, 6), draw.normal(2 * tall * wide, 9)
        full = torch.ones(2, tall, wide, dtype=torch.uint8)
        outs = [torch.full_like(identity, torch.nan) for _ in range(2)]
        listed = [
            run_block(packed, x, mask, size, identity, out)
            for mask, out in zip((None, full), outs, strict=True)
        ]
        assert torch.equal(*outs)
        assert listed[0] == listed[1] == Listed(2 * 15 * 21, 2 * tall * wide)


def test_nan_reaches_exactly_the_active_pixels_that_look_at_it() -> None:
    draw = Draw()
    packed, _ = block_of("inverted", draw, 4, 20, 4, 1)
    x, mask = draw.normal(7 * 7, 4), torch.zeros(1, 7, 7, dtype=torch.bool)
    mask[0, 2, 2] = mask[0, 2, 5] = True
    x[3 * 7 + 3] = torch.nan  # in the window of (2, 2), not in that of (2, 5)
    out = torch.empty_like(x)
    run_block(packed, x, mask, (1, 7, 7), x, out)
    hit = out.isnan().any(1).nonzero().view(-1).tolist()
    assert hit == [2 * 7 + 2, 3 * 7 + 3]


@pytest.mark.parametrize("taps", [1, 9])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_products_of_gathered_rows(taps: int, activation: str) -> None:
    draw = Draw()
    for inputs, outputs, count in (
        (16, 16, 301),
        (3, 7, 100),
        (33, 130, 97),
        (64, 64, 1),
        (5, 48, 0),
    ):
        x, memory = guarded(50, inputs, 0.0)
        x.copy_(draw.normal(*x.shape))
        memory[:GUARD] = memory[-GUARD:] = torch.nan
        table = torch.randint(-1, 50, (count, taps), generator=draw.generator, dtype=torch.int32)
        weight = draw.weight(taps, inputs, outputs, inputs=taps * inputs)
        bias = draw.normal(outputs)
        out, around = guarded(count, outputs, torch.nan)
        gather_gemm(x, table, pack_rows_weight(weight), bias, activation, out)
        rows = torch.cat([x, x.new_zeros(1, inputs)]).double()[table.long()]
        wanted = torch.einsum("ptc,tco->po", rows, weight.double()) + bias
        clamped = {"none": wanted, "relu": F.relu(wanted), "relu6": F.relu6(wanted)}[activation]
        if count:
            assert_close(out, clamped)
        assert_guards(around)
        torch.set_num_threads(2)
        again = torch.full_like(out, torch.nan)
        gather_gemm(x, table, pack_rows_weight(weight), bias, activation, again)
        torch.set_num_threads(1)
        assert torch.equal(again, out)
        found, around = guarded(3 * count + 2, outputs, 0.0)
        found.copy_(draw.normal(*found.shape))
        positions = torch.arange(count, dtype=torch.int32) * 3 + 1
        summed = found.double()
        summed[positions.long()] += wanted
        if activation != "none":
            act = F.relu if activation == "relu" else F.relu6
            summed[positions.long()] = act(summed[positions.long()])
        gather_gemm_scatter(x, table, pack_rows_weight(weight), bias, found, positions, activation)
        assert_close(found, summed)
        assert_guards(around)


def test_without_a_table_all_rows_run_in_order() -> None:
    draw = Draw()
    x, weight, bias = draw.normal(200, 12), draw.normal(1, 12, 20), draw.normal(20)
    packed = pack_rows_weight(weight)
    out, listed = torch.full((200, 20), torch.nan), torch.full((200, 20), torch.nan)
    gather_gemm(x, None, packed, bias, "none", out)
    gather_gemm(x, torch.arange(200, dtype=torch.int32)[:, None], packed, bias, "none", listed)
    assert torch.equal(out, listed)
    assert_close(out, x.double() @ weight[0].double() + bias)


@pytest.mark.parametrize("channels", [1, 7, 16, 48, 70, 144])
def test_depthwise_of_gathered_rows(channels: int) -> None:
    draw = Draw()
    x, memory = guarded(40, channels, 0.0)
    x.copy_(draw.normal(*x.shape))
    memory[:GUARD] = memory[-GUARD:] = torch.nan
    table = torch.randint(-1, 40, (150, 9), generator=draw.generator, dtype=torch.int32)
    weight, bias = draw.normal(9, channels), draw.normal(channels)
    out, around = guarded(150, channels, torch.nan)
    depthwise(x, table, weight, bias, "relu6", out)
    rows = torch.cat([x, x.new_zeros(1, channels)]).double()[table.long()]
    assert_close(out, F.relu6((rows * weight).sum(1) + bias))
    assert_guards(around)
    torch.set_num_threads(2)
    again = torch.full_like(out, torch.nan)
    depthwise(x, table, weight, bias, "relu6", again)
    assert torch.equal(again, out)


def test_a_row_that_is_not_there_is_refused_and_nothing_is_written() -> None:
    draw = Draw()
    x, bias, out = draw.normal(4, 3), draw.normal(5), torch.full((2, 5), CANARY)
    weight = pack_rows_weight(draw.normal(9, 3, 5))
    for wrong in (4, -2, 2**31 - 1, -(2**31)):
        table = torch.zeros(2, 9, dtype=torch.int32)
        table[1, 8] = wrong
        positions = torch.tensor([0, 1], dtype=torch.int32)
        with pytest.raises(ValueError, match="rows 0 to 3"):
            gather_gemm(x, table, weight, bias, "none", out)
        with pytest.raises(ValueError, match="rows 0 to 3"):
            gather_gemm_scatter(x, table, weight, bias, out, positions, "none")
        with pytest.raises(ValueError, match="rows 0 to 3"):
            depthwise(draw.normal(4, 5), table, draw.normal(9, 5), bias, "none", out)
        assert (out == CANARY).all()


@pytest.mark.parametrize("positions", [[0, 0], [1, 0], [-1, 0], [1, 2]])
def test_positions_that_do_not_rise_within_out_are_refused(positions: list[int]) -> None:
    draw = Draw()
    weight, out = pack_rows_weight(draw.normal(1, 3, 5)), torch.full((2, 5), CANARY)
    listed = torch.tensor(positions, dtype=torch.int32)
    with pytest.raises(ValueError, match="rise strictly within 0 to 1"):
        gather_gemm_scatter(draw.normal(2, 3), None, weight, draw.normal(5), out, listed, "none")
    assert (out == CANARY).all()


def test_what_does_not_fit_is_refused() -> None:
    draw = Draw()
    x, bias, out = draw.normal(4, 3), draw.normal(5), torch.empty(4, 5)
    weight = pack_rows_weight(draw.normal(1, 3, 5))
    with pytest.raises(ValueError, match="float64"):
        gather_gemm(x.double(), None, weight, bias, "none", out)
    with pytest.raises(ValueError, match="contiguous"):
        gather_gemm(draw.normal(3, 4).t(), None, weight, bias, "none", out)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        gather_gemm(draw.normal(4, 2), None, weight, bias, "none", out)
    with pytest.raises(ValueError, match="out is"):
        gather_gemm(x, None, weight, bias, "none", out[:3])
    with pytest.raises(ValueError, match="table is"):
        gather_gemm(x, torch.zeros(4, 1, dtype=torch.int64), weight, bias, "none", out)
    with pytest.raises(ValueError, match="needs no table"):
        gather_gemm(x, None, pack_rows_weight(draw.normal(9, 3, 5)), bias, "none", out)
    with pytest.raises(ValueError, match="none, relu, relu6"):
        gather_gemm(x, None, weight, bias, "gelu", out)
    square = pack_rows_weight(draw.normal(1, 3, 3))
    with pytest.raises(ValueError, match="shares memory"):
        gather_gemm(x, None, square, draw.normal(3), "none", x)
    with pytest.raises(ValueError, match="taps, inputs, outputs"):
        pack_rows_weight(draw.normal(3, 5))


def test_blocks_refuse_what_does_not_fit() -> None:
    draw = Draw()
    packed, weights = block_of("inverted", draw, 4, 20, 4, 1)
    basic, _ = block_of("basic", draw, 4, 20, 4, 1)
    halving, _ = block_of("inverted", draw, 4, 20, 4, 2)
    x, mask = draw.normal(36, 4), torch.ones(1, 6, 6, dtype=torch.bool)
    out, size = torch.empty_like(x), (1, 6, 6)
    with pytest.raises(ValueError, match="mask is"):
        run_block(packed, x, mask[:, :5], size, x, out)
    with pytest.raises(ValueError, match="mask is"):
        run_block(packed, x, mask.float(), size, x, out)
    with pytest.raises(ValueError, match="x is"):
        run_block(packed, x, mask, (1, 6, 7), x, out)
    with pytest.raises(ValueError, match="shares memory"):
        run_block(basic, x, mask, size, x, x)
    with pytest.raises(ValueError, match="shares memory"):
        run_block(packed, x, mask, size, draw.normal(36, 4), x)
    small = torch.ones(1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="shares memory"):
        run_block(halving, x, small, size, x[:9], x[:9])
    both = draw.normal(40, 4)
    with pytest.raises(ValueError, match="shares memory"):
        run_block(packed, x, mask, size, both[:36], both[4:])
    expand, first, deep, second, project, third = weights
    with pytest.raises(ValueError, match="1 or 2"):
        pack_inverted_residual(expand, first, deep, second, project, third, stride=3)
    with pytest.raises(ValueError, match="project is"):
        pack_inverted_residual(expand, first, deep, second, project[:, 1:], third)
    with pytest.raises(ValueError, match="bias is"):
        pack_inverted_residual(expand, first, deep, second, project, draw.normal(5))


def test_a_copied_block_stands_on_its_own() -> None:
    draw = Draw()
    packed, _ = block_of("inverted", draw, 4, 20, 4, 1)
    x, size = draw.normal(36, 4), (1, 6, 6)
    outs = [torch.empty_like(x), torch.empty_like(x)]
    run_block(packed, x, None, size, x, outs[0])
    copied = deepcopy(packed)
    for part in packed.parts:
        assert part is not None
        part[0].fill_(torch.nan)
    del packed
    run_block(copied, x, None, size, x, outs[1])
    assert torch.equal(*outs)


def test_a_batch_of_no_images_works() -> None:
    packed, _ = block_of("inverted", Draw(), 4, 20, 4, 1)
    none = torch.empty(0, 4)
    mask = torch.ones(0, 6, 6, dtype=torch.bool)
    assert run_block(packed, none, mask, (0, 6, 6), none, torch.empty(0, 4)) == Listed(0, 0)
