"""Paths: what names the same node, what is refused, and how long a name may be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem

COMPONENT_BYTES_MAX = 255
PATH_BYTES_MAX = 4096

#: Every method that takes one path and raises for a bad one.
ONE_PATH: dict[str, Callable[[MemoryFileSystem, Any], object]] = {
    "open rb": lambda fs, path: fs.open(path, "rb"),
    "open wb": lambda fs, path: fs.open(path, "wb"),
    "open xb": lambda fs, path: fs.open(path, "xb"),
    "mkdir": lambda fs, path: fs.mkdir(path),
    "mkdir exist_ok": lambda fs, path: fs.mkdir(path, exist_ok=True),
    "remove": lambda fs, path: fs.remove(path),
    "rmtree": lambda fs, path: fs.rmtree(path),
    "listdir": lambda fs, path: fs.listdir(path),
    "walk": lambda fs, path: list(fs.walk(path)),
    "stat": lambda fs, path: fs.stat(path),
    "get_size": lambda fs, path: fs.get_size(path),
    "read_bytes": lambda fs, path: fs.read_bytes(path),
    "write_bytes": lambda fs, path: fs.write_bytes(path, b"x"),
    "view": lambda fs, path: fs.view(path),
    "rename from": lambda fs, path: fs.rename(path, "/new"),
    "rename to": lambda fs, path: fs.rename("/file", path),
    "move from": lambda fs, path: fs.move(path, "/new"),
    "move to": lambda fs, path: fs.move("/file", path),
    "replace from": lambda fs, path: fs.replace(path, "/new"),
    "replace to": lambda fs, path: fs.replace("/file", path),
    "copy from": lambda fs, path: fs.copy(path, "/new"),
    "copy to": lambda fs, path: fs.copy("/file", path),
    "copy_tree from": lambda fs, path: fs.copy_tree(path, "/new"),
    "copy_tree to": lambda fs, path: fs.copy_tree("/directory", path),
}

SAYS_NO: dict[str, Callable[[MemoryFileSystem, Any], bool]] = {
    "exists": lambda fs, path: fs.exists(path),
    "is_dir": lambda fs, path: fs.is_dir(path),
    "is_file": lambda fs, path: fs.is_file(path),
}


@pytest.fixture
def fs(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with one file and one directory."""
    fs.write_bytes("/file", b"content")
    fs.mkdir("/directory")
    return fs


def tree(fs: MemoryFileSystem) -> list[tuple[str, list[str], list[str]]]:
    """Everything that stands, in a comparable order."""
    return sorted((path, sorted(dirs), sorted(files)) for path, dirs, files in fs.walk("/"))


@pytest.mark.parametrize(
    "spelling",
    [
        "a/b",
        "/a/b",
        "//a//b",
        "a\\b",
        "\\a\\b",
        "./a/./b",
        "a/b/",
        "/a/b//",
        "x/../a/b",
        "a/x/y/../../b",
        "a/b/c/..",
    ],
)
def test_spellings_of_one_file(fs: MemoryFileSystem, spelling: str) -> None:
    """Relative, doubled, backslashed and dotted spellings name the same file, whether the dotted parts exist or not."""
    fs.mkdir("/a")
    fs.write_bytes("/a/b", b"found")
    assert fs.read_bytes(spelling) == b"found"
    assert fs.is_file(spelling)
    with fs.open(spelling, "r+b") as handle:
        handle.write(b"F")
    assert fs.read_bytes("/a/b") == b"Found"


@pytest.mark.parametrize("spelling", ["", "/", "//", ".", "./", "a/..", "\\", "/a/b/../.."])
def test_spellings_of_the_root(fs: MemoryFileSystem, spelling: str) -> None:
    """The empty path and everything that resolves to the root is the root."""
    assert sorted(fs.listdir(spelling)) == ["directory", "file"]
    assert fs.is_dir(spelling)
    with pytest.raises(ValueError):
        fs.rmtree(spelling)


ESCAPES = ["..", "/..", "../a", "/../a", "a/../..", "a/../../b", "..\\a", "a\\..\\..\\b", "./..", "//.."]


@pytest.mark.parametrize("path", ESCAPES)
def test_escape_above_the_root_is_value_error(fs: MemoryFileSystem, path: str) -> None:
    """Every method refuses a path that climbs out, and changes nothing."""
    before = tree(fs)
    for name, call in ONE_PATH.items():
        with pytest.raises(ValueError):
            call(fs, path)
            pytest.fail(f"{name} accepted {path!r}")
    assert tree(fs) == before


@pytest.mark.parametrize("path", ESCAPES)
def test_escape_does_not_exist(fs: MemoryFileSystem, path: str) -> None:
    """exists, is_dir and is_file answer False for an escape."""
    assert [call(fs, path) for call in SAYS_NO.values()] == [False, False, False]


@pytest.mark.parametrize("path", ["\0", "a\0b", "/file\0", "directory/\0"])
def test_nul_is_value_error(fs: MemoryFileSystem, path: str) -> None:
    """A NUL character is refused by every method."""
    before = tree(fs)
    for name, call in ONE_PATH.items():
        with pytest.raises(ValueError):
            call(fs, path)
            pytest.fail(f"{name} accepted {path!r}")
    assert [call(fs, path) for call in SAYS_NO.values()] == [False, False, False]
    assert tree(fs) == before


@pytest.mark.parametrize("path", [PurePosixPath("/a/b"), PureWindowsPath("a\\b")])
def test_path_objects(fs: MemoryFileSystem, path: os.PathLike[str]) -> None:
    """os.PathLike is accepted wherever a path is."""
    parent = path.parent  # type: ignore[attr-defined]
    fs.mkdir(parent)
    with fs.open(path, "xb") as handle:
        handle.write(b"1")
    fs.write_bytes(path, b"22")
    assert fs.read_bytes(path) == b"22"
    assert fs.exists(path) and fs.is_file(path) and fs.is_dir(parent)
    assert fs.stat(path)["size"] == fs.get_size(path) == 2
    assert fs.listdir(parent) == ["b"]
    assert list(fs.walk(parent)) == [("/a", [], ["b"])]
    fs.copy(path, PurePosixPath("/c"))
    fs.rename(PurePosixPath("/c"), PurePosixPath("/d"))
    fs.move(PurePosixPath("/d"), PurePosixPath("/e/f"))
    fs.replace(PurePosixPath("/e/f"), path)
    fs.copy_tree(parent, PurePosixPath("/g"))
    fs.rmtree(PurePosixPath("/g"))
    with fs.view(path) as view:
        assert bytes(view) == b"22"
    fs.remove(path)
    assert not fs.exists(path)


@pytest.mark.parametrize("path", [b"/file", None, 5, ["/file"]])
def test_other_types_are_type_errors(fs: MemoryFileSystem, path: object) -> None:
    """Only str and os.PathLike of str are paths."""
    for name, call in ONE_PATH.items():
        with pytest.raises(TypeError):
            call(fs, path)
            pytest.fail(f"{name} accepted {path!r}")


def test_path_object_of_bytes_is_type_error(fs: MemoryFileSystem) -> None:
    """An os.PathLike that yields bytes is no path here."""

    class Raw:
        def __fspath__(self) -> bytes:
            return b"/file"

    with pytest.raises(TypeError):
        fs.open(Raw(), "rb")


@pytest.mark.parametrize("name", ["n" * COMPONENT_BYTES_MAX, "é" * 127 + "n", "\U0001f600" * 63 + "nnn"])
def test_longest_component(fs: MemoryFileSystem, name: str) -> None:
    """A component of 255 UTF-8 bytes is a name like any other, for files and for directories."""
    assert len(name.encode()) == COMPONENT_BYTES_MAX
    fs.write_bytes("/" + name, b"x")
    fs.mkdir("/directory/" + name)
    assert sorted(fs.listdir("/")) == sorted(["directory", "file", name])
    assert fs.glob("/directory/*") == ["/directory/" + name]
    fs.rename("/" + name, "/directory/" + name + "/" + name)
    assert fs.read_bytes(f"directory/{name}/{name}") == b"x"


@pytest.mark.parametrize("name", ["n" * (COMPONENT_BYTES_MAX + 1), "é" * 128])
def test_component_too_long(fs: MemoryFileSystem, name: str) -> None:
    """One byte more is ENAMETOOLONG, counted in UTF-8, wherever in the path it stands."""
    before = tree(fs)
    for path in (name, f"directory/{name}", f"{name}/x"):
        for call in ONE_PATH.values():
            with pytest.raises(OSError) as caught:
                call(fs, path)
            assert caught.value.errno == errno.ENAMETOOLONG
        assert [call(fs, path) for call in SAYS_NO.values()] == [False, False, False]
    assert tree(fs) == before


def test_longest_path(fs: MemoryFileSystem) -> None:
    """A path of 4096 bytes works."""
    path = ("/" + "n" * COMPONENT_BYTES_MAX) * 16
    assert len(path) == PATH_BYTES_MAX
    fs.mkdir(path)
    assert fs.is_dir(path)
    assert len(list(fs.walk("/"))) == 2 + 16


def test_path_too_long(fs: MemoryFileSystem) -> None:
    """A path of 4097 bytes is ENAMETOOLONG, though each component fits."""
    path = ("/" + "n" * COMPONENT_BYTES_MAX) * 15 + "/" + "n" * 127 + "/" + "n" * 128
    assert len(path) == PATH_BYTES_MAX + 1
    for call in ONE_PATH.values():
        with pytest.raises(OSError) as caught:
            call(fs, path)
        assert caught.value.errno == errno.ENAMETOOLONG
    assert sorted(fs.listdir("/")) == ["directory", "file"]


@pytest.mark.parametrize("name", [" ", "a b", "...", "..a", "a..", "-", "*", "?", "[x]", "\n", "\x01", "~", "A", "日本"])
def test_odd_names_are_ordinary(fs: MemoryFileSystem, name: str) -> None:
    """Whatever else a name contains is kept exactly."""
    fs.write_bytes("/directory/" + name, b"odd")
    assert fs.listdir("/directory") == [name]
    assert fs.read_bytes("/directory/" + name) == b"odd"
    fs.remove("/directory/" + name)
    assert fs.listdir("/directory") == []


def test_names_are_compared_exactly(fs: MemoryFileSystem) -> None:
    """Case and Unicode composition distinguish names."""
    names = ["name", "Name", "é", "e\u0301"]
    for number, name in enumerate(names):
        fs.write_bytes("/directory/" + name, bytes([number]))
    assert sorted(fs.listdir("/directory")) == sorted(names)
    assert [fs.read_bytes("/directory/" + name) for name in names] == [b"\0", b"\1", b"\2", b"\3"]


@pytest.mark.parametrize("path", ["/file/x", "/file/x/y", "/file/.."])
def test_below_a_file_there_is_nothing(fs: MemoryFileSystem, path: str) -> None:
    """A file has no children; dots are resolved by text, without looking."""
    assert fs.exists(path) == (path == "/file/..")
    assert not fs.is_file(path)
    if path != "/file/..":
        with pytest.raises(FileNotFoundError):
            fs.open(path, "wb")
        with pytest.raises(FileNotFoundError):
            fs.stat(path)
