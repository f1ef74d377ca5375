"""`flyball bench scaling`: measures this machine's rates, checks the model, and applies it."""

import argparse
from pathlib import Path
from typing import Any

from flyball.datapaths.progress import Report
from flyball.platform.scaling import AtlasEstimate, SweepEstimate, estimate_atlas, estimate_sweep
from flyball.platform.scaling_cases import (
    SHARD_SIZES,
    WORKERS,
    atlas_rates,
    imagenet,
    sweep_rates,
    thousand_points,
)
from flyball.platform.scaling_measure import Measured, measure
from flyball.platform.scaling_picture import draw_scaling
from flyball.platform.scaling_table import scaling_table

__all__ = ["bench_scaling", "modelled"]


def bench_scaling(options: argparse.Namespace, report: Report) -> tuple[list[str], Any]:
    """Lines for people and rows for machines; draws where `--picture` names a file."""
    measured = measure(report=report)
    atlases, sweeps = modelled(measured)
    lines = scaling_table(measured, atlases, sweeps).splitlines()
    if options.picture is not None:
        lines += ["", f"Picture        {draw_scaling(measured, Path(options.picture))}"]
    return lines, (measured, *(one for _, one in atlases), *sweeps)


def modelled(
    measured: Measured,
) -> tuple[list[tuple[int, AtlasEstimate]], list[SweepEstimate]]:
    """The atlas for every number of GPUs and size of a shard, and the sweep likewise."""
    rates = atlas_rates(measured)
    atlases = [
        (size, estimate_atlas(work, rates, count))
        for size in SHARD_SIZES
        for work in [imagenet(size, message_bytes=measured.message_bytes)]
        for count in WORKERS
    ]
    work = thousand_points(measured, imagenet())
    sweeps = [estimate_sweep(work, sweep_rates(measured), count) for count in WORKERS]
    return atlases, sweeps
