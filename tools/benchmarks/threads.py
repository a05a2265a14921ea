"""Eight threads of one process that open files, beside one that computes: how long does an open take, at worst?

The computing thread keeps the interpreter's lock for its switch interval (5 ms) whenever it gets it. So whoever lets go of
that lock, as each take of a semaphore does, may wait so long for it; an open in a dict of the same process does not let go.
"""

import functools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .backends import DMEMFS, MARK, missing, optional
from .timing import MIB, OURS, PAGE, Check, Plan, spread

THREADS = "threads"
COUNT = 8


def one_round(open_and_close: Callable[[int], object], seconds: float) -> dict[str, float]:
    """p50 and p99 of an open and close, microseconds, of eight threads beside one that computes."""
    stop = time.perf_counter() + seconds
    taken: list[list[int]] = [[] for _ in range(COUNT)]

    def compute() -> None:
        value = 0
        while time.perf_counter() < stop:
            for number in range(1000):
                value += number * number

    def body(me: int) -> None:
        mine = taken[me]
        while not mine or time.perf_counter() < stop:
            begin = time.perf_counter_ns()
            open_and_close(me)
            mine.append(time.perf_counter_ns() - begin)

    threads = [threading.Thread(target=compute), *(threading.Thread(target=body, args=(me,)) for me in range(COUNT))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = sorted(one for mine in taken for one in mine)
    return {"p50_us": every[len(every) // 2] / 1e3, "p99_us": every[int(len(every) * 0.99)] / 1e3, "opens": len(every)}


def threads(folder: str, plan: Plan) -> dict[str, Any]:
    """The result, D-MemFS the mark."""
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def through(each: Any, me: int) -> None:
            with each.open(f"/{me}", "rb"):
                pass

        def plain(me: int) -> None:
            with open(f"{folder}/thread-{me}", "rb"):
                pass

        ways: dict[str, Callable[[int], object]] = {}
        if DMEMFS not in missing():
            theirs = optional("dmemfs").MemoryFileSystem(max_quota=16 * MIB)
            ways[DMEMFS] = functools.partial(through, theirs)
        ways[OURS] = functools.partial(through, fs)
        ways[MARK] = plain
        for me in range(COUNT):
            fs.write_bytes(f"/{me}", PAGE)
            with open(f"{folder}/thread-{me}", "wb") as file:
                file.write(PAGE)
            if DMEMFS in ways:
                with theirs.open(f"/{me}", "wb") as file:
                    file.write(PAGE)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(plan.rounds + 1):
            for name, way in ways.items():
                rounds[name].append(one_round(way, plan.cycles))
    mark = next(iter(ways))
    results = [
        {
            "backend": name,
            **{key: spread([one[key] for one in figures[1:]]) for key in ("p50_us", "p99_us", "opens")},
            "p99_to_mark": spread(
                [one["p99_us"] / other["p99_us"] for one, other in zip(figures[1:], rounds[mark][1:], strict=True)]
            ),
        }
        for name, figures in rounds.items()
    ]
    what = f"{COUNT} threads that open and close, beside one that computes"
    return {"workload": THREADS, "what": what, "mark": mark, "rounds": plan.rounds, "results": results}


def checks(result: dict[str, Any]) -> list[Check]:
    if result["mark"] != DMEMFS:
        return []
    mine = next(one for one in result["results"] if one["backend"] == OURS)
    return [Check(f"threads, p99 of an open, to {DMEMFS}", mine["p99_to_mark"]["median"], 3.0)]
