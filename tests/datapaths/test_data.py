"""Configuration, the deal into splits, and the embedded digits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import flyball.datapaths.data as data
from flyball.datapaths.data import DEFAULT_FRACTIONS, DataConfig, ImageSet, describe, load_images
from flyball.datapaths.data.deal import deal, sizes_of
from flyball.datapaths.errors import DataError, InvalidSetting, UnknownName
from flyball.datapaths.splits import SPLITS


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataConfig())


def test_the_public_names_exist() -> None:
    assert set(data.__all__) == {
        "DEFAULT_FRACTIONS",
        "DataConfig",
        "ImageSet",
        "StreamedPixels",
        "describe",
        "load_images",
    }
    assert all(hasattr(data, name) for name in data.__all__)


def test_digits_are_scikit_learns_with_sixteen_as_white(digits: ImageSet) -> None:
    values, target = load_digits(return_X_y=True)
    assert digits.images.dtype == np.uint8
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert digits.images_file is None
    np.testing.assert_array_equal(digits.labels, target)
    assert digits.images[values.reshape(-1, 1, 8, 8) == 16.0].min() == 255
    assert digits.images[values.reshape(-1, 1, 8, 8) == 0.0].max() == 0
    # 255/16 is 15.94 a step, so rounding loses less than a half
    assert (
        np.abs(np.asarray(digits.images) / (255 / 16) - values.reshape(-1, 1, 8, 8)).max()
        < 0.5 / 15.9
    )


def test_every_row_is_in_exactly_one_split(digits: ImageSet) -> None:
    rows = np.concatenate([digits.rows(split) for split in SPLITS])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(digits)))
    assert rows.dtype == np.int64
    with pytest.raises(UnknownName, match="no split 'train'"):
        digits.rows("train")


def test_splits_are_stratified(digits: ImageSet) -> None:
    for label in range(10):
        own = digits.split[digits.labels == label]
        for code, share in enumerate(DEFAULT_FRACTIONS["digits"]):
            assert abs((own == code).sum() - share * len(own)) < 1.0


def test_a_seed_fixes_the_splits_and_another_changes_them(digits: ImageSet) -> None:
    again = load_images(DataConfig())
    other = load_images(DataConfig(seed=1))
    np.testing.assert_array_equal(digits.split, again.split)
    assert digits.fingerprint == again.fingerprint
    assert (digits.split != other.split).any()
    assert digits.fingerprint != other.fingerprint


def test_a_class_is_dealt_alike_whatever_the_others_are() -> None:
    labels = np.repeat([0, 1], 40)
    mask = np.zeros(80, bool)
    shares = DEFAULT_FRACTIONS["digits"]
    both = deal(labels, mask, ("a", "b"), shares, 3)
    alone = deal(labels[:40], mask[:40], ("a",), shares, 3)
    np.testing.assert_array_equal(both[:40], alone)


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (178, (0.5, 0.25, 0.1, 0.15), [89, 44, 18, 27]),
        (5000, (0.56, 0.16, 0.08), [3500, 1000, 500]),
        (4, (0.5, 0.25, 0.1, 0.15), [1, 1, 1, 1]),
        (10, (0.97, 0.01, 0.01, 0.01), [7, 1, 1, 1]),
    ],
)
def test_shares_become_whole_numbers(
    count: int, shares: tuple[float, ...], expected: list[int]
) -> None:
    assert sizes_of(count, np.array(shares)).tolist() == expected


def test_the_sources_own_test_part_is_test_and_the_rest_is_scaled() -> None:
    labels = np.tile([0, 1], 600)
    is_test = np.arange(1200) >= 1000
    split = deal(labels, is_test, ("a", "b"), DEFAULT_FRACTIONS["cifar10"], 0)
    np.testing.assert_array_equal(split == SPLITS.index("test"), is_test)
    assert np.bincount(split).tolist() == [700, 200, 100, 200]


def test_a_limit_keeps_the_first_of_each_class(digits: ImageSet) -> None:
    few = load_images(DataConfig(limit=20))
    assert np.bincount(few.labels).tolist() == [20] * 10
    for label in range(10):
        np.testing.assert_array_equal(
            few.images[few.labels == label], digits.images[digits.labels == label][:20]
        )


def test_digits_can_be_enlarged() -> None:
    assert load_images(DataConfig(limit=4, image_size=12)).images.shape == (40, 1, 12, 12)


def test_nothing_can_change_an_image_set(digits: ImageSet) -> None:
    pixels = digits.images
    assert isinstance(pixels, np.ndarray)
    for array in (pixels, digits.labels, digits.split):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_description_is_json_and_adds_up(digits: ImageSet) -> None:
    said = json.loads(json.dumps(describe(digits)))
    assert said["name"] == "digits"
    assert said["fingerprint"] == digits.fingerprint
    assert said["shape"] == [1, 8, 8]
    assert {name: part["images"] for name, part in said["splits"].items()} == {
        split: len(digits.rows(split)) for split in SPLITS
    }
    assert sum(sum(part["by_class"].values()) for part in said["splits"].values()) == 1797


def test_every_default_is_valid() -> None:
    for fractions in DEFAULT_FRACTIONS.values():
        assert replace(DataConfig(), fractions=fractions).shares == fractions


@pytest.mark.parametrize(
    "fractions",
    [
        (0.5, 0.25, 0.1, 0.2),
        (0.5, 0.25, 0.1, 0.1),
        (1.1, -0.1, 0.5, -0.5),
        (0.5, 0.0, 0.25, 0.25),
        (math.nan, 0.3, 0.3, 0.4),
        (0.4, 0.3, 0.3, math.nan),
        (0.5, 0.5),
    ],
)
def test_fractions_that_are_no_shares_are_refused(
    fractions: tuple[float, float, float, float],
) -> None:
    with pytest.raises(InvalidSetting, match=r"data\.fractions are the shares of path_train") as e:
        DataConfig(fractions=fractions)
    assert str(fractions[0]) in str(e.value)
    assert "--set data.fractions=" in str(e.value)


def test_other_settings_that_break_a_rule_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"no data set 'cifar'\. Did you mean 'cifar10'"):
        DataConfig(name="cifar")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match=r"data\.limit is at least 1, or unset; got 0"):
        DataConfig(limit=0)
    with pytest.raises(InvalidSetting, match=r"data\.image_size is at least 1, or unset; got -3"):
        DataConfig(image_size=-3)
    with pytest.raises(InvalidSetting, match=r"data\.seed is an integer of at least 0; got -1"):
        DataConfig(seed=-1)


def test_digits_have_no_root(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="'digits' comes with scikit-learn and has no root"):
        load_images(DataConfig(root=str(tmp_path)))


def test_a_class_that_cannot_fill_the_splits_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"class '0' has 3\. Add images to it, or raise data\.limit"
    ):
        load_images(DataConfig(limit=3))


def test_a_test_split_needs_a_share_or_a_part_of_its_own() -> None:
    with pytest.raises(InvalidSetting, match="has its own test part, and this one has none"):
        load_images(DataConfig(fractions=(0.6, 0.2, 0.2, 0.0)))
