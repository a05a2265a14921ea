"""Arguments that make no sense: each the error a caller expects, and nothing changed, locked or left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSQuotaExceededError

from ..conftest import MIB, Stores
from ..processes import held_open


@pytest.fixture
def fs(fs: MemoryFileSystem) -> Iterator[MemoryFileSystem]:
    """A store with a file and a directory, which every refusal must leave as it is, and unlocked."""
    fs.write_bytes("/f", b"content")
    fs.mkdir("/d")
    yield fs
    assert sorted(fs.listdir("/")) == ["d", "f"]
    assert fs.read_bytes("/f") == b"content"
    assert fs.stats()["used_bytes"] == 256 + 128
    assert fs.locks() == []


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    [
        "",
        "r",
        "w",
        "a",
        "x",
        "rt",
        "wt",
        "r+",
        "w+b",
        "wb+",
        "a+b",
        "x+b",
        "rb+",
        "br",
        "bw",
        "rbb",
        "RB",
        "rb ",
        "b",
        "U",
        None,
        5,
        b"rb",
    ],
)
def test_modes(fs: MemoryFileSystem, mode: Any) -> None:
    """Anything but the five binary modes is ValueError, whatever the path."""
    for path in ("/f", "/none", "/d"):
        with pytest.raises(ValueError):
            fs.open(path, mode)


# --- sizes and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5", 1.5, b"5", [], 3 + 0j])
def test_sizes_that_are_no_integers(fs: MemoryFileSystem, size: Any) -> None:
    """read, seek and truncate take integers."""
    with fs.open("/f", "r+b") as handle:
        for call in (handle.read, handle.seek, handle.truncate):
            with pytest.raises(TypeError):
                call(size)
        assert handle.tell() == 0


@pytest.mark.parametrize("value", [None, "0", 1.5])
def test_whence_that_is_no_integer(fs: MemoryFileSystem, value: Any) -> None:
    """seek's anchor is an integer."""
    with fs.open("/f", "rb") as handle:
        with pytest.raises((TypeError, ValueError)):
            handle.seek(0, value)
        assert handle.tell() == 0


@pytest.mark.parametrize("size", [1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200])
def test_sizes_beyond_everything(fs: MemoryFileSystem, size: int) -> None:
    """Sizes no store has are refused as any others, without trying."""
    with fs.open("/f", "r+b") as handle:
        with pytest.raises((OSError, OverflowError, ValueError)):
            handle.truncate(size)
        assert handle.read(size) == b"content"
    with pytest.raises((OSError, OverflowError, ValueError)):
        fs.open("/f", "r+b", preallocate=size)


def test_quota_beyond_is_a_quota_error(fs: MemoryFileSystem) -> None:
    """A size that the quota does not allow is MFSQuotaExceededError even when no machine has it."""
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(MFSQuotaExceededError):
            handle.truncate(1 << 45)
    with pytest.raises(MFSQuotaExceededError):
        fs.open("/f", "r+b", preallocate=1 << 45)


@pytest.mark.parametrize("size", ["5", 1.5, None])
def test_preallocate_that_is_no_integer(fs: MemoryFileSystem, size: Any) -> None:
    """preallocate takes an integer."""
    with pytest.raises(TypeError):
        fs.open("/f", "r+b", preallocate=size)


@pytest.mark.parametrize("timeout", ["5", b"5", []])
def test_lock_timeout_that_is_no_number(fs: MemoryFileSystem, timeout: Any) -> None:
    """lock_timeout takes a number or None."""
    with pytest.raises(TypeError):
        fs.open("/f", "rb", lock_timeout=timeout)


def test_lock_timeout_as_an_integer(fs: MemoryFileSystem) -> None:
    """Whole seconds may be given as an int, and 0 is one try."""
    with fs.open("/f", "rb", lock_timeout=0) as handle, fs.open("/f", "rb", lock_timeout=5):
        assert handle.read() == b"content"


def test_negative_lock_timeout_is_one_try(fs: MemoryFileSystem) -> None:
    """A time that is already over is waited for as 0.0 is."""
    with fs.open("/f", "rb", lock_timeout=-1.0):
        pass
    with held_open(fs, "/f", "rb"):
        with pytest.raises(BlockingIOError):
            fs.open("/f", "wb", lock_timeout=-1.0)


# --- buffers ---------------------------------------------------------------------------------------------------------


def test_released_memoryview(fs: MemoryFileSystem) -> None:
    """A released memoryview is ValueError, wherever it is given."""
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(ValueError):
        fs.write_bytes("/f", view)
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(ValueError):
            handle.write(view)
        with pytest.raises(ValueError):
            handle.readinto(view)


def test_buffer_that_fails(fs: MemoryFileSystem) -> None:
    """A sequence of pieces of which one is bad writes what came before it, as files do."""
    with fs.open("/new", "wb") as handle:
        with pytest.raises(TypeError):
            handle.writelines([b"one", "two", b"three"])
    assert fs.read_bytes("/new") == b"one"
    fs.remove("/new")


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_quota": -1},
        {"chunk_overhead_override": -1},
        {"promotion_hard_limit": -1},
        {"default_storage": "other"},
        {"default_storage": ""},
        {"default_storage": None},
        {"memory_guard": "other"},
    ],
    ids=str,
)
def test_store_parameters(options: dict[str, Any]) -> None:
    """Values that no store can have are ValueError."""
    with pytest.raises(ValueError):
        MemoryFileSystem(**{"max_quota": MIB, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"max_quota": "1 GiB"},
        {"max_quota": 1.5},
        {"max_quota": None},
        {"max_nodes": "7"},
        {"default_lock_timeout": "5"},
        {"default_lock_timeout": float("nan")},
    ],
    ids=str,
)
def test_store_parameters_of_other_types(options: dict[str, Any]) -> None:
    """Values of another type are TypeError or ValueError, at once and not at first use."""
    with pytest.raises((TypeError, ValueError)):
        MemoryFileSystem(**{"max_quota": MIB, **options})


@pytest.mark.parametrize(
    "options", [{"max_participants": 0}, {"max_participants": -1}, {"backend": "other"}, {"max_quota": -1}], ids=str
)
def test_parameters_of_create(store_name: str, options: dict[str, Any]) -> None:
    """So with create, which leaves nothing behind."""
    with pytest.raises(ValueError):
        MemoryFileSystem.create(store_name, **{"max_quota": MIB, **options})
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(store_name)


def test_unknown_parameters(store_name: str) -> None:
    """A misspelled parameter is TypeError and makes no store."""
    calls: list[Callable[[], object]] = [
        lambda: MemoryFileSystem(max_quotas=MIB),  # type: ignore[call-arg]
        lambda: MemoryFileSystem.create(store_name, max_quota=MIB, max_node=5),  # type: ignore[call-arg]
        lambda: MemoryFileSystem.attach(store_name, max_quota=MIB),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(store_name)


def test_foreign_segment_of_that_name(stores: Stores, store_name: str) -> None:
    """Names are the user's alone: nothing else in /dev/shm is taken for a store."""
    with open(f"/dev/shm/{store_name}", "xb") as foreign:
        foreign.write(bytes(8192))
    try:
        with pytest.raises(FileNotFoundError):
            MemoryFileSystem.attach(store_name)
        stores.create(store_name).write_bytes("/f", b"x")
        MemoryFileSystem.destroy(store_name)
    finally:
        assert os.path.getsize(f"/dev/shm/{store_name}") == 8192
        os.unlink(f"/dev/shm/{store_name}")
