"""What MLflow accepts as a metric's name and as a parameter; pure functions."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["flat_params", "metric_name"]

# Servers before MLflow 2.8 cut at 500; cutting there ourselves makes every server show the same.
PARAM_LENGTH = 500
NAME_LENGTH = 250


def metric_name(name: str) -> str:
    """The name with what MLflow refuses replaced by `_`; at most 250 characters."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:NAME_LENGTH]


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as text under dotted names.

    A text of more than 500 characters keeps its beginning and 12 digits of its SHA-256, so that
    two that differ stay different.
    """
    flat: dict[str, str] = {}
    for name, value in params.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flat_params(value, f"{dotted}."))
        else:
            flat[metric_name(dotted)] = _cut(str(value))
    return flat


def _cut(text: str) -> str:
    if len(text) <= PARAM_LENGTH:
        return text
    tail = f"... sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return text[: PARAM_LENGTH - len(tail)] + tail
