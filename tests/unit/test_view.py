"""view(): a file's own memory, read-only, that stays what it is as long as anybody looks at it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import io
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSAbandonedFileError, MFSDeadlockError, MFSLockTimeoutError, MFSQuotaExceededError

from ..conftest import Stores
from ..processes import Link, call_in_child, child, held_open, in_thread

SIZES = [0, 1, 255, 256, 4095, 4096, 4097, 70_000, (1 << 20) + 1]


def pattern(size: int) -> bytes:
    """Bytes in which a shifted or stale stretch shows."""
    block = bytes(range(256)) + bytes(range(255))
    return (block * (size // len(block) + 1))[:size]


def charge(size: int) -> int:
    """What a closed file of `size` bytes is charged."""
    unit = 256 if size < 4096 else 4096
    return -(-size // unit) * unit + 128 if size else 0


def used(fs: MemoryFileSystem) -> int:
    """The bytes charged now."""
    return fs.stats()["used_bytes"]


def orphaned(fs: MemoryFileSystem) -> int:
    """The bytes charged for content that no file has any more."""
    info: Any = fs.info()
    return int(info["orphaned"] if isinstance(info, Mapping) else info.orphaned)


@pytest.mark.parametrize("size", SIZES)
def test_view_shows_the_file(fs: MemoryFileSystem, size: int) -> None:
    """A view is a read-only memoryview of bytes, as long as the file."""
    fs.write_bytes("/f", pattern(size))
    with fs.view("/f") as view:
        assert isinstance(view, memoryview)
        assert (view.readonly, view.format, view.ndim, view.contiguous) == (True, "B", 1, True)
        assert len(view) == size
        assert view == pattern(size)
        with pytest.raises(TypeError):
            view[:1] = b"x"


def test_view_without_with(fs: MemoryFileSystem) -> None:
    """A view can be held without a with, and sliced and cast."""
    fs.write_bytes("/f", (7).to_bytes(8, "little") * 1000)
    view = fs.view("/f")
    assert isinstance(view, memoryview)
    assert list(view[8:24].cast("Q")) == [7, 7]


def test_nothing_derived_from_a_view_can_write(fs: MemoryFileSystem) -> None:
    """Whatever takes its buffer inside a `with` gets it read-only: memoryviews, arrays, readinto; and nobody can assign."""
    numpy = pytest.importorskip("numpy")
    fs.write_bytes("/f", pattern(300))
    view = fs.view("/f")
    assert view.readonly and view[3:].readonly
    with pytest.raises(TypeError):
        view[0] = 1
    with view as inner:
        assert inner.readonly and memoryview(inner).readonly
        assert (inner.format, inner.ndim) == ("B", 1)
        assert not numpy.frombuffer(inner, "u1").flags.writeable
        with pytest.raises(TypeError):
            io.BytesIO(b"NEW").readinto(inner)
        with pytest.raises(TypeError):
            inner[0] = 1
    assert fs.read_bytes("/f") == pattern(300)


@pytest.mark.parametrize("size", [0, 1, 300, 5000, 70_000])
def test_a_view_itself_lends_read_only_memory(fs: MemoryFileSystem, size: int) -> None:
    """Without a `with`, too: whoever asks for memory to write is refused, and an array cannot be made writable."""
    numpy = pytest.importorskip("numpy")
    fs.write_bytes("/f", pattern(size))
    view = fs.view("/f")
    assert memoryview(view).readonly and memoryview(view).format == "B"
    values = numpy.frombuffer(view, "u1")
    assert not values.flags.writeable
    with pytest.raises(ValueError):
        values.setflags(write=True)
    with pytest.raises(ValueError):
        values[:] = 1
    for consume in (io.BytesIO(b"NEW").readinto, ctypes.c_char.from_buffer, lambda it: struct.pack_into("B", it, 0, 1)):
        with pytest.raises((TypeError, BufferError, ValueError)):
            consume(view)
    assert bytes(view) == values.tobytes() == pattern(size)


def test_nothing_that_leads_to_a_view_can_write(fs: MemoryFileSystem) -> None:
    """What a memoryview says it was made of is read-only, down to the mapping."""
    fs.write_bytes("/f", pattern(5000))
    thing: Any = memoryview(fs.view("/f"))
    depth = 0
    while isinstance(thing, memoryview):
        assert thing.readonly
        thing, depth = thing.obj, depth + 1
    with pytest.raises(TypeError):
        thing[0] = 1
    assert depth >= 1


def test_native_code_that_writes_dies_of_it(named: MemoryFileSystem) -> None:
    """The pages are mapped for reading alone: the one who writes gets a SIGSEGV, the others keep their bytes."""
    numpy = pytest.importorskip("numpy")
    named.write_bytes("/f", pattern(5000))
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            values = numpy.frombuffer(MemoryFileSystem.attach(named.name).view("/f"), "u1")
            ctypes.memset(values.ctypes.data, 0xFF, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
    assert named.read_bytes("/f") == pattern(5000)


def test_view_refusals(fs: MemoryFileSystem) -> None:
    """Nothing there is FileNotFoundError, a directory IsADirectoryError."""
    fs.mkdir("/d")
    with pytest.raises(FileNotFoundError):
        fs.view("/f")
    for path in ("/d", "/"):
        with pytest.raises(IsADirectoryError):
            fs.view(path)


def test_view_of_a_file_that_grew_in_pieces(fs: MemoryFileSystem) -> None:
    """However a file came about, its view is one piece."""
    with fs.open("/f", "wb") as one, fs.open("/g", "wb") as two:
        for number in range(200):
            one.write(bytes([number]) * 700)
            two.write(bytes([number]) * 900)
    with fs.view("/f") as view:
        assert view == b"".join(bytes([number]) * 700 for number in range(200))
    with fs.view("/g") as view:
        assert view == b"".join(bytes([number]) * 900 for number in range(200))
    assert used(fs) == charge(140_000) + charge(180_000)


def test_view_costs_no_quota(stores: Stores) -> None:
    """A full store can be viewed, also a file in many pieces."""
    fs = stores.private(max_quota=2 * charge(100_000))
    with fs.open("/f", "wb") as one, fs.open("/g", "wb") as two:
        for number in range(100):
            one.write(bytes([number]) * 1000)
            two.write(bytes([number]) * 1000)
    assert fs.stats()["free_bytes"] == 0
    with fs.view("/f") as view, fs.view("/f") as again:
        assert view == again == b"".join(bytes([number]) * 1000 for number in range(100))
        assert fs.stats()["free_bytes"] == 0


def test_views_share_the_memory(fs: MemoryFileSystem) -> None:
    """A view copies nothing: two views of one file are the same memory."""
    numpy = pytest.importorskip("numpy")
    fs.write_bytes("/f", pattern(10_000))
    one, two = numpy.frombuffer(fs.view("/f"), "u1"), numpy.frombuffer(fs.view("/f"), "u1")
    assert numpy.shares_memory(one, two)


# --- views and locks -------------------------------------------------------------------------------------------------


def test_a_view_is_not_an_open_file(fs: MemoryFileSystem) -> None:
    """Under a view a file is written, renamed and removed like any other."""
    fs.write_bytes("/f", b"content")
    with fs.view("/f") as view:
        assert fs.locks() == []
        with fs.open("/f", "r+b", lock_timeout=0.0) as handle:
            handle.write(b"C")
        fs.rename("/f", "/g")
        fs.remove("/g")
        assert view == b"content"


def test_a_reader_does_not_hinder_a_view(fs: MemoryFileSystem) -> None:
    """The shared lock is taken while pinning, beside other readers."""
    fs.write_bytes("/f", b"content")
    with held_open(fs, "/f", "rb"), fs.view("/f") as view:
        assert view == b"content"


# --- how long it lasts -----------------------------------------------------------------------------------------------


def test_a_slice_outlives_the_with(fs: MemoryFileSystem) -> None:
    """What was derived inside the with stays readable after it."""
    fs.write_bytes("/f", pattern(10_000))
    with fs.view("/f") as view:
        part = view[100:200]
    fs.write_bytes("/f", bytes(10_000))
    assert part == pattern(10_000)[100:200]


def test_an_array_outlives_the_with(fs: MemoryFileSystem) -> None:
    """So does an array made of it; leaving the block is no error, and the pin lasts as long as the array."""
    numpy = pytest.importorskip("numpy")
    fs.write_bytes("/f", pattern(5000))
    with fs.view("/f") as view:
        values = numpy.frombuffer(view, "u1")
    fs.remove("/f")
    fs.write_bytes("/g", bytes(5000))
    assert values.tobytes() == pattern(5000)
    assert orphaned(fs) == charge(5000)
    del values, view
    gc.collect()
    assert (used(fs), orphaned(fs)) == (charge(5000), 0)


def test_an_array_made_without_a_with_outlives_release(fs: MemoryFileSystem) -> None:
    """`release` is no end for what was derived from the view itself."""
    numpy = pytest.importorskip("numpy")
    fs.write_bytes("/f", pattern(5000))
    view = fs.view("/f")
    values = numpy.frombuffer(view, "u1")
    view.release()
    with pytest.raises(ValueError):
        view[0]
    with pytest.raises((ValueError, BufferError)):
        memoryview(view)
    fs.remove("/f")
    fs.write_bytes("/g", bytes(5000))
    assert values.tobytes() == pattern(5000)
    del values
    assert orphaned(fs) == 0


DERIVED: dict[str, Callable[[Any], Any]] = {
    "slice": lambda view: view[10:4000],
    "slice of a slice": lambda view: view[5:4500][5:3995],
    "cast": lambda view: view[8:4008].cast("Q")[0:400],
    "memoryview": lambda view: memoryview(memoryview(view)[10:])[:3990],
    "readonly": lambda view: view.toreadonly()[10:4000],
    "array": lambda view: pytest.importorskip("numpy").frombuffer(view, "u1")[10:4000],
    "asarray": lambda view: pytest.importorskip("numpy").asarray(memoryview(view))[10:4000].reshape(2, -1)[1:],
    "array of a slice": lambda view: pytest.importorskip("numpy").frombuffer(view[8:4008], "u8")[::-1],
    "arrow": lambda view: pytest.importorskip("pyarrow").py_buffer(memoryview(view)).slice(10, 3990),
}


@pytest.mark.parametrize("within", [False, True], ids=["without with", "in a with"])
@pytest.mark.parametrize("how", DERIVED)
def test_whatever_is_derived_pins(stores: Stores, how: str, within: bool) -> None:
    """It outlives the view, its `with`, the file and the filesystem object; with it the pin goes."""
    fs, other = stores.create(), None
    other = stores.attach(fs.name)
    fs.write_bytes("/f", pattern(5000))
    if within:
        with fs.view("/f") as view:
            derived = DERIVED[how](view)
    else:
        view = fs.view("/f")
        derived = DERIVED[how](view)
    expected = bytes(derived)
    del view
    fs.remove("/f")
    fs.close()
    other.write_bytes("/g", bytes(5000))
    assert bytes(derived) == expected
    assert orphaned(other) == charge(5000)
    del derived
    gc.collect()
    assert orphaned(other) == 0


def test_views_stay_readable_when_the_store_is_destroyed(named: MemoryFileSystem, store_name: str) -> None:
    """The memory goes with the last of them."""
    named.write_bytes("/f", pattern(5000))
    view = named.view("/f")
    MemoryFileSystem.destroy(store_name)
    assert view[:] == pattern(5000)
    view.release()


def _end_with_views(name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    sys.modules[__name__].kept = [fs.view("/f"), memoryview(fs.view("/f"))[3:]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_ends_with_views(named: MemoryFileSystem, method: str) -> None:
    """Its pins go with it, quietly."""
    named.write_bytes("/f", pattern(5000))
    call_in_child(method, _end_with_views, named.name)
    named.remove("/f")
    named.trim()
    assert (used(named), orphaned(named)) == (0, 0)


def _die_writing(_link: Link, name: str) -> None:
    handle = MemoryFileSystem.attach(name).open("/f", "r+b")
    handle.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_view_of_an_abandoned_file_must_be_asked_for(named: MemoryFileSystem) -> None:
    named.write_bytes("/f", pattern(5000))
    with child("fork", _die_writing, named.name) as writer:
        writer.join()
    with pytest.raises(MFSAbandonedFileError):
        named.view("/f")
    with named.view("/f", allow_abandoned=True) as view:
        assert view == b"half" + pattern(5000)[4:]
    assert named.stat("/f")["abandoned"]


def test_views_cannot_be_pickled(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", b"x")
    with pytest.raises(TypeError):
        pickle.dumps(fs.view("/f"))


def test_an_array_outlives_view_file_and_fs(stores: Stores) -> None:
    """An array made of a view keeps the memory when view, file and filesystem object are gone."""
    numpy = pytest.importorskip("numpy")
    fs = stores.private()
    fs.write_bytes("/f", pattern(50_000))
    values = numpy.frombuffer(fs.view("/f"), "u1")
    fs.remove("/f")
    assert fs.check() == []
    fs.close()
    del fs
    gc.collect()
    assert values.tobytes() == pattern(50_000)


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_view_outlives_close(stores: Stores, size: int) -> None:
    """close() of the filesystem object leaves views alone, of a private store too."""
    fs = stores.private()
    fs.write_bytes("/f", pattern(size))
    view = fs.view("/f")
    fs.close()
    assert view == pattern(size)


# --- writers and pinned content --------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[MemoryFileSystem], object]] = {
    "overwrite": lambda fs: _with(fs, "r+b", lambda handle: handle.write(b"NEW")),
    "overwrite the middle": lambda fs: _with(fs, "r+b", lambda handle: (handle.seek(50), handle.write(b"NEW"))),
    "overwrite all": lambda fs: _with(fs, "r+b", lambda handle: handle.write(bytes(fs.get_size("/f")))),
    "append": lambda fs: _with(fs, "ab", lambda handle: handle.write(b"NEW" * 1000)),
    "truncate": lambda fs: _with(fs, "r+b", lambda handle: handle.truncate(10)),
    "truncate to nothing": lambda fs: _with(fs, "r+b", lambda handle: handle.truncate(0)),
    "cut and grow": lambda fs: _with(fs, "r+b", lambda handle: (handle.truncate(10), handle.truncate(5000))),
    "extend": lambda fs: _with(fs, "r+b", lambda handle: handle.truncate(100_000)),
    "wb": lambda fs: _with(fs, "wb", lambda handle: handle.write(b"NEW" * 5000)),
    "wb of nothing": lambda fs: _with(fs, "wb", lambda handle: None),
    "write_bytes": lambda fs: fs.write_bytes("/f", b"NEW" * 5000),
    "replace": lambda fs: (fs.write_bytes("/new", b"NEW" * 5000), fs.replace("/new", "/f")),
    "remove": lambda fs: fs.remove("/f"),
    "remove and create": lambda fs: (fs.remove("/f"), fs.write_bytes("/f", b"NEW" * 30_000)),
}


def _with(fs: MemoryFileSystem, mode: str, change: Callable[[Any], object]) -> None:
    with fs.open("/f", mode) as handle:
        change(handle)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("size", [100, 300, 4096, 50_000])
def test_the_bytes_never_change(fs: MemoryFileSystem, name: str, size: int) -> None:
    """Whatever is done to the file, the view shows what was there; without a view the file ends up the same."""
    fs.write_bytes("/f", pattern(size))
    CHANGES[name](fs)
    expected = fs.read_bytes("/f") if fs.exists("/f") else None
    if expected is not None:
        fs.remove("/f")

    fs.write_bytes("/f", pattern(size))
    view = fs.view("/f")
    CHANGES[name](fs)
    for number in range(20):
        fs.write_bytes(f"/filler{number}", b"\xee" * size)
    assert view == pattern(size)
    assert (fs.read_bytes("/f") if fs.exists("/f") else None) == expected
    for number in range(20):
        fs.remove(f"/filler{number}")
    del view
    gc.collect()
    assert used(fs) == (charge(len(expected)) if expected is not None else 0)
    assert orphaned(fs) == 0


@pytest.mark.parametrize("change", [lambda handle: handle.write(b"x" * 9000), lambda handle: handle.truncate(2000)])
def test_an_interrupted_writer_does_not_go_on_in_the_old_blocks(fs: MemoryFileSystem, change: Callable[[Any], Any]) -> None:
    """The file has other blocks already when an exception comes: what is written next goes into those."""
    fs.write_bytes("/f", pattern(5000))
    view = fs.view("/f")
    give_back = fs._store.placement.give_back_pin

    def interrupted(pin: int) -> None:
        give_back(pin)
        raise KeyboardInterrupt

    with fs.open("/f", "r+b") as handle:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs._store.placement, "give_back_pin", interrupted)
            with pytest.raises(KeyboardInterrupt):
                change(handle)
        handle.seek(0)
        handle.write(b"new")
    assert view == pattern(5000)
    assert fs.read_bytes("/f")[:3] == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("is_unlocked", [False, True], ids=["locked", "unlocked"])
def test_a_view_whose_lock_could_not_be_given_back(
    fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, is_unlocked: bool, error: type[BaseException]
) -> None:
    """Nobody gets it: the next operation gives back the lock, and the pin that it had by then."""
    fs.write_bytes("/f", pattern(5000))
    store = fs._store
    leave, pinned = store.rw._leave_lightly, []

    def failing(record: int, word: int) -> None:
        pinned.append(store.content.has_views())
        if is_unlocked:
            leave(record, word)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store.rw, "_leave_lightly", failing)
        with pytest.raises(error):
            fs.view("/f")
    assert pinned == [True]
    gc.collect()
    fs.remove("/f")
    assert not store.content.has_views()
    assert (fs.locks(), used(fs), orphaned(fs)) == ([], 0, 0)


def test_a_pin_ends_with_its_last_buffer(fs: MemoryFileSystem) -> None:
    """Removed content is charged as orphaned until the last buffer on it goes."""
    fs.write_bytes("/f", pattern(5000))
    view = fs.view("/f")
    part, other = view[10:20], fs.view("/f")
    assert orphaned(fs) == 0
    fs.remove("/f")
    assert (used(fs), orphaned(fs)) == (charge(5000), charge(5000))
    view.release()
    assert used(fs) == charge(5000)
    del part
    gc.collect()
    assert used(fs) == charge(5000)
    assert other == pattern(5000)
    other.release()
    del view, other
    gc.collect()
    assert (used(fs), orphaned(fs)) == (0, 0)


@pytest.mark.parametrize("way", ["replace", "write_bytes"])
def test_replaced_content_is_charged_until_the_view_goes(fs: MemoryFileSystem, way: str) -> None:
    """A pinned target of a replacement is charged beside the new content."""
    fs.write_bytes("/f", pattern(5000))
    view = fs.view("/f")
    if way == "replace":
        fs.write_bytes("/new", pattern(300))
        fs.replace("/new", "/f")
    else:
        fs.write_bytes("/f", pattern(300))
    assert used(fs) == charge(5000) + charge(300)
    assert orphaned(fs) == charge(5000)
    assert view == pattern(5000)
    del view
    gc.collect()
    assert (used(fs), orphaned(fs)) == (charge(300), 0)


def test_content_replaced_under_a_reader_is_orphaned(fs: MemoryFileSystem) -> None:
    """An open handle keeps replaced content charged as a view does, until it is closed."""
    fs.write_bytes("/f", pattern(5000))
    with fs.open("/f", "rb") as handle:
        fs.write_bytes("/f", pattern(300))
        assert (used(fs), orphaned(fs)) == (charge(5000) + charge(300), charge(5000))
        assert handle.read() == pattern(5000)
    assert (used(fs), orphaned(fs)) == (charge(300), 0)


def test_rmtree_under_views(fs: MemoryFileSystem) -> None:
    """rmtree goes through; what is pinned is charged on, the rest is free at once."""
    fs.mkdir("/d/e")
    fs.write_bytes("/d/e/pinned", pattern(5000))
    fs.write_bytes("/d/other", pattern(70_000))
    view = fs.view("/d/e/pinned")
    fs.rmtree("/d")
    assert used(fs) == orphaned(fs) == charge(5000)
    assert view == pattern(5000)
    del view
    gc.collect()
    assert used(fs) == 0


def test_a_writer_to_a_pinned_file_needs_room(stores: Stores) -> None:
    """Fresh blocks are charged: without quota for them the write is refused, and file and view stay as they are."""
    fs = stores.private(max_quota=charge(50_000) + charge(300))
    fs.write_bytes("/f", pattern(50_000))
    view = fs.view("/f")
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(MFSQuotaExceededError):
            handle.write(b"x" * 50_000)
        assert fs.get_size("/f") == 50_000
    assert fs.read_bytes("/f") == view == pattern(50_000)
    del view
    gc.collect()
    with fs.open("/f", "r+b") as handle:
        handle.write(b"x" * 50_000)
    assert fs.read_bytes("/f") == b"x" * 50_000


def test_released_views_make_room_for_a_writer(stores: Stores) -> None:
    """A pin given up by another thread is noticed before the quota is reported as spent."""
    fs = stores.private(max_quota=charge(50_000))
    fs.write_bytes("/f", pattern(50_000))
    views = [fs.view("/f")]
    fs.remove("/f")
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/g", bytes(50_000))

    def drop() -> None:
        views.clear()
        gc.collect()

    in_thread(drop)
    fs.write_bytes("/g", bytes(50_000))


# --- other processes -------------------------------------------------------------------------------------------------


def _view_and_wait(link: Link, fs: MemoryFileSystem, path: str) -> bytes:
    view = fs.view(path)
    link.send(bytes(view))
    link.recv()
    return bytes(view)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_view_in_another_process_pins(named: MemoryFileSystem, method: str) -> None:
    """What another process views stays, and is charged, until that process lets it go by ending."""
    named.write_bytes("/f", pattern(5000))
    with child(method, _view_and_wait, named, "/f") as viewer:
        assert viewer.receive() == pattern(5000)
        named.remove("/f")
        named.write_bytes("/g", bytes(5000))
        assert orphaned(named) == charge(5000)
        viewer.send("look again")
        assert viewer.receive() == pattern(5000)
        viewer.join()
    named.write_bytes("/h", b"x")
    assert (used(named), orphaned(named)) == (charge(5000) + charge(1), 0)


def test_a_killed_viewers_pins_go(stores: Stores) -> None:
    """The pins of a killed process are taken away before the quota is reported as spent."""
    fs = stores.create(max_quota=charge(50_000))
    fs.write_bytes("/f", pattern(50_000))
    with child("fork", _view_and_wait, fs, "/f") as viewer:
        assert viewer.receive() == pattern(50_000)
        fs.remove("/f")
        with pytest.raises(MFSQuotaExceededError):
            fs.write_bytes("/g", b"x")
        viewer.kill()
    fs.write_bytes("/g", bytes(50_000))
    assert orphaned(fs) == 0


def _read_inherited(_link: Link, view: memoryview) -> bytes:
    return bytes(view)


def test_an_inherited_view_is_readable(fs: MemoryFileSystem) -> None:
    """A forked child reads the parent's view; its end takes nothing from the parent."""
    fs.write_bytes("/f", pattern(5000))
    view = fs.view("/f")
    fs.remove("/f")
    with child("fork", _read_inherited, view) as reader:
        assert reader.receive() == pattern(5000)
        reader.join()
    fs.write_bytes("/g", bytes(5000))
    assert orphaned(fs) == charge(5000)
    assert view == pattern(5000)


def test_many_views_that_end_at_once(fs: MemoryFileSystem) -> None:
    """One operation gives all their pins back."""
    fs.write_bytes("/file", b"x")
    views = [fs.view("/file") for _ in range(1500)]
    fs.remove("/file")
    assert fs.stats()["used_bytes"] > 0
    del views
    assert fs.stats()["used_bytes"] == 0


# ---- a view after another


def pin_words(fs: MemoryFileSystem) -> list[int]:
    """Our pin records that pin something."""
    store: Any = fs._store
    return [word for word in store.content.leases.words() if store.w[word]]


def test_the_next_view_takes_over_the_pin(fs: MemoryFileSystem) -> None:
    """Nothing is pinned anew; and when both are gone, nothing is pinned."""
    fs.write_bytes("/f", b"a" * 5000)
    with fs.view("/f") as first:
        assert bytes(first) == b"a" * 5000
    pinned = pin_words(fs)
    store: Any = fs._store
    entered, acquire = [], type(store.mutexes[0]).acquire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(store.mutexes[0]), "acquire", lambda self, *args: (entered.append(self.number), acquire(self, *args))
        )
        with fs.view("/f") as second:
            assert bytes(second) == b"a" * 5000 and pin_words(fs) == pinned
    assert entered == [], "no mutex was needed"
    fs.stats()
    assert pin_words(fs) == [] and not fs.check()


def overwrite(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", b"new" * 2000)
    fs.close()


def test_a_view_of_what_was_changed_since(fs: MemoryFileSystem) -> None:
    """The pin that is left is of the old content: the new view has one of its own, and the old one is given back."""
    fs.write_bytes("/f", b"old" * 2000)
    with fs.view("/f"):
        pass
    left = pin_words(fs)
    assert left
    call_in_child("fork", overwrite, fs)
    with fs.view("/f") as view:
        assert bytes(view) == b"new" * 2000
    fs.stats()
    assert pin_words(fs) == [] and not fs.check()
    assert fs.info()["orphaned"] == 0


def test_a_view_of_another_file_and_of_a_removed_one(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", b"f" * 5000)
    fs.write_bytes("/g", b"g" * 5000)
    with fs.view("/f"):
        pass
    with fs.view("/g") as view:
        assert bytes(view) == b"g" * 5000
    with fs.view("/f"):
        fs.remove("/f")
    with pytest.raises(FileNotFoundError):
        fs.view("/f")
    fs.stats()
    assert pin_words(fs) == [] and not fs.check()


def test_a_view_of_what_is_being_written(fs: MemoryFileSystem) -> None:
    """The pin that is left does not get round the writer's lock."""
    fs.write_bytes("/f", b"f" * 5000)
    with fs.view("/f"):
        pass
    left = pin_words(fs)
    with fs.open("/f", "r+b"):
        fs._timeout = 0.0
        with pytest.raises((MFSLockTimeoutError, MFSDeadlockError)):
            fs.view("/f")
    assert left
    fs.stats()
    assert pin_words(fs) == [] and not fs.check()


def test_an_interrupted_view_keeps_no_pin(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while the pin is taken over: the next operation gives it back."""
    fs.write_bytes("/f", b"f" * 5000)
    with fs.view("/f"):
        pass
    store: Any = fs._store
    with monkeypatch.context() as patch:
        patch.setattr(type(store.content.leases), "follow", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fs.view("/f")
    fs.stats()
    assert pin_words(fs) == [] and not fs.check()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
