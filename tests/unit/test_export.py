"""export_as_bytesio, export_tree and iter_export_tree: as D-MemFS's, and what processes, locks and deaths add."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSClosedError,
    MFSDeadlockError,
    MFSLockTimeoutError,
    MFSStoreGoneError,
)

from ..conftest import Stores
from ..processes import Link, call_in_child, child, held_open
from .conftest import OURS
from .test_between_looking_and_doing import after_finding


def put(fs: Any, path: str, data: bytes = b"x") -> None:
    """A file with this content, by open and write, which both have."""
    with fs.open(path, "wb") as handle:
        if data:
            handle.write(data)


def append(fs: Any, path: str, data: bytes = b"x") -> None:
    """More content."""
    with fs.open(path, "ab") as handle:
        handle.write(data)


@pytest.fixture
def tree(mfs: Any) -> Any:
    """Files in directories, in both."""
    mfs.mkdir("/a/b")
    mfs.mkdir("/empty")
    for path in ("/top", "/a/one", "/a/b/two", "/ab"):
        put(mfs, path, path.encode())
    put(mfs, "/a/nothing", b"")
    return mfs


ALL = {path: path.encode() for path in ("/top", "/a/one", "/a/b/two", "/ab")} | {"/a/nothing": b""}

# --- in both: one file


def test_bytesio_is_a_copy_of_now(tree: Any) -> None:
    out = tree.export_as_bytesio("/a/one")
    assert type(out) is io.BytesIO and out.tell() == 0
    append(tree, "/a/one")
    out.write(b"#")
    assert out.getvalue() == b"#a/one"
    assert tree.export_as_bytesio("/a/one").read() == b"/a/onex"
    assert tree.export_as_bytesio("a\\nothing").read() == b""


@pytest.mark.parametrize("size", [0, 3, -1])
def test_bytesio_of_at_most(tree: Any, size: int) -> None:
    with pytest.raises(ValueError, match=f"^File size 6 exceeds max_size={size}.$"):
        tree.export_as_bytesio("/a/one", size)
    assert tree.export_as_bytesio("/a/one", max_size=6).read() == b"/a/one"
    assert tree.export_as_bytesio("/a/nothing", max_size=0).read() == b""


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/none", FileNotFoundError, "No such file: '/none'"),
        ("/top/x", FileNotFoundError, "No such file: '/top/x'"),
        ("/a", IsADirectoryError, "Is a directory: '/a'"),
        ("/", IsADirectoryError, "Is a directory: '/'"),
        ("/../x", ValueError, "Path traversal attempt detected: '/../x'"),
    ],
)
def test_bytesio_of_no_file(tree: Any, path: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        tree.export_as_bytesio(path)
    assert str(raised.value) == text


def test_bytesio_leaves_the_file_closed(tree: Any) -> None:
    """Also when it is too large."""
    with pytest.raises(ValueError):
        tree.export_as_bytesio("/top", 1)
    tree.export_as_bytesio("/top")
    tree.remove("/top")


# --- in both: trees


@pytest.mark.parametrize(
    ("prefix", "paths"),
    [
        ("/", set(ALL)),
        ("", set(ALL)),
        ("/a", {"/a/one", "/a/b/two", "/a/nothing"}),
        ("a/", {"/a/one", "/a/b/two", "/a/nothing"}),
        ("\\a\\b", {"/a/b/two"}),
        ("/a/b/..", {"/a/one", "/a/b/two", "/a/nothing"}),
        ("/a/one", {"/a/one"}),
        ("/empty", set()),
        ("/none", set()),
        ("/to", set()),
        ("/top/x", set()),
    ],
)
def test_prefix(tree: Any, prefix: str, paths: set[str]) -> None:
    """A directory, or a file; a part of a name is neither, and what does not stand has no files."""
    expected = {path: data for path, data in ALL.items() if path in paths}
    assert tree.export_tree(prefix) == expected
    assert dict(tree.iter_export_tree(prefix=prefix)) == expected


def test_escaping_prefix(tree: Any, package: Any) -> None:
    """At the call here, at the first step in D-MemFS."""
    with pytest.raises(ValueError, match=r"Path traversal attempt detected: '/\.\.'"):
        tree.export_tree("/..")
    with pytest.raises(ValueError, match=r"Path traversal attempt detected: '/\.\.'"):
        exporting = tree.iter_export_tree("/..")
        if package.__name__ == OURS:
            pytest.fail("it should have been raised")
        next(exporting)


def reopened(mode: str, *calls: tuple[str, Any]) -> Callable[[Any], None]:
    """Something done to /f in one opening."""

    def change(fs: Any) -> None:
        with fs.open("/f", mode) as handle:
            for name, argument in calls:
                getattr(handle, name)(argument)

    return change


CHANGES: dict[str, tuple[Callable[[Any], object], bool]] = {
    "nothing": (lambda fs: None, False),
    "read": (reopened("rb", ("read", -1)), False),
    "wb": (reopened("wb"), True),
    "ab": (reopened("ab"), False),
    "r+b": (reopened("r+b"), False),
    "write": (reopened("ab", ("write", b"x")), True),
    "write nothing": (reopened("r+b", ("write", b"")), False),
    "overwrite by the same": (reopened("r+b", ("write", b"cl")), True),
    "truncate to less": (reopened("r+b", ("truncate", 1)), True),
    "truncate to more": (reopened("r+b", ("truncate", 9)), True),
    "truncate to the same": (reopened("r+b", ("truncate", 5)), False),
    "preallocate more": (lambda fs: fs.open("/f", "r+b", preallocate=100).close(), True),
    "preallocate less": (lambda fs: fs.open("/f", "r+b", preallocate=2).close(), False),
    "rename": (lambda fs: fs.rename("/f", "/g"), False),
    "move": (lambda fs: fs.move("/f", "/new/g"), False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_dirty(make: Any, name: str) -> None:
    """A file is dirty if its generation, as stat tells it, is above 0. A copied tree is clean."""
    change, dirty = CHANGES[name]
    fs = make()
    fs.mkdir("/from")
    put(fs, "/from/f", b"clean")
    fs.copy_tree("/from", "/to")
    assert fs.export_tree("/to", only_dirty=True) == {}
    fs.rename("/to/f", "/f")
    fs.rmtree("/from")
    change(fs)
    assert bool(fs.export_tree(only_dirty=True)) is dirty
    [path] = fs.export_tree()
    assert (fs.stat(path)["generation"] > 0) is dirty


@pytest.mark.parametrize(("data", "generation"), [(b"", 0), (b"x", 1)])
def test_dirty_copies(make: Any, data: bytes, generation: int) -> None:
    """A copied file is dirty like a written one; an empty one is not."""
    fs = make()
    put(fs, "/f", data)
    fs.copy("/f", "/g")
    assert fs.stat("/g")["generation"] == fs.stat("/f")["generation"] == generation
    assert set(fs.export_tree("/", True)) == ({"/f", "/g"} if data else set())


# --- in both: one file after the other


def test_content_is_that_of_the_step(tree: Any) -> None:
    """Not of the call; what comes into being after the first step is not seen."""
    exporting = tree.iter_export_tree("/a")
    put(tree, "/a/before", b"before the first step")
    first = next(exporting)
    for path in ("/a/one", "/a/b/two", "/a/nothing", "/a/before"):
        append(tree, path, b"!")
    put(tree, "/a/after")
    expected = {path: data + b"!" for path, data in ALL.items() if path.startswith("/a/")}
    expected["/a/before"] = b"before the first step!"
    rest = dict(exporting)
    assert first[0] not in rest
    assert {first[0]: first[1] + b"!"} | rest == expected


def test_no_lock_is_held_between_steps(tree: Any) -> None:
    exporting = tree.iter_export_tree("/a")
    path, _ = next(exporting)
    tree.remove(path)
    tree.rmtree("/a")
    assert list(exporting) == []


def others(fs: Any, prefix: str) -> tuple[Any, list[str]]:
    """An export that has given its first file, and the paths that are to come."""
    exporting = fs.iter_export_tree(prefix)
    first, _ = next(exporting)
    return exporting, sorted(set(fs.export_tree(prefix)) - {first})


def test_removed_meanwhile(tree: Any) -> None:
    """It is skipped, also if another file has its path by then."""
    exporting, (gone, anew) = others(tree, "/a")
    tree.remove(gone)
    tree.remove(anew)
    put(tree, anew, b"another")
    assert list(exporting) == []


def test_renamed_meanwhile(tree: Any) -> None:
    """It comes under the path that it had."""
    exporting, paths = others(tree, "/a")
    for number, path in enumerate(paths):
        tree.rename(path, f"/renamed{number}")
    assert dict(exporting) == {path: ALL[path] for path in paths}


def test_directory_renamed_meanwhile(tree: Any) -> None:
    exporting, paths = others(tree, "/a")
    tree.rename("/a", "/z")
    assert dict(exporting) == {path: ALL[path] for path in paths}


# --- here only


def test_replaced_meanwhile(fs: MemoryFileSystem) -> None:
    """It is the same file with other content, wherever its bytes are."""
    for path in ("/a", "/b", "/c", "/d"):
        fs.write_bytes(path, path.encode())
    exporting, (swapped, succeeded, replaced) = others(fs, "/")
    fs.write_bytes(swapped, b"swapped")
    with fs.open(succeeded):  # a reader keeps the old one
        fs.write_bytes(succeeded, b"succeeded")
    fs.write_bytes("/new", b"replaced")
    fs.replace("/new", replaced)
    assert dict(exporting) == {swapped: b"swapped", succeeded: b"succeeded", replaced: b"replaced"}


def test_a_file_becomes_a_directory(fs: MemoryFileSystem) -> None:
    for path in ("/a", "/b"):
        fs.write_bytes(path, b"x")
    exporting, [path] = others(fs, "/")
    fs.remove(path)
    fs.mkdir(path)
    assert list(exporting) == []


def test_paths_are_those_of_one_moment(fs: MemoryFileSystem) -> None:
    """A directory that moves while the paths are collected has its files once: here where it went to."""
    fs.mkdir("/m")
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"content")
    for target in ("/a", "/z"):
        source = next(path for path in ("/d", "/a") if fs.exists(path))
        with after_finding(fs, lambda source=source, target=target: fs.rename(source, target), "entries_of"):  # type: ignore[misc]
            assert fs.export_tree() == {f"{target}/f": b"content"}


def test_names_that_change_all_the_time(fs: MemoryFileSystem) -> None:
    """Then what stood throughout is there, and the call comes to its end."""
    listing: Any = fs._store.listing  # type: ignore[union-attr]
    fs.write_bytes("/f", b"content")
    real = listing.entries_of

    def entries_of(*args: Any) -> Any:
        fs.write_bytes("/busy", b"")
        fs.remove("/busy")
        return real(*args)

    listing.entries_of = entries_of
    try:
        assert fs.export_tree() == {"/f": b"content"}
    finally:
        listing.entries_of = real


def test_several_runs(fs: MemoryFileSystem) -> None:
    """A file in pieces is whole."""
    with fs.open("/a", "wb") as one, fs.open("/b", "wb") as two:
        for number in range(40):
            one.write(bytes([number]) * 9000)
            two.write(bytes([number]) * 9000)
    whole = b"".join(bytes([number]) * 9000 for number in range(40))
    assert fs.export_tree() == {"/a": whole, "/b": whole}
    assert fs.export_as_bytesio("/a").getvalue() == whole


def test_waits_as_long_as_the_default(stores: Stores) -> None:
    fs = stores.private(default_lock_timeout=0.0)
    fs.write_bytes("/f", b"x")
    with held_open(fs, "/f", "r+b"):
        for export in (lambda: fs.export_as_bytesio("/f"), fs.export_tree, lambda: next(fs.iter_export_tree("/f"))):
            with pytest.raises(MFSLockTimeoutError, match="Could not acquire read lock within timeout"):
                export()
    assert fs.locks() == []


def test_own_files(fs: MemoryFileSystem) -> None:
    """What the thread reads itself it may export; what it writes, it would wait for itself."""
    fs.write_bytes("/f", b"x")
    with fs.open("/f"):
        assert fs.export_tree() == {"/f": b"x"}
    with fs.open("/f", "r+b"), pytest.raises(MFSDeadlockError):
        fs.export_tree()


def _leave_half(link: Link, fs: MemoryFileSystem) -> None:
    with fs.open("/half", "wb") as handle:
        handle.write(b"half")
        link.send("written")
        link.recv()


def test_abandoned(named: MemoryFileSystem) -> None:
    named.mkdir("/other")
    named.write_bytes("/other/whole", b"whole")
    with child("fork", _leave_half, named) as writer:
        assert writer.receive() == "written"
        writer.kill()
    for export in (named.export_tree, lambda: named.export_as_bytesio("/half"), lambda: next(named.iter_export_tree("/half"))):
        with pytest.raises(MFSAbandonedFileError):
            export()
    assert named.export_tree("/other") == {"/other/whole": b"whole"}
    assert named.export_tree(allow_abandoned=True) == {"/other/whole": b"whole", "/half": b"half"}
    assert named.export_as_bytesio("/half", allow_abandoned=True).read() == b"half"
    assert named.locks() == []


def _dirty_paths(name: str) -> list[str]:
    fs = MemoryFileSystem.attach(name)
    found = sorted(fs.export_tree(only_dirty=True))
    with fs.open("/to/clean", "ab") as handle:
        handle.write(b"!")
    fs.close()
    return found


def test_dirty_in_another_process(named: MemoryFileSystem, store_name: str) -> None:
    """Generations belong to the store: what one process changes, another exports."""
    named.mkdir("/from")
    named.write_bytes("/from/clean", b"x")
    named.copy_tree("/from", "/to")
    named.copy_tree("/from", "/also")
    assert call_in_child("spawn", _dirty_paths, store_name) == ["/from/clean"]
    assert named.export_tree(only_dirty=True) == {"/from/clean": b"x", "/to/clean": b"x!"}


@pytest.mark.parametrize("empty", [False, True])
def test_dirty_by_write_bytes_and_replace(fs: MemoryFileSystem, empty: bool) -> None:
    """write_bytes of a new file counts as wb and write, over another as a change; replace as a change of what it replaces."""
    data = b"" if empty else b"x"
    fs.write_bytes("/f", data)
    assert fs.stat("/f")["generation"] == (not empty)
    fs.write_bytes("/f", data)
    assert fs.stat("/f")["generation"] == 2 - empty
    with fs.view("/f"):
        fs.write_bytes("/f", data)
    assert fs.stat("/f")["generation"] == 3 - empty
    fs.write_bytes("/g", data)
    fs.replace("/g", "/f")
    assert fs.export_tree(only_dirty=True) == {"/f": data}


def test_closed_and_gone(stores: Stores) -> None:
    fs = stores.create()
    fs.write_bytes("/a", b"x")
    fs.write_bytes("/b", b"x")
    other = stores.attach(fs.name)
    begun, too = fs.iter_export_tree(), other.iter_export_tree()
    next(begun), next(too)
    fs.close()
    for call in (fs.export_tree, fs.iter_export_tree, lambda: fs.export_as_bytesio("/a"), lambda: next(begun)):
        with pytest.raises(MFSClosedError):
            call()
    MemoryFileSystem.destroy(other.name)
    for call in (other.export_tree, other.iter_export_tree, lambda: next(too)):
        with pytest.raises(MFSStoreGoneError):
            call()
