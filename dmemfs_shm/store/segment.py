"""Shared-memory segments: create, attach, back with memory, unlink. The only user of mmap.

Guarantees: `back` returns only when the memory is really there, so that no store into it can end in SIGBUS; when there
is none it raises MFSNoSpaceError and changes nothing. A segment is mapped once, in full; it is never resized.

Unlinking takes the name away; the memory goes with the last mapping, so that views of a destroyed store stay readable.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

import posix_ipc

from ..errors import MFSNoSpaceError
from .layout import PAGE


class Segment:
    """One segment, mapped. ``mm`` is the mapping, ``view`` its bytes, ``fd`` a descriptor for `back`."""

    __slots__ = ("fd", "mm", "name", "size_bytes", "view")

    def __init__(self, name: str, fd: int, size_bytes: int, *, writable: bool = True) -> None:
        """Map *size_bytes* of an open segment; takes over *fd*, which is closed again if mapping fails."""
        self.name = name
        self.fd = fd
        self.size_bytes = size_bytes
        prot = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        try:
            self.mm = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, prot)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.ENOMEM:
                raise
            raise MFSNoSpaceError(
                f"Cannot map {size_bytes} bytes of address space for {name}; raise the limit (ulimit -v).",
                size_bytes,
                errno.ENOMEM,
            ) from None
        self.view = memoryview(self.mm)

    def back(self, offset: int, size: int) -> None:
        """See that bytes offset..offset+size have memory. Raises MFSNoSpaceError, and then nothing has changed."""
        back(self.fd, self.name, offset, size)

    def close(self) -> None:
        """Give up the descriptor, and the mapping unless somebody still looks at it."""
        with contextlib.suppress(OSError):
            os.close(self.fd)
        with contextlib.suppress(BufferError):
            self.view.release()
            self.mm.close()


def open_fd(name: str, *, create: bool = False, readonly: bool = False) -> int:
    """Open (or create, if it is not there) a segment and return its descriptor. Raises FileNotFoundError or OSError."""
    flags = posix_ipc.O_CREAT if create else 0
    try:
        shm = posix_ipc.SharedMemory(name, flags, mode=0o600, size=0, read_only=readonly)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, "No such segment", name) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "Segment of another user", name) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MFSNoSpaceError("/dev/shm is full: free memory there, or mount it larger.") from None
        raise
    return int(shm.fd)


def set_size(fd: int, size_bytes: int) -> None:
    """Give a segment its size, once. It takes no memory."""
    try:
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.EINVAL):
            raise
        raise MFSNoSpaceError(
            f"A segment of {size_bytes} bytes is more than this process may make (ulimit -f), "
            "or than /dev/shm can address: ask for a smaller quota or max_nodes.",
            size_bytes,
        ) from None


def back(fd: int, name: str, offset: int, size: int) -> None:
    """See that a range of the segment has memory (`Segment.back` for one that is not mapped)."""
    start = offset // PAGE * PAGE
    while True:
        try:
            os.posix_fallocate(fd, start, offset + size - start)
            return
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise MFSNoSpaceError(
                f"/dev/shm has no {size} bytes left for {name.lstrip('/')}: "
                "free memory there, mount it larger, or use a smaller quota.",
                size,
            ) from None


def backed_bytes(fd: int) -> int:
    """Bytes of memory behind a segment."""
    return os.fstat(fd).st_blocks * 512


def unlink(name: str) -> None:
    """Take a segment's name away; silent if it is gone already."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)
