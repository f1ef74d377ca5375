"""Checks every Triton kernel on this machine's GPU, times the inverted residual block beside dense
ones, and writes one result file; with --smoke, checks alone, on the CPU through the interpreter.

    python kernels/benchmarks/gpu_check.py                 # all, 5 to 10 minutes on one GPU
    python kernels/benchmarks/gpu_check.py --smoke         # no GPU: correctness at small sizes

Needs torch, triton and numpy. The result is --out, else gpu_check.json in $OUT or here. It exits
with 1 if a check failed. Errors are norms of differences from float64 over norms; times are
microseconds of one block, medians of replayed CUDA graphs that take turns.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The package beside this file, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flyball.kernels import gpu
from flyball.kernels.gpu import verify

CHANNELS, EXPANDED = 96, 576
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.125)
NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
SHAPES = ((3, 20, 50, 13, 17), (2, CHANNELS, EXPANDED, 64, 64), (2, 32, 192, 32, 32))
# Inputs in turn, so that a block does not find its own result as its input.
INPUTS = 4
Row = dict[str, Any]
Pairs = list[tuple[Tensor, Tensor]]
Graphs = dict[str, torch.cuda.CUDAGraph]


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for and writes the result; 0 if every check passed."""
    parser = argparse.ArgumentParser(description="Checks and times the Triton kernels.")
    parser.add_argument("--smoke", action="store_true", help="correctness on the CPU, no timing")
    parser.add_argument("--tiny", action="store_true", help="the fewest checks of every kernel")
    parser.add_argument("--quick", action="store_true", help="time bfloat16 at 64 pixels alone")
    parser.add_argument("--out", type=Path, help="the result file")
    asked = parser.parse_args(arguments)
    if asked.smoke and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"
        if "triton" in sys.modules:
            # Too late: Triton looks for the variable once, when it is first imported.
            again = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
            return subprocess.run(again, check=False).returncode
    device = torch.device("cpu" if asked.smoke else "cuda")
    runs, why = gpu.available(device)
    if not runs:
        parser.error(f"{why}; --smoke checks the kernels without a GPU")
    out = asked.out or Path(os.environ.get("OUT", "."), "gpu_check.json")
    torch.manual_seed(0)
    with torch.no_grad():
        checks = list(checked(device, asked.tiny))
        failed = [check for check in checks if not check["passed"]]
        result: Row = {**described(device), "checks": checks, "failed": len(failed)}
        write(out, result)  # what is known so far, should the timing break
        if asked.smoke:
            result["note"] = "no GPU: GPU timing is open"
        else:
            result["ceilings"] = ceilings(device)
            result["timings"] = []
            for row in timings(device, result["ceilings"], asked.quick):
                result["timings"].append(row)
                print(line(row), flush=True)
                write(out, result)
    write(out, result)
    for check in failed:
        print("FAILED", check)
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed; result in {out}")
    return 1 if failed else 0


def checked(device: torch.device, is_tiny: bool) -> Iterator[Row]:
    """Every check of the kernels; few and small ones in the interpreter."""
    if is_tiny:
        yield from verify.correctness(device, [(1, 8, 20, 3, 5)], ["independent"])
    elif device.type == "cpu":
        yield from verify.correctness(device, [(2, 8, 20, 5, 7)], verify.FAMILIES)
        yield from verify.repeated_bits(device, (2, 8, 20, 5, 7), torch.float32)
    else:
        yield from verify.correctness(device, SHAPES, verify.FAMILIES)
        for dtype in NAMES:
            yield from verify.repeated_bits(device, SHAPES[1], dtype)


def described(device: torch.device) -> Row:
    """Device, versions and date."""
    from importlib.metadata import version

    row: Row = {"device": "cpu (smoke)", "capability": None, "processors": None}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        row["device"] = about.name
        row["capability"] = f"{about.major}.{about.minor}"
        row["processors"] = about.multi_processor_count
        # torch's default: the float32 dense block multiplies in TF32, ours does not.
        row["dense float32 is TF32"] = torch.backends.cudnn.allow_tf32
    versions = {"torch": torch.__version__, "triton": version("triton"), "cuda": torch.version.cuda}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**row, "python": platform.python_version(), **versions, "date": date}


def write(path: Path, result: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".partial")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


class Dense(nn.Module):
    """The block at every pixel, as torch has it, batch normalisation folded."""

    def __init__(self, parts: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        w1, b1, wd, bd, w2, b2 = (part.to(dtype) for part in parts)
        layers = ((w1[:, :, None, None], b1), (wd[:, None], bd), (w2[:, :, None, None], b2))
        self.weights = nn.ParameterList(weight for weight, _ in layers)
        self.biases = nn.ParameterList(bias for _, bias in layers)

    def forward(self, x: Tensor) -> Tensor:
        w1, wd, w2 = self.weights
        b1, bd, b2 = self.biases
        y = F.relu6(F.conv2d(x, w1, b1))
        y = F.relu6(F.conv2d(y, wd, bd, padding=1, groups=EXPANDED))
        return x + F.conv2d(y, w2, b2)


def timings(device: torch.device, ceiling: Row, is_quick: bool) -> Iterator[Row]:
    """One row for each size, batch, dtype and active ratio."""
    for size in (64,) if is_quick else (64, 32, 16):
        for batch in (1, 8, 32):
            for dtype in (torch.bfloat16,) if is_quick else tuple(NAMES):
                yield from of_shape(device, ceiling, size, batch, dtype)


def of_shape(
    device: torch.device, ceiling: Row, size: int, batch: int, dtype: torch.dtype
) -> Iterator[Row]:
    """A block in place at every active ratio, beside the dense ones."""
    shapes = ((EXPANDED, CHANNELS), (EXPANDED, 3, 3), (CHANNELS, EXPANDED))
    parts = verify.example_weights(dtype, device, *shapes)
    # Small, so that activations stay finite while a block runs in place thousands of times.
    parts[4], parts[5] = parts[4] * 1e-4, parts[5] * 1e-4
    block = gpu.TritonInvertedResidual(*verify.packed(parts))
    inputs = [
        verify.example_pixels(batch, CHANNELS, size, size, dtype, device) for _ in range(INPUTS)
    ]
    dense = Dense(parts, dtype)
    graphs: Graphs = {"dense eager": captured(partial(each, dense, inputs))}
    notes = {}
    if dtype == torch.bfloat16:
        try:
            torch.compiler.reset()
            graphs["dense compiled"] = captured(partial(each, torch.compile(dense), inputs))
        except Exception as problem:  # a baseline alone: the result says what was wrong
            notes["dense compiled"] = f"{type(problem).__name__}: {str(problem)[:200]}"
    graphs["own dense"] = captured(partial(in_place, [(x, None) for x in inputs], block))
    base = measured(graphs)
    graphs = {}
    unit = nn.Conv2d(CHANNELS, 1, 1).to(device, dtype)
    for ratio in RATIOS:
        pairs = [
            (x, blobs(size, batch, ratio, place * batch).to(device))
            for place, x in enumerate(inputs)
        ]
        graphs = variants(pairs, block, batch) | split(pairs, block, unit)
        times = base | measured(graphs)
        active, near = gpu.build_index(pairs[0][1]).counts.tolist()
        pixels = batch * size * size
        macs = CHANNELS * EXPANDED * near + (9 + CHANNELS) * EXPANDED * active
        floor = floors(active, near, dtype, ceiling)
        yield {
            "pixels": size,
            "batch": batch,
            "dtype": NAMES[dtype],
            "ratio": ratio,
            "active_share": active / pixels,
            "dilated_share": near / pixels,
            "mac_ratio": macs / ((2 * CHANNELS + 9) * EXPANDED * pixels),
            "microseconds": {name: round(time, 2) for name, time in times.items()},
            "floor": floor,
            "over_floor": round(times["sparse"] / max(floor.values()), 2),
            "speed_up": {
                name: round(time / times["sparse"], 3) for name, time in times.items()
                if "dense" in name
            },
            "notes": notes,
        }  # fmt: skip


def blobs(size: int, batch: int, ratio: float, seed: int) -> Tensor:
    masks = [verify.example_mask("blobs", size, size, seed + i, ratio) for i in range(batch)]
    return torch.stack(masks)[:, None]


def each(run: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> None:
    for x in inputs:
        run(x)


def in_place(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
    block: gpu.TritonInvertedResidual,
    images: int | None = None,
    is_fused: bool = True,
) -> None:
    for x, mask in pairs:
        gpu.inverted_residual(x, mask, block, out=x, images=images, is_fused=is_fused)


def variants(pairs: Pairs, block: gpu.TritonInvertedResidual, batch: int) -> Graphs:
    """The whole block, mask to sum: as shipped, and with other slices of the batch."""
    graphs = {
        "sparse": captured(partial(in_place, pairs, block)),
        "sparse, depthwise apart": captured(partial(in_place, pairs, block, is_fused=False)),
    }
    for images in (4, 8, 16, 32):
        if images <= batch:
            run = partial(in_place, pairs, block, images)
            graphs[f"sparse, {images} images a slice"] = captured(run)
    return graphs


def split(pairs: Pairs, block: gpu.TritonInvertedResidual, unit: nn.Module) -> Graphs:
    """As the paper's Table 1 splits the time, every operator alone; and the two fused kernels."""
    masks, indices = [mask for _, mask in pairs], [gpu.build_index(mask) for _, mask in pairs]
    grids = [x.permute(0, 2, 3, 1).reshape(-1, CHANNELS) for x, _ in pairs]
    rows = torch.randn_like(grids[0])
    small, hidden = rows * 1e-4, rows.repeat(1, EXPANDED // CHANNELS)
    between, out = hidden.clone(), rows.clone()
    first = (block.expand, block.expand_bias, "relu6")
    second = (block.depthwise, block.depthwise_bias, "relu6")
    third = (block.project, block.project_bias)
    both = list(zip(grids, indices, strict=True))

    def mask_unit() -> None:
        for x, _ in pairs:
            unit(x).ge_(0)

    def bookkeeping() -> None:
        for mask in masks:
            gpu.build_index(mask)

    def gather() -> None:
        for grid, index in both:
            gpu.gather(grid, index.dilated, index.counts[1:], rows)

    def residual() -> None:
        for _, index in both:
            count, window = index.counts[:1], gpu.Window.of(index)
            gpu.gather_gemm(rows, *first, hidden, rows=index.counts[1:])
            at = index.active
            gpu.depthwise(hidden, *second, between, positions=at, count=count, window=window)
            gpu.gather_gemm(between, *third, "none", out, rows=count)

    def scatter() -> None:
        for grid, index in both:
            gpu.scatter_add(small, index.active, index.counts[:1], grid)

    def expand() -> None:
        for grid, index in both:
            near = index.dilated
            gpu.gather_gemm(grid, *first, hidden, rows=index.counts[1:], positions=near)

    def project() -> None:
        for grid, index in both:
            gpu.depthwise_gemm_scatter(
                hidden,
                *second,
                *third,
                grid,
                positions=index.active,
                listed=index.counts[:1],
                window=gpu.Window.of(index),
            )

    return {
        "part: mask": captured(mask_unit),
        "part: bookkeeping": captured(bookkeeping),
        "part: gather": captured(gather),
        "part: residual function": captured(residual),
        "part: scatter": captured(scatter),
        "fused part: gather and expand": captured(expand),
        "fused part: depthwise, project and scatter": captured(project),
    }


def floors(active: int, near: int, dtype: torch.dtype, ceiling: Row) -> dict[str, float]:
    """Microseconds that no version beats: of the tensor cores' products, and of the bytes moved."""
    products = 2 * CHANNELS * EXPANDED * (near + active)
    moved = CHANNELS * (near + 2 * active) + EXPANDED * (2 * CHANNELS + 9)
    return {
        "products": products / ceiling[f"{NAMES[dtype]} operations"] * 1e6,
        "bytes": moved * dtype.itemsize / ceiling["bytes"] * 1e6,
    }


def ceilings(device: torch.device) -> Row:
    """What this card reaches in a second: operations of a large product, bytes of a copy."""
    found: Row = {}
    for dtype in NAMES:
        size = 4096 if dtype == torch.float32 else 8192
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        time = measured({"": captured(partial(torch.matmul, a, b))}, calls=1)[""]
        found[f"{NAMES[dtype]} operations"] = 2 * size**3 / time * 1e6
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    time = measured({"": captured(partial(target.copy_, source))}, calls=1)[""]
    found["bytes"] = 2 * source.numel() * source.element_size() / time * 1e6
    return found


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what `run` launches; compiled and warmed up before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def measured(graphs: Graphs, calls: int = INPUTS, rounds: int = 25) -> dict[str, float]:
    """Median microseconds of one of the `calls` in each graph; graphs take turns."""
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in graphs.values():
        graph.replay()
    for _ in range(rounds):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(4):
                graph.replay()
            end.record()
            end.synchronize()
            taken[name].append(start.elapsed_time(end) * 1e3 / (4 * calls))
    return {name: statistics.median(values) for name, values in taken.items()}


def line(row: Row) -> str:
    """One row of the printed table."""
    times = row["microseconds"]
    compiled = f"{times['dense compiled']:8.1f}" if "dense compiled" in times else " " * 8
    return (
        f"{row['pixels']:3d} px  batch {row['batch']:2d}  {row['dtype']:8s}  r {row['ratio']:5.3f}"
        f"  MAC {row['mac_ratio']:.2f}  eager {times['dense eager']:8.1f}  compiled {compiled}"
        f"  own dense {times['own dense']:8.1f}  sparse {times['sparse']:8.1f} us"
        f"  = {row['over_floor']:.1f} x floor"
    )


if __name__ == "__main__":
    sys.exit(main())
