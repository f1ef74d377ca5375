"""Which implementation runs, why, and a record of what ran.

"cpu" are the C++ operators, "triton" the CUDA kernels, "torch" sparse with plain operators,
"dense" every pixel and then the mask. Choices follow from device, dtype, size and the shipped
table BREAK_EVEN alone, so equal calls take equal ways; nothing is timed here.
"""

import threading
from dataclasses import dataclass
from importlib import import_module
from math import inf
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = [
    "BREAK_EVEN",
    "Choice",
    "Line",
    "Name",
    "Ran",
    "Requested",
    "break_even",
    "choose",
    "cpu_module",
    "explain",
    "forget",
    "gpu_module",
    "note",
    "note_again",
]

Name = Literal["cpu", "triton", "torch", "dense"]
Requested = Literal["auto", "cpu", "triton", "torch", "dense"]

# For each implementation and block: (input pixels of an image, up to and including; share of the
# dense multiply-accumulates above which dense runs). Measured on one core, blob masks.
BREAK_EVEN: dict[Name, dict[str, tuple[tuple[float, float], ...]]] = {
    "cpu": {
        "inverted_residual": ((inf, inf),),
        "basic_block": ((inf, inf),),
        "bottleneck": ((inf, inf),),
    },
    "triton": {
        "inverted_residual": ((inf, inf),),
        "basic_block": ((inf, inf),),
        "bottleneck": ((inf, inf),),
    },
    "torch": {
        "inverted_residual": ((144, 0.0), (256, 0.1), (1024, 0.25), (inf, 0.45)),
        "basic_block": ((1024, 0.0), (inf, 0.2)),
        "bottleneck": ((256, 0.5), (inf, 0.6)),
    },
}


class Choice(NamedTuple):
    """What is to run, and a reason for people."""

    name: Name
    why: str


@dataclass(frozen=True)
class Ran:
    """One line of `explain`: an operator that ran, how often, and the reason.

    Attributes:
        operator: its name.
        shape: of its first input.
        dtype, device: of its first input.
        implementation: what ran.
        why: the reason, and what had to be converted first.
        calls: how often since the record was last emptied.
    """

    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    implementation: Name
    why: str
    calls: int


TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Line = tuple[str, tuple[int, ...], torch.dtype, str, Name, str]
_calls: dict[Line, int] = {}
_lock = threading.Lock()


def explain() -> list[Ran]:
    """What ran in this process since `forget`, in the order of first calls."""
    with _lock:
        return [Ran(*line, calls) for line, calls in _calls.items()]


def forget() -> None:
    """Empties the record that `explain` reads."""
    with _lock:
        _calls.clear()


def note(operator: str, x: Tensor, choice: Choice, *notes: str) -> Line:
    """Records one call of an operator on x; gives its line, for `note_again`."""
    why = "; ".join((choice.why, *notes))
    line = (operator, tuple(x.shape), x.dtype, str(x.device), choice.name, why)
    note_again(line)
    return line


def note_again(line: Line) -> None:
    """Records one more call of a line."""
    with _lock:
        _calls[line] = _calls.get(line, 0) + 1


def choose(requested: str, dtype: torch.dtype, device: torch.device) -> Choice:
    """The implementation for tensors of this kind, before the mask is looked at.

    Raises:
        ValueError: the name is unknown, or names an implementation that cannot run here.
    """
    if requested not in get_args(Requested):
        names = ", ".join(get_args(Requested))
        raise ValueError(f"An implementation is one of {names}; got {requested!r}.")
    if requested == "auto":
        return _automatic(dtype, device)
    if requested == "torch" or requested == "dense":
        return Choice("torch" if requested == "torch" else "dense", "asked for by name")
    can, why = _can_run_cpp(dtype, device) if requested == "cpu" else _can_run_triton(dtype, device)
    if not can:
        raise ValueError(
            f"The implementation {requested!r} was asked for by name and cannot run: {why}. Leave "
            'the choice to implementation="auto", or take "torch" or "dense".'
        )
    return Choice("cpu" if requested == "cpu" else "triton", "asked for by name")


def break_even(name: Name, operator: str, pixels: int) -> float:
    """Share of the dense multiply-accumulates above which dense is faster; inf: never.

    Args:
        name: a sparse implementation.
        operator: the block's name.
        pixels: of one image's input, H * W.
    """
    for most, share in BREAK_EVEN.get(name, {}).get(operator, ()):
        if pixels <= most:
            return share
    return inf


def cpu_module() -> ModuleType | None:
    """The C++ operators, None where they are not installed."""
    return _module("flyball.kernels.cpu")


def gpu_module() -> ModuleType | None:
    """The Triton kernels, None where they or Triton are not installed."""
    return _module("flyball.kernels.gpu")


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


def _automatic(dtype: torch.dtype, device: torch.device) -> Choice:
    if device.type == "cpu":
        can, why = _can_run_cpp(dtype, device)
        return Choice("cpu", "float32 on CPU") if can else Choice("torch", why)
    can, why = _can_run_triton(dtype, device)
    if can:
        return Choice("triton", f"on {device.type}")
    return Choice("dense", f"{why}, and lists of pixels wait for the device")


def _can_run_cpp(dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    if device.type != "cpu":
        return False, f"the C++ operators run on CPU, the tensors are on {device}"
    if dtype != torch.float32:
        return False, f"the C++ operators take float32, not {dtype}"
    module = cpu_module()
    if module is None:
        return False, "the C++ operators are not installed"
    can, why = module.available()
    return bool(can), str(why)


def _can_run_triton(dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    module = gpu_module()
    if dtype not in TRITON_DTYPES:
        return False, f"the Triton kernels take float32, float16 and bfloat16, not {dtype}"
    if module is None:
        return False, "Triton is not installed"
    can, why = module.available(device)
    return bool(can), str(why)
