"""The filesystem for asyncio: every call runs in another thread, and the event loop never waits.

    fs = AsyncMemoryFileSystem(max_quota=64 << 20)
    async with await fs.open("/f", "wb") as file:
        await file.write(b"data")
    await fs.close()

Guarantees. No call waits for a thread that waits for a file. Each call is first made by one of a few shared threads, as one
that is refused rather than waits; one that is refused is made again, to wait, by a thread of its own. So closing, which is
what the others wait for, always finds a thread, however many wait; their number is bounded by what one process may open
(MFSTooManyHandlesError), but that of those who wait for a file to come by nothing: each has a thread.

A task is to the locks what a thread is to those of the synchronous filesystem: what it has open for reading it may read
again past waiting writers, and asking for what it would itself be in the way of is MFSDeadlockError at once. Which thread
made the call means nothing. (Up to Python 3.11, `asyncio.wait_for` makes a task of its own of what it waits for.)

Cancelling a call ends its wait within 50 ms (500 for the 32nd waiter of a process and those after it), and what it got
meanwhile, such as a handle and its lock, is given back. What is being written or closed comes to its end in its thread,
before anything else is done with that handle.

One object may be used under one event loop after another. `close` leaves no thread behind, and neither does collection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from .errors import MFSClosedError, MFSLockTimeoutError, MFSStoreBusyError
from .filesystem import DEFAULT_QUOTA, MemoryFileSystem, _check_timeout
from .store.mutex import CalledOffError, new_word

if TYPE_CHECKING:
    import io
    import uuid as uuids

    from .claims import Claim
    from .filesystem import LockInfo, MFSInfo, MFSStatResult, MFSStats, ParticipantInfo
    from .handle import MemoryFileHandle
    from .paths import AnyPath

THREADS = 16  # that do what never waits for a file
_MAY_WAIT = frozenset(("write", "truncate"))  # for space

_words: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()


def _word_of_task() -> int:
    """What stands for the running task in lock records."""
    task = asyncio.current_task()
    if task is None:
        return new_word()
    word = _words.get(task)
    if word is None:
        word = _words[task] = new_word()
    return word


# ---- calls, and the threads that make them


class _Call:
    """One call: `run` makes it, in some thread; `result` is for the task that wants it.

    dispose: what is done with a result that nobody takes. must_run: it is made even if nobody waits for it any more.
    """

    def __init__(
        self,
        function: Callable[[Callable[[], bool]], Any],
        dispose: Callable[[Any], object] | None = None,
        *,
        must_run: bool = False,
    ) -> None:
        self._function: Callable[[Callable[[], bool]], Any] | None = function
        self._dispose = dispose
        self._must_run = must_run
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] | None = self._loop.create_future()
        self._lock = threading.Lock()
        self._outcome: tuple[Any, BaseException | None] | None = None
        self.is_given_up = False
        self.is_called_off = False

    def is_over(self) -> bool:
        """Whether nobody wants it any more."""
        return self.is_called_off or self.is_given_up or self._loop.is_closed()

    def run(self) -> None:
        if self.is_given_up and not self._must_run:
            return
        outcome = self._made()
        with self._lock:
            self._outcome = outcome
            wanted = not self.is_given_up
        del outcome  # or an error's traceback would keep this frame, which keeps the error
        if wanted:
            try:
                self._loop.call_soon_threadsafe(self._settle)
            except RuntimeError:  # the loop is closed
                wanted = False
        if not wanted:
            self.drop()

    def _made(self) -> tuple[Any, BaseException | None]:
        function, self._function = self._function, None  # what it refers to is gone before the task goes on
        assert function is not None
        try:
            return function(self.is_over), None
        except CalledOffError:
            return None, MFSClosedError("The filesystem object was closed.")
        except BaseException as error:  # noqa: BLE001  (it is the task's)
            return None, error

    def _settle(self) -> None:
        future, outcome = self._future, self._outcome
        if future is not None and outcome is not None and not future.done():
            result, error = outcome
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    async def result(self, threads: _Threads | None = None) -> Any:
        """What it returned or raised. A task that is cancelled here gives it up; what it got meanwhile is disposed of."""
        assert self._future is not None
        try:
            return await self._future
        except (asyncio.CancelledError, GeneratorExit):
            if self.give_up():
                self.drop() if threads is None else threads.drop(self)
            raise
        finally:
            self._future = None
            if not self.is_given_up:  # it is the task's alone now, though the thread may not be through with the call
                self._outcome = None

    def give_up(self) -> bool:
        """Nobody waits for it any more. Whether it was made already, and is the caller's to drop."""
        with self._lock:
            self.is_given_up = True
            return self._outcome is not None

    def drop(self) -> None:
        """Undo what nobody takes."""
        assert self._outcome is not None
        result, error = self._outcome
        if error is None and self._dispose is not None:
            with contextlib.suppress(OSError, ValueError):  # the store or the object is gone, and what was made with it
                self._dispose(result)


class _Threads:
    """The threads of one filesystem object: a few for what never waits, and one for each call that does."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._few = ThreadPoolExecutor(THREADS, "dmemfs_shm")
        self._apart: dict[threading.Thread, _Call] = {}

    def submit(self, call: _Call) -> None:
        if self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._start()
        try:
            self._few.submit(call.run)
        except BaseException:
            call.give_up()  # where no thread could be started it is in the queue all the same
            raise

    def submit_apart(self, call: _Call) -> None:
        """In a thread of its own, which does not hold up the end of the process."""
        if self._pid != os.getpid():
            self._start()

        def run() -> None:
            try:
                call.run()
            finally:
                self._apart.pop(threading.current_thread(), None)

        thread = threading.Thread(target=run, name="dmemfs_shm-waiter", daemon=True)
        self._apart[thread] = call
        try:
            thread.start()
        except BaseException:
            self._apart.pop(thread)
            raise

    def drop(self, call: _Call) -> None:
        try:
            self._few.submit(call.drop)
        except RuntimeError:  # they are gone
            call.drop()

    def end(self) -> None:
        """End all waits and let the other calls come to their end; no thread is left."""
        apart = list(self._apart.items()) if self._pid == os.getpid() else []
        for _, call in apart:
            call.is_called_off = True
        for thread, _ in apart:
            thread.join()
        if self._pid == os.getpid():
            self._few.shutdown()


# ---- handles


class AsyncMemoryFileHandle:
    """An open file, as `AsyncMemoryFileSystem.open` returns it; use it in an ``async with``.

    The methods are those of `MemoryFileHandle`, one at a time: a call waits for the one before it, cancelled or not.
    """

    def __init__(self, fs: AsyncMemoryFileSystem, handle: MemoryFileHandle) -> None:
        """Do not call: `AsyncMemoryFileSystem.open` does."""
        self._fs = fs
        self._h = handle
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """The path that the file was opened with."""
        return self._h.name

    @property
    def mode(self) -> str:
        return self._h.mode

    @property
    def closed(self) -> bool:
        return self._h.closed

    async def _do(self, method: str, *args: Any, must_run: bool = False) -> Any:
        """Call a method of the handle in another thread."""
        handle, turn = self._h, self._turn

        def make() -> Any:
            with turn:
                return getattr(handle, method)(*args)

        if handle.closed or await self._fs._is_ended():  # there is nothing left to wait for, only something to raise
            return make()
        if method in _MAY_WAIT and handle._space != 0.0:
            return await self._fs._run_apart(make)
        return await self._fs._run(make, must_run=must_run)

    async def read(self, size: int | None = -1) -> bytes:
        """See `MemoryFileHandle.read`."""
        return await self._do("read", size)  # type: ignore[no-any-return]

    async def write(self, data: Any) -> int:
        """See `MemoryFileHandle.write`. Who changes *data* before this has come to its end may find either stored."""
        return await self._do("write", data)  # type: ignore[no-any-return]

    async def seek(self, offset: int, whence: int = 0) -> int:
        """See `MemoryFileHandle.seek`."""
        return await self._do("seek", offset, whence)  # type: ignore[no-any-return]

    async def tell(self) -> int:
        """See `MemoryFileHandle.tell`."""
        return await self._do("tell")  # type: ignore[no-any-return]

    async def truncate(self, size: int | None = None) -> int:
        """See `MemoryFileHandle.truncate`."""
        return await self._do("truncate", size)  # type: ignore[no-any-return]

    async def flush(self) -> None:
        """See `MemoryFileHandle.flush`."""
        self._h.flush()

    async def readable(self) -> bool:
        return self._h.readable()

    async def writable(self) -> bool:
        return self._h.writable()

    async def seekable(self) -> bool:
        return self._h.seekable()

    async def close(self) -> None:
        """Give back the lock. Idempotent; cancelled, it comes to its end all the same."""
        await self._do("close", must_run=True)

    async def __aenter__(self) -> Self:
        return self

    async def discard(self) -> None:
        """See `MemoryFileHandle.discard`."""
        await self._do("discard", must_run=True)

    async def __aexit__(self, *exc: object) -> None:
        await self._do("__exit__", *exc, must_run=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._h!r}>"


class AsyncClaim:
    """A file that nobody else has, as `AsyncMemoryFileSystem.claim` returns it; use it in an ``async with``.

    The methods are those of `Claim`.
    """

    def __init__(self, fs: AsyncMemoryFileSystem, claim: Claim) -> None:
        """Do not call: `AsyncMemoryFileSystem.claim` does."""
        self._fs = fs
        self._claim = claim

    @property
    def path(self) -> str:
        return self._claim.path

    @property
    def attempts(self) -> int:
        return self._claim.attempts

    @property
    def active(self) -> bool:
        return self._claim.active

    async def open(self, mode: str = "rb") -> AsyncMemoryFileHandle:
        """See `Claim.open`."""
        return AsyncMemoryFileHandle(self._fs, await self._fs._run(lambda: self._claim.open(mode), _close))

    async def read_bytes(self) -> bytes:
        """See `Claim.read_bytes`."""
        return await self._fs._run(self._claim.read_bytes)  # type: ignore[no-any-return]

    def view(self) -> Any:
        """See `Claim.view`: ``async with claim.view() as v``, or ``with await claim.view() as v``."""

        def begin(entered: bool) -> Any:
            if entered:
                return self._fs._run(lambda: _enter(self._claim.view()), _leave)
            return self._fs._run(self._claim.view, _release)

        return _Context(self._fs, begin)

    async def done(self) -> None:
        """See `Claim.done`. Cancelled, it comes to its end all the same."""
        await self._fs._run(self._claim.done, must_run=True)

    async def release(self) -> None:
        """See `Claim.release`. Cancelled, it comes to its end all the same."""
        await self._fs._end(self._claim.release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._claim!r}>"


class _Context:
    """A context manager of the filesystem, for ``async with``; awaited, it is the synchronous one.

    begin: awaits the synchronous one, which was entered in the same step if it is told so.
    """

    def __init__(self, fs: AsyncMemoryFileSystem, begin: Callable[[bool], Any]) -> None:
        self._fs = fs
        self._begin = begin
        self._manager: Any = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._begin(False).__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> Any:
        self._manager, entered = await self._begin(True)
        return entered

    async def __aexit__(self, *exc: object) -> Any:
        manager, self._manager = self._manager, None
        return await self._fs._end(lambda: manager.__exit__(*exc))


def _enter(manager: Any) -> tuple[Any, Any]:
    return manager, manager.__enter__()


def _leave(entered: tuple[Any, Any]) -> None:
    entered[0].__exit__(None, None, None)


def _close(handle: Any) -> None:
    handle.close()


def _release(lent: Any) -> None:
    lent.release()


# ---- the filesystem


class AsyncMemoryFileSystem:
    """`MemoryFileSystem` with coroutines for methods; parameters, results and exceptions are the same.

    The constructor makes a private store, and `create` and `attach` take named ones. Use it in an ``async with``, or `close`
    it. It is pickled, inherited and collected as the synchronous one is, which is to be had as `sync`.
    """

    def __init__(
        self,
        max_quota: int = DEFAULT_QUOTA,
        chunk_overhead_override: int | None = None,
        promotion_hard_limit: int | None = None,
        max_nodes: int | None = None,
        default_storage: str = "auto",
        default_lock_timeout: float | None = 30.0,
        memory_guard: str = "none",
        memory_guard_action: str = "warn",
        memory_guard_interval: float = 1.0,
    ) -> None:
        self._bind(
            MemoryFileSystem(
                max_quota=max_quota,
                chunk_overhead_override=chunk_overhead_override,
                promotion_hard_limit=promotion_hard_limit,
                max_nodes=max_nodes,
                default_storage=default_storage,
                default_lock_timeout=default_lock_timeout,
                memory_guard=memory_guard,
                memory_guard_action=memory_guard_action,
                memory_guard_interval=memory_guard_interval,
            )
        )

    def _bind(self, sync: MemoryFileSystem) -> None:
        self._sync = sync
        self._threads = _Threads()
        self._ended: Future[None] | None = None  # done when `close`, which was called, has come to its end

    @classmethod
    async def create(cls, name: str, max_quota: int = DEFAULT_QUOTA, **options: Any) -> Self:
        """See `MemoryFileSystem.create`. Cancelled, it may leave the store created."""
        return cls._of(await _make(lambda: MemoryFileSystem.create(name, max_quota, **options)))

    @classmethod
    async def attach(cls, name: str, **options: Any) -> Self:
        """See `MemoryFileSystem.attach`."""
        return cls._of(await _make(lambda: MemoryFileSystem.attach(name, **options)))

    @staticmethod
    async def destroy(name: str) -> None:
        """See `MemoryFileSystem.destroy`."""
        await _make(lambda: MemoryFileSystem.destroy(name))

    @classmethod
    def _of(cls, sync: MemoryFileSystem) -> Self:
        fs = cls.__new__(cls)
        fs._bind(sync)
        return fs

    def __reduce__(self) -> Any:
        return type(self)._of, (self._sync,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._sync!r}>"

    @property
    def sync(self) -> MemoryFileSystem:
        """The synchronous filesystem. Its calls are a thread's: to a task of the same program they are somebody else's."""
        return self._sync

    @property
    def name(self) -> str:
        return self._sync.name

    @property
    def uuid(self) -> uuids.UUID:
        return self._sync.uuid

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._ended is not None

    # ---- how calls are made

    def _call(self, function: Callable[[], Any], dispose: Callable[[Any], object] | None, *, must_run: bool = False) -> _Call:
        """A call on behalf of the running task."""
        if self._ended is not None:
            raise MFSClosedError("The filesystem object was closed.")
        word, sync = _word_of_task(), self._sync

        def make(is_over: Callable[[], bool]) -> Any:
            with sync._attached().threads.on_behalf(word, is_over):
                return function()

        return _Call((lambda _: function()) if must_run else make, dispose, must_run=must_run)

    async def _run(
        self, function: Callable[[], Any], dispose: Callable[[Any], object] | None = None, *, must_run: bool = False
    ) -> Any:
        """Make a call that waits for no file, by one of the few threads."""
        call = self._call(function, dispose, must_run=must_run)
        self._threads.submit(call)
        return await call.result(self._threads)

    async def _run_apart(self, function: Callable[[], Any], dispose: Callable[[Any], object] | None = None) -> Any:
        """Make a call that may wait for long, by a thread of its own."""
        call = self._call(function, dispose)
        self._threads.submit_apart(call)
        return await call.result(self._threads)

    async def _try(
        self,
        impatient: Callable[[], Any],
        patient: Callable[[], Any],
        patience: float | None,
        dispose: Callable[[Any], object] | None = None,
    ) -> Any:
        """Make a call that waits for a file, at most *patience* seconds: first as one that is refused instead."""
        try:
            return await self._run(impatient, dispose)
        except (MFSLockTimeoutError, MFSStoreBusyError):
            if patience is not None and patience <= 0:
                raise
        return await self._run_apart(patient, dispose)

    async def _do(self, method: str, *args: Any, **options: Any) -> Any:
        """A method that waits for no file."""
        return await self._run(lambda: getattr(self._sync, method)(*args, **options))

    async def _do_or_wait(
        self, method: str, *args: Any, then: Callable[[Any], Any] | None = None, dispose: Any = None, **options: Any
    ) -> Any:
        """A method that waits for files as long as the default says; *then* is made of its result in the same thread."""

        def make(sync: MemoryFileSystem) -> Any:
            result = getattr(sync, method)(*args, **options)
            return result if then is None else then(result)

        sync = self._sync
        return await self._try(lambda: make(sync._impatient()), lambda: make(sync), sync._timeout, dispose)

    async def _end(self, function: Callable[[], Any]) -> Any:
        """Leave something that was entered, whatever happens; after `close` there is nothing to wait for any more."""
        return function() if await self._is_ended() else await self._run(function, must_run=True)

    async def _is_ended(self) -> bool:
        """Whether the object was closed. While it is being closed, wait for the end: nobody may use what goes meanwhile."""
        if self._ended is None:
            return False
        await asyncio.wrap_future(self._ended)
        return True

    async def close(self) -> None:
        """Detach this object. Calls that wait end with MFSClosedError, the others come to their end first; handles that
        are open are closed with a ResourceWarning. No thread is left. Idempotent."""
        if await self._is_ended():
            return
        ended: Future[None] = Future()
        self._ended = ended
        ended.set_running_or_notify_cancel()  # from here on nobody who waits for it can cancel it

        def finish(_: object) -> None:
            try:
                self._threads.end()
                self._sync.close()
            finally:
                ended.set_result(None)

        call = _Call(finish, must_run=True)
        await _run_alone(call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # ---- files

    async def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        preallocate: int = 0,
        lock_timeout: float | None = None,
        *,
        allow_abandoned: bool = False,
        atomic: bool = False,
        space_timeout: float | None = 0.0,
    ) -> AsyncMemoryFileHandle:
        """See `MemoryFileSystem.open`: ``async with await fs.open("/f", "wb") as file``."""
        sync = self._sync
        timeout = sync._timeout if lock_timeout is None else _check_timeout(lock_timeout)

        def make(seconds: float | None) -> MemoryFileHandle:
            options = {"allow_abandoned": allow_abandoned, "atomic": atomic, "space_timeout": space_timeout}
            return sync.open(path, mode, preallocate, seconds, **options)  # type: ignore[arg-type]

        if preallocate and space_timeout != 0.0:
            return AsyncMemoryFileHandle(self, await self._run_apart(lambda: make(lock_timeout), _close))
        return AsyncMemoryFileHandle(self, await self._try(lambda: make(0.0), lambda: make(lock_timeout), timeout, _close))

    async def read_bytes(self, path: AnyPath, *, allow_abandoned: bool = False) -> bytes:
        """See `MemoryFileSystem.read_bytes`."""
        return await self._do_or_wait("read_bytes", path, allow_abandoned=allow_abandoned)  # type: ignore[no-any-return]

    async def write_bytes(self, path: AnyPath, data: Any, *, space_timeout: float | None = 0.0) -> int:
        """See `MemoryFileSystem.write_bytes`."""
        if space_timeout != 0.0:
            return await self._run_apart(lambda: self._sync.write_bytes(path, data, space_timeout=space_timeout))  # type: ignore[no-any-return]
        return await self._do_or_wait("write_bytes", path, data)  # type: ignore[no-any-return]

    def view(self, path: AnyPath, *, allow_abandoned: bool = False) -> Any:
        """See `MemoryFileSystem.view`: ``async with fs.view(path) as v``, or ``with await fs.view(path) as v``."""

        def begin(entered: bool) -> Any:
            then, dispose = (_enter, _leave) if entered else (None, _release)
            return self._do_or_wait("view", path, allow_abandoned=allow_abandoned, then=then, dispose=dispose)

        return _Context(self, begin)

    async def export_as_bytesio(
        self, path: AnyPath, max_size: int | None = None, *, allow_abandoned: bool = False
    ) -> io.BytesIO:
        """See `MemoryFileSystem.export_as_bytesio`."""
        return await self._do_or_wait(  # type: ignore[no-any-return]
            "export_as_bytesio", path, max_size, allow_abandoned=allow_abandoned
        )

    async def export_tree(
        self, prefix: AnyPath = "/", only_dirty: bool = False, *, allow_abandoned: bool = False
    ) -> dict[str, bytes]:
        """See `MemoryFileSystem.export_tree`."""
        return await self._do_or_wait(  # type: ignore[no-any-return]
            "export_tree", prefix, only_dirty, allow_abandoned=allow_abandoned
        )

    async def import_tree(self, tree: dict[str, bytes]) -> None:
        """See `MemoryFileSystem.import_tree`."""
        await self._do("import_tree", tree)

    async def wait_for(self, pattern: AnyPath, timeout: float | None = None) -> str:
        """See `MemoryFileSystem.wait_for`."""
        return await self._run_apart(lambda: self._sync.wait_for(pattern, timeout))  # type: ignore[no-any-return]

    async def claim(
        self,
        pattern: AnyPath,
        timeout: float | None = None,
        max_attempts: int | None = None,
        dead_letter: AnyPath | None = None,
    ) -> AsyncClaim:
        """See `MemoryFileSystem.claim`: ``async with await fs.claim("/in/*.csv") as c``."""
        made = await self._run_apart(lambda: self._sync.claim(pattern, timeout, max_attempts, dead_letter), _release)
        return AsyncClaim(self, made)

    async def snapshot(self, target: BinaryIO, *, allow_abandoned: bool = False) -> None:
        """See `MemoryFileSystem.snapshot`."""
        await self._run_apart(lambda: self._sync.snapshot(target, allow_abandoned=allow_abandoned))

    async def restore(self, source: BinaryIO) -> None:
        """See `MemoryFileSystem.restore`."""
        await self._run_apart(lambda: self._sync.restore(source))

    # ---- names

    async def mkdir(self, path: AnyPath, exist_ok: bool = False) -> None:
        """See `MemoryFileSystem.mkdir`."""
        await self._do("mkdir", path, exist_ok)

    async def rename(self, src: AnyPath, dst: AnyPath) -> None:
        """See `MemoryFileSystem.rename`."""
        await self._do("rename", src, dst)

    async def move(self, src: AnyPath, dst: AnyPath) -> None:
        """See `MemoryFileSystem.move`."""
        await self._do("move", src, dst)

    async def replace(self, src: AnyPath, dst: AnyPath) -> None:
        """See `MemoryFileSystem.replace`."""
        await self._do_or_wait("replace", src, dst)

    async def remove(self, path: AnyPath) -> None:
        """See `MemoryFileSystem.remove`."""
        await self._do("remove", path)

    async def rmtree(self, path: AnyPath) -> None:
        """See `MemoryFileSystem.rmtree`."""
        await self._do("rmtree", path)

    async def copy(self, src: AnyPath, dst: AnyPath, *, allow_abandoned: bool = False) -> None:
        """See `MemoryFileSystem.copy`."""
        await self._do_or_wait("copy", src, dst, allow_abandoned=allow_abandoned)

    async def copy_tree(self, src: AnyPath, dst: AnyPath, *, allow_abandoned: bool = False) -> None:
        """See `MemoryFileSystem.copy_tree`."""
        await self._do_or_wait("copy_tree", src, dst, allow_abandoned=allow_abandoned)

    async def set_quota(self, path: AnyPath, limit: int | None) -> None:
        """See `MemoryFileSystem.set_quota`."""
        await self._do("set_quota", path, limit)

    # ---- looking

    async def listdir(self, path: AnyPath) -> list[str]:
        """See `MemoryFileSystem.listdir`."""
        return await self._do("listdir", path)  # type: ignore[no-any-return]

    async def exists(self, path: AnyPath) -> bool:
        """See `MemoryFileSystem.exists`."""
        return await self._do("exists", path)  # type: ignore[no-any-return]

    async def is_dir(self, path: AnyPath) -> bool:
        """See `MemoryFileSystem.is_dir`."""
        return await self._do("is_dir", path)  # type: ignore[no-any-return]

    async def is_file(self, path: AnyPath) -> bool:
        """See `MemoryFileSystem.is_file`."""
        return await self._do("is_file", path)  # type: ignore[no-any-return]

    async def stat(self, path: AnyPath) -> MFSStatResult:
        """See `MemoryFileSystem.stat`."""
        return await self._do("stat", path)  # type: ignore[no-any-return]

    async def get_size(self, path: AnyPath) -> int:
        """See `MemoryFileSystem.get_size`."""
        return await self._do("get_size", path)  # type: ignore[no-any-return]

    async def walk(self, path: AnyPath = "/") -> list[tuple[str, list[str], list[str]]]:
        """See `MemoryFileSystem.walk`; the whole walk as a list."""
        return await self._run(lambda: list(self._sync.walk(path)))  # type: ignore[no-any-return]

    async def glob(self, pattern: str) -> list[str]:
        """See `MemoryFileSystem.glob`."""
        return await self._do("glob", pattern)  # type: ignore[no-any-return]

    # ---- figures

    async def stats(self) -> MFSStats:
        """See `MemoryFileSystem.stats`."""
        return await self._do("stats")  # type: ignore[no-any-return]

    async def info(self) -> MFSInfo:
        """See `MemoryFileSystem.info`."""
        return await self._do("info")  # type: ignore[no-any-return]

    async def locks(self) -> list[LockInfo]:
        """See `MemoryFileSystem.locks`; thread is that of the event loop whose task asked."""
        return await self._do("locks")  # type: ignore[no-any-return]

    async def participants(self) -> list[ParticipantInfo]:
        """See `MemoryFileSystem.participants`."""
        return await self._do("participants")  # type: ignore[no-any-return]

    async def check(self) -> list[str]:
        """See `MemoryFileSystem.check`."""
        return await self._do("check")  # type: ignore[no-any-return]

    async def recover(self) -> None:
        """See `MemoryFileSystem.recover`."""
        await self._do("recover")

    async def trim(self) -> int:
        """See `MemoryFileSystem.trim`."""
        return await self._do("trim")  # type: ignore[no-any-return]


async def _make(function: Callable[[], Any]) -> Any:
    """What belongs to no object yet; a filesystem that nobody takes is closed again."""
    return await _run_alone(_Call(lambda _: function(), lambda made: made is None or made.close(), must_run=True))


async def _run_alone(call: _Call) -> Any:
    """Make a call by a thread that is nobody's, and that the process does not end without."""
    thread = threading.Thread(target=call.run, name="dmemfs_shm-alone")
    thread.start()
    try:
        return await call.result()
    finally:
        if not call.is_given_up:
            thread.join()  # it has told us with its last step
