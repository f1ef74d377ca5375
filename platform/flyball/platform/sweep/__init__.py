"""Sweeps: many points of one job through Ray Tune, and the front a user can choose from."""

__all__: list[str] = []
