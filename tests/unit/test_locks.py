"""Locks between threads and processes: who waits for whom, for how long, and who is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSDeadlockError, MFSFileOpenError, MFSLockTimeoutError
from dmemfs_shm.store.layout import JOURNAL_WORDS, MUTEXES, journal_at
from dmemfs_shm.store.rwlock import FileLocks

from ..conftest import Stores
from ..crash.harness import WordBuffer, instrument
from ..lockstore import BOTH
from ..processes import METHODS, Link, Task, child, held_open, in_thread, until

EXCLUSIVE = ["wb", "ab", "r+b"]


@pytest.fixture
def fs(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with two files."""
    fs.write_bytes("/f", b"content")
    fs.write_bytes("/g", b"other")
    return fs


def records(fs: MemoryFileSystem, path: str) -> list[Any]:
    """The lock records of one file."""
    return [record for record in fs.locks() if record.path == path]


# --- between threads -------------------------------------------------------------------------------------------------


def test_readers_share(fs: MemoryFileSystem) -> None:
    """Any number of threads read at once."""
    with held_open(fs, "/f", "rb"), held_open(fs, "/f", "rb"), fs.open("/f", "rb", lock_timeout=0.0) as handle:
        assert handle.read() == b"content"
        assert len(records(fs, "/f")) == 3


@pytest.mark.parametrize("mode", EXCLUSIVE)
def test_writer_excludes_everybody(fs: MemoryFileSystem, mode: str) -> None:
    """While one thread writes, no other opens the file in any mode."""
    with held_open(fs, "/f", mode):
        for other in ["rb", *EXCLUSIVE]:
            with pytest.raises(MFSLockTimeoutError):
                fs.open("/f", other, lock_timeout=0.0)
    with fs.open("/f", "r+b", lock_timeout=0.0):
        pass


@pytest.mark.parametrize("mode", EXCLUSIVE)
def test_reader_excludes_writers(fs: MemoryFileSystem, mode: str) -> None:
    """While one thread reads, no other writes; the refused writer has changed nothing."""
    before = fs.stat("/f")
    with held_open(fs, "/f", "rb"):
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/f", mode, lock_timeout=0.0)
    assert fs.stat("/f") == before
    assert fs.read_bytes("/f") == b"content"


def test_new_file_is_locked_at_once(fs: MemoryFileSystem) -> None:
    """A file is locked from the moment it can be seen."""
    for mode in ("wb", "xb", "ab"):
        with held_open(fs, "/new", mode):
            with pytest.raises(MFSLockTimeoutError):
                fs.open("/new", "rb", lock_timeout=0.0)
        fs.remove("/new")


def test_other_files_are_free(fs: MemoryFileSystem) -> None:
    """A thread waiting for one file holds up no other file, and no look at the tree."""
    with held_open(fs, "/f", "wb"):
        waiter = Task(lambda: fs.open("/f", "rb").close())
        until(lambda: len(records(fs, "/f")) == 2, "the reader waits")
        with fs.open("/g", "r+b", lock_timeout=0.0) as handle:
            handle.write(b"O")
        fs.write_bytes("/new", b"x")
        fs.mkdir("/d")
        fs.rename("/new", "/d/new")
        assert sorted(fs.listdir("/")) == ["d", "f", "g"]
        assert fs.stat("/f")["size"] == 0
        assert not waiter.done
    waiter.result()


def test_waiting_ends_with_the_holder(fs: MemoryFileSystem) -> None:
    """A waiter gets the file when the holder closes it."""
    handle = fs.open("/f", "wb")
    waiter = Task(lambda: fs.read_bytes("/f"))
    until(lambda: len(records(fs, "/f")) == 2, "the reader waits")
    handle.write(b"new")
    handle.close()
    assert waiter.result() == b"new"


def test_a_waiting_writer_goes_before_later_readers(fs: MemoryFileSystem) -> None:
    """First come, first served: readers that come after a waiting writer wait for it."""
    order: list[str] = []

    def opening(mode: str, name: str) -> None:
        with fs.open("/f", mode):
            order.append(name)

    with held_open(fs, "/f", "rb"):
        writer = Task(opening, "r+b", "writer")
        until(lambda: len(records(fs, "/f")) == 2, "the writer waits")
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/f", "rb", lock_timeout=0.0)
        reader = Task(opening, "rb", "reader")
        until(lambda: len(records(fs, "/f")) == 3, "the reader waits")
        assert order == []
    writer.result()
    reader.result()
    assert order == ["writer", "reader"]


def test_waiters_are_served_in_order(fs: MemoryFileSystem) -> None:
    """Writers get the file in the order in which they asked."""
    order: list[int] = []

    def writing(number: int) -> None:
        with fs.open("/f", "r+b"):
            order.append(number)

    tasks = []
    with held_open(fs, "/f", "r+b"):
        for number in range(6):
            tasks.append(Task(writing, number))
            until(lambda count=number: len(records(fs, "/f")) == count + 2, "the next writer waits")  # type: ignore[misc]
    for task in tasks:
        task.result()
    assert order == list(range(6))


def test_a_waiter_that_gave_up_holds_up_nobody(fs: MemoryFileSystem) -> None:
    """Readers that came behind a writer go on when the writer's time is over."""
    with held_open(fs, "/f", "rb"):
        with pytest.raises(MFSLockTimeoutError):
            in_thread(lambda: fs.open("/f", "r+b", lock_timeout=0.05))
        with fs.open("/f", "rb", lock_timeout=0.0):
            pass
        assert len(records(fs, "/f")) == 1


def test_no_lost_update(fs: MemoryFileSystem) -> None:
    """Threads that count in one file under r+b lose no increment."""
    fs.write_bytes("/count", (0).to_bytes(8, "little"))

    def counting() -> None:
        for _ in range(200):
            with fs.open("/count", "r+b") as handle:
                value = int.from_bytes(handle.read(8), "little")
                handle.seek(0)
                handle.write((value + 1).to_bytes(8, "little"))

    tasks = [Task(counting) for _ in range(6)]
    for task in tasks:
        task.result()
    assert int.from_bytes(fs.read_bytes("/count"), "little") == 1200


def test_a_handle_may_be_closed_by_another_thread(fs: MemoryFileSystem) -> None:
    """The lock goes with the handle, whichever thread closes it."""
    handle = fs.open("/f", "wb")
    in_thread(handle.close)
    assert records(fs, "/f") == []
    in_thread(lambda: fs.open("/f", "wb", lock_timeout=0.0).close())


def test_a_failed_open_leaves_no_lock(fs: MemoryFileSystem) -> None:
    """Whatever open refuses, nothing stays locked."""
    for path, mode in (("/f", "xb"), ("/none", "rb"), ("/f", "bad"), ("/", "rb")):
        with pytest.raises((OSError, ValueError)):
            fs.open(path, mode)
    assert fs.locks() == []


# --- time ------------------------------------------------------------------------------------------------------------


def test_timeout_waits_as_long_as_told(fs: MemoryFileSystem) -> None:
    """A short timeout is waited out, and no less."""
    with held_open(fs, "/f", "wb"):
        begin = time.monotonic()
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/f", "rb", lock_timeout=0.1)
        assert time.monotonic() - begin >= 0.099


def test_timeout_default_is_of_the_object(stores: Stores) -> None:
    """Without a timeout of its own a call uses default_lock_timeout; read_bytes, view and copies always do."""
    fs = stores.private(default_lock_timeout=0.0)
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"x")
    calls: list[Callable[[], object]] = [
        lambda: fs.open("/d/f", "rb"),
        lambda: fs.open("/d/f", "rb", lock_timeout=None),
        lambda: fs.read_bytes("/d/f"),
        lambda: fs.write_bytes("/d/f", b"y"),
        lambda: fs.view("/d/f"),
        lambda: fs.copy("/d/f", "/copy"),
        lambda: fs.copy_tree("/d", "/tree"),
    ]
    with held_open(fs, "/d/f", "r+b"):
        for call in calls:
            with pytest.raises(MFSLockTimeoutError):
                call()
    assert fs.listdir("/") == ["d"]
    assert fs.read_bytes("/d/f") == b"x"


def test_a_file_that_is_another_each_time_is_not_waited_for_longer(
    fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at a path that leads to another file by then has its time from what is left, not from the start."""
    lock, rests = FileLocks.lock, []

    def lock_late(self: FileLocks, *args: Any) -> bool:
        rests.append(args[-1])
        if args[-1] <= 0 or len(rests) == 1000:
            return lock(self, *args[:-1], 0.0)
        time.sleep(0.001)
        return False

    with held_open(fs, "/f", "r+b"):
        monkeypatch.setattr(FileLocks, "lock", lock_late)
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/f", "r+b", lock_timeout=0.05)
    assert rests[-1] == 0
    assert rests[1:] == sorted(rests[1:], reverse=True)


def test_default_of_none_waits_for_ever(stores: Stores) -> None:
    """default_lock_timeout=None waits until the file is free."""
    fs = stores.private(default_lock_timeout=None)
    fs.write_bytes("/f", b"x")
    with held_open(fs, "/f", "wb"):
        waiter = Task(lambda: fs.open("/f", "rb").close())
        until(lambda: len(records(fs, "/f")) == 2, "the reader waits")
    waiter.result()


def test_zero_on_a_free_file(fs: MemoryFileSystem) -> None:
    """A timeout of 0.0 is one try, and succeeds when nobody is there."""
    with fs.open("/f", "wb", lock_timeout=0.0) as handle:
        handle.write(b"x")


def test_timeout_names_the_holders(fs: MemoryFileSystem) -> None:
    """The error knows the path and who holds the file."""
    with held_open(fs, "/f", "wb"):
        with pytest.raises(MFSLockTimeoutError) as caught:
            fs.open("/f", "rb", lock_timeout=0.0)
    error = caught.value
    assert isinstance(error, BlockingIOError)
    assert error.path == "/f"
    assert len(error.holders) == 1
    assert str(os.getpid()) in str(error.holders[0])
    assert "/f" in str(error)


# --- the same thread -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [("rb", "wb"), ("rb", "r+b"), ("rb", "ab"), ("wb", "rb"), ("r+b", "rb"), ("ab", "wb"), ("wb", "wb")]
)
def test_own_conflict_is_a_deadlock(fs: MemoryFileSystem, first: str, second: str) -> None:
    """A thread that asks for what it holds itself in a conflicting way is told at once, not after the timeout."""
    with fs.open("/f", first) as handle:
        with pytest.raises(MFSDeadlockError) as caught:
            fs.open("/f", second)
        assert isinstance(caught.value, BlockingIOError)
        assert not handle.closed
        assert len(records(fs, "/f")) == 1


@pytest.mark.parametrize("mode", ["wb", "xb", "ab"])
def test_own_conflict_on_a_new_file(fs: MemoryFileSystem, mode: str) -> None:
    """The creator of a file is known to hold it, too."""
    with fs.open("/new", mode):
        for second in ("rb", "r+b"):
            with pytest.raises(MFSDeadlockError):
                fs.open("/new", second, lock_timeout=0.0)
        with pytest.raises(MFSLockTimeoutError):
            in_thread(lambda: fs.open("/new", "rb", lock_timeout=0.0))


def test_own_conflict_of_other_calls(fs: MemoryFileSystem) -> None:
    """Whatever takes the file's lock inside knows of the caller's own handle."""
    fs.mkdir("/d")
    fs.rename("/g", "/d/g")
    with fs.open("/d/g", "r+b"):
        for call in (
            lambda: fs.read_bytes("/d/g"),
            lambda: fs.write_bytes("/d/g", b"x"),
            lambda: fs.view("/d/g"),
            lambda: fs.copy("/d/g", "/copy"),
            lambda: fs.copy_tree("/d", "/tree"),
            lambda: fs.replace("/f", "/d/g"),
        ):
            with pytest.raises(MFSDeadlockError):
                call()
    assert sorted(fs.listdir("/")) == ["d", "f"]
    assert fs.read_bytes("/d/g") == b"other"


def test_reading_twice_is_allowed(fs: MemoryFileSystem) -> None:
    """A thread that reads a file may read it again; the first close leaves the second open."""
    first = fs.open("/f", "rb")
    with fs.open("/f", "rb", lock_timeout=0.0) as second:
        first.close()
        assert second.read() == b"content"
        with pytest.raises(MFSLockTimeoutError):
            in_thread(lambda: fs.open("/f", "wb", lock_timeout=0.0))
    in_thread(lambda: fs.open("/f", "wb", lock_timeout=0.0).close())


def test_reading_twice_passes_a_waiting_writer(fs: MemoryFileSystem) -> None:
    """A thread that reads a file gets it again at once though a writer waits: waiting would be a deadlock."""
    with fs.open("/f", "rb"):
        writer = Task(lambda: fs.open("/f", "r+b").close())
        until(lambda: len(records(fs, "/f")) == 2, "the writer waits")
        with fs.open("/f", "rb", lock_timeout=0.0) as again:
            assert again.read() == b"content"
        assert fs.read_bytes("/f") == b"content"
        assert not writer.done
    writer.result()


# --- open files and the tree -----------------------------------------------------------------------------------------

BLOCKED: dict[str, Callable[[MemoryFileSystem], object]] = {
    "remove": lambda fs: fs.remove("/d/e/f"),
    "rename": lambda fs: fs.rename("/d/e/f", "/x"),
    "move": lambda fs: fs.move("/d/e/f", "/new/x"),
    "replace from": lambda fs: fs.replace("/d/e/f", "/x"),
    "rename its directory": lambda fs: fs.rename("/d", "/x"),
    "move its directory": lambda fs: fs.move("/d", "/new/x"),
    "rmtree": lambda fs: fs.rmtree("/d"),
}


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_open_files_stay_where_they_are(fs: MemoryFileSystem, name: str, mode: str, elsewhere: bool) -> None:
    """remove, rename, move, replace from and rmtree refuse at once while a file in them is open, by anybody."""
    fs.mkdir("/d/e")
    fs.write_bytes("/d/e/f", b"x")
    with held_open(fs, "/d/e/f", mode) if elsewhere else fs.open("/d/e/f", mode):
        with pytest.raises(MFSFileOpenError) as caught:
            BLOCKED[name](fs)
    error = caught.value
    assert isinstance(error, BlockingIOError)
    assert error.path == "/d/e/f"
    assert len(error.holders) == 1
    assert str(os.getpid()) in str(error.holders[0])
    assert fs.read_bytes("/d/e/f") == b"x"
    assert not fs.exists("/new")
    BLOCKED[name](fs)
    assert not fs.exists("/d/e/f")


def test_open_files_elsewhere_hinder_nobody(fs: MemoryFileSystem) -> None:
    """Only the files concerned count: a parent may gain and lose other entries."""
    fs.mkdir("/d/e")
    fs.write_bytes("/d/f", b"x")
    fs.write_bytes("/d/e/g", b"y")
    with fs.open("/d/f", "wb"):
        fs.rename("/d/e/g", "/d/h")
        fs.rmtree("/d/e")
        fs.remove("/d/h")
        fs.rename("/f", "/d/f2")
    assert sorted(fs.listdir("/d")) == ["f", "f2"]


def test_replaced_under_a_reader(fs: MemoryFileSystem) -> None:
    """replace and write_bytes do not wait for readers of the target: they keep the old content."""
    with fs.open("/f", "rb") as handle:
        assert handle.read(3) == b"con"
        fs.write_bytes("/f", b"second")
        assert fs.read_bytes("/f") == b"second"
        fs.replace("/g", "/f")
        assert handle.read() == b"tent"
        assert fs.read_bytes("/f") == b"other"
        assert fs.get_size("/f") == 5
    assert fs.read_bytes("/f") == b"other"


def test_a_replaced_files_reader_does_not_hold_the_new_one(fs: MemoryFileSystem) -> None:
    """The reader of old content has no lock on what took its place: that may be written, renamed and removed."""
    with fs.open("/f", "rb") as handle:
        fs.write_bytes("/f", b"second")
        with fs.open("/f", "r+b", lock_timeout=0.0) as writer:
            writer.write(b"S")
        fs.rename("/f", "/h")
        fs.remove("/h")
        assert handle.read() == b"content"
    assert not fs.exists("/h")


def test_replace_waits_for_a_writer(fs: MemoryFileSystem) -> None:
    """A target open for writing is waited for, and the writer's content is then replaced whole."""
    with held_open(fs, "/f", "wb"):
        replacing = Task(lambda: fs.replace("/g", "/f"))
        until(lambda: len(records(fs, "/f")) == 2 or replacing.done, "replace waits")
        assert not replacing.done
    replacing.result()
    assert fs.read_bytes("/f") == b"other"


# --- locks() ---------------------------------------------------------------------------------------------------------


def test_locks_lists_what_is_held(fs: MemoryFileSystem) -> None:
    """One record for each open handle, with its path and process."""
    assert fs.locks() == []
    with fs.open("/f", "rb"), fs.open("/g", "wb"):
        found = {record.path: record for record in fs.locks()}
        assert sorted(found) == ["/f", "/g"]
        assert {record.pid for record in found.values()} == {os.getpid()}
        assert found["/f"].mode != found["/g"].mode
    assert fs.locks() == []


def test_locks_follows_renamed_parents(fs: MemoryFileSystem) -> None:
    """A path in locks() is where the file is now."""
    fs.mkdir("/d/e")
    fs.write_bytes("/d/e/f", b"x")
    fs.rename("/d", "/new")
    with fs.open("/new/e/f", "rb"):
        assert [record.path for record in fs.locks()] == ["/new/e/f"]


def test_participants_lists_this_process(named: MemoryFileSystem) -> None:
    """Each process attached to the store is listed."""
    assert os.getpid() in {record.pid for record in named.participants()}


# --- between processes -----------------------------------------------------------------------------------------------


def _hold(link: Link, fs: MemoryFileSystem, path: str, mode: str) -> None:
    with fs.open(path, mode):
        link.send("open")
        link.recv()


@pytest.mark.parametrize("method", METHODS)
def test_processes_exclude_each_other(named: MemoryFileSystem, method: str) -> None:
    """A writer in another process holds the file as one in another thread does, and is named."""
    named.write_bytes("/f", b"content")
    with child(method, _hold, named, "/f", "r+b") as holder:
        assert holder.receive() == "open"
        with pytest.raises(MFSLockTimeoutError) as caught:
            named.open("/f", "rb", lock_timeout=0.0)
        assert str(holder.pid) in str(caught.value.holders[0])
        with pytest.raises(MFSFileOpenError):
            named.remove("/f")
        assert [record.pid for record in named.locks()] == [holder.pid]
        waiting = Task(lambda: named.read_bytes("/f"))
        until(lambda: len(records(named, "/f")) == 2, "the reader waits")
        holder.send("close")
        assert waiting.result() == b"content"
        holder.receive()
        holder.join()


def test_death_frees_the_lock(named: MemoryFileSystem) -> None:
    """The file of a killed holder goes to the next in line, without waiting for a timeout."""
    named.write_bytes("/f", b"content")
    with child("fork", _hold, named, "/f", "rb") as holder:
        assert holder.receive() == "open"
        waiting = Task(lambda: named.open("/f", "r+b", lock_timeout=30.0).close())
        until(lambda: len(records(named, "/f")) == 2, "the writer waits")
        begin = time.monotonic()
        holder.kill()
        waiting.result()
        assert time.monotonic() - begin < 30.0
    assert named.locks() == []


def _count(fs: MemoryFileSystem, rounds: int) -> None:
    for _ in range(rounds):
        with fs.open("/count", "r+b") as handle:
            value = int.from_bytes(handle.read(8), "little")
            handle.seek(0)
            handle.write((value + 1).to_bytes(8, "little"))


def _count_in_child(_link: Link, fs: MemoryFileSystem, rounds: int) -> None:
    _count(fs, rounds)


def test_no_lost_update_between_processes(named: MemoryFileSystem) -> None:
    """Processes and threads that count in one file under r+b lose no increment."""
    named.write_bytes("/count", (0).to_bytes(8, "little"))
    with child("fork", _count_in_child, named, 300) as one, child("fork", _count_in_child, named, 300) as two:
        threads = [Task(_count, named, 150), Task(_count, named, 150)]
        one.receive()
        two.receive()
        for task in threads:
            task.result()
        one.join()
        two.join()
    assert int.from_bytes(named.read_bytes("/count"), "little") == 900


def test_ten_threads_write_ten_files(fs: MemoryFileSystem) -> None:
    """Threads that start together each write their own file in one directory."""
    fs.mkdir("/staging")
    start = threading.Barrier(10)

    def staging(number: int) -> None:
        start.wait(30)
        with fs.open(f"/staging/{number}.bin", "wb") as handle:
            for _ in range(50):
                handle.write(bytes([number]) * 100)

    tasks = [Task(staging, number) for number in range(10)]
    for task in tasks:
        task.result()
    for number in range(10):
        assert fs.read_bytes(f"/staging/{number}.bin") == bytes([number]) * 5000


# --- who died while he created a file --------------------------------------------------------------------------------


def create_and_die(link: Link, name: str) -> None:
    """Create a file up to the store that commits it."""
    fs = MemoryFileSystem.attach(name)
    store: Any = fs._attached()
    link.send((store.slot, store.participants.epoch(store.slot)))

    class Fatal(WordBuffer):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == journal_at(0) and value == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.words[key] = value

    instrument(store, lambda words: Fatal(words, lambda _: None))
    fs.open("/never", "xb")


def create_and_hold(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    link.send("attached")
    link.recv()
    with fs.open("/new", "xb"):
        link.send("created")
        link.recv()


@pytest.mark.parametrize("backend", BOTH)
def test_a_creation_that_never_was_is_not_reaped(stores: Stores, backend: str) -> None:
    """Its record is taken back before the dead one is reaped: the node may be another file's by then, and in use."""
    fs = stores.create(backend=backend)
    store: Any = fs._attached()
    with child("fork", create_and_hold, fs.name) as other:
        other.receive()
        with child("fork", create_and_die, fs.name) as dead:
            slot, epoch = dead.receive()
            dead.join()
        until(lambda: store.participants.is_dead(slot, epoch), "it is dead")
        midway: list[Any] = []

        class Late(WordBuffer):
            """Another process makes use of the node just before the first transaction on locks is stored."""

            def __setitem__(self, key: Any, value: Any) -> None:
                if not midway and value and key in range(journal_at(1), journal_at(MUTEXES), JOURNAL_WORDS):
                    midway.append(other.send("create") or other.receive())
                self.words[key] = value

        instrument(store, lambda words: Late(words, lambda _: None))
        store.reap_dead(None)
        if not midway:
            other.send("create")
            assert other.receive() == "created"
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/new", "rb", lock_timeout=0.0)
        other.send("close")
        other.receive()
    assert fs.read_bytes("/new") == b""
