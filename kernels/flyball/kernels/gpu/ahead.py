"""Compiles the shipped kernels for a GPU that is not there, and reads what came out.

`python -m flyball.kernels.gpu.ahead` prints the resources of every shipped configuration.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flyball.kernels.gpu.configurations import (
    BLOCK,
    CHUNK,
    SHARED,
    Launch,
    depthwise_gemm_launch,
    depthwise_launch,
    gather_gemm_launch,
    rows_launch,
)

__all__ = ["SHAPES", "Machine", "Shipped", "compile_ahead", "shipped"]

# Channels in and out, and expanded channels, of the blocks whose kernels are checked.
SHAPES = ((96, 576), (32, 192))
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
LISTS = {
    "positions", "rank", "begin", "end", "dilated_begin", "count", "counts", "active", "dilated",
    "active_counts", "dilated_counts", "active_starts", "dilated_starts",
}  # fmt: skip
NUMBERS = {
    "height", "width", "out_height", "out_width", "capacity", "dilated_capacity", "total",
    "out_total", "batch", "blocks",
}  # fmt: skip
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "LDGSTS", "LDG.E.128", "STG.E.128", "LDL", "STL", "ATOMG")
# Parts of lists begin anywhere; everything else is an allocation, aligned to 16 bytes and more.
UNALIGNED = {"rank", "begin", "end", "dilated_begin", "count"}


class Shipped(NamedTuple):
    """One kernel as a launcher compiles it."""

    name: str
    kernel: Any
    launch: Launch
    dtype: torch.dtype
    capability: int


@dataclass(frozen=True)
class Machine:
    """What the compiler made of a kernel.

    Attributes:
        registers: of a thread.
        stack, local: bytes of a thread in slow memory; spilled registers are there.
        shared: bytes of shared memory of a program.
        instructions: how often each of INSTRUCTIONS stands in the machine code; suffixes of
            predicates and caches are left out.
    """

    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int]


def shipped(dtype: torch.dtype, channels: int, expanded: int, capability: int) -> Iterator[Shipped]:
    """Every kernel that a block of these channels runs, as its launcher compiles it.

    Args:
        dtype: of activations and weights.
        channels: in and out of the block.
        expanded: inside it.
        capability: of the GPU, times ten: 80 or 90.
    """
    from flyball.kernels.gpu import depthwise_kernels, gemm_kernels, index_kernels, row_kernels

    shape = f"{channels}/{expanded} {NAMES[dtype]} sm_{capability}"
    product = partial(gather_gemm_launch, dtype=dtype, capability=capability)
    fused = depthwise_gemm_launch(
        expanded, channels, dtype, activation="relu6", capability=capability
    )
    windowed = partial(product, taps=9, is_ranked=True, is_scattered=True, activation="relu")
    gemm = gemm_kernels.gather_gemm_kernel
    depthwise = depthwise_kernels.depthwise_kernel
    ways: list[tuple[str, Any, Launch]] = [
        ("expand", gemm, product(channels, expanded, is_gathered=True, activation="relu6")),
        ("conv3x3", gemm, windowed(channels, channels)),
        ("depthwise project scatter", depthwise_kernels.depthwise_gemm_kernel, fused),
        ("project scatter", gemm, product(expanded, channels, is_scattered=True)),
        ("depthwise", depthwise, depthwise_launch(expanded, activation="relu6")),
        ("gather", row_kernels.gather_rows, rows_launch(channels)),
        ("scatter", row_kernels.scatter_rows, rows_launch(channels, "none")),
    ]
    if dtype == torch.float32:
        index = Launch({"STRIDE": 2, "BLOCK": BLOCK}, columns=1, warps=4, stages=3, programs=1)
        ways.append(("count", index_kernels.count_blocks, index))
        lists = Launch({**index.constants, "CHUNK": CHUNK}, 1, warps=4, stages=3, programs=1)
        ways.append(("list", index_kernels.list_blocks, lists))
    for name, kernel, launch in ways:
        yield Shipped(f"{name} {shape}", kernel, launch, dtype, capability)


def compile_ahead(way: Shipped) -> Machine:
    """Compiles for a compute capability, without a GPU of that kind or any other.

    Raises:
        RuntimeError: the disassembler could not read the compiled kernel.
    """
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    names = list(way.kernel.arg_names)
    signature = {name: _type(name, way) for name in names}
    aligned = [
        (place,)
        for place, name in enumerate(names)
        if signature[name].startswith("*") and name not in UNALIGNED
    ]
    source = ASTSource(
        fn=way.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in way.launch.constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in aligned},
    )
    target = GPUTarget("cuda", way.capability, 32)
    compiled = triton.compile(source, target=target, options=way.launch.options)
    return _read(compiled.asm["cubin"], int(compiled.metadata.shared))


def _type(name: str, way: Shipped) -> str:
    if name in way.launch.constants:
        return "constexpr"
    if name in LISTS:
        return "*i32"
    if name in NUMBERS:
        return "i32"
    if name == "mask":
        return "*u8"
    return "*fp32" if name.endswith("bias") else f"*{NAMES[way.dtype]}"


def _read(cubin: bytes, shared: int) -> Machine:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        code = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    if len(used) < 3 or not code:
        raise RuntimeError("cuobjdump or nvdisasm could not read the compiled kernel.")
    counts = {name: len(re.findall(rf"\b{re.escape(name)}\b", code)) for name in INSTRUCTIONS}
    return Machine(used["REG"], used["STACK"], used["LOCAL"], shared, counts)


def _report() -> None:
    for dtype in NAMES:
        for channels, expanded in SHAPES:
            for capability in SHARED:
                for way in shipped(dtype, channels, expanded, capability):
                    print(f"{way.name}: {compile_ahead(way)}")


if __name__ == "__main__":
    _report()
