"""The atlas built by workers of Ray: the bytes of a local build, whatever is killed meanwhile."""

import contextlib
import hashlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from flyball.datapaths.data import load_images
from flyball.datapaths.errors import (
    CodeSkew,
    DataError,
    InvalidSetting,
    NotFinite,
    StorageError,
)
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas, plan_atlas
from flyball.datapaths.progress import Progress
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg
from flyball.platform import atlas_tasks
from flyball.platform.atlas_tasks import build_atlas_on_ray
from flyball.platform.atlas_worker import AtlasTask, AtlasWorker, travelling
from flyball.platform.job import ComputeConfig, Job, StorageConfig
from flyball.platform.nodes import code_fingerprint
from flyball.platform.path_stage import path_fingerprint
from flyball.platform.prepare import Prepared
from flyball.platform.presets import digits
from flyball.platform.run_folder import RunFolder
from flyball.platform.stages import build_outcomes

SHARD = 8
SIZES = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head = {**SIZES, "num_cpus": 2, "include_dashboard": False}
    running = Cluster(initialize_head=True, connect=False, head_node_args=head)
    ray.init(address=running.address, log_to_driver=False)
    yield running
    ray.shutdown()
    running.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def path() -> FrozenDataPath:
    config = small_vgg(stages=((16,), (32,)), hidden=64, in_channels=1, image_size=8)
    torch.manual_seed(0)
    network = ThrottleableVgg(config)
    torch.nn.init.normal_(network.classifier.weight)
    names = tuple("0123456789")
    return FrozenDataPath(network, PathSpec(config, (0.2, 0.6, 1.0), names, (0.3,), (0.4,)))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, path: FrozenDataPath) -> Prepared:
    root = tmp_path_factory.mktemp("runs")
    path.save(root / "path")
    job: Job = replace(
        digits(),
        outcomes=OutcomesConfig(shard_size=SHARD),
        storage=StorageConfig(root=str(root)),
        compute=ComputeConfig(device="cpu", threads=1, atlas_workers=2),
    )
    return Prepared(job, load_images(job.data), job.path, RunFolder(root), None)


@pytest.fixture(scope="module")
def local(ready: Prepared, path: FrozenDataPath) -> dict[str, str]:
    folder = ready.runs.root / "local"
    torch.set_num_threads(1)
    build_atlas(path, ready.images, folder, ready.job.outcomes)
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def with_compute(ready: Prepared, **changes: object) -> Prepared:
    compute = replace(ready.job.compute, **changes)  # type: ignore[arg-type]
    return replace(ready, job=replace(ready.job, compute=compute))


def ancestors(process: int) -> list[int]:
    """Parent, its parent, and so on."""
    found = []
    while process > 1:
        text = Path(f"/proc/{process}/stat").read_text()
        process = int(text.rpartition(")")[2].split()[1])
        found.append(process)
    return found


def workers() -> list[int]:
    """Processes of atlas workers below this one; another Ray may run beside."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and (entry / "cmdline").read_bytes().startswith(b"ray::AtlasWorker")
                and os.getpid() in ancestors(int(entry.name))
            ):
                found.append(int(entry.name))
    return sorted(found)


def wait_until_none_is_left() -> None:
    deadline = time.monotonic() + 20
    while workers():
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize("count", [1, 2])
def test_the_stage_gives_the_bytes_of_a_local_build(
    cluster: Cluster,
    ready: Prepared,
    path: FrozenDataPath,
    local: dict[str, str],
    tmp_path: Path,
    count: int,
) -> None:
    # The second one takes Ray for a cluster that was joined, and looks at its nodes first.
    there = with_compute(ready, atlas_workers=count)
    there = replace(there, runs=RunFolder(tmp_path), ray_address=(None, cluster.address)[count - 1])
    job = there.job
    named = path_fingerprint(there.network, job.phase1, there.images, job.arms)
    path.save(tmp_path / "paths" / named)
    seen: list[Progress] = []
    stage = build_outcomes(there, path, report=seen.append)
    assert digests(stage.folder) == local
    assert stage.forwards == stage.atlas.header.forwards == len(stage.atlas) * 3
    assert 1 <= stage.workers <= count
    assert stage.how == f"{stage.forwards:,} data-path forwards by {stage.workers} workers"
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total == len(stage.atlas)
    wait_until_none_is_left()
    again = build_outcomes(there, path)
    assert (again.was_reused, again.forwards, again.workers) == (True, 0, 0)


class Lossy:
    """A report that stops some workers in the middle of a build, and then ends them for good.

    A stopped worker is given shards it never finishes; so there is something to repeat.
    """

    def __init__(
        self, wanted: int, chosen: Callable[[], list[int]], end: Callable[[], None]
    ) -> None:
        self.wanted, self.chosen, self.end = wanted, chosen, end
        self.stopped: list[int] = []
        self.reports_since, self.notes = 0, list[str]()

    def __call__(self, progress: Progress) -> None:
        self.notes.append(progress.note)
        if self.stopped:
            self.reports_since += 1
            if self.reports_since == 2 * atlas_tasks.IN_FLIGHT:
                self.end()
        elif f"{self.wanted} workers" in progress.note:
            self.stopped = self.chosen()
            for process in self.stopped:
                os.kill(process, signal.SIGSTOP)
        else:
            time.sleep(1.0)  # until all of them have come


def test_a_worker_killed_with_sigkill_is_replaced_and_its_shards_are_repeated(
    cluster: Cluster,
    ready: Prepared,
    path: FrozenDataPath,
    local: dict[str, str],
    tmp_path: Path,
) -> None:
    lossy = Lossy(2, lambda: workers()[:1], lambda: os.kill(lossy.stopped[0], signal.SIGKILL))
    built = build_atlas_on_ray(
        ready, ready.runs.root / "path", path, tmp_path / "atlas", report=lossy
    )
    assert digests(tmp_path / "atlas") == local
    assert lossy.reports_since >= 2 * atlas_tasks.IN_FLIGHT, "workers came too late to lose one"
    assert 1 <= built.repeated <= atlas_tasks.IN_FLIGHT
    assert f"repeated {built.repeated} shard" in lossy.notes[-1]
    assert built.forwards == built.atlas.header.forwards


def test_a_build_survives_the_loss_of_a_whole_node(
    cluster: Cluster,
    ready: Prepared,
    path: FrozenDataPath,
    local: dict[str, str],
    tmp_path: Path,
) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    raylet = int(node.all_processes["raylet"][0].process.pid)
    lossy = Lossy(
        3,  # one more than fit on the head
        lambda: [process for process in workers() if raylet in ancestors(process)],
        lambda: cluster.remove_node(node, allow_graceful=False),
    )
    built = build_atlas_on_ray(
        with_compute(ready, atlas_workers=3),
        ready.runs.root / "path",
        path,
        tmp_path / "atlas",
        report=lossy,
    )
    assert len(lossy.stopped) == 1
    assert digests(tmp_path / "atlas") == local
    assert lossy.reports_since >= 2 * atlas_tasks.IN_FLIGHT, "workers came too late to lose one"
    assert 1 <= built.repeated <= atlas_tasks.IN_FLIGHT
    assert built.forwards == built.atlas.header.forwards


def test_a_worker_is_not_kept_waiting_by_a_node_that_others_use(
    cluster: Cluster,
    ready: Prepared,
    path: FrozenDataPath,
    local: dict[str, str],
    tmp_path: Path,
) -> None:
    @ray.remote(num_cpus=2)
    class Other:
        def is_there(self) -> bool:
            return True

    other = Other.remote()  # type: ignore[attr-defined]
    assert ray.get(other.is_there.remote())
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    try:
        one = with_compute(ready, atlas_workers=1)
        build_atlas_on_ray(one, ready.runs.root / "path", path, tmp_path / "atlas")
        assert digests(tmp_path / "atlas") == local
    finally:
        ray.kill(other)
        cluster.remove_node(node)


def test_a_share_of_a_gpu_is_all_of_one() -> None:
    assert atlas_tasks._times(4.0, 0.7) == 4
    assert atlas_tasks._times(4.0, 0.25) == 16
    assert atlas_tasks._times(5.0, 2.0) == 2
    assert atlas_tasks._times(0.0, 1.0) == 0


class _Interrupted(Exception):
    pass


def test_a_driver_that_was_interrupted_goes_on_here_or_on_ray(
    cluster: Cluster,
    ready: Prepared,
    path: FrozenDataPath,
    local: dict[str, str],
    tmp_path: Path,
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done >= 10 * SHARD:
            raise _Interrupted

    with pytest.raises(_Interrupted):
        build_atlas(path, ready.images, tmp_path, ready.job.outcomes, report=interrupt)
    one = with_compute(ready, atlas_workers=1)
    with pytest.raises(_Interrupted):
        build_atlas_on_ray(one, ready.runs.root / "path", path, tmp_path, report=interrupt)
    wait_until_none_is_left()
    built = build_atlas_on_ray(one, ready.runs.root / "path", path, tmp_path)
    assert digests(tmp_path) == local
    assert 0 < built.forwards <= (len(built.atlas) - 10 * SHARD) * 3


def test_what_a_worker_raises_arrives_as_itself(
    cluster: Cluster, ready: Prepared, path: FrozenDataPath, tmp_path: Path
) -> None:
    with torch.no_grad():
        broken = pickle.loads(pickle.dumps(path))
        dict(broken.network.named_parameters())["hidden.bias"].fill_(float("nan"))
        broken = FrozenDataPath(broken.network, broken.spec)
    broken.save(tmp_path / "broken")
    one = with_compute(ready, atlas_workers=1)
    with pytest.raises(NotFinite, match=r"at arm 0 \(u = 0\.2\) on image \d+ of digits"):
        build_atlas_on_ray(one, tmp_path / "broken", broken, tmp_path / "a")
    with pytest.raises(StorageError, match=r"holds the data path .*, not .* that all nodes share"):
        build_atlas_on_ray(one, tmp_path / "broken", path, tmp_path / "b")
    wait_until_none_is_left()


def test_a_gpu_that_ray_has_not_got_is_refused_before_anything_is_written(
    cluster: Cluster, ready: Prepared, path: FrozenDataPath, tmp_path: Path
) -> None:
    half = with_compute(ready, gpus_per_worker=0.5)
    with pytest.raises(InvalidSetting, match=r"use 0\.5 GPU, and Ray finds 0 on this machine"):
        build_atlas_on_ray(half, ready.runs.root / "path", path, tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


@pytest.fixture
def task(ready: Prepared, path: FrozenDataPath, tmp_path: Path) -> AtlasTask:
    """Images of more than 1 MB, which do not travel."""
    enlarged = replace(ready.job.data, image_size=32)
    images = load_images(enlarged)
    config = small_vgg(stages=((16,),), hidden=16, in_channels=1, image_size=32)
    network = ThrottleableVgg(config)
    large = FrozenDataPath(network, PathSpec(config, path.arms, path.classes, (0.3,), (0.4,)))
    large.save(tmp_path / "path")
    plan = plan_atlas(large, images, tmp_path / "atlas", ready.job.outcomes)
    plan.claim()
    return AtlasTask(
        path_folder=tmp_path / "path",
        path_fingerprint=large.fingerprint,
        arms=large.arms,
        images=travelling(images, tmp_path / "images" / "pixels.npy"),
        data=enlarged,
        plan=plan,
        config=ready.job.outcomes,
        device="cpu",
        threads=1,
        folder=str(Path.cwd()),
    )


def test_pixels_do_not_travel_and_a_node_without_the_file_loads_them_again(
    task: AtlasTask, tmp_path: Path
) -> None:
    file = tmp_path / "images" / "pixels.npy"
    assert file.stat().st_size > 1_800_000
    assert len(pickle.dumps(task)) < 100_000
    shards = []
    for _ in range(2):
        worker = AtlasWorker()
        worker.load(task)
        worker.build(3)
        shards.append(task.plan.file_of(3).read_bytes())
        file.unlink(missing_ok=True)
    assert shards[0] == shards[1]
    assert not list(task.plan.file_of(3).parent.glob(".*"))
    foreign = replace(task, data=replace(task.data, seed=5))
    with pytest.raises(DataError, match=r"neither .* nor the data set itself"):
        AtlasWorker().load(foreign)


def test_a_worker_that_does_not_see_the_run_folder_says_which_setting_to_change(
    task: AtlasTask, tmp_path: Path
) -> None:
    plan = replace(task.plan, folder=tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"there is no .*elsewhere.*storage\.root=SHARED_FOLDER"):
        AtlasWorker().load(replace(task, plan=plan))
    with pytest.raises(CodeSkew, match="than the job"):
        AtlasWorker().load(replace(task, code="0" * 16))
    AtlasWorker().load(replace(task, code=code_fingerprint()))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"atlas_workers": -1}, "compute.atlas_workers is at least 0, not -1"),
        ({"learners": -2}, "compute.learners is at least 0, not -2"),
        ({"gpus_per_worker": 1.5}, "compute.gpus_per_worker is 0, a share of a GPU"),
        ({"gpus_per_learner": -0.5}, "compute.gpus_per_learner is 0, a share of a GPU"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        ComputeConfig(**setting)  # type: ignore[arg-type]
