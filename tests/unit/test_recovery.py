"""What the living do for the dead, step by step: which steps were taken, and what stands when one of them cannot be."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterator

import posix_ipc
import pytest

from dmemfs_shm.errors import MFSNoSpaceError, MFSStoreBusyError, MFSStoreGoneError
from dmemfs_shm.store import attachment, names, recovery
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.layout import (
    LB_RECOVER,
    MUTEXES,
    N_CREATED,
    NO_CLAIM,
    PAGE,
    RECOVERIES,
    S_CLAIM,
    STATE_DESTROYED,
    STATE_READY,
    W_STATE,
    WORD,
    generation_at,
    journal_at,
)
from dmemfs_shm.store.recovery import SPARES

from ..crash.harness import Recorder, instrument, system_calls, watched
from ..lockstore import BOTH, inside, killed_inside, leftovers, lock_findings, lock_store, settle
from ..processes import Task, until

K, OTHER = 6, 9


@pytest.fixture
def store() -> Iterator[Attachment]:
    """A store whose mutexes have generations, in order at the end."""
    with lock_store() as made:
        yield made
        if made.w[W_STATE] == STATE_READY:
            settle(made)
            assert lock_findings(made) == []


def generation(store: Attachment, number: int) -> int:
    return int(store.w[generation_at(number)])


def claim_at(store: Attachment, slot: int, number: int) -> int:
    return store.layout.slot_at(slot) + S_CLAIM + number


def lose_the_token(store: Attachment, number: int) -> None:
    inside(store, number, lambda: None)
    store.mutexes[number]._semaphore.acquire(1)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No semaphore can be made: /dev/shm is full."""

    def event(what: str) -> None:
        if what == "sem_open":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with system_calls(event):
        yield


def revoke(store: Attachment, number: int) -> None:
    """A mutex goes on to its next generation."""
    lose_the_token(store, number)
    assert store.recovery.recover(number, None)
    store.recovery.events.clear()


def take_the_spares(store: Attachment) -> None:
    for spare in range(SPARES):
        posix_ipc.unlink_semaphore(names.spare(store.uuid, spare))


def spares_of(store: Attachment) -> int:
    return len([entry for entry in leftovers(store.uuid.hex) if "spare" in entry])


# ---- one recovery


def test_a_lost_token(store: Attachment) -> None:
    """A new generation, two further; the old semaphore is gone, the spares are complete, and it is told and counted once."""
    lose_the_token(store, K)
    assert store.recovery.recover(K, None)
    assert generation(store, K) == 2 and store.w[RECOVERIES] == 1
    (said,) = store.recovery.events
    assert f"mutex {K} recovered, generation 2" in said and "token was lost" in said
    assert not os.path.exists(names.semaphore_path(names.mutex(store.uuid, K, 0)))
    assert spares_of(store) == SPARES
    for name in (names.spare(store.uuid, 0), names.mutex(store.uuid, K, 2)):
        assert os.stat(names.semaphore_path(name)).st_mode & 0o777 == 0o600
    assert store.recovery.recover(K, None) and generation(store, K) == 2, "there is a token: nothing is wrong"


def test_a_dead_holder(store: Attachment) -> None:
    """Its journal is rolled back, its claim is cleared, and it is told who it was."""
    word = store.layout.node_at(5) + N_CREATED
    store.w[word] = 17
    slot = killed_inside(store, K, begun=5)
    assert store.w[word] == 1234
    until(lambda: store.recovery.recover(K, None), "the kernel says that it is dead")
    assert store.w[word] == 17 and store.w[journal_at(K)] == 0
    assert store.w[claim_at(store, slot, K)] == NO_CLAIM
    assert generation(store, K) == 2
    assert f"its holder, slot {slot}, is dead" in store.recovery.events[0]


def test_the_order_of_the_steps(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at before the generation is revoked and everybody's claims can be seen; and nobody is let in before
    what the dead one had begun is taken back and his claim is gone."""
    at, word = generation_at(K), store.layout.node_at(5) + N_CREATED
    store.w[word] = 17
    slot = killed_inside(store, K, begun=5)
    seen, barrier = instrument(store, Recorder), recovery.membarrier
    monkeypatch.setattr(recovery, "membarrier", lambda: (seen.stores.append("barrier"), barrier()))
    assert store.recovery.recover(K, None)
    instrument(store, lambda buffer: buffer.words)
    taken_back = [(word, 17), (journal_at(K), 0)]
    assert seen.stores == [(at, 1), "barrier", *taken_back, (claim_at(store, slot, K), NO_CLAIM), (at, 2), (RECOVERIES, 1)]


def test_a_dead_holder_of_several(store: Attachment) -> None:
    """All that it had is free again with the first of them, the words of m[0]'s journal before those of the others."""
    for number in (0, 1, K, OTHER, OTHER):  # so that not all generations are the same
        revoke(store, number)
    slot = killed_inside(store, 0, K, OTHER, begun=5)
    assert store.recovery.recover(K, None)
    assert {number: g for number in range(MUTEXES) if (g := generation(store, number))} == {0: 4, 1: 2, K: 4, OTHER: 6}
    assert {store.w[claim_at(store, slot, number)] for number in range(MUTEXES)} == {NO_CLAIM}
    first, second, third = store.recovery.events
    assert "mutex 0 " in first and f"mutex {K} " in second and f"mutex {OTHER} " in third


def test_a_dead_holder_of_one_that_left_another_behind(store: Attachment) -> None:
    """A claim of m[0] that is of no present generation has nothing to do with it."""
    slot = killed_inside(store, K)
    store.w[claim_at(store, slot, 0)] = 40
    assert store.recovery.recover(K, None)
    assert (generation(store, 0), generation(store, K)) == (0, 2)
    store.w[claim_at(store, slot, 0)] = NO_CLAIM


def test_a_living_holder(store: Attachment) -> None:
    """It is busy, not broken: nothing is revoked, and a revocation that somebody else died in is taken back."""

    def body() -> None:
        assert not store.recovery.recover(K, None)
        assert generation(store, K) == 0
        store.w[generation_at(K)] = 1
        assert not store.recovery.recover(K, None)
        assert generation(store, K) == 0

    inside(store, K, body)
    assert store.w[RECOVERIES] == 0 and not store.recovery.events


def test_a_holder_that_says_so_late(store: Attachment) -> None:
    """A claim that is stored after we looked, and before the generation is revoked, is found then; it stays good."""
    lose_the_token(store, K)
    claim = claim_at(store, store.slot, K)

    def event(what: str) -> None:
        if what == "rename":
            store.w[claim] = 0

    with watched(store, event):
        assert not store.recovery.recover(K, None)
    assert generation(store, K) == 0 and store.w[RECOVERIES] == 0
    store.w[claim] = NO_CLAIM


def test_a_revocation_somebody_died_in(store: Attachment) -> None:
    """It is completed, though the semaphore has a token: claims of the old generation may have been refused meanwhile."""
    inside(store, K, lambda: None)
    store.w[generation_at(K)] = 1
    assert store.recovery.recover(K, None)
    assert generation(store, K) == 2 and store.w[RECOVERIES] == 1


@pytest.mark.parametrize("spares", [True, False], ids=["a spare", "no spare"])
def test_a_semaphore_that_stands_already(store: Attachment, spares: bool) -> None:
    """One that a recoverer who died left behind may have been used: it is replaced, and the new one has one token."""
    left = posix_ipc.Semaphore(names.mutex(store.uuid, K, 2), posix_ipc.O_CREX, mode=0o600, initial_value=7)
    left.close()
    lose_the_token(store, K)
    if not spares:
        take_the_spares(store)
    assert store.recovery.recover(K, None)
    assert generation(store, K) == 2 and spares_of(store) == SPARES  # and lock_findings counts the tokens


def test_a_semaphore_that_is_gone(store: Attachment) -> None:
    """Taken away by force: a new generation is all the same right."""
    inside(store, K, lambda: None)
    posix_ipc.unlink_semaphore(names.mutex(store.uuid, K, 0))
    assert store.recovery.recover(K, None)
    assert generation(store, K) == 2


def mapped(store: Attachment, number: int) -> int:
    """How many semaphores of a mutex this process has open."""
    with open("/proc/self/maps") as maps:
        return sum(f"{store.uuid.hex}.m{number}." in line for line in maps)


def test_nothing_stays_open(store: Attachment) -> None:
    """Neither of a look at a mutex with which nothing is wrong, nor of a recovery."""
    lose_the_token(store, K)
    store.mutexes[K].close()
    assert store.recovery.recover(K, None) and store.recovery.recover(K, None)
    assert generation(store, K) == 2 and mapped(store, K) == 0


def test_sleepers_are_woken(store: Attachment) -> None:
    """Whoever sleeps on the old semaphore goes on at once, without waiting for the end of its slice."""
    lose_the_token(store, K)
    old = store.mutexes[K]._semaphore
    tasks = [Task(old.acquire, 60) for _ in range(2)]
    assert store.recovery.recover(K, None)
    for task in tasks:
        task.result()
    assert old.value == store.layout.slots - len(tasks)


# ---- no room


def test_no_room_for_a_semaphore(store: Attachment) -> None:
    """It is said, and nothing is done; with room again it is."""
    lose_the_token(store, K)
    take_the_spares(store)
    with no_room():
        with pytest.raises(MFSNoSpaceError, match="no room for the semaphore"):
            store.recovery.recover(K, None)
    assert generation(store, K) == 0 and store.w[RECOVERIES] == 0
    assert store.recovery.recover(K, None) and spares_of(store) == SPARES


def test_no_room_but_for_one(store: Attachment) -> None:
    """A mutex that the dead held, too, and for which there is no room, is left to whoever needs it."""
    killed_inside(store, K, OTHER)
    for spare in range(1, SPARES):
        posix_ipc.unlink_semaphore(names.spare(store.uuid, spare))
    with no_room():
        assert store.recovery.recover(K, None)
        assert (generation(store, K), generation(store, OTHER)) == (2, 0)
        with pytest.raises(MFSNoSpaceError):
            store.recovery.recover(OTHER, None)
    inside(store, OTHER, lambda: None, 10.0)
    assert generation(store, OTHER) == 2


def test_spares_come_before_any_other_page(store: Attachment) -> None:
    """Who takes the last pages of /dev/shm for data leaves nothing to recover the dead with."""
    at = store.layout.slot_at(store.layout.slots - 1) * WORD
    take_the_spares(store)
    with no_room(), pytest.raises(MFSNoSpaceError, match="no room for the semaphore"):
        store.back(at, PAGE)
    with no_room(), pytest.raises(MFSNoSpaceError, match="no room for the semaphore"):
        store.arenas.grow(1, None)
    assert spares_of(store) == 0
    store.back(at, PAGE)
    assert spares_of(store) == SPARES


def test_spares_of_a_destroyed_store_go(store: Attachment) -> None:
    """Whoever makes them while it is being destroyed takes them away again."""
    take_the_spares(store)
    attachment.destroy(store.name)
    with pytest.raises(MFSStoreGoneError):
        store.provide_spares()
    assert leftovers(store.uuid.hex) == []


def test_making_what_stands_already(store: Attachment) -> None:
    """A semaphore that exists is not taken for a lack of room, and spares are made once."""
    with pytest.raises(FileExistsError):
        recovery.create_semaphore(names.spare(store.uuid, 0), 1)
    recovery.provide_spares(store.uuid)
    assert spares_of(store) == SPARES


@pytest.mark.parametrize(
    ("error", "number"),
    [(posix_ipc.PermissionsError, errno.EACCES), (MemoryError, errno.ENOMEM), (posix_ipc.ExistentialError, errno.EEXIST)],
)
def test_errors_of_semaphores(store: Attachment, error: type[Exception], number: int) -> None:
    """They are those of files, and name the semaphore."""

    def event(what: str) -> None:
        if what == "sem_open":
            raise error

    name = names.spare(store.uuid, 0)
    with system_calls(event), pytest.raises(OSError) as caught:
        recovery.create_semaphore(name, 1)
    assert (caught.value.errno, caught.value.filename) == (number, name)


def test_the_lock_of_recovery_is_not_taken_back(store: Attachment) -> None:
    """That is raised, and the next operation gives it back."""

    def event(what: str) -> None:
        if what == "unlock":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    others = ByteLocks(names.index_name(store.name))
    with system_calls(event), pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        store.recovery.recover(K, None)
    assert not others.is_free(LB_RECOVER) and "was not taken back" in store.recovery.events[-1]
    store.work_off()
    assert others.is_free(LB_RECOVER) and not store.recovery.events
    others.close()


# ---- destroyed


def test_destroyed_during_a_recovery(store: Attachment) -> None:
    """The semaphores that it made after the destroyer had looked are taken away by the recoverer."""
    lose_the_token(store, K)

    def event(what: str) -> None:
        if what == "rename":
            store.w[W_STATE] = STATE_DESTROYED

    with watched(store, event):
        assert store.recovery.recover(K, None)
    assert names.belongings(store.uuid)[1] == []
    attachment.destroy(store.name)


def test_destroyed_before_a_recovery(store: Attachment) -> None:
    """Nothing new appears in /dev/shm."""
    lose_the_token(store, K)
    attachment.destroy(store.name)
    assert store.recovery.recover(K, None)
    assert generation(store, K) == 0 and leftovers(store.uuid.hex) == []


# ---- a6


@pytest.mark.parametrize(("now", "good"), [(4, True), (5, True), (6, False), (7, False), (2, False), (3, False)])
def test_keeping_a_claim(store: Attachment, now: int, good: bool) -> None:
    """It is good while its generation stands or is being revoked, and is put back then; otherwise nothing changes."""
    at = generation_at(K)
    store.w[at] = now
    assert store.recovery.keep_claim(K, 4, None) is good
    assert store.w[at] == (4 if good else now)
    store.w[at] = 0


# ---- R


def test_the_lock_of_recovery_is_given_back(store: Attachment) -> None:
    """After the action, when it raises too; in between nobody else has it."""
    others = ByteLocks(names.index_name(store.name))

    def act() -> bool:
        assert not others.is_free(LB_RECOVER)
        raise KeyError

    with pytest.raises(KeyError):
        store.recovery._alone(act, None)
    assert others.is_free(LB_RECOVER)
    others.close()


def test_waiting_for_the_lock_of_recovery(store: Attachment) -> None:
    """Without a deadline as long as it takes; with one until then, and nobody is known to be stopped."""
    others = ByteLocks(names.index_name(store.name))
    assert others.try_lock(LB_RECOVER)
    with pytest.raises(MFSStoreBusyError, match=r"does not go on\. Resume it or end it\.$"):
        store.recovery.recover(K, time.monotonic() + 0.03)
    patient = Task(store.recovery.recover, K, None)
    bounded = Task(store.recovery.recover, K, time.monotonic() + 3600)
    others.unlock(LB_RECOVER)
    assert patient.result() and bounded.result()
    others.close()


@pytest.mark.parametrize("backend", BOTH)
def test_a_descriptor_closed_behind_our_back(backend: str) -> None:
    """It is opened anew where nothing depends on it; with the other backend mutexes do, and it is said."""
    with lock_store(backend) as store:
        store.recovery.mend()
        before = store.locks.fd
        os.close(before)
        assert store.locks.is_lost()
        if backend == "ofd":
            with pytest.raises(MFSStoreGoneError, match="descriptors were closed"):
                store.recovery.mend()
        else:
            store.recovery.mend()
            assert not store.locks.is_lost()
        store.locks.mend()


def test_a_descriptor_closed_before(store: Attachment) -> None:
    """It is opened anew before anything is locked through it."""
    os.close(store.locks.fd)
    others = ByteLocks(names.index_name(store.name))
    assert store.recovery._alone(lambda: not others.is_free(LB_RECOVER), None)
    assert not store.locks.is_lost()
    others.close()


def test_a_descriptor_closed_inside(store: Attachment) -> None:
    """What was locked through it is free; it is opened anew when the lock would be given back."""
    others = ByteLocks(names.index_name(store.name))

    def act() -> bool:
        os.close(store.locks.fd)
        return True

    assert store.recovery._alone(act, None)
    assert not store.locks.is_lost()
    assert others.is_free(LB_RECOVER)
    others.close()


# ---- the claims of a dead tenant


def test_claims_of_a_dead_tenant(store: Attachment) -> None:
    """The mutex that it held is recovered; what else stands in its slot is made void; the rest is not touched."""
    slot = killed_inside(store, K)
    at = claim_at(store, slot, 0)
    store.w[at + OTHER] = 40
    store.w[generation_at(OTHER + 1)] = 1
    store.w[at + OTHER + 1] = 0  # of a generation that somebody died revoking
    store.recovery.retire_claims(slot, None)
    assert [number for number in range(MUTEXES) if generation(store, number)] == [K, OTHER + 1]
    assert set(store.w[at : at + MUTEXES]) == {NO_CLAIM}
    assert generation(store, OTHER + 1) == 2


@pytest.mark.parametrize("revoked", [False, True], ids=["stable", "being revoked"])
def test_the_claim_of_a_dead_tenant_to_a_later_generation(store: Attachment, revoked: bool) -> None:
    """What it had begun under that one is taken back, also if somebody died revoking it, before nobody knows of it any more."""
    word = store.layout.node_at(5) + N_CREATED
    store.w[word] = 17
    revoke(store, K)
    slot = killed_inside(store, K, begun=5)
    store.w[generation_at(K)] += revoked
    store.recovery.retire_claims(slot, None)
    assert (store.w[word], store.w[journal_at(K)], store.w[claim_at(store, slot, K)]) == (17, 0, NO_CLAIM)
    assert generation(store, K) == 4


def test_claims_of_a_tenant_that_may_live(store: Attachment) -> None:
    """A mutex that cannot be recovered keeps its claim: nobody else would know of its open journal."""

    def body() -> None:
        with pytest.raises(MFSStoreBusyError, match="taken while it was being cleaned"):
            store.recovery.retire_claims(store.slot, None)
        assert (store.w[claim_at(store, store.slot, K)], generation(store, K)) == (0, 0)

    inside(store, K, body)


# ---- the barrier


def native_membarrier(command: int) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(recovery._SYS_MEMBARRIER[os.uname().machine], command, 0))


def pretend_to_be(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = list(os.uname())
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*here[:4], machine)))


def test_barrier_of_this_machine() -> None:
    """It is there."""
    recovery.membarrier()


def test_barrier_of_a_weakly_ordered_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call that such a machine makes, with this one's number for it; and it is believed if it fails."""
    numbers = dict(recovery._SYS_MEMBARRIER)
    there = native_membarrier(0) > 0
    monkeypatch.setitem(recovery._SYS_MEMBARRIER, "aarch64", numbers[os.uname().machine])
    pretend_to_be("aarch64", monkeypatch)
    if there:
        recovery.membarrier()
    else:
        with pytest.raises(OSError, match=r"no membarrier .* needs on aarch64"):
            recovery.membarrier()
    monkeypatch.setitem(recovery._SYS_MEMBARRIER, "aarch64", 0xFFFF)  # no kernel has so many
    with pytest.raises(OSError, match="backend='ofd'") as caught:
        recovery.membarrier()
    assert caught.value.errno == errno.ENOSYS
    assert numbers["aarch64"] == 283  # __NR_membarrier of asm-generic/unistd.h


def test_barrier_of_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none that could be relied on: it is said, nothing is assumed."""
    pretend_to_be("riscv64", monkeypatch)
    with pytest.raises(OSError, match=r"no membarrier .* needs on riscv64: .* backend='ofd'"):
        recovery.membarrier()


def test_a_barrier_of_another_kind_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that answers, but does not offer what a recovery needs, is refused before anybody depends on it."""
    pretend_to_be("aarch64", monkeypatch)
    offers = [~recovery._MEMBARRIER_GLOBAL & 0xFF, 0xFF]
    monkeypatch.setattr(recovery, "_ask_membarrier", lambda command: offers.pop(0))
    with pytest.raises(OSError, match="create the store with backend='ofd'") as caught:
        recovery.require_membarrier()
    assert caught.value.errno == errno.EINVAL
    recovery.require_membarrier()
