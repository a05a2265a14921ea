"""The lock layer, killed and stopped at every point of everything it does, on both backends.

Each case is made afresh for each point. The test's own process is the peer: attached before, it lives on, must be able
to do the same thing, and then looks for anything that is wrong. While the other one is stopped, it enters every mutex.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm.errors import MFSLockTimeoutError, MFSStoreBusyError, MFSUnfinishedStoreError
from dmemfs_shm.store import attachment
from dmemfs_shm.store.attachment import Attachment, Parameters
from dmemfs_shm.store.journal import Plan, commit
from dmemfs_shm.store.layout import (
    BACKENDS,
    HELD,
    LOCK_ABANDONED,
    N_CREATED,
    N_GENERATION,
    N_LOCK,
    N_MODIFIED,
    REC_DIRTY,
    REC_WRITER,
)

from ..figures import KILL_POINTS, STOP_POINTS
from ..lockstore import (
    BOTH,
    clear_away,
    fresh_name,
    inside,
    leftovers,
    lock,
    lock_findings,
    lock_store,
    queued,
    settle,
    state_of,
    unlock,
)
from ..processes import DEADLINE_S, Task, until
from .harness import RUN_INTO_S, SHORT_S, Everywhere, Fault, enter_all, kill_everywhere, sections_of, stop_everywhere

pytestmark = pytest.mark.crash

NODE = 5
OTHER = 6
K = 1 + NODE % 16

EVERY = [pytest.param(10, id="a-tenth"), pytest.param(1, id="all", marks=pytest.mark.slow)]
backends = pytest.mark.parametrize("backend", BOTH)
points = pytest.mark.parametrize("every", EVERY)


@pytest.fixture(params=["killed", "stopped"])
def everywhere(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Everywhere:
    """`kill_everywhere` or `stop_everywhere`, which count what they have tried."""

    def strike(setup: Any, operation: Any, verify: Any, *, every: int, company: bool = True) -> None:
        if request.param == "killed":
            record_property(KILL_POINTS, kill_everywhere(setup, operation, verify, every=every, company=company))
        else:
            record_property(STOP_POINTS, stop_everywhere(setup, operation, verify, every=10 * every if every > 1 else 1))

    return strike


class Case:
    """A store, the peer's part in it, and what children ask the peer to do."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.name = store.name
        self.records: list[int] = []
        self.tasks: list[Task] = []
        self.messages: list[str] = []
        self.refusals: list[str] = []

    def answer(self, request: str) -> None:
        """Do what a child asks for."""
        getattr(self, request)()

    def hold_shared(self) -> None:
        self.records.append(lock(self.store, NODE))

    def hold_exclusive(self) -> None:
        self.records.append(lock(self.store, NODE, REC_WRITER))

    def let_go(self) -> None:
        while self.records:
            unlock(self.store, self.records.pop())

    def writer_comes(self) -> None:
        """A thread of the peer asks for the node exclusively, and now waits for it."""
        before = queued(self.store, NODE)
        self.tasks.append(Task(lambda: unlock(self.store, lock(self.store, NODE, REC_WRITER))))
        until(lambda: queued(self.store, NODE) > before, "the writer waits")

    def company(self) -> None:
        """Threads of the peer want the node and its mutex."""
        self.tasks += [
            Task(lambda: unlock(self.store, lock(self.store, NODE, REC_WRITER))),
            Task(lambda: unlock(self.store, lock(self.store, NODE))),
            Task(lambda: inside(self.store, K, lambda: None)),
        ]

    def meanwhile(self, pid: int) -> None:
        """The other one is stopped: what it is not inside of can be entered, what it is inside of never."""
        self.refusals += enter_all(self.store, pid)[1]

    def again(self, number: int) -> None:
        """What the living must still be able to do; by turns a new process comes first, or the peer alone."""
        self.let_go()
        while self.tasks:
            self.tasks.pop().result()
        if number % 2:
            newcomer(self.name)
        for node in (NODE, OTHER):
            unlock(self.store, lock(self.store, node, REC_WRITER, DEADLINE_S))
            unlock(self.store, lock(self.store, node, 0, DEADLINE_S))
        inside(self.store, K, lambda: None)


def newcomer(name: str) -> None:
    """A process that attaches, locks, unlocks and leaves."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            store = attachment.attach(name)
            unlock(store, lock(store, NODE, REC_WRITER, DEADLINE_S))
            attachment.release(store)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a newcomer could not attach, lock and leave"


def sound(case: Any) -> list[str]:
    """Nothing is wrong, and nothing is held."""
    settle(case.store)
    return case.refusals + lock_findings(case.store)


def on_store(backend: str, prepare: Callable[[Case], None] = lambda case: None, make: type[Case] = Case) -> Callable[[], Any]:
    @contextlib.contextmanager
    def setup() -> Iterator[Case]:
        with lock_store(backend) as store:
            case = make(store)
            prepare(case)
            yield case

    return setup


def killed_in(case: Case, body: Callable[[Attachment], None]) -> None:
    """A participant that attaches, runs body(store) and is killed."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            body(attachment.attach(case.name))
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# ---- the mutex


class Contested(Case):
    """The peer is inside the mutex when the stopped one goes on, unless that is inside itself."""

    def words(self) -> tuple[int, int]:
        at = self.store.layout.node_at(NODE)
        return self.store.w[at + N_CREATED], self.store.w[at + N_MODIFIED]

    def meanwhile(self, pid: int) -> None:
        super().meanwhile(pid)
        if sections_of(self.store, pid).isdisjoint((K, "R")):
            inside(self.store, K, lambda: self._let_go_on(pid), DEADLINE_S)

    def _let_go_on(self, pid: int) -> None:
        before = self.words()
        os.kill(pid, signal.SIGCONT)
        time.sleep(2 * RUN_INTO_S)
        if self.words() != before:
            self.refusals.append("it went on into a mutex that is not its own any more")


@backends
@points
def test_transaction(backend: str, every: int, everywhere: Everywhere) -> None:
    """A section with a transaction of two words: both change or neither, and the next one gets in."""

    def words(store: Attachment) -> tuple[int, int]:
        at = store.layout.node_at(NODE)
        return at + N_CREATED, at + N_MODIFIED

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        fault.arm(store)

        def body() -> None:
            plan = Plan(store.w)
            for word in words(store):
                plan[word] = 7
            commit(store.w, store.mutexes[K].journal, plan)

        inside(store, K, body)

    def verify(case: Case) -> list[str]:
        values = {case.store.w[word] for word in words(case.store)}
        return sound(case) + [f"half a transaction: {values}" for _ in [0] if len(values) != 1]

    everywhere(on_store(backend, make=Contested), operation, verify, every=every)


def die_in_commit(store: Attachment, *numbers: int) -> None:
    """Enter mutexes and die with the journal of the first one open and one of its words stored."""

    def body() -> None:
        if len(numbers) > 1:
            store.mutexes[numbers[1]].acquire(store.threads.thread)
        journal, at = store.mutexes[numbers[0]].journal, store.layout.node_at(NODE)
        for entry, word in enumerate((at + N_CREATED, at + N_MODIFIED)):
            store.w[journal + 1 + 2 * entry] = word
            store.w[journal + 2 + 2 * entry] = store.w[word]
        store.w[journal] = 2
        store.w[at + N_CREATED] = 99
        os.kill(os.getpid(), signal.SIGKILL)

    inside(store, numbers[0], body)


class Recovering(Case):
    """Has somebody die in mutexes; looks at the words of the broken transaction as soon as it is in the last one."""

    mutexes: tuple[int, ...] = (K,)

    def __init__(self, store: Attachment) -> None:
        super().__init__(store)
        self.values: list[int] = []

    def death_in_commit(self) -> None:
        killed_in(self, lambda store: die_in_commit(store, *self.mutexes))

    def lost_token(self) -> None:
        killed_in(self, lambda store: (inside(store, K, lambda: None), store.mutexes[K]._semaphore.acquire(1)))

    def again(self, number: int) -> None:
        at = self.store.layout.node_at(NODE)

        def body() -> None:
            self.values = [self.store.w[at + N_CREATED], self.store.w[at + N_MODIFIED]]

        inside(self.store, K, body, DEADLINE_S)
        super().again(number)


def rolled_back(case: Recovering) -> list[str]:
    return sound(case) + [f"not rolled back: {case.values}" for _ in [0] if case.values != [0, 0]]


class RecoveringTwo(Recovering):
    mutexes = (0, K)


def recover_after(event: str) -> Callable[[Case, Fault], None]:
    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)  # before the death: who attaches later takes the dead one's slot
        fault.ask(event)
        fault.arm(store)
        inside(store, K, lambda: None)

    return operation


@backends
@points
@pytest.mark.parametrize("make", [Recovering, RecoveringTwo], ids=["one", "outer-too"])
def test_recovery_of_a_mutex(backend: str, every: int, make: type[Case], everywhere: Everywhere) -> None:
    """The recoverer of a mutex whose holder died in a transaction dies, too: it is rolled back all the same."""
    everywhere(on_store(backend, make=make), recover_after("death_in_commit"), rolled_back, every=every)


@points
def test_recovery_of_a_lost_token(every: int, everywhere: Everywhere) -> None:
    """The recoverer of a token that died with its taker dies, too."""
    everywhere(on_store("generation", make=Recovering), recover_after("lost_token"), sound, every=every)


# ---- locks


@backends
@points
@pytest.mark.parametrize("kind", [0, REC_WRITER, REC_WRITER | REC_DIRTY], ids=["shared", "exclusive", "dirty"])
def test_lock_and_unlock(backend: str, every: int, kind: int, everywhere: Everywhere) -> None:
    """A lock taken at once and given back."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        fault.arm(store)
        unlock(store, lock(store, NODE, kind))

    everywhere(on_store(backend), operation, sound, every=every)


@backends
@pytest.mark.parametrize("kind", [0, REC_WRITER, REC_WRITER | REC_DIRTY], ids=["shared", "exclusive", "dirty"])
def test_only_a_dirty_hold_abandons(backend: str, kind: int) -> None:
    """The mark is set by reaping a writer that changed content, and cleared by the next clean close."""
    with lock_store(backend) as store:
        case = Case(store)
        killed_in(case, lambda child: lock(child, NODE, kind))
        settle(store)
        word = store.layout.node_at(NODE) + N_LOCK
        assert bool(store.w[word] & LOCK_ABANDONED) == bool(kind & REC_DIRTY)
        unlock(store, lock(store, NODE, REC_WRITER))
        assert store.w[word] == 0


@backends
@points
@pytest.mark.parametrize(("held", "kind"), [("hold_shared", REC_WRITER), ("hold_exclusive", 0)], ids=["writer", "reader"])
def test_queue_and_be_granted(backend: str, every: int, held: str, kind: int, everywhere: Everywhere) -> None:
    """A request that waits for the peer's hold and gets it when the peer lets go."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        fault.waits = lambda: fault.ask("let_go")
        fault.arm(store)
        unlock(store, lock(store, NODE, kind))

    everywhere(on_store(backend, lambda case: getattr(case, held)()), operation, sound, every=every)


@backends
@points
def test_queue_and_time_out(backend: str, every: int, everywhere: Everywhere) -> None:
    """A request that waits for the peer's hold in vain; a reader behind it must not be left waiting."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        fault.arm(store)
        with contextlib.suppress(MFSLockTimeoutError):
            unlock(store, lock(store, NODE, REC_WRITER, 0.003))

    class Held(Case):
        def company(self) -> None:
            self.tasks.append(Task(lambda: unlock(self.store, lock(self.store, NODE))))

        def again(self, number: int) -> None:
            unlock(self.store, lock(self.store, NODE, 0, DEADLINE_S))  # shared with the peer's own hold
            super().again(number)

    everywhere(on_store(backend, lambda case: case.hold_shared(), Held), operation, sound, every=every)


@backends
@points
def test_shared_again_past_a_writer(backend: str, every: int, everywhere: Everywhere) -> None:
    """A thread that holds a node shared gets it again while the peer's writer waits; the writer gets it in the end."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        first = lock(store, NODE)
        fault.ask("writer_comes")
        fault.arm(store)
        second = lock(store, NODE, 0, DEADLINE_S)
        unlock(store, second)
        unlock(store, first)

    everywhere(on_store(backend), operation, sound, every=every)


# ---- reaping, joining, leaving


def leave_a_dead_one(case: Case) -> None:
    """A participant that held one node shared, one exclusively and waited for a third is dead."""

    def body(store: Attachment) -> None:
        lock(store, OTHER)
        lock(store, NODE, REC_WRITER | REC_DIRTY)
        mine = lock(store, 7)
        assert state_of(store, mine) == HELD
        Task(lambda: lock(store, 7, REC_WRITER))
        until(lambda: queued(store, 7) == 1, "the thread waits")

    killed_in(case, body)


@backends
@points
def test_reaping(backend: str, every: int, everywhere: Everywhere) -> None:
    """The reaper of a dead participant dies, too."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        fault.ask("dead_one")
        fault.arm(store)
        assert store.reap_dead(10.0) == 1

    class Reaped(Case):
        def dead_one(self) -> None:
            leave_a_dead_one(self)

    everywhere(on_store(backend, make=Reaped), operation, sound, every=every)


@backends
@points
def test_joining_on_a_dead_ones_slot(backend: str, every: int, everywhere: Everywhere) -> None:
    """The new tenant of a dead participant's slot dies while it cleans up."""

    def operation(case: Case, fault: Fault) -> None:
        fault.arm(None)
        store = attachment.attach(case.name)
        assert store.slot == 1

    everywhere(on_store(backend, leave_a_dead_one), operation, sound, every=every)


@points
def test_joining_after_a_death_in_a_section(every: int, everywhere: Everywhere) -> None:
    """The new tenant dies while it recovers a mutex that its predecessor held."""

    def prepare(case: Case) -> None:
        killed_in(case, lambda store: die_in_commit(store, K))

    def operation(case: Case, fault: Fault) -> None:
        fault.arm(None)
        attachment.attach(case.name)

    everywhere(on_store("generation", prepare, Recovering), operation, rolled_back, every=every)


@backends
@points
def test_leaving(backend: str, every: int, everywhere: Everywhere) -> None:
    """A participant dies while it leaves; its slot can be used again."""

    def operation(case: Case, fault: Fault) -> None:
        store = attachment.attach(case.name)
        unlock(store, lock(store, NODE))
        fault.arm(store)
        attachment.release(store)

    everywhere(on_store(backend), operation, sound, every=every)


# ---- creating and destroying


class Making:
    """A store that a child creates or destroys."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = fresh_name()
        self.uuid = uuid.uuid4()
        self.marks = [self.name, self.uuid.hex]
        self.messages: list[str] = []
        self.findings: list[str] = []

    def create(self) -> Attachment:
        return attachment.create(self.name, Parameters(1 << 20, backend=BACKENDS[self.backend], slots=4))

    def create_first(self) -> Attachment:
        """Create it with the uuid that the test knows."""
        before, uuid.uuid4 = uuid.uuid4, lambda: self.uuid
        try:
            return self.create()
        finally:
            uuid.uuid4 = before

    def meanwhile(self, _pid: int) -> None:
        """It is there and can be attached, or it is not there, or it is being created or attached: said by the deadline."""
        before, attachment.WAIT_FOR_CREATOR_S = attachment.WAIT_FOR_CREATOR_S, SHORT_S
        try:
            attachment.release(attachment.attach(self.name))
        except (FileNotFoundError, MFSUnfinishedStoreError):
            pass
        except MFSStoreBusyError as error:
            assert "does not go on" in str(error)  # noqa: PT017  # attaching, or in a mutex that the newcomer needs
        finally:
            attachment.WAIT_FOR_CREATOR_S = before

    def again(self, _number: int) -> None:
        """Create it, unless it stands; use it; destroy it."""
        try:
            store = self.create()
        except FileExistsError:
            store = attachment.attach(self.name)
        self.marks.append(store.uuid.hex)
        try:
            store.w[store.layout.node_at(NODE) + N_GENERATION] = 1
            unlock(store, lock(store, NODE, REC_WRITER))
            settle(store)
            self.findings = lock_findings(store)
        finally:
            attachment.release(store)
        attachment.destroy(self.name)


@contextlib.contextmanager
def making(backend: str, *, made: bool) -> Iterator[Making]:
    case = Making(backend)
    try:
        if made:
            attachment.release(case.create_first())
        yield case
    finally:
        clear_away(*case.marks)


def gone(case: Making) -> list[str]:
    return case.findings + leftovers(*case.marks)


@backends
@points
def test_creating(backend: str, every: int, everywhere: Everywhere) -> None:
    """The creator dies: the next one makes the store anew, and nothing of the first is left over."""

    def operation(case: Making, fault: Fault) -> None:
        fault.arm(None)
        case.create_first()

    everywhere(lambda: making(backend, made=False), operation, gone, every=every, company=False)


@pytest.mark.parametrize(
    "backend",
    [
        "generation",
        "ofd",
    ],
)
@points
def test_destroying(backend: str, every: int, everywhere: Everywhere) -> None:
    """The destroyer dies: whoever destroys or creates the store next leaves nothing of the old one."""

    def operation(case: Making, fault: Fault) -> None:
        fault.arm(None)
        attachment.destroy(case.name)

    everywhere(lambda: making(backend, made=True), operation, gone, every=every, company=False)
