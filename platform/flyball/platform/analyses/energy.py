"""Energy that the hardware itself counts: RAPL of the processor, NVML of a GPU, or why not.

What cannot be read is unknown, with the reason, never 0.
"""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["POWERCAP", "EnergyMeter", "NvmlMeter", "RaplMeter", "find_meter"]

POWERCAP = Path("/sys/class/powercap")
_MICROJOULE, _MILLIJOULE = 1e-6, 1e-3


class EnergyMeter(Protocol):
    """Counts energy upwards."""

    @property
    def name(self) -> str:
        """What it measures, for people."""

    def joules(self) -> float:
        """Energy since some fixed moment; never falls."""


@dataclass(frozen=True)
class _Zone:
    """One processor package: its counter in microjoules, and where that wraps."""

    file: Path
    wraps_at: int

    def microjoules(self) -> int:
        return int(self.file.read_text())


@dataclass
class RaplMeter:
    """All processor packages by their RAPL counters; whatever else runs there is counted too."""

    zones: Sequence[_Zone]
    _last: list[int] = field(default_factory=list)
    _total: int = 0

    @property
    def name(self) -> str:
        """What it measures."""
        return f"RAPL, {len(self.zones)} processor package" + ("s" if len(self.zones) > 1 else "")

    def joules(self) -> float:
        """Since the first call, over every wrap of the counters between two calls."""
        now = [zone.microjoules() for zone in self.zones]
        for zone, old, new in zip(self.zones, self._last or now, now, strict=True):
            self._total += new - old if new >= old else new - old + zone.wraps_at
        self._last = now
        return self._total * _MICROJOULE


@dataclass
class NvmlMeter:
    """One GPU by NVML's energy counter."""

    nvml: Any
    handle: Any

    @property
    def name(self) -> str:
        """What it measures."""
        return "NVML, whole GPU"

    def joules(self) -> float:
        """Since the driver was loaded."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * _MILLIJOULE


def find_meter(device: str, *, powercap: Path = POWERCAP) -> tuple[EnergyMeter | None, str]:
    """The meter of what computes, or None with the reason why there is none.

    Args:
        device: torch device.
        powercap: folder of the kernel's power capping interface.
    """
    if device.startswith("cuda"):
        return _nvml(int(device.partition(":")[2] or 0))
    return _rapl(powercap)


def _rapl(powercap: Path) -> tuple[EnergyMeter | None, str]:
    zones, reason = [], f"no RAPL counter under {powercap}"
    # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it and would be counted twice.
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            if not (folder / "name").read_text().startswith("package"):
                continue
            zone = _Zone(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
            zone.microjoules()
        except (OSError, ValueError) as error:
            reason = f"RAPL cannot be read ({getattr(error, 'strerror', None) or error})"
            return None, reason
        zones.append(zone)
    return (RaplMeter(zones), "") if zones else (None, reason)


def _nvml(index: int) -> tuple[EnergyMeter | None, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, "the package pynvml is not installed"
    try:
        nvml.nvmlInit()
        # torch counts the visible devices, NVML all of them: only the identity is common.
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        meter = NvmlMeter(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        meter.joules()
    except nvml.NVMLError as error:
        return None, f"NVML does not tell energy ({error})"
    return meter, ""
