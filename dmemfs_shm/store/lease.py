"""Leases: who in this process may use which word of its slot (a lock record, a pin). Nothing shared.

An asynchronous exception comes between any two calls, also in the handler of another one, and then no code of ours runs.
What needs no code of ours is the end of an object. So a word is used by whoever has its `Lease`, and a lease that nobody has
any more, wherever it was dropped, leaves a note: its weak reference, which the interpreter appends to ``lost`` by a function
of C, that is, in one step. The next operation of the process gives back what the word holds and makes a new lease of it
(`Attachment.work_off`). A lease is returned by appending it to ``free``, which is one step, too.

While an exception is handled its traceback keeps the frames it came through, and the leases in them. So a function keeps its
lease in a list and takes it out to give it back: it has none afterwards. `lose` is for what could not be given back.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Lease:
    """The right to use one word."""

    __slots__ = ("__weakref__", "is_lost", "word")

    def __init__(self, word: int) -> None:
        self.word = word
        self.is_lost = False


class Note(weakref.ref[Any]):
    """What is left of a lease, or of what a word follows."""

    __slots__ = ("word",)

    word: int


class Leases:
    """All leases of one kind. ``lost`` has a note for each that was lost, or None for "look at all of them"."""

    __slots__ = ("_known", "free", "lost")

    def __init__(self) -> None:
        self.free: list[Lease] = []
        self.lost: deque[Note | None] = deque()
        self._known: dict[int, Note] = {}

    def __len__(self) -> int:
        """How many words were ever leased."""
        return len(self._known)

    def add(self, word: int) -> Lease:
        """The first lease of a word."""
        lease = Lease(word)
        self._known[word] = self._note(lease)
        return lease

    def _note(self, lease: Lease) -> Note:
        return self._note_of(lease.word, lease)

    def _note_of(self, word: int, thing: Any) -> Note:
        note = Note(thing, self.lost.append)  # it is called with the note itself
        note.word = word
        return note

    def follow(self, word: int, thing: Any) -> None:
        """From here on the word is lost with *thing*, anything that weak references can be made to, and not with its lease."""
        self._known[word] = self._note_of(word, thing)

    def is_last(self, note: Note) -> bool:
        """Whether nobody has got the word since the note was made."""
        return self._known[note.word] is note

    def words(self) -> list[int]:
        """Every word that was ever leased."""
        return list(self._known)

    def words_not_lost(self) -> list[int]:
        """The words whose leases are free, or in somebody's hands."""
        return [note.word for note in list(self._known.values()) if note() is not None]

    def lose(self, lease: Lease) -> None:
        """What dropping the lease does, though a traceback may still have it."""
        lease.is_lost = True
        self.lost.append(self._known[lease.word])

    def work_off(self, give_back: Callable[[Lease], None]) -> None:
        """Hand a new lease of each word whose lease was lost to *give_back*, which returns it or loses it again."""
        notes: list[Note | None] = []
        try:
            while self.lost:
                try:
                    notes.append(self.lost.popleft())
                except IndexError:  # another thread was quicker
                    break
            for note in notes:
                for lease in self._renew(note):
                    give_back(lease)
        except BaseException:
            self.lost.append(None)
            raise

    def _renew(self, note: Note | None) -> Iterator[Lease]:
        """New leases of the word that the note is about, or of all that were lost; each for one caller only."""
        for lost in [note] if note is not None else list(self._known.values()):
            old = lost()
            if old is None or (isinstance(old, Lease) and old.is_lost):
                new = self._note(lease := Lease(lost.word))
                # Neither a signal nor another thread comes between comparing and storing: there is no call.
                if self._known[lost.word] is lost:
                    self._known[lost.word] = new
                    yield lease
