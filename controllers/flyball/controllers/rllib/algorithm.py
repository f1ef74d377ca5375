"""`ThrottleBandit`: a contextual bandit over arms as an RLlib Algorithm, and its configuration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np
from ray.exceptions import RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.from_config import NotProvided
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from flyball.controllers.estimators import ESTIMATORS, Estimator, epsilon_at
from flyball.controllers.learn import OptimizerName
from flyball.controllers.networks import ControllerConfig
from flyball.controllers.rllib.learners import ROW, UPDATES, AtlasLearner, SampleLearner
from flyball.controllers.rllib.modules import PolicyModule, module_spec
from flyball.controllers.rllib.runner import BatchEnvRunner, dealt, draw, joined_columns
from flyball.controllers.rllib.tables import check_plain, count_rows
from flyball.datapaths.errors import FlyballError, InvalidSetting, NotFinite, unknown_name
from flyball.envs import ENVIRONMENT_IDS, ThrottleBanditVector
from flyball.envs import ThrottleBandit as BanditEnv

__all__ = ["Sampler", "ThrottleBandit", "ThrottleBanditConfig"]

Sampler = Literal["atlas", "runner"]
STATE = "throttle_bandit"
UNSET: Any = NotProvided


class ThrottleBanditConfig(AlgorithmConfig):
    """Configures `ThrottleBandit`.

    ```python
    config = (
        ThrottleBanditConfig()
        .environment("flyball/ThrottleBandit-v0", env_config={"atlas": "runs/.../outcomes"})
        .training(lr=1e-3, estimator="ratio")
    )
    algorithm = config.build_algo()
    ```

    `gamma` and `lambda_` are RLlib's discount and GAE weight, and nothing here uses them: the
    reward's offsets are `gamma1` and `gamma2` of `env_config={"reward": {...}}`.
    """

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or ThrottleBandit)
        self.sampler: Sampler = "atlas"
        self.estimator: Estimator = "ratio"
        self.updates_per_iteration = 16
        self.max_updates: int | None = None
        self.entropy_coeff = 0.1
        self.epsilon_start, self.epsilon_end = 0.3, 0.02
        self.epsilon_timesteps = 200_000
        self.optimizer_name: OptimizerName = "adam"
        self.weight_decay = 0.0
        self.controller: ControllerConfig | None = None
        self.lr = 1e-3
        self.train_batch_size_per_learner = 512
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 512
        self.gym_env_vectorize_mode = "vector_entry_point"
        self.env_runner_cls: Any = BatchEnvRunner
        # A runner that was killed or whose node went away is started again, soon; meanwhile the
        # others draw. RLlib's own patience is 60 s between two restarts.
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 2.0
        # RLlib would replace a gradient that is not finite by zeros and go on; ours stops the
        # run instead, so the check is left out.
        self.torch_skip_nan_gradients = True
        # No connector keeps a state, and no thread is needed to watch the machine.
        self._dont_auto_sync_env_runner_states = True
        self.log_sys_usage = False
        self.evaluation(evaluation_config={"explore": False})

    def environment(self, env: Any = UNSET, **kwargs: Any) -> Self:
        """RLlib's `environment`; takes an id, or Flyball's environment classes themselves."""
        if isinstance(env, type) and issubclass(env, BanditEnv | ThrottleBanditVector):
            env = ENVIRONMENT_IDS[0]
        super().environment(env, **kwargs)
        return self

    def training(
        self,
        *,
        sampler: Sampler = UNSET,
        estimator: Estimator = UNSET,
        updates_per_iteration: int = UNSET,
        max_updates: int | None = UNSET,
        entropy_coeff: float = UNSET,
        epsilon_start: float = UNSET,
        epsilon_end: float = UNSET,
        epsilon_timesteps: int = UNSET,
        optimizer_name: OptimizerName = UNSET,
        weight_decay: float = UNSET,
        controller: ControllerConfig | Mapping[str, Any] | None = UNSET,
        **kwargs: Any,
    ) -> Self:
        """Sets how it learns; all further arguments are RLlib's.

        Args:
            sampler: "atlas", the Learner owns the table of all rewards; "runner", EnvRunners
                play the environment in batches.
            estimator: "ratio", "all_arm" (atlas only) or "paper" (see `estimators`).
            updates_per_iteration: gradient steps of one `train()`, each on
                `train_batch_size_per_learner` samples of every learner. What several learners
                update on is what one would: its batch, cut into equal shares.
            max_updates: after as many gradient steps `train()` does nothing more.
            entropy_coeff: weight of the entropy bonus, >= 0.
            epsilon_start: share of uniform choices at the start, in [0, 1).
            epsilon_end: the same at the end.
            epsilon_timesteps: samples over which it falls, in a straight line.
            optimizer_name: "adam" or "rmsprop".
            weight_decay: decoupled for adam, >= 0.
            controller: kind and width of the network; None chooses the kind by the observation.
        """
        super().training(**kwargs)
        given = {
            "sampler": sampler,
            "estimator": estimator,
            "updates_per_iteration": updates_per_iteration,
            "max_updates": max_updates,
            "entropy_coeff": entropy_coeff,
            "epsilon_start": epsilon_start,
            "epsilon_end": epsilon_end,
            "epsilon_timesteps": epsilon_timesteps,
            "optimizer_name": optimizer_name,
            "weight_decay": weight_decay,
            "controller": controller,
        }
        for name, value in given.items():
            if value is not UNSET:
                setattr(self, name, value)
        if isinstance(self.controller, Mapping):
            self.controller = ControllerConfig(**self.controller)
        return self

    def validate(self) -> None:
        """Checks the whole configuration.

        Raises:
            BadInput: a value of ours breaks its rule.
            ValueError: one of RLlib's does.
        """
        super().validate()
        check_plain(self.env_config)
        for name, known in (
            ("sampler", get_args(Sampler)),
            ("estimator", ESTIMATORS),
            ("optimizer_name", get_args(OptimizerName)),
        ):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        if self.sampler == "runner" and self.estimator == "all_arm":
            raise InvalidSetting(
                'The "all_arm" estimator needs what every arm would have paid, and the runner '
                'sees the chosen arm\'s reward alone. Set estimator="ratio", or sampler="atlas".'
            )
        for name in ("epsilon_start", "epsilon_end"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InvalidSetting(
                    f"{name} is a share of uniform choices in [0, 1); it is "
                    f"{getattr(self, name)!r}. Set it with .training({name}=0.1)."
                )

    def epsilon_after(self, samples: int) -> float:
        """Share of uniform choices once so many samples are drawn."""
        total = self.epsilon_timesteps
        return epsilon_at(samples, total, self.epsilon_start, self.epsilon_end)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The controller's network as a policy."""
        return module_spec(PolicyModule, self.controller, seed=self.seed)

    def get_default_learner_class(self) -> type[AtlasLearner | SampleLearner]:
        """By the way to sample."""
        return AtlasLearner if self.sampler == "atlas" else SampleLearner


class ThrottleBandit(Algorithm):
    """Learns which arm pays in which context, by the gradients of `estimators`."""

    config: ThrottleBanditConfig
    # RLlib declares these as absent until `setup` has run.
    metrics: Any
    env_runner_group: Any
    learner_group: Any

    @classmethod
    def get_default_config(cls) -> ThrottleBanditConfig:
        """The defaults; see `ThrottleBanditConfig`."""
        return ThrottleBanditConfig()

    def setup(self, config: Any) -> None:
        """Builds runners and learners.

        Raises:
            FlyballError: the environment or its table cannot be used.
        """
        self._updates = 0
        self._samples = 0
        self._rows = np.random.default_rng(self.config.seed)
        with _plain_errors():
            self._row_count = (
                count_rows(self.config.env_config) if self.config.sampler == "atlas" else 0
            )
            super().setup(config)

    def training_step(self) -> None:
        """One iteration: up to `updates_per_iteration` gradient steps.

        Raises:
            NotFinite: a reward or a loss is NaN or infinite; names the update that made it.
        """
        wanted = self.config.updates_per_iteration
        if self.config.max_updates is not None:
            wanted = min(wanted, self.config.max_updates - self._updates)
        if wanted < 1:
            return
        count = wanted * self.config.total_train_batch_size
        with _plain_errors():
            if self.config.sampler == "atlas":
                rows = self._rows.integers(self._row_count, size=count)
                self._update({ROW: rows}, count)
                self.metrics.log_value(
                    (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME),
                    count,
                    reduce="lifetime_sum",
                )
            else:
                self._sample_and_update(count)

    def _sample_and_update(self, count: int) -> None:
        """Learns from what the runners that answered in time have drawn, be it nothing."""
        group = self.env_runner_group
        share = -(-count // max(1, group.num_healthy_remote_workers()))
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            drawn = group.foreach_env_runner(
                partial(draw, count=share, done=self._samples),
                local_env_runner=group.num_remote_workers() == 0,
                timeout_seconds=self.config.sample_timeout_s,
            )
        parts = []
        for _, columns, metrics in sorted(drawn, key=lambda answer: answer[0]):
            if isinstance(columns, NotFinite):
                raise NotFinite(f"While sampling for update {self._updates + 1}: {columns}")
            self.metrics.aggregate([metrics], key=ENV_RUNNER_RESULTS)
            if columns:
                parts.append(columns)
        if not parts:
            return
        columns = joined_columns(parts)
        self._update(columns, len(next(iter(columns.values()))))
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def _update(self, columns: dict[str, Any], count: int) -> None:
        learners, size = self.config.num_learners or 1, self.config.train_batch_size_per_learner
        columns = dealt(columns, learners=learners, size=size)
        if not len(next(iter(columns.values()))):
            return
        samples = SampleBatch(columns)  # type: ignore[no-untyped-call]
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: samples}, env_steps=count)
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self._samples, UPDATES: self._updates}
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(batch=batch, timesteps=timesteps)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._samples += count
        self._updates += -(-count // self.config.total_train_batch_size)

    def get_state(self, components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, our counters and the generator of rows."""
        state: dict[str, Any] = super().get_state(components, **kwargs)
        state[STATE] = {
            "updates": self._updates,
            "samples": self._samples,
            "rows": self._rows.bit_generator.state,
        }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state`."""
        super().set_state(state)
        if STATE in state:
            ours = state[STATE]
            self._updates, self._samples = ours["updates"], ours["samples"]
            self._rows.bit_generator.state = ours["rows"]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Lets an error of Flyball that a remote Learner raised arrive as itself."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FlyballError):
            raise type(cause)(str(cause)) from error
        raise
