"""A tree that is prepared apart, where nobody sees it, and then published whole: what `restore` grows.

It hangs on a nameless directory that the slot's intent word leads to, as a copy of `Namespace.copy_tree` does: after a
death or failure it goes to the trash with everything in it. What it holds is charged while it grows.

`Graft.publish` is the one place where it becomes part of the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MFSNodeLimitExceededError, MFSParameterError, MFSReentrantCallError
from .layout import D_CHILD, DIRS, FILES, KIND_DIR, KIND_FILE, N_CREATED, N_MODIFIED, ROOT
from .namespace import COPIED_IN_SECTION_MOST, PREPARING, Fill, is_preparing
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment

PUBLISHED_MOST = 40  # entries that move in one transaction: five words each


class Facts(NamedTuple):
    """What a file or directory keeps besides its content. Times in ns since the epoch; content: how often it changed."""

    created: int
    modified: int
    content: int = 0


class Graft:
    """A tree in preparation, its directories named by their nodes. Made by `grow`."""

    def __init__(self, store: Attachment, top: int, timeout: float | None) -> None:
        self.store = store
        self.names = store.names
        self.tree = store.tree
        self.top = top
        self.timeout = timeout

    def make_directory(self, parent: int, name: bytes, facts: Facts) -> int:
        """A directory; the name must not stand."""

        def step(section: Section) -> int:
            self._check_limit(section)
            node = self.tree.add(section, KIND_DIR, parent, name)
            self._note(node, facts)
            return node

        return self.store.transact(step, self.timeout)

    def make_file(self, parent: int, name: bytes, size: int, fill: Fill, facts: Facts) -> None:
        """A file; the name must not stand. ``fill`` is called once, outside of any section, if it has much to store."""
        if size <= COPIED_IN_SECTION_MOST:
            self._make_file(parent, name, size, fill, None, facts)
            return
        names = self.names
        held = [names.content.lease_pin()]
        pin = held[0].word
        try:
            names.stash(pin, size, fill, self.timeout)
            self._make_file(parent, name, size, None, pin, facts)
        finally:
            names.give_back_pin(held.pop())

    def _make_file(self, parent: int, name: bytes, size: int, fill: Fill | None, pin: int | None, facts: Facts) -> None:
        def step(section: Section) -> None:
            self._check_limit(section)
            node = self.tree.add(section, KIND_FILE, parent, name, size, facts.content)
            self._note(node, facts)
            self.names._attach(section, node, size, fill, pin)

        self.store.transact(step, self.timeout)

    def _note(self, node: int, facts: Facts) -> None:
        """Plainly: until the commit nobody has the generation to look at the node."""
        w, at = self.store.w, self.names.at(node)
        w[at + N_CREATED] = facts.created
        w[at + N_MODIFIED] = facts.modified

    def _check_limit(self, section: Section) -> None:
        """As `Tree.check_limit`; the nameless directory that it all hangs on does not count, since it will not stay."""
        limit = self.tree.nodes_max
        if limit and section.plan[FILES] + section.plan[DIRS] - 1 >= limit:
            raise MFSNodeLimitExceededError(limit, limit)

    def remove(self, parent: int, name: bytes) -> bool:
        """Take a file or a directory away, which must stand. False if it is a directory with something in it."""

        def step(section: Section) -> bool:
            node = self.tree.find(parent, name)
            section.enter(node)
            if self.tree.kind(node) == KIND_FILE:
                self.names._take_away(section, node)
            elif section.w[self.names.at(node) + D_CHILD]:
                return False
            else:
                self.tree.unlink(section, node)
                self.tree.unmake(section, node, KIND_DIR)
            return True

        return self.store.transact(step, self.timeout)

    def publish(self, section: Section, intent: int) -> None:
        """What is in the tree is in the root from the commit on: all or nothing, and nothing that stands is touched.

        FileExistsError if a name stands there. MFSParameterError for more than PUBLISHED_MOST names at the top: they do not
        fit into one transaction. (This is the place to hand the tree to a publication without bounds.)
        """
        entries = self.tree.children(self.top)
        if len(entries) > PUBLISHED_MOST:
            raise MFSParameterError(
                f"{len(entries)} names at the top are too many to be published at once: at most {PUBLISHED_MOST}."
            )
        for node in entries:
            name = self.tree.name(self.names.at(node))
            if self.tree.find(ROOT, name):
                raise FileExistsError(f"Destination already exists: '/{name.decode('utf-8', 'replace')}'")
        section.unsettle_namespace()  # what is in the tree has even sequences, and must not be found before the commit
        self.tree.adopt(section, self.top, ROOT)
        self.tree.unmake(section, self.top, KIND_DIR)
        section.plan[intent] = 0


def grow(store: Attachment, timeout: float | None, fill: Callable[[Graft], None]) -> None:
    """Let ``fill(graft)`` make a tree, then publish it. If anything fails, nothing of it has been seen and all of it goes."""
    names = store.names
    intent = names._intent
    with store.intending:
        if store.w[intent] and is_preparing():
            raise MFSReentrantCallError("A signal handler or finaliser called restore inside a call of it, or of copy_tree.")
        names.end_half_copy()
        try:
            graft = Graft(store, store.transact(lambda section: _begin(section, store, intent), timeout), timeout)
            fill(graft)
            store.transact(lambda section: graft.publish(section, intent), timeout)
        except BaseException:
            store.has_half_copy = True
            store.dropped.append(None)  # should this be interrupted, too
            names.end_half_copy()
            raise


def _begin(section: Section, store: Attachment, intent: int) -> int:
    top = store.tree.make_directory(section)
    section.plan[intent] = top
    return top


PREPARING.add(grow.__code__)
