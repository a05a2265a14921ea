"""What processes note about themselves, outside the store, so that it outlives them.

Each thread has a lane of a mapping that only these processes have. An entry counts from the moment at which the lane's
length, one word, is stored, after the entry itself: a death leaves all entries that were noted and nothing else. An entry
can be noted as unsure, for what is about to happen, and be made sure by one byte when it has happened.
"""

from __future__ import annotations

import marshal
import mmap
from typing import Any, NamedTuple

_WORD = 8
_HEAD = 5  # of an entry: its size in 4 bytes, and whether it is sure
_UNSURE, _SURE = b"\0", b"\1"


class Entry(NamedTuple):
    value: Any
    sure: bool


class Lane:
    """The notes of one thread, which alone writes them."""

    def __init__(self, shared: mmap.mmap, start: int, size: int) -> None:
        self._shared = shared
        self._length = memoryview(shared)[start : start + _WORD].cast("Q")
        self._first = start + _WORD
        self._end = start + size

    def note(self, value: Any, *, sure: bool = True) -> int:
        """Note a value that `marshal` can write; where it stands."""
        blob = marshal.dumps(value)
        at = self._first + self._length[0]
        following = at + _HEAD + len(blob)
        if following > self._end:
            raise MemoryError("the lane is full")
        self._shared[at:following] = len(blob).to_bytes(4, "little") + (_SURE if sure else _UNSURE) + blob
        self._length[0] = following - self._first
        return at

    def is_sure(self, at: int) -> None:
        """What was noted there has happened."""
        self._shared[at + 4 : at + 5] = _SURE

    @property
    def length(self) -> int:
        """Bytes that were noted."""
        return self._length[0]

    def entries(self) -> list[Entry]:
        found, at, end = [], self._first, self._first + self._length[0]
        while at < end:
            size = int.from_bytes(self._shared[at : at + 4], "little")
            sure = self._shared[at + 4 : at + 5] == _SURE
            found.append(Entry(marshal.loads(self._shared[at + _HEAD : at + _HEAD + size]), sure))
            at += _HEAD + size
        return found

    def clear(self) -> None:
        """Forget everything; while nobody writes."""
        self._length[0] = 0


def lanes(count: int, size: int) -> list[Lane]:
    """So many lanes of so many bytes, shared with every process that is forked from here on."""
    shared = mmap.mmap(-1, count * size)
    return [Lane(shared, number * size, size) for number in range(count)]
