"""Ponder-cost maps: where in an image a network spends its blocks.

N images, H, W pixels, U budgets, b conditional blocks, J key points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.outcomes import truth_of
from flyball.datapaths.pose import decode_heatmaps
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import TEST
from flyball.platform.analyses.dynamic import share_of, spread_rows
from flyball.platform.analyses.ponder_picture import ponder_figure
from flyball.platform.analyses.tables import aligned

__all__ = ["BUDGETS", "Ponder", "PonderRow", "ponder_maps"]

BUDGETS = (0.1, 0.25, 0.5, 0.75)
IMAGES = 10


@dataclass(frozen=True)
class PonderRow:
    """One image at one budget.

    Attributes:
        sample: its row in the image set.
        label: its class.
        u: share of the conditional MACs that was asked for.
        share: of the conditional MACs, executed.
        macs: executed.
        blocks: that ran on a pixel, mean over the pixels.
        answer: what the network said; of a pose network empty.
        correct: how right that is, in [0, 1]; of a pose network PCKh@0.5.
    """

    sample: int
    label: str
    u: float
    share: float
    macs: int
    blocks: float
    answer: str
    correct: float


@dataclass(frozen=True, eq=False)
class Ponder:
    """DynConv Figs. 4 and 8: how many blocks ran at every pixel of some images.

    Attributes:
        rows: by image, then by budget.
        images: uint8 (N, C, H, W).
        maps: blocks that ran at each pixel, float32 (N, U, H, W).
        seen: key points as they were seen, x, y in pixels, (N, U, J, 2); None of a classifier.
        known: where they are, and visible, (N, J, 3); None of a classifier.
        block_count: b.
        split: of the images.
    """

    rows: tuple[PonderRow, ...]
    images: NDArray[np.uint8]
    maps: NDArray[np.float32]
    seen: NDArray[np.float32] | None
    known: NDArray[np.float32] | None
    block_count: int
    split: str = TEST
    name: ClassVar[str] = "ponder"

    @property
    def budgets(self) -> tuple[float, ...]:
        """U, increasing."""
        return tuple(dict.fromkeys(row.u for row in self.rows))

    def of(self, image: int) -> list[PonderRow]:
        """One image at every budget."""
        count = len(self.budgets)
        return list(self.rows[image * count : (image + 1) * count])

    def table(self) -> str:
        """A row for each image: what every budget executed on it, and what was said."""
        titles = ["image", "class"]
        for u in self.budgets:
            titles += [f"u={u:g}", "PCKh" if self.seen is not None else "answer"]
        rows = []
        for number in range(len(self.images)):
            part = self.of(number)
            cells = [str(part[0].sample), part[0].label]
            for row in part:
                said = f"{row.correct:.2f}" if self.seen is not None else row.answer
                cells += [f"{100 * row.share:.1f}%", said]
            rows.append(cells)
        return "\n".join(
            [
                *aligned(titles, rows, left=2),
                "",
                f"Executed share of the conditional MACs of {len(self.images)} {self.split} images "
                f"through {self.block_count} conditional blocks.",
            ]
        )

    def figure(self) -> Figure:
        """Images beside their maps, one colour bar for all."""
        return ponder_figure(self)

    def summary(self) -> dict[str, float]:
        """How far images lie apart at every budget."""
        figures = {}
        for u in self.budgets:
            shares = [row.share for row in self.rows if row.u == u]
            figures[f"least_share_at_{round(100 * u)}"] = min(shares)
            figures[f"most_share_at_{round(100 * u)}"] = max(shares)
        return figures

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Mean executed share by per cent asked for."""
        return [
            (
                round(100 * u),
                {"ponder/share": float(np.mean([r.share for r in self.rows if r.u == u]))},
            )
            for u in self.budgets
        ]

    def extras(self) -> dict[str, Any]:
        """How many blocks there are, and the split."""
        return {"conditional_blocks": self.block_count, "split": self.split}


def ponder_maps(
    path: DynConvPath,
    images: ImageSet,
    *,
    budgets: Sequence[float] = BUDGETS,
    split: str = TEST,
    count: int = IMAGES,
    report: Report = silent,
) -> Ponder:
    """Counts the blocks that ran at every pixel of some images (DynConv sections 4.1 and 4.2).

    Args:
        path: on its device.
        images: of the job.
        budgets: requested shares of the conditional MACs.
        split: whose images.
        count: of images, spread evenly over the classes.
        report: hears of progress.

    Raises:
        InvalidSetting: no image is asked for.
        DataError: the split has none.
    """
    rows = _spread_over_classes(images, split, count)
    device = path.mean.device
    pixels = np.asarray(images.images[rows])
    x = torch.from_numpy(pixels).to(device).float() / 255.0
    truth = truth_of(images, rows, device)
    is_pose = path.spec.task == "pose"
    names = images.classes
    found: list[list[PonderRow]] = [[] for _ in rows]
    maps, seen = [], []
    for number, u in enumerate(budgets):
        looked = path.examine(x, u)
        judged = path.judge(looked.output, truth)
        macs = looked.macs.cpu().numpy()
        shares = share_of(path, macs, u)
        ponder = looked.ponder.cpu().numpy()
        maps.append(ponder)
        if is_pose:
            points = decode_heatmaps(looked.output, (x.shape[2], x.shape[3])).points
            seen.append(points.cpu().numpy())
        for k, row in enumerate(rows):
            found[k].append(
                PonderRow(
                    int(row),
                    names[int(images.labels[row])],
                    u,
                    float(shares[k]),
                    int(macs[k]),
                    float(ponder[k].mean()),
                    "" if is_pose else names[int(judged.answer[k])],
                    float(judged.correct[k]),
                )
            )
        report(Progress("masks", number + 1, len(budgets), f"u = {u:g}"))
    return Ponder(
        rows=tuple(row for part in found for row in part),
        images=pixels,
        maps=np.stack(maps, axis=1),
        seen=np.stack(seen, axis=1).astype(np.float32) if is_pose else None,
        known=truth.key_points.cpu().numpy() if is_pose else None,
        block_count=len(path.cost.blocks),
        split=split,
    )


def _spread_over_classes(images: ImageSet, split: str, count: int) -> NDArray[np.int64]:
    """Rows of a split that show as many classes as there is room for, in the order of classes."""
    rows = spread_rows(images, split, len(images))
    labels = np.asarray(images.labels[rows])
    # Turn about: the first of every class, then the second; so few images show many classes.
    turn = np.array([np.sum(labels[:k] == label) for k, label in enumerate(labels)])
    order = np.lexsort((labels, turn))
    if len(set(labels.tolist())) > count:
        return spread_rows(images, split, count)
    kept = order[:count]
    return rows[kept[np.argsort(labels[kept], kind="stable")]]
