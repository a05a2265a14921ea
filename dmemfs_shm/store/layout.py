"""Every word of every segment: the only place that knows a number.

Guarantees: two processes that attach with the same `VERSION` and `FINGERPRINT` agree about each offset below; nothing
overlaps (checked when this module is imported); every shared word is an aligned unsigned 64-bit integer in the byte
order of the machine, read and stored whole.

A store has one *index* segment, one *arena* segment after the other for file data, and named semaphores. The index is
one sparse segment, as large as the store may ever become, of which only the parts in use have memory
(`Segment.back`). It is mapped once, never remapped or resized, so that the whole index is one array of words, ``w``,
and a reference is an index into it. (The alternative, index segments that are added as it grows, was measured: it
costs 60-90 ns a word for finding the segment, a third of an open. A mapping of 4 GiB of which 300 KiB are backed costs
30 us and no memory.)

    page       what                                        backed
    0          identity: magic, version, uuid, sizes       at creation
    1          parameters as a msgpack map                 at creation
    2          words under m[0] (quota, lists, counters)   at creation
    3          generation of each mutex                    at creation
    4..36      undo journals, one page a mutex             at creation
    37..44     arena table                                 at creation
    45..48     light holds                                 at creation
    49..       participant slots, SLOT_WORDS each          page by page, when used
    then       name buckets, one word each                 page by page, when used
               page descriptors, two words each            with the arena's pages
               nodes, NODE_WORDS each                      by NODE_STEP nodes

What may be touched under which lock is said beside the words. "Plain" words are stored by one owner outside any section.
"""

from __future__ import annotations

import itertools
import sys
import zlib
from typing import Final

PAGE: Final = 4096
WORD: Final = 8
WORD_MAX: Final = (1 << 64) - 1
PAGE_WORDS: Final = PAGE // WORD

MAGIC: Final = int.from_bytes(b"DMEMFS\0S", "little")
VERSION: Final = 1
BYTE_ORDER: Final = 0x0102030405060708

# ---- page 0: identity. Written by the creator before STATE becomes READY, constant from then on (but STATE itself).
W_MAGIC: Final = 0
W_VERSION: Final = 1
W_FINGERPRINT: Final = 2
W_BYTE_ORDER: Final = 3
W_UUID_HIGH: Final = 4
W_UUID_LOW: Final = 5
W_OWNER: Final = 6  # uid
W_CREATED: Final = 7  # ns since the epoch
W_STATE: Final = 8
W_PARAMS_BYTES: Final = 9
W_PARAMS_CRC: Final = 10
W_INDEX_BYTES: Final = 11  # virtual size of the index segment
W_QUOTA: Final = 12  # bytes
W_NODES_MAX: Final = 13  # files and directories; 0 is unlimited
W_NODES_CAP: Final = 14  # nodes that the index has room for
W_PAGES_CAP: Final = 15  # data pages that the index has room for
W_SLOTS: Final = 16  # participants
W_FILE_CHARGE: Final = 17  # bytes charged for each non-empty file beside its size
W_BACKEND: Final = 18
W_IDENTITY_END: Final = 19

STATE_INIT: Final = 0
STATE_READY: Final = 1
STATE_DESTROYED: Final = 2

BACKEND_GENERATION: Final = 0
BACKEND_OFD: Final = 1
BACKENDS: Final = {"generation": BACKEND_GENERATION, "ofd": BACKEND_OFD}

PARAMS_OFFSET: Final = PAGE  # bytes
PARAMS_BYTES_MAX: Final = PAGE

# ---- page 2: words of the whole store. All but the first two: in transactions of m[0] only.
STORE: Final = 2 * PAGE_WORDS
NAMESPACE: Final = STORE + 0  # odd while a directory moves or vanishes; changed by each such operation; plain, under m[0]
TREE_SEQ: Final = STORE + 8  # odd while any name changes; plain, under m[0]: proves a name absent without a lock
USED: Final = STORE + 16  # bytes charged
FILES: Final = STORE + 17
DIRS: Final = STORE + 18
CHARGED: Final = STORE + 19  # files and orphans that hold blocks (each is charged FILE_CHARGE)
ORPHANED: Final = STORE + 20  # bytes of USED that no name leads to
NODE_FREE: Final = STORE + 21  # first free node, chained by N_NEXT
NODE_BREAK: Final = STORE + 22  # nodes from here on were never used
NODE_BACKED: Final = STORE + 23  # nodes from here on have no memory; plain, grows only
BUCKETS: Final = STORE + 24  # buckets in use
BUCKETS_BACKED: Final = STORE + 25  # plain, grows only
ARENAS: Final = STORE + 26  # arenas in the table
RUN_MAP: Final = STORE + 27  # bit c: RUN_HEADS[c] is not empty
SLAB_MAP: Final = STORE + 28  # bit s: SLAB_HEADS[s] is not empty
TRASH: Final = STORE + 29  # directory whose subtree is being freed; chained by N_SIBLINGS (next)
ORPHANS: Final = STORE + 30  # first file node without a name that still has readers; a ring through N_SIBLINGS
WATCHED: Final = STORE + 31  # bit s: one of the slots s, s + 64, ... wants to know what is published
INTENT: Final = STORE + 32  # root of a tree that was committed and is not in its place yet; NAMESPACE is odd then
PINNED: Final = STORE + 40  # first pin node whose content has no file any more; a ring through N_SIBLINGS
RECOVERIES: Final = STORE + 41  # generations revoked so far; plain, under R
REAPS: Final = STORE + 42  # participants reaped so far; plain, under m[0]
SLOTS_BACKED: Final = STORE + 43  # slots from here on were never used and have no memory; plain, under the attach byte
DRAFTS: Final = STORE + 44  # first file that is being written and has no name yet; a ring through N_SIBLINGS
DRAFTED: Final = STORE + 45  # how much of FILES 32, of DIRS 32 bits is being prepared, or was and is in the trash
QUOTAS: Final = STORE + 48  # first account of a directory's quota; a ring through N_SIBLINGS
SPACE_FIRST: Final = STORE + 49  # first record of those who wait for space (its word), chained by SW_LINKS; 0: nobody waits
SPACE_LAST: Final = STORE + 50
RUN_HEADS: Final = STORE + 64  # free runs by floor(log2(pages))
RUN_CLASSES: Final = 32
SLAB_HEADS: Final = STORE + 96  # slab pages by the longest run of free slots, 1..15
SLAB_CLASSES: Final = 16
BIN_HEADS: Final = STORE + 112  # by pages, 1..16: how many runs 32, first page plus one 32 bits
BIN_PAGES_MOST: Final = 16
BIN_RUNS_MOST: Final = 64
SCRATCH: Final = STORE + 136  # means nothing: what a transaction of fixed length stores when it has one word less to store
STORE_END: Final = STORE + 137

# ---- page 3: mutexes. m[0] guards namespace, quota and allocator; m[1..16] the lock words of nodes n with n % 16 == k - 1.
MUTEXES: Final = 17
INODE_MUTEXES: Final = 16
GENERATION: Final = 3 * PAGE_WORDS
GENERATION_STRIDE: Final = 8  # a cache line each

# ---- journals: word 0 is the count of entries, then (word index, old value) pairs.
JOURNAL: Final = 4 * PAGE_WORDS
JOURNAL_WORDS: Final = PAGE_WORDS
JOURNAL_ENTRIES_MAX: Final = (JOURNAL_WORDS - 1) // 2

# ---- arena table, in transactions of m[0].
ARENA_TABLE: Final = 37 * PAGE_WORDS
ARENA_WORDS: Final = 8
ARENAS_MAX: Final = 512
A_BASE: Final = 0  # first page
A_PAGES: Final = 1  # pages of the segment (virtual)
A_BACKED: Final = 2  # pages with memory, from the front; plain, grows only while the arena stands
A_BREAK: Final = 3  # pages from here on are free and in no list
A_LIFE: Final = 4  # how often this place in the table was trimmed: part of the segment's name
ARENA_PAGES_FIRST: Final = (64 << 20) // PAGE  # doubling
ARENA_PAGES_LARGEST: Final = (1 << 30) // PAGE
BACK_PAGES_LEAST: Final = (256 << 10) // PAGE  # memory is added to an arena in steps from this
BACK_PAGES_MOST: Final = (64 << 20) // PAGE  # to this

# ---- light holds: generation 32, node 32 bits of what a slot's first records hold; plain, by its tenant, or who reaps it.
LIGHT: Final = 45 * PAGE_WORDS
LIGHT_RECORDS: Final = 8  # a cache line a slot

# ---- participants. Only the tenant of a slot stores to it, or who reaps it (records: in transactions of m[k]).
SLOTS_AT: Final = 49 * PAGE_WORDS
SLOTS_MAX: Final = 256
S_EPOCH: Final = 0  # odd: of the tenant; even: the last one is dead. Rises only; under the attach byte
S_PID: Final = 1
S_START: Final = 2  # start time of the process, clock ticks since boot
S_PIDNS: Final = 3  # inode of its pid namespace
S_SINCE: Final = 4  # ns since the epoch
S_RECORDS: Final = 5  # records that have memory; plain, grows only
S_PINS: Final = 6  # pins that have memory; plain, grows only
S_INTENT: Final = 7  # root of what is being prepared: a directory without a name; in transactions of m[0], as S_DRAFTED
S_CLEAN: Final = 8  # what tenants of epochs below this held is given back; plain, under m[0], or by a tenant that leaves
S_DRAFTED: Final = 9  # files 32, directories 32 bits beneath S_INTENT, itself included
S_CLAIM: Final = 16  # one word a mutex: generation claimed, or NO_CLAIM
S_WATCHES: Final = 36  # whether it wants to know what is published; in transactions of m[0]
S_SLEEPERS: Final = 37  # bit p: a thread sleeps on parking semaphore p until something is published; plain
S_PUBLISHED: Final = 38  # entries that were ever put into the ring; plain, never falls
S_RING: Final = 39  # words of the ring that have memory; plain, grows only
S_COMMAND: Final = 48  # 16 words: the command line, UTF-8, zero padded
S_COMMAND_BYTES: Final = 128
S_SPACE: Final = 64  # who waits for space: SW_WORDS for each parking semaphore, in transactions of m[0]
SW_WORDS: Final = 4
SW_LINKS: Final = 0  # previous 32, next 32 bits: words of records
SW_BYTES: Final = 1  # bytes that are waited for; 0: not in the queue
SW_ACCOUNT: Final = 2  # on which account, 0 for none but the store's quota
SW_SEEN: Final = 3  # when the owner was last seen, monotonic ns; plain
SLOT_HEAD_WORDS: Final = PAGE_WORDS
NO_CLAIM: Final = (1 << 64) - 1

RECORDS: Final = 4096  # lock records a slot
RECORDS_RESERVED: Final = 16  # record 0 means "none"; a slot's first 16 stay unused
RECORD_WORDS: Final = 4
R_LOCK: Final = 0  # the lock record
R_THREAD: Final = 1  # plain, advisory
R_SINCE: Final = 2  # ns since the epoch; plain, advisory
RECORDS_AT: Final = SLOT_HEAD_WORDS
PINS: Final = 4096
PIN_WORDS: Final = 2
P_NODE: Final = 0  # pin node, in transactions of m[0]
PINS_AT: Final = RECORDS_AT + RECORDS * RECORD_WORDS
RING_AT: Final = PINS_AT + PINS * PIN_WORDS  # publications: plain, by the slot's tenant
RING_WORDS: Final = 8 * PAGE_WORDS
ENTRY_WORDS: Final = 4
ENTRIES: Final = RING_WORDS // ENTRY_WORDS
E_NUMBER: Final = 0  # how many entries there were with this one; 0 while the others are stored
E_NODE: Final = 1
E_GENERATION: Final = 2
E_STAMP: Final = 3
SLOT_WORDS: Final = RING_AT + RING_WORDS

# A lock record: state 2, writer 1, dirty 1, dropped 1, park 6, next 21, node 32 bits.
REC_STATE: Final = 0b11
FREE: Final = 0
QUEUED: Final = 1
GRANTED: Final = 2
HELD: Final = 3
REC_WRITER: Final = 1 << 2
REC_DIRTY: Final = 1 << 3  # a writer has changed content: plain store of the owner
REC_LIGHT: Final = 1 << 3  # a reader holds lightly: plain stores of the owner, and LOCK_READERS leaves it out
REC_IS_LIGHT: Final = REC_STATE | REC_WRITER | REC_LIGHT
HELD_LIGHTLY: Final = HELD | REC_LIGHT  # what a light hold's record says of these bits
REC_DROPPED: Final = 1 << 4  # a finaliser gave it up: plain store of the owner
REC_PARK_SHIFT: Final = 5
REC_PARK_MASK: Final = 0x3F
REC_NEXT_SHIFT: Final = 11
REC_NEXT_MASK: Final = 0x1FFFFF
REC_NODE_SHIFT: Final = 32

# A lock word: readers 20, writer 1, abandoned 1, more 1, light 1, head 20, tail 20 bits.
LOCK_READERS: Final = (1 << 20) - 1
LOCK_WRITER: Final = 1 << 20
LOCK_ABANDONED: Final = 1 << 21
LOCK_MORE: Final = 1 << 22  # with LOCK_LIGHT: more may come; with LOCK_WRITER: he made the file, and leaves both bits
LOCK_LIGHT: Final = 1 << 23  # there may be readers that hold lightly
LOCK_COME: Final = LOCK_MORE | LOCK_LIGHT
LOCK_HEAD_SHIFT: Final = 24
LOCK_TAIL_SHIFT: Final = 44
LOCK_RECORD_MASK: Final = 0xFFFFF
LOCK_BUSY: Final = ~(LOCK_ABANDONED | LOCK_MORE) & ((1 << 64) - 1)

PARKS: Final = 32  # parking semaphores a slot; 0 in a record means none

# ---- nodes. Domain k: under m[k]; 0: under m[0]; h: plain, by the exclusive holder.
NODE_WORDS: Final = 32
NODE_STEP: Final = 256  # nodes backed at once
NODES_CAP_DEFAULT: Final = 1 << 24
ROOT: Final = 1
ROOT_PARENT: Final = (1 << 32) - 1  # no node: the root is nobody's entry, and has not lost its name either
N_LOCK: Final = 0  # k
N_GENERATION: Final = 1  # 0 and k: even free, odd in use
N_SEQ: Final = 2  # k: odd while lock and content cannot be trusted
N_NEXT: Final = 3  # 0: next in the bucket 32, node with the rest of the name 32 bits; chains free nodes
N_SIZE: Final = 4  # h: bytes. This word and all below are stored plainly, at once, when a free node is taken
N_CONTENT: Final = 5  # h: how often the content changed (D-MemFS's generation)
N_CREATED: Final = 6  # ns since the epoch
N_MODIFIED: Final = 7  # h: ns since the epoch
N_RUN: Final = 8  # 0: first run of blocks: unit 36, units 28 bits
N_RUNS: Final = 9  # 0: node with further runs 32, how many further runs 32 bits
N_CAPACITY: Final = 10  # 0: bytes in all runs; what the quota is charged, but FILE_CHARGE
N_PARENT: Final = 11  # 0
N_NAME: Final = 12  # 0: hash 32, bytes 16, kind 8 bits
N_SIBLINGS: Final = 13  # 0: previous 32, next 32 bits
N_STAMP: Final = 14  # h, 0: when it was published (us, CLOCK_MONOTONIC) 48, attempts 16 bits
N_PIN: Final = 15  # 0: pin node 32, account that the charge is booked on 32 bits; of a directory: that of its new entries
N_TEXT: Final = 16  # 16 words: the first 128 bytes of the name
TEXT_BYTES: Final = 128
STAMP_MASK: Final = (1 << 48) - 1
ATTEMPTS_SHIFT: Final = 48
ATTEMPTS_MAX: Final = (1 << 16) - 1
D_CHILD: Final = N_SIZE  # 0: a directory's first entry
D_DRAFTED: Final = N_CONTENT  # 0: on the trash list, 1: it and what is in it counts in DRAFTED

KIND_FREE: Final = 0
KIND_FILE: Final = 1
KIND_DIR: Final = 2
KIND_NAME: Final = 3  # the rest of a name longer than TEXT_BYTES
KIND_RUNS: Final = 4  # further runs of a file, X_RUNS..
KIND_PIN: Final = 5  # content that views look at
KIND_ORPHAN: Final = 6  # a file without a name that still has readers
KIND_DRAFT: Final = 7  # a file that is being written and has no name yet
KIND_QUOTA: Final = 8  # the account of a directory's quota
KIND_SHIFT: Final = 48
NAME_BYTES_SHIFT: Final = 32
LOW32: Final = 0xFFFFFFFF

# Nodes of the kinds below keep words 0..3 and N_NAME for what they are in every node: a stale reference to the
# node is told by its generation, whatever it has become.
X_NEXT: Final = 4  # in a KIND_RUNS node: next such node
X_COUNT: Final = 5  # in a KIND_RUNS node: runs in it
X_RUNS: Final = 13  # in a KIND_RUNS node: first word of runs
X_RUNS_MAX: Final = NODE_WORDS - X_RUNS
PN_FILE: Final = 4  # in a KIND_PIN node: the file that owns the content, 0 when it is orphaned
PN_COUNT: Final = 5  # in a KIND_PIN node: pins. It has N_RUN, N_RUNS, N_CAPACITY, N_SIBLINGS when orphaned
Q_LIMIT: Final = 4  # in a KIND_QUOTA node: bytes that may be charged
Q_USED: Final = 5  # in a KIND_QUOTA node: bytes that are charged
Q_DIRECTORY: Final = 6  # in a KIND_QUOTA node: the directory that has the quota, 0 when it has lost it

# A run of blocks: units of 256 bytes.
UNIT: Final = 256
UNITS_PER_PAGE: Final = PAGE // UNIT
RUN_UNITS_SHIFT: Final = 36
RUN_UNIT_MASK: Final = (1 << 36) - 1
RUN_UNITS_MAX: Final = (1 << 28) - 1

# ---- page descriptors, in transactions of m[0]. Word 0: state 8, pages or slab map 32 bits; word 1: previous 32, next 32.
DESCRIPTOR_WORDS: Final = 2
PD_NONE: Final = 0
PD_FREE: Final = 1  # first page of a free run; true whenever it stands
PD_TAIL: Final = 2  # last page of a free run of two or more; believed only if the first page agrees
PD_USED: Final = 3  # first page of a run in use
PD_SLAB: Final = 4  # page cut into slots; the low 16 bits of the value are the map of used slots
PD_BIN: Final = 5  # first page of a free run in a bin; word 1 is the next one's first page plus one
PD_SHIFT: Final = 32

NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 4096

# ---- byte offsets that carry OFD locks. They lie far beyond the index, where nothing is ever stored.
LOCK_BYTES: Final = 1 << 50
LB_INIT: Final = LOCK_BYTES + 0
LB_ATTACH: Final = LOCK_BYTES + 1
LB_RECOVER: Final = LOCK_BYTES + 2
LB_LIFE: Final = LOCK_BYTES + 3
LB_KEEPER: Final = LOCK_BYTES + 4  # of whoever destroys a store that nobody holds any more: see integrations.keeper
LB_MUTEX: Final = LOCK_BYTES + 64  # + k, for the OFD backend
LB_SLOT: Final = LOCK_BYTES + 1024  # + slot


class Layout:
    """Where the regions whose place depends on a store's sizes begin.

    slots, nodes_cap and pages_cap are counts; all results are word indices but `index_bytes`.
    """

    __slots__ = ("buckets_at", "descriptors_at", "index_bytes", "nodes_at", "nodes_cap", "pages_cap", "slots")

    def __init__(self, slots: int, nodes_cap: int, pages_cap: int) -> None:
        self.slots = slots
        self.nodes_cap = nodes_cap
        self.pages_cap = pages_cap
        self.buckets_at = SLOTS_AT + slots * SLOT_WORDS
        self.descriptors_at = _to_page(self.buckets_at + nodes_cap)
        self.nodes_at = _to_page(self.descriptors_at + pages_cap * DESCRIPTOR_WORDS)
        self.index_bytes = _to_page(self.nodes_at + nodes_cap * NODE_WORDS) * WORD

    def slot_at(self, slot: int) -> int:
        return SLOTS_AT + slot * SLOT_WORDS

    def record_at(self, record: int) -> int:
        """Word of a lock record; records are numbered through all slots, and 0 means none."""
        return SLOTS_AT + (record >> 12) * SLOT_WORDS + RECORDS_AT + (record & 4095) * RECORD_WORDS

    def node_at(self, node: int) -> int:
        return self.nodes_at + node * NODE_WORDS

    def mutex_of(self, node: int) -> int:
        return 1 + node % INODE_MUTEXES


def pages_cap_for(quota_bytes: int) -> int:
    """Data pages an index must have room for, so that fragmentation never makes a write fail that the quota allows.

    The worst case is one charged slot of 256 bytes (384 with the charge) left in each page.
    """
    return int(min(1 << 30, 16 * (quota_bytes // PAGE) + (1 << 18)))


def nodes_cap_for(nodes_max: int) -> int:
    """Nodes an index must have room for: the files and directories, and as many again for long names, runs and pins."""
    return 2 * nodes_max + 4096 if nodes_max else NODES_CAP_DEFAULT


def journal_at(mutex: int) -> int:
    return JOURNAL + mutex * JOURNAL_WORDS


def generation_at(mutex: int) -> int:
    return GENERATION + mutex * GENERATION_STRIDE


def arena_at(arena: int) -> int:
    return ARENA_TABLE + arena * ARENA_WORDS


def arena_pages(arena: int) -> int:
    """Pages of the arena at this place of the table, unless it was made for one large file."""
    return min(ARENA_PAGES_FIRST << min(arena, 16), ARENA_PAGES_LARGEST)


def _to_page(words: int) -> int:
    return -(-words // PAGE_WORDS) * PAGE_WORDS


def _check() -> None:
    regions = [
        (0, PAGE_WORDS),
        (PAGE_WORDS, PAGE_WORDS),
        (STORE, PAGE_WORDS),
        (GENERATION, PAGE_WORDS),
        (JOURNAL, 33 * PAGE_WORDS),
        (ARENA_TABLE, ARENAS_MAX * ARENA_WORDS),
        (LIGHT, SLOTS_MAX * LIGHT_RECORDS),
        (SLOTS_AT, SLOT_WORDS),
    ]
    for (start, size), (following, _) in itertools.pairwise(regions):
        assert start + size <= following, (start, size, following)
    assert W_IDENTITY_END <= PAGE_WORDS and STORE_END <= STORE + PAGE_WORDS
    assert MUTEXES * GENERATION_STRIDE <= PAGE_WORDS and MUTEXES * JOURNAL_WORDS <= 33 * PAGE_WORDS
    assert S_CLAIM + MUTEXES <= S_WATCHES < S_RING < S_COMMAND and S_COMMAND * WORD + S_COMMAND_BYTES <= S_SPACE * WORD
    assert S_SPACE + PARKS * SW_WORDS <= SLOT_HEAD_WORDS
    assert SLOT_WORDS % PAGE_WORDS == 0 and RECORDS_AT % PAGE_WORDS == 0 and PINS_AT % PAGE_WORDS == 0
    assert SLOTS_MAX * RECORDS - 1 <= LOCK_RECORD_MASK <= REC_NEXT_MASK and LOCK_TAIL_SHIFT + 20 == 64
    assert N_TEXT * WORD + TEXT_BYTES == NODE_WORDS * WORD and X_RUNS > N_NAME


_check()

#: Changes whenever a number above changes: two builds that lay words out differently refuse each other's stores.
FINGERPRINT: Final = zlib.crc32(
    repr(sorted((k, v) for k, v in globals().items() if k.isupper() and isinstance(v, int) and k != "FINGERPRINT")).encode()
) | (sys.maxsize.bit_length() << 32)
