"""Named semaphores: create, open, unlink, and sleep on one, with the errors of files. The only user of posix_ipc's errors.

Guarantees of a sleep: it ends with a token, after its time, or soon after a signal; and what a signal handler of the program
raises (sys.exit() for SIGTERM, say) is raised here, too. posix_ipc alone would run the handler inside its wait and put an
exception of its own in the place of the handler's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import posix_ipc

try:
    import _multiprocessing
except ImportError:  # an interpreter without it, or another one than CPython
    _multiprocessing = None

from ..errors import MFSNoSpaceError
from .lazy import load

_OF_POSIX_IPC = posix_ipc.Semaphore
_COUNTS, _VALUE_MAX = 1, 2**31 - 1  # a semaphore, no mutex; as high as a semaphore counts
_SIGSET_BYTES = 128
#: Every signal but those by which the kernel reports an error of the thread itself, which can't wait.
_DEFERRED = sum(1 << number - 1 for number in range(1, signal.NSIG)) & ~sum(
    1 << number - 1 for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT)
)


def open_semaphore(name: str) -> posix_ipc.Semaphore:
    """Open a named semaphore. FileNotFoundError, PermissionError, OSError."""
    with _errors_of_files(name, errno.ENOENT):
        return posix_ipc.Semaphore(name)


def create_semaphore(name: str, value: int) -> None:
    """Create a named semaphore that must not exist: FileExistsError. MFSNoSpaceError if /dev/shm has no page for it."""
    try:
        with _errors_of_files(name, errno.EEXIST):
            posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=value).close()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise MFSNoSpaceError(
            f"/dev/shm has no room for the semaphore {name.lstrip('/')}: free memory there, or mount it larger."
        ) from error


def taker(semaphore: posix_ipc.Semaphore) -> Callable[[bool], bool]:
    """A call that takes a token of the semaphore if there is one, and says whether: to be called with False.

    posix_ipc drops the interpreter's lock even for that, and beside a thread that computes it comes back 5 ms later. The
    standard library's class for multiprocessing's locks does not, and can open a named semaphore; where it can't, posix_ipc
    does. (Measured, with the release: 34 ns instead of 125; eight threads that open files beside one that computes: p99 of an
    open 16 ms, and 0.02 ms.) FileNotFoundError: its name is gone.
    """
    if type(semaphore) is _OF_POSIX_IPC and _multiprocessing is not None:
        try:
            opened = _multiprocessing.SemLock._rebuild(0, _COUNTS, _VALUE_MAX, semaphore.name)
            return cast("Callable[[bool], bool]", opened.acquire)
        except FileNotFoundError:
            raise
        except (OSError, MemoryError):  # no descriptor to be had, perhaps
            pass
    return functools.partial(_take_at_once, semaphore)


def _take_at_once(semaphore: posix_ipc.Semaphore, _: bool) -> bool:
    try:
        semaphore.acquire(0)
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        return False
    return True


def post_semaphore(name: str) -> None:
    """Give a named semaphore a token; silent if there is none, or no descriptor to open it with."""
    with contextlib.suppress(OSError, posix_ipc.Error):
        semaphore = open_semaphore(name)
        semaphore.release()
        semaphore.close()


def unlink_semaphore(name: str) -> None:
    """Take a semaphore's name away; silent if it is gone already."""
    with contextlib.suppress(FileNotFoundError), _errors_of_files(name, errno.ENOENT):
        posix_ipc.unlink_semaphore(name)


@contextlib.contextmanager
def _errors_of_files(name: str, existential: int) -> Iterator[None]:
    try:
        yield
    except posix_ipc.ExistentialError:
        raise OSError(existential, os.strerror(existential), name) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "Semaphore of another user", name) from None
    except MemoryError:  # that is what posix_ipc makes of ENOMEM
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name) from None


def sleep_on(semaphore: posix_ipc.Semaphore, seconds: float) -> bool:
    """Sleep until there is a token, and take it (True); False after *seconds*, or earlier because of a signal.

    Whatever a signal handler raises comes from here, and then a token may have been taken and be lost. Handlers run in the
    main thread only: that one sleeps with its signals blocked, and handles them when it has its token or the time is over.
    """
    if threading.current_thread() is not threading.main_thread():
        return _take(semaphore, seconds)
    sigmask, signals = _sigmask()
    before = type(signals)()
    sigmask(signal.SIG_BLOCK, None, before)
    try:
        sigmask(signal.SIG_BLOCK, signals, None)
        return _take(semaphore, seconds)
    finally:
        sigmask(signal.SIG_SETMASK, before, None)


@functools.cache
def _sigmask() -> tuple[Any, Any]:
    """The C library's pthread_sigmask, and all signals that are deferred. Python's own takes 70 us, for it makes an enum member
    of each signal, and it runs handlers."""
    ctypes = load("ctypes")
    function = ctypes.CDLL(None).pthread_sigmask
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return function, (ctypes.c_ubyte * _SIGSET_BYTES)(*_DEFERRED.to_bytes(_SIGSET_BYTES, "little"))


def _take(semaphore: posix_ipc.Semaphore, seconds: float) -> bool:
    try:
        semaphore.acquire(seconds)
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        return False
    return True
