"""System calls that fail: the n-th call of a kind, once or from then on.

`failing_calls` puts a function of ours in front of each call that the engine makes to the system, under the names of the
manual pages (and `anchor`, the mmap of `segment.Anchor`); none of them does anything but count until `Faults.armed` says
which is to fail, and how. What is raised is what the real call raises, by way of posix_ipc where the engine goes by way of
posix_ipc. A `close` that fails has closed (Linux frees the descriptor first); a read or write may also end early (SHORT).

`lseek` does not fail here. What it says of a descriptor of ours is whether it is still ours (`segment.is_marked`): the kernel
refuses it for a number that is nobody's (EBADF) or somebody else's (ESPIPE), and never otherwise. A refusal without such a loss
would be a lie that the engine must believe; descriptors that are really lost are the matter of tests of their own.

An interruption (EINTR) for good is a burst: a call that is interrupted for ever cannot be told from one that hangs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import posix_ipc

from dmemfs_shm.store import arenas, attachment, identity, mutex, segment
from dmemfs_shm.store.space import _Wait

BURST = 5
IMPATIENCE_S = 0.1
SHORT = 0  # in place of an errno: fewer bytes than were asked for

#: What each call may fail with. Calls that can't fail (sem_post, sem_getvalue, sem_close) are not here.
ERRORS: dict[str, tuple[int, ...]] = {
    "shm_open": (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EACCES),
    "shm_unlink": (errno.EACCES, errno.EPERM),
    "ftruncate": (errno.EFBIG, errno.EPERM, errno.EIO),
    "posix_fallocate": (errno.ENOSPC, errno.EINTR, errno.EOPNOTSUPP),
    "mmap": (errno.ENOMEM, errno.EPERM),
    "anchor": (errno.ENOMEM,),
    "sem_open": (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM),
    "sem_unlink": (errno.EACCES, errno.EPERM),
    "sem_trywait": (errno.EINTR, errno.EAGAIN),
    "sem_timedwait": (errno.EINTR, errno.ETIMEDOUT),
    "lock": (errno.ENOLCK, errno.EINTR, errno.EDEADLK, errno.EBADF),
    "unlock": (errno.ENOLCK, errno.EINTR, errno.EBADF),
    "getlk": (errno.EBADF, errno.EINTR),
    "rename": (errno.ENOENT, errno.EPERM),
    "pread": (errno.EIO, SHORT),
    "pwrite": (errno.EIO, SHORT),
    "close": (errno.EIO, errno.EINTR),
    "dup": (errno.EMFILE,),
    "fstat": (errno.EIO,),
    "stat": (errno.EACCES,),
    "statvfs": (errno.EIO,),
    "listdir": (errno.EMFILE, errno.EACCES),
    "open": (errno.EMFILE, errno.ENFILE, errno.EACCES),
}
_COMMANDS = {fcntl.F_OFD_SETLK: "lock", fcntl.F_OFD_GETLK: "getlk"}


class Fault(NamedTuple):
    """Which call fails: the n-th of that name, counted from 1, and all after it if it is for good."""

    call: str
    number: int
    error: int
    for_good: bool

    def hits(self, call: str, number: int) -> bool:
        after = number - self.number
        return call == self.call and (after == 0 or (after > 0 and self.for_good and not self.is_over(after)))

    def is_over(self, after: int) -> bool:
        return self.error == errno.EINTR and after >= BURST

    @property
    def keeps_locks(self) -> bool:
        """Whether the kernel takes no lock back as long as it lasts."""
        return self.call == "unlock" and self.for_good

    @property
    def starves(self) -> bool:
        """Whether MemoryError may come of it."""
        return self.error == errno.ENOMEM

    def __str__(self) -> str:
        error = errno.errorcode[self.error] if self.error else "SHORT"
        return f"{self.call} {self.number} fails with {error} {'for good' if self.for_good else 'once'}"


class Limit(NamedTuple):
    """A limit of the process that leaves it *room*: descriptors, bytes of a file, or bytes of address space.

    The real thing, where `Fault` only says that it has happened; what it hits nobody can tell beforehand.
    """

    resource: int
    room: int
    for_good = True
    keeps_locks = False

    @property
    def starves(self) -> bool:
        return self.resource == resource.RLIMIT_AS

    @contextlib.contextmanager
    def imposed(self) -> Iterator[None]:
        before = resource.getrlimit(self.resource)
        resource.setrlimit(self.resource, (self._used() + self.room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(self.resource, before)

    def _used(self) -> int:
        if self.resource == resource.RLIMIT_NOFILE:
            fd = os.dup(0)
            os.close(fd)
            return fd
        if self.resource == resource.RLIMIT_AS:
            with open("/proc/self/statm", encoding="ascii") as statm:
                return int(statm.read().split()[0]) * mmap.PAGESIZE
        return 0

    def __str__(self) -> str:
        return f"limit {self.resource} leaves {self.room}"


class Faults:
    """The calls that one thread makes while it is armed: how many there were of each, and how many of them failed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failed = 0
        self.waits: Callable[[], None] = lambda: None  # called when the thread is about to wait for others
        self._fault: Fault | None = None
        self._thread = 0

    @contextlib.contextmanager
    def armed(self, fault: Fault | Limit | None) -> Iterator[None]:
        """In this block the calling thread's calls count, and the fault strikes, or the limit holds."""
        if isinstance(fault, Limit):
            with fault.imposed():
                yield
            return
        self._fault = fault
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0

    def strikes(self, call: str) -> int | None:
        """Count a call; the error that it is to end with, or None."""
        if self._thread != threading.get_ident():
            return None
        self.calls[call] += 1
        if self._fault is None or not self._fault.hits(call, self.calls[call]):
            return None
        self.failed += 1
        return self._fault.error

    def waiting(self) -> None:
        """The armed thread found something taken: let the test give it back, once."""
        if self._thread == threading.get_ident():
            waits, self.waits = self.waits, lambda: None
            thread, self._thread = self._thread, 0
            waits()
            self._thread = thread

    def points(self) -> list[Fault]:
        """Every fault that the counted calls can meet."""
        return [
            Fault(call, number, error, for_good)
            for call, count in sorted(self.calls.items())
            for number in range(1, count + 1)
            for error in ERRORS[call]
            for for_good in (False, True)
            if not (for_good and error == errno.EBADF)  # a descriptor that is gone for good holds no lock
        ]


def _os_error(error: int) -> OSError:
    return OSError(error, os.strerror(error))


def _ipc_error(error: int) -> Exception:
    """What posix_ipc makes of an errno."""
    made: dict[int, Exception] = {
        errno.EACCES: posix_ipc.PermissionsError("Permission denied"),
        errno.EMFILE: OSError("This process already has the maximum number of files open"),
        errno.ENFILE: OSError("The system limit on the total number of open files has been reached"),
        errno.ENOMEM: MemoryError("Not enough memory"),
        errno.EINTR: posix_ipc.SignalError("The wait was interrupted by a signal"),
        errno.EAGAIN: posix_ipc.BusyError("Semaphore is busy"),
        errno.ETIMEDOUT: posix_ipc.BusyError("Semaphore is busy"),
    }
    return made.get(error) or _os_error(error)


@contextlib.contextmanager
def failing_calls() -> Iterator[Faults]:
    """Put ours before the system's calls, for stores that are made or attached in this block."""
    faults = Faults()
    before = [(module, name, getattr(module, name, None)) for module, name, _ in _places(faults)]
    for module, name, value in _places(faults):
        setattr(module, name, value)
    try:
        yield faults
    finally:
        for module, name, value in before:
            if value is None:
                delattr(module, name)  # the built-in one is found again
            else:
                setattr(module, name, value)


def _places(faults: Faults) -> list[tuple[Any, str, Any]]:
    def failing(call: str, function: Callable[..., Any], make: Callable[[int], Exception] = _os_error) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            error = faults.strikes(call)
            if error is not None:
                raise make(error)
            return function(*args, **options)

        return wrapped

    def of_os(*names: str) -> list[tuple[Any, str, Any]]:
        return [(os, name, failing(name, getattr(os, name))) for name in names]

    return [
        *of_os("ftruncate", "posix_fallocate", "rename", "dup", "fstat", "stat", "statvfs", "listdir"),
        (os, "close", _failing_close(faults, os.close)),
        (os, "pread", _failing_read(faults, os.pread)),
        (os, "pwrite", _failing_write(faults, os.pwrite)),
        (identity, "open", failing("open", open)),
        (arenas, "open", failing("open", open)),
        (mmap, "mmap", failing("mmap", mmap.mmap)),
        (segment, "_libc", _failing_library(faults, segment._libc)),
        (fcntl, "fcntl", _failing_fcntl(faults, fcntl.fcntl)),
        (posix_ipc, "SharedMemory", failing("shm_open", posix_ipc.SharedMemory, _ipc_error)),
        (posix_ipc, "unlink_shared_memory", failing("shm_unlink", posix_ipc.unlink_shared_memory, _ipc_error)),
        (posix_ipc, "unlink_semaphore", failing("sem_unlink", posix_ipc.unlink_semaphore, _ipc_error)),
        (posix_ipc, "Semaphore", _failing_semaphore(faults, posix_ipc.Semaphore)),
        (_Wait, "_sleep", _noticed_sleep(faults, _Wait._sleep)),
    ]


def _failing_close(faults: Faults, close: Callable[[int], None]) -> Callable[[int], None]:
    def wrapped(fd: int) -> None:
        error = faults.strikes("close")
        close(fd)
        if error is not None:
            raise _os_error(error)

    return wrapped


def _failing_read(faults: Faults, pread: Callable[[int, int, int], bytes]) -> Callable[[int, int, int], bytes]:
    def wrapped(fd: int, count: int, offset: int) -> bytes:
        error = faults.strikes("pread")
        if error:
            raise _os_error(error)
        return pread(fd, max(1, count // 2) if error == SHORT else count, offset)

    return wrapped


def _failing_write(faults: Faults, pwrite: Callable[[int, bytes, int], int]) -> Callable[[int, bytes, int], int]:
    def wrapped(fd: int, data: bytes, offset: int) -> int:
        error = faults.strikes("pwrite")
        if error:
            raise _os_error(error)
        return pwrite(fd, data[: len(data) // 2] if error == SHORT else data, offset)

    return wrapped


def _failing_library(faults: Faults, real: Callable[[], Any]) -> Callable[[], Any]:
    """The C library in which the mapping of an anchor fails, as C functions do."""

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(real(), name)

        def mmap(self, *args: Any) -> int:
            return segment._MAP_FAILED if faults.strikes("anchor") else int(real().mmap(*args))

    return Library


def _failing_fcntl(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(fd: int, command: int, argument: Any = 0) -> Any:
        call = _COMMANDS.get(command)
        if call is None:
            return real(fd, command, argument)
        if call == "lock" and struct.unpack_from("h", argument)[0] == fcntl.F_UNLCK:
            call = "unlock"
        error = faults.strikes(call)
        if error is not None:
            raise _os_error(error)
        try:
            return real(fd, command, argument)
        except BlockingIOError:
            faults.waiting()
            raise

    return wrapped


def _failing_semaphore(faults: Faults, real: Any) -> type:
    class Semaphore(real):  # type: ignore[misc]
        def __init__(self, name: str, *args: Any, **options: Any) -> None:
            error = faults.strikes("sem_open")
            if error is not None:
                raise _ipc_error(error)
            super().__init__(name, *args, **options)

        def acquire(self, timeout: float | None = None) -> None:
            waits = timeout is None or timeout > 0
            if waits:
                faults.waiting()
            error = faults.strikes("sem_timedwait" if waits else "sem_trywait")
            if error is not None:
                raise _ipc_error(error)
            super().acquire(timeout)

        def unlink(self) -> None:
            error = faults.strikes("sem_unlink")
            if error is not None:
                raise _ipc_error(error)
            super().unlink()

    return Semaphore


def _noticed_sleep(faults: Faults, real: Callable[..., bool]) -> Callable[..., bool]:
    """Who waits for space without a semaphore makes no call that could fail, and waits all the same."""

    def wrapped(wait: _Wait[Any], semaphore: posix_ipc.Semaphore | None) -> bool:
        if semaphore is None:
            faults.waiting()
        return real(wait, semaphore)

    return wrapped


@contextlib.contextmanager
def impatient(fs: Any = None) -> Iterator[None]:
    """Whoever waits in this block gives up soon, on whatever does not come because a call failed for good."""
    before = mutex.GRACE_S, attachment.WAIT_FOR_CREATOR_S
    mutex.GRACE_S, attachment.WAIT_FOR_CREATOR_S = IMPATIENCE_S, IMPATIENCE_S
    store = None if fs is None else fs._store
    if store is not None:
        timeouts = fs._timeout, store.patience
        fs._timeout = store.patience = IMPATIENCE_S
    try:
        yield
    finally:
        mutex.GRACE_S, attachment.WAIT_FOR_CREATOR_S = before
        if store is not None:
            fs._timeout, store.patience = timeouts
