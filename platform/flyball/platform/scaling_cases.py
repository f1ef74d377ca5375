"""What `docs/scaling.md` asks of the model: an ImageNet-size atlas, a sweep of 1,000 points, and
what is assumed of a cluster. What can be measured on one machine is in `scaling_measure`.
"""

from dataclasses import dataclass

import torch

from flyball.controllers.learn import LearnConfig
from flyball.datapaths.arms import default_arms
from flyball.datapaths.cost import executed_macs
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import make_network
from flyball.datapaths.resnet import resnet50
from flyball.platform.scaling import AtlasRates, AtlasWork, SweepRates, SweepWork
from flyball.platform.scaling_measure import CURVE, FIGURES, SUMMARY, Measured

__all__ = [
    "ASSUMPTIONS",
    "SHARD_SIZES",
    "WORKERS",
    "Assumption",
    "atlas_rates",
    "imagenet",
    "sweep_rates",
    "thousand_points",
]

WORKERS = (10, 100, 1000)
SHARD_SIZES = (1024, 128)
IMAGES = 1_281_167 + 50_000
ARCHIVE_BYTES = 147_897_477_120 + 6_744_924_160
NAME_BYTES = 36
REPORT_BYTES, RESULT_BYTES = 300, 4000
GPUS_PER_NODE, CORES_PER_NODE = 8, 64
V100_IMAGES_PER_S = 1261
STORAGE_BYTES_PER_S, NODE_BYTES_PER_S = 5e9, 3.1e9


@dataclass(frozen=True)
class Assumption:
    """A number that was not measured here, and where it comes from."""

    name: str
    value: float
    unit: str
    source: str


ASSUMPTIONS = (
    Assumption("images", IMAGES, "", "ILSVRC2012, train and validation"),
    Assumption("archives", ARCHIVE_BYTES / 1e9, "GB", "sizes of their tar files as distributed"),
    Assumption(
        "ResNet-50 on a V100, float32, batch 256",
        V100_IMAGES_PER_S,
        "images/s",
        "published: NVIDIA DeepLearningExamples, PyTorch resnet50v1.5, pytorch-21.03",
    ),
    Assumption("GPUs of a node", GPUS_PER_NODE, "", "assumed"),
    Assumption("cores of a node, all decoding", CORES_PER_NODE, "", "assumed"),
    Assumption("network of a node", NODE_BYTES_PER_S / 1e9, "GB/s", "assumed: 25 Gbit/s"),
    Assumption("shared storage, in all", STORAGE_BYTES_PER_S / 1e9, "GB/s", "assumed"),
    Assumption("a file's name and folder", NAME_BYTES, "bytes", "assumed"),
    Assumption("a report, a result", RESULT_BYTES + REPORT_BYTES, "bytes", "assumed"),
)


def imagenet(shard_size: int = 1024, *, message_bytes: float = 0.0) -> AtlasWork:
    """ImageNet at ten arms on the depthwise nested ResNet-50; MACs are counted layer by layer."""
    network, arms = _network(), default_arms()
    layers, lowest = network.layer_costs(), list(network.counts_at(arms[0]))
    return AtlasWork(
        samples=IMAGES,
        arms=len(arms),
        macs=float(sum(executed_macs(layers, list(network.counts_at(u))) for u in arms)),
        stored_bytes=ARCHIVE_BYTES / IMAGES,
        # Pooled channels, log-probabilities, their largest, and their entropy.
        context_features=network.pooled_channels(lowest) + network.classes + 2,
        shard_size=shard_size,
        task_bytes=NAME_BYTES + 8 + 1 + 8,  # with label, split and row
        message_bytes=message_bytes,
    )


def atlas_rates(measured: Measured) -> AtlasRates:
    """A cluster of V100 nodes whose driver and cores are like this machine's."""
    network = _network()
    full_macs = executed_macs(network.layer_costs(), list(network.counts_at(1.0)))
    return AtlasRates(
        # Small arms are taken to be as busy as the whole network.
        macs_per_s=V100_IMAGES_PER_S * full_macs,
        start_s=measured.start_s,
        decodes_per_s=CORES_PER_NODE * measured.decodes_per_s,
        workers_per_node=GPUS_PER_NODE,
        node_bytes_per_s=NODE_BYTES_PER_S,
        storage_bytes_per_s=STORAGE_BYTES_PER_S,
        shards_per_s=measured.calls_per_s,
        assembly_bytes_per_s=measured.assembly_bytes_per_s,
    )


def thousand_points(measured: Measured, atlas: AtlasWork) -> SweepWork:
    """A sweep of the default settings; a point is a controller trained and measured on one core."""
    looks = LearnConfig().validations
    return SweepWork(
        points=1000,
        point_s=measured.point_s,
        rows=looks * FIGURES + SUMMARY + CURVE,
        result_bytes=looks * REPORT_BYTES + RESULT_BYTES,
        atlas_bytes=atlas.atlas_bytes,
    )


def sweep_rates(measured: Measured) -> SweepRates:
    """A cluster whose driver and database are like this machine's; a place is a GPU's share."""
    return SweepRates(
        start_s=measured.tune_start_s,
        trials_per_s=measured.trials_per_s,
        recorded_per_s=measured.recorded_per_s,
        places_per_node=GPUS_PER_NODE,
        storage_bytes_per_s=STORAGE_BYTES_PER_S,
    )


def _network() -> ThrottleableNetwork:
    with torch.device("meta"):
        return make_network(resnet50())
