"""A trial: what one of Tune's processes does with a point, or with a batch of them.

Only paths and plain values come in, and only plain values are reported. What a trial makes lies in
the sweep's folder, so one that was killed goes on where it was, on whatever node.
"""

import time
from collections.abc import Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from flyball.controllers.learned import Learned
from flyball.controllers.population import learn_population
from flyball.datapaths.errors import FlyballError
from flyball.datapaths.forwards import forwards_here
from flyball.datapaths.progress import Progress
from flyball.platform.controller_learning import bandit_tables, learn_controller
from flyball.platform.nodes import check_code
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.looks import best_network, updates_saved
from flyball.platform.sweep.material import Material, finish_point
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.result import PointResult
from flyball.platform.sweep.task import TASK, TrialTask, points_of
from flyball.platform.sweep.told import Told

__all__ = ["train_trial"]


def train_trial(config: dict[str, Any]) -> None:
    """Trains the points of a trial that are not finished yet, and reports what Tune must know.

    A point that cannot be trained is reported as failed, and costs the others nothing.
    """
    # The bits of a sum depend on how many threads share it; so do not the figures of a sweep.
    torch.set_num_threads(1)
    task: TrialTask = config[TASK]
    told = Told(task)
    try:
        check_code(task.code)
        points = points_of(config)
    except FlyballError as error:
        told.failed("", error)
        return
    folder = SweepFolder.at(task.folder)
    waiting: set[str] = set()
    try:
        with ExitStack() as held:
            for point in sorted(points, key=lambda point: point.key):
                held.enter_context(folder.point_locked(point.key))
            for point in points:
                if folder.result_file(point.key).exists():
                    told.finished(PointResult.load(folder.result_file(point.key)))
                else:
                    waiting.add(point.key)
            if waiting and len(points) > 1:
                _train_together(points, waiting, task, folder, told)
            elif waiting:
                _train_alone(points[0], task, folder, told)
    except FlyballError as error:
        for key in sorted(waiting) or [""]:
            told.failed(key, error)
    told.flush()


def _train_alone(point: Point, task: TrialTask, folder: SweepFolder, told: Told) -> None:
    start, before, job = time.monotonic(), forwards_here(), point.job(task.base)
    starts = folder.note_start(point.key)
    material = Material.of(job, task, folder)
    checkpoint = folder.checkpoint(point.key)
    told.begin(updates_saved(checkpoint))

    def report(progress: Progress) -> None:
        gain = None
        if told.is_due(job.learn, progress) and task.measures_looks:
            network = best_network(checkpoint, job, material.seen, len(material.atlas.arms))
            gain = None if network is None else material.gain(network)
        told.look(point.key, job.learn, progress, gain)

    learned = learn_controller(
        job,
        material.atlas,
        material.folder,
        material.seen,
        images_file=None if task.images is None else Path(task.images),
        checkpoint_folder=checkpoint,
        gpus=task.gpus,
        report=report,
    )
    seconds = time.monotonic() - start
    forwards = forwards_here() - before
    told.finished(
        finish_point(
            point, material, learned, folder, seconds=seconds, forwards=forwards, starts=starts
        )
    )


def _train_together(
    points: Sequence[Point], waiting: Set[str], task: TrialTask, folder: SweepFolder, told: Told
) -> None:
    """All points as one batch; they differ in what a population may differ in (see `grouping`).

    Where a kill came between two results the batch is learned whole again, and only what waits is
    kept: the bits of a batched product may depend on what else is in the batch.
    """
    start, before = time.monotonic(), forwards_here()
    jobs = [point.job(task.base) for point in points]
    starts = [folder.note_start(p.key) if p.key in waiting else 0 for p in points]
    whole = [Material.of(job, task, folder) for job in jobs]
    tables = [
        bandit_tables(job, part.atlas, part.seen) for job, part in zip(jobs, whole, strict=True)
    ]

    def report(progress: Progress) -> None:
        if told.is_due(jobs[0].learn, progress):
            told.look(points[0].key, jobs[0].learn, progress, None, is_mean=True)

    told.begin(0)
    outcomes = learn_population(
        [train for train, _ in tables],
        jobs[0].controller,
        [job.learn for job in jobs],
        validation=[validation for _, validation in tables],
        device="cuda" if task.gpus else "cpu",
        report=report,
    )
    seconds = (time.monotonic() - start) / len(waiting)
    forwards = forwards_here() - before
    for point, part, outcome, count in zip(points, whole, outcomes, starts, strict=True):
        if point.key not in waiting:
            continue
        with told.failing(point.key):
            if not isinstance(outcome, Learned):
                raise outcome
            told.finished(
                finish_point(
                    point, part, outcome, folder, seconds=seconds, forwards=forwards, starts=count
                )
            )
            forwards = 0
