"""open(): what each mode needs, does to the file, and allows."""

from __future__ import annotations

import io

import pytest

from dmemfs_shm import MemoryFileSystem

from ..conftest import Stores

MODES = ["rb", "wb", "ab", "r+b", "xb"]
CREATING = ["wb", "ab", "xb"]
WRITING = ["wb", "ab", "r+b", "xb"]


def test_default_mode_is_rb(fs: MemoryFileSystem) -> None:
    """open(path) reads."""
    fs.write_bytes("/f", b"data")
    with fs.open("/f") as handle:
        assert handle.read() == b"data"
        assert not handle.writable()


@pytest.mark.parametrize("mode", CREATING)
def test_creating_modes_create(fs: MemoryFileSystem, mode: str) -> None:
    """wb, ab and xb make an empty file of generation 0 that is there at once."""
    with fs.open("/f", mode) as handle:
        assert handle.tell() == 0
        assert fs.is_file("/f")
    assert fs.stat("/f")["size"] == 0
    assert fs.stat("/f")["generation"] == 0


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_reading_modes_need_the_file(fs: MemoryFileSystem, mode: str) -> None:
    """rb and r+b of nothing is FileNotFoundError and creates nothing."""
    with pytest.raises(FileNotFoundError):
        fs.open("/f", mode)
    assert fs.listdir("/") == []


@pytest.mark.parametrize("mode", MODES)
def test_missing_parent(fs: MemoryFileSystem, mode: str) -> None:
    """No mode creates a directory."""
    with pytest.raises(FileNotFoundError):
        fs.open("/d/f", mode)
    assert fs.listdir("/") == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ["/", "/d"])
def test_directory_is_no_file(fs: MemoryFileSystem, mode: str, path: str) -> None:
    """Opening a directory is IsADirectoryError in every mode."""
    fs.mkdir("/d")
    with pytest.raises(IsADirectoryError):
        fs.open(path, mode)


def test_wb_empties_at_open(fs: MemoryFileSystem) -> None:
    """wb over a file: empty at once, one generation on, created_at kept, modified_at new."""
    fs.write_bytes("/f", b"old content")
    before = fs.stat("/f")
    with fs.open("/f", "wb"):
        now = fs.stat("/f")
        assert now["size"] == 0
        assert now["generation"] == before["generation"] + 1
        assert now["created_at"] == before["created_at"]
        assert now["modified_at"] >= before["modified_at"]
    assert fs.read_bytes("/f") == b""


def test_ab_starts_at_the_end(fs: MemoryFileSystem) -> None:
    """ab keeps the content and stands at its end."""
    fs.write_bytes("/f", b"head")
    with fs.open("/f", "ab") as handle:
        assert handle.tell() == 4
        assert handle.write(b"+tail") == 5
        assert handle.tell() == 9
    assert fs.read_bytes("/f") == b"head+tail"


def test_ab_writes_at_the_end_wherever_it_stands(fs: MemoryFileSystem) -> None:
    """Every write of ab goes to the end, after a seek and after a truncate too."""
    fs.write_bytes("/f", b"head")
    with fs.open("/f", "ab") as handle:
        handle.seek(0)
        handle.write(b"1")
        handle.seek(100)
        handle.write(b"2")
        assert handle.tell() == 6
        handle.truncate(2)
        handle.write(b"3")
    assert fs.read_bytes("/f") == b"he3"


def test_r_plus_overwrites_in_place(fs: MemoryFileSystem) -> None:
    """r+b keeps the content, stands at its start, reads and writes."""
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        assert handle.read(2) == b"01"
        handle.write(b"AB")
        assert handle.read() == b"456789"
    assert fs.read_bytes("/f") == b"01AB456789"


def test_xb_refuses_what_exists(fs: MemoryFileSystem) -> None:
    """xb over a file is FileExistsError and leaves it alone."""
    fs.write_bytes("/f", b"first")
    with pytest.raises(FileExistsError):
        fs.open("/f", "xb")
    assert fs.read_bytes("/f") == b"first"
    assert fs.locks() == []


@pytest.mark.parametrize("mode", MODES)
def test_what_a_mode_allows(fs: MemoryFileSystem, mode: str) -> None:
    """readable, writable and seekable say what read and write then do."""
    if mode != "xb":
        fs.write_bytes("/f", b"x")
    with fs.open("/f", mode) as handle:
        assert handle.readable() == (mode in ("rb", "r+b"))
        assert handle.writable() == (mode != "rb")
        assert handle.seekable()
        if not handle.readable():
            for read in (handle.read, lambda: handle.readinto(bytearray(1)), handle.readline, handle.readlines):
                with pytest.raises(io.UnsupportedOperation):
                    read()
        if not handle.writable():
            with pytest.raises(io.UnsupportedOperation):
                handle.write(b"y")
            with pytest.raises(io.UnsupportedOperation):
                handle.truncate(0)
    assert fs.locks() == []


@pytest.mark.parametrize("mode", WRITING)
def test_preallocate_makes_room(fs: MemoryFileSystem, mode: str) -> None:
    """preallocate fills the file with zeros up to that size, counts as one change, and leaves the position alone."""
    if mode in ("ab", "r+b"):
        fs.write_bytes("/f", b"abc")
        generation = fs.stat("/f")["generation"]
        kept = b"abc"
    else:
        generation, kept = 0, b""
    with fs.open("/f", mode, preallocate=10) as handle:
        assert fs.get_size("/f") == 10
        assert handle.tell() == (3 if mode == "ab" else 0)
        assert fs.stat("/f")["generation"] == generation + 1
    assert fs.read_bytes("/f") == kept + bytes(10 - len(kept))


def test_preallocate_never_shrinks(fs: MemoryFileSystem) -> None:
    """A preallocation within the size changes nothing."""
    fs.write_bytes("/f", b"0123456789")
    generation = fs.stat("/f")["generation"]
    with fs.open("/f", "r+b", preallocate=4):
        assert fs.get_size("/f") == 10
    assert fs.stat("/f")["generation"] == generation
    assert fs.read_bytes("/f") == b"0123456789"


def test_preallocated_space_is_written_in_place(fs: MemoryFileSystem) -> None:
    """Writing within the preallocated size neither grows nor shrinks the file."""
    with fs.open("/f", "wb", preallocate=10_000) as handle:
        handle.write(b"head")
        assert fs.get_size("/f") == 10_000
    assert fs.read_bytes("/f") == b"head" + bytes(9_996)


def test_preallocate_with_rb_is_refused(fs: MemoryFileSystem) -> None:
    """A reader cannot preallocate: the file stays as it was, and unlocked."""
    fs.write_bytes("/f", b"abc")
    with pytest.raises(io.UnsupportedOperation):
        fs.open("/f", "rb", preallocate=10)
    assert fs.read_bytes("/f") == b"abc"
    assert fs.locks() == []


@pytest.mark.parametrize("storage", ["auto", "random_access"])
def test_storages_that_write_anywhere(stores: Stores, storage: str) -> None:
    """auto and random_access overwrite and write past the end, whatever the promotion limit says."""
    fs = stores.private(default_storage=storage, promotion_hard_limit=0)
    fs.write_bytes("/f", b"0123456789")
    with fs.open("/f", "r+b") as handle:
        handle.write(b"A")
        handle.seek(12)
        handle.write(b"B")
    assert fs.read_bytes("/f") == b"A123456789\0\0B"


def test_sequential_storage_only_appends(stores: Stores) -> None:
    """sequential refuses every write elsewhere than at the end, before a byte changes."""
    fs = stores.private(default_storage="sequential")
    with fs.open("/f", "wb") as handle:
        handle.write(b"0123")
        handle.write(b"4567")
        for position in (0, 4, 9):
            handle.seek(position)
            with pytest.raises(io.UnsupportedOperation):
                handle.write(b"X")
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(io.UnsupportedOperation):
            handle.write(b"X")
        handle.seek(0, io.SEEK_END)
        handle.write(b"89")
        handle.truncate(9)
    with fs.open("/f", "ab") as handle:
        handle.write(b"!")
    assert fs.read_bytes("/f") == b"012345678!"


def test_a_block_left_by_an_exception_keeps_what_was_written(fs: MemoryFileSystem) -> None:
    """Leaving the with by an exception closes the file; what was written stays and counts as complete."""
    with pytest.raises(RuntimeError):
        with fs.open("/f", "wb") as handle:
            handle.write(b"half")
            raise RuntimeError
    assert handle.closed
    assert fs.read_bytes("/f") == b"half"
    assert fs.stat("/f")["abandoned"] is False
