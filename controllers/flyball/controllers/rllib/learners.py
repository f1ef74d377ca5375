"""The Learners: where RLlib computes gradients, from a table of their own or from samples.

B batch, K arms, N rows of the table.
"""

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from flyball.controllers.estimators import entropy_of, paper_loss, ratio_loss
from flyball.controllers.learn import bandit_loss, make_optimizer
from flyball.controllers.learned import UpdateLog
from flyball.controllers.networks import fit_standardisation
from flyball.controllers.rllib.tables import has_table, open_table

__all__ = ["ROW", "UPDATES", "AtlasLearner", "BanditLearner", "SampleLearner"]

UPDATES = "throttle_updates"
ROW = "row"
ALL_REWARDS = "all_rewards"
STATE = "throttle_bandit"
LEARNER_STRIDE = 1_000_003


class BanditLearner(TorchLearner):
    """What both ways to sample share: optimizer, exploration schedule, figures and state.

    One call of `update` makes many gradient steps: the whole batch comes at once and is cut here,
    so RLlib's own work is paid once an iteration.
    """

    # RLlib declares these as absent until `build` has run.
    config: Any
    _module: Any
    _device: Any

    def build(self) -> None:
        """Builds the module and fits its standardisation where an atlas is at hand."""
        super().build()
        self._log = UpdateLog()
        self._epsilon = 0.0
        self._generator = torch.Generator(device=self._device)
        seed = self.config.seed
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(int(seed) + LEARNER_STRIDE * self._learner_index)
        if has_table(self.config.env_config):
            self._take_table()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers the optimizer that the configuration names, under RLlib's schedule."""
        parameters: Any = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=make_optimizer(
                parameters,
                config.optimizer_name,
                learning_rate=1e-3,
                weight_decay=config.weight_decay,
            ),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Sets the share of uniform choices for the coming updates."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._epsilon = self.config.epsilon_after(timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Logs the iteration's figures.

        Raises:
            NotFinite: a reward or a loss of the iteration is not; names its update.
        """
        super().after_gradient_based_update(timesteps=timesteps)
        made = len(self._log)
        _, reward, entropy = self._log.finish(timesteps[UPDATES] + made)
        figures = {"reward_mean": reward, "entropy": entropy, "epsilon": self._epsilon}
        self.metrics.log_dict(figures, key=DEFAULT_MODULE_ID, window=1)

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        columns = batch[DEFAULT_MODULE_ID]
        names = list(columns.keys())
        size = self.config.train_batch_size_per_learner
        result = None
        for parts in zip(*(torch.split(columns[name], size) for name in names), strict=True):
            part = self._complete(dict(zip(names, parts, strict=True)))
            result = super()._update({DEFAULT_MODULE_ID: part}, **kwargs)
        return result

    def get_state(self, components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the generator's."""
        state: dict[str, Any] = super().get_state(components, **kwargs)
        if components is None:
            state[STATE] = self._generator.get_state().cpu().numpy()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state`; learners other than the first draw a stream of their own."""
        super().set_state(state)
        if STATE not in state:
            return
        if self._learner_index == 0:
            self._generator.set_state(torch.from_numpy(state[STATE].copy()))
        elif self.config.seed is not None:
            stream = self._learner_index + LEARNER_STRIDE * self._weights_seq_no
            self._generator.manual_seed(int(self.config.seed) + LEARNER_STRIDE * stream)

    def _complete(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        return part

    def _take_table(self) -> None:
        table = open_table(self.config.env_config)
        fit_standardisation(self._module[DEFAULT_MODULE_ID].unwrapped(), table.observations)


class AtlasLearner(BanditLearner):
    """Owns observations and reward table on its device; a batch is a vector of rows.

    Arms are drawn from the training forward itself: one forward an update, no environment, and no
    pass through the data path.
    """

    def _take_table(self) -> None:
        table = open_table(self.config.env_config)
        fit_standardisation(self._module[DEFAULT_MODULE_ID].unwrapped(), table.observations)
        self._observations, self._rewards = table.tensors(self._device)

    def _complete(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = part[ROW]
        return {Columns.OBS: self._observations[rows], ALL_REWARDS: self._rewards[rows]}

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The estimator's loss on rows whose every reward is known."""
        loss, reward, entropy = bandit_loss(
            fwd_out[Columns.ACTION_DIST_INPUTS],
            batch[ALL_REWARDS],
            config.estimator,
            epsilon=self._epsilon,
            entropy_weight=config.entropy_coeff,
            generator=self._generator,
        )
        self._log.add(loss, reward, entropy)
        return loss


class SampleLearner(BanditLearner):
    """Learns from what an environment paid for the arms that were chosen."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The estimator's loss on one batch of samples."""
        log_policy = torch.log_softmax(fwd_out[Columns.ACTION_DIST_INPUTS], -1)
        arm = batch[Columns.ACTIONS].view(-1, 1)
        reward = batch[Columns.REWARDS].view(-1, 1)
        if config.estimator == "ratio":
            chance = batch[Columns.ACTION_PROB].view(-1, 1)
            loss = ratio_loss(log_policy, arm, chance, reward, epsilon=self._epsilon)
        else:
            loss = paper_loss(log_policy, arm, reward)
        entropy = entropy_of(log_policy.exp(), log_policy)
        loss = loss - float(config.entropy_coeff) * entropy
        self._log.add(loss, reward.mean(), entropy.detach())
        return loss
