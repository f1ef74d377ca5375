"""How long work says how far it is: values given to a callback, never printed here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Progress", "Report", "silent"]


@dataclass(frozen=True)
class Progress:
    """One report of a stage that is under way.

    Attributes:
        stage: name of the stage, such as "phase1".
        done: units finished, in [0, total].
        total: units in all.
        note: a short text for people.
        values: figures of the moment, such as {"loss": 0.31}.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Reports to nobody."""
