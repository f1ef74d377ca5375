"""A front as text for people and as CSV for spreadsheets; what it holds is found in `front`."""

import csv
from pathlib import Path
from typing import Any

from flyball.controllers.bootstrap import Interval
from flyball.datapaths.files import write_atomically, write_json
from flyball.platform.sweep.front import Front
from flyball.platform.sweep.front_picture import draw_front
from flyball.platform.sweep.result import PointResult

__all__ = ["front_columns", "front_table", "write_front"]

_INTERVALS = ("accuracy", "net", "gross", "utilization", "reward", "gain_over_static")
_RUN_DIGITS = 8


def write_front(front: Front, folder: Path) -> tuple[Path, ...]:
    """Writes front.json, front.txt, points.csv and front.png; gives the files.

    Raises:
        StorageError: one cannot be written.
    """
    write_json(folder / "front.json", front.to_json())
    with write_atomically(folder / "front.txt") as partial:
        partial.write_text(front_table(front) + "\n", encoding="utf-8")
    columns = front_columns(front)
    with (
        write_atomically(folder / "points.csv") as partial,
        partial.open("w", encoding="utf-8", newline="") as opened,
    ):
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    draw_front(front, folder / "front.png")
    return tuple(folder / name for name in ("front.json", "front.txt", "points.csv", "front.png"))


def front_table(front: Front) -> str:
    """The front with its intervals, aliases and runs, what it is compared with, and a verdict."""
    titles = ["net ratio", "accuracy", "gain over static", "point", "aliases", "run"]
    rows = [_row(front, point) for point in front.front]
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_aligned(titles, widths), rule, *(_aligned(row, widths) for row in rows), rule]
    return "\n".join([*lines, *_words(front)])


def front_columns(front: Front) -> dict[str, list[Any]]:
    """Every point of the sweep as a row, lists of one length by column; swept fields by name."""
    fields = list(dict.fromkeys(field for point in front.points for field, _ in point.settings))
    kept = {point.key for point in front.front}
    columns: dict[str, list[Any]] = {}
    for point in front.points:
        row: dict[str, Any] = {"key": point.key, "name": point.name}
        settings = dict(point.settings)
        row |= {field: settings.get(field, "") for field in fields}
        for name in _INTERVALS:
            interval: Interval = getattr(point, name)
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        row |= {
            "on_front": point.key in kept,
            "beats_static": point.beats_static,
            "dominated": point.dominated,
            "aliases": " ".join(front.names_of(point)),
            "controller_macs": point.controller_macs,
            "parameters": point.parameters,
            "best_update": point.best_update,
            "updates": point.updates,
            "starts": point.starts,
            "seconds": point.seconds,
            "seed": point.seed,
            "run_id": point.run_id,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _row(front: Front, point: PointResult) -> list[str]:
    gain = point.gain_over_static
    mark = " *" if point.beats_static else " (beaten)" if point.dominated else ""
    return [
        f"{point.net.mean:.3f} [{point.net.low:.3f}, {point.net.high:.3f}]",
        f"{point.accuracy.mean:.1%} [{point.accuracy.low:.1%}, {point.accuracy.high:.1%}]",
        f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]{mark}",
        point.name,
        ", ".join(front.names_of(point)) or "-",
        point.run_id[:_RUN_DIGITS] or "-",
    ]


def _words(front: Front) -> list[str]:
    known = front.references
    surely = sum(point.beats_static for point in front.points)
    beaten = sum(point.dominated for point in front.points)
    hull = " - ".join(
        f"u {known.fixed[arm].utilization.mean:g}: {known.fixed[arm].accuracy.mean:.1%} at "
        f"{known.fixed[arm].net.mean:.3f}"
        for arm in known.hull
    )
    lines = [
        f"{len(front.front)} of {len(front.points)} points are on the front of accuracy against "
        f"net throttle ratio, on {known.samples:,} samples of controller_val "
        f"({known.level:.0%} intervals).",
        f"Static mixtures (free of a controller): {hull}.",
        f"Per-sample oracle (takes luck for skill): {known.oracle.accuracy.mean:.1%} at "
        f"{known.oracle.net.mean:.3f}.",
        f"Hypervolume, to accuracy 0 at net ratio 1: {front.hypervolume:.4f}; of all static "
        f"mixtures {known.static_hypervolume():.4f}; the front adds {front.added_hypervolume:.4f} "
        "to theirs.",
        f"{surely} of {len(front.points)} points beat the static mixture of their cost beyond "
        f"chance (*), {beaten} are beaten by it or equal to it.",
    ]
    if "champion" not in front.aliases:
        lines.append("No point deserves to be champion: every gain may be chance.")
    lines.append(
        f"The best of {len(front.points)} points is flattered by having been chosen here: "
        "`flyball evaluate` with its settings measures it on test."
    )
    return lines


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
