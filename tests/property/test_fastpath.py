"""The fast path does what the general way does, word for word, or nothing.

Each operation of a random sequence is done twice from the same words: first as it comes, then, after all words were put
back, by the general way alone. The store must be the same word by word, and answer the same.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSCorruptStoreError, MFSQuotaExceededError
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.fastpath import FastPath
from dmemfs_shm.store.layout import BUCKETS, JOURNAL, JOURNAL_WORDS, MUTEXES, S_PINS, S_RECORDS, SLOTS_AT, TREE_SEQ

from ..conftest import Stores

SIZES = (0, 1, 256, 300, 3000, 4096, 5000, 9000, 60_000, 65_536, 70_000)
DIRECTORIES = ("", "/d", "/quota")
STEPS = 400


class General:
    """No fast path."""

    def create(self, *_: object) -> None:
        return None

    def put(self, *_: object) -> bool:
        return False

    grow = remove = put


def words(store: Attachment) -> Any:
    """All words of the index but those of the journals, which keep what is over, TREE_SEQ, which counts commits, and what says
    how much of our slot has memory."""
    with open(f"/proc/self/fd/{store.index.fd}", "rb") as file:
        found = np.frombuffer(file.read(), np.uint64).copy()
    found[JOURNAL : JOURNAL + MUTEXES * JOURNAL_WORDS] = 0
    found[TREE_SEQ] &= np.uint64(1)
    found[SLOTS_AT + S_PINS] = found[SLOTS_AT + S_RECORDS] = 0
    return found


def put_back(store: Attachment, before: Any) -> None:
    for word in np.flatnonzero(words(store) != before):
        store.w[int(word)] = int(before[word])


def outcome(operation: Callable[[], object]) -> object:
    try:
        return operation()
    except (OSError, MFSQuotaExceededError) as error:
        return type(error), str(error)


class Twice:
    """A store in which everything is done in both ways."""

    def __init__(self, fs: MemoryFileSystem) -> None:
        assert fs._store is not None
        self.fs, self.store, self.fast = fs, fs._store, fs._store.fast
        self.taken: Counter[str] = Counter()
        for name in ("_create", "_grow", "_replace", "_remove"):
            assert callable(getattr(FastPath, name))

    def do(self, operation: Callable[[], object]) -> None:
        store, caches = self.store, (self.store.names.files, self.store.names.directories, self.store.names.parents)
        before, known = words(store), [dict(cache) for cache in caches]
        answers = []
        for way in (self.fast, General()):
            put_back(store, before)
            for cache, old in zip(caches, known, strict=True):
                cache.clear()
                cache.update(old)
            store.fast = way  # type: ignore[assignment]
            answers.append((outcome(operation), words(store)))
        store.fast = self.fast
        (fast, fast_words), (general, general_words) = answers
        assert fast == general
        different = np.flatnonzero(fast_words != general_words)
        assert not len(different), [(int(word), int(fast_words[word]), int(general_words[word])) for word in different]


@pytest.fixture
def twice(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Twice:
    """Small enough to be compared often, and to be full now and then; the clocks stand."""
    fs = stores.create(max_quota=1 << 20, max_participants=1, max_nodes=90)
    fs.mkdir("/d")
    fs.mkdir("/quota")
    fs.set_quota("/quota", 1 << 18)
    now = time.time_ns()
    for name in ("time_ns", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: now)
    return Twice(fs)


@pytest.mark.parametrize("seed", range(3))
def test_both_ways_leave_the_same_words(twice: Twice, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, choose = twice.fs, random.Random(seed)
    for name in ("_create", "_grow", "_replace", "_remove"):
        real = getattr(FastPath, name)

        def counted(self: FastPath, *args: Any, real: Any = real, name: str = name) -> Any:
            answer = real(self, *args)
            twice.taken[name] += bool(answer)
            return answer

        monkeypatch.setattr(FastPath, name, counted)

    def write(path: str, data: bytes) -> int:
        with fs.open(path, "wb") as handle:
            return handle.write(data)

    for step in range(STEPS):
        path = f"{choose.choice(DIRECTORIES)}/{choose.randrange(16)}{'x' * choose.choice((0, 0, 0, 130))}"
        data = bytes([seed + 1]) * choose.choice(SIZES)
        operation: Callable[[], object] = choose.choice(
            [
                partial(write, path, data),
                partial(fs.write_bytes, path, data),
                partial(fs.write_bytes, path, memoryview(data)),
                partial(fs.remove, path),
                partial(fs.rename, path, path + "r"),
                partial(fs.remove, path + "r"),
            ]
        )
        twice.do(operation)
        if step % 50 == 0:
            assert not fs.check()
    assert not fs.check()
    assert min(twice.taken[name] for name in ("_create", "_grow", "_replace", "_remove")) > 1, twice.taken


def test_a_pinned_file(twice: Twice) -> None:
    """Its bytes stay: neither way may take them."""
    fs = twice.fs
    fs.write_bytes("/pinned", b"a" * 5000)
    with fs.view("/pinned") as view:
        twice.do(lambda: fs.write_bytes("/pinned", b"b" * 5000))
        twice.do(lambda: fs.remove("/pinned"))
        assert bytes(view) == b"a" * 5000
    assert not fs.check()


@pytest.mark.parametrize("buckets", [0, 1 << 40])
def test_a_damaged_hash_table(twice: Twice, buckets: int) -> None:
    """The fast path leaves it to the general way, which says what is wrong."""
    fs, w = twice.fs, twice.store.w
    fs.write_bytes("/f", b"x")
    before, w[BUCKETS] = w[BUCKETS], buckets
    try:
        twice.store.names.files.clear()
        for call in (fs.read_bytes, fs.remove, lambda path: fs.write_bytes(path + "new", b"x")):
            with pytest.raises(MFSCorruptStoreError, match="buckets that have memory"):
                call("/f")
    finally:
        w[BUCKETS] = before
    assert not fs.check()
