"""What a sweep has to say to MLflow, kept in a file until it is said; nothing here asks MLflow.

```text
journal/
|-- events.jsonl   one JSON line an event, in order; the first names the journal
|-- sent.json      where it is recorded, and up to which event
`-- files/         copies of the files that events record, until they are recorded
```
"""

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flyball.datapaths.errors import CorruptArtifact, StorageError
from flyball.datapaths.files import read_json, write_json

__all__ = ["Event", "Journal"]

EVENTS_FILE = "events.jsonl"
SENT_FILE = "sent.json"
FILES_FOLDER = "files"
BEGINNING = "journal"  # kind of the first event


@dataclass(frozen=True)
class Event:
    """One thing to record.

    Attributes:
        number: its place in the journal, from 1.
        at_ms: when it happened, milliseconds since 1970.
        kind: what is to be done, such as "metrics".
        key: of the point; None for the sweep itself.
        content: the rest, JSON-able.
    """

    number: int
    at_ms: int
    kind: str
    key: str | None
    content: Mapping[str, Any]


class Journal:
    """Events in the order in which they happened, and which of them are recorded.

    An event is in the file before `append` returns, so that a killed process loses none; a last
    line that a kill or a full disk cut short is taken out when the journal is opened again.
    One process holds a journal at a time; its methods may be called from several threads.

    Attributes:
        folder: where it lies.
        events: those that were there when it was opened.
        name: unlike that of any other journal.
        place: where its events are recorded; "" as long as none is.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the journal of a folder, or begins one.

        Raises:
            StorageError: the folder cannot be written.
            CorruptArtifact: a line that is not the last is no event.
        """
        self.folder = folder
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = (folder / EVENTS_FILE).open("a+b")
            self.events = self._read()
        except OSError as error:
            raise self._unwritable(error) from error
        except CorruptArtifact:
            self._file.close()
            raise
        self._count = len(self.events)
        sent = self._read_sent()
        self.place = str(sent.get("place", ""))
        self._sent_to = min(int(sent.get("sent", 0)), self._count)
        self._sent_beyond: set[int] = set()
        if not self.events:
            self.events.append(self.append(BEGINNING, None, {"name": uuid.uuid4().hex[:16]}))
        self.name = str(self.events[0].content["name"])

    @property
    def sent_to(self) -> int:
        """Every event up to this number is recorded."""
        return self._sent_to

    def append(self, kind: str, key: str | None, content: Mapping[str, Any]) -> Event:
        """Keeps an event; it is in the file when this returns.

        Raises:
            StorageError: the disk is full or the file cannot be written; nothing of it is kept.
        """
        with self._lock:
            event = Event(self._count + 1, int(time.time() * 1000), kind, key, dict(content))
            line = {"n": event.number, "at": event.at_ms, "kind": kind, "key": key, **content}
            data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self._reopen(end)
                raise self._unwritable(error) from error
            self._count = event.number
            return event

    def keep_file(self, file: Path) -> str:
        """Copies a file that an event to come records; gives the copy's place in the folder.

        Raises:
            StorageError: it does not exist, or there is no room for it.
        """
        if not file.is_file():
            raise StorageError(f"{file} cannot be recorded: there is no such file. Make it first.")
        copy = self.folder / FILES_FOLDER / uuid.uuid4().hex[:12] / file.name
        try:
            copy.parent.mkdir(parents=True)
            shutil.copyfile(file, copy)
        except OSError as error:
            raise self._unwritable(error) from error
        return str(copy.relative_to(self.folder))

    def mark_sent(self, numbers: Iterable[int]) -> None:
        """Notes that events are recorded; they may come out of order."""
        with self._lock:
            if self._file.closed:  # the next holder of the journal may be at work
                return
            self._sent_beyond.update(numbers)
            before = self._sent_to
            while self._sent_to + 1 in self._sent_beyond:
                self._sent_to += 1
                self._sent_beyond.discard(self._sent_to)
            if self._sent_to > before:
                self._write_sent()

    def begin_again_at(self, place: str) -> None:
        """Notes that nothing is recorded yet at a place, which is where the journal goes now."""
        with self._lock:
            self.place, self._sent_to = place, 0
            self._sent_beyond.clear()
            self._write_sent()

    def close(self) -> None:
        """Closes the file; the journal can be opened again."""
        with self._lock:
            self._file.close()

    def _read(self) -> list[Event]:
        self._file.seek(0)
        events: list[Event] = []
        whole = 0
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                if self._file.read(1):
                    raise CorruptArtifact(
                        f"Line {len(events) + 1} of {self.folder / EVENTS_FILE} is no event: the "
                        f"file was altered. Delete {self.folder} to record the sweep anew."
                    )
                break
            number, at_ms = entry.pop("n"), entry.pop("at")
            events.append(Event(number, at_ms, entry.pop("kind"), entry.pop("key"), entry))
            whole += len(line)
        self._file.truncate(whole)
        return events

    def _read_sent(self) -> dict[str, Any]:
        # Without it everything is sent again, which records nothing twice.
        try:
            found = read_json(self.folder / SENT_FILE)
        except CorruptArtifact:
            return {}
        return found if isinstance(found, dict) else {}

    def _write_sent(self) -> None:
        entry = {"place": self.place, "sent": self._sent_to}
        write_json(self.folder / SENT_FILE, entry)

    def _reopen(self, end: int) -> None:
        # What the buffer still holds of the failed line must not follow with the next one.
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = (self.folder / EVENTS_FILE).open("a+b")
        self._file.truncate(end)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"What the sweep records cannot be kept in {self.folder}: {error.strerror or error}. "
            "Free some space there, or name a folder that you may write with "
            "--set storage.root=FOLDER, then run the same command with --resume."
        )
