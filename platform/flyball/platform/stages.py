"""The main job: images, data path, outcome atlas, controller, evaluation, run, registered model.

Each stage is a function from artifact to artifact, skipped where its fingerprint lies in the run
folder and resumed where it was interrupted.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flyball.controllers.evaluate import Evaluation, evaluate
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.arms import default_arms
from flyball.datapaths.atlas import HEADER_FILE, OutcomeAtlas
from flyball.datapaths.data import describe as describe_images
from flyball.datapaths.family import ModelFamily
from flyball.datapaths.files import fingerprint_of, write_atomically, write_json
from flyball.datapaths.outcomes import atlas_fingerprint, build_atlas
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import SPLITS
from flyball.envs.observations import observations
from flyball.platform.cluster import is_joined
from flyball.platform.controller_stage import ControllerStage, observation_of, train_controller
from flyball.platform.job import Job
from flyball.platform.path_stage import PathStage, path_fingerprint, train_path
from flyball.platform.prepare import Prepared, prepare
from flyball.platform.publish import Published, publish
from flyball.platform.report import draw_ladder, ladder_table
from flyball.platform.tracking import open_tracking

if TYPE_CHECKING:
    from flyball.platform.atlas_tasks import RayBuild

__all__ = [
    "JobResult",
    "OutcomesStage",
    "Tell",
    "build_outcomes",
    "build_path",
    "evaluate_controller",
    "run_job",
    "served_path",
]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class OutcomesStage:
    """What the second stage gave.

    Attributes:
        atlas: memory-mapped.
        folder: where it lies.
        was_reused: True if it lay there already.
        forwards: sample passes through the data path in this call; 0 if reused.
        seconds: wall-clock time of this call.
        workers: of Ray that built it; 0: it was built in this process.
        repeated: shards that were begun again since their worker was lost.
    """

    atlas: OutcomeAtlas
    folder: Path
    was_reused: bool
    forwards: int
    seconds: float
    workers: int = 0
    repeated: int = 0

    @property
    def how(self) -> str:
        """In words: passes, workers and what was repeated."""
        text = f"{self.forwards:,} data-path forwards"
        if self.workers:
            text += f" by {self.workers} workers"
        if self.repeated:
            text += f", repeated {self.repeated} shard{'s' if self.repeated > 1 else ''}"
        return text


@dataclass(frozen=True)
class JobResult:
    """What the main job gave.

    Attributes:
        evaluation: the ladder.
        folder: of the job's report.
        picture: PNG of the ladder.
        published: MLflow run and registered model version.
        forwards: sample passes through the data path in this call, by stage.
        reused: folders of what was taken from an earlier run, by stage.
        seconds: wall-clock time of this call, by stage.
    """

    evaluation: Evaluation
    folder: Path
    picture: Path
    published: Published
    forwards: dict[str, int]
    reused: dict[str, str]
    seconds: dict[str, float]


def build_path(ready: Prepared, *, report: Report = silent) -> PathStage:
    """Phase 1: the frozen data path, trained or found; see `path_stage.train_path`."""
    phase1, images, arms = ready.job.phase1, ready.images, ready.job.arms
    folder = ready.runs.path(path_fingerprint(ready.network, phase1, images, arms))
    with ready.runs.locked(folder):
        return train_path(
            ready.network,
            phase1,
            images,
            folder,
            arms=arms,
            device=ready.job.compute.device,
            report=report,
        )


def served_path(path: DataPath, job: Job) -> DataPath:
    """The data path at the job's arms; a family keeps its models' where the job names none.

    Raises:
        InvalidArms: the job names arms that a family does not have.
    """
    if isinstance(path, ModelFamily) and job.arms == default_arms():
        return path
    return path.with_arms(job.arms)


def build_outcomes(ready: Prepared, path: DataPath, *, report: Report = silent) -> OutcomesStage:
    """The outcome atlas of a data path, built here or on Ray, or found; see `build_atlas`."""
    start, before, job = time.monotonic(), path.forwards, ready.job
    folder = ready.runs.outcomes(atlas_fingerprint(path, ready.images, job.outcomes))
    is_there = (folder / HEADER_FILE).exists()
    with ready.runs.locked(folder):
        if not is_there and _builds_on_ray(ready):
            built = _build_on_ray(ready, path, folder, report)
            seconds = time.monotonic() - start
            return OutcomesStage(
                built.atlas, folder, False, built.forwards, seconds, built.workers, built.repeated
            )
        path.to(job.compute.device)
        atlas = build_atlas(path, ready.images, folder, job.outcomes, report=report)
    path.to("cpu")
    forwards, seconds = path.forwards - before, time.monotonic() - start
    return OutcomesStage(atlas, folder, is_there, forwards, seconds)


def _builds_on_ray(ready: Prepared) -> bool:
    asked = ready.job.compute.atlas_workers
    return asked > 0 if asked is not None else is_joined(ready.ray_address)


def _build_on_ray(ready: Prepared, path: DataPath, folder: Path, report: Report) -> "RayBuild":
    # Ray takes seconds to import; a job whose atlas lies there already does without it.
    from flyball.platform.atlas_tasks import build_atlas_on_ray
    from flyball.platform.cluster import ray_session
    from flyball.platform.nodes import check_nodes

    job = ready.job
    named = path_fingerprint(ready.network, job.phase1, ready.images, job.arms)
    with ray_session(ready.ray_address):
        if is_joined(ready.ray_address):
            check_nodes(ready.runs.root)
        return build_atlas_on_ray(ready, ready.runs.path(named), path, folder, report=report)


def evaluate_controller(
    ready: Prepared, atlas: OutcomeAtlas, controller: NetworkController
) -> Evaluation:
    """The ladder of a controller, from the atlas alone."""
    job = ready.job
    seen = observations(atlas, ready.images, observation_of(job.controller))
    return evaluate(atlas, controller, seen, job.reward, job.evaluation)


def run_job(job: Job, *, report: Report = silent, tell: Tell | None = None) -> JobResult:
    """The whole main job.

    Args:
        job: what to do.
        report: hears of progress.
        tell: hears one line for people after every stage.

    Raises:
        BadInput: found before work started; nothing was written.
        NotFinite: a loss, reward or answer was NaN or infinite; names its step.
    """
    say = tell or (lambda line: None)
    ready = prepare(job, report=report)
    say(f"Images         {ready.images.name}: {_sizes(ready)}")
    trained = build_path(ready, report=report)
    say(_line("Data path", trained) + f", {trained.forwards:,} data-path forwards")
    path = served_path(trained.path, job)
    asked = build_outcomes(ready, path, report=report)
    say(_line("Outcome atlas", asked) + f", {asked.how}")
    learned = train_controller(ready, path, asked.atlas, asked.folder, report=report)
    say(_line("Controller", learned))
    start = time.monotonic()
    evaluation = evaluate_controller(ready, asked.atlas, learned.controller)
    fingerprint = fingerprint_of(learned.folder.name, asdict(job.evaluation))
    folder = ready.runs.job(job.name, fingerprint)
    record = _record(ready, trained, asked, learned)
    picture = _write_report(folder, evaluation, record)
    evaluated = time.monotonic()
    tracking = open_tracking(job.tracking.uri, ready.runs.root, experiment=job.tracking.experiment)
    published = publish(tracking, job, folder, trained.folder, learned, evaluation, record)
    stages: dict[str, PathStage | OutcomesStage | ControllerStage]
    stages = {"phase1": trained, "outcomes": asked, "controller": learned}
    return JobResult(
        evaluation=evaluation,
        folder=folder,
        picture=picture,
        published=published,
        forwards={"phase1": trained.forwards, "outcomes": asked.forwards},
        reused={name: str(stage.folder) for name, stage in stages.items() if stage.was_reused},
        seconds={name: stage.seconds for name, stage in stages.items()}
        | {"evaluation": evaluated - start, "tracking": time.monotonic() - evaluated},
    )


def _write_report(folder: Path, evaluation: Evaluation, record: dict[str, Any]) -> Path:
    write_json(folder / "evaluation.json", evaluation.to_json())
    write_json(folder / "job.json", record)
    with write_atomically(folder / "ladder.txt") as partial:
        partial.write_text(ladder_table(evaluation) + "\n", encoding="utf-8")
    picture = folder / "ladder.png"
    draw_ladder(evaluation, picture)
    return picture


def _record(
    ready: Prepared, trained: PathStage, asked: OutcomesStage, learned: ControllerStage
) -> dict[str, Any]:
    header = asked.atlas.header
    return {
        "job": json.loads(json.dumps(asdict(ready.job))),
        "images": describe_images(ready.images),
        "fingerprints": {
            "path": trained.path.fingerprint,
            "atlas": header.fingerprint,
            "controller": learned.folder.name,
        },
        "forwards_of_the_atlas": header.forwards,
        "phase1_losses": trained.path.spec.provenance.get("losses", []),
        "versions": {**header.versions, "torch here": torch.__version__.split("+")[0]},
    }


def _sizes(ready: Prepared) -> str:
    return ", ".join(f"{name} {len(ready.images.rows(name)):,}" for name in SPLITS)


def _line(name: str, stage: PathStage | OutcomesStage | ControllerStage) -> str:
    done = f"reused from {stage.folder}" if stage.was_reused else f"{stage.seconds:.1f} s"
    return f"{name:<14} {done}"
