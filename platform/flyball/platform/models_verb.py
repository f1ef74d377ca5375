"""`flyball models`: lists a preset's registered governors, promotes one, or rolls back."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.tracking import (
    KnownVersion,
    Promotion,
    Tracking,
    list_versions,
    open_tracking,
    promote,
    roll_back,
)
from flyball.platform.tracking.address import resolve_address

__all__ = ["add_models_arguments", "run_models"]

_TITLES = ("version", "accuracy", "net ratio", "gain over static", "run", "aliases")
_RUN_DIGITS = 8


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `flyball models` takes beside a preset, --set and --json."""
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--promote",
        type=int,
        metavar="VERSION",
        help="give the alias to it, unless it is dominated",
    )
    change.add_argument(
        "--roll-back", action="store_true", help="give the alias back to who had it before"
    )
    parser.add_argument(
        "--alias",
        default=None,
        help="of --promote and --roll-back: champion (default), challenger, eco, balanced, peak "
        "or budget-NN",
    )


def run_models(options: argparse.Namespace) -> int:
    """Lists the registered versions, newest first, or moves one alias and says so.

    Raises:
        DataError: an alias is to move, and nothing is registered yet.
        UnknownName, InvalidSetting: see `tracking.promote` and `tracking.roll_back`.
    """
    job = with_overrides(preset(options.preset), options.settings)
    tracking = _tracking_there(job)
    is_move = options.promote is not None or options.roll_back
    if options.alias is not None and not is_move:
        raise InvalidSetting(
            f"--alias {options.alias} says what --promote or --roll-back moves; neither came. "
            "Leave it out to list the versions, or add --promote VERSION."
        )
    if not is_move:
        versions = () if tracking is None else list_versions(tracking, job.model_name)
        _print(
            options,
            [asdict(version) for version in versions],
            [f"{job.model_name}: {len(versions)} versions", *_table(versions)],
        )
        return 0
    if tracking is None:
        raise DataError(
            f"Nothing is registered under {job.storage.root} yet. "
            f"Run `flyball train {job.name}` first."
        )
    alias = options.alias or "champion"
    if options.roll_back:
        moved, did = roll_back(tracking, job.model_name, alias), "is back at"
    else:
        moved, did = promote(tracking, job.model_name, options.promote, alias), "is now"
    _print(options, asdict(moved), _told(moved, did))
    return 0


def _table(versions: Sequence[KnownVersion]) -> list[str]:
    """Aligned rows under their titles; none without versions."""
    if not versions:
        return []
    rows = [_TITLES, *(_row(version) for version in versions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_TITLES))]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(version: KnownVersion) -> tuple[str, ...]:
    return (
        str(version.version),
        _interval(version, "val_accuracy", 100, ".1f", "%"),
        _interval(version, "val_net", 1, ".3f", ""),
        _interval(version, "val_gain_over_static", 100, "+.2f", ""),
        version.run_id[:_RUN_DIGITS] or "-",
        ", ".join(version.aliases) or "-",
    )


def _interval(version: KnownVersion, name: str, times: int, form: str, unit: str) -> str:
    mean, low, high = (version.figure(f"{name}{end}") for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    text = f"{times * mean:{form}}{unit}"
    if low is None or high is None:
        return text
    return f"{text} [{times * low:{form}}, {times * high:{form}}]"


def _told(moved: Promotion, did: str) -> list[str]:
    since = ""
    if moved.before not in (None, moved.version):
        since = f", before it version {moved.before}"
    line = f"{moved.alias} of {moved.name} {did} version {moved.version}{since}."
    return [line, *([moved.note] if moved.note else [])]


def _tracking_there(job: Job) -> Tracking | None:
    """Where runs are recorded; None if that is a local database which does not exist yet."""
    root = Path(job.storage.root)
    database = resolve_address(job.tracking.uri, root).database
    if database is not None and not database.exists():
        return None
    return open_tracking(job.tracking.uri, root, experiment=job.tracking.experiment)


def _print(options: argparse.Namespace, values: Any, lines: Sequence[str]) -> None:
    print(json.dumps(values, indent=1, default=str) if options.json else "\n".join(lines))
