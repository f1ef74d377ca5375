"""The Triton kernels, run by Triton's interpreter, against masked dense convolutions in float64.

Triton looks for TRITON_INTERPRET when it is first imported, so the functions `check_...` run as
the tests of a process of their own, which the first test starts.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels import gpu
from flyball.kernels.gpu import index as index_module
from flyball.kernels.gpu import products as products_module
from flyball.kernels.gpu import rows as rows_module
from flyball.kernels.gpu.index import list_mask
from flyball.kernels.reference import (
    activate,
    masked_basic_block,
    masked_bottleneck,
    masked_inverted_residual,
)

MaskOf = Callable[..., Tensor]

# float32 sums in another order than float64's. Half precision rounds the expanded rows, the
# depthwise rows and the result: three times half a unit in the last place (2^-11 for float16, 2^-8
# for bfloat16, which the interpreter cuts off instead of rounding: twice that).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
DTYPES = tuple(TOLERANCE)
CANARY = 123454321
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True, scope="module")
def _without_overflow_checks() -> None:
    """They double the interpreter's time, and these grids are far from 2^31 pixels."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        builder = import_module("triton.runtime.interpreter").interpreter_builder
        builder.options = replace(builder.options, sanitize_overflow=False)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a process whose Triton interprets."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    runs, why = gpu.available("cpu")
    if not runs:
        pytest.skip(why)
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_kernels_are_right_in_the_interpreter(interpreter: dict[str, str]) -> None:
    names = [name for name in globals() if name.startswith("check_")]
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider"]
    # NumPy's, of how older interpreters read a loop's bounds.
    command += ["-W", "ignore:Conversion of an array with ndim:DeprecationWarning"]
    command += ["-o", "python_functions=check_*", "-o", "addopts=--import-mode=importlib"]
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        command, env=interpreter, cwd=root, capture_output=True, text=True, check=False
    )
    passed = re.search(r"(\d+) passed in", ran.stdout)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert passed is not None
    assert int(passed.group(1)) >= len(names)
    assert "skipped" not in ran.stdout


def test_the_gpu_check_runs_on_a_cpu_in_its_smoke_mode(
    tmp_path: Path, interpreter: dict[str, str]
) -> None:
    script = Path(__file__).parents[2] / "kernels" / "benchmarks" / "gpu_check.py"
    out = tmp_path / "result.json"
    command = [sys.executable, str(script), "--smoke", "--tiny", "--out", str(out)]
    ran = subprocess.run(command, env=interpreter, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(out.read_text())
    assert result["device"] == "cpu (smoke)"
    assert result["note"] == "no GPU: GPU timing is open"
    assert "timings" not in result
    assert result["failed"] == 0
    assert {"torch", "triton", "cuda", "python", "date"} <= set(result)
    operators = {check["operator"].split(",")[0] for check in result["checks"]}
    blocks = {"inverted_residual", "basic_block", "bottleneck"}
    assert operators == {"index", "gather", "scatter_add"} | blocks


def test_without_a_gpu_the_check_says_what_can_be_done(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    script = Path(__file__).parents[2] / "kernels" / "benchmarks" / "gpu_check.py"
    command = [sys.executable, str(script), "--out", str(tmp_path / "result.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "--smoke checks the kernels without a GPU" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_reason_is_given() -> None:
    runs, why = gpu.available("cpu")
    assert not runs
    assert "run on a CUDA GPU" in why
    with pytest.raises(ValueError, match="run on a CUDA GPU; the tensors are on cpu"):
        gpu.build_index(torch.ones(1, 1, 2, 2, dtype=torch.bool))


def test_without_triton_the_package_imports_and_says_so() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from flyball.kernels import gpu\n"
        "print(gpu.available('cuda'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "(False, 'Triton is not installed" in ran.stdout


def test_what_a_kernel_cannot_take_is_refused_before_it_runs() -> None:
    rows, count = torch.zeros(4, 8), torch.zeros(1, dtype=torch.int32)
    weight, bias, out = torch.zeros(1, 8, 6), torch.zeros(6), torch.zeros(4, 6)
    places = torch.zeros(4, dtype=torch.int32)

    def product(*arguments: Tensor) -> None:
        x, w, b, y = arguments
        gpu.gather_gemm(x, w, b, "none", y, rows=count, positions=places)

    with pytest.raises(ValueError, match=r"float32, float16 and bfloat16; got torch\.float64"):
        product(rows.double(), weight.double(), bias, out.double())
    with pytest.raises(ValueError, match=r"x_rows: the shape here is \(any, 8\); got \(4, 7\)"):
        product(rows[:, :7].contiguous(), weight, bias, out)
    with pytest.raises(ValueError, match="rows lie one after the other"):
        product(torch.zeros(8, 4).t(), weight, bias, out)
    with pytest.raises(ValueError, match="at least one channel each"):
        product(rows[:, :0], weight[:, :0], bias, out)
    with pytest.raises(ValueError, match=r"float32 \(6,\) is wanted"):
        product(rows.half(), weight.half(), bias.half(), out.half())
    with pytest.raises(ValueError, match="the list has room for 4 rows, the buffer for 3"):
        product(rows, weight, bias, out[:3])
    with pytest.raises(ValueError, match="An activation is one of none, relu, relu6"):
        gpu.gather_gemm(rows, weight, bias, "gelu", out, rows=count, positions=places)
    with pytest.raises(ValueError, match=r"1 to 96 output channels of torch\.float32; got 300"):
        gpu.depthwise_gemm_scatter(
            rows, torch.zeros(9, 8), torch.zeros(8), "relu6", torch.zeros(1, 8, 300),
            torch.zeros(300), torch.zeros(4, 300), positions=places, listed=count,
            window=gpu.Window(2, 2, 2, 2, 1, places),
        )  # fmt: skip
    with pytest.raises(ValueError, match="the result needs memory of its own"):
        gpu.gather_gemm_scatter(
            rows, torch.zeros(1, 8, 8), torch.zeros(8), "none", rows, places,
            rows=count, is_gathered=True,
        )  # fmt: skip
    x = torch.zeros(1, 8, 2, 2)
    with pytest.raises(ValueError, match=r"channels_last memory; got strides"):
        gpu.inverted_residual(x, None, packed(8, 16, 8, torch.float32)[0])


def check_lists_are_in_order_for_every_family(mask_of: MaskOf, family: str) -> None:
    for stride, height, width in ((1, 5, 7), (2, 4, 5)):
        mask = mask_of(family, 2, -(-height // stride), -(-width // stride))
        listed = list_mask(mask, stride, size=(height, width))
        index, near = listed.index, dilated(mask, stride, height, width)
        counts = [int(mask.sum()), int(near.sum())]
        assert index.counts.tolist() == counts
        for places, flags, starts in (
            (index.active, mask, listed.active_starts),
            (index.dilated, near, listed.dilated_starts),
        ):
            found = flags.flatten().nonzero().flatten()
            assert places[: len(found)].tolist() == found.tolist()
            assert (places[len(found) :] == -1).all()
            before = F.pad(flags.flatten(1).sum(1).cumsum(0), (1, 0))
            assert starts.tolist() == before.tolist()
        rank = torch.where(near.flatten(), near.flatten().cumsum(0) - 1, -1)
        assert index.rank.tolist() == rank.tolist()


def check_more_blocks_than_one_scan_holds(mask_of: MaskOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BLOCK", 16)
    monkeypatch.setattr(index_module, "CHUNK", 2)
    mask = mask_of("independent", 1, 7, 9)
    index = gpu.build_index(mask)
    assert index.active[: int(mask.sum())].tolist() == mask.flatten().nonzero().flatten().tolist()
    assert index.counts.tolist() == [int(mask.sum()), int(dilated(mask, 1, 7, 9).sum())]


@pytest.mark.parametrize(("room", "near_room"), [(0, 0), (7, 10), (7, 90), (90, 7)])
def check_a_list_that_is_too_short_is_never_overrun(
    mask_of: MaskOf, monkeypatch: pytest.MonkeyPatch, room: int, near_room: int
) -> None:
    """Every buffer lies between canaries, lists and the results computed from them alike."""
    guarded: list[Tensor] = []
    real = torch.empty

    def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = torch.Size(shape)
        buffer = torch.full((size.numel() + 128,), CANARY, dtype=dtype, device=device)
        guarded.append(buffer)
        return buffer[64 : 64 + size.numel()].view(size)

    def rows_of(*shape: int) -> Tensor:
        return empty(*shape, dtype=torch.float32, device=x.device)

    mask = mask_of("independent", 2, 5, 7)
    weights, dense = packed(8, 20, 8, torch.float32)
    x = pixels(2, 8, 5, 7)
    monkeypatch.setattr(torch, "empty", empty)
    index = gpu.build_index(mask, 1, room, dilated_capacity=near_room)
    monkeypatch.setattr(torch, "empty", real)
    hidden, between = rows_of(near_room, 20), rows_of(room, 20)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 8)
    y = rows_of(70, 8).copy_(rows)
    count, window = index.counts[:1], gpu.Window.of(index)
    first = (weights.expand, weights.expand_bias, "relu6")
    middle = (weights.depthwise, weights.depthwise_bias, "relu6")
    last = (weights.project, weights.project_bias)
    gpu.gather(rows, index.active, count, rows_of(room, 8))
    gpu.gather_gemm(rows, *first, hidden, rows=index.counts[1:], positions=index.dilated)
    gpu.depthwise(hidden, *middle, between, positions=index.active, count=count, window=window)
    gpu.depthwise_gemm_scatter(
        hidden, *middle, *last, y, positions=index.active, listed=count, window=window
    )
    for buffer in guarded:
        assert (buffer[:64] == CANARY).all()
        assert (buffer[-64:] == CANARY).all()
    near = dilated(mask, 1, 5, 7)
    assert index.counts.tolist() == [int(mask.sum()), int(near.sum())]
    kept = mask.flatten().nonzero().flatten()[:room]
    assert index.active[: len(kept)].tolist() == kept.tolist()
    assert int(index.rank.max()) < near_room
    if min(room, near_room) < int(near.sum()):
        with pytest.raises(ValueError, match=r"The list of (active|dilated) pixels has room for"):
            index.check()
    if near_room >= int(near.sum()):
        listed = torch.zeros_like(mask).flatten()
        listed[kept] = True
        wanted = masked_inverted_residual(x.double(), listed.view_as(mask), *dense)
        assert error(y.view(2, 5, 7, 8).permute(0, 3, 1, 2), wanted) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def check_rows_move_between_grid_and_list(mask_of: MaskOf, dtype: torch.dtype) -> None:
    mask = mask_of("blobs", 2, 5, 7)
    index, places = gpu.build_index(mask), mask.flatten().nonzero().flatten()
    grid = torch.randn(70, 20).to(dtype)
    out = torch.full((70, 20), float("nan"), dtype=dtype)
    gpu.gather(grid, index.active, index.counts[:1], out)
    assert torch.equal(out[: len(places)], grid[places])
    assert out[len(places) :].isnan().all()
    for activation in ("none", "relu", "relu6"):
        target = torch.full((70, 20), float("nan"), dtype=dtype)
        gpu.scatter_add(
            out, index.active, index.counts[:1], target, identity_rows=grid, activation=activation
        )
        summed = activate((grid[places].double() * 2), activation)
        assert torch.equal(target[places].double(), summed)
        assert target[~mask.flatten()].isnan().all()
    gpu.scatter_add(out, index.active, index.counts[:1], grid)
    assert torch.equal(grid[places].double(), out[: len(places)].double() * 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(20, 24), (32, 16)])
def check_pointwise_at_listed_pixels(
    mask_of: MaskOf, dtype: torch.dtype, inputs: int, outputs: int
) -> None:
    """One way reads rows in order and adds them to the grid; one gathers; one does both."""
    mask = mask_of("independent", 2, 5, 7)
    index, places = gpu.build_index(mask), mask.flatten().nonzero().flatten()
    x, weight, bias = grid_and_weight(dtype, 70, inputs, outputs)
    wanted = x[places].double() @ weight[:, :, 0, 0].double().t() + bias.double()
    out = torch.full((70, outputs), float("nan"), dtype=dtype)
    taps, count = gpu.pack_taps(weight), index.counts[:1]
    gpu.gather_gemm(x, taps, bias, "relu", out, rows=count, positions=index.active)
    assert error(out[: len(places)], wanted.relu()) < TOLERANCE[dtype]
    assert out[len(places) :].isnan().all()
    gathered, grid = x[places], torch.randn(70, outputs).to(dtype)
    for source, is_gathered in ((gathered, False), (x, True)):
        added = torch.full((70, outputs), float("nan"), dtype=dtype)
        gpu.gather_gemm_scatter(
            source, taps, bias, "relu", added, index.active,
            rows=count, identity_rows=grid, is_gathered=is_gathered,
        )  # fmt: skip
        total = (grid[places].double() + wanted).relu()
        assert error(added[places], total) < TOLERANCE[dtype]
        assert added[~mask.flatten()].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def check_depthwise_at_active_pixels(mask_of: MaskOf, dtype: torch.dtype, stride: int) -> None:
    mask = mask_of("mixed", 7, -(-5 // stride), -(-7 // stride))[4:]
    index, places = gpu.build_index(mask, stride, size=(5, 7)), mask.flatten().nonzero().flatten()
    x = pixels(3, 20, 5, 7).to(dtype)
    weight, bias = torch.randn(20, 3, 3).to(dtype) / 3, torch.randn(20)
    near = index.dilated[: int(index.counts[1])].long()
    rows = x.permute(0, 2, 3, 1).reshape(-1, 20)[near]
    out = torch.full((mask.numel(), 20), float("nan"), dtype=dtype)
    gpu.depthwise(
        rows, gpu.pack_taps(weight), bias, "relu6", out,
        positions=index.active, count=index.counts[:1], window=gpu.Window.of(index),
    )  # fmt: skip
    dense = F.conv2d(x.double(), weight[:, None].double(), bias.double(), stride, 1, 1, 20)
    wanted = F.relu6(dense).permute(0, 2, 3, 1).reshape(-1, 20)[places]
    assert error(out[: len(places)], wanted) < TOLERANCE[dtype]
    assert out[len(places) :].isnan().all()


def check_inverted_residual_on_every_family(mask_of: MaskOf, family: str) -> None:
    """Fused and not, batches of differing masks, results in buffers full of NaN."""
    x, mask = pixels(2, 12, 5, 4), mask_of(family, 2, 5, 4)
    weights, dense = packed(12, 24, 12, torch.float32)
    wanted = masked_inverted_residual(x.double(), mask, *dense)
    for is_fused in (True, False):
        out = torch.full_like(x, float("nan"))
        gpu.inverted_residual(x, mask, weights, out=out, is_fused=is_fused)
        assert error(out, wanted) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(32, 64, 48, 1), (8, 40, 12, 2)])
def check_inverted_residual_in_every_dtype(
    mask_of: MaskOf, dtype: torch.dtype, channels: tuple[int, int, int, int]
) -> None:
    inputs, expanded, outputs, stride = channels
    x, mask = (
        pixels(1, inputs, 7, 5).to(dtype),
        mask_of("blobs", 1, -(-7 // stride), -(-5 // stride)),
    )
    weights, dense = packed(inputs, expanded, outputs, dtype, stride)
    identity = pixels(1, outputs, *mask.shape[2:]).to(dtype)
    y = gpu.inverted_residual(x, mask, weights, identity=identity)
    wanted = masked_inverted_residual(
        x.double(), mask, *dense, stride=stride, identity=identity.double()
    )
    assert error(y, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def check_tiles_of_the_hourglass(mask_of: MaskOf, dtype: torch.dtype) -> None:
    """96 outputs are a tile of 64 and one of 32; 576 expanded ones are nine times these 64."""
    x, mask = pixels(1, 96, 3, 5).to(dtype), mask_of("independent", 1, 3, 5)
    weights, dense = packed(96, 64, 96, dtype)
    y = gpu.inverted_residual(x, mask, weights)
    assert error(y, masked_inverted_residual(x.double(), mask, *dense)) < TOLERANCE[dtype]


def check_bits_depend_on_nothing_but_the_image(
    mask_of: MaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in slices of a batch, in place, on other processors, with offsets of 64 bits."""
    x, mask = pixels(3, 12, 5, 4), mask_of("mixed", 7, 5, 4)[3:6]
    weights, dense = packed(12, 24, 12, torch.float32)
    whole = gpu.inverted_residual(x, mask, weights)
    assert torch.equal(gpu.inverted_residual(x, mask, weights, images=2), whole)
    assert torch.equal(gpu.inverted_residual(x[1:2], mask[1:2], weights), whole[1:2])
    monkeypatch.setattr(rows_module, "processors", lambda device: 7)
    assert torch.equal(gpu.inverted_residual(x, mask, weights), whole)
    monkeypatch.setattr(products_module, "_is_wide", lambda *tensors: True)
    assert torch.equal(gpu.inverted_residual(x, mask, weights), whole)
    everywhere = gpu.inverted_residual(x, None, weights)
    assert error(everywhere, masked_inverted_residual(x.double(), None, *dense)) < 1e-5
    other = pixels(3, 12, 5, 4)
    beside = gpu.inverted_residual(x, mask, weights, identity=other)
    again = x.clone()
    gpu.inverted_residual(again, mask, weights, identity=other, out=again)
    assert torch.equal(again, beside)
    assert gpu.inverted_residual(x, mask, weights, out=x) is x
    assert torch.equal(x, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def check_resnet_blocks(mask_of: MaskOf, dtype: torch.dtype, stride: int) -> None:
    """Inactive pixels are rectified too, in place as well."""
    mask = mask_of("blobs", 1, -(-5 // stride), -(-7 // stride))
    x, outputs = pixels(1, 16, 5, 7).to(dtype), 16 if stride == 1 else 24
    identity = pixels(1, outputs, *mask.shape[2:]).to(dtype)
    shapes = ((outputs, 16, 3, 3), (outputs, outputs, 3, 3))
    basic = convolutions(dtype, *shapes)
    narrow = convolutions(dtype, (12, 16, 1, 1), (12, 12, 3, 3), (outputs, 12, 1, 1))

    def run(layers: list[Tensor], beside: Tensor, out: Tensor) -> Tensor:
        ready = [gpu.pack_taps(part) if part.ndim == 4 else part for part in layers]
        if layers is basic:
            block = gpu.TritonBasicBlock(*ready, stride=stride)
            return gpu.basic_block(x, mask, block, identity=beside, out=out)
        narrow_block = gpu.TritonBottleneck(*ready, stride=stride)
        return gpu.bottleneck(x, mask, narrow_block, identity=beside, out=out)

    for layers, reference in ((basic, masked_basic_block), (narrow, masked_bottleneck)):
        out = run(layers, identity, torch.full_like(identity, float("nan")))
        wide = [part.double() for part in layers]
        wanted = reference(x.double(), mask, *wide, stride=stride, identity=identity.double())
        assert error(out, wanted) < TOLERANCE[dtype]
        if dtype == torch.float32:
            place = identity.clone()
            assert torch.equal(run(layers, place, place), out)


def check_an_empty_mask_leaves_the_identity(mask_of: MaskOf) -> None:
    x, mask = pixels(2, 16, 4, 4), mask_of("empty", 2, 4, 4)
    weights, _ = packed(16, 32, 16, torch.float32)
    assert torch.equal(gpu.inverted_residual(x, mask, weights), x)
    layers = convolutions(torch.float32, (16, 16, 3, 3), (16, 16, 3, 3))
    ready = [gpu.pack_taps(part) if part.ndim == 4 else part for part in layers]
    assert torch.equal(gpu.basic_block(x, mask, gpu.TritonBasicBlock(*ready)), x.relu())


def dilated(mask: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Where the gradient of a strided 3x3 sum over an input grid arrives."""
    grid = torch.zeros(len(mask), 1, height, width, requires_grad=True)
    y = F.conv2d(grid, torch.ones(1, 1, 3, 3), None, stride, 1)
    return torch.autograd.grad(y, grid, mask.float())[0] > 0


def pixels(batch: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + channels)
    x = torch.randn(batch, channels, height, width, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def grid_and_weight(
    dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(inputs))
    weight, bias = convolutions(dtype, (outputs, inputs, 1, 1))
    return x.to(dtype), weight, bias


def convolutions(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Weights that keep the size of activations, each with its float32 bias."""
    generator = torch.Generator().manual_seed(len(shapes))
    parts = []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator)
        parts.append((weight / weight[0].numel() ** 0.5).to(dtype))
        parts.append(torch.randn(shape[0], generator=generator) / 2)
    return parts


def packed(
    inputs: int, expanded: int, outputs: int, dtype: torch.dtype, stride: int = 1
) -> tuple[gpu.TritonInvertedResidual, list[Tensor]]:
    """Weights as the kernels take them, and in torch's layout and float64."""
    layers = convolutions(dtype, (expanded, inputs), (expanded, 3, 3), (outputs, expanded))
    ready = [gpu.pack_taps(part) if part.ndim > 1 else part for part in layers]
    weights = gpu.TritonInvertedResidual(*ready, stride=stride)
    return weights, [part.double() for part in layers]


def error(y: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm; NaN stays NaN and passes no test."""
    assert y.shape == wanted.shape
    return float((y.double() - wanted).norm() / wanted.norm())
