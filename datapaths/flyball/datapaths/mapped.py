"""safetensors files as memory-mapped numpy arrays: opened in constant time, shared by processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.errors import CorruptArtifact
from flyball.datapaths.files import refuse_pickle

__all__ = ["map_tensors"]

_DTYPES = {"F32": "<f4", "F64": "<f8", "I8": "i1", "I32": "<i4", "I64": "<i8", "U8": "u1"}


def map_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Maps every array of a safetensors file read-only, without reading it.

    Raises:
        CorruptArtifact: the file is missing, truncated, or is not safetensors.
        PickleRefused: the file is a pickle.
    """
    refuse_pickle(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= size - 8:
                raise CorruptArtifact(_broken(file, f"its header claims {length} bytes"))
            header = json.loads(opened.read(length))
    except FileNotFoundError as error:
        raise CorruptArtifact(_broken(file, "it does not exist")) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptArtifact(_broken(file, f"its header is not JSON ({error})")) from error
    try:
        return {
            name: _mapped(file, name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptArtifact(_broken(file, f"its header is damaged ({error!r})")) from error


def _mapped(file: Path, name: str, entry: Any, start: int, size: int) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    wanted = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if start + last > size or last - first != wanted:
        raise CorruptArtifact(_broken(file, f"table {name!r} runs past its end"))
    if last == first:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset=start + first, shape=shape)


def _broken(file: Path, what: str) -> str:
    return f"{file} is not a whole safetensors file: {what}. Delete its folder and build it again."
