"""The asynchronous filesystem: D-MemFS's, method by method; threads, cancellation, tasks as owners of locks; the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from dmemfs_shm import (
    AsyncMemoryFileHandle,
    AsyncMemoryFileSystem,
    MemoryFileSystem,
    MFSClosedError,
    MFSDeadlockError,
    MFSLockTimeoutError,
    aio,
)
from dmemfs_shm.store import rwlock

from ..conftest import Stores, entries_of, mark_of
from ..processes import DEADLINE_S, call_in_child
from .conftest import OURS

WAITERS = 200


def ours() -> list[str]:
    """The threads that the package has started and that live."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dmemfs_shm")]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    gc.collect()
    assert ours() == []


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine under an event loop of its own; not ending is a failure."""

    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await main

    return asyncio.run(bounded())


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that announces itself by no event."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  (a shared word sets no event)
                await asyncio.sleep(0.001)
    except TimeoutError:
        pytest.fail(f"did not happen: {what}")


def waiting(fs: AsyncMemoryFileSystem, path: str) -> int:
    """How many requests wait for a file."""
    return sum(lock.path == path and lock.state == "waiting" for lock in fs.sync.locks())


@pytest.fixture
def make(stores: Stores) -> Callable[..., AsyncMemoryFileSystem]:
    """Makes asynchronous filesystems whose stores are checked at the end; who makes one closes it."""

    def made(**options: Any) -> AsyncMemoryFileSystem:
        fs = AsyncMemoryFileSystem(16 << 20, **options)
        stores.watch(fs.sync)
        return fs

    return made


# --- as D-MemFS's


def both(package: Any, scenario: Callable[[Any], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run a scenario on the asynchronous filesystem of either package."""

    async def main() -> Any:
        fs = package.AsyncMemoryFileSystem(max_quota=16 << 20, **options)
        try:
            return await scenario(fs)
        finally:
            if package.__name__ == OURS:
                await fs.close()

    return run(main())


def test_files(package: Any) -> None:
    async def scenario(fs: Any) -> None:
        async with await fs.open("/f", "wb") as file:
            assert await file.write(b"hello") == 5
            assert (await file.readable(), await file.writable(), await file.seekable()) == (False, True, True)
            assert await file.flush() is None
            assert await file.tell() == 5
        async with await fs.open("/f", "r+b", 0, 1.0) as file:
            assert await file.seek(-2, 2) == 3
            assert await file.write(b"LO!") == 3
            assert await file.truncate(5) == 5
            assert await file.truncate() == 5
            assert await file.seek(1) == 1
            assert await file.read(2) == b"el"
            assert await file.read() == b"LO"
        file = await fs.open("/f")
        assert await file.read() == b"helLO"
        with pytest.raises(OSError, match="not writable in mode 'rb'"):
            await file.write(b"x")
        await file.close()
        await file.close()
        for call in (file.read, file.tell, file.flush, file.readable, lambda: file.seek(0)):
            with pytest.raises(ValueError, match=r"I/O operation on closed file\."):
                await call()
        async with await fs.open("/p", "xb", preallocate=10):
            pass
        assert await fs.get_size("/p") == 10

    both(package, scenario)


def test_tree(package: Any) -> None:
    async def scenario(fs: Any) -> None:
        await fs.mkdir("/a/b")
        await fs.mkdir("/a", exist_ok=True)
        with pytest.raises(FileExistsError):
            await fs.mkdir("/a")
        async with await fs.open("/a/f", "wb") as file:
            await file.write(b"content")
        await fs.copy("/a/f", "/a/g")
        await fs.rename("/a/g", "/a/h")
        await fs.move("/a/h", "/new/h")
        await fs.copy_tree("/a", "/copy")
        assert sorted(await fs.listdir("/")) == ["a", "copy", "new"]
        assert [await fs.exists("/a/g"), await fs.is_dir("/a"), await fs.is_file("/new/h")] == [False, True, True]
        assert (await fs.stat("/a/f"))["size"] == await fs.get_size("/a/f") == 7
        walk = await fs.walk("/copy")
        assert walk == [("/copy", ["b"], ["f"]), ("/copy/b", [], [])]
        assert await fs.glob("/new/*") == ["/new/h"]
        assert (await fs.export_as_bytesio("/a/f", 7)).read() == b"content"
        assert await fs.export_tree("/copy") == {"/copy/f": b"content"}
        assert await fs.export_tree(only_dirty=True) == {"/a/f": b"content", "/new/h": b"content"}
        await fs.remove("/new/h")
        await fs.rmtree("/copy")
        stats = await fs.stats()
        assert (stats["file_count"], stats["dir_count"], stats["quota_bytes"]) == (1, 4, 16 << 20)

    both(package, scenario)


@pytest.mark.parametrize("parameter", ["lock_timeout", "default_lock_timeout"])
def test_lock_timeout(package: Any, parameter: str) -> None:
    async def scenario(fs: Any) -> None:
        options = {"lock_timeout": 0.0} if parameter == "lock_timeout" else {}
        async with await fs.open("/f", "wb"):
            with pytest.raises(BlockingIOError, match=r"Could not acquire read lock within timeout\."):
                await asyncio.create_task(fs.open("/f", "rb", **options))
            with pytest.raises(BlockingIOError, match="File is open: '/f'"):
                await fs.remove("/f")
        await fs.remove("/f")

    both(package, scenario, **({"default_lock_timeout": 0.05} if parameter == "default_lock_timeout" else {}))


def test_waits_for_a_lock(package: Any) -> None:
    async def scenario(fs: Any) -> None:
        async with await fs.open("/f", "wb") as file:
            reader = asyncio.create_task(fs.open("/f", "rb"))
            await asyncio.sleep(0)
            await file.write(b"first")
        async with await reader as file:
            assert await file.read() == b"first"

    both(package, scenario)


def test_bad_arguments(package: Any) -> None:
    async def scenario(fs: Any) -> None:
        with pytest.raises(ValueError, match="Invalid mode 'r'"):
            await fs.open("/f", "r")
        with pytest.raises(FileNotFoundError, match="No such file: '/f'"):
            await fs.open("/f")

    both(package, scenario)
    with pytest.raises(ValueError, match="Invalid default_storage value"):
        package.AsyncMemoryFileSystem(default_storage="disk")


def test_many_at_once(package: Any) -> None:
    async def scenario(fs: Any) -> None:
        async def one(number: int) -> bytes:
            async with await fs.open(f"/{number}", "wb") as file:
                await file.write(b"%d" % number)
            async with await fs.open(f"/{number}") as file:
                return await file.read()

        assert await asyncio.gather(*map(one, range(300))) == [b"%d" % number for number in range(300)]

    both(package, scenario)


# --- threads


def test_waiters_keep_nobody_from_closing(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """200 wait for one file; others go on, another file's waiter gets that, and the holder closes."""

    async def main() -> None:
        async with make(default_lock_timeout=None) as fs:
            holder, other = await fs.open("/f", "wb"), await fs.open("/g", "wb")

            async def read() -> bytes:
                async with await fs.open("/f") as file:
                    return await file.read()

            readers = [asyncio.create_task(read()) for _ in range(WAITERS - 10)]
            readers += [asyncio.create_task(fs.read_bytes("/f")) for _ in range(10)]
            late = asyncio.create_task(fs.open("/g"))
            await until(lambda: waiting(fs, "/f") == WAITERS and waiting(fs, "/g") == 1, "all of them wait")
            assert len(ours()) <= WAITERS + 1 + aio.THREADS
            await fs.write_bytes("/h", b"others go on")
            await other.close()
            await (await late).close()
            await holder.write(b"data")
            await holder.close()
            assert await asyncio.gather(*readers) == [b"data"] * WAITERS
            assert await fs.locks() == []
            await until(lambda: len(ours()) <= aio.THREADS, "the threads of the waiters end")

    run(main())


def test_calls_that_do_not_wait_share_a_few_threads(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    async def main() -> None:
        async with make() as fs:
            await asyncio.gather(*(fs.write_bytes(f"/{number}", b"x") for number in range(400)))
            await asyncio.gather(*(fs.read_bytes(f"/{number}") for number in range(400)))
            assert 0 < len(ours()) <= aio.THREADS

    run(main())


def test_several_loops_in_turn(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """The object and its handles belong to none."""
    fs = make()
    file = run(fs.open("/f", "wb"))
    assert run(file.write(b"x")) == 1
    run(file.close())
    assert run(fs.read_bytes("/f")) == b"x"
    run(fs.close())


def test_loops_at_the_same_time(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    fs = make()

    async def work(number: int) -> None:
        for _ in range(20):
            async with await fs.open("/f", "ab") as file:
                await file.write(b"%d" % number)

    threads = [threading.Thread(target=run, args=(work(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run(fs.read_bytes("/f"))) == sorted(b"0123" * 20)
    run(fs.close())


# --- cancelling


def test_cancelled_while_it_waits(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """It leaves the queue at once, not when its turn has come; then another has the file."""

    async def main() -> None:
        async with make(default_lock_timeout=None) as fs:
            holder = await fs.open("/f", "wb")
            for call in (lambda: fs.open("/f", "r+b"), lambda: fs.read_bytes("/f"), lambda: fs.copy("/f", "/g")):
                task = asyncio.create_task(call())
                await until(lambda: waiting(fs, "/f") == 1, "it waits")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(lambda: [lock.state for lock in fs.sync.locks()] == ["held"], "it does not wait any more")
            await until(lambda: len(ours()) <= aio.THREADS, "its thread has ended")
            await holder.close()
            async with await fs.open("/f", "r+b", lock_timeout=0.0):
                assert len(await fs.locks()) == 1
            assert await fs.locks() == []

    run(main())


def test_cancelled_when_it_waits_without_a_semaphore(
    make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rwlock, "PARKS_AT_MOST", 0)
    monkeypatch.setattr(rwlock, "DOZE_S", DEADLINE_S)
    test_cancelled_while_it_waits(make)


def holding_back(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> tuple[threading.Event, threading.Event]:
    """A method that has done its work, in its thread, and does not return yet: (it has, now it may)."""
    real, has, may = getattr(where, name), threading.Event(), threading.Event()

    def late(*args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        has.set()
        assert may.wait(DEADLINE_S)
        return result

    monkeypatch.setattr(where, name, late)
    return has, may


def test_cancelled_when_it_has_the_lock(make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """The handle that nobody takes is closed."""

    async def main() -> None:
        async with make() as fs:
            with monkeypatch.context() as patch:
                has, may = holding_back(patch, MemoryFileSystem, "open")
                task = asyncio.create_task(fs.open("/f", "wb"))
                await until(has.is_set, "it is open")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(fs.sync.locks()) == 1
                may.set()
                await until(lambda: fs.sync.locks() == [], "it is closed")

    run(main())


def test_cancelled_when_it_was_told(make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the moment between the answer and the task's going on."""

    async def main() -> None:
        async with make() as fs:
            settle = aio._Call._settle

            def cancel(call: Any) -> None:
                settle(call)
                task.cancel()

            with monkeypatch.context() as patch:
                patch.setattr(aio._Call, "_settle", cancel)
                task = asyncio.create_task(fs.open("/f", "wb"))
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: fs.sync.locks() == [], "it is closed")

    run(main())


def test_cancelled_write(make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to its end before the file is closed: who has the lock next finds it done."""

    async def main() -> None:
        async with make() as fs:
            file = await fs.open("/f", "wb")
            with monkeypatch.context() as patch:
                has, may = threading.Event(), threading.Event()
                write = file._h.write

                def late(data: bytes) -> int:
                    has.set()
                    assert may.wait(DEADLINE_S)
                    return write(data)

                patch.setattr(type(file._h), "write", lambda _, data: late(data))
                task = asyncio.create_task(file.write(b"whole"))
                await until(has.is_set, "it has begun")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                closing = asyncio.create_task(file.close())
                reading = asyncio.create_task(fs.read_bytes("/f"))
                await until(lambda: waiting(fs, "/f") == 1, "the next one waits")
                assert not closing.done()
                may.set()
                await closing
                assert await reading == b"whole"

    run(main())


def test_cancelled_close(make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is cancelled where it ends closes its file all the same, even if no thread has begun to."""
    monkeypatch.setattr(aio, "THREADS", 1)

    async def main() -> None:
        async with make() as fs:
            file = await fs.open("/f", "wb")
            with monkeypatch.context() as patch:
                has, may = holding_back(patch, MemoryFileSystem, "stats")
                busy = asyncio.create_task(fs.stats())
                await until(has.is_set, "the thread is busy")
                closing = asyncio.create_task(file.close())
                await asyncio.sleep(0)
                closing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing
                assert not file.closed
                may.set()
                await busy
            await until(lambda: fs.sync.locks() == [], "it is closed")

    run(main())


def test_loop_that_ends_without_its_tasks(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """A wait for a loop that was closed ends, and takes nothing."""
    fs = make(default_lock_timeout=None)
    holder = run(fs.open("/f", "wb"))
    loop = asyncio.new_event_loop()
    task = loop.create_task(fs.open("/f"))
    loop.run_until_complete(asyncio.wait([loop.create_task(until(lambda: waiting(fs, "/f"), "it waits"))]))
    loop.close()
    run(until(lambda: waiting(fs, "/f") == 0, "it does not wait any more"))
    run(holder.close())
    assert fs.sync.locks() == [] and not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # that it is lost is what this test is about
    run(fs.close())


# --- whose locks they are


def test_tasks_that_share_a_thread(make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has open does not make the other's request one of its own."""
    monkeypatch.setattr(aio, "THREADS", 1)

    async def main() -> None:
        async with make() as fs:
            await fs.write_bytes("/f", b"x")
            for held, wanted in (("wb", "rb"), ("rb", "r+b"), ("r+b", "ab")):
                file = await fs.open("/f", held)
                with pytest.raises(MFSLockTimeoutError):
                    await asyncio.create_task(fs.open("/f", wanted, lock_timeout=0.0))
                task = asyncio.create_task(fs.open("/f", wanted))
                await until(lambda: waiting(fs, "/f") == 1, "it waits")
                await file.close()
                await (await task).close()

    run(main())


def test_task_in_its_own_way(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """Its own files are known, whichever thread opened them: here one that has ended since."""

    async def main() -> None:
        async with make(default_lock_timeout=None) as fs:
            holder = await asyncio.create_task(fs.open("/f", "wb"))
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(holder.close()))
            async with await fs.open("/f", "r+b"):
                for call in (lambda: fs.open("/f"), lambda: fs.read_bytes("/f"), lambda: fs.copy("/f", "/g"), fs.export_tree):
                    with pytest.raises(MFSDeadlockError):
                        await call()
            assert await fs.export_tree() == {"/f": b""}

    run(main())


def test_task_shares_with_itself(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """Past a waiting writer, as a thread does; other tasks come after the writer."""

    async def main() -> None:
        async with make(default_lock_timeout=None) as fs:
            await fs.write_bytes("/f", b"x")
            async with await fs.open("/f"):
                writer = asyncio.create_task(fs.open("/f", "r+b"))
                await until(lambda: waiting(fs, "/f") == 1, "the writer waits")
                async with await fs.open("/f", lock_timeout=0.0) as again:
                    assert await again.read() == b"x"
                with pytest.raises(MFSLockTimeoutError):
                    await asyncio.create_task(fs.open("/f", lock_timeout=0.0))
            await (await writer).close()

    run(main())


def test_threads_are_others(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """What a task has open is not the event loop's thread's."""

    async def main() -> None:
        async with make() as fs:
            async with await fs.open("/f", "wb"):
                with pytest.raises(MFSLockTimeoutError):
                    fs.sync.open("/f", lock_timeout=0.0)
                [lock] = await fs.locks()
                assert (lock.pid, lock.thread) == (os.getpid(), threading.get_native_id())

    run(main())


# --- views


def test_view(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    async def main() -> None:
        async with make() as fs:
            await fs.write_bytes("/f", b"content")
            async with fs.view("/f") as view:
                assert type(view) is memoryview and view == b"content"
                await fs.write_bytes("/f", b"other")
                assert view == b"content"
            with await fs.view("/f") as view:
                assert view == b"other"
            del view
            with pytest.raises(FileNotFoundError):
                async with fs.view("/none"):
                    pass
            assert (await fs.info())["orphaned"] == 0

    run(main())


# --- the end


def test_close_ends_waits(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """Who waits gets MFSClosedError; what is open is closed with a warning; later calls raise, closing does not."""

    async def main() -> None:
        fs = make(default_lock_timeout=None)
        file = await fs.open("/f", "wb")
        waiters = [asyncio.create_task(fs.open("/f")) for _ in range(3)]
        await until(lambda: waiting(fs, "/f") == 3, "they wait")
        with pytest.warns(ResourceWarning, match="was open when its filesystem was closed"):
            await fs.close()
        assert ours() == []
        for waiter in waiters:
            with pytest.raises(MFSClosedError):
                await waiter
        assert fs.closed and file.closed
        await fs.close()
        await file.close()
        with pytest.raises(ValueError, match="closed file"):
            await file.read()
        for call in (fs.stats, lambda: fs.open("/f"), lambda: fs.read_bytes("/f"), fs.walk):
            with pytest.raises(MFSClosedError):
                await call()

    run(main())


# --- files that come


def test_claims(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """Consumers and producers in tasks of one loop: each file once, given back by an exception, and removed when it is done."""

    async def consume(fs: AsyncMemoryFileSystem, seen: list[tuple[bytes, int]]) -> None:
        while (claim := await fs.claim("/in/*")).path != "/in/end":
            with contextlib.suppress(KeyError):
                async with claim:
                    data = await claim.read_bytes()
                    seen.append((data, claim.attempts))
                    async with await claim.open() as file:
                        assert await file.read() == data
                    async with claim.view() as view:
                        assert bytes(view) == data
                    with await claim.view() as view:
                        assert bytes(view) == data
                    if data == b"3" and not claim.attempts:
                        raise KeyError
                    await claim.done()
            assert not claim.active
        await claim.release()

    async def main() -> None:
        async with make() as fs:
            await fs.mkdir("/in")
            seen: list[tuple[bytes, int]] = []
            consumers = [asyncio.create_task(consume(fs, seen)) for _ in range(3)]
            for number in range(9):
                async with await fs.open(f"/in/{number}", "wb", atomic=True) as file:
                    await file.write(b"%d" % number)
            await until(lambda: not fs.sync.listdir("/in"), "all are done")
            await fs.write_bytes("/in/end", b"")
            await asyncio.gather(*consumers)
            assert sorted(seen) == sorted([*((b"%d" % number, 0) for number in range(9)), (b"3", 1)])
            assert await fs.locks() == []

    run(main())


def test_an_exception_drops_what_is_atomic(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    async def main() -> None:
        async with make() as fs:
            with pytest.raises(KeyError):
                async with await fs.open("/f", "wb", atomic=True) as file:
                    await file.write(b"half")
                    raise KeyError
            file = await fs.open("/f", "wb", atomic=True)
            await file.discard()
            assert not await fs.exists("/f")
            assert await fs.listdir("/") == []

    run(main())


@pytest.mark.parametrize("call", ["wait_for", "claim"])
def test_who_waits_for_a_file_to_come(make: Callable[..., AsyncMemoryFileSystem], call: str) -> None:
    """A wait ends when it is cancelled, with the time, and with the filesystem."""

    async def main() -> None:
        fs = make()
        with pytest.raises(TimeoutError):
            await getattr(fs, call)("/none", timeout=0.0)
        idle = fs.sync.stats()
        watched = fs.sync._attached().publications
        task = asyncio.create_task(getattr(fs, call)("/none"))
        await until(lambda: watched._watching, "it waits")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not fs._threads._apart, "its thread has ended")
        assert fs.sync.stats() == idle
        task = asyncio.create_task(getattr(fs, call)("/none"))
        await until(lambda: fs._threads._apart, "it waits")
        await fs.close()
        with pytest.raises(MFSClosedError):
            await task

    run(main())


def test_a_claim_that_nobody_takes_is_given_back(
    make: Callable[..., AsyncMemoryFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled when it has the file."""

    async def main() -> None:
        async with make() as fs:
            await fs.write_bytes("/f", b"x")
            reached, go_on = holding_back(monkeypatch, fs.sync, "claim")
            task = asyncio.create_task(fs.claim("/f"))
            await until(reached.is_set, "it has the file")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await until(lambda: not fs.sync.locks(), "it is given back")
            assert (await fs.stat("/f"))["size"] == 1
            async with await fs.claim("/f", timeout=0.0) as claim:
                assert claim.attempts == 1

    run(main())


def test_waits_for_space(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    """Writes of several tasks wait for space, in threads of their own, and one that is cancelled waits no more."""

    async def main() -> None:
        async with make() as fs:
            await fs.mkdir("/q")
            await fs.set_quota("/q", 20_000)
            await fs.write_bytes("/q/full", bytes(15_000))
            queued = fs.sync._attached().space.queue
            cancelled = asyncio.create_task(fs.write_bytes("/q/c", bytes(9000), space_timeout=None))
            await until(lambda: len(list(queued())) == 1, "it waits")
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await until(lambda: not list(queued()), "it does not wait any more")
            file = await fs.open("/q/f", "wb", space_timeout=None)
            waiting = [
                asyncio.create_task(file.write(bytes(7000))),
                asyncio.create_task(fs.write_bytes("/q/b", bytes(5000), space_timeout=None)),
            ]
            await until(lambda: len(list(queued())) == 2, "they wait")
            await fs.remove("/q/full")
            assert await asyncio.gather(*waiting) == [7000, 5000]
            await file.close()
            with pytest.raises(TypeError):
                await fs.write_bytes("/q/n", b"", space_timeout="soon")

    run(main())


def test_a_snapshot_goes_into_another(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    async def main() -> None:
        async with make() as fs, make() as other:
            await fs.import_tree({"/d/f": b"data"})
            stream = io.BytesIO()
            await fs.snapshot(stream)
            stream.seek(0)
            await other.restore(stream)
            assert await other.export_tree() == {"/d/f": b"data"}

    run(main())


def test_collected() -> None:
    """Without close, too, threads and store go."""

    async def main() -> str:
        fs = AsyncMemoryFileSystem(1 << 20)
        await fs.write_bytes("/f", b"x")
        return mark_of(fs.sync)

    mark = run(main())
    run(until(lambda: gc.collect() >= 0 and not ours() and not entries_of(mark), "they are gone"))


def test_named(stores: Stores) -> None:
    async def main(name: str) -> None:
        async with await AsyncMemoryFileSystem.create(name, 1 << 20) as fs:
            assert fs.name == name and fs.uuid == fs.sync.uuid
            with pytest.raises(FileExistsError):
                await AsyncMemoryFileSystem.create(name)
            await fs.write_bytes("/f", b"x")
            async with await AsyncMemoryFileSystem.attach(name, default_lock_timeout=0.0) as other:
                assert await other.read_bytes("/f") == b"x"
                assert len(await other.participants()) == 1 and await other.check() == []
                await other.recover()
                assert await other.trim() >= 0
        await AsyncMemoryFileSystem.destroy(name)
        with pytest.raises(FileNotFoundError):
            await AsyncMemoryFileSystem.attach(name)

    run(main(stores.name()))


async def _greet(fs: AsyncMemoryFileSystem) -> bytes:
    async with await fs.open("/child", "wb") as file:
        await file.write(b"from the child")
    return await fs.read_bytes("/parent")


def _in_child(fs: AsyncMemoryFileSystem) -> bytes:
    read: bytes = run(_greet(fs))
    run(fs.close())
    return read


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(make: Callable[..., AsyncMemoryFileSystem], method: str) -> None:
    """By inheritance and pickling, with threads that it does not inherit."""
    fs = make()
    run(fs.write_bytes("/parent", b"from the parent"))
    assert call_in_child(method, _in_child, fs) == b"from the parent"
    assert run(fs.read_bytes("/child")) == b"from the child"
    copy = pickle.loads(pickle.dumps(fs))
    assert run(copy.read_bytes("/child")) == b"from the child"
    run(copy.close())
    run(fs.close())


EXIT = """
import asyncio
from dmemfs_shm import AsyncMemoryFileSystem

async def main():
    fs = AsyncMemoryFileSystem(1 << 20, default_lock_timeout=None)
    file = await fs.open("/f", "wb")
    waiter = asyncio.create_task(fs.open("/f"))
    while not any(lock.state == "waiting" for lock in fs.sync.locks()):
        await asyncio.sleep(0.001)
    return fs, file, waiter

loop = asyncio.new_event_loop()
kept = loop.run_until_complete(main())
print("end")
"""


def test_exit_while_one_waits() -> None:
    """A wait without end does not hold up the end of the process."""
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "end\n")


def test_imported_when_it_is_named() -> None:
    script = "import sys, dmemfs_shm; assert 'asyncio' not in sys.modules; dmemfs_shm.AsyncMemoryFileSystem; import asyncio"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=DEADLINE_S)
    assert {"AsyncMemoryFileHandle", "AsyncMemoryFileSystem"} <= set(__import__("dmemfs_shm").__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = __import__("dmemfs_shm").Nothing


def test_repr(make: Callable[..., AsyncMemoryFileSystem]) -> None:
    async def main() -> None:
        async with make() as fs:
            assert repr(fs) == f"<AsyncMemoryFileSystem of <MemoryFileSystem {fs.name!r}>>"
            async with await fs.open("/f", "wb") as file:
                assert isinstance(file, AsyncMemoryFileHandle)
                assert (file.name, file.mode, file.closed) == ("/f", "wb", False)
                assert repr(file) == "<AsyncMemoryFileHandle of <MemoryFileHandle '/f' mode='wb'>>"

    run(main())
