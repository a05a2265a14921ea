"""Waiting for space: back-pressure for those who fill a store faster than others empty it.

A write that a quota refuses, the store's or a directory's, may wait until others have freed enough (`Space.transact`). It
keeps the file's lock meanwhile, and no mutex.

Order. Those who wait stand in a queue through their records, one a parking semaphore, in the slots of their processes. The
rule (`ready`) is looked at from the first one on:

    there is room for it       it may go, and the room is kept for it
    its directory has none     it holds up those behind it in that directory, and nobody else
    the store has none         it holds up all behind it

Writes that never waited are not in the queue and take what is free. A waiter says every slice (50 ms) that it is there, by a
plain store in its record; one that has not done so for STALE_S is stopped, or dead and not yet reaped, and holds up nobody and
has nothing kept for it. Nothing but the order depends on that: whoever goes is charged, or refused, in his transaction.

Whoever lowers what is charged, ends a wait, or raises a limit posts the semaphores of those who may go, after his section: he
reads one word for that when nobody waits. A post that is lost with its sender costs a slice.

    record: not queued -> queued       owner, when it was refused, in the transaction that refused it
            queued -> not queued       owner, with what it waited for, or when it gives up; or whoever reaps it

All changes of records and queue REQUIRE m[0].
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import MFSCorruptStoreError, MFSNodeLimitExceededError, MFSQuotaExceededError, MFSStoreBusyError
from . import mutex
from .journal import Words
from .layout import (
    KIND_QUOTA,
    LOW32,
    NODE_BACKED,
    PARKS,
    Q_LIMIT,
    Q_USED,
    S_SPACE,
    SLOT_WORDS,
    SLOTS_AT,
    SPACE_FIRST,
    SPACE_LAST,
    STATE_READY,
    SW_ACCOUNT,
    SW_BYTES,
    SW_LINKS,
    SW_SEEN,
    SW_WORDS,
    USED,
    W_STATE,
    WORD,
)
from .section import Section
from .semaphores import sleep_on

if TYPE_CHECKING:
    import posix_ipc

    from .attachment import Attachment

STALE_S = 1.0

T = TypeVar("T")


def until(timeout: float | None) -> float:
    """The moment (monotonic) to wait for space until: 0.0 if not at all, infinity for a timeout of None."""
    if timeout is None:
        return math.inf
    return time.monotonic() + timeout if timeout > 0 else 0.0


class Space:
    """Those who wait for space, as one attached process sees them."""

    __slots__ = ("quota_bytes", "store", "w", "waiting")

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w: Words = store.w
        self.quota_bytes = store.quota_bytes
        self.waiting: set[int] = set()  # our records that a thread is waiting with

    def transact(self, step: Callable[[Section], T], timeout: float | None, until: float) -> T:
        """As `Attachment.transact`; what the quota refuses waits for space until then, unless it is more than the quota."""
        try:
            return self.store.transact(step, timeout)
        except MFSQuotaExceededError as error:
            if not until or not _may_be_waited_for(error) or time.monotonic() >= until:
                raise
        return _Wait(self, step, timeout, until).wait()

    # ---- records

    def record(self, slot: int, park: int) -> int:
        return self.store.layout.slot_at(slot) + S_SPACE + park * SW_WORDS

    def queued(self, slot: int) -> list[int]:
        """The records of a slot that are in the queue."""
        first = self.record(slot, 0)
        return [record for record in range(first, first + PARKS * SW_WORDS, SW_WORDS) if self.w[record + SW_BYTES]]

    def queue(self) -> Iterator[int]:
        """The records in the queue, the first one first; ends early where a link leads nowhere."""
        record, end = self.w[SPACE_FIRST], SLOTS_AT + self.store.layout.slots * SLOT_WORDS
        for _ in range(self.store.layout.slots * PARKS):
            if not SLOTS_AT <= record < end:
                break
            yield record
            record = self.w[record + SW_LINKS] & LOW32

    def enter(self, section: Section, record: int, error: MFSQuotaExceededError) -> None:
        """Queue a record for what was refused, or say that it needs something else by now."""
        plan = section.plan
        if not plan[record + SW_BYTES]:
            last = plan[SPACE_LAST]
            plan[record + SW_LINKS] = last << 32
            if last:
                plan[last + SW_LINKS] = plan[last + SW_LINKS] & ~LOW32 | record
            else:
                plan[SPACE_FIRST] = record
            plan[SPACE_LAST] = record
        plan[record + SW_BYTES] = error.requested
        plan[record + SW_ACCOUNT] = error._account

    def leave(self, section: Section, record: int) -> None:
        """Take a record out of the queue."""
        plan = section.plan
        links = plan[record + SW_LINKS]
        before, after = links >> 32, links & LOW32
        refers = before + SW_LINKS if before else SPACE_FIRST
        if plan[refers] & LOW32 != record:
            raise MFSCorruptStoreError("index", refers * WORD, f"a reference to word {record}", plan[refers])
        plan[refers] = plan[refers] & ~LOW32 | after
        if after:
            plan[after + SW_LINKS] = before << 32 | plan[after + SW_LINKS] & LOW32
        else:
            plan[SPACE_LAST] = before
        plan[record + SW_BYTES] = 0
        section.frees = True  # whom it held up

    def leave_all(self, section: Section, slot: int) -> None:
        """Take what dead tenants of a slot waited with out of the queue."""
        for record in self.queued(slot):
            self.leave(section, record)
            section.commit()

    def drain(self) -> None:
        """Take out what an exception has left in the queue."""
        left = [record for record in self.queued(self.store.slot) if record not in self.waiting]
        for record in left:
            self.withdraw(record, self.store.patience)

    def withdraw(self, record: int, timeout: float | None) -> None:
        def step(section: Section) -> None:
            if self.w[record + SW_BYTES]:
                self.leave(section, record)

        self.store.sections.run(step, timeout)

    # ---- whose turn it is

    def ready(self) -> list[int]:
        """The records that may go now."""
        w, found = self.w, []
        now, free = time.monotonic_ns(), self.quota_bytes - w[USED]
        of_account: dict[int, float] = {0: math.inf}
        for record in self.queue():
            needed, account = w[record + SW_BYTES], w[record + SW_ACCOUNT]
            if account not in of_account:
                of_account[account] = self._free_on(account)
            is_there = abs(now - w[record + SW_SEEN]) < STALE_S * 1e9
            if needed <= free and needed <= of_account[account]:
                found.append(record)
                if is_there:
                    free -= needed
                    of_account[account] -= needed
            elif is_there and needed > of_account[account]:
                of_account[account] = -1
            elif is_there:
                break
        return found

    def _free_on(self, account: int) -> float:
        """What may still be charged to an account; without end if it is gone, then whoever waited for it finds out."""
        if not 0 < account < self.w[NODE_BACKED] or self.store.tree.kind(account) != KIND_QUOTA:
            return math.inf
        at = self.store.layout.node_at(account)
        return self.w[at + Q_LIMIT] - self.w[at + Q_USED]

    def wake(self, records: list[int]) -> None:
        for record in records:
            slot, word = divmod(record - SLOTS_AT, SLOT_WORDS)
            self.store.rw.wake(slot, (word - S_SPACE) // SW_WORDS)


def _may_be_waited_for(error: MFSQuotaExceededError) -> bool:
    return not error._hopeless and not isinstance(error, MFSNodeLimitExceededError)


class _Wait(Generic[T]):
    """One wait for space, of a step that was refused. Without a parking semaphore it has no place in the queue, and looks
    again and again."""

    def __init__(self, space: Space, step: Callable[[Section], T], timeout: float | None, until: float) -> None:
        self.space = space
        self.store = space.store
        self.w = space.w
        self.step = step
        self.timeout = timeout
        self.until = until
        self.record = 0
        self.late = False
        self.refused: MFSQuotaExceededError | None = None
        self.result: list[T] = []

    def wait(self) -> T:
        space = self.space
        with self.store.rw.parking() as (park, semaphore):
            record = space.record(self.store.slot, park) if park else 0
            space.waiting.add(record)
            try:
                if record and self.w[record + SW_BYTES]:  # somebody whom an exception took away
                    space.withdraw(record, self.timeout)
                self.record = record
                return self._wait(semaphore)
            finally:
                space.waiting.discard(record)
                self._give_up()

    def _wait(self, semaphore: posix_ipc.Semaphore | None) -> T:
        store = self.store
        while True:
            store.check_state()
            store.threads.check_wanted()
            if self.record:
                self.w[self.record + SW_SEEN] = time.monotonic_ns()
            store.transact(self._turn, self.timeout)
            if self.result:
                return self.result.pop()
            if self.late:
                assert self.refused is not None
                raise self.refused.with_traceback(None)
            if not self._sleep(semaphore):
                self._relieve()

    def _turn(self, section: Section) -> None:
        """Do the step if it is our turn (or the last moment: then as a write that never waited)."""
        space, record = self.space, self.record
        self.result.clear()
        queued = record and self.w[record + SW_BYTES]
        if queued and not self.late and record not in space.ready():
            return
        try:
            result = self.step(section)
        except MFSQuotaExceededError as error:
            if not _may_be_waited_for(error):
                raise
            section.forget()
            section.leave_nodes()
            self.refused = error
            if record:
                space.enter(section, record, error)
            return
        if queued:
            space.leave(section, record)
        self.result.append(result)

    def _sleep(self, semaphore: posix_ipc.Semaphore | None) -> bool:
        """Until woken (True) or a slice, or the time, has passed (False)."""
        rest = min(mutex.SLICE_S, self.until - time.monotonic())
        if rest <= 0:
            return False
        if semaphore is None:
            time.sleep(min(rest, 0.005))
            return False
        return sleep_on(semaphore, rest)

    def _relieve(self) -> None:
        """At the end of a slice: what the dead and our own finalisers held; in the end whatever could be given back."""
        self.late = time.monotonic() >= self.until
        try:
            if self.late:
                self.store.relieve(self.timeout)
            else:
                self.store.work_off()
                if self.store.reap_dead(0.0):
                    self.store.sweep.drain()
        except MFSStoreBusyError:
            if self.late:
                raise

    def _give_up(self) -> None:
        """See that the record is out of the queue. What does not work now is left to the next operation."""
        store, record = self.store, self.record
        if not record or store.is_left or self.w[W_STATE] != STATE_READY or not self.w[record + SW_BYTES]:
            return
        try:
            with contextlib.suppress(MFSStoreBusyError):
                self.space.withdraw(record, 1.0)
        finally:
            if self.w[record + SW_BYTES]:
                store.dropped.append(None)
