"""What RLlib costs: samples a CPU second of each learner, measured in turn in one process.

Every learner has the same network, batch size and learning rate, on one thread; all of RLlib runs
in this process, so its CPU time is this process's.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flyball.controllers.learn import LearnConfig, make_optimizer, run_updates
from flyball.controllers.learned import UpdateLog
from flyball.controllers.networks import ControllerConfig, build_network
from flyball.controllers.rllib.learn import Workers, algorithm_config, local_ray
from flyball.controllers.rllib.stock import ppo_config
from flyball.controllers.rllib.tables import open_table
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import CONTROLLER_TRAIN, split_code

__all__ = ["TARGETS", "BenchRow", "bench_table", "run_bench_training"]

PLAIN = "plain torch"
ATLAS = "RLlib, atlas in the Learner"
RUNNER = "RLlib, batch runner"
PPO = "RLlib, stock PPO"
PPO_ONCE = "RLlib, stock PPO, 1 epoch"

TARGETS = {ATLAS: 0.8, RUNNER: 0.45}
"""Least share of plain torch's speed that is promised."""

PPO_TARGET = 20.0
"""How many times as fast as stock PPO the atlas in the Learner is promised to be."""

SAMPLES = 4096
ARMS = tuple(k / 10 for k in range(1, 11))
PPO_UPDATES = 4

Turn = Callable[[], int]
"""Does a learner's share of a round; returns the samples it has learned from."""


@dataclass(frozen=True)
class BenchRow:
    """One learner on one shape of input.

    Attributes:
        shape: of an observation, such as "3x32x32".
        learner: what was measured.
        samples_per_cpu_second: median over the rounds.
        share_of_plain: median over the rounds of its speed over plain torch's.
        times_ppo: median over the rounds of its speed over stock PPO's.
        target: least share of plain torch that is promised, if any.
    """

    shape: str
    learner: str
    samples_per_cpu_second: float
    share_of_plain: float
    times_ppo: float
    target: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def run_bench_training(
    shapes: Sequence[tuple[int, int, int]] = ((1, 8, 8), (3, 32, 32)),
    *,
    controller: ControllerConfig | None = None,
    config: LearnConfig | None = None,
    rounds: int = 7,
    iterations: int = 4,
    report: Report = silent,
) -> tuple[BenchRow, ...]:
    """Measures plain torch, both samplers of RLlib, and stock PPO, interleaved.

    PPO runs as `ppo_config` sets it, with 4 epochs over what it samples (RLlib's default is 30),
    and with a single one, which learns less from a sample but is the cheapest it can be.

    Args:
        shapes: (C, H, W) of the inputs.
        controller: the network; a small CNN by default.
        config: batch size, updates an iteration, estimator; the ratio estimator by default.
        rounds: every learner has one turn in each; the first, which warms up, does not count.
        iterations: of `config.updates_per_iteration` updates in a turn, PPO apart.
        report: told once a round.
    """
    controller = controller or ControllerConfig(kind="image_cnn")
    config = config or LearnConfig(estimator="ratio", updates=1_000_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with local_ray(), tempfile.TemporaryDirectory() as folder:
            return tuple(
                row
                for shape in shapes
                for row in _measure(
                    _environment(Path(folder, _name_of(shape)), shape),
                    shape,
                    controller,
                    config,
                    rounds,
                    iterations,
                    report,
                )
            )
    finally:
        torch.set_num_threads(threads)


def bench_table(rows: Sequence[BenchRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'input':<10}{'learner':<30}{'samples/CPU s':>14}{'of plain':>10}{'x PPO':>8}  promise"
    ]
    for row in rows:
        promise = "" if row.target is None else f">= {row.target:g} of plain"
        promise += f", >= {PPO_TARGET:g} x PPO" if row.learner == ATLAS else ""
        lines.append(
            f"{row.shape:<10}{row.learner:<30}{row.samples_per_cpu_second:>14,.0f}"
            f"{row.share_of_plain:>10.2f}{row.times_ppo:>8.1f}  {promise}".rstrip()
        )
    return "\n".join(lines)


def _measure(
    env_config: Mapping[str, Any],
    shape: tuple[int, int, int],
    controller: ControllerConfig,
    config: LearnConfig,
    rounds: int,
    iterations: int,
    report: Report,
) -> list[BenchRow]:
    name = _name_of(shape)
    with ExitStack() as stack:
        turns = {PLAIN: _plain(env_config, shape, controller, config, iterations)}
        few = replace(config, updates_per_iteration=PPO_UPDATES)
        for learner, built, used, times in (
            (ATLAS, _ours(env_config, controller, config, "rllib_atlas"), config, iterations),
            (RUNNER, _ours(env_config, controller, config, "rllib_runner"), config, iterations),
            (PPO, ppo_config(env_config, few, controller), few, 1),
            (PPO_ONCE, ppo_config(env_config, few, controller, epochs=1), few, 1),
        ):
            turns[learner] = _rllib(built, used, times, stack)
        speeds: dict[str, list[float]] = {learner: [] for learner in turns}
        for index in range(rounds + 1):
            for learner, turn in turns.items():
                start = time.process_time()
                samples = turn()
                if index > 0:
                    speeds[learner].append(samples / (time.process_time() - start))
            report(Progress("bench", index, rounds, note=name))
    return [
        BenchRow(
            shape=name,
            learner=learner,
            samples_per_cpu_second=statistics.median(speed),
            share_of_plain=_median_ratio(speed, speeds[PLAIN]),
            times_ppo=_median_ratio(speed, speeds[PPO]),
            target=TARGETS.get(learner),
        )
        for learner, speed in speeds.items()
    ]


def _plain(
    env_config: Mapping[str, Any],
    shape: tuple[int, int, int],
    controller: ControllerConfig,
    config: LearnConfig,
    iterations: int,
) -> Turn:
    """The inner loop of `learn_plain`, and nothing else of it."""
    network = build_network(controller, shape, len(ARMS)).train()
    optimizer = make_optimizer(
        network.parameters(), config.optimizer, learning_rate=config.learning_rate
    )
    observations, rewards = open_table(env_config).tensors()
    rows = np.random.default_rng(config.seed)
    arms = torch.Generator().manual_seed(config.seed)
    log, drawn_shape = UpdateLog(), (config.updates_per_iteration, config.batch_size)

    def turn() -> int:
        for _ in range(iterations):
            drawn = torch.from_numpy(rows.integers(SAMPLES, size=drawn_shape))
            run_updates(
                network,
                optimizer,
                ((observations[row], rewards[row]) for row in drawn),
                config,
                epsilon=config.epsilon_end,
                generator=arms,
                log=log,
            )
            log.finish(0)
        return iterations * drawn_shape[0] * drawn_shape[1]

    return turn


def _ours(
    env_config: Mapping[str, Any],
    controller: ControllerConfig,
    config: LearnConfig,
    algorithm: Literal["rllib_atlas", "rllib_runner"],
) -> Any:
    return algorithm_config(env_config, controller, replace(config, algorithm=algorithm), Workers())


def _rllib(built: Any, config: LearnConfig, iterations: int, stack: ExitStack) -> Turn:
    algorithm: Any = built.build_algo()
    stack.callback(algorithm.stop)

    def turn() -> int:
        for _ in range(iterations):
            algorithm.train()
        return iterations * config.updates_per_iteration * config.batch_size

    return turn


def _environment(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """An atlas over images of noise, in which the bright ones need a high arm."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SAMPLES, *shape), dtype=np.uint8)
    needed = np.where(images.mean(axis=(1, 2, 3)) > 127.5, 7, 2)
    correct = np.arange(len(ARMS)) >= needed[:, None]
    atlas = OutcomeAtlas.from_arrays(
        ARMS,
        correct=correct,
        confidence=generator.uniform(0.5, 0.9, correct.shape),
        macs=[round(u * 1_000_000) for u in ARMS],
        split=np.full(SAMPLES, split_code(CONTROLLER_TRAIN)),
    )
    atlas.save(folder / "outcomes")
    np.save(folder / "images.npy", images)
    return {
        "atlas": str(folder / "outcomes"),
        "images": str(folder / "images.npy"),
        "observation": "image",
    }


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _name_of(shape: tuple[int, int, int]) -> str:
    return "x".join(str(size) for size in shape)
