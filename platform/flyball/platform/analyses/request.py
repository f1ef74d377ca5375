"""What an analysis is asked with, and what it answers to whoever writes it down."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.learned_gates.comparison import Comparison
from flyball.datapaths.learned_gates.comparison_config import ComparisonConfig
from flyball.datapaths.progress import Report
from flyball.platform.analyses.analysis import Analysis
from flyball.platform.analyses.artifacts import Finished, finished, vanilla_of
from flyball.platform.analyses.comparisons import comparison_of, open_comparison
from flyball.platform.analyses.dynamic import check_dynamic
from flyball.platform.analyses.timing import MeasureConfig
from flyball.platform.job import Job
from flyball.platform.prepare import prepare

__all__ = ["AnalysisOptions", "Found", "Request", "parents_of"]


@dataclass(frozen=True)
class AnalysisOptions:
    """What an analysis may be told beside its jobs.

    Attributes:
        vanilla: "curves", "per_class", "controller": train the network at u = 1 only, too, where
            it does not lie in the run folder.
        comparisons: "gates", "components": folders of comparisons that were made elsewhere, by
            name of the network; where given, nothing is trained.
        compare: the same two: how to compare; None: the job's Phase 1 and the defaults.
        measure: of "measured".
        samples: "executed", "blocks": at most so many images of a split are measured.
        images: "ponder": how many are shown.
    """

    vanilla: bool = True
    comparisons: Mapping[str, Path] = field(default_factory=dict)
    compare: ComparisonConfig | None = None
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    samples: int = 2000
    images: int = 10


@dataclass(frozen=True)
class Found:
    """An analysis, and what names it: fingerprints of its parents and its settings."""

    analysis: Analysis
    parents: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    jobs: Sequence[Job]
    options: AnalysisOptions
    report: Report
    say: Callable[[str], None]

    def one(self) -> Finished:
        """The artifacts of the only job.

        Raises:
            InvalidSetting: there are several.
        """
        if len(self.jobs) != 1:
            raise InvalidSetting(
                f"This analysis is of one job; {len(self.jobs)} came. Several at once are for "
                "`curves`, `gates` and `components`."
            )
        return finished(self.jobs[0], report=self.report)

    def dynamic(self) -> Finished:
        """The artifacts of the only job, whose data path has execution masks.

        Raises:
            InvalidSetting: there are several, or it is another kind of data path.
        """
        for job in self.jobs:
            check_dynamic(job)
        return self.one()

    def vanilla(self, done: Finished) -> Finished | None:
        """The job's network trained at u = 1 only, where it is asked for."""
        has_gates = not isinstance(done.ready.network, FamilyConfig | DynConvConfig)
        if not self.options.vanilla or not has_gates:
            return None
        self.say("Vanilla        the same network at u = 1 only: trained, or found")
        return vanilla_of(done.ready, report=self.report)

    def names(self) -> list[str]:
        """What to call the jobs: their presets, numbered where one comes again."""
        told: list[str] = []
        for job in self.jobs:
            before = sum(name.split(" #")[0] == job.name for name in told)
            told.append(f"{job.name} #{before + 1}" if before else job.name)
        return told

    def comparisons(self) -> tuple[dict[str, Comparison], dict[str, str], dict[str, Any]]:
        """Comparisons of gates by network, their fingerprints, and how they were made."""
        folders = {name: Path(folder) for name, folder in self.options.comparisons.items()}
        found = {name: open_comparison(folder) for name, folder in folders.items()}
        if not folders:
            for name, job in zip(self.names(), self.jobs, strict=True):
                self.say(f"Gates          {name}: every method trained, or found")
                ready = prepare(job, report=self.report)
                found[name], folders[name] = comparison_of(
                    ready, self.options.compare, report=self.report
                )
        parents = {
            f"gates.{name}": fingerprint_of([asdict(r) for r in comparison.results])
            for name, comparison in found.items()
        }
        return found, parents, {"folders": {n: folder.name for n, folder in folders.items()}}


def parents_of(done: Finished, twin: Finished | None, *, suffix: str = "") -> dict[str, str]:
    parents = {
        f"path{suffix}": done.path.fingerprint,
        f"atlas{suffix}": done.atlas.header.fingerprint,
    }
    return parents if twin is None else {**parents, f"vanilla{suffix}": twin.path.fingerprint}
