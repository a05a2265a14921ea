"""open(..., atomic=True): a file that is written out of sight and published, or dropped, at once."""

from __future__ import annotations

import gc
import io
import os
import zipfile
from typing import Any

import pytest

from dmemfs_shm import MemoryFileHandle, MemoryFileSystem
from dmemfs_shm.errors import (
    MFSAbandonedFileError,
    MFSDeadlockError,
    MFSForkedError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSQuotaExceededError,
)

from ..conftest import Stores
from ..processes import Link, child, held_open

OLD, NEW = b"old" * 1000, b"new" * 30_000


def sight(fs: MemoryFileSystem) -> Any:
    """Everything that one may see of names and files."""
    paths = [f"{top.rstrip('/')}/{name}" for top, _, files in fs.walk() for name in files]
    stats = fs.stats()
    return {path: (fs.read_bytes(path), fs.stat(path)) for path in paths}, stats["file_count"], stats["dir_count"]


@pytest.fixture(params=["wb over", "wb new", "xb"])
def case(request: pytest.FixtureRequest, fs: MemoryFileSystem) -> str:
    """The mode; with "over" a file stands at /d/f."""
    fs.mkdir("/d")
    if request.param == "wb over":
        fs.write_bytes("/d/f", OLD)
    return str(request.param.split()[0])


def test_invisible_until_the_block_ends(fs: MemoryFileSystem, case: str) -> None:
    """Nobody sees anything of it but its charge; then everybody all of it."""
    before, used = sight(fs), fs.stats()["used_bytes"]
    with fs.open("/d/f", case, atomic=True) as handle:
        assert isinstance(handle, MemoryFileHandle)
        assert [handle.mode, handle.name, handle.writable(), handle.readable()] == [case, "/d/f", True, False]
        handle.write(NEW[:50_000])
        assert sight(fs) == before
        handle.seek(0)
        handle.write(NEW)
        assert fs.stats()["used_bytes"] > used
        assert fs.check() == []
        assert sight(fs) == before
    assert fs.read_bytes("/d/f") == NEW
    assert fs.listdir("/d") == ["f"]
    assert fs.stats()["file_count"] == 1
    assert [fs.info()["orphaned"], fs.locks()] == [0, []]


def test_dropped_when_the_block_raises(fs: MemoryFileSystem, case: str) -> None:
    before = sight(fs), fs.stats()
    with pytest.raises(ZeroDivisionError), fs.open("/d/f", case, atomic=True) as handle:
        handle.write(NEW)
        raise ZeroDivisionError
    assert handle.closed
    assert (sight(fs), fs.stats()) == before
    assert [fs.info()["orphaned"], fs.locks()] == [0, []]


def test_close_publishes_outside_a_block(fs: MemoryFileSystem, case: str) -> None:
    handle = fs.open("/d/f", case, atomic=True)
    handle.write(NEW)
    handle.close()
    handle.close()
    handle.discard()
    assert fs.read_bytes("/d/f") == NEW
    with pytest.raises(ValueError, match="closed"):
        handle.write(b"x")


def test_discard(fs: MemoryFileSystem, case: str) -> None:
    """Outside of a block and in it; the end of the block and close() have nothing to publish then."""
    before = sight(fs), fs.stats()
    handle = fs.open("/d/f", case, atomic=True)
    handle.write(NEW)
    handle.discard()
    handle.discard()
    handle.close()
    assert handle.closed
    with fs.open("/d/f", case, atomic=True) as handle:
        handle.write(NEW)
        handle.discard()
    assert (sight(fs), fs.stats()) == before


def test_collection_drops(fs: MemoryFileSystem, case: str) -> None:
    before = sight(fs), fs.stats()
    handle = fs.open("/d/f", case, atomic=True)
    handle.write(NEW)
    handles = [handle]
    del handle
    with pytest.warns(ResourceWarning, match="not closed"):
        handles.clear()
    assert fs.stats() == before[1]
    assert sight(fs) == before[0]
    block = fs.open("/d/f", case, atomic=True)
    block.__enter__().close()
    del block
    gc.collect()
    assert fs.stats() == before[1]


def test_a_filesystem_that_is_closed_drops(stores: Stores) -> None:
    """What nobody closed is not complete."""
    fs = stores.create()
    other = stores.attach(fs.name)
    fs.write_bytes("/f", OLD)
    handle = fs.open("/f", "wb", atomic=True)
    handle.write(NEW)
    with pytest.warns(ResourceWarning, match="was open"):
        fs.close()
    assert handle.closed
    assert other.read_bytes("/f") == OLD
    assert other.check() == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wrapper", [io.BufferedWriter, io.TextIOWrapper, lambda raw: zipfile.ZipFile(raw, "w")])
def test_wrappers_only_end_writing(fs: MemoryFileSystem, wrapper: Any, fails: bool) -> None:
    """Whether a wrapper closes the handle or not, and why: the handle's own block decides."""
    fs.write_bytes("/f", OLD)
    try:
        with fs.open("/f", "wb", atomic=True) as handle:
            with wrapper(handle) as wrapped:
                if isinstance(wrapped, zipfile.ZipFile):
                    wrapped.writestr("member", NEW)
                else:
                    wrapped.write("text" if isinstance(wrapped, io.TextIOWrapper) else b"text")
                if fails:
                    raise ZeroDivisionError
            if not isinstance(wrapped, zipfile.ZipFile):
                assert handle.closed
                with pytest.raises(ValueError, match="closed"):
                    handle.write(b"x")
            assert fs.read_bytes("/f") == OLD
    except ZeroDivisionError:
        assert fails
        assert fs.read_bytes("/f") == OLD
    else:
        if wrapper in (io.BufferedWriter, io.TextIOWrapper):
            assert fs.read_bytes("/f") == b"text"
        else:
            assert zipfile.ZipFile(io.BytesIO(fs.read_bytes("/f"))).read("member") == NEW


def test_readers_and_views_keep_the_old_content(fs: MemoryFileSystem) -> None:
    """They are not waited for, and what they have is charged until they go."""
    fs.write_bytes("/f", OLD)
    with held_open(fs, "/f", "rb"), fs.open("/f") as reader, fs.view("/f") as view:
        with fs.open("/f", "wb", atomic=True) as handle:
            handle.write(NEW)
        assert fs.read_bytes("/f") == NEW
        assert reader.read() == OLD
        assert bytes(view) == OLD
        assert fs.info()["orphaned"] > 0
        assert fs.check() == []
    del view
    assert fs.info()["orphaned"] == 0


def test_a_writer_is_waited_for(fs: MemoryFileSystem) -> None:
    """By publication, not by open: up to lock_timeout, and then nothing has happened."""
    fs.write_bytes("/f", OLD)
    with held_open(fs, "/f", "r+b"):
        handle = fs.open("/f", "wb", lock_timeout=0.05, atomic=True)
        handle.write(NEW)
        with pytest.raises(MFSLockTimeoutError) as caught:
            handle.close()
        assert caught.value.path == "/f"
        assert handle.closed
    assert fs.read_bytes("/f") == OLD
    writer, handle = fs.open("/f", "r+b"), fs.open("/f", "wb", atomic=True)
    with pytest.raises(MFSDeadlockError):
        handle.close()
    writer.close()
    assert [fs.read_bytes("/f"), fs.locks()] == [OLD, []]


def test_created_at_stays_and_the_generation_rises(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", OLD)
    before = fs.stat("/f")
    with fs.open("/f", "wb", atomic=True) as handle:
        handle.write(NEW)
    after = fs.stat("/f")
    assert after["created_at"] == before["created_at"]
    assert after["generation"] > before["generation"]
    assert after["modified_at"] >= before["modified_at"]
    assert [after["size"], after["abandoned"]] == [len(NEW), False]


def test_xb_refuses_what_stands_at_open_and_at_publication(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", OLD)
    with pytest.raises(FileExistsError):
        fs.open("/f", "xb", atomic=True)
    handle = fs.open("/g", "xb", atomic=True)
    handle.write(NEW)
    fs.write_bytes("/g", b"meanwhile")
    with pytest.raises(FileExistsError):
        handle.close()
    assert fs.read_bytes("/g") == b"meanwhile"
    assert [fs.info()["orphaned"], fs.locks()] == [0, []]


def test_refusals_at_open(stores: Stores) -> None:
    fs = stores.private(max_nodes=3)
    fs.mkdir("/d")
    for mode in ("rb", "r+b", "ab"):
        with pytest.raises(ValueError, match="atomic"):
            fs.open("/d/f", mode, atomic=True)
    for path in ("/d", "/", ""):
        with pytest.raises(IsADirectoryError):
            fs.open(path, "wb", atomic=True)
    with pytest.raises(FileNotFoundError):
        fs.open("/none/f", "wb", atomic=True)
    first, second = fs.open("/1", "wb", atomic=True), fs.open("/2", "wb", atomic=True)
    first.close()
    with pytest.raises(MFSNodeLimitExceededError):
        fs.open("/3", "wb", atomic=True)
    with pytest.raises(MFSNodeLimitExceededError):
        second.close()
    assert sorted(fs.listdir("/")) == ["1", "d"]
    assert [fs.check(), fs.locks()] == [[], []]
    with fs.open("/1") as handle, pytest.raises(io.UnsupportedOperation):
        handle.discard()


def test_what_became_of_the_place_meanwhile(fs: MemoryFileSystem) -> None:
    """Publication looks at the path anew: a file may have gone, a directory come or gone. A failure drops the file."""
    fs.mkdir("/d")
    fs.write_bytes("/f", OLD)
    handles = {path: fs.open(path, "wb", atomic=True) for path in ("/f", "/d/f", "/g")}
    for handle in handles.values():
        handle.write(NEW)
    fs.remove("/f")
    fs.rmtree("/d")
    fs.mkdir("/g")
    handles["/f"].close()
    with pytest.raises(FileNotFoundError):
        handles["/d/f"].close()
    with pytest.raises(IsADirectoryError):
        handles["/g"].close()
    assert fs.read_bytes("/f") == NEW
    assert [fs.check(), fs.locks(), fs.info()["orphaned"]] == [[], [], 0]


def test_old_and_new_are_charged(stores: Stores) -> None:
    """Until the swap; what fails for want of quota changes nothing."""
    fs = stores.private(max_quota=40_000)
    fs.write_bytes("/f", bytes(16_000))
    used = fs.stats()["used_bytes"]
    with fs.open("/f", "wb", atomic=True) as handle:
        handle.write(bytes(16_000))
        assert fs.stats()["used_bytes"] == 2 * used
        with pytest.raises(MFSQuotaExceededError):
            handle.write(bytes(16_000))
    assert fs.stats()["used_bytes"] == used
    with pytest.raises(MFSQuotaExceededError):
        fs.open("/f", "wb", 50_000, atomic=True)
    with fs.open("/f", "wb", 20_000, atomic=True) as handle:
        handle.truncate(100)
    assert fs.read_bytes("/f") == bytes(100)
    assert fs.check() == []


def test_an_empty_file_and_a_long_name(fs: MemoryFileSystem) -> None:
    long = "/" + "n" * 200
    for path in ("/e", long):
        for _ in range(2):
            fs.open(path, "wb", atomic=True).close()
            assert [fs.read_bytes(path), fs.stat(path)["generation"] <= 1] == [b"", True]
    with fs.open(long, "wb", atomic=True) as handle:
        handle.write(NEW)
    assert fs.read_bytes(long) == NEW
    fs.rename(long, "/short")
    assert fs.check() == []


def test_many_runs(fs: MemoryFileSystem) -> None:
    """Content in more pieces than one transaction frees, of the old file and of one that is dropped."""

    def in_many_pieces(handle: MemoryFileHandle) -> None:
        for number in range(40):
            handle.write(bytes([number]) * 70_000)
            fs.write_bytes(f"/between{number}", bytes(5000))

    for ends in ("close", "close", "discard"):
        handle = fs.open("/f", "wb", atomic=True)
        in_many_pieces(handle)
        assert fs.check() == []
        getattr(handle, ends)()
        assert fs.get_size("/f") == 40 * 70_000
    assert fs.info()["orphaned"] == 0
    assert fs.check() == []


def _write_and_wait(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with fs.open("/f", "wb", atomic=True) as handle:
        handle.write(NEW)
        link.send("written")
        link.recv()


def test_a_death_leaves_the_old_file(stores: Stores) -> None:
    """Not abandoned; the quota is back when the dead one is reaped."""
    fs = stores.create()
    fs.write_bytes("/f", OLD)
    before = fs.stats()
    with child("spawn", _write_and_wait, fs.name) as process:
        assert process.receive() == "written"
        assert [lock.path for lock in fs.locks()] == ["(unpublished)"]
        process.kill()
    fs.trim()
    assert [fs.read_bytes("/f"), fs.stats(), fs.locks()] == [OLD, before, []]
    assert not fs.stat("/f")["abandoned"]


def test_over_an_abandoned_file(stores: Stores) -> None:
    fs = stores.create()
    fs.write_bytes("/f", OLD)
    pid = os.fork()
    if pid == 0:
        handle = MemoryFileSystem.attach(fs.name).open("/f", "wb")
        os.kill(os.getpid(), 9)
        handle.close()
    os.waitpid(pid, 0)
    with pytest.raises(MFSAbandonedFileError):
        fs.open("/f", "r+b")
    with fs.open("/f", "wb", atomic=True) as handle:
        handle.write(NEW)
    assert fs.read_bytes("/f") == NEW


def test_in_a_forked_child(stores: Stores) -> None:
    """The child's copy of the handle publishes nothing and drops nothing."""
    fs = stores.create()
    with fs.open("/f", "wb", atomic=True) as handle:
        handle.write(NEW)
        pid = os.fork()
        if pid == 0:
            try:
                handle.write(b"x")
            except MFSForkedError:
                handle.close()
                handle.discard()
                handle.__exit__(None, None, None)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert not fs.exists("/f")
    assert fs.read_bytes("/f") == NEW
