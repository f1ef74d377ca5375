"""What runs on a node that builds a share of an outcome atlas; no Ray in here.

A worker sees the run folder under the same path as the job does. Pixels do not travel: they are
mapped from a file, decoded where they lie, or loaded again.
"""

import contextlib
import os
import secrets
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyball.datapaths.atlas_plan import AtlasPlan
from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import BadInput, DataError, StorageError
from flyball.datapaths.files import write_atomically
from flyball.datapaths.outcomes import OutcomesConfig, build_shard
from flyball.datapaths.paths import open_path
from flyball.platform.nodes import check_code

__all__ = ["AtlasTask", "AtlasWorker", "travelling"]

_SMALL_BYTES = 2**20  # pixels that travel with their labels


@dataclass(frozen=True, eq=False)
class AtlasTask:
    """All that a worker is told; paths and small values.

    Attributes:
        path_folder, path_fingerprint, arms: of the data path.
        images: as `travelling` gave them.
        data: what they are loaded from on a node that does not see their file.
        plan: of the atlas.
        config: likewise.
        device: torch device.
        threads: of torch.
        folder: where the job was started.
        code: see `nodes.check_code`.
    """

    path_folder: Path
    path_fingerprint: str
    arms: tuple[float, ...]
    images: ImageSet
    data: DataConfig
    plan: AtlasPlan
    config: OutcomesConfig
    device: str
    threads: int
    folder: str
    code: str = ""


@dataclass(frozen=True)
class _Elsewhere:
    """Stands for pixels that a worker maps from a file."""

    file: Path
    shape: tuple[int, ...]


class AtlasWorker:
    """Asks one data path about shards; Ray makes an actor of it."""

    def load(self, task: AtlasTask) -> str:
        """Opens data path and images; gives the node's name."""
        check_code(task.code)
        torch.set_num_threads(task.threads)
        # Relative names of a data set are relative to where the job was started.
        with contextlib.suppress(OSError):
            os.chdir(task.folder)
        node = socket.gethostname()
        if not task.plan.is_claimed() or not task.path_folder.is_dir():
            raise StorageError(
                f"Every worker sees the run folder; on {node} there is no {task.plan.folder}, or "
                f"no {task.path_folder}, or another one. Name a folder that all nodes share with "
                "--set storage.root=SHARED_FOLDER."
            )
        path = open_path(task.path_folder)
        if path.fingerprint != task.path_fingerprint:
            raise StorageError(
                f"On {node}, {task.path_folder} holds the data path {path.fingerprint}, not "
                f"{task.path_fingerprint}. Name a folder that all nodes share with "
                "--set storage.root=SHARED_FOLDER."
            )
        path = path if path.arms == task.arms else path.with_arms(task.arms)
        path.to(task.device)
        self._path, self._images, self._task = path, _opened(task.images, task.data, node), task
        return node

    def build(self, number: int) -> int:
        """Asks about one shard and writes it; gives the sample passes that took."""
        before, task = self._path.forwards, self._task
        build_shard(
            self._path,
            self._images,
            task.plan,
            number,
            cost_model=task.config.cost_model,
            writer=secrets.token_hex(8),
        )
        return self._path.forwards - before


def travelling(images: ImageSet, file: Path) -> ImageSet:
    """The images as they travel: streamed ones know their files, others are mapped from one."""
    pixels: Any = images.images
    if images.is_streamed or (images.images_file is None and pixels.nbytes <= _SMALL_BYTES):
        return images
    if images.images_file is not None:
        file = images.images_file.resolve()
    elif not file.exists():
        with write_atomically(file) as partial, partial.open("wb") as opened:
            np.save(opened, pixels, allow_pickle=False)
    elsewhere: Any = _Elsewhere(file, tuple(pixels.shape))
    return replace(images, images=elsewhere)


def _opened(images: ImageSet, data: DataConfig, node: str) -> ImageSet:
    """The images as a worker asks about them; decoded once more on a node without the file."""
    pixels: Any = images.images
    if not isinstance(pixels, _Elsewhere):
        return images
    with contextlib.suppress(OSError, ValueError):
        mapped = np.load(pixels.file, mmap_mode="r", allow_pickle=False)
        if mapped.shape == pixels.shape:
            return replace(images, images=mapped)
    advice = (
        f"Node {node} sees neither {pixels.file} nor the data set itself. Name folders that all "
        "nodes share with --set data.root=FOLDER or --set data.cache=FOLDER."
    )
    try:
        found = load_images(data)
    except BadInput as error:
        raise DataError(f"{advice} ({error})") from error
    if found.fingerprint != images.fingerprint:
        raise DataError(
            f"{advice} What it has is another set, {found.fingerprint} for {images.fingerprint}."
        )
    return found
