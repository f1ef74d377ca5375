"""Laws of the gradients that teach a policy, and what the published one breaks. B, K as there."""

import math

import pytest
import torch

from flyball.controllers.estimators import (
    all_arm_loss,
    behaviour,
    entropy_of,
    epsilon_at,
    paper_loss,
    ratio_loss,
    sample_arms,
)

EPSILON = 0.3
# b = 0.7 pi + 0.1 = (0.5, 0.3, 0.2): a batch of ten holds each arm as often as b expects.
POLICY = (4 / 7, 2 / 7, 1 / 7)
BEHAVED = (0.5, 0.3, 0.2)
ARMS = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)
# The law compares sums of ten float32 terms.
TOLERANCE = 1e-6


def logits() -> torch.Tensor:
    return torch.tensor(POLICY).log().repeat(len(ARMS), 1).requires_grad_()


def expected_batch(pays: tuple[float, float, float]) -> tuple[torch.Tensor, ...]:
    arm = torch.tensor(ARMS)[:, None]
    return arm, torch.tensor(BEHAVED)[arm], torch.tensor(pays)[arm]


def ratio_gradient(pays: tuple[float, float, float]) -> torch.Tensor:
    start = logits()
    arm, behaved, reward = expected_batch(pays)
    loss = ratio_loss(torch.log_softmax(start, -1), arm, behaved, reward, epsilon=EPSILON)
    (gradient,) = torch.autograd.grad(loss, start)
    return gradient.sum(0)


def paper_gradient(pays: tuple[float, float, float]) -> torch.Tensor:
    start = logits()
    arm, _, reward = expected_batch(pays)
    loss = paper_loss(torch.log_softmax(start, -1), arm, reward)
    (gradient,) = torch.autograd.grad(loss, start)
    return gradient.sum(0)


def all_arm_gradient(pays: tuple[float, float, float]) -> torch.Tensor:
    start = logits()
    rewards = torch.tensor(pays).repeat(len(ARMS), 1)
    (gradient,) = torch.autograd.grad(all_arm_loss(torch.softmax(start, -1), rewards), start)
    return gradient.sum(0)


def test_behaviour_is_the_mixture_by_hand() -> None:
    mixed = behaviour(torch.tensor([POLICY]), EPSILON)
    torch.testing.assert_close(mixed, torch.tensor([BEHAVED]))


@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.3, 0.9])
def test_the_ratio_never_exceeds_one_over_one_minus_epsilon(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    policy = torch.softmax(10 * torch.randn(1000, 8, generator=generator), -1)
    ratio = policy / behaviour(policy, epsilon)
    # One rounding of the quotient.
    assert float(ratio.nan_to_num().max()) <= 1.0 / (1.0 - epsilon) * (1 + 1e-6)


def test_the_expected_ratio_gradient_is_the_exact_one() -> None:
    pays = (1.0, -2.0, 0.5)
    torch.testing.assert_close(
        ratio_gradient(pays), all_arm_gradient(pays), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_the_exact_gradient_is_minus_pi_times_the_advantage() -> None:
    pays = (1.0, -2.0, 0.5)
    mean = sum(p * r for p, r in zip(POLICY, pays, strict=True))
    by_hand = torch.tensor([-p * (r - mean) for p, r in zip(POLICY, pays, strict=True)])
    torch.testing.assert_close(all_arm_gradient(pays), by_hand, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("pay", [1.0, -1.0])
def test_where_all_arms_pay_the_same_the_corrected_gradients_move_nothing(pay: float) -> None:
    zero = torch.zeros(3)
    torch.testing.assert_close(ratio_gradient((pay,) * 3), zero, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(all_arm_gradient((pay,) * 3), zero, atol=TOLERANCE, rtol=0)


def test_where_all_arms_lose_the_same_the_paper_gradient_feeds_the_likeliest_arm() -> None:
    # Descent adds pi - b = epsilon (pi - 1/3) to the logits: the rich get richer, and collapse.
    step = -paper_gradient((-1.0, -1.0, -1.0))
    by_hand = torch.tensor([p - b for p, b in zip(POLICY, BEHAVED, strict=True)])
    torch.testing.assert_close(step, by_hand, atol=TOLERANCE, rtol=TOLERANCE)
    assert step[0] > 0 > step[1] > step[2]


def test_losses_by_hand() -> None:
    log_policy = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    arm, reward = torch.tensor([[1], [0]]), torch.tensor([[2.0], [-1.0]])
    behaved = torch.tensor([[0.75], [0.5]])
    paper = -(2 * math.log(0.75) - math.log(0.5)) / 2
    ratio = -(1.5 * math.log(0.75) - 1.5 * math.log(0.5)) / 2
    exact = -(0.25 * 1 + 0.75 * 2 + 0.5 * -1 + 0.5 * 3) / 2
    assert float(paper_loss(log_policy, arm, reward)) == pytest.approx(paper)
    got = ratio_loss(log_policy, arm, behaved, reward, epsilon=0.0)
    assert float(got) == pytest.approx(ratio)
    rewards = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    assert float(all_arm_loss(log_policy.exp(), rewards)) == pytest.approx(exact)


def test_a_stale_sample_weighs_no_more_than_the_bound() -> None:
    start = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    arm, reward = torch.tensor([[0], [1]]), torch.tensor([[1.0], [-1.0]])
    behaved = torch.tensor([[0.001], [0.5]])
    loss = ratio_loss(torch.log_softmax(start, -1), arm, behaved, reward, epsilon=0.2)
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient[0, 0].item() == pytest.approx(-1.25 * 0.5 / 2)


def test_entropy_of_the_uniform_policy_is_log_k_and_of_a_sure_one_0() -> None:
    uniform = torch.full((4, 10), -math.log(10))
    assert float(entropy_of(uniform.exp(), uniform)) == pytest.approx(math.log(10))
    sure = torch.log_softmax(torch.tensor([[100.0, 0.0]]), -1)
    assert float(entropy_of(sure.exp(), sure)) == pytest.approx(0.0, abs=1e-12)


def test_arms_are_drawn_as_often_as_their_probability_says() -> None:
    generator = torch.Generator().manual_seed(0)
    arm = sample_arms(torch.tensor(BEHAVED).repeat(100_000, 1), generator)
    share = torch.bincount(arm[:, 0], minlength=3) / 100_000
    # Five standard deviations of a share of 100 000 draws.
    torch.testing.assert_close(share, torch.tensor(BEHAVED), atol=0.008, rtol=0)


def test_an_arm_without_probability_is_never_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    arm = sample_arms(torch.tensor([0.0, 1.0, 0.0]).repeat(100_000, 1), generator)
    assert bool((arm == 1).all())


def test_one_generator_state_draws_one_batch_of_arms() -> None:
    policy = torch.full((50, 4), 0.25)
    first, second = (sample_arms(policy, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_exploration_falls_in_a_straight_line_and_stays() -> None:
    assert [epsilon_at(done, 100, 0.3, 0.1) for done in (0, 50, 100, 500)] == pytest.approx(
        [0.3, 0.2, 0.1, 0.1]
    )
