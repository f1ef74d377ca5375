"""Complexity, penalties and gradient estimators of learned gates: by hand, and by enumeration."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from flyball.datapaths.cost import executed_macs
from flyball.datapaths.densenet import small_densenet
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.learned_gates.complexity import (
    complexity,
    component_weights,
    distance_penalty,
    hinge_penalty,
    penalty_of,
)
from flyball.datapaths.learned_gates.estimators import (
    bernoulli_gates,
    concrete_gates,
    keep_least,
    leave_one_out,
    log_probability,
    score_function_loss,
)
from flyball.datapaths.learned_gates.structure import module_names, sample_macs, split_gates
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import make_network
from flyball.datapaths.resnext import small_resnext
from flyball.datapaths.vgg import small_vgg
from flyball.envs.reward import complexity_penalty

CONFIGURATIONS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
LOGITS = torch.tensor([0.4, -1.1], dtype=torch.float64)
# An objective with an interaction, far from 0, so that a baseline has something to take away.
OBJECTIVE = torch.tensor([5.0, 4.0, 6.5, 3.0], dtype=torch.float64)

SMALL = {
    "vgg": small_vgg(stages=((16,), (32,)), hidden=32, components=8, image_size=8),
    "resnext": small_resnext(
        stages=(8, 16), blocks=(1, 2), stem=8, groups=4, components=4, image_size=8
    ),
    "densenet": small_densenet(components=(2, 3, 2), image_size=8),
}


def probabilities(logits: Tensor) -> Tensor:
    return log_probability(logits.expand(4, 2), CONFIGURATIONS).exp()


def exact_gradient() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((probabilities(logits) * OBJECTIVE).sum(), logits)
    return gradient


def gradient_of_draw(index: int, baseline: Tensor) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    log_p = log_probability(logits[None], CONFIGURATIONS[index][None])
    loss = score_function_loss(log_p, OBJECTIVE[index][None], baseline)
    return torch.autograd.grad(loss, logits)[0]


def test_complexity_is_the_weighted_share_of_open_gates() -> None:
    gates = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert complexity(gates, torch.ones(4)).tolist() == [0.5, 0.25]
    # (1 + 3) / 10 and 4 / 10
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert complexity(gates, weights).tolist() == pytest.approx([0.4, 0.4])


def test_complexity_passes_a_gradient_to_relaxed_gates() -> None:
    gates = torch.tensor([0.2, 0.7], requires_grad=True)
    (gradient,) = torch.autograd.grad(complexity(gates, torch.tensor([1.0, 3.0])), gates)
    assert gradient.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [1.0], [float("nan"), 1.0]])
def test_weights_that_measure_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(InvalidSetting, match=r"[wW]eight.*component_weights"):
        complexity(torch.ones(1, 2), torch.tensor(weights))


@pytest.mark.parametrize(
    ("power", "hinge", "distance"), [(1, [0.0, 0.3], [0.2, 0.3]), (2, [0.0, 0.09], [0.04, 0.09])]
)
def test_penalties_by_hand(power: int, hinge: list[float], distance: list[float]) -> None:
    c, u = torch.tensor([0.3, 0.8]), torch.tensor([0.5, 0.5])
    assert hinge_penalty(c, u, power=power).tolist() == pytest.approx(hinge)
    assert distance_penalty(c, u, power=power).tolist() == pytest.approx(distance)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", ["hinge", "distance"])
def test_penalties_are_those_of_the_reward(kind: str, power: int) -> None:
    c = np.linspace(0, 1, 11)
    ours = penalty_of(torch.from_numpy(c), torch.tensor(0.4), penalty=kind, power=power)  # type: ignore[arg-type]
    theirs = complexity_penalty(c, 0.4, complexity=kind, power=power)  # type: ignore[arg-type]
    # float32 0.4 against float64 0.4
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-7)


def test_penalties_push_only_where_they_charge() -> None:
    c = torch.tensor([0.3, 0.8], requires_grad=True)
    u = torch.tensor(0.5)
    (hinge,) = torch.autograd.grad(hinge_penalty(c, u, power=1).sum(), c)
    (distance,) = torch.autograd.grad(distance_penalty(c, u, power=1).sum(), c)
    assert hinge.tolist() == [0.0, 1.0]
    assert distance.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("power", [0, 3, 1.5, True])
def test_other_powers_are_refused(power: int) -> None:
    with pytest.raises(InvalidSetting, match=r"GateConfig\(power=2\)"):
        hinge_penalty(torch.ones(1), torch.zeros(1), power=power)


def test_log_probability_by_hand() -> None:
    # p = .8 and .25; Pr(1, 0) = .8 x .75
    logits = torch.logit(torch.tensor([0.8, 0.25]))
    assert log_probability(logits, torch.tensor([1.0, 0.0])).exp().item() == pytest.approx(0.6)
    assert probabilities(LOGITS).sum().item() == pytest.approx(1.0)


def test_reinforce_is_unbiased_with_and_without_baseline() -> None:
    p = probabilities(LOGITS)
    for baseline in (0.0, 4.5, -20.0):
        each = [gradient_of_draw(i, torch.tensor(baseline)) for i in range(4)]
        mean = sum(weight * g for weight, g in zip(p, each, strict=True))
        torch.testing.assert_close(mean, exact_gradient(), rtol=1e-12, atol=1e-12)


def test_a_baseline_near_the_mean_lowers_the_variance() -> None:
    p = probabilities(LOGITS)

    def variance(baseline: Tensor) -> float:
        each = torch.stack([gradient_of_draw(i, baseline) for i in range(4)])
        return float((p[:, None] * (each - exact_gradient()) ** 2).sum())

    # By hand: without one it is about E[J]^2 E|grad log p|^2 = 21 x .4, with E[J] about 1.
    assert variance((p * OBJECTIVE).sum()) < 0.2 * variance(torch.tensor(0.0))


def test_leave_one_out_is_unbiased_over_all_pairs_of_draws() -> None:
    p = probabilities(LOGITS)
    total = torch.zeros(2, dtype=torch.float64)
    for first, second in itertools.product(range(4), repeat=2):
        logits = LOGITS.clone().requires_grad_()
        log_p = log_probability(logits.expand(2, 2), CONFIGURATIONS[[first, second]])[:, None]
        objective = OBJECTIVE[[first, second]][:, None]
        loss = score_function_loss(log_p, objective, leave_one_out(objective))
        total += p[first] * p[second] * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, exact_gradient(), rtol=1e-12, atol=1e-12)


def test_leave_one_out_leaves_the_own_draw_out() -> None:
    j = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 0.0]])
    assert leave_one_out(j).tolist() == [[4.0, 10.0], [3.5, 5.0], [1.5, 15.0]]


def test_concrete_turns_into_bernoulli_as_the_temperature_falls() -> None:
    noise = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)[:, None]
    logits = torch.tensor([[-2.0, 0.0, 1.3]], dtype=torch.float64).expand(10_000, 3)
    p = torch.sigmoid(logits[0])
    noise = noise.expand_as(logits)
    cold = concrete_gates(logits, noise, 1e-4)
    # an even grid of 10,000 has each frequency to 1e-4, and few gates are neither on nor off
    torch.testing.assert_close(cold.mean(dim=0), p, rtol=0, atol=2e-4)
    assert float(((cold > 0.01) & (cold < 0.99)).double().mean()) < 1e-3
    hard = bernoulli_gates(logits, 1.0 - noise)
    torch.testing.assert_close((cold >= 0.5).double(), hard)
    for temperature in (0.1, 1.0, 5.0):  # above 1/2 as often as on, at every temperature
        warm = concrete_gates(logits, noise, temperature)
        torch.testing.assert_close((warm > 0.5).double().mean(dim=0), p, rtol=0, atol=1e-4)


def test_concrete_is_sigmoid_of_noise_and_logit_over_temperature() -> None:
    # L = log(.75 / .25) = log 3; (log 3 + log 3) / 2 = log 3; sigmoid(log 3) = .75
    logits = torch.tensor([3.0], dtype=torch.float64).log()
    noise = torch.tensor([0.75], dtype=torch.float64)
    assert concrete_gates(logits, noise, 2.0).item() == pytest.approx(0.75)


def test_concrete_pulls_a_component_that_helps_on_and_one_that_hurts_off() -> None:
    logits = torch.zeros(500, 2, requires_grad=True)
    noise = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    gates = concrete_gates(logits, noise, 0.5)
    loss = (gates[:, 1] - gates[:, 0]).sum()  # the first helps, the second hurts
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool((gradient[:, 0] <= 0).all())
    assert bool((gradient[:, 1] >= 0).all())
    assert float(gradient.abs().mean()) > 0.01


def test_noise_at_the_edges_gives_finite_gates_and_gradients() -> None:
    logits = torch.zeros(2, requires_grad=True)
    gates = concrete_gates(logits, torch.tensor([0.0, 1.0]), 0.1)
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    assert torch.isfinite(gates).all()
    assert torch.isfinite(gradient).all()


def test_the_most_probable_components_are_forced_on_the_first_of_equals() -> None:
    logits = torch.tensor([[-3.0, -1.0, -2.0, -5.0, -5.0], [1.0, -1.0, -2.0, -4.0, 2.0]])
    gates = (logits >= 0).float()
    forced = keep_least(gates, logits, (3, 2), (2, 1))
    assert forced.tolist() == [[0, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert keep_least(gates, logits, (3, 2), (0, 0)).tolist() == gates.tolist()


def test_a_forced_relaxed_gate_is_one_and_keeps_its_gradient() -> None:
    logits = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    soft = torch.sigmoid(logits)
    forced = keep_least(soft, logits, (2,), (1,))
    assert forced[0, 0].item() == 1.0
    assert forced[0, 1].item() == soft[0, 1].item()
    (gradient,) = torch.autograd.grad(forced[0, 0], logits)
    assert gradient[0, 0].item() > 0


def small_network(kind: str) -> ThrottleableNetwork:
    torch.manual_seed(0)
    return make_network(SMALL[kind])


@pytest.mark.parametrize("kind", SMALL)
def test_sample_macs_are_the_executed_macs_of_every_row(kind: str) -> None:
    network = small_network(kind)
    generator = torch.Generator().manual_seed(0)
    masks = [(torch.rand(20, n, generator=generator) < 0.4).float() for n in network.components]
    macs = sample_macs(network.layer_costs(), masks)
    for row in range(20):
        active = [mask[row].nonzero().flatten() for mask in masks]
        assert macs[row].item() == executed_macs(network.layer_costs(), active)


@pytest.mark.parametrize("kind", SMALL)
def test_the_loss_of_relaxed_gates_reaches_every_component(kind: str) -> None:
    network = small_network(kind)
    logits = torch.zeros(8, sum(network.components), requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    gates = concrete_gates(logits, torch.rand(logits.shape, generator=generator), 1.0)
    x = torch.randn(8, *network.input_shape, generator=generator)
    output = network.masked(x, split_gates(gates, network.components))
    loss = torch.nn.functional.cross_entropy(output, torch.arange(8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    assert bool((gradient.abs().sum(dim=0) > 0).all())


def test_mac_weights_are_what_switching_one_component_off_saves() -> None:
    network = small_network("vgg")
    # By hand, 8 components; conv 64 pixels 3 -> 16, conv 16 pixels 16 -> 32, FC 4 x 32 -> 32 -> 10
    first = 64 * 9 * 3 * 2 + 16 * 9 * 2 * 32
    second = 16 * 9 * 16 * 4 + 4 * 4 * 32
    hidden = 4 * 32 * 4 + 4 * 10
    weights = component_weights(network, "macs")
    assert weights.tolist() == [first] * 8 + [second] * 8 + [hidden] * 8
    assert component_weights(network).tolist() == [1.0] * 24
    with pytest.raises(InvalidSetting, match=r"GateConfig\(weighting="):
        component_weights(network, "parameters")  # type: ignore[arg-type]


def test_modules_are_named_after_their_layers() -> None:
    assert module_names(small_network("vgg")) == ("convs.0", "convs.1", "hidden")


def test_gates_of_another_network_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"24 components of 3 T-modules.*\(5, 23\)"):
        split_gates(torch.ones(5, 23), (8, 8, 8))
