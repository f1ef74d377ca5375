"""What Ray and Tune need for nothing: tasks, calls and trials a second; for `scaling_measure`.

Its processes import this file, so it imports little.
"""

import contextlib
import io
import pickle
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

__all__ = ["measure_calls", "measure_trials"]

IN_FLIGHT = 2


def measure_calls(count: int) -> dict[str, float]:
    """Tasks and calls of nothing a second, and what one says.

    Args:
        count: of each.

    Returns:
        `tasks_per_s`, sent at once; `calls_per_s` of two actors with as many in flight as the
        atlas gives its workers; `message_bytes` of a shard's order and answer.
    """
    nothing = ray.remote(_nothing)
    ray.get([nothing.remote(k) for k in range(8)])
    start = time.monotonic()
    ray.get([nothing.remote(k) for k in range(count)])
    tasks = count / (time.monotonic() - start)
    kind: Any = ray.remote(_Echo)
    actors = [kind.options(num_cpus=0.5).remote() for _ in range(2)]
    ray.get([actor.build.remote(0) for actor in actors])

    def deal() -> None:
        flying = {actor.build.remote(k): actor for k in range(IN_FLIGHT) for actor in actors}
        for number in range(count):
            (ref,), _ = ray.wait(list(flying), num_returns=1)
            actor = flying.pop(ref)
            ray.get(ref)
            flying[actor.build.remote(number)] = actor
        ray.get(list(flying))

    start = time.monotonic()
    deal()
    calls = count / (time.monotonic() - start)
    for actor in actors:
        ray.kill(actor)
    size = len(pickle.dumps(("build", (1000,)))) + len(pickle.dumps(10_240))
    return {"tasks_per_s": tasks, "calls_per_s": calls, "message_bytes": float(size)}


def measure_trials(
    folder: Path, few: int, many: int, takes: float
) -> tuple[dict[str, float], float]:
    """What Tune needs for a trial, from two numbers of trials of nothing.

    Args:
        folder: of Tune's own files.
        few, many: trials, two at a time.
        takes: seconds of a trial of the third run.

    Returns:
        `tune_start_s` and `trials_per_s`; and the seconds of `many` trials that take time.
    """
    _tuned(folder, 1, 0.0)  # what Tune does once in a process
    short, long = (_tuned(folder, count, 0.0) for count in (few, many))
    a_trial = max(1e-3, (long - short) / (many - few))
    rates = {"tune_start_s": max(0.0, short - few * a_trial), "trials_per_s": 1 / a_trial}
    return rates, _tuned(folder, many, takes)


class _Echo:
    def build(self, number: int) -> int:
        return number


def _nothing(number: int) -> int:
    return number


class _Trial(tune.Trainable):
    """A point that takes as long as it is told."""

    def setup(self, config: dict[str, Any]) -> None:
        self._takes = float(config["takes"])

    def step(self) -> dict[str, Any]:
        time.sleep(self._takes)
        return {"done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


def _tuned(folder: Path, count: int, takes: float) -> float:
    tuner = tune.Tuner(
        _Trial,
        param_space={"takes": takes, "point": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
        run_config=tune.RunConfig(
            name=f"{count}-{takes}",
            storage_path=str(folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its tables, which no setting silences
        start = time.monotonic()
        found = tuner.fit()
        spent = time.monotonic() - start
    if found.num_errors:
        raise RuntimeError(
            f"Trials of nothing end well; {found.num_errors} did not. {found.errors}"
        )
    return spent
