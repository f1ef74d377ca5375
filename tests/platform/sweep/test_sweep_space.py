"""Spaces, points, settings and results of sweeps: what is read, and every bad input."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyball.controllers.bootstrap import Interval
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import (
    ArmMismatch,
    BadInput,
    CorruptArtifact,
    ForeignArtifact,
    InvalidArms,
    InvalidSetting,
    StorageError,
    UnknownName,
)
from flyball.platform.job import Job
from flyball.platform.overrides import with_overrides
from flyball.platform.presets import digits
from flyball.platform.sweep.columns import keep_arms
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.grouping import group_points
from flyball.platform.sweep.points import Point, make_points
from flyball.platform.sweep.result import PointResult
from flyball.platform.sweep.space import DEFAULT_SPACE, Space, parse_space


def space(*texts: str) -> Space:
    return parse_space(texts, digits())


def test_the_default_space_is_64_points_over_the_reward() -> None:
    config = SweepConfig(space(*DEFAULT_SPACE))
    config.check(digits())
    assert config.points == 64
    assert len(set(config.settings())) == 64


def test_a_grid_is_the_product_of_its_values_in_order() -> None:
    grid = space("reward.gamma1=0,0.5", "learn.algorithm=plain,ppo").grid()
    assert grid == tuple(
        (("reward.gamma1", gamma), ("learn.algorithm", name))
        for gamma in ("0", "0.5")
        for name in ("plain", "ppo")
    )


def test_lists_are_swept_between_bars() -> None:
    points = make_points(digits(), space("arms=0.5,1|0.25,0.5,1").grid(), atlas="a")
    assert [point.job(digits()).arms for point in points] == [(0.5, 1.0), (0.25, 0.5, 1.0)]


def test_drawn_points_lie_in_their_ranges_and_follow_from_the_seed() -> None:
    drawn = space(
        "learn.learning_rate=loguniform(1e-4,1e-2)",
        "controller.width=randint(8,9)",
        "learn.entropy=uniform(0,0.2)",
        "learn.estimator=choice(all_arm,ratio)",
    )
    first = drawn.drawn(40, seed=3)
    assert first == drawn.drawn(40, seed=3) != drawn.drawn(40, seed=4)
    rows = [dict(settings) for settings in first]
    assert all(1e-4 <= float(row["learn.learning_rate"]) <= 1e-2 for row in rows)
    assert {row["controller.width"] for row in rows} == {"8", "9"}
    assert {row["learn.estimator"] for row in rows} == {"all_arm", "ratio"}
    logs = [math.log10(float(row["learn.learning_rate"])) for row in rows]
    assert -3.3 < float(np.median(logs)) < -2.7  # even in the logarithm, not in the number


def test_a_space_with_fewer_points_than_asked_for_gives_them_all() -> None:
    assert len(space("reward.gamma1=0,0.5,1").drawn(50, seed=0)) == 3


def test_a_space_is_the_one_its_texts_give() -> None:
    texts = ("reward.gamma1=0,0.5", "learn.entropy=uniform(0,0.2)", "arms=0.5,1.0|1.0")
    again = space(*space(*texts).texts())
    assert again == space(*texts)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", InvalidSetting, "FIELD=SPEC"),
        ("reward.gamma1", InvalidSetting, "FIELD=SPEC"),
        ("reward.gamma1=", InvalidSetting, "FIELD=SPEC"),
        ("=1,2", InvalidSetting, "FIELD=SPEC"),
        ("reward.gama1=0,1", UnknownName, "Did you mean 'reward.gamma1'"),
        ("reward.gamma1=0,,1", InvalidSetting, "is empty"),
        ("reward.gamma1=0,0", InvalidSetting, "twice"),
        ("reward.gamma1=unifrom(0,1)", UnknownName, "Did you mean 'uniform'"),
        ("reward.gamma1=(0,1)", InvalidSetting, "Cannot read"),
        ("reward.gamma1=uniform(0)", InvalidSetting, "two numbers"),
        ("reward.gamma1=uniform(a,b)", InvalidSetting, "two numbers"),
        ("reward.gamma1=uniform(1,0)", InvalidSetting, "lower to a higher"),
        ("reward.gamma1=uniform(0,inf)", InvalidSetting, "lower to a higher"),
        ("reward.gamma1=uniform(-1,1)", InvalidSetting, "gamma1 must be"),
        ("learn.learning_rate=loguniform(0,1)", InvalidSetting, "above 0"),
        ("controller.width=randint(1.5,3)", InvalidSetting, "whole numbers"),
        ("controller.width=uniform(8,9.5)", InvalidSetting, "of type int"),
        ("path.hidden=32,64", InvalidSetting, "changes the data path"),
        ("phase1.epochs=1,2", InvalidSetting, "trains another data path"),
        ("data.name=digits", InvalidSetting, "changes the images"),
        ("outcomes.cost_model=linear", InvalidSetting, "changes the atlas"),
        ("evaluation.bootstrap=10,20", InvalidSetting, "measured alike"),
        ("compute.threads=1,2", InvalidSetting, "runs on"),
        ("storage.root=a,b", InvalidSetting, "writes"),
    ],
)
def test_a_bad_specification_is_refused_with_the_reason(
    text: str, error: type[BadInput], said: str
) -> None:
    with pytest.raises(error) as raised:
        space(text)
    assert said in str(raised.value)


def test_an_empty_space_and_a_field_given_twice_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="at least one field"):
        space()
    with pytest.raises(InvalidSetting, match="swept once"):
        space("reward.gamma1=0", "reward.gamma1=1")


@pytest.mark.parametrize(
    "text", ["reward.gamma1=0,-1", "learn.algorithm=plain,pop", "arms=0.5,0.2"]
)
def test_a_value_that_the_field_does_not_take_is_found_before_work_starts(text: str) -> None:
    with pytest.raises(BadInput):
        SweepConfig(space(text)).check(digits())


def test_two_ways_to_write_one_point_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="the same job"):
        SweepConfig(space("reward.gamma1=0.5,.5")).check(digits())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": "random", "samples": 0}, "--samples is a whole number, 1 or more"),
        ({"search": "gird"}, "Did you mean 'grid'"),
        ({"samples": 5}, "every combination"),
        ({"concurrent": -2}, "--concurrent is a whole number, 1 or more"),
        ({"concurrent": 0}, "--concurrent is a whole number"),
        ({"population": 0}, "--population is a whole number"),
        ({"seed": -1}, "--seed is a whole number"),
        ({"max_failures": -1}, "--max-failures"),
        ({"cpus_per_trial": -1.0}, "--cpus-per-trial is 0 or more"),
        ({"cpus_per_trial": 1.5}, "a part of one, or whole ones"),
        ({"gpus_per_trial": math.nan}, "--gpus-per-trial is 0 or more"),
        ({"cpus_per_trial": 0.0}, "a part of a CPU or GPU"),
        ({"population": 4, "asha": True}, "one by one"),
        ({"population": 4, "search": "optuna"}, "one by one"),
    ],
)
def test_bad_settings_of_a_sweep_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        replace(SweepConfig(space("reward.gamma1=0,0.5")), **changes)  # type: ignore[arg-type]
    assert said in str(raised.value)


def test_a_grid_of_a_range_and_one_of_too_many_points_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="is a range"):
        SweepConfig(space("reward.gamma1=uniform(0,1)"))
    many = "reward.{}=" + ",".join(str(number) for number in range(101))
    with pytest.raises(InvalidSetting, match="at most 10,000"):
        SweepConfig(space(many.format("gamma1"), many.format("gamma2")))


def test_ending_early_and_gpus_are_refused_for_plain_torch() -> None:
    plain = with_overrides(digits(), ["learn.algorithm=plain"])
    config = SweepConfig(space("reward.gamma1=0,0.5"))
    with pytest.raises(InvalidSetting, match="--asha compares points at their checkpoints"):
        replace(config, asha=True).check(plain)
    with pytest.raises(InvalidSetting, match="leave a GPU idle"):
        replace(config, gpus_per_trial=0.5).check(plain)
    replace(config, gpus_per_trial=0.5, population=2).check(plain)


def test_a_key_names_settings_job_and_atlas() -> None:
    settings = (("reward.gamma1", "0.25"),)
    key = Point.of(digits(), settings, "atlas").key
    assert len(key) == 16
    assert key == Point.of(digits(), (("reward.gamma1", "0.250"),), "atlas").key
    others = {
        Point.of(digits(), (("reward.gamma1", "0.5"),), "atlas").key,
        Point.of(digits(), settings, "another").key,
        Point.of(with_overrides(digits(), ["learn.seed=1"]), settings, "atlas").key,
    }
    assert len({key, *others}) == 4


def grouped(job: Job, population: int, *texts: str) -> list[int]:
    points = make_points(job, space(*texts).grid(), atlas="a")
    groups = group_points(points, job, population)
    assert sorted(point.key for group in groups for point in group) == sorted(
        point.key for point in points
    )
    return [len(group) for group in groups]


def test_points_learn_together_where_a_population_can_hold_them() -> None:
    job = digits()
    rewards = "reward.gamma1=0,0.25,0.5,1,2"
    assert grouped(job, 1, rewards) == [1] * 5
    assert grouped(job, 2, rewards) == [2, 2, 1]
    assert grouped(job, 8, rewards, "controller.width=8,16") == [5, 5]
    assert grouped(job, 8, "learn.learning_rate=1e-3,1e-2", "learn.seed=0,1") == [4]
    assert grouped(job, 8, "reward.gamma1=0,1", "learn.algorithm=rllib_atlas,ppo") == [2, 1, 1]
    assert grouped(job, 8, "reward.gamma1=0,1", "learn.batch_size=64,128") == [2, 2]


def an_atlas(context_arm: int | None = None) -> OutcomeAtlas:
    rng = np.random.default_rng(0)
    atlas = OutcomeAtlas.from_arrays(
        (0.25, 0.5, 1.0),
        correct=rng.random((6, 3)) < 0.5,
        confidence=rng.random((6, 3)),
        macs=(10, 40, 100),
        context=rng.random((6, 4)),
        context_macs=10,
    )
    return replace(atlas, header=replace(atlas.header, context_arm=context_arm))


@pytest.mark.parametrize("context_arm", [None, 0])
def test_fewer_arms_are_columns_of_the_same_atlas(context_arm: int | None, tmp_path: Path) -> None:
    atlas = an_atlas(context_arm)
    kept = keep_arms(atlas, (0.25, 1.0), uses_context=True)
    assert kept.arms == (0.25, 1.0)
    np.testing.assert_array_equal(kept.correct, atlas.correct[:, [0, 2]])
    np.testing.assert_array_equal(kept.throttle_ratio(), atlas.throttle_ratio()[:, [0, 2]])
    np.testing.assert_array_equal(
        kept.net_macs(7, uses_context=True), atlas.net_macs(7, uses_context=True)[:, [0, 2]]
    )
    assert kept.header.fingerprint != atlas.header.fingerprint
    kept.save(tmp_path)
    assert OutcomeAtlas.open(tmp_path, verify=True).arms == kept.arms
    assert keep_arms(atlas, atlas.arms, uses_context=True) is atlas


def test_arms_that_the_atlas_lacks_are_refused_with_what_is_there() -> None:
    with pytest.raises(ArmMismatch, match=r"0\.25, 0\.5, 1; 0\.3 is not among them"):
        keep_arms(an_atlas(), (0.3, 1.0), uses_context=False)
    with pytest.raises(InvalidArms, match="lowest arm"):
        keep_arms(an_atlas(), (0.5, 1.0), uses_context=True)
    assert keep_arms(an_atlas(), (0.5, 1.0), uses_context=False).arms == (0.5, 1.0)


def a_result(**changes: object) -> PointResult:
    interval = Interval(0.5, 0.25, 0.75)
    result = PointResult(
        key="0123456789abcdef",
        settings=(("reward.gamma1", "0.5"), ("arms", "0.5,1")),
        name="gamma1=0.5 arms=0.5,1",
        accuracy=interval,
        utilization=interval,
        gross=interval,
        net=interval,
        reward=interval,
        gain_over_static=interval,
        beats_static=True,
        dominated=False,
        controller_macs=12,
        parameters=34,
        updates=100,
        best_update=50,
        seconds=0.5,
        fingerprints={"atlas": "a"},
        versions={"torch": "2"},
        curve=((16, {"val/reward": 0.25}), (32, {"val/reward": 0.5})),
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    a_result().save(file)
    assert PointResult.load(file) == a_result()


@pytest.mark.parametrize("broken", ["format", "curve", "net", "key"])
def test_a_result_that_lacks_a_field_is_refused(broken: str, tmp_path: Path) -> None:
    values = a_result().to_json()
    del values[broken]
    file = tmp_path / "result.json"
    file.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifact, match=r"result\.json.*--resume"):
        PointResult.load(file)


def test_a_folder_tells_new_unfinished_foreign_and_finished_sweeps_apart(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    plan = {"search": "grid", "space": ["reward.gamma1=0,1"], "versions": {"torch": "1"}}
    with pytest.raises(BadInput, match="no sweep to resume"):
        folder.open_plan(plan, resume=True, points=1)
    assert not folder.open_plan(plan, resume=False, points=1)
    with pytest.raises(BadInput, match=r"0 of 1 points are done.*--resume"):
        folder.open_plan(plan, resume=False, points=1)
    assert not folder.open_plan(plan | {"versions": {"torch": "2"}}, resume=True, points=1)
    with pytest.raises(ForeignArtifact, match="search is grid there, random here"):
        folder.open_plan(plan | {"search": "random"}, resume=True, points=1)
    a_result().save(folder.result_file(a_result().key))
    folder.outcome_file.write_text('{"points": 1}')
    for points in (1, 2):  # Optuna may have proposed one twice
        for resume in (False, True):
            assert folder.open_plan(plan, resume=resume, points=points)
    folder.outcome_file.write_text('{"points": 2}')
    assert not folder.open_plan(plan, resume=True, points=2)


def test_a_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    taken = pytest.raises(StorageError, match=r"Another process.*process \d+ on ")
    with folder.locked(), taken, folder.locked():
        pass
    with folder.locked():
        pass
