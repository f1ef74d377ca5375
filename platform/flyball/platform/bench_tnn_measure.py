"""The measuring half of `flyball bench tnn`: a process of its own, whose parent set its allocator.

Reads cases as JSON from its only argument; writes progress and measurements as JSON lines. What
they mean is the parent's business (`bench_tnn`). B batch.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flyball.datapaths.execution import Packed
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.modules import TConv, TLinear
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig, small_vgg, vgg_d
from flyball.platform.bench_process import in_turn, say

__all__ = ["Case", "Measurement", "make_path", "measure"]


ARMS = tuple(k / 10 for k in range(1, 11))

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One network on one batch size.

    Attributes:
        norm: of the network, "none" as published or "group".
        batch: B.
        us: utilizations measured with the whole batch at one.
        is_mixed: also measure the batch at the ten arms, drawn uniformly for every sample.
        inductor: also measure what torch.compile makes of the dense network; takes a minute.
        is_tiny: take a small network instead of VGG-D.
        rounds: in which every competitor has a turn.
    """

    norm: Literal["none", "group"]
    batch: int
    us: tuple[float, ...]
    is_mixed: bool = False
    inductor: bool = True
    is_tiny: bool = False
    rounds: int = 7


@dataclass(frozen=True)
class Measurement:
    """What one competitor took.

    Attributes:
        norm, batch: of the case.
        kind: "dense" (everything on), "throttled" (the batch at one u), or "mixed".
        name: which dense implementation, or what u; for people.
        u: mean utilization asked for.
        macs: mean executed MACs of one sample.
        groups: samples of every pass through the network in one call.
        seconds: CPU time of a call, round by round.
    """

    norm: str
    batch: int
    kind: Literal["dense", "throttled", "mixed"]
    name: str
    u: float
    macs: float
    groups: tuple[int, ...]
    seconds: tuple[float, ...]


def measure(case: Case, report: Callable[[int, str], None]) -> list[Measurement]:
    """Measures all competitors of a case in turn, on one thread.

    Args:
        case: what to measure.
        report: told rounds done and what is being done.

    Raises:
        RuntimeError: competitors at u = 1 disagree on the logits.
    """
    path = make_path(case)
    images = torch.rand(case.batch, *path.input_shape, generator=torch.Generator().manual_seed(1))
    dense = _dense_calls(path, images, case.inductor, lambda note: report(0, note))
    asked: dict[str, float | Tensor] = {f"u = {u:g}": u for u in case.us}
    if case.is_mixed:
        asked["mixed u"] = _drawn_arms(case.batch)
    throttled = {name: _throttled(path, images, u) for name, u in asked.items()}
    calls = {**dense, **throttled}
    _check_agreement({name: call for name, call in calls.items() if name in (*dense, "u = 1")})
    seconds = in_turn(calls, case.rounds, lambda done: report(done, ""))
    found = [
        Measurement(
            case.norm,
            case.batch,
            "dense",
            name,
            u=1.0,
            macs=float(path.full_macs),
            groups=(case.batch,),
            seconds=seconds[name],
        )
        for name in dense
    ]
    for name, u in asked.items():
        one = Measurement(
            case.norm,
            case.batch,
            "mixed" if isinstance(u, Tensor) else "throttled",
            name,
            u=float(u.mean()) if isinstance(u, Tensor) else u,
            macs=float(path(images, u, fixed_shape=False).macs.double().mean()),
            groups=_groups(path, throttled[name]),
            seconds=seconds[name],
        )
        found.append(one)
    return found


def make_path(case: Case) -> FrozenDataPath:
    """The data path of a case, with drawn weights; it leaves images as they are."""
    torch.manual_seed(0)
    config = (
        small_vgg(norm=case.norm, stages=((16,), (32,)), hidden=64, image_size=8)
        if case.is_tiny
        else vgg_d(norm=case.norm)
    )
    network = ThrottleableVgg(config)
    nn.init.normal_(network.classifier.weight, std=0.1)
    ones, classes = (1.0,) * config.in_channels, tuple(str(k) for k in range(config.classes))
    return FrozenDataPath(network, PathSpec(config, ARMS, classes, tuple(0.0 for _ in ones), ones))


def _dense_calls(
    path: FrozenDataPath, images: Tensor, inductor: bool, note: Callable[[str], None]
) -> dict[str, Call]:
    network = path.network
    assert isinstance(network, ThrottleableVgg)
    last = images.contiguous(memory_format=torch.channels_last)
    plain, turned = _dense_twin(network), _dense_twin(network)
    turned = turned.to(memory_format=torch.channels_last)
    packed = Packed(network.counts_at(1.0))
    calls: dict[str, Call] = {
        "eager, contiguous": lambda: plain(images),
        "eager, channels last": lambda: turned(last),
        "eager, packed, channels last": lambda: network.run(last, packed).logits,
    }
    if inductor:
        note("compiling the dense network")
        torch._inductor.config.freezing = True
        torch._dynamo.reset()
        compiled = torch.compile(turned, dynamic=False)
        with torch.no_grad():
            compiled(last)
        calls["inductor, frozen, channels last"] = lambda: compiled(last)
    return calls


def _dense_twin(network: ThrottleableVgg) -> nn.Sequential:
    """The same network in torch's own layers, with copies of the weights."""
    config: VggConfig = network.config
    layers: list[nn.Module] = []
    for conv, ends in zip(network.convs, network.stage_ends, strict=True):
        assert isinstance(conv, TConv)
        outputs, inputs = conv.weight.shape[:2]
        twin = nn.Conv2d(inputs, outputs, 3, padding=1, bias=conv.bias is not None)
        layers.append(_with_weights(twin, conv))
        if conv.norm is not None:
            norm = nn.GroupNorm(config.components, outputs, conv.norm.eps)
            layers.append(_with_weights(norm, conv.norm))
        layers.append(nn.ReLU())
        if ends:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for linear in (network.hidden, network.classifier):
        assert isinstance(linear, TLinear)
        outputs, inputs = linear.weight.shape
        layers += [_with_weights(nn.Linear(inputs, outputs), linear), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False).eval()


def _with_weights(twin: nn.Module, layer: nn.Module) -> nn.Module:
    twin.load_state_dict(
        {name: tensor.clone() for name, tensor in layer.named_parameters("", False)}
    )
    return twin


def _throttled(path: FrozenDataPath, images: Tensor, u: float | Tensor) -> Call:
    return lambda: path(images, u, fixed_shape=False).output


def _drawn_arms(batch: int) -> Tensor:
    drawn = torch.randint(len(ARMS), (batch,), generator=torch.Generator().manual_seed(2))
    return torch.tensor(ARMS, dtype=torch.float64)[drawn]


def _groups(path: FrozenDataPath, call: Call) -> tuple[int, ...]:
    """Samples of every pass through the network that a call makes, as counted."""
    seen: list[int] = []
    network: Any = path.network
    run = network.run

    def counted(x: Tensor, gates: Packed) -> Any:
        seen.append(len(x))
        return run(x, gates)

    network.run = counted
    try:
        call()
    finally:
        del network.run
    return tuple(seen)


def _check_agreement(calls: Mapping[str, Call]) -> None:
    with torch.no_grad():
        answers = {name: call().clone() for name, call in calls.items()}
    first, *others = answers
    for name in others:
        difference = float((answers[name] - answers[first]).abs().max())
        # float32 through nine layers, each in its own order of summation
        if difference > 1e-3 * float(answers[first].abs().max()):
            raise RuntimeError(
                f"All that is measured at u = 1 computes the same: '{name}' is {difference:g} "
                f"from '{first}'. A speed-up of a wrong result means nothing: find the difference "
                "with `pytest tests/kernels tests/datapaths`."
            )


def main(arguments: Sequence[str]) -> None:
    """Measures the cases given as JSON."""
    torch.set_num_threads(1)
    cases = [Case(**{**case, "us": tuple(case["us"])}) for case in json.loads(arguments[0])]
    done, total = 0, sum(case.rounds for case in cases)
    for case in cases:

        def report(rounds: int, note: str, before: int = done, case: Case = case) -> None:
            named = f"norm {case.norm}, batch {case.batch}" + (f": {note}" if note else "")
            say(progress=[before + rounds, total, named])

        for measurement in measure(case, report):
            say(measurement=asdict(measurement))
        done += case.rounds


if __name__ == "__main__":
    main(sys.argv[1:])
