"""`ray up`, `ray submit`, `ray job submit` and `ray down`, over ssh, on two isolated nodes.

The cluster file is the shipped one for these addresses. One story is told once; each test holds
one fact of it.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from mlflow import MlflowClient

# Of the whole story: a dozen processes that each import torch, Ray and MLflow.
pytestmark = pytest.mark.timeout(900)


class Machines(Protocol):
    """What the fixture gives; a test cannot import its type."""

    base: Path

    def run(self, command: str, *, on: str = "client", env: str = "") -> "Said":
        """Runs a shell command on a machine, in the client's working tree."""

    def write(self, name: str, text: str) -> None:
        """A file of the client's working tree."""


Said = subprocess.CompletedProcess[str]
# One atlas worker on each node, and shards enough for the one that comes last.
SMALL = (
    "--set phase1.epochs=1 --set learn.updates=20 --set outcomes.shard_size=4 "
    "--set compute.atlas_workers=2"
)
ROOT = "--set storage.root=/run/base/shared/runs"
JOB = f"digits {SMALL} {ROOT}"
# Another atlas of the same data path.
OTHER_JOB = f"{JOB} --set outcomes.cost_model=linear"
WAIT = """
import time
from pathlib import Path
import ray
from flyball.platform.cluster import check_ray_address, ray_session
from flyball.platform.nodes import check_nodes
with ray_session(check_ray_address(None)):
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        time.sleep(0.2)
    print("seen", *(state.address for state in check_nodes(Path("/run/base/shared"))))
    check_nodes(Path("/run/only-here"))
"""
JOIN = """
from flyball.platform.cluster import ray_session
with ray_session("127.0.0.1:6379"):
    pass
"""
TASKS = """
import ray
from ray.util.state import list_tasks
ray.init(address="auto")
addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
for name in ("AtlasWorker.load", "AtlasWorker.build"):
    asked = [("name", "=", name), ("state", "=", "FINISHED")]
    for task in list_tasks(filters=asked, limit=1000):
        print(name, "on", addresses[task.node_id])
"""


@dataclass(frozen=True)
class Story:
    """What each command said, in this order."""

    up: Said
    asked: Said
    stranger: Said
    submitted: Said
    tasks: Said
    updated: Said
    refused: Said
    shipped: Said
    down: Said
    database: Path


@pytest.fixture(scope="module")
def story(machines: Machines) -> Story:
    on_head = ". ~/.flyball/env && python"
    for name, text in (("wait", WAIT), ("join", JOIN), ("tasks", TASKS)):
        machines.write(f"{name}.py", text)
    jobs = "ray job submit --address http://127.0.0.1:8265 --working-dir ."
    up = machines.run("ray up -y cluster.yaml")
    asked = machines.run(f"{on_head} wait.py", on="head")
    with ThreadPoolExecutor() as beside:
        # Ray's client tries for a while, and mostly waits.
        turned_away = beside.submit(machines.run, "python join.py", env="RAY_AUTH_TOKEN=wrong")
        submitted = machines.run(f"ray submit cluster.yaml train_controller.py -- {JOB}")
    stranger = turned_away.result()
    tasks = machines.run(f"{on_head} tasks.py", on="head")
    machines.write("kernels/flyball/kernels/newer.py", '"""A change of the working tree."""\n')
    updated = machines.run("ray up -y --no-restart cluster.yaml")
    refused = machines.run(f"ray submit cluster.yaml train_controller.py -- {OTHER_JOB}")
    shipped = machines.run(f"{jobs} -- python train_controller.py {OTHER_JOB}")
    down = machines.run("ray down -y cluster.yaml")
    database = machines.base / "shared" / "runs" / "mlflow.db"
    return Story(up, asked, stranger, submitted, tasks, updated, refused, shipped, down, database)


def test_ray_up_brings_up_both_nodes_with_one_code(story: Story) -> None:
    assert story.up.returncode == 0, story.up.stdout
    assert "seen 127.0.0.1 127.0.0.2" in story.asked.stdout


def test_a_folder_that_only_the_head_sees_is_refused(story: Story) -> None:
    assert "/run/only-here is not the same on 127.0.0.2" in story.asked.stdout
    assert "storage.root=SHARED_FOLDER" in story.asked.stdout


def test_another_token_is_refused_with_the_remedy(story: Story) -> None:
    assert story.stranger.returncode != 0
    assert "takes another token than this process has" in story.stranger.stdout


def test_a_submitted_job_joins_the_cluster_and_runs_tasks_on_both_nodes(story: Story) -> None:
    assert story.submitted.returncode == 0, story.submitted.stdout
    assert re.search(r"data-path forwards by [1-9] workers", story.submitted.stdout)
    for name in ("load", "build"):
        at = re.findall(rf"AtlasWorker\.{name} on (\S+)", story.tasks.stdout)
        assert set(at) == {"127.0.0.1", "127.0.0.2"}, story.tasks.stdout


def test_a_changed_working_tree_on_one_node_stops_the_job_with_the_remedy(story: Story) -> None:
    assert story.updated.returncode == 0, story.updated.stdout
    assert story.refused.returncode != 0
    assert "Node 127.0.0.2 has other flyball sources" in story.refused.stdout
    assert "without --no-restart" in story.refused.stdout


def test_a_job_with_its_working_directory_brings_the_changed_tree_to_all(story: Story) -> None:
    assert story.shipped.returncode == 0, story.shipped.stdout
    assert re.search(r"data-path forwards by [1-9] workers", story.shipped.stdout)


def test_both_runs_and_their_models_are_in_the_shared_registry(story: Story) -> None:
    client = MlflowClient(f"sqlite:///{story.database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    models = client.search_model_versions("name = 'flyball-digits'")
    assert {model.run_id for model in models} == {run.info.run_id for run in runs}


def test_ray_down_ends_the_head(story: Story) -> None:
    assert story.down.returncode == 0, story.down.stdout
    assert "No nodes remaining" in story.down.stdout
