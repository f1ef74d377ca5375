"""What one competitor of `flyball bench dynconv` took, and that all of them compute the same.

B batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from flyball import kernels

__all__ = [
    "STEPS",
    "Call",
    "Measurement",
    "Note",
    "Shares",
    "Split",
    "check_agreement",
    "compiled",
    "described",
    "of_one",
    "ran",
]

STEPS = ("mask", "bookkeeping", "gather", "residual function", "scatter")
"""The columns of DynConv Table 1."""

Call = Callable[[], Tensor]
Note = Callable[[int, str], None]
Part = Literal["block", "network", "trained"]
Kind = Literal["dense", "own", "sparse"]


class Shares(NamedTuple):
    """What masks leave of the dense work.

    Attributes:
        asked: active ratio of a block, share of the conditional MACs of a network.
        active, dilated: shares of the pixels that are so; of a network over all its blocks. None:
            not counted.
        macs: executed over dense.
    """

    asked: float
    active: float
    dilated: float | None
    macs: float


@dataclass(frozen=True)
class Measurement:
    """What one competitor took.

    Attributes:
        part: what was run.
        side: of the input in pixels.
        batch: B.
        kind: "dense" (torch), "own" (ours without masks) or "sparse".
        name: for people.
        shares: of the dense work; all 1 without masks.
        ran: implementations, by `kernels.explain`; empty of torch's own.
        seconds: CPU time of a call, round by round.
    """

    part: Part
    side: int
    batch: int
    kind: Kind
    name: str
    shares: Shares
    ran: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Split:
    """Where the time of one sparse block goes when its steps run one after the other.

    Attributes:
        side, batch, ratio: of the case.
        seconds: CPU time of each of STEPS, and of the fused block under "fused".
    """

    side: int
    batch: int
    ratio: float
    seconds: dict[str, tuple[float, ...]]


def described(
    part: Part,
    x: Tensor,
    calls: Mapping[str, Call],
    shares: Mapping[str, Shares],
    seconds: Mapping[str, tuple[float, ...]],
    batches: int = 1,
) -> list[Measurement]:
    """Times with what was measured.

    Args:
        part: what was run.
        x: one batch of its input.
        calls: all competitors.
        shares: of those that ran under masks.
        seconds: CPU time of every call.
        batches: how many of them a call ran.
    """
    found = []
    for name, call in calls.items():
        with torch.no_grad():
            names = ran(call)
        kind: Kind = "sparse" if name in shares else "own" if names else "dense"
        found.append(
            Measurement(
                part=part,
                side=x.shape[-1],
                batch=len(x),
                kind=kind,
                name=name,
                shares=shares.get(name, Shares(1.0, 1.0, 1.0, 1.0)),
                ran=names,
                seconds=of_one(seconds[name], batches),
            )
        )
    return found


def of_one(seconds: tuple[float, ...], batches: int) -> tuple[float, ...]:
    """Times of one batch, of calls that run several."""
    return tuple(value / batches for value in seconds)


def ran(call: Callable[[], object]) -> str:
    """Which implementations of our blocks a call takes."""
    kernels.forget()
    call()
    names = sorted({line.implementation for line in kernels.explain()})
    kernels.forget()
    return " + ".join(names)


def compiled(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """What torch.compile makes of a module on x: inductor, weights frozen into the code."""
    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    run: Callable[[Tensor], Tensor] = torch.compile(module, dynamic=False, fullgraph=True)
    with torch.no_grad():
        run(x)
    return run


def check_agreement(name: str, call: Call, expected: Tensor) -> None:
    """That a call computes what it is measured for.

    Raises:
        RuntimeError: it does not.
    """
    with torch.no_grad():
        difference = float((call() - expected).abs().max())
    # float32, each in its own order of summation, through up to 60 blocks
    if not difference <= 1e-3 * float(expected.abs().max()):
        raise RuntimeError(
            f"All that is compared computes the same: '{name}' is {difference:g} from it. "
            "A speed-up of a wrong result means nothing: find the difference with "
            "`pytest tests/kernels tests/datapaths`."
        )
