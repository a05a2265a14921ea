"""Stores for tests of the lock layer: no tree, no files, only nodes that can be locked.

`lock_store` makes one and leaves nothing of it behind. `lock`, `unlock` and `inside` are the ways in that the layers
above take, and `lock_findings` says what is wrong with a store in which nobody is at work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc

from dmemfs_shm.store import attachment, mutex, names
from dmemfs_shm.store.attachment import Attachment, Parameters
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.layout import (
    BACKEND_OFD,
    BACKENDS,
    FREE,
    GRANTED,
    HELD,
    HELD_LIGHTLY,
    INODE_MUTEXES,
    LB_ATTACH,
    LB_INIT,
    LB_MUTEX,
    LB_RECOVER,
    LIGHT,
    LIGHT_RECORDS,
    LOCK_BUSY,
    LOCK_HEAD_SHIFT,
    LOCK_LIGHT,
    LOCK_READERS,
    LOCK_RECORD_MASK,
    LOCK_TAIL_SHIFT,
    LOCK_WRITER,
    LOW32,
    MUTEXES,
    N_CREATED,
    N_GENERATION,
    N_LOCK,
    NAMESPACE,
    NODE_STEP,
    QUEUED,
    REC_IS_LIGHT,
    REC_NEXT_MASK,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
    RECORD_WORDS,
    RECORDS,
    RECORDS_RESERVED,
    W_BACKEND,
    generation_at,
    journal_at,
)
from dmemfs_shm.store.lease import Lease

from .processes import Link, child

BOTH = sorted(BACKENDS)
GENERATION_OF_NODES = 1

#: Node numbers that tests lock; the first two share a mutex.
NODES = (5, 5 + INODE_MUTEXES, 6, 7, 8)


def fresh_name() -> str:
    """A store's name that no other test has."""
    return f"t-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def leftovers(*marks: str) -> list[str]:
    """Entries of /dev/shm that carry one of these names or uuids."""
    return sorted(e for e in os.listdir("/dev/shm") if "dmemfs-" in e and any(m in e for m in marks))


def clear_away(name: str, *marks: str) -> list[str]:
    """Destroy a store if it stands and say what is left of it then; that is unlinked, too."""
    with contextlib.suppress(FileNotFoundError):
        attachment.destroy(name)
    left = leftovers(name, *marks)
    for entry in left:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/dev/shm/{entry}")
    return left


@contextlib.contextmanager
def named_store() -> Iterator[str]:
    """A name for a store that the test makes itself."""
    name = fresh_name()
    try:
        yield name
    finally:
        left = clear_away(name)
    assert left == []


@contextlib.contextmanager
def lock_store(backend: str = "generation", *, slots: int = 8, quota_bytes: int = 1 << 20) -> Iterator[Attachment]:
    """A store whose nodes 2 and up can be locked; nothing is left of it when the block ends."""
    name = fresh_name()
    store = attachment.create(name, Parameters(quota_bytes, backend=BACKENDS[backend], slots=slots))
    marks = store.uuid.hex
    try:
        for node in range(2, NODE_STEP):
            store.w[store.layout.node_at(node) + N_GENERATION] = GENERATION_OF_NODES
        yield store
    finally:
        with contextlib.suppress(ValueError):
            attachment.release(store)
        left = clear_away(name, marks)
    assert left == []


# ---- what the layer above does


@contextlib.contextmanager
def sound_lock_store(backend: str = "generation") -> Iterator[Attachment]:
    """A `lock_store` that is in order and free when the block ends: no lock, no claim, no open journal, no shut gate."""
    with lock_store(backend) as made:
        yield made
        settle(made)
        assert lock_findings(made) == []


def lock(store: Attachment, node: int, kind: int = 0, timeout: float | None = None) -> int:
    """Lock a node; the record that holds it. kind: 0 shared, REC_WRITER exclusive."""
    record = lease(store)
    try:
        same = store.rw.lock(node, GENERATION_OF_NODES, store.w[NAMESPACE], record, kind, timeout)
    except BaseException:
        give_back(store, record)
        raise
    assert same, "nodes of these tests never change"
    return record


_leases: dict[tuple[str, int], Lease] = {}


def lease(store: Attachment) -> int:
    """A record, which tests know by its word."""
    one = store.rw.lease()
    _leases[store.name, one.word] = one
    return one.word


def forget(store: Attachment, record: int) -> None:
    """Lose the lease of a record, as a finaliser does with what its object held."""
    store.rw.mark_dropped(record)
    del _leases[store.name, record]


def give_back(store: Attachment, record: int) -> None:
    """Return a record, whatever became of the request; no harm if it was returned already."""
    one = _leases.pop((store.name, record), None)
    if one is not None:
        store.rw.give_back(one)
    store.work_off()


def unlock(store: Attachment, record: int) -> None:
    """Unlock what `lock` locked."""
    store.rw.give_back(_leases.pop((store.name, record)), clears=True)


_INSIDE = """
def inside(store, number, body, timeout=None):
    thread = store.threads.enter()
    mutex = store.mutexes[number]
    try:
        mutex.acquire(thread, timeout)
        body()
        mutex.release(thread)
    except BaseException:
        try:
            mutex.abandon(thread)
        except BaseException:
            mutex.abandon(thread)
            raise
        raise
"""


def _make_inside() -> Callable[..., None]:
    # Sections are told by their frames, which lie in the store's folder: so does this one.
    scope: dict[str, Any] = {}
    exec(compile(_INSIDE, os.path.join(os.path.dirname(mutex.__file__), "section_of_a_test.py"), "exec"), scope)
    function: Callable[..., None] = scope["inside"]
    return function


#: inside(store, number, body, timeout=None): run body() inside a mutex, as a section of the store does.
inside = _make_inside()


def killed_inside(store: Attachment, *numbers: int, begun: int | None = None) -> int:
    """Somebody is killed inside these mutexes; his slot. begun: he had begun to change that node's time under the first."""

    def die(link: Link) -> None:
        his = attachment.attach(store.name)
        thread = his.threads.enter()
        for number in numbers:
            his.mutexes[number].acquire(thread)
        if begun is not None:
            at, word = journal_at(numbers[0]), store.layout.node_at(begun) + N_CREATED
            his.w[at + 1], his.w[at + 2], his.w[at] = word, his.w[word], 1
            his.w[word] = 1234
        link.send(his.slot)
        os.kill(os.getpid(), signal.SIGKILL)

    with child("fork", die) as running:
        slot = int(running.receive())
        running.join()
    return slot


def state_of(store: Attachment, record: int) -> int:
    """FREE, QUEUED, GRANTED or HELD."""
    return int(store.w[record] & REC_STATE)


def queued(store: Attachment, node: int) -> int:
    """How many requests wait for a node."""
    return sum(hold.state == QUEUED for hold in store.rw.holds(node))


# ---- what is wrong with a store

#: What a lock word says of those who hold and wait.
LOCK_HELD = LOCK_BUSY & ~LOCK_LIGHT


def settle(store: Attachment) -> None:
    """Do for the dead whatever is to be done: reap them, and pass once through every mutex."""
    store.work_off()
    store.reap_dead(10.0)
    for number in range(MUTEXES):
        inside(store, number, lambda: None, 10.0)


def lock_findings(store: Attachment, *, all_free: bool = True) -> list[str]:
    """What is wrong with locks, mutexes and journals; empty when sound. Nobody may be at work in the store.

    all_free: nobody may hold or wait for anything either.
    """
    found = mutex_findings(store)
    for node in range(2, NODE_STEP):
        found += _node_findings(store, node)
    if all_free:
        found += [f"left behind: {hold}" for hold in store.rw.holds()]
        words = {node: store.w[store.layout.node_at(node) + N_LOCK] & LOCK_HELD for node in range(2, NODE_STEP)}
        found += [f"node {node}: lock word {word:#x} at rest" for node, word in words.items() if word]
    for slot in range(store.layout.slots):
        if store.participants.has_memory(slot):
            first = store.layout.record_at(slot * RECORDS + RECORDS_RESERVED)
            for number in range(LIGHT_RECORDS):
                node, word = store.w[LIGHT + slot * LIGHT_RECORDS + number], store.w[first + number * RECORD_WORDS]
                if node and word != HELD_LIGHTLY | (node & LOW32) << REC_NODE_SHIFT:
                    found.append(f"slot {slot} holds node {node & LOW32} lightly, and record {number} says {word:#x}")
    free = [lease.word for lease in store.rw.free]
    if len(set(free)) != len(free):
        found.append(f"a record is twice in the free list: {sorted(free)}")
    found += [f"record {record} is in the free list and not free" for record in free if store.w[record] & REC_STATE]
    return found


def mutex_findings(store: Attachment) -> list[str]:
    """What is wrong with the mutexes, the journals and the lock bytes of a store in which nobody is at work."""
    w, found = store.w, []
    locks = ByteLocks(names.index_name(store.name))  # another description, which our own locks are in the way of
    try:
        for byte, what in ((LB_INIT, "creation"), (LB_ATTACH, "attaching"), (LB_RECOVER, "recovery")):
            if not locks.is_free(byte):
                found.append(f"the lock of {what} is held")
        for k in range(MUTEXES):
            if w[journal_at(k)]:
                found.append(f"journal {k} has {w[journal_at(k)]} entries")
            if store.mutexes[k]._gate:
                found.append(f"the gate of mutex {k} is shut")
            generation = w[generation_at(k)]
            if w[W_BACKEND] == BACKEND_OFD:
                if not locks.is_free(LB_MUTEX + k):
                    found.append(f"the byte of mutex {k} is held")
                continue
            if generation & 1:
                found.append(f"mutex {k} is being revoked: generation {generation}")
            tokens = _tokens(store, k, generation)
            if tokens != 1:
                found.append(f"mutex {k}, generation {generation}, has {tokens} tokens")
            holder = store.mutexes[k].holder()
            if holder is not None:
                found.append(f"slot {holder} claims mutex {k}")
    finally:
        locks.close()
    return found


def _tokens(store: Attachment, number: int, generation: int) -> int:
    try:
        semaphore = posix_ipc.Semaphore(names.mutex(store.uuid, number, generation))
    except posix_ipc.ExistentialError:
        return -1
    try:
        return int(semaphore.value)
    finally:
        semaphore.close()


def _node_findings(store: Attachment, node: int) -> list[str]:
    """The lock word is what the records say: how many hold, who waits, in what order, and nobody who could hold waits."""
    w, found, layout = store.w, [], store.layout
    readers = writers = light = 0
    waiting = set()
    for slot in range(layout.slots):
        if not store.participants.has_memory(slot):
            break
        for record in store.rw.records(slot):
            word = w[record]
            if word & REC_STATE == FREE or word >> REC_NODE_SHIFT != node:
                continue
            if word & REC_STATE == QUEUED:
                waiting.add(record)
                continue
            assert word & REC_STATE in (GRANTED, HELD)
            if word >> REC_NEXT_SHIFT & REC_NEXT_MASK:
                found.append(f"node {node}: record {record} holds it and still points into the queue")
            writers += bool(word & REC_WRITER)
            readers += not word & REC_WRITER and word & REC_IS_LIGHT != HELD_LIGHTLY
            light += word & REC_IS_LIGHT == HELD_LIGHTLY
    lock = w[layout.node_at(node) + N_LOCK]
    if lock & LOCK_READERS != readers or bool(lock & LOCK_WRITER) != bool(writers):
        found.append(f"node {node}: lock word {lock:#x}, but {readers} readers and {writers} writers have records")
    if writers > 1 or (writers and (readers or light)):
        found.append(f"node {node}: {writers} writers and {readers + light} readers at once")
    if light and not lock & LOCK_LIGHT:
        found.append(f"node {node}: {light} readers hold it lightly, and lock word {lock:#x} does not say so")
    chain: list[int] = []
    number = lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK
    while number and len(chain) <= len(waiting):
        chain.append(layout.record_at(number))
        number, last = w[chain[-1]] >> REC_NEXT_SHIFT & REC_NEXT_MASK, number
    if set(chain) != waiting or len(chain) != len(waiting):
        found.append(f"node {node}: {chain} are in the queue, {sorted(waiting)} wait")
    elif chain:
        if lock >> LOCK_TAIL_SHIFT & LOCK_RECORD_MASK != last:
            found.append(f"node {node}: the queue's tail is not its last")
        writer = bool(w[chain[0]] & REC_WRITER)
        if not writers and not (writer and readers):
            found.append(f"node {node}: the head of the queue could hold it")
    return found
