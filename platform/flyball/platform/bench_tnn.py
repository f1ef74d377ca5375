"""What throttling saves in time: VGG-D at several u against the fastest dense network there is.

CPU time on one thread, everything in turn in one process. That process is its own, so that the
allocator can be told to keep memory: without that, dense networks spend half their time on page
faults, and every speed-up looks larger than it is.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flyball.datapaths.progress import Report, silent
from flyball.platform.bench_process import lines_of, median_ratio
from flyball.platform.bench_tnn_measure import Case, Measurement

__all__ = ["MIXED_TARGET", "TARGETS", "TnnRow", "bench_tnn_table", "run_bench_tnn"]

TARGETS = {0.5: 3.3, 0.25: 9.0, 0.125: 18.0}
"""Least speed-up over the best dense network that is promised at u, in batches of 64."""

MIXED_TARGET = 0.75
"""Least share of the speed-up in MACs that is promised where u differs within a batch of 256."""

PROMISED_BATCH = 64
THROTTLED = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class TnnRow:
    """One way to run a batch.

    Attributes:
        norm: of the network, "none" as published or "group".
        batch: samples of a call.
        kind: "dense", "throttled" (one u for all) or "mixed" (one of ten arms for each sample).
        what: for people, such as "u = 0.5".
        u: mean utilization asked for.
        macs: mean executed MACs of one sample.
        groups: samples of every pass through the network in one call.
        milliseconds: CPU time of a call, median over the rounds.
        speed_up: over the fastest dense network, median over the rounds.
        ideal: the same in MACs: those of the whole network over `macs`.
        share: speed_up / ideal.
        promise: least `speed_up` that is promised; of a mixed batch, least `share`. None: nothing.
    """

    norm: str
    batch: int
    kind: Literal["dense", "throttled", "mixed"]
    what: str
    u: float
    macs: float
    groups: tuple[int, ...]
    milliseconds: float
    speed_up: float
    ideal: float
    share: float
    promise: float | None

    @property
    def is_kept(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised."""
        if self.promise is None:
            return None
        return (self.share if self.kind == "mixed" else self.speed_up) >= self.promise

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "is_kept": self.is_kept}


def run_bench_tnn(
    *, rounds: int = 9, smoke: bool = False, report: Report = silent
) -> tuple[TnnRow, ...]:
    """Measures dense and throttled networks in a process of its own.

    VGG-D as published in batches of 64 and 1, and in a batch of 256 with mixed u; with group norm
    in batches of 64. Writes nothing but temporary files. Takes about five minutes.

    Args:
        rounds: everything has one turn in each.
        smoke: a tiny network, small batches, one round and no compiler: seconds, for tests.
        report: told once a round.

    Raises:
        RuntimeError: the measuring process failed.
    """
    cases = [
        Case("none", PROMISED_BATCH, THROTTLED, rounds=rounds),
        Case("none", 256, (), is_mixed=True, rounds=rounds),
        Case("none", 1, THROTTLED, rounds=rounds),
        Case("group", PROMISED_BATCH, THROTTLED, rounds=rounds),
    ]
    if smoke:
        tiny: dict[str, Any] = {"inductor": False, "is_tiny": True, "rounds": 1}
        cases = [
            Case("none", 4, THROTTLED, **tiny),
            Case("group", 64, (1.0,), is_mixed=True, **tiny),
        ]
    return _rows(_measured(cases, report))


def bench_tnn_table(rows: Sequence[TnnRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'norm':<7}{'batch':>5}  {'what':<38}{'ms':>9}{'speed-up':>10}{'MAC-ideal':>11}"
        f"{'share':>7}  promise"
    ]
    for row in rows:
        of = "share " if row.kind == "mixed" else ""
        kept = {None: "", True: "kept", False: "MISSED"}[row.is_kept]
        promise = "" if row.promise is None else f"{of}>= {row.promise:g} {kept}"
        lines.append(
            f"{row.norm:<7}{row.batch:>5}  {row.what:<38}{row.milliseconds:>9.2f}"
            f"{row.speed_up:>10.2f}{row.ideal:>11.2f}{row.share:>7.0%}  {promise}".rstrip()
        )
    return "\n".join(lines)


def _measured(cases: Sequence[Case], report: Report) -> list[Measurement]:
    found: list[Measurement] = []
    for line in lines_of(
        "flyball.platform.bench_tnn_measure", [asdict(case) for case in cases], report
    ):
        values = dict(line["measurement"])
        values |= {key: tuple(values[key]) for key in ("groups", "seconds")}
        found.append(Measurement(**values))
    return found


def _rows(measured: Sequence[Measurement]) -> tuple[TnnRow, ...]:
    """Compares every measurement with the fastest dense network on the same batch."""
    rows = []
    for one in measured:
        dense = [
            other
            for other in measured
            if (other.norm, other.batch, other.kind) == (one.norm, one.batch, "dense")
        ]
        best = min(dense, key=lambda other: statistics.median(other.seconds))
        speed_up = median_ratio(best.seconds, one.seconds)
        ideal = best.macs / one.macs
        rows.append(
            TnnRow(
                norm=one.norm,
                batch=one.batch,
                kind=one.kind,
                what=_described(one),
                u=one.u,
                macs=one.macs,
                groups=one.groups,
                milliseconds=1000 * statistics.median(one.seconds),
                speed_up=speed_up,
                ideal=ideal,
                share=speed_up / ideal,
                promise=_promise(one),
            )
        )
    return tuple(rows)


def _described(one: Measurement) -> str:
    if one.kind == "dense":
        return f"dense: {one.name}"
    if one.kind == "mixed":
        return f"{one.name}, mean {one.u:.2f}, {len(one.groups)} groups"
    return one.name


def _promise(one: Measurement) -> float | None:
    if one.norm != "none":
        return None
    if one.kind == "mixed":
        return MIXED_TARGET
    return TARGETS.get(one.u) if one.kind == "throttled" and one.batch == PROMISED_BATCH else None
