"""From a finished point's weights to an exported controller, as `flyball train` makes one."""

import hashlib
from pathlib import Path

import torch

from flyball.controllers.learned import Learned
from flyball.controllers.networks import build_network
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import ShapeMismatch
from flyball.datapaths.files import fingerprint_of, read_tensors
from flyball.envs.observations import observations
from flyball.platform.controller_learning import controller_of, observation_of
from flyball.platform.controller_stage import controller_fingerprint, save_stage, stage_is_there
from flyball.platform.job import Job
from flyball.platform.prepare import Prepared
from flyball.platform.sweep.columns import keep_arms
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.result import PointResult

__all__ = ["export_point"]


def export_point(
    ready: Prepared, atlas: OutcomeAtlas, folder: SweepFolder, result: PointResult
) -> Path:
    """Exports a point's controller, or finds it exported; gives its folder.

    The folder goes by the weights: those of `flyball train` with the same settings are others in
    their last bits where the point was learned in a batch, and were not measured here.

    Args:
        ready: the sweep's base job.
        atlas: of the sweep.
        folder: of the sweep.
        result: of the point.

    Raises:
        CorruptArtifact: the weights are missing or truncated.
        ShapeMismatch: they are those of another network.
        StorageError: the folder cannot be written.
    """
    point = Point(result.key, result.settings)
    job = point.job(ready.job)
    kind = observation_of(job.controller)
    seen = observations(atlas, ready.images, kind)
    if any(name == "arms" for name, _ in result.settings):
        atlas = keep_arms(atlas, job.arms, uses_context=kind == "context")
    file = folder.weights_file(result.key)
    weights = read_tensors(file)
    learned = hashlib.sha256(file.read_bytes()).hexdigest()
    target = ready.runs.controller(
        fingerprint_of("swept", controller_fingerprint(job, atlas), learned)
    )
    with ready.runs.locked(target):
        if not stage_is_there(target):
            network = build_network(job.controller, seen.shape[1:], len(atlas.arms))
            try:
                network.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()})
            except RuntimeError as error:
                raise ShapeMismatch(
                    f"{file} holds other weights than those of its "
                    f"point's controller ({error}). Delete the point's folder, then run the sweep "
                    "again with --resume."
                ) from error
            controller = controller_of(job, atlas, seen, network.eval())
            save_stage(controller, _learned(result, network, job), atlas, seen, target)
    return target


def _learned(result: PointResult, network: torch.nn.Module, job: Job) -> Learned:
    """What the result keeps of the learning: the figures of the looks."""
    looks = [(updates, row) for updates, row in result.curve if "val/reward" in row]
    return Learned(
        network=network,
        curve=tuple(
            (updates, row["train/reward"], row["train/entropy"])
            for updates, row in looks
            if "train/reward" in row
        ),
        validation=tuple((updates, row["val/reward"]) for updates, row in looks),
        samples=result.updates * job.learn.batch_size,
        updates=result.updates,
        best_update=result.best_update,
    )
