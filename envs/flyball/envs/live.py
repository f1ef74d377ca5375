"""Outcomes asked of a frozen data path at every step; the only part of the layer that runs torch.

N samples, B batch, C channels, T frames, H, W, D context features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import DataError, ForeignArtifact, InvalidSetting
from flyball.datapaths.frozen import Answer
from flyball.datapaths.outcomes import truth_of
from flyball.datapaths.paths import DataPath, device_of, open_path
from flyball.datapaths.splits import SPLITS
from flyball.envs.observations import (
    Images,
    ObservationKind,
    as_unit_range,
    check_samples,
    image_rows,
    is_image_set,
    open_images,
)
from flyball.envs.sources import Outcomes, OutcomeSource, context_box, image_box, no_rows

__all__ = ["LiveOutcomes", "open_live_source"]

Truth = Callable[[NDArray[np.int64], torch.device], Any]


class LiveOutcomes:
    """A frozen data path that answers when it is asked.

    A context is the lowest arm's pass, so choosing that arm after it asks nothing again.
    """

    def __init__(
        self,
        path: DataPath,
        images: NDArray[Any],
        sample: NDArray[np.int64],
        truth: Truth,
        kind: ObservationKind,
    ) -> None:
        """Takes images (M, C, H, W) or clips (M, C, T, H, W), the rows of them to draw from (N,),
        and what gives the truth about some of these, positions (B,) in [0, N), on a device."""
        self.arms = path.arms
        self.sample = sample
        self.full_macs = path.full_macs
        sees_context = kind == "context"
        self.space = context_box(path.context_size) if sees_context else image_box(path.input_shape)
        self._path = path
        self._images = images
        self._truth = truth
        self._sees_context = sees_context
        self._seen: tuple[NDArray[np.int64], Answer] | None = None

    def observe(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        images = self._pixels(rows)
        if not self._sees_context:
            return images
        context, lowest = self._path.context(self._tensor(images))
        self._seen = (rows.copy(), lowest)
        return context.cpu().numpy().astype(np.float32)

    def outcomes(self, rows: NDArray[np.int64], actions: NDArray[np.int64]) -> Outcomes:
        lowest = self._lowest_answers(rows)
        is_asked = np.ones(len(rows), bool) if lowest is None else actions > 0
        device = device_of(self._path)
        context = np.full(len(rows), self._path.context_macs, np.int64)
        macs, output = context.copy(), None
        if lowest is not None:
            output, context = lowest.output, lowest.macs.cpu().numpy().astype(np.int64)
            macs = context.copy()
        if is_asked.any():
            images = self._tensor(self._pixels(rows[is_asked]))
            u = torch.tensor(np.asarray(self.arms)[actions[is_asked]], device=device)
            answer = self._path(images, u)
            if output is None:
                output = answer.output
            else:
                output = output.clone()
                output[torch.from_numpy(is_asked).to(device)] = answer.output
            macs[is_asked] = answer.macs.cpu().numpy()
        assert output is not None, "without a context every row is asked"
        judged = self._path.judge(output, self._truth(rows, device))
        correct, confidence = judged.correct.cpu().numpy(), judged.confidence.cpu().numpy()
        return Outcomes(correct, confidence, macs, context)

    def _lowest_answers(self, rows: NDArray[np.int64]) -> Answer | None:
        """What the context pass of these rows gave; None where no context is seen."""
        if not self._sees_context:
            return None
        if self._seen is None or not np.array_equal(self._seen[0], rows):
            self.observe(rows)
        assert self._seen is not None
        return self._seen[1]

    def _pixels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return as_unit_range(image_rows(self._images, self.sample[rows]))

    def _tensor(self, images: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(images).to(device_of(self._path))


def open_live_source(
    path: DataPath | str | Path,
    *,
    atlas: OutcomeAtlas | None,
    images: Images,
    labels: Sequence[int] | NDArray[Any] | None,
    observation: ObservationKind,
    split: str | None,
) -> OutcomeSource:
    """Live outcomes on the rows of an atlas, of an image set's split, or of plain arrays.

    Args:
        path: frozen data path, or its folder.
        atlas: already cut to its split; gives rows and labels. None: the images give them.
        images: the image set, its array (M, C, H, W) or (M, C, T, H, W), or the .npy file that
            holds it.
        labels: class index of every image, (M,); None: those of the image set or the atlas.
        observation: "context" or "image".
        split: of the image set; None for every row.

    Raises:
        InvalidSetting: labels are missing, a split is asked of images that have none, or the
            atlas counts its cost in another way than the path.
        DataError: images or labels do not fit, or the split has no rows.
        ForeignArtifact: the atlas belongs to another data path.
    """
    if isinstance(path, str | Path):
        path = open_path(path)
    if atlas is not None:
        _check_atlas(atlas, path)
    pixels = open_images(images)
    if tuple(pixels.shape[1:]) != path.input_shape:
        raise DataError(
            f"The data path takes images of shape {path.input_shape} (channels, then frames of a "
            f"clip, height, width); these have {pixels.shape[1:]}. Resize with "
            f"--set data.image_size={path.input_shape[-1]}, or train a data path for this size."
        )
    sample = np.array(atlas.sample, np.int64) if atlas is not None else _image_rows(images, split)
    check_samples(pixels, sample)
    truth = _truth(labels, images, atlas, sample, len(pixels))
    return LiveOutcomes(path, pixels, sample, truth, observation)


def _check_atlas(atlas: OutcomeAtlas, path: DataPath) -> None:
    theirs = atlas.header.path_fingerprint
    if theirs != path.fingerprint:
        raise ForeignArtifact(
            f"The atlas holds the outcomes of data path {theirs or 'unknown'}, the data path "
            f"given is {path.fingerprint}. Give the path that the atlas was built from, or build "
            "this path's own with `flyball outcomes`."
        )
    if atlas.header.cost_model != "executed":
        raise InvalidSetting(
            "A live data path counts the MACs it executes; this atlas counts them "
            f"{atlas.header.cost_model!r}. Build it with --set outcomes.cost_model=executed, or "
            "leave the path out and take the atlas's outcomes."
        )


def _image_rows(images: Images, split: str | None) -> NDArray[np.int64]:
    if is_image_set(images):
        rows = np.arange(len(images), dtype=np.int64) if split is None else images.rows(split)
        sizes = {name: len(images.rows(name)) for name in SPLITS}
    elif split is None:
        rows, sizes = np.arange(len(open_images(images)), dtype=np.int64), {}
    else:
        raise InvalidSetting(
            f"Plain images carry no splits, and split {split!r} came with them. Give the "
            "image set or an atlas, or split=None to draw from every image."
        )
    if len(rows) == 0:
        raise no_rows(split, sizes)
    return rows


def _truth(
    labels: Sequence[int] | NDArray[Any] | None,
    images: Images,
    atlas: OutcomeAtlas | None,
    sample: NDArray[np.int64],
    count: int,
) -> Truth:
    if labels is None and is_image_set(images):
        # Narrowed for the closure, which a type checker sees apart.
        known = images
        return lambda rows, device: truth_of(known, sample[rows], device)
    if labels is None and atlas is not None:
        own = np.array(atlas.label, np.int64)
    elif labels is None:
        raise InvalidSetting(
            "A live environment judges answers by the labels, and none came. Give labels=: a "
            "class index for every image, an image set that has them, or an atlas."
        )
    else:
        given = np.asarray(labels)
        if given.shape != (count,) or given.dtype.kind not in "iu":
            raise DataError(
                f"Every image has one label, a class index: {count} integers; {given.dtype} of "
                f"shape {given.shape} came. Give a label for each image, in their order."
            )
        own = given[sample].astype(np.int64)
    return lambda rows, device: torch.from_numpy(own[rows]).to(device)
