"""A point of a population learns what it learns alone, whoever learns beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flyball.controllers.learn import LearnConfig, Learned, learn_plain
from flyball.controllers.learned import BanditTable
from flyball.controllers.networks import ControllerConfig, build_network
from flyball.controllers.population import learn_population, shared_settings
from flyball.datapaths.errors import InvalidSetting, NotFinite, ShapeMismatch
from flyball.datapaths.progress import Progress

SAMPLES, FEATURES, ARMS = 97, 7, 5
HEAD = ControllerConfig(width=6, layers=2)
CONFIG = LearnConfig(
    algorithm="plain",
    batch_size=33,
    updates=50,
    updates_per_iteration=8,
    validations=6,
    learning_rate=3e-3,
)


def table(point: int, split: int = 0, samples: int = SAMPLES) -> BanditTable:
    """Rewards that depend on the observations, another way in every point."""
    seen = np.random.default_rng(split).normal(2.0, 3.0, (samples, FEATURES)).astype(np.float32)
    paying = np.random.default_rng(100 + point).normal(size=(FEATURES, ARMS))
    return BanditTable(seen, np.tanh(seen @ paying).astype(np.float32))


def alone(point: int, config: LearnConfig) -> Learned:
    generator = torch.Generator().manual_seed(config.seed)
    network = build_network(HEAD, (FEATURES,), ARMS, generator=generator)
    return learn_plain(table(point), network, config, validation=table(point, 1, 41))


def together(configs: list[LearnConfig], points: list[int] | None = None) -> list[Any]:
    named = list(range(len(configs))) if points is None else points
    return learn_population(
        [table(point) for point in named],
        HEAD,
        configs,
        validation=[table(point, 1, 41) for point in named],
    )


def assert_alike(one: Learned, other: Learned) -> None:
    """Equal up to the rounding of float32 products that add in another order."""
    assert (one.updates, one.samples, one.best_update) == (
        other.updates,
        other.samples,
        other.best_update,
    )
    np.testing.assert_allclose(one.curve, other.curve, rtol=0, atol=2e-5)
    np.testing.assert_allclose(one.validation, other.validation, rtol=0, atol=2e-5)
    weights = other.network.state_dict()
    for name, weight in one.network.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=5e-5)


@pytest.mark.parametrize("estimator", ["all_arm", "ratio", "paper"])
@pytest.mark.parametrize("seeds", [(4, 4, 4), (4, 5, 4)])
def test_every_point_learns_what_it_learns_alone(estimator: Any, seeds: tuple[int, ...]) -> None:
    configs = [
        replace(
            CONFIG,
            estimator=estimator,
            seed=seed,
            learning_rate=1e-3 * (1 + 2 * place),
            entropy=0.1 * place,
            epsilon_start=0.2 + 0.1 * place,
        )
        for place, seed in enumerate(seeds)
    ]
    for point, (learned, config) in enumerate(zip(together(configs), configs, strict=True)):
        assert_alike(learned, alone(point, config))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_optimizers_step_as_torch_has_them_weight_decay_included(optimizer: Any) -> None:
    configs = [replace(CONFIG, optimizer=optimizer, weight_decay=decay) for decay in (0.0, 0.2)]
    kept = together(configs)
    for point, config in enumerate(configs):
        assert_alike(kept[point], alone(point, config))
    first, second = (learned.network.state_dict()["1.weight"] for learned in kept)
    assert not torch.equal(first, second)


def test_a_point_does_not_depend_on_its_neighbours() -> None:
    configs = [replace(CONFIG, seed=seed) for seed in (0, 1, 2)]
    last = together(configs)[2]
    assert_alike(together([configs[2], configs[0]], [2, 0])[0], last)
    assert_alike(together([configs[2]], [2])[0], last)


def test_the_same_population_learns_the_same_bit_for_bit() -> None:
    configs = [replace(CONFIG, estimator="ratio", seed=seed) for seed in (0, 1)]
    for one, again in zip(together(configs), together(configs), strict=True):
        assert (one.curve, one.validation) == (again.curve, again.validation)
        weights = again.network.state_dict()
        assert all(torch.equal(w, weights[n]) for n, w in one.network.state_dict().items())


def test_without_a_validation_table_the_last_weights_are_kept() -> None:
    (learned,) = learn_population([table(0)], HEAD, [CONFIG])
    assert isinstance(learned, Learned)
    assert (learned.validation, learned.best_update) == ((), CONFIG.updates)
    generator = torch.Generator().manual_seed(CONFIG.seed)
    network = build_network(HEAD, (FEATURES,), ARMS, generator=generator)
    assert_alike(learned, learn_plain(table(0), network, CONFIG))


def test_a_point_that_breaks_is_named_and_the_others_go_on() -> None:
    configs = [CONFIG, replace(CONFIG, learning_rate=1e30), replace(CONFIG, seed=3)]
    whole, broken, other = together(configs)
    assert isinstance(broken, NotFinite)
    assert "of update 2 of point 1 of 3 is" in str(broken)
    assert_alike(whole, alone(0, configs[0]))
    assert_alike(other, alone(2, configs[2]))


def test_when_every_point_broke_nothing_more_is_done() -> None:
    seen: list[Progress] = []
    (broken,) = learn_population(
        [table(0)], HEAD, [replace(CONFIG, learning_rate=1e30)], report=seen.append
    )
    assert isinstance(broken, NotFinite)
    assert [progress.done for progress in seen] == [8]


def test_points_of_unlike_settings_are_refused() -> None:
    other = replace(CONFIG, batch_size=8)
    assert shared_settings(other) != shared_settings(CONFIG)
    assert shared_settings(replace(CONFIG, seed=9, entropy=0.7)) == shared_settings(CONFIG)
    with pytest.raises(InvalidSetting, match=r"share learn\.batch_size; point 0 has 33, point 1 8"):
        together([CONFIG, other])
    with pytest.raises(InvalidSetting, match="1, 2 and none came"):
        learn_population([table(0)], HEAD, [CONFIG, CONFIG])
    with pytest.raises(InvalidSetting, match="Only context heads"):
        learn_population([table(0)], ControllerConfig("image_cnn"), [CONFIG])


def test_points_of_unlike_tables_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="point 1 are not those of point 0"):
        learn_population([table(0), table(0, 1)], HEAD, [CONFIG, CONFIG])
    fewer = BanditTable(table(0).observations, table(0).rewards[:, :3].copy())
    with pytest.raises(ShapeMismatch, match=r"\(97, 3\) and \(97, 5\)"):
        learn_population([table(0), fewer], HEAD, [CONFIG, CONFIG])
