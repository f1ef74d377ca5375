"""Recording runs: open where they go, find or start one, write figures and files; no models.

Every write is one synchronous request: MLflow's asynchronous logging can lose points silently.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from flyball.datapaths.errors import StorageError
from flyball.platform.tracking.address import (
    Address,
    check_address,
    connect,
    resolve_address,
    told_plainly,
)
from flyball.platform.tracking.entries import flat_params, metric_name
from flyball.platform.tracking.ladder import ladder_curves, ladder_summary, ladder_table

__all__ = ["JOB_TAG", "RunHandle", "Status", "Tracking", "check_tracking", "open_tracking"]

JOB_TAG = "flyball.job"
Status = Literal["FINISHED", "FAILED", "KILLED"]
_LADDER_FILE = "evaluation/ladder.json"


def open_tracking(
    uri: str | None, runs_folder: Path | str, *, experiment: str = "flyball"
) -> "Tracking":
    """Opens the place where runs are recorded, and makes sure that it answers.

    Without `uri` it is MLFLOW_TRACKING_URI, and without that `mlflow.db` in `runs_folder`, which
    also holds the registry; files then go to `mlartifacts` beside it. MLflow records where files
    lie by absolute address, so the files of earlier runs stay where they were when such a folder
    is moved: new runs begin a fresh experiment in the new place, and the old one is renamed.

    Args:
        uri: `http(s)://HOST:PORT`, `sqlite:///FILE`, a database, or None.
        runs_folder: where everything of a run goes.
        experiment: name of the MLflow experiment.

    Raises:
        TrackingUnreachable: the server does not answer; told within seconds, nothing is written.
        StorageError: the local database cannot be written.
        InvalidSetting: the uri is of a kind that MLflow does not take.
    """
    address = resolve_address(uri, Path(runs_folder))
    client = connect(address)
    with told_plainly(address, f"Opening the experiment {experiment!r}"):
        return Tracking(address, client, experiment, _experiment(client, address, experiment))


def check_tracking(uri: str | None, runs_folder: Path | str) -> None:
    """Makes sure, before work starts, that runs can be recorded; writes nothing at all.

    Args:
        uri, runs_folder: as for `open_tracking`.

    Raises:
        TrackingUnreachable, StorageError, InvalidSetting: as `open_tracking`.
    """
    check_address(resolve_address(uri, Path(runs_folder)))


@dataclass(frozen=True)
class Tracking:
    """An experiment that answers.

    Attributes:
        address: where runs go.
        client: MLflow's own client of that address; no global setting of MLflow is touched.
        experiment: name of the experiment.
        experiment_id: MLflow's own name of it.
    """

    address: Address
    client: MlflowClient
    experiment: str
    experiment_id: str

    @property
    def uri(self) -> str:
        """What MLflow calls the tracking URI."""
        return self.address.uri

    def start_run(
        self,
        name: str,
        *,
        key: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> "RunHandle":
        """Goes on with the unfinished run of a job, or starts one.

        Args:
            name: what people see.
            key: fingerprint of the job; an interrupted job is found again by it.
            tags: of the run; short texts.
            params: nested dictionaries become dotted names.

        Raises:
            StorageError, TrackingUnreachable: it cannot be recorded.
        """
        with told_plainly(self.address, f"Starting the run {name!r}"):
            found = self._runs_of(key)
            if found and found[0].info.status != "FINISHED":
                run_id = found[0].info.run_id
                self.client.update_run(run_id, status="RUNNING", name=name)
            else:
                run_id = self.client.create_run(
                    self.experiment_id, run_name=name, tags={JOB_TAG: key}
                ).info.run_id
        handle = RunHandle(self, run_id)
        handle.set_tags(tags or {})
        handle.log_params(params or {})
        return handle

    def find_run(self, key: str) -> "RunHandle | None":
        """The last run of a job, finished or not; None where there is none."""
        with told_plainly(self.address, "Looking for the run"):
            found = self._runs_of(key)
        return RunHandle(self, found[0].info.run_id) if found else None

    def link(self, place: str) -> str:
        """How to see a page of the MLflow UI, such as "experiments/1/runs/ab12"."""
        if urlsplit(self.uri).scheme in ("http", "https"):
            return f"{self.address.shown.rstrip('/')}/#/{place}"
        return (
            f"http://127.0.0.1:5000/#/{place}\n"
            f"  after: mlflow ui --backend-store-uri '{self.address.shown}'"
        )

    def _runs_of(self, key: str) -> list[Run]:
        return list(
            self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{JOB_TAG}` = '{key}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        )


@dataclass(frozen=True)
class RunHandle:
    """A run that is being recorded."""

    tracking: Tracking
    run_id: str

    @property
    def link(self) -> str:
        """Where to see it: an address, and for a local file the command that serves it."""
        return self.tracking.link(f"experiments/{self.tracking.experiment_id}/runs/{self.run_id}")

    @property
    def is_finished(self) -> bool:
        """It ended well; a run that failed or was killed is not finished."""
        with self._told("Looking at the run"):
            status = self._client.get_run(self.run_id).info.status
        return bool(status == "FINISHED")

    def log_metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Records figures of one step in one request; the caller chooses which are worth it."""
        self.log_curve([(step, values)])

    def log_curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Records a whole curve, (step, figures) after (step, figures), in one request.

        A request holds at most 1,000 figures; longer curves take several.
        """
        now = int(time.time() * 1000)
        metrics = [
            Metric(metric_name(name), float(value), now, int(step))
            for step, values in points
            for name, value in values.items()
        ]
        with self._told("Recording the metrics"):
            for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
                part = metrics[start : start + MAX_METRICS_PER_BATCH]
                self._client.log_batch(self.run_id, metrics=part, synchronous=True)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records settings, nested ones under dotted names.

        MLflow never changes a setting: one that differs when a run is taken up again is recorded
        as the tag `resumed.NAME`. Long texts are cut, see `entries.flat_params`.
        """
        flat = flat_params(params)
        if not flat:
            return
        with self._told("Recording the settings"):
            known = self._client.get_run(self.run_id).data.params
            fresh = [Param(name, value) for name, value in flat.items() if name not in known]
            for start in range(0, len(fresh), MAX_PARAMS_TAGS_PER_BATCH):
                part = fresh[start : start + MAX_PARAMS_TAGS_PER_BATCH]
                self._client.log_batch(self.run_id, params=part, synchronous=True)
        changed = {n: v for n, v in flat.items() if n in known and known[n] != v}
        self.set_tags({f"resumed.{name}": value for name, value in changed.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a tag that exists takes the new value."""
        entries = [RunTag(name, str(text)[:MAX_TAG_VAL_LENGTH]) for name, text in tags.items()]
        with self._told("Recording the tags"):
            for start in range(0, len(entries), MAX_PARAMS_TAGS_PER_BATCH):
                part = entries[start : start + MAX_PARAMS_TAGS_PER_BATCH]
                self._client.log_batch(self.run_id, tags=part, synchronous=True)

    def log_ladder(self, evaluation: Mapping[str, Any]) -> None:
        """Records an evaluation so that the UI compares runs by it.

        `summary/*` figures are for parallel coordinates, `val/accuracy_at_utilization` with step =
        percent lays the curves of runs over each other, and the table view shows every rung.
        A run that was taken up again and evaluated again keeps the later table.

        Args:
            evaluation: what `Evaluation.to_json` of `controllers.evaluate` gives.
        """
        self.log_metrics(ladder_summary(evaluation))
        self.log_curve(ladder_curves(evaluation))
        self.log_table(ladder_table(evaluation), _LADDER_FILE)

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Records a table for the UI's table view, in place of one of the same name.

        Args:
            columns: lists of one length by column.
            name: of the file, ending in .json, with its folder.
        """
        # MlflowClient.log_table would append to a table of the same name. What it does beside
        # writing the file is this tag, by which the UI knows a table.
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        entry = {"path": name, "type": "table"}
        with self._told("Recording a table"):
            self._client.log_dict(self.run_id, {"columns": list(columns), "data": rows}, name)
            tags = self._client.get_run(self.run_id).data.tags
            tables = json.loads(tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
            if entry not in tables:
                text = json.dumps([*tables, entry])
                self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, text)

    def log_file(self, file: Path | str, folder: str = "") -> None:
        """Copies a file (a picture, JSON) to the run's files, under `folder`.

        Raises:
            StorageError: the file does not exist, or cannot be copied.
        """
        file = Path(file)
        if not file.is_file():
            raise StorageError(f"{file} cannot be recorded: there is no such file. Make it first.")
        with self._told(f"Copying {file.name}"):
            self._client.log_artifact(self.run_id, str(file), folder or None)

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the run. An unfinished status lets the same job go on with it later."""
        with self._told("Ending the run"):
            self._client.set_terminated(self.run_id, status)

    @property
    def _client(self) -> MlflowClient:
        return self.tracking.client

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        with told_plainly(self.tracking.address, doing):
            yield


def _experiment(client: MlflowClient, address: Address, name: str) -> str:
    found = client.get_experiment_by_name(name)
    location = None if address.artifacts is None else address.artifacts.as_uri()
    if found is not None and _was_moved(found.artifact_location, address.artifacts):
        old = unquote(urlsplit(found.artifact_location).path)
        client.rename_experiment(
            found.experiment_id, f"{name} {found.experiment_id} (files in {old})"
        )
        found = None
    if found is None:
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _was_moved(recorded: str, artifacts: Path | None) -> bool:
    if artifacts is None or urlsplit(recorded).scheme != "file":
        return False
    folder = Path(unquote(urlsplit(recorded).path))
    return folder.name == artifacts.name and folder != artifacts
