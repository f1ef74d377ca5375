"""Average precision, the graded judgement of one image, and box geometry, by hand-made numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from flyball.datapaths import detection
from flyball.datapaths.detection.average_precision import (
    FALSE,
    IGNORED,
    RULES,
    TRUE,
    Detections,
    average_precision,
    detections_of,
    match_detections,
    mean_average_precision,
)
from flyball.datapaths.detection.boxes import Letterbox, clip_boxes, overlaps
from flyball.datapaths.detection.detection_set import ImageTruth
from flyball.datapaths.detection.judging import image_confidence, image_f1, judge_detections

Box = tuple[float, float, float, float]
A: Box = (0, 0, 10, 10)
B: Box = (20, 20, 30, 30)


def found(*rows: tuple[Box, float, int]) -> Detections:
    """Detections (box, score, class) in the order given."""
    return Detections(
        np.array([row[0] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float64),
        np.array([row[2] for row in rows], np.int64),
    )


def truth(*rows: tuple[Box, int], difficult: tuple[int, ...] = ()) -> ImageTruth:
    """True boxes (box, class); those at the places in `difficult` are."""
    return ImageTruth(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.int64),
        np.array([place in difficult for place in range(len(rows))], np.bool_),
    )


def test_overlap_is_intersection_over_union() -> None:
    first = np.array([A, (5, 0, 15, 10), B, (3, 3, 3, 3)], np.float64)
    expected = [1.0, 50 / 150, 0.0, 0.0]
    np.testing.assert_allclose(overlaps(first, np.array([A], np.float64))[:, 0], expected)
    assert overlaps(np.zeros((0, 4)), first).shape == (0, 4)


def test_precision_recall_curve_of_right_wrong_right() -> None:
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1 of two boxes
    outcome = np.array([True, False, True])
    exact = Fraction(1, 2) + Fraction(1, 2) * Fraction(2, 3)
    assert average_precision(outcome, 2) == pytest.approx(float(exact), abs=1e-12)
    # six of the eleven recalls lie at or below 1/2
    eleven = (6 + 5 * Fraction(2, 3)) / 11
    assert average_precision(outcome, 2, rule="eleven_points") == pytest.approx(float(eleven))


def test_a_box_never_found_costs_its_share_of_recall() -> None:
    outcome = np.array([True])
    assert average_precision(outcome, 4) == 0.25
    # recalls 0, .1 and .2 are reached
    assert average_precision(outcome, 4, rule="eleven_points") == pytest.approx(3 / 11)


@pytest.mark.parametrize("positives", [3, 7, 10, 30])
def test_eleven_points_meet_every_tenth_of_recall_exactly(positives: int) -> None:
    outcome = np.ones(positives, np.bool_)
    assert average_precision(outcome, positives, rule="eleven_points") == 1.0


def test_nothing_found_is_zero_and_nothing_to_find_is_no_number() -> None:
    nothing = np.zeros(0, np.bool_)
    for rule in RULES:
        assert average_precision(nothing, 3, rule=rule) == 0.0
        assert math.isnan(average_precision(nothing, 0, rule=rule))


def test_the_second_detection_of_a_box_is_false() -> None:
    twice = found((A, 0.9, 0), ((0, 0, 10, 9), 0.8, 0))
    assert match_detections(twice, truth((A, 0))).tolist() == [TRUE, FALSE]


def test_a_detection_is_compared_with_the_box_it_overlaps_most_alone() -> None:
    # the second detection overlaps the other box by .6, but the taken one by more
    near = truth(((0, 0, 10, 10), 0), ((0, 4, 10, 14), 0))
    twice = found(((0, 0, 10, 10), 0.9, 0), ((0, 1, 10, 11), 0.8, 0))
    assert match_detections(twice, near).tolist() == [TRUE, FALSE]


def test_half_an_overlap_is_enough_and_the_class_must_agree() -> None:
    half: Box = (0, 0, 10, 5)
    assert match_detections(found((half, 0.9, 0)), truth((A, 0))).tolist() == [TRUE]
    assert match_detections(found((half, 0.9, 0)), truth((A, 1))).tolist() == [FALSE]
    less: Box = (0, 0, 10, 4.99)
    assert match_detections(found((less, 0.9, 0)), truth((A, 0))).tolist() == [FALSE]


def test_difficult_boxes_neither_help_nor_hurt() -> None:
    boxes = truth((A, 0), (B, 0), difficult=(1,))
    rows = found((B, 0.9, 0), (B, 0.8, 0), (A, 0.7, 0))
    assert match_detections(rows, boxes).tolist() == [IGNORED, IGNORED, TRUE]
    table = mean_average_precision([rows], [boxes], 1)
    assert (table.mean, table.positives) == (1.0, (1,))
    assert image_f1(rows, boxes) == 1.0
    assert image_f1(found((A, 0.7, 0)), boxes) == 1.0


def test_classes_without_a_box_to_find_stay_out_of_the_mean() -> None:
    table = mean_average_precision(
        [found((A, 0.9, 0), (A, 0.8, 2)), found()],
        [truth((A, 0)), truth((B, 1), (B, 2), difficult=(1,))],
        3,
    )
    assert table.by_class[:2] == (1.0, 0.0)
    assert math.isnan(table.by_class[2])
    assert table.mean == 0.5
    assert math.isnan(mean_average_precision([found()], [truth()], 1).mean)


def test_images_are_ranked_together_and_equal_scores_keep_their_order() -> None:
    wrong, right = found((B, 0.5, 0)), found((A, 0.5, 0))
    boxes = [truth(), truth((A, 0))]
    assert mean_average_precision([wrong, right], boxes, 1).mean == 0.5
    assert mean_average_precision([right, wrong], boxes[::-1], 1).mean == 1.0
    surer = found((A, 0.6, 0))
    assert mean_average_precision([wrong, surer], boxes, 1).mean == 1.0


def test_padded_rows_are_no_detections_and_scores_fall() -> None:
    output = np.array([[[*A, 0.2, 0], [*B, 0.7, 1], [0, 0, 0, 0, 0, -1], [*A, 0.7, 2]]])
    (one,) = detections_of(output)
    assert one.classes.tolist() == [1, 2, 0]
    assert one.scores.tolist() == [0.7, 0.7, 0.2]
    assert detections_of(output, least_score=0.7)[0].classes.tolist() == [1, 2]
    assert mean_average_precision(
        detections_of(output), [truth((A, 0), (B, 1))], 3, rule="eleven_points"
    ).by_class[:2] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(A, 0.9, 0), (B, 0.9, 1)], 1.0),
        ([(A, 0.9, 0)], 2 / 3),  # 1 right, 1 missed
        ([(A, 0.9, 0), (A, 0.8, 0)], 2 / 4),  # 1 right, 1 duplicate, 1 missed
        ([(A, 0.9, 1), (B, 0.9, 0)], 0.0),
        ([], 0.0),
    ],
)
def test_an_image_is_graded_by_its_f1(rows: list[tuple[Box, float, int]], expected: float) -> None:
    assert image_f1(found(*rows), truth((A, 0), (B, 1))) == pytest.approx(expected)


def test_an_image_without_objects_is_right_if_nothing_is_delivered() -> None:
    output = torch.zeros(2, 3, 6)
    output[..., 5] = -1.0
    output[1, 0] = torch.tensor([*A, 0.4, 1.0])
    empty = (truth(), truth())
    silent = judge_detections(output, empty, classes=3, score_threshold=0.5)
    assert silent.answer.tolist() == [3, 3]
    assert silent.correct.tolist() == [1.0, 1.0]
    assert silent.confidence.tolist() == pytest.approx([1.0, 0.6])
    loud = judge_detections(output, empty, classes=3, score_threshold=0.4)
    assert loud.answer.tolist() == [3, 1]
    assert loud.correct.tolist() == [1.0, 0.0]
    assert loud.confidence.tolist() == pytest.approx([1.0, 0.4])


def test_confidence_is_the_mean_score_of_what_is_delivered() -> None:
    rows = found((A, 0.9, 0), (B, 0.7, 1), (B, 0.1, 1))
    assert image_confidence(rows, 0.5) == pytest.approx(0.8)
    assert image_confidence(rows, 0.95) == pytest.approx(0.1)
    assert image_confidence(found(), 0.5) == 1.0


def test_a_letterbox_keeps_boxes_on_what_they_hold() -> None:
    image = np.zeros((3, 20, 40), np.uint8)
    image[:, 4:12, 10:30] = 255
    frame = Letterbox(40, 20, 60)
    square = frame.pixels(image)
    assert square.shape == (3, 60, 60)
    box = frame.boxes(np.array([[10, 4, 30, 12]], np.float64))
    np.testing.assert_allclose(box, [[15, 15 + 6, 45, 15 + 18]])
    x1, y1, x2, y2 = box[0].astype(int)
    assert square[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() == 255
    assert (square[:, :15] == 114).all()
    assert (square[:, 45:] == 114).all()
    assert square[:, 15:45, : x1 - 1].max() == 0
    np.testing.assert_allclose(frame.boxes_back(box), [[10, 4, 30, 12]])


def test_clipping_cuts_at_the_edges() -> None:
    boxes = clip_boxes(np.array([[-5.0, 2.0, 50.0, 8.0]]), 40, 20)
    assert boxes.tolist() == [[0.0, 2.0, 40.0, 8.0]]


def test_every_public_name_of_the_package_is_there() -> None:
    assert [name for name in detection.__all__ if not callable(getattr(detection, name))] == []
    with pytest.raises(AttributeError, match="Detector"):
        _ = detection.Detektor
