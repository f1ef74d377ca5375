"""The controllers' networks as RLlib modules: one policy, and what PPO and DQN add to it.

B batch, K arms.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import (
    InferenceOnlyAPI,
    QNetAPI,
    TargetNetworkAPI,
    ValueFunctionAPI,
)
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from flyball.controllers.estimators import epsilon_at
from flyball.controllers.networks import ControllerConfig, NetworkKind, Standardise, build_network

__all__ = ["PolicyModule", "PolicyValueModule", "QModule", "module_spec"]

QF_PREDS = "qf_preds"
QF_TARGET_NEXT_PREDS = "qf_target_next_preds"


class PolicyModule(TorchRLModule):
    """A controller's network; its logits are the inputs of RLlib's categorical distribution.

    `model_config` holds plain values (see `module_spec`).
    """

    network: nn.Module
    # RLlib declares these as absent until its constructor has run.
    model_config: Any
    observation_space: Any
    action_space: Any

    def setup(self) -> None:
        """Builds the network from the spaces and `model_config`."""
        self.network = self._build(int(self.action_space.n), stream=0)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.network(batch[Columns.OBS])}

    def _build(self, outputs: int, *, stream: int) -> nn.Module:
        shape = self.observation_space.shape
        settings = self.model_config.get("controller")
        kinds: dict[int, NetworkKind] = {1: "context_head", 3: "image_cnn", 4: "clip_cnn"}
        inferred = ControllerConfig(kind=kinds[len(shape)])
        config = inferred if settings is None else ControllerConfig(**settings)
        seed = self.model_config.get("seed")
        generator = None if seed is None else torch.Generator().manual_seed(int(seed) + stream)
        network = build_network(config, shape, outputs, generator=generator)
        if self.model_config.get("mean") is not None:
            for module in network.modules():
                if isinstance(module, Standardise):
                    module.assign(self.model_config["mean"], self.model_config["scale"])
        return network


class PolicyValueModule(PolicyModule, ValueFunctionAPI):
    """The policy with a second network of the same kind for the value: what stock PPO needs."""

    value: nn.Module

    def setup(self) -> None:
        """Builds both networks."""
        super().setup()
        self.value = self._build(1, stream=1)

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Expected reward of each observation; (B,)."""
        values: Tensor = self.value(batch[Columns.OBS])
        return values.squeeze(-1)


class QModule(PolicyModule, QNetAPI, TargetNetworkAPI, InferenceOnlyAPI):
    """The same network read as action values, with its target copy: what stock DQN needs.

    For `double_q=False`, `dueling=False` and `num_atoms=1`. Explores epsilon-greedily.
    """

    _target: nn.Module

    def make_target_networks(self) -> None:
        """Copies the network; RLlib keeps the copy up to date."""
        self._target = make_target_network(self.network)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(main, target), for RLlib's updates of the target."""
        return [(self.network, self._target)]

    def get_non_inference_attributes(self) -> list[str]:
        """What a sampling copy of the module goes without."""
        return ["_target"]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Action values of the target network; (B, K)."""
        return {QF_PREDS: self._target(batch[Columns.OBS])}

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Action values; (B, K)."""
        return {QF_PREDS: self.network(batch[Columns.OBS])}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {Columns.ACTIONS: self.network(batch[Columns.OBS]).argmax(-1)}

    def _forward_exploration(
        self, batch: dict[str, Any], t: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        start, end, total = self.model_config["exploration"]
        epsilon = epsilon_at(t or 0, total, start, end)
        with torch.no_grad():
            values = self.network(batch[Columns.OBS])
            count, arms = values.shape
            drawn = torch.randint(arms, (count,), device=values.device)
            explores = torch.rand(count, device=values.device) < epsilon
            return {Columns.ACTIONS: torch.where(explores, drawn, values.argmax(-1))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {
            QF_PREDS: self.network(batch[Columns.OBS]),
            QF_TARGET_NEXT_PREDS: self._target(batch[Columns.NEXT_OBS]),
        }


def module_spec(
    module_class: type[PolicyModule],
    controller: ControllerConfig | None,
    *,
    seed: int | None,
    standardisation: tuple[Any, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RLModuleSpec:
    """What RLlib builds a module from, in plain values.

    Args:
        module_class: one of this file's.
        controller: kind and width; None chooses the kind by the observation's axes.
        seed: of the weights; None draws them from torch's global generator.
        standardisation: mean and scale of the input (see `networks.standardisation_of`).
        settings: further entries of `model_config`.
    """
    mean, scale = standardisation or (None, None)
    return RLModuleSpec(
        module_class=module_class,
        model_config={
            "controller": None if controller is None else asdict(controller),
            "seed": seed,
            "mean": None if mean is None else mean.ravel().tolist(),
            "scale": None if scale is None else scale.ravel().tolist(),
            **(settings or {}),
        },
    )
