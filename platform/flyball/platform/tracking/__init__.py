"""MLflow, through one door: runs, figures, files and the registry of governors."""

from flyball.platform.tracking.quiet import set_defaults

set_defaults()

from flyball.platform.tracking.aliases import AliasMove, alias_history  # noqa: E402
from flyball.platform.tracking.promotion import (  # noqa: E402
    FrontEntry,
    Promotion,
    RegisteredFront,
    figures_of,
    promote,
    register_front,
    roll_back,
)
from flyball.platform.tracking.registry import (  # noqa: E402
    RegisteredVersion,
    checked_name,
    load_governor,
    register_governor,
)
from flyball.platform.tracking.runs import (  # noqa: E402
    JOB_TAG,
    RunHandle,
    Tracking,
    check_tracking,
    open_tracking,
)
from flyball.platform.tracking.versions import (  # noqa: E402
    GOVERNOR_TAG,
    KnownVersion,
    list_versions,
)

__all__ = [
    "GOVERNOR_TAG",
    "JOB_TAG",
    "AliasMove",
    "FrontEntry",
    "KnownVersion",
    "Promotion",
    "RegisteredFront",
    "RegisteredVersion",
    "RunHandle",
    "Tracking",
    "alias_history",
    "check_tracking",
    "checked_name",
    "figures_of",
    "list_versions",
    "load_governor",
    "open_tracking",
    "promote",
    "register_front",
    "register_governor",
    "roll_back",
]
