"""Every error of the package, grouped by when it happens.

All names start with MFS. Each subclasses the built-in that a caller would expect, carries its facts as fields (and an
errno where the built-in has one), keeps D-MemFS's text where D-MemFS has the error, and survives pickling, so that it
crosses a `multiprocessing.Pool`.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

__all__ = [
    "MFSAbandonedFileError",
    "MFSClosedError",
    "MFSCorruptStoreError",
    "MFSDeadlockError",
    "MFSDirectoryQuotaError",
    "MFSError",
    "MFSFileOpenError",
    "MFSForkedError",
    "MFSLayoutError",
    "MFSLockTimeoutError",
    "MFSNoSpaceError",
    "MFSNodeLimitExceededError",
    "MFSNotOwnerError",
    "MFSParameterError",
    "MFSQuotaExceededError",
    "MFSReentrantCallError",
    "MFSSnapshotError",
    "MFSStoreBusyError",
    "MFSStoreGoneError",
    "MFSTimeoutError",
    "MFSTooManyHandlesError",
    "MFSTooManyParticipantsError",
    "MFSUnfinishedStoreError",
    "MFSVersionError",
    "MFSViewError",
]


class MFSError(Exception):
    """What all errors of this package have in common; the second base says what kind of error it is."""

    _fields: tuple[str, ...] = ()
    _errno: int | None = None

    def _tell(self, text: str) -> None:
        self.args = (text,)
        error: BaseException = self
        if isinstance(error, OSError):
            error.errno = self._errno
            error.strerror = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self._fields)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class _MessageError(MFSError):
    """An error whose only fact is its text."""

    _fields: tuple[str, ...] = ("message",)

    def __init__(self, message: str = "") -> None:
        self.message = message
        self._tell(message)


# ---- when a store is created, attached or left


class MFSParameterError(_MessageError, ValueError):
    """A parameter is not of the form it must have, or differs from that of the store that stands."""


class MFSLayoutError(_MessageError, OSError):
    """The segment is a store of another byte order or layout fingerprint, or none of ours at all."""

    _errno = errno.EPROTO


class MFSVersionError(MFSLayoutError):
    """The store was written by a build with another layout version.

    found, supported: the two versions.
    """

    _fields = ("store", "found", "supported")

    def __init__(self, store: str, found: int, supported: int) -> None:
        self.store, self.found, self.supported = store, found, supported
        super().__init__(f"Store {store!r} has layout version {found}; this build reads version {supported}.")


class MFSNotOwnerError(_MessageError, PermissionError):
    """The store belongs to another user."""

    _errno = errno.EPERM


class MFSUnfinishedStoreError(_MessageError, OSError):
    """The store's creator died or is still at work. Creating it again starts it anew."""

    _errno = errno.EAGAIN


class MFSTooManyParticipantsError(_MessageError, OSError):
    """Every participant slot is taken by a living process."""

    _errno = errno.EUSERS


class MFSStoreGoneError(_MessageError, OSError):
    """The store was destroyed; a store created since under the same name is another one."""

    _errno = errno.ESTALE


class MFSClosedError(_MessageError, ValueError):
    """The filesystem object was closed."""


class MFSForkedError(_MessageError, ValueError):
    """The handle belongs to the parent of this forked process."""


# ---- when memory or a table runs short


class MFSQuotaExceededError(MFSError, OSError):
    """A write would pass the quota; nothing was changed.

    requested, available: bytes asked for beyond what the file holds, and bytes that were free.
    """

    _fields: tuple[str, ...] = ("requested", "available")
    _errno = errno.ENOSPC
    _hopeless = False  # it is more than the quota: no freeing by others helps
    _account = 0  # the account of a directory's quota that it would be charged to, too

    def __init__(self, requested: int, available: int) -> None:
        self.requested, self.available = requested, available
        self._tell(f"MFS quota exceeded: requested {requested} bytes, only {available} bytes available.")


class MFSDirectoryQuotaError(MFSQuotaExceededError):
    """A write would pass the quota of a directory (see `MemoryFileSystem.set_quota`); nothing was changed.

    path: the directory, "(removed)" if it is gone; requested, available: as for `MFSQuotaExceededError`, of its quota.
    """

    _fields: tuple[str, ...] = ("path", "requested", "available")
    _errno = errno.EDQUOT

    def __init__(self, path: str, requested: int, available: int) -> None:
        super().__init__(requested, available)
        self.path = path
        self._tell(f"MFS quota of '{path}' exceeded: requested {requested} bytes, only {available} bytes available.")


class MFSNodeLimitExceededError(MFSQuotaExceededError):
    """The store has as many files and directories as max_nodes allows.

    current, limit: nodes present, and the limit.
    """

    _fields = ("current", "limit")

    def __init__(self, current: int, limit: int) -> None:
        self.current, self.limit = current, limit
        super().__init__(requested=current + 1, available=limit - current)
        self._tell(f"MFS node limit exceeded: current {current} nodes, limit is {limit}.")


class MFSNoSpaceError(MFSError, OSError):
    """The machine has no memory for what the quota would allow (errno ENOSPC: /dev/shm; ENOMEM: RAM or cgroup).

    requested: bytes of memory asked for.
    """

    _fields = ("message", "requested", "errno")

    def __init__(self, message: str, requested: int = 0, errno: int = errno.ENOSPC) -> None:
        self.message, self.requested = message, requested
        self._errno = errno
        self._tell(message)


class MFSTooManyHandlesError(_MessageError, OSError):
    """This process has as many open handles or views as one participant may have."""

    _errno = errno.EMFILE


class MFSViewError(MFSError, OSError):
    """A view needs its bytes in one piece and no free piece is large enough.

    requested, largest_run: bytes.
    """

    _fields = ("requested", "largest_run")
    _errno = errno.ENOMEM

    def __init__(self, requested: int, largest_run: int) -> None:
        self.requested, self.largest_run = requested, largest_run
        self._tell(
            f"A view of {requested} bytes needs them in one piece; the largest free run has {largest_run} bytes. "
            "Create the file with preallocate=, or free space."
        )


# ---- when something is in use


class MFSLockTimeoutError(MFSError, BlockingIOError):
    """A file's lock could not be had in time.

    path; writer: whether the exclusive lock was asked for; holders: who holds or waits before us, a text each.
    """

    _fields = ("path", "writer", "holders")
    _errno = errno.EAGAIN

    def __init__(self, path: str, writer: bool, holders: tuple[str, ...] = ()) -> None:
        self.path, self.writer, self.holders = path, writer, tuple(holders)
        kind = "write" if writer else "read"
        who = f" '{path}' is held by {'; '.join(self.holders)}." if self.holders else f" ('{path}')"
        self._tell(f"Could not acquire {kind} lock within timeout.{who}")


class MFSDeadlockError(_MessageError, BlockingIOError):
    """This thread asked for a file that it holds itself in a conflicting way: it would wait for itself."""

    _errno = errno.EDEADLK


class MFSFileOpenError(MFSError, BlockingIOError):
    """A file that is to be renamed, replaced, removed or imported is open.

    path; holders: who has it open, a text each; doing: "import", or "" for the others.
    """

    _fields = ("path", "holders", "doing")
    _errno = errno.EBUSY

    def __init__(self, path: str, holders: tuple[str, ...] = (), doing: str = "") -> None:
        self.path, self.holders, self.doing = path, tuple(holders), doing
        what = f"Cannot {doing}: file is open" if doing else "File is open"
        who = f" (by {'; '.join(self.holders)})" if self.holders else ""
        self._tell(f"{what}: '{path}'{who}")


class MFSStoreBusyError(_MessageError, BlockingIOError):
    """A living process is stopped or hangs inside a critical section; the text names it."""

    _errno = errno.EAGAIN


class MFSReentrantCallError(_MessageError, RuntimeError):
    """A signal handler or finaliser called into the filesystem inside one of its critical sections."""


class MFSTimeoutError(_MessageError, TimeoutError):
    """What was waited for did not happen in time."""

    _errno = errno.ETIMEDOUT


# ---- when content or store is damaged


class MFSAbandonedFileError(MFSError, OSError):
    """The file's writer died before it closed the file. allow_abandoned=True opens it all the same.

    path: the file.
    """

    _fields = ("path",)
    _errno = errno.EOWNERDEAD

    def __init__(self, path: str) -> None:
        self.path = path
        self._tell(f"The writer of '{path}' died before closing it; allow_abandoned=True opens it all the same.")


class MFSSnapshotError(_MessageError, ValueError):
    """A stream is no snapshot, or not all of one, or not as it was written. Nothing of it was restored."""


class MFSCorruptStoreError(MFSError, OSError):
    """A word of the store has a value that it cannot have.

    segment: name; offset: bytes from its start, -1 where only the consequences were met; expected: what should stand
    there, as text; found: the value.
    """

    _fields = ("segment", "offset", "expected", "found")
    _errno = errno.EUCLEAN

    def __init__(self, segment: str, offset: int, expected: str, found: int | str) -> None:
        self.segment, self.offset, self.expected, self.found = segment, offset, expected, found
        where = segment if offset < 0 else f"{segment} at byte {offset}"
        self._tell(f"Store damaged: {where}: expected {expected}, found {found}.")


def raise_if_damage() -> None:
    """In an `except` of the engine: MFSCorruptStoreError in place of an index outside the words or a number that fits none,
    which nothing but a damaged word leads to."""
    error = sys.exception()
    if type(error) in (IndexError, OverflowError, ValueError):
        raise MFSCorruptStoreError("index", -1, "numbers that lead somewhere", f"{type(error).__name__}: {error}") from error
