"""What goes on in a store, from the differences between two looks: who changes which files, who has them open, who waits.

Guarantees are those of `observer`: nothing is counted for us by those at work, and nothing of theirs is touched. So

  * no change is missed: each end of a writer's hold, and each change of a file's content or name, raises the sequence word
    of its node by two, also when the node becomes another file's. What a file was changed before it was removed between two
    looks is in the sum, and under no path. What had to be begun again, for it needed more memory, counts twice.
  * changes of names are commits: a directory moved, or a tree imported, is one.
  * reading leaves no trace in any word. How long a file is open is estimated from how many looks found it so.

Looks at lock records are cheap (a page a participant) and taken often; the sequence words are read once an interval, as far
as NODES_MOST. What is damaged is left out: `inspect` says it.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from ..errors import MFSCorruptStoreError
from .layout import (
    FREE,
    KIND_FILE,
    KIND_SHIFT,
    N_NAME,
    N_SEQ,
    N_SIZE,
    NODE_WORDS,
    QUEUED,
    R_LOCK,
    REC_NODE_SHIFT,
    REC_STATE,
    RECORD_WORDS,
    RECORDS,
    RECORDS_AT,
    RECORDS_RESERVED,
    S_RECORDS,
    TREE_SEQ,
)
from .observer import Observer
from .tree import REMOVED, UNPUBLISHED

NODES_MOST = 1 << 20
BUSIEST = 20
_CHUNK = 4096  # nodes


class Busy(NamedTuple):
    """A file. changes: since the last figures; held: share of the looks, 0 to 1, in which it was open; waiting: how many
    waited for it, on average."""

    path: str
    changes: int
    held: float
    waiting: float
    size_bytes: int


class Traffic(NamedTuple):
    """What happened in so many seconds. file_changes, files_open, threads_waiting: see the module; the last two are averages.

    is_partial: there are more nodes than are followed.
    """

    seconds: float
    name_changes: int
    file_changes: int
    files_open: float
    threads_waiting: float
    busiest: tuple[Busy, ...]
    is_partial: bool


class Sampler:
    """One store, followed. The name is not looked up again: a store made anew under it needs a sampler of its own."""

    def __init__(self, name: str, uid: int) -> None:
        """FileNotFoundError, PermissionError; MFSCorruptStoreError if it does not even say where things are."""
        self.observer = Observer(name, uid)
        try:
            layout = self.observer.head_layout()
            if layout is None:
                raise self.observer.index.damage(0, "sizes that fit the segment", "others")
            self.observer.use(layout)
            self._sequences: list[bytes] = []
            self._begin(self._read_sequences())
        except BaseException:
            self.observer.close()
            raise

    def close(self) -> None:
        self.observer.close()

    def _begin(self, sequences: list[bytes]) -> None:
        self._since = time.monotonic()
        self._names = self.observer.index[TREE_SEQ]
        self._sequences = sequences
        self._looks = 0
        self._held: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()

    # ---- looks

    def look(self) -> None:
        """See which files are open now, and who waits."""
        self._looks += 1
        held: set[int] = set()
        for slot in self.observer.slots():
            for word in self._lock_words(slot):
                state = word & REC_STATE
                if state == QUEUED:
                    self._waiting[word >> REC_NODE_SHIFT] += 1
                elif state != FREE:
                    held.add(word >> REC_NODE_SHIFT)
        self._held.update(held)

    def _lock_words(self, slot: int) -> list[int]:
        index, at = self.observer.index, self.observer.layout.slot_at(slot)
        try:
            count = min(index[at + S_RECORDS], RECORDS) - RECORDS_RESERVED
            words = index.read(at + RECORDS_AT + RECORDS_RESERVED * RECORD_WORDS, max(0, count) * RECORD_WORDS)
        except MFSCorruptStoreError:
            return []
        return [word for word in words[R_LOCK::RECORD_WORDS].tolist() if word]

    def _read_sequences(self) -> list[bytes]:
        """The sequence word of every node, in chunks."""
        index, layout = self.observer.index, self.observer.layout
        end = min(self.observer.nodes_end(), NODES_MOST)
        found = []
        for first in range(0, end, _CHUNK):
            count = min(_CHUNK, end - first)
            found.append(index.read(layout.node_at(first), count * NODE_WORDS)[N_SEQ::NODE_WORDS].tobytes())
        return found

    # ---- figures

    def traffic(self) -> Traffic:
        """What happened since the last call; the next figures begin here."""
        if not self._looks:
            self.look()
        try:
            sequences = self._read_sequences()
        except MFSCorruptStoreError:
            sequences = self._sequences
        changes = self._changes(sequences)
        self.observer.forget_paths()
        looks = self._looks
        candidates = {*dict(changes.most_common(4 * BUSIEST)), *self._held, *self._waiting}
        rank = sorted(candidates, key=lambda node: (-changes[node], -self._waiting[node], -self._held[node]))
        busy = (self._busy(node, changes[node]) for node in rank[: 8 * BUSIEST])
        traffic = Traffic(
            seconds=max(time.monotonic() - self._since, 1e-9),
            name_changes=(self.observer.index[TREE_SEQ] - self._names) // 2,
            file_changes=changes.total(),
            files_open=self._held.total() / looks,
            threads_waiting=self._waiting.total() / looks,
            busiest=tuple(each for each in busy if each)[:BUSIEST],
            is_partial=self.observer.nodes_end() > NODES_MOST,
        )
        self._begin(sequences)
        return traffic

    def _changes(self, sequences: list[bytes]) -> Counter[int]:
        """How often each node changed."""
        found: Counter[int] = Counter()
        for number, chunk in enumerate(sequences):
            old = self._sequences[number] if number < len(self._sequences) else b""
            if chunk == old:
                continue
            before = memoryview(old.ljust(len(chunk), b"\0")[: len(chunk)]).cast("Q")
            for i, (was, now) in enumerate(zip(before, memoryview(chunk).cast("Q"), strict=True)):
                if now // 2 > was // 2:
                    found[number * _CHUNK + i] = now // 2 - was // 2
        return found

    def _busy(self, node: int, changes: int) -> Busy | None:
        """None for what has no name now."""
        try:
            words, path = self.observer.node(node), self.observer.path(node)
        except MFSCorruptStoreError:
            return None
        if path in (REMOVED, UNPUBLISHED) or words[N_NAME] >> KIND_SHIFT & 0xFF != KIND_FILE:
            return None
        looks = self._looks
        return Busy(path, changes, self._held[node] / looks, self._waiting[node] / looks, words[N_SIZE])
