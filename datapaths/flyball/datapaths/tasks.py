"""What "right" means: a task judges the data path's output against the truth."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Judgement", "judge"]


class Judgement(NamedTuple):
    """What one pass answered; B samples.

    Attributes:
        answer: class index, int64 (B,).
        correct: 1.0 where the answer is the label, float32 (B,).
        confidence: largest softmax probability, in [0, 1], float32 (B,).
    """

    answer: Tensor
    correct: Tensor
    confidence: Tensor


def judge(output: Tensor, labels: Tensor) -> Judgement:
    """Top-1 classification.

    Args:
        output: logits, (B, classes).
        labels: true class indices, (B,).
    """
    confidence, answer = torch.softmax(output.float(), dim=1).max(dim=1)
    return Judgement(answer, (answer == labels).float(), confidence)
