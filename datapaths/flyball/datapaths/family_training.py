"""Phase 1 of a family: makes each model, trains it by itself with the supervised loss, freezes all.

Of `Phase1Config` it follows epochs, batch size, optimiser, rates, augmentation, smoothing,
precision, clipping and seed; schedules over utilizations mean nothing to whole models. A finished
model is kept, so a training that was interrupted goes on at the next one. N samples.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.datapaths.arms import default_arms
from flyball.datapaths.errors import ForeignArtifact, InvalidArms, InvalidSetting
from flyball.datapaths.family import ModelFamily, model_file, weights_of
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.family_fitting import Examples, Pace, fit_all, fit_last
from flyball.datapaths.family_models import Measured, make_model, measure
from flyball.datapaths.family_spec import FamilySpec, arms_of
from flyball.datapaths.family_weights import check_models, fill, weights_digest, with_weights
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.phase1 import batches
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.schedules import Phase1Config

__all__ = ["FamilyTraining", "family_to_json", "measure_family", "train_family"]

PLAN_FILE = "family.json"
LOSSES = "losses"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, ...]


@dataclass(frozen=True)
class FamilyTraining:
    """What training gave.

    Attributes:
        family: frozen.
        losses: mean loss of every epoch, by model.
        forwards: sample passes through the models in this call.
        seconds: wall-clock time of this call.
        resumed_from: models that were finished before this call.
    """

    family: ModelFamily
    losses: dict[str, tuple[float, ...]]
    forwards: int
    seconds: float
    resumed_from: int


def family_to_json(config: FamilyConfig) -> dict[str, Any]:
    """Plain values with the kind among them; a folder of weights counts by the bytes of its files.

    Raises:
        DataError: the folder of weights lacks a model's file.
    """
    return {"kind": "family", **asdict(config), "weights": weights_digest(config) or config.weights}


def measure_family(config: FamilyConfig) -> tuple[Measured, ...]:
    """MACs and features of every model at the input size, from one pass of one sample each.

    Raises:
        UnknownName, InvalidSetting: a model cannot be made, or does not take such inputs.
        InvalidArms: a model costs no more than the one before it.
    """
    with torch.random.fork_rng(devices=[]):
        found = tuple(
            measure(_blank(config, name), name, config.input_shape, config.classes)
            for name in config.models
        )
    arms_of(config.models, [each.macs for each in found])
    return found


def train_family(
    config: FamilyConfig,
    phase1: Phase1Config,
    images: Any,
    labels: NDArray[np.int64],
    *,
    classes: tuple[str, ...],
    mean: Channels,
    std: Channels,
    arms: tuple[float, ...] | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    provenance: dict[str, Any] | None = None,
    report: Report = silent,
) -> FamilyTraining:
    """Makes, trains and freezes every model of a family.

    Args:
        config: models, weights, and what of them is trained.
        phase1: how.
        images: uint8 (N, *input_shape), or anything that gives rows for an array of indices.
        labels: int64 (N,).
        classes: names.
        mean, std: of the images' channels; used where `FamilyConfig.mean` says so.
        arms: if given and not the default ones, they must be the family's own.
        folder: where finished models are kept; None: nowhere.
        device: torch device.
        provenance: for the family's specification.
        report: hears of every step.

    Raises:
        BadInput: a model, its weights or a setting cannot be used.
        ForeignArtifact: the folder holds the models of another training.
        NotFinite: a loss is NaN or infinite; names model, epoch and step.
    """
    start = time.monotonic()
    check_models(config)
    measured = measure_family(config)
    _check_arms(arms, arms_of(config.models, [each.macs for each in measured]))
    if phase1.augment and config.train == "head":
        raise InvalidSetting(
            "The last layers learn from features that are computed once, so images cannot be "
            "augmented. Give --set phase1.augment=false, or --set path.train=all."
        )
    mean, std = _channels_of(config, mean, std)
    _claim(folder, _plan(config, phase1, labels))
    per_channel = (1, -1, *(1,) * (len(config.input_shape) - 1))
    scale = [torch.tensor(v, device=device).reshape(per_channel) for v in (mean, std)]
    examples = Examples(images, np.asarray(labels, np.int64), *scale)
    per_model = len(batches(np.arange(len(labels)), phase1.batch_size)) * phase1.epochs
    pace = Pace(report, 0 if config.train == "none" else per_model * len(config.models))
    models: list[nn.Module] = []
    resumed = 0
    for arm, name in enumerate(config.models):
        file = None if folder is None else folder / model_file(arm)
        if file is not None and file.exists():
            models.append(_resumed(config, name, file, pace))
            resumed, pace.done = resumed + 1, pace.done + per_model
            continue
        models.append(_trained(config, phase1, arm, examples, pace, folder))
        if file is not None:
            losses = np.asarray(pace.losses[name], np.float64)
            write_tensors(file, {**weights_of(models[-1]), LOSSES: losses})
    spec = FamilySpec(
        models=config.models,
        classes=classes,
        input_shape=config.input_shape,
        mean=mean,
        std=std,
        macs=tuple(each.macs for each in measured),
        features=measured[0].features,
        provenance={
            **(provenance or {}),
            "family": family_to_json(config),
            LOSSES: {name: [round(v, 6) for v in pace.losses[name]] for name in config.models},
        },
    )
    seconds = time.monotonic() - start
    return FamilyTraining(ModelFamily(models, spec), pace.losses, pace.forwards, seconds, resumed)


def _trained(
    config: FamilyConfig,
    phase1: Phase1Config,
    arm: int,
    examples: Examples,
    pace: Pace,
    folder: Path | None,
) -> nn.Module:
    name, device = config.models[arm], examples.mean.device
    # Initial weights and dropout come from torch's own generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(phase1.seed + arm)
        model = with_weights(config, name).to(device)
        if config.train == "head":
            pace.losses[name] = fit_last(
                model, name, config.classes, examples, phase1, pace, folder=folder
            )
        elif config.train == "all":
            pace.losses[name] = fit_all(model, name, examples, phase1, pace)
        else:
            pace.losses[name] = ()
    return model.to("cpu").eval()


def _resumed(config: FamilyConfig, name: str, file: Path, pace: Pace) -> nn.Module:
    tensors = {key: torch.from_numpy(array) for key, array in read_tensors(file).items()}
    pace.losses[name] = tuple(tensors.pop(LOSSES, torch.zeros(0)).tolist())
    with torch.random.fork_rng(devices=[]):
        model = _blank(config, name)
    fill(model, tensors, str(file))
    return model


def _blank(config: FamilyConfig, name: str) -> nn.Module:
    return make_model(name, classes=config.classes, in_channels=config.in_channels)


def _channels_of(config: FamilyConfig, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """What the models' inputs are normalised by; see `FamilyConfig.mean`."""
    if config.weights != "none" and config.in_channels == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return config.mean or mean, config.std or std


def _check_arms(arms: tuple[float, ...] | None, own: tuple[float, ...]) -> None:
    if arms is not None and tuple(arms) not in (own, default_arms()):
        raise InvalidArms(
            f"The arms of a family are its models' ({', '.join(f'{arm:.4g}' for arm in own)}); "
            f"{', '.join(f'{arm:g}' for arm in arms)} came. Leave --set arms out."
        )


def _plan(config: FamilyConfig, phase1: Phase1Config, labels: NDArray[np.int64]) -> dict[str, Any]:
    settings = {**asdict(phase1), "checkpoint_seconds": None}
    digest = fingerprint_of(family_to_json(config), settings, np.asarray(labels).tolist())
    return {"fingerprint": digest}


def _claim(folder: Path | None, plan: dict[str, Any]) -> None:
    if folder is None:
        return
    if (folder / PLAN_FILE).exists() and read_json(folder / PLAN_FILE) != plan:
        raise ForeignArtifact(
            f"{folder} holds the models of another training. "
            "Delete the folder, or repeat the settings that it was started with."
        )
    write_json(folder / PLAN_FILE, plan)
