"""All about a family but its weights: a value that JSON holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from flyball.datapaths.errors import InvalidArms

__all__ = ["FamilySpec", "arms_of", "spec_from_json"]


@dataclass(frozen=True)
class FamilySpec:
    """Everything about a family but its weights.

    Attributes:
        models: names as in `FamilyConfig`, in order of cost; a model that no name makes again may
            have any, and is then given to `ModelFamily.load`.
        classes: names of the classes, in the order of the logits.
        input_shape: (C, H, W) of an image, or (C, T, H, W) of a clip.
        mean, std: of each input channel on the [0, 1] scale; the models see (x - mean) / std.
        macs: of one sample through each model; empty: measured once, when the family is made.
        features: D of the lowest model's layer before the last; 0 where it cannot be seen.
        provenance: where the weights come from; for people and fingerprints.
    """

    models: tuple[str, ...]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    macs: tuple[int, ...] = ()
    features: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


def arms_of(models: Sequence[str], macs: Sequence[int]) -> tuple[float, ...]:
    """Every model's share of the last one's MACs.

    Raises:
        InvalidArms: a model costs no more than the one before it.
    """
    named = list(zip(models, macs, strict=True))
    for (cheap, less), (dear, more) in pairwise(named):
        if more <= less:
            order = ",".join(name for name, _ in sorted(named, key=lambda pair: pair[1]))
            advice = "Leave one of the two out." if more == less else "Name them in order of cost: "
            advice += "" if more == less else f"--set path.models={order}."
            raise InvalidArms(
                f"Every model of a family costs more than the one before it; {dear} takes "
                f"{more:,} multiply-accumulates after {cheap}'s {less:,}. {advice}"
            )
    if min(macs) < 1:
        raise InvalidArms(
            f"A model of a family multiplies something; {models[0]} takes {macs[0]} "
            "multiply-accumulates. Leave it out."
        )
    return tuple(count / macs[-1] for count in macs)


def spec_from_json(text: dict[str, Any]) -> FamilySpec:
    """The specification whose fields JSON gave back.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or strange.
    """
    if not len(text["models"]) == len(text["macs"]) > 0:
        raise ValueError("models and macs")
    return FamilySpec(
        models=tuple(str(name) for name in text["models"]),
        classes=tuple(str(name) for name in text["classes"]),
        input_shape=tuple(int(size) for size in text["input_shape"]),
        mean=tuple(float(value) for value in text["mean"]),
        std=tuple(float(value) for value in text["std"]),
        macs=tuple(int(count) for count in text["macs"]),
        features=int(text["features"]),
        provenance=dict(text["provenance"]),
    )
