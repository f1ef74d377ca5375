"""What a point learns from, and what is measured and saved of it once it has learned."""

import functools
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import nn

from flyball.controllers.baselines import METRICS
from flyball.controllers.budget import calibrate
from flyball.controllers.ladder import Subject, budget_curve, seen_in
from flyball.controllers.learned import Learned
from flyball.controllers.protocol import NetworkController, ObservationKind
from flyball.controllers.quick import Quick, measure_quick
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.files import write_tensors
from flyball.datapaths.splits import CONTROLLER_VAL
from flyball.envs.observations import observations
from flyball.platform.controller_learning import controller_of, observation_of
from flyball.platform.job import Job
from flyball.platform.sweep.columns import keep_arms, save_columns
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.result import CurveRow, PointResult
from flyball.platform.sweep.task import TrialTask

__all__ = ["Material", "finish_point"]


@dataclass(frozen=True, eq=False)
class Material:
    """What a point learns from: the atlas with its arms, and what its controller sees of it."""

    job: Job
    atlas: OutcomeAtlas
    folder: Path
    seen: NDArray[np.float32]

    @classmethod
    def of(cls, job: Job, task: TrialTask, folder: SweepFolder) -> "Material":
        kind = observation_of(job.controller)
        atlas, seen = _opened(task.atlas, task.images, kind)
        where = Path(task.atlas)
        if "arms" in task.fields:
            fewer = keep_arms(atlas, job.arms, uses_context=kind == "context")
            if fewer is not atlas:
                atlas, where = fewer, save_columns(fewer, folder.atlas(fewer.header.fingerprint))
        return cls(job, atlas, where, seen)

    def controller(self, network: nn.Module) -> NetworkController:
        return controller_of(self.job, self.atlas, self.seen, network)

    def measured(self, network: nn.Module, resamples: int) -> Quick:
        settings = replace(self.job.evaluation, bootstrap=resamples)
        return measure_quick(
            self.atlas, self.controller(network), self.seen, self.job.reward, settings
        )

    def gain(self, network: nn.Module) -> float:
        """Gain over the static mixture on controller_val, without an interval."""
        return self.measured(network, 1).gain_over_static.mean


def finish_point(
    point: Point,
    material: Material,
    learned: Learned,
    folder: SweepFolder,
    *,
    seconds: float,
    forwards: int,
    starts: int,
) -> PointResult:
    """Measures and saves; the result is written last."""
    job, header = material.job, material.atlas.header
    quick = material.measured(learned.network, job.evaluation.bootstrap)
    weights = {name: value.numpy() for name, value in learned.network.state_dict().items()}
    write_tensors(folder.weights_file(point.key), weights)
    rung = quick.rung
    result = PointResult(
        key=point.key,
        settings=point.settings,
        name=point.name,
        accuracy=rung.accuracy,
        utilization=rung.utilization,
        gross=rung.gross,
        net=rung.net,
        reward=rung.reward,
        gain_over_static=quick.gain_over_static,
        beats_static=quick.beats_static,
        dominated=quick.dominated,
        controller_macs=material.controller(learned.network).macs,
        parameters=sum(parameter.numel() for parameter in learned.network.parameters()),
        updates=learned.updates,
        best_update=learned.best_update,
        seconds=seconds,
        forwards=forwards,
        starts=starts,
        seed=job.learn.seed,
        fingerprints={"path": header.path_fingerprint, "atlas": header.fingerprint},
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__.split("+")[0],
            "ray": ray.__version__,
        },
        curve=(*_looks(learned), *_served(material, learned.network)),
    )
    result.save(folder.result_file(point.key))
    return result


def _looks(learned: Learned) -> tuple[CurveRow, ...]:
    train = {updates: (reward, entropy) for updates, reward, entropy in learned.curve}
    rows = []
    for updates, reward in learned.validation:
        figures = {"val/reward": reward}
        if updates in train:
            figures |= {"train/reward": train[updates][0], "train/entropy": train[updates][1]}
        rows.append((updates, figures))
    return tuple(rows)


def _served(material: Material, network: nn.Module) -> tuple[CurveRow, ...]:
    """Accuracy of the controller at budgets from its least to its most; step = percent of u."""
    atlas, seen = material.atlas, material.seen
    subject = Subject(
        atlas.take(CONTROLLER_VAL),
        material.controller(network),
        seen_in(atlas, seen, CONTROLLER_VAL),
        material.job.reward,
        CONTROLLER_VAL,
    )
    calibration = calibrate(subject.propensities, subject.own.net)
    rows: dict[int, dict[str, float]] = {}
    points = material.job.evaluation.budgets
    for outcomes, _ in budget_curve(subject, calibration, points).values():
        means = dict(zip(METRICS, outcomes.mean(axis=0).tolist(), strict=True))
        step = round(100 * means["utilization"])
        rows[step] = {"val/accuracy_at_utilization": means["accuracy"]}
    return tuple(sorted(rows.items()))


@functools.lru_cache(maxsize=2)
def _opened(
    atlas: str, images: str | None, kind: ObservationKind
) -> tuple[OutcomeAtlas, NDArray[np.float32]]:
    """Mapped once for all trials that a process runs."""
    opened = OutcomeAtlas.open(atlas)
    return opened, observations(opened, images if kind == "image" else None, kind)
