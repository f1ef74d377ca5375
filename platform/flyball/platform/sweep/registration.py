"""The front in the registry: its points are exported, and each gets a version."""

from pathlib import Path

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.platform.prepare import Prepared
from flyball.platform.sweep.export import export_point
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.front import Front
from flyball.platform.tracking import (
    FrontEntry,
    RegisteredFront,
    Tracking,
    figures_of,
    register_front,
)

__all__ = ["register_points"]


def register_points(
    tracking: Tracking,
    ready: Prepared,
    atlas: OutcomeAtlas,
    path_folder: Path,
    folder: SweepFolder,
    front: Front,
) -> RegisteredFront:
    """Exports the points of the front, registers them, and gives them the front's aliases.

    Args:
        tracking: where.
        ready: the sweep's base job.
        atlas: of the sweep.
        path_folder: of the frozen data path.
        folder: of the sweep.
        front: its points name their runs.

    Raises:
        ArtifactError: a point's weights cannot be used.
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    job = ready.job
    entries = [
        FrontEntry(
            key=point.key,
            run_id=point.run_id,
            path_folder=path_folder,
            controller_folder=export_point(ready, atlas, folder, point),
            figures=figures_of(point.accuracy, point.net, point.gain_over_static),
            tags={
                "flyball.preset": job.name,
                "flyball.sweep": folder.root.name,
                "flyball.point": point.key,
                "flyball.settings": point.name,
            },
        )
        for point in front.front
    ]
    aliases = {alias: point.key for alias, point in front.aliases.items()}
    return register_front(tracking, entries, job.model_name, aliases)
