"""Fixtures of the whole suite: stores that end with a check of every invariant and leave nothing in /dev/shm.

`fs` is a private store, `named` a named one, `stores` makes more of either.  Hypothesis runs in the profile that
DMEMFS_SHM_TEST_PROFILE names: `default` (some hundreds of examples, the same ones each time, reported as found) or
`thorough` (thousands, other ones each time, reduced to the shortest before they are reported: run it with --timeout 0).
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSClosedError, MFSStoreGoneError
from dmemfs_shm.store import names

from . import figures
from .processes import in_use

MIB = 1 << 20
FORGOTTEN_S = 900.0

settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    database=None,
    max_examples=300,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough",
    settings.get_profile("default"),
    derandomize=False,
    phases=tuple(Phase),
    max_examples=2000,
    stateful_step_count=100,
)
settings.load_profile(os.environ.get("DMEMFS_SHM_TEST_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    """Make every warning an error, first in the list, so that a reasoned `ignore` in the configuration still counts."""
    filters = config.getini("filterwarnings")
    if "error" not in filters:
        filters.insert(0, "error")
    if not hasattr(config, "workerinput"):
        clear_after_the_dead()


def clear_after_the_dead() -> None:
    """Destroy the stores of test sessions that were killed, which could not do it themselves.

    A test calls its stores t-<pid>-...; one is forgotten if that process is gone, nobody has it open, and not just since now.
    """
    used = in_use()
    for _, name in names.stores(os.geteuid()):
        index = names.index_name(name).lstrip("/")
        pid = re.match(r"t-(\d+)-", name)
        if pid and index not in used and not os.path.exists(f"/proc/{pid[1]}"):
            with contextlib.suppress(OSError):  # another session clears it away, or it is damaged
                if time.time() - os.stat(f"/dev/shm/{index}").st_mtime > FORGOTTEN_S:
                    MemoryFileSystem.destroy(name)


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of every later collection, which would look at it after each test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much the crash suites of this session have really tried."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    total = figures.add_up(said for report in reports if report.when == "call" for said in report.user_properties)
    if total:
        terminalreporter.section("figures")
        for name, value in total.items():
            terminalreporter.write_line(f"{value:>12,.0f}  {name}")


def mark_of(fs: MemoryFileSystem) -> str:
    """What the names of a store's segments and semaphores contain besides its name: the hexadecimal uuid."""
    identity: Any = fs.uuid
    if isinstance(identity, bytes):
        return identity.hex()
    return str(identity).replace("-", "").lower()


def entries_of(*marks: str) -> list[str]:
    """The entries of /dev/shm that carry one of these names or uuids."""
    return sorted(
        entry
        for entry in os.listdir("/dev/shm")
        if "dmemfs-" in entry and any(mark in entry or mark in entry.replace("-", "") for mark in marks)
    )


class Stores:
    """Makes stores for one test; knows what each of them is called, and takes all of them down."""

    def __init__(self) -> None:
        self.tag = f"t-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._names: list[str] = []
        self._marks: list[str] = [self.tag]
        self._kept: list[MemoryFileSystem] = []

    def name(self) -> str:
        """A name no other store has, to be destroyed at the end if it stands."""
        name = self.tag if not self._names else f"{self.tag}.{len(self._names)}"
        self._names.append(name)
        return name

    def watch(self, fs: MemoryFileSystem) -> MemoryFileSystem:
        """Expect nothing left of it at the end; keeps no reference."""
        self._marks.append(mark_of(fs))
        return fs

    def keep(self, fs: MemoryFileSystem) -> MemoryFileSystem:
        """Check and close it at the end, too."""
        self._kept.append(self.watch(fs))
        return fs

    def private(self, max_quota: int = 16 * MIB, **options: Any) -> MemoryFileSystem:
        """A private store."""
        return self.keep(MemoryFileSystem(max_quota=max_quota, **options))

    def create(self, name: str | None = None, max_quota: int = 16 * MIB, **options: Any) -> MemoryFileSystem:
        """A named store, under a fresh name unless one is given."""
        return self.keep(MemoryFileSystem.create(name or self.name(), max_quota=max_quota, **options))

    def attach(self, name: str, **options: Any) -> MemoryFileSystem:
        """Another object on a store that stands."""
        return self.keep(MemoryFileSystem.attach(name, **options))

    def finish(self) -> list[str]:
        """Check, close and destroy everything, and collect what was forgotten; the findings, empty when all is well."""
        findings = []
        while self._kept:
            fs = self._kept.pop()
            try:
                findings += [f"{fs.name}: {finding}" for finding in fs.check()]
            except (MFSClosedError, MFSStoreGoneError):
                pass
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    fs.close()
        for name in self._names:
            with contextlib.suppress(FileNotFoundError):
                MemoryFileSystem.destroy(name)
        gc.collect()
        return findings + [f"left in /dev/shm: {entry}" for entry in entries_of(*self._marks)]


@pytest.fixture(autouse=True)
def stores() -> Iterator[Stores]:
    """The stores of one test; at its end every one of them is sound and gone."""
    made = Stores()
    try:
        yield made
    finally:
        findings = made.finish()
    assert findings == []


@pytest.fixture
def fs(stores: Stores) -> MemoryFileSystem:
    """A private store of 16 MiB."""
    return stores.private()


@pytest.fixture
def store_name(stores: Stores) -> str:
    """A name that no other store has."""
    return stores.name()


@pytest.fixture
def named(stores: Stores, store_name: str) -> MemoryFileSystem:
    """A named store of 16 MiB, called `store_name`."""
    return stores.create(store_name)
