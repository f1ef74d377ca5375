"""Throttleable networks, their training, their exact cost, and the outcome atlas.

Names are loaded on first use: whoever needs an error class alone does not wait for torch.
"""

import importlib
from typing import Any

_HOMES = {
    "Answer": "frozen",
    "AtlasHeader": "atlas",
    "BadInput": "errors",
    "DataConfig": "data",
    "FlyballError": "errors",
    "FrozenDataPath": "frozen",
    "ImageSet": "data",
    "Judgement": "tasks",
    "OutcomeAtlas": "atlas",
    "OutcomesConfig": "outcomes",
    "PathSpec": "frozen",
    "Phase1Config": "schedules",
    "Phase1Result": "phase1",
    "Progress": "progress",
    "Report": "progress",
    "SPLITS": "splits",
    "ThrottleableVgg": "vgg",
    "VggConfig": "vgg",
    "build_atlas": "outcomes",
    "default_arms": "arms",
    "executed_macs": "cost",
    "judge": "tasks",
    "linear_macs": "cost",
    "load_images": "data",
    "measured_macs": "cost",
    "small_vgg": "vgg",
    "train_phase1": "phase1",
    "validated_arms": "arms",
    "vgg_d": "vgg",
}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flyball.datapaths has no {name!r}; public: {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"flyball.datapaths.{_HOMES[name]}"), name)
