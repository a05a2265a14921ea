"""Single figures: stores created, the import, claims, and those who wait."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import dmemfs_shm
from dmemfs_shm import MemoryFileSystem, MFSTimeoutError

from .timing import MIB, Check, Plan, figure, timed, without_gc

FIGURES = ("store", "import", "claim", "wake", "idle")


def stores(plan: Plan) -> list[dict[str, Any]]:
    """A private store, created and closed."""

    def create(made: list[MemoryFileSystem]) -> None:
        made.append(MemoryFileSystem(max_quota=64 * MIB))

    def close(fs: MemoryFileSystem) -> None:
        fs.close()

    creations, closings = [], []
    with without_gc():
        for _ in range(plan.stores + 1):
            made: list[MemoryFileSystem] = []
            try:
                creations.append(timed(create, [made]))
            finally:
                closings.append(timed(close, made))
    return [
        figure(name, what, [one.wall / 1e6 for one in samples[1:]], [one.cpu / 1e6 for one in samples[1:]])
        for name, what, samples in (
            ("create", "create a private store", creations),
            ("close", "close it", closings),
        )
    ]


def started(code: str) -> tuple[float, float]:
    """Milliseconds, wall and CPU, of a Python that runs *code*."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(dmemfs_shm.__file__)))
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1e3, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def imports(plan: Plan) -> list[dict[str, Any]]:
    """`import dmemfs_shm`: how much longer a Python takes that does it than the one before, which does nothing."""
    pairs = [(started("pass"), started("import dmemfs_shm")) for _ in range(plan.imports + 1)][1:]
    walls, cpus = ([longer[clock] - bare[clock] for bare, longer in pairs] for clock in (0, 1))
    return [figure("import", "import dmemfs_shm, beyond a bare python", walls, cpus)]


def claims(plan: Plan) -> list[dict[str, Any]]:
    """The oldest of many files that wait, claimed and done. The first claim, which looks at all of them, is not timed."""

    def claim_and_finish(fs: MemoryFileSystem) -> None:
        with fs.claim("/in/*", 0) as claim:
            claim.done()

    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs, without_gc():
        fs.mkdir("/in")
        for number in range(plan.waiting + 1):
            fs.write_bytes(f"/in/{number}", b"x")
        claim_and_finish(fs)
        samples = [timed(claim_and_finish, [fs]) for _ in range(plan.waiting // 5)]
    what = f"claim one of {plan.waiting:,} files, and done"
    return [figure("claim", what, [one.wall / 1e6 for one in samples], [one.cpu / 1e6 for one in samples])]


def in_children(fs: MemoryFileSystem, count: int, do: Callable[[Callable[[int], None]], None]) -> tuple[list[int], int]:
    """Processes that do(tell); their ids, and where what they tell is to be read, eight bytes each."""
    reads, writes = os.pipe()
    pids = []
    for _ in range(count):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                do(lambda value: os.write(writes, value.to_bytes(8, "little")) and None)
            finally:
                fs.close()
                os._exit(0)
    os.close(writes)
    return pids, reads


def told(reads: int) -> int:
    return int.from_bytes(os.read(reads, 8), "little")


def wakes(plan: Plan) -> list[dict[str, Any]]:
    """From before write_bytes to the return of wait_for in another process that sleeps there."""
    walls = []
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def wait(tell: Callable[[int], None]) -> None:
            for number in range(plan.wakes):
                tell(0)
                fs.wait_for(f"/{number}", 10)
                tell(time.perf_counter_ns())

        pids, reads = in_children(fs, 1, wait)
        for number in range(plan.wakes):
            told(reads)
            time.sleep(0.01)
            begin = time.perf_counter_ns()
            fs.write_bytes(f"/{number}", b"x")
            walls.append((told(reads) - begin) / 1e6)
        os.close(reads)
        os.waitpid(pids[0], 0)
    return [figure("wake", "write_bytes until wait_for returns elsewhere", walls, walls)]


def idleness(plan: Plan) -> list[dict[str, Any]]:
    """The CPU time of eight processes that wait in vain."""
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def wait(tell: Callable[[int], None]) -> None:
            with contextlib.suppress(MFSTimeoutError):
                fs.wait_for("/none", 0.01)  # what is done the first time only
            begin = time.process_time_ns()
            with contextlib.suppress(MFSTimeoutError):
                fs.wait_for("/none", plan.idle)
            tell(time.process_time_ns() - begin)

        pids, reads = in_children(fs, 8, wait)
        spent = sum(told(reads) for _ in pids) / 1e6
        os.close(reads)
        for pid in pids:
            os.waitpid(pid, 0)
    return [figure("idle", f"eight that wait for {plan.idle} s, their CPU together", [plan.idle * 1e3], [spent])]


def checks(figures: list[dict[str, Any]], plan: Plan) -> list[Check]:
    """What the figures are to reach."""
    found = []
    for one in figures:
        if one["figure"] == "claim":
            found.append(Check("claim and done", one["wall_ms"]["median"] * 1e3, 60, "us"))
        elif one["figure"] == "wake":
            found.append(Check("woken after a publication", one["wall_ms"]["median"], 10, "ms"))
        elif one["figure"] == "idle":
            found.append(Check("eight that wait, of a core", one["cpu_ms"]["median"] / plan.idle / 10, 0.5, "%"))
    return found
