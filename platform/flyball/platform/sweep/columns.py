"""Fewer arms from the same atlas: a selection of columns, for points that sweep the arms.

K arms of the atlas, J of the point.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyball.datapaths.atlas import HEADER_FILE, OutcomeAtlas
from flyball.datapaths.errors import ArmMismatch, InvalidArms
from flyball.datapaths.files import fingerprint_of

__all__ = ["check_kept", "keep_arms", "save_columns"]

_COLUMNS = ("correct", "confidence", "answer", "macs")
_CLOSE = 1e-9


def check_kept(there: Sequence[float], arms: Sequence[float], *, uses_context: bool) -> list[int]:
    """Positions of some arms among those of an atlas.

    Args:
        there: K utilizations of the atlas.
        arms: J utilizations, all of them among these.
        uses_context: the controller looks at the lowest arm's context.

    Raises:
        ArmMismatch: the atlas does not have such an arm.
        InvalidArms: the lowest arm is left out, whose pass gives the context.
    """
    index = []
    for arm in arms:
        found = np.flatnonzero(np.abs(np.asarray(there) - arm) < _CLOSE)
        if not len(found):
            raise ArmMismatch(
                "A sweep over arms takes them from its atlas, which has "
                f"{', '.join(f'{known:g}' for known in there)}; {arm:g} is not among them. Build "
                "it with more arms, --set arms=..., or sweep those it has."
            )
        index.append(int(found[0]))
    if uses_context and index[0] != 0:
        raise InvalidArms(
            f"A controller that looks at contexts needs the atlas's lowest arm, {there[0]:g}, "
            f"whose pass gives them; {', '.join(f'{arm:g}' for arm in arms)} came. Add it, or "
            "let the controller look at images with --set controller.kind=image_cnn."
        )
    return index


def keep_arms(atlas: OutcomeAtlas, arms: Sequence[float], *, uses_context: bool) -> OutcomeAtlas:
    """The atlas with some of its arms; what all cost at u = 1 stays the measure.

    Raises:
        ArmMismatch, InvalidArms: as `check_kept`.
    """
    index = check_kept(atlas.arms, arms, uses_context=uses_context)
    if len(index) == len(atlas.arms):
        return atlas
    picked: dict[str, Any] = {
        name: np.ascontiguousarray(np.asarray(getattr(atlas, name))[:, index]) for name in _COLUMNS
    }
    kept = tuple(atlas.arms[position] for position in index)
    header = replace(
        atlas.header,
        fingerprint=fingerprint_of("columns", atlas.header.fingerprint, kept),
        context_arm=_moved(atlas, index),
    )
    return replace(atlas, arms=kept, header=header, **picked).checked()


def save_columns(atlas: OutcomeAtlas, folder: Path) -> Path:
    """Writes such an atlas where it is not there yet: other processes map it."""
    if not (folder / HEADER_FILE).exists():
        atlas.save(folder)
    return folder


def _moved(atlas: OutcomeAtlas, index: list[int]) -> int | None:
    """Where the arm that gives the contexts is now; None: `context_macs` counts for all."""
    arm = atlas.header.context_arm
    return index.index(arm) if arm in index else None
