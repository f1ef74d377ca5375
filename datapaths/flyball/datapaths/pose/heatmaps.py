"""Heat maps: what a pose network is taught, what that costs, and where its peaks are.

B images, J joints, h, w of a heat map, H, W of the input. Cell (i, j) of a map stands for the
input's square of W / w by H / h pixels, whose centre is at ((j + .5) W / w, (i + .5) H / h).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flyball.datapaths.errors import DataError, InvalidSetting, unknown_name

__all__ = ["Poses", "Targets", "decode_heatmaps", "gaussian_targets", "heatmap_loss"]

Size = tuple[int, int]


class Targets(NamedTuple):
    """What a network is taught.

    Attributes:
        heatmaps: (B, J, h, w), in [0, 1]; all 0 where the weight is.
        weights: 1 where the joint is visible and within the map, else 0; (B, J).
    """

    heatmaps: Tensor
    weights: Tensor


class Poses(NamedTuple):
    """Where a network sees joints.

    Attributes:
        points: x, y in input pixels; (B, J, 2).
        peaks: the highest value of each map, in [0, 1]; (B, J).
    """

    points: Tensor
    peaks: Tensor


def gaussian_targets(
    key_points: Tensor,
    map_size: Size,
    input_size: Size,
    *,
    sigma: float = 2.0,
    centred: Literal["cell", "exact"] = "cell",
) -> Targets:
    """Draws a Gaussian bump with a peak of 1 for every visible joint, as for stacked hourglasses.

    Args:
        key_points: x, y in input pixels, and visible (above 0); (B, J, 3).
        map_size, input_size: (h, w) and (H, W).
        sigma: in cells; 2 is the published one for 64 x 64 maps. Nothing is drawn beyond 3 sigma.
        centred: "cell" puts the peak at the cell that holds the joint, as published; "exact" puts
            it where the joint is, so that no cell may reach 1; it helps where maps are coarse.

    Raises:
        DataError: the key points have another shape.
        InvalidSetting: sigma is not above 0, or a size is empty.
        UnknownName: there is no such way to place a peak.
    """
    if key_points.ndim != 3 or key_points.shape[-1] != 3:
        raise DataError(
            "Key points are x, y and visible of every joint of every image, (B, J, 3); got "
            f"{tuple(key_points.shape)}. Stack them so."
        )
    if not sigma > 0.0 or min(*map_size, *input_size) < 1:
        raise InvalidSetting(
            "Heat maps need a sigma above 0 and at least one cell and pixel a side; got sigma "
            f"{sigma}, maps of {map_size} for inputs of {input_size}. Give e.g. sigma=2."
        )
    if centred not in ("cell", "exact"):
        raise unknown_name("way to place a peak", centred, ("cell", "exact"))
    (height, width), (rows, columns) = map_size, input_size
    # in cells; -.5 so that a whole number is a cell's centre
    x = key_points[..., 0].float() * (width / columns) - 0.5
    y = key_points[..., 1].float() * (height / rows) - 0.5
    within = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    weights = ((key_points[..., 2] > 0) & within).float()
    if centred == "cell":
        x, y = torch.floor(x + 0.5), torch.floor(y + 0.5)
    across = _bump(x, width, sigma)
    down = _bump(y, height, sigma)
    heatmaps = down[..., :, None] * across[..., None, :] * weights[..., None, None]
    return Targets(heatmaps, weights)


def heatmap_loss(outputs: Sequence[Tensor] | Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error over the heat maps, summed over the stacks.

    Every stack is taught the same maps. Maps of joints that are not visible count as without
    error, and the mean is over all B J h w cells, as in Fast Pose Distillation.

    Args:
        outputs: of each stack, (B, J, h, w); one tensor for one stack.
        target: (B, J, h, w).
        visible: weight of each joint, in [0, 1]; (B, J).

    Raises:
        DataError: there is no stack, or the shapes differ.
    """
    stacks = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    shapes = [tuple(stack.shape) for stack in stacks]
    if not stacks or set(shapes) != {tuple(target.shape)} or visible.shape != target.shape[:2]:
        raise DataError(
            "Every stack gives a heat map for each joint that is taught, (B, J, h, w), and visible "
            f"is (B, J); got stacks of {shapes}, targets of {tuple(target.shape)}, visible of "
            f"{tuple(visible.shape)}. Draw the targets at the size of the network's maps."
        )
    weight = visible.to(target.dtype)[..., None, None]
    errors = [((stack - target).square() * weight).mean() for stack in stacks]
    return torch.stack(errors).sum()


def decode_heatmaps(heatmaps: Tensor, input_size: Size) -> Poses:
    """Finds each map's peak, moved by a quarter of a cell towards the higher neighbour.

    The quarter is the published one: the true place lies on that side of the cell's centre. At the
    map's edge, where a neighbour is missing, the peak stays.

    Args:
        heatmaps: (B, J, h, w).
        input_size: (H, W).

    Raises:
        DataError: these are no heat maps.
    """
    if heatmaps.ndim != 4 or 0 in heatmaps.shape[1:]:
        raise DataError(
            "Heat maps are (B, J, h, w), with at least one cell; got "
            f"{tuple(heatmaps.shape)}. Give the last stack's output."
        )
    height, width = heatmaps.shape[2:]
    flat = heatmaps.float().flatten(2)
    peaks, place = flat.max(dim=2)
    row, column = torch.div(place, width, rounding_mode="floor"), place % width
    x = column.float() + _quarter(flat, row, column, height, width, across=True)
    y = row.float() + _quarter(flat, row, column, height, width, across=False)
    rows, columns = input_size
    scale = torch.tensor([columns / width, rows / height], device=flat.device)
    return Poses((torch.stack([x, y], dim=2) + 0.5) * scale, peaks.clamp(0.0, 1.0))


def _bump(centre: Tensor, cells: int, sigma: float) -> Tensor:
    """One side of a Gaussian: (B, J, cells)."""
    places = torch.arange(cells, device=centre.device, dtype=torch.float32)
    distance = places - centre[..., None]
    bump = torch.exp(distance.square() / (-2.0 * sigma * sigma))
    return bump * (distance.abs() <= 3.0 * sigma)


def _quarter(
    flat: Tensor, row: Tensor, column: Tensor, height: int, width: int, *, across: bool
) -> Tensor:
    """-.25, 0 or .25 of a cell along one axis; (B, J)."""
    at, cells, step = (column, width, 1) if across else (row, height, width)
    place = row * width + column
    inner = (at > 0) & (at < cells - 1)
    after = flat.gather(2, torch.where(inner, place + step, place)[..., None])[..., 0]
    before = flat.gather(2, torch.where(inner, place - step, place)[..., None])[..., 0]
    return 0.25 * torch.sign(after - before)
