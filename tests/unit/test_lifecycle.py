"""Stores from creation to the end: names, attaching, pickling, forking, closing, destroying, dying."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import (
    MFSAbandonedFileError,
    MFSClosedError,
    MFSForkedError,
    MFSLockTimeoutError,
    MFSParameterError,
    MFSStoreGoneError,
    MFSUnfinishedStoreError,
)
from dmemfs_shm.store import arenas, attachment, names, section
from dmemfs_shm.store.layout import MAGIC, STATE_DESTROYED, STATE_INIT, W_MAGIC, W_STATE, journal_at
from dmemfs_shm.store.mutex import Mutex

from ..conftest import MIB, Stores, entries_of, mark_of
from ..processes import DEADLINE_S, METHODS, Link, Task, call_in_child, child, until


def close_quietly(fs: MemoryFileSystem) -> None:
    """Close with handles open, whose warning is another test's subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        fs.close()


# --- create, attach, destroy -----------------------------------------------------------------------------------------


def test_create_attach_destroy(stores: Stores, store_name: str) -> None:
    """A named store is shared by name, outlives its objects, and goes with destroy."""
    one = stores.create(store_name)
    one.write_bytes("/f", b"shared")
    two = stores.attach(store_name)
    assert two.read_bytes("/f") == b"shared"
    assert (one.name, one.uuid) == (two.name, two.uuid) == (store_name, one.uuid)
    two.write_bytes("/f", b"back")
    assert one.read_bytes("/f") == b"back"
    one.close()
    two.close()
    again = stores.attach(store_name)
    assert again.read_bytes("/f") == b"back"
    again.close()
    MemoryFileSystem.destroy(store_name)
    assert entries_of(store_name, mark_of(again)) == []
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(store_name)


def test_missing_store(store_name: str) -> None:
    """attach and destroy of nothing are FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(store_name)
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.destroy(store_name)


def test_create_twice(named: MemoryFileSystem, store_name: str) -> None:
    """A name taken is FileExistsError, and the store there is unharmed."""
    named.write_bytes("/f", b"x")
    with pytest.raises(FileExistsError):
        MemoryFileSystem.create(store_name, max_quota=16 * MIB)
    assert named.read_bytes("/f") == b"x"


def test_create_exist_ok(named: MemoryFileSystem, stores: Stores, store_name: str) -> None:
    """exist_ok attaches to a store of the same parameters, and creates where none is."""
    named.write_bytes("/f", b"x")
    again = stores.create(store_name, exist_ok=True)
    assert again.uuid == named.uuid
    assert again.read_bytes("/f") == b"x"
    fresh = stores.create(exist_ok=True)
    assert fresh.listdir("/") == []


@pytest.mark.parametrize(
    "options", [{"max_quota": 17 * MIB}, {"max_nodes": 1000}, {"max_participants": 17}, {"chunk_overhead_override": 7}]
)
def test_create_exist_ok_of_another_kind(named: MemoryFileSystem, store_name: str, options: dict[str, int]) -> None:
    """exist_ok with other store parameters is MFSParameterError."""
    parameters: dict[str, Any] = {"max_quota": 16 * MIB, **options}
    with pytest.raises(MFSParameterError):
        MemoryFileSystem.create(store_name, exist_ok=True, **parameters)


def test_exist_ok_ignores_parameters_of_the_object(named: MemoryFileSystem, stores: Stores, store_name: str) -> None:
    """default_lock_timeout belongs to the object: objects of one store may differ in it."""
    impatient = stores.create(store_name, exist_ok=True, default_lock_timeout=0.0)
    other = stores.attach(store_name, default_lock_timeout=0.0)
    with named.open("/f", "wb"):
        for fs in (impatient, other):
            with pytest.raises(BlockingIOError):
                fs.open("/f", "rb")


def test_name_can_be_used_again(stores: Stores, store_name: str) -> None:
    """After destroy the name makes a new, empty store with another uuid."""
    one = stores.create(store_name)
    one.write_bytes("/f", b"x")
    MemoryFileSystem.destroy(store_name)
    two = stores.create(store_name)
    assert two.uuid != one.uuid
    assert two.listdir("/") == []
    with pytest.raises(MFSStoreGoneError):
        one.listdir("/")


@pytest.mark.parametrize("tail", ["", "-", ".", "_", "a.b_c-d", "0"])
def test_good_names(stores: Stores, store_name: str, tail: str) -> None:
    """Lower-case letters, digits, dot, underscore and hyphen make a name."""
    stores.create(store_name + tail)
    MemoryFileSystem.destroy(store_name + tail)


def test_longest_name(stores: Stores, store_name: str) -> None:
    """63 characters are a name, 64 are not."""
    longest = store_name.ljust(63, "x")
    stores.create(longest)
    MemoryFileSystem.destroy(longest)
    with pytest.raises(ValueError):
        MemoryFileSystem.create(longest + "x", max_quota=MIB)


@pytest.mark.parametrize("name", ["", "A", "aB", "a b", "-a", ".a", "_a", "a/b", "/a", "../a", "é", "a\n", "a\0", "a" * 64])
def test_bad_names(name: str) -> None:
    """Anything else is ValueError, wherever a name is asked for, and makes nothing."""
    for call in (
        lambda: MemoryFileSystem.create(name, max_quota=MIB),
        lambda: MemoryFileSystem.attach(name),
        lambda: MemoryFileSystem.destroy(name),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("name", [None, 5, b"name"])
def test_names_of_other_types(name: Any) -> None:
    """A name is a str."""
    for call in (
        lambda: MemoryFileSystem.create(name, max_quota=MIB),
        lambda: MemoryFileSystem.attach(name),
        lambda: MemoryFileSystem.destroy(name),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()


def test_segments_are_private_to_the_user(named: MemoryFileSystem, store_name: str) -> None:
    """Everything of a store in /dev/shm is named dmemfs-, belongs to this user and has mode 0600."""
    entries = entries_of(store_name, mark_of(named))
    assert entries
    for entry in entries:
        status = os.stat(f"/dev/shm/{entry}")
        assert entry.startswith(("dmemfs-", "sem.dmemfs-"))
        assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o600)


def test_create_warns_of_a_promise_the_machine_cannot_keep(stores: Stores, store_name: str) -> None:
    """A named store with a quota beyond the machine's memory is a ResourceWarning; the constructor is silent."""
    with pytest.warns(ResourceWarning):
        stores.create(store_name, max_quota=1 << 44)
    stores.private(max_quota=1 << 44)


def test_create_that_fails_leaves_nothing(store_name: str) -> None:
    """Neither a warning that is an error nor a guard nor a bad argument leaves a store behind."""
    with pytest.raises(ResourceWarning):
        MemoryFileSystem.create(store_name, 1 << 44)
    with pytest.raises(MemoryError):
        MemoryFileSystem.create(store_name, 1 << 44, memory_guard="init", memory_guard_action="raise")
    with pytest.raises(TypeError):
        MemoryFileSystem.create(store_name, MIB, default_lock_timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        MemoryFileSystem.attach(store_name)


# --- the private store -----------------------------------------------------------------------------------------------


def test_constructor_takes_the_arguments_of_d_memfs(stores: Stores) -> None:
    """All nine arguments, by position and by name, and none at all."""
    stores.keep(MemoryFileSystem(MIB, 64, 1024, 100, "auto", 5.0, "none", "warn", 1.0))
    stores.keep(
        MemoryFileSystem(
            max_quota=MIB,
            chunk_overhead_override=None,
            promotion_hard_limit=None,
            max_nodes=None,
            default_storage="random_access",
            default_lock_timeout=None,
            memory_guard="none",
            memory_guard_action="warn",
            memory_guard_interval=1.0,
        )
    )
    default = stores.keep(MemoryFileSystem())
    assert default.stats()["quota_bytes"] == 256 * MIB


def test_private_stores_are_apart(stores: Stores) -> None:
    """Each constructor call makes a store of its own."""
    one, two = stores.private(), stores.private()
    one.write_bytes("/f", b"x")
    assert two.listdir("/") == []
    assert one.uuid != two.uuid


def test_private_store_vanishes_at_close(stores: Stores) -> None:
    """Nothing of it is in /dev/shm after close."""
    fs = stores.private()
    mark = mark_of(fs)
    fs.write_bytes("/f", bytes(5000))
    assert entries_of(mark) != []
    fs.close()
    assert entries_of(mark) == []


def test_private_store_vanishes_when_collected(stores: Stores) -> None:
    """Nothing of it is in /dev/shm after the object is collected."""
    fs = stores.watch(MemoryFileSystem(max_quota=MIB))
    mark = mark_of(fs)
    assert entries_of(mark) != []
    del fs
    gc.collect()
    assert entries_of(mark) == []


def _make_private_and_exit() -> str:
    fs = MemoryFileSystem(max_quota=MIB)
    fs.write_bytes("/f", b"x")
    globals()["_kept_until_exit"] = fs
    return mark_of(fs)


@pytest.mark.parametrize("method", METHODS)
def test_private_store_vanishes_at_exit(method: str) -> None:
    """A process that ends without closing leaves nothing in /dev/shm."""
    mark = call_in_child(method, _make_private_and_exit)
    assert entries_of(mark) == []


def _make_private_and_wait(link: Link) -> None:
    fs = MemoryFileSystem(max_quota=MIB)
    fs.write_bytes("/f", b"x")
    link.send(mark_of(fs))
    link.recv()


def test_private_store_of_the_killed_is_collected_by_the_next_create(stores: Stores) -> None:
    """After SIGKILL the next create of the same user takes away what was left."""
    with child("fork", _make_private_and_wait) as victim:
        mark = victim.receive()
        victim.kill()
    assert entries_of(mark) != []
    stores.create()
    assert entries_of(mark) == []


# --- close -----------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[MemoryFileSystem], object]] = {
    "open": lambda fs: fs.open("/f", "rb"),
    "mkdir": lambda fs: fs.mkdir("/new"),
    "rename": lambda fs: fs.rename("/f", "/new"),
    "move": lambda fs: fs.move("/f", "/new"),
    "replace": lambda fs: fs.replace("/f", "/new"),
    "remove": lambda fs: fs.remove("/f"),
    "rmtree": lambda fs: fs.rmtree("/d"),
    "copy": lambda fs: fs.copy("/f", "/new"),
    "copy_tree": lambda fs: fs.copy_tree("/d", "/new"),
    "listdir": lambda fs: fs.listdir("/"),
    "exists": lambda fs: fs.exists("/f"),
    "is_dir": lambda fs: fs.is_dir("/f"),
    "is_file": lambda fs: fs.is_file("/f"),
    "walk": lambda fs: list(fs.walk("/")),
    "glob": lambda fs: fs.glob("/*"),
    "stat": lambda fs: fs.stat("/f"),
    "stats": lambda fs: fs.stats(),
    "info": lambda fs: fs.info(),
    "get_size": lambda fs: fs.get_size("/f"),
    "read_bytes": lambda fs: fs.read_bytes("/f"),
    "write_bytes": lambda fs: fs.write_bytes("/f", b"y"),
    "view": lambda fs: fs.view("/f"),
    "locks": lambda fs: fs.locks(),
    "participants": lambda fs: fs.participants(),
    "check": lambda fs: fs.check(),
    "trim": lambda fs: fs.trim(),
}


@pytest.fixture
def filled(named: MemoryFileSystem) -> MemoryFileSystem:
    """A named store with a file and a directory."""
    named.write_bytes("/f", b"content")
    named.mkdir("/d")
    return named


@pytest.mark.parametrize("name", CALLS)
def test_after_close_every_call_raises(filled: MemoryFileSystem, name: str) -> None:
    """A closed object raises MFSClosedError, a ValueError, and changes nothing."""
    filled.close()
    with pytest.raises(MFSClosedError) as caught:
        CALLS[name](filled)
    assert isinstance(caught.value, ValueError)


def test_close_is_idempotent_and_of_one_object(filled: MemoryFileSystem, stores: Stores, store_name: str) -> None:
    """Closing again is nothing; other objects of the process go on."""
    other = stores.attach(store_name)
    with other.open("/f", "rb") as handle:
        filled.close()
        filled.close()
        assert handle.read() == b"content"
    assert other.read_bytes("/f") == b"content"


def test_close_closes_handles(filled: MemoryFileSystem, stores: Stores, store_name: str) -> None:
    """Open handles are closed with a ResourceWarning, their content stays, their locks are free."""
    other = stores.attach(store_name)
    reader, writer = filled.open("/f", "rb"), filled.open("/new", "wb")
    writer.write(b"kept")
    with pytest.warns(ResourceWarning):
        filled.close()
    assert reader.closed and writer.closed
    with pytest.raises(ValueError):
        reader.read()
    reader.close()
    assert other.locks() == []
    assert other.read_bytes("/new") == b"kept"
    assert other.stat("/new")["abandoned"] is False


# --- destroy under others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_after_destroy_every_call_raises(filled: MemoryFileSystem, store_name: str, name: str) -> None:
    """On a destroyed store every call is MFSStoreGoneError, an OSError with ESTALE; close is silent."""
    MemoryFileSystem.destroy(store_name)
    with pytest.raises(MFSStoreGoneError) as caught:
        CALLS[name](filled)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ESTALE
    filled.close()


def test_handles_after_destroy(filled: MemoryFileSystem, store_name: str) -> None:
    """Handles raise too, their close is silent, and views stay readable."""
    reader, writer = filled.open("/f", "rb"), filled.open("/new", "wb")
    view = filled.view("/f")
    MemoryFileSystem.destroy(store_name)
    for call in (
        reader.read,
        lambda: reader.readinto(bytearray(1)),
        reader.readline,
        lambda: writer.write(b"x"),
        lambda: writer.truncate(5),
    ):
        with pytest.raises(MFSStoreGoneError):
            call()
    reader.close()
    writer.close()
    filled.close()
    assert view == b"content"


@pytest.mark.parametrize("what", ["handle", "view"])
def test_closing_while_the_store_is_destroyed(filled: MemoryFileSystem, store_name: str, what: str) -> None:
    """Close is silent, too, if the store goes while it gives something back."""
    held: list[Any] = [filled.open("/f", "r+b") if what == "handle" else filled.view("/f")]
    store = filled._attached()
    if what == "view":
        held.clear()
        gc.collect()
        assert store.unpinned
    real, destroyed = Mutex.acquire, []

    def acquire(mutex: Mutex, *args: Any) -> None:
        if not destroyed:
            destroyed.append(store_name)
            MemoryFileSystem.destroy(store_name)
        real(mutex, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mutex, "acquire", acquire)
        (held[0] if held else filled).close()
    assert destroyed
    filled.close()


def test_destroying_while_it_is_created(store_name: str, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destroyer waits for the creator; what it then takes away is gone for those who have it."""
    marked, going = threading.Event(), []
    mark, make_spares = attachment._mark_destroyed, attachment.provide_spares

    def marks(fd: int) -> None:
        mark(fd)
        marked.set()

    def makes_spares(uuid: Any) -> None:
        make_spares(uuid)
        if not going:
            going.append(Task(MemoryFileSystem.destroy, store_name))
            assert marked.wait(DEADLINE_S)

    monkeypatch.setattr(attachment, "_mark_destroyed", marks)
    monkeypatch.setattr(attachment, "provide_spares", makes_spares)
    try:
        fs = stores.create(store_name)
        going[0].result()
        with pytest.raises(MFSStoreGoneError):
            fs.write_bytes("/f", b"lost")
    except MFSStoreGoneError:
        going[0].result()  # it was quicker than the creator's own attaching


def test_destroying_what_a_stopped_creator_makes(store_name: str, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destroyer does not wait for ever; the creator, when it goes on, makes its store anew."""
    make_spares, first = attachment.provide_spares, []

    def makes_spares(uuid: Any) -> None:
        if not first:
            first.append(uuid)
            monkeypatch.setattr(attachment, "WAIT_FOR_CREATOR_S", 0.05)
            MemoryFileSystem.destroy(store_name)
        make_spares(uuid)

    monkeypatch.setattr(attachment, "provide_spares", makes_spares)
    fs = stores.create(store_name)
    assert entries_of(first[0].hex) == []
    assert stores.attach(store_name).uuid == fs.uuid != first[0]


def test_growing_while_the_store_is_destroyed(
    filled: MemoryFileSystem, store_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is about to make a segment when the store goes leaves none behind (the fixture looks)."""
    ask = arenas.check_headroom

    def asked(size: int) -> None:
        ask(size)
        MemoryFileSystem.destroy(store_name)

    monkeypatch.setattr(arenas, "check_headroom", asked)
    with pytest.raises(MFSStoreGoneError):
        filled.write_bytes("/large", bytes(4 * MIB))


def test_destroy_wakes_waiters(filled: MemoryFileSystem, store_name: str) -> None:
    """Who waits for a lock of a destroyed store is told."""
    with filled.open("/f", "wb"):
        waiter = Task(lambda: filled.open("/f", "rb", lock_timeout=50.0))
        until(lambda: len(filled.locks()) == 2, "the reader waits")
        MemoryFileSystem.destroy(store_name)
        with pytest.raises(MFSStoreGoneError):
            waiter.result()


# --- pickling --------------------------------------------------------------------------------------------------------


def test_pickle_is_another_object_of_the_store(filled: MemoryFileSystem, stores: Stores) -> None:
    """An unpickled fs is attached to the same store and has its own end."""
    twin = stores.keep(pickle.loads(pickle.dumps(filled)))
    assert (twin.name, twin.uuid) == (filled.name, filled.uuid)
    assert twin.read_bytes("/f") == b"content"
    twin.close()
    assert filled.read_bytes("/f") == b"content"


def test_pickle_carries_the_objects_defaults(stores: Stores) -> None:
    """default_lock_timeout goes with the pickle."""
    fs = stores.create(default_lock_timeout=0.0)
    fs.write_bytes("/f", b"x")
    twin = stores.keep(pickle.loads(pickle.dumps(fs)))
    with fs.open("/f", "wb"):
        with pytest.raises(BlockingIOError):
            twin.open("/f", "rb")


def test_pickle_of_a_store_that_is_gone(filled: MemoryFileSystem, stores: Stores, store_name: str) -> None:
    """Unpickling after destroy is MFSStoreGoneError, also when the name has been created anew."""
    frozen = pickle.dumps(filled)
    MemoryFileSystem.destroy(store_name)
    with pytest.raises(MFSStoreGoneError):
        pickle.loads(frozen)
    stores.create(store_name)
    with pytest.raises(MFSStoreGoneError):
        pickle.loads(frozen)


def test_pickle_of_a_store_that_is_going(filled: MemoryFileSystem, store_name: str) -> None:
    """Half destroyed, or with a successor half made, it is gone as well; without the uuid there is no such store."""
    frozen = pickle.dumps(filled)
    index = os.open(f"/dev/shm{names.index_name(store_name)}", os.O_RDWR)
    try:
        for word, value, without in (
            (W_STATE, STATE_DESTROYED, FileNotFoundError),
            (W_STATE, STATE_INIT, MFSUnfinishedStoreError),
            (W_MAGIC, 0, MFSUnfinishedStoreError),
        ):
            os.pwrite(index, value.to_bytes(8, "little"), word * 8)
            with pytest.raises(MFSStoreGoneError):
                pickle.loads(frozen)
            with pytest.raises(without):
                MemoryFileSystem.attach(store_name)
    finally:
        os.pwrite(index, MAGIC.to_bytes(8, "little"), W_MAGIC * 8)  # so that it can be destroyed with all that it has
        os.close(index)


def test_pickled_private_store_outlives_collection(stores: Stores) -> None:
    """A private store that was pickled waits for who unpickles it; its close then ends it."""
    fs = stores.watch(MemoryFileSystem(max_quota=MIB))
    fs.write_bytes("/f", b"x")
    mark, frozen = mark_of(fs), pickle.dumps(fs)
    del fs
    gc.collect()
    twin = stores.keep(pickle.loads(frozen))
    assert twin.read_bytes("/f") == b"x"
    twin.close()
    assert entries_of(mark) == []


def _read_and_answer(fs: MemoryFileSystem) -> bytes:
    content = fs.read_bytes("/f")
    with fs.open("/answer", "wb") as handle:
        handle.write(content[::-1])
    fs.mkdir("/made/by/child")
    return content


@pytest.mark.parametrize("method", METHODS)
def test_named_store_in_a_child(filled: MemoryFileSystem, method: str) -> None:
    """A child reads what the parent wrote and writes what the parent reads, however it was started."""
    assert call_in_child(method, _read_and_answer, filled) == b"content"
    assert filled.read_bytes("/answer") == b"tnetnoc"
    assert filled.is_dir("/made/by/child")
    assert filled.locks() == []


@pytest.mark.parametrize("method", METHODS)
def test_private_store_in_a_child(fs: MemoryFileSystem, method: str) -> None:
    """So with a private store, which the child's end does not take away."""
    fs.write_bytes("/f", b"content")
    assert call_in_child(method, _read_and_answer, fs) == b"content"
    assert fs.read_bytes("/answer") == b"tnetnoc"


def _attach_and_read(name: str) -> bytes:
    fs = MemoryFileSystem.attach(name)
    try:
        return fs.read_bytes("/f")
    finally:
        fs.close()


@pytest.mark.parametrize("method", METHODS)
def test_attach_by_name_in_a_child(filled: MemoryFileSystem, store_name: str, method: str) -> None:
    """A process that knows only the name attaches."""
    assert call_in_child(method, _attach_and_read, store_name) == b"content"


def _create_named(name: str) -> None:
    fs = MemoryFileSystem.create(name, max_quota=MIB)
    fs.write_bytes("/f", b"from the child")


@pytest.mark.parametrize("method", METHODS)
def test_named_store_outlives_its_creator(stores: Stores, store_name: str, method: str) -> None:
    """A store created by a process that has ended is there for the next."""
    call_in_child(method, _create_named, store_name)
    assert stores.attach(store_name).read_bytes("/f") == b"from the child"


# --- fork ------------------------------------------------------------------------------------------------------------


def _use_inherited_handle(_link: Link, fs: MemoryFileSystem, handle: Any) -> list[str]:
    raised = []
    for call in (
        handle.read,
        handle.tell,
        lambda: handle.seek(0),
        lambda: handle.write(b"x"),
        lambda: handle.truncate(0),
        lambda: handle.readinto(bytearray(1)),
    ):
        try:
            call()
        except MFSForkedError as error:
            raised.append(type(error).__name__ if isinstance(error, ValueError) else "no ValueError")
    handle.close()
    fs.write_bytes("/child", b"wrote")
    return raised


def test_inherited_handle_in_a_forked_child(filled: MemoryFileSystem) -> None:
    """Using it raises MFSForkedError; closing it is silent and takes nothing from the parent; the fs works."""
    with filled.open("/f", "r+b") as handle:
        with child("fork", _use_inherited_handle, filled, handle) as forked:
            assert forked.receive() == ["MFSForkedError"] * 6
            forked.join()
        assert handle.read() == b"content"
        assert len(filled.locks()) == 1
        with pytest.raises(MFSLockTimeoutError):
            Task(lambda: filled.open("/f", "rb", lock_timeout=0.0)).result()
    assert filled.read_bytes("/child") == b"wrote"


def _forget_inherited_handle(_link: Link, holder: list[Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        holder.clear()
        gc.collect()
    return "silent"


def test_collecting_an_inherited_handle(filled: MemoryFileSystem) -> None:
    """Collection in the child is silent and leaves the parent's lock."""
    handle = filled.open("/f", "r+b")
    with child("fork", _forget_inherited_handle, [handle]) as forked:
        assert forked.receive() == "silent"
        forked.join()
    assert handle.read() == b"content"
    assert len(filled.locks()) == 1
    handle.close()


def _read_when_told(link: Link, fs: MemoryFileSystem) -> bytes:
    link.send("ready")
    link.recv()
    return fs.read_bytes("/f")


def test_private_store_lives_while_a_forked_child_has_it(stores: Stores) -> None:
    """The parent's close leaves the store to the child; with the child's end it is gone."""
    fs = stores.private()
    fs.write_bytes("/f", b"content")
    mark = mark_of(fs)
    with child("fork", _read_when_told, fs) as forked:
        assert forked.receive() == "ready"
        fs.close()
        forked.send("read")
        assert forked.receive() == b"content"
        forked.join()
    assert entries_of(mark) == []


def _end_without_tidying_up(link: Link, holder: list[MemoryFileSystem], uses: bool, collects: bool) -> None:
    fs = holder.pop()
    mark = mark_of(fs)
    link.send("ready")
    link.recv()
    if uses:
        assert fs.read_bytes("/f") == b"content"
    if not collects:
        fs.close()
    del fs
    gc.collect()
    link.send(entries_of(mark))
    link.recv()


@pytest.mark.parametrize("collects", [False, True])
@pytest.mark.parametrize("uses", [False, True])
@pytest.mark.parametrize("generations", [1, 2])
def test_private_store_goes_with_the_last_of_a_forked_family(
    stores: Stores, generations: int, uses: bool, collects: bool
) -> None:
    """Whoever closes an inherited store, or has it collected, takes it away if nobody else has it, used or not."""
    holder = [MemoryFileSystem(max_quota=MIB)]  # and no name of a frame, which a forked child has, too
    holder[0].write_bytes("/f", b"content")
    mark = mark_of(stores.watch(holder[0]))

    def live(link: Link) -> None:
        for _ in range(generations - 1):
            holder[0].exists("/")  # so that it has a part of its own when it forks, and the parent's
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            until(lambda: os.getppid() != parent, "the parent has let go of what it had")  # noqa: B023
        _end_without_tidying_up(link, holder, uses, collects)
        os._exit(0)

    with child("fork", live) as last:
        assert last.receive() == "ready"
        holder.pop().close()
        assert entries_of(mark)
        last.send("go on")
        assert last.receive() == []
        last.send("end")


def _fork_again(fs: MemoryFileSystem) -> int:
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fs.write_bytes("/grandchild", b"wrote")
            status = 0
        finally:
            os._exit(status)
    assert parent_pid == os.getpid()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_grandchildren(named: MemoryFileSystem) -> None:
    """A child's forked child uses the store as well."""
    assert call_in_child("fork", _fork_again, named) == 0
    assert named.read_bytes("/grandchild") == b"wrote"


# --- death -----------------------------------------------------------------------------------------------------------


def _write_and_wait(link: Link, fs: MemoryFileSystem, mode: str, data: bytes, path: str = "/victim") -> None:
    with fs.open(path, mode) as handle:
        if data:
            handle.write(data)
        link.send("written")
        link.recv()


@pytest.mark.parametrize(("mode", "data"), [("wb", b"half"), ("wb", b""), ("r+b", b"half"), ("ab", b"half")])
def test_file_of_a_killed_writer_is_abandoned(named: MemoryFileSystem, mode: str, data: bytes) -> None:
    """Its readers are told, unless they allow it; the tree treats it as any file; a clean rewrite clears it."""
    named.mkdir("/d")
    named.write_bytes("/d/victim", b"before")
    with child("fork", _write_and_wait, named, mode, data, "/d/victim") as writer:
        assert writer.receive() == "written"
        writer.kill()
    readers: list[Callable[[], object]] = [
        lambda: named.open("/d/victim", "rb"),
        lambda: named.open("/d/victim", "r+b"),
        lambda: named.open("/d/victim", "ab"),
        lambda: named.read_bytes("/d/victim"),
        lambda: named.view("/d/victim"),
        lambda: named.copy("/d/victim", "/copy"),
        lambda: named.copy_tree("/d", "/copy"),
    ]
    for read in readers:
        with pytest.raises(MFSAbandonedFileError):
            read()
    assert named.stat("/d/victim")["abandoned"] is True
    assert named.glob("/**") == ["/d", "/d/victim"]
    content = {"wb": data, "r+b": b"halfre", "ab": b"beforehalf"}[mode]
    with named.open("/d/victim", "rb", allow_abandoned=True) as handle:
        assert handle.read() == content
    assert named.read_bytes("/d/victim", allow_abandoned=True) == content
    named.copy("/d/victim", "/copy", allow_abandoned=True)
    named.copy_tree("/d", "/copies", allow_abandoned=True)
    assert [named.read_bytes(path) for path in ("/copy", "/copies/victim")] == [content, content]
    assert named.stat("/d/victim")["abandoned"] is True
    named.remove("/copy")
    named.rmtree("/copies")
    named.rename("/d/victim", "/moved")
    assert named.stat("/moved")["abandoned"] is True
    with named.open("/moved", "wb") as handle:
        handle.write(b"whole")
    assert named.stat("/moved")["abandoned"] is False
    assert named.read_bytes("/moved") == b"whole"
    assert named.stats()["used_bytes"] == 256 + 128


def test_new_file_of_a_killed_writer_is_abandoned(named: MemoryFileSystem) -> None:
    """Creation counts as a change; r+b with allow_abandoned and a clean close clears the mark."""
    with child("fork", _write_and_wait, named, "xb", b"") as writer:
        assert writer.receive() == "written"
        writer.kill()
    with pytest.raises(MFSAbandonedFileError):
        named.read_bytes("/victim")
    with named.open("/victim", "r+b", allow_abandoned=True) as handle:
        handle.write(b"whole")
    assert named.read_bytes("/victim") == b"whole"


@pytest.mark.parametrize("mode", ["rb", "r+b", "ab"])
def test_file_that_the_killed_did_not_change_is_whole(named: MemoryFileSystem, mode: str) -> None:
    """Dying with a file open but unchanged abandons nothing."""
    named.write_bytes("/victim", b"content")
    with child("fork", _write_and_wait, named, mode, b"") as writer:
        assert writer.receive() == "written"
        writer.kill()
    assert named.read_bytes("/victim") == b"content"
    assert named.stat("/victim")["abandoned"] is False


def _die_while_truncating(_link: Link, fs: MemoryFileSystem) -> None:
    """Die in the transaction that gives blocks back: the new capacity is stored and not committed."""
    real = section.commit

    def commit_and_open_the_journal_again(w: Any, at: int, plan: Any) -> None:
        real(w, at, plan)
        w[at] = len(plan)
        os.kill(os.getpid(), signal.SIGKILL)

    with fs.open("/victim", "r+b") as handle:
        section.commit = commit_and_open_the_journal_again
        handle.truncate(100)


@pytest.mark.parametrize("backend", ["generation", "ofd"])
def test_what_the_killed_was_changing_is_settled_before_its_lock_goes(stores: Stores, backend: str) -> None:
    """Who is next in line finds no half transaction, and the file is charged what its size needs."""
    named = stores.create(backend=backend)
    named.write_bytes("/victim", bytes(1000))
    store, journals = named._store, []
    with child("fork", _die_while_truncating, named) as writer:
        writer.join()
    assert store.w[journal_at(0)], "the child has died elsewhere"
    reap = store.rw.reap

    def look_and_reap(*args: Any) -> bool:
        journals.append(store.w[journal_at(0)])
        return bool(reap(*args))

    store.rw.reap = look_and_reap
    named.open("/victim", allow_abandoned=True).close()
    assert journals == [0]
    assert named.stats()["used_bytes"] == 256 + 128


@pytest.mark.parametrize("way", ["write_bytes", "replace", "remove"])
def test_abandoned_file_is_replaced_or_removed(named: MemoryFileSystem, way: str) -> None:
    """Writing over, replacing and removing an abandoned file work, and end it."""
    with child("fork", _write_and_wait, named, "wb", bytes(50_000)) as writer:
        assert writer.receive() == "written"
        writer.kill()
    if way == "write_bytes":
        named.write_bytes("/victim", b"whole")
    elif way == "replace":
        named.write_bytes("/whole", b"whole")
        named.replace("/whole", "/victim")
    else:
        named.remove("/victim")
    if way == "remove":
        assert named.stats()["used_bytes"] == 0
    else:
        assert named.read_bytes("/victim") == b"whole"
        assert named.stats()["used_bytes"] == 256 + 128


def _forget_to_close(fs: MemoryFileSystem) -> None:
    handle = fs.open("/victim", "wb")
    handle.write(b"whole")
    globals()["_open_at_exit"] = handle


@pytest.mark.parametrize("method", METHODS)
def test_exit_closes_cleanly(named: MemoryFileSystem, method: str) -> None:
    """A process that ends with a handle open has closed it: the file is complete."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        call_in_child(method, _forget_to_close, named)
    assert named.read_bytes("/victim") == b"whole"
    assert named.locks() == []


def _stay(link: Link, fs: MemoryFileSystem) -> None:
    fs.listdir("/")
    link.send("attached")
    link.recv()


def test_participants_come_and_go(named: MemoryFileSystem) -> None:
    """A child is listed while it lives, and its slot is free after its end, killed or not."""
    for end in ("exit", "kill"):
        with child("spawn", _stay, named) as guest:
            assert guest.receive() == "attached"
            assert guest.pid in {record.pid for record in named.participants()}
            if end == "kill":
                os.kill(guest.pid, signal.SIGKILL)
            else:
                guest.send("go")
                guest.receive()
            guest.join()
            pid = guest.pid
        assert pid not in {record.pid for record in named.participants() if getattr(record, "alive", True)}


def test_hundreds_of_private_stores(stores: Stores) -> None:
    """A test suite's worth of stores leaves no descriptor behind."""
    stores.watch(MemoryFileSystem(max_quota=MIB)).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        fs = MemoryFileSystem(max_quota=MIB)
        fs.write_bytes("/f", b"x")
        fs.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def forget_and_leave(fs: MemoryFileSystem) -> None:
    """A handle is lost without a note, as when there was no memory for one; then everything ends in order."""
    handle = fs.open("/f", "r+b")
    handle._closed = True
    fs._handles.clear()
    fs.close()


def test_what_a_process_forgot_is_given_back_for_it(named: MemoryFileSystem) -> None:
    """Whoever left in order and still held something is reaped like the dead."""
    named.write_bytes("/f", b"x")
    call_in_child("fork", forget_and_leave, named)
    with named.open("/f", "r+b", lock_timeout=10) as handle:
        assert handle.read() == b"x"
    assert named.locks() == []
