"""How rows are dealt to the four splits: class by class, by share and by seed.

N samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.config import Fractions
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.splits import SPLITS, TEST, split_code

__all__ = ["deal", "sizes_of"]


def deal(
    labels: NDArray[np.int64],
    is_test: NDArray[np.bool_],
    classes: Sequence[str],
    fractions: Fractions,
    seed: int,
) -> NDArray[np.int8]:
    """Gives every row a split; each class is dealt on its own, so all splits are stratified.

    Args:
        labels: index into `classes`; (N,).
        is_test: the row belongs to the source's own test part; (N,). Where any does, those rows
            are `test`, and the others are dealt to the other three splits.
        classes: class names.
        fractions: shares of the splits, in their order.
        seed: of the deal; a class is dealt alike whatever the other classes are.

    Returns:
        Split codes; int8 (N,).

    Raises:
        DataError: a class has fewer images than there are splits to fill.
        InvalidSetting: the share of `test` is 0 and the source has no test part.
    """
    has_test = bool(is_test.any())
    if not has_test and fractions[3] <= 0.0:
        raise InvalidSetting(
            "The share of test may be 0 only where the source has its own test part, and this one "
            f"has none; got data.fractions={','.join(str(share) for share in fractions)}. "
            "Give test a share, e.g. --set data.fractions=0.5,0.25,0.1,0.15."
        )
    shares = np.asarray(fractions[:3] if has_test else fractions, np.float64)
    split = np.full(len(labels), split_code(TEST), np.int8)
    for label, name in enumerate(classes):
        own = labels == label
        if has_test and not (own & is_test).any():
            raise DataError(f"Class {name!r} has no image in the test part. Add some there.")
        rows = np.flatnonzero(own & ~is_test)
        if len(rows) < len(shares):
            raise DataError(
                f"Every class needs an image for each of {', '.join(SPLITS[: len(shares)])}; "
                f"class {name!r} has {len(rows)}"
                f"{' outside the test part' if has_test else ''}. "
                "Add images to it, or raise data.limit if it is set."
            )
        shuffled = np.random.default_rng([seed, label]).permutation(rows)
        sizes = sizes_of(len(rows), shares)
        split[shuffled] = np.repeat(np.arange(len(shares), dtype=np.int8), sizes)
    return split


def sizes_of(count: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Splits `count` by shares to whole numbers that sum to it: largest remainder, none below 1."""
    exact = shares / shares.sum() * count
    sizes: NDArray[np.int64] = np.maximum(np.floor(exact).astype(np.int64), 1)
    while sizes.sum() < count:
        sizes[np.argmax(exact - sizes)] += 1
    while sizes.sum() > count:
        sizes[np.argmax(np.where(sizes > 1, sizes - exact, -np.inf))] -= 1
    return sizes
