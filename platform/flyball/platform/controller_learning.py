"""From an atlas to a trained controller in memory: what a job and a sweep's trial share.

Nothing is exported or saved here, and no data-path forward is made.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.controllers.learn import BanditTable, Learned, learn_plain
from flyball.controllers.networks import ControllerConfig, build_network, network_macs
from flyball.controllers.protocol import NetworkController, ObservationKind
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL, split_code
from flyball.envs.reward import reward_table
from flyball.platform.cluster import is_joined, ray_session
from flyball.platform.job import Job
from flyball.platform.nodes import check_nodes

__all__ = [
    "bandit_tables",
    "controller_macs",
    "controller_of",
    "learn_controller",
    "observation_of",
    "rows_of",
]


def observation_of(config: ControllerConfig) -> ObservationKind:
    """What a controller of this kind looks at."""
    return "context" if config.kind == "context_head" else "image"


def learn_controller(
    job: Job,
    atlas: OutcomeAtlas,
    atlas_folder: Path,
    seen: NDArray[np.float32],
    *,
    images_file: Path | None = None,
    checkpoint_folder: Path | None = None,
    ray_address: str | None = None,
    gpus: float = 0.0,
    report: Report = silent,
) -> Learned:
    """Trains on controller_train, and keeps the best on controller_val.

    Args:
        job: its reward, controller and learn settings are used.
        atlas: outcomes.
        atlas_folder: where it lies, for RLlib's workers.
        seen: what the controller sees of every row of the atlas, (N, ...).
        images_file: .npy of the images; RLlib reads it where the controller looks at images.
        checkpoint_folder: RLlib's state goes there, and an interrupted run goes on from it.
        ray_address: of a running cluster; None: Ray is started here where RLlib needs it.
        gpus: that RLlib's Learner may use here, >= 0; 0: what the job says.
        report: hears of progress.

    Raises:
        NotFinite: a reward or loss is NaN or infinite; names its step.
        InvalidSetting: the learner cannot use these settings.
        BadInput: nodes of the cluster run other code, or do not see the run folder.
    """
    if job.learn.algorithm == "plain":
        train, validation = bandit_tables(job, atlas, seen)
        generator = torch.Generator().manual_seed(job.learn.seed)
        shape, arms = seen.shape[1:], len(atlas.arms)
        network = build_network(job.controller, shape, arms, generator=generator)
        return learn_plain(train, network, job.learn, validation=validation, report=report)
    # RLlib takes seconds to import; a job whose controller lies there already does without it.
    from flyball.controllers.rllib.learn import Workers, learn_rllib

    compute = job.compute
    workers = Workers(
        env_runners=compute.env_runners,
        learners=compute.learners,
        gpus_per_learner=gpus or compute.gpus_per_learner,
    )
    with ray_session(ray_address):
        if is_joined(ray_address):
            check_nodes(Path(job.storage.root))
        return learn_rllib(
            atlas_folder.resolve(),
            images_file=images_file,
            observation=observation_of(job.controller),
            split=CONTROLLER_TRAIN,
            validation_split=CONTROLLER_VAL,
            reward=job.reward,
            controller_macs=controller_macs(job, atlas, seen),
            controller=job.controller,
            config=job.learn,
            workers=workers,
            checkpoint_folder=checkpoint_folder,
            report=report,
        )


def bandit_tables(
    job: Job, atlas: OutcomeAtlas, seen: NDArray[np.float32]
) -> tuple[BanditTable, BanditTable]:
    """What there is to learn from and to choose on: controller_train, controller_val."""
    rewards = reward_table(
        atlas,
        job.reward,
        controller_macs=controller_macs(job, atlas, seen),
        uses_context=observation_of(job.controller) == "context",
    )
    train, validation = (rows_of(atlas, split) for split in (CONTROLLER_TRAIN, CONTROLLER_VAL))
    return (
        BanditTable(seen[train], rewards[train]),
        BanditTable(seen[validation], rewards[validation]),
    )


def controller_macs(job: Job, atlas: OutcomeAtlas, seen: NDArray[np.float32]) -> int:
    """Multiply-accumulates of one choice of the job's controller."""
    shape = tuple(int(size) for size in seen.shape[1:])
    return network_macs(build_network(job.controller, shape, len(atlas.arms)), shape)


def controller_of(
    job: Job, atlas: OutcomeAtlas, seen: NDArray[np.float32], network: nn.Module
) -> NetworkController:
    """The trained network as the controller of the atlas's data path, not calibrated yet."""
    shape = tuple(int(size) for size in seen.shape[1:])
    return NetworkController(
        network,
        atlas.arms,
        network_macs(network, shape),
        observation_of(job.controller),
        shape,
        classes=atlas.header.classes,
        path_fingerprint=atlas.header.path_fingerprint,
        atlas_fingerprint=atlas.header.fingerprint,
    )


def rows_of(atlas: OutcomeAtlas, split: str) -> NDArray[np.int64]:
    """Rows of one split; int64 (M,)."""
    return np.flatnonzero(np.asarray(atlas.split) == split_code(split)).astype(np.int64)
