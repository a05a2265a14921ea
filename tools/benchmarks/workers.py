"""Four worker processes that hand each other files, as a pipeline's do.

A cycle of each: put 64 KiB under a new name, get a neighbour's newest, remove one's own of 12 cycles ago. How many files each
has put stands in a shared array of counters. A worker may be put to sleep between reading the neighbour's counter and the
get, for so long that what was the newest is gone: if the counter says so it takes the newest once more; a get that misses
what must be there fails the run, and so does one that gets anything but what was put.

Whoever puts makes the file appear whole: by write_bytes here, by a rename on tmpfs, by a value at once in the others.
"""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.sharedctypes import RawArray
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .backends import (
    DISKCACHE,
    DMEMFS,
    LMDB,
    MANAGER,
    MARK,
    REDIS,
    SHARED_MEMORY,
    Manager,
    missing,
    optional,
    redis_server,
    without_tracker,
)
from .children import Child
from .timing import KIB, MIB, OURS, Check, Plan, spread

WORKERS, KEPT, SIZE = 4, 12, 64 * KIB
CYCLE = "workers"

Calls = tuple[Callable[[str, bytes], object], Callable[[str], Any], Callable[[str], object], Callable[[], object]]
Connect = Callable[[], Calls]


# ---- what each backend does in a worker: put, get, remove; and how the worker leaves it


def nothing() -> None:
    """What many need for leaving."""


def ours(fs: MemoryFileSystem) -> Calls:
    return (
        lambda name, data: fs.write_bytes(f"/files/{name}", data),
        lambda name: fs.read_bytes(f"/files/{name}"),
        lambda name: fs.remove(f"/files/{name}"),
        fs.close,
    )


def tmpfs(folder: str) -> Calls:
    def put(name: str, data: bytes) -> None:
        with open(f"{folder}/.{name}", "wb", 0) as file:
            file.write(data)
        os.rename(f"{folder}/.{name}", f"{folder}/{name}")

    def get(name: str) -> bytes:
        with open(f"{folder}/{name}", "rb", 0) as file:
            return file.read()

    return put, get, lambda name: os.remove(f"{folder}/{name}"), nothing


def lmdb(path: str) -> Calls:
    environment = optional("lmdb").open(path, map_size=64 * MIB, sync=False, metasync=False, writemap=True)

    def put(name: str, data: bytes) -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(name.encode(), data)

    def get(name: str) -> Any:
        with environment.begin() as transaction:
            return transaction.get(name.encode())

    def remove(name: str) -> None:
        with environment.begin(write=True) as transaction:
            transaction.delete(name.encode())

    return put, get, remove, environment.close


def shared_memory(prefix: str) -> Calls:
    without_tracker()

    def put(name: str, data: bytes) -> None:
        segment = SharedMemory(f"{prefix}-{name}", create=True, size=len(data))
        segment.buf[:] = data
        segment.close()

    def get(name: str) -> bytes:
        segment = SharedMemory(f"{prefix}-{name}")
        data = bytes(segment.buf[:SIZE])
        segment.close()
        return data

    def remove(name: str) -> None:
        segment = SharedMemory(f"{prefix}-{name}")
        segment.close()
        segment.unlink()

    return put, get, remove, nothing


def manager(remote: Any) -> Calls:
    return (
        lambda name, data: remote.write(f"/files/{name}", data),
        lambda name: remote.read(f"/files/{name}"),
        lambda name: remote.remove(f"/files/{name}"),
        nothing,
    )


def diskcache(path: str) -> Calls:
    cache = optional("diskcache").Cache(path)
    return cache.set, cache.get, cache.__delitem__, cache.close


def redis(socket: str) -> Calls:
    client = optional("redis").Redis(unix_socket_path=socket)
    return client.set, client.get, client.delete, client.close


@contextmanager
def connections(folder: str) -> Iterator[dict[str, Connect]]:
    """What a worker calls after it was forked, by backend."""
    absent = missing()
    with ExitStack() as stack:
        fs = stack.enter_context(closing(MemoryFileSystem(max_quota=64 * MIB)))
        fs.mkdir("/files")
        os.mkdir(f"{folder}/workers")
        ways: dict[str, Connect] = {
            MARK: functools.partial(tmpfs, f"{folder}/workers"),
            OURS: functools.partial(ours, fs),
            SHARED_MEMORY: functools.partial(shared_memory, f"{os.path.basename(folder)}-worker"),
        }
        if LMDB not in absent:
            lmdb(f"{folder}/workers-lmdb")[-1]()  # made by one
            ways[LMDB] = functools.partial(lmdb, f"{folder}/workers-lmdb")
        if DMEMFS not in absent:
            server = stack.enter_context(Manager(ctx=get_context("fork")))
            ways[MANAGER] = functools.partial(manager, server.Remote())  # type: ignore[attr-defined]
        if DISKCACHE not in absent:
            ways[DISKCACHE] = functools.partial(diskcache, f"{folder}/workers-cache")
        if REDIS not in absent:
            ways[REDIS] = functools.partial(redis, stack.enter_context(redis_server(folder)))
        yield ways


# ---- the cycle


def work(me: int, calls: Calls, newest: Any, seconds: float, run: str) -> list[int]:
    """Nanoseconds of each cycle, until the time is over; then what is left is removed when all are done."""
    put, get, remove, _ = calls
    data = bytes([65 + me]) * SIZE
    neighbour, other = (me + 1) % WORKERS, bytes([65 + (me + 1) % WORKERS]) * SIZE
    taken: list[int] = []

    def fetch() -> Any:
        while True:
            number = newest[neighbour]
            if not number:
                return other  # it has put nothing yet
            with contextlib.suppress(FileNotFoundError, KeyError):
                found = get(f"{run}-{neighbour}-{number}")
                if found is not None:
                    return found
            if newest[neighbour] < number + KEPT:
                raise AssertionError(f"missed file {number} of worker {neighbour}, whose newest is {newest[neighbour]}")

    end = time.perf_counter() + seconds
    for number in itertools.count(1):
        begin = time.perf_counter_ns()
        put(f"{run}-{me}-{number}", data)
        newest[me] = number
        found = fetch()
        if number > KEPT:
            remove(f"{run}-{me}-{number - KEPT}")
        taken.append(time.perf_counter_ns() - begin)
        assert found == other
        if time.perf_counter() > end:
            break
    newest[WORKERS + me] = 1
    while not all(newest[WORKERS + each] for each in range(WORKERS)):
        time.sleep(0.005)
    for last in range(max(1, number - KEPT + 1), number + 1):
        remove(f"{run}-{me}-{last}")
    return taken


def one_round(connect: Connect, seconds: float, run: str) -> list[list[int]]:
    """The cycles of each worker."""
    newest = RawArray("Q", 2 * WORKERS)
    go = RawArray("Q", WORKERS + 1)

    def life(me: int) -> list[int]:
        calls = connect()
        go[me] = 1
        while not go[WORKERS]:
            time.sleep(0.001)
        try:
            return work(me, calls, newest, seconds, run)
        finally:
            calls[-1]()

    children = [Child(functools.partial(life, me)) for me in range(WORKERS)]
    while not all(go[me] for me in range(WORKERS)):
        time.sleep(0.001)
    go[WORKERS] = 1
    return [child.result() for child in children]


def cycle(folder: str, plan: Plan) -> dict[str, Any]:
    """The result: cycles a second of all workers together, and what the spread among them and their cycles is."""
    rounds: dict[str, list[dict[str, float]]] = {}
    with connections(folder) as ways:
        for number in range(plan.rounds + 1):
            for name, connect in ways.items():
                taken = one_round(connect, plan.cycles, f"r{number}")
                if number:
                    every = sorted(itertools.chain.from_iterable(taken))
                    rounds.setdefault(name, []).append(
                        {
                            "cycles_s": len(every) / plan.cycles,
                            "p99_us": every[int(len(every) * 0.99)] / 1e3,
                            "worst_to_best": min(map(len, taken)) / max(map(len, taken)),
                        }
                    )
    results = []
    for name, figures in rounds.items():
        pairs = list(zip(figures, rounds[MARK], strict=True))
        results.append(
            {
                "backend": name,
                **{key: spread([one[key] for one in figures]) for key in ("cycles_s", "p99_us", "worst_to_best")},
                "times_mark": spread([one["cycles_s"] / mark["cycles_s"] for one, mark in pairs]),
                "p99_to_mark": spread([one["p99_us"] / mark["p99_us"] for one, mark in pairs]),
            }
        )
    what = f"{WORKERS} workers: put 64 KiB, get a neighbour's newest, remove one's own of {KEPT} cycles ago"
    return {"workload": CYCLE, "what": what, "mark": MARK, "rounds": plan.rounds, "results": results}


def checks(result: dict[str, Any]) -> list[Check]:
    mine = next(one for one in result["results"] if one["backend"] == OURS)
    return [
        Check("workers, a cycle, to open()", 1 / mine["times_mark"]["median"], 0.5),
        Check("workers, the best to the worst", 1 / mine["worst_to_best"]["median"], 1 / 0.8),
        Check("workers, p99 of a cycle, to open()", mine["p99_to_mark"]["median"], 1.0),
    ]
