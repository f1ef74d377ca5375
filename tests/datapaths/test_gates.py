"""Gates: counts for a utilization, and which components a count switches on."""

from collections import Counter

import pytest
import torch

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.errors import InvalidArms, InvalidSetting
from flyball.datapaths.gates import (
    independent_components,
    independent_mask,
    nested_mask,
    sampled_components,
    served_components,
)


def test_serving_rounds_up_as_algorithm_2_does() -> None:
    counts = [served_components(k / 10, 16) for k in range(1, 11)]
    assert counts == [2, 4, 5, 7, 8, 10, 12, 13, 15, 16]


@pytest.mark.parametrize("components", [1, 3, 7, 10, 16, 64])
def test_k_nths_serve_k_components_whatever_the_float_says(components: int) -> None:
    step = 1 / components
    assert [served_components(k / components, components) for k in range(1, components + 1)] == (
        list(range(1, components + 1))
    )
    # 3 x 0.1 is 0.30000000000000004; a bare ceiling would give one component too many.
    assert all(served_components(k * step, components) == k for k in range(1, components + 1))


def test_sampling_a_uniform_u_makes_every_count_equally_likely() -> None:
    drawn = Counter(sampled_components(i / 17_000, 16, min_active=0) for i in range(17_000))
    assert set(drawn) == set(range(17))
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_a_module_without_a_skip_connection_keeps_one_component() -> None:
    assert served_components(0.0, 16) == sampled_components(0.0, 16) == 1
    assert served_components(0.0, 16, min_active=0) == 0


@pytest.mark.parametrize("u", [-0.1, 1.0001, float("nan"), float("inf")])
def test_a_utilization_outside_the_unit_interval_is_refused(u: float) -> None:
    with pytest.raises(InvalidSetting, match=r"number in \[0, 1\], not"):
        served_components(u, 16)


def test_a_nested_gate_that_is_on_has_all_before_it_on() -> None:
    mask = nested_mask(torch.tensor([0, 1, 3, 4]), 4)
    assert mask.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_independent_gates_draw_every_component_equally_often() -> None:
    counts = torch.full((6_000,), 3)
    mask = independent_mask(counts, 8, torch.Generator().manual_seed(1))
    assert bool((mask.sum(dim=1) == 3).all())
    # 6,000 draws of 3 in 8: the share of each component is 0.375 with deviation 0.006; 5 of them.
    assert float((mask.mean(dim=0) - 3 / 8).abs().max()) < 0.032


def test_a_frozen_path_draws_its_independent_components_once() -> None:
    first = independent_components(5, 16, module=2, seed=7)
    again = independent_components(5, 16, module=2, seed=7)
    other = independent_components(5, 16, module=3, seed=7)
    assert isinstance(first, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    assert first.tolist() == sorted(set(first.tolist()))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert independent_components(16, 16, module=2, seed=7) == 16


def test_default_arms_are_tenths() -> None:
    assert default_arms() == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ((0.5, 0.25), "Arms increase strictly; arm 1 is 0.25 after 0.5. Give them in order: 0.25"),
        ((0.5, 0.5), "Arms increase strictly"),
        ((0.0, 1.0), r"in \(0, 1\]; arm 0 is 0.0"),
        ((0.5, 1.5), r"in \(0, 1\]; arm 1 is 1.5"),
        ((0.5, float("nan")), r"in \(0, 1\]; arm 1 is nan"),
        ((), "at least one arm"),
    ],
)
def test_bad_arms_are_refused_with_the_rule(arms: tuple[float, ...], said: str) -> None:
    with pytest.raises(InvalidArms, match=said):
        validated_arms(arms)
