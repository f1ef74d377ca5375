"""The ids under which Gymnasium finds Flyball's environments; it names them, and imports none.

`import flyball.envs` registers them. Without an import, name the module before the id, which
Gymnasium then imports by itself, in a new process too:

    gymnasium.make("flyball.envs:flyball/ThrottleBandit-v0", atlas="runs/.../outcomes")
"""

import gymnasium

__all__ = ["ENVIRONMENT_IDS", "register"]

# id: (single environment, vector environment)
_ENTRY_POINTS = {
    "flyball/ThrottleBandit-v0": (
        "flyball.envs.bandit:ThrottleBandit",
        "flyball.envs.vector:ThrottleBanditVector",
    ),
}

ENVIRONMENT_IDS = tuple(_ENTRY_POINTS)


def register() -> None:
    """Registers every id that is not registered yet; calling it again changes nothing."""
    for name, (entry_point, vector_entry_point) in _ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry_point, vector_entry_point=vector_entry_point)
