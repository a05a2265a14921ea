"""Before each store of a change, somebody looks without a lock: what he sees is what was before, or after, or he must wait.

While the change's journal is open, its death would take it back: until then nobody may see what is after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSReentrantCallError
from dmemfs_shm.store.layout import journal_at

from ..crash.harness import WordBuffer, instrument

WAITS = "has to enter a section"
LONG, LONGER = "/" + "n" * 200, "/" + "m" * 210  # names that take two nodes
PATHS = ("/f", "/g", "/d/f", "/new", LONG)
LARGE = bytes(range(256)) * 260


def look(fs: MemoryFileSystem, path: str) -> list[Any]:
    """What each call that takes no lock says about a path that it knows, and about one that it looks up."""
    calls: list[Callable[[], Any]] = [
        lambda: fs.read_bytes(path),
        lambda: fs.stat(path),
        lambda: fs.get_size(path),
        lambda: fs.exists(path),
        lambda: sorted(fs.listdir("/")),
    ]
    names = fs._store.names
    known = dict(names.files), dict(names.directories)
    said = [_said(call) for call in calls]
    for call in calls[:-1]:
        names.files.clear()
        names.directories.clear()
        said.append(_said(call))
    names.files.update(known[0])
    names.directories.update(known[1])
    return said


def _said(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except MFSReentrantCallError:
        return WAITS
    except (FileNotFoundError, IsADirectoryError) as error:
        return type(error)


class Looking(WordBuffer):
    """A word buffer that looks before each store."""

    def __init__(self, words: Any) -> None:
        self.fs: MemoryFileSystem | None = None
        self.seen: list[tuple[bool, str, list[Any]]] = []
        super().__init__(words, lambda _: self.look())

    def look(self) -> None:
        if self.fs is not None:
            fs, self.fs = self.fs, None
            is_open = self.words[journal_at(0)] > 0
            self.seen += [(is_open, path, look(fs, path)) for path in PATHS]
            self.fs = fs


def is_read(fs: MemoryFileSystem) -> None:
    fs.reader = [fs.open("/f"), fs.open(LONG)]


def is_viewed(fs: MemoryFileSystem) -> None:
    fs.viewed = fs.view("/f")


def is_large(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", LARGE)


CHANGES: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "remove": lambda fs: fs.remove("/f"),
    "rename": lambda fs: fs.rename("/f", "/new"),
    "rename elsewhere": lambda fs: fs.rename("/f", "/d/new"),
    "rename to a long name": lambda fs: fs.rename("/f", LONGER),
    "rename a long name": lambda fs: fs.rename(LONG, LONGER),
    "rename directory": lambda fs: fs.rename("/d", "/new"),
    "rmtree": lambda fs: fs.rmtree("/d"),
    "replace": lambda fs: fs.replace("/g", "/f"),
    "replace nothing": lambda fs: fs.replace("/g", "/new"),
    "replace a long name": lambda fs: fs.replace("/f", LONG),
    "write_bytes to a long name": lambda fs: fs.write_bytes(LONG, b"n" * 700),
    "write_bytes": lambda fs: fs.write_bytes("/f", b"n" * 700),
    "write_bytes less": lambda fs: fs.write_bytes("/f", b""),
    "write_bytes much": lambda fs: fs.write_bytes("/f", LARGE[::-1]),
    "write_bytes new": lambda fs: fs.write_bytes("/new", b"n"),
    "copy": lambda fs: fs.copy("/f", "/new"),
    "mkdir": lambda fs: fs.mkdir("/new"),
}
BEFORE: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "": lambda fs: None,
    "read": is_read,
    "viewed": is_viewed,
    "large": is_large,
}
REFUSED = {("replace a long name", "read"), *((change, "read") for change in CHANGES if change.startswith(("rem", "ren")))}
CASES = [(change, before) for change in CHANGES for before in BEFORE if (change, before) not in REFUSED]


@pytest.mark.parametrize(("change", "before"), CASES)
def test_nobody_sees_half_of_a_change(fs: MemoryFileSystem, change: str, before: str) -> None:
    fs.mkdir("/d")
    for path in ("/other", "/f", "/g", "/d/f", LONG):
        fs.write_bytes(path, path.encode() * 99)
    BEFORE[before](fs)
    was = {path: look(fs, path) for path in PATHS}
    buffer = Looking(fs._store.w)
    instrument(fs._store, lambda _: buffer)
    buffer.fs = fs
    CHANGES[change](fs)
    buffer.fs = None
    now = {path: look(fs, path) for path in PATHS}
    assert any(is_open for is_open, _, _ in buffer.seen)
    changed: set[tuple[str, int]] = set()
    for is_open, path, said in buffer.seen:
        for call, (value, old, new) in enumerate(zip(said, was[path], now[path], strict=True)):
            key = path, call
            if value in (WAITS, new if key in changed else old):
                continue
            assert value == new and key not in changed, f"{path}: {value}; it was {old} and becomes {new}"
            assert not is_open, f"{path}: {value}, and a death would take it back"
            changed.add(key)
    for handle in vars(fs).pop("reader", ()):
        handle.close()
    vars(fs).pop("viewed", None)
