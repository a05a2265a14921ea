"""From a thousand files to a million: what each operation costs then, and what the index takes.

Files have random names. Two stores are compared in each round, a small and a large one, with the paths that the process
remembers forgotten before; once with all files in one directory, once with a hundred in each of many. The files are empty: it
is the index that is measured, not the memory behind contents (but see `churned`).
"""

import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .children import Child
from .timing import KIB, MIB, Check, Plan, Sample, spread, timed, without_gc

SCALE = "scale"
SMALL = 1_000
A_DIRECTORY = 100
BATCH = 200
MARKS = {"open": 1.4, "create": 1.4, "remove": 1.4, "stat": 2.0, "exists": 2.0}


@contextmanager
def named_store(quota: int, **options: Any) -> Iterator[MemoryFileSystem]:
    """A store that goes at the end; whether /dev/shm has so much is not asked."""
    name = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        fs = MemoryFileSystem.create(name, quota, **options)
    try:
        yield fs
    finally:
        fs.close()
        MemoryFileSystem.destroy(name)


def fill(fs: MemoryFileSystem, count: int, choose: random.Random, *, many: bool) -> list[str]:
    """So many empty files with random names; their paths."""
    paths, folder = [], ""
    for number in range(count):
        if many and number % A_DIRECTORY == 0:
            folder = f"/{choose.getrandbits(64):016x}"
            fs.mkdir(folder)
        path = f"{folder}/{choose.getrandbits(64):016x}"
        fs.write_bytes(path, b"")
        paths.append(path)
    return paths


def forget(fs: MemoryFileSystem) -> None:
    """Empty the process's path cache."""
    for cache in (fs._store.names.files, fs._store.names.directories, fs._store.names.parents):  # type: ignore[union-attr]
        cache.clear()


def operations(fs: MemoryFileSystem) -> dict[str, Callable[[str], object]]:
    def create(path: str) -> None:
        with fs.open(path + "x", "xb"):
            pass

    def open_and_close(path: str) -> None:
        with fs.open(path, "rb"):
            pass

    return {
        "open": open_and_close,
        "stat": fs.stat,
        "exists": fs.exists,
        "create": create,
        "remove": lambda path: fs.remove(path + "x"),
    }


def compare(stores: list[tuple[MemoryFileSystem, list[str]]], plan: Plan, choose: random.Random) -> dict[str, Any]:
    """The ratio of each operation's time in the second store to that in the first."""
    ratios: dict[str, list[float]] = {name: [] for name in MARKS}
    times: dict[str, list[list[float]]] = {name: [[], []] for name in MARKS}
    with without_gc():
        for number in range(10 * plan.rounds + 1):
            taken: dict[str, list[Sample]] = {name: [] for name in MARKS}
            for fs, paths in stores:
                some = choose.sample(paths, min(BATCH, len(paths)))
                for name, operation in operations(fs).items():
                    forget(fs)
                    taken[name].append(timed(operation, some))
            if number:
                for name, (small, large) in taken.items():
                    ratios[name].append(large.wall / small.wall)
                    for which, sample in enumerate((small, large)):
                        times[name][which].append(sample.wall / BATCH / 1e3)
    return {
        name: {"ratio": spread(ratios[name]), "small_us": spread(times[name][0]), "large_us": spread(times[name][1])}
        for name in MARKS
    }


def index_bytes(fs: MemoryFileSystem) -> int:
    """The memory that the index has."""
    return os.fstat(fs._store.index.fd).st_blocks * 512  # type: ignore[union-attr]


def scale(plan: Plan) -> tuple[list[dict[str, Any]], list[Check]]:
    """What grows, and what must not."""
    found, checks, choose = [], [], random.Random(1)
    for many in False, True:
        where = "many directories" if many else "one directory"
        with named_store(64 * MIB) as small, named_store(64 * MIB, max_nodes=2 * plan.many) as large:
            before = index_bytes(large)
            stores = [(small, fill(small, SMALL, choose, many=many)), (large, fill(large, plan.many, choose, many=many))]
            compared = compare(stores, plan, choose)
            found.append({"workload": f"{SCALE}, {where}", "small": SMALL, "large": plan.many, "operations": compared})
            checks += [
                Check(f"{name} of {plan.many:,} files to {SMALL:,}, {where}", compared[name]["ratio"]["median"], most)
                for name, most in MARKS.items()
            ]
            if not many:
                checks += listing(stores, plan)
                each = (index_bytes(large) - before) / plan.many - len(stores[1][1][0]) + 1
                checks.append(Check("index, a file, beyond its name", each, 300, "bytes"))
            checks.append(Check(f"attach to {plan.many:,} files, {where}", attaching(large, plan), 10, "ms"))
    checks.append(creation(plan))
    checks += churned(plan)
    return found, checks


def listing(stores: list[tuple[MemoryFileSystem, list[str]]], plan: Plan) -> list[Check]:
    """listdir, an entry: in the large directory against the small one."""
    ratios = []
    for _ in range(plan.rounds + 1):
        each = [timed(fs.listdir, ["/"] * (1 + SMALL * 20 // len(paths))).wall for fs, paths in stores]
        counts = [len(paths) * (1 + SMALL * 20 // len(paths)) for _, paths in stores]
        ratios.append(each[1] / counts[1] / (each[0] / counts[0]))
    return [Check("listdir, an entry, to a small directory's", spread(ratios[1:])["median"], 2.0)]


def attaching(fs: MemoryFileSystem, plan: Plan) -> float:
    """Milliseconds that another process takes to attach the store."""

    def life() -> float:
        begin = time.perf_counter()
        MemoryFileSystem.attach(fs.name).close()
        return (time.perf_counter() - begin) * 1e3

    return spread([Child(life).result() for _ in range(2 * plan.rounds + 1)])["median"]


def creation(plan: Plan) -> Check:
    """Milliseconds of creating a store of 64 GiB. Its memory comes as files do: so says the size of its index."""
    taken = []
    for _ in range(plan.rounds):
        begin = time.perf_counter()
        with named_store(64 << 30) as fs:
            taken.append((time.perf_counter() - begin) * 1e3)
            assert index_bytes(fs) < 4 * MIB and not fs.info()["backed"]
    return Check("create a store of 64 GiB", spread(taken)["median"], 100, "ms")


def churned(plan: Plan) -> list[Check]:
    """After many creates, growths and removals in random order: a large file fits, and blocks cost what they cost before."""
    choose, quota = random.Random(2), 512 * MIB
    sizes = (100, 3000, 4 * KIB, 20 * KIB, 64 * KIB, 200 * KIB)
    with named_store(quota) as fresh, named_store(quota) as used:
        paths = [f"/{number}" for number in range(3000)]
        for _ in range(plan.churn):
            path, step = choose.choice(paths), choose.random()
            if step < 0.35:
                used.write_bytes(path, bytes(choose.choice(sizes)))
            elif step < 0.6:
                with used.open(path, "ab") as file:
                    if file.tell() < MIB // 4:
                        file.write(bytes(choose.choice(sizes)))
            elif used.exists(path):
                used.remove(path)
        ratios = []
        with without_gc():
            for _ in range(4 * plan.rounds + 1):
                data = bytes(choose.choice(sizes[2:]))
                batch = [f"/new-{number}" for number in range(50)]
                each = []
                for fs in fresh, used:
                    each.append(timed(lambda path, fs=fs, data=data: fs.write_bytes(path, data), batch).wall)  # type: ignore[misc]
                    for path in batch:
                        fs.remove(path)
                ratios.append(each[1] / each[0])
        half = used.stats()["free_bytes"] // 2 // MIB * MIB
        with used.open("/half", "wb", preallocate=half) as file:
            in_pieces = file._base < 0
        assert used.get_size("/half") == half and not used.check()
    return [
        Check(f"after {plan.churn:,} changes: allocation, to a fresh store's", spread(ratios[1:])["median"], 2.0),
        Check("after them: a file of half the free memory is in pieces", float(in_pieces), 0.0),
    ]
