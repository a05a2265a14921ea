"""Waiting for files, and claiming them: what `MemoryFileSystem.wait_for` and `MemoryFileSystem.claim` do.

A *complete* file has a name, no writer, and is not abandoned; what else there is to know of being told is in
`store.publications`.

A `Claim` is the exclusive lock of a file under our slot, taken without waiting for it. Guarantees:

  * At most one process has a claim of a file at a time; everybody sees the file as open; nobody renames or removes it.
  * `done` removes the file in the transaction that ends the claim: after it the file is gone, before it the claim, or our
    death, gives it back. So of all claims of a file exactly one ends in `done`, or the file is among the dead letters.
  * Attempts are counted before anybody gets to see the claim, by a plain store into the node (a new publication begins at
    0): a death needs nothing to be counted.
  * The oldest publication comes first, as far as it can be had. A process keeps what it knows of in a heap
    (`Candidates`): filled by looking at all files once, and then from what is announced. Each of them is looked at again
    before it is locked: whether it is the file it was (generation), whether it still hangs on the root and matches, and
    the lock is given only if neither that nor any directory's name has changed since. What is found taken is dropped,
    since whoever has it announces it when he gives it back; so is what is gone.
  * A dead claimer's files are given back by whoever looks after the dead next; those who wait do, once a second.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import math
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .errors import MFSClosedError, MFSForkedError, MFSParameterError, MFSStoreBusyError, MFSStoreGoneError, MFSTimeoutError
from .handle import MemoryFileHandle
from .paths import AnyPath, canonical, decode, parse
from .patterns import Pattern
from .patterns import pattern as compiled
from .store.layout import (
    ATTEMPTS_MAX,
    ATTEMPTS_SHIFT,
    KIND_FILE,
    LOCK_ABANDONED,
    LOCK_BUSY,
    LOCK_LIGHT,
    LOCK_WRITER,
    N_GENERATION,
    N_SEQ,
    N_STAMP,
    NAMESPACE,
    REAPS,
    REC_WRITER,
    STAMP_MASK,
    STATE_READY,
)
from .store.lazy import load
from .store.publications import Reader

if TYPE_CHECKING:
    from .filesystem import MemoryFileSystem
    from .store.attachment import Attachment
    from .store.lease import Lease

T = TypeVar("T")

BEAT_S = 0.9
_HELD = LOCK_BUSY & ~LOCK_LIGHT | LOCK_ABANDONED  # whether somebody holds it lightly shows when it is locked
PATTERNS_KEPT_MOST = 16


class Claim:
    """A file that nobody else has, as `MemoryFileSystem.claim` returns it; use it in a `with`.

    path: the file. attempts: how often it was claimed before, since it was published, and not done.
    """

    def __init__(
        self, fs: MemoryFileSystem, store: Attachment, node: int, held: list[Lease], path: str, attempts: int, limit: Limit
    ) -> None:
        self.path = path
        self.attempts = attempts
        self._fs = fs
        self._store = store
        self._node = node
        self._held = held  # whoever takes the lease out ends the claim
        self._limit = limit
        self._handles: list[MemoryFileHandle] = []

    @property
    def active(self) -> bool:
        """Whether the file is still ours: not done, nor given back."""
        return bool(self._held)

    def _check(self) -> None:
        if not self._held:
            raise ValueError(f"The claim of '{self.path}' has ended.")
        if self._store.forked:
            raise MFSForkedError(f"The claim of '{self.path}' belongs to the parent of this process.")
        if self._store.is_left or self._store.state != STATE_READY:
            raise MFSStoreGoneError("The store was destroyed.")

    def open(self, mode: str = "rb") -> MemoryFileHandle:
        """The file, open for reading, without asking for its lock again; closed when the claim ends."""
        self._check()
        if mode != "rb":
            raise io.UnsupportedOperation(f"a claimed file is opened with 'rb', not '{mode}'")
        handle = MemoryFileHandle(self._fs, self._store, self._node, [], self.path, mode)
        self._handles.append(handle)
        return handle

    def read_bytes(self) -> bytes:
        with self.open() as handle:
            return handle.read()

    def view(self) -> Any:
        """As `MemoryFileSystem.view`; the view outlives the claim, and the file."""
        self._check()
        store = self._store
        pin = store.content.lease_pin()
        run, size = store.placement.pin_held(self._node, pin.word, self._fs._timeout)
        return load("dmemfs_shm.view").make_view(store, pin, run, size)

    def done(self) -> None:
        """Remove the file, and end the claim by that. ValueError if it has ended."""
        self._check()
        store = self._store
        store.names.consume(self._held[0].word)
        self._end()

    def release(self) -> None:
        """Give the file back. It was an attempt: past max_attempts the file goes to dead_letter. Idempotent, and silent
        in a forked child and after `MemoryFileSystem.destroy`."""
        store = self._store
        if not self._held or store.forked or store.is_left or store.state != STATE_READY:
            return
        try:
            if self._limit.is_reached(self.attempts + 1):
                self._limit.set_aside(store, self._held[0].word)
        finally:
            self._end()

    def _end(self) -> None:
        """End the hold, if there still is one, and close what was open."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        try:
            lease = self._held.pop()
        except IndexError:  # a signal handler has ended it
            return
        self._fs._claims.pop(lease.word, None)
        self._store.rw.give_back(lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __reduce__(self) -> Any:
        raise TypeError("a claim can't be pickled: it is of the process that made it")

    def __repr__(self) -> str:
        return f"<Claim {self.path!r} {'active' if self._held else 'ended'}>"


class Limit:
    """How many attempts a file has, and where it goes then."""

    def __init__(self, max_attempts: int | None, dead_letter: AnyPath | None) -> None:
        if max_attempts is not None and (isinstance(max_attempts, bool) or not isinstance(max_attempts, int)):
            raise TypeError(f"max_attempts must be int or None, not {type(max_attempts).__name__}")
        if max_attempts is not None and max_attempts < 1:
            raise MFSParameterError(f"max_attempts must be at least 1, not {max_attempts}")
        self.most = max_attempts
        self.directory = None if dead_letter is None else parse(dead_letter)
        self.key = (max_attempts, None if self.directory is None else tuple(self.directory.parts))

    def is_reached(self, attempts: int) -> bool:
        return self.most is not None and attempts >= self.most

    def excludes(self, parts: list[bytes]) -> bool:
        """Whether a path is that of a dead letter."""
        directory = self.directory
        return directory is not None and parts[:-1][: len(directory.parts)] == directory.parts and bool(directory.parts)

    def set_aside(self, store: Attachment, record: int) -> None:
        if self.directory is not None:
            store.names.set_aside(record, self.directory)


class Lookout:
    """Somebody who wants to know of the complete files that match a pattern: of all there are, then of each new one."""

    def __init__(self, store: Attachment, pattern: Pattern, limit: Limit, who: object) -> None:
        self.store = store
        self.w = store.w
        self.pattern = pattern
        self.limit = limit
        self._relieve()  # what the dead have may be the oldest
        store.publications.watch(who)
        self.reader = Reader(store)
        self.beat_at = time.monotonic() + BEAT_S
        self.look()

    def look(self) -> None:
        """Look at all files."""
        self.reader.skip()
        self.reaps = self.w[REAPS]
        entries = self.pattern.entries(self.store, self.store.patience)
        self.see_all((path, entry.node, entry.generation) for path, entry in entries if entry.kind == KIND_FILE)
        self.looked_at = time.monotonic()

    def see_all(self, files: Iterator[tuple[str, int, int]]) -> None:
        """Forget what was seen, and see these files: (path, node, generation)."""
        raise NotImplementedError

    def see(self, path: str, node: int, generation: int, stamp: int) -> None:
        """See one more file."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Learn what was announced since."""
        news = self.reader.news()
        if news is None:
            self.look()
            return
        for node, generation, stamp in news:
            if self.w[self.store.names.at(node) + N_GENERATION] == generation:
                parts = self.store.tree.parts(node)
                if parts and self.wants(parts):
                    self.see(canonical(parts), node, generation, stamp)

    def wants(self, parts: list[bytes]) -> bool:
        return self.pattern.matches([decode(part) for part in parts]) and not self.limit.excludes(parts)

    def beat(self, *, late: bool) -> None:
        """Now and then, and when time is up: look after the dead, and for what they did not announce."""
        now = time.monotonic()
        if late or now >= self.beat_at:
            self.beat_at = now + BEAT_S
            self._relieve()
            if self.w[REAPS] != self.reaps or (late and now >= self.looked_at + BEAT_S):
                self.look()

    def _relieve(self) -> None:
        with contextlib.suppress(MFSStoreBusyError):
            self.store.relieve_locks()


class Sight(Lookout):
    """What `wait_for` sees: paths."""

    def see_all(self, files: Iterator[tuple[str, int, int]]) -> None:
        self.paths: list[str] = []
        for path, node, generation in files:
            self.see(path, node, generation, 0)

    def see(self, path: str, node: int, generation: int, stamp: int) -> None:
        if self._is_complete(node, generation):
            self.paths.append(path)

    def _is_complete(self, node: int, generation: int) -> bool:
        w, at = self.w, self.store.names.at(node)
        while True:
            sequence = w[at + N_SEQ]
            if sequence & 1:  # it is changing this very moment, or somebody died while he changed it
                self.store.transact(lambda section: self.store.names.settle(section, node), self.store.patience)
                continue
            lock, now = w[at], w[at + N_GENERATION]
            if w[at + N_SEQ] == sequence:
                return now == generation and not lock & (LOCK_WRITER | LOCK_ABANDONED)

    def take(self) -> str | None:
        return min(self.paths, default=None)


class Candidates(Lookout):
    """What `claim` sees: files that may be had, the oldest first; of one process, and shared by its threads."""

    heap: list[tuple[int, str, int, int]]  # stamp, path, node, generation

    def see_all(self, files: Iterator[tuple[str, int, int]]) -> None:
        w, at = self.w, self.store.names.at
        heap = [
            (w[at(node) + N_STAMP] & STAMP_MASK, path, node, generation)
            for path, node, generation in files
            if not w[at(node)] & _HELD
        ]
        heapq.heapify(heap)
        self.heap = heap

    def see(self, path: str, node: int, generation: int, stamp: int) -> None:
        heapq.heappush(self.heap, (stamp, path, node, generation))

    def take(self, fs: MemoryFileSystem) -> Claim | None:
        """The oldest that can be had."""
        heap = self.heap
        while heap:
            try:
                candidate = heapq.heappop(heap)
            except IndexError:  # another thread was quicker
                break
            try:
                claim = self._try(fs, *candidate)
            except BaseException:
                heapq.heappush(self.heap, candidate)
                raise
            if claim is not None:
                return claim
        return None

    def _try(self, fs: MemoryFileSystem, stamp: int, path: str, node: int, generation: int) -> Claim | None:
        """Claim it if it is what it was, and is to be had."""
        w, store = self.w, self.store
        at = store.names.at(node)
        if w[at + N_GENERATION] != generation or w[at] & _HELD:
            return None
        word = w[at + N_STAMP]
        if word & STAMP_MASK != stamp:  # published once more since: it is younger now
            heapq.heappush(self.heap, (word & STAMP_MASK, path, node, generation))
            return None
        if self.limit.is_reached(word >> ATTEMPTS_SHIFT) and self.limit.directory is None:
            return None
        while True:
            namespace = w[NAMESPACE]
            if namespace & 1:
                store.sections.run(lambda _: None, store.patience)
                continue
            parts = store.tree.parts(node)
            if parts is None:
                return None
            now = canonical(parts)
            if self.limit.excludes(parts) or (now != path and not self.wants(parts)):
                return None
            claim = self._lock(fs, (node, generation, namespace), now)
            if claim is not None or w[NAMESPACE] == namespace:
                return claim

    def _lock(self, fs: MemoryFileSystem, found: tuple[int, int, int], path: str) -> Claim | None:
        w, rw, node = self.w, self.store.rw, found[0]
        held = [rw.lease()]
        record = held[0].word
        try:
            if not rw.lock(*found, record, REC_WRITER, self.store.patience, waits=False):
                return None
            at = self.store.names.at(node)
            attempts = w[at + N_STAMP] >> ATTEMPTS_SHIFT
            if w[at] & LOCK_ABANDONED:
                return None
            if self.limit.is_reached(attempts):
                self.limit.set_aside(self.store, record)
                return None
            w[at + N_STAMP] = w[at + N_STAMP] & STAMP_MASK | min(attempts + 1, ATTEMPTS_MAX) << ATTEMPTS_SHIFT
            claim = Claim(fs, self.store, node, held, path, attempts, self.limit)
            fs._claims[record] = weakref.ref(claim)
            held = []
            return claim
        finally:
            if held:
                rw.give_back(held.pop())


class Wish:
    """One call of `wait_for` or `claim`: look, and wait, until there is something or the time is up."""

    def __init__(self, fs: MemoryFileSystem, pattern: Pattern, timeout: float | None) -> None:
        self.fs = fs
        self.pattern = pattern
        self.deadline = None if timeout is None else time.monotonic() + timeout

    def rest(self) -> float:
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def come_true(self, store: Attachment, lookout: Lookout, take: Callable[[], T | None]) -> T:
        """What *take* finds. MFSTimeoutError."""
        late = False
        while True:
            lookout.beat(late=late)
            lookout.refresh()
            found = take()
            if found is not None:
                return found
            if late:
                raise MFSTimeoutError(f"No complete file matched '{self.pattern.text}' in time.")
            late = self.rest() <= 0
            if not late:
                self.sleep(store, lookout.reader)

    def sleep(self, store: Attachment, reader: Reader) -> None:
        """Until something is announced. MFSStoreGoneError, MFSClosedError."""
        store.threads.check_wanted()
        try:
            store.publications.sleep(reader, max(0.0, self.rest()))
        except ValueError:
            if not store.is_left:
                raise
        if self.fs._is_closed or store.is_left:
            raise MFSClosedError("The filesystem object was closed.")
        store.check_state()


def wait_for(fs: MemoryFileSystem, pattern: AnyPath, timeout: float | None) -> str:
    """See `MemoryFileSystem.wait_for`."""
    wish = Wish(fs, compiled(pattern), timeout)
    store = fs._attached()
    try:
        sight = Sight(store, wish.pattern, Limit(None, None), wish)
        return wish.come_true(store, sight, sight.take)
    finally:
        if not store.is_left and store.state == STATE_READY:
            store.publications.unwatch(wish)


def claim(
    fs: MemoryFileSystem, pattern: AnyPath, timeout: float | None, max_attempts: int | None, dead_letter: AnyPath | None
) -> Claim:
    """See `MemoryFileSystem.claim`."""
    limit = Limit(max_attempts, dead_letter)
    wish = Wish(fs, compiled(pattern), timeout)
    store = fs._attached()
    candidates = _candidates(store, wish.pattern, limit)
    return wish.come_true(store, candidates, lambda: candidates.take(fs))


def _candidates(store: Attachment, pattern: Pattern, limit: Limit) -> Candidates:
    """What this process knows of the files that match; of a single path it keeps nothing."""
    known, key = store.publications.lookouts, (pattern.text, limit.key)
    found = known.get(key)
    if isinstance(found, Candidates):
        return found
    made = Candidates(store, pattern, limit, "claims")
    if not pattern.is_path:
        while len(known) >= PATTERNS_KEPT_MOST:
            known.pop(next(iter(known)), None)
        known[key] = made
    return made
