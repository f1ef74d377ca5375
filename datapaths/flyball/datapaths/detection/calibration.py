"""Batch-norm statistics of a detector, measured for every arm it will be served at. B batch."""

from collections.abc import Sequence

import numpy as np
import torch

from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.detection.detector import ThrottleableDetector
from flyball.datapaths.splits import PATH_TRAIN

__all__ = ["calibrate_norms"]


def calibrate_norms(
    detector: ThrottleableDetector,
    data: DetectionSet,
    arms: Sequence[float],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batches: int = 16,
    batch_size: int = 8,
    seed: int = 0,
) -> None:
    """Measures the batch-norm statistics of every arm on path_train; weights stay as they are.

    Nothing happens to a detector without batch norm. Statistics are means over the batches.

    Args:
        detector: trained; in evaluation mode afterwards.
        data: images with boxes.
        arms: utilizations that will be served.
        mean, std: of the channels on the [0, 1] scale.
        batches: measured for every arm, >= 1.
        batch_size: B.
        seed: of the batches.
    """
    detector.eval()
    if not detector.norms:
        return
    rows, settings = data.rows(PATH_TRAIN), [detector.components]
    for u in arms:
        if detector.counts_at(u) not in settings:
            settings.append(detector.counts_at(u))
    detector.reserve_settings(settings)
    scale = [torch.tensor(v).reshape(1, -1, 1, 1) for v in (mean, std)]
    momenta = [norm.momentum for norm in detector.norms]
    for counts in settings:
        gates = detector.gates(counts)
        for batch in range(batches):
            chosen = np.random.default_rng([seed, batch]).choice(
                rows, size=min(batch_size, len(rows)), replace=False
            )
            images = torch.from_numpy(np.asarray(data.images[chosen])).float() / 255.0
            for norm in detector.norms:
                norm.train()
                norm.momentum = 1.0 / (batch + 1)
            with torch.no_grad():
                detector.detect((images - scale[0]) / scale[1], gates)
    for norm, momentum in zip(detector.norms, momenta, strict=True):
        norm.momentum = momentum
    detector.eval()
