"""Participants: which processes are attached, and which of them are alive. The only user of file locks.

A participant is a slot of words that its process alone writes, and one byte of the index file that the process keeps
locked. The lock is an open-file-description lock: the kernel frees it when the last reference to the description is gone,
which for a killed process is after its last thread has run for the last time. So a free byte proves that no store of that
process is still to come. Nothing else is proof: pids are reused, differ between containers, and `os.kill(pid, 0)` succeeds
on a zombie. Not even that /proc has no such process: it may be mounted for another pid namespace, or hide it.

DEAD(slot, epoch) is: the slot's epoch is another one, or even, which is nobody's, or (the slot is not ours and its byte is
free). Any error counts as alive. What pids say is for people alone.

What a tenant holds (records, pins, an intent) stands in its slot and does not say of which epoch it is. The slot's word
CLEAN says it: what tenants of epochs below CLEAN held has been given back, and no tenant takes anything before CLEAN has
reached its epoch. So while CLEAN < b all that stands in the slot is of epochs below b, and may be given back if the tenants
of these are dead. They are (`unreaped`), b being

    the epoch of the next tenant, if the slot's is DEAD; a newcomer makes it even before it locks the byte (`retire`)
    the slot's own epoch in any case: its tenant has introduced itself with a byte that theirs was

so that it does not matter where a newcomer stops, or whether it goes on, while it cleans up after its predecessor.

Whoever reaps asks for CLEAN < b inside the mutex that guards what he is about to free (`is_unreaped`), so any number may
do it at once, and whoever dies or gives up on the way leaves CLEAN as it was, for the next one. CLEAN is raised under m[0]
by him who is through with all of it (`note_clean`), so a death has one reaper. It is a plain store after a comparison and
so never falls, which a transaction that is rolled back would make it do, under a tenant who has seen it risen.

One case is left: a reaper who asked just before CLEAN was raised is still inside a mutex of nodes when the new tenant
creates a file, which puts a record of that mutex's domain there under m[0] alone. So between CLEAN's rising and its first
record a tenant passes through every mutex (`Attachment.join`). A tenant that leaves in order raises CLEAN itself
(`depart`): while it lives nobody else has anything to raise.

The byte must not outlive its process in a child, and not be lost while it lives. So what refers to the description is a
mapping that forks do not get (`keep_locked`), and no descriptor: a child, however it was forked, does not keep its dead
parent alive, and closing "all descriptors" (a daemoniser does) does not make the living look dead. (A child of vfork has
its parent's memory until its exec, so the parent may look alive until then.) POSIX record locks would go with any close of
the file, so they are not used.

The other bytes are locked, and all of them asked about, through a descriptor (`ByteLocks`). What it says is believed only
if it is still ours; a lost one is opened anew where nothing depends on what it had locked (`mend`). With the OFD backend the
mutexes depend on it: then the process has to attach again. (A child forked by C code has that descriptor, too. If its
parent is killed in the middle of a recovery, or with the OFD backend in any section, the others wait for that child's end.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections import deque

from ..errors import MFSStoreGoneError
from . import segment
from .journal import Words
from .layout import (
    LB_SLOT,
    REAPS,
    S_CLEAN,
    S_COMMAND,
    S_COMMAND_BYTES,
    S_EPOCH,
    S_PID,
    S_PIDNS,
    S_SINCE,
    S_START,
    SLOTS_BACKED,
    WORD,
    Layout,
)

UNLOCK_TRIES = 10
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux: type, whence, start, length, pid


class ByteLocks:
    """OFD locks on bytes of a file, through a description of its own.

    fd: a descriptor of that file to ask through, which needs it for reading only, instead of opening it. *anchored*: what
    is locked stays locked if the descriptor is closed behind our back, until `mend` or `close`.
    """

    __slots__ = ("_anchor", "_inode", "_mark", "fd", "name")

    def __init__(self, name: str, fd: int = -1, *, anchored: bool = False) -> None:
        self.fd = self._mark = -1
        self._anchor: segment.Anchor | None = None
        _close_dropped()
        self.name = name
        self.fd = segment.open_fd(name) if fd < 0 else fd
        with segment.closed_on_failure(self.fd):
            self._mark = segment.mark(self.fd) if fd < 0 else -1
            self._inode = os.fstat(self.fd).st_ino
            if anchored:
                self._anchor = segment.Anchor(self.fd)

    def try_lock(self, byte: int, *, shared: bool = False) -> bool:
        """Lock the byte if nobody else (no other description) has it in a conflicting way."""
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        while True:
            try:
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
                break
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                self.check()
                raise
        self.check()
        return True

    def lock(self, byte: int, deadline: float | None = None) -> bool:
        """Lock the byte, waiting until *deadline* (monotonic); False if it was not to be had by then."""
        pause = 0.0001
        while not self.try_lock(byte):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return True

    def wait(self, byte: int) -> None:
        """Lock the byte, asleep in the kernel for as long as somebody else has it, shared or not."""
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        self.check()

    def unlock(self, byte: int) -> None:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))
        except OSError:
            self.check()
            self._unlock_after_all(byte)

    def _unlock_after_all(self, byte: int) -> None:
        """The kernel may need memory to give a byte back. Nobody else can do it, so it is tried again."""
        for attempt in range(UNLOCK_TRIES):
            try:
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))
                return
            except OSError:
                if attempt == UNLOCK_TRIES - 1:
                    raise

    def is_free(self, byte: int) -> bool:
        """Whether nobody else has the byte. Our own description never conflicts with itself; any error is "no"."""
        return self._conflict(byte, fcntl.F_WRLCK) == fcntl.F_UNLCK and not self.is_lost()

    def is_locked_exclusively(self, byte: int) -> bool:
        """Whether somebody else has the byte for himself alone, not shared; any error is "no"."""
        return self._conflict(byte, fcntl.F_RDLCK) == fcntl.F_WRLCK

    def _conflict(self, byte: int, kind: int) -> int | None:
        """What kind of lock stands in the way of one of that kind; F_UNLCK if none does, None on any error."""
        try:
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError:
            return None
        return int(_FLOCK.unpack(answer)[0])

    # ---- descriptors that others close

    def is_lost(self) -> bool:
        """Whether somebody closed our descriptor behind our back (os.closerange, a daemoniser)."""
        return self._mark >= 0 and not segment.is_marked(self.fd, self._mark)

    def check(self) -> None:
        """MFSStoreGoneError if the descriptor is lost: it may have been another file's byte that was locked just now."""
        if self.is_lost():
            raise MFSStoreGoneError(
                "This process's descriptors were closed behind its back (os.closerange, a daemoniser), and with them its "
                "locks: close the filesystem object and attach again."
            )

    def mend(self) -> None:
        """Open the file anew if the descriptor is lost, and give up whatever was locked. MFSStoreGoneError if it is gone.

        REQUIRES that no thread of this process depends on a lock of ours.
        """
        if not self.is_lost():
            return
        if self._anchor is not None:
            self._anchor.release()
        try:
            fd = segment.open_fd(self.name)
        except FileNotFoundError:
            raise MFSStoreGoneError("The store was destroyed.") from None
        with segment.closed_on_failure(fd):
            if os.fstat(fd).st_ino != self._inode:
                raise MFSStoreGoneError("The store was destroyed.")
            self.fd, self._mark = fd, segment.mark(fd)
            if self._anchor is not None:
                self._anchor = segment.Anchor(fd)

    def close(self) -> None:
        """Give all locks back."""
        if not self.is_lost():
            segment.close_fd(self.fd)
        self.fd = -1
        if self._anchor is not None:
            self._anchor.release()

    def __del__(self) -> None:
        """A description that nobody has any more must not keep its locks: there was no memory even to close it.

        If there still is none, the next one that is made closes it. The deque has room for a few without memory.
        """
        try:
            self._close_if_open()
        except BaseException:  # noqa: BLE001  (nobody could catch it)
            _dropped.append(self)

    def _close_if_open(self) -> None:
        try:
            is_open = self._mark >= 0 and self.fd >= 0
        except AttributeError:  # there was no memory even to begin with it
            return
        if is_open:
            self.close()


_dropped: deque[ByteLocks] = deque()


def _close_dropped() -> None:
    while _dropped:
        try:
            locks = _dropped.popleft()
        except IndexError:  # another thread was quicker
            return
        try:
            locks._close_if_open()
        except BaseException:
            _dropped.append(locks)
            raise


def keep_locked(name: str, byte: int, *, shared: bool = False, inherited: bool = False) -> segment.Anchor | None:
    """Lock a byte through a description that only a mapping refers to; None if somebody else has it.

    Releasing the anchor gives the lock back, and so does the end of the process, or of the last one that inherited it.
    """
    locks = ByteLocks(name)
    try:
        anchor = segment.Anchor(locks.fd, inherited=inherited)  # first: one that got lost as it was made keeps no lock
        return anchor if locks.try_lock(byte, shared=shared) else None
    finally:
        locks.close()


def start_time(pid: int | str = "self") -> int:
    """Start time of a process in clock ticks since boot; 0 if it is not to be found out, -1 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return -1
    except (OSError, ValueError, IndexError):
        return 0


def is_stopped(pid: int) -> bool | None:
    """Whether a process of our pid namespace is stopped (SIGSTOP, a debugger); None if it is not to be found out."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return None


def pid_namespace() -> int:
    """Inode of our pid namespace; 0 if it is not to be found out."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def visible_namespace() -> int:
    """Inode of our pid namespace if /proc shows its processes by the pids they have there; -1 if it shows another's."""
    try:
        with open("/proc/self/status", "rb") as status:
            pids = next(line.split()[1:] for line in status if line.startswith(b"NSpid:"))
    except (OSError, StopIteration):
        return -1
    return pid_namespace() if len(pids) == 1 else -1


def command_line() -> bytes:
    """What this process is called, for those who look at the store; at most S_COMMAND_BYTES."""
    try:
        with open("/proc/self/cmdline", "rb") as cmdline:
            return cmdline.read(4096).rstrip(b"\0").replace(b"\0", b" ")[:S_COMMAND_BYTES]
    except OSError:
        return b""


def next_epoch(epoch: int) -> int:
    """The epoch of the next tenant of a slot that has this one."""
    return epoch + 1 | 1


class Participants:
    """The slots, as one process sees them. ``me`` is its own slot, or -1 for an observer that has none."""

    __slots__ = ("layout", "locks", "me", "w")

    def __init__(self, w: Words, layout: Layout, locks: ByteLocks) -> None:
        self.w = w
        self.layout = layout
        self.locks = locks
        self.me = -1

    def epoch(self, slot: int) -> int:
        return self.w[self.layout.slot_at(slot) + S_EPOCH]

    def is_dead(self, slot: int, epoch: int) -> bool:
        """DEAD(slot, epoch) of the module's docstring. Read the epoch before you ask."""
        if self.w[self.layout.slot_at(slot) + S_EPOCH] != epoch or epoch % 2 == 0:
            return True
        return slot != self.me and self.locks.is_free(LB_SLOT + slot)

    def unreaped(self) -> list[tuple[int, int]]:
        """(slot, epoch) wherever something may stand that the dead held: the tenants of all epochs below that one."""
        found = []
        for slot in range(self.layout.slots):
            if not self.has_memory(slot):
                break  # slots get memory in order
            at = self.layout.slot_at(slot)
            epoch, clean = self.w[at + S_EPOCH], self.w[at + S_CLEAN]  # before the byte is asked about
            if slot == self.me or clean > epoch:
                continue
            below = next_epoch(epoch) if self.is_dead(slot, epoch) else epoch
            if clean < below:
                found.append((slot, below))
        return found

    def is_unreaped(self, slot: int, below: int) -> bool:
        """Whether what stands in a slot is of epochs below this one. REQUIRES the mutex of what is to be freed.

        Our own slot is asked about only before we take anything.
        """
        return slot == self.me or not self.is_clean(slot, below)

    def is_clean(self, slot: int, below: int) -> bool:
        """Whether what tenants of epochs below this one held is known to have been given back."""
        return self.w[self.layout.slot_at(slot) + S_CLEAN] >= below

    def note_clean(self, slot: int, below: int) -> bool:
        """What tenants of epochs below this one held has been given back. REQUIRES m[0]. False if that was known."""
        if self.is_clean(slot, below):
            return False
        self.w[self.layout.slot_at(slot) + S_CLEAN] = below
        self.w[REAPS] = self.w[REAPS] + 1
        return True

    def has_memory(self, slot: int) -> bool:
        """Whether the slot was ever used; only then may its words be read."""
        return slot < self.w[SLOTS_BACKED]

    def prepare(self, slot: int) -> None:
        """Make a slot that was never used one whose next tenant, the first, finds nothing."""
        self.w[self.layout.slot_at(slot) + S_CLEAN] = next_epoch(self.epoch(slot))

    def retire(self, slot: int) -> None:
        """Say that the last tenant of a slot is dead, before its byte is locked again. REQUIRES the attach byte."""
        self.w[self.layout.slot_at(slot) + S_EPOCH] = self.epoch(slot) + 1 & ~1

    def introduce(self, slot: int) -> None:
        """Become the tenant of a slot whose byte we have locked: the new epoch comes before all that is ours."""
        w, at = self.w, self.layout.slot_at(slot)
        self.me = slot
        w[at + S_EPOCH] = next_epoch(w[at + S_EPOCH])
        w[at + S_START] = max(0, start_time())
        w[at + S_SINCE] = time.time_ns()
        command = command_line().ljust(S_COMMAND_BYTES, b"\0")
        for word in range(S_COMMAND_BYTES // WORD):
            w[at + S_COMMAND + word] = int.from_bytes(command[word * WORD : (word + 1) * WORD], "little")
        w[at + S_PIDNS] = pid_namespace()
        w[at + S_PID] = os.getpid()

    def depart(self) -> None:
        """Give up our slot, in which nothing of ours stands."""
        at = self.layout.slot_at(self.me)
        self.w[at + S_CLEAN] = next_epoch(self.w[at + S_EPOCH])
        self.w[at + S_PID] = 0

    def pid(self, at: int) -> int:
        """Pid of the tenant of the slot at word *at*, in its own pid namespace; 0 if it left in order."""
        return self.w[at + S_PID]

    def pid_namespace_of(self, at: int) -> int:
        return self.w[at + S_PIDNS]

    def since_ns(self, at: int) -> int:
        return self.w[at + S_SINCE]

    def start_of(self, at: int) -> int:
        """Start time of the tenant's process as `start_time` gives it; 0 if it did not find it out."""
        return self.w[at + S_START]

    def describe(self, slot: int) -> str:
        """The tenant of a slot, for an error's text."""
        at = self.layout.slot_at(slot)
        return f"process {self.w[at + S_PID]} ({self.command(slot)})"

    def stopped(self) -> list[int]:
        """The slots of participants that are stopped, as far as our pid namespace shows."""
        found, here = [], visible_namespace()
        for slot in range(self.layout.slots):
            if not self.has_memory(slot):
                break
            at = self.layout.slot_at(slot)
            pid = self.w[at + S_PID]
            if pid and self.w[at + S_PIDNS] == here and is_stopped(pid):
                found.append(slot)
        return found

    def command(self, slot: int) -> str:
        at = self.layout.slot_at(slot) + S_COMMAND
        raw = b"".join(self.w[at + i].to_bytes(WORD, "little") for i in range(S_COMMAND_BYTES // WORD))
        return raw.rstrip(b"\0").decode("utf-8", "replace")
