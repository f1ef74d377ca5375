"""Which points of a sweep learn together in one trial."""

from collections.abc import Sequence
from dataclasses import asdict

from flyball.controllers.population import shared_settings
from flyball.datapaths.files import fingerprint_of
from flyball.platform.job import Job
from flyball.platform.sweep.points import Point

__all__ = ["group_points"]


def group_points(
    points: Sequence[Point], base: Job, population: int
) -> tuple[tuple[Point, ...], ...]:
    """Batches of at most `population` points, in order; alone what cannot learn with others.

    Context heads of one shape learn together if they see the same arms and share what
    `learn_population` says they must.
    """
    batches: dict[str, list[list[Point]]] = {}
    for point in points:
        job = point.job(base)
        is_batched = (
            population > 1
            and job.controller.kind == "context_head"
            and job.learn.estimator in ("all_arm", "ratio")
            and job.learn.algorithm in ("plain", "rllib_atlas")
        )
        alike = (asdict(job.controller), job.arms, shared_settings(job.learn))
        name = fingerprint_of(*alike) if is_batched else point.key
        mine = batches.setdefault(name, [[]])
        if len(mine[-1]) >= population:
            mine.append([])
        mine[-1].append(point)
    return tuple(tuple(batch) for parts in batches.values() for batch in parts if batch)
