"""The front of a sweep: who is on it, how much it is worth, who serves which name."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from flyball.controllers.bootstrap import Interval
from flyball.controllers.evaluate import EvaluationConfig
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.platform.sweep.front import (
    Front,
    choose,
    find_front,
    hypervolume,
    measure_references,
    on_the_front,
)
from flyball.platform.sweep.front_picture import draw_front
from flyball.platform.sweep.front_table import front_columns, front_table, write_front
from flyball.platform.sweep.result import PointResult

CONFIG = EvaluationConfig(bootstrap=50)
FILES = ("front.json", "front.txt", "points.csv", "front.png")


def around(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half)


def point(key: str, accuracy: float, net: float, gain: float = 0.005) -> PointResult:
    """A gain of 0.01 and less may be chance."""
    return PointResult(
        key=key,
        settings=(("reward.gamma1", key),),
        name=f"gamma1={key}",
        accuracy=around(accuracy),
        utilization=around(0.4),
        gross=around(net),
        net=around(net),
        reward=around(0.5),
        gain_over_static=around(gain),
        beats_static=gain > 0.01,
        dominated=gain <= 0,
        controller_macs=20,
        parameters=100,
        updates=50,
        best_update=40,
        seconds=1.5,
        run_id=f"{key}-run-of-mlflow",
    )


def keys(points: tuple[PointResult, ...]) -> str:
    return "".join(point.key for point in points)


@pytest.fixture(scope="module")
def atlas() -> OutcomeAtlas:
    """Costs .1, .4 and 1 of the full path; of eight validation rows 4, 6 and 7 are right."""
    needed = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    return OutcomeAtlas.from_arrays(
        (0.2, 0.5, 1.0),
        correct=np.arange(3) >= np.tile(needed, 2)[:, None],
        confidence=np.full((16, 3), 0.9),
        macs=[100, 400, 1000],
        split=np.repeat([1, 2], 8),
    )


@pytest.fixture(scope="module")
def front(atlas: OutcomeAtlas) -> Front:
    points = [
        point("a", 0.60, 0.15, -0.02),
        point("b", 0.70, 0.20, 0.03),
        point("c", 0.65, 0.25),
        point("d", 0.80, 0.45, 0.02),
    ]
    return find_front(points, atlas, CONFIG)


def test_a_point_is_on_the_front_unless_another_is_as_good_in_both() -> None:
    points = (
        point("a", 0.7, 0.2),
        point("b", 0.8, 0.5),
        point("c", 0.7, 0.3),  # as accurate as a, and dearer
        point("d", 0.6, 0.2),  # as cheap as a, and less accurate
        point("e", 0.75, 0.6),  # beaten in both
        point("f", 0.5, 0.1),
    )
    for order in itertools.islice(itertools.permutations(points), 0, 720, 37):
        assert keys(on_the_front(order)) == "fab"


def test_of_points_with_equal_figures_the_first_key_stays() -> None:
    twins = (point("y", 0.7, 0.2), point("x", 0.7, 0.2), point("z", 0.7, 0.2))
    assert keys(on_the_front(twins)) == "x"


def test_no_point_beats_one_on_the_front_and_each_other_is_beaten_by_one() -> None:
    rng = np.random.default_rng(0)
    points = [point(f"{i:03}", *pair) for i, pair in enumerate(rng.integers(1, 12, (80, 2)) / 12)]
    front = on_the_front(points)

    def is_as_good(one: PointResult, other: PointResult) -> bool:
        return one.accuracy.mean >= other.accuracy.mean and one.net.mean <= other.net.mean

    assert not any(is_as_good(a, b) for a, b in itertools.permutations(front, 2))
    assert all(any(is_as_good(kept, one) for kept in front) for one in points)


def test_hypervolume_is_the_area_up_to_accuracy_0_at_net_ratio_1() -> None:
    one = point("a", 0.5, 0.2)
    assert hypervolume([one]) == pytest.approx(0.5 * 0.8)
    assert hypervolume([one, point("b", 0.8, 0.6)]) == pytest.approx(0.5 * 0.8 + 0.3 * 0.4)
    assert hypervolume([one, point("c", 0.4, 0.5)]) == pytest.approx(0.4)  # a beaten one adds none
    assert hypervolume([one, point("d", 0.9, 1.3)]) == pytest.approx(0.4)  # nor one past the edge
    assert hypervolume([]) == 0.0


def test_static_mixtures_and_the_oracle_are_those_of_the_atlas(atlas: OutcomeAtlas) -> None:
    known = measure_references(atlas, CONFIG)
    assert [rung.accuracy.mean for rung in known.fixed] == [4 / 8, 6 / 8, 7 / 8]
    assert known.hull == (0, 1, 2)
    assert known.static_accuracy(0.25) == pytest.approx((4 / 8 + 6 / 8) / 2)
    assert known.static_accuracy(0.0) == 4 / 8
    # From .1 to .4 and to 1, and nothing left of .1.
    assert known.static_hypervolume() == pytest.approx(0.3 * 5 / 8 + 0.6 * 6.5 / 8)
    # Four rows at .1, two at .4, one at 1, and the one that nothing answers at .1.
    assert known.oracle.accuracy.mean == 7 / 8
    assert known.oracle.net.mean == pytest.approx((5 * 0.1 + 2 * 0.4 + 1.0) / 8)
    assert (known.samples, known.level) == (8, 0.95)


@pytest.mark.parametrize(
    ("accuracy", "net", "area"),
    [
        (0.5, 0.05, 0.05 * 0.5),  # cheaper than any mixture, as right as the cheapest
        (0.625, 0.1, 0.15 * 0.125 / 2),  # above the line from .1 (4/8) until it is reached at .25
        (0.5, 0.3, 0.0),  # below the line
    ],
)
def test_what_the_front_adds_is_the_area_that_no_mixture_beats(
    atlas: OutcomeAtlas, accuracy: float, net: float, area: float
) -> None:
    found = find_front([point("a", accuracy, net)], atlas, CONFIG)
    assert found.added_hypervolume == pytest.approx(area)


def test_each_alias_is_served_by_the_point_that_its_rule_says() -> None:
    front = on_the_front(
        [
            point("a", 0.60, 0.08, -0.01),
            point("b", 0.70, 0.12, 0.03),
            point("c", 0.82, 0.18, 0.05),
            point("d", 0.85, 0.29, 0.04),
            point("e", 0.88, 0.60, 0.005),
        ]
    )
    chosen = choose(front, budgets=(50, 10, 20, 30))
    # a is beaten by a static mixture, so b is the cheapest worth it; nothing worth it costs .1.
    assert {name: served.key for name, served in chosen.items()} == {
        "champion": "c",
        "eco": "b",
        "balanced": "c",
        "peak": "e",
        "budget-20": "c",
        "budget-30": "d",
        "budget-50": "d",
    }


def test_without_a_sure_gain_there_is_no_champion_and_beaten_points_still_serve() -> None:
    front = on_the_front([point("a", 0.6, 0.1, -0.02), point("b", 0.7, 0.3, -0.01)])
    chosen = choose(front, budgets=(10,))
    assert {name: served.key for name, served in chosen.items()} == {
        "eco": "a",
        "balanced": "a",
        "peak": "b",
        "budget-10": "a",
    }
    assert choose(()) == {}


@pytest.mark.parametrize("budget", [0, 101, 0.3, True])
def test_a_budget_that_is_no_whole_per_cent_is_refused(budget: int) -> None:
    with pytest.raises(InvalidSetting, match="whole per cent"):
        choose((point("a", 0.6, 0.1),), budgets=(budget,))


def test_no_points_make_no_front(atlas: OutcomeAtlas) -> None:
    with pytest.raises(InvalidSetting, match="none came"):
        find_front([], atlas, CONFIG)
    training = atlas.rows(np.arange(8))
    with pytest.raises(InvalidSetting, match="no rows"):
        find_front([point("a", 0.6, 0.1)], training, CONFIG)


def test_the_table_says_who_is_on_the_front_who_serves_and_whose_run_it_is(front: Front) -> None:
    lines = front_table(front).splitlines()
    rows = lines[2:5]
    assert [row.split("gamma1=")[1][0] for row in rows] == ["a", "b", "d"]
    assert "(beaten)" in rows[0]
    assert "0.200 [0.190, 0.210]  70.0% [69.0%, 71.0%]  +3.00 [+2.00, +4.00] *" in rows[1]
    assert rows[1].endswith("b-run-of")
    assert "champion, eco" in rows[1]
    text = " ".join(lines)
    assert "3 of 4 points are on the front" in text
    assert "2 of 4 points beat the static mixture" in text
    assert f"87.5% at {front.references.oracle.net.mean:.3f}" in text


def test_every_point_is_a_row_with_its_settings_and_its_run(front: Front) -> None:
    columns = front_columns(front)
    assert columns["reward.gamma1"] == ["a", "b", "c", "d"]
    assert columns["on_front"] == [True, True, False, True]
    assert columns["run_id"] == [f"{key}-run-of-mlflow" for key in "abcd"]
    assert columns["net_high"] == pytest.approx([0.16, 0.21, 0.26, 0.46])
    assert {len(column) for column in columns.values()} == {4}


def test_the_files_hold_the_front_and_are_the_same_bytes_again(
    front: Front, tmp_path: Path
) -> None:
    files = write_front(front, tmp_path / "one")
    again = write_front(front, tmp_path / "two")
    assert tuple(file.name for file in files) == FILES
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    plain = json.loads(files[0].read_text())
    assert plain["front"] == ["a", "b", "d"]
    assert plain["aliases"]["champion"] == "b"
    assert plain["summary"]["hypervolume"] == front.hypervolume
    assert plain["points"][1]["run_id"] == "b-run-of-mlflow"
    assert not {"seconds", "starts", "curve"} & set(plain["points"][0])
    with files[2].open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["aliases"] for row in rows][1].split()[0] == "champion"
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_a_single_point_is_drawn_too(atlas: OutcomeAtlas, tmp_path: Path) -> None:
    alone = find_front([point("a", 0.6, 1.2, -0.1)], atlas, CONFIG)
    assert draw_front(alone, tmp_path / "a.png").stat().st_size > 1000
    assert alone.hypervolume == 0.0
