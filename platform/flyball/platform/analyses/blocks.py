"""Which blocks die: execution of every block in training, and of two criteria at the end.

E epochs, b conditional blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import TEST
from flyball.platform.analyses.blocks_picture import blocks_figure
from flyball.platform.analyses.dynamic import check_dynamic, spent_at, spread_rows
from flyball.platform.analyses.tables import aligned
from flyball.platform.job import Job

__all__ = [
    "DEAD",
    "BlockRow",
    "Blocks",
    "Side",
    "State",
    "block_deaths",
    "executed_in_training",
    "network_twin",
]

DEAD = 0.01
"""A block that runs on less than this share of its pixels, or all but this, decides nothing."""
BUDGETS = (0.1, 0.25, 0.5, 0.75)
State = Literal["alive", "never", "always"]


@dataclass(frozen=True)
class BlockRow:
    """One block of a trained network at one budget.

    Attributes:
        criterion: of the training.
        u: share of the conditional MACs that was asked for.
        block: its position, from 0.
        label: its name in the network.
        rate: mean over the images of the share of its pixels that it ran on.
        state: "never" or "always", where the rate is less than 1 % from 0 or 1; else "alive".
        accuracy: of the network at this budget.
        samples: how many images were measured.
    """

    criterion: str
    u: float
    block: int
    label: str
    rate: float
    state: State
    accuracy: float
    samples: int


@dataclass(frozen=True, eq=False)
class Side:
    """A trained network.

    Attributes:
        criterion: of its training.
        history: mean share of its MACs that every block executed in every epoch, (E, b).
        rows: by budget and block.
    """

    criterion: str
    history: NDArray[np.float64]
    rows: tuple[BlockRow, ...]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Those that were asked for, increasing."""
        return tuple(dict.fromkeys(row.u for row in self.rows))

    def at(self, u: float) -> list[BlockRow]:
        """Every block at a budget."""
        return [row for row in self.rows if row.u == u]

    def dead(self, u: float | None = None) -> float:
        """Share of the blocks that are dead at a budget; None: mean over all of them."""
        taken = self.rows if u is None else self.at(u)
        return sum(row.state != "alive" for row in taken) / len(taken)

    @property
    def lifeless(self) -> int:
        """Blocks that are dead at every budget: their masks never depend on the image."""
        alive = {row.block for row in self.rows if row.state == "alive"}
        return len({row.block for row in self.rows} - alive)


@dataclass(frozen=True)
class Blocks:
    """DynConv Fig. 9: how the budget of every block moves in training, under two criteria.

    Attributes:
        sides: the job as it is, and the same with the network loss alone.
        split: of the images that were measured.
        alpha: weight of the sparsity loss.
    """

    sides: tuple[Side, ...]
    alpha: float
    split: str = TEST
    name: ClassVar[str] = "blocks"

    @property
    def rows(self) -> tuple[BlockRow, ...]:
        """Of both sides."""
        return tuple(row for side in self.sides for row in side.rows)

    def table(self) -> str:
        """A row for each criterion and budget, and every dead block by name."""
        rows = []
        for side in self.sides:
            for u in side.budgets:
                part = side.at(u)
                states = [row.state for row in part]
                rates = [row.rate for row in part]
                rows.append(
                    [
                        side.criterion,
                        f"{u:g}",
                        str(len(part)),
                        str(states.count("never")),
                        str(states.count("always")),
                        f"{100 * side.dead(u):.1f}%",
                        f"{100 * min(rates):.1f}%",
                        f"{100 * max(rates):.1f}%",
                        f"{100 * part[0].accuracy:.1f}%",
                    ]
                )
        titles = ["criterion", "u", "blocks", "never run", "always run", "dead"]
        lines = aligned([*titles, "least rate", "most", "accuracy"], rows)
        lines += ["", *(f"{side.criterion}: {_named(side)}" for side in self.sides), ""]
        lifeless = ", ".join(f"{side.criterion} {side.lifeless}" for side in self.sides)
        last = ", ".join(
            f"{side.criterion} {100 * side.history[-1].min():.1f}% to "
            f"{100 * side.history[-1].max():.1f}%"
            for side in self.sides
        )
        return "\n".join(
            [
                *lines,
                f"Rate: mean over {self.rows[0].samples:,} {self.split} images of the share of its "
                "pixels that a block runs on; dead: less than 1 % or more than 99 %.",
                f"Blocks that are dead at every budget: {lifeless}.",
                f"MACs of the blocks in the last epoch of training: {last}.",
            ]
        )

    def figure(self) -> Figure:
        """Two panels: every block's executed share by epoch."""
        return blocks_figure(self)

    def summary(self) -> dict[str, float]:
        """Dead shares of both sides, all budgets together and each."""
        figures: dict[str, float] = {}
        for side in self.sides:
            figures[f"{side.criterion}/dead"] = side.dead()
            figures[f"{side.criterion}/lifeless_blocks"] = side.lifeless
            for u in side.budgets:
                figures[f"{side.criterion}/dead_at_{round(100 * u)}"] = side.dead(u)
        return figures

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Dead shares by per cent of the budget."""
        return [
            (round(100 * u), {f"blocks/{side.criterion}/dead": side.dead(u)})
            for side in self.sides
            for u in side.budgets
        ]

    def extras(self) -> dict[str, Any]:
        """What every block executed in training."""
        return {
            "split": self.split,
            "alpha": self.alpha,
            "training": {side.criterion: side.history.round(4).tolist() for side in self.sides},
        }


def network_twin(job: Job) -> Job:
    """The same job trained with the network loss alone.

    Raises:
        InvalidSetting: it has no dynamic convolutions, or is trained so already.
    """
    config = check_dynamic(job)
    if config.sparsity.criterion == "network":
        raise InvalidSetting(
            "This analysis sets a job beside the same one trained with the network loss alone, and "
            f"{job.name} is trained so. Leave out --set path.sparsity.criterion=network."
        )
    alone = replace(config.sparsity, criterion="network")
    return replace(job, path=replace(config, sparsity=alone))


def executed_in_training(path: DynConvPath) -> NDArray[np.float64]:
    """What training noted about every block, (E, b).

    Raises:
        InvalidSetting: it noted nothing.
    """
    noted = np.asarray(path.spec.provenance.get("executed_shares", ()), np.float64)
    if noted.ndim != 2 or noted.shape[1] != len(path.cost.blocks) or not len(noted):
        raise InvalidSetting(
            "The data path does not say what its blocks executed in training. "
            "Train it with `flyball path`, which notes it."
        )
    return noted


def block_deaths(
    paths: Sequence[tuple[str, DynConvPath]],
    images: ImageSet,
    *,
    target: float | None,
    alpha: float,
    split: str = TEST,
    samples: int = 2000,
    report: Report = silent,
) -> Blocks:
    """Measures which blocks of trained networks execute nothing, or everything (DynConv Fig. 9).

    Args:
        paths: criterion and trained network; each on its device.
        images: of the job.
        target: the one budget of networks that are not budgeted; None: they are.
        alpha: weight of the sparsity loss, for people.
        split: whose images; held out from training.
        samples: at most so many, evenly spaced.
        report: hears of progress.
    """
    rows = spread_rows(images, split, samples)
    budgets = BUDGETS if target is None else (target,)
    sides = []
    for criterion, path in paths:
        history, found = executed_in_training(path), []
        for u in budgets:
            spent = spent_at(path, images, rows, u, note=criterion, report=report)
            rates = spent.rates.astype(np.float64).mean(axis=0)
            right = float(spent.correct.mean())
            found += [
                BlockRow(criterion, u, k, block.name, float(rate), _state(rate), right, len(rows))
                for k, (block, rate) in enumerate(zip(path.cost.blocks, rates, strict=True))
            ]
        sides.append(Side(criterion, history, tuple(found)))
    return Blocks(tuple(sides), alpha, split)


def _state(rate: float) -> State:
    return "never" if rate < DEAD else "always" if rate > 1 - DEAD else "alive"


def _named(side: Side) -> str:
    """Every dead block, with the budgets it is dead at."""
    found: dict[str, list[str]] = {}
    for row in side.rows:
        if row.state != "alive":
            found.setdefault(f"{row.label} {row.state} runs", []).append(f"{row.u:g}")
    told = [f"{what} at {', '.join(at)}" for what, at in found.items()]
    return "; ".join(told) or "every block is alive"
