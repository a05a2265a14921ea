"""Nodes, directories and names.

Guarantees. A name is in exactly one bucket of the hash table and in its directory's list; both change in one transaction
of m[0]. A node's generation is odd while it is in use; it changes whenever the node is freed, and whenever its name
changes, so that (node, generation) once looked up stands for that name as long as the generation and the namespace word
are the same: this is what an open compares inside the node's mutex, and why it needs no other lock.

Looking up takes no lock. What is found is checked by generation; what is not found is believed if no name changed
meanwhile (`TREE_SEQ` even and the same), else looked for again inside m[0]. Walks are bounded, and no word is used as a
reference before it was compared with what has memory.

Names are hashed with their directory by linear hashing: one bucket is split a create, so no step is linear in the number
of files. Node 1 is the root, its own parent.
"""

from __future__ import annotations

import time
import zlib
from array import array
from typing import TYPE_CHECKING

from ..errors import MFSCorruptStoreError, MFSNodeLimitExceededError
from .journal import Plan, Words
from .layout import (
    BUCKETS,
    BUCKETS_BACKED,
    D_CHILD,
    DIRS,
    DRAFTED,
    FILES,
    KIND_DIR,
    KIND_DRAFT,
    KIND_FILE,
    KIND_FREE,
    KIND_NAME,
    KIND_SHIFT,
    LOW32,
    N_GENERATION,
    N_NAME,
    N_NEXT,
    N_PARENT,
    N_PIN,
    N_SEQ,
    N_SIBLINGS,
    N_SIZE,
    N_TEXT,
    NAME_BYTES_SHIFT,
    NAMESPACE,
    NODE_BACKED,
    NODE_BREAK,
    NODE_FREE,
    NODE_STEP,
    NODE_WORDS,
    PAGE,
    PAGE_WORDS,
    ROOT,
    TEXT_BYTES,
    TREE_SEQ,
    W_NODES_MAX,
    W_UUID_LOW,
    WORD,
)
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment

SPLIT_NODES_MAX = 60  # a longer bucket is split another time
REMOVED, UNPUBLISHED = "(removed)", "(unpublished)"  # in place of the path of a file that has none
_IDENTITY = (1 << 48) - 1  # hash and length in N_NAME
NODE_GROWTH_MOST = 16384
PATH_PARTS_MOST = 2048


class NeedNodes(Exception):
    """The index has no memory for another node: `Tree.grow` outside the section, and try again."""


class Unsettled(Exception):
    """What was read without a lock changed meanwhile."""


class Tree:
    """The nodes and names of a store."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w: Words = store.w
        self.mm = store.index.mm
        self.nodes_at = store.layout.nodes_at
        self.buckets_at = store.layout.buckets_at
        self.nodes_cap = store.layout.nodes_cap
        self.nodes_max = store.w[W_NODES_MAX]
        self.seed = store.w[W_UUID_LOW] & LOW32

    # ---- reading

    def kind(self, node: int) -> int:
        return self.w[self.nodes_at + node * NODE_WORDS + N_NAME] >> KIND_SHIFT & 0xFF

    def check_node(self, node: int, at: int) -> int:
        """The word of a node that a reference at word *at* leads to; MFSCorruptStoreError if it can't be one."""
        if not 0 < node < self.w[NODE_BACKED]:
            raise MFSCorruptStoreError("index", at * WORD, "a node", node)
        return self.nodes_at + node * NODE_WORDS

    def check_entry(self, node: int) -> None:
        """MFSCorruptStoreError unless a node that has a name is a file or directory in use. REQUIRES m[0]."""
        at = self.nodes_at + node * NODE_WORDS
        if self.kind(node) not in (KIND_FILE, KIND_DIR) or not self.w[at + N_GENERATION] & 1:
            raise MFSCorruptStoreError("index", (at + N_NAME) * WORD, "a file or directory", self.w[at + N_NAME])

    def check_child(self, node: int, parent: int, at: int) -> None:
        """MFSCorruptStoreError unless the node that word *at* leads to is an entry of that directory; of 0: one that has
        lost its name. From directory to entry so checked, no walk comes back to where it was."""
        word = self.check_node(node, at)
        if self.w[word + N_PARENT] != parent or (not parent and self.kind(node) != KIND_DIR):
            raise MFSCorruptStoreError("index", at * WORD, f"an entry of node {parent}", node)

    def add(self, section: Section, kind: int, parent: int, name: bytes, size: int = 0, content: int = 0) -> int:
        """A new file or directory with that name, which must not stand; the words of `N_SIZE` and `N_CONTENT` are given.

        Its lock word is 0 and, until the commit, its generation is of no use to anybody else, so that the words of its
        own are stored plainly. It is `make` and `link` in one, for the hot path.
        """
        w, plan = section.w, section.plan
        now_is = plan.__getitem__ if plan else w.__getitem__
        node = now_is(NODE_FREE)
        if node and (not plan or self._was_free(node)):
            at = self.check_node(node, NODE_FREE)
            plan[NODE_FREE] = now_is(at + N_NEXT) & LOW32
        else:
            node = now_is(NODE_BREAK)
            if node >= w[NODE_BACKED]:
                raise NeedNodes
            plan[NODE_BREAK] = node + 1
            at = self.nodes_at + node * NODE_WORDS
        w[at + N_SEQ] = w[at + N_SEQ] + 1 | 1
        section.even(at + N_SEQ)
        generation = w[at + N_GENERATION]
        plan[at + N_GENERATION] = generation + 1
        plan.never_back(at + N_GENERATION, generation + 2)
        key = self.hash(parent, name)
        directory = self.nodes_at + parent * NODE_WORDS + D_CHILD
        first = now_is(directory)
        account = now_is(directory + N_PIN - D_CHILD)  # a directory has no pin: it is the account alone
        now = time.time_ns()
        identity = key | len(name) << NAME_BYTES_SHIFT | kind << KIND_SHIFT
        w[at] = 0
        w[at + N_SIZE : at + N_TEXT] = array("Q", (size, content, now, now, 0, 0, 0, parent, identity, first, 0, account))
        rest = 0
        if len(name) <= TEXT_BYTES:
            start = (at + N_TEXT) * WORD
            self.mm[start : start + len(name)] = name
        else:
            rest = self._write_text(section, at, name, fresh=True) << 32
        if first:
            sibling = self.check_node(first, directory) + N_SIBLINGS
            plan[sibling] = node << 32 | now_is(sibling) & LOW32
        plan[directory] = node
        buckets = now_is(BUCKETS)
        bucket = self.bucket(key, buckets)
        plan[at + N_NEXT] = now_is(bucket) | rest
        plan[bucket] = node
        counter = DIRS if kind == KIND_DIR else FILES
        plan[counter] = now_is(counter) + 1
        section.renames()
        if plan[FILES] + plan[DIRS] > buckets:
            self.split(plan)
        return node

    def hash(self, parent: int, name: bytes) -> int:
        return zlib.crc32(name, (parent * 0x9E3779B1 ^ self.seed) & LOW32)

    def bucket(self, key: int, buckets: int) -> int:
        """Word of the bucket of a hash when there are so many buckets."""
        number = key & (1 << (buckets - 1).bit_length()) - 1
        return self.buckets_at + (number if number < buckets else number ^ 1 << number.bit_length() - 1)

    def find(self, parent: int, name: bytes) -> int:
        """The node of that name in that directory, or 0; without a lock: check it, or see `absent`.

        MFSCorruptStoreError if a chain leads nowhere, which without m[0] may also mean that it changed meanwhile.
        """
        w = self.w
        key = self.hash(parent, name)
        identity = key | len(name) << NAME_BYTES_SHIFT
        buckets = w[BUCKETS]
        if not 0 < buckets <= w[BUCKETS_BACKED]:
            raise MFSCorruptStoreError("index", BUCKETS * WORD, "buckets that have memory", buckets)
        before = self.bucket(key, buckets)
        node = w[before]
        backed = w[NODE_BACKED]
        steps = 0
        while node:
            if node >= backed or steps > backed:
                raise MFSCorruptStoreError("index", before * WORD, "a node", node)
            at = self.nodes_at + node * NODE_WORDS
            if w[at + N_NAME] & _IDENTITY == identity and w[at + N_PARENT] == parent and self._has_name(at, name):
                return node
            before = at + N_NEXT
            node = w[before] & LOW32
            steps += 1
        return 0

    def _has_name(self, at: int, name: bytes) -> bool:
        start = (at + N_TEXT) * WORD
        if len(name) <= TEXT_BYTES:
            return self.mm[start : start + len(name)] == name
        return self.name(at) == name

    def name(self, at: int) -> bytes:
        """The name of the node at word *at*."""
        size = self.w[at + N_NAME] >> NAME_BYTES_SHIFT & 0xFFFF
        start = (at + N_TEXT) * WORD
        if size <= TEXT_BYTES:
            return self.mm[start : start + size]
        rest = self.w[at + N_NEXT] >> 32
        more = (self.check_node(rest, at + N_NEXT) + N_TEXT) * WORD
        return self.mm[start : start + TEXT_BYTES] + self.mm[more : more + min(size, 2 * TEXT_BYTES) - TEXT_BYTES]

    def walk(self, parts: list[bytes]) -> int:
        """The node at that path from the root, or 0 if a part is missing or stands under a file. As `find`."""
        node = ROOT
        for part in parts:
            if self.kind(node) != KIND_DIR:
                return 0
            node = self.find(node, part)
            if not node:
                return 0
        return node

    def look_up(self, parts: list[bytes]) -> tuple[int, int, int]:
        """(node, generation, namespace) at that path, node 0 if there is none: as it was at one moment of the call.

        Takes no lock. Unsettled: names changed meanwhile; look again inside m[0].

        Every node on the way is looked at as `_settled` does, for it may have become another one since it was found. A
        directory that was settled keeps its name while the namespace word stays; so the whole path was there when its last
        part was settled.
        """
        w = self.w
        names, namespace = w[TREE_SEQ], w[NAMESPACE]
        node, generation, kind = ROOT, w[self.nodes_at + ROOT * NODE_WORDS + N_GENERATION], KIND_DIR
        for part in parts:
            try:
                found = self.find(node, part) if kind == KIND_DIR else 0
            except MFSCorruptStoreError:
                if names & 1 or w[TREE_SEQ] != names:
                    raise Unsettled from None
                raise
            if not found:
                if names & 1 or namespace & 1 or w[TREE_SEQ] != names:
                    raise Unsettled
                return 0, 0, namespace
            generation, kind = self._settled(found, node, part)
            node = found
        if namespace & 1 or w[NAMESPACE] != namespace or (not parts and self.kind(ROOT) != KIND_DIR):
            raise Unsettled
        return node, generation, namespace

    def _settled(self, node: int, parent: int, name: bytes) -> tuple[int, int]:
        """(generation, kind) of a node that has that name in that directory, not half made or moved; or Unsettled."""
        w, at = self.w, self.nodes_at + node * NODE_WORDS
        # In this order: generation, sequence, name, sequence. A creation or a rename that is under way has the sequence odd
        # before it stores anything else, and until everything else is committed or undone.
        generation, sequence = w[at + N_GENERATION], w[at + N_SEQ]
        if not generation & 1 or sequence & 1:
            raise Unsettled
        word = w[at + N_NAME]
        if word >> NAME_BYTES_SHIFT & 0xFFFF != len(name) or w[at + N_PARENT] != parent or not self._has_name(at, name):
            raise Unsettled
        kind = word >> KIND_SHIFT & 0xFF
        if w[at + N_SEQ] != sequence or kind not in (KIND_FILE, KIND_DIR):
            raise Unsettled
        return generation, kind

    def children(self, node: int) -> list[int]:
        """The entries of a directory. REQUIRES m[0], or that the caller checks that no name changed meanwhile."""
        w = self.w
        found: list[int] = []
        before = self.nodes_at + node * NODE_WORDS + D_CHILD
        child = w[before]
        backed = w[NODE_BACKED]
        while child:
            if child >= backed or len(found) > backed:
                raise MFSCorruptStoreError("index", before * WORD, "a node", child)
            found.append(child)
            before = self.nodes_at + child * NODE_WORDS + N_SIBLINGS
            child = w[before] & LOW32
        return found

    def path(self, node: int) -> str:
        """The path of a node, for people; "?" where it can't be told."""
        parts: list[str] = []
        for _ in range(2048):
            if node == ROOT:
                return "/" + "/".join(reversed(parts))
            if not 0 < node < self.w[NODE_BACKED]:
                break
            at = self.nodes_at + node * NODE_WORDS
            if self.kind(node) not in (KIND_FILE, KIND_DIR):
                return UNPUBLISHED if self.kind(node) == KIND_DRAFT else REMOVED
            parts.append(self.name(at).decode("utf-8", "replace"))
            node = self.w[at + N_PARENT]
        return "?"

    def parts(self, node: int) -> list[bytes] | None:
        """The names that lead from the root to a node; None if it does not hang on the root. Without a lock: what was read
        counts if the namespace word was even and is the same when the node's lock is taken."""
        w = self.w
        found: list[bytes] = []
        backed = w[NODE_BACKED]
        while node != ROOT:
            if not 0 < node < backed or len(found) > PATH_PARTS_MOST:
                return None
            at = self.nodes_at + node * NODE_WORDS
            try:
                found.append(self.name(at))
            except MFSCorruptStoreError:  # it was renamed this very moment
                return None
            node = w[at + N_PARENT]
        found.reverse()
        return found

    # ---- nodes

    def check_limit(self, section: Section, more: int = 0) -> None:
        """MFSNodeLimitExceededError if the store, with so many more, may have no further file or directory."""
        if self.nodes_max:
            count = self.count(section) + more
            if count >= self.nodes_max:
                raise MFSNodeLimitExceededError(count, self.nodes_max)

    def count(self, section: Section) -> int:
        """How many files and directories there are, without those that are being prepared."""
        plan = section.plan
        drafted = plan[DRAFTED]
        return plan[FILES] + plan[DIRS] - (drafted >> 32) - (drafted & LOW32)

    def take_node(self, section: Section) -> int:
        """A free node, taken. Its words may be stored plainly until the commit: nobody looks at a free node."""
        plan = section.plan
        node = plan[NODE_FREE]
        if node and self._was_free(node):
            at = self.check_node(node, NODE_FREE)
            plan[NODE_FREE] = plan[at + N_NEXT] & LOW32
            plan[at + N_NEXT] = 0
            return node
        node = plan[NODE_BREAK]
        if node >= section.w[NODE_BACKED]:
            raise NeedNodes
        plan[NODE_BREAK] = node + 1
        return node

    def _was_free(self, node: int) -> bool:
        """Whether a node of the free chain was in it before the transaction.

        One that only the plan frees is still in use for everybody else, and after our death: it must not be stored to
        plainly, so it is not taken before the commit.
        """
        return self.w[self.check_node(node, NODE_FREE) + N_NAME] >> KIND_SHIFT & 0xFF == KIND_FREE

    def free_node(self, section: Section, node: int) -> None:
        """Give a node back; its generation must be even in the plan."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        plan[at + N_NAME] = KIND_FREE << KIND_SHIFT
        plan[at + N_NEXT] = plan[NODE_FREE]
        plan[NODE_FREE] = node

    def grow(self) -> None:
        """Memory for more nodes. Outside any section. MFSNoSpaceError."""
        w = self.w
        backed = w[NODE_BACKED]
        if w[NODE_BREAK] > backed:
            raise MFSCorruptStoreError("index", NODE_BREAK * WORD, f"at most the {backed} nodes with memory", w[NODE_BREAK])
        more = min(max(NODE_STEP, backed // 2 // NODE_STEP * NODE_STEP), NODE_GROWTH_MOST, self.nodes_cap - backed)
        if more <= 0:
            raise MFSNodeLimitExceededError(backed, self.nodes_cap)
        self.store.back((self.nodes_at + backed * NODE_WORDS) * WORD, more * NODE_WORDS * WORD)

        def publish(section: Section) -> None:
            w[NODE_BACKED] = max(w[NODE_BACKED], backed + more)

        self.store.sections.run(publish)

    def make_directory(self, section: Section, account: int) -> int:
        """A new directory without a name, what is in it to be charged to that account."""
        plan = section.plan
        node = self._make(section, KIND_DIR, account)
        self._begin_life(section, node)
        plan[DIRS] = plan[DIRS] + 1
        return node

    def make_draft(self, section: Section, lock: int, account: int) -> int:
        """A new file without a name, with that lock word, charged to that account. It has the generation of a free node:
        nobody may look for it."""
        node = self._make(section, KIND_DRAFT, account)
        section.w[self.nodes_at + node * NODE_WORDS] = lock
        return node

    def _make(self, section: Section, kind: int, account: int) -> int:
        w = section.w
        node = self.take_node(section)
        at = self.nodes_at + node * NODE_WORDS
        now = time.time_ns()
        w[at + N_SEQ] = w[at + N_SEQ] + 1 | 1
        section.even(at + N_SEQ)
        w[at] = 0
        w[at + N_SIZE : at + N_TEXT] = array("Q", (0, 0, now, now, 0, 0, 0, 0, kind << KIND_SHIFT, 0, 0, account << 32))
        return node

    def _begin_life(self, section: Section, node: int) -> None:
        """The node gets a generation that nobody has seen."""
        word = self.nodes_at + node * NODE_WORDS + N_GENERATION
        generation = section.w[word]
        section.plan[word] = generation + 1
        section.plan.never_back(word, generation + 2)

    def publish_draft(self, section: Section, node: int, parent: int, name: bytes) -> None:
        """A file that was made without a name gets one, which must not stand in the plan."""
        self._begin_life(section, node)
        self.link(section, node, KIND_FILE, parent, name)
        section.plan[FILES] = section.plan[FILES] + 1

    def unmake(self, section: Section, node: int, kind: int) -> None:
        """Free a file or directory that has no name any more (and no content)."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        if kind == KIND_DIR:
            self.store.content.accounts.part(section, node)
        plan[at + N_GENERATION] = plan[at + N_GENERATION] + 1 & ~1
        rest = plan[at + N_NEXT] >> 32
        if rest:
            self.free_node(section, rest)
        self.free_node(section, node)
        counter = DIRS if kind == KIND_DIR else FILES
        plan[counter] = plan[counter] - 1

    # ---- names

    def link(self, section: Section, node: int, kind: int, parent: int, name: bytes) -> None:
        """Give a nameless node a name."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        key = self.hash(parent, name)
        rest = self._write_text(section, at, name, fresh=False)
        plan[at + N_NAME] = key | len(name) << NAME_BYTES_SHIFT | kind << KIND_SHIFT
        self._enter(section, node, parent, rest)

    def move(self, section: Section, node: int, parent: int) -> None:
        """Take an entry to another directory, where its name must not stand in the plan."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        key, rest = self.hash(parent, self.name(at)), plan[at + N_NEXT] >> 32
        self.unlink(section, node)
        plan[at + N_NAME] = plan[at + N_NAME] & ~LOW32 | key
        self._enter(section, node, parent, rest)

    def _enter(self, section: Section, node: int, parent: int, rest: int) -> None:
        """Enter a node that has the words of its name into its directory's list and its bucket."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        bucket = self.bucket(plan[at + N_NAME] & LOW32, plan[BUCKETS])
        plan[at + N_PARENT] = parent
        first = plan[self.nodes_at + parent * NODE_WORDS + D_CHILD]
        plan[at + N_SIBLINGS] = first
        if first:
            sibling = self.check_node(first, at) + N_SIBLINGS
            plan[sibling] = node << 32 | plan[sibling] & LOW32
        plan[self.nodes_at + parent * NODE_WORDS + D_CHILD] = node
        plan[at + N_NEXT] = plan[bucket] | rest << 32
        plan[bucket] = node
        section.renames()

    def _write_text(self, section: Section, at: int, name: bytes, *, fresh: bool) -> int:
        """Store the name's bytes; returns the node with the rest of a long name, or 0."""
        start = (at + N_TEXT) * WORD
        head, tail = name[:TEXT_BYTES], name[TEXT_BYTES:]
        if fresh:
            self.mm[start : start + len(head)] = head
        else:
            padded = head.ljust(-(-len(head) // WORD) * WORD, b"\0")
            for word in range(len(padded) // WORD):
                section.plan[at + N_TEXT + word] = int.from_bytes(padded[word * WORD : (word + 1) * WORD], "little")
        if not tail:
            return 0
        rest = self.take_node(section)
        more = self.nodes_at + rest * NODE_WORDS
        section.w[more + N_NAME] = KIND_NAME << KIND_SHIFT
        self.mm[(more + N_TEXT) * WORD : (more + N_TEXT) * WORD + len(tail)] = tail
        return rest

    def unlink(self, section: Section, node: int) -> None:
        """Take a node's name away; what it was stays to be freed or linked again."""
        plan = section.plan
        at = self.nodes_at + node * NODE_WORDS
        self._leave_bucket(section, node, at)
        links = plan[at + N_SIBLINGS]
        before, after = links >> 32, links & LOW32
        if before:
            refers = self.check_node(before, at + N_SIBLINGS) + N_SIBLINGS
        else:
            refers = self.check_node(plan[at + N_PARENT], at + N_PARENT) + D_CHILD
        if plan[refers] & LOW32 != node:
            raise MFSCorruptStoreError("index", refers * WORD, f"a reference to node {node}", plan[refers])
        plan[refers] = plan[refers] & ~LOW32 | after
        if after:
            sibling = self.check_node(after, at + N_SIBLINGS) + N_SIBLINGS
            plan[sibling] = before << 32 | plan[sibling] & LOW32
        section.renames()

    def _leave_bucket(self, section: Section, node: int, at: int) -> None:
        plan = section.plan
        before = self.bucket(plan[at + N_NAME] & LOW32, plan[BUCKETS])
        steps = 0
        while plan[before] & LOW32 != node:
            before = self.check_node(plan[before] & LOW32, before) + N_NEXT
            steps += 1
            if steps > section.w[NODE_BACKED]:
                raise MFSCorruptStoreError("index", before * WORD, "a bucket that ends", plan[before])
        plan[before] = plan[before] & ~LOW32 | plan[at + N_NEXT] & LOW32

    def split(self, plan: Plan) -> None:
        """Split the next bucket, as is to be done when there are more names than buckets; put off if it is long or has no
        memory."""
        w, buckets = self.w, plan[BUCKETS]
        if buckets >= w[BUCKETS_BACKED]:
            self.store.wants_buckets = True
            return
        level = buckets.bit_length() - 1
        old, new = self.buckets_at + buckets - (1 << level), self.buckets_at + buckets
        stay: list[int] = []
        go: list[int] = []
        node = plan[old]
        while node:
            at = self.check_node(node, old)
            (go if plan[at + N_NAME] >> level & 1 else stay).append(node)
            node = plan[at + N_NEXT] & LOW32
            if len(stay) + len(go) > SPLIT_NODES_MAX:
                return
        for head, chain in ((old, stay), (new, go)):
            before = head
            for node in [*chain, 0]:
                if plan[before] & LOW32 != node:
                    plan[before] = (plan[before] & ~LOW32 if before != head else 0) | node
                before = self.nodes_at + node * NODE_WORDS + N_NEXT
        plan[BUCKETS] = buckets + 1

    def grow_buckets(self) -> None:
        """Memory for as many buckets again. Outside any section; MFSNoSpaceError only costs longer chains."""
        w = self.w
        backed = w[BUCKETS_BACKED]
        more = min(max(backed, PAGE_WORDS), -(-self.nodes_cap // PAGE_WORDS) * PAGE_WORDS - backed)
        if more <= 0:
            return
        self.store.back((self.buckets_at + backed) * WORD // PAGE * PAGE, more * WORD)

        def publish(section: Section) -> None:
            w[BUCKETS_BACKED] = max(w[BUCKETS_BACKED], backed + more)

        self.store.sections.run(publish)
