"""Ray Tune: searches, schedulers, and what trials report, passed on to a listener.

What a sweep has done lies in its points' own files. Tune's folder is kept for what those do not
hold: the state of Optuna's sampler and of the scheduler that ends points early.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import (
    Callback,
    CheckpointConfig,
    FailureConfig,
    PlacementGroupFactory,
    RunConfig,
    TuneConfig,
    Tuner,
)
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from flyball.datapaths.errors import BadInput, FlyballError, StorageError
from flyball.platform.job import ComputeConfig
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.interruption import Interruption
from flyball.platform.sweep.points import Point
from flyball.platform.sweep.space import Dimension
from flyball.platform.sweep.task import POINTS, TASK, TrialTask, points_of
from flyball.platform.sweep.told import PERCENT, SCORE
from flyball.platform.sweep.trial import train_trial

__all__ = ["Listener", "lacking_resources", "run_trials"]

NAME = "tune"
GRACE_PERCENT = 12  # of a run, before a point can be ended early
REDUCTION = 3  # a third of the points passes each rung: at 12 % and 36 % of their updates


class Listener(Protocol):
    """Hears in the driver what happens to the points; what it raises ends the sweep."""

    def started(self, point: Point) -> None:
        """A trial has begun with this point."""

    def looked(self, key: str, updates: int, figures: dict[str, float]) -> None:
        """A point was measured on its way."""

    def finished(self, key: str) -> None:
        """A point's result is written."""

    def failed(self, key: str, kind: str, message: str) -> None:
        """A point cannot be trained."""

    def ended_early(self, point: Point, percent: float, score: float) -> None:
        """The scheduler ended a point."""

    def repeated(self, points: Sequence[Point], reason: str) -> None:
        """A trial's process died; it is begun again."""


def lacking_resources(config: SweepConfig, compute: ComputeConfig) -> str:
    """Why trials would wait for nodes that are not there, and what to do; "" where they fit.

    Ray must be initialised. What other jobs hold is not asked: it comes free.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in alive]
    bundles = _bundles(config, compute)
    for name, option in (("CPU", "--cpus-per-trial"), ("GPU", "--gpus-per-trial")):
        there = [float(node.get(name, 0.0)) for node in nodes]
        asked = [float(bundle.get(name, 0.0)) for bundle in bundles]
        most = max(there, default=0.0)
        if asked[0] > most:
            return (
                f"A trial asks for {asked[0]:g} {name}s, and the largest of Ray's {len(nodes)} "
                f"nodes has {most:g}. Give {option} {most:g} or less."
            )
        if max(asked) > most or sum(asked) > sum(there):
            return (
                f"A trial with {compute.env_runners} env runners and {compute.learners} learners "
                f"asks for {sum(asked):g} {name}s; Ray's {len(nodes)} nodes have {sum(there):g}, "
                f"the largest of them {most:g}. Take fewer with --set compute.env_runners=0 and "
                "--set compute.learners=0, or a smaller compute.gpus_per_learner."
            )
    return ""


def run_trials(
    task: TrialTask,
    config: SweepConfig,
    groups: Sequence[Sequence[Point]],
    listener: Listener,
    *,
    resume: bool,
) -> None:
    """Runs all trials; returns once every one has ended. Ray is initialised.

    Args:
        task: what is the same for all.
        config: how to search.
        groups: the points of each trial; of an Optuna search none: it proposes them.
        listener: hears of every point.
        resume: go on with Tune's own state where the search or the scheduler has one.

    Raises:
        KeyboardInterrupt: the user or SIGTERM ended the sweep.
        StorageError: Tune cannot write its folder.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # the listener is told
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints though told to be silent
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with Interruption() as interruption, _heard_by(listener, interruption) as hearing:
        tuner = _tuner(task, config, groups, resume=resume)
        try:
            with warnings.catch_warnings():
                # A trial that is begun again reports its first look again.
                warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
                tuner.fit()
        except (OSError, TuneError) as error:
            # Tune wraps what a callback raises, and keeps its text alone.
            if hearing.error is not None:
                raise hearing.error from None
            if isinstance(error, TuneError) and "No space left" not in str(error):
                raise
            raise StorageError(
                f"Cannot write {SweepFolder.at(task.folder).tune}: {str(error).splitlines()[0]}. "
                "Free some space, then run the same command with --resume."
            ) from error
    if interruption.was_asked:
        raise KeyboardInterrupt


def _tuner(
    task: TrialTask, config: SweepConfig, groups: Sequence[Sequence[Point]], *, resume: bool
) -> Tuner:
    trainable = tune.with_resources(
        train_trial, PlacementGroupFactory(_bundles(config, task.base.compute))
    )
    folder = SweepFolder.at(task.folder)
    space = {TASK: task} | _space(config, groups)
    has_state = config.search == "optuna" or config.asha
    # Tune takes a point that failed, or whose folder was deleted since, for done.
    is_open = not folder.outcome_file.exists()
    if resume and has_state and is_open and Tuner.can_restore(str(folder.tune)):
        try:
            return Tuner.restore(
                str(folder.tune),
                trainable,
                resume_unfinished=True,
                restart_errored=True,
                param_space=space,  # Tune keeps only placeholders of what is no plain value
            )
        except Exception as error:  # what a kill left of Tune's files can fail in any way
            logging.getLogger(__name__).warning("Tune's state is of no use: %s", error)
    shutil.rmtree(folder.tune, ignore_errors=True)
    ended = len({*folder.results(), *folder.stopped()})
    return Tuner(
        trainable,
        param_space=space,
        tune_config=TuneConfig(
            num_samples=config.points - ended if config.search == "optuna" else 1,
            search_alg=_optuna(config, folder) if config.search == "optuna" else None,
            scheduler=_asha() if config.asha else None,
            max_concurrent_trials=config.concurrent,
            reuse_actors=True,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=RunConfig(
            name=NAME,
            storage_path=task.folder,
            verbose=0,
            callbacks=[_Forward()],
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(),
        ),
    )


def _space(config: SweepConfig, groups: Sequence[Sequence[Point]]) -> dict[str, Any]:
    if config.search == "optuna":
        return {dimension.field: _domain(dimension) for dimension in config.space.dimensions}
    return {POINTS: tune.grid_search([tuple(p.settings for p in group) for group in groups])}


def _domain(dimension: Dimension) -> Any:
    if dimension.kind == "values":
        return tune.choice(list(dimension.values))
    if dimension.kind == "randint":
        return tune.randint(int(dimension.low), int(dimension.high) + 1)
    domain = tune.uniform if dimension.kind == "uniform" else tune.loguniform
    return domain(dimension.low, dimension.high)


def _optuna(config: SweepConfig, folder: SweepFolder) -> OptunaSearch:
    """Maximises the gain over the static mixture: points pay differently, but all gain alike.

    The seed moves on with what is finished: a search that starts anew must not propose the same.
    """
    logging.getLogger("optuna").setLevel(logging.ERROR)
    done = len(folder.results())
    return OptunaSearch(metric=SCORE, mode="max", seed=config.seed + done)


def _asha() -> ASHAScheduler:
    """Compares points at equal shares of their updates, by their gain on controller_val so far.

    No rung lies at the end: the last report of a point comes after it is saved.
    """
    return ASHAScheduler(
        time_attr=PERCENT,
        metric=SCORE,
        mode="max",
        max_t=101,
        grace_period=GRACE_PERCENT,
        reduction_factor=REDUCTION,
    )


def _bundles(config: SweepConfig, compute: ComputeConfig) -> list[dict[str, float]]:
    """What a trial asks for: itself, its env runners, its learners."""
    own = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    learner = {"CPU": 1.0, "GPU": compute.gpus_per_learner}
    more = [{"CPU": 1.0}] * compute.env_runners + [learner] * compute.learners
    return [{name: share for name, share in bundle.items() if share} for bundle in (own, *more)]


def _trial_name(trial: Trial) -> str:
    return str(trial.trial_id)


class _Hearing:
    """Who hears what Tune says, and the error with which they ended the sweep."""

    def __init__(self, listener: Listener, interruption: Interruption) -> None:
        self._listener, self.interruption = listener, interruption
        self.error: FlyballError | None = None

    @contextmanager
    def told(self) -> Iterator[Listener]:
        try:
            yield self._listener
        except FlyballError as error:
            self.error = error
            raise


_heard: list[_Hearing] = []


@contextmanager
def _heard_by(listener: Listener, interruption: Interruption) -> Iterator[_Hearing]:
    """Tune pickles its callbacks and gives back copies: they find the listener here."""
    _heard.append(_Hearing(listener, interruption))
    try:
        yield _heard[-1]
    finally:
        _heard.pop()


class _Forward(Callback):
    """Passes on what Tune says, in the sweep's own words."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        _heard[-1].interruption.repeat()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        with _heard[-1].told() as listener:
            for point in _points(trial):
                listener.started(point)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        with _heard[-1].told() as listener:
            for key, updates, figures in result.get("looks", ()):
                listener.looked(key, updates, figures)
            for key in result.get("finished", ()):
                listener.finished(key)
            for key, (kind, message) in result.get("failed", {}).items():
                listener.failed(key or _trial_name(trial), kind, message)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        last = trial.last_result or {}
        if last.get(PERCENT, 100.0) < 100.0 and not last.get("failed"):
            with _heard[-1].told() as listener:
                for point in _points(trial):
                    listener.ended_early(point, float(last[PERCENT]), float(last[SCORE]))

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        with _heard[-1].told() as listener:
            listener.repeated(_points(trial), _reason(trial))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        with _heard[-1].told() as listener:
            for point in _points(trial):
                listener.failed(point.key, "gave up", _reason(trial))


def _points(trial: Trial) -> tuple[Point, ...]:
    """Its points; none where Optuna proposed values that make no job, which the trial reports."""
    try:
        return points_of(trial.config)
    except BadInput:
        return ()


def _reason(trial: Trial) -> str:
    """Why a trial's process ended, in a line; Tune appends every failure to a file of its own."""
    file = Path(trial.error_file) if trial.error_file else None
    text = file.read_text(errors="replace") if file is not None and file.exists() else ""
    last = text.rpartition("Failure # ")[2].partition("\n")[2]
    if "node has died" in last or "node died" in last:
        return "its node died"
    if "unavailable" in last:
        return "its node did not answer"
    if "actor died" in last or "actor is dead" in last:
        return "its process died"
    lines = last.strip().splitlines()
    return lines[-1][:200] if lines else "unknown"
