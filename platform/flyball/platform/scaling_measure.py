"""The rates that the scaling model needs, measured on this machine side by side, and its checks.

All of it is small: an atlas of digits with 1 and 2 workers, calls of nothing through Ray, trials of
nothing through Tune, figures into a database, photographs of noise. Times are of the wall clock.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flyball.controllers.learn import BanditTable, LearnConfig, learn_plain
from flyball.controllers.networks import ControllerConfig, build_network
from flyball.datapaths.atlas import AtlasHeader, OutcomeAtlas
from flyball.datapaths.atlas_plan import AtlasPlan, Columns
from flyball.datapaths.data import load_images
from flyball.datapaths.data.decode import Sizing, decode
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg
from flyball.platform.atlas_tasks import build_atlas_on_ray
from flyball.platform.cluster import ray_session
from flyball.platform.job import ComputeConfig
from flyball.platform.prepare import Prepared
from flyball.platform.presets import digits
from flyball.platform.run_folder import RunFolder
from flyball.platform.scaling import (
    AtlasRates,
    AtlasWork,
    SweepRates,
    SweepWork,
    estimate_atlas,
    estimate_sweep,
)
from flyball.platform.scaling_ray import measure_calls, measure_trials
from flyball.platform.tracking import open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns

__all__ = ["Check", "Measured", "measure"]

STEPS = 8
LOOKS, FIGURES, SUMMARY, CURVE = 40, 3, 22, 16  # what a point of a sweep records


@dataclass(frozen=True)
class Check:
    """What the model says of something that was then measured, in seconds."""

    what: str
    modelled: float
    measured: float


@dataclass(frozen=True)
class Measured:
    """Rates of this machine.

    Attributes:
        load, cpus: running processes a minute before, and what there is for them.
        shard_s: seconds of the small atlas's shard in this process.
        start_s: from asking for a worker of the atlas until it can take a shard.
        tasks_per_s: tasks of nothing that Ray runs a second, all sent at once.
        calls_per_s: calls of nothing to two actors, two in flight each, as shards are dealt.
        message_bytes: of a shard's order and answer, pickled.
        decodes_per_s: photographs of 500 x 375, about 110 kB, to 224 x 224; on one core.
        assembly_bytes_per_s: of an atlas put together, hashed and saved.
        recorded_per_s: points into MLflow on sqlite, whole, where the driver has many to send.
        tune_start_s: until Tune has started.
        trials_per_s: of nothing, that Tune runs a second in two actors that it keeps.
        point_s: seconds to train a controller, 2,000 updates of 512, on one thread.
        checks: of the model.
    """

    load: float
    cpus: int
    shard_s: float
    start_s: float
    tasks_per_s: float
    calls_per_s: float
    message_bytes: float
    decodes_per_s: float
    assembly_bytes_per_s: float
    recorded_per_s: float
    tune_start_s: float
    trials_per_s: float
    point_s: float
    checks: tuple[Check, ...]


def measure(*, smoke: bool = False, report: Report = silent) -> Measured:
    """Measures everything, in about a minute on a quiet machine; writes temporary files only.

    Args:
        smoke: so little of everything that the figures mean nothing; for tests.
        report: told after every part.
    """
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    done = iter(range(1, STEPS + 1))

    def part(note: str, values: dict[str, Any]) -> None:
        found.update(values)
        report(Progress("bench", next(done), STEPS, note))

    scale = 1 if smoke else 8
    try:
        with tempfile.TemporaryDirectory() as name, ray_session():
            folder = Path(name)
            part("decoding", {"decodes_per_s": _decodes_per_s(10 * scale)})
            part("assembly", {"assembly_bytes_per_s": _assembly_rate(folder / "whole", scale)})
            part("a point", {"point_s": _point_s(250 * scale)})
            recorded, check = _database(folder / "database", 2 * scale)
            part("database", {"recorded_per_s": recorded})
            checks = [check]
            part("tasks", measure_calls(50 * scale))
            rates, more = _small_atlas(folder / "atlas", found, 2 if smoke else 1)
            checks += more
            part("atlas", rates)
            few, many, takes = 2, 2 + 4 * scale, 0.1 * scale
            trials, sweep = measure_trials(folder / "tune", few, many, takes)
            checks.append(_sweep_check(trials, many, takes, sweep))
            part("trials", trials)
    finally:
        torch.set_num_threads(threads)
    report(Progress("bench", STEPS, STEPS, "done"))
    return Measured(load=load, cpus=os.cpu_count() or 1, checks=tuple(checks), **found)


def _seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def _decodes_per_s(count: int) -> float:
    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), np.uint8)
    photograph, file = (
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC),
        io.BytesIO(),
    )
    photograph.save(file, "JPEG", quality=93)
    data, sizing = file.getvalue(), Sizing(224, short_side=256)
    return count / _seconds(
        lambda: [decode(data, "noise", channels=3, image_size=sizing) for _ in range(count)]
    )


def _assembly_rate(folder: Path, scale: int) -> float:
    rows, generator = np.arange(1024 * scale), np.random.default_rng(0)
    plan = AtlasPlan(folder, "bench", rows, 1024)
    plan.claim()
    for number in range(len(plan)):
        own = plan.rows_of(number)
        table = (len(own), 10)
        columns: Columns = {
            "correct": np.ones(table, np.float32),
            "confidence": np.ones(table, np.float32),
            "answer": np.ones(table, np.int32),
            "macs": np.ones(table, np.int64),
            "split": np.ones(len(own), np.int8),
            "sample": own,
            "label": np.ones(len(own), np.int32),
            "context": generator.random((len(own), 3050), np.float32),
        }
        plan.write(number, columns)
    header = AtlasHeader("bench", "bench", "bench", ("one",), 1)
    arms = tuple(k / 10 for k in range(1, 11))

    def assemble() -> None:
        plan.finish(OutcomeAtlas(arms=arms, header=header, **plan.columns()).checked())

    seconds = _seconds(assemble)
    return (folder / "atlas.safetensors").stat().st_size / seconds


def _point_s(updates: int) -> float:
    generator = np.random.default_rng(0)
    seen = generator.standard_normal((450, 44)).astype(np.float32)
    table = BanditTable(seen, generator.standard_normal((450, 10)).astype(np.float32))
    network = build_network(ControllerConfig(), (44,), 10)
    config = LearnConfig(algorithm="plain", updates=updates)
    seconds = _seconds(lambda: learn_plain(table, network, config, validation=table))
    return seconds * LearnConfig().updates / updates


def _database(folder: Path, count: int) -> tuple[float, Check]:
    """As a sweep records its points: what waits goes out by points, many looks in a request."""
    folder.mkdir()
    look = {"train/reward": 0.1, "train/entropy": 0.2, "val/reward": 0.3}
    summary = {f"figure{number}": 0.5 for number in range(SUMMARY)}
    curve = [(percent, {"val/accuracy_at_utilization": 0.9}) for percent in range(CURVE)]
    job, uri = digits(), f"sqlite:///{folder / 'mlflow.db'}"
    params = {"reward": asdict(job.reward), "controller": asdict(job.controller)}
    with SweepRuns(lambda: open_tracking(uri, folder), folder / "journal", "bench") as runs:
        runs.start_parent("bench", params={}, tags={})
        runs.flush()

        def record(name: str, points: int) -> None:
            for number in range(points):
                key = f"{name} {number}"
                runs.start_point(key, key, params=params, tags={"flyball.preset": "digits"})
                for step in range(LOOKS):
                    runs.log(key, step, look)
                runs.finish_point(key, summary=summary, curve=curve, tags={"flyball.seed": "0"})
            runs.flush()

        rate = count / _seconds(lambda: record("first", count))
        seconds = _seconds(lambda: record("then", 2 * count))
    return rate, Check(f"{2 * count} points into the database", 2 * count / rate, seconds)


def _small_atlas(
    folder: Path, known: dict[str, Any], coarse: int
) -> tuple[dict[str, float], list[Check]]:
    """Builds the same atlas here, with one worker and with two."""
    config = small_vgg(stages=((32, 32), (64, 64)), hidden=64, in_channels=1, image_size=8)
    path = FrozenDataPath(
        ThrottleableVgg(config), PathSpec(config, (), tuple("0123456789"), (0.3,), (0.4,))
    )
    path.save(folder / "path")
    outcomes = OutcomesConfig(shard_size=64 * coarse, include_path_train=True)
    job = replace(digits(), outcomes=outcomes, compute=ComputeConfig("cpu", threads=1))
    images = load_images(job.data)
    here = _seconds(lambda: build_atlas(path, images, folder / "here", outcomes))
    work = AtlasWork(
        samples=len(images),
        arms=len(path.arms),
        macs=float(sum(path.arm_macs)),
        stored_bytes=0.0,
        context_features=path.context_size,
        shard_size=outcomes.shard_size,
    )
    assembly = work.atlas_bytes / known["assembly_bytes_per_s"]
    rate = work.samples * work.macs / (here - assembly)
    start_s, checks = 0.0, []
    for workers in (1, 2):
        compute = replace(job.compute, atlas_workers=workers)
        runs = RunFolder(folder / f"runs{workers}")
        ready = Prepared(replace(job, compute=compute), images, job.path, runs, None)
        times: list[float] = []
        start = time.monotonic()
        build_atlas_on_ray(
            ready,
            folder / "path",
            path,
            runs.root / "atlas",
            report=lambda progress, times=times: times.append(time.monotonic()),  # type: ignore[misc]
        )
        spent = time.monotonic() - start
        if not start_s:
            # One worker: from its first shard to its last everything takes what it takes.
            start_s = max(0.0, times[0] - start - (times[-1] - times[0]) / (work.shards - 1))
        rates = AtlasRates(
            macs_per_s=rate,
            start_s=start_s,
            shards_per_s=known["calls_per_s"],
            assembly_bytes_per_s=known["assembly_bytes_per_s"],
        )
        modelled = estimate_atlas(work, rates, workers).seconds
        plural = "s" if workers > 1 else ""
        checks.append(Check(f"{work.shards} shards, {workers} worker{plural}", modelled, spent))
    return {"shard_s": (here - assembly) / work.shards, "start_s": start_s}, checks


def _sweep_check(trials: dict[str, float], count: int, takes: float, spent: float) -> Check:
    rates = SweepRates(start_s=trials["tune_start_s"], trials_per_s=trials["trials_per_s"])
    modelled = estimate_sweep(SweepWork(count, takes), rates, 2).seconds
    return Check(f"{count} trials of {takes:g} s in 2 places", modelled, spent)
