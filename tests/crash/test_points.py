"""What the other crash tests rest on: that nothing happens between two points which others could see.

Shown twice. The engine's sources call nothing in `os`, `posix_ipc`, `fcntl` and `mmap` but what has a point, or what
others do not notice; a new call fails here until it is in either list. And each operation is run with a look, at every
point, at all that others can see of the store: the bytes of its segments and semaphores, their names and sizes, and the
locks of its index. What has changed since the point before must be what that point was for.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dmemfs_shm
from dmemfs_shm.store import names
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.layout import LB_INIT, LB_LIFE, LB_MUTEX, LB_SLOT, MUTEXES, PAGE

from ..lockstore import BOTH
from .harness import SEED, Fault, data_stores, run_child, short_slices
from .operations import OPERATIONS, Case, run, setup_of

pytestmark = pytest.mark.crash

#: Calls around which `system_calls` and `data_stores` put points.
POINTED = {
    "fcntl.fcntl",
    "mmap.mmap",
    "os.close",
    "os.ftruncate",
    "os.posix_fallocate",
    "os.pwrite",
    "os.rename",
    "posix_ipc.Semaphore",
    "posix_ipc.SharedMemory",
    "posix_ipc.unlink_semaphore",
    "posix_ipc.unlink_shared_memory",
}

#: Calls that others do not notice: they look, or change what is this process's own.
UNNOTICED = {
    "os.dup",
    "os.fsdecode",
    "os.fspath",
    "os.fstat",
    "os.geteuid",
    "os.getpid",
    "os.listdir",
    "os.lseek",
    "os.pread",
    "os.register_at_fork",
    "os.stat",
    "os.statvfs",
    "os.strerror",
    "os.uname",
}

SEEN = ("os", "posix_ipc", "fcntl", "mmap")


def calls_of(source: str) -> Iterator[str]:
    """module.function of each call into the modules that are looked at."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if node.func.value.id in SEEN:
                yield f"{node.func.value.id}.{node.func.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in SEEN:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def engine() -> Iterator[Path]:
    folder = Path(dmemfs_shm.__file__).parent
    yield from folder.glob("*.py")
    yield from folder.glob("store/*.py")


def test_no_call_is_without_a_point() -> None:
    """The engine's system calls are those of the two lists, and none of these is out of date."""
    called = {call for path in engine() for call in calls_of(path.read_text(encoding="utf-8"))}
    assert called == POINTED | UNNOTICED


# ---- nothing happens in between

#: What may be changed after a point: words or bytes of segments, semaphores' values, which entries there are, locks.
CHANGES = {
    "store": {"words"},
    "bytes": {"bytes"},
    "half": {"bytes"},
    "sem_take": {"semaphores"},
    "sem_post": {"semaphores"},
    "sem_open": {"entries", "semaphores"},
    "sem_unlink": {"entries"},
    "unlink_semaphore": {"entries"},
    "unlink_shared_memory": {"entries"},
    "SharedMemory": {"entries"},
    "rename": {"entries"},
    "ftruncate": {"entries"},
    "posix_fallocate": {"entries"},
    "pwrite": {"words"},
    "lock": {"locks"},
    "unlock": {"locks"},
    "close": {"locks"},
}


Pages = dict[int, bytes]
LOCKS = (*range(LB_INIT, LB_LIFE + 1), *range(LB_MUTEX, LB_MUTEX + MUTEXES), *range(LB_SLOT, LB_SLOT + 8))
NOTHING = bytes(PAGE)


class Sight:
    """All that others can see of a store at one moment."""

    def __init__(self, mark: str, index: ByteLocks) -> None:
        full = index.name.lstrip("/")
        self.locks = [(index.is_free(byte), index.is_locked_exclusively(byte)) for byte in LOCKS]
        self.files: dict[str, Pages] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        for entry in sorted(os.listdir("/dev/shm")):
            if mark in entry or entry == full:
                with contextlib.suppress(FileNotFoundError), open(f"/dev/shm/{entry}", "rb") as file:
                    stat = os.fstat(file.fileno())
                    self.sizes[entry] = stat.st_size, stat.st_blocks
                    self.files[entry] = pages_of(file.fileno(), stat.st_size)


def pages_of(fd: int, size: int) -> Pages:
    """The pages of a sparse file in which anything is stored."""
    pages, at = {}, 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        data = os.pread(fd, at - start, start)
        pages.update({start + i: page for i in range(0, len(data), PAGE) if (page := data[i : i + PAGE]) != NOTHING})
    return pages


def difference(before: Sight, now: Sight) -> set[str]:
    found = set()
    if before.sizes != now.sizes:
        found.add("entries")
    if before.locks != now.locks:
        found.add("locks")
    for entry in before.files.keys() & now.files.keys():
        old, new = before.files[entry], now.files[entry]
        if old != new and before.sizes[entry] == now.sizes[entry]:
            found.add("semaphores" if entry.startswith("sem.") else size_of_change(old, new))
    return found


def size_of_change(old: Pages, new: Pages) -> str:
    """ "words" if it lies in one word, else "bytes"."""
    changed = 0
    for at in old.keys() | new.keys():
        one, other = old.get(at, NOTHING), new.get(at, NOTHING)
        if one != other:
            changed += sum(a != b for a, b in zip(memoryview(one).cast("Q"), memoryview(other).cast("Q"), strict=True))
    return "words" if changed == 1 else "bytes"


class Witness(Fault):
    """Looks at each point at what others see."""

    def __init__(self, link: Any, mark: str, full: str) -> None:
        super().__init__(None, lambda _: None, link)
        self.marks = mark, ByteLocks(full)  # asked through a description of its own
        self.last: Sight | None = None
        self.wrong: list[str] = []

    def point(self, what: str) -> None:
        length = len(self.trace)
        super().point(what)
        if len(self.trace) == length:
            return
        self.armed = False
        now = Sight(*self.marks)
        if self.last is not None:
            before = self.trace[length - 1] if length else "nothing"
            allowed = CHANGES.get(before, set())
            if "bytes" in allowed:
                allowed = allowed | {"words"}
            if what == "half":  # the first half of what was announced before
                allowed = allowed | {"bytes"}
            more = difference(self.last, now) - allowed
            if more:
                self.wrong.append(f"{more} changed after {before!r}, point {length - 1}, before {what!r}")
        self.last = now
        self.armed = True


def witnessed(operation: Any) -> Callable[[Case, Fault], None]:
    real = run(operation)

    def child(case: Case, fault: Fault) -> None:
        witness = Witness(fault.link, case.fs.uuid.hex, names.index_name(case.name))
        with data_stores(witness.point):
            real(case, witness)
        witness.disarm()
        for wrong in witness.wrong:
            fault.tell(wrong)
        fault.tell(f"looked {len(witness.trace)}")

    return child


def cases() -> list[Any]:
    """All operations in which nobody else is at work, on both backends; most of them are left for `make crash`."""
    alone = [name for name in OPERATIONS if not name.startswith("space-") and not re.search("hands?-over", name)]
    pairs = list(itertools.product(alone, BOTH))
    few = random.Random(SEED).sample(pairs, len(pairs) // 6)
    return [pytest.param(*pair, id="-".join(pair), marks=() if pair in few else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("name", "backend"), cases())
def test_nothing_happens_between_points(name: str, backend: str) -> None:
    """What others see changes by what has a point, and by one of these at a time."""
    operation = OPERATIONS[name]
    with short_slices(), setup_of(operation, backend)() as case:
        status, messages = run_child(witnessed(operation), case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        outcomes = [message for message in messages if message.startswith("outcome")]
        assert len(outcomes) == 1 and "looked" in outcomes[0], outcomes
