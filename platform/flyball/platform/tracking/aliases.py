"""Which version serves which name: moving an alias, one mover at a time, and what was before.

An alias of a registered model belongs to one version, which MLflow guards. That a move is decided
on the holder it replaces, and that no move is forgotten, is guarded here: movers hold a lock, a
file beside a local database or a claim in the registry of a server, and every move adds a tag of
its own to the registered model, which nobody overwrites.
"""

import contextlib
import fcntl
import json
import random
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flyball.datapaths.errors import InvalidSetting, StorageError
from flyball.platform.tracking.address import told_plainly
from flyball.platform.tracking.runs import Tracking

__all__ = ["ALIASES", "AliasMove", "alias_history", "checked_alias", "moving_aliases", "stand_in"]

ALIASES = ("champion", "challenger", "eco", "balanced", "peak")
"""Names that a version can serve, beside `budget-1` to `budget-100`."""

_MOVE, _CLAIM = "flyball.alias", "flyball.alias_claim"
_PATIENCE_S = 30.0
_ROLLED_BACK = "rolled back"
# A version is one or the other: the later judgement counts.
_RIVALS = {"champion": "challenger", "challenger": "champion"}


@dataclass(frozen=True)
class AliasMove:
    """An alias went from one version to another.

    Attributes:
        alias: which.
        version: that holds it since.
        before: that held it; None: nobody did.
        why: "registered", "promoted" or "rolled back".
        at_ms: when, milliseconds since 1970 by the mover's clock.
    """

    alias: str
    version: int
    before: int | None
    why: str
    at_ms: int


class _Mover:
    """What may be done to the aliases of one model while the lock is held."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self._tracking, self._name = tracking, name

    def holder(self, alias: str) -> int | None:
        """The version that has the alias now."""
        held = self._tracking.client.get_registered_model(self._name).aliases
        return int(held[alias]) if alias in held else None

    def move(self, alias: str, version: int, why: str) -> int | None:
        """Gives the alias to a version and notes it; gives the version that had it before.

        Raises:
            StorageError: somebody who does not hold the lock moved it meanwhile.
        """
        client, name = self._tracking.client, self._name
        before = self.holder(alias)
        rival = _RIVALS.get(alias)
        if rival is not None and self.holder(rival) == version:
            client.delete_registered_model_alias(name, rival)
        if before == version:
            return before
        at_ms = time.time_ns() // 1_000_000
        value = {"version": version, "before": before, "why": why}
        # First the note: a move that was noted and not made is seen, one not noted is lost.
        key = f"{_MOVE}.{alias}.{at_ms:014d}-{secrets.token_hex(4)}"
        client.set_registered_model_tag(name, key, json.dumps(value))
        client.set_registered_model_alias(name, alias, str(version))
        if self.holder(alias) != version:
            raise StorageError(
                f"The alias {alias!r} of {name!r} was moved by somebody else while it was given to "
                f"version {version}. Look at `flyball models`, then run the same command again."
            )
        return before

    def roll_back(self, alias: str) -> tuple[int, int] | None:
        """Gives the alias back to who had it before; (version, the one that had it) or None."""
        holder = self.holder(alias)
        known = {
            int(version.version)
            for version in self._tracking.client.search_model_versions(f"name = '{self._name}'")
        }
        moves = [m for m in alias_history(self._tracking, self._name) if m.alias == alias]
        earlier = [v for v in stand_in(moves, holder)[:-1] if v in known]
        if holder is None or not earlier:
            return None
        self.move(alias, earlier[-1], _ROLLED_BACK)
        return earlier[-1], holder


@contextlib.contextmanager
def moving_aliases(tracking: Tracking, name: str) -> Iterator[_Mover]:
    """Holds the aliases of a registered model for this process within the block.

    Raises:
        StorageError: another process held them for 30 seconds.
    """
    lock = _file_lock if tracking.address.database is not None else _claim
    with lock(tracking, name), told_plainly(tracking.address, f"Moving an alias of {name!r}"):
        yield _Mover(tracking, name)


def alias_history(tracking: Tracking, name: str) -> tuple[AliasMove, ...]:
    """Every move of every alias of a registered model, oldest first.

    Raises:
        StorageError, TrackingUnreachable: the registry does not answer.
    """
    with told_plainly(tracking.address, f"Reading the history of {name!r}"):
        tags: Mapping[str, str] = tracking.client.get_registered_model(name).tags
    moves = []
    for key in tags:
        found = re.fullmatch(rf"{re.escape(_MOVE)}\.([\w-]+)\.(\d+)-(\w+)", key)
        if found:
            told = json.loads(tags[key])
            move = AliasMove(
                alias=found[1],
                version=int(told["version"]),
                before=None if told["before"] is None else int(told["before"]),
                why=str(told["why"]),
                at_ms=int(found[2]),
            )
            moves.append((move.at_ms, found[3], move))
    return tuple(move for _, _, move in sorted(moves, key=lambda entry: entry[:2]))


def stand_in(moves: tuple[AliasMove, ...] | list[AliasMove], holder: int | None) -> list[int]:
    """Versions that an alias can be given back to, the next one before the last, which holds it.

    A roll-back takes the last one off. A holder that no move explains was set by hand, or by a
    mover that was interrupted.

    Args:
        moves: of one alias, oldest first.
        holder: the version that has it.
    """
    stack: list[int] = []
    for move in moves:
        if move.before is not None and (not stack or stack[-1] != move.before):
            stack.append(move.before)
        if move.why == _ROLLED_BACK and move.version in stack:
            while stack[-1] != move.version:
                stack.pop()
        else:
            stack.append(move.version)
    while stack and stack[-1] != holder and holder in stack:
        stack.pop()
    if holder is not None and (not stack or stack[-1] != holder):
        stack.append(holder)
    return stack


def checked_alias(alias: str) -> str:
    """The alias, if Flyball knows it.

    Raises:
        InvalidSetting: it is none of `ALIASES` and no `budget-NN`.
    """
    budget = re.fullmatch(r"budget-([1-9]\d?|100)", alias)
    if alias not in ALIASES and budget is None:
        raise InvalidSetting(
            f"A governor serves as one of {', '.join(ALIASES)}, or as budget-NN with NN a per cent "
            f"from 1 to 100; {alias!r} came. Choose one of these."
        )
    return alias


@contextlib.contextmanager
def _file_lock(tracking: Tracking, name: str) -> Iterator[None]:
    database = tracking.address.database or Path()
    file = database.with_name(f".{database.name}.aliases.lock")
    deadline = time.monotonic() + _PATIENCE_S
    with file.open("a") as opened:
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _held_too_long(name) from None
                time.sleep(0.02)
        yield


@contextlib.contextmanager
def _claim(tracking: Tracking, name: str) -> Iterator[None]:
    """A lock that only needs tags: claim, look, and step back where somebody else claims too.

    Two that claim at once see each other, as each looks after it has claimed. A claim that does
    not change within the patience is of a process that died.
    """
    client, deadline = tracking.client, time.monotonic() + _PATIENCE_S
    mine = f"{_CLAIM}.{secrets.token_hex(8)}"
    with told_plainly(tracking.address, f"Claiming the aliases of {name!r}"):
        seen_first: set[str] | None = None
        while True:
            client.set_registered_model_tag(name, mine, "claimed")
            tags = client.get_registered_model(name).tags
            others = {tag for tag in tags if tag.startswith(f"{_CLAIM}.") and tag != mine}
            if not others:
                break
            client.delete_registered_model_tag(name, mine)
            seen_first = others if seen_first is None else seen_first & others
            if time.monotonic() > deadline:
                if not seen_first:
                    raise _held_too_long(name)
                for stale in seen_first:
                    client.delete_registered_model_tag(name, stale)
                seen_first, deadline = None, time.monotonic() + _PATIENCE_S
            time.sleep(random.uniform(0.02, 0.2))
    try:
        yield
    finally:
        with told_plainly(tracking.address, f"Releasing the aliases of {name!r}"):
            client.delete_registered_model_tag(name, mine)


def _held_too_long(name: str) -> StorageError:
    return StorageError(
        f"The aliases of {name!r} are moved by one process at a time, and others held them for "
        f"{_PATIENCE_S:g} s. Wait until they have ended, then run the same command again."
    )
