"""Publications: who wants to know that a file is complete, and how they are told.

A file is *complete* when it has a name, no writer, and is not abandoned. It becomes so by the end of a writer's hold (a
close, a claim given back, a dead one's lock reaped), by write_bytes, copy, rename, replace, or with a directory that gets
its name. Whoever does that announces it afterwards; so does the last reader that leaves, for those who want the file for
themselves. Guarantees:

  * While nobody wants to know, announcing is the reading of one word, WATCHED.
  * Nobody who wants to know misses a publication of a living process, in whatever order both are at work; the death of
    either harms nobody. What a publisher did not announce because it was killed is found when it is reaped: that raises
    the count of REAPS, and makes everybody look at all files once more (`Reader`, and whoever waits, sees to that).
  * Entries are hints. What they name is looked at again, and believed by its generation and under its lock only.

Words, all but WATCHES and WATCHED plain and stored by the slot's tenant alone:

    WATCHED     of the store, a bit for the slots s, s + 64, ...: one of them watches. In transactions of m[0]
    watches     of a slot: it wants entries. The reaper, and who leaves in order, clear it, and the bit with the last
    sleepers    of a slot: on which of its parking semaphores threads sleep until something is published
    published   of a slot: how many entries its tenants ever put into the ring
    ring        entries (number, node, generation, stamp), number n at place (n - 1) % ENTRIES

An entry is stored with the number 0 first and its own number last; then `published` is raised. So a reader that finds
another number than it looks for, before or after reading the rest, knows that the entry was overwritten, or that its
writer never finished it, and then it looks at all files. The threads of a process, and signal handlers, order themselves
by reserving a number: between reading the counter and storing it there is no call, so nothing comes in between. To make
everybody look at all files (a directory was renamed, or there is no memory for the ring, or an exception ended the
storing of an entry) the count is raised by more than the ring has places.

Why nobody is missed. Twice both sides store one word and then read the other's, with a full fence between (Dekker):

    watcher: stores WATCHED, fence, looks at all files      publisher: makes the file complete, fence, reads WATCHED
    sleeper: stores sleepers, fence, reads `published`      publisher: raises `published`, fence, reads sleepers

In the first, the publisher's fence is the release of its mutex, which is one on x86; elsewhere the watcher, who comes once,
uses membarrier, which is one for everybody. Either the watcher sees the file, or the publisher sees the watcher. In the
second, on other processors than x86, the fence is weaker; who sleeps looks at the counts whenever a slice ends.

When the store is destroyed the destroyer posts every parking semaphore, so slices can be as long as a death may go unnoticed.
A slice costs what the caches lost meanwhile: 0.1 to 0.5 ms of CPU (measured, a virtual machine, idle or overloaded); so eight
that wait use 0.1 to 0.45 percent of a core.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MFSNoSpaceError
from . import mutex
from .layout import (
    BACKEND_OFD,
    E_GENERATION,
    E_NODE,
    E_NUMBER,
    E_STAMP,
    ENTRIES,
    ENTRY_WORDS,
    LOCK_ABANDONED,
    LOCK_WRITER,
    N_GENERATION,
    N_STAMP,
    NODE_WORDS,
    RING_AT,
    RING_WORDS,
    S_PUBLISHED,
    S_RING,
    S_SLEEPERS,
    S_WATCHES,
    SLOTS_BACKED,
    STAMP_MASK,
    STATE_READY,
    W_BACKEND,
    W_STATE,
    WATCHED,
    WORD,
)
from .recovery import membarrier
from .section import Section
from .semaphores import sleep_on

if TYPE_CHECKING:
    from .attachment import Attachment

SLICE_S = 0.95
BITS = 64


class Publication(NamedTuple):
    """A file that was said to be complete."""

    node: int
    generation: int
    stamp: int


class Publications:
    """What one attached process announces, and wants to know."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.layout = store.layout
        self._at = 0
        self._next = 0
        self._turn = threading.RLock()  # orders those of this process who begin and end to watch
        self._watchers: set[object] = set()
        self._watching = False
        self.lookouts: dict[object, object] = {}  # what the floors above keep about the files that they want

    def settle(self, slot: int) -> None:
        """From now on the ring is that of this slot."""
        self._at = self.layout.slot_at(slot)
        self._next = self.w[self._at + S_PUBLISHED]

    # ---- announcing. Called when WATCHED was not 0 after the file became complete

    def announce(self, node: int) -> None:
        """A file may be complete now. If it has a writer, that one announces it."""
        w, at = self.w, self.layout.nodes_at + node * NODE_WORDS
        if w[at] & (LOCK_WRITER | LOCK_ABANDONED):
            return
        try:
            self._append(node, w[at + N_GENERATION], w[at + N_STAMP] & STAMP_MASK)
        except MFSNoSpaceError:
            self._skip()
        except BaseException:
            self.announce_all()
            raise
        self._wake()

    def announce_all(self) -> None:
        """Any file may be complete now, or have another name."""
        self._skip()
        self._wake()

    def _append(self, node: int, generation: int, stamp: int) -> None:
        w, at = self.w, self._at
        number = self._next + 1
        self._next = number
        place = (number - 1) % ENTRIES * ENTRY_WORDS
        if place >= w[at + S_RING]:
            self.store.index.back((at + RING_AT) * WORD, RING_WORDS * WORD)
            w[at + S_RING] = RING_WORDS
        entry = at + RING_AT + place
        w[entry + E_NUMBER] = 0
        w[entry + E_NODE] = node
        w[entry + E_GENERATION] = generation
        w[entry + E_STAMP] = stamp
        w[entry + E_NUMBER] = number
        self._raise(number)

    def _skip(self) -> None:
        number = self._next + ENTRIES + 1
        self._next = number
        self._raise(number)

    def _raise(self, number: int) -> None:
        """Raise the count, unless another thread has raised it further."""
        w, at = self.w, self._at + S_PUBLISHED
        if w[at] < number:  # noqa: PLR1730  (a call would let another thread, or a signal handler, come in between)
            w[at] = number

    def _wake(self) -> None:
        w, layout = self.w, self.layout
        mutex.close_and_open()
        watched, backed = w[WATCHED], min(w[SLOTS_BACKED], layout.slots)
        for slot in _slots(watched, backed):
            self._wake_slot(slot)

    def _wake_slot(self, slot: int) -> None:
        sleepers = self.w[self.layout.slot_at(slot) + S_SLEEPERS]
        while sleepers:
            park = (sleepers & -sleepers).bit_length() - 1
            sleepers &= sleepers - 1
            self.store.rw.wake(slot, park)

    # ---- wanting to know

    def watch(self, who: object) -> None:
        """From now on everything that is published is announced, until `unwatch(who)` or the end of our stay."""
        if self._watching and who in self._watchers:
            return
        with self._turn:
            self._watchers.add(who)
            if not self._watching:
                self.store.transact(self._begin, self.store.patience)
                if self.w[W_BACKEND] != BACKEND_OFD:
                    membarrier()
                self._watching = True

    def unwatch(self, who: object) -> None:
        with self._turn:
            self._watchers.discard(who)
            if not self._watchers and self._watching:
                self._watching = False
                self.store.transact(self._end, self.store.patience)

    def leave(self, *, for_good: bool) -> None:
        """Somebody of this process wants to know no more, or (*for good*) everybody: wake them to see whether it is they."""
        with self._turn:
            if self._watching:
                if for_good:
                    self._watchers.clear()
                    self.unwatch(None)
                self._wake_slot(self.store.slot)

    def _begin(self, section: Section) -> None:
        section.plan[self._at + S_WATCHES] = 1
        section.plan[WATCHED] = self.w[WATCHED] | 1 << self.store.slot % BITS

    def _end(self, section: Section) -> None:
        self._clear(section, self.store.slot)

    def forget(self, section: Section, slot: int) -> None:
        """What dead tenants of a slot wanted to know."""
        at = self.layout.slot_at(slot)
        if self.w[at + S_WATCHES]:
            self._clear(section, slot)
            section.plan[at + S_SLEEPERS] = 0

    def _clear(self, section: Section, slot: int) -> None:
        w, layout = self.w, self.layout
        section.plan[layout.slot_at(slot) + S_WATCHES] = 0
        backed = min(w[SLOTS_BACKED], layout.slots)
        others = (other for other in range(slot % BITS, backed, BITS) if other != slot)
        if not any(w[layout.slot_at(other) + S_WATCHES] for other in others):
            section.plan[WATCHED] = w[WATCHED] & ~(1 << slot % BITS)

    def sleep(self, reader: Reader, seconds: float) -> None:
        """Sleep until something is announced that the reader has not read, at most a slice. REQUIRES that we watch.

        Who may be called off (`Threads.on_behalf`) has short slices, as in a wait for a lock.
        """
        patient = self.store.threads.thread.is_called_off is None
        seconds = min(seconds, SLICE_S if patient else mutex.SLICE_S)
        w, at = self.w, self._at + S_SLEEPERS
        with self.store.rw.parking() as (park, semaphore):
            if semaphore is None:
                time.sleep(min(seconds, 0.005))
                return
            w[at] = w[at] | 1 << park  # no call comes in between, and so no other thread
            try:
                mutex.close_and_open()
                if w[W_STATE] == STATE_READY and not reader.has_news() and seconds > 0:
                    sleep_on(semaphore, seconds)
            finally:
                w[at] = w[at] & ~(1 << park)


class Reader:
    """How far somebody has read the rings of all slots."""

    def __init__(self, store: Attachment) -> None:
        self.w = store.w
        self.layout = store.layout
        self.known: dict[int, int] = {}
        self.skip()

    def _counts(self) -> list[tuple[int, int]]:
        """(slot, count) where the count is not the one that is known."""
        w, at, known = self.w, self.layout.slot_at, self.known
        counts = ((slot, w[at(slot) + S_PUBLISHED]) for slot in range(min(w[SLOTS_BACKED], self.layout.slots)))
        return [(slot, count) for slot, count in counts if count != known.get(slot, 0)]

    def has_news(self) -> bool:
        return bool(self._counts())

    def skip(self) -> None:
        """Take all for read. Comes before looking at all files."""
        self.known.update(self._counts())

    def news(self) -> list[Publication] | None:
        """What was announced since; None if not all of it is to be found any more: then look at all files, after `skip`."""
        found: list[Publication] = []
        complete = True
        for slot, count in self._counts():
            known = self.known.get(slot, 0)
            if not 0 < count - known <= ENTRIES:
                return None
            self.known[slot] = count
            for number in range(known + 1, count + 1):
                entry = self._entry(slot, number)
                if entry is None:
                    complete = False
                else:
                    found.append(entry)
        return found if complete else None

    def _entry(self, slot: int, number: int) -> Publication | None:
        w, at = self.w, self.layout.slot_at(slot)
        place = (number - 1) % ENTRIES * ENTRY_WORDS
        if place >= min(w[at + S_RING], RING_WORDS):
            return None
        entry = at + RING_AT + place
        before = w[entry + E_NUMBER]
        found = Publication(w[entry + E_NODE], w[entry + E_GENERATION], w[entry + E_STAMP])
        return found if before == number == w[entry + E_NUMBER] else None


def _slots(watched: int, backed: int) -> list[int]:
    """The slots that the bits of WATCHED stand for."""
    found: list[int] = []
    while watched:
        found += range((watched & -watched).bit_length() - 1, backed, BITS)
        watched &= watched - 1
    return found
