"""The informed ceiling: a head that sees what every arm answered, before it chooses, for free.

It estimates how much of the way to the per-sample oracle anybody could know; the rest is luck. It
is an estimate, not a bound: a controller that learned more from the input than the answers show
would pass it. How it compares with the other choices is in `evaluate`.

Axis letters: N samples, K arms, F features, L labels.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.controllers.baselines import best_fixed_arm, outcome_table
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.envs.reward import Reward, reward_of

__all__ = ["InformedHead", "fit_informed_head"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WIDTH = 64
STEPS = 600
STEPS_PER_CHECK = 25
PATIENCE = 6
BATCH = 512
DECAY = 1e-2
MOST_CLASSES = 128


@dataclass(frozen=True, eq=False)
class InformedHead:
    """Predicts which arms are right from the answers and confidences of all of them.

    Attributes:
        network: standardised features (N, F) to K logits of being right; None: it found nothing
            better than the best fixed arm.
        mean: of the features in training, (F,).
        scale: 1 / standard deviation of the features in training, (F,).
        fixed_arm: what it chooses without a network.
        reward: what a choice is paid.
    """

    network: nn.Module | None
    mean: Floats
    scale: Floats
    fixed_arm: int
    reward: Reward

    def choose(self, atlas: OutcomeAtlas) -> Ints:
        """The arm with the largest expected reward on every row; int64 (N,)."""
        if self.network is None:
            return np.full(len(atlas), self.fixed_arm, np.int64)
        features = _standardised(_features(atlas), self.mean, self.scale)
        return _best_paid(self.network, features, *_paid_right_and_wrong(atlas, self.reward))


def fit_informed_head(
    train: OutcomeAtlas, validation: OutcomeAtlas, reward: Reward, *, seed: int
) -> InformedHead:
    """Trains a linear head and a small MLP; keeps the weights that choose best on `validation`.

    Each is checked every `STEPS_PER_CHECK` steps and given up after `PATIENCE` checks in vain.

    Args:
        train: rows to learn on, controller_train's.
        validation: rows to select on, controller_val's.
        reward: what a choice is paid; the choice itself is free.
        seed: of the initial weights and the batches.
    """
    features = _features(train)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = 1.0 / np.where(spread > 1e-6, spread, 1.0)
    table = outcome_table(validation, reward)
    fixed_arm = best_fixed_arm(table)
    head = InformedHead(None, mean, scale, fixed_arm, reward)
    best_paid = float(table.reward[:, fixed_arm].mean())

    inputs = _standardised(features, mean, scale)
    targets = torch.from_numpy(np.array(train.correct, np.float32))
    unseen = _standardised(_features(validation), mean, scale)
    right, wrong = _paid_right_and_wrong(validation, reward)
    rows = np.arange(len(validation))
    generator = torch.Generator().manual_seed(seed)
    for width in (0, WIDTH):
        network = _head(inputs.shape[1], targets.shape[1], width, generator)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=DECAY)
        best_of_width, checks_since = -np.inf, 0
        for step in range(1, STEPS + 1):
            batch = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(
                network(inputs[batch]), targets[batch]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % STEPS_PER_CHECK:
                continue
            paid = float(table.reward[rows, _best_paid(network, unseen, right, wrong)].mean())
            if paid > best_paid:
                best_paid = paid
                head = InformedHead(copy.deepcopy(network), mean, scale, fixed_arm, reward)
            checks_since = 0 if paid > best_of_width else checks_since + 1
            best_of_width = max(best_of_width, paid)
            if checks_since == PATIENCE:
                break
    return head


def _features(atlas: OutcomeAtlas) -> Floats:
    """Confidence, its log odds, who agrees with whom, and the classes answered; (N, F)."""
    confidence = np.clip(np.asarray(atlas.confidence, np.float64), 1e-6, 1.0 - 1e-6)
    answer = np.asarray(atlas.answer)
    first, second = np.triu_indices(answer.shape[1], k=1)
    parts = [confidence, np.log(confidence / (1.0 - confidence))]
    parts.append((answer[:, first] == answer[:, second]).astype(np.float64))
    classes = len(atlas.header.classes)
    if classes <= MOST_CLASSES:
        named = np.arange(classes)
        parts += [(answer[:, [arm]] == named).astype(np.float64) for arm in (0, -1)]
    return np.concatenate(parts, axis=1)


def _standardised(features: Floats, mean: Floats, scale: Floats) -> Tensor:
    return torch.from_numpy(((features - mean) * scale).astype(np.float32))


def _paid_right_and_wrong(atlas: OutcomeAtlas, reward: Reward) -> tuple[Floats, Floats]:
    """What every arm is paid if it is right, and if it is wrong; (N, K) each."""
    ratio = atlas.throttle_ratio()  # nothing but the data path is paid: net equals gross
    right = reward_of(np.ones_like(ratio), atlas.confidence, ratio, reward)
    wrong = reward_of(np.zeros_like(ratio), atlas.confidence, ratio, reward)
    return right.astype(np.float64), wrong.astype(np.float64)


def _best_paid(network: nn.Module, features: Tensor, right: Floats, wrong: Floats) -> Ints:
    with torch.no_grad():
        chance = torch.sigmoid(network(features)).double().numpy()
    chosen: Ints = np.argmax(chance * right + (1.0 - chance) * wrong, axis=1)
    return chosen


def _head(inputs: int, outputs: int, width: int, generator: torch.Generator) -> nn.Sequential:
    if width:
        network = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
    else:
        network = nn.Sequential(nn.Linear(inputs, outputs))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(module.bias)
    return network
