"""Rendered people: where their joints are, what a kind means, and what never changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.datapaths.data import DataConfig, describe, load_images
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.pose import BONES, JOINTS, PoseSet
from flyball.datapaths.pose import figures as making
from flyball.datapaths.pose.drawing import Box, Limb, Picture
from flyball.datapaths.pose.figures import KINDS, Figures, figures_of
from flyball.datapaths.pose.painting import Painted, paint
from flyball.datapaths.pose.skeleton import DRAWS, POINTS, bodies_of
from flyball.datapaths.progress import Progress
from flyball.datapaths.splits import SPLITS

SMALL = DataConfig(name="figures", limit=25, image_size=96)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(SMALL)


@pytest.fixture(scope="module")
def painted(figures: Figures) -> tuple[Painted, ...]:
    return tuple(paint(scene) for scene in figures.scenes)


def loaded(cache: Path, **settings: Any) -> PoseSet:
    found = load_images(replace(SMALL, cache=str(cache), **{"limit": 5, **settings}))
    assert isinstance(found, PoseSet)
    return found


def share(painted: tuple[Painted, ...], figures: Figures, kind: str) -> float:
    own = np.flatnonzero(figures.label == list(KINDS).index(kind))
    return float(np.mean([painted[row].covered.mean() for row in own]))


def test_a_seen_joint_lies_on_the_body(figures: Figures, painted: tuple[Painted, ...]) -> None:
    on_body = [
        painted[row].covered[int(y), int(x)] > 0.5
        for row, points in enumerate(figures.key_points)
        for x, y, seen in points
        if seen
    ]
    # at an occluder's corner a pixel may be half hidden
    assert np.mean(on_body) > 0.995


def test_the_middle_of_every_limb_lies_on_the_body(
    figures: Figures, painted: tuple[Painted, ...]
) -> None:
    hits = []
    for row in np.flatnonzero(figures.label == 0):
        for first, second in BONES:
            x, y = figures.key_points[row, [first, second], :2].mean(axis=0)
            hits.append(painted[row].covered[int(y), int(x)] > 0.5)
    assert np.mean(hits) > 0.99


def test_the_person_takes_a_part_of_the_image_and_a_small_one_less(
    figures: Figures, painted: tuple[Painted, ...]
) -> None:
    plain, small = share(painted, figures, "plain"), share(painted, figures, "small")
    assert 0.15 < plain < 0.35
    assert 0.03 < small < plain / 2


def test_plain_images_show_every_joint_and_occluded_ones_hide_some(figures: Figures) -> None:
    seen = figures.key_points[..., 2].sum(axis=1)
    for label, kind in enumerate(KINDS):
        own = seen[figures.label == label]
        if kind == "occluded":
            assert (own < len(JOINTS)).mean() > 0.8
            assert own.min() >= 1
        else:
            assert (own == len(JOINTS)).all()


def test_a_joint_outside_the_image_is_not_seen(figures: Figures) -> None:
    places, seen = figures.key_points[..., :2], figures.key_points[..., 2] > 0
    outside = ((places < 0) | (places >= 96)).any(axis=2)
    assert outside.any()
    assert not (outside & seen).any()


def test_what_stands_before_a_joint_hides_it(figures: Figures) -> None:
    scene = next(scene for scene in figures.scenes if len(scene.boxes) == 1)
    box = scene.boxes[0]
    reach = box.half_width + box.half_height + 2 * box.radius
    places = np.array([[box.x, box.y], [box.x + 4 * reach, box.y + 4 * reach]])
    assert scene.hides(places).tolist() == [True, False]


def test_a_head_is_three_quarters_of_its_two_joints_apart_unless_foreshortened(
    figures: Figures,
) -> None:
    apart = np.linalg.norm(figures.key_points[:, 9, :2] - figures.key_points[:, 8, :2], axis=1)
    # points are rounded to 1/64 pixel
    assert (0.75 * apart <= figures.head_sizes + 0.05).all()
    assert np.median(0.75 * apart / figures.head_sizes) > 0.85


def test_upright_and_facing_us_the_right_side_is_on_our_left_and_the_head_on_top() -> None:
    # half of every range is straight ahead; 0 is standing with the limbs at their lowest
    draws = {name: np.full(1, 0.5) for name in DRAWS} | {"style": np.zeros(1)}
    body = bodies_of(draws, np.zeros(1))
    place = dict(zip(POINTS, body.points[0], strict=True))
    for joint in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder"):
        assert place[f"right {joint}"][0] < 0 < place[f"left {joint}"][0]
    down = [place[name][1] for name in ("head top", "thorax", "pelvis", "left knee", "left ankle")]
    assert down == sorted(down)
    eyes, face = place["right eye"], place["face"]
    assert eyes[2] > face[2]


@pytest.mark.parametrize(
    ("first", "second"),
    [("knee", "hip"), ("knee", "ankle"), ("elbow", "shoulder"), ("elbow", "wrist")],
)
def test_limbs_keep_their_length_whatever_the_angles(first: str, second: str) -> None:
    generator = np.random.default_rng(3)
    draws = {name: generator.random(50) for name in DRAWS}
    for name in ("legs", "arms"):
        draws[name][:] = 0.5
    points = bodies_of(draws, generator.random(50)).points
    for side in ("right", "left"):
        ends = [points[:, POINTS.index(f"{side} {name}")] for name in (first, second)]
        length = np.linalg.norm(ends[0] - ends[1], axis=1)
        np.testing.assert_allclose(length, length[0], rtol=1e-12)


def test_knees_only_bend_back() -> None:
    generator = np.random.default_rng(5)
    draws = {name: generator.random(200) for name in DRAWS}
    for name in ("yaw", "pitch", "roll"):
        draws[name][:] = 0.5
    points = bodies_of(draws, np.zeros(200)).points
    at = {name: points[:, place] for place, name in enumerate(POINTS)}
    for side in ("right", "left"):
        thigh = at[f"{side} knee"] - at[f"{side} hip"]
        shin = at[f"{side} ankle"] - at[f"{side} knee"]
        # seen from the person's left a knee only turns the shin backwards
        turn = thigh[:, 1] * shin[:, 2] - thigh[:, 2] * shin[:, 1]
        assert (turn <= 1e-12).all()


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    config = replace(SMALL, limit=2)
    first, again = ([paint(scene).pixels for scene in figures_of(config).scenes] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = figures_of(replace(config, seed=1))
    assert not np.array_equal(other.key_points, figures_of(config).key_points)
    assert not np.array_equal(paint(other.scenes[0]).pixels, first[0])


def test_a_larger_limit_keeps_the_images_that_were_there(figures: Figures) -> None:
    fewer = figures_of(replace(SMALL, limit=4))
    for label in range(len(KINDS)):
        mine, all_ = fewer.label == label, figures.label == label
        np.testing.assert_array_equal(fewer.key_points[mine], figures.key_points[all_][:4])
        row, place = int(np.flatnonzero(mine)[3]), int(np.flatnonzero(all_)[3])
        np.testing.assert_array_equal(
            paint(fewer.scenes[row]).pixels, paint(figures.scenes[place]).pixels
        )


def test_points_lie_on_a_grid_so_that_no_processor_moves_a_pixel(figures: Figures) -> None:
    cells = figures.key_points[..., :2].astype(np.float64) * 64
    np.testing.assert_array_equal(cells, np.rint(cells))


def test_loading_gives_a_pose_set_in_four_splits(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.images.shape == (20, 3, 96, 96)
    assert found.images.dtype == np.uint8
    assert found.classes == ("plain", "cluttered", "small", "occluded")
    assert np.bincount(found.labels).tolist() == [5] * 4
    assert found.key_points.shape == (20, 16, 3)
    assert found.difficulty is not None
    assert found.difficulty.shape == (20,)
    assert all(len(found.rows(split)) >= 4 for split in SPLITS)
    assert describe(found)["shape"] == [3, 96, 96]
    truth = found.truth_rows(np.array([7, 2]))
    np.testing.assert_array_equal(truth.key_points.numpy(), found.key_points[[7, 2]])
    np.testing.assert_array_equal(truth.head_sizes.numpy(), found.head_sizes[[7, 2]])


def test_images_are_painted_once_and_then_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []
    first = load_images(replace(SMALL, limit=4, cache=str(tmp_path)), report=reports.append)
    assert reports[-1].stage == "decode"
    monkeypatch.setattr(making, "paint", None)
    again = load_images(replace(SMALL, limit=4, cache=str(tmp_path)))
    assert again.fingerprint == first.fingerprint
    assert again.images_file == first.images_file


def test_the_default_is_128_pixels_and_1500_of_a_kind() -> None:
    plan = making.plan_figures(DataConfig(name="figures"))
    assert plan.shape == (3, 128, 128)
    assert plan.parts[0].counts == (1500,) * 4


def test_too_small_a_side_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"data\.image_size of at least 32; got 16"):
        load_images(DataConfig(name="figures", image_size=16))


def test_a_root_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="'figures' is drawn here and has no root"):
        load_images(DataConfig(name="figures", root="somewhere"))


def test_figures_cannot_be_streamed() -> None:
    with pytest.raises(InvalidSetting, match="figures cannot"):
        DataConfig(name="figures", access="stream")


def test_a_limb_covers_what_lies_within_its_radius() -> None:
    picture = Picture(np.zeros((3, 20, 30), np.float32)[:, :20, :20].copy())
    picture.limb(Limb(5.0, 10.0, 15.0, 10.0, 3.0, 3.0), (100.0, 200.0, 50.0))
    covered: NDArray[np.float32] = picture.covered
    assert covered[9:11, 5:15].min() == 1.0
    assert covered[:6].max() == 0.0
    assert covered[14:].max() == 0.0
    # a band of 10 x 6 and a disc of radius 3
    assert covered.sum() == pytest.approx(60 + 9 * np.pi, rel=0.02)
    assert picture.pixels[1, 10, 10] == 2 * picture.pixels[0, 10, 10] > 0


def test_a_box_over_a_limb_hides_it() -> None:
    picture = Picture(np.zeros((3, 24, 24), np.float32))
    picture.limb(Limb(4.0, 12.0, 20.0, 12.0, 3.0, 3.0), (100.0, 100.0, 100.0))
    before = picture.covered.sum()
    picture.hide(Box(12.0, 12.0, 3.0, 3.0, 1.0, 0.0, 1.0), (9.0, 9.0, 9.0))
    assert picture.covered[10:14, 9:15].max() == 0.0
    # 8 of 16 + 2 x 3 columns of the band are gone
    assert picture.covered.sum() == pytest.approx(before - 8 * 6, rel=0.05)


def test_what_lies_beside_the_picture_changes_nothing() -> None:
    picture = Picture(np.full((3, 8, 8), 7.0, np.float32))
    picture.limb(Limb(-50.0, -50.0, -40.0, -40.0, 3.0, 3.0), (100.0, 100.0, 100.0))
    picture.box(Box(90.0, 4.0, 2.0, 2.0, 1.0, 0.0, 1.0), (100.0, 100.0, 100.0))
    assert (picture.pixels == 7.0).all()
    assert picture.covered.max() == 0.0
