"""A trained gating function as it is served: deterministic, tied to its network, no pickle.

B batch, n components of one T-module, N components of all T-modules together.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.cost import measured_macs
from flyball.datapaths.errors import CorruptArtifact, ForeignArtifact, InvalidSetting
from flyball.datapaths.files import read_json, read_tensors, write_json, write_tensors
from flyball.datapaths.gates import checked_utilization
from flyball.datapaths.learned_gates.estimators import keep_least
from flyball.datapaths.learned_gates.gate_networks import GateShape, make_gate_network
from flyball.datapaths.learned_gates.structure import (
    path_fingerprint,
    split_gates,
)
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.weights import load_weights

__all__ = ["GateSpec", "LearnedGate"]

WEIGHTS_FILE = "gate.safetensors"
SPEC_FILE = "gate.json"
FORMAT = 2  # 1 had no digest of the weights


@dataclass(frozen=True)
class GateSpec:
    """Everything about a learned gate but its weights.

    Attributes:
        shape: of the gate network.
        least: components of every T-module that stay on.
        names: of the T-modules, for messages.
        path: fingerprint of the network whose components it switches.
        when_off: what serving does where fewer than `least` components of a T-module pass the
            threshold: "force" switches the most probable ones on, "refuse" raises.
        provenance: how it was trained; for people.
    """

    shape: GateShape
    least: tuple[int, ...]
    names: tuple[str, ...]
    path: str
    when_off: Literal["force", "refuse"] = "force"
    provenance: dict[str, Any] = field(default_factory=dict)


class LearnedGate:
    """g_psi(x, u) with frozen weights; the same image and u always get the same gates.

    Attributes:
        spec: what it is.
        network: the gate network, in evaluation mode.
        macs: multiply-accumulates of one sample through the gate network itself.
    """

    def __init__(self, network: nn.Module, spec: GateSpec) -> None:
        if spec.when_off not in ("force", "refuse"):
            raise InvalidSetting(
                "A gate that switches a T-module off is 'force'd on or 'refuse'd; when_off is "
                f"{spec.when_off!r}. Give when_off='force'."
            )
        self.spec = spec
        self.network = network.to("cpu").requires_grad_(False).eval()
        with torch.no_grad():
            blank = torch.zeros(1, *spec.shape.input_shape)
            self.macs = measured_macs(lambda: self.network(blank, torch.zeros(1)))

    def to(self, device: torch.device | str) -> "LearnedGate":
        """Moves the gate network."""
        self.network.to(device)
        return self

    def probabilities(self, images: Tensor, u: float | Tensor) -> Tensor:
        """p of every component.

        Args:
            images: normalised as for the network, (B, *input_shape).
            u: target utilization in [0, 1]: one for all, or one for each sample, (B,).

        Returns:
            (B, N).

        Raises:
            InvalidSetting: u is outside [0, 1] or NaN, or there is not one for each sample.
        """
        return torch.sigmoid(self._logits(images, u))

    def serve(self, images: Tensor, u: float | Tensor) -> tuple[Tensor, ...]:
        """The gates in force: on where p is at least 1/2, the limit t = 0 of Concrete.

        Where fewer than `least` components of a T-module pass, the most probable of them go on,
        the first of equals; or, with `when_off="refuse"`, nothing is served.

        Args:
            images, u: as in `probabilities`.

        Returns:
            For every T-module zeros and ones, float32 (B, n).

        Raises:
            InvalidSetting: a T-module would be off whole and `when_off` is "refuse"; names it.
        """
        logits = self._logits(images, u)
        gates = (logits >= 0.0).float()
        if self.spec.when_off == "refuse":
            self._refuse_closed(gates, u)
        components = self.spec.shape.components
        return split_gates(keep_least(gates, logits, components, self.spec.least), components)

    def check_network(self, network: ThrottleableNetwork) -> None:
        """Refuses a network that the gate was not trained for.

        Raises:
            ForeignArtifact: its structure or its weights are others.
        """
        found = path_fingerprint(network)
        if found != self.spec.path:
            raise ForeignArtifact(
                f"This gate was trained for the network {self.spec.path}; this one is {found}. "
                "Which components serve a utilization is learned for one set of weights: train "
                "the gate again, or load the network that it belongs to."
            )

    def save(self, folder: Path | str) -> None:
        """Writes weights, and the specification with their digest.

        Raises:
            StorageError: the folder cannot be written.
        """
        weights = {k: v.detach().cpu().numpy() for k, v in self.network.state_dict().items()}
        write_tensors(Path(folder) / WEIGHTS_FILE, weights)
        text = {"format": FORMAT, "weights": hash_bytes(weights), **asdict(self.spec)}
        write_json(Path(folder) / SPEC_FILE, text)

    @classmethod
    def load(cls, folder: Path | str) -> "LearnedGate":
        """Reads what `save` wrote.

        Raises:
            CorruptArtifact: a file is missing or truncated, or the weights are not those that the
                specification was saved with.
            PickleRefused: a file is a pickle.
            ShapeMismatch: the weights are those of another gate network.
        """
        folder = Path(folder)
        text = read_json(folder / SPEC_FILE)
        try:
            if text["format"] != FORMAT:
                raise KeyError("format")
            spec, digest = _spec_from_json(text), str(text["weights"])
        except (KeyError, TypeError, AttributeError, InvalidSetting) as error:
            raise CorruptArtifact(
                f"{folder / SPEC_FILE} is not the specification of a learned gate of format "
                f"{FORMAT} ({error}). Delete the folder and train the gate again."
            ) from error
        weights: dict[str, np.ndarray] = read_tensors(folder / WEIGHTS_FILE)
        if hash_bytes(weights) != digest:
            raise CorruptArtifact(
                f"{folder / WEIGHTS_FILE} does not hold the weights that {SPEC_FILE} was saved "
                "with: one of the two was altered. Delete the folder and train the gate again."
            )
        network = make_gate_network(spec.shape, seed=0)
        load_weights(network, weights, where=str(folder / WEIGHTS_FILE))
        return cls(network, spec)

    def _logits(self, images: Tensor, u: float | Tensor) -> Tensor:
        if isinstance(u, Tensor):
            if u.shape != (len(images),):
                raise InvalidSetting(
                    f"u is one number, or one for each of the {len(images)} samples; its shape "
                    f"is {tuple(u.shape)}. Give a float or a tensor of shape ({len(images)},)."
                )
            is_outside = ~((u >= 0) & (u <= 1))
            if bool(is_outside.any()):
                checked_utilization(float(u[is_outside][0]))
            target = u.float().to(images.device)
        else:
            target = torch.full((len(images),), checked_utilization(u), device=images.device)
        with torch.no_grad():
            logits: Tensor = self.network(images, target)
        return logits

    def _refuse_closed(self, gates: Tensor, u: float | Tensor) -> None:
        spec = self.spec
        parts = split_gates(gates, spec.shape.components)
        for name, part, need in zip(spec.names, parts, spec.least, strict=True):
            is_short = part.sum(dim=1) < need
            if bool(is_short.any()):
                row = int(is_short.nonzero()[0])
                asked = float(u[row]) if isinstance(u, Tensor) else u
                raise InvalidSetting(
                    f"The learned gate leaves {int(part[row].sum())} of the {part.shape[1]} "
                    f"components of T-module {name} on at u = {asked:g} (row {row}); it needs "
                    f"{need}. Serve with when_off='force', ask for a higher u, or train with a "
                    "smaller complexity_weight."
                )


def _spec_from_json(text: dict[str, Any]) -> GateSpec:
    shape = dict(text["shape"])
    for name in ("components", "input_shape", "channels"):
        shape[name] = tuple(int(v) for v in shape[name])
    return GateSpec(
        shape=GateShape(**shape),
        least=tuple(int(v) for v in text["least"]),
        names=tuple(str(v) for v in text["names"]),
        path=str(text["path"]),
        when_off=text["when_off"],
        provenance=dict(text["provenance"]),
    )
