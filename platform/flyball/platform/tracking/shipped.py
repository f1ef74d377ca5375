"""What a registered model is made of: weights, the code that serves them, signature, requirements.

Everything is copied into one folder; MLflow then only moves files. No pickle is among them.
"""

import importlib
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from flyball.controllers.export import HEADER_FILE, ONNX_FILE, PROGRAM_FILE, load_controller
from flyball.datapaths.errors import CorruptArtifact
from flyball.datapaths.paths import DataPath, open_path
from flyball.platform.governor import CONTROLLER_FOLDER, PATH_FOLDER, sees_poses

__all__ = ["requirements", "ship_code", "ship_weights", "signature_of"]

_LAYERS = ("kernels", "datapaths", "controllers")
_NOT_SERVED = ("rllib", "__pycache__", "*.pyc")
_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "torch")


def ship_code(folder: Path) -> Path:
    """Copies what serving imports of Flyball, as one namespace folder.

    A model carries its code so that it loads where Flyball is not installed, and goes on answering
    the same where another version is.

    Returns:
        `folder / "flyball"`.
    """
    root = folder / "flyball"
    for layer in _LAYERS:
        ignored = shutil.ignore_patterns(*_NOT_SERVED)
        shutil.copytree(_folder_of(f"flyball.{layer}"), root / layer, ignore=ignored)
    (root / "platform").mkdir()
    # The platform's own __init__ may import what a server does not have.
    (root / "platform" / "__init__.py").write_text('"""The part that serves."""\n')
    shutil.copy(_folder_of("flyball.platform") / "governor.py", root / "platform")
    return root


def ship_weights(path_folder: Path, controller_folder: Path, folder: Path) -> Path:
    """Puts the weights alone, and nothing else that lies beside them, as `Governor.load` reads.

    The data path is shipped with the controller's arms: its own are only a default.

    Raises:
        ArtifactError: one of the files is missing or damaged.
    """
    (folder / CONTROLLER_FOLDER).mkdir(parents=True)
    for file in (PROGRAM_FILE, HEADER_FILE, ONNX_FILE):
        if (controller_folder / file).is_file():
            shutil.copy(controller_folder / file, folder / CONTROLLER_FOLDER / file)
        elif file != ONNX_FILE:
            raise CorruptArtifact(f"{controller_folder / file} does not exist. Build it again.")
    arms = load_controller(controller_folder).arms
    open_path(path_folder).with_arms(arms).save(folder / PATH_FOLDER)
    return folder


def signature_of(path: DataPath) -> ModelSignature:
    """What the model takes and gives.

    In: float32 images (B, C, H, W) or clips (B, C, T, H, W) in [0, 1], and the parameter `budget`.
    Out: a row a sample; of a pose network with its key points, J lists of x, y and peak.
    """
    seen = [ColSpec(Array(Array(DataType.float)), "key_points")] if sees_poses(path) else []
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *path.input_shape))]),
        outputs=Schema(
            [
                ColSpec(DataType.long, "prediction"),
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.float, "confidence"),
                ColSpec(DataType.float, "utilization"),
                ColSpec(DataType.long, "macs"),
                *seen,
            ]
        ),
        params=ParamSchema([ParamSpec("budget", DataType.double, None)]),
    )


def requirements(path: DataPath) -> list[str]:
    """The distributions that serving a data path needs, at the versions that run now."""
    names = sorted({*_REQUIRED, *getattr(path, "requirements", ())})
    # A local version such as 2.11.0+cpu names a build that no index may have.
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def _folder_of(package: str) -> Path:
    file = importlib.import_module(package).__file__
    assert file is not None, f"{package} is a regular package"
    return Path(file).parent
