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

from flyball.controllers.export import HEADER_FILE, ONNX_FILE, PROGRAM_FILE
from flyball.datapaths.errors import CorruptArtifact
from flyball.datapaths.frozen import SPEC_FILE, WEIGHTS_FILE, FrozenDataPath
from flyball.platform.governor import CONTROLLER_FOLDER, PATH_FOLDER

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
    """Copies the weights alone, and nothing else that lies beside them, as `Governor.load` reads.

    Raises:
        CorruptArtifact: one of the files is missing.
    """
    wanted = {
        PATH_FOLDER: (path_folder, (WEIGHTS_FILE, SPEC_FILE), ()),
        CONTROLLER_FOLDER: (controller_folder, (PROGRAM_FILE, HEADER_FILE), (ONNX_FILE,)),
    }
    for name, (source, needed, optional) in wanted.items():
        (folder / name).mkdir(parents=True)
        for file in (*needed, *optional):
            if (source / file).is_file():
                shutil.copy(source / file, folder / name / file)
            elif file in needed:
                raise CorruptArtifact(f"{source / file} does not exist. Build it again.")
    return folder


def signature_of(path: FrozenDataPath) -> ModelSignature:
    """What the model takes and gives.

    In: float32 images (B, C, H, W) in [0, 1], and the parameter `budget`. Out: a row an image.
    """
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *path.input_shape))]),
        outputs=Schema(
            [
                ColSpec(DataType.long, "prediction"),
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.float, "confidence"),
                ColSpec(DataType.float, "utilization"),
                ColSpec(DataType.long, "macs"),
            ]
        ),
        params=ParamSchema([ParamSpec("budget", DataType.double, None)]),
    )


def requirements() -> list[str]:
    """The distributions that serving needs, at the versions that run now."""
    # A local version such as 2.11.0+cpu names a build that no index may have.
    return [f"{name}=={version(name).split('+')[0]}" for name in _REQUIRED]


def _folder_of(package: str) -> Path:
    file = importlib.import_module(package).__file__
    assert file is not None, f"{package} is a regular package"
    return Path(file).parent
