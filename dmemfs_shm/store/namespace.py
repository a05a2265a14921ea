"""What can be done to names: create, remove, rename, replace, copy, directories, and the end of a hold.

Each operation is one transaction of m[0] (with the mutexes of the files it concerns), or, where its size has no bound, a
transaction that detaches or publishes, and small ones before or after it:

    rmtree      one transaction puts the subtree on the trash list; then its nodes are freed a few at a time (see `sweep`)
    put         content is written into free blocks, then attached with its name or swapped in
    draft       a file grows without a name, in the ring DRAFTS, under the exclusive lock of the one handle that knows it;
                `publish` gives it its name, over the file that has it, and ends the lock, in one transaction. Until
                then the end of the lock, by death or otherwise, is its end.

A file that is to be renamed or removed must not be open anywhere. That is exact: its mutex is held when its lock word is
looked at, and its generation changes, which every open compares. For a directory the namespace word goes odd first, then
every node mutex is passed once (whoever has compared the old value has stored its record by then), then the records of all
slots are looked at. A dead holder is reaped before anything is refused.

`replace` does not wait for readers: the old file loses its name and lives on as an orphan until the last one closes.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ..errors import (
    MFSAbandonedFileError,
    MFSFileOpenError,
    MFSParameterError,
)
from .content import units_for
from .layout import (
    D_CHILD,
    DRAFTS,
    FILES,
    FREE,
    HELD,
    KIND_DIR,
    KIND_DRAFT,
    KIND_FILE,
    KIND_ORPHAN,
    KIND_SHIFT,
    LOCK_ABANDONED,
    LOCK_BUSY,
    LOCK_MORE,
    LOCK_WRITER,
    LOW32,
    N_CAPACITY,
    N_CONTENT,
    N_CREATED,
    N_GENERATION,
    N_LOCK,
    N_MODIFIED,
    N_NAME,
    N_NEXT,
    N_PARENT,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SEQ,
    N_SIZE,
    N_STAMP,
    NAME_BYTES_MAX,
    NAMESPACE,
    NODE_WORDS,
    ORPHANED,
    ORPHANS,
    QUOTAS,
    REC_DIRTY,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
    ROOT,
    STAMP_MASK,
    STATE_READY,
    TRASH,
    UNIT,
    W_FILE_CHARGE,
    W_STATE,
    WATCHED,
    X_NEXT,
)
from .section import Section
from .segment import Segment
from .tree import Unsettled

if TYPE_CHECKING:
    from .attachment import Attachment

PLANNED_MOST = 120  # words of new directories in a transaction: about 15 of them, and as many again for what follows
COPIED_IN_SECTION_MOST = 64 << 10  # bytes: about 10 us of copying inside m[0]
PATHS_CACHED_MOST = 16384
_WRITES = HELD | REC_WRITER

T = TypeVar("T")
Fill = Callable[[Segment, int], None]
Approve = Callable[[int], None]
Parts = tuple[bytes, ...]
Found = tuple[int, int, int]


class Path:
    """A path that was parsed: the parts as UTF-8, and the text the user gave, for messages."""

    __slots__ = ("parts", "text")

    def __init__(self, text: str, parts: list[bytes]) -> None:
        self.text = text
        self.parts = parts

    @property
    def parent(self) -> str:
        return "/" + "/".join(part.decode("utf-8", "surrogatepass") for part in self.parts[:-1])


class OtherAccount(Exception):
    """A directory is to go to where another account counts."""


def _across_quotas(src: Path, dst: Path) -> OSError:
    return OSError(errno.EXDEV, "Another directory's quota counts there: use move(), or copy", src.text, None, dst.text)


class Busy(Exception):
    """A file that must be closed is open: reap the dead and try again, then refuse."""

    def __init__(self, node: int) -> None:
        super().__init__(node)
        self.node = node


def stamp() -> int:
    """The word of a file that is published now, with no attempts."""
    return time.monotonic_ns() // 1000 & STAMP_MASK


def cut(name: bytes, most: int) -> bytes:
    """At most so many bytes of a name, no character of UTF-8 cut in two."""
    if len(name) <= most:
        return name
    while name[most] & 0xC0 == 0x80:
        most -= 1
    return name[:most]


class Namespace:
    """The names of a store, for one attached process."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.tree = store.tree
        self.content = store.content
        self.nodes_at = store.layout.nodes_at
        self.files: dict[str, Found] = {}
        self.directories: dict[str, Found] = {}
        self.parents: dict[str, Found] = {}  # by the text before the last slash, if what follows it is the last part

    def at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    # ---- looking up

    def find(self, path: Path, timeout: float | None) -> Found:
        """(node, generation, namespace) of a path, node 0 if there is none; without a lock if nothing moves."""
        if self.w[W_STATE] != STATE_READY:
            self.store.check_state()
        for _ in range(3):
            try:
                found = self.tree.look_up(path.parts)
            except Unsettled:
                continue
            if found[0]:
                self.remember(path.text, found)
            return found

        return self.store.transact(lambda section: self._walk(section, path.parts), timeout)

    def _walk(self, section: Section, parts: list[bytes]) -> Found:
        """As `find`, and from now on the way there is one without a lock, too."""
        tree, node = self.tree, ROOT
        tree.check_entry(ROOT)
        for part in parts:
            node = tree.find(node, part) if tree.kind(node) == KIND_DIR else 0
            if not node:
                return 0, 0, self.w[NAMESPACE]
            tree.check_entry(node)
            self.settle(section, node)
        return node, self.w[self.at(node) + N_GENERATION], self.w[NAMESPACE]

    def settle(self, section: Section, node: int) -> None:
        """Even a sequence that a dead process left odd."""
        sequence = self.at(node) + N_SEQ
        if self.w[sequence] & 1:
            section.enter(node)
            if self.w[sequence] & 1:
                self.w[sequence] = self.w[sequence] + 1
            section.leave_nodes()

    def remember(self, text: str, found: Found) -> None:
        cache = self.files if self.tree.kind(found[0]) == KIND_FILE else self.directories
        if len(cache) >= PATHS_CACHED_MOST:
            cache.clear()
        cache[text] = found

    def is_current(self, found: Found) -> bool:
        """Whether a remembered path still leads to the same node."""
        return self.w[self.at(found[0]) + N_GENERATION] == found[1] and self.w[NAMESPACE] == found[2]

    def kind_of(self, found: Found) -> int:
        """KIND_FILE or KIND_DIR; 0 if the path may lead elsewhere by now, and the node be anything."""
        kind = self.tree.kind(found[0])  # before the generation, which a node that is used anew has changed first
        return kind if self.is_current(found) else 0

    def parent_of(self, path: Path) -> int:
        """The directory that a new entry at the path would be in. REQUIRES m[0]. FileNotFoundError."""
        parts = path.parts[:-1]
        key, _, last = path.text.rpartition("/")
        known = self.parents.get(key)
        if known is not None and self.is_current(known) and last.encode("utf-8", "surrogatepass") == path.parts[-1]:
            return known[0]
        parent = self.tree.walk(parts)
        if not parent or self.tree.kind(parent) != KIND_DIR:
            raise FileNotFoundError(f"Parent directory does not exist: '{path.parent}'")
        if last.encode("utf-8", "surrogatepass") == path.parts[-1]:
            if len(self.parents) >= PATHS_CACHED_MOST:
                self.parents.clear()
            self.parents[key] = parent, self.w[self.at(parent) + N_GENERATION], self.w[NAMESPACE]
        return parent

    def file_at(self, path: Path) -> int:
        """The file at the path. REQUIRES m[0]. FileNotFoundError, IsADirectoryError."""
        node = self.tree.walk(path.parts)
        if not node:
            raise FileNotFoundError(f"No such file: '{path.text}'")
        if self.tree.kind(node) != KIND_FILE:
            raise IsADirectoryError(f"Is a directory: '{path.text}'")
        return node

    def nearest(self, parts: list[bytes]) -> int:
        """The last directory on the way that stands. REQUIRES m[0]."""
        node = ROOT
        for part in parts:
            below = self.tree.find(node, part)
            if not below or self.tree.kind(below) != KIND_DIR:
                break
            node = below
        return node

    def account_in(self, directory: int) -> int:
        """The account that a new entry of a directory is charged to, 0 for none. REQUIRES m[0]."""
        return self.w[self.at(directory) + N_PIN] >> 32

    # ---- trying again after the dead were reaped

    def attempt(self, step: Callable[[Section], T], timeout: float | None, *, doing: str = "") -> T:
        """Do a step that needs files to be closed. MFSFileOpenError if one is open and its holder lives."""
        try:
            return self.store.transact(step, timeout)
        except Busy:
            self.store.work_off()
            self.store.reap_dead(timeout)
            try:
                return self.store.transact(step, timeout)
            except Busy as busy:
                path = self.tree.path(busy.node)
                raise MFSFileOpenError(path, self.store.holders(busy.node), doing) from None

    def _must_be_closed(self, node: int) -> None:
        """REQUIRES m[0] and the node's mutex."""
        if self.store.rw.settled(self.at(node)) & LOCK_BUSY:
            raise Busy(node)

    def freeze(self, section: Section, node: int) -> None:
        """Nobody may open anything beneath this directory until the commit; Busy if somebody has something open."""
        section.freeze_namespace()
        for open_one in self.open_nodes():
            if self._is_beneath(open_one, node):
                raise Busy(open_one)

    def open_nodes(self) -> Iterator[int]:
        """The node of each lock record that is not free."""
        w = self.w
        for slot in range(self.store.layout.slots):
            if not self.store.participants.has_memory(slot):
                break
            for record in self.store.rw.records(slot):
                word = w[record]
                if word & REC_STATE and self.store.rw.is_standing(record):
                    yield word >> REC_NODE_SHIFT

    def _is_beneath(self, node: int, directory: int) -> bool:
        if self.tree.kind(node) != KIND_FILE:
            return False
        for _ in range(2048):
            if node == directory:
                return True
            if node in (0, ROOT):
                return False
            node = self.w[self.tree.check_node(node, self.at(node)) + N_PARENT]
        return False

    # ---- creating

    def create(self, path: Path, record: int, timeout: float | None) -> tuple[Found, bool]:
        """A new empty file, locked exclusively with this record, and True; or what stands there, not locked, and False."""

        def step(section: Section) -> tuple[Found, bool]:
            w = self.w
            parent = self.parent_of(path)
            node = self.tree.find(parent, path.parts[-1])
            if node:
                self.settle(section, node)
                return (node, w[self.at(node) + N_GENERATION], w[NAMESPACE]), False
            self.tree.check_limit(section)
            node = self.tree.add(section, KIND_FILE, parent, path.parts[-1])
            at = self.at(node)
            w[at + N_LOCK] = LOCK_WRITER | LOCK_MORE  # plainly: until the commit nobody has the generation to look at it
            section.plan[record] = HELD | REC_WRITER | REC_DIRTY | node << REC_NODE_SHIFT
            return (node, section.plan[at + N_GENERATION], w[NAMESPACE]), True

        self.store.rw.announce(record)
        return self.store.transact(step, timeout)

    def mkdir(self, path: Path, timeout: float | None, *, exist_ok: bool = False) -> None:
        """A directory and all those above it that are missing."""

        def step(section: Section) -> None:
            node = self.tree.walk(path.parts)
            if node:
                if self.tree.kind(node) != KIND_DIR:
                    raise FileExistsError(f"File exists at path: '{path.text}'")
                if not exist_ok:
                    raise FileExistsError(f"Directory exists: '{path.text}'")
                return
            self._make_directories(section, path.parts)

        self.store.transact(step, timeout)

    def _make_directories(self, section: Section, parts: list[bytes]) -> int:
        """See that the directories stand. Planned, to come true with what follows; only very many are committed in parts."""
        parent, missing = ROOT, False
        for part in parts:
            node = 0 if missing else self.tree.find(parent, part)
            if node and self.tree.kind(node) != KIND_DIR:
                raise FileExistsError(f"A file exists at path component: '{part.decode('utf-8', 'replace')}'")
            if not node:
                missing = True
                if len(section.plan) > PLANNED_MOST:
                    section.commit()
                self.tree.check_limit(section)
                node = self.tree.add(section, KIND_DIR, parent, part)
            parent = node
        return parent

    # ---- quotas of directories

    def set_quota(self, path: Path, limit: int | None, timeout: float | None) -> None:
        """Give a directory a quota, another one, or (None) none."""
        accounts = self.content.accounts

        def step(section: Section) -> None:
            node = self.tree.walk(path.parts)
            if not node:
                raise FileNotFoundError(f"No such directory: '{path.text}'")
            if self.tree.kind(node) != KIND_DIR:
                raise NotADirectoryError(f"Not a directory: '{path.text}'")
            account = accounts.own(node)
            if account and limit is not None:
                accounts.set_limit(section, account, limit)
            elif account or limit is not None:
                if self.w[self.at(node) + D_CHILD]:
                    raise OSError(errno.ENOTEMPTY, "Only an empty directory is given a quota, or loses it", path.text)
                if limit is None:
                    accounts.part(section, node)
                else:
                    accounts.open(section, node, limit)

        while self.w[QUOTAS] and self.store.transact(accounts.sweep, timeout):
            pass
        self.store.transact(step, timeout)

    def directory_quotas(self, timeout: float | None) -> list[tuple[str | None, int, int]]:
        """(path, limit, used) of each, in the order of the paths; path None: the directory or its quota is gone."""
        if not self.w[QUOTAS]:
            return []

        def step(_: Section) -> list[tuple[str | None, int, int]]:
            return [
                (self.tree.path(directory) if directory else None, limit, used)
                for directory, limit, used in self.content.accounts.all()
                if directory or used
            ]

        found = self.store.transact(step, timeout)
        found = [(None if path == "?" else path, limit, used) for path, limit, used in found]
        return sorted(found, key=lambda quota: quota[0] or "")

    # ---- content with a name, at once

    def put(
        self, path: Path, size: int, fill: Fill, timeout: float | None, *, replace: bool, content: int = 1, until: float = 0.0
    ) -> None:
        """A complete file of *size* bytes at the path: new, or (*replace*) instead of the one there.

        ``fill(segment, offset)`` stores the bytes; it must not raise for avoidable reasons and may be called twice.
        FileExistsError unless *replace*; a file there that is open for writing is waited for. until: see `space`.
        """
        if not path.parts:
            raise IsADirectoryError(f"Is a directory: '{path.text}'")
        if size <= COPIED_IN_SECTION_MOST:
            self._put_with(path, size, fill, None, timeout, until, replace=replace, content=content)
            return
        held = [self.content.lease_pin()]
        pin = held[0].word
        try:
            self.store.placement.stash(pin, size, fill, lambda: self.account_in(self.parent_of(path)), timeout, until)
            self._put_with(path, size, None, pin, timeout, until, replace=replace, content=content)
        finally:
            self.store.placement.give_back_pin(held.pop())

    def _put_with(
        self,
        path: Path,
        size: int,
        fill: Fill | None,
        pin: int | None,
        timeout: float | None,
        until: float,
        *,
        replace: bool,
        content: int,
    ) -> None:
        done = [0]

        def step(section: Section) -> int:
            return self._put_step(section, path, size, fill, pin, done, replace=replace, content=content)

        def run(step: Callable[[Section], int], rest: float | None) -> int:
            return self.store.space.transact(step, rest, until)

        self._behind_writers(path, run, step, done, timeout)

    def _behind_writers(
        self,
        path: Path,
        run: Callable[[Callable[[Section], int], float | None], int],
        step: Callable[[Section], int],
        done: list[int],
        timeout: float | None,
    ) -> None:
        """Run a step that gives the path another file: it returns 0, and leaves that in *done*, or the node there whose writer
        is to be waited for."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                busy = run(step, rest)
            finally:
                if self.w[WATCHED]:
                    self.announce(done[0])
            if not busy:
                return
            self._wait_for_writer(path, busy, rest)

    def _put_step(
        self,
        section: Section,
        path: Path,
        size: int,
        fill: Fill | None,
        pin: int | None,
        done: list[int],
        *,
        replace: bool,
        content: int,
    ) -> int:
        """One try: 0 if it is done, with the file's node in *done*, else the node whose writer is to be waited for."""
        parent = self.parent_of(path)
        node = self.tree.find(parent, path.parts[-1])
        if node:
            if not replace:
                raise FileExistsError(f"Destination already exists: '{path.text}'")
            if self.tree.kind(node) != KIND_FILE:
                raise IsADirectoryError(f"Is a directory: '{path.text}'")
            section.enter(node)
            lock = self.store.rw.settled(self.at(node))
            if lock & LOCK_WRITER:
                section.leave_nodes()
                return node
            if not lock & LOCK_BUSY and self.content.few_runs(section.plan, self.at(node)):
                self._swap_content(section, node, size, fill, pin)
                done[0] = node
                return 0
            self.take_away(section, node)
            content = self.w[self.at(node) + N_CONTENT] + 1
        elif not size:
            content = 0
        self.tree.check_limit(section)
        new = self._new_file(section, parent, path.parts[-1], size, fill, pin, content)
        if node:
            self.w[self.at(new) + N_CREATED] = self.w[self.at(node) + N_CREATED]
        done[0] = new
        return 0

    def _new_file(
        self, section: Section, parent: int, name: bytes, size: int, fill: Fill | None, pin: int | None, content: int
    ) -> int:
        """A complete file with a name that does not stand."""
        new = self.tree.add(section, KIND_FILE, parent, name, size, content)
        self.w[self.at(new)] = self.store.rw.come  # plainly, as all of it
        self.w[self.at(new) + N_STAMP] = stamp()
        self.give_content(section, new, size, fill, pin)
        return new

    def give_content(self, section: Section, node: int, size: int, fill: Fill | None, pin: int | None) -> None:
        """Give blocks with the content to a file that has none."""
        plan, at = section.plan, self.at(node)
        if pin is not None:
            self.content.take_from_stash(section, pin, node)
        elif size:
            units = units_for(size)
            self.content.charge(section, at, units * UNIT)
            plan[at + N_RUN] = run = self.content.blocks.allocate(plan, units)
            assert fill is not None
            fill(*self.store.arenas.locate(run))

    def _swap_content(self, section: Section, node: int, size: int, fill: Fill | None, pin: int | None) -> None:
        """New content for a closed file: the old blocks are freed, or stay with those who look at them."""
        plan, at = section.plan, self.at(node)
        section.sequence_odd(node)  # stored first: who reads without the lock must not see new words under an even one
        if plan[at + N_PIN] & LOW32 or pin is not None:
            self.content.release(section, node)
            self.give_content(section, node, size, fill, pin)
        else:
            self._replace_runs(section, node, self.content.runs(plan, at), size, fill)
            self.content.charge(section, at, units_for(size) * UNIT)
        plan[at + N_SIZE] = size
        plan[at + N_CONTENT] = plan[at + N_CONTENT] + 1
        plan[at + N_MODIFIED] = time.time_ns()
        plan[at + N_STAMP] = stamp()
        plan[at] = plan[at] & ~LOCK_ABANDONED

    def _replace_runs(self, section: Section, node: int, old: list[int], size: int, fill: Fill | None) -> None:
        plan, at, blocks = section.plan, self.at(node), self.content.blocks
        self.content.require(plan, at, units_for(size) * UNIT)
        new = blocks.allocate(plan, units_for(size)) if size else 0
        if new:
            assert fill is not None
            fill(*self.store.arenas.locate(new))
        chain = plan[at + N_RUNS] & LOW32
        while chain:
            following = plan[self.at(chain) + X_NEXT]
            self.tree.free_node(section, chain)
            chain = following
        for run in old:
            blocks.free(plan, run)
        plan[at + N_RUN] = new
        plan[at + N_RUNS] = 0

    def _succeed(self, section: Section, old: int, new: int) -> None:
        """*new* takes the place of *old*, which loses its name; created_at stays, the generation goes up."""
        plan = section.plan
        for word in (N_CREATED, N_CONTENT):
            section.set(new, word, plan[self.at(old) + word] + (word == N_CONTENT))
        self.take_away(section, old)

    def take_away(self, section: Section, node: int) -> None:
        """A file loses its name, and its content with its last reader. REQUIRES its mutex."""
        section.sequence_odd(node)  # stored first: who reads without the lock must not see new words under an even one
        self.tree.unlink(section, node)
        self.retire(section, node)

    def retire(self, section: Section, node: int) -> None:
        """A nameless file is freed, or becomes an orphan if it has readers or too many runs for this transaction."""
        plan, at = section.plan, self.at(node)
        if at not in plan:  # else its writer gives it up in the same plan: then nobody holds it lightly
            self.store.rw.settled(at)
        if not plan[at] & LOCK_BUSY and self.content.release(section, node):
            self.tree.unmake(section, node, KIND_FILE)
            return
        rest = plan[at + N_NEXT] >> 32
        if rest:
            self.tree.free_node(section, rest)
        plan[at + N_NEXT] = 0
        plan[at + N_GENERATION] = plan[at + N_GENERATION] + 1
        plan[at + N_NAME] = KIND_ORPHAN << KIND_SHIFT
        plan[FILES] = plan[FILES] - 1
        plan[ORPHANED] = plan[ORPHANED] + self.content.charged(plan[at + N_CAPACITY])
        self.content.enter_ring(section, ORPHANS, node)

    def _wait_for_writer(self, path: Path, node: int, timeout: float | None) -> None:
        """Until the file's writer is gone (then whoever waits looks again). TimeoutError."""
        found = self.find(path, timeout)
        if found[0] == node:
            held = [self.store.rw.lease()]
            try:
                self.store.rw.lock(node, found[1], found[2], held[0].word, 0, timeout)
            finally:
                self.store.rw.give_back(held.pop())

    # ---- removing

    def remove(self, path: Path, timeout: float | None) -> None:
        def step(section: Section) -> None:
            node = self.file_at(path)
            section.enter(node)
            self._must_be_closed(node)
            self.take_away(section, node)

        try:
            self.attempt(step, timeout)
            self.files.pop(path.text, None)
            if self.w[ORPHANS]:
                self.store.sweep.drain_orphans()
        except BaseException:
            if self.w[TRASH] or self.w[ORPHANS]:  # perhaps ours: the next operation sees to it
                self.store.dropped.append(None)
            raise

    def rmtree(self, path: Path, timeout: float | None, *, only_empty: bool = False) -> None:
        """Remove a directory with everything in it; *only_empty*: OSError(ENOTEMPTY) if there is anything."""

        def step(section: Section) -> None:
            node = self.tree.walk(path.parts)
            if not node:
                raise FileNotFoundError(f"No such directory: '{path.text}'")
            if self.tree.kind(node) != KIND_DIR:
                raise NotADirectoryError(f"Not a directory: '{path.text}'")
            if only_empty and self.w[self.at(node) + D_CHILD]:
                raise OSError(errno.ENOTEMPTY, "Directory not empty", path.text)
            self.freeze(section, node)
            self.tree.unlink(section, node)
            self.store.sweep.to_trash(section, node)

        try:
            self.attempt(step, timeout)
            self.store.sweep.drain_trash()
        except BaseException:
            if self.w[TRASH] or self.w[ORPHANS]:  # perhaps ours: the next operation sees to it
                self.store.dropped.append(None)
            raise

    # ---- renaming

    def rename(self, src: Path, dst: Path, timeout: float | None, *, make_parents: bool = False) -> None:
        """Give a file or directory another name; *make_parents* creates what is missing above it, and goes to where another
        directory's quota counts, too: a file in one transaction, a directory by a copy that takes its place (`Grafts.move`)."""
        renamed = [0]

        def step(section: Section) -> None:
            node = self.tree.walk(src.parts)
            if not node:
                raise FileNotFoundError(f"No such file or directory: '{src.text}'")
            if self.tree.walk(dst.parts):
                raise FileExistsError(f"Destination already exists: '{dst.text}'")
            directory = self.tree.kind(node) == KIND_DIR
            if directory and dst.parts[: len(src.parts)] == src.parts:
                raise MFSParameterError(f"Cannot move a directory into itself: '{src.text}' to '{dst.text}'")
            parent = 0 if make_parents else self.parent_for(section, dst, make_parents=False)
            if directory:
                self.freeze(section, node)
            else:
                section.enter(node)
                self._must_be_closed(node)
            if make_parents:
                parent = self.parent_for(section, dst, make_parents=True)
            account = self.account_in(parent)
            if account != self.account_in(node) and not (directory and self.content.accounts.own(node)):
                if not make_parents:
                    raise _across_quotas(src, dst)
                if directory:
                    raise OtherAccount
                self.content.assign(section, self.at(node), account)
            if directory and not self.w[NAMESPACE] & 1:  # making the parents was a commit of its own
                self.freeze(section, node)
            self._rename_node(section, node, parent, dst.parts[-1])
            renamed[0] = node

        try:
            self.attempt(step, timeout)
        except OtherAccount:
            self.store.grafts.move(src, dst, timeout)
        finally:
            if self.w[WATCHED]:
                self.announce(renamed[0])
        self.files.pop(src.text, None)

    def parent_for(self, section: Section, dst: Path, *, make_parents: bool) -> int:
        parent = self.tree.walk(dst.parts[:-1])
        if parent and self.tree.kind(parent) == KIND_DIR:
            return parent
        if not make_parents:
            raise FileNotFoundError(f"Destination parent does not exist: '{dst.text}'")
        return self._make_directories(section, dst.parts[:-1])

    def _rename_node(self, section: Section, node: int, parent: int, name: bytes, *, old: int = 0) -> None:
        """The node takes that name, of *old* if that stands. REQUIRES the mutexes of both."""
        plan, at = section.plan, self.at(node)
        kind = self.tree.kind(node)
        section.sequence_odd(node)  # stored first and undone last: see `Tree.look_up`
        if old:
            self._succeed(section, old, node)
        self.tree.unlink(section, node)
        rest = plan[at + N_NEXT] >> 32
        if rest:
            self.tree.free_node(section, rest)
        self.tree.link(section, node, kind, parent, name)
        if kind == KIND_FILE:
            plan[at + N_STAMP] = stamp()
        generation = plan[at + N_GENERATION]
        plan[at + N_GENERATION] = generation + 2
        plan.never_back(at + N_GENERATION, generation + 4)

    def replace(self, src: Path, dst: Path, timeout: float | None) -> None:
        """The closed file src takes the place of dst, at once for everybody; readers of the old dst keep it."""
        done = [0]

        def step(section: Section) -> int:
            node = self.file_at(src)
            old = self.tree.walk(dst.parts)
            if old == node:
                return 0
            if old and self.tree.kind(old) != KIND_FILE:
                raise IsADirectoryError(f"Is a directory: '{dst.text}'")
            section.enter(*([node, old] if old else [node]))
            self._must_be_closed(node)
            if old and self.w[self.at(old)] & LOCK_WRITER:
                return old
            parent = self.parent_for(section, dst, make_parents=False)
            if self.account_in(parent) != self.account_in(node):
                raise _across_quotas(src, dst)
            self._rename_node(section, node, parent, dst.parts[-1], old=old)
            done[0] = node
            return 0

        try:
            self._behind_writers(dst, self.attempt, step, done, timeout)
            self.files.pop(src.text, None)
            if self.w[ORPHANS]:
                self.store.sweep.drain_orphans()
        except BaseException:
            if self.w[TRASH] or self.w[ORPHANS]:  # perhaps ours: the next operation sees to it
                self.store.dropped.append(None)
            raise

    # ---- drafts

    def draft(self, path: Path, record: int, timeout: float | None, *, exclusive: bool) -> int:
        """A new empty file without a name, locked exclusively with this record: `publish` is to give it the path.

        What stands against that now is said now: FileNotFoundError, IsADirectoryError, FileExistsError (*exclusive*).
        """

        def step(section: Section) -> int:
            parent, _ = self._place_for(section, path, exclusive=exclusive)
            node = self.tree.make_draft(section, LOCK_WRITER, self.account_in(parent))
            section.plan[record] = HELD | REC_WRITER | REC_DIRTY | node << REC_NODE_SHIFT
            self.content.enter_ring(section, DRAFTS, node)
            return node

        self.store.rw.announce(record)
        return self.store.transact(step, timeout)

    def _place_for(self, section: Section, path: Path, *, exclusive: bool) -> tuple[int, int]:
        """(directory, file that stands there or 0) for a draft."""
        parent = self.parent_of(path)
        old = self.tree.find(parent, path.parts[-1])
        if not old:
            self.tree.check_limit(section)
        elif self.tree.kind(old) != KIND_FILE:
            raise IsADirectoryError(f"Is a directory: '{path.text}'")
        elif exclusive:
            raise FileExistsError(f"File exists: '{path.text}'")
        return parent, old

    def publish(self, path: Path, record: int, timeout: float | None, *, exclusive: bool) -> None:
        """The draft that the record holds takes the path, at once for everybody, and is unlocked; readers of the file that
        was there keep it. Without blocks to spare: see `fit`. Its writer is waited for."""
        done = [0]

        def step(section: Section) -> int:
            parent, old = self._place_for(section, path, exclusive=exclusive)
            node = self.w[record] >> REC_NODE_SHIFT
            section.enter(*([node, old] if old else [node]))
            if old and self.w[self.at(old)] & LOCK_WRITER:
                return old
            self._publish_draft(section, node, parent, path.parts[-1], old)
            section.plan[record] = FREE
            section.plan[self.at(node)] = 0
            done[0] = node
            return 0

        try:
            self._behind_writers(path, self.store.transact, step, done, timeout)
            if self.w[ORPHANS]:
                self.store.sweep.drain_orphans()
        except BaseException:
            if self.w[ORPHANS]:  # perhaps ours: the next operation sees to it
                self.store.dropped.append(None)
            raise

    def _publish_draft(self, section: Section, node: int, parent: int, name: bytes, old: int) -> None:
        plan, at = section.plan, self.at(node)
        self.content.assign(section, at, self.account_in(parent))  # another counts if the directory has gone and come
        section.sequence_odd(node)  # stored first and undone last: see `Tree.look_up`
        self.content.leave_ring(section, DRAFTS, node)
        plan[ORPHANED] = plan[ORPHANED] - self.content.charged(plan[at + N_CAPACITY])
        if old:
            self._succeed(section, old, node)
        self.tree.publish_draft(section, node, parent, name)
        plan[at + N_STAMP] = stamp()

    # ---- copies

    def copy(self, src: Path, dst: Path, approve: Approve, timeout: float | None, *, allow_abandoned: bool) -> None:
        """A copy of one file; nothing is left behind if it fails. ``approve(size)`` may refuse it by an exception."""

        def check(section: Section) -> Found:
            node = self.file_at(src)
            if self.tree.walk(dst.parts):
                raise FileExistsError(f"Destination already exists: '{dst.text}'")
            self.parent_of(dst)
            self.tree.check_limit(section)
            return node, self.w[self.at(node) + N_GENERATION], self.w[NAMESPACE]

        def copied(size: int, fill: Fill) -> None:
            approve(size and size + self.w[W_FILE_CHARGE])
            self.put(dst, size, fill, timeout, replace=False)

        def copy() -> bool:
            found = self.store.transact(check, timeout)
            return self.reading(found, src.text, timeout, copied, allow_abandoned=allow_abandoned)

        while not copy():
            pass

    def reading(
        self, found: Found, text: str, timeout: float | None, use: Callable[[int, Fill], None], *, allow_abandoned: bool
    ) -> bool:
        """Hold a file shared and hand its size and a function that copies its bytes elsewhere to *use*.

        False if the file is no longer the one that was found. MFSAbandonedFileError, unless *allow_abandoned*.
        """
        rw, node = self.store.rw, found[0]
        held = [rw.lease()]
        try:
            if not rw.lock(*found, held[0].word, 0, timeout):
                return False
            at = self.at(node)
            if self.w[at] & LOCK_ABANDONED and not allow_abandoned:
                raise MFSAbandonedFileError(text)
            size = self.w[at + N_SIZE]
            runs = self.content.runs(self.w, at)

            def fill(target: Segment, offset: int) -> None:
                self.store.arenas.copy_out(runs, size, target, offset)

            use(size, fill)
        finally:
            rw.give_back(held.pop())
        return True

    # ---- the end of a hold

    def before_unlock(self, word: int) -> None:
        """Before a writer's record gives back its lock: the blocks that its file does not need, and when it was published."""
        w, node = self.w, word >> REC_NODE_SHIFT
        at = self.nodes_at + node * NODE_WORDS
        size, capacity = w[at + N_SIZE], w[at + N_CAPACITY]
        if size != capacity and units_for(size) * UNIT < capacity:
            self.store.placement.fit(node)
        if word & REC_DIRTY:
            w[at + N_STAMP] = time.monotonic_ns() // 1000 & STAMP_MASK  # `stamp`

    def after_unlock(self, node: int) -> None:
        """The hold of what is no file (any more) has ended, and perhaps with it what kept it."""
        kind = self.tree.kind(node)
        if kind == KIND_ORPHAN:
            self.store.sweep.drain_orphans()
        elif kind == KIND_DRAFT:
            self.store.sweep.free_draft(node)

    def after_hold(self, node: int) -> None:
        """A request for a file's lock was taken back, and perhaps with it the last that kept it from being what it is."""
        if self.w[WATCHED]:
            self.store.publications.announce(node)
        if self.w[self.at(node) + N_NAME] >> KIND_SHIFT == KIND_ORPHAN:
            self.store.sweep.drain_orphans()

    def announce(self, node: int) -> None:
        """A file has got its name or content, or a directory its name, unless it came to nothing (node 0)."""
        if node and self.tree.kind(node) == KIND_FILE:
            self.store.publications.announce(node)
        elif node:
            self.store.publications.announce_all()

    # ---- claims: what the holder of a file's exclusive lock does to its name

    def consume(self, record: int) -> None:
        """Remove the file that the record holds exclusively, and end the hold, in one transaction.

        If others wait for the file, it loses its name there, and they are woken afterwards.
        """
        w = self.w
        node = w[record] >> REC_NODE_SHIFT
        at = self.at(node)

        def step(section: Section) -> None:
            if w[record] & _WRITES != _WRITES or self.tree.kind(node) != KIND_FILE:  # it was done, when an exception came
                return
            section.enter(node)
            if w[at] & LOCK_BUSY == LOCK_WRITER:
                self.store.rw.drop(section.plan, record, at)
            self.take_away(section, node)

        self.store.transact(step, self.store.patience)
        if w[ORPHANS]:
            self.store.sweep.drain_orphans()

    def set_aside(self, record: int, directory: Path) -> None:
        """Rename the file that the record holds exclusively into a directory, which is made if it is missing. It keeps its
        name; if that is taken there, a number is added. FileExistsError if a file is where the directory should be."""
        w = self.w
        node = w[record] >> REC_NODE_SHIFT

        def step(section: Section) -> None:
            if w[record] & _WRITES != _WRITES or self.tree.kind(node) != KIND_FILE:  # as in `consume`
                return
            parent = self._make_directories(section, directory.parts)
            section.enter(node)
            self._rename_node(section, node, parent, self._free_name(parent, self.tree.name(self.at(node))))

        self.store.transact(step, self.store.patience)  # it is announced when the hold ends

    def _free_name(self, parent: int, name: bytes) -> bytes:
        """The name, or the first of name.1, name.2, ... that is not taken in a directory."""
        free, number = name, 0
        while self.tree.find(parent, free):
            number += 1
            suffix = b".%d" % number
            free = cut(name, NAME_BYTES_MAX - len(suffix)) + suffix
        return free
