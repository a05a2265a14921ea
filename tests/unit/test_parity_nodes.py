"""max_nodes beside D-MemFS's: who is refused, with which figures, and what is there afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dmemfs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmemfs_shm import MemoryFileSystem, MFSNodeLimitExceededError, MFSQuotaExceededError

from ..conftest import MIB, Stores


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error; that of the node limit with all that it says."""
    try:
        return call()
    except (MFSNodeLimitExceededError, dmemfs.MFSNodeLimitExceededError) as error:
        return "limit", error.current, error.limit, error.requested, error.available, str(error)
    except (OSError, ValueError) as error:
        return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


def make(path: str, mode: str, **options: Any) -> Callable[[Any], Any]:
    def call(fs: Any) -> None:
        with fs.open(path, mode, **options) as handle:
            handle.write(b"content")

    return call


#: One after the other on the same tree; with a limit of n, the first n - 1 things that are made fit.
STEPS: list[Callable[[Any], Any]] = [
    make("/a", "wb"),
    make("/a", "wb"),
    make("/a", "xb"),
    make("/b", "xb"),
    make("/none/f", "wb"),
    lambda fs: fs.mkdir("/d"),
    lambda fs: fs.mkdir("/d", exist_ok=True),
    lambda fs: fs.mkdir("/d"),
    make("/d/f", "ab"),
    make("/d/f", "r+b"),
    make("/p", "wb", preallocate=2 * MIB),
    lambda fs: fs.copy("/a", "/d/copy"),
    lambda fs: fs.copy("/a", "/a"),
    lambda fs: fs.copy("/a", "/none/f"),
    lambda fs: fs.copy("/none", "/f"),
    lambda fs: fs.copy("/d", "/f"),
    lambda fs: fs.copy_tree("/d", "/e"),
    lambda fs: fs.copy_tree("/d", "/none/f"),
    lambda fs: fs.copy_tree("/a", "/f"),
    lambda fs: fs.rename("/a", "/renamed"),
    lambda fs: fs.move("/renamed", "/d/moved"),
    lambda fs: fs.mkdir("/last"),
    lambda fs: fs.remove("/b"),
    make("/b again", "wb"),
    lambda fs: fs.rmtree("/d"),
    lambda fs: fs.copy_tree("/e", "/d"),
    lambda fs: fs.mkdir("/x/y"),
    lambda fs: fs.move("/last", "/x/y/z/last"),
]


def state(fs: Any) -> Any:
    stats = fs.stats()
    paths = {(path, fs.is_dir(path) or fs.get_size(path)) for path in fs.glob("/**")}
    return stats["file_count"], stats["dir_count"], paths


def settle(ours: Any, theirs: Any) -> None:
    """Take away the directories that D-MemFS leaves when only some of them fit: with us they stand all or none."""
    for path in sorted(set(theirs.glob("/**")) - set(ours.glob("/**")), reverse=True):
        assert theirs.is_dir(path)
        theirs.rmtree(path)


@pytest.mark.parametrize("limit", [*range(1, 16), None])
def test_step_by_step(stores: Stores, limit: int | None) -> None:
    ours, theirs = stores.private(MIB, max_nodes=limit), dmemfs.MemoryFileSystem(MIB, max_nodes=limit)
    refused = 0
    for number, step in enumerate(STEPS):
        expected = outcome(lambda: step(theirs))  # noqa: B023
        assert outcome(lambda: step(ours)) == expected, number  # noqa: B023
        if isinstance(expected, tuple):
            refused += 1
            assert expected[1:3] == (limit, limit)
            settle(ours, theirs)
        assert state(ours) == state(theirs), number
    assert (refused > 0) is (limit is not None and limit < 13)


@pytest.mark.parametrize("limit", [0, -1, -100])
def test_no_room_for_the_root(limit: int) -> None:
    assert outcome(lambda: MemoryFileSystem(max_nodes=limit)) == outcome(lambda: dmemfs.MemoryFileSystem(max_nodes=limit))
    with pytest.raises(MFSNodeLimitExceededError):
        MemoryFileSystem(max_nodes=limit)


NAMES = st.sampled_from(["/a", "/b", "/d", "/d/a", "/d/e", "/d/e/f"])
CALLS = st.one_of(
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.sampled_from(["wb", "ab", "xb"]), NAMES),
    st.tuples(st.sampled_from(["copy", "copy_tree", "rename"]), NAMES, NAMES),
    st.tuples(st.sampled_from(["remove", "rmtree"]), NAMES),
)


@given(st.integers(1, 6), st.lists(CALLS, min_size=8, max_size=25))
@settings(max_examples=120)
def test_any_steps(limit: int, calls: list[tuple[str, ...]]) -> None:
    ours, theirs = MemoryFileSystem(MIB, max_nodes=limit), dmemfs.MemoryFileSystem(MIB, max_nodes=limit)
    try:
        for name, *paths in calls:
            if name == "rename" and paths[1].startswith(paths[0] + "/"):
                continue  # a directory into itself: D-MemFS loses it
            step = make(paths[0], name) if len(name) == 2 else lambda fs: getattr(fs, name)(*paths)  # noqa: B023
            expected = outcome(lambda: step(theirs))  # noqa: B023
            assert outcome(lambda: step(ours)) == expected, (name, paths)  # noqa: B023
            settle(ours, theirs)
            assert state(ours) == state(theirs), (name, paths)
        assert ours.check() == []
    finally:
        ours.close()


def test_the_limit_comes_before_the_quota_of_a_copy(stores: Stores) -> None:
    """A file that neither fits nor may be is refused for the latter, as in D-MemFS, whatever its size."""
    for size in (1000, 300_000):
        results = []
        for fs in (stores.private(500_000, max_nodes=3), dmemfs.MemoryFileSystem(500_000, max_nodes=3)):
            for path in ("/a", "/b"):
                with fs.open(path, "wb") as handle:
                    handle.write(bytes(size if path == "/a" else 150_000))
            results.append(outcome(lambda: fs.copy("/a", "/c")))  # noqa: B023
        assert results[0] == results[1] == ("limit", 3, 3, 4, 0, "MFS node limit exceeded: current 3 nodes, limit is 3.")


def test_it_is_a_quota_error() -> None:
    assert issubclass(MFSNodeLimitExceededError, MFSQuotaExceededError)
    assert issubclass(dmemfs.MFSNodeLimitExceededError, dmemfs.MFSQuotaExceededError)
