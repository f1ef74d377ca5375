"""The RLlib algorithm itself: equal to plain torch, repeatable, resumable, and it stops at NaN."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from flyball.controllers.learn import LearnConfig, learn_plain
from flyball.controllers.networks import ControllerConfig, build_network
from flyball.controllers.rllib import ThrottleBandit, ThrottleBanditConfig
from flyball.controllers.rllib.learn import load_policy
from flyball.controllers.rllib.tables import open_table
from flyball.datapaths.errors import InvalidSetting, NotFinite, UnknownName
from flyball.envs import ThrottleBandit as BanditEnv
from flyball.envs import ThrottleBanditVector

pytestmark = pytest.mark.usefixtures("small_ray")
ARMS = 5
POLICY = "default_policy"


@pytest.fixture(scope="module")
def outcomes(identity_folder: Callable[[int], Path]) -> str:
    return str(identity_folder(ARMS))


def config_for(outcomes: str, **training: Any) -> ThrottleBanditConfig:
    return (
        ThrottleBanditConfig()
        .environment("flyball/ThrottleBandit-v0", env_config={"atlas": outcomes})
        .env_runners(num_envs_per_env_runner=64)
        .training(**{"train_batch_size_per_learner": 64, "updates_per_iteration": 4} | training)
        .debugging(seed=3)
    )


@contextmanager
def running(config: ThrottleBanditConfig) -> Iterator[Any]:
    algorithm: Any = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def figures_of(result: dict[str, Any]) -> tuple[float, float]:
    figures = result["learners"][POLICY]
    return float(figures["reward_mean"]), float(figures["entropy"])


def weights_of(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    weights: dict[str, np.ndarray[Any, Any]] = algorithm.learner_group.get_weights()[POLICY]
    return {name: np.array(value) for name, value in weights.items()}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("estimator", ["ratio", "all_arm", "paper"])
def test_the_atlas_sampler_makes_the_plain_learners_updates_bit_for_bit(
    outcomes: str, estimator: Any
) -> None:
    plain = LearnConfig(
        estimator=estimator, batch_size=64, updates=10, updates_per_iteration=4, seed=3
    )
    table = open_table({"atlas": outcomes})
    generator = torch.Generator().manual_seed(3)
    network = build_network(ControllerConfig(), (ARMS,), ARMS, generator=generator)
    learned = learn_plain(table, network, plain)
    built = config_for(
        outcomes, estimator=estimator, epsilon_timesteps=plain.samples, max_updates=10
    )
    with running(built) as algorithm:
        points = [figures_of(algorithm.train()) for _ in range(3)]
        ours = load_policy(network, algorithm).state_dict()
    assert points == [(reward, entropy) for _, reward, entropy in learned.curve]
    assert_same({n: w.numpy() for n, w in ours.items()}, _arrays(learned.network))


@pytest.mark.parametrize("sampler", ["atlas", "runner"])
def test_one_seed_gives_the_same_figures_and_weights(outcomes: str, sampler: str) -> None:
    def run() -> tuple[list[tuple[float, float]], dict[str, Any]]:
        with running(config_for(outcomes, sampler=sampler)) as algorithm:
            return [figures_of(algorithm.train()) for _ in range(3)], weights_of(algorithm)

    (first, weights), (second, others) = run(), run()
    assert first == second
    assert_same(weights, others)


@pytest.mark.parametrize("sampler", ["atlas", "runner"])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(
    outcomes: str, sampler: str, tmp_path: Path
) -> None:
    with running(config_for(outcomes, sampler=sampler)) as algorithm:
        algorithm.train()
        algorithm.save_to_path(str(tmp_path))
        undisturbed = [figures_of(algorithm.train()) for _ in range(2)]
        weights = weights_of(algorithm)
        samples = algorithm.train()["num_env_steps_sampled_lifetime"]
    with running(config_for(outcomes, sampler=sampler)) as restored:
        restored.restore_from_path(str(tmp_path))
        assert [figures_of(restored.train()) for _ in range(2)] == undisturbed
        assert_same(weights, weights_of(restored))
        assert restored.train()["num_env_steps_sampled_lifetime"] == samples == 4 * 256


def test_a_checkpoint_alone_rebuilds_the_algorithm(outcomes: str, tmp_path: Path) -> None:
    with running(config_for(outcomes)) as algorithm:
        algorithm.train()
        algorithm.save_to_path(str(tmp_path))
        weights = weights_of(algorithm)
    restored: Any = ThrottleBandit.from_checkpoint(str(tmp_path))
    try:
        assert_same(weights, weights_of(restored))
    finally:
        restored.stop()


@pytest.mark.parametrize("env", [BanditEnv, ThrottleBanditVector, "flyball/ThrottleBandit-v0"])
def test_the_environment_may_be_named_or_given(outcomes: str, env: Any) -> None:
    config = ThrottleBanditConfig().environment(env, env_config={"atlas": outcomes})
    with running(config.training(train_batch_size_per_learner=8)) as algorithm:
        assert algorithm.train()["num_env_steps_sampled_lifetime"] == 8 * 16


def test_the_batch_runner_plays_any_vector_environment(outcomes: str) -> None:
    config = config_for(outcomes, sampler="runner").env_runners(
        gym_env_vectorize_mode=gymnasium.VectorizeMode.SYNC, num_envs_per_env_runner=4
    )
    with running(config.training(train_batch_size_per_learner=8)) as algorithm:
        assert algorithm.train()["num_env_steps_sampled_lifetime"] == 8 * 4


def test_rllibs_own_evaluation_plays_the_greedy_policy(outcomes: str) -> None:
    config = config_for(outcomes, sampler="runner", lr=3e-3).evaluation(
        evaluation_duration=20, evaluation_interval=None
    )
    with running(config.env_runners(num_envs_per_env_runner=16)) as algorithm:
        for _ in range(20):
            algorithm.train()
        returns = algorithm.evaluate()["env_runners"]
    table = open_table({"atlas": outcomes})
    assert returns["num_episodes"] >= 20
    assert table.rewards.max(1).min() <= returns["episode_return_mean"] <= table.rewards.max()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(outcomes: str) -> None:
    with (
        running(config_for(outcomes, lr=1e30)) as algorithm,
        pytest.raises(NotFinite, match=r"the (loss|mean reward) of update [23] is"),
    ):
        algorithm.train()


# Ray copies its own deprecated data settings to the Learner's process.
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray.data.context")
def test_the_error_of_a_remote_learner_arrives_as_itself(outcomes: str) -> None:
    config = config_for(outcomes, lr=1e30).learners(num_learners=1)
    with (
        running(config) as algorithm,
        pytest.raises(NotFinite, match=r"the (loss|mean reward) of update [23] is"),
    ):
        algorithm.train()


def _breaks(correct: Any, confidence: Any, throttle_ratio: Any) -> Any:
    return np.where(throttle_ratio > 0.9, np.nan, 0.0)


def test_a_reward_that_is_not_finite_stops_the_build_and_names_row_and_arm(outcomes: str) -> None:
    config = config_for(outcomes).environment(env_config={"atlas": outcomes, "reward": _breaks})
    with pytest.raises(NotFinite, match="arm 4"):
        config.build_algo()


def test_lost_runners_leave_a_partial_batch_or_none_and_the_run_goes_on(outcomes: str) -> None:
    import ray

    config = (
        config_for(outcomes, sampler="runner", train_batch_size_per_learner=64)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=32)
        .fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True)
    )
    with running(config) as algorithm:
        group = algorithm.env_runner_group
        whole = algorithm.train()["num_env_steps_sampled_lifetime"]
        manager = group._worker_manager
        ray.kill(manager.actors()[1])
        part = algorithm.train()["num_env_steps_sampled_lifetime"]
        ray.kill(manager.actors()[2])
        weights = weights_of(algorithm)
        none = algorithm.train()["num_env_steps_sampled_lifetime"]
        assert_same(weights, weights_of(algorithm))
    assert whole == 256
    assert part - whole == 128
    assert none == part


def test_an_env_config_holds_paths_and_plain_values_only(outcomes: str) -> None:
    config = config_for(outcomes).environment(
        env_config={"atlas": outcomes, "images": np.zeros((2, 1, 8, 8), np.uint8)}
    )
    with pytest.raises(InvalidSetting, match=r"'images' is a ndarray\. Save it"):
        config.validate()


def test_settings_that_cannot_work_are_refused(outcomes: str) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'runner'"):
        config_for(outcomes, sampler="runer").validate()
    with pytest.raises(InvalidSetting, match="chosen arm's reward alone"):
        config_for(outcomes, sampler="runner", estimator="all_arm").validate()
    with pytest.raises(InvalidSetting, match=r"epsilon_start is a share .* in \[0, 1\); it is 1.5"):
        config_for(outcomes, epsilon_start=1.5).validate()
    live = config_for(outcomes).environment(env_config={"path": "somewhere"})
    with pytest.raises(InvalidSetting, match='set sampler="runner" to play live'):
        live.build_algo()


def _arrays(network: torch.nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in network.state_dict().items()}
