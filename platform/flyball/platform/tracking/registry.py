"""The registry of governors: a version for every data path with its controller, found by alias.

A version is logged as models-from-code: weights in safetensors and .pt2, code as source files.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from flyball.controllers.export import HEADER_FILE
from flyball.datapaths.errors import CorruptArtifact, unknown_name
from flyball.datapaths.files import fingerprint_of
from flyball.platform.governor import CONTROLLER_FOLDER, Governor, sees_poses
from flyball.platform.tracking import model_code
from flyball.platform.tracking.address import told_plainly
from flyball.platform.tracking.aliases import checked_alias, moving_aliases
from flyball.platform.tracking.quiet import borrowed_environment
from flyball.platform.tracking.runs import RunHandle, Tracking
from flyball.platform.tracking.shipped import (
    requirements,
    ship_code,
    ship_weights,
    signature_of,
)
from flyball.platform.tracking.versions import (
    FIGURE_TAG,
    GOVERNOR_TAG,
    aliases_of,
    checked_name,
)

__all__ = [
    "RegisteredVersion",
    "checked_name",
    "load_governor",
    "register_governor",
    "register_version",
]

WEIGHTS = "weights"


@dataclass(frozen=True)
class RegisteredVersion:
    """A governor in the registry.

    Attributes:
        name: of the registered model.
        version: counts from 1.
        alias: what this registration called it; "" if it gave it no alias.
        fingerprint: of data path and controller together.
        is_new: False where this very governor had been registered before.
        uri: what MLflow calls it, by alias where it got one.
        link: where to see it.
    """

    name: str
    version: int
    alias: str
    fingerprint: str
    is_new: bool
    uri: str
    link: str


def register_governor(
    tracking: Tracking,
    run: RunHandle,
    path_folder: Path | str,
    controller_folder: Path | str,
    *,
    name: str,
    alias: str,
    tags: Mapping[str, str] | None = None,
    figures: Mapping[str, float] | None = None,
) -> RegisteredVersion:
    """Puts a governor into the registry under an alias; one that is there is not doubled.

    The alias moves here from whichever version had it, on the caller's verdict alone: `promotion`
    judges. A version is champion or challenger, not both: the later judgement counts.

    Args:
        tracking, run, path_folder, controller_folder, name, tags, figures: see `register_version`.
        alias: "champion" if it beats the static mixture, else "challenger"; or another one of
            `aliases.ALIASES`, or budget-NN.

    Raises:
        ArtifactError: a folder does not hold what it should, or the two do not belong together.
        InvalidSetting: there is no such alias.
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    checked_alias(alias)
    version = register_version(
        tracking, run, path_folder, controller_folder, name=name, tags=tags, figures=figures
    )
    with moving_aliases(tracking, name) as mover:
        mover.move(alias, version.version, "registered")
    return replace(version, alias=alias, uri=f"models:/{name}@{alias}")


def register_version(
    tracking: Tracking,
    run: RunHandle,
    path_folder: Path | str,
    controller_folder: Path | str,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    figures: Mapping[str, float] | None = None,
) -> RegisteredVersion:
    """Puts a governor into the registry without an alias; one that is there is not doubled.

    Args:
        tracking: where.
        run: the run that made the controller.
        path_folder: what a data path's `save` wrote.
        controller_folder: what `save_controller` wrote.
        name: of the registered model.
        tags: of the version; short texts.
        figures: what it achieves; tags `figure.NAME` of the version, lines of its description.

    Raises:
        ArtifactError: a folder does not hold what it should, or the two do not belong together.
        InvalidSetting: no model can have that name.
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    checked_name(name)
    with tempfile.TemporaryDirectory(prefix="flyball-") as temporary:
        folder = Path(temporary)
        weights = ship_weights(Path(path_folder), Path(controller_folder), folder / WEIGHTS)
        governor = Governor.load(weights)
        fingerprint = _fingerprint(governor, weights)
        with told_plainly(tracking.address, f"Registering {name!r}"):
            known = _registered(tracking, name, fingerprint)
            version = known or _create_version(tracking, run, governor, folder, name)
            shown = {f"{FIGURE_TAG}{n}": f"{v:.6g}" for n, v in (figures or {}).items()}
            texts = {**(tags or {}), **shown, GOVERNOR_TAG: fingerprint}
            _describe(tracking, version, governor, texts, figures or {})
    number = int(version.version)
    return RegisteredVersion(
        name=name,
        version=number,
        alias="",
        fingerprint=fingerprint,
        is_new=known is None,
        uri=f"models:/{name}/{number}",
        link=tracking.link(f"models/{name}/versions/{number}"),
    )


def load_governor(tracking: Tracking, name: str, alias: str = "champion") -> Governor:
    """Loads a governor from the registry with the code at hand, not with the code it carries.

    Raises:
        UnknownName: there is no such model, or nothing has that alias.
        CorruptArtifact: its files are gone, or damaged.
        StorageError, TrackingUnreachable: the registry does not answer.
    """
    with told_plainly(tracking.address, f"Looking for {name!r}"):
        version = _by_alias(tracking, name, alias)
        with tempfile.TemporaryDirectory(prefix="flyball-") as folder:
            return Governor.load(_download(tracking, version, Path(folder)))


def _fingerprint(governor: Governor, weights: Path) -> str:
    header = (weights / CONTROLLER_FOLDER / HEADER_FILE).read_bytes()
    return fingerprint_of(governor.path.fingerprint, hashlib.sha256(header).hexdigest())


def _registered(tracking: Tracking, name: str, fingerprint: str) -> ModelVersion | None:
    """The newest version with this fingerprint whose files are still there."""
    same = tracking.client.search_model_versions(
        f"name = '{name}' and tags.`{GOVERNOR_TAG}` = '{fingerprint}'"
    )
    for version in sorted(same, key=lambda v: int(v.version), reverse=True):
        uri = tracking.client.get_model_version_download_uri(name, version.version)
        try:
            listed = mlflow.artifacts.list_artifacts(uri, tracking_uri=tracking.uri)
        except (MlflowException, OSError):
            continue
        if listed:
            return version
    return None


def _create_version(
    tracking: Tracking, run: RunHandle, governor: Governor, folder: Path, name: str
) -> ModelVersion:
    client = tracking.client
    logged = client.create_logged_model(
        tracking.experiment_id, name=name, source_run_id=run.run_id, model_type="governor"
    )
    try:
        _save_model(
            governor,
            folder,
            Model(
                artifact_path=logged.artifact_location,
                run_id=run.run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
        )
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Governors trained by Flyball.")
    # Not by "models:/ID": MLflow would look that up in its global tracking address.
    return client.create_model_version(
        name, logged.artifact_location, run_id=run.run_id, model_id=logged.model_id
    )


def _save_model(governor: Governor, folder: Path, model: Model) -> None:
    example = np.zeros((1, *governor.path.input_shape), np.float32)
    with warnings.catch_warnings(), borrowed_environment(MLFLOW_UV_AUTO_DETECT="false"):
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=model_code.__file__,
            artifacts={model_code.GOVERNOR_ARTIFACT: str(folder / WEIGHTS)},
            code_paths=[str(ship_code(folder / "code"))],
            signature=signature_of(governor.path),
            input_example=example,
            pip_requirements=requirements(governor.path),
            mlflow_model=model,
        )


def _describe(
    tracking: Tracking,
    version: ModelVersion,
    governor: Governor,
    tags: Mapping[str, str],
    figures: Mapping[str, float],
) -> None:
    client, name, number = tracking.client, version.name, version.version
    path = governor.path
    finds = f"{len(path.classes)} classes"
    if sees_poses(path):
        finds = f"{path.spec.network.classes} key points"
    lines = [
        f"{finds}, {len(path.arms)} arms, images of shape "
        f"{path.input_shape}; {path.full_macs:,} multiply-accumulates at full "
        f"utilization, {governor.controller.macs:,} for the controller.",
        "",
        *(f"- {figure}: {value:.4g}" for figure, value in figures.items()),
    ]
    client.update_model_version(name, number, description="\n".join(lines))
    for tag, text in tags.items():
        client.set_model_version_tag(name, number, tag, str(text))


def _by_alias(tracking: Tracking, name: str, alias: str) -> ModelVersion:
    aliases = aliases_of(tracking, name)
    if aliases is None:
        known = [model.name for model in tracking.client.search_registered_models()]
        raise unknown_name("registered model", name, known, advice="Train one first.")
    if alias not in aliases:
        raise unknown_name(f"alias of {name!r}", alias, aliases)
    return tracking.client.get_model_version(name, aliases[alias])


def _download(tracking: Tracking, version: ModelVersion, folder: Path) -> Path:
    uri = tracking.client.get_model_version_download_uri(version.name, version.version)
    try:
        there = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{uri}/artifacts/{WEIGHTS}",
            dst_path=str(folder),
            tracking_uri=tracking.uri,
        )
    except (MlflowException, OSError) as error:
        raise CorruptArtifact(
            f"Version {version.version} of {version.name!r} has no weights at {uri}: they were "
            "moved or deleted, or Flyball did not register it. Train and register it again."
        ) from error
    return Path(there)
