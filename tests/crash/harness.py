"""Kill a process at every point of an operation, and see whether the others go on.

A point lies before each store to shared memory and around each system call that others can notice. `instrument` puts a
word buffer of our own in place of an attached store's, in every object that holds it; `system_calls` wraps semaphores,
file locks and the calls on segments. `kill_everywhere` counts the points of an operation in one child process and then
lets one child die at each of them.

A store has no effect before it is made, and nothing happens between two points that others could see: so dying "before
point n" for all n, the end included, is dying everywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc

from dmemfs_shm.store import attachment, mutex, rwlock
from dmemfs_shm.store.attachment import Attachment

from ..processes import DEADLINE_S, Task

#: Every point, or a tenth of them.
ALL_POINTS = bool(os.environ.get("CRASH"))
SEED = int(os.environ.get("CRASH_SEED", "1"))

#: Waits of the protocol are shortened to this, so that hundreds of lost tokens heal in a test's time.
SLICE_S = 0.004


# ---- the seams


class WordBuffer:
    """The words of a store as objects see them; calls `event` before each store."""

    def __init__(self, words: Any, event: Callable[[str], None]) -> None:
        self.words = words
        self.event = event

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, key: Any) -> Any:
        return self.words[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.event("store")
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


class _Semaphore:
    """A named semaphore with a point after each taken token and before each given one."""

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
            each._try_token, each._give_token = each._semaphore.acquire, each._semaphore.release


# ---- dying


class Fault:
    """In a child: where to die. `arm` makes points count from there on; the operation ends with the last of them."""

    def __init__(self, fatal: int | None, link: _Link) -> None:
        self.fatal = fatal
        self.link = link
        self.trace: list[str] = []
        self.armed = False
        self.waits: Callable[[], None] = lambda: None
        self._stack = contextlib.ExitStack()

    def point(self, what: str) -> None:
        if not self.armed:
            return
        if len(self.trace) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.trace.append(what)

    def arm(self, *stores: Attachment | None) -> None:
        """From here on every point counts: of these stores, or (None) of one that is about to be created or attached."""
        wrapper = self._stack.enter_context(system_calls(self.point, self._wait))
        attachment.memoryview = self._memoryview  # type: ignore[attr-defined]  # found before the built-in one
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
        vars(attachment).pop("memoryview", None)

    def ask(self, request: str) -> None:
        """Let the test do something, and wait until it is done."""
        armed, self.armed = self.armed, False
        self.link.ask(request)
        self.armed = armed

    def _wait(self) -> None:
        waits, self.waits = self.waits, lambda: None
        waits()

    def _memoryview(self, thing: Any) -> Any:
        return _View(thing, self.point)


class _View:
    """Stands in for memoryview(mapping) while a store is created or attached."""

    def __init__(self, thing: Any, event: Callable[[str], None]) -> None:
        self.view = memoryview(thing)
        self.event = event

    def cast(self, form: str) -> Any:
        words = self.view.cast(form)
        return words if words.readonly else WordBuffer(words, self.event)


class _Link:
    """Pipes between a child and the test: requests of a line each, and answers of one byte."""

    def __init__(self) -> None:
        self.child_reads, self.test_writes = os.pipe()
        self.test_reads, self.child_writes = os.pipe()

    def ask(self, request: str) -> None:
        os.write(self.child_writes, request.encode() + b"\n")
        assert os.read(self.child_reads, 1) == b"."

    def close(self, *descriptors: int) -> None:
        for fd in descriptors:
            os.close(fd)


def run_child(operation: Callable[..., None], case: Any, fatal: int | None) -> tuple[int, list[str]]:
    """Run operation(case, fault) in a forked child; (wait status, messages of the child)."""
    link = _Link()
    pid = os.fork()
    if pid == 0:
        try:
            link.close(link.test_reads, link.test_writes)
            fault = Fault(fatal, link)
            operation(case, fault)
            if fault.armed:
                fault.disarm()
            os.write(link.child_writes, f"points {' '.join(fault.trace)}\n".encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001  # whatever it was, the test is told
            os.write(link.child_writes, f"error {traceback.format_exc()!r}\n".encode())
            os._exit(1)
    reaped = False
    try:
        link.close(link.child_reads, link.child_writes)
        messages = _converse(link, case)
        reaped = True
        _, status = os.waitpid(pid, 0)  # its pipe is closed: it is ending
        return status, messages
    finally:
        if not reaped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        link.close(link.test_reads, link.test_writes)


def _converse(link: _Link, case: Any) -> list[str]:
    """Answer the child until it is gone."""
    messages, rest, end = [], b"", time.monotonic() + DEADLINE_S
    while True:
        ready, _, _ = select.select([link.test_reads], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"the child did not end within {DEADLINE_S} s"
        data = os.read(link.test_reads, 1 << 16)
        if not data:
            return messages
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word = line.decode()
            if word.startswith(("points", "error")):
                messages.append(word)
            else:
                case.answer(word)
                with contextlib.suppress(BrokenPipeError):
                    os.write(link.test_writes, b".")


def count_points(setup: Callable[[], Any], operation: Callable[..., None], verify: Callable[[Any], list[str]]) -> list[str]:
    """What the points of the operation are, in order; nobody dies."""
    with setup() as case:
        status, messages = run_child(operation, case, None)
        assert os.waitstatus_to_exitcode(status) == 0, messages
        Task(case.again, 0).result()
        assert verify(case) == []
    (trace,) = messages
    points = trace.split()[1:]
    assert points[-1] == "end", points
    return points


def kill_everywhere(
    setup: Callable[[], Any], operation: Callable[..., None], verify: Callable[[Any], list[str]], *, every: int = 1
) -> int:
    """Let a child die at each point of operation(case, fault), or at one in *every*; how many there were.

    setup() is a context manager that makes the case afresh for each point; case.again() is what the living must still
    be able to do, and verify(case) says what is wrong afterwards. A point that is never reached is a failure.
    """
    with short_slices():
        points = count_points(setup, operation, verify)
        numbers = list(range(len(points)))
        if every > 1 and not ALL_POINTS:
            numbers = sorted(random.Random(SEED).sample(numbers, max(2, len(numbers) // every)))
        for number in numbers:
            where = f"point {number} of {len(points)} (before {points[number]}, after {points[:number][-4:]})"
            with setup() as case:
                status, messages = run_child(operation, case, number)
                assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{where} was not reached: {messages}"
                try:
                    Task(case.again, number).result()  # a deadline bounds a hang
                    findings = verify(case)
                except Exception as error:
                    raise AssertionError(f"killed at {where}") from error
                assert findings == [], f"killed at {where}"
    return len(numbers)


@contextlib.contextmanager
def short_slices(seconds: float = SLICE_S) -> Iterator[None]:
    """Everybody who is started in this block looks after the dead every few milliseconds."""
    before = mutex.SLICE_S, rwlock.SLICE_S
    mutex.SLICE_S = rwlock.SLICE_S = seconds
    try:
        yield
    finally:
        mutex.SLICE_S, rwlock.SLICE_S = before
