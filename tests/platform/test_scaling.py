"""The scaling model: hand-computed numbers, its laws, and the command that feeds it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from flyball.datapaths.data import DataConfig, load_images
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.progress import Progress
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg
from flyball.platform.scaling import (
    AtlasRates,
    AtlasWork,
    SweepRates,
    SweepWork,
    estimate_atlas,
    estimate_sweep,
)
from flyball.platform.scaling_cases import ASSUMPTIONS, imagenet
from flyball.platform.scaling_measure import Measured, measure
from flyball.platform.scaling_picture import draw_scaling
from flyball.platform.scaling_table import scaling_table
from flyball.platform.scaling_verb import modelled

# 10 shards of 100 samples; a shard is 100 x 1000 MACs, a row 13 + 2 x 20 + 5 x 4 = 73 bytes.
WORK = AtlasWork(
    samples=1000,
    arms=2,
    macs=1000.0,
    stored_bytes=500.0,
    context_features=5,
    shard_size=100,
    task_bytes=50.0,
    message_bytes=60.0,
)
RATES = AtlasRates(
    macs_per_s=50_000.0,  # 2 s a shard
    start_s=3.0,
    decodes_per_s=250.0,
    workers_per_node=2,
    node_bytes_per_s=57_300.0,
    storage_bytes_per_s=114_600.0,
    shards_per_s=4.0,
    assembly_bytes_per_s=73_000.0,
)


def test_an_atlas_by_hand() -> None:
    found = estimate_atlas(WORK, RATES, 4)
    assert (WORK.shards, WORK.atlas_bytes) == (10, 73_000)
    assert (found.workers, found.nodes) == (4, 2)
    # Ten shards among four: somebody has three, 6 s. 573,000 bytes move in and out of storage.
    assert found.parts == {
        "compute": 6.0,
        "decoding": 2.0,
        "node network": 5.0,
        "storage": 5.0,
        "driver": 2.5,
    }
    assert found.seconds == 3.0 + 6.0 + 1.0
    assert (found.limit, found.share_computing) == ("compute", 0.6)
    assert (found.read_bytes, found.read_bytes_per_node) == (500_000, 250_000)
    assert (found.written_bytes, found.message_bytes) == (146_000, 600)
    assert found.object_store_bytes == 50_000
    assert found.memory_bytes == 73_000 + 1000 * 20  # contexts are the largest table


def test_workers_beyond_the_shards_do_nothing() -> None:
    ten, many = (estimate_atlas(WORK, RATES, count) for count in (10, 1000))
    assert ten == many
    assert many.workers == 10


def test_more_workers_never_take_longer_nor_less_than_the_storage_does() -> None:
    seconds = [estimate_atlas(WORK, RATES, count).seconds for count in range(1, 40)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] == 3.0 + 20.0 + 1.0
    assert seconds[-1] == 3.0 + 5.0 + 1.0


def test_without_limits_only_computing_is_left_and_doubling_halves_it() -> None:
    free = AtlasRates(macs_per_s=50_000.0)
    assert [estimate_atlas(WORK, free, count).seconds for count in (1, 2, 5, 10)] == [20, 10, 4, 2]
    assert estimate_atlas(WORK, free, 5).share_computing == 1.0


def test_a_sweep_by_hand() -> None:
    work = SweepWork(points=10, point_s=6.0, rows=150.0, result_bytes=100.0, atlas_bytes=1e6)
    rates = SweepRates(
        start_s=5.0,
        trials_per_s=2.0,
        recorded_per_s=0.5,
        places_per_node=2,
        storage_bytes_per_s=1e6,
    )
    found = estimate_sweep(work, rates, 4)
    assert found.parts == {"training": 18.0, "driver": 5.0, "database": 20.0, "storage": 2.0}
    assert (found.places, found.nodes, found.limit) == (4, 2, "database")
    assert found.seconds == 25.0
    assert found.ending_per_s == 10 / 18
    assert (found.database_rows, found.message_bytes, found.read_bytes) == (1500, 1000, 2e6)
    assert estimate_sweep(work, replace(rates, recorded_per_s=math.inf), 1000).seconds == 5.0 + 6.0


def test_the_size_of_a_real_atlas_is_the_models(tmp_path: Path) -> None:
    config = small_vgg(stages=((16,),), hidden=16, in_channels=1, image_size=8)
    names = tuple("0123456789")
    path = FrozenDataPath(
        ThrottleableVgg(config), PathSpec(config, (0.5, 1.0), names, (0.3,), (0.4,))
    )
    images = load_images(DataConfig(name="digits", limit=20))
    atlas = build_atlas(path, images, tmp_path, OutcomesConfig(shard_size=50))
    work = replace(WORK, samples=len(atlas), context_features=path.context_size)
    size = (tmp_path / "atlas.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "atlas.safetensors").read_bytes()[:8], "little")
    assert size - header == work.atlas_bytes


def test_imagenet_at_ten_arms_is_what_the_layers_say() -> None:
    work = imagenet()
    assert work.samples == 1_331_167
    assert work.shards == 1300
    assert work.context_features == 2048 + 1000 + 2
    # Ten arms of one image cost more than five and less than seven whole ResNet-50s (4.087 G).
    assert 5 * 4.087e9 < work.macs < 7 * 4.087e9
    assert work.stored_bytes == pytest.approx(116_170, rel=1e-3)


def test_the_command_measures_everything_once_and_says_where_the_rest_is_from(
    tmp_path: Path,
) -> None:
    seen: list[Progress] = []
    measured = measure(smoke=True, report=seen.append)
    assert [progress.done for progress in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    rates = {
        name: value
        for name, value in vars(measured).items()
        if name not in ("load", "checks", "start_s", "tune_start_s")
    }
    assert all(value > 0 for value in rates.values()), rates
    assert len(measured.checks) == 4
    assert all(check.modelled > 0 and check.measured > 0 for check in measured.checks)
    atlases, sweeps = modelled(measured)
    assert [(one.workers, size) for size, one in atlases] == [
        (10, 1024), (100, 1024), (1000, 1024), (10, 128), (100, 128), (1000, 128)
    ]  # fmt: skip
    assert [one.places for one in sweeps] == [10, 100, 1000]
    text = scaling_table(measured, atlases, sweeps)
    assert all(item.source in text for item in ASSUMPTIONS)
    picture = draw_scaling(measured, tmp_path / "scaling.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_measured_figures_are_the_only_ones_that_differ_between_machines() -> None:
    here = Measured(
        load=0.0,
        cpus=2,
        shard_s=0.1,
        start_s=4.0,
        tasks_per_s=1000.0,
        calls_per_s=500.0,
        message_bytes=50.0,
        decodes_per_s=100.0,
        assembly_bytes_per_s=3e8,
        recorded_per_s=2.0,
        tune_start_s=5.0,
        trials_per_s=4.0,
        point_s=3.0,
        checks=(),
    )
    atlases, sweeps = modelled(here)
    by_gpus = {(size, one.workers): one for size, one in atlases}
    # 1,300 shards among 1,000 GPUs: 300 of them have two, and no more of them would help.
    assert by_gpus[1024, 1000].parts["compute"] == pytest.approx(
        2 * 1024 / 128 * by_gpus[128, 1000].parts["compute"] / 11
    )
    assert sweeps[-1].parts["database"] == pytest.approx(1000 / 2)
    assert sweeps[-1].limit == "database"
