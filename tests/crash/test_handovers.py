"""Locks of files are handed over in the order in which they were asked for, and no writer has a file beside anybody."""

from __future__ import annotations

from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.store import rwlock
from dmemfs_shm.store.journal import Plan, commit
from dmemfs_shm.store.layout import (
    HELD,
    LOCK_HEAD_SHIFT,
    LOCK_RECORD_MASK,
    LOCK_TAIL_SHIFT,
    QUEUED,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_PARK_SHIFT,
    REC_STATE,
)

from ..conftest import Stores
from ..figures import HANDOVERS
from ..lockstore import named_store
from .handovers import Outcome, run
from .harness import SEED, short_slices

pytestmark = pytest.mark.crash

#: backend, hand-overs, whether processes are killed meanwhile
RUNS = [
    pytest.param("generation", 6_000, False, id="generation-a-part"),
    pytest.param("generation", 3_000, True, id="generation-a-part-with-kills"),
    pytest.param("ofd", 1_000, True, id="ofd-a-part-with-kills"),
    pytest.param("generation", 70_000, False, id="generation-all", marks=pytest.mark.slow),
    pytest.param("generation", 30_000, True, id="generation-all-with-kills", marks=pytest.mark.slow),
    pytest.param("ofd", 5_000, True, id="ofd-all-with-kills", marks=pytest.mark.slow),
]
ROUND = 10_000  # hand-overs that are recorded before they are judged


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("backend", "handovers", "kills"), RUNS)
def test_first_come_first_served(backend: str, handovers: int, kills: bool, stores: Stores, record_property) -> None:
    judged = dead = rounds = 0
    while judged < handovers:
        fs = stores.create(stores.name(), backend=backend)
        seed = f"{SEED}/{backend}/{rounds}"
        with short_slices():
            outcome = run(fs, seed, min(ROUND, handovers - judged), kills=kills)
        assert outcome.findings == [], f"seed {seed}: {outcome.findings[:20]}"
        judged += outcome.handovers
        dead += outcome.kills
        rounds += 1
    assert not kills or dead
    record_property(HANDOVERS, judged)


# ---- what an error in the engine looks like to the judge


def broken() -> Outcome:
    """The outcome of a short run on a store that may be broken afterwards."""
    with named_store() as name:
        fs = MemoryFileSystem.create(name, max_quota=1 << 20)
        try:
            return run(fs, f"{SEED}", 300, kills=False)
        finally:
            fs.close()


def last_come_first_served(request: Any, park: int, granted: list[int]) -> None:
    """Enqueue a request in front."""
    request._try(granted)
    if request.w[request.record] & REC_STATE == HELD:
        return
    plan, lock, number = Plan(request.w), request.w[request.at], request.locks.number(request.record)
    head, tail = lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK, lock >> LOCK_TAIL_SHIFT
    links = park << REC_PARK_SHIFT | head << REC_NEXT_SHIFT | request.node << REC_NODE_SHIFT
    plan[request.record] = QUEUED | request.kind | links
    plan[request.at] = lock & ~rwlock._QUEUE | number << LOCK_HEAD_SHIFT | (tail or number) << LOCK_TAIL_SHIFT
    commit(request.w, request.mutex.journal, plan)


def test_a_grant_out_of_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwlock._Request, "_enqueue", last_come_first_served)
    assert any("is granted before" in finding for finding in broken().findings)


def test_a_reader_that_passes_who_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwlock, "_EXCLUDES_READERS", rwlock.LOCK_WRITER)
    assert any("which wait" in finding for finding in broken().findings)


def test_a_reader_beside_a_writer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwlock, "_EXCLUDES_READERS", 0)
    findings = broken().findings
    assert any("gets it beside" in finding for finding in findings)
    assert any("overlaps" in finding for finding in findings)
