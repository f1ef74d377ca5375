"""Checkpoints of a run under way: RLlib's own, for resuming it and nothing else.

RLlib pickles its state, so a checkpoint is never exchanged: what leaves a run is exported by
`export`. A checkpoint is written under another name and renamed: it is whole or not there.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm

from flyball.datapaths.errors import ForeignArtifact, StorageError

__all__ = ["latest_checkpoint", "restore_checkpoint", "save_checkpoint"]

PREFIX = "updates-"
RECORD = "record.pt"
ALGORITHM = "algorithm"


def save_checkpoint(
    folder: Path, algorithm: Algorithm, record: dict[str, Any], *, updates: int, fingerprint: str
) -> Path:
    """Writes the state after so many updates, then removes the checkpoints before it.

    Args:
        folder: of the run's checkpoints.
        algorithm: whose state RLlib saves.
        record: tensors and plain values of our own.
        updates: made so far; names the checkpoint.
        fingerprint: of everything that must be the same for the run to go on.

    Raises:
        StorageError: the folder is full or cannot be written.
    """
    final = folder / f"{PREFIX}{updates:09d}"
    partial = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        algorithm.save_to_path(str((partial / ALGORITHM).resolve()))
        torch.save({"fingerprint": fingerprint, "record": record}, partial / RECORD)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except OSError as error:
        raise StorageError(
            f"Cannot write the checkpoint {final}: {error.strerror or error}. Free some space, "
            "or name a folder that you may write with --set storage.root=FOLDER."
        ) from error
    for older in folder.glob(f"{PREFIX}*"):
        if older != final:
            shutil.rmtree(older, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path, *, fingerprint: str) -> Path | None:
    """The checkpoint to go on from, or None.

    Raises:
        ForeignArtifact: it belongs to a run with other settings or another atlas.
    """
    found = sorted(folder.glob(f"{PREFIX}*")) if folder.is_dir() else []
    if not found:
        return None
    theirs = _read(found[-1])["fingerprint"]
    if theirs != fingerprint:
        raise ForeignArtifact(
            f"The checkpoint {found[-1]} belongs to a run with other settings ({theirs}, this "
            f"one is {fingerprint}). Delete it to start anew, or give another checkpoint folder."
        )
    return found[-1]


def restore_checkpoint(checkpoint: Path, algorithm: Any) -> dict[str, Any]:
    """Puts RLlib's state into `algorithm` and returns our own record."""
    algorithm.restore_from_path(str((checkpoint / ALGORITHM).resolve()))
    record: dict[str, Any] = _read(checkpoint)["record"]
    return record


def _read(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint / RECORD, weights_only=True)
    return content
