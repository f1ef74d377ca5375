"""P context heads of one shape as one tensor: their passes, the slope of their loss, their steps.

What they learn from and what is kept of it lives in `population`.

Axis letters: P points, B batch, K arms, M weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flyball.controllers.estimators import Estimator, behaviour
from flyball.controllers.learn import LearnConfig

__all__ = ["StackedHeads", "optimizer_of", "slope_of_logits"]

# torch's own defaults of AdamW and RMSprop, which `learn.make_optimizer` uses.
_BETA1, _BETA2, _ALPHA, _TINY = 0.9, 0.999, 0.99, 1e-8


class StackedHeads:
    """The weights of P networks as one tensor (P, M), and their passes forward and backward."""

    def __init__(self, networks: Sequence[nn.Sequential], device: torch.device | str) -> None:
        flat = [nn.utils.parameters_to_vector(network.parameters()) for network in networks]
        self.weights = torch.stack(flat).detach().to(device)
        self.slopes = torch.zeros_like(self.weights)
        linear = [module for module in networks[0] if isinstance(module, nn.Linear)]
        self._shapes = [(module.out_features, module.in_features) for module in linear]
        self._layers, self._layer_slopes = self._views(self.weights), self._views(self.slopes)

    def column(self, values: Sequence[float]) -> Tensor:
        """One number a point, float32 (P, 1)."""
        return torch.tensor(values, dtype=torch.float32, device=self.weights.device)[:, None]

    def forward(self, seen: Tensor) -> list[Tensor]:
        """The input of every layer, (P, B, ...), and the logits (P, B, K) behind them."""
        passed = [seen]
        for matrix, bias in self._layers:
            if len(passed) > 1:
                passed[-1].relu_()
            passed.append(torch.baddbmm(bias[:, None], passed[-1], matrix.mT))
        return passed

    def backward(self, inputs: Sequence[Tensor], slope: Tensor) -> Tensor:
        """Slopes of the loss by every weight, (P, M), from those by the logits."""
        layers = list(zip(inputs, self._layers, self._layer_slopes, strict=True))
        for place, (given, (matrix, _), (by_matrix, by_bias)) in reversed([*enumerate(layers)]):
            by_matrix.copy_(torch.bmm(slope.mT, given))
            torch.sum(slope, 1, out=by_bias)
            if place:
                # Behind a ReLU the sign is 1 where it let through, and 0 elsewhere.
                slope = torch.bmm(slope, matrix).mul_(given.sign())
        return self.slopes

    def into(self, network: nn.Sequential, weights: Tensor) -> nn.Sequential:
        """Puts one point's weights (M,) into its network."""
        nn.utils.vector_to_parameters(weights.cpu().clone(), network.parameters())
        return network.eval()

    def _views(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        views, start = [], 0
        for outputs, inputs in self._shapes:
            middle, end = start + outputs * inputs, start + outputs * (inputs + 1)
            views.append((flat[:, start:middle].view(-1, outputs, inputs), flat[:, middle:end]))
            start = end
        return views


def slope_of_logits(
    logits: Tensor,
    rewards: Tensor,
    estimator: Estimator,
    *,
    epsilon: Tensor,
    entropy_weight: Tensor,
    uniform: Tensor,
) -> tuple[Tensor, Tensor]:
    """The slope of `learn.bandit_loss` by the logits of every point, written out.

    With pi the policy, w the entropy weight and c = w log pi - (what is charged), the slope of
    sum_k pi_k c_k by logit k is pi_k (c_k - sum_j pi_j c_j): the constant that differentiating
    log pi adds cancels.

    Args:
        logits: (P, B, K).
        rewards: what every arm pays; (P, B, K).
        estimator: which gradient; see `estimators`.
        epsilon: share of uniform choices of every point, (P, 1, 1).
        entropy_weight: (P, 1, 1).
        uniform: in [0, 1), what the arms are drawn by; (P, B, 1), not used by "all_arm".

    Returns:
        The slope (P, B, K); and loss, mean reward and mean entropy of every point, (3, P).
    """
    batch = logits.shape[1]
    # Written out: on a CPU torch's own log_softmax is slow over few arms.
    centred = logits - logits.amax(-1, keepdim=True)
    policy = centred.exp()
    total = policy.sum(-1, keepdim=True)
    log_policy, policy = centred - total.log(), policy / total
    entropy = -(policy * log_policy).sum(-1, keepdim=True)
    weight = entropy_weight[..., 0]
    if estimator == "all_arm":
        paid = (policy * rewards).sum(-1, keepdim=True)
        worth = torch.addcmul(rewards, entropy_weight, log_policy, value=-1.0)
        value = torch.addcmul(paid, entropy_weight, entropy)
        slope = policy * (value - worth) / batch
        reward = paid.mean(1)
        loss = -value.mean(1)
    else:
        behaved = behaviour(policy, epsilon)
        arm = _drawn_arms(behaved, uniform)
        paid, chosen = rewards.gather(2, arm), log_policy.gather(2, arm)
        reward = paid.mean(1)
        push = paid
        if estimator == "ratio":
            share = torch.minimum(chosen.exp() / behaved.gather(2, arm), 1.0 / (1.0 - epsilon))
            push = share * (paid - reward[:, None])
        slope = policy * (push + entropy_weight * (log_policy + entropy))
        slope.scatter_add_(2, arm, -push)
        slope /= batch
        loss = -(chosen * push).mean(1) - weight * entropy.mean(1)
    return slope, torch.stack([loss[:, 0], reward[:, 0], entropy.mean(1)[:, 0]])


def optimizer_of(heads: StackedHeads, configs: Sequence[LearnConfig]) -> Callable[[Tensor], None]:
    """A step of every point by its own learning rate: AdamW, or RMSprop as torch has them.

    Gives a function that takes slopes (P, M) and changes the weights.
    """
    rate = heads.column([config.learning_rate for config in configs])
    decay = heads.column([config.weight_decay for config in configs])
    decays = any(config.weight_decay for config in configs)
    first, second = torch.zeros_like(heads.weights), torch.zeros_like(heads.weights)
    made = 0

    def adam(slopes: Tensor) -> None:
        nonlocal made
        made += 1
        if decays:
            heads.weights.mul_(1.0 - rate * decay)
        first.lerp_(slopes, 1.0 - _BETA1)
        second.mul_(_BETA2).addcmul_(slopes, slopes, value=1.0 - _BETA2)
        spread = second.sqrt().div_((1.0 - _BETA2**made) ** 0.5).add_(_TINY)
        heads.weights.sub_((first / spread).mul_(rate / (1.0 - _BETA1**made)))

    def rmsprop(slopes: Tensor) -> None:
        if decays:
            slopes = slopes + decay * heads.weights
        second.mul_(_ALPHA).addcmul_(slopes, slopes, value=1.0 - _ALPHA)
        heads.weights.sub_((slopes / second.sqrt().add_(_TINY)).mul_(rate))

    return adam if configs[0].optimizer == "adam" else rmsprop


def _drawn_arms(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One arm of each row by inverse distribution, as `estimators.sample_arms`; (P, B, 1)."""
    cumulated = probabilities.cumsum(-1)
    reached = torch.searchsorted(cumulated, uniform * cumulated[..., -1:], right=True)
    return reached.clamp_(max=probabilities.shape[-1] - 1)
