"""What goes on in a store, from two looks: changes are exact, under the right paths, and nothing is missed that has a word."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.store import sampling
from dmemfs_shm.store.sampling import Sampler, Traffic

from ..conftest import Stores
from ..processes import Task, held_open, until


@pytest.fixture
def sampler(named: MemoryFileSystem, store_name: str) -> Iterator[Sampler]:
    named.write_bytes("/old", b"x")
    followed = Sampler(store_name, os.geteuid())
    try:
        yield followed
    finally:
        followed.close()


def changes(traffic: Traffic) -> dict[str, int]:
    return {busy.path: busy.changes for busy in traffic.busiest if busy.changes}


def test_nothing(sampler: Sampler) -> None:
    traffic = sampler.traffic()
    assert (traffic.name_changes, traffic.file_changes, traffic.busiest) == (0, 0, ())
    assert not traffic.is_partial


@pytest.mark.parametrize(
    ("act", "names", "expected"),
    [
        (lambda fs: [fs.write_bytes("/old", b"y") for _ in range(7)], 0, {"/old": 7}),
        (lambda fs: [fs.open("/old", "r+b").close() for _ in range(5)], 0, {"/old": 5}),
        (lambda fs: fs.write_bytes("/new", b"y"), 1, {"/new": 1}),
        (lambda fs: fs.open("/new", "wb").close(), 1, {"/new": 2}),
        (lambda fs: fs.rename("/old", "/other"), 1, {"/other": 1}),
        (lambda fs: fs.read_bytes("/old"), 0, {}),
        (lambda fs: fs.open("/old").close(), 0, {}),
    ],
    ids=["written", "opened", "made", "made by open", "renamed", "read at once", "read"],
)
def test_changes(
    named: MemoryFileSystem,
    sampler: Sampler,
    act: Callable[[MemoryFileSystem], object],
    names: int,
    expected: dict[str, int],
) -> None:
    act(named)
    traffic = sampler.traffic()
    assert (traffic.name_changes, changes(traffic)) == (names, expected)
    assert traffic.file_changes == sum(expected.values())
    again = sampler.traffic()
    assert (again.name_changes, again.file_changes) == (0, 0)


def test_what_is_removed_counts_under_no_path(named: MemoryFileSystem, sampler: Sampler) -> None:
    for _ in range(3):
        named.write_bytes("/gone", b"y")
        named.remove("/gone")
    traffic = sampler.traffic()
    assert (traffic.name_changes, traffic.busiest) == (6, ())
    assert traffic.file_changes >= 6


def test_paths_are_those_of_now(named: MemoryFileSystem, sampler: Sampler) -> None:
    named.mkdir("/d")
    sampler.traffic()
    for old, new in (("/old", "/d/a"), ("/d/a", "/d/b"), ("/d/b", "/c")):
        named.rename(old, new)
        assert changes(sampler.traffic()) == {new: 1}


def test_more_nodes_than_before(named: MemoryFileSystem, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    named.import_tree({f"/many/{number}": b"x" for number in range(600)})
    traffic = sampler.traffic()
    assert traffic.file_changes >= 600
    assert len(traffic.busiest) == sampling.BUSIEST
    named.write_bytes("/many/599", b"y")
    assert changes(sampler.traffic()) == {"/many/599": 1}
    monkeypatch.setattr(sampling, "NODES_MOST", 100)
    assert sampler.traffic().is_partial


def test_who_has_what_open(named: MemoryFileSystem, sampler: Sampler, stores: Stores) -> None:
    for number in range(4):
        if number == 2:
            with held_open(named, "/old", "r+b"):
                waiter = Task(lambda: named.open("/old", lock_timeout=1000.0).close())
                until(lambda: any(lock.state == "waiting" for lock in named.locks()), "it waits")
                sampler.look()
            waiter.result()
        else:
            sampler.look()
    traffic = sampler.traffic()
    (busy,) = traffic.busiest
    assert (busy.path, busy.held, busy.waiting, busy.size_bytes) == ("/old", 0.25, 0.25, 1)
    assert (traffic.files_open, traffic.threads_waiting) == (0.25, 0.25)


def test_it_takes_no_part(named: MemoryFileSystem, sampler: Sampler) -> None:
    before = named.participants(), named.info()
    sampler.look()
    sampler.traffic()
    assert (named.participants(), named.info()) == before
