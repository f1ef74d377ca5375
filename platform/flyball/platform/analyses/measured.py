"""Accuracy, time, power and energy against utilization, as measured on the machine at hand."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.platform.analyses.energy import find_meter
from flyball.platform.analyses.measured_picture import measured_figure
from flyball.platform.analyses.tables import UNKNOWN, aligned, figure_of
from flyball.platform.analyses.timing import (
    Clocks,
    MeasureConfig,
    Setting,
    Timed,
    setting_of,
    time_arms,
)

__all__ = ["Measured", "MeasuredRow", "measure_path", "measured_rows"]


@dataclass(frozen=True)
class MeasuredRow:
    """One arm; whatever could not be read is None, which is unknown and not 0.

    Attributes:
        u: utilization.
        accuracy: share of right answers; None where nobody asked at this u.
        throttle_ratio: executed MACs over those at u = 1: what the time would be if it followed.
        seconds: for one sample, median over rounds: CPU time of the process, all threads
            together; on a GPU wall-clock time until the device has finished.
        low, high: quartiles of the same.
        wall_seconds: wall-clock time for one sample, median.
        joules: energy for one sample, mean over rounds.
        watts: energy over wall-clock time, of all rounds together.
        time_share: median over rounds of the time over that of u = 1 in the same round.
        energy_share, power_share: beside u = 1.
    """

    u: float
    accuracy: float | None
    throttle_ratio: float
    seconds: float
    low: float
    high: float
    wall_seconds: float
    joules: float | None
    watts: float | None
    time_share: float
    energy_share: float | None
    power_share: float | None


@dataclass(frozen=True)
class Measured:
    """TNN Fig. 10: what throttling saves on real hardware."""

    rows: tuple[MeasuredRow, ...]
    setting: Setting
    name: ClassVar[str] = "measured"

    def table(self) -> str:
        """Every arm in its units and beside u = 1, and where all this was measured."""
        rows = [
            [
                f"{r.u:g}",
                UNKNOWN if r.accuracy is None else f"{100 * r.accuracy:.1f}%",
                figure_of(r.throttle_ratio),
                figure_of(1e6 * r.seconds, ",.1f"),
                f"{1e6 * r.low:,.1f} to {1e6 * r.high:,.1f}",
                figure_of(1e6 * r.wall_seconds, ",.1f"),
                figure_of(r.time_share),
                figure_of(r.watts, ".2f"),
                figure_of(r.power_share),
                figure_of(None if r.joules is None else 1e3 * r.joules, ".4f"),
                figure_of(r.energy_share),
            ]
            for r in self.rows
        ]
        kind = "CPU" if self.is_cpu else "GPU"
        titles = ["u", "accuracy", "MAC share", f"{kind} us", "quartiles", "wall us", "time/u=1"]
        titles += ["W", "power/u=1", "mJ", "energy/u=1"]
        return "\n".join([*aligned(titles, rows), "", *self._words()])

    def figure(self) -> Figure:
        """Everything beside its value at u = 1 on the left, time in its unit on the right."""
        return measured_figure(self)

    def summary(self) -> dict[str, float]:
        """The lowest arm beside u = 1; what is unknown is left out."""
        lowest = self.rows[0]
        figures = {
            "lowest/u": lowest.u,
            "lowest/throttle_ratio": lowest.throttle_ratio,
            "lowest/time_share": lowest.time_share,
            "lowest/power_share": lowest.power_share,
            "lowest/energy_share": lowest.energy_share,
            "full/seconds": self.rows[-1].seconds,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Everything that is known by per cent of utilization."""
        names = ("accuracy", "throttle_ratio", "seconds", "time_share", "power_share")
        points = []
        for row in self.rows:
            known = {name: getattr(row, name) for name in (*names, "energy_share")}
            values = {f"measured/{n}": float(v) for n, v in known.items() if v is not None}
            points.append((round(100 * row.u), values))
        return points

    def extras(self) -> dict[str, Any]:
        """Where and when."""
        return {"setting": asdict(self.setting)}

    @property
    def is_cpu(self) -> bool:
        """Whether the CPU time of the process was measured, not the time of a GPU."""
        return self.setting.device == "cpu"

    def _words(self) -> list[str]:
        s = self.setting
        what = "CPU time of the process" if self.is_cpu else "time until the GPU has finished"
        energy = (
            f"Energy: {s.meter}, all that runs there included."
            if s.meter is not None
            else f"Power and energy are unknown: {s.why_no_energy}."
        )
        return [
            f"{what[0].upper()}{what[1:]} for one sample, median over {s.rounds} rounds with the "
            "arms interleaved; a share is of the value at u = 1.",
            f"{s.hardware}; device {s.device}, batch {s.batch}, {s.threads} threads, "
            f"{s.precision}, torch {s.torch_version}, {s.date}.",
            energy,
        ]


def measure_path(
    path: DataPath,
    images: NDArray[np.uint8],
    accuracy: Mapping[float, float],
    config: MeasureConfig | None = None,
    *,
    device: str = "cpu",
    report: Report = silent,
) -> Measured:
    """Times a frozen data path at its arms and at u = 1 (TNN Fig. 10, section 5.1).

    Args:
        path: frozen data path; it is back on the CPU afterwards.
        images: uint8 (M, *input_shape), at least one; repeated where a batch needs more.
        accuracy: by utilization, as an atlas has it.
        config: batch and rounds.
        device: torch device.
        report: hears of every round.
    """
    config = config or MeasureConfig()
    meter, why = find_meter(device)
    batch = _batch(images, config.batch).to(device)
    arms = sorted({*path.arms, 1.0})
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    path.to(device)
    try:
        timed = time_arms(
            lambda u: path(batch, u, fixed_shape=False),
            arms,
            config,
            meter=meter,
            clocks=Clocks(wait=wait),
            report=report,
        )
    finally:
        path.to("cpu")
    ratios = {u: path.macs_at(u) / path.full_macs for u in arms}
    setting = setting_of(device, config, meter, why)
    return Measured(measured_rows(timed, config.batch, accuracy, ratios, device), setting)


def measured_rows(
    timed: Mapping[float, Timed],
    batch: int,
    accuracy: Mapping[float, float],
    throttle_ratios: Mapping[float, float],
    device: str = "cpu",
) -> tuple[MeasuredRow, ...]:
    """Medians over rounds, for one sample, and beside u = 1; by increasing u.

    Args:
        timed: passes by utilization; 1.0 among them.
        batch: samples in a pass.
        accuracy: by utilization; one that is missing is unknown.
        throttle_ratios: by utilization.
        device: on a GPU the wall clock counts, else the process's CPU time.
    """

    def times_of(one: Timed) -> NDArray[np.float64]:
        return (one.wall if device.startswith("cuda") else one.process) / batch

    full = timed[1.0]
    rows = []
    for u in sorted(timed):
        one = timed[u]
        low, middle, high = (float(q) for q in np.quantile(times_of(one), [0.25, 0.5, 0.75]))
        joules, watts = _energy(one, batch)
        full_joules, full_watts = _energy(full, batch)
        rows.append(
            MeasuredRow(
                u=u,
                accuracy=accuracy.get(u),
                throttle_ratio=throttle_ratios[u],
                seconds=middle,
                low=low,
                high=high,
                wall_seconds=float(np.median(one.wall)) / batch,
                joules=joules,
                watts=watts,
                time_share=float(np.median(times_of(one) / times_of(full))),
                energy_share=_over(joules, full_joules),
                power_share=_over(watts, full_watts),
            )
        )
    return tuple(rows)


def _energy(one: Timed, batch: int) -> tuple[float | None, float | None]:
    """Joules for one sample and watts; a counter that did not move tells nothing."""
    if one.joules is None or not one.joules.any():
        return None, None
    return float(one.joules.mean()) / batch, float(one.joules.sum() / one.wall.sum())


def _over(value: float | None, full: float | None) -> float | None:
    return None if value is None or not full else value / full


def _batch(images: NDArray[np.uint8], size: int) -> Tensor:
    rows = np.arange(size) % len(images)
    return torch.from_numpy(np.asarray(images[rows])).float() / 255.0
