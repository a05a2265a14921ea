"""Trees that are prepared apart, where nobody sees them, and published whole: copies, imports, what `restore` reads.

A tree grows beneath a nameless directory that the slot's intent word leads to, in small transactions. What it holds is
charged while it grows; DRAFTED and S_DRAFTED count its files and directories, so that nobody takes them for the store's.
One transaction publishes it, of a size that does not depend on the tree's:

    under a name    (copy_tree; and `move` of a directory to where another account counts, which takes the original away by
                    the same transaction if it still is what was copied) the nameless directory gets it.
    over the root   (import_tree, restore) the tree is a picture of the root, and becomes the store's INTENT under an odd
                    namespace word. From then on it is published, for whoever enters m[0] first takes its entries to their
                    places, in small transactions, until it is empty (`Grafts.settle`). Nobody looks at anything in between:
                    what is read without m[0] counts only under an even namespace word. Nothing in it can fail for want of
                    memory: entries move, and what they replace is freed.

After a failure or death before that transaction it goes to the trash with everything in it.

What grows is charged to the account (see `accounts`) that counts where it is to go. Should another one count there when it is
published, everything is prepared anew.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Callable, Container, Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NamedTuple

from ..errors import (
    MFSCorruptStoreError,
    MFSFileOpenError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSReentrantCallError,
    MFSStoreBusyError,
)
from .content import units_for
from .layout import (
    D_CHILD,
    D_DRAFTED,
    DRAFTED,
    INTENT,
    KIND_DIR,
    KIND_FILE,
    LOW32,
    N_CONTENT,
    N_CREATED,
    N_GENERATION,
    N_MODIFIED,
    N_PARENT,
    N_PIN,
    N_SIZE,
    N_STAMP,
    NAMESPACE,
    ORPHANS,
    QUOTAS,
    ROOT,
    S_DRAFTED,
    S_INTENT,
    TRASH,
    UNIT,
    WATCHED,
    WORD,
)
from .namespace import COPIED_IN_SECTION_MOST, Approve, Busy, Fill, Found, Parts, Path, stamp
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment

MOVED_A_VISIT = 256  # entries of a tree that is published over the root: a few milliseconds
PREPARED_A_VISIT = 32
PREPARED_AGAIN_MOST = 8

Files = Mapping[Parts, tuple[int, Fill]]


class _Changed(Exception):
    """Where a tree was to go, or what is to be moved, is another by now: prepare it again."""


class Facts(NamedTuple):
    """What a file or directory keeps besides its content. Times in ns since the epoch; content: how often it changed."""

    created: int
    modified: int
    content: int = 0


class Graft:
    """A tree in preparation, its directories named by their nodes.

    MFSNodeLimitExceededError where it is too much for the store: *surplus* of its nodes will not stay when it is published.
    None: that is found out then.
    """

    def __init__(self, store: Attachment, top: int, timeout: float | None, *, surplus: int | None = 0) -> None:
        self.store = store
        self.names = store.names
        self.tree = store.tree
        self.drafted = store.layout.slot_at(store.slot) + S_DRAFTED
        self.top = top
        self.timeout = timeout
        self.surplus = surplus

    def make_directory(self, parent: int, name: bytes, facts: Facts | None = None) -> int:
        """A directory; the name must not stand."""

        def step(section: Section) -> int:
            self._check_limit(section)
            return self.add(section, KIND_DIR, parent, name, 0, facts)

        return self.store.transact(step, self.timeout)

    def make_file(self, parent: int, name: bytes, size: int, fill: Fill, facts: Facts | None = None) -> None:
        """A file; the name must not stand. ``fill`` is called once, outside of any section, if it has much to store."""
        if size <= COPIED_IN_SECTION_MOST:
            self._make_file(parent, name, size, fill, None, facts)
            return
        names = self.names
        held = [names.content.lease_pin()]
        pin = held[0].word
        try:
            self.store.placement.stash(pin, size, fill, lambda: names.account_in(parent), self.timeout)
            self._make_file(parent, name, size, None, pin, facts)
        finally:
            self.store.placement.give_back_pin(held.pop())

    def _make_file(self, parent: int, name: bytes, size: int, fill: Fill | None, pin: int | None, facts: Facts | None) -> None:
        def step(section: Section) -> None:
            self._check_limit(section)
            node = self.add(section, KIND_FILE, parent, name, size, facts)
            self.names.give_content(section, node, size, fill, pin)

        self.store.transact(step, self.timeout)

    def add(self, section: Section, kind: int, parent: int, name: bytes, size: int = 0, facts: Facts | None = None) -> int:
        """A file, without its content yet, or a directory, in the section's plan. It belongs to what its parent belongs to."""
        count_drafted(section, self.drafted, kind, 1)
        node = self.tree.add(section, kind, parent, name, size, facts.content if facts else 0)
        w, at = self.store.w, self.names.at(node)  # plainly: until the commit nobody has the generation to look at the node
        w[at + N_STAMP] = stamp()
        if facts:
            w[at + N_CREATED] = facts.created
            w[at + N_MODIFIED] = facts.modified
        return node

    def _check_limit(self, section: Section) -> None:
        if self.surplus is None:
            return
        drafted = section.plan[self.drafted]
        self.tree.check_limit(section, (drafted >> 32) + (drafted & LOW32) - self.surplus)

    def remove(self, parent: int, name: bytes) -> bool:
        """Take a file or a directory away, which must stand. False if it is a directory with something in it."""

        def step(section: Section) -> bool:
            node = self.tree.find(parent, name)
            kind = self.tree.kind(node)
            section.enter(node)
            if kind == KIND_FILE:
                self.names.take_away(section, node)
            elif section.w[self.names.at(node) + D_CHILD]:
                return False
            else:
                self.tree.unlink(section, node)
                self.tree.unmake(section, node, KIND_DIR)
            count_drafted(section, self.drafted, kind, -1)
            return True

        return self.store.transact(step, self.timeout)


class _Copy(NamedTuple):
    """A directory on its way into a tree. moved: (generation, facts) of what was copied, by node, if that is to go: then the
    copies keep the facts, and no file's lock is waited for."""

    graft: Graft
    moved: dict[int, tuple[int, Facts]] | None = None
    allow_abandoned: bool = False


def count_drafted(section: Section, drafted: int, kind: int, more: int) -> None:
    """So many files or directories more are being prepared in the slot that has this S_DRAFTED."""
    one = more << 32 if kind == KIND_FILE else more
    for word in (DRAFTED, drafted):
        section.plan[word] = section.plan[word] + one


def _is_running(code: CodeType) -> bool:
    """Whether the function that calls us runs twice: a signal handler or finaliser that came into the first has called it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _text(parts: Parts) -> str:
    return Path("", [*parts, b""]).parent


class Grafts:
    """What prepares trees and publishes them, for one attached process."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.names = store.names
        self.tree = store.tree
        self.content = store.content
        self.intending = threading.RLock()  # orders this process's operations that use the slot's intent word
        self.has_left = False  # one of them failed and has left something

    # ---- the intent word

    @property
    def _intent(self) -> int:
        return self.store.layout.slot_at(self.store.slot) + S_INTENT

    def _prepare(self, work: Callable[[], None]) -> None:
        """Do something that prepares a tree and publishes it; if it fails, what it has prepared goes."""
        with self.intending:
            if self.w[self._intent] and _is_running(Grafts._prepare.__code__):
                raise MFSReentrantCallError(
                    "A signal handler or finaliser called copy_tree, import_tree or restore inside such a call."
                )
            try:
                for _ in range(PREPARED_AGAIN_MOST):
                    self.drop_left()
                    with contextlib.suppress(_Changed):
                        return work()
            except BaseException:
                self.has_left = True
                self.store.dropped.append(None)  # should this be interrupted, too
                self.drop_left()
                raise
            self.drop_left()
            raise MFSStoreBusyError("What was copied, or the quota of where it was to go, changed again and again meanwhile.")

    def drop_left(self) -> None:
        """What was not published goes to the trash. REQUIRES `intending`."""
        store, slot_at = self.store, self._intent - S_INTENT
        try:
            self.has_left = False
            if self.w[self._intent]:
                store.transact(lambda section: self.abandon(section, slot_at), store.patience)
                self.store.sweep.drain_trash()
        except BaseException:
            self.has_left = True
            store.dropped.append(None)
            raise

    def drain_left(self) -> None:
        """Something that failed could not take back what it had prepared."""
        with self.intending:
            self.drop_left()

    def abandon(self, section: Section, slot_at: int) -> None:
        """What was prepared in a slot goes to the trash."""
        plan = section.plan
        top = plan[slot_at + S_INTENT]
        if top:
            self.tree.check_child(top, 0, slot_at + S_INTENT)
            self.store.sweep.to_trash(section, top)
            plan[self.names.at(top) + D_DRAFTED] = 1
            plan[slot_at + S_DRAFTED] = 0
            plan[slot_at + S_INTENT] = 0

    def _begin(self, section: Section, parent: int = ROOT) -> int:
        """The top of what we are about to prepare, to go into a directory, or over the root."""
        top = self.tree.make_directory(section, self.names.account_in(parent))
        section.plan[self._intent] = top
        count_drafted(section, self._intent - S_INTENT + S_DRAFTED, KIND_DIR, 1)
        return top

    def _end(self, section: Section) -> None:
        """What we have prepared is published: it counts from now on."""
        plan, drafted = section.plan, self._intent - S_INTENT + S_DRAFTED
        plan[DRAFTED] = plan[DRAFTED] - plan[drafted]
        plan[drafted] = 0
        plan[self._intent] = 0

    def _announce(self) -> None:
        """A tree has got its place, or perhaps has, if an exception came."""
        if self.w[WATCHED]:
            self.store.publications.announce_all()

    # ---- copy_tree

    def copy_tree(self, src: Path, dst: Path, approve: Approve, timeout: float | None, *, allow_abandoned: bool) -> None:
        """A copy of a directory and everything below it, visible to others when it is complete.

        ``approve(charge)`` may refuse it by an exception.
        """
        transact = self.store.transact

        def copy() -> None:
            source, top = transact(lambda section: self._begin_copy(section, src, dst), timeout)
            self._require_room(source, top, approve, timeout)
            self._copy_children(source, _Copy(Graft(self.store, top, timeout), allow_abandoned=allow_abandoned))
            try:
                transact(lambda section: self._end_copy(section, dst, top), timeout)
            finally:
                self._announce()

        self._prepare(copy)

    def _require_room(self, source: Found, top: int, approve: Approve, timeout: float | None) -> None:
        charge = self._tree_charge(source)
        self.store.transact(lambda section: self.content.require_charge(section, self.names.account_in(top), charge), timeout)
        approve(charge)

    def _begin_copy(self, section: Section, src: Path, dst: Path) -> tuple[Found, int]:
        source = self._source_of_copy(src, dst)
        parent = self.names.parent_for(section, dst, make_parents=False)
        self.tree.check_limit(section)
        return source, self._begin(section, parent)

    def _source_of_copy(self, src: Path, dst: Path) -> Found:
        node = self.tree.walk(src.parts)
        if not node:
            raise FileNotFoundError(f"No such file or directory: '{src.text}'")
        if self.tree.kind(node) != KIND_DIR:
            raise NotADirectoryError(f"Not a directory: '{src.text}'")
        if self.tree.walk(dst.parts):
            raise FileExistsError(f"Destination already exists: '{dst.text}'")
        return node, self.w[self.names.at(node) + N_GENERATION], self.w[NAMESPACE]

    def _end_copy(self, section: Section, dst: Path, top: int) -> None:
        if self.tree.walk(dst.parts):
            raise FileExistsError(f"Destination already exists: '{dst.text}'")
        self._link(section, dst, top, self.names.parent_for(section, dst, make_parents=False))

    def _link(self, section: Section, dst: Path, top: int, parent: int) -> None:
        """Give the tree its name."""
        if self.names.account_in(parent) != self.names.account_in(top):
            raise _Changed
        section.unsettle_namespace()  # what is in the copy has even sequences, and must not be found before the commit
        self.tree.link(section, top, KIND_DIR, parent, dst.parts[-1])
        self._end(section)

    def _tree_charge(self, found: Found) -> int:
        """What the files below a directory are charged, or would be if they were closed."""
        total, todo = 0, [found[:2]]
        while todo:
            for entry in self.store.listing.entries_of(*todo.pop(), self.store.patience):
                if entry.kind == KIND_DIR:
                    todo.append((entry.node, entry.generation))
                elif entry.kind == KIND_FILE:
                    total += self.content.charged(units_for(self.w[self.names.at(entry.node) + N_SIZE]) * UNIT)
        return total

    def _copy_children(self, source: Found, copy: _Copy) -> None:
        stack = [(source[0], source[1], copy.graft.top)]
        while stack:
            node, generation, target = stack.pop()
            for entry in self.store.listing.entries_of(node, generation, copy.graft.timeout):
                if entry.kind == KIND_DIR:
                    new = copy.graft.make_directory(target, entry.name, self._facts(entry.node, copy))
                    stack.append((entry.node, entry.generation, new))
                elif entry.kind == KIND_FILE:
                    self._copy_file(node, generation, entry.name, copy, target)

    def _copy_file(self, directory: int, generation: int, name: bytes, copy: _Copy, target: int) -> None:
        """Copy the file of that name in a directory, unless it went meanwhile."""
        names, graft = self.names, copy.graft
        patience = graft.timeout if copy.moved is None else 0.0

        def find(section: Section) -> Found | None:
            node = self.tree.find(directory, name) if self.store.listing.is_directory(directory, generation) else 0
            if not node or self.tree.kind(node) != KIND_FILE:
                return None
            return node, self.w[names.at(node) + N_GENERATION], self.w[NAMESPACE]

        while found := self.store.transact(find, graft.timeout):

            def copied(size: int, fill: Fill, node: int = found[0]) -> None:
                graft.make_file(target, name, size, fill, self._facts(node, copy))

            text = self.tree.path(found[0])
            if names.reading(found, text, patience, copied, allow_abandoned=copy.allow_abandoned):
                break

    # ---- move, where a rename would not do

    def move(self, src: Path, dst: Path, timeout: float | None) -> None:
        """A copy of a directory takes its place in one transaction, where another account counts; its parents are made.

        MFSFileOpenError if something in it is open; OSError (EXDEV) if a directory in it has a quota of its own.
        """
        transact = self.store.transact

        def work() -> None:
            source, top = transact(lambda section: self._begin_move(section, src, dst), timeout)
            self._require_room(source, top, lambda _: None, timeout)
            copy = _Copy(Graft(self.store, top, timeout), {})
            self._copy_children(source, copy)
            try:
                self.names.attempt(lambda section: self._end_move(section, src, dst, source[0], copy), timeout)
            finally:
                self._announce()

        try:
            self._prepare(work)
            self.store.sweep.drain_trash()
        except MFSLockTimeoutError as error:
            raise MFSFileOpenError(error.path, error.holders) from None
        except BaseException:
            if self.w[TRASH]:  # perhaps ours: the next operation sees to it
                self.store.dropped.append(None)
            raise

    def _begin_move(self, section: Section, src: Path, dst: Path) -> tuple[Found, int]:
        source = self._source_of_copy(src, dst)
        self.tree.check_limit(section)
        top = self._begin(section, self.names.nearest(dst.parts[:-1]))
        facts, at = self._facts_of(source[0]), self.names.at(top)
        self.w[at + N_CREATED], self.w[at + N_MODIFIED] = facts.created, facts.modified
        return source, top

    def _end_move(self, section: Section, src: Path, dst: Path, node: int, copy: _Copy) -> None:
        if self.tree.walk(src.parts) != node:  # first: it may be what stands at the destination by now
            raise _Changed
        if self.tree.walk(dst.parts):
            raise FileExistsError(f"Destination already exists: '{dst.text}'")
        parent = self.names.parent_for(section, dst, make_parents=True)
        self.names.freeze(section, node)
        if self._has_changed(node, copy.moved or {}):
            raise _Changed
        self.tree.unlink(section, node)
        self.store.sweep.to_trash(section, node)
        self._link(section, dst, copy.graft.top, parent)

    def _has_changed(self, directory: int, moved: Mapping[int, tuple[int, Facts]]) -> bool:
        """Whether what is below a directory is not what was copied. REQUIRES that the namespace is frozen.

        Linear in the number of files, about 1 us each: the price of a move to another quota, of a directory, whole.
        """
        count, todo = 0, [directory]
        while todo:
            for node in self.tree.children(todo.pop()):
                count += 1
                if moved.get(node) != (self.w[self.names.at(node) + N_GENERATION], self._facts_of(node)):
                    return True
                if self.tree.kind(node) == KIND_DIR:
                    if self.content.accounts.own(node):
                        path = self.tree.path(node)
                        raise OSError(errno.EXDEV, "A directory with a quota of its own would lose it: move it by itself", path)
                    todo.append(node)
        return count != len(moved)

    def _facts(self, node: int, copy: _Copy) -> Facts | None:
        """What the copy of a node is to keep; remembered, if that is to be moved."""
        if copy.moved is None:
            return None
        facts = self._facts_of(node)
        copy.moved[node] = self.w[self.names.at(node) + N_GENERATION], facts
        return facts

    def _facts_of(self, node: int) -> Facts:
        w, at = self.w, self.names.at(node)
        content = 0 if self.tree.kind(node) == KIND_DIR else w[at + N_CONTENT]
        return Facts(w[at + N_CREATED], w[at + N_MODIFIED], content)

    # ---- restore

    def restore(self, grow: Callable[[Graft], None], timeout: float | None) -> None:
        """Let ``grow(graft)`` make a tree whose top is the root's picture, then publish it beside what stands.

        FileExistsError if a name at its top stands.
        """

        def work() -> None:
            top = self.store.transact(self._begin, timeout)
            grow(Graft(self.store, top, timeout, surplus=1))
            try:
                self.store.transact(lambda section: self._commit_restore(section, top), timeout)
                self._see_it_settled()
            finally:
                self._announce()

        self._prepare(work)

    def _commit_restore(self, section: Section, top: int) -> None:
        for node in self.tree.children(top):
            name = self.tree.name(self.names.at(node))
            if self.tree.find(ROOT, name):
                raise FileExistsError(f"Destination already exists: '/{name.decode('utf-8', 'replace')}'")
        section.unsettle_namespace()
        self._end(section)
        section.plan[INTENT] = top

    # ---- import_tree

    def import_tree(self, files: Files, timeout: float | None) -> None:
        """Make all these files, over those that stand, and the directories above them that are missing; at once, or not at all.

        IsADirectoryError, FileExistsError (a file where a directory must be), MFSFileOpenError, MFSQuotaExceededError,
        MFSNodeLimitExceededError.
        """
        charge = sum(self.content.charged(units_for(size) * UNIT) for size, _ in files.values())
        attempt = self.names.attempt

        def begin(section: Section) -> int:
            self.content.require_charge(section, 0, charge)
            if 0 < self.tree.nodes_max <= len(files):
                raise MFSNodeLimitExceededError(self.tree.nodes_max, self.tree.nodes_max)
            return self._begin(section)

        def work() -> None:
            attempt(lambda _: self._refuse_open(files), timeout, doing="import")
            _check_paths(files)
            top = self.store.transact(begin, timeout)
            made = _Import(Graft(self.store, top, timeout, surplus=None))
            made.prepare(files)
            try:
                attempt(lambda section: self._commit_import(section, files, made), timeout, doing="import")
                self._see_it_settled()
            finally:
                self._announce()

        self._prepare(work)

    def _refuse_open(self, files: Container[Parts]) -> None:
        """Busy if a file at one of these paths is open. REQUIRES m[0]; exact under a frozen namespace."""
        for node in self.names.open_nodes():
            if self.tree.kind(node) == KIND_FILE and self._parts(node) in files:
                raise Busy(node)

    def _parts(self, node: int) -> Parts | None:
        """The path of a node; None if no path leads to it."""
        parts: list[bytes] = []
        for _ in range(2048):
            if node == ROOT:
                return tuple(reversed(parts))
            at = self.tree.check_node(node, self.names.at(node))
            parts.append(self.tree.name(at))
            node = self.w[at + N_PARENT]
            if not node:
                break
        return None

    def _commit_import(self, section: Section, files: Files, made: _Import) -> None:
        self._check_places(section, files)
        if made.has_other_accounts():
            raise _Changed
        section.freeze_namespace()
        self._refuse_open(files)
        self._end(section)
        section.plan[INTENT] = made.graft.top

    def _check_places(self, section: Section, files: Files) -> None:
        """See, one by one, that the files can be made where they are to be."""
        tree, count = self.tree, self.tree.count(section)
        stand: dict[Parts, int] = {(): ROOT}
        for parts in files:
            above = parts[:-1]
            if above not in stand:
                count += self._check_directories(stand, above, count)
            directory = stand[above]
            node = tree.find(directory, parts[-1]) if directory else 0
            if node and tree.kind(node) != KIND_FILE:
                raise IsADirectoryError(f"Is a directory: '{_text(parts)}'")
            self._expect_room(count)
            count += not node

    def _check_directories(self, stand: dict[Parts, int], parts: Parts, count: int) -> int:
        """Learn which of the directories of a path stand; how many are missing and were not known to be."""
        missing = 0
        for end in range(1, len(parts) + 1):
            part = parts[:end]
            if part not in stand:
                directory = stand[parts[: end - 1]]
                node = self.tree.find(directory, part[-1]) if directory else 0
                if node and self.tree.kind(node) != KIND_DIR:
                    raise FileExistsError(f"A file exists at path component: '{part[-1].decode('utf-8', 'replace')}'")
                if not node:
                    self._expect_room(count + missing)
                    missing += 1
                stand[part] = node
        return missing

    def _expect_room(self, count: int) -> None:
        if 0 < self.tree.nodes_max <= count:
            raise MFSNodeLimitExceededError(count, self.tree.nodes_max)

    # ---- what was committed as the store's INTENT

    def _see_it_settled(self) -> None:
        """Nobody can do anything before what was committed is in its place, so nothing is lost if we can't help."""
        with contextlib.suppress(MFSStoreBusyError):
            self.store.transact(lambda _: None, self.store.patience)
            if self.w[ORPHANS]:
                self.store.sweep.drain_orphans()

    def settle(self, section: Section) -> bool:
        """Take some entries of the tree that was committed to their places; whether there is more to do.

        A directory of it that stands is gone through and then freed; one that does not moves with all that is in it. REQUIRES
        m[0] and an odd namespace word. No step needs memory of the store, so none can fail for want of it.
        """
        w, tree = self.w, self.tree
        draft, directory = w[INTENT], ROOT
        tree.check_child(draft, 0, INTENT)
        for _ in range(MOVED_A_VISIT):
            draft, directory = self._descend(draft, directory)
            at = self.names.at(draft)
            child, above = w[at + D_CHILD], w[at + N_PARENT]
            if child:
                self._take_to(section, child, directory)
            elif above:
                tree.unlink(section, draft)
                tree.unmake(section, draft, KIND_DIR)
                draft, directory = above, w[self.names.at(directory) + N_PARENT]
            else:
                tree.unmake(section, draft, KIND_DIR)
                section.plan[INTENT] = 0
            section.commit()
            section.leave_nodes()
            if not w[INTENT]:
                return False
        return True

    def _descend(self, draft: int, directory: int) -> tuple[int, int]:
        """From a directory of the tree and the one that stands in its place to where the next entry is to be moved."""
        w, tree, at = self.w, self.tree, self.names.at
        while child := w[at(draft) + D_CHILD]:
            tree.check_child(child, draft, at(draft) + D_CHILD)
            if tree.kind(child) != KIND_DIR:
                break
            there = tree.find(directory, tree.name(at(child)))
            if not there:
                break
            if tree.kind(there) != KIND_DIR:
                raise MFSCorruptStoreError("index", INTENT * WORD, "a tree that fits", there)
            draft, directory = child, there
        return draft, directory

    def _take_to(self, section: Section, node: int, directory: int) -> None:
        """Move an entry of the tree to its directory; the closed file that has its name there goes."""
        old = self.tree.find(directory, self.tree.name(self.names.at(node)))
        if old:
            if self.tree.kind(old) != KIND_FILE:
                raise MFSCorruptStoreError("index", INTENT * WORD, "a tree that fits", old)
            section.enter(old)
            self.names.take_away(section, old)
        self.tree.move(section, node, directory)


def _check_paths(files: Files) -> None:
    """FileExistsError if one of them would have to be a directory for another one; IsADirectoryError for the root."""
    known: set[Parts] = set()
    for parts in files:
        if not parts:
            raise IsADirectoryError("Is a directory: '/'")
        for end in range(len(parts) - 1, 0, -1):
            above = parts[:end]
            if above in known:
                break
            if above in files:
                raise FileExistsError(f"A file exists at path component: '{above[-1].decode('utf-8', 'replace')}'")
            known.add(above)


class _Import:
    """The files of an import on their way into its tree."""

    def __init__(self, graft: Graft) -> None:
        self.graft = graft
        self.names = graft.names
        self.directories: dict[Parts, int] = {(): graft.top}
        self.left: list[tuple[Parts, int, Fill]] = []

    def prepare(self, files: Files) -> None:
        """Make the files beneath the top: small ones many a visit."""
        self.left = [(parts, size, fill) for parts, (size, fill) in files.items()]
        self.left.reverse()
        transact, timeout = self.graft.store.transact, self.graft.timeout
        while self.left:
            parts, size, fill = self.left[-1]
            if size <= COPIED_IN_SECTION_MOST:
                transact(self._visit, timeout)
            else:
                self.graft.make_file(transact(self._parent_of_next, timeout), parts[-1], size, fill)
                self.left.pop()

    def _visit(self, section: Section) -> None:
        room = COPIED_IN_SECTION_MOST
        for _ in range(PREPARED_A_VISIT):
            if not self.left or self.left[-1][1] > room:
                break
            parts, size, fill = self.left[-1]
            node = self.graft.add(section, KIND_FILE, self._directory(section, parts[:-1]), parts[-1], size)
            self.names.give_content(section, node, size, fill, None)
            section.commit()
            room -= size
            self.left.pop()

    def _parent_of_next(self, section: Section) -> int:
        return self._directory(section, self.left[-1][0][:-1])

    def _directory(self, section: Section, parts: Parts) -> int:
        """The directory in the tree, made and committed if it is not among those that are known."""
        depth = len(parts)
        while parts[:depth] not in self.directories:
            depth -= 1
        for end in range(depth + 1, len(parts) + 1):
            node = self.graft.add(section, KIND_DIR, self.directories[parts[: end - 1]], parts[end - 1])
            self.names.w[self.names.at(node) + N_PIN] = self._account(parts[:end]) << 32  # plainly, as `Graft.add` does
            section.commit()
            self.directories[parts[:end]] = node
        return self.directories[parts]

    def _account(self, parts: Parts) -> int:
        """What a new entry of the directory at this path is to be charged to: the nearest that stands says it."""
        return self.names.account_in(self.names.nearest(list(parts)))

    def has_other_accounts(self) -> bool:
        """Whether what was made would be charged to another account by now."""
        names = self.names
        return bool(names.w[QUOTAS]) and any(
            names.account_in(node) != self._account(parts) for parts, node in self.directories.items()
        )
