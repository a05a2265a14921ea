"""Random use of a store by processes that are killed and stopped at random: python tools/torture.py --seconds 60.

Workers with several threads do everything that the public API offers, on a small tree of paths. The parent kills random
workers with SIGKILL, starts others in their place, and now and then stops one for a moment. Some workers kill themselves
at a random store into the store: a kill from outside seldom meets the few microseconds of a transaction. What a file
contains says itself who wrote it and whether it is all there: any other content is a violation, unless the file is
marked abandoned.

What is true is also kept outside the store, in a mapping that only these processes have. Each thread of a worker has a
*place* with a directory of its own, /own/<place>, that only it changes: before an operation it notes there what was and
what is to be, and afterwards that it is done. Whoever comes next to the place must find the one or the other; others who
read there, without the place being at work meanwhile, must find exactly what is noted.

At the end nobody is left in the store: every lock can be had, check() finds nothing, and the quota is what the files cost.
A seed repeats all choices of the run, though not the moments at which the processes get to them.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import itertools
import json
import logging
import math
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import time
import traceback
import uuid
import warnings
import zlib

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSFileOpenError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSQuotaExceededError,
    MFSStoreBusyError,
)
from dmemfs_shm.store.layout import REAPS, RECOVERIES

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.crash.harness import WordBuffer, instrument

#: An operation that takes so long is taken to hang. Bounds a hang, measures nothing.
HANG_S = 25.0
FILES = 4  # in each place's own directory
BUCKETS_AN_OCTAVE = 8
BUCKETS = 40 * BUCKETS_AN_OCTAVE  # durations by the logarithm of their microseconds

# ---- what a file contains

HEAD = struct.Struct("<4sIQQ")  # magic, place, number, bytes of the body; then the checksum of all that, and the body
MAGIC = b"TORT"
HEAD_BYTES = HEAD.size + 4
POOL = random.Random(1).randbytes(1 << 20)


class Violation(AssertionError):
    """Something that the store promises did not hold."""


def document(place, number, size):
    """A document of *size* bytes of body, unlike any other."""
    body = POOL[(start := (place * 7919 + number * 104729) % (len(POOL) - size)) : start + size]
    head = HEAD.pack(MAGIC, place, number, size)
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body


def documents(data, where):
    """(place, number) of each document of a complete file."""
    found, at = [], 0
    while at < len(data):
        head = bytes(data[at : at + HEAD.size])
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise Violation(f"{where}: no document at byte {at} of {len(data)}: {head[:16]!r}")
        _, place, number, size = HEAD.unpack(head)
        body = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        checksum = int.from_bytes(data[at + HEAD.size : at + HEAD_BYTES], "little")
        if len(body) != size or zlib.crc32(body, zlib.crc32(head)) != checksum:
            raise Violation(f"{where}: document {number} of place {place}, byte {at} of {len(data)}, is not as written")
        found.append((place, number))
        at += HEAD_BYTES + size
    return found


# What stands in a file of a place's own: one of these, or the number of its last document << 8 | how many it has.
ABSENT, ABANDONED, EMPTY = range(3)

# How an operation on own files may end when it is cut short.
WHOLE, PIECEMEAL = 1, 2  # done or not; or also: the file that changes is abandoned


# ---- what is true, outside the store

OPERATIONS = {
    "attach": (),
    "open": (FileNotFoundError, IsADirectoryError, MFSAbandonedFileError),
    "create": (FileNotFoundError, IsADirectoryError, FileExistsError, MFSAbandonedFileError, MFSNodeLimitExceededError),
    "read": (),
    "write": (MFSQuotaExceededError,),
    "truncate": (MFSQuotaExceededError,),
    "close": (),
    "read_bytes": (FileNotFoundError, IsADirectoryError, MFSAbandonedFileError),
    "write_bytes": (FileNotFoundError, IsADirectoryError, MFSQuotaExceededError, MFSNodeLimitExceededError),
    "view": (FileNotFoundError, IsADirectoryError, MFSAbandonedFileError, MFSQuotaExceededError),
    "mkdir": (FileExistsError, FileNotFoundError, MFSNodeLimitExceededError),
    "rename": (FileNotFoundError, FileExistsError, MFSFileOpenError, ValueError),
    "move": (FileNotFoundError, FileExistsError, MFSFileOpenError, ValueError, MFSNodeLimitExceededError),
    "replace": (FileNotFoundError, IsADirectoryError, MFSFileOpenError),
    "remove": (FileNotFoundError, IsADirectoryError, MFSFileOpenError),
    "rmtree": (FileNotFoundError, NotADirectoryError, MFSFileOpenError),
    "copy": (
        FileNotFoundError,
        FileExistsError,
        IsADirectoryError,
        MFSAbandonedFileError,
        MFSQuotaExceededError,
        MFSNodeLimitExceededError,
    ),
    "copy_tree": (
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        MFSAbandonedFileError,
        MFSQuotaExceededError,
        MFSNodeLimitExceededError,
    ),
    "listdir": (FileNotFoundError, NotADirectoryError),
    "walk": (FileNotFoundError, NotADirectoryError),
    "glob": (),
    "stat": (FileNotFoundError,),
    "look": (),
    "check": (),
    "trim": (),
}
"""Each operation, and the errors that its contract names for what may happen here; no other one is accepted."""

NAMES = list(OPERATIONS)


class Board:
    """What is true, outside the store. Every word has one writer at a time."""

    def __init__(self, places):
        self.places = places  # one a thread of a worker
        sizes = {
            "ending": 1,
            "stops": 1,  # odd while a worker is stopped
            "number": places,  # documents that the place has begun
            "version": places,  # odd while the place changes its own files
            "pending": places,  # 0, WHOLE or PIECEMEAL: how the operation under way may end
            "state": places * FILES,
            "before": places * FILES,
            "after": places * FILES,
            "since": places,  # when the operation under way began, ns; 0 if there is none
            "doing": places,
            "done": places * len(NAMES),
            "refused": places * len(NAMES),
            "worst": places * len(NAMES),  # ns, while nobody was stopped
            "times": places * BUCKETS,
            "own": places,  # operations on own files
            "peeks": places,  # readings of others' own files that could be compared
            "found_before": places,  # what a successor found
            "found_after": places,
            "found_abandoned": places,
        }
        self.map = mmap.mmap(-1, 8 * sum(sizes.values()))
        words = memoryview(self.map).cast("Q")
        start = 0
        for name, size in sizes.items():
            setattr(self, name, words[start : start + size])
            start += size

    def files(self, words, place):
        return list(words[place * FILES : (place + 1) * FILES])


class Refused(Exception):
    """The store refused an operation with one of the errors that it may give."""


class Player:
    """One thread of a worker."""

    def __init__(self, board, fs, place, rng, operations):
        self.board, self.fs, self.place, self.rng = board, fs, place, rng
        self.left = operations  # how many operations before it leaves of its own accord
        self.views = []
        self.home = f"/own/{place}"

    def call(self, name, function, *args, accepted=(), **options):
        """Call into the store, with the clock running; Refused for the errors that this operation may give."""
        board, place, index = self.board, self.place, NAMES.index(name)
        stops, start = board.stops[0], time.monotonic_ns()
        board.doing[place] = index
        board.since[place] = start
        try:
            return function(*args, **options)
        except Exception as error:
            if type(error) not in OPERATIONS[name] + accepted:
                raise
            board.refused[place * len(NAMES) + index] += 1
            raise Refused(error) from None
        finally:
            took = time.monotonic_ns() - start
            board.since[place] = 0
            at = place * len(NAMES) + index
            board.done[at] += 1
            if stops == board.stops[0] and not stops & 1:
                board.worst[at] = max(board.worst[at], took)
                bucket = int(BUCKETS_AN_OCTAVE * math.log2(took / 1000)) if took > 1000 else 0
                board.times[place * BUCKETS + min(bucket, BUCKETS - 1)] += 1

    def play(self):
        deeds = [deed for deed, weight in DEEDS for _ in range(weight)]
        while not self.board.ending[0] and self.left:
            self.left -= 1
            with contextlib.suppress(Refused):
                self.rng.choice(deeds)(self)
            self.look_again(12)
        self.look_again(0)

    # ---- documents

    def new(self, *, small=False):
        """(number, bytes) of a document that was never written before."""
        self.board.number[self.place] += 1
        number = self.board.number[self.place]
        size = self.rng.choice((0, 1, 100, 228, 256, 1000, 4068, 4096, 9000, 20_000) + (() if small else (70_000, 200_000)))
        size = max(0, size + self.rng.randrange(-3, 4))
        return number, document(self.place, number, size)

    def pause(self):
        if self.rng.random() < 0.2:
            time.sleep(self.rng.random() * 0.004)

    def write(self, path, mode, data, *, own=None, **options):
        """Write a document through a handle, in pieces; what does not fit leaves the file empty, or as it was ("ab")."""
        handle = self.call("create", self.fs.open, path, mode, **options)
        start = handle.tell()
        try:
            for at, end in itertools.pairwise(sorted({0, len(data), *(self.rng.randrange(len(data)) for _ in range(3))})):
                self.call("write", handle.write, data[at:end])
                self.pause()
            if mode == "r+b" or options.get("preallocate"):
                self.call("truncate", handle.truncate)
        except Refused:
            if own is not None and mode != "ab":
                self.board.after[self.place * FILES + own] = EMPTY
            self.call("truncate", handle.truncate, start)
            raise
        finally:
            self.call("close", handle.close)

    # ---- files of one's own

    def own_path(self, number):
        return f"{self.home}/{'abcd'[number]}"

    def own(self, after, kind, deed, *args, own=None, **options):
        """Change files of one's own: *after* is what is to stand in them."""
        board, place = self.board, self.place
        first = place * FILES
        board.own[place] += 1
        board.version[place] |= 1
        for i in range(FILES):
            board.before[first + i] = board.state[first + i]
            board.after[first + i] = after.get(i, board.state[first + i])
        board.pending[place] = kind
        try:
            if own is None:
                deed(*args, **options)
            else:
                deed(*args, own=own, **options)
        except Refused:
            wanted = board.files(board.before, place)
            if kind == PIECEMEAL:
                wanted = board.files(board.after, place) if board.after[first + own] == EMPTY else wanted
            actual = [self.actual(i) for i in range(FILES)]
            if actual != wanted:
                raise Violation(f"{self.home}: {deed} was refused and left {actual}, not {wanted}") from None
            self.settled(actual)
            raise
        self.settled(board.files(board.after, place))

    def settled(self, states):
        board, place = self.board, self.place
        for i, state in enumerate(states):
            board.state[place * FILES + i] = state
        board.pending[place] = 0
        board.version[place] = (board.version[place] | 1) + 1

    def actual(self, number):
        """What stands in one of the own files."""
        return self.state_of(self.own_path(number), self.place)

    def state_of(self, path, place):
        try:
            handle = self.call("open", self.fs.open, path)
        except Refused as refusal:
            kind = type(refusal.args[0])
            return {FileNotFoundError: ABSENT, MFSAbandonedFileError: ABANDONED}[kind]
        with handle:
            data = self.call("read", handle.read)
        found = documents(data, path)
        if any(owner != place for owner, _ in found):
            raise Violation(f"{path}: documents of others: {found}")
        return found[-1][1] << 8 | len(found) if found else EMPTY

    def succeed(self):
        """A new life of the place: its predecessor's last operation happened, or not, or left a file abandoned."""
        board, place = self.board, self.place
        with contextlib.suppress(Refused):
            self.call("mkdir", self.fs.mkdir, self.home)
        actual = [self.actual(i) for i in range(FILES)]
        before, after = board.files(board.before, place), board.files(board.after, place)
        kind = board.pending[place]
        if not kind:
            wanted = [board.files(board.state, place)]
        elif kind == WHOLE:
            wanted = [before, after]
        else:
            wanted = [before, after, [ABANDONED if a != b else b for b, a in zip(before, after, strict=True)]]
        if actual not in wanted:
            raise Violation(f"{self.home}: found {actual}, not one of {wanted}; pending {kind}")
        if kind:
            board.found_before[place] += actual == before
            board.found_after[place] += actual == after != before
            board.found_abandoned[place] += actual not in (before, after)
        self.settled(actual)

    def pick(self, *, present):
        """One of the own files that has content, or any."""
        states = self.board.files(self.board.state, self.place)
        numbers = [i for i, state in enumerate(states) if not present or state not in (ABSENT, ABANDONED)]
        if not numbers:
            raise Refused
        number = self.rng.choice(numbers)
        return number, states[number]

    def own_put(self):
        i, _ = self.pick(present=False)
        number, data = self.new()
        self.own({i: number << 8 | 1}, WHOLE, self.call, "write_bytes", self.fs.write_bytes, self.own_path(i), data)

    def own_write(self):
        i, _ = self.pick(present=False)
        number, data = self.new()
        self.own({i: number << 8 | 1}, PIECEMEAL, self.write, self.own_path(i), "wb", data, own=i)

    def own_append(self):
        i, state = self.pick(present=True)
        number, data = self.new(small=True)
        count = 0 if state == EMPTY else state & 0xFF
        if count == 0xFF:
            raise Refused
        self.own({i: number << 8 | count + 1}, PIECEMEAL, self.write, self.own_path(i), "ab", data, own=i)

    def own_overwrite(self):
        i, _ = self.pick(present=True)
        number, data = self.new()
        self.own({i: number << 8 | 1}, PIECEMEAL, self.write, self.own_path(i), "r+b", data, own=i)

    def own_repair(self):
        """Change an abandoned file in place."""
        i, state = self.pick(present=False)
        if state == ABANDONED:
            number, data = self.new()
            after = {i: number << 8 | 1}
            self.own(after, PIECEMEAL, self.write, self.own_path(i), "r+b", data, own=i, allow_abandoned=True)

    def own_empty(self):
        def empty(own):
            handle = self.call("open", self.fs.open, self.own_path(own), "r+b")
            try:
                self.call("truncate", handle.truncate, 0)
            finally:
                self.call("close", handle.close)

        i, _ = self.pick(present=True)
        self.own({i: EMPTY}, PIECEMEAL, empty, own=i)

    def own_rename(self):
        i, state = self.pick(present=False)
        j, other = self.pick(present=False)
        if state != ABSENT and other == ABSENT:
            self.own({i: ABSENT, j: state}, WHOLE, self.call, "rename", self.fs.rename, self.own_path(i), self.own_path(j))

    def own_replace(self):
        i, state = self.pick(present=True)
        j, _ = self.pick(present=False)
        if i != j:
            after = {i: ABSENT, j: state}
            self.own(after, WHOLE, self.call, "replace", self.fs.replace, self.own_path(i), self.own_path(j))

    def own_copy(self):
        i, state = self.pick(present=True)
        j, other = self.pick(present=False)
        if other == ABSENT:
            self.own({j: state}, WHOLE, self.call, "copy", self.fs.copy, self.own_path(i), self.own_path(j))

    def own_remove(self):
        i, state = self.pick(present=False)
        if state != ABSENT:
            self.own({i: ABSENT}, WHOLE, self.call, "remove", self.fs.remove, self.own_path(i))

    def own_check(self):
        i, state = self.pick(present=False)
        actual = self.actual(i)
        if actual != state:
            raise Violation(f"{self.own_path(i)}: found {actual}, not {state}")

    def peek(self):
        """Read a file of another place's own; if that was not at work meanwhile, it must be as noted."""
        board, place, i = self.board, self.rng.randrange(self.board.places), self.rng.randrange(FILES)
        version, state = board.version[place], board.state[place * FILES + i]
        actual = self.state_of(f"/own/{place}/{'abcd'[i]}", place)
        if not version & 1 and board.version[place] == version:
            board.peeks[self.place] += 1
            if actual != state:
                raise Violation(f"place {self.place} found {actual} in file {i} of place {place}, not {state}")

    # ---- files of all

    def path(self, *, directory=None):
        """A path in the common tree: of a directory, of a file, or of either."""
        parts = [self.rng.choice("xyz") for _ in range(self.rng.randrange(3))]
        if directory is None:
            directory = self.rng.random() < 0.2
        parts.append(self.rng.choice("xyz" if directory else "fghij"))
        return "/all/" + "/".join(parts)

    def abandoned(self):
        return self.rng.random() < 0.3

    def read(self):
        path, allow = self.path(), self.abandoned()
        timeout = self.rng.choice((None, None, 0.0, 0.01))
        handle = self.call(
            "open", self.fs.open, path, lock_timeout=timeout, allow_abandoned=allow, accepted=self.impatient(timeout)
        )
        try:
            pieces = []
            while piece := self.call("read", handle.read, self.rng.choice((-1, 1, 100, 5000, 50_000))):
                pieces.append(piece)
                self.pause()
            if not allow:
                documents(b"".join(pieces), path)
        finally:
            self.call("close", handle.close)

    def impatient(self, timeout):
        """What may be refused to those who do not wait: a lock, and (a stopped process has it) a mutex."""
        return () if timeout is None else (MFSLockTimeoutError, MFSStoreBusyError)

    def read_bytes(self):
        path = self.path()
        documents(self.call("read_bytes", self.fs.read_bytes, path), path)

    def view(self):
        path = self.path() if self.rng.random() < 0.5 else f"/own/{self.rng.randrange(self.board.places)}/a"
        view = self.call("view", self.fs.view, path)
        with view as data:
            documents(data, path)
            self.views.append((self.left, path, view, zlib.crc32(data)))

    def look_again(self, most):
        """The bytes of a view never change; keep only some."""
        while len(self.views) > most or (self.views and self.views[0][0] - self.left > 40):
            _, path, view, checksum = self.views.pop(0)
            with view as data:
                if zlib.crc32(data) != checksum:
                    raise Violation(f"{path}: the bytes of a view changed")

    def write_somewhere(self):
        mode = self.rng.choice(("wb", "wb", "xb", "ab", "r+b"))
        timeout = self.rng.choice((None, None, 0.0, 0.01))
        _, data = self.new()
        size = self.rng.choice((0, 0, len(data), len(data) + 5000)) if mode in ("wb", "xb") else 0
        allow = mode == "r+b" and self.abandoned()
        options = {"lock_timeout": timeout, "allow_abandoned": allow, "preallocate": size}
        accepted = self.impatient(timeout) + ((MFSQuotaExceededError,) if size else ())
        self.write(self.path(directory=False), mode, data, accepted=accepted, **options)

    def put(self):
        self.call("write_bytes", self.fs.write_bytes, self.path(directory=False), self.new()[1])

    def truncate(self):
        handle = self.call("open", self.fs.open, self.path(directory=False), "r+b", allow_abandoned=True)
        try:
            self.call("truncate", handle.truncate, 0)
        finally:
            self.call("close", handle.close)

    def forget(self):
        """Leave a handle to the collector."""
        self.call("open", self.fs.open, self.path(directory=False))

    def mkdir(self):
        self.call("mkdir", self.fs.mkdir, self.path(directory=True), exist_ok=self.rng.random() < 0.5)

    def rename(self):
        name = self.rng.choice(("rename", "move"))
        self.call(name, getattr(self.fs, name), self.path(), self.path())

    def replace(self):
        self.call("replace", self.fs.replace, self.path(directory=False), self.path(directory=False))

    def remove(self):
        self.call("remove", self.fs.remove, self.path(directory=False))

    def rmtree(self):
        self.call("rmtree", self.fs.rmtree, self.path(directory=True))

    def copy(self):
        self.call("copy", self.fs.copy, self.path(directory=False), self.path(directory=False))

    def copy_tree(self):
        source = self.path(directory=True) if self.rng.random() < 0.7 else f"/own/{self.rng.randrange(self.board.places)}"
        self.call("copy_tree", self.fs.copy_tree, source, self.path(directory=True))

    def listing(self):
        names = self.call("listdir", self.fs.listdir, self.rng.choice(("/all", self.path(directory=True))))
        if len(names) != len(set(names)):
            raise Violation(f"listdir gave a name twice: {sorted(names)}")

    def walk(self):
        for _ in self.call("walk", self.fs.walk, self.path(directory=True)):
            pass

    def glob(self):
        self.call("glob", self.fs.glob, self.rng.choice(("/all/*", "/all/**/f", "/all/*/?")))

    def stat(self):
        self.call("stat", self.fs.stat, self.path())

    def look(self):
        self.call("look", self.fs.exists, self.path())
        stats = self.call("look", self.fs.stats)
        if stats["used_bytes"] + stats["free_bytes"] != stats["quota_bytes"] or stats["free_bytes"] < 0:
            raise Violation(f"{stats}")
        self.call("look", self.fs.locks)
        self.call("look", self.fs.participants)

    def check(self):
        if self.rng.random() < 0.2:
            findings = self.call("check", self.fs.check)
            if findings:
                raise Violation(f"check: {findings}")

    def trim(self):
        if self.rng.random() < 0.2:
            self.call("trim", self.fs.trim)

    def attach(self):
        self.call("attach", MemoryFileSystem.attach, self.fs.name).close()


DEEDS = [
    *(
        (getattr(Player, name), 3)
        for name in ("own_put", "own_write", "own_append", "own_overwrite", "own_replace", "own_copy")
    ),
    *((getattr(Player, name), 2) for name in ("own_repair", "own_empty", "own_rename", "own_remove", "own_check")),
    (Player.peek, 8),
    *((getattr(Player, name), 4) for name in ("read", "read_bytes", "view", "write_somewhere", "put")),
    *((getattr(Player, name), 2) for name in ("rename", "replace", "remove", "copy", "copy_tree", "mkdir", "stat", "listing")),
    *(
        (getattr(Player, name), 1)
        for name in ("truncate", "forget", "rmtree", "walk", "glob", "look", "check", "trim", "attach")
    ),
]


# ---- a worker


def suicidal(store, stores):
    """Kill this process before one of the stores to come."""
    left = iter(range(stores))

    def count(_):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    instrument(store, lambda words: WordBuffer(words, count))


def work(board, name, life, index, arguments):
    """What a worker does; the failures of its threads."""
    warnings.simplefilter("ignore", ResourceWarning)  # some handles are left to the collector
    seed, threads = arguments.seed, arguments.threads
    rng = random.Random(f"{seed}:{life}")
    operations = rng.choice((-1, -1, -1, 300))
    failures = []
    players = [
        Player(board, None, index * threads + thread, random.Random(f"{seed}:{life}:{thread}"), operations)
        for thread in range(threads)
    ]
    fs = players[0].call("attach", MemoryFileSystem.attach, name)
    for player in players:
        player.fs = fs
    if rng.random() < arguments.suicidal:
        suicidal(fs._store, int(rng.expovariate(1 / 5000)))

    def run(player):
        try:
            player.succeed()
            player.play()
        except BaseException:  # noqa: BLE001  (the parent is told)
            failures.append(f"place {player.place}, life {life}: {traceback.format_exc()}")
            board.ending[0] = 1

    running = [threading.Thread(target=run, args=(player,)) for player in players]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    fs.close()
    return failures


# ---- the parent


@dataclasses.dataclass
class Worker:
    """A running worker process."""

    pid: int
    life: int
    pipe: int
    stopped_until: float = 0.0


@dataclasses.dataclass
class Figures:
    """What a run saw."""

    seed: int
    backend: str
    seconds: float
    kills: int
    suicides: int
    stops: int
    lives: int
    operations: int
    refused: int
    own_operations: int
    compared_readings: int
    found_before: int
    found_after: int
    found_abandoned: int
    recoveries: int
    reaps: int
    abandoned_at_end: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    worst_operation: str
    slowest: str
    parent_lag_ms: float
    findings: list

    def __str__(self):
        return "\n".join(f"{f.name:18} {getattr(self, f.name)}" for f in dataclasses.fields(self))


class Torture:
    """Starts, kills, stops and replaces workers until the time is up."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments
        self.rng = random.Random(arguments.seed)
        self.board = Board(arguments.processes * arguments.threads)
        self.workers = [None] * arguments.processes
        self.lives = self.kills = self.suicides = self.stops = 0
        self.lag = 0.0
        self.findings = []

    def start(self, index):
        life, board, arguments = self.lives, self.board, self.arguments
        self.lives += 1
        for place in range(index * arguments.threads, (index + 1) * arguments.threads):
            board.since[place] = 0
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reads)
            faulthandler.register(signal.SIGUSR1)
            try:
                failures = work(board, self.name, life, index, arguments)
            except BaseException:  # noqa: BLE001  (the parent is told)
                failures = [f"life {life}: {traceback.format_exc()}"]
                board.ending[0] = 1
            os.write(writes, "\n".join(failures).encode()[:60_000])
            os._exit(bool(failures))
        os.close(writes)
        self.workers[index] = Worker(pid, life, reads)

    def collect(self, index, flags=0):
        """Take a worker that has ended out of the list; its exit code, or None if it has not ended."""
        worker = self.workers[index]
        pid, status = os.waitpid(worker.pid, flags)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        text = os.read(worker.pipe, 1 << 16).decode()
        os.close(worker.pipe)
        self.workers[index] = None
        if code != -signal.SIGKILL and (code or text):
            self.findings.append(f"worker of life {worker.life} ended with {code}: {text}")
        if worker.stopped_until:
            self.board.stops[0] += 1
        return code

    def run(self, seconds):
        arguments = self.arguments
        end = time.monotonic() + seconds
        next_kill, next_stop = self.after(arguments.kills_per_second), self.after(arguments.stops_per_second)
        try:
            for index in range(len(self.workers)):
                self.start(index)
            before = time.monotonic()
            while (now := time.monotonic()) < end and not self.board.ending[0]:
                self.lag, before = max(self.lag, now - before), now
                for index, worker in enumerate(self.workers):
                    code = self.collect(index, os.WNOHANG)
                    if code is not None:
                        self.suicides += code == -signal.SIGKILL
                        self.start(index)
                    elif worker.stopped_until and now >= worker.stopped_until:
                        os.kill(worker.pid, signal.SIGCONT)
                        worker.stopped_until = 0.0
                        self.board.stops[0] += 1
                if now >= next_kill:
                    next_kill = self.after(arguments.kills_per_second)
                    self.kill(self.rng.randrange(len(self.workers)))
                if now >= next_stop and not self.board.stops[0] & 1:
                    next_stop = self.after(arguments.stops_per_second)
                    self.stop(self.rng.randrange(len(self.workers)), now)
                self.watch(now)
                select.select([], [], [], 0.002)
        finally:
            self.finish()

    def after(self, per_second):
        return time.monotonic() + self.rng.expovariate(per_second) if per_second else math.inf

    def kill(self, index):
        os.kill(self.workers[index].pid, signal.SIGKILL)
        self.kills += 1
        self.collect(index)
        self.start(index)

    def stop(self, index, now):
        worker = self.workers[index]
        self.board.stops[0] += 1
        os.kill(worker.pid, signal.SIGSTOP)
        worker.stopped_until = now + self.rng.choice((0.02, 0.1, 0.4)) * self.rng.random()
        self.stops += 1

    def watch(self, now):
        for place in range(self.board.places):
            since = self.board.since[place]
            if since and now - since / 1e9 > HANG_S:
                self.findings.append(f"place {place} hangs in {NAMES[self.board.doing[place]]}")
                self.board.ending[0] = 1
                for worker in filter(None, self.workers):
                    os.kill(worker.pid, signal.SIGUSR1)  # all stacks, to the standard error output

    def finish(self):
        """Let the workers come to their end; one that does not is a finding. Nobody is left behind."""
        self.board.ending[0] = 1
        end = time.monotonic() + HANG_S
        for index, worker in enumerate(self.workers):
            if worker is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
            while self.collect(index, os.WNOHANG) is None:
                if time.monotonic() > end:
                    self.findings.append(f"worker of life {worker.life} does not end")
                    os.kill(worker.pid, signal.SIGUSR1)
                    select.select([], [], [], 0.5)
                    os.kill(worker.pid, signal.SIGKILL)
                    self.collect(index)
                    break
                select.select([], [], [], 0.002)

    # ---- the end

    def expect(self, good, text):
        if not good:
            self.findings.append(text)

    def inspect(self, fs):
        """Nobody is in the store any more: what is there? The number of abandoned files."""
        fs.trim()  # gives back whatever the dead held
        self.findings += [f"check: {finding}" for finding in fs.check()]
        for lock in fs.locks():
            self.findings.append(f"a lock is left: {lock}")
        for place in range(self.board.places):
            self.board.stops[0] |= 1  # not measured
            try:
                Player(self.board, fs, place, self.rng, 0).succeed()
            except Violation as violation:
                self.findings.append(str(violation))
        abandoned, files, directories, cost, paths = 0, 0, 0, 0, []
        for folder, _, names in fs.walk("/"):
            directories += 1
            for path in (f"{folder.rstrip('/')}/{name}" for name in names):
                files += 1
                abandoned += fs.stat(path)["abandoned"]
                try:
                    documents(fs.read_bytes(path), path)
                except MFSAbandonedFileError:
                    self.expect(fs.stat(path)["abandoned"], f"{path}: abandoned or not?")
                except Violation as violation:
                    self.findings.append(str(violation))
                cost += charge(fs.get_size(path))
                paths.append(path)
        stats, info = fs.stats(), fs.info()
        self.expect(stats["used_bytes"] == cost, f"{stats['used_bytes']} bytes are used, the files cost {cost}")
        self.expect(info["orphaned"] == 0, f"{info['orphaned']} bytes are orphaned")
        self.expect((files, directories) == (stats["file_count"], stats["dir_count"]), f"{stats}; {files}, {directories} found")
        for path in paths:  # everything can be locked
            fs.open(path, "r+b", lock_timeout=5.0, allow_abandoned=True).close()
        self.findings += [f"check, at last: {finding}" for finding in fs.check()]
        return abandoned

    def figures(self, fs, abandoned):
        board, arguments = self.board, self.arguments
        worst = {
            name: max(board.worst[place * len(NAMES) + i] for place in range(board.places)) / 1e6
            for i, name in enumerate(NAMES)
        }
        slowest = sorted(worst, key=worst.get, reverse=True)[:5]
        times = [sum(board.times[place * BUCKETS + b] for place in range(board.places)) for b in range(BUCKETS)]
        return Figures(
            seed=arguments.seed,
            backend=arguments.backend,
            seconds=arguments.seconds,
            kills=self.kills,
            suicides=self.suicides,
            stops=self.stops,
            lives=self.lives,
            operations=sum(board.done),
            refused=sum(board.refused),
            own_operations=sum(board.own),
            compared_readings=sum(board.peeks),
            found_before=sum(board.found_before),
            found_after=sum(board.found_after),
            found_abandoned=sum(board.found_abandoned),
            recoveries=fs._store.w[RECOVERIES],
            reaps=fs._store.w[REAPS],
            abandoned_at_end=abandoned,
            p50_ms=quantile(times, 0.5),
            p99_ms=quantile(times, 0.99),
            worst_ms=worst[slowest[0]],
            worst_operation=slowest[0],
            slowest=", ".join(f"{name} {worst[name]:.0f}" for name in slowest),
            parent_lag_ms=round(self.lag * 1e3, 1),
            findings=self.findings,
        )


def charge(size):
    """What the quota is charged for a closed file."""
    if not size:
        return 0
    unit = 256 if size < 4096 else 4096
    return -(-size // unit) * unit + 128


def quantile(times, share):
    """Upper bound of the bucket in which the quantile lies, ms."""
    rest = share * sum(times)
    for bucket, count in enumerate(times):
        rest -= count
        if rest <= 0:
            return round(2 ** ((bucket + 1) / BUCKETS_AN_OCTAVE) / 1000, 3)
    return 0.0


def torture(arguments):
    """One run; its findings are empty if all went well."""
    name = f"t-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    fs = MemoryFileSystem.create(
        name,
        arguments.quota,
        backend=arguments.backend,
        max_participants=min(256, 4 * arguments.processes),
        max_nodes=1200,
    )
    mark = fs.uuid.hex
    try:
        fs.mkdir("/own")
        fs.mkdir("/all/x/y")
        fs.close()  # the workers are among themselves
        run = Torture(name, arguments)
        run.run(arguments.seconds)
        fs = MemoryFileSystem.attach(name)
        figures = run.figures(fs, run.inspect(fs))
        fs.close()
    finally:
        MemoryFileSystem.destroy(name)
    figures.findings += [f"left in /dev/shm: {entry}" for entry in os.listdir("/dev/shm") if mark in entry or name in entry]
    return figures


def main():
    parser = argparse.ArgumentParser(description="Kill and stop processes at random while they use a store.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills-per-second", type=float, default=5)
    parser.add_argument("--stops-per-second", type=float, default=0.5)
    parser.add_argument("--suicidal", type=float, default=0.25, help="share of the workers that kill themselves at a store")
    parser.add_argument("--backend", choices=("generation", "ofd"), default="generation")
    parser.add_argument("--quota", type=int, default=8 << 20, help="bytes; little enough that it is reached")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True, file=sys.stderr)
    logging.getLogger("dmemfs_shm").setLevel(logging.CRITICAL)  # each reap is a warning
    figures = torture(arguments)
    print(json.dumps(dataclasses.asdict(figures)) if arguments.json else figures)
    return bool(figures.findings)


if __name__ == "__main__":
    sys.exit(main())
