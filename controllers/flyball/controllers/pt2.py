"""Exported programs (.pt2) that hold no pickle; what a controller adds to one lives in `export`.

`torch.export.load` by itself is no safe loader: it unpickles sample inputs, weights marked
`use_pickle`, and custom objects, runs native code from AOTInductor members, and evaluates
symbolic shapes and guards as Python. `load_program` therefore accepts only archives that hold
the members a plain network needs, and hands torch a fresh archive made of those alone.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flyball.datapaths.errors import CorruptArtifact, PickleRefused
from flyball.datapaths.files import refuse_pickle, write_atomically

__all__ = ["export_program", "load_program", "write_program"]

_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_PLAIN_MEMBER = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_PICKLED_MEMBER = re.compile(r".*\.(pkl|pickle|pt|pth)|.*/(custom|opaque)_obj_\d+")
_PLAIN_SHAPE = re.compile(
    r"(Symbol\('\w+'(, \w+=True)*\)|Integer|Add|Mul|Pow|Mod|FloorDiv|Max|Min|-?\d+|[(), ])+"
)
_PLAIN_CALL = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv)")


def export_program(network: nn.Module, sample: Tensor) -> torch.export.ExportedProgram:
    """A network as an exported program with a batch dimension of any size.

    The program carries no sample inputs (torch would pickle them) and no source lines.

    Args:
        network: on the CPU, in evaluation mode; (B, ...) to one tensor (B, ...).
        sample: an input with at least two rows, so that the batch size is not taken as fixed.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        _Named(network), (sample,), dynamic_shapes={"observations": {0: batch}}
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def write_program(file: Path, program: torch.export.ExportedProgram) -> None:
    """Writes a .pt2 file, all or nothing.

    Raises:
        StorageError: the folder cannot be written.
    """
    archive = io.BytesIO()
    torch.export.save(program, archive)
    with write_atomically(file) as partial:
        partial.write_bytes(archive.getvalue())


def load_program(file: Path) -> nn.Module:
    """Loads a .pt2 file that `write_program` wrote, without unpickling anything.

    Raises:
        PickleRefused: the file is a pickle, or an archive with a pickle inside.
        CorruptArtifact: it is missing, truncated, altered, or holds more than a plain network.
    """
    members = _read_members(file)
    for name, content in members.items():
        is_empty_sample = name == _SAMPLE_INPUTS and not content
        if _PICKLED_MEMBER.fullmatch(name) and not is_empty_sample:
            raise _pickled(file, f"its member {name} is one")
    foreign = [name for name in members if not _PLAIN_MEMBER.fullmatch(name)]
    missing = [name for name in (_WEIGHTS, _CONSTANTS, _GRAPH) if name not in members]
    if foreign or missing:
        what = f"holds {foreign[0]}" if foreign else f"lacks {missing[0]}"
        raise _corrupt(file, f"it {what}, unlike the archive of a plain network")
    for name in (_WEIGHTS, _CONSTANTS):
        if any(entry.get("use_pickle") for entry in _entries(file, name, members[name])):
            raise _pickled(file, f"{name} asks for one")
    _check_graph(file, _parsed(file, _GRAPH, members[_GRAPH]))
    try:
        program = torch.export.load(_packed(members))
        return program.module(check_guards=False)
    except Exception as error:  # torch raises whatever a wrong field runs into
        raise _corrupt(file, f"torch cannot rebuild the network ({error})") from error


class _Named(nn.Module):
    """Gives the input the name under which it is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        output: Tensor = self.network(observations)
        return output


def _read_members(file: Path) -> dict[str, bytes]:
    """Contents of the archive by name, without its top folder; checksums are verified."""
    refuse_pickle(file)
    if not file.exists():
        raise CorruptArtifact(f"{file} does not exist. Train the controller again.")
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if name in members or not name:
                    raise _corrupt(file, f"member {entry.filename!r} is misplaced or repeated")
                members[name] = archive.read(entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        size = file.stat().st_size
        raise _corrupt(file, f"its {size} bytes are no whole archive ({error})") from error
    return members


def _packed(members: dict[str, bytes]) -> io.BytesIO:
    """A fresh archive of the members that were checked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    packed.seek(0)
    return packed


def _parsed(file: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _corrupt(file, f"its member {name} is not JSON ({error})") from error


def _entries(file: Path, name: str, content: bytes) -> list[dict[str, Any]]:
    config = _parsed(file, name, content)
    table = config.get("config") if isinstance(config, dict) else None
    if not isinstance(table, dict) or not all(isinstance(e, dict) for e in table.values()):
        raise _corrupt(file, f"its member {name} is no table of weights")
    return list(table.values())


def _check_graph(file: Path, graph: Any) -> None:
    """Refuses symbolic shapes and calls that are more than arithmetic on tensors."""
    for key, value in _strings(graph):
        is_plain_shape = key != "expr_str" or _PLAIN_SHAPE.fullmatch(value)
        is_plain_call = key != "target" or _PLAIN_CALL.fullmatch(value)
        if not is_plain_shape or not is_plain_call:
            raise _corrupt(file, f"its graph asks for {value!r}, which no controller needs")


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every string of a JSON value under the keys of its innermost object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            else:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _pickled(file: Path, why: str) -> PickleRefused:
    return PickleRefused(
        f"{file} holds a pickle ({why}), and Flyball loads none: a pickle can run any code. "
        "Give the folder that `flyball train` wrote."
    )


def _corrupt(file: Path, why: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{file} is not a controller's exported network: {why}. "
        "Delete its folder and train the controller again."
    )
