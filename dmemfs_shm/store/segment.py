"""Shared-memory segments: create, attach, back with memory, unlink. The only user of mmap.

Guarantees: `back` returns only when the memory is really there, so that no store into it can end in SIGBUS; when there
is none it raises MFSNoSpaceError and changes nothing. A segment is mapped once, in full; it is never resized.

Unlinking takes the name away; the memory goes with the last mapping, so that views of a destroyed store stay readable.

A descriptor is only a number, and a program may close "all descriptors" (a daemoniser does): then ours may be somebody
else's by now. So each description that we keep is marked, by its file offset, which nobody uses, and a number is neither
used for growing a file nor closed unless the mark is there. What must not be lost at all is kept by an `Anchor`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import mmap
import os
import sys
from typing import Any

import posix_ipc

from ..errors import MFSNoSpaceError, MFSStoreGoneError
from .layout import PAGE
from .lazy import load

_MAP_FAILED = 2 * sys.maxsize + 1
LARGE = 256 << 10  # bytes: what `put` may write through the descriptor
_MIB_SHIFT = 20
_MARKS = 1 << 60  # beyond any offset at which somebody else's descriptor could be
_serials = itertools.count(1)
_adrift: list[mmap.mmap] = []  # mappings that must not be closed any more: see `Segment.close`


class Segment:
    """One segment, mapped. ``mm`` is the mapping, ``view`` its bytes, ``fd`` a descriptor for `back`."""

    __slots__ = ("_is_adrift", "_known", "_mark", "_readonly", "fd", "mm", "name", "size_bytes", "view")

    def __init__(self, name: str, fd: int, size_bytes: int, *, writable: bool = True) -> None:
        """Map *size_bytes* of an open segment; takes over *fd*, which is closed again if mapping fails."""
        self.name = name
        self.fd = fd
        self.size_bytes = size_bytes
        prot = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        with closed_on_failure(fd):
            self.mm = self._map(prot)
            self.view = memoryview(self.mm)
            self._mark = mark(fd)
        self._readonly: mmap.mmap | None = None
        self._is_adrift = False
        self._known = bytearray()  # for each MiB: whether `put` stored there before; none until the first large one

    def _map(self, prot: int) -> mmap.mmap:
        try:
            return mmap.mmap(self.fd, self.size_bytes, mmap.MAP_SHARED, prot)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MFSNoSpaceError(
                f"Cannot map {self.size_bytes} bytes of address space for {self.name}; raise the limit (ulimit -v).",
                self.size_bytes,
                errno.ENOMEM,
            ) from None

    def readonly(self) -> mmap.mmap:
        """The segment mapped once more, from the first call on: nobody can write through this one. MFSNoSpaceError."""
        mapping = self._readonly
        if mapping is None:
            if not is_marked(self.fd, self._mark):
                self._open_again()
            self._readonly = mapping = self._map(mmap.PROT_READ)
        return mapping

    def put(self, offset: int, data: Any) -> None:
        """Store bytes, which have memory, and which nobody else looks at until they are all there.

        What is large and new to this process is written through the descriptor, for the first store to each page of a mapping
        costs a fault: 440 us a MiB, and 190 so (and 60 through a mapping that is warm).
        """
        size = len(data)
        if size >= LARGE and self._is_new(offset, size) and is_marked(self.fd, self._mark):
            with memoryview(data) as rest:
                done = 0
                while done < size:
                    done += os.pwrite(self.fd, rest[done:], offset + done)
        else:
            self.mm[offset : offset + size] = data

    def _is_new(self, offset: int, size: int) -> bool:
        """Whether nothing large was put there before; from now on it was. Its middle stands for the whole of it."""
        if not self._known:
            self._known = bytearray((self.size_bytes >> _MIB_SHIFT) + 1)
        middle = offset + size // 2 >> _MIB_SHIFT
        was_known = self._known[middle]
        self._known[middle] = 1
        return not was_known

    def back(self, offset: int, size: int) -> None:
        """See that bytes offset..offset+size have memory. Raises MFSNoSpaceError, and then nothing has changed."""
        if not is_marked(self.fd, self._mark):
            self._open_again()
        back(self.fd, self.name, offset, size)

    def _open_again(self) -> None:
        """Somebody closed our descriptor. MFSStoreGoneError if the segment has no name any more."""
        self._is_adrift = True
        try:
            fd = open_fd(self.name)
        except FileNotFoundError:
            raise MFSStoreGoneError("The store was destroyed.") from None
        with closed_on_failure(fd):
            self.fd, self._mark = fd, mark(fd)

    def close(self) -> None:
        """Give up the descriptor, and the mapping unless somebody still looks at it.

        A mapping of Python's has a duplicate of the descriptor and closes it, by its number, at its own end: if ours was
        closed behind our back, so was that one, and the mapping stays for as long as the process.
        """
        if is_marked(self.fd, self._mark):
            close_fd(self.fd)
        else:
            self._is_adrift = True
        mappings = [self.mm] if self._readonly is None else [self.mm, self._readonly]
        if self._is_adrift:
            _adrift.extend(mappings)
            return
        for end in (self.view.release, *(mapping.close for mapping in mappings)):
            with contextlib.suppress(BufferError):
                end()


def mark(fd: int) -> int:
    """Mark the open file description that *fd* stands for, and return the mark."""
    return os.lseek(fd, _MARKS + next(_serials), os.SEEK_SET)


def is_marked(fd: int, marked: int) -> bool:
    """Whether *fd* still stands for the description that was marked so."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR) == marked
    except OSError:
        return False


class Anchor:
    """Keeps an open file description, and with it the file locks it has, without a descriptor: by a mapping of a page.

    The kernel gives such locks back with the last reference to the description, and a mapping is one. Nobody closes it by
    its number, and a process that is killed loses it after its last thread has run for the last time, as its descriptors.
    Forked children do not get it, unless it is *inherited*; then each of them keeps the description, too.
    """

    __slots__ = ("_address", "_pid")

    def __init__(self, fd: int, *, inherited: bool = False) -> None:
        """*fd* may be closed afterwards. MFSNoSpaceError if there is no address space for a page."""
        self._address = 0
        self._pid = 0 if inherited else os.getpid()
        libc = _libc()
        address = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            raise MFSNoSpaceError("Cannot map a page of address space; raise the limit (ulimit -v).", PAGE, errno.ENOMEM)
        self._address = address
        if not inherited:
            libc.madvise(address, PAGE, mmap.MADV_DONTFORK)

    def release(self) -> None:
        """Let go. Idempotent; nothing in a forked child that did not get it."""
        address, self._address = self._address, 0
        if address and self._pid in (0, os.getpid()):
            _libc().munmap(address, PAGE)

    def __del__(self) -> None:
        """Who lost it in an exception keeps no lock by it."""
        with contextlib.suppress(AttributeError):  # it was never made
            self.release()


@functools.cache
def _libc() -> Any:
    """The C library. Python's own mmap keeps a descriptor for each mapping, which is what an anchor must not have."""
    ctypes = load("ctypes")
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


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


def close_fd(fd: int) -> None:
    """Close a descriptor. Linux frees it before anything can fail, so there is nothing to be done about an error."""
    with contextlib.suppress(OSError):
        os.close(fd)


class closed_on_failure:  # noqa: N801  (a function to whoever uses it; a generator's frames may outlive an interruption)
    """Close the descriptor if the block, which makes something that owns it, ends in an exception."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            close_fd(self.fd)


def read(fd: int, size: int, offset: int) -> bytes:
    """*size* bytes of a segment; fewer only at its end."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


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
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "Segment of another user", name) from None
