"""Signal handlers and finalisers that use the filesystem in the middle of its own operations.

At every instruction of an operation (see `interruptions`) something comes in that uses the same store: it is served, or
refused with MFSReentrantCallError if it came into a critical section, or refused as any other user would be (the file is
open). It never hangs, and what it came into ends as if nothing had been.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSDeadlockError, MFSFileOpenError, MFSLockTimeoutError, MFSReentrantCallError

from ..figures import INTERRUPTIONS
from .harness import SEED, Fault, run_child, short_slices
from .interruptions import Interruption
from .operations import OPERATIONS, OTHER, SMALL, setup_of, what_comes_of
from .test_interruptions import Judge, Victim, part_and_all

pytestmark = pytest.mark.crash

REFUSED = (MFSReentrantCallError, MFSLockTimeoutError, MFSDeadlockError, MFSFileOpenError)
ENTERED = [
    "create",
    "write-growing",
    "append-another-run",
    "overwrite",
    "write-over-pieces",
    "read",
    "truncate-large",
    "remove",
    "rename-directory",
    "replace",
    "mkdir-deep",
    "rmtree",
    "copy-large",
    "copy-tree",
    "write-bytes-over-large",
    "view-of-pieces",
    "write-into-viewed",
]


class Visitor:
    """What comes in: uses the store, and forgets what it was given."""

    def __init__(self, fs: MemoryFileSystem, chance: random.Random) -> None:
        self.fs = fs
        self.chance = chance
        self.outcomes: set[str] = set()

    def visit(self) -> None:
        for use in self.chance.sample([self.write, self.read, self.look, self.copy], 2):
            try:
                use()
            except REFUSED as error:
                self.outcomes.add(type(error).__name__)
            except FileNotFoundError:
                pass
            else:
                self.outcomes.add("served")

    def write(self) -> None:
        self.fs.write_bytes("/visitor", SMALL)
        self.fs.remove("/visitor")

    def read(self) -> None:
        for path in "/d/small", "/large", "/d/other":
            with self.fs.open(path, lock_timeout=0.0) as handle:
                handle.read()

    def look(self) -> None:
        with self.fs.view("/d/other") as view:
            assert bytes(view) == OTHER

    def copy(self) -> None:
        try:
            self.fs.copy_tree("/d/sub", "/visited")
        finally:
            self.fs.rmtree("/visited")


class Litter:
    """Garbage that only the collector finds: a handle that nobody closed, and a finaliser that visits."""

    def __init__(self, visitor: Visitor) -> None:
        self.itself = self
        self.visitor = visitor
        self.handle: Any = None

    def __del__(self) -> None:
        self.visitor.visit()


def collect(visitor: Visitor) -> None:
    litter = Litter(visitor)
    with contextlib.suppress(*REFUSED, FileNotFoundError):
        litter.handle = visitor.fs.open("/d/other", lock_timeout=0.0)
    del litter
    gc.collect()


def visited(name: str, come_in: Callable[[Visitor], None], most: int) -> Callable[[Judge, Fault], None]:
    def child(case: Judge, fault: Fault) -> None:
        victim = Victim(name, case, fault)
        count = victim.count()
        assert victim.fs is not None
        chance = random.Random(SEED)
        visitor = Visitor(victim.fs, chance)
        for number in sorted(chance.sample(range(count), min(count, most))):
            victim.suffer(Interruption(number, act=lambda: come_in(visitor)))
        fault.trace += [str(victim.struck), *visitor.outcomes]

    return child


@pytest.mark.parametrize("most", part_and_all(25, 400))
@pytest.mark.parametrize("come_in", [Visitor.visit, collect], ids=["handler", "finaliser"])
@pytest.mark.parametrize("name", ENTERED)
def test_entered(
    name: str, come_in: Callable[[Visitor], None], most: int, record_property: Callable[[str, object], None]
) -> None:
    """Served or refused, and the operation is done."""
    operation = OPERATIONS[name]
    setup = setup_of(operation, "generation", Judge)
    after = what_comes_of(operation, setup)
    with short_slices(), setup() as case:
        case.operation, case.written, case.wanted = operation, operation.written, (after,)
        status, messages = run_child(visited(name, come_in, most), case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        assert case.findings == []
    struck, *outcomes = messages[0].split()[1:]
    assert outcomes and (name == "mkdir-deep" or "served" in outcomes)
    record_property(INTERRUPTIONS, int(struck))
