"""Analyses say what the atlas holds, what cannot be read is unknown, and words are legible."""

import json
import sys
import types
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import (
    BadInput,
    CorruptArtifact,
    DataError,
    InvalidSetting,
    UnknownName,
)
from flyball.datapaths.learned_gates.comparison import Comparison, MethodResult
from flyball.datapaths.learned_gates.comparison_config import ComparisonConfig
from flyball.datapaths.learned_gates.comparison_result import write_comparison
from flyball.datapaths.learned_gates.curves import GateCurve
from flyball.datapaths.schedules import Phase1Config, incremental_utilization
from flyball.datapaths.splits import TEST
from flyball.platform.analyses import (
    ANALYSES,
    Analysis,
    AnalysisOptions,
    AnalysisResult,
    MeasureConfig,
    Measured,
    Source,
    class_curves,
    compare_methods,
    comparison_of,
    component_use,
    controller_against_fixed,
    finished,
    finished_controller,
    open_comparison,
    run_analysis,
    throttling_curves,
    vanilla_of,
    vanilla_phase1,
)
from flyball.platform.analyses.energy import RaplMeter, find_meter
from flyball.platform.analyses.measured import measured_rows
from flyball.platform.analyses.per_class import MEAN
from flyball.platform.analyses.timing import Clocks, Timed, setting_of, time_arms
from flyball.platform.cli import main
from flyball.platform.controller_stage import train_controller
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.prepare import prepare
from flyball.platform.presets import preset
from flyball.platform.stages import build_outcomes, build_path
from flyball.platform.tracking import open_tracking

QUICK = (
    "path.stages=((8,),(8,))",
    "path.hidden=16",
    "path.components=8",
    "phase1.epochs=2",
    "learn.algorithm=plain",
    "learn.updates=60",
    "learn.validations=2",
    "arms=0.25,0.5,1",
    "data.fractions=0.3,0.2,0.2,0.3",
)


def quick_job(root: Path, *settings: str) -> Job:
    return with_overrides(preset("digits"), [f"storage.root={root}", *QUICK, *settings])


def made_atlas(arms: int = 4, classes: int = 3, count: int = 240, seed: int = 0) -> OutcomeAtlas:
    """Rows of every split; later arms are right more often, the first class always."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    chance = 0.4 + 0.5 * np.arange(1, arms + 1) / arms
    correct = (rng.random((count, arms)) < chance) | (label == 0)[:, None]
    return OutcomeAtlas.from_arrays(
        [(k + 1) / arms for k in range(arms)],
        correct=correct,
        confidence=np.full((count, arms), 0.5),
        macs=[100 * (k + 1) ** 2 for k in range(arms)],
        split=rng.integers(1, 4, count),
        label=label,
        classes=[f"class number {k}" for k in range(classes)],
        context_macs=100,
    )


def made_curve(
    accuracy: Iterable[float], complexity: Iterable[float], modules: int = 3
) -> GateCurve:
    """Every T-module on as much as all together; MACs grow as the square."""
    spent = tuple(complexity)
    return GateCurve(
        utilizations=tuple((k + 1) / len(spent) for k in range(len(spent))),
        accuracy=tuple(accuracy),
        complexity=spent,
        macs=tuple(1000 * c**2 for c in spent),
        mac_share=tuple(c**2 for c in spent),
        modules=tuple(f"stages.{k}.gate" for k in range(modules)),
        module_use=(spent,) * modules,
        gate_macs=0,
        samples=50,
    )


def made_comparison(modules: int = 3, requests: int = 5) -> Comparison:
    """Nested is best, learned gates lie between it and random ones."""
    spent = np.linspace(0.2, 1.0, requests)
    heights = {
        "nested": 0.9 * spent**0.1,
        "independent": 0.9 * spent,
        "reinforce": 0.9 * spent**0.4,
        "concrete": 0.9 * spent**0.3,
    }
    curves = {m: made_curve(h.tolist(), spent.tolist(), modules) for m, h in heights.items()}
    return Comparison(tuple(MethodResult(m, c, 1.0, (0.5,)) for m, c in curves.items()), 0.1)


# The rows are the atlas.


def test_the_rows_of_curves_are_the_means_of_the_atlas() -> None:
    atlas, other = made_atlas(), made_atlas(seed=1)
    found = throttling_curves([Source("one", atlas, other), Source("two", other)])
    for name, training, of in (
        ("one", "throttleable", atlas),
        ("one", "vanilla", other),
        ("two", "throttleable", other),
    ):
        part = [r for r in found.rows if (r.source, r.training) == (name, training)]
        taken = of.take(TEST)
        assert [r.u for r in part] == list(of.arms)
        means = np.asarray(taken.correct, np.float64).mean(axis=0)
        assert [r.accuracy for r in part] == means.tolist()
        assert [r.macs for r in part] == pytest.approx([100, 400, 900, 1600])
        assert all(r.low <= r.accuracy <= r.high for r in part)
        assert {r.samples for r in part} == {len(taken)}


def test_the_area_under_a_flat_curve_is_its_height() -> None:
    atlas = made_atlas(classes=1)
    figures = throttling_curves([Source("easy", atlas)]).summary()
    assert figures["easy/throttleable/area"] == pytest.approx(1.0, rel=1e-12)


def test_classes_weighted_by_their_samples_give_the_mean() -> None:
    atlas = made_atlas(classes=5)
    empty = replace(atlas, header=replace(atlas.header, classes=(*atlas.header.classes, "none")))
    found = class_curves(empty)
    labels = {row.label for row in found.rows}
    assert labels == {MEAN, *atlas.header.classes}  # a class without samples is left out
    for u in atlas.arms:
        at = {row.label: row for row in found.rows if row.u == u}
        mean = at.pop(MEAN)
        assert sum(r.samples for r in at.values()) == mean.samples == len(atlas.take(TEST))
        weighted = sum(r.samples * r.accuracy for r in at.values()) / mean.samples
        assert mean.accuracy == pytest.approx(weighted, rel=1e-12)
    assert found.gain("class number 0") == 0.0
    assert found.vanilla is None
    assert "run at u = 1): unknown" in found.table()


def test_an_atlas_without_test_rows_is_refused() -> None:
    atlas = made_atlas()
    without = replace(atlas, split=np.zeros(len(atlas), np.int8))
    with pytest.raises(DataError, match=r"test rows of the atlas, and it has none"):
        throttling_curves([Source("one", without)])


def test_two_curves_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="Name them apart"):
        throttling_curves([Source("one", made_atlas()), Source("one", made_atlas())])


# A controller against fixed u.


def four_samples() -> OutcomeAtlas:
    return OutcomeAtlas.from_arrays(
        (0.25, 0.5, 1.0),
        correct=[[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]],
        confidence=np.full((4, 3), 0.5),
        macs=[10, 40, 100],
        label=[0, 0, 1, 1],
        classes=("easy", "hard"),
        context_macs=10,
    )


def test_totals_of_utilization_are_those_of_the_paper() -> None:
    chosen = np.array([0, 2, 1, 0])
    found = controller_against_fixed(
        four_samples(), chosen, controller_macs=5, uses_context=True, vanilla=0.5
    )
    fixed = found.fixed
    assert [r.accuracy for r in fixed] == [0.25, 0.5, 0.75]
    assert [r.total_correct for r in fixed] == [0.25, 1.0, 3.0]
    assert [r.total for r in fixed] == [1.0, 2.0, 4.0]
    learned, bound = found.row("controller"), found.row("bound")
    assert (learned.accuracy, learned.total_correct, learned.total) == (0.5, 1.25, 2.0)
    assert learned.gross == pytest.approx((10 + 100 + 40 + 10) / 400)
    # Two choices above the context arm pay for the context too; every choice for the controller.
    assert learned.net == pytest.approx((10 + 110 + 50 + 10 + 4 * 5) / 400)
    # The lowest right u: .25, .5, 1, and the lowest arm where none is right.
    assert (bound.accuracy, bound.total_correct, bound.total) == (0.75, 1.75, 2.0)
    assert bound.u_correct == pytest.approx(1.75 / 3)
    assert (found.histogram, found.bound_histogram) == ((2, 1, 1), (2, 1, 1))
    assert found.class_histogram == ((1, 0, 1), (1, 1, 0))
    assert found.unanswerable == 1
    assert found.gap_closed == 0.0


def test_choosing_as_the_bound_closes_the_gap_and_nothing_is_above_it() -> None:
    atlas = made_atlas(arms=6).take(TEST)
    perfect = controller_against_fixed(atlas, np.asarray(atlas.correct).argmax(axis=1), vanilla=0.1)
    assert perfect.gap_closed == 1.0
    assert sum(perfect.histogram) == len(atlas)
    top = perfect.row("bound").accuracy
    rng = np.random.default_rng(3)
    for _ in range(5):
        other = controller_against_fixed(atlas, rng.integers(0, 6, len(atlas)))
        assert other.row("controller").accuracy <= top
        assert max(r.accuracy for r in other.fixed) <= top
        assert "it lies" in other.table() or other.gap_closed is not None


@pytest.mark.parametrize("chosen", [[0, 1], [0, 1, 2, 3], [0, 1, 2, -1]])
def test_a_choice_that_is_no_arm_is_refused(chosen: list[int]) -> None:
    with pytest.raises(InvalidSetting, match="chooses one of 3 arms"):
        controller_against_fixed(four_samples(), np.array(chosen))


# Gates.


def test_gates_are_compared_at_equal_spending_whatever_was_asked_for() -> None:
    spent = [0.25, 0.5, 0.75, 1.0]
    line = made_curve([0.5, 0.6, 0.7, 0.8], spent)
    lower = made_curve([0.3, 0.4, 0.5, 0.6], spent)
    asked_elsewhere = replace(lower, utilizations=(0.1, 0.2, 0.3, 0.4))
    results = tuple(
        MethodResult(name, curve, 1.0, ())
        for name, curve in (
            ("nested", line),
            ("independent", lower),
            ("reinforce", replace(asked_elsewhere, accuracy=(0.4, 0.5, 0.6, 0.7))),
        )
    )
    found = compare_methods({"vgg": Comparison(results, 0.1)})
    assert found.over_nested["vgg"] == pytest.approx({"independent": -0.2, "reinforce": -0.1})
    assert found.over_random["vgg"]["reinforce"] == pytest.approx(0.1)
    assert found.at_equal_complexity["vgg"]["nested"] == pytest.approx((0.5, 0.6, 0.7, 0.8))
    table = found.table()
    assert "vgg: nested beats every other way at equal complexity" in table
    assert "vgg: learned gates beat random ones" in table
    flipped = tuple(replace(r, curve=line if r.method == "independent" else lower) for r in results)
    turned = compare_methods({"vgg": Comparison(flipped, 0.1)}).table()
    assert "nested does not beat every other way" in turned
    assert "do not all beat random ones" in turned


def test_what_a_method_never_spends_is_not_made_up() -> None:
    narrow = made_curve([0.5, 0.6], [0.4, 0.6])
    found = compare_methods({"vgg": Comparison((MethodResult("nested", narrow, 1.0, ()),), 0.1)})
    quarter, half, *rest = found.at_equal_complexity["vgg"]["nested"]
    assert half == pytest.approx(0.55)
    assert [quarter, *rest] == [None, None, None]


def test_a_gates_own_macs_count_against_it() -> None:
    curve = replace(made_curve([0.5, 0.6], [0.5, 1.0]), gate_macs=100)
    found = compare_methods({"vgg": Comparison((MethodResult("contextual", curve, 1.0, ()),), 0.1)})
    assert [r.net_share - r.mac_share for r in found.rows] == pytest.approx([0.1, 0.1])


def test_the_tilt_says_where_a_gate_spends() -> None:
    even = component_use({"vgg": made_comparison()})
    assert len(even.sources()) == 2  # nested and random ones are not learned
    assert even.tilt(even.sources()[0]) == 0.0
    curve = made_curve([0.5, 0.6], [0.25, 0.75], modules=2)
    later = replace(curve, module_use=((0.0, 0.5), (0.5, 1.0)))
    found = component_use({"vgg": Comparison((MethodResult("concrete", later, 1.0, ()),), 0.1)})
    (source,) = found.sources()
    assert found.tilt(source) == pytest.approx(0.5)
    use, complexity, asked, modules = found.matrix(source)
    assert use.tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert complexity.tolist() == use.mean(axis=0).tolist()
    assert (asked.tolist(), modules) == ([0.5, 1.0], ["stages.0.gate", "stages.1.gate"])
    with pytest.raises(InvalidSetting, match="at least one learned gate; the comparison has"):
        component_use({"vgg": replace(made_comparison(), results=made_comparison().results[:2])})


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = made_comparison()
    write_comparison(tmp_path, "plan", {}, 0.1, {})
    with pytest.raises(DataError, match="has no finished method yet"):
        open_comparison(tmp_path)
    write_comparison(tmp_path, "plan", {}, 0.1, {r.method: r for r in written.results})
    assert open_comparison(tmp_path) == written
    (tmp_path / "comparison.json").write_text(json.dumps({"chance": 0.1}))
    with pytest.raises(CorruptArtifact, match=r"comparison\.json"):
        open_comparison(tmp_path)
    with pytest.raises(DataError, match="There is no comparison of gates in"):
        open_comparison(tmp_path / "nowhere")


# What is measured.


@dataclass
class Machine:
    """Time and energy that pass only where something runs: u squared seconds, u joules a pass."""

    seconds: float = 0.0
    spent: float = 0.0
    name: str = "a made-up meter"

    def run(self, u: float) -> None:
        self.seconds += u**2
        self.spent += u

    def now(self) -> float:
        return self.seconds

    def joules(self) -> float:
        return self.spent

    def clocks(self) -> Clocks:
        return Clocks(process=self.now, wall=self.now)


ARMS = (0.25, 0.5, 1.0)
CONFIG = MeasureConfig(batch=10, rounds=5, seconds=4.0, metered_seconds=4.0)


def measured(*, metered: bool) -> Measured:
    machine = Machine()
    meter = machine if metered else None
    timed = time_arms(machine.run, ARMS, CONFIG, meter=meter, clocks=machine.clocks())
    rows = measured_rows(timed, CONFIG.batch, {0.25: 0.5, 0.5: 0.7}, {u: u**2 for u in ARMS})
    return Measured(rows, setting_of("cpu", CONFIG, meter, "" if metered else "no counter"))


def test_a_share_of_time_and_energy_is_of_the_full_network() -> None:
    rows = measured(metered=True).rows
    assert [r.time_share for r in rows] == pytest.approx([0.0625, 0.25, 1.0])
    assert [r.seconds for r in rows] == pytest.approx([0.00625, 0.025, 0.1])
    assert [r.energy_share for r in rows] == pytest.approx([0.25, 0.5, 1.0])
    assert [r.joules for r in rows] == pytest.approx([0.025, 0.05, 0.1])
    # watts: u joules in u squared seconds
    assert [r.watts for r in rows] == pytest.approx([4.0, 2.0, 1.0])
    assert [r.power_share for r in rows] == pytest.approx([4.0, 2.0, 1.0])


def test_unknown_power_is_unknown_and_never_zero() -> None:
    found = measured(metered=False)
    for row in found.rows:
        assert (row.joules, row.watts, row.energy_share, row.power_share) == (None,) * 4
    assert found.rows[-1].accuracy is None  # nobody asked at u = 1
    assert found.table().count("unknown") == 4 * 3 + 1 + 1
    assert "Power and energy are unknown: no counter." in found.table()
    assert not any("power" in name or "energy" in name for name in found.summary())
    told = {name for _, values in found.points() for name in values}
    assert told == {
        f"measured/{name}" for name in ("accuracy", "throttle_ratio", "seconds", "time_share")
    }
    (legend,) = found.figure().legends
    said = [text.get_text() for text in legend.get_texts()]
    assert "accuracy, power, energy: unknown (no counter)" in said


def test_a_counter_that_stands_still_tells_nothing() -> None:
    still = Timed(np.ones(3), np.ones(3), np.zeros(3))
    (row,) = measured_rows({1.0: still}, 1, {}, {1.0: 1.0})
    assert (row.joules, row.watts) == (None, None)


def rapl(folder: Path, name: str, joules: float, kind: str) -> Path:
    zone = folder / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{kind}\n")
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text(f"{int(100 * 1e6)}\n")
    return zone / "energy_uj"


def test_rapl_counts_packages_once_and_over_a_wrap(tmp_path: Path) -> None:
    first = rapl(tmp_path, "intel-rapl:0", 90, "package-0")
    second = rapl(tmp_path, "intel-rapl:1", 10, "package-1")
    rapl(tmp_path, "intel-rapl:0:0", 50, "core")  # a part of package 0
    rapl(tmp_path, "intel-rapl:2", 50, "psys")  # the whole platform, both packages in it
    meter, why = find_meter("cpu", powercap=tmp_path)
    assert isinstance(meter, RaplMeter)
    assert (meter.name, why) == ("RAPL, 2 processor packages", "")
    start = meter.joules()
    first.write_text("5000000")  # wrapped at 100 J: 15 J more
    second.write_text("12000000")
    assert meter.joules() - start == pytest.approx(17.0)


def test_energy_that_cannot_be_read_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, why = find_meter("cpu", powercap=tmp_path)
    assert meter is None
    assert "no RAPL counter under" in why
    rapl(tmp_path, "intel-rapl:0", 1, "package-0").unlink()
    meter, why = find_meter("cpu", powercap=tmp_path)
    assert meter is None
    assert "RAPL cannot be read (No such file" in why
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_meter("cuda") == (None, "the package pynvml is not installed")


def test_a_gpu_counts_its_own_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError = OSError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: {"GPU-of-1": 2500}[handle]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda k: types.SimpleNamespace(uuid=f"of-{k}")
    )
    meter, why = find_meter("cuda:1")
    assert meter is not None
    assert (meter.joules(), why) == (2.5, "")


@pytest.mark.parametrize("settings", [{"batch": 0}, {"rounds": 0}, {"seconds": -1.0}])
def test_a_measurement_of_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="A measurement needs"):
        MeasureConfig(**settings)


# Pictures.


def words_of(axes: Axes) -> list[Text]:
    """What is written in and around one panel."""
    words = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]  # type: ignore[attr-defined]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        words += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        words += [t.label2 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    legend = axes.get_legend()
    return words + ([] if legend is None else legend.get_texts())


def check_legible(figure: Figure) -> None:
    """No words are cut off, and none are written over others."""
    texts = [*figure.texts] + ([] if figure._suptitle is None else [figure._suptitle])  # type: ignore[attr-defined]
    texts += [text for axes in figure.axes if axes.get_visible() for text in words_of(axes)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    unique = {id(text): text for text in texts}.values()
    shown = [
        (text.get_text(), text.get_window_extent())
        for text in unique
        if text.get_visible() and text.get_text().strip()
    ]
    assert len(shown) > 10
    for words, box in shown:
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= figure.bbox.x1, words
        assert box.y1 <= figure.bbox.y1, words
    for index, (words, box) in enumerate(shown):
        for others, other in shown[index + 1 :]:
            assert not box.overlaps(other), (words, others)


def made_analyses() -> dict[str, Analysis]:
    small, large = made_atlas(), made_atlas(arms=10, classes=10, count=2000)
    many = made_atlas(arms=16, classes=60, count=6000, seed=2)
    chosen = np.random.default_rng(1).integers(0, 10, len(large.take(TEST)))
    few = np.random.default_rng(1).integers(0, 16, len(many.take(TEST)))
    sources = [Source(f"network {k}", large, made_atlas(10, 10, 500, k)) for k in range(5)]
    three = {name: made_comparison() for name in ("vgg", "resnext", "densenet")}
    return {
        "curves of one": throttling_curves([Source("digits", small)]),
        "curves of five": throttling_curves(sources),
        "three classes": class_curves(small, small),
        "ten classes": class_curves(large, large),
        "sixty classes": class_curves(many),
        "a controller": controller_against_fixed(large.take(TEST), chosen, vanilla=0.8),
        "a controller of many": controller_against_fixed(many.take(TEST), few),
        "gates of one": compare_methods({"digits": made_comparison()}),
        "gates of three": compare_methods(three),
        "components": component_use({"digits": made_comparison()}),
        "many components": component_use({"densenet": made_comparison(48, 10)}),
        "measured": measured(metered=True),
        "measured in part": measured(metered=False),
    }


MADE = made_analyses()


@pytest.mark.parametrize("name", MADE)
def test_words_are_neither_cut_off_nor_written_over_each_other(name: str) -> None:
    analysis = MADE[name]
    check_legible(analysis.figure())
    lines = analysis.table().splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert analysis.name in ANALYSES
    assert not any(np.isnan(value) for value in analysis.summary().values())


# From a job to its folder and its run.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a data path, its atlas and a controller."""
    folder = tmp_path_factory.mktemp("analyses") / "runs"
    ready = prepare(quick_job(folder))
    path = build_path(ready).path.with_arms(ready.job.arms)
    asked = build_outcomes(ready, path)
    train_controller(ready, path, asked.atlas, asked.folder)
    return folder


@pytest.fixture(scope="module")
def by_class(root: Path) -> AnalysisResult:
    return run_analysis("per_class", [quick_job(root)])


def test_the_vanilla_network_trains_at_full_utilization_alone() -> None:
    config = vanilla_phase1(Phase1Config(schedule="sandwich", epochs=9, increment=0.1))
    assert {incremental_utilization(config, epoch) for epoch in range(9)} == {1.0}
    assert replace(config, schedule="sandwich", increment=0.1) == Phase1Config(epochs=9)


def test_the_vanilla_line_is_what_the_vanilla_network_answers_at_full_utilization(
    root: Path, by_class: AnalysisResult
) -> None:
    done = finished(quick_job(root))
    twin = vanilla_of(done.ready)
    assert twin.outcomes.was_reused
    assert twin.path.fingerprint != done.path.fingerprint
    images = done.ready.images
    rows = images.rows(TEST)
    pixels = torch.from_numpy(np.asarray(images.images[rows])).float() / 255.0
    answers = twin.path(pixels, 1.0).output.argmax(dim=1).numpy()
    record = json.loads(by_class.written.record.read_text())
    assert record["vanilla_accuracy"] == pytest.approx(
        float((answers == images.labels[rows]).mean()), abs=1e-12
    )
    assert record["provenance"]["fingerprints"] == {
        "path": done.path.fingerprint,
        "atlas": done.atlas.header.fingerprint,
        "vanilla": twin.path.fingerprint,
    }


def test_an_analysis_lies_whole_in_its_folder_and_in_mlflow(
    root: Path, by_class: AnalysisResult
) -> None:
    assert by_class.folder.parent == root / "analyses"
    names = {"per_class.json", "per_class.png", "per_class.txt"}
    assert {file.name for file in by_class.folder.iterdir()} == names
    assert by_class.written.picture.read_bytes().startswith(b"\x89PNG")
    assert by_class.written.table.read_text() == by_class.analysis.table() + "\n"
    client = open_tracking(None, root).client
    run = client.get_run(by_class.run.run_id)
    assert run.info.status == "FINISHED"
    done = finished(quick_job(root))
    tags = run.data.tags
    assert tags["flyball.analysis"] == "per_class"
    assert tags["flyball.preset"] == "digits"
    assert tags["flyball.path"] == done.path.fingerprint
    assert tags["flyball.atlas"] == done.atlas.header.fingerprint
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "analysis")}
    assert files == names | {"per_class_rows.json"}
    curve = client.get_metric_history(run.info.run_id, f"per_class/{MEAN}/accuracy")
    assert [point.step for point in curve] == [25, 50, 100]
    assert [p.value for p in curve] == [
        float(m) for m in np.asarray(done.atlas.take(TEST).correct, np.float64).mean(axis=0)
    ]
    again = run_analysis("per_class", [quick_job(root)])
    assert (again.run.run_id, again.run.was_there) == (by_class.run.run_id, True)
    assert again.folder == by_class.folder


def test_the_controllers_histogram_counts_every_test_row(root: Path) -> None:
    job = quick_job(root)
    done = finished(job)
    result = run_analysis("controller", [job], AnalysisOptions(vanilla=False))
    record = json.loads(result.written.record.read_text())
    count = len(done.ready.images.rows(TEST))
    assert sum(record["histogram"]) == sum(record["bound_histogram"]) == count
    assert np.sum(record["class_histogram"], axis=0).tolist() == record["histogram"]
    labels = np.bincount(done.ready.images.labels[done.ready.images.rows(TEST)])
    assert np.sum(record["class_histogram"], axis=1).tolist() == labels.tolist()
    fingerprint = finished_controller(done).folder.name
    assert record["provenance"]["fingerprints"]["controller"] == fingerprint
    assert record["vanilla_accuracy"] is None


def test_a_measurement_says_where_and_when(root: Path) -> None:
    job = quick_job(root)
    config = MeasureConfig(batch=8, rounds=2, seconds=0.001, metered_seconds=0.001)
    result = run_analysis("measured", [job], AnalysisOptions(measure=config))
    record = json.loads(result.written.record.read_text())
    setting = record["setting"]
    assert (setting["device"], setting["batch"], setting["rounds"]) == ("cpu", 8, 2)
    assert setting["threads"] == job.compute.threads == 1
    assert setting["precision"] == "float32"
    assert setting["date"].endswith("+00:00")
    assert [row["u"] for row in record["rows"]] == [0.25, 0.5, 1.0]
    means = np.asarray(finished(job).atlas.take(TEST).correct, np.float64).mean(axis=0)
    assert [row["accuracy"] for row in record["rows"]] == means.tolist()
    assert record["rows"][-1]["time_share"] == 1.0
    assert (setting["meter"] is None) == (record["rows"][0]["joules"] is None)


def test_gates_of_a_job_are_compared_and_found_again(root: Path) -> None:
    short = ComparisonConfig(
        phase1=Phase1Config(schedule="uniform", epochs=1, batch_size=64),
        methods=("nested", "independent"),
        utilizations=(0.5, 1.0),
        draws=1,
        train_images=128,
    )
    ready = prepare(quick_job(root))
    first, folder = comparison_of(ready, short)
    assert folder.parent == root / "gates"
    assert open_comparison(folder) == first
    result = run_analysis("gates", [quick_job(root)], AnalysisOptions(compare=short))
    assert [r.accuracy for r in result.analysis.rows] == [r.accuracy for r in first.rows()]
    elsewhere = AnalysisOptions(comparisons={"vgg": folder})
    drawn = run_analysis("gates", [quick_job(root)], elsewhere)
    assert {r.network for r in drawn.analysis.rows} == {"vgg"}


def test_the_verb_lists_analyses_and_runs_one(
    root: Path, by_class: AnalysisResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse"]) == 0
    listed = capsys.readouterr().out
    for figure, name in zip((3, 4, 5, 8, 9, 10), list(ANALYSES)[:6], strict=True):
        assert f"(TNN Fig. {figure})." in next(s for s in listed.splitlines() if name in s)
    settings = [part for text in (f"storage.root={root}", *QUICK) for part in ("--set", text)]
    assert main(["analyse", "per_class", "digits", "--json", *settings]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == [asdict(row) for row in by_class.analysis.rows]
    assert told["run"]["run_id"] == by_class.run.run_id


# Bad input.


def test_an_unknown_analysis_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no analysis 'perclass'\. Did you mean 'per_class'"):
        run_analysis("perclass", [preset("digits")])
    with pytest.raises(InvalidSetting, match="at least one job"):
        run_analysis("curves", [])


@pytest.mark.parametrize("name", ["curves", "per_class", "controller", "measured"])
def test_a_job_without_artifacts_is_told_what_to_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data path of this job. Run `flyball outcomes digits`"):
        run_analysis(name, [quick_job(tmp_path / "runs")])
    assert not (tmp_path / "runs" / "paths").exists()


def test_other_arms_or_another_reward_are_told_what_to_run(root: Path) -> None:
    with pytest.raises(DataError, match=r"no outcome atlas of this job. Run `flyball outcomes"):
        run_analysis("per_class", [quick_job(root, "arms=0.5,1")])
    with pytest.raises(DataError, match=r"no controller of this job. Run `flyball train digits`"):
        run_analysis("controller", [quick_job(root, "reward.gamma1=0.1")])


def test_an_analysis_of_one_job_refuses_two(root: Path) -> None:
    with pytest.raises(InvalidSetting, match="This analysis is of one job; 2 came"):
        run_analysis("measured", [quick_job(root), quick_job(root)])


def test_a_damaged_record_of_gates_is_refused_before_anything_is_written(root: Path) -> None:
    before = {file for file in (root / "analyses").rglob("*") if file.is_file()}
    with pytest.raises(BadInput, match="There is no comparison of gates"):
        run_analysis(
            "components", [quick_job(root)], AnalysisOptions(comparisons={"x": root / "nowhere"})
        )
    assert {file for file in (root / "analyses").rglob("*") if file.is_file()} == before
