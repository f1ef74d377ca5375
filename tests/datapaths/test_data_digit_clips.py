"""Digits in motion: what each class looks like, what makes a clip hard, what is never shared."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.datapaths.data import DataConfig, ImageSet, describe, load_images
from flyball.datapaths.data import digit_clips as making
from flyball.datapaths.data.clip_motions import CLASSES
from flyball.datapaths.data.clip_render import Drawn, draw_clips, enlarged
from flyball.datapaths.data.digit_clips import clips_of
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import SPLITS

SMALL = DataConfig(name="digit_clips", limit=60)
EASY = 0.4


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return load_images(made_in(tmp_path_factory.mktemp("cache")))


def made_in(cache: Path, **settings: int) -> DataConfig:
    return DataConfig(**{**vars(SMALL), "cache": str(cache), **settings})


def ink(clips: ImageSet, label: str) -> NDArray[np.float64]:
    """What easy clips of a class show above their background; (M, T, S, S)."""
    assert clips.difficulty is not None
    own = (clips.labels == clips.classes.index(label)) & (clips.difficulty < EASY)
    pixels = np.asarray(clips.images[np.flatnonzero(own)])[:, 0].astype(float)
    floor = np.median(pixels, axis=(1, 2, 3), keepdims=True) + 60
    above: NDArray[np.float64] = np.maximum(pixels - floor, 0.0)
    return above


def drift(shown: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the ink's centre moves from the first to the last three frames, x and y; (M, 2)."""
    offset = np.arange(shown.shape[-1])
    weight = shown.sum((2, 3)) + 1e-9
    x, y = (shown.sum(2) @ offset) / weight, (shown.sum(3) @ offset) / weight
    return np.stack([c[:, -3:].mean(1) - c[:, :3].mean(1) for c in (x, y)], axis=1)


def test_clips_are_grey_with_sixteen_frames_and_ten_classes(clips: ImageSet) -> None:
    assert clips.images.shape == (600, 1, 16, 32, 32)
    assert clips.images.dtype == np.uint8
    assert clips.shape == (1, 16, 32, 32)
    assert clips.classes == CLASSES
    assert np.bincount(clips.labels).tolist() == [60] * 10
    assert describe(clips)["shape"] == [1, 16, 32, 32]


def test_a_size_and_a_length_can_be_asked_for(tmp_path: Path) -> None:
    found = load_images(made_in(tmp_path, limit=4, frames=5, image_size=20))
    assert found.images.shape == (40, 1, 5, 20, 20)


@pytest.mark.parametrize(
    ("label", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_the_ink_goes_where_the_class_says(
    label: str, axis: int, sign: int, clips: ImageSet
) -> None:
    moved = drift(ink(clips, label))
    assert (np.sign(moved[:, axis]) == sign).mean() > 0.95
    assert np.abs(moved[:, axis]).mean() > 4 * np.abs(moved[:, 1 - axis]).mean()


def test_ink_spreads_when_a_digit_grows_and_gathers_when_it_shrinks(clips: ImageSet) -> None:
    for label, sign in (("growing", 1), ("shrinking", -1)):
        area = (ink(clips, label) > 0).sum((2, 3)).astype(float)
        change = np.log(area[:, -3:].mean(1) / area[:, :3].mean(1))
        assert (np.sign(change) == sign).mean() > 0.95


def test_the_ink_turns_the_way_the_class_says(clips: ImageSet) -> None:
    for label, sign in (("clockwise", 1), ("counter-clockwise", -1)):
        shown = ink(clips, label)
        offset = np.arange(shown.shape[-1])
        weight = shown.sum((2, 3)) + 1e-9
        x, y = (shown.sum(2) @ offset) / weight, (shown.sum(3) @ offset) / weight
        dx = offset[None, None, None, :] - x[..., None, None]
        dy = offset[None, None, :, None] - y[..., None, None]
        moments = [(shown * m).sum((2, 3)) for m in (dx * dy, dx * dx, dy * dy)]
        axis = 0.5 * np.arctan2(2 * moments[0], moments[1] - moments[2])
        # an axis has no head: a step is known up to half a turn
        step = (np.diff(axis, axis=1) + np.pi / 2) % np.pi - np.pi / 2
        # round digits have no clear axis
        assert (np.sign(step.sum(1)) == sign).mean() > 0.85


def test_what_is_still_stays_and_other_things_go_nowhere(clips: ImageSet) -> None:
    still, other = ink(clips, "still"), ink(clips, "other")
    assert np.abs(drift(still)).max() < 1.0
    change = [np.abs(np.diff(shown, axis=1)).mean((1, 2, 3)) for shown in (still, other)]
    # noise changes both
    assert np.median(change[1]) > 2 * np.median(change[0])


def test_a_quarter_turn_clockwise_brings_right_to_below() -> None:
    sprite = np.zeros((1, 8, 8), np.uint8)
    sprite[0, 3:5, 4:] = 255  # a hand from the centre to the right

    def shown(angle: float, x: float = 0.0) -> NDArray[np.uint8]:
        one = np.full((1, 1), 1.0)
        hand = Drawn(np.zeros((1, 1), np.int64), one * x, one * 0, one * 16, one * angle, one * 200)
        empty = np.zeros((1, 4), np.int64)
        grey = np.full(1, 10, np.int64)
        pixels: NDArray[np.uint8] = draw_clips(
            enlarged(sprite),
            (hand,),
            side=32,
            background=grey,
            bars=empty,
            bar_levels=grey,
            noise=np.zeros((1, 1, 32, 32), np.int32),
        )[0, 0]
        return pixels

    right, below = shown(0.0), shown(np.pi / 2)
    assert right[15:17, 18:22].min() == 210
    assert right[:, :15].max() == 10
    assert below[18:22, 15:17].min() == 210
    assert below[:15].max() == 10
    np.testing.assert_array_equal(shown(0.0, x=3.0)[:, 3:], right[:, :-3])


def test_a_seed_fixes_every_bit_however_many_are_drawn_at_once(
    clips: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_CHUNK_PIXELS", 7 * 16 * 32 * 32)
    again = load_images(made_in(tmp_path / "again"))
    assert again.images_file != clips.images_file
    np.testing.assert_array_equal(again.images, clips.images)
    assert again.fingerprint == clips.fingerprint
    other = load_images(made_in(tmp_path / "other", seed=1))
    assert other.fingerprint != clips.fingerprint
    assert (np.asarray(other.images) != np.asarray(clips.images)).mean() > 0.5


def test_what_was_made_once_is_not_made_again(clips: ImageSet) -> None:
    assert clips.images_file is not None
    cache = clips.images_file.parent.parent
    reports: list[object] = []
    again = load_images(made_in(cache), report=reports.append)
    assert reports == []
    assert again.images_file == clips.images_file


def test_no_digit_is_in_two_splits() -> None:
    clips = clips_of(SMALL)
    seen = [
        set(clips.digit[clips.split == code].tolist())
        | set(clips.second[clips.split == code].tolist())
        for code in range(len(SPLITS))
    ]
    assert all(len(digits) > 20 for digits in seen)
    for first in range(len(SPLITS)):
        for second in range(first):
            assert not seen[first] & seen[second]


def test_splits_are_stratified_and_are_those_of_the_set(clips: ImageSet) -> None:
    np.testing.assert_array_equal(clips_of(SMALL).split, clips.split)
    for label in range(10):
        assert np.bincount(clips.split[clips.labels == label]).tolist() == [30, 15, 6, 9]


def test_hard_clips_move_less_and_show_less(clips: ImageSet) -> None:
    drawn = clips_of(SMALL)
    assert clips.difficulty is not None
    np.testing.assert_array_equal(clips.difficulty, drawn.difficulty)
    assert 0.0 <= clips.difficulty.min() < 0.05
    assert 0.9 < clips.difficulty.max() <= 1.0
    own = drawn.label == CLASSES.index("left")
    travel = np.abs(drawn.motion.x[own, -1] - drawn.motion.x[own, 0])
    for quantity, sign in (
        (travel, -1),
        (drawn.contrast[own], -1),
        (drawn.noise[own], 1),
        (drawn.clutter[own], 1),
        (np.prod(drawn.bar[own, 1::2] - drawn.bar[own, ::2], axis=1), 1),
    ):
        assert sign * np.corrcoef(drawn.difficulty[own], quantity)[0, 1] > 0.8


def test_classes_differ_in_difficulty(clips: ImageSet) -> None:
    assert clips.difficulty is not None
    hardest = {
        name: float(clips.difficulty[clips.labels == label].max())
        for label, name in enumerate(CLASSES)
    }
    assert max(hardest["still"], hardest["other"]) < 0.36
    assert min(hardest["counter-clockwise"], hardest["shrinking"]) > 0.8


def test_clips_too_short_or_too_small_are_refused(tmp_path: Path) -> None:
    for field, value, least in (("frames", 3, 4), ("image_size", 15, 16)):
        with pytest.raises(
            InvalidSetting, match=rf"data\.{field} of at least {least}; got {value}"
        ):
            load_images(made_in(tmp_path, **{field: value}))
    with pytest.raises(
        InvalidSetting, match="'digit_clips' comes with scikit-learn and has no root"
    ):
        load_images(DataConfig(name="digit_clips", root=str(tmp_path)))


def test_a_shape_that_does_not_suit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def refuse(shape: tuple[int, ...]) -> None:
        seen.append(shape)
        raise InvalidSetting("too long")

    with pytest.raises(InvalidSetting, match="too long"):
        load_images(made_in(tmp_path / "cache"), check_shape=refuse)
    assert seen == [(1, 16, 32, 32)]
    assert not (tmp_path / "cache").exists()
