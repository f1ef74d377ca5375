"""What a larger cluster would do for an atlas and for a sweep: a model of pure functions.

An atlas: workers start, then take shards; computing, decoding, the nodes' network, the shared
storage and the driver that deals shards out work at the same time, so the slowest of them sets the
pace; then the driver puts the shards together. A sweep: places start, then train points; training,
Tune's own work in the driver and the database of MLflow work at the same time. What the rates are
is measured by `scaling_measure` or assumed by `scaling_cases`; nothing here knows a machine.
"""

import math
from dataclasses import dataclass

__all__ = [
    "AtlasEstimate",
    "AtlasRates",
    "AtlasWork",
    "SweepEstimate",
    "SweepRates",
    "SweepWork",
    "estimate_atlas",
    "estimate_sweep",
]

ROW_BYTES = 1 + 8 + 4  # split, sample, label
ARM_BYTES = 4 + 4 + 4 + 8  # correct, confidence, answer, MACs
MACS_BYTES = 8  # of ARM_BYTES
CONTEXT_BYTES = 4  # of each feature


@dataclass(frozen=True)
class AtlasWork:
    """An atlas to build.

    Attributes:
        samples: N.
        arms: K.
        macs: multiply-accumulates of one sample at all arms together.
        stored_bytes: of one sample where it lies, such as a JPEG file's.
        context_features: D.
        shard_size: samples in a shard.
        task_bytes: of one sample in what every node is told: its name, label, split and row.
        message_bytes: of a shard's order and answer together.
    """

    samples: int
    arms: int
    macs: float
    stored_bytes: float
    context_features: int
    shard_size: int
    task_bytes: float = 0.0
    message_bytes: float = 0.0

    @property
    def shards(self) -> int:
        """How many tasks."""
        return math.ceil(self.samples / self.shard_size)

    @property
    def atlas_bytes(self) -> int:
        """Of the tables; the headers are not counted."""
        row = ROW_BYTES + self.arms * ARM_BYTES + self.context_features * CONTEXT_BYTES
        return self.samples * row


@dataclass(frozen=True)
class AtlasRates:
    """How fast the parts of a cluster are; a rate of infinity leaves a part out.

    Attributes:
        macs_per_s: of one worker, sustained.
        start_s: from asking for a worker until it can take a shard.
        decodes_per_s: samples that one node decodes a second.
        workers_per_node: as many as it has GPUs, or CPUs.
        node_bytes_per_s: of a node's network.
        storage_bytes_per_s: of the shared storage, for all nodes together.
        shards_per_s: that the driver deals out and books.
        assembly_bytes_per_s: of the atlas, put together, hashed and saved by the driver.
    """

    macs_per_s: float
    start_s: float = 0.0
    decodes_per_s: float = math.inf
    workers_per_node: int = 1
    node_bytes_per_s: float = math.inf
    storage_bytes_per_s: float = math.inf
    shards_per_s: float = math.inf
    assembly_bytes_per_s: float = math.inf


@dataclass(frozen=True)
class AtlasEstimate:
    """How a build would go.

    Attributes:
        workers, nodes: that take part.
        seconds: in all.
        start_s, assembly_s: of these, before the first and after the last shard.
        parts: seconds that each part needs for all shards; they overlap.
        read_bytes, read_bytes_per_node: from storage.
        written_bytes: shards and the atlas made of them.
        message_bytes: through the driver, in the whole build.
        object_store_bytes: on every node.
        memory_bytes: that the driver holds when it saves the atlas.
    """

    workers: int
    nodes: int
    seconds: float
    start_s: float
    assembly_s: float
    parts: dict[str, float]
    read_bytes: float
    read_bytes_per_node: float
    written_bytes: float
    message_bytes: float
    object_store_bytes: float
    memory_bytes: float

    @property
    def limit(self) -> str:
        """Name of what takes longest: a part, or "start" or "assembly"."""
        every = {**self.parts, "start": self.start_s, "assembly": self.assembly_s}
        return max(every, key=lambda name: every[name])

    @property
    def share_computing(self) -> float:
        """Of the time, in which workers compute; in (0, 1]."""
        return self.parts["compute"] / self.seconds


def estimate_atlas(work: AtlasWork, rates: AtlasRates, workers: int) -> AtlasEstimate:
    """How long workers take for an atlas, and what they move.

    The last worker's last shard decides: with 1.3 shards a worker some take two.
    """
    busy = min(workers, work.shards)
    nodes = math.ceil(busy / rates.workers_per_node)
    read = work.samples * work.stored_bytes
    written = 2.0 * work.atlas_bytes
    a_shard = min(work.shard_size, work.samples) * work.macs / rates.macs_per_s
    parts = {
        "compute": math.ceil(work.shards / busy) * a_shard,
        "decoding": work.samples / (rates.decodes_per_s * nodes),
        "node network": (read + work.atlas_bytes) / nodes / rates.node_bytes_per_s,
        "storage": (read + work.atlas_bytes) / rates.storage_bytes_per_s,
        "driver": work.shards / rates.shards_per_s,
    }
    assembly = work.atlas_bytes / rates.assembly_bytes_per_s
    return AtlasEstimate(
        workers=busy,
        nodes=nodes,
        seconds=rates.start_s + max(parts.values()) + assembly,
        start_s=rates.start_s,
        assembly_s=assembly,
        parts=parts,
        read_bytes=read,
        read_bytes_per_node=read / nodes,
        written_bytes=written,
        message_bytes=work.shards * work.message_bytes,
        object_store_bytes=work.samples * work.task_bytes,
        # The tables, and the largest of them once more as the bytes that are written or hashed.
        memory_bytes=work.atlas_bytes
        + work.samples * max(MACS_BYTES * work.arms, CONTEXT_BYTES * work.context_features),
    )


@dataclass(frozen=True)
class SweepWork:
    """A sweep to run.

    Attributes:
        points: how many.
        point_s: seconds of training and measuring a point in its place.
        rows: figures that a point leaves there.
        result_bytes: of a point, through the driver: reports and result.
        atlas_bytes: of the atlas, which each node maps from storage once.
    """

    points: int
    point_s: float
    rows: float = 0.0
    result_bytes: float = 0.0
    atlas_bytes: float = 0.0


@dataclass(frozen=True)
class SweepRates:
    """How fast the parts are.

    Attributes:
        start_s: until the first point trains.
        trials_per_s: that Tune begins, hears and ends in the driver.
        recorded_per_s: points that the tracking database takes, each whole.
        places_per_node: points that a node trains at a time.
        storage_bytes_per_s: of the shared storage, for all nodes together.
    """

    start_s: float = 0.0
    trials_per_s: float = math.inf
    recorded_per_s: float = math.inf
    places_per_node: int = 1
    storage_bytes_per_s: float = math.inf


@dataclass(frozen=True)
class SweepEstimate:
    """How a sweep would go.

    Attributes:
        places, nodes: that take part.
        seconds: in all.
        parts: seconds that each part needs; they overlap.
        ending_per_s: points that end a second, so that the database is asked to take them.
        database_rows: in all.
        read_bytes: of the atlas, by all nodes.
        message_bytes: through the driver.
    """

    places: int
    nodes: int
    seconds: float
    parts: dict[str, float]
    ending_per_s: float
    database_rows: float
    read_bytes: float
    message_bytes: float

    @property
    def limit(self) -> str:
        """Name of the part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def estimate_sweep(work: SweepWork, rates: SweepRates, places: int) -> SweepEstimate:
    """How long places take for a sweep, and what they ask of driver and database."""
    busy = min(places, work.points)
    nodes = math.ceil(busy / rates.places_per_node)
    training = math.ceil(work.points / busy) * work.point_s
    parts = {
        "training": training,
        "driver": work.points / rates.trials_per_s,
        "database": work.points / rates.recorded_per_s,
        "storage": nodes * work.atlas_bytes / rates.storage_bytes_per_s,
    }
    return SweepEstimate(
        places=busy,
        nodes=nodes,
        seconds=rates.start_s + max(parts.values()),
        parts=parts,
        ending_per_s=work.points / training,
        database_rows=work.points * work.rows,
        read_bytes=nodes * work.atlas_bytes,
        message_bytes=work.points * work.result_bytes,
    )
