"""The weights of a family's models: torchvision's, or a folder's; read without running any code."""

import hashlib
import re
import urllib.error
from pathlib import Path

import torch
from torch import Tensor, nn

from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    InvalidSetting,
    PickleRefused,
    ShapeMismatch,
)
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.family_models import (
    check_name,
    fit_head,
    fit_stem,
    head_of,
    make_model,
    stem_of,
)
from flyball.datapaths.files import read_tensors

__all__ = ["check_models", "fill", "weights_digest", "with_weights"]


def check_models(config: FamilyConfig) -> None:
    """Refuses models that cannot be made and weights that are not there; trains nothing.

    Raises:
        UnknownName: there is no such model.
        InvalidSetting: a class is no nn.Module, or cannot be imported.
        DataError: the folder of weights lacks a model's file.
    """
    for name in config.models:
        check_name(name)
        if config.weights == "imagenet" and ":" in name:
            raise _no_pretrained(name)
        if config.weights not in ("none", "imagenet"):
            _weights_file(Path(config.weights), name)


def weights_digest(config: FamilyConfig) -> str:
    """SHA-256 of the files of a folder of weights, in the models' order; empty without a folder.

    Raises:
        DataError: the folder lacks a model's file.
    """
    if config.weights in ("none", "imagenet"):
        return ""
    digest = hashlib.sha256()
    for name in config.models:
        with _weights_file(Path(config.weights), name).open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def with_weights(config: FamilyConfig, name: str) -> nn.Module:
    """A model with the weights that the configuration names, its first and last layers fitted.

    A last layer of another number of classes is drawn anew; a first layer of another number of
    channels is fitted by `fit_stem`.

    Raises:
        ShapeMismatch: the weights are those of another model.
        InvalidSetting: the last layer must be trained, and `train` is "none".
        DataError: the weights are not there, or cannot be downloaded.
        CorruptArtifact, PickleRefused: their file cannot be used.
    """
    if config.weights == "none":
        return make_model(name, classes=config.classes, in_channels=config.in_channels)
    if config.weights == "imagenet":
        where, state = f"torchvision's weights of {name}", _pretrained(name)
    else:
        file = _weights_file(Path(config.weights), name)
        where, state = str(file), _state_of(file)
    model = make_model(name, classes=config.classes, in_channels=config.in_channels)
    last = state.get(f"{head_of(model, config.classes)}.weight")
    there = config.classes if last is None else len(last)
    channels = _stem_channels(model, state, config.in_channels)
    if (there, channels) != (config.classes, config.in_channels):
        model = make_model(name, classes=there, in_channels=channels)
    fill(model, state, where)
    if there != config.classes:
        if config.train == "none":
            raise InvalidSetting(
                f"{where} tells {there} classes apart, the images have {config.classes}. "
                "Train its last layer with --set path.train=head."
            )
        fit_head(model, there, config.classes)
    fit_stem(model, config.in_channels)
    return model


def fill(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copies a state dict into a model whose every parameter and buffer it must match.

    Raises:
        ShapeMismatch: a name is missing or left over, or a shape differs.
    """
    # torchvision's oldest DenseNet files write denselayer1.norm.1 for denselayer1.norm1.
    old = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
    wanted = model.state_dict()
    given = {old.sub(r"\1\2", key): value for key, value in state.items()}
    for key, tensor in wanted.items():
        if tensor.ndim == 0 and key in given and given[key].numel() == 1:
            given[key] = given[key].reshape(())  # safetensors of numpy gives a scalar an axis
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, tensor)  # PyTorch before 0.4.1 did not count; nothing reads it
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise ShapeMismatch(
            f"{where} holds the weights of another model: missing {missing[:3] or 'none'}, left "
            f"over {extra[:3] or 'none'}. Give the weights of the model that is named."
        )
    for key, tensor in wanted.items():
        if tensor.shape != given[key].shape:
            raise ShapeMismatch(
                f"{where}: {key} has shape {tuple(given[key].shape)}, this model needs "
                f"{tuple(tensor.shape)}. Give the weights of the model that is named."
            )
    model.load_state_dict(given)


def _pretrained(name: str) -> dict[str, Tensor]:
    if ":" in name:
        raise _no_pretrained(name)
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"The weights of {name} cannot be downloaded from {weights.url}: {error}. Put "
            f"{name}.pth into a folder, and give it with --set path.weights=FOLDER."
        ) from error
    return dict(state)


def _no_pretrained(name: str) -> InvalidSetting:
    return InvalidSetting(
        f"torchvision has no weights of {name}. Put {name.partition(':')[2]}.safetensors into a "
        "folder, and give it with --set path.weights=FOLDER."
    )


def _weights_file(folder: Path, name: str) -> Path:
    stem = name.rpartition(":")[2]
    files = [folder / f"{stem}.safetensors", folder / f"{stem}.pth"]
    for file in files:
        if file.is_file():
            return file
    raise DataError(
        f"There are no weights of {name} in {folder}: neither {files[0].name} nor "
        f"{files[1].name}. Put its state dict there, or give --set path.weights=none."
    )


def _state_of(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return {key: torch.from_numpy(value) for key, value in read_tensors(file).items()}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises whatever its reader meets; anything but plain tensors is refused.
        raise PickleRefused(
            f"{file} does not load as tensors alone ({type(error).__name__}): it is damaged, or "
            "holds objects, and those can run code. Save the state dict by itself: "
            "safetensors.torch.save_file(model.state_dict(), FILE)."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CorruptArtifact(
            f"{file} is no state dict: tensors by name. Save model.state_dict() alone."
        )
    return state


def _stem_channels(model: nn.Module, state: dict[str, Tensor], default: int) -> int:
    stem = stem_of(model)
    weight = None if stem is None else state.get(f"{stem[0]}.weight")
    return default if stem is None or weight is None else weight.shape[1] * stem[1].groups
