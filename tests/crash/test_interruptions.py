"""Every operation of the filesystem, interrupted at every instruction of it, on both backends.

A child does the operation again and again, interrupted each time elsewhere (see `interruptions`); the test's own process
is the peer. After each interruption

  * the peer goes on at once, without the child's help: it creates, writes, renames and removes, and finds what is there as
    before the operation or as after it (a file being written: with whatever was written until then), not marked abandoned;
  * the child's next operation gives back what it lost: no lock, pin or byte of quota is left, every file can be opened
    for writing, `check` finds nothing, and the child has all its lock records, pin records and parking semaphores again;
  * the child can do the operation again: it does, for the next interruption.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem

from ..figures import INTERRUPTIONS
from .harness import SEED, Fault, run_child, short_slices
from .interruptions import Interruption
from .operations import OPERATIONS, Abandoned, Case, State, charge, differences, files_in, look, setup_of, what_comes_of

pytestmark = pytest.mark.crash

#: Which instruction is interrupted, and which call after that.
Choice = Callable[[int], list[tuple[int, int | None]]]

#: How many calls after the first interruption the second one comes, on average.
PAIRED = 12

#: Operations whose case takes long to prepare, or to put back.
COSTLY = (
    "create-when-nodes-end",
    "create-when-buckets-split",
    "create-when-buckets-end",
    "reap",
    "join-after-a-death",
    "attach",
    "trim",
)
#: Others take over what the operation gives back: there it is not for the peer to find nothing held.
CONTENDED = tuple(name for name in OPERATIONS if "hand-over" in name or "hands-over" in name)
#: Somebody makes room for them, or waits for what they free, once: see tests/unit/test_space.py for their interruptions.
WAITING_FOR_SPACE = tuple(name for name in OPERATIONS if name.startswith("space-"))
REPEATED = tuple(name for name in OPERATIONS if name not in (*COSTLY, *CONTENDED, *WAITING_FOR_SPACE))


class Judge(Case):
    """The peer: looks at the store after each interruption, and puts everything back."""

    wanted: tuple[State, ...] = ()
    written: tuple[str, ...] = ()
    operation: Any = None
    has_deaths = False

    def leave_a_dead_one(self) -> None:
        self.has_deaths = True
        super().leave_a_dead_one()

    def leave_a_dead_claimer(self) -> None:
        self.has_deaths = True
        super().leave_a_dead_claimer()

    def answer(self, request: str) -> None:
        what, _, argument = request.partition(" ")
        getattr(self, what)(*([json.loads(argument)] if argument else []))

    def go_on(self) -> None:
        """What others must be able to do whatever the child still holds."""
        fs = self.fs
        with fs.open("/peer", "wb") as handle:
            handle.write(b"p" * 300)
        fs.rename("/peer", "/peer's")
        fs.remove("/peer's")

    def judge(self, where: str) -> None:
        """Nothing is held, and all is as before or as after."""
        while self.views:
            self.views.pop()
        fs, found = self.fs, []
        if self.has_deaths:
            fs._store.relieve(None)  # who needs what the dead hold takes it back
        fs.stats()
        found += [f"locked: {lock}" for lock in fs.locks()]
        found += fs.check()
        state = look(fs)
        stats, info = fs.stats(), fs.info()
        cost = sum(charge(fs.get_size(path)) for path in files_in(state))
        if stats["used_bytes"] != cost or info["orphaned"]:
            found.append(f"{stats['used_bytes']} bytes used, {info['orphaned']} orphaned; the files cost {cost}")
        for path in files_in(state):
            fs.open(path, "r+b", lock_timeout=0.0, allow_abandoned=True).close()
        if not any(self._is_like(state, known) for known in self.wanted):
            found.append(f"neither before nor after: {differences(self.before, state)}")
        self.findings += [f"interrupted at {where}: {finding}" for finding in found]
        if state != self.before:
            self.restore()

    def _is_like(self, state: State, known: State) -> bool:
        if any(isinstance(what, Abandoned) for what in state.values()):
            return False
        others = [{path: what for path, what in some.items() if path not in self.written} for some in (state, known)]
        return others[0] == others[1]

    def restore(self) -> None:
        for name in self.fs.listdir("/"):
            (self.fs.rmtree if self.fs.is_dir(f"/{name}") else self.fs.remove)(f"/{name}")
        self.fill(self.operation)


class Victim:
    """The child: does the operation, is interrupted in it, and goes on."""

    def __init__(self, name: str, case: Judge, fault: Fault) -> None:
        self.operation = OPERATIONS[name]
        self.case = case
        self.fault = fault
        self.joins = self.operation.joins
        self.fs: MemoryFileSystem | None = None
        self.unraisable: list[type[BaseException]] = []  # not the exceptions, which keep the frames that they came through
        self.struck = 0
        sys.unraisablehook = lambda args: self.unraisable.append(args.exc_type)
        warnings.simplefilter("ignore")
        gc.freeze()

    def do(self, interruption: Interruption) -> None:
        """The operation; with an interruption that is not in reach, from beginning to end."""
        if self.joins:
            interruption.run(lambda: self.operation.do(None, self.case))
            return
        if self.fs is None or self.fs._is_closed:
            self.fs = MemoryFileSystem.attach(self.case.name)
        held = self.operation.ready(self.fs, self.fault)
        arguments = [self.fs, self.fault, *([held] if held is not None else [])]
        try:
            interruption.run(lambda: self.operation.do(*arguments))
        finally:
            if held is not None:
                held.close()

    def count(self) -> int:
        """How many instructions the operation has, after a first time that fills the caches."""
        for _ in range(2):
            interruption = Interruption(None)
            self.do(interruption)
            self.judge("nowhere")
        return interruption.count

    def suffer(self, interruption: Interruption) -> None:
        try:
            self.do(interruption)
        except KeyboardInterrupt:
            pass
        except BufferError as error:  # it came before the buffer's `with`, and the file's found the buffer still there
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
        self.struck += len(interruption.where)
        self.fault.ask("go_on")
        self.judge(f"{interruption.first}, {' and then '.join(interruption.where)}")

    def judge(self, where: str) -> None:
        """The next operation of ours, then the peer's verdict."""
        missing = self._next_operation()
        if missing or any(kind is not KeyboardInterrupt for kind in self.unraisable):
            raise AssertionError(f"interrupted at {where}: {missing} {self.unraisable}")
        self.unraisable.clear()
        self.fault.ask(f"judge {json.dumps(where)}")

    def _next_operation(self) -> list[str]:
        if self.fs is None or self.fs._is_closed:
            gc.collect()
            MemoryFileSystem.attach(self.case.name).close()
            return []
        self.fs.stats()
        store = self.fs._store
        some = {"record": store.rw.leases, "pin": store.content.leases, "parking semaphore": store.rw._parks}
        return [
            f"{len(leases) - len(leases.free)} {what}s missing"
            for what, leases in some.items()
            if len(leases) != len(leases.free)
        ]


def interrupted(name: str, choices: tuple[Choice, ...]) -> Callable[[Judge, Fault], None]:
    """What the child does: each choice says, given their number, at which of its instructions the operation is interrupted."""

    def child(case: Judge, fault: Fault) -> None:
        victim = Victim(name, case, fault)
        count = victim.count()
        for choose in choices:
            for first, second in choose(count):
                victim.suffer(Interruption(first, second))
        fault.trace.append(str(victim.struck))

    return child


def suffer(name: str, backend: str, *choices: Choice) -> int:
    """Do and interrupt an operation in a child; how many interruptions struck."""
    operation = OPERATIONS[name]
    setup = setup_of(operation, backend, Judge)
    after = what_comes_of(operation, setup)
    with short_slices(), setup() as case:
        case.operation, case.written, case.wanted = operation, operation.written, (case.before, after)
        status, messages = run_child(interrupted(name, choices), case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        assert case.findings == []
    return int(messages[0].split()[1])


def part_and_all(part: int, everything: int) -> list[Any]:
    """Values of a parameter: for every run of the suite, and for `make crash`."""
    return [pytest.param(part, id="a-part"), pytest.param(everything, id="all", marks=pytest.mark.slow)]


def some(most: int) -> Choice:
    """So many of an operation's instructions (at most all), one interruption each."""
    return lambda count: [(number, None) for number in sorted(random.Random(SEED).sample(range(count), min(count, most)))]


def pairs(most: int) -> Choice:
    """At so many instructions, and again soon after."""
    chance = random.Random(SEED)
    return lambda count: [(number, int(chance.expovariate(1 / PAIRED))) for number, _ in some(most)(count)]


@pytest.mark.parametrize("most", part_and_all(30, 2000))
@pytest.mark.parametrize("name", REPEATED)
def test_interrupted(name: str, most: int, record_property: Callable[[str, object], None]) -> None:
    """Once, anywhere; and twice, where the second one hits what the first one has started."""
    record_property(INTERRUPTIONS, suffer(name, "generation", some(most), pairs(10 + most // 10)))


@pytest.mark.parametrize("most", part_and_all(5, 150))
@pytest.mark.parametrize("name", COSTLY)
def test_interrupted_costly(name: str, most: int, record_property: Callable[[str, object], None]) -> None:
    record_property(INTERRUPTIONS, suffer(name, "generation", some(most), pairs(most // 3)))


@pytest.mark.parametrize("most", part_and_all(20, 300))
@pytest.mark.parametrize("name", ["read", "write-growing", "rename-directory"])
def test_interrupted_with_the_other_backend(name: str, most: int, record_property: Callable[[str, object], None]) -> None:
    record_property(INTERRUPTIONS, suffer(name, "ofd", some(most), pairs(most // 3)))
