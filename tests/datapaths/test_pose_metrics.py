"""PCKh and judging by hand, augmentation that keeps joints on the image, and pose sets."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.pose import (
    BONES,
    COUNTED,
    JOINTS,
    MIRRORED,
    PoseAugmentation,
    PoseSet,
    PoseTruth,
    augment_poses,
    gaussian_targets,
    image_pckh,
    judge_pose,
    pckh,
    posed,
)
from flyball.datapaths.pose.augment import moved


def truth(images: int, *, head: float = 10.0) -> PoseTruth:
    """Joint j of every image at (10 + 3 j, 20), all visible."""
    points = torch.ones(images, 16, 3)
    points[..., 0] = 10.0 + 3.0 * torch.arange(16)
    points[..., 1] = 20.0
    return PoseTruth(points, torch.full((images,), head))


def test_mirroring_twice_is_nothing_and_names_swap_sides() -> None:
    assert [MIRRORED[MIRRORED[joint]] for joint in range(16)] == list(range(16))
    swap = {"right": "left", "left": "right"}
    for joint, name in enumerate(JOINTS):
        side, _, part = name.partition(" ")
        assert JOINTS[MIRRORED[joint]] == (f"{swap[side]} {part}" if side in swap else name)


def test_bones_hold_the_body_together() -> None:
    joined = {0}
    for _ in BONES:
        joined |= {end for bone in BONES if set(bone) & joined for end in bone}
    assert joined == set(range(16))
    assert len(BONES) == 15


def test_a_joint_is_right_up_to_half_a_head_and_not_beyond() -> None:
    known = truth(1)
    points = known.key_points[..., :2].clone()
    points[0, 0, 1] += 5.0  # half of 10: right
    points[0, 1, 1] += 5.01
    points[0, 2] += torch.tensor([3.0, 4.0])  # 5 away
    table = pckh(points, known)
    assert table.by_joint["right ankle"] == 1.0
    assert table.by_joint["right knee"] == 0.0
    assert table.by_joint["right hip"] == 1.0
    assert table.mean == pytest.approx(13 / 14)
    assert table.by_group["knee"] == 0.5
    assert table.by_group["head"] == 1.0


def test_the_head_of_each_image_is_its_own_measure() -> None:
    known = truth(2)
    known = PoseTruth(known.key_points, torch.tensor([10.0, 4.0]))
    points = known.key_points[..., :2] + torch.tensor([0.0, 3.0])
    assert image_pckh(points, known).tolist() == [1.0, 0.0]
    assert image_pckh(points, known, threshold=0.75).tolist() == [1.0, 1.0]


def test_pelvis_and_thorax_are_measured_and_do_not_count() -> None:
    assert {JOINTS[joint] for joint in set(range(16)) - set(COUNTED)} == {"pelvis", "thorax"}
    known = truth(1)
    points = known.key_points[..., :2].clone()
    points[0, 6:8] += 100.0
    table = pckh(points, known)
    assert table.by_joint["pelvis"] == table.by_joint["thorax"] == 0.0
    assert table.mean == 1.0
    assert image_pckh(points, known).tolist() == [1.0]


def test_the_mean_weighs_joints_and_the_mean_of_images_weighs_images() -> None:
    known = truth(2)
    known.key_points[0, 1:, 2] = 0.0  # the first image shows one joint, which is missed
    points = known.key_points[..., :2].clone()
    points[0, 0] += 50.0
    table = pckh(points, known)
    assert table.mean == pytest.approx(14 / 15)
    assert table.visible["right ankle"] == 2
    assert table.visible["left wrist"] == 1
    assert image_pckh(points, known).tolist() == [0.0, 1.0]


def test_where_nothing_is_visible_nothing_was_missed_and_a_set_has_no_mean() -> None:
    known = truth(1)
    known.key_points[..., 2] = 0.0
    points = known.key_points[..., :2]
    assert image_pckh(points, known).tolist() == [1.0]
    table = pckh(points, known)
    assert math.isnan(table.mean)
    assert math.isnan(table.by_joint["left knee"])


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_no_distance_is_refused(threshold: float) -> None:
    known = truth(1)
    with pytest.raises(InvalidSetting, match="distance above 0"):
        pckh(known.key_points[..., :2], known, threshold=threshold)


def test_points_of_other_images_are_refused() -> None:
    known = truth(3)
    points = known.key_points[..., :2]
    for wrong in (points[:2], points[:, :15], known.key_points):
        with pytest.raises(DataError, match="PCKh compares 16 joints"):
            image_pckh(wrong, known)
    with pytest.raises(DataError, match="head sizes"):
        pckh(points, PoseTruth(known.key_points, known.head_sizes[:1]))


def test_judging_perfect_heat_maps() -> None:
    known = truth(2)
    made = gaussian_targets(known.key_points, (16, 16), (64, 64), sigma=1.0)
    judged = judge_pose(made.heatmaps, known, (64, 64), kinds=4)
    assert judged.answer.tolist() == [4, 4]
    assert judged.answer.dtype == torch.int64
    assert judged.correct.tolist() == [1.0, 1.0]
    assert judged.confidence.tolist() == [1.0, 1.0]


def test_confidence_is_the_mean_peak_and_no_truth_is_never_right() -> None:
    heat = torch.full((1, 16, 4, 4), -1.0)
    heat[0, :8, 1, 1] = 0.5
    heat[0, 8:12, 1, 1] = 3.0
    judged = judge_pose(heat, None, (16, 16))
    assert judged.confidence.tolist() == [(8 * 0.5 + 4 * 1.0) / 16]
    assert judged.correct.tolist() == [0.0]
    assert judged.correct.dtype == judged.confidence.dtype == torch.float32


def test_correct_is_the_share_of_joints_found() -> None:
    known = truth(1)
    made = gaussian_targets(known.key_points, (16, 16), (64, 64), sigma=1.0)
    heat = made.heatmaps.clone()
    heat[0, :7] = 0.0
    heat[0, :7, 15, 15] = 0.2  # far from joints 0 to 6; of these the pelvis does not count
    assert judge_pose(heat, known, (64, 64)).correct.tolist() == pytest.approx([8 / 14])


def spots(key_points: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One channel a joint: a bright spot where the joint is."""
    heat = gaussian_targets(
        key_points, (height, width), (height, width), sigma=2.0, centred="exact"
    )
    return heat.heatmaps


def scattered(count: int, generator: torch.Generator) -> torch.Tensor:
    """Joints near the middle of images of 80 x 60."""
    places = torch.rand(count, 16, 2, generator=generator) * 30 + torch.tensor([25.0, 15.0])
    return torch.cat([places, torch.ones(count, 16, 1)], dim=2)


@pytest.mark.parametrize("is_flipped", [False, True])
def test_joints_go_where_the_pixels_go(is_flipped: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    key_points = scattered(5, generator)
    angle = torch.tensor([0.0, 0.5, -0.5, 0.2, -0.1])
    scale = torch.tensor([1.0, 0.75, 1.2, 0.9, 1.1])
    images = spots(key_points, 60, 80)
    turned, carried = moved(images, key_points, angle, scale, torch.tensor([is_flipped] * 5))
    for joint in range(16):
        own = carried[:, MIRRORED[joint] if is_flipped else joint, :2]
        place = turned[:, joint].flatten(1).argmax(dim=1)
        brightest = torch.stack([place % 80, place // 80], dim=1) + 0.5
        # the brightest pixel is the one that holds the joint, or a neighbour
        assert (own - brightest).abs().max() < 1.01


def test_a_quarter_turn_clockwise_brings_right_to_below() -> None:
    points = torch.ones(1, 16, 3)
    points[0, :, :2] = torch.tensor([28.0, 20.0])  # 8 right of the centre
    image = spots(points, 40, 40)
    turned, carried = moved(
        image, points, torch.tensor([math.pi / 2]), torch.ones(1), torch.tensor([False])
    )
    torch.testing.assert_close(carried[0, 3], torch.tensor([20.0, 28.0, 1.0]))
    assert float(turned[0, 3, 27:29, 19:21].min()) > 0.9


def test_a_flip_alone_mirrors_the_image_and_swaps_the_names() -> None:
    generator = torch.Generator().manual_seed(2)
    key_points = scattered(2, generator)
    images = torch.rand(2, 3, 60, 80, generator=generator)
    flipped, carried = augment_poses(
        images, key_points, generator, PoseAugmentation(rotation=0, scale=0, flip=1)
    )
    torch.testing.assert_close(flipped, images.flip(3), rtol=0, atol=1e-4)  # sampled between pixels
    right_wrist, left_wrist = JOINTS.index("right wrist"), JOINTS.index("left wrist")
    torch.testing.assert_close(
        carried[:, left_wrist, 0], 80.0 - key_points[:, right_wrist, 0], rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(
        carried[:, left_wrist, 1], key_points[:, right_wrist, 1], rtol=1e-6, atol=1e-5
    )


def test_moves_stay_within_what_was_asked_and_come_from_the_generator() -> None:
    key_points = torch.ones(400, 16, 3)
    key_points[..., :2] = torch.tensor([8.0, 4.0])
    key_points[:, 0, :2] = torch.tensor([4.0, 4.0])  # the centre stays
    images = torch.zeros(400, 1, 8, 8)
    made = [
        augment_poses(images, key_points, torch.Generator().manual_seed(seed))[1]
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.equal(made[0], made[2])
    # joint 6 keeps its name; it starts 4 to the right
    offset = made[0][:, 6, :2] - 4.0
    reach, turn = offset.norm(dim=1) / 4.0, torch.atan2(offset[:, 1], offset[:, 0].abs())
    assert 0.749 < reach.min() < 0.78
    assert 1.22 < reach.max() < 1.251
    assert math.radians(27) < turn.abs().max() < math.radians(30.01)
    assert 0.4 < float((offset[:, 0] < 0).float().mean()) < 0.6


def test_bad_moves_are_refused() -> None:
    generator = torch.Generator()
    for wrong in ({"rotation": -1.0}, {"scale": 1.0}, {"flip": 1.5}, {"rotation": math.nan}):
        with pytest.raises(InvalidSetting, match="turned by 0 to 180"):
            PoseAugmentation(**wrong)
    bytes_ = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="Divide pixels by 255"):
        augment_poses(bytes_, torch.zeros(1, 16, 3), generator)
    with pytest.raises(DataError, match="moved with their images"):
        augment_poses(bytes_.float(), torch.zeros(2, 16, 3), generator)


def image_set(**changes: Any) -> ImageSet:
    made = ImageSet(
        images=np.zeros((4, 3, 8, 8), np.uint8),
        labels=np.zeros(4, np.int64),
        classes=("person",),
        split=np.arange(4, dtype=np.int8),
        name="four",
        fingerprint="f",
    )
    return replace(made, **changes)


def key_points_of_four() -> tuple[Any, Any]:
    known = truth(4)
    return known.key_points.numpy(), known.head_sizes.numpy()


def test_a_pose_set_keeps_the_set_and_its_fingerprint_covers_the_key_points() -> None:
    points, heads = key_points_of_four()
    made = posed(image_set(skipped=("a",)), points, heads)
    assert isinstance(made, PoseSet)
    assert (made.name, made.skipped, len(made), made.shape) == ("four", ("a",), 4, (3, 8, 8))
    assert made.rows("test").tolist() == [3]
    assert not made.key_points.flags.writeable
    prints = {made.fingerprint, posed(image_set(fingerprint="g"), points, heads).fingerprint}
    for change in range(2):
        other = [points.copy(), heads.copy()]
        other[change][0] = 1.0
        prints.add(posed(image_set(), *other).fingerprint)
    assert len(prints) == 4


def test_truth_follows_the_rows_asked_for() -> None:
    points, heads = key_points_of_four()
    heads = heads + np.arange(4, dtype=np.float32)
    asked = posed(image_set(), points, heads).truth_rows(np.array([3, 1]))
    assert asked.head_sizes.tolist() == [13.0, 11.0]
    assert asked.key_points.shape == (2, 16, 3)
    assert asked.key_points.dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda points, heads: (points[:3], heads), "Every image has 16 key points"),
        (lambda points, heads: (points[:, :15], heads), "Every image has 16 key points"),
        (lambda points, heads: (points, heads[:2]), "Every image has 16 key points"),
        (lambda points, heads: (points * np.nan, heads), "that of image 0 of four and 4 in all"),
        (lambda points, heads: (points * 2, heads), "visible is 0 or 1"),
        (lambda points, heads: (points, heads * 0), "head size is above 0"),
    ],
)
def test_key_points_that_cannot_be_are_refused(spoil: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        posed(image_set(), *spoil(*key_points_of_four()))


def test_grey_images_are_no_poses() -> None:
    with pytest.raises(DataError, match="colour images"):
        posed(image_set(images=np.zeros((4, 1, 8, 8), np.uint8)), *key_points_of_four())
