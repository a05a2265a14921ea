"""The words of a store: nothing overlaps, numbers lead to places and back, another layout has another fingerprint."""

from __future__ import annotations

import re
import types

import pytest

from dmemfs_shm.store import layout
from dmemfs_shm.store.layout import (
    FINGERPRINT,
    INODE_MUTEXES,
    LOCK_ABANDONED,
    LOCK_HEAD_SHIFT,
    LOCK_LIGHT,
    LOCK_MORE,
    LOCK_READERS,
    LOCK_RECORD_MASK,
    LOCK_TAIL_SHIFT,
    LOCK_WRITER,
    MUTEXES,
    NODE_WORDS,
    PAGE,
    PAGE_WORDS,
    PARKS,
    PINS_AT,
    REC_DIRTY,
    REC_DROPPED,
    REC_NEXT_MASK,
    REC_NEXT_SHIFT,
    REC_NODE_SHIFT,
    REC_PARK_MASK,
    REC_PARK_SHIFT,
    REC_STATE,
    REC_WRITER,
    RECORD_WORDS,
    RECORDS,
    RECORDS_AT,
    RECORDS_RESERVED,
    SLOT_WORDS,
    SLOTS_AT,
    SLOTS_MAX,
    Layout,
    generation_at,
    journal_at,
    nodes_cap_for,
    pages_cap_for,
)

LAYOUTS = [Layout(1, 256, 1), Layout(7, 4097, 1 << 18), Layout(SLOTS_MAX, nodes_cap_for(0), pages_cap_for(1 << 40))]


@pytest.mark.parametrize("it", LAYOUTS)
def test_regions_follow_each_other(it: Layout) -> None:
    """Slots, buckets, descriptors, nodes: in this order, each on pages of its own, the last within the segment."""
    ends = [
        SLOTS_AT + it.slots * SLOT_WORDS,
        it.buckets_at + it.nodes_cap,
        it.descriptors_at + it.pages_cap * layout.DESCRIPTOR_WORDS,
        it.nodes_at + it.nodes_cap * NODE_WORDS,
    ]
    starts = [it.buckets_at, it.descriptors_at, it.nodes_at, it.index_bytes // 8]
    for end, start in zip(ends, starts, strict=True):
        assert end <= start and start % PAGE_WORDS == 0
    assert it.index_bytes % PAGE == 0


def test_records() -> None:
    """A record's number leads to its word; no two share one, and none leaves its slot's records."""
    it = LAYOUTS[-1]
    for slot in (0, 1, SLOTS_MAX - 1):
        for index in (0, 1, 17, RECORDS - 1):
            at = it.record_at(slot * RECORDS + index)
            assert at == it.slot_at(slot) + RECORDS_AT + index * RECORD_WORDS
            assert it.slot_at(slot) + RECORDS_AT <= at < it.slot_at(slot) + PINS_AT
    assert min(REC_NEXT_MASK, LOCK_RECORD_MASK) >= SLOTS_MAX * RECORDS - 1


def test_fields_of_a_record() -> None:
    """State, writer, dirty, dropped, park, next and node fill a word without overlapping."""
    fields = [
        REC_STATE,
        REC_WRITER,
        REC_DIRTY,
        REC_DROPPED,
        REC_PARK_MASK << REC_PARK_SHIFT,
        REC_NEXT_MASK << REC_NEXT_SHIFT,
        0xFFFFFFFF << REC_NODE_SHIFT,
    ]
    assert sum(fields) == (1 << 64) - 1
    assert sum(field.bit_count() for field in fields) == 64
    assert PARKS - 1 <= REC_PARK_MASK


def test_fields_of_a_lock_word() -> None:
    """Readers, writer, abandoned, read, light, head and tail fill a word without overlapping."""
    fields = [
        LOCK_READERS,
        LOCK_WRITER,
        LOCK_ABANDONED,
        LOCK_MORE,
        LOCK_LIGHT,
        LOCK_RECORD_MASK << LOCK_HEAD_SHIFT,
        LOCK_RECORD_MASK << LOCK_TAIL_SHIFT,
    ]
    assert sum(fields) == (1 << 64) - 1
    assert sum(field.bit_count() for field in fields) == 64
    assert SLOTS_MAX * (RECORDS - RECORDS_RESERVED) <= LOCK_READERS, "all readers there can be are counted"


def test_mutexes() -> None:
    """Each node has one of the inode mutexes, never m[0]; journals and generations do not meet."""
    it = LAYOUTS[0]
    assert {it.mutex_of(node) for node in range(100)} == set(range(1, MUTEXES))
    assert MUTEXES == 1 + INODE_MUTEXES
    assert len({journal_at(k) for k in range(MUTEXES)} | {generation_at(k) for k in range(MUTEXES)}) == 2 * MUTEXES
    assert generation_at(MUTEXES - 1) < journal_at(0)


def test_room() -> None:
    """The index has room for what quota and max_nodes allow."""
    assert nodes_cap_for(1000) >= 2 * 1000
    assert pages_cap_for(1 << 30) * 384 >= 1 << 30
    assert nodes_cap_for(0) < 1 << 32 and pages_cap_for(1 << 60) <= 1 << 30


@pytest.mark.parametrize("changed", ["RECORD_WORDS", "N_SIZE", "S_EPOCH", "LOCK_WRITER"])
def test_fingerprint(changed: str) -> None:
    """A build that lays out any word differently has another fingerprint; the same source has the same."""

    def fingerprint_of(text: str) -> int:
        module = types.ModuleType("layout_of_another_build")
        exec(compile(text, "layout.py", "exec"), vars(module))
        value: int = module.FINGERPRINT
        return value

    with open(layout.__file__) as source:
        text = source.read()
    assert fingerprint_of(text) == FINGERPRINT
    changed_line = f"{changed}: Final = {getattr(layout, changed)} + 4"
    other, count = re.subn(rf"^{changed}: Final = [^#\n]*", changed_line, text, flags=re.MULTILINE)
    assert count == 1
    assert fingerprint_of(other.replace("\n_check()\n", "\n")) != FINGERPRINT
