"""The folder of one sweep: its plan, its lock, and its finished points.

```text
runs/sweeps/<preset>-<fingerprint>/
|-- sweep.json            the plan, written first
|-- points/<key>/         result.json (written last), weights.safetensors, starts.txt, checkpoint/
|-- atlases/<fingerprint>/ columns of the atlas, where points have fewer arms
|-- stopped/<key>.json    points that were ended early
|-- journal/              what MLflow is told
|-- tune/                 Ray Tune's own
|-- front.json front.txt front.png points.csv    what to choose from
`-- outcome.json          where all that is recorded; written last: the sweep is finished
```
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flyball.datapaths.errors import BadInput, ForeignArtifact, StorageError
from flyball.datapaths.files import read_json, write_json
from flyball.platform.sweep.result import PointResult

__all__ = ["SweepFolder"]

PLAN_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"
LOCK_FILE = ".lock"
_SHOWN = 6  # differences between two plans


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep lies."""

    root: Path

    @classmethod
    def at(cls, root: str) -> "SweepFolder":
        """The folder of a sweep by its path, as trials are given it."""
        return cls(Path(root))

    @property
    def plan_file(self) -> Path:
        """What the sweep is; written before anything else."""
        return self.root / PLAN_FILE

    @property
    def outcome_file(self) -> Path:
        """Where everything is recorded; the sweep is finished once this is there."""
        return self.root / OUTCOME_FILE

    @property
    def journal(self) -> Path:
        """What MLflow is told."""
        return self.root / "journal"

    @property
    def tune(self) -> Path:
        """Ray Tune's own folder."""
        return self.root / "tune"

    def point(self, key: str) -> Path:
        """Of one point."""
        return self.root / "points" / key

    def result_file(self, key: str) -> Path:
        """A point is finished once this is there."""
        return self.point(key) / "result.json"

    def weights_file(self, key: str) -> Path:
        """Of a finished point's controller."""
        return self.point(key) / "weights.safetensors"

    def checkpoint(self, key: str) -> Path:
        """Of a point under way."""
        return self.point(key) / "checkpoint"

    def atlas(self, fingerprint: str) -> Path:
        """Some columns of the sweep's atlas."""
        return self.root / "atlases" / fingerprint

    def results(self) -> dict[str, PointResult]:
        """Every finished point, by key in order."""
        files = sorted((self.root / "points").glob("*/result.json"))
        return {file.parent.name: PointResult.load(file) for file in files}

    def stopped(self) -> dict[str, dict[str, Any]]:
        """Points that were ended early, by key: their settings, updates and gain then."""
        files = sorted((self.root / "stopped").glob("*.json"))
        return {file.stem: read_json(file) for file in files}

    def points_of_outcome(self, asked: int) -> int:
        """Points of the finished sweep: fewer than asked where Optuna proposed one twice."""
        if not self.outcome_file.exists():
            return asked
        return int(read_json(self.outcome_file).get("points", asked))

    def lacks_registration(self) -> bool:
        """Whether the sweep was finished without putting its front into the registry."""
        return not read_json(self.outcome_file).get("is_registered", True)

    def stop_point(self, key: str, record: dict[str, Any]) -> None:
        """Notes that a point was ended early: it is not trained again."""
        write_json(self.root / "stopped" / f"{key}.json", record)

    def starts(self, key: str) -> int:
        """How often a point was begun."""
        file = self.point(key) / "starts.txt"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def note_start(self, key: str) -> int:
        """Counts one more start of a point; gives the count.

        Raises:
            StorageError: the folder is full or cannot be written.
        """
        try:
            self.point(key).mkdir(parents=True, exist_ok=True)
            with (self.point(key) / "starts.txt").open("a") as opened:
                opened.write(f"{socket.gethostname()} {os.getpid()}\n")
        except OSError as error:
            raise _unwritable(self.point(key), error) from error
        return self.starts(key)

    def open_plan(self, plan: dict[str, Any], *, resume: bool, points: int) -> bool:
        """Begins the sweep, or goes on with it.

        Args:
            plan: what the sweep is to be.
            resume: go on with an unfinished one.
            points: how many it has.

        Returns:
            Whether it is finished already.

        Raises:
            ForeignArtifact: another sweep's plan lies here; names what differs.
            BadInput: an unfinished sweep lies here and `resume` was not asked for, or nothing
                does and it was.
        """
        if not self.plan_file.exists():
            if resume:
                raise BadInput(
                    f"There is no sweep to resume in {self.root}. Give the same preset and "
                    "options as when it was started, or leave --resume out to start it."
                )
            write_json(self.plan_file, plan)
            return False
        theirs = read_json(self.plan_file)
        differing = _differences(theirs, json.loads(json.dumps(plan)))
        if differing:
            raise ForeignArtifact(
                f"{self.root} holds another sweep: {'; '.join(differing[:_SHOWN])}. Delete the "
                "folder, or name another one with --set storage.root=FOLDER."
            )
        done = len({*self.results(), *self.stopped()})
        is_finished = self.outcome_file.exists() and done >= self.points_of_outcome(points)
        if not is_finished and not resume:
            raise BadInput(
                f"{self.root} holds an unfinished sweep: {done} of {points} points are done. Run "
                "the same command with --resume to go on, or delete the folder to start anew."
            )
        return is_finished

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
            StorageError: another process holds it; says which.
        """
        file = self.root / LOCK_FILE
        with _opened(file) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                handle.seek(0)
                holder = handle.read().strip() or "it has not said which"
                raise StorageError(
                    f"Another process works on the sweep in {self.root}: {holder}. Wait for it "
                    "and run the command again: finished points are reused."
                ) from error
            try:
                handle.truncate(0)
                handle.write(
                    f"process {os.getpid()} on {socket.gethostname()} since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')}, {shlex.join(sys.argv[:8])}\n"
                )
                handle.flush()
            except OSError as error:
                raise _unwritable(file, error) from error
            yield

    @contextlib.contextmanager
    def point_locked(self, key: str) -> Iterator[None]:
        """Holds a point for this process; waits for one of a killed sweep that has yet to end.

        Raises:
            StorageError: the folder cannot be written.
        """
        with _opened(self.point(key) / LOCK_FILE) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _opened(file: Path) -> IO[str]:
    """A file to lock; it and its folder are made where they are not there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("a+")
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write {file}: {error.strerror or error}. Free some space, or name a folder that "
        "you may write with --set storage.root=FOLDER."
    )


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """What differs between two plans, in words; versions may differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = []
        for key in sorted({*theirs, *ours} - ({"versions"} if not name else set())):
            path = f"{name}.{key}" if name else key
            found += _differences(theirs.get(key), ours.get(key), path)
        return found
    return [] if theirs == ours else [f"{name} is {theirs} there, {ours} here"]
