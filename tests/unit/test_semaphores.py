"""Named semaphores: what signals do to a sleep on one."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc
import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.store import attachment
from dmemfs_shm.store.semaphores import create_semaphore, open_semaphore, sleep_on, unlink_semaphore

from ..conftest import Stores
from ..processes import DEADLINE_S, Link, Task, child, until

LONG_S = 60.0
SOON_S = 0.02


class Told(Exception):
    """What a signal handler says."""


@pytest.fixture
def semaphore() -> Iterator[posix_ipc.Semaphore]:
    name = f"/dmemfs-t{os.getpid()}-{uuid.uuid4().hex[:12]}"
    create_semaphore(name, 0)
    opened = open_semaphore(name)
    unlink_semaphore(name)
    yield opened
    opened.close()


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def tell(number: int, _frame: Any) -> None:
        raise Told(number)

    before = signal.signal(signal.SIGUSR1, tell)
    yield
    signal.signal(signal.SIGUSR1, before)


def soon(function: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(SOON_S, function)
    timer.start()
    return timer


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_a_token_is_taken(semaphore: posix_ipc.Semaphore) -> None:
    assert not sleep_on(semaphore, 0.001)
    semaphore.release()
    assert sleep_on(semaphore, LONG_S)
    assert not sleep_on(semaphore, 0.001)


def test_a_sleeper_is_woken(semaphore: posix_ipc.Semaphore) -> None:
    timer = soon(semaphore.release)
    assert sleep_on(semaphore, LONG_S)
    timer.join()


def test_what_a_handler_raises_is_raised(semaphore: posix_ipc.Semaphore, handler: None) -> None:
    """Also when the signal came before the sleep, or comes in it; and nothing stays blocked."""
    before = blocked()
    timer = soon(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Told):
        while True:
            assert not sleep_on(semaphore, SOON_S)
    timer.join()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert not sleep_on(semaphore, 0.001)  # whoever blocks it himself does not get it here
        assert blocked() == {*before, signal.SIGUSR1}
        with pytest.raises(Told):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert blocked() == before


def test_other_threads_sleep_as_they_are(semaphore: posix_ipc.Semaphore) -> None:
    """No handler runs there, and what is blocked there is theirs."""
    seen: list[set[int]] = []
    sleeping = threading.Event()

    def sleep() -> bool:
        sleeping.set()
        woken = sleep_on(semaphore, LONG_S)
        seen.append(blocked())
        return woken

    task = Task(sleep)
    assert sleeping.wait(DEADLINE_S)
    semaphore.release()
    assert task.result()
    assert seen == [blocked()]


# ---- workers that are told to end while they wait


def tell_to_exit(number: int, _frame: Any) -> None:
    raise SystemExit(number)


def wait_for_a_file(link: Link, name: str) -> None:
    signal.signal(signal.SIGTERM, tell_to_exit)
    fs = MemoryFileSystem.attach(name)
    link.send("attached")
    try:
        fs.open("/f", "r+b")
    except SystemExit:
        assert fs.locks()[0].pid != os.getpid()
        assert len(fs.locks()) == 1
        fs.close()
        return
    raise AssertionError("opened")


def test_a_waiter_for_a_file_can_be_told_to_exit(stores: Stores) -> None:
    fs = stores.create()
    fs.write_bytes("/f", b"x")
    with fs.open("/f", "r+b"), child("fork", wait_for_a_file, fs.name) as waiting:
        waiting.receive()
        until(lambda: len(fs.locks()) == 2, "it waits")
        os.kill(waiting.pid, signal.SIGTERM)
        assert waiting.receive() is None
        waiting.join()


def wait_for_a_mutex(link: Link, name: str) -> None:
    signal.signal(signal.SIGALRM, tell_to_exit)
    fs = MemoryFileSystem.attach(name)
    link.send("attached")
    link.recv()
    signal.setitimer(signal.ITIMER_REAL, SOON_S)
    with pytest.raises(SystemExit):
        fs.mkdir("/new")
    link.send("told")
    link.recv()
    assert not fs.exists("/new")
    fs.close()


def test_a_waiter_for_a_mutex_can_be_told_to_exit(stores: Stores) -> None:
    fs = stores.create()
    store = attachment.attach(fs.name)
    with child("fork", wait_for_a_mutex, fs.name) as waiting:
        waiting.receive()
        thread = store.threads.enter()
        store.mutexes[0].acquire(thread)
        try:
            waiting.send("taken")
            assert waiting.receive() == "told"
        finally:
            store.mutexes[0].release(thread)
        waiting.send("go on")
        assert waiting.receive() is None
        waiting.join()
    attachment.release(store)
