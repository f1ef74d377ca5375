"""Analyses of dynamic convolutions say what masks executed, and compare like with like."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from flyball.datapaths.data import DataConfig
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.hourglass import mpii_hourglass, small_hourglass
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.dynconv.resnet import DynConvResNetConfig, cifar_resnet
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.errors import CorruptArtifact, DataError, InvalidSetting
from flyball.datapaths.networks import make_network
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.datapaths.vgg import small_vgg
from flyball.platform.analyses import AnalysisOptions, run_analysis
from flyball.platform.analyses.artifacts import Finished, finished
from flyball.platform.analyses.blocks import BlockRow, Blocks, Side, State, network_twin
from flyball.platform.analyses.dynamic import dynamic_path, share_of, spent_at, spread_rows
from flyball.platform.analyses.executed import (
    BlockRate,
    BudgetRow,
    ClassSpending,
    Executed,
    executed_budgets,
)
from flyball.platform.analyses.ponder import Ponder, PonderRow, ponder_maps
from flyball.platform.analyses.static_baseline import against_static, answers_of
from flyball.platform.analyses.static_baseline_networks import (
    static_fingerprint,
    static_network,
    static_networks,
)
from flyball.platform.cli import main
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.prepare import prepare
from flyball.platform.presets import preset
from flyball.platform.stages import build_outcomes, build_path

NETWORK = DynConvResNetConfig(layers=(1, 1), widths=(8, 16), in_channels=1, image_size=8)
QUICK = (
    "phase1.epochs=2",
    "phase1.learning_rate=0.05",
    "arms=0.25,0.5,1",
    "data.limit=60",
    "data.fractions=0.3,0.25,0.2,0.25",
    "path.calibration_samples=150",
)


def quick_job(root: Path, *settings: str) -> Job:
    job = replace(preset("digits"), path=DynConvConfig(network=NETWORK))
    return with_overrides(job, [f"storage.root={root}", *QUICK, *settings])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a dynamic data path and its atlas."""
    folder = tmp_path_factory.mktemp("dynamic") / "runs"
    ready = prepare(quick_job(folder))
    build_outcomes(ready, build_path(ready).path.with_arms(ready.job.arms))
    return folder


@pytest.fixture(scope="module")
def done(root: Path) -> Finished:
    return finished(quick_job(root))


@pytest.fixture(scope="module")
def path(done: Finished) -> DynConvPath:
    return dynamic_path(done)


def record_of(name: str, job: Job, options: AnalysisOptions | None = None) -> dict[str, Any]:
    """What an analysis wrote, after a look at its three files."""
    result = run_analysis(name, [job], options)
    assert {file.name for file in result.folder.iterdir()} == {
        f"{name}.png",
        f"{name}.txt",
        f"{name}.json",
    }
    assert result.written.picture.read_bytes().startswith(b"\x89PNG")
    assert all(line == line.rstrip() for line in result.analysis.table().splitlines())
    record: dict[str, Any] = json.loads(result.written.record.read_text())
    return record


# Rows and passes.


def test_rows_are_spread_over_a_whole_split(done: Finished) -> None:
    images = done.ready.images
    rows = images.rows(TEST)
    few = spread_rows(images, TEST, 5)
    assert (len(few), few[0], few[-1]) == (5, rows[0], rows[-1])
    assert spread_rows(images, TEST, 10**6).tolist() == rows.tolist()
    with pytest.raises(InvalidSetting, match="at least one image; 0 are asked for"):
        spread_rows(images, TEST, 0)


def test_what_is_spent_is_what_the_atlas_has(done: Finished, path: DynConvPath) -> None:
    taken = done.atlas.take(TEST)
    rows = np.asarray(taken.sample)
    for arm, u in enumerate(taken.arms):
        spent = spent_at(path, done.ready.images, rows, u)
        assert spent.macs.tolist() == np.asarray(taken.macs)[:, arm].tolist()
        assert spent.correct.tolist() == np.asarray(taken.correct)[:, arm].tolist()
        assert spent.rates.shape == (len(rows), 2)
    everything = share_of(path, np.array([path.full_macs]), 1.0)
    assert everything.tolist() == [1.0]


# Budgets.


def test_executed_shares_are_those_of_the_atlas(done: Finished, path: DynConvPath) -> None:
    found = executed_budgets(path, done.ready.images, budgets=(0.25, 0.5))
    for split in (CONTROLLER_VAL, TEST):
        taken = done.atlas.take(split)
        always = path.cost.fixed + path.cost.units
        shares = (np.asarray(taken.macs)[:, :2] - always) / path.cost.conditional
        rows = [row for row in found.rows if row.split == split]
        assert [row.executed for row in rows] == pytest.approx(shares.mean(axis=0).tolist())
        assert [row.spread for row in rows] == pytest.approx(shares.std(axis=0).tolist())
        assert all(row.low <= row.executed <= row.high for row in rows)
        assert {row.samples for row in rows} == {len(taken)}
    assert found.u == 0.5
    assert sum(row.samples for row in found.classes) == len(done.ready.images.rows(TEST))
    spent = sum(row.mean * row.samples for row in found.classes)
    assert spent == pytest.approx(float(np.asarray(done.atlas.take(TEST).macs)[:, 1].sum()))
    assert [row.mean for row in found.classes] == sorted(
        (row.mean for row in found.classes), reverse=True
    )
    assert [block.stride for block in found.blocks] == [1, 2]


def made_budgets(*misses: float) -> Executed:
    rows = tuple(
        BudgetRow(split, asked, asked + miss, asked + miss - 0.004, asked + miss + 0.004, 0.05, 900)
        for split in (CONTROLLER_VAL, TEST)
        for asked, miss in zip((0.1, 0.2, 0.3), misses, strict=True)
    )
    names = [f"class number {k}" for k in range(60)]
    classes = [
        ClassSpending(name, 2e6 - 1e4 * k, tuple(2e6 - 1e4 * k + 1e5 * q for q in range(5)), 15)
        for k, name in enumerate(names)
    ]
    blocks = [BlockRate(f"block {k}", 1 + (k % 5 == 0), 0.02 * k % 1, 0.1) for k in range(57)]
    return Executed(rows, tuple(classes), tuple(blocks), 0.5, 3_000_000)


def test_a_budget_is_kept_up_to_one_point() -> None:
    kept = made_budgets(0.0099, -0.0099, 0.0)
    assert kept.is_kept
    assert kept.summary()["within_one_point"] == 1.0
    assert "Budgets are all within 1 point" in kept.table()
    missed = made_budgets(0.0, -0.0101, 0.005)
    assert not missed.is_kept
    assert (missed.worst.asked, missed.worst.split) == (0.2, CONTROLLER_VAL)
    assert missed.summary()["test/farthest_points"] == pytest.approx(1.01)
    assert "Budgets are NOT all within 1 point; farthest: -1.01 points at 20%" in missed.table()
    assert missed.table().count(" NO") == 2 + 1


# Maps.


def test_a_map_counts_the_blocks_of_every_pixel(done: Finished, path: DynConvPath) -> None:
    images = done.ready.images
    found = ponder_maps(path, images, count=10)
    labels = [row.label for row in found.rows]
    assert labels == [digit for digit in images.classes for _ in found.budgets]
    assert set(np.unique(found.maps)) <= {0.0, 1.0, 2.0}
    for number in range(10):
        for row, pixels in zip(found.of(number), found.maps[number], strict=True):
            x = torch.from_numpy(np.asarray(images.images[[row.sample]])).float() / 255.0
            looked = path.examine(x, row.u)
            # Both blocks' masks cover the whole image, one of them at half the resolution.
            assert row.blocks == pytest.approx(float(looked.rates.sum()))
            assert row.blocks == pytest.approx(float(pixels.mean()))
            answer = path(x, row.u)
            assert row.macs == int(answer.macs)
            assert row.answer == images.classes[int(answer.output.argmax())]
            assert row.correct == float(row.answer == row.label)
    assert len({row.sample for row in ponder_maps(path, images, count=3).rows}) == 3


def made_poses() -> Ponder:
    rng = np.random.default_rng(0)
    rows = [PonderRow(k, "small", u, u, 1000, 3.0, "", 0.5) for k in range(5) for u in (0.1, 0.5)]
    return Ponder(
        rows=tuple(rows),
        images=rng.integers(0, 256, (5, 3, 16, 16), np.uint8),
        maps=rng.integers(0, 9, (5, 2, 16, 16)).astype(np.float32),
        seen=rng.random((5, 2, 16, 2)).astype(np.float32) * 16,
        known=rng.random((5, 16, 3)).astype(np.float32) * 16,
        block_count=9,
    )


# Blocks that die.


def made_side(criterion: str, rates: dict[float, list[float]]) -> Side:
    def state(rate: float) -> State:
        return "never" if rate < 0.01 else "always" if rate > 0.99 else "alive"

    rows = [
        BlockRow(criterion, u, k, f"block {k}", rate, state(rate), 0.9, 100)
        for u, part in rates.items()
        for k, rate in enumerate(part)
    ]
    count = len(next(iter(rates.values())))
    return Side(criterion, np.full((3, count), 0.5), tuple(rows))


def test_a_block_is_dead_where_it_runs_nowhere_or_everywhere() -> None:
    alive = made_side("bounds", {0.25: [0.2, 0.3, 0.0, 0.5], 0.5: [0.5, 0.6, 0.4, 0.5]})
    dead = made_side("network", {0.25: [0.0, 1.0, 0.001, 0.5], 0.5: [0.0, 1.0, 0.5, 0.999]})
    found = Blocks((alive, dead), alpha=10.0)
    assert (alive.dead(0.25), alive.dead(0.5), alive.dead()) == (0.25, 0.0, 0.125)
    assert (dead.dead(0.25), dead.dead(0.5), dead.dead()) == (0.75, 0.75, 0.75)
    assert (alive.lifeless, dead.lifeless) == (0, 2)
    table = found.table()
    assert "block 2 never runs at 0.25" in table
    assert "block 1 always runs at 0.25, 0.5" in table
    assert "dead at every budget: bounds 0, network 2." in table
    assert found.summary()["network/dead_at_25"] == 0.75


def test_blocks_are_measured_beside_a_twin_without_bounds(root: Path, path: DynConvPath) -> None:
    job = quick_job(root)
    record = record_of("blocks", job, AnalysisOptions(samples=40))
    history = record["training"]
    assert np.shape(history["bounds"]) == np.shape(history["network"]) == (2, 2)
    assert history["bounds"] == path.spec.provenance["executed_shares"]
    assert {row["samples"] for row in record["rows"]} == {40}
    twin = network_twin(job)
    assert twin.path.sparsity.criterion == "network"
    assert replace(twin, path=job.path) == job
    ready = prepare(twin)
    stage = build_path(ready)
    assert stage.was_reused
    assert record["provenance"]["fingerprints"]["network"] == stage.path.fingerprint
    images = ready.images
    rates = spent_at(stage.path, images, spread_rows(images, TEST, 40), 0.25).rates  # type: ignore[arg-type]
    told = [r for r in record["rows"] if (r["criterion"], r["u"]) == ("network", 0.25)]
    assert [row["rate"] for row in told] == pytest.approx(rates.mean(axis=0).tolist())
    with pytest.raises(InvalidSetting, match="is trained so"):
        run_analysis("blocks", [twin])


# Dense networks.


def macs_of(network: Any) -> int:
    found: int = make_network(network).costs().full  # type: ignore[operator]
    return found


def test_dense_relatives_of_a_resnet_are_shallower_or_narrower() -> None:
    found = static_networks(cifar_resnet(20))
    assert list(found) == ["ResNet-8", "ResNet-14", "ResNet-20", "ResNet-20, half width"]
    assert found["ResNet-8"].layers == (1, 1, 1)
    assert found["ResNet-20, half width"].widths == (8, 16, 32)
    for network in found.values():
        assert (network.mask_unit, network.is_budgeted) == ("none", False)
    macs = [macs_of(network) for network in found.values()]
    assert macs[0] < macs[1] < macs[2]
    assert macs[3] < 0.3 * macs[2]
    assert list(static_networks(cifar_resnet(32)))[:3] == ["ResNet-14", "ResNet-26", "ResNet-32"]


def test_dense_relatives_of_an_hourglass_have_fewer_stacks_or_are_narrower() -> None:
    found = static_networks(mpii_hourglass(4))
    assert [(n.stacks, n.channels) for n in found.values()] == [
        *((1, 96), (2, 96), (4, 96), (4, 72), (4, 48))
    ]
    small = static_networks(small_hourglass(1, features=8))
    assert [(n.stacks, n.channels) for n in small.values()] == [(1, 8), (1, 4)]
    assert {n.mask_unit for n in small.values()} == {"none"}
    with pytest.raises(InvalidSetting, match="no dense networks to hold a VggConfig against"):
        static_networks(small_vgg())


def test_a_dense_network_is_trained_once_and_named_by_what_shapes_it(
    done: Finished, tmp_path: Path
) -> None:
    ready = done.ready
    config, phase1, images = ready.network, replace(ready.job.phase1, epochs=1), ready.images
    network = replace(NETWORK, mask_unit="none", is_budgeted=False, layers=(1,), widths=(8,))
    made = static_network(network, config, phase1, images, tmp_path)
    assert made.folder == tmp_path / static_fingerprint(network, config, phase1, images)
    assert {file.name for file in made.folder.iterdir()} == {"weights.safetensors", "result.json"}
    told = json.loads((made.folder / "result.json").read_text())
    assert told.keys() == {"losses", "history", "seconds", "mean", "std", "network"}
    again = static_network(network, config, phase1, images, tmp_path)
    assert (made.was_reused, again.was_reused) == (False, True)
    assert again.mean == made.mean == done.path.spec.mean
    rows = spread_rows(images, TEST, 9)
    first, second = (answers_of(static, images, rows) for static in (made, again))
    assert torch.equal(first, second)
    # Masks and their losses shape no dense network; images and training do.
    masks = replace(config, sparsity=SparsityConfig(alpha=1.0), calibration_samples=5)
    slower = replace(phase1, checkpoint_seconds=1.0)
    assert static_fingerprint(network, masks, slower, images) == made.fingerprint
    longer = replace(phase1, epochs=2)
    assert static_fingerprint(network, config, longer, images) != made.fingerprint
    (made.folder / "result.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="does not say how images are normalised"):
        static_network(network, config, phase1, images, tmp_path)
    deep = replace(NETWORK, bottleneck=True, stem="imagenet")
    pretrained = replace(config, network=deep, weights="resnet.pth")
    with pytest.raises(InvalidSetting, match="trained as the dynamic one was"):
        static_network(network, pretrained, phase1, images, tmp_path)


def test_accuracies_are_compared_at_equal_macs_over_the_same_images(
    done: Finished, path: DynConvPath, tmp_path: Path
) -> None:
    ready = done.ready
    dense = replace(NETWORK, mask_unit="none", is_budgeted=False)
    phase1 = replace(ready.job.phase1, epochs=1)
    sizes = {"same": (8, 16), "tiny": (1, 1), "narrow": (6, 12)}
    networks = {
        name: static_network(
            replace(dense, widths=widths), ready.network, phase1, ready.images, tmp_path
        )
        for name, widths in sizes.items()
    }
    found = against_static(path, done.atlas, ready.images, networks, epochs=1)
    taken = done.atlas.take(TEST)
    correct = np.asarray(taken.correct, np.float64)
    macs = np.asarray(taken.macs, np.float64).mean(axis=0)
    assert [row.accuracy for row in found.arms] == correct.mean(axis=0).tolist()
    assert [row.macs for row in found.arms] == macs.tolist()
    same, tiny, narrow = found.against
    # A dense network of the same structure costs exactly what the dynamic one costs at u = 1.
    assert same.macs == path.full_macs
    assert same.dynamic == pytest.approx(correct[:, -1].mean())
    assert (tiny.dynamic, tiny.difference, tiny.low) == (None, None, None)
    assert macs[0] < narrow.macs < macs[-1]
    assert narrow.dynamic == pytest.approx(np.interp(narrow.macs, macs, correct.mean(axis=0)))
    own = found.dense[2].accuracy
    assert narrow.dynamic is not None
    assert narrow.difference == pytest.approx(narrow.dynamic - own)
    assert narrow.difference is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert narrow.low <= narrow.difference <= narrow.high
    rows = np.asarray(taken.sample)
    answers = answers_of(networks["narrow"], ready.images, rows).argmax(dim=1).numpy()
    assert own == pytest.approx(float((answers == ready.images.labels[rows]).mean()))
    assert found.joints == {}
    assert found.table().count("unknown") == 2 + 1
    assert "points_over/tiny" not in found.summary()


def test_joints_of_a_pose_network_are_told_beside_its_accuracy(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = DataConfig(name="figures", image_size=32, limit=8, cache=str(cache))
    network = small_hourglass(1, features=8, image_size=32)
    network = replace(network, depth=1, expansion=2)
    job = replace(
        preset("digits"),
        data=replace(data, fractions=(0.25, 0.25, 0.25, 0.25)),
        path=DynConvConfig(network=network, sparsity=SparsityConfig(alpha=0.01), sigma=1.0),
    )
    job = with_overrides(job, [f"storage.root={root}", "phase1.epochs=1", "arms=0.5,1"])
    ready = prepare(job)
    build_outcomes(ready, build_path(ready).path.with_arms(job.arms))
    record = record_of("static", job)
    assert record["measure"] == "PCKh@0.5"
    assert set(record["joints"]) == {
        "hourglass, 1 stack of 8 channels",
        "hourglass, 1 stack of 4 channels",
        "DynConv, u = 0.5",
        "DynConv, u = 1",
    }
    for groups in record["joints"].values():
        assert {"head", "shoulder", "wrist", "ankle", "mean"} <= groups.keys()
        assert all(0.0 <= share <= 1.0 for share in groups.values())
    maps = record_of("ponder", job, AnalysisOptions(images=3))
    assert {row["answer"] for row in maps["rows"]} == {""}
    assert len({row["sample"] for row in maps["rows"]}) == 3


# From a job to its folder.


def test_the_verb_measures_budgets_and_counts_images(
    root: Path, done: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse"]) == 0
    listed = capsys.readouterr().out.splitlines()
    for name, of in (("ponder", "Figs. 4 and 8"), ("executed", "Fig. 6"), ("blocks", "Fig. 9")):
        assert next(s for s in listed if s.startswith(name)).endswith(f"(DynConv {of}).")
    assert next(s for s in listed if s.startswith("static")).endswith("(DynConv Fig. 5).")
    record = record_of("executed", quick_job(root), AnalysisOptions(samples=30))
    assert {row["samples"] for row in record["rows"]} == {30}
    assert [row["asked"] for row in record["rows"]] == [k / 10 for k in range(1, 10)] * 2
    assert record["provenance"]["fingerprints"] == {
        "path": done.path.fingerprint,
        "atlas": done.atlas.header.fingerprint,
    }
    assert record["provenance"]["settings"] == {"samples": 30}


@pytest.mark.parametrize("name", ["ponder", "executed", "blocks", "static"])
def test_a_data_path_without_masks_is_refused_before_it_is_looked_for(
    name: str, tmp_path: Path
) -> None:
    job = with_overrides(preset("digits"), [f"storage.root={tmp_path}/runs"])
    with pytest.raises(InvalidSetting, match="data path of digits is a VggConfig"):
        run_analysis(name, [job])
    with pytest.raises(DataError, match="no data path of this job"):
        run_analysis(name, [quick_job(tmp_path / "runs")])
    assert not (tmp_path / "runs" / "paths").exists()
    assert not (tmp_path / "runs" / "static").exists()


def test_a_dynamic_network_has_no_vanilla_twin(root: Path) -> None:
    paths = set((root / "paths").iterdir())
    record = record_of("per_class", quick_job(root))
    assert record["vanilla_accuracy"] is None
    assert set((root / "paths").iterdir()) == paths


# Pictures.


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    many = {u: [(k * 7 % 11) / 10 for k in range(57)] for u in (0.1, 0.25, 0.5, 0.75)}
    few = {0.5: [0.0, 0.4, 1.0]}
    return {
        "many classes and blocks": made_budgets(0.001, -0.02, 0.003).figure(),
        "poses": made_poses().figure(),
        "few blocks": Blocks((made_side("bounds", few), made_side("network", few)), 10.0).figure(),
        "many blocks": Blocks((made_side("bounds", many), made_side("network", many)), 1).figure(),
    }


@pytest.mark.parametrize("name", ["many classes and blocks", "poses", "few blocks", "many blocks"])
def test_words_of_a_picture_are_within_it_and_apart(name: str, figures: dict[str, Figure]) -> None:
    figure = figures[name]
    boxes = []
    for axes in figure.axes:
        words = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]  # type: ignore[attr-defined]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            words += [label for tick in ticks for label in (tick.label1, tick.label2)]
        boxes += [
            (text.get_text(), text.get_window_extent())
            for text in words
            if text.get_visible() and text.get_text().strip()
        ]
    boxes += [
        (text.get_text(), text.get_window_extent())
        for legend in figure.legends
        for text in legend.get_texts()
    ]
    boxes.append(("headline", figure._suptitle.get_window_extent()))  # type: ignore[attr-defined]
    assert len(boxes) > 10
    for words_of, box in boxes:
        assert min(box.x0, box.y0) >= -0.5, words_of
        assert box.x1 <= figure.bbox.x1 + 0.5, words_of
        assert box.y1 <= figure.bbox.y1 + 0.5, words_of
    for index, (words_of, box) in enumerate(boxes):
        for others, other in boxes[index + 1 :]:
            assert not box.overlaps(other), (words_of, others)
