"""Waiting for files and claiming them: wait_for, claim, and what is published by what."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import (
    Claim,
    MemoryFileSystem,
    MFSClosedError,
    MFSDeadlockError,
    MFSFileOpenError,
    MFSForkedError,
    MFSLockTimeoutError,
    MFSStoreGoneError,
    MFSTimeoutError,
)
from dmemfs_shm.store import publications
from dmemfs_shm.store.layout import ENTRIES, S_SLEEPERS, S_WATCHES, WATCHED

from ..conftest import Stores
from ..processes import DEADLINE_S, Link, Task, call_in_child, child, in_thread, until

LONG = DEADLINE_S


def sleepers(fs: MemoryFileSystem) -> int:
    """How many threads of this process sleep until something is published."""
    assert fs._store is not None
    return fs._store.w[fs._store.layout.slot_at(fs._store.slot) + S_SLEEPERS].bit_count()


def nobody_waits(fs: MemoryFileSystem) -> bool:
    return not sleepers(fs)


@pytest.fixture
def long_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sleeps is woken, or sleeps on: no slice ends in time."""
    monkeypatch.setattr(publications, "SLICE_S", 10 * DEADLINE_S)


@contextlib.contextmanager
def somebody_waits(fs: MemoryFileSystem, pattern: str) -> Iterator[Task]:
    """A thread of ours sleeps until a file that matches is published; at the end of the block it must have one."""
    task = Task(fs.wait_for, pattern, LONG)
    until(lambda: not nobody_waits(fs), "the thread sleeps")
    yield task
    task.result()


def take(fs: MemoryFileSystem, pattern: str = "/in/*", **options: Any) -> str:
    """Claim a file at once, remove it, and say which it was."""
    with fs.claim(pattern, 0, **options) as claim:
        claim.done()
    return claim.path


@pytest.fixture
def inbox(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with three files in /in, published in this order: c, a, b."""
    fs.mkdir("/in")
    for name in "cab":
        fs.write_bytes(f"/in/{name}", name.encode())
    return fs


# ---- wait_for


def test_a_file_that_is_there_is_found_at_once_the_first_by_path(inbox: MemoryFileSystem) -> None:
    assert inbox.wait_for("/in/*", 0) == "/in/a"
    assert inbox.wait_for("/in/c") == "/in/c"
    assert inbox.wait_for("in/./x/../b", 0) == "/in/b"
    assert inbox.wait_for("/**/[bc]", 0) == "/in/b"


@pytest.mark.parametrize("pattern", ["/in/d", "/none/*", "/in", "/*", "/", "", "/in/*/x"])
def test_what_does_not_come_is_a_timeout(inbox: MemoryFileSystem, pattern: str) -> None:
    for timeout in 0, -1, 0.01:
        with pytest.raises(TimeoutError) as caught:
            inbox.wait_for(pattern, timeout)
        assert isinstance(caught.value, MFSTimeoutError)
        assert pattern in str(caught.value)


def test_a_path_that_leads_above_the_root_is_refused(fs: MemoryFileSystem) -> None:
    for call in fs.wait_for, fs.claim:
        with pytest.raises(ValueError):
            call("/../x", 0)


PUBLISHING: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "close of a new file": lambda fs: fs.open("/in/x", "xb").close(),
    "write_bytes": lambda fs: fs.write_bytes("/in/x", b"x"),
    "large write_bytes": lambda fs: fs.write_bytes("/in/x", bytes(200_000)),
    "rename": lambda fs: fs.rename("/out/file", "/in/x"),
    "move": lambda fs: fs.move("/out/file", "/in/x"),
    "replace": lambda fs: fs.replace("/out/file", "/in/x"),
    "copy": lambda fs: fs.copy("/out/file", "/in/x"),
    "copy_tree": lambda fs: fs.copy_tree("/tree", "/in/y"),
    "rename of a directory": lambda fs: fs.rename("/tree", "/in/y"),
}


@pytest.mark.usefixtures("long_slices")
@pytest.mark.parametrize("way", PUBLISHING)
def test_a_publication_wakes(fs: MemoryFileSystem, way: str) -> None:
    for folder in "/in", "/out", "/tree":
        fs.mkdir(folder)
    fs.write_bytes("/out/file", b"f")
    fs.write_bytes("/tree/x", b"t")
    with somebody_waits(fs, "/in/**") as task:
        PUBLISHING[way](fs)
        assert task.result() in ("/in/x", "/in/y/x")


@pytest.mark.usefixtures("long_slices")
@pytest.mark.parametrize("way", PUBLISHING)
def test_a_publication_in_another_process_wakes(named: MemoryFileSystem, store_name: str, way: str) -> None:
    for folder in "/in", "/out", "/tree":
        named.mkdir(folder)
    named.write_bytes("/out/file", b"f")
    named.write_bytes("/tree/x", b"t")
    with somebody_waits(named, "/in/**") as task:
        call_in_child("fork", publish, store_name, way)
        assert task.result() in ("/in/x", "/in/y/x")


def publish(name: str, way: str) -> None:
    fs = MemoryFileSystem.attach(name)
    PUBLISHING[way](fs)
    fs.close()


def test_a_file_being_written_or_abandoned_is_not_complete(named: MemoryFileSystem, store_name: str) -> None:
    with named.open("/x", "wb") as handle:
        handle.write(b"x")
        for call in named.wait_for, named.claim:
            with pytest.raises(MFSTimeoutError):
                call("/x", 0)
    assert named.wait_for("/x", 0) == "/x"
    with child("fork", die_writing, store_name, "/x") as running:
        running.join()
    for call in named.wait_for, named.claim:
        with pytest.raises(MFSTimeoutError):
            call("/*", 0)
    named.open("/x", "r+b", allow_abandoned=True).close()
    assert named.wait_for("/x", 0) == take(named, "/x") == "/x"


def die_writing(link: Link, name: str, path: str) -> None:
    handle = MemoryFileSystem.attach(name).open(path, "r+b")
    handle.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_being_read_is_complete(inbox: MemoryFileSystem) -> None:
    with inbox.open("/in/a"):
        assert inbox.wait_for("/in/*", 0) == "/in/a"


def test_nobody_is_told_when_nobody_wants_to_know(fs: MemoryFileSystem) -> None:
    store = fs._store
    assert store is not None and not store.w[WATCHED]
    fs.write_bytes("/x", b"x")
    assert fs.wait_for("/x") == "/x"
    assert not store.w[WATCHED] and not store.w[store.layout.slot_at(store.slot) + S_WATCHES]
    fs.claim("/x").release()
    assert store.w[WATCHED] == 1 << store.slot
    fs.close()
    assert fs.name not in os.listdir("/dev/shm")


def test_who_has_left_is_not_told_any_more(named: MemoryFileSystem, store_name: str) -> None:
    assert named._store is not None
    for leave in "in order", "killed":
        with child("fork", claim_and_leave, store_name, leave) as running:
            running.join()
        named._store.relieve_locks()
        assert not named._store.w[WATCHED]


def claim_and_leave(link: Link, name: str, how: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with contextlib.suppress(MFSTimeoutError):
        fs.claim("/x", 0)
    assert fs._store is not None and fs._store.w[WATCHED]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    fs.close()


def test_a_waiter_that_was_killed_is_in_nobodys_way(named: MemoryFileSystem, store_name: str) -> None:
    store = named._store
    assert store is not None
    with child("fork", wait_for_ever, store_name) as running:
        slot = running.receive()
        at = store.layout.slot_at(slot) + S_SLEEPERS
        until(lambda: bool(store.w[at]), "it sleeps")
        running.kill()
    named.write_bytes("/x", b"x")
    assert store.w[at] and store.w[WATCHED]
    store.relieve_locks()
    assert not store.w[at] and not store.w[WATCHED]


def wait_for_ever(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    assert fs._store is not None
    link.send(fs._store.slot)
    fs.wait_for("/never")


def test_more_is_published_than_the_ring_holds(inbox: MemoryFileSystem) -> None:
    inbox.claim("/in/*").release()  # from now on it knows what is there, and hears of the rest
    for number in range(2 * ENTRIES):
        inbox.write_bytes("/out", str(number).encode())
    inbox.write_bytes("/in/d", b"d")
    assert [take(inbox) for _ in range(4)] == ["/in/c", "/in/a", "/in/b", "/in/d"]


def test_entries_of_threads_that_come_in_between_are_not_lost(inbox: MemoryFileSystem, monkeypatch: Any) -> None:
    """A signal handler, or another thread, publishes while an entry is being stored."""
    assert inbox._store is not None
    inbox.claim("/in/*").release()  # from now on it knows what is there, and hears of the rest
    some, real = inbox._store.publications, publications.Publications._raise
    nested: list[int] = []

    def publish_first(self: Any, number: int) -> None:
        if not nested:
            nested.append(number)
            inbox.write_bytes("/in/e", b"e")
        real(self, number)

    monkeypatch.setattr(type(some), "_raise", publish_first)
    inbox.write_bytes("/in/d", b"d")
    assert nested and sorted(take(inbox) for _ in range(5)) == [f"/in/{name}" for name in "abcde"]


def test_an_entry_that_was_never_finished(inbox: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception came while it was stored: the next one makes everybody look at all files."""
    assert inbox._store is not None
    some = inbox._store.publications
    inbox.claim("/in/*").release()  # from now on it knows what is there, and hears of the rest
    with monkeypatch.context() as patch:
        patch.setattr(some, "announce", lambda node: None)
        inbox.write_bytes("/in/d", b"d")
    some._next += 1
    inbox.write_bytes("/in/e", b"e")
    assert sorted(take(inbox) for _ in range(5)) == [f"/in/{name}" for name in "abcde"]


# ---- claim


def test_the_oldest_publication_comes_first(inbox: MemoryFileSystem) -> None:
    assert [take(inbox) for _ in range(3)] == ["/in/c", "/in/a", "/in/b"]
    with pytest.raises(MFSTimeoutError):
        take(inbox)
    assert inbox.listdir("/in") == []


def test_each_way_to_publish_counts_from_then(inbox: MemoryFileSystem) -> None:
    with inbox.open("/in/c", "r+b") as handle:  # not changed
        handle.read()
    assert take(inbox) == "/in/c"
    with inbox.open("/in/a", "ab") as handle:
        handle.write(b"more")
    inbox.rename("/in/b", "/in/B")
    assert [take(inbox), take(inbox)] == ["/in/a", "/in/B"]
    inbox.write_bytes("/in/a", b"1")
    inbox.write_bytes("/in/b", b"2")
    inbox.claim("/in/*").release()
    inbox.write_bytes("/in/a", b"3")
    assert [take(inbox), take(inbox)] == ["/in/b", "/in/a"]


def test_a_claim_reads_its_file(inbox: MemoryFileSystem) -> None:
    with inbox.claim("/in/c") as claim:
        assert isinstance(claim, Claim) and [claim.path, claim.attempts, claim.active] == ["/in/c", 0, True]
        assert claim.read_bytes() == b"c"
        with claim.open() as handle, io.TextIOWrapper(claim.open("rb")) as text:
            assert [handle.read(), text.read(), handle.name] == [b"c", "c", "/in/c"]
        kept, left_open = claim.view(), claim.open()
        with pytest.raises(io.UnsupportedOperation):
            claim.open("r+b")
        with pytest.raises(TypeError):
            pickle.dumps(claim)
        claim.done()
        assert left_open.closed and not claim.active
        assert bytes(kept) == b"c"
        for call in claim.open, claim.read_bytes, claim.view, claim.done:
            with pytest.raises(ValueError):
                call()
    assert not inbox.exists("/in/c")
    del kept
    assert inbox.info()["orphaned"] == 0


def test_a_view_of_a_file_in_pieces_and_of_an_empty_one(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/x", bytes(100_000))
    fs.write_bytes("/y", bytes(100_000))
    with fs.open("/x", "ab") as handle:
        handle.write(b"1" * 100_000)
    fs.open("/empty", "xb").close()
    with fs.claim("/x") as claim, claim.view() as view:
        assert view == bytes(100_000) + b"1" * 100_000
    with fs.claim("/empty") as claim:
        assert claim.read_bytes() == bytes(claim.view()) == b""
        claim.done()


def test_a_claim_is_an_exclusive_lock(inbox: MemoryFileSystem) -> None:
    with inbox.claim("/in/c", max_attempts=5):
        (lock,) = inbox.locks()
        assert [lock.path, lock.mode, lock.state, lock.pid] == ["/in/c", "exclusive", "held", os.getpid()]
        for call in (lambda: inbox.remove("/in/c"), lambda: inbox.rename("/in", "/out"), lambda: inbox.rmtree("/in")):
            with pytest.raises(MFSFileOpenError):
                call()
        with pytest.raises(MFSDeadlockError):
            inbox.open("/in/c")
        with pytest.raises(MFSLockTimeoutError):
            in_thread(lambda: inbox.open("/in/c", lock_timeout=0.0))
        for call in inbox.claim, inbox.wait_for:
            with pytest.raises(MFSTimeoutError):
                call("/in/c", 0)
        assert inbox.wait_for("/in/*") == "/in/a"
        assert inbox.stat("/in/c")["size"] == 1
    assert inbox.read_bytes("/in/c") == b"c" and inbox.locks() == []


def test_leaving_without_done_counts_an_attempt(inbox: MemoryFileSystem) -> None:
    def leave() -> int:
        with inbox.claim("/in/c", 0) as claim:
            pass
        return claim.attempts

    def fail() -> int:
        with pytest.raises(KeyError):
            with inbox.claim("/in/c", 0) as claim:
                raise KeyError
        return int(claim.attempts)

    def release() -> int:
        with inbox.claim("/in/c", 0) as claim:
            claim.release()
            claim.release()
        return claim.attempts

    def forget() -> int:
        claim = inbox.claim("/in/c", 0)
        return claim.attempts

    assert [leave(), fail(), release(), forget(), leave()] == [0, 1, 2, 3, 4]
    inbox.write_bytes("/in/c", b"new")
    assert leave() == 0


def test_death_counts_an_attempt_and_leaves_the_file_complete(named: MemoryFileSystem, store_name: str) -> None:
    named.write_bytes("/x", b"x")
    for attempt in range(2):
        with child("fork", die_claiming, store_name) as running:
            assert running.receive() == attempt
            running.join()
    with named.claim("/x", 0) as claim:
        assert claim.attempts == 2 and claim.read_bytes() == b"x"
    assert not named.stat("/x")["abandoned"]


def die_claiming(link: Link, name: str) -> None:
    claim = MemoryFileSystem.attach(name).claim("/x", LONG)
    link.send(claim.attempts)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("long_slices")
@pytest.mark.parametrize("end", ["killed", "released", "done elsewhere"])
def test_a_waiting_claimer_gets_what_another_process_had(named: MemoryFileSystem, store_name: str, end: str) -> None:
    named.write_bytes("/x", b"x")
    with child("fork", claim_and_wait, store_name) as running:
        assert running.receive() == "/x"
        task = Task(lambda: named.claim("/*", LONG).path)
        until(lambda: not nobody_waits(named), "the thread sleeps")
        if end == "killed":
            running.kill()
            assert named._store is not None
            named._store.relieve_locks()
        else:
            running.send(end)
            running.join()
        assert task.result() == ("/y" if end == "done elsewhere" else "/x")


def claim_and_wait(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with fs.claim("/x", LONG) as claim:
        link.send(claim.path)
        if link.recv() != "released":
            claim.done()
            fs.write_bytes("/y", b"y")
    fs.close()


@pytest.mark.usefixtures("long_slices")
def test_a_claimer_waits_for_the_last_reader(inbox: MemoryFileSystem) -> None:
    with inbox.open("/in/c") as one, inbox.open("/in/c") as other:
        task = Task(lambda: inbox.claim("/in/c", LONG).path)
        until(lambda: not nobody_waits(inbox), "the thread sleeps")
        one.close()
        assert not task.done
        other.close()
        assert task.result() == "/in/c"


def test_max_attempts_and_dead_letters(inbox: MemoryFileSystem) -> None:
    limits: dict[str, Any] = {"max_attempts": 2, "dead_letter": "/dead/letters"}
    for expected in 0, 1:
        with inbox.claim("/in/c", 0, **limits) as claim:
            assert claim.attempts == expected
        assert inbox.exists("/in/c") == (expected == 0)
    assert inbox.read_bytes("/dead/letters/c") == b"c"
    for number in 1, 2:
        inbox.write_bytes("/in/c", b"again")
        inbox.claim("/in/c", 0, 1, "/dead/letters").release()
        assert inbox.read_bytes(f"/dead/letters/c.{number}") == b"again"
    assert inbox.claim("/dead/letters/c", 0).attempts == 0


def test_a_file_past_its_attempts_is_set_aside_by_the_next_claim(named: MemoryFileSystem, store_name: str) -> None:
    named.write_bytes("/x", b"x")
    named.write_bytes("/y", b"y")
    with child("fork", die_claiming, store_name) as running:
        running.join()
    with named.claim("/*", 0, max_attempts=1, dead_letter="/dead") as claim:
        assert claim.path == "/y"
        assert named.listdir("/dead") == ["x"]
        claim.done()
    with pytest.raises(MFSTimeoutError):
        named.claim("/**/*", 0, max_attempts=1, dead_letter="/dead")


def test_without_dead_letters_it_stays_and_is_not_claimed_with_that_limit(inbox: MemoryFileSystem) -> None:
    for _ in range(2):
        inbox.claim("/in/c", 0, max_attempts=2).release()
    with pytest.raises(MFSTimeoutError):
        inbox.claim("/in/c", 0, max_attempts=2)
    assert inbox.claim("/in/c", 0, max_attempts=3).attempts == 2


def test_long_names_among_the_dead_letters(fs: MemoryFileSystem) -> None:
    name = "ä" * 127  # 254 bytes
    for _ in range(2):
        fs.write_bytes(f"/in-{name[2:]}", b"x")
        fs.claim("/in-*", 0, 1, "/dead").release()
    fs.write_bytes(f"/{name}", b"x")
    fs.claim(f"/{name}", 0, 1, "/dead").release()
    fs.write_bytes(f"/{name}", b"x")
    fs.claim(f"/{name}", 0, 1, "/dead").release()
    assert sorted(fs.listdir("/dead")) == sorted([f"in-{name[2:]}", f"in-{name[2:]}.1"[:255], name, "ä" * 126 + ".1"])


def test_a_file_in_the_place_of_the_dead_letters(inbox: MemoryFileSystem) -> None:
    inbox.write_bytes("/dead", b"")
    with pytest.raises(FileExistsError):
        with inbox.claim("/in/c", 0, 1, "/dead"):
            pass
    with pytest.raises(FileExistsError):
        inbox.claim("/in/c", 0, 1, "/dead")
    assert inbox.locks() == [] and inbox.read_bytes("/in/c") == b"c"


@pytest.mark.parametrize("wrong", [0, -1])
def test_attempts_that_are_none(inbox: MemoryFileSystem, wrong: int) -> None:
    with pytest.raises(ValueError):
        inbox.claim("/in/c", max_attempts=wrong)
    with pytest.raises(TypeError):
        inbox.claim("/in/c", max_attempts=True)


def test_done_with_others_waiting_for_the_file(inbox: MemoryFileSystem) -> None:
    """They find it gone, and what it held is free."""
    used = inbox.stats()["used_bytes"]
    with inbox.claim("/in/c") as claim:
        readers = [Task(lambda mode=mode: inbox.open("/in/c", mode).close()) for mode in ("rb", "r+b")]
        until(lambda: sum(lock.state == "waiting" for lock in inbox.locks()) == 2, "both wait")
        claim.done()
    for reader in readers:
        with pytest.raises(FileNotFoundError):
            reader.result()
    until(lambda: inbox.stats()["used_bytes"] < used, "its blocks are free")
    assert inbox.info()["orphaned"] == 0


def test_a_dead_letter_that_others_wait_for(inbox: MemoryFileSystem) -> None:
    with inbox.claim("/in/c", 0, 1, "/dead"):
        writer = Task(lambda: inbox.open("/in/c", "r+b").close())
        until(lambda: any(lock.state == "waiting" for lock in inbox.locks()), "it waits")
        waiting = Task(inbox.wait_for, "/dead/*", LONG)
    with pytest.raises(FileNotFoundError):
        writer.result()
    assert waiting.result() == "/dead/c"


def test_a_directory_that_was_renamed_meanwhile(inbox: MemoryFileSystem) -> None:
    inbox.claim("/in/*").release()
    with pytest.raises(MFSTimeoutError):
        inbox.claim("/new/*", 0)
    inbox.rename("/in", "/new")
    with pytest.raises(MFSTimeoutError):
        inbox.claim("/in/*", 0)
    assert [take(inbox, "/new/*") for _ in range(3)] == ["/new/c", "/new/a", "/new/b"]


def test_a_tree_that_is_being_freed(inbox: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are what they were, and hang on nothing."""
    assert inbox._store is not None
    inbox.claim("/**").release()
    sweep = inbox._store.sweep
    monkeypatch.setattr(sweep, "drain_trash", lambda: None)
    inbox.rmtree("/in")
    with pytest.raises(MFSTimeoutError):
        inbox.claim("/**", 0)
    monkeypatch.undo()
    sweep.drain_trash()


def test_a_tree_that_was_removed_meanwhile(inbox: MemoryFileSystem) -> None:
    inbox.claim("/in/*").release()
    inbox.rmtree("/in")
    with pytest.raises(MFSTimeoutError):
        inbox.claim("/in/*", 0)


def test_closing_gives_claims_back(named: MemoryFileSystem, store_name: str) -> None:
    named.write_bytes("/x", b"x")
    other = MemoryFileSystem.attach(store_name)
    claim = other.claim("/x")
    other.close()
    assert not claim.active and named.locks() == []
    claim.release()
    assert named.claim("/x", 0).attempts == 1


@pytest.mark.usefixtures("long_slices")
def test_closing_ends_a_wait(named: MemoryFileSystem, store_name: str) -> None:
    other = MemoryFileSystem.attach(store_name)
    tasks = [Task(call, "/x", LONG) for call in (other.wait_for, other.claim)]
    until(lambda: sleepers(named) == 2, "both sleep")
    other.close()
    for task in tasks:
        with pytest.raises(MFSClosedError):
            task.result()


@pytest.mark.usefixtures("long_slices")
def test_destroying_ends_a_wait_and_a_claim(stores: Stores) -> None:
    fs = MemoryFileSystem.create(stores.name())
    fs.write_bytes("/x", b"x")
    claim = fs.claim("/x")
    tasks = [Task(call, "/y", LONG) for call in (fs.wait_for, fs.claim)]
    until(lambda: sleepers(fs) == 2, "both sleep")
    MemoryFileSystem.destroy(fs.name)
    for task in tasks:
        with pytest.raises(MFSStoreGoneError):
            task.result()
    for call in claim.read_bytes, claim.done:
        with pytest.raises(MFSStoreGoneError):
            call()
    claim.release()
    fs.close()


def test_claims_are_not_inherited(inbox: MemoryFileSystem) -> None:
    with inbox.claim("/in/c") as claim:
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                for call in claim.read_bytes, claim.done, claim.open:
                    with pytest.raises(MFSForkedError):
                        call()
                claim.release()
                code = 0
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert claim.read_bytes() == b"c"
        assert len(inbox.locks()) == 1


def test_signals_while_waiting(fs: MemoryFileSystem) -> None:
    """What a handler raises ends the wait, and nothing is left of it."""

    class Rang(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for call in fs.wait_for, fs.claim:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Rang):
                call("/x", LONG)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert nobody_waits(fs)


def test_more_threads_than_parking_semaphores(fs: MemoryFileSystem) -> None:
    tasks = [Task(fs.wait_for, "/x", LONG) for _ in range(40)]
    until(lambda: not nobody_waits(fs), "some sleep")
    fs.write_bytes("/x", b"")
    assert {task.result() for task in tasks} == {"/x"}
    assert nobody_waits(fs)


def test_threads_share_the_work(fs: MemoryFileSystem) -> None:
    paths = [f"/in/{number}" for number in range(200)]
    fs.mkdir("/in")
    done: list[str] = []
    start = threading.Barrier(5)

    def work() -> None:
        start.wait()
        while len(done) < len(paths):
            try:
                with fs.claim("/in/*", 0.01) as claim:
                    claim.done()
            except MFSTimeoutError:
                continue
            done.append(claim.path)

    workers = [Task(work) for _ in range(4)]
    start.wait()
    for path in paths:
        fs.write_bytes(path, b"x")
    for worker in workers:
        worker.result()
    assert sorted(done) == sorted(paths)
