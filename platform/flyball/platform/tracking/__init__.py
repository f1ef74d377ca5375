"""MLflow, through one door: runs, figures, files and the registry of governors."""

from flyball.platform.tracking.quiet import set_defaults

set_defaults()

from flyball.platform.tracking.runs import (  # noqa: E402
    JOB_TAG,
    RunHandle,
    Tracking,
    open_tracking,
)

__all__ = ["JOB_TAG", "RunHandle", "Tracking", "open_tracking"]
