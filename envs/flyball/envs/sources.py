"""Where an environment's outcomes come from, and every check of what it was made from.

An atlas gives them by look-up; `live` asks a frozen data path. N samples, B batch, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import DataError, ForeignArtifact, InvalidSetting
from flyball.datapaths.splits import CONTROLLER_TRAIN
from flyball.envs.observations import (
    Images,
    ObservationKind,
    as_unit_range,
    check_kind,
    check_samples,
    context_rows,
    image_rows,
    is_image_set,
    missing_images,
    open_images,
)

if TYPE_CHECKING:
    from flyball.datapaths.paths import DataPath

__all__ = ["AtlasOutcomes", "OutcomeSource", "Outcomes", "context_box", "image_box", "open_source"]


@dataclass(frozen=True)
class Outcomes:
    """What the chosen arms answered and cost.

    Attributes:
        correct: 1 where the answer is right, graded in [0, 1]; float32 (B,).
        confidence: the data path's probability of its own answer; float32 (B,).
        macs: multiply-accumulates that the data path executed; int64 (B,).
        context_macs: what the context cost; int64 (B,).
    """

    correct: NDArray[np.float32]
    confidence: NDArray[np.float32]
    macs: NDArray[np.int64]
    context_macs: NDArray[np.int64]


class OutcomeSource(Protocol):
    """Samples to draw from, what is seen of them, and what every arm does with them.

    Attributes:
        arms: K utilizations, increasing, in (0, 1].
        sample: row of the image set; int64 (N,).
        space: of one observation.
        full_macs: multiply-accumulates of the data path at u = 1.
    """

    arms: tuple[float, ...]
    sample: NDArray[np.int64]
    space: Box
    full_macs: int

    def observe(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Observations of rows (B,) in [0, N); float32 (B, ...)."""
        ...

    def outcomes(self, rows: NDArray[np.int64], actions: NDArray[np.int64]) -> Outcomes:
        """What arms (B,) in [0, K) do with rows (B,) in [0, N)."""
        ...


class AtlasOutcomes:
    """Outcomes that were computed once, looked up; a view of an atlas without state."""

    def __init__(
        self, atlas: OutcomeAtlas, images: NDArray[Any] | None, kind: ObservationKind
    ) -> None:
        self.arms = atlas.arms
        self.sample = np.array(atlas.sample, np.int64)
        self.full_macs = atlas.header.full_macs
        self._context_costs = atlas.context_costs()
        self.atlas = atlas
        self._context = context_rows(atlas) if kind == "context" else None
        self._images = images
        if self._context is not None:
            self.space = context_box(self._context.shape[1])
        elif images is None:
            raise missing_images("Image observations")
        else:
            check_samples(images, self.sample)
            self.space = image_box(images.shape[1:])

    def observe(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._context is not None:
            return self._context[rows]
        assert self._images is not None
        return as_unit_range(image_rows(self._images, self.sample[rows]))

    def outcomes(self, rows: NDArray[np.int64], actions: NDArray[np.int64]) -> Outcomes:
        atlas = self.atlas
        return Outcomes(
            atlas.correct[rows, actions],
            atlas.confidence[rows, actions],
            atlas.macs[rows, actions],
            self._context_costs[rows],
        )


def open_source(
    *,
    atlas: OutcomeAtlas | str | Path | None,
    path: "DataPath | str | Path | None",
    images: Images | None,
    labels: Sequence[int] | NDArray[Any] | None,
    observation: ObservationKind,
    split: str | None,
) -> OutcomeSource:
    """The source of outcomes that an environment's arguments describe: live if a path is given.

    Raises:
        UnknownName: there is no such observation or split.
        InvalidSetting: neither atlas nor path is given, something that is needed is missing,
            or images without splits come with one.
        DataError: the images do not fit, or the split has no rows.
        ForeignArtifact: the atlas belongs to another data path or image set.
        NotFinite: a context value is NaN or infinite.
        CorruptArtifact, PickleRefused: a file cannot be used.
    """
    check_kind(observation)
    if atlas is None and path is None:
        raise InvalidSetting(
            "An environment takes its outcomes from an atlas or from a frozen data path; neither "
            "came. Give atlas=: an OutcomeAtlas or its folder, or path=: a frozen data path or its "
            "folder."
        )
    opened = _open_atlas(atlas)
    if path is None:
        assert opened is not None
        _check_data_set(opened, images)
        rows = _atlas_rows(opened, split)
        return AtlasOutcomes(rows, None if images is None else open_images(images), observation)
    from flyball.envs.live import open_live_source

    if images is None:
        raise missing_images("Live outcomes")
    if opened is not None:
        _check_data_set(opened, images)
    return open_live_source(
        path,
        atlas=None if opened is None else _atlas_rows(opened, split),
        images=images,
        labels=labels,
        observation=observation,
        split=split,
    )


def context_box(size: int) -> Box:
    """Any finite float32: features have no bounds of their own."""
    limits = np.finfo(np.float32)
    return Box(limits.min, limits.max, (size,), np.float32)


def image_box(shape: tuple[int, ...]) -> Box:
    """Images (C, H, W), or clips (C, T, H, W), in [0, 1]."""
    return Box(0.0, 1.0, shape, np.float32)


def no_rows(split: str | None, sizes: dict[str, int]) -> DataError:
    """The error for a split that nothing can be drawn from."""
    held = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return DataError(
        f"An environment draws from the rows of a split; {split or 'the whole set'!r} has none "
        f"({held}). Name another split (default {CONTROLLER_TRAIN!r}), or None for every row."
    )


def _open_atlas(atlas: OutcomeAtlas | str | Path | None) -> OutcomeAtlas | None:
    return OutcomeAtlas.open(atlas) if isinstance(atlas, str | Path) else atlas


def _atlas_rows(atlas: OutcomeAtlas, split: str | None) -> OutcomeAtlas:
    rows = atlas if split is None else atlas.take(split)
    if len(rows) == 0:
        raise no_rows(split, atlas.split_sizes())
    return rows


def _check_data_set(atlas: OutcomeAtlas, images: Images | None) -> None:
    wanted = atlas.header.data_fingerprint
    if is_image_set(images) and wanted not in ("", images.fingerprint):
        raise ForeignArtifact(
            f"The atlas holds outcomes on image set {wanted}; that given is {images.fingerprint}. "
            "Give the images that it was built from, or build their own with `flyball outcomes`."
        )
