"""The ladder as a table of plain text; the picture of it is drawn in `picture`.

Reads an `Evaluation` and nothing else; imports neither MLflow nor Ray.
"""

from flyball.controllers.bootstrap import Interval
from flyball.controllers.evaluation import Evaluation, Rung
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.platform.picture import RUNG_NAMES, draw_ladder

__all__ = ["draw_ladder", "ladder_table", "verdict"]

_COLUMNS = (
    ("accuracy", "accuracy"),
    ("mean u", "utilization"),
    ("throttle gross", "gross"),
    ("throttle net", "net"),
    ("reward", "reward"),
)


def ladder_table(evaluation: Evaluation) -> str:
    """The rungs on test with their intervals, the fixed arms, and what decides, in words.

    Args:
        evaluation: what was measured.

    Returns:
        Lines of plain text, aligned for a fixed-width font.
    """
    ladder = [rung for rung in evaluation.rungs if rung.name in RUNG_NAMES]
    header = ["", *(f" {title}" for title, _ in _COLUMNS)]
    rows, fixed = ([_row(r) for r in rungs] for rungs in (ladder, evaluation.curve(TEST)))
    widths = [max(len(row[i]) for row in [header, *rows, *fixed]) for i in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_aligned(header, widths), rule, *(_aligned(row, widths) for row in rows), rule]
    lines += [_aligned(row, widths) for row in fixed]
    return "\n".join([*lines, "", *_words(evaluation)])


def verdict(evaluation: Evaluation) -> str:
    """Whether the controller deserves to be promoted, in one sentence."""
    gain = evaluation.gain_over_static[CONTROLLER_VAL]
    if evaluation.beats_static:
        return (
            "The controller beats the static mixture at equal net cost on controller_val "
            f"({_points(gain)}): it may be promoted."
        )
    if evaluation.dominated:
        return (
            "The controller is dominated: a static mixture of the same net cost is as accurate or "
            f"more on controller_val ({_points(gain)}): not promoted."
        )
    return (
        "The controller's gain over the static mixture on controller_val may be chance "
        f"({_points(gain)}): not promoted."
    )


def _row(rung: Rung) -> list[str]:
    name = RUNG_NAMES.get(rung.name, f"fixed arm {rung.detail}")
    return [name, *(_figure(getattr(rung, metric)) for _, metric in _COLUMNS)]


def _figure(interval: Interval) -> str:
    return f"{_short(interval.mean):>5} [{_short(interval.low)}, {_short(interval.high)}]"


def _short(value: float) -> str:
    """Three decimals, without the zero before the point."""
    return f"{value:.3f}".replace("-0.", "-.").removeprefix("0")


def _aligned(cells: list[str], widths: list[int]) -> str:
    first, *figures = cells
    ranged = (cell.ljust(width) for cell, width in zip(figures, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *ranged]).rstrip()


def _words(evaluation: Evaluation) -> list[str]:
    level, samples = evaluation.level, evaluation.samples
    own = evaluation.controller_macs + evaluation.context_macs
    lines = [
        f"Measured on {samples[TEST]:,} test samples; whatever was chosen was chosen on "
        f"{samples[CONTROLLER_VAL]:,} of controller_val. Intervals hold {level:.0%} (bootstrap).",
        f"Throttle ratios are shares of the full data path's {evaluation.full_macs:,} MACs; reward "
        f"is charged {evaluation.account}.",
        f"One choice costs {evaluation.controller_macs:,} MACs, its context "
        f"{evaluation.context_macs:,}: {own / evaluation.full_macs:.1%} of the full data path "
        "(the context pass is the answer of the lowest arm, where that is chosen).",
        *(
            f"The {RUNG_NAMES[name]}: {evaluation.rung(name).detail}."
            for name in ("best_fixed", "static_mixture", "confidence_cascade")
        ),
        "",
        "Gain over the static mixture at equal net cost:   "
        f"test {_points(evaluation.gain_over_static[TEST])}, "
        f"controller_val {_points(evaluation.gain_over_static[CONTROLLER_VAL])}.",
        "The same if the controller were free (gross cost): "
        f"test {_points(evaluation.gain_at_gross[TEST])}, "
        f"controller_val {_points(evaluation.gain_at_gross[CONTROLLER_VAL])}.",
        "Share of the informed ceiling, from the best fixed arm, in reward: "
        f"test {_share(evaluation.share_of_informed_ceiling[TEST])}, "
        f"controller_val {_share(evaluation.share_of_informed_ceiling[CONTROLLER_VAL])}.",
        verdict(evaluation),
    ]
    return [*lines, *(f"Note: {note}" for note in evaluation.notes)]


def _points(gain: Interval) -> str:
    low, mean, high = (100 * value for value in (gain.low, gain.mean, gain.high))
    return f"{mean:+.2f} points [{low:+.2f}, {high:+.2f}]"


def _share(share: float | None) -> str:
    return "not stated" if share is None else f"{share:.0%}"
