"""What a dead process leaves behind: pictures of a store, taken at every point of an operation, that come to life again.

A `Camera` takes a picture before each store to shared memory and around each system call that others can notice (the points
of `harness`). The picture is everything the store has in /dev/shm, read from outside: the index with exactly the memory it
has, the bytes of the arenas, which semaphores there are, by which names, and how many tokens each has. It is the picture of
a store in which everybody has just been killed. `Place.revive` puts one of them back under the same names, in new files,
with those alive who are to live on; whoever attaches then is a survivor, and `survive` does what survivors do.

Nothing of this is a model of the store: words, files and semaphores are what they were, whatever stored them. What differs
from a kill:
  * Nobody dies. That somebody is dead is a lock on a byte of the index that nobody has in the new file, which is what
    tells the survivors of a real death, too. A living bystander is such a lock, held by the test. He does nothing.
  * The data of a file that is being written is in the picture as far as it was written when the next word was stored; cuts
    in the middle of a copy of bytes are left out, for nothing of the protocol depends on them.
  * Nobody sleeps on a semaphore when the picture is taken (the kernel's own part of it is none of ours).
  * A survivor attaches after the death, or he had attached before and goes on where he is in the picture (`resume`). Such a
    one has done nothing since: he has the semaphores open and has no file, path or block in any cache. How those who know
    more take it is the business of test_operation_points.

One process plays all the parts: `apart` lets it attach a store once more, with another slot and another description of the
lock file. Each picture is attached afresh and left for good, so that no cache ever meets an older state of its store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.filesystem import _read_unlocked
from dmemfs_shm.paths import parse
from dmemfs_shm.store import attachment, names
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.blocks import units_of
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.layout import (
    BACKEND_OFD,
    KIND_FILE,
    LB_SLOT,
    N_RUN,
    PAGE,
    PN_FILE,
    UNIT,
    W_BACKEND,
    generation_at,
)
from dmemfs_shm.store.mutex import Fence
from dmemfs_shm.store.namespace import Found
from dmemfs_shm.store.tree import Unsettled

from ..lockstore import mutex_findings
from .harness import Fault
from .operations import Abandoned, State, differences, files_in, look, take_stock

#: What a survivor does first (`take_back`).
REAP, READ, UNLOCK, CHECK = range(4)

PIECE = 4 * PAGE  # bytes that pictures share where they are alike

File = tuple[int, tuple[tuple[int, bytes], ...]]  # size, and (offset, bytes) of what has memory


class Picture(NamedTuple):
    """A store at one instant; *where* says at which."""

    files: dict[str, File]
    where: str


# ---- the place of a store


@contextlib.contextmanager
def plain_memory() -> Iterator[None]:
    """What gets memory in this block gets zeros written into it: fresh memory would look like a hole from outside."""
    real, pwrite = os.posix_fallocate, os.pwrite

    def fallocate(fd: int, offset: int, size: int) -> None:
        real(fd, offset, size)
        at, end, mark = offset, min(offset + size, os.fstat(fd).st_size), os.lseek(fd, 0, os.SEEK_CUR)
        while (hole := os.lseek(fd, at, os.SEEK_HOLE)) < end:
            at = min(end, _data_from(fd, hole, end))
            pwrite(fd, bytes(at - hole), hole)
            if at == end:
                break
        os.lseek(fd, mark, os.SEEK_SET)  # by which the store knows its descriptors

    os.posix_fallocate = fallocate
    try:
        yield
    finally:
        os.posix_fallocate = real


def _data_from(fd: int, at: int, end: int) -> int:
    """Where the next bytes with memory begin; *end* if there are none."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but a hole
        return end


def _read_file(path: str, before: File | None) -> File:
    """What is in a file; pieces that are as they were before are the same objects."""
    known = dict(before[1]) if before else {}
    fd = os.open(path, os.O_RDONLY)
    try:
        size, at, pieces = os.fstat(fd).st_size, 0, []
        while at < size and (start := _data_from(fd, at, size)) < size:
            at = os.lseek(fd, start, os.SEEK_HOLE)
            for offset in range(start, at, PIECE):
                piece = os.pread(fd, min(PIECE, at - offset), offset)
                old = known.get(offset)
                pieces.append((offset, old if old == piece else piece))
        return size, tuple(pieces)
    finally:
        os.close(fd)


class Place:
    """Where a store stands in /dev/shm: the names that its files have."""

    def __init__(self, fs: MemoryFileSystem) -> None:
        self.name, self.uuid = fs.name, fs.uuid
        self.index = names.index_name(self.name)

    def paths(self) -> list[str]:
        segments, semaphores = names.belongings(self.uuid)
        found = [f"{names.SHM_DIR}{name}" for name in segments] + [names.semaphore_path(name) for name in semaphores]
        index = f"{names.SHM_DIR}{self.index}"
        return [*found, index] if os.path.exists(index) else found

    def take(self, before: dict[str, File], *, only_memory: bool = False) -> dict[str, File]:
        """A picture; *only_memory*: no name and no semaphore has changed since the one before."""
        files = {}
        for path in before if only_memory else self.paths():
            files[path] = before[path] if only_memory and _is_semaphore(path) else _read_file(path, before.get(path))
        return files

    def put(self, files: dict[str, File]) -> None:
        """Make everything what it is in the picture, in new files, which nobody has open or mapped. Nothing stands here."""
        for path, (size, pieces) in files.items():
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.ftruncate(fd, size)
                for offset, piece in pieces:
                    os.pwrite(fd, piece, offset)
            finally:
                os.close(fd)

    def wipe(self) -> None:
        for path in self.paths():
            os.unlink(path)

    @contextlib.contextmanager
    def revive(self, picture: Picture, living: Iterable[int]) -> Iterator[ByteLocks]:
        """The store of the picture, in which the tenants of the slots *living* are alive (the value is their locks) and
        everybody else is dead."""
        locks = None
        try:
            self.put(picture.files)
            locks = ByteLocks(self.index)
            for slot in living:
                assert locks.try_lock(LB_SLOT + slot)
            yield locks
        finally:
            if locks is not None:
                locks.close()
            self.wipe()


def _is_semaphore(path: str) -> bool:
    return path.startswith(f"{names.SHM_DIR}/sem.")


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What attaches in this block has a part of its own in the store, as another process has."""
    others = dict(attachment._attached)
    attachment._attached.clear()
    try:
        yield
    finally:
        for key, store in others.items():
            if not store.is_left:
                attachment._attached[key] = store


def attach_apart(name: str, **options: Any) -> MemoryFileSystem:
    with apart():
        return MemoryFileSystem.attach(name, **options)


def resume(name: str, slot: int) -> MemoryFileSystem:
    """The part of somebody who had attached before the picture was taken, and whose slot stands in it."""

    def sit_down(store: Attachment) -> None:
        assert store.locks.try_lock(LB_SLOT + slot)
        store.participants.me = store.slot = slot
        for mutex in store.mutexes:
            mutex.settle(slot)
            if store.w[W_BACKEND] != BACKEND_OFD:
                mutex._open(store.w[generation_at(mutex.number)] & ~1)
        store.rw.settle_in(slot, Fence.of(names.fence(store.uuid, slot)))
        store.publications.settle(slot)

    join, Attachment.join = Attachment.join, sit_down  # type: ignore[method-assign]
    try:
        return MemoryFileSystem.attach(name)
    finally:
        Attachment.join = join  # type: ignore[method-assign]


# ---- taking pictures


class Camera(Fault):
    """Takes a picture at each point at which anything has changed since the last one, if it is *wanted*. Nobody dies.

    ``at_point`` is called at each of them, and what it does to the store is pictured as well.
    """

    def __init__(self, place: Place, wanted: Callable[[], bool] = lambda: True) -> None:
        super().__init__(None, lambda _: None, None)  # type: ignore[arg-type]
        self.place = place
        self.wanted = wanted
        self.pictures: list[Picture] = []
        self.at_point: Callable[[str], None] = lambda _: None
        self.ask: Callable[[str], None]
        self._calls = True  # there were more than plain stores since the last picture

    def point(self, what: str) -> None:
        if not self.armed:
            return
        self.at_point(what)
        self.armed = False  # its own system calls are not looked at
        try:
            self._look(what)
        finally:
            self.armed = True
        self.trace.append(what)

    def _look(self, what: str) -> None:
        if what != "store" or (self.trace and self.trace[-1] != "store"):
            self._calls = True
        if what != "end" and not self.wanted():
            return
        before = self.pictures[-1].files if self.pictures else {}
        files = self.place.take(before, only_memory=not self._calls)
        self._calls = False
        if files != before or what == "end":
            self.pictures.append(Picture(files, f"point {len(self.trace)} (before {what}, after {self.trace[-4:]})"))


# ---- surviving


class Seat(NamedTuple):
    """How a survivor comes in: *living* are the slots of those who live beside him, *mortal* the one of them who dies in the
    end. *own* is the slot that he has had all the time; without one he takes over a dead one's. *first* is what he does."""

    living: tuple[int, ...]
    mortal: int
    own: int | None
    first: int


def sit(place: Place, seat: Seat) -> MemoryFileSystem:
    return MemoryFileSystem.attach(place.name) if seat.own is None else resume(place.name, seat.own)


class Outcome(NamedTuple):
    """What a survivor finds when all is done, and what is wrong."""

    state: State
    findings: list[str]


class Read(NamedTuple):
    """What a survivor read before anything was taken back: contents without a lock, what `stat` says, everything."""

    glances: dict[str, bytes | None]
    stats: dict[str, object]
    state: State


class Known(NamedTuple):
    """What a survivor who was there before knows: paths to ask for, and what he remembers of the files."""

    paths: tuple[str, ...] = ()
    files: Mapping[str, Found] = {}


def survive(place: Place, picture: Picture, seat: Seat, views: Mapping[int, bytes], known: Known) -> Outcome:
    """Revive a picture, take part in it, and look what is there in the end. views: what pin records of the mortal keep."""
    with place.revive(picture, seat.living) as others:
        fs = sit(place, seat)
        try:
            first, findings = take_back(fs, seat.first, known)
            findings += [f"after reaping: {finding}" for finding in fs.check()]
            findings += ["a view's bytes have changed" for pin, data in views.items() if not _kept(fs, pin).startswith(data)]
            others.unlock(LB_SLOT + seat.mortal)
            fs.trim()
            state, more = take_stock(fs)
            if first is not None:
                findings += _read_otherwise(first, state, _stats(fs, known.paths))
            return Outcome(state, findings + more + mutex_findings(fs._store))
        finally:
            fs.close()


def remember(place: Place, picture: Picture, seat: Seat, paths: Iterable[str]) -> Known:
    """What somebody knows who has seen all of a store. He changes nothing of it by looking."""
    paths, files = tuple(paths), {}
    with place.revive(picture, seat.living):
        fs = sit(place, seat)
        assert fs._store is not None
        for path in paths:
            with contextlib.suppress(Unsettled):
                found = fs._store.tree.look_up(parse(path).parts)
                if fs._store.tree.kind(found[0]) == KIND_FILE:
                    files[path] = found
        fs.close()
    return Known(paths, files)


def take_back(fs: MemoryFileSystem, first: int, known: Known) -> tuple[Read | None, list[str]]:
    """Take back what the dead hold: at once (REAP), or after everything was read, and with all of it open (READ), or after
    the mutexes were freed one by one, the last one first (UNLOCK), or after a look whether all is sound (CHECK).

    The values are what was read, and what was not sound.
    """
    store, read, findings = fs._store, None, []
    assert store is not None
    with contextlib.ExitStack() as stack:
        if first == READ:
            read = _read(fs, known)
            for path in files_in(read.state):
                stack.enter_context(fs.open(path, allow_abandoned=True))
        elif first == UNLOCK:
            for mutex in reversed(store.mutexes):
                assert store.w[W_BACKEND] == BACKEND_OFD or store.recovery.recover(mutex.number, None)
        elif first == CHECK:
            findings = [f"before reaping: {finding}" for finding in fs.check()]
        store.relieve(None)  # for shortness: who needs what the dead hold takes it back
    return read, findings


def _read(fs: MemoryFileSystem, known: Known) -> Read:
    """First what takes no lock and enters no mutex, then what may."""
    store = fs._store
    assert store is not None
    glances = {path: _read_unlocked(store, found) for path, found in known.files.items()}
    store.names.files.update(known.files)
    return Read(glances, _stats(fs, known.paths), look(fs))


def _stats(fs: MemoryFileSystem, paths: Iterable[str]) -> dict[str, object]:
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[path] = fs.stat(path)
    return found


def _read_otherwise(read: Read, state: State, stats: dict[str, object]) -> list[str]:
    """What was read before anything was taken back, and is not so in the end. What `stat` says of a file that was being
    written is how far its writer was, and that may be taken back."""
    glances = [path for path, data in read.glances.items() if data is not None and data != state.get(path)]
    paths = {path for path in read.stats.keys() | stats.keys() if not isinstance(state.get(path), Abandoned)}
    return [
        *(f"{path} was read without a lock, and is not so" for path in glances),
        *(f"{path} was {read.stats.get(path)}" for path in paths if read.stats.get(path) != stats.get(path)),
        *(f"at first, {difference}" for difference in differences(read.state, state)),
    ]


def _kept(fs: MemoryFileSystem, pin: int) -> bytes:
    """The blocks that a pin record keeps."""
    store = fs._store
    assert store is not None
    node = store.w[pin]
    run = store.w[store.names.at(store.w[store.names.at(node) + PN_FILE] or node) + N_RUN]
    segment, offset = store.arenas.locate(run)
    return bytes(segment.view[offset : offset + units_of(run) * UNIT])
