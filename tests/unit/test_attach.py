"""Creating, attaching, leaving, destroying: races, damage, slots."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm.errors import (
    MFSCorruptStoreError,
    MFSLayoutError,
    MFSNoSpaceError,
    MFSNotOwnerError,
    MFSParameterError,
    MFSStoreGoneError,
    MFSTooManyParticipantsError,
    MFSUnfinishedStoreError,
    MFSVersionError,
)
from dmemfs_shm.store import attachment, names, segment
from dmemfs_shm.store.attachment import Attachment, Parameters
from dmemfs_shm.store.identity import next_epoch
from dmemfs_shm.store.layout import (
    BUCKETS_BACKED,
    BYTE_ORDER,
    LB_INIT,
    N_GENERATION,
    NODE_BACKED,
    PAGE,
    PARAMS_OFFSET,
    REC_WRITER,
    S_PID,
    SLOTS_BACKED,
    STATE_DESTROYED,
    VERSION,
    W_BACKEND,
    W_BYTE_ORDER,
    W_FINGERPRINT,
    W_INDEX_BYTES,
    W_MAGIC,
    W_NODES_CAP,
    W_NODES_MAX,
    W_PAGES_CAP,
    W_PARAMS_BYTES,
    W_PARAMS_CRC,
    W_QUOTA,
    W_SLOTS,
    W_STATE,
    W_VERSION,
)

from ..lockstore import (
    BOTH,
    clear_away,
    fresh_name,
    leftovers,
    lock,
    lock_findings,
    lock_store,
    named_store,
    settle,
    unlock,
)
from ..processes import Child, Link, Task, call_in_child, child, until

MIB = 1 << 20
NODE = 5


class Standing:
    """A finished store that nobody is attached to, whose bytes can be changed."""

    def __init__(self, name: str) -> None:
        self.name = name
        store = attachment.create(name, Parameters(MIB, slots=4))
        self.uuid = store.uuid
        self.layout = store.layout
        attachment.release(store)
        self.fd = segment.open_fd(names.index_name(name))

    def put(self, word: int, value: int) -> None:
        os.pwrite(self.fd, value.to_bytes(8, "little"), 8 * word)

    def get(self, word: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 8 * word), "little")

    def attach(self) -> None:
        attachment.release(attachment.attach(self.name))


@pytest.fixture
def standing() -> Iterator[Standing]:
    """A finished store that nobody is attached to."""
    name = fresh_name()
    made = Standing(name)
    try:
        made.attach()
        yield made
    finally:
        os.close(made.fd)
        left = clear_away(name)
        belonging = clear_away(name, made.uuid.hex)  # of a store too damaged to say what is its own
        assert left == []
        del belonging


# ---- what cannot be attached


@pytest.mark.parametrize(
    ("word", "value", "error"),
    [
        (W_MAGIC, 0, MFSUnfinishedStoreError),
        (W_MAGIC, 0x1234, MFSLayoutError),
        (W_BYTE_ORDER, int.from_bytes(BYTE_ORDER.to_bytes(8, "little"), "big"), MFSLayoutError),
        (W_VERSION, VERSION + 1, MFSVersionError),
        (W_FINGERPRINT, 1, MFSLayoutError),
        (W_STATE, 0, MFSUnfinishedStoreError),
        (W_STATE, STATE_DESTROYED, FileNotFoundError),
        (W_STATE, 77, MFSCorruptStoreError),
        (W_SLOTS, 0, MFSCorruptStoreError),
        (W_SLOTS, 5, MFSCorruptStoreError),
        (W_SLOTS, 1 << 63, MFSCorruptStoreError),
        (W_NODES_CAP, 0, MFSCorruptStoreError),
        (W_NODES_CAP, 1 << 62, MFSCorruptStoreError),
        (W_PAGES_CAP, 0, MFSCorruptStoreError),
        (W_PAGES_CAP, 1 << 62, MFSCorruptStoreError),
        (W_INDEX_BYTES, 4096, MFSCorruptStoreError),
        (W_BACKEND, 2, MFSCorruptStoreError),
        (W_QUOTA, 5, MFSCorruptStoreError),
        (W_NODES_MAX, 5, MFSCorruptStoreError),
        (W_PARAMS_BYTES, 1 << 40, MFSCorruptStoreError),
        (W_PARAMS_BYTES, 3, MFSCorruptStoreError),
        (W_PARAMS_CRC, 0, MFSCorruptStoreError),
        (SLOTS_BACKED, 5, MFSCorruptStoreError),
        (SLOTS_BACKED, 4, MFSCorruptStoreError),
        (NODE_BACKED, 1 << 40, MFSCorruptStoreError),
        (NODE_BACKED, 1 << 20, MFSCorruptStoreError),
        (BUCKETS_BACKED, 1 << 40, MFSCorruptStoreError),
    ],
)
def test_scribbled_word(standing: Standing, word: int, value: int, error: type[Exception]) -> None:
    """Each word of the head is checked, and has its error; put right again, the store can be attached."""
    before = standing.get(word)
    standing.put(word, value)
    with pytest.raises(error):
        standing.attach()
    standing.put(word, before)
    standing.attach()


def test_version_says_which(standing: Standing) -> None:
    """Both versions are in the error, although the fingerprint differs, too."""
    standing.put(W_VERSION, 9)
    standing.put(W_FINGERPRINT, 0)
    with pytest.raises(MFSVersionError) as caught:
        standing.attach()
    assert (caught.value.found, caught.value.supported) == (9, VERSION)


def test_scribbled_parameters(standing: Standing) -> None:
    """A single bit shows, and so does a sound checksum over nonsense."""
    import zlib

    byte = os.pread(standing.fd, 1, PARAMS_OFFSET + 3)
    os.pwrite(standing.fd, bytes([byte[0] ^ 1]), PARAMS_OFFSET + 3)
    with pytest.raises(MFSCorruptStoreError):
        standing.attach()
    nonsense = b"\xc1" * standing.get(W_PARAMS_BYTES)
    os.pwrite(standing.fd, nonsense, PARAMS_OFFSET)
    standing.put(W_PARAMS_CRC, zlib.crc32(nonsense))
    with pytest.raises(MFSCorruptStoreError):
        standing.attach()


@pytest.mark.parametrize("size", [0, 8, 100, PAGE, 40 * PAGE, -PAGE])
def test_truncated(standing: Standing, size: int) -> None:
    """A segment of another size is unfinished or damaged, never mapped."""
    os.ftruncate(standing.fd, size if size >= 0 else standing.layout.index_bytes + size)
    with pytest.raises((MFSUnfinishedStoreError, MFSCorruptStoreError)):
        standing.attach()
    with pytest.raises((MFSUnfinishedStoreError, MFSCorruptStoreError)):
        standing.attach()
    os.ftruncate(standing.fd, 0)
    clear_away(standing.name, standing.uuid.hex)


def test_hole_in_memory(standing: Standing) -> None:
    """Memory that the words promise and the segment has not: an error now, instead of SIGBUS later."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    where, size = ctypes.c_long(8 * standing.layout.nodes_at), ctypes.c_long(8 * PAGE)
    assert libc.fallocate(standing.fd, keep_size | punch_hole, where, size) == 0
    with pytest.raises(MFSCorruptStoreError):
        standing.attach()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give the segment to another user")
def test_another_users(standing: Standing) -> None:
    """It can be neither attached nor destroyed."""
    os.fchown(standing.fd, 12345, -1)
    for call in (attachment.attach, attachment.destroy):
        with pytest.raises(MFSNotOwnerError):
            call(standing.name)
    os.fchown(standing.fd, os.geteuid(), -1)
    standing.attach()


def test_something_else_has_the_name() -> None:
    """A segment that is no store is neither attached nor made into one."""
    with named_store() as name:
        fd = segment.open_fd(names.index_name(name), create=True)
        os.write(fd, b"somebody's data " * 100)
        os.close(fd)
        with pytest.raises(MFSLayoutError):
            attachment.attach(name)
        with pytest.raises(FileExistsError):
            attachment.create(name, Parameters(MIB))
        with open(f"/dev/shm{names.index_name(name)}", "rb") as there:
            assert there.read(16) == b"somebody's data "


def test_no_such_store() -> None:
    """FileNotFoundError for all who ask."""
    name = fresh_name()
    for call in (attachment.attach, attachment.destroy):
        with pytest.raises(FileNotFoundError):
            call(name)
    with pytest.raises(MFSStoreGoneError):
        attachment.attach(name, uuid.uuid4())


# ---- creating


def create_at_once(link: Link, name: str, backend: int) -> str:
    link.send("ready")
    link.recv()
    try:
        store = attachment.create(name, Parameters(MIB, backend=backend))
    except FileExistsError:
        store = attachment.attach(name)
        answer = "found"
    else:
        answer = "made"
    link.send((answer, store.uuid.hex))
    link.recv()
    attachment.release(store)
    return answer


@pytest.mark.parametrize("backend", [0, 1])
def test_creation_race(backend: int) -> None:
    """Of eight processes one makes the store, and all have the same one."""
    import contextlib

    with named_store() as name, contextlib.ExitStack() as stack:
        others = [stack.enter_context(child("fork", create_at_once, name, backend)) for _ in range(8)]
        for other in others:
            assert other.receive() == "ready"
        for other in others:
            other.send("go")
        answers = [other.receive() for other in others]
        for other in others:
            other.send("leave")
            other.receive()
            other.join()
        assert sorted(answer for answer, _ in answers) == ["found"] * 7 + ["made"]
        assert len({mark for _, mark in answers}) == 1
        store = attachment.attach(name)
        try:
            assert lock_findings(store) == []
        finally:
            attachment.release(store)


def stop_while_creating(link: Link, name: str) -> None:
    real = attachment._write_root  # type: ignore[attr-defined]

    def write_root(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        real(*args)

    attachment._write_root = write_root  # type: ignore[attr-defined]
    attachment.release(attachment.create(name, Parameters(MIB)))


def test_attaching_waits_for_the_creator() -> None:
    """Who comes while the creator is at work waits for it; who comes after its death is told."""
    with named_store() as name:
        with child("fork", stop_while_creating, name) as creator:
            os.waitid(os.P_PID, creator.pid, os.WSTOPPED | os.WNOWAIT)
            waiter = Task(attachment.attach, name)
            try:
                assert not waiter.done
            finally:
                os.kill(creator.pid, signal.SIGCONT)
            creator.receive()
            attachment.release(waiter.result())
        attachment.destroy(name)
        with child("fork", stop_while_creating, name) as creator:
            os.waitid(os.P_PID, creator.pid, os.WSTOPPED | os.WNOWAIT)
            creator.kill()
        with pytest.raises(MFSUnfinishedStoreError):
            attachment.attach(name)
        attachment.release(attachment.create(name, Parameters(MIB)))


def test_a_creator_that_becomes_ready_while_it_is_looked_at(standing: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that a ready head is compared with is not older than the head."""
    read, fd = segment.read, os.memfd_create("index")

    def finish_and_read(fd: int, size: int, offset: int) -> bytes:
        if not os.fstat(fd).st_size:
            os.ftruncate(fd, os.fstat(standing.fd).st_size)
            os.pwrite(fd, os.pread(standing.fd, MIB, 0), 0)
        return read(fd, size, offset)

    monkeypatch.setattr(segment, "read", finish_and_read)
    try:
        assert attachment.read_identity(fd, standing.name) == standing.uuid
    finally:
        os.close(fd)


def test_a_creator_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when it has made half of its semaphores."""
    calls = []

    def create_semaphore(name: str, value: int) -> None:
        calls.append(name)
        if len(calls) == 9:
            raise OSError(28, "no space")
        real(name, value)

    real = attachment.create_semaphore  # type: ignore[attr-defined]
    monkeypatch.setattr(attachment, "create_semaphore", create_semaphore)
    name = fresh_name()
    with pytest.raises(OSError):
        attachment.create(name, Parameters(MIB))
    assert len(calls) == 9 and leftovers(name, calls[0].split(".")[0].lstrip("/")) == []


@pytest.mark.parametrize("others", [False, True])
def test_a_creator_that_cannot_attach(monkeypatch: pytest.MonkeyPatch, others: bool) -> None:
    """It takes its store away, unless somebody has attached it in between."""
    with named_store() as name, contextlib.ExitStack() as stack:
        running: list[Child] = []

        def join(_: Attachment) -> None:
            monkeypatch.undo()
            if others:
                running.append(stack.enter_context(child("fork", attached, name)))
                assert running[0].receive() == 0
            raise MFSNoSpaceError("no room for a slot")

        monkeypatch.setattr(Attachment, "join", join)
        with pytest.raises(MFSNoSpaceError, match="a slot"):
            attachment.create(name, Parameters(MIB))
        if not others:
            assert leftovers(name) == []
            return
        attachment.release(attachment.attach(name))
        running[0].send("leave")
        assert running[0].receive() is None


# ---- slots


def attached(link: Link, name: str) -> None:
    store = attachment.attach(name)
    link.send(store.slot)
    link.recv()
    attachment.release(store)


def test_too_many_participants() -> None:
    """With two slots, a third process is refused until one of the others has left or died."""
    with lock_store(slots=2) as store:
        with child("fork", attached, store.name) as second:
            assert second.receive() == 1
            with pytest.raises(AssertionError, match="MFSTooManyParticipantsError"):
                call_in_child("fork", _attach_and_leave, store.name)
            second.send("leave")
            second.receive()
        with child("fork", attached, store.name) as second:
            assert second.receive() == 1
            second.kill()
        assert call_in_child("fork", _attach_and_leave, store.name) == 1
        assert issubclass(MFSTooManyParticipantsError, OSError)


def _attach_and_leave(name: str) -> int:
    store = attachment.attach(name)
    slot = store.slot
    attachment.release(store)
    return slot


def hold_and_wait(link: Link, name: str) -> None:
    store = attachment.attach(name)
    lock(store, NODE, REC_WRITER)
    link.send(store.slot)
    link.recv()


@pytest.mark.parametrize("backend", BOTH)
def test_slot_of_a_dead_one(backend: str) -> None:
    """Its next tenant has another epoch, and gives back what the dead one held before it uses the slot."""
    with lock_store(backend) as store:
        with child("fork", hold_and_wait, store.name) as victim:
            slot = victim.receive()
            epoch = store.participants.epoch(slot)
            victim.kill()
        until(lambda: store.participants.is_dead(slot, epoch), "it is dead")
        with child("fork", attached, store.name) as tenant:
            assert tenant.receive() == slot
            assert store.participants.epoch(slot) == next_epoch(epoch)
            assert store.rw.holds() == []
            assert not store.rw.reap(slot, next_epoch(epoch))  # a late reaper's judgement is about the one before
            tenant.send("leave")
            tenant.receive()
        assert store.w[store.layout.slot_at(slot) + S_PID] == 0
        settle(store)
        assert lock_findings(store) == []


def test_one_attachment_a_process() -> None:
    """However often a process attaches; the last one who leaves gives the slot back."""
    with lock_store() as store:
        again = attachment.attach(store.name)
        assert again is store
        attachment.release(again)
        unlock(store, lock(store, NODE))
        assert store.w[store.layout.slot_at(store.slot) + S_PID] == os.getpid()


def in_a_fork(name: str, inherited: Attachment) -> tuple[int, bool]:
    store = attachment.attach(name)
    record = lock(store, NODE, REC_WRITER)
    unlock(store, record)
    answer = store.slot, inherited.forked
    attachment.release(store)
    return answer


def test_a_forked_child_attaches_anew() -> None:
    """With a slot of its own; the parent goes on with its own."""
    with lock_store() as store:
        record = lock(store, NODE + 1)
        assert call_in_child("fork", in_a_fork, store.name, store) == (1, True)
        unlock(store, record)
        assert not store.forked


# ---- destroying


def test_destroyed_while_attached() -> None:
    """Those who are attached are told; a store made again under the name is another one."""
    with lock_store() as store:
        old = store.uuid
        attachment.destroy(store.name)
        with pytest.raises(MFSStoreGoneError):
            lock(store, NODE)
        with pytest.raises(FileNotFoundError):
            attachment.attach(store.name)
        other = attachment.create(store.name, Parameters(MIB))
        try:
            assert other is not store and other.uuid != old
            with pytest.raises(MFSStoreGoneError):
                attachment.attach(store.name, old)
            other.w[other.layout.node_at(NODE) + N_GENERATION] = 1
            unlock(other, lock(other, NODE))
            assert leftovers(old.hex) == []
        finally:
            attachment.release(other)


def attached_and_asking(link: Link, name: str) -> None:
    store = attachment.attach(name)
    link.send("ready")
    link.recv()
    with pytest.raises(MFSStoreGoneError):
        lock(store, NODE)


def test_made_again_after_a_destroyer_died(standing: Standing) -> None:
    """Those who are attached to the old store are told so, not killed: its segment is not made into the new one."""
    with child("fork", attached_and_asking, standing.name) as other:
        other.receive()
        standing.put(W_STATE, STATE_DESTROYED)  # as far as the destroyer came
        attachment.release(attachment.create(standing.name, Parameters(MIB)))
        other.send("ask")
        other.receive()


def test_destroying_what_is_damaged(standing: Standing) -> None:
    """Whatever its condition."""
    standing.put(W_SLOTS, 1 << 60)
    attachment.destroy(standing.name)
    assert leftovers(standing.name, standing.uuid.hex) == []


@pytest.mark.parametrize("kept", [lambda fd: None, lambda fd: os.ftruncate(fd, 8)], ids=["empty", "short"])
def test_destroying_what_is_unfinished(kept: Callable[[int], None]) -> None:
    """A segment whose creator died before it wrote anything."""
    with named_store() as name:
        fd = segment.open_fd(names.index_name(name), create=True)
        kept(fd)
        os.close(fd)
        with pytest.raises(MFSUnfinishedStoreError):
            attachment.attach(name)
        attachment.destroy(name)
        assert leftovers(name) == []


def test_parameters_are_checked_by_the_layers_above() -> None:
    """Names that are no names never come here; what a store was made with is in its head."""
    with pytest.raises(MFSParameterError):
        names.check_name("../x")
    with lock_store(quota_bytes=3 * MIB, slots=3) as store:
        assert store.w[W_QUOTA] == 3 * MIB and store.w[W_SLOTS] == 3
        assert not store.locks.is_free(LB_INIT) or store.locks.try_lock(LB_INIT)
        store.locks.unlock(LB_INIT)
