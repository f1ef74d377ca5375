"""`--set FIELD=VALUE`: typed changes to a job by dotted name; unknown fields fail.

Values are read by the field's own type: numbers, names, `none`, `true`, and lists such as
`0.25,0.5,1`, `resnet18,resnet50` or `((64,64),(128,))`.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = ["field_names", "with_overrides"]

AnyJob = TypeVar("AnyJob")


def with_overrides(job: AnyJob, settings: Sequence[str]) -> AnyJob:
    """The job with some fields changed.

    Args:
        job: what a preset gave.
        settings: texts of the form FIELD=VALUE, applied in order.

    Raises:
        UnknownName: there is no such field; suggests the nearest.
        InvalidSetting: the text has no "=", or the value is not of the field's type or range.
    """
    changes: dict[str, Any] = {}
    known = _fields(job)
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidSetting(
                f"An override is FIELD=VALUE; got {text!r}. For example --set reward.gamma1=0.25."
            )
        name = name.strip()
        if name not in known:
            raise unknown_name(
                "field", name, known, advice="`flyball presets NAME` shows them with their values."
            )
        changes[name] = _parsed(name, value.strip(), known[name])
    changed: AnyJob = _rebuilt(job, changes)
    return changed


def field_names(job: Any) -> dict[str, Any]:
    """Every field that can be set, by dotted name, with its value."""
    values: dict[str, Any] = {}
    for name in _fields(job):
        part: Any = job
        for step in name.split("."):
            part = getattr(part, step)
        values[name] = part
    return values


def _fields(part: Any, prefix: str = "") -> dict[str, Any]:
    hints = typing.get_type_hints(type(part))
    found: dict[str, Any] = {}
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            found |= _fields(value, f"{prefix}{item.name}.")
        elif prefix or item.name != "name":
            found[prefix + item.name] = hints[item.name]
    return found


def _rebuilt(part: Any, changes: dict[str, Any]) -> Any:
    """A copy with the changes; every part is checked once, whole."""
    here = {name: value for name, value in changes.items() if "." not in name}
    below: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            below.setdefault(head, {})[rest] = value
    for head, deeper in below.items():
        here[head] = _rebuilt(getattr(part, head), deeper)
    return dataclasses.replace(part, **here) if here else part


def _parsed(name: str, text: str, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        if len(options) < len(get_args(hint)) and text.lower() in ("none", "null", ""):
            return None
        return _parsed(name, text, options[0])
    if origin is Literal:
        values = {str(value): value for value in get_args(hint)}
        if text not in values:
            raise unknown_name(f"value of {name}", text, values)
        return values[text]
    if origin is tuple:
        return _parsed_tuple(name, text, hint)
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        if hint is int:
            return int(text)
        if hint is float:
            return float(text)
    except (KeyError, ValueError):
        raise InvalidSetting(
            f"{name} is of type {hint.__name__}; {text!r} is not. "
            f"Give it as --set {name}={_EXAMPLES[hint]}."
        ) from None
    return text


def _parsed_tuple(name: str, text: str, hint: Any) -> tuple[Any, ...]:
    if get_args(hint)[0] is str:
        words = [word.strip(" '\"") for word in text.strip("()[] ").split(",")]
        return tuple(word for word in words if word)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = None
    if isinstance(value, int | float):
        value = (value,)
    if not isinstance(value, tuple | list) or not _is_numbers(value):
        raise InvalidSetting(
            f"{name} is a list of numbers; got {text!r}. "
            f"Give it with commas, such as --set {name}=0.25,0.5,1."
        )
    element = get_args(hint)[0]
    return tuple(
        tuple(row) if isinstance(row, tuple | list) else (float(row) if element is float else row)
        for row in value
    )


def _is_numbers(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_numbers(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


_EXAMPLES: dict[type, str] = {bool: "true", int: "8", float: "0.5"}
