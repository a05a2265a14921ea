"""Seldom turns of the reader-writer locks, each brought about by hand: what changes between looking and queueing, what is
left when somebody stops in between, and words that cannot be.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import posix_ipc
import pytest

from dmemfs_shm.errors import (
    MFSCorruptStoreError,
    MFSDeadlockError,
    MFSLockTimeoutError,
    MFSReentrantCallError,
    MFSStoreGoneError,
)
from dmemfs_shm.store import attachment, layout, mutex, names, rwlock
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.identity import next_epoch
from dmemfs_shm.store.journal import Plan, roll_back
from dmemfs_shm.store.layout import (
    FREE,
    GRANTED,
    HELD,
    JOURNAL_WORDS,
    KIND_FILE,
    KIND_ORPHAN,
    KIND_SHIFT,
    LOCK_ABANDONED,
    LOCK_HEAD_SHIFT,
    LOCK_READERS,
    LOCK_TAIL_SHIFT,
    LOCK_WRITER,
    N_CREATED,
    N_GENERATION,
    N_LOCK,
    N_NAME,
    N_SEQ,
    NAMESPACE,
    PAGE,
    PAGE_WORDS,
    QUEUED,
    R_SINCE,
    R_THREAD,
    REC_DIRTY,
    REC_DROPPED,
    REC_NEXT_MASK,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_PARK_MASK,
    REC_PARK_SHIFT,
    REC_STATE,
    REC_WRITER,
    RECORD_WORDS,
    RECORDS,
    RECORDS_RESERVED,
    S_CLAIM,
    S_RECORDS,
    STATE_DESTROYED,
    STATE_READY,
    W_STATE,
    WATCHED,
    WORD,
    journal_at,
)
from dmemfs_shm.store.lease import Lease, Leases
from dmemfs_shm.store.rwlock import FileLocks

from ..crash.harness import Recorder, instrument, system_calls
from ..lockstore import (
    forget,
    give_back,
    inside,
    killed_inside,
    lease,
    leftovers,
    lock,
    lock_findings,
    lock_store,
    mutex_findings,
    queued,
    sound_lock_store,
    state_of,
    unlock,
)
from ..processes import DEADLINE_S, Link, Task, child, in_thread, until
from .test_mutex_steps import Signals

NODE = 5
K = 1 + NODE % 16
READ, WRITE = 0, REC_WRITER


@pytest.fixture
def store() -> Iterator[Attachment]:
    """A store, in order and free at the end."""
    with sound_lock_store() as made:
        yield made


@pytest.fixture
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself."""
    monkeypatch.setattr(rwlock, "SLICE_S", 60.0)


def word_at(store: Attachment, word: int = N_LOCK) -> int:
    return store.layout.node_at(NODE) + word


class Waiter:
    """A thread that asks for the node; it holds it from `record` on, until `end`."""

    def __init__(self, store: Attachment, kind: int, timeout: float | None = None) -> None:
        self.store, self.go, before = store, threading.Event(), queued(store, NODE)
        self.records: list[int] = []
        self.task = Task(self._run, kind, timeout)
        until(lambda: queued(store, NODE) > before or bool(self.records) or self.task.done, "it waits")

    def _run(self, kind: int, timeout: float | None) -> None:
        self.records.append(lock(self.store, NODE, kind, timeout))
        assert self.go.wait(DEADLINE_S)
        unlock(self.store, self.records[0])

    def end(self) -> None:
        self.go.set()
        self.task.result()


def holder_of(store: Attachment, kind: int) -> int:
    """Another thread of ours holds the node; its record."""
    return int(in_thread(lock, store, NODE, kind))


def vanish(store: Attachment, record: int) -> None:
    """What the record holds is given back, and nobody is granted what that makes possible."""
    plan = Plan(store.w)
    store.rw.drop(plan, record, word_at(store))

    def commit() -> None:
        store.rw._commit(store.mutexes[K], plan, word_at(store))

    inside(store, K, commit)
    give_back(store, record)


def taken(store: Attachment, kind: int) -> Lease:
    """The lease of a record that holds the node."""
    one = store.rw.lease()
    assert store.rw.lock(NODE, 1, store.w[NAMESPACE], one.word, kind, None)
    return one


def free_words(leases: Leases) -> list[int]:
    """What is leased next, last first."""
    return [one.word for one in leases.free]


# ---- records


def test_records_get_memory_page_by_page(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one is leased that has none; also if a signal handler leases the same one at that moment: it gets another."""
    at, rw = store.layout.slot_at(store.slot) + S_RECORDS, store.rw
    leased = []
    while RECORDS_RESERVED + len(rw.leases) != store.w[at]:
        leased.append(rw.lease())
    backed = store.w[at]
    handlers: list[Lease] = []
    entered: list[str] = []
    given: list[tuple[int, int]] = []
    back = type(store.index).back

    def note(index: Any, offset: int, size: int) -> None:
        given.append((offset, size))
        back(index, offset, size)

    monkeypatch.setattr(type(store.index), "back", note)

    def event(what: str) -> None:
        if what == "posix_fallocate" and not entered:
            entered.append(what)
            handlers.append(rw.lease())

    with system_calls(event):
        own = rw.lease()
    record = own.word
    assert store.w[at] == backed + PAGE_WORDS // RECORD_WORDS
    first = store.layout.record_at(store.slot * RECORDS + backed)
    assert ([one.word for one in handlers], record) == ([first], first + RECORD_WORDS)
    assert set(given) == {(first * WORD, PAGE)} and first % PAGE_WORDS == 0
    assert rw.number(record) == store.slot * RECORDS + backed + 1 and store.layout.record_at(rw.number(record)) == record
    rw.free += [*leased, *handlers, own]
    assert len(rw.records(store.slot)) == store.w[at] - RECORDS_RESERVED


def test_announcing(store: Attachment) -> None:
    """Whose request it is and since when stands in the record."""
    record, before = lease(store), time.time_ns()
    store.rw.announce(record)
    assert store.w[record + R_THREAD] == store.threads.thread.word
    assert before <= store.w[record + R_SINCE] <= time.time_ns()
    give_back(store, record)


def test_holds(store: Attachment) -> None:
    """Every record in use, or those of one node; of all slots, though all of them have memory."""
    with lock_store(slots=1) as small:
        assert small.rw.holds() == []
        record = lock(small, NODE, WRITE)
        other = lock(small, NODE + 1)
        hold, _ = small.rw.holds()
        assert (hold.slot, hold.node, hold.state, hold.writer) == (0, NODE, HELD, True)
        assert hold.thread == small.threads.thread.word and 0 < hold.since_ns <= time.time_ns()
        assert [(each.node, each.writer) for each in small.rw.holds(NODE + 1)] == [(NODE + 1, False)]
        unlock(small, record)
        unlock(small, other)


def test_inside_a_section(store: Attachment) -> None:
    """A handler that comes to lock or unlock there is refused, and nothing changes."""
    record = lock(store, NODE)

    def body() -> None:
        with pytest.raises(MFSReentrantCallError):
            store.rw.unlock(record)
        assert state_of(store, record) == HELD

    inside(store, K + 1, body)
    store.threads.thread.inside = True  # as two exceptions in a row leave it: then it is none
    unlock(store, record)
    store.threads.thread.inside = True
    unlock(store, lock(store, NODE))


def test_locking_in_vain(store: Attachment) -> None:
    """A node that cannot be is damage, a store that is gone is said to be; no mutex stays shut, the record is free."""
    record = lease(store)
    with pytest.raises(MFSCorruptStoreError, match="numbers that lead somewhere"):
        store.rw.lock(0xFFFFFFF0, 1, 0, record, READ, None)
    store.w[W_STATE] = STATE_DESTROYED
    with pytest.raises(MFSStoreGoneError):
        store.rw.lock(NODE, 1, 0, record, READ, None)
    with pytest.raises(MFSStoreGoneError):
        store.rw.reap(store.slot, store.participants.epoch(store.slot), None)
    store.w[W_STATE] = STATE_READY
    assert state_of(store, record) == FREE and not any(each._gate for each in store.mutexes)
    give_back(store, record)


@pytest.mark.parametrize("call", ["lock", "unlock", "reap", "section of a request"])
def test_a_second_exception_before_it_is_left(store: Attachment, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The mutex is left nevertheless, and the second one goes on."""
    record = lease(store) if call != "unlock" else lock(store, NODE)
    request = rwlock._Request(store.rw, NODE, 1, 0, record, READ, None)
    calls: dict[str, Callable[[], Any]] = {
        "lock": lambda: store.rw.lock(NODE, 1, 0, record, READ, None),
        "unlock": lambda: store.rw.unlock(record),
        "reap": lambda: store.rw.reap(store.slot, store.participants.epoch(store.slot), None),
        "section of a request": lambda: request._section(lambda granted: None),
    }
    abandon, tries = mutex.Mutex.abandon, []

    def interrupted(self: Any, thread: Any) -> None:
        tries.append(self)
        if len(tries) == 1:
            raise KeyboardInterrupt
        abandon(self, thread)

    monkeypatch.setattr(mutex.Mutex, "abandon", interrupted)
    store.w[W_STATE] = STATE_DESTROYED  # the first one: that is seen when the mutex is ours already
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    store.w[W_STATE] = STATE_READY
    assert len(tries) == 2 and mutex_findings(store) == [] and not store.threads.thread.inside
    give_back(store, record)


# ---- transactions


class Remembered(Recorder):
    """Also remembers what each word was before its first store."""

    def __init__(self, words: Any) -> None:
        super().__init__(words)
        self.before: dict[int, int] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.before.setdefault(key, self.words[key])
        super().__setitem__(key, value)


class Touched(dict[int, int]):
    """The words of a store, as far as they matter."""

    def __len__(self) -> int:
        return 1 << 60


def check_prefixes(store: Attachment, record: int, act: Callable[[], Any]) -> int:
    """Whoever dies before any store of act() leaves, once rolled back, the words as they were or as they were to become; how
    many of these deaths were rolled back. A sequence that somebody may have seen odd does not come back."""
    seen = instrument(store, Remembered)
    act()
    instrument(store, lambda buffer: buffer.words)
    own = {record + R_THREAD, record + R_SINCE, store.layout.slot_at(store.slot) + S_CLAIM + K}
    journal = range(journal_at(K), journal_at(K) + JOURNAL_WORDS)
    sequence, rolled = word_at(store, N_SEQ), 0
    words = sorted(word for word in seen.before if word not in journal and word not in own and word != sequence)
    old, new = [seen.before[word] for word in words], [store.w[word] for word in words]
    assert record in words and word_at(store) in words and old != new
    for length in range(len(seen.stores) + 1):
        left = Touched(seen.before)
        left.update(seen.stores[:length])
        odd = left.get(sequence, 0) & 1
        between = [left[word] for word in words] not in (old, new)
        assert odd or not between or sequence not in left, "others must see that the node changes"
        undone = roll_back(left, journal_at(K))
        rolled += undone
        state = [left[word] for word in words]
        assert state == old if undone else state in (old, new), length
        if sequence in left and undone:
            assert left[sequence] == (seen.before[sequence] & ~1) + 2
        assert not odd or undone or state == new or seen.before[sequence] & 1, length
    return rolled


@pytest.mark.parametrize("kind", [READ, WRITE])
@pytest.mark.parametrize("shared", [False, True])
def test_locking_happens_whole_or_not(
    store: Attachment, monkeypatch: pytest.MonkeyPatch, kind: int, shared: bool, no_slices: None
) -> None:
    """At once, or beside readers, or granted while it comes to queue. (What says that others may come follows it.)"""
    monkeypatch.setattr(store.rw, "come", 0)
    others = [lock(store, NODE)] if shared and not kind else []
    store.w[word_at(store)] |= LOCK_ABANDONED
    record = lease(store)
    assert check_prefixes(store, record, lambda: store.rw.lock(NODE, 1, 0, record, kind, None)) == 3
    assert state_of(store, record) == HELD and store.w[word_at(store)] & LOCK_ABANDONED
    unlock(store, record)
    for other in others:
        unlock(store, other)


@pytest.mark.parametrize("sequence", [6, 7])
@pytest.mark.parametrize("kind", [READ, WRITE])
@pytest.mark.parametrize("waiting", [(), (READ,), (WRITE,), (READ, READ), (READ, WRITE)])
def test_unlocking_happens_whole_or_not(
    store: Attachment, monkeypatch: pytest.MonkeyPatch, kind: int, waiting: tuple[int, ...], sequence: int, no_slices: None
) -> None:
    """With whomever it grants the node to."""
    record = holder_of(store, kind)
    store.w[word_at(store, N_SEQ)] = sequence
    waiters = []
    for number, wanted in enumerate(waiting):
        waiters.append(Waiter(store, wanted if kind or number else WRITE))
    granted: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(store.rw, "post", granted.append)  # they are woken when their own stores are not looked at any more
        assert check_prefixes(store, record, lambda: store.rw.unlock(record)) >= 3
    for each in granted:
        store.rw.post(each)
    until(
        lambda: sum(bool(waiter.records) for waiter in waiters) == sum(hold.state != QUEUED for hold in store.rw.holds(NODE)),
        "whoever was granted it has it, and is out of the mutex",
    )
    assert lock_findings(store, all_free=False) == []
    if kind:
        assert store.w[word_at(store, N_SEQ)] == 8
    give_back(store, record)
    for waiter in waiters:
        waiter.end()


@pytest.mark.parametrize("clears", [False, True])
def test_the_next_one_learns_whether_the_file_is_complete(store: Attachment, clears: bool) -> None:
    """The end of a writer's hold says so, also if somebody waits for the node."""
    record = holder_of(store, WRITE)
    store.w[word_at(store)] |= LOCK_ABANDONED
    waiter = Waiter(store, READ)
    store.rw.unlock(record, clears=clears)
    until(lambda: bool(waiter.records), "it has it")
    assert store.w[word_at(store)] == 1 | (0 if clears else LOCK_ABANDONED)
    give_back(store, record)
    waiter.end()
    store.w[word_at(store)] = 0


# ---- giving back


@pytest.mark.parametrize("clears", [False, True])
def test_giving_back(store: Attachment, monkeypatch: pytest.MonkeyPatch, clears: bool) -> None:
    """What is free is only returned; what is held is given back, now or, if that cannot be, by the next operation; either
    way the file is complete afterwards if that was said, and else as it was."""
    rw = store.rw
    one = rw.lease()
    rw.give_back(one)
    assert rw.free == [one]
    one, left = taken(store, WRITE), 0 if clears else LOCK_ABANDONED
    store.w[word_at(store)] |= LOCK_ABANDONED
    rw.give_back(one, clears=clears)
    assert rw.free == [one] and store.w[word_at(store)] == left
    one = taken(store, WRITE)
    record = one.word
    store.w[word_at(store)] |= LOCK_ABANDONED
    monkeypatch.setattr(mutex, "GRACE_S", 0.02)
    store.patience = 0.0
    inside(store, K, lambda: in_thread(lambda: rw.give_back(one, clears=clears)))
    assert [note.word for note in store.dropped] == [record] and not rw.free
    assert store.w[record] & REC_DROPPED == REC_DROPPED * clears
    store.work_off()
    assert state_of(store, record) == FREE and free_words(rw.leases) == [record] and store.w[word_at(store)] == left
    assert one not in rw.free, "whoever has the lost lease still must not have the record as well"
    store.w[word_at(store)] = 0


def test_what_follows_a_giving_back(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no file any more is seen to, a file is left alone; and while somebody watches, the end of the hold is announced,
    also if it did not come to its end."""
    seen: list[int] = []
    announced: list[int] = []
    monkeypatch.setattr(type(store.names), "after_unlock", lambda _, node: seen.append(node))
    monkeypatch.setattr(type(store.publications), "announce", lambda _, node: announced.append(node))
    name = word_at(store) + N_NAME
    for kind, expected in ((KIND_FILE, []), (KIND_ORPHAN, [NODE])):
        store.w[name] = kind << KIND_SHIFT
        store.rw.give_back(taken(store, READ))
        store.w[word_at(store)] = 0  # or the next one would hold it lightly
        assert seen == expected and announced == []
    store.w[name], store.w[WATCHED] = KIND_FILE << KIND_SHIFT, 1
    store.rw.give_back(taken(store, READ))
    assert announced == [NODE]
    store.w[word_at(store)] = 0
    one = taken(store, READ)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FileLocks, "_unlock", interrupt)
        store.rw.give_back(one)
    assert announced == [NODE, NODE]
    store.work_off()
    store.w[name] = store.w[WATCHED] = 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_giving_back_fails(store: Attachment) -> None:
    """Any other exception goes on, and the lease is lost; a word that leads nowhere is damage."""
    one = taken(store, READ)
    record, right = one.word, store.w[one.word]
    store.w[record] = HELD | 0xFFFFFFF0 << REC_NODE_SHIFT
    for call in (lambda: store.rw.give_back(one), lambda: store.rw.unlock(record)):
        with pytest.raises(MFSCorruptStoreError, match="numbers that lead somewhere"):
            call()
    assert [note and note.word for note in store.dropped] == [None, record], "whatever was done in steps is looked at, too"
    assert not any(each._gate for each in store.mutexes)
    store.w[record] = right
    store.work_off()
    assert state_of(store, record) == FREE and free_words(store.rw.leases) == [record]


def test_giving_back_fails_twice(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for the word that the lease is lost it is lost all the same, though a traceback may still have it."""
    one = taken(store, READ)

    def failing(error: BaseException) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(FileLocks, "_unlock", failing(KeyboardInterrupt()))
        patch.setattr(Leases, "lose", failing(MemoryError()))
        store.rw.give_back(one)
    store.work_off()
    assert state_of(store, one.word) == FREE and free_words(store.rw.leases) == [one.word] and one not in store.rw.free


def test_giving_back_after_a_section_that_was_not_abandoned(store: Attachment) -> None:
    """What it had begun is taken back before the record is believed: it says that it is free, and is not."""
    one, w = taken(store, READ), store.w
    store.mutexes[K].acquire(store.threads.enter())
    at = journal_at(K)
    w[at + 1], w[at + 2], w[at + 3], w[at + 4], w[at] = one.word, w[one.word], word_at(store), w[word_at(store)], 2
    w[one.word], w[word_at(store)] = FREE, 0
    store.rw.give_back(one)
    assert mutex_findings(store) == [] and store.rw.free == [one]
    assert state_of(store, one.word) == FREE and w[word_at(store)] & LOCK_READERS == 0


def test_working_off_a_note(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free: returned once. Held: finished as a handle's end finishes it, that is, complete. Waiting still, or granted: taken
    back."""
    rw = store.rw
    finished: list[tuple[int, bool]] = []
    real = FileLocks._unlock

    def watched_unlock(self: Any, record: int, word: int, *, clears: bool) -> None:
        finished.append((record, clears))
        real(self, record, word, clears=clears)

    monkeypatch.setattr(FileLocks, "_unlock", watched_unlock)

    def lose(record: int) -> None:
        forget(store, record)
        store.work_off()

    held = lock(store, NODE, WRITE)
    lose(held)
    assert finished == [(held, True)] and free_words(rw.leases) == [held] and store.w[word_at(store)] == 0
    record = lease(store)
    forget(store, record)
    assert store.w[record] == 0, "nothing is marked that is not held"
    store.work_off()
    store.work_off()
    assert free_words(rw.leases) == [record] and len(finished) == 1
    reader = holder_of(store, READ)
    for state in (QUEUED, GRANTED):
        record = lease(store)
        if state == QUEUED:
            store.w[record] = QUEUED | WRITE | NODE << REC_NODE_SHIFT
            store.w[word_at(store)] = 1 | rw.number(record) << LOCK_HEAD_SHIFT | rw.number(record) << LOCK_TAIL_SHIFT
        else:
            store.w[record], store.w[word_at(store)] = GRANTED | NODE << REC_NODE_SHIFT, 2
        lose(record)
        assert state_of(store, record) == FREE and store.w[word_at(store)] == 1 and free_words(rw.leases) == [record]
    unlock(store, reader)
    record = lease(store)
    store.w[record], store.w[word_at(store)] = GRANTED | WRITE | NODE << REC_NODE_SHIFT, LOCK_WRITER | LOCK_ABANDONED
    lose(record)
    assert store.w[word_at(store)] == LOCK_ABANDONED, "it wrote nothing"
    assert [clears for _, clears in finished] == [True, False, False, True, False], "the reader's end, too, is a close"
    store.w[word_at(store)] = 0


# ---- reaping


def test_reaping_finishes_what_the_dead_was_doing_first(store: Attachment) -> None:
    """An open journal of m[0] may hold his records: it is rolled back before any of them is believed."""
    word = store.layout.node_at(NODE) + N_CREATED
    store.w[word] = 17
    slot = killed_inside(store, 0, begun=NODE)
    assert store.rw.reap(slot, next_epoch(store.participants.epoch(slot)), 20.0)
    assert store.w[word] == 17 and store.w[journal_at(0)] == 0


def test_reaping_a_slot_with_a_new_tenant(store: Attachment) -> None:
    """Nothing is freed, and it is said."""

    def holding(link: Link) -> None:
        his = attachment.attach(store.name)
        lock(his, NODE)
        link.send(his.slot)
        link.recv()

    with child("fork", holding) as tenant:
        slot = tenant.receive()
        assert not store.rw.reap(slot, store.participants.epoch(slot), 20.0)
        assert [hold.state for hold in store.rw.holds(NODE)] == [HELD]
        tenant.send("leave")
        tenant.receive()


def test_reaping_fails(store: Attachment) -> None:
    """At a record that cannot be: damage, and no mutex stays shut."""
    record = lease(store)
    store.w[record] = HELD | 0xFFFFFFF0 << REC_NODE_SHIFT
    with pytest.raises(MFSCorruptStoreError):
        store.rw.reap(store.slot, store.participants.epoch(store.slot), 20.0)
    assert not any(each._gate for each in store.mutexes)
    store.w[record] = FREE
    give_back(store, record)


@pytest.mark.parametrize("mark", [0, REC_DIRTY, REC_DIRTY | REC_DROPPED])
@pytest.mark.parametrize("state", [GRANTED, HELD])
def test_what_reaping_leaves_of_a_writer(store: Attachment, monkeypatch: pytest.MonkeyPatch, state: int, mark: int) -> None:
    """Abandoned is a file that its dead writer was changing: he had begun, and had not given it up himself. His record is
    freed in the mutex of its node."""
    under: list[int] = []
    remove = rwlock.FileLocks._remove

    def watched(self: Any, mutex: Any, record: int, **options: bool) -> list[int]:
        under.append(mutex.number)
        return remove(self, mutex, record, **options)

    monkeypatch.setattr(rwlock.FileLocks, "_remove", watched)
    slot = killed_inside(store)
    record = store.rw.records(slot)[0]
    store.w[record], store.w[word_at(store)] = state | WRITE | mark | NODE << REC_NODE_SHIFT, LOCK_WRITER
    before = store.w[word_at(store, N_SEQ)] = 6
    assert store.rw.reap(slot, next_epoch(store.participants.epoch(slot)), 20.0)
    assert under == [K]
    abandoned = state == HELD and mark == REC_DIRTY
    assert store.w[record] == FREE and store.w[word_at(store)] == LOCK_ABANDONED * abandoned
    assert store.w[word_at(store, N_SEQ)] == before + 2
    store.w[word_at(store)] = 0


@pytest.mark.parametrize("watched", [0, 1])
def test_what_reaping_frees_is_announced(store: Attachment, monkeypatch: pytest.MonkeyPatch, watched: int) -> None:
    """After its lock is given back, and if anybody wants to know; nothing of a slot that holds nothing."""
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(store.publications, "announce", lambda node: said.append((node, store.w[word_at(store)])))
    store.w[layout.WATCHED] = watched
    slot = killed_inside(store)
    store.w[store.rw.records(slot)[0]], store.w[word_at(store)] = HELD | WRITE | NODE << REC_NODE_SHIFT, LOCK_WRITER
    assert store.rw.reap(slot, next_epoch(store.participants.epoch(slot)), 20.0)
    assert said == [(NODE, 0)] * watched
    store.w[layout.WATCHED] = 0


def test_who_has_no_parking_semaphore_looks_who_is_dead(store: Attachment) -> None:
    """Nobody wakes him, so he looks by himself, also for those who will never give it back."""
    parks = [store.rw._lease_park() for _ in range(rwlock.PARKS_AT_MOST)]
    assert None not in parks
    slot = killed_inside(store)
    store.w[store.rw.records(slot)[0]], store.w[word_at(store)] = HELD | WRITE | NODE << REC_NODE_SHIFT, LOCK_WRITER
    unlock(store, lock(store, NODE, WRITE, None))


def test_who_has_no_parking_semaphore_enters_no_section_for_nothing(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """He looks at his record, and goes in when it was granted: there may be hundreds of him."""
    parks = [store.rw._lease_park() for _ in range(rwlock.PARKS_AT_MOST)]
    assert None not in parks
    sections = []
    real = rwlock._Request._section

    def section(self: Any, *args: Any) -> bool:
        sections.append(self)
        return real(self, *args)

    monkeypatch.setattr(rwlock, "DOZE_S", DEADLINE_S)
    monkeypatch.setattr(rwlock._Request, "_section", section)
    held = lock(store, NODE, WRITE)
    waiter = Task(lock, store, NODE, READ)
    until(lambda: queued(store, NODE) == 1, "he waits")
    time.sleep(0.1)  # a few looks; they need not have come for what is said below
    unlock(store, held)
    unlock(store, waiter.result())
    assert len(sections) == 2, "to queue, and to take what was granted"


def test_a_doze(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the record is queued, a long slice, with a few looks in it, ever more rarely; as soon as it is not, no longer."""
    monkeypatch.setattr(rwlock, "DOZE_S", 0.05)
    pauses: list[float] = []
    sleep = time.sleep

    def slept(seconds: float) -> None:
        pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(rwlock.time, "sleep", slept)
    held, record = lock(store, NODE, WRITE), lease(store)
    request = rwlock._Request(store.rw, NODE, 1, 0, record, READ, None)
    assert request._section(lambda granted: request._enqueue(0, granted))
    assert not request._doze()
    assert pauses[:2] == [0.005, 0.010]
    unlock(store, held)  # grants it
    assert request._doze()
    request._section(request._look)
    unlock(store, record)


@pytest.mark.parametrize("parks", [0, 1])
def test_called_off(store: Attachment, monkeypatch: pytest.MonkeyPatch, parks: int) -> None:
    """Nobody wants it any more: the wait ends, with nothing left of the request, and the thread is its own again."""
    monkeypatch.setattr(rwlock, "PARKS_AT_MOST", parks)
    monkeypatch.setattr(rwlock, "DOZE_S", DEADLINE_S)
    over = threading.Event()

    def wait() -> None:
        own = store.threads.thread.word
        with store.threads.on_behalf(mutex.new_word(), over.is_set):
            assert store.threads.thread.word != own
            with pytest.raises(mutex.CalledOffError):
                lock(store, NODE, READ)
        assert store.threads.thread.word == own and store.threads.thread.is_called_off is None
        store.threads.check_wanted()

    held = lock(store, NODE, WRITE)
    waiter = Task(wait)
    until(lambda: queued(store, NODE) == 1, "it waits")
    over.set()
    waiter.result()
    assert queued(store, NODE) == 0 and lock_findings(store, all_free=False) == []
    unlock(store, held)


def test_on_behalf(store: Attachment) -> None:
    """What two threads hold for the same one, either shares again, or is told of."""
    word = mutex.new_word()

    def on_behalf(kind: int) -> int:
        with store.threads.on_behalf(word, lambda: False):
            return lock(store, NODE, kind, None)

    first = in_thread(on_behalf, READ)
    writer = Task(lock, store, NODE, WRITE)
    until(lambda: queued(store, NODE) == 1, "a writer waits")
    second = in_thread(on_behalf, READ)
    with pytest.raises(MFSDeadlockError):
        in_thread(on_behalf, WRITE)
    with pytest.raises(MFSLockTimeoutError):
        lock(store, NODE, READ, 0.0)
    unlock(store, first)
    unlock(store, second)
    unlock(store, writer.result())


def test_a_try_looks_who_is_dead(store: Attachment) -> None:
    """A node is not refused because of one who holds it no more."""
    slot = killed_inside(store)
    store.w[store.rw.records(slot)[0]], store.w[word_at(store)] = HELD | WRITE | NODE << REC_NODE_SHIFT, LOCK_WRITER
    unlock(store, lock(store, NODE, WRITE, 0.0))


def test_who_is_granted_by_reaping_is_woken(store: Attachment, no_slices: None) -> None:
    """By the one who reaps."""
    slot = killed_inside(store)
    store.w[store.rw.records(slot)[0]], store.w[word_at(store)] = HELD | WRITE | NODE << REC_NODE_SHIFT, LOCK_WRITER
    waiter = Waiter(store, READ)
    assert store.rw.reap(slot, next_epoch(store.participants.epoch(slot)), 20.0)
    until(lambda: bool(waiter.records), "it was woken")
    waiter.end()


# ---- the queue


def queue_up(store: Attachment, records: list[int]) -> None:
    """Writers who wait for the node with these records, in this order."""
    numbers = [store.rw.number(record) for record in records]
    for record, following in zip(records, [*numbers[1:], 0], strict=True):
        store.w[record] = QUEUED | WRITE | following << REC_NEXT_SHIFT | NODE << REC_NODE_SHIFT
    store.w[word_at(store)] |= numbers[0] << LOCK_HEAD_SHIFT | numbers[-1] << LOCK_TAIL_SHIFT


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_leaving_the_queue(store: Attachment, order: tuple[int, ...]) -> None:
    """At its head, in its middle, at its end: the others wait on, in their order."""
    holder, records = holder_of(store, WRITE), [lease(store) for _ in range(3)]
    queue_up(store, records)
    for number in order:
        store.rw.unlock(records[number])
        assert lock_findings(store, all_free=False) == []
    for record in records:
        give_back(store, record)
    unlock(store, holder)


def test_leaving_the_longest_queue() -> None:
    """All records of all slots wait for the same node, and the last of them gives up: it has an end."""
    with lock_store(slots=2) as store:
        killed_inside(store)
        records = [store.layout.record_at(slot * RECORDS + n) for slot in range(2) for n in range(RECORDS_RESERVED, RECORDS)]
        store.w[word_at(store)] = LOCK_WRITER
        queue_up(store, records)
        store.rw.unlock(records[-1])
        assert store.w[word_at(store)] >> LOCK_TAIL_SHIFT == store.rw.number(records[-2])
        assert not store.w[records[-2]] >> REC_NEXT_SHIFT & REC_NEXT_MASK
        for record in records:
            store.w[record] = FREE


# ---- words that cannot be


def test_a_queue_without_an_end(store: Attachment) -> None:
    """Two records that point at each other: whoever leaves the queue behind them says so, and does not look for ever."""
    rw, (one, two, gone) = store.rw, [lease(store) for _ in range(3)]
    numbers = [rw.number(record) for record in (one, two, gone)]
    holder = holder_of(store, WRITE)
    word = QUEUED | WRITE | NODE << REC_NODE_SHIFT
    store.w[one], store.w[two], store.w[gone] = word | numbers[1] << REC_NEXT_SHIFT, word | numbers[0] << REC_NEXT_SHIFT, word
    lock_word = LOCK_WRITER | numbers[0] << LOCK_HEAD_SHIFT | numbers[2] << LOCK_TAIL_SHIFT
    store.w[word_at(store)] = lock_word
    with pytest.raises(MFSCorruptStoreError, match="a queue that ends") as caught:
        rw.unlock(gone)
    assert (caught.value.segment, caught.value.offset, caught.value.found) == ("index", 8 * word_at(store), lock_word)
    store.w[one] = store.w[two] = store.w[gone] = FREE
    store.w[word_at(store)] = LOCK_WRITER
    for record in (one, two, gone):
        give_back(store, record)
    unlock(store, holder)


@pytest.mark.parametrize("damage", ["free", "of another node", "no record"])
def test_a_queue_of_others(store: Attachment, damage: str) -> None:
    """What the queue names must be a record that waits for this node."""
    record = lease(store)
    number = store.rw.number(record)
    if damage == "of another node":
        store.w[record] = QUEUED | (NODE + 1) << REC_NODE_SHIFT
    elif damage == "no record":
        number = store.layout.slots * RECORDS + 7
    store.w[word_at(store)] = number << LOCK_HEAD_SHIFT | number << LOCK_TAIL_SHIFT
    with pytest.raises(MFSCorruptStoreError, match=f"a record queued for node {NODE}") as caught:
        lock(store, NODE, READ, 0.0)
    assert caught.value.offset == 8 * store.layout.record_at(number)
    assert caught.value.found == (0 if damage == "no record" else store.w[record])
    store.w[word_at(store)], store.w[record] = 0, FREE
    give_back(store, record)


def test_a_word_that_leads_nowhere(store: Attachment) -> None:
    """Met by a request in the mutex: it is damage, no fault of the caller's, and the mutex is left."""
    record = lease(store)
    request = rwlock._Request(store.rw, NODE, 1, 0, record, READ, None)
    with pytest.raises(MFSCorruptStoreError, match="numbers that lead somewhere"):
        request._section(lambda granted: granted.append(store.w[len(store.w)]))
    assert not store.mutexes[K]._gate
    give_back(store, record)


# ---- between looking and queueing


@pytest.mark.parametrize(("holds", "kind"), [(READ, WRITE), (WRITE, READ), (WRITE, WRITE)])
def test_a_try_does_not_wait(store: Attachment, holds: int, kind: int) -> None:
    """It never stands in the queue, where it would be in others' way, and makes no semaphore to be woken by."""
    holder, record = holder_of(store, holds), lease(store)
    seen = instrument(store, Recorder)
    with pytest.raises(MFSLockTimeoutError):
        store.rw.lock(NODE, 1, 0, record, kind, 0.0)
    instrument(store, lambda buffer: buffer.words)
    stored = {word for word, _ in seen.stores}
    assert record + R_THREAD in stored and record not in stored
    assert not any(value & rwlock._QUEUE for word, value in seen.stores if word == word_at(store))
    assert not len(store.rw._parks) and not [entry for entry in leftovers(store.uuid.hex) if ".p" in entry]
    give_back(store, record)
    unlock(store, holder)


@pytest.mark.parametrize(("generation", "namespace", "kind"), [(3, 0, READ), (1, 2, WRITE)])
def test_another_node_when_it_looks(store: Attachment, generation: int, namespace: int, kind: int) -> None:
    """The caller is told to look again; the mutex is left at once, and not only mended by the next one."""
    record = lease(store)
    assert store.rw.lock(NODE, generation, namespace, record, kind, None) is False
    assert state_of(store, record) == FREE and store.w[word_at(store)] == 0 and mutex_findings(store) == []
    give_back(store, record)


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_mutexes_are_left(store: Attachment, kind: int) -> None:
    """By whoever locks, is refused, unlocks or reaps: at once, and not only mended by the next one."""
    record = lock(store, NODE, kind)
    assert mutex_findings(store) == []
    with pytest.raises(MFSLockTimeoutError):
        in_thread(lock, store, NODE, WRITE, 0.0)
    assert mutex_findings(store) == []
    unlock(store, record)
    assert mutex_findings(store) == []
    slot = killed_inside(store)
    assert not store.rw.reap(slot, store.participants.epoch(slot), 20.0) and mutex_findings(store) == []
    assert store.rw.reap(slot, next_epoch(store.participants.epoch(slot)), 20.0) and mutex_findings(store) == []


@pytest.mark.parametrize("timeout", [0.0, None])
@pytest.mark.parametrize("word", ["generation", "namespace"])
def test_another_node_when_it_comes_to_queue(
    store: Attachment, monkeypatch: pytest.MonkeyPatch, timeout: float | None, word: str
) -> None:
    """The caller is told to look again, and nothing is left."""
    at = word_at(store, N_GENERATION) if word == "generation" else NAMESPACE
    holder = holder_of(store, WRITE)
    own_hold = rwlock._Request._own_hold

    def changed_meanwhile(self: Any) -> bool:
        store.w[at] += 2
        return own_hold(self)

    monkeypatch.setattr(rwlock._Request, "_own_hold", changed_meanwhile)
    record, before = lease(store), store.w[at]
    assert not store.rw.lock(NODE, 1, store.w[NAMESPACE], record, WRITE, timeout)
    assert state_of(store, record) == FREE and store.w[word_at(store)] == LOCK_WRITER
    monkeypatch.undo()
    store.w[at] = before
    give_back(store, record)
    unlock(store, holder)


@pytest.mark.parametrize("kind", [READ, WRITE])
@pytest.mark.parametrize("timeout", [0.0, 20.0, None])
def test_free_when_it_comes_to_queue(
    store: Attachment, monkeypatch: pytest.MonkeyPatch, timeout: float | None, kind: int, no_slices: None
) -> None:
    """It is taken at once."""
    holder = holder_of(store, WRITE)
    own_hold = rwlock._Request._own_hold

    def left_meanwhile(self: Any) -> bool:
        in_thread(unlock, store, holder)
        return own_hold(self)

    monkeypatch.setattr(rwlock._Request, "_own_hold", left_meanwhile)
    record = lock(store, NODE, kind, timeout)
    monkeypatch.undo()
    assert state_of(store, record) == HELD and store.w[word_at(store)] == (LOCK_WRITER if kind else 1)
    assert lock_findings(store, all_free=False) == []
    unlock(store, record)


@pytest.mark.parametrize("timeout", [0.0, None])
def test_a_queue_that_nobody_moved_on(store: Attachment, timeout: float | None, no_slices: None) -> None:
    """Whoever comes grants what can be granted, wakes those, and has his own share if he may."""
    holder = holder_of(store, WRITE)
    first = Waiter(store, READ)
    vanish(store, holder)
    assert queued(store, NODE) == 1 and store.w[word_at(store)] & LOCK_READERS == 0
    record = lock(store, NODE, READ, timeout)
    assert store.w[word_at(store)] == 2
    until(lambda: bool(first.records), "the other one was woken")
    unlock(store, record)
    first.end()


def test_a_queue_that_its_own_head_moves_on(store: Attachment) -> None:
    """It looks after a slice, and grants itself what nobody granted."""
    holder = holder_of(store, READ)
    waiter = Waiter(store, WRITE)
    vanish(store, holder)
    until(lambda: bool(waiter.records), "it has it")
    assert not store.w[waiter.records[0]] >> REC_PARK_SHIFT & REC_PARK_MASK, "nobody is to wake it any more"
    waiter.end()


# ---- waiting


def test_signals_while_waiting(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler runs after each slice, and the wait goes on."""
    monkeypatch.setattr(rwlock, "SLICE_S", 0.02)
    holder, hits = Waiter(store, WRITE), []

    def act(frame: FrameType) -> None:
        if frame.f_code.co_name == "sleep_on":
            hits.append(frame.f_lineno)
            if len(hits) == 3:
                holder.go.set()

    with Signals(act):
        unlock(store, lock(store, NODE, WRITE))
    assert len(hits) >= 3
    holder.end()


def test_destroyed_while_waiting(no_slices: None) -> None:
    """Whoever waits is told; the request is not taken back from what is gone."""
    with lock_store() as store:
        holder_of(store, WRITE)
        task = Task(lock, store, NODE, WRITE, 20.0)
        until(lambda: queued(store, NODE) == 1, "it waits")
        (hold,) = [hold for hold in store.rw.holds(NODE) if hold.state == QUEUED]
        store.w[W_STATE] = STATE_DESTROYED
        park = next(key for key in store.rw._semaphores if key[0] == hold.slot)
        store.rw._semaphores[park].release()
        with pytest.raises(MFSStoreGoneError):
            task.result()
        store.w[W_STATE] = STATE_READY
        assert queued(store, NODE) == 1
        attachment.destroy(store.name)


def test_parking_in_a_store_that_is_destroyed(store: Attachment) -> None:
    """The semaphore that is made then, perhaps after the destroyer has looked, does not stay."""
    store.w[W_STATE] = STATE_DESTROYED
    semaphore = store.rw._park(store.slot, 1, create=True)
    assert not [entry for entry in leftovers(store.uuid.hex) if entry.endswith(f".p{store.slot}.1")]
    store.w[W_STATE] = STATE_READY
    semaphore.close()
    del store.rw._semaphores[store.slot, 1]


def test_parking(store: Attachment) -> None:
    """A semaphore of one's own for as long, without a token that is left from before; then it is the next one's."""
    with store.rw.parking() as (number, semaphore):
        assert number == 1 and semaphore is not None and semaphore.value == 0
        assert os.stat(names.semaphore_path(names.park(store.uuid, store.slot, 1))).st_mode & 0o777 == 0o600
        with store.rw.parking() as (other, another):
            assert other == 2 and another is not semaphore
        semaphore.release()
        semaphore.release()
    with store.rw.parking() as (number, semaphore):
        assert number == 1 and semaphore is not None and semaphore.value == 0
    assert free_words(store.rw._parks) == [2, 1] and len(store.rw._parks) == 2
    parks = [store.rw._lease_park() for _ in range(rwlock.PARKS_AT_MOST)]
    assert None not in parks
    with store.rw.parking() as found:
        assert found == (0, None), "no more than a record has room for"
    assert rwlock.PARKS_AT_MOST <= REC_PARK_MASK and not store.rw._parks.free
    parks.pop()
    with store.rw.parking() as (number, semaphore):
        assert number == rwlock.PARKS_AT_MOST and semaphore is not None, "one whose wait ended anyhow is had again"


def test_no_room_for_parking(store: Attachment) -> None:
    """Then there is none, and the place is kept for later."""

    def event(what: str) -> None:
        if what == "sem_open":
            raise OSError(28, "no room")

    with system_calls(event):
        with store.rw.parking() as found:
            assert found == (0, None)
    assert free_words(store.rw._parks) == [1]
    holder = holder_of(store, WRITE)
    with system_calls(event):
        waiter = Waiter(store, READ)
        (word,) = [word for record in store.rw.records(store.slot) if (word := store.w[record]) & REC_STATE == QUEUED]
        assert word >> REC_PARK_SHIFT & REC_PARK_MASK == 0
        unlock(store, holder)
        until(lambda: bool(waiter.records), "it looks by itself")
    waiter.end()


def test_waking_who_cannot_be(store: Attachment) -> None:
    """A record without a semaphore, or whose semaphore is gone, is not woken; that is no error."""
    record = lease(store)
    store.rw.post(record)
    store.w[record] = GRANTED | 9 << REC_PARK_SHIFT | NODE << REC_NODE_SHIFT
    store.rw.post(record)
    semaphore = posix_ipc.Semaphore(names.park(store.uuid, store.slot, 9), posix_ipc.O_CREX, mode=0o600, initial_value=0)
    store.rw.post(record)
    assert semaphore.value == 1
    semaphore.close()
    store.w[record] = FREE
    give_back(store, record)
