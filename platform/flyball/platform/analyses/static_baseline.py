"""A dynamic network against dense ones of other depth or width, at equal MACs and equal training.

N images, K arms, b conditional blocks, J key points.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from flyball.controllers.bootstrap import interval_of, resampled_means
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.masks import Masking
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.outcomes import truth_of
from flyball.datapaths.pose import PoseSet, decode_heatmaps, pckh
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import TEST
from flyball.platform.analyses.means import LEVEL, RESAMPLES, SEED, rows_of
from flyball.platform.analyses.static_baseline_networks import StaticNetwork
from flyball.platform.analyses.static_baseline_picture import static_figure
from flyball.platform.analyses.tables import UNKNOWN, aligned, interval_text

__all__ = ["Against", "StaticBaseline", "StaticRow", "against_static", "answers_of"]

AT_ONCE = 128
DYNAMIC = "DynConv"


@dataclass(frozen=True)
class StaticRow:
    """The dynamic network at one arm, or a dense network.

    Attributes:
        network: what people call it.
        u: of the arm; None of a dense network.
        macs: executed by one image, mean.
        accuracy, low, high: mean of `correct`, and its 95 % interval: of a pose network PCKh@0.5,
            images alike.
        samples: how many were measured.
    """

    network: str
    u: float | None
    macs: float
    accuracy: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Against:
    """The dynamic network against one dense network, at the dense one's MACs.

    Attributes:
        network: the dense one.
        macs: its own.
        dynamic: accuracy of the dynamic network there, linear between its arms; None where no two
            arms hold these MACs between them.
        difference, low, high: the dynamic network's accuracy less the dense one's, and its 95 %
            interval over the same images.
    """

    network: str
    macs: float
    dynamic: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StaticBaseline:
    """DynConv Fig. 5: accuracy against MACs, beside dense networks trained alike.

    Attributes:
        rows: the arms by increasing u, then the dense networks.
        against: the dense networks in the same order.
        joints: PCKh of groups of joints by network or arm; empty of a classifier.
        is_pose: accuracy is PCKh@0.5.
        epochs: of every training.
        split: of the images.
    """

    rows: tuple[StaticRow, ...]
    against: tuple[Against, ...]
    joints: dict[str, dict[str, float]]
    is_pose: bool
    epochs: int
    split: str = TEST
    name: ClassVar[str] = "static"

    @property
    def arms(self) -> list[StaticRow]:
        """The dynamic network."""
        return [row for row in self.rows if row.u is not None]

    @property
    def dense(self) -> list[StaticRow]:
        """The others."""
        return [row for row in self.rows if row.u is None]

    @property
    def measure(self) -> str:
        """What the accuracy is."""
        return "PCKh@0.5" if self.is_pose else "accuracy"

    def table(self) -> str:
        """Every arm and dense network, what is gained at equal MACs, and joints."""
        rows = [
            [
                row.network,
                "" if row.u is None else f"{row.u:g}",
                f"{row.macs / 1e6:,.2f}",
                interval_text(row.accuracy, row.low, row.high),
            ]
            for row in self.rows
        ]
        lines = aligned(["network", "u", "million MACs", f"{self.measure} [95%]"], rows)
        compared = [
            [
                a.network,
                f"{a.macs / 1e6:,.2f}",
                f"{100 * row.accuracy:.1f}%",
                UNKNOWN if a.dynamic is None else f"{100 * a.dynamic:.1f}%",
                _points_text(a),
            ]
            for a, row in zip(self.against, self.dense, strict=True)
        ]
        titles = ["at the MACs of", "million MACs", "its own", DYNAMIC, "points [95%]"]
        lines += ["", *aligned(titles, compared), ""]
        lines += [
            f"Mean over {self.rows[0].samples:,} {self.split} images; every network trained for "
            f"{self.epochs} epochs on the same images, alike in all but masks.",
            f"{DYNAMIC} at the MACs of a dense network: linear between arms; unknown where its "
            "arms spend more, or less; the interval of points is over the same images.",
        ]
        if self.joints:
            groups = list(next(iter(self.joints.values())))
            told = [
                [name, *(f"{100 * values[group]:.1f}" for group in groups)]
                for name, values in self.joints.items()
            ]
            lines += ["", *aligned(["PCKh@0.5, joints alike", *groups], told)]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Accuracy against MACs on the left, what is gained at equal MACs on the right."""
        return static_figure(self)

    def summary(self) -> dict[str, float]:
        """What is gained over every dense network that can be compared."""
        figures = {
            f"points_over/{a.network}": 100 * a.difference
            for a in self.against
            if a.difference is not None
        }
        return {**figures, "best_arm": max(row.accuracy for row in self.arms)}

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Accuracy and million MACs by per cent of utilization."""
        return [
            (
                round(100 * row.u),
                {"static/accuracy": row.accuracy, "static/million_macs": row.macs / 1e6},
            )
            for row in self.arms
            if row.u is not None
        ]

    def extras(self) -> dict[str, Any]:
        """What is gained at equal MACs, and joints."""
        return {
            "against": [asdict(row) for row in self.against],
            "joints": self.joints,
            "measure": self.measure,
            "epochs": self.epochs,
            "split": self.split,
        }


def against_static(
    path: DynConvPath,
    atlas: OutcomeAtlas,
    images: ImageSet,
    dense: dict[str, StaticNetwork],
    *,
    epochs: int,
    device: str = "cpu",
    report: Report = silent,
) -> StaticBaseline:
    """Measures dense networks on the atlas's test rows and sets the dynamic one beside them.

    Args:
        path: the dynamic network, on the device.
        atlas: what it answered at every arm, and what that executed.
        images: of the job.
        dense: trained networks by name.
        epochs: of every training, for people.
        device: torch device.
        report: hears of progress.

    Raises:
        DataError: the atlas has no test rows.
    """
    taken = rows_of(atlas, TEST)
    rows = np.asarray(taken.sample, np.int64)
    arms = np.asarray(taken.correct, np.float64)
    macs = np.asarray(taken.macs, np.float64).mean(axis=0)
    is_pose = path.spec.task == "pose"
    joints: dict[str, dict[str, float]] = {}
    known, columns = [], []
    for name, static in dense.items():
        output = answers_of(static, images, rows, device=device, note=name, report=report)
        if is_pose:
            joints[name] = _joints(output, images, rows)
        judged = path.judge(output, truth_of(images, rows, output.device))
        known.append((name, float(static.network.costs().full)))
        columns.append(judged.correct.cpu().double().numpy())
    if is_pose:
        for u in _shown_arms(path.arms):
            output = _dynamic_answers(path, images, rows, u, report)
            joints[f"{DYNAMIC}, u = {u:g}"] = _joints(output, images, rows)
    columns_of_dense = np.stack(columns, axis=1)
    every = np.concatenate([arms, columns_of_dense], axis=1)
    drawn = resampled_means(every, RESAMPLES, np.random.default_rng(SEED))
    told = []
    for k, mean in enumerate(every.mean(axis=0)):
        interval = interval_of(float(mean), drawn[:, k], LEVEL)
        is_arm = k < len(macs)
        name, spent = (DYNAMIC, float(macs[k])) if is_arm else known[k - len(macs)]
        asked = taken.arms[k] if is_arm else None
        told.append(
            StaticRow(name, asked, spent, interval.mean, interval.low, interval.high, len(rows))
        )
    against = [
        _against(name, spent, macs, every, drawn, len(macs) + k)
        for k, (name, spent) in enumerate(known)
    ]
    return StaticBaseline(tuple(told), tuple(against), joints, is_pose, epochs)


def answers_of(
    static: StaticNetwork,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    device: str = "cpu",
    note: str = "",
    report: Report = silent,
) -> Tensor:
    """Logits (N, classes), or heat maps of the last stack (N, J, h, w), of rows of images."""
    network = static.network.to(device).eval()
    mean, std = (
        torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (static.mean, static.std)
    )
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        x = _pixels(images, rows[start : start + AT_ONCE], device)
        with torch.inference_mode():
            logits = network.run((x - mean) / std, Masking()).logits
        parts.append((logits if logits.ndim == 2 else logits[:, -1]).float().clone())
        report(Progress("dense", start + len(x), len(rows), note))
    network.to("cpu")
    return torch.cat(parts)


def _against(
    name: str,
    spent: float,
    macs: NDArray[np.float64],
    every: NDArray[np.float64],
    drawn: NDArray[np.float64],
    column: int,
) -> Against:
    """Interpolates the arms at a dense network's MACs, in the estimate and in every resample."""
    order = np.argsort(macs)
    placed = macs[order]
    if not placed[0] <= spent <= placed[-1] or len(macs) < 2:
        return Against(name, spent, None, None, None, None)
    above = int(np.clip(np.searchsorted(placed, spent), 1, len(placed) - 1))
    left, right = int(order[above - 1]), int(order[above])
    width = placed[above] - placed[above - 1]
    share = float((spent - placed[above - 1]) / width) if width else 1.0
    means = every.mean(axis=0)
    dynamic = float((1 - share) * means[left] + share * means[right])
    gained = (1 - share) * drawn[:, left] + share * drawn[:, right] - drawn[:, column]
    interval = interval_of(dynamic - float(means[column]), gained, LEVEL)
    return Against(name, spent, dynamic, interval.mean, interval.low, interval.high)


def _points_text(row: Against) -> str:
    if row.difference is None or row.low is None or row.high is None:
        return UNKNOWN
    return f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"


def _shown_arms(arms: Sequence[float]) -> list[float]:
    """About a quarter, about a half, and the highest."""
    return sorted({min(arms, key=lambda u: (abs(u - at), u)) for at in (0.25, 0.5, 1.0)})


def _dynamic_answers(
    path: DynConvPath, images: ImageSet, rows: NDArray[np.int64], u: float, report: Report
) -> Tensor:
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        x = _pixels(images, rows[start : start + AT_ONCE], str(path.mean.device))
        parts.append(path(x, u).output)
        report(Progress("joints", start + len(x), len(rows), f"u = {u:g}"))
    return torch.cat(parts)


def _pixels(images: ImageSet, rows: NDArray[np.int64], device: str) -> Tensor:
    return torch.from_numpy(np.asarray(images.images[rows])).to(device).float() / 255.0


def _joints(output: Tensor, images: ImageSet, rows: NDArray[np.int64]) -> dict[str, float]:
    assert isinstance(images, PoseSet)
    found = decode_heatmaps(output, (images.shape[-2], images.shape[-1]))
    table = pckh(found.points.cpu(), images.truth_rows(rows))
    return {**table.by_group, "mean": table.mean}
