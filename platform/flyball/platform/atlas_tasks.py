"""The outcome atlas built by many workers at once: Ray actors on any nodes, one shard a task.

A worker opens the frozen data path and the images once, by their paths, and writes every shard
itself; the driver sees only numbers. What a lost worker had begun is given to another one.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.atlas_plan import AtlasPlan
from flyball.datapaths.errors import FlyballError, InvalidSetting, StorageError
from flyball.datapaths.outcomes import assemble_atlas, find_atlas, plan_atlas
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Progress, Report, silent
from flyball.platform.atlas_worker import AtlasTask, AtlasWorker, travelling
from flyball.platform.cluster import is_joined
from flyball.platform.nodes import code_fingerprint

# A worker imports this module, and must not wait for all that a job needs.
if TYPE_CHECKING:
    from flyball.platform.prepare import Prepared

__all__ = ["RayBuild", "build_atlas_on_ray"]

IN_FLIGHT = 2  # shards a worker has at a time: one it asks about, one that waits
MOST_REPEATS = 3  # of a shard, before it is taken for what kills its workers
PATIENCE_S = 600.0  # without any worker: an autoscaler may be bringing nodes
_SEEN_WITHIN_S = 60.0  # how long a shared file system may take to show a new file


@dataclass(frozen=True)
class RayBuild:
    """What a build on Ray gave.

    Attributes:
        atlas: memory-mapped.
        forwards: sample passes behind the shards that were built in this call; what a lost worker
            had done of a shard is not in it.
        repeated: shards that were begun again since their worker was lost.
        workers: those that were ready at some time, replacements included.
    """

    atlas: OutcomeAtlas
    forwards: int
    repeated: int
    workers: int


def build_atlas_on_ray(
    ready: "Prepared",
    path_folder: Path | str,
    path: DataPath,
    folder: Path | str,
    *,
    report: Report = silent,
) -> RayBuild:
    """Builds what `outcomes.build_atlas` would, byte for byte, on the cluster that Ray has joined.

    Ray must be initialised. On machines of another kind than this one the last bits of a
    confidence may differ, as they would there in a build of one process.

    Args:
        ready: the job and its images; `compute.atlas_workers` and `compute.gpus_per_worker` say
            how many workers and what each may use.
        path_folder: where the data path lies, on a path that every worker sees.
        path: the same, at the arms that are asked for.
        folder: where the atlas goes, likewise; finished shards found there are kept.
        report: hears of every finished shard and of what had to be repeated.

    Raises:
        ForeignArtifact: the folder holds shards of another data path, data set or plan.
        InvalidSetting: a worker needs a GPU, and Ray here has none.
        DataError: a node has neither the images nor what they are decoded from.
        NotFinite: the data path gave NaN or infinite outputs.
        StorageError: a node does not see the folders, or cannot write.
        FlyballError: a shard loses every worker that takes it, or no worker came in time.
    """
    job = ready.job
    config, images, compute = job.outcomes, ready.images, job.compute
    found = find_atlas(path, images, folder, config)
    if found is not None:
        return RayBuild(found, 0, 0, 0)
    plan = plan_atlas(path, images, Path(folder).resolve(), config)
    gpus = compute.gpus_of_a_worker
    _check_gpus(gpus, ready.ray_address)
    plan.claim()
    missing = [number for number in range(len(plan)) if not plan.has(number)]
    file = ready.runs.images(images.fingerprint)
    task = AtlasTask(
        path_folder=Path(path_folder).resolve(),
        path_fingerprint=path.fingerprint,
        arms=path.arms,
        images=travelling(images, file.resolve()),
        data=job.data,
        plan=plan,
        config=config,
        device="cuda" if gpus else "cpu",
        threads=compute.threads or 1,
        folder=os.getcwd(),
        code=code_fingerprint() if is_joined(ready.ray_address) else "",
    )
    wanted = compute.atlas_workers or _as_many_as_fit(task.threads, gpus)
    crew = _Crew(task, wanted, gpus)
    tally = _Tally(plan, report, len(path.arms), deque(missing))
    try:
        _build(crew, tally)
    finally:
        crew.dismiss()
    _wait_for_files(plan)
    atlas = assemble_atlas(path, images, plan, config)
    return RayBuild(atlas, tally.samples * len(path.arms), tally.repeated, crew.came)


@dataclass
class _Tally:
    """What is done and what is not; `missing` is taken from the left."""

    plan: AtlasPlan
    report: Report
    arms: int
    missing: deque[int]
    samples: int = 0
    repeated: int = 0
    begun_again: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = sum(len(self.plan.rows_of(number)) for number in self.missing)
        self._kept = len(self.plan.rows) - asked

    def finish(self, number: int) -> None:
        self.samples += len(self.plan.rows_of(number))

    def give_back(self, number: int) -> None:
        """Of a lost worker; what it had written already is not asked again."""
        if self.plan.has(number):
            self.finish(number)
            return
        self.begun_again[number] = self.begun_again.get(number, 0) + 1
        if self.begun_again[number] > MOST_REPEATS:
            raise FlyballError(
                f"A shard is begun at most {1 + MOST_REPEATS} times; that of rows "
                f"{number * self.plan.shard_size} and following lost its worker each time, perhaps "
                "for want of memory. Give smaller shards, --set outcomes.shard_size=256, or build "
                "in this process with --set compute.atlas_workers=0."
            )
        self.repeated += 1
        self.missing.appendleft(number)

    def tell(self, workers: int) -> None:
        note = f"{self.arms} arms, {workers} workers"
        if self.repeated:
            note += f", repeated {self.repeated} shard{'s' if self.repeated > 1 else ''}"
        total = len(self.plan.rows)
        self.report(Progress("outcomes", self._kept + self.samples, total, note))


@dataclass(eq=False)
class _Worker:
    actor: Any
    node: str
    is_ready: bool = False
    flying: dict[Any, int | None] = field(default_factory=dict)
    """Shards by the reference of their answer; None: it is loading."""


class _Crew:
    """The workers: hired up to a number, replaced where they are lost."""

    def __init__(self, task: AtlasTask, wanted: int, gpus: float) -> None:
        self.wanted, self.came, self._lost_in_a_row = wanted, 0, 0
        self._kind = ray.remote(AtlasWorker)
        # Once to each node, however many workers it has.
        self._task = ray.put(task)
        self._asks = {"CPU": float(task.threads), "GPU": gpus}
        self._workers: list[_Worker] = []

    @property
    def ready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.is_ready]

    def hire(self) -> None:
        if len(self._workers) >= self.wanted:
            return
        room = _room_by_node(self._asks)
        for worker in self._workers:
            if worker.node in room:
                room[worker.node] -= 1
        while len(self._workers) < self.wanted:
            node = max(room, key=lambda name: room[name], default="")
            has_room = bool(node) and room[node] > 0
            kind = self._kind.options(
                num_cpus=self._asks["CPU"],
                num_gpus=self._asks["GPU"],
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=_near(node) if has_room else "DEFAULT",
            )
            if has_room:
                room[node] -= 1
            worker = _Worker(kind.remote(), node if has_room else "")
            worker.flying[worker.actor.load.remote(self._task)] = None
            self._workers.append(worker)

    def answered(self, patience_s: float) -> Iterator[tuple[_Worker, Any]]:
        """All answers there are, once there is one, unless patience ends first.

        All: of those that are ready Ray gives the first asked for, and a worker hired last would
        wait for its turn behind one that always is.
        """
        owners = {ref: worker for worker in self._workers for ref in worker.flying}
        done, _ = ray.wait(list(owners), num_returns=1, timeout=patience_s)
        if done:
            done, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for ref in done:
            if owners[ref] in self._workers:  # not lost with an answer before this one
                yield owners[ref], ref

    def lose(self, worker: _Worker) -> list[int]:
        """Strikes a worker off; gives the shards it had."""
        self._workers.remove(worker)
        _end(worker)
        self._lost_in_a_row += 1
        if self._lost_in_a_row > MOST_REPEATS * (self.wanted + 1):
            raise FlyballError(
                f"Workers finish shards; {self._lost_in_a_row} in a row were lost and none was "
                "finished. Look at Ray's logs, or build in this process with "
                "--set compute.atlas_workers=0."
            )
        return [number for number in worker.flying.values() if number is not None]

    def note_progress(self) -> None:
        self._lost_in_a_row = 0

    def dismiss(self) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers = []


def _build(crew: _Crew, tally: _Tally) -> None:
    """Until nothing is missing and nothing is in flight."""
    last, is_news = time.monotonic(), False
    while True:
        crew.wanted = min(crew.wanted, len(tally.missing) + _flying(crew))
        crew.hire()
        _deal(crew, tally.missing)
        if is_news:
            tally.tell(len(crew.ready))
        if not crew.wanted:
            return
        if not crew.ready and time.monotonic() - last > PATIENCE_S:
            raise FlyballError(
                f"Workers of the atlas need free CPUs or GPUs; in {PATIENCE_S:.0f} s none came. "
                "Wait for the cluster to be free, ask for less with --set "
                "compute.gpus_per_worker=0.5, or build here with --set compute.atlas_workers=0."
            )
        is_news = False
        for worker, ref in crew.answered(5.0):
            last = time.monotonic()
            is_news |= _take(crew, tally, worker, ref)


def _flying(crew: _Crew) -> int:
    return sum(len(worker.flying) for worker in crew.ready)


def _deal(crew: _Crew, missing: deque[int]) -> None:
    """Shards to workers that have room: one each, then a second, so that the last are even."""
    for filled in range(IN_FLIGHT):
        for worker in crew.ready:
            if missing and len(worker.flying) == filled:
                number = missing.popleft()
                worker.flying[worker.actor.build.remote(number)] = number


def _take(crew: _Crew, tally: _Tally, worker: _Worker, ref: Any) -> bool:
    """Books one answer, or the loss of who should have given it; True: shards changed hands."""
    number = worker.flying[ref]
    try:
        ray.get(ref)
    except RayTaskError as error:
        raise _plain(error) from error
    except RayError:
        for lost in crew.lose(worker):
            tally.give_back(lost)
        return True
    del worker.flying[ref]
    if number is None:
        worker.is_ready = True
        crew.came += 1
        return False
    crew.note_progress()
    tally.finish(number)
    return True


def _end(worker: _Worker) -> None:
    """Ends a worker's process where it still runs."""
    with contextlib.suppress(RayError, ValueError):
        ray.kill(worker.actor, no_restart=True)


def _plain(error: RayTaskError) -> Exception:
    """What a worker raised, as if it had been raised here."""
    cause = error.cause
    return type(cause)(str(cause)) if isinstance(cause, FlyballError) else error


def _as_many_as_fit(threads: int, gpus: float) -> int:
    """Workers that the cluster has room for now."""
    return max(1, sum(_room_by_node({"CPU": float(threads), "GPU": gpus}).values()))


def _room_by_node(asks: dict[str, float]) -> dict[str, int]:
    """How many workers each node could hold, were it free; by Ray's id of the node."""
    room: dict[str, int] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has = node["Resources"]
            fits = [_times(has.get(name, 0.0), asked) for name, asked in asks.items() if asked]
            room[node["NodeID"]] = min(fits)
    return room


def _times(has: float, asked: float) -> int:
    """How often a share fits; one of a GPU is all of the same GPU."""
    return int(has) * int(1 / asked) if asked < 1 else int(has / asked)


def _near(node: str) -> NodeAffinitySchedulingStrategy:
    """On this node, or where it is full or gone on another.

    Ray's own choices are of no use: by default it fills one node before it begins another, so that
    a short build is over before the others are used; its "SPREAD" lets an actor wait on a full node
    while another has room, and so does an affinity that may not spill.
    """
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def _room(of: str) -> float:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found.get(of, 0.0)


def _check_gpus(gpus: float, address: str | None) -> None:
    # A cluster may still start nodes that have them.
    if gpus and address in (None, "local") and _room("GPU") < gpus:
        raise InvalidSetting(
            f"A worker of the atlas is to use {gpus:g} GPU, and Ray finds "
            f"{_room('GPU'):g} on this machine. Set "
            "--set compute.gpus_per_worker=0, or join a cluster with --set compute.ray_address."
        )


def _wait_for_files(plan: AtlasPlan) -> None:
    """Until the shards that workers wrote are seen here; a shared file system may be late."""
    start = time.monotonic()
    while True:
        unseen = [number for number in range(len(plan)) if not plan.has(number)]
        if not unseen:
            return
        if time.monotonic() - start > _SEEN_WITHIN_S:
            raise StorageError(
                f"Workers wrote all shards of {plan.folder}, and {len(unseen)} of them are not "
                "seen here. Name a folder that all nodes share with "
                "--set storage.root=SHARED_FOLDER."
            )
        time.sleep(1.0)
