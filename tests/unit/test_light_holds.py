"""Light holds: readers of a file that nobody wants to change take and leave its lock by stores of their own, and whoever
wants them out sees every one of them. What comes between two steps is put there by hand, in the place of a fence.
"""

from __future__ import annotations

import errno
import gc
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSDeadlockError, MFSFileOpenError, MFSLockTimeoutError, MFSStoreGoneError
from dmemfs_shm.store import rwlock
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.layout import (
    FREE,
    HELD,
    HELD_LIGHTLY,
    LIGHT,
    LIGHT_RECORDS,
    LOCK_COME,
    LOCK_LIGHT,
    LOCK_READERS,
    N_GENERATION,
    N_LOCK,
    NAMESPACE,
    ORPHANS,
    REC_IS_LIGHT,
    REC_WRITER,
    STATE_DESTROYED,
    STATE_READY,
    W_STATE,
    WORD,
)
from dmemfs_shm.store.mutex import Mutex, close_and_open

from ..lockstore import GENERATION_OF_NODES, give_back, lease, lock, lock_findings, queued, sound_lock_store, state_of, unlock
from ..processes import Link, Task, child, in_thread, until
from .test_rwlock import Actor, holding

NODE = 5
READ, WRITE = 0, REC_WRITER


@pytest.fixture
def store() -> Iterator[Attachment]:
    """A store whose node has been read; in order and free at the end."""
    with sound_lock_store() as made:
        read_once(made)
        yield made


@pytest.fixture
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: who is to go on must be woken."""
    monkeypatch.setattr(rwlock, "SLICE_S", 60.0)


def read_once(store: Attachment) -> None:
    unlock(store, lock(store, NODE))


def word(store: Attachment) -> int:
    return int(store.w[store.layout.node_at(NODE) + N_LOCK])


def is_light(store: Attachment, record: int) -> bool:
    return bool(store.w[record] & REC_IS_LIGHT == HELD_LIGHTLY)


def once(store: Attachment, monkeypatch: pytest.MonkeyPatch, between: Callable[[], Any]) -> list[Any]:
    """What *between* returns, which is called in the place of the next fence; the later ones are as ever."""
    results: list[Any] = []

    def fence() -> None:
        monkeypatch.setattr(store.rw, "_fence", close_and_open)
        results.append(between())

    monkeypatch.setattr(store.rw, "_fence", fence)
    return results


# ---- taken and left


def test_the_second_reader_in_a_row(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes and leaves the lock without the mutex, is not counted in the lock word, and is seen by everybody who looks."""
    assert word(store) & LOCK_COME == LOCK_COME
    with monkeypatch.context() as patch:
        patch.setattr(Mutex, "acquire", None)
        record = lock(store, NODE)
        (hold,) = store.rw.holds(NODE)
        assert (hold.slot, hold.state, hold.writer) == (store.slot, HELD, False) and hold.thread and hold.since_ns
        assert is_light(store, record) and word(store) & LOCK_READERS == 0
        store.rw.unlock(record)
        assert store.w[record] == FREE
        give_back(store, record)
    assert word(store) & LOCK_COME == LOCK_COME


@pytest.mark.parametrize(("backend", "machine"), [("generation", "x86_64"), ("generation", "aarch64"), ("ofd", "x86_64")])
def test_the_first_one(monkeypatch: pytest.MonkeyPatch, backend: str, machine: str) -> None:
    """He is counted; after a writer it begins anew. With the kernel's locks nobody holds lightly, nor on another processor."""
    monkeypatch.setattr(rwlock, "os", SimpleNamespace(uname=lambda: SimpleNamespace(machine=machine)))
    light = (backend, machine) == ("generation", "x86_64")
    with sound_lock_store(backend) as store:
        record = lock(store, NODE)
        assert word(store) == 1 | (LOCK_COME if light else 0) and not is_light(store, record)
        unlock(store, record)
        record = lock(store, NODE)
        assert is_light(store, record) == light
        unlock(store, record)
        unlock(store, lock(store, NODE, WRITE))
        assert word(store) == 0


def test_as_many_as_there_are_records_for(store: Attachment) -> None:
    """Those of a slot's first records; the others are counted. A writer waits for both kinds."""
    records = [lock(store, NODE) for _ in range(LIGHT_RECORDS + 2)]
    assert [is_light(store, record) for record in records] == [True] * LIGHT_RECORDS + [False] * 2
    assert word(store) & LOCK_READERS == 2 and len(store.rw.holds(NODE)) == len(records)
    writer = Actor(store, WRITE)
    for record in records:
        assert not writer.has.is_set()
        unlock(store, record)
    writer.gets_it()
    writer.end()


def test_giving_back_nothing(store: Attachment) -> None:
    """Does nothing, to no line of the table either."""
    records = [lease(store) for _ in range(LIGHT_RECORDS + 1)]
    before = bytes(store.index.mm[LIGHT * WORD : (LIGHT + 2 * LIGHT_RECORDS) * WORD])
    store.rw.unlock(records[-1])
    assert state_of(store, records[-1]) == FREE
    assert store.index.mm[LIGHT * WORD : (LIGHT + 2 * LIGHT_RECORDS) * WORD] == before
    for record in records:
        give_back(store, record)


def test_what_a_record_is_about(store: Attachment) -> None:
    """A light one stands for the file that was looked up, also as an orphan, and for no other one that has its node since."""
    at = store.layout.node_at(NODE) + N_GENERATION
    record, counted = lock(store, NODE), lock(store, NODE + 1)
    standing = []
    for more in (0, 1, 1):
        store.w[at] += more
        standing.append((store.rw.is_standing(record), store.rw.is_standing(counted)))
    assert standing == [(True, True), (True, True), (False, True)]
    store.w[at] -= 2
    unlock(store, record)
    unlock(store, counted)


def test_when_the_fence_counts_no_further(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes its place; what else is raised there is somebody's exception, and leaves nothing behind."""

    def fail(error: BaseException) -> Callable[[], None]:
        def fence() -> None:
            raise error

        return fence

    for step in (lambda: unlock(store, lock(store, NODE)), lambda: unlock(store, lock(store, NODE, WRITE))):
        monkeypatch.setattr(store.rw, "_fence", fail(OSError(errno.EOVERFLOW, "full")))
        step()
        assert store.rw._fence is close_and_open
        read_once(store)
    held = lock(store, NODE)
    monkeypatch.setattr(store.rw, "_fence", fail(OSError(errno.EIO, "a handler's")))
    with pytest.raises(OSError, match="a handler's"):
        lock(store, NODE)
    monkeypatch.setattr(store.rw, "_fence", fail(OSError(errno.EIO, "a handler's")))
    with pytest.raises(OSError, match="a handler's"):
        unlock(store, held)
    monkeypatch.setattr(store.rw, "_fence", close_and_open)
    store.work_off()
    assert lock_findings(store) == []


# ---- those who want readers out


@pytest.mark.usefixtures("no_slices")
def test_a_writer_waits(store: Attachment) -> None:
    """He is woken by the last one's end; who comes after him waits behind him."""
    first, second = lock(store, NODE), int(in_thread(lock, store, NODE))
    assert is_light(store, first) and is_light(store, second)
    writer = Actor(store, WRITE)
    assert queued(store, NODE) == 1 and word(store) & LOCK_COME == LOCK_LIGHT
    reader = Actor(store, READ)
    assert queued(store, NODE) == 2
    unlock(store, first)
    assert not writer.has.is_set()
    unlock(store, second)
    writer.gets_it()
    assert not reader.has.is_set() and word(store) & LOCK_LIGHT == 0
    writer.end()
    reader.gets_it()
    reader.end()


def test_who_tries_is_refused(store: Attachment) -> None:
    """He is told by whom. The next reader is counted, and the one after it holds lightly again."""
    record = lock(store, NODE)
    with pytest.raises(MFSLockTimeoutError, match="holds it shared"):
        in_thread(lock, store, NODE, WRITE, 0.0)
    with pytest.raises(MFSDeadlockError):
        lock(store, NODE, WRITE)
    counted = lock(store, NODE)
    again = lock(store, NODE)
    assert not is_light(store, counted) and is_light(store, again)
    for each in (record, counted, again):
        unlock(store, each)
    unlock(store, lock(store, NODE, WRITE, 0.0))


def test_a_dead_reader(store: Attachment) -> None:
    """What he held lightly is given back to whoever waits, or is refused, or comes by."""
    for wish in (lambda: lock(store, NODE, WRITE), lambda: lock(store, NODE, WRITE, 0.0)):
        read_once(store)
        with child("spawn", holding, store.name, [(NODE, READ)]) as reader:
            reader.receive()
            (hold,) = store.rw.holds(NODE)
            assert word(store) & LOCK_READERS == 0 and hold.slot != store.slot
            reader.kill()
        unlock(store, wish())
        assert store.rw.holds(NODE) == []


def test_a_dead_reader_in_front_of_a_waiter(store: Attachment) -> None:
    with child("spawn", holding, store.name, [(NODE, READ)]) as reader:
        reader.receive()
        writer = Actor(store, WRITE)
        assert queued(store, NODE) == 1
        reader.kill()
        writer.gets_it()
        writer.end()


# ---- what comes between two steps


def test_a_writer_comes_while_a_reader_takes_it(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has stored its record and has not looked again: he sees it, and is refused; so it must have it."""
    refused = once(store, monkeypatch, lambda: in_thread(_refused, store))
    record = lock(store, NODE)
    assert refused == [True] and is_light(store, record) and word(store) & LOCK_COME == LOCK_LIGHT
    unlock(store, record)
    assert word(store) & LOCK_READERS == 0 and not _refused(store)


def test_a_writer_comes_before_a_reader_says_so(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has looked, and stores its record when the writer has it: it is not believed, and waits."""
    record, writers = lease(store), []
    words = Watched(store.w, record, lambda: writers.append(Actor(store, WRITE)))
    with monkeypatch.context() as patch:
        patch.setattr(store.rw, "w", words)
        with pytest.raises(MFSLockTimeoutError):
            store.rw.lock(NODE, GENERATION_OF_NODES, store.w[NAMESPACE], record, READ, 0.0)
    assert state_of(store, record) == FREE
    give_back(store, record)
    writers[0].end()


def test_a_reader_of_what_was_there_before(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file went, and another one has its node: who wants that one is not held up."""
    at = store.layout.node_at(NODE) + N_GENERATION

    def other_file() -> None:
        store.w[at] += 2
        record = lease(store)
        assert store.rw.lock(NODE, GENERATION_OF_NODES + 2, store.w[NAMESPACE], record, WRITE, 0.0)
        unlock(store, record)

    once(store, monkeypatch, lambda: in_thread(other_file))
    record = lease(store)
    assert not store.rw.lock(NODE, GENERATION_OF_NODES, store.w[NAMESPACE], record, READ, None)
    assert state_of(store, record) == FREE
    store.w[at] -= 2
    give_back(store, record)


def _refused(store: Attachment, node: int = NODE) -> bool:
    try:
        unlock(store, lock(store, node, WRITE, 0.0))
    except MFSLockTimeoutError:
        return True
    return False


@pytest.mark.usefixtures("no_slices")
def test_a_reader_comes_while_a_writer_takes_it(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer has shut the door and has not looked around: the reader comes too late for a light hold, and waits."""
    tasks = once(store, monkeypatch, lambda: Task(_read, store))
    record = lock(store, NODE, WRITE)
    (reader,) = tasks
    until(lambda: queued(store, NODE) == 1, "the reader waits")
    assert not reader.done
    unlock(store, record)
    assert reader.result() is False


def _read(store: Attachment) -> bool:
    record = lock(store, NODE)
    light = is_light(store, record)
    unlock(store, record)
    return light


@pytest.mark.usefixtures("no_slices")
def test_a_writer_comes_while_a_reader_leaves_it(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has given it back he finds nobody. Before that, though it has looked already: he waits, and is woken by it."""
    record = lock(store, NODE)
    writers = once(store, monkeypatch, lambda: Actor(store, WRITE))
    unlock(store, record)
    writers[0].gets_it()
    writers[0].end()
    read_once(store)
    record = lock(store, NODE)
    words = Watched(store.w, record, lambda: writers.append(Actor(store, WRITE)))
    with monkeypatch.context() as patch:
        patch.setattr(store.rw, "w", words)
        unlock(store, record)
    writers[1].gets_it()
    writers[1].end()


class Watched:
    """Words; before the first store to one of them something else happens."""

    def __init__(self, w: Any, word: int, do: Callable[[], Any]) -> None:
        self.w, self.word, self.todo = w, word, [do]

    def __getitem__(self, word: int) -> int:
        return int(self.w[word])

    def __setitem__(self, word: int, value: int) -> None:
        if word == self.word and self.todo:
            self.todo.pop()()
        self.w[word] = value


@pytest.mark.parametrize("leaves", [False, True])
def test_the_node_of_another_file_by_now(store: Attachment, monkeypatch: pytest.MonkeyPatch, leaves: bool) -> None:
    """Who comes late, taking or leaving, and finds that no more may come, looks who waits, and stores nothing else there: the
    node may be free by then, or become another file, without its mutex."""
    at = store.layout.node_at(NODE)
    record = lock(store, NODE) if leaves else lease(store)

    def remade() -> None:
        store.w[at + N_GENERATION] += 2
        store.w[at] = LOCK_LIGHT

    once(store, monkeypatch, remade)
    words = Watched(store.w, at, lambda: pytest.fail("stored"))
    with monkeypatch.context() as patch:
        patch.setattr(store.rw, "w", words)
        if leaves:
            unlock(store, record)
        else:
            assert not store.rw.lock(NODE, GENERATION_OF_NODES, store.w[NAMESPACE], record, READ, None)
            give_back(store, record)
    store.w[at + N_GENERATION] -= 2
    store.w[at] = 0


@pytest.mark.parametrize("what", ["generation", "namespace"])
def test_another_file_by_now(store: Attachment, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """It is looked up again."""
    at = store.layout.node_at(NODE) + N_GENERATION if what == "generation" else NAMESPACE
    before = store.w[at]

    def change() -> None:
        store.w[at] = before + 2

    once(store, monkeypatch, change)
    record = lease(store)
    assert not store.rw.lock(NODE, GENERATION_OF_NODES, store.w[NAMESPACE], record, READ, None)
    assert state_of(store, record) == (FREE if what == "generation" else HELD)  # whoever renames may have seen it
    store.w[at] = before
    give_back(store, record)
    assert state_of(store, record) == FREE


def test_another_node_the_next_time(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespace changed while a reader took one node, and the path leads to another one now, which somebody wants who was
    refused because of others: what is left of the first call does not pass for a hold of that one."""
    other, namespace = NODE + 1, store.w[NAMESPACE]
    unlock(store, lock(store, other))
    reader = Actor(store, READ, other)
    assert in_thread(_refused, store, other)
    once(store, monkeypatch, lambda: store.w.__setitem__(NAMESPACE, namespace + 2))
    record = lease(store)
    assert not store.rw.lock(NODE, GENERATION_OF_NODES, namespace, record, READ, None)
    assert is_light(store, record)
    assert store.rw.lock(other, GENERATION_OF_NODES, namespace + 2, record, READ, None)
    assert [hold.node for hold in store.rw.holds() if hold.slot == store.slot] == [other, other]
    assert not is_light(store, record)
    give_back(store, record)
    reader.end()


def test_a_store_that_is_gone(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    def change() -> None:
        store.w[W_STATE] = STATE_DESTROYED

    once(store, monkeypatch, change)
    record = lease(store)
    with pytest.raises(MFSStoreGoneError):
        store.rw.lock(NODE, GENERATION_OF_NODES, store.w[NAMESPACE], record, READ, None)
    store.w[W_STATE] = STATE_READY
    give_back(store, record)


# ---- files


def read(fs: MemoryFileSystem, path: str) -> bytes:
    with fs.open(path) as handle:
        return handle.read()


@pytest.fixture
def files(named: MemoryFileSystem) -> MemoryFileSystem:
    """A store with /d/file, which is new."""
    named.mkdir("/d")
    named.write_bytes("/d/file", b"first")
    return named


def write(fs: MemoryFileSystem, path: str, data: bytes) -> None:
    with fs.open(path, "wb") as handle:
        handle.write(data)


@pytest.mark.parametrize("name", ["new", "n" * 200])
@pytest.mark.parametrize("make", [MemoryFileSystem.write_bytes, write])
def test_a_new_file(files: MemoryFileSystem, make: Callable[..., None], name: str) -> None:
    """Is held lightly from the first reader on, however it came; one that was replaced or written over from the second."""
    make(files, f"/d/{name}", b"1")
    with files.open(f"/d/{name}") as handle:
        assert is_light(files._store, handle._record)
    for _ in range(2):
        make(files, f"/d/{name}", b"2")
        for light in (False, True):
            with files.open(f"/d/{name}") as handle:
                assert is_light(files._store, handle._record) == light
    files.remove(f"/d/{name}")


def opened(fs: MemoryFileSystem) -> Any:
    handle = fs.open("/d/file")
    assert is_light(fs._store, handle._record)
    return handle


def test_nobody_takes_an_open_file_away(files: MemoryFileSystem) -> None:
    """Nor what it is in; closed, everything goes."""
    steps: list[Callable[[], Any]] = [
        lambda: files.remove("/d/file"),
        lambda: files.rename("/d/file", "/d/other"),
        lambda: files.rename("/d", "/e"),
        lambda: files.rmtree("/d"),
        lambda: files.replace("/d/file", "/d/other"),
    ]
    for step in steps:
        handle = opened(files)
        with pytest.raises(MFSFileOpenError, match="holds it shared"):
            step()
        handle.close()
        for _ in range(2):
            read(files, "/d/file")
    assert files._store.fast.remove("/d/file", None), "as straight as if nobody had read it"
    assert files.check() == []


def test_readers_keep_what_is_replaced(files: MemoryFileSystem) -> None:
    """Until they close it; then its memory is free."""
    used = files.stats()["used_bytes"]
    for number in range(2):
        handles = [opened(files), opened(files)]
        files.write_bytes("/d/file", b"other" * 1000)
        assert read(files, "/d/file") == b"other" * 1000
        assert {handle.read() for handle in handles} == {b"first" if not number else b"again"}
        handles[0].close()
        assert files._store.w[ORPHANS]
        handles[1].close()
        assert not files._store.w[ORPHANS]
        files.write_bytes("/d/file", b"again")
        read(files, "/d/file")
        assert files.stats()["used_bytes"] == used
    assert files.check() == []


def test_who_looks_sees_them(files: MemoryFileSystem) -> None:
    """`locks` and `inspect` show a light hold as any other."""
    with opened(files):
        (seen,) = files.locks()
        assert (seen.path, seen.mode, seen.state) == ("/d/file", "shared", "held")
        assert files.check() == []


def test_a_handle_that_was_dropped(files: MemoryFileSystem) -> None:
    """The next operation closes it."""
    handle = opened(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del handle
        gc.collect()
    files.remove("/d/file")
    assert files.locks() == []


def test_claimed_when_the_reader_is_done(files: MemoryFileSystem) -> None:
    """What is held lightly is not to be had, and who waits for it is told when it is."""
    handle = opened(files)
    claims = Task(files.claim, "/d/*", 60.0)
    store, node = files._store, files._store.names.files["/d/file"][0]
    until(lambda: store.w[store.names.at(node)] & LOCK_COME == LOCK_LIGHT, "it was tried")
    assert not claims.done
    handle.close()
    claims.result().release()


def test_between_processes(files: MemoryFileSystem) -> None:
    """A writer here and a reader there: neither ever sees the other at it."""

    def reads(link: Link, name: str) -> None:
        fs = MemoryFileSystem.attach(name)
        link.send("ready")
        seen, data = 0, b"\0"
        while data[:1] != b"\xff":
            data = read(fs, "/d/file")
            assert data == data[:1] * len(data) and len(data) == 64, data
            seen += 1
        fs.close()
        link.send(seen)

    files.write_bytes("/d/file", bytes(64))
    with child("fork", reads, files.name) as reader:
        reader.receive()
        for number in range(1, 256):
            with files.open("/d/file", "r+b") as handle:
                for _ in range(64):
                    handle.write(bytes([number]))
            for _ in range(20):
                read(files, "/d/file")
        assert int(reader.receive()) > 0
        reader.join()
    assert files.check() == []
