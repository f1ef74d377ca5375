"""The frozen dynamic convolution network: a data path whose cost depends on what it sees.

Saved as `path.safetensors` and `path.json`, as every data path is. B images, K arms, J key points,
C' pooled channels, b conditional blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import CostModel
from flyball.datapaths.dynconv.calibration import Calibration
from flyball.datapaths.dynconv.masks import Masking, SparseMasking, upscaled
from flyball.datapaths.dynconv.network import DynConvNetwork
from flyball.datapaths.errors import CorruptArtifact, DataError, InvalidArms, InvalidSetting
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
    check_utilizations,
    context_features,
    in_chunks,
    per_channel,
    rows_in_a_chunk,
)
from flyball.datapaths.frozen import SPEC_FILE, WEIGHTS_FILE, Answer
from flyball.datapaths.gates import checked_utilization
from flyball.datapaths.networks import config_from_json, config_to_json, make_network
from flyball.datapaths.pose import POSE, decode_heatmaps, judge_pose
from flyball.datapaths.tasks import Judgement, judge
from flyball.datapaths.weights import load_weights

__all__ = ["KIND", "DynConvPath", "DynConvSpec", "Examined"]

KIND = "dynconv"
FORMAT = 1


@dataclass(frozen=True)
class DynConvSpec:
    """Everything about a frozen dynamic convolution network but its weights.

    Attributes:
        network: structure; a configuration that `networks` knows.
        arms: utilizations it is served at: requested shares of the conditional MACs.
        classes: names of the classes; of a pose network, of the kinds of image.
        mean, std: of each input channel of the training images, on the [0, 1] scale.
        calibration: what keeps the budgets.
        task: what an output means: "classification" or "pose".
        provenance: how it was trained; for people and fingerprints.
    """

    network: Any
    arms: tuple[float, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    calibration: Calibration
    task: Literal["classification", "pose"] = "classification"
    provenance: dict[str, Any] = field(default_factory=dict)


class Examined(NamedTuple):
    """Where a pass spent its MACs; B images.

    Attributes:
        ponder: how many conditional blocks ran at every pixel, float32 (B, H, W) (Figs. 4, 8).
        rates: share of its pixels that every block ran on, float32 (B, b) (Fig. 6b).
        macs: executed MACs, int64 (B,) (Fig. 6a).
        output: as `Answer.output`.
    """

    ponder: Tensor
    rates: Tensor
    macs: Tensor
    output: Tensor


class DynConvPath(FrozenModule):
    """T(x, u): u is the share of the conditional MACs that is asked for; MACs depend on x.

    At u = 1 everything runs and no mask unit is asked. Asked for less, every image may take more
    or less than u: the mean over images like the calibration's is u. A u below 1 is served as the
    nearest that the calibration covers. As mask units cost too, a single image can take slightly
    more just below u = 1 than at it.

    Attributes:
        arms: utilizations it is served at.
        classes: names of the classes; of a pose network the kinds of image, and `POSE` after them:
            what every answer of it is.
        input_shape: (C, H, W).
        arm_macs: MACs of one sample to expect at every arm, from the calibration.
        full_macs: executed MACs of one sample at u = 1.
        context_macs: to expect of one context: the lowest arm.
        context_size: features of the context.
        forwards: sample passes asked for so far.
        fingerprint: of specification and weights; the arms are not part of it.
        cost: exact MACs, by what decides whether they are executed.
    """

    what = "dynamic convolution network"
    requirements = ("pillow",)
    """Distributions that opening one needs besides torch and what every path needs."""
    advice = "Train the network itself with `flyball path`."
    mean: Tensor
    std: Tensor

    def __init__(self, network: DynConvNetwork, spec: DynConvSpec) -> None:
        super().__init__()
        self.spec = replace(spec, arms=validated_arms(spec.arms or default_arms()))
        _check_calibrated(self.spec.arms, spec.calibration)
        self.input_shape = tuple(network.input_shape)
        if spec.task == "classification" and len(spec.classes) != network.classes:
            raise InvalidSetting(
                f"Every logit has a class name: the network tells {network.classes} classes "
                f"apart, {len(spec.classes)} are named. Name them all."
            )
        if not network.conditional:
            raise InvalidSetting(
                "A dynamic convolution network is throttled by its masks, and this one has no "
                "mask unit. Set --set path.network.mask_unit=squeeze."
            )
        check_scale(spec.mean, spec.std, self.input_shape[0])
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        self.network = network.requires_grad_(False).eval()
        self.cost = network.costs()
        self.register_buffer("mean", per_channel(spec.mean, self.input_shape))
        self.register_buffer("std", per_channel(spec.std, self.input_shape))
        self.arms = self.spec.arms
        self.classes = (*spec.classes, POSE) if spec.task == "pose" else spec.classes
        self._size = (self.input_shape[1], self.input_shape[2])
        self.full_macs = self.cost.full
        self.arm_macs = tuple(self.macs_at(u) for u in self.arms)
        self.context_macs = self.arm_macs[0]
        self.forwards = 0
        self._rows = rows_in_a_chunk(self.input_shape)
        # In a list: the copy that runs is no part of the module, and is made when first asked.
        self._prepared: list[DynConvNetwork] = []
        described = {**self._described(), "arms": None}
        self.fingerprint = fingerprint_of(KIND, described, hash_bytes(self._weights()))
        super().train(False)

    @property
    def context_size(self) -> int:
        """D: pooled features, what the answer looks like, and the share that was executed."""
        blank = torch.zeros(1, *self.input_shape, device=self.mean.device)
        before = self.forwards
        size = self.context(blank, fixed_shape=False)[0].shape[1]
        self.forwards = before
        return size

    def forward(self, images: Tensor, u: float | Tensor, *, fixed_shape: bool = True) -> Answer:
        """Answers at a utilization.

        Args:
            images: float32 in [0, 1], (B, C, H, W).
            u: requested share of the conditional MACs in [0, 1]: one for all, or one for each
                image, (B,).
            fixed_shape: run equal shapes whatever B is, so that a sample's bits never depend on
                the batch it came in. False runs the batch as it is.

        Returns:
            output: logits (B, classes), or heat maps of the last stack, (B, J, h, w); float32.
            macs: executed for each image, int64 (B,).

        Raises:
            DataError: the images have another shape.
            InvalidSetting: u is outside [0, 1] or NaN, or there is not one for each image.
        """
        output, _, macs = self._answered(images, self._asked(images, u), fixed_shape)
        return Answer(output, macs)

    def context(self, images: Tensor, *, fixed_shape: bool = True) -> tuple[Tensor, Answer]:
        """Runs the lowest arm: what it saw is the context, what it said is its answer.

        Returns:
            float32 (B, D): pooled features of the last feature map; of a classifier
            log-probabilities, their largest probability and their entropy, of a pose network the
            peak of every heat map, their mean and their least; and the executed share of the full
            MACs, which tells how much the masks found in the image.
        """
        asked = self._asked(images, self.arms[0])
        output, pooled, macs = self._answered(images, asked, fixed_shape)
        if self.spec.task == "pose":
            peaks = output.flatten(2).amax(dim=2)
            seen = [pooled, peaks, peaks.mean(1, keepdim=True), peaks.amin(1, keepdim=True)]
        else:
            seen = [context_features(pooled, output)]
        share = macs.to(torch.float32)[:, None] / float(self.full_macs)
        return torch.cat([*seen, share], dim=1), Answer(output, macs)

    def examine(self, images: Tensor, u: float) -> Examined:
        """Runs images (B, C, H, W), one or more, and says where their MACs went."""
        asked = self._asked(images, u)
        size = self._size
        parts = []
        if not len(images):
            raise DataError("There is nothing to examine in no images. Give one or more.")
        self.forwards += counted(len(images))
        for start in range(0, len(images), self._rows):
            x, share = (t[start : start + self._rows] for t in (images, asked))
            run, masking = self._run(x, share, keep=True)
            masks = [d.mask for d in masking.decisions if d.mask is not None]
            if not masks:
                rates = x.new_ones(len(x), len(self.cost.blocks))
                ponder = x.new_full((len(x), *size), float(len(self.cost.blocks)))
            else:
                rates = torch.stack([m.float().mean(dim=(1, 2, 3)) for m in masks], dim=1)
                ponder = torch.stack([upscaled(m, size)[:, 0] for m in masks]).sum(dim=0)
            parts.append((ponder, rates, self._macs(masking, len(x)), run.logits))
        return Examined(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def with_arms(self, arms: Sequence[float]) -> "DynConvPath":
        """The same network served at other utilizations, with the calibration it has.

        Raises:
            InvalidArms: the arms are out of order, repeated, outside (0, 1], or below 1 and
                outside the budgets that were calibrated.
        """
        return DynConvPath(self.network, replace(self.spec, arms=validated_arms(arms)))

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs to expect of one sample at any u, from the calibration.

        Raises:
            InvalidSetting: they are asked for as the TNN paper counts them.
        """
        if cost_model != "executed":
            raise InvalidSetting(
                "A dynamic convolution network costs what its masks execute; there is no "
                f"{cost_model!r} count of it. Set --set outcomes.cost_model=executed."
            )
        asked = checked_utilization(u)
        if asked >= 1.0:
            return self.cost.full
        share = self.spec.calibration.share_at(asked)
        return self.cost.fixed + self.cost.units + round(share * self.cost.conditional)

    def judge(self, output: Tensor, truth: Any) -> Judgement:
        """Top-1 of a classifier; the share of correct key points of a pose network."""
        if self.spec.task == "pose":
            truth = None if truth is None else truth.to(output.device)
            return judge_pose(output, truth, self._size, kinds=len(self.spec.classes))
        return judge(output, truth)

    def read(self, output: Tensor) -> Judgement:
        """What an output says and how sure, where nobody knows the truth; `correct` is void."""
        return self.judge(output, None) if self.spec.task == "pose" else super().read(output)

    def key_points(self, output: Tensor) -> Tensor:
        """Where a pose network sees the key points.

        Args:
            output: heat maps, (B, J, h, w).

        Returns:
            x, y in input pixels and the peak of the heat map in [0, 1]; float32 (B, J, 3).

        Raises:
            InvalidSetting: it is a classifier.
        """
        if self.spec.task != "pose":
            raise InvalidSetting("A classifier has no key points. Ask a pose network's path.")
        found = decode_heatmaps(output, self._size)
        return torch.cat([found.points, found.peaks[..., None]], dim=2)

    def save(self, folder: Path | str) -> None:
        """Writes the weights, then the specification that names their bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_tensors(Path(folder) / WEIGHTS_FILE, self._weights())
        head = {"kind": KIND, "format": FORMAT, "fingerprint": self.fingerprint}
        write_json(Path(folder) / SPEC_FILE, {**head, **self._described()})

    @classmethod
    def load(cls, folder: Path | str) -> "DynConvPath":
        """Reads what `save` wrote.

        Raises:
            CorruptArtifact: a file is missing, truncated or altered.
            PickleRefused: a file is a pickle.
            ShapeMismatch: the weights are those of another network.
        """
        folder = Path(folder)
        text = read_json(folder / SPEC_FILE)
        try:
            if (text["kind"], text["format"]) != (KIND, FORMAT):
                raise KeyError("kind and format")
            spec = _spec_from_json(text)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifact(
                f"{folder / SPEC_FILE} is not the specification of a dynamic convolution network "
                f"of format {FORMAT} ({error}). Delete the folder and run `flyball path` again."
            ) from error
        network: Any = make_network(spec.network)
        load_weights(network, read_tensors(folder / WEIGHTS_FILE), where=str(folder / WEIGHTS_FILE))
        path = cls(network, spec)
        if path.fingerprint != text["fingerprint"]:
            raise CorruptArtifact(
                f"The data path in {folder} has fingerprint {path.fingerprint}, its specification "
                f"says {text['fingerprint']}: a file was altered. Run `flyball path` again."
            )
        return path

    def prepared(self) -> DynConvNetwork:
        """The network that runs: norms folded, blocks packed; made once on each device."""
        if not self._prepared:
            self._prepared.append(self.network.prepared())
        return self._prepared[0]

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are the library's own objects; a copy packs its own.
        return {**self.__dict__, "_prepared": []}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Packed weights belong to one device.
        self._prepared = []
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _asked(self, images: Tensor, u: float | Tensor) -> Tensor:
        """u of every image, float64 (B,), checked before anything runs."""
        check_inputs(images, self.input_shape)
        if isinstance(u, Tensor):
            check_utilizations(u, images)
            for value in set(u.double().tolist()):
                checked_utilization(value)
            return u.double()
        return torch.full((len(images),), checked_utilization(float(u)), dtype=torch.float64)

    def _answered(
        self, images: Tensor, asked: Tensor, fixed_shape: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, pooled features and MACs; images that run everything go through together."""
        self.forwards += counted(len(images))
        is_full = asked >= 1.0
        given: list[tuple[Tensor, ...]] = []
        places = []
        for wanted in (False, True):
            rows = torch.nonzero(is_full.cpu() == wanted)[:, 0]
            if not len(rows) and (wanted or len(images)):
                continue
            places.append(rows)
            given.append(self._part(images[rows.to(images.device)], asked[rows], fixed_shape))
        back = torch.argsort(torch.cat(places)).to(images.device)
        output, pooled, macs = (torch.cat(column)[back] for column in zip(*given, strict=True))
        return output, pooled, macs

    def _part(self, images: Tensor, asked: Tensor, fixed_shape: bool) -> tuple[Tensor, ...]:
        """Images that all run everything, or all ask their masks."""
        if fixed_shape or not len(images):
            rows, position = self._rows, 0

            def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                nonlocal position
                shares = asked[position : position + rows]
                position += rows
                padding = shares.new_full((len(x) - len(shares),), float(shares[-1:].sum()))
                return self._once(x, torch.cat([shares, padding]))

            return in_chunks(run, images, rows)
        return self._once(images, asked)

    def _once(self, x: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        run, masking = self._run(x, asked)
        return run.logits, run.pooled, self._macs(masking, len(x))

    def _run(self, x: Tensor, asked: Tensor, *, keep: bool = False) -> tuple[Any, Masking]:
        """One pass of the prepared network, heat maps of the last stack alone."""
        network = self.prepared()
        normalised = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            masking = Masking(is_sparse=True)
            if len(asked) and float(asked.min()) < 1.0:
                asked = self.spec.calibration.held(asked.to(x.device))
                offset = self.spec.calibration.offset_at(asked)[:, None]
                shifts = network.shifts(asked.float())
                blank = x.new_zeros(len(x), len(self.cost.blocks))
                masking = SparseMasking((blank if shifts is None else shifts) + offset, keep=keep)
            run = network.run(normalised, masking)
        if isinstance(masking, SparseMasking):
            masking.check()
        logits = run.logits[:, -1] if self.spec.task == "pose" else run.logits
        # Out of inference mode, so that what is returned is a plain tensor.
        return run._replace(logits=logits.float().clone(), pooled=run.pooled.clone()), masking

    def _macs(self, masking: Masking, count: int) -> Tensor:
        if not masking.decisions:
            return torch.full((count,), self.cost.full, dtype=torch.int64, device=self.mean.device)
        always = self.cost.fixed + self.cost.units
        return self.cost.executed(masking.decisions).round().to(torch.int64) + always

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: t.detach().cpu().numpy() for name, t in self.network.state_dict().items()}

    def _described(self) -> dict[str, Any]:
        return {**asdict(self.spec), "network": config_to_json(self.spec.network)}


def _check_calibrated(arms: Sequence[float], calibration: Calibration) -> None:
    """Every arm below 1 lies among the budgets that were calibrated."""
    first, last = calibration.budgets[0], calibration.budgets[-1]
    for arm in arms:
        if arm < 1.0 and not first <= arm <= last:
            raise InvalidArms(
                f"Budgets are kept between {first:g} and {last:g}, where they were calibrated, and "
                f"at 1; arm {arm:g} is outside. Calibrate it by training with it among the arms: "
                f"--set arms={arm:g},{last:g},1."
            )


def _spec_from_json(text: dict[str, Any]) -> DynConvSpec:
    kept = text["calibration"]
    return DynConvSpec(
        network=config_from_json(text["network"]),
        arms=tuple(text["arms"]),
        classes=tuple(text["classes"]),
        mean=tuple(text["mean"]),
        std=tuple(text["std"]),
        calibration=Calibration(
            tuple(kept["budgets"]),
            tuple(kept["offsets"]),
            tuple(kept["shares"]),
            int(kept["samples"]),
            int(kept["passes"]),
        ),
        task=text["task"],
        provenance=dict(text["provenance"]),
    )
