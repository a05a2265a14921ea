"""Reader-writer locks of nodes: who shares, who waits, in what order, and what is left of those who give up or die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dmemfs_shm.errors import MFSDeadlockError, MFSLockTimeoutError, MFSStoreBusyError, MFSTooManyHandlesError
from dmemfs_shm.store import attachment, mutex, rwlock
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.layout import (
    FREE,
    GRANTED,
    HELD,
    LOCK_ABANDONED,
    LOCK_LIGHT,
    LOCK_MORE,
    LOCK_READERS,
    LOCK_WRITER,
    N_GENERATION,
    N_LOCK,
    N_SEQ,
    QUEUED,
    REC_DIRTY,
    REC_WRITER,
    RECORDS,
    RECORDS_RESERVED,
)

from ..lockstore import (
    BOTH,
    forget,
    give_back,
    inside,
    lease,
    lock,
    lock_findings,
    queued,
    sound_lock_store,
    state_of,
    unlock,
)
from ..processes import DEADLINE_S, Link, Task, child, in_thread, until

NODE = 5
READ, WRITE = 0, REC_WRITER


@pytest.fixture(params=BOTH)
def store(request: pytest.FixtureRequest) -> Iterator[Attachment]:
    """A store with either backend, in order and free at the end."""
    with sound_lock_store(request.param) as made:
        yield made


@pytest.fixture
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: who is to go on must be woken."""
    monkeypatch.setattr(rwlock, "SLICE_S", 60.0)


def lock_word(store: Attachment, node: int = NODE) -> int:
    """What it says of those who hold, not lightly, and wait."""
    return int(store.w[store.layout.node_at(node) + N_LOCK] & ~(LOCK_MORE | LOCK_LIGHT))


class Actor:
    """A thread that locks a node, says so, and unlocks it when told."""

    def __init__(self, store: Attachment, kind: int, node: int = NODE, timeout: float | None = None) -> None:
        self.store = store
        self.has, self.release = threading.Event(), threading.Event()
        before = queued(store, node)
        self.task = Task(self._run, kind, node, timeout)
        until(lambda: self.has.is_set() or queued(store, node) > before or self.task.done, "it has the lock or waits")

    def _run(self, kind: int, node: int, timeout: float | None) -> None:
        record = lock(self.store, node, kind, timeout)
        self.has.set()
        assert self.release.wait(60)
        unlock(self.store, record)

    def gets_it(self) -> None:
        assert self.has.wait(60), "it still waits"

    def end(self) -> None:
        self.release.set()
        self.task.result()


def holding(link: Link, name: str, wants: list[tuple[int, int]]) -> None:
    """A process that holds some nodes until it is told to go, or killed."""
    store = attachment.attach(name)
    records = [lock(store, node, kind) for node, kind in wants]
    link.send("has it")
    link.recv()
    for record in records:
        unlock(store, record)
    attachment.release(store)


def waiting(link: Link, name: str, node: int, kind: int) -> None:
    """A process that asks for a node and holds it for a moment."""
    store = attachment.attach(name)
    record = lock(store, node, kind)
    link.send("has it")
    unlock(store, record)
    attachment.release(store)


# ---- sharing and excluding


def test_sharing(store: Attachment) -> None:
    """Readers share; the lock word counts those who took the mutex."""
    records = [lock(store, NODE), in_thread(lock, store, NODE)]
    assert lock_word(store) & LOCK_READERS == (1 if store.rw.come else 2) and len(store.rw.holds(NODE)) == 2
    assert lock_findings(store, all_free=False) == []
    for record in records:
        unlock(store, record)
    assert lock_word(store) == 0


@pytest.mark.parametrize(("first", "second"), [(READ, WRITE), (WRITE, READ), (WRITE, WRITE)])
def test_excluding(store: Attachment, first: int, second: int) -> None:
    """A writer is alone; a try is refused with the holder's name, and leaves nothing."""
    held = lock(store, NODE, first)
    before = lock_word(store)
    with pytest.raises(MFSLockTimeoutError) as caught:
        in_thread(lock, store, NODE, second, 0.0)
    assert caught.value.writer == bool(second) and f"process {os.getpid()} " in str(caught.value)
    assert lock_word(store) == before and lock_findings(store, all_free=False) == []
    unlock(store, held)
    in_thread(lambda: unlock(store, lock(store, NODE, second, 0.0)))


def test_between_processes(store: Attachment) -> None:
    """The same between processes."""
    with child("fork", holding, store.name, [(NODE, WRITE), (NODE + 1, READ)]) as running:
        running.receive()
        for node, kind in ((NODE, READ), (NODE, WRITE), (NODE + 1, WRITE)):
            with pytest.raises(MFSLockTimeoutError):
                lock(store, node, kind, 0.0)
        unlock(store, lock(store, NODE + 1, READ, 0.0))
        running.send("go")
        running.receive()
        unlock(store, lock(store, NODE, WRITE, 0.0))


# ---- the queue


def test_first_come_first_served(store: Attachment, no_slices: None) -> None:
    """W (R R) W R: granted in this order, neighbouring readers together, each woken by whom it waited for."""
    holder = Actor(store, READ)
    w1, r1, r2, w2, r3 = (Actor(store, kind) for kind in (WRITE, READ, READ, WRITE, READ))
    assert queued(store, NODE) == 5 and lock_findings(store, all_free=False) == []
    holder.end()
    w1.gets_it()
    assert not any(actor.has.is_set() for actor in (r1, r2, w2, r3))
    w1.end()
    r1.gets_it()
    r2.gets_it()
    assert not w2.has.is_set() and not r3.has.is_set()
    r1.end()
    assert not w2.has.is_set()
    r2.end()
    w2.gets_it()
    assert not r3.has.is_set()
    w2.end()
    r3.gets_it()
    r3.end()


def test_no_overtaking(store: Attachment) -> None:
    """A reader that comes after a waiting writer waits, though readers hold the node."""
    holder, writer = Actor(store, READ), Actor(store, WRITE)
    with pytest.raises(MFSLockTimeoutError):
        lock(store, NODE, READ, 0.0)
    reader = Actor(store, READ)
    assert not reader.has.is_set() and not writer.has.is_set()
    holder.end()
    writer.gets_it()
    assert not reader.has.is_set()
    writer.end()
    reader.end()


def test_time_out_leaves_no_trace(store: Attachment) -> None:
    """Neither in the lock word, nor in the queue, nor in the way of the next one."""
    holder = Actor(store, READ)
    before = lock_word(store)
    for timeout in (0.0, 0.01, 0.06):
        with pytest.raises(MFSLockTimeoutError):
            lock(store, NODE, WRITE, timeout)
        assert lock_word(store) == before
    unlock(store, lock(store, NODE, READ, 0.0))
    holder.end()
    assert lock_word(store) == 0


def test_time_out_lets_the_next_ones_in(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers behind a writer that gives up have the node in the same moment."""
    holder = Actor(store, READ)
    monkeypatch.setattr(rwlock, "SLICE_S", 60.0)
    writer = Actor(store, WRITE, timeout=0.1)
    readers = [Actor(store, READ), Actor(store, READ)]
    with pytest.raises(MFSLockTimeoutError):
        writer.end()
    states = [hold.state for hold in store.rw.holds(NODE)]
    assert len(states) == 3 and set(states) <= {GRANTED, HELD}
    for reader in readers:
        reader.gets_it()
        reader.end()
    holder.end()


def test_time_out_in_the_middle_and_at_the_end(store: Attachment) -> None:
    """The queue stays whole when somebody leaves it anywhere."""
    holder = Actor(store, WRITE)
    first, middle, last = Actor(store, WRITE), Actor(store, READ, timeout=0.1), Actor(store, WRITE)
    end = Actor(store, READ, timeout=0.15)
    for actor in (middle, end):
        with pytest.raises(MFSLockTimeoutError):
            actor.end()
    assert queued(store, NODE) == 2 and lock_findings(store, all_free=False) == []
    holder.end()
    first.gets_it()
    first.end()
    last.end()


def test_more_readers_than_a_transaction_grants(store: Attachment, no_slices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are granted in several transactions of the same hold."""
    monkeypatch.setattr(rwlock, "GRANTS_A_TRANSACTION", 3)
    holder = Actor(store, WRITE)
    readers = [Actor(store, READ) for _ in range(10)]
    holder.end()
    for reader in readers:
        reader.gets_it()
    assert lock_word(store) & LOCK_READERS == 10
    for reader in readers:
        reader.end()


def test_no_parking_semaphore_left(store: Attachment) -> None:
    """Without one a waiter looks by itself, and gets what it waits for."""
    taken = [store.rw._lease_park() for _ in range(rwlock.PARKS_AT_MOST)]
    assert None not in taken and store.rw._lease_park() is None
    holder = Actor(store, WRITE)
    others = [Actor(store, kind) for kind in (READ, WRITE)]
    holder.end()
    for other in others:
        other.gets_it()
        other.end()


def test_more_waiters_than_parking_semaphores(store: Attachment) -> None:
    """All of them are served."""
    holder = Actor(store, WRITE)
    readers = [Actor(store, READ) for _ in range(rwlock.PARKS_AT_MOST + 4)]
    holder.end()
    for reader in readers:
        reader.end()


# ---- one thread twice


def test_shared_again_past_a_writer(store: Attachment) -> None:
    """A thread that holds it shared has it again at once; another thread of the process does not."""
    first = lock(store, NODE)
    writer = Actor(store, WRITE)
    for timeout in (0.0, 1.0, None):
        again = lock(store, NODE, READ, timeout)
        assert lock_word(store) & LOCK_READERS == 2 and lock_findings(store, all_free=False) == []
        unlock(store, again)
    with pytest.raises(MFSLockTimeoutError):
        in_thread(lock, store, NODE, READ, 0.0)
    assert lock_findings(store, all_free=False) == []
    unlock(store, first)
    writer.gets_it()
    writer.end()


@pytest.mark.parametrize(("first", "second"), [(READ, WRITE), (WRITE, READ), (WRITE, WRITE)])
@pytest.mark.parametrize("timeout", [0.0, 5.0, None])
def test_in_ones_own_way(store: Attachment, first: int, second: int, timeout: float | None) -> None:
    """MFSDeadlockError at once, and nothing changed."""
    held = lock(store, NODE, first)
    before = lock_word(store)
    with pytest.raises(MFSDeadlockError):
        lock(store, NODE, second, timeout)
    assert lock_word(store) == before
    unlock(store, held)


def test_threads_are_told_apart_for_ever(store: Attachment) -> None:
    """A thread that happens to get the number of one that ended is not taken for it."""
    records = [in_thread(lock, store, NODE, READ) for _ in range(3)]
    with pytest.raises(MFSLockTimeoutError):
        in_thread(lock, store, NODE, WRITE, 0.0)
    for record in records:
        unlock(store, record)


# ---- death


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_dead_holder(store: Attachment, kind: int) -> None:
    """Who waits for it has the node; who tries is not refused because of it."""
    with child("fork", holding, store.name, [(NODE, kind), (NODE + 1, kind)]) as running:
        running.receive()
        waiter = Actor(store, WRITE)
        assert not waiter.has.is_set()
        running.kill()
        waiter.gets_it()
        waiter.end()
        unlock(store, lock(store, NODE + 1, WRITE, 0.0))


def test_dead_holder_found_at_the_deadline(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stray token at the last moment does not make it forget to look who is dead."""

    def woken_late(self: Any, semaphore: Any) -> bool:
        time.sleep(max(0.0, self.deadline - time.monotonic()))
        return True

    with child("fork", holding, store.name, [(NODE, WRITE)]) as running:
        running.receive()
        running.kill()
        monkeypatch.setattr(rwlock._Request, "_sleep", woken_late)
        unlock(store, lock(store, NODE, WRITE, 0.05))


def test_dead_waiter(store: Attachment) -> None:
    """It is passed over: the reader behind a dead writer shares with the holder."""
    holder = Actor(store, READ)
    with child("fork", waiting, store.name, NODE, WRITE) as running:
        until(lambda: queued(store, NODE) == 1, "the writer waits")
        reader = Actor(store, READ)
        assert not reader.has.is_set()
        running.kill()
        reader.gets_it()
        reader.end()
    holder.end()


def test_dead_waiter_in_the_middle(store: Attachment) -> None:
    """The order of the others stands."""
    holder, first = Actor(store, WRITE), Actor(store, WRITE)
    with child("fork", waiting, store.name, NODE, READ) as running:
        until(lambda: queued(store, NODE) == 2, "the reader waits")
        last = Actor(store, WRITE)
        running.kill()
        holder.end()
        first.gets_it()
        assert not last.has.is_set()
        first.end()
        last.gets_it()
        last.end()


def test_granted_and_dead(store: Attachment) -> None:
    """A writer that was granted the node and died before it knew frees it, and never marks it abandoned."""
    holder = Actor(store, READ)
    with child("fork", waiting, store.name, NODE, WRITE | REC_DIRTY) as running:
        until(lambda: queued(store, NODE) == 1, "the writer waits")
        os.kill(running.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        holder.end()
        (hold,) = store.rw.holds(NODE)
        assert hold.state == GRANTED and lock_word(store) & LOCK_WRITER
        running.kill()
        reader = lock(store, NODE, READ, 20)
        assert not lock_word(store) & LOCK_ABANDONED
        unlock(store, reader)


def test_stopped_holder_is_not_robbed(store: Attachment) -> None:
    """A stopped process keeps its lock."""
    with child("fork", holding, store.name, [(NODE, WRITE)]) as running:
        running.receive()
        os.kill(running.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            with pytest.raises(MFSLockTimeoutError) as caught:
                lock(store, NODE, READ, 0.12)
            assert f"process {running.pid} " in str(caught.value)
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.send("go")
        running.receive()


def test_abandoned(store: Attachment) -> None:
    """Marked when a dirty writer is reaped; readers find it; the next clean close clears it, another does not."""
    with child("fork", holding, store.name, [(NODE, WRITE | REC_DIRTY)]) as running:
        running.receive()
        running.kill()
        reader = lock(store, NODE, READ, 20)
        assert lock_word(store) == LOCK_ABANDONED + 1
        unlock(store, reader)
        store.rw.unlock(lock(store, NODE, WRITE), clears=False)
        assert lock_word(store) == LOCK_ABANDONED
        unlock(store, lock(store, NODE, WRITE))
        assert lock_word(store) == 0


# ---- what changed since the node was looked up


def test_another_generation_or_namespace(store: Attachment) -> None:
    """The request is not granted, and the record is free."""
    record = lease(store)
    assert not store.rw.lock(NODE, 3, 0, record, READ, None)
    assert not store.rw.lock(NODE, 1, 2, record, READ, None)
    assert state_of(store, record) == FREE
    give_back(store, record)


def test_change_during_the_wait(store: Attachment) -> None:
    """A waiter whose node has become another one leaves the queue and is told to look again."""
    holder = Actor(store, WRITE)
    at = store.layout.node_at(NODE) + N_GENERATION

    def ask() -> bool:
        record = lease(store)
        same = store.rw.lock(NODE, 1, 0, record, WRITE, None)
        assert state_of(store, record) == FREE
        give_back(store, record)
        return bool(same)

    task = Task(ask)
    until(lambda: queued(store, NODE) == 1, "it waits")
    old = store.w[at]
    inside(store, store.layout.mutex_of(NODE), lambda: store.w.__setitem__(at, old + 2))
    assert task.result() is False
    assert queued(store, NODE) == 0
    store.w[at] = old
    holder.end()


def test_place_in_the_queue_outlasts_a_rename(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that moves elsewhere costs nobody his turn; the node of a waiter cannot move with it."""
    looks: list[int] = []
    relieve = store.relieve_locks
    monkeypatch.setattr(store, "relieve_locks", lambda: (looks.append(threading.get_ident()), relieve()))
    holder = Actor(store, WRITE)
    waiters = [Actor(store, WRITE), Actor(store, WRITE)]
    since = sorted(hold.since_ns for hold in store.rw.holds(NODE))
    store.sections.run(lambda section: section.freeze_namespace())
    store.sections.run(lambda _: None)  # makes the namespace word even again, as after any death or refusal
    looks.clear()
    until(lambda: min(map(looks.count, set(looks)), default=0) > 1 < len(set(looks)), "both have looked since")
    assert sorted(hold.since_ns for hold in store.rw.holds(NODE)) == since
    holder.end()
    for waiter in waiters:
        waiter.gets_it()
        waiter.end()


# ---- sequence


def test_sequence(store: Attachment) -> None:
    """Even outside of transactions; changed by the end of a writer's hold, not by a reader's; a leftover is evened."""
    at = store.layout.node_at(NODE) + N_SEQ
    unlock(store, lock(store, NODE))
    assert store.w[at] == 0
    unlock(store, lock(store, NODE, WRITE))
    assert store.w[at] == 2
    holder, reader = Actor(store, WRITE), Actor(store, READ)
    holder.end()
    reader.end()
    assert store.w[at] == 4
    store.w[at] = 5
    unlock(store, lock(store, NODE, WRITE))
    assert store.w[at] % 2 == 0 and store.w[at] > 5


# ---- records


def test_too_many_records(store: Attachment) -> None:
    """As many as the slot has, then an error; given back, they can be leased again."""
    records = [lease(store) for _ in range(RECORDS - RECORDS_RESERVED)]
    assert len(set(records)) == len(records)
    with pytest.raises(MFSTooManyHandlesError):
        lease(store)
    for record in records:
        assert store.rw.lock(NODE, 1, 0, record, READ, 0.0)
    assert len(store.rw.holds(NODE)) == len(records)
    assert lock_findings(store, all_free=False) == []
    for record in records:
        unlock(store, record)


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_lost_lease(store: Attachment, kind: int) -> None:
    """A note is worked off by the next operation; a file given up by a finaliser is not abandoned."""
    record = lock(store, NODE, kind)
    forget(store, record)
    assert state_of(store, record) == HELD
    store.work_off()
    assert state_of(store, record) == FREE and [free.word for free in store.rw.free] == [record]


def test_interrupted_wait(store: Attachment) -> None:
    """An exception in the wait takes the request back and lets the next ones in."""
    holder = Actor(store, READ)
    real, hits = store.reap_dead, []

    def reap_dead(timeout: float | None) -> int:
        if threading.current_thread().name == "victim":
            hits.append(1)
            raise KeyboardInterrupt
        return int(real(timeout))

    store.reap_dead = reap_dead  # type: ignore[method-assign]

    def victim() -> None:
        threading.current_thread().name = "victim"
        record = lease(store)
        with pytest.raises(KeyboardInterrupt):
            store.rw.lock(NODE, 1, 0, record, WRITE, None)
        assert state_of(store, record) == FREE
        give_back(store, record)

    task = Task(victim)
    task.result()
    assert hits and queued(store, NODE) == 0
    unlock(store, lock(store, NODE, READ, 0.0))
    holder.end()
    del store.reap_dead


def stopped_inside(link: Link, name: str, number: int) -> None:
    store = attachment.attach(name)
    inside(store, number, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    attachment.release(store)


def test_waiting_behind_a_stopped_section(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter keeps to its timeout though the mutex is not to be had; its request is taken back later."""
    monkeypatch.setattr(mutex, "GRACE_S", 0.2)
    holder = Actor(store, READ)
    records: list[int] = []

    def ask() -> None:
        records.append(lease(store))
        store.rw.lock(NODE, 1, 0, records[0], WRITE, 0.5)

    task = Task(ask)
    until(lambda: queued(store, NODE) == 1, "it waits")
    with child("fork", stopped_inside, store.name, store.layout.mutex_of(NODE)) as running:
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            with pytest.raises((MFSStoreBusyError, MFSLockTimeoutError)):
                task.result()
            assert state_of(store, records[0]) == QUEUED
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.receive()
        give_back(store, records[0])
        assert queued(store, NODE) == 0
    holder.end()


def hold_and_wait(link: Link, name: str, node: int) -> None:
    lock(attachment.attach(name), node, WRITE)
    link.send("holds")
    link.recv()


@pytest.mark.parametrize("granted", [False, True], ids=["in vain", "granted"])
def test_waiting_while_the_dead_cannot_be_reaped(store: Attachment, monkeypatch: pytest.MonkeyPatch, granted: bool) -> None:
    """A process is stopped in a mutex that reaping needs: who waits elsewhere gets his lock all the same, or, at his own
    deadline, is told who is stopped. (Whoever is in the way may be dead, so it is not said that he holds the file.)"""
    monkeypatch.setattr(mutex, "GRACE_S", 0.1)
    store.patience = 1e6
    real, in_vain = store.reap_dead, threading.Event()

    def reap_dead(timeout: float | None) -> int:
        try:
            return int(real(timeout))
        except MFSStoreBusyError:
            in_vain.set()
            raise

    monkeypatch.setattr(store, "reap_dead", reap_dead)
    holder, elsewhere = Actor(store, READ), NODE - 1
    with child("fork", hold_and_wait, store.name, elsewhere) as victim:
        victim.receive()
        with child("fork", stopped_inside, store.name, store.layout.mutex_of(elsewhere)) as running:
            os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
            try:
                victim.kill()
                task = Task(lock, store, NODE, WRITE, None if granted else 0.3)
                if granted:
                    assert in_vain.wait(DEADLINE_S)
                    holder.end()
                    unlock(store, task.result())
                else:
                    with pytest.raises(MFSStoreBusyError, match=f"process {running.pid} "):
                        task.result()
            finally:
                os.kill(running.pid, signal.SIGCONT)
            running.receive()
    if not granted:
        holder.end()


def test_damaged_queue(store: Attachment) -> None:
    """A queue that leads nowhere is an error, not a loop or a grant to nobody."""
    from dmemfs_shm.errors import MFSCorruptStoreError
    from dmemfs_shm.store.layout import LOCK_HEAD_SHIFT, LOCK_TAIL_SHIFT

    at = store.layout.node_at(NODE) + N_LOCK
    number: Any = store.rw.number(store.rw.records(store.slot)[5])
    store.w[at] = number << LOCK_HEAD_SHIFT | number << LOCK_TAIL_SHIFT
    with pytest.raises(MFSCorruptStoreError):
        lock(store, NODE, READ, 0.0)
    store.w[at] = 0
