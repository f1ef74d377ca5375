"""Pixel-wise execution masks: mask units, the binary Gumbel-softmax, and what one pass decides.

B batch, C channels, H, W input pixels, Ho, Wo output pixels, b conditional blocks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.errors import InvalidSetting, NotFinite, unknown_name
from flyball.kernels.sparse_index import dilate_mask

if TYPE_CHECKING:
    from flyball.datapaths.dynconv.blocks import ConditionalBlock

__all__ = [
    "MASK_UNITS",
    "Decision",
    "MaskUnitKind",
    "Masking",
    "PointUnit",
    "SparseMasking",
    "SqueezeUnit",
    "TrainingMasking",
    "logistic_noise",
    "make_unit",
    "straight_through",
    "upscaled",
]

MaskUnitKind = Literal["squeeze", "conv", "none"]
MASK_UNITS: tuple[str, ...] = ("squeeze", "conv", "none")


class SqueezeUnit(nn.Module):
    """A 3x3 convolution to one channel plus a linear layer on the pooled input.

    The mask unit of classification networks (DynConv section 4.1.1), taken from SACT.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, stride=stride, padding=1, bias=False)
        self.linear = nn.Linear(channels, 1)
        _start_undecided(self.conv, self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """Soft decisions (B, 1, Ho, Wo) of inputs (B, C, H, W)."""
        whole: Tensor = self.linear(x.mean(dim=(2, 3)))
        pixels: Tensor = self.conv(x)
        return pixels + whole[:, :, None, None]


class PointUnit(nn.Module):
    """A 1x1 convolution: the mask unit of pose estimation (DynConv section 4.2, Table 2)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, stride=stride)
        _start_undecided(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Soft decisions (B, 1, Ho, Wo) of inputs (B, C, H, W)."""
        decisions: Tensor = self.conv(x)
        return decisions


def make_unit(kind: MaskUnitKind, channels: int, stride: int) -> nn.Module | None:
    """The mask unit of a kind; None for "none": the block always runs everywhere.

    Raises:
        UnknownName: there is no such unit.
    """
    if kind not in MASK_UNITS:
        raise unknown_name("mask unit", str(kind), MASK_UNITS)
    if kind == "none":
        return None
    return SqueezeUnit(channels, stride) if kind == "squeeze" else PointUnit(channels, stride)


def logistic_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """g1 - g2 of DynConv Eq. (8): the difference of two Gumbel samples is a logistic sample."""
    drawn = torch.rand(like.shape, generator=generator, dtype=torch.float32)
    drawn = drawn.clamp_(1e-6, 1.0 - 1e-6)
    return (drawn.log() - (1.0 - drawn).log()).to(like.device)


def straight_through(soft: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Hard decisions whose gradient is that of the soft ones (DynConv Eqs. 8 and 9).

    Args:
        soft: m, any shape; a pixel runs where m + noise >= 0.
        temperature: tau, > 0.
        noise: g1 - g2; None: none, as in inference.

    Returns:
        0 or 1, of soft's shape; the gradient is sigmoid((m + noise) / tau)'s.

    Raises:
        InvalidSetting: the temperature is not above 0.
    """
    if not temperature > 0:
        raise InvalidSetting(
            f"The temperature of the Gumbel-softmax is above 0; it is {temperature}. "
            "Set --set path.sparsity.temperature=1."
        )
    moved = soft if noise is None else soft + noise
    y = torch.sigmoid(moved / temperature)
    hard = (moved >= 0).to(y.dtype)
    return hard + (y - y.detach())


class Decision(NamedTuple):
    """What one conditional block runs in one pass.

    Attributes:
        block: its position among the conditional blocks.
        active: pixels it runs on, of every image; float (B,), with gradients while training.
        dilated: pixels its first convolution runs on, float (B,); no gradients.
        mask: (B, 1, Ho, Wo), where the pass keeps masks; None: everywhere, or not kept.
    """

    block: int
    active: Tensor
    dilated: Tensor
    mask: Tensor | None


class Masking:
    """Decides where the conditional blocks of one pass run; here: everywhere.

    Attributes:
        is_sparse: blocks compute active pixels alone, with packed weights and folded norms.
        decisions: of this pass, in order of execution.
        visits: every block that ran and the (H, W) of its input.
    """

    def __init__(self, *, is_sparse: bool = False) -> None:
        self.is_sparse = is_sparse
        self.decisions: list[Decision] = []
        self.visits: list[tuple[ConditionalBlock, tuple[int, int]]] = []

    def decide(self, block: "ConditionalBlock", x: Tensor) -> Tensor | None:
        """The mask of a block for its input (B, C, H, W); None: every pixel."""
        self.visits.append((block, (x.shape[2], x.shape[3])))
        return None

    def _note(self, block: "ConditionalBlock", x: Tensor, mask: Tensor, *, keep: bool) -> None:
        size = (x.shape[2], x.shape[3])
        if block.dilates_output:
            wide = dilate_mask(mask.detach() > 0.5, stride=1)
        else:
            wide = dilate_mask(mask.detach() > 0.5, stride=block.stride, size=size)
        active = mask.float().sum(dim=(1, 2, 3))
        dilated = wide.sum(dim=(1, 2, 3)).float()
        kept = mask.detach() if keep else None
        self.decisions.append(Decision(block.position, active, dilated, kept))


class TrainingMasking(Masking):
    """Masks with gradients for dense, masked execution.

    Args:
        shifts: added to every soft decision: (B, b), or None.
        temperature: tau.
        generator: draws the Gumbel noise; None: no noise.
    """

    def __init__(
        self,
        shifts: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self._shifts, self._temperature, self._generator = shifts, temperature, generator
        self._keep = keep

    def decide(self, block: "ConditionalBlock", x: Tensor) -> Tensor | None:
        super().decide(block, x)
        if block.unit is None:
            return None
        # Sums over many channels and a threshold: half precision would decide by rounding.
        with torch.autocast(x.device.type, enabled=False):
            is_half = x.dtype in (torch.float16, torch.bfloat16)
            soft = block.unit(x.float() if is_half else x)
        if self._shifts is not None:
            soft = soft + self._shifts[:, block.position, None, None, None]
        noise = None if self._generator is None else logistic_noise(soft, self._generator)
        mask = straight_through(soft, self._temperature, noise)
        self._note(block, x, mask, keep=self._keep)
        return mask


class SparseMasking(Masking):
    """Hard masks for sparse execution: active where the soft decision is >= 0.

    Args:
        shifts: added to every soft decision: (B, b), or None.
        given: masks to use instead of the units', block by block, bool (B, 1, Ho, Wo) each; for
            benchmarks.
        is_counted: whether decisions are noted; benchmarks of speed leave that out.
        keep: whether noted decisions keep their masks.
    """

    def __init__(
        self,
        shifts: Tensor | None = None,
        *,
        given: Sequence[Tensor] | None = None,
        is_counted: bool = True,
        keep: bool = False,
    ) -> None:
        super().__init__(is_sparse=True)
        self._shifts, self._given = shifts, given
        self._is_counted, self._keep = is_counted, keep
        self._nans: list[Tensor] = []

    def check(self) -> None:
        """That every soft decision of the pass was a number; waits for the device.

        Raises:
            NotFinite: one was NaN; names the first block.
        """
        if self._nans and bool(torch.stack(self._nans).any()):
            block = int(torch.stack(self._nans).nonzero()[0])
            raise NotFinite(
                f"The mask unit of block {block} gave NaN for its soft decisions. "
                "Train the network again with a lower learning rate."
            )

    def decide(self, block: "ConditionalBlock", x: Tensor) -> Tensor | None:
        super().decide(block, x)
        if block.unit is None:
            return None
        if self._given is not None:
            mask = self._given[block.position]
        else:
            soft = block.unit(x)
            if self._shifts is not None:
                soft = soft + self._shifts[:, block.position, None, None, None]
            self._nans.append(soft.isnan().any())
            mask = soft >= 0
        if self._is_counted:
            self._note(block, x, mask, keep=self._keep)
        return mask


def _start_undecided(*layers: nn.Conv2d | nn.Linear) -> None:
    """Small weights and no bias: at the start only the requested budget decides."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.1 / layer.weight[0].numel() ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def upscaled(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (B, 1, h, w) on a finer grid, (B, 1, H, W): how ponder-cost maps are summed."""
    return F.interpolate(mask.float(), size=size, mode="nearest")
