"""One thread of a torture's worker: everything that the public API offers, done at random, and what is true meanwhile.

What is true is kept outside the store, in a mapping that only the processes of the run have. Each thread of a worker has a
*place* with a directory of its own, /own/<place>, that only it changes: before an operation it notes there what was and
what is to be, and afterwards that it is done. Whoever comes next to the place must find the one or the other; others who
read there, without the place being at work meanwhile, must find exactly what is noted.

An error that says "busy", or that a lock could not be had in the time that an impatient filesystem object gives it, must
mean that nothing has happened: the call is made again, and goes on as if for the first time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
import zlib
from typing import Any, NamedTuple

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSFileOpenError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSNoSpaceError,
    MFSParameterError,
    MFSQuotaExceededError,
    MFSStoreBusyError,
    MFSViewError,
)

from .documents import document, documents
from .herd import Board, Timing, ViolationError

FILES = 4  # in each place's own directory

# What stands in a file of a place's own: one of these, or the number of its last document << 8 | how many it has.
ABSENT, ABANDONED, EMPTY = range(3)

# How an operation on own files may end when it is cut short.
WHOLE, PIECEMEAL = 1, 2  # done or not; or also: the file that changes is abandoned

PATIENT_S, IMPATIENT_S = 30.0, 1.2


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
    "rename": (FileNotFoundError, FileExistsError, MFSFileOpenError, MFSParameterError),
    "move": (FileNotFoundError, FileExistsError, MFSFileOpenError, MFSParameterError, MFSNodeLimitExceededError),
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
    "second": (),
    "check": (),
    "trim": (),
}
"""Each operation, and the errors that its contract names for what may happen here; no other one is accepted."""

NAMES = list(OPERATIONS)

#: These may wait for a file that somebody else has open, or for a store that somebody else is creating.
WAITING = frozenset({"open", "create", "read_bytes", "write_bytes", "view", "replace", "copy", "copy_tree", "second"})


class Truth(Board):
    """What is true of the store."""

    def __init__(self, places):
        super().__init__(
            places,
            NAMES,
            WAITING,
            number=places,  # documents that the place has begun
            version=places,  # odd while the place changes its own files
            pending=places,  # 0, WHOLE or PIECEMEAL: how the operation under way may end
            changing=places,  # which file a piecemeal one writes to
            state=places * FILES,
            before=places * FILES,
            after=places * FILES,
            scarce=1,  # the parent: whether the quota is to be used up
            own=places,  # operations on own files
            peeks=places,  # readings of others' own files that could be compared
            found_before=places,  # what a successor found
            found_after=places,
            found_abandoned=places,
            busy=places,  # calls that were refused because a process is stopped, and were made again
            busy_unnamed=places,  # those of them whose error did not name it
            no_space=places,  # calls that found /dev/shm full
            late=places,  # calls that did not get a lock in time, and were made again
            forks=places,
            pickles=places,
            offspring_deaths=places,
            created=places,  # second stores that the place has created
            destroying=places,  # and begun to destroy
            destroyed=places,
            gone=places,  # calls that were told that theirs was destroyed
        )

    def files(self, words, place):
        return list(words[place * FILES : (place + 1) * FILES])


class RefusedError(Exception):
    """The store refused an operation with one of the errors that it may give."""


class Held(NamedTuple):
    """A view, or what was derived from one, and what it must always show."""

    until: int  # it is let go when its player has fewer operations left
    path: str
    view: Any
    checksum: int


class Player:
    """One thread of a worker, or a child that has its place for a while.

    operations: how many before it leaves of its own accord; negative for no end. impatient: its filesystem object waits
    for little more than a second. full: /dev/shm may be full.
    """

    def __init__(self, board, place, rng, deeds, *, operations=-1, impatient=False, full=False):
        self.board, self.place, self.rng, self.deeds = board, place, rng, deeds
        self.left, self.impatient = operations, impatient
        self.shortages = (MFSNoSpaceError,) if full else ()
        self.fs = self.second = None
        self.views = []
        self.home = f"/own/{place}"

    # ---- calling into the store

    def attach(self, name):
        timeout = IMPATIENT_S if self.impatient else PATIENT_S
        return self.call("attach", MemoryFileSystem.attach, name, default_lock_timeout=timeout, insists=True)

    def call(self, name, function, *args, accepted=(), insists=False, **options):
        """Call into the store, with the clock running; RefusedError for the errors that this operation may give.

        insists: a full /dev/shm is no reason to give up, somebody will free it. (A close insists always: what it could not
        give back, since whoever died in a mutex could not be recovered, goes with a later operation.)
        """
        board, place, index = self.board, self.place, NAMES.index(name)
        refusals = OPERATIONS[name] + accepted + (() if insists or name == "close" else self.shortages)
        with Timing(board, place, index):
            while True:
                stops = board.stops[0]
                try:
                    return function(*args, **options)
                except Exception as error:
                    board.no_space[place] += type(error) in self.shortages
                    if type(error) in refusals:
                        board.refused[place * len(NAMES) + index] += 1
                        raise RefusedError(error) from None
                    if not self.is_to_be_repeated(error, stops):
                        raise
                    time.sleep(0.01)

    def is_to_be_repeated(self, error, stops):
        """Whether the error says that nothing has happened and that the same call may succeed later."""
        board, place = self.board, self.place
        if type(error) is MFSStoreBusyError:
            board.busy[place] += 1
            board.busy_unnamed[place] += (stops != board.stops[0] or stops & 1) and not names_the_stopped(error, board)
            return True
        if type(error) is MFSLockTimeoutError:
            board.late[place] += 1
            return self.impatient
        return type(error) in self.shortages

    def play(self):
        while not self.board.ending[0] and self.left:
            self.left -= 1
            with contextlib.suppress(RefusedError):
                self.rng.choice(self.deeds)(self)
            self.look_again(12)
        self.look_again(0)
        self.work_off()

    def work_off(self):
        """Any operation gives back the handles that were left to the collector: somebody may wait for their files, whom
        this thread is going to wait for."""
        with contextlib.suppress(RefusedError):
            self.call("look", self.fs.stats)

    # ---- documents

    def new(self, *, small=False):
        """(number, bytes) of a document that was never written before."""
        number = self.new_number()
        size = self.rng.choice((0, 1, 100, 228, 256, 1000, 4068, 4096, 9000, 20_000) + (() if small else (70_000, 200_000)))
        size = max(0, size + self.rng.randrange(-3, 4))
        return number, document(self.place, number, size)

    def new_number(self):
        self.board.number[self.place] += 1
        return self.board.number[self.place]

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
        except RefusedError:
            if own is not None and mode != "ab":
                self.board.after[self.place * FILES + own] = EMPTY
            self.call("truncate", handle.truncate, start, insists=True)
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
        board.changing[place] = own or 0
        board.pending[place] = kind
        try:
            if own is None:
                deed(*args, **options)
            else:
                deed(*args, own=own, **options)
        except RefusedError:
            wanted = board.files(board.before, place)
            if kind == PIECEMEAL:
                wanted = board.files(board.after, place) if board.after[first + own] == EMPTY else wanted
            actual = [self.actual(i) for i in range(FILES)]
            if actual != wanted:
                raise ViolationError(f"{self.home}: {deed} was refused and left {actual}, not {wanted}") from None
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
            handle = self.call("open", self.fs.open, path, insists=True)
        except RefusedError as refusal:
            kind = type(refusal.args[0])
            return {FileNotFoundError: ABSENT, MFSAbandonedFileError: ABANDONED}[kind]
        with handle:
            data = self.call("read", handle.read)
        found = documents(data, path)
        if any(owner != place for owner, _ in found):
            raise ViolationError(f"{path}: documents of others: {found}")
        return found[-1][1] << 8 | len(found) if found else EMPTY

    def succeed(self):
        """A new life of the place: its predecessor's last operation happened, or not, or left a file abandoned."""
        board, place = self.board, self.place
        board.destroyed[place] = board.destroying[place]
        actual = [self.actual(i) for i in range(FILES)]
        before, after = board.files(board.before, place), board.files(board.after, place)
        kind = board.pending[place]
        abandoned = [ABANDONED if i == board.changing[place] else state for i, state in enumerate(before)]
        wanted = {0: [board.files(board.state, place)], WHOLE: [before, after], PIECEMEAL: [before, after, abandoned]}[kind]
        if actual not in wanted:
            raise ViolationError(f"{self.home}: found {actual}, not one of {wanted}; pending {kind}")
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
            raise RefusedError
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
            raise RefusedError
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
            at = self.place * FILES + own
            try:
                handle = self.call("open", self.fs.open, self.own_path(own), "r+b")
                try:
                    self.call("truncate", handle.truncate, 0)
                finally:
                    self.call("close", handle.close)
            except RefusedError:
                self.board.after[at] = self.board.before[at]
                raise

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
            raise ViolationError(f"{self.own_path(i)}: found {actual}, not {state}")

    def peek(self):
        """Read a file of another place's own; if that was not at work meanwhile, it must be as noted."""
        board, place, i = self.board, self.rng.randrange(self.board.places), self.rng.randrange(FILES)
        version, state = board.version[place], board.state[place * FILES + i]
        actual = self.state_of(f"/own/{place}/{'abcd'[i]}", place)
        if not version & 1 and board.version[place] == version:
            board.peeks[self.place] += 1
            if actual != state:
                raise ViolationError(f"place {self.place} found {actual} in file {i} of place {place}, not {state}")

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
            "open", self.fs.open, path, lock_timeout=timeout, allow_abandoned=allow, accepted=self.if_late(timeout)
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

    def if_late(self, timeout):
        """What may be refused to those who do not wait: a lock, and (a stopped process has it) a mutex."""
        return () if timeout is None else (MFSLockTimeoutError, MFSStoreBusyError)

    def read_bytes(self):
        path = self.path()
        documents(self.call("read_bytes", self.fs.read_bytes, path), path)

    def view(self):
        path = self.path() if self.rng.random() < 0.5 else f"/own/{self.rng.randrange(self.board.places)}/a"
        shortages = (MFSViewError,) if self.shortages else ()
        self.look_at(path, self.call("view", self.fs.view, path, accepted=shortages))

    def look_at(self, path, view):
        """Read a view, and keep it, or something derived from it, for a while; some that are small for ever."""
        with memoryview(view) as data:
            documents(data, path)
            for_ever = len(data) < 5000 and self.rng.random() < 0.05
            kept = data[:] if self.rng.random() < 0.3 else view
            self.views.append(Held(-(1 << 60) if for_ever else self.left - 40, path, kept, zlib.crc32(data)))

    def look_again(self, most):
        """The bytes of a view never change, whatever becomes of its file, its store or its process's handles."""
        surplus, kept, old = len(self.views) - most, [], []
        for i, held in enumerate(self.views):
            (old if i < surplus or held.until > self.left else kept).append(held)
        self.views = kept
        for held in old:
            with held.view as data:
                if zlib.crc32(data) != held.checksum:
                    raise ViolationError(f"{held.path}: the bytes of a view changed")

    def write_somewhere(self):
        mode = self.rng.choice(("wb", "wb", "xb", "ab", "r+b"))
        timeout = self.rng.choice((None, None, 0.0, 0.01))
        _, data = self.new()
        size = self.rng.choice((0, 0, len(data), len(data) + 5000)) if mode in ("wb", "xb") else 0
        allow = mode == "r+b" and self.abandoned()
        options = {"lock_timeout": timeout, "allow_abandoned": allow, "preallocate": size}
        accepted = self.if_late(timeout) + ((MFSQuotaExceededError,) if size else ())
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
            raise ViolationError(f"listdir gave a name twice: {sorted(names)}")

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
            raise ViolationError(f"{stats}")
        self.call("look", self.fs.locks)
        self.call("look", self.fs.participants)

    def check(self):
        if self.rng.random() < 0.2:
            findings = self.call("check", self.fs.check)
            if findings:
                raise ViolationError(f"check: {findings}")

    def trim(self):
        if self.rng.random() < 0.2:
            self.call("trim", self.fs.trim)

    def attach_again(self):
        """Another filesystem object on the same store, for a moment."""
        self.attach(self.fs.name).close()

    def ballast(self):
        """While the quota is to be used up, take what is left of it; then give it back."""
        path = f"/ballast/{self.place}"
        if not self.board.scarce[0]:
            self.call("remove", self.fs.remove, path)
            return
        room = self.call("look", self.fs.stats)["free_bytes"] - self.rng.randrange(20_000)
        data = b""
        while len(data) < room - 1000:
            data += document(self.place, self.new_number(), min(500_000, room - 1000 - len(data)))
        self.call("write_bytes", self.fs.write_bytes, path, data)


def names_the_stopped(error, board):
    """Whether an error's text names a process of the group that is or was stopped."""
    pid = re.search(r"process (\d+) ", str(error))
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(int(pid[1])) == board.stopped[0]
    return True  # it is dead by now


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
        for name in ("truncate", "forget", "rmtree", "walk", "glob", "look", "check", "trim", "attach_again")
    ),
]
"""What every player does, and how often."""
