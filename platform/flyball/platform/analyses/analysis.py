"""What every analysis gives, and how it is written: a table, a picture and JSON in one folder.

```text
runs/analyses/<name>-<fingerprint>/
|-- <name>.png     picture
|-- <name>.txt     table
`-- <name>.json    rows, settings and provenance; written last: where it lies, all lies
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from flyball.datapaths.files import write_atomically, write_json
from flyball.platform.analyses.tables import plain
from flyball.platform.house_style import save_figure

__all__ = ["Analysis", "Written", "write_analysis"]

FORMAT = 1


class Analysis(Protocol):
    """What an analysis found: typed rows, and everything that can be made of them."""

    @property
    def name(self) -> str:
        """By which it is asked for, such as "curves"."""

    @property
    def rows(self) -> Sequence[Any]:
        """Frozen dataclasses of one type."""

    def table(self) -> str:
        """Lines of plain text, aligned for a fixed-width font."""

    def figure(self) -> Figure:
        """The picture."""

    def summary(self) -> dict[str, float]:
        """The figures that runs are compared by; what is unknown is left out."""

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Figures by step, where a step is a per cent of utilization."""

    def extras(self) -> dict[str, Any]:
        """What the JSON holds beside the rows."""


@dataclass(frozen=True)
class Written:
    """Where the three files of an analysis lie."""

    picture: Path
    table: Path
    record: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.picture, self.table, self.record)


def write_analysis(analysis: Analysis, folder: Path, provenance: Mapping[str, Any]) -> Written:
    """Writes picture and table, then the record.

    Args:
        analysis: what was found.
        folder: where to; it is made where it does not exist.
        provenance: JSON-able: the job, fingerprints, settings.

    Raises:
        StorageError: the folder cannot be written.
    """
    name = analysis.name
    picture = save_figure(analysis.figure(), folder / f"{name}.png")
    table = folder / f"{name}.txt"
    with write_atomically(table) as partial:
        partial.write_text(analysis.table() + "\n", encoding="utf-8")
    record = folder / f"{name}.json"
    write_json(
        record,
        {
            "format": FORMAT,
            "analysis": name,
            "rows": plain(analysis.rows),
            "summary": analysis.summary(),
            **analysis.extras(),
            "provenance": dict(provenance),
        },
    )
    return Written(picture, table, record)
