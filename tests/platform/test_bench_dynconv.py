"""`flyball bench dynconv` counts what runs and compares with the fastest; no time is asserted."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyball import kernels
from flyball.datapaths.dynconv.calibration import Calibration
from flyball.datapaths.dynconv.path import DynConvPath, DynConvSpec
from flyball.datapaths.dynconv.resnet import cifar_resnet
from flyball.datapaths.errors import CorruptArtifact, DataError, InvalidSetting
from flyball.datapaths.networks import make_network
from flyball.platform import bench_dynconv, bench_process
from flyball.platform.bench_dynconv import (
    BLOCK_TARGETS,
    NETWORK_TARGET,
    BenchDynconv,
    bench_dynconv_table,
    run_bench_dynconv,
)
from flyball.platform.bench_dynconv_masks import blob_mask
from flyball.platform.bench_dynconv_measure import IMAGES, BlockCase, measure_block
from flyball.platform.bench_dynconv_measurement import (
    STEPS,
    Measurement,
    Shares,
    Split,
    check_agreement,
)
from flyball.platform.bench_dynconv_networks import (
    NetworkCase,
    TrainedCase,
    measure_network,
    measure_trained,
)
from flyball.platform.bench_dynconv_picture import draw_bench_dynconv
from flyball.platform.cli import main

RATIOS = (1.0, 0.5, 0.25)


@pytest.fixture(scope="module")
def block() -> tuple[list[Measurement], list[Split]]:
    case = BlockCase(8, 2, RATIOS, 8, 16, is_split=True, inductor=False, rounds=1)
    return measure_block(case, lambda done, text: None)


@pytest.fixture(scope="module")
def network() -> list[Measurement]:
    case = NetworkCase(1, 1, inductor=False, is_tiny=True, rounds=1)
    return measure_network(case, lambda done, text: None)


@pytest.fixture(scope="module")
def found(block: tuple[list[Measurement], list[Split]], network: list[Measurement]) -> BenchDynconv:
    return bench_dynconv.compared([*block[0], *network], block[1])


def timed(kind: str, name: str, seconds: tuple[float, ...], asked: float = 1.0) -> Measurement:
    shares = Shares(asked, asked, asked, asked)
    return Measurement("block", 64, 1, kind, name, shares, "cpu", seconds)  # type: ignore[arg-type]


def test_a_blob_has_the_asked_share_and_a_border_like_a_persons() -> None:
    mask = blob_mask(1, 64, 0.25)
    assert int(mask.sum()) == 1024
    dilated = float(kernels.dilate_mask(mask).float().mean())
    # independent pixels would dilate to .92, a disc to .28
    assert dilated == pytest.approx(0.32, abs=0.02)
    assert bool(blob_mask(3, 5, 1.0).all())
    assert int(blob_mask(1, 4, 0.001).sum()) == 1


def test_blobs_grow_with_the_ratio_and_differ_within_a_batch() -> None:
    small, large = blob_mask(1, 32, 0.2), blob_mask(1, 32, 0.6)
    assert bool((large | ~small).all())
    counts = blob_mask(8, 64, 0.5).float().mean(dim=(1, 2, 3))
    assert len(set(counts.tolist())) > 4
    assert float(counts.min()) >= 0.4 - 1e-3
    assert float(counts.max()) <= 0.6 + 1e-3
    assert torch.equal(blob_mask(4, 16, 0.3, seed=5), blob_mask(4, 16, 0.3, seed=5))


def test_macs_of_a_block_are_those_of_its_masks(
    block: tuple[list[Measurement], list[Split]],
) -> None:
    # Expand 8 x 16 at dilated pixels; depthwise 9 x 16 and project 16 x 8 at active ones.
    for one in block[0]:
        dense = 8 * 16 + 9 * 16 + 16 * 8
        assert one.shares.dilated is not None
        spent = one.shares.dilated * 8 * 16 + one.shares.active * (9 * 16 + 16 * 8)
        assert one.shares.macs == pytest.approx(spent / dense)
    sparse = [one for one in block[0] if one.kind == "sparse"]
    assert [one.shares.asked for one in sparse] == list(RATIOS)
    for one in sparse:
        mask = blob_mask(IMAGES, 8, one.shares.asked)
        assert one.shares.active == pytest.approx(float(mask.float().mean()))
        assert one.shares.dilated == pytest.approx(float(kernels.dilate_mask(mask).float().mean()))
        assert one.ran


def test_every_competitor_of_a_block_has_a_row(found: BenchDynconv) -> None:
    rows = [row for row in found.rows if row.part == "block"]
    assert [(row.kind, row.what) for row in rows] == [
        ("dense", "eager, contiguous"),
        ("dense", "eager, channels last"),
        ("own", "own dense mode"),
        *(("sparse", f"r = {r:g}") for r in RATIOS),
    ]
    assert min(row.milliseconds for row in rows if row.speed_up == 1.0) == min(
        row.milliseconds for row in rows if row.kind == "dense"
    )
    assert next(row for row in rows if row.kind == "own").over_own == 1.0


def test_masks_of_the_network_execute_what_is_asked(network: list[Measurement]) -> None:
    (sparse,) = (one for one in network if one.kind == "sparse")
    assert sparse.shares.asked == 0.16
    # The smallest hourglass has few pixels: one more in each of its blocks is a step of 1 %.
    assert float(sparse.name.split()[-1].rstrip("%")) == pytest.approx(16.0, abs=1.0)
    assert sparse.shares.dilated is not None
    assert sparse.shares.active < sparse.shares.dilated < 1.0
    assert 0.16 < sparse.shares.macs < 0.5
    assert [one.kind for one in network] == ["dense", "own", "sparse"]
    assert [one.ran == "" for one in network] == [True, False, False]


def test_the_split_has_the_columns_of_the_papers_table(found: BenchDynconv) -> None:
    assert [row.ratio for row in found.splits] == list(RATIOS)
    for row in found.splits:
        assert tuple(row.steps) == STEPS
        assert all(value > 0 for value in (*row.steps.values(), row.fused))


def test_the_table_says_what_ran_and_that_steps_are_separate(found: BenchDynconv) -> None:
    text = bench_dynconv_table(found)
    for words in ("8x8 pixels, batch 2", "own dense mode", "r = 0.25", "Hourglass", "masks at 1"):
        assert words in text
    assert "as DynConv Table 1. Each step runs by an operator of\nits own" in text
    for step in (*STEPS, "fused"):
        assert step in text
    assert text.splitlines()[-1].endswith("kernels/benchmarks/gpu_check.py`.")


def test_a_speed_up_is_over_the_fastest_dense_one_round_by_round() -> None:
    slow = timed("dense", "slow", (9.0, 9.0, 9.0))
    fast = timed("dense", "fast", (4.0, 6.0, 5.0))
    own = timed("own", "own", (4.0, 4.0, 2.0))
    half = timed("sparse", "r = 0.5", (1.0, 2.0, 1.0), asked=0.5)
    *_, row = bench_dynconv.compared([slow, fast, own, half], []).rows
    assert (row.milliseconds, row.speed_up, row.over_own) == (1000.0, 4.0, 2.0)
    assert (row.promise, row.is_kept) == (BLOCK_TARGETS[0.5], True)


def test_a_missed_promise_is_said() -> None:
    dense, own = timed("dense", "dense", (3.0,)), timed("own", "own", (3.0,))
    quarter = timed("sparse", "r = 0.25", (1.0,), asked=0.25)
    found = bench_dynconv.compared([dense, own, quarter], [])
    assert [row.is_kept for row in found.rows] == [None, None, False]
    assert ">= 3.8 MISSED" in bench_dynconv_table(found)
    assert NETWORK_TARGET == 4.0


def test_competitors_that_disagree_are_not_compared() -> None:
    one = torch.ones(2)
    check_agreement("same", lambda: one * 1.0005, one)
    with pytest.raises(RuntimeError, match="'other' is 1 from it"):
        check_agreement("other", lambda: 2 * one, one)
    with pytest.raises(RuntimeError, match="computes the same"):
        check_agreement("nan", lambda: one * torch.nan, one)


def test_everything_has_one_turn_in_every_round() -> None:
    called: list[str] = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = bench_process.in_turn(calls, 3, turn=0.0)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(called[-6:]) == "ababab"


def test_the_measuring_process_keeps_memory_has_one_thread_and_fails_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    assert all(int(bench_process.ENVIRONMENT[name]) >= 2**28 for name in names)
    assert bench_process.ENVIRONMENT["OMP_NUM_THREADS"] == "1"
    monkeypatch.setitem(bench_process.ENVIRONMENT, "PYTHONHOME", "nowhere")
    with pytest.raises(RuntimeError, match="in a process of its own"):
        run_bench_dynconv(smoke=True)


def test_the_rounds_of_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast layout of memory in one process is outvoted by those of the others."""
    plans: list[Any] = []
    dense = iter([(9.0, 9.0), (4.0, 4.0), (4.0, 4.0)])

    def lines(module: str, plan: Any, report: Any) -> Iterator[dict[str, Any]]:
        plans.append(plan)
        for one in (
            timed("dense", "torch", next(dense)),
            timed("own", "own dense mode", (2.0, 2.0)),
            timed("sparse", "r = 0.5", (1.0, 1.0), 0.5),
        ):
            yield {"measurement": asdict(one)}

    monkeypatch.setattr(bench_dynconv, "lines_of", lines)
    found = run_bench_dynconv()
    assert [row.speed_up for row in found.rows] == [1.0, 2.0, 4.0]
    assert [sorted(plan) for plan in plans] == [["block", "network"], ["block"], ["block"]]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    config = replace(cifar_resnet(8, widths=(4, 4, 4)), classes=2)
    spec = DynConvSpec(
        config,
        (0.5, 1.0),
        ("a", "b"),
        (0.5,) * 3,
        (0.2,) * 3,
        Calibration((0.5,), (0.0,), (0.5,), 1),
    )
    torch.manual_seed(0)
    network: Any = make_network(config)
    DynConvPath(network, spec).save(tmp_path / "path")
    return tmp_path / "path"


def test_a_trained_network_runs_its_own_masks(trained: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    case = TrainedCase(
        str(trained), str(tmp_path / "images.npy"), 2, (1.0, 0.5), inductor=False, rounds=1
    )
    measured = measure_trained(case, lambda done, text: None)
    path = DynConvPath.load(trained)
    answer = path(torch.from_numpy(pixels[:2]).float() / 255, 0.5)
    *_, full, half = measured
    assert [one.kind for one in measured] == ["dense", "own", "sparse", "sparse"]
    assert full.shares.macs == full.shares.active == 1.0
    assert half.shares.macs == pytest.approx(float(answer.macs.double().mean()) / path.full_macs)
    assert 0.0 < half.shares.active < 1.0


def test_a_trained_network_and_images_that_do_not_fit_are_refused(
    trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "images.npy"
    with pytest.raises(InvalidSetting, match="--images"):
        run_bench_dynconv(path=trained)
    with pytest.raises(DataError, match="of images"):
        run_bench_dynconv(path=trained, images=file)
    for shape, kind in (((8, 3, 16, 16), np.uint8), ((8, 3, 32, 32), np.float32)):
        np.save(file, np.zeros(shape, kind))
        with pytest.raises(DataError, match="uint8"):
            run_bench_dynconv(path=trained, images=file)
    with pytest.raises(CorruptArtifact):
        run_bench_dynconv(path=tmp_path, images=file)
    assert main(["bench", "tnn", "--path", str(tmp_path)]) == 2


def test_the_picture_is_a_png(found: BenchDynconv, tmp_path: Path) -> None:
    file = draw_bench_dynconv(found, tmp_path / "bench.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000
