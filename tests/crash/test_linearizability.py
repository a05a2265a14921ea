"""Whatever processes do to the same files at once, and whoever is killed: it could have happened one call at a time."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from dmemfs_shm import MemoryFileSystem, filesystem
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.layout import N_RUN, N_RUNS, N_SIZE
from dmemfs_shm.store.namespace import Found

from ..conftest import Stores
from ..figures import HISTORIES
from ..lockstore import named_store
from .harness import SEED, short_slices
from .histories import Recorded, herd

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import model_files
from linearizability import SearchTooLongError, explain, linearize

pytestmark = pytest.mark.crash

#: backend, histories, which of the runs of that length
RUNS = [
    pytest.param("generation", 90, 0, id="generation-a-part"),
    pytest.param("generation", 90, 1, id="generation-another-part"),
    pytest.param("ofd", 20, 0, id="ofd-a-part"),
    *(pytest.param("generation", 250, run, id=f"generation-all-{run}", marks=pytest.mark.slow) for run in range(8)),
    pytest.param("ofd", 200, 0, id="ofd-all", marks=pytest.mark.slow),
]
START = model_files.State()


def findings(recorded: Recorded) -> list[str]:
    """The parts of a history that no order explains."""
    found = []
    for steps in model_files.histories(recorded.calls, recorded.deaths):
        verdict = linearize(steps, START, model_files.apply)
        if verdict.order is None:
            found.append(explain(steps, verdict, START, model_files.apply))
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("backend", "histories", "run"), RUNS)
def test_histories_are_linearizable(backend: str, histories: int, run: int, stores: Stores, record_property) -> None:
    seed = f"{SEED}/{backend}/{run}"
    fs = stores.create(backend=backend, max_quota=64 << 20)
    with short_slices(), herd(fs, seed) as some:
        judged = 0
        while judged < histories:
            recorded = some.history()
            with contextlib.suppress(SearchTooLongError):  # calls that all overlapped: the machine is busy
                found = [] if recorded.disturbed else findings(recorded)
                assert not found, f"seed {seed}, history {recorded.number}:\n" + "\n".join(found)
                judged += not recorded.disturbed
    assert some.kills
    record_property(HISTORIES, judged)


def read_carelessly(store: Attachment, found: Found) -> bytes | None:
    """What `_read_unlocked` would do if it did not look whether somebody is changing the file."""
    w, at = store.w, store.names.at(found[0])
    size, run = w[at + N_SIZE], w[at + N_RUN]
    if not store.names.is_current(found) or w[at + N_RUNS]:
        return None
    segment, offset = store.arenas.locate(run) if run else (None, 0)
    return bytes(segment.mm[offset : offset + size]) if segment else b""


def test_reading_beside_a_writer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test can fail."""
    monkeypatch.setattr(filesystem, "_read_unlocked", read_carelessly)
    with named_store() as name:
        fs = MemoryFileSystem.create(name, max_quota=64 << 20)
        try:
            with short_slices(), herd(fs, str(SEED)) as some:
                assert any(findings(some.history()) for _ in range(60))
        finally:
            fs.close()
