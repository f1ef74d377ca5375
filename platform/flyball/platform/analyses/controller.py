"""A learned controller against every fixed utilization and the bound, and the u it chose.

N samples, K arms.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import TEST
from flyball.platform.analyses.controller_picture import controller_figure
from flyball.platform.analyses.tables import aligned, figure_of

__all__ = ["ControllerAnalysis", "ControllerRow", "controller_against_fixed"]

Kind = Literal["fixed", "controller", "bound"]


@dataclass(frozen=True)
class ControllerRow:
    """One way of choosing u for every sample.

    Attributes:
        kind: "fixed" for one u for all, "controller", or "bound": the lowest u that is right, the
            lowest arm where none is.
        u: mean utilization over all samples.
        accuracy: mean of `correct`.
        total_correct: sum of u over right answers; a graded answer counts by its grade.
        total: sum of u over all samples.
        u_correct: mean u over right answers; None where none is right.
        gross: mean throttle ratio of the data path alone.
        net: with the controller and the context it looks at; equal to gross for the others.
        samples: how many were measured.
    """

    kind: Kind
    u: float
    accuracy: float
    total_correct: float
    total: float
    u_correct: float | None
    gross: float
    net: float
    samples: int


@dataclass(frozen=True)
class ControllerAnalysis:
    """TNN Fig. 9: accuracy against total utilization, and the histogram of the chosen u.

    Attributes:
        rows: the fixed arms by increasing u, then the controller, then the bound.
        arms: the K utilizations.
        classes: names.
        histogram: how often the controller chose each arm, (K,).
        bound_histogram: the same of the bound.
        class_histogram: the controller's within every true class, (classes, K).
        unanswerable: samples that no arm answers right in any degree.
        vanilla: accuracy at u = 1 of the network trained at u = 1 only; None: not trained.
        split: of the samples.
    """

    rows: tuple[ControllerRow, ...]
    arms: tuple[float, ...]
    classes: tuple[str, ...]
    histogram: tuple[int, ...]
    bound_histogram: tuple[int, ...]
    class_histogram: tuple[tuple[int, ...], ...]
    unanswerable: int
    vanilla: float | None
    split: str = TEST
    name: ClassVar[str] = "controller"

    @property
    def fixed(self) -> tuple[ControllerRow, ...]:
        """The fixed arms by increasing u."""
        return tuple(row for row in self.rows if row.kind == "fixed")

    def row(self, kind: Kind) -> ControllerRow:
        """The controller's, or the bound's."""
        return next(row for row in self.rows if row.kind == kind)

    @property
    def reference(self) -> float:
        """What the bound is measured from: the vanilla accuracy, else the best fixed arm's."""
        return max(r.accuracy for r in self.fixed) if self.vanilla is None else self.vanilla

    @property
    def gap_closed(self) -> float | None:
        """(controller - reference) / (bound - reference), in accuracy; None without a gap."""
        gap = self.row("bound").accuracy - self.reference
        gain = self.row("controller").accuracy - self.reference
        return gain / gap if gap > 0 else None

    def table(self) -> str:
        """Every way of choosing, then what it comes to."""
        rows = [
            [
                f"fixed u = {r.u:g}" if r.kind == "fixed" else r.kind,
                f"{100 * r.accuracy:.2f}%",
                figure_of(r.u),
                f"{r.total_correct:.1f}",
                f"{r.total:.1f}",
                figure_of(r.u_correct),
                figure_of(r.gross),
                figure_of(r.net),
            ]
            for r in self.rows
        ]
        titles = ["", "accuracy", "mean u", "total u, right", "total u, all", "mean u, right"]
        lines = aligned([*titles, "gross", "net"], rows)
        lines += ["", *aligned(["chosen u", *(f"{u:g}" for u in self.arms)], self._histograms())]
        return "\n".join([*lines, "", *self._words()])

    def figure(self) -> Figure:
        """Accuracy against total u of right answers and of all; histograms; classes."""
        return controller_figure(self)

    def summary(self) -> dict[str, float]:
        """The controller beside the bound and the best fixed arm."""
        figures = {
            f"{kind}/{name}": float(getattr(self.row(kind), name))
            for kind in ("controller", "bound")
            for name in ("accuracy", "u", "total_correct", "total", "gross", "net")
        }
        figures["best_fixed/accuracy"] = max(row.accuracy for row in self.fixed)
        if self.gap_closed is not None:
            figures["gap_closed"] = self.gap_closed
        return figures

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Accuracy of the fixed arms, and the share of samples that each arm was chosen for."""
        return [
            (
                round(100 * row.u),
                {
                    "controller/fixed_accuracy": row.accuracy,
                    "controller/share_chosen": count / row.samples,
                },
            )
            for row, count in zip(self.fixed, self.histogram, strict=True)
        ]

    def extras(self) -> dict[str, Any]:
        """The histograms and the gap that was closed."""
        return {
            "arms": list(self.arms),
            "classes": list(self.classes),
            "histogram": list(self.histogram),
            "bound_histogram": list(self.bound_histogram),
            "class_histogram": [list(row) for row in self.class_histogram],
            "unanswerable": self.unanswerable,
            "vanilla_accuracy": self.vanilla,
            "gap_closed": self.gap_closed,
            "split": self.split,
        }

    def _histograms(self) -> list[list[str]]:
        return [
            ["controller", *map(str, self.histogram)],
            ["bound", *map(str, self.bound_histogram)],
        ]

    def _gap_in_words(self) -> str:
        below = 100 * (self.reference - self.row("controller").accuracy)
        if below > 0:
            return f"closes none of it: it lies {below:.2f} points below"
        if self.gap_closed is None:
            return "has none to close"
        return f"closes {self.gap_closed:.0%} of it"

    def _words(self) -> list[str]:
        learned, bound = self.row("controller"), self.row("bound")
        is_vanilla = self.vanilla is not None
        reference = "the vanilla network" if is_vanilla else "the best fixed arm"
        more = learned.total_correct / bound.total_correct - 1 if bound.total_correct else None
        return [
            f"Measured on {learned.samples:,} {self.split} samples. The bound takes the lowest u "
            "that is right (it knows the answer); no arm is right on "
            f"{self.unanswerable:,} of them: there it takes the lowest arm.",
            f"From {reference} ({100 * self.reference:.2f}%) to the bound "
            f"({100 * bound.accuracy:.2f}%) there is a gap; the controller {self._gap_in_words()}. "
            f"Its total u over right answers is {_more(more)} the bound's.",
            f"Gross is the data path alone, {learned.gross:.3f} of the full one; with the "
            f"controller and what it looks at it is {learned.net:.3f} net. Whether that beats "
            "mixtures of fixed arms at equal net cost, the ladder says (`flyball report`).",
        ]


def controller_against_fixed(
    atlas: OutcomeAtlas,
    chosen: NDArray[np.int64],
    *,
    controller_macs: int = 0,
    uses_context: bool = False,
    vanilla: float | None = None,
    split: str = TEST,
) -> ControllerAnalysis:
    """Measures a controller's choices (TNN Fig. 9, section 4.4).

    Args:
        atlas: outcomes of the N samples that were chosen for.
        chosen: index of the arm for every sample, (N,).
        controller_macs: multiply-accumulates of one choice.
        uses_context: whether the controller looks at the lowest arm's context.
        vanilla: accuracy at u = 1 of the network trained at u = 1 only.
        split: whose samples they are.

    Raises:
        InvalidSetting: there is no sample, not one choice for each, or an arm does not exist.
    """
    count, arms = atlas.correct.shape
    chosen = np.asarray(chosen)
    is_known = chosen.shape == (count,) and bool(((chosen >= 0) & (chosen < arms)).all())
    if not is_known or not count:
        raise InvalidSetting(
            f"A controller chooses one of {arms} arms, by index, for each of at least one sample; "
            f"choices of shape {chosen.shape} came for {count} samples. Return int64 ({count},)."
        )
    correct = np.asarray(atlas.correct, np.float64)
    # argmax takes the first of equals: the lowest u that is as right as any.
    bound = correct.argmax(axis=1)
    net = atlas.net_throttle_ratio(controller_macs, uses_context=uses_context)
    gross = atlas.throttle_ratio()
    rows = [_row(atlas, "fixed", np.full(count, arm), gross) for arm in range(arms)]
    rows += [_row(atlas, "controller", chosen, net), _row(atlas, "bound", bound, gross)]
    labels, classes = np.asarray(atlas.label), atlas.header.classes
    return ControllerAnalysis(
        rows=tuple(rows),
        arms=atlas.arms,
        classes=classes,
        histogram=_counts(chosen, arms),
        bound_histogram=_counts(bound, arms),
        class_histogram=tuple(_counts(chosen[labels == c], arms) for c in range(len(classes))),
        unanswerable=int((correct.max(axis=1) == 0).sum()),
        vanilla=vanilla,
        split=split,
    )


def _row(
    atlas: OutcomeAtlas, kind: Kind, chosen: NDArray[np.int64], net: NDArray[np.float64]
) -> ControllerRow:
    each = np.arange(len(chosen))
    u = np.asarray(atlas.arms)[chosen]
    correct = np.asarray(atlas.correct, np.float64)[each, chosen]
    right = float(correct.sum())
    return ControllerRow(
        kind=kind,
        u=float(u.mean()) if kind != "fixed" else float(u[0]),
        accuracy=float(correct.mean()),
        total_correct=float((u * correct).sum()),
        total=float(u.sum()),
        u_correct=float((u * correct).sum()) / right if right else None,
        gross=float(atlas.throttle_ratio()[each, chosen].mean()),
        net=float(net[each, chosen].mean()),
        samples=len(chosen),
    )


def _counts(chosen: NDArray[np.int64], arms: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(chosen, minlength=arms))


def _more(share: float | None) -> str:
    if share is None:
        return "not comparable with"
    return f"{abs(share):.0%} {'above' if share >= 0 else 'below'}"
