"""What the configurations of the networks check alike."""

from collections.abc import Iterable, Sequence
from typing import Any

from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = ["Rule", "check_choice", "check_counts", "check_image_size", "check_rules"]

Rule = tuple[str, bool, str]
"""A field, whether its value keeps the rule, and the rule in words."""


def check_counts(**fields: int | Sequence[int]) -> None:
    """Every field is a whole number, 1 or more, or several of them.

    Raises:
        InvalidSetting: one is not; names it.
    """
    for name, value in fields.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or any(not isinstance(v, int) or v < 1 for v in values):
            fitting = "16,32" if isinstance(value, list | tuple) else "1"
            raise InvalidSetting(
                f"{name} is made of whole numbers, 1 or more; it is {value!r}. "
                f"Set it with --set path.{name}={fitting}."
            )


def check_rules(config: Any, section: str, rules: Iterable[Rule], *, advice: str = "") -> None:
    """Every field keeps its rule.

    Args:
        config: whose fields they are.
        section: of a job the fields belong to, such as "phase1".
        rules: of the fields.
        advice: how to change a field, with NAME for its name; empty: by `--set`.

    Raises:
        InvalidSetting: one does not; names the first.
    """
    for name, holds, rule in rules:
        if not holds:
            how = advice or f"Change it with --set {section}.NAME=VALUE."
            raise InvalidSetting(
                f"{section}.{name} must be {rule}; it is {getattr(config, name)!r}. "
                + how.replace("NAME", name)
            )


def check_choice(field: str, value: str, known: Iterable[str]) -> None:
    """The field has one of the known values.

    Raises:
        UnknownName: it has another.
    """
    choices = list(known)
    if value not in choices:
        raise unknown_name(
            f"value of path.{field}",
            str(value),
            choices,
            advice=f"Set it with --set path.{field}={choices[0]}.",
        )


def check_image_size(size: int, halvings: int) -> None:
    """The image can be halved so often, by layers that keep the odd pixel.

    Raises:
        InvalidSetting: it cannot.
    """
    least = 2**halvings
    if size < least:
        raise InvalidSetting(
            f"This network halves the image {halvings} times: {size} pixels are fewer than "
            f"{least}. Resize with --set data.image_size={max(least, 32)}."
        )
