"""How many sample passes went through data paths in this process, whichever they were.

A path counts its own; this count is for who must show that none ran at all.
"""

__all__ = ["counted", "forwards_here"]

_forwards = 0


def counted(samples: int) -> int:
    """Takes passes into the count, and gives their number back."""
    global _forwards  # of the process, like what it counts
    _forwards += samples
    return samples


def forwards_here() -> int:
    """Sample passes since the process began."""
    return _forwards
