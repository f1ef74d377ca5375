"""The text of `flyball bench scaling`: what was measured, what is assumed, what the model says."""

from collections.abc import Sequence

from flyball.platform.scaling import AtlasEstimate, SweepEstimate
from flyball.platform.scaling_cases import ASSUMPTIONS
from flyball.platform.scaling_measure import Measured

__all__ = ["scaling_table"]


def scaling_table(
    measured: Measured,
    atlases: Sequence[tuple[int, AtlasEstimate]],
    sweeps: Sequence[SweepEstimate],
) -> str:
    """Aligned lines.

    Args:
        measured: rates of this machine.
        atlases: samples of a shard, and the build's estimate.
        sweeps: estimates of the sweep.
    """
    lines = [f"Measured here ({measured.cpus} CPUs; load {measured.load:.1f} at the start)"]
    for name, value, unit in (
        ("a shard of the small atlas, in this process", measured.shard_s, "s"),
        ("a worker of the atlas, until it can take a shard", measured.start_s, "s"),
        ("tasks of nothing, sent at once", measured.tasks_per_s, "/s"),
        ("calls of two actors, as shards are dealt", measured.calls_per_s, "/s"),
        ("a shard's order and answer, pickled", measured.message_bytes, "bytes"),
        ("photographs decoded to 224 x 224 by one core", measured.decodes_per_s, "/s"),
        ("atlas assembled, hashed, saved", measured.assembly_bytes_per_s / 1e6, "MB/s"),
        ("points into MLflow on sqlite, each of 40 looks", measured.recorded_per_s, "/s"),
        ("Tune, until it starts", measured.tune_start_s, "s"),
        ("trials of nothing through Tune", measured.trials_per_s, "/s"),
        ("a point: 2,000 updates of 512, one thread", measured.point_s, "s"),
    ):
        lines.append(f"  {name:<50}{value:>12,.3g} {unit}")
    lines += ["", f"{'Model against measurement':<42}{'modelled':>10}{'measured':>10}{'ratio':>7}"]
    for check in measured.checks:
        ratio = check.measured / check.modelled
        lines.append(
            f"  {check.what:<40}{check.modelled:>8.2f} s{check.measured:>8.2f} s{ratio:>7.2f}"
        )
    lines += ["", "Not measured here"]
    for item in ASSUMPTIONS:
        lines.append(f"  {item.name:<42}{item.value:>14,.6g} {item.unit:<9} {item.source}")
    lines += ["", "ImageNet atlas, ten arms, ResNet-50 (modelled)", _atlas_head()]
    lines += [_atlas_line(size, one) for size, one in atlases]
    lines += ["", "Sweep of 1,000 points (modelled)", _sweep_head()]
    lines += [_sweep_line(one) for one in sweeps]
    return "\n".join(lines)


def _atlas_head() -> str:
    return (
        f"{'GPUs':>6}{'shard':>6}{'minutes':>9}{'computing':>11}  {'limit':<13}{'read/node':>11}"
        f"{'read':>8}{'written':>9}{'messages':>10}{'store/node':>12}{'driver RAM':>12}"
    )


def _atlas_line(size: int, one: AtlasEstimate) -> str:
    return (
        f"{one.workers:>6}{size:>6}{one.seconds / 60:>9.2f}{one.share_computing:>11.0%}  "
        f"{one.limit:<13}{one.read_bytes_per_node / 1e9:>8.1f} GB{one.read_bytes / 1e9:>5.0f} GB"
        f"{one.written_bytes / 1e9:>6.0f} GB{one.message_bytes / 1e3:>7.0f} kB"
        f"{one.object_store_bytes / 1e6:>9.0f} MB{one.memory_bytes / 1e9:>9.0f} GB"
    )


def _sweep_head() -> str:
    return (
        f"{'places':>6}{'minutes':>9}  {'limit':<15}{'training':>10}{'Tune':>9}{'database':>10}"
        f"{'points ending':>15}{'figures':>10}{'read':>9}{'messages':>10}"
    )


def _sweep_line(one: SweepEstimate) -> str:
    parts = one.parts
    return (
        f"{one.places:>6}{one.seconds / 60:>9.2f}  {one.limit:<15}{parts['training']:>8.0f} s"
        f"{parts['driver']:>7.0f} s{parts['database']:>8.0f} s"
        f"{one.ending_per_s:>13,.2f}/s{one.database_rows:>10,.0f}{one.read_bytes / 1e9:>6.0f} GB"
        f"{one.message_bytes / 1e6:>7.0f} MB"
    )
