"""How a sweep stands, while it runs: a table on a terminal, lines where the output is none."""

import sys
import time
from typing import TextIO

from flyball.platform.sweep.result import PointResult

__all__ = ["ProgressTable"]

_SECONDS_BETWEEN_DRAWINGS = 0.25
_BEST = 5


class ProgressTable:
    """Shows points as they begin, end, fail and are repeated.

    Args:
        total: points of the sweep.
        is_quiet: show nothing, as for machine-readable output.
        stream: where to; standard error by default.
    """

    def __init__(self, total: int, *, is_quiet: bool = False, stream: TextIO | None = None) -> None:
        self._total, self._is_quiet = total, is_quiet
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = not is_quiet and self._stream.isatty()
        self._running: dict[str, tuple[str, int]] = {}
        self._done: dict[str, PointResult] = {}
        self._ended = 0
        self._drawn_lines = 0
        self._drawn_at = 0.0

    def started(self, key: str, name: str) -> None:
        """A point began."""
        self._running[key] = (name, 0)
        self._show(f"started   {name}")

    def looked(self, key: str, updates: int) -> None:
        """A point has made so many updates."""
        if key in self._running:
            self._running[key] = (self._running[key][0], updates)
            self._show("")

    def finished(self, result: PointResult, *, is_reused: bool = False) -> None:
        """A point is done."""
        self._running.pop(result.key, None)
        self._done[result.key] = result
        word = "reused" if is_reused else "finished"
        self._show(f"{word:<9} {_row(result)}")

    def ended(self, key: str, name: str, why: str) -> None:
        """A point failed or was ended early."""
        self._running.pop(key, None)
        self._ended += 1
        self._show(f"ended     {name}: {why}")

    def repeated(self, name: str, why: str) -> None:
        """A point is begun again."""
        self._show(f"repeated  {name}: {why}")

    def close(self) -> None:
        """Draws the table a last time and leaves it there."""
        if self._is_terminal:
            self._draw()
            self._drawn_lines = 0

    def _show(self, line: str) -> None:
        if self._is_quiet:
            return
        if self._is_terminal:
            if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
                self._draw()
        elif line:
            done = len(self._done) + self._ended
            print(f"[{done:>3}/{self._total}] {line}", file=self._stream, flush=True)

    def _draw(self) -> None:
        lines = self._lines()
        if self._drawn_lines:
            self._stream.write(f"\x1b[{self._drawn_lines}F\x1b[J")
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn_lines, self._drawn_at = len(lines), time.monotonic()

    def _lines(self) -> list[str]:
        ended = f", {self._ended} ended early or failed" if self._ended else ""
        lines = [f"Sweep: {len(self._done)} of {self._total} points done{ended}"]
        lines += [
            f"  running   {name}, {updates} updates" for name, updates in self._running.values()
        ]
        best = sorted(self._done.values(), key=lambda r: -r.gain_over_static.mean)[:_BEST]
        lines += [f"  best      {_row(result)}" for result in best]
        return [line[:118] for line in lines]


def _row(result: PointResult) -> str:
    return (
        f"{result.name}: accuracy {result.accuracy.mean:.3f}, net {result.net.mean:.3f}, "
        f"gain {100 * result.gain_over_static.mean:+.2f} points"
    )
