"""Processes that come into being, change and go in every way the system knows.

Forks from inside whatever another thread is doing, daemonisers that close every descriptor, programs that are started or
become another, pid namespaces, pids that are used again, stores that are made and destroyed under those who use them. The
living are never taken for dead, nor the dead for alive; what the dead held is given back, and nobody's descriptors, files
or stores come to harm.

Every process here is a real one, and really killed. Nothing is ordered by time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import (
    MFSAbandonedFileError,
    MFSForkedError,
    MFSLockTimeoutError,
    MFSStoreGoneError,
    MFSTooManyParticipantsError,
    MFSUnfinishedStoreError,
)
from dmemfs_shm.store import attachment, names
from dmemfs_shm.store.attachment import Parameters
from dmemfs_shm.store.inspection import inspect
from dmemfs_shm.store.layout import BACKENDS

from ..conftest import MIB, Stores, entries_of, mark_of
from ..figures import KILL_POINTS
from ..lockstore import BOTH, clear_away, fresh_name, inside
from ..processes import DEADLINE_S, METHODS, Child, Link, Task, child, until
from .harness import Fault, kill_everywhere

pytestmark = pytest.mark.crash

SOON_S = 0.1  # of lock timeouts that must not be kept waiting for
backends = pytest.mark.parametrize("backend", BOTH)


@pytest.fixture(params=BOTH)
def fs(request: pytest.FixtureRequest, stores: Stores) -> MemoryFileSystem:
    """A named store with either backend."""
    return stores.create(backend=request.param)


def can_be_locked(fs: MemoryFileSystem, path: str) -> bool:
    """Whether the file can be had for writing; waits for the dead to be found, not for the living."""
    fs.open(path, "r+b", lock_timeout=DEADLINE_S, allow_abandoned=True).close()
    return True


def is_held(fs: MemoryFileSystem, path: str) -> bool:
    """Whether somebody living has the file, so that a writer is refused."""
    try:
        fs.open(path, "r+b", lock_timeout=SOON_S, allow_abandoned=True).close()
    except MFSLockTimeoutError:
        return True
    return False


def living(fs: MemoryFileSystem) -> set[int]:
    return {who.pid for who in fs.participants() if who.alive}


class Pipe:
    """On which processes wait that outlive their parent, until the test closes it."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()

    def close(self) -> None:
        for fd in (self.reads, self.writes):
            if fd >= 0:
                os.close(fd)
        self.reads = self.writes = -1

    def wait(self) -> None:
        """In a child; so that an end can come, it must not have the other side itself."""
        os.read(self.reads, 1)


@contextlib.contextmanager
def told_in_the_end() -> Iterator[Pipe]:
    """A pipe that is closed when the block ends, whatever happens in it."""
    pipe = Pipe()
    try:
        yield pipe
    finally:
        pipe.close()


# ---- forks from inside what another thread is doing

Hold = Callable[[MemoryFileSystem, Callable[[], None]], None]


def in_a_section(fs: MemoryFileSystem, wait: Callable[[], None]) -> None:
    inside(fs._attached(), 0, wait)


def in_recovery(fs: MemoryFileSystem, wait: Callable[[], None]) -> None:
    fs._attached().recovery._alone(lambda: bool(wait()), None)


def in_a_lock_wait(fs: MemoryFileSystem, wait: Callable[[], None]) -> None:
    store = fs._attached()
    store.relieve_locks = wait  # type: ignore[method-assign]  # what it does with each slice of a wait
    fs.open("/held", "r+b", lock_timeout=DEADLINE_S).close()


def in_a_write(fs: MemoryFileSystem, wait: Callable[[], None]) -> None:
    with fs.open("/mine", "wb") as handle:
        handle.write(b"half")
        kept.append(handle)
        wait()


kept: list[Any] = []  # of a child, what its own child inherits
WHERE: dict[str, Hold] = {"section": in_a_section, "R": in_recovery, "wait": in_a_lock_wait, "write": in_a_write}


def fork_beside(link: Link, fs: MemoryFileSystem, where: str, pipe: Pipe) -> None:
    """A thread is inside; fork a child that uses the store at once; then go on, or be killed."""
    os.close(pipe.writes)
    there, go_on = threading.Event(), threading.Event()
    fs.listdir("/")

    def wait() -> None:
        there.set()
        assert go_on.wait(DEADLINE_S)

    task = Task(WHERE[where], fs, wait)
    assert there.wait(DEADLINE_S)
    said, unsaid = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(unsaid)
        use_at_once(link, fs, pipe, said)
    link.send(("forked", pid))
    os.close(unsaid)  # from here on the child may speak, or when we are dead
    link.recv()
    go_on.set()
    task.result()
    fs.write_bytes("/parent", b"goes on")
    link.send(("parent", fs.check()))
    link.recv()


def use_at_once(link: Link, fs: MemoryFileSystem, pipe: Pipe, said: int) -> None:
    """In the forked child: use the store, which means joining it, and what is inherited."""
    try:
        fs.write_bytes("/child", b"wrote")
        for handle in kept:
            with pytest.raises(MFSForkedError):
                handle.write(b"x")
            handle.close()
        with fs.open("/childs", "wb") as mine:
            mine.write(b"x")
            os.read(said, 1)
            link.send(("child", [os.getpid() in living(fs), fs.check()]))
            pipe.wait()
    except BaseException:  # noqa: BLE001  (the test is told)
        link.send(("child", traceback.format_exc()))
    os._exit(0)


@pytest.mark.parametrize("end", ["both live", "parent is killed", "child is killed"])
@pytest.mark.parametrize("where", WHERE)
def test_fork_beside_a_thread_at_work(fs: MemoryFileSystem, where: str, end: str) -> None:
    """The child has a slot of its own and finds a sound store; who is killed loses his locks, and the other goes on."""
    if where == "R" and fs.info()["backend"] == "ofd":
        pytest.skip("with this backend there is no R")
    fs.write_bytes("/held", b"x")
    held = fs.open("/held", "r+b")
    with told_in_the_end() as pipe, child("fork", fork_beside, fs, where, pipe) as parent:
        what, forked = parent.receive()
        assert what == "forked"
        if end == "parent is killed":
            os.kill(parent.pid, signal.SIGKILL)
        else:
            parent.send("go on")
        if where == "wait":
            held.close()
        said = dict(parent.receive() for _ in range(1 if end == "parent is killed" else 2))
        assert said.pop("child") == [True, []]
        assert said == ({} if end == "parent is killed" else {"parent": []})
        assert is_held(fs, "/childs")
        if end == "child is killed":
            os.kill(forked, signal.SIGKILL)
            assert can_be_locked(fs, "/childs")
        held.close()
        if where == "write" and end == "parent is killed":
            with pytest.raises(MFSAbandonedFileError):
                fs.open("/mine", lock_timeout=DEADLINE_S)
        for path in fs.glob("/*"):
            assert path == "/childs" or can_be_locked(fs, path)
        assert fs.check() == []
        pipe.close()  # the parent's end is not seen before that of its child


# ---- daemonisers


def descriptors_of_our_own() -> list[Any]:
    """Files that take the lowest numbers that are free, as a daemon's own would."""
    return [tempfile.TemporaryFile() for _ in range(60)]


def harm(files: list[Any]) -> list[str]:
    """What was done to files that are nobody's business."""
    found = []
    for file in files:
        try:
            size = os.fstat(file.fileno()).st_size
        except OSError:
            found.append(f"descriptor {file.fileno()} was closed")
        else:
            found += [f"descriptor {file.fileno()} has {size} bytes"] * bool(size)
    return found


def close_all_but(link: Link) -> Link:
    """Close every descriptor, but one to the test, which moves to the lowest number."""
    kept.append(link)  # or it would close its own number at its end
    moved = Link(Connection(os.dup2(link._connection.fileno(), 3)))
    os.closerange(4, 65536)
    return moved


def daemonise(link: Link) -> Link:
    """What a daemon does to itself; the first parent, which the test knows, ends."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    return close_all_but(link)


def reporting(function: Callable[..., Any]) -> Callable[..., None]:
    """The child's function, which tells errors over whatever link it has at last, and ends without tidying up."""

    @functools.wraps(function)
    def run(link: Link, *args: Any) -> None:
        links = [link]
        try:
            function(links, *args)
        except BaseException:  # noqa: BLE001  (the test is told)
            links[-1].send(traceback.format_exc())
        os._exit(0)

    return run


def fill(fs: MemoryFileSystem, folder: str) -> None:
    """Make the index and an arena grow."""
    fs.mkdir(folder)
    for number in range(600):
        fs.write_bytes(f"{folder}/{number}", b"x")
    fs.write_bytes(f"{folder}/large", bytes(MIB))


@reporting
def be_a_daemon(links: list[Link], fs: MemoryFileSystem) -> None:
    """Daemonise with an inherited store, which is used only then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        links.append(daemonise(links[-1]))
        files = descriptors_of_our_own()
        links[-1].send(gc.collect() > 0)
        links[-1].recv()
        fill(fs, "/daemon")
        gc.collect()
        with fs.open("/daemons", "wb") as handle:
            handle.write(b"x")
            links[-1].send([harm(files), fs.check()])
            links[-1].recv()
        fs.close()
        gc.collect()
        links[-1].send(harm(files))


@pytest.mark.parametrize("private", [False, True], ids=["named", "private"])
def test_a_daemon_uses_an_inherited_store(stores: Stores, private: bool) -> None:
    """The store outlives the daemon's parent, also a private one; the daemon's own descriptors are left alone."""
    fs = stores.private() if private else stores.create()
    fs.write_bytes("/f", b"x")
    mark = mark_of(fs)
    gc.collect()  # makes the store's objects old: the daemon does not collect them by the way, before it closes descriptors
    with child("fork", be_a_daemon, fs) as daemon:
        daemon.receive()
        if private:
            fs.close()  # now only the daemon has it, though it has not used it yet
        daemon.send("go on")
        assert daemon.receive() == [[], []]
        if not private:
            assert is_held(fs, "/daemons")
        daemon.send("leave")
        assert daemon.receive() == []
        until(lambda: private == (entries_of(mark) == []), "a private store goes with its last user")


@reporting
def lose_descriptors(links: list[Link], fs: MemoryFileSystem) -> None:
    """Close all descriptors with a file open for writing, and go on."""
    fill(fs, "/before")
    handle = fs.open("/daemons", "wb")
    handle.write(b"one ")
    links.append(close_all_but(links[-1]))
    files = descriptors_of_our_own()
    links[-1].send("lost")
    links[-1].recv()
    handle.write(b"two " + bytes(MIB))
    fill(fs, "/after")
    fs._attached().reap_dead(10.0)
    store = fs._attached()
    assert store.recovery.recover(3, None)
    handle.close()
    links[-1].send([harm(files), fs.check()])
    links[-1].recv()
    fs.close()
    gc.collect()
    links[-1].send(harm(files))
    links[-1].recv()


def test_a_participant_loses_its_descriptors(stores: Stores) -> None:
    """Whoever closes all descriptors under a store goes on as if he had not: nobody takes him for dead, his locks stand,
    the store grows, and no file gets hurt that has our numbers now."""
    fs = stores.create()
    with child("fork", lose_descriptors, fs) as daemon:
        assert daemon.receive() == "lost"
        assert fs._attached().reap_dead(10.0) == 0 and daemon.pid in living(fs)
        assert is_held(fs, "/daemons")
        daemon.send("go on")
        assert daemon.receive() == [[], []]
        assert not is_held(fs, "/daemons") and fs.stat("/daemons")["size"] == 8 + MIB
        daemon.send("leave")
        assert daemon.receive() == []
        assert daemon.pid not in {who.pid for who in fs.participants()}


@reporting
def lose_descriptors_with_ofd(links: list[Link], fs: MemoryFileSystem) -> None:
    handle = fs.open("/daemons", "wb")
    handle.write(b"one ")
    links.append(close_all_but(links[-1]))
    files: list[Any] = []
    for _ in range(2):  # the numbers are free; then they are others'
        for call in (lambda: fs.mkdir("/never"), lambda: fs.open("/f"), lambda: fs._attached().reap_dead(10.0)):
            with pytest.raises(MFSStoreGoneError, match="descriptors were closed"):
                call()
        files = files or descriptors_of_our_own()
    links[-1].send("lost")
    links[-1].recv()
    with pytest.raises(MFSStoreGoneError, match="descriptors were closed"):
        handle.close()
    with contextlib.suppress(MFSStoreGoneError):
        fs.close()
    again = MemoryFileSystem.attach(fs.name)
    again.write_bytes("/after", b"x")
    links[-1].send([harm(files), again.check()])
    links[-1].recv()


def test_a_participant_loses_its_descriptors_with_ofd(stores: Stores) -> None:
    """There the mutexes hang on the descriptor: he is told to attach again, before he does anything. Until then his locks
    stand; then they are given back."""
    fs = stores.create(backend="ofd")
    fs.write_bytes("/f", b"x")
    with child("fork", lose_descriptors_with_ofd, fs) as daemon:
        assert daemon.receive() == "lost"
        assert fs._attached().reap_dead(10.0) == 0
        assert is_held(fs, "/daemons")
        daemon.send("go on")
        assert daemon.receive() == [[], []]
        assert can_be_locked(fs, "/daemons") and fs.exists("/after") and not fs.exists("/never")
        daemon.send("leave")
        daemon.join()


# ---- programs that are started, and processes that become another program

WAITS = "import os; os.read({}, 1)"


def start_and_stay(link: Link, fs: MemoryFileSystem, way: str, pipe: Pipe) -> None:
    """Hold a file and start something that outlives us."""
    handle = fs.open("/mine", "wb")
    handle.write(b"half")
    os.set_inheritable(pipe.reads, True)
    os.close(pipe.writes)
    arguments = [sys.executable, "-S", "-c", WAITS.format(pipe.reads)]
    if way == "posix_spawn":
        pid = os.posix_spawn(sys.executable, arguments, os.environ)
    elif way == "fork in C":
        pid = ctypes.CDLL(None).fork()
        if pid == 0:
            pipe.wait()
            os._exit(0)
    else:
        mine = (pipe.reads, fs._attached().locks.fd) if way == "pass_fds" else ()
        started = subprocess.Popen(arguments, close_fds=way == "pass_fds", pass_fds=mine)
        kept.append(started)
        pid = started.pid
    link.send(pid)
    link.recv()


@pytest.mark.parametrize("way", ["posix_spawn", "close_fds=False", "pass_fds", "fork in C"])
def test_what_was_started_does_not_keep_the_dead_alive(fs: MemoryFileSystem, way: str) -> None:
    """The starter is killed while the started lives on, even with our lock descriptor: he is dead, his locks are free."""
    with told_in_the_end() as pipe, child("fork", start_and_stay, fs, way, pipe) as starter:
        started = starter.receive()
        assert is_held(fs, "/mine")
        os.kill(starter.pid, signal.SIGKILL)
        assert can_be_locked(fs, "/mine")
        os.kill(started, 0)
        assert starter.pid not in living(fs)


@reporting
def become_another(links: list[Link], fs: MemoryFileSystem) -> None:
    handle = fs.open("/mine", "wb")
    handle.write(b"half")
    links[-1].send("holds")
    links[-1].recv()
    connection = links[-1]._connection.fileno()
    os.set_inheritable(connection, True)
    code = f"from tests.crash.test_processes import anew; anew({connection}, {fs.name!r})"
    os.execv(sys.executable, [sys.executable, "-c", code])


def anew(connection: int, name: str) -> None:
    """In the new program of an old process."""
    link = Link(Connection(connection))
    try:
        fs = MemoryFileSystem.attach(name)
        fs.open("/mine", "r+b", lock_timeout=DEADLINE_S, allow_abandoned=True).close()
        link.send([os.getpid() in living(fs), fs.check()])
        link.recv()
    except BaseException:  # noqa: BLE001  (the test is told)
        link.send(traceback.format_exc())


def test_becoming_another_program(fs: MemoryFileSystem) -> None:
    """With exec a participant dies, though its process lives; the new program may join like any other."""
    with child("fork", become_another, fs) as process:
        assert process.receive() == "holds"
        assert is_held(fs, "/mine")
        process.send("exec")
        assert process.receive() == [True, []]
        assert [who.pid for who in fs.participants()].count(process.pid) == 1
        assert can_be_locked(fs, "/mine") and not fs.stat("/mine")["abandoned"]
        process.send("end")
        process.join()


def hold_a_file(link: Link, fs: MemoryFileSystem) -> None:
    with fs.open("/mine", "wb") as handle:
        handle.write(b"half")
        link.send("holds")
        link.recv()


@pytest.mark.parametrize("method", METHODS)
def test_children_of_each_kind_are_killed(fs: MemoryFileSystem, method: str) -> None:
    """Whatever a child was started by, its death gives back what it held."""
    with child(method, hold_a_file, fs) as holder:
        assert holder.receive() == "holds"
        assert is_held(fs, "/mine")
        holder.kill()
        assert can_be_locked(fs, "/mine") and fs.check() == []


# ---- pid namespaces


@contextlib.contextmanager
def in_namespace(function: Callable[..., Any], *args: Any, proc: bool = True) -> Iterator[Child]:
    """Run function(link, *args) as the first process of a pid namespace, with a /proc of its own or with ours."""
    command = ["unshare", "--pid", "--fork", "--kill-child", *["--mount-proc"] * proc]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare --pid is not permitted here: run as root, or with CAP_SYS_ADMIN")
    with child("fork", _run_in_namespace, command, function.__name__, args) as running:
        yield running


def _run_in_namespace(link: Link, command: list[str], function: str, args: tuple[Any, ...]) -> None:
    connection = link._connection.fileno()
    os.set_inheritable(connection, True)
    code = f"from tests.crash import test_processes as t; t.first_process({connection}, {function!r}, {args!r})"
    os.execvp(command[0], [*command, sys.executable, "-c", code])


def first_process(connection: int, function: str, args: tuple[Any, ...]) -> None:
    """The first process of a namespace."""
    link = Link(Connection(connection))
    try:
        globals()[function](link, *args)
    except BaseException:  # noqa: BLE001  (the test is told)
        link.send(traceback.format_exc())


def be_two(link: Link, name: str) -> None:
    """Two participants in a namespace look at each other, and at the one outside."""
    fs = MemoryFileSystem.attach(name)
    with child("fork", hold_a_file, fs) as other:
        assert other.receive() == "holds"
        slots = {who.slot: who.alive for who in fs.participants()}
        assert len(slots) == 3 and all(slots.values()), slots
        assert fs._attached().reap_dead(10.0) == 0
        assert is_held(fs, "/mine") and is_held(fs, "/outside")
        assert {who.alive for who in inspect(name).participants or ()} == {True}
        link.send(other.pid)
        link.recv()
        assert can_be_locked(fs, "/outside")
        link.send(sorted(who.alive for who in fs.participants()))
        link.recv()


@pytest.mark.parametrize("proc", [True, False], ids=["with its /proc", "with our /proc"])
def test_pid_namespaces(fs: MemoryFileSystem, proc: bool) -> None:
    """Who lives elsewhere is seen to live and to die, from inside and from outside; `inspect` says where he is."""

    def hold_outside(link: Link, fs: MemoryFileSystem) -> None:
        with fs.open("/outside", "wb"):
            fs_of_the_test.close()
            link.send("holds")
            link.recv()

    fs.write_bytes("/mine", b"x")
    fs_of_the_test = MemoryFileSystem.attach(fs.name)
    with child("fork", hold_outside, fs) as holder:
        assert holder.receive() == "holds"
        fs.close()
        with in_namespace(be_two, fs.name, proc=proc) as there:
            fs = fs_of_the_test
            fs.close()
            inner = there.receive()
            assert isinstance(inner, int), inner
            seen = {(who.pid, who.alive, who.stopped) for who in inspect(fs.name).participants or () if who.pid != holder.pid}
            assert seen == {(1, True, None), (inner, True, None)}
            holder.kill()
            there.send("the one outside is dead")
            assert there.receive() == [False, True, True]
            there.kill()
        again = MemoryFileSystem.attach(fs.name)
        assert can_be_locked(again, "/mine") and again.check() == []
        until(lambda: living(again) == {os.getpid()}, "the namespace is gone")
        again.close()


def be_succeeded(link: Link, name: str) -> None:
    """A participant is killed, and another process gets its pid."""
    fs = MemoryFileSystem.attach(name)
    with told_in_the_end() as pipe, child("fork", hold_a_file, fs) as victim:
        assert victim.receive() == "holds"
        wanted = victim.pid
        os.kill(wanted, signal.SIGKILL)
        victim.process.join(DEADLINE_S)
        for _ in range(100):
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(wanted - 1))
            pid = os.fork()
            if pid == 0:
                os.close(pipe.writes)
                pipe.wait()
                os._exit(0)
            if pid == wanted:
                break
        assert pid == wanted
        assert [who.alive for who in fs.participants() if who.pid == wanted] == [False]
        assert can_be_locked(fs, "/mine")
        link.send(fs.check())
        link.recv()


def test_a_pid_that_is_used_again(fs: MemoryFileSystem) -> None:
    """A dead participant is dead, though another process has its pid."""
    with in_namespace(be_succeeded, fs.name) as there:
        assert there.receive() == []
        there.kill()
        until(lambda: living(fs) == {os.getpid()}, "the namespace is gone")


# ---- many objects of one process, one store under two names


def test_threads_attach_and_close(fs: MemoryFileSystem) -> None:
    """However many objects of a process come and go at once, it is one participant, and the last close ends it."""
    barrier = threading.Barrier(8)

    def come_and_go(number: int) -> None:
        barrier.wait(DEADLINE_S)
        for _ in range(20):
            mine = MemoryFileSystem.attach(fs.name)
            mine.write_bytes(f"/{number}", b"x")
            mine.close()

    store = fs._attached()
    for task in [Task(come_and_go, number) for number in range(8)]:
        task.result()
    assert store.users == 1 and len(fs.participants()) == 1
    fs.close()
    assert store.is_left
    for task in [Task(come_and_go, number) for number in range(8)]:  # now each close may be the last
        task.result()
    again = MemoryFileSystem.attach(fs.name)
    assert len(again.participants()) == 1 and again.check() == [] and sorted(again.listdir("/")) == list("01234567")
    again.close()


def test_one_store_under_two_names(fs: MemoryFileSystem, stores: Stores) -> None:
    """A second link to the index leads to the same store: the process attaches it once, and it is destroyed once."""
    other = stores.name()
    os.link(f"/dev/shm{names.index_name(fs.name)}", f"/dev/shm{names.index_name(other)}")
    twin = MemoryFileSystem.attach(other)
    twin.write_bytes("/f", b"x")
    assert twin.uuid == fs.uuid and twin._attached() is fs._attached() and len(fs.participants()) == 1
    with child("fork", hold_by_name, other) as holder:
        assert holder.receive() == "holds"
        assert is_held(fs, "/mine") and len(fs.participants()) == 2
        holder.kill()
    assert can_be_locked(fs, "/mine") and fs.check() == []
    twin.close()
    MemoryFileSystem.destroy(fs.name)
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(other)
    MemoryFileSystem.destroy(other)


def hold_by_name(link: Link, name: str) -> None:
    hold_a_file(link, MemoryFileSystem.attach(name))


# ---- destroyed and made again under those who use it


def use_the_old(link: Link, fs: MemoryFileSystem) -> None:
    """Have everything open in a store that is destroyed and made again; act late, in every way."""
    reader, writer, dropped = fs.open("/f"), fs.open("/g", "wb"), fs.open("/h", "wb")
    writer.write(b"half")
    view = fs.view("/f")
    copy = bytes(view)
    waiter = Task(lambda: fs.open("/g", "rb", lock_timeout=DEADLINE_S))
    until(lambda: any(lock.state == "waiting" for lock in fs.locks()), "a thread waits")
    link.send("ready")
    link.recv()
    for call in (
        lambda: writer.write(b"more"),
        reader.read,
        lambda: fs.write_bytes("/late", b"x"),
        lambda: fs.remove("/f"),
        waiter.result,
        fs._attached,
        fs.trim,
    ):
        with pytest.raises(MFSStoreGoneError):
            call()
    assert bytes(view) == copy
    link.send("told")
    if link.recv() == "end":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del dropped
            writer.close()
            fs.close()
            del view, reader
            gc.collect()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["end", "die"])
def test_made_again_under_its_users(stores: Stores, end: str) -> None:
    """The old store's users are told; nothing they do late, orderly or not, touches the new one, nor the other way round."""
    name = stores.name()
    old = stores.create(name)
    for path in ("/f", "/g", "/h"):
        old.write_bytes(path, path.encode() * 100)
    view = old.view("/f")
    with child("fork", use_the_old, old) as user:
        assert user.receive() == "ready"
        MemoryFileSystem.destroy(name)
        new = stores.create(name)
        new.write_bytes("/f", b"new" * 1000)
        user.send("go on")
        assert user.receive() == "told"
        before = image(new)
        user.send(end)
        user.join()
        old.close()
        assert image(new) == before
        assert bytes(view) == b"/f" * 100
    assert new.check() == [] and new.listdir("/") == ["f"] and new.locks() == []
    assert entries_of(mark_of(old)) == []


def image(fs: MemoryFileSystem) -> list[bytes]:
    """The bytes of all segments of a store that have memory."""
    found = []
    for entry in sorted({names.index_name(fs.name).lstrip("/"), *entries_of(mark_of(fs))}):
        if not entry.startswith("sem."):
            with open(f"/dev/shm/{entry}", "rb") as segment:
                size = os.fstat(segment.fileno()).st_blocks * 512
                found.append(segment.read(min(size, 4 * MIB)))
    assert found
    return found


# ---- created by several, one of whom dies


class Race:
    """A store that a child creates; at the point of its death two more come, one to create and one to attach."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = fresh_name()
        self.uuid = uuid.uuid4()
        self.marks = [self.name, self.uuid.hex]
        self.racers = contextlib.ExitStack()
        self.others: list[Child] = []
        self.findings: list[str] = []

    def answer(self, request: str) -> None:
        getattr(self, request)()

    def race(self) -> None:
        self.others = [self.racers.enter_context(child("fork", racer, self.name, self.backend, n)) for n in range(2)]
        for other in self.others:
            assert other.receive() == "begins"

    def again(self, _number: int) -> None:
        if not self.others:
            self.race()  # nobody dies
        answers = [other.receive() for other in self.others]
        self.marks += [mark for mark, _ in answers]
        self.findings += [finding for _, found in answers for finding in found]
        if len({mark for mark, _ in answers}) != 1:
            self.findings.append(f"two stores: {answers}")
        for other in self.others:
            other.send("leave")
            other.join()
        attachment.destroy(self.name)


def racer(link: Link, name: str, backend: str, number: int) -> None:
    """Create the store, or attach it as soon as it stands."""
    link.send("begins")
    fs = None
    while fs is None:
        try:
            fs = MemoryFileSystem.attach(name) if number else MemoryFileSystem.create(name, MIB, backend=backend)
        except FileExistsError:
            number = 1
        except (MFSUnfinishedStoreError, FileNotFoundError):
            continue
    fs.write_bytes(f"/{number}-{os.getpid()}", b"x")
    link.send((mark_of(fs), fs.check()))
    link.recv()
    fs.close()


@contextlib.contextmanager
def racing(backend: str) -> Iterator[Race]:
    case = Race(backend)
    try:
        with case.racers:
            yield case
    finally:
        clear_away(*case.marks)


@backends
@pytest.mark.parametrize("every", [pytest.param(30, id="a-part"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_a_creator_dies_while_others_come(backend: str, every: int, record_property: Callable[[str, object], None]) -> None:
    """One more creates it and one attaches while the first is killed at any point: both have the same sound store."""

    def operation(case: Race, fault: Fault) -> None:
        before, uuid.uuid4 = uuid.uuid4, lambda: case.uuid
        point = fault.point

        def racers_first(what: str) -> None:
            if fault.armed and len(fault.trace) == fault.fatal:
                fault.ask("race")
            point(what)

        fault.point = racers_first  # type: ignore[method-assign]
        fault.arm(None)
        attachment.create(case.name, Parameters(MIB, backend=BACKENDS[backend], options={"default_storage": "auto"}))
        uuid.uuid4 = before

    def verify(case: Race) -> list[str]:
        return case.findings + entries_of(*case.marks)

    record_property(KILL_POINTS, kill_everywhere(lambda: racing(backend), operation, verify, every=every, company=False))


# ---- all slots taken


def stay_attached(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    link.send(next(who.slot for who in fs.participants() if who.pid == os.getpid()))
    link.recv()


@pytest.mark.parametrize("backend", ["generation", pytest.param("ofd", marks=pytest.mark.slow)])
def test_sixty_four_participants(stores: Stores, backend: str) -> None:
    """One more is told so; with a death there is room again, in the dead one's slot."""
    fs = stores.create(max_participants=64, backend=backend)
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(child("fork", stay_attached, fs.name)) for _ in range(63)]
        slots = {other.receive(): other for other in others}
        assert sorted(slots) == list(range(1, 64))
        for slot in (1, 30, 63):
            with child("fork", refused, fs.name) as one_more:
                assert "64" in one_more.receive()
            slots[slot].kill()
            others.append(stack.enter_context(child("fork", stay_attached, fs.name)))
            assert others[-1].receive() == slot
        assert len(living(fs)) == 64
        for other in others:
            if other.process.is_alive():
                os.kill(other.pid, signal.SIGKILL)
        until(lambda: living(fs) == {os.getpid()}, "all others are dead")
    fs.write_bytes("/f", b"x")
    assert fs._attached().reap_dead(10.0) >= 60 and fs.check() == []


def refused(link: Link, name: str) -> str:
    with pytest.raises(MFSTooManyParticipantsError) as caught:
        MemoryFileSystem.attach(name)
    return str(caught.value)
