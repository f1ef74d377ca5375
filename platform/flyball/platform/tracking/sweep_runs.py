"""The runs of a sweep in MLflow, one flat run a point and a parent; a server may go away meanwhile.

Whatever is to be recorded goes to a journal first, and a thread of this process sends it. So a
sweep never waits for a server, and what a killed driver had not sent is sent when it resumes.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from flyball.datapaths.errors import FlyballError, InvalidSetting, TrackingUnreachable
from flyball.platform.tracking.entries import flat_params, metric_name
from flyball.platform.tracking.journal import Event, Journal
from flyball.platform.tracking.quiet import borrowed_environment
from flyball.platform.tracking.runs import Status, Tracking
from flyball.platform.tracking.sweep_outbox import FIRST_WAIT_S, LONGEST_WAIT_S, SweepOutbox
from flyball.platform.tracking.sweep_sending import SweepSending, is_passing

__all__ = ["POINT_METRICS", "SweepRuns"]

# What a point may report on its way; everything else that a trial's result holds stays there.
POINT_METRICS = frozenset(
    {
        "train/reward",
        "train/entropy",
        "train/loss",
        "val/reward",
        "val/accuracy",
        "val/utilization",
        "val/gross",
        "val/net",
        "val/gain_over_static",
        "val/accuracy_at_utilization",
    }
)

_REQUEST_S = 20  # of one request; MLflow's own 120 s, seven times over, would hold the end back
_GOODBYE_S = 10.0  # that an interrupted sweep still takes to send what it has
_SUMMARY = "summary/"

_Given = TypeVar("_Given")


class SweepRuns:
    """Records a sweep; used as a context manager, in the driver only.

    Leaving the block sends everything that is left. When the block fails, runs that are still open
    become KILLED, and a short time is given to sending; the rest goes out with the next resume.

    Every method but `flush` returns at once. An error that no retry heals, such as a server that
    refuses a name, is raised by the next call of any method.
    """

    def __init__(
        self,
        open: Callable[[], Tracking],
        folder: Path,
        sweep: str,
        *,
        patience_s: float = 600.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is opened before the block is entered.

        Args:
            open: opens the place, such as `lambda: open_tracking(uri, runs_folder)`; called again
                for as long as the place does not answer.
            folder: of the journal.
            sweep: name of the sweep, by which all its runs are tagged.
            patience_s: how long a server may be away at the end before the sweep gives up.
            tell: hears of a server that went away or came back, in words; from another thread.
        """
        self._open, self._folder, self._sweep = open, folder, sweep
        self._patience_s, self._tell = patience_s, tell or (lambda text: None)
        self._logged: dict[str | None, dict[str, set[int]]] = {}
        self._running: dict[str | None, bool] = {}
        self._borrowed = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Opens the journal and starts to send what an earlier process left in it.

        Raises:
            StorageError, CorruptArtifact: the journal cannot be used.
        """
        self._journal = Journal(self._folder)
        self._sending = SweepSending(self._journal, self._sweep)
        for event in self._journal.events:
            self._take_in(event)
        self._running = dict.fromkeys(self._running, False)
        timeout = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_REQUEST_S))
        self._borrowed.enter_context(
            borrowed_environment(
                MLFLOW_HTTP_REQUEST_TIMEOUT=timeout, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
            )
        )
        self._outbox = SweepOutbox(self._open, self._journal, self._sending, self._tell)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Sends what is left.

        Raises:
            TrackingUnreachable, StorageError: see `flush`; not where the block itself failed.
        """
        try:
            if error is None:
                self.flush()
            elif not isinstance(error, TrackingUnreachable):
                with contextlib.suppress(FlyballError):
                    for key in [key for key, is_on in self._running.items() if is_on]:
                        self._append("finish", key, status="KILLED")
                    self._outbox.wait(min(self._patience_s, _GOODBYE_S))
        finally:
            self._outbox.close()
            self._borrowed.close()
            self._journal.close()

    def start_parent(
        self, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Starts the run that stands for the sweep, or goes on with it.

        Args:
            name: what people see.
            params: nested dictionaries become dotted names.
            tags: short texts, beside those by which the sweep is found.
        """
        self._start(None, name, params, tags)

    def start_point(
        self, key: str, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Starts the run of a point, or goes on with it; a point that runs already is left alone.

        Args:
            key: of the point, stable over restarts.
            name, params, tags: as for `start_parent`.
        """
        self._start(key, name, params, tags)

    def log(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records a report of a point: those of its figures that `POINT_METRICS` names.

        A figure that was recorded at this step already is dropped: a trial that was taken back to
        a checkpoint reports steps again, and they are in the run once.

        Args:
            step: of the report, at least 0.
            metrics: figures by name.
        """
        listed = {name: metrics[name] for name in metrics if name in POINT_METRICS}
        self._log_rows(key, [(step, listed)])

    def finish_point(
        self,
        key: str,
        *,
        summary: Mapping[str, float],
        curve: Sequence[tuple[int, Mapping[str, float]]] = (),
        tags: Mapping[str, str] | None = None,
        status: Status = "FINISHED",
    ) -> None:
        """Ends the run of a point with what it is compared by.

        Args:
            summary: figures by name, recorded as `summary/NAME`; None and NaN are left out.
            curve: (step, figures) pairs, such as accuracy at step = percent of utilization.
            tags: more tags.
            status: how it ended.
        """
        self._log_rows(key, curve)
        self._finish(key, summary, tags or {}, status)

    def finish_parent(
        self,
        summary: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        files: Sequence[Path] = (),
        status: Status = "FINISHED",
    ) -> None:
        """Ends the run that stands for the sweep, with the figures and files of its outcome."""
        for file in files:
            self.log_file(None, file, "")
        self._finish(None, summary, tags or {}, status)

    def log_file(self, key: str | None, file: Path, folder: str) -> None:
        """Records a file as it is now, under `folder` of a point's files or of the parent's.

        Raises:
            StorageError: there is no such file, or no room for a copy.
        """
        copy = self._journal.keep_file(file)
        self._append("file", key, file=str(file.absolute()), folder=folder, copy=copy)

    def log_table(self, key: str | None, columns: Mapping[str, list[Any]], name: str) -> None:
        """Records a table for the table view.

        Args:
            key: of the point; None is the parent.
            columns: lists of one length by column.
            name: of the file, ending in .json.
        """
        self._append("table", key, columns=dict(columns), name=name)

    def flush(self) -> None:
        """Waits until everything is sent.

        Raises:
            TrackingUnreachable: the server was away for longer than `patience_s`; what it has not
                got is kept, and sent by a resume.
            StorageError: the local database cannot be written.
        """
        self._outbox.wait(self._patience_s)

    def patiently(self, act: Callable[[], _Given]) -> _Given:
        """Does something else at the same place, again for as long as that does not answer.

        Args:
            act: changes nothing where it is done twice.

        Raises:
            TrackingUnreachable, StorageError: the server was away for longer than `patience_s`,
                or refused it.
        """
        until, wait_s = 0.0, FIRST_WAIT_S
        while True:
            try:
                return act()
            except FlyballError as error:
                if not is_passing(error):
                    raise
                if not until:
                    until = time.monotonic() + self._patience_s
                    self._tell(f"The sweep waits for MLflow: {error}")
                elif time.monotonic() + wait_s > until:
                    raise type(error)(
                        f"{error} Then run the same command with --resume."
                    ) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def run_id(self, key: str | None) -> str:
        """MLflow's name of a point's run, or of the parent; "" until it is recorded."""
        return self._sending.runs.get(key, "")

    def link(self, key: str | None) -> str:
        """How to see a point's run, or the parent's; "" until it is recorded."""
        tracking, run_id = self._sending.tracking, self.run_id(key)
        if tracking is None or not run_id:
            return ""
        return tracking.link(f"experiments/{tracking.experiment_id}/runs/{run_id}")

    def chart_link(self) -> str:
        """How to see all points in charts; "" until the place answered.

        Once the parent has ended, with charts of the sweep's own: see `sweep_view`.
        """
        tracking, view = self._sending.tracking, self._sending.view
        if tracking is None:
            return ""
        which = (
            f"viewStateShareKey={view}" if view else f"searchFilter={quote(self._sending.wanted)}"
        )
        place = f"experiments/{tracking.experiment_id}/runs"
        return tracking.link(f"{place}?compareRunsMode=CHART&{which}")

    def _start(
        self, key: str | None, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        if not self._running.get(key):
            texts = {tag: str(text) for tag, text in tags.items()}
            self._append("start", key, name=name, params=flat_params(params), tags=texts)

    def _finish(
        self, key: str | None, summary: Mapping[str, float], tags: Mapping[str, str], status: Status
    ) -> None:
        figures = {
            name if name.startswith(_SUMMARY) else _SUMMARY + name: value
            for name, value in summary.items()
            if value is not None and value == value
        }
        self._log_rows(key, [(0, figures)])
        if tags:
            self._append("tags", key, tags={tag: str(text) for tag, text in tags.items()})
        self._append("finish", key, status=status)

    def _log_rows(self, key: str | None, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        logged = self._logged.get(key, {})
        fresh = []
        for step, figures in rows:
            named = {metric_name(name): float(value) for name, value in figures.items()}
            new = {n: value for n, value in named.items() if int(step) not in logged.get(n, ())}
            if new:
                fresh.append((int(step), new))
        if fresh:
            self._append("metrics", key, rows=fresh)

    def _append(self, kind: str, key: str | None, **content: Any) -> None:
        self._outbox.check()
        if kind != "start" and key not in self._running:
            run = "sweep" if key is None else f"point {key}"
            raise InvalidSetting(f"The {run} has no run to record in. Start it first.")
        self._take_in(self._outbox.put(kind, key, content))

    def _take_in(self, event: Event) -> None:
        if event.kind in ("start", "finish"):
            self._running[event.key] = event.kind == "start"
        elif event.kind == "metrics":
            logged = self._logged.setdefault(event.key, {})
            for step, figures in event.content["rows"]:
                for name in figures:
                    logged.setdefault(name, set()).add(int(step))
