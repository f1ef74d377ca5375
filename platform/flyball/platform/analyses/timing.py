"""Times and energies of arms, measured interleaved; what they mean is in `measured`."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.progress import Progress, Report, silent
from flyball.platform.analyses.energy import EnergyMeter

__all__ = ["Clocks", "MeasureConfig", "Setting", "Timed", "setting_of", "time_arms"]


@dataclass(frozen=True)
class MeasureConfig:
    """How arms are timed.

    Attributes:
        batch: images in a pass.
        rounds: every round visits every arm once, each time in another order.
        seconds: a visit repeats its pass for at least so long.
        metered_seconds: the same where energy is read: counters move in steps.
        seed: of the orders.

    Raises:
        InvalidSetting: a value breaks its rule.
    """

    batch: int = 64
    rounds: int = 15
    seconds: float = 0.1
    metered_seconds: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rounds < 1 or min(self.seconds, self.metered_seconds) < 0:
            raise InvalidSetting(
                "A measurement needs a batch of at least 1 image, at least 1 round, and seconds "
                f"of at least 0; batch is {self.batch}, rounds {self.rounds}, seconds "
                f"{self.seconds} and {self.metered_seconds}. Leave them out for the defaults."
            )


@dataclass(frozen=True)
class Clocks:
    """What is read around a visit; `wait` returns when the device has finished."""

    process: Callable[[], float] = time.process_time
    wall: Callable[[], float] = time.perf_counter
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Timed:
    """One arm, round by round; R rounds.

    Attributes:
        process: CPU seconds of this process for one pass, (R,).
        wall: wall-clock seconds for one pass, (R,).
        joules: energy for one pass, (R,); None: unknown.
    """

    process: NDArray[np.float64]
    wall: NDArray[np.float64]
    joules: NDArray[np.float64] | None


@dataclass(frozen=True)
class Setting:
    """Where and when something was measured, without which its figures say nothing.

    Attributes:
        device: torch device.
        hardware: name of the processor or GPU.
        threads: of torch on the CPU.
        batch: images in a pass.
        rounds: visits of every arm.
        precision: of the arithmetic.
        date: UTC, ISO 8601.
        torch_version: of torch.
        meter: what counted the energy; None: nothing could.
        why_no_energy: the reason, where `meter` is None.
    """

    device: str
    hardware: str
    threads: int
    batch: int
    rounds: int
    precision: str
    date: str
    torch_version: str
    meter: str | None
    why_no_energy: str


def time_arms(
    run: Callable[[float], object],
    arms: Sequence[float],
    config: MeasureConfig,
    *,
    meter: EnergyMeter | None = None,
    clocks: Clocks | None = None,
    report: Report = silent,
) -> Mapping[float, Timed]:
    """Times a pass at every arm, arms interleaved so that drifts of the machine hit all alike.

    Args:
        run: one pass at a utilization.
        arms: utilizations.
        config: rounds and how long a visit lasts.
        meter: counts energy, where one can be read.
        clocks: what is read.
        report: hears of every round.
    """
    clocks = clocks or Clocks()
    least = config.seconds if meter is None else config.metered_seconds
    repeats = {u: _repeats(lambda u=u: run(u), least, clocks) for u in arms}  # type: ignore[misc]
    rng = np.random.default_rng(config.seed)
    found: dict[float, list[tuple[float, float, float]]] = {u: [] for u in arms}
    for number in range(config.rounds):
        for place in rng.permutation(len(arms)):
            u = arms[int(place)]
            energy = 0.0 if meter is None else meter.joules()
            wall, process = clocks.wall(), clocks.process()
            for _ in range(repeats[u]):
                run(u)
            clocks.wait()
            process, wall = clocks.process() - process, clocks.wall() - wall
            energy = 0.0 if meter is None else meter.joules() - energy
            found[u].append((process / repeats[u], wall / repeats[u], energy / repeats[u]))
        report(Progress("measure", number + 1, config.rounds, f"{len(arms)} arms"))
    timed = {}
    for u, visits in found.items():
        process_times, wall_times, energies = np.array(visits).T
        timed[u] = Timed(process_times, wall_times, None if meter is None else energies)
    return timed


def setting_of(
    device: str, config: MeasureConfig, meter: EnergyMeter | None, why_no_energy: str
) -> Setting:
    """Where and when: read from the machine."""
    is_gpu = device.startswith("cuda")
    return Setting(
        device=device,
        hardware=torch.cuda.get_device_name(device) if is_gpu else _processor(),
        threads=torch.get_num_threads(),
        batch=config.batch,
        rounds=config.rounds,
        precision="float32",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        torch_version=torch.__version__,
        meter=None if meter is None else meter.name,
        why_no_energy=why_no_energy,
    )


def _repeats(once: Callable[[], object], least: float, clocks: Clocks) -> int:
    """Passes that last `least` seconds; the first pass, which packs weights, is not counted."""
    once()
    clocks.wait()
    count = 1
    while True:
        start = clocks.wall()
        for _ in range(count):
            once()
        clocks.wait()
        passed = clocks.wall() - start
        if passed >= least / 4 or count >= 1 << 20:
            return max(1, round(count * least / passed)) if passed > 0 else count
        count *= 2


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical processors"
