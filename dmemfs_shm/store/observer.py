"""The index of a store through the eyes of somebody who takes no part: a read-only descriptor, and the kernel's locks.

Guarantees. An observer creates nothing, takes no slot, no mutex and no lock, and waits for nobody. It reads with pread
and never maps the index: a hole reads as zeros and takes no memory (reading one through a mapping was measured to take a
page, and is SIGBUS with /dev/shm full), a truncated file reads short, and whatever a damaged word says, nothing outside
the segment can be touched. Every count and reference is compared with its bound before it is used, and every walk ends.

`Index` is a word buffer, so that `Participants` works on it as on an attached store's; asking the kernel about a locked
byte (F_OFD_GETLK) needs no more than the read-only descriptor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import cast

from ..errors import MFSCorruptStoreError
from . import names, segment
from .identity import ByteLocks, Participants
from .journal import Words
from .layout import (
    D_CHILD,
    KIND_DIR,
    KIND_DRAFT,
    KIND_FILE,
    KIND_SHIFT,
    LOW32,
    N_NAME,
    N_NEXT,
    N_PARENT,
    N_SIBLINGS,
    N_TEXT,
    NAME_BYTES_MAX,
    NAME_BYTES_SHIFT,
    NODE_BACKED,
    NODE_BREAK,
    NODE_WORDS,
    PATH_BYTES_MAX,
    ROOT,
    SLOTS_BACKED,
    SLOTS_MAX,
    TEXT_BYTES,
    W_NODES_CAP,
    W_PAGES_CAP,
    W_SLOTS,
    WORD,
    Layout,
)
from .tree import REMOVED, UNPUBLISHED

_CHUNK_WORDS = 4096 * NODE_WORDS  # a mebibyte
_SCAN_S = 5.0


class Index:
    """The words of an index segment, each read when it is asked for. MFSCorruptStoreError outside the segment."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def __len__(self) -> int:
        return os.fstat(self.fd).st_size // WORD

    def __getitem__(self, word: int) -> int:
        return int(self.read(word, 1)[0])

    def read(self, word: int, count: int) -> memoryview:
        """*count* words from *word* on, as they were at one time or another."""
        size_bytes = os.fstat(self.fd).st_size
        if word < 0 or count < 0 or (word + count) * WORD > size_bytes:
            raise self.damage(word, f"a word within the segment of {size_bytes} bytes", word * WORD)
        data = segment.read(self.fd, count * WORD, word * WORD)
        if len(data) != count * WORD:
            raise self.damage(word, f"{count * WORD} bytes", f"{len(data)}: it was truncated")
        return memoryview(data).cast("Q")

    def damage(self, word: int, expected: str, found: int | str) -> MFSCorruptStoreError:
        return MFSCorruptStoreError(self.name.lstrip("/"), word * WORD, expected, found)

    def data(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of words in first..end that were ever stored to; holes, and memory never touched, are left out."""
        at, last = first * WORD, end * WORD
        while at < last:
            try:
                start = max(at, os.lseek(self.fd, at, os.SEEK_DATA))
                at = min(last, os.lseek(self.fd, start, os.SEEK_HOLE))
            except OSError:  # ENXIO: only holes from here on
                return
            if start < at:
                yield start // WORD, at // WORD


class Observer:
    """An index segment that is looked at. ``layout`` is what its head says, or *layout* if that was found elsewhere."""

    def __init__(self, name: str, uid: int) -> None:
        """FileNotFoundError, PermissionError."""
        self.name = name
        self.uid = uid
        full = names.index_name(name, uid)
        self.index = Index(full, segment.open_fd(full, readonly=True))
        with segment.closed_on_failure(self.index.fd):
            self.locks = ByteLocks(full, os.dup(self.index.fd))
        self._paths: dict[int, str] = {}
        self.use(Layout(1, 0, 0))

    def close(self) -> None:
        self.locks.close()
        segment.close_fd(self.index.fd)

    def use(self, layout: Layout) -> None:
        """From now on regions begin where this layout says."""
        self.layout = layout
        self.participants = Participants(cast(Words, self.index), layout, self.locks)

    def head_layout(self) -> Layout | None:
        """The layout that the head's words give; None if that is not the size of the segment."""
        slots, nodes, pages = (self.index[word] for word in (W_SLOTS, W_NODES_CAP, W_PAGES_CAP))
        if not (0 < slots <= SLOTS_MAX and nodes < 1 << 32 and pages <= 1 << 30):
            return None
        layout = Layout(slots, nodes, pages)
        return layout if layout.index_bytes == os.fstat(self.index.fd).st_size else None

    def locked(self, byte: int) -> bool:
        """Whether any process has that byte of the file locked."""
        return not self.locks.is_free(byte)

    def slots(self) -> range:
        """The slots that were ever used."""
        return range(min(self.index[SLOTS_BACKED], self.layout.slots, SLOTS_MAX))

    # ---- nodes

    def nodes_end(self) -> int:
        """Nodes from here on were never used, or can't be there."""
        return min(self.index[NODE_BREAK], self.index[NODE_BACKED], self.layout.nodes_cap)

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """(first node, words) of all nodes that were ever stored to. TimeoutError if that takes too long."""
        deadline = time.monotonic() + _SCAN_S
        nodes_at = self.layout.nodes_at
        for start, end in self.index.data(nodes_at, self.layout.node_at(self.nodes_end())):
            first, last = (start - nodes_at) // NODE_WORDS, -(-(end - nodes_at) // NODE_WORDS)
            step = _CHUNK_WORDS // NODE_WORDS
            for node in range(first, last, step):
                if time.monotonic() > deadline:
                    raise TimeoutError
                count = min(step, last - node)
                yield node, self.index.read(self.layout.node_at(node), count * NODE_WORDS)

    def node(self, node: int) -> memoryview:
        if not 0 < node < min(self.index[NODE_BACKED], self.layout.nodes_cap):
            raise self.index.damage(NODE_BACKED, "a node that has memory", node)
        return self.index.read(self.layout.node_at(node), NODE_WORDS)

    def path(self, node: int) -> str:
        """The path of a file or directory, or REMOVED; UNPUBLISHED of a file that has none yet."""
        parts: list[str] = []
        start = node
        for _ in range(PATH_BYTES_MAX // 2):
            if node == ROOT:
                break
            known = self._paths.get(node)
            if known is not None:
                parts.append(known)
                break
            if not node:
                return REMOVED
            words = self.node(node)
            kind = words[N_NAME] >> KIND_SHIFT & 0xFF
            if kind not in (KIND_FILE, KIND_DIR):
                return UNPUBLISHED if kind == KIND_DRAFT else REMOVED
            parts.append("/" + self._text(words))
            node = words[N_PARENT]
        else:
            raise self.index.damage(self.layout.node_at(start) + N_PARENT, "a path that ends", start)
        path = "".join(reversed(parts)) or "/"
        if len(self._paths) < 65536:
            self._paths[start] = path
        return path

    def forget_paths(self) -> None:
        """What was found of paths is kept for a look at everything; who looks again later wants to see what was renamed."""
        self._paths.clear()

    def entries(self, directory: int) -> list[tuple[str, bool, int]]:
        """(name, whether it is a directory, node) of what is in a directory, as far as its list leads while it changes."""
        words = self.node(directory)
        if words[N_NAME] >> KIND_SHIFT & 0xFF != KIND_DIR:
            return []
        found: dict[int, tuple[str, bool, int]] = {}
        node = words[D_CHILD]
        while node and node not in found:
            words = self.node(node)
            kind = words[N_NAME] >> KIND_SHIFT & 0xFF
            if words[N_PARENT] != directory or kind not in (KIND_FILE, KIND_DIR):
                break
            found[node] = self._text(words), kind == KIND_DIR, node
            node = words[N_SIBLINGS] & LOW32
        return [*found.values()]

    def _text(self, words: memoryview) -> str:
        size = words[N_NAME] >> NAME_BYTES_SHIFT & 0xFFFF
        if not 0 < size <= NAME_BYTES_MAX:
            raise self.index.damage(NODE_BREAK, f"a name of 1 to {NAME_BYTES_MAX} bytes", size)
        text = bytes(words[N_TEXT:])
        if size > TEXT_BYTES:
            text += bytes(self.node(words[N_NEXT] >> 32 & LOW32)[N_TEXT:])
        try:
            return text[:size].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return text[:size].decode("utf-8", "replace")
