"""MLflow, through one door: runs, figures, files and the registry of governors."""

from flyball.platform.tracking.quiet import set_defaults

set_defaults()

from flyball.platform.tracking.registry import (  # noqa: E402
    GOVERNOR_TAG,
    RegisteredVersion,
    load_governor,
    register_governor,
)
from flyball.platform.tracking.runs import (  # noqa: E402
    JOB_TAG,
    RunHandle,
    Tracking,
    open_tracking,
)

__all__ = [
    "GOVERNOR_TAG",
    "JOB_TAG",
    "RegisteredVersion",
    "RunHandle",
    "Tracking",
    "load_governor",
    "open_tracking",
    "register_governor",
]
