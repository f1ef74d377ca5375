"""The outcome of a comparison of gates, and its file `comparison.json`; `comparison` makes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flyball.datapaths.errors import CorruptArtifact, ForeignArtifact
from flyball.datapaths.files import read_json, write_json
from flyball.datapaths.learned_gates.comparison_config import METHODS
from flyball.datapaths.learned_gates.curves import GateCurve

__all__ = [
    "RESULT_FILE",
    "Comparison",
    "GateRow",
    "MethodResult",
    "read_comparison",
    "resume_comparison",
    "write_comparison",
]

RESULT_FILE = "comparison.json"
FORMAT = 1


class GateRow(NamedTuple):
    """One point of the comparison, as a table shows it.

    Attributes:
        method: way of gating.
        u: requested.
        complexity: share of components that was on.
        mac_share: executed MACs of the data path over those of the whole.
        net_share: likewise, with the gate's own MACs added.
        accuracy: share of right answers.
    """

    method: str
    u: float
    complexity: float
    mac_share: float
    net_share: float
    accuracy: float


@dataclass(frozen=True)
class MethodResult:
    """One way of gating, trained and measured.

    Attributes:
        method: its name.
        curve: at every utilization.
        seconds: that its own training took: Phase 1 for static gates, Phase 2 for learned ones.
        losses: mean task loss of every epoch of its own training.
    """

    method: str
    curve: GateCurve
    seconds: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """All ways of gating that were asked for.

    Attributes:
        results: in the order of the configuration.
        chance: accuracy of always giving the most frequent class of the test images.
    """

    results: tuple[MethodResult, ...]
    chance: float

    def rows(self) -> tuple[GateRow, ...]:
        """Every method at every utilization."""
        return tuple(
            GateRow(
                result.method,
                u,
                curve.complexity[i],
                curve.mac_share[i],
                curve.mac_share[i] * (1.0 + curve.gate_macs / curve.macs[i]),
                curve.accuracy[i],
            )
            for result in self.results
            for curve in [result.curve]
            for i, u in enumerate(curve.utilizations)
        )


def read_comparison(folder: Path | str) -> Comparison:
    """Reads what `compare_gates` left in its folder, methods in the order of `METHODS`.

    Raises:
        CorruptArtifact: the file is missing, altered, or not a comparison.
        PickleRefused: it is a pickle.
    """
    text, results = _read(Path(folder) / RESULT_FILE)
    return Comparison(tuple(results.values()), float(text["chance"]))


def resume_comparison(folder: Path, plan: str) -> dict[str, MethodResult]:
    """The methods that are done, by name; none if there is no file.

    Raises:
        ForeignArtifact: the folder holds another comparison.
        CorruptArtifact: the file cannot be used.
    """
    if not (folder / RESULT_FILE).exists():
        return {}
    text, results = _read(folder / RESULT_FILE)
    if text["plan"] != plan:
        raise ForeignArtifact(
            f"{folder} holds another comparison: network, images or settings differ. Name another "
            "folder, repeat what it was started with, or delete it to start anew."
        )
    return results


def write_comparison(
    folder: Path,
    plan: str,
    settings: Mapping[str, Any],
    chance: float,
    results: Mapping[str, MethodResult],
) -> None:
    """Writes the methods that are done, all or nothing.

    Args:
        folder: of the comparison.
        plan: names it, so that no other one goes on from it.
        settings: that it was run with, for people.
        chance: accuracy of the most frequent class.
        results: by name.
    """
    methods = {name: asdict(result) for name, result in results.items()}
    text = {"format": FORMAT, "plan": plan, "settings": dict(settings), "chance": chance}
    write_json(folder / RESULT_FILE, {**text, "methods": methods})


def _read(file: Path) -> tuple[dict[str, Any], dict[str, MethodResult]]:
    text = read_json(file)
    try:
        if text["format"] != FORMAT:
            raise KeyError("format")
        names = sorted(text["methods"], key=METHODS.index)
        results = {name: _result_from_json(text["methods"][name]) for name in names}
        return {"plan": text["plan"], "chance": float(text["chance"])}, results
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifact(
            f"{file} is not a comparison of format {FORMAT} ({error}). Delete its folder, for "
            "nothing else tells what the networks there were trained with, and run again."
        ) from error


def _result_from_json(text: dict[str, Any]) -> MethodResult:
    curve: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in text["curve"].items()
    }
    curve["module_use"] = tuple(tuple(row) for row in curve["module_use"])
    return MethodResult(text["method"], GateCurve(**curve), text["seconds"], tuple(text["losses"]))
