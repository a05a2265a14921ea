"""What D-MemFS's docstrings, code and README say of each public method, demanded of both.

The random walk of tests/property/test_against_dmemfs.py compares states and the kinds of errors; here are signatures, texts
of errors, times, generations, and what else a program may have come to rely on.
"""

from __future__ import annotations

import inspect
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import dmemfs
import pytest

import dmemfs_shm

from ..processes import Task, held_open
from .conftest import Make


def put(fs: Any, path: str, data: bytes = b"x") -> None:
    with fs.open(path, "wb") as handle:
        if data:
            handle.write(data)


@pytest.fixture
def tree(mfs: Any) -> Any:
    mfs.mkdir("/d/e")
    put(mfs, "/f", b"content")
    put(mfs, "/d/g", b"line\nother\nlast")
    return mfs


# --- names and signatures


def test_names() -> None:
    """Everything that D-MemFS exports."""
    assert set(dmemfs.__all__) <= set(dmemfs_shm.__all__)
    for name in set(dmemfs.__all__):
        assert getattr(dmemfs_shm, name).__name__ == name


def parameters_of(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of what may be given by position."""
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.default) for each in found if each.kind is each.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("kind", ["MemoryFileSystem", "MemoryFileHandle", "AsyncMemoryFileSystem", "AsyncMemoryFileHandle"])
def test_signatures(kind: str) -> None:
    """Each public method takes the same arguments, by name and position, with the same defaults."""
    ours, theirs = getattr(dmemfs_shm, kind), getattr(dmemfs, kind)
    names = [name for name in vars(theirs) if not name.startswith("_")]
    assert len(names) > 8
    for name in names:
        assert parameters_of(getattr(ours, name)) == parameters_of(getattr(theirs, name)), name
        assert inspect.iscoroutinefunction(getattr(ours, name)) == inspect.iscoroutinefunction(getattr(theirs, name)), name
    if "FileSystem" in kind:
        assert parameters_of(ours) == parameters_of(theirs)


def test_bases() -> None:
    for package in (dmemfs, dmemfs_shm):
        assert issubclass(package.MemoryFileHandle, io.RawIOBase)
        assert issubclass(package.MFSQuotaExceededError, OSError)
        assert issubclass(package.MFSNodeLimitExceededError, package.MFSQuotaExceededError)


@pytest.mark.parametrize("name", ["MFSStats", "MFSStatResult"])
def test_keys(name: str) -> None:
    """stat has one key more here."""
    ours, theirs = set(getattr(dmemfs_shm, name).__annotations__), set(getattr(dmemfs, name).__annotations__)
    assert ours - theirs == ({"abandoned"} if name == "MFSStatResult" else set()) and theirs <= ours


# --- errors and their texts

ERRORS: list[tuple[Callable[[Any], object], type[BaseException], str]] = [
    (lambda fs: fs.open("/f", "r"), ValueError, "Invalid mode 'r'. MFS supports binary modes only: {"),
    (lambda fs: fs.open("/f", "w"), ValueError, "Invalid mode 'w'. MFS supports binary modes only: {"),
    (lambda fs: fs.open("/f", "rb+"), ValueError, "Invalid mode 'rb+'. MFS supports binary modes only: {"),
    (lambda fs: fs.open("no/../x"), FileNotFoundError, "No such file: 'no/../x'"),
    (lambda fs: fs.open("/x", "r+b"), FileNotFoundError, "No such file: '/x'"),
    (lambda fs: fs.open("/f/x"), FileNotFoundError, "No such file: '/f/x'"),
    (lambda fs: fs.open("/d"), IsADirectoryError, "Is a directory: '/d'"),
    (lambda fs: fs.open("d", "xb"), IsADirectoryError, "Is a directory: 'd'"),
    (lambda fs: fs.open("/", "wb"), IsADirectoryError, "Is a directory: '/'"),
    (lambda fs: fs.open("/f", "xb"), FileExistsError, "File exists: '/f'"),
    (lambda fs: fs.open("/x/y", "wb"), FileNotFoundError, "Parent directory does not exist: '/x'"),
    (lambda fs: fs.open("/x/y", "ab"), FileNotFoundError, "Parent directory does not exist: '/x'"),
    (lambda fs: fs.open("/f/y", "xb"), FileNotFoundError, "Parent directory does not exist: '/f'"),
    (lambda fs: fs.open("/../f"), ValueError, "Path traversal attempt detected: '/../f'"),
    (lambda fs: fs.mkdir("/d"), FileExistsError, "Directory exists: '/d'"),
    (lambda fs: fs.mkdir("/"), FileExistsError, "Directory exists: '/'"),
    (lambda fs: fs.mkdir("/f", exist_ok=True), FileExistsError, "File exists at path: '/f'"),
    (lambda fs: fs.mkdir("/f/x"), FileExistsError, "A file exists at path component: 'f'"),
    (lambda fs: fs.rename("/", "/x"), ValueError, "Cannot rename the root directory."),
    (lambda fs: fs.rename("/x", "/y"), FileNotFoundError, "No such file or directory: '/x'"),
    (lambda fs: fs.rename("/f", "/d"), FileExistsError, "Destination already exists: '/d'"),
    (lambda fs: fs.rename("/f", "/f"), FileExistsError, "Destination already exists: '/f'"),
    (lambda fs: fs.rename("/f", "/x/y"), FileNotFoundError, "Destination parent does not exist: '/x/y'"),
    (lambda fs: fs.move("/", "/x"), ValueError, "Cannot move the root directory."),
    (lambda fs: fs.move("/x", "/y"), FileNotFoundError, "No such file or directory: '/x'"),
    (lambda fs: fs.move("/f", "/d/g"), FileExistsError, "Destination already exists: '/d/g'"),
    (lambda fs: fs.remove("/x"), FileNotFoundError, "No such file: '/x'"),
    (lambda fs: fs.remove("/d"), IsADirectoryError, "Is a directory: '/d'"),
    (lambda fs: fs.rmtree("/"), ValueError, "Cannot remove the root directory."),
    (lambda fs: fs.rmtree("/x"), FileNotFoundError, "No such directory: '/x'"),
    (lambda fs: fs.rmtree("/f"), NotADirectoryError, "Not a directory: '/f'"),
    (lambda fs: fs.listdir("/x"), FileNotFoundError, "No such directory: '/x'"),
    (lambda fs: fs.listdir("/f"), NotADirectoryError, "Not a directory: '/f'"),
    (lambda fs: list(fs.walk("/x")), FileNotFoundError, "No such directory: '/x'"),
    (lambda fs: list(fs.walk("/f")), NotADirectoryError, "Not a directory: '/f'"),
    (lambda fs: fs.stat("x"), FileNotFoundError, "No such file or directory: 'x'"),
    (lambda fs: fs.get_size("/x"), FileNotFoundError, "No such file: '/x'"),
    (lambda fs: fs.get_size("/d"), IsADirectoryError, "Is a directory: '/d'"),
    (lambda fs: fs.copy("/x", "/y"), FileNotFoundError, "No such file: '/x'"),
    (lambda fs: fs.copy("/d", "/y"), IsADirectoryError, "Is a directory: '/d'"),
    (lambda fs: fs.copy("/f", "/d"), FileExistsError, "Destination already exists: '/d'"),
    (lambda fs: fs.copy("/f", "/x/y"), FileNotFoundError, "Parent directory does not exist: '/x'"),
    (lambda fs: fs.copy_tree("/x", "/y"), FileNotFoundError, "No such file or directory: '/x'"),
    (lambda fs: fs.copy_tree("/f", "/y"), NotADirectoryError, "Not a directory: '/f'"),
    (lambda fs: fs.copy_tree("/d", "/f"), FileExistsError, "Destination already exists: '/f'"),
    (lambda fs: fs.copy_tree("/d", "/x/y"), FileNotFoundError, "Destination parent does not exist: '/x/y'"),
    (lambda fs: fs.open("/f").write(b"x"), io.UnsupportedOperation, "not writable in mode 'rb'"),
    (lambda fs: fs.open("/f").truncate(), io.UnsupportedOperation, "not writable in mode 'rb'"),
    (lambda fs: fs.open("/f", "ab").read(), io.UnsupportedOperation, "not readable in mode 'ab'"),
    (lambda fs: fs.open("/f", "wb").readinto(bytearray(1)), io.UnsupportedOperation, "not readable in mode 'wb'"),
    (lambda fs: fs.open("/f", "wb").write("text"), TypeError, "a bytes-like object is required"),
    (lambda fs: fs.open("/f", "wb").truncate(-1), ValueError, "truncate size must be >= 0"),
    (lambda fs: fs.open("/f").seek(-1), ValueError, "seek offset must be >= 0 for SEEK_SET"),
    (lambda fs: fs.open("/f").seek(-1, 1), ValueError, "Resulting cursor position -1 is negative."),
    (lambda fs: fs.open("/f").seek(-8, 2), ValueError, "Resulting cursor position -1 is negative."),
    (
        lambda fs: fs.open("/f").seek(1, 2),
        ValueError,
        "Seeking past end-of-file (SEEK_END with positive offset) is not supported in MFS.",
    ),
    (lambda fs: fs.open("/f").seek(0, 3), ValueError, "Invalid whence value: 3. Must be 0, 1, or 2."),
]


@pytest.mark.filterwarnings("ignore:MFS MemoryFileHandle was not closed properly:ResourceWarning")
@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_error(tree: Any, number: int) -> None:
    """The same built-in, the same text; but for a set in it, whose order is nobody's."""
    call, kind, text = ERRORS[number]
    with pytest.raises(kind) as raised:
        call(tree)
    found = str(raised.value)
    assert found == text or (text.endswith("{") and found.startswith(text))


@pytest.mark.parametrize(
    "method", ["read", "readinto", "write", "seek", "tell", "truncate", "readable", "writable", "seekable"]
)
def test_closed_handle(tree: Any, method: str) -> None:
    handle = tree.open("/f", "r+b")
    handle.close()
    handle.close()
    arguments: tuple[Any, ...] = {"readinto": (bytearray(1),), "write": (b"x",), "seek": (0,)}.get(method, ())
    with pytest.raises(ValueError, match=r"^I/O operation on closed file\.$"):
        getattr(handle, method)(*arguments)


@pytest.mark.parametrize("mode", ["rb", "wb", "ab", "r+b"])
def test_open_files_stay(tree: Any, mode: str) -> None:
    """Not removed, renamed or moved, nor a directory with one in it; and all of it can be done afterwards."""
    calls: list[Callable[[], object]] = [
        lambda: tree.remove("/d/g"),
        lambda: tree.rename("/d/g", "/h"),
        lambda: tree.move("/d", "/new/d"),
        lambda: tree.rename("/d", "/x"),
        lambda: tree.rmtree("/d"),
    ]
    with tree.open("/d/g", mode):
        for call in calls:
            with pytest.raises(BlockingIOError, match=r"^File is open: '/d/g'"):
                call()
    tree.rmtree("/d")


def test_lock_texts(tree: Any) -> None:
    for held, wanted, text in (("wb", "rb", "read"), ("rb", "r+b", "write"), ("r+b", "ab", "write")):
        with held_open(tree, "/f", held):
            for lock_timeout in (0.0, 0.02):
                with pytest.raises(BlockingIOError, match=rf"^Could not acquire {text} lock within timeout\."):
                    tree.open("/f", wanted, lock_timeout=lock_timeout)


def test_readers_share(tree: Any) -> None:
    with held_open(tree, "/f", "rb"), tree.open("/f", lock_timeout=0.0) as handle:
        assert handle.read() == b"content"


def test_waits_for_the_lock(tree: Any) -> None:
    with tree.open("/f", "wb") as handle:
        waiter = Task(lambda: tree.open("/f", "r+b"))
        handle.write(b"new")
    with waiter.result() as handle:
        assert handle.read() == b"new"


# --- what stat says


def test_stat(tree: Any) -> None:
    before = time.time()
    put(tree, "/new", b"abc")
    found = tree.stat("/new")
    assert (found["size"], found["generation"], found["is_dir"]) == (3, 1, False)
    assert before - 1 < found["created_at"] <= found["modified_at"] < time.time() + 1
    assert isinstance(found["created_at"], float) and isinstance(found["modified_at"], float)
    directory = tree.stat("/d")
    assert (directory["size"], directory["generation"], directory["is_dir"]) == (0, 0, True)
    assert directory["created_at"] == directory["modified_at"] > 0
    assert tree.stat("") == tree.stat("/")


def test_modified_at(tree: Any) -> None:
    """Writing, truncating and emptying change it; opening, reading, renaming and writing nothing do not."""
    for mode in ("rb", "ab", "r+b"):
        stat = tree.stat("/f")
        with tree.open("/f", mode) as handle:
            if mode != "rb":
                handle.write(b"")
        assert tree.stat("/f") == stat
    tree.rename("/f", "/d/f")
    assert tree.stat("/d/f") == stat
    for change in (lambda handle: handle.write(b"x"), lambda handle: handle.truncate(2)):
        before = tree.stat("/d/f")
        with tree.open("/d/f", "r+b") as handle:
            change(handle)
        after = tree.stat("/d/f")
        assert after["modified_at"] >= before["modified_at"] and after["created_at"] == before["created_at"]
        assert after["generation"] == before["generation"] + 1
    tree.open("/d/f", "wb").close()
    assert tree.stat("/d/f")["generation"] == after["generation"] + 1
    assert tree.stat("/d/f")["created_at"] == after["created_at"]


def test_preallocate(tree: Any) -> None:
    """Zero bytes, which count in the generation; the position stays at the beginning, in ab at the end."""
    with tree.open("/p", "wb", 10) as handle:
        assert handle.tell() == 0
        handle.write(b"ab")
    assert tree.stat("/p")["generation"] == 2
    with tree.open("/p") as handle:
        assert handle.read() == b"ab" + bytes(8)
    with tree.open("/p", "ab", preallocate=12) as handle:
        assert handle.write(b"!") == 1
    with tree.open("/p") as handle:
        assert handle.read() == b"ab" + bytes(10) + b"!"


def test_copies_are_new(tree: Any) -> None:
    """With times and generation of their own, and nothing in common."""
    with tree.open("/f", "ab") as handle:
        handle.write(b"!")
    tree.copy("/f", "/copy")
    tree.copy_tree("/d", "/tree")
    assert tree.stat("/copy")["generation"] == 1 and tree.stat("/tree/g")["generation"] == 0
    assert tree.stat("/copy")["created_at"] >= tree.stat("/f")["created_at"]
    put(tree, "/copy", b"other")
    with tree.open("/f") as handle:
        assert handle.read() == b"content!"
    assert sorted(tree.listdir("/tree")) == ["e", "g"]


# --- streams


def test_stream(tree: Any) -> None:
    with tree.open("/d/g") as handle:
        assert list(handle) == [b"line\n", b"other\n", b"last"]
        assert handle.read() == b""
        assert handle.seek(0) == 0
        assert handle.readline() == b"line\n"
        assert handle.readlines() == [b"other\n", b"last"]
        assert handle.seek(-4, io.SEEK_END) == 11
        buffer = bytearray(10)
        assert handle.readinto(buffer) == 4 and buffer == b"last" + bytes(6)
        assert handle.seek(100) == 100
        assert handle.read(5) == b"" and handle.readall() == b""
        assert (handle.readable(), handle.writable(), handle.seekable(), handle.closed) == (True, False, True, False)
        assert handle.fileno is not None and not handle.isatty()
    assert handle.closed


def test_sparse(tree: Any) -> None:
    with tree.open("/s", "wb") as handle:
        handle.seek(5)
        assert handle.tell() == 5
        assert handle.write(memoryview(b"end")) == 3
        assert handle.truncate() == 8
        assert handle.truncate(10) == 10 and handle.tell() == 8
        assert handle.truncate(6) == 6 and handle.tell() == 6
        assert handle.writelines([b"a", b"b"]) is None
    with tree.open("/s") as handle:
        assert handle.read() == b"\0\0\0\0\0eab"


def test_append_goes_to_the_end(tree: Any) -> None:
    with tree.open("/f", "ab") as handle:
        assert handle.tell() == 7
        handle.seek(0)
        handle.write(b"1")
        handle.seek(2)
        handle.write(bytearray(b"2"))
        assert handle.tell() == 9
    with tree.open("/f") as handle:
        assert handle.read() == b"content12"


@pytest.mark.parametrize("wrap", [io.TextIOWrapper, io.BufferedReader])
def test_wrappers(tree: Any, wrap: Any) -> None:
    with tree.open("/d/g") as handle:
        if wrap is io.TextIOWrapper:
            assert io.TextIOWrapper(io.BufferedReader(handle), "utf-8").read() == "line\nother\nlast"
        else:
            assert io.BufferedReader(handle).read() == b"line\nother\nlast"


def test_block_that_fails(tree: Any) -> None:
    """Closes its file; what was written stays."""
    with pytest.raises(RuntimeError), tree.open("/f", "wb") as handle:
        handle.write(b"half")
        raise RuntimeError
    assert handle.closed
    with tree.open("/f") as handle:
        assert handle.read() == b"half"


def test_forgotten_handle(tree: Any) -> None:
    """A warning with this text, and the lock is given back."""
    handle = tree.open("/f", "wb")
    with pytest.warns(ResourceWarning, match=r"MFS MemoryFileHandle was not closed properly\. Always use 'with mfs\.open"):
        del handle
    tree.remove("/f")


# --- quota, storage and guards


def test_quota(make: Make, package: Any) -> None:
    """Refused before a byte changes; the error says how much; the rest can still be used, and is had back."""
    fs = make(max_quota=8192)
    with fs.open("/f", "wb") as handle:
        handle.write(b"kept")
        with pytest.raises(package.MFSQuotaExceededError) as raised:
            handle.write(bytes(9000))
        assert handle.tell() == 4 and fs.get_size("/f") == 4
    assert raised.value.requested > raised.value.available > 0
    asked, free = raised.value.requested, raised.value.available
    assert str(raised.value) == f"MFS quota exceeded: requested {asked} bytes, only {free} bytes available."
    with pytest.raises(OSError, match="MFS quota exceeded"):
        fs.open("/p", "wb", preallocate=9000)
    fs.remove("/f")
    stats = fs.stats()
    assert stats["used_bytes"] == 0 and stats["free_bytes"] == stats["quota_bytes"] == 8192


def test_sequential(make: Make) -> None:
    fs = make(default_storage="sequential")
    put(fs, "/f", b"abc")
    with (
        fs.open("/f", "r+b") as handle,
        pytest.raises(io.UnsupportedOperation, match="Random-access write on a sequential-only"),
    ):
        handle.write(b"x")
    with fs.open("/f", "ab") as handle:
        handle.write(b"d")
    assert fs.get_size("/f") == 4


def test_node_limit(make: Make, package: Any) -> None:
    """The root counts; what was refused leaves nothing behind."""
    fs = make(max_nodes=3)
    fs.mkdir("/d")
    put(fs, "/d/f")
    with pytest.raises(package.MFSNodeLimitExceededError) as raised:
        fs.open("/g", "wb")
    assert str(raised.value) == "MFS node limit exceeded: current 3 nodes, limit is 3."
    assert (raised.value.current, raised.value.limit, raised.value.requested, raised.value.available) == (3, 3, 4, 0)
    assert fs.listdir("/") == ["d"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"default_storage": "disk"},
            "Invalid default_storage value: 'disk'. Expected 'auto', 'sequential', or 'random_access'.",
        ),
        ({"memory_guard": "always"}, "memory_guard"),
        ({"memory_guard": "init", "memory_guard_action": "pray"}, "memory_guard_action"),
    ],
)
def test_parameters(package: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        package.MemoryFileSystem(**options)


def test_arguments_by_position(make: Make) -> None:
    fs = make(1 << 20, 64, 0, 100, "random_access", None, "none", "raise", 2.0)
    stats = fs.stats()
    assert stats["quota_bytes"] == 1 << 20 and stats["overhead_per_chunk_estimate"] == 64


# --- looking


def test_looking_never_raises(tree: Any) -> None:
    for path in ("/../x", "", "/", "/f/x", "\\d\\e", "/d/./e/", "nothing"):
        found = tree.exists(path), tree.is_dir(path), tree.is_file(path)
        expected = path in ("", "/", "\\d\\e", "/d/./e/")
        assert found == (expected, expected, False)
    assert (tree.exists("f"), tree.is_dir("f"), tree.is_file("f")) == (True, False, True)


def test_walk_is_top_down(tree: Any) -> None:
    tree.mkdir("/d/e/deep")
    walked = [path for path, _, _ in tree.walk()]
    assert walked == ["/", "/d", "/d/e", "/d/e/deep"]
    walking = tree.walk("/d")
    assert next(walking) == ("/d", ["e"], ["g"])
    tree.rmtree("/d/e")
    assert list(walking) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/*", ["/d", "/f"]),
        ("*", ["/d", "/f"]),
        ("/d/*", ["/d/e", "/d/g"]),
        ("/?", ["/d", "/f"]),
        ("/[a-e]", ["/d"]),
        ("/[!a-e]", ["/f"]),
        ("\\d\\g", ["/d/g"]),
        ("/x*", []),
        ("", []),
    ],
)
def test_glob(tree: Any, pattern: str, found: list[str]) -> None:
    assert tree.glob(pattern) == found


# --- threads


def test_fifty_threads(tree: Any) -> None:
    """Appending to one file and making their own: nothing is lost."""

    def work(number: int) -> None:
        for step in range(4):
            with tree.open("/f", "ab") as handle:
                handle.write(b"%02d" % number)
            put(tree, f"/d/{number}-{step}", b"x")

    put(tree, "/f", b"")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree.get_size("/f") == 400
    assert len(tree.listdir("/d")) == 202
