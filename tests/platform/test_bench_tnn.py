"""`flyball bench tnn` counts what it runs and compares with the fastest; no time is asserted."""

from pathlib import Path

import pytest

from flyball.datapaths.progress import Progress
from flyball.platform import bench_process, bench_tnn
from flyball.platform.bench_tnn import (
    MIXED_TARGET,
    TARGETS,
    TnnRow,
    bench_tnn_table,
    run_bench_tnn,
)
from flyball.platform.bench_tnn_measure import Case, Measurement, make_path
from flyball.platform.bench_tnn_picture import draw_bench_tnn


@pytest.fixture(scope="module")
def reported() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def rows(reported: list[Progress]) -> tuple[TnnRow, ...]:
    return run_bench_tnn(smoke=True, report=reported.append)


def timed(kind: str, name: str, seconds: tuple[float, ...], macs: float = 100.0) -> Measurement:
    return Measurement("none", 64, kind, name, 1.0, macs, (64,), seconds)  # type: ignore[arg-type]


def test_every_competitor_has_a_row_and_the_best_dense_one_is_the_measure(
    rows: tuple[TnnRow, ...],
) -> None:
    cases = [(row.norm, row.batch, row.kind) for row in rows]
    assert cases == [
        *[("none", 4, "dense")] * 3,
        *[("none", 4, "throttled")] * 4,
        *[("group", 64, "dense")] * 3,
        ("group", 64, "throttled"),
        ("group", 64, "mixed"),
    ]
    assert [row.u for row in rows if row.batch == 4 and row.kind == "throttled"] == [
        1.0,
        0.5,
        0.25,
        0.125,
    ]
    for case in ("none", "group"):
        dense = [row for row in rows if (row.norm, row.kind) == (case, "dense")]
        best = min(dense, key=lambda row: row.milliseconds)
        assert best.speed_up == best.ideal == best.share == 1.0


def test_macs_are_those_that_run(rows: tuple[TnnRow, ...]) -> None:
    # 3x3 convolutions 3-16-32 on 8x8 and 4x4 pixels, then 128-64-10; at u every width but 3 and 10
    # is cut to u of it.
    assert [row.macs for row in rows[3:7]] == [
        64 * 9 * 3 * 16 + 16 * 9 * 16 * 32 + 128 * 64 + 64 * 10,
        64 * 9 * 3 * 8 + 16 * 9 * 8 * 16 + 64 * 32 + 32 * 10,
        64 * 9 * 3 * 4 + 16 * 9 * 4 * 8 + 32 * 16 + 16 * 10,
        64 * 9 * 3 * 2 + 16 * 9 * 2 * 4 + 16 * 8 + 8 * 10,
    ]
    assert all(row.ideal == rows[3].macs / row.macs for row in rows[3:7])


def test_a_batch_at_one_u_is_one_pass_and_a_mixed_one_a_pass_an_arm(
    rows: tuple[TnnRow, ...],
) -> None:
    for row in rows:
        assert sum(row.groups) == row.batch
        assert len(row.groups) == (10 if row.kind == "mixed" else 1)
    mixed = rows[-1]
    path = make_path(Case("group", 64, (), is_tiny=True))
    macs = sum(n * path.macs_at(u) for n, u in zip(mixed.groups, path.arms, strict=True))
    assert mixed.macs == macs / 64
    asked = sum(n * u for n, u in zip(mixed.groups, path.arms, strict=True))
    assert mixed.u == pytest.approx(asked / 64)


def test_progress_is_told_round_by_round(
    rows: tuple[TnnRow, ...], reported: list[Progress]
) -> None:
    assert [(p.done, p.total) for p in reported] == [(1, 2), (2, 2)]
    assert reported[-1].note == "norm group, batch 64"


def test_a_speed_up_is_over_the_fastest_dense_network_round_by_round() -> None:
    slow = timed("dense", "slow", (9.0, 9.0, 9.0))
    fast = timed("dense", "fast", (4.0, 6.0, 5.0))
    half = timed("throttled", "u = 0.5", (1.0, 2.0, 1.0), macs=20.0)
    *_, row = bench_tnn._rows([slow, fast, half])
    assert (row.milliseconds, row.speed_up, row.ideal, row.share) == (1000.0, 4.0, 5.0, 0.8)


def test_a_promise_is_of_speed_at_one_u_and_of_share_where_u_is_mixed() -> None:
    common = (1.0, 10.0, (64,), 1.0)
    throttled = TnnRow("none", 64, "throttled", "u = 0.5", *common, 3.2, 4.0, 0.8, TARGETS[0.5])
    mixed = TnnRow("none", 256, "mixed", "mixed", *common, 1.8, 2.4, 0.75, MIXED_TARGET)
    dense = TnnRow("none", 64, "dense", "dense", *common, 1.0, 1.0, 1.0, None)
    assert (throttled.is_kept, mixed.is_kept, dense.is_kept) == (False, True, None)
    lines = bench_tnn_table([throttled, mixed, dense]).splitlines()
    assert lines[1].endswith(">= 3.3 MISSED")
    assert lines[2].endswith("share >= 0.75 kept")
    assert lines[3].endswith("100%")


def test_the_measuring_process_keeps_memory_and_has_one_thread() -> None:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    assert all(int(bench_process.ENVIRONMENT[name]) >= 2**28 for name in names)
    assert bench_process.ENVIRONMENT["OMP_NUM_THREADS"] == "1"


def test_a_failure_of_the_measuring_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_process.ENVIRONMENT, "PYTHONHOME", "nowhere")
    with pytest.raises(RuntimeError, match="in a process of its own"):
        run_bench_tnn(smoke=True)


def test_the_picture_is_a_png(rows: tuple[TnnRow, ...], tmp_path: Path) -> None:
    file = draw_bench_tnn(rows, tmp_path / "bench.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000
