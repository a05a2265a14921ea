"""What files consist of: runs of blocks, their charge, and pins.

Guarantees. A file's capacity is the bytes of its runs, and what the quota is charged for it (with the per-file charge
while it is not 0): used == sum of all capacities and charges, at any moment. Blocks are allocated and attached in one
transaction, so none is lost. The bytes that a view looks at never change and never move.

A view pins the *content* of a file: a pin node hangs on the file and counts the pins, and each participant keeps a pin
record for each of its own, so that those of the dead can be given back. When the file is removed, replaced, or about to
be changed, the content is divorced from it: the pin node takes the runs and their charge and stays until its last pin
is gone (`orphaned`).

Beside the quota of the store there may be one of a directory, on whose account the charge is booked, too (see `accounts`).
The account stands in the node that has the blocks, and goes with them. `charge` and `assign` are the only places where the
figures of either quota change.

A *stash* is a pin node that never had a file: blocks that one participant is filling, reaped with it. Data that does not
fit into one section (a copy, a large write_bytes, moving a file into one piece) is written into a stash first and then
swapped in.

Runs beyond the first stand in a chain of run nodes, the newest first, so that appending touches one node.

Steps below take a `Section`; REQUIRES m[0].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MFSCorruptStoreError, MFSQuotaExceededError, MFSTooManyHandlesError
from .accounts import Accounts
from .blocks import Blocks, units_of
from .journal import Plan, Words
from .layout import (
    CHARGED,
    DRAFTS,
    KIND_DRAFT,
    KIND_FILE,
    KIND_ORPHAN,
    KIND_PIN,
    KIND_QUOTA,
    KIND_RUNS,
    KIND_SHIFT,
    LOW32,
    N_CAPACITY,
    N_NAME,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SIBLINGS,
    N_SIZE,
    NODE_BACKED,
    NODE_WORDS,
    ORPHANED,
    ORPHANS,
    PAGE,
    PIN_WORDS,
    PINNED,
    PINS,
    PINS_AT,
    PN_COUNT,
    PN_FILE,
    QUOTAS,
    S_PINS,
    UNIT,
    UNITS_PER_PAGE,
    USED,
    W_FILE_CHARGE,
    W_QUOTA,
    WORD,
    X_COUNT,
    X_NEXT,
    X_RUNS,
    X_RUNS_MAX,
)
from .lease import Lease, Leases
from .section import Section
from .tree import Tree

if TYPE_CHECKING:
    from .attachment import Attachment

RUNS_A_TRANSACTION = 8
RINGS = {ORPHANS: KIND_ORPHAN, DRAFTS: KIND_DRAFT, PINNED: KIND_PIN, QUOTAS: KIND_QUOTA}  # what is in each
MOVED_BYTES_MOST = 64 << 10  # what is copied inside m[0] to keep a small file in one run: about 10 us
_PINS_A_PAGE = PAGE // (PIN_WORDS * WORD)


def units_for(size_bytes: int) -> int:
    """Units that a file of that size is charged: whole units below a page, whole pages from there on."""
    if size_bytes < PAGE:
        return -(-size_bytes // UNIT)
    return -(-size_bytes // PAGE) * UNITS_PER_PAGE


class Content:
    """The blocks of the store's files."""

    def __init__(self, store: Attachment, tree: Tree, blocks: Blocks) -> None:
        self.store = store
        self.tree = tree
        self.blocks = blocks
        self.w: Words = store.w
        self.nodes_at = store.layout.nodes_at
        self.quota_bytes = store.w[W_QUOTA]
        self.file_charge = store.w[W_FILE_CHARGE]
        self.leases = Leases()
        self.accounts = Accounts(self)

    def at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    # ---- charge

    def charge(self, section: Section, at: int, capacity: int) -> None:
        """Set a node's capacity and charge the difference. MFSQuotaExceededError before anything is planned."""
        plan = section.plan
        had = plan[at + N_CAPACITY]
        used = plan[USED]
        account = plan[at + N_PIN] >> 32
        more = capacity - had
        if not had and capacity:
            more += self.file_charge
        elif had and not capacity:
            more -= self.file_charge
        if more > 0 and (account or used + more > self.quota_bytes):
            self._require(plan, account, more, self.charged(capacity))
        plan[at + N_CAPACITY] = capacity
        plan[USED] = used + more
        if bool(had) != bool(capacity):
            plan[CHARGED] = plan[CHARGED] + (1 if capacity else -1)
        if account:
            self.accounts.book(section, account, more)
        if more < 0:
            section.frees = True

    def assign(self, section: Section, at: int, account: int) -> None:
        """Book what a node is charged on another account, 0 for none. MFSDirectoryQuotaError before anything is planned."""
        plan = section.plan
        before, charge = plan[at + N_PIN] >> 32, self.charged(plan[at + N_CAPACITY])
        if account == before:
            return
        if account and charge:
            self.accounts.require(plan, account, charge)
        plan[at + N_PIN] = plan[at + N_PIN] & LOW32 | account << 32
        if account:
            self.accounts.book(section, account, charge)
        if before:
            self.accounts.book(section, before, -charge)
            section.frees = True

    def require(self, plan: Plan, at: int, capacity: int) -> None:
        """MFSQuotaExceededError unless content of that capacity can be charged beside all that is, to that node's account."""
        charge = self.charged(capacity)
        self._require(plan, plan[at + N_PIN] >> 32, charge, charge)

    def require_charge(self, section: Section, account: int, charge: int) -> None:
        """MFSQuotaExceededError unless so many bytes can be charged beside all that is."""
        self._require(section.plan, account, charge, charge)

    def _require(self, plan: Plan, account: int, more: int, whole: int) -> None:
        """*whole*: what the content is charged then, so that no freeing by others helps if that is more than the quota."""
        if account and more:
            self.accounts.require(plan, account, more, whole)
        free = self.quota_bytes - plan[USED]
        if more > free:
            error = MFSQuotaExceededError(requested=more, available=free)
            error._account, error._hopeless = account, whole > self.quota_bytes
            raise error

    def _charge_nameless(self, section: Section, at: int, capacity: int) -> None:
        """`charge`, of a file that may have no name: what no name leads to is counted."""
        plan = section.plan
        had = plan[at + N_CAPACITY]
        self.charge(section, at, capacity)
        if plan[at + N_NAME] >> KIND_SHIFT != KIND_FILE:
            plan[ORPHANED] = plan[ORPHANED] + self.charged(capacity) - self.charged(had)

    def charged(self, capacity: int) -> int:
        return capacity + self.file_charge if capacity else 0

    # ---- runs

    def check_size(self, at: int) -> None:
        """MFSCorruptStoreError if a file says that it has more bytes than blocks. REQUIRES its lock."""
        if self.w[at + N_SIZE] > self.w[at + N_CAPACITY]:
            raise MFSCorruptStoreError("index", (at + N_SIZE) * WORD, f"at most {self.w[at + N_CAPACITY]}", self.w[at + N_SIZE])

    def runs(self, words: Plan | Words, at: int) -> list[int]:
        """The runs of a node in the order of the file."""
        first = words[at + N_RUN]
        if not first:
            return []
        chain: list[list[int]] = []
        older: list[int] = []
        node = words[at + N_RUNS] & LOW32
        while node:
            more = self.tree.check_node(node, at + N_RUNS)
            count = words[more + X_COUNT]
            if not 0 < count <= X_RUNS_MAX or len(chain) > self.w[NODE_BACKED]:
                raise MFSCorruptStoreError("index", (more + X_COUNT) * WORD, f"1 to {X_RUNS_MAX} runs", count)
            chain.append([words[more + X_RUNS + i] for i in range(count)])
            node = words[more + X_NEXT]
        for some in reversed(chain):
            older += some
        return [first, *older]

    def append_run(self, section: Section, at: int, run: int) -> None:
        plan = section.plan
        if not plan[at + N_RUN]:
            plan[at + N_RUN] = run
            return
        word = plan[at + N_RUNS]
        node = word & LOW32
        more = self.at(node)
        if not node or plan[more + X_COUNT] == X_RUNS_MAX:
            new = self.tree.take_node(section)
            more = self.at(new)
            section.w[more + N_NAME] = KIND_RUNS << KIND_SHIFT
            section.w[more + X_NEXT] = node
            section.w[more + X_COUNT] = 0
            node = new
        count = plan[more + X_COUNT]
        plan[more + X_RUNS + count] = run
        plan[more + X_COUNT] = count + 1
        plan[at + N_RUNS] = node | (word >> 32) + 1 << 32

    def _last_run(self, plan: Plan, at: int) -> tuple[int, int]:
        """(word, run) of the node's last run."""
        node = plan[at + N_RUNS] & LOW32
        if not node:
            if not plan[at + N_RUN]:
                raise MFSCorruptStoreError("index", (at + N_RUN) * WORD, f"{plan[at + N_CAPACITY]} bytes of blocks", 0)
            return at + N_RUN, plan[at + N_RUN]
        more = self.tree.check_node(node, at + N_RUNS)
        count = plan[more + X_COUNT]
        if not 0 < count <= X_RUNS_MAX:
            raise MFSCorruptStoreError("index", (more + X_COUNT) * WORD, f"1 to {X_RUNS_MAX} runs", count)
        return more + X_RUNS + count - 1, plan[more + X_RUNS + count - 1]

    def _drop_last_run(self, section: Section, at: int) -> None:
        """Free the last run whole."""
        plan = section.plan
        word, run = self._last_run(plan, at)
        self.blocks.free(plan, run)
        if word == at + N_RUN:
            plan[word] = 0
            return
        runs = plan[at + N_RUNS]
        node = runs & LOW32
        more = self.at(node)
        if plan[more + X_COUNT] == 1:
            plan[at + N_RUNS] = plan[more + X_NEXT] | (runs >> 32) - 1 << 32
            self.tree.free_node(section, node)
        else:
            plan[more + X_COUNT] = plan[more + X_COUNT] - 1
            plan[at + N_RUNS] = node | (runs >> 32) - 1 << 32

    def grow(self, section: Section, at: int, size_bytes: int) -> None:
        """Blocks and charge for *size_bytes*: the last run longer in place; else a small file moves, so that it stays in
        one run (and slots never stand beside pages); else one run more. NeedMemory, NeedNodes.

        REQUIRES the file's exclusive lock, so that nobody reads the bytes that move.
        """
        plan = section.plan
        units = units_for(size_bytes)
        had = plan[at + N_CAPACITY] // UNIT
        if units <= had:
            return
        self._charge_nameless(section, at, units * UNIT)
        if not had:
            plan[at + N_RUN] = self.blocks.allocate(plan, units)
            return
        word, run = self._last_run(plan, at)
        longer = self.blocks.extend(plan, run, units_of(run) + units - had)
        if longer:
            plan[word] = longer
        elif had * UNIT <= MOVED_BYTES_MOST and run == plan[at + N_RUN]:
            plan[at + N_RUN] = new = self.blocks.allocate(plan, units)
            self.store.arenas.copy_out([run], had * UNIT, *self.store.arenas.locate(new))
            self.blocks.free(plan, run)
        else:
            self.append_run(section, at, self.blocks.allocate(plan, units - had))

    def shrink(self, section: Section, at: int, size_bytes: int) -> bool:
        """Give blocks beyond *size_bytes* back, as much as one transaction holds; True if there is more to do."""
        plan = section.plan
        units = units_for(size_bytes)
        for _ in range(RUNS_A_TRANSACTION):
            excess = plan[at + N_CAPACITY] // UNIT - units
            if excess <= 0:
                return False
            word, run = self._last_run(plan, at)
            if units_of(run) <= excess:
                self._charge_nameless(section, at, plan[at + N_CAPACITY] - units_of(run) * UNIT)
                self._drop_last_run(section, at)
            else:
                plan[word] = self.blocks.shrink(plan, run, units_of(run) - excess)
                self._charge_nameless(section, at, units * UNIT)
                return False
        return plan[at + N_CAPACITY] // UNIT > units

    def few_runs(self, plan: Plan, at: int) -> bool:
        """Whether all blocks of the node can be given back in one transaction."""
        return not plan[at + N_RUN] or plan[at + N_RUNS] >> 32 < RUNS_A_TRANSACTION

    def swap_runs(self, plan: Plan, one: int, other: int) -> None:
        """Exchange blocks and charge of two nodes. REQUIRES that both are booked on the same account, or that the one that
        is to have none of it is of no account."""
        for word in (N_RUN, N_RUNS, N_CAPACITY):
            plan[one + word], plan[other + word] = plan[other + word], plan[one + word]

    # ---- pins

    def lease_pin(self) -> Lease:
        """A free pin record of ours. MFSTooManyHandlesError, MFSNoSpaceError. Outside any section."""
        try:
            return self.leases.free.pop()
        except IndexError:
            pass
        store = self.store
        with store.growing:
            slot_at = store.layout.slot_at(store.slot)
            index = len(self.leases)
            if index == PINS:
                raise MFSTooManyHandlesError(f"At most {PINS} views a process.")
            if index == self.w[slot_at + S_PINS]:
                store.back((slot_at + PINS_AT + index * PIN_WORDS) * WORD, PAGE)
                self.w[slot_at + S_PINS] = index + _PINS_A_PAGE
            if len(self.leases) != index:  # a signal handler came in between
                return self.lease_pin()
            return self.leases.add(slot_at + PINS_AT + index * PIN_WORDS)

    def has_views(self) -> bool:
        """Whether anybody in this process looks at content (or is about to)."""
        return any(self.w[pin] for pin in self.leases.words_not_lost())

    def pin(self, section: Section, file: int, pin: int) -> int:
        """Pin a file's content with this record; returns the pin node."""
        plan, at = section.plan, self.at(file)
        node = plan[at + N_PIN] & LOW32
        if node:
            pin_at = self.tree.check_node(node, at + N_PIN)
            plan[pin_at + PN_COUNT] = plan[pin_at + PN_COUNT] + 1
        else:
            node = self._make_pin_node(section, file, 1)
            plan[at + N_PIN] = plan[at + N_PIN] & ~LOW32 | node
        plan[pin] = node
        return node

    def _make_pin_node(self, section: Section, file: int, count: int) -> int:
        node = self.tree.take_node(section)
        at = self.at(node)
        for word in (N_RUN, N_RUNS, N_CAPACITY, N_SIBLINGS, N_PIN):
            section.w[at + word] = 0
        section.w[at + N_NAME] = KIND_PIN << KIND_SHIFT
        section.w[at + PN_FILE] = file
        section.w[at + PN_COUNT] = count
        return node

    def unpin(self, section: Section, pin: int) -> None:
        """Give a pin back; the last one of orphaned content frees it (see `Attachment.drain` for what is left)."""
        plan = section.plan
        node = plan[pin]
        at = self.tree.check_node(node, pin)
        plan[pin] = 0
        count = plan[at + PN_COUNT]
        if self.tree.kind(node) != KIND_PIN or not 0 < count <= PINS * self.store.layout.slots:
            raise MFSCorruptStoreError("index", (at + PN_COUNT) * WORD, "a count of pins", count)
        plan[at + PN_COUNT] = count - 1
        if count > 1:
            return
        file = plan[at + PN_FILE]
        if file:
            file_at = self.tree.check_node(file, at + PN_FILE)
            plan[file_at + N_PIN] = plan[file_at + N_PIN] & ~LOW32
            self.tree.free_node(section, node)
        elif self.few_runs(plan, at):
            self.free_orphan(section, node)

    def free_orphan(self, section: Section, node: int) -> None:
        """Free orphaned content whole. REQUIRES few_runs and no pins."""
        plan, at = section.plan, self.at(node)
        plan[ORPHANED] = plan[ORPHANED] - self.charged(plan[at + N_CAPACITY])
        self._free_all(section, at)
        self.leave_ring(section, PINNED, node)
        self.tree.free_node(section, node)

    def shrink_orphan(self, section: Section, node: int) -> None:
        """Free some of the blocks of orphaned content without pins that has too many runs for one transaction."""
        plan, at = section.plan, self.at(node)
        before = self.charged(plan[at + N_CAPACITY])
        for _ in range(RUNS_A_TRANSACTION):
            if before:  # a stash may be uncharged
                self.charge(section, at, plan[at + N_CAPACITY] - units_of(self._last_run(plan, at)[1]) * UNIT)
            self._drop_last_run(section, at)
        plan[ORPHANED] = plan[ORPHANED] - before + self.charged(plan[at + N_CAPACITY])

    def _free_all(self, section: Section, at: int) -> None:
        """Free all blocks of a node, charged or not."""
        plan = section.plan
        if plan[at + N_CAPACITY]:
            self.charge(section, at, 0)
        while plan[at + N_RUN]:
            self._drop_last_run(section, at)

    def divorce(self, section: Section, file: int) -> None:
        """The file's pinned content becomes orphaned; the file is left empty."""
        plan, at = section.plan, self.at(file)
        node = plan[at + N_PIN] & LOW32
        pin_at = self.tree.check_node(node, at + N_PIN)
        self.swap_runs(plan, at, pin_at)
        plan[pin_at + N_PIN] = plan[at + N_PIN] & ~LOW32
        plan[pin_at + PN_FILE] = 0
        plan[at + N_PIN] = plan[at + N_PIN] & ~LOW32
        plan[ORPHANED] = plan[ORPHANED] + self.charged(plan[pin_at + N_CAPACITY])
        self.enter_ring(section, PINNED, node)

    def release(self, section: Section, file: int) -> bool:
        """Give up all content of a file: free it, or divorce it if it is pinned. False if it has too many runs."""
        plan, at = section.plan, self.at(file)
        if plan[at + N_PIN] & LOW32:
            self.divorce(section, file)
        elif not self.few_runs(plan, at):
            return False
        else:
            self._free_all(section, at)
        return True

    # ---- stashes

    def stash(self, section: Section, pin: int, size_bytes: int, account: int, *, charged: bool = True) -> int:
        """Blocks in one run for *size_bytes*, held by this pin record until they are swapped in. NeedMemory."""
        plan = section.plan
        node = self._make_pin_node(section, 0, 1)
        at = self.at(node)
        section.w[at + N_PIN] = account << 32
        units = units_for(size_bytes)
        if charged and units:
            self.charge(section, at, units * UNIT)
            plan[ORPHANED] = plan[ORPHANED] + self.charged(units * UNIT)
        if units:
            plan[at + N_RUN] = self.blocks.allocate(plan, units)
        plan[pin] = node
        self.enter_ring(section, PINNED, node)
        return node

    def take_from_stash(self, section: Section, pin: int, file: int) -> None:
        """Move a stash's blocks into a file that has none, and end the stash. MFSDirectoryQuotaError if the file is charged
        to another account by now."""
        plan = section.plan
        node = plan[pin]
        at = self.at(node)
        self.assign(section, at, plan[self.at(file) + N_PIN] >> 32)
        plan[ORPHANED] = plan[ORPHANED] - self.charged(plan[at + N_CAPACITY])
        self.swap_runs(plan, self.at(file), at)
        plan[pin] = 0
        self.leave_ring(section, PINNED, node)
        self.tree.free_node(section, node)

    def release_for_stash(self, section: Section, file: int) -> None:
        """Make room in a file for a stash: pinned content is divorced, and what lost its pins meanwhile is left orphaned."""
        plan, at = section.plan, self.at(file)
        if not plan[at + N_PIN] & LOW32:
            node = self._make_pin_node(section, file, 0)
            plan[at + N_PIN] = plan[at + N_PIN] & ~LOW32 | node
        self.divorce(section, file)

    def exchange_runs(self, section: Section, file: int, pin: int) -> None:
        """Exchange a file's runs with those of an uncharged stash of the same capacity."""
        plan, at, stash = section.plan, self.at(file), self.at(section.plan[pin])
        for word in (N_RUN, N_RUNS):
            plan[at + word], plan[stash + word] = plan[stash + word], plan[at + word]

    # ---- rings of nodes without a name, through N_SIBLINGS

    def enter_ring(self, section: Section, head: int, node: int) -> None:
        plan = section.plan
        first = plan[head]
        plan[self.at(node) + N_SIBLINGS] = first
        if first:
            at = self.tree.check_node(first, head) + N_SIBLINGS
            plan[at] = node << 32 | plan[at] & LOW32
        plan[head] = node

    def leave_ring(self, section: Section, head: int, node: int) -> None:
        plan = section.plan
        links = plan[self.at(node) + N_SIBLINGS]
        before, after = links >> 32, links & LOW32
        refers = self.tree.check_node(before, head) + N_SIBLINGS if before else head
        if plan[refers] & LOW32 != node:
            raise MFSCorruptStoreError("index", refers * WORD, f"a reference to node {node}", plan[refers])
        plan[refers] = plan[refers] & ~LOW32 | after
        if after:
            at = self.tree.check_node(after, head) + N_SIBLINGS
            plan[at] = before << 32 | plan[at] & LOW32

    def ring(self, head: int) -> list[int]:
        """The nodes of a ring. REQUIRES m[0]. MFSCorruptStoreError if one is not of its kind: it may be in use elsewhere."""
        found: list[int] = []
        node = self.w[head]
        while node:
            at = self.tree.check_node(node, head)
            if len(found) > self.w[NODE_BACKED]:
                raise MFSCorruptStoreError("index", head * WORD, "a ring that ends", node)
            if self.tree.kind(node) != RINGS[head]:
                raise MFSCorruptStoreError("index", head * WORD, f"nodes of kind {RINGS[head]}", node)
            found.append(node)
            node = self.w[at + N_SIBLINGS] & LOW32
        return found
