"""The one folder a job writes to: checked before work starts, laid out by artifact, and locked.

```text
runs/
|-- paths/<fingerprint>/         frozen data path (path.safetensors, path.json)
|-- outcomes/<fingerprint>/      outcome atlas (atlas.safetensors, atlas.json)
|-- controllers/<fingerprint>/   controller (controller.pt2, controller.json, controller.onnx)
|-- images/<fingerprint>.npy     images that other processes must open
|-- jobs/<preset>-<fingerprint>/ evaluation.json, ladder.txt, ladder.png, job.json
|-- sweeps/<preset>-<fingerprint>/ plan, points, front and journal of a sweep
|-- gates/<fingerprint>/         comparison of ways of gating (comparison.json, networks, gates)
|-- analyses/<name>-<fingerprint>/ table, picture and rows of an analysis
|-- mlflow.db, mlartifacts/      MLflow's own
```
"""

import contextlib
import errno
import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flyball.datapaths.errors import StorageError

__all__ = ["RunFolder", "check_storage"]

_ADVICE = "Name another folder with --set storage.root=FOLDER."


@dataclass(frozen=True)
class RunFolder:
    """Where the artifacts of all jobs under one root lie."""

    root: Path

    def path(self, fingerprint: str) -> Path:
        """Of a frozen data path."""
        return self.root / "paths" / fingerprint

    def outcomes(self, fingerprint: str) -> Path:
        """Of an outcome atlas."""
        return self.root / "outcomes" / fingerprint

    def controller(self, fingerprint: str) -> Path:
        """Of a trained controller."""
        return self.root / "controllers" / fingerprint

    def images(self, fingerprint: str) -> Path:
        """Of images as one array that other processes map."""
        return self.root / "images" / f"{fingerprint}.npy"

    def job(self, name: str, fingerprint: str) -> Path:
        """Of what a job reports."""
        return self.root / "jobs" / f"{name}-{fingerprint}"

    def sweep(self, name: str, fingerprint: str) -> Path:
        """Of a sweep's plan, points and outcome."""
        return self.root / "sweeps" / f"{name}-{fingerprint}"

    @contextlib.contextmanager
    def locked(self, artifact: Path) -> Iterator[None]:
        """Holds one artifact's folder for this process, so that no two build it at once.

        Raises:
            StorageError: another process holds it, or the lock cannot be made.
        """
        file = self.root / ".locks" / f"{artifact.parent.name}-{artifact.name}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("w")
        except OSError as error:
            raise StorageError(f"Cannot lock {artifact}: {error}. {_ADVICE}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"Another process is writing {artifact}. Wait for it and run the command "
                    f"again: what it made will be reused. {_ADVICE}"
                ) from error
            yield


def check_storage(root: Path, *, least_free_mb: int) -> RunFolder:
    """Proves, without leaving a trace, that the run folder can be written and has room.

    Args:
        root: the folder; it need not exist yet.
        least_free_mb: free space that work may need, in 10^6 bytes.

    Raises:
        StorageError: it is an address, a file, read-only, or too full.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(root)):
        raise StorageError(
            f"Artifacts are mapped from files, and {root} is an address. Mount the bucket or share "
            "on every node and name the folder with --set storage.root=FOLDER."
        )
    standing = root
    while not standing.exists() and standing != standing.parent:
        standing = standing.parent
    if not standing.is_dir():
        raise StorageError(f"The run folder {root} is below {standing}, a file. {_ADVICE}")
    try:
        with tempfile.TemporaryFile(dir=standing) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        reason = {
            errno.EROFS: "it is on a read-only file system",
            errno.EACCES: "this user may not write there",
            errno.ENOSPC: "no space is left",
        }.get(error.errno or 0, str(error))
        raise StorageError(
            f"The run folder {root} cannot be written: {reason}. {_ADVICE}"
        ) from error
    free = shutil.disk_usage(standing).free
    if free < least_free_mb * 1_000_000:
        raise StorageError(
            f"A run needs {least_free_mb} MB of free space under {root}; {free // 1_000_000} MB "
            "are left. Free some, name another folder with --set storage.root=FOLDER, or ask for "
            "less with --set storage.least_free_mb=N."
        )
    return RunFolder(root)
