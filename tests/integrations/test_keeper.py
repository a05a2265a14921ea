"""A held store goes with its last holder, whatever way the holders end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSParameterError, MFSStoreGoneError
from dmemfs_shm.integrations import keeper
from dmemfs_shm.integrations.keeper import LB_KEEPER, hold
from dmemfs_shm.store import names
from dmemfs_shm.store.identity import ByteLocks

from ..conftest import Stores
from ..processes import DEADLINE_S, Link, call_in_child, child, until

MIB = 1 << 20


@pytest.fixture
def name(store_name: str) -> str:
    return store_name


def stands(name: str) -> bool:
    return os.path.exists(f"/dev/shm{names.index_name(name)}")


def is_gone(name: str) -> None:
    until(lambda: not stands(name), f"{name} goes")


def keepers(name: str) -> list[int]:
    """The pids of the store's keepers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if keeper.__name__ in words and name in words:
                found.append(int(process.name))
    return found


def hold_on(link: Link, name: str, path: str) -> None:
    """Hold the store, with a file of ours in it, until we are told to release it or killed."""
    held = hold(name, 16 * MIB)
    held.fs.write_bytes(path, b"ours")
    link.send(held.fs.uuid)
    if link.recv() == "release":
        held.release()
        link.send(stands(name))


def hold_and_raise(name: str) -> None:
    hold(name, 16 * MIB)
    raise KeyError(name)


@contextlib.contextmanager
def holders(name: str, count: int) -> Iterator[list[Any]]:
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(child("forkserver", hold_on, name, f"/{k}")) for k in range(count)]
        assert len({each.receive() for each in children}) == 1, "one store for all"
        yield children


def test_the_last_release_destroys_it_before_it_returns(name: str) -> None:
    with holders(name, 3) as children:
        for each in children:
            each.send("release")
            assert each.receive() == (each is not children[-1])
        assert not stands(name)


def test_releasing_twice_is_harmless(name: str, stores: Stores) -> None:
    held = hold(name, 16 * MIB)
    held.release()
    another = stores.create(name)
    held.release()
    assert another.exists("/"), "a store that has its name now is none of its business"


def test_one_process_may_hold_it_twice(name: str) -> None:
    first, second = hold(name, 16 * MIB), hold(name, 16 * MIB)
    first.release()
    assert second.fs.exists("/")
    second.release()
    assert not stands(name)


def test_killed_one_by_one(name: str) -> None:
    with holders(name, 3) as children:
        for each in children[:2]:
            each.kill()
            with contextlib.closing(MemoryFileSystem.attach(name)) as fs:
                assert fs.exists("/0"), "it stands as long as a holder lives, with what the dead published"
        children[-1].kill()
        is_gone(name)


def test_killed_all_at_once(name: str) -> None:
    with holders(name, 3) as children:
        for each in children:
            each.process.kill()
        is_gone(name)
        until(lambda: not keepers(name), "the keeper goes, too")


def test_the_last_is_killed_after_the_others_released_it(name: str) -> None:
    with holders(name, 2) as (first, second):
        first.send("release")
        assert first.receive() is True
        second.kill()
        is_gone(name)


def test_an_exception_ends_the_last(name: str) -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        call_in_child("forkserver", hold_and_raise, name)
    is_gone(name)


def test_others_who_have_it_attached_do_not_keep_it(name: str) -> None:
    with holders(name, 1) as (holder,):
        fs = MemoryFileSystem.attach(name)
        holder.kill()
        is_gone(name)
        with pytest.raises(MFSStoreGoneError):
            fs.exists("/0")
        fs.close()


def fork_and_wait(link: Link, name: str) -> None:
    hold(name, 16 * MIB)
    pid = os.fork()
    if pid == 0:
        os.close(link._connection.fileno())
        signal.pause()
    link.send(pid)
    link.recv()


def test_a_forked_child_does_not_keep_it(name: str) -> None:
    with child("forkserver", fork_and_wait, name) as holder:
        orphan = holder.receive()
        try:
            holder.kill()
            is_gone(name)
            os.kill(orphan, 0)
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_there_is_one_keeper_out_of_reach_of_what_kills_holders(name: str) -> None:
    with holders(name, 3):
        until(lambda: len(keepers(name)) == 1, "who came second finds that there is a keeper")
        (pid,) = keepers(name)
        assert os.getsid(pid) not in (os.getsid(0), 0)
        assert os.getpgid(pid) != os.getpgid(0)
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {os.devnull}


def test_a_killed_keeper_is_replaced_by_the_next_holder(name: str) -> None:
    with holders(name, 1) as (first,):
        (pid,) = keepers(name)
        os.kill(pid, signal.SIGKILL)
        locks = ByteLocks(names.index_name(name))
        until(lambda: locks.is_free(LB_KEEPER), "the keeper is dead")
        locks.close()
        with holders(name, 1) as (second,):
            assert [other for other in keepers(name) if other != pid]
            first.kill()
            second.kill()
            is_gone(name)


def test_without_a_keeper_the_last_release_destroys_it(name: str) -> None:
    with holders(name, 1) as (holder,):
        os.kill(keepers(name)[0], signal.SIGKILL)
        holder.send("release")
        assert holder.receive() is False


def test_what_the_dead_left_without_a_keeper_is_not_taken_over(name: str) -> None:
    with holders(name, 2) as children:
        os.kill(keepers(name)[0], signal.SIGKILL)
        for each in children:
            each.kill()
    assert stands(name), "there was nobody to destroy it"
    held = hold(name, 8 * MIB)  # another quota: it is another store
    assert held.fs.listdir("/") == []
    held.release()
    assert not stands(name)


def test_a_store_that_somebody_made_before_is_taken_over(name: str, stores: Stores) -> None:
    with contextlib.closing(stores.create(name)) as fs:
        fs.write_bytes("/a", b"1")
    with pytest.raises(MFSParameterError):
        hold(name, 8 * MIB)
    assert stands(name)
    held = hold(name, 16 * MIB)
    assert held.fs.read_bytes("/a") == b"1"
    held.release()
    assert not stands(name)


def test_no_keeper_no_store(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(OSError, match="No keeper"):
        hold(name, 16 * MIB)
    assert not stands(name)


def come_and_go(link: Link, name: str, seed: int, rounds: int) -> None:
    """Hold and release again and again; what one sees while one holds it never vanishes."""
    chance = random.Random(seed)
    for number in range(rounds):
        held = hold(name, 16 * MIB)
        path = f"/{os.getpid()}.{number}"
        held.fs.write_bytes(path, b"x")
        for _ in range(chance.randrange(4)):
            assert held.fs.read_bytes(path) == b"x"
        if chance.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        held.release()


def test_many_come_and_go_at_once(name: str) -> None:
    context = multiprocessing.get_context("forkserver")
    crew = [context.Process(target=come_and_go, args=(None, name, seed, 12)) for seed in range(4)]
    for each in crew:
        each.start()
    try:
        for each in crew:
            each.join(DEADLINE_S)
            assert each.exitcode in (0, -signal.SIGKILL)
    finally:
        for each in crew:
            each.kill()
            each.join()
    is_gone(name)
    until(lambda: not keepers(name), "all keepers go")
