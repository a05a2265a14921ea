"""What the living do for the dead: revoke the generation of a mutex. (Their lock records: `rwlock`; pins: `pins`.)

Everything here may be interrupted by SIGKILL at any instruction and is then done again by somebody else.

`recover` (mutex k; the q-steps of the protocol). R is a lock that the kernel frees with its holder: a byte of the index
file, and a `threading.Lock` among the threads of this process.

    q0  generation even and its semaphore has a token: nothing is wrong
    q1  a living participant claims the generation: busy, not broken
    q2  see that the semaphore of the next generation exists with exactly one token (no room: MFSNoSpaceError, nothing done)
    q3  generation = g + 1            REVOKE: no claim of g can become valid any more
    q4  membarrier                    every claim of g stored so far can be seen
    q5  who claims g? at most one
    q6  a living one: generation = g, busy          ABORT
    q7  a dead one: if it also claims m[0] (and k > 0), recover m[0], whose journal may hold words of k's domain; roll the
        journal back, clear the claim. Not before q3: until then it may still claim, change and die.
    q8  generation = g + 2            COMMIT
    q9  wake those who sleep on the old semaphore, unlink it, make a spare

The spare semaphores (SPARES a store) were never opened by anybody, so their value is one; q2 gives one its new name by
`rename`, which needs no memory: recovery works with /dev/shm full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import MFSNoSpaceError, MFSStoreBusyError
from . import names
from .journal import Words, roll_back
from .layout import (
    BACKEND_OFD,
    LB_RECOVER,
    MUTEXES,
    NO_CLAIM,
    RECOVERIES,
    S_CLAIM,
    STATE_READY,
    W_BACKEND,
    W_STATE,
    generation_at,
    journal_at,
)
from .lazy import load
from .semaphores import create_semaphore, open_semaphore, unlink_semaphore

if TYPE_CHECKING:
    import uuid as uuids

    from .identity import Participants

SPARES = 8  # each recovery with a full /dev/shm takes one, and idle participants keep the old ones mapped
_MEMBARRIER_QUERY = 0
_MEMBARRIER_GLOBAL = 1
_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}


class Recovery:
    """Revoking generations, for one attached process.

    ``local`` orders the threads of this process. ``events`` collects what happened; it is logged by the next operation,
    outside any section, since a logging handler is the user's code.
    """

    __slots__ = ("events", "local", "participants", "uuid", "w")

    def __init__(self, w: Words, uuid: uuids.UUID, participants: Participants) -> None:
        self.w = w
        self.uuid = uuid
        self.participants = participants
        self.local = threading.RLock()
        self.events: deque[str] = deque()

    def recover(self, number: int, deadline: float | None) -> bool:
        """Free a mutex whose token is lost. True if it is free now or was not stuck; False if a living process has it.

        MFSStoreBusyError if R was not to be had by *deadline*, MFSNoSpaceError if there was no room for a semaphore.
        """
        return self._alone(lambda: self._recover_unless_destroyed(number), deadline)

    def keep_claim(self, number: int, claim: int, deadline: float | None) -> bool:
        """a6: under R, whether a claim whose generation was revoked meanwhile is still good; it is put back then.

        MFSStoreBusyError if R was not to be had by *deadline*: then the claim may still become good.
        """
        at = generation_at(number)

        def decide() -> bool:
            if self.w[at] not in (claim, claim + 1):
                return False
            self.w[at] = claim
            return True

        return self._alone(decide, deadline)

    def _alone(self, action: Callable[[], bool], deadline: float | None) -> bool:
        """Do something under R. The threads of this process order themselves for no longer than somebody is at work:
        whoever waits for another process does so without `local`."""
        locks, pause = self.participants.locks, 0.0001
        while True:
            with self.local:
                locks.mend()
                try:
                    if locks.try_lock(LB_RECOVER):
                        return action()
                finally:
                    self._unlock()
            if deadline is not None and time.monotonic() >= deadline:
                raise MFSStoreBusyError(self._who())
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _unlock(self) -> None:
        locks = self.participants.locks
        if locks.is_lost():
            locks.mend()
        else:
            try:
                locks.unlock(LB_RECOVER)
            except OSError:
                self.events.append(
                    f"store {self.uuid.hex}: the lock of recovery was not taken back, our next operation retries"
                )
                raise

    def _who(self) -> str:
        some = self.participants
        stopped = "; ".join(some.describe(slot) for slot in some.stopped())
        who = f"These are stopped: {stopped}. Resume" if stopped else "Resume"
        return f"Another process is recovering the store and does not go on. {who} it or end it."

    def mend(self) -> None:
        """See that our lock descriptor is ours. MFSStoreGoneError if it is lost and mutexes depended on it."""
        locks = self.participants.locks
        if locks.is_lost():
            if self.w[W_BACKEND] == BACKEND_OFD:
                locks.check()
            with self.local:
                locks.mend()

    def let_go(self) -> None:
        """Give back R if a `finally` above could not: an asynchronous exception hit it, or the kernel did not take it back."""
        with self.local:
            self._unlock()

    def _recover_unless_destroyed(self, number: int) -> bool:
        if self.w[W_STATE] != STATE_READY:
            return True  # a destroyed store gets no new semaphores
        claimer = self._claimer(number, self.w[generation_at(number)] & ~1)
        free = self._recover(number)
        if claimer is not None and self._is_dead(claimer):
            self._recover_others_of(claimer)
        if self.w[W_STATE] != STATE_READY:  # destroyed meanwhile, perhaps before it could see the new ones
            for name in names.belongings(self.uuid)[1]:
                unlink_semaphore(name)
        return free

    def _recover(self, number: int) -> bool:
        w, at = self.w, generation_at(number)
        g = w[at] & ~1
        if w[at] == g and self._has_token(number, g):  # q0
            return True
        claimer = self._claimer(number, g)
        if claimer is not None and not self._is_dead(claimer):  # q1
            return self._abort(at, g)
        self._provide(number, g + 2)  # q2
        w[at] = g + 1  # q3
        membarrier()  # q4
        claimer = self._claimer(number, g)  # q5
        if claimer is not None:
            if not self._is_dead(claimer):
                return self._abort(at, g)  # q6
            if number and w[self._claim_at(claimer, 0)] == w[generation_at(0)] & ~1:  # q7
                self._recover(0)
            roll_back(w, journal_at(number))
            w[self._claim_at(claimer, number)] = NO_CLAIM
        w[at] = g + 2  # q8
        w[RECOVERIES] = w[RECOVERIES] + 1
        self._clear_away(number, g)  # q9
        why = "its token was lost" if claimer is None else f"its holder, slot {claimer}, is dead"
        self.events.append(f"store {self.uuid.hex}: mutex {number} recovered, generation {g + 2}: {why}")
        return True

    def _recover_others_of(self, slot: int) -> None:
        """The other mutexes that a dead participant claims, too: who comes to each of them would wait two slices for it.

        (It may have had all of them: `check` and operations on directories.)
        """
        for number in range(MUTEXES):
            if self.w[self._claim_at(slot, number)] == self.w[generation_at(number)] & ~1:
                with contextlib.suppress(MFSNoSpaceError):  # whoever needs that one is told
                    self._recover(number)

    def _abort(self, at: int, g: int) -> bool:
        self.w[at] = g
        return False

    def _claim_at(self, slot: int, number: int) -> int:
        return self.participants.layout.slot_at(slot) + S_CLAIM + number

    def _claimer(self, number: int, g: int) -> int | None:
        for slot in range(self.participants.layout.slots):
            if not self.participants.has_memory(slot):
                break
            if self.w[self._claim_at(slot, number)] == g:
                return slot
        return None

    def _is_dead(self, slot: int) -> bool:
        return self.participants.is_dead(slot, self.participants.epoch(slot))

    # ---- semaphores

    def _has_token(self, number: int, g: int) -> bool:
        try:
            semaphore = open_semaphore(names.mutex(self.uuid, number, g))
        except FileNotFoundError:
            return False
        try:
            return bool(semaphore.value > 0)
        finally:
            semaphore.close()

    def _provide(self, number: int, g: int) -> None:
        """q2: the semaphore of generation g, which nobody can have opened yet, with one token."""
        name = names.mutex(self.uuid, number, g)
        for spare in range(SPARES):
            with contextlib.suppress(FileNotFoundError):
                os.rename(names.semaphore_path(names.spare(self.uuid, spare)), names.semaphore_path(name))
                return
        unlink_semaphore(name)
        create_semaphore(name, 1)

    def _clear_away(self, number: int, g: int) -> None:
        """q9: only tidiness; what fails here costs a slice or a page, and the next recovery tries again."""
        name = names.mutex(self.uuid, number, g)
        with contextlib.suppress(Exception):
            semaphore = open_semaphore(name)
            for _ in range(self.participants.layout.slots):
                semaphore.release()
            semaphore.close()
            unlink_semaphore(name)
        with contextlib.suppress(Exception):
            if self.w[W_STATE] == STATE_READY:
                provide_spares(self.uuid)

    def retire_claims(self, slot: int, deadline: float | None) -> None:
        """Before a dead tenant's slot is taken: recover what it holds, make its other claims void. Under the attach byte.

        MFSStoreBusyError if the kernel does not say (any more) that it is dead: its claim stands for its open journal.
        """
        for number in range(MUTEXES):
            claim = self.w[self._claim_at(slot, number)]
            if claim == NO_CLAIM:
                continue
            if claim == self.w[generation_at(number)] & ~1 and not self.recover(number, deadline):
                raise MFSStoreBusyError("A participant slot was taken while it was being cleaned.")
            self.w[self._claim_at(slot, number)] = NO_CLAIM


# ---- spare semaphores


def missing_spares(uuid: uuids.UUID) -> list[str]:
    """The names of the spare semaphores that are not there."""
    every = [names.spare(uuid, spare) for spare in range(SPARES)]
    return [name for name in every if not os.path.exists(names.semaphore_path(name))]


def provide_spares(uuid: uuids.UUID) -> None:
    """Make the spare semaphores that are missing. MFSNoSpaceError.

    Comes before the store takes any other page: where /dev/shm is full, each death takes a spare, and the pages that the dead
    leave are wanted by the living, too. Without spares nothing of the dead could be recovered.
    """
    for name in missing_spares(uuid):
        with contextlib.suppress(FileExistsError):
            create_semaphore(name, 1)


# ---- membarrier


def membarrier() -> None:
    """Make every store that other processes issued so far visible here. On x86 the fence of each claim already does."""
    if os.uname().machine == "x86_64":
        # Every claim is followed by its own fence (a4), and this one is the recoverer's half of Dekker's rule.
        fence = threading.Lock()
        with fence:
            pass
        return
    _ask_membarrier(_MEMBARRIER_GLOBAL)


def require_membarrier() -> None:
    """See, before anybody comes to depend on it, that a recovery of this process will have its `membarrier`.

    OSError where a weakly ordered processor has none, or this process may not use it.
    """
    if os.uname().machine != "x86_64" and not _ask_membarrier(_MEMBARRIER_QUERY) & _MEMBARRIER_GLOBAL:
        raise _no_membarrier(errno.EINVAL)


def _ask_membarrier(command: int) -> int:
    ctypes = load("ctypes")
    number = _SYS_MEMBARRIER.get(os.uname().machine)
    if number is None:
        raise _no_membarrier(errno.ENOSYS)
    libc = ctypes.CDLL(None, use_errno=True)
    answer = int(libc.syscall(number, command, 0))
    if answer < 0:
        raise _no_membarrier(ctypes.get_errno())
    return answer


def _no_membarrier(error: int) -> OSError:
    return OSError(
        error,
        f"This process has no membarrier ({os.strerror(error)}), which the backend 'generation' needs on "
        f"{os.uname().machine}: create the store with backend='ofd'.",
    )
