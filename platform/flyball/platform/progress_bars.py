"""Progress bars on the terminal, one a stage; plain lines where the output is no terminal."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm

from flyball.datapaths.progress import Progress

__all__ = ["ProgressBars"]

_LABELS = {
    "survey": "Images",
    "decode": "Decoding",
    "bench": "Benchmark",
    "phase1": "Phase 1",
    "outcomes": "Outcome atlas",
    "controller": "Controller",
}
_SECONDS_BETWEEN_LINES = 15.0


class ProgressBars:
    """A `Report` that draws; used as a context manager so that no bar is left half-drawn.

    Args:
        is_quiet: draw nothing at all, as for machine-readable output.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty()
        self._stage: str | None = None
        self._bar: tqdm[Any] | None = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def __call__(self, progress: Progress) -> None:
        if self._is_quiet:
            return
        if self._is_terminal:
            self._draw(progress)
        else:
            self._print(progress)

    def _draw(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._close()
            self._stage = progress.stage
            self._bar = tqdm(
                total=progress.total, desc=f"{_label(progress.stage):<14}", leave=True, ncols=100
            )
        assert self._bar is not None
        self._bar.total = progress.total
        self._bar.set_postfix_str(_figures(progress), refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if progress.done >= progress.total:
            self._close()

    def _print(self, progress: Progress) -> None:
        now = time.monotonic()
        is_first, is_last = progress.stage != self._stage, progress.done >= progress.total
        if is_first or is_last or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            share = 100 * progress.done / max(1, progress.total)
            print(f"{_label(progress.stage)}: {share:.0f} % {_figures(progress)}", file=sys.stderr)
            self._stage, self._last_line = progress.stage, now

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, None


def _label(stage: str) -> str:
    return _LABELS.get(stage, stage)


def _figures(progress: Progress) -> str:
    texts = [progress.note] if progress.note else []
    texts += [f"{name} {value:.3f}" for name, value in progress.values.items()]
    return ", ".join(texts)
