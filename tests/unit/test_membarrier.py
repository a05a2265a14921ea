"""The fence of recovery on weakly ordered processors: it is asked for before anybody comes to depend on it.

On x86-64 a lock is the fence. Here a child is told that the machine is another one, with this machine's number of the
system call; that the kernel refuses it is real: a seccomp filter of the child's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.store import recovery

from ..conftest import Stores, entries_of
from ..processes import call_in_child

MEMBARRIER = 324
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls are x86-64's")


def refuse_membarrier(error: int) -> None:
    """From here on the kernel answers membarrier with that error."""
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (LOAD, 0, 0, 0),  # the number of the system call
            (EQUALS, 0, 1, MEMBARRIER),
            (RETURN, 0, 0, ERRNO | error),
            (RETURN, 0, 0, ALLOW),
        )
    )
    lines = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp here")


def on_another_machine(number: int | None = MEMBARRIER) -> None:
    """From here on this is a weakly ordered processor, whose membarrier has that number (None: it is not known)."""
    real = os.uname()
    os.uname = lambda: os.uname_result((*real[:4], "weak"))
    recovery._SYS_MEMBARRIER = {} if number is None else {"weak": number}


def refused(error: int | None, method: str, *args: Any, **options: Any) -> tuple[int | None, str]:
    """In a child whose membarrier fails so (None: is unknown): what creating or attaching raises."""
    on_another_machine(None if error is None else MEMBARRIER)
    if error:
        refuse_membarrier(error)
    with pytest.raises(OSError) as caught:
        getattr(MemoryFileSystem, method)(*args, **options)
    return caught.value.errno, str(caught.value)


ERRORS = [errno.ENOSYS, errno.EPERM, errno.EINVAL, None]


@pytest.mark.parametrize("error", ERRORS)
def test_creating_where_it_is_refused(error: int | None, store_name: str) -> None:
    """A clear error that names the other backend; nothing is left; the other backend works."""
    number, text = call_in_child("fork", refused, error, "create", store_name, 1 << 20)
    assert number == (error or errno.ENOSYS)
    assert "backend='ofd'" in text
    assert entries_of(store_name) == []
    call_in_child("fork", use_other_backend, error, store_name)


def use_other_backend(error: int | None, name: str) -> None:
    on_another_machine(None)
    if error:
        refuse_membarrier(error)
    with contextlib.closing(MemoryFileSystem.create(name, 1 << 20, backend="ofd")) as fs:
        fs.write_bytes("/f", b"x")
        assert fs.check() == []


@pytest.mark.parametrize("error", ERRORS)
def test_attaching_where_it_is_refused(error: int | None, named: MemoryFileSystem, store_name: str) -> None:
    """The error comes at once, not in the middle of a recovery, and takes no slot."""
    number, text = call_in_child("fork", refused, error, "attach", store_name)
    assert number == (error or errno.ENOSYS)
    assert "backend='ofd'" in text
    assert len(named.participants()) == 1


def recover_there() -> bytes:
    """With the kernel's own membarrier: a mutex whose token is lost is had again."""
    on_another_machine()
    with contextlib.closing(MemoryFileSystem(1 << 20)) as fs:
        fs.mkdir("/d")
        fs._store.mutexes[0]._semaphore.acquire(0)
        fs.write_bytes("/d/f", b"x")
        assert fs._store.mutexes[0]._generation == 2
        assert fs.check() == []
        return fs.read_bytes("/d/f")


def test_recovery_with_the_kernels_membarrier() -> None:
    """Where it is there, it is used."""
    assert call_in_child("fork", recover_there) == b"x"


def test_what_is_refused_later_breaks_nothing(named: MemoryFileSystem, stores: Stores) -> None:
    """A process that loses membarrier after it has attached can't recover; the others can."""
    assert "backend='ofd'" in call_in_child("fork", lose_it_and_write, named)
    named.write_bytes("/d/f", b"x")
    assert named._store.mutexes[0]._generation == 2
    assert named.check() == []


def lose_it_and_write(fs: MemoryFileSystem) -> str:
    on_another_machine()
    fs.mkdir("/d")
    refuse_membarrier(errno.EPERM)
    fs._store.mutexes[0]._semaphore.acquire(0)
    with pytest.raises(PermissionError) as caught:
        fs.write_bytes("/d/f", b"x")
    return str(caught.value)
