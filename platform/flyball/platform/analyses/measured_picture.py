"""The picture of what was measured; what it shows is in `measured`."""

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flyball.platform.analyses import look
from flyball.platform.house_style import BLUE, GREEN, GREY, ORANGE, RED, styled

if TYPE_CHECKING:
    from flyball.platform.analyses.measured import Measured

__all__ = ["measured_figure"]


def measured_figure(measured: "Measured") -> Figure:
    """Everything beside its value at u = 1 on the left, time in its unit on the right."""
    lowest, s = measured.rows[0], measured.setting
    known = [f"{lowest.throttle_ratio:.1%} of the MACs of u = 1"]
    known += [f"{lowest.time_share:.0%} of the time"]
    if lowest.power_share is not None and lowest.energy_share is not None:
        known += [f"{lowest.power_share:.0%} of the power"]
        known += [f"{lowest.energy_share:.0%} of the energy"]
    headline = (
        f"At u = {lowest.u:g} a sample takes {', '.join(known)}\n"
        f"{look.shortened(s.hardware, 60)}; batch {s.batch}, threads {s.threads}, "
        f"{s.precision}, {s.date[:10]}"
    )
    with styled():
        figure = look.blank_figure(13.5, 6.4, headline)
        left, right = figure.subplots(1, 2)
        handles = _draw_shares(left, measured)
        _draw_seconds(right, measured)
        look.legend_below(figure, handles, columns=5)
        figure.draw_without_rendering()
    return figure


def _draw_shares(axes: Axes, measured: "Measured") -> list[Any]:
    full = measured.rows[-1].accuracy
    series: dict[str, tuple[list[float | None], dict[str, Any]]] = {
        "accuracy": (
            [r.accuracy / full if r.accuracy is not None and full else None for r in measured.rows],
            {"color": BLUE, "marker": "o"},
        ),
        "CPU time" if measured.is_cpu else "time": (
            [r.time_share for r in measured.rows],
            {"color": RED, "marker": "s"},
        ),
        "executed MACs": (
            [r.throttle_ratio for r in measured.rows],
            {"color": GREY, "ls": ":", "marker": "."},
        ),
        "power": (
            [r.power_share for r in measured.rows],
            {"color": ORANGE, "marker": "^"},
        ),
        "energy": (
            [r.energy_share for r in measured.rows],
            {"color": GREEN, "marker": "D"},
        ),
    }
    handles: list[Any] = []
    unknown: list[str] = []
    highest = 1.0
    for name, (values, drawn) in series.items():
        points = [(r.u, v) for r, v in zip(measured.rows, values, strict=True) if v is not None]
        if not points:
            unknown.append(name)
            continue
        x, y = zip(*points, strict=True)
        highest = max(highest, *y)
        (line,) = axes.plot(x, y, ms=6, lw=1.8, label=name, **drawn)
        handles.append(line)
    if unknown:
        why = look.shortened(measured.setting.why_no_energy, 60)
        reason = f" ({why})" if why and unknown != ["accuracy"] else ""
        words = f"{', '.join(unknown)}: unknown{reason}"
        handles.append(Line2D([], [], ls="none", label=words))
    axes.set_ylim(0, 1.06 * highest)
    look.unit_axis(axes, "utilization u: share of the components asked for")
    axes.set_ylabel("value / value at u = 1")
    axes.set_title("Beside the full network")
    axes.grid(True)
    return handles


def _draw_seconds(axes: Axes, measured: "Measured") -> None:
    slowest = max(r.high for r in measured.rows)
    scale, unit = (1e6, "µs") if slowest < 0.01 else (1e3, "ms") if slowest < 10 else (1.0, "s")
    x = [r.u for r in measured.rows]
    lows, highs = [scale * r.low for r in measured.rows], [scale * r.high for r in measured.rows]
    axes.fill_between(x, lows, highs, color=RED, alpha=0.18, lw=0)
    axes.plot(x, [scale * r.seconds for r in measured.rows], "-s", color=RED, ms=6, lw=1.8)
    axes.set_ylim(0, 1.08 * scale * slowest)
    look.unit_axis(axes, "utilization u: share of the components asked for")
    kind = "CPU time" if measured.is_cpu else "time on the GPU"
    axes.set_ylabel(f"{kind} for one sample, {unit}")
    axes.set_title(f"In its unit: median and quartiles of {measured.setting.rounds} rounds")
    axes.grid(True)
