"""Ctrl-C and SIGTERM while Tune runs: the first ends it cleanly, a second at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption", "sigterm_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Turns SIGINT and SIGTERM into the signal at which Tune leaves its loop and saves its state.

    Off the main thread Python takes no handlers, and none are set.

    Attributes:
        was_asked: one came.
    """

    def __init__(self) -> None:
        self.was_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Until Tune sets its own, SIGUSR1 would end the process.
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, _nothing)
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def repeat(self) -> None:
        """Asks again: the first may have come before Tune listened."""
        if self.was_asked:
            signal.raise_signal(signal.SIGUSR1)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.was_asked:
            raise KeyboardInterrupt
        self.was_asked = True
        signal.raise_signal(signal.SIGUSR1)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does: what is open is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
