"""The ordinary case of what pipelines do all day, each as one straight piece: a file created, filled, replaced, removed.

Guarantees. Each method does what its general counterpart does (`Namespace.create`, `Namespace.put`, `Content.grow`,
`Namespace.remove`), by a transaction that leaves the same words; or it does nothing and says so (None, False), and the
caller goes the general way, which also has all the errors. Nothing here waits for space, memory or another file, and
nothing here repairs: whatever is not as it nearly always is (something half done by the dead, a quota of the directory, a
pin, several runs, a name of more than 128 bytes) is left to the general way. The one exception is a mutex that is not to
be had, as in `Sections.run`.

Why it is another piece of code: the general way plans its words in a dictionary, step by step, which costs 2,500 to 4,000
bytecodes an operation; here the number of words is fixed, so all entries of the journal are packed and stored at once,
before the count that makes them count (13 of them: 0.26 us instead of 0.79). What needs further words (slots of less than
a page, runs that bins do not have) puts them into a plan, whose entries follow. A word that a transaction of fixed length
does not need is SCRATCH.

The order of all stores is that of `Section.commit`: TREE_SEQ odd, entries, count, values with the sequence of the node
first, count 0, TREE_SEQ and the sequence even.
"""

from __future__ import annotations

import re
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

from ..errors import raise_if_damage
from .blocks import NeedMemory
from .content import units_for
from .journal import Plan, Words, commit
from .layout import (
    BIN_HEADS,
    BIN_PAGES_MOST,
    BIN_RUNS_MOST,
    BUCKETS,
    BUCKETS_BACKED,
    CHARGED,
    D_CHILD,
    DESCRIPTOR_WORDS,
    DIRS,
    FILES,
    HELD,
    INODE_MUTEXES,
    KIND_DIR,
    KIND_FILE,
    KIND_FREE,
    KIND_SHIFT,
    LOCK_ABANDONED,
    LOCK_BUSY,
    LOCK_LIGHT,
    LOCK_MORE,
    LOCK_WRITER,
    LOW32,
    N_CAPACITY,
    N_CONTENT,
    N_GENERATION,
    N_MODIFIED,
    N_NAME,
    N_NEXT,
    N_PARENT,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SEQ,
    N_SIBLINGS,
    N_SIZE,
    N_STAMP,
    N_TEXT,
    NAME_BYTES_SHIFT,
    NAMESPACE,
    NODE_BACKED,
    NODE_BREAK,
    NODE_FREE,
    NODE_WORDS,
    PD_BIN,
    PD_SHIFT,
    PD_USED,
    R_SINCE,
    R_THREAD,
    REC_DIRTY,
    REC_NODE_SHIFT,
    REC_WRITER,
    ROOT,
    RUN_UNIT_MASK,
    RUN_UNITS_SHIFT,
    SCRATCH,
    SPACE_FIRST,
    STAMP_MASK,
    TEXT_BYTES,
    TREE_SEQ,
    UNIT,
    UNITS_PER_PAGE,
    USED,
    W_FILE_CHARGE,
    W_NODES_MAX,
    W_QUOTA,
    WATCHED,
    WORD,
)
from .namespace import COPIED_IN_SECTION_MOST, PATHS_CACHED_MOST, Found

if TYPE_CHECKING:
    from .attachment import Attachment
    from .mutex import Mutex

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII).fullmatch
_ENTRIES_4 = struct.Struct("=8Q").pack
_ENTRIES_6 = struct.Struct("=12Q").pack
_ENTRIES_8 = struct.Struct("=16Q").pack
_ENTRIES_13 = struct.Struct("=26Q").pack
_ENTRIES_15 = struct.Struct("=30Q").pack
_NODE = struct.Struct("=12Q").pack  # N_SIZE to N_PIN
_NODE_AT = N_SIZE * WORD
_FILE = KIND_FILE << KIND_SHIFT
_DIRECTORY = KIND_DIR << KIND_SHIFT
_FREED = KIND_FREE << KIND_SHIFT
_PAGE_SHIFT = RUN_UNITS_SHIFT + 4
_WRITING = HELD | REC_WRITER | REC_DIRTY
_CHAIN_MOST = 60
_DEPTH_MOST = 50
_HIGH32 = LOW32 << 32
_NOT_READY = LOCK_BUSY | LOCK_ABANDONED


class FastPath:
    """The ordinary case, for one attached process."""

    __slots__ = (
        "arenas",
        "blocks",
        "buckets_at",
        "descriptors_at",
        "file_charge",
        "mm",
        "mutex",
        "mutexes",
        "names",
        "nodes_at",
        "nodes_max",
        "pages_cap",
        "quota_bytes",
        "rw",
        "seed",
        "store",
        "threads",
        "tree",
        "w",
    )

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w: Words = store.w
        self.mm: Any = store.index.mm
        self.mutexes = store.mutexes
        self.mutex: Mutex = store.mutexes[0]
        self.threads = store.threads
        self.names = store.names
        self.tree = store.tree
        self.blocks = store.blocks
        self.arenas = store.arenas
        self.rw = store.rw
        self.nodes_at = store.layout.nodes_at
        self.buckets_at = store.layout.buckets_at
        self.descriptors_at = store.layout.descriptors_at
        self.pages_cap = store.layout.pages_cap
        self.seed = store.tree.seed
        self.quota_bytes = store.w[W_QUOTA]
        self.file_charge = store.w[W_FILE_CHARGE]
        self.nodes_max = store.w[W_NODES_MAX] or 1 << 62

    # ---- looking up

    def find(self, path: Any) -> Found | None:
        """As `Namespace.find`, of a file; None if it is not found without more ado."""
        if path.__class__ is not str:
            return None
        head, _, tail = path.rpartition("/")
        known = self._directory(head)
        if known is None or not _PLAIN_NAME(tail):
            return None
        found = self._entry(known, tail, _FILE)
        if found is not None:
            files = self.names.files
            if len(files) >= PATHS_CACHED_MOST:
                files.clear()
            files[path] = found
        return found

    def _directory(self, path: str) -> Found | None:
        """Where a directory is: remembered, or looked up, and those above it, and remembered from now on."""
        w, parents = self.w, self.names.parents
        known = parents.get(path)
        if known is not None and self.names.is_current(known):
            return known
        if path:
            if path.count("/") > _DEPTH_MOST:
                return None
            head, slash, tail = path.rpartition("/")
            above = self._directory(head) if slash and _PLAIN_NAME(tail) else None
            known = None if above is None else self._entry(above, tail, _DIRECTORY)
        else:
            known = ROOT, w[self.nodes_at + ROOT * NODE_WORDS + N_GENERATION], w[NAMESPACE]
        if known is None or known[2] & 1:
            return None
        if len(parents) >= PATHS_CACHED_MOST:
            parents.clear()
        parents[path] = known
        return known

    def _entry(self, directory: Found, tail: str, kind: int) -> Found | None:
        """The entry of a directory with that name, if it is of that kind; without a lock.

        A node that is found is looked at as `Tree.look_up` looks at it. However the chain led to it, it has that name in that
        directory then, and the directory has its own while its generation and the namespace word are the same.
        """
        w, nodes_at = self.w, self.nodes_at
        parent, parent_generation, namespace = directory
        name, buckets, backed = tail.encode(), w[BUCKETS], w[NODE_BACKED]
        if len(name) > TEXT_BYTES or not 0 < buckets <= w[BUCKETS_BACKED]:
            return None
        key = zlib.crc32(name, (parent * 0x9E3779B1 ^ self.seed) & LOW32)
        identity = key | len(name) << NAME_BYTES_SHIFT | kind
        bucket = key & (1 << (buckets - 1).bit_length()) - 1
        node = w[self.buckets_at + (bucket if bucket < buckets else bucket ^ 1 << bucket.bit_length() - 1)]
        for _ in range(_CHAIN_MOST):
            if not 0 < node < backed:
                return None
            at = nodes_at + node * NODE_WORDS
            generation, sequence = w[at + N_GENERATION], w[at + N_SEQ]
            if w[at + N_NAME] == identity:
                break
            node = w[at + N_NEXT] & LOW32
        start = (at + N_TEXT) * WORD
        if (
            not generation & 1
            or sequence & 1
            or w[at + N_PARENT] != parent
            or self.mm[start : start + len(name)] != name
            or w[at + N_NAME] != identity
            or w[at + N_SEQ] != sequence
            or w[nodes_at + parent * NODE_WORDS + N_GENERATION] != parent_generation
            or w[NAMESPACE] != namespace
        ):
            return None
        return node, generation, namespace

    # ---- a new file

    def create(
        self, path: Any, record: int, timeout: float | None, source: Any = None, size: int = 0, done: list[int] | None = None
    ) -> Found | None:
        """A new file: empty, and locked exclusively with this record; or (record 0) complete, with the bytes of *source*, and
        its node goes to *done* before it is."""
        store = self.store
        if (
            path.__class__ is not str
            or size > COPIED_IN_SECTION_MOST
            or store.dropped
            or store.unpinned
            or store.recovery.events
        ):
            return None
        head, _, tail = path.rpartition("/")
        known = self.names.parents.get(head) or self._directory(head)
        if known is None or len(tail) > TEXT_BYTES or not _PLAIN_NAME(tail):
            return None
        w, mutex, thread = self.w, self.mutex, self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        now = time.time_ns()
        if record:
            w[record + R_THREAD] = thread.word
            w[record + R_SINCE] = now
        try:
            mutex.acquire(thread, timeout)
            found = self._create(known, tail.encode(), record, source, size, now, done)
            mutex.release(thread)
        except BaseException as error:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            if isinstance(error, NeedMemory):
                return None
            raise_if_damage()
            raise
        if found is not None:
            files = self.names.files
            if len(files) >= PATHS_CACHED_MOST:
                files.clear()
            files[path] = found
            if store.wants_buckets:
                store.grow_buckets()
        return found

    def _create(
        self, known: Found, name: bytes, record: int, source: Any, size: int, now: int, done: list[int] | None
    ) -> Found | None:
        w, nodes_at = self.w, self.nodes_at
        parent, generation, namespace = known
        directory = nodes_at + parent * NODE_WORDS
        names, files, buckets, backed = w[TREE_SEQ], w[FILES], w[BUCKETS], w[NODE_BACKED]
        if w[NAMESPACE] != namespace or names & 1 or w[directory + N_GENERATION] != generation or w[directory + N_PIN]:
            return None
        # A free node: the last one that was freed, or one that never was used.
        takes, node = NODE_FREE, w[NODE_FREE]
        if not node:
            takes, node = NODE_BREAK, w[NODE_BREAK]
        at = nodes_at + node * NODE_WORDS
        count, first = files + w[DIRS], w[directory + D_CHILD]
        if node >= backed or first >= backed or count >= self.nodes_max or not 0 < buckets <= w[BUCKETS_BACKED]:
            return None
        generation, after = w[at + N_GENERATION], w[at + N_NEXT]
        if w[at + N_NAME] != _FREED or generation & 1:
            return None
        # The name must not stand.
        key = zlib.crc32(name, (parent * 0x9E3779B1 ^ self.seed) & LOW32)
        identity = key | len(name) << NAME_BYTES_SHIFT | _FILE
        bucket = key & (1 << (buckets - 1).bit_length()) - 1
        bucket = self.buckets_at + (bucket if bucket < buckets else bucket ^ 1 << bucket.bit_length() - 1)
        chain = other = w[bucket]
        steps = 0
        while other:
            other_at = nodes_at + other * NODE_WORDS
            if other >= backed or steps == _CHAIN_MOST or (w[other_at + N_NAME] ^ identity) & 0xFFFFFFFFFFFF == 0:
                return None
            other = w[other_at + N_NEXT] & LOW32
            steps += 1
        run = capacity = stamp = 0
        plan: dict[int, int] | None = None
        if size:
            units = units_for(size)
            capacity, used, charged = units * UNIT, w[USED], w[CHARGED]
            more = capacity + self.file_charge
            if used + more > self.quota_bytes:
                return None
            run, one, one_is, two, two_is, plan = self._take(units)
            segment, offset = self.arenas.locate(run)
            segment.mm[offset : offset + size] = source
        if done is not None:
            done[0] = node
            stamp = time.monotonic_ns() // 1000 & STAMP_MASK
        sibling = nodes_at + first * NODE_WORDS + N_SIBLINGS if first else SCRATCH
        links, mm = w[sibling], self.mm
        # Nobody looks at a free node, and whoever still does finds the sequence odd.
        w[at + N_SEQ] = sequence = w[at + N_SEQ] + 1 | 1
        w[at] = LOCK_WRITER | LOCK_MORE if record else self.rw.come
        start = at * WORD + _NODE_AT
        mm[start : start + 96 + len(name)] = (
            _NODE(size, 1 if size else 0, now, now, run, 0, capacity, parent, identity, first, stamp, 0) + name
        )
        w[TREE_SEQ] = names + 1
        journal = self.mutex.journal
        start = (journal + 1) * WORD
        entries = _ENTRIES_8(
            takes, node,
            at + N_GENERATION, generation + 2,
            directory + D_CHILD, first,
            sibling, links,
            at + N_NEXT, after,
            bucket, chain,
            FILES, files,
            record or SCRATCH, 0,
        )  # fmt: skip
        if not size:
            mm[start : start + 128] = entries
            w[journal] = 8
        else:
            mm[start : start + 192] = entries + _ENTRIES_4(USED, used, CHARGED, charged, one, w[one], two, w[two])
            w[journal] = 12 if plan is None else self._log(plan, 12)
        w[takes] = after & LOW32 if takes == NODE_FREE else node + 1
        w[at + N_GENERATION] = generation + 1
        w[directory + D_CHILD] = node
        if first:
            w[sibling] = node << 32 | links & LOW32
        w[at + N_NEXT] = chain
        w[bucket] = node
        w[FILES] = files + 1
        if record:
            w[record] = _WRITING | node << REC_NODE_SHIFT
        if size:
            w[USED] = used + more
            w[CHARGED] = charged + 1
            if plan is None:
                w[one] = one_is
                w[two] = two_is
            else:
                for word, value in plan.items():
                    w[word] = value
        w[journal] = 0
        if count >= buckets:
            self._split()
        w[TREE_SEQ] = names + 2
        w[at + N_SEQ] = sequence + 1
        return node, generation + 1, namespace

    def _split(self) -> None:
        """Split a bucket, in a transaction of its own; TREE_SEQ is odd."""
        plan = Plan(self.w)
        self.tree.split(plan)
        if plan:
            commit(self.w, self.mutex.journal, plan)

    # ---- blocks

    def _take(self, units: int) -> tuple[int, int, int, int, int, dict[int, int] | None]:
        """A run of so many units: (run, word, its value, word, its value, None), or with all words in a plan. NeedMemory."""
        pages = units >> 4
        if 0 < pages <= BIN_PAGES_MOST:
            w = self.w
            head = w[BIN_HEADS + pages]
            page = (head & LOW32) - 1
            at = self.descriptors_at + page * DESCRIPTOR_WORDS
            if 0 <= page < self.pages_cap and w[at] == PD_BIN | pages << PD_SHIFT:
                runs = (head >> 32) - 1
                left = runs << 32 | w[at + 1] & LOW32 if runs else 0
                run = units << RUN_UNITS_SHIFT | page * UNITS_PER_PAGE
                return run, BIN_HEADS + pages, left, at, PD_USED | pages << PD_SHIFT, None
        plan = Plan(self.w)
        run = self.blocks.allocate(plan, units)
        return run, SCRATCH, 0, SCRATCH, 0, plan

    def _give(self, run: int, taken: int, left: int) -> tuple[int, int, int, int] | None:
        """A run given back to its bin: (word, its value, word, its value); None if it is none for a bin. *left*: the value that
        the word *taken* is going to have.

        The link in its descriptor is stored plainly: while the run is in use nobody looks at it.
        """
        pages = run >> _PAGE_SHIFT
        if not 0 < pages <= BIN_PAGES_MOST:
            return None
        w, page = self.w, (run & RUN_UNIT_MASK) >> 4
        at, head_at = self.descriptors_at + page * DESCRIPTOR_WORDS, BIN_HEADS + pages
        head = left if head_at == taken else w[head_at]
        if page >= self.pages_cap or w[at] != PD_USED | pages << PD_SHIFT or head >> 32 >= BIN_RUNS_MOST:
            return None
        w[at + 1] = head & LOW32
        return head_at, (head >> 32) + 1 << 32 | page + 1, at, PD_BIN | pages << PD_SHIFT

    def _log(self, plan: dict[int, int], count: int) -> int:
        """Enter the words of a plan behind the first entries; how many entries there are then."""
        w, entry = self.w, self.mutex.journal + 1 + 2 * count
        for word in plan:
            w[entry] = word
            w[entry + 1] = w[word]
            entry += 2
        return count + len(plan)

    # ---- the first blocks of a file

    def grow(self, at: int, size: int, timeout: float | None) -> int:
        """Blocks for *size* bytes for the file at word *at*, which has none; their run, or 0. REQUIRES its exclusive lock."""
        store = self.store
        if store.dropped or store.unpinned or store.recovery.events:
            return 0
        mutex, thread = self.mutex, self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        try:
            mutex.acquire(thread, timeout)
            run = self._grow(at, units_for(size))
            mutex.release(thread)
        except BaseException as error:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            if isinstance(error, NeedMemory):
                return 0
            raise_if_damage()
            raise
        return run

    def _grow(self, at: int, units: int) -> int:
        w = self.w
        used, charged, capacity = w[USED], w[CHARGED], units * UNIT
        more = capacity + self.file_charge
        if (
            used + more > self.quota_bytes
            or w[at + N_CAPACITY]
            or w[at + N_PIN]
            or w[NAMESPACE] & 1
            or w[TREE_SEQ] & 1
            or w[at + N_NAME] >> KIND_SHIFT & 0xFF != KIND_FILE
        ):
            return 0
        run, one, one_is, two, two_is, plan = self._take(units)
        journal = self.mutex.journal
        start = (journal + 1) * WORD
        self.mm[start : start + 96] = _ENTRIES_6(
            at + N_RUN, w[at + N_RUN], at + N_CAPACITY, 0, USED, used, CHARGED, charged, one, w[one], two, w[two]
        )
        w[journal] = 6 if plan is None else self._log(plan, 6)
        w[at + N_RUN] = run
        w[at + N_CAPACITY] = capacity
        w[USED] = used + more
        w[CHARGED] = charged + 1
        if plan is None:
            w[one] = one_is
            w[two] = two_is
        else:
            for word, value in plan.items():
                w[word] = value
        w[journal] = 0
        return run

    # ---- a complete file

    def put(self, path: Any, source: Any, size: int, timeout: float | None) -> bool:
        """A complete file: new, or another content for a closed one."""
        done = [0]
        try:
            return (
                self._swap(path, source, size, timeout, done) or self.create(path, 0, timeout, source, size, done) is not None
            )
        finally:
            if self.w[WATCHED]:  # though an exception came right after the commit
                self.names.announce(done[0])

    def _swap(self, path: Any, source: Any, size: int, timeout: float | None, done: list[int]) -> bool:
        """Another content for a closed file; its node goes to *done* before it is."""
        store = self.store
        found = self.names.files.get(path)
        if found is None or path.__class__ is not str or not 0 < size <= COPIED_IN_SECTION_MOST:
            return False
        if store.dropped or store.unpinned or store.recovery.events:
            return False
        done[0] = found[0]
        mutex, inner, thread = self.mutex, self.mutexes[1 + found[0] % INODE_MUTEXES], self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        entered = (inner,)  # made now: when memory has ended, the handler could not
        try:
            mutex.acquire(thread, timeout)
            inner.acquire(thread, timeout)
            swapped = self._replace(found, source, size)
            inner.release_inner()
            mutex.release(thread)
        except BaseException as error:
            try:
                mutex.abandon(thread, entered)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread, entered)
                raise
            if isinstance(error, NeedMemory):
                return False
            raise_if_damage()
            raise
        return swapped

    def _replace(self, found: Found, source: Any, size: int) -> bool:
        w = self.w
        at = self.nodes_at + found[0] * NODE_WORDS
        old, had, used, charged = w[at + N_RUN], w[at + N_CAPACITY], w[USED], w[CHARGED]
        units = units_for(size)
        capacity, charge = units * UNIT, self.file_charge
        lock = self.rw.settled(at) if w[at] & LOCK_LIGHT else w[at]
        if not self._is_ordinary(at, found) or lock & _NOT_READY or bool(old) != bool(had):
            return False
        if used + capacity + charge > self.quota_bytes:
            return False
        run, one, one_is, two, two_is, plan = self._take(units)
        three = four = SCRATCH
        three_is = four_is = 0
        if old:
            given = None if plan is not None else self._give(old, one, one_is)
            if given is not None:
                three, three_is, four, four_is = given
            else:
                if plan is None:
                    plan = Plan(w)
                    plan[one] = one_is
                    plan[two] = two_is
                    one = two = SCRATCH
                self.blocks.free(plan, old)  # type: ignore[arg-type]
        segment, offset = self.arenas.locate(run)
        segment.mm[offset : offset + size] = source
        journal, odd, content = self.mutex.journal, w[at + N_SEQ] | 1, w[at + N_CONTENT]
        start = (journal + 1) * WORD
        self.mm[start : start + 208] = _ENTRIES_13(
            at + N_SEQ, odd + 1,
            at + N_RUN, old,
            at + N_CAPACITY, had,
            at + N_SIZE, w[at + N_SIZE],
            at + N_CONTENT, content,
            at + N_MODIFIED, w[at + N_MODIFIED],
            at + N_STAMP, w[at + N_STAMP],
            USED, used,
            CHARGED, charged,
            one, w[one],
            two, w[two],
            three, w[three],
            four, w[four],
        )  # fmt: skip
        w[journal] = 13 if plan is None else self._log(plan, 13)
        w[at + N_SEQ] = odd
        w[at + N_RUN] = run
        if had != capacity:
            w[at + N_CAPACITY] = capacity
            w[USED] = used + capacity - had if had else used + capacity + charge
            if not had:
                w[CHARGED] = charged + 1
        w[at + N_SIZE] = size
        w[at + N_CONTENT] = content + 1
        w[at + N_MODIFIED] = time.time_ns()
        w[at + N_STAMP] = time.monotonic_ns() // 1000 & STAMP_MASK
        if plan is None:
            w[one] = one_is
            w[two] = two_is
            if old:
                w[three] = three_is
                w[four] = four_is
        else:
            for word, value in plan.items():
                w[word] = value
        w[journal] = 0
        w[at + N_SEQ] = odd + 1
        return True

    def remove(self, path: Any, timeout: float | None) -> bool:
        """A closed file loses its name and is freed."""
        store = self.store
        found = self.names.files.get(path) or self.find(path)
        if found is None or path.__class__ is not str or store.dropped or store.unpinned or store.recovery.events:
            return False
        mutex, inner, thread = self.mutex, self.mutexes[1 + found[0] % INODE_MUTEXES], self.threads.thread
        if thread.inside:
            thread = self.threads.enter()
        entered = (inner,)  # made now: when memory has ended, the handler could not
        try:
            mutex.acquire(thread, timeout)
            inner.acquire(thread, timeout)
            done = self._remove(found)
            inner.release_inner()
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread, entered)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread, entered)
                raise
            raise_if_damage()
            raise
        if done:
            self.names.files.pop(path, None)
        return done

    def _is_ordinary(self, at: int, found: Found) -> bool:
        """Whether a path still leads to this file, which has one run at most, no pin, no account; nobody waits for space."""
        w = self.w
        return not (
            w[NAMESPACE] != found[2]
            or w[at + N_GENERATION] != found[1]
            or w[TREE_SEQ] & 1
            or w[at + N_PIN]
            or w[at + N_RUNS]
            or w[SPACE_FIRST]
        )

    def _remove(self, found: Found) -> bool:
        w, nodes_at, node = self.w, self.nodes_at, found[0]
        at = nodes_at + node * NODE_WORDS
        next_is = w[at + N_NEXT]
        lock = self.rw.settled(at) if w[at] & LOCK_LIGHT else w[at]
        if not self._is_ordinary(at, found) or lock & LOCK_BUSY or next_is >> 32:
            return False
        identity, parent, links, backed = w[at + N_NAME], w[at + N_PARENT], w[at + N_SIBLINGS], w[NODE_BACKED]
        # Who refers to it: one of its bucket, and its directory or the entry before it there.
        buckets = w[BUCKETS]
        if not 0 < buckets <= w[BUCKETS_BACKED]:
            return False
        bucket = identity & LOW32 & (1 << (buckets - 1).bit_length()) - 1
        bucket = self.buckets_at + (bucket if bucket < buckets else bucket ^ 1 << bucket.bit_length() - 1)
        steps = 0
        while (other := w[bucket] & LOW32) != node:
            if not 0 < other < backed or steps == _CHAIN_MOST:
                return False
            bucket = nodes_at + other * NODE_WORDS + N_NEXT
            steps += 1
        before, after = links >> 32, links & LOW32
        refers = nodes_at + (before * NODE_WORDS + N_SIBLINGS if before else parent * NODE_WORDS + D_CHILD)
        if before >= backed or after >= backed or parent >= backed or w[refers] & LOW32 != node:
            return False
        sibling = nodes_at + after * NODE_WORDS + N_SIBLINGS if after else SCRATCH
        run, had, used, charged = w[at + N_RUN], w[at + N_CAPACITY], w[USED], w[CHARGED]
        plan: dict[int, int] | None = None
        three = four = SCRATCH
        three_is = four_is = 0
        if bool(run) != bool(had):
            return False
        if run:
            given = self._give(run, 0, 0)
            if given is not None:
                three, three_is, four, four_is = given
            else:
                plan = Plan(w)
                self.blocks.free(plan, run)
        journal, odd, generation = self.mutex.journal, w[at + N_SEQ] | 1, found[1]
        names, files, free = w[TREE_SEQ], w[FILES], w[NODE_FREE]
        bucket_is, refers_is, sibling_is = w[bucket], w[refers], w[sibling]
        start = (journal + 1) * WORD
        w[TREE_SEQ] = names + 1
        self.mm[start : start + 240] = _ENTRIES_15(
            at + N_SEQ, odd + 1,
            bucket, bucket_is,
            refers, refers_is,
            sibling, sibling_is,
            at + N_GENERATION, generation,
            at + N_NAME, identity,
            at + N_NEXT, next_is,
            at + N_RUN, run,
            at + N_CAPACITY, had,
            NODE_FREE, free,
            FILES, files,
            USED, used,
            CHARGED, charged,
            three, w[three],
            four, w[four],
        )  # fmt: skip
        w[journal] = 15 if plan is None else self._log(plan, 15)
        w[at + N_SEQ] = odd
        w[bucket] = bucket_is & _HIGH32 | next_is
        w[refers] = refers_is & _HIGH32 | after
        if after:
            w[sibling] = before << 32 | sibling_is & LOW32
        w[at + N_GENERATION] = generation + 1
        w[at + N_NAME] = _FREED
        w[at + N_NEXT] = free
        w[NODE_FREE] = node
        w[FILES] = files - 1
        if run:
            w[at + N_RUN] = 0
            w[at + N_CAPACITY] = 0
            w[USED] = used - had - self.file_charge
            w[CHARGED] = charged - 1
            if plan is None:
                w[three] = three_is
                w[four] = four_is
            else:
                for word, value in plan.items():
                    w[word] = value
        w[journal] = 0
        w[TREE_SEQ] = names + 2
        w[at + N_SEQ] = odd + 1
        return True
