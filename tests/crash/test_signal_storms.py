"""Real signals and real exceptions from other threads, at times of their own; and waits that signals do not lengthen.

What `test_interruptions` shows of every place, these show of the interpreter itself: a timer's signal whose handler raises
KeyboardInterrupt, and `PyThreadState_SetAsyncExc` from another thread, a few microseconds to some milliseconds into an
operation, while another process has the same files in use. In the end nothing is held, and the store is sound.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSLockTimeoutError

from ..conftest import Stores
from ..figures import INTERRUPTIONS
from ..lockstore import BOTH
from ..processes import DEADLINE_S, Link, call_in_child, child, held_open, until
from .harness import SEED
from .test_interruptions import part_and_all

pytestmark = pytest.mark.crash

PATHS = "/f/0", "/f/1", "/f/2"
SMALL, LARGE = b"s" * 700, b"l" * (80 << 10)


# ---- what is interrupted


class Churn:
    """Operations of all kinds on a few files, which come out as they may."""

    def __init__(self, fs: MemoryFileSystem, me: str, seed: int) -> None:
        self.fs = fs
        self.me = me
        self.chance = random.Random(seed)

    def once(self) -> None:
        """One operation; that others, or what an interrupted one has left, are in its way is no failure."""
        operation = self.chance.choice([self.write, self.put, self.read, self.look, self.move, self.tree, self.wait])
        with contextlib.suppress(OSError):
            operation(self.chance.choice(PATHS))

    def write(self, path: str) -> None:
        with self.fs.open(path, self.chance.choice(["wb", "ab", "r+b"]), lock_timeout=0.01) as handle:
            handle.write(self.chance.choice([SMALL, LARGE]))
            handle.truncate(self.chance.choice([10, 5000]))

    def put(self, path: str) -> None:
        self.fs.write_bytes(path, self.chance.choice([SMALL, LARGE]))

    def read(self, path: str) -> None:
        self.fs.read_bytes(path)

    def look(self, path: str) -> None:
        with self.fs.view(path) as view:
            bytes(view)

    def move(self, path: str) -> None:
        self.fs.copy(path, f"/{self.me}")
        self.fs.replace(f"/{self.me}", path)

    def tree(self, path: str) -> None:
        folder = f"/{self.me}.d"
        if self.fs.exists(folder):
            self.fs.rmtree(folder)
        self.fs.copy_tree("/f", folder)
        self.fs.rename(folder, f"{folder}2")
        self.fs.rmtree(f"{folder}2")

    def wait(self, path: str) -> None:
        with self.fs.open(path, "r+b", lock_timeout=DEADLINE_S):
            pass


def contend(link: Link, name: str) -> None:
    """Another process that has the files in use until it is told to end."""
    fs = MemoryFileSystem.attach(name)
    churn = Churn(fs, "other", SEED)
    link.send("ready")
    while not link._connection.poll():
        churn.once()
    fs.close()


@contextlib.contextmanager
def contended(stores: Stores, backend: str) -> Iterator[MemoryFileSystem]:
    """A store that another process works in; in the end it is sound, and nothing is held."""
    fs = stores.create(max_quota=4 << 20, backend=backend)
    fs.mkdir("/f")
    for path in PATHS:
        fs.write_bytes(path, SMALL)
    with child("fork", contend, fs.name) as other:
        assert other.receive() == "ready"
        yield fs
        other.send("end")
        other.receive()
        other.join()
    fs._store.relieve(None)
    assert fs.locks() == []
    for path in PATHS:
        fs.open(path, "wb", lock_timeout=0.0).close()
    for path in fs.listdir("/"):
        if path != "f":
            (fs.rmtree if fs.is_dir(path) else fs.remove)(path)
    assert fs.stats()["used_bytes"] == 0
    assert fs.check() == []


# ---- signals


def be_signalled(name: str, strikes: int, seed: int) -> int:
    """Churn under a timer's signal that raises KeyboardInterrupt, until it has struck so often."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None  # a finaliser that was struck
    chance = random.Random(seed)
    struck = [0]
    armed = [False]

    def handler(_number: int, _frame: Any) -> None:
        if armed[0]:
            struck[0] += 1
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    fs = MemoryFileSystem.attach(name)
    churn = Churn(fs, "victim", seed)
    while struck[0] < strikes:
        try:
            try:
                armed[0] = True
                signal.setitimer(
                    signal.ITIMER_REAL, chance.expovariate(1 / 0.0004) + 1e-6, 0.0003 if chance.random() < 0.1 else 0
                )
                churn.once()
            finally:
                armed[0] = False
        except KeyboardInterrupt:
            armed[0] = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    fs.close()
    return struck[0]


@pytest.mark.parametrize("strikes", part_and_all(500, 5000))
@pytest.mark.parametrize("backend", BOTH)
def test_signals(backend: str, strikes: int, stores: Stores, record_property: Callable[[str, object], None]) -> None:
    """KeyboardInterrupt from real signals, sometimes several in a row."""
    with contended(stores, backend) as fs:
        struck = call_in_child("fork", be_signalled, fs.name, strikes, SEED)
    record_property(INTERRUPTIONS, struck)


# ---- other threads


class Stray(BaseException):
    """Raised in a thread by another one."""


def be_shot_at(name: str, strikes: int, seed: int) -> int:
    """Two threads churn, and a third one raises exceptions in them."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    fs = MemoryFileSystem.attach(name)
    struck = [0, 0]
    end = threading.Event()

    def work(number: int) -> None:
        churn = Churn(fs, f"thread{number}", seed + number)
        while not end.is_set():
            with contextlib.suppress(Stray):
                try:
                    while not end.is_set():
                        churn.once()
                except Stray:
                    struck[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    chance, pause = random.Random(seed), threading.Event()
    while sum(struck) < strikes and all(thread.is_alive() for thread in threads):
        number = chance.randrange(2)
        before = struck[number]
        shoot(threads[number])
        until(lambda number=number, before=before: struck[number] > before or not threads[number].is_alive(), "it strikes")
        pause.wait(chance.expovariate(1 / 0.0005))
    end.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)
    gc.collect()
    fs.close()
    return sum(struck)


def shoot(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stray))


@pytest.mark.parametrize("strikes", part_and_all(100, 2000))
@pytest.mark.parametrize("backend", BOTH)
def test_exceptions_from_another_thread(
    backend: str, strikes: int, stores: Stores, record_property: Callable[[str, object], None]
) -> None:
    """PyThreadState_SetAsyncExc in threads that share the process's part of the store."""
    with contended(stores, backend) as fs:
        struck = call_in_child("fork", be_shot_at, fs.name, strikes, SEED)
    record_property(INTERRUPTIONS, struck)


# ---- waits


def wait_under_signals(name: str, timeouts: list[float]) -> list[float]:
    """How long waits for a file that is held last under a signal every millisecond, whose handler does nothing."""
    came = [0]

    def handler(_number: int, _frame: Any) -> None:
        came[0] += 1

    signal.signal(signal.SIGALRM, handler)
    fs = MemoryFileSystem.attach(name)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    lasted = []
    for timeout in timeouts:
        begin = time.monotonic()
        with pytest.raises(MFSLockTimeoutError):
            fs.open("/file", "r+b", lock_timeout=timeout)
        lasted.append(time.monotonic() - begin)
    signal.setitimer(signal.ITIMER_REAL, 0)
    fs.close()
    assert came[0] > 0
    return lasted


def test_waits_last_their_time(stores: Stores) -> None:
    """A wait ends at its timeout, whatever number of signals come, and one of 0 seconds tries once."""
    fs = stores.create()
    fs.write_bytes("/file", SMALL)
    timeouts = [0.0, 0.2, 0.5]
    with held_open(fs, "/file", "r+b"):
        lasted = call_in_child("fork", wait_under_signals, fs.name, timeouts)
    for timeout, real in zip(timeouts, lasted, strict=True):
        assert timeout <= real < timeout + DEADLINE_S / 2


def test_the_lock_comes_through_the_storm(stores: Stores) -> None:
    """Who waits under signals gets the lock when it is free."""
    fs = stores.create()
    fs.write_bytes("/file", SMALL)
    with child("fork", open_under_signals, fs.name) as waiting:
        with fs.open("/file", "r+b"):
            waiting.send("go")
            until(lambda: any(lock.state == "waiting" for lock in fs.locks()), "it waits")
        assert waiting.receive() == "opened"
        waiting.join()


def open_under_signals(link: Link, name: str) -> str:
    signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    fs = MemoryFileSystem.attach(name)
    link.recv()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    with fs.open("/file", "r+b", lock_timeout=DEADLINE_S):
        signal.setitimer(signal.ITIMER_REAL, 0)
    fs.close()
    return "opened"
