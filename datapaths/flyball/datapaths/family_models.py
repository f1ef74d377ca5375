"""The models that a family is made of: made by name, fitted at both ends, watched and measured.

B batch, D features of the layer before the last.
"""

import importlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flyball.datapaths.cost import measured_macs
from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = [
    "Measured",
    "check_name",
    "fit_head",
    "fit_stem",
    "head_of",
    "make_model",
    "measure",
    "penultimate",
    "stem_of",
    "watch",
]

# They change their inputs by a flag that no state dict holds.
_REFUSED = ("googlenet", "inception_v3")
_LIBRARIES = ("torchvision.models", "torchvision.models.video")
_SEEN = threading.local()


class Measured(NamedTuple):
    """What one pass of one sample tells of a model: MACs, and D (0 where it cannot be seen)."""

    macs: int
    features: int


def check_name(name: str) -> None:
    """Refuses a name that no model answers to; makes none.

    Raises:
        UnknownName: there is no such model of torchvision's.
        InvalidSetting: it is no class of torch.nn.Module, or cannot be imported.
    """
    if ":" in name:
        _own_class(name)
    else:
        _check_known(name)


def make_model(name: str, *, classes: int, in_channels: int) -> nn.Module:
    """A model by name, its weights drawn from torch's global generator.

    Raises:
        UnknownName, InvalidSetting: as `check_name`.
    """
    if ":" in name:
        made = _own_class(name)
        given: dict[str, Any] = {"num_classes": classes}
        if "in_channels" in inspect.signature(made).parameters:
            given["in_channels"] = in_channels
        try:
            model = made(**given)
        except TypeError as error:
            raise InvalidSetting(
                f"The model {name!r} cannot be made with {sorted(given)}: {error}. "
                "Let its class take num_classes, and defaults for everything else."
            ) from error
    else:
        _check_known(name)
        from torchvision.models import get_model

        model = get_model(name, weights=None, num_classes=classes)
    fit_stem(model, in_channels)
    return model


def head_of(model: nn.Module, classes: int) -> str | None:
    """Name of the last layer: the last linear layer or convolution with an output a class."""
    found = None
    for name, module in model.named_modules():
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and outputs == classes:
            found = name
    return found


def fit_head(model: nn.Module, before: int, classes: int) -> None:
    """Puts a fresh last layer in the place of a model's that tells `before` classes apart."""
    name = head_of(model, before)
    old = model.get_submodule(name) if name else None
    if name is None or old is None:
        raise InvalidSetting(
            f"{type(model).__name__} has no linear layer or convolution with {before} outputs to "
            "put a new last layer in the place of. Give weights that tell these classes apart."
        )
    has_bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear):
        fresh: nn.Module = nn.Linear(old.in_features, classes, bias=has_bias)
    else:
        assert isinstance(old, nn.Conv2d | nn.Conv3d)
        fresh = _like(old, old.in_channels, classes)
    _replace(model, name, fresh)


def fit_stem(model: nn.Module, in_channels: int) -> None:
    """Lets the first convolution take so many channels: the mean of its weights, scaled.

    A grey image then excites it as three equal channels did.
    """
    stem = stem_of(model)
    if stem is None or stem[1].in_channels == in_channels:
        return
    name, old = stem
    if old.groups != 1:
        raise InvalidSetting(
            f"The first convolution of {type(model).__name__} takes {old.in_channels} channels in "
            f"{old.groups} groups and cannot be fitted to {in_channels}. Give images of "
            f"{old.in_channels} channels."
        )
    fresh = _like(old, in_channels, old.out_channels)
    with torch.no_grad():
        share = old.in_channels / in_channels
        fresh.weight.copy_(old.weight.mean(dim=1, keepdim=True).expand_as(fresh.weight) * share)
        if fresh.bias is not None and old.bias is not None:
            fresh.bias.copy_(old.bias)
    _replace(model, name, fresh)


def stem_of(model: nn.Module) -> tuple[str, nn.Conv2d | nn.Conv3d] | None:
    """The first convolution and its name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return name, module
    return None


def watch(model: nn.Module, classes: int) -> Any:
    """Lets `penultimate` see what the last layer of this model is given; removable."""
    head = head_of(model, classes)
    if head is None:
        return None
    return model.get_submodule(head).register_forward_pre_hook(_note)


@contextmanager
def penultimate() -> Iterator[list[Tensor]]:
    """Collects what the last layer of a watched model is given in this thread: pooled, (B, D)."""
    seen: list[Tensor] = []
    _SEEN.inputs = seen
    try:
        yield seen
    finally:
        _SEEN.inputs = None


def measure(model: nn.Module, name: str, input_shape: Sequence[int], classes: int) -> Measured:
    """MACs of one sample, counted in the convolutions and products that one pass executes.

    Raises:
        InvalidSetting: the model cannot take the input, or gives no logits (1, classes).
    """
    model.eval()
    parameter = next(model.parameters(), None)
    blank = torch.zeros(1, *input_shape, device=None if parameter is None else parameter.device)
    hook = watch(model, classes)
    outputs: list[Any] = []
    fused = torch.backends.mha.get_fastpath_enabled()
    # The counter sees no product inside a fused attention.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(), sdpa_kernel([SDPBackend.MATH]), penultimate() as seen:
            macs = measured_macs(lambda: outputs.append(model(blank)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise InvalidSetting(
            f"{name} cannot take inputs of shape {tuple(input_shape)}: {str(error)[:200]}. "
            "Give it the size that it was made for: --set data.image_size=224 "
            "--set path.image_size=224."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        if hook is not None:
            hook.remove()
    shape = tuple(getattr(outputs[0], "shape", ()))
    if shape != (1, classes):
        raise InvalidSetting(
            f"A model of a family gives logits (samples, {classes}); {name} gave "
            f"{shape or type(outputs[0]).__name__}. Let its forward return the logits alone."
        )
    is_seen = len(seen) == 1 and len(seen[0]) == 1
    return Measured(macs, seen[0].shape[1] if is_seen else 0)


def _note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen = getattr(_SEEN, "inputs", None)
    if seen is None:
        return
    x = inputs[0]
    if isinstance(module, nn.Linear):
        seen.append(x if x.ndim == 2 else x.flatten(1, -2).mean(dim=1))
    else:
        seen.append(x.flatten(2).mean(dim=2))


def _own_class(name: str) -> type[nn.Module]:
    """A class by "package.module:Class"; as names come from files, only an nn.Module is called."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidSetting(
            f"The model {name!r} cannot be imported: {error}. Give it as package.module:Class, and "
            "put its package on PYTHONPATH, also where it is served."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InvalidSetting(
            f"A model of your own is a class of torch.nn.Module; {name!r} is "
            f"{type(found).__name__}. Wrap it in a class, or register a function with "
            "torchvision.models.register_model."
        )
    return found


def _check_known(name: str) -> None:
    from torchvision.models import get_model_builder, list_models

    known = [
        other
        for other in list_models()
        if other not in _REFUSED and _is_classifier(get_model_builder(other).__module__)
    ]
    if name not in known:
        raise unknown_name(
            "model",
            name,
            known,
            advice="One of your own is named package.module:Class.",
        )


def _is_classifier(module: str) -> bool:
    """Whether a builder's module is of torchvision's classifiers, or not torchvision's at all."""
    if not module.startswith("torchvision."):
        return True
    return module.rpartition(".")[0] in _LIBRARIES


def _like(old: nn.Conv2d | nn.Conv3d, inputs: int, outputs: int) -> nn.Conv2d | nn.Conv3d:
    made: Any = type(old)
    conv: nn.Conv2d | nn.Conv3d = made(
        inputs,
        outputs,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        groups=old.groups,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    return conv


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
