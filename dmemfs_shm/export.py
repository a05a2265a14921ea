"""What `export_tree` and `iter_export_tree` give out: the files of one moment, and the content of each when its turn comes.

The paths are those of one moment (no name changed while they were collected), unless names change all the time: then a path
that stood throughout is there, and the others may be. The content of a file is read whole, under its shared lock, when the
iteration comes to it; no lock is held between two steps.

A file is known by its node and the time of its creation. Renamed meanwhile, it comes under the path that it had; replaced
(which keeps created_at), with what it is then; removed, not at all, not even if another one has its path by now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .errors import MFSAbandonedFileError
from .filesystem import _below, _read_unlocked
from .handle import MemoryFileHandle
from .paths import canonical, parse
from .store.layout import (
    KIND_DIR,
    KIND_FILE,
    LOCK_ABANDONED,
    N_CONTENT,
    N_CREATED,
    N_GENERATION,
    NAMESPACE,
    STATE_READY,
    TREE_SEQ,
)

if TYPE_CHECKING:
    from .filesystem import MemoryFileSystem
    from .store.attachment import Attachment
    from .store.namespace import Found, Path

COLLECTED_TRIES = 8


class _Listed(NamedTuple):
    """A file as it was when the paths were collected."""

    path: str
    node: int
    created: int


def exported(fs: MemoryFileSystem, prefix: Path, *, only_dirty: bool, allow_abandoned: bool) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file; see the module."""
    for file in _collect(fs._attached(), prefix, fs._timeout, only_dirty=only_dirty):
        data = _content(fs, fs._attached(), file, allow_abandoned=allow_abandoned)
        if data is not None:
            yield file.path, data


def _collect(store: Attachment, prefix: Path, timeout: float | None, *, only_dirty: bool) -> list[_Listed]:
    """The files below the prefix, or the prefix itself; none if it does not stand."""
    w = store.w
    for _ in range(COLLECTED_TRIES):
        names = w[TREE_SEQ]
        files = _files(store, prefix, timeout, only_dirty=only_dirty)
        if w[TREE_SEQ] == names and not names & 1:
            break
    return files


def _files(store: Attachment, prefix: Path, timeout: float | None, *, only_dirty: bool) -> list[_Listed]:
    names, w = store.names, store.w
    kind = 0
    while not kind:
        top = names.find(prefix, timeout)
        if not top[0]:
            return []
        kind = names.kind_of(top)
    path = canonical(prefix.parts)
    nodes = [(path, top[0])] if kind == KIND_FILE else []
    todo = [(path, top[0], top[1])] if kind == KIND_DIR else []
    while todo:
        path, node, generation = todo.pop()
        for entry in store.listing.entries_of(node, generation, timeout):
            if entry.kind == KIND_DIR:
                todo.append((_below(path, entry), entry.node, entry.generation))
            else:
                nodes.append((_below(path, entry), entry.node))
    return [
        _Listed(path, node, w[names.at(node) + N_CREATED])
        for path, node in nodes
        if not only_dirty or w[names.at(node) + N_CONTENT]
    ]


def _content(fs: MemoryFileSystem, store: Attachment, file: _Listed, *, allow_abandoned: bool) -> bytes | None:
    """What the file has now; None if it is no more."""
    while (found := _again(store, file, fs._timeout)) is not None:
        data = _read(fs, store, found, file.path, allow_abandoned=allow_abandoned)
        if data is not None:
            return data
    return None


def _again(store: Attachment, file: _Listed, timeout: float | None) -> Found | None:
    """The file that was listed: in the same node, or, replaced, in that which has its path now."""
    namespace = store.w[NAMESPACE]
    if namespace & 1:  # a directory moves: what is compared with an odd value proves nothing
        namespace = store.transact(lambda _: store.w[NAMESPACE], timeout)
    same = file.node, store.w[store.names.at(file.node) + N_GENERATION], namespace
    if _is(store, same, file):
        return same
    while (found := store.names.find(parse(file.path), timeout))[0]:
        if _is(store, found, file):
            return found
        if store.names.is_current(found):
            break
    return None


def _is(store: Attachment, found: Found, file: _Listed) -> bool:
    created = store.w[store.names.at(found[0]) + N_CREATED]
    return store.names.kind_of(found) == KIND_FILE and created == file.created


def _read(fs: MemoryFileSystem, store: Attachment, found: Found, path: str, *, allow_abandoned: bool) -> bytes | None:
    """The content of a file that was found; None if it is another one by now."""
    data = _read_unlocked(store, found)
    if data is not None:
        return data
    rw = store.rw
    held = [rw.lease()]
    try:
        if not rw.lock(*found, held[0].word, 0, fs._timeout):
            return None
        if store.w[store.names.at(found[0])] & LOCK_ABANDONED and not allow_abandoned:
            raise MFSAbandonedFileError(path)
        with MemoryFileHandle(fs, store, found[0], held, path, "rb") as handle:
            return handle.read()
    finally:
        if held and store.state == STATE_READY:
            rw.give_back(held.pop())
