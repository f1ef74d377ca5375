"""Faster R-CNN on a throttleable body: torchvision's detector, its network gated on both sides.

The body is cut where its feature map has a sixteenth of the image's side (TNN section 4.3, after
ResNet's C4 form): the first half gives the features, the second half classifies every proposal.
One map and two plain halves are also the form that torchvision needs least around it: no pyramid,
whose levels would all have to be filled up to full width. RPN and predictor stay dense.

B images, C' channels of the feature map, S side of the image, P proposals, D detections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from flyball.datapaths.checks import check_rules
from flyball.datapaths.cost import CostModel, executed_macs, linear_macs, measured_macs
from flyball.datapaths.detection.bodies import BodyConfig, make_halves
from flyball.datapaths.detection.detection_set import ImageTruth
from flyball.datapaths.execution import Gates, Sliced
from flyball.datapaths.modules import TNorm
from flyball.datapaths.network import ThrottleableNetwork

__all__ = ["STRIDE", "DetectorConfig", "DetectorOutput", "HalfGates", "ThrottleableDetector"]

STRIDE = 16
"""Pixels of the image to one of the feature map."""


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is made of.

    Attributes:
        body: the network that is cut in two.
        classes: how many kinds of object it tells apart.
        image_size: S, a multiple of 16.
        roi_size: side of the feature map of one proposal, >= 2.
        anchor_sizes: sides of square anchors in pixels; () takes S / 14 doubled four times.
        aspect_ratios: height to width of the anchors.
        proposals: P, that go through the second half for every image, in training and after.
        detections: D, kept of an image at most.
        least_score: detections below it are dropped, in [0, 1).
        overlap: boxes of one class that overlap more than this are one detection, in (0, 1).

    Raises:
        InvalidSetting: a value breaks its rule.
    """

    body: BodyConfig = field(default_factory=BodyConfig)
    classes: int = 1
    image_size: int = 224
    roi_size: int = 7
    anchor_sizes: tuple[float, ...] = ()
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = 64
    detections: int = 50
    least_score: float = 0.05
    overlap: float = 0.5

    def __post_init__(self) -> None:
        rules = [
            ("classes", self.classes >= 1, "at least 1"),
            (
                "image_size",
                self.image_size >= 2 * STRIDE and self.image_size % STRIDE == 0,
                f"a multiple of {STRIDE}, at least {2 * STRIDE}",
            ),
            ("roi_size", self.roi_size >= 2, "at least 2"),
            ("anchor_sizes", all(size > 0 for size in self.anchor_sizes), "above 0"),
            (
                "aspect_ratios",
                bool(self.aspect_ratios) and all(ratio > 0 for ratio in self.aspect_ratios),
                "one or more numbers above 0",
            ),
            ("proposals", self.proposals >= 1, "at least 1"),
            ("detections", self.detections >= 1, "at least 1"),
            ("least_score", 0.0 <= self.least_score < 1.0, "in [0, 1)"),
            ("overlap", 0.0 < self.overlap < 1.0, "in (0, 1)"),
        ]
        check_rules(self, "detector", rules)

    @property
    def anchors(self) -> tuple[float, ...]:
        """Sides of square anchors in pixels."""
        return self.anchor_sizes or tuple(self.image_size / 14 * 2**power for power in range(4))


class DetectorOutput(NamedTuple):
    """What a pass gives.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels, score, class of every detection in falling order of
            score; where there are fewer than D, zeros with class -1; float32 (B, D, 6).
        pooled: mean over pixels of the feature map's channels, float32 (B, C').
    """

    boxes: Tensor
    pooled: Tensor


class HalfGates(NamedTuple):
    """The gates of the two halves for one pass."""

    features: Gates
    classifier: Gates


class ThrottleableDetector(nn.Module):
    """T(x, u) that gives boxes; u gates both halves of its body.

    Args:
        config: what it is made of.
        weights: of the body as torchvision names them; the rest is drawn. None draws all.

    Attributes:
        config: what it is made of.
        features: first half: images to a feature map.
        classifier: second half: a proposal's features to a vector.
        model: torchvision's detector around them.
        channels: C', of the feature map when everything is on.
        components: n of every T-module, those of the first half first.
        input_shape: (3, S, S).
    """

    def __init__(self, config: DetectorConfig, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config = config
        self.input_shape = (3, config.image_size, config.image_size)
        self.features, self.classifier, channels, width = make_halves(
            config.body, config.image_size, config.roi_size, weights
        )
        self.channels = channels
        self.components = (*self.features.components, *self.classifier.components)
        self._second_half = _SecondHalf(self.classifier)
        self.model = FasterRCNN(
            _Channels(channels),
            box_predictor=FastRCNNPredictor(width, config.classes + 1),
            box_head=self._second_half,
            box_roi_pool=MultiScaleRoIAlign(["0"], config.roi_size, sampling_ratio=2),
            rpn_anchor_generator=AnchorGenerator((config.anchors,), (config.aspect_ratios,)),
            rpn_pre_nms_top_n_train=8 * config.proposals,
            rpn_pre_nms_top_n_test=8 * config.proposals,
            rpn_post_nms_top_n_train=config.proposals,
            rpn_post_nms_top_n_test=config.proposals,
            rpn_batch_size_per_image=4 * config.proposals,
            box_batch_size_per_image=config.proposals,
            box_score_thresh=config.least_score,
            box_nms_thresh=config.overlap,
            box_detections_per_img=config.detections,
        )
        side = config.image_size // STRIDE
        self._costs = (self.features.layer_costs(), self.classifier.layer_costs())
        self._dense_macs = measured_macs(
            lambda: self._dense_part(torch.zeros(1, channels, side, side), width)
        )

    def counts_at(self, u: float) -> tuple[int, ...]:
        """How many components of every T-module serve a requested u."""
        return (*self.features.counts_at(u), *self.classifier.counts_at(u))

    def sampled_counts(self, u: float) -> tuple[int, ...]:
        """How many train under a sampled u."""
        return (*self.features.sampled_counts(u), *self.classifier.sampled_counts(u))

    def gates(
        self, counts: Sequence[int], how: Callable[..., Sliced] = Sliced, *, calibrated: bool = True
    ) -> HalfGates:
        """The gates that switch on the first so many components of every T-module.

        Args:
            counts: of every T-module.
            how: `Sliced`, or `Packed` where the weights no longer change.
            calibrated: take the batch-norm statistics of these counts; else the network's own.

        Raises:
            InvalidSetting: the statistics of these counts were never calibrated.
        """
        cut = len(self.features.components)
        parts = ((self.features, counts[:cut]), (self.classifier, counts[cut:]))
        rows = [half.statistics_of(own) if calibrated else None for half, own in parts]
        first, second = (how(own, row) for (_, own), row in zip(parts, rows, strict=True))
        return HalfGates(first, second)

    @property
    def norms(self) -> tuple[TNorm, ...]:
        """Batch norms of both halves, whose statistics hold for one setting of the gates each."""
        return (*self.features.norms, *self.classifier.norms)

    def reserve_settings(self, settings: Sequence[Sequence[int]]) -> None:
        """Makes a row of batch-norm statistics for each setting; the first is the whole network."""
        cut = len(self.features.components)
        for half, part in ((self.features, slice(None, cut)), (self.classifier, slice(cut, None))):
            own: list[tuple[int, ...]] = []
            for counts in settings:
                if tuple(counts[part]) not in own:
                    own.append(tuple(counts[part]))
            half.reserve_statistics(own)

    def reserve_statistics(self, weights: Mapping[str, np.ndarray]) -> None:
        """Makes room for the batch-norm statistics that saved weights hold."""
        for name, half in (("features", self.features), ("classifier", self.classifier)):
            if f"{name}.calibrated" in weights:
                half.reserve_statistics(weights[f"{name}.calibrated"].tolist())

    def detect(self, x: Tensor, gates: HalfGates) -> DetectorOutput:
        """One pass in evaluation mode.

        Exactly P proposals of each image go through the second half, so that a pass costs the same
        for every image: places left over hold empty boxes, which never become detections.

        Args:
            x: normalised images, (B, 3, S, S).
            gates: of both halves.
        """
        features, pooled = self._feature_map(x, gates)
        listed = ImageList(x, [(x.shape[2], x.shape[3])] * len(x))
        proposals, _ = self.model.rpn(listed, features)
        filled = [F.pad(own, (0, 0, 0, self.config.proposals - len(own))) for own in proposals]
        self._second_half.gates = gates.classifier
        found, _ = self.model.roi_heads(features, filled, listed.image_sizes)
        boxes = x.new_zeros(len(x), self.config.detections, 6)
        boxes[..., 5] = -1.0
        for row, own in enumerate(found):
            scores, labels = own["scores"][:, None], own["labels"][:, None] - 1
            boxes[row, : len(scores)] = torch.cat([own["boxes"], scores, labels], dim=1)
        return DetectorOutput(boxes, pooled)

    def losses(
        self, x: Tensor, truths: Sequence[ImageTruth], gates: HalfGates
    ) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN in training mode; difficult boxes are background.

        The proposals that train are drawn from torch's global generator.

        Args:
            x: normalised images, (B, 3, S, S).
            truths: boxes of each image.
            gates: of both halves.
        """
        features, _ = self._feature_map(x, gates)
        listed = ImageList(x, [(x.shape[2], x.shape[3])] * len(x))
        targets = [_target(truth, x.device) for truth in truths]
        proposals, first = self.model.rpn(listed, features, targets)
        self._second_half.gates = gates.classifier
        _, second = self.model.roi_heads(features, proposals, listed.image_sizes, targets)
        return {**first, **second}

    def macs_at(self, counts: Sequence[int], *, cost_model: CostModel = "executed") -> int:
        """MACs of one image: both halves exactly, RPN and predictor as torch counts them.

        The second half and the predictor count P times, for P proposals. Convolutions and matrix
        products count; pooling, anchors, sorting and non-maximum suppression do not.
        """
        count = executed_macs if cost_model == "executed" else linear_macs
        cut = len(self.features.components)
        first, second = count(self._costs[0], counts[:cut]), count(self._costs[1], counts[cut:])
        return first + self.config.proposals * second + self._dense_macs

    def _feature_map(self, x: Tensor, gates: HalfGates) -> tuple[dict[str, Tensor], Tensor]:
        run = self.features.run(x, gates.features)
        return {"0": run.logits}, run.logits.mean(dim=(2, 3))

    def _dense_part(self, feature_map: Tensor, width: int) -> None:
        with torch.no_grad():
            self.model.rpn.head([feature_map])
            self.model.roi_heads.box_predictor(torch.zeros(self.config.proposals, width))


class _Channels(nn.Module):
    """Stands for the first half, which is run before torchvision's parts; says how wide it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


class _SecondHalf(nn.Module):
    """The second half as torchvision calls it; its gates are set before every pass."""

    def __init__(self, network: ThrottleableNetwork) -> None:
        super().__init__()
        # kept outside the module tree: the detector holds it already
        self._network = (network,)
        self.gates: Gates | None = None

    def forward(self, proposals: Tensor) -> Tensor:
        """(P, C', r, r) to (P, width)."""
        assert self.gates is not None
        return self._network[0].run(proposals, self.gates).logits


def _target(truth: ImageTruth, device: torch.device) -> dict[str, Tensor]:
    kept = ~truth.is_difficult
    boxes = torch.from_numpy(truth.boxes[kept].copy()).to(device)
    labels = torch.from_numpy(truth.classes[kept] + 1).to(device)
    return {"boxes": boxes.reshape(-1, 4).float(), "labels": labels}
