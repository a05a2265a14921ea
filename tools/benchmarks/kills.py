"""What a SIGKILL in the middle of anything costs those who go on.

Four workers put, get and remove without pause. One after the other is killed at a random moment, and replaced. The cost of a
kill is the longest time that any of the others spent in one operation that was under way, or began, in the half second after
it. What is still under way then is waited for: a stall counts whole, however long it is.
"""

import functools
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.sharedctypes import RawArray
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .children import Child
from .timing import KIB, MIB, Check, Plan, figure

KILLS = "kills"
WORKERS = 4
AFTER_S = 0.5
DEADLINE_S = 60.0


class Clocks:
    """What the workers say, in memory that all share: of each, when its present operation began, and the longest one of this
    turn; *turn* counts the kills."""

    def __init__(self) -> None:
        self.began, self.longest, self.turn = RawArray("Q", WORKERS), RawArray("Q", WORKERS), RawArray("Q", 1)

    def settle(self, workers: Sequence[int]) -> None:
        """Wait until what each of them has under way is over. RuntimeError if it does not end."""
        now, deadline = time.perf_counter_ns(), time.monotonic() + DEADLINE_S
        while any(self.began[me] <= now for me in workers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"an operation did not end within {DEADLINE_S:.0f} s of a kill")
            time.sleep(0.001)


def life(fs: MemoryFileSystem, me: int, clocks: Clocks) -> None:
    """Works until it is killed."""
    data, number, turn, longest = bytes([me]) * (8 * KIB), 0, 0, 0
    mine = [f"/shared/{me}-{name}" for name in range(8)]
    while True:
        clocks.began[me] = begin = time.perf_counter_ns()
        step = number % 4
        if step == 0:
            fs.write_bytes(mine[number % 8], data)
        elif step == 1:
            with fs.open("/shared/all", "rb") as file:
                file.read()
        elif step == 2:
            with fs.open(mine[number % 8], "wb") as file:
                file.write(data)
        else:
            fs.write_bytes(mine[number % 8], data)
            fs.remove(mine[number % 8])
        number += 1
        if turn != clocks.turn[0]:
            turn, longest = clocks.turn[0], 0
        clocks.longest[me] = longest = max(longest, time.perf_counter_ns() - begin)


def kills(plan: Plan) -> list[dict[str, Any]]:
    """Milliseconds of each kill's cost."""
    choose, costs = random.Random(1), []
    clocks = Clocks()
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:
        fs.mkdir("/shared")
        fs.write_bytes("/shared/all", bytes(8 * KIB))

        def start(me: int) -> Child:
            clocks.began[me] = 0
            return Child(functools.partial(life, fs, me, clocks))

        workers = [start(me) for me in range(WORKERS)]
        try:
            for _ in range(plan.kills):
                time.sleep(0.1 + choose.random() / 20)
                victim = choose.randrange(WORKERS)
                others = [me for me in range(WORKERS) if me != victim]
                clocks.settle(others)  # one that has just been started works
                clocks.turn[0] += 1
                workers[victim].end()
                time.sleep(AFTER_S)
                clocks.settle(others)
                costs.append(max(clocks.longest[me] for me in others) / 1e6)
                workers[victim] = start(victim)
        finally:
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        assert not fs.check()
    return [{**figure("kill", "a SIGKILL, the longest operation of the others", costs, costs), "p99": percentile(costs, 0.99)}]


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def checks(figures: list[dict[str, Any]]) -> list[Check]:
    return [Check("a SIGKILL, to the others, p99", one["p99"], 300, "ms") for one in figures]
