"""Finished artifacts of a job, which analyses only read, and its vanilla twin, which they make."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.export import HEADER_FILE as CONTROLLER_FILE
from flyball.datapaths.atlas import HEADER_FILE as ATLAS_FILE
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.frozen import SPEC_FILE as PATH_FILE
from flyball.datapaths.outcomes import atlas_fingerprint
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.splits import split_code
from flyball.envs.observations import observations
from flyball.platform.controller_stage import (
    CURVE_FILE,
    ControllerStage,
    controller_fingerprint,
    observation_of,
    train_controller,
)
from flyball.platform.job import Job
from flyball.platform.path_stage import path_fingerprint
from flyball.platform.prepare import Prepared, prepare
from flyball.platform.stages import OutcomesStage, build_outcomes, build_path, served_path

__all__ = [
    "Finished",
    "chosen_arms",
    "finished",
    "finished_controller",
    "vanilla_of",
    "vanilla_phase1",
]


@dataclass(frozen=True)
class Finished:
    """A data path and its atlas as they lie in the run folder.

    Attributes:
        ready: the job, with its images.
        path: frozen data path at the job's arms.
        outcomes: its atlas, and where it lies.
    """

    ready: Prepared
    path: DataPath
    outcomes: OutcomesStage

    @property
    def atlas(self) -> OutcomeAtlas:
        """What every arm answers and costs."""
        return self.outcomes.atlas


def finished(job: Job, *, report: Report = silent) -> Finished:
    """The data path and atlas of a job that ran before; nothing is trained.

    Raises:
        DataError: one of them does not lie in the run folder; names the command that makes it.
        BadInput: the job itself cannot be used.
    """
    ready = prepare(job, report=report)
    folder = ready.runs.path(path_fingerprint(ready.network, job.phase1, ready.images, job.arms))
    if not (folder / PATH_FILE).exists():
        raise _unfinished(job, "data path", f"flyball outcomes {job.name}")
    path = served_path(build_path(ready, report=report).path, job)
    folder = ready.runs.outcomes(atlas_fingerprint(path, ready.images, job.outcomes))
    if not (folder / ATLAS_FILE).exists():
        raise _unfinished(job, "outcome atlas", f"flyball outcomes {job.name}")
    return Finished(ready, path, build_outcomes(ready, path, report=report))


def finished_controller(done: Finished) -> ControllerStage:
    """The controller of a job that ran before.

    Raises:
        DataError: it does not lie in the run folder.
    """
    job = done.ready.job
    folder = done.ready.runs.controller(controller_fingerprint(job, done.atlas))
    if not ((folder / CURVE_FILE).exists() and (folder / CONTROLLER_FILE).exists()):
        raise _unfinished(job, "controller", f"flyball train {job.name}")
    return train_controller(done.ready, done.path, done.atlas, done.outcomes.folder)


def chosen_arms(done: Finished, stage: ControllerStage, split: str) -> NDArray[np.int64]:
    """The arm that a job's controller chooses for every row of a split, in the atlas's order."""
    seen = observations(done.atlas, done.ready.images, observation_of(done.ready.job.controller))
    is_in = np.asarray(done.atlas.split) == split_code(split)
    return np.asarray(stage.controller.choose(seen[np.flatnonzero(is_in)]), np.int64)


def vanilla_phase1(phase1: Phase1Config) -> Phase1Config:
    """The same training with everything on in every step: u = 1 from the first epoch on."""
    return replace(phase1, schedule="incremental", increment=1.0)


def vanilla_of(ready: Prepared, *, report: Report = silent) -> Finished:
    """The job's network trained at u = 1 only, and asked at every arm; trained where it is not.

    The arms are the job's and u = 1, so that its last arm is the vanilla network itself.

    Raises:
        InvalidSetting: the data path has no gates: a family of models, or masks.
        NotFinite: a loss became NaN or infinite.
        StorageError: the run folder cannot be written.
    """
    job = ready.job
    if isinstance(ready.network, FamilyConfig | DynConvConfig):
        raise InvalidSetting(
            "Only a network with gates can be trained without them; this data path is a family of "
            "models or a dynamic convolution network, which `flyball analyse static` compares. "
            "Leave the vanilla network out: `vanilla=False`."
        )
    arms = tuple(sorted({*job.arms, 1.0}))
    alone = replace(job, phase1=vanilla_phase1(job.phase1), arms=arms)
    twin = replace(ready, job=alone)
    path = served_path(build_path(twin, report=report).path, alone)
    return Finished(twin, path, build_outcomes(twin, path, report=report))


def _unfinished(job: Job, what: str, command: str) -> DataError:
    return DataError(
        f"An analysis reads finished artifacts, and under {job.storage.root} there is no {what} "
        f"of this job. Run `{command}` first, with the same --set."
    )
