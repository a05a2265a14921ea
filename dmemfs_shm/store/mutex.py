"""The crash-safe mutex: one word of generation, one claim word a participant, one named semaphore a generation.

A POSIX semaphore does not know who took it, and between the kernel giving it and Python storing who has it no observer
can say whether it was given. So a semaphore is never repaired: it is revoked. Each generation has a semaphore of its
own, fresh, with one token; a claim counts only if the generation is still the same after the claim was stored.

Guarantees: at most one thread of all participants is between `acquire` and `release`; the death of any participant at
any instruction is survived; the journal of the mutex is empty whenever somebody has just acquired it. Not promised: any
order among those who wait (sections are short), and progress while a living process is stopped inside.

Words, and who stores them:

    generation   even: stable, odd: being revoked. Only under R (see `Recovery`).
    claim        one a participant: NO_CLAIM or a generation. Only by that participant; by the recoverer once it is dead.

The steps of `acquire` (the numbers appear in the code):

    a0  at most one thread of a process: the gate
    a1  g = generation; odd: recover
    a2  take the token of S(g); not to be had twice in a row: recover
    a3  claim = g
    a4  a full fence (see `Fence`)
    a5  generation == g: the mutex is ours
    a6  otherwise, under R: generation in {g, g+1}: put back to g, ours; else claim = NO_CLAIM and again from a1.
        The token is not given back: it died with its generation. If R is not to be had in time: claim = NO_CLAIM, which
        loses a token and may be done without R, for nothing of a section has been done; the claim could become good later.

and of `release`: r1 claim = NO_CLAIM; r2 give the token back, at most once; r3 open the gate. To lose a token is safe
(the generation is revoked after two slices), to double one is not.

Asynchronous exceptions (KeyboardInterrupt, signal handlers that raise) can come at any call inside. Callers therefore write

    thread = threads.enter()
    try:
        mutex.acquire(thread)
        ...                        # loads and stores of words; nothing slow, nothing of the user's
        mutex.release(thread)
    except BaseException:
        try:
            mutex.abandon(thread)  # whatever was done so far: roll back, give back
        except BaseException:      # a second exception, perhaps before it was at work
            mutex.abandon(thread)
            raise
        raise

`abandon` must come to its end: a claim that a living process has left behind nobody else may clear. It starts again when an
exception interrupts it, and the second call is for one that comes before its first instruction. (Between the two lines of a
handler the interpreter does not look for exceptions.) What a third one leaves behind the process's next visit clears away,
and until then others can't enter.

The gate is a dict with `setdefault`, which takes it and says who has it in one uninterruptible step; a `threading.Lock`
whose acquire was interrupted belongs to nobody.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import posix_ipc

from ..errors import MFSNoSpaceError, MFSReentrantCallError, MFSStoreBusyError, MFSStoreGoneError
from . import names
from .journal import Words, roll_back
from .layout import (
    LB_MUTEX,
    NO_CLAIM,
    S_CLAIM,
    STATE_READY,
    W_STATE,
    generation_at,
    journal_at,
)
from .semaphores import create_semaphore, open_semaphore, sleep_on, taker, unlink_semaphore

if TYPE_CHECKING:
    import uuid as uuids
    from types import FrameType

    from .identity import ByteLocks, Participants
    from .recovery import Recovery

T = TypeVar("T")

SLICE_S = 0.05
GRACE_S = 1.0  # a mutex is waited for at least so long: less proves nothing but that its holder was not scheduled
SPINS = 20
LOOKS_UNFAIR = 6  # about a millisecond. The semaphore drops the GIL behind the gate, so who just looks may always find it shut
ABANDON_TRIES = 100

_STORE = os.path.dirname(__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_fence = threading.Lock()


def _new_fence() -> None:
    """In a forked child: the fence may have been closed by a thread that the child does not have."""
    global _fence
    _fence = threading.Lock()
    Fence.of_process = None


class Fence:
    """A full fence as one call of C, ``call``: the release of a semaphore that only this process has, an atomic addition.

    (Measured: 26 ns. Closing and opening a `threading.Lock` takes 76, in a `with` 160.) The semaphore has no name any more
    when it is used, and is never closed, for a thread may be at it. It counts to 2**31: from then on the lock does, as
    where there is no memory for a semaphore.
    """

    of_process: ClassVar[Fence | None] = None

    __slots__ = ("_semaphore", "call")

    def __init__(self, name: str) -> None:
        self.call: Callable[[], object] = close_and_open
        with contextlib.suppress(MFSNoSpaceError, OSError):
            unlink_semaphore(name)  # of one who died between the two
            create_semaphore(name, 0)
            self._semaphore = open_semaphore(name)
            unlink_semaphore(name)
            self.call = self._semaphore.release

    @classmethod
    def of(cls, name: str) -> Fence:
        """The process's; the name is for one that has to be made."""
        if cls.of_process is None:
            cls.of_process = cls(name)
        return cls.of_process


def close_and_open() -> None:
    """The fence that always works."""
    with _fence:
        pass


def fence_instead(error: OSError) -> Callable[[], object]:
    """The fence from now on, and passed this time, when the fence of the process says that it counts no further."""
    if error.errno != errno.EOVERFLOW:
        raise error  # what a signal handler raised is not ours
    close_and_open()
    return close_and_open


os.register_at_fork(after_in_child=_new_fence)
_collecting = threading.RLock()  # whoever turned garbage collection off; no child is forked meanwhile
os.register_at_fork(before=_collecting.acquire, after_in_parent=_collecting.release, after_in_child=_collecting.release)
_serials = itertools.count(1)


def new_word() -> int:
    """A word for lock records that stands for one caller, for ever: a serial, and the kernel's id of the calling thread."""
    return (next(_serials) & 0xFFFFFFFF) << 32 | threading.get_native_id()


class CalledOffError(Exception):
    """Nobody wants any more what the calling thread waits for: see `Threads.on_behalf`."""


class Thread:
    """What we know of a thread: a number that is never used again in this process, and whether it is in a section.

    ``word`` says in lock records who asks. ``gone``: it left a section without leaving its mutexes, and goes by another
    `Thread` since; the same *word* is given to that. ``is_called_off`` ends its waits for files when it says so.
    """

    __slots__ = ("gone", "ident", "inside", "is_called_off", "word")

    def __init__(self, word: int = 0) -> None:
        self.ident = threading.get_ident()
        self.word = word or new_word()
        self.inside = False
        self.gone = False
        self.is_called_off: Callable[[], bool] | None = None


class Threads(threading.local):
    """The calling thread's `Thread`."""

    def __init__(self) -> None:
        self.thread = Thread()

    @contextlib.contextmanager
    def on_behalf(self, word: int, is_called_off: Callable[[], bool]) -> Iterator[None]:
        """The calling thread asks for files on behalf of whom *word* stands for.

        What that one holds he is given shared again, and told of if he would wait for it, whichever thread asked for it.
        A wait in the block ends with CalledOffError within a slice when is_called_off(), which any thread may decide.
        """
        own = self.thread.word
        self.thread.word, self.thread.is_called_off = word, is_called_off
        try:
            yield
        finally:
            self.thread.word, self.thread.is_called_off = own, None

    def check_wanted(self) -> None:
        """At each slice of a wait that may be long: CalledOffError if it is for nothing."""
        is_called_off = self.thread.is_called_off
        if is_called_off is not None and is_called_off():
            raise CalledOffError

    def enter(self) -> Thread:
        """The calling thread, which is about to enter a section; MFSReentrantCallError if it is in one already.

        This comes before the `try` of the section: what it raises must not make anybody abandon the section that was
        interrupted.
        """
        thread = self.thread
        if thread.inside:
            if in_section(thread):
                raise MFSReentrantCallError(
                    "A signal handler or finaliser used the filesystem inside one of its critical sections."
                )
            # Two exceptions in a row left a section as it was. Whoever finds its gates shut mends them, perhaps this very
            # moment; to be another thread to them makes us wait for that like anybody else.
            thread.gone = True
            self.thread = thread = Thread(thread.word)
        return thread


class Mutex:
    """One mutex of the store, as one process uses it."""

    __slots__ = (
        "_claim_at",
        "_fence",
        "_gate",
        "_generation",
        "_generation_at",
        "_give_token",
        "_semaphore",
        "_try_token",
        "_waiting",
        "journal",
        "number",
        "participants",
        "recovery",
        "uuid",
        "w",
    )

    def __init__(self, number: int, w: Words, uuid: uuids.UUID, participants: Participants, recovery: Recovery) -> None:
        self.number = number
        self.w = w
        self.uuid = uuid
        self.participants = participants
        self.recovery = recovery
        self.journal = journal_at(number)
        self._generation_at = generation_at(number)
        self._gate: dict[int, Thread] = {}
        self._waiting: deque[Thread] = deque()  # threads that the gate was shut to for too long: nobody overtakes them
        self._generation = -1
        self._semaphore: posix_ipc.Semaphore = None
        self._fence: Callable[[], object] = close_and_open

    def settle(self, slot: int, fence: Fence | None = None) -> None:
        """From now on the claims are those of this slot."""
        self._claim_at = self.participants.layout.slot_at(slot) + S_CLAIM + self.number
        if fence is not None:
            self._fence = fence.call

    # ---- the four calls of a section

    def acquire(self, thread: Thread, timeout: float | None = None) -> None:
        """Enter; a thread that is inside already enters a mutex with a higher number.

        MFSStoreBusyError after *timeout* seconds (GRACE_S at least), MFSStoreGoneError.
        """
        thread.inside = True
        if self._waiting or self._gate.setdefault(0, thread) is not thread:  # a0
            self._wait_for_gate(thread, timeout)
        w = self.w
        g = w[self._generation_at]  # a1
        if g != self._generation or not self._try_token(False):  # a2
            g = self._take(timeout)
        w[self._claim_at] = g  # a3
        try:
            self._fence()  # a4
        except OSError as error:
            self._fence = fence_instead(error)
        if w[self._generation_at] != g:  # a5
            self._validate(timeout)
        if w[W_STATE] != STATE_READY:
            raise MFSStoreGoneError("The store was destroyed.")

    def release(self, thread: Thread) -> None:
        """Leave, having committed."""
        self.w[self._claim_at] = NO_CLAIM  # r1
        self._give_token()  # r2
        del self._gate[0]  # r3
        thread.inside = False  # last: a signal handler that runs after r2 must not find the gate ours and enter

    def release_inner(self) -> None:
        """Leave the inner one of two mutexes."""
        self.w[self._claim_at] = NO_CLAIM
        self._give_token()
        del self._gate[0]

    def abandon(self, thread: Thread, inner: Sequence[Mutex] = ()) -> None:
        """Leave after an exception, wherever it came: roll back what is open, give back what is ours. Idempotent.

        *inner*: the mutexes entered inside this one; they stay ours until its journal, which may be about them, is rolled
        back. It must come to its end: a claim that it left standing nobody else may clear. So a further asynchronous
        exception makes it start again, and is raised afterwards. Nothing outside the `try` allocates memory.
        """
        interruption: BaseException | None = None
        left, mutex, done, tries = True, self, 0, 0
        while True:
            try:
                mutex._abandon(thread)
            except BaseException as error:  # noqa: BLE001  (it is raised below)
                interruption = error
                tries += 1
                if tries < ABANDON_TRIES:
                    continue
                left = False
            if done == len(inner):
                break
            mutex, done, tries = inner[done], done + 1, 0
        if left:
            thread.inside = False
        if interruption is not None:
            try:
                raise interruption
            finally:
                interruption = None  # or the exception would hold this frame, which holds the exception, and all that lead here

    # ---- slow paths

    def _abandon(self, thread: Thread, deadline: float | None = None) -> None:
        """MFSStoreBusyError if R was needed and not to be had by *deadline*; then nothing has changed."""
        with contextlib.suppress(Exception):
            self.recovery.let_go()
        if self._gate.get(0) is thread:
            claim = self.w[self._claim_at]
            if claim == NO_CLAIM:
                # The token may be lost, in our hands, or given back: revoking the generation is right in each case.
                with contextlib.suppress(Exception):
                    self.recovery.recover(self.number, time.monotonic() + 1)
            else:
                self._give_back(claim, deadline)
            self._gate.pop(0, None)

    def _give_back(self, claim: int, deadline: float | None) -> None:
        """Our claim stands: roll back and unclaim if it is valid, only unclaim if its generation is gone.

        Only a generation that is being revoked this moment needs R, and then our journal may be open: so whoever leaves a
        section waits for R without a deadline, and whoever only comes by tries again later.
        """
        close_and_open()
        generation = self.w[self._generation_at]
        if generation == claim or (generation == claim + 1 and self.recovery.keep_claim(self.number, claim, deadline)):
            roll_back(self.w, self.journal)
            self.w[self._claim_at] = NO_CLAIM
            if self._semaphore is not None and self._generation == claim:
                self._semaphore.release()
        else:
            self.w[self._claim_at] = NO_CLAIM

    def _wait_for_gate(self, thread: Thread, timeout: float | None) -> None:
        """Another thread of this process is inside, or left the gate shut when two exceptions hit it (its thread is
        gone, or is not in a section): then its section is rolled back here."""
        deadline, waiting = _deadline(timeout), self._waiting
        pause, looks, announced = 0.00002, 0, False
        try:
            while not (self._is_next(thread) and self._gate.setdefault(0, thread) is thread):
                time.sleep(pause)
                pause, looks = min(2 * pause, 0.001), looks + 1
                if looks == LOOKS_UNFAIR:
                    announced = True
                    waiting.append(thread)
                elif looks % 32 == 0:
                    with contextlib.suppress(MFSStoreBusyError):
                        self.mend(thread)
                if deadline is not None and time.monotonic() >= deadline:
                    raise MFSStoreBusyError(self._who_is_in_front())
        finally:
            if announced:
                with contextlib.suppress(ValueError):
                    waiting.remove(thread)

    def _is_next(self, thread: Thread) -> bool:
        try:
            return self._waiting[0] is thread
        except IndexError:
            return True

    @property
    def is_entered(self) -> bool:
        """Whether a thread of this process is inside, or left the gate shut."""
        return bool(self._gate)

    def mend(self, thread: Thread) -> None:
        """Open a gate whose thread is not in a section any more, and forget a waiter that is gone. MFSStoreBusyError."""
        other = self._gate.get(0)
        if other is not None and not in_section(other):
            self._abandon_for(other)
        with contextlib.suppress(IndexError, ValueError):
            first = self._waiting[0]
            if first is not thread and not in_section(first):
                self._waiting.remove(first)

    def _abandon_for(self, other: Thread) -> None:
        with self.recovery.local:
            if self._is_left_by(other):
                self._abandon(other, time.monotonic())

    def _is_left_by(self, other: Thread) -> bool:
        """Whether the thread left its section with the gate shut: then it stays so until the gate is opened for it.

        It must have the gate and be elsewhere at one and the same moment, or it may have left in order, and be inside anew.
        So no other thread comes between looking at the gate and at the frames: the only call is the one that gets them.
        """
        gate, current_frames = self._gate, sys._current_frames
        try:
            inside, frames = _without_collection(lambda: (gate[0], current_frames()))
        except KeyError:
            return False
        return inside is other and not in_section(other, frames)

    def _take(self, timeout: float | None) -> int:
        """a1 and a2 the slow way; the generation whose token was taken."""
        deadline = _deadline(timeout)
        busy = 0
        while True:
            if self.w[W_STATE] != STATE_READY:
                raise MFSStoreGoneError("The store was destroyed.")
            g = self.w[self._generation_at]
            if g & 1:
                self.recovery.recover(self.number, deadline)
                continue
            if g != self._generation and not self._open(g):
                time.sleep(0.0005)  # revoked this very moment, or its semaphore was taken away by force
                busy += 1
            elif self._try(deadline):
                return g
            else:
                busy += 1
            if busy >= 2:
                busy = 0
                self.recovery.recover(self.number, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                raise MFSStoreBusyError(self._who())

    def _try(self, deadline: float | None) -> bool:
        """Take the token within a slice: first without sleeping, most sections are over by then."""
        acquire = self._semaphore.acquire
        for _ in range(SPINS):
            try:
                acquire(0)
                return True
            except (posix_ipc.BusyError, posix_ipc.SignalError):
                continue
        end = time.monotonic() + SLICE_S if deadline is None else min(time.monotonic() + SLICE_S, deadline)
        while (rest := end - time.monotonic()) > 0:
            if sleep_on(self._semaphore, rest):
                return True
        return False

    def _open(self, generation: int) -> bool:
        try:
            semaphore = open_semaphore(names.mutex(self.uuid, self.number, generation))
            calls = taker(semaphore), semaphore.release
        except FileNotFoundError:
            return False
        self._generation = -1  # no token is given to this one for a claim of the old one, whatever comes in between
        old, self._semaphore = self._semaphore, semaphore
        self._try_token, self._give_token = calls
        self._generation = generation
        if old is not None:
            old.close()
        return True

    def _validate(self, timeout: float | None) -> None:
        """a6, until we hold the mutex."""
        deadline = _deadline(timeout)
        while not self._keep_claim(deadline):
            self.w[self._claim_at] = NO_CLAIM
            self.w[self._claim_at] = g = self._take(timeout)
            close_and_open()
            if self.w[self._generation_at] == g:
                return

    def _keep_claim(self, deadline: float | None) -> bool:
        try:
            return self.recovery.keep_claim(self.number, self.w[self._claim_at], deadline)
        except MFSStoreBusyError:
            self.w[self._claim_at] = NO_CLAIM
            raise

    def holder(self) -> int | None:
        """Slot of the participant whose claim is the present generation; a hint when read without R."""
        generation = self.w[self._generation_at] & ~1
        layout = self.participants.layout
        for slot in range(layout.slots):
            if not self.participants.has_memory(slot):
                break
            if self.w[layout.slot_at(slot) + S_CLAIM + self.number] == generation:
                return slot
        return None

    def _who_is_in_front(self) -> str:
        """Why the gate is shut: another thread of ours is inside, or waits itself for somebody else."""
        if self.holder() in (None, self.participants.me):
            return f"Another thread of this process holds mutex {self.number} of the store."
        return self._who()

    def _who(self) -> str:
        slot = self.holder()
        who = "a process that is stopped" if slot is None else self.participants.describe(slot)
        return f"Mutex {self.number} of the store is held by {who}, which does not go on: resume it or end it."

    def close(self) -> None:
        """Give up the semaphore, and its page unless a thread is at it: that one would find nothing there, and crash."""
        if self._semaphore is not None:
            if not self._gate:
                self._semaphore.close()
                del self._try_token, self._give_token
            self._semaphore, self._generation = None, -1


class OfdMutex(Mutex):
    """The slower backend: the mutex is one OFD byte lock and the gate.

    The kernel gives the byte back when its holder dies, so there is nothing to revoke: whoever gets it rolls the journal
    back. It serves as an oracle for the other backend, and where a weakly ordered processor has no membarrier.
    """

    __slots__ = ("outer",)

    outer: Mutex | None

    def acquire(self, thread: Thread, timeout: float | None = None) -> None:
        thread.inside = True
        if self._waiting or self._gate.setdefault(0, thread) is not thread:
            self._wait_for_gate(thread, timeout)
        locks: ByteLocks = self.participants.locks
        if not locks.try_lock(LB_MUTEX + self.number):
            self._wait_for_byte(locks, timeout)
        self.w[self._claim_at] = 0
        if self.w[self.journal]:
            roll_back(self.w, self.journal)
        if self.w[W_STATE] != STATE_READY:
            raise MFSStoreGoneError("The store was destroyed.")
        if self.number and self.w[journal_at(0)] and self.outer is not None:
            self._let_outer_settle(thread, timeout)

    def _let_outer_settle(self, thread: Thread, timeout: float | None) -> None:
        """A journal of m[0] is open while we got m[k]: its writer may have died holding both. See it rolled back first.

        A living one does not wait for m[k] any more once its journal is open, and it does not hold it, since we do.
        """
        assert self.outer is not None
        self.release_inner()
        try:
            self.outer.acquire(thread, timeout)
        finally:
            self.outer._abandon(thread)
        self.acquire(thread, timeout)

    def _wait_for_byte(self, locks: ByteLocks, timeout: float | None) -> None:
        deadline = _deadline(timeout)
        pause = 0.00005
        while not locks.try_lock(LB_MUTEX + self.number):
            if self.w[W_STATE] != STATE_READY:
                raise MFSStoreGoneError("The store was destroyed.")
            if deadline is not None and time.monotonic() >= deadline:
                raise MFSStoreBusyError(self._who())
            time.sleep(pause)
            pause = min(2 * pause, 0.002)

    def holder(self) -> int | None:
        """As `Mutex.holder`; the claim of one who died inside stands until its slot is used again, and means nothing."""
        participants = self.participants
        for slot in range(participants.layout.slots):
            if not participants.has_memory(slot):
                break
            claimed = self.w[participants.layout.slot_at(slot) + S_CLAIM + self.number] != NO_CLAIM
            if claimed and not participants.is_dead(slot, participants.epoch(slot)):
                return slot
        return None

    def release(self, thread: Thread) -> None:
        self.release_inner()
        thread.inside = False

    def release_inner(self) -> None:
        self.w[self._claim_at] = NO_CLAIM
        self.participants.locks.unlock(LB_MUTEX + self.number)
        del self._gate[0]

    def _abandon(self, thread: Thread, deadline: float | None = None) -> None:
        if self._gate.get(0) is thread:
            if self._is_ours():
                roll_back(self.w, self.journal)
                self.w[self._claim_at] = NO_CLAIM
                self.participants.locks.unlock(LB_MUTEX + self.number)
            self._gate.pop(0, None)

    def _is_ours(self) -> bool:
        """Locking what is ours already succeeds; if another process has it, the exception came before we had it.

        Where the kernel does not tell us, the claim does. Without our descriptor we have no lock.
        """
        try:
            return self.participants.locks.try_lock(LB_MUTEX + self.number)
        except MFSStoreGoneError:
            return False
        except OSError:
            return self.w[self._claim_at] != NO_CLAIM


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + max(timeout, GRACE_S)


def _without_collection(look: Callable[[], T]) -> T:
    """What *look* says of the frames of all threads. A garbage collection within `sys._current_frames` would stop the process
    for ever (CPython 3.11 up to 3.11.8, gh-106883)."""
    with _collecting:
        was_on = gc.isenabled()
        try:
            gc.disable()
            return look()
        finally:
            if was_on:
                gc.enable()


def in_section(thread: Thread, frames: dict[int, FrameType] | None = None) -> bool:
    """Whether the thread, which says it is inside a section, really is, or was when the *frames* of all were looked at.

    One that is gone is not, whatever it is doing. A section is straight code of this folder, so a frame of this folder must
    be on its stack. On our own stack the frames of the present call come first; below them is whatever a signal handler or
    finaliser interrupted.
    """
    if thread.gone:
        return False
    frame = (_without_collection(sys._current_frames) if frames is None else frames).get(thread.ident)
    if thread.ident == threading.get_ident():
        while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame = frame.f_back
    while frame is not None:
        if frame.f_code.co_filename.startswith(_STORE):
            return True
        frame = frame.f_back
    return False
