"""Families of masks that sparse operators are tried on, and thread counts."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

FAMILIES = ("empty", "full", "isolated", "border", "checkerboard", "blobs", "independent")
MaskOf = Callable[..., Tensor]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family's name."""
    return str(request.param)


@pytest.fixture
def mask_of() -> MaskOf:
    """mask_of(family, batch, height, width, seed=0): bool (B, 1, H, W), another one each image.

    The family "mixed" goes through all the others, image by image.
    """
    return _mask


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One and two threads; as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield int(request.param)
    torch.set_num_threads(before)


def _mask(family: str, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = []
    for place in range(batch):
        name = FAMILIES[place % len(FAMILIES)] if family == "mixed" else family
        images.append(_image(name, height, width, place, generator))
    return torch.stack(images)[:, None]


def _image(family: str, height: int, width: int, place: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    if family == "full":
        mask[:] = True
    elif family == "isolated":
        mask[place % 2 :: 4, place % 3 :: 5] = True
    elif family == "border":
        mask[[0, -1]] = True
        mask[:, [0, -1]] = True
    elif family == "checkerboard":
        mask = (rows + columns) % 2 == place % 2
    elif family == "blobs":
        coarse = torch.randn(1, 1, 4, 4, generator=generator)
        field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        mask = field[0, 0] > 0.3
    elif family == "independent":
        mask = torch.rand(height, width, generator=generator) < 0.3
    return mask
