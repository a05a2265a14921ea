"""The undo log: every prefix of its stores ends, after a roll-back, in the old values or in the new ones."""

from __future__ import annotations

from typing import Any

import pytest

from dmemfs_shm.errors import MFSCorruptStoreError
from dmemfs_shm.store.journal import Plan, commit, roll_back
from dmemfs_shm.store.layout import JOURNAL_ENTRIES_MAX, JOURNAL_WORDS, STORE, journal_at

from ..crash.harness import Recorder

JOURNAL = journal_at(1)
FIRST = JOURNAL + 2 * JOURNAL_WORDS  # words that belong to nobody here


def fresh_words() -> Any:
    words = memoryview(bytearray(8 * (FIRST + 1024))).cast("Q")
    for word in range(FIRST, FIRST + 8):
        words[word] = word
    return words


def values(words: Any, count: int = 8) -> list[int]:
    return list(words[FIRST : FIRST + count])


def stores_of(plan_of: Any) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """The stores of committing a plan, and the values before and after."""
    words = fresh_words()
    before = values(words)
    stores = stores_of_committing(plan_of(words))
    return stores, before, values(words)


def stores_of_committing(plan: Plan) -> list[tuple[int, int]]:
    recorder = Recorder(plan.w)
    commit(recorder, JOURNAL, plan)
    return recorder.stores


def five_words(words: Any) -> Plan:
    plan = Plan(words)
    for word in range(FIRST, FIRST + 5):
        plan[word] = plan[word] + 1000
    return plan


def replay(stores: list[tuple[int, int]]) -> Any:
    words = fresh_words()
    for word, value in stores:
        words[word] = value
    return words


def test_commit() -> None:
    """All words of the plan change, and the journal is empty again."""
    words = fresh_words()
    commit(words, JOURNAL, five_words(words))
    assert values(words, 6) == [FIRST + i + 1000 for i in range(5)] + [FIRST + 5]
    assert words[JOURNAL] == 0


def test_plan_reads_what_it_will_store() -> None:
    """Steps of one transaction build on each other; the words stand as they were until the commit."""
    words = fresh_words()
    plan = Plan(words)
    plan[FIRST] = plan[FIRST] + 1
    plan[FIRST] = plan[FIRST] + 1
    assert plan[FIRST] == FIRST + 2
    assert words[FIRST] == FIRST
    assert plan[FIRST + 1] == FIRST + 1
    assert len(plan) == 1


def test_every_prefix() -> None:
    """Dying after any number of stores leaves, once rolled back, all old values or all new ones, and nothing open."""
    stores, before, after = stores_of(five_words)
    seen = set()
    for length in range(len(stores) + 1):
        words = replay(stores[:length])
        roll_back(words, JOURNAL)
        assert words[JOURNAL] == 0
        assert values(words) in (before, after), length
        seen.add(values(words) == after)
    assert seen == {False, True}


def test_every_prefix_of_a_roll_back() -> None:
    """A roll-back that is interrupted anywhere is completed by the next one."""
    stores, before, after = stores_of(five_words)
    for length in range(len(stores) + 1):
        recorder = Recorder(replay(stores[:length]))
        roll_back(recorder, JOURNAL)
        expected = values(recorder.words)
        for inner in range(len(recorder.stores) + 1):
            words = replay(stores[:length] + recorder.stores[:inner])
            roll_back(words, JOURNAL)
            assert (words[JOURNAL], values(words)) == (0, expected), (length, inner)
        assert expected in (before, after)


def test_a_word_that_never_comes_back() -> None:
    """A roll-back stores the value that the plan named, not the old one."""

    def plan_of(words: Any) -> Plan:
        plan = five_words(words)
        plan.never_back(FIRST + 2, 77)
        return plan

    stores, before, after = stores_of(plan_of)
    before_or_77 = [*before[:2], 77, *before[3:]]
    for length in range(len(stores) + 1):
        words = replay(stores[:length])
        rolled = roll_back(words, JOURNAL)
        assert values(words) == (before_or_77 if rolled else values(words))
        assert values(words) in (before, after, before_or_77)


def test_a_plan_too_large() -> None:
    """It is refused before the first store."""
    recorder = Recorder(memoryview(bytearray(8 * (FIRST + 1024))).cast("Q"))
    plan = Plan(recorder)
    for word in range(JOURNAL_ENTRIES_MAX + 1):
        plan[FIRST + word] = 1
    with pytest.raises(AssertionError, match=f"a transaction of {JOURNAL_ENTRIES_MAX + 1} words"):
        commit(recorder, JOURNAL, plan)
    assert recorder.stores == []
    del plan[FIRST]
    commit(recorder, JOURNAL, plan)
    assert recorder.words[FIRST + 1] == 1
    assert max(word for word, _ in recorder.stores if word < FIRST) < JOURNAL + JOURNAL_WORDS


def test_nothing_to_roll_back() -> None:
    """An empty journal stores nothing."""
    recorder = Recorder(fresh_words())
    assert not roll_back(recorder, JOURNAL)
    assert recorder.stores == []


def test_two_words_that_never_come_back() -> None:
    """Each has its own value; the others of the same plan are as before."""
    words = fresh_words()
    plan = five_words(words)
    plan.never_back(FIRST + 1, 70)
    plan.never_back(FIRST + 3, 71)
    words = replay(stores_of_committing(plan)[:-1])
    assert roll_back(words, JOURNAL)
    assert values(words, 5) == [FIRST, 70, FIRST + 2, 71, FIRST + 4]


def test_a_full_journal() -> None:
    """The largest transaction is rolled back as any other, and the first and the last of the words that may change, too."""
    words = fresh_words()
    plan = Plan(words)
    for word in [STORE, *range(len(words) - JOURNAL_ENTRIES_MAX + 1, len(words))]:
        plan[word] = plan[word] + 1
    stores = stores_of_committing(plan)
    words = replay(stores[:-1])
    assert words[JOURNAL] == JOURNAL_ENTRIES_MAX and words[STORE] == words[len(words) - 1] == 1
    assert roll_back(words, JOURNAL) is True
    assert words[JOURNAL] == words[STORE] == words[len(words) - 1] == 0
    assert roll_back(words, JOURNAL) is False


@pytest.mark.parametrize("count", [JOURNAL_ENTRIES_MAX + 1, 1 << 63])
def test_damaged_count(count: int) -> None:
    """A count that cannot be is damage, not something to act on."""
    recorder = Recorder(fresh_words())
    recorder.words[JOURNAL] = count
    with pytest.raises(MFSCorruptStoreError) as caught:
        roll_back(recorder, JOURNAL)
    assert (caught.value.segment, caught.value.offset, caught.value.found) == ("index", 8 * JOURNAL, count)
    assert caught.value.expected == f"at most {JOURNAL_ENTRIES_MAX} journal entries"
    assert recorder.stores == []


@pytest.mark.parametrize("word", [0, STORE - 1, FIRST + 1024, 1 << 63])
def test_damaged_entry(word: int) -> None:
    """One entry outside the words that transactions change, and not even the sound ones are stored."""
    recorder = Recorder(fresh_words())
    recorder.words[JOURNAL] = 2
    recorder.words[JOURNAL + 1], recorder.words[JOURNAL + 2] = FIRST, 5
    recorder.words[JOURNAL + 3], recorder.words[JOURNAL + 4] = word, 5
    with pytest.raises(MFSCorruptStoreError) as caught:
        roll_back(recorder, JOURNAL)
    assert (caught.value.segment, caught.value.offset, caught.value.found) == ("index", 8 * (JOURNAL + 3), word)
    assert caught.value.expected == "a word of the index"
    assert recorder.stores == []
