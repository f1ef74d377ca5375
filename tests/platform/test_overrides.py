"""Presets and `--set`: every field by name and type, and a clear error for what is not one."""

import pytest

from flyball.datapaths.errors import InvalidArms, InvalidSetting, UnknownName
from flyball.platform.overrides import field_names, with_overrides
from flyball.platform.presets import PRESETS, digits, preset


def test_values_take_the_type_of_their_field() -> None:
    job = with_overrides(
        digits(),
        [
            "phase1.epochs=3",
            "phase1.augment=true",
            "reward.gamma1=0.25",
            "data.root=~/images",
            "data.limit=none",
            "learn.algorithm=plain",
            "arms=0.25,0.5,1",
            "path.stages=((16,),(32,))",
        ],
    )
    assert (job.phase1.epochs, job.phase1.augment, job.reward.gamma1) == (3, True, 0.25)
    assert (job.data.root, job.data.limit, job.learn.algorithm) == ("~/images", None, "plain")
    assert job.arms == (0.25, 0.5, 1.0)
    assert job.path.stages == ((16,), (32,))


def test_a_later_setting_wins_and_the_rest_stays() -> None:
    job = with_overrides(digits(), ["learn.seed=1", "learn.seed=2"])
    assert job.learn.seed == 2
    assert with_overrides(job, ["learn.seed=0"]) == digits()


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_of_a_preset_can_be_set_to_what_it_is(name: str) -> None:
    job = preset(name)
    texts = [f"{field}={_text(value)}" for field, value in field_names(job).items()]
    assert with_overrides(job, texts) == job


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        ("reward.gama1=1", UnknownName, "no field 'reward.gama1'. Did you mean 'reward.gamma1'"),
        ("rewards.gamma1=1", UnknownName, "Did you mean 'reward.gamma1'"),
        ("reward.gamma1", InvalidSetting, "An override is FIELD=VALUE; got 'reward.gamma1'"),
        ("phase1.epochs=many", InvalidSetting, "phase1.epochs is of type int; 'many' is not"),
        ("phase1.augment=perhaps", InvalidSetting, "phase1.augment is of type bool"),
        ("phase1.schedule=sandwhich", UnknownName, "Did you mean 'sandwich'"),
        ("arms=low,high", InvalidSetting, "arms is a list of numbers; got 'low,high'"),
        ("arms=0.5,0.25", InvalidArms, "Arms increase strictly"),
        ("arms=0,1", InvalidArms, r"in \(0, 1\]"),
        ("reward.gamma1=-1", InvalidSetting, "gamma1"),
        ("reward.gamma2=nan", InvalidSetting, "gamma2"),
        ("name=other", UnknownName, "no field 'name'"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(setting: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        with_overrides(digits(), [setting])


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no preset 'digit'\. Did you mean 'digits'"):
        preset("digit")


def _text(value: object) -> str:
    return "none" if value is None else str(value)
