"""Records histories: what some processes did to a few files at once, when, and with what result.

A `Herd` of processes, some with two threads, lives on one store through many histories. In each history every thread makes
about 25 calls on the same few paths, chosen by a seed, in a directory of that history's own, and notes each before it begins
and after it ended. In some histories one process kills itself before a random store into the store, or is killed from
outside at a random moment; its place is taken by a new process in the next history.

So that calls meet inside of each other, and not only where a processor is taken from one, half of the processes reach the
words of the store through a buffer that sleeps for a moment now and then, before a load as well as before a store.
(Not for long inside of sections: where every call overlaps with every other one, little is wrong and much is to search.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.connection
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSDeadlockError,
    MFSFileOpenError,
    MFSLockTimeoutError,
    MFSStoreBusyError,
)

from ..lanes import Lane, lanes
from ..processes import DEADLINE_S, Child, ChildDiedError, Link, Task, child
from .harness import WordBuffer, instrument

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from model_files import DIED, Call

PROCESSES = 6
THREADS = 2  # of the processes that have more than one: those with even numbers
CALLS = 22  # a thread makes in a history, and then closes what it has open
LANE_BYTES = 64 << 10
OBSERVER = PROCESSES * THREADS  # the lane of the test itself, which looks at everything afterwards
CHUNK_BYTES = (16, 16, 304, 5000, 72_000)  # by history; the last are copied outside of sections
LONG_S = 0.0008  # at most, and mostly much less, sleeps a process that is restless
SHORT_S = 0.00005  # where it keeps others from going on

#: What a call may raise. Busy says nothing about files: a history in which it comes is not judged.
ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    MFSAbandonedFileError,
    MFSDeadlockError,
    MFSFileOpenError,
    MFSLockTimeoutError,
    MFSStoreBusyError,
)
BUSY = MFSStoreBusyError.__name__


class Order(NamedTuple):
    """What a process is told about a history."""

    number: int
    kind: str
    chunk_bytes: int
    seed: str
    fatal: int  # the store before which the process kills itself; 0 for none


@dataclasses.dataclass
class Recorded:
    """A history as it was recorded."""

    number: int
    calls: list[Call]
    deaths: dict[Hashable, int]  # when the test knew that a thread's process was gone

    @property
    def disturbed(self) -> bool:
        """Whether somebody had to give up since a process was not scheduled for a second."""
        return any(call.result == BUSY for call in self.calls)


# ---- what a thread does

#: How often which action is chosen, by kind of history, when the thread has nothing open; and on which paths.
KINDS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "files": (
        ("a", "b", "c"),
        {
            "open_one": 10,
            "read_bytes": 6,
            "write_bytes": 3,
            "view": 2,
            "exists": 1,
            "get_size": 2,
            "stat": 2,
            "remove": 1,
        },
    ),
    "contents": (
        ("a", "b"),
        {
            "open_one": 1,
            "read_bytes": 10,
            "write_bytes": 8,
            "get_size": 1,
            "stat": 2,
            "remove": 4,
        },
    ),
    "names": (
        ("a", "b", "c"),
        {
            "open_one": 3,
            "read_bytes": 4,
            "write_bytes": 4,
            "exists": 2,
            "stat": 2,
            "remove": 2,
            "rename": 4,
            "replace": 4,
            "copy": 3,
            "listdir": 2,
        },
    ),
    "directories": (
        ("a", "d/x", "e/x", "d", "e"),
        {
            "open_one": 4,
            "read_bytes": 3,
            "write_bytes": 4,
            "exists": 2,
            "stat": 1,
            "remove": 1,
            "rename": 5,
            "mkdir": 3,
            "rmtree": 2,
            "listdir": 3,
        },
    ),
}
#: What never waits for a lock, and so can lead to no deadlock while the thread has a file open.
NEVER_WAIT = frozenset(("open_one", "exists", "get_size", "stat", "remove", "rename", "mkdir", "rmtree", "listdir"))
MODES = ("rb", "rb", "r+b", "r+b", "wb", "ab", "xb")


class Player:
    """One thread in one history."""

    def __init__(self, fs: MemoryFileSystem, lane: Lane, order: Order, client: int) -> None:
        self.fs = fs
        self.lane = lane
        self.order = order
        self.rng = random.Random(f"{order.seed}/{order.number}/{client}")
        self.client = client
        self.base = f"/h{order.number}"
        self.paths, self.weights = KINDS[order.kind]
        if order.kind == "contents" and client % 4 >= THREADS:
            self.weights = {name: weight for name, weight in self.weights.items() if name in ("read_bytes", "stat")}
        self.open: dict[int, Any] = {}
        self.made = 0
        self.chunks = 0
        self.opened = 0

    def play(self) -> None:
        while self.made < CALLS:
            if self.open and self.rng.random() < 0.75:
                self.use()
            else:
                names = [name for name in self.weights if not self.open or name in NEVER_WAIT]
                (name,) = self.rng.choices(names, [self.weights[name] for name in names])
                getattr(self, name)(self.rng.choice(self.paths))
            self.pause()
        for number in list(self.open):
            self.close(number)

    def pause(self) -> None:
        if self.rng.random() < 0.4:
            time.sleep(self.rng.random() * 0.0002)

    def call(self, name: str, *arguments: Any, do: Callable[[], Any]) -> Any:
        """Make a call and note it; None if it raised."""
        self.made += 1
        self.lane.note((time.monotonic_ns(), name, *arguments))
        value = None
        try:
            value = do()
            result: Any = ("ok", value if isinstance(value, (int, str, tuple)) else None)
        except ERRORS as error:
            result = type(error).__name__
        end = time.monotonic_ns()
        self.lane.note((end, result))
        return value

    # ---- content

    def chunk(self) -> int:
        """A number that no other chunk has."""
        self.chunks += 1
        return self.order.number << 20 | self.client << 12 | self.chunks

    def bytes_of(self, *chunks: int) -> bytes:
        return b"".join(chunk.to_bytes(8, "little") * (self.order.chunk_bytes // 8) for chunk in chunks)

    def chunks_of(self, data: Any) -> Any:
        """The numbers of the chunks that some bytes consist of."""
        data, size = bytes(data), self.order.chunk_bytes
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        if any(part != part[:8] * (size // 8) for part in parts):
            return f"torn: {len(data)} bytes, " + ", ".join(part[:8].hex() for part in parts)
        return tuple(int.from_bytes(part[:8], "little") for part in parts)

    def count(self, size: int) -> Any:
        chunks, rest = divmod(size, self.order.chunk_bytes)
        return f"torn: {size} bytes" if rest else chunks

    def at(self, path: str) -> str:
        return f"{self.base}/{path}" if path else self.base

    # ---- files that are open

    def open_one(self, path: str) -> None:
        mode, rng = self.rng.choice(MODES), self.rng
        timeout = 0.0 if self.open else rng.choice((None, None, 0.0, 0.002))
        self.open_in(path, mode, timeout, allow=rng.random() < 0.5)

    def open_in(self, path: str, mode: str, timeout: float | None, *, allow: bool) -> int:
        self.opened += 1
        number = self.client << 12 | self.opened
        handle = self.call(
            "open",
            number,
            path,
            mode,
            allow,
            do=lambda: self.fs.open(self.at(path), mode, lock_timeout=timeout, allow_abandoned=allow),
        )
        if handle is not None:
            self.open[number] = handle
        return number

    def use(self) -> None:
        """Do something with a file that is open; a third of the time the last thing."""
        number = self.rng.choice(list(self.open))
        handle = self.open[number]
        what = self.rng.random()
        if what < 0.35:
            self.close(number)
        elif handle.mode in ("rb", "r+b") and what < 0.6:
            self.read(number)
        elif handle.mode != "rb" and what < 0.9:
            self.write(number)
        elif handle.mode != "rb":
            self.truncate(number)
        else:
            self.read(number)

    def read(self, number: int) -> None:
        handle = self.open[number]
        self.call("read", number, do=lambda: handle.seek(0) or self.chunks_of(handle.read()))

    def write(self, number: int) -> None:
        handle, chunk = self.open[number], self.chunk()
        place = self.rng.choice(("end", "first")) if handle.mode == "r+b" else "end"
        handle.seek(0, 2 if place == "end" else 0)
        self.call("write", number, chunk, place, do=lambda: handle.write(self.bytes_of(chunk)) and None)

    def truncate(self, number: int) -> None:
        handle = self.open[number]
        chunks = self.rng.randrange(handle.seek(0, 2) // self.order.chunk_bytes + 1)
        self.call("truncate", number, chunks, do=lambda: handle.truncate(chunks * self.order.chunk_bytes) and None)

    def close(self, number: int) -> None:
        handle = self.open.pop(number)
        self.call("close", number, do=handle.close)

    # ---- whole files and names

    def read_bytes(self, path: str) -> None:
        self.call("read_bytes", path, do=lambda: self.chunks_of(self.fs.read_bytes(self.at(path))))

    def view(self, path: str) -> None:
        def look() -> Any:
            with self.fs.view(self.at(path)) as view:
                time.sleep(0)
                return self.chunks_of(view)

        self.call("view", path, do=look)

    def write_bytes(self, path: str) -> None:
        chunks = tuple(self.chunk() for _ in range(self.rng.choice((0, 1, 1, 2, 3))))
        data = self.bytes_of(*chunks)
        self.call("write_bytes", path, chunks, do=lambda: self.fs.write_bytes(self.at(path), data) and None)

    def exists(self, path: str) -> None:
        self.call("exists", path, do=lambda: self.fs.exists(self.at(path)))

    def get_size(self, path: str) -> None:
        self.call("get_size", path, do=lambda: self.count(self.fs.get_size(self.at(path))))

    def stat(self, path: str) -> None:
        def look() -> Any:
            found = self.fs.stat(self.at(path))
            return found["is_dir"], self.count(found["size"]), found["generation"], found["abandoned"]

        self.call("stat", path, do=look)

    def remove(self, path: str) -> None:
        self.call("remove", path, do=lambda: self.fs.remove(self.at(path)))

    def rename(self, path: str) -> None:
        target = self.rng.choice([other for other in self.paths if other.endswith("x") == path.endswith("x")])
        self.call("rename", path, target, do=lambda: self.fs.rename(self.at(path), self.at(target)))

    def replace(self, path: str) -> None:
        target = self.rng.choice(self.paths)
        self.call("replace", path, target, do=lambda: self.fs.replace(self.at(path), self.at(target)))

    def copy(self, path: str) -> None:
        target = self.rng.choice(self.paths)
        self.call("copy", path, target, do=lambda: self.fs.copy(self.at(path), self.at(target)))

    def mkdir(self, path: str) -> None:
        path = path[0]
        self.call("mkdir", path, do=lambda: self.fs.mkdir(self.at(path)))

    def rmtree(self, path: str) -> None:
        path = path[0]
        self.call("rmtree", path, do=lambda: self.fs.rmtree(self.at(path)))

    def listdir(self, path: str) -> None:
        path = path[0] if path in ("d", "e") else ""
        self.call("listdir", path, do=lambda: tuple(sorted(self.fs.listdir(self.at(path)))))

    def look_at_everything(self) -> None:
        """What is there when all others are done."""
        if self.order.kind != "files":
            self.listdir("")
        for path in self.paths:
            self.stat(path)
            self.read_bytes(path)
            self.open_in(path, "rb", None, allow=True)
            for number in list(self.open):
                self.read(number)
                self.close(number)


# ---- a process


class Restless(WordBuffer):
    """A word buffer that sleeps before some loads and stores, and kills the process before one store."""

    def __init__(self, words: Any, threads: Any) -> None:
        self.threads = threads
        self.rng = random.Random(os.getpid())
        self.left = 0
        self.fatal = 0
        super().__init__(words, lambda _: self.store())

    def store(self) -> None:
        if self.fatal:
            self.fatal -= 1
            if not self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        self.turn()

    def turn(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.left = self.rng.randrange(150)
            most = SHORT_S if self.threads.thread.inside else LONG_S
            time.sleep(most * self.rng.random() ** 3)

    def __getitem__(self, key: Any) -> Any:
        self.turn()
        return self.words[key]


def work(link: Link, name: str, place: int, all_lanes: list[Lane]) -> None:
    """A process of the herd: one history after the other, until it is told None."""
    fs = MemoryFileSystem.attach(name)
    buffer = None
    if place < PROCESSES // 2:
        buffer = Restless(fs._store.w, fs._store.threads)
        instrument(fs._store, lambda _: buffer)
    clients = clients_of(place)
    link.send("ready")
    while (order := link.recv()) is not None:
        if buffer is not None:
            buffer.fatal = order.fatal
        players = [Player(fs, all_lanes[client], order, client) for client in clients]
        others = [Task(player.play) for player in players[1:]]
        players[0].play()
        for other in others:
            other.result()
        link.send("done")
    fs.close()


def clients_of(place: int) -> list[int]:
    """The threads of a process, by their lanes."""
    return [place * THREADS + thread for thread in range(1 if place % 2 else THREADS)]


# ---- the herd


class Herd:
    """The processes, and the histories that they make."""

    def __init__(self, fs: MemoryFileSystem, seed: str, stack: contextlib.ExitStack) -> None:
        self.fs = fs
        self.seed = seed
        self.rng = random.Random(seed)
        self.lanes = lanes(OBSERVER + 1, LANE_BYTES)
        self.stack = stack
        self.workers: dict[int, Child] = {}
        self.number = 0
        self.kills = 0
        for place in range(PROCESSES):
            self.start(place)

    def start(self, place: int) -> None:
        self.workers[place] = worker = self.stack.enter_context(child("fork", work, self.fs.name, place, self.lanes))
        assert worker.receive() == "ready"

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.send(None)
        for worker in self.workers.values():
            worker.receive()
            worker.join()

    def history(self) -> Recorded:
        """Let the herd make one history."""
        self.number += 1
        rng = self.rng
        kind = rng.choice(list(KINDS))
        order = Order(self.number, kind, rng.choice(CHUNK_BYTES), self.seed, 0)
        for lane in self.lanes:
            lane.clear()
        self.fs.mkdir(f"/h{self.number}")
        how = rng.random()
        suicide = rng.randrange(PROCESSES // 2) if how < 0.15 else -1
        victim = rng.randrange(PROCESSES) if how > 0.85 else -1
        fatal = rng.randrange(1, 600)
        for place, worker in self.workers.items():
            worker.send(order._replace(fatal=fatal) if place == suicide else order)
        if victim >= 0:
            time.sleep(rng.random() * 0.006)
            self.workers[victim].process.kill()
        deaths = self._await(victim)
        Player(self.fs, self.lanes[OBSERVER], order, OBSERVER).look_at_everything()
        calls = [call for client, lane in enumerate(self.lanes) for call in _calls(client, lane)]
        for place in deaths:
            self.start(place)
        self._clear_away(bool(deaths))
        self.kills += len(deaths)
        gone = {client: end for place, end in deaths.items() for client in clients_of(place)}
        died = {call.client for call in calls if call.result == DIED}
        assert died <= set(gone), f"history {self.number}: {died} did not finish, {gone} were killed"
        return Recorded(self.number, calls, gone)

    def _await(self, victim: int) -> dict[int, int]:
        """Wait until every process has done its part or is dead; when it was that each of these was gone."""
        deaths: dict[int, int] = {}
        waiting = {worker.link: place for place, worker in self.workers.items()}
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), DEADLINE_S)
            assert ready, f"history {self.number}: nothing from {sorted(waiting.values())} within {DEADLINE_S} s"
            for link in ready:
                place = waiting.pop(link)
                try:
                    self.workers[place].receive()
                except ChildDiedError:
                    deaths[place] = self._bury(place)
        if victim >= 0 and victim not in deaths:
            deaths[victim] = self._bury(victim)
        return deaths

    def _bury(self, place: int) -> int:
        worker = self.workers[place]
        worker.join()
        assert worker.process.exitcode == -signal.SIGKILL, f"process {place} ended with {worker.process.exitcode}"
        return time.monotonic_ns()

    def _clear_away(self, somebody_died: bool) -> None:
        self.fs.rmtree(f"/h{self.number}")
        if somebody_died:
            self.fs.trim()
        if somebody_died or self.number % 50 == 0:
            findings = self.fs.check()
            assert findings == [], f"after history {self.number}: {findings}"


def _calls(client: int, lane: Lane) -> Iterator[Call]:
    notes = iter([entry.value for entry in lane.entries()])
    for begin, *what in notes:
        end, result = next(notes, (0, DIED))
        yield Call(client, begin, end, tuple(what), result)


@contextlib.contextmanager
def herd(fs: MemoryFileSystem, seed: str) -> Iterator[Herd]:
    """A herd on a store, for the length of the block."""
    with contextlib.ExitStack() as stack:
        made = Herd(fs, seed, stack)
        yield made
        made.stop()
