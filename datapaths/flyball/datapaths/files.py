"""Writing and reading artifacts safely: temporary name then rename, fingerprints, no pickles."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flyball.datapaths.errors import CorruptArtifact, PickleRefused, StorageError

__all__ = [
    "fingerprint_of",
    "read_json",
    "read_tensors",
    "refuse_pickle",
    "write_atomically",
    "write_json",
    "write_tensors",
]

_PICKLE_OPENINGS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def fingerprint_of(*parts: Any) -> str:
    """SHA-256, 16 hex digits, of JSON-able parts in a canonical order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def write_atomically(file: Path) -> Iterator[Path]:
    """Gives a temporary path beside `file`; renames it onto `file` if the block succeeds.

    Raises:
        StorageError: the folder is full or cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, file)
    except OSError as error:
        raise StorageError(
            f"Cannot write {file}: {error.strerror or error}. "
            "Free some space, or name a folder that you may write with --set storage.root=FOLDER."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Writes sorted, indented JSON: the same value gives the same bytes."""
    with write_atomically(file) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(file: Path) -> Any:
    """Reads JSON.

    Raises:
        CorruptArtifact: the file is missing or is not JSON.
    """
    refuse_pickle(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptArtifact(f"{file} does not exist. Build it again.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptArtifact(
            f"{file} is not valid JSON ({error}). Delete its folder and build it again."
        ) from error


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: str = "") -> None:
    """Writes arrays as safetensors, all or nothing; keys are stored in sorted order."""
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    with write_atomically(file) as partial:
        save_file(arrays, partial, metadata={"flyball": metadata} if metadata else None)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Reads every array of a safetensors file.

    Raises:
        CorruptArtifact: the file is missing, truncated, or is not safetensors.
        PickleRefused: the file is a pickle.
    """
    refuse_pickle(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CorruptArtifact(f"{file} does not exist. Build it again.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifact(
            f"{file} ({_size(file)} bytes) is not a whole safetensors file: {error}. "
            "It was truncated or altered; delete its folder and build it again."
        ) from error


def refuse_pickle(file: Path) -> None:
    """Refuses a file that opens like a pickle, bare or as torch.save's zip archive.

    A `.pt2` is a zip by nature; its reader looks inside.

    Raises:
        PickleRefused: the file is one.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
    except OSError:
        return
    # A safetensors file opens with the length of its JSON header, which may look like a pickle.
    if file.suffix == ".safetensors" and head[8:] == b"{":
        return
    is_torch_zip = head.startswith(b"PK\x03\x04") and file.suffix != ".pt2"
    if head.startswith(_PICKLE_OPENINGS) or is_torch_zip or file.suffix in {".pkl", ".pickle"}:
        raise PickleRefused(
            f"{file} is a pickle, and Flyball loads none: a pickle can run any code. "
            "Give the folder that `flyball path` or `flyball train` wrote "
            "(safetensors, JSON and .pt2 files)."
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
