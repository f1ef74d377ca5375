"""Bodies in three dimensions: joint angles within anatomical limits, and where they put the joints.

N bodies. Lengths are in body heights; x runs to the person's left, y up, z forward. Seen from the
front: u runs right, v down, and depth grows towards the camera.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.clip_motions import blend
from flyball.datapaths.pose.joints import JOINTS

__all__ = ["DRAWS", "EXTRA", "POINTS", "Body", "bodies_of"]

Floats = NDArray[np.float64]

EXTRA = (
    *("right hand", "left hand", "right toe", "left toe"),
    *("right eye", "left eye", "face", "crown"),
)
POINTS = (*JOINTS, *EXTRA)
"""What is known of a body: the joints, and what is drawn beyond them."""

# Uniform numbers of a body, in this order.
_SIDED = ("spread", "raise", "elbow", "inward", "hip_spread", "hip_raise", "knee")
DRAWS = (
    *("style", "yaw", "pitch", "roll", "bend", "lean", "twist", "turn", "nod", "tilt"),
    *("legs", "trunk", "arms", "breadth", "head"),
    *(f"{side}_{name}" for side in ("right", "left") for name in _SIDED),
)

# Share of bodies of each style, and the range of each angle in degrees.
_STYLES = {"standing": 0.45, "moving": 0.35, "sitting": 0.2}
_ANGLES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "standing": {
        "spread": (4, 50),
        "raise": (-25, 40),
        "elbow": (0, 70),
        "inward": (-10, 60),
        "hip_spread": (1, 16),
        "hip_raise": (-12, 18),
        "knee": (0, 16),
    },
    "moving": {
        "spread": (5, 140),
        "raise": (-40, 120),
        "elbow": (0, 130),
        "inward": (-40, 70),
        "hip_spread": (2, 40),
        "hip_raise": (-25, 75),
        "knee": (0, 95),
    },
    "sitting": {
        "spread": (5, 70),
        "raise": (-10, 80),
        "elbow": (10, 120),
        "inward": (-20, 70),
        "hip_spread": (4, 32),
        "hip_raise": (45, 95),
        "knee": (50, 105),
    },
}
_YAW = (35.0, 75.0)  # at most, of the easiest and of the hardest body
_ROLL = (6.0, 22.0)
_PITCH = 12.0
_TRUNK = {"bend": (-8.0, 28.0), "lean": (-14.0, 14.0), "twist": (-20.0, 20.0)}
_HEAD = {"turn": (-35.0, 35.0), "nod": (-18.0, 22.0), "tilt": (-14.0, 14.0)}


@dataclass(frozen=True)
class Body:
    """N bodies as they are seen, the pelvis at the origin.

    Attributes:
        points: u, v and depth of `POINTS`; (N, P, 3).
        head: distance from the upper neck to the head top, not foreshortened; (N,).
    """

    points: Floats
    head: Floats


def bodies_of(draws: Mapping[str, Floats], difficulty: Floats) -> Body:
    """Poses bodies.

    Args:
        draws: `DRAWS`, uniform in [0, 1); (N,) each.
        difficulty: in [0, 1]: turns the body farther from the camera; (N,).
    """
    angle = {name: _styled(name, draws) for name in DRAWS if name.partition("_")[2] in _SIDED}
    own = {
        name: np.radians(blend(limits, draws[name])) for name, limits in (_TRUNK | _HEAD).items()
    }
    yaw, roll = (
        np.radians(blend(most, difficulty)) * (2.0 * draws[name] - 1.0)
        for name, most in (("yaw", _YAW), ("roll", _ROLL))
    )
    pitch = np.radians(_PITCH) * (2.0 * draws["pitch"] - 1.0)
    view = _about_z(roll) @ _about_x(pitch) @ _about_y(yaw)
    trunk = view @ _about_y(own["twist"]) @ _about_x(own["bend"]) @ _about_z(own["lean"])
    skull = trunk @ _about_y(own["turn"]) @ _about_x(own["nod"]) @ _about_z(own["tilt"])
    arm, leg, torso, broad = (
        0.9 + 0.2 * draws[name] for name in ("arms", "legs", "trunk", "breadth")
    )
    head = 0.135 + 0.02 * draws["head"]
    place: dict[str, Floats] = {"pelvis": np.zeros((len(head), 3))}
    place["thorax"] = _along(trunk, 0.0, 0.285 * torso, 0.0)
    place["upper neck"] = place["thorax"] + _along(trunk, 0.0, 0.055, 0.008)
    for name, ahead, up in (("head top", 0.0, 1.0), ("face", 0.012, 0.45), ("crown", -0.008, 0.6)):
        place[name] = place["upper neck"] + _along(skull, 0.0, up * head, ahead)
    for side, outward in (("right", -1.0), ("left", 1.0)):
        place[f"{side} eye"] = place["upper neck"] + _along(
            skull, 0.024 * outward, 0.55 * head, 0.062
        )
        _arm(place, side, outward, trunk, angle, arm, broad)
        _leg(place, side, outward, view, angle, leg, broad)
    points = np.stack([place[name] for name in POINTS], axis=1)
    return Body(points * (1.0, -1.0, 1.0), head)


def _arm(
    place: dict[str, Floats],
    side: str,
    outward: float,
    trunk: Floats,
    angle: dict[str, Floats],
    length: Floats,
    broad: Floats,
) -> None:
    """Adds shoulder, elbow, wrist and hand."""
    upper = (
        trunk
        @ _about_z(outward * angle[f"{side}_spread"])
        @ _about_x(-angle[f"{side}_raise"])
        @ _about_y(-outward * angle[f"{side}_inward"])
    )
    lower = upper @ _about_x(-angle[f"{side}_elbow"])
    shoulder = place["thorax"] + _along(trunk, 0.118 * outward * broad, -0.012, 0.0)
    place[f"{side} shoulder"] = shoulder
    place[f"{side} elbow"] = shoulder + _along(upper, 0.0, -0.175 * length, 0.0)
    place[f"{side} wrist"] = place[f"{side} elbow"] + _along(lower, 0.0, -0.15 * length, 0.0)
    place[f"{side} hand"] = place[f"{side} wrist"] + _along(lower, 0.0, -0.035 * length, 0.0)


def _leg(
    place: dict[str, Floats],
    side: str,
    outward: float,
    view: Floats,
    angle: dict[str, Floats],
    length: Floats,
    broad: Floats,
) -> None:
    """Adds hip, knee, ankle and toe."""
    thigh = (
        view
        @ _about_z(outward * angle[f"{side}_hip_spread"])
        @ _about_x(-angle[f"{side}_hip_raise"])
    )
    shin = thigh @ _about_x(angle[f"{side}_knee"])
    hip = _along(view, 0.078 * outward * broad, -0.01, 0.0)
    place[f"{side} hip"] = hip
    place[f"{side} knee"] = hip + _along(thigh, 0.0, -0.24 * length, 0.0)
    place[f"{side} ankle"] = place[f"{side} knee"] + _along(shin, 0.0, -0.235 * length, 0.0)
    place[f"{side} toe"] = place[f"{side} ankle"] + _along(shin, 0.025 * outward, -0.03, 0.09)


def _styled(name: str, draws: Mapping[str, Floats]) -> Floats:
    """The angle of a limb in radians, in the range of the body's style; (N,)."""
    kind = name.partition("_")[2]
    ends = np.cumsum(list(_STYLES.values()))[:-1]
    style = np.searchsorted(ends, draws["style"], side="right")
    ranges = np.array([_ANGLES[each][kind] for each in _STYLES], np.float64)[style]
    low, high = ranges.T
    angle: Floats = np.radians(low + (high - low) * draws[name])
    return angle


def _along(axes: Floats, x: Floats | float, y: Floats | float, z: Floats | float) -> Floats:
    """A vector of a turned frame, in that of the camera; (N, 3)."""
    first, second, third = (np.asarray(part)[..., None] for part in (x, y, z))
    moved: Floats = first * axes[:, :, 0] + second * axes[:, :, 1] + third * axes[:, :, 2]
    return moved


def _about_x(angle: Floats) -> Floats:
    return _turn(angle, 1, 2)


def _about_y(angle: Floats) -> Floats:
    return _turn(angle, 2, 0)


def _about_z(angle: Floats) -> Floats:
    return _turn(angle, 0, 1)


def _turn(angle: Floats, first: int, second: int) -> Floats:
    """Rotations that bring axis `first` towards axis `second`; (N, 3, 3)."""
    turn = np.zeros((len(angle), 3, 3))
    turn[:, range(3), range(3)] = 1.0
    turn[:, first, first] = turn[:, second, second] = np.cos(angle)
    turn[:, second, first] = np.sin(angle)
    turn[:, first, second] = -np.sin(angle)
    return turn
