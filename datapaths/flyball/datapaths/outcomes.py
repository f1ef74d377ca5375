"""Builds the outcome atlas: asks every arm about every image, shard by shard.

A shard is a file of its own, written whole or not at all, so a build that was killed goes on where
it stopped and ends with the same bytes: plan, shards in any order and place, assembly. N samples,
K arms, S samples in a shard.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.datapaths.atlas import HEADER_FILE, AtlasHeader, OutcomeAtlas
from flyball.datapaths.atlas_plan import AtlasPlan
from flyball.datapaths.cost import CostModel
from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import DataError, ForeignArtifact, InvalidSetting, NotFinite
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.paths import DataPath, device_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import PATH_TRAIN, split_code

__all__ = [
    "OutcomesConfig",
    "assemble_atlas",
    "atlas_fingerprint",
    "build_atlas",
    "build_shard",
    "find_atlas",
    "outcomes_of",
    "plan_atlas",
    "truth_of",
]

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
        The atlas, memory-mapped. `header.forwards` counts the sample passes its outcomes took,
        those of earlier, interrupted builds included; `path.forwards` those of this call.

    Raises:
        ForeignArtifact: the folder holds shards of another data path, data set or plan.
        NotFinite: the data path gave NaN or infinite outputs.
        DataError: the images do not fit the data path.
        StorageError: the folder cannot be written.
    """
    config = config or OutcomesConfig()
    found = find_atlas(path, images, folder, config)
    if found is not None:
        return found
    plan = plan_atlas(path, images, folder, config)
    plan.claim()
    done = 0
    for number in range(len(plan)):
        if not plan.has(number):
            build_shard(path, images, plan, number, cost_model=config.cost_model)
        done += len(plan.rows_of(number))
        report(Progress("outcomes", done, len(plan.rows), f"{len(path.arms)} arms"))
    return assemble_atlas(path, images, plan, config)


def find_atlas(
    path: DataPath, images: ImageSet, folder: Path | str, config: OutcomesConfig
) -> OutcomeAtlas | None:
    """The finished atlas in a folder, memory-mapped; None where there is none.

    Raises:
        ForeignArtifact: it is another one.
        CorruptArtifact: a file of it is damaged.
    """
    folder = Path(folder)
    if not (folder / HEADER_FILE).exists():
        return None
    fingerprint = atlas_fingerprint(path, images, config)
    found = OutcomeAtlas.open(folder, path_fingerprint=path.fingerprint)
    if found.header.fingerprint != fingerprint:
        raise ForeignArtifact(
            f"{folder} holds the atlas {found.header.fingerprint}; these arms, images and "
            f"settings make {fingerprint}. Delete the folder, or name another one."
        )
    return found


def plan_atlas(
    path: DataPath, images: ImageSet, folder: Path | str, config: OutcomesConfig
) -> AtlasPlan:
    """The shards that an atlas is built from; writes nothing.

    Raises:
        DataError: the images do not fit the data path.
        InvalidSetting: the data path does not know the cost model.
    """
    if tuple(images.shape) != path.input_shape:
        raise DataError(
            f"The data path takes images of shape {path.input_shape}, {images.name} has "
            f"{tuple(images.shape)}. Resize with --set data.image_size={path.input_shape[-1]}."
        )
    path.macs_at(1.0, cost_model=config.cost_model)
    return AtlasPlan(
        folder=Path(folder),
        fingerprint=atlas_fingerprint(path, images, config),
        rows=_rows(images, config),
        shard_size=config.shard_size,
    )


def build_shard(
    path: DataPath,
    images: ImageSet,
    plan: AtlasPlan,
    number: int,
    *,
    cost_model: CostModel = "executed",
    writer: str = "",
) -> None:
    """Asks about one shard of a plan and writes it; `writer` as in `AtlasPlan.write`.

    Raises:
        NotFinite: an arm gave NaN or infinite logits.
        StorageError: the shard cannot be written.
    """
    columns = outcomes_of(path, images, plan.rows_of(number), cost_model=cost_model)
    plan.write(number, columns, writer=writer)


def assemble_atlas(
    path: DataPath, images: ImageSet, plan: AtlasPlan, config: OutcomesConfig
) -> OutcomeAtlas:
    """The atlas of a plan whose shards are all there, saved and mapped; the shards go.

    Raises:
        StorageError: a shard is missing, or the folder cannot be written.
        CorruptArtifact: a shard is damaged.
    """
    tables = plan.columns()
    header = AtlasHeader(
        fingerprint=plan.fingerprint,
        path_fingerprint=path.fingerprint,
        data_fingerprint=images.fingerprint,
        classes=path.classes,
        full_macs=path.macs_at(1.0, cost_model=config.cost_model),
        context_macs=round(float(tables["macs"][:, 0].mean())),
        context_arm=0,
        cost_model=config.cost_model,
        forwards=len(plan.rows) * len(path.arms),
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
    )
    plan.finish(OutcomeAtlas(arms=path.arms, header=header, **tables).checked())
    return OutcomeAtlas.open(plan.folder, path_fingerprint=path.fingerprint)


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
