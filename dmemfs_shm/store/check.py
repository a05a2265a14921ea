"""Every invariant of a store, looked at while all others stand still. Repairs nothing.

`check` enters all mutexes and compares what is recorded with what it counts itself:

    mutexes     generation even (under m[0..16]), journals empty
    locks       the lock word of each node against the records of all slots, the queue in its order
    participants  nothing stands in a slot that is said to be clean of all its tenants
    nodes       every node below the break is exactly one of: named, trash, orphan, draft, pin, run, name, free, or prepared
                by a participant
    names       reachable from the root, in its bucket, parent and list links both ways
    blocks      every page is used by one run, or in one slab, or free, never two; lists, bitmaps and breaks agree
    quota       USED, ORPHANED, CHARGED, FILES, DIRS are the sums
    accounts    each directory quota has what is charged to it; each entry belongs to what its directory belongs to
    queue       those who wait for space, each once, and all that say so
    pins        the count of each pin node against the pin records
    watching    a bit for each slot that wants to know what is published, and no other; no sleeper where no parking semaphore is

Findings are texts that name the word. Damage never makes it raise or loop: each walk is bounded.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..errors import MFSCorruptStoreError
from .blocks import unit_of, units_of
from .identity import next_epoch
from .layout import (
    A_BACKED,
    A_BASE,
    A_BREAK,
    A_PAGES,
    ARENAS,
    ARENAS_MAX,
    BIN_HEADS,
    BIN_PAGES_MOST,
    BIN_RUNS_MOST,
    BUCKETS,
    CHARGED,
    D_DRAFTED,
    DESCRIPTOR_WORDS,
    DIRS,
    DRAFTED,
    DRAFTS,
    FILES,
    FREE,
    GRANTED,
    HELD,
    HELD_LIGHTLY,
    INTENT,
    KIND_DIR,
    KIND_DRAFT,
    KIND_FILE,
    KIND_ORPHAN,
    KIND_SHIFT,
    LOCK_HEAD_SHIFT,
    LOCK_READERS,
    LOCK_RECORD_MASK,
    LOCK_TAIL_SHIFT,
    LOCK_WRITER,
    LOW32,
    MUTEXES,
    N_CAPACITY,
    N_GENERATION,
    N_NAME,
    N_NEXT,
    N_PARENT,
    N_PIN,
    N_RUNS,
    N_SIBLINGS,
    N_SIZE,
    NAMESPACE,
    NODE_BACKED,
    NODE_BREAK,
    NODE_FREE,
    ORPHANED,
    ORPHANS,
    PARKS,
    PD_BIN,
    PD_FREE,
    PD_SHIFT,
    PD_SLAB,
    PD_USED,
    PIN_WORDS,
    PINNED,
    PINS,
    PINS_AT,
    PN_COUNT,
    PN_FILE,
    Q_DIRECTORY,
    Q_USED,
    QUEUED,
    QUOTAS,
    REC_IS_LIGHT,
    REC_NEXT_MASK,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
    RING_WORDS,
    ROOT,
    ROOT_PARENT,
    RUN_CLASSES,
    RUN_HEADS,
    RUN_MAP,
    S_CLEAN,
    S_DRAFTED,
    S_INTENT,
    S_PINS,
    S_RING,
    S_SLEEPERS,
    S_WATCHES,
    SLAB_CLASSES,
    SLAB_HEADS,
    SLAB_MAP,
    SPACE_LAST,
    SW_LINKS,
    TRASH,
    UNIT,
    UNITS_PER_PAGE,
    USED,
    W_FILE_CHARGE,
    WATCHED,
    X_NEXT,
    arena_at,
    generation_at,
    journal_at,
)
from .publications import BITS
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment

TREE = "the tree"


def check(store: Attachment, timeout: float | None) -> list[str]:
    """What is wrong with the store, a text each. MFSStoreBusyError if a mutex is not to be had in *timeout* seconds."""

    def step(section: Section) -> list[str]:
        section.enter(*range(1, MUTEXES))
        return findings(store)

    return store.transact(step, timeout)


def findings(store: Attachment) -> list[str]:
    """As `check`, without entering anything: REQUIRES that the store is at rest."""
    checker = _Checker(store)
    for part in (
        checker.mutexes,
        checker.locks,
        checker.participants,
        checker.queue,
        checker.names,
        checker.without_names,
        checker.accounts,
        checker.free_nodes,
        checker.all_nodes,
        checker.pins,
        checker.quota,
        checker.pages,
        checker.free_runs,
        checker.slabs,
        checker.watching,
    ):
        try:
            part()
        except MFSCorruptStoreError as error:
            checker.found.append(f"{part.__name__}: {error}")
        except (IndexError, ValueError, OverflowError) as error:
            checker.found.append(f"{part.__name__}: a reference leads outside the index ({error})")
    return checker.found


class _Checker:
    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.tree = store.tree
        self.content = store.content
        self.end = min(store.w[NODE_BREAK], store.w[NODE_BACKED])  # of the nodes that were ever used
        self.found: list[str] = []
        self.nodes: dict[int, str] = {}  # node -> what it is
        self.runs: list[tuple[int, str]] = []  # every run in use, and whose
        self.files = self.dirs = self.charged = self.used = self.orphaned = 0
        self.on_account: Counter[int] = Counter()  # account -> bytes charged to it
        self.having: dict[int, int] = {}  # account -> the directory that says that it is its own
        self.pin_nodes: dict[int, int] = {}  # pin node -> the file that it must name

    def say(self, text: str) -> None:
        if len(self.found) < 1000:
            self.found.append(text)

    def expect(self, good: bool, text: str) -> None:
        if not good:
            self.say(text)

    def at(self, node: int) -> int:
        return self.tree.check_node(node, 0)

    def claim(self, node: int, what: str) -> bool:
        """Note what a node is; False if it is something else already."""
        if node in self.nodes:
            self.say(f"node {node} is both {self.nodes[node]} and {what}")
            return False
        self.nodes[node] = what
        return True

    # ---- mutexes and locks

    def mutexes(self) -> None:
        for k in range(MUTEXES):
            self.expect(self.w[generation_at(k)] & 1 == 0, f"mutex {k} is being revoked")
            self.expect(self.w[journal_at(k)] == 0, f"journal {k} is open with {self.w[journal_at(k)]} entries")

    def locks(self) -> None:
        holders: dict[int, list[tuple[int, int]]] = {}
        slots = [s for s in range(self.store.layout.slots) if self.store.participants.has_memory(s)]
        for slot in slots:
            for record in self.store.rw.records(slot):
                word = self.w[record]
                if word & REC_STATE != FREE:
                    holders.setdefault(word >> REC_NODE_SHIFT, []).append((record, word))
        for node, records in holders.items():
            self._lock_word(node, records)
        for node in range(ROOT, self.end):
            if node not in holders and self.w[self.at(node) + N_GENERATION] & 1:
                lock = self.w[self.at(node)]
                self.expect(
                    lock & (LOCK_READERS | LOCK_WRITER) == 0 and lock >> LOCK_HEAD_SHIFT == 0,
                    f"node {node} has lock word {lock:#x} and nobody holds it",
                )

    def participants(self) -> None:
        """Nothing stands in a slot whose tenants are all gone, if everything of theirs is said to have been given back."""
        some = self.store.participants
        for slot in range(self.store.layout.slots):
            if not some.has_memory(slot):
                break
            at, epoch = self.store.layout.slot_at(slot), some.epoch(slot)
            clean = self.w[at + S_CLEAN]
            self.expect(clean <= next_epoch(epoch), f"slot {slot} has epoch {epoch} and is said to be clean below {clean}")
            held = sum(self.w[record] & REC_STATE != FREE for record in self.store.rw.records(slot))
            held += len(self._pins_of(slot)) + bool(self.w[at + S_INTENT]) + bool(self.w[at + S_WATCHES])
            held += len(self.store.space.queued(slot))
            self.expect(clean <= epoch or not held, f"slot {slot} is said to be clean, and {held} things are held there")

    def watching(self) -> None:
        wanted = 0
        for slot in range(self.store.layout.slots):
            if not self.store.participants.has_memory(slot):
                break
            at = self.store.layout.slot_at(slot)
            watches, sleepers, ring = self.w[at + S_WATCHES], self.w[at + S_SLEEPERS], self.w[at + S_RING]
            wanted |= watches << slot % BITS
            self.expect(watches <= 1, f"slot {slot} says {watches} about watching")
            self.expect(sleepers < 1 << PARKS, f"slot {slot} has sleepers {sleepers:#x}")
            self.expect(ring in (0, RING_WORDS), f"the ring of slot {slot} has {ring} words")
        self.expect(self.w[WATCHED] == wanted, f"watched by {self.w[WATCHED]:#x}, found {wanted:#x}")

    def queue(self) -> None:
        """Those who wait for space."""
        waiting = {
            record
            for slot in range(self.store.layout.slots)
            if self.store.participants.has_memory(slot)
            for record in self.store.space.queued(slot)
        }
        chain, before = [], 0
        for record in self.store.space.queue():
            self.expect(self.w[record + SW_LINKS] >> 32 == before, f"the queue for space is broken at word {record}")
            chain.append(record)
            before = record
        same = set(chain) == waiting and len(chain) == len(waiting)
        self.expect(same, f"queue for space {chain}, waiting {sorted(waiting)}")
        self.expect(self.w[SPACE_LAST] == before, f"the queue for space ends with {before}, not {self.w[SPACE_LAST]}")

    def _lock_word(self, node: int, records: list[tuple[int, int]]) -> None:
        lock = self.w[self.at(node)]
        counted = [word for _, word in records if word & REC_IS_LIGHT != HELD_LIGHTLY]
        held = [word for word in counted if word & REC_STATE in (GRANTED, HELD)]
        writers = sum(1 for word in held if word & REC_WRITER)
        readers = len(held) - writers
        self.expect(writers <= 1 and not (writers and readers), f"node {node} is held by {writers} writers, {readers} readers")
        self.expect(lock & LOCK_READERS == readers, f"node {node} has {lock & LOCK_READERS} readers recorded, {readers} found")
        self.expect(bool(lock & LOCK_WRITER) == bool(writers), f"node {node}: writer recorded and found differ")
        queued = {self.store.rw.number(record) for record, word in records if word & REC_STATE == QUEUED}
        chain: list[int] = []
        number = lock >> LOCK_HEAD_SHIFT & LOCK_RECORD_MASK
        while number and len(chain) <= len(queued) and number not in chain:
            chain.append(number)
            number = self.w[self.store.layout.record_at(number)] >> REC_NEXT_SHIFT & REC_NEXT_MASK
        self.expect(set(chain) == queued and len(chain) == len(queued), f"node {node}: queue {chain}, waiting {sorted(queued)}")
        self.expect(lock >> LOCK_TAIL_SHIFT == (chain[-1] if chain else 0), f"node {node}: the queue's tail is wrong")

    # ---- nodes

    def names(self) -> None:
        self.expect(self.w[self.at(ROOT) + N_PARENT] == ROOT_PARENT, "the root is in a directory")
        self._subtree(ROOT, TREE)

    def _subtree(self, top: int, what: str) -> None:
        stack = [top]
        self.claim(top, what)
        while stack:
            node = stack.pop()
            self.dirs += 1
            at = self.at(node)
            self.expect(self.tree.kind(node) == KIND_DIR, f"node {node} in {what} is no directory")
            self.expect(self.w[at + N_GENERATION] & 1 == 1, f"directory {node} has the generation of a free node")
            self.expect(self.w[at + N_PIN] & LOW32 == 0, f"directory {node} has a pin")
            account = self.w[at + N_PIN] >> 32
            if self.tree.kind(node) == KIND_DIR and (own := self.store.content.accounts.own(node)):
                self.having[own] = node
            before = 0
            for child in self.tree.children(node):
                if self._entry(child, node, before, what):
                    self._belonging(child, account, what)
                    if self.tree.kind(child) == KIND_DIR:
                        stack.append(child)
                    else:
                        self._file(child)
                before = child

    def _belonging(self, node: int, account: int, what: str) -> None:
        """An entry belongs to what its directory belongs to. In an import's tree a directory may picture one of its own."""
        theirs, is_directory = self.w[self.at(node) + N_PIN] >> 32, self.tree.kind(node) == KIND_DIR
        if theirs != account and not (is_directory and (what != TREE or self.store.content.accounts.own(node))):
            self.say(f"node {node} is of account {theirs}, its directory of {account}")

    def _entry(self, node: int, parent: int, before: int, what: str) -> bool:
        if not self.claim(node, what):
            return False
        at = self.at(node)
        kind = self.tree.kind(node)
        if kind not in (KIND_FILE, KIND_DIR):
            self.say(f"node {node} in {what} has kind {kind}")
            return False
        name = self.tree.name(at)
        self.expect(self.w[at + N_PARENT] == parent, f"node {node} is in directory {parent} and says {self.w[at + N_PARENT]}")
        self.expect(self.w[at + N_SIBLINGS] >> 32 == before, f"node {node}: the list of directory {parent} is broken")
        self.expect(self.tree.hash(parent, name) == self.w[at + N_NAME] & LOW32, f"node {node}: hash and name differ")
        self.expect(self.tree.find(parent, name) == node, f"node {node} is not in its bucket, or another one has its name")
        self.expect(self.w[at + N_GENERATION] & 1 == 1, f"node {node} has the generation of a free node")
        rest = self.w[at + N_NEXT] >> 32
        if rest:
            self.claim(rest, "the rest of a name")
        return True

    def _file(self, node: int) -> None:
        self.files += 1
        at = self.at(node)
        capacity = self._content(node, f"file {node}")
        self.expect(self.w[at + N_SIZE] <= capacity, f"file {node} has {self.w[at + N_SIZE]} bytes in blocks for {capacity}")
        pin = self.w[at + N_PIN] & LOW32
        if pin:
            self.claim(pin, "a pin")
            self.pin_nodes[pin] = node

    def _content(self, node: int, what: str, *, charged: bool = True) -> int:
        at = self.at(node)
        runs = self.content.runs(self.w, at)
        size = sum(units_of(run) for run in runs) * UNIT
        self.runs += [(run, what) for run in runs]
        chain, steps = self.w[at + N_RUNS] & LOW32, 0
        while chain and steps < 1 << 24:
            self.claim(chain, "runs")
            chain = self.w[self.at(chain) + X_NEXT]
            steps += 1
        if runs:
            self.expect(self.w[at + N_RUNS] >> 32 == len(runs) - 1, f"{what}: the number of its runs is wrong")
        capacity = self.w[at + N_CAPACITY]
        self.expect(capacity == size or (not charged and capacity == 0), f"{what} is charged {capacity}, its runs have {size}")
        if capacity:
            self.used += capacity + self.w[W_FILE_CHARGE]
            if account := self.w[at + N_PIN] >> 32:
                self.on_account[account] += capacity + self.w[W_FILE_CHARGE]
            self.charged += 1
        return capacity

    def without_names(self) -> None:
        self._nameless(ORPHANS, KIND_ORPHAN, "orphan")
        self._nameless(DRAFTS, KIND_DRAFT, "draft")
        for node in self.content.ring(PINNED):
            self.claim(node, "orphaned content")
            before = self.used
            self._content(node, f"content {node}", charged=False)
            self.orphaned += self.used - before
            self.pin_nodes[node] = 0
        top, steps, drafted = self.w[TRASH], 0, 0
        while top and steps <= self.end:
            count = self._count(top, "the trash")
            drafted += count if self.w[self.at(top) + D_DRAFTED] else 0
            top = self.w[self.at(top) + N_SIBLINGS] & LOW32
            steps += 1
        if self.w[INTENT]:
            self.expect(self.w[NAMESPACE] & 1 == 1, "an import is being published and the namespace word is even")
            self._subtree(self.w[INTENT], "an import that is being published")
        for slot in range(self.store.layout.slots):
            if self.store.participants.has_memory(slot):
                drafted += self._draft(slot)
        self.expect(
            self.w[DRAFTED] == drafted, f"{self.w[DRAFTED]:#x} files and directories being prepared, {drafted:#x} found"
        )

    def _draft(self, slot: int) -> int:
        """What a participant is preparing: how many files and directories, as in S_DRAFTED."""
        at = self.store.layout.slot_at(slot)
        top = self.w[at + S_INTENT]
        count = self._count(top, f"a draft of slot {slot}") if top else 0
        self.expect(self.w[at + S_DRAFTED] == count, f"slot {slot} prepares {self.w[at + S_DRAFTED]:#x}, {count:#x} found")
        return count

    def _count(self, top: int, what: str) -> int:
        """Look at a tree; how many files and directories it has, as in DRAFTED."""
        files, dirs = self.files, self.dirs
        self._subtree(top, what)
        return self.files - files << 32 | self.dirs - dirs

    def _nameless(self, ring: int, kind: int, what: str) -> None:
        for node in self.content.ring(ring):
            self.claim(node, what)
            self.expect(self.tree.kind(node) == kind, f"{what} {node} has kind {self.tree.kind(node)}")
            before = self.used
            self._content(node, f"{what} {node}")
            self.orphaned += self.used - before
            pin = self.w[self.at(node) + N_PIN] & LOW32
            if pin:
                self.claim(pin, "a pin")
                self.pin_nodes[pin] = node

    def free_nodes(self) -> None:
        node, steps = self.w[NODE_FREE], 0
        while node and steps <= self.end:
            at = self.at(node)
            if not self.claim(node, "free"):
                break
            self.expect(self.w[at + N_GENERATION] & 1 == 0, f"free node {node} has the generation of one in use")
            node = self.w[at + N_NEXT] & LOW32
            steps += 1

    def all_nodes(self) -> None:
        for node in range(ROOT, self.end):
            if node not in self.nodes:
                kind = self.w[self.at(node) + N_NAME] >> KIND_SHIFT & 0xFF
                self.say(f"node {node} (kind {kind}) is neither reachable nor free")
        backed = self.w[NODE_BACKED]
        self.expect(self.w[NODE_BREAK] <= backed, f"{self.w[NODE_BREAK]} nodes in use, {backed} have memory")
        for node in self.nodes:
            self.expect(node < self.w[NODE_BREAK], f"node {node} lies beyond the break")
        self.expect(self.w[FILES] == self.files, f"{self.w[FILES]} files recorded, {self.files} found")
        self.expect(self.w[DIRS] == self.dirs, f"{self.w[DIRS]} directories recorded, {self.dirs} found")
        names = self.files + self.dirs
        self.expect(0 < self.w[BUCKETS] <= max(1, self.store.layout.nodes_cap), f"{self.w[BUCKETS]} buckets for {names} names")

    def _pins_of(self, slot: int) -> list[int]:
        """The pin node of each pin of a slot that is in use."""
        at = self.store.layout.slot_at(slot)
        backed = min(self.w[at + S_PINS], PINS)
        pins = range(at + PINS_AT, at + PINS_AT + backed * PIN_WORDS, PIN_WORDS)
        return [self.w[pin] for pin in pins if self.w[pin]]

    def pins(self) -> None:
        counts: Counter[int] = Counter()
        for slot in range(self.store.layout.slots):
            if not self.store.participants.has_memory(slot):
                break
            counts.update(self._pins_of(slot))
        for node, file in self.pin_nodes.items():
            at = self.at(node)
            self.expect(
                self.w[at + PN_COUNT] == counts[node], f"content {node}: {self.w[at + PN_COUNT]} pins, {counts[node]} found"
            )
            self.expect(self.w[at + PN_FILE] == file, f"content {node} names file {self.w[at + PN_FILE]}, not {file}")
        for node in counts:
            self.expect(node in self.pin_nodes, f"a pin record names node {node}, which is no pin")

    def quota(self) -> None:
        for word, what, counted in (
            (USED, "bytes used", self.used),
            (ORPHANED, "bytes orphaned", self.orphaned),
            (CHARGED, "contents charged", self.charged),
        ):
            self.expect(self.w[word] == counted, f"{self.w[word]} {what} recorded, {counted} found")
        self.expect(self.w[USED] <= self.store.quota_bytes, f"{self.w[USED]} bytes used of {self.store.quota_bytes}")

    def accounts(self) -> None:
        for account in self.content.ring(QUOTAS):
            self.claim(account, "an account")
            at = self.content.accounts.check(account, QUOTAS)
            used, directory = self.w[at + Q_USED], self.w[at + Q_DIRECTORY]
            counted, having = self.on_account.pop(account, 0), self.having.get(account, 0)
            self.expect(used == counted, f"{used} bytes on account {account} recorded, {counted} found")
            self.expect(directory == having, f"account {account} is of directory {directory}, and {having} has it")
        for account in self.on_account:
            self.say(f"{self.on_account[account]} bytes are charged to account {account}, which is none")

    # ---- pages

    def _descriptor(self, page: int) -> int:
        return self.w[self.store.layout.descriptors_at + page * DESCRIPTOR_WORDS]

    def pages(self) -> None:
        """Each run in use is marked as such, and no two share a unit."""
        self.slots: dict[int, int] = {}  # slab page -> used slots by the files
        self.taken: dict[int, int] = {}  # first page -> pages of each run in use
        for run, what in self.runs:
            page, slot = divmod(unit_of(run), UNITS_PER_PAGE)
            units = units_of(run)
            if units % UNITS_PER_PAGE == 0 and units and not slot:
                self._pages_used(page, units // UNITS_PER_PAGE, what)
            else:
                mask = (1 << units) - 1 << slot
                self.expect(slot + units <= UNITS_PER_PAGE, f"{what}: a small run crosses a page")
                self.expect(self.slots.get(page, 0) & mask == 0, f"{what}: slots {mask:#x} of page {page} are used twice")
                self.slots[page] = self.slots.get(page, 0) | mask
        for page, used in self.slots.items():
            word = self._descriptor(page)
            self.expect(word == PD_SLAB | used << PD_SHIFT, f"slab page {page} is marked {word:#x}, used {used:#x}")
            self.taken.setdefault(page, 1)

    def _pages_used(self, page: int, pages: int, what: str) -> None:
        word = self._descriptor(page)
        self.expect(word == PD_USED | pages << PD_SHIFT, f"{what}: its run of {pages} pages at {page} is marked {word:#x}")
        self.expect(page not in self.taken, f"{what}: page {page} is used twice")
        self.taken[page] = pages

    def free_runs(self) -> None:
        """Below each break, used and free runs lie side by side without gap or overlap."""
        free: dict[int, int] = {}
        for size_class in range(RUN_CLASSES):
            page, before = self.w[RUN_HEADS + size_class], 0
            self.expect(
                bool(page) == bool(self.w[RUN_MAP] >> size_class & 1), f"the bitmap of free runs is wrong in {size_class}"
            )
            while page and page - 1 not in free:
                word = self._descriptor(page - 1)
                links = self.w[self.store.layout.descriptors_at + (page - 1) * DESCRIPTOR_WORDS + 1]
                length = word >> PD_SHIFT
                self.expect(
                    word & 0xFF == PD_FREE and length.bit_length() - 1 == size_class,
                    f"free run at page {page - 1} in list {size_class} is marked {word:#x}",
                )
                self.expect(links >> 32 == before, f"free run at page {page - 1}: the list is broken")
                free[page - 1] = length
                before, page = page, links & LOW32
        self._bins(free)
        everything = dict(free)
        for page, pages in self.taken.items():
            self.expect(page not in free, f"page {page} is both free and used")
            everything[page] = pages
        for arena in range(min(self.w[ARENAS], ARENAS_MAX)):
            self._arena(arena, everything)
        for page in everything:
            self.say(f"a run begins at page {page}, in no arena")

    def _bins(self, free: dict[int, int]) -> None:
        for pages in range(1, BIN_PAGES_MOST + 1):
            head, found = self.w[BIN_HEADS + pages], 0
            page = head & LOW32
            while page and page - 1 not in free:
                word = self._descriptor(page - 1)
                self.expect(word == PD_BIN | pages << PD_SHIFT, f"page {page - 1} in the bin of {pages} is marked {word:#x}")
                free[page - 1] = pages
                found += 1
                page = self.w[self.store.layout.descriptors_at + (page - 1) * DESCRIPTOR_WORDS + 1] & LOW32
            self.expect(not page and found == head >> 32 <= BIN_RUNS_MOST, f"the bin of {pages} has {found} runs: {head:#x}")

    def _arena(self, arena: int, everything: dict[int, int]) -> None:
        at = arena_at(arena)
        base, end = self.w[at + A_BASE], self.w[at + A_BASE] + self.w[at + A_BREAK]
        sizes = self.w[at + A_BREAK], self.w[at + A_BACKED], self.w[at + A_PAGES]
        self.expect(sizes[0] <= sizes[1] <= sizes[2], f"arena {arena}: break, memory and size are {sizes}")
        page = base
        while page < end:
            pages = everything.pop(page, 0)
            if not pages:
                self.say(f"page {page} of arena {arena} is neither used nor free")
                page = min((p for p in everything if page < p < end), default=end)
                continue
            page += pages
        self.expect(page == end, f"arena {arena}: the last run passes the break")

    def slabs(self) -> None:
        listed: set[int] = set()
        for longest in range(1, SLAB_CLASSES):
            page, before = self.w[SLAB_HEADS + longest], 0
            self.expect(bool(page) == bool(self.w[SLAB_MAP] >> longest & 1), f"the bitmap of slabs is wrong in {longest}")
            while page and page - 1 not in listed:
                links = self.w[self.store.layout.descriptors_at + (page - 1) * DESCRIPTOR_WORDS + 1]
                self.expect(links >> 32 == before, f"slab page {page - 1}: the list is broken")
                self.expect(page - 1 in self.slots, f"slab page {page - 1} is in a list and no file uses it")
                listed.add(page - 1)
                before, page = page, links & LOW32
        for page, used in self.slots.items():
            self.expect((page in listed) == (used != (1 << UNITS_PER_PAGE) - 1), f"slab page {page}: listed and used {used:#x}")
