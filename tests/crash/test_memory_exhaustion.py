"""Every kind of operation, with each allocation of memory failing in turn: the first, the second, ... until it is not met.

A child does the operation, in which Python's n-th allocation fails (CPython's own `_testcapi.set_nomemory`): that one
alone, or a thousand of them, which few operations outlast. (With memory gone for good CPython 3.11 can't even unwind: it
tries for ever to allocate the number of the instruction that it returns to.) Then:

  * the operation has happened, or it raised MemoryError (or an error of ours that came of it), and `check` finds nothing;
  * the others go on at once after a single failure; after a shortage that lasted, when the child has done anything else,
    for it could not even undo what it had begun;
  * the same process can do the same again; what is locked is given back; the quota is what the files cost.

Python itself may not survive, or leak for ever what a frame had (a pin's lease): such a child has died as of a kill, and the
others go on. How often that was is printed.

(Address space that ends, so that mappings and large buffers fail, is among the limits of test_faults.)
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

from dmemfs_shm import MemoryFileSystem, MFSError, view
from dmemfs_shm.store import identity
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.lease import Lease

from ..figures import ALLOCATIONS
from ..lockstore import BOTH
from ..processes import Task
from . import harness
from .harness import SEED, run_child, short_slices
from .operations import LARGE, LARGER, OTHER, SMALL, Operation, State, look, setup_of
from .test_faults import AMOUNT, Scene, pass_through

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(
        importlib.util.find_spec("_testcapi") is None, reason="this Python was built without _testcapi: nothing can starve it"
    ),
]

SOME = {"generation": 12, "ofd": 4}  # of the allocations of an operation
MANY = 1000
EACH = 60  # of the first allocations each one, then one in so many
STEP = {"generation": 5, "ofd": 50}
PYTHONS_OWN = (MemoryError, SystemError, ctypes.ArgumentError)  # the others where it does not say the first
COURSE = 60  # as many failures has one child
ENOUGH = 5000  # allocations after which one that was to fail must have failed
assert view  # what is imported when it is first needed is imported here: an import that starves stays broken


class Meal(NamedTuple):
    """What a child does when memory ends: do(fs, case); before(fs, case) comes first, unharmed."""

    do: Callable[[Any, Any], Any]
    before: Callable[[Any, Any], Any] = lambda fs, case: None


def write(path: str, mode: str, *pieces: bytes) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.open(path, mode) as handle:
            for piece in pieces:
                handle.write(piece)

    return do


def truncate(fs: MemoryFileSystem, _: Any) -> None:
    with fs.open("/d/small", "r+b") as handle:
        handle.truncate(100)


def look_around(fs: MemoryFileSystem, _: Any) -> None:
    assert fs.listdir("/d")
    assert fs.glob("/d/**")
    assert fs.stat("/large")["size"] == len(LARGE)
    assert fs.stats()["file_count"]


def hold_view(fs: MemoryFileSystem, _: Any) -> None:
    with fs.view("/d/small") as seen:
        assert bytes(seen) == SMALL
    fs.stats()


def attach(fs: MemoryFileSystem, case: Any) -> None:
    case.other = MemoryFileSystem.attach(case.name)


def detach(fs: MemoryFileSystem, case: Any) -> None:
    """The next to attach takes a slot and maps everything anew."""
    fs.close()


MEALS: dict[str, Meal] = {
    "create": Meal(write("/d/x", "xb", SMALL, LARGE)),
    "write-over": Meal(write("/d/small", "wb", OTHER)),
    "append": Meal(write("/large", "ab", SMALL, LARGER)),
    "truncate": Meal(truncate),
    "read": Meal(lambda fs, _: fs.open("/d/small").close()),
    "read-bytes": Meal(lambda fs, _: fs.read_bytes("/large")),
    "write-bytes": Meal(lambda fs, _: fs.write_bytes("/d/small", OTHER)),
    "write-bytes-large": Meal(lambda fs, _: fs.write_bytes("/large", LARGER)),
    "remove": Meal(lambda fs, _: fs.remove("/large")),
    "rename": Meal(lambda fs, _: fs.rename("/d/small", "/d/sub/x")),
    "rename-directory": Meal(lambda fs, _: fs.rename("/d", "/x")),
    "replace": Meal(lambda fs, _: fs.replace("/d/small", "/large")),
    "mkdir": Meal(lambda fs, _: fs.mkdir("/empty/x/y")),
    "rmtree": Meal(lambda fs, _: fs.rmtree("/d")),
    "copy": Meal(lambda fs, _: fs.copy("/large", "/x")),
    "copy-tree": Meal(lambda fs, _: fs.copy_tree("/d", "/x")),
    "look-around": Meal(look_around),
    "view": Meal(hold_view),
    "trim": Meal(lambda fs, _: fs.trim(), lambda fs, _: fs.remove("/large")),
    "attach": Meal(attach, detach),
    "close": Meal(lambda fs, _: fs.close()),
}


class Table(Scene):
    """The peer, and how far the child has come."""

    def __init__(self, name: str, fs: MemoryFileSystem) -> None:
        super().__init__(name, fs)
        self.other: Any = None
        self.used = 0
        self.reached = 0
        self.many = 0
        self.met = True

    def not_met(self) -> None:
        self.met = False

    def answer(self, request: str) -> None:
        if request.startswith("at:"):
            self.met = True
            self.reached, self.many = (int(part) for part in request.split(":")[1:])
        else:
            before = len(self.findings)
            super().answer(request)
            self.findings[before:] = [f"allocation {self.reached}: {finding}" for finding in self.findings[before:]]


class Eater:
    """A child that does the same with each of these allocations failing: (which, whether many)."""

    def __init__(self, meal: Meal, failures: list[tuple[int, bool]]) -> None:
        self.meal = meal
        self.failures = failures
        self.fs: Any = None

    def live(self, case: Table, link: harness.Fault) -> None:
        sys.unraisablehook = lambda _: None  # what could not be said for want of memory
        gc.freeze()  # what is looked at below is what is made from here on
        self.fs = MemoryFileSystem.attach(case.name)
        look(self.fs)
        for number, many in self.failures:
            link.ask(f"at:{number}:{many:d}")
            self.meal.before(self.fs, case)
            where = f"allocation {number} {'and a thousand' if many else 'alone'}"
            try:
                was_met = starve(lambda: self.meal.do(self.fs, case), number, many=many)
                self._mend(case, link, many=many)
            except BaseException as error:
                raise AssertionError(where) from error
            if not was_met:
                link.ask("not_met")
                break
        self.fs.close()

    def _mend(self, case: Table, link: harness.Fault, *, many: bool) -> None:
        if case.other is not None:
            self.fs, case.other = case.other, None
        gc.collect()
        if many:
            die_if_python_leaked()
        if self.fs._store is None:
            self.fs = MemoryFileSystem.attach(case.name)
        fs = self.fs
        if many:
            pass_through(fs._store)
        link.ask("others_go_on")
        fs.trim()  # for shortness: who runs short takes back what could not be given back then
        assert fs.check() == []
        assert [lock for lock in fs.locks() if lock.pid == os.getpid()] == [], "it holds on to a lock"
        restore(fs, case.before)
        assert look(fs) == case.before
        assert fs.info()["orphaned"] == 0
        assert fs.stats()["used_bytes"] == case.used
        gates = [mutex.number for mutex in fs._store.mutexes if mutex._gate or mutex._waiting]
        assert not gates, f"the gates of {gates} are shut"


def die_if_python_leaked() -> None:
    """Die as of a kill if a lease, or a description that has locks, is alive though nothing refers to it (or only a list does
    to which nothing refers).

    CPython 3.11 leaks what a frame has if it runs short itself while it ends that frame. No Python code can give it back;
    the end of the process does.
    """
    identity._close_dropped()
    alive = gc.get_objects()
    held = {id(it) for one in alive for it in gc.get_referents(one)}
    held = {id(it) for one in alive if type(one) is not list or id(one) in held for it in gc.get_referents(one)}
    if any(isinstance(one, (Lease, ByteLocks)) and id(one) not in held for one in alive):
        os.kill(os.getpid(), signal.SIGKILL)


def starve(do: Callable[[], Any], number: int, *, many: bool) -> bool:
    """Run do() without memory from its *number*-th allocation on, or for that one; whether it came so far."""
    import _testcapi

    remove = _testcapi.remove_mem_hooks
    _testcapi.set_nomemory(number - 1, number - 1 + (MANY if many else 1))
    try:
        do()
    except BaseException as error:
        remove()
        if not isinstance(error, (*PYTHONS_OWN, MFSError, OSError)) and not str(error).startswith("can't allocate"):
            raise
        return True
    try:
        for _ in range(ENOUGH):
            bytearray(600)
    except MemoryError:
        remove()
        return many  # then nothing tells whether it was this one, or one before
    remove()
    return True


def restore(fs: MemoryFileSystem, before: State) -> None:
    """Make everything what it was."""
    now = look(fs)
    for path in sorted(now, reverse=True):
        if path not in before:
            fs.remove(path) if now[path] is not None else fs.rmtree(path)
    for path, what in sorted(before.items()):
        if what is None:
            fs.mkdir(path, exist_ok=True)
        elif now.get(path) != what:
            fs.write_bytes(path, what)


def serve(case: Table, meal: Meal, numbers: Iterable[int]) -> tuple[int, int]:
    """Let these allocations fail in children, until one is not met: how many failed, and how often Python died of it."""
    failures = [(number, many) for number in numbers for many in (False, True)]
    met = deaths = 0
    while failures:
        course = failures[:COURSE]
        status, messages = run_child(Eater(meal, course).live, case, None)
        code = os.waitstatus_to_exitcode(status)
        assert code <= 0, "\n".join(messages)
        if code < 0:
            deaths += 1
            Task(case.again, 0).result()
            restore(case.fs, case.before)
        done = course.index((case.reached, bool(case.many))) + (code < 0 or case.met)
        met, failures = met + done, failures[done:]
        if not case.met and code == 0:
            break
    return met, deaths


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("all_of_them", AMOUNT)
@pytest.mark.parametrize("name", MEALS)
def test_operation(name: str, all_of_them: bool, backend: str, record_property: Callable[[str, object], None]) -> None:
    with short_slices(), setup_of(Operation(lambda: None), backend, Table)() as case:
        case.used = case.fs.stats()["used_bytes"]
        if all_of_them:
            met, deaths = serve(case, MEALS[name], [*range(1, EACH), *range(EACH, 10_000, STEP[backend])])
        else:
            doubling = [1 << power for power in range(20)]
            met, deaths = serve(case, MEALS[name], doubling)
            chosen = random.Random(f"{SEED}:{name}:{backend}").sample(range(1, case.reached), SOME[backend])
            more = serve(case, MEALS[name], sorted(chosen))
            met, deaths = met + more[0], deaths + more[1]
        assert case.findings == []
        Task(case.again, 0).result()
        assert case.findings == []
    print(f"{name}: {met} allocations failed, Python died of {deaths}")
    record_property(ALLOCATIONS, met)
