"""Reader-writer locks of files, for processes and threads, granted first come, first served.

Guarantees. Readers share, a writer excludes everybody. A lock is held at once only if nobody waits; otherwise the
request queues, and grants leave the queue in the order of arrival. The death of a holder frees what it held, the death
of a waiter is skipped; either is noticed within a slice by anybody who waits there: 50 ms, or 500 for those of a process
who found no parking semaphore any more. A lock is never lost and never held twice, whoever is killed, interrupted or
timed out wherever. Who asks is a thread, or whoever a thread asks on behalf of (`Threads.on_behalf`).

Words. `record` (one a request, in the slot of its process, which alone makes it non-free) is the truth:

    FREE -> HELD              owner, at once                  QUEUED -> FREE    owner (timeout), or reaped
    FREE -> QUEUED            owner                           GRANTED -> FREE   owner (exception), or reaped
    QUEUED -> GRANTED         whoever removed something       HELD -> FREE      owner, or reaped
    GRANTED -> HELD           owner, when it looks

The node's `lock` word is a cache of the records of that node (how many hold it, head and tail of the queue), but for its
ABANDONED bit. Both are read and stored only inside the node's mutex, each transition one transaction. Outside, nothing
is believed: the token of a parking semaphore, or the record itself for a waiter without one, only says "go and look".

A record's DIRTY bit says that its holder, a writer, changes content: with the lock for wb and xb, by a plain store of
the holder before the first change for r+b and ab. Reaping a dirty record marks the file abandoned.

*Light holds* spare readers the mutex. While LIGHT and MORE stand in the lock word, which is while nobody writes, waits,
renames or removes, a reader stores his record plainly, HELD and LIGHT, and the node with its generation in the table of
light holds; then comes a full fence; then he looks whether both bits still stand and the node is the one that was looked up.
If so he holds the file. Else he looks again in the mutex: if LIGHT stands, somebody may have seen him, and he holds it
lightly; if not, he takes it back and goes the way above. (Who refuses or waits because of a reader must be right.) He gives
his hold back by clearing his word of the table, a fence, and a look at the bits.

Whoever wants readers out (`settled`, in the mutex) clears MORE first; then comes a full fence; then he searches the table for
the node and its generation. So one of the two sees the other (Dekker's argument), and a reader who ends and finds MORE gone
looks, in the mutex, who waits for it. LIGHT, which is cleared when nobody was found, makes the lock word busy to everybody
who does not settle it. Both bits are only ever set plainly, with no transaction open: a roll-back never takes LIGHT away
from readers who have seen it. They are set where a file is made, and by each reader who had to take the mutex. The table has
a cache line for each slot: its first records may hold lightly, so that it is small. Nearly always it is empty: one comparison.
The fence is a full one on x86; elsewhere, and with the kernel's locks for mutexes, nobody holds lightly.

`sequence` makes reads without the lock possible: it goes odd inside the transaction that ends a writer's hold (its undo
value is the next even one, so that a roll-back never brings an old value back) and even after its commit. A reader that
saw no writer, an even sequence and the same generation before and after has read what a reader with the lock would have
read. An odd one found under the mutex is a dead writer's; the next transaction evens it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import posix_ipc

from ..errors import (
    MFSCorruptStoreError,
    MFSDeadlockError,
    MFSLockTimeoutError,
    MFSStoreBusyError,
    MFSTooManyHandlesError,
    raise_if_damage,
)
from . import names
from .journal import Plan, Words, commit
from .layout import (
    BACKEND_GENERATION,
    FREE,
    GRANTED,
    HELD,
    HELD_LIGHTLY,
    INODE_MUTEXES,
    KIND_FILE,
    KIND_SHIFT,
    LIGHT,
    LIGHT_RECORDS,
    LOCK_ABANDONED,
    LOCK_BUSY,
    LOCK_COME,
    LOCK_HEAD_SHIFT,
    LOCK_LIGHT,
    LOCK_MORE,
    LOCK_READERS,
    LOCK_RECORD_MASK,
    LOCK_TAIL_SHIFT,
    LOCK_WRITER,
    LOW32,
    N_GENERATION,
    N_NAME,
    N_SEQ,
    NAMESPACE,
    NODE_WORDS,
    PAGE,
    PAGE_WORDS,
    PARKS,
    QUEUED,
    R_SINCE,
    R_THREAD,
    REC_DIRTY,
    REC_DROPPED,
    REC_IS_LIGHT,
    REC_NEXT_MASK,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_PARK_MASK,
    REC_PARK_SHIFT,
    REC_STATE,
    REC_WRITER,
    RECORD_WORDS,
    RECORDS,
    RECORDS_AT,
    RECORDS_RESERVED,
    S_RECORDS,
    SLOTS_BACKED,
    STATE_READY,
    W_BACKEND,
    W_STATE,
    WATCHED,
    WORD,
    journal_at,
)
from .lease import Lease, Leases
from .mutex import SLICE_S, Fence, Mutex, Thread, Threads, close_and_open, fence_instead
from .semaphores import sleep_on

if TYPE_CHECKING:
    from .attachment import Attachment

GRANTS_A_TRANSACTION = 60
DOZE_S = 0.5
PARKS_AT_MOST = PARKS - 1
_NEXT = REC_NEXT_MASK << REC_NEXT_SHIFT
_READERS = LOCK_READERS | LOCK_LIGHT
_QUEUE = ~(LOCK_READERS | LOCK_WRITER | LOCK_ABANDONED | LOCK_COME) & ((1 << 64) - 1)
_EXCLUDES_READERS = _QUEUE | LOCK_WRITER
_WRITES = HELD | REC_WRITER
_UNWRITTEN = ~(LOCK_WRITER | LOCK_MORE) & ((1 << 64) - 1)
_LIGHT_START, _LIGHT_BYTES = LIGHT * WORD, LIGHT_RECORDS * WORD
_LIGHT_OR_FREE = (HELD_LIGHTLY, FREE)
_COMPLETE = ~LOCK_ABANDONED & _UNWRITTEN
_NO_SEMAPHORE = (posix_ipc.Error, OSError, MemoryError)  # posix_ipc makes the last one of ENOMEM


class Hold(NamedTuple):
    """A record as others see it: who holds or waits for which node."""

    slot: int
    node: int
    state: int
    writer: bool
    thread: int
    since_ns: int


class FileLocks:
    """The locks of all files, as one attached process takes them.

    A record is named by its word (``record``). It is leased (`lease`) before it is used and its lease given back after it
    is free again, so that what a record holds always belongs to somebody: see the module `lease`.
    """

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w: Words = store.w
        self.layout = store.layout
        self.mutexes: list[Mutex] = store.mutexes
        self.threads: Threads = store.threads
        self.nodes_at = store.layout.nodes_at
        self.leases = Leases()
        self.free = self.leases.free
        self._light_end = 0  # records in front of this word may hold lightly
        light = store.w[W_BACKEND] == BACKEND_GENERATION and os.uname().machine == "x86_64"
        self.come = LOCK_COME if light else 0  # what a lock word says while readers may come who hold lightly
        self._light = 0  # by which record // RECORD_WORDS is the word of its light hold
        self._fence: Callable[[], object] = close_and_open
        self._parks = Leases()
        self._mm: Any = store.index.mm
        self._nobody = b""  # the table of light holds as it is when there are none
        self._semaphores: dict[tuple[int, int], posix_ipc.Semaphore] = {}

    def settle_in(self, slot: int, fence: Fence) -> None:
        """From now on our records are those of this slot."""
        first = self.layout.slot_at(slot) + RECORDS_AT + RECORDS_RESERVED * RECORD_WORDS
        self._light_end = first + LIGHT_RECORDS * RECORD_WORDS
        self._light = LIGHT + slot * LIGHT_RECORDS - first // RECORD_WORDS
        self._fence = fence.call

    # ---- records

    def lease(self) -> Lease:
        """A free record of ours. MFSTooManyHandlesError, MFSNoSpaceError."""
        try:
            return self.free.pop()
        except IndexError:
            return self._lease_more()

    def _lease_more(self) -> Lease:
        store = self.store
        with store.growing:
            slot_at = self.layout.slot_at(store.slot)
            index = RECORDS_RESERVED + len(self.leases)
            if index == RECORDS:
                raise MFSTooManyHandlesError(f"At most {RECORDS - RECORDS_RESERVED} open handles a process.")
            if index == self.w[slot_at + S_RECORDS]:
                store.back((slot_at + RECORDS_AT + index * RECORD_WORDS) * WORD, PAGE)
                self.w[slot_at + S_RECORDS] = index + PAGE_WORDS // RECORD_WORDS
            if RECORDS_RESERVED + len(self.leases) != index:  # a signal handler came in between
                return self.lease()
            return self.leases.add(slot_at + RECORDS_AT + index * RECORD_WORDS)

    def announce(self, record: int) -> None:
        """Say in a record of ours whose request it is, before it is made; advisory, for `holds` and for our own thread."""
        self.w[record + R_THREAD] = self.threads.thread.word
        self.w[record + R_SINCE] = time.time_ns()

    # ---- the two calls of the hot path

    def lock(
        self,
        node: int,
        generation: int,
        namespace: int,
        record: int,
        kind: int,
        timeout: float | None,
        *,
        waits: bool = True,
    ) -> bool:
        """Take the lock of a node, shared (kind 0) or exclusive (REC_WRITER, perhaps with REC_DIRTY).

        False: the node has another generation, or the namespace changed, since they were looked up; look up again. Or,
        unless it *waits*, the lock was not to be had at once.
        MFSLockTimeoutError: not within *timeout* seconds. MFSDeadlockError: the calling thread is in its own way.
        After these two the record is free; after any other exception `give_back` is to mend it. After False it may hold the
        node lightly until it is used again or given back, so that whoever has seen that was right.
        """
        w = self.w
        at = self.nodes_at + node * NODE_WORDS
        thread = self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        w[record + R_THREAD] = thread.word
        w[record + R_SINCE] = time.time_ns()
        mutex = self.mutexes[1 + node % INODE_MUTEXES]
        try:
            if w[at] & LOCK_COME == LOCK_COME and not kind and record < self._light_end:
                w[record] = HELD_LIGHTLY | node << REC_NODE_SHIFT
                w[record // RECORD_WORDS + self._light] = (generation & LOW32) << 32 | node
                try:
                    self._fence()
                except OSError as error:
                    self._fence = fence_instead(error)
                if (
                    w[at] & LOCK_COME == LOCK_COME
                    and w[at + N_GENERATION] == generation
                    and w[NAMESPACE] == namespace
                    and w[W_STATE] == STATE_READY
                ):
                    return True
            mutex.acquire(thread, timeout)
            if w[at + N_GENERATION] != generation:
                if not kind and w[record]:
                    self._free_light(record)
                mutex.release(thread)
                return False
            if w[NAMESPACE] != namespace:
                mutex.release(thread)
                return False
            lock = w[at]
            if kind:
                if lock & LOCK_LIGHT:
                    lock = self.settled(at)
            elif w[record]:  # whoever wants readers out may have seen us; or it is about another node, from an earlier call
                if lock & LOCK_LIGHT and w[record // RECORD_WORDS + self._light] == self._as_held(at):
                    mutex.release(thread)
                    return True
                self._free_light(record)
            if lock & (LOCK_BUSY if kind else _EXCLUDES_READERS):
                mutex.release(thread)
                taken = False
            else:
                entry = mutex.journal
                w[entry + 1] = record
                w[entry + 2] = FREE
                w[entry + 3] = at
                w[entry + 4] = lock
                w[entry] = 2
                w[record] = HELD | kind | node << REC_NODE_SHIFT
                w[at] = lock | LOCK_WRITER if kind else lock + 1
                w[entry] = 0
                if not kind:
                    w[at] = lock + 1 | self.come
                mutex.release(thread)
                taken = True
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise_if_damage()
            raise
        return taken or (waits and _Request(self, node, generation, namespace, record, kind, timeout).wait())

    def unlock(self, record: int, *, clears: bool = True) -> None:
        """Give back what the record holds; it is free then. A writer leaves the file complete, unless *clears* is false."""
        word = self.w[record]
        if not self._leave_lightly(record, word):
            self._unlock(record, word, clears=clears)

    def _unlock(self, record: int, word: int, *, clears: bool) -> None:
        """`unlock`, in the mutex of the node that *word*, what the record says or said, is about."""
        w = self.w
        node = word >> REC_NODE_SHIFT
        at = self.nodes_at + node * NODE_WORDS
        mutex = self.mutexes[1 + node % INODE_MUTEXES]
        thread = self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        posts: list[int] | None = None
        try:
            mutex.acquire(thread, self.store.patience)
            held, lock = w[record], w[at]
            if held & REC_IS_LIGHT in _LIGHT_OR_FREE:
                self._free_light(record)
                posts = self.pump_on(mutex, at)
            elif lock & _QUEUE:
                posts = self._remove(mutex, record, clears=clears)
            elif held & REC_WRITER:
                entry, odd = mutex.journal, w[at + N_SEQ] | 1
                w[entry + 1] = at + N_SEQ
                w[entry + 2] = odd + 1
                w[entry + 3] = record
                w[entry + 4] = held
                w[entry + 5] = at
                w[entry + 6] = lock
                w[entry] = 3
                w[at + N_SEQ] = odd
                w[record] = FREE
                w[at] = lock & (_COMPLETE if clears else _UNWRITTEN)
                w[entry] = 0
                if lock & LOCK_MORE and clears:
                    w[at] = lock & _COMPLETE | self.come
                w[at + N_SEQ] = odd + 1
            else:
                entry = mutex.journal
                w[entry + 1] = record
                w[entry + 2] = held
                w[entry + 3] = at
                w[entry + 4] = lock
                w[entry] = 2
                w[record] = FREE
                w[at] = lock - 1
                w[entry] = 0
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise_if_damage()
            raise
        if posts:
            for park in posts:
                self.post(park)

    # ---- light holds

    def _leave_lightly(self, record: int, word: int) -> bool:
        """End a hold of ours, whose record says *word*, without the mutex. False: it is no light one, or somebody wants readers
        out; whoever waits is to be granted it then."""
        w = self.w
        at = self.nodes_at + (word >> REC_NODE_SHIFT) * NODE_WORDS
        if word & REC_IS_LIGHT != HELD_LIGHTLY or w[at] & LOCK_COME != LOCK_COME:
            return False
        w[record // RECORD_WORDS + self._light] = 0
        try:
            self._fence()
        except OSError as error:
            self._fence = fence_instead(error)
        w[record] = FREE
        return w[at] & LOCK_COME == LOCK_COME

    def settled(self, at: int) -> int:
        """A node's lock word, after which no more readers can come who hold lightly; with LOCK_LIGHT there are some yet.

        Before a plan has the word, with no transaction open, of a node that is in use and stays so: in its mutex, or detached.
        """
        w = self.w
        lock = w[at]
        if lock & LOCK_LIGHT:
            w[at] = lock = lock & ~LOCK_MORE
            try:
                self._fence()
            except OSError as error:
                self._fence = fence_instead(error)
            table = self._mm[_LIGHT_START : _LIGHT_START + w[SLOTS_BACKED] * _LIGHT_BYTES]
            if table == self._nobody or not self._is_in(table, at):
                w[at] = lock = lock & ~LOCK_LIGHT
        return lock

    def _is_in(self, table: bytes, at: int) -> bool:
        """Whether a node is in a copy of the table of light holds, in which somebody is, or of another size than the last."""
        self._nobody = bytes(len(table))
        return self._as_held(at) in memoryview(table).cast("Q").tolist()

    def _as_held(self, at: int) -> int:
        """What the table of light holds says of a node that is held, also of one that became an orphan since (even)."""
        return ((self.w[at + N_GENERATION] - 1 | 1) & LOW32) << 32 | (at - self.nodes_at) // NODE_WORDS

    def is_standing(self, record: int) -> bool:
        """Whether a record that is not free is about the node that there is; a light one may be about one that was."""
        word = self.w[record]
        if word & REC_IS_LIGHT != HELD_LIGHTLY:
            return True
        return self.w[self._light_word(record)] == self._as_held(self.nodes_at + (word >> REC_NODE_SHIFT) * NODE_WORDS)

    def _light_word(self, record: int) -> int:
        slot, number = divmod(self.number(record), RECORDS)
        return LIGHT + slot * LIGHT_RECORDS + number - RECORDS_RESERVED

    def _free_light(self, record: int) -> None:
        """End a light hold, or what is left of it; ours, or a dead one's."""
        if self.number(record) % RECORDS < RECORDS_RESERVED + LIGHT_RECORDS:
            self.w[self._light_word(record)] = 0
        self.w[record] = FREE

    # ---- transactions, inside the node's mutex

    def pump(self, plan: Plan, at: int) -> list[int]:
        """Grant the head of the queue while it is compatible with the holders. Returns the records to be woken."""
        granted: list[int] = []
        lock = plan[at]
        while (head := lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK) and len(granted) < GRANTS_A_TRANSACTION:
            record = self.layout.record_at(head)
            word = self._queued(plan, record, at)
            if lock & LOCK_WRITER or (word & REC_WRITER and lock & _READERS):
                break
            following = word >> REC_NEXT_SHIFT & REC_NEXT_MASK
            plan[record] = word & ~(_NEXT | REC_STATE) | GRANTED
            tail = lock >> LOCK_TAIL_SHIFT if following else 0
            lock = lock & ~_QUEUE | following << LOCK_HEAD_SHIFT | tail << LOCK_TAIL_SHIFT
            lock = lock | LOCK_WRITER if word & REC_WRITER else lock + 1
            granted.append(record)
        if granted:
            plan[at] = lock
        return granted

    def drop(self, plan: Plan, record: int, at: int, *, reaped: bool = False, clears: bool = False) -> None:
        """Free one record, whatever its state. The caller pumps afterwards, in the same transaction."""
        word, lock = plan[record], plan[at]
        if word & REC_STATE == QUEUED:
            lock = self._unlink(plan, record, at)
        elif word & REC_WRITER:
            lock &= _UNWRITTEN
            if clears:
                lock &= ~LOCK_ABANDONED
            elif reaped and word & REC_STATE == HELD and word & REC_DIRTY:
                lock |= LOCK_ABANDONED
            sequence = plan[at + N_SEQ] & ~1
            plan[at + N_SEQ] = sequence + 1
            plan.never_back(at + N_SEQ, sequence + 2)
        else:
            lock -= 1
        plan[record] = FREE
        plan[at] = lock

    def _unlink(self, plan: Plan, record: int, at: int) -> int:
        """The lock word after the record has left the queue."""
        lock, gone = plan[at], self.number(record)
        following = plan[record] >> REC_NEXT_SHIFT & REC_NEXT_MASK
        head, tail = lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK, lock >> LOCK_TAIL_SHIFT
        if head == gone:
            head = following
            tail = tail if following else 0
        else:
            before = self._before(plan, head, gone, at)
            plan[self.layout.record_at(before)] = plan[self.layout.record_at(before)] & ~_NEXT | following << REC_NEXT_SHIFT
            if tail == gone:
                tail = before
        return lock & ~_QUEUE | head << LOCK_HEAD_SHIFT | tail << LOCK_TAIL_SHIFT

    def _before(self, plan: Plan, head: int, gone: int, at: int) -> int:
        number = head
        for _ in range(self.layout.slots * RECORDS):
            following = self._queued(plan, self.layout.record_at(number), at) >> REC_NEXT_SHIFT & REC_NEXT_MASK
            if following == gone:
                return number
            number = following
        raise MFSCorruptStoreError("index", at * WORD, "a queue that ends", plan[at])

    def _queued(self, plan: Plan, record: int, at: int) -> int:
        """The word of a record that must be queued for this node."""
        word = plan[record] if record < self.layout.buckets_at else 0
        node = (at - self.nodes_at) // NODE_WORDS
        if word & REC_STATE != QUEUED or word >> REC_NODE_SHIFT != node:
            raise MFSCorruptStoreError("index", record * WORD, f"a record queued for node {node}", word)
        return word

    def number(self, record: int) -> int:
        """The number of the record at a word, as queues and `Layout.record_at` have it."""
        slot, rest = divmod(record - self.layout.slot_at(0), self.layout.slot_at(1) - self.layout.slot_at(0))
        return slot * RECORDS + (rest - RECORDS_AT) // RECORD_WORDS

    def _commit(self, mutex: Mutex, plan: Plan, at: int) -> None:
        """Commit, and even the sequence if the transaction left it odd."""
        commit(self.w, mutex.journal, plan)
        if plan.undo is not None:
            self.w[at + N_SEQ] = plan[at + N_SEQ] + 1

    def _remove(self, mutex: Mutex, record: int, *, reaped: bool = False, clears: bool = False) -> list[int]:
        """Free a record and grant what that makes possible; the caller holds the mutex of its node."""
        at = self.nodes_at + (self.w[record] >> REC_NODE_SHIFT) * NODE_WORDS
        if self.w[record] & REC_IS_LIGHT == HELD_LIGHTLY:
            self._free_light(record)
            return self.pump_on(mutex, at)
        plan = Plan(self.w)
        self.drop(plan, record, at, reaped=reaped, clears=clears)
        granted = self.pump(plan, at)
        self._commit(mutex, plan, at)
        return granted + self.pump_on(mutex, at)

    def pump_on(self, mutex: Mutex, at: int) -> list[int]:
        """Grant what can be granted, in as many transactions as it takes.

        Without a queue the lock word is not touched: a reader who comes late may be here for a node that is free by now, and
        whoever makes a file of it stores its lock word in m[0] alone.
        """
        granted: list[int] = []
        if self.w[at] & _QUEUE and self.w[at] & LOCK_LIGHT:
            self.settled(at)
        while more := self.pump(plan := Plan(self.w), at):
            self._commit(mutex, plan, at)
            granted += more
        return granted

    # ---- waking and parking

    def post(self, record: int) -> None:
        """Wake the thread that waits with this record, after the grant was committed. A lost post costs a slice."""
        park = self.w[record] >> REC_PARK_SHIFT & REC_PARK_MASK
        if park:
            self.wake(self.number(record) // RECORDS, park)

    def wake(self, slot: int, park: int) -> None:
        """Give a token to whoever sleeps on a parking semaphore."""
        with contextlib.suppress(*_NO_SEMAPHORE):
            self._park(slot, park, create=False).release()

    def _park(self, slot: int, park: int, *, create: bool) -> posix_ipc.Semaphore:
        semaphore = self._semaphores.get((slot, park))
        if semaphore is None:
            name = names.park(self.store.uuid, slot, park)
            flags = posix_ipc.O_CREAT if create else 0
            semaphore = posix_ipc.Semaphore(name, flags, mode=0o600, initial_value=0)
            if create and self.w[W_STATE] != STATE_READY:  # destroyed, perhaps before it could see this one
                semaphore.unlink()
            self._semaphores[slot, park] = semaphore
        return semaphore

    @contextlib.contextmanager
    def parking(self) -> Iterator[tuple[int, posix_ipc.Semaphore | None]]:
        """A parking semaphore for one wait, drained; (0, None) if there is none to be had: then only slices wake."""
        lease = self._lease_park()
        semaphore = None
        if lease is not None:
            with contextlib.suppress(*_NO_SEMAPHORE):
                semaphore = self._park(self.store.slot, lease.word, create=True)
                _drain(semaphore)
        try:
            yield (lease.word if lease is not None and semaphore is not None else 0), semaphore
        finally:
            if lease is not None:
                self._parks.free.append(lease)

    def _lease_park(self) -> Lease | None:
        with contextlib.suppress(IndexError):
            return self._parks.free.pop()
        with self.store.growing:
            if self._parks.lost:
                self._parks.work_off(self._parks.free.append)
            with contextlib.suppress(IndexError):
                return self._parks.free.pop()
            return self._parks.add(len(self._parks) + 1) if len(self._parks) < PARKS_AT_MOST else None

    # ---- looking at records

    def records(self, slot: int) -> range:
        """The words of all records of a slot that have memory."""
        at = self.layout.slot_at(slot)
        backed = min(self.w[at + S_RECORDS], RECORDS)
        first = at + RECORDS_AT
        return range(first + RECORDS_RESERVED * RECORD_WORDS, first + backed * RECORD_WORDS, RECORD_WORDS)

    def holds(self, node: int | None = None) -> list[Hold]:
        """Every record that is not free, of one node if given. Read without locks: advisory."""
        found = []
        for slot in range(self.layout.slots):
            if not self.store.participants.has_memory(slot):
                break
            for record in self.records(slot):
                word = self.w[record]
                if word & REC_STATE and (node is None or word >> REC_NODE_SHIFT == node):
                    found.append(
                        Hold(
                            slot,
                            word >> REC_NODE_SHIFT,
                            word & REC_STATE,
                            bool(word & REC_WRITER),
                            self.w[record + R_THREAD],
                            self.w[record + R_SINCE],
                        )
                    )
        return found

    # ---- giving back for others

    def reap(self, slot: int, below: int, timeout: float | None = None) -> bool:
        """Free every record of tenants of a slot that were found dead, those of epochs below this one; False if somebody
        else has given back all that was theirs, so that what stands there by now may be another's (see `identity`).

        Also a new tenant's way of cleaning its slot. One transaction a record; every node mutex is entered, so that no
        uncommitted word is believed. A file's creation puts its record under m[0] alone: if that was under way, it is
        finished or taken back before.
        """
        some = self.store.participants
        if self.w[journal_at(0)]:
            self.store.sections.run(lambda _: None, timeout)
        for k in range(1, 1 + INODE_MUTEXES):
            mutex = self.mutexes[k]
            thread = self.threads.enter()
            granted: list[int] = []
            freed: list[int] = []
            try:
                mutex.acquire(thread, timeout)
                if not some.is_unreaped(slot, below):
                    mutex.release(thread)
                    return False
                for record in self.records(slot):
                    word = self.w[record]
                    if word & REC_STATE and 1 + (word >> REC_NODE_SHIFT) % INODE_MUTEXES == k:
                        granted += self._remove(mutex, record, reaped=not word & REC_DROPPED)
                        freed.append(word >> REC_NODE_SHIFT)
                mutex.release(thread)
            except BaseException:
                try:
                    mutex.abandon(thread)
                except BaseException:  # a second one, before it was at work
                    mutex.abandon(thread)
                    raise
                raise_if_damage()
                raise
            for record in granted:
                self.post(record)
            if freed and self.w[WATCHED]:
                for node in freed:
                    self.store.publications.announce(node)
        return True

    def give_back(self, lease: Lease, *, clears: bool = False) -> None:
        """Free the record, whatever became of a request that failed or is over, and return its lease.

        What does not work now (a stopped process is in the way, or an exception came) is left to the next operation.
        clears: the file is complete, as after a close; else its opening failed, or it was not opened for changing.
        """
        record = lease.word
        try:
            word = self.w[record]
            if not self._leave_lightly(record, word):
                self._end(record, word, clears=clears)
        except MFSStoreBusyError:
            self._lose(lease, clears=clears)
        except BaseException:
            lease.is_lost = True  # first, and without a call: there may be no memory for one
            self.leases.lost.append(None)
            self._lose(lease, clears=clears)
            raise
        else:
            self.free.append(lease)

    def _end(self, record: int, word: int, *, clears: bool) -> None:
        """Free the record, which says or said *word*, with all that comes before and after."""
        w = self.w
        if self.threads.thread.inside:  # a section could not be abandoned, and what the record says may be part of it
            self.store.mend()
            word = w[record]
        if word & REC_STATE:
            names, node = self.store.names, word >> REC_NODE_SHIFT
            if word & _WRITES == _WRITES:
                names.before_unlock(word)
            try:
                self._unlock(record, word, clears=clears)
            finally:
                if w[WATCHED]:
                    self.store.publications.announce(node)
            if w[self.nodes_at + node * NODE_WORDS + N_NAME] >> KIND_SHIFT & 0xFF != KIND_FILE:
                names.after_unlock(node)

    def _lose(self, lease: Lease, *, clears: bool) -> None:
        try:
            if clears:
                self.mark_dropped(lease.word)
        finally:  # even if there is no memory for the word
            self.leases.lose(lease)

    def mark_dropped(self, record: int) -> None:
        """A finaliser's note, or that of a close that failed: what a writer's record holds is to be closed in order."""
        word = self.w[record]
        if word & _WRITES == _WRITES:
            self.w[record] = word | REC_DROPPED

    def work_off(self) -> None:
        """Give back what nobody can give back any more."""
        self.leases.work_off(lambda lease: self.give_back(lease, clears=bool(self.w[lease.word] & REC_DROPPED)))


class _Request:
    """One request that was not granted at once: queue, wait, look, give up. Lives as long as the wait."""

    def __init__(
        self, locks: FileLocks, node: int, generation: int, namespace: int, record: int, kind: int, timeout: float | None
    ) -> None:
        self.locks = locks
        self.w = locks.w
        self.at = locks.nodes_at + node * NODE_WORDS
        self.node = node
        self.generation = generation
        self.namespace = namespace
        self.record = record
        self.kind = kind
        self.mutex = locks.mutexes[locks.layout.mutex_of(node)]
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.impatient = timeout is not None and timeout <= 0

    def wait(self) -> bool:
        again = self._own_hold()
        if again:
            return self._section(self._share_again)
        if self.impatient:
            self.locks.store.reap_dead(0.0)
            if not self._section(self._try, self._rest()):
                return False
            if self.w[self.record] & REC_STATE == HELD:
                return True
            raise self._timeout()
        with self.locks.parking() as (park, semaphore):
            try:
                return self._wait(park, semaphore)
            except BaseException:
                self._give_up()
                raise

    def _own_hold(self) -> bool:
        """Whether the calling thread holds the node shared and asks for that again; MFSDeadlockError if it conflicts."""
        me = self.locks.threads.thread.word
        wanted = HELD | self.node << REC_NODE_SHIFT
        mask = REC_STATE | 0xFFFFFFFF << REC_NODE_SHIFT
        for record in self.locks.records(self.locks.store.slot):
            word = self.w[record]
            if word & mask == wanted and self.w[record + R_THREAD] == me and record != self.record:
                if self.kind or word & REC_WRITER:
                    raise MFSDeadlockError("This thread has the file open itself in a conflicting way.")
                return True
        return False

    def _section(self, action: object, timeout: float | None = None) -> bool:
        """Run *action* inside the node's mutex and wake whom it granted; False if the node is no longer the one."""
        locks, mutex = self.locks, self.mutex
        thread = locks.threads.enter()
        granted: list[int] = []
        try:
            mutex.acquire(thread, timeout)
            waits = self.w[self.record] & REC_STATE  # no directory above a file that is waited for moves or goes
            same = self.w[self.at + N_GENERATION] == self.generation and (waits or self.w[NAMESPACE] == self.namespace)
            if same:
                action(granted)  # type: ignore[operator]
            elif waits:
                granted += locks._remove(mutex, self.record)
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise_if_damage()
            raise
        for record in granted:
            if record != self.record:
                locks.post(record)
        if waits and not self.w[self.record] & REC_STATE:
            locks.store.names.after_hold(self.node)
        return bool(same)

    def _timeout(self) -> MFSLockTimeoutError:
        store = self.locks.store
        return MFSLockTimeoutError(store.path_of(self.node), bool(self.kind), store.holders(self.node))

    # ---- actions, inside the mutex

    def _share_again(self, granted: list[int]) -> None:
        plan = Plan(self.w)
        plan[self.record] = HELD | self.node << REC_NODE_SHIFT
        plan[self.at] = self.w[self.at] + 1
        commit(self.w, self.mutex.journal, plan)

    def _try(self, granted: list[int]) -> None:
        granted += self.locks.pump_on(self.mutex, self.at)
        lock = self.locks.settled(self.at) if self.kind else self.w[self.at]
        if not lock & (LOCK_BUSY if self.kind else _EXCLUDES_READERS):
            plan = Plan(self.w)
            plan[self.record] = HELD | self.kind | self.node << REC_NODE_SHIFT
            plan[self.at] = lock | LOCK_WRITER if self.kind else lock + 1
            commit(self.w, self.mutex.journal, plan)

    def _enqueue(self, park: int, granted: list[int]) -> None:
        self._try(granted)
        if self.w[self.record] & REC_STATE == HELD:
            return
        plan, lock, number = Plan(self.w), self.w[self.at], self.locks.number(self.record)
        plan[self.record] = QUEUED | self.kind | park << REC_PARK_SHIFT | self.node << REC_NODE_SHIFT
        head, tail = lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK, lock >> LOCK_TAIL_SHIFT
        if tail:
            last = self.locks.layout.record_at(tail)
            plan[last] = self.locks._queued(plan, last, self.at) & ~_NEXT | number << REC_NEXT_SHIFT
        plan[self.at] = lock & ~_QUEUE | (head or number) << LOCK_HEAD_SHIFT | number << LOCK_TAIL_SHIFT
        commit(self.w, self.mutex.journal, plan)

    def _look(self, granted: list[int]) -> None:
        """Grant what can be granted; if that was us, the hold becomes ours."""
        granted += self.locks.pump_on(self.mutex, self.at)
        word = self.w[self.record]
        if word & REC_STATE == GRANTED:
            plan = Plan(self.w)
            plan[self.record] = word & ~(REC_STATE | REC_PARK_MASK << REC_PARK_SHIFT) | HELD
            commit(self.w, self.mutex.journal, plan)

    def _refuse(self, granted: list[int]) -> None:
        self._look(granted)
        if self.w[self.record] & REC_STATE == QUEUED:
            granted += self.locks._remove(self.mutex, self.record)

    def _withdraw(self, granted: list[int]) -> None:
        if self.w[self.record] & REC_STATE:
            granted += self.locks._remove(self.mutex, self.record)

    # ---- the wait

    def _wait(self, park: int, semaphore: posix_ipc.Semaphore | None) -> bool:
        store, record = self.locks.store, self.record
        if not self._section(lambda granted: self._enqueue(park, granted), self._rest()):
            return False
        while self.w[record] & REC_STATE != HELD:
            self.locks.threads.check_wanted()
            token = self._sleep(semaphore)
            late = self.deadline is not None and time.monotonic() >= self.deadline
            if late or not token:
                try:
                    store.relieve_locks()
                except MFSStoreBusyError:
                    if late:  # whoever is in our way may be dead: that is no reason to say that he holds it
                        raise
            if not self._section(self._refuse if late else self._look, self._rest()):
                return False
            if late and self.w[record] & REC_STATE == FREE:
                raise self._timeout()
        return True

    def _rest(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _sleep(self, semaphore: posix_ipc.Semaphore | None) -> bool:
        """Until woken (True) or a slice has passed (False)."""
        rest = SLICE_S if self.deadline is None else min(SLICE_S, self.deadline - time.monotonic())
        if rest <= 0:
            return False
        if semaphore is None:
            return self._doze()
        return sleep_on(semaphore, rest)

    def _doze(self) -> bool:
        """As `_sleep`, for one of the many who have no semaphore: look at the record, ever more rarely, and at the dead only
        after a long slice. (A section for each look would keep a core busy with 200 of them.) What is seen here is a hint."""
        rest = self._rest()
        deadline = time.monotonic() + (DOZE_S if rest is None else min(DOZE_S, rest))
        pause = 0.005
        while self.w[self.record] & REC_STATE == QUEUED and self.w[W_STATE] == STATE_READY:
            rest = deadline - time.monotonic()
            if rest <= 0:
                return False
            self.locks.threads.check_wanted()
            time.sleep(min(rest, pause))
            pause = min(2 * pause, SLICE_S)
        return True

    def _give_up(self) -> None:
        """An exception ended the wait: take the request back, granted or not. If even that fails, it stands until the
        owner of the record, who gets the exception, gives it back."""
        if self.w[W_STATE] == STATE_READY:
            with contextlib.suppress(MFSStoreBusyError):
                self._section(self._withdraw, timeout=1.0)


def _drain(semaphore: posix_ipc.Semaphore) -> None:
    with contextlib.suppress(posix_ipc.BusyError):
        while True:
            semaphore.acquire(0)


__all__ = ["FileLocks", "Hold", "Thread"]
