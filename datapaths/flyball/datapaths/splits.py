"""The four splits of every data set and their codes; how rows are dealt to them is in `data`.

A data path is nearly always right on its own training samples, so a controller that learned there
would learn nothing true: Phase 1 sees `path_train` alone, the controller `controller_train`;
choices are made on `controller_val`; nothing is ever chosen on `test`.
"""

from flyball.datapaths.errors import unknown_name

__all__ = ["CONTROLLER_TRAIN", "CONTROLLER_VAL", "PATH_TRAIN", "SPLITS", "TEST", "split_code"]

PATH_TRAIN = "path_train"
CONTROLLER_TRAIN = "controller_train"
CONTROLLER_VAL = "controller_val"
TEST = "test"

SPLITS: tuple[str, ...] = (PATH_TRAIN, CONTROLLER_TRAIN, CONTROLLER_VAL, TEST)


def split_code(name: str) -> int:
    """The int8 code under which a split's rows are stored.

    Raises:
        UnknownName: there is no such split.
    """
    if name not in SPLITS:
        raise unknown_name("split", name, SPLITS)
    return SPLITS.index(name)
