"""Whether budgets are kept, which classes spend most, and where in the network MACs are spent."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flyball.controllers.bootstrap import interval_of, resampled_means
from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.platform.analyses.dynamic import Spent, share_of, spent_at, spread_rows
from flyball.platform.analyses.executed_picture import executed_figure
from flyball.platform.analyses.means import LEVEL, RESAMPLES, SEED
from flyball.platform.analyses.tables import aligned

__all__ = ["BUDGETS", "BlockRate", "BudgetRow", "ClassSpending", "Executed", "executed_budgets"]

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOLERANCE = 0.01
"""Farthest that an executed share may lie from the one asked for."""
WHISKERS = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class BudgetRow:
    """One budget on one split.

    Attributes:
        split: of the images.
        asked: share of the conditional MACs.
        executed, low, high: mean over the images, and its 95 % interval.
        spread: standard deviation over the images.
        samples: how many were measured.
    """

    split: str
    asked: float
    executed: float
    low: float
    high: float
    spread: float
    samples: int

    @property
    def difference(self) -> float:
        """Executed less asked."""
        return self.executed - self.asked

    @property
    def is_kept(self) -> bool:
        """Whether the difference is at most a point."""
        return abs(self.difference) <= TOLERANCE


@dataclass(frozen=True)
class ClassSpending:
    """What the images of a class execute.

    Attributes:
        label: its name.
        mean: MACs.
        quantiles: MACs at 5, 25, 50, 75 and 95 % of the images.
        samples: how many these are.
    """

    label: str
    mean: float
    quantiles: tuple[float, ...]
    samples: int


@dataclass(frozen=True)
class BlockRate:
    """On how many of its pixels a block runs.

    Attributes:
        name: in its network.
        stride: of its branch.
        mean, spread: share of its pixels over the images: mean and standard deviation.
    """

    name: str
    stride: int
    mean: float
    spread: float


@dataclass(frozen=True)
class Executed:
    """DynConv Fig. 6, and what was asked for against what was executed.

    Attributes:
        rows: by split and increasing budget.
        classes: dearest first, at `u` on test.
        blocks: in order of execution, at `u` on test.
        u: a budget in the middle.
        full_macs: of one image when everything runs.
    """

    rows: tuple[BudgetRow, ...]
    classes: tuple[ClassSpending, ...]
    blocks: tuple[BlockRate, ...]
    u: float
    full_macs: int
    name: ClassVar[str] = "executed"

    @property
    def is_kept(self) -> bool:
        """Whether every budget is within a point on every split."""
        return all(row.is_kept for row in self.rows)

    @property
    def worst(self) -> BudgetRow:
        """The budget that is missed by most."""
        return max(self.rows, key=lambda row: abs(row.difference))

    def table(self) -> str:
        """Budgets, then classes, then blocks."""
        budgets = [
            [
                r.split,
                f"{100 * r.asked:.0f}%",
                f"{100 * r.executed:.2f}%",
                f"{100 * r.difference:+.2f}",
                f"[{100 * (r.low - r.asked):+.2f}, {100 * (r.high - r.asked):+.2f}]",
                f"{100 * r.spread:.1f}",
                str(r.samples),
                "yes" if r.is_kept else "NO",
            ]
            for r in self.rows
        ]
        titles = ["split", "asked", "executed", "points", "95%", "spread", "n", "within 1"]
        verdict = "are all" if self.is_kept else "are NOT all"
        worst = self.worst
        classes = [
            [
                r.label,
                str(r.samples),
                f"{r.mean:,.0f}",
                f"{r.mean / self.full_macs:.3f}",
                *(f"{q:,.0f}" for q in r.quantiles[1:4]),
            ]
            for r in self.classes
        ]
        blocks = [
            [r.name, str(r.stride), f"{100 * r.mean:.1f}%", f"{100 * r.spread:.1f}"]
            for r in self.blocks
        ]
        most, least = self.classes[0], self.classes[-1]
        return "\n".join(
            [
                *aligned(titles, budgets),
                "",
                "Shares of the conditional MACs; points: executed less asked; spread: standard "
                "deviation over images.",
                f"Budgets {verdict} within 1 point; farthest: {100 * worst.difference:+.2f} "
                f"points at {100 * worst.asked:.0f}% on {worst.split}.",
                "",
                *aligned(
                    ["class", "n", "MACs", "of full", "quartile 1", "median", "quartile 3"],
                    classes,
                ),
                "",
                f"At u = {self.u:g} on {TEST}: {most.label} spends most, {least.label} least "
                f"({100 * (most.mean / least.mean - 1):+.1f}%).",
                "",
                *aligned(["block", "stride", "of its pixels", "spread"], blocks),
            ]
        )

    def figure(self) -> Figure:
        """Budgets on the left; classes and blocks at a middle budget on the right."""
        return executed_figure(self)

    def summary(self) -> dict[str, float]:
        """The farthest miss in points by split, and how far classes lie apart."""
        missed = {
            f"{split}/farthest_points": 100
            * max(abs(r.difference) for r in self.rows if r.split == split)
            for split in dict.fromkeys(row.split for row in self.rows)
        }
        apart = self.classes[0].mean / self.classes[-1].mean
        rates = [block.mean for block in self.blocks]
        return {
            **missed,
            "within_one_point": float(self.is_kept),
            "dearest_over_cheapest_class": apart,
            "busiest_block": max(rates),
            "idlest_block": min(rates),
        }

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Executed shares by per cent asked for."""
        return [(round(100 * r.asked), {f"executed/{r.split}": r.executed}) for r in self.rows]

    def extras(self) -> dict[str, Any]:
        """Classes and blocks."""
        return {
            "u": self.u,
            "full_macs": self.full_macs,
            "within_one_point": self.is_kept,
            "classes": [asdict(row) for row in self.classes],
            "blocks": [asdict(row) for row in self.blocks],
        }


def executed_budgets(
    path: DynConvPath,
    images: ImageSet,
    *,
    budgets: Sequence[float] = BUDGETS,
    splits: Sequence[str] = (CONTROLLER_VAL, TEST),
    samples: int = 2000,
    report: Report = silent,
) -> Executed:
    """Asks for budgets and measures what was executed (DynConv section 3.3, Fig. 6).

    Args:
        path: on its device.
        images: of the job.
        budgets: in (0, 1).
        splits: neither of them may have calibrated the path; the last one shows the classes.
        samples: at most so many images of each split, evenly spaced.
        report: hears of progress.

    Raises:
        InvalidSetting: no image is asked for.
        DataError: a split has none.
    """
    middle = min((u for u in path.arms if u < 1), key=lambda u: (abs(u - 0.5), u), default=0.5)
    rows = []
    for split in splits:
        taken = spread_rows(images, split, samples)
        found = {
            u: spent_at(path, images, taken, u, note=split, report=report)
            for u in sorted({*budgets, middle})
        }
        rows += [_row(split, u, share_of(path, found[u].macs, u)) for u in budgets]
    labels = np.asarray(images.labels[taken])
    return Executed(
        tuple(rows),
        _classes(found[middle].macs, labels, images.classes),
        _blocks(path, found[middle]),
        middle,
        path.cost.full,
    )


def _row(split: str, asked: float, shares: NDArray[np.float64]) -> BudgetRow:
    drawn = resampled_means(shares[:, None], RESAMPLES, np.random.default_rng(SEED))
    interval = interval_of(float(shares.mean()), drawn[:, 0], LEVEL)
    spread = float(shares.std())
    return BudgetRow(split, asked, interval.mean, interval.low, interval.high, spread, len(shares))


def _classes(
    macs: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str]
) -> tuple[ClassSpending, ...]:
    found = []
    for code, name in enumerate(names):
        own = macs[labels == code]
        if len(own):
            quantiles = tuple(float(q) for q in np.percentile(own, WHISKERS))
            found.append(ClassSpending(name, float(own.mean()), quantiles, len(own)))
    return tuple(sorted(found, key=lambda row: -row.mean))


def _blocks(path: DynConvPath, found: Spent) -> tuple[BlockRate, ...]:
    rates = found.rates.astype(np.float64)
    return tuple(
        BlockRate(block.name, block.stride, float(rates[:, k].mean()), float(rates[:, k].std()))
        for k, block in enumerate(path.network.conditional)
    )
