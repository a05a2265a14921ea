"""Where the bytes of a file stand: room for more of them, blocks of its own, one run, back to what it needs.

Each of these is for whoever holds the file's lock, so that nobody reads or writes the bytes that move. What is copied goes
into a stash first, outside any section (see `content`), and takes its place in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..errors import (
    MFSAbandonedFileError,
    MFSNoSpaceError,
    MFSStoreBusyError,
    MFSViewError,
)
from .layout import (
    HELD,
    KIND_FILE,
    LOCK_ABANDONED,
    LOCK_WRITER,
    LOW32,
    N_CAPACITY,
    N_GENERATION,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SEQ,
    N_SIZE,
    NAMESPACE,
    NODE_WORDS,
    PAGE,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
)
from .lease import Lease
from .section import Section
from .segment import Segment

if TYPE_CHECKING:
    from .attachment import Attachment
    from .namespace import Fill, Found


T = TypeVar("T")
_CHANGES = LOCK_WRITER | LOCK_ABANDONED


class Placement:
    """Moves, grows, shrinks and pins the content of files that this process holds."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.tree = store.tree
        self.content = store.content
        self.names = store.names
        self.nodes_at = store.layout.nodes_at

    def at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    def stash(
        self,
        pin: int,
        size: int,
        fill: Fill,
        account: Callable[[], int],
        timeout: float | None,
        until: float = 0.0,
        *,
        charged: bool = True,
    ) -> None:
        """Blocks for *size* bytes, filled, held by the pin record, and charged to what ``account()`` says inside m[0]."""
        node = self.store.space.transact(
            lambda section: self.content.stash(section, pin, size, account(), charged=charged), timeout, until
        )
        run = self.w[self.at(node) + N_RUN]
        if run:
            fill(*self.store.arenas.locate(run))

    def give_back_pin(self, lease: Lease) -> None:
        """End what a pin record holds, if it still holds anything, and return its lease; if that fails, lose it."""
        pin, leases = lease.word, self.content.leases
        try:
            if self.store.threads.thread.inside:  # a section could not be abandoned
                self.store.mend()
            if self.w[pin]:
                self.store.transact(lambda section: self.content.unpin(section, pin), self.store.patience)
                self.store.sweep.drain_pinned()
        except MFSStoreBusyError:
            leases.lose(lease)
        except BaseException:
            lease.is_lost = True  # first, and without a call: there may be no memory for one
            leases.lost.append(None)
            self.store.dropped.append(None)
            raise
        else:
            leases.free.append(lease)

    def fit(self, node: int) -> None:
        """Give back the blocks beyond a file's size, unless they are pinned. REQUIRES its exclusive lock."""
        at = self.at(node)

        def step(section: Section) -> bool:
            if section.plan[at + N_PIN] & LOW32:
                return False
            return self.content.shrink(section, at, self.w[at + N_SIZE])

        while self.store.transact(step, self.store.patience):
            pass

    def fit_for_dead(self, slot: int, below: int, timeout: float | None) -> None:
        """What `finish` does at a close, for the files that dead tenants of a slot were writing. Comes before its locks are
        given back: while they stand, nobody else is in these files.

        Each of them takes a visit to m[0], needed or not: what stands in its words until then may be a transaction that
        the dead one left open there, and whoever gets the lock must not find that.
        """
        w = self.w
        for record in self.store.rw.records(slot):
            word = w[record]
            if word & REC_STATE == HELD and word & REC_WRITER:
                self.tree.check_node(word >> REC_NODE_SHIFT, record)
                self._fit_for_dead(slot, below, record, word, timeout)

    def _fit_for_dead(self, slot: int, below: int, record: int, word: int, timeout: float | None) -> None:
        w, node, some = self.w, word >> REC_NODE_SHIFT, self.store.participants
        at = self.at(node)

        def step(section: Section) -> bool:
            section.enter(node)
            if not some.is_unreaped(slot, below) or w[record] != word:
                return False
            if self.tree.kind(node) != KIND_FILE or w[at + N_PIN] & LOW32:
                return False
            return self.content.shrink(section, at, w[at + N_SIZE])

        while self.store.transact(step, timeout):
            pass

    def grow(self, node: int, size: int, timeout: float | None, until: float) -> None:
        """Blocks for *size* bytes. REQUIRES the exclusive lock."""
        at = self.at(node)
        self.store.space.transact(lambda section: self.content.grow(section, at, size), timeout, until)

    def unshare(self, node: int, keep: int, size: int, timeout: float | None, until: float = 0.0) -> None:
        """Before a pinned file is changed: fresh blocks for *size* bytes with its first *keep*; the views keep the old.

        REQUIRES the exclusive lock. With nothing to keep the file is left without blocks. The file's size becomes *keep*
        in the same transaction, so that no death leaves more bytes than blocks.
        """
        at = self.at(node)
        if not keep:
            self.store.transact(lambda section: self._divorce(section, node), timeout)
            return
        held = [self.content.lease_pin()]
        pin = held[0].word
        try:
            runs = self.content.runs(self.w, at)

            def fill(target: Segment, offset: int) -> None:
                self.store.arenas.copy_out(runs, keep, target, offset)

            self.stash(pin, size, fill, lambda: self.w[at + N_PIN] >> 32, timeout, until)

            def swap(section: Section) -> None:
                self.content.release_for_stash(section, node)
                self.content.take_from_stash(section, pin, node)
                section.set(node, N_SIZE, keep)

            self.store.transact(swap, timeout)
        finally:
            self.give_back_pin(held.pop())

    def _divorce(self, section: Section, node: int) -> None:
        if section.plan[self.at(node) + N_PIN] & LOW32:
            self.content.divorce(section, node)
            section.set(node, N_SIZE, 0)

    def pin(self, found: Found, text: str, timeout: float | None, *, allow_abandoned: bool) -> tuple[Lease, int, int] | None:
        """Pin a file's content: (its pin record, run, size), run 0 if it is empty; None if the file is another one by now.

        The content stands in one run afterwards: a file that grew in pieces is moved, which takes its exclusive lock.
        """
        node, w, rw = found[0], self.w, self.store.rw
        at = self.at(node)
        pieces = w[at + N_RUNS] >> 32
        held, pin = [rw.lease()], self.content.lease_pin()
        try:
            if not rw.lock(*found, held[0].word, REC_WRITER if pieces else 0, timeout):
                return None
            if w[at] & LOCK_ABANDONED and not allow_abandoned:
                raise MFSAbandonedFileError(text)
            if w[at + N_RUNS] >> 32 and not pieces:
                return None  # it came in pieces since: once more, with the exclusive lock
            return pin, *self.pin_held(node, pin.word, timeout)
        finally:
            rw.give_back(held.pop())

    def pin_again(self, found: Found, make: Callable[[Attachment, int, int, int], T]) -> T | None:
        """As `pin`, by the pin of a view that has just gone, which the next operation would give back: what ``make(store, word
        of the record, run, size)`` makes of it. None if it is not of what the file has now, or somebody changes the file."""
        leases = self.content.leases
        try:
            note = leases.lost.pop()
        except IndexError:  # another thread was quicker
            return None
        try:
            if note is not None and note() is None and leases.is_last(note):
                pinned = self._is_pinned(found, self.w[note.word])
                if pinned is not None:
                    return make(self.store, note.word, pinned[0], pinned[1])
        except BaseException:
            leases.lost.append(None)
            raise
        leases.lost.append(note)
        return None

    def _is_pinned(self, found: Found, pin_node: int) -> tuple[int, int] | None:
        """(run, size) of a file whose present content that pin node pins, and that nobody writes; read as a reader without a
        lock reads, with the sequence first and last."""
        w, at = self.w, self.nodes_at + found[0] * NODE_WORDS
        sequence = w[at + N_SEQ]
        if sequence & 1 or not pin_node or w[at] & _CHANGES or w[at + N_GENERATION] != found[1] or w[at + N_RUNS]:
            return None
        size, run, pinned = w[at + N_SIZE], w[at + N_RUN], w[at + N_PIN] & LOW32
        if pinned != pin_node or w[at] & _CHANGES or w[at + N_GENERATION] != found[1] or w[NAMESPACE] != found[2]:
            return None
        return (run, size) if w[at + N_SEQ] == sequence else None

    def pin_held(self, node: int, pin: int, timeout: float | None) -> tuple[int, int]:
        """Pin the content of a file that we hold, exclusively if it is in pieces: (run, size), run 0 if it is empty."""
        w, at = self.w, self.at(node)
        size = w[at + N_SIZE]
        if not size:
            return 0, 0
        self.content.check_size(at)
        if w[at + N_RUNS] >> 32:
            self.unite(node, size, timeout)
        self.store.transact(lambda section: self.content.pin(section, node, pin), timeout)
        return w[at + N_RUN], size

    def unite(self, node: int, size: int, timeout: float | None) -> None:
        """Have a file that nobody pins in one run. REQUIRES its exclusive lock. MFSViewError."""
        at = self.at(node)
        held = [self.content.lease_pin()]
        pin = held[0].word
        try:
            runs = self.content.runs(self.w, at)
            capacity = self.w[at + N_CAPACITY]

            def fill(target: Segment, offset: int) -> None:
                self.store.arenas.copy_out(runs, size, target, offset)

            try:
                self.stash(pin, capacity, fill, lambda: 0, timeout, charged=False)
            except MFSNoSpaceError:
                largest = self.store.sections.run(lambda section: self.content.blocks.largest_free_pages(section.plan), timeout)
                raise MFSViewError(size, largest * PAGE) from None
            self.store.transact(lambda section: self.content.exchange_runs(section, node, pin), timeout)
        finally:
            self.give_back_pin(held.pop())
