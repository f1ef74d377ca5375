"""What the registry holds of one model: its versions, aliases and figures; nothing is changed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion

from flyball.datapaths.errors import InvalidSetting
from flyball.platform.tracking.address import told_plainly
from flyball.platform.tracking.runs import Tracking

__all__ = [
    "FIGURE_TAG",
    "GOVERNOR_TAG",
    "KnownVersion",
    "aliases_of",
    "checked_name",
    "list_versions",
]

GOVERNOR_TAG = "flyball.governor"
FIGURE_TAG = "figure."


@dataclass(frozen=True)
class KnownVersion:
    """A registered version.

    Attributes:
        version: counts from 1.
        aliases: that it has now, in alphabetical order.
        fingerprint: of data path and controller; empty if Flyball did not register it.
        run_id: of the MLflow run that made it.
        figures: what it achieves, as text by name.
    """

    version: int
    aliases: tuple[str, ...]
    fingerprint: str
    run_id: str
    figures: dict[str, str]

    def figure(self, name: str) -> float | None:
        """One figure as a number; None where the version has none of that name."""
        try:
            return float(self.figures[name])
        except (KeyError, ValueError):
            return None


def list_versions(tracking: Tracking, name: str) -> tuple[KnownVersion, ...]:
    """The versions of a registered model, newest first; none where there is no such model.

    Raises:
        InvalidSetting: no model can have that name.
        StorageError, TrackingUnreachable: the registry does not answer.
    """
    with told_plainly(tracking.address, f"Listing {name!r}"):
        aliases = aliases_of(tracking, name)
        if aliases is None:
            return ()
        found = tracking.client.search_model_versions(f"name = '{name}'")
    versions = [_known(version, aliases) for version in found]
    return tuple(sorted(versions, key=lambda version: version.version, reverse=True))


def aliases_of(tracking: Tracking, name: str) -> dict[str, str] | None:
    """Version by alias; None where there is no such model."""
    client = tracking.client
    if not client.search_registered_models(f"name = '{checked_name(name)}'"):
        return None
    return dict(client.get_registered_model(name).aliases)


def checked_name(name: str) -> str:
    """The name, if a registered model can have it.

    Raises:
        InvalidSetting: it cannot.
    """
    if not re.fullmatch(r"[\w.\- ]+", name):
        raise InvalidSetting(
            "The name of a registered model is made of letters, digits, dots, dashes, underscores "
            f"and spaces; {name!r} came. Rename it."
        )
    return name


def _known(version: ModelVersion, aliases: Mapping[str, str]) -> KnownVersion:
    tags, number = dict(version.tags or {}), int(version.version)
    figures = {tag: text for tag, text in sorted(tags.items()) if tag.startswith(FIGURE_TAG)}
    return KnownVersion(
        version=number,
        aliases=tuple(sorted(alias for alias, held in aliases.items() if int(held) == number)),
        fingerprint=tags.get(GOVERNOR_TAG, ""),
        run_id=version.run_id or "",
        figures={tag.removeprefix(FIGURE_TAG): text for tag, text in figures.items()},
    )
