"""Every operation, with each of its system calls failing in turn: the first, the second, ... until there are no more.

A child attaches the store and does the operation, in which one call fails, once or for good. Then:

  * the operation has happened, or it raised an error of ours or an OSError, and nothing has changed (a file that was
    being written may have some of the bytes);
  * at that moment already the others go on: they get every mutex and every answer, and `check` finds nothing;
  * with the fault gone the same process does the same, and it works;
  * after it has left no descriptor is open that was not open before, every lock is free, the quota is what the files
    cost, and nothing was complained about that nobody could catch.

The test's own process is the peer, as in the tests of kills, whose operations these are; some more are contended, or
meet what a dead process left in the middle of a change.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import re
import resource
import signal
import sys
import threading
import traceback
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from dmemfs_shm import MemoryFileSystem, MFSError, MFSLockTimeoutError, MFSStoreGoneError, view
from dmemfs_shm.store import attachment, names
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.inspection import inspect, survey
from dmemfs_shm.store.layout import LB_ATTACH, LB_INIT, LB_RECOVER, MUTEXES, journal_at

from ..figures import FAULTS
from ..lockstore import BOTH, clear_away, fresh_name, inside, leftovers, lock_findings, settle
from ..processes import DEADLINE_S, Task
from . import harness, operations
from .faults import Fault, Faults, Limit, failing_calls, impatient
from .harness import SEED, WordBuffer, instrument, run_child, short_slices
from .operations import (
    LARGE,
    LARGER,
    OTHER,
    QUOTA,
    SMALL,
    Case,
    Operation,
    State,
    call,
    charge,
    differences,
    files_in,
    killed_in,
    look,
    quotas_in,
    setup_of,
    write,
)

pytestmark = pytest.mark.crash
assert view  # what the package imports when it is first needed is imported here: no import is to be tested

SOME = {"generation": 2, "ofd": 1}  # of the points of an operation
TIMES = {"generation": 4, "ofd": 2}  # of a call that an operation makes over and over
LOCKED = "locked"
AMOUNT = [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]


class Scene(Case):
    """The peer's part."""

    def __init__(self, name: str, fs: MemoryFileSystem) -> None:
        super().__init__(name, fs)
        self.after: State | None = None
        self.written: tuple[str, ...] = ()
        self._hold: Callable[[], None] | None = None
        self._for_long = False

    # ---- what the child asks for

    def replace_small(self) -> None:
        super().replace_small()
        self.before["/d/small"] = OTHER

    def leave_a_dead_one(self) -> None:
        """As for the tests of kills; nobody may look, for who looks does for the dead what the child is to do."""
        super().leave_a_dead_one()
        self.before |= {"/d/small": OTHER, "/large": LARGER}

    def hold_small(self) -> None:
        """Have a file open until the child waits for it."""
        self._hold = self.fs.open("/d/small", "r+b").close

    def keep_small(self) -> None:
        """Have a file open until the child has given up."""
        self.hold_small()
        self._for_long = True

    def hold_names(self) -> None:
        """Be inside m[0] until the child waits for it."""
        entered, leave = threading.Event(), threading.Event()

        def body() -> None:
            entered.set()
            assert leave.wait(DEADLINE_S)

        task = Task(inside, self.fs._store, 0, body)
        assert entered.wait(DEADLINE_S)

        def let_go() -> None:
            leave.set()
            task.result()

        self._hold = let_go

    def let_go(self) -> None:
        """The child waits."""
        if self._hold is not None and not self._for_long:
            hold, self._hold = self._hold, None
            hold()

    def die_in_names(self) -> None:
        """Somebody dies in the middle of a change of the tree, holding a file."""
        self._die_inside(0, lambda fs: fs.mkdir("/never"))

    def die_in_a_lock(self) -> None:
        """Somebody dies in the middle of locking a file."""
        node = self.fs._store.names.find(_path("/d/small"), None)[0]
        self._die_inside(self.fs._store.layout.mutex_of(node), lambda fs: fs.open("/d/small", "r+b"))

    def _die_inside(self, number: int, change: Callable[[MemoryFileSystem], Any]) -> None:
        def body(fs: MemoryFileSystem) -> None:
            held = fs.open("/d/other", "ab")  # and has not changed it

            def die(_: str) -> None:
                if fs._store.w.words[journal_at(number)]:
                    os.kill(os.getpid(), signal.SIGKILL)

            instrument(fs._store, lambda words: WordBuffer(words, die))
            change(fs)
            raise AssertionError(held)

        killed_in(self, body)

    def others_go_on(self) -> None:
        """Whatever has become of the child's operation, it is in nobody's way."""
        self._for_long = False
        self.let_go()
        store = self.fs._store
        Task(pass_through, store).result()
        for byte in LB_INIT, LB_ATTACH, LB_RECOVER:
            if not store.locks.is_free(byte):
                self.findings.append(f"the lock byte {byte} is held")
        self.findings += [f"after the fault: {finding}" for finding in self.fs.check()]
        if self.after is not None:
            found = glance(self.fs)
            wanted = [self._like(found, state) for state in (self.before, self.after)]
            if self._like(found, found) not in wanted:
                self.findings.append(f"half done: {differences(self.before, found)}")

    def _like(self, found: State, state: State) -> State:
        """A state, but for files that were being written, and with what could not be read in the found one."""
        hidden = {path for path, what in found.items() if what is LOCKED}
        return {path: LOCKED if path in hidden else what for path, what in state.items() if path not in self.written}

    # ---- after the child

    def again(self, number: int) -> None:
        found = self.findings
        super().again(number)
        self.findings = found + self.findings
        settle(self.fs._store)
        self.findings += lock_findings(self.fs._store)
        if self.after is not None and self.state != self.after:
            self.findings.append(f"in the end: {differences(self.after, self.state)}")


def glance(fs: MemoryFileSystem) -> State:
    """As `look`, without waiting for anybody: a child that could not give a lock back does so in its next operation."""
    found: State = {}
    for folder, directories, files in fs.walk("/"):
        found.update({f"{folder.rstrip('/')}/{name}": None for name in directories})
        for path in (f"{folder.rstrip('/')}/{name}" for name in files):
            try:
                with fs.open(path, lock_timeout=0.0, allow_abandoned=True) as handle:
                    found[path] = handle.read()
            except MFSLockTimeoutError:
                found[path] = LOCKED
    return found | quotas_in(fs)


def pass_through(store: Attachment) -> None:
    """Enter and leave every mutex."""
    for number in range(MUTEXES):
        inside(store, number, lambda: None, DEADLINE_S / 2)


def _path(text: str) -> Any:
    from dmemfs_shm.paths import parse

    return parse(text)


# ---- operations that meet somebody


def asking(request: str) -> Callable[..., Any]:
    return lambda fs, link: link.ask(request)


def in_vain(fs: MemoryFileSystem, _: Any) -> None:
    with contextlib.suppress(MFSLockTimeoutError):
        fs.open("/d/small", "r+b", lock_timeout=0.02)


def insisting(path: str, mode: str, *pieces: bytes) -> Callable[..., Any]:
    """Write, and what raised is written again with the same handle; what raises again is given up."""

    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.open(path, mode) as handle:
            for piece in pieces:
                try:
                    handle.write(piece)
                except OSError:
                    handle.write(piece)

    return do


def insisting_on_viewed(fs: MemoryFileSystem, _: Any) -> None:
    seen = fs.view("/d/small")
    before = bytes(seen)
    try:
        insisting("/d/small", "r+b", OTHER[:100], OTHER)(fs, None)
    finally:
        assert bytes(seen) == before
        del seen


HANDLES = {
    "insist": Operation(insisting("/d/x", "wb", SMALL, LARGE, LARGER, LARGER), ("/d/x",)),
    "insist-first": Operation(insisting("/x", "wb", SMALL, LARGE), ("/x",), bare=True),
    "insist-on-viewed": Operation(insisting_on_viewed, ("/d/small",)),
}
MEETINGS: dict[str, Operation] = {
    "wait-for-a-writer": Operation(lambda fs, _: fs.open("/d/small").close(), ready=asking("hold_small")),
    "wait-to-write": Operation(write("/d/small", "r+b", OTHER), ("/d/small",), ready=asking("hold_small")),
    "wait-to-replace": Operation(call("write_bytes", "/d/small", OTHER), ready=asking("hold_small")),
    "wait-in-vain": Operation(in_vain, ready=asking("keep_small")),
    "wait-for-names": Operation(call("mkdir", "/d/x"), ready=asking("hold_names")),
    "recover-names": Operation(call("mkdir", "/d/x"), ready=asking("die_in_names")),
    "recover-a-lock": Operation(lambda fs, _: fs.open("/d/small").close(), ready=asking("die_in_a_lock")),
    "attach-after-a-death": Operation(operations.join, ready=asking("leave_a_dead_one"), joins=True),
    "attach-after-a-death-in-names": Operation(operations.join, ready=asking("die_in_names"), joins=True),
}
OPERATIONS = {name: it for name, it in operations.OPERATIONS.items() if name != "join-after-a-death"} | HANDLES | MEETINGS
#: What others do at the same time decides how many calls these make: who is granted a lock may see that without being woken.
CONTENDED = [
    it
    for name, it in OPERATIONS.items()
    if name in MEETINGS or re.search("hands?-over", name) or name == "space-free-for-others"
]


# ---- the child


class Victim:
    """A process whose call fails, once or for good, in an operation."""

    def __init__(self, operation: Operation, faults: Faults, fault: Fault | Limit | None) -> None:
        self.operation = operation
        self.faults = faults
        self.fault = fault
        self.joins = operation.joins
        self.has_handle = False
        self.fs: Any = None
        self.complaints: list[str] = []

    def live(self, case: Scene, link: harness.Fault) -> None:
        """The child's whole life; what it has to say goes to the test in the trace."""
        sys.unraisablehook = lambda what: self.complaints.append(repr(what.exc_value))
        warnings.simplefilter("ignore", ResourceWarning)  # an operation that failed drops the handles that it had
        descriptors = open_descriptors()
        outcome = self._try(case, link)
        link.trace = [outcome]
        if self.fault and self.fault.keeps_locks:
            self._be_there(case)
            self.fs.trim()
            pass_through(self.fs._store)  # what the kernel did not take back is given back by our next operation
        link.ask("others_go_on")
        self._do_again(case, link, done=outcome == "done")
        self._expect_nothing_kept(case)
        if self.fs._store is not None:
            gates = [mutex.number for mutex in self.fs._store.mutexes if mutex._gate or mutex._waiting]
            assert not gates, f"the gates of {gates} are shut"
        self.fs.close()
        self.fs = None
        case.fs.close()  # ours, if the operation used what it inherited
        assert open_descriptors() == descriptors, "descriptors were left open"
        assert not self.complaints, self.complaints
        struck = self.faults.failed or not isinstance(self.fault, Fault) or self.operation in CONTENDED
        assert struck, "the fault did not strike"
        link.trace += [f"{call}:{count}" for call, count in self.faults.calls.items()]

    def _try(self, case: Scene, link: harness.Fault) -> str:
        if not self.joins:
            self.fs = MemoryFileSystem.attach(case.name)
        held = self.operation.ready(self.fs, link)
        self.has_handle = held is not None
        self.faults.waits = lambda: self._let_go(link)
        try:
            with impatient(self.fs), self.faults.armed(self.fault):
                self._do(case, held)
        except (MFSError, OSError) as error:
            return f"refused:{type(error).__name__}"
        except MemoryError:
            assert self.fault and self.fault.starves
            return "refused:MemoryError"
        return "done"

    def _do(self, case: Scene, held: Any = None) -> None:
        if self.joins:
            self.fs = self.operation.do(None, case)
        else:
            self.operation.do(self.fs, None, *([held] if held is not None else []))

    def _let_go(self, link: harness.Fault) -> None:
        link.ask("let_go")
        link.waiting()

    def _be_there(self, case: Scene) -> None:
        if self.fs is None or self.fs._store is None:
            self.fs = MemoryFileSystem.attach(case.name)

    def _do_again(self, case: Scene, link: harness.Fault, *, done: bool) -> None:
        """The fault is gone: unless the operation has happened, it happens now."""
        self._be_there(case)
        self._let_go(link)
        if case.after is None:
            return
        if done:
            if self.operation.ready is operations.others_wait:
                link.ask("producer_ends")
            assert look(self.fs) == case.after, "it says that it has happened"
        for path in self.operation.written:
            if path in case.before:
                self.fs.write_bytes(path, case.before[path])
            else:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.remove(path)
        if self.operation.written or look(self.fs) != case.after:
            self._do(case, self.operation.ready(self.fs, link) if self.has_handle else None)

    def _expect_nothing_kept(self, case: Scene) -> None:
        """What could not be given back at the time is given back by now, without dying or leaving."""
        self._be_there(case)
        gc.collect()  # an exception may have kept a view in a cycle
        self.fs.trim()
        assert [lock for lock in self.fs.locks() if lock.pid == os.getpid()] == []
        if not case.views and self.operation not in CONTENDED:  # others may have what was replaced, for a moment or longer
            assert self.fs.info()["orphaned"] == 0
            state = look(self.fs)
            cost = sum(charge(len(state[path])) for path in files_in(state))
            assert self.fs.stats()["used_bytes"] == cost


def open_descriptors() -> list[str]:
    """Those that are open when what nobody refers to is gone; a mapping has one of its own."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


# ---- the test


def strike(
    operation: Operation, backend: str, fault: Fault | Limit | None, after: State | None = None
) -> tuple[Scene, list[str]]:
    """Let the fault strike; the case, and what the child called."""
    with short_slices(), failing_calls() as faults, setup_of(operation, backend, Scene)() as case:
        case.written, case.after = operation.written, after
        status, messages = run_child(Victim(operation, faults, fault).live, case, None)
        assert os.waitstatus_to_exitcode(status) == 0, f"{fault}: {messages}"
        try:
            Task(case.again, 1).result()
        except Exception as error:
            raise AssertionError(f"{fault}") from error
        assert case.findings == [], f"{fault}: {messages} {case.findings}"
    return case, messages[0].split()[1:]


def points_of(said: list[str]) -> list[Fault]:
    faults = Faults()
    faults.calls.update({call: int(count) for call, count in (word.split(":") for word in said[1:])})
    return faults.points()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("all_of_them", AMOUNT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str, all_of_them: bool, backend: str, record_property: Callable[[str, object], None]) -> None:
    operation = OPERATIONS[name]
    case, said = strike(operation, backend, None)
    assert said[0] == "done"
    points = chosen(points_of(said), name, backend, all_of_them)
    findings = [found for fault in points if (found := finding(strike, operation, backend, fault, case.state))]
    assert not findings, "\n".join(findings)
    record_property(FAULTS, len(points))


@pytest.mark.parametrize("number", [3, 4])
def test_a_dead_tenant_that_seems_to_live_while_its_slot_is_taken(number: int) -> None:
    """Its claim stands until its journal is rolled back: whoever takes the slot does not make it void before."""
    fault = Fault("getlk", number, errno.EINTR, for_good=True)
    strike(OPERATIONS["attach-after-a-death-in-names"], "generation", fault)


@pytest.mark.parametrize("name", ["wait-in-vain", "hand-over-to-writer"])
def test_no_parking_semaphore(name: str) -> None:
    """It only spares the waiter a slice: that there is none is neither his error nor that of who hands over to him."""
    fault = Fault("sem_open", 1, errno.ENOMEM, for_good=True)
    _, said = strike(OPERATIONS[name], "ofd", fault)  # whose only semaphores these are
    assert said[0] == "done"


def test_the_lock_of_recovery_is_not_taken_back() -> None:
    """Nobody could recover anything any more: so the next operation tries again, though it recovers nothing itself."""
    strike(OPERATIONS["recover-names"], "generation", Fault("unlock", 1, errno.ENOLCK, for_good=True))


# ---- the life of a store


class Plot:
    """A name and a uuid for a store that a child is going to make, or that stands."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = fresh_name()
        self.uuid = uuid.uuid4()
        self.peer: MemoryFileSystem | None = None

    def create(self, **options: Any) -> MemoryFileSystem:
        return MemoryFileSystem.create(self.name, QUOTA, backend=self.backend, max_participants=8, **options)

    def left(self) -> list[str]:
        return leftovers(self.name, self.uuid.hex)

    @contextlib.contextmanager
    def only_ours(self) -> Iterator[None]:
        """The next store has our uuid, and there are no others that could be pruned or listed."""
        make, stores = uuid.uuid4, names.stores
        uuid.uuid4 = lambda: self.uuid
        names.stores = lambda uid=None: [it for it in stores(uid) if it[1] in (self.name, names.private_name(self.uuid))]
        try:
            yield
        finally:
            uuid.uuid4, names.stores = make, stores

    # ---- what stands before

    def nothing(self) -> None:
        """The name is free."""

    def standing(self) -> None:
        """The test's process has the store, and there is a file in it."""
        self.peer = self.create()
        self.peer.write_bytes("/file", SMALL)

    def unfinished(self) -> None:
        """The store's creator died before it was ready."""
        pid = os.fork()
        if pid == 0:
            last = "_write_root" if self.backend == "ofd" else "provide_spares"
            setattr(attachment, last, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            with contextlib.suppress(BaseException):
                self.create()
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def finish(self, made: Any) -> None:
        """What was made is a store; it goes, unless the peer has it."""
        if isinstance(made, MemoryFileSystem):
            made.write_bytes("/mine", OTHER)
            assert made.read_bytes("/mine") == OTHER
            assert made.check() == []
            made.close()
        attachment.prune_private()
        if not self.peer:
            with contextlib.suppress(FileNotFoundError):
                MemoryFileSystem.destroy(self.name)


class Event(NamedTuple):
    """Something in the life of a store: do(plot, of) with what of(plot) made beforehand."""

    do: Callable[[Plot, Any], Any]
    before: Callable[[Plot], None] = Plot.nothing
    of: Callable[[Plot], Any] = lambda plot: None
    ends: bool = False


EVENTS: dict[str, Event] = {
    "create": Event(lambda plot, _: plot.create()),
    "create-over-an-unfinished-one": Event(lambda plot, _: plot.create(), Plot.unfinished),
    "create-what-stands": Event(lambda plot, _: plot.create(exist_ok=True), Plot.standing),
    "create-a-private-one": Event(lambda plot, _: MemoryFileSystem(QUOTA)),
    "close-a-private-one": Event(lambda plot, fs: fs.close(), of=lambda plot: MemoryFileSystem(QUOTA), ends=True),
    "destroy": Event(lambda plot, _: MemoryFileSystem.destroy(plot.name), Plot.standing, ends=True),
    "destroy-an-unfinished-one": Event(lambda plot, _: MemoryFileSystem.destroy(plot.name), Plot.unfinished, ends=True),
    "inspect": Event(lambda plot, _: str(inspect(plot.name)), Plot.standing),
    "list": Event(lambda plot, _: str(survey(os.geteuid())), Plot.standing),
}


class Owner:
    """A child that does it, with a fault; and again, unless it was done."""

    def __init__(self, event: Event, faults: Faults, fault: Fault | Limit | None) -> None:
        self.event = event
        self.faults = faults
        self.fault = fault

    def live(self, plot: Plot, link: harness.Fault) -> None:
        descriptors, stood = open_descriptors(), plot.left()
        with plot.only_ours():
            of = self.event.of(plot)
            try:
                with impatient(), self.faults.armed(self.fault):
                    made = self.event.do(plot, of)
                outcome = "done"
            except (MFSError, OSError) as error:
                outcome = f"refused:{type(error).__name__}"
            except MemoryError:
                outcome = "refused:MemoryError"
                assert isinstance(self.fault, Limit)
                assert self.fault.starves
            assert self.faults.failed or not isinstance(self.fault, Fault), "the fault did not strike"
            if outcome != "done":
                if not self.event.ends and not self.fault.for_good:  # for good, what clears away may fail as well
                    assert set(plot.left()) <= set(stood), "something is left of a store that was not made"
                made = None
                with contextlib.suppress(FileNotFoundError):  # destroyed after all
                    made = self.event.do(plot, of)
            plot.finish(made)
        del made, of
        if self.event.ends or not plot.peer:
            assert plot.left() == []
        assert open_descriptors() == descriptors, "descriptors were left open"
        link.trace = [outcome, *(f"{call}:{count}" for call, count in self.faults.calls.items())]


def strike_event(event: Event, backend: str, fault: Fault | Limit | None) -> list[str]:
    """Let the fault strike in the event; what the child called."""
    plot = Plot(backend)
    with short_slices(), failing_calls() as faults:
        try:
            event.before(plot)
            status, messages = run_child(Owner(event, faults, fault).live, plot, None)
            assert os.waitstatus_to_exitcode(status) == 0, f"{fault}: {messages}"
            if plot.peer and event.ends:
                with pytest.raises(MFSStoreGoneError):
                    plot.peer.read_bytes("/file")
            elif plot.peer:
                assert plot.peer.read_bytes("/file") == SMALL
                assert plot.peer.check() == []
        finally:
            if plot.peer:
                plot.peer.close()
            left = clear_away(plot.name, plot.uuid.hex)
        assert left == [], f"{fault}"
    return messages[0].split()[1:]


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("all_of_them", AMOUNT)
@pytest.mark.parametrize("name", EVENTS)
def test_life_of_a_store(name: str, all_of_them: bool, backend: str, record_property: Callable[[str, object], None]) -> None:
    """Made or not made: what fails leaves nothing behind, and works when it is tried again."""
    event = EVENTS[name]
    said = strike_event(event, backend, None)
    assert said[0] == "done"
    points = chosen(points_of(said), name, backend, all_of_them)
    findings = [found for fault in points if (found := finding(strike_event, event, backend, fault))]
    assert not findings, "\n".join(findings)
    record_property(FAULTS, len(points))


def test_a_new_store_that_is_not_found_again() -> None:
    """After the store is READY its creator looks whether its name is still its own: if that fails, there is no store."""
    for number in range(1, 8):
        strike_event(EVENTS["create"], "generation", Fault("fstat", number, errno.EIO, for_good=False))


def chosen(points: list[Fault], name: str, backend: str, all_of_them: bool) -> list[Fault]:
    """The points to be tried: all, but of a call that is made over and over only some of the times."""
    rng = random.Random(f"{SEED}:{name}:{backend}")
    if not all_of_them:
        return rng.sample(points, min(SOME[backend], len(points)))
    last = Counter({point.call: point.number for point in points})
    times = TIMES[backend]
    numbers = {call: {1, count, *rng.sample(range(1, count + 1), min(times, count))} for call, count in last.items()}
    return [point for point in points if point.number in numbers[point.call]]


def finding(strike: Callable[..., Any], *args: Any) -> str:
    """What is wrong after a fault, or nothing; so that one run says of all that are wrong."""
    try:
        strike(*args)
    except Exception as error:  # noqa: BLE001
        return "".join(traceback.format_exception(error)[-1:]) + str(error.__cause__ or "")
    return ""


# ---- limits of the process


ROOMS = {
    resource.RLIMIT_NOFILE: range(8),
    resource.RLIMIT_FSIZE: (0, 31, 32, 4096, 1 << 20, 1 << 25, 1 << 30),
    resource.RLIMIT_AS: (0, 1 << 16, 1 << 20, 1 << 23, 1 << 25, 1 << 27),
}
LIMITS = [Limit(what, room) for what, rooms in ROOMS.items() for room in rooms]
LIMITED = ("create-first", "write-growing", "read", "view-of-pieces", "write-bytes-over-large", "copy-tree", "attach")
LIMITED_TOO = ("recover-names", "wait-for-a-writer", "attach-after-a-death")


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("all_of_them", AMOUNT)
@pytest.mark.parametrize("name", [*LIMITED, *LIMITED_TOO, *EVENTS])
def test_limits(name: str, all_of_them: bool, backend: str, record_property: Callable[[str, object], None]) -> None:
    """As above, with no more descriptors, smaller files, or less address space than it takes."""
    limits = LIMITS if all_of_them else random.Random(f"{SEED}:{name}:{backend}").sample(LIMITS, SOME[backend])
    if name in EVENTS:
        findings = [found for limit in limits if (found := finding(strike_event, EVENTS[name], backend, limit))]
    else:
        case, _ = strike(OPERATIONS[name], backend, None)
        findings = [found for limit in limits if (found := finding(strike, OPERATIONS[name], backend, limit, case.state))]
    assert findings == []
    record_property(FAULTS, len(limits))
