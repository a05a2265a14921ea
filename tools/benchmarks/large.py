"""A large file: written in pieces, read by another process, and looked into.

Fresh memory is memory that the system gives for it; reused memory is what the same file had before (in the store a file that
is opened with "wb" keeps its blocks for what is coming; a file on tmpfs gives its pages back, and takes others).
"""

import functools
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .children import Child
from .timing import MIB, OURS, PAGE, SHM, Check, Operation, Plan, Sample, checks_of, compared, in_rounds, timed

LOOKED_AT = MIB
CHUNK = PAGE * (MIB // len(PAGE))
FRESH, REUSED, FIRST, VIEW = "stream-fresh", "stream-reused", "first-read", "view"
LARGE = (FRESH, REUSED, FIRST, VIEW)
TMPFS = "open()"
READ, READINTO = "read()", "readinto(), warm buffer"
MARKS = {FRESH: {TMPFS: 1 / 0.85}, REUSED: {TMPFS: 1 / 3}, FIRST: {READ: 1 / 3, READINTO: 2.0}, VIEW: {"mmap": 0.1}}


def size_here(plan: Plan) -> int:
    """The size of the large file: what was planned, unless /dev/shm has too little room for several of them."""
    room = os.statvfs(SHM)
    return int(max(1, min(plan.large, room.f_bavail * room.f_frsize // 6) // MIB) * MIB)


def pieces(file: Any, size: int) -> None:
    for _ in range(size // MIB):
        file.write(CHUNK)


def stream(opened: Any, size: int) -> None:
    """A file just opened, written in pieces, and closed."""
    with opened as file:
        pieces(file, size)


def stream_fresh(folder: str, plan: Plan) -> dict[str, Any]:
    """A new file in pieces of 1 MiB, in memory that the system gives for it."""
    size = size_here(plan)

    def tmpfs(_: None) -> None:
        stream(open(f"{folder}/stream", "wb", 0), size)

    def ours(fs: MemoryFileSystem) -> None:
        stream(fs.open("/stream", "wb"), size)

    def batch_tmpfs() -> Sample:
        sample = timed(tmpfs, [None])
        os.remove(f"{folder}/stream")
        return sample

    def batch_ours() -> Sample:
        with closing(MemoryFileSystem(max_quota=size + MIB)) as fs:
            return timed(ours, [fs])

    samples = in_rounds({TMPFS: batch_tmpfs, OURS: batch_ours}, 0, plan.rounds)
    return compared(FRESH, f"{size // MIB} MiB in pieces of 1 MiB, fresh memory; a piece", samples, size // MIB)


def stream_reused(folder: str, plan: Plan) -> dict[str, Any]:
    """The same file again and again: open("wb"), pieces of 1 MiB, close."""
    size = size_here(plan)
    with closing(MemoryFileSystem(max_quota=size + MIB)) as fs:

        def tmpfs(_: None) -> None:
            stream(open(f"{folder}/stream", "wb", 0), size)

        def in_place(_: None) -> None:
            stream(open(f"{folder}/stream", "r+b", 0), size)

        def ours(_: None) -> None:
            stream(fs.open("/stream", "wb"), size)

        ways: dict[str, Operation] = {TMPFS: tmpfs, OURS: ours, 'open("r+b")': in_place}
        for way in tmpfs, ours:
            way(None)
        samples = in_rounds({name: functools.partial(timed, way, [None]) for name, way in ways.items()}, 0, plan.rounds)
    os.remove(f"{folder}/stream")
    return compared(REUSED, f"{size // MIB} MiB in pieces of 1 MiB over the same file; a piece", samples, size // MIB)


@contextmanager
def both(folder: str, size: int) -> Iterator[tuple[MemoryFileSystem, str]]:
    """A store and a file on tmpfs, each with the same large file."""
    path = f"{folder}/large"
    with closing(MemoryFileSystem(max_quota=size + MIB)) as fs:
        try:
            with open(path, "wb") as plain, fs.open("/large", "wb", preallocate=size) as ours:
                pieces(plain, size)
                pieces(ours, size)
            yield fs, path
        finally:
            os.remove(path)


def touch(whole: memoryview) -> int:
    """A byte of every page."""
    with whole[:: mmap.PAGESIZE] as pages:
        return sum(bytes(pages))


def first_read(folder: str, plan: Plan) -> dict[str, Any]:
    """Another process, started for it, has the file's bytes for the first time, and looks at every page."""
    size = size_here(plan)
    with both(folder, size) as (fs, path):

        def read() -> Callable[[], int]:
            def first() -> int:
                with open(path, "rb", 0) as file:
                    return touch(memoryview(file.read()))

            return first

        def readinto() -> Callable[[], int]:
            buffer = bytearray(size)
            touch(memoryview(buffer))

            def first() -> int:
                with open(path, "rb", 0) as file:
                    file.readinto(buffer)
                return touch(memoryview(buffer))

            return first

        def view() -> Callable[[], int]:
            fs.stats()  # attached, as a worker is that has done anything at all

            def first() -> int:
                with fs.view("/large") as whole:
                    return touch(whole)

            return first

        def batch(make: Callable[[], Callable[[], int]]) -> Sample:
            def life() -> tuple[int, int, int]:
                with closing(fs):
                    first = make()
                    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
                    found = first()
                    return found, time.perf_counter_ns() - wall, time.process_time_ns() - cpu

            found, wall, cpu = Child(life).result()
            assert found == size // len(PAGE) * PAGE[0]
            return Sample(wall, cpu)

        ways = {READ: read, OURS: view, READINTO: readinto}
        samples = in_rounds({name: functools.partial(batch, way) for name, way in ways.items()}, 0, plan.rounds)
    what = f"first read of {size // MIB} MiB in another process, every page touched; a MiB"
    return compared(FIRST, what, samples, size // MIB)


def view(folder: str, plan: Plan) -> dict[str, Any]:
    """A slice of a large file, looked at where it is: a byte of each of its pages. In the store, the mapping stands."""
    size = size_here(plan)
    offsets = [number * LOOKED_AT % size for number in range(16)]

    def look(whole: memoryview, offset: int) -> bytes:
        with whole[offset : offset + LOOKED_AT : mmap.PAGESIZE] as pages:
            return bytes(pages)

    def map_and_look(offset: int) -> bytes:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
            memoryview(mapping) as whole,
        ):
            return look(whole, offset)

    def view_and_look(offset: int) -> bytes:
        with fs.view("/large") as whole:
            return look(whole, offset)

    with ExitStack() as stack:
        fs, path = stack.enter_context(both(folder, size))
        with open(path, "rb") as plain:
            kept = stack.enter_context(mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ))
        whole = stack.enter_context(memoryview(kept))
        ways: dict[str, Operation] = {
            "mmap": map_and_look,
            OURS: view_and_look,
            "mmap, kept open": functools.partial(look, whole),
        }
        assert len({way(0) for way in ways.values()}) == 1
        samples = in_rounds({name: functools.partial(timed, way, offsets) for name, way in ways.items()}, plan.seconds)
    what = f"look at 1 MiB inside {size // MIB} MiB; view() against open and mmap"
    return compared(VIEW, what, samples, len(offsets))


def checks(results: list[dict[str, Any]]) -> list[Check]:
    return [check for result in results for check in checks_of(result, MARKS[result["workload"]])]
