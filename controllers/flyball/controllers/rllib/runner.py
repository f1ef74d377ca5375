"""The batch EnvRunner: plays a vector environment in columns, without an object per episode.

B environments, K arms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import (
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    RLMODULE_INFERENCE_TIMER,
)

from flyball.controllers.estimators import behaviour, sample_arms
from flyball.datapaths.errors import NotFinite

__all__ = ["BatchEnvRunner", "Drawn", "Samples", "dealt", "draw", "joined_columns"]

Samples = dict[str, NDArray[Any]]
Drawn = tuple[int, Samples | NotFinite, Any]
"""(worker, columns of samples or what stopped them, metrics)."""


class BatchEnvRunner(SingleAgentEnvRunner):
    """Samples in whole batches when `draw` asks; all else is RLlib's own, episode by episode.

    For batches it has no state of its own: what it draws follows from the seed, the worker, and
    how many samples the algorithm has, so a worker that was lost and replaced goes on where it
    should.
    """

    # RLlib declares these as absent until its constructor has run.
    config: Any
    env: Any
    module: Any

    plays_batches = False

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool = True,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> Any:
        if not self.plays_batches or num_timesteps is None:
            return super()._sample(
                num_timesteps=num_timesteps,
                num_episodes=num_episodes,
                explore=explore,
                random_actions=random_actions,
                force_reset=force_reset,
            )
        # Whatever episodes RLlib was playing here are cut off by the resets below.
        self._needs_initial_reset = True
        done = self.num_env_steps_sampled_lifetime
        epsilon = self.config.epsilon_after(done) if explore else 0.0
        seed, generator = self._streams(done)
        env = self.env.unwrapped
        batches = []
        for index in range(-(-num_timesteps // self.num_envs)):
            seen, _ = env.reset(seed=seed if index == 0 else None)
            with self.metrics.log_time(RLMODULE_INFERENCE_TIMER):
                arm, chance = self._choose(seen, epsilon, generator, explore=explore)
            paid = env.step(arm)[1]
            batches.append(
                {
                    Columns.OBS: seen,
                    Columns.ACTIONS: arm,
                    Columns.REWARDS: np.asarray(paid, np.float32),
                    Columns.ACTION_PROB: chance,
                }
            )
        if not batches:
            return {}
        columns = joined_columns(batches)
        self._log_returns(columns[Columns.REWARDS])
        return columns

    def _choose(
        self, seen: Any, epsilon: float, generator: torch.Generator, *, explore: bool
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        observations = torch.from_numpy(np.ascontiguousarray(seen)).to(self._device)
        forward = self.module.forward_inference({Columns.OBS: observations})
        with torch.no_grad():
            policy = torch.softmax(forward[Columns.ACTION_DIST_INPUTS], -1)
            behaved = behaviour(policy, epsilon)
            arm = sample_arms(behaved, generator) if explore else policy.argmax(-1, keepdim=True)
            chance = behaved.gather(1, arm)
        return arm.squeeze(1).cpu().numpy(), chance.squeeze(1).cpu().numpy()

    def _streams(self, done: int) -> tuple[int, torch.Generator]:
        entropy = (
            None
            if self.config.seed is None
            else [int(self.config.seed), int(self.worker_index or 0), int(done)]
        )
        first, second = np.random.SeedSequence(entropy).generate_state(2)
        generator = torch.Generator(device=self._device).manual_seed(int(second))
        return int(first), generator

    def _log_returns(self, rewards: NDArray[Any]) -> None:
        self._increase_sampled_metrics(len(rewards), len(rewards))  # type: ignore[no-untyped-call]
        self.metrics.log_value(EPISODE_RETURN_MEAN, float(rewards.mean()), window=1)
        self.metrics.log_value(EPISODE_RETURN_MIN, float(rewards.min()), reduce="min", window=1)
        self.metrics.log_value(EPISODE_RETURN_MAX, float(rewards.max()), reduce="max", window=1)


def joined_columns(parts: Sequence[Samples]) -> Samples:
    """The samples of all parts, one after another; a single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dealt(columns: Samples, *, learners: int, size: int) -> Samples:
    """Samples in the order in which RLlib's equal cut gives every learner its share of each update.

    RLlib hands the first learner the first of equal parts, and so on; without this the learners'
    first updates together would be made of other samples than one learner's first update.

    Args:
        columns: of the samples, in the order they were drawn.
        learners: how many share an update.
        size: samples of one learner's share.

    Returns:
        The same samples less at most `learners - 1` of the last, so that all shares are equal: a
        learner waits for the gradients of the others, and must make as many.
    """
    if learners == 1:
        return columns
    drawn = len(next(iter(columns.values())))
    kept = drawn - drawn % learners
    whole, left = divmod(kept, learners * size)
    update, place = np.divmod(np.arange(kept), learners * size)
    share = np.where(update < whole, size, max(1, left // learners))
    order = np.argsort(place // share, kind="stable")
    return {name: column[order] for name, column in columns.items()}


def draw(runner: Any, *, count: int, done: int) -> Drawn:
    """Lets one runner sample; called on it by the algorithm, here or on another machine.

    A reward that is not finite comes back as a value: RLlib would log an exception of a remote
    runner, replace the runner and go on.

    Args:
        runner: a `BatchEnvRunner`.
        count: samples to draw, at least.
        done: samples that the algorithm has drawn so far.
    """
    runner.num_env_steps_sampled_lifetime = done
    worker = int(runner.worker_index or 0)
    runner.plays_batches = True
    try:
        columns = runner.sample(num_timesteps=count)
    except NotFinite as error:
        return worker, error, None
    finally:
        runner.plays_batches = False
    return worker, columns, runner.get_metrics()
