"""Who is alive: proven by the kernel, for killed, stopped, forked and deceived processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from dmemfs_shm.errors import MFSStoreGoneError
from dmemfs_shm.store import attachment, identity, names
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.identity import ByteLocks, Participants, next_epoch
from dmemfs_shm.store.layout import LB_LIFE, LB_SLOT, NO_CLAIM, S_CLAIM, S_EPOCH, S_PID, S_PIDNS, S_START

from ..crash.harness import WordBuffer
from ..lockstore import inside, lock_store
from ..processes import Child, Link, child, until


def attached(link: Link, name: str) -> None:
    """A child that attaches, says which slot it has, and stays until told."""
    store = attachment.attach(name)
    link.send(store.slot)
    link.recv()
    attachment.release(store)


def is_dead(store: Attachment, slot: int) -> bool:
    return store.participants.is_dead(slot, store.participants.epoch(slot))


def wait_until_zombie(running: Child) -> None:
    """The child has ended and is not reaped."""
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)


def test_killed_and_not_reaped() -> None:
    """A zombie is dead, although signals can still be sent to it."""
    with lock_store() as store, child("fork", attached, store.name) as running:
        slot = running.receive()
        assert not is_dead(store, slot)
        os.kill(running.pid, signal.SIGKILL)
        wait_until_zombie(running)
        until(lambda: is_dead(store, slot), "the kernel frees the byte")
        os.kill(running.pid, 0)
        assert store.participants.unreaped() == [(slot, next_epoch(store.participants.epoch(slot)))]


def test_stopped() -> None:
    """A stopped process is alive."""
    with lock_store() as store, child("fork", attached, store.name) as running:
        slot = running.receive()
        os.kill(running.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED)
        try:
            assert not is_dead(store, slot)
            assert store.participants.unreaped() == []
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.send(None)
        running.receive()


def test_left_in_order() -> None:
    """Who has left is not among the dead that something is to be done for."""
    with lock_store() as store, child("fork", attached, store.name) as running:
        slot = running.receive()
        running.send(None)
        running.receive()
        running.join()
        assert is_dead(store, slot)
        assert store.participants.unreaped() == []


def test_me() -> None:
    """I am alive; my predecessor in the slot is not."""
    with lock_store() as store:
        epoch = store.participants.epoch(store.slot)
        assert not store.participants.is_dead(store.slot, epoch)
        assert store.participants.is_dead(store.slot, epoch - 1)


def test_errors_count_as_alive() -> None:
    """Who cannot be asked about is not declared dead."""
    with lock_store() as store, tempfile.TemporaryFile() as other, child("fork", attached, store.name) as running:
        slot = running.receive()
        running.kill()
        locks = ByteLocks(names.index_name(store.name))
        participants = Participants(store.w, store.layout, locks)
        assert participants.is_dead(slot, participants.epoch(slot))
        os.close(locks.fd)
        assert not participants.is_dead(slot, participants.epoch(slot))
        number = os.dup2(other.fileno(), locks.fd)  # nor another file, which has the number now, and no locks at all
        assert not participants.is_dead(slot, participants.epoch(slot))
        locks.close()
        os.close(number)


def test_dropped_before_it_began() -> None:
    """Of one for which there was no memory even to begin with, nothing is left to close when the next one is made."""
    with lock_store() as store:
        identity._dropped.append(ByteLocks.__new__(ByteLocks))
        locks = ByteLocks(names.index_name(store.name))
        locks.close()
        assert not identity._dropped


def test_a_lost_descriptor_is_noticed() -> None:
    """Closed, or another file's by now: what was locked stays locked; nothing is locked or closed by that number any more."""
    with lock_store() as store, tempfile.TemporaryFile() as other:
        locks, others = (ByteLocks(names.index_name(store.name), anchored=anchored) for anchored in (True, False))
        try:
            assert locks.try_lock(LB_LIFE) and not locks.is_lost()
            number = locks.fd
            os.close(number)
            for _ in range(2):
                assert locks.is_lost()
                for call in (locks.try_lock, locks.unlock):
                    with pytest.raises(MFSStoreGoneError):
                        call(LB_LIFE)
                        locks.check()
                assert not others.is_free(LB_LIFE)
                os.dup2(other.fileno(), number)
            locks.mend()
            assert not locks.is_lost() and others.is_free(LB_LIFE)
            assert locks.try_lock(LB_LIFE) and not others.is_free(LB_LIFE)
            os.close(locks.fd)
            attachment.destroy(store.name)
            with pytest.raises(MFSStoreGoneError):
                locks.mend()
            locks.close()
            assert others.is_free(LB_LIFE)
            assert os.fstat(number).st_ino == os.fstat(other.fileno()).st_ino
            os.close(number)
        finally:
            others.close()


def fork_and_wait(link: Link, name: str, raw: bool, reads: int, writes: int) -> None:
    """Attach, fork a child that stays until the test closes the pipe to it, tell its pid, stay."""
    store = attachment.attach(name)
    os.close(writes)
    pid = ctypes.CDLL(None).fork() if raw else os.fork()
    if pid == 0:
        os.read(reads, 1)
        os._exit(0)
    link.send((store.slot, pid))
    link.recv()


@pytest.mark.parametrize("raw", [False, True], ids=["os.fork", "fork in C"])
def test_a_forked_child_does_not_keep_its_parent_alive(raw: bool) -> None:
    """However it was forked: what keeps the byte locked is a mapping that forks do not get."""
    reads, writes = os.pipe()
    with lock_store() as store, child("fork", fork_and_wait, store.name, raw, reads, writes) as running:
        os.close(reads)
        try:
            slot, grandchild = running.receive()
            assert not is_dead(store, slot)
            os.kill(running.pid, signal.SIGKILL)
            until(lambda: running.process.exitcode is not None, "it is reaped")  # not by joining: the grandchild has the pipe
            until(lambda: is_dead(store, slot), "the parent is found dead")
            os.kill(grandchild, 0)
            assert store.locks.is_free(LB_SLOT + slot)
        finally:
            os.close(writes)  # the grandchild, now an orphan, ends


def test_an_exec_does_not_keep_the_slot() -> None:
    """The descriptor is not inherited by programs that a participant starts."""
    with lock_store() as store:
        code = f"import os, sys; sys.exit(os.path.exists('/proc/self/fd/{store.locks.fd}'))"
        assert subprocess.run([sys.executable, "-S", "-c", code], check=False, close_fds=False).returncode == 0
        assert not os.get_inheritable(store.locks.fd)


def test_joining_is_never_taken_for_death() -> None:
    """At no point of introducing oneself on a dead one's slot can another find the new tenant dead."""
    with lock_store() as store, child("fork", attached, store.name) as running:
        slot = running.receive()
        running.kill()
        until(lambda: is_dead(store, slot), "it is dead")
        locks = ByteLocks(names.index_name(store.name))
        try:
            assert locks.try_lock(LB_SLOT + slot)
            old = store.participants.epoch(slot)
            seen = []

            def look(_what: str) -> None:
                epoch = store.participants.epoch(slot)
                seen.append((epoch > old, store.participants.is_dead(slot, epoch)))

            newcomer = Participants(store.w, store.layout, locks)
            newcomer.w = WordBuffer(store.w, look)
            newcomer.introduce(slot)
            look("end")
            assert {dead for new, dead in seen if new} == {False}
            assert store.w[store.layout.slot_at(slot) + S_PID] == os.getpid()
        finally:
            locks.close()


def test_introduction() -> None:
    """What others read about a participant."""
    with lock_store() as store:
        w, at = store.w, store.layout.slot_at(store.slot)
        assert w[at + S_PID] == os.getpid()
        assert w[at + S_START] == identity.start_time(os.getpid()) > 0
        assert w[at + S_PIDNS] == os.stat("/proc/self/ns/pid").st_ino
        assert w[at + S_EPOCH] == 1
        assert str(os.getpid()) in store.participants.describe(store.slot)
        with open("/proc/self/cmdline", "rb") as cmdline:
            expected = cmdline.read().rstrip(b"\0").replace(b"\0", b" ")[:128]
        assert store.participants.command(store.slot).encode() == expected
        # A section claims its mutex for as long as it lasts.
        claim = at + S_CLAIM + 3
        during = []
        inside(store, 3, lambda: during.append(w[claim]))
        assert during == [0] and w[claim] == NO_CLAIM


def test_start_time() -> None:
    """Of a process that is not there, and of one whose name contains brackets and blanks."""
    assert identity.start_time(2**22 + 1) == -1
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writes)
        with open("/proc/self/comm", "w") as comm:
            comm.write("a) b (c")
        os.read(reads, 1)
        os._exit(0)
    try:
        os.close(reads)
        assert identity.start_time(pid) >= identity.start_time()
    finally:
        os.close(writes)
        os.waitpid(pid, 0)


def test_byte_locks() -> None:
    """Two descriptions exclude each other, shared locks share, closing gives all back; a deadline is kept."""
    with lock_store() as store:
        first, second = (ByteLocks(names.index_name(store.name)) for _ in range(2))
        try:
            assert first.try_lock(LB_LIFE) and first.try_lock(LB_LIFE)
            assert not second.try_lock(LB_LIFE) and not second.is_free(LB_LIFE) and first.is_free(LB_LIFE)
            assert not second.lock(LB_LIFE, 0.0)
            first.unlock(LB_LIFE)
            assert first.try_lock(LB_LIFE, shared=True) and second.try_lock(LB_LIFE, shared=True)
            assert not first.try_lock(LB_LIFE)
            first.close()
            assert second.lock(LB_LIFE)
        finally:
            first.close()
            second.close()
