"""What masks save in time: sparse blocks and networks against the fastest dense ones there are.

CPU time on one thread, everything in turn in one process, which keeps freed memory: without that,
dense networks spend half their time on page faults, and every speed-up looks larger than it is.
Blocks are measured in several processes, one after the other: where memory happens to lie makes the
same code up to a tenth faster or slower for the life of a process.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.progress import Progress, Report, silent
from flyball.platform.bench_dynconv_measure import BlockCase
from flyball.platform.bench_dynconv_measurement import STEPS, Measurement, Shares, Split
from flyball.platform.bench_dynconv_networks import NetworkCase, TrainedCase
from flyball.platform.bench_process import lines_of, median_ratio

__all__ = [
    "BLOCK_TARGETS",
    "NETWORK_TARGET",
    "BenchDynconv",
    "DynconvRow",
    "SplitRow",
    "bench_dynconv_table",
    "compared",
    "run_bench_dynconv",
]

BLOCK_TARGETS = {1.0: 1.0, 0.75: 1.0, 0.5: 2.0, 0.25: 3.8, 0.125: 6.5}
"""Least speed-up of a block over the best dense one that is promised, by active ratio."""

NETWORK_TARGET = 4.0
"""Least speed-up of the hourglass with masks that execute 16 % of its conditional MACs."""

RATIOS = tuple(BLOCK_TARGETS)
SIDES = (64, 32, 16)
NETWORK_SIDE = 256
BATCHES = (1, 8)
US = (1.0, 0.75, 0.5, 0.25, 0.1)

ON_CUDA = "the CUDA kernels are measured by `python kernels/benchmarks/gpu_check.py`"


@dataclass(frozen=True)
class DynconvRow:
    """One way to run a block or a network.

    Attributes:
        part: "block", "network" (the hourglass under blobs) or "trained" (a network's own masks).
        side: of the input in pixels.
        batch: samples of a call.
        kind: "dense" (torch), "own" (ours without masks) or "sparse".
        what: for people.
        asked: active ratio of a block, share of the conditional MACs of a network.
        active, dilated: shares of the pixels that really are so; None: not counted.
        macs: executed over dense (DynConv Eqs. 11 and 10).
        ran: implementations that ran, by `kernels.explain`.
        milliseconds: CPU time of a call, median over the rounds.
        speed_up: over the fastest dense, median over the rounds.
        over_own: over our own dense mode, likewise.
        promise: least `speed_up` that is promised; None: nothing.
    """

    part: str
    side: int
    batch: int
    kind: str
    what: str
    asked: float
    active: float
    dilated: float | None
    macs: float
    ran: str
    milliseconds: float
    speed_up: float
    over_own: float
    promise: float | None

    @property
    def is_kept(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised."""
        return None if self.promise is None else self.speed_up >= self.promise


@dataclass(frozen=True)
class SplitRow:
    """Where the time of a sparse block goes (DynConv Table 1), in CPU milliseconds of a call.

    Attributes:
        side, batch, ratio: of the block and its mask.
        steps: of each of `STEPS` run by operators of its own.
        fused: of the block as it runs, its steps fused; the mask is not part of it.
    """

    side: int
    batch: int
    ratio: float
    steps: dict[str, float]
    fused: float


@dataclass(frozen=True)
class BenchDynconv:
    """What was measured."""

    rows: tuple[DynconvRow, ...]
    splits: tuple[SplitRow, ...]


def run_bench_dynconv(
    *,
    rounds: int = 9,
    processes: int = 3,
    path: Path | str | None = None,
    images: Path | str | None = None,
    smoke: bool = False,
    report: Report = silent,
) -> BenchDynconv:
    """Measures blocks and networks in processes of their own.

    MobileNetV2 blocks of 96 channels, 576 expanded, at three sizes on 8 images, one at a time and
    all at once, and the hourglass of 4 stacks on 256x256 images, one and 8. Writes nothing but
    temporary files. Takes about eight minutes, more than half of it for compiling dense networks.

    Args:
        rounds: everything has one turn in each, in every process.
        processes: in which blocks are measured, one after the other; networks are in the first.
        path: folder of a trained dynamic convolution network, to be measured with its own masks.
        images: what to show it: a .npy file, uint8 (N, C, H, W), at least 8 images.
        smoke: tiny sizes, one round and no compiler: seconds, for tests.
        report: told once a round.

    Raises:
        InvalidSetting: there is a path without images, or images without a path.
        DataError: the images are not those of the network.
        ArtifactError: the path is not a dynamic convolution network.
        RuntimeError: the measuring process failed.
    """
    plan = _plan(rounds, smoke)
    if path is not None or images is not None:
        given = _checked(path, images)
        plan["trained"] = [
            TrainedCase(*given, batch=batch, us=US, inductor=not smoke, rounds=min(rounds, 5))
            for batch in BATCHES
        ]
    again = {"block": [replace(case, is_split=False) for case in plan["block"]]}
    measured: dict[tuple[Any, ...], Measurement] = {}
    splits: list[Split] = []
    for index in range(processes):
        told = _numbered(report, index, processes)
        for one in _lines(plan if index == 0 else again, told):
            if isinstance(one, Split):
                splits.append(one)
                continue
            what = (one.part, one.side, one.batch, one.name)
            before = measured[what].seconds if what in measured else ()
            measured[what] = replace(one, seconds=before + one.seconds)
    return compared(list(measured.values()), splits)


def _lines(plan: dict[str, list[Any]], report: Report) -> Iterator[Measurement | Split]:
    """What one process measures."""
    cases = {part: [asdict(case) for case in of_it] for part, of_it in plan.items()}
    for line in lines_of("flyball.platform.bench_dynconv_measure", cases, report):
        if "split" in line:
            yield Split(**line["split"])
        else:
            one = line["measurement"]
            values = {"shares": Shares(*one["shares"]), "seconds": tuple(one["seconds"])}
            yield Measurement(**{**one, **values})


def _numbered(report: Report, index: int, processes: int) -> Report:
    def told(progress: Progress) -> None:
        report(replace(progress, note=f"process {index + 1} of {processes}, {progress.note}"))

    return told


def compared(measured: Sequence[Measurement], splits: Sequence[Split]) -> BenchDynconv:
    """Every measurement beside the fastest dense one, and our own, on the same input."""
    return BenchDynconv(_rows(measured), tuple(_split_row(split) for split in splits))


def bench_dynconv_table(found: BenchDynconv) -> str:
    """All as aligned text."""
    lines = []
    case: tuple[str, int, int] | None = None
    for row in found.rows:
        if case != (row.part, row.side, row.batch):
            case = (row.part, row.side, row.batch)
            lines += ["", _title(row), _HEAD]
        kept = {None: "", True: "kept", False: "MISSED"}[row.is_kept]
        promise = "" if row.promise is None else f">= {row.promise:g} {kept}"
        dilated = "-" if row.dilated is None else f"{row.dilated:.3f}"
        lines.append(
            f"{row.what:<33}{row.active:>7.3f}{dilated:>8}{row.macs:>7.3f}"
            f"{row.milliseconds:>9.2f}{row.speed_up:>9.2f}{row.over_own:>9.2f}  "
            f"{row.ran:<12} {promise}".rstrip()
        )
    if found.splits:
        lines += ["", *_split_lines(found.splits)]
    is_there = torch.cuda.is_available()
    there = "CUDA: there is a GPU" if is_there else "CUDA: no GPU here"
    return "\n".join([*lines[1:], "", f"{there}; {ON_CUDA}."])


_HEAD = (
    f"{'':<33}{'active':>7}{'dilated':>8}{'MACs':>7}{'ms':>9}{'x dense':>9}{'x own':>9}  "
    f"{'ran':<12} promise"
)


def _title(row: DynconvRow) -> str:
    what = {
        "block": "Block, blob masks",
        "network": "Hourglass, blob masks",
        "trained": "Trained network, own masks",
    }[row.part]
    return f"{what}: {row.side}x{row.side} pixels, batch {row.batch}, CPU time on one thread"


def _split_lines(splits: Sequence[SplitRow]) -> list[str]:
    names = (*STEPS, "sum", "fused")
    widths = [max(len(name) + 2, 9) for name in names]
    head = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines = [
        "Time split of a sparse block in ms, as DynConv Table 1. Each step runs by an operator of",
        "its own, which keeps its result in memory; the block that runs fuses all but the mask.",
        f"{'pixels':<8}{'batch':>5}{'r':>7}{head}",
    ]
    for row in splits:
        values = (*row.steps.values(), sum(row.steps.values()), row.fused)
        texts = "".join(f"{v:>{width}.3f}" for v, width in zip(values, widths, strict=True))
        lines.append(f"{f'{row.side}x{row.side}':<8}{row.batch:>5}{row.ratio:>7g}{texts}")
    return lines


def _checked(path: Path | str | None, images: Path | str | None) -> tuple[str, str]:
    """The folder and the file, which fit each other."""
    if path is None or images is None:
        raise InvalidSetting(
            "A trained network is measured on images: give both or none of --path FOLDER and "
            "--images FILE.npy (uint8, images x channels x height x width)."
        )
    folder, file = Path(path).resolve(), Path(images).resolve()
    wanted = DynConvPath.load(folder).input_shape
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} is not a .npy file of images ({error}). Write it with numpy.save(file, "
            "images), without objects."
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted or len(pixels) < max(BATCHES):
        raise DataError(
            f"This network is measured on at least {max(BATCHES)} images of shape {wanted} in "
            f"uint8; {file} holds {pixels.shape}, {pixels.dtype}. Save images of its data set."
        )
    return str(folder), str(file)


def _plan(rounds: int, smoke: bool) -> dict[str, list[Any]]:
    if smoke:
        tiny: dict[str, Any] = {"inductor": False, "rounds": 1}
        return {
            "block": [
                BlockCase(8, batch, RATIOS, 8, 16, is_split=batch == 1, **tiny) for batch in (1, 2)
            ],
            "network": [NetworkCase(1, 1, is_tiny=True, **tiny)],
        }
    return {
        "block": [
            BlockCase(side, batch, RATIOS, is_split=batch == 1, rounds=rounds)
            for batch in BATCHES
            for side in SIDES
        ],
        "network": [NetworkCase(batch, rounds=min(rounds, 15 // batch + 4)) for batch in BATCHES],
    }


def _rows(measured: Sequence[Measurement]) -> tuple[DynconvRow, ...]:
    rows = []
    for one in measured:
        case = (one.part, one.side, one.batch)
        beside = [other for other in measured if (other.part, other.side, other.batch) == case]
        dense = [other for other in beside if other.kind == "dense"]
        best = min(dense, key=lambda other: statistics.median(other.seconds))
        (own,) = (other for other in beside if other.kind == "own")
        rows.append(
            DynconvRow(
                part=one.part,
                side=one.side,
                batch=one.batch,
                kind=one.kind,
                what=one.name,
                **one.shares._asdict(),
                ran=one.ran,
                milliseconds=1000 * statistics.median(one.seconds),
                speed_up=median_ratio(best.seconds, one.seconds),
                over_own=median_ratio(own.seconds, one.seconds),
                promise=_promise(one),
            )
        )
    return tuple(rows)


def _promise(one: Measurement) -> float | None:
    if one.kind != "sparse" or one.side not in (*SIDES, NETWORK_SIDE):
        return None
    return {"block": BLOCK_TARGETS.get(one.shares.asked), "network": NETWORK_TARGET}.get(one.part)


def _split_row(split: Split) -> SplitRow:
    medians = {name: 1000 * statistics.median(values) for name, values in split.seconds.items()}
    fused = medians.pop("fused")
    return SplitRow(split.side, split.batch, split.ratio, medians, fused)
