"""The frozen data path: a trained throttleable network that is asked, never changed.

Saved as `path.safetensors` and `path.json`; no pickle is read. B batch, K arms, D context features.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import CostModel, executed_macs, linear_macs
from flyball.datapaths.errors import (
    CorruptArtifact,
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
from flyball.datapaths.freezing import (
    FrozenModule,
    check_inputs,
    check_scale,
    context_features,
    grouped,
    in_chunks,
    per_channel,
    rows_in_a_chunk,
)
from flyball.datapaths.gates import checked_utilization, independent_components
from flyball.datapaths.network import NetworkOutput, ThrottleableNetwork
from flyball.datapaths.networks import config_from_json, config_to_json, make_network
from flyball.datapaths.tasks import Judgement, judge
from flyball.datapaths.weights import load_weights
from flyball.kernels import Active

__all__ = ["Answer", "FrozenDataPath", "PathSpec"]

WEIGHTS_FILE = "path.safetensors"
SPEC_FILE = "path.json"
FORMAT = 2


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
        network: structure; a configuration that `networks` knows.
        arms: utilizations it is served at, increasing, in (0, 1].
        classes: names of the classes, in the order of the logits.
        mean, std: of each input channel of the training images, on the [0, 1] scale.
        gate_seed: draws the subsets of independent gating.
        provenance: how it was trained; for people and fingerprints.
    """

    network: Any
    arms: tuple[float, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gate_seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


class FrozenDataPath(FrozenModule):
    """T(x, u) with frozen weights (TNN section 3.4, Algorithm 1 line 11).

    Attributes:
        arms: utilizations it is served at.
        classes: names of the classes.
        input_shape: (C, H, W) of an image, or (C, T, H, W) of a clip.
        arm_macs: executed MACs of one sample at every arm.
        full_macs: executed MACs of one sample at u = 1.
        forwards: sample passes asked for so far.
        fingerprint: of specification and weights; the arms are not part of it.
    """

    what = "data path"
    advice = "Train the network itself with `flyball path`."
    mean: Tensor
    std: Tensor

    def __init__(self, network: ThrottleableNetwork, spec: PathSpec) -> None:
        super().__init__()
        self.spec = replace(spec, arms=validated_arms(spec.arms or default_arms()))
        if len(spec.classes) != network.classes:
            raise InvalidSetting(
                f"Every logit has a class name: the network tells {network.classes} classes "
                f"apart, {len(spec.classes)} are named. Name them all."
            )
        check_scale(spec.mean, spec.std, network.input_shape[0])
        for u in self.spec.arms:
            network.statistics_of(network.counts_at(u))
        # Training may leave another memory format, and other formats round differently.
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        self.network = network.requires_grad_(False).eval()
        self.input_shape = tuple(network.input_shape)
        self.register_buffer("mean", per_channel(spec.mean, self.input_shape))
        self.register_buffer("std", per_channel(spec.std, self.input_shape))
        self.arms = self.spec.arms
        self.classes = spec.classes
        self._layers = network.layer_costs()
        self._macs: dict[tuple[tuple[int, ...], CostModel], int] = {}
        self._executions: dict[tuple[int, ...], Packed] = {}
        self._rows = rows_in_a_chunk(self.input_shape)
        self.arm_macs = tuple(self.macs_at(u) for u in self.arms)
        self.full_macs = self.macs_at(1.0)
        self.context_macs = self.arm_macs[0]
        self.forwards = 0
        described = {**self._described(), "arms": None}
        self.fingerprint = fingerprint_of(described, hash_bytes(self._weights()))
        super().train(False)

    @property
    def context_size(self) -> int:
        """D: the lowest arm's pooled channels, log-probabilities, confidence and entropy."""
        lowest = self.network.pooled_channels(self._active(self._counts(self.arms[0])))
        return lowest + len(self.classes) + 2

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
        check_inputs(images, self.input_shape)
        if not isinstance(u, Tensor):
            output = self._run(images, self._counts(float(u)), fixed_shape).logits
            return Answer(output, self._macs_of(float(u), len(images), images.device))
        output = torch.zeros(len(images), len(self.classes), device=images.device)
        macs = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for counts, rows in grouped(u, images, self._counts):
            output[rows] = self._run(images[rows], counts, fixed_shape).logits
            macs[rows] = self._macs_with(counts, "executed")
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
        check_inputs(images, self.input_shape)
        run = self._run(images, self._counts(self.arms[0]), fixed_shape)
        answer = Answer(run.logits, self._macs_of(self.arms[0], len(images), images.device))
        return context_features(run.pooled, run.logits), answer

    def with_arms(self, arms: Sequence[float]) -> "FrozenDataPath":
        """The same network served at other utilizations.

        Raises:
            InvalidArms: the arms are out of order, repeated, or outside (0, 1].
        """
        return FrozenDataPath(self.network, replace(self.spec, arms=validated_arms(arms)))

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs of one sample at any u, executed or counted as in the paper."""
        return self._macs_with(self._counts(u), cost_model)

    def judge(self, output: Tensor, truth: Tensor) -> Judgement:
        """Whether an output is right; see `tasks.judge`."""
        return judge(output, truth)

    def save(self, folder: Path | str) -> None:
        """Writes the weights, then the specification that names their bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        weights = self._weights()
        write_tensors(Path(folder) / WEIGHTS_FILE, weights)
        spec = {"format": FORMAT, "fingerprint": self.fingerprint, **self._described()}
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
        network = make_network(spec.network)
        load_weights(network, weights, where=str(folder / WEIGHTS_FILE))
        path = cls(network, spec)
        if path.fingerprint != text["fingerprint"]:
            raise CorruptArtifact(
                f"The data path in {folder} has fingerprint {path.fingerprint}, its specification "
                f"says {text['fingerprint']}: a file was altered. Run `flyball path` again."
            )
        return path

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are the library's own objects; a copy packs its own.
        return {**self.__dict__, "_executions": {}}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Packed weights belong to one device.
        self._executions = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _run(self, images: Tensor, counts: tuple[int, ...], fixed_shape: bool) -> NetworkOutput:
        """The network with so many components of every T-module, its weights packed once."""
        if counts not in self._executions:
            self._executions[counts] = Packed(
                self._active(counts), self.network.statistics_of(counts)
            )
        gates = self._executions[counts]
        normalised = (images - self.mean) / self.std
        self.forwards += counted(len(images))
        with torch.inference_mode():
            if not fixed_shape:
                run = self.network.run(normalised, gates)
                return NetworkOutput(run.logits.clone(), run.pooled.clone())
            given = in_chunks(lambda x: self.network.run(x, gates), normalised, self._rows)
        return NetworkOutput(*given)

    def _counts(self, u: float) -> tuple[int, ...]:
        return tuple(self.network.counts_at(checked_utilization(u)))

    def _active(self, counts: tuple[int, ...]) -> list[Active]:
        if self.network.gating == "nested":
            return list(counts)
        pairs = enumerate(zip(counts, self.network.components, strict=True))
        return [
            independent_components(count, n, module=module, seed=self.spec.gate_seed)
            for module, (count, n) in pairs
        ]

    def _macs_with(self, counts: tuple[int, ...], cost_model: CostModel) -> int:
        if (counts, cost_model) not in self._macs:
            count = executed_macs if cost_model == "executed" else linear_macs
            self._macs[counts, cost_model] = count(self._layers, self._active(counts))
        return self._macs[counts, cost_model]

    def _macs_of(self, u: float, samples: int, device: torch.device) -> Tensor:
        return torch.full((samples,), self.macs_at(u), dtype=torch.int64, device=device)

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: t.detach().cpu().numpy() for name, t in self.network.state_dict().items()}

    def _described(self) -> dict[str, Any]:
        return {**asdict(self.spec), "network": config_to_json(self.spec.network)}


def _spec_from_json(text: dict[str, Any]) -> PathSpec:
    return PathSpec(
        network=config_from_json(text["network"]),
        arms=tuple(text["arms"]),
        classes=tuple(text["classes"]),
        mean=tuple(text["mean"]),
        std=tuple(text["std"]),
        gate_seed=int(text["gate_seed"]),
        provenance=dict(text["provenance"]),
    )
