"""A /dev/shm of one's own: a mount namespace in which it is a tmpfs that nobody else sees, as small as is asked for.

Needs root, or at least the right to mount. `fill_shm` is somebody else who takes all that is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

FILLER = "/dev/shm/filler"
PAGE, MIB = 4096, 1 << 20
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def own_shm(size_mib: int) -> None:
    """From here on this process and its children have a /dev/shm of that size, empty; 0: as large as tmpfs makes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(CLONE_NEWNS),
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=%dm" % size_mib if size_mib else None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "no /dev/shm of our own")


def is_possible() -> bool:
    """Whether `own_shm` would work."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            own_shm(1)
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def fill_shm() -> None:
    """Somebody else takes all that /dev/shm has left."""
    fd = os.open(FILLER, os.O_RDWR | os.O_CREAT)
    size, step = os.fstat(fd).st_size, MIB
    while step >= PAGE:
        try:
            os.posix_fallocate(fd, size, step)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            step //= 2
        else:
            size += step
    os.close(fd)


def free_shm() -> None:
    """And gives it back."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FILLER)
