"""mAP, per-image F1 and cost of a detector at every arm: table and picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.detection.average_precision import (
    RULES,
    Detections,
    mean_average_precision,
)
from flyball.datapaths.detection.detection_set import ImageTruth
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.platform.analyses import look
from flyball.platform.analyses.tables import aligned
from flyball.platform.house_style import BLUE, RED, SKY, styled

__all__ = ["MapCurve", "MapRow", "map_curve"]

_NAME = "map"


@dataclass(frozen=True)
class MapRow:
    """One arm.

    Attributes:
        u: utilization.
        mean_ap: mAP at IoU .5 on test, area under the whole curve; NaN without a box to find.
        mean_ap_11: the same by VOC2007's eleven points.
        f1: mean F1 of the test images, what the controller is trained on.
        f1_val: the same on controller_val.
        confidence: mean confidence on test.
        macs: executed by one image.
        throttle_ratio: of those at u = 1.
    """

    u: float
    mean_ap: float
    mean_ap_11: float
    f1: float
    f1_val: float
    confidence: float
    macs: int
    throttle_ratio: float


@dataclass(frozen=True)
class MapCurve:
    """What a detector finds at every arm.

    Attributes:
        rows: arm by arm.
        by_class: average precision of every class with a box to find on test, arm by arm.
        images, boxes: on test.
        title: what was measured, in a few words.
    """

    rows: tuple[MapRow, ...]
    by_class: dict[str, tuple[float, ...]]
    images: int
    boxes: int
    title: str

    @property
    def name(self) -> str:
        """By which the analysis is filed."""
        return _NAME

    def table(self) -> str:
        """Lines of plain text, aligned for a fixed-width font."""
        header = [
            "u",
            "mAP",
            "mAP (11 points)",
            "F1",
            "F1 on val",
            "sure",
            "MACs",
            "throttle ratio",
        ]
        rows = [
            [
                f"{row.u:g}",
                f"{row.mean_ap:.4f}",
                f"{row.mean_ap_11:.4f}",
                f"{row.f1:.4f}",
                f"{row.f1_val:.4f}",
                f"{row.confidence:.3f}",
                f"{row.macs:,}",
                f"{row.throttle_ratio:.3f}",
            ]
            for row in self.rows
        ]
        note = (
            f"{self.title}: {self.images} test images with {self.boxes} boxes to find, of "
            f"{len(self.by_class)} classes. A box is found from IoU 0.5 on. F1 is of the boxes "
            "delivered in an image, mean over images."
        )
        return "\n".join([*aligned(header, rows), "", note])

    def figure(self) -> Figure:
        """mAP and F1 against u, and mAP against cost."""
        with styled():
            figure = look.blank_figure(11.0, 4.6, f"{self.title}: detection at every utilization")
            left, right = figure.subplots(1, 2)
            places = np.array([row.u for row in self.rows])
            cost = np.array([row.throttle_ratio for row in self.rows])
            series = (
                ("mAP, all points", BLUE, "o", [row.mean_ap for row in self.rows]),
                ("mAP, 11 points", SKY, "s", [row.mean_ap_11 for row in self.rows]),
                ("mean F1 of an image", RED, "^", [row.f1 for row in self.rows]),
            )
            handles = []
            for label, colour, marker, values in series:
                for axes, at in ((left, places), (right, cost)):
                    axes.plot(at, values, color=colour, marker=marker, ms=4.5, lw=1.4)
                handles.append(Line2D([], [], color=colour, marker=marker, label=label))
            known = [value for _, _, _, values in series for value in values if value == value]
            for axes in (left, right):
                look.accuracy_axis(axes, [0.0], [max([0.02, *known])], "on test")
            look.unit_axis(left, "utilization u")
            look.unit_axis(right, "throttle ratio: MACs of an image over those at u = 1")
            look.legend_below(figure, handles)
            figure.canvas.draw()
        return figure

    def summary(self) -> dict[str, float]:
        """The figures that runs are compared by."""
        first, last = self.rows[0], self.rows[-1]
        figures = {"map_at_full": last.mean_ap, "map_at_lowest": first.mean_ap}
        figures |= {"f1_at_full": last.f1, "f1_at_lowest": first.f1}
        return {name: value for name, value in figures.items() if value == value}

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """mAP and F1 by per cent of utilization."""
        points = []
        for row in self.rows:
            values = {"test/map_at_utilization": row.mean_ap, "test/f1_at_utilization": row.f1}
            kept = {name: value for name, value in values.items() if value == value}
            points.append((round(100 * row.u), kept))
        return points

    def extras(self) -> dict[str, Any]:
        """Average precision by class."""
        return {"by_class": {name: list(values) for name, values in self.by_class.items()}}


def map_curve(
    atlas: OutcomeAtlas,
    found: Sequence[Sequence[Detections]],
    truths: Sequence[ImageTruth],
    *,
    title: str,
) -> MapCurve:
    """What an atlas and the detections of its arms on test amount to.

    Args:
        atlas: of the detector.
        found: in every test image, arm by arm.
        truths: boxes of every test image.
        title: what was measured, in a few words.
    """
    names = atlas.header.classes[:-1]
    all_points, eleven_points = (
        [mean_average_precision(arm, truths, len(names), rule=rule) for arm in found]
        for rule in RULES
    )
    test, validation = atlas.take(TEST), atlas.take(CONTROLLER_VAL)
    ratio = test.throttle_ratio().mean(axis=0)
    rows = tuple(
        MapRow(
            u=u,
            mean_ap=all_points[arm].mean,
            mean_ap_11=eleven_points[arm].mean,
            f1=float(np.mean(test.correct[:, arm])),
            f1_val=float(np.mean(validation.correct[:, arm])),
            confidence=float(np.mean(test.confidence[:, arm])),
            macs=int(test.macs[0, arm]),
            throttle_ratio=float(ratio[arm]),
        )
        for arm, u in enumerate(atlas.arms)
    )
    counts = all_points[0].positives
    by_class = {
        names[label]: tuple(table.by_class[label] for table in all_points)
        for label, count in enumerate(counts)
        if count
    }
    return MapCurve(rows, by_class, len(test), sum(counts), title)
