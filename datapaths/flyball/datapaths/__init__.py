"""Throttleable networks, their training, their exact cost, and the outcome atlas."""

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.atlas import AtlasHeader, OutcomeAtlas
from flyball.datapaths.cost import executed_macs, linear_macs, measured_macs
from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import BadInput, FlyballError
from flyball.datapaths.frozen import Answer, FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.phase1 import Phase1Config, Phase1Result, train_phase1
from flyball.datapaths.progress import Progress, Report
from flyball.datapaths.splits import SPLITS
from flyball.datapaths.tasks import Judgement, judge
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig, small_vgg, vgg_d

__all__ = [
    "SPLITS",
    "Answer",
    "AtlasHeader",
    "BadInput",
    "DataConfig",
    "FlyballError",
    "FrozenDataPath",
    "ImageSet",
    "Judgement",
    "OutcomeAtlas",
    "OutcomesConfig",
    "PathSpec",
    "Phase1Config",
    "Phase1Result",
    "Progress",
    "Report",
    "ThrottleableVgg",
    "VggConfig",
    "build_atlas",
    "default_arms",
    "executed_macs",
    "judge",
    "linear_macs",
    "load_images",
    "measured_macs",
    "small_vgg",
    "train_phase1",
    "validated_arms",
    "vgg_d",
]
