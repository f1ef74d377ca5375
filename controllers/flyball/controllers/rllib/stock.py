"""RLlib's own PPO and DQN on the same environment and network, as baselines.

Their time goes to one Python object per episode, and a bandit's episodes are one step long.
"""

from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from flyball.controllers.learn import LearnConfig
from flyball.controllers.networks import ControllerConfig, standardisation_of
from flyball.controllers.rllib.modules import (
    PolicyModule,
    PolicyValueModule,
    QModule,
    module_spec,
)
from flyball.controllers.rllib.tables import check_plain, has_table, open_table
from flyball.envs import ENVIRONMENT_IDS

__all__ = ["dqn_config", "ppo_config"]

ENVIRONMENTS = 64
VECTORIZE = "vector_entry_point"
DQN_BATCH = 256


def ppo_config(
    env_config: Mapping[str, Any],
    config: LearnConfig,
    controller: ControllerConfig | None = None,
    *,
    epochs: int = 4,
) -> PPOConfig:
    """Stock PPO: an iteration samples what `config` updates on in one, then makes `epochs`.

    Learning rate, batch size, entropy bonus and seed are `config`'s; clipping and KL loss are
    RLlib's defaults. The discount is 0: an episode is one step. The value loss is not cut: Eq. 3
    spans -3.5 to 2.5, and RLlib's default cut of 10 stops the value from following a jump.
    """
    check_plain(env_config)
    samples = config.batch_size * config.updates_per_iteration
    built: PPOConfig = (
        PPOConfig()  # type: ignore[no-untyped-call]
        .environment(ENVIRONMENT_IDS[0], env_config=dict(env_config))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=min(ENVIRONMENTS, samples),
            gym_env_vectorize_mode=VECTORIZE,
        )
        .training(
            lr=config.learning_rate,
            gamma=0.0,
            lambda_=0.0,
            train_batch_size_per_learner=samples,
            minibatch_size=config.batch_size,
            num_epochs=epochs,
            entropy_coeff=config.entropy,
            vf_clip_param=float("inf"),
        )
        .rl_module(rl_module_spec=_spec(PolicyValueModule, env_config, config, controller))
        .debugging(seed=config.seed, log_sys_usage=False)
    )
    return built


def dqn_config(
    env_config: Mapping[str, Any],
    config: LearnConfig,
    controller: ControllerConfig | None = None,
    *,
    updates_per_draw: int = 1,
) -> DQNConfig:
    """Stock DQN: plain Q-learning with a replay buffer, which on one-step episodes is regression.

    Learning rate, exploration and seed are `config`'s. Double, dueling and distributional
    variants are off: without a next state they change nothing. An iteration samples what
    `config` updates on in one.

    Args:
        env_config: keyword arguments of `ThrottleBandit`.
        config: how it learns.
        controller: kind and width of the network.
        updates_per_draw: gradient steps, of 256 samples each, for every 64 samples drawn.
    """
    check_plain(env_config)
    exploration = {
        "exploration": [max(config.epsilon_start, 0.5), config.epsilon_end, config.samples]
    }
    built: DQNConfig = (
        DQNConfig()  # type: ignore[no-untyped-call]
        .environment(ENVIRONMENT_IDS[0], env_config=dict(env_config))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=ENVIRONMENTS,
            rollout_fragment_length=1,
            gym_env_vectorize_mode=VECTORIZE,
        )
        .training(
            lr=config.learning_rate,
            gamma=0.0,
            double_q=False,
            dueling=False,
            num_atoms=1,
            train_batch_size_per_learner=DQN_BATCH,
            training_intensity=updates_per_draw * DQN_BATCH / ENVIRONMENTS,
            num_steps_sampled_before_learning_starts=DQN_BATCH,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 20_000},
        )
        .reporting(
            min_sample_timesteps_per_iteration=config.batch_size * config.updates_per_iteration
        )
        .rl_module(
            rl_module_spec=_spec(QModule, env_config, config, controller, settings=exploration)
        )
        .debugging(seed=config.seed, log_sys_usage=False)
    )
    return built


def _spec(
    module_class: type[PolicyModule],
    env_config: Mapping[str, Any],
    config: LearnConfig,
    controller: ControllerConfig | None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> RLModuleSpec:
    return module_spec(
        module_class,
        controller,
        seed=config.seed,
        standardisation=(
            standardisation_of(open_table(env_config).observations)
            if has_table(env_config)
            else None
        ),
        settings=settings,
    )
