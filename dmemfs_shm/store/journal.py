"""Undo log: a critical section happens whole or not at all.

Each mutex has a journal, written only by its holder. A transaction writes the old value of every word it will change,
publishes them with one store of their count, stores the new values, and commits with one store of 0:

    entries (word, old value) ... ; count = n ; word = new value ... ; count = 0

SIGKILL leaves a prefix of these stores. With the count at 0 nothing has changed or everything has; with the count at n
whoever recovers the mutex stores the old values back, last first, and then the count. Doing that twice does no harm.

The values are computed before the first store, in a `Plan`, which is private memory: whatever can raise does so there,
and nothing has to be taken back. A `Plan` answers reads with what it is about to store, so that steps build on each
other. ``plan.undo`` names words that a roll-back must not bring back to a value that others have seen, with the value
that it stores instead (a sequence number, a generation).

The shared words are reached through the word buffer alone (``w``), which tests replace with one that records or kills.
"""

from __future__ import annotations

from ..errors import MFSCorruptStoreError
from .layout import JOURNAL_ENTRIES_MAX, STORE, WORD

Words = memoryview  # of format "Q"


class Plan(dict[int, int]):
    """The words that a transaction is going to store: word index to new value."""

    __slots__ = ("undo", "w")

    def __init__(self, w: Words) -> None:
        self.w = w
        self.undo: dict[int, int] | None = None

    def __missing__(self, word: int) -> int:
        return self.w[word]

    def never_back(self, word: int, value: int) -> None:
        """A roll-back stores *value* into *word*, instead of what stands there now."""
        if self.undo is None:
            self.undo = {}
        self.undo[word] = value


def commit(w: Words, at: int, plan: Plan) -> None:
    """Make the plan true, through the journal at word *at*, whose mutex the caller holds.

    REQUIRES len(plan) <= JOURNAL_ENTRIES_MAX. An asynchronous exception in here leaves the journal open; giving up the
    mutex (`Mutex.abandon`) rolls it back.
    """
    if len(plan) > JOURNAL_ENTRIES_MAX:
        raise AssertionError(f"a transaction of {len(plan)} words does not fit the journal")
    entry, undo = at + 1, plan.undo
    if undo is None:
        for word in plan:
            w[entry] = word
            w[entry + 1] = w[word]
            entry += 2
    else:
        for word in plan:
            w[entry] = word
            w[entry + 1] = undo[word] if word in undo else w[word]
            entry += 2
    w[at] = len(plan)
    for word, value in plan.items():
        w[word] = value
    w[at] = 0


def roll_back(w: Words, at: int) -> bool:
    """Undo what the journal's last holder left open; True if there was anything.

    Trusts nothing: an entry that points outside the words that transactions change is MFSCorruptStoreError, and then
    nothing has been stored.
    """
    count = w[at]
    if count == 0:
        return False
    if count > JOURNAL_ENTRIES_MAX:
        raise MFSCorruptStoreError("index", at * WORD, f"at most {JOURNAL_ENTRIES_MAX} journal entries", count)
    entries = [(w[e], w[e + 1]) for e in range(at + 1, at + 1 + 2 * count, 2)]
    for number, (word, _) in enumerate(entries):
        if not STORE <= word < len(w):
            raise MFSCorruptStoreError("index", (at + 1 + 2 * number) * WORD, "a word of the index", word)
    for word, old in reversed(entries):
        w[word] = old
    w[at] = 0
    return True
