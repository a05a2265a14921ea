"""Looking at a store from outside: it works whatever the others do and whatever the words say, and touches nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.cli import advice, inspect, report
from dmemfs_shm.errors import MFSNotOwnerError, MFSParameterError
from dmemfs_shm.paths import parse
from dmemfs_shm.store import names, section, snapshot
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.inspection import inspect as look
from dmemfs_shm.store.inspection import survey
from dmemfs_shm.store.layout import (
    ARENA_TABLE,
    BACKENDS,
    FINGERPRINT,
    GENERATION,
    JOURNAL,
    LB_INIT,
    N_PARENT,
    NODE_BACKED,
    NODE_BREAK,
    PAGE,
    PAGE_WORDS,
    RECORDS_AT,
    RUN_HEADS,
    SLOTS_AT,
    SLOTS_BACKED,
    STATE_DESTROYED,
    STORE,
    TRASH,
    USED,
    W_FINGERPRINT,
    W_MAGIC,
    W_NODES_CAP,
    W_SLOTS,
    W_STATE,
    W_UUID_LOW,
    W_VERSION,
    WORD,
    Layout,
    journal_at,
)
from dmemfs_shm.store.snapshot import DAMAGED, DESTROYED, FOREIGN, INCOMPATIBLE, READY, UNFINISHED, Inspection

from ..conftest import MIB, Stores
from ..processes import Link, child, in_thread, until

SCHEMA = Path(__file__).parents[2] / "docs" / "inspect-schema.md"


def seen(name: str, uid: int | None = None) -> Inspection:
    """The store, looked at within a deadline; what is seen can be printed, and becomes a document."""
    found = in_thread(look, name, uid)
    assert report.plain(inspect.report(found))
    json.dumps(found.to_dict() | {"advice": advice.advice(found)})
    return found


class Words:
    """The words of a store's index, written to behind everybody's back."""

    def __init__(self, name: str) -> None:
        self.fd = os.open(names.SHM_DIR + names.index_name(name), os.O_RDWR)
        self._before: list[tuple[int, bytes]] = []

    def read(self, word: int, count: int = 1) -> bytes:
        return os.pread(self.fd, count * WORD, word * WORD)

    def value(self, word: int) -> int:
        return int.from_bytes(self.read(word), "little")

    def write(self, word: int, data: bytes | int) -> None:
        if isinstance(data, int):
            data = data.to_bytes(WORD, "little")
        self._before.append((word * WORD, os.pread(self.fd, len(data), word * WORD)))
        os.pwrite(self.fd, data, word * WORD)

    def restore(self) -> None:
        while self._before:
            at, data = self._before.pop()
            os.pwrite(self.fd, data, at)

    def layout(self) -> Layout:
        return Layout(self.value(W_SLOTS), self.value(W_NODES_CAP), self.value(W_NODES_CAP + 1))


@pytest.fixture
def words(named: MemoryFileSystem, store_name: str) -> Iterator[Words]:
    """The words of `named`, which are as they were in the end."""
    opened = Words(store_name)
    try:
        yield opened
    finally:
        opened.restore()
        os.close(opened.fd)


def texts(found: Inspection) -> str:
    return "\n".join(f"{problem.section}: {problem.text}" for problem in found.problems)


# --- a sound store ---------------------------------------------------------------------------------------------------


def test_what_is_there(named: MemoryFileSystem, store_name: str) -> None:
    named.mkdir("/a/b")
    named.write_bytes("/a/b/large", bytes(100_000))
    named.write_bytes("/a/" + "n" * 200, b"x")
    with named.open("/a/b/large") as reader, named.view("/a/b/large"), named.open("/new", "wb"):
        found = seen(store_name)
        assert (found.condition, found.problems, found.private, found.uid) == (READY, (), False, os.geteuid())
        assert found.identity is not None and found.identity.uuid == str(named.uuid)
        assert found.parameters is not None and found.parameters["max_quota"] == 16 * MIB
        assert found.quota is not None and found.quota.used_bytes == named.stats()["used_bytes"]
        assert found.quota.used_bytes + found.quota.free_bytes == found.quota.quota_bytes
        assert found.nodes is not None and (found.nodes.files, found.nodes.directories) == (3, 3)
        assert found.nodes.in_use == 3 + 3 + 1 + 1  # the rest of a long name, a pin
        assert [(file.path, file.size_bytes, file.lock) for file in found.largest_files or ()] == [
            ("/a/b/large", 100_000, "shared"),
            ("/a/" + "n" * 200, 1, "free"),
            ("/new", 0, "exclusive"),
        ]
        (who,) = found.participants or ()
        assert (who.pid, who.alive, who.stopped, who.locks_held, who.views) == (os.getpid(), True, False, 2, 1)
        held = [(lock.path, lock.mode, lock.state, lock.pid, lock.alive) for lock in found.locks or ()]
        assert held == [
            ("/a/b/large", "shared", "held", os.getpid(), True),
            ("/new", "exclusive", "held", os.getpid(), True),
        ]
        assert [mutex.state for mutex in found.mutexes or ()] == ["free"] * 17
        assert found.memory is not None and found.memory.arenas_bytes >= 100_000
        assert found.memory.total_bytes <= found.memory.shm_total_bytes
        assert found.largest_free_run_bytes
        assert advice.advice(found) == []
        reader.read(1)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_orphaned_content_and_the_other_backend(stores: Stores, backend: str) -> None:
    fs = stores.create(backend=backend)
    fs.write_bytes("/f", bytes(5000))
    with fs.view("/f"):
        fs.remove("/f")
        found = seen(fs.name)
    assert found.problems == ()
    assert found.quota is not None and found.quota.orphaned_bytes == 2 * PAGE + 128


def test_it_leaves_no_trace(named: MemoryFileSystem, store_name: str, words: Words) -> None:
    named.write_bytes("/f", bytes(100_000))
    mark = named.uuid.hex

    def state() -> tuple[Any, ...]:
        entries = sorted(entry for entry in os.listdir("/dev/shm") if mark in entry or store_name in entry)
        stats = [os.stat(f"/dev/shm/{entry}") for entry in entries]
        page = [words.read(page * PAGE_WORDS, PAGE_WORDS) for page in range(60)]
        return entries, [(stat.st_size, stat.st_blocks, stat.st_mtime_ns) for stat in stats], page

    before = state()
    descriptors = os.listdir("/proc/self/fd")
    seen(store_name)
    survey(os.geteuid())
    assert state() == before
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_private_stores_by_their_uuid(fs: MemoryFileSystem) -> None:
    found = seen(fs.name)
    assert found.private and found.condition == READY
    assert found.activity is not None and found.activity.life_held is True
    assert fs.name in {line.name for line in survey(os.geteuid())}


@pytest.mark.parametrize("name", ["", "UPPER", "../etc", "a/b", "@", "@xyz", "x" * 64])
def test_no_store_can_be_called_so(name: str) -> None:
    with pytest.raises(MFSParameterError):
        look(name)


def test_no_such_store(stores: Stores) -> None:
    with pytest.raises(FileNotFoundError, match="No such store"):
        look(stores.name())


def test_a_line_for_each_store(named: MemoryFileSystem, store_name: str) -> None:
    named.write_bytes("/f", bytes(5000))
    (line,) = [line for line in survey(os.geteuid()) if line.name == store_name]
    assert (line.condition, line.quota_bytes, line.used_bytes, line.files) == (READY, 16 * MIB, 2 * PAGE + 128, 1)
    assert (line.alive, line.dead) == (1, 0)


# --- the others are dead, stopped, or busy ---------------------------------------------------------------------------


def hold(link: Link, name: str) -> None:
    """Hold a lock of each kind, wait for another, and look at a file, until the test is done."""
    fs = MemoryFileSystem.attach(name)
    with fs.open("/shared"), fs.open("/written", "wb"), fs.view("/shared"):
        link.send("holding")
        fs.open("/wanted", "wb", lock_timeout=1000.0)


def test_every_participant_is_dead(stores: Stores) -> None:
    name = stores.name()
    with child("fork", _prepare, name) as first:
        assert first.receive() == "ready"
        with child("fork", hold, name) as holder:
            assert holder.receive() == "holding"
            until(lambda: any(lock.state == "waiting" for lock in look(name).locks or ()), "it waits")
            found = seen(name)
            assert sorted((lock.path, lock.state) for lock in found.locks or () if lock.pid == holder.pid) == [
                ("/shared", "held"),
                ("/wanted", "waiting"),
                ("/written", "held"),
            ]
            holder.kill()
            first.kill()
            found = seen(name)
            assert found.alive == 0
            assert [who.alive for who in found.participants or ()] == [False, False]
            assert {lock.alive for lock in found.locks or ()} == {False}
            assert (found.condition, found.problems) == (READY, ())
            assert any("The dead still hold" in line for line in advice.advice(found))
    (line,) = [line for line in survey(os.geteuid()) if line.name == name]
    assert (line.alive, line.dead) == (0, 2)


def _prepare(link: Link, name: str) -> None:
    fs = MemoryFileSystem.create(name, max_quota=MIB)
    for path in ("/shared", "/written", "/wanted"):
        fs.write_bytes(path, b"content")
    with fs.open("/wanted", "r+b"):
        link.send("ready")
        signal.pause()


def stop_inside(link: Link, name: str, after: int) -> None:
    """Stop in the middle of a transaction of mutex 0, some words of it stored."""

    def commit(w: Any, at: int, plan: Any) -> None:
        for entry, word in enumerate(plan):
            w[at + 1 + 2 * entry] = word
            w[at + 2 + 2 * entry] = w[word]
        w[at] = len(plan)
        for stored, (word, value) in enumerate(plan.items()):
            if stored == after:
                link.send("stopping")
                os.kill(os.getpid(), signal.SIGSTOP)
            w[word] = value
        w[at] = 0

    fs = MemoryFileSystem.attach(name)
    section.commit = commit
    fs.mkdir("/deep/er")
    fs.write_bytes("/deep/er/new", bytes(20_000))
    link.send("not stopped")


@pytest.mark.parametrize("after", range(6))
def test_stopped_inside_a_section(named: MemoryFileSystem, store_name: str, after: int) -> None:
    named.write_bytes("/f", bytes(5000))
    with child("fork", stop_inside, store_name, after) as stopped:
        assert stopped.receive() == "stopping"
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        found = seen(store_name)
        mutex = (found.mutexes or ())[0]
        assert (mutex.state, mutex.holder_pid) == ("held", stopped.pid)
        assert mutex.journal_entries > 0
        assert {who.pid: who.stopped for who in found.participants or ()} == {os.getpid(): False, stopped.pid: True}
        assert found.condition == READY
        assert all(problem.half_done for problem in found.problems)
        assert any(f"kill -CONT {stopped.pid}" in line for line in advice.advice(found))
        stopped.kill()
        found = seen(store_name)
        assert (found.mutexes or ())[0].state == "dead"
        assert any("undoes what was half done" in line for line in advice.advice(found))
    assert named.check() == []
    found = seen(store_name)
    assert (found.mutexes or ())[0].generation == 2
    assert found.activity is not None and found.activity.recoveries == 1


def test_stopped_inside_a_section_of_the_other_backend(stores: Stores) -> None:
    fs = stores.create(backend="ofd")
    with child("fork", stop_inside, fs.name, 2) as stopped:
        assert stopped.receive() == "stopping"
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        mutex = (seen(fs.name).mutexes or ())[0]
        assert (mutex.state, mutex.holder_pid) == ("held", stopped.pid)
        stopped.kill()
        mutex = (seen(fs.name).mutexes or ())[0]
        assert (mutex.state, mutex.holder_pid) == ("dead", stopped.pid)
    assert fs.check() == []
    assert [mutex.state for mutex in seen(fs.name).mutexes or ()] == ["free"] * 17


def hurry(link: Link, name: str, seed: int) -> None:
    fs = MemoryFileSystem.attach(name)
    chance = random.Random(seed)
    link.send("running")
    while True:
        path = f"/d{chance.randrange(4)}/{chance.randrange(20)}"
        what = chance.randrange(6)
        try:
            if what == 0:
                fs.remove(path)
            elif what == 1:
                fs.rmtree(os.path.dirname(path))
            elif what == 2:
                with fs.open(path, "ab", lock_timeout=0.01) as file:
                    file.write(bytes(chance.randrange(9000)))
            else:
                fs.mkdir(os.path.dirname(path), exist_ok=True)
                fs.write_bytes(path, bytes(chance.randrange(30_000)))
        except OSError:
            pass


def test_no_false_alarm_while_others_hurry(stores: Stores) -> None:
    fs = stores.create(max_quota=MIB)
    with child("fork", hurry, fs.name, 1) as one, child("fork", hurry, fs.name, 2) as other:
        assert (one.receive(), other.receive()) == ("running", "running")
        for _ in range(40):
            found = look(fs.name)
            assert found.condition == READY, texts(found)
        one.kill()
        other.kill()
    assert seen(fs.name).condition == READY


# --- what is no store, or not yet, or not any more -------------------------------------------------------------------


@pytest.fixture
def segment(store_name: str) -> Iterator[str]:
    """The path of an index segment that this test makes by itself."""
    path = names.SHM_DIR + names.index_name(store_name)
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


@pytest.mark.parametrize("size", [0, 8, 100, PAGE, 64 * PAGE])
def test_unfinished(segment: str, store_name: str, size: int) -> None:
    Path(segment).write_bytes(bytes(size))
    found = seen(store_name)
    assert (found.condition, found.quota) == (UNFINISHED, None)
    assert "It died" in found.reason
    locks = ByteLocks(names.index_name(store_name))
    try:
        assert locks.try_lock(LB_INIT)
        assert "It is at work" in seen(store_name).reason
    finally:
        locks.close()


def test_unfinished_with_a_head(named: MemoryFileSystem, words: Words, store_name: str) -> None:
    words.write(W_STATE, 0)
    assert seen(store_name).condition == UNFINISHED


def test_destroyed_and_still_there(named: MemoryFileSystem, words: Words, store_name: str) -> None:
    words.write(W_STATE, STATE_DESTROYED)
    found = seen(store_name)
    assert (found.condition, found.problems) == (DESTROYED, ())
    assert [who.pid for who in found.participants or ()] == [os.getpid()]


def test_of_another_version(named: MemoryFileSystem, words: Words, store_name: str) -> None:
    words.write(W_VERSION, 99)
    words.write(W_FINGERPRINT, FINGERPRINT ^ 1)
    found = seen(store_name)
    assert (found.condition, found.quota) == (INCOMPATIBLE, None)
    assert "layout version 99" in found.reason


def test_another_fingerprint(named: MemoryFileSystem, words: Words, store_name: str) -> None:
    words.write(W_FINGERPRINT, FINGERPRINT ^ 1)
    assert seen(store_name).condition == INCOMPATIBLE


@pytest.mark.parametrize("content", [b"hello", b"\xff" * 5 * PAGE, os.urandom(3 * PAGE)])
def test_not_a_store(segment: str, store_name: str, content: bytes) -> None:
    Path(segment).write_bytes(content)
    assert seen(store_name).condition in (FOREIGN, UNFINISHED)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_sees_another_users_store(stores: Stores) -> None:
    name, nobody = stores.name(), 65534
    with child("fork", _as_user, name, nobody) as other:
        assert other.receive() == "ready"
        found = seen(name, nobody)
        assert (found.condition, found.uid) == (READY, nobody)
        assert [who.alive for who in found.participants or ()] == [True]
        assert (nobody, name) in {(line.uid, line.name) for line in survey()}
        assert name not in {line.name for line in survey(0)}
        other.send("done")
        assert other.receive() == "refused"
        other.join()


def _as_user(link: Link, name: str, uid: int) -> str:
    os.setuid(uid)
    fs = MemoryFileSystem.create(name, max_quota=MIB)
    roots = f"/dev/shm/dmemfs-{uid}-{name}.other"
    link.send("ready")
    link.recv()
    fs.close()
    MemoryFileSystem.destroy(name)
    Path(roots).touch()
    os.chmod(roots, 0)
    try:
        look(f"{name}.other", uid)
    except MFSNotOwnerError:
        assert [line.condition for line in survey(uid) if line.name == f"{name}.other"] == [snapshot.UNREADABLE]
        return "refused"
    finally:
        os.unlink(roots)
    return "not refused"


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def furnished(named: MemoryFileSystem, words: Words) -> Words:
    """A store with all sorts of things in it, and nobody using it."""
    for number in range(20):
        named.write_bytes(f"/dir/{number}" if named.exists("/dir") else f"/{number}", bytes(number * 700))
        named.mkdir("/dir", exist_ok=True)
    named.write_bytes("/dir/" + "long" * 50, bytes(100_000))
    for number in (3, 5, 9):
        named.remove(f"/dir/{number}")
    return words


REGIONS: dict[str, Callable[[Layout], tuple[int, int]]] = {
    "identity": lambda _: (0, 32),
    "parameters": lambda _: (PAGE_WORDS, 32),
    "store": lambda _: (STORE, PAGE_WORDS),
    "generations": lambda _: (GENERATION, PAGE_WORDS),
    "journals": lambda _: (JOURNAL, 17 * PAGE_WORDS),
    "arenas": lambda _: (ARENA_TABLE, PAGE_WORDS),
    "slot": lambda _: (SLOTS_AT, PAGE_WORDS),
    "records": lambda _: (SLOTS_AT + RECORDS_AT, PAGE_WORDS),
    "buckets": lambda layout: (layout.buckets_at, PAGE_WORDS),
    "descriptors": lambda layout: (layout.descriptors_at, PAGE_WORDS),
    "nodes": lambda layout: (layout.nodes_at, 40 * 32),
}
UUID = {W_UUID_LOW - 1, W_UUID_LOW}


def patterns(count: int) -> Iterator[bytes]:
    """All ones, noise, small numbers, and single words of noise in zeros."""
    chance = random.Random(count)
    yield b"\xff" * count * WORD
    yield chance.randbytes(count * WORD)
    yield b"".join(chance.randrange(100).to_bytes(WORD, "little") for _ in range(count))
    yield b"".join(chance.choice([0, 0, 1, 1 << 20, 1 << 32, 1 << 63]).to_bytes(WORD, "little") for _ in range(count))


@pytest.mark.parametrize("region", REGIONS)
def test_scribbled_on(furnished: Words, store_name: str, region: str) -> None:
    first, count = REGIONS[region](furnished.layout())
    for data in patterns(count):
        furnished.write(first, data)
        assert seen(store_name).condition != "", region
        assert [line for line in survey(os.geteuid()) if line.name == store_name]
        furnished.restore()
    assert seen(store_name).condition == READY


@pytest.mark.parametrize("region", ["store", "slot", "arenas", "nodes"])
def test_one_word_at_a_time(furnished: Words, store_name: str, region: str) -> None:
    first, count = REGIONS[region](furnished.layout())
    for word in range(first, first + min(count, 120)):
        furnished.write(word, (1 << 64) - 1)
        found = look(store_name)
        assert report.plain(inspect.report(found))
        furnished.restore()


@pytest.mark.parametrize(
    ("word", "value", "section_name"),
    [
        (W_MAGIC, 12345, "identity"),
        (W_VERSION, 7, "identity"),
        (W_STATE, 77, "identity"),
        (W_SLOTS, 0, "identity"),
        (W_SLOTS, 200, "identity"),
        (W_NODES_CAP, 1 << 40, "identity"),
        (PAGE_WORDS, 0xDEAD, "parameters"),
        (USED, 1 << 60, "quota"),
        (NODE_BREAK, 1 << 50, "nodes"),
        (NODE_BACKED, 1 << 23, "memory"),
        (SLOTS_BACKED, 1 << 30, "participants"),
        (RUN_HEADS + 9, 1 << 40, "free runs"),
        (ARENA_TABLE + 2, 1 << 40, "arenas"),
        (journal_at(3), 999, "mutexes"),
    ],
)
def test_damage_is_named_and_the_rest_is_shown(
    furnished: Words, store_name: str, word: int, value: int, section_name: str
) -> None:
    furnished.write(word, value)
    found = seen(store_name)
    assert found.condition == DAMAGED
    assert section_name in {problem.section for problem in found.problems}, texts(found)
    assert not any(problem.half_done for problem in found.problems)
    assert found.quota is not None and found.quota.quota_bytes == 16 * MIB
    if section_name not in ("nodes", "memory"):
        assert found.nodes is not None and found.nodes.files == 18, texts(found)
    if section_name != "participants":
        assert [who.pid for who in found.participants or ()] == [os.getpid()], texts(found)
    assert any("damaged" in line for line in advice.advice(found))


def test_a_path_that_goes_in_circles(furnished: Words, named: MemoryFileSystem, store_name: str) -> None:
    node = named._attached().names.find(parse("/dir"), None)[0]
    furnished.write(furnished.layout().node_at(node) + N_PARENT, node)
    found = seen(store_name)
    assert found.condition == DAMAGED
    assert "a path that ends" in texts(found)
    assert {file.path for file in found.largest_files or ()} == {"?"}


def test_a_journal_full_of_nonsense_excuses_nothing(furnished: Words, store_name: str) -> None:
    furnished.write(journal_at(0), 3)  # entries that lead to word 0
    furnished.write(journal_at(0) + 1, bytes(6 * WORD))
    furnished.write(USED, 1 << 60)
    found = seen(store_name)
    assert found.condition == DAMAGED


def test_an_arena_that_was_removed_by_hand(stores: Stores) -> None:
    fs = MemoryFileSystem.create(stores.name(), max_quota=MIB)
    stores.watch(fs)
    fs.write_bytes("/f", bytes(5000))
    fs.close()
    os.unlink(names.SHM_DIR + names.arena(fs.uuid, 0, 0))
    os.unlink(names.semaphore_path(names.mutex(fs.uuid, 4, 0)))
    found = seen(fs.name)
    assert found.condition == DAMAGED
    assert "removed by hand" in texts(found)
    assert {problem.section for problem in found.problems} == {"arenas", "mutexes"}


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 20, 44, 46, 500])
def test_a_truncated_index(stores: Stores, pages: int) -> None:
    fs = MemoryFileSystem.create(stores.name(), max_quota=MIB)
    stores.watch(fs)
    fs.write_bytes("/f", bytes(5000))
    fs.close()
    path = names.SHM_DIR + names.index_name(fs.name)
    with open(path, "rb") as index:
        head = index.read(PAGE)
    os.truncate(path, pages * PAGE)
    found = seen(fs.name)
    assert found.condition == (DAMAGED if pages else UNFINISHED)
    survey(os.geteuid())
    if not pages:  # what names the rest is gone with the head
        Path(path).write_bytes(head)


def test_figures_of_a_large_index_are_bounded(furnished: Words, store_name: str) -> None:
    """Words that promise sixteen million nodes where there is no memory: holes are not walked through."""
    furnished.write(NODE_BREAK, 1 << 24)
    furnished.write(NODE_BACKED, 1 << 24)
    furnished.write(TRASH, 5)
    found = seen(store_name)
    assert found.condition == DAMAGED
    assert os.fstat(furnished.fd).st_blocks * 512 < 4 * MIB


def test_quotas_of_directories(stores: Stores) -> None:
    fs = MemoryFileSystem.create(stores.name(), max_quota=MIB)
    stores.watch(fs)
    for path in "/b", "/a":
        fs.mkdir(path)
        fs.set_quota(path, 1000)
        fs.write_bytes(f"{path}/f", bytes(256))
    view = fs.view("/b/f")
    fs.rmtree("/b")
    quota = seen(fs.name).quota
    assert quota is not None
    assert quota.directories == (snapshot.DirectoryQuota(None, 1000, 384), snapshot.DirectoryQuota("/a", 1000, 384))
    del view
    fs.close()


def wait_for_space(link: Link, name: str, directory: str) -> None:
    """Wait until a directory with a quota of 1000 has room for what it never has."""
    fs = MemoryFileSystem.attach(name)
    fs.write_bytes(f"{directory}/first", bytes(500))
    fs.write_bytes(f"{directory}/second", bytes(500), space_timeout=1000.0)


def test_who_waits_for_space(named: MemoryFileSystem, store_name: str) -> None:
    named.mkdir("/limited")
    named.set_quota("/limited", 1000)
    assert seen(store_name).space_waits == ()
    with child("fork", wait_for_space, store_name, "/limited") as waiter:
        until(lambda: bool(look(store_name).space_waits), "it waits")
        (wait,) = seen(store_name).space_waits or ()
        assert (wait.pid, wait.alive, wait.wanted_bytes, wait.directory) == (waiter.pid, True, 512 + 128, "/limited")
        waiter.kill()
        (wait,) = seen(store_name).space_waits or ()
        assert not wait.alive
    named.recover()
    assert seen(store_name).space_waits == ()


def wait_for_a_file(link: Link, name: str) -> None:
    MemoryFileSystem.attach(name).wait_for("/never")


def test_who_waits_for_a_file_to_come(named: MemoryFileSystem, store_name: str) -> None:
    with child("fork", wait_for_a_file, store_name) as waiter:

        def sleepers() -> dict[int, int]:
            return {who.pid: who.sleepers for who in look(store_name).participants or ()}

        until(lambda: sleepers().get(waiter.pid) == 1, "it sleeps")
        assert sleepers()[os.getpid()] == 0
        waiter.kill()
        assert sleepers()[waiter.pid] == 0


# --- the document ----------------------------------------------------------------------------------------------------

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (float, int),
    "boolean": (bool,),
    "list": (list,),
    "list of strings": (list,),
    "object": (dict,),
}


def documented(text: str) -> dict[str, tuple[tuple[type, ...], bool]]:
    """The fields of a table: (types, whether it may be null)."""
    fields = {}
    for field, kind in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE):
        name, _, null = kind.strip().partition(" or ")
        fields[field] = (TYPES[name], null == "null")
    return fields


def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every field of a document with its value."""
    for key, inner in value.items():
        name = f"{path}.{key}" if path else key
        if isinstance(inner, list):
            yield f"{name}[]", inner
            for element in inner:
                if isinstance(element, dict):
                    yield from walk(element, f"{name}[]")
        else:
            yield name, inner
            if isinstance(inner, dict) and key != "parameters":
                yield from walk(inner, name)


def compare(document: dict[str, Any], fields: dict[str, tuple[tuple[type, ...], bool]]) -> set[str]:
    """Check each field of a document against the documentation; returns the fields that were there."""
    there = set()
    for name, value in walk(document, ""):
        field = name if name in fields else f"{name}[]" if value is None else name
        assert field in fields, f"{name} is not documented"
        types, may_be_null = fields[field]
        if value is None:
            assert may_be_null, name
        else:
            assert isinstance(value, types), name
            assert bool in types or not isinstance(value, bool), name
        there.add(field)
    return there


def test_the_document_is_as_documented(furnished: Words, named: MemoryFileSystem, store_name: str) -> None:
    first, second = SCHEMA.read_text(encoding="utf-8").split("## `dmemfs-shm list --json`")
    fields = documented(first)
    there = set()
    named.mkdir("/limited")
    named.set_quota("/limited", 1000)
    with child("fork", wait_for_space, store_name, "/limited"):
        until(lambda: bool(look(store_name).space_waits), "it waits")
        there |= compare(json.loads(json.dumps(look(store_name).to_dict())), fields)
    with named.open("/0"):
        for word, value in ((0, None), (USED, 1 << 60), (W_SLOTS, 0), (W_VERSION, 9), (W_STATE, 0)):
            if value is not None:
                furnished.write(word, value)
            if word == W_VERSION:
                furnished.write(W_FINGERPRINT, 0)
            found = seen(store_name)
            document = json.loads(json.dumps(found.to_dict() | {"advice": advice.advice(found)}))
            assert document["schema_version"] == snapshot.SCHEMA_VERSION == 1
            there |= compare(document, fields)
            furnished.restore()
    assert there == set(fields)
    listing = json.loads(json.dumps({"schema_version": 1, "stores": [line.to_dict() for line in survey()]}))
    assert compare(listing, documented(second)) == set(documented(second))


# --- what people read ------------------------------------------------------------------------------------------------

SNAPSHOT = """\
Store NAME
  condition     ready
  created       AGE ago, TIME
  owner         USER
  uuid          UUID
  layout        version 1, fingerprint HEX
  participants  2 alive
  so far        0 recoveries, 0 reaps of dead participants

Space
  quota used        115 KiB of 16 MiB, 1%
  quota free        15.9 MiB
  memory            SIZE: index SIZE, files SIZE, N semaphores SIZE
  /dev/shm          SIZE free of SIZE
  largest free run  SIZE of the memory that is there
  files             3 in 2 directories, at most 5,000
  nodes             5 in use, memory for 256, room for 14,096

Participants
  PID  STATE  SINCE  HOLDS  WAITS  VIEWS  SLOT  COMMAND
  PID  alive  AGE  0  0  0  0  COMMAND
  PID  alive  AGE  1  1  0  1  COMMAND

File locks
  FILE  MODE  STATE  PID  SINCE  THREAD  COMMAND
  /stage/b.csv  shared  held  PID  AGE  PID  COMMAND
  /stage/b.csv  exclusive  waiting  PID  AGE  PID  COMMAND

Mutexes
  all 17 are free and of generation 0

Largest files
  SIZE  CHARGED  PIECES  CHANGED  STATE  FILE
  97.7 KiB  100 KiB  1  AGE ago  closed  /stage/a.bin
  10 KiB  12.1 KiB  1  AGE ago  read  /stage/b.csv
  2.93 KiB  3.12 KiB  1  AGE ago  closed  /note\\x1b[31m.txt

Arenas
  ARENA  SIZE  MEMORY  IN USE TO  TRIMS  SEGMENT
  0  64 MiB  SIZE  116 KiB  0  UUID

Parameters
  max_quota         16 MiB
  max_nodes         5,000
  file_charge       128 B
  backend           generation
  max_participants  256
  default_storage   auto
"""


def test_plain_report(stores: Stores) -> None:
    fs = stores.create(max_nodes=5000)
    fs.mkdir("/stage")
    fs.write_bytes("/stage/a.bin", bytes(100_000))
    fs.write_bytes("/stage/b.csv", bytes(10240))
    fs.write_bytes("/note\x1b[31m.txt", bytes(3000))
    with child("fork", _read_and_wait, fs.name) as reader:
        assert reader.receive() == "reading"
        until(lambda: any(lock.state == "waiting" for lock in look(fs.name).locks or ()), "it waits")
        text = report.plain(inspect.report(look(fs.name)))
    assert normalised(text, fs) == SNAPSHOT


def _read_and_wait(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with fs.open("/stage/b.csv"):
        waiter = threading.Thread(target=fs.open, args=("/stage/b.csv", "wb", 0, 1000.0), daemon=True)
        waiter.start()
        link.send("reading")
        waiter.join()


def normalised(text: str, fs: MemoryFileSystem) -> str:
    """The report without what differs from run to run; tables with two spaces between their columns."""
    with open("/proc/self/cmdline", "rb") as cmdline:
        command = cmdline.read(4096).rstrip(b"\0").replace(b"\0", b" ")[:128].decode("utf-8", "replace")
    text = text.replace(command.rstrip(), "COMMAND").replace(fs.name, "NAME").replace(str(fs.uuid), "UUID")
    size = r"\d[\d.]* [KMGT]?i?B"
    for pattern, word in (
        (r"dmemfs-[0-9a-f]{32}\.a0\.0", "UUID"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"\b\d+ s ago|\bjust now\b", "AGE ago"),
        (r"0x[0-9a-f]+", "HEX"),
        (r"(?<=owner         ).*", "USER"),
        (rf"(?<=memory            ){size}.*", "SIZE: index SIZE, files SIZE, N semaphores SIZE"),
        (rf"(?<=/dev/shm          ){size} free of {size}", "SIZE free of SIZE"),
        (rf"(?<=largest free run  ){size}", "SIZE"),
        (rf"(?<=64 MiB)\s+{size}\s+(?=116 KiB)", "  SIZE  "),
    ):
        text = re.sub(pattern, word, text)
    lines = []
    for line in text.splitlines():
        table = re.match(r"  +(\S+( \S+)*)(   *\S+( \S+)*){3,}$", line)
        short = "  " + re.sub(r"  +", "  ", line.strip()) if table else line
        short = re.sub(r"^  \d+(?=  alive)", "  PID", short)
        short = re.sub(r"(?<=alive  )(\d+ s|now)(?=  )", "AGE", short)
        lines.append(re.sub(r"(?<=held|ting)  \d+  (\d+ s|now)  \d+  ", "  PID  AGE  PID  ", short))
    return "\n".join(lines) + "\n"
