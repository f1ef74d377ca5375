"""Controllers: what chooses a utilization for an input, how it learns, and what it saves.

The rest is imported by module path: `learn`, `rllib`, `baselines` and `evaluate` need the
environments; what a server needs is here and imports neither those nor gymnasium nor Ray.
"""

from flyball.controllers.budget import Calibration, calibrate, price_for_budget, priced_choice
from flyball.controllers.export import load_controller, save_controller
from flyball.controllers.protocol import (
    Controller,
    NetworkController,
    ObservationKind,
    check_arms,
    check_path,
)

__all__ = [
    "Calibration",
    "Controller",
    "NetworkController",
    "ObservationKind",
    "calibrate",
    "check_arms",
    "check_path",
    "load_controller",
    "price_for_budget",
    "priced_choice",
    "save_controller",
]
