"""What analyses of dynamic convolution networks share: the path, rows of a split, and passes.

N images, b conditional blocks.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.outcomes import truth_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.platform.analyses.artifacts import Finished
from flyball.platform.job import Job

__all__ = ["Spent", "check_dynamic", "dynamic_path", "share_of", "spent_at", "spread_rows"]

AT_ONCE = 128


class Spent(NamedTuple):
    """What one budget executed; N images.

    Attributes:
        macs: executed by every image, int64 (N,).
        rates: share of its pixels that every block ran on, float32 (N, b).
        correct: as an atlas has it, float32 (N,).
    """

    macs: NDArray[np.int64]
    rates: NDArray[np.float32]
    correct: NDArray[np.float32]


def check_dynamic(job: Job) -> DynConvConfig:
    """The data path's settings of a job whose data path is a dynamic convolution network.

    Raises:
        InvalidSetting: it is another.
    """
    if not isinstance(job.path, DynConvConfig):
        raise InvalidSetting(
            "This analysis looks at execution masks, which dynamic convolution networks alone "
            f"have; the data path of {job.name} is a {type(job.path).__name__}. "
            "Name such a preset, for example cifar10_dynconv."
        )
    return job.path


def dynamic_path(done: Finished) -> DynConvPath:
    """The data path of finished artifacts, on the job's device.

    Raises:
        InvalidSetting: it is no dynamic convolution network.
    """
    check_dynamic(done.ready.job)
    assert isinstance(done.path, DynConvPath)
    moved: DynConvPath = done.path.to(done.ready.job.compute.device)
    return moved


def spread_rows(images: ImageSet, split: str, most: int) -> NDArray[np.int64]:
    """At most so many rows of a split, evenly spaced: rows run class by class.

    Raises:
        InvalidSetting: fewer than one is asked for.
        DataError: the split has none.
    """
    if most < 1:
        raise InvalidSetting(f"An analysis measures at least one image; {most} are asked for.")
    rows = images.rows(split)
    if not len(rows):
        raise DataError(
            f"An analysis measures on {split}, and it has no images. "
            "Give it a share with --set data.fractions=0.5,0.25,0.1,0.15."
        )
    kept = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return np.asarray(rows[np.unique(kept)], np.int64)


def spent_at(
    path: DynConvPath,
    images: ImageSet,
    rows: NDArray[np.int64],
    u: float,
    *,
    note: str = "",
    report: Report = silent,
) -> Spent:
    """Runs rows of images at a budget and says what that executed.

    Args:
        path: where it runs.
        images: all of them.
        rows: (N,).
        u: requested share of the conditional MACs.
        note: what the rows are, for people.
        report: hears of progress.
    """
    device = path.mean.device
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        x = torch.from_numpy(np.asarray(images.images[part])).to(device).float() / 255.0
        found = path.examine(x, u)
        judged = path.judge(found.output, truth_of(images, part, device))
        columns = (found.macs, found.rates, judged.correct)
        parts.append([column.cpu().numpy() for column in columns])
        report(Progress("masks", start + len(part), len(rows), f"{note} u = {u:g}".strip()))
    macs, rates, correct = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Spent(macs.astype(np.int64), rates, correct)


def share_of(path: DynConvPath, macs: NDArray[np.int64], u: float) -> NDArray[np.float64]:
    """Executed share of the conditional MACs of every image; (N,)."""
    cost = path.cost
    always = cost.fixed + (cost.units if u < 1 else 0)
    return (macs - always) / float(cost.conditional)
