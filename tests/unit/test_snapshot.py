"""snapshot() and restore(): the tree of one instant as a stream, and all of it back, or nothing."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import signal
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, frames, snapshot
from dmemfs_shm.errors import (
    MFSAbandonedFileError,
    MFSDeadlockError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSQuotaExceededError,
    MFSReentrantCallError,
    MFSSnapshotError,
)
from dmemfs_shm.store import picture

from ..conftest import Stores
from ..processes import Link, Task, child, held_open, until

Tree = dict[str, Any]


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def look(fs: MemoryFileSystem, *, allow_abandoned: bool = False) -> Tree:
    """Every path, with content and what `stat` says."""
    found: Tree = {}
    for folder, directories, files in fs.walk("/"):
        for name in directories:
            path = f"{folder.rstrip('/')}/{name}"
            found[path] = fs.stat(path)
        for name in files:
            path = f"{folder.rstrip('/')}/{name}"
            with fs.open(path, allow_abandoned=allow_abandoned) as handle:
                found[path] = handle.read(), {**fs.stat(path), "abandoned": False}
    return found


SIZES = [0, 1, 255, 4096, 65_536, 65_537, 262_144, 262_145, 1_200_000]


def fill(fs: MemoryFileSystem) -> None:
    fs.mkdir("/d/empty/still")
    fs.mkdir("/ä/" + "n" * 200)
    for number, size in enumerate(SIZES):
        fs.write_bytes(f"/d/{size}", pattern(size, number))
    for _ in range(3):
        fs.write_bytes("/ä/often", b"again")
    fs.write_bytes("/ä/" + "n" * 200 + "/" + "m" * 255, b"long names")
    with fs.open("/pieces", "wb") as one, fs.open("/d/pieces", "wb") as two:
        for number in range(100):
            one.write(bytes([number]) * 3000)
            two.write(bytes([number]) * 3100)


def stream_of(fs: MemoryFileSystem, **options: Any) -> bytes:
    target = io.BytesIO()
    fs.snapshot(target, **options)
    return target.getvalue()


def restored(stores: Stores, stream: bytes, **options: Any) -> MemoryFileSystem:
    fs = stores.private(**options)
    fs.restore(io.BytesIO(stream))
    return fs


# --- there and back --------------------------------------------------------------------------------------------------


def test_an_empty_store(stores: Stores) -> None:
    fs = restored(stores, stream_of(stores.private()))
    assert look(fs) == {} and fs.stats()["dir_count"] == 1


def test_everything_comes_back(fs: MemoryFileSystem, stores: Stores) -> None:
    """Names, contents, empty directories, times, generations; and the same charge."""
    fill(fs)
    other = restored(stores, stream_of(fs))
    assert look(other) == look(fs)
    assert other.stats() == fs.stats()
    assert other.check() == []
    assert other.info()["orphaned"] == fs.info()["orphaned"] == 0


def test_a_second_generation_is_the_same(fs: MemoryFileSystem, stores: Stores) -> None:
    fill(fs)
    once = restored(stores, stream_of(fs))
    assert look(restored(stores, stream_of(once))) == look(fs)


def test_into_a_store_with_files(fs: MemoryFileSystem, stores: Stores) -> None:
    """What stands is kept, and the snapshot stands beside it."""
    fill(fs)
    other = stores.private()
    for number in range(100):
        other.write_bytes(f"/old{number}", b"old")
    before = look(other)
    other.restore(io.BytesIO(stream_of(fs)))
    assert look(other) == before | look(fs)
    other.rmtree("/d")
    other.rename("/pieces", "/old")
    assert other.check() == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_name_that_stands(fs: MemoryFileSystem, stores: Stores, kind: str) -> None:
    fill(fs)
    other = stores.private()
    if kind == "file":
        other.write_bytes("/ä", b"mine")
    else:
        other.mkdir("/pieces")
    before = look(other)
    with pytest.raises(FileExistsError):
        other.restore(io.BytesIO(stream_of(fs)))
    assert look(other) == before
    assert other.check() == []


def test_any_number_of_names_at_the_top(stores: Stores) -> None:
    fs = stores.private()
    for number in range(700):
        fs.write_bytes(f"/{number}", b"x")
    fs.mkdir("/one more")
    assert look(restored(stores, stream_of(fs))) == look(fs)


def test_it_is_seen_all_at_once(fs: MemoryFileSystem, stores: Stores) -> None:
    """Until the last byte is read there is nothing; neither is anything after a source that fails."""
    fill(fs)
    stream = stream_of(fs)
    other = stores.private()

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert look(other) == {}
            return super().read(size)

    class Failing(Source):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(stream) // 2:
                raise OSError("the source fails")
            return super().read(size)

    with pytest.raises(OSError, match="the source fails"):
        other.restore(Failing(stream))
    assert look(other) == {} and other.stats()["used_bytes"] == 0 and other.check() == []
    other.restore(Source(stream))
    assert look(other) == look(fs)


@pytest.mark.parametrize(
    ("options", "error"), [({"max_quota": 1 << 20}, MFSQuotaExceededError), ({"max_nodes": 8}, MFSNodeLimitExceededError)]
)
def test_without_room(fs: MemoryFileSystem, stores: Stores, options: Any, error: type[Exception]) -> None:
    fill(fs)
    other = stores.private(**options)
    with pytest.raises(error):
        other.restore(io.BytesIO(stream_of(fs)))
    assert look(other) == {} and other.stats()["used_bytes"] == 0


def test_with_just_enough_room(fs: MemoryFileSystem, stores: Stores) -> None:
    """Restoring needs no more quota and no more nodes than the files have in the end."""
    fill(fs)
    stats = fs.stats()
    options = {"max_quota": stats["used_bytes"], "max_nodes": stats["file_count"] + stats["dir_count"]}
    assert look(restored(stores, stream_of(fs), **options)) == look(fs)


# --- what can be written to and read from ----------------------------------------------------------------------------


class Dribble:
    """A file object that takes and gives a few bytes at a time."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.chance = random.Random(1)

    def write(self, data: bytes) -> int:
        count = min(len(data), self.chance.randrange(1, 5000))
        self.data += data[:count]
        return count

    def read(self, size: int) -> bytes:
        count = min(size, self.chance.randrange(1, 5000))
        data = bytes(self.data[:count])
        del self.data[:count]
        return data


def test_short_writes_and_reads(fs: MemoryFileSystem, stores: Stores) -> None:
    fill(fs)
    target = Dribble()
    fs.snapshot(target)
    other = stores.private()
    other.restore(Dribble(bytes(target.data)))
    assert look(other) == look(fs)


def test_a_target_that_says_nothing(fs: MemoryFileSystem, stores: Stores) -> None:
    """Many write methods return None when they have taken everything."""
    fill(fs)
    parts: list[bytes] = []

    class Sink:
        def write(self, data: bytes) -> None:
            parts.append(data)

    fs.snapshot(Sink())
    assert look(restored(stores, b"".join(parts))) == look(fs)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[Any, Any]]:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=0) as target:
        yield source, target


@contextlib.contextmanager
def _socket() -> Iterator[tuple[Any, Any]]:
    one, other = socket.socketpair()
    with one, other, one.makefile("rb") as source, other.makefile("wb") as target:
        yield source, target


@pytest.mark.parametrize("make", [_pipe, _socket])
def test_through_pipes_and_sockets(fs: MemoryFileSystem, stores: Stores, make: Callable[[], Any]) -> None:
    """Two snapshots one after the other: each restore takes its own and not a byte more."""
    fill(fs)
    first, second = stores.private(), stores.private()
    with make() as (source, target):

        def write() -> None:
            fs.snapshot(target)
            fs.snapshot(target)

        task = Task(write)
        first.restore(source)
        second.restore(source)
        task.result()
    assert look(first) == look(second) == look(fs)


def test_through_gzip(fs: MemoryFileSystem, stores: Stores) -> None:
    fill(fs)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as target:
        fs.snapshot(target)
    other = stores.private()
    other.restore(gzip.GzipFile(fileobj=io.BytesIO(packed.getvalue())))
    assert look(other) == look(fs)
    with pytest.raises(MFSSnapshotError):
        stores.private().restore(gzip.GzipFile(fileobj=io.BytesIO(packed.getvalue()[:-5000])))


def test_from_a_file_of_the_store_itself(fs: MemoryFileSystem, stores: Stores) -> None:
    fill(fs)
    other = stores.private()
    with other.open("/stream", "wb") as target:
        fs.snapshot(target)
    with other.open("/stream") as source:
        other.restore(source)
    other.remove("/stream")
    assert look(other) == look(fs)


def test_files_that_are_none(fs: MemoryFileSystem) -> None:
    with pytest.raises(AttributeError):
        fs.snapshot(object())
    with pytest.raises(TypeError):
        fs.snapshot(io.StringIO())
    with pytest.raises(TypeError):
        fs.restore(io.StringIO("text"))


def test_a_raw_file_that_does_not_block(fs: MemoryFileSystem) -> None:
    fill(fs)
    with _pipe() as (source, target):
        os.set_blocking(target.fileno(), False)
        with pytest.raises(BlockingIOError):
            fs.snapshot(target)
    with _pipe() as (source, target):
        os.set_blocking(source.fileno(), False)
        with pytest.raises(BlockingIOError):
            fs.restore(source)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(stores: Stores) -> MemoryFileSystem:
    """A small store whose snapshot has every kind of record."""
    fs = stores.private()
    fs.mkdir("/d/e")
    fs.write_bytes("/d/f", b"0123456789")
    fs.write_bytes("/g", bytes(70_000))
    return fs


def boundaries(stream: bytes) -> list[int]:
    """Where frames end."""
    found, at = [len(frames.MAGIC)], len(frames.MAGIC)
    while at < len(stream):
        at += 8 + int.from_bytes(stream[at : at + 4], "little")
        found.append(at)
    return found


def refused(fs: MemoryFileSystem, stream: bytes) -> None:
    with pytest.raises(MFSSnapshotError) as caught:
        fs.restore(io.BytesIO(stream))
    assert isinstance(caught.value, ValueError)


def test_it_ends_too_early(small: MemoryFileSystem, stores: Stores) -> None:
    """At each frame's end, within its head, and within what it holds."""
    stream, fs = stream_of(small), stores.private()
    ends = boundaries(stream)
    assert ends[-1] == len(stream)
    for at in {0, 1, *(end + more for end in ends[:-1] for more in (0, 1, 4, 7, 8, 9))}:
        refused(fs, stream[: min(at, len(stream) - 1)])
    assert look(fs) == {} and fs.stats()["used_bytes"] == 0 and fs.check() == []


def test_every_byte_counts(small: MemoryFileSystem, stores: Stores) -> None:
    """Each byte turned over, but only some of those of a long content: nothing is restored, and little memory asked for."""
    small.write_bytes("/g", b"just a few")
    stream, fs = stream_of(small), stores.private()
    assert len(stream) < 1000
    tracemalloc.start()
    try:
        for at in range(len(stream)):
            for flip in (1, 0x80, 0xFF):
                refused(fs, stream[:at] + bytes([stream[at] ^ flip]) + stream[at + 1 :])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert look(fs) == {} and fs.stats()["used_bytes"] == 0 and fs.check() == []


def test_frames_in_another_order(small: MemoryFileSystem, stores: Stores) -> None:
    """Left out, doubled, exchanged: each frame's checksum hangs on those before it."""
    stream, fs = stream_of(small), stores.private()
    ends = boundaries(stream)
    parts = [stream[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    for number in range(1, len(parts)):
        refused(fs, b"".join(parts[:number] + parts[number + 1 :]))
        if number + 1 < len(parts):  # nobody looks beyond the end
            refused(fs, b"".join(parts[: number + 1] + parts[number:]))
        swapped = parts[:]
        swapped[number - 1 : number + 1] = parts[number], parts[number - 1]
        refused(fs, b"".join(swapped))
    assert look(fs) == {} and fs.check() == []


def test_a_length_that_nothing_has(stores: Stores) -> None:
    """A changed length asks for no memory."""
    fs = stores.private()
    tracemalloc.start()
    try:
        for size in (0, 1, frames.FRAME_MOST, frames.FRAME_MOST + 1, 0xFFFFFFFF):
            refused(fs, frames.MAGIC + size.to_bytes(4, "little") + bytes(1000))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_source_without_an_end(stores: Stores) -> None:
    """A frame that says it is too long is not read to its end."""

    class Endless:
        given = 0

        def read(self, size: int) -> bytes:
            data = (frames.MAGIC + b"\xff" * 8)[self.given :][:size] or bytes(size)
            self.given += len(data)
            assert self.given < 2 << 20
            return data

    with pytest.raises(MFSSnapshotError):
        stores.private().restore(Endless())


def made_of(*records: tuple[Any, ...]) -> bytes:
    target = io.BytesIO()
    out = frames.FrameWriter(target)
    for record in records:
        out.put(*record)
    out.finish()
    return target.getvalue()


HEAD = ("snapshot", snapshot.VERSION, {})
FOLDER = ("directory", b"/d", 1, 2)
FILE = ("file", b"/d/f", 3, 1, 2, 1, False, b"abc")
END = ("end", 1, 1, 3)

UNSOUND: dict[str, list[tuple[Any, ...]]] = {
    "no head": [FOLDER, FILE, END],
    "head without version": [("snapshot",), FOLDER, FILE, END],
    "version of text": [("snapshot", "1", {}), FOLDER, FILE, END],
    "another version": [("snapshot", snapshot.VERSION + 1, {}), FOLDER, FILE, END],
    "unknown record": [HEAD, FOLDER, ("link", b"/d/f"), FILE, END],
    "no directory": [HEAD, FILE, END],
    "a directory twice": [HEAD, FOLDER, FOLDER, FILE, END],
    "a file where a directory is": [HEAD, FOLDER, FILE, ("file", b"/d", 0, 1, 2, 1, False, b""), END],
    "a directory where a file is": [HEAD, FOLDER, FILE, ("directory", b"/d/f", 1, 2), END],
    "in a file": [HEAD, FOLDER, FILE, ("file", b"/d/f/g", 0, 1, 2, 1, False, b""), END],
    "too few fields": [HEAD, FOLDER, FILE[:-1], END],
    "fields of other types": [HEAD, FOLDER, ("file", "/d/f", 3, 1, 2, 1, False, b"abc"), END],
    "a negative size": [HEAD, FOLDER, ("file", b"/d/f", -3, 1, 2, 1, False, b""), END],
    "more than its size": [HEAD, FOLDER, ("file", b"/d/f", 2, 1, 2, 1, False, b"abc"), END],
    "more again": [HEAD, FOLDER, ("file", b"/d/f", 3, 1, 2, 1, False, b"ab"), ("more", b"cd"), END],
    "more of nothing": [HEAD, FOLDER, ("file", b"/d/f", 3, 1, 2, 1, False, b"ab"), ("more", b""), ("more", b"c"), END],
    "less than its size": [HEAD, FOLDER, ("file", b"/d/f", 4, 1, 2, 1, False, b"abc"), END],
    "more without a file": [HEAD, FOLDER, ("more", b"abc"), FILE, END],
    "gone before it came": [HEAD, FOLDER, ("gone", b"/d/f"), FILE, END],
    "a full directory gone": [HEAD, FOLDER, FILE, ("gone", b"/d"), END],
    "the root gone": [HEAD, FOLDER, FILE, ("gone", b""), END],
    "other totals": [HEAD, FOLDER, FILE, ("end", 1, 1, 4)],
    "totals too few": [HEAD, FOLDER, FILE, ("end", 1, 1)],
    **{
        f"a name like {name!r}": [HEAD, FOLDER, FILE, ("directory", b"/" + name, 1, 2), ("end", 2, 1, 3)]
        for name in (b"", b".", b"..", b"a\0b", b"\xff", b"n" * 256)
    },
    "no slash": [HEAD, FOLDER, FILE, ("directory", b"e", 1, 2), ("end", 2, 1, 3)],
}


@pytest.mark.parametrize("what", UNSOUND)
def test_records_that_make_no_sense(stores: Stores, what: str) -> None:
    """Well packed, but not what a snapshot says."""
    fs = stores.private()
    refused(fs, made_of(*UNSOUND[what]))
    assert look(fs) == {} and fs.stats()["used_bytes"] == 0 and fs.check() == []


def test_records_that_do(stores: Stores) -> None:
    """What is said later counts."""
    fs = restored(
        stores,
        made_of(
            HEAD, FOLDER, FILE, ("directory", b"/e", 1, 2), ("file", b"/d/f", 4, 5, 6, 7, True, b"ab"), ("more", b"cd"),
            ("gone", b"/e"), ("file", b"/e", 0, 1, 2, 3, False, b""), ("file", b"/g", 0, 1, 2, 3, False, b""), ("gone", b"/g"),
            ("end", 1, 2, 4),
        ),
    )  # fmt: skip
    assert {path: what[0] for path, what in look(fs).items() if path != "/d"} == {"/d/f": b"abcd", "/e": b""}
    assert fs.stat("/d/f") == {
        "size": 4, "created_at": 5e-9, "modified_at": 6e-9, "generation": 7, "is_dir": False, "abandoned": False,
    }  # fmt: skip
    assert fs.check() == []


# --- one instant -----------------------------------------------------------------------------------------------------


class Meddler(io.BytesIO):
    """A target in the middle of whose stream, and while it is written to, something happens."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        super().__init__()
        self.happenings = list(happenings)

    def write(self, data: Any, /) -> int:
        if self.happenings:
            self.happenings.pop(0)()
        return super().write(data)


def test_nothing_is_locked_while_the_target_is_written_to(fs: MemoryFileSystem, stores: Stores) -> None:
    """What happens after the instant is not in the snapshot: its bytes are pinned."""
    fill(fs)
    before = look(fs)

    def happen() -> None:
        assert fs.locks() == []
        fs.write_bytes("/d/1200000", b"other")
        with fs.open("/pieces", "r+b", lock_timeout=0.0) as handle:
            handle.write(b"other")
        fs.rmtree("/ä")

    target = Meddler(happen)
    fs.snapshot(target)
    assert not target.happenings
    assert look(restored(stores, target.getvalue())) == before
    assert fs.info()["orphaned"] == 0


def test_pinned_bytes_do_not_change_under_the_target(stores: Stores) -> None:
    """A large file is written out in parts, and changed in place between the first and the last of them."""
    fs = stores.private()
    fs.write_bytes("/large", pattern(1_200_000))

    def happen() -> None:
        with fs.open("/large", "r+b", lock_timeout=0.0) as handle:
            handle.seek(-100, 2)
            handle.write(bytes(100))

    target = Meddler(happen)
    fs.snapshot(target)
    assert not target.happenings
    assert restored(stores, target.getvalue()).read_bytes("/large") == pattern(1_200_000)


def once(happen: Callable[[], object], real: Callable[..., Any]) -> Callable[..., Any]:
    """A function as *real*, after whose first call something happens."""
    happenings = [happen]

    def function(*args: Any) -> Any:
        result = real(*args)
        if happenings:
            happenings.pop()()
        return result

    return function


def test_a_change_between_two_files(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was read, then both are written in place: what was read is noticed to be old."""
    fs = stores.private()
    for path in ("/a", "/b"):
        fs.write_bytes(path, b"old")

    def happen() -> None:
        for path in ("/a", "/b"):
            with fs.open(path, "r+b") as handle:
                handle.write(b"new")

    monkeypatch.setattr(picture.Picture, "look", once(happen, picture.Picture.look))
    other = restored(stores, stream_of(fs))
    assert (other.read_bytes("/a"), other.read_bytes("/b")) == (b"new", b"new")


@pytest.mark.parametrize("hurried", [1, 3])
def test_a_writer_who_came_after_reading(stores: Stores, monkeypatch: pytest.MonkeyPatch, hurried: int) -> None:
    """He is waited for, too; here he is our own thread, which would wait for ever."""
    monkeypatch.setattr(snapshot, "HURRIED_MOST", hurried)
    fs = stores.private()
    fs.write_bytes("/a", b"old")
    handles: list[Any] = []
    happen = once(lambda: handles.append(fs.open("/a", "r+b")), picture.Picture.look)
    monkeypatch.setattr(picture.Picture, "look", happen)
    with pytest.raises(MFSDeadlockError):
        stream_of(fs)
    handles[0].close()


def test_a_file_that_moves_past_a_survey(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a directory that was not yet looked at into one that was: it is in the snapshot, once."""
    fs = stores.private()
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"f")
    listing = fs._store.listing
    monkeypatch.setattr(listing, "entries_now", once(lambda: fs.rename("/d/f", "/f"), listing.entries_now))
    other = restored(stores, stream_of(fs))
    assert look(other) == look(fs)


def test_much_that_changes_while_it_is_read(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is kept is written out at once, and what changes afterwards once more: changed, new, renamed, gone."""
    monkeypatch.setattr(snapshot, "FROZEN_MOST", 10)
    monkeypatch.setattr(frames, "CHUNK", 1000)
    fs = stores.private()
    fs.mkdir("/d/gone")
    fs.mkdir("/turns")
    for number in range(50):
        fs.write_bytes(f"/d/{number}", pattern(500, number))
        fs.write_bytes(f"/d/gone/{number}", pattern(70_000 if number < 3 else 10, number))
    fs.write_bytes("/turns/f", b"f")

    def first() -> None:
        fs.rmtree("/d/gone")
        fs.rmtree("/turns")
        fs.write_bytes("/turns", b"now a file")
        fs.remove("/d/1")
        fs.mkdir("/d/1")

    def second() -> None:
        for number in range(20, 40):
            with fs.open(f"/d/{number}", "ab") as handle:
                handle.write(b"more")
        fs.rename("/d/2", "/renamed")

    def third() -> None:
        fs.rename("/d", "/moved")
        fs.write_bytes("/last", b"last")

    target = Meddler(first, second, third)
    fs.snapshot(target)
    assert not target.happenings
    other = restored(stores, target.getvalue())
    assert look(other) == look(fs)
    assert other.check() == []


@pytest.mark.parametrize("hurried", [0, 3])
def test_money_is_neither_made_nor_lost(stores: Stores, monkeypatch: pytest.MonkeyPatch, hurried: int) -> None:
    """Somebody moves a coin from one file to the next all the time; each snapshot has every coin once.

    The one who moves it puts it into the next file before he takes it out of the last: there may be one more, never one less.
    """
    monkeypatch.setattr(snapshot, "HURRIED_MOST", hurried)
    fs = stores.create()
    purses = [f"/p{number}" for number in range(6)]
    for path in purses:
        fs.write_bytes(path, b"coin")
    over = threading.Event()

    def move() -> None:
        chance = random.Random(2)
        held = list(purses)
        while not over.is_set():
            source = chance.choice(held)
            free = [path for path in [*purses, *(f"/q{n}" for n in range(6))] if path not in held]
            target = chance.choice(free)
            fs.write_bytes(target, b"coin")
            fs.remove(source) if chance.randrange(2) else fs.write_bytes(source, b"")
            held[held.index(source)] = target

    task = Task(move)
    try:
        streams = [stream_of(fs) for _ in range(10)]
    finally:
        over.set()
        task.result()
    for stream in streams:
        other = stores.private()
        other.restore(io.BytesIO(stream))
        coins = sum(what[0] == b"coin" for what in look(other).values())
        assert coins in (6, 7)


def _versions(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    link.send("at work")
    number = 0
    while not link._connection.poll():
        number += 1
        for path in ("/a", "/b", "/d/c"):  # in this order
            with fs.open(path, "r+b") as handle:
                handle.write(number.to_bytes(8, "big") * 10_000)


def test_versions_are_in_the_order_in_which_they_were_written(stores: Stores) -> None:
    """A process writes the same number into three files in turn, in place: each snapshot has whole files, and later ones
    only with the earlier ones that were there before."""
    fs = stores.create()
    fs.mkdir("/d")
    for path in ("/a", "/b", "/d/c"):
        fs.write_bytes(path, bytes(80_000))
    with child("fork", _versions, fs.name) as writer:
        writer.receive()
        streams = [stream_of(fs) for _ in range(5)]
        writer.send("enough")
        writer.receive()
    for stream in streams:
        found = look(restored(stores, stream))
        contents = [found[path][0] for path in ("/a", "/b", "/d/c")]
        assert all(data == data[:8] * 10_000 for data in contents)
        a, b, c = (int.from_bytes(data[:8], "big") for data in contents)
        assert a >= b >= c >= a - 1


def test_a_writer_is_waited_for(fs: MemoryFileSystem, stores: Stores) -> None:
    fs.write_bytes("/f", b"before")
    with held_open(fs, "/f", "r+b"):
        task = Task(stream_of, fs)
        until(lambda: any(lock.state == "waiting" for lock in fs.locks()), "the snapshot waits")
    assert look(restored(stores, task.result())) == look(fs)


def test_a_writer_that_does_not_end(stores: Stores) -> None:
    fs = stores.private(default_lock_timeout=0.05)
    fs.write_bytes("/f", b"before")
    with held_open(fs, "/f", "r+b"), pytest.raises(MFSLockTimeoutError) as caught:
        stream_of(fs)
    assert caught.value.path == "/f"
    with fs.open("/f", "r+b"), pytest.raises(MFSDeadlockError):
        stream_of(fs)


def test_somebody_always_writes(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no instant at which nobody does: by the timeout it is said, and everything given back."""
    fs = stores.private(default_lock_timeout=0.2)
    for path in ("/a", "/b"):
        fs.write_bytes(path, bytes(100))
    look_at, over, handles = picture.Picture.look, threading.Event(), [fs.open("/a", "r+b")]

    def pass_on(self: Any, spot: Any) -> Any:
        """Whenever a file is to be read, its writer has begun with the other one."""
        handles.append(fs.open("/b" if handles[0].name == "/a" else "/a", "r+b"))
        handles.pop(0).close()
        return look_at(self, spot) if spot.text != handles[0].name else None

    monkeypatch.setattr(picture.Picture, "look", pass_on)
    try:
        with pytest.raises(MFSLockTimeoutError):
            stream_of(fs)
    finally:
        over.set()
        handles[0].close()
    assert fs.locks() == [] and not fs._store.content.has_views()


def _die_writing(_link: Link, name: str) -> None:
    handle = MemoryFileSystem.attach(name).open("/f", "r+b")
    handle.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("hurried", [0, 3])
def test_an_abandoned_file(stores: Stores, monkeypatch: pytest.MonkeyPatch, hurried: int) -> None:
    """It must be asked for; where it is restored, nobody has abandoned it."""
    monkeypatch.setattr(snapshot, "HURRIED_MOST", hurried)
    fs = stores.create()
    fs.write_bytes("/f", bytes(100_000))
    with child("fork", _die_writing, fs.name) as writer:
        writer.join()
    with pytest.raises(MFSAbandonedFileError):
        stream_of(fs)
    other = restored(stores, stream_of(fs, allow_abandoned=True))
    assert other.read_bytes("/f") == b"half" + bytes(99_996)
    assert not other.stat("/f")["abandoned"]
    assert not fs._store.content.has_views()


@pytest.mark.parametrize("count", [1, 100, picture.FROZEN_MOST])
def test_with_everybody_stopped(stores: Stores, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The last resort alone: all is pinned in one moment."""
    monkeypatch.setattr(snapshot, "HURRIED_MOST", 0)
    fs = stores.private()
    fs.mkdir("/d")
    for number in range(count):
        fs.write_bytes(f"/d/{number}", pattern(number * 10, number))
    assert look(restored(stores, stream_of(fs))) == look(fs)
    assert not fs._store.content.has_views()


def test_a_target_that_fails(fs: MemoryFileSystem) -> None:
    """What it raises comes through, and nothing stays pinned."""
    fill(fs)

    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError("no space left there")

    with pytest.raises(OSError, match="no space left there"):
        fs.snapshot(Full())
    assert not fs._store.content.has_views()
    assert fs.locks() == []


# --- death -----------------------------------------------------------------------------------------------------------


def _restore_and_die(_link: Link, name: str, stream: bytes) -> None:
    class Deadly(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(stream) * 3 // 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(size)

    MemoryFileSystem.attach(name).restore(Deadly(stream))


def test_a_death_while_restoring(fs: MemoryFileSystem, stores: Stores) -> None:
    """Nothing of it is seen, and all of it is given back."""
    fill(fs)
    other = stores.create()
    other.write_bytes("/mine", b"mine")
    with child("fork", _restore_and_die, other.name, stream_of(fs)) as dying:
        dying.join()
    assert list(look(other)) == ["/mine"]
    other.trim()
    assert other.stats()["used_bytes"] == 256 + 128 and other.check() == []
    other.restore(io.BytesIO(stream_of(fs)))
    assert len(look(other)) == len(look(fs)) + 1


def test_restore_inside_restore(fs: MemoryFileSystem, stores: Stores) -> None:
    """A source that uses the store in a way that would end the tree in the making is told so; both stay sound."""
    fill(fs)
    stream = stream_of(fs)
    other = stores.private()
    other.mkdir("/tree")
    told: list[BaseException] = []

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1000:  # not at the head, which is read before
                for call in (lambda: other.copy_tree("/tree", "/copy"), lambda: other.restore(io.BytesIO(stream))):
                    with pytest.raises(MFSReentrantCallError) as caught:
                        call()
                    told.append(caught.value)
            return super().read(size)

    other.restore(Source(stream))
    assert told
    assert look(other).keys() == look(fs).keys() | {"/tree"}
