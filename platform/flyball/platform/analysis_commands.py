"""What `analyse`, `bench` and `detect` do; the verbs of the main job are in `commands`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.progress_bars import ProgressBars

__all__ = ["run_analyse", "run_bench", "run_detect"]


def run_analyse(options: argparse.Namespace) -> int:
    """One analysis of one or more presets: table, picture and a run in MLflow."""
    from flyball.platform.analyses import ANALYSES, AnalysisOptions, run_analysis

    if options.name is None:
        purposes = {name: _first_line(make.__doc__) for name, make in ANALYSES.items()}
        _print(options, purposes, [f"{name:<11} {text}" for name, text in purposes.items()])
        return 0
    jobs = [with_overrides(preset(name), options.settings) for name in options.presets]
    chosen = AnalysisOptions(
        vanilla=not options.no_vanilla,
        comparisons=_named_folders(options.comparison),
        samples=options.samples,
        images=options.images,
    )
    tell = None if options.json else _tell
    with ProgressBars(is_quiet=options.json) as bars:
        result = run_analysis(options.name, jobs, chosen, report=bars, tell=tell)
    values = {
        "rows": [asdict(row) for row in result.analysis.rows],
        "summary": result.analysis.summary(),
        "files": [str(file) for file in result.written.files],
        "run": asdict(result.run),
    }
    lines = [
        result.analysis.table(),
        "",
        f"Picture        {result.written.picture}",
        f"MLflow run     {result.run.link}",
    ]
    _print(options, values, lines)
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Benchmarks, side by side and in CPU time: `training` of controllers, `tnn`, `dynconv`."""
    if options.picture is not None and options.benchmark == "training":
        raise InvalidSetting("--picture is of `flyball bench tnn` and `dynconv`; draw one of them.")
    if (options.path or options.images) and options.benchmark != "dynconv":
        raise InvalidSetting("--path and --images are of `flyball bench dynconv`; leave them out.")
    with ProgressBars(is_quiet=options.json) as bars:
        lines, rows = _BENCHMARKS[options.benchmark](options, bars)
    _print(options, [asdict(row) for row in rows], lines)
    return 0


def run_detect(options: argparse.Namespace) -> int:
    """The detection job: detector, atlas, mAP at every arm, controller and ladder."""
    from flyball.platform.detection_job import DETECTION_PRESETS
    from flyball.platform.detection_stages import run_detection

    if options.preset not in DETECTION_PRESETS:
        raise unknown_name("detection preset", options.preset, DETECTION_PRESETS)
    job = with_overrides(DETECTION_PRESETS[options.preset](), options.settings)
    with ProgressBars(is_quiet=options.json) as bars:
        result = run_detection(job, report=bars, tell=None if options.json else _tell)
    values = {
        "rows": [asdict(row) for row in result.curve.rows],
        "evaluation": result.evaluation.to_json(),
        "folder": str(result.folder),
        "forwards": result.forwards,
        "reused": result.reused,
        "seconds": result.seconds,
    }
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    lines = [
        "",
        result.text(),
        "",
        f"Pictures       {result.folder / 'map.png'}, {result.folder / 'ladder.png'}",
        "Reused         " + (", ".join(result.reused) or "nothing"),
        f"Time           {spent} s",
    ]
    _print(options, values, lines)
    return 0


def _bench_training(options: argparse.Namespace, bars: ProgressBars) -> tuple[list[str], Any]:
    from flyball.platform.bench_training import bench_table, run_bench_training

    rows = run_bench_training(report=bars)
    return bench_table(rows).splitlines(), rows


def _bench_tnn(options: argparse.Namespace, bars: ProgressBars) -> tuple[list[str], Any]:
    from flyball.platform.bench_tnn import bench_tnn_table, run_bench_tnn
    from flyball.platform.bench_tnn_picture import draw_bench_tnn

    rows = run_bench_tnn(report=bars)
    lines = bench_tnn_table(rows).splitlines()
    if options.picture is not None:
        lines += ["", f"Picture        {draw_bench_tnn(rows, Path(options.picture))}"]
    return lines, rows


def _bench_dynconv(options: argparse.Namespace, bars: ProgressBars) -> tuple[list[str], Any]:
    from flyball.platform.bench_dynconv import bench_dynconv_table, run_bench_dynconv
    from flyball.platform.bench_dynconv_picture import draw_bench_dynconv

    found = run_bench_dynconv(path=options.path, images=options.images, report=bars)
    lines = bench_dynconv_table(found).splitlines()
    if options.picture is not None:
        lines += ["", f"Picture        {draw_bench_dynconv(found, Path(options.picture))}"]
    return lines, (*found.rows, *found.splits)


def _bench_scaling(options: argparse.Namespace, bars: ProgressBars) -> tuple[list[str], Any]:
    from flyball.platform.scaling_verb import bench_scaling

    return bench_scaling(options, bars)


_BENCHMARKS = {
    "training": _bench_training,
    "tnn": _bench_tnn,
    "dynconv": _bench_dynconv,
    "scaling": _bench_scaling,
}


def _named_folders(texts: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER texts as a mapping.

    Raises:
        InvalidSetting: a text has no "=".
    """
    found = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals:
            raise InvalidSetting(
                f"A finished comparison is NAME=FOLDER; got {text!r}. "
                "For example --comparison VGG-W=comparisons/vgg."
            )
        found[name] = Path(folder)
    return found


def _print(options: argparse.Namespace, values: Any, lines: Sequence[str]) -> None:
    print(json.dumps(values, indent=1, default=str) if options.json else "\n".join(lines))


def _tell(line: str) -> None:
    print(line, flush=True)


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
