"""Every error that Flyball raises on purpose; nothing here imports anything of Flyball.

```text
FlyballError                      exit code 1: the run had started
|-- NotFinite                     a reward or a loss is NaN or infinite; names the step that made it
|-- FrozenPathChanged             a frozen data path was asked to train
`-- BadInput (ValueError)         exit code 2: found before work started, nothing was written
    |-- UnknownName               a preset, field, split or arm that does not exist
    |-- InvalidSetting            a field whose value breaks a rule
    |   `-- InvalidArms           arms out of order, repeated, or outside (0, 1]
    |-- DataError                 a data set that is missing, corrupt, empty or of the wrong size
    |-- ArtifactError             a saved file that cannot be used
    |   |-- CorruptArtifact       truncated, altered, or not what its header says
    |   |-- PickleRefused         a pickle where safetensors, JSON or .pt2 belongs
    |   |-- ShapeMismatch         weights of another network
    |   `-- ForeignArtifact       an atlas or controller that belongs to another data path
    |       `-- ArmMismatch       a controller and an atlas with different arms
    |-- StorageError              the run folder is full, read-only or in use
    `-- TrackingUnreachable       the tracking server does not answer
```

A message says the rule, what came, and what to do.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ArmMismatch",
    "ArtifactError",
    "BadInput",
    "CorruptArtifact",
    "DataError",
    "FlyballError",
    "ForeignArtifact",
    "FrozenPathChanged",
    "InvalidArms",
    "InvalidSetting",
    "NotFinite",
    "PickleRefused",
    "ShapeMismatch",
    "StorageError",
    "TrackingUnreachable",
    "UnknownName",
    "unknown_name",
]


class FlyballError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class NotFinite(FlyballError):
    """A NaN or infinite reward, loss or answer; the message names the step or row."""


class FrozenPathChanged(FlyballError):
    """A frozen data path was asked to train or to change its weights."""


class BadInput(FlyballError, ValueError):
    """Something the user gave cannot be used; found before any work, with nothing written."""

    exit_code = 2


class UnknownName(BadInput):
    """A name that nothing answers to; the message suggests the nearest known one."""


class InvalidSetting(BadInput):
    """A value that breaks the rule of its field."""


class InvalidArms(InvalidSetting):
    """Arms must increase strictly and lie in (0, 1]."""


class DataError(BadInput):
    """A data set that is missing, corrupt, empty, or of another image size."""


class ArtifactError(BadInput):
    """A saved file that cannot be used."""


class CorruptArtifact(ArtifactError):
    """Truncated, altered, or not what its header says."""


class PickleRefused(ArtifactError):
    """Flyball never loads a pickle: it can run code of whoever made it."""


class ShapeMismatch(ArtifactError):
    """Weights whose shapes are those of another network."""


class ForeignArtifact(ArtifactError):
    """An artifact that was made from another parent than the one at hand."""


class ArmMismatch(ForeignArtifact):
    """A controller and an atlas that do not have the same arms."""


class StorageError(BadInput):
    """The run folder cannot be written, has no room, or is in use."""


class CodeSkew(BadInput):
    """A node of the cluster has other code or versions than the process that sends it work."""


class TrackingUnreachable(BadInput):
    """The MLflow tracking server does not answer."""


def unknown_name(kind: str, given: str, known: Iterable[str], *, advice: str = "") -> UnknownName:
    """Builds the error for a name that does not exist, with the nearest known one.

    Args:
        kind: what the name should name, such as "preset" or "field".
        given: the name that came.
        known: the names that exist.
        advice: a last sentence; what to run to see them all.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    tail = f" {advice}" if advice else ""
    return UnknownName(
        f"There is no {kind} {given!r}.{hint} Known: {', '.join(names) or 'none'}.{tail}"
    )
