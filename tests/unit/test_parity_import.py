"""import_tree as D-MemFS has it: the same calls, of both, with the same results, errors and texts."""

from __future__ import annotations

import time
from typing import Any

import dmemfs
import pytest

import dmemfs_shm

IMPLEMENTATIONS = [dmemfs, dmemfs_shm]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__)
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def make(module: Any) -> Any:
    """Makes filesystems, and closes those that can be closed."""
    made = []

    def make(max_quota: int = 1 << 20, **options: Any) -> Any:
        made.append(module.MemoryFileSystem(max_quota=max_quota, **options))
        return made[-1]

    yield make
    for fs in made:
        if hasattr(fs, "close"):
            assert fs.check() == []
            fs.close()


def content(fs: Any, path: str) -> bytes:
    with fs.open(path) as handle:
        return bytes(handle.read())


def everything(fs: Any) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for top, folders, files in fs.walk("/"):
        found |= {f"{top.rstrip('/')}/{name}": None for name in folders}
        found |= {path: content(fs, path) for path in (f"{top.rstrip('/')}/{name}" for name in files)}
    return found


def refused(fs: Any, tree: Any) -> BaseException:
    """The import fails, and nothing has changed."""
    before = everything(fs), fs.stats()
    with pytest.raises(Exception) as caught:
        fs.import_tree(tree)
    assert (everything(fs), fs.stats()) == before
    return caught.value


def test_files_with_their_directories(make: Any) -> None:
    """Missing ones are made, others stay; a path may be of any form, and the last one that leads to a file wins."""
    fs = make()
    fs.mkdir("/d/e")
    with fs.open("/d/old", "wb") as handle:
        handle.write(b"old")
    tree = {"/d/f": b"1", "g": b"", "/d/e/../h": b"3", "\\n\\m\\o": b"4", "/d//f": b"5", "/d/old": bytearray(b"new")}
    assert fs.import_tree(tree) is None
    assert everything(fs) == {
        "/d": None,
        "/d/e": None,
        "/d/f": b"5",
        "/d/h": b"3",
        "/d/old": b"new",
        "/g": b"",
        "/n": None,
        "/n/m": None,
        "/n/m/o": b"4",
    }
    assert [fs.stats()["file_count"], fs.stats()["dir_count"]] == [5, 5]


def test_nothing_to_import(make: Any) -> None:
    fs = make()
    assert fs.import_tree({}) is None
    assert everything(fs) == {}


def test_imported_files_are_new_ones(make: Any) -> None:
    """Generation 0, created and modified now; also where an older file stood."""
    fs = make()
    for _ in range(2):
        with fs.open("/f", "wb") as handle:
            handle.write(b"x")
    before = fs.stat("/f")
    assert before["generation"] > 0
    time.sleep(0.01)
    fs.import_tree({"/f": b"yy", "/g": b"z"})
    for path, size in (("/f", 2), ("/g", 1)):
        stat = fs.stat(path)
        assert [stat["generation"], stat["size"], stat["is_dir"]] == [0, size, False]
        assert stat["created_at"] > before["created_at"]
        assert stat["modified_at"] >= stat["created_at"]


def test_the_old_content_is_paid_back(make: Any) -> None:
    """A smaller file over a larger one."""
    fs = make()
    fs.import_tree({"/f": bytes(200_000), "/g": bytes(100_000)})
    large = fs.stats()["used_bytes"]
    fs.import_tree({"/f": b"", "/g": bytes(50_000)})
    assert fs.stats()["used_bytes"] < large / 4
    fs.import_tree({"/f": bytes(200_000), "/g": bytes(100_000)})
    assert fs.stats()["used_bytes"] == large


def test_an_open_file(make: Any) -> None:
    """Whoever has one of them open, and whatever else is wrong: nothing is imported."""
    fs = make()
    fs.import_tree({"/d/f": b"1", "/other": b"2"})
    for mode in ("rb", "r+b"):
        with fs.open("/d/f", mode):
            for tree in ({"/new": b"", "/d/f": b"3"}, {"d/f": bytes(2 << 20)}):
                error = refused_while_open(fs, tree)
                assert isinstance(error, BlockingIOError)
                assert str(error).startswith("Cannot import: file is open: '/d/f'")
            fs.import_tree({"/other": b"3"})
    fs.import_tree({"/d/f": b"4"})
    assert everything(fs) == {"/d": None, "/d/f": b"4", "/other": b"3"}


def refused_while_open(fs: Any, tree: Any) -> BaseException:
    before = fs.stats(), sorted(fs.glob("**"))
    with pytest.raises(BlockingIOError) as caught:
        fs.import_tree(tree)
    assert (fs.stats(), sorted(fs.glob("**"))) == before
    return caught.value


def test_more_than_the_quota(make: Any, module: Any) -> None:
    fs = make(max_quota=100_000)
    fs.import_tree({"/f": bytes(10_000)})
    free = fs.stats()["free_bytes"]
    error = refused(fs, {"/g": bytes(60_000), "/h": bytes(60_000)})
    assert type(error) is module.MFSQuotaExceededError
    assert error.requested >= 120_000
    assert error.available == free


def test_bad_paths_and_contents(make: Any) -> None:
    fs = make()
    assert type(refused(fs, {"/fine": b"", "../f": b""})) is ValueError
    assert type(refused(fs, {"/fine": b"", "/f": None})) is TypeError
    assert type(refused(fs, {"/fine": b"", "/f": 5})) is TypeError


def test_a_file_where_a_directory_must_be(make: Any) -> None:
    """(Just below a file D-MemFS has an AssertionError; see below.)"""
    fs = make()
    fs.import_tree({"/d/f": b"1"})
    error = refused(fs, {"/new": b"", "/d/f/sub/g": b"2"})
    assert type(error) is FileExistsError
    assert str(error) == "A file exists at path component: 'f'"


def test_the_limit_of_nodes(make: Any, module: Any) -> None:
    """Counted one after another, the new file before the old one that it replaces goes."""
    fs = make(max_nodes=5)
    fs.import_tree({"/d/1": b"1", "/d/2": b"2"})
    error = refused(fs, {"/d/1": b"3", "/e/1": b"1"})
    assert type(error) is module.MFSNodeLimitExceededError
    assert [error.current, error.limit] == [5, 5]
    assert str(error) == "MFS node limit exceeded: current 5 nodes, limit is 5."
    fs.import_tree({"/d/1": b"4", "/3": b"5"})
    assert type(refused(fs, {"/d/1": b"6"})) is module.MFSNodeLimitExceededError
    assert type(refused(fs, {f"/{number}": b"" for number in range(9)})) is module.MFSNodeLimitExceededError
    fs.remove("/3")
    fs.import_tree({"/d/1": b"7", "/d/2": b"8"})
    assert everything(fs) == {"/d": None, "/d/1": b"7", "/d/2": b"8"}
