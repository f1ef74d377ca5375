"""What a sweep knows of one finished point, and its file; nothing here computes it."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flyball.controllers.bootstrap import Interval
from flyball.datapaths.errors import CorruptArtifact
from flyball.datapaths.files import read_json, write_json

__all__ = ["CurveRow", "PointResult"]

FORMAT = 1
_INTERVALS = ("accuracy", "utilization", "gross", "net", "reward", "gain_over_static")

CurveRow = tuple[int, dict[str, float]]
"""(updates made, figures by their MLflow names) of one look at the validation rows."""


@dataclass(frozen=True)
class PointResult:
    """A trained point of a sweep, measured on controller_val.

    Attributes:
        key: of the point; the folder it lies in, and a tag of its run.
        settings: (field, value) of every swept field, as text.
        name: the same for people, short.
        accuracy: share of right answers, in [0, 1].
        utilization: mean u that was asked for, in (0, 1].
        gross, net: mean throttle ratio without and with controller and context, > 0.
        reward: mean, of the point's own reward: not comparable between points that pay otherwise.
        gain_over_static: accuracy over the static mixture of the same net cost, in [-1, 1].
        beats_static: the whole interval of the gain is above zero.
        dominated: the static mixture is as accurate or more.
        controller_macs: multiply-accumulates of one choice, its context not counted.
        parameters: trained numbers in the controller.
        updates: gradient steps made.
        best_update: after which of them the weights were taken.
        seconds: wall-clock time of the learning that ended here.
        forwards: sample passes through data paths in the process that trained it, meanwhile; a
            batch counts them at its first point. The atlas answers, so it is 0.
        starts: how often the point was begun; > 1 says that it was repeated.
        run_id: MLflow's, "" until it is recorded.
        seed: of the learning.
        fingerprints: of data path and atlas.
        versions: of the libraries that computed it.
        curve: figures of every look, for its run.
    """

    key: str
    settings: tuple[tuple[str, str], ...]
    name: str
    accuracy: Interval
    utilization: Interval
    gross: Interval
    net: Interval
    reward: Interval
    gain_over_static: Interval
    beats_static: bool
    dominated: bool
    controller_macs: int
    parameters: int
    updates: int
    best_update: int
    seconds: float
    forwards: int = 0
    starts: int = 1
    run_id: str = ""
    seed: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    curve: tuple[CurveRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        values = {name: getattr(self, name) for name in (item.name for item in fields(self))}
        for name in _INTERVALS:
            values[name] = getattr(self, name).to_json()
        values["settings"] = [list(pair) for pair in self.settings]
        values["curve"] = [[updates, dict(figures)] for updates, figures in self.curve]
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, value: Any) -> "PointResult":
        """The inverse of `to_json`.

        Raises:
            CorruptArtifact: a field is missing, of another type, or not finite.
        """
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}")
            known: dict[str, Any] = {item.name: value[item.name] for item in fields(cls)}
            for name in _INTERVALS:
                known[name] = Interval.from_json(known[name])
                if not all(math.isfinite(number) for number in asdict(known[name]).values()):
                    raise ValueError(f"{name} is not finite")
            known["settings"] = tuple((str(a), str(b)) for a, b in known["settings"])
            known["curve"] = tuple(
                (int(updates), {str(name): float(figure) for name, figure in figures.items()})
                for updates, figures in known["curve"]
            )
            return cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptArtifact(
                f"This is not the result of a sweep's point of format {FORMAT} ({error!r}). "
                "Delete the point's folder; the sweep trains it again with --resume."
            ) from error

    def save(self, file: Path) -> None:
        """Writes the result, all or nothing."""
        write_json(file, self.to_json())

    @classmethod
    def load(cls, file: Path) -> "PointResult":
        """Reads what `save` wrote.

        Raises:
            CorruptArtifact: the file is missing, is not JSON, or lacks a field; it is named.
        """
        try:
            return cls.from_json(read_json(file))
        except CorruptArtifact as error:
            raise CorruptArtifact(f"{file}: {error}") from error
