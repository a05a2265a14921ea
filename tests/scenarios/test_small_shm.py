"""A store whose quota is more than /dev/shm has: when memory ends, every operation ends in a clean error.

Each test runs in a child process with a mount namespace of its own, in which /dev/shm is a tmpfs of a few MiB. A process
that touched memory that is not there would die of SIGBUS, and the test would see that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

from dmemfs_shm import MemoryFileSystem, MFSNoSpaceError, MFSViewError
from dmemfs_shm.store import names
from dmemfs_shm.store.layout import N_RUNS, RECOVERIES, SLOTS_AT
from dmemfs_shm.store.recovery import SPARES, unlink_semaphore

from ..crash.harness import SEED, WordBuffer, instrument, watched
from ..figures import FAULTS
from ..lockstore import BOTH
from ..own_shm import fill_shm, free_shm, is_possible, own_shm
from ..processes import DEADLINE_S, call_in_child

KIB, MIB, PAGE = 1 << 10, 1 << 20, 4096
QUOTA = 64 * MIB

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not is_possible(), reason="mounting a small /dev/shm needs root and a mount namespace"
)


def in_small_shm(size_mib: int, function: Callable[..., Any], *args: Any) -> Any:
    return call_in_child("fork", _in_small_shm, size_mib, function, *args)


def _in_small_shm(size_mib: int, function: Callable[..., Any], *args: Any) -> Any:
    own_shm(size_mib)
    return function(*args)


@contextlib.contextmanager
def full_shm() -> Iterator[None]:
    fill_shm()
    try:
        yield
    finally:
        free_shm()


def use_up(fs: MemoryFileSystem) -> None:
    """Take the memory that the store itself has in hand; /dev/shm is full."""
    for size in (64 * KIB, PAGE, 200):
        with contextlib.suppress(MFSNoSpaceError):
            with fs.open("/all", "ab") as handle:
                while True:
                    handle.write(bytes(size))
    with contextlib.suppress(MFSNoSpaceError):
        for number in range(100_000):
            fs.write_bytes(f"/small/{number}", b"x" * 200)


# ---- a store and what is in it


def data(size: int, kind: int) -> bytes:
    return random.Random(f"{size}:{kind}").randbytes(size)


FILES = {"/tree/a": data(300, 1), "/tree/sub/b": data(5000, 2), "/tree/c": data(70 * KIB, 3), "/d": data(30 * KIB, 4)}


def a_store(backend: str = "generation") -> MemoryFileSystem:
    with pytest.warns(ResourceWarning, match="/dev/shm has"):
        fs = MemoryFileSystem.create("small", QUOTA, backend=backend)
    for folder in "/tree/sub", "/small":
        fs.mkdir(folder)
    for path, content in FILES.items():
        fs.write_bytes(path, content)
    return fs


def expect_intact(fs: MemoryFileSystem) -> None:
    for path, content in FILES.items():
        assert fs.read_bytes(path) == content, path
    assert fs.check() == []
    assert fs.locks() == []


def fails(function: Callable[..., Any], *args: Any, error: type = MFSNoSpaceError, **options: Any) -> None:
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert type(caught.value) is error
    assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
    assert str(caught.value)


def write(fs: MemoryFileSystem, path: str, mode: str, content: bytes, **options: Any) -> None:
    with fs.open(path, mode, **options) as handle:
        handle.write(content)


def endlessly(function: Callable[[int], Any]) -> None:
    """Until it raises."""
    for number in range(1 << 20):
        function(number)


def in_pieces(fs: MemoryFileSystem, path: str) -> None:
    """A file in two runs."""
    fs.trim()  # empties the bins: what comes next stands behind what came before
    write(fs, path, "wb", data(80 * KIB, 5))
    fs.write_bytes("/behind", data(8 * KIB, 6))
    write(fs, path, "ab", data(80 * KIB, 7))
    assert fs._store.w[fs._store.names.at(fs._store.names.files[path][0]) + N_RUNS] >> 32


def seek_and_write(fs: MemoryFileSystem, path: str, at: int) -> None:
    with fs.open(path, "r+b") as handle:
        handle.seek(at)
        handle.write(b"end")


def truncate(fs: MemoryFileSystem, path: str, size: int) -> None:
    with fs.open(path, "r+b") as handle:
        handle.truncate(size)


def open_many(fs: MemoryFileSystem) -> None:
    with contextlib.ExitStack() as stack:
        endlessly(lambda n: stack.enter_context(fs.open("/d")))


def view_many(fs: MemoryFileSystem) -> None:
    views: list[Any] = []
    endlessly(lambda n: views.append(fs.view("/d")))


def write_into_viewed(fs: MemoryFileSystem) -> None:
    views = []
    for number in range(100_000):
        views.append(fs.view("/spare"))
        write(fs, "/spare", "r+b", bytes([number & 0xFF]) * 100)


GROWING: dict[str, Callable[[MemoryFileSystem], Any]] = {
    "write": lambda fs: write(fs, "/new", "wb", data(MIB, 8)),
    "append": lambda fs: write(fs, "/spare", "ab", data(MIB, 8)),
    "write-past-the-end": lambda fs: seek_and_write(fs, "/spare", 2 * MIB),
    "truncate-longer": lambda fs: truncate(fs, "/spare", 2 * MIB),
    "preallocate": lambda fs: fs.open("/new", "wb", preallocate=MIB).close(),
    "write_bytes": lambda fs: fs.write_bytes("/new", data(MIB, 8)),
    "write_bytes-over": lambda fs: fs.write_bytes("/spare", data(MIB, 8)),
    "write_bytes-small": lambda fs: endlessly(lambda n: fs.write_bytes(f"/small/w{n}", data(3000, n))),
    "copy": lambda fs: endlessly(lambda n: fs.copy("/tree/c", f"/small/c{n}")),
    "copy-small": lambda fs: endlessly(lambda n: fs.copy("/tree/a", f"/small/s{n}")),
    "copy_tree": lambda fs: endlessly(lambda n: fs.copy_tree("/tree", f"/small/t{n}")),
    "create": lambda fs: endlessly(lambda n: fs.open(f"/small/e{n}", "xb").close()),
    "create-long-names": lambda fs: endlessly(lambda n: fs.open(f"/small/{'n' * 200}{n}", "xb").close()),
    "mkdir": lambda fs: endlessly(lambda n: fs.mkdir(f"/small/m{n}/a/b/c")),
    "many-handles": open_many,
    "many-views": view_many,
    "write-into-viewed": write_into_viewed,
    "create-a-second-store": lambda fs: MemoryFileSystem.create("second", QUOTA),
    "create-a-private-store": lambda fs: MemoryFileSystem(QUOTA),
}


def every_operation(backend: str) -> None:
    fs = a_store(backend)
    for name, operation in GROWING.items():
        fs.write_bytes("/spare", data(10 * KIB, 9))
        before = sorted(os.listdir("/dev/shm"))
        with full_shm():
            use_up(fs)
            try:
                fails(operation, fs)
            except BaseException as error:
                raise AssertionError(f"{name} with /dev/shm full") from error
            expect_intact(fs)
            if name != "write-into-viewed":
                assert fs.read_bytes("/spare") == data(10 * KIB, 9), name
            grown = {entry for entry in os.listdir("/dev/shm") if "dmemfs" in entry} - set(before)
            assert all(".a" in entry or ".p" in entry for entry in grown), (name, grown)
        # What needs no memory works, and gives some back.
        fs.rename("/small", "/old")
        fs.mkdir("/small")
        fs.rmtree("/old")
        for path in "/all", "/new", "/spare":
            with contextlib.suppress(FileNotFoundError):
                fs.remove(path)
        fs.trim()
        expect_intact(fs)
        assert fs.stats()["used_bytes"] == sum(charge(len(content)) for content in FILES.values()), name
    fs.close()
    MemoryFileSystem.destroy("small")
    assert os.listdir("/dev/shm") == []


def charge(size: int) -> int:
    unit = 256 if size < PAGE else PAGE
    return -(-size // unit) * unit + 128 if size else 0


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("size_mib", [1, 4, 8])
def test_every_operation_ends_in_a_clean_error(size_mib: int, backend: str) -> None:
    """MFSNoSpaceError wherever memory is needed; what was there is intact; freed memory is used again."""
    in_small_shm(size_mib, every_operation, backend)


def what_needs_no_memory() -> None:
    fs = a_store()
    fs.write_bytes("/spare", data(10 * KIB, 9))
    with full_shm():
        use_up(fs)
        assert fs.listdir("/tree") and list(fs.walk("/")) and fs.glob("**/*")
        fs.rename("/spare", "/renamed")
        fs.replace("/renamed", "/tree/a")
        fs.write_bytes("/tree/a", FILES["/tree/a"])  # less than it had
        write(fs, "/d", "r+b", FILES["/d"])
        truncate(fs, "/all", 100)
        fs.remove("/all")
        fs.write_bytes("/spare", data(10 * KIB, 9))
        fs.rmtree("/small")
        fs.trim()
        expect_intact(fs)


def test_what_needs_no_memory_works_when_it_is_full() -> None:
    """Reading, renaming, replacing, shrinking and removing, and then writing into what was freed."""
    in_small_shm(4, what_needs_no_memory)


# ---- views


def views_of_pieces() -> None:
    fs = a_store()
    in_pieces(fs, "/pieces")
    content = fs.read_bytes("/pieces")
    fs.view("/d").release()  # pin records have their memory
    with full_shm():
        use_up(fs)
        fails(fs.view, "/pieces", error=MFSViewError)
        assert fs.read_bytes("/pieces") == content
        expect_intact(fs)
    with fs.view("/pieces") as view:
        assert view == content
    expect_intact(fs)


def test_view_of_a_file_in_pieces() -> None:
    """There is no run for it: MFSViewError; with memory it is moved into one."""
    in_small_shm(4, views_of_pieces)


# ---- others come and die while it is full


def attaching() -> None:
    fs = a_store()
    attach_once()
    with full_shm():
        use_up(fs)
        attach_once()  # in the slot that the first one left
        with Helpers(2, wait_for_orders) as helpers:
            answers = [helpers.receive(i) for i in range(2)]
            assert sorted(answers) == ["attached", "no space"], answers
        expect_intact(fs)
    attach_once()
    expect_intact(fs)


def attach_once() -> None:
    with Helpers(1, wait_for_orders) as helpers:
        assert helpers.receive(0) == "attached"
        helpers.order(0)
        assert helpers.status(0) == 0


def test_attaching_when_it_is_full() -> None:
    """A slot that was used is used again; a fresh one needs memory, and its absence is a clean error."""
    in_small_shm(4, attaching)


class Helpers:
    """Forked processes, each with a pipe in each direction; killed and reaped at the end."""

    def __init__(self, count: int, function: Callable[..., None], *args: Any) -> None:
        self.pids: list[int] = []
        self.pipes: list[tuple[int, int]] = []
        for number in range(count):
            (orders, to_child), (from_child, answers) = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    function(number, orders, answers, *args)
                finally:
                    os._exit(1)
            os.close(orders)
            os.close(answers)
            self.pids.append(pid)
            self.pipes.append((to_child, from_child))

    def __enter__(self) -> Self:
        return self

    def receive(self, number: int) -> str:
        return os.read(self.pipes[number][1], 4096).decode()

    def order(self, number: int, text: str = ".") -> None:
        os.write(self.pipes[number][0], text.encode())

    def status(self, number: int) -> int:
        """Wait for its end."""
        pid, self.pids[number] = self.pids[number], 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def __exit__(self, *_: object) -> None:
        for number, pid in enumerate(self.pids):
            if pid:
                os.kill(pid, signal.SIGKILL)
                self.status(number)
        for pipes in self.pipes:
            for fd in pipes:
                os.close(fd)


def wait_for_orders(_number: int, orders: int, answers: int) -> None:
    try:
        fs = MemoryFileSystem.attach("small")
    except MFSNoSpaceError:
        os.write(answers, b"no space")
    else:
        os.write(answers, b"attached")
        os.read(orders, 1)
        fs.close()
        os._exit(0)
    os.read(orders, 1)


def die_when_told(number: int, orders: int, answers: int) -> None:
    """Attach, wait, and die in the middle of a transaction; the first ones while holding a file."""
    fs = MemoryFileSystem.attach("small")
    held = fs.open("/d", "r+b") if number == 0 else fs.open("/tree/a", "rb")
    os.write(answers, b"attached")
    os.read(orders, 1)
    left = 6 + 3 * number

    def store_word(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    instrument(fs._store, lambda words: WordBuffer(words, store_word))
    fs.rename("/tree/c", "/tree/renamed")
    os.write(answers, repr(held).encode())


def deaths(backend: str, greedy: bool) -> None:
    fs = a_store(backend)
    count = 10
    with Helpers(count, die_when_told) as helpers:
        for number in range(count):
            assert helpers.receive(number) == "attached"
        with full_shm():
            use_up(fs)
            for number in range(count):
                helpers.order(number)
                assert helpers.status(number) == -signal.SIGKILL
                if greedy:
                    fill_shm()
                try:
                    with fs.open("/d", "r+b", lock_timeout=10):  # the dead one's lock, and the mutexes that it was in
                        pass
                    expect_alive(fs)
                except MFSNoSpaceError:
                    # Those who are attached and do nothing keep each revoked semaphore, so that the spares come to an end.
                    assert backend == "generation" and fs._store.w[RECOVERIES] >= SPARES
                    break
            else:
                fs.trim()
                expect_intact(fs)
        expect_alive(fs)
    fs.trim()
    expect_intact(fs)


def expect_alive(fs: MemoryFileSystem) -> None:
    if fs.exists("/tree/renamed"):
        fs.rename("/tree/renamed", "/tree/c")
    assert fs.read_bytes("/tree/c") == FILES["/tree/c"]
    fs.rename("/tree/sub/b", "/tree/sub/b2")
    fs.rename("/tree/sub/b2", "/tree/sub/b")


@pytest.mark.parametrize("greedy", [False, True], ids=["full", "and-others-take-each-page"])
@pytest.mark.parametrize("backend", BOTH)
def test_deaths_while_it_is_full(backend: str, greedy: bool) -> None:
    """Holders of locks and mutexes die again and again: recovery needs no memory, or uses the semaphores it has in hand.

    When there are none left it is refused, and goes on as soon as there is a page; nothing is lost.
    """
    in_small_shm(4, deaths, backend, greedy)


# ---- somebody else fills and frees it in the middle of everything


def in_the_middle(seconds: float, seed: int) -> tuple[int, int]:
    fs = a_store()
    done = refused = 0
    stop = threading.Event()

    def others() -> None:
        rng = random.Random(seed)
        while not stop.wait(rng.random() * 0.003):
            (fill_shm if rng.random() < 0.6 else free_shm)()

    filling = threading.Thread(target=others)
    filling.start()
    try:
        rng, end = random.Random(seed), time.monotonic() + seconds
        while time.monotonic() < end:
            size = rng.choice((200, 5000, 100 * KIB, 700 * KIB))
            path = f"/small/{rng.randrange(8)}"
            try:
                content = data(size, done)
                write(fs, path, "wb", content)
                assert fs.read_bytes(path) == content
                fs.write_bytes(path, content)
                fs.copy(path, "/copied")
                fs.copy_tree("/small", "/copies")
                with fs.view(path) as view:
                    assert view == content
                done += 1
            except (MFSNoSpaceError, MFSViewError):
                refused += 1
            finally:
                for remove, what in (fs.remove, "/copied"), (fs.rmtree, "/copies"):
                    with contextlib.suppress(FileNotFoundError):
                        remove(what)
                if rng.random() < 0.2:
                    fs.trim()
            assert fs.check() == []
    finally:
        stop.set()
        filling.join(DEADLINE_S)
        free_shm()
    expect_intact(fs)
    return done, refused


@pytest.mark.parametrize("size_mib", [4, 8])
def test_others_fill_it_in_the_middle(size_mib: int) -> None:
    """Each operation happens, or is refused."""
    done, refused = in_small_shm(size_mib, in_the_middle, 1.5, 1)
    assert done and refused


# ---- somebody else fills it at a moment of our choice


class Moment:
    """Counts the points of an operation (stores to shared memory, calls that others notice); at one of them it is full."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.passed: list[str] = []
        self.chosen = -1

    def point(self, what: str) -> None:
        if len(self.passed) == self.chosen:
            self.chosen = -1
            fill_shm()
        self.passed.append(what)

    def during(self, operation: Callable[[MemoryFileSystem], Any], fs: MemoryFileSystem, chosen: int = -1) -> list[str]:
        """Run the operation, full from the chosen point on; the points it had. MFSNoSpaceError, MFSViewError."""
        self.passed, self.chosen = [], chosen
        words = self.store.w
        instrument(self.store, lambda words: WordBuffer(words, self.point))
        try:
            with watched(self.store, self.point):
                operation(fs)
        finally:
            self.chosen = -1
            instrument(self.store, lambda _: words)
        return self.passed


def view_pieces(fs: MemoryFileSystem) -> None:
    with fs.view("/pieces") as view:
        assert len(view) == 160 * KIB
    fs.stats()


def second_store(fs: MemoryFileSystem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # that it is larger than /dev/shm
        with contextlib.closing(MemoryFileSystem.create("second", QUOTA)):
            pass


FILLED: dict[str, Callable[[MemoryFileSystem], Any]] = {
    name: GROWING[name] for name in ("write", "append", "truncate-longer", "preallocate", "write_bytes", "write_bytes-over")
} | {
    "copy": lambda fs: fs.copy("/tree/c", "/new"),
    "copy_tree": lambda fs: fs.copy_tree("/tree", "/tree2"),
    "mkdir": lambda fs: fs.mkdir("/small/a/b/c"),
    "view": view_pieces,
    "create-a-second-store": second_store,
}


def filled_within(backend: str, points: int, seed: int) -> tuple[int, int]:
    fs = a_store(backend)
    done = refused = 0
    moment, rng = Moment(fs._store), random.Random(seed)
    for name, operation in FILLED.items():
        prepare(fs)
        passed = moment.during(operation, fs)
        some = {*rng.sample(range(len(passed)), min(points, len(passed)))}
        if "posix_fallocate" in passed:
            some.add(passed.index("posix_fallocate"))
        for chosen in sorted(some):
            prepare(fs)
            try:
                moment.during(operation, fs, chosen)
                done += 1
            except (MFSNoSpaceError, MFSViewError):
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{name}, full before point {chosen} of {len(passed)}") from error
            expect_intact(fs)
            free_shm()
            prepare(fs)
            operation(fs)
            expect_intact(fs)
    prepare(fs)
    fs.close()
    MemoryFileSystem.destroy("small")
    assert os.listdir("/dev/shm") == []
    return done, refused


def prepare(fs: MemoryFileSystem) -> None:
    """The same for each try: a file to be changed, one in pieces, and all memory that is not needed given back."""
    for path in "/new", "/spare", "/pieces", "/behind":
        with contextlib.suppress(FileNotFoundError):
            fs.remove(path)
    for path in "/tree2", "/small":
        with contextlib.suppress(FileNotFoundError):
            fs.rmtree(path)
    with contextlib.suppress(FileNotFoundError):
        MemoryFileSystem.destroy("second")
    fs.mkdir("/small")
    fs.write_bytes("/spare", data(10 * KIB, 9))
    in_pieces(fs, "/pieces")
    fs.trim()


@pytest.mark.parametrize("points", [4, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("size_mib", [4, 8])
def test_others_fill_it_within_an_operation(
    size_mib: int, backend: str, points: int, record_property: Callable[[str, object], None]
) -> None:
    """Before its first memory, and at seeded points of each operation: it happens, or is refused and changes nothing."""
    done, refused = in_small_shm(size_mib, filled_within, backend, points, SEED)
    assert done
    assert refused
    record_property(FAULTS, done + refused)


# ---- the spare semaphores, and the end


def spares_run_out() -> None:
    fs = a_store()
    store = fs._store
    fs.mkdir("/lost")
    store.mutexes[0]._semaphore.acquire(0)  # the token is lost, as by a death
    for spare in range(SPARES):
        unlink_semaphore(names.spare(store.uuid, spare))
    with full_shm():
        before = store.words[:SLOTS_AT].tolist()
        for _ in range(3):
            with pytest.raises(MFSNoSpaceError, match="semaphore"):
                fs.rename("/lost", "/found")
        assert store.words[:SLOTS_AT].tolist() == before
        assert fs.read_bytes("/d") == FILES["/d"]  # what takes another mutex, or none, goes on
        write(fs, "/d", "r+b", FILES["/d"])
    fs.rename("/lost", "/found")
    assert store.w[RECOVERIES] == 1
    assert len([entry for entry in os.listdir("/dev/shm") if "spare" in entry]) == SPARES
    expect_intact(fs)


def test_when_the_spare_semaphores_run_out() -> None:
    """A recovery without one is refused before it has changed a word, and done as soon as there is a page."""
    in_small_shm(4, spares_run_out)


def endings(backend: str) -> None:
    fs, other = a_store(backend), MemoryFileSystem(QUOTA)
    other.write_bytes("/f", data(10 * KIB, 9))
    view = fs.view("/d")
    with full_shm():
        use_up(fs)
        fs.close()
        other.close()
        assert view == FILES["/d"]
        with contextlib.closing(MemoryFileSystem.attach("small")) as again:
            expect_intact(again)
        MemoryFileSystem.destroy("small")
        assert os.listdir("/dev/shm") == ["filler"]
        assert view == FILES["/d"]
        del view


@pytest.mark.parametrize("backend", BOTH)
def test_closing_and_destroying_when_it_is_full(backend: str) -> None:
    """To go needs no memory: named or private, with views that live on."""
    in_small_shm(4, endings, backend)
