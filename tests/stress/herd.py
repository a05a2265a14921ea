"""A herd of worker processes that are killed, stopped and replaced at random: what the tortures have in common.

`Board` is what is true outside the store, `Timing` what an operation took. `Herd` starts workers by forking a warm
process, kills one or many at once, stops one for moments or seconds, starts others in their place, sees who hangs, and
leaves nobody behind. A subclass says what a worker does (`work`) and what must hold when nobody is left (`examine`).

A worker leads a process group of its own: whatever it forked is gone before its successor starts. It dies with its parent.

Seeds. Each kind of event (kills, stops, storms, ...) draws from a stream of its own, and so does each life of each worker.
A seed therefore repeats who is killed and how long after the one before, who is stopped and for how long, and what the
n-th life of a worker does; it does not repeat the moments at which the processes get to it.

A *stall* is the longest operation of a thread between two deaths, of those that need not wait for anybody's file, while
nobody was stopped: what a death costs those who live on.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import math
import mmap
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

#: What takes so long is taken to hang. Bounds a hang, measures nothing.
HANG_S = 30.0
NEWBORN_S = 0.2  # after which a fork that a stop came upon is over
FAINTING_S = 0.2  # who has not stopped itself by then is stopped
BUCKETS_AN_OCTAVE = 8
BUCKETS = 40 * BUCKETS_AN_OCTAVE  # durations by the logarithm of their microseconds
TOLD_BYTES = 60_000  # fits into a pipe that nobody reads yet
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class ViolationError(AssertionError):
    """Something that the store promises did not hold."""


# ---- what is true, outside the store


class Board:
    """Words that all processes of a run share. Every word has one writer at a time.

    A *place* is a thread of a worker, whichever life it is in. `operations` names what is measured; *waiting* are those of
    them that may wait for a file which somebody else has open. *more* are words that a torture needs besides.
    """

    def __init__(self, places: int, operations: Sequence[str], waiting: frozenset[str] = frozenset(), **more: int) -> None:
        self.places, self.operations, self.waiting = places, tuple(operations), waiting
        each = places * len(self.operations)
        sizes = {
            "ending": 1,
            "stops": 1,  # odd while somebody is stopped
            "stopped": 1,  # the process group that was stopped last
            "deaths": 1,  # of workers, as far as the parent has seen them
            "faint": places,  # of a worker's first place, the parent: it is to stop before its next store
            "fainted": places,  # times it did
            "since": places,  # when the operation under way began, ns; 0 if there is none
            "doing": places,  # which operation that is
            "done": each,
            "refused": each,
            "worst": each,  # ns, while nobody was stopped
            "times": places * BUCKETS,  # of all operations while nobody was stopped
            "interval": places,  # the deaths before the operations that `longest` is about
            "longest": places,  # ns
            "stalls": places * BUCKETS,
            **more,
        }
        self._map = mmap.mmap(-1, 8 * sum(sizes.values()))
        words = memoryview(self._map).cast("Q")
        start = 0
        for name, size in sizes.items():
            setattr(self, name, words[start : start + size])
            start += size

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def begin_life(self, place: int) -> None:
        """The place has nothing under way: whoever had it is dead."""
        self.since[place] = self.faint[place] = 0

    def worst_ms(self, *, waiting: bool) -> dict[str, float]:
        """The longest of each operation, of those that may wait for others or of the rest, longest first."""
        count = len(self.operations)
        found = {
            name: round(max(self.worst[place * count + i] for place in range(self.places)) / 1e6, 1)
            for i, name in enumerate(self.operations)
            if (name in self.waiting) == waiting
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def quantile_ms(self, words: Any, share: float) -> float:
        """Upper bound of the bucket in which the quantile lies, of "times" or "stalls"."""
        buckets = [sum(words[place * BUCKETS + b] for place in range(self.places)) for b in range(BUCKETS)]
        rest = share * sum(buckets)
        for bucket, count in enumerate(buckets):
            rest -= count
            if rest <= 0:
                return round(2 ** ((bucket + 1) / BUCKETS_AN_OCTAVE) / 1000, 3)
        return 0.0


def _bucket(took_ns: int) -> int:
    return min(int(BUCKETS_AN_OCTAVE * math.log2(took_ns / 1000)), BUCKETS - 1) if took_ns > 1000 else 0


class Timing:
    """`with Timing(board, place, operation)`: the clock runs, for those who watch, and for the figures."""

    __slots__ = ("board", "operation", "place", "start", "stops")

    def __init__(self, board: Board, place: int, operation: int) -> None:
        self.board, self.place, self.operation = board, place, operation

    def __enter__(self) -> None:
        self.stops, self.start = self.board.stops[0], time.monotonic_ns()
        self.board.doing[self.place] = self.operation
        self.board.since[self.place] = self.start

    def __exit__(self, *_: object) -> None:
        board, place = self.board, self.place
        took = time.monotonic_ns() - self.start
        board.since[place] = 0
        at = place * len(board.operations) + self.operation
        board.done[at] += 1
        if self.stops != board.stops[0] or self.stops & 1:
            return
        board.worst[at] = max(board.worst[at], took)
        board.times[place * BUCKETS + _bucket(took)] += 1
        if board.operations[self.operation] in board.waiting:
            return
        if board.interval[place] != board.deaths[0]:
            if board.longest[place]:
                board.stalls[place * BUCKETS + _bucket(board.longest[place])] += 1
            board.interval[place], board.longest[place] = board.deaths[0], 0
        board.longest[place] = max(board.longest[place], took)


# ---- processes


def adopt_orphans() -> None:
    """From here on the processes that a dead worker leaves behind are ours to wait for."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child(NamedTuple):
    """A forked process, and the pipe through which it says what it has to say, at its end."""

    pid: int
    pipe: int

    def wait(self, flags: int = 0) -> int | None:
        """Its exit code, or None if it has not ended (with WNOHANG)."""
        pid, status = os.waitpid(self.pid, flags)
        return os.waitstatus_to_exitcode(status) if pid else None

    def told(self) -> str:
        """What it said; empty if it was killed. Once, after its end."""
        try:
            return os.read(self.pipe, TOLD_BYTES).decode(errors="replace")
        except BlockingIOError:  # somebody who inherited the other end is still there
            return ""
        finally:
            os.close(self.pipe)


def fork(function: Callable[[], str], *, group: bool = False) -> Child:
    """Run function() in a forked process, the leader of a group of its own if *group*; what it returns is told.

    It exits with 1 if it raised, and tells the traceback. It is killed when the thread that called this is gone.
    """
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writes)
        if group:
            with contextlib.suppress(OSError):  # it has done it itself
                os.setpgid(pid, pid)
        return Child(pid, reads)
    code = 0
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(2)
        if group:
            os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1)  # for those who look at a run that hangs
        text = function()
    except BaseException:  # noqa: BLE001  # whatever it was, the parent is told
        code, text = 1, traceback.format_exc()
    os.write(writes, text.encode()[:TOLD_BYTES])
    os._exit(code)


def states_of(group: int) -> Iterator[str]:
    """What the kernel says about each process of a group that hangs."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry)) == group:
                with open(f"/proc/{entry}/status") as status, open(f"/proc/{entry}/syscall") as call:
                    lines = [line.split() for line in status if line.startswith(("State", "PPid", "Sig", "Shd"))]
                    yield f"process {entry} of group {group}: {lines}, system call {call.read().split()}"


def bury(group: int) -> None:
    """See that nothing is left of a process group whose leader is dead."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


class Fate:
    """What is called before each store of a worker into the store: it dies before the *left*th, after *dying*; and it
    stops before the next one when its parent wants that."""

    def __init__(self, board: Board, place: int, left: int, dying: Callable[[], None] = lambda: None) -> None:
        self.board, self.place, self.left, self.dying = board, place, left, dying

    def __call__(self, _what: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.dying()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.board.faint[self.place]:
            self.board.faint[self.place] = 0
            self.board.fainted[self.place] += 1
            os.kill(os.getpid(), signal.SIGSTOP)


# ---- what a herd has to live with, and what was seen


def option(default: Any, text: str) -> Any:
    """A field of `Conditions` that is an option of the command line, too."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class Conditions:
    """What a herd has to live with. Rates are means, a second."""

    seed: int = option(1, "repeats all choices of a run, though not the moments")
    backend: str = option("generation", "generation or ofd")
    seconds: float = option(10.0, "how long it runs")
    until_kills: int = option(0, "run until so many deaths were survived instead of for --seconds")
    processes: int = option(8, "workers at once")
    threads: int = option(2, "threads a worker")
    kills_per_second: float = option(10.0, "SIGKILLs of one worker")
    storms_per_second: float = option(0.2, "SIGKILLs of several at once, of all but one, or of everyone")
    suicidal: float = option(0.25, "share of the workers that kill themselves before a random store")
    stops_per_second: float = option(0.5, "SIGSTOPs of one worker, for up to 0.4 s")
    long_stops_per_second: float = option(0.04, "the same, for 1.5 to 4 s, half of them before a store into the store")

    @classmethod
    def from_command_line(cls, text: str) -> Conditions:
        """Every field is an option of its name; the seed is random unless given, and printed by whoever calls."""
        parser = argparse.ArgumentParser(description=text)
        for field in dataclasses.fields(cls):
            name, about = f"--{field.name.replace('_', '-')}", f"{field.metadata['help']} (default: {field.default})"
            if isinstance(field.default, bool):
                parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default, help=about)
            else:
                parser.add_argument(name, type=type(field.default), default=field.default, help=about)
        parser.set_defaults(seed=random.randrange(1 << 32))
        return cls(**vars(parser.parse_args()))


@dataclasses.dataclass(kw_only=True)
class Figures:
    """What a run saw, of the things that all herds have. A finding is something that must not be."""

    seed: int
    backend: str
    seconds: float
    kills: int  # by the parent, one by one and in storms
    suicides: int
    storms: int
    massacres: int  # storms that left nobody; a fresh process found the store sound
    stops: int
    long_stops: int
    stops_at_a_store: int
    lives: int
    operations: int
    refused: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    p99_stall_ms: float
    longest_stall_ms: float
    stalls: str
    longest_wait_ms: float
    parent_lag_ms: float
    parent_rss_kib: tuple[int, int]  # after the first tenth, at the end
    findings: list[str]

    @property
    def deaths(self) -> int:
        """Of processes that had the store."""
        return self.kills + self.suicides

    def __str__(self) -> str:
        return "\n".join(f"{f.name:20} {getattr(self, f.name)}" for f in dataclasses.fields(self))


# ---- the herd


class Schedule:
    """Events at a mean rate, with a stream of choices of their own."""

    def __init__(self, seed: int, what: str, per_second: float) -> None:
        self.rng = random.Random(f"{seed}:{what}")
        self.per_second = per_second
        self.next = 0.0

    def due(self, now: float) -> bool:
        """Whether the next one is to happen; then the one after is drawn."""
        if not self.per_second:
            return False
        if self.next and now < self.next:
            return False
        first, self.next = not self.next, now + self.rng.expovariate(self.per_second)
        return not first


@dataclasses.dataclass
class Worker:
    """A running worker process."""

    child: Child
    index: int
    life: int  # how many lives this worker had before
    rng: random.Random  # of this life
    is_mortal: bool  # it has a `Fate`


class Herd:
    """Starts, kills, stops and replaces workers until the time is up."""

    def __init__(self, conditions: Conditions, board: Board) -> None:
        self.conditions, self.board = conditions, board
        self.workers: list[Worker | None] = [None] * conditions.processes
        self.lives = [0] * conditions.processes
        self.kills = self.suicides = self.storms = self.massacres = self.stops = self.long_stops = 0
        self.findings: list[str] = []
        self.began = time.monotonic()
        self.lag_s = 0.0
        self.rss_kib = [0, 0]
        self._gauged = 0.0
        self._stopped: tuple[Worker, float] | None = None  # and when it goes on
        self._newborn: deque[tuple[float, Worker]] = deque()  # whose children to look after, and when
        self._is_long = False
        self._fainting = math.inf  # when it is stopped if it has not done so itself
        self._killing = self.schedule("kills", conditions.kills_per_second)
        self._storms = self.schedule("storms", conditions.storms_per_second)
        self._stops = self.schedule("stops", conditions.stops_per_second)
        self._long_stops = self.schedule("long stops", conditions.long_stops_per_second)

    # ---- what a torture says for itself

    def work(self, worker: Worker) -> str:
        """What a worker does, in its own process; its failures, empty if there are none."""
        raise NotImplementedError

    def examine(self) -> list[str]:
        """What is wrong now that nobody is in the store."""
        return []

    def before_start(self, worker: Worker) -> None:
        """The last life of this worker is over, with all that it had forked; the next one is about to begin."""

    def before_kill(self, worker: Worker) -> None:
        """The worker is about to be killed."""

    def after_end(self, worker: Worker, code: int) -> None:
        """A worker has ended by itself."""

    def each_turn(self, now: float) -> None:
        """Whatever else is to be done all the time."""

    def keep_evidence(self) -> None:
        """Somebody hangs; everybody is still there."""

    # ---- the run

    def schedule(self, what: str, per_second: float) -> Schedule:
        return Schedule(self.conditions.seed, what, per_second)

    def places_of(self, index: int) -> range:
        threads = self.conditions.threads
        return range(index * threads, (index + 1) * threads)

    @property
    def deaths(self) -> int:
        return self.kills + self.suicides

    def run(self) -> None:
        try:
            for index in range(len(self.workers)):
                self.start(index)
            before = time.monotonic()
            while not self.is_over(before) and not self.board.ending[0]:
                now = time.monotonic()
                self.lag_s, before = max(self.lag_s, now - before), now
                self.turn(now)
                select.select([], [], [], 0.002)
        finally:
            self.finish()

    def is_over(self, now: float) -> bool:
        wanted, seconds = self.conditions.until_kills, self.conditions.seconds
        share = self.deaths / wanted if wanted else (now - self.began) / seconds
        if now >= self._gauged + 1:
            self._gauged = now
            self.gauge(first=share < 0.1)
        return share >= 1

    def gauge(self, *, first: bool) -> None:
        """Once a second: what must not grow. *first*: this is the beginning, which the rest is compared with."""
        self.rss_kib[1] = _rss_kib()
        if first or not self.rss_kib[0]:
            self.rss_kib[0] = self.rss_kib[1]

    def turn(self, now: float) -> None:
        for index in range(len(self.workers)):
            worker = self.workers[index]
            code = self.collect(index, os.WNOHANG)
            if worker is not None and code is not None:
                self.suicides += code == -signal.SIGKILL
                self.after_end(worker, code)
                self.start(index)
        if self._stopped is not None and now >= self._fainting:
            self.signal_stop(self._stopped[0])
        if self._stopped is not None and now >= self._stopped[1]:
            self.resume()
        if self._killing.due(now):
            victim = self._killing.rng.randrange(len(self.workers))
            if not self.is_stopped_for_long(victim):  # storms do not spare it
                self.kill([victim])
        if self._storms.due(now):
            self.storm(self._storms.rng)
        if self._stops.due(now):
            self.stops += self.stop(self._stops.rng, now, (0.02, 0.1, 0.4))
        if self._long_stops.due(now):
            inside = self._long_stops.rng.random() < 0.5
            self.long_stops += self.stop(self._long_stops.rng, now, (2.0, 4.0), least=1.5, inside=inside)
        self.each_turn(now)
        self.resume_newborn(now)
        self.watch(now)

    def start(self, index: int) -> None:
        rng = random.Random(f"{self.conditions.seed}:{index}:{self.lives[index]}")
        worker = Worker(Child(0, -1), index, self.lives[index], rng, rng.random() < self.conditions.suicidal)
        self.lives[index] += 1
        for place in self.places_of(index):
            self.board.begin_life(place)
        self.before_start(worker)
        worker.child = fork(lambda: self._work(worker), group=True)
        self.workers[index] = worker

    def _work(self, worker: Worker) -> str:
        try:
            text = self.work(worker)
        except BaseException:
            self.board.ending[0] = 1
            raise
        if text:
            self.board.ending[0] = 1
        return text

    def collect(self, index: int, flags: int = 0) -> int | None:
        """Take a worker that has ended out of the list, with all that it forked; its exit code, None if it goes on."""
        worker = self.workers[index]
        assert worker is not None
        code = worker.child.wait(flags)
        if code is None:
            return None
        bury(worker.child.pid)
        text = worker.child.told()
        self.workers[index] = None
        self.board.deaths[0] += 1
        if code != -signal.SIGKILL and (code or text):
            self.findings.append(f"worker {index}, life {worker.life}, ended with {code}: {text}")
        if self._stopped is not None and self._stopped[0] is worker:
            self.nobody_is_stopped()
        return code

    # ---- killing

    def kill(self, victims: Sequence[int]) -> None:
        """Kill these workers, all before the first is waited for, and start others in their place."""
        for index in victims:
            worker = self.workers[index]
            assert worker is not None
            self.before_kill(worker)
            os.kill(worker.child.pid, signal.SIGKILL)
        self.kills += len(victims)
        for index in victims:
            self.collect(index)
        if len(victims) == len(self.workers):
            self.massacres += 1
            self.look()
            self.board.ending[0] |= bool(self.findings)
        for index in victims:
            self.start(index)

    def look(self) -> None:
        """Nobody is left: see what is wrong; not being able to see is a finding, too."""
        try:
            self.findings += self.examine()
        except Exception:  # noqa: BLE001  # whatever it was, it is said
            self.findings.append(f"nobody is left, and: {traceback.format_exc()}")

    def storm(self, rng: random.Random) -> None:
        """Several die at once, or all but one, or everyone."""
        count = len(self.workers)
        size = rng.choice((rng.randint(2, count), count - 1, count)) if count > 2 else count
        self.storms += 1
        self.kill(rng.sample(range(count), size))

    # ---- stopping

    def stop(
        self, rng: random.Random, now: float, most_s: Sequence[float], *, least: float = 0.0, inside: bool = False
    ) -> bool:
        """Stop a worker, with what it forked, for a while; False if somebody is stopped already.

        inside: let it stop itself before its next store into the store, if there is one who can, and soon.
        """
        draw, length = rng.random(), rng.uniform(least, rng.choice(most_s))
        if self._stopped is not None:
            return False
        able = [worker for worker in self.living() if worker.is_mortal] if inside else []
        candidates = able or list(self.living())
        worker = candidates[int(draw * len(candidates))]
        self.board.stopped[0] = worker.child.pid
        self.board.stops[0] += 1
        self._stopped, self._is_long = (worker, now + length), least > 0
        if able:
            self.board.faint[self.places_of(worker.index)[0]] = 1
            self._fainting = now + FAINTING_S
        else:
            self.signal_stop(worker)
        return True

    def is_stopped_for_long(self, index: int) -> bool:
        return self._stopped is not None and self._stopped[0].index == index and self._is_long

    def signal_stop(self, worker: Worker) -> None:
        self._fainting = math.inf
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.child.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the one who is stopped go on, if there is one."""
        if self._stopped is not None:
            worker, _ = self._stopped
            self.board.faint[self.places_of(worker.index)[0]] = 0
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.child.pid, signal.SIGCONT)
            self._newborn.append((time.monotonic() + NEWBORN_S, worker))
            self.nobody_is_stopped()

    def resume_newborn(self, now: float) -> None:
        """A child that was being forked when its group was stopped may come to stop when the others have gone on already."""
        while self._newborn and now >= self._newborn[0][0]:
            _, worker = self._newborn.popleft()
            if worker in self.workers and (self._stopped is None or self._stopped[0] is not worker):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.child.pid, signal.SIGCONT)

    def nobody_is_stopped(self) -> None:
        self._stopped, self._fainting = None, math.inf
        self.board.stops[0] += 1

    # ---- watching, and the end

    def watch(self, now: float) -> None:
        for place in range(self.board.places):
            since = self.board.since[place]
            if since and now - since / 1e9 > HANG_S:
                self.findings.append(f"place {place} hangs in {self.board.operations[self.board.doing[place]]}")
                self.board.ending[0] = 1
        if self.findings and self.board.ending[0]:
            self.alarm()

    def alarm(self) -> None:
        """All stacks, to the standard error output."""
        for worker in self.living():
            print(*states_of(worker.child.pid), sep="\n", file=sys.stderr, flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.child.pid, signal.SIGUSR1)
        select.select([], [], [], 0.5)
        self.keep_evidence()

    def living(self) -> Iterator[Worker]:
        return (worker for worker in self.workers if worker is not None)

    def finish(self) -> None:
        """Let the workers come to their end; one that does not is a finding. Nobody is left behind."""
        self.board.ending[0] = 1
        self.resume()
        end = time.monotonic() + HANG_S
        while any(self.living()) and time.monotonic() < end:
            self.resume_newborn(time.monotonic())
            for worker in list(self.living()):
                self.collect(worker.index, os.WNOHANG)
            select.select([], [], [], 0.002)
        left = list(self.living())
        if left:
            self.findings += [f"worker {worker.index}, life {worker.life}, does not end" for worker in left]
            self.alarm()
        for worker in left:
            self.before_kill(worker)
            os.kill(worker.child.pid, signal.SIGKILL)
            self.collect(worker.index)

    def figures(self) -> dict[str, Any]:
        """The fields of `Figures`."""
        board, conditions = self.board, self.conditions
        stalls, waits = board.worst_ms(waiting=False), board.worst_ms(waiting=True)
        return {
            "seed": conditions.seed,
            "backend": conditions.backend,
            "seconds": round(time.monotonic() - self.began, 1),
            "kills": self.kills,
            "suicides": self.suicides,
            "storms": self.storms,
            "massacres": self.massacres,
            "stops": self.stops,
            "long_stops": self.long_stops,
            "stops_at_a_store": sum(board.fainted),
            "lives": sum(self.lives),
            "operations": sum(board.done),
            "refused": sum(board.refused),
            "p50_ms": board.quantile_ms(board.times, 0.5),
            "p99_ms": board.quantile_ms(board.times, 0.99),
            "p999_ms": board.quantile_ms(board.times, 0.999),
            "p99_stall_ms": board.quantile_ms(board.stalls, 0.99),
            "longest_stall_ms": max(stalls.values(), default=0.0),
            "stalls": ", ".join(f"{name} {took:.0f}" for name, took in list(stalls.items())[:6]),
            "longest_wait_ms": max(waits.values(), default=0.0),
            "parent_lag_ms": round(self.lag_s * 1e3, 1),
            "parent_rss_kib": tuple(self.rss_kib),
            "findings": self.findings,
        }


def _rss_kib() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024
