"""The shipped tile sizes: what every kernel is compiled with for given channel counts and dtype.

Nothing is tuned at call time, and nothing here depends on the batch, so that the bits of an image
never depend on its neighbours. BM rows, BN columns, BK deep: one tile of a product.
"""

from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "ACTIVATIONS",
    "BLOCK",
    "CHUNK",
    "SHARED",
    "Launch",
    "activation_code",
    "depthwise_gemm_launch",
    "depthwise_launch",
    "gather_gemm_launch",
    "largest_output",
    "rows_launch",
]

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}
# Positions of one program of the bookkeeping, and block counts that one step of its sum reads.
BLOCK = 512
CHUNK = 1024
# Compute capability, times ten, of the GPUs that tile sizes are meant for; others take the nearest
# older one's. Bytes of shared memory of one of their multiprocessors.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled and spread over the device.

    Attributes:
        constants: what the kernel is compiled for, by the names of its constants.
        columns: tiles beside each other; with the tiles of BM rows they are the work.
        warps, stages: of one program.
        programs: that one multiprocessor takes at a time.
        registers: of a thread, at most; None for what the compiler likes.
    """

    constants: dict[str, Any]
    columns: int
    warps: int
    stages: int
    programs: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the constants."""
        # Said aloud because Triton's default changes between versions.
        told = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return told if self.registers is None else {**told, "maxnreg": self.registers}

    def grid(self, rows: int, processors: int) -> tuple[int]:
        """Programs that fill the processors, at most one a tile."""
        tiles = -(-rows // self.constants["BM"]) * self.columns
        return (min(tiles, self.programs * processors),)


def activation_code(name: str) -> int:
    """The number by which kernels know an activation.

    Raises:
        ValueError: there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"An activation is one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]


def gather_gemm_launch(
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    *,
    taps: int = 1,
    stride: int = 1,
    activation: str = "none",
    is_gathered: bool = False,
    is_ranked: bool = False,
    is_ranged: bool = False,
    is_scattered: bool = False,
    is_wide: bool = False,
    is_interpreted: bool = False,
    capability: int = 90,
) -> Launch:
    """For `gather_gemm_kernel`: any channel counts; multiples of 16 need no masks."""
    is_half = dtype != torch.float32
    columns = _tile(outputs, 128 if outputs % 128 == 0 and is_half else 64)
    depth = _tile(inputs, 64 if inputs % 64 == 0 and is_half else 32)
    rows = 128 if is_half else 64
    stages = 3
    is_hopper = capability >= 90
    programs = 2 if columns == 128 else 4 if is_hopper else 3
    shared = stages * depth * (rows + columns) * dtype.itemsize
    return Launch(
        {
            "CIN": inputs,
            "COUT": outputs,
            "TAPS": taps,
            "STRIDE": stride,
            "GATHERED": is_gathered,
            "RANKED": is_ranked,
            "RANGED": is_ranged,
            "SCATTER": is_scattered,
            "ACTIVATION": activation_code(activation),
            "WIDE": is_wide,
            "UPCAST": is_interpreted,
            "BM": rows,
            "BN": columns,
            "BK": depth,
        },
        columns=-(-outputs // columns),
        warps=8 if columns == 128 else 4,
        stages=stages,
        programs=min(programs, SHARED[90 if is_hopper else 80] // shared),
    )


def depthwise_launch(
    expanded: int,
    *,
    stride: int = 1,
    activation: str = "none",
    is_wide: bool = False,
) -> Launch:
    """For `depthwise_kernel`."""
    depth = _tile(expanded, 64)
    return Launch(
        {
            "E": expanded,
            "STRIDE": stride,
            "ACTIVATION": activation_code(activation),
            "WIDE": is_wide,
            "BM": 32,
            "BK": depth,
            "AHEAD": 1,
        },
        columns=-(-expanded // depth),
        warps=4,
        stages=1,
        programs=8,
    )


def depthwise_gemm_launch(
    expanded: int,
    outputs: int,
    dtype: torch.dtype,
    *,
    stride: int = 1,
    activation: str = "none",
    is_ranged: bool = False,
    is_wide: bool = False,
    is_interpreted: bool = False,
    capability: int = 90,
) -> Launch:
    """For `depthwise_gemm_kernel`: at most `largest_output` channels.

    Raises:
        ValueError: there are more, whose sums the registers of a program cannot hold.
    """
    if not 1 <= outputs <= largest_output(dtype):
        raise ValueError(
            f"The fused depthwise product makes 1 to {largest_output(dtype)} output channels of "
            f"{dtype}; got {outputs}. Run depthwise and gather_gemm_scatter one after the other."
        )
    is_half = dtype != torch.float32
    columns, rest = _split(outputs)
    covered = columns + rest
    # Three programs of 4 warps share the 64 K registers of a multiprocessor; without Hopper's
    # products, which read an operand from shared memory, that many registers are not enough.
    are_three = covered <= 96 and is_half and capability >= 90
    return Launch(
        {
            "E": expanded,
            "O": outputs,
            "STRIDE": stride,
            "ACTIVATION": activation_code(activation),
            "RANGED": is_ranged,
            "WIDE": is_wide,
            "UPCAST": is_interpreted,
            "BM": 64 if is_half else 32,
            "BN": columns,
            "REST": rest,
            "BK": _tile(expanded, 32),
            "AHEAD": 2,
        },
        columns=1,
        warps=4 if covered <= 128 else 8,
        stages=2,
        programs=3 if are_three else 2,
        registers=168 if are_three else None,
    )


def largest_output(dtype: torch.dtype) -> int:
    """Columns whose sums fit into the registers beside the depthwise result."""
    return 96 if dtype == torch.float32 else 256


def rows_launch(channels: int, activation: str | None = None) -> Launch:
    """For `gather_rows` and, with an activation, `scatter_rows`."""
    columns = _tile(channels, 64)
    constants: dict[str, Any] = {"CHANNELS": channels, "BM": 32, "BN": columns}
    if activation is not None:
        constants["ACTIVATION"] = activation_code(activation)
    return Launch(constants, columns=-(-channels // columns), warps=4, stages=1, programs=8)


def _tile(size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides a size, or covers it with masks."""
    for tile in (128, 64, 32, 16):
        if tile <= largest and size % tile == 0:
            return tile
    return min(largest, 64, max(16, 1 << (size - 1).bit_length()))


def _split(outputs: int) -> tuple[int, int]:
    """Powers of two that cover the outputs together: 96 = 64 + 32, 64 = 64 + 0."""
    first = max(16, 1 << (outputs.bit_length() - 1))
    if outputs <= first:
        return first, 0
    rest = max(16, 1 << (outputs - first - 1).bit_length())
    return (first, rest) if rest < first else (2 * first, 0)
