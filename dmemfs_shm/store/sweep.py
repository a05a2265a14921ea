"""Freeing what nobody can reach any more, a few nodes or blocks a transaction, and what the dead left behind.

Whoever detached it does so, and so does whoever comes after his death: the trash (removed trees), files without a name that
have no readers any more, drafts that nobody writes, and content that nobody looks at. Each part is a transaction of its own,
after which everything that is left is still where the next one finds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .layout import (
    D_CHILD,
    D_DRAFTED,
    DRAFTED,
    DRAFTS,
    KIND_DIR,
    KIND_DRAFT,
    LOCK_BUSY,
    LOW32,
    N_CAPACITY,
    N_GENERATION,
    N_PARENT,
    N_SIBLINGS,
    NODE_WORDS,
    ORPHANED,
    ORPHANS,
    PIN_WORDS,
    PINNED,
    PINS,
    PINS_AT,
    PN_COUNT,
    S_PINS,
    SPACE_FIRST,
    TRASH,
)
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment

FREED_A_VISIT = 16


class Sweep:
    """Frees what has lost its name, its last reader, or its owner."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.tree = store.tree
        self.content = store.content
        self.names = store.names
        self.nodes_at = store.layout.nodes_at

    def at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    def to_trash(self, section: Section, node: int) -> None:
        """A nameless directory is freed piecemeal from now on. Its generation changes at once."""
        plan, at = section.plan, self.at(node)
        plan[at + N_GENERATION] = plan[at + N_GENERATION] + 2
        plan.never_back(at + N_GENERATION, plan[at + N_GENERATION] + 2)
        plan[at + N_PARENT] = 0
        plan[at + N_SIBLINGS] = plan[TRASH]
        plan[TRASH] = node

    def drain(self) -> None:
        """Free everything that nobody can reach any more."""
        if self.store.grafts.has_left:
            self.store.grafts.drain_left()
        if self.w[ORPHANS]:
            self.drain_orphans()
        if self.w[DRAFTS]:
            self.drain_drafts()
        if self.w[PINNED]:
            self.drain_pinned()
        if self.w[TRASH]:
            self.drain_trash()
        if self.w[SPACE_FIRST]:
            self.store.space.drain()

    def drain_trash(self) -> None:
        while self.store.transact(self._empty_trash, self.store.patience):
            pass
        if self.w[ORPHANS]:
            self.drain_orphans()

    def _empty_trash(self, section: Section) -> bool:
        """Free some nodes of the trash; whether there are more. Nobody can open them: the namespace word has changed."""
        for _ in range(FREED_A_VISIT):
            top = self.w[TRASH]
            if not top:
                return False
            self.tree.check_child(top, 0, TRASH)
            node = top
            while self.tree.kind(node) == KIND_DIR and (child := self.w[self.at(node) + D_CHILD]):
                self.tree.check_child(child, node, self.at(node) + D_CHILD)
                node = child
            kind = self.tree.kind(node)
            if self.w[self.at(top) + D_DRAFTED]:
                section.plan[DRAFTED] = section.plan[DRAFTED] - (1 if kind == KIND_DIR else 1 << 32)
            if node == top:
                section.plan[TRASH] = self.w[self.at(top) + N_SIBLINGS] & LOW32
                self.tree.unmake(section, top, KIND_DIR)
            else:
                self.tree.unlink(section, node)
                if kind == KIND_DIR:
                    self.tree.unmake(section, node, KIND_DIR)
                else:
                    self.names.retire(section, node)
            section.commit()
        return True

    def drain_orphans(self) -> None:
        """Free files without a name that have no readers any more."""
        while self.store.transact(lambda section: self._free_nameless(section, ORPHANS), self.store.patience):
            pass

    def drain_drafts(self) -> None:
        """Free drafts that nobody writes any more."""
        while self.store.transact(lambda section: self._free_nameless(section, DRAFTS), self.store.patience):
            pass

    def free_draft(self, node: int) -> None:
        """As `drain_drafts`, one that nobody writes, if it is a draft still."""

        def step(section: Section) -> bool:
            return self.tree.kind(node) == KIND_DRAFT and self._free_nameless(section, DRAFTS, [node])

        while self.store.transact(step, self.store.patience):
            pass

    def _free_nameless(self, section: Section, ring: int, nodes: Iterable[int] | None = None) -> bool:
        """Free some files of a ring, or some of these of it, that are not open; whether it is worth while to come again."""
        freed = 0
        for node in self.content.ring(ring) if nodes is None else nodes:
            section.enter(node)
            at = self.at(node)
            if not self.store.rw.settled(at) & LOCK_BUSY:
                freed += 1
                before = self.content.charged(self.w[at + N_CAPACITY])
                if self.content.release(section, node):
                    section.plan[ORPHANED] = section.plan[ORPHANED] - before
                    self.content.leave_ring(section, ring, node)
                    section.plan[at + N_GENERATION] = section.plan[at + N_GENERATION] + 1 & ~1
                    self.tree.free_node(section, node)
                else:
                    self.content.shrink(section, at, 0)
                section.commit()
            section.leave_nodes()
            if freed == FREED_A_VISIT:
                break
        return freed > 0

    def drain_pinned(self) -> None:
        """Free orphaned content that nobody looks at any more and that one transaction could not free."""
        while self.store.transact(self._free_unpinned, self.store.patience):
            pass

    def _free_unpinned(self, section: Section) -> bool:
        for node in self.content.ring(PINNED):
            if not self.w[self.at(node) + PN_COUNT]:
                if self.content.few_runs(section.plan, self.at(node)):
                    self.content.free_orphan(section, node)
                else:
                    self.content.shrink_orphan(section, node)
                return True
        return False

    def reap(self, slot: int, below: int, timeout: float | None) -> bool:
        """Give back pins, stashes and intents of tenants of a slot that were found dead, those of epochs below this one.

        Comes last: the slot is noted as clean. False if it was.
        """
        at, some = self.store.layout.slot_at(slot), self.store.participants

        def step(section: Section) -> bool:
            if not some.is_unreaped(slot, below):
                return False
            self.store.grafts.abandon(section, at)
            self.store.publications.forget(section, slot)
            section.commit()
            self.store.space.leave_all(section, slot)
            freed = 0
            backed = min(self.w[at + S_PINS], PINS)
            for pin in range(at + PINS_AT, at + PINS_AT + backed * PIN_WORDS, PIN_WORDS):
                if self.w[pin]:
                    self.content.unpin(section, pin)
                    section.commit()
                    freed += 1
                    if freed == FREED_A_VISIT:
                        return True
            return False

        while self.store.transact(step, timeout):
            pass
        if self.w[DRAFTS]:
            self.drain_drafts()
        return self.store.transact(lambda _: some.note_clean(slot, below), timeout)
