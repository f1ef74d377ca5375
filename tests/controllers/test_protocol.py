import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyball.controllers import Controller, NetworkController, check_arms, check_path
from flyball.controllers.budget import Calibration
from flyball.datapaths.errors import (
    ArmMismatch,
    DataError,
    ForeignArtifact,
    InvalidArms,
    InvalidSetting,
    NotFinite,
    ShapeMismatch,
    UnknownName,
)

ARMS = (0.5, 1.0)


class Constant(nn.Module):
    """The same logits for every observation."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(logits))

    values: Tensor

    def forward(self, observations: Tensor) -> Tensor:
        return self.values.expand(len(observations), -1)


def governed(
    network: nn.Module, arms: tuple[float, ...] = ARMS, calibration: Calibration | None = None
) -> NetworkController:
    return NetworkController(network, arms, 7, "context", (3,), calibration)


def test_propensities_are_the_softmax_of_the_logits() -> None:
    controller = governed(Constant(0.0, float(np.log(3.0))))
    np.testing.assert_allclose(
        controller.propensities(np.zeros((2, 3), np.float32)),
        [[0.25, 0.75]] * 2,
        rtol=1e-6,  # one float32 rounding in the logarithm, one in the softmax
    )
    assert controller.choose(np.zeros((2, 3), np.float32)).tolist() == [1, 1]


def test_a_network_controller_is_a_controller() -> None:
    assert isinstance(governed(Constant(0.0, 1.0)), Controller)


def test_many_rows_are_answered_as_one_by_one() -> None:
    network = nn.Linear(3, 2, dtype=torch.float32)
    rows = np.random.default_rng(0).integers(-3, 3, (2500, 3)).astype(np.float32)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0, 4.0], [0.5, -1.0, 0.25]]))
        network.bias.zero_()
    expected = rows @ np.array([[1.0, 0.5], [2.0, -1.0], [4.0, 0.25]], np.float32)
    assert np.array_equal(governed(network).logits(rows), expected)  # exact in binary


def test_no_rows_give_no_choices() -> None:
    assert governed(Constant(0.0, 1.0)).choose(np.zeros((0, 3), np.float32)).shape == (0,)


def test_observations_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"context of shape \(samples, 3\); \(5, 4\) came"):
        governed(Constant(0.0, 1.0)).choose(np.zeros((5, 4), np.float32))


def test_a_network_of_other_arms_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"2 arms gives logits .* gave \(5, 3\)"):
        governed(Constant(0.0, 1.0, 2.0)).choose(np.zeros((5, 3), np.float32))


def test_a_logit_that_is_no_number_is_named() -> None:
    network = nn.Linear(3, 2, bias=False)
    rows = np.zeros((4, 3), np.float32)
    rows[2, 0] = np.nan
    with pytest.raises(NotFinite, match="observation 2 gave"):
        governed(network).choose(rows)


def test_a_budget_needs_a_calibration() -> None:
    with pytest.raises(InvalidSetting, match="no calibration"):
        governed(Constant(0.0, 1.0)).choose(np.zeros((1, 3), np.float32), budget=0.7)


def test_a_price_moves_a_choice_to_the_cheaper_arm_when_it_outweighs_the_preference() -> None:
    # log odds 1 for the dear arm, which costs 0.5 more: the price that balances them is 2.
    calibration = Calibration(ratios=(0.5, 1.0), budgets=(0.5, 1.0), prices=(3.0, 1.0))
    controller = governed(Constant(0.0, 1.0), calibration=calibration)
    rows = np.zeros((1, 3), np.float32)
    assert controller.choose(rows).tolist() == [1]
    assert controller.choose(rows, budget=0.8).tolist() == [1]  # price 1.8
    assert controller.choose(rows, budget=0.7).tolist() == [0]  # price 2.2


@pytest.mark.parametrize("arms", [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_arms_increase_in_the_unit_interval(arms: tuple[float, ...]) -> None:
    with pytest.raises(InvalidArms):
        governed(Constant(0.0, 1.0), arms=arms)


def test_an_unknown_kind_of_observation_is_named() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'image'"):
        NetworkController(Constant(0.0, 1.0), ARMS, 7, "images", (3,))  # type: ignore[arg-type]


def test_a_calibration_of_other_arms_is_refused() -> None:
    with pytest.raises(ArmMismatch, match="2 arms, its calibration was measured on 3"):
        governed(Constant(0.0, 1.0), calibration=Calibration((0.1, 0.5, 1.0), (0.5,), (0.0,)))


def test_a_controller_of_another_number_of_arms_is_told_from_the_table() -> None:
    controller = governed(Constant(0.0, 1.0))
    check_arms(controller, (0.5, 1.0), "the outcome table")
    with pytest.raises(
        ArmMismatch,
        match=r"among 2 arms, the outcome table \(runs/a\) has 3.*flyball outcomes --arms 2",
    ):
        check_arms(controller, (0.2, 0.5, 1.0), "the outcome table (runs/a)")


def test_a_controller_of_other_utilizations_names_the_first_that_differs() -> None:
    with pytest.raises(ArmMismatch, match=r"Arm 0 of the controller is u = 0.5.*u = 0.4"):
        check_arms(governed(Constant(0.0, 1.0)), (0.4, 1.0), "the data path")


def test_a_controller_of_another_data_path_is_refused() -> None:
    controller = NetworkController(
        Constant(0.0, 1.0), ARMS, 7, "context", (3,), path_fingerprint="aaaa"
    )
    check_path(controller, "aaaa", "the data path in runs/a")
    check_path(governed(Constant(0.0, 1.0)), "bbbb", "the data path in runs/a")
    with pytest.raises(ForeignArtifact, match="over data path aaaa, the data path in runs/a is b"):
        check_path(controller, "bbbb", "the data path in runs/a")
