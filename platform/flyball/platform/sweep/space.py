"""What a sweep varies: fields and their values or ranges, read from texts FIELD=SPEC.

```text
reward.gamma1=0,0.25,0.5                  values; choice(0,0.25,0.5) is the same
arms=0.5,1|0.25,0.5,1                     of fields that are lists themselves
learn.learning_rate=loguniform(1e-4,1e-2) a range, even in the logarithm
learn.entropy=uniform(0,0.2)              a range
controller.width=randint(8,64)            whole numbers, both ends included
```
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.platform.job import Job
from flyball.platform.overrides import field_names, with_overrides

__all__ = ["DEFAULT_SPACE", "Dimension", "Settings", "Space", "parse_space"]

Settings = tuple[tuple[str, str], ...]
"""(field, value as text) of every swept field, in the order of the space."""

DEFAULT_SPACE = (
    "reward.gamma1=0,0.25,0.5,1",
    "reward.gamma2=0.5,1.5,4,8",
    "reward.complexity_weight=0,0.25,0.5,1",
)
SWEEPABLE = ("arms", "controller.", "learn.", "reward.")
MOST_POINTS = 10_000
_TRIES = 50  # draws for one new point before a space counts as used up
_CALL = re.compile(r"([a-z]+)\((.*)\)", re.DOTALL)
_EXAMPLE = "For example --sweep reward.gamma1=0,0.5,1 or learn.learning_rate=loguniform(1e-4,1e-2)."
_WHY_NOT = {
    "data": "changes the images, and with them the data path",
    "path": "changes the data path",
    "phase1": "trains another data path",
    "outcomes": "changes the atlas",
    "evaluation": "changes how points are measured, and all are measured alike",
    "storage": "says where the sweep writes",
    "tracking": "says where the sweep is recorded",
    "compute": "says what the sweep runs on",
}


@dataclass(frozen=True)
class Dimension:
    """One swept field.

    Attributes:
        field: dotted name, as in --set.
        kind: how its values are given.
        values: the values as texts; () for a range.
        low, high: ends of a range, both included.
    """

    field: str
    kind: Literal["values", "uniform", "loguniform", "randint"]
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, rng: np.random.Generator) -> str:
        """One value, as text."""
        if self.kind == "values":
            return self.values[int(rng.integers(len(self.values)))]
        if self.kind == "randint":
            return str(int(rng.integers(int(self.low), int(self.high), endpoint=True)))
        if self.kind == "uniform":
            return number_text(float(rng.uniform(self.low, self.high)))
        return number_text(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def __str__(self) -> str:
        if self.kind == "values":
            return f"{self.field}={('|' if self._is_lists else ',').join(self.values)}"
        return f"{self.field}={self.kind}({self.low:g},{self.high:g})"

    @property
    def _is_lists(self) -> bool:
        return any("," in value for value in self.values)


@dataclass(frozen=True)
class Space:
    """The fields of a sweep, in the order they were given."""

    dimensions: tuple[Dimension, ...]

    @property
    def is_listed(self) -> bool:
        """Every field has listed values: the points can be counted."""
        return all(dimension.kind == "values" for dimension in self.dimensions)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the swept fields."""
        return tuple(dimension.field for dimension in self.dimensions)

    def texts(self) -> tuple[str, ...]:
        """The FIELD=SPEC texts that give this space again."""
        return tuple(str(dimension) for dimension in self.dimensions)

    def grid(self) -> tuple[Settings, ...]:
        """Every combination of listed values; the last field changes fastest.

        Raises:
            InvalidSetting: a field has a range, or there are too many combinations.
        """
        for dimension in self.dimensions:
            if dimension.kind != "values":
                raise InvalidSetting(
                    f"A grid takes listed values, and {dimension} is a range. List some, or draw "
                    "from it with --search random."
                )
        count = math.prod(len(dimension.values) for dimension in self.dimensions)
        if count > MOST_POINTS:
            raise InvalidSetting(
                f"A grid has at most {MOST_POINTS:,} points; this one has {count:,}. List fewer "
                "values, or draw some of them with --search random --samples 64."
            )
        names = self.fields
        rows = itertools.product(*(dimension.values for dimension in self.dimensions))
        return tuple(tuple(zip(names, row, strict=True)) for row in rows)

    def drawn(self, count: int, seed: int) -> tuple[Settings, ...]:
        """Up to `count` different points, drawn from the seed; fewer if there are no more."""
        rng = np.random.default_rng(seed)
        found: dict[Settings, None] = {}
        for settings in itertools.islice(self._draws(rng), count * _TRIES):
            found[settings] = None
            if len(found) == count:
                break
        return tuple(found)

    def _draws(self, rng: np.random.Generator) -> Iterator[Settings]:
        while True:
            yield tuple((dimension.field, dimension.draw(rng)) for dimension in self.dimensions)


def parse_space(texts: Sequence[str], job: Job) -> Space:
    """Reads the fields of a sweep.

    Args:
        texts: FIELD=SPEC each.
        job: whose fields they are; every listed value and end of a range is tried on it.

    Raises:
        UnknownName: there is no such field; suggests the nearest.
        InvalidSetting: no field, one given twice, one that the atlas depends on, a specification
            that cannot be read, or a value that the field does not take.
    """
    if not texts:
        raise InvalidSetting(f"A sweep varies at least one field; none came. {_EXAMPLE}")
    space = Space(tuple(_dimension(text, job) for text in texts))
    for name in space.fields:
        if space.fields.count(name) > 1:
            raise InvalidSetting(
                f"Each field is swept once; {name} came more often. Join its values."
            )
    return space


def number_text(value: float) -> str:
    """A drawn number with six significant digits: short, and the same point when read again."""
    return f"{value:.6g}"


def _dimension(text: str, job: Job) -> Dimension:
    name, equals, specification = (part.strip() for part in text.partition("="))
    if not equals or not name or not specification:
        raise InvalidSetting(f"A swept field is FIELD=SPEC; got {text!r}. {_EXAMPLE}")
    known = field_names(job)
    if name not in known:
        raise unknown_name(
            "field", name, known, advice="`flyball presets NAME` shows them with their values."
        )
    if not name.startswith(SWEEPABLE):
        reason = _WHY_NOT[name.partition(".")[0]]
        raise InvalidSetting(
            f"All points of a sweep share one atlas, and {name} {reason}. Set it for the whole "
            f"sweep with --set {name}=VALUE; sweep fields of reward, controller or learn, or arms."
        )
    dimension = _read(name, specification, is_list=isinstance(known[name], tuple))
    if dimension.kind != "values":
        for end in (dimension.low, dimension.high):
            is_whole = dimension.kind == "randint"
            with_overrides(job, [f"{name}={int(end) if is_whole else end}"])
    return dimension


def _read(name: str, specification: str, *, is_list: bool) -> Dimension:
    call = _CALL.fullmatch(specification)
    if call is not None and call[1] in ("uniform", "loguniform", "randint"):
        return _range(name, call[1], call[2])
    if call is not None and call[1] != "choice":
        raise unknown_name(
            f"way to sweep {name}:", call[1], ("choice", "uniform", "loguniform", "randint")
        )
    if call is None and "(" in specification and not is_list:
        raise InvalidSetting(f"Cannot read {specification!r} for {name}. {_EXAMPLE}")
    values = (specification if call is None else call[2]).split("|" if is_list else ",")
    listed = tuple(value.strip() for value in values)
    if "" in listed:
        raise InvalidSetting(
            f"{name} is swept over values between {'bars' if is_list else 'commas'}, and one of "
            f"{specification!r} is empty. {_EXAMPLE}"
        )
    if len(set(listed)) < len(listed):
        raise InvalidSetting(f"The values of {name} differ; got {specification!r} with one twice.")
    return Dimension(name, "values", listed)


def _range(name: str, kind: str, ends: str) -> Dimension:
    try:
        low, high = (float(end) for end in ends.split(","))
    except ValueError:
        raise InvalidSetting(
            f"{kind} takes two numbers, {kind}(LOW,HIGH); {name} came with {ends!r}. {_EXAMPLE}"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidSetting(
            f"A range goes from a lower to a higher number; that of {name} is {ends!r}."
        )
    if kind == "loguniform":
        if low <= 0:
            raise InvalidSetting(
                f"loguniform needs numbers above 0; {name} came from {low:g}. Use uniform."
            )
        return Dimension(name, "loguniform", low=low, high=high)
    if kind == "randint":
        if low != int(low) or high != int(high):
            raise InvalidSetting(f"randint takes whole numbers; {name} came with {ends!r}.")
        return Dimension(name, "randint", low=low, high=high)
    return Dimension(name, "uniform", low=low, high=high)
