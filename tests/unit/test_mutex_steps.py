"""The slow ways through a mutex, each by itself: what was left behind, what was revoked, what interrupts.

`test_mutex` shows that whole sections exclude each other whatever happens; here each step is brought about by hand, and
seen to do what its part of the protocol says, no more and no less.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import posix_ipc
import pytest

from dmemfs_shm.errors import MFSNoSpaceError, MFSReentrantCallError, MFSStoreBusyError, MFSStoreGoneError
from dmemfs_shm.store import mutex, names, recovery, semaphores
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.layout import (
    LB_MUTEX,
    LB_RECOVER,
    N_CREATED,
    NO_CLAIM,
    RECOVERIES,
    S_CLAIM,
    STATE_DESTROYED,
    STATE_READY,
    W_STATE,
    generation_at,
    journal_at,
)

from ..crash.harness import system_calls, watched
from ..lockstore import BOTH, inside, killed_inside, lock_store, mutex_findings, sound_lock_store
from ..processes import DEADLINE_S, Task, in_thread, until

NODE = 5
K = 1 + NODE % 16


@pytest.fixture
def store() -> Iterator[Attachment]:
    """A store whose mutexes have generations, in order at the end: one token each, no claim, no journal, no shut gate."""
    with sound_lock_store() as made:
        yield made


@pytest.fixture(params=BOTH)
def either(request: pytest.FixtureRequest) -> Iterator[Attachment]:
    """As `store`, with either backend."""
    with sound_lock_store(request.param) as made:
        yield made


def claim_at(store: Attachment, number: int = K) -> int:
    return store.layout.slot_at(store.slot) + S_CLAIM + number


def time_of(store: Attachment, node: int = NODE) -> int:
    return store.layout.node_at(node) + N_CREATED


def begin(store: Attachment, number: int = K) -> None:
    """Begin to change the node's time, 17, under a mutex."""
    at, word = journal_at(number), time_of(store)
    store.w[at + 1], store.w[at + 2], store.w[at] = word, 17, 1
    store.w[word] = 1234


def nothing() -> None:
    pass


# ---- what is known of threads


def test_threads_have_numbers_of_their_own(store: Attachment) -> None:
    """A thread's word tells it from every other of this process, and holds the kernel's id of it."""
    mine, others = store.threads.thread, in_thread(lambda: (store.threads.thread, threading.get_native_id()))
    assert mine.word & 0xFFFFFFFF == threading.get_native_id() and mine.ident == threading.get_ident()
    assert others[0].word & 0xFFFFFFFF == others[1]
    later = in_thread(lambda: store.threads.thread)
    assert mine.word >> 32 != later.word >> 32 == (others[0].word >> 32) + 1 and not later.inside
    assert store.threads.enter() is mine


def test_a_thread_left_behind_as_inside(store: Attachment) -> None:
    """Two exceptions in a row may leave it so. It may enter, for no section is on its stack, as another thread to the gates,
    but the same one to lock records."""
    before = store.threads.thread
    before.inside = True
    after = store.threads.enter()
    assert after is store.threads.thread is not before and not after.inside
    assert before.gone and not after.gone and after.word == before.word


def test_who_is_in_a_section(store: Attachment) -> None:
    """A thread is while a frame of the store's folder is below the present call, and another thread while it has one."""
    entered, leave = threading.Event(), threading.Event()
    threads: list[mutex.Thread] = []

    def body() -> None:
        threads.append(store.threads.thread)
        assert mutex.in_section(threads[0])
        with pytest.raises(MFSReentrantCallError, match="inside one of its critical sections"):
            store.threads.enter()
        entered.set()
        assert leave.wait(DEADLINE_S)

    task = Task(inside, store, K, body)
    assert entered.wait(DEADLINE_S)
    assert mutex.in_section(threads[0]) and not mutex.in_section(store.threads.thread)
    leave.set()
    task.result()
    assert not mutex.in_section(threads[0])


def test_a_fence_that_was_closed_at_a_fork(store: Attachment) -> None:
    """The child has one of its own; the parent's stays with the thread that closed it."""
    before = mutex._fence
    with before:
        mutex._new_fence()
        in_thread(inside, store, K, nothing)
    assert mutex._fence is not before and not mutex._fence.locked()


def test_a_fence_is_a_semaphore_without_a_name(store: Attachment) -> None:
    """Each section counts it up by one; others of the process have the same."""
    call = store.mutexes[K]._fence
    semaphore = call.__self__  # type: ignore[attr-defined]
    before = semaphore.value
    inside(store, K, nothing)
    assert semaphore.value == before + 1 and not os.path.exists(names.semaphore_path(semaphore.name))
    assert all(each._fence == call for each in store.mutexes)
    store.mutexes[K].settle(store.slot)
    assert store.mutexes[K]._fence == call, "another slot, the same process"


def test_a_fence_that_counts_no_further(store: Attachment) -> None:
    """The section goes on, with the lock as its fence."""
    full = posix_ipc.Semaphore(names.fence(store.uuid, 9), posix_ipc.O_CREX, initial_value=2**31 - 1)
    full.unlink()
    store.mutexes[K]._fence = full.release
    inside(store, K, nothing)
    assert store.mutexes[K]._fence is mutex.close_and_open
    inside(store, K, nothing)


def test_a_handlers_error_at_the_fence(store: Attachment) -> None:
    """Nobody takes it for the semaphore's."""

    def interrupted() -> None:
        raise TimeoutError

    before, store.mutexes[K]._fence = store.mutexes[K]._fence, interrupted
    with pytest.raises(TimeoutError):
        inside(store, K, nothing)
    store.mutexes[K]._fence = before
    inside(store, K, nothing)


def test_a_fence_without_memory(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, value: int) -> None:
        raise MFSNoSpaceError(name)

    monkeypatch.setattr(mutex, "create_semaphore", refused)
    assert mutex.Fence(names.fence(store.uuid, 9)).call is mutex.close_and_open


# ---- the gate


def test_the_gate_while_inside(either: Attachment) -> None:
    """It is shut for as long, the claim stands, the thread says so; afterwards nothing of it is left."""
    each, thread = either.mutexes[K], either.threads.thread

    def body() -> None:
        assert each._gate == {0: thread} and thread.inside and each.holder() == either.slot
        assert either.w[claim_at(either)] == 0

    inside(either, K, body)
    assert not each._gate and not thread.inside and each.holder() is None
    assert either.w[claim_at(either)] == NO_CLAIM


def test_leaving_the_inner_one(either: Attachment) -> None:
    """It is free for others then, and the thread is still inside the outer one."""
    outer, inner, thread = either.mutexes[0], either.mutexes[K], either.threads.enter()
    outer.acquire(thread)
    inner.acquire(thread)
    inner.release_inner()
    assert not inner._gate and inner.holder() is None and outer.holder() == either.slot and thread.inside
    in_thread(inside, either, K, nothing)
    outer.release(thread)
    assert not thread.inside and either.w[RECOVERIES] == 0, "the token was given back, too"


def test_who_waits_first_is_let_in_first(either: Attachment) -> None:
    """A thread that announced itself is not overtaken, by whomever; its announcement goes with it."""
    each, order = either.mutexes[K], []
    entered, leave = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        assert leave.wait(DEADLINE_S)

    tasks = [Task(inside, either, K, body)]
    assert entered.wait(DEADLINE_S)
    for number in range(3):
        tasks.append(Task(inside, either, K, lambda number=number: order.append(number)))
        until(lambda number=number: len(each._waiting) == number + 1, "it announced itself")
    leave.set()
    for task in tasks:
        task.result()
    assert order == [0, 1, 2] and not each._waiting


def test_who_gives_up_at_the_gate(either: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that it waits for a thread of its own process, and leaves no announcement."""
    monkeypatch.setattr(mutex, "GRACE_S", 0.05)
    each = either.mutexes[K]

    def body() -> None:
        with pytest.raises(MFSStoreBusyError, match=f"Another thread of this process holds mutex {K} "):
            in_thread(inside, either, K, nothing, 0.0)

    inside(either, K, body)
    assert not each._waiting


def test_mending_the_gate(store: Attachment) -> None:
    """It is opened for one that vanished and for nobody else; a waiter that vanished is forgotten, one that waits is not."""
    each, thread = store.mutexes[K], store.threads.thread
    each.mend(thread)
    entered, leave = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        assert leave.wait(DEADLINE_S)

    task = Task(inside, store, K, body)
    assert entered.wait(DEADLINE_S)
    busy = each._gate[0]
    gone = in_thread(lambda: store.threads.thread)  # only now: a thread that starts later may get its number
    each._waiting.append(thread)
    each.mend(thread)
    each._waiting[0] = busy
    each.mend(thread)
    assert each._gate == {0: busy} and list(each._waiting) == [busy]
    each._waiting[0] = gone
    each.mend(thread)
    assert not each._waiting
    each._abandon_for(gone)
    each._abandon_for(busy)
    assert each._gate == {0: busy}
    leave.set()
    task.result()
    assert not each._is_left_by(gone), "nobody shuts it"
    each._gate[0] = gone
    each.mend(thread)
    assert not each._gate


# ---- giving back a claim that stands


@pytest.mark.parametrize(
    ("generation", "valid"),
    [(4, True), (5, True), (6, False), (7, False), (8, False), (2, False), (3, False)],
)
def test_giving_back(store: Attachment, generation: int, valid: bool) -> None:
    """The claim is of generation 4. Valid, the journal is ours and is rolled back, and a token is given for the one that
    was taken; otherwise journal and token are another's, and nothing but the claim goes."""
    each, w = store.mutexes[K], store.w
    posix_ipc.Semaphore(names.mutex(store.uuid, K, 4), posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    assert each._open(4)
    w[generation_at(K)], w[claim_at(store)] = generation, 4
    begin(store)
    each._give_back(4, None)
    assert w[claim_at(store)] == NO_CLAIM
    assert (w[time_of(store)], w[journal_at(K)]) == ((17, 0) if valid else (1234, 1))
    assert each._semaphore.value == valid
    assert w[generation_at(K)] == (4 if valid else generation)
    w[generation_at(K)], w[journal_at(K)] = 4, 0
    if not valid:
        each._semaphore.release()


def test_giving_back_what_was_never_taken(store: Attachment) -> None:
    """A claim whose semaphore we never opened has no token in our hands: none is given, for doubling one is not safe."""
    store.mutexes[K].close()
    store.w[claim_at(store)] = 0
    inside(store, K, nothing)
    assert store.mutexes[K]._semaphore.value == 1


def test_giving_back_with_another_semaphore_open(store: Attachment) -> None:
    """Its token is not that of the claim: none is given."""
    inside(store, K, nothing)
    store.w[generation_at(K)] = store.w[claim_at(store)] = 6
    store.mutexes[K]._give_back(6, None)
    assert store.w[claim_at(store)] == NO_CLAIM and store.mutexes[K]._semaphore.value == 1
    store.w[generation_at(K)] = 0


def test_giving_back_in_the_middle_of_a_revocation(store: Attachment) -> None:
    """Without R in time nothing is known, so nothing changes."""
    others = ByteLocks(names.index_name(store.name))
    inside(store, K, nothing)
    store.w[generation_at(K)], store.w[claim_at(store)] = 1, 0
    assert others.try_lock(LB_RECOVER)
    with pytest.raises(MFSStoreBusyError):
        store.mutexes[K]._give_back(0, time.monotonic())
    assert (store.w[generation_at(K)], store.w[claim_at(store)]) == (1, 0)
    with pytest.raises(MFSStoreBusyError):
        store.mutexes[K]._keep_claim(time.monotonic())
    assert (store.w[generation_at(K)], store.w[claim_at(store)]) == (1, NO_CLAIM), "who enters takes it back at once"
    others.close()
    store.w[generation_at(K)], store.w[claim_at(store)] = 0, NO_CLAIM


def test_a_claim_left_behind(store: Attachment) -> None:
    """By two exceptions in a row in the same thread: what was begun is taken back before anybody is let in."""
    store.mutexes[K].acquire(store.threads.enter())
    begin(store)
    seen: list[int] = []
    inside(store, K, lambda: seen.append(store.w[time_of(store)]))
    assert seen == [17]


# ---- abandoning


def failing() -> None:
    raise KeyError


def test_abandoning(either: Attachment) -> None:
    """What was begun is taken back, everything is open again, and the exception goes on; twice does no harm."""
    with pytest.raises(KeyError):
        inside(either, K, lambda: (begin(either), failing()))
    assert either.w[time_of(either)] == 17 and either.w[generation_at(K)] == 0
    assert mutex_findings(either) == []
    either.mutexes[K].abandon(either.threads.thread)
    assert not either.threads.thread.inside


@pytest.mark.parametrize("times", [1, 3])
def test_interrupted_while_abandoning(store: Attachment, times: int) -> None:
    """It begins again as often as it takes, and the interruption is what is raised in the end."""
    hits: list[str] = []

    def event(what: str) -> None:
        if armed and len(hits) < times:
            hits.append(what)
            raise KeyboardInterrupt

    armed: list[bool] = []
    inside(store, K, nothing)
    with watched(store, event):
        with pytest.raises(KeyboardInterrupt):
            inside(store, K, lambda: (begin(store), armed.append(True), failing()))
    assert len(hits) == times and store.w[time_of(store)] == 17
    assert not store.mutexes[K]._gate and store.w[claim_at(store)] == NO_CLAIM and not store.threads.thread.inside


def test_interrupted_for_ever_while_abandoning(store: Attachment) -> None:
    """It gives up some day; the next one who comes, the same thread or another, does it."""

    def event(what: str) -> None:
        if armed:
            hits.append(what)
            raise KeyboardInterrupt

    armed: list[bool] = []
    hits: list[str] = []
    inside(store, K, nothing)
    with watched(store, event):
        with pytest.raises(KeyboardInterrupt):
            inside(store, K, lambda: (begin(store), armed.append(True), failing()))
        armed.clear()
    assert len(hits) == 2 * mutex.ABANDON_TRIES and store.mutexes[K]._gate, "the section calls it twice"
    seen: list[int] = []
    inside(store, K, lambda: seen.append(store.w[time_of(store)]), 20.0)
    assert seen == [17]


def test_abandoning_a_mutex_that_another_thread_has(either: Attachment) -> None:
    """Nothing of it is given back."""
    each = either.mutexes[K]

    def body() -> None:
        in_thread(lambda: each.abandon(either.threads.thread))
        assert each._gate == {0: either.threads.thread} and either.w[claim_at(either)] == 0

    inside(either, K, body)


def test_abandoning_before_the_claim(store: Attachment) -> None:
    """Whether the token was taken is not known, so the generation is revoked if there is none."""
    each, thread = store.mutexes[K], store.threads.enter()
    inside(store, K, nothing)
    each._gate[0] = thread
    each.abandon(thread)
    assert not each._gate and store.w[RECOVERIES] == 0, "it was not taken"
    each._gate[0] = thread
    each._semaphore.acquire(1)
    each.abandon(thread)
    assert not each._gate and store.w[generation_at(K)] == 2


# ---- taking


@pytest.mark.parametrize("used", [False, True], ids=["not open", "open"])
def test_a_revocation_somebody_died_in(store: Attachment, used: bool) -> None:
    """An odd generation is completed by whoever comes."""
    inside(store, K, nothing)
    if not used:
        store.mutexes[K].close()
    store.w[generation_at(K)] = 1
    inside(store, K, nothing)
    assert store.w[generation_at(K)] == 2


def test_a_semaphore_taken_away(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody unlinked it by force: looked for twice, then the generation is revoked."""
    store.mutexes[K].close()
    posix_ipc.unlink_semaphore(names.mutex(store.uuid, K, 0))
    steps: list[str] = []
    recover, opening = store.recovery.recover, mutex.Mutex._open

    def said(what: str, call: Callable[..., Any], *args: Any) -> Any:
        steps.append(what)
        return call(*args)

    monkeypatch.setattr(recovery.Recovery, "recover", lambda _, *args: said("recover", recover, *args))
    monkeypatch.setattr(mutex.Mutex, "_open", lambda each, *args: said("open", opening, each, *args))
    inside(store, K, nothing)
    assert store.w[generation_at(K)] == 2 and steps == ["open", "open", "recover", "open"]


def test_how_often_a_holder_is_suspected(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the token was not to be had twice in a row: a living one goes on, and a dead one will be found, too."""
    monkeypatch.setattr(mutex, "SLICE_S", 0.001)
    inside(store, K, nothing)
    store.mutexes[K]._semaphore.acquire(1)
    steps: list[str] = []
    recover, attempt = store.recovery.recover, mutex.Mutex._try

    def tried(each: mutex.Mutex, deadline: float | None) -> bool:
        steps.append("try")
        return attempt(each, deadline)

    def recovered(_: recovery.Recovery, number: int, deadline: float | None) -> bool:
        store.w[claim_at(store)] = NO_CLAIM if "living" in steps else 0
        free = recover(number, deadline)
        store.w[claim_at(store)] = NO_CLAIM
        steps.append("free" if free else "living")
        return free

    monkeypatch.setattr(mutex.Mutex, "_try", tried)
    monkeypatch.setattr(recovery.Recovery, "recover", recovered)
    inside(store, K, nothing)
    assert steps == ["try", "try", "living", "try", "try", "free", "try"] and store.w[generation_at(K)] == 2


def test_the_old_semaphore_is_closed(store: Attachment) -> None:
    """With the new generation's in its place."""
    each = store.mutexes[K]
    inside(store, K, nothing)
    old = each._semaphore
    each._semaphore.acquire(1)
    inside(store, K, nothing, 20.0)
    assert each._generation == 2 and each._semaphore is not old
    with pytest.raises(posix_ipc.ExistentialError):
        old.release()


@pytest.mark.parametrize("rest", [-1.0, 0.02, None], ids=["none", "a little", "a slice"])
def test_no_token(store: Attachment, rest: float | None) -> None:
    """It is waited for a slice, or until the deadline if that is sooner."""
    inside(store, K, nothing)
    each = store.mutexes[K]
    each._semaphore.acquire(1)
    before = time.monotonic()
    assert not each._try(None if rest is None else before + rest)
    assert time.monotonic() - before >= (mutex.SLICE_S * 0.9 if rest is None else max(0, rest * 0.9))
    each._semaphore.release()
    assert each._try(before)
    each._semaphore.release()


def test_a_token_that_comes_while_it_sleeps(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ours then, and not lost."""
    inside(store, K, nothing)
    each, sleep_on = store.mutexes[K], mutex.sleep_on
    each._semaphore.acquire(1)
    monkeypatch.setattr(mutex, "sleep_on", lambda semaphore, rest: (each._semaphore.release(), sleep_on(semaphore, rest))[1])
    assert each._try(None) and each._semaphore.value == 0
    each._semaphore.release()


def test_the_first_look_does_not_sleep(store: Attachment) -> None:
    """Whoever sleeps does it where signals are deferred: in another sleep what their handlers raise would be lost."""
    inside(store, K, nothing)
    each, slept = store.mutexes[K], []
    take = each._try_token
    each._try_token = lambda block: (slept.append(block), take(block))[1]
    inside(store, K, nothing)
    assert slept == [False]


@pytest.mark.parametrize("without", [False, True])
def test_taking_a_token_at_once(store: Attachment, without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the standard library's class or without: one token is there once."""
    if without:
        monkeypatch.setattr(semaphores, "_multiprocessing", None)
    semaphore = posix_ipc.Semaphore(names.fence(store.uuid, 9), posix_ipc.O_CREX, initial_value=1)
    take = semaphores.taker(semaphore)
    assert (take(False), take(False), semaphore.value) == (True, False, 0)
    semaphore.release()
    assert take(False)
    semaphore.unlink()
    if not without:
        with pytest.raises(FileNotFoundError):
            semaphores.taker(semaphore)


class Signals:
    """Signals that hit the main thread one after the other until the block ends; *act* sees the frame that each one hit."""

    def __init__(self, act: Callable[[FrameType], None]) -> None:
        self.act, self.end = act, threading.Event()

    def __enter__(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.before = signal.signal(signal.SIGUSR2, lambda _, frame: self.act(frame))
        self.task = Task(self.send, threading.get_ident())

    def send(self, whom: int) -> None:
        while not self.end.wait(0.002):
            signal.pthread_kill(whom, signal.SIGUSR2)

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.task.result()
        signal.signal(signal.SIGUSR2, self.before)


def test_signals_while_waiting_for_the_token(store: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler runs after a slice, and the wait goes on."""
    monkeypatch.setattr(mutex, "SLICE_S", 0.2)
    inside(store, K, nothing)
    each, hits = store.mutexes[K], []
    each._semaphore.acquire(1)

    def act(frame: FrameType) -> None:
        if frame.f_code.co_name == "sleep_on":
            hits.append(frame.f_lineno)
            if len(hits) == 1:
                each._semaphore.release()

    with Signals(act):
        inside(store, K, nothing)
    assert hits and store.w[generation_at(K)] == 0


# ---- a6


@pytest.mark.parametrize("times", [1, 2, 3])
def test_revoked_between_token_and_claim(store: Attachment, times: int) -> None:
    """As often as that happens, the claim does not count, and the next generation's token is taken."""
    at = generation_at(K)
    revoked: list[int] = []

    def event(what: str) -> None:
        if what == "sem_wait" and len(revoked) < times:
            revoked.append(store.w[at])
            assert store.recovery.recover(K, None)

    inside(store, K, nothing)
    during: list[tuple[int, int]] = []
    with watched(store, event):
        inside(store, K, lambda: during.append((store.w[at], store.w[claim_at(store)])))
    assert revoked == list(range(0, 2 * times, 2)) and during == [(2 * times, 2 * times)]


# ---- who is told what


def test_holder_of_a_store_without_another_slot() -> None:
    """All slots have memory, and none of them claims the mutex."""
    with lock_store(slots=1) as store:
        assert store.mutexes[K].holder() is None
        store.mutexes[K]._gate[0] = store.threads.thread
        assert f"mutex {K} " in store.mutexes[K]._who_is_in_front()
        store.mutexes[K]._gate.clear()
        inside(store, K, nothing)
        store.mutexes[K]._semaphore.acquire(1)
        assert store.recovery.recover(K, None)


def test_the_holder_of_a_generation_that_is_being_revoked(store: Attachment) -> None:
    """Is still the one that claims it; a claim of another generation says nothing."""
    each = store.mutexes[K]
    store.w[claim_at(store)] = 0
    store.w[generation_at(K)] = 1
    assert each.holder() == store.slot
    store.w[generation_at(K)] = 2
    assert each.holder() is None
    assert each._who() == (
        f"Mutex {K} of the store is held by a process that is stopped, which does not go on: resume it or end it."
    )
    store.w[generation_at(K)], store.w[claim_at(store)] = 0, NO_CLAIM


def test_closed_and_used_again(store: Attachment) -> None:
    """Nothing is open; the next section opens what it needs."""
    each = store.mutexes[K]
    each.close()
    inside(store, K, nothing)
    semaphore = each._semaphore
    each.close()
    assert each._semaphore is None and each._generation == -1
    with pytest.raises(posix_ipc.ExistentialError):
        semaphore.release()
    inside(store, K, nothing)
    assert each._generation == 0


# ---- destroyed


@pytest.mark.parametrize("when", ["before", "between"])
def test_destroyed(either: Attachment, when: str) -> None:
    """Before the token or after it: nobody is let in, nothing stays shut."""
    inside(either, K, nothing)

    def event(what: str) -> None:
        if what in ("sem_wait", "locked"):
            either.w[W_STATE] = STATE_DESTROYED

    if when == "before":
        either.w[W_STATE] = STATE_DESTROYED
        with pytest.raises(MFSStoreGoneError):
            inside(either, K, lambda: pytest.fail("let in"))
    else:
        with watched(either, event):
            with pytest.raises(MFSStoreGoneError):
                inside(either, K, lambda: pytest.fail("let in"))
    assert not either.mutexes[K]._gate and either.w[claim_at(either)] == NO_CLAIM
    either.w[W_STATE] = STATE_READY


# ---- the other backend


@pytest.fixture
def ofd() -> Iterator[Attachment]:
    """A store whose mutexes are bytes."""
    with sound_lock_store("ofd") as made:
        yield made


def test_dead_in_both_mutexes(ofd: Attachment) -> None:
    """Who gets the inner one has the outer one's journal rolled back first, which may hold words of both."""
    ofd.w[time_of(ofd)] = 17
    killed_inside(ofd, 0, K, begun=NODE)
    assert ofd.w[time_of(ofd)] == 1234
    seen: list[int] = []

    def body() -> None:
        seen.append(ofd.w[time_of(ofd)])
        assert ofd.threads.thread.inside and not ofd.mutexes[0]._gate and ofd.mutexes[K].holder() == ofd.slot

    inside(ofd, K, body, 20.0)
    assert seen == [17] and ofd.w[journal_at(0)] == 0


def test_the_inner_one_is_not_kept_while_the_outer_one_is_waited_for(ofd: Attachment) -> None:
    """Somebody is inside the outer one, in a transaction. He, or whoever is there after him, may want the inner one next."""
    others = ByteLocks(names.index_name(ofd.name))
    assert others.try_lock(LB_MUTEX)
    begin(ofd, 0)
    task = Task(inside, ofd, K, nothing)
    until(lambda: ofd.mutexes[0].is_entered, "it waits for the outer one")
    assert others.try_lock(LB_MUTEX + K) and not ofd.mutexes[K].is_entered
    ofd.w[journal_at(0)] = 0
    others.close()
    task.result()
    assert ofd.w[time_of(ofd)] == 1234


def test_holder_of_a_byte_in_a_store_without_another_slot() -> None:
    """All slots have memory, and none of them claims the mutex."""
    with lock_store("ofd", slots=1) as store:
        assert store.mutexes[K].holder() is None
        inside(store, K, lambda: store.mutexes[K].holder() == store.slot or pytest.fail("it is ours"))


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), MFSStoreGoneError("lost")])
def test_abandoning_when_the_kernel_does_not_say_whose_the_byte_is(ofd: Attachment, error: OSError) -> None:
    """Without memory to tell us, it is ours because we claim it; without our descriptor it is not, and whoever gets it next
    rolls back."""
    armed: list[bool] = []

    def event(what: str) -> None:
        if armed and what == "lock":
            raise error

    with system_calls(event), pytest.raises(KeyError):
        inside(ofd, K, lambda: (begin(ofd), armed.append(True), failing()))
    assert not ofd.mutexes[K]._gate
    assert (ofd.w[time_of(ofd)], ofd.w[journal_at(K)]) == ((17, 0) if error.errno == errno.ENOLCK else (1234, 1))
    seen: list[int] = []
    inside(ofd, K, lambda: seen.append(ofd.w[time_of(ofd)]))
    assert seen == [17]


def test_waiting_for_a_byte(ofd: Attachment, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it takes, or to the deadline, or to the end of the store."""
    others = ByteLocks(names.index_name(ofd.name))
    assert others.try_lock(LB_MUTEX + K)
    patient = Task(inside, ofd, K, nothing)
    until(lambda: bool(ofd.mutexes[K]._gate), "it waits")
    others.unlock(LB_MUTEX + K)
    patient.result()
    monkeypatch.setattr(mutex, "GRACE_S", 0.02)
    assert others.try_lock(LB_MUTEX + K)
    with pytest.raises(MFSStoreBusyError, match=f"Mutex {K} of the store is held by a process that is stopped"):
        inside(ofd, K, nothing, 0.0)
    doomed = Task(inside, ofd, K, nothing)
    until(lambda: bool(ofd.mutexes[K]._gate), "it waits")
    ofd.w[W_STATE] = STATE_DESTROYED
    with pytest.raises(MFSStoreGoneError):
        doomed.result()
    ofd.w[W_STATE] = STATE_READY
    others.close()


def test_abandoning_before_the_byte(ofd: Attachment) -> None:
    """The byte is another process's: its journal is left alone, only our gate opens."""
    others = ByteLocks(names.index_name(ofd.name))
    assert others.try_lock(LB_MUTEX + K)
    begin(ofd)
    thread = ofd.threads.enter()
    ofd.mutexes[K]._gate[0] = thread
    ofd.mutexes[K].abandon(thread)
    assert not ofd.mutexes[K]._gate and ofd.w[journal_at(K)] == 1 and ofd.w[time_of(ofd)] == 1234
    others.close()


def test_deadlines() -> None:
    """None is for ever; less than the grace proves nothing, so it is given."""
    assert mutex._deadline(None) is None
    for timeout, least in ((0.0, mutex.GRACE_S), (10.0, 10.0)):
        before = time.monotonic()
        made: Any = mutex._deadline(timeout)
        assert before + least <= made <= time.monotonic() + least
