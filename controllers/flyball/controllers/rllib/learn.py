"""`learn_rllib`: from an atlas to a trained network through RLlib; no object of Ray comes out."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from flyball.controllers.learn import LearnConfig, watch_validation
from flyball.controllers.learned import BestByValidation, CurvePoint, Learned
from flyball.controllers.networks import ControllerConfig, build_network, network_macs
from flyball.controllers.rllib.algorithm import ThrottleBanditConfig
from flyball.controllers.rllib.checkpoints import (
    latest_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from flyball.controllers.rllib.stock import dqn_config, ppo_config
from flyball.controllers.rllib.tables import describe_table, open_table
from flyball.datapaths.errors import InvalidSetting, NotFinite
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL
from flyball.envs import ENVIRONMENT_IDS, ObservationKind, Reward, RewardConfig

__all__ = ["Workers", "algorithm_config", "learn_rllib", "load_policy", "local_ray"]

STAGE = "controller"
MOST_RESTARTS = 3
NETWORK = "network."


@dataclass(frozen=True)
class Workers:
    """Where RLlib runs; all in this process by default.

    Several learners cut every batch into equal shares and average their gradients. With the
    all_arm estimator, which draws nothing, they end where one learner would, up to rounding.

    Attributes:
        env_runners: processes that sample ("rllib_runner", "ppo", "dqn"), >= 0.
        learners: processes that compute gradients, >= 0.
        gpus_per_learner: GPUs of each learner, >= 0.
    """

    env_runners: int = 0
    learners: int = 0
    gpus_per_learner: float = 0.0


def learn_rllib(
    atlas_folder: Path | str,
    images_file: Path | str | None = None,
    *,
    observation: ObservationKind,
    controller: ControllerConfig,
    config: LearnConfig,
    split: str = CONTROLLER_TRAIN,
    validation_split: str | None = CONTROLLER_VAL,
    reward: Reward | Mapping[str, Any] | None = None,
    controller_macs: int | None = None,
    checkpoint_folder: Path | str | None = None,
    workers: Workers | None = None,
    report: Report = silent,
) -> Learned:
    """Trains a controller on the outcomes of an atlas through RLlib.

    Ray must be initialised, or is for the time of the call, on this machine alone. PPO and DQN
    stop at the first iteration that has drawn as many samples as `config` says. A lost runner is
    replaced; where a learner is lost, all are started again from the last checkpoint, or from the
    beginning where there is none, up to three times.

    Args:
        atlas_folder: outcomes, on a path that every worker can read.
        images_file: .npy of the images, for image observations.
        observation: what the controller sees, "context" or "image".
        controller: kind and width of the network.
        config: how it learns; `config.algorithm` is one of RLlib's.
        split: rows to learn from.
        validation_split: rows on which the best weights are chosen; None keeps the last.
        reward: what pays; default Eq. 3 as published.
        controller_macs: for the net account; None counts the network's own.
        checkpoint_folder: if given, state is saved there at every look at the validation rows,
            and a run that was interrupted goes on from it: with the same end, but for DQN, whose
            replay buffer is not saved.
        workers: where it runs.
        report: told once an iteration.

    Raises:
        BadInput: an argument does not fit, or a file cannot be used.
        ForeignArtifact: the checkpoints belong to a run with other settings.
        NotFinite: a reward or a loss is NaN or infinite; names the update that made it.
    """
    arms, shape, atlas_fingerprint = describe_table(atlas_folder, images_file, observation)
    network = build_network(controller, shape, arms)
    macs = network_macs(network, shape) if controller_macs is None else controller_macs
    env_config: dict[str, Any] = {
        "atlas": str(Path(atlas_folder).resolve()),
        "observation": observation,
        "split": split,
        "reward": asdict(reward) if isinstance(reward, RewardConfig) else reward,
        "controller_macs": macs,
    }
    if images_file is not None:
        env_config["images"] = str(Path(images_file).resolve())
    built = algorithm_config(env_config, controller, config, workers or Workers())
    validation = open_table({**env_config, "split": validation_split}) if validation_split else None
    plain = {name: value for name, value in env_config.items() if not callable(value)}
    checkpoints = _Checkpoints(
        None if checkpoint_folder is None else Path(checkpoint_folder),
        fingerprint_of(
            atlas_fingerprint, plain, asdict(controller), asdict(config), validation_split
        ),
    )
    with local_ray():
        _check_room(built)
        watch = watch_validation(config, validation)
        restarts = MOST_RESTARTS if built.num_learners else 0
        while True:
            algorithm: Any = built.build_algo()
            try:
                _train(algorithm, network, config, watch, checkpoints, report)
                return watch.learned(load_policy(network, algorithm))
            except RayError:
                # A learner was lost, and the others cannot go on without its gradients.
                if not restarts:
                    raise
                restarts -= 1
                watch = watch_validation(config, validation)
            finally:
                algorithm.stop()


def algorithm_config(
    env_config: Mapping[str, Any],
    controller: ControllerConfig,
    config: LearnConfig,
    workers: Workers,
) -> AlgorithmConfig:
    """RLlib's configuration of a run.

    Raises:
        InvalidSetting: the algorithm is not one of RLlib's.
    """
    if config.algorithm == "plain":
        raise InvalidSetting(
            'learn.algorithm="plain" is torch alone and does not run on RLlib. Call learn_plain, '
            "or set learn.algorithm=rllib_atlas."
        )
    built: AlgorithmConfig
    if config.algorithm == "ppo":
        built = ppo_config(env_config, config, controller)
    elif config.algorithm == "dqn":
        built = dqn_config(env_config, config, controller)
    else:
        is_atlas = config.algorithm == "rllib_atlas"
        built = (
            ThrottleBanditConfig()
            .environment(ENVIRONMENT_IDS[0], env_config=dict(env_config))
            .env_runners(
                num_envs_per_env_runner=1
                if is_atlas
                else -(-config.batch_size // max(1, workers.env_runners))
            )
            .training(
                sampler="atlas" if is_atlas else "runner",
                estimator=config.estimator,
                lr=config.learning_rate,
                train_batch_size_per_learner=-(-config.batch_size // max(1, workers.learners)),
                updates_per_iteration=config.updates_per_iteration,
                max_updates=config.updates,
                entropy_coeff=config.entropy,
                epsilon_start=config.epsilon_start,
                epsilon_end=config.epsilon_end,
                epsilon_timesteps=config.samples,
                optimizer_name=config.optimizer,
                weight_decay=config.weight_decay,
                controller=controller,
            )
            .debugging(seed=config.seed)
        )
    built.learners(num_learners=workers.learners, num_gpus_per_learner=workers.gpus_per_learner)
    # The atlas sampler plays no environment: one stays here for its spaces.
    runners = 0 if config.algorithm == "rllib_atlas" else workers.env_runners
    built.env_runners(num_env_runners=runners)
    return built


def _check_room(built: AlgorithmConfig) -> None:
    """Refuses processes that Ray has no CPUs or GPUs for: RLlib would wait for ever.

    Raises:
        InvalidSetting: there are not enough.
    """
    learners, runners = built.num_learners or 0, built.num_env_runners or 0
    gpus = learners * float(built.num_gpus_per_learner)
    # A learner takes a CPU where it takes no GPU, a runner always.
    cpus = runners + (0 if gpus else learners)
    room: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > room.get(name, 0):
            raise InvalidSetting(
                f"{learners} learners and {runners} env runners need {wanted:g} {name}s, and Ray "
                f"has {room.get(name, 0):g}. Ask for less with --set compute.learners=0 "
                "--set compute.env_runners=0 --set compute.gpus_per_learner=0, or join a larger "
                "cluster with --set compute.ray_address=HOST:6379."
            )


def load_policy(network: nn.Module, algorithm: Any) -> nn.Module:
    """Puts the Learner's present weights into a network of its own shape, and returns that."""
    state = algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
    weights = {
        name.removeprefix(NETWORK): torch.tensor(value)
        for name, value in state.items()
        if name.startswith(NETWORK)
    }
    network.load_state_dict(weights)
    return network


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray for the time of the block: the one that runs, or one on this machine alone.

    `address="local"`, since a bare `ray.init` joins whatever cluster it finds.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing beyond this process joins it
    # RLlib warns at every start that its new API stack is on, which is what we want.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Checkpoints:
    folder: Path | None
    fingerprint: str

    def save(self, algorithm: Algorithm, watch: BestByValidation, updates: int) -> None:
        if self.folder is not None:
            record = watch.state()
            print_of = self.fingerprint
            save_checkpoint(self.folder, algorithm, record, updates=updates, fingerprint=print_of)

    def resume(self, algorithm: Algorithm, watch: BestByValidation) -> None:
        if self.folder is None:
            return
        latest = latest_checkpoint(self.folder, fingerprint=self.fingerprint)
        if latest is not None:
            watch.restore(restore_checkpoint(latest, algorithm))


def _train(
    algorithm: Any,
    network: nn.Module,
    config: LearnConfig,
    watch: BestByValidation,
    checkpoints: _Checkpoints,
    report: Report,
) -> None:
    checkpoints.resume(algorithm, watch)
    while watch.updates < config.updates:
        point = _point(algorithm.train(), config)
        looks = watch.looks
        watch.note(point, lambda: load_policy(network, algorithm))
        if watch.looks > looks:
            checkpoints.save(algorithm, watch, point[0])
        # PPO and DQN make as many updates as an iteration of theirs takes.
        total = max(point[0], config.updates)
        report(Progress(STAGE, point[0], total, values=watch.figures()))


def _point(result: dict[str, Any], config: LearnConfig) -> CurvePoint:
    """The curve's point of one iteration; the entropy of DQN's greedy policy is 0.

    Raises:
        NotFinite: PPO's or DQN's loss is not; the algorithms of our own have raised already.
    """
    updates = int(result["num_env_steps_sampled_lifetime"]) // config.batch_size
    figures = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    runners = result.get("env_runners", {})
    loss = float(figures.get("total_loss", 0.0))
    reward = float(figures.get("reward_mean", runners.get("episode_return_mean", math.nan)))
    if not math.isfinite(loss):
        raise NotFinite(
            f"Losses must be finite; that of {config.algorithm} around update {updates} is {loss}. "
            "Lower learn.learning_rate."
        )
    return updates, reward, float(figures.get("entropy", 0.0))
