"""What is chosen and why; what packed blocks refuse, before any work."""

from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flyball.kernels import (
    PackedBlock,
    dispatch,
    explain,
    forget,
    pack_basic_block,
    pack_bottleneck,
    pack_inverted_residual,
)

CPU = torch.device("cpu")
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def parts(inputs: int = 4, expanded: int = 6, outputs: int = 4) -> Parts:
    """Weights of an inverted residual."""
    return (
        torch.ones(expanded, inputs),
        torch.zeros(expanded),
        torch.ones(expanded, 3, 3),
        torch.zeros(expanded),
        torch.ones(outputs, expanded),
        torch.zeros(outputs),
    )


def block(**options: Any) -> PackedBlock:
    return pack_inverted_residual(*parts(), **options)


def stand_in(can: bool, why: str = "because") -> Callable[[], Any]:
    return lambda: SimpleNamespace(available=lambda *_: (can, why))


def test_the_table_covers_every_size_in_order() -> None:
    for blocks in dispatch.BREAK_EVEN.values():
        assert set(blocks) == {"inverted_residual", "basic_block", "bottleneck"}
        for ranges in blocks.values():
            limits = [limit for limit, _ in ranges]
            assert limits == sorted(set(limits))
            assert limits[-1] == inf
            assert all(share >= 0 for _, share in ranges)


def test_break_even_is_read_by_range(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"torch": {"bottleneck": ((64, 0.1), (256, 0.4), (inf, 0.7))}}
    monkeypatch.setattr(dispatch, "BREAK_EVEN", table)
    found = [dispatch.break_even("torch", "bottleneck", n) for n in (1, 64, 65, 256, 257)]
    assert found == [0.1, 0.1, 0.4, 0.4, 0.7]
    assert dispatch.break_even("torch", "another", 5) == inf
    assert dispatch.break_even("dense", "bottleneck", 5) == inf


def test_the_compiled_operators_come_first_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "cpu_module", stand_in(True))
    assert dispatch.choose("auto", torch.float32, CPU).name == "cpu"
    assert dispatch.choose("cpu", torch.float32, CPU).name == "cpu"
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        choice = dispatch.choose("auto", dtype, CPU)
        assert choice.name == "torch"
        assert "take float32" in choice.why


@pytest.mark.parametrize("is_installed", [True, False])
def test_without_a_compiler_torch_runs_and_says_so(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(False, "no C++ compiler was found") if is_installed else lambda: None
    why = "no C\\+\\+ compiler was found" if is_installed else "not installed"
    monkeypatch.setattr(dispatch, "cpu_module", module)
    assert dispatch.choose("auto", torch.float32, CPU).name == "torch"
    with pytest.raises(ValueError, match=f"'cpu' was asked for by name and cannot run.*{why}"):
        block(implementation="cpu")
    x = torch.ones(1, 4, 20, 20).contiguous(memory_format=torch.channels_last)
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    forget()
    packed = block()
    packed(x, mask)
    packed(x, ~mask)
    assert [ran.implementation for ran in explain()] == ["torch", "dense"]
    for ran in explain():
        assert ("no C++ compiler" in ran.why) or not is_installed
    assert "dense is faster above a share" in explain()[1].why


def test_cuda_takes_triton_and_without_it_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(dispatch, "gpu_module", stand_in(True))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert dispatch.choose("auto", dtype, cuda).name == "triton"
    assert dispatch.choose("auto", torch.float64, cuda).name == "dense"
    monkeypatch.setattr(dispatch, "gpu_module", stand_in(False, "the GPU is too old"))
    choice = dispatch.choose("auto", torch.float32, cuda)
    assert choice.name == "dense"
    assert "the GPU is too old" in choice.why
    with pytest.raises(ValueError, match="the GPU is too old"):
        dispatch.choose("triton", torch.float32, cuda)
    with pytest.raises(ValueError, match="C\\+\\+ operators run on CPU"):
        dispatch.choose("cpu", torch.float32, cuda)


def test_equal_calls_are_one_line_that_counts() -> None:
    forget()
    assert explain() == []
    packed, x = block(implementation="torch"), torch.ones(2, 4, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    for _ in range(3):
        packed(x, mask)
    packed(x[:1], mask[:1])
    lines = explain()
    assert [(ran.shape, ran.calls) for ran in lines] == [((2, 4, 3, 3), 3), ((1, 4, 3, 3), 1)]
    assert lines[0].operator == "inverted_residual"
    assert (lines[0].dtype, lines[0].device) == (torch.float32, "cpu")
    assert lines[0].why == "asked for by name"
    forget()
    assert explain() == []


@pytest.mark.parametrize("name", ["CPU", "numba", ""])
def test_unknown_implementations_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="one of auto, cpu, triton, torch, dense"):
        block(implementation=name)


def test_an_implementation_that_cannot_run_is_refused_by_name() -> None:
    double = [part.double() for part in parts()]
    with pytest.raises(ValueError, match=r"take float32, not torch\.float64"):
        pack_inverted_residual(*double, implementation="cpu")
    with pytest.raises(ValueError, match="'triton' was asked for by name and cannot run"):
        pack_inverted_residual(*double, implementation="triton")


X = torch.ones(2, 4, 5, 6)
MASK = torch.ones(2, 1, 5, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (X, MASK.float(), r"got torch.float32: threshold .* hard_mask\(soft\)"),
        (X, MASK.to(torch.uint8), r"got torch.uint8: .*mask.bool\(\)"),
        (X, MASK[:, :, :4], r"\(2, 1, 5, 6\) or \(2, 5, 6\); got \(2, 1, 4, 6\)"),
        (X, MASK[:1], r"got \(1, 1, 5, 6\)"),
        (X, MASK.expand(2, 4, 5, 6), "one value for each output pixel"),
        (X, MASK.to("meta"), "the mask is on meta"),
        (X[0], MASK, r"best in channels_last memory; got 3 dimensions.*x\[None\]"),
        (X[:, :3], MASK, "take 4 channels; the activations .* have 3"),
        (X.double(), MASK, "weights are torch.float32; got torch.float64"),
        (X.to("meta"), MASK, "weights are on cpu; got meta"),
        (X[:0], MASK[:0], "at least one image and pixel"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Tensor, mask: Tensor, message: str) -> None:
    for implementation in ("torch", "dense", "auto"):
        packed = block(implementation=implementation)
        forget()
        with pytest.raises(ValueError, match=message):
            packed(x, mask)
        assert explain() == [], "nothing ran"


def test_identities_and_outputs_that_do_not_fit_are_refused() -> None:
    packed = block(implementation="torch")
    for name in ("identity", "out"):
        for value, message in (
            (torch.ones(2, 4, 5, 5), r"the shape here is \(2, 4, 5, 6\); got \(2, 4, 5, 5\)"),
            (X.half(), "weights are torch.float32; got torch.float16"),
            (X.to("meta"), "weights are on cpu; got meta"),
        ):
            with pytest.raises(ValueError, match=f"{name}: .*{message}"):
                packed(X, MASK, **{name: value})
    for stride, outputs in ((2, 4), (1, 7)):
        changed = pack_inverted_residual(*parts(outputs=outputs), stride=stride)
        mask = torch.ones(2, 5 // stride + stride // 2, 6 // stride, dtype=torch.bool)
        with pytest.raises(ValueError, match="Give identity=, the shortcut's output"):
            changed(X, mask)


def test_an_output_within_other_memory_is_refused() -> None:
    packed = block(implementation="torch")
    room = torch.zeros(3, 5, 6, 4).permute(0, 3, 1, 2)
    with pytest.raises(ValueError, match="`out` is x itself or memory of its own"):
        packed(room[:2], MASK, out=room[1:])
    with pytest.raises(ValueError, match="shares a part of the identity's memory"):
        packed(X, MASK, identity=room[:2], out=room[1:])
    assert bool((room == 0).all())
    apart = torch.zeros(4, 5, 6, 4).permute(0, 3, 1, 2)
    packed(apart[:2], MASK, out=apart[2:])
    assert bool((apart[:2] == 0).all())


def test_weights_that_do_not_fit_are_refused() -> None:
    expand, expand_bias, middle, middle_bias, project, project_bias = parts()
    with pytest.raises(ValueError, match=r"Drop the axes of size 1"):
        pack_inverted_residual(
            expand[:, :, None, None], expand_bias, middle, middle_bias, project, project_bias
        )
    with pytest.raises(ValueError, match="expand makes 6 channels, depthwise takes 5"):
        pack_inverted_residual(
            expand, expand_bias, middle[:5], middle_bias[:5], project, project_bias
        )
    with pytest.raises(ValueError, match=r"bias of project is \(4,\) on cpu"):
        pack_inverted_residual(expand, expand_bias, middle, middle_bias, project, expand_bias)
    with pytest.raises(ValueError, match="of one dtype on one device"):
        pack_inverted_residual(
            expand, expand_bias, middle.double(), middle_bias, project, project_bias
        )
    with pytest.raises(ValueError, match="of one dtype on one device"):
        pack_inverted_residual(
            expand, expand_bias, middle.to("meta"), middle_bias, project, project_bias
        )
    with pytest.raises(ValueError, match="floating-point numbers"):
        pack_inverted_residual(*(part.long() for part in parts()))
    with pytest.raises(ValueError, match="stride of a packed block is 1 or 2; got 3"):
        block(stride=3)
    with pytest.raises(ValueError, match="An activation is one of none, relu, relu6"):
        block(activation="swish")
    conv, bias = torch.ones(4, 4, 3, 3), torch.zeros(4)
    with pytest.raises(ValueError, match="basic block is packed from"):
        pack_basic_block(conv[:, :, :1, :1], bias, conv, bias)
    with pytest.raises(ValueError, match="bottleneck is packed from"):
        pack_bottleneck(conv, bias, conv, bias, conv, bias)
    with pytest.raises(ValueError, match="conv1 makes 4 channels, conv2 takes 3"):
        pack_basic_block(conv, bias, conv[:, :3], bias)
