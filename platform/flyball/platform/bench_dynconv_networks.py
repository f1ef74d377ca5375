"""The measuring half of `flyball bench dynconv`: whole networks, under blobs and their own masks.

B batch, b conditional blocks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flyball.datapaths.dynconv.blocks import ConditionalBlock
from flyball.datapaths.dynconv.hourglass import Hourglass, mpii_hourglass, small_hourglass
from flyball.datapaths.dynconv.masks import Decision, Masking, SparseMasking
from flyball.datapaths.dynconv.network import DynConvNetwork, NetworkCost
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.platform.bench_dynconv_masks import blob_mask
from flyball.platform.bench_dynconv_measurement import (
    Call,
    Measurement,
    Note,
    Shares,
    check_agreement,
    compiled,
    described,
)
from flyball.platform.bench_process import in_turn

__all__ = ["NetworkCase", "TrainedCase", "measure_network", "measure_trained"]

CLOSE = 5e-4
"""Masks are scaled until the executed share is so near to what is asked."""


@dataclass(frozen=True)
class NetworkCase:
    """The stacked hourglass with drawn weights.

    Attributes:
        batch: B.
        stacks: as published, 4.
        executed: share of the conditional MACs that its masks execute.
        inductor: also measure what torch.compile makes of the dense network; takes a minute.
        is_tiny: take a small network.
        rounds: in which every competitor has a turn.
    """

    batch: int
    stacks: int = 4
    executed: float = 0.16
    inductor: bool = True
    is_tiny: bool = False
    rounds: int = 7


@dataclass(frozen=True)
class TrainedCase:
    """A saved dynamic convolution network with its own masks.

    Attributes:
        folder: of the data path.
        images: a .npy file, uint8 (N, C, H, W); the first B are run.
        batch: B.
        us: budgets it is asked for.
        inductor, rounds: as above.
    """

    folder: str
    images: str
    batch: int
    us: tuple[float, ...]
    inductor: bool = True
    rounds: int = 7


def measure_network(case: NetworkCase, note: Note) -> list[Measurement]:
    """Measures the hourglass dense and under blob masks.

    Raises:
        RuntimeError: competitors that compute the same disagree.
    """
    torch.manual_seed(0)
    config = small_hourglass(case.stacks) if case.is_tiny else mpii_hourglass(case.stacks)
    network = Hourglass(config).eval()
    cost = network.costs()
    run = network.prepared()
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(case.batch, *config.input_shape, generator=drawn)
    x = x.contiguous(memory_format=torch.channels_last)
    note(0, "scaling masks")
    masks, decisions = _masks_at(case.executed, run, cost, x)
    executed = float(cost.executed(decisions).mean())

    def sparse() -> Tensor:
        return run.run(x, SparseMasking(given=masks, is_counted=False)).logits

    calls = _dense_calls(run, x, case.inductor, note)
    with torch.no_grad():
        expected = run.run(x, Masking()).logits
        masked = run.run(x, _Given(masks)).logits
    for name, call in calls.items():
        check_agreement(name, call, expected)
    name = f"masks at {executed / cost.conditional:.1%}"
    check_agreement(name, sparse, masked)
    calls[name] = sparse
    pixels = case.batch * sum(block.pixels for block in cost.blocks)
    active = sum(float(d.active.sum()) for d in decisions) / pixels
    dilated = sum(float(d.dilated.sum()) for d in decisions) / pixels
    # The masks are given: their units do not run.
    macs = (cost.fixed + executed) / cost.full
    seconds = in_turn(calls, case.rounds, lambda done: note(done, ""))
    shares = {name: Shares(case.executed, active, dilated, macs)}
    return described("network", x, calls, shares, seconds)


def measure_trained(case: TrainedCase, note: Note) -> list[Measurement]:
    """Measures a trained network as it is served: its units decide, its MACs are counted.

    Raises:
        RuntimeError: competitors that compute the same disagree.
    """
    path = DynConvPath.load(Path(case.folder))
    pixels = np.load(case.images)[: case.batch]
    images = torch.from_numpy(pixels).float() / 255.0
    x = ((images - path.mean) / path.std).contiguous(memory_format=torch.channels_last)
    calls = _dense_calls(path.prepared(), x, case.inductor, note)
    with torch.no_grad():
        expected = path.prepared().run(x, Masking()).logits
    for name, call in calls.items():
        check_agreement(name, call, expected)
    shares = {}
    for u in case.us:
        name = f"u = {u:g}"

        def call(u: float = u) -> Tensor:
            output: Tensor = path(images, u, fixed_shape=False).output
            return output

        calls[name] = call
        rates = float(path.examine(images, u).rates.mean())
        answer = path(images, u, fixed_shape=False)
        macs = float(answer.macs.double().mean()) / path.full_macs
        shares[name] = Shares(u, rates, None, macs)
    seconds = in_turn(calls, case.rounds, lambda done: note(done, ""))
    return described("trained", x, calls, shares, seconds)


def _dense_calls(run: DynConvNetwork, x: Tensor, inductor: bool, note: Note) -> dict[str, Call]:
    dense = _Dense(run)
    calls: dict[str, Call] = {"eager, channels last": lambda: dense(x)}
    if inductor:
        note(0, "compiling the dense network")
        fast = compiled(dense, x)
        calls["inductor, frozen, channels last"] = lambda: fast(x)
    calls["own dense mode"] = lambda: run.run(x, Masking(is_sparse=True)).logits
    return calls


class _Dense(nn.Module):
    """Everything everywhere with torch's own layers, norms folded; no mask unit runs."""

    def __init__(self, run: DynConvNetwork) -> None:
        super().__init__()
        self.network = run

    def forward(self, x: Tensor) -> Tensor:
        return self.network.run(x, Masking()).logits


class _Given(Masking):
    """Dense execution, multiplied by given masks."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def decide(self, block: ConditionalBlock, x: Tensor) -> Tensor | None:
        super().decide(block, x)
        return None if block.unit is None else self._masks[block.position]


def _masks_at(
    executed: float, run: DynConvNetwork, cost: NetworkCost, x: Tensor
) -> tuple[list[Tensor], list[Decision]]:
    """Blobs for every block that together execute a share of the conditional MACs."""
    low, high = 0.0, 1.0
    while True:
        ratio = (low + high) / 2
        masks = [
            blob_mask(len(x), round(block.pixels**0.5), ratio, seed=place)
            for place, block in enumerate(cost.blocks)
        ]
        masking = SparseMasking(given=masks)
        with torch.no_grad():
            run.run(x, masking)
        share = float(cost.executed(masking.decisions).mean()) / cost.conditional
        if abs(share - executed) < CLOSE or high - low < CLOSE / 10:
            return masks, masking.decisions
        low, high = (low, ratio) if share > executed else (ratio, high)
