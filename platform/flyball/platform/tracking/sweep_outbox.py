"""The thread that sends a sweep's events, tries again while the server is away.

What is sent, and how, lives in `sweep_sending`; what there is to send, in `journal`.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from flyball.datapaths.errors import FlyballError, TrackingUnreachable
from flyball.platform.tracking.journal import Event, Journal
from flyball.platform.tracking.runs import Tracking
from flyball.platform.tracking.sweep_sending import SweepSending, is_passing

__all__ = ["FIRST_WAIT_S", "LONGEST_WAIT_S", "SweepOutbox"]

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 4.0  # between two tries to reach a server that is away


class SweepOutbox:
    """Sends the events of a journal in the background, from its making on."""

    def __init__(
        self,
        open: Callable[[], Tracking],
        journal: Journal,
        sending: SweepSending,
        tell: Callable[[str], None],
    ) -> None:
        """Begins with what an earlier process left in the journal.

        Args:
            open: opens the place; called again for as long as it does not answer.
            journal: notes what is sent.
            sending: of the journal.
            tell: hears, from the thread, of a server that went away or came back.
        """
        self._open, self._journal, self._sending, self._tell = open, journal, sending, tell
        self._wake = threading.Condition()
        sent_to = journal.sent_to
        self._pending = {e.number: e for e in journal.events if e.number > sent_to}
        self._failure: Exception | None = None
        self._trouble: Exception | None = None  # of the last try; None while the place answers
        self._failed_tries = 0
        self._wait_s = FIRST_WAIT_S
        self._moved_at = time.monotonic()  # when something was sent, or had to be
        self._is_known = False  # what of the journal is recorded already
        self._is_ending = self._is_hurried = False
        # A daemon: a request that hangs for good must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="flyball-mlflow", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error that ended the sending, if one did."""
        if self._failure is not None:
            raise self._failure

    def put(self, kind: str, key: str | None, content: Mapping[str, Any]) -> Event:
        """Keeps an event in the journal and lets the thread know.

        Raises:
            StorageError: it cannot be kept.
        """
        with self._wake:
            event = self._journal.append(kind, key, content)
            if not self._pending:
                self._moved_at = time.monotonic()
            self._pending[event.number] = event
            self._wake.notify_all()
        return event

    def close(self) -> None:
        """Ends the thread, after the request that is under way; what is left stays kept."""
        with self._wake:
            self._is_ending = True
            self._wake.notify_all()
        self._thread.join(timeout=1.0 if self._pending else None)

    def wait(self, patience_s: float) -> None:
        """Waits until everything is sent.

        Raises:
            TrackingUnreachable: nothing could be sent for `patience_s`.
            StorageError: the local database cannot be written.
        """
        began = time.monotonic()
        with self._wake:
            tries, self._is_hurried = self._failed_tries, True
            self._wake.notify_all()
            while (self._pending or not self._is_known) and self._failure is None:
                # A server that was away all along still gets one try now; one that hangs, patience.
                was_tried = self._failed_tries > tries
                since = self._moved_at if was_tried else max(self._moved_at, began)
                left_s = patience_s - (time.monotonic() - since)
                if left_s <= 0:
                    raise self._gave_up(patience_s)
                self._wake.wait(timeout=left_s)
            self.check()

    def _work(self) -> None:
        while True:
            with self._wake:
                while self._is_known and not self._pending and not self._is_ending:
                    self._wake.wait()
                if self._is_ending:
                    return
            try:
                self._send()
            except Exception as error:
                if not is_passing(error):
                    self._fail(error)
                    return
                self._hold_on(error)

    def _send(self) -> None:
        if not self._is_known:
            is_new_place = self._sending.open(self._open())
            with self._wake:
                if is_new_place:
                    self._pending = {e.number: e for e in self._journal.events} | self._pending
                self._journal.events.clear()
                self._is_known = True
                self._wake.notify_all()
        with self._wake:
            events = list(self._pending.values())
        for sent in self._sending.send(events):
            self._journal.mark_sent(event.number for event in sent)
            with self._wake:
                for event in sent:
                    del self._pending[event.number]
                self._moved_at = time.monotonic()
                self._wait_s = FIRST_WAIT_S
                was_away, self._trouble = self._trouble is not None, None
                self._wake.notify_all()
            if was_away:
                self._tell("MLflow answers again; what was kept is being sent.")
            if self._is_ending:
                return

    def _hold_on(self, error: Exception) -> None:
        with self._wake:
            was_there, self._trouble = self._trouble is None, error
            self._failed_tries += 1
            self._wake.notify_all()
        if was_there:
            self._tell(f"The sweep goes on and keeps what it records: {error}")
        with self._wake:
            self._wake.wait_for(lambda: self._is_hurried or self._is_ending, timeout=self._wait_s)
            self._is_hurried = False
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self._failure = (
                type(error)(f"{error} {self._kept()}") if isinstance(error, FlyballError) else error
            )
            self._failure.__cause__ = error.__cause__
            self._wake.notify_all()

    def _gave_up(self, patience_s: float) -> TrackingUnreachable:
        said = "no answer" if self._trouble is None else str(self._trouble)
        return TrackingUnreachable(
            f"What the sweep recorded could not be sent for {patience_s:g} s. {self._kept()} "
            f"The last answer: {said}"
        )

    def _kept(self) -> str:
        return (
            f"{len(self._pending)} events are kept in {self._journal.folder}; start the server "
            "and run the same command with --resume."
        )
