"""What every data path offers, whatever it is made of, and opening a saved one.

B batch, C channels, T frames, H, W pixels, K arms, D context features.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from flyball.datapaths.cost import CostModel
from flyball.datapaths.errors import CorruptArtifact, unknown_name
from flyball.datapaths.files import read_json
from flyball.datapaths.frozen import SPEC_FILE, Answer
from flyball.datapaths.tasks import Judgement

__all__ = ["KINDS", "DataPath", "PathKind", "device_of", "open_path"]


class DataPath(Protocol):
    """T(x, u): frozen, asked at a utilization, billed in multiply-accumulates.

    Attributes:
        arms: K utilizations it is served at, increasing, in (0, 1].
        classes: names of the classes.
        input_shape: (C, H, W) of an image, or (C, T, H, W) of a clip.
        arm_macs: executed MACs of one sample at every arm; those to expect, where they depend on
            the sample: what was executed is in `Answer.macs`.
        full_macs: executed MACs of one sample at u = 1.
        context_macs: MACs of one context, likewise; the context pass is the lowest arm.
        context_size: D.
        fingerprint: of structure and weights; the arms are not part of it.
        forwards: sample passes asked for so far.
        spec: all about it but its weights; its `provenance` says how it was trained.
    """

    @property
    def arms(self) -> tuple[float, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def arm_macs(self) -> tuple[int, ...]: ...
    @property
    def full_macs(self) -> int: ...
    @property
    def context_macs(self) -> int: ...
    @property
    def context_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def forwards(self) -> int: ...
    @property
    def spec(self) -> Any: ...

    def __call__(self, images: Tensor, u: float | Tensor, *, fixed_shape: bool = True) -> Answer:
        """Answers images, float32 in [0, 1] (B, *input_shape), at one u or at one for each."""
        ...

    def context(self, images: Tensor, *, fixed_shape: bool = True) -> tuple[Tensor, Answer]:
        """Features (B, D) of the lowest arm, and its answer."""
        ...

    def macs_at(self, u: float, *, cost_model: CostModel = "executed") -> int:
        """MACs of one sample at any u in [0, 1]."""
        ...

    def with_arms(self, arms: Sequence[float]) -> "DataPath":
        """The same path served at other utilizations.

        Raises:
            InvalidArms: it cannot be served at these.
        """
        ...

    def judge(self, output: Tensor, truth: Any) -> Judgement:
        """How right an output is, and how sure."""
        ...

    def read(self, output: Tensor) -> Judgement:
        """What an output says and how sure, where nobody knows the truth; not how right."""
        ...

    def save(self, folder: Path | str) -> None:
        """Writes it so that `open_path` reads it; no pickle."""
        ...

    def to(self, device: str) -> Any:
        """Moves it to a torch device."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """Its other tensors."""
        ...


class PathKind(NamedTuple):
    """Where a kind of data path lives: module of flyball.datapaths, and class with `load`."""

    module: str
    name: str


KINDS: dict[str, PathKind] = {
    "network": PathKind("frozen", "FrozenDataPath"),
    "family": PathKind("family", "ModelFamily"),
    "detector": PathKind("detection.path", "DetectorPath"),
    "dynconv": PathKind("dynconv.path", "DynConvPath"),
}
"""By the `kind` in path.json; a throttleable network's has none."""


def open_path(folder: Path | str) -> DataPath:
    """Loads a data path of any kind from the folder that its `save` wrote.

    Raises:
        CorruptArtifact: a file is missing, truncated or altered.
        PickleRefused: a file is a pickle.
        ShapeMismatch: the weights are those of another network.
        UnknownName: its kind is not known here.
    """
    folder = Path(folder)
    described = read_json(folder / SPEC_FILE)
    if not isinstance(described, dict):
        raise CorruptArtifact(
            f"{folder / SPEC_FILE} is not the specification of a data path. "
            "Delete the folder and run `flyball path` again."
        )
    kind = str(described.get("kind", "network"))
    if kind not in KINDS:
        raise unknown_name(
            "kind of data path", kind, KINDS, advice=f"{folder} was written by another version."
        )
    home = importlib.import_module(f"flyball.datapaths.{KINDS[kind].module}")
    path: DataPath = getattr(home, KINDS[kind].name).load(folder)
    return path


def device_of(path: DataPath) -> torch.device:
    """The torch device that a data path computes on."""
    for tensor in (*path.buffers(), *path.parameters()):
        return tensor.device
    return torch.device("cpu")
