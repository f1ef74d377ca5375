"""Rows of an analysis as text for people and as columns for machines."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

__all__ = ["UNKNOWN", "aligned", "columns_of", "figure_of", "interval_text", "plain"]

UNKNOWN = "unknown"
"""What a table says of a figure that could not be read: never 0."""


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines for a fixed-width font: the first `left` columns to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(placed).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [line(header), rule, *(line(row) for row in rows)]


def figure_of(value: float | None, form: str = ".3f") -> str:
    """A figure, or "unknown"."""
    return UNKNOWN if value is None else format(value, form)


def interval_text(mean: float, low: float, high: float) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * mean:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def columns_of(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Frozen dataclasses of one type as lists by field name; for tables of MLflow."""
    if not rows:
        return {}
    return {item.name: [getattr(row, item.name) for row in rows] for item in fields(rows[0])}


def plain(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Frozen dataclasses as JSON-able values."""
    return [asdict(row) for row in rows]
