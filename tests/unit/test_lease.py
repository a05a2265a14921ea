"""Leases: what nobody has any more is given back once, by whoever comes next."""

from __future__ import annotations

import pytest

from dmemfs_shm import MemoryFileSystem, MFSStoreBusyError
from dmemfs_shm.store.lease import Lease, Leases


def worked_off(leases: Leases) -> list[int]:
    """The words that are given back now."""
    given: list[int] = []

    def give_back(lease: Lease) -> None:
        given.append(lease.word)
        leases.free.append(lease)

    leases.work_off(give_back)
    return given


def test_a_lease_that_is_returned_leaves_no_note() -> None:
    leases = Leases()
    leases.free.append(leases.add(7))
    lease = leases.free.pop()
    assert lease.word == 7
    leases.free.append(lease)
    del lease
    assert not leases.lost and worked_off(leases) == []
    assert len(leases) == 1 and leases.words() == leases.words_not_lost() == [7]


def test_a_lease_that_is_dropped_is_made_anew_once() -> None:
    leases = Leases()
    first, second = leases.add(7), leases.add(8)
    del first
    assert len(leases.lost) == 1 and leases.words_not_lost() == [8]
    assert worked_off(leases) == [7]
    assert worked_off(leases) == []
    assert [lease.word for lease in leases.free] == [7] and second.word == 8


def test_a_lease_that_is_declared_lost_is_made_anew_though_somebody_has_it() -> None:
    leases = Leases()
    kept = leases.add(7)
    leases.lose(kept)
    assert worked_off(leases) == [7]
    assert leases.free[0] is not kept
    del kept
    assert not leases.lost


def test_what_cannot_be_given_back_stays_lost() -> None:
    """An exception on the way: the next one looks at all of them."""
    leases = Leases()
    for word in range(3):
        leases.add(word)

    def refuse(lease: Lease) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leases.work_off(refuse)
    assert sorted(worked_off(leases)) == [0, 1, 2]
    assert worked_off(leases) == []


def test_notes_do_not_pile_up_while_nothing_can_be_given_back(fs: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many operations come by while a stopped process is in the way."""
    store = fs._store

    def refuse() -> None:
        raise MFSStoreBusyError

    store.dropped.append(None)
    with monkeypatch.context() as patch:
        patch.setattr(store, "mend", refuse)
        for _ in range(3):
            store.work_off()
    assert list(store.dropped) == [None]
    store.work_off()
    assert not store.dropped
