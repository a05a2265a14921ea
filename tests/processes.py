"""Processes and threads that a test starts, and never leaves behind.

A child reports through a pipe.  Whatever the test does, the child is reaped when the block ends, and one that does not
come to its end by the deadline fails the test: deadlines bound a hang, they measure nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: The ways multiprocessing starts a process.
METHODS = ("fork", "spawn", "forkserver")

#: Longer than anything here may take; reaching it means a hang.
DEADLINE_S = 60.0


class ChildFailedError(AssertionError):
    """The child raised; carries its traceback."""


class ChildDiedError(AssertionError):
    """The child ended without an answer."""


class Child:
    """A running child process and the test's end of its pipe."""

    def __init__(self, process: multiprocessing.process.BaseProcess, link: Connection) -> None:
        self.process = process
        self.link = link

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def send(self, message: object) -> None:
        """Give the child a message, which it takes with `link.recv()`."""
        self.link.send(message)

    def receive(self) -> Any:
        """The child's next message; what it raised becomes ChildFailedError here."""
        if not self.link.poll(DEADLINE_S):
            raise ChildDiedError(f"no answer from child {self.pid} within {DEADLINE_S} s")
        try:
            kind, value = self.link.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(DEADLINE_S)
            raise ChildDiedError(f"child ended with exit code {self.process.exitcode} and no answer") from None
        if kind == "error":
            raise ChildFailedError(value)
        return value

    def kill(self) -> None:
        """SIGKILL it, and wait until the kernel has taken it down."""
        self.process.kill()
        self.join()

    def join(self) -> None:
        """Wait for its end; not ending is a failure."""
        self.process.join(DEADLINE_S)
        if self.process.is_alive():
            raise ChildDiedError(f"child {self.pid} did not end within {DEADLINE_S} s")

    def reap(self) -> None:
        """Leave no process behind, whatever happened before."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join(DEADLINE_S)
        self.link.close()
        if not self.process.is_alive():
            self.process.close()


class Link:
    """The child's end: `send` and `recv`, as the target function sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, value: object) -> None:
        """Give the test a value."""
        self._connection.send(("value", value))

    def recv(self) -> Any:
        """Wait for the test's next message."""
        if not self._connection.poll(DEADLINE_S):
            raise TimeoutError("the test sent nothing")
        return self._connection.recv()


def _child_main(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        value = function(Link(connection), *args)
    except BaseException:  # noqa: BLE001  (whatever it is, the test has to know)
        connection.send(("error", traceback.format_exc()))
    else:
        connection.send(("value", value))
    # The connection stays open until the process ends: an end of file means that it has.


def _call(_link: Link, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@contextlib.contextmanager
def child(method: str, function: Callable[..., Any], *args: Any) -> Iterator[Child]:
    """Run `function(link, *args)` in a new process for the length of the block; its return value is its last message."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child_main, args=(theirs, function, args), daemon=True)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        # From Python 3.12 on, fork warns when there are threads; the runner has some.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        process.start()
    theirs.close()
    running = Child(process, ours)
    try:
        yield running
    finally:
        running.reap()


def call_in_child(method: str, function: Callable[..., Any], *args: Any) -> Any:
    """The value of `function(*args)`, computed in a new process that has ended cleanly."""
    with child(method, _call, function, *args) as running:
        value = running.receive()
        running.join()
        assert running.process.exitcode == 0
        return value


class Task:
    """A function running in a thread of its own; `result()` gives its value, or raises what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            assert self._function is not None
            self._value = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001  (raised again by result)
            self._error = error
        finally:
            self._function, self._args = None, ()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Wait for its end; not ending is a failure."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"a thread did not end within {DEADLINE_S} s"
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._value


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """The value of `function(*args)`, computed in another thread."""
    return Task(function, *args).result()


@contextlib.contextmanager
def held_open(fs: Any, path: str, mode: str) -> Iterator[None]:
    """Another thread has `path` open in `mode` for the length of the block."""
    opened, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with fs.open(path, mode):
                opened.set()
                assert release.wait(DEADLINE_S)
        finally:
            opened.set()

    task = Task(hold)
    try:
        assert opened.wait(DEADLINE_S)
        if task.done:
            task.result()
        yield
    finally:
        release.set()
        task.result()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that announces itself by no event; never used to order what an event can order."""
    end = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"did not happen within {DEADLINE_S} s: {what}"
        pause.wait(0.001)


def in_use() -> set[str]:
    """The names in /dev/shm that some living process has mapped or open."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "maps").read_text().split()
            words += [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue  # gone meanwhile, or not ours
        names.update(word.removeprefix("/dev/shm/") for word in words if word.startswith("/dev/shm/"))
    return names
