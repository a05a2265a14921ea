"""Records who asks for, gets and gives back the locks of a few files, and judges the order.

When a request is *enqueued* cannot be seen from outside: a call that was made first may come to the queue second. So the
processes' words of the store are wrapped in a buffer that notes each transaction of a lock (its words, old and new values)
from inside of it. All transactions of one file are made in one mutex, so the times at which they were made, by the
monotonic clock, are their order, and `judge` follows it: each old value must be what the transaction before has left, and
the queue, the holders and every grant must be what first come, first served makes of them.

That is the order in the words. Beside it each thread notes when it really had a file: from after `open` until before
`close`. Of these times no writer's may overlap any other's. (Light holds are no transactions: only this tells of them.)

A process that is killed leaves a transaction that is noted and may have been made or not. What the next one finds tells.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing.connection
import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from dmemfs_shm import MemoryFileSystem, MFSLockTimeoutError, MFSStoreBusyError
from dmemfs_shm.paths import parse
from dmemfs_shm.store.layout import (
    FREE,
    GRANTED,
    HELD,
    LOCK_COME,
    LOCK_HEAD_SHIFT,
    LOCK_READERS,
    LOCK_WRITER,
    MUTEXES,
    N_LOCK,
    NODE_WORDS,
    QUEUED,
    REC_DIRTY,
    REC_DROPPED,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
    journal_at,
)

from ..lanes import Entry, Lane, lanes
from ..processes import DEADLINE_S, Child, ChildDiedError, Link, Task, child
from .harness import WordBuffer, attaching, instrument

PROCESSES = 6
THREADS = 2  # of the processes with even numbers
FILES = 3
LANE_BYTES = 8 << 20  # of which only what is written takes memory
MAINTAINER = PROCESSES * THREADS  # the lane of the test itself, which reaps


# ---- recording


class Noting(WordBuffer):
    """A word buffer that notes the transactions of the mutexes of files, and kills the process before one store."""

    def __init__(self, words: Any, lane: Lane, taken: Any, place: int) -> None:
        super().__init__(words, lambda _: None)
        self.taken, self.place = taken, place
        self.journals = frozenset(journal_at(number) for number in range(1, MUTEXES))
        self.first = journal_at(MUTEXES)  # below are journals, which say nothing new
        self.notes = Notes()
        self.notes.lane = lane
        self.fatal = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.fatal:
            self.fatal -= 1
            if not self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        notes = self.notes
        if key in self.journals:
            at = -1
            if value:
                notes.changes = {}
            elif notes.changes:
                at = notes.lane.note((time.monotonic_ns(), notes.changes), sure=False)
                self.taken[self.place] += len(notes.changes) == 1  # that is GRANTED to HELD
                notes.changes = None
            self.words[key] = value
            if at >= 0:
                notes.lane.is_sure(at)
        else:
            if notes.changes is not None and key >= self.first:
                notes.changes[key] = self.words[key], value
            self.words[key] = value


class Notes(threading.local):
    """What the calling thread notes: the transaction that it is in, if any, and where to."""

    changes: dict[int, tuple[int, int]] | None = None
    lane: Lane


class Customer:
    """A thread that opens and closes files all the time."""

    def __init__(self, fs: MemoryFileSystem, notes: Notes, lane: Lane, seed: str) -> None:
        self.fs, self.notes, self.lane = fs, notes, lane
        self.rng = random.Random(seed)

    def run(self, ending: Any) -> None:
        self.notes.lane = self.lane
        while not ending[0]:
            self.once()

    def once(self) -> None:
        rng = self.rng
        file, mode = rng.randrange(FILES), rng.choice(("rb", "rb", "r+b"))
        timeout = rng.choice((None, None, None, None, None, None, 0.0, 0.0005, 0.005))
        try:
            handle = self.fs.open(path_of(file), mode, lock_timeout=timeout)
        except (MFSLockTimeoutError, MFSStoreBusyError):
            return
        since = time.monotonic_ns()
        if rng.random() < 0.7:
            time.sleep(0)  # so that somebody comes while it is held
        self.lane.note((since, time.monotonic_ns(), file, mode != "rb"))
        handle.close()


def path_of(file: int) -> str:
    return f"/{file}"


def work(link: Link, name: str, all_lanes: list[Lane], place: int, seed: str, ending: Any, taken: Any) -> None:
    """A process: its threads open and close files until the word says that it is enough."""
    first = all_lanes[lanes_of(place)[0]]
    with attaching(lambda words: Noting(words, first, taken, place)):  # who attaches cleans up after a dead one
        fs = MemoryFileSystem.attach(name)
    buffer = fs._store.w
    customers = [Customer(fs, buffer.notes, all_lanes[lane], f"{seed}/{lane}") for lane in lanes_of(place)]
    buffer.fatal = link.recv()
    others = [Task(customer.run, ending) for customer in customers[1:]]
    customers[0].run(ending)
    for other in others:
        other.result()
    fs.close()


def lanes_of(place: int) -> list[int]:
    """The threads of a process, by their lanes."""
    return [place * THREADS + thread for thread in range(1 if place % 2 else THREADS)]


class Shop:
    """The processes, while they are at it."""

    def __init__(self, fs: MemoryFileSystem, seed: str, stack: contextlib.ExitStack) -> None:
        self.fs, self.seed, self.stack = fs, seed, stack
        self.rng = random.Random(seed)
        self.lanes = lanes(MAINTAINER + 1, LANE_BYTES)
        self.ending = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self.taken = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # hand-overs by process, about
        self.workers: dict[int, Child] = {}
        self.kills = 0
        for file in range(FILES):
            fs.write_bytes(path_of(file), b"x")
        self.nodes = {fs._store.names.find(parse(path_of(file)), None)[0]: file for file in range(FILES)}
        instrument(fs._store, lambda words: Noting(words, self.lanes[MAINTAINER], self.taken, PROCESSES))

    def start(self, place: int, *, fatal: int = 0) -> None:
        seed = f"{self.seed}/{self.kills}"
        worker = self.stack.enter_context(child("fork", work, self.fs.name, self.lanes, place, seed, self.ending, self.taken))
        self.workers[place] = worker
        worker.send(fatal)

    def open(self, handovers: int, *, kills: bool) -> None:
        """Until there were so many hand-overs; one process after the other is killed if *kills*."""
        for place in range(PROCESSES):
            self.start(place, fatal=self.fatal(kills))
        end = time.monotonic() + 2 * DEADLINE_S
        while sum(self.taken) < handovers:
            assert time.monotonic() < end, f"{sum(self.taken)} hand-overs in {2 * DEADLINE_S} s"
            gone = multiprocessing.connection.wait([worker.process.sentinel for worker in self.workers.values()], 0.02)
            if kills and not gone:
                self.workers[self.rng.randrange(PROCESSES)].process.kill()
            self.replace(kills)
        self.ending[0] = 1
        for place, worker in self.workers.items():
            if self.is_dead(place):
                self.bury(place)
            else:
                with contextlib.suppress(ChildDiedError) if kills else contextlib.nullcontext():
                    worker.receive()
        self.fs._store.reap_dead(None)

    def fatal(self, kills: bool) -> int:
        return self.rng.randrange(500, 30_000) if kills and self.rng.random() < 0.7 else 0

    def is_dead(self, place: int) -> bool:
        return not self.workers[place].process.is_alive()

    def bury(self, place: int) -> None:
        worker = self.workers[place]
        worker.join()
        if worker.process.exitcode == -signal.SIGKILL:
            self.kills += 1
        else:
            worker.receive()  # raises what it raised

    def replace(self, kills: bool) -> None:
        """Let others take the places of the dead."""
        for place in [place for place in self.workers if self.is_dead(place)]:
            self.bury(place)
            self.start(place, fatal=self.fatal(kills))


# ---- judging


class Transaction(NamedTuple):
    """What was stored inside one transaction of the words of one file: old and new values by word."""

    time: int
    sure: bool
    words: dict[int, tuple[int, int]]


class Interval(NamedTuple):
    """A time in which a thread really had a file open."""

    since: int
    until: int
    file: int
    writes: bool


_PLAIN = REC_DIRTY | REC_DROPPED  # bits of records that owners store outside of transactions, as is LOCK_COME of lock words


class Judge:
    """The lock of one file, as first come, first served has it."""

    def __init__(self, node: int, lock_word: int, final: Any) -> None:
        self.node = node
        self.lock_word = lock_word
        self.final = final  # the words at the end
        self.now: dict[int, int] = {}
        self.queue: list[int] = []
        self.holders: dict[int, bool] = {}  # record: whether it writes
        self.grants = 0
        self.findings: list[str] = []

    def follow(self, transactions: list[Transaction]) -> None:
        transactions = sorted(transactions)
        for place, transaction in enumerate(transactions):
            if transaction.sure or self._was_made(transaction, transactions[place + 1 :]):
                self._follow(transaction)
        if self.queue or self.holders:
            self.findings.append(f"{self.queue} wait and {self.holders} hold it in the end")

    def _was_made(self, transaction: Transaction, later: list[Transaction]) -> bool:
        """Whether a transaction in which its process was killed counts: what did the next one find?"""
        for word, (old, new) in transaction.words.items():
            if old != new:
                found = next((other.words[word][0] for other in later if word in other.words), self.final[word])
                return self._same(word, found, new)
        return False

    def _same(self, word: int, one: int, other: int) -> bool:
        plain = LOCK_COME if word == self.lock_word else _PLAIN
        return one | plain == other | plain

    def _follow(self, transaction: Transaction) -> None:
        records: list[tuple[int, int, int, bool]] = []
        for word, (old, new) in transaction.words.items():
            if not self._same(word, self.now.get(word, old), old):
                self._complain(transaction, f"word {word} was {self.now[word]:#x}, and {old:#x} was found")
            self.now[word] = new
            if word != self.lock_word:
                records.append((word, old & REC_STATE, new & REC_STATE, bool((old | new) & REC_WRITER)))
        for word, old, new, _ in records:
            if new == FREE:
                self._leave(transaction, word, old)
        for word, old, new, writes in records:
            if new not in (old, FREE):
                self._come(transaction, word, old, new, writes)
        self._compare(transaction)

    def _leave(self, transaction: Transaction, record: int, state: int) -> None:
        if state == QUEUED and record in self.queue:
            self.queue.remove(record)
        elif state in (GRANTED, HELD) and record in self.holders:
            del self.holders[record]
        else:
            self._complain(transaction, f"record {record} leaves, which is not there")

    def _come(self, transaction: Transaction, record: int, old: int, new: int, writes: bool) -> None:
        if (old, new) == (FREE, QUEUED):
            self.queue.append(record)
            return
        if (old, new) == (GRANTED, HELD):
            return
        if (old, new) == (QUEUED, GRANTED):
            self.grants += 1
            if self.queue[:1] != [record]:
                self._complain(transaction, f"record {record} is granted before {self.queue[: self.queue.index(record)]}")
            self.queue.remove(record)
        elif (old, new) == (FREE, HELD):
            if self.queue:
                self._complain(transaction, f"record {record} passes {self.queue}, which wait")
        else:
            self._complain(transaction, f"record {record} goes from {old} to {new}")
        if any(self.holders.values()) or (writes and self.holders):
            self._complain(transaction, f"record {record} gets it beside {self.holders}")
        self.holders[record] = writes

    def _compare(self, transaction: Transaction) -> None:
        """The lock word says what the records say."""
        lock = self.now.get(self.lock_word, 0)
        writers = sum(self.holders.values())
        said = lock & LOCK_READERS, bool(lock & LOCK_WRITER), bool(lock >> LOCK_HEAD_SHIFT)
        if said != (len(self.holders) - writers, writers == 1, bool(self.queue)):
            self._complain(transaction, f"the lock word says {said}, the records {self.holders} and {self.queue}")

    def _complain(self, transaction: Transaction, what: str) -> None:
        self.findings.append(f"node {self.node}, at {transaction.time} ns: {what}")


def transactions_of(entries: list[Entry], nodes_at: int, nodes: Iterable[int]) -> dict[int, list[Transaction]]:
    """The transactions among some notes, by node."""
    found: dict[int, list[Transaction]] = {node: [] for node in nodes}
    for value, sure in entries:
        if len(value) == 2:
            time_ns, words = value
            node = next(
                (value >> REC_NODE_SHIFT for word, pair in words.items() if word < nodes_at for value in pair if value), 0
            )
            if node in found:
                lock = nodes_at + node * NODE_WORDS + N_LOCK
                words = {word: pair for word, pair in words.items() if word < nodes_at or word == lock}
                found[node].append(Transaction(time_ns, sure, words))
    return found


def overlaps(intervals: list[Interval]) -> list[str]:
    """The pairs of intervals of one file that overlap though one of them writes."""
    found = []
    last = last_writer = Interval(0, 0, 0, writes=False)
    for interval in sorted(intervals):
        before = last if interval.writes else last_writer
        if interval.since < before.until:
            found.append(f"{interval} overlaps {before}")
        last = max(last, interval, key=lambda each: each.until)
        if interval.writes:
            last_writer = max(last_writer, interval, key=lambda each: each.until)
    return found


class Outcome(NamedTuple):
    """What a run has shown."""

    handovers: int
    kills: int
    findings: list[str]


def judge(shop: Shop) -> Outcome:
    """Follow all that was noted."""
    store = shop.fs._store
    entries = [entry for lane in shop.lanes for entry in lane.entries()]
    findings: list[str] = []
    handovers = 0
    final = store.w
    for node, transactions in transactions_of(entries, store.layout.nodes_at, shop.nodes).items():
        judged = Judge(node, store.layout.node_at(node) + N_LOCK, final)
        judged.follow(transactions)
        handovers += judged.grants
        findings += judged.findings
    intervals = [Interval(*entry.value) for entry in entries if len(entry.value) == 4]
    for file in range(FILES):
        findings += overlaps([interval for interval in intervals if interval.file == file])
    return Outcome(handovers, shop.kills, findings)


def run(fs: MemoryFileSystem, seed: str, handovers: int, *, kills: bool) -> Outcome:
    """Let processes contend for files until there were so many hand-overs, and judge what was noted."""
    with contextlib.ExitStack() as stack:
        shop = Shop(fs, seed, stack)
        shop.open(handovers, kills=kills)
        return judge(shop)
