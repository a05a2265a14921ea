"""Kill or stop a process at every point of an operation, and see whether the others go on.

A point lies before each store to shared memory and around each system call that others can notice. `instrument` puts a
word buffer of our own in place of an attached store's, in every object that holds it; `data_stores` does the same for
the bytes of files and names; `system_calls` wraps semaphores, file locks and the calls on segments. A store of more than
a word has a point in its middle, too. `kill_everywhere` counts the points of an operation in one child process and then
lets one child die at each of them; `stop_everywhere` stops it there, looks at what the others can do meanwhile, and lets
it go on.

A store has no effect before it is made, and nothing happens between two points that others could see (which
test_points.py proves): so dying "before point n" for all n, the end included, is dying everywhere, and what lies after
a call lies before the next point. Calls that may be in vain (taking a token or a file lock) have a point before and one
after. Attempts in vain one after the other change nothing between them and are one point, so that the number of points
does not hang on the clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import random
import re
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import posix_ipc

from dmemfs_shm import claims
from dmemfs_shm.errors import MFSStoreBusyError
from dmemfs_shm.store import attachment, mutex, publications, rwlock, segment, semaphores
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.layout import (
    BACKEND_OFD,
    LB_ATTACH,
    LB_INIT,
    LB_MUTEX,
    LB_RECOVER,
    MUTEXES,
    S_CLAIM,
    S_PID,
    W_BACKEND,
    generation_at,
)

from ..lockstore import inside
from ..processes import DEADLINE_S, Task

#: Every point, or a tenth of them.
ALL_POINTS = bool(os.environ.get("CRASH"))
SEED = int(os.environ.get("CRASH_SEED", "1"))

#: Waits of the protocol are shortened to this, so that hundreds of lost tokens heal in a test's time.
SLICE_S = 0.004

#: How long the dying let the others run into what they hold. Nothing depends on it.
RUN_INTO_S = 0.002

#: What a mutex is waited for while its holder is known to be stopped.
SHORT_S = 0.01

#: Points before calls that may be in vain.
ATTEMPTS = frozenset(("sem_take", "lock"))


# ---- the seams


class WordBuffer:
    """The words of a store as objects see them; calls `event` before each store, and in the middle of one of many words."""

    def __init__(self, words: Any, event: Callable[[str], None]) -> None:
        self.words = words
        self.event = event

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, key: Any) -> Any:
        return self.words[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.event("store")
        if isinstance(key, slice):
            half = (key.start + key.stop) // 2
            self.words[key.start : half] = value[: half - key.start]
            self.event("half")
            self.words[half : key.stop] = value[half - key.start :]
        else:
            self.words[key] = value

    def release(self) -> None:
        self.words.release()


class Recorder(WordBuffer):
    """A word buffer that remembers each store as (word or slice, value)."""

    def __init__(self, words: Any) -> None:
        self.stores: list[tuple[Any, Any]] = []
        super().__init__(words, lambda _: None)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.words[key] = value
        self.stores.append((key, value))


def instrument(store: Any, make: Callable[[Any], WordBuffer]) -> WordBuffer:
    """Put make(words) in place of the words of an attached store, wherever an object of the package holds them."""
    words = store.w
    buffer = make(words)
    places = list(_places(store, words, set()))
    assert {type(owner).__name__ for owner, _ in places} >= {"Attachment", "Participants", "Recovery", "FileLocks"}
    for owner, name in places:
        if name != "words":  # the mapping itself, which is released in the end
            setattr(owner, name, buffer)
    return buffer


@contextlib.contextmanager
def attaching(make: Callable[[Any], WordBuffer]) -> Iterator[None]:
    """Stores that are created or attached in this block reach their words through make(words), from the first one on."""
    attachment.memoryview = lambda thing: _View(thing, make)  # type: ignore[attr-defined]  # found before the built-in one
    try:
        yield
    finally:
        del attachment.memoryview  # type: ignore[attr-defined]


def _places(thing: Any, words: Any, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """(object, attribute) of every reference to the words that leads from *thing* through objects of the package."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, dict):
        for value in list(thing.values()):
            yield from _places(value, words, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in list(thing):
            yield from _places(value, words, seen)
    elif type(thing).__module__.startswith("dmemfs_shm"):
        for name in _attributes(thing):
            value = getattr(thing, name, None)
            if value is words:
                yield thing, name
            else:
                yield from _places(value, words, seen)


def _attributes(thing: Any) -> set[str]:
    found = set(getattr(thing, "__dict__", ()))
    for base in type(thing).__mro__:
        slots = getattr(base, "__slots__", ())
        found.update((slots,) if isinstance(slots, str) else slots)
    return found


class _Mapping(mmap.mmap):
    """A mapped segment with a point before each store of bytes, and one in its middle."""

    event: Callable[[str], None]

    def __setitem__(self, key: Any, value: Any) -> None:
        assert isinstance(key, slice)
        source, half = memoryview(value).cast("B"), (key.start + key.stop) // 2
        self.event("bytes")
        if half > key.start:
            super().__setitem__(slice(key.start, half), source[: half - key.start])
            self.event("half")
        super().__setitem__(slice(half, key.stop), source[half - key.start :])


class _Bytes(np.ndarray):  # type: ignore[type-arg]
    """The same for a segment's memoryview, and for slices of it. (A memoryview can't be subclassed; this is as good.)"""

    event: Callable[[str], None]

    def __setitem__(self, key: Any, value: Any) -> None:
        target, source = np.asarray(self)[key], np.frombuffer(value, np.uint8)
        half = len(target) // 2
        self.event("bytes")
        if half:
            target[:half] = source[:half]
            self.event("half")
        target[half:] = source[half:]

    def release(self) -> None:
        """As a memoryview; the mapping ends with the process."""


@contextlib.contextmanager
def data_stores(event: Callable[[str], None]) -> Iterator[None]:
    """Call *event* before and in the middle of each store of bytes into a segment that is mapped from here on."""

    class Mapping(_Mapping):
        def __new__(cls, *args: Any) -> Self:
            event("mmap")
            return super().__new__(cls, *args)

    class Bytes(_Bytes):
        pass

    Mapping.event = Bytes.event = staticmethod(event)
    real = mmap.mmap
    mmap.mmap = Mapping  # type: ignore[misc]
    segment.memoryview = lambda mapping: np.frombuffer(mapping, np.uint8).view(Bytes)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        mmap.mmap = real  # type: ignore[misc]
        vars(segment).pop("memoryview", None)


class _Semaphore:
    """A named semaphore with points before and after each taken token, and before each given one."""

    event: Callable[[str], None]
    waits: Callable[[], None]
    real: Any  # posix_ipc.Semaphore

    def __init__(self, name: Any, *args: Any, **options: Any) -> None:
        if isinstance(name, str):
            if (args[0] if args else options.get("flags", 0)) & posix_ipc.O_CREAT:
                self.event("sem_open")
            self.it = self.real(name, *args, **options)
        else:
            self.it = name

    def acquire(self, timeout: float | None = None) -> None:
        if (timeout is None or timeout > 0) and ".p" in self.it.name:
            self.waits()
        self.event("sem_take")
        try:
            self.it.acquire(timeout)
        except posix_ipc.BusyError:
            if timeout:
                time.sleep(0.001)  # its clock is not the monotonic one: see that the deadline has passed there, too
            raise
        self.event("sem_wait")

    def release(self) -> None:
        self.event("sem_post")
        self.it.release()

    def unlink(self) -> None:
        self.event("sem_unlink")
        self.it.unlink()

    def close(self) -> None:
        self.it.close()

    @property
    def value(self) -> int:
        return int(self.it.value)

    @property
    def name(self) -> str:
        return str(self.it.name)


def _wrap(event: Callable[[str], None], what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        event(what)
        return function(*args, **options)

    return wrapped


@contextlib.contextmanager
def system_calls(event: Callable[[str], None], waits: Callable[[], None] = lambda: None) -> Iterator[type]:
    """Call *event* around every call that changes what other processes see; *waits* before a thread parks.

    The value is the class that wraps semaphores, for those that are open already.
    """
    real_fcntl = fcntl.fcntl

    def wrapped_fcntl(fd: int, command: int, argument: Any = 0) -> Any:
        if command != fcntl.F_OFD_SETLK:
            return real_fcntl(fd, command, argument)
        if struct.unpack_from("h", argument)[0] == fcntl.F_UNLCK:
            event("unlock")
            return real_fcntl(fd, command, argument)
        event("lock")
        answer = real_fcntl(fd, command, argument)
        event("locked")  # an attempt in vain changes nothing
        return answer

    class Semaphore(_Semaphore):
        pass

    Semaphore.event = staticmethod(event)
    Semaphore.waits = staticmethod(waits)
    Semaphore.real = posix_ipc.Semaphore
    places: list[tuple[Any, str, Any]] = [(posix_ipc, "Semaphore", Semaphore), (fcntl, "fcntl", wrapped_fcntl)]
    for module, name in (
        (posix_ipc, "unlink_semaphore"),
        (posix_ipc, "unlink_shared_memory"),
        (posix_ipc, "SharedMemory"),
        (os, "rename"),
        (os, "ftruncate"),
        (os, "posix_fallocate"),
        (os, "pwrite"),
        (os, "close"),
    ):
        places.append((module, name, _wrap(event, name, getattr(module, name))))
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield Semaphore
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextlib.contextmanager
def watched(store: Attachment, event: Callable[[str], None]) -> Iterator[None]:
    """`system_calls` with the mutexes of an attached store that goes on after the block."""
    with system_calls(event) as wrapper:
        wrap_semaphores(store, wrapper)
        try:
            yield
        finally:
            wrap_semaphores(store, lambda semaphore: getattr(semaphore, "it", semaphore))


def wrap_semaphores(store: Attachment, wrapper: Callable[[Any], Any]) -> None:
    """Replace the semaphores that the mutexes of a store have open."""
    for each in store.mutexes:
        if each._semaphore is not None:
            each._semaphore = wrapper(each._semaphore)
            each._try_token, each._give_token = _taker(each._semaphore), each._semaphore.release


def _taker(semaphore: Any) -> Callable[[bool], bool]:
    """`taker`, also of a semaphore that has lost its name."""
    try:
        return semaphores.taker(semaphore)
    except FileNotFoundError:
        return functools.partial(semaphores._take_at_once, semaphore)


# ---- dying, and stopping


class Fault:
    """In a child: what befalls it where. `arm` makes points count from there on; the operation ends with the last of them."""

    def __init__(self, fatal: int | None, blow: Callable[[Fault], None], link: _Link) -> None:
        self.fatal = fatal
        self.blow = blow
        self.link = link
        self.trace: list[str] = []
        self.armed = False
        self.waits: Callable[[], None] = lambda: None
        self._stack = contextlib.ExitStack()

    def point(self, what: str) -> None:
        if not self.armed or (what in ATTEMPTS and self.trace and self.trace[-1] == what):
            return
        if len(self.trace) == self.fatal:
            self.blow(self)
        self.trace.append(what)

    def arm(self, *stores: Attachment | None) -> None:
        """From here on every point counts: of these stores, or (None) of one that is about to be created or attached."""
        wrapper = self._stack.enter_context(system_calls(self.point, self.waiting))
        self._stack.enter_context(attaching(lambda words: WordBuffer(words, self.point)))
        for store in stores:
            if store is not None:
                instrument(store, lambda words: WordBuffer(words, self.point))
                wrap_semaphores(store, wrapper)
                for key, semaphore in store.rw._semaphores.items():
                    store.rw._semaphores[key] = wrapper(semaphore)
        self.armed = True

    def disarm(self) -> None:
        """The operation is over: the last point."""
        self.point("end")
        self.armed = False
        self._stack.close()

    def ask(self, request: str) -> None:
        """Let the test do something, and wait until it is done."""
        armed, self.armed = self.armed, False
        self.link.ask(request)
        self.armed = armed

    def tell(self, what: object) -> None:
        """Say how the operation ended, where that may differ."""
        self.link.tell(f"outcome {what}")

    def waiting(self) -> None:
        """The child is about to wait for others, or has given up: whatever the operation arranged for that moment."""
        waits, self.waits = self.waits, lambda: None
        waits()


class _View:
    """Stands in for memoryview(mapping) while a store is created or attached."""

    def __init__(self, thing: Any, make: Callable[[Any], WordBuffer]) -> None:
        self.view = memoryview(thing)
        self.make = make

    def cast(self, form: str) -> Any:
        words = self.view.cast(form)
        return words if words.readonly else self.make(words)


class _Link:
    """Pipes between a child and the test: requests of a line each, and answers of one byte."""

    def __init__(self) -> None:
        self.child_reads, self.test_writes = os.pipe()
        self.test_reads, self.child_writes = os.pipe()

    def tell(self, message: str) -> None:
        os.write(self.child_writes, message.encode() + b"\n")

    def ask(self, request: str) -> None:
        self.tell(request)
        assert os.read(self.child_reads, 1) == b"."

    def close(self, *descriptors: int) -> None:
        for fd in descriptors:
            os.close(fd)


def die(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_company(fault: Fault) -> None:
    """Die while others are at work, or stuck, on what the victim is at work on."""
    fault.ask("company")
    time.sleep(RUN_INTO_S)
    die(fault)


def stop(fault: Fault) -> None:
    """Be stopped until the test has done what it does meanwhile."""
    fault.link.tell("stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


def run_child(
    operation: Callable[..., None], case: Any, fatal: int | None, blow: Callable[[Fault], None] = die
) -> tuple[int, list[str]]:
    """Run operation(case, fault) in a forked child; (wait status, messages of the child)."""
    link = _Link()
    pid = os.fork()
    if pid == 0:
        try:
            link.close(link.test_reads, link.test_writes)
            fault = Fault(fatal, blow, link)
            with data_stores(fault.point):
                operation(case, fault)
            if fault.armed:
                fault.disarm()
            link.tell(f"points {' '.join(fault.trace)}")
            os._exit(0)
        except BaseException:  # noqa: BLE001  # whatever it was, the test is told
            link.tell(f"error {traceback.format_exc()!r}")
            os._exit(1)
    reaped = False
    try:
        link.close(link.child_reads, link.child_writes)
        messages = _converse(link, case, pid)
        reaped = True
        _, status = os.waitpid(pid, 0)  # its pipe is closed: it is ending
        return status, messages
    finally:
        if not reaped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        link.close(link.test_reads, link.test_writes)


def _converse(link: _Link, case: Any, pid: int) -> list[str]:
    """Answer the child until it is gone."""
    messages, rest = [], b""
    while True:
        ready, _, _ = select.select([link.test_reads], [], [], DEADLINE_S)
        assert ready, f"the child said nothing for {DEADLINE_S} s"
        data = os.read(link.test_reads, 1 << 16)
        if not data:
            return messages
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word = line.decode()
            if word.startswith(("points", "error", "outcome")):
                messages.append(word)
            elif word == "stopped":
                messages.append(word)
                _meanwhile(case, pid)
            else:
                case.answer(word)
                with contextlib.suppress(BrokenPipeError):
                    os.write(link.test_writes, b".")


def _meanwhile(case: Any, pid: int) -> None:
    """What the others do while the child is stopped; then it goes on."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status
    Task(case.meanwhile, pid).result()
    os.kill(pid, signal.SIGCONT)


def count_points(setup: Callable[[], Any], operation: Callable[..., None], verify: Callable[[Any], list[str]]) -> list[str]:
    """What the points of the operation are, in order; nobody dies."""
    with setup() as case:
        status, messages = run_child(operation, case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        case.messages = messages
        Task(case.again, 0).result()
        assert verify(case) == []
    points = messages[-1].split()[1:]
    assert points[-1] == "end", points
    return points


Everywhere = Callable[..., int]


def kill_everywhere(
    setup: Callable[[], Any],
    operation: Callable[..., None],
    verify: Callable[[Any], list[str]],
    *,
    every: int = 1,
    company: bool = True,
    tries: int = 1,
) -> int:
    """Let a child die at each point of operation(case, fault), or at one in *every*; how many there were.

    setup() is a context manager that makes the case afresh for each point; case.again() is what the living must still
    be able to do, and verify(case) says what is wrong afterwards. A point that is never reached is a failure.

    company: it dies twice at each point (by turns, if only some are tried), once alone and once in the company of threads
    of the peer that want what it has, which case.company() starts and case.again() waits for.

    tries: for each point, where it depends on another thread how many there are.
    """
    return _everywhere(setup, operation, verify, every, [die, die_in_company] if company else [die], tries)


def stop_everywhere(
    setup: Callable[[], Any], operation: Callable[..., None], verify: Callable[[Any], list[str]], *, every: int = 1
) -> int:
    """Stop a child at each point of operation(case, fault), or at one in *every*, and let it go on; how many there were.

    case.meanwhile(pid) is what the others must be able to do while it is stopped. The rest is as for `kill_everywhere`.
    """
    return _everywhere(setup, operation, verify, every, [stop])


def _everywhere(
    setup: Callable[[], Any],
    operation: Callable[..., None],
    verify: Callable[[Any], list[str]],
    every: int,
    blows: list[Callable[[Fault], None]],
    tries: int = 1,
) -> int:
    with short_slices():
        points = count_points(setup, operation, verify)
        numbers = list(range(len(points)))
        some = every > 1 and not ALL_POINTS
        if some:
            numbers = sorted(random.Random(SEED).sample(numbers, min(len(numbers), max(2, len(numbers) // every))))
        for turn, number in enumerate(numbers):
            for blow in [blows[turn % len(blows)]] if some else blows:
                for left in reversed(range(tries)):
                    try:
                        _strike(setup, operation, verify, points, number, blow)
                        break
                    except NotReachedError:
                        if not left:
                            raise
    return len(numbers)


class NotReachedError(AssertionError):
    """The operation ended before the point came."""


def _strike(
    setup: Callable[[], Any],
    operation: Callable[..., None],
    verify: Callable[[Any], list[str]],
    points: list[str],
    number: int,
    blow: Callable[[Fault], None],
) -> None:
    """One child, struck at one point."""
    where = (
        f"{blow.__name__} at point {number} of {len(points)} (before {points[number]}, after {points[:number][-4:]}), "
        f"CRASH_SEED={SEED}"
    )
    with setup() as case:
        try:
            status, messages = run_child(operation, case, number, blow)
            survives = blow is stop
            reached = "stopped" in messages if survives else os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            if not reached:
                raise NotReachedError(f"{where}: {messages}")
            assert not survives or os.waitstatus_to_exitcode(status) == 0, messages
            case.messages = messages
            Task(case.again, number).result()  # a deadline bounds a hang
            findings = verify(case)
        except NotReachedError:
            raise
        except Exception as error:
            raise AssertionError(where) from error
        assert findings == [], f"{where}: {findings}"


def sections_of(store: Attachment, pid: int) -> set[int | str]:
    """What a stopped process is inside of: numbers of mutexes, "R" (recovery), "A" (attaching), "I" (creating).

    With OFD locks for mutexes, "ofd" stands beside them. Nobody else may be at work.
    """
    found: set[int | str] = {
        name for name, byte in (("R", LB_RECOVER), ("A", LB_ATTACH), ("I", LB_INIT)) if not store.locks.is_free(byte)
    }
    if store.w[W_BACKEND] == BACKEND_OFD:
        found.update(k for k in range(MUTEXES) if not store.locks.is_free(LB_MUTEX + k))
        return found | {"ofd"} if found else found
    for slot in range(store.layout.slots):
        at = store.layout.slot_at(slot)
        if store.participants.has_memory(slot) and store.w[at + S_PID] == pid:
            found.update(k for k in range(MUTEXES) if store.w[at + S_CLAIM + k] == store.w[generation_at(k)] & ~1)
    return found


def enter_all(store: Attachment, pid: int) -> tuple[set[int | str], list[str]]:
    """While a process is stopped: what it is inside of, and what is wrong with entering each mutex of the store.

    The others' are to be had, even if it has a token and has not claimed it yet; its own are refused, and it is named.
    """
    held, findings = sections_of(store, pid), []
    for number in range(MUTEXES):
        inner: list[int] = []
        try:
            # Recovery, and with OFD locks the outer mutex's open journal, may be in the way of entering any of them.
            with deadlines(store, SHORT_S if number in held or held & {"R", "ofd"} else DEADLINE_S):
                inside(store, number, lambda inner=inner, number=number: inner.append(number), 0.0)
        except MFSStoreBusyError as error:
            if not is_in_the_way(str(error), held, pid):
                findings.append(f"entering mutex {number} while {held} are held by {pid}: {error}")
        if inner and number in held:
            findings.append(f"two are inside mutex {number}")
    return held, findings


def is_in_the_way(text: str, held: set[int | str], pid: int) -> bool:
    """Whether a refusal says what the stopped process is inside of, and names it."""
    behind = re.match(r"Another thread of this process holds mutex (\d+)", text)
    if behind is not None:  # it waits there for the stopped one
        return int(behind[1]) in held
    found = re.match(r"Mutex (\d+) of the store is held by (.*), which does not go on", text)
    if found is None:
        return ("recovering" in text and "R" in held) or ("attaching" in text and "A" in held)
    named = found[2].startswith(f"process {pid} ")
    # With OFD locks the name comes an instant after the lock.
    return int(found[1]) in held and (named or ("ofd" in held and found[2] == "a process that is stopped"))


@contextlib.contextmanager
def deadlines(store: Attachment, seconds: float) -> Iterator[None]:
    """Mutexes, and those who create or attach, are waited for so long in this block."""
    before = mutex.GRACE_S, store.patience, attachment.WAIT_FOR_CREATOR_S
    mutex.GRACE_S = store.patience = attachment.WAIT_FOR_CREATOR_S = seconds
    try:
        yield
    finally:
        mutex.GRACE_S, store.patience, attachment.WAIT_FOR_CREATOR_S = before


@contextlib.contextmanager
def short_slices(seconds: float = SLICE_S) -> Iterator[None]:
    """Everybody who is started in this block looks after the dead every few milliseconds."""
    before = mutex.SLICE_S, rwlock.SLICE_S, publications.SLICE_S, claims.BEAT_S
    mutex.SLICE_S = rwlock.SLICE_S = publications.SLICE_S = claims.BEAT_S = seconds
    try:
        yield
    finally:
        mutex.SLICE_S, rwlock.SLICE_S, publications.SLICE_S, claims.BEAT_S = before
