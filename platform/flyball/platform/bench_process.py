"""Measuring in a process of its own: one thread, memory kept, competitors in turn, CPU time.

The process is the benchmark's own module, run with a plan as JSON in its only argument; it answers
with JSON lines. What they mean is the benchmark's business.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from flyball.datapaths.progress import Progress, Report

__all__ = ["ENVIRONMENT", "in_turn", "lines_of", "median_ratio", "say"]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""Of the measuring process: one thread, and freed memory is kept (glibc)."""

LEAST_TURN = 0.05


def lines_of(module: str, plan: Any, report: Report) -> Iterator[dict[str, Any]]:
    """What a measuring process says, line by line; its progress goes to `report`.

    Args:
        module: to run, by its full name.
        plan: what to measure, as plain values.
        report: told of every line "progress": [done, total, note].

    Raises:
        RuntimeError: the process failed; says its last words.
    """
    with tempfile.TemporaryDirectory() as folder, Path(folder, "errors").open("w+") as errors:
        environment = {**os.environ, **ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": folder}
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        try:
            for text in process.stdout:
                line = json.loads(text)
                if "progress" in line:
                    done, total, note = line["progress"]
                    report(Progress("bench", done, total, note=note))
                else:
                    yield line
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code:
            errors.seek(0)
            last = "\n".join(errors.read().splitlines()[-12:])
            raise RuntimeError(
                "The benchmark measures in a process of its own, which must end well; it ended "
                f"with code {code}:\n{last}\nIf the compiler failed, install a C++ compiler: the "
                "dense network it makes is one of the baselines."
            )


def say(**line: object) -> None:
    """One line from the measuring process to the one that reads `lines_of`."""
    print(json.dumps(line), flush=True)


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    turn: float = LEAST_TURN,
) -> dict[str, tuple[float, ...]]:
    """CPU seconds of every call, round by round: in each round everything has one turn.

    Args:
        calls: by name.
        rounds: how many.
        report: told how many rounds are done.
        turn: CPU seconds that a turn takes at least, by repeating short calls.
    """
    repeats, seconds = {}, {}
    # Not inference mode: what inductor froze refuses its tensors.
    with torch.no_grad():
        for name, call in calls.items():
            call()
            repeats[name] = max(1, round(turn / max(_seconds(call, 1), 1e-6)))
            seconds[name] = list[float]()
        for index in range(rounds):
            for name, call in calls.items():
                seconds[name].append(_seconds(call, repeats[name]))
            report(index + 1)
    return {name: tuple(values) for name, values in seconds.items()}


def median_ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    """How many times faster ours is: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats
