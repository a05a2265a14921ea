"""What a path led to may be something else by the time it is used: a call answers for one moment, never for a mixture.

`after_finding` lets something happen just after a path was looked up, as another process could.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSNodeLimitExceededError
from dmemfs_shm.store import segment
from dmemfs_shm.store.fastpath import FastPath
from dmemfs_shm.store.layout import A_BACKED, ARENAS, N_PARENT, N_SEQ, arena_at, journal_at
from dmemfs_shm.store.tree import Unsettled

from ..conftest import Stores
from ..crash.harness import WordBuffer, instrument


@contextlib.contextmanager
def after_finding(fs: MemoryFileSystem, happens: Callable[[], Any], how: str = "find") -> Iterator[None]:
    """Call happens() once, just after the next path was looked up (or, *how* "create", found to stand; or "entries_of")."""
    finder: Any = fs._store.listing if how == "entries_of" else fs._store.names
    fast = FastPath.find
    real = getattr(finder, how)

    def stop() -> None:
        setattr(finder, how, real)
        FastPath.find = fast  # type: ignore[method-assign]

    def find(*args: Any) -> Any:
        found = real(*args)
        stop()
        happens()
        return found

    def find_fast(self: FastPath, path: Any) -> Any:
        found = fast(self, path)
        if found is not None:
            stop()
            happens()
        return found

    setattr(finder, how, find)
    if how == "find":
        FastPath.find = find_fast  # type: ignore[method-assign]
    try:
        yield
    finally:
        stop()


@contextlib.contextmanager
def after_stepping_to(fs: MemoryFileSystem, name: bytes, happens: Callable[[], Any]) -> Iterator[None]:
    """Call happens() once, in the middle of a walk, just after it came to that name."""
    tree: Any = fs._store.tree
    real, fast = tree.find, FastPath.find
    FastPath.find = lambda *_: None  # type: ignore[method-assign,misc,assignment]

    def find(parent: int, part: bytes) -> int:
        node = real(parent, part)
        if part == name:
            tree.find = real
            happens()
        return int(node)

    tree.find = find
    try:
        yield
    finally:
        tree.find, FastPath.find = real, fast  # type: ignore[method-assign]


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


def test_file_that_goes_to_another_directory(other: MemoryFileSystem) -> None:
    """Under its old path it is gone, though it has the same name there."""
    other.write_bytes("/d/f", b"")
    other.mkdir("/done")
    other._store.names.files.clear()
    with after_stepping_to(other, b"f", lambda: other.rename("/d/f", "/done/f")), pytest.raises(FileNotFoundError):
        other.open("/d/f")


def test_file_on_the_way_whose_node_became_a_directory(other: MemoryFileSystem) -> None:
    """A path through a file leads nowhere, whatever becomes of the file."""

    def happens() -> None:
        other.remove("/f")
        other.mkdir("/new")
        other.write_bytes("/new/x", b"")

    with after_stepping_to(other, b"f", happens):
        assert not other.exists("/f/x")


def test_directory_on_the_way_that_never_was(fs: MemoryFileSystem) -> None:
    """A walk came to a directory before its creation was committed; it was undone, and the node is another one by now."""
    store: Any = fs._attached()
    real, commits = store.tree.find, journal_at(0)
    midway: list[Any] = []

    class Interrupted(WordBuffer):
        def __setitem__(self, key: Any, value: Any) -> None:
            if not midway and key == commits and value == 0:
                midway.append(real(1, b"d"))
                raise KeyboardInterrupt
            self.words[key] = value

    instrument(store, lambda words: Interrupted(words, lambda _: None))
    with pytest.raises(KeyboardInterrupt):
        fs.mkdir("/d")
    fs.mkdir("/new")
    fs.write_bytes("/new/x", b"")
    assert midway == [real(1, b"new")]

    def find(parent: int, part: bytes) -> int:
        store.tree.find = real
        return int(midway[0])

    store.tree.find = find
    assert not fs.exists("/d/x")


def test_rename_that_begins_between_two_loads(other: MemoryFileSystem) -> None:
    """A walk that came from an earlier, undone rename is not taken in by the next one before its commit."""
    other.write_bytes("/d/f", b"")
    store: Any = other._attached()
    real = store.tree.find
    folder, file = real(1, b"d"), real(real(1, b"d"), b"f")
    at = store.names.at(file)
    store.w[at + N_PARENT] = 1  # as if it had come from there

    class Begins(WordBuffer):
        def __getitem__(self, key: Any) -> Any:
            if key == at + N_PARENT and self.words[at + N_PARENT] == 1:
                self.words[at + N_SEQ] += 1
                self.words[at + N_PARENT] = folder
            return self.words[key]

    instrument(store, lambda words: Begins(words, lambda _: None))
    store.tree.find = lambda parent, part: file if part == b"f" else real(parent, part)
    with pytest.raises(Unsettled):
        store.tree.look_up([b"d", b"f"])
    store.tree.find = real
    store.w[at + N_SEQ] += 1


def test_directories_of_the_dead(fs: MemoryFileSystem) -> None:
    """Sequences that a death left odd, between a commit and the end of its section, are mended all along the way."""
    fs.mkdir("/d/e")
    store: Any = fs._attached()
    parts = [b"d", b"e"]
    for depth in (1, 2):
        store.w[store.names.at(store.tree.walk(parts[:depth])) + N_SEQ] |= 1
    with pytest.raises(Unsettled):
        store.tree.look_up([*parts, b"x"])
    assert not fs.exists("/d/e/x")
    assert store.tree.look_up([*parts, b"x"])[0] == 0


def test_creating_where_a_directory_went(other: MemoryFileSystem) -> None:
    """A directory that is in the way of a file is no file that exists; when it has gone, the file is created."""
    with after_finding(other, lambda: other.rmtree("/d"), "create"):
        other.open("/d", "xb").close()
    assert other.is_file("/d")


def test_mapping_an_arena_that_grows(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that came after the segment was looked at is not missed."""
    fs.write_bytes("/f", b"content")
    arenas = fs._store.arenas
    arenas.close()
    real = segment.backed_bytes

    def backed_bytes(fd: int) -> int:
        found = real(fd)
        monkeypatch.undo()
        assert arenas._back(0, fs._store.w[arena_at(0) + A_BACKED] + 1, None)
        return found

    monkeypatch.setattr(segment, "backed_bytes", backed_bytes)
    assert fs.read_bytes("/f") == b"content"


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


@pytest.mark.parametrize(
    "happens",
    [
        lambda fs: fs.rename("/d/e", "/d/moved"),
        lambda fs: (fs.mkdir("/gone"), fs.rmtree("/gone")),
        lambda fs: (fs.write_bytes("/from/new", b"y"), fs.replace("/from/new", "/from/f")),
    ],
    ids=["another directory moves", "another directory goes", "the file is replaced"],
)
def test_copying_a_tree_misses_no_file(other: MemoryFileSystem, happens: Callable[[MemoryFileSystem], Any]) -> None:
    """A file that is there throughout is in the copy, whatever else happens between listing and locking it."""
    other.mkdir("/from")
    other.write_bytes("/from/f", b"x")
    locks: Any = other._store.rw
    real = locks.lock

    def lock(*args: Any) -> Any:
        locks.lock = real
        happens(other)
        return real(*args)

    locks.lock = lock
    other.copy_tree("/from", "/to")
    assert other.listdir("/to") == ["f"]
    assert other.read_bytes("/to/f") == other.read_bytes("/from/f")


def test_many_who_need_the_first_memory(fs: MemoryFileSystem) -> None:
    """They share an arena: one each would soon be more than the index has room for."""
    arenas: Any = fs._store.arenas
    real = arenas._add_arena
    late = iter(range(20))

    def add_arena(*args: Any) -> None:
        """Between looking and adding another one comes, and between his looking and adding a third one, and so on."""
        if (number := next(late, None)) is not None:
            fs.write_bytes(f"/{number}", b"x")
        real(*args)

    arenas._add_arena = add_arena
    try:
        fs.write_bytes("/f", b"x")
    finally:
        arenas._add_arena = real
    assert len(fs.listdir("/")) == 21
    assert fs._store.w[ARENAS] == 1
