"""Judging who serves an alias: promotion, refusal of what is dominated, roll-back, whole fronts.

Figures are those on controller_val that a version carries (`figures_of`). How an alias moves is in
`aliases`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flyball.controllers.bootstrap import Interval
from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.platform.tracking.aliases import checked_alias, moving_aliases
from flyball.platform.tracking.registry import RegisteredVersion, register_version
from flyball.platform.tracking.runs import RunHandle, Tracking
from flyball.platform.tracking.versions import KnownVersion, list_versions

__all__ = [
    "FrontEntry",
    "Promotion",
    "RegisteredFront",
    "figures_of",
    "promote",
    "register_front",
    "roll_back",
]

_ROUNDING = 1e-9
"""A difference below this is the rounding of equal figures."""


@dataclass(frozen=True)
class Promotion:
    """An alias was given to a version.

    Attributes:
        name: of the registered model.
        alias: which.
        version: that has it now.
        before: that had it; None: nobody had.
        note: what a reader should know; may be empty.
    """

    name: str
    alias: str
    version: int
    before: int | None
    note: str = ""


@dataclass(frozen=True)
class FrontEntry:
    """A point of a front that is to be registered.

    Attributes:
        key: names the point.
        run_id: of the MLflow run that made it.
        path_folder: of the frozen data path.
        controller_folder: what `save_controller` wrote.
        figures: what it achieves, see `figures_of`.
        tags: of the version; short texts.
    """

    key: str
    run_id: str
    path_folder: Path
    controller_folder: Path
    figures: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RegisteredFront:
    """What became of a front.

    Attributes:
        versions: by key of the point.
        aliases: the version that got each alias, or had it already.
        refused: why an alias stays where it is, or has nobody.
    """

    versions: dict[str, RegisteredVersion]
    aliases: dict[str, int]
    refused: dict[str, str]


def figures_of(accuracy: Interval, net: Interval, gain: Interval) -> dict[str, float]:
    """The figures of a version that promotion goes by, all measured on controller_val.

    Args:
        accuracy: share of right answers.
        net: net throttle ratio.
        gain: accuracy over the static mixture at the same net cost.
    """
    figures: dict[str, float] = {}
    for name, interval in (
        ("val_accuracy", accuracy),
        ("val_net", net),
        ("val_gain_over_static", gain),
    ):
        figures |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return figures


def promote(tracking: Tracking, name: str, version: int, alias: str = "champion") -> Promotion:
    """Gives an alias to a version, unless that is dominated; then nothing changes.

    A version is dominated by the alias's holder where that is as accurate and as cheap or better,
    and in one of them strictly; as champion also by a static mixture of its cost that is as
    accurate or more. A holder without figures cannot be compared, and gives way.

    Raises:
        UnknownName: there is no such model or version.
        InvalidSetting: no such alias, a version without figures, one that spends more than its
            budget alias allows, or one that is dominated; the message says by how much.
        StorageError, TrackingUnreachable: the registry does not answer, or is held by others.
    """
    checked_alias(alias)
    _version(tracking, name, version)
    with moving_aliases(tracking, name) as mover:
        known = {known.version: known for known in list_versions(tracking, name)}
        holder = mover.holder(alias)
        if holder == version:
            return Promotion(name, alias, version, version, "It had the alias already.")
        note = _judged(known[version], None if holder is None else known.get(holder), alias)
        before = mover.move(alias, version, "promoted")
    return Promotion(name, alias, version, before, note)


def roll_back(tracking: Tracking, name: str, alias: str = "champion") -> Promotion:
    """Gives an alias back to the version that had it before; again, to the one before that.

    Raises:
        UnknownName: there is no such model.
        InvalidSetting: no such alias, or nobody had it before.
        StorageError, TrackingUnreachable: the registry does not answer, or is held by others.
    """
    checked_alias(alias)
    _versions(tracking, name)
    with moving_aliases(tracking, name) as mover:
        moved = mover.roll_back(alias)
    if moved is None:
        raise InvalidSetting(
            f"An alias is rolled back to the version that had it before; {alias!r} of {name!r} "
            "has no such version. `flyball models` lists what there is; give it to one with "
            "--promote VERSION."
        )
    return Promotion(name, alias, *moved)


def register_front(
    tracking: Tracking, entries: Sequence[FrontEntry], name: str, aliases: Mapping[str, str]
) -> RegisteredFront:
    """Registers every point of a front, then promotes those that are to serve an alias.

    What is registered already is not doubled. An alias whose holder dominates the new point
    stays where it is.

    Args:
        tracking: where.
        entries: the points.
        name: of the registered model.
        aliases: key of the point by alias, as `sweep.front.choose` finds them.

    Raises:
        InvalidSetting: there is no such alias, or no entry of a key.
        ArtifactError: a folder does not hold what it should.
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    known = [entry.key for entry in entries]
    for alias, key in aliases.items():
        checked_alias(alias)
        if key not in known:
            raise unknown_name(f"point for {alias!r}", key, known)
    versions = {
        entry.key: register_version(
            tracking,
            RunHandle(tracking, entry.run_id),
            entry.path_folder,
            entry.controller_folder,
            name=name,
            tags=entry.tags,
            figures=entry.figures,
        )
        for entry in entries
    }
    held: dict[str, int] = {}
    refused: dict[str, str] = {}
    for alias, key in aliases.items():
        try:
            held[alias] = promote(tracking, name, versions[key].version, alias).version
        except InvalidSetting as error:
            refused[alias] = str(error)
    return RegisteredFront(versions, held, refused)


def _judged(candidate: KnownVersion, holder: KnownVersion | None, alias: str) -> str:
    """What is to be noted of a candidate that may have the alias.

    Raises:
        InvalidSetting: it may not.
    """
    accuracy, net = candidate.figure("val_accuracy"), candidate.figure("val_net")
    gain = candidate.figure("val_gain_over_static")
    if accuracy is None or net is None or gain is None:
        raise InvalidSetting(
            f"A version is promoted by its figures on controller_val; version {candidate.version} "
            "has none. Register it again with `flyball train` or `flyball sweep`."
        )
    if alias.startswith("budget-") and net > float(alias.removeprefix("budget-")) / 100:
        raise InvalidSetting(
            f"{alias} spends {alias.removeprefix('budget-')} % of the full data path at most; "
            f"version {candidate.version} spends {net:.1%}. Promote a cheaper one."
        )
    if alias == "champion" and gain <= _ROUNDING:
        raise InvalidSetting(
            f"A champion beats the static mixture of its cost; version {candidate.version} is "
            f"dominated by it: at a net throttle ratio of {net:.3f} the mixture is "
            f"{-100 * gain:.2f} points more accurate on controller_val. Promote another version, "
            "or give this one another alias."
        )
    notes = []
    low = candidate.figure("val_gain_over_static_low")
    if alias == "champion" and low is not None and low <= _ROUNDING:
        notes.append(
            f"Its gain over the static mixture, {100 * gain:+.2f} points, may be chance: the "
            f"interval begins at {100 * low:+.2f}."
        )
    if holder is not None:
        theirs, spent = holder.figure("val_accuracy"), holder.figure("val_net")
        if theirs is None or spent is None:
            notes.append(f"Version {holder.version}, which had {alias}, had no figures to compare.")
        else:
            _refuse_dominated(candidate, holder, alias, accuracy - theirs, net - spent)
    return " ".join(notes)


def _refuse_dominated(
    candidate: KnownVersion, holder: KnownVersion, alias: str, gained: float, dearer: float
) -> None:
    is_as_good = gained <= _ROUNDING and dearer >= -_ROUNDING
    if not is_as_good or (gained >= -_ROUNDING and dearer <= _ROUNDING):
        return
    less = f"{-100 * gained:.2f} points less accurate" if gained < -_ROUNDING else "as accurate"
    more = f"spends {dearer:.4f} more" if dearer > _ROUNDING else "spends as much"
    raise InvalidSetting(
        f"What gets an alias is not dominated by its holder; version {candidate.version} is, by "
        f"version {holder.version}, which is {alias}: it is {less} on controller_val and {more} "
        "net throttle ratio. Promote a version that is better in one of them, or give this one "
        "another alias."
    )


def _version(tracking: Tracking, name: str, version: int) -> KnownVersion:
    known = {str(known.version): known for known in _versions(tracking, name)}
    if str(version) not in known:
        raise unknown_name(f"version of {name!r}", str(version), known)
    return known[str(version)]


def _versions(tracking: Tracking, name: str) -> tuple[KnownVersion, ...]:
    versions = list_versions(tracking, name)
    if not versions:
        known = [model.name for model in tracking.client.search_registered_models()]
        raise unknown_name("registered model", name, known, advice="Train one first.")
    return versions
