"""memory_guard beside D-MemFS's, the machine saying the same to both: errors and warnings in words, and what is left.

What is available is scripted, for both look at the real machine, which can't be made to run short; that ours reads it
correctly is shown in test_memory.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable
from typing import Any

import dmemfs
import dmemfs._memory_guard
import pytest

import dmemfs_shm
import dmemfs_shm.guard
from dmemfs_shm import MemoryFileSystem, MFSQuotaExceededError

from ..conftest import MIB, Stores, entries_of, mark_of


class Machine:
    """What both are told, and how often ours has asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.available: int | None = 1 << 40
        self.asked = 0
        monkeypatch.setattr(dmemfs._memory_guard, "get_available_memory_bytes", lambda: self.available)
        monkeypatch.setattr(dmemfs_shm.guard, "available_bytes", self._ask)

    def _ask(self) -> int | None:
        self.asked += 1
        return self.available


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises, and its ResourceWarnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except (MemoryError, ValueError) as error:
            result = type(error), error.args
        except MFSQuotaExceededError:
            result = "quota"
        except dmemfs.MFSQuotaExceededError:
            result = "quota"
    return result, [(each.category, str(each.message)) for each in caught]


def write(path: str, *sizes: int, mode: str = "wb", at: int | None = None) -> Callable[[Any], Any]:
    def call(fs: Any) -> None:
        with fs.open(path, mode) as handle:
            if at is not None:
                handle.seek(at)
            for size in sizes:
                handle.write(b"x" * size)

    return call


def truncate(path: str, size: int) -> Callable[[Any], Any]:
    def call(fs: Any) -> None:
        with fs.open(path, "r+b") as handle:
            handle.truncate(size)

    return call


def preallocate(path: str, mode: str, size: int) -> Callable[[Any], Any]:
    return lambda fs: fs.open(path, mode, preallocate=size).close()


CALLS: dict[str, Callable[[Any], Any]] = {
    "a small write": write("/new", 100),
    "one byte too many, with the overhead": write("/new", 873),
    "as many as there are, with the overhead": write("/new", 872),
    "a large write": write("/new", 5000),
    "small ones that together are large": write("/new", 800, 800, 800),
    "one that fits and one that does not": write("/new", 800, 900),
    "append": write("/f", 900, mode="ab"),
    "nothing": write("/new", 0),
    "truncate to less": truncate("/f", 10),
    "truncate to a little more": truncate("/f", 600),
    "truncate to much more": truncate("/f", 5000),
    "preallocate": preallocate("/new", "wb", 5000),
    "preallocate a little": preallocate("/new", "xb", 500),
    "preallocate less than there is": preallocate("/f", "ab", 100),
    "preallocate more than there is": preallocate("/f", "r+b", 5000),
    "copy": lambda fs: fs.copy("/f", "/new"),
    "copy something large": lambda fs: fs.copy("/large", "/new"),
    "copy nothing": lambda fs: fs.copy("/empty", "/new"),
    "mkdir": lambda fs: fs.mkdir("/a/b"),
}


def filled(fs: Any) -> Any:
    fs.mkdir("/tree")
    for path, size in (("/f", 500), ("/large", 5000), ("/empty", 0), ("/tree/f", 500), ("/tree/large", 9000)):
        write(path, size)(fs)
    return fs


def sizes(fs: Any) -> dict[str, int]:
    return {path: fs.get_size(path) for path in fs.glob("/*") if fs.is_file(path)}


@pytest.mark.parametrize("action", ["raise", "warn"])
@pytest.mark.parametrize("mode", ["none", "init", "per_write"])
def test_operations(stores: Stores, machine: Machine, mode: str, action: str) -> None:
    """1,000 bytes are left: the same calls are refused, or warned of, with the same words."""
    for name, call in CALLS.items():
        machine.available = 1 << 40
        arguments = {"memory_guard": mode, "memory_guard_action": action, "memory_guard_interval": 0.0}
        ours = filled(stores.private(MIB, **arguments))
        theirs = filled(dmemfs.MemoryFileSystem(MIB, **arguments))
        machine.available = 100 if name == "copy nothing" else 1000
        expected = outcome(lambda: call(theirs))  # noqa: B023
        assert outcome(lambda: call(ours)) == expected, name  # noqa: B023
        if name == "copy something large" and expected[0] is not None:
            theirs.remove("/new")  # which D-MemFS leaves behind, empty
        assert sizes(ours) == sizes(theirs), name
        ours.close()


@pytest.mark.parametrize("action", ["raise", "warn"])
def test_overwriting(stores: Stores, machine: Machine, action: str) -> None:
    """What is overwritten in place needs no memory; only what it grows by counts."""
    for at, size, asked in ((0, 500, 0), (100, 900, 500), (600, 1000, 1100), (0, 2500, 2000)):
        machine.available = 1 << 40
        guard = {"memory_guard": "per_write", "memory_guard_action": action, "memory_guard_interval": 0.0}
        ours = filled(stores.private(MIB, **guard))
        theirs = filled(dmemfs.MemoryFileSystem(MIB, default_storage="random_access", **guard))
        machine.available = 1000
        call = write("/f", size, mode="r+b", at=at)
        expected = outcome(lambda: call(theirs))  # noqa: B023
        assert outcome(lambda: call(ours)) == expected  # noqa: B023
        assert (expected != (None, [])) is (asked > 1000)
        assert sizes(ours) == sizes(theirs)


@pytest.mark.parametrize("action", ["raise", "warn"])
def test_copying_a_tree(stores: Stores, machine: Machine, action: str) -> None:
    """What the whole tree is charged counts, and nothing of it is there if it is refused. (The charge is our own.)"""
    fs = filled(stores.private(MIB, memory_guard="per_write", memory_guard_action=action, memory_guard_interval=0.0))
    machine.available = 9000
    result, warned = outcome(lambda: fs.copy_tree("/tree", "/copy"))
    text = "Write of 13,056 bytes requested but only 9,000 bytes of physical RAM available (checked 0.0s ago)."
    if action == "raise":
        assert (result, warned) == ((MemoryError, (text,)), [])
        assert not fs.exists("/copy")
    else:
        assert (result, warned) == (None, [(ResourceWarning, text)])
        assert fs.get_size("/copy/large") == 9000
    machine.available = 1 << 30
    fs.copy_tree("/tree", "/another copy")


@pytest.mark.parametrize("action", ["raise", "warn"])
@pytest.mark.parametrize("mode", ["none", "init", "per_write"])
@pytest.mark.parametrize("available", [None, MIB - 1, MIB, 0])
def test_creation(stores: Stores, machine: Machine, available: int | None, mode: str, action: str) -> None:
    machine.available = available
    made = []

    def call(package: Any) -> None:
        made.append(package.MemoryFileSystem(MIB, memory_guard=mode, memory_guard_action=action))

    assert outcome(lambda: call(dmemfs_shm)) == outcome(lambda: call(dmemfs))
    for fs in made:
        if isinstance(fs, MemoryFileSystem):
            stores.keep(fs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory_guard": "always"},
        {"memory_guard_action": "ignore"},
        {"memory_guard": None},
        {"memory_guard": "always", "memory_guard_action": "ignore"},
        {"memory_guard": "always", "default_storage": "other"},
        {"memory_guard": "none", "memory_guard_action": "RAISE"},
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any]) -> None:
    expected = outcome(lambda: dmemfs.MemoryFileSystem(MIB, **arguments))
    assert expected[0][0] is ValueError
    assert outcome(lambda: MemoryFileSystem(MIB, **arguments)) == expected


def test_the_guard_comes_before_the_quota(stores: Stores, machine: Machine) -> None:
    """A write that passes both is refused by the guard, or warned of and refused by the quota."""
    for action in ("raise", "warn"):
        guard = {"memory_guard": "per_write", "memory_guard_action": action, "memory_guard_interval": 0.0}
        machine.available = 1 << 40
        ours, theirs = stores.private(MIB, **guard), dmemfs.MemoryFileSystem(MIB, **guard)
        machine.available = 1000
        call = write("/new", 2 * MIB)
        assert outcome(lambda: call(ours)) == outcome(lambda: call(theirs))  # noqa: B023
        assert sizes(ours) == sizes(theirs) == {"/new": 0}


def test_within_the_interval(stores: Stores, machine: Machine) -> None:
    """What the machine said once counts until the interval is over, whatever it would say by now."""
    guard = {"memory_guard": "per_write", "memory_guard_action": "raise", "memory_guard_interval": 1e9}
    machine.available = MIB
    for fs in (stores.private(MIB, **guard), dmemfs.MemoryFileSystem(MIB, **guard)):
        machine.available = 10
        write("/f", 100)(fs)
        machine.available = 1 << 40
        with pytest.raises(MemoryError, match=r"only 1,048,576 bytes of physical RAM available \(checked \d+\.\ds ago\)"):
            write("/f", 2 * MIB)(fs)
        machine.available = MIB
    assert machine.asked == 1


def test_after_the_interval(stores: Stores, machine: Machine) -> None:
    fs = stores.private(MIB, memory_guard="per_write", memory_guard_action="raise", memory_guard_interval=0.05)
    machine.available = 10
    deadline = time.monotonic() + 50
    with pytest.raises(MemoryError, match="only 10 bytes"):
        while time.monotonic() < deadline:
            write("/f", 100)(fs)
    assert machine.asked == 2


def test_what_is_not_known_is_not_complained_of(stores: Stores, machine: Machine) -> None:
    """Where the machine says nothing it is asked no more often, and nothing is refused."""
    machine.available = None
    fs = stores.private(MIB, memory_guard="per_write", memory_guard_action="raise", memory_guard_interval=1000.0)
    for number in range(10):
        with fs.open(f"/{number}", "wb") as handle:
            handle.write(bytes(10_000))
    assert machine.asked == 1


def test_named_stores(stores: Stores, store_name: str, machine: Machine) -> None:
    """create looks at the quota and leaves nothing when refused; attach looks at what the store may still take."""
    guard: dict[str, Any] = {"memory_guard": "init", "memory_guard_action": "raise"}
    machine.available = 4 * MIB
    with pytest.raises(MemoryError, match=r"max_quota \(8,388,608 bytes\) exceeds"):
        MemoryFileSystem.create(store_name, 8 * MIB, **guard)
    assert entries_of(store_name) == []
    fs = stores.create(store_name, 8 * MIB)
    with pytest.raises(
        MemoryError, match=r"may still take \(8,388,608 bytes\) exceeds available physical RAM \(4,194,304 bytes\)"
    ):
        MemoryFileSystem.attach(store_name, **guard)
    assert len(fs.participants()) == 1
    fs.write_bytes("/f", bytes(6 * MIB))
    stores.attach(store_name, **guard)
    machine.available = 0
    with pytest.warns(ResourceWarning, match="may still take"):
        stores.attach(store_name, memory_guard="per_write")


def test_pickled(stores: Stores, machine: Machine) -> None:
    """The guard goes with the object to other processes, and asks anew there."""
    fs = stores.private(MIB, memory_guard="per_write", memory_guard_action="raise", memory_guard_interval=1e9)
    machine.available = 10
    write("/f", 100)(fs)
    copy = pickle.loads(pickle.dumps(fs))
    assert mark_of(copy) == mark_of(fs)
    with pytest.raises(MemoryError, match="only 10 bytes"):
        write("/g", 100)(copy)
    copy.close()


def test_warnings_point_to_the_caller(stores: Stores, machine: Machine) -> None:
    """A ResourceWarning names the line that called, however deep inside it was found."""
    machine.available = 100
    with pytest.warns(ResourceWarning) as caught:
        fs = stores.private(MIB, memory_guard="per_write", memory_guard_interval=0.0)
    assert caught[0].filename.endswith("conftest.py")
    with fs.open("/f", "wb") as handle, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        handle.write(bytes(1000))
        handle.truncate(5000)
        fs.open("/g", "wb", preallocate=1000).close()
        fs.write_bytes("/h", bytes(1000))
        fs.copy("/h", "/i")
        fs.mkdir("/d")
        fs.rename("/i", "/d/i")
        fs.copy_tree("/d", "/e")
    assert len(found) == 6
    assert {each.filename for each in found} == {__file__}
