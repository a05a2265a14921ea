"""Every operation of the filesystem, stopped (SIGSTOP) at every point of it, on both backends, and continued.

While it is stopped, the peer and a newcomer do everything one can do. What they see is what was before the operation or
what is after it. What the stopped one has open is refused, with its name. If it stopped inside critical sections, what
needs these mutexes (and nothing else) is refused by the deadline, with their number and its name; otherwise everything
works at once, and `check` finds nothing. That goes for the window between taking a mutex's token and claiming it, too:
the token's generation is revoked. Nothing is ever taken away from the living.

Then it goes on, and ends the operation as if nothing had been, sound and with the quota exact. By another run of the
same points the peer meanwhile does *the same operation*: both end, and how each of them ended, and the state, are those
of one operation after the other, in either order; or the peer's was refused, and the other's counts alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSAbandonedFileError, MFSFileOpenError, MFSLockTimeoutError, MFSStoreBusyError
from dmemfs_shm.store import attachment
from dmemfs_shm.store.attachment import Attachment

from ..figures import STOP_POINTS
from ..lockstore import BOTH
from ..processes import DEADLINE_S
from .harness import (
    SEED,
    SHORT_S,
    Fault,
    deadlines,
    enter_all,
    is_in_the_way,
    run_child,
    sections_of,
    short_slices,
    stop_everywhere,
)
from .operations import (
    OPERATIONS,
    OTHER,
    SMALL,
    Abandoned,
    Case,
    Limit,
    Operation,
    State,
    differences,
    run,
    setup_of,
)

pytestmark = pytest.mark.crash

PROBES = ("/probe", "/probe-renamed", "/probe-directory")
REFUSALS = (MFSLockTimeoutError, MFSFileOpenError, MFSStoreBusyError)

#: Their `do` is about the process that does it: it is not for the peer to do it, too.
ONCE = frozenset(
    (
        "atomic-over-read-long-name",
        "attach",
        "claim-hands-over",
        "close",
        "close-watching",
        "close-last-reader-of-replaced",
        "close-under-a-view",
        "drop-a-handle",
        "space-write",
        "space-write-bytes-small",
        "space-write-bytes-large",
        "space-free-for-others",
        "hand-over-to-many",
        "hand-over-to-reader",
        "hand-over-to-writer",
        "join-after-a-death",
        "look-around",
        "reader-hands-over",
        "reap",
        "reap-a-claimer",
        "write-bytes-over-read-long-name",
    )
)


class Locked:
    """Stands for the content of a file that the stopped process has open."""


class Stopped(Case):
    """The case of a child that stops."""

    def __init__(self, name: str, fs: MemoryFileSystem) -> None:
        super().__init__(name, fs)
        self.impatient = MemoryFileSystem.attach(name, default_lock_timeout=0.0)
        self.pid = 0
        self.held: set[int | str] = set()
        self.halfway: State | None = None
        self.rival: Callable[..., Any] | None = None
        self.outcome_of_rival: str | None = None

    def part(self) -> None:
        super().part()
        self.impatient.close()

    def _waits(self, function: Callable[[], Any]) -> None:
        super()._waits(lambda: patiently(function))

    def meanwhile(self, pid: int) -> None:
        """What the others do while the child is stopped."""
        store = self.fs._store
        self.pid, self.held = pid, sections_of(store, pid)
        if self.rival is not None:
            if not self.held:
                self._compete()
            return
        self.findings += enter_all(store, pid)[1]
        with deadlines(store, SHORT_S if self.held else DEADLINE_S):
            for probe in (self._use_a_file, self._use_a_directory, self._look, self._join):
                try:
                    probe()
                except MFSStoreBusyError as error:
                    if not is_in_the_way(str(error), self.held, pid):
                        self.findings.append(f"{probe.__name__}, while {self.held} are held by {pid}: {error}")
            if not self.held:
                self.findings += [f"while it is stopped: {finding}" for finding in self.fs.check()]

    def _use_a_file(self) -> None:
        fs, (path, renamed, _) = self.impatient, PROBES
        fs.write_bytes(path, SMALL)
        with fs.open(path, "r+b") as handle:
            handle.write(OTHER)
        fs.rename(path, renamed)
        assert fs.read_bytes(renamed) == OTHER
        assert fs.stat(renamed)["size"] == len(OTHER)
        fs.remove(renamed)

    def _use_a_directory(self) -> None:
        fs, (_, _, path) = self.impatient, PROBES
        fs.mkdir(path)
        assert os.path.basename(path) in fs.listdir("/")
        fs.rmtree(path)

    def _look(self) -> None:
        """What is there, as far as it can be read now."""
        fs, found = self.impatient, {}
        for folder, directories, files in fs.walk("/"):
            found.update({f"{folder.rstrip('/')}/{name}": None for name in directories})
            for path in (f"{folder.rstrip('/')}/{name}" for name in files):
                found[path] = self._content(path)
        self.halfway = {path: what for path, what in found.items() if path not in PROBES}

    def _content(self, path: str) -> Any:
        """Refused by the stopped one alone. Whom it gave the lock without waking him finds that out by himself, and goes."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with self.impatient.open(path) as handle:
                    return handle.read()
            except MFSAbandonedFileError:  # another one has died before
                with self.impatient.open(path, allow_abandoned=True) as handle:
                    return Abandoned(handle.read())
            except MFSLockTimeoutError as error:
                if any(f"process {self.pid} " in holder for holder in error.holders):
                    return Locked
                if time.monotonic() > deadline:
                    self.findings.append(f"{path} is refused: {error}")
                    return Locked

    def _join(self) -> None:
        """Another process comes, looks and goes; it may be refused only if sections are held."""
        pid = os.fork()
        if pid == 0:
            os._exit(newcomers_fate(self.name, SHORT_S if self.held else DEADLINE_S))
        _, status = os.waitpid(pid, 0)
        fate = os.waitstatus_to_exitcode(status)
        if fate not in ((0, REFUSED) if self.held else (0,)):
            self.findings.append(f"a newcomer, while {self.held} are held: {fate}")

    def _compete(self) -> None:
        assert self.rival is not None
        try:
            self.outcome_of_rival = outcome(lambda: self.rival(self.impatient, None))  # type: ignore[misc]
        except REFUSALS:
            self.outcome_of_rival = "refused"

    def again(self, number: int) -> None:
        for path in PROBES:  # what was refused in the middle
            with contextlib.suppress(FileNotFoundError):
                (self.fs.rmtree if self.fs.is_dir(path) else self.fs.remove)(path)
        super().again(number)


def patiently(function: Callable[[], Any]) -> Any:
    """Do it, though the deadlines of this process are short while another one is stopped."""
    while True:
        try:
            return function()
        except MFSStoreBusyError:
            continue


REFUSED = 3


def newcomers_fate(name: str, patience_s: float) -> int:
    """In a process of its own: attach, look, leave. 0, or REFUSED, or 1."""
    real = Attachment.join

    def join(store: Attachment) -> None:
        store.patience = patience_s
        real(store)

    Attachment.join = join  # type: ignore[method-assign]
    attachment.WAIT_FOR_CREATOR_S = patience_s
    try:
        fs = MemoryFileSystem.attach(name, default_lock_timeout=patience_s)
        fs.listdir("/")
        fs.close()
        return 0
    except MFSStoreBusyError:
        return REFUSED
    except BaseException:  # noqa: BLE001  # the test says so
        return 1


def outcome(function: Callable[[], Any]) -> str:
    """How it ended: "done", or the name of a clean error."""
    try:
        function()
    except REFUSALS:
        raise
    except (OSError, ValueError) as error:
        return type(error).__name__
    return "done"


def stopping(operation: Operation) -> Callable[[Case, Fault], None]:
    """The operation, which says how it ended."""
    real = run(operation)

    def child(case: Case, fault: Fault) -> None:
        fault.tell(outcome(lambda: real(case, fault)))

    return child


Ends = tuple[str, str | None, State]


def ends_of(operation: Operation, setup: Callable[[], Any], *order: str) -> Ends:
    """How it ends if "child" and "rival" do the operation one after the other: their outcomes, and the state."""
    with short_slices(), setup() as case:
        mine, other = "", None
        for who in order:
            if who == "child":
                status, messages = run_child(stopping(operation), case, None)
                assert os.waitstatus_to_exitcode(status) == 0, messages
                mine = said(messages)
            else:
                other = outcome(lambda: operation.do(case.impatient, None))
        case.again(0)
        return mine, other, case.state


def said(messages: list[str]) -> str:
    return next(message.split()[1] for message in messages if message.startswith("outcome"))


def agrees(known: State, found: State) -> bool:
    """Whether what was found halfway can be that state: what the stopped process has open may be anything, and quotas, which
    are behind the mutex that it may have, were not asked for."""
    known = {path: what for path, what in known.items() if not isinstance(what, Limit)}
    return known.keys() == found.keys() and all(what is Locked or known[path] == what for path, what in found.items())


def verdict(operation: Operation, setup: Callable[[], Any], *, rival: bool) -> Callable[[Stopped], list[str]]:
    alone = ends_of(operation, setup, "child")
    serial = [ends_of(operation, setup, *order) for order in (("child", "rival"), ("rival", "child"))] if rival else []

    def verify(case: Stopped) -> list[str]:
        findings, halfway = list(case.findings), case.halfway
        if halfway is not None and not any(agrees(known, halfway) for known in (case.before, alone[2])):
            findings.append(f"while it is stopped, neither before nor after: {differences(case.before, halfway)}")
        end = said(case.messages), case.outcome_of_rival, case.state
        accepted = serial if case.outcome_of_rival not in (None, "refused") else [(alone[0], case.outcome_of_rival, alone[2])]
        if end not in accepted:
            findings.append(f"ended {end[:2]}, not {[known[:2] for known in accepted]}, or {differences(alone[2], case.state)}")
        return findings

    return verify


def setup_with(operation: Operation, backend: str, *, rival: bool) -> Callable[[], Any]:
    setup = setup_of(operation, backend, Stopped)

    @contextlib.contextmanager
    def with_rival() -> Iterator[Stopped]:
        with setup() as case:
            case.rival = operation.do if rival else None
            yield case

    return with_rival


def cases() -> Iterator[Any]:
    """(name, backend, rival, every). In `make test` some points of some operations, in the simplest way mostly."""
    for name in OPERATIONS:
        once = name in ONCE or OPERATIONS[name].joins
        for backend, rival in itertools.product(BOTH, (False,) if once else (False, True)):
            named = f"{name}-{backend}{'-rival' if rival else ''}"
            if not zlib.crc32(f"{named} {SEED}".encode()) % (4 if (backend, rival) == ("generation", False) else 16):
                yield pytest.param(name, backend, rival, 30, id=f"{named}-a-part")
            yield pytest.param(name, backend, rival, 1, id=f"{named}-all", marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "backend", "rival", "every"), list(cases()))
def test_operation(name: str, backend: str, rival: bool, every: int, record_property: Callable[[str, object], None]) -> None:
    """Stopped anywhere it is in nobody's way but where it says so; it ends as if nothing had been."""
    operation = OPERATIONS[name]
    setup = setup_with(operation, backend, rival=rival)
    points = stop_everywhere(
        setup, stopping(operation), verdict(operation, setup_of(operation, backend, Stopped), rival=rival), every=every
    )
    record_property(STOP_POINTS, points)
