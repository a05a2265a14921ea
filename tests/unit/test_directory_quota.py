"""Quotas of directories: what is charged to which, what is refused, and what outlives what.

That the figures are exact whatever is done is shown in `tests/property/test_quota_model.py`; that no death changes that, in
`tests/crash` (the operations called quota-...). Here: each rule that a user is told, and each refusal.
"""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from dmemfs_shm import (
    DirectoryQuotaInfo,
    MemoryFileSystem,
    MFSDirectoryQuotaError,
    MFSFileOpenError,
    MFSQuotaExceededError,
)
from dmemfs_shm.store import layout

PER_FILE = 128
KIB = 1 << 10
BIG = 100 * KIB


@pytest.fixture
def fs() -> Iterator[MemoryFileSystem]:
    fs = MemoryFileSystem(1 << 20, default_lock_timeout=1.0)
    yield fs
    assert fs.check() == []
    fs.close()


def quotas(fs: MemoryFileSystem) -> dict[str | None, tuple[int, int]]:
    """(limit, used) by path."""
    return {quota.path: (quota.limit, quota.used) for quota in fs.info()["directory_quotas"]}


def limited(fs: MemoryFileSystem, path: str, limit: int) -> None:
    fs.mkdir(path)
    fs.set_quota(path, limit)


# ---- what is refused


def test_a_write_that_would_pass_it_changes_nothing(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 1000)
    fs.write_bytes("/a/f", bytes(500))
    with fs.open("/a/f", "r+b") as handle, pytest.raises(MFSDirectoryQuotaError) as caught:
        handle.write(bytes(2000))
    assert (caught.value.path, caught.value.requested, caught.value.available) == ("/a", 1536, 1000 - 640)
    assert caught.value.errno == errno.EDQUOT
    assert isinstance(caught.value, MFSQuotaExceededError)
    assert str(caught.value) == "MFS quota of '/a' exceeded: requested 1536 bytes, only 360 bytes available."
    assert fs.read_bytes("/a/f") == bytes(500)
    assert quotas(fs) == {"/a": (1000, 640)}


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(MFSDirectoryQuotaError("/a", 5, 3)))
    assert (error.path, error.requested, error.available, error.errno) == ("/a", 5, 3, errno.EDQUOT)


@pytest.mark.parametrize("size", [2000, BIG])
@pytest.mark.parametrize("how", ["write", "write_bytes", "preallocate", "truncate", "copy", "copy_tree"])
def test_every_way_to_grow_is_held_to_it(fs: MemoryFileSystem, how: str, size: int) -> None:
    limited(fs, "/a", 1500)
    fs.mkdir("/s")
    fs.write_bytes("/s/f", bytes(size))
    before = fs.stats()["used_bytes"]
    with pytest.raises(MFSDirectoryQuotaError):
        if how == "write":
            with fs.open("/a/f", "wb") as handle:
                handle.write(bytes(size))
        elif how == "write_bytes":
            fs.write_bytes("/a/f", bytes(size))
        elif how == "preallocate":
            fs.open("/a/f", "wb", preallocate=size)
        elif how == "truncate":
            with fs.open("/a/f", "wb") as handle:
                handle.truncate(size)
        elif how == "copy":
            fs.copy("/s/f", "/a/f")
        else:
            fs.copy_tree("/s", "/a/s")
    assert quotas(fs) == {"/a": (1500, 0)}
    assert fs.stats()["used_bytes"] == before


def test_the_quota_of_the_store_counts_beside_it() -> None:
    fs = MemoryFileSystem(1000)
    limited(fs, "/a", 5000)
    with pytest.raises(MFSQuotaExceededError) as caught:
        fs.write_bytes("/a/f", bytes(2000))
    assert type(caught.value) is MFSQuotaExceededError
    fs.close()


# ---- giving, changing, taking


def test_who_can_have_one(fs: MemoryFileSystem) -> None:
    fs.mkdir("/a/b")
    fs.write_bytes("/f", b"x")
    for path, kind in ("/none", FileNotFoundError), ("/f", NotADirectoryError), ("/", ValueError):
        with pytest.raises(kind):
            fs.set_quota(path, 1000)
    for limit, kind in (-1, ValueError), (True, TypeError), (1.5, TypeError):
        with pytest.raises(kind):
            fs.set_quota("/a/b", limit)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Only an empty directory") as caught:
        fs.set_quota("/a", 1000)
    assert caught.value.errno == errno.ENOTEMPTY
    assert quotas(fs) == {}


def test_the_limit_changes_at_any_time(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 1000)
    fs.write_bytes("/a/f", bytes(500))
    fs.set_quota("/a", 5000)
    fs.write_bytes("/a/g", bytes(2000))
    fs.set_quota("/a", 100)
    assert fs.info()["directory_quotas"] == [DirectoryQuotaInfo("/a", 100, 640 + 2176)]
    assert fs.info()["directory_quotas"][0].free == 0
    with pytest.raises(MFSDirectoryQuotaError) as caught:
        fs.write_bytes("/a/h", b"x")
    assert caught.value.available == 0
    with fs.open("/a/g", "r+b") as handle:  # in place, and less: nothing is charged
        handle.write(bytes(100))
        handle.truncate(50)
    assert quotas(fs) == {"/a": (100, 640 + 384)}


def test_it_is_taken_from_an_empty_directory(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 1000)
    fs.write_bytes("/a/f", b"x")
    with pytest.raises(OSError, match="Only an empty directory"):
        fs.set_quota("/a", None)
    fs.remove("/a/f")
    fs.set_quota("/a", None)
    fs.set_quota("/a", None)
    fs.write_bytes("/a/f", bytes(5000))
    assert quotas(fs) == {}


def test_a_limit_of_nothing_allows_empty_files(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 0)
    fs.mkdir("/a/b")
    fs.write_bytes("/a/b/f", b"")
    with pytest.raises(MFSDirectoryQuotaError):
        fs.write_bytes("/a/b/f", b"x")


# ---- who belongs to which


def test_only_the_nearest_counts(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 3000)
    limited(fs, "/a/b", 1000)
    fs.mkdir("/a/b/c/d")
    fs.write_bytes("/a/f", bytes(256))
    fs.write_bytes("/a/b/c/d/f", bytes(512))
    assert quotas(fs) == {"/a": (3000, 256 + PER_FILE), "/a/b": (1000, 512 + PER_FILE)}
    fs.rmtree("/a/b")
    assert quotas(fs) == {"/a": (3000, 256 + PER_FILE)}


def test_a_quota_that_is_taken_leaves_the_outer_one(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 3000)
    limited(fs, "/a/b", 1000)
    fs.set_quota("/a/b", None)
    fs.write_bytes("/a/b/f", bytes(256))
    assert quotas(fs) == {"/a": (3000, 256 + PER_FILE)}


def test_rename_and_replace_do_not_cross(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 3000)
    limited(fs, "/b", 3000)
    fs.write_bytes("/a/f", bytes(256))
    fs.mkdir("/a/d")
    for src, dst in ("/a/f", "/f"), ("/a/f", "/b/f"), ("/a/d", "/d"), ("/a/d", "/b/d"):
        with pytest.raises(OSError, match="quota counts there") as caught:
            fs.rename(src, dst)
        assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EXDEV, src, dst)
    with pytest.raises(OSError, match="quota counts there"):
        fs.replace("/a/f", "/b/f")
    fs.rename("/a/f", "/a/d/f")
    fs.replace("/a/d/f", "/a/g")
    assert quotas(fs) == {"/a": (3000, 384), "/b": (3000, 0)}


def test_a_directory_with_one_goes_anywhere(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 3000)
    limited(fs, "/b", 1000)
    fs.write_bytes("/b/f", bytes(256))
    fs.rename("/b", "/a/b")
    assert quotas(fs) == {"/a": (3000, 0), "/a/b": (1000, 384)}
    fs.move("/a/b", "/c/d")
    assert quotas(fs) == {"/a": (3000, 0), "/c/d": (1000, 384)}
    with pytest.raises(MFSDirectoryQuotaError, match="'/c/d'"):
        fs.write_bytes("/c/d/g", bytes(1000))


# ---- move


def test_a_file_moves_across(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 3000)
    limited(fs, "/b", 1000)
    fs.write_bytes("/a/f", bytes(300))
    stat = fs.stat("/a/f")
    view = fs.view("/a/f")
    fs.move("/a/f", "/b/c/f")
    assert fs.stat("/b/c/f") == stat
    assert quotas(fs) == {"/a": (3000, 0), "/b": (1000, 640)}
    fs.write_bytes("/b/c/f", b"")
    assert quotas(fs) == {"/a": (3000, 0), "/b": (1000, 640)}, "the view has it"
    del view
    assert quotas(fs) == {"/a": (3000, 0), "/b": (1000, 0)}


def test_a_move_that_has_no_room_moves_nothing(fs: MemoryFileSystem) -> None:
    limited(fs, "/b", 1000)
    fs.mkdir("/d/e")
    for path in "/f", "/d/e/f":
        fs.write_bytes(path, bytes(1000))
    for src in "/f", "/d":
        with pytest.raises(MFSDirectoryQuotaError):
            fs.move(src, "/b/c/x")
    assert fs.listdir("/b") == []
    assert fs.read_bytes("/f") == fs.read_bytes("/d/e/f") == bytes(1000)
    assert quotas(fs) == {"/b": (1000, 0)}


def test_a_directory_moves_across(fs: MemoryFileSystem) -> None:
    limited(fs, "/b", 500_000)
    fs.mkdir("/d/e")
    for path, size in ("/d/f", 300), ("/d/e/g", BIG), ("/d/e/h", 0):
        fs.write_bytes(path, bytes(size))
    used = fs.stats()["used_bytes"]
    before = {path: fs.stat(f"/d{path}") for path in ("", "/e", "/f", "/e/g", "/e/h")}
    fs.move("/d", "/b/c/d")
    assert {path: fs.stat(f"/b/c/d{path}") for path in before} == before
    assert not fs.exists("/d")
    assert quotas(fs) == {"/b": (500_000, used)}
    assert fs.stats()["used_bytes"] == used
    fs.move("/b/c/d", "/d")
    assert quotas(fs) == {"/b": (500_000, 0)}


def test_a_directory_does_not_move_while_something_in_it_is_open(fs: MemoryFileSystem) -> None:
    limited(fs, "/b", 500_000)
    fs.mkdir("/d")
    with fs.open("/d/f", "wb"), pytest.raises(MFSFileOpenError):
        fs.move("/d", "/b/d")
    with fs.open("/d/f"), pytest.raises(MFSFileOpenError):
        fs.move("/d", "/b/d")
    assert fs.listdir("/b") == []


def test_a_directory_with_one_in_it_does_not_lose_it_by_a_move(fs: MemoryFileSystem) -> None:
    limited(fs, "/b", 500_000)
    limited(fs, "/d/q", 1000)
    with pytest.raises(OSError, match="of its own") as caught:
        fs.move("/d", "/b/d")
    assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, "/d/q")
    assert quotas(fs) == {"/b": (500_000, 0), "/d/q": (1000, 0)}


@pytest.mark.parametrize("change", ["write", "create", "remove", "rename", "mkdir", "append"])
def test_what_changes_while_it_is_copied_is_not_lost(fs: MemoryFileSystem, change: str) -> None:
    """It is noticed in the end, and all is copied again."""
    limited(fs, "/b", 500_000)
    fs.mkdir("/d/e")
    fs.write_bytes("/d/f", b"old")
    fs.write_bytes("/d/e/g", b"old")
    grafts: Any = fs._store.grafts  # type: ignore[union-attr]
    copying, calls = grafts._copy_children, []

    def append() -> None:
        with fs.open("/d/f", "ab") as handle:
            handle.write(b"er")

    changes = {
        "write": lambda: fs.write_bytes("/d/e/g", b"new"),
        "create": lambda: fs.write_bytes("/d/n", b"new"),
        "remove": lambda: fs.remove("/d/e/g"),
        "rename": lambda: fs.rename("/d/f", "/d/e/f"),
        "mkdir": lambda: fs.mkdir("/d/n"),
        "append": append,
    }

    def copy_children(*args: Any) -> None:
        copying(*args)
        calls.append(1)
        if len(calls) == 1:
            changes[change]()

    grafts._copy_children = copy_children
    wanted: dict[str, dict[str, bytes]] = {
        "write": {"/b/d/f": b"old", "/b/d/e/g": b"new"},
        "create": {"/b/d/f": b"old", "/b/d/e/g": b"old", "/b/d/n": b"new"},
        "remove": {"/b/d/f": b"old"},
        "rename": {"/b/d/e/f": b"old", "/b/d/e/g": b"old"},
        "mkdir": {"/b/d/f": b"old", "/b/d/e/g": b"old"},
        "append": {"/b/d/f": b"older", "/b/d/e/g": b"old"},
    }
    fs.move("/d", "/b/d")
    assert len(calls) == 2
    found = {f"{folder}/{name}": fs.read_bytes(f"{folder}/{name}") for folder, _, files in fs.walk("/b") for name in files}
    assert found == wanted[change]
    assert fs.exists("/b/d/n") == (change in ("create", "mkdir"))
    assert quotas(fs) == {"/b": (500_000, 384 * len(found))}


# ---- what outlives what


def test_what_a_reader_has_of_a_replaced_file_is_charged(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 1000)
    fs.write_bytes("/a/f", bytes(256))
    with fs.open("/a/f") as handle:
        fs.write_bytes("/a/f", bytes(100))
        assert quotas(fs) == {"/a": (1000, 2 * 384)}
        with pytest.raises(MFSDirectoryQuotaError):
            fs.write_bytes("/a/g", bytes(1))
        assert handle.read() == bytes(256)
    assert quotas(fs) == {"/a": (1000, 384)}


@pytest.mark.parametrize("size", [300, BIG])
def test_content_outlives_its_directory(fs: MemoryFileSystem, size: int) -> None:
    limited(fs, "/a", 200_000)
    fs.write_bytes("/a/f", bytes(size))
    used = fs.stats()["used_bytes"]
    view = fs.view("/a/f")
    fs.rmtree("/a")
    limited(fs, "/a", 1000)  # another one
    assert quotas(fs) == {None: (200_000, used), "/a": (1000, 0)}
    assert fs.check() == []
    assert view == bytes(size)
    del view
    assert quotas(fs) == {"/a": (1000, 0)}


def test_content_outlives_the_quota(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 1000)
    fs.write_bytes("/a/f", bytes(300))
    view = fs.view("/a/f")
    fs.remove("/a/f")
    fs.set_quota("/a", None)
    assert quotas(fs) == {None: (1000, 640)}
    fs.write_bytes("/a/f", bytes(5000))
    del view
    assert quotas(fs) == {}


def test_a_copy_under_way_keeps_the_account(fs: MemoryFileSystem) -> None:
    """The directory loses its quota while something is copied there: the copy is made again, and charged to nobody."""
    limited(fs, "/a", 500_000)
    fs.mkdir("/d")
    fs.write_bytes("/d/f", bytes(300))
    grafts: Any = fs._store.grafts  # type: ignore[union-attr]
    copying, calls = grafts._copy_children, []

    def copy_children(*args: Any) -> None:
        if not calls:
            fs.set_quota("/a", None)
            assert fs.check() == []
        calls.append(1)
        copying(*args)

    grafts._copy_children = copy_children
    fs.copy_tree("/d", "/a/d")
    assert len(calls) == 2
    assert quotas(fs) == {}
    assert fs.read_bytes("/a/d/f") == bytes(300)


def test_a_large_write_goes_to_the_directory_that_stands_in_the_end(fs: MemoryFileSystem) -> None:
    """Its content was charged to one that was removed meanwhile, and then to another one of the same name."""
    limited(fs, "/a", 200_000)
    placement: Any = fs._store.placement  # type: ignore[union-attr]
    stash = placement.stash

    def and_then(*args: Any, **options: Any) -> None:
        stash(*args, **options)
        del placement.stash
        fs.rmtree("/a")
        limited(fs, "/a", limit)

    for limit in 300_000, 1000:
        placement.stash = and_then
        with pytest.raises(MFSDirectoryQuotaError) if limit == 1000 else contextlib.nullcontext():
            fs.write_bytes("/a/f", bytes(BIG))
        assert quotas(fs) == {"/a": (limit, BIG + PER_FILE if limit != 1000 else 0)}
    assert fs.listdir("/a") == []


# ---- what is prepared before it has its place


def test_an_import_is_charged_where_it_goes(fs: MemoryFileSystem) -> None:
    """To the quotas of directories that stand, and of those within them that stand; the rest to the nearest above."""
    limited(fs, "/a", 10_000)
    fs.mkdir("/a/plain")
    fs.mkdir("/b")
    limited(fs, "/b/c", 2000)
    files = {"/a/plain/f": 300, "/a/new/g": 600, "/b/c/h": 100, "/b/new/i": 5000, "/j": 5000}
    fs.import_tree({path: bytes(size) for path, size in files.items()})
    assert quotas(fs) == {"/a": (10_000, 512 + 768 + 2 * PER_FILE), "/b/c": (2000, 256 + PER_FILE)}
    assert fs.check() == []
    fs.write_bytes("/a/new/g", b"")
    assert quotas(fs)["/a"] == (10_000, 512 + PER_FILE)


def test_an_import_that_passes_a_quota_leaves_nothing(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 2000)
    used = fs.stats()["used_bytes"]
    for size in 5000, BIG:
        with pytest.raises(MFSDirectoryQuotaError) as caught:
            fs.import_tree({"/x": b"x", "/a/d/f": bytes(size)})
        assert caught.value.path == "/a"
        assert fs.stats()["used_bytes"] == used
        assert quotas(fs) == {"/a": (2000, 0)}
        assert fs.listdir("/") == ["a"]


@pytest.mark.parametrize("change", ["given", "taken", "changed"])
def test_an_import_goes_to_what_stands_in_the_end(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Another quota counts there when it is to be published: it is prepared again."""
    from dmemfs_shm.store import graft

    fs.mkdir("/a")
    if change != "given":
        fs.set_quota("/a", 500_000)
    prepare, calls = graft._Import.prepare, []

    def prepared(*args: Any) -> None:
        prepare(*args)
        calls.append(1)
        if len(calls) == 1:
            fs.rmtree("/a")
            fs.mkdir("/a")
            if change != "taken":
                fs.set_quota("/a", 400_000)
            assert fs.check() == []

    monkeypatch.setattr(graft._Import, "prepare", prepared)
    fs.import_tree({"/a/d/f": bytes(300), "/a/g": bytes(BIG)})
    assert len(calls) == 2
    charge = 512 + BIG + 2 * PER_FILE
    assert quotas(fs) == ({} if change == "taken" else {"/a": (400_000, charge)})
    assert fs.stats()["used_bytes"] == charge


def test_an_account_that_is_left_is_not_used_for_another(fs: MemoryFileSystem) -> None:
    """While something is being prepared that was to be charged to it, it stays, and nobody sees it; then it goes."""
    limited(fs, "/a", 5000)
    store: Any = fs._store
    handle = fs.open("/a/f", "wb", atomic=True)
    fs.rmtree("/a")
    assert quotas(fs) == {}
    limited(fs, "/b", 6000)
    handle.write(b"x")
    assert quotas(fs) == {None: (5000, 256 + PER_FILE), "/b": (6000, 0)}
    handle.discard()
    assert quotas(fs) == {"/b": (6000, 0)}
    assert len(store.content.ring(layout.QUOTAS)) == 2, "it was in use until now"
    limited(fs, "/c", 7000)
    assert len(store.content.ring(layout.QUOTAS)) == 2, "it was freed when the next was given"
    assert quotas(fs) == {"/b": (6000, 0), "/c": (7000, 0)}
    fs.rmtree("/b")
    assert len(store.content.ring(layout.QUOTAS)) == 1, "it is freed at once"


def test_what_is_published_is_charged_where_it_goes(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 5000)
    with fs.open("/a/f", "wb", atomic=True) as handle:
        handle.write(bytes(1000))
        assert quotas(fs) == {"/a": (5000, 1024 + PER_FILE)}
        with pytest.raises(MFSDirectoryQuotaError):
            handle.write(bytes(9000))
    assert quotas(fs) == {"/a": (5000, 1024 + PER_FILE)}
    handle = fs.open("/a/g", "wb", atomic=True)
    handle.write(bytes(1000))
    fs.rmtree("/a")
    limited(fs, "/a", 500)
    with pytest.raises(MFSDirectoryQuotaError):
        handle.close()
    assert quotas(fs) == {"/a": (500, 0)}
    assert fs.listdir("/a") == []
    assert fs.stats()["used_bytes"] == 0


def test_a_snapshot_has_no_quotas(fs: MemoryFileSystem) -> None:
    limited(fs, "/a", 5000)
    fs.write_bytes("/a/f", bytes(300))
    stream = io.BytesIO()
    fs.snapshot(stream)
    fs.rmtree("/a")
    stream.seek(0)
    fs.restore(stream)
    assert fs.read_bytes("/a/f") == bytes(300)
    assert quotas(fs) == {}


def test_a_check_sees_what_is_wrong(fs: MemoryFileSystem) -> None:
    from dmemfs_shm.store.layout import N_PIN, Q_DIRECTORY, Q_USED, QUOTAS

    limited(fs, "/a", 5000)
    fs.write_bytes("/a/f", bytes(300))
    store: Any = fs._store
    account = store.names.at(store.w[QUOTAS])
    file = store.names.at(store.names.files["/a/f"][0] if "/a/f" in store.names.files else store.tree.look_up([b"a", b"f"])[0])
    for word, value, text in (
        (account + Q_USED, 641, "bytes on account"),
        (account + Q_DIRECTORY, 0, "its directory of"),
        (file + N_PIN, 0, "its directory of"),
    ):
        before, store.w[word] = store.w[word], value
        assert any(text in finding for finding in fs.check()), text
        store.w[word] = before


def test_a_handle_is_told(fs: MemoryFileSystem) -> None:
    """A text wrapper's flush passes the error on."""
    limited(fs, "/a", 500)
    raw = fs.open("/a/f", "wb")
    text = io.TextIOWrapper(io.BufferedWriter(raw))
    text.write("x" * 2000)
    with pytest.raises(MFSDirectoryQuotaError):
        text.flush()
    with pytest.raises(MFSDirectoryQuotaError):
        text.close()
