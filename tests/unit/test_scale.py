"""The words that an operation touches do not grow with the number of files."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem

from ..conftest import Stores
from ..crash.harness import WordBuffer, instrument

SMALL, LARGE, LOOKED_AT = 200, 20_000, 100


class Counting(WordBuffer):
    """Counts the words that are read and stored."""

    def __init__(self, words: Any) -> None:
        super().__init__(words, lambda _: None)
        self.count = 0

    def __getitem__(self, key: Any) -> Any:
        self.count += 1
        return self.words[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.count += 1
        self.words[key] = value


def words_of(fs: MemoryFileSystem, files: int, *, many: bool) -> dict[str, float]:
    """The mean number of words that each operation touches on one of so many files, its path not known yet."""
    choose, paths, folder = random.Random(1), [], ""
    for number in range(files):
        if many and number % 100 == 0:
            fs.mkdir(folder := f"/{choose.getrandbits(64):016x}")
        paths.append(f"{folder}/{choose.getrandbits(64):016x}")
        fs.write_bytes(paths[-1], b"")
    store: Any = fs._store
    counting: Any = instrument(store, Counting)
    some = choose.sample(paths, LOOKED_AT)
    operations: dict[str, Callable[[str], object]] = {
        "open": lambda path: fs.open(path).close(),
        "stat": fs.stat,
        "exists": fs.exists,
        "write_bytes": lambda path: fs.write_bytes(path + "x", b"x"),
        "overwrite": lambda path: fs.write_bytes(path + "x", b"xy"),
        "rename": lambda path: fs.rename(path + "x", path + "y"),
        "remove": lambda path: fs.remove(path + "y"),
    }
    found = {}
    for name, operation in operations.items():
        counting.count = 0
        for path in some:
            for cache in (store.names.files, store.names.directories, store.names.parents):
                cache.clear()
            operation(path)
        found[name] = counting.count / LOOKED_AT
    return found


@pytest.mark.parametrize("many", [False, True])
def test_words_touched(stores: Stores, many: bool) -> None:
    """Chains are as long, on average, in a large hash table as in a small one: a fifth more is chance."""
    small = words_of(stores.private(), SMALL, many=many)
    large = words_of(stores.private(max_quota=64 << 20), LARGE, many=many)
    assert {name: large[name] / small[name] for name in small if large[name] > 1.2 * small[name]} == {}
