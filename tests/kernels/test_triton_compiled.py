"""The shipped Triton kernels, compiled for GPUs that are not here: what the machine code is."""

import sys
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton is installed on Linux alone")

from flyball.kernels.gpu import configurations
from flyball.kernels.gpu.ahead import Machine, Shipped, compile_ahead, shipped

REGISTERS = 64 * 1024
TENSOR = {80: "HMMA", 90: "HGMMA"}
HALF = (torch.float16, torch.bfloat16)
PRODUCTS = ("expand", "conv3x3", "depthwise project scatter", "project scatter")


def ways() -> Iterator[Shipped]:
    """Every kernel of 96/576 in bfloat16 for both GPUs; products of other dtypes and channels."""
    for capability in (80, 90):
        yield from shipped(torch.bfloat16, 96, 576, capability)
        for dtype, channels, expanded in ((torch.float16, 96, 576), (torch.bfloat16, 32, 192)):
            for way in shipped(dtype, channels, expanded, capability):
                is_fused = way.name.startswith("depthwise project")
                if is_fused or (capability == 90 and way.name.startswith(("expand", "conv3x3"))):
                    yield way
    for way in shipped(torch.float32, 96, 576, 90):
        if not way.name.startswith(("conv3x3", "project", "gather", "scatter")):
            yield way


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """So that what is read was compiled now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("way", [pytest.param(way, id=way.name) for way in ways()])
def test_a_shipped_kernel_compiles_to_what_it_is_meant_to(way: Shipped) -> None:
    machine = compile_ahead(way)
    assert machine.stack == machine.local == 0, f"registers are spilled: {machine}"
    assert machine.instructions["LDL"] == machine.instructions["STL"] == 0
    assert machine.instructions["ATOMG"] == 0, "the order of sums, so their bits, would vary"
    fits(way, machine)
    is_product = way.name.startswith(PRODUCTS)
    if is_product and way.dtype in HALF:
        assert machine.instructions[TENSOR[way.capability]] > 0, f"no tensor cores: {machine}"
    elif is_product:
        # TF32 would miss 1e-5.
        assert machine.instructions["HMMA"] == machine.instructions["HGMMA"] == 0
        assert machine.instructions["FFMA"] > 0
    if is_product:
        assert machine.instructions["LDGSTS"] > 0, f"loads do not run ahead: {machine}"
    if not way.name.startswith(("count", "list")):
        loads = machine.instructions["LDG.E.128"] + machine.instructions["LDGSTS"]
        assert loads > 0, f"loads are narrow: {machine}"
        assert machine.instructions["STG.E.128"] > 0, f"stores are narrow: {machine}"


def fits(way: Shipped, machine: Machine) -> None:
    """The programs that are started run side by side; the float32 ones may wait for each other."""
    # Registers are handed out in units of 8 a thread.
    each = 32 * way.launch.warps * (-(-machine.registers // 8) * 8)
    together = min(way.launch.programs, REGISTERS // each)
    assert machine.shared * together <= configurations.SHARED[way.capability]
    if way.dtype in HALF and way.name.startswith(PRODUCTS):
        assert together == way.launch.programs, f"{together} of {way.launch.programs} programs fit"


def test_the_interpreter_is_not_what_was_compiled() -> None:
    kernel = next(shipped(torch.bfloat16, 96, 576, 90)).kernel
    assert type(kernel).__name__ == "JITFunction", sys.modules["triton"]


@pytest.mark.parametrize(
    ("outputs", "tiles"),
    [(96, (64, 32)), (64, (64, 0)), (24, (32, 0)), (3, (16, 0)), (256, (256, 0))],
)
def test_columns_are_covered_by_at_most_two_tiles(outputs: int, tiles: tuple[int, int]) -> None:
    constants = configurations.depthwise_gemm_launch(576, outputs, torch.bfloat16).constants
    assert (constants["BN"], constants["REST"]) == tiles


def test_tiles_never_follow_from_the_batch() -> None:
    """Else the bits of an image would follow from its neighbours."""
    launch = configurations.gather_gemm_launch(96, 576, torch.bfloat16)
    assert launch.grid(10, 132) == (9,)
    assert launch.grid(10**6, 132) == (4 * 132,)
    assert launch.grid(0, 132) == (0,)
