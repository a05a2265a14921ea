"""The crash-safe mutex: exclusion, death, stopping, and exceptions at any instruction."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import itertools
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import posix_ipc
import pytest

from dmemfs_shm.errors import MFSReentrantCallError, MFSStoreBusyError, MFSStoreGoneError
from dmemfs_shm.store import attachment, mutex, names, recovery
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.journal import Plan, commit
from dmemfs_shm.store.layout import (
    LB_RECOVER,
    MUTEXES,
    N_CREATED,
    N_MODIFIED,
    NO_CLAIM,
    QUEUED,
    REC_WRITER,
    RECOVERIES,
    S_CLAIM,
    generation_at,
    journal_at,
)
from dmemfs_shm.store.recovery import SPARES, Recovery
from dmemfs_shm.store.section import Section

from ..crash.harness import WordBuffer, instrument, short_slices, watched
from ..lockstore import (
    BOTH,
    give_back,
    inside,
    lease,
    leftovers,
    lock,
    lock_findings,
    lock_store,
    settle,
    unlock,
)
from ..processes import DEADLINE_S, Link, Task, call_in_child, child, in_thread, until

NODE = 5
K = 1 + NODE % 16


@pytest.fixture(params=BOTH)
def store(request: pytest.FixtureRequest) -> Iterator[Attachment]:
    """A store with either backend."""
    with lock_store(request.param) as made:
        yield made


@pytest.fixture
def generations() -> Iterator[Attachment]:
    """A store whose mutexes have generations."""
    with lock_store() as made:
        yield made


def sound(store: Attachment) -> list[str]:
    settle(store)
    return lock_findings(store)


# ---- exclusion


def count_up(name: str, counter: Any, times: int) -> None:
    store = attachment.attach(name)

    def body() -> None:
        counter[0] = counter[0] + 1

    def run() -> None:
        for _ in range(times):
            inside(store, K, body)

    tasks = [Task(run) for _ in range(2)]
    for task in tasks:
        task.result()
    attachment.release(store)


def test_exclusion(store: Attachment) -> None:
    """Between the threads of several processes no increment is lost."""
    counter = memoryview(mmap.mmap(-1, 4096)).cast("Q")

    def work(link: Link) -> None:
        link.recv()
        count_up(store.name, counter, 1000)

    with child("fork", work) as one, child("fork", work) as two, child("fork", work) as three:
        for each in (one, two, three):
            each.send("go")
        for each in (one, two, three):
            each.receive()
    assert counter[0] == 6000
    assert sound(store) == []


def test_two_at_once(store: Attachment) -> None:
    """A thread may be in two mutexes; giving up rolls back and leaves both."""
    thread = store.threads.enter()
    outer, inner = store.mutexes[0], store.mutexes[K]
    at = store.layout.node_at(NODE)
    outer.acquire(thread)
    inner.acquire(thread)
    store.w[outer.journal + 1], store.w[outer.journal + 2], store.w[outer.journal] = at + N_CREATED, 5, 1
    inner.abandon(thread)
    outer.abandon(thread)
    assert store.w[at + N_CREATED] == 5
    assert sound(store) == []


# ---- death


def die_with_the_token(link: Link, name: str) -> None:
    store = attachment.attach(name)
    inside(store, K, lambda: None)
    store.mutexes[K]._semaphore.acquire(1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_lost_token(generations: Attachment) -> None:
    """A token that died with its taker is revoked; the mutex goes on with a new generation."""
    store = generations
    with child("fork", die_with_the_token, store.name) as running:
        running.join()
        inside(store, K, lambda: None, 10)
        assert store.w[generation_at(K)] == 2
        assert sound(store) == []


@pytest.mark.parametrize("spares", [SPARES, 1, 0])
def test_lost_tokens_and_few_spares(generations: Attachment, spares: int) -> None:
    """The next generation has exactly one token, be its semaphore a spare or a new one; spares are made again."""
    store = generations
    for spare in range(spares, SPARES):
        posix_ipc.unlink_semaphore(names.spare(store.uuid, spare))
    for number in (1, 2, 3):
        inside(store, number, lambda: None)
        store.mutexes[number]._semaphore.acquire(1)  # and so it is lost
    for number in (1, 2, 3):
        inside(store, number, lambda: None, 10)
    assert sound(store) == []
    assert len([entry for entry in leftovers(store.uuid.hex) if "spare" in entry]) == SPARES


def die_inside(link: Link, name: str) -> None:
    store = attachment.attach(name)
    at = store.layout.node_at(NODE)

    def body() -> None:
        journal = store.mutexes[K].journal
        store.w[journal + 1], store.w[journal + 2] = at + N_CREATED, store.w[at + N_CREATED]
        store.w[journal] = 1
        store.w[at + N_CREATED] = 1234
        os.kill(os.getpid(), signal.SIGKILL)

    inside(store, K, body)


def test_dead_holder(store: Attachment) -> None:
    """What it had begun is rolled back before the next one is let in."""
    at = store.layout.node_at(NODE)
    store.w[at + N_CREATED] = 17
    with child("fork", die_inside, store.name) as running:
        running.join()
        seen: list[int] = []
        inside(store, K, lambda: seen.append(store.w[at + N_CREATED]), 10)
        assert seen == [17]
        assert sound(store) == []


def die_inside_all(link: Link, name: str) -> None:
    store = attachment.attach(name)
    thread = store.threads.enter()
    for each in store.mutexes:
        each.acquire(thread)
    os.kill(os.getpid(), signal.SIGKILL)


def test_dead_holder_of_all(generations: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds out that the holder of one is dead frees all that it had: nobody waits for each of them in turn."""
    with child("fork", die_inside_all, generations.name) as running:
        running.join()
    inside(generations, K, lambda: None, 10.0)
    assert generations.w[RECOVERIES] == MUTEXES
    assert sound(generations) == []


# ---- stopping


def stop_inside(link: Link, name: str) -> None:
    store = attachment.attach(name)
    inside(store, K, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    attachment.release(store)


def wait_until_stopped(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def test_stopped_holder(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the mutex, however long; who waits is told who it is. Nothing is revoked."""
    monkeypatch.setattr(mutex, "GRACE_S", 0.15)
    with child("fork", stop_inside, store.name) as running:
        wait_until_stopped(running.pid)
        try:
            with pytest.raises(MFSStoreBusyError) as caught:
                inside(store, K, lambda: pytest.fail("two holders"), 0.0)
            assert f"process {running.pid} " in str(caught.value)
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.receive()
        running.join()
        assert sound(store) == []
        assert store.w[generation_at(K)] == 0


def test_stopped_holder_behind_the_gate(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for another one of its process, which waits for the stopped, is told the same."""
    monkeypatch.setattr(mutex, "GRACE_S", 0.15)
    with child("fork", stop_inside, store.name) as running:
        wait_until_stopped(running.pid)
        first = Task(inside, store, K, lambda: None, 60.0)
        try:
            until(lambda: bool(store.mutexes[K]._gate), "the first thread waits for the holder")
            with pytest.raises(MFSStoreBusyError) as caught:
                inside(store, K, lambda: pytest.fail("two holders"), 0.0)
            assert f"process {running.pid} " in str(caught.value)
        finally:
            os.kill(running.pid, signal.SIGCONT)
        first.result()
        running.receive()
        running.join()
        assert sound(store) == []


def stop_with_the_token(link: Link, name: str) -> None:
    """Stop between taking the token and saying so."""
    store = attachment.attach(name)
    inside(store, K, lambda: None)

    def event(what: str) -> None:
        if what == "sem_wait" and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)

    stopped: list[bool] = []
    with watched(store, event):
        inside(store, K, lambda: link.send("inside"))
    attachment.release(store)


def test_stopped_before_its_claim(generations: Attachment) -> None:
    """Who was stopped with the token in hand, and found his generation revoked, does not get in beside the next one."""
    store = generations
    with child("fork", stop_with_the_token, store.name) as running:
        wait_until_stopped(running.pid)

        def body() -> None:
            os.kill(running.pid, signal.SIGCONT)
            assert not running.link.poll(0.3), "two holders"

        try:
            inside(store, K, body, 10)
        finally:
            os.kill(running.pid, signal.SIGCONT)
        assert running.receive() == "inside"
        running.receive()
        assert store.w[generation_at(K)] >= 2
        assert sound(store) == []


def stop_at(link: Link, name: str, what: str, number: int) -> str:
    """Attach, and be stopped when *what* happens on the way into the mutex; how the way in ended then."""
    store = attachment.attach(name)
    inside(store, number, lambda: None)

    def event(happens: str) -> None:
        if happens == what:
            os.kill(os.getpid(), signal.SIGSTOP)

    link.send("ready")
    link.recv()
    recovery.membarrier = lambda: event("revoked")
    mutex.GRACE_S = 0.05 if what == "sem_wait" else DEADLINE_S
    with watched(store, event):
        try:
            inside(store, number, lambda: None, 0.0)
        except MFSStoreBusyError as error:
            return str(error)
    return "entered"


def test_stopped_while_revoking(generations: Attachment) -> None:
    """Who finds his claim in doubt, and the one who revokes stopped, is refused by the deadline, and stands in no way."""
    store = generations
    with (
        child("fork", stop_at, store.name, "sem_wait", K) as doubted,
        child("fork", stop_at, store.name, "revoked", K) as revoker,
    ):
        for each in (doubted, revoker):
            assert each.receive() == "ready"
        for each in (doubted, revoker):  # one has the token and has not claimed it; the other revokes its generation
            each.send("go")
            wait_until_stopped(each.pid)
        assert store.w[generation_at(K)] == 1
        os.kill(doubted.pid, signal.SIGCONT)
        assert "recovering" in doubted.receive()
        os.kill(revoker.pid, signal.SIGCONT)
        assert revoker.receive() == "entered"
        assert store.w[generation_at(K)] == 2
    assert sound(store) == []


def be_struck_inside(link: Link, name: str, signal_number: int) -> None:
    store = attachment.attach(name)
    link.send("ready")
    link.recv()
    inside(store, K, lambda: os.kill(os.getpid(), signal_number))


def test_stopped_holder_after_a_dead_one(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who has the mutex now is named, whatever the one who died inside has left."""
    with child("fork", be_struck_inside, store.name, signal.SIGKILL) as dead:
        assert dead.receive() == "ready"
        with child("fork", be_struck_inside, store.name, signal.SIGSTOP) as running:
            assert running.receive() == "ready"
            dead.send("go")
            dead.join()
            running.send("go")
            wait_until_stopped(running.pid)
            monkeypatch.setattr(mutex, "GRACE_S", 0.05)
            with pytest.raises(MFSStoreBusyError, match=f"process {running.pid} "):
                inside(store, K, lambda: pytest.fail("two holders"), 0.0)
            os.kill(running.pid, signal.SIGCONT)
            running.receive()


def test_false_suspicion(generations: Attachment) -> None:
    """A live holder's generation is not revoked; recovering a mutex that nobody has does nothing."""
    store = generations
    inside(store, K, lambda: None)
    assert store.recovery.recover(K, None)
    assert store.w[RECOVERIES] == 0

    def body() -> None:
        assert not store.recovery.recover(K, None)

    inside(store, K, body)
    assert store.w[generation_at(K)] == 0
    assert sound(store) == []


def test_revoked_under_a_claim(generations: Attachment) -> None:
    """A revoker that died half way is put right by whom it suspected (a6), who keeps the mutex."""
    store = generations
    at = generation_at(K)

    def event(what: str) -> None:
        if what == "sem_wait" and store.w[at] == 0:
            store.w[at] = 1  # revoked between the token and the claim, by one who dies then

    inside(store, K, lambda: None)
    during: list[int] = []
    with watched(store, event):
        inside(store, K, lambda: during.append(store.w[at]))
    assert during == [0]
    assert sound(store) == []


# ---- stopping inside R


def stop_in_r(link: Link, name: str, revoking: bool) -> None:
    """Stop inside R when the test says so, perhaps in the middle of revoking a generation; go on and leave."""
    store = attachment.attach(name)
    real = recovery.membarrier

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        real()

    stopped: list[bool] = []
    recovery.membarrier = stop
    link.send("attached")
    link.recv()
    if revoking:
        store.recovery.recover(K, None)
    else:
        store.recovery._alone(lambda: bool(stop()), None)
    attachment.release(store)


def test_stopped_recoverer(generations: Attachment) -> None:
    """Whoever needs R keeps to his deadline and is told who may have it, threads among each other too; then all go on."""
    store = generations
    with child("fork", stop_in_r, store.name, False) as running:
        running.receive()
        running.send("stop")
        wait_until_stopped(running.pid)
        patient = Task(store.recovery.recover, K, None)
        try:
            for call in (store.recovery.recover, lambda k, deadline: store.recovery.keep_claim(k, 0, deadline)):
                with pytest.raises(MFSStoreBusyError, match=f"process {running.pid} "):
                    in_thread(call, K, time.monotonic())
            in_thread(inside, store, K, lambda: None)  # nothing is wrong, so nobody needs R
            assert not patient.done
        finally:
            os.kill(running.pid, signal.SIGCONT)
        assert patient.result()
        running.receive()
        assert sound(store) == []


@pytest.mark.parametrize("in_time", [False, True], ids=["too late", "in time"])
def test_stopped_revoker(generations: Attachment, monkeypatch: pytest.MonkeyPatch, in_time: bool) -> None:
    """Who is to decide about his claim (a6) and can't have R withdraws it; if the revoker goes on in time, it holds."""
    store, at = generations, generation_at(K)
    monkeypatch.setattr(mutex, "GRACE_S", 60.0 if in_time else 0.15)
    inside(store, K, lambda: None)
    during: list[int] = []
    with child("fork", stop_in_r, store.name, True) as running:
        running.receive()

        def event(what: str) -> None:
            if what == "sem_wait" and store.w[at] == 0:  # the token is ours, and the claim is not stored yet
                running.send("revoke")
                wait_until_stopped(running.pid)
                assert store.w[at] == 1

        def enter() -> None:
            inside(store, K, lambda: during.append(store.w[at]), 0.0)

        claim = store.layout.slot_at(store.slot) + S_CLAIM + K
        try:
            with watched(store, event):
                task = Task(enter)
                if in_time:
                    until(lambda: store.w[claim] == 0, "the claim stands")
                    os.kill(running.pid, signal.SIGCONT)
                    task.result()
                else:
                    with pytest.raises(MFSStoreBusyError, match=f"process {running.pid} "):
                        task.result()
                    assert store.w[claim] == NO_CLAIM and not store.mutexes[K]._gate
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.receive()
        assert during == ([0] if in_time else [])
        monkeypatch.undo()
        inside(store, K, lambda: during.append(store.w[at]))
        assert during[-1] == (0 if in_time else 2)
        assert sound(store) == []


def change_under_both_and_die(link: Link, name: str) -> None:
    """Enter m[0] and m[K], wait between the token of the latter and its claim, and die in the middle of a transaction."""
    store = attachment.attach(name)
    claim, created = store.layout.slot_at(store.slot) + S_CLAIM + K, store.layout.node_at(NODE) + N_CREATED

    class Paused(WordBuffer):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == claim and value != NO_CLAIM:
                link.send("has the token")
                link.recv()
            if key == journal_at(0) and value == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.words[key] = value

    instrument(store, lambda words: Paused(words, lambda _: None))

    def step(section: Section) -> None:
        section.enter(NODE)
        section.plan[created] = 1234

    store.sections.run(step)


def test_suspected_before_its_claim_and_dead_after_it(generations: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is first seen to claim m[K] when it is revoked has its claim of m[0] looked at then, whose journal is about m[K]."""
    store = generations
    created = store.layout.node_at(NODE) + N_CREATED
    provide = Recovery._provide
    with child("fork", change_under_both_and_die, store.name) as running:
        assert running.receive() == "has the token"

        def late(self: Recovery, number: int, generation: int) -> None:
            if not running.process.exitcode:
                running.send("go on")
                running.join()
            provide(self, number, generation)

        monkeypatch.setattr(Recovery, "_provide", late)
        assert store.recovery.recover(K, None)
        seen: list[int] = []
        inside(store, K, lambda: seen.append(store.w[created]), 10)
        assert seen == [0]
    assert sound(store) == []


# ---- a gate that was left shut


def test_thread_that_vanished(store: Attachment) -> None:
    """What a thread left that was hit by exceptions in its own repair is repaired by the next thread that comes."""
    at = store.layout.node_at(NODE)

    def vanish() -> None:
        each = store.mutexes[K]
        each.acquire(store.threads.enter())
        store.w[each.journal + 1], store.w[each.journal + 2] = at + N_CREATED, 17
        store.w[each.journal] = 1
        store.w[at + N_CREATED] = 1234

    Task(vanish).result()
    seen: list[int] = []
    inside(store, K, lambda: seen.append(store.w[at + N_CREATED]), 10)
    assert seen == [17]
    assert sound(store) == []


def test_thread_that_comes_back_while_its_gate_is_mended(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits like anybody else: what is rolled back and given up for it is not what it holds by then."""
    each, abandon_for, undo = store.mutexes[K], mutex.Mutex._abandon_for, mutex.roll_back
    left, back, entered, mended = (threading.Event() for _ in range(4))
    mender = threading.get_ident()

    def vanish_and_return() -> None:
        each.acquire(store.threads.enter())
        left.set()
        assert back.wait(60)

        def body() -> None:
            entered.set()
            assert mended.wait(60)
            assert each._gate[0] is store.threads.thread, "its gate was opened under it"
            assert store.w[store.layout.slot_at(store.slot) + S_CLAIM + K] != NO_CLAIM, "its claim is gone"

        inside(store, K, body, 10)

    def midway(words: Any, at: int) -> bool:
        if threading.get_ident() == mender and not back.is_set():
            back.set()
            until(lambda: entered.is_set() or len(each._waiting) > 1, "it is in, or waits behind us")
        return undo(words, at)

    def mend(self: mutex.Mutex, other: mutex.Thread) -> None:
        abandon_for(self, other)
        mended.set()

    monkeypatch.setattr(mutex, "roll_back", midway)
    monkeypatch.setattr(mutex.Mutex, "_abandon_for", mend)
    task = Task(vanish_and_return)
    assert left.wait(60)
    inside(store, K, lambda: None, 10)
    task.result()
    assert sound(store) == []


def test_thread_that_enters_anew_while_its_gate_is_looked_at(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was inside, then it was not, and now it is again: that is no gate left shut, whoever looks at it meanwhile."""
    each, look = store.mutexes[K], mutex.in_section
    entered, leave, left, come, anew, mended = (threading.Event() for _ in range(6))
    mender = threading.get_ident()

    def first() -> None:
        entered.set()
        assert leave.wait(DEADLINE_S)

    def second() -> None:
        anew.set()
        assert mended.wait(DEADLINE_S)
        assert each._gate.get(0) is store.threads.thread, "its gate was opened under it"
        assert store.w[store.layout.slot_at(store.slot) + S_CLAIM + K] != NO_CLAIM, "its claim is gone"

    def come_and_go() -> None:
        inside(store, K, first)
        left.set()
        assert come.wait(DEADLINE_S)
        inside(store, K, second)

    def slowly(*whom: Any) -> bool:
        if threading.get_ident() != mender or leave.is_set():
            return look(*whom)
        leave.set()
        assert left.wait(DEADLINE_S)
        seen = look(*whom)
        come.set()
        assert anew.wait(DEADLINE_S)
        return seen

    task = Task(come_and_go)
    assert entered.wait(DEADLINE_S)
    monkeypatch.setattr(mutex, "in_section", slowly)
    each._abandon_for(each._gate[0])
    mended.set()
    task.result()
    assert sound(store) == []


def test_gate_left_shut_by_a_thread_that_waits_elsewhere(store: Attachment) -> None:
    """It does not keep others out for as long as it is busy with something else."""
    left = threading.Event()
    record = lock(store, NODE + 1, REC_WRITER)

    def vanish_and_wait() -> None:
        store.mutexes[K].acquire(store.threads.enter())
        left.set()
        unlock(store, lock(store, NODE + 1, REC_WRITER))

    task = Task(vanish_and_wait)
    assert left.wait(60)
    until(lambda: any(hold.state == QUEUED for hold in store.rw.holds(NODE + 1)), "it waits")
    inside(store, K, lambda: None, 10)
    unlock(store, record)
    task.result()
    assert sound(store) == []


def test_gate_of_a_busy_thread(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is inside is not taken for one that vanished; waiting for it ends with the timeout."""
    monkeypatch.setattr(mutex, "GRACE_S", 0.3)
    entered, leave = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        assert leave.wait(60)

    task = Task(inside, store, K, body)
    try:
        assert entered.wait(60)
        with pytest.raises(MFSStoreBusyError):
            inside(store, K, lambda: pytest.fail("two holders"), 0.0)
    finally:
        leave.set()
        task.result()
    assert sound(store) == []


def test_thread_that_never_pauses(store: Attachment) -> None:
    """It does not keep another thread of its process out, although the GIL changes hands while it is inside."""
    ready, end = threading.Event(), threading.Event()
    turns = [0]

    def body() -> None:
        turns[0] += 1
        ready.set()

    def run() -> None:
        while not end.is_set():
            inside(store, K, body)

    task = Task(run)
    try:
        assert ready.wait(60)
        for _ in range(30):
            inside(store, K, lambda: None, 20)
    finally:
        end.set()
        task.result()
    assert turns[0] < 30 * 10_000  # it is some hundreds a turn of ours; without care for us it has no bound
    assert sound(store) == []


def test_waiter_that_vanished(store: Attachment) -> None:
    """A thread that had its turn at the gate reserved, and is gone, is passed over."""
    gone: list[Any] = []
    Task(lambda: gone.append(store.threads.thread)).result()
    store.mutexes[K]._waiting.append(gone[0])
    inside(store, K, lambda: None, 20)
    assert not store.mutexes[K]._waiting
    assert sound(store) == []


# ---- exceptions at any instruction


class At:
    """A trace function that acts once, at the n-th place in the store's code where the interpreter looks for signals.

    These are the places after a call, after the head of a function and after a jump back: `with lock:` cannot be
    interrupted between locking and entering the block, for instance, though a trace function could do that.
    """

    FOLDER = os.path.dirname(mutex.__file__) + os.sep
    places: ClassVar[dict[Any, set[int]]] = {}

    @classmethod
    def places_of(cls, code: Any) -> set[int]:
        if code not in cls.places:
            instructions = list(dis.get_instructions(code))
            cls.places[code] = {
                following.offset
                for instruction, following in itertools.pairwise(instructions)
                if instruction.opname.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "INSTRUMENTED_"))
            } | {i.argval for i in instructions if i.opname == "JUMP_BACKWARD"}
        return cls.places[code]

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.left = number
        self.act = act
        self.acted = False

    def __call__(self, frame: Any, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.FOLDER):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in self.places_of(frame.f_code):
            self.left -= 1
            if self.left < 0 and not self.acted:
                self.acted = True
                self.act()
        return self

    def run(self, function: Callable[[], None]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        finally:
            sys.settrace(before)


def count_places(function: Callable[[], None]) -> int:
    at = At(1 << 40, lambda: None)
    at.run(function)
    return (1 << 40) - at.left


def interrupt() -> None:
    raise KeyboardInterrupt


def lock_and_unlock(store: Attachment, kind: int, made: list[int]) -> None:
    made.append(lease(store))
    assert store.rw.lock(NODE, 1, 0, made[0], kind, None)
    unlock(store, made[0])
    made.clear()


@pytest.mark.parametrize("kind", [0, REC_WRITER], ids=["shared", "exclusive"])
def test_interrupted_anywhere(store: Attachment, kind: int) -> None:
    """KeyboardInterrupt anywhere in lock and unlock: no lock is lost or held twice, no gate stays shut."""
    unlock(store, lock(store, NODE, REC_WRITER))  # or a reader would hold it lightly, as in `test_interrupted_lightly`
    count = count_places(lambda: lock_and_unlock(store, kind, []))
    assert count > 20
    for number in range(count):
        made: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            At(number, interrupt).run(lambda made=made: lock_and_unlock(store, kind, made))
        for record in made:
            give_back(store, record)
        unlock(store, lock(store, NODE, REC_WRITER, 10))
        assert not any(each._gate for each in store.mutexes)
        assert not store.threads.thread.inside
        assert store.w[store.mutexes[K].journal] == 0
    assert sound(store) == []


def test_interrupted_lightly(store: Attachment) -> None:
    """The same, of light holds."""
    unlock(store, lock(store, NODE))
    count = count_places(lambda: lock_and_unlock(store, 0, []))
    assert count >= 10
    for number in range(count):
        made: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            At(number, interrupt).run(lambda made=made: lock_and_unlock(store, 0, made))
        for record in made:
            give_back(store, record)
        unlock(store, lock(store, NODE, REC_WRITER, 10))
        unlock(store, lock(store, NODE))
    assert sound(store) == []


def test_interrupted_transaction(store: Attachment) -> None:
    """KeyboardInterrupt anywhere in a section: both of its words changed, or neither."""
    at = store.layout.node_at(NODE)

    def body() -> None:
        plan = Plan(store.w)
        plan[at + N_CREATED] = store.w[at + N_CREATED] + 1
        plan[at + N_MODIFIED] = store.w[at + N_MODIFIED] + 1
        commit(store.w, store.mutexes[K].journal, plan)

    count = count_places(lambda: inside(store, K, body))
    for number in range(count):
        with pytest.raises(KeyboardInterrupt):
            At(number, interrupt).run(lambda: inside(store, K, body))
        inside(store, K, lambda: None, 10)
        assert store.w[at + N_CREATED] == store.w[at + N_MODIFIED]
    assert sound(store) == []


def test_interrupted_giving_back_the_lock_of_recovery(generations: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in place of the unlock: others can still recover."""
    store = generations
    real = type(store.locks).unlock
    hits: list[int] = []

    def unlock_once(self: Any, byte: int) -> None:
        if byte == LB_RECOVER and not hits:
            hits.append(byte)
            raise KeyboardInterrupt
        real(self, byte)

    monkeypatch.setattr(type(store.locks), "unlock", unlock_once)

    def event(what: str) -> None:
        if what == "sem_wait" and store.w[generation_at(K)] == 0:
            store.w[generation_at(K)] = 1  # so that a6 takes the lock of recovery

    inside(store, K, lambda: None)
    with watched(store, event):
        with pytest.raises(KeyboardInterrupt):
            inside(store, K, lambda: None)
    assert hits
    assert sound(store) == []


def test_interrupted_again_and_again(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving a mutex up comes to its end, however many exceptions come meanwhile."""
    at = store.layout.node_at(NODE)
    real, left = type(store.mutexes[K])._abandon, [5]

    def abandon(mutex: Any, thread: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise KeyboardInterrupt
        real(mutex, thread)

    def body() -> None:
        store.w[store.mutexes[K].journal + 1] = at + N_CREATED
        store.w[store.mutexes[K].journal + 2] = 42
        store.w[store.mutexes[K].journal] = 1
        store.w[at + N_CREATED] = 99
        interrupt()

    monkeypatch.setattr(type(store.mutexes[K]), "_abandon", abandon)
    with pytest.raises(KeyboardInterrupt):
        inside(store, K, body)
    assert left[0] < 0 and store.w[at + N_CREATED] == 42
    assert sound(store) == []


@contextlib.contextmanager
def attached(name: str) -> Iterator[Attachment]:
    """A store of the test's, in a child."""
    store = attachment.attach(name)
    try:
        yield store
    finally:
        attachment.release(store)


class Stray(BaseException):
    """Raised in a thread by another one."""


def be_shot_at(name: str) -> list[str]:
    """Lock and unlock in a thread that another one raises exceptions in, until each of 150 has struck."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with attached(name) as store:
        struck = [0]
        ready, end = threading.Event(), threading.Event()

        def run() -> None:
            ready.set()
            while not end.is_set():
                record = -1
                try:
                    try:
                        record = lease(store)
                        store.rw.lock(NODE, 1, 0, record, REC_WRITER, None)
                        unlock(store, record)
                        record = -1
                    except Stray:
                        struck[0] += 1
                        if record >= 0:
                            give_back(store, record)
                except Stray:  # in the handler: once more, as a caller would that closes what it has
                    struck[0] += 1
                    if record >= 0:
                        give_back(store, record)

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait()
        pause = threading.Event()
        for number in range(150):
            before = struck[0]
            raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stray))
            until(lambda before=before: struck[0] > before or not thread.is_alive(), "the exception strikes")
            pause.wait(0.0001 * (number % 7))
            unlock(store, lock(store, NODE, 0, 20))
        end.set()
        thread.join(20)
        return [f"alive: {thread.is_alive()}"] * thread.is_alive() + sound(store)


def test_exceptions_from_another_thread(store: Attachment) -> None:
    """PyThreadState_SetAsyncExc at times of its own: no lock lost, others go on."""
    assert call_in_child("fork", be_shot_at, store.name) == []


def be_signalled(name: str) -> list[str]:
    """Lock and unlock under a timer signal whose handler raises KeyboardInterrupt."""
    with attached(name) as store:

        def handler(_number: int, _frame: Any) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGVTALRM, handler)
        struck, number = 0, 0
        while struck < 100:
            record, number = lease(store), number + 1
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.00001 * (1 + number % 40))
                for _ in range(20000):
                    store.rw.lock(NODE, 1, 0, record, REC_WRITER, None)
                    store.rw.unlock(record)
            except KeyboardInterrupt:
                struck += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            give_back(store, record)
        return sound(store)


def test_signals(store: Attachment) -> None:
    """KeyboardInterrupt from real signals: no lock lost, no gate shut."""
    assert call_in_child("fork", be_signalled, store.name) == []


# ---- signal handlers that use the filesystem


def test_handler_inside_a_section(store: Attachment) -> None:
    """It is refused, and the section goes on unharmed."""
    at = store.layout.node_at(NODE)

    def handler() -> None:
        for node in (NODE, NODE + 1):
            with pytest.raises(MFSReentrantCallError):
                lock(store, node)

    def body() -> None:
        handler()
        plan = Plan(store.w)
        plan[at + N_CREATED] = 99
        commit(store.w, store.mutexes[K].journal, plan)

    inside(store, K, body)
    assert store.w[at + N_CREATED] == 99
    assert sound(store) == []


def test_handler_anywhere(store: Attachment) -> None:
    """Whatever it interrupts, it either locks and unlocks or is refused; what it interrupted ends as if nothing had been."""
    outcomes = set()

    def handler() -> None:
        try:
            unlock(store, lock(store, NODE + 1))
            unlock(store, lock(store, NODE + 16))
        except MFSReentrantCallError:
            outcomes.add("refused")
        else:
            outcomes.add("done")

    lock_and_unlock(store, REC_WRITER, [])
    count = count_places(lambda: lock_and_unlock(store, REC_WRITER, []))
    for number in range(count):
        At(number, handler).run(lambda: lock_and_unlock(store, REC_WRITER, []))
        assert not any(each._gate for each in store.mutexes), number
        assert not store.threads.thread.inside
    assert outcomes == {"refused", "done"}
    assert sound(store) == []


def signal_inside(name: str) -> tuple[list[str], list[str]]:
    outcomes = []

    def handler(_number: int, _frame: Any) -> None:
        try:
            unlock(store, lock(store, NODE))
        except MFSReentrantCallError:
            outcomes.append("refused")
        else:
            outcomes.append("done")

    signal.signal(signal.SIGUSR1, handler)
    with attached(name) as store:
        signal.raise_signal(signal.SIGUSR1)
        inside(store, K, lambda: signal.raise_signal(signal.SIGUSR1))
        signal.raise_signal(signal.SIGUSR1)
        return outcomes, sound(store)


def test_a_real_signal_inside(store: Attachment) -> None:
    """Refused inside a section, served outside."""
    assert call_in_child("fork", signal_inside, store.name) == (["done", "refused", "done"], [])


# ---- a store that was destroyed


def test_destroyed(store: Attachment) -> None:
    """Every section ends with MFSStoreGoneError, used before or not, and nothing new appears in /dev/shm."""
    inside(store, K, lambda: None)
    attachment.destroy(store.name)
    for number in (K, K + 1, 0):
        with pytest.raises(MFSStoreGoneError):
            inside(store, number, lambda: pytest.fail("got in"))
    assert store.recovery.recover(K + 2, None)
    assert leftovers(store.uuid.hex) == []


def test_destroyed_while_waiting(store: Attachment) -> None:
    """Who waits for a mutex is told."""
    with child("fork", stop_inside, store.name) as running:
        wait_until_stopped(running.pid)
        try:
            with short_slices():
                task = Task(inside, store, K, lambda: pytest.fail("two holders"))
                until(lambda: bool(store.mutexes[K]._gate), "the thread is at the mutex")
                attachment.destroy(store.name)
                with pytest.raises(MFSStoreGoneError):
                    task.result()
        finally:
            os.kill(running.pid, signal.SIGCONT)
        running.join()
    assert leftovers(store.uuid.hex) == []


# ---- after fork


def test_fork_inside_a_section(store: Attachment) -> None:
    """A child forked while a thread is inside has nothing of it: no gate, no claim, no slot."""
    pids: list[int] = []

    def body() -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                other = attachment.attach(store.name)
                thread = other.threads.enter()
                assert other is not store and not other.mutexes[K]._gate and not thread.inside
                inside(other, K, lambda: None, 20)
                attachment.release(other)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)

    Task(inside, store, K, body).result()
    _, status = os.waitpid(pids[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert store.w[store.layout.slot_at(store.slot) + S_CLAIM + K] in (NO_CLAIM, 0 if sound(store) else NO_CLAIM)
    assert sound(store) == []


def test_closing_keeps_the_page_of_whoever_is_at_the_gate(generations: Attachment) -> None:
    inside(generations, K, lambda: None)
    each = generations.mutexes[K]
    semaphore = each._semaphore
    each._gate[0] = generations.threads.enter()
    each.close()
    each._gate.clear()
    generations.threads.thread.inside = False
    semaphore.acquire(0)
    semaphore.release()
    semaphore.close()
    inside(generations, K, lambda: None)


def close_beside_a_waiter(_link: Link, name: str) -> None:
    store = attachment.attach(name)
    inside(store, K, lambda: None)
    each = store.mutexes[K]
    each._semaphore.acquire(1)  # so that the thread has to wait
    task = Task(inside, store, K, lambda: None)
    until(lambda: bool(each._gate), "the thread is at the gate")
    until(lambda: sys._current_frames()[task._thread.ident].f_code.co_name == "_take", "it sleeps")
    each.close()
    with contextlib.suppress(Exception):  # whatever it is told, its process lives
        task.result()


def test_closing_beside_a_thread_that_waits(generations: Attachment) -> None:
    with child("spawn", close_beside_a_waiter, generations.name) as running:
        assert running.receive() is None
        running.join()
        assert running.process.exitcode == 0


def look_while_garbage_is_collected(link: Link) -> None:
    parked, go_on = threading.Event(), threading.Event()

    def park() -> None:
        other.append(mutex.Thread())
        parked.set()
        go_on.wait(DEADLINE_S)

    other: list[mutex.Thread] = []
    task = Task(park)
    assert parked.wait(DEADLINE_S)
    gc.set_threshold(5)
    for _ in range(1000):
        garbage: list[Any] = [threading.local()]  # whose end looks at all threads, too
        garbage.append(garbage)
        del garbage
        assert not mutex.in_section(other[0])
    assert gc.isenabled()
    go_on.set()
    task.result()
    link.send("done")


def test_looking_where_another_thread_is_while_garbage_is_collected() -> None:
    """A collection within sys._current_frames() stops the process for ever, on CPython 3.11 up to 3.11.8."""
    with child("fork", look_while_garbage_is_collected) as running:
        assert running.receive() == "done"


@pytest.mark.parametrize("is_on", [True, False])
def test_looking_where_another_thread_is_leaves_collection_as_it_was(is_on: bool) -> None:
    others = in_thread(mutex.Thread)
    before = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        assert not mutex.in_section(others)
        assert not mutex._without_collection(gc.isenabled)
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if before else gc.disable)()
