"""Slots from one tenant to the next: what a dead one held is had again at once, whatever becomes of its successor.

A successor is stopped, or killed, where it has locked the byte of the dead one's slot and not said so yet, where it has
introduced itself, and where it has given back the locks and noted nothing; and a reaper is late where it matters.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSLockTimeoutError
from dmemfs_shm.store import attachment
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.identity import Participants, next_epoch
from dmemfs_shm.store.inspection import inspect
from dmemfs_shm.store.layout import INODE_MUTEXES, NODE_BREAK, NODE_FREE, REAPS
from dmemfs_shm.store.placement import Placement
from dmemfs_shm.store.sweep import Sweep

from ..conftest import Stores
from ..lockstore import BOTH
from ..processes import Child, Link, child, until

STAGES = {
    "has the byte": (Participants, "introduce"),
    "is introduced": (Placement, "fit_for_dead"),
    "has given back locks": (Sweep, "reap"),
}
LATE_S = 0.3  # what a successor that should not wait, and does, is given to go wrong


@pytest.fixture(params=BOTH)
def fs(request: pytest.FixtureRequest, stores: Stores) -> MemoryFileSystem:
    """A named store with either backend."""
    return stores.create(backend=request.param)


def hold(link: Link, name: str, path: str, mode: str) -> None:
    """Have a file open until told; the slot is sent."""
    fs = MemoryFileSystem.attach(name)
    with fs.open(path, mode):
        link.send(fs._attached().slot)
        link.recv()


def stop_and_hold(link: Link, name: str, path: str, stage: tuple[type, str]) -> None:
    """As `hold`, of a new file; at that stage of attaching this process stops itself."""
    owner, method = stage
    function = getattr(owner, method)

    def stops(*args: Any) -> Any:
        setattr(owner, method, function)
        os.kill(os.getpid(), signal.SIGSTOP)
        return function(*args)

    setattr(owner, method, stops)
    hold(link, name, path, "xb")


def kill_holder(fs: MemoryFileSystem, path: str, mode: str) -> int:
    """Somebody dies with the file open; his slot."""
    store: Attachment = fs._attached()
    with child("fork", hold, fs.name, path, mode) as holder:
        slot = int(holder.receive())
        epoch = store.participants.epoch(slot)
        holder.kill()
    until(lambda: store.participants.is_dead(slot, epoch), "it is dead")
    return slot


def wait_until_stopped(running: Child) -> None:
    os.waitid(os.P_PID, running.pid, os.WSTOPPED)


def can_be_locked_at_once(fs: MemoryFileSystem, path: str) -> bool:
    try:
        fs.open(path, "r+b", lock_timeout=0.0, allow_abandoned=True).close()
    except MFSLockTimeoutError:
        return False
    return True


# ---- a successor that does not go on


@pytest.mark.parametrize("mode", ["r+b", "rb"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_successor_keeps_nobody_waiting(fs: MemoryFileSystem, stage: str, mode: str) -> None:
    """Others have what the dead one held; when it goes on, it holds its own and gives it back."""
    fs.write_bytes("/held", b"content")
    slot = kill_holder(fs, "/held", mode)
    with child("fork", stop_and_hold, fs.name, "/mine", STAGES[stage]) as successor:
        wait_until_stopped(successor)
        assert can_be_locked_at_once(fs, "/held")
        with fs.open("/held", "r+b", lock_timeout=0.0, allow_abandoned=True):
            os.kill(successor.pid, signal.SIGCONT)
            assert successor.receive() == slot
            assert not can_be_locked_at_once(fs, "/mine")
            assert fs._attached().reap_dead(None) == 0 and fs._attached().participants.unreaped() == []
            assert not can_be_locked_at_once(fs, "/mine")
            assert [lock.path for lock in fs.locks()] == ["/held", "/mine"]
        assert fs.check() == []
        successor.send("enough")
        successor.receive()
        assert can_be_locked_at_once(fs, "/mine")
    assert fs._attached().w[REAPS] == 1 and fs.check() == []


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_successor_leaves_nothing(fs: MemoryFileSystem, stage: str, reaped: bool) -> None:
    """Neither of its own nor of its predecessor, whether somebody looked before it was killed or not."""
    fs.write_bytes("/held", b"content")
    slot = kill_holder(fs, "/held", "r+b")
    with child("fork", stop_and_hold, fs.name, "/mine", STAGES[stage]) as successor:
        wait_until_stopped(successor)
        assert not reaped or can_be_locked_at_once(fs, "/held")
        successor.kill()
    store: Attachment = fs._attached()
    until(lambda: store.participants.is_dead(slot, store.participants.epoch(slot)), "it is dead")
    assert can_be_locked_at_once(fs, "/held")
    store.reap_dead(None)
    assert store.participants.unreaped() == [] and fs.check() == []
    with child("fork", hold, fs.name, "/mine", "xb") as next_one:
        assert next_one.receive() == slot
        assert not can_be_locked_at_once(fs, "/mine")
        assert fs.check() == []
        next_one.send("enough")
        next_one.receive()
    assert fs.check() == []


# ---- a reaper that is late


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something in the middle of the next reaping: in the node mutex of that number, when the slot was found unclean."""

    def pause(number: int, then: Callable[[], None]) -> None:
        asked, is_unreaped = [0], Participants.is_unreaped

        def asks(self: Participants, slot: int, below: int) -> bool:
            answer = is_unreaped(self, slot, below)
            asked[0] += 1
            if asked[0] == number:
                assert answer
                then()
            return answer

        monkeypatch.setattr(Participants, "is_unreaped", asks)

    return pause


def test_a_late_reaper_takes_nothing_from_the_successor(
    fs: MemoryFileSystem, paused: Callable[[int, Callable[[], None]], None]
) -> None:
    """It found the slot unclean, and is in the mutex of a file that the successor would create in m[0] alone."""
    fs.write_bytes("/held", b"content")
    slot = kill_holder(fs, "/held", "rb")
    store: Attachment = fs._attached()
    node = store.w[NODE_FREE] or store.w[NODE_BREAK]
    with child("fork", stop_and_hold, fs.name, "/mine", STAGES["has given back locks"]) as successor:
        wait_until_stopped(successor)

        def the_successor_goes_on() -> None:
            os.kill(successor.pid, signal.SIGCONT)
            until(lambda: store.participants.is_clean(slot, store.participants.epoch(slot)), "its slot is clean")
            successor.link.poll(LATE_S)

        paused(1 + node % INODE_MUTEXES, the_successor_goes_on)
        assert store.reap_dead(None) == 0
        assert successor.receive() == slot
        assert [hold.node for hold in store.rw.holds()] == [node]
        assert not can_be_locked_at_once(fs, "/mine") and fs.check() == []
        successor.send("enough")
        successor.receive()


def hold_and_look(link: Link, name: str) -> None:
    """Write a file, look at another, until told."""
    fs = MemoryFileSystem.attach(name)
    with fs.open("/held", "r+b", allow_abandoned=True) as handle, fs.view("/seen") as view:
        handle.write(b"new")
        link.send(fs._attached().slot)
        link.recv()
        link.send(bytes(view))


def test_a_reaper_that_is_overtaken_takes_nothing(fs: MemoryFileSystem) -> None:
    """It found out that a tenant is dead, and when it goes about it, others have reaped that one and the slot has another."""
    fs.write_bytes("/held", b"content")
    fs.write_bytes("/seen", b"seen")
    slot, store = kill_holder(fs, "/held", "rb"), fs._attached()
    (judged,) = store.participants.unreaped()
    assert can_be_locked_at_once(fs, "/held")
    with child("fork", hold_and_look, fs.name) as tenant:
        assert tenant.receive() == slot
        assert not store._reap(*judged, None) and not store.sweep.reap(*judged, None)
        assert not can_be_locked_at_once(fs, "/held")
        assert [view.views for view in inspect(fs.name).participants if view.slot == slot] == [1]
        assert fs.check() == []
        tenant.send("enough")
        assert tenant.receive() == b"seen"


def test_a_reaper_that_is_overtaken_notes_nothing(fs: MemoryFileSystem) -> None:
    """What it found out is about tenants before those that others have given back for: the word never falls."""
    fs.write_bytes("/held", b"content")
    slot, store = kill_holder(fs, "/held", "rb"), fs._attached()
    (judged,) = store.participants.unreaped()
    assert can_be_locked_at_once(fs, "/held")
    assert kill_holder(fs, "/held", "rb") == slot
    assert store.reap_dead(None) == 1
    assert not store.sweep.reap(*judged, None)
    assert store.participants.is_clean(slot, next_epoch(store.participants.epoch(slot)))


# ---- each death once


def reap_when_told(link: Link, name: str) -> None:
    store = attachment.attach(name)
    link.send(store.slot)
    link.recv()
    count = store.reap_dead(None)
    link.send((count, [event for event in store.recovery.events if "reaped" in event]))
    link.recv()


def test_a_death_is_logged_once(fs: MemoryFileSystem) -> None:
    """By one of those who look at the same time, and by nobody who looks later."""
    fs.write_bytes("/held", b"content")
    with (
        child("fork", reap_when_told, fs.name) as first,
        child("fork", reap_when_told, fs.name) as second,
        child("fork", reap_when_told, fs.name) as third,
    ):
        survivors = (first, second, third)
        for survivor in survivors:
            survivor.receive()
        kill_holder(fs, "/held", "r+b")
        for survivor in survivors:
            survivor.send("look")
        counts, events = zip(*(survivor.receive() for survivor in survivors), strict=True)
        store: Attachment = fs._attached()
        assert sum(counts) == store.w[REAPS] == 1
        assert len([event for told in events for event in told]) == 1
        assert store.reap_dead(None) == 0 and store.w[REAPS] == 1 and not store.recovery.events
