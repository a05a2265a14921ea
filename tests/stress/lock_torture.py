"""Random killing, stopping and locking: `python -m tests.stress.lock_torture --seconds 60`.

Worker processes with several threads lock a handful of nodes, shared and exclusively, with and without a timeout, and
run transactions of two words. They are killed and stopped as `herd` says.

What is true is kept outside the store, in a mapping that only these processes have. Exclusion is proven twice: who has
a node leaves a mark that nobody else may find, and counts a number up that must not lose an increment. A life is
*doomed* from just before it is killed; from then on its marks prove nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import signal
import sys
import threading
import time
import traceback

from dmemfs_shm.errors import MFSLockTimeoutError, MFSStoreBusyError
from dmemfs_shm.store import attachment
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.journal import Plan, commit
from dmemfs_shm.store.layout import N_CREATED, N_MODIFIED, REC_DIRTY, REC_WRITER, RECOVERIES

from ..crash.harness import WordBuffer, instrument
from ..lockstore import NODES, inside, lock, lock_findings, lock_store, settle, unlock
from .herd import HANG_S, Board, Conditions, Fate, Figures, Herd, Timing, ViolationError, Worker

LIVES = 1 << 14  # so many are told from each other; a mark of an older one is long overwritten
PAIR = 20  # the node whose two words always change together
STORES_MEAN = 20_000  # of a suicide


class Truth(Board):
    """What is true of the locks. A life's number is the worker's, and how many lives that had before."""

    def __init__(self, places: int) -> None:
        nodes = max(NODES) + 1
        super().__init__(
            places,
            ["lock"],
            doomed=LIVES,  # by life: the parent, or the worker about to kill itself
            life=places,  # the parent: which life of a worker has the place
            writer=nodes,  # whoever has the node exclusively: its life + 1
            counter=nodes,  # whoever has the node exclusively
            reading=places * nodes,  # the place's thread: it has the node shared
            counted=places * nodes,  # the place's thread: increments that it finished
            counting=places,  # the place's thread: in the middle of one
            unsure=1,  # the parent: increments of killed workers that may or may not have happened
            held=places,  # the place's thread: locks taken
            busy=places,  # MFSStoreBusyError
        )
        self.nodes = nodes


# ---- a worker


class Player:
    """One thread of a worker."""

    def __init__(self, board: Truth, store: Attachment, life: int, place: int, rng: random.Random) -> None:
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
        with Timing(board, place, 0):
            try:
                record = lock(self.store, node, kind, timeout)
            except MFSLockTimeoutError:
                board.refused[place] += 1
                raise
            except MFSStoreBusyError:
                board.busy[place] += 1
                raise
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


class LockTorture(Herd):
    """The herd and the store whose nodes it locks."""

    board: Truth

    def __init__(self, store: Attachment, conditions: Conditions) -> None:
        super().__init__(conditions, Truth(conditions.processes * conditions.threads))
        self.store = store

    def number(self, worker: Worker) -> int:
        """Which life this is, among all of the last LIVES."""
        return (worker.life * len(self.workers) + worker.index) % LIVES

    # ---- in a worker

    def work(self, worker: Worker) -> str:
        life, board, failures = self.number(worker), self.board, []
        rng, places = worker.rng, self.places_of(worker.index)
        store = attachment.attach(self.store.name)
        if worker.is_mortal:
            fate = Fate(board, places[0], int(rng.expovariate(1 / STORES_MEAN)), lambda: self.before_kill(worker))
            instrument(store, lambda words: WordBuffer(words, fate))

        def run(player: Player) -> None:
            try:
                player.play()
            except BaseException:  # noqa: BLE001  # whatever it was, the test is told
                failures.append(traceback.format_exc())
                board.ending[0] = 1

        players = [Player(board, store, life, place, random.Random(rng.random())) for place in places]
        running = [threading.Thread(target=run, args=(player,)) for player in players]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        store.work_off()
        attachment.release(store)
        return "\n".join(failures)

    # ---- in the parent

    def before_start(self, worker: Worker) -> None:
        board = self.board
        board.doomed[self.number(worker)] = 0
        for place in self.places_of(worker.index):
            for node in range(board.nodes):
                board.reading[place * board.nodes + node] = 0
            board.unsure[0] += board.counting[place]
            board.counting[place] = 0
            board.life[place] = self.number(worker)

    def before_kill(self, worker: Worker) -> None:
        self.board.doomed[self.number(worker)] = 1

    def after_end(self, worker: Worker, code: int) -> None:
        if code == -signal.SIGKILL and not self.board.doomed[self.number(worker)]:
            self.findings.append(f"worker {worker.index}, life {worker.life}, was killed by somebody else")

    def examine(self) -> list[str]:
        """Everything can be locked, nothing is held, no increment is lost."""
        board, store = self.board, self.store
        settle(store)
        for node in NODES:
            unlock(store, lock(store, node, REC_WRITER, HANG_S))
        findings = lock_findings(store)
        unsure = board.unsure[0] + sum(board.counting)
        for node in NODES:
            counted = sum(board.counted[place * board.nodes + node] for place in range(board.places))
            if not counted <= board.counter[node] <= counted + unsure:
                findings.append(f"node {node}: counter {board.counter[node]}, {counted} increments were finished")
        at = store.layout.node_at(PAIR)
        if store.w[at + N_CREATED] != store.w[at + N_MODIFIED]:
            findings.append("half a transaction is left")
        return findings


@dataclasses.dataclass(kw_only=True)
class Seen(Figures):
    """What a run saw."""

    held: int
    busy: int
    recoveries: int
    unsure: int


def torture(conditions: Conditions) -> Seen:
    """One run; its findings are empty if all went well."""
    with lock_store(conditions.backend, slots=4 * conditions.processes) as store:
        run = LockTorture(store, conditions)
        run.run()
        run.look()
        board = run.board
        return Seen(
            **run.figures(),
            held=sum(board.held),
            busy=sum(board.busy),
            recoveries=store.w[RECOVERIES],
            unsure=board.unsure[0],
        )


def main() -> int:
    conditions = Conditions.from_command_line(__doc__.splitlines()[0])
    print(f"seed {conditions.seed}", flush=True)
    logging.getLogger("dmemfs_shm").setLevel(logging.CRITICAL)
    seen = torture(conditions)
    print(seen)
    return bool(seen.findings)


if __name__ == "__main__":
    sys.exit(main())
