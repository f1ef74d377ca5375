import re
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from flyball.controllers.bootstrap import Interval
from flyball.controllers.cascade import Cascade
from flyball.controllers.evaluation import Choices, Evaluation, Rung
from flyball.datapaths.errors import StorageError
from flyball.platform.picture import RUNG_NAMES, ladder_figure
from flyball.platform.report import draw_ladder, ladder_table, verdict

FREE = ("worst", "random", "best_fixed", "static_mixture", "confidence_cascade")
ORACLES = ("per_class_oracle", "informed_ceiling", "per_sample_oracle")


def near(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half)


def rung(name: str, accuracy: float, net: float, detail: str = "") -> Rung:
    return Rung(name, near(accuracy), near(0.5, 0), near(net), near(net), near(-0.25), detail)


def found(
    arm_count: int = 4, classes: int = 3, gain: float = 0.02, low: float = 0.01
) -> Evaluation:
    arms = tuple((k + 1) / arm_count for k in range(arm_count))
    fixed = [rung(f"fixed_{u:g}", 0.7 + 0.2 * u**0.5, u**2, f"u = {u:g}") for u in arms]
    first = [rung(n, 0.8, 0.3, f"{n} in words") for n in FREE]
    rest = [rung(n, 0.95, 0.1) for n in ORACLES]
    rungs = (*first[:2], *fixed, *first[2:], rung("learned", 0.82, 0.31), *rest)
    shares = np.random.default_rng(0).dirichlet(np.ones(arm_count), classes)
    return Evaluation(
        arms=arms,
        classes=tuple(f"class {k}" for k in range(classes)),
        account="net",
        level=0.95,
        samples={"controller_train": 30, "controller_val": 2000, "test": 5000},
        full_macs=1000,
        controller_macs=5,
        context_macs=15,
        rungs=rungs,
        validation_rungs=rungs,
        budget_curve=(rung("budget_0.2", 0.7, 0.2), rung("budget_0.5", 0.85, 0.5)),
        gain_over_static={
            "controller_val": Interval(gain, low, gain + 0.01),
            "test": Interval(-0.0123, -0.02, 0.004),
        },
        gain_at_gross={"controller_val": near(0.03), "test": near(0.04)},
        share_of_informed_ceiling={"controller_val": 0.125, "test": None},
        choices=Choices(1, tuple(range(arm_count)), Cascade((0,), ()), (0,) * classes),
        histogram=tuple(float(s) for s in shares.mean(axis=0)),
        class_histogram=tuple(tuple(float(s) for s in row) for row in shares),
        notes=("Something to know.",),
    )


def test_every_rung_has_a_row_with_its_figures_and_intervals() -> None:
    lines = ladder_table(found()).splitlines()
    rows = {line[:18].strip(): line for line in lines[2:16]}
    assert set(RUNG_NAMES.values()) <= set(rows)
    assert [len(re.findall(r"\[", rows[name])) for name in RUNG_NAMES.values()] == [5] * 9
    assert ".820 [.810, .830]" in rows["learned controller"]
    assert "-.250 [-.260, -.240]" in rows["learned controller"]
    assert "fixed arm u = 0.25" in ladder_table(found())


def test_columns_are_aligned() -> None:
    lines = ladder_table(found()).splitlines()
    rows = [line for line in lines if line.count("[") == 5]
    assert len(rows) == 9 + 4
    points = {tuple(m.start() for m in re.finditer(r"\.\d{3} \[", row)) for row in rows}
    assert len(points) == 1
    titles = ["accuracy", "mean u", "throttle gross", "throttle net", "reward"]
    assert re.sub(r"\s{2,}", "|", lines[0].strip()).split("|") == titles


def test_the_gains_and_the_ceiling_are_told_in_points_and_per_cent() -> None:
    table = ladder_table(found())
    assert "test -1.23 points [-2.00, +0.40], controller_val +2.00 points [+1.00, +3.00]" in table
    assert "test not stated, controller_val 12%" in table
    assert "One choice costs 5 MACs, its context 15: 2.0% of the full data path" in table
    assert "Measured on 5,000 test samples" in table
    assert "Note: Something to know." in table


def test_no_line_ends_in_blanks() -> None:
    assert all(line == line.rstrip() for line in ladder_table(found()).splitlines())


@pytest.mark.parametrize(
    ("gain", "low", "sentence"),
    [
        (0.02, 0.01, r"beats the static mixture .* \(\+2\.00 points .*: it may be promoted"),
        (0.02, -0.01, r"may be chance .*: not promoted"),
        (-0.01, -0.02, r"is dominated: .* \(-1\.00 points .*: not promoted"),
        (0.0, -0.01, r"is dominated: .*: not promoted"),
    ],
)
def test_the_verdict_says_whether_it_is_promoted(gain: float, low: float, sentence: str) -> None:
    evaluation = found(gain=gain, low=low)
    assert re.search(sentence, verdict(evaluation))
    assert verdict(evaluation) in ladder_table(evaluation)


def test_the_picture_is_a_png_wide_enough_to_read_and_always_the_same(tmp_path: Path) -> None:
    first = draw_ladder(found(), tmp_path / "new" / "ladder.png").read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", first[16:24])
    assert width >= 1200
    assert 0.5 < height / width < 0.8
    assert draw_ladder(found(), tmp_path / "again.png").read_bytes() == first
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["ladder.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "ladder.png").mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .*ladder\.png"):
        draw_ladder(found(), tmp_path / "ladder.png")
    assert [file.name for file in tmp_path.iterdir()] == ["ladder.png"]


def words_of(axes: Axes) -> list[Text]:
    """What is written in and around one panel."""
    words = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]  # type: ignore[attr-defined]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        words += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return words


def boxes_of(texts: Iterable[Text]) -> list[tuple[str, Bbox]]:
    shown = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


SHAPES = [(4, 3), (10, 10), (10, 100), (2, 1), (40, 5)]


@pytest.mark.parametrize(("arm_count", "classes"), SHAPES)
def test_words_are_neither_cut_off_nor_written_over_each_other(
    arm_count: int, classes: int
) -> None:
    figure = ladder_figure(found(arm_count, classes))
    left, *right = figure.axes
    around = [text for axes in right for text in words_of(axes)]
    around += figure.legends[0].get_texts() + figure.texts
    apart = boxes_of(around)
    for words, box in [*apart, *boxes_of(words_of(left))]:
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= figure.bbox.x1, words
        assert box.y1 <= figure.bbox.y1, words
    for index, (words, box) in enumerate(apart):
        for others, other in apart[index + 1 :]:
            assert not box.overlaps(other), (words, others)


def test_the_legend_names_every_rung_and_tells_what_lies_off_the_axis() -> None:
    evaluation = found()
    far = tuple(
        replace(r, accuracy=near(0.05)) if r.name == "worst" else r for r in evaluation.rungs
    )
    figure = ladder_figure(replace(evaluation, rungs=far))
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    for name in RUNG_NAMES.values():
        assert any(entry.startswith(f"{name}: ") for entry in words)
    assert "worst: 5.0% at 0.300, off the axis" in words
    assert "learned controller: 82.0% at 0.310" in words
    lowest, _ = figure.axes[0].get_ylim()
    assert lowest > 0.5


def test_the_headline_is_the_deciding_figure() -> None:
    figure = ladder_figure(found(gain=-0.01, low=-0.02))
    title = figure.get_suptitle()
    assert "is dominated by the static mixture" in title
    assert "-1.23 points on test [-2.00, +0.40], -1.00 points on controller_val" in title
