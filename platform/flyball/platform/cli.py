"""The `flyball` command: what each verb takes; what it does is in `commands`.

Exit codes: 0 done, 1 a run failed, 2 bad input (nothing was written), 130 interrupted.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence

from flyball.datapaths.errors import FlyballError, unknown_name

__all__ = ["main", "train_controller"]

VERBS = {
    "presets": "list the presets, or show the fields of one",
    "path": "train and freeze the data path (Phase 1)",
    "outcomes": "build the outcome atlas",
    "train": "the whole main job: data path, atlas, controller, ladder, registered model",
    "sweep": "many points of one job at once: the front of accuracy and cost to choose from",
    "evaluate": "the ladder of a finished job, again from its atlas",
    "report": "the ladder table and picture of a finished job",
    "models": "the registered governors and their aliases; promote one, or roll back",
    "serve": "answer over HTTP with a registered governor",
    "demo": "let a registered governor answer some test images, one line each",
    "detect": "train a throttleable detector and govern it: mAP of every arm, and the ladder",
    "analyse": "tables and pictures of finished jobs; without a name, a list of them",
    "bench": "benchmarks, measured side by side",
    "doctor": "look over this machine or a cluster: what would fail, and what to do",
}
HOMES = {
    "analyse": "analysis_commands",
    "bench": "analysis_commands",
    "detect": "analysis_commands",
    "doctor": "doctor",
    "models": "models_verb",
    "sweep": "sweep.verb",
}
"""Modules of verbs that are not in `commands`."""

OWN_ARGUMENTS = {
    "doctor": "add_doctor_arguments",
    "models": "add_models_arguments",
    "sweep": "add_sweep_arguments",
}
"""Functions by which a verb's module declares what only it takes."""

JOB_VERBS = ("path", "outcomes", "train", "sweep", "evaluate", "report", "models", "serve", "demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `flyball VERB ...`; gives the exit code."""
    texts = list(sys.argv[1:] if arguments is None else arguments)
    return _guarded(lambda: _dispatch(texts), is_json="--json" in texts)


def train_controller(arguments: Sequence[str] | None = None) -> int:
    """Runs `train_controller.py [PRESET] [--set FIELD=VALUE ...]`; gives the exit code.

    With `--sweep` it runs a sweep: see `flyball sweep --help`.
    """
    texts = list(sys.argv[1:] if arguments is None else arguments)
    is_sweep = any(text.partition("=")[0] == "--sweep" for text in texts)
    return main(["sweep" if is_sweep else "train", *texts])


def _dispatch(texts: list[str]) -> int:
    named = [text for text in texts if not text.startswith("-")]
    if named and texts[0] == named[0] and named[0] not in VERBS:
        raise unknown_name("verb", named[0], VERBS, advice="`flyball --help` describes them.")
    options = _parser(texts[0] if texts else "").parse_args(texts)
    # Only now: the heavy imports, which --help and a mistyped verb need not wait for.
    home = HOMES.get(options.verb, "commands")
    commands = importlib.import_module(f"flyball.platform.{home}")
    name = "run_sweep_verb" if options.verb == "sweep" else f"run_{options.verb}"
    run: Callable[[argparse.Namespace], int] = getattr(commands, name)
    return run(options)


def _parser(asked: str) -> argparse.ArgumentParser:
    """What all verbs take; modules are imported for the verb that is asked for alone."""
    parser = argparse.ArgumentParser(
        prog="flyball", description="Trains controllers that govern throttleable neural networks."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, purpose in VERBS.items():
        verb = verbs.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
        verb.add_argument("--json", action="store_true", help="print one JSON value for machines")
        if name in JOB_VERBS:
            verb.add_argument("preset", nargs="?", default="digits", help="default: digits")
        if name == "detect":
            verb.add_argument(
                "preset", nargs="?", default="drawn_detection", help="default: drawn_detection"
            )
        if name in JOB_VERBS or name in ("analyse", "detect"):
            verb.add_argument(
                "--set",
                dest="settings",
                action="append",
                default=[],
                metavar="FIELD=VALUE",
                help="change a field of the preset; may be repeated",
            )
        if name == asked and name in OWN_ARGUMENTS:
            module = importlib.import_module(f"flyball.platform.{HOMES[name]}")
            getattr(module, OWN_ARGUMENTS[name])(verb)
        if name == "presets":
            verb.add_argument("preset", nargs="?", help="show its fields and their values")
        if name == "outcomes":
            verb.add_argument("--arms", type=int, metavar="K", help="serve k/K for k = 1 ... K")
        if name in ("serve", "demo"):
            verb.add_argument(
                "--alias",
                default=None,
                help="champion, challenger, eco, balanced, peak or budget-NN",
            )
        if name == "serve":
            verb.add_argument("--port", type=int, default=5001)
        if name == "demo":
            verb.add_argument("--count", type=int, default=10, help="how many test images")
            verb.add_argument("--budget", type=float, help="mean net throttle ratio to hold")
        if name == "bench":
            verb.add_argument("benchmark", choices=["training", "tnn", "dynconv", "scaling"])
            verb.add_argument(
                "--picture", metavar="FILE", help="draw `tnn`, `dynconv` or `scaling` as a PNG"
            )
            for flag, of in (("--path", "FOLDER"), ("--images", "FILE.npy")):
                verb.add_argument(
                    flag, metavar=of, help="of `dynconv`: a trained network, and uint8 images of it"
                )
        if name == "analyse":
            verb.add_argument("name", nargs="?", help="of the analysis; none: list them")
            verb.add_argument("presets", nargs="*", default=["digits"], help="default: digits")
            verb.add_argument(
                "--comparison",
                action="append",
                default=[],
                metavar="NAME=FOLDER",
                help="of `gates` and `components`: a finished comparison; may be repeated",
            )
            verb.add_argument(
                "--no-vanilla", action="store_true", help="without the network trained at u = 1"
            )
            for flag, default, of in (
                ("--samples", 2000, "`executed`, `blocks`: at most so many images of a split"),
                ("--images", 10, "`ponder`: so many images"),
            ):
                verb.add_argument(
                    flag, type=int, default=default, metavar="N", help=f"of {of} ({default})"
                )

    return parser


def _guarded(run: Callable[[], int], *, is_json: bool) -> int:
    """Turns Flyball's errors into one clear line and an exit code."""
    try:
        return run()
    except FlyballError as error:
        if is_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
