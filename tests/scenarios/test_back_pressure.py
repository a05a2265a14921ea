"""Producers and consumers under quotas that are far too tight, killed again and again.

Producers fill a directory with a quota of its own, each file larger than what is usually free, and wait for space; consumers
read each file, compare it with what it must be, and remove it. Whenever a producer has made some files one of the workers is
killed, wherever it is, and another one takes its place. Nobody is ever refused, nothing is wrong in any file, and in the end,
when the last producer is dead and the last file is consumed, nothing is charged to anybody and the store is sound.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import zlib
from collections.abc import Callable

import pytest

from dmemfs_shm import MemoryFileSystem, MFSAbandonedFileError, MFSFileOpenError, MFSLockTimeoutError

from ..conftest import Stores
from ..figures import KILL_POINTS
from ..processes import DEADLINE_S, Child, Link, child, until

KIB = 1 << 10
QUOTA, OF_DIRECTORY = 200 * KIB, 160 * KIB
SEED = int(os.environ.get("CRASH_SEED", "1"))
FILES_A_KILL = 3
PRODUCERS, CONSUMERS = 3, 2


def content_of(name: str) -> bytes:
    some = random.Random(name)
    return some.randbytes(some.choice([10, 300, 5000, 20 * KIB, 40 * KIB, 70 * KIB]))


def produce(link: Link, fs: MemoryFileSystem, worker: int) -> None:
    """Make files for ever: whole ones, and such that have all their space before they are filled."""
    for number in itertools.count():
        name = f"{worker}-{number}"
        data = content_of(name)
        if zlib.crc32(name.encode()) % 2:
            fs.write_bytes(f"/in/{name}", data, space_timeout=DEADLINE_S)
        else:
            with fs.open(f"/in/{name}", "xb", preallocate=len(data), space_timeout=DEADLINE_S) as handle:
                handle.write(data)
        link.send(number)


def consume(link: Link, fs: MemoryFileSystem, worker: int) -> None:
    """Read and remove files for ever."""
    link.send(worker)
    while True:
        for name in fs.listdir("/in"):
            with contextlib.suppress(FileNotFoundError, MFSFileOpenError, MFSLockTimeoutError):
                try:
                    with fs.open(f"/in/{name}", lock_timeout=0.0) as handle:
                        data = handle.read()
                    assert data in (b"", content_of(name)), f"{name} has {len(data)} bytes"
                    if not data:  # just made, and not yet filled: who made it may have died before the first byte
                        continue
                except MFSAbandonedFileError:
                    pass
                fs.remove(f"/in/{name}")


@pytest.mark.parametrize("kills", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_back_pressure(stores: Stores, kills: int, record_property: Callable[[str, object], None]) -> None:
    fs = stores.create(max_quota=QUOTA)
    fs.mkdir("/in")
    fs.set_quota("/in", OF_DIRECTORY)
    some, numbers = random.Random(SEED), itertools.count()
    with contextlib.ExitStack() as stack:

        def start(function: Callable[..., None]) -> Child:
            return stack.enter_context(child("fork", function, fs, next(numbers)))

        workers = [(start(function), function) for function in (produce,) * PRODUCERS + (consume,) * CONSUMERS]
        for _ in range(kills):
            producer = some.choice([worker for worker, function in workers if function is produce])
            for _ in range(FILES_A_KILL):
                producer.receive()
            victim = some.randrange(len(workers))
            worker, function = workers[victim]
            worker.kill()
            workers[victim] = start(function), function
        for worker, function in workers:
            if function is produce:
                worker.kill()
        assert all(worker.process.is_alive() for worker, function in workers if function is consume)
        until(lambda: not any(size_of(fs, name) for name in fs.listdir("/in")), f"all is consumed (seed {SEED})")
        for worker, function in workers:
            if function is consume:
                worker.kill()
    for name in fs.listdir("/in"):
        fs.remove(f"/in/{name}")
    fs.trim()
    assert fs.check() == []
    assert fs.stats()["used_bytes"] == 0
    assert [quota.used for quota in fs.info()["directory_quotas"]] == [0]
    record_property(KILL_POINTS, kills)


def size_of(fs: MemoryFileSystem, name: str) -> int:
    try:
        return fs.get_size(f"/in/{name}")
    except FileNotFoundError:
        return 0
