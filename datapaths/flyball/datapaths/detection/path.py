"""The frozen detector: a data path whose answers are boxes; asked, never changed.

Saved as `path.safetensors` and `path.json`, as every data path is. B images, K arms, D detections,
C classes, C' channels of the feature map.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import CostModel
from flyball.datapaths.detection.detection_set import NOTHING, Truth
from flyball.datapaths.detection.detector import (
    DetectorOutput,
    HalfGates,
    ThrottleableDetector,
)
from flyball.datapaths.detection.judging import judge_detections
from flyball.datapaths.detection.spec import DetectorSpec, spec_from_json
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    InvalidSetting,
)
from flyball.datapaths.execution import Packed
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.forwards import counted
from flyball.datapaths.freezing import FrozenModule, grouped, in_chunks, per_channel
from flyball.datapaths.frozen import SPEC_FILE, WEIGHTS_FILE, Answer
from flyball.datapaths.gates import checked_utilization
from flyball.datapaths.tasks import Judgement
from flyball.datapaths.weights import load_weights

__all__ = ["KIND", "DetectorPath"]

KIND = "detector"
FORMAT = 1
# As in `freezing`: a pass always runs this many images, the last ones padded.
ROWS = 4
STRONGEST = 5
"""Detections whose mean score is a feature of the context."""


class DetectorPath(FrozenModule):
    """T(x, u) with frozen weights whose output is boxes.

    Attributes:
        arms: utilizations it is served at.
        objects: names of the kinds of object.
        classes: `objects`, and `NOTHING` after them: what an image or an answer without a box is.
        input_shape: (3, S, S) of an image.
        arm_macs: executed MACs of one image at every arm.
        full_macs: executed MACs of one image at u = 1.
        context_macs: of one image's context: the lowest arm.
        context_size: features of the context.
        forwards: image passes asked for so far.
        fingerprint: of specification and weights; the arms are not part of it.
    """

    what = "detector"
    advice = "Train a ThrottleableDetector with train_detector."
    mean: Tensor
    std: Tensor

    def __init__(self, detector: ThrottleableDetector, spec: DetectorSpec) -> None:
        super().__init__()
        if len(spec.classes) != detector.config.classes:
            raise InvalidSetting(
                f"Every kind of object has a name: the detector tells {detector.config.classes} "
                f"apart, {len(spec.classes)} are named. Name them all."
            )
        if not 0.0 <= spec.score_threshold <= 1.0:
            raise InvalidSetting(
                f"A score is in [0, 1], so is its threshold; it is {spec.score_threshold}. "
                "Set --set detector.score_threshold=0.5."
            )
        self.spec = replace(spec, arms=validated_arms(spec.arms or default_arms()))
        for parameter in detector.parameters():
            parameter.data = parameter.data.contiguous()
        self.detector = detector.requires_grad_(False).eval()
        self.register_buffer("mean", per_channel(spec.mean, detector.input_shape))
        self.register_buffer("std", per_channel(spec.std, detector.input_shape))
        self.arms, self.objects = self.spec.arms, self.spec.classes
        self.classes = (*self.objects, NOTHING)
        self.input_shape = detector.input_shape
        self._gates: dict[tuple[int, ...], HalfGates] = {}
        self.arm_macs = tuple(self.macs_at(u) for u in self.arms)
        self.full_macs = self.macs_at(1.0)
        self.context_macs = self.arm_macs[0]
        self.context_size = detector.channels + len(self.objects) + 5
        self.forwards = 0
        described = {**asdict(self.spec), "arms": None}
        self.fingerprint = fingerprint_of(KIND, described, hash_bytes(self._weights()))
        for u in self.arms:
            detector.gates(detector.counts_at(u))
        super().train(False)

    def forward(self, images: Tensor, u: float | Tensor, *, fixed_shape: bool = True) -> Answer:
        """Detects at a utilization.

        Args:
            images: float32 in [0, 1], (B, 3, S, S).
            u: requested utilization in [0, 1]: one for all, or one for each image, (B,).
            fixed_shape: run equal shapes whatever B is, so that an image's bits never depend on
                the batch it came in. False runs the batch as it is: fastest for one image.

        Returns:
            output: x1, y1, x2, y2 in pixels, score, class of every detection, in falling order
                of score; zeros and class -1 where there are fewer than D; float32 (B, D, 6).
            macs: int64 (B,).

        Raises:
            DataError: the images have another shape.
            InvalidSetting: u is outside [0, 1] or NaN, or there is not one for each image.
        """
        self._check_images(images)
        if not isinstance(u, Tensor):
            output = self._run(images, self._counts(float(u)), fixed_shape).boxes
            return Answer(output, self._macs_of(float(u), images))
        output = images.new_zeros(len(images), self.detector.config.detections, 6)
        macs = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for counts, rows in grouped(u, images, self._counts):
            output[rows] = self._run(images[rows], counts, fixed_shape).boxes
            macs[rows] = self.detector.macs_at(counts)
        return Answer(output, macs)

    def context(self, images: Tensor, *, fixed_shape: bool = True) -> tuple[Tensor, Answer]:
        """Runs the lowest arm: what it saw is the context, what it said is its answer.

        Args:
            images: float32 in [0, 1], (B, 3, S, S).
            fixed_shape: as in `forward`.

        Returns:
            float32 (B, C' + C + 5): pooled channels of the feature map; the highest score of
            every class; the highest score, the mean of the five highest, the sum of all, the
            share of D that is delivered, and the mean area of what was found as a share of the
            image, weighted by score; and the lowest arm's answer.
        """
        self._check_images(images)
        run = self._run(images, self._counts(self.arms[0]), fixed_shape)
        features = torch.cat([run.pooled, self._score_features(run.boxes)], dim=1)
        return features, Answer(run.boxes, self._macs_of(self.arms[0], images))

    def judge(self, output: Tensor, truth: Truth) -> Judgement:
        """F1 of the boxes delivered, image by image; see `judge_detections`."""
        return judge_detections(
            output,
            truth,
            classes=len(self.objects),
            score_threshold=self.spec.score_threshold,
        )

    def with_arms(self, arms: Sequence[float]) -> "DetectorPath":
        """The same detector served at other utilizations.

        Raises:
            InvalidArms: the arms are out of order, repeated, or outside (0, 1].
        """
        return DetectorPath(self.detector, replace(self.spec, arms=validated_arms(arms)))

    def with_threshold(self, score_threshold: float) -> "DetectorPath":
        """The same detector that delivers from another score on; another fingerprint.

        Raises:
            InvalidSetting: it is no score.
        """
        return DetectorPath(self.detector, replace(self.spec, score_threshold=score_threshold))

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs of one image at any u; see `ThrottleableDetector.macs_at` for what counts."""
        return self.detector.macs_at(self._counts(u), cost_model=cost_model)

    def save(self, folder: Path | str) -> None:
        """Writes the weights, then the specification that names their bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_tensors(Path(folder) / WEIGHTS_FILE, self._weights())
        head = {"kind": KIND, "format": FORMAT, "fingerprint": self.fingerprint}
        write_json(Path(folder) / SPEC_FILE, {**head, **asdict(self.spec)})

    @classmethod
    def load(cls, folder: Path | str) -> "DetectorPath":
        """Reads what `save` wrote.

        Raises:
            CorruptArtifact: a file is missing, truncated or altered, or is no detector's.
            PickleRefused: a file is a pickle.
            ShapeMismatch: the weights are those of another detector.
        """
        folder = Path(folder)
        text = read_json(folder / SPEC_FILE)
        try:
            if (text["kind"], text["format"]) != (KIND, FORMAT):
                raise KeyError("kind and format")
            spec = spec_from_json(text)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifact(
                f"{folder / SPEC_FILE} is not the specification of a detector of format {FORMAT} "
                f"({error}). Delete the folder and train the detector again."
            ) from error
        weights = read_tensors(folder / WEIGHTS_FILE)
        detector = ThrottleableDetector(spec.detector)
        detector.reserve_statistics(weights)
        load_weights(detector, weights, where=str(folder / WEIGHTS_FILE))
        path = cls(detector, spec)
        if path.fingerprint != text["fingerprint"]:
            raise CorruptArtifact(
                f"The detector in {folder} has fingerprint {path.fingerprint}, its specification "
                f"says {text['fingerprint']}: a file was altered. Train it again."
            )
        return path

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are the library's own objects; a copy packs its own.
        return {**self.__dict__, "_gates": {}}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Packed weights belong to one device.
        self._gates = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _counts(self, u: float) -> tuple[int, ...]:
        return self.detector.counts_at(checked_utilization(u))

    def _run(self, images: Tensor, counts: tuple[int, ...], fixed_shape: bool) -> DetectorOutput:
        """The detector with so many components of every T-module, its weights packed once."""
        gates = self._gates.get(counts)
        if gates is None:
            gates = self._gates[counts] = self.detector.gates(counts, Packed)
        normalised = (images - self.mean) / self.std
        self.forwards += counted(len(images))
        with torch.inference_mode():
            if not fixed_shape:
                given: Sequence[Tensor] = self.detector.detect(normalised, gates)
            else:
                given = in_chunks(lambda x: self.detector.detect(x, gates), normalised, ROWS)
        # the detector, which can be copied too, does not keep what is packed here
        self.detector.model.roi_heads.box_head.gates = None
        # out of inference mode, so that what is returned is a plain tensor
        return DetectorOutput(*(part.clone() for part in given))

    def _score_features(self, boxes: Tensor) -> Tensor:
        corners, scores, labels = boxes[..., :4], boxes[..., 4], boxes[..., 5]
        own = labels[..., None] == torch.arange(len(self.objects), device=boxes.device)
        by_class = (scores[..., None] * own).amax(dim=1)
        total = scores.sum(dim=1, keepdim=True)
        side = float(self.input_shape[1])
        area = ((corners[..., 2:] - corners[..., :2]) / side).prod(dim=2)
        delivered = (labels >= 0) & (scores >= self.spec.score_threshold)
        return torch.cat(
            [
                by_class,
                scores.amax(dim=1, keepdim=True),
                _mean_of_highest(scores),
                total,
                delivered.float().mean(dim=1, keepdim=True),
                (area * scores).sum(dim=1, keepdim=True) / total.clamp_min(1e-6),
            ],
            dim=1,
        )

    def _macs_of(self, u: float, images: Tensor) -> Tensor:
        return torch.full((len(images),), self.macs_at(u), dtype=torch.int64, device=images.device)

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: t.detach().cpu().numpy() for name, t in self.detector.state_dict().items()}

    def _check_images(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.input_shape:
            raise DataError(
                f"This detector takes images of shape {self.input_shape} (channels, height, "
                f"width); these are {tuple(images.shape[1:])}. "
                f"Resize with --set data.image_size={self.input_shape[1]}, "
                "or train a detector for this size."
            )


def _mean_of_highest(scores: Tensor) -> Tensor:
    """Of the five highest scores, missing ones counted as 0; (B, 1)."""
    return scores[:, :STRONGEST].sum(dim=1, keepdim=True) / STRONGEST
