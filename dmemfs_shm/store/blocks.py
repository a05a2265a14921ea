"""Blocks of file data: which are free, which are used. A plain class over words; it knows no locks and no files.

The unit is 256 bytes. Files below a page share pages in slots of one unit; larger ones take runs of whole pages. A run is
one word (`run_of`, `unit_of`, `units_of`); pages and units are numbered through all arenas.

The life of a run:

    1. `allocate` takes it from the bin of its length, else from the free runs by size class (pages that were used before
       come first), else from the end of an arena, and marks its first page.  NeedMemory: no arena has so many pages with
       memory left.
    2. `extend` and `shrink` change its length in place.
    3. `free` gives it back, once: a run that is not marked as used is MFSCorruptStoreError.

Free page runs carry their length in the descriptors of their first and last page, so that neighbours merge without a
search; they hang in one list for each power of two, with a bitmap of the lists that are not empty. What is free at an
arena's end is in no list: the arena's break is lowered instead. No operation is linear in anything but, at most, four
list elements and the number of arenas.

What is used again soon need not be merged: runs of up to 16 pages go to the *bin* of their length first, a chain of at most
64, last in, first out, which costs two words instead of eight. Bins are emptied (`merge_some`) before memory is taken from,
or given back to, the system, so that they hold nothing back when it counts.

All changes go into the caller's `Plan`; REQUIRES m[0].
"""

from __future__ import annotations

import functools

from ..errors import MFSCorruptStoreError
from .journal import Plan, Words
from .layout import (
    A_BACKED,
    A_BASE,
    A_BREAK,
    ARENAS,
    ARENAS_MAX,
    BIN_HEADS,
    BIN_PAGES_MOST,
    BIN_RUNS_MOST,
    DESCRIPTOR_WORDS,
    LOW32,
    PD_BIN,
    PD_FREE,
    PD_NONE,
    PD_SHIFT,
    PD_SLAB,
    PD_TAIL,
    PD_USED,
    RUN_HEADS,
    RUN_MAP,
    RUN_UNIT_MASK,
    RUN_UNITS_SHIFT,
    SLAB_HEADS,
    SLAB_MAP,
    UNITS_PER_PAGE,
    WORD,
    Layout,
    arena_at,
)

LOOKS = 4  # runs of the right class that are looked at before a larger class is taken
MERGED_A_TRANSACTION = 8
_FULL = (1 << UNITS_PER_PAGE) - 1


class NeedMemory(Exception):
    """No arena has this many pages in one piece: back some (`Arenas.grow`) outside the section, and try again."""

    def __init__(self, pages: int) -> None:
        super().__init__(pages)
        self.pages = pages


def run_of(unit: int, units: int) -> int:
    return units << RUN_UNITS_SHIFT | unit


def unit_of(run: int) -> int:
    return run & RUN_UNIT_MASK


def units_of(run: int) -> int:
    return run >> RUN_UNITS_SHIFT


@functools.lru_cache(maxsize=4096)
def _longest_free(used: int) -> int:
    """Longest run of free slots in a slab page."""
    best = length = 0
    for slot in range(UNITS_PER_PAGE):
        length = 0 if used >> slot & 1 else length + 1
        best = max(best, length)
    return best


@functools.lru_cache(maxsize=16384)
def _first_fit(used: int, slots: int) -> int:
    """First slot of a free run of that length; there must be one."""
    mask = (1 << slots) - 1
    return next(slot for slot in range(UNITS_PER_PAGE - slots + 1) if not used >> slot & mask)


class Blocks:
    """The free and used blocks of a store."""

    __slots__ = ("_bases", "descriptors_at", "pages_cap", "w")

    def __init__(self, w: Words, layout: Layout) -> None:
        self.w = w
        self.descriptors_at = layout.descriptors_at
        self.pages_cap = layout.pages_cap
        self._bases: list[int] = []

    # ---- the life of a run

    def allocate(self, plan: Plan, units: int) -> int:
        """A run of *units*: slots below a page, else whole pages (then units is a multiple of 16). NeedMemory."""
        if units < UNITS_PER_PAGE:
            return run_of(self._take_slots(plan, units), units)
        return run_of(self._take_pages(plan, units // UNITS_PER_PAGE) * UNITS_PER_PAGE, units)

    def free(self, plan: Plan, run: int) -> None:
        """Give a run back. MFSCorruptStoreError if it is not in use."""
        unit, units = unit_of(run), units_of(run)
        if units < UNITS_PER_PAGE:
            self._free_slots(plan, unit, units)
        else:
            self._free_pages(plan, unit // UNITS_PER_PAGE, units // UNITS_PER_PAGE)

    def extend(self, plan: Plan, run: int, units: int) -> int:
        """The run made longer in place, or 0 if what follows is not free."""
        unit, had = unit_of(run), units_of(run)
        if had < UNITS_PER_PAGE:
            done = self._extend_slots(plan, unit, had, units)
        else:
            done = self._extend_pages(plan, unit // UNITS_PER_PAGE, had // UNITS_PER_PAGE, units // UNITS_PER_PAGE)
        return run_of(unit, units) if done else 0

    def shrink(self, plan: Plan, run: int, units: int) -> int:
        """The run made shorter in place (to at least one unit)."""
        unit, had = unit_of(run), units_of(run)
        if had < UNITS_PER_PAGE:
            self._free_slots(plan, unit + units, had - units)
            return run_of(unit, units)
        page, pages = unit // UNITS_PER_PAGE, had // UNITS_PER_PAGE
        keep = -(-units // UNITS_PER_PAGE)
        self._expect_used(plan, page, pages)
        if keep < pages:
            plan[self._at(page)] = PD_USED | keep << PD_SHIFT
            plan[self._at(page + keep)] = PD_USED | (pages - keep) << PD_SHIFT
            self._free_pages(plan, page + keep, pages - keep)
        if units < UNITS_PER_PAGE:  # the page becomes a slab in place: no byte moves
            self._set_slab(plan, page, (1 << units) - 1)
            self._link_slab(plan, page, UNITS_PER_PAGE - units)
        return run_of(unit, units)

    def merge_some(self, plan: Plan) -> bool:
        """Merge some of the runs in bins with what is free beside them; False if there are none."""
        merged = 0
        for pages in range(1, BIN_PAGES_MOST + 1):
            while plan[BIN_HEADS + pages]:
                if merged == MERGED_A_TRANSACTION:
                    return True
                self._merge(plan, self._take_from_bin(plan, pages), pages)
                merged += 1
        return merged > 0

    # ---- looking

    def has(self, plan: Plan, pages: int) -> bool:
        """Whether so many pages in one piece are free and have memory, apart from bins."""
        return self._find(plan, pages) >= 0 or any(
            plan[at + A_BACKED] - plan[at + A_BREAK] >= pages for at in map(arena_at, range(plan[ARENAS]))
        )

    def arena_of(self, page: int) -> int:
        """Number of the arena that has the page."""
        bases = self.bases()
        low, high = 0, len(bases)
        while high - low > 1:
            middle = (low + high) // 2
            if bases[middle] <= page:
                low = middle
            else:
                high = middle
        if not bases or page >= self.pages_cap:
            raise MFSCorruptStoreError("index", self._at(min(page, self.pages_cap)) * WORD, "a page of an arena", page)
        return low

    def bases(self) -> list[int]:
        """First page of each arena; they never change."""
        count = self.w[ARENAS]
        if len(self._bases) != count:
            if count > ARENAS_MAX:
                raise MFSCorruptStoreError("index", ARENAS * WORD, f"at most {ARENAS_MAX} arenas", count)
            self._bases = [self.w[arena_at(a) + A_BASE] for a in range(count)]
        return self._bases

    def largest_free_pages(self, plan: Plan) -> int:
        """Pages of the largest run that `allocate` could take now without more memory."""
        most = 0
        for a in range(plan[ARENAS]):
            most = max(most, plan[arena_at(a) + A_BACKED] - plan[arena_at(a) + A_BREAK])
        classes = plan[RUN_MAP]
        if classes:
            page, seen = plan[RUN_HEADS + classes.bit_length() - 1], 0
            while page and seen < 1 << 16:
                most = max(most, plan[self._at(page - 1)] >> PD_SHIFT)
                page = plan[self._at(page - 1) + 1] & LOW32
                seen += 1
        return most

    # ---- runs of pages. In lists, page numbers are stored plus one; 0 ends a list.

    def _at(self, page: int) -> int:
        return self.descriptors_at + page * DESCRIPTOR_WORDS

    def _take_pages(self, plan: Plan, pages: int) -> int:
        if pages <= BIN_PAGES_MOST and plan[BIN_HEADS + pages]:
            page = self._take_from_bin(plan, pages)
            plan[self._at(page)] = PD_USED | pages << PD_SHIFT
            return page
        page = self._find(plan, pages)
        if page >= 0:
            length = plan[self._at(page)] >> PD_SHIFT
            self._unlink_run(plan, page, length)
            if length > pages:
                self._link_run(plan, page + pages, length - pages)
            plan[self._at(page)] = PD_USED | pages << PD_SHIFT
            return page
        for a in range(plan[ARENAS]):
            at = arena_at(a)
            end = plan[at + A_BREAK]
            if plan[at + A_BACKED] - end >= pages:
                plan[at + A_BREAK] = end + pages
                page = plan[at + A_BASE] + end
                plan[self._at(page)] = PD_USED | pages << PD_SHIFT
                return page
        raise NeedMemory(pages)

    def _take_from_bin(self, plan: Plan, pages: int) -> int:
        head = plan[BIN_HEADS + pages]
        page = (head & LOW32) - 1
        at = self._at(page)
        if not 0 <= page < self.pages_cap or plan[at] != PD_BIN | pages << PD_SHIFT:
            raise MFSCorruptStoreError("index", (BIN_HEADS + pages) * WORD, f"a free run of {pages} pages", head)
        left = (head >> 32) - 1
        plan[BIN_HEADS + pages] = left << 32 | plan[at + 1] & LOW32 if left else 0
        return page

    def _find(self, plan: Plan, pages: int) -> int:
        """A free run of at least so many pages; -1 if there is none."""
        size_class = pages.bit_length() - 1
        classes = plan[RUN_MAP] >> size_class
        if classes & 1:
            page = plan[RUN_HEADS + size_class]
            for _ in range(LOOKS):
                if not page:
                    break
                if self._free_length(plan, page - 1) >= pages:
                    return page - 1
                page = plan[self._at(page - 1) + 1] & LOW32
        classes >>= 1
        if classes:
            size_class += (classes & -classes).bit_length()
            page = plan[RUN_HEADS + size_class] - 1
            self._free_length(plan, page)
            return page
        return -1

    def _free_length(self, plan: Plan, page: int) -> int:
        word = plan[self._at(page)] if 0 <= page < self.pages_cap else 0
        if word & 0xFF != PD_FREE or not 0 < word >> PD_SHIFT <= self.pages_cap - page:
            raise MFSCorruptStoreError("index", self._at(max(page, 0)) * WORD, "a free run", word)
        return word >> PD_SHIFT

    def _link_run(self, plan: Plan, page: int, pages: int) -> None:
        size_class = pages.bit_length() - 1
        head = plan[RUN_HEADS + size_class]
        plan[self._at(page)] = PD_FREE | pages << PD_SHIFT
        plan[self._at(page) + 1] = head
        if pages > 1:
            plan[self._at(page + pages - 1)] = PD_TAIL | pages << PD_SHIFT
        if head:
            at = self._at(head - 1) + 1
            plan[at] = (page + 1) << 32 | plan[at] & LOW32
        else:
            plan[RUN_MAP] = plan[RUN_MAP] | 1 << size_class
        plan[RUN_HEADS + size_class] = page + 1

    def _unlink_run(self, plan: Plan, page: int, pages: int) -> None:
        size_class = pages.bit_length() - 1
        links = plan[self._at(page) + 1]
        before, after = links >> 32, links & LOW32
        if before:
            at = self._at(before - 1) + 1
            plan[at] = plan[at] & ~LOW32 | after
        else:
            plan[RUN_HEADS + size_class] = after
            if not after:
                plan[RUN_MAP] = plan[RUN_MAP] & ~(1 << size_class)
        if after:
            at = self._at(after - 1) + 1
            plan[at] = before << 32 | plan[at] & LOW32

    def _expect_used(self, plan: Plan, page: int, pages: int) -> None:
        if not 0 <= page < self.pages_cap or plan[self._at(page)] != PD_USED | pages << PD_SHIFT:
            found = plan[self._at(page)] if 0 <= page < self.pages_cap else page
            raise MFSCorruptStoreError(
                "index", self._at(min(page, self.pages_cap)) * WORD, f"a run of {pages} pages in use", found
            )

    def _free_pages(self, plan: Plan, page: int, pages: int) -> None:
        self._expect_used(plan, page, pages)
        if pages <= BIN_PAGES_MOST:
            head = plan[BIN_HEADS + pages]
            if head >> 32 < BIN_RUNS_MOST:
                at = self._at(page)
                plan[at] = PD_BIN | pages << PD_SHIFT
                plan[at + 1] = head & LOW32
                plan[BIN_HEADS + pages] = (head >> 32) + 1 << 32 | page + 1
                return
        self._merge(plan, page, pages)

    def _merge(self, plan: Plan, page: int, pages: int) -> None:
        """Make a run that is in no list a free run, one with those before and behind it."""
        arena = arena_at(self.arena_of(page))
        base = plan[arena + A_BASE]
        plan[self._at(page)] = PD_NONE
        before = self._free_before(plan, page, base)
        if before:
            page -= before
            pages += before
            self._unlink_run(plan, page, before)
            plan[self._at(page)] = PD_NONE
        after = page + pages
        end = base + plan[arena + A_BREAK]
        if after < end and plan[self._at(after)] & 0xFF == PD_FREE:
            length = plan[self._at(after)] >> PD_SHIFT
            self._unlink_run(plan, after, length)
            plan[self._at(after)] = PD_NONE
            pages += length
        if page + pages == end:
            plan[arena + A_BREAK] = page - base
        else:
            self._link_run(plan, page, pages)

    def _free_before(self, plan: Plan, page: int, base: int) -> int:
        """Length of the free run that ends just before the page; 0 if there is none."""
        if page <= base:
            return 0
        word = plan[self._at(page - 1)]
        length = word >> PD_SHIFT
        if word & 0xFF == PD_FREE and length == 1:
            return 1
        if word & 0xFF == PD_TAIL and length <= page - base and plan[self._at(page - length)] == PD_FREE | length << PD_SHIFT:
            return length
        return 0

    def _extend_pages(self, plan: Plan, page: int, had: int, pages: int) -> bool:
        self._expect_used(plan, page, had)
        more, after = pages - had, page + had
        arena = arena_at(self.arena_of(page))
        base, end = plan[arena + A_BASE], plan[arena + A_BREAK]
        if after == base + end:
            if plan[arena + A_BACKED] - end < more:
                return False
            plan[arena + A_BREAK] = end + more
        else:
            word = plan[self._at(after)]
            length = word >> PD_SHIFT
            if word & 0xFF != PD_FREE or length < more:
                return False
            self._unlink_run(plan, after, length)
            plan[self._at(after)] = PD_NONE
            if length > more:
                self._link_run(plan, after + more, length - more)
        plan[self._at(page)] = PD_USED | pages << PD_SHIFT
        return True

    # ---- slots of slab pages

    def _take_slots(self, plan: Plan, slots: int) -> int:
        classes = plan[SLAB_MAP] >> slots
        if not classes:
            page = self._take_pages(plan, 1)
            self._set_slab(plan, page, (1 << slots) - 1)
            self._link_slab(plan, page, UNITS_PER_PAGE - slots)
            return page * UNITS_PER_PAGE
        longest = slots + (classes & -classes).bit_length() - 1
        page = plan[SLAB_HEADS + longest] - 1
        used = self._slab(plan, page)
        if _longest_free(used) != longest:
            raise MFSCorruptStoreError("index", self._at(page) * WORD, f"a slab with {longest} free slots", used)
        first = _first_fit(used, slots)
        self._change_slab(plan, page, used, used | ((1 << slots) - 1) << first)
        return page * UNITS_PER_PAGE + first

    def _free_slots(self, plan: Plan, unit: int, slots: int) -> None:
        page, first = divmod(unit, UNITS_PER_PAGE)
        used, mask = self._slab(plan, page), ((1 << slots) - 1) << first
        if used & mask != mask:
            raise MFSCorruptStoreError("index", self._at(page) * WORD, f"slots {mask:#x} in use", used)
        if used == mask:
            longest = _longest_free(used)
            if longest:
                self._unlink_slab(plan, page, longest)
            plan[self._at(page)] = PD_USED | 1 << PD_SHIFT
            self._free_pages(plan, page, 1)
        else:
            self._change_slab(plan, page, used, used & ~mask)

    def _extend_slots(self, plan: Plan, unit: int, had: int, units: int) -> bool:
        page, first = divmod(unit, UNITS_PER_PAGE)
        used = self._slab(plan, page)
        if units > UNITS_PER_PAGE or first + units > UNITS_PER_PAGE:
            return False
        more = ((1 << (units - had)) - 1) << (first + had)
        if used & more:
            return False
        if units < UNITS_PER_PAGE:
            self._change_slab(plan, page, used, used | more)
        else:  # alone in its page: the page is its own now
            self._unlink_slab(plan, page, _longest_free(used))
            plan[self._at(page)] = PD_USED | 1 << PD_SHIFT
        return True

    def _slab(self, plan: Plan, page: int) -> int:
        """The map of used slots of a slab page."""
        word = plan[self._at(page)] if 0 <= page < self.pages_cap else 0
        if word & 0xFF != PD_SLAB:
            raise MFSCorruptStoreError("index", self._at(min(max(page, 0), self.pages_cap)) * WORD, "a slab page", word)
        return word >> PD_SHIFT & _FULL

    def _set_slab(self, plan: Plan, page: int, used: int) -> None:
        plan[self._at(page)] = PD_SLAB | used << PD_SHIFT

    def _change_slab(self, plan: Plan, page: int, old: int, new: int) -> None:
        self._set_slab(plan, page, new)
        was, now = _longest_free(old), _longest_free(new)
        if was != now:
            if was:
                self._unlink_slab(plan, page, was)
            if now:
                self._link_slab(plan, page, now)

    def _link_slab(self, plan: Plan, page: int, longest: int) -> None:
        head = plan[SLAB_HEADS + longest]
        plan[self._at(page) + 1] = head
        if head:
            at = self._at(head - 1) + 1
            plan[at] = (page + 1) << 32 | plan[at] & LOW32
        else:
            plan[SLAB_MAP] = plan[SLAB_MAP] | 1 << longest
        plan[SLAB_HEADS + longest] = page + 1

    def _unlink_slab(self, plan: Plan, page: int, longest: int) -> None:
        links = plan[self._at(page) + 1]
        before, after = links >> 32, links & LOW32
        if before:
            at = self._at(before - 1) + 1
            plan[at] = plan[at] & ~LOW32 | after
        else:
            plan[SLAB_HEADS + longest] = after
            if not after:
                plan[SLAB_MAP] = plan[SLAB_MAP] & ~(1 << longest)
        if after:
            at = self._at(after - 1) + 1
            plan[at] = before << 32 | plan[at] & LOW32
