"""The operations of the filesystem that the crash suites try, the store they find, and what may come of them.

A case is a store with a few files and a peer in it, made afresh by `setup_of`. An operation is done to it by somebody who
dies. Afterwards somebody else is in the store: what is there is what was before the operation, or what is after it, or (a
file that was being written) what was before with that file marked abandoned; `check` finds nothing, everything can be
locked, and the quota is what the files cost.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSDirectoryQuotaError,
    MFSQuotaExceededError,
    MFSTimeoutError,
    snapshot,
)
from dmemfs_shm.filesystem import _read_unlocked
from dmemfs_shm.frames import FrameWriter
from dmemfs_shm.paths import parse
from dmemfs_shm.store.layout import KIND_FILE, QUEUED
from dmemfs_shm.store.tree import Unsettled

from ..lockstore import clear_away, fresh_name
from ..processes import DEADLINE_S, Task, until
from .harness import Fault, die_in_company, run_child, short_slices

KIB = 1 << 10
QUOTA = 2 << 20
BIG = 100 * KIB  # more than is copied inside a section

GUESTS = ("come", "go", "waiting")  # what the company makes and takes away again

State = dict[str, Any]


def content(size: int, kind: int = 1) -> bytes:
    page = bytes((i * 31 + kind * 7 + (i >> 8)) & 0xFF for i in range(min(size, 4096)))
    return (page * (size // 4096 + 1))[:size]


SMALL, OTHER, LARGE, LARGER = content(300), content(700, 2), content(BIG, 3), content(BIG + 20 * KIB, 4)


class Case:
    """A store with a few files, the peer's part in it, and what children ask the peer to do."""

    def __init__(self, name: str, fs: MemoryFileSystem) -> None:
        self.name = name
        self.fs = fs
        self.before: State = {}
        self.views: list[tuple[Any, bytes]] = []
        self.room: list[Any] = []  # views of what is gone, which take space
        self.findings: list[str] = []
        self.messages: list[str] = []
        self.seen: set[tuple[str, bytes]] = set()
        self.tasks: list[Task] = []
        self.over = threading.Event()

    def fill(self, operation: Operation) -> None:
        """Everything that is there before the operation."""
        if not operation.bare:
            for folder in "/d/sub", "/empty":
                self.fs.mkdir(folder)
            for path, data in (("/d/small", SMALL), ("/d/other", OTHER), ("/d/sub/deep", OTHER), ("/large", LARGE)):
                self.fs.write_bytes(path, data)
        operation.prepare(self)

    def answer(self, request: str) -> None:
        """Do what a child asks for."""
        getattr(self, request)()

    def replace_small(self) -> None:
        self.fs.write_bytes("/d/new", OTHER)
        self.fs.replace("/d/new", "/d/small")

    def pickle_it(self) -> None:
        self.pickled = pickle.dumps(self.fs)

    def look_at_small(self) -> None:
        view = self.fs.view("/d/small")
        self.views.append((view, bytes(view)))

    def look_at_large(self) -> None:
        view = self.fs.view("/large")
        self.views.append((view, bytes(view)))

    def pin_of(self, view: Any) -> int:
        """The word of the pin that ends with a view."""
        notes = self.fs._store.content.leases._known
        return next(word for word, note in notes.items() if note() is view._bytes)

    def fill_up(self) -> None:
        """Leave less room than a large file takes: the peer looks at a file that is gone."""
        fs = self.fs
        fs.write_bytes("/room", bytes(fs.stats()["free_bytes"] - BIG // 2))
        self.room.append(fs.view("/room"))
        fs.remove("/room")

    def make_room(self) -> None:
        """The peer does not look at it any more."""
        del self.room[:]
        self.fs.stats()

    def producer_waits(self) -> None:
        """A thread of the peer waits for space, for a moment."""
        self.tasks.append(Task(self._produce))
        until(lambda: bool(list(self.fs._store.space.queue())) or self.tasks[-1].done, "the thread waits for space")

    def producer_ends(self) -> None:
        """There was space: the thread has its file, and takes it away."""
        until(lambda: self.tasks[-1].done, "the producer is done")

    def _produce(self) -> None:
        with contextlib.suppress(MFSQuotaExceededError):
            self.fs.write_bytes("/waiting", LARGE, space_timeout=DEADLINE_S)
            self.fs.remove("/waiting")

    def leave_a_dead_one(self) -> None:
        """A participant died with a view of replaced content, a file that lost its name, a half copy and a writer."""

        def body(fs: MemoryFileSystem) -> None:
            looking = [fs.view("/d/small"), fs.open("/large")]
            fs.write_bytes("/d/small", OTHER)
            fs.write_bytes("/large", LARGER)
            writer = fs.open("/d/sub/deep", "r+b")
            fs._store.grafts._end_copy = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            fs.copy_tree("/empty", "/copied")
            raise AssertionError((looking, writer))

        killed_in(self, body)

    def leave_a_dead_claimer(self) -> None:
        """A participant died that had claimed a file and wanted to know what is published."""

        def body(fs: MemoryFileSystem) -> None:
            claimed = fs.claim("/d/small", 0)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError(claimed)

        killed_in(self, body)

    def reader_waits(self) -> None:
        """A thread of the peer wants to read a file, and now waits for it."""
        self._waits(lambda: self._read("/d/small"))

    def writer_waits(self) -> None:
        """A thread of the peer wants to write a file, and now waits for it."""
        self._waits(lambda: self._open_to_write("/d/small"))

    def _waits(self, function: Callable[[], Any]) -> None:
        before = self._waiting()
        self.tasks.append(Task(function))
        until(lambda: self._waiting() > before, "the thread waits")

    def _waiting(self) -> int:
        return sum(hold.state == QUEUED for hold in self.fs._store.rw.holds())

    def _read(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError, MFSAbandonedFileError):
            self.seen.add((path, self.fs.read_bytes(path)))

    def _open_to_write(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError, MFSAbandonedFileError):
            self.fs.open(path, "r+b").close()

    # ---- company

    def watch(self) -> None:
        """A thread reads all files without a lock until the victim is dead."""
        self.tasks.append(Task(self._watch))

    def _watch(self) -> None:
        store, paths = self.fs._store, files_in(self.before)
        while not self.over.wait(0.0001):
            for path in paths:
                with contextlib.suppress(Unsettled):
                    found = store.tree.look_up(parse(path).parts)
                    data = _read_unlocked(store, found) if found[0] and store.names.kind_of(found) == KIND_FILE else None
                    if data is not None:
                        self.seen.add((path, data))

    def company(self) -> None:
        """Threads come that want every file and the tree."""
        self.tasks += [Task(self._have_everything, *self.tasks), Task(self._come_and_go)]

    def _have_everything(self, *watching: Task) -> None:
        """Read each file as soon as it can be had, then change it and change it back."""
        fs = self.fs
        paths = [f"{folder.rstrip('/')}/{name}" for folder, _, files in fs.walk("/") for name in files if name not in GUESTS]
        for path in paths:
            self._read(path)
        self.over.set()
        for task in watching:
            task.result()
        for path in paths:
            with contextlib.suppress(FileNotFoundError, MFSAbandonedFileError):
                self._change_and_change_back(path)

    def _change_and_change_back(self, path: str) -> None:
        fs = self.fs
        with fs.open(path, "r+b") as handle:
            data = handle.read()
            other = bytes(0xFF - byte for byte in data[:1000])
            handle.seek(0)
            handle.write(other)
        self._pass_through()
        if fs.read_bytes(path) != other + data[1000:]:
            self.findings.append(f"{path} has not what was written into it after a death")
        with fs.open(path, "r+b") as handle:
            handle.write(data)

    def _pass_through(self) -> None:
        """Enter m[0], so that what the dead left open there is rolled back at the latest now."""
        self.fs._store.sections.run(lambda section: None)

    def _come_and_go(self) -> None:
        fs = self.fs
        fs.write_bytes("/come", OTHER)
        with fs.open("/come", "ab") as handle:
            handle.write(SMALL)
        fs.rename("/come", "/go")
        assert fs.read_bytes("/go") == OTHER + SMALL
        fs.remove("/go")

    def part(self) -> None:
        """The company leaves; each of them has come to its end."""
        self.over.set()
        if self.room:
            self.make_room()
        while self.tasks:
            self.tasks.pop().result()

    def again(self, number: int) -> None:
        """What the living find, and must still be able to do; by turns a new process comes first."""
        fs = self.fs
        self.part()
        self.findings += [f"before reaping: {finding}" for finding in fs.check()]
        if number % 2:
            newcomer(self.name)
        fs.trim()  # for shortness: who needs what the dead hold takes it back
        self.findings += [f"after reaping: {finding}" for finding in fs.check()]
        while self.views:
            view, data = self.views.pop()
            if bytes(view) != data:
                self.findings.append("a view's bytes have changed")
            del view  # and so the pin goes
        self.state, findings = take_stock(fs)
        self.findings += findings


class Abandoned(NamedTuple):
    """A file whose writer died."""

    content: bytes


class Limit(NamedTuple):
    """The quota of a directory."""

    limit: int


def files_in(state: State) -> list[str]:
    """The paths of the files."""
    return sorted(path for path, what in state.items() if isinstance(what, (bytes, Abandoned)))


def look(fs: MemoryFileSystem) -> State:
    """Everything that is in a store: None for a directory, bytes for a file, Abandoned; Limit for a directory's quota."""
    found: State = {}
    for folder, directories, files in fs.walk("/"):
        found.update({f"{folder.rstrip('/')}/{name}": None for name in directories})
        for path in (f"{folder.rstrip('/')}/{name}" for name in files):
            try:
                found[path] = fs.read_bytes(path)
            except MFSAbandonedFileError:
                with fs.open(path, allow_abandoned=True) as handle:
                    found[path] = Abandoned(handle.read())
    return found | quotas_in(fs)


def quotas_in(fs: MemoryFileSystem) -> State:
    """The quotas of directories, as `look` has them."""
    return {f"{quota.path} (quota)": Limit(quota.limit) for quota in fs.info()["directory_quotas"] if quota.path}


def take_stock(fs: MemoryFileSystem) -> tuple[State, list[str]]:
    """What is in a store that nobody else uses, and what is wrong: its quota, its locks, or anything else."""
    state, findings = look(fs), []
    stats, info = fs.stats(), fs.info()
    costs = {path: charge(fs.get_size(path)) for path in files_in(state)}
    cost = sum(costs.values())
    if stats["used_bytes"] != cost or info["orphaned"]:
        findings.append(f"{stats['used_bytes']} bytes used, {info['orphaned']} orphaned; the files cost {cost}")
    directories = 1 + sum(what is None for what in state.values())
    if [stats["file_count"], stats["dir_count"]] != [len(costs), directories]:
        findings.append(f"{stats} and {sorted(state)}")
    findings += quotas_not_exact(fs, costs)
    for path in costs:
        fs.open(path, "r+b", lock_timeout=DEADLINE_S, allow_abandoned=True).close()
    findings += [f"locked after all: {lock}" for lock in fs.locks()]
    return state, findings + [f"in the end: {finding}" for finding in fs.check()]


def quotas_not_exact(fs: MemoryFileSystem, costs: dict[str, int]) -> list[str]:
    """Each file is charged to the nearest directory above it that has a quota, and to that one alone."""
    quotas = {str(quota.path): quota.used for quota in fs.info()["directory_quotas"]}
    expected = dict.fromkeys(quotas, 0)
    for path, cost in costs.items():
        above = [directory for directory in quotas if path.startswith(f"{directory}/")]
        if above:
            expected[max(above, key=len)] += cost
    expected.pop("None", None)
    return [] if quotas == expected else [f"used of the directories' quotas: {quotas}, the files cost {expected}"]


def charge(size: int) -> int:
    """What the quota is charged for a closed file."""
    unit = 256 if size < 4096 else 4096
    return -(-size // unit) * unit + 128 if size else 0


def newcomer(name: str) -> None:
    """A process that attaches, looks at everything and leaves."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            fs = MemoryFileSystem.attach(name)
            look(fs)
            fs.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a newcomer could not attach, read and leave"


def killed_in(case: Case, body: Callable[[MemoryFileSystem], None]) -> None:
    """A participant that attaches, runs body(fs) and is killed in it."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            body(MemoryFileSystem.attach(case.name))
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# ---- the operations: what is prepared, what is done, and what may be found abandoned


class Operation(NamedTuple):
    """do(fs, fault) is killed; prepare(case) comes before, in the peer; ready(fs, fault) in the child, unharmed."""

    do: Callable[..., Any]
    written: tuple[str, ...] = ()
    prepare: Callable[[Case], Any] = lambda case: None
    ready: Callable[[MemoryFileSystem, Fault], Any] = lambda fs, fault: None
    bare: bool = False  # the store is empty
    joins: bool = False  # who does it comes to the store by doing it; do(None, case) returns what it came to


def write(path: str, mode: str, *pieces: bytes, **options: Any) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.open(path, mode, **options) as handle:
            for piece in pieces:
                handle.write(piece)

    return do


def write_atomically(path: str, mode: str, *pieces: bytes) -> Callable[..., None]:
    return write(path, mode, *pieces, atomic=True)


def give_up(fs: MemoryFileSystem, _: Any) -> None:
    """A block that raises: what was written goes."""
    with contextlib.suppress(ZeroDivisionError), fs.open("/d/small", "wb", atomic=True) as handle:
        handle.write(LARGE)
        handle.write(LARGER)
        raise ZeroDivisionError


def truncate(path: str, size: int) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.open(path, "r+b") as handle:
            handle.truncate(size)

    return do


def join(_: None, case: Case) -> MemoryFileSystem:
    return MemoryFileSystem.attach(case.name)


def call(method: str, *args: Any) -> Callable[..., None]:
    return lambda fs, _: getattr(fs, method)(*args)


#: New files beside old ones and over them, directories that stand and ones that don't, and what goes by a stash.
IMPORTED = {"/d/small": OTHER, "/d/sub/more": SMALL, "/p/q/deep": SMALL, "/p/large": LARGE, "/d/empty": b"", "/x": OTHER}


def in_pieces(case: Case) -> None:
    """/large in two runs, since what stands behind the first is used."""
    case.fs.write_bytes("/behind", LARGE)
    with case.fs.open("/large", "ab") as handle:
        handle.write(LARGE)
    assert case.fs._store.w[case.fs._store.names.at(case.fs._store.names.files["/large"][0]) + _n_runs()] >> 32


def with_quotas(case: Case) -> None:
    """/q has a quota and files, /r a small one and none."""
    for folder, limit in (("/q", 1600 * KIB), ("/r", 5000)):
        case.fs.mkdir(folder)
        case.fs.set_quota(folder, limit)
    case.fs.mkdir("/q/sub")
    for path, data in (("/q/small", SMALL), ("/q/large", LARGE), ("/q/sub/one", OTHER), ("/q/sub/two", LARGE)):
        case.fs.write_bytes(path, data)


def looking_at(case: Case, *paths: str) -> None:
    """The same, and the peer has views of files."""
    with_quotas(case)
    for path in paths:
        view = case.fs.view(path)
        case.views.append((view, bytes(view)))


def room_when_waiting(fs: MemoryFileSystem, fault: Fault) -> None:
    fault.ask("fill_up")
    fault.waits = lambda: fault.ask("make_room")


def others_wait(fs: MemoryFileSystem, fault: Fault) -> None:
    fault.ask("fill_up")
    fault.ask("producer_waits")


def refused(path: str, data: bytes) -> Callable[..., None]:
    """A directory's quota refuses a file, which is not there afterwards."""

    def do(fs: MemoryFileSystem, _: Any) -> None:
        try:
            fs.write_bytes(path, data)
        except MFSDirectoryQuotaError:
            return
        raise AssertionError("it was not refused")

    return do


def _n_runs() -> int:
    from dmemfs_shm.store.layout import N_RUNS

    return N_RUNS


def many_names(count: int) -> Callable[[Case], None]:
    def prepare(case: Case) -> None:
        for number in range(count):
            case.fs.open(f"/empty/{number}", "xb").close()

    return prepare


def view_and_forget(path: str) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.view(path) as view:
            bytes(view)
        fs.stats()  # gives the pin back

    return do


def view_then_write(path: str, mode: str, data: bytes) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        view = fs.view(path)
        before = bytes(view)
        write(path, mode, data)(fs, None)
        assert bytes(view) == before
        view.release()
        fs.stats()

    return do


def reader_of(path: str) -> Callable[..., Any]:
    def ready(fs: MemoryFileSystem, fault: Fault) -> Any:
        handle = fs.open(path)
        fault.ask("replace_small")
        return handle

    return ready


def held_and_wanted(mode: str, *requests: str) -> Callable[..., Any]:
    """The child has a file open, and others wait for it."""

    def ready(fs: MemoryFileSystem, fault: Fault) -> Any:
        handle = fs.open("/d/small", mode)
        for request in requests:
            fault.ask(request)
        return handle

    return ready


def write_and_close(_fs: MemoryFileSystem, _: Any, handle: Any) -> None:
    with handle:
        handle.write(OTHER)


def look_around(fs: MemoryFileSystem, _: Any) -> None:
    """Everything that only looks, whatever stands in the store besides what is always there."""
    with fs.open("/large") as handle:
        lines = handle.readlines()
        size = handle.tell()
        handle.seek(0)
        assert handle.readinto(bytearray(10)) == handle.tell() == 10
        handle.seek(0)
        assert list(handle) == lines
        handle.seek(-5, 2)
        assert len(handle.readline() + handle.read()) == 5
    assert [fs.exists("/d"), fs.is_dir("/d"), fs.is_file("/d"), fs.exists("/none")] == [True, True, False, False]
    assert fs.stat("/large")["size"] == fs.get_size("/large") == size == sum(map(len, lines))
    assert {"other", "small", "sub"} <= set(fs.listdir("/d"))
    assert fs.glob("/d/**/deep") == ["/d/sub/deep"]
    assert {"/", "/d", "/d/sub", "/empty"} <= {folder for folder, _, _ in fs.walk("/")}
    assert fs.stats()["used_bytes"] == fs.info()["used"]
    assert fs.participants()
    assert isinstance(fs.locks(), list)


def write_at(path: str, *places: tuple[int, bytes]) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        with fs.open(path, "r+b") as handle:
            for place, data in places:
                handle.seek(place)
                handle.write(data)

    return do


def close_under_a_view(fs: MemoryFileSystem, _: Any) -> None:
    view = fs.view("/d/small")
    seen = bytes(view)
    fs.close()
    assert bytes(view) == seen


def drop_a_handle(fs: MemoryFileSystem, _: Any) -> None:
    """A finaliser leaves a note, which the next operation works off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        handle = fs.open("/d/small", "r+b")
        handle.write(OTHER)
        del handle
    fs.stats()


def use_after_fork(_: None, case: Case) -> MemoryFileSystem:
    case.fs.write_bytes("/d/x", SMALL)
    return case.fs


def unpickle(_: None, case: Case) -> MemoryFileSystem:
    fs: MemoryFileSystem = pickle.loads(case.pickled)
    fs.write_bytes("/d/x", SMALL)
    return fs


def fill(path: str, mode: str, place: tuple[int, int | None], data: bytes, **options: Any) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, fault: Fault | None) -> None:
        with fs.open(path, mode, **options) as handle, handle.getbuffer(*place) as buffer:
            if fault is not None:
                fault.point("bytes")  # nothing of ours stores what fills the buffer
            buffer[: len(data)] = data

    return do


def claim(path: str, *limits: Any, done: bool = True) -> Callable[..., None]:
    """Claim a file, if there is one to be had, and remove it or give it back."""

    def do(fs: MemoryFileSystem, _: Any) -> None:
        with contextlib.suppress(MFSTimeoutError), fs.claim(path, 0, *limits) as claimed:
            claimed.read_bytes()
            if done:
                claimed.done()

    return do


def save(hurried_most: int) -> Callable[..., None]:
    def do(fs: MemoryFileSystem, _: Any) -> None:
        before, snapshot.HURRIED_MOST = snapshot.HURRIED_MOST, hurried_most
        try:
            fs.snapshot(io.BytesIO())
        finally:
            snapshot.HURRIED_MOST = before

    return do


def load(fs: MemoryFileSystem, _: Any) -> None:
    """Every kind of record; a file that comes twice, and a directory that goes again."""
    stream = io.BytesIO()
    out = FrameWriter(stream)
    out.put("snapshot", snapshot.VERSION, {})
    for path in (b"/r", b"/r/gone", b"/r/empty"):
        out.put("directory", path, 1, 2)
    for path, data in ((b"/r/small", SMALL), (b"/r/large", LARGE), (b"/r/small", OTHER), (b"/other", SMALL)):
        out.put("file", path, len(data), 1, 2, 1, False, data)
    out.put("gone", b"/r/gone")
    out.put("end", 2, 3, len(OTHER) + len(LARGE) + len(SMALL))
    out.finish()
    stream.seek(0)
    fs.restore(stream)


def claim_and_view(fs: MemoryFileSystem, _: Any) -> None:
    with contextlib.suppress(MFSTimeoutError), fs.claim("/d/*", 0) as claimed:
        view = claimed.view()
        before = bytes(view)
        claimed.done()
        assert bytes(view) == before
        view.release()
    fs.stats()


def claimed_and_wanted(fs: MemoryFileSystem, fault: Fault) -> Any:
    """The child has claimed a file, and others wait for it."""
    claimed = fs.claim("/d/small", DEADLINE_S)  # where it is done once more, others have the file for a moment
    for _ in range(2):
        fault.ask("reader_waits")
    return claimed


def done_without_end(fs: MemoryFileSystem, _: Any, claimed: Any) -> None:
    """The file goes, and they still wait: what follows is for them to do as well, so that the number of points would vary."""
    fs._store.names.consume(claimed._held[0].word)  # type: ignore[union-attr]


def wait_for_nothing(fs: MemoryFileSystem, _: Any) -> None:
    """It wants to know, and then no more. (How often it would sleep hangs on the clock.)"""
    with contextlib.suppress(MFSTimeoutError):
        fs.wait_for("/none", 0)


def watch(fs: MemoryFileSystem) -> None:
    """From now on somebody wants to know what is published."""
    fs.claim("/d/other", 0).release()


def watching(case: Case) -> None:
    watch(case.fs)


def written_over(case: Case) -> None:
    """The file is not held lightly by the next one who reads it."""
    with case.fs.open("/d/small", "wb") as handle:
        handle.write(SMALL)


LONG, LONGER = "n" * 200, "m" * 210  # names that take two nodes
DEEP = "/" + "/".join(f"level{i}" for i in range(12))

OPERATIONS: dict[str, Operation] = {
    "create": Operation(write("/d/x", "xb"), ("/d/x",)),
    "create-first": Operation(write("/x", "xb", SMALL), ("/x",), bare=True),
    "create-long-name": Operation(write(f"/d/{LONG}", "wb", SMALL), (f"/d/{LONG}",)),
    "create-append": Operation(write("/d/x", "ab", SMALL), ("/d/x",)),
    "create-when-nodes-end": Operation(write("/d/x", "xb"), ("/d/x",), many_names(246)),
    "create-when-buckets-split": Operation(write("/d/x", "xb"), ("/d/x",), many_names(40)),
    "create-when-buckets-end": Operation(write("/d/x", "xb"), ("/d/x",), many_names(504)),
    "write-growing": Operation(write("/d/x", "wb", SMALL, OTHER, content(5000), LARGE, LARGE, LARGER), ("/d/x",)),
    "write-preallocated": Operation(write("/d/x", "wb", SMALL, preallocate=BIG), ("/d/x",)),
    "append": Operation(write("/d/small", "ab", OTHER, LARGE), ("/d/small",)),
    "append-another-run": Operation(
        write("/large", "ab", LARGE), ("/large",), lambda case: case.fs.write_bytes("/behind", LARGE)
    ),
    "overwrite": Operation(write("/d/small", "r+b", OTHER[:200], OTHER), ("/d/small",)),
    "write-over": Operation(write("/d/small", "wb", OTHER), ("/d/small",)),
    "write-over-large": Operation(write("/large", "wb", SMALL), ("/large",)),
    "write-over-pieces": Operation(write("/large", "wb", SMALL), ("/large",), in_pieces),
    "read": Operation(lambda fs, _: fs.open("/d/small").close()),
    "read-written-over": Operation(lambda fs, _: fs.open("/d/small").close(), (), written_over),
    "read-lightly": Operation(lambda fs, _: fs.open("/d/small").close()),
    "read-lightly-and-hand-over": Operation(
        lambda _fs, _, handle: handle.close(), (), ready=held_and_wanted("rb", "writer_waits")
    ),
    "write-over-read": Operation(write("/d/small", "r+b", OTHER), ("/d/small",)),
    "remove-read": Operation(call("remove", "/d/small"), ()),
    "write-bytes-over-read": Operation(call("write_bytes", "/d/small", OTHER), ()),
    "write-bytes-over-read-lightly": Operation(
        lambda fs, _, handle: (fs.write_bytes("/d/small", OTHER), handle.close()),
        (),
        lambda case: None,
        ready=lambda fs, fault: fs.open("/d/small"),
    ),
    "truncate-small": Operation(truncate("/d/small", 100), ("/d/small",)),
    "truncate-to-nothing": Operation(truncate("/d/small", 0), ("/d/small",)),
    "truncate-large": Operation(truncate("/large", 300), ("/large",)),
    "truncate-longer": Operation(truncate("/large", 2 * BIG), ("/large",)),
    "remove": Operation(call("remove", "/d/small")),
    "remove-large": Operation(call("remove", "/large")),
    "remove-pieces": Operation(call("remove", "/large"), (), in_pieces),
    "rename-file": Operation(call("rename", "/d/small", "/d/sub/renamed")),
    "rename-to-long-name": Operation(call("rename", "/d/small", f"/{LONG}")),
    "rename-long-to-long-name": Operation(
        call("rename", f"/{LONG}", f"/d/{LONGER}"), (), lambda case: case.fs.write_bytes(f"/{LONG}", SMALL)
    ),
    "rename-directory": Operation(call("rename", "/d", "/renamed")),
    "replace": Operation(call("replace", "/d/small", "/large")),
    "replace-nothing": Operation(call("replace", "/d/small", "/d/x")),
    "replace-long-name": Operation(
        call("replace", "/d/small", f"/{LONG}"), (), lambda case: case.fs.write_bytes(f"/{LONG}", OTHER)
    ),
    "move": Operation(call("move", "/d/small", "/p/q/r/moved")),
    "move-directory": Operation(call("move", "/d", "/p/q/r/moved")),
    "mkdir": Operation(call("mkdir", "/d/x")),
    "mkdir-deep": Operation(call("mkdir", DEEP)),
    "rmtree": Operation(call("rmtree", "/d")),
    "copy-small": Operation(call("copy", "/d/small", "/d/copied")),
    "copy-large": Operation(call("copy", "/large", "/d/copied")),
    "copy-tree": Operation(call("copy_tree", "/d", "/copied")),
    "write-bytes-new": Operation(call("write_bytes", "/d/x", SMALL)),
    "write-bytes-new-large": Operation(call("write_bytes", "/d/x", LARGE)),
    "write-bytes-over-small": Operation(call("write_bytes", "/d/small", OTHER)),
    "write-bytes-over-large": Operation(call("write_bytes", "/large", LARGER)),
    "write-bytes-small-over-large": Operation(call("write_bytes", "/large", SMALL)),
    "write-bytes-over-pieces": Operation(call("write_bytes", "/large", OTHER), (), in_pieces),
    "write-bytes-over-viewed": Operation(call("write_bytes", "/d/small", OTHER), (), Case.look_at_small),
    "write-bytes-over-read-long-name": Operation(
        lambda fs, _, handle: (fs.write_bytes(f"/{LONG}", SMALL), handle.close()),
        (),
        lambda case: case.fs.write_bytes(f"/{LONG}", OTHER),
        ready=lambda fs, fault: fs.open(f"/{LONG}"),
    ),
    "atomic-new": Operation(write_atomically("/d/x", "xb", SMALL, LARGE)),
    "atomic-over": Operation(write_atomically("/d/small", "wb", OTHER)),
    "atomic-over-pieces": Operation(write_atomically("/large", "wb", OTHER), (), in_pieces),
    "atomic-over-viewed": Operation(write_atomically("/d/small", "wb", LARGE), (), Case.look_at_small),
    "atomic-over-read-long-name": Operation(
        lambda fs, _, handle: (write_atomically(f"/{LONG}", "wb", SMALL)(fs, _), handle.close()),
        (),
        lambda case: case.fs.write_bytes(f"/{LONG}", OTHER),
        ready=lambda fs, fault: fs.open(f"/{LONG}"),
    ),
    "atomic-given-up": Operation(give_up),
    "import": Operation(call("import_tree", IMPORTED)),
    "import-new-long-names": Operation(call("import_tree", {f"/{LONG}/{LONGER}": SMALL, f"/d/{LONG}": OTHER}), bare=True),
    "import-over-long-name": Operation(
        call("import_tree", {f"/d/{LONG}": SMALL}), (), lambda case: case.fs.write_bytes(f"/d/{LONG}", OTHER)
    ),
    "import-over-pieces": Operation(call("import_tree", {"/large": SMALL, "/d/small": LARGER}), (), in_pieces),
    "import-over-viewed": Operation(call("import_tree", {"/d/small": OTHER, "/d/x": SMALL}), (), Case.look_at_small),
    "import-when-nodes-end": Operation(call("import_tree", {"/d/x": SMALL, "/e/x": SMALL}), (), many_names(244)),
    "read-bytes": Operation(call("read_bytes", "/large")),
    "view": Operation(view_and_forget("/large")),
    "view-of-pieces": Operation(view_and_forget("/large"), (), in_pieces),
    "write-into-viewed": Operation(view_then_write("/d/small", "r+b", OTHER), ("/d/small",)),
    "write-over-viewed": Operation(view_then_write("/large", "wb", OTHER), ("/large",)),
    "append-to-viewed-by-peer": Operation(write("/large", "ab", SMALL), ("/large",), Case.look_at_large),
    "truncate-viewed-by-peer": Operation(truncate("/large", 5000), ("/large",), Case.look_at_large),
    "remove-viewed-by-peer": Operation(call("remove", "/large"), (), Case.look_at_large),
    "fill-in-place": Operation(fill("/d/small", "r+b", (100, 200), OTHER[:200]), ("/d/small",)),
    "fill-preallocated": Operation(fill("/d/x", "wb", (0, None), LARGE, preallocate=BIG), ("/d/x",)),
    "fill-in-place-pieces": Operation(fill("/large", "r+b", (BIG - 1000, 2000), content(2000, 5)), ("/large",), in_pieces),
    "fill-in-place-viewed": Operation(fill("/d/small", "r+b", (0, None), SMALL[::-1]), ("/d/small",), Case.look_at_small),
    "snapshot": Operation(save(snapshot.HURRIED_MOST)),
    "snapshot-of-pieces": Operation(save(snapshot.HURRIED_MOST), (), in_pieces),
    "snapshot-with-all-stopped": Operation(save(0)),
    "restore": Operation(load),
    "restore-into-nothing": Operation(load, bare=True),
    "quota-give": Operation(call("set_quota", "/bare", BIG), (), lambda case: case.fs.mkdir("/bare")),
    "quota-take": Operation(call("set_quota", "/r", None), (), with_quotas),
    "quota-change": Operation(call("set_quota", "/q", 1000), (), with_quotas),
    "quota-create": Operation(write("/q/x", "wb", SMALL, OTHER, LARGE), ("/q/x",), with_quotas),
    "quota-truncate": Operation(truncate("/q/large", 300), ("/q/large",), with_quotas),
    "quota-write-bytes-over": Operation(call("write_bytes", "/q/large", LARGER), (), with_quotas),
    "quota-write-bytes-over-viewed": Operation(
        call("write_bytes", "/q/small", OTHER), (), lambda case: looking_at(case, "/q/small")
    ),
    "quota-append-to-viewed": Operation(
        write("/q/small", "ab", OTHER), ("/q/small",), lambda case: looking_at(case, "/q/small")
    ),
    "quota-refuses": Operation(refused("/r/x", LARGE), (), with_quotas),
    "quota-remove": Operation(call("remove", "/q/small"), (), with_quotas),
    "quota-rmtree": Operation(call("rmtree", "/q"), (), with_quotas),
    "quota-rmtree-viewed": Operation(call("rmtree", "/q"), (), lambda case: looking_at(case, "/q/small", "/q/large")),
    "quota-rename-directory": Operation(call("rename", "/q", "/d/q"), (), with_quotas),
    "quota-move-file": Operation(call("move", "/q/small", "/r/p/small"), (), with_quotas),
    "quota-move-viewed-file": Operation(call("move", "/q/large", "/p/large"), (), lambda case: looking_at(case, "/q/large")),
    "quota-move-directory": Operation(call("move", "/q/sub", "/p/sub"), (), with_quotas),
    "quota-copy-tree": Operation(call("copy_tree", "/d", "/q/copied"), (), with_quotas),
    "space-write": Operation(write("/d/small", "ab", LARGE, space_timeout=DEADLINE_S), ("/d/small",), ready=room_when_waiting),
    "space-write-bytes-small": Operation(
        lambda fs, _: fs.write_bytes("/d/x", content(60 * KIB), space_timeout=DEADLINE_S), ready=room_when_waiting
    ),
    "space-write-bytes-large": Operation(
        lambda fs, _: fs.write_bytes("/large", LARGE, space_timeout=DEADLINE_S), ready=room_when_waiting
    ),
    "space-free-for-others": Operation(call("remove", "/large"), ready=others_wait),
    "close-last-reader-of-replaced": Operation(lambda _fs, _, handle: handle.close(), (), ready=reader_of("/d/small")),
    "attach": Operation(join, joins=True),
    "close": Operation(lambda fs, _: fs.close()),
    "trim": Operation(call("trim"), (), lambda case: case.fs.remove("/large")),
    "reap": Operation(call("trim"), ready=lambda fs, fault: fault.ask("leave_a_dead_one")),
    "join-after-a-death": Operation(join, ready=lambda _, fault: fault.ask("leave_a_dead_one"), joins=True),
    "look-around": Operation(look_around),
    "check": Operation(call("check")),
    "write-past-the-end": Operation(write_at("/d/small", (5000, OTHER), (20000, SMALL)), ("/d/small",)),
    "write-across-pieces": Operation(write_at("/large", (BIG - 1000, content(2000, 5))), ("/large",), in_pieces),
    "hand-over-to-reader": Operation(write_and_close, ("/d/small",), ready=held_and_wanted("r+b", "reader_waits")),
    "hand-over-to-writer": Operation(write_and_close, ("/d/small",), ready=held_and_wanted("r+b", "writer_waits")),
    "hand-over-to-many": Operation(
        write_and_close,
        ("/d/small",),
        ready=held_and_wanted("r+b", "reader_waits", "reader_waits", "writer_waits", "reader_waits"),
    ),
    "reader-hands-over": Operation(
        lambda _fs, _, handle: handle.close(), ready=held_and_wanted("rb", "writer_waits", "writer_waits")
    ),
    "drop-a-handle": Operation(drop_a_handle, ("/d/small",)),
    "close-under-a-view": Operation(close_under_a_view),
    "use-after-fork": Operation(use_after_fork, joins=True),
    "claim-and-done": Operation(claim("/d/*")),
    "claim-and-release": Operation(claim("/d/*", done=False)),
    "claim-in-pieces": Operation(claim("/large"), (), in_pieces),
    "claim-and-view": Operation(claim_and_view),
    "claim-to-dead-letter": Operation(claim("/d/small", 1, "/dead/letters", done=False)),
    "claim-past-attempts": Operation(claim("/d/small", 1, "/dead", done=False), (), watching),
    "claim-hands-over": Operation(done_without_end, ready=claimed_and_wanted),
    "reap-a-claimer": Operation(call("trim"), (), watching, ready=lambda fs, fault: fault.ask("leave_a_dead_claimer")),
    "wait-for-nothing": Operation(wait_for_nothing),
    "write-watched": Operation(write("/d/x", "wb", SMALL), ("/d/x",), watching),
    "write-bytes-over-watched": Operation(call("write_bytes", "/d/small", OTHER), (), watching),
    "rename-watched": Operation(call("rename", "/d/small", "/d/sub/renamed"), (), watching),
    "rename-directory-watched": Operation(call("rename", "/d", "/renamed"), (), watching),
    "copy-tree-watched": Operation(call("copy_tree", "/d", "/copied"), (), watching),
    "close-watching": Operation(lambda fs, _: fs.close(), ready=lambda fs, fault: watch(fs)),
    "unpickle": Operation(unpickle, (), Case.pickle_it, joins=True),
}


@contextlib.contextmanager
def same_hashes() -> Iterator[None]:
    """Stores made in this block hash names alike, by the low half of their uuid: so each time has the same points."""
    real = uuid.uuid4
    uuid.uuid4 = lambda: uuid.UUID(int=real().int >> 64 << 64 | 12345)
    try:
        yield
    finally:
        uuid.uuid4 = real


def setup_of(operation: Operation, backend: str, make: type[Case] = Case) -> Callable[[], Any]:
    @contextlib.contextmanager
    def setup() -> Iterator[Case]:
        name = fresh_name()
        marks = [name]
        try:
            with same_hashes():
                fs = MemoryFileSystem.create(name, QUOTA, backend=backend, max_participants=8)
            marks.append(fs.uuid.hex)
            case = make(name, fs)
            case.fill(operation)
            case.before = look(fs)
            try:
                yield case
            finally:
                case.part()
                del case.views[:]
                fs.close()
        finally:
            left = clear_away(*marks)
        assert left == []

    return setup


def run(operation: Operation) -> Callable[[Case, Fault], None]:
    def child(case: Case, fault: Fault) -> None:
        if fault.blow is die_in_company:
            fault.ask("watch")
        if operation.joins:
            operation.ready(None, fault)
            fault.arm(None)
            operation.do(None, case)
            return
        case.fs = fs = MemoryFileSystem.attach(case.name)  # not left when this function ends
        held = operation.ready(fs, fault)
        fault.arm(fs._store)
        operation.do(fs, fault, *([held] if held is not None else []))

    return child


def what_comes_of(operation: Operation, setup: Callable[[], Any]) -> State:
    """The state after the operation."""
    with short_slices(), setup() as case:
        status, messages = run_child(run(operation), case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        case.again(0)
        state: State = case.state
        return state


def verdict(operation: Operation, after: State) -> Callable[[Case], list[str]]:
    def verify(case: Case) -> list[str]:
        known = case.before, after
        case.findings += [
            f"{path} was read with {len(data)} bytes, neither before nor after"
            for path, data in sorted(case.seen)
            if data not in (case.before.get(path), after.get(path))
        ]
        if any(is_cut_short(case.state, each, operation.written) for each in known):
            return case.findings
        return [*case.findings, f"neither before nor after: {differences(case.before, case.state)}"]

    return verify


def is_cut_short(state: State, known: State, written: Collection[str]) -> bool:
    """Whether *state* is the known one, but for files that were being written, which are marked abandoned."""
    changed = {path for path in state.keys() | known.keys() if state.get(path, "nothing") != known.get(path, "nothing")}
    return all(path in written and isinstance(state.get(path), Abandoned) for path in changed)


def differences(known: State, found: State) -> list[str]:
    return [
        f"{path}: {short(known.get(path, 'nothing'))} became {short(found.get(path, 'nothing'))}"
        for path in sorted(known.keys() | found.keys())
        if known.get(path, "nothing") != found.get(path, "nothing")
    ]


def short(what: Any) -> str:
    if isinstance(what, Abandoned):
        return f"abandoned with {len(what.content)} bytes"
    return f"{len(what)} bytes" if isinstance(what, bytes) else str(what or "a directory")
