"""Handles: reading, writing, seeking and truncating, byte for byte."""

from __future__ import annotations

import array
import contextlib
import io
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSDeadlockError, MFSNoSpaceError
from dmemfs_shm.handle import MemoryFileHandle
from dmemfs_shm.store.layout import LOCK_BUSY, LOCK_LIGHT, N_LOCK

from ..processes import call_in_child, held_open

#: Sizes at which the way a file is stored changes: empty, small-file units of 256, pages of 4096, many of them.
SIZES = [0, 1, 255, 256, 257, 4095, 4096, 4097, 12_288, 1 << 20, (1 << 20) + 1]


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which a shifted or stale stretch shows."""
    block = b"".join((seed * 7919 + number).to_bytes(4, "little") for number in range(1024))
    return (block * (size // len(block) + 1))[:size]


# --- whole files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_written_is_read(fs: MemoryFileSystem, size: int) -> None:
    """What one write gave, one read returns."""
    data = pattern(size)
    with fs.open("/f", "wb") as handle:
        assert handle.write(data) == size
        assert handle.tell() == size
    assert fs.get_size("/f") == size
    with fs.open("/f", "rb") as handle:
        assert handle.read() == data
        assert handle.read() == b""
        assert handle.tell() == size


@pytest.mark.parametrize("piece", [1, 100, 256, 1000, 4096, 5000])
def test_written_in_pieces_is_read_in_pieces(fs: MemoryFileSystem, piece: int) -> None:
    """Many small writes make the same file as one large one, in whatever pieces it is read."""
    data = pattern(20_000 if piece > 1 else 5000)
    with fs.open("/f", "wb") as handle:
        for start in range(0, len(data), piece):
            handle.write(data[start : start + piece])
    with fs.open("/f", "rb") as handle:
        assert b"".join(iter(lambda: handle.read(333), b"")) == data


@pytest.mark.parametrize("size", SIZES)
def test_grown_from_small(fs: MemoryFileSystem, size: int) -> None:
    """A file that begins as a few bytes keeps them however far it grows."""
    fs.write_bytes("/f", b"seed")
    with fs.open("/f", "ab") as handle:
        handle.write(pattern(size))
    assert fs.read_bytes("/f") == b"seed" + pattern(size)


# --- read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(0, b""), (1, b"0"), (10, b"0123456789"), (99, b"0123456789")])
def test_read_at_most(fs: MemoryFileSystem, size: int, expected: bytes) -> None:
    """read(n) gives n bytes, fewer only at the end, and moves by what it gave."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        assert handle.read(size) == expected
        assert handle.tell() == len(expected)


@pytest.mark.parametrize("arguments", [(), (-1,), (None,), (-7,)])
def test_read_everything(fs: MemoryFileSystem, arguments: tuple[Any, ...]) -> None:
    """No size, None and every negative size read to the end."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        handle.seek(3)
        assert handle.read(*arguments) == b"3456789"
        assert handle.read(*arguments) == b""


def test_read_past_the_end(fs: MemoryFileSystem) -> None:
    """Beyond the end there is nothing, and the position stays."""
    fs.write_bytes("/f", b"abc")
    with fs.open("/f", "rb") as handle:
        handle.seek(100)
        assert handle.read() == b""
        assert handle.read(5) == b""
        assert handle.readinto(bytearray(5)) == 0
        assert handle.readline() == b""
        assert handle.tell() == 100


def test_readall(fs: MemoryFileSystem) -> None:
    """readall gives the rest."""
    fs.write_bytes("/f", pattern(100_000))
    with fs.open("/f", "rb") as handle:
        handle.seek(10)
        assert handle.readall() == pattern(100_000)[10:]


def test_read_returns_bytes_of_its_own(fs: MemoryFileSystem) -> None:
    """What was read does not change with the file."""
    fs.write_bytes("/f", pattern(5000))
    with fs.open("/f", "r+b") as handle:
        data = handle.read()
        handle.seek(0)
        handle.write(bytes(5000))
    assert type(data) is bytes
    assert data == pattern(5000)


# --- readinto --------------------------------------------------------------------------------------------------------


def test_readinto_fills_what_fits(fs: MemoryFileSystem) -> None:
    """readinto fills the buffer, or its beginning at the end of the file, and leaves the rest alone."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        buffer = bytearray(b"......")
        assert handle.readinto(buffer) == 6
        assert buffer == b"012345"
        assert handle.readinto(buffer) == 4
        assert buffer == b"678945"
        assert handle.readinto(buffer) == 0
        assert buffer == b"678945"
        assert handle.readinto(bytearray()) == 0


def test_readinto_other_buffers(fs: MemoryFileSystem) -> None:
    """A buffer of wider elements is filled by bytes."""
    fs.write_bytes("/f", (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"tail")
    with fs.open("/f", "rb") as handle:
        numbers = array.array("Q", [0, 0])
        assert handle.readinto(numbers) == 16
        assert list(numbers) == [1, 2]
        window = bytearray(10)
        assert handle.readinto(memoryview(window)[3:7]) == 4
        assert window == b"\0\0\0tail\0\0\0"


@pytest.mark.parametrize("buffer", [b"read-only", memoryview(b"read-only"), "text", None, 5])
def test_readinto_refuses_what_it_cannot_fill(fs: MemoryFileSystem, buffer: object) -> None:
    """Read-only buffers and other objects are TypeError, and the position stays."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        with pytest.raises(TypeError):
            handle.readinto(buffer)
        assert handle.tell() == 0


# --- lines -----------------------------------------------------------------------------------------------------------

LINES = [b"first\n", b"\n", b"x" * 5000 + b"\n", b"after\r\n", b"no end"]


@pytest.fixture
def lined(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with a file of lines: ordinary, empty, longer than a page, CRLF, and an unfinished one."""
    fs.write_bytes("/lines", b"".join(LINES))
    return fs


def test_iteration_gives_lines(lined: MemoryFileSystem) -> None:
    """A handle iterates over its lines, ends kept."""
    with lined.open("/lines", "rb") as handle:
        assert iter(handle) is handle
        assert list(handle) == LINES
        with pytest.raises(StopIteration):
            next(handle)


def test_readline_one_by_one(lined: MemoryFileSystem) -> None:
    """readline gives a line at a time and stands behind it."""
    with lined.open("/lines", "rb") as handle:
        position = 0
        for line in LINES:
            assert handle.readline() == line
            position += len(line)
            assert handle.tell() == position
        assert handle.readline() == b""


@pytest.mark.parametrize(
    ("size", "expected"), [(0, b""), (3, b"fir"), (6, b"first\n"), (99, b"first\n"), (-1, b"first\n"), (None, b"first\n")]
)
def test_readline_limit(lined: MemoryFileSystem, size: int | None, expected: bytes) -> None:
    """readline(n) stops after n bytes; a negative one or None is no limit."""
    with lined.open("/lines", "rb") as handle:
        assert handle.readline(size) == expected


def test_readlines(lined: MemoryFileSystem) -> None:
    """readlines gives all the rest, or stops after the line with which it passes the hint."""
    with lined.open("/lines", "rb") as handle:
        assert handle.readlines() == LINES
        handle.seek(0)
        assert handle.readlines(6) == LINES[:2]
        assert handle.readlines(None) == LINES[2:]
        assert handle.readlines() == []


def test_lines_after_a_read(lined: MemoryFileSystem) -> None:
    """Reading and iterating share one position."""
    with lined.open("/lines", "rb") as handle:
        assert handle.read(3) == b"fir"
        assert next(handle) == b"st\n"
        assert handle.read(1) == b"\n"
        assert handle.tell() == 7


def test_lines_of_a_file_being_written(fs: MemoryFileSystem) -> None:
    """r+b sees the lines it has just written."""
    fs.write_bytes("/f", b"a\nb\nc\n")
    with fs.open("/f", "r+b") as handle:
        assert next(handle) == b"a\n"
        handle.write(b"B\nC")
        handle.seek(0)
        assert list(handle) == [b"a\n", b"B\n", b"C\n"]


def test_writelines(fs: MemoryFileSystem) -> None:
    """writelines writes each piece, and each is a generation."""
    with fs.open("/f", "wb") as handle:
        handle.writelines([b"one\n", bytearray(b"two\n"), memoryview(b"three")])
    assert fs.read_bytes("/f") == b"one\ntwo\nthree"
    assert fs.stat("/f")["generation"] == 3


# --- write -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[2:5], b"cde"),
        (memoryview(bytearray(b"abc")), b"abc"),
        (array.array("B", [1, 2, 3]), b"\1\2\3"),
        (array.array("H", [1, 2]), b"\1\0\2\0"),
        (memoryview(array.array("I", [7])), b"\7\0\0\0"),
        (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
    ],
)
def test_write_takes_any_contiguous_buffer(fs: MemoryFileSystem, data: Any, expected: bytes) -> None:
    """Bytes-like objects of any element and shape are written as their bytes; the count is in bytes."""
    with fs.open("/f", "wb") as handle:
        assert handle.write(data) == len(expected)
        assert handle.tell() == len(expected)
    assert fs.read_bytes("/f") == expected


def test_write_numpy_arrays(fs: MemoryFileSystem) -> None:
    """Arrays of any dimension are written in C order, empty ones and scalars too."""
    numpy = pytest.importorskip("numpy")
    arrays = [
        numpy.arange(12, dtype="<i4").reshape(3, 4),
        numpy.arange(24, dtype="<f8").reshape(2, 3, 4),
        numpy.array(5, dtype="<i8"),
        numpy.empty((0, 3)),
        numpy.array([True, False]),
    ]
    with fs.open("/f", "wb") as handle:
        for values in arrays:
            assert handle.write(values) == values.nbytes
    assert fs.read_bytes("/f") == b"".join(values.tobytes() for values in arrays)


@pytest.mark.parametrize("kind", ["memoryview", "numpy slice", "numpy transposed"])
def test_write_refuses_scattered_buffers(fs: MemoryFileSystem, kind: str) -> None:
    """A buffer that is not C-contiguous is refused, and nothing changes."""
    if kind == "memoryview":
        data: Any = memoryview(b"abcdef")[::2]
    else:
        numpy = pytest.importorskip("numpy")
        data = numpy.arange(10)[::2] if kind == "numpy slice" else numpy.arange(6).reshape(2, 3).T
    with fs.open("/f", "wb") as handle:
        with pytest.raises((BufferError, ValueError, TypeError)):
            handle.write(data)
        assert handle.tell() == 0
    assert fs.stat("/f")["size"] == fs.stat("/f")["generation"] == 0


@pytest.mark.parametrize("data", ["text", "", None, 5, 1.5, [1, 2], object()])
def test_write_refuses_other_types(fs: MemoryFileSystem, data: object) -> None:
    """str, numbers and other objects are TypeError, and nothing changes."""
    with fs.open("/f", "wb") as handle:
        with pytest.raises(TypeError):
            handle.write(data)
        assert handle.tell() == 0
    assert fs.stat("/f")["size"] == fs.stat("/f")["generation"] == 0


def test_empty_write_changes_nothing(fs: MemoryFileSystem) -> None:
    """Writing no bytes counts as nothing, even past the end."""
    fs.write_bytes("/f", b"abc")
    before = fs.stat("/f")
    with fs.open("/f", "r+b") as handle:
        assert handle.write(b"") == 0
        handle.seek(100)
        assert handle.write(b"") == 0
        assert handle.tell() == 100
    assert fs.stat("/f") == before


def test_every_write_is_a_generation(fs: MemoryFileSystem) -> None:
    """The generation counts writes and changes of size, nothing else."""
    with fs.open("/f", "wb") as handle:
        for count in (1, 2, 3):
            handle.write(b"x")
            assert fs.stat("/f")["generation"] == count
        handle.truncate(3)
        handle.flush()
        handle.seek(0)
        assert fs.stat("/f")["generation"] == 3
        handle.truncate(1)
        assert fs.stat("/f")["generation"] == 4
    assert fs.stat("/f")["generation"] == 4


def test_overwrite_across_the_end(fs: MemoryFileSystem) -> None:
    """A write that begins inside and ends outside replaces and extends."""
    fs.write_bytes("/f", pattern(5000))
    with fs.open("/f", "r+b") as handle:
        handle.seek(4000)
        handle.write(pattern(5000, seed=1))
    assert fs.read_bytes("/f") == pattern(5000)[:4000] + pattern(5000, seed=1)


@pytest.mark.parametrize("length", [1, 100, 255, 256, 4095, 4096, 10_000])
@pytest.mark.parametrize("gap", [1, 250, 4096, 70_000])
def test_write_past_the_end_fills_with_zeros(fs: MemoryFileSystem, length: int, gap: int) -> None:
    """The gap reads as zeros, also where the memory held something else before."""
    fs.write_bytes("/scratch", b"\xff" * 200_000)
    fs.remove("/scratch")
    fs.write_bytes("/f", pattern(length))
    with fs.open("/f", "r+b") as handle:
        handle.seek(length + gap)
        assert fs.get_size("/f") == length
        handle.write(b"end")
    assert fs.read_bytes("/f") == pattern(length) + bytes(gap) + b"end"


def test_gap_after_shrinking_is_zeros(fs: MemoryFileSystem) -> None:
    """What truncate cut off never comes back, neither by growing nor by writing past the end."""
    with fs.open("/f", "wb") as handle:
        handle.write(b"\xff" * 5000)
        handle.truncate(10)
        handle.truncate(100)
        handle.seek(300)
        handle.write(b"!")
    assert fs.read_bytes("/f") == b"\xff" * 10 + bytes(290) + b"!"


def test_gap_in_a_reopened_file_is_zeros(fs: MemoryFileSystem) -> None:
    """wb keeps the old blocks for the new bytes, but nothing of the old bytes."""
    fs.write_bytes("/f", b"\xff" * 5000)
    with fs.open("/f", "wb") as handle:
        handle.seek(3000)
        handle.write(b"!")
        handle.truncate(4500)
    assert fs.read_bytes("/f") == bytes(3000) + b"!" + bytes(1499)


# --- seek ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "whence", "expected"),
    [
        (0, os.SEEK_SET, 0),
        (7, os.SEEK_SET, 7),
        (1000, os.SEEK_SET, 1000),
        (0, os.SEEK_CUR, 4),
        (3, os.SEEK_CUR, 7),
        (-4, os.SEEK_CUR, 0),
        (1000, os.SEEK_CUR, 1004),
        (0, os.SEEK_END, 10),
        (-3, os.SEEK_END, 7),
        (-10, os.SEEK_END, 0),
    ],
)
def test_seek(fs: MemoryFileSystem, offset: int, whence: int, expected: int) -> None:
    """seek goes where each anchor says and returns the place; past the end is allowed from start and position."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        handle.seek(4)
        assert handle.seek(offset, whence) == expected
        assert handle.tell() == expected
        assert handle.read() == b"0123456789"[expected:]


@pytest.mark.parametrize(
    ("offset", "whence"),
    [(-1, os.SEEK_SET), (-5, os.SEEK_CUR), (-11, os.SEEK_END), (1, os.SEEK_END), (0, 3), (0, -1)],
)
def test_seek_refused(fs: MemoryFileSystem, offset: int, whence: int) -> None:
    """Before the start, behind the end by SEEK_END, and unknown anchors are ValueError; the position stays."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as handle:
        handle.seek(4)
        with pytest.raises(ValueError):
            handle.seek(offset, whence)
        assert handle.tell() == 4


def test_seek_far_beyond(fs: MemoryFileSystem) -> None:
    """A position no file could reach is a position; only the write is refused."""
    with fs.open("/f", "wb") as handle:
        assert handle.seek(1 << 60) == 1 << 60
        with pytest.raises(OSError):
            handle.write(b"x")
        assert handle.tell() == 1 << 60
    assert fs.get_size("/f") == 0


# --- truncate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", SIZES)
@pytest.mark.parametrize("start", [0, 1, 300, 5000, 70_000])
def test_truncate_to(fs: MemoryFileSystem, start: int, target: int) -> None:
    """truncate(n) cuts or fills with zeros, and returns the size."""
    fs.write_bytes("/f", pattern(start))
    with fs.open("/f", "r+b") as handle:
        assert handle.truncate(target) == target
        assert fs.get_size("/f") == target
    assert fs.read_bytes("/f") == pattern(start)[:target] + bytes(max(0, target - start))


@pytest.mark.parametrize("arguments", [(), (None,)])
def test_truncate_here(fs: MemoryFileSystem, arguments: tuple[None, ...]) -> None:
    """Without a size the position is the size, past the end too."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        handle.seek(4)
        assert handle.truncate(*arguments) == 4
        handle.seek(6)
        assert handle.truncate(*arguments) == 6
    assert fs.read_bytes("/f") == b"0123\0\0"


def test_truncate_pulls_the_position_back(fs: MemoryFileSystem) -> None:
    """A position behind the new end moves to it; one before it stays."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        handle.seek(8)
        handle.truncate(5)
        assert handle.tell() == 5
        handle.seek(2)
        handle.truncate(20)
        assert handle.tell() == 2


def test_truncate_negative(fs: MemoryFileSystem) -> None:
    """A negative size is ValueError and changes nothing."""
    fs.write_bytes("/f", b"abc")
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(ValueError):
            handle.truncate(-1)
    assert fs.read_bytes("/f") == b"abc"


# --- the handle itself -----------------------------------------------------------------------------------------------


def test_it_is_a_raw_io_object(fs: MemoryFileSystem) -> None:
    """Handles are io.RawIOBase without a file descriptor."""
    with fs.open("/f", "wb") as handle:
        assert isinstance(handle, io.RawIOBase)
        assert handle.isatty() is False
        with pytest.raises(io.UnsupportedOperation):
            handle.fileno()


def test_with_gives_the_handle_and_closes_it(fs: MemoryFileSystem) -> None:
    """The block's value is the handle, closed at its end."""
    opened = fs.open("/f", "wb")
    with opened as handle:
        assert handle is opened
        assert not handle.closed
    assert handle.closed


def test_close_again_is_nothing(fs: MemoryFileSystem) -> None:
    """Closing twice is allowed, and does not unlock what somebody else has opened since."""
    first = fs.open("/f", "wb")
    first.close()
    with fs.open("/f", "wb"):
        first.close()
        assert len(fs.locks()) == 1


CLOSED_CALLS: dict[str, Callable[[Any], object]] = {
    "read": lambda handle: handle.read(),
    "readall": lambda handle: handle.readall(),
    "readinto": lambda handle: handle.readinto(bytearray(1)),
    "readline": lambda handle: handle.readline(),
    "readlines": lambda handle: handle.readlines(),
    "next": next,
    "iter": iter,
    "write": lambda handle: handle.write(b"x"),
    "writelines": lambda handle: handle.writelines([b"x"]),
    "seek": lambda handle: handle.seek(0),
    "tell": lambda handle: handle.tell(),
    "truncate": lambda handle: handle.truncate(0),
    "flush": lambda handle: handle.flush(),
    "readable": lambda handle: handle.readable(),
    "writable": lambda handle: handle.writable(),
    "seekable": lambda handle: handle.seekable(),
    "isatty": lambda handle: handle.isatty(),
    "with": lambda handle: handle.__enter__().read(),
}


@pytest.mark.parametrize("name", CLOSED_CALLS)
def test_closed_handle_is_value_error(fs: MemoryFileSystem, name: str) -> None:
    """Every call on a closed handle is ValueError and touches nothing."""
    fs.write_bytes("/f", b"abc")
    handle = fs.open("/f", "r+b")
    handle.close()
    with pytest.raises(ValueError):
        CLOSED_CALLS[name](handle)
    assert fs.read_bytes("/f") == b"abc"


def test_forgotten_handle_warns_and_unlocks(fs: MemoryFileSystem) -> None:
    """Collecting an open handle is a ResourceWarning; the file is free for the next who opens it."""
    handle = fs.open("/f", "wb")
    handle.write(b"kept")
    with pytest.warns(ResourceWarning):
        del handle
    with fs.open("/f", "r+b", lock_timeout=0.0) as again:
        assert again.read() == b"kept"
    assert fs.locks() == []


def test_size_changes_show_at_once(fs: MemoryFileSystem) -> None:
    """stat and get_size need no lock and see a writer's size and times while it writes."""
    with fs.open("/f", "wb") as handle:
        created = fs.stat("/f")
        handle.write(pattern(5000))
        now = fs.stat("/f")
        assert fs.get_size("/f") == now["size"] == 5000
        assert now["created_at"] == created["created_at"]
        assert now["modified_at"] >= created["modified_at"]


def test_readers_share_the_file_not_the_position(fs: MemoryFileSystem) -> None:
    """Each handle has a position of its own."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "rb") as one, fs.open("/f", "rb") as two:
        assert one.read(4) == b"0123"
        assert two.read(2) == b"01"
        assert one.read(2) == b"45"
        assert two.tell() == 2


def test_thousands_of_handles(fs: MemoryFileSystem) -> None:
    """A process may have 4,080 handles open; one more is an OSError, until one is closed."""
    fs.write_bytes("/f", b"x")
    handles = []
    try:
        handles.extend(fs.open("/f", "rb") for _ in range(4080))
        with pytest.raises(OSError):
            fs.open("/f", "rb")
        handles.pop().close()
        handles.append(fs.open("/f", "rb"))
        assert handles[-1].read() == b"x"
    finally:
        for handle in handles:
            handle.close()
    assert fs.locks() == []


# --- when the bytes can't be reached ---------------------------------------------------------------------------------


@contextlib.contextmanager
def no_address_space() -> Iterator[None]:
    """Nothing as large as an arena can be mapped in this block."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def write_again(fs: MemoryFileSystem) -> bytes:
    with fs.open("/new", "wb") as handle:
        with no_address_space(), pytest.raises(MFSNoSpaceError):
            handle.write(pattern(300))
        assert handle.write(pattern(300)) == 300
    return fs.read_bytes("/new")


def open_again(fs: MemoryFileSystem) -> bytes:
    """What is left of the handle that failed lives until its exception goes; by then another one has its record."""
    fs.stats()
    failed = []
    for mode in "r+b", "wb", "ab":
        try:
            with no_address_space():
                fs.open("/f", mode)
        except MFSNoSpaceError as error:
            failed.append(error)
    with fs.open("/f", "r+b") as handle:
        assert len(failed) == 3
        failed.clear()
        fs.stats()
        with pytest.raises(MFSDeadlockError):
            fs.open("/f")
        return handle.read()


@contextlib.contextmanager
def interrupted_after(names: Any, method: str) -> Iterator[None]:
    """KeyboardInterrupt comes out of the block, right after the method has done its work."""
    real = getattr(names, method)

    def interrupted(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    setattr(names, method, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        setattr(names, method, real)


@pytest.mark.parametrize("change", ["write", "truncate"])
def test_an_exception_after_the_blocks_have_changed(fs: MemoryFileSystem, change: str) -> None:
    """A handle that was interrupted does not know its blocks any more: those it had may be a view's, or another file's."""
    fs.write_bytes("/f", pattern(5000))
    with fs.view("/f") as view, fs.open("/f", "r+b") as handle:
        with interrupted_after(fs._store.placement, "unshare"):
            handle.write(b"new") if change == "write" else handle.truncate(1000)
        handle.seek(0)
        assert handle.write(b"new") == 3
        assert handle.seek(0, 2) == (5000 if change == "write" else 1000)
        assert view == pattern(5000)
        handle.seek(0)
        assert handle.read() == (b"new" + pattern(5000)[3:])[: 5000 if change == "write" else 1000]


def test_an_exception_after_blocks_were_given_back(fs: MemoryFileSystem) -> None:
    """As above, and what the file had is another file's by now."""
    fs.write_bytes("/f", pattern(50_000))
    with fs.open("/f", "r+b") as handle:
        with interrupted_after(fs._store.placement, "fit"):
            handle.truncate(4096)
        fs.write_bytes("/other", pattern(40_000, 1))
        handle.seek(4096)
        assert handle.write(bytes(40_000)) == 40_000
        assert fs.read_bytes("/other") == pattern(40_000, 1)
    assert fs.read_bytes("/f") == pattern(4096) + bytes(40_000)


def test_a_write_that_failed_is_written_again_with_the_same_handle(named: MemoryFileSystem) -> None:
    """A file that got blocks, which then could not be mapped: the next write maps them, and loses nothing."""
    named.write_bytes("/f", b"an arena")
    assert call_in_child("fork", write_again, named) == pattern(300)


def test_opening_that_failed_leaves_bytes_and_locks_alone(named: MemoryFileSystem) -> None:
    """Mode wb has not emptied a file that it could not open, and nobody gives a lock back twice."""
    named.write_bytes("/f", pattern(300))
    assert call_in_child("fork", open_again, named) == pattern(300)


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_interrupted_close(fs: MemoryFileSystem, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in close() does not keep the lock."""
    fs.write_bytes("/file", b"data")
    handle = fs.open("/file", mode)
    locks, step = fs._store.rw, "_leave_lightly" if mode == "rb" else "_unlock"
    real = getattr(locks, step)

    def once(*args: object, **options: object) -> None:
        monkeypatch.setattr(locks, step, real)
        raise KeyboardInterrupt

    monkeypatch.setattr(locks, step, once)
    with pytest.raises(KeyboardInterrupt):
        handle.close()
    assert handle.closed and fs.locks() == []
    handle.close()
    with held_open(fs, "/file", "r+b"):
        pass


def test_close_interrupted_at_its_beginning(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was given back; closing again does no harm to others who have the record by then."""

    class Handles(dict[int, object]):
        def pop(self, *args: object) -> None:
            raise KeyboardInterrupt

    fs.write_bytes("/file", b"data")
    handle = fs.open("/file", "r+b")
    with monkeypatch.context() as patch:
        patch.setattr(fs, "_handles", Handles(fs._handles))
        with pytest.raises(KeyboardInterrupt):
            handle.close()
    assert handle.closed and fs.locks() == []
    with fs.open("/file", "r+b"):
        handle.close()
        assert len(fs.locks()) == 1


def test_interrupted_open(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in open(), after the lock was granted, does not keep it; nor one that comes when it is given back."""
    fs.write_bytes("/file", b"data")
    for broken in [["__init__"], ["__init__", "unlock"]]:
        with monkeypatch.context() as patch:
            for name in broken:
                owner = MemoryFileHandle if name == "__init__" else fs._store.rw
                patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                fs.open("/file", "r+b")
        fs.stats()
        assert fs.locks() == []


def interrupt(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_a_close_after_a_section_that_could_not_even_be_given_up(fs: MemoryFileSystem) -> None:
    """What stands in our own record may be uncommitted: it is rolled back before the close believes it."""
    fs.write_bytes("/f", b"x")
    handle = fs.open("/f")
    store, record = fs._store, handle._record
    mutex = store.mutexes[store.layout.mutex_of(handle._node)]
    mutex.acquire(store.threads.enter())
    store.w[mutex.journal + 1], store.w[mutex.journal + 2] = record, store.w[record]
    store.w[mutex.journal] = 1
    store.w[record] = 0
    handle.close()
    assert not mutex.is_entered
    assert store.w[handle._at + N_LOCK] & (LOCK_BUSY & ~LOCK_LIGHT) == 0, "the file is still locked"
    assert (fs.locks(), fs.check()) == ([], [])
