"""How everything here is timed.

A workload goes in rounds. In each round every backend does the same batch, one after the other, so that what the machine
does meanwhile happens to all of them. The first round is a warm-up and not counted. A ratio is that of two batches of the
same round. Given are medians and, as their spread, the percentiles 5 and 95. The garbage collector is off. "CPU" is this
process's own time: where it is far below the wall time, something else had the processor, and the ratio of the CPU times is
the one to believe.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

KIB, MIB = 1 << 10, 1 << 20
PAGE = bytes(range(256)) * 16
SHM = "/dev/shm"
OURS = "dmemfs_shm"
ROUNDS_MIN = 3

Operation = Callable[[Any], object]


@dataclass(frozen=True)
class Plan:
    """How much of everything is done."""

    seconds: float  # for each workload, with its untimed parts
    stores: int  # created and closed
    imports: int  # each in a process of its own
    large: int  # bytes of the large file
    waiting: int  # files that wait to be claimed
    wakes: int
    idle: float  # seconds that eight processes wait in vain
    rounds: int  # of those workloads that are a second or more each
    cycles: float  # seconds of a round of workers, or threads
    many: int  # files of the large store
    churn: int  # creates, growths and removals in random order
    kills: int


FULL = Plan(
    seconds=1.0,
    stores=50,
    imports=7,
    large=256 * MIB,
    waiting=10_000,
    wakes=100,
    idle=5.0,
    rounds=5,
    cycles=1.0,
    many=1_000_000,
    churn=1_000_000,
    kills=60,
)
QUICK = Plan(
    seconds=0.03,
    stores=3,
    imports=1,
    large=4 * MIB,
    waiting=100,
    wakes=3,
    idle=0.1,
    rounds=1,
    cycles=0.1,
    many=2_000,
    churn=2_000,
    kills=2,
)


class Check(NamedTuple):
    """What is to be reached: *value*, a ratio of times unless it has a unit, is to be at most *most*."""

    what: str
    value: float
    most: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.most


class Sample(NamedTuple):
    """Nanoseconds of one batch."""

    wall: int
    cpu: int


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """The collector off, after it has had its turn."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed(operation: Operation, items: Sequence[Any]) -> Sample:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for item in items:
        operation(item)
    wall = time.perf_counter_ns() - wall
    return Sample(wall, time.process_time_ns() - cpu)


def each(operation: Operation, items: Sequence[Any]) -> None:
    for item in items:
        operation(item)


def in_rounds(batches: dict[str, Callable[[], Sample]], seconds: float, rounds: int = ROUNDS_MIN) -> dict[str, list[Sample]]:
    """Batch after batch, round after round, until the time is over; the samples by backend, without the first round's."""
    samples: dict[str, list[Sample]] = {name: [] for name in batches}
    with without_gc():
        end = time.perf_counter() + seconds
        while len(samples[next(iter(samples))]) <= rounds or time.perf_counter() < end:
            for name, batch in batches.items():
                samples[name].append(batch())
    return {name: taken[1:] for name, taken in samples.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the percentiles 5 and 95, as they are among the values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {key: ordered[round(last * part)] for key, part in (("median", 0.5), ("p5", 0.05), ("p95", 0.95))}


def compared(workload: str, what: str, samples: dict[str, list[Sample]], batch: int) -> dict[str, Any]:
    """The result of a workload; the first backend is the mark. ``ours_to``: our time over that of each other one."""
    mark = next(iter(samples))
    results = [
        {
            "backend": backend,
            "wall_us": spread([sample.wall / batch / 1e3 for sample in taken]),
            "cpu_us": spread([sample.cpu / batch / 1e3 for sample in taken]),
            "ratio": spread([one.wall / other.wall for one, other in zip(taken, samples[mark], strict=True)]),
            "cpu_ratio": spread([one.cpu / max(other.cpu, 1) for one, other in zip(taken, samples[mark], strict=True)]),
        }
        for backend, taken in samples.items()
    ]
    ours = samples.get(OURS, [])
    return {
        "workload": workload,
        "what": what,
        "mark": mark,
        "batch": batch,
        "rounds": len(samples[mark]),
        "results": results,
        "ours_to": {
            backend: spread([one.wall / other.wall for one, other in zip(ours, taken, strict=True)])
            for backend, taken in samples.items()
            if ours and backend != OURS
        },
    }


def checks_of(result: dict[str, Any], marks: dict[str, float], what: str = "") -> list[Check]:
    """Whether our median ratio to each backend of *marks* is at most what is given there."""
    return [
        Check(f"{what or result['workload']}, to {backend}", result["ours_to"][backend]["median"], most)
        for backend, most in marks.items()
        if backend in result["ours_to"]
    ]


def figure(name: str, what: str, walls: Sequence[float], cpus: Sequence[float]) -> dict[str, Any]:
    """A single figure: milliseconds, wall and CPU."""
    return {"figure": name, "what": what, "samples": len(walls), "wall_ms": spread(walls), "cpu_ms": spread(cpus)}
