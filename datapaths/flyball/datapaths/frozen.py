"""The frozen data path: a trained throttleable network that is asked, never changed.

Saved as `path.safetensors` and `path.json`; no pickle is read. B batch, K arms, D context features.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import CostModel, executed_macs, linear_macs
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    FrozenPathChanged,
    InvalidSetting,
)
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.gates import (
    checked_utilization,
    independent_components,
    served_components,
)
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig, VggOutput
from flyball.datapaths.weights import load_weights
from flyball.kernels import Active

__all__ = ["Answer", "FrozenDataPath", "PathSpec"]

WEIGHTS_FILE = "path.safetensors"
SPEC_FILE = "path.json"
FORMAT = 1
# A pass always runs chunks of this many rows, the last one padded: libraries pick other
# algorithms for other shapes, so only equal shapes give equal bits.
ROWS = 64


class Answer(NamedTuple):
    """What a data path gives; B samples.

    Attributes:
        output: logits, float32 (B, classes).
        macs: multiply-accumulates executed for each sample, int64 (B,).
    """

    output: Tensor
    macs: Tensor


@dataclass(frozen=True)
class PathSpec:
    """Everything about a frozen data path but its weights.

    Attributes:
        network: structure.
        arms: utilizations it is served at, increasing, in (0, 1].
        classes: names of the classes, in the order of the logits.
        mean, std: of each input channel of the training images, on the [0, 1] scale.
        gate_seed: draws the subsets of independent gating.
        provenance: how it was trained; for people and fingerprints.
    """

    network: VggConfig
    arms: tuple[float, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gate_seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


class FrozenDataPath(nn.Module):
    """T(x, u) with frozen weights (TNN section 3.4, Algorithm 1 line 11).

    Attributes:
        arms: utilizations it is served at.
        classes: names of the classes.
        input_shape: (C, H, W) of an image.
        arm_macs: executed MACs of one sample at every arm.
        full_macs: executed MACs of one sample at u = 1.
        forwards: sample passes asked for so far.
        fingerprint: of specification and weights; the arms are not part of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: ThrottleableVgg, spec: PathSpec) -> None:
        super().__init__()
        self.spec = replace(spec, arms=validated_arms(spec.arms or default_arms()))
        config = spec.network
        if len(spec.classes) != config.classes:
            raise InvalidSetting(
                f"Every logit has a class name: the network tells {config.classes} classes apart, "
                f"{len(spec.classes)} are named. Name them all."
            )
        # Training may leave another memory format, and other formats round differently.
        network.to(memory_format=torch.contiguous_format)
        self.network = network.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(1, -1, 1, 1))
        self.arms = self.spec.arms
        self.classes = spec.classes
        self.input_shape = (config.in_channels, config.image_size, config.image_size)
        self.arm_macs = tuple(self.macs_at(u) for u in self.arms)
        self.full_macs = self.macs_at(1.0)
        self.context_macs = self.arm_macs[0]
        self.forwards = 0
        described = {**asdict(self.spec), "arms": None}
        self.fingerprint = fingerprint_of(described, hash_bytes(self._weights()))
        super().train(False)

    @property
    def context_size(self) -> int:
        """D: the lowest arm's pooled channels, log-probabilities, confidence and entropy."""
        lowest = served_components(self.arms[0], self.spec.network.components)
        channels = self.spec.network.stages[-1][-1]
        return lowest * channels // self.spec.network.components + len(self.classes) + 2

    def forward(self, images: Tensor, u: float | Tensor, *, fixed_shape: bool = True) -> Answer:
        """Answers at a utilization.

        Args:
            images: float32 in [0, 1], (B, C, H, W).
            u: requested utilization in [0, 1]: one for all, or one for each sample, (B,).
            fixed_shape: run equal shapes whatever B is, so that a sample's bits never depend on
                the batch it came in. False runs the batch as it is: fastest for one image.

        Raises:
            DataError: the images have another shape.
            InvalidSetting: u is outside [0, 1] or NaN, or there is not one for each sample.
        """
        self._check_images(images)
        if not isinstance(u, Tensor):
            output = self._run(images, float(u), fixed_shape).logits
            return Answer(output, self._macs_of(float(u), len(images), images.device))
        if u.shape != (len(images),):
            raise InvalidSetting(
                f"u is one number, or one for each of the {len(images)} samples; its shape is "
                f"{tuple(u.shape)}. Give a float or a tensor of shape ({len(images)},)."
            )
        output = torch.zeros(len(images), len(self.classes), device=images.device)
        macs = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for value in sorted(set(u.double().tolist())):
            rows = torch.nonzero(u.double() == value).flatten()
            output[rows] = self._run(images[rows], value, fixed_shape).logits
            macs[rows] = self.macs_at(value)
        return Answer(output, macs)

    def context(self, images: Tensor, *, fixed_shape: bool = True) -> tuple[Tensor, Answer]:
        """Runs the lowest arm: what it saw is the context, what it said is its answer.

        Args:
            images: float32 in [0, 1], (B, C, H, W).
            fixed_shape: as in `forward`.

        Returns:
            float32 (B, D): pooled features of the last convolution, log-probabilities, their
            largest probability, and their entropy in nats; and the lowest arm's answer.
        """
        self._check_images(images)
        run = self._run(images, self.arms[0], fixed_shape)
        log_probabilities = torch.log_softmax(run.logits, dim=1)
        probabilities = log_probabilities.exp()
        entropy = -(probabilities * log_probabilities).sum(dim=1, keepdim=True)
        confidence = probabilities.amax(dim=1, keepdim=True)
        features = torch.cat([run.pooled, log_probabilities, confidence, entropy], dim=1)
        return features, Answer(run.logits, self._macs_of(self.arms[0], len(images), images.device))

    def with_arms(self, arms: Sequence[float]) -> "FrozenDataPath":
        """The same network served at other utilizations.

        Raises:
            InvalidArms: the arms are out of order, repeated, or outside (0, 1].
        """
        return FrozenDataPath(self.network, replace(self.spec, arms=validated_arms(arms)))

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs of one sample at any u, executed or counted as in the paper."""
        count = executed_macs if cost_model == "executed" else linear_macs
        return count(self.network.layer_costs(), self._counts(u), self.network.components)

    def train(self, mode: bool = True) -> Self:
        """Refuses: a frozen data path stays in evaluation mode.

        Raises:
            FrozenPathChanged: `mode` is True.
        """
        if mode:
            raise FrozenPathChanged(
                "A frozen data path cannot be trained: every atlas and controller made from it "
                "would be wrong. Train the network itself with `flyball path`."
            )
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuses gradients.

        Raises:
            FrozenPathChanged: `requires_grad` is True.
        """
        if requires_grad:
            raise FrozenPathChanged(
                "A frozen data path has no gradients. Train the network with `flyball path`."
            )
        return super().requires_grad_(False)

    def save(self, folder: Path | str) -> None:
        """Writes the weights, then the specification that names their bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        weights = self._weights()
        write_tensors(Path(folder) / WEIGHTS_FILE, weights)
        spec = {"format": FORMAT, "fingerprint": self.fingerprint, **asdict(self.spec)}
        write_json(Path(folder) / SPEC_FILE, spec)

    @classmethod
    def load(cls, folder: Path | str) -> "FrozenDataPath":
        """Reads what `save` wrote.

        Raises:
            CorruptArtifact: a file is missing, truncated or altered.
            PickleRefused: a file is a pickle.
            ShapeMismatch: the weights are those of another network.
        """
        folder = Path(folder)
        text = read_json(folder / SPEC_FILE)
        try:
            if text["format"] != FORMAT:
                raise KeyError("format")
            spec = _spec_from_json(text)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifact(
                f"{folder / SPEC_FILE} is not the specification of a data path of format {FORMAT} "
                f"({error}). Delete the folder and run `flyball path` again."
            ) from error
        weights = read_tensors(folder / WEIGHTS_FILE)
        network = ThrottleableVgg(spec.network)
        load_weights(network, weights, where=str(folder / WEIGHTS_FILE))
        path = cls(network, spec)
        if path.fingerprint != text["fingerprint"]:
            raise CorruptArtifact(
                f"The data path in {folder} has fingerprint {path.fingerprint}, its specification "
                f"says {text['fingerprint']}: a file was altered. Run `flyball path` again."
            )
        return path

    def _run(self, images: Tensor, u: float, fixed_shape: bool) -> VggOutput:
        active = self._active(u)
        normalised = (images - self.mean) / self.std
        self.forwards += len(images)
        with torch.inference_mode():
            if not fixed_shape:
                run: VggOutput = self.network.sliced(normalised, active)
                return VggOutput(run.logits.clone(), run.pooled.clone())
            runs = [self._run_rows(c, active) for c in torch.split(normalised, ROWS)]
        if not runs:
            runs = [self._run_rows(normalised, active)]
        return VggOutput(torch.cat([r.logits for r in runs]), torch.cat([r.pooled for r in runs]))

    def _run_rows(self, chunk: Tensor, active: Sequence[Active]) -> VggOutput:
        count = len(chunk)
        if count < ROWS:
            chunk = torch.cat([chunk, chunk.new_zeros(ROWS - count, *chunk.shape[1:])])
        run = self.network.sliced(chunk, active)
        return VggOutput(run.logits[:count], run.pooled[:count])

    def _active(self, u: float) -> list[Active]:
        gating, seed = self.spec.network.gating, self.spec.gate_seed
        counts = self._counts(u)
        if gating == "nested":
            return list(counts)
        drawn = [
            independent_components(count, n, module=module, seed=seed)
            for module, (count, n) in enumerate(zip(counts, self.network.components, strict=True))
        ]
        device = self.network.classifier.weight.device
        return [gate.to(device) if isinstance(gate, Tensor) else gate for gate in drawn]

    def _counts(self, u: float) -> list[int]:
        return [served_components(checked_utilization(u), n) for n in self.network.components]

    def _macs_of(self, u: float, samples: int, device: torch.device) -> Tensor:
        return torch.full((samples,), self.macs_at(u), dtype=torch.int64, device=device)

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: t.detach().cpu().numpy() for name, t in self.network.state_dict().items()}

    def _check_images(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.input_shape or images.ndim != 4:
            raise DataError(
                f"This data path takes images of shape {self.input_shape} (channels, height, "
                f"width); these are {tuple(images.shape[1:])}. "
                f"Resize with --set data.image_size={self.input_shape[1]}, "
                "or train a data path for this size."
            )


def _spec_from_json(text: dict[str, Any]) -> PathSpec:
    network = dict(text["network"])
    network["stages"] = tuple(tuple(stage) for stage in network["stages"])
    return PathSpec(
        network=VggConfig(**network),
        arms=tuple(text["arms"]),
        classes=tuple(text["classes"]),
        mean=tuple(text["mean"]),
        std=tuple(text["std"]),
        gate_seed=int(text["gate_seed"]),
        provenance=dict(text["provenance"]),
    )
