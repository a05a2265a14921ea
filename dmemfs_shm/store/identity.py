"""Participants: which processes are attached, and which of them are alive. The only user of file locks.

A participant is a slot of words that its process alone writes, and one byte of the index file that the process keeps
locked. The lock is an open-file-description lock: the kernel frees it when the last descriptor of the description is
closed, which for a killed process is after its last thread has run for the last time. So a free byte proves that no
store of that process is still to come. Nothing else is proof: pids are reused, differ between containers, and
`os.kill(pid, 0)` succeeds on a zombie.

DEAD(slot, epoch) is: the slot's epoch is another one, or (the slot is not ours and its byte is free). Any error counts
as alive. One thing more is believed: a process in our pid namespace that is gone, or whose pid now belongs to a process
with another start time, is dead though its byte is locked (a child that it forked without Python's knowledge has
inherited the descriptor).

The descriptor must be lost neither to `fork` (a child would keep its dead parent alive: `after_fork_in_child` closes it)
nor to closing "all descriptors" (the living would look dead: `lock_is_lost`, asked on slow paths). POSIX record locks
would go with any close of the file, so they are not used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time

from . import segment
from .journal import Words
from .layout import (
    LB_SLOT,
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

THOROUGH_S = 1.0
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux: type, whence, start, length, pid


class ByteLocks:
    """OFD locks on bytes of a file, through a description of its own.

    fd: a descriptor of that file to take over, instead of opening it. Asking (`is_free`) needs it for reading only.
    """

    __slots__ = ("_inode", "fd", "name")

    def __init__(self, name: str, fd: int = -1) -> None:
        self.name = name
        self.fd = segment.open_fd(name) if fd < 0 else fd
        self._inode = os.fstat(self.fd).st_ino

    def try_lock(self, byte: int, *, shared: bool = False) -> bool:
        """Lock the byte if nobody else (no other description) has it in a conflicting way."""
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        while True:
            try:
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
                return True
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise

    def lock(self, byte: int, deadline: float | None = None) -> bool:
        """Lock the byte, waiting until *deadline* (monotonic); False if it was not to be had by then."""
        pause = 0.0001
        while not self.try_lock(byte):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return True

    def unlock(self, byte: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))

    def is_free(self, byte: int) -> bool:
        """Whether nobody else has the byte. Our own description never conflicts with itself; any error is "no"."""
        return self._conflict(byte, fcntl.F_WRLCK) == fcntl.F_UNLCK

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

    def lock_is_lost(self) -> bool:
        """Whether somebody closed our descriptor behind our back (os.closerange, a daemoniser)."""
        try:
            return os.fstat(self.fd).st_ino != self._inode
        except OSError:
            return True

    def close(self) -> None:
        """Give all locks back."""
        with contextlib.suppress(OSError):
            if not self.lock_is_lost():
                os.close(self.fd)
        self.fd = -1


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


def command_line() -> bytes:
    """What this process is called, for those who look at the store; at most S_COMMAND_BYTES."""
    try:
        with open("/proc/self/cmdline", "rb") as cmdline:
            return cmdline.read(4096).rstrip(b"\0").replace(b"\0", b" ")[:S_COMMAND_BYTES]
    except OSError:
        return b""


class Participants:
    """The slots, as one process sees them. ``me`` is its own slot, or -1 for an observer that has none."""

    __slots__ = ("_namespace", "_thorough_at", "layout", "locks", "me", "w")

    def __init__(self, w: Words, layout: Layout, locks: ByteLocks) -> None:
        self.w = w
        self.layout = layout
        self.locks = locks
        self.me = -1
        self._namespace = pid_namespace()
        self._thorough_at = 0.0

    def epoch(self, slot: int) -> int:
        return self.w[self.layout.slot_at(slot) + S_EPOCH]

    def is_dead(self, slot: int, epoch: int) -> bool:
        """DEAD(slot, epoch) of the module's docstring. Read the epoch before you ask."""
        at = self.layout.slot_at(slot)
        if self.w[at + S_EPOCH] != epoch:
            return True
        if slot == self.me:
            return False
        return self.locks.is_free(LB_SLOT + slot) or self._is_another_process(at)

    def _is_another_process(self, at: int) -> bool:
        w = self.w
        namespace, pid, started = w[at + S_PIDNS], w[at + S_PID], w[at + S_START]  # in this order: see `introduce`
        if not pid or not started or not namespace or namespace != self._namespace:
            return False
        now = start_time(pid)
        return now == -1 or (now > 0 and now != started)

    def dead(self) -> list[tuple[int, int]]:
        """(slot, epoch) of every participant that died without leaving. Asks /proc only once a second: it is slow."""
        found = []
        thorough = time.monotonic() >= self._thorough_at
        if thorough:
            self._thorough_at = time.monotonic() + THOROUGH_S
        for slot in range(self.layout.slots):
            at = self.layout.slot_at(slot)
            if not self.has_memory(slot):
                break  # slots get memory in order
            epoch = self.w[at + S_EPOCH]
            if not self.w[at + S_PID] or slot == self.me:
                continue
            if self.locks.is_free(LB_SLOT + slot) or (thorough and self._is_another_process(at)):
                found.append((slot, epoch))
        return found

    def has_memory(self, slot: int) -> bool:
        """Whether the slot was ever used; only then may its words be read."""
        return slot < self.w[SLOTS_BACKED]

    def introduce(self, slot: int) -> None:
        """Become the tenant of a slot whose byte we have locked: the new epoch comes before all that is ours.

        The pid namespace goes first and comes back last, so that nobody takes the predecessor's pid for ours meanwhile
        and finds it gone; the pid itself stays, so that what the predecessor held is still reaped if we die here.
        """
        w, at = self.w, self.layout.slot_at(slot)
        self.me = slot
        w[at + S_PIDNS] = 0
        w[at + S_EPOCH] = w[at + S_EPOCH] + 1
        w[at + S_START] = max(0, start_time())
        w[at + S_SINCE] = time.time_ns()
        command = command_line().ljust(S_COMMAND_BYTES, b"\0")
        for word in range(S_COMMAND_BYTES // WORD):
            w[at + S_COMMAND + word] = int.from_bytes(command[word * WORD : (word + 1) * WORD], "little")
        w[at + S_PID] = os.getpid()
        w[at + S_PIDNS] = self._namespace

    def pid(self, at: int) -> int:
        """Pid of the tenant of the slot at word *at*, in its own pid namespace; 0 if it left in order."""
        return self.w[at + S_PID]

    def pid_namespace_of(self, at: int) -> int:
        return self.w[at + S_PIDNS]

    def since_ns(self, at: int) -> int:
        return self.w[at + S_SINCE]

    def describe(self, slot: int) -> str:
        """The tenant of a slot, for an error's text."""
        at = self.layout.slot_at(slot)
        return f"process {self.w[at + S_PID]} ({self.command(slot)})"

    def command(self, slot: int) -> str:
        at = self.layout.slot_at(slot) + S_COMMAND
        raw = b"".join(self.w[at + i].to_bytes(WORD, "little") for i in range(S_COMMAND_BYTES // WORD))
        return raw.rstrip(b"\0").decode("utf-8", "replace")
