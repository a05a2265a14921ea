"""import_tree beyond D-MemFS: among many processes all of it or nothing, also when the importer dies half way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import (
    MFSClosedError,
    MFSFileOpenError,
    MFSNodeLimitExceededError,
    MFSNoSpaceError,
    MFSQuotaExceededError,
    MFSReentrantCallError,
)
from dmemfs_shm.store import graft
from dmemfs_shm.store.layout import DRAFTED, INTENT, NAMESPACE

from ..conftest import Stores
from ..processes import Link, Task, child, held_open


def tree_of(count: int, generation: int = 0, size: int = 300) -> dict[str, bytes]:
    """Files in many directories, of which /there/* may stand, some of them without slots."""
    data = bytes([generation]) * size
    return {f"/{'there' if i % 3 else 'new'}/{i % 7}/{i}": data * (20 if i % 50 == 0 else 1) for i in range(count)}


def contents(fs: MemoryFileSystem) -> dict[str, bytes]:
    return {f"{top.rstrip('/')}/{name}": fs.read_bytes(f"{top}/{name}") for top, _, files in fs.walk() for name in files}


def test_thousands_of_files(stores: Stores) -> None:
    """Twice, new ones and over those; the second time with others."""
    fs = stores.private(max_quota=64 << 20)
    first, second = tree_of(5000), tree_of(5000, 1, 700) | {"/there/0/more": b"x", "/top": b"y"}
    fs.mkdir("/there/0")
    fs.import_tree(first)
    assert contents(fs) == first
    assert fs.check() == []
    fs.import_tree(second)
    assert contents(fs) == second
    assert fs.check() == []
    assert [fs.info()["orphaned"], fs.stats()["file_count"], fs.stats()["dir_count"]] == [0, 5002, 17]
    fs.rmtree("/there")
    fs.rmtree("/new")
    fs.remove("/top")
    assert fs.stats()["used_bytes"] == 0


def test_content_of_any_size_and_kind(fs: MemoryFileSystem) -> None:
    """What goes by a stash, what is empty, and buffers; one that the caller changes later is his own again."""
    buffer = bytearray(b"abc")
    tree = {"/large": os.urandom(500_000), "/empty": b"", "/deep/" + "/".join("abcdefgh"): memoryview(b"abcdef")[1:3]}
    fs.import_tree(tree | {"/buffer": buffer, "/" + "n" * 200 + "/" + "m" * 255: b"long"})
    buffer += b"d"
    assert fs.read_bytes("/buffer") == b"abc"
    assert fs.read_bytes("/deep/a/b/c/d/e/f/g/h") == b"bc"
    assert fs.read_bytes("/large") == tree["/large"]
    assert fs.read_bytes("/" + "n" * 200 + "/" + "m" * 255) == b"long"
    with pytest.raises(TypeError):
        fs.import_tree({"/s": "text"})
    assert not fs.exists("/s")


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        ({"/d": b""}, IsADirectoryError),
        ({"/": b""}, IsADirectoryError),
        ({"": b""}, IsADirectoryError),
        ({"/f/g": b""}, FileExistsError),
        ({"/n": b"", "/n/m": b""}, FileExistsError),
        ({"/n/m/o": b"", "/n": b""}, FileExistsError),
        ({"/d/new/x": b"", "/" + "x" * 256: b""}, OSError),
    ],
)
def test_refusals(fs: MemoryFileSystem, tree: dict[str, bytes], error: type) -> None:
    """Nothing is left of an import that can't be."""
    fs.mkdir("/d")
    fs.write_bytes("/f", b"x")
    before = fs.stats()
    for more in ({}, {"/fine/g": b"1"}):
        with pytest.raises(error):
            fs.import_tree(more | tree)
        assert [fs.stats(), contents(fs), sorted(fs.listdir("/"))] == [before, {"/f": b"x"}, ["d", "f"]]


def test_old_and_new_are_charged_until_it_is_published(stores: Stores) -> None:
    fs = stores.private(max_quota=100_000)
    fs.import_tree({"/f": bytes(60_000)})
    with pytest.raises(MFSQuotaExceededError) as caught:
        fs.import_tree({"/f": bytes(50_000)})
    assert [caught.value.requested, caught.value.available] == [53_248 + 128, fs.stats()["free_bytes"]]
    fs.import_tree({"/f": bytes(30_000)})
    assert fs.stats()["used_bytes"] == 32_768 + 128


def test_an_open_file_is_named_with_its_holders(fs: MemoryFileSystem) -> None:
    """At once, for it waits for nobody; a view is no holder, and keeps what it sees."""
    fs.write_bytes("/f", b"old")
    with fs.view("/f") as view:
        with held_open(fs, "/f", "rb"):
            started = time.monotonic()
            with pytest.raises(MFSFileOpenError) as caught:
                fs.import_tree({"/g/h": b"1", "/f": b"2"})
            assert time.monotonic() - started < 20
            assert [caught.value.path, caught.value.doing, len(caught.value.holders)] == ["/f", "import", 1]
            assert not fs.exists("/g")
        fs.import_tree({"/g/h": b"1", "/f": b"2"})
        assert bytes(view) == b"old"
        assert fs.info()["orphaned"] > 0
    del view
    assert [fs.info()["orphaned"], fs.read_bytes("/f")] == [0, b"2"]


def test_an_open_file_elsewhere_is_in_nobodys_way(fs: MemoryFileSystem) -> None:
    """Nor is one that is being removed from sight, or written out of it."""
    fs.import_tree({"/d/f": b"1", "/d/g": b"2"})
    with fs.open("/d/f", "r+b"), fs.open("/d/g", "wb", atomic=True) as handle:
        handle.write(b"atomic")
        fs.import_tree({"/d/g": b"3", "/e/f": b"4"})
        assert fs.read_bytes("/d/g") == b"3"
    assert fs.read_bytes("/d/g") == b"atomic"


def test_a_dead_holder_is_in_nobodys_way(stores: Stores) -> None:
    fs = stores.create()
    fs.write_bytes("/f", b"old")

    def die(_: Link) -> None:
        handle = MemoryFileSystem.attach(fs.name).open("/f")
        os.kill(os.getpid(), signal.SIGKILL)
        handle.close()

    with child("fork", die) as process:
        process.process.join()
    fs.import_tree({"/f": b"new"})
    assert fs.read_bytes("/f") == b"new"


def test_the_limit_of_nodes_is_for_what_is_published(stores: Stores) -> None:
    """What is being prepared is in nobody's way, and is not seen in any figure."""
    fs = stores.private(max_nodes=6)
    fs.import_tree({"/d/1": b"1", "/d/2": b"2"})
    seen: list[Any] = []
    real = graft.Grafts._commit_import

    def commit(space: Any, *args: Any) -> None:
        seen.append([fs.stats()["file_count"], fs.stats()["dir_count"], space.w[DRAFTED] >> 32])
        real(space, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graft._Import, "prepare", _then(fs, seen, lambda: fs.write_bytes("/3", b"3")))
        fs.import_tree({"/d/1": b"4", "/d/2": b"5", "/4": b"6"})
    assert seen == [[2, 2, 3]]
    assert fs.stats()["file_count"] == 4
    with pytest.raises(MFSNodeLimitExceededError):
        fs.write_bytes("/5", b"")


def _then(fs: MemoryFileSystem, seen: list[Any], more: Callable[[], object]) -> Callable[..., None]:
    real = graft._Import.prepare

    def prepare(files: graft._Import, *args: Any) -> None:
        real(files, *args)
        seen.append([fs.stats()["file_count"], fs.stats()["dir_count"], fs._store.w[DRAFTED] >> 32])
        assert fs.info()["files"] == fs.stats()["file_count"]
        assert fs.check() == []
        more()

    return prepare


def test_the_places_are_looked_at_again_in_the_end(fs: MemoryFileSystem) -> None:
    """What came in the way while the import was prepared."""
    handles: list[Any] = []
    for path, make, error in (
        ("/f", lambda: fs.mkdir("/f"), IsADirectoryError),
        ("/d/f", lambda: fs.write_bytes("/d", b""), FileExistsError),
        ("/g", lambda: handles.append(fs.open("/g", "xb")), MFSFileOpenError),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
            patch.setattr(graft._Import, "prepare", _then(fs, [], make))
            fs.import_tree({path: b"1", "/other/1": b"2"})
        assert not fs.exists("/other")
    handles.pop().close()
    assert fs.stats()["used_bytes"] == 0


def test_no_memory(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/shm is full half way: nothing is left."""
    fs = stores.private(max_quota=256 << 20)
    before = fs.stats()

    def grow(*_: Any) -> None:
        raise MFSNoSpaceError("full")

    fs.import_tree({"/f": b"x"})
    fs.remove("/f")
    monkeypatch.setattr(fs._store.arenas, "grow", grow)
    with pytest.raises(MFSNoSpaceError):
        fs.import_tree({f"/d/{number}": bytes(60_000) for number in range(2000)})
    monkeypatch.undo()
    assert fs.stats() == before
    assert fs.listdir("/") == []


def test_closed_and_reentered(stores: Stores) -> None:
    fs = stores.private()

    def again(*_: Any) -> None:
        fs.import_tree({"/g": b""})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MFSReentrantCallError):
        patch.setattr(graft._Import, "prepare", again)
        fs.import_tree({"/f": b""})
    fs.import_tree({"/f": b""})
    assert fs.listdir("/") == ["f"]
    fs.close()
    for tree in ({}, {"/f": b""}):
        with pytest.raises(MFSClosedError):
            fs.import_tree(tree)


# ---- the intent: committed, and not yet in its place


LATER = tree_of(300, 1) | {f"/there/1/more{number}": b"\1" for number in range(5)}


def _die_after(moves: int) -> Callable[[Link, str], None]:
    def die(_: Link, name: str) -> None:
        fs = MemoryFileSystem.attach(name)
        real, count = graft.Grafts._take_to, [0]

        def take_to(space: graft.Grafts, *args: Any) -> None:
            if count[0] == moves:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            real(space, *args)

        graft.Grafts._take_to = take_to  # type: ignore[method-assign]
        fs.import_tree(LATER)

    return die


LOOKS: dict[str, Callable[[MemoryFileSystem], object]] = {
    "exists": lambda fs: fs.exists("/there/1/8"),
    "exists not yet": lambda fs: fs.exists("/new/0/0"),
    "read": lambda fs: fs.read_bytes("/there/1/1"),
    "entries of one that is known": lambda fs: sorted(
        entry.name for entry in fs._store.listing.entries_of(*fs._store.names.directories["/there/1"][:2], 0.0)
    ),
    "listdir": lambda fs: fs.listdir("/there/1"),
    "stat": lambda fs: fs.stat("/there/1/1"),
    "stats": lambda fs: fs.stats(),
    "walk": lambda fs: list(fs.walk()),
    "write": lambda fs: fs.write_bytes("/there/1/1", b"after"),
    "remove": lambda fs: fs.remove("/there/1/1"),
    "rename": lambda fs: fs.rename("/there/1", "/renamed"),
    "rmtree": lambda fs: fs.rmtree("/there"),
    "import": lambda fs: fs.import_tree({"/there/1/1": b"again"}),
    "check": lambda fs: fs.check(),
}


@pytest.mark.parametrize("moves", [0, 1, 150])
@pytest.mark.parametrize("look", LOOKS)
def test_whoever_comes_next_ends_it(stores: Stores, look: str, moves: int) -> None:
    """The importer is killed when some entries are in their places. Any look at the store finds all of them there."""
    fs, other = stores.create(), stores.create()
    stand = {path: data for path, data in tree_of(300).items() if path.startswith("/there")}
    for each in fs, other:
        each.import_tree(stand)
        each.stat("/there/1/1")  # it is in the cache of paths
        each.stat("/there/1")
    with child("fork", _die_after(moves), fs.name) as process:
        process.process.join()
    w = fs._store.w
    assert [w[NAMESPACE] & 1, bool(w[INTENT])] == [1, True]
    other.import_tree(LATER)
    results = [LOOKS[look](each) for each in (fs, other)]
    if look == "stat":
        results = [result["generation"] for result in results]
    if look in ("listdir", "walk"):
        results = [sorted(map(str, result)) for result in results] if look == "listdir" else [len(result) for result in results]
    assert results[0] == results[1]
    assert contents(fs) == contents(other)
    assert [fs.stats(), fs.check(), w[INTENT]] == [other.stats(), [], 0]


def test_it_is_ended_in_parts(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get their turn between two visits, and take part."""
    monkeypatch.setattr(graft, "MOVED_A_VISIT", 3)
    fs = stores.private()
    fs.mkdir("/" + "/".join("abcdefghijkl"))
    tree = tree_of(100) | {"/" + "/".join("abcdefghijkl") + f"/{number}": b"x" for number in range(10)}
    fs.import_tree(tree)
    assert contents(fs) == tree
    assert fs.check() == []


def _import_in_turn(link: Link, name: str, count: int) -> None:
    fs = MemoryFileSystem.attach(name)
    for generation in range(count):
        while True:
            try:
                fs.import_tree(tree_of(120, generation))
                break
            except MFSFileOpenError:  # which the other one is reading: it is not waited for
                continue
    link.send("done")


def test_others_see_none_or_all(stores: Stores) -> None:
    """While one process imports again and again, nobody ever finds two files of different imports in one look at a directory
    and its figures, nor an older one after a newer one."""
    fs = stores.create()
    fs.import_tree(tree_of(120))
    files = fs.stats()["file_count"], fs.stats()["dir_count"]
    over = threading.Event()

    def watch() -> int:
        looks, last = 0, 0
        paths = sorted(tree_of(120))
        while not over.is_set():
            for path in paths[looks % 7 :: 7]:
                try:
                    data = fs.read_bytes(path)
                except FileNotFoundError:
                    raise AssertionError(f"{path} is not there") from None
                assert set(data) == {data[0]}
                assert data[0] >= last, f"{path} is older than what was seen before"
                last = data[0]
            assert len(fs.listdir("/there/1")) == len([path for path in paths if path.startswith("/there/1/")])
            assert (fs.stats()["file_count"], fs.stats()["dir_count"]) == files
            looks += 1
        return looks

    with child("spawn", _import_in_turn, fs.name, 40) as process:
        watching = Task(watch)
        assert process.receive() == "done"
        over.set()
        assert watching.result() > 0
    assert fs.check() == []
