"""What a path led to may be something else by the time it is used: a call answers for one moment, never for a mixture.

`after_finding` lets something happen just after a path was looked up, as another process could.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSNodeLimitExceededError

from ..conftest import Stores


@contextlib.contextmanager
def after_finding(fs: MemoryFileSystem, happens: Callable[[], Any]) -> Iterator[None]:
    """Call happens() once, just after the next path was looked up."""
    names: Any = fs._store.names
    real = names.find

    def find(*args: Any) -> Any:
        found = real(*args)
        names.find = real
        happens()
        return found

    names.find = find
    try:
        yield
    finally:
        names.find = real


@pytest.fixture
def other(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with the file /f, whose node is the next to be used when it is removed."""
    fs.mkdir("/d/e")
    fs.write_bytes("/f", b"x" * 4093)
    fs._store.names.files.clear()
    return fs


def becomes_a_directory(fs: MemoryFileSystem) -> Callable[[], None]:
    def happens() -> None:
        fs.remove("/f")
        fs.mkdir("/new")

    return happens


@pytest.mark.parametrize("call", ["open", "read_bytes", "view", "get_size", "stat"])
def test_file_whose_node_became_a_directory(other: MemoryFileSystem, call: str) -> None:
    """It is gone; it never was a directory."""
    with after_finding(other, becomes_a_directory(other)), pytest.raises(FileNotFoundError):
        getattr(other, call)("/f")


def test_kind_of_a_file_whose_node_became_a_directory(other: MemoryFileSystem) -> None:
    """is_dir is never true of it."""
    with after_finding(other, becomes_a_directory(other)):
        assert not other.is_dir("/f")


@pytest.mark.parametrize("call", ["listdir", "walk"])
def test_listing_a_file_while_a_directory_moves(other: MemoryFileSystem, call: str) -> None:
    """The size of a file is not taken for an entry."""
    with after_finding(other, lambda: other.rename("/d/e", "/d/moved")), pytest.raises(NotADirectoryError):
        getattr(other, call)("/f")


def test_listing_a_directory_that_moves(other: MemoryFileSystem) -> None:
    """Its entries, or that it is not there: not that it is empty."""
    with after_finding(other, lambda: other.rename("/d", "/moved")), pytest.raises(FileNotFoundError):
        other.listdir("/d")
    assert other.listdir("/moved") == ["e"]


def test_new_directories_stand_all_or_none(stores: Stores) -> None:
    """A limit in the middle leaves none of them; very many are still made."""
    fs = stores.private(max_nodes=4)
    with pytest.raises(MFSNodeLimitExceededError):
        fs.mkdir("/a/b/c/d")
    assert fs.listdir("/") == []
    fs = stores.private()
    deep = "/" + "/".join(f"{level:03}" for level in range(500))
    fs.mkdir(deep)
    fs.write_bytes("/file", b"x")
    fs.move("/file", f"{deep}/p/q/r/file")
    assert fs.read_bytes(f"{deep}/p/q/r/file") == b"x"
    assert fs.stats()["dir_count"] == 504
