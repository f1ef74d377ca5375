"""Saving and loading controllers: controller.pt2, controller.json and controller.onnx, no pickle.

Imports neither the environments nor Ray: a server needs this file and `protocol` alone.
"""

import copy
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flyball.controllers.budget import Calibration
from flyball.controllers.protocol import NetworkController, ObservationKind
from flyball.controllers.pt2 import export_program, load_program, write_program
from flyball.datapaths.errors import BadInput, CorruptArtifact
from flyball.datapaths.files import read_json, write_atomically, write_json

__all__ = ["load_controller", "save_controller"]

PROGRAM_FILE = "controller.pt2"
HEADER_FILE = "controller.json"
ONNX_FILE = "controller.onnx"
FORMAT = 1


def save_controller(
    controller: NetworkController, folder: Path | str, *, onnx: bool = True
) -> Path:
    """Writes the network, then the header that names its bytes: all or nothing.

    Args:
        controller: what to save; it is copied to the CPU and left as it is.
        folder: made where it does not exist.
        onnx: also write controller.onnx (input "observations", output "logits", any batch).

    Returns:
        The folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = Path(folder)
    network = _on_cpu(controller.network)
    # Two unlike rows: a batch of one would be taken for a fixed size.
    program = export_program(network, torch.zeros(2, *controller.observation_shape))
    write_program(folder / PROGRAM_FILE, program)
    if onnx:
        _write_onnx(folder / ONNX_FILE, program)
    else:
        (folder / ONNX_FILE).unlink(missing_ok=True)
    header = {
        "format": FORMAT,
        "arms": controller.arms,
        "macs": controller.macs,
        "observation": controller.observation,
        "observation_shape": controller.observation_shape,
        "calibration": None if controller.calibration is None else asdict(controller.calibration),
        "classes": controller.classes,
        "path_fingerprint": controller.path_fingerprint,
        "atlas_fingerprint": controller.atlas_fingerprint,
        "sha256": _digest(folder / PROGRAM_FILE),
    }
    write_json(folder / HEADER_FILE, header)
    return folder


def load_controller(folder: Path | str) -> NetworkController:
    """Loads what `save_controller` wrote; its answers are those of the saved one, bit for bit.

    Raises:
        CorruptArtifact: a file is missing, truncated, altered, or lacks a field.
        PickleRefused: a file is a pickle, or an archive that holds one.
        BadInput: a field breaks its rule, such as arms out of order.
    """
    folder = Path(folder)
    header = read_json(folder / HEADER_FILE)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CorruptArtifact(
            f"{folder / HEADER_FILE} is not the header of a controller of format {FORMAT}. "
            "Delete the folder and train the controller again."
        )
    network = load_program(folder / PROGRAM_FILE)
    if _digest(folder / PROGRAM_FILE) != header.get("sha256"):
        raise CorruptArtifact(
            f"{folder / PROGRAM_FILE} is not the network that {HEADER_FILE} beside it describes: "
            "one of them was replaced. Delete the folder and train the controller again."
        )
    try:
        return _from_header(network, header)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise CorruptArtifact(
            f"{folder / HEADER_FILE} lacks a field of a controller, or one is of another type "
            f"({error!r}). Delete the folder and train the controller again."
        ) from error


def _from_header(network: nn.Module, header: dict[str, Any]) -> NetworkController:
    calibration = header["calibration"]
    if calibration is not None:
        calibration = Calibration(**{k: tuple(map(float, v)) for k, v in calibration.items()})
    return NetworkController(
        network=network,
        arms=tuple(float(arm) for arm in header["arms"]),
        macs=int(header["macs"]),
        observation=cast(ObservationKind, header["observation"]),
        observation_shape=tuple(int(size) for size in header["observation_shape"]),
        calibration=calibration,
        classes=tuple(str(name) for name in header["classes"]),
        path_fingerprint=str(header["path_fingerprint"]),
        atlas_fingerprint=str(header["atlas_fingerprint"]),
    )


def _on_cpu(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network).to("cpu").requires_grad_(False)
    is_exported = isinstance(copied, torch.fx.GraphModule)  # it is in evaluation mode for good
    return copied if is_exported else copied.eval()


def _write_onnx(file: Path, program: torch.export.ExportedProgram) -> None:
    converted = torch.onnx.export(
        program,
        input_names=["observations"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    if converted is None:
        raise RuntimeError("torch.onnx.export returned no program.")
    shape = converted.model.graph.inputs[0].shape
    if shape is not None and not isinstance(shape[0], int):
        converted.rename_axes({shape[0]: "batch"})
    with write_atomically(file) as partial:
        converted.save(str(partial), external_data=False)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
