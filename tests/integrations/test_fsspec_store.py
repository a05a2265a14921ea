"""What dshm:// promises beyond fsspec's own tests: URLs, processes, transactions, stores that go and come."""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSFileOpenError, MFSParameterError, MFSQuotaExceededError
from dmemfs_shm.integrations.fsspec import SharedMemoryFileSystem

from ..conftest import MIB, Stores
from ..processes import Link, Task, call_in_child, child

ODD = ["/a b", "/#?&%20", "/[x]*", "/é/ü", "/dshm:/x", "/a:b@c", "/.hidden", "/-", "/~"]


@pytest.fixture
def mfs(named: MemoryFileSystem) -> MemoryFileSystem:
    return named


@pytest.fixture
def fs(mfs: MemoryFileSystem) -> Iterator[SharedMemoryFileSystem]:
    yield SharedMemoryFileSystem(store=mfs.name)
    SharedMemoryFileSystem.clear_instance_cache()


# ---- URLs


@pytest.mark.parametrize("path", ODD)
def test_url_round_trip(fs: SharedMemoryFileSystem, path: str) -> None:
    url = fs.unstrip_protocol(path)
    assert url == f"dshm://{fs.store}{path}"
    assert fs._strip_protocol(url) == SharedMemoryFileSystem._strip_protocol(url) == path
    assert SharedMemoryFileSystem._get_kwargs_from_urls(url) == {"store": fs.store}
    assert fsspec.core.url_to_fs(url) == (fs, path)
    fs.pipe_file(url, b"x")
    assert fs.mfs.read_bytes(path) == b"x"
    assert fs.info(url)["name"] == path
    assert fs.cat_file(path) == b"x"


@pytest.mark.parametrize("path", ["dshm://{}", "dshm://{}/", "/", "", "//", "/a/..", "dshm://{}/./"])
def test_root(fs: SharedMemoryFileSystem, path: str) -> None:
    assert fs._strip_protocol(path.format(fs.store)) == "/"
    assert fs.info(path.format(fs.store))["type"] == "directory"


def test_what_is_resolved(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/a//b/../c/", b"1")
    assert fs.find("/") == ["/a/c"]
    with pytest.raises(ValueError):
        fs.open("/../a")
    assert not fs.exists("/../a")


def test_another_stores_url_is_refused(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/a", b"ours")
    for use in (fs.open, fs.cat_file, fs.info, fs.rm, fs.cat, fs.glob):
        with pytest.raises(ValueError, match="is not in the store"):
            use("dshm://another/a")
    with pytest.raises(ValueError, match="is not in the store"):
        fs.pipe_file("dshm://another/a", b"theirs")
    assert fs.cat_file("/a") == b"ours"


def test_bad_arguments() -> None:
    with pytest.raises(MFSParameterError):
        SharedMemoryFileSystem(store="No Store")
    with pytest.raises(ValueError, match="max_quota"):
        SharedMemoryFileSystem(store="a", create=True)
    with pytest.raises(TypeError):
        fsspec.filesystem("dshm")


def test_create(stores: Stores) -> None:
    name = stores.name()
    options = {"create": True, "max_quota": MIB}
    with fsspec.open(f"dshm://{name}/a", "w", **options) as file:
        file.write("x")
    assert fsspec.filesystem("dshm", store=name, **options).mfs.stats()["quota_bytes"] == MIB
    assert stores.attach(name).read_bytes("/a") == b"x"
    SharedMemoryFileSystem.clear_instance_cache()


def test_between_stores(fs: SharedMemoryFileSystem, stores: Stores) -> None:
    other = stores.create()
    fs.pipe_file("/a", b"x")
    fsspec.filesystem("generic", default_method="options").copy(f"dshm://{fs.store}/a", f"dshm://{other.name}/b")
    assert other.read_bytes("/b") == b"x"


# ---- processes and threads


def read(fs: SharedMemoryFileSystem, path: str) -> bytes:
    return fs.cat_file(path)  # type: ignore[no-any-return]


def read_open_file(opened: fsspec.core.OpenFile) -> str:
    with opened as file:
        return file.read()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(fs: SharedMemoryFileSystem, method: str) -> None:
    fs.pipe_file("/a", b"x")
    assert call_in_child(method, read, fs, "/a") == b"x"
    assert call_in_child(method, read_open_file, fsspec.open(fs.unstrip_protocol("/a"), "r")) == "x"


def test_pickles_as_its_arguments(mfs: MemoryFileSystem) -> None:
    fs = SharedMemoryFileSystem(store=mfs.name, auto_mkdir=False, lock_timeout=3.0)
    pickled = pickle.dumps(fs)
    assert pickle.loads(pickled) is fs
    SharedMemoryFileSystem.clear_instance_cache()
    again = pickle.loads(pickled)
    assert again is not fs
    assert (again.store, again.auto_mkdir, again.mfs._timeout) == (mfs.name, False, 3.0)
    SharedMemoryFileSystem.clear_instance_cache()


def test_one_instance_in_many_threads(fs: SharedMemoryFileSystem) -> None:
    def work(number: int) -> bytes:
        fs.pipe_file(f"/d/{number}", b"%d" % number)
        fs.mv(f"/d/{number}", f"/e/{number}")
        return fs.cat_file(f"/e/{number}")  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(100))) == [b"%d" % number for number in range(100)]
    assert len(fs.ls("/e")) == 100


# ---- a store that goes


def test_a_store_that_goes_and_comes(fs: SharedMemoryFileSystem, mfs: MemoryFileSystem, stores: Stores) -> None:
    fs.pipe_file("/a", b"old")
    before = fs.fsid, fs.ukey("/a")
    reader = fs.open("/a")
    MemoryFileSystem.destroy(mfs.name)
    for use in (fs.ls, fs.info, fs.open, fs.cat_file):
        with pytest.raises(FileNotFoundError, match=mfs.name):
            use("/a")
    assert not fs.exists("/a")
    assert reader.read() == b"old"
    reader.close()
    again = stores.create(mfs.name)
    assert fs.ls("/") == []
    fs.pipe_file("/a", b"old")
    assert again.read_bytes("/a") == b"old"
    assert fs.fsid != before[0]
    assert fs.ukey("/a") != before[1]


# ---- streams


def test_real_streams(fs: SharedMemoryFileSystem) -> None:
    with fs.open("/a", "wb") as file:
        assert isinstance(file, io.RawIOBase)
        file.write(b"one\ntwo\nthree")
    with fs.open("/a") as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.size, file.name, file.readable(), file.seekable(), file.writable()) == (13, "/a", True, True, False)
        assert list(file) == [b"one\n", b"two\n", b"three"]
        assert (file.seek(-5, 2), file.read(2), file.tell(), file.read(), file.read(1)) == (8, b"th", 10, b"ree", b"")
        assert (file.seek(100), file.read(), file.readinto(bytearray(1))) == (100, b"", 0)
        for bad in ((-1, 0), (-101, 1), (0, 5)):
            with pytest.raises(ValueError):
                file.seek(*bad)
        file.seek(4)
        assert io.TextIOWrapper(io.BufferedReader(file)).readlines() == ["two\n", "three"]
    assert file.closed
    with pytest.raises(ValueError):
        file.read()
    with fs.open("/a", "a") as text, pytest.raises(io.UnsupportedOperation):
        text.write("!")
        text.read()
    with fs.open("/a", "r+b") as file:
        file.write(b"O")
    assert fs.cat_file("/a") == b"One\ntwo\nthree!"


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz"])
def test_compression(fs: SharedMemoryFileSystem, kind: str) -> None:
    with fs.open("/a", "wt", compression=kind) as file:
        file.write("text" * 1000)
    assert 0 < fs.size("/a") < 1000
    with fs.open("/a", "rt", compression=kind) as file:
        assert file.read() == "text" * 1000


def test_what_is_read_holds_up_nobody(fs: SharedMemoryFileSystem) -> None:
    for path in ("/a", "/b", "/c", "/d"):
        fs.pipe_file(path, b"old")
    readers = [fs.open(path) for path in ("/a", "/b", "/c", "/d")]
    fs.pipe_file("/a", b"new")
    fs.mv("/b", "/e")
    fs.rm("/c")
    with fs.open("/d", "ab") as file:
        file.write(b"er")
    assert [reader.read() for reader in readers] == [b"old"] * 4
    assert fs.cat_file("/d") == b"older"
    for reader in readers:
        reader.close()


def test_a_writer_that_fails_leaves_the_old_file(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/a", b"old")
    with pytest.raises(KeyError), fs.open("/a", "wb") as file:
        file.write(b"new")
        assert fs.cat_file("/a") == b"old"
        raise KeyError
    assert fs.cat_file("/a") == b"old"
    with pytest.raises(FileExistsError):
        fs.open("/a", "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file("/a", b"new", mode="create")


def test_ranges(fs: SharedMemoryFileSystem) -> None:
    fs.pipe({"/a": b"0123456789", "/b": b"abc"})
    assert fs.cat_ranges(["/a", "/b", "/a", "/a"], [0, 1, -3, 8], [2, None, -1, 99]) == [b"01", b"bc", b"78", b"89"]
    assert fs.cat_ranges(["/a", "/b"], 1, 2) == [b"1", b"b"]
    found = fs.cat_ranges(["/a", "/no", "/d/.."], [0, 0, 0], [1, 1, 1])
    assert found[0] == b"0"
    assert [type(each) for each in found[1:]] == [FileNotFoundError, IsADirectoryError]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["/no"], 0, 1, on_error="raise")
    with pytest.raises(ValueError):
        fs.cat_ranges(["/a", "/b"], [0], [1])
    assert fs.read_block("/a", 2, 3) == b"234"
    assert fs.read_block("/a", 1, 4, b"3") == b"456789"


# ---- looking


def test_files_directories_and_nothing(fs: SharedMemoryFileSystem) -> None:
    fs.pipe({"/d/a": b"12", "/d/e/b": b"345", "/d/e/c.csv": b""})
    assert fs.ls("/d", detail=False) == ["/d/a", "/d/e"]
    assert [each["name"] for each in fs.ls("/d/a")] == fs.find("/d/a") == ["/d/a"]
    assert fs.glob("/d/**/[bc]*") == ["/d/e/b", "/d/e/c.csv"]
    assert fs.du("/d") == 5
    assert fs.du("/d/a") == 2
    assert [where for where, _, _ in fs.walk("/d")] == ["/d", "/d/e"]
    assert (fs.isfile("/d/a"), fs.isdir("/d/a"), fs.isfile("/d"), fs.isdir("/d")) == (True, False, False, True)
    assert fs.find("/no") == fs.glob("/no/*") == list(fs.walk("/no")) == []
    for use in (fs.ls, fs.info, fs.created, fs.modified, fs.ukey, fs.rm, fs.rmdir, fs.cat):
        with pytest.raises(FileNotFoundError):
            use("/no")


def test_times_and_keys(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/a", b"1")
    created, modified, key = fs.created("/a"), fs.modified("/a"), fs.ukey("/a")
    assert created.tzinfo is not None
    assert (created.timestamp(), modified.timestamp()) == pytest.approx((fs.info("/a")["created"], fs.info("/a")["mtime"]))
    assert fs.ukey("/a") == key
    keys = {key}
    fs.pipe_file("/a", b"1")
    keys.add(fs.ukey("/a"))
    with fs.open("/a", "r+b") as file:
        file.write(b"2")
    keys.add(fs.ukey("/a"))
    fs.rm("/a")
    fs.pipe_file("/a", b"1")
    keys.add(fs.ukey("/a"))
    assert len(keys) == 4
    assert fs.modified("/a") > modified


# ---- names


def test_mv_is_a_rename(fs: SharedMemoryFileSystem) -> None:
    fs.pipe({"/a": b"1", "/d/x/y": b"2", "/b": b"old"})
    made = {path: fs.info(path)["created"] for path in ("/a", "/d", "/d/x/y")}
    fs.mv("/a", "/new/place")
    fs.mv("/d", "/e")
    fs.mv("/e", "/new", recursive=True)
    assert fs.info("/new/place")["created"] == made["/a"]
    assert fs.info("/new/e")["created"] == made["/d"]
    assert fs.info("/new/e/x/y")["created"] == made["/d/x/y"]
    fs.mv("/new/place", "/b")
    assert fs.cat_file("/b") == b"1"
    assert fs.find("/") == ["/b", "/new/e/x/y"]
    fs.pipe({"/p1": b"", "/p2": b"", "/[p]": b"literally"})
    fs.mv("/[p]", "/q")
    assert fs.cat_file("/q") == b"literally"
    fs.mv("/p*", "/new/")
    assert fs.find("/new") == ["/new/e/x/y", "/new/p1", "/new/p2"]
    with pytest.raises(FileNotFoundError):
        fs.mv("/no", "/z")


def test_mv_between_quotas(fs: SharedMemoryFileSystem, mfs: MemoryFileSystem) -> None:
    mfs.mkdir("/q")
    mfs.set_quota("/q", 8192)
    fs.pipe({"/a": b"1", "/b": b"2", "/d/c": b"3"})
    fs.mv("/a", "/q/a")
    fs.mv("/b", "/q/a")
    fs.mv("/d", "/q/d")
    assert fs.cat(["/q/a", "/q/d/c"]) == {"/q/a": b"2", "/q/d/c": b"3"}
    assert fs.find("/") == ["/q/a", "/q/d/c"]


def test_rm(fs: SharedMemoryFileSystem) -> None:
    fs.pipe({"/d/a": b"", "/d/e/b": b"", "/f": b"", "/g/h": b""})
    for use in (fs.rmdir, fs.rm):
        with pytest.raises(OSError) as caught:
            use("/d")
        assert caught.value.errno == errno.ENOTEMPTY
    fs.rm("/d/**", recursive=True)
    assert fs.find("/", withdirs=True) == ["/", "/f", "/g", "/g/h"]
    fs.mkdir("/k/l")
    fs.rmdir("/k/l")
    with pytest.raises(NotADirectoryError):
        fs.rmdir("/f")
    fs.rm(["/f", "/k"])
    fs.pipe_file("/f", b"")
    fs.rm("/", recursive=True)
    assert fs.ls("/") == []


def tidy(link: Link, fs: SharedMemoryFileSystem) -> None:
    link.send("ready")
    while True:
        with contextlib.suppress(OSError):
            fs.rmdir("/d")


def test_rmdir_takes_no_file_with_it(fs: SharedMemoryFileSystem) -> None:
    with child("spawn", tidy, fs) as running:
        assert running.receive() == "ready"
        for _ in range(2000):
            with contextlib.suppress(FileNotFoundError):  # the directory went between making it and writing in it
                fs.pipe_file("/d/a", b"1")
                assert fs.exists("/d/a")
                fs.mfs.remove("/d/a")
        running.kill()


def test_touch(fs: SharedMemoryFileSystem) -> None:
    fs.touch("/d/a", truncate=False)
    fs.pipe_file("/d/a", b"1")
    with pytest.raises(NotImplementedError):
        fs.touch("/d/a", truncate=False)
    assert fs.cat_file("/d/a") == b"1"
    fs.touch("/d/a")
    assert fs.size("/d/a") == 0


def test_without_auto_mkdir(mfs: MemoryFileSystem) -> None:
    fs = SharedMemoryFileSystem(store=mfs.name, auto_mkdir=False)
    for write in (lambda: fs.open("/d/a", "wb"), lambda: fs.pipe_file("/d/a", b""), lambda: fs.open("/d/a", "ab")):
        with pytest.raises(FileNotFoundError):
            write()
    with pytest.raises(FileNotFoundError):
        fs.mkdir("/d/e", create_parents=False)
    with fs.transaction, pytest.raises(FileNotFoundError):
        fs.open("/d/a", "wb")
    assert fs.ls("/") == []
    SharedMemoryFileSystem.clear_instance_cache()


# ---- transactions


def test_a_transaction_publishes_at_its_end(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/d/a", b"old")
    with fs.transaction:
        fs.pipe_file("/d/a", b"1")
        with fs.open("/d/b", "w") as text:
            text.write("2")
        with fs.open("/d/c.gz", "w", compression="gzip") as text:
            text.write("3")
        assert fs.cat_file("/d/a") == b"old"
        assert fs.find("/") == ["/d/a"]
        with fs.open("/d/a") as reader:
            assert reader.read() == b"old"
        for mode in ("ab", "r+b", "xb"):
            with pytest.raises(io.UnsupportedOperation):
                fs.open("/d/a", mode)
        with pytest.raises(IsADirectoryError):
            fs.open("/d", "wb")
    assert fs.cat(["/d/a", "/d/b"]) == {"/d/a": b"1", "/d/b": b"2"}
    with fs.open("/d/c.gz", "r", compression="gzip") as text:
        assert text.read() == "3"
    fs.pipe_file("/d/a", b"at once again")
    assert fs.cat_file("/d/a") == b"at once again"


def test_a_transaction_of_one(fs: SharedMemoryFileSystem) -> None:
    fs.pipe_file("/a", b"old")
    with fs.open("/a", lock_timeout=1) as reader:
        with fs.transaction:
            fs.pipe_file("/a", b"new")
        assert reader.read() == b"old"
    assert fs.cat_file("/a") == b"new"
    file = fs.open("/a", "wb", autocommit=False)
    file.write(b"by itself")
    file.close()
    assert fs.cat_file("/a") == b"new"
    file.commit()
    assert fs.cat_file("/a") == b"by itself"


def fill(fs: SharedMemoryFileSystem) -> None:
    fs.pipe({"/a": b"new", "/b": b"new"})


def test_a_transaction_publishes_all_or_nothing(fs: SharedMemoryFileSystem, mfs: MemoryFileSystem) -> None:
    with pytest.raises(KeyError), fs.transaction:
        fill(fs)
        raise KeyError
    with pytest.raises(IsADirectoryError), fs.transaction:
        fill(fs)
        mfs.mkdir("/b")
    with pytest.raises(MFSQuotaExceededError), fs.transaction:
        fs.pipe({"/c": b"small", "/d": bytes(mfs.stats()["quota_bytes"])})
    assert fs.find("/") == []
    assert not fs._intrans


def test_a_transaction_waits_for_the_files_to_be_closed(fs: SharedMemoryFileSystem, mfs: MemoryFileSystem) -> None:
    mfs.write_bytes("/a", b"old")
    opened, closes = threading.Event(), threading.Event()

    def hold() -> None:
        with mfs.open("/a", "rb"):
            opened.set()
            assert closes.wait(60)

    holder = Task(hold)
    assert opened.wait(60)
    impatient = SharedMemoryFileSystem(store=mfs.name, lock_timeout=0.0)
    with pytest.raises(MFSFileOpenError), impatient.transaction:
        fill(impatient)
    assert fs.find("/") == ["/a"]

    def write() -> None:
        with fs.transaction:
            fill(fs)

    writer = Task(write)
    while not any(lock.state == "waiting" for lock in mfs.locks()):
        assert not writer.done
    closes.set()
    writer.result()
    holder.result()
    assert fs.cat(["/a", "/b"]) == {"/a": b"new", "/b": b"new"}
