"""Builds the outcome atlas: asks every arm about every image, shard by shard.

A shard is a file of its own, written whole or not at all, so a build that was killed goes on where
it stopped and ends with the same bytes. N samples, K arms, S samples in a shard.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.datapaths.atlas import HEADER_FILE, AtlasHeader, OutcomeAtlas
from flyball.datapaths.cost import CostModel
from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    InvalidSetting,
    NotFinite,
)
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.paths import DataPath, device_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import PATH_TRAIN, split_code

__all__ = ["OutcomesConfig", "atlas_fingerprint", "build_atlas", "outcomes_of", "truth_of"]

SHARD_FOLDER = "shards"
PLAN_FILE = "plan.json"
NUMBERS_AT_ONCE = 2**26
"""Pixels that are held as floats at a time."""


@dataclass(frozen=True)
class OutcomesConfig:
    """How an atlas is built.

    Attributes:
        shard_size: samples in a shard; a killed build repeats at most one shard.
        include_path_train: also ask about the images Phase 1 trained on. Their outcomes flatter
            the data path, so nothing learns from them; they are for inspection.
        cost_model: "executed" (both sides of a layer sliced) or "linear" (as in the TNN paper).
    """

    shard_size: int = 1024
    include_path_train: bool = False
    cost_model: CostModel = "executed"

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            InvalidSetting: a shard would be empty, or the cost model is unknown.
        """
        if self.shard_size < 1:
            raise InvalidSetting(
                f"A shard holds at least one sample, not {self.shard_size}. "
                "Set for example --set outcomes.shard_size=1024."
            )
        if self.cost_model not in get_args(CostModel):
            raise InvalidSetting(
                f"MACs are counted 'executed' or 'linear', not {self.cost_model!r}. "
                "Set --set outcomes.cost_model=executed."
            )


def atlas_fingerprint(path: DataPath, images: ImageSet, config: OutcomesConfig) -> str:
    """Names the atlas by its configuration and its parents, before it is built."""
    settings = (config.include_path_train, config.cost_model)
    return fingerprint_of(path.fingerprint, path.arms, images.fingerprint, settings)


def build_atlas(
    path: DataPath,
    images: ImageSet,
    folder: Path | str,
    config: OutcomesConfig | None = None,
    *,
    report: Report = silent,
) -> OutcomeAtlas:
    """Asks every arm about every image and writes the atlas; goes on where a build stopped.

    Args:
        path: frozen data path of any kind.
        images: what to ask about: an `ImageSet`, or another set whose `truth_rows(rows)` gives
            what the path's `judge` needs; without that method the labels are the truth.
        folder: where the atlas goes; finished shards found there are kept.
        config: shard size, splits and cost model.
        report: hears of every finished shard.

    Returns:
        The atlas, memory-mapped. `header.forwards` counts the sample passes it took in all, those
        of earlier, interrupted builds included; `path.forwards` those of this call.

    Raises:
        ForeignArtifact: the folder holds shards of another data path, data set or plan.
        NotFinite: the data path gave NaN or infinite outputs.
        DataError: the images do not fit the data path.
        StorageError: the folder cannot be written.
    """
    config = config or OutcomesConfig()
    folder = Path(folder)
    fingerprint = atlas_fingerprint(path, images, config)
    if (folder / HEADER_FILE).exists():
        found = OutcomeAtlas.open(folder, path_fingerprint=path.fingerprint)
        if found.header.fingerprint != fingerprint:
            raise ForeignArtifact(
                f"{folder} holds the atlas {found.header.fingerprint}; these arms, images and "
                f"settings make {fingerprint}. Delete the folder, or name another one."
            )
        return found
    if tuple(images.shape) != path.input_shape:
        raise DataError(
            f"The data path takes images of shape {path.input_shape}, {images.name} has "
            f"{tuple(images.shape)}. Resize with --set data.image_size={path.input_shape[-1]}."
        )
    index = _rows(images, config)
    full_macs = path.macs_at(1.0, cost_model=config.cost_model)
    plan = {"fingerprint": fingerprint, "samples": len(index), "shard_size": config.shard_size}
    _claim(folder, plan)
    starts = range(0, len(index), config.shard_size)
    shards: list[dict[str, NDArray[Any]]] = []
    for number, start in enumerate(starts):
        rows = index[start : start + config.shard_size]
        file = folder / SHARD_FOLDER / f"{number:06d}.safetensors"
        shard = _finished(file, rows)
        if shard is None:
            shard = outcomes_of(path, images, rows, cost_model=config.cost_model)
            write_tensors(file, shard)
        shards.append(shard)
        done = min(start + config.shard_size, len(index))
        report(Progress("outcomes", done, len(index), f"{len(path.arms)} arms"))
    tables = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    header = AtlasHeader(
        fingerprint=fingerprint,
        path_fingerprint=path.fingerprint,
        data_fingerprint=images.fingerprint,
        classes=path.classes,
        full_macs=full_macs,
        context_macs=round(float(tables["macs"][:, 0].mean())),
        context_arm=0,
        cost_model=config.cost_model,
        forwards=len(index) * len(path.arms),
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
    )
    OutcomeAtlas(arms=path.arms, header=header, **tables).checked().save(folder)
    shutil.rmtree(folder / SHARD_FOLDER, ignore_errors=True)
    (folder / PLAN_FILE).unlink(missing_ok=True)
    return OutcomeAtlas.open(folder, path_fingerprint=path.fingerprint)


def outcomes_of(
    path: DataPath,
    images: ImageSet,
    rows: NDArray[np.int64],
    *,
    cost_model: CostModel = "executed",
) -> dict[str, NDArray[Any]]:
    """What every arm answers about some images, and what it costs: the columns of one shard.

    The lowest arm runs once: it gives both its outcome and the context.

    Args:
        path: frozen data path.
        images: the set that `rows` index.
        rows: (S,).
        cost_model: "executed" or "linear".

    Raises:
        NotFinite: an arm gave NaN or infinite logits; names the arm and the image.
    """
    most = max(1, NUMBERS_AT_ONCE // math.prod(path.input_shape))
    parts = [rows[start : start + most] for start in range(0, len(rows), most)] or [rows]
    ahead = getattr(images.images, "prefetch", None)
    asked = []
    for number, part in enumerate(parts):
        if ahead is not None and number + 1 < len(parts):
            ahead(parts[number + 1])
        asked.append(_ask(path, images, part))
    columns = {name: np.concatenate([part[name] for part in asked]) for name in asked[0]}
    if cost_model != "executed":
        macs = [path.macs_at(u, cost_model=cost_model) for u in path.arms]
        columns["macs"] = np.broadcast_to(np.asarray(macs, np.int64), (len(rows), len(macs))).copy()
    return {
        **columns,
        "split": np.asarray(images.split[rows], np.int8),
        "sample": np.asarray(rows, np.int64),
        "label": np.asarray(images.labels[rows], np.int32),
    }


def truth_of(images: ImageSet, rows: NDArray[np.int64], device: torch.device | None = None) -> Any:
    """What answers about some images are judged by: their `truth_rows`, else labels, int64 (S,)."""
    known = getattr(images, "truth_rows", None)
    if known is not None:
        return known(rows)
    return torch.from_numpy(np.asarray(images.labels[rows], np.int64)).to(device)


def _ask(path: DataPath, images: ImageSet, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What every arm answers about images that are in memory together, and their context."""
    device = device_of(path)
    x = torch.from_numpy(np.asarray(images.images[rows])).to(device).float() / 255.0
    truth = truth_of(images, rows, device)
    context, lowest = path.context(x)
    names = ("answer", "correct", "confidence", "macs")
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for arm, u in enumerate(path.arms):
        output, macs = lowest if arm == 0 else path(x, u)
        is_finite = torch.isfinite(output).flatten(1).all(dim=1)
        if not bool(is_finite.all()):
            bad = int(torch.nonzero(~is_finite)[0])
            raise NotFinite(
                f"The data path gave NaN or infinite logits at arm {arm} (u = {u}) on image "
                f"{int(rows[bad])} of {images.name}. Train it again with a lower learning rate."
            )
        judged = path.judge(output, truth)
        columns["answer"].append(judged.answer.cpu().numpy().astype(np.int32))
        columns["correct"].append(judged.correct.cpu().numpy())
        columns["confidence"].append(judged.confidence.cpu().numpy())
        columns["macs"].append(macs.cpu().numpy().astype(np.int64))
    return {
        **{name: np.stack(column, axis=1) for name, column in columns.items()},
        "context": context.cpu().numpy().astype(np.float32),
    }


def _rows(images: ImageSet, config: OutcomesConfig) -> NDArray[np.int64]:
    if config.include_path_train:
        return np.arange(len(images.labels), dtype=np.int64)
    return np.flatnonzero(np.asarray(images.split) != split_code(PATH_TRAIN)).astype(np.int64)


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    file = folder / PLAN_FILE
    if file.exists() and read_json(file) != plan:
        raise ForeignArtifact(
            f"{folder} holds the unfinished atlas of another data path, data set or shard size "
            f"({read_json(file)}; wanted {plan}). Delete the folder, or name another one."
        )
    write_json(file, plan)


def _finished(file: Path, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]] | None:
    if not file.exists():
        return None
    try:
        shard = read_tensors(file)
    except CorruptArtifact:
        file.unlink()
        return None
    return shard if np.array_equal(shard.get("sample", ()), rows) else None
