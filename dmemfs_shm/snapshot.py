"""Saving a store to a stream, and loading it again: the records, which `frames` packs.

    ["snapshot", 1, {"created": ns, "store": name}]                                 first
    ["directory", path, created, modified]                                          before what is in it
    ["file", path, size, created, modified, generation, was abandoned, content]     as much of it as fits
    ["more", content]                                                               until the file has its size
    ["gone", path]                                                                  a file or empty directory named before
    ["end", directories, files, bytes]                                              last: what there is in the end

Paths are bytes, "/a/b", times are ns since the epoch. What is said of a path later counts: a file that changed after it was
written out is written once more. (So nothing needs to be kept out, or kept in memory, while much is read; see
`store.picture` for the instant at which all of it was true.)

Loading grows a tree apart from the store (`store.graft`), which is published when the last record agrees with it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, Final

from .errors import MFSLockTimeoutError, MFSSnapshotError
from .frames import CHUNK, FrameReader, FrameWriter
from .guard import MemoryGuard
from .store.attachment import Attachment
from .store.graft import Facts, Graft
from .store.layout import KIND_DIR, KIND_FILE, NAME_BYTES_MAX, PATH_BYTES_MAX, WORD_MAX
from .store.picture import FROZEN_MOST, Picture, Shot, Spot, Stamp
from .store.segment import Segment

VERSION: Final = 1
HURRIED_MOST = 3  # surveys without keeping anybody out, before it is done with all others stopped


# ---- saving


def save(store: Attachment, target: Any, timeout: float | None, *, allow_abandoned: bool) -> None:
    """See `MemoryFileSystem.snapshot`."""
    out = FrameWriter(target)
    out.put("snapshot", VERSION, {"created": time.time_ns(), "store": store.name})
    _Saving(store, out, timeout, allow_abandoned=allow_abandoned).save()
    out.finish()


class _Saving:
    """What the stream says so far, and what was read and is not in it yet."""

    def __init__(self, store: Attachment, out: FrameWriter, timeout: float | None, *, allow_abandoned: bool) -> None:
        self.store = store
        self.out = out
        self.timeout = timeout
        self.picture = Picture(store, timeout, allow_abandoned=allow_abandoned)
        self.said: dict[bytes, Stamp | None] = {}  # None for a directory
        self.kept: dict[bytes, Shot] = {}
        self.sizes: dict[bytes, int] = {}

    def save(self) -> None:
        try:
            spots = self._agree()
            self._catch_up(spots)
            self._write_kept()
            self._end(spots)
        finally:
            for shot in self.kept.values():
                self.picture.let_go(shot)

    def _agree(self) -> list[Spot]:
        """Read until a survey finds everything as it was read; returns it."""
        deadline = None
        for number in itertools.count():
            if number < HURRIED_MOST:
                spots = self.picture.survey()
                changed = self._changed(spots)
            else:
                spots, changed = self._freeze()
            if not changed:
                return spots
            if number >= HURRIED_MOST:
                deadline = deadline or time.monotonic() + (1e9 if self.timeout is None else self.timeout)
                if time.monotonic() >= deadline:
                    raise MFSLockTimeoutError(changed[0].text, False, self.store.holders(changed[0].node))
            self._read(spots, changed)
        raise AssertionError

    def _freeze(self) -> tuple[list[Spot], list[Spot]]:
        """A survey with all others stopped; (it, what is to be read before another one)."""
        known = {path: stamp for path in (self.said | self.kept) if (stamp := self._stamp(path)) is not None}
        spots, shots, changed = self.picture.freeze(known)
        for shot in shots:
            self._keep(shot)
        return spots, changed

    def _stamp(self, path: bytes) -> Stamp | None:
        shot = self.kept.get(path)
        return shot.stamp if shot is not None else self.said.get(path)

    def _changed(self, spots: list[Spot]) -> list[Spot]:
        """The files that are not as they were read."""
        same, stamp = self.picture.is_same, self._stamp
        return [spot for spot in spots if spot.kind == KIND_FILE and not same(spot, stamp(spot.path))]

    def _read(self, spots: list[Spot], changed: list[Spot]) -> None:
        """Read what has changed; much of it goes to the stream at once, little is kept, for it may change again."""
        for spot in changed:
            self._drop(spot.path)
        is_much = len(changed) + len(self.kept) > FROZEN_MOST
        if is_much:
            self._catch_up(spots)
            self._write_kept()
        for spot in changed:
            shot = self.picture.look(spot)
            if shot is not None:
                self._keep(shot)
                if is_much:
                    self._write(shot)

    def _keep(self, shot: Shot) -> None:
        self._drop(shot.spot.path)
        self.kept[shot.spot.path] = shot

    def _drop(self, path: bytes) -> None:
        shot = self.kept.pop(path, None)
        if shot is not None:
            self.picture.let_go(shot)

    # ---- records

    def _catch_up(self, spots: list[Spot]) -> None:
        """Say which names are gone, and which directories there are."""
        directories = {spot.path: spot for spot in spots if spot.kind == KIND_DIR}
        files = {spot.path for spot in spots if spot.kind == KIND_FILE}
        for path in [path for path in self.kept if path not in files]:
            self._drop(path)
        for path in sorted(self.said, reverse=True):  # what is in a directory before the directory
            if path not in (files if self.said[path] is not None else directories):
                self.out.put("gone", path)
                del self.said[path]
                self.sizes.pop(path, None)
        for path, spot in directories.items():
            if path not in self.said:
                self.out.put("directory", path, *(spot.times or ()))
                self.said[path] = None

    def _write_kept(self) -> None:
        for shot in list(self.kept.values()):
            self._write(shot)

    def _write(self, shot: Shot) -> None:
        """Hand a file to the stream, from where it stays what it is."""
        path = shot.spot.path
        facts = (shot.size, shot.created, shot.modified, shot.content, shot.is_abandoned)
        if shot.data is not None:
            self.out.put("file", path, *facts, shot.data)
        else:
            self.out.put("file", path, *facts, b"")
            for segment, at, size in shot.parts(self.store, CHUNK):
                self.out.put("more", memoryview(segment.mm)[at : at + size])
        self.said[path] = shot.stamp
        self.sizes[path] = shot.size
        self._drop(path)

    def _end(self, spots: list[Spot]) -> None:
        directories = sum(spot.kind == KIND_DIR for spot in spots)
        self.out.put("end", directories, len(self.sizes), sum(self.sizes.values()))


# ---- loading


def load(store: Attachment, source: Any, timeout: float | None, guard: MemoryGuard) -> None:
    """See `MemoryFileSystem.restore`."""
    frames = FrameReader(source)
    kind, version, *_ = [*frames.get(), None]
    if kind != "snapshot" or not isinstance(version, int):
        raise frames.damage("is not the first of a snapshot")
    if version != VERSION:
        raise MFSSnapshotError(f"The snapshot has version {version}; this build reads version {VERSION}.")
    store.grafts.restore(lambda graft: _Loading(graft, frames, guard).load(), timeout)


class _Loading:
    """What was loaded so far: the directories' nodes, and the files' sizes."""

    def __init__(self, graft: Graft, frames: FrameReader, guard: MemoryGuard) -> None:
        self.graft = graft
        self.frames = frames
        self.guard = guard
        self.directories = {b"": graft.top}
        self.sizes: dict[bytes, int] = {}

    def load(self) -> None:
        """All records to the last one. MFSSnapshotError."""
        kinds = {"directory": self._directory, "file": self._file, "gone": self._gone}
        while True:
            kind, *rest = self.frames.get()
            if kind == "end":
                return self._end(rest)
            if kind not in kinds:
                raise self.frames.damage(f"is a record {kind!r} out of place")
            kinds[kind](rest)

    def _fields(self, record: list[Any], *types: type) -> list[Any]:
        if len(record) != len(types) or any(type(value) is not kind for value, kind in zip(record, types, strict=True)):
            raise self.frames.damage("has not the fields of its kind")
        if any(type(value) is int and not 0 <= value <= WORD_MAX for value in record):
            raise self.frames.damage("has a number that no store has")
        return record

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """(directory, name) of a path; its directory must have been named before."""
        above, slash, name = path.rpartition(b"/")
        if not slash or above not in self.directories or not _is_name(name) or len(path) > PATH_BYTES_MAX:
            raise self.frames.damage(f"has a path that cannot be: {path!r}")
        return self.directories[above], name

    def _directory(self, record: list[Any]) -> None:
        path, created, modified = self._fields(record, bytes, int, int)
        parent, name = self._place(path)
        if path in self.directories or path in self.sizes:
            raise self.frames.damage(f"is a directory where something stands: {path!r}")
        self.directories[path] = self.graft.make_directory(parent, name, Facts(created, modified))

    def _file(self, record: list[Any]) -> None:
        path, size, created, modified, content, _, data = self._fields(record, bytes, int, int, int, int, bool, bytes)
        parent, name = self._place(path)
        if path in self.directories or len(data) > size:
            raise self.frames.damage(f"is a file that cannot be: {path!r}")
        if path in self.sizes:
            self.graft.remove(parent, name)
            del self.sizes[path]
        self.guard.check_before_write(size)
        self.graft.make_file(parent, name, size, self._filler(size, data), Facts(created, modified, content))
        self.sizes[path] = size

    def _filler(self, size: int, data: bytes) -> Any:
        """What stores a file's content. As much as a section stores is read before."""
        if size <= CHUNK:
            while len(data) < size:
                data += self._more(size - len(data))
        first = data

        def fill(segment: Segment, offset: int) -> None:
            done = len(first)
            segment.mm[offset : offset + done] = first
            while done < size:
                more = self._more(size - done)
                segment.mm[offset + done : offset + done + len(more)] = more
                done += len(more)

        return fill

    def _more(self, most: int) -> bytes:
        kind, *rest = self.frames.get()
        if kind != "more":
            raise self.frames.damage(f"is a record {kind!r} inside a file")
        data: bytes = self._fields(rest, bytes)[0]
        if not 0 < len(data) <= most:
            raise self.frames.damage("has more of a file than there is")
        return data

    def _gone(self, record: list[Any]) -> None:
        (path,) = self._fields(record, bytes)
        parent, name = self._place(path)
        if path in self.sizes:
            del self.sizes[path]
        elif path and path in self.directories:
            del self.directories[path]
        else:
            raise self.frames.damage(f"takes away what is not there: {path!r}")
        if not self.graft.remove(parent, name):
            raise self.frames.damage(f"takes away a directory with something in it: {path!r}")

    def _end(self, record: list[Any]) -> None:
        said = self._fields(record, int, int, int)
        if said != [len(self.directories) - 1, len(self.sizes), sum(self.sizes.values())]:
            raise self.frames.damage("says that there is another number of files, directories or bytes")


def _is_name(name: bytes) -> bool:
    """Whether a store may have such a name."""
    if not 0 < len(name) <= NAME_BYTES_MAX or name in (b".", b"..") or b"\0" in name:
        return False
    try:
        name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
