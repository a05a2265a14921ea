"""Publishers, claimers and waiters, killed at every point of what they do, with a thread of the peer that waits for it.

Whoever is killed, the thread has the file as soon as it is complete and nobody has it, though nobody but itself looks after
the dead, and nothing else is published that could wake it. It has nothing if there is nothing to be had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSTimeoutError
from dmemfs_shm.store.layout import S_SLEEPERS

from ..figures import KILL_POINTS
from ..lockstore import BOTH
from ..processes import Task, until
from .harness import Fault, kill_everywhere
from .operations import OTHER, SMALL, Case, Operation, call, run, setup_of, take_stock, write

pytestmark = pytest.mark.crash

PATTERN = "/q/**"


class Waiting(Case):
    """The peer has a thread that waits for a file of the queue, by wait_for or by claim."""

    wants: Callable[[Waiting], str]

    def fill(self, operation: Operation) -> None:
        super().fill(operation)
        self.over_there = False
        self.found: list[str] = []

    def somebody_waits(self) -> None:
        self.waiter = Task(self._wait)
        until(self._sleeps, "it sleeps")

    def _sleeps(self) -> bool:
        store = self.fs._store
        assert store is not None
        return bool(store.w[store.layout.slot_at(store.slot) + S_SLEEPERS])

    def _wait(self) -> None:
        while not self.over_there:
            with contextlib.suppress(MFSTimeoutError):
                self.found.append(self.wants())
                return

    def again(self, number: int) -> None:
        """The victim is dead: the waiter has what is there, or there is nothing."""
        fs = self.fs
        until(lambda: bool(self.found) or not self._is_to_be_had(), "the file is had")
        if not self.found:
            fs.mkdir("/q", exist_ok=True)
            fs.write_bytes("/q/last", OTHER)
        self.waiter.result()
        self.part()
        fs.trim()  # for shortness: who needs what the dead hold takes it back
        self.state, findings = take_stock(fs)
        self.findings += findings

    def _is_to_be_had(self) -> bool:
        """Whether a file stands in the queue that no living process has, and no dead one was writing."""
        fs = self.fs
        with contextlib.suppress(MFSTimeoutError):
            fs.wait_for(PATTERN, 0)
            return True
        return False

    def part(self) -> None:
        self.over_there = True
        super().part()


def wait(case: Waiting) -> str:
    return case.fs.wait_for(PATTERN, 60)


def take(case: Waiting) -> str:
    with case.fs.claim(PATTERN, 60) as claimed:
        return claimed.path


def then_wait(do: Callable[[MemoryFileSystem], Any] = lambda fs: None) -> Callable[[MemoryFileSystem, Fault], Any]:
    """The victim does something, and then the peer's thread begins to wait."""

    def ready(fs: MemoryFileSystem, fault: Fault) -> Any:
        held = do(fs)
        fault.ask("somebody_waits")
        return held

    return ready


def end(how: str) -> Callable[..., None]:
    return lambda _fs, _, claimed: getattr(claimed, how)()


def claim_it(fs: MemoryFileSystem) -> Any:
    return fs.claim(PATTERN)


def read_it(fs: MemoryFileSystem) -> Any:
    return fs.open("/q/x")


def new_queue(case: Case) -> None:
    case.fs.mkdir("/q")


def queue(case: Case) -> None:
    new_queue(case)
    case.fs.write_bytes("/q/x", SMALL)


#: What the victim does while the thread waits: it makes a file come, or gives back what it has.
PUBLISHING = {
    "close": Operation(write("/q/x", "wb", SMALL), (), new_queue, then_wait()),
    "write-bytes": Operation(call("write_bytes", "/q/x", SMALL), (), new_queue, then_wait()),
    "rename": Operation(call("rename", "/d/small", "/q/x"), (), new_queue, then_wait()),
    "replace": Operation(call("replace", "/d/small", "/q/x"), (), new_queue, then_wait()),
    "rename-directory": Operation(call("rename", "/d", "/q"), ready=then_wait()),
    "copy-tree": Operation(call("copy_tree", "/d", "/q"), ready=then_wait()),
    "release": Operation(end("release"), (), queue, then_wait(claim_it)),
    "done": Operation(end("done"), (), queue, then_wait(claim_it)),
}
RELEASING = {"last-reader": Operation(end("close"), (), queue, then_wait(read_it))}
CASES = [
    *((name, operation, want) for name, operation in PUBLISHING.items() for want in (wait, take)),
    *((name, operation, take) for name, operation in RELEASING.items()),
]


def cases() -> Iterator[Any]:
    """All of them on both backends; in `make test` some points of each on one."""
    for name, operation, want in CASES:
        for backend in BOTH:
            named = f"{name}-{want.__name__}"
            if backend == "generation":
                yield pytest.param(operation, want, backend, 30, id=f"{named}-a-part-{backend}")
            yield pytest.param(operation, want, backend, 1, id=f"{named}-all-{backend}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("operation", "want", "backend", "every"), list(cases()))
def test_nobody_waits_in_vain(
    operation: Operation,
    want: Callable[[Waiting], str],
    backend: str,
    every: int,
    record_property: Callable[[str, object], None],
) -> None:
    # Whether the thread sleeps when it is to be woken hangs on the clock: so does the last post of a semaphore.
    setup = setup_of(operation, backend, type("Wanting", (Waiting,), {"wants": want}))
    points = kill_everywhere(setup, run(operation), lambda case: case.findings, every=every, company=False, tries=5)
    record_property(KILL_POINTS, points)
