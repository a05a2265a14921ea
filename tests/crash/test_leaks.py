"""Nothing grows: not in /dev/shm, not in a process that lives on, however many others come, die in any state, and go.

Participants are killed in the middle of whatever they do, by turns, while a peer that was there from the start works on.
What is counted is exact where it can be: entries of /dev/shm, the memory behind them, descriptors, mappings. A process's
own memory is asked of the kernel (RssAnon), since what leaks outside Python's allocator no tracer of Python's sees; it may
differ by some pages that the allocator keeps, so that a leak is seen from about 300 bytes a cycle on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.store import names
from dmemfs_shm.store.layout import RECOVERIES

from ..conftest import MIB, Stores, entries_of, mark_of
from ..figures import CYCLES
from ..lockstore import BOTH, inside
from ..processes import DEADLINE_S, Child, Link, Task, child
from .harness import SEED, short_slices

pytestmark = pytest.mark.crash

SLACK_KIB = 256  # pages that Python's allocator keeps
MAPPINGS_SLACK = 8  # it maps some
AT_IT = "still at it"
COUNTS = [pytest.param(100, id="a-tenth"), pytest.param(1000, id="all", marks=pytest.mark.slow)]
counts = pytest.mark.parametrize("count", COUNTS)
Record = Callable[[str, object], None]


class Size(NamedTuple):
    """What a process has of the kernel's."""

    descriptors: int
    mappings: int
    anonymous_kib: int

    def growth(self, later: Size) -> list[str]:
        """What has become more than it may."""
        found = [f"{later.descriptors - self.descriptors} descriptors more"] * (later.descriptors > self.descriptors)
        found += [f"{later.mappings - self.mappings} mappings more"] * (later.mappings > self.mappings + MAPPINGS_SLACK)
        more = later.anonymous_kib - self.anonymous_kib
        return found + [f"{more} KiB more of its own memory"] * (more > SLACK_KIB)


def size() -> Size:
    """Of the calling process."""
    gc.collect()
    with open("/proc/self/status") as status:
        anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
    with open("/proc/self/maps") as maps:
        return Size(len(os.listdir("/proc/self/fd")), sum(1 for _ in maps), anonymous)


def shared_size(fs: MemoryFileSystem) -> tuple[list[str], int]:
    """The kinds of a store's entries in /dev/shm, and the KiB of memory behind them."""
    entries = [*entries_of(mark_of(fs)), names.index_name(fs.name).lstrip("/")]
    kinds = sorted(entry.rpartition(".m")[0] + entry.rpartition(".m")[2].split(".")[0] for entry in entries)  # any generation
    return kinds, sum(os.stat(f"/dev/shm/{entry}").st_blocks for entry in entries) // 2


# ---- dying in every state


def idle(fs: MemoryFileSystem) -> None:
    fs.listdir("/")


def reading(fs: MemoryFileSystem) -> None:
    kept.append(fs.open("/read"))


def writing(fs: MemoryFileSystem) -> None:
    handle = fs.open("/written", "wb")
    handle.write(bytes(30_000))
    kept.append(handle)


def viewing(fs: MemoryFileSystem) -> None:
    kept.append(fs.view("/read"))
    fs.write_bytes("/read", bytes(5000))


def waiting(fs: MemoryFileSystem) -> None:
    fs._attached().relieve_locks = die  # type: ignore[method-assign]
    reading(fs)
    Task(fs.open, "/read", "r+b").result()


def copying(fs: MemoryFileSystem) -> None:
    fs._attached().grafts._end_copy = die  # type: ignore[method-assign]
    fs.copy_tree("/tree", "/copy")


def in_a_section(fs: MemoryFileSystem) -> None:
    inside(fs._attached(), 0, die)


def in_another(fs: MemoryFileSystem) -> None:
    inside(fs._attached(), 1 + len(kept) % 16, die)


def with_a_token(fs: MemoryFileSystem) -> None:
    if fs.info()["backend"] == "generation":
        store = fs._attached()
        inside(store, 5, lambda: None)
        store.mutexes[5]._semaphore.acquire(1)


kept: list[Any] = []
STATES = (idle, reading, writing, viewing, waiting, copying, in_a_section, in_another, with_a_token)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attach_and_die(name: str, state: Callable[[MemoryFileSystem], None]) -> None:
    """A process that attaches, comes into that state, and is killed."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            state(MemoryFileSystem.attach(name))
            die()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{state.__name__} did not come so far"


def work_on(link: Link, name: str) -> None:
    """The peer: whenever it is asked, do something of everything, and say what it has of the kernel's."""
    fs = MemoryFileSystem.attach(name)
    while link.recv():
        with fs.open("/read", "r+b", lock_timeout=DEADLINE_S) as handle:
            handle.write(b"again")
        fs.write_bytes("/written", bytes(3000))
        fs.rename("/written", "/renamed")
        fs.remove("/renamed")
        with fs.view("/read") as view:
            assert bytes(view[:5]) == b"again"
        fs._attached().reap_dead(DEADLINE_S)
        fs._attached().work_off()
        fs._attached().sweep.drain()
        link.send(size())


@counts
@pytest.mark.parametrize("backend", BOTH)
def test_attach_and_kill(stores: Stores, backend: str, count: int, record_property: Record) -> None:
    """However many are killed in whatever state: the store, and a peer that lives through it all, are as large as before."""
    fs = stores.create(backend=backend, max_quota=MIB)
    fs.write_bytes("/read", bytes(5000))
    fs.mkdir("/tree/sub")
    fs.write_bytes("/tree/sub/f", bytes(10_000))
    chance = random.Random(SEED)
    order = [state for _ in range(-(-count // len(STATES))) for state in chance.sample(STATES, len(STATES))]
    with short_slices(), child("fork", work_on, fs.name) as peer:

        def cycle(state: Callable[[MemoryFileSystem], None]) -> Size:
            attach_and_die(fs.name, state)
            peer.send("work")
            after: Size = peer.receive()
            return after

        for state in (*STATES, *STATES, *STATES):  # until everything has been touched that will ever be
            cycle(state)
        shared, used, before = shared_size(fs), fs.stats(), cycle(idle)
        for number, state in enumerate(order):
            after = cycle(state)
            if number % 50 == 0:
                assert fs.check() == [], f"after cycle {number}, {state.__name__}, seed {SEED}"
        assert before.growth(after) == [], f"in {len(order)} cycles, seed {SEED}"
        assert shared_size(fs) == shared
        assert fs.stats() == used and fs.locks() == [] and fs.check() == []
        assert len(fs.participants()) <= 4
        if backend == "generation":
            assert fs._attached().w[RECOVERIES] >= len(order) // len(STATES) * 3
    record_property(CYCLES, len(order))


# ---- stores and children that come and go


def sizes_of(link: Link, count: int, cycle: Callable[[int], None]) -> list[str]:
    """In a process of its own: what grows in so many cycles."""
    for number in range(20):
        cycle(number)
    before = size()
    for number in range(count):
        cycle(number)
        if number % 20 == 0:
            link.send(AT_IT)
    return before.growth(size())


def grown(maker: Child) -> list[str]:
    """What a process that runs `sizes_of` says in the end; the deadline is for a few cycles, not for all."""
    while (said := maker.receive()) == AT_IT:
        pass
    return list(said)


def make_and_destroy(number: int) -> None:
    """A private store that is closed, or collected, with a view or without; nothing is left of it."""
    fs = MemoryFileSystem(max_quota=MIB)
    mark = mark_of(fs)
    fs.write_bytes("/f", bytes(5000))
    with fs.open("/f") as handle:
        handle.read()
    del handle
    if number % 3 == 0:
        fs.close()
    elif number % 3 == 1:
        with fs.view("/f") as view:
            assert len(view) == 5000
        del view
    del fs
    gc.collect()
    assert entries_of(mark) == []


@counts
def test_private_stores_of_one_process(count: int) -> None:
    """Closed or collected, with a view or without."""
    with child("fork", sizes_of, count, make_and_destroy) as maker:
        assert grown(maker) == []
        maker.join()


def fork_children(link: Link, name: str, count: int) -> list[str]:
    """Fork children that use the store and end by returning, by os._exit, or killed."""
    fs = MemoryFileSystem.attach(name)

    def cycle(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with fs.open("/f", "r+b", lock_timeout=DEADLINE_S) as handle:
                    handle.write(b"x")
                    if number % 3 == 2:
                        die()
                code = 0
                if number % 3 == 0:
                    from dmemfs_shm.filesystem import close_all

                    close_all()  # what the interpreter does at its end; the rest of its end is the test runner's
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if number % 3 == 2 else 0)
        with fs.open("/f", "wb", lock_timeout=DEADLINE_S) as handle:
            handle.write(b"x")

    return sizes_of(link, count, cycle)


@counts
def test_children_that_end_in_each_way(stores: Stores, count: int, record_property: Record) -> None:
    """The parent, and the store, stay as they are."""
    fs = stores.create(max_quota=MIB)
    fs.write_bytes("/f", b"x")
    with short_slices(), child("fork", fork_children, fs.name, 3) as parent:
        assert grown(parent) == []
    shared = shared_size(fs)
    with short_slices(), child("fork", fork_children, fs.name, count) as parent:
        assert grown(parent) == []
    assert shared_size(fs) == shared and fs.locks() == [] and fs.check() == []
    record_property(CYCLES, count // 3)
