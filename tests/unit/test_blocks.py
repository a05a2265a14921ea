"""Bins: runs that were just given back, and what becomes of them when memory is short."""

from __future__ import annotations

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.paths import parse
from dmemfs_shm.store.layout import BIN_HEADS, BIN_RUNS_MOST, N_RUN, PAGE

KIB = 1 << 10


def binned(fs: MemoryFileSystem, pages: int) -> int:
    """How many runs are in the bin of that length."""
    return fs._store.w[BIN_HEADS + pages] >> 32  # type: ignore[union-attr]


def run(fs: MemoryFileSystem, path: str) -> int:
    """Where a file's bytes are."""
    store = fs._store
    assert store is not None
    return store.w[store.names.at(store.names.find(parse(path), None)[0]) + N_RUN]


def test_what_was_freed_last_is_used_first(fs: MemoryFileSystem) -> None:
    for name in "abc":
        fs.write_bytes(f"/{name}", bytes(8 * KIB))
    place = run(fs, "/b")
    fs.remove("/a")
    fs.remove("/b")
    assert binned(fs, 2) == 2
    fs.write_bytes("/d", bytes(8 * KIB))
    assert run(fs, "/d") == place
    assert binned(fs, 2) == 1 and not fs.check()
    fs.remove("/d")
    fs.write_bytes("/e", bytes(4 * KIB))  # another length: the bin keeps what it has
    assert binned(fs, 2) == 2 and not fs.check()


def test_a_bin_that_is_full(fs: MemoryFileSystem) -> None:
    """What does not fit in is merged at once."""
    for number in range(BIN_RUNS_MOST + 9):
        fs.write_bytes(f"/{number}", bytes(PAGE))
    for number in range(0, BIN_RUNS_MOST + 9, 2):
        fs.remove(f"/{number}")
    for number in range(1, BIN_RUNS_MOST + 9, 2):
        fs.remove(f"/{number}")
    assert binned(fs, 1) == BIN_RUNS_MOST and not fs.check()


def test_bins_hold_nothing_back(fs: MemoryFileSystem) -> None:
    """A file that fits only into what the bins hold together is given that, and no memory is added."""
    for number in range(BIN_RUNS_MOST):
        fs.write_bytes(f"/{number}", bytes(16 * PAGE))
    backed = fs.info()["backed"]
    for number in range(BIN_RUNS_MOST):
        fs.remove(f"/{number}")
    assert binned(fs, 16) == BIN_RUNS_MOST
    with fs.open("/large", "wb", preallocate=BIN_RUNS_MOST * 16 * PAGE) as handle:
        assert handle._base >= 0  # in one piece
    assert binned(fs, 16) == 0 and fs.info()["backed"] == backed and not fs.check()


def test_trim_empties_the_bins(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/a", bytes(PAGE))
    fs.remove("/a")
    assert binned(fs, 1) == 1
    backed = fs.info()["backed"]
    assert fs.trim() == backed > 0
    assert binned(fs, 1) == 0 and fs.info()["backed"] == 0 and not fs.check()
