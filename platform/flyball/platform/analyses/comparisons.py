"""Comparisons of gates as inputs of analyses: from a job, trained or found, or from a folder."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.learned_gates.comparison import Comparison, Labelled, compare_gates
from flyball.datapaths.learned_gates.comparison_config import ComparisonConfig
from flyball.datapaths.learned_gates.comparison_result import RESULT_FILE, read_comparison
from flyball.datapaths.networks import config_to_json, make_network
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import PATH_TRAIN, TEST
from flyball.platform.prepare import Prepared
from flyball.platform.training_images import training_pixels

__all__ = ["comparison_of", "comparison_settings", "open_comparison"]


def comparison_settings(ready: Prepared) -> ComparisonConfig:
    """What a job compares gates with: its own Phase 1 under the uniform schedule, and its seed."""
    phase1 = replace(ready.job.phase1, schedule="uniform")
    return ComparisonConfig(phase1=phase1, seed=phase1.seed)


def comparison_of(
    ready: Prepared, config: ComparisonConfig | None = None, *, report: Report = silent
) -> tuple[Comparison, Path]:
    """Trains and measures every way of gating on a job's network and images, or finds it done.

    Everything learns from path_train and is measured on test.

    Returns:
        The comparison and its folder.

    Raises:
        InvalidSetting: the network has no choice of gating.
        NotFinite: a loss became NaN or infinite.
        StorageError: the folder cannot be written.
    """
    config = config or comparison_settings(ready)
    network, images = ready.network, ready.images
    if not hasattr(network, "gating"):
        raise InvalidSetting(
            f"Gates are compared on a network that can be gated both ways; a "
            f"{type(network).__name__} cannot. Take the preset of another network."
        )
    settings = {**asdict(config), "threads": None}
    structure = {**config_to_json(network), "gating": None}
    folder = ready.runs.root / "gates" / fingerprint_of(structure, settings, images.fingerprint)
    train, test = (
        Labelled(
            training_pixels(images.images, rows), np.asarray(images.labels[rows], dtype=np.int64)
        )
        for rows in (images.rows(PATH_TRAIN), images.rows(TEST))
    )
    with ready.runs.locked(folder):
        found = compare_gates(
            lambda gating: make_network(replace(network, gating=gating)),
            train,
            test,
            config,
            folder=folder,
            device=ready.job.compute.device,
            report=report,
        )
    return found, folder


def open_comparison(folder: Path | str) -> Comparison:
    """Reads the finished methods of a comparison that was made elsewhere.

    Raises:
        DataError: no comparison lies there, or none of its methods is finished.
        CorruptArtifact: the file is damaged.
    """
    file = Path(folder) / RESULT_FILE
    if not file.exists():
        raise DataError(
            f"There is no comparison of gates in {folder}: it would hold {RESULT_FILE}. "
            "Name its folder, or make one with `flyball analyse gates PRESET`."
        )
    found = read_comparison(folder)
    if not found.results:
        raise DataError(
            f"The comparison of gates in {folder} has no finished method yet. Run the command that "
            "began it once more: it goes on where it stopped."
        )
    return found
