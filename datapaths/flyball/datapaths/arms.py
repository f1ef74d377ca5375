"""The arms of a data path: the utilizations it is served at."""

import math
from collections.abc import Sequence

from flyball.datapaths.errors import InvalidArms

__all__ = ["default_arms", "validated_arms"]


def default_arms(count: int = 10) -> tuple[float, ...]:
    """k / count for k = 1 ... count (TNN section 3.3, read as in "u in {k/K}")."""
    if count < 1:
        raise InvalidArms(f"There must be at least one arm, not {count}.")
    return tuple(k / count for k in range(1, count + 1))


def validated_arms(arms: Sequence[float]) -> tuple[float, ...]:
    """Checks that the arms increase strictly and lie in (0, 1].

    Raises:
        InvalidArms: they do not; the message names the first that breaks the rule.
    """
    values = tuple(float(arm) for arm in arms)
    if not values:
        raise InvalidArms("There must be at least one arm; the list is empty.")
    for position, arm in enumerate(values):
        if not math.isfinite(arm) or not 0.0 < arm <= 1.0:
            raise InvalidArms(
                f"Every arm is a utilization in (0, 1]; arm {position} is {arm}. "
                "Give arms such as 0.25,0.5,0.75,1.0."
            )
        if position and arm <= values[position - 1]:
            raise InvalidArms(
                f"Arms increase strictly; arm {position} is {arm} after {values[position - 1]}. "
                f"Give them in order: {', '.join(str(a) for a in sorted(set(values)))}."
            )
    return values
