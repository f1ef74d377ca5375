"""A family of trained models as one data path: arm k is model k, from the cheapest to the dearest.

Saved as `path.json` and one `model-K.safetensors` for each; no pickle is read. B batch, C channels,
T frames, H, W pixels, K arms, D context features.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import CostModel
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    InvalidArms,
    InvalidSetting,
)
from flyball.datapaths.family_models import make_model, measure, penultimate, watch
from flyball.datapaths.family_spec import FamilySpec, arms_of, spec_from_json
from flyball.datapaths.family_weights import fill
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
    context_features,
    grouped,
    in_chunks,
    per_channel,
    rows_in_a_chunk,
)
from flyball.datapaths.frozen import SPEC_FILE, Answer
from flyball.datapaths.gates import checked_utilization
from flyball.datapaths.tasks import Judgement, judge

__all__ = ["ModelFamily", "model_file", "weights_of"]

KIND = "family"
FORMAT = 1
# A u that went through float32 is still its arm's.
_SLACK = 1e-6


class ModelFamily(FrozenModule):
    """T(x, u) made of whole models: the smallest arm that is at least u answers.

    An arm is its model's share of the dearest one's MACs, so utilization and throttle ratio agree.

    Attributes:
        arms: MACs of every model over those of the last, in (0, 1].
        classes: names of the classes.
        input_shape: (C, H, W) of an image, or (C, T, H, W) of a clip.
        arm_macs: MACs of one sample through every model.
        full_macs: those of the last.
        context_macs: those of the first.
        forwards: sample passes asked for so far.
        fingerprint: of specification and weights.
    """

    what = "family"
    advice = "Train the models themselves with `flyball path`."
    mean: Tensor
    std: Tensor

    def __init__(self, models: Sequence[nn.Module], spec: FamilySpec) -> None:
        """Freezes the models.

        Args:
            models: each from (B, *input_shape) to logits (B, classes), in order of cost.
            spec: what they are; MACs are measured where it has none.

        Raises:
            InvalidSetting: names and models differ in number, or a model gives no such logits.
            InvalidArms: a model costs no more than the one before it.
        """
        super().__init__()
        if len(models) != len(spec.models) or not models:
            raise InvalidSetting(
                f"A family has at least one model and a name for each: {len(models)} models and "
                f"{len(spec.models)} names came. Give as many names as models."
            )
        for model in models:
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()
        self.models = nn.ModuleList(model.requires_grad_(False).eval() for model in models)
        if not spec.macs:
            pairs = zip(self.models, spec.models, strict=True)
            size = len(spec.classes)
            measured = [measure(m, name, spec.input_shape, size) for m, name in pairs]
            macs = tuple(each.macs for each in measured)
            spec = replace(spec, macs=macs, features=measured[0].features)
        self.spec = spec
        self.arms = arms_of(spec.models, spec.macs)
        self.classes = spec.classes
        self.input_shape = tuple(spec.input_shape)
        self.arm_macs = spec.macs
        self.full_macs = spec.macs[-1]
        self.context_macs = spec.macs[0]
        self.register_buffer("mean", per_channel(spec.mean, self.input_shape))
        self.register_buffer("std", per_channel(spec.std, self.input_shape))
        self._rows = rows_in_a_chunk(self.input_shape)
        if spec.features:
            watch(self.models[0], len(spec.classes))
        self.forwards = 0
        tensors = {f"{k}/{n}": a for k, m in enumerate(models) for n, a in weights_of(m).items()}
        self.fingerprint = fingerprint_of(KIND, asdict(spec), hash_bytes(tensors))
        super().train(False)

    @property
    def context_size(self) -> int:
        """D: the lowest model's last features, log-probabilities, confidence and entropy."""
        return self.spec.features + len(self.classes) + 2

    @property
    def requirements(self) -> tuple[str, ...]:
        """Distributions that loading it takes beside those of every data path."""
        return ("torchvision",) if any(":" not in name for name in self.spec.models) else ()

    def forward(self, images: Tensor, u: float | Tensor, *, fixed_shape: bool = True) -> Answer:
        """Answers at a utilization; a batch of mixed u is grouped by model here.

        Args:
            images: float32 in [0, 1], (B, *input_shape).
            u: requested utilization in [0, 1]: one for all, or one for each sample, (B,). Between
                two arms the dearer one answers; below the first, the first.
            fixed_shape: run equal shapes whatever B is, so that a sample's bits never depend on
                the batch it came in. False runs the batch as it is: fastest for one image.

        Raises:
            DataError: the images have another shape.
            InvalidSetting: u is outside [0, 1] or NaN, or there is not one for each sample.
        """
        self._check_images(images)
        if not isinstance(u, Tensor):
            arm = self._arm_of(float(u))
            output = self._run(arm, images, fixed_shape)[0]
            return Answer(output, self._macs_of([arm] * len(images), images.device))
        output = torch.zeros(len(images), len(self.classes), device=images.device)
        macs = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for arm, rows in grouped(u, images, self._arm_of):
            output[rows] = self._run(arm, images[rows], fixed_shape)[0]
            macs[rows] = self.arm_macs[arm]
        return Answer(output, macs)

    def context(self, images: Tensor, *, fixed_shape: bool = True) -> tuple[Tensor, Answer]:
        """Runs the lowest model: what it saw is the context, what it said is its answer.

        Args:
            images: float32 in [0, 1], (B, *input_shape).
            fixed_shape: as in `forward`.

        Returns:
            float32 (B, D): what its last layer is given, pooled (left out where a model does not
            show it), log-probabilities, their largest probability, and their entropy in nats;
            and the lowest model's answer.
        """
        self._check_images(images)
        logits, seen = self._run(0, images, fixed_shape)
        macs = self._macs_of([0] * len(images), images.device)
        return context_features(seen, logits), Answer(logits, macs)

    def with_arms(self, arms: Sequence[float]) -> "ModelFamily":
        """Itself: a family is served at its own arms.

        Raises:
            InvalidArms: these are others.
        """
        if tuple(float(arm) for arm in arms) != self.arms:
            own = ", ".join(
                f"{n} {u:.4g}" for n, u in zip(self.spec.models, self.arms, strict=True)
            )
            raise InvalidArms(
                f"The arms of a family are its models' ({own}); "
                f"{', '.join(f'{arm:g}' for arm in arms)} came. Leave the arms out, or choose "
                "other models with --set path.models=resnet18,resnet50."
            )
        return self

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs of one sample at any u; both cost models count whole models alike."""
        return self.arm_macs[self._arm_of(u)]

    def judge(self, output: Tensor, truth: Tensor) -> Judgement:
        """Whether an output is right; see `tasks.judge`."""
        return judge(output, truth)

    def save(self, folder: Path | str) -> None:
        """Writes the weights of every model, then the specification that names their bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        folder = Path(folder)
        for arm, model in enumerate(self.models):
            write_tensors(folder / model_file(arm), weights_of(model))
        spec = {"kind": KIND, "format": FORMAT, "fingerprint": self.fingerprint}
        write_json(folder / SPEC_FILE, {**spec, **asdict(self.spec)})

    @classmethod
    def load(
        cls, folder: Path | str, *, models: Sequence[nn.Module] | None = None
    ) -> "ModelFamily":
        """Reads what `save` wrote.

        Args:
            folder: of the family.
            models: to be filled with the weights, for models that no name makes; None: by name.

        Raises:
            CorruptArtifact: a file is missing, truncated or altered.
            PickleRefused: a file is a pickle.
            ShapeMismatch: the weights are those of other models.
            UnknownName, InvalidSetting: a model's name makes nothing here.
        """
        folder = Path(folder)
        text = read_json(folder / SPEC_FILE)
        try:
            if (text["kind"], text["format"]) != (KIND, FORMAT):
                raise KeyError("format")
            spec = spec_from_json(text)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifact(
                f"{folder / SPEC_FILE} is not the specification of a family of format {FORMAT} "
                f"({error}). Delete the folder and run `flyball path` again."
            ) from error
        if models is None:
            with torch.random.fork_rng(devices=[]):
                size, channels = len(spec.classes), spec.input_shape[0]
                models = [make_model(n, classes=size, in_channels=channels) for n in spec.models]
        for arm, model in enumerate(models):
            file = folder / model_file(arm)
            weights = {name: torch.from_numpy(a) for name, a in read_tensors(file).items()}
            fill(model, weights, str(file))
        family = cls(models, spec)
        if family.fingerprint != text["fingerprint"]:
            raise CorruptArtifact(
                f"The family in {folder} has fingerprint {family.fingerprint}, its specification "
                f"says {text['fingerprint']}: a file was altered. Run `flyball path` again."
            )
        return family

    def _run(self, arm: int, images: Tensor, fixed_shape: bool) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and what the last layer was given where that is to be seen."""
        normalised = (images - self.mean) / self.std
        self.forwards += counted(len(images))
        with torch.inference_mode():
            if not fixed_shape:
                logits, seen = self._pass(arm, normalised)
                return logits.clone(), seen.clone()
            logits, seen = in_chunks(lambda x: self._pass(arm, x), normalised, self._rows)
        return logits, seen

    def _pass(self, arm: int, x: Tensor) -> tuple[Tensor, Tensor]:
        with penultimate() as seen:
            logits = self.models[arm](x).float()
        nothing = logits.new_zeros(len(x), 0)
        return logits, seen[0].float() if arm == 0 and self.spec.features else nothing

    def _arm_of(self, u: float) -> int:
        found = bisect_left(self.arms, checked_utilization(u) * (1 - _SLACK))
        return min(found, len(self.arms) - 1)

    def _macs_of(self, arms: Sequence[int], device: torch.device) -> Tensor:
        macs = [self.arm_macs[arm] for arm in arms]
        return torch.tensor(macs, dtype=torch.int64, device=device)

    def _check_images(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.input_shape:
            raise DataError(
                f"This family takes inputs of shape {self.input_shape} (channels, then frames of a "
                f"clip, height and width); these are {tuple(images.shape[1:])}. "
                f"Resize with --set data.image_size={self.input_shape[-1]}, "
                "or train a family for this size."
            )


def model_file(arm: int) -> str:
    """Name of the file that holds one model's weights."""
    return f"model-{arm}.safetensors"


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Every parameter and buffer of a model by name."""
    return {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()}
