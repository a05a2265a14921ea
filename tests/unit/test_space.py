"""Waiting for space: who is woken by what, in which order, and what a wait costs the others.

The queue itself orders what happens: a thread stands in it (`waits`) before the test goes on. That no death harms a wait is
shown in `tests/crash` (the operations called space-...), and by `tests/scenarios/test_back_pressure.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import (
    MemoryFileSystem,
    MFSDirectoryQuotaError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSQuotaExceededError,
    MFSStoreGoneError,
)
from dmemfs_shm.store import space
from dmemfs_shm.store.identity import is_stopped
from dmemfs_shm.store.layout import SPACE_LAST, SW_SEEN

from ..conftest import Stores
from ..crash.harness import sections_of
from ..processes import DEADLINE_S, Child, Link, Task, child, until

KIB = 1 << 10
QUOTA = 1000 * KIB
LARGE = 300 * KIB


@pytest.fixture
def fs(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setattr(space, "STALE_S", DEADLINE_S)  # however loaded the machine is
    fs = stores.create(max_quota=QUOTA, default_lock_timeout=5.0)
    yield fs
    if fs._store is not None and not fs._store.is_left and fs._store.state == 1:
        assert fs.check() == []


def waiting(fs: MemoryFileSystem) -> int:
    """How many wait for space."""
    store: Any = fs._store
    return len(list(store.space.queue()))


def fill(fs: MemoryFileSystem, left: int, path: str = "/full") -> None:
    """Leave so many bytes free; what is written into a new file of so many, less a page and 128, fits."""
    fs.write_bytes(path, bytes((fs.stats()["free_bytes"] - left) // 4096 * 4096 - 4096))


def waits(fs: MemoryFileSystem, function: Callable[[], Any]) -> Task:
    """A thread that waits for space by now."""
    store: Any = fs._store
    before = len(store.space.queued(store.slot))
    task = Task(function)
    until(lambda: len(store.space.queued(store.slot)) > before or task.done, "the thread waits for space")
    assert not task.done
    return task


def all_look(fs: MemoryFileSystem) -> None:
    """Until everybody in the queue has looked whether he may go, by himself."""
    store: Any = fs._store
    for _ in range(2):  # the first look may have begun before
        seen = {record: store.w[record + SW_SEEN] for record in store.space.queue()}
        until(lambda seen=seen: all(store.w[record + SW_SEEN] != then for record, then in seen.items()), "all look")  # type: ignore[misc]


def refused(fs: MemoryFileSystem, error: type[Exception], space_timeout: float | None) -> None:
    with pytest.raises(error):
        fs.write_bytes("/refused", bytes(LARGE), space_timeout=space_timeout)


def stop(fs: MemoryFileSystem, pid: int) -> None:
    """Stop a process that waits, and is in no section just then."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: bool(is_stopped(pid)), "it is stopped")
        if not sections_of(fs._store, pid):  # type: ignore[arg-type]
            break
        os.kill(pid, signal.SIGCONT)


# ---- what is refused


@pytest.mark.parametrize("size", [20 * KIB, LARGE])
def test_it_is_refused_when_the_time_is_over(fs: MemoryFileSystem, size: int) -> None:
    fill(fs, 10 * KIB)
    before = fs.stats()
    started = time.monotonic()
    with pytest.raises(MFSQuotaExceededError) as caught:
        fs.write_bytes("/f", bytes(size), space_timeout=0.12)
    assert time.monotonic() - started >= 0.12
    assert caught.value.available == before["free_bytes"]
    assert fs.stats() == before
    assert waiting(fs) == 0


@pytest.mark.parametrize("space_timeout", [0.0, -1.0, 0])
def test_without_a_time_it_is_refused_at_once(fs: MemoryFileSystem, space_timeout: float) -> None:
    fill(fs, 10 * KIB)
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/f", bytes(LARGE), space_timeout=space_timeout)
    with fs.open("/f", "wb", space_timeout=space_timeout) as handle, pytest.raises(MFSQuotaExceededError):
        handle.write(bytes(LARGE))


def test_more_than_the_quota_is_refused_at_once(fs: MemoryFileSystem) -> None:
    """Also when the rest of it is in the file already; waiting for ever, this would hang."""
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/f", bytes(QUOTA), space_timeout=None)
    with fs.open("/f", "wb", space_timeout=None) as handle:
        handle.write(bytes(QUOTA // 2))
        with pytest.raises(MFSQuotaExceededError):
            handle.write(bytes(QUOTA // 2))


def test_more_than_the_quota_of_the_directory_is_refused_at_once(fs: MemoryFileSystem) -> None:
    fs.mkdir("/d")
    fs.set_quota("/d", 10 * KIB)
    with pytest.raises(MFSDirectoryQuotaError):
        fs.write_bytes("/d/f", bytes(20 * KIB), space_timeout=None)


def test_nodes_are_not_waited_for(stores: Stores) -> None:
    fs = stores.private(max_nodes=2)
    fs.write_bytes("/f", b"")
    with pytest.raises(MFSNodeLimitExceededError):
        fs.write_bytes("/g", b"", space_timeout=None)


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), ("1", TypeError)])
def test_what_is_no_time(fs: MemoryFileSystem, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        fs.open("/f", "wb", space_timeout=value)
    with pytest.raises(error):
        fs.write_bytes("/f", b"x", space_timeout=value)
    assert fs.listdir("/") == []


# ---- what wakes


def _truncated(fs: MemoryFileSystem) -> None:
    with fs.open("/full", "r+b") as handle:
        handle.truncate(10)


FREEING: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "remove": lambda fs: fs.remove("/full"),
    "replace": lambda fs: fs.write_bytes("/full", b""),
    "truncate": _truncated,
    "rmtree": lambda fs: (fs.mkdir("/d"), fs.rename("/full", "/d/full"), fs.rmtree("/d")),
}


def _write(fs: MemoryFileSystem, mode: str, size: int, **options: Any) -> None:
    with fs.open("/f", mode, space_timeout=None, **options) as handle:
        handle.write(bytes(size))


def _truncate(fs: MemoryFileSystem) -> None:
    with fs.open("/f", "wb", space_timeout=None) as handle:
        handle.truncate(LARGE)


WRITING: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "write": lambda fs: _write(fs, "wb", LARGE),
    "append": lambda fs: _write(fs, "ab", LARGE),
    "preallocate": lambda fs: _write(fs, "xb", LARGE, preallocate=LARGE),
    "truncate": _truncate,
    "write-bytes": lambda fs: fs.write_bytes("/f", bytes(LARGE), space_timeout=None),
    "write-bytes-small": lambda fs: fs.write_bytes("/f", bytes(30 * KIB), space_timeout=None) and _truncate(fs),
}


@pytest.mark.parametrize("writing", WRITING)
@pytest.mark.parametrize("freeing", FREEING)
def test_it_goes_on_when_others_have_freed_enough(fs: MemoryFileSystem, writing: str, freeing: str) -> None:
    fill(fs, 10 * KIB)
    task = waits(fs, lambda: WRITING[writing](fs))
    FREEING[freeing](fs)
    task.result()
    assert fs.get_size("/f") == LARGE
    assert waiting(fs) == 0


def test_a_raised_limit_wakes(fs: MemoryFileSystem) -> None:
    fs.mkdir("/d")
    fs.set_quota("/d", 40 * KIB)
    fs.write_bytes("/d/a", bytes(20 * KIB))
    task = waits(fs, lambda: fs.write_bytes("/d/f", bytes(30 * KIB), space_timeout=None))
    fs.set_quota("/d", 60 * KIB)
    task.result()


def test_a_file_that_moves_away_wakes(fs: MemoryFileSystem) -> None:
    fs.mkdir("/d")
    fs.set_quota("/d", 40 * KIB)
    fs.write_bytes("/d/a", bytes(20 * KIB))
    task = waits(fs, lambda: fs.write_bytes("/d/f", bytes(30 * KIB), space_timeout=None))
    fs.move("/d/a", "/a")
    task.result()


def test_a_pinned_file_waits_for_its_copy(fs: MemoryFileSystem) -> None:
    """A writer leaves the content to the view and needs as much again."""
    fs.write_bytes("/f", b"x" * LARGE)
    view = fs.view("/f")
    fill(fs, 10 * KIB)

    def change() -> None:
        with fs.open("/f", "r+b", space_timeout=None) as handle:
            handle.write(b"y")

    task = waits(fs, change)
    fs.remove("/full")
    task.result()
    assert view[0] == ord("x")
    assert fs.read_bytes("/f")[:2] == b"yx"
    del view


def test_the_own_view_that_goes_frees(fs: MemoryFileSystem) -> None:
    """A view of this process leaves a note, which the one who waits works off himself."""
    fs.write_bytes("/v", bytes(LARGE))
    views = [fs.view("/v")]
    fs.remove("/v")
    fill(fs, 10 * KIB)
    task = waits(fs, lambda: fs.write_bytes("/f", bytes(LARGE - 8 * KIB), space_timeout=None))
    views.clear()
    task.result()


def _view_until_told(link: Link, fs: MemoryFileSystem) -> None:
    views = [fs.view("/v")]
    link.send("looking")
    link.recv()
    views.clear()
    fs.stats()
    link.send("gone")
    link.recv()


@pytest.mark.parametrize("dies", [False, True])
def test_the_view_of_another_process_frees_when_it_goes(fs: MemoryFileSystem, dies: bool) -> None:
    fs.write_bytes("/v", bytes(LARGE))
    with child("fork", _view_until_told, fs) as looker:
        looker.receive()
        fs.remove("/v")
        fill(fs, 10 * KIB)
        task = waits(fs, lambda: fs.write_bytes("/f", bytes(LARGE - 8 * KIB), space_timeout=None))
        if dies:
            looker.kill()
        else:
            looker.send("go")
            looker.receive()
            looker.send("end")
        task.result()


# ---- order


def test_they_go_in_order(fs: MemoryFileSystem) -> None:
    """Each needs what one file frees; the second gets nothing before the first."""
    size = 100 * KIB
    for number in range(8):
        fs.write_bytes(f"/{number}", bytes(size))
    fill(fs, 10 * KIB)
    tasks = [waits(fs, lambda n=n: fs.write_bytes(f"/w{n}", bytes(size), space_timeout=None)) for n in range(5)]
    for number, task in enumerate(tasks):
        fs.remove(f"/{number}")
        task.result()
        assert sorted(name for name in fs.listdir("/") if name[0] == "w") == [f"w{n}" for n in range(number + 1)]
        assert waiting(fs) == len(tasks) - 1 - number


def test_a_small_one_does_not_overtake_a_large_one_that_waits(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/a", bytes(100 * KIB))
    fs.write_bytes("/b", bytes(250 * KIB))
    fill(fs, 20 * KIB)
    large = waits(fs, lambda: fs.write_bytes("/large", bytes(LARGE), space_timeout=None))
    small = waits(fs, lambda: fs.write_bytes("/small", bytes(50 * KIB), space_timeout=None))
    fs.remove("/a")  # enough for the small one
    all_look(fs)
    assert waiting(fs) == 2
    fs.write_bytes("/passes", bytes(20 * KIB))  # it does not wait, and fits
    assert waiting(fs) == 2
    assert not fs.exists("/small")
    fs.remove("/passes")
    fs.remove("/b")
    large.result()
    small.result()


def test_who_gives_up_lets_those_behind_him_go(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/a", bytes(100 * KIB))
    fill(fs, 20 * KIB)
    large = waits(fs, lambda: refused(fs, MFSQuotaExceededError, 0.5))
    small = waits(fs, lambda: fs.write_bytes("/small", bytes(50 * KIB), space_timeout=None))
    fs.remove("/a")
    large.result()
    small.result()


def test_who_waits_for_a_directory_holds_up_only_those_who_do(fs: MemoryFileSystem) -> None:
    for path in "/d", "/e":
        fs.mkdir(path)
        fs.set_quota(path, 40 * KIB)
        fs.write_bytes(f"{path}/a", bytes(20 * KIB))
    first = waits(fs, lambda: fs.write_bytes("/d/f", bytes(30 * KIB), space_timeout=None))
    second = waits(fs, lambda: fs.write_bytes("/d/g", bytes(24 * KIB), space_timeout=None))
    other = waits(fs, lambda: fs.write_bytes("/e/f", bytes(30 * KIB), space_timeout=None))
    fs.remove("/e/a")
    other.result()
    assert waiting(fs) == 2
    fs.remove("/d/a")
    first.result()
    assert not second.done
    fs.remove("/d/f")
    second.result()


def test_the_lock_of_the_file_is_kept_and_no_mutex(fs: MemoryFileSystem) -> None:
    fill(fs, 10 * KIB)
    task = waits(fs, lambda: _write(fs, "wb", LARGE))
    with pytest.raises(MFSLockTimeoutError):
        fs.open("/f", lock_timeout=0.0)
    fs.write_bytes("/g", b"x")
    fs.rename("/g", "/h")
    fs.remove("/full")
    task.result()


# ---- those who die, stop, or are interrupted


def _produce(link: Link, fs: MemoryFileSystem, path: str, size: int) -> None:
    link.send("here")
    fs.write_bytes(path, bytes(size), space_timeout=None)
    link.send("done")


@contextlib.contextmanager
def _producer(fs: MemoryFileSystem, path: str, size: int) -> Iterator[Child]:
    """One more process that waits for space."""
    before = waiting(fs)
    with child("fork", _produce, fs, path, size) as producer:
        producer.receive()
        until(lambda: waiting(fs) == before + 1, "it waits")
        yield producer


@pytest.mark.parametrize("stops", [False, True])
def test_who_dies_or_stops_while_it_waits_holds_up_nobody(
    fs: MemoryFileSystem, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is room for it or not."""
    monkeypatch.setattr(space, "STALE_S", 0.2)
    fs.write_bytes("/a", bytes(150 * KIB))
    fill(fs, 20 * KIB)
    with contextlib.ExitStack() as children:
        large, following = (
            children.enter_context(_producer(fs, path, size)) for path, size in (("/large", LARGE), ("/next", 100 * KIB))
        )
        for producer in large, following:
            if stops:
                stop(fs, producer.pid)
            else:
                producer.kill()
        small = waits(fs, lambda: fs.write_bytes("/small", bytes(90 * KIB), space_timeout=None))
        fs.remove("/a")
        small.result()
        if stops:
            for producer in large, following:
                os.kill(producer.pid, signal.SIGCONT)
            fs.remove("/full")
            assert [large.receive(), following.receive()] == ["done", "done"]
    fs.trim()
    assert waiting(fs) == 0


def test_destroy_wakes_it(fs: MemoryFileSystem) -> None:
    fill(fs, 10 * KIB)
    task = waits(fs, lambda: refused(fs, MFSStoreGoneError, None))
    MemoryFileSystem.destroy(fs.name)
    task.result()


class Interruption(Exception):
    pass


def test_a_signal_handler_ends_it(fs: MemoryFileSystem) -> None:
    """What it raises comes out of the call, and nobody stands in the queue."""
    fill(fs, 10 * KIB)

    def raise_it(*_: Any) -> None:
        raise Interruption

    def strike() -> None:
        until(lambda: waiting(fs) == 1, "it waits")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    striking = threading.Thread(target=strike)
    try:
        striking.start()
        with pytest.raises(Interruption):
            fs.write_bytes("/f", bytes(LARGE), space_timeout=DEADLINE_S)
    finally:
        striking.join()
        signal.signal(signal.SIGUSR1, before)
    fs.stats()
    assert waiting(fs) == 0


def test_what_could_not_leave_the_queue_leaves_it_with_the_next_operation(
    fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fs, 10 * KIB)
    store: Any = fs._store

    def interrupted(*_: Any) -> None:
        raise Interruption

    with monkeypatch.context() as broken:
        broken.setattr(space.Space, "withdraw", interrupted)
        with pytest.raises(Interruption):
            fs.write_bytes("/f", bytes(LARGE), space_timeout=0.01)
    assert waiting(fs) == 1
    assert fs.check() == []
    assert waiting(fs) == 0
    assert store.space.waiting == set()


def test_without_semaphores_it_looks_again_and_again(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no place in the queue then."""
    store: Any = fs._store
    monkeypatch.setattr(store.rw, "_lease_park", lambda: None)
    fill(fs, 10 * KIB)
    task = Task(lambda: fs.write_bytes("/f", bytes(LARGE), space_timeout=None))
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/g", bytes(LARGE), space_timeout=0.1)
    assert waiting(fs) == 0
    assert not task.done
    fs.remove("/full")
    task.result()


def test_a_check_sees_a_broken_queue(fs: MemoryFileSystem) -> None:
    fill(fs, 10 * KIB)
    task = waits(fs, lambda: fs.write_bytes("/f", bytes(LARGE), space_timeout=None))
    store: Any = fs._store
    last = store.w[SPACE_LAST]
    store.w[SPACE_LAST] = 5
    assert any("queue for space ends with" in finding for finding in fs.check())
    store.w[SPACE_LAST] = last
    fs.remove("/full")
    task.result()
