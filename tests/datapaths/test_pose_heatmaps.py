"""Target heat maps, the loss over stacks, and peaks back to pixels: hand-computed."""

import math

import pytest
import torch

from flyball.datapaths.errors import DataError, InvalidSetting, UnknownName
from flyball.datapaths.pose import decode_heatmaps, gaussian_targets, heatmap_loss


def points(*xyv: tuple[float, float, float]) -> torch.Tensor:
    """One image with those joints."""
    return torch.tensor([xyv])


def test_the_peak_is_one_in_the_cell_that_holds_the_joint() -> None:
    # 64 pixels to 16 cells: x 30 is in cell 7, y 9 in cell 2
    made = gaussian_targets(points((30.0, 9.0, 1.0)), (16, 16), (64, 64), sigma=1.0)
    assert made.weights.tolist() == [[1.0]]
    assert made.heatmaps.shape == (1, 1, 16, 16)
    assert made.heatmaps[0, 0, 2, 7] == 1.0
    assert made.heatmaps.max() == 1.0


def test_the_bump_falls_off_as_a_gaussian_and_ends_at_three_sigma() -> None:
    heat = gaussian_targets(points((32.0, 32.0, 1.0)), (16, 16), (64, 64), sigma=1.0).heatmaps[0, 0]
    assert heat[8, 9] == pytest.approx(math.exp(-0.5))
    assert heat[9, 9] == pytest.approx(math.exp(-1.0))
    assert heat[8, 11] == pytest.approx(math.exp(-4.5))
    assert heat[8, 12] == 0.0


def test_an_exact_bump_stands_where_the_joint_is() -> None:
    # 32 pixels are 8 cells: the border of cells 7 and 8
    made = gaussian_targets(
        points((32.0, 32.0, 1.0)), (16, 16), (64, 64), sigma=1.0, centred="exact"
    )
    heat = made.heatmaps[0, 0]
    assert heat[7, 7] == heat[8, 8] == pytest.approx(math.exp(-0.25))


def test_width_and_height_are_told_apart() -> None:
    heat = gaussian_targets(points((39.0, 1.0, 1.0)), (4, 10), (16, 40), sigma=1.0).heatmaps
    assert heat.shape == (1, 1, 4, 10)
    assert heat[0, 0, 0, 9] == 1.0


@pytest.mark.parametrize(
    "joint",
    [(30.0, 9.0, 0.0), (-1.0, 9.0, 1.0), (64.0, 9.0, 1.0), (9.0, -0.1, 1.0), (9.0, 64.0, 1.0)],
)
def test_a_joint_unseen_or_outside_weighs_nothing(joint: tuple[float, float, float]) -> None:
    made = gaussian_targets(points(joint), (16, 16), (64, 64))
    assert made.weights.tolist() == [[0.0]]
    assert made.heatmaps.abs().sum() == 0.0


def test_the_loss_is_the_mean_square_summed_over_stacks() -> None:
    target = torch.zeros(1, 2, 2, 2)
    first, second = torch.zeros_like(target), torch.zeros_like(target)
    first[0, 0, 0, 0] = 2.0  # 4 / 8
    second[0, 1, 1, 1] = 1.0  # 1 / 8
    seen = torch.ones(1, 2)
    assert float(heatmap_loss([first, second], target, seen)) == pytest.approx(0.625)
    assert float(heatmap_loss(first, target, seen)) == pytest.approx(0.5)


def test_what_is_not_visible_costs_nothing_and_teaches_nothing() -> None:
    output = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    loss = heatmap_loss([output], torch.zeros(2, 3, 4, 4), seen)
    loss.backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert (output.grad.flatten(2).abs().sum(2) > 0).tolist() == [[True, False, True], [False] * 3]


def test_a_target_decodes_to_its_cell_and_a_lopsided_peak_to_a_quarter_beside() -> None:
    heat = torch.zeros(1, 3, 8, 8)
    heat[0, 0, 3, 5] = 0.8  # alone: the cell's centre
    heat[0, 1, 3, 5], heat[0, 1, 3, 6], heat[0, 1, 2, 5] = 0.8, 0.4, 0.3  # right and up
    heat[0, 2, 0, 7], heat[0, 2, 1, 7], heat[0, 2, 0, 6] = 1.7, 0.4, 0.4  # in a corner
    found = decode_heatmaps(heat, (32, 64))  # a cell is 4 high and 8 wide
    assert found.points[0].tolist() == [[44.0, 14.0], [46.0, 13.0], [60.0, 2.0]]
    torch.testing.assert_close(found.peaks, torch.tensor([[0.8, 0.8, 1.0]]))


def test_a_peak_below_zero_is_no_confidence() -> None:
    assert decode_heatmaps(torch.full((1, 1, 2, 2), -0.3), (8, 8)).peaks.tolist() == [[0.0]]


@pytest.mark.parametrize(("way", "most"), [("exact", 0.25), ("cell", 0.5)])
def test_decoding_a_target_gives_the_joint_back(way: str, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    places = 4 + 56 * torch.rand(50, 16, 2, generator=generator)  # edge cells stay unshifted
    truth = torch.cat([places, torch.ones(50, 16, 1)], dim=2)
    made = gaussian_targets(truth, (16, 16), (64, 64), sigma=1.5, centred=way)  # type: ignore[arg-type]
    error = (decode_heatmaps(made.heatmaps, (64, 64)).points - places).abs() / 4.0
    # in cells; floats may be a hair off
    assert error.max() <= most + 1e-5


def test_bad_targets_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(B, J, 3\); got \(16, 2\)"):
        gaussian_targets(torch.zeros(16, 2), (8, 8), (32, 32))
    with pytest.raises(InvalidSetting, match="sigma above 0"):
        gaussian_targets(torch.zeros(1, 16, 3), (8, 8), (32, 32), sigma=0.0)
    with pytest.raises(InvalidSetting, match="sigma above 0"):
        gaussian_targets(torch.zeros(1, 16, 3), (8, 8), (32, 32), sigma=math.nan)
    with pytest.raises(InvalidSetting, match="one cell"):
        gaussian_targets(torch.zeros(1, 16, 3), (0, 8), (32, 32))
    with pytest.raises(UnknownName, match="Did you mean 'cell'"):
        gaussian_targets(torch.zeros(1, 16, 3), (8, 8), (32, 32), centred="cel")  # type: ignore[arg-type]


def test_a_loss_of_other_shapes_is_refused() -> None:
    target, seen = torch.zeros(2, 3, 4, 4), torch.ones(2, 3)
    with pytest.raises(DataError, match="size of the network's maps"):
        heatmap_loss([torch.zeros(2, 3, 8, 8)], target, seen)
    with pytest.raises(DataError, match="Every stack"):
        heatmap_loss([target, torch.zeros(2, 1, 4, 4)], target, seen)
    with pytest.raises(DataError, match="Every stack"):
        heatmap_loss([], target, seen)
    with pytest.raises(DataError, match="visible"):
        heatmap_loss([target], target, torch.ones(3))


@pytest.mark.parametrize("shape", [(16, 8, 8), (1, 16, 0, 8)])
def test_what_is_no_heat_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"Heat maps are \(B, J, h, w\)"):
        decode_heatmaps(torch.zeros(shape), (32, 32))
