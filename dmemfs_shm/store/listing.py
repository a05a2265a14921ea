"""What is in directories: all that was there throughout, each once.

A listing walks the directory's list without a lock, and counts if no name changed meanwhile (TREE_SEQ); in a busy store it
visits m[0], for some entries at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import (
    MFSCorruptStoreError,
)
from .layout import (
    D_CHILD,
    DIRS,
    DRAFTED,
    FILES,
    KIND_DIR,
    KIND_FILE,
    KIND_SHIFT,
    LOW32,
    N_GENERATION,
    N_NAME,
    N_PARENT,
    N_SIBLINGS,
    N_TEXT,
    NAME_BYTES_SHIFT,
    NAMESPACE,
    NODE_BACKED,
    NODE_WORDS,
    TEXT_BYTES,
    TREE_SEQ,
    WORD,
)
from .section import Section

if TYPE_CHECKING:
    from .attachment import Attachment
    from .namespace import Path

LISTED_A_VISIT = 512


class Entry(NamedTuple):
    """One entry of a directory."""

    name: bytes
    kind: int
    node: int
    generation: int


class Listing:
    """What directories have, for one attached process."""

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w = store.w
        self.tree = store.tree
        self.content = store.content
        self.names = store.names
        self.nodes_at = store.layout.nodes_at

    def at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    def entries(self, path: Path, timeout: float | None) -> list[Entry]:
        """The entries of a directory: all that were there throughout, each once. FileNotFoundError, NotADirectoryError."""
        while True:
            found = self.names.find(path, timeout)
            if not found[0]:
                raise FileNotFoundError(f"No such directory: '{path.text}'")
            kind = self.names.kind_of(found)
            if kind == KIND_FILE:
                raise NotADirectoryError(f"Not a directory: '{path.text}'")
            if kind != KIND_DIR:
                continue
            listed = self.entries_of(found[0], found[1], timeout)
            if listed or self.is_directory(found[0], found[1]):  # else it was renamed or removed before it was listed
                return listed

    def entries_of(self, node: int, generation: int, timeout: float | None) -> list[Entry]:
        """As `entries`, of a node; none if it is not that directory any more."""
        some = self._entries_unlocked(node, generation)
        return self._entries_by_visits(node, generation, timeout) if some is None else some

    def is_directory(self, node: int, generation: int) -> bool:
        """Whether a node is still that directory."""
        return self.tree.kind(node) == KIND_DIR and self.w[self.at(node) + N_GENERATION] == generation

    def counts(self) -> tuple[int, int]:
        """How many files and directories there are, of one moment, without those that are being prepared."""
        w = self.w
        for _ in range(3):
            names = w[TREE_SEQ]
            files, directories, drafted = w[FILES], w[DIRS], w[DRAFTED]
            if not names & 1 and not w[NAMESPACE] & 1 and w[TREE_SEQ] == names:
                break
        else:
            files, directories, drafted = self.store.transact(lambda _: (w[FILES], w[DIRS], w[DRAFTED]), self.store.patience)
        return files - (drafted >> 32), directories - (drafted & LOW32)

    def _entry(self, node: int) -> Entry:
        at = self.at(node)
        return Entry(self.tree.name(at), self.tree.kind(node), node, self.w[at + N_GENERATION])

    def _entries_unlocked(self, node: int, generation: int) -> list[Entry] | None:
        """The entries, if no name changed meanwhile."""
        w = self.w
        for _ in range(2):
            names = w[TREE_SEQ]
            if names & 1 or w[NAMESPACE] & 1:
                continue
            try:
                same = w[self.at(node) + N_GENERATION] == generation
                listed = self.entries_now(node) if same else []
            except MFSCorruptStoreError:
                if w[TREE_SEQ] == names:
                    raise
                continue
            if w[TREE_SEQ] == names:
                return listed
        return None

    def entries_now(self, node: int) -> list[Entry]:
        """One walk along a directory's list: `_entry` of all, spelled out, since large directories pay for every call."""
        w, mm, tree, nodes_at = self.w, self.tree.mm, self.tree, self.nodes_at
        listed: list[Entry] = []
        before = self.at(node) + D_CHILD
        child, backed = w[before], w[NODE_BACKED]
        while child:
            if child >= backed or len(listed) > backed:
                raise MFSCorruptStoreError("index", before * WORD, "a node", child)
            at = nodes_at + child * NODE_WORDS
            if w[at + N_PARENT] != node:
                raise MFSCorruptStoreError("index", before * WORD, f"an entry of node {node}", child)
            word = w[at + N_NAME]
            size = word >> NAME_BYTES_SHIFT & 0xFFFF
            start = (at + N_TEXT) * WORD
            name = mm[start : start + size] if size <= TEXT_BYTES else tree.name(at)
            listed.append(Entry(name, word >> KIND_SHIFT & 0xFF, child, w[at + N_GENERATION]))
            before = at + N_SIBLINGS
            child = w[before] & LOW32
        return listed

    def _entries_by_visits(self, node: int, generation: int, timeout: float | None) -> list[Entry]:
        """A busy directory, some entries a visit. New ones come in front; a cursor that moved means from the start."""
        w = self.w
        seen: dict[bytes, Entry] = {}
        last: list[Entry] = []

        def visit(section: Section) -> bool:
            if w[self.at(node) + N_GENERATION] != generation:
                return True
            child = w[self.at(node) + D_CHILD]
            if last:
                at = self.at(last[0].node)
                if w[at + N_GENERATION] == last[0].generation and w[at + N_PARENT] == node:
                    child = w[at + N_SIBLINGS] & LOW32
            for _ in range(LISTED_A_VISIT):
                if not child:
                    return True
                self.tree.check_child(child, node, self.at(node))
                at = self.at(child)
                entry = self._entry(child)
                seen[entry.name] = entry
                last[:] = [entry]
                child = w[at + N_SIBLINGS] & LOW32
            return False

        while not self.store.transact(visit, timeout):
            pass
        return list(seen.values())
