"""How the events of a sweep's journal become runs in MLflow; no thread and no waiting here.

An event may be sent more than once, after a kill or a lost answer, and changes nothing then: a
run is found by its tags, MLflow drops a figure of the same step, time and value (the time is the
event's own), and the rest takes the value it has.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import requests
import sqlalchemy
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from flyball.datapaths.errors import FlyballError, StorageError
from flyball.platform.tracking.address import told_plainly
from flyball.platform.tracking.journal import BEGINNING, Event, Journal
from flyball.platform.tracking.runs import RunHandle, Tracking
from flyball.platform.tracking.sweep_view import VIEW_TAG, view_of_sweep

__all__ = ["JOURNAL_TAG", "PARENT_TAG", "POINT_TAG", "SWEEP_TAG", "SweepSending", "is_passing"]

SWEEP_TAG = "flyball.sweep"
POINT_TAG = "flyball.point"
PARENT_TAG = "flyball.sweep_parent"
JOURNAL_TAG = "flyball.journal"

_SERVER_FAILED = 500
_BUSY = (408, 429)
_PAGE = 1000


class SweepSending:
    """The runs of one journal in one place.

    Attributes:
        tracking: where; None before `open`.
        runs: run id by point; None is the sweep's own.
        wanted: the filter that finds the points.
        view: key of the UI's view of the sweep, once its parent has ended; else "".
    """

    def __init__(self, journal: Journal, sweep: str) -> None:
        self.tracking: Tracking | None = None
        self.runs: dict[str | None, str] = {}
        self.wanted = f"tags.`{SWEEP_TAG}` = '{sweep}'"
        self.view = ""
        self._journal = journal
        self._sweep = sweep
        self._doubtful: set[str | None] = set()  # points whose run may have been made twice

    def open(self, opened: Tracking) -> bool:
        """Finds the journal's runs; True if all that it sent is to be sent again.

        That is so in a place that it was never sent to, and where its runs are gone.

        Raises:
            StorageError, TrackingUnreachable: the place does not answer.
        """
        self.tracking = opened
        self._know(self._find())
        place = f"{opened.address.shown} experiment {opened.experiment_id}"
        begun = {
            event.key
            for event in self._journal.events
            if event.kind == "start" and event.number <= self._journal.sent_to
        }
        is_known = self._journal.place == place and begun <= set(self.runs)
        if not is_known:
            self._journal.begin_again_at(place)
        return not is_known

    def send(self, events: Sequence[Event]) -> Iterator[list[Event]]:
        """Sends events, run by run; gives those that were sent, after each request.

        Raises:
            StorageError, TrackingUnreachable: it cannot be recorded; see `is_passing`.
        """
        by_run: dict[str | None, list[Event]] = {}
        for event in events:
            by_run.setdefault(event.key, []).append(event)
        for of_run in by_run.values():
            for group in _groups(of_run):
                self._send_group(group)
                yield group

    def _send_group(self, group: list[Event]) -> None:
        event, content = group[0], group[0].content
        if event.kind == BEGINNING:
            return
        if event.kind == "start":
            self._start(event)
            return
        handle = RunHandle(self._opened, self.runs[event.key])
        if event.kind == "metrics":
            self._send_metrics(handle, group)
        elif event.kind == "tags":
            handle.set_tags(content["tags"])
        elif event.kind == "table":
            handle.log_table(content["columns"], content["name"])
        elif event.kind == "file":
            self._send_file(handle, event)
        elif event.kind == "finish":
            if event.key is None:
                self._show(self._know(self._find()))
            elif event.key in self._doubtful:
                self._know(self._find())
            with self._told("Ending the run"):
                handle.tracking.client.set_terminated(
                    handle.run_id, content["status"], end_time=event.at_ms
                )

    def _start(self, event: Event) -> None:
        client, key, name = self._opened.client, event.key, str(event.content["name"])
        if key not in self.runs and key in self._doubtful:
            self._know(self._find())
        if key in self.runs:
            with self._told(f"Going on with the run {name!r}"):
                client.update_run(self.runs[key], status="RUNNING", name=name)
            RunHandle(self._opened, self.runs[key]).set_tags(event.content["tags"])
        else:
            self.runs[key] = self._create(event, name)
        RunHandle(self._opened, self.runs[key]).log_params(event.content["params"])

    def _create(self, event: Event, name: str) -> str:
        try:
            with self._told(f"Starting the run {name!r}"):
                run = self._opened.client.create_run(
                    self._opened.experiment_id,
                    start_time=event.at_ms,
                    tags={**event.content["tags"], **self._tags(event.key)},
                    run_name=name,
                )
        except FlyballError:
            # The answer may be what was lost: then the run is there, or comes yet.
            self._doubtful.add(event.key)
            raise
        return str(run.info.run_id)

    def _send_metrics(self, handle: RunHandle, group: list[Event]) -> None:
        metrics = [
            Metric(name, float(value), event.at_ms, int(step))
            for event in group
            for step, figures in event.content["rows"]
            for name, value in figures.items()
        ]
        with self._told("Recording the metrics"):
            for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
                part = metrics[start : start + MAX_METRICS_PER_BATCH]
                handle.tracking.client.log_batch(handle.run_id, metrics=part, synchronous=True)

    def _send_file(self, handle: RunHandle, event: Event) -> None:
        # The copy is gone where an event is sent again; the file itself may have changed since.
        copy, original = self._journal.folder / event.content["copy"], Path(event.content["file"])
        file = copy if copy.exists() else original
        if file.exists():
            handle.log_file(file, event.content["folder"])
            shutil.rmtree(copy.parent, ignore_errors=True)

    def _show(self, runs: list[Run]) -> None:
        """Keeps the view that `view` opens."""
        points = [run.data for run in runs if POINT_TAG in run.data.tags]
        params, metrics = [data.params for data in points], [data.metrics for data in points]
        key, state = view_of_sweep(self._sweep, self.wanted, params, metrics)
        with self._told("Recording the view of the sweep"):
            self._opened.client.set_experiment_tag(
                self._opened.experiment_id, VIEW_TAG + key, state
            )
        self.view = key

    def _know(self, found: Iterable[Run]) -> list[Run]:
        """Takes over the runs that were found, and deletes any that a lost answer made twice."""
        known: list[Run] = []
        by_key: dict[str | None, list[Run]] = {}
        for run in found:
            by_key.setdefault(run.data.tags.get(POINT_TAG), []).append(run)
        for key, runs in by_key.items():
            richest = max(runs, key=lambda run: len(run.data.params) + len(run.data.metrics))
            kept = self.runs.setdefault(key, richest.info.run_id)
            for run in runs:
                if run.info.run_id == kept:
                    known.append(run)
                else:
                    with self._told("Deleting a run that was made twice"):
                        self._opened.client.delete_run(run.info.run_id)
        return known

    def _find(self) -> list[Run]:
        found: list[Run] = []
        token: str | None = None
        with self._told("Looking for the runs of the sweep"):
            while True:
                page = self._opened.client.search_runs(
                    [self._opened.experiment_id],
                    filter_string=f"tags.`{JOURNAL_TAG}` = '{self._journal.name}'",
                    max_results=_PAGE,
                    page_token=token,
                )
                found.extend(page)
                token = page.token
                if not token:
                    return found

    def _tags(self, key: str | None) -> dict[str, str]:
        own = {JOURNAL_TAG: self._journal.name}
        if key is None:
            return own | {PARENT_TAG: self._sweep}
        return own | {SWEEP_TAG: self._sweep, POINT_TAG: key}

    @property
    def _opened(self) -> Tracking:
        assert self.tracking is not None, "open comes first"
        return self.tracking

    def _told(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return told_plainly(self._opened.address, doing)


def is_passing(error: Exception) -> bool:
    """The server is away, overloaded or being restarted: what failed may succeed later.

    A refusal (a bad name, no permission, a run that was deleted) and a full disk are not passing.
    """
    cause = error.__cause__ if isinstance(error, FlyballError) and error.__cause__ else error
    said = str(cause).lower()
    if isinstance(error, StorageError):
        return "locked" in said or "busy" in said
    if isinstance(cause, requests.HTTPError) and cause.response is not None:
        return _is_passing_status(cause.response.status_code)
    if isinstance(cause, MlflowException):
        # Of a database that closed the connection, MLflow says 400, for it was no operation.
        was_cut = cause.error_code == "BAD_REQUEST" and "connection" in said
        status = int(cause.get_http_status_code())  # type: ignore[no-untyped-call]
        return was_cut or _is_passing_status(status)
    if isinstance(cause, sqlalchemy.exc.SQLAlchemyError):
        return not isinstance(cause, sqlalchemy.exc.ArgumentError | sqlalchemy.exc.ProgrammingError)
    return isinstance(cause, OSError)


def _is_passing_status(status: int) -> bool:
    return status >= _SERVER_FAILED or status in _BUSY


def _groups(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Events of one run in their order; reports that follow each other together, by requests."""
    group: list[Event] = []
    count = 0
    for event in events:
        figures = sum(len(figures) for _, figures in event.content.get("rows", ()))
        is_next = event.kind == "metrics" and bool(group) and group[0].kind == "metrics"
        if group and not (is_next and count + figures <= MAX_METRICS_PER_BATCH):
            yield group
            group, count = [], 0
        group.append(event)
        count += figures
    if group:
        yield group
