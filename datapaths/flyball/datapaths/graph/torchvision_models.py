"""torchvision's classifiers as throttleable networks, with the weights torchvision publishes.

The widthwise nested (WN) ImageNet networks of TNN section 4.2 are presets here. `make_network`
gives the structure alone, so a saved network needs no download to be read; `pretrained` adds the
weights that training starts from.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from flyball.datapaths.checks import check_choice, check_counts
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    PickleRefused,
    ShapeMismatch,
    unknown_name,
)
from flyball.datapaths.files import read_tensors
from flyball.datapaths.graph.channels import Divisor
from flyball.datapaths.graph.throttle import convert
from flyball.datapaths.graph.throttled import ThrottledNetwork
from flyball.datapaths.network import Gating

__all__ = [
    "TorchvisionConfig",
    "TorchvisionNetwork",
    "densenet169_wn",
    "pretrained",
    "resnet50_wn",
    "resnext50_wn",
]

_FILE_ENDINGS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class TorchvisionConfig:
    """A classifier of torchvision and how it is throttled.

    Attributes:
        name: of the model, such as "resnet50".
        classes: how many it tells apart; other than the 1000 of ImageNet it gets a new head.
        image_size: height and width of the image, in pixels.
        components: n of every T-module.
        divisor: channels that n does not divide stay dense ("exact") or get the largest number
            of components below n that divides them ("largest").
        keep_dense: layers, or what they lie in, whose outputs are never gated.
        gating: "nested" or "independent" (TNN Fig. 2).
        weights: what training starts from: a name of torchvision's weights such as "DEFAULT", a
            .safetensors file, a .pth file of nothing but tensors, or None for random weights.

    Raises:
        UnknownName: torchvision has no such classifier, or no such weights for it.
        InvalidSetting: a number is below 1.
    """

    name: str
    classes: int = 1000
    image_size: int = 224
    components: int = 16
    divisor: Divisor = "exact"
    keep_dense: tuple[str, ...] = ()
    gating: Gating = "nested"
    weights: str | None = None

    def __post_init__(self) -> None:
        known = torchvision.models.list_models(module=torchvision.models)
        if self.name not in known:
            raise unknown_name("classifier of torchvision", self.name, known)
        check_counts(classes=self.classes, image_size=self.image_size, components=self.components)
        check_choice("divisor", self.divisor, get_args(Divisor))
        check_choice("gating", self.gating, get_args(Gating))
        if self.weights is not None and not self.weights.endswith(_FILE_ENDINGS):
            found = torchvision.models.get_model_weights(self.name)
            names = ["DEFAULT", *found.__members__]
            if self.weights not in names:
                raise unknown_name(
                    f"set of weights for {self.name}",
                    self.weights,
                    names,
                    advice=f"A file of weights ends in one of {', '.join(_FILE_ENDINGS)}.",
                )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None: it names none."""
        is_file = self.weights is not None and self.weights.endswith(_FILE_ENDINGS)
        return Path(str(self.weights)) if is_file else None


def resnet50_wn(**changes: Any) -> TorchvisionConfig:
    """ResNet-50-WN: streams and bottlenecks in 16 nested components (TNN section 4.2)."""
    return TorchvisionConfig(**{"name": "resnet50", "weights": "DEFAULT", **changes})


def densenet169_wn(**changes: Any) -> TorchvisionConfig:
    """DenseNet-169-WN: every dense layer's channels in 16 nested components."""
    return TorchvisionConfig(**{"name": "densenet169", "weights": "DEFAULT", **changes})


def resnext50_wn(**changes: Any) -> TorchvisionConfig:
    """ResNeXt-50-WN: the 32 filter groups in 16 nested components of two."""
    return TorchvisionConfig(**{"name": "resnext50_32x4d", "weights": "DEFAULT", **changes})


class TorchvisionNetwork(ThrottledNetwork):
    """A throttled classifier of torchvision.

    Args:
        config: what it is.
        model: torchvision's own, which it takes over; None: a new one, its weights drawn from
            torch's global generator.

    Attributes:
        report: what was gated and what stays dense.
    """

    def __init__(self, config: TorchvisionConfig, model: nn.Module | None = None) -> None:
        parts, report = convert(
            _model(config) if model is None else model,
            config.input_shape,
            components=config.components,
            divisor=config.divisor,
            keep_dense=config.keep_dense,
        )
        super().__init__(parts, config=config, gating=config.gating)
        self.report = report
        self.train()


def pretrained(config: TorchvisionConfig) -> TorchvisionNetwork:
    """A network with the weights that its configuration names.

    A head for other classes than the weights have is drawn from torch's global generator: give
    torchvision's weights and another number of classes, or a file without the head's tensors.

    Raises:
        DataError: torchvision's weights could not be fetched.
        CorruptArtifact, PickleRefused: the file is missing or holds more than tensors; so may
            one that torch fetched before.
        ShapeMismatch: the file holds the weights of another network; names the first tensor.
    """
    model = _model(config)
    if config.weights is None:
        return TorchvisionNetwork(config, model)
    head = _head_of(model)
    if config.weights_file is not None:
        where, state = config.weights, read_state(config.weights_file)
    else:
        where, state = f"torchvision's {config.name} {config.weights}", fetched_state(config)
        if config.classes != len(state[f"{head}.weight"]):
            state = {name: t for name, t in state.items() if not name.startswith(f"{head}.")}
    if not any(name.startswith(f"{head}.") for name in state):
        own = model.state_dict()
        state = {**state, **{n: t for n, t in own.items() if n.startswith(f"{head}.")}}
    _load(model, state, where)
    return TorchvisionNetwork(config, model)


def _model(config: TorchvisionConfig) -> nn.Module:
    # These two warn unless they are told.
    told = {"init_weights": True} if config.name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(
        config.name, weights=None, num_classes=config.classes, **told
    )
    return model


def _head_of(model: nn.Module) -> str:
    """The last layer of weights; torchvision puts the classifier there."""
    kinds = (nn.Linear, nn.Conv2d)
    *_, head = (name for name, layer in model.named_modules() if isinstance(layer, kinds))
    return str(head)


def fetched_state(config: TorchvisionConfig) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(config.name)[str(config.weights)]
    try:
        with warnings.catch_warnings():
            # As in `read_state`. A file that lies in torch's cache already is not hashed again.
            warnings.simplefilter("ignore")
            state: dict[str, Tensor] = dict(
                weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            )
    except pickle.UnpicklingError as error:
        raise PickleRefused(
            f"The file that torch keeps of {weights.url} holds more than tensors, and Flyball "
            "loads no pickle: it can run any code. Delete it from hub/checkpoints under "
            "$TORCH_HOME, so that it is fetched again."
        ) from error
    except (URLError, OSError) as error:
        raise DataError(
            f"torchvision could not fetch {weights.url}: {error}. Fetch it elsewhere and name "
            "the file with --set path.weights=FILE.pth, or start from random weights with "
            "--set path.weights=None."
        ) from error
    return _today(state)


def read_state(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return {name: torch.from_numpy(values) for name, values in read_tensors(file).items()}
    try:
        with warnings.catch_warnings():
            # torch warns of a foreign pickle before it refuses it.
            warnings.simplefilter("ignore")
            # Tensors and plain containers alone: torch refuses everything that could run code.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CorruptArtifact(f"{file} does not exist. Name the file of weights.") from error
    except pickle.UnpicklingError as error:
        raise PickleRefused(
            f"{file} holds more than tensors, and Flyball loads no pickle: it can run any code. "
            "Save model.state_dict() alone, best as safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CorruptArtifact(f"{file} is not a whole file of weights: {error}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CorruptArtifact(
            f"{file} is not a state dict of tensors. Save model.state_dict() by itself."
        )
    return _today(dict(state))


def _today(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's older DenseNet files have a dot before the numbers of norms and convs."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): tensor for name, tensor in state.items()}


def _load(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    own, counter = model.state_dict(), "num_batches_tracked"
    # Batch norms never count batches here; old files lack the counters.
    own = {name: tensor for name, tensor in own.items() if not name.endswith(counter)}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(counter)}
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    differ = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or differ:
        parts = []
        if missing:
            parts.append(f"{missing[0]} is missing ({len(missing)} in all)")
        if extra:
            parts.append(f"{extra[0]} is left over ({len(extra)} in all)")
        if differ:
            first = differ[0]
            shapes = f"{tuple(state[first].shape)}, not {tuple(own[first].shape)}"
            parts.append(f"{first} has shape {shapes} ({len(differ)} in all)")
        raise ShapeMismatch(
            f"{where} holds the weights of another network: {'; '.join(parts)}. Name the model "
            "and the number of classes they belong to; for a new head leave its tensors out."
        )
    model.load_state_dict(state, strict=False)
