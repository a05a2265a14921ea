"""handle.getbuffer(): a file's own memory, to fill in place, for as long as the file is locked for that."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import socket
import warnings
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSAbandonedFileError, MFSForkedError, MFSLockTimeoutError, MFSQuotaExceededError

from ..conftest import Stores
from ..processes import Link, child, in_thread

SIZES = [1, 255, 4096, 70_000, (1 << 20) + 1]


def pattern(size: int) -> bytes:
    block = bytes(range(256)) + bytes(range(255))
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["wb", "xb", "r+b"])
def test_what_is_stored_is_in_the_file(fs: MemoryFileSystem, mode: str, size: int) -> None:
    if mode == "r+b":
        fs.write_bytes("/f", b"o")
    with fs.open("/f", mode, preallocate=size) as handle:
        with handle.getbuffer() as buffer:
            assert (buffer.readonly, buffer.format, len(buffer)) == (False, "B", size)
            assert buffer == (b"o" if mode == "r+b" else b"").ljust(size, b"\0")
            buffer[:] = pattern(size)
    assert fs.read_bytes("/f") == pattern(size)


def test_it_is_the_memory_and_no_copy(fs: MemoryFileSystem) -> None:
    """What is written and read through the handle meanwhile is the same bytes."""
    fs.write_bytes("/f", bytes(5000))
    with fs.open("/f", "r+b") as handle, handle.getbuffer(100, 200) as buffer:
        handle.seek(150)
        handle.write(b"NEW")
        assert buffer[50:53] == b"NEW"
        buffer[53:57] = b"EVEN"
        assert handle.read(4) == b"EVEN"


def test_arrays_and_sockets_fill_it(fs: MemoryFileSystem) -> None:
    numpy = pytest.importorskip("numpy")
    ours, theirs = socket.socketpair()
    with ours, theirs, fs.open("/f", "wb", preallocate=8000) as handle:
        values = numpy.frombuffer(handle.getbuffer(0, 4000), "u4")
        values[:] = numpy.arange(1000)
        del values
        theirs.sendall(b"from a socket")
        with handle.getbuffer(4000) as buffer:
            assert ours.recv_into(buffer) == 13
    assert fs.read_bytes("/f")[:4000] == numpy.arange(1000, dtype="u4").tobytes()
    assert fs.read_bytes("/f")[4000:] == b"from a socket".ljust(4000, b"\0")


@pytest.mark.parametrize("place", [(-1, None), (0, -1), (0, 11), (11, None), (5, 6), (11, 0)])
def test_ranges_outside_the_file(fs: MemoryFileSystem, place: tuple[int, int | None]) -> None:
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(ValueError):
            handle.getbuffer(*place)
    assert fs.stat("/f")["generation"] == 1


@pytest.mark.parametrize("place", [(0, 0), (10, None), (10, 0), (5, 0)])
def test_empty_ranges(fs: MemoryFileSystem, place: tuple[int, int | None]) -> None:
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        buffer = handle.getbuffer(*place)
        assert len(buffer) == 0 and not buffer.readonly
    assert buffer == b""


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_modes_that_have_none(fs: MemoryFileSystem, mode: str) -> None:
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", mode) as handle:
        with pytest.raises(io.UnsupportedOperation):
            handle.getbuffer()
    with pytest.raises(ValueError):
        handle.getbuffer()


def test_sequential_stores_have_none(stores: Stores) -> None:
    fs = stores.private(default_storage="sequential")
    with fs.open("/f", "wb", preallocate=100) as handle, pytest.raises(io.UnsupportedOperation):
        handle.getbuffer()


REFUSED: dict[str, Any] = {
    "close": lambda handle: handle.close(),
    "truncate shorter": lambda handle: handle.truncate(10),
    "truncate longer": lambda handle: handle.truncate(100_000),
    "grow": lambda handle: (handle.seek(0, 2), handle.write(bytes(100_000))),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_a_living_buffer_forbids(fs: MemoryFileSystem, how: str) -> None:
    """As io.BytesIO does; afterwards it works. (BytesIO refuses every write, we those that could move the bytes.)"""
    for handle in (io.BytesIO(bytes(5000)), fs.open("/f", "wb", preallocate=5000)):
        buffer = handle.getbuffer()
        part = buffer[7:9]
        buffer.release()
        with pytest.raises(BufferError):
            REFUSED[how](handle)
        assert not handle.closed
        part[:] = b"ok"
        part.release()
        del part, buffer
        REFUSED[how](handle)
        handle.close()
    assert fs.read_bytes("/f")[7:9] == b"ok"


def test_leaving_a_with_is_a_close(fs: MemoryFileSystem) -> None:
    with pytest.raises(BufferError):
        with fs.open("/f", "wb", preallocate=100) as handle:
            buffer = handle.getbuffer()
    assert in_thread(_try_to_read, fs) == "locked"
    buffer[:] = pattern(100)
    buffer.release()
    handle.close()
    assert fs.read_bytes("/f") == pattern(100)


def _try_to_read(fs: MemoryFileSystem) -> Any:
    try:
        with fs.open("/f", lock_timeout=0.0) as handle:
            return handle.read()
    except MFSLockTimeoutError:
        return "locked"


def test_a_buffer_keeps_the_file_locked(fs: MemoryFileSystem) -> None:
    """The handle was dropped: it ends with the last that is derived from the buffer."""
    numpy = pytest.importorskip("numpy")
    values = numpy.frombuffer(fs.open("/f", "wb", preallocate=5000).getbuffer(), "u1")[10:20]
    gc.collect()
    fs.stats()
    assert in_thread(_try_to_read, fs) == "locked"
    values[:] = 7
    kept = [values]
    del values
    with pytest.warns(ResourceWarning):
        kept.clear()
    assert fs.read_bytes("/f")[9:21] == b"\0" + b"\7" * 10 + b"\0"


def test_closing_the_filesystem_waits_for_it(stores: Stores) -> None:
    """BufferError, and everything is as before; then it works."""
    fs = stores.create()
    fs.write_bytes("/g", b"g")
    reader, handle = fs.open("/g"), fs.open("/f", "wb", preallocate=100)
    buffer = handle.getbuffer()
    with pytest.raises(BufferError):
        fs.close()
    assert reader.read() == b"g" and fs.exists("/f")
    buffer[:] = pattern(100)
    buffer.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        fs.close()
    assert stores.attach(fs.name).read_bytes("/f") == pattern(100)


def test_after_destroy_everything_is_silent(named: MemoryFileSystem, store_name: str) -> None:
    handle = named.open("/f", "wb", preallocate=100)
    buffer = handle.getbuffer()
    MemoryFileSystem.destroy(store_name)
    handle.close()
    named.close()
    buffer[:] = pattern(100)
    assert buffer == pattern(100)


def test_a_pinned_file_is_copied_first(fs: MemoryFileSystem) -> None:
    """Views keep what they look at."""
    fs.write_bytes("/f", pattern(5000))
    with fs.view("/f") as view:
        with fs.open("/f", "r+b") as handle, handle.getbuffer() as buffer:
            assert buffer == pattern(5000)
            buffer[:] = bytes(5000)
        assert view == pattern(5000)
    assert fs.read_bytes("/f") == bytes(5000)


def test_a_pinned_file_without_room_for_a_copy(stores: Stores) -> None:
    fs = stores.private(max_quota=70_000)
    fs.write_bytes("/f", pattern(50_000))
    view = fs.view("/f")
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(MFSQuotaExceededError):
            handle.getbuffer()
        assert handle.read() == pattern(50_000)
    view.release()


def test_a_file_in_pieces_is_moved_into_one(fs: MemoryFileSystem) -> None:
    with fs.open("/f", "wb") as one, fs.open("/g", "wb") as two:
        for number in range(200):
            one.write(bytes([number]) * 700)
            two.write(bytes([number]) * 900)
    with fs.open("/f", "r+b") as handle:
        with handle.getbuffer(700, 1400) as buffer:
            assert buffer == b"\1" * 700 + b"\2" * 700
            buffer[:] = b"x" * 1400
        handle.seek(0)
        assert handle.read() == b"\0" * 700 + b"x" * 1400 + b"".join(bytes([number]) * 700 for number in range(3, 200))


def test_stamps(fs: MemoryFileSystem) -> None:
    """Each buffer counts as a change, and the file was modified when it was closed."""
    fs.write_bytes("/f", bytes(100))
    before = fs.stat("/f")
    with fs.open("/f", "r+b") as handle:
        handle.getbuffer().release()
        between = fs.stat("/f")
    after = fs.stat("/f")
    assert (between["generation"], after["generation"]) == (before["generation"] + 1,) * 2
    assert before["modified_at"] < between["modified_at"] < after["modified_at"]


def _fill_and_die(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with fs.open("/f", "r+b") as handle:
        buffer = handle.getbuffer()
        buffer[:4] = b"half"
        link.send("filled")
        link.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_while_filling(named: MemoryFileSystem) -> None:
    """The file is abandoned; nobody reads what is half filled before."""
    named.write_bytes("/f", bytes(100))
    with child("fork", _fill_and_die, named.name) as filler:
        assert filler.receive() == "filled"
        with pytest.raises(MFSLockTimeoutError):
            named.open("/f", lock_timeout=0.0)
        filler.kill()
    with pytest.raises(MFSAbandonedFileError):
        named.read_bytes("/f")
    with named.open("/f", allow_abandoned=True) as handle:
        assert handle.read(5) == b"half\0"


def test_in_a_forked_child(named: MemoryFileSystem) -> None:
    """The child gets none, and its end takes nothing from the parent's."""
    handle = named.open("/f", "wb", preallocate=100)
    buffer = handle.getbuffer()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            try:
                handle.getbuffer()
            except MFSForkedError:
                handle.close()
                os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    buffer[:] = pattern(100)
    assert in_thread(_try_to_read, named) == "locked"
    buffer.release()
    handle.close()
    assert named.read_bytes("/f") == pattern(100)


def _leave_it_open(link: Link, name: str) -> None:
    handle = MemoryFileSystem.attach(name).open("/f", "wb", preallocate=100)
    buffer = handle.getbuffer()
    buffer[:] = pattern(100)
    globals()["kept"] = handle, buffer


def test_a_process_that_ends_in_order(named: MemoryFileSystem) -> None:
    """Handles are closed cleanly, though buffers still stand: nobody writes any more."""
    with child("spawn", _leave_it_open, named.name) as filler:
        filler.receive()
        filler.join()
    assert named.read_bytes("/f") == pattern(100)
