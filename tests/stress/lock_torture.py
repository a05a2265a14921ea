"""Random killing, stopping and locking: `python -m tests.stress.lock_torture --seconds 60`.

Worker processes with several threads lock a handful of nodes, shared and exclusively, with and without a timeout, and
run transactions of two words. The parent kills random workers with SIGKILL and starts others in their place; some
workers kill themselves at a random store into the store; now and then one is stopped for a moment.

What is true is kept outside the store, in a mapping that only these processes have. Exclusion is proven twice: who has
a node leaves a mark that nobody else may find, and counts a number up that must not lose an increment. A worker is
*doomed* from just before it is killed; from then on its marks prove nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import logging
import mmap
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from dmemfs_shm.errors import MFSLockTimeoutError, MFSStoreBusyError
from dmemfs_shm.store import attachment
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.journal import Plan, commit
from dmemfs_shm.store.layout import N_CREATED, N_MODIFIED, REC_DIRTY, REC_WRITER, RECOVERIES

from ..crash.harness import WordBuffer, instrument
from ..lockstore import NODES, inside, lock, lock_findings, lock_store, settle, unlock

#: A worker that waits so long is taken to hang. Bounds a hang, measures nothing.
HANG_S = 30.0
LIVES_MAX = 1 << 16
BUCKETS = 40  # waits by log2 of their microseconds
PAIR = 20  # the node whose two words always change together


class Board:
    """What is true, outside the store. Every word has one writer at a time, as its comment says."""

    def __init__(self, places: int) -> None:
        self.places = places  # one a thread of a worker: processes * threads
        nodes = max(NODES) + 1
        sizes = {
            "ending": 1,  # parent
            "stops": 1,  # parent: odd while a worker is stopped
            "doomed": LIVES_MAX,  # by life: parent, or the worker about to kill itself
            "life": places,  # parent: which life of a worker has the place
            "writer": nodes,  # whoever has the node exclusively: its life + 1
            "counter": nodes,  # whoever has the node exclusively
            "reading": places * nodes,  # the place's thread: it has the node shared
            "counted": places * nodes,  # the place's thread: increments that it finished
            "counting": places,  # the place's thread: in the middle of one
            "unsure": 1,  # parent: increments of killed workers that may or may not have happened
            "waiting": places,  # the place's thread: since when, in ns
            "held": places,  # the place's thread: locks taken
            "refused": places,  # tries and timeouts in vain
            "busy": places,  # MFSStoreBusyError
            "worst": places,  # longest wait while nobody was stopped, ns
            "waits": places * BUCKETS,
        }
        self.map = mmap.mmap(-1, 8 * sum(sizes.values()))
        words = memoryview(self.map).cast("Q")
        start = 0
        for name, size in sizes.items():
            setattr(self, name, words[start : start + size])
            start += size
        self.nodes = nodes

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@dataclasses.dataclass
class Figures:
    """What a run saw."""

    seed: int
    backend: str
    seconds: float
    held: int
    refused: int
    busy: int
    kills: int
    suicides: int
    stops: int
    recoveries: int
    wait_p50_ms: float
    wait_p999_ms: float
    worst_ms: float
    unsure: int
    findings: list[str]

    def __str__(self) -> str:
        return "\n".join(f"{f.name:12} {getattr(self, f.name)}" for f in dataclasses.fields(self))


class ViolationError(AssertionError):
    """Two had what only one may have."""


# ---- a worker


class Player:
    """One thread of a worker."""

    def __init__(self, board: Board, store: Attachment, life: int, place: int, rng: random.Random) -> None:
        self.board, self.store, self.me, self.place, self.rng = board, store, life + 1, place, rng

    def play(self) -> None:
        while not self.board.ending[0]:
            draw = self.rng.random()
            if draw < 0.1:
                self.transaction()
            elif draw < 0.2:
                self.nested()
            else:
                self.once(self.rng.choice(NODES))

    def once(self, node: int) -> None:
        kind = self.rng.choice((0, 0, REC_WRITER, REC_WRITER | REC_DIRTY))
        with contextlib.suppress(MFSLockTimeoutError, MFSStoreBusyError):
            record = self.take(node, kind, self.rng.choice((None, None, None, 0.0, self.rng.random() * 0.02)))
            (self.write if kind else self.read)(node)
            unlock(self.store, record)

    def nested(self) -> None:
        """Two nodes at once, in one order for all; the first perhaps twice."""
        first, second = sorted(self.rng.sample(NODES, 2))
        with contextlib.suppress(MFSLockTimeoutError, MFSStoreBusyError):
            outer = self.take(first, 0, None)
            again = self.take(first, 0, None) if self.rng.random() < 0.3 else None
            try:
                inner = self.take(second, REC_WRITER, self.rng.choice((None, 0.01)))
                self.write(second)
                unlock(self.store, inner)
            finally:
                if again is not None:
                    unlock(self.store, again)
                unlock(self.store, outer)

    def take(self, node: int, kind: int, timeout: float | None) -> int:
        board, place = self.board, self.place
        stops, start = board.stops[0], time.monotonic_ns()
        board.waiting[place] = start
        try:
            record = lock(self.store, node, kind, timeout)
        except MFSLockTimeoutError:
            board.refused[place] += 1
            raise
        except MFSStoreBusyError:
            board.busy[place] += 1
            raise
        finally:
            took = time.monotonic_ns() - start
            board.waiting[place] = 0
            if stops == board.stops[0] and not stops & 1:
                board.worst[place] = max(board.worst[place], took)
                board.waits[place * BUCKETS + min(BUCKETS - 1, (took // 1000).bit_length())] += 1
        board.held[place] += 1
        return record

    def foreign(self, life: int) -> bool:
        return bool(life) and life != self.me and not self.board.doomed[life - 1]

    def pause(self) -> None:
        for _ in range(self.rng.randrange(60)):
            pass
        if self.rng.random() < 0.02:
            time.sleep(0.0005)

    def read(self, node: int) -> None:
        board, mark = self.board, self.place * self.board.nodes + node
        if self.foreign(board.writer[node]):
            raise ViolationError(f"node {node}: a reader entered beside writer {board.writer[node] - 1}")
        before = board.counter[node]
        board.reading[mark] += 1
        self.pause()
        board.reading[mark] -= 1
        if self.foreign(board.writer[node]) or board.counter[node] != before:
            raise ViolationError(f"node {node}: writer {board.writer[node] - 1} entered beside a reader")

    def write(self, node: int) -> None:
        board = self.board
        self.alone(node, "entered")
        board.writer[node] = self.me
        board.counting[self.place] = 1
        value = board.counter[node]
        self.pause()
        board.counter[node] = value + 1
        board.counted[self.place * board.nodes + node] += 1
        board.counting[self.place] = 0
        self.alone(node, "leaves")
        if board.writer[node] != self.me:
            raise ViolationError(f"node {node}: writer {board.writer[node] - 1} entered beside writer {self.me - 1}")
        board.writer[node] = 0

    def alone(self, node: int, what: str) -> None:
        board = self.board
        if self.foreign(board.writer[node]):
            raise ViolationError(f"node {node}: a writer {what} beside writer {board.writer[node] - 1}")
        for place in range(board.places):
            if board.reading[place * board.nodes + node] and not board.doomed[board.life[place]]:
                raise ViolationError(f"node {node}: a writer {what} beside a reader at place {place}")

    def transaction(self) -> None:
        """Both words of a pair go up by one, or neither."""
        store, at = self.store, self.store.layout.node_at(PAIR)
        number = store.layout.mutex_of(PAIR)

        def body() -> None:
            first, second = store.w[at + N_CREATED], store.w[at + N_MODIFIED]
            if first != second:
                raise ViolationError(f"half a transaction: {first}, {second}")
            plan = Plan(store.w)
            plan[at + N_CREATED] = first + 1
            plan[at + N_MODIFIED] = second + 1
            commit(store.w, store.mutexes[number].journal, plan)

        inside(store, number, body)


class _Suicidal(WordBuffer):
    """Kills its process before one store in many, chosen by chance."""

    def __init__(self, words: Any, board: Board, life: int, rng: random.Random, mean_stores: int) -> None:
        self.left = 1 + int(rng.expovariate(1 / mean_stores))
        self.board, self.life = board, life
        super().__init__(words, self.count)

    def count(self, _what: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.board.doomed[self.life] = 1
            os.kill(os.getpid(), signal.SIGKILL)


def _work(board: Board, name: str, life: int, worker: int, threads: int, seed: int, mean_stores: int) -> list[str]:
    """What a worker does; the failures of its threads."""
    faulthandler.register(signal.SIGUSR1)  # for those who look at a run that hangs
    rng = random.Random(f"{seed}:{life}")
    store = attachment.attach(name)
    if mean_stores:
        instrument(store, lambda words: _Suicidal(words, board, life, rng, mean_stores))
    failures: list[str] = []

    def run(player: Player) -> None:
        try:
            player.play()
        except BaseException:  # noqa: BLE001  # whatever it was, the test is told
            failures.append(traceback.format_exc())
            board.ending[0] = 1

    players = [
        Player(board, store, life, worker * threads + thread, random.Random(f"{seed}:{life}:{thread}"))
        for thread in range(threads)
    ]
    running = [threading.Thread(target=run, args=(player,)) for player in players]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    store.work_off()
    attachment.release(store)
    return failures


# ---- the parent


@dataclasses.dataclass
class Worker:
    """A running worker process."""

    pid: int
    life: int
    pipe: int
    stopped_until: float = 0.0


class Torture:
    """Starts, kills, stops and replaces workers until the time is up."""

    def __init__(
        self, store: Attachment, *, seed: int, processes: int, threads: int, kills_per_second: float, stops_per_second: float
    ) -> None:
        self.store, self.seed, self.threads = store, seed, threads
        self.rng = random.Random(seed)
        self.kills_per_second, self.stops_per_second = kills_per_second, stops_per_second
        self.board = Board(processes * threads)
        self.workers: list[Worker | None] = [None] * processes
        self.lives = 0
        self.kills = self.suicides = self.stops = 0
        self.findings: list[str] = []

    def start(self, index: int) -> None:
        life, board = self.lives, self.board
        self.lives += 1
        for place in range(index * self.threads, (index + 1) * self.threads):
            for node in range(board.nodes):
                board.reading[place * board.nodes + node] = 0
            board.unsure[0] += board.counting[place]
            board.counting[place] = board.waiting[place] = 0
            board.life[place] = life
        mean_stores = self.rng.choice((0, 0, 20_000))
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reads)
            try:
                failures = _work(board, self.store.name, life, index, self.threads, self.seed, mean_stores)
            except BaseException:  # noqa: BLE001  # whatever it was, the test is told
                failures = [traceback.format_exc()]
            os.write(writes, "\n".join(failures).encode()[:60_000])
            os._exit(bool(failures))
        os.close(writes)
        self.workers[index] = Worker(pid, life, reads)

    def kill(self, index: int) -> None:
        worker = self.workers[index]
        assert worker is not None
        self.board.doomed[worker.life] = 1
        os.kill(worker.pid, signal.SIGKILL)

    def collect(self, index: int, flags: int = 0) -> bool:
        """Take a worker that has ended out of the list; whether it had."""
        worker = self.workers[index]
        assert worker is not None
        pid, status = os.waitpid(worker.pid, flags)
        if not pid:
            return False
        code = os.waitstatus_to_exitcode(status)
        text = os.read(worker.pipe, 1 << 16).decode()
        os.close(worker.pipe)
        self.workers[index] = None
        if code != -signal.SIGKILL and (code or text):
            self.findings.append(f"worker of life {worker.life} ended with {code}: {text}")
        if code == -signal.SIGKILL and not self.board.doomed[worker.life]:
            self.findings.append(f"worker of life {worker.life} was killed by somebody else")
        if worker.stopped_until:
            self.board.stops[0] += 1
        return True

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        next_kill, next_stop = self.after(self.kills_per_second), self.after(self.stops_per_second)
        killed: set[int] = set()
        try:
            for index in range(len(self.workers)):
                self.start(index)
            while (now := time.monotonic()) < end and not self.board.ending[0]:
                for index, worker in enumerate(self.workers):
                    assert worker is not None
                    if self.collect(index, os.WNOHANG):
                        self.suicides += worker.life not in killed
                        self.start(index)
                    elif worker.stopped_until and now >= worker.stopped_until:
                        os.kill(worker.pid, signal.SIGCONT)
                        worker.stopped_until = 0.0
                        self.board.stops[0] += 1
                if now >= next_kill:
                    next_kill = self.after(self.kills_per_second)
                    index = self.rng.randrange(len(self.workers))
                    worker = self.workers[index]
                    assert worker is not None
                    self.kill(index)
                    self.kills += worker.life not in killed
                    killed.add(worker.life)
                if now >= next_stop and not self.board.stops[0] & 1:
                    next_stop = self.after(self.stops_per_second)
                    self.stop(self.rng.randrange(len(self.workers)), now)
                self.watch(now)
                select.select([], [], [], 0.002)
        finally:
            self.finish()

    def after(self, per_second: float) -> float:
        return time.monotonic() + self.rng.expovariate(per_second) if per_second else float("inf")

    def stop(self, index: int, now: float) -> None:
        worker = self.workers[index]
        assert worker is not None
        self.board.stops[0] += 1
        os.kill(worker.pid, signal.SIGSTOP)
        worker.stopped_until = now + self.rng.random() * 0.1
        self.stops += 1

    def watch(self, now: float) -> None:
        for place in range(self.board.places):
            since = self.board.waiting[place]
            if since and now - since / 1e9 > HANG_S:
                self.findings.append(f"place {place} has waited for more than {HANG_S} s")
                self.board.ending[0] = 1

    def finish(self) -> None:
        """Let the workers come to their end; one that does not is a finding. Nobody is left behind."""
        self.board.ending[0] = 1
        end = time.monotonic() + HANG_S
        for worker in self.workers:  # all of them before any is waited for: one may hold what another waits for
            if worker is not None:
                os.kill(worker.pid, signal.SIGCONT)
        for index, worker in enumerate(self.workers):
            if worker is None:
                continue
            while not self.collect(index, os.WNOHANG):
                if time.monotonic() > end:
                    self.findings.append(f"worker of life {worker.life} does not end; {self.store.rw.holds()}")
                    os.kill(worker.pid, signal.SIGUSR1)
                    select.select([], [], [], 0.2)
                    self.kill(index)
                    self.collect(index)
                    break
                select.select([], [], [], 0.002)

    def check(self) -> None:
        """Everything can be locked, nothing is held, no increment is lost."""
        board, store = self.board, self.store
        settle(store)
        for node in NODES:
            unlock(store, lock(store, node, REC_WRITER, HANG_S))
        self.findings += lock_findings(store)
        board.unsure[0] += sum(board.counting)
        for node in NODES:
            counted = sum(board.counted[place * board.nodes + node] for place in range(board.places))
            if not counted <= board.counter[node] <= counted + board.unsure[0]:
                self.findings.append(f"node {node}: counter {board.counter[node]}, {counted} increments were finished")
        at = store.layout.node_at(PAIR)
        if store.w[at + N_CREATED] != store.w[at + N_MODIFIED]:
            self.findings.append("half a transaction is left")


def torture(
    *,
    seed: int,
    backend: str,
    seconds: float,
    processes: int,
    threads: int,
    kills_per_second: float,
    stops_per_second: float,
) -> Figures:
    """One run; its findings are empty if all went well."""
    with lock_store(backend, slots=4 * processes) as store:
        run = Torture(
            store,
            seed=seed,
            processes=processes,
            threads=threads,
            kills_per_second=kills_per_second,
            stops_per_second=stops_per_second,
        )
        run.run(seconds)
        run.check()
        board = run.board
        waits = [sum(board.waits[place * BUCKETS + b] for place in range(board.places)) for b in range(BUCKETS)]
        return Figures(
            seed=seed,
            backend=backend,
            seconds=seconds,
            held=sum(board.held),
            refused=sum(board.refused),
            busy=sum(board.busy),
            kills=run.kills,
            suicides=run.suicides,
            stops=run.stops,
            recoveries=store.w[RECOVERIES],
            wait_p50_ms=_quantile(waits, 0.5),
            wait_p999_ms=_quantile(waits, 0.999),
            worst_ms=max(board.worst) / 1e6,
            unsure=board.unsure[0],
            findings=run.findings,
        )


def _quantile(waits: Sequence[int], share: float) -> float:
    """Upper bound of the bucket in which the quantile lies, ms."""
    rest = share * sum(waits)
    for bucket, count in enumerate(waits):
        rest -= count
        if rest <= 0:
            return (1 << bucket) / 1000
    return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--backend", choices=("generation", "ofd"), default="generation")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills-per-second", type=float, default=4)
    parser.add_argument("--stops-per-second", type=float, default=2)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    logging.getLogger("dmemfs_shm").setLevel(logging.CRITICAL)  # each reap is a warning
    figures = torture(**vars(arguments))
    print(figures)
    return bool(figures.findings)


if __name__ == "__main__":
    sys.exit(main())
