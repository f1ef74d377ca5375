"""RLlib with several learners and runners: the law that holds between them, and losing a runner."""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyball.controllers.learn import LearnConfig, Learned
from flyball.controllers.learned import greedy_reward
from flyball.controllers.networks import ControllerConfig
from flyball.controllers.rllib import Workers, learn_rllib
from flyball.controllers.rllib.runner import dealt
from flyball.controllers.rllib.tables import open_table
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.progress import Progress

pytestmark = [
    pytest.mark.usefixtures("four_cpus"),
    # Ray copies its own deprecated data settings to the Learner's process.
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray.data.context"),
]

LEARNER, RUNNER = b"_WrappedExecutable", b"BatchEnvRunner"

TINY = LearnConfig(
    estimator="all_arm",
    batch_size=64,
    updates=24,
    updates_per_iteration=8,
    learning_rate=3e-3,
    validations=3,
)


def learn(folder: Path, config: LearnConfig, workers: Workers, **more: Any) -> Learned:
    return learn_rllib(
        folder,
        observation="context",
        controller=ControllerConfig(),
        config=config,
        workers=workers,
        **more,
    )


def processes(name: bytes) -> list[int]:
    """Actors of this name below this process; another Ray may run beside."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and (entry / "cmdline").read_bytes().startswith(b"ray::" + name)
                and os.getpid() in ancestors(int(entry.name))
            ):
                found.append(int(entry.name))
    return sorted(found)


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        text = Path(f"/proc/{process}/stat").read_text()
        process = int(text.rpartition(")")[2].split()[1])
        found.append(process)
    return found


def test_learners_share_an_update_as_one_would_make_it() -> None:
    # Two learners of 2: updates 0-3, 4-7, and what is left of 9 less one: 8 alone is dropped.
    column = np.arange(9)
    assert dealt({"row": column}, learners=1, size=4)["row"] is column
    assert dealt({"row": column}, learners=2, size=2)["row"].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    # A last update of 2 is shared too.
    more = dealt({"row": np.arange(10)}, learners=2, size=2)["row"].tolist()
    assert more == [0, 1, 4, 5, 8, 2, 3, 6, 7, 9]
    assert dealt({"row": np.arange(2)}, learners=3, size=4)["row"].tolist() == []


def test_two_learners_end_where_one_does_even_if_one_of_them_is_killed(
    identity_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    # The law: all_arm draws nothing, and the mean of the gradients of two equal shares of a batch
    # is the gradient of the batch. Sums in another order round otherwise, by about 1e-7 of a
    # gradient, which Adam's division by its size can raise to 1e-5 of a weight.
    folder = identity_folder(10)
    one = learn(folder, TINY, Workers())
    seen: list[int] = []
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done == 16 and not killed:
            killed.extend(processes(LEARNER)[:1])
            os.kill(killed[0], signal.SIGKILL)

    two = learn(folder, TINY, Workers(learners=2), checkpoint_folder=tmp_path, report=kill)
    assert len(killed) == 1
    assert seen == [8, 16, 24]  # it went on from the checkpoint of 16
    assert two.samples == one.samples == 24 * 64
    np.testing.assert_allclose(two.curve, one.curve, rtol=1e-4)
    np.testing.assert_allclose(two.validation, one.validation, rtol=1e-4)
    for name, weight in one.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_two_learners_and_two_runners_go_on_when_a_runner_is_killed(
    identity_folder: Callable[[int], Path],
) -> None:
    folder = identity_folder(5)
    config = replace(TINY, algorithm="rllib_runner", estimator="ratio", batch_size=128, updates=200)
    killed: list[int] = []
    came: set[int] = set()

    def kill(progress: Progress) -> None:
        if not killed and progress.done >= 16:
            came.update(processes(RUNNER))
            killed.append(min(came))
            os.kill(killed[0], signal.SIGKILL)
        elif progress.done > 100:
            came.update(processes(RUNNER))

    learned = learn(folder, config, Workers(env_runners=2, learners=2), report=kill)
    assert len(killed) == 1
    assert len(came) == 3  # two, and the one that took the place of the killed
    assert learned.samples >= config.samples
    assert [point[0] for point in learned.curve] == sorted({point[0] for point in learned.curve})
    table = open_table({"atlas": str(folder), "split": "controller_val"})
    best = float(table.rewards.max(1).mean())
    assert greedy_reward(learned.network, table) >= 0.95 * best


@pytest.mark.parametrize(
    ("workers", "lack"),
    [
        (Workers(learners=5), "need 5 CPUs, and Ray has 4"),
        (Workers(env_runners=2, learners=3), "need 5 CPUs, and Ray has 4"),
        (Workers(learners=1, gpus_per_learner=0.5), r"need 0\.5 GPUs, and Ray has 0"),
    ],
)
def test_more_than_ray_has_is_refused_where_rllib_would_wait(
    identity_folder: Callable[[int], Path], workers: Workers, lack: str
) -> None:
    config: Any = replace(TINY, algorithm="rllib_runner", estimator="ratio")
    with pytest.raises(InvalidSetting, match=lack):
        learn(identity_folder(5), config, workers)
