"""What RLlib's `env_config` describes, as arrays; no Ray in here.

Axis letters: N samples, K arms.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flyball.controllers.learned import BanditTable
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import CONTROLLER_TRAIN, split_code
from flyball.envs.observations import ObservationKind, observations
from flyball.envs.reward import reward_from, reward_table

__all__ = ["check_plain", "count_rows", "describe_table", "has_table", "open_table"]

PLAIN = (str, int, float, bool, Path, type(None))


def open_table(env_config: Mapping[str, Any]) -> BanditTable:
    """The contexts and rewards that an environment with this configuration would draw from.

    Args:
        env_config: keyword arguments of `ThrottleBandit`, with the folder of an atlas.

    Raises:
        InvalidSetting: there is no atlas, or it is to be played live.
        BadInput: a file cannot be used.
        NotFinite: a reward is NaN or infinite; names the row and arm.
    """
    atlas = _open_atlas(env_config)
    if _split(env_config) is not None:
        atlas = atlas.take(str(_split(env_config)))
    kind = env_config.get("observation", "context")
    return BanditTable(
        observations=observations(atlas, env_config.get("images"), kind),
        rewards=reward_table(
            atlas,
            reward_from(env_config.get("reward")),
            controller_macs=int(env_config.get("controller_macs", 0)),
            uses_context=kind == "context",
        ),
    )


def count_rows(env_config: Mapping[str, Any]) -> int:
    """N of `open_table`, without reading the table."""
    atlas = _open_atlas(env_config)
    split = _split(env_config)
    return len(atlas) if split is None else int(np.sum(atlas.split == split_code(split)))


def describe_table(
    atlas_folder: Path | str, images_file: Path | str | None, observation: ObservationKind
) -> tuple[int, tuple[int, ...], str]:
    """Arms, the shape of one observation, and the atlas's fingerprint, without reading the table.

    Raises:
        BadInput: the atlas or the images cannot be used, or do not give such observations.
    """
    atlas = OutcomeAtlas.open(atlas_folder)
    few = atlas.rows(np.arange(min(1, len(atlas))))
    shape = observations(few, images_file, observation).shape[1:]
    return len(atlas.arms), shape, atlas.header.fingerprint


def has_table(env_config: Mapping[str, Any]) -> bool:
    """Whether every outcome of the environment is in an atlas."""
    return env_config.get("atlas") is not None and env_config.get("path") is None


def check_plain(env_config: Mapping[str, Any]) -> None:
    """Refuses anything in an `env_config` that must not cross processes.

    Ray pickles it into every checkpoint and worker; an object reference in it even aborts the
    interpreter when a run is restored. A reward may be a function: it is pickled by its name.

    Raises:
        InvalidSetting: a value is neither plain nor a path.
    """
    for name, value in env_config.items():
        if not (_is_plain(value) or (name == "reward" and callable(value))):
            raise InvalidSetting(
                "An env_config crosses processes, so it holds paths and plain values only; "
                f"{name!r} is a {type(value).__name__}. Save it and give its folder or file."
            )


def _open_atlas(env_config: Mapping[str, Any]) -> OutcomeAtlas:
    if not has_table(env_config):
        raise InvalidSetting(
            "Learning from an atlas needs env_config={'atlas': folder} and no 'path'; got the "
            f'keys {sorted(env_config)}. Build the atlas, or set sampler="runner" to play live.'
        )
    return OutcomeAtlas.open(env_config["atlas"])


def _split(env_config: Mapping[str, Any]) -> str | None:
    split: str | None = env_config.get("split", CONTROLLER_TRAIN)
    return split


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    return isinstance(value, PLAIN)
