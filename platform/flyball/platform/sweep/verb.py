"""`flyball sweep`: its arguments, and what it prints."""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from typing import Any, get_args

from flyball.platform.overrides import with_overrides
from flyball.platform.presets import preset
from flyball.platform.progress_bars import ProgressBars
from flyball.platform.sweep.config import Search, SweepConfig
from flyball.platform.sweep.space import DEFAULT_SPACE, parse_space

POPULATION = 16
"""Points of a batch: on a CPU more of them save nothing further."""

__all__ = ["add_sweep_arguments", "run_sweep_verb", "sweep_config"]


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """What `flyball sweep` takes beside the preset, --set and --json."""
    parser.add_argument(
        "--sweep",
        dest="space",
        action="append",
        nargs="?",
        default=None,
        metavar="FIELD=SPEC",
        help="values 0,0.5,1 or a range such as loguniform(1e-4,1e-2); may be repeated. Without "
        "one: gamma1, gamma2 and the complexity weight, 64 points",
    )
    parser.add_argument("--search", choices=get_args(Search), default=None, help="default: grid")
    parser.add_argument("--samples", type=int, help="points of a random or Optuna search (64)")
    parser.add_argument("--asha", action="store_true", help="end points early that gain little")
    parser.add_argument(
        "--population",
        type=int,
        default=None,
        metavar="N",
        help=f"up to N points learn as one batch; default {POPULATION} where points are known "
        "before and end together, else 1: each point alone, by RLlib",
    )
    parser.add_argument("--cpus-per-trial", type=float, default=1.0, metavar="X")
    parser.add_argument("--gpus-per-trial", type=float, default=0.0, metavar="X")
    parser.add_argument("--concurrent", type=int, metavar="N", help="trials at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the points that are drawn")
    parser.add_argument(
        "--no-models", action="store_true", help="do not put the front into the registry"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted sweep")


def run_sweep_verb(options: argparse.Namespace) -> int:
    """Runs the sweep; ends with the front, its picture, runs and models.

    Returns:
        0; 1 where some points could not be trained; 130 where it was interrupted.
    """
    start = time.monotonic()
    job = with_overrides(preset(options.preset), options.settings)
    config = sweep_config(options, job)
    # Only now: Ray, which a mistyped field need not wait for.
    from flyball.platform.sweep.run import run_sweep

    try:
        with ProgressBars(is_quiet=options.json) as bars:
            result = run_sweep(
                job,
                config,
                resume=options.resume,
                registers=not options.no_models,
                report=bars,
                tell=None if options.json else _tell,
                is_quiet=options.json,
            )
    except KeyboardInterrupt:
        print(
            "Interrupted. The same command with --resume goes on where this one stopped.",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
    if options.json:
        print(json.dumps(_values(result), indent=1))
    else:
        print("\n".join(_lines(result, config, time.monotonic() - start)))
    return 1 if result.counts.failed else 0


def sweep_config(options: argparse.Namespace, job: Any) -> SweepConfig:
    """The sweep that the options describe.

    Raises:
        BadInput: an option breaks its rule.
    """
    texts = [text for text in options.space or () if text is not None] or list(DEFAULT_SPACE)
    space = parse_space(texts, job)
    search = options.search
    if search is None:
        search = "grid" if space.is_listed and options.samples is None else "random"
    population = options.population
    if population is None:
        population = 1 if search == "optuna" or options.asha else POPULATION
    return SweepConfig(
        space,
        search=search,
        samples=options.samples,
        asha=options.asha,
        population=population,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        seed=options.seed,
        concurrent=options.concurrent,
    )


def _values(result: Any) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "front": result.front.to_json(),
        "counts": asdict(result.counts),
        "links": result.links,
        "versions": result.versions,
        "refused": result.refused,
        "was_finished": result.was_finished,
    }


def _lines(result: Any, config: SweepConfig, seconds: float) -> list[str]:
    from flyball.platform.sweep.front_table import front_table

    counts = result.counts
    forwards = " + ".join(f"{count:,} ({name})" for name, count in counts.forwards.items())
    lines = ["", front_table(result.front), ""]
    if result.was_finished:
        lines.append(f"Reused         the whole sweep lay finished in {result.folder}")
    lines += [
        f"Picture        {result.folder / 'front.png'}",
        f"Points         {counts.trained} trained, {counts.reused} reused, "
        f"{counts.ended_early} ended early, {len(counts.failed)} failed",
    ]
    lines += [f"Failed         {key}: {why}" for key, why in counts.failed.items()]
    reasons: dict[str, list[str]] = {}
    for key, why in counts.repeated.items():
        reasons.setdefault(why, []).append(key)
    lines += [
        f"Repeated       {len(keys)} points, since {why}: {', '.join(keys)}"
        for why, keys in reasons.items()
    ]
    if config.population > 1:
        lines.append(
            f"Population     up to {config.population} points learned as one batch of plain torch, "
            "as they would alone up to rounding; --population 1 trains each by its own learner"
        )
    lines += [f"MLflow {name:<8}{link}" for name, link in result.links.items()]
    for key, version in result.versions.items():
        point = next(point for point in result.front.points if point.key == key)
        names = ", ".join(result.front.names_of(point)) or "-"
        lines.append(f"Model          version {version}: {names} ({point.name})")
    lines += [f"Alias          {alias}: {why}" for alias, why in result.refused.items()]
    times = ", ".join(f"{name} {spent:.1f}" for name, spent in counts.seconds.items())
    return [
        *lines,
        f"Forwards       {forwards} data-path forwards in this run",
        f"Time           {seconds:.1f} s ({times})",
    ]


def _tell(line: str) -> None:
    print(line, flush=True)
