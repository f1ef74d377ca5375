"""How a sweep searches and what each of its trials gets; what it varies is in `space`."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.platform.job import Job
from flyball.platform.sweep.points import make_points
from flyball.platform.sweep.space import Settings, Space

__all__ = ["Search", "SweepConfig"]

Search = Literal["grid", "random", "optuna"]
DEFAULT_SAMPLES = 64


@dataclass(frozen=True)
class SweepConfig:
    """A sweep over a job's fields.

    Attributes:
        space: fields and their values.
        search: "grid", every combination of listed values; "random", drawn from the seed;
            "optuna", proposed by Optuna's sampler from what earlier points gained.
        samples: points of a random or Optuna search, >= 1; of a grid None.
        asha: end points early that gain little (asynchronous successive halving).
        population: up to as many points learn in one trial, as one batch; 1: each alone.
        cpus_per_trial: CPUs that Ray sets aside for a trial, >= 0, also a part of one.
        gpus_per_trial: GPUs likewise.
        seed: of the points that are drawn; that of the learning is learn.seed.
        concurrent: trials at a time, >= 1; None: as many as fit.
        max_failures: how often a trial is begun again after its process died, >= 0.

    Raises:
        UnknownName: no such search.
        InvalidSetting: a value breaks its rule, or two do not go together.
    """

    space: Space
    search: Search = "grid"
    samples: int | None = None
    asha: bool = False
    population: int = 1
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    seed: int = 0
    concurrent: int | None = None
    max_failures: int = 3

    def __post_init__(self) -> None:
        if self.search not in get_args(Search):
            raise unknown_name("search", str(self.search), get_args(Search))
        if self.search == "grid" and self.samples is not None:
            raise InvalidSetting(
                f"A grid takes every combination; --samples {self.samples} is for --search random "
                "and optuna. Leave it out, or name one of them."
            )
        self._check_numbers()
        if self.asha and self.population > 1:
            raise InvalidSetting(
                "A population learns as one batch, and --asha ends points one by one. "
                "Leave one of them out."
            )
        if self.search == "optuna" and self.population > 1:
            raise InvalidSetting(
                "Optuna proposes points one by one, and a population takes many at once. "
                "Use --population with --search grid or random."
            )
        if self.search != "optuna":
            self.settings()

    @property
    def points(self) -> int:
        """How many points the sweep has."""
        if self.search == "optuna":
            return self.samples or DEFAULT_SAMPLES
        return len(self.settings())

    def settings(self) -> tuple[Settings, ...]:
        """The points that are known before the sweep: of a grid or a random search."""
        if self.search == "grid":
            return self.space.grid()
        return self.space.drawn(self.samples or DEFAULT_SAMPLES, self.seed)

    def check(self, job: Job) -> None:
        """Tries the points on a job, before anything is written.

        Raises:
            UnknownName, InvalidSetting: a point makes no job, or cannot learn as is asked.
        """
        settings = () if self.search == "optuna" else self.settings()
        points = make_points(job, settings, atlas="")
        jobs = [point.job(job) for point in points] or [job]
        if self.asha and any(one.learn.algorithm == "plain" for one in jobs):
            raise InvalidSetting(
                "--asha compares points at their checkpoints, and learn.algorithm=plain keeps "
                "none. Set --set learn.algorithm=rllib_atlas, or leave --asha out."
            )
        is_alone = self.gpus_per_trial > 0 and self.population == 1
        if is_alone and any(one.learn.algorithm == "plain" for one in jobs):
            raise InvalidSetting(
                "learn.algorithm=plain learns on the CPU; --gpus-per-trial "
                f"{self.gpus_per_trial:g} would leave a GPU idle. Set it to 0, give "
                "--population 64, or set --set learn.algorithm=rllib_atlas."
            )

    def plan(self) -> dict[str, Any]:
        """What decides which points there are and what they give; plain values."""
        return {
            "space": list(self.space.texts()),
            "search": self.search,
            "samples": self.points,
            "asha": self.asha,
            "population": self.population,
            "seed": self.seed,
            "uses_gpu": self.gpus_per_trial > 0,
        }

    def _check_numbers(self) -> None:
        wholes: dict[str, tuple[int | None, int]] = {
            "samples": (self.samples, 1),
            "population": (self.population, 1),
            "concurrent": (self.concurrent, 1),
            "seed": (self.seed, 0),
            "max_failures": (self.max_failures, 0),
        }
        for name, (value, least) in wholes.items():
            if value is not None and value < least:
                raise InvalidSetting(
                    f"--{name.replace('_', '-')} is a whole number, {least} or more; it is {value}."
                )
        for name in ("cpus_per_trial", "gpus_per_trial"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value > 1 and value != int(value)):
                raise InvalidSetting(
                    f"--{name.replace('_', '-')} is 0 or more: a part of one, or whole ones; it "
                    f"is {value}."
                )
        if self.cpus_per_trial == self.gpus_per_trial == 0:
            raise InvalidSetting(
                "A trial needs a part of a CPU or GPU, or Ray starts all at once. "
                "Give --cpus-per-trial 0.5."
            )
