"""read_bytes and write_bytes: whole files in one call, replaced in one step."""

from __future__ import annotations

import array
import threading
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSQuotaExceededError

from ..conftest import Stores
from ..processes import DEADLINE_S, Link, Task, child

SIZES = [0, 1, 255, 256, 257, 4095, 4096, 4097, 70_000, (1 << 20) + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [None, 0, 100, 5000])
def test_round_trip(fs: MemoryFileSystem, size: int, before: int | None) -> None:
    """Whatever stood there before, read_bytes gives what write_bytes took."""
    data = bytes(range(256)) * (size // 256) + b"t" * (size % 256)
    if before is not None:
        fs.write_bytes("/f", b"\xff" * before)
    fs.write_bytes("/f", data)
    content = fs.read_bytes("/f")
    assert type(content) is bytes
    assert content == data
    assert fs.get_size("/f") == size
    with fs.open("/f", "rb") as handle:
        assert handle.read() == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[2:5], b"cde"),
        (array.array("H", [1, 2]), b"\1\0\2\0"),
        (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
    ],
)
def test_any_contiguous_buffer(fs: MemoryFileSystem, data: Any, expected: bytes) -> None:
    """write_bytes takes the buffers that write takes."""
    fs.write_bytes("/f", data)
    assert fs.read_bytes("/f") == expected


@pytest.mark.parametrize("data", ["text", None, 5, [1, 2]])
def test_other_types_leave_the_file_alone(fs: MemoryFileSystem, data: Any) -> None:
    """What is no buffer is TypeError, and neither makes nor changes a file."""
    fs.write_bytes("/f", b"old")
    for path in ("/f", "/new"):
        with pytest.raises(TypeError):
            fs.write_bytes(path, data)
    assert fs.listdir("/") == ["f"]
    assert fs.read_bytes("/f") == b"old"


def test_write_bytes_refusals(fs: MemoryFileSystem) -> None:
    """A missing parent is FileNotFoundError, a directory IsADirectoryError."""
    fs.mkdir("/d")
    for path in ("/none/f", "/none/none/f"):
        with pytest.raises(FileNotFoundError):
            fs.write_bytes(path, b"x")
    for path in ("/d", "/"):
        with pytest.raises(IsADirectoryError):
            fs.write_bytes(path, b"x")
    assert fs.listdir("/") == ["d"]


def test_read_bytes_refusals(fs: MemoryFileSystem) -> None:
    """Nothing there is FileNotFoundError, a directory IsADirectoryError."""
    fs.mkdir("/d")
    with pytest.raises(FileNotFoundError):
        fs.read_bytes("/f")
    with pytest.raises(FileNotFoundError):
        fs.read_bytes("/d/f/g")
    for path in ("/d", "/"):
        with pytest.raises(IsADirectoryError):
            fs.read_bytes(path)


def test_replacing_keeps_created_at_and_raises_the_generation(fs: MemoryFileSystem) -> None:
    """A file written over is the same file, changed."""
    fs.write_bytes("/f", b"one")
    before = fs.stat("/f")
    fs.write_bytes("/f", b"two")
    after = fs.stat("/f")
    assert after["created_at"] == before["created_at"]
    assert after["modified_at"] >= before["modified_at"]
    assert after["generation"] > before["generation"]
    assert fs.stats()["file_count"] == 1


def test_empty_content_raises_the_generation_beside_a_reader(fs: MemoryFileSystem) -> None:
    """What a reader keeps from being changed in place has a successor, not a new beginning."""
    for content in (b"one", b"two", b"three"):
        fs.write_bytes("/f", content)
    before = fs.stat("/f")["generation"]
    with fs.open("/f"):
        fs.write_bytes("/f", b"")
    assert fs.stat("/f")["generation"] == before + 1
    fs.write_bytes("/new", b"")
    assert fs.stat("/new")["generation"] == 0


def test_refused_write_bytes_leaves_the_old_file(stores: Stores) -> None:
    """What passes the quota neither changes a file nor makes one."""
    fs = stores.private(max_quota=10_000)
    fs.write_bytes("/f", b"old")
    before, used = fs.stat("/f"), fs.stats()["used_bytes"]
    for path in ("/f", "/new"):
        with pytest.raises(MFSQuotaExceededError) as caught:
            fs.write_bytes(path, bytes(20_000))
        assert caught.value.available == fs.stats()["free_bytes"]
        assert caught.value.requested > caught.value.available
    assert fs.listdir("/") == ["f"]
    assert (fs.stat("/f"), fs.stats()["used_bytes"], fs.read_bytes("/f")) == (before, used, b"old")


def test_writing_a_files_own_view_over_it(fs: MemoryFileSystem) -> None:
    """The data may be memory of the store, even of the file itself."""
    fs.write_bytes("/f", bytes(range(256)) * 100)
    with fs.view("/f") as view:
        fs.write_bytes("/f", view[100:200])
        fs.write_bytes("/g", view)
    assert fs.read_bytes("/f") == bytes(range(100, 200))
    assert fs.read_bytes("/g") == bytes(range(256)) * 100


def test_readers_see_one_or_the_other(fs: MemoryFileSystem) -> None:
    """While one thread replaces a file, others read old or new content, never a mixture and never nothing."""
    contents = [bytes([number]) * size for number, size in enumerate((100, 5000, 70_000, 300))]
    fs.write_bytes("/f", contents[0])
    stop = threading.Event()

    def reading() -> int:
        rounds = 0
        while not stop.is_set() or rounds == 0:
            assert fs.read_bytes("/f") in contents
            with fs.open("/f", "rb") as handle:
                assert handle.read() in contents
            rounds += 1
        return rounds

    readers = [Task(reading) for _ in range(3)]
    try:
        for number in range(400):
            fs.write_bytes("/f", contents[number % len(contents)])
    finally:
        stop.set()
    assert all(task.result() > 0 for task in readers)


def _replace_in_turn(link: Link, fs: MemoryFileSystem, contents: list[bytes]) -> None:
    link.send("ready")
    for number in range(400):
        fs.write_bytes("/f", contents[number % len(contents)])


def test_readers_in_other_processes_see_one_or_the_other(named: MemoryFileSystem) -> None:
    """The same between processes."""
    contents = [bytes([number]) * size for number, size in enumerate((100, 5000, 70_000, 300))]
    named.write_bytes("/f", contents[0])
    with child("fork", _replace_in_turn, named, contents) as writer:
        assert writer.receive() == "ready"
        rounds = 0
        while not writer.link.poll(0) or rounds == 0:
            assert named.read_bytes("/f") in contents
            rounds += 1
        writer.receive()
        writer.join()
    assert named.read_bytes("/f") == contents[399 % len(contents)]


def test_writers_of_one_file_take_turns(fs: MemoryFileSystem) -> None:
    """Threads that write the same file all succeed; the last one stands, whole, and nothing else is charged."""
    start = threading.Barrier(5)

    def writing(number: int) -> None:
        start.wait(DEADLINE_S)
        for _ in range(100):
            fs.write_bytes("/f", bytes([number]) * (1000 * (number + 1)))

    tasks = [Task(writing, number) for number in range(5)]
    for task in tasks:
        task.result()
    content = fs.read_bytes("/f")
    assert content in [bytes([number]) * (1000 * (number + 1)) for number in range(5)]
    fs.remove("/f")
    assert fs.stats()["used_bytes"] == 0
