"""Ways of gating side by side on one data set: the experiment behind TNN Figs. 3 and 4.

Static nested gates, static independent ones, and gates learned on that same independent data path.
The plan is written before anything is trained and every method as soon as it is done, so a run
that was killed goes on after it, and no other one does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.datapaths.errors import DataError, ForeignArtifact, InvalidSetting
from flyball.datapaths.files import fingerprint_of, read_tensors, write_tensors
from flyball.datapaths.learned_gates.comparison_config import ComparisonConfig
from flyball.datapaths.learned_gates.comparison_result import (
    RESULT_FILE,
    Comparison,
    GateRow,
    MethodResult,
    resume_comparison,
    write_comparison,
)
from flyball.datapaths.learned_gates.curves import fixed_curve, gate_curve
from flyball.datapaths.learned_gates.progress_state import pixel_digest
from flyball.datapaths.learned_gates.training import train_gates
from flyball.datapaths.network import Gating, ThrottleableNetwork
from flyball.datapaths.phase1 import train_phase1
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.weights import load_weights

__all__ = ["RESULT_FILE", "Comparison", "GateRow", "Labelled", "MethodResult", "compare_gates"]

WEIGHTS_FILE = "path.safetensors"


class Labelled(NamedTuple):
    """Images and their classes: uint8 (M, *input_shape) and int64 (M,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def compare_gates(
    make: Callable[[Gating], ThrottleableNetwork],
    train: Labelled,
    test: Labelled,
    config: ComparisonConfig,
    *,
    folder: Path,
    device: str = "cpu",
    report: Report = silent,
) -> Comparison:
    """Trains and measures every method of a configuration.

    Args:
        make: gives the same network for either gating, its weights from torch's generator.
        train: images that Phase 1 and Phase 2 learn from.
        test: images that the curves are measured on.
        config: methods, schedules and utilizations.
        folder: for networks, gates, checkpoints and `comparison.json`; found there, they are
            gone on from.
        device: torch device.
        report: hears of every step.

    Raises:
        DataError: images and labels differ in number, or there are none.
        InvalidSetting: the network has batch norms.
        ForeignArtifact: the folder holds another comparison, or networks of an unknown one.
        NotFinite: a loss is NaN or infinite.
    """
    train, test = _subset(train, config.train_images, 0), _subset(test, config.test_images, 1)
    shop = _Workshop(make, train, config, folder, device, report)
    if shop.blank("nested").norms:
        raise InvalidSetting(
            "Gates are compared in settings that no statistics of a batch norm were calibrated "
            "for. Use a network with group norm: --set path.norm=group."
        )
    plan = shop.plan(test)
    done = resume_comparison(folder, plan)
    chance = float(np.bincount(test.labels).max() / len(test.labels))
    if not (folder / RESULT_FILE).exists():
        shop.refuse_strangers()
        write_comparison(folder, plan, asdict(config), chance, done)
    results: list[MethodResult] = []
    with _threads(config.threads):
        for method in config.methods:
            result = done.get(method) or _run(shop, method, test)
            results.append(result)
            done[method] = result
            write_comparison(folder, plan, asdict(config), chance, done)
            report(Progress("compare", len(results), len(config.methods), method))
    return Comparison(tuple(results), chance)


class _Workshop:
    """Makes data paths and gates of one comparison, each once."""

    def __init__(
        self,
        make: Callable[[Gating], ThrottleableNetwork],
        train: Labelled,
        config: ComparisonConfig,
        folder: Path,
        device: str,
        report: Report,
    ) -> None:
        self.make, self.train, self.config = make, train, config
        self.folder, self.device, self.report = folder, device, report
        mean, std = _scale(train.images)
        self.scale: dict[str, Any] = {"mean": mean, "std": std}

    def plan(self, test: Labelled) -> str:
        """Names the comparison."""
        settings = {**asdict(self.config), "threads": None, "methods": None}
        for part in ("phase1", "reinforce", "concrete", "contextual", "contextual_fine"):
            settings[part]["checkpoint_seconds"] = None
        described = [repr(self.blank("nested").config), list(self.train.images.shape[1:])]
        labels = [self.train.labels.tolist(), test.labels.tolist()]
        pixels = [pixel_digest(self.train.images), pixel_digest(test.images), self.scale]
        return fingerprint_of(described, settings, labels, pixels)

    def refuse_strangers(self) -> None:
        """Refuses data paths that lie in a folder without a plan: nobody knows of which run.

        Raises:
            ForeignArtifact: there is one.
        """
        for gating in get_args(Gating):
            file = self.file_of(gating)
            if file.exists():
                raise ForeignArtifact(
                    f"{file} is a data path of an unknown comparison: there is no {RESULT_FILE} "
                    f"in {self.folder}. Delete that folder, or name another."
                )

    def file_of(self, gating: Gating) -> Path:
        """Where a trained data path lies."""
        return self.folder / f"phase1_{gating}" / WEIGHTS_FILE

    def blank(self, gating: Gating) -> ThrottleableNetwork:
        """A network with the weights that the seed gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.make(gating)

    def path(self, gating: Gating, method: str) -> tuple[ThrottleableNetwork, float, list[float]]:
        """The data path after Phase 1, the seconds that took, and its losses."""
        network, file = self.blank(gating), self.file_of(gating)
        if file.exists():
            weights = read_tensors(file)
            losses, seconds = weights.pop("losses").tolist(), float(weights.pop("seconds")[0])
            load_weights(network, weights, where=str(file))
            return network.eval(), seconds, losses
        result = train_phase1(
            network,
            *self.train,
            self.config.phase1,
            **self.scale,
            folder=file.parent,
            device=self.device,
            report=self.named(method),
        )
        weights = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
        told = {"losses": np.asarray(result.losses), "seconds": np.asarray([result.seconds])}
        write_tensors(file, {**weights, **told})
        return network, result.seconds, list(result.losses)

    def named(self, method: str) -> Report:
        """A report that says which method it is about."""
        return lambda p: self.report(replace(p, note=f"{method}: {p.note}"))


def _run(shop: _Workshop, method: str, test: Labelled) -> MethodResult:
    config = shop.config
    shared: dict[str, Any] = {
        **shop.scale,
        "precision": config.phase1.precision,
        "device": shop.device,
    }
    gating: Gating = "nested" if method == "nested" else "independent"
    network, seconds, losses = shop.path(gating, method)
    if method in ("nested", "independent"):
        curve = fixed_curve(
            network, *test, config.utilizations, draws=config.draws, seed=config.seed, **shared
        )
        return MethodResult(method, curve, seconds, tuple(losses))
    result = train_gates(
        network,
        *shop.train,
        getattr(config, method),
        **shop.scale,
        folder=shop.folder / method,
        device=shop.device,
        report=shop.named(method),
    )
    result.gate.save(shop.folder / method)
    if getattr(config, method).joint:
        weights = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
        write_tensors(shop.folder / method / WEIGHTS_FILE, weights)
    curve = gate_curve(network, result.gate, *test, config.utilizations, **shared)
    return MethodResult(method, curve, result.seconds, result.task_losses)


def _subset(data: Labelled, limit: int | None, seed: int) -> Labelled:
    """At most so many rows, drawn once for all runs."""
    if len(data.images) != len(data.labels) or not len(data.labels):
        raise DataError(
            f"Every image has one label; there are {len(data.images)} images and "
            f"{len(data.labels)} labels. Give at least one image, and a label for each."
        )
    if limit is None or limit >= len(data.labels):
        return data
    rows = np.sort(np.random.default_rng(seed).permutation(len(data.labels))[:limit])
    return Labelled(np.asarray(data.images[rows]), np.asarray(data.labels[rows]))


def _scale(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel over at most 10,000 images, on the [0, 1] scale."""
    some = np.asarray(images[np.arange(min(len(images), 10_000))])
    axes = (0, *range(2, some.ndim))
    mean, std = some.mean(axis=axes) / 255.0, some.std(axis=axes) / 255.0
    return tuple(float(v) for v in mean), tuple(max(float(v), 1e-3) for v in std)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
