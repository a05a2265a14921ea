"""The memory behind blocks: arena segments, as one process maps them, and their growth.

An arena is one sparse segment, mapped whole on first use; memory is put behind it from the front, step by step, so that
a growing file mostly stays in one piece and no file's growth ever moves or remaps anything. (Measured: posix_fallocate
of 64 MiB takes 17 ms, so steps double from 256 KiB to 64 MiB and are taken outside every mutex.)

Order of growth, each step harmless if the process dies after it: memory behind the page descriptors, memory behind the
arena, then one store of A_BACKED under m[0]. A new arena's words are committed under m[0] before its segment exists;
whoever first needs memory there creates it.

Before memory is taken, the machine is asked whether it has so much (RAM and cgroup): what is refused here is an error, what
slips through a race with others may end in the OOM killer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import MFSCorruptStoreError, MFSNoSpaceError
from . import names, segment
from .blocks import MERGED_A_TRANSACTION, Blocks, unit_of, units_of
from .journal import Plan, commit
from .layout import (
    A_BACKED,
    A_BASE,
    A_BREAK,
    A_LIFE,
    A_PAGES,
    ARENAS,
    ARENAS_MAX,
    BACK_PAGES_LEAST,
    BACK_PAGES_MOST,
    BIN_HEADS,
    BIN_PAGES_MOST,
    BIN_RUNS_MOST,
    DESCRIPTOR_WORDS,
    PAGE,
    STATE_READY,
    UNIT,
    UNITS_PER_PAGE,
    WORD,
    arena_at,
    arena_pages,
)
from .memory import check_headroom

if TYPE_CHECKING:
    from .attachment import Attachment

RUNS_KNOWN_MOST = 16384
Piece = tuple[int, int, segment.Segment, int]


class Arenas:
    """The arenas of a store, mapped in this process."""

    def __init__(self, store: Attachment, blocks: Blocks) -> None:
        self.store = store
        self.blocks = blocks
        self.w = store.w
        self._mapped: dict[int, tuple[int, segment.Segment]] = {}
        self.located: dict[int, tuple[segment.Segment, int, int, int]] = {}

    # ---- reaching bytes

    def locate(self, run: int) -> tuple[segment.Segment, int]:
        """The segment that has the run's bytes, and where in it they begin. REQUIRES that the run is in use."""
        known = self.located.get(run)
        if known is not None and self.w[known[2]] == known[3]:
            return known[0], known[1]
        page, slot = divmod(unit_of(run), UNITS_PER_PAGE)
        number = self.blocks.arena_of(page)
        at = arena_at(number)
        life = self.w[at + A_LIFE]
        mapped = self._mapped.get(number)
        if mapped is None or mapped[0] != life:
            mapped = self._map(number, life)
        offset = (page - self.w[at + A_BASE]) * PAGE + slot * UNIT
        if offset < 0 or offset + units_of(run) * UNIT > min(self.w[at + A_BACKED] * PAGE, mapped[1].size_bytes):
            raise MFSCorruptStoreError("index", at * WORD, "a run within the arena's memory", run)
        if len(self.located) >= RUNS_KNOWN_MOST:
            self.located.clear()
        self.located[run] = mapped[1], offset, at + A_LIFE, life
        return mapped[1], offset

    def pieces(self, runs: list[int]) -> list[Piece]:
        """The runs of a file as (first byte of the file, one past the last, segment, offset in it)."""
        found, start = [], 0
        for run in runs:
            size = units_of(run) * UNIT
            found.append((start, start + size, *self.locate(run)))
            start += size
        return found

    def copy_out(self, runs: list[int], size: int, target: segment.Segment, offset: int) -> None:
        """Copy the first *size* bytes of a file's runs to a place in a segment."""
        for start, end, source, at in self.pieces(runs):
            if start >= size:
                break
            count = min(end, size) - start
            target.put(offset + start, source.view[at : at + count])

    def _map(self, number: int, life: int) -> tuple[int, segment.Segment]:
        with self.store.growing:
            mapped = self._mapped.get(number)
            if mapped is not None and mapped[0] == life:
                return mapped
            size_bytes = self.w[arena_at(number) + A_PAGES] * PAGE
            name = names.arena(self.store.uuid, number, life)
            try:
                fd = segment.open_fd(name)
            except FileNotFoundError:
                self.store.check_state()
                raise MFSCorruptStoreError(name.lstrip("/"), 0, "an arena segment", "none") from None
            with segment.closed_on_failure(fd):
                found = os.fstat(fd).st_size
                backed = self.w[arena_at(number) + A_BACKED] * PAGE  # first: others add memory, and then say so
                if found != size_bytes or segment.backed_bytes(fd) < backed:
                    raise MFSCorruptStoreError(name.lstrip("/"), found, f"an arena of {size_bytes} bytes", found)
            old, new = mapped, (life, segment.Segment(name, fd, size_bytes))
            self._mapped[number] = new
            if old is not None:
                old[1].close()
            return new

    def close(self) -> None:
        for _, mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()
        self.located.clear()

    # ---- memory

    def backed_bytes(self) -> int:
        return sum(self.w[arena_at(a) + A_BACKED] for a in range(min(self.w[ARENAS], ARENAS_MAX))) * PAGE

    def grow(self, pages: int, timeout: float | None) -> None:
        """Have so many pages in one piece: of what the bins hold, else with new memory behind them, at the end of an arena.
        MFSNoSpaceError. Outside any section."""
        if self._merge_bins(timeout) and self.store.sections.run(lambda section: self.blocks.has(section.plan, pages), timeout):
            return
        seen = self.w[ARENAS]
        for number in range(seen):
            at = arena_at(number)
            if self.w[at + A_PAGES] - self.w[at + A_BREAK] >= pages and self._back(number, pages, timeout):
                return
        self._add_arena(pages, seen, timeout)

    def _merge_bins(self, timeout: float | None) -> bool:
        """Empty the bins, a few runs a visit; whether there was anything in them."""
        if not any(self.w[BIN_HEADS : BIN_HEADS + BIN_PAGES_MOST + 1]):
            return False
        for _ in range(BIN_PAGES_MOST * BIN_RUNS_MOST // MERGED_A_TRANSACTION):  # others may fill them meanwhile
            if not self.store.sections.run(lambda section: self.blocks.merge_some(section.plan), timeout):
                break
        return True

    def _back(self, number: int, pages: int, timeout: float | None) -> bool:
        """See that *pages* after the break have memory: a generous step, or just the need if there is not so much."""
        at = arena_at(number)
        size, backed, life = self.w[at + A_PAGES], self.w[at + A_BACKED], self.w[at + A_LIFE]
        need = self.w[at + A_BREAK] + pages
        if need <= backed:
            return True
        step = min(max(self.backed_bytes() // PAGE // 2, BACK_PAGES_LEAST), BACK_PAGES_MOST)
        quota_pages = self.store.quota_bytes // PAGE + UNITS_PER_PAGE
        generous = min(size, max(need, min(backed + step, max(quota_pages, need))))
        try:
            self._back_to(number, life, size, backed, generous)
        except MFSNoSpaceError:
            if generous == need:
                raise
            generous = need
            self._back_to(number, life, size, backed, need)
        return self._publish(number, life, generous, timeout)

    def _back_to(self, number: int, life: int, size: int, backed: int, pages: int) -> None:
        check_headroom((pages - backed) * PAGE)
        self.store.provide_spares()
        base = self.w[arena_at(number) + A_BASE]
        first = (self.blocks.descriptors_at + (base + backed) * DESCRIPTOR_WORDS) * WORD
        self.store.index.back(first, (pages - backed) * DESCRIPTOR_WORDS * WORD)
        name = names.arena(self.store.uuid, number, life)
        fd = segment.open_fd(name, create=True)
        try:
            if self.store.state != STATE_READY:  # destroyed, perhaps before it could see this one
                segment.unlink(name)
                self.store.check_state()
            if os.fstat(fd).st_size != size * PAGE:
                segment.set_size(fd, size * PAGE)
            segment.back(fd, name, backed * PAGE, (pages - backed) * PAGE)
        finally:
            segment.close_fd(fd)

    def _publish(self, number: int, life: int, pages: int, timeout: float | None) -> bool:
        """A_BACKED = pages, unless the arena was trimmed meanwhile: then our segment is a stray and goes."""
        at = arena_at(number)
        mutex, thread = self.store.mutexes[0], self.store.threads.enter()
        try:
            mutex.acquire(thread, timeout)
            same = self.w[at + A_LIFE] == life
            if same and self.w[at + A_BACKED] < pages:
                self.w[at + A_BACKED] = pages
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise
        if not same:
            segment.unlink(names.arena(self.store.uuid, number, life))
        return same

    def _add_arena(self, pages: int, seen: int, timeout: float | None) -> None:
        """One arena more in the table, large enough; its segment comes with its first memory.

        None if there are others than the *seen* ones by now: many who need the first memory at once need one arena.
        """
        mutex, thread = self.store.mutexes[0], self.store.threads.enter()
        try:
            mutex.acquire(thread, timeout)
            number = self.w[ARENAS]
            if number != seen:
                mutex.release(thread)
                return
            base = 0
            if number:
                last = arena_at(number - 1)
                base = self.w[last + A_BASE] + self.w[last + A_PAGES]
            size = min(max(arena_pages(number), pages), self.blocks.pages_cap - base)
            if number == ARENAS_MAX or size < pages:
                raise MFSNoSpaceError("The store's index has no room for another arena: trim() it, or create it anew.")
            plan = Plan(self.w)
            plan[arena_at(number) + A_BASE] = base
            plan[arena_at(number) + A_PAGES] = size
            plan[arena_at(number) + A_BACKED] = 0
            plan[arena_at(number) + A_BREAK] = 0
            plan[ARENAS] = number + 1
            commit(self.w, mutex.journal, plan)
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise
        self._back(number, pages, timeout)

    def trim(self, timeout: float | None) -> int:
        """Give the memory of arenas in which nothing is used back to the system; returns bytes.

        Others that have such an arena mapped keep its memory until they reach for the arena again or leave.
        """
        freed = 0
        self._merge_bins(timeout)
        mutex, thread = self.store.mutexes[0], self.store.threads.enter()
        try:
            mutex.acquire(thread, timeout)
            for number in range(self.w[ARENAS]):
                at = arena_at(number)
                if self.w[at + A_BREAK] == 0 and self.w[at + A_BACKED]:
                    freed += self.w[at + A_BACKED] * PAGE
                    plan = Plan(self.w)
                    plan[at + A_BACKED] = 0
                    plan[at + A_LIFE] = self.w[at + A_LIFE] + 1
                    commit(self.w, mutex.journal, plan)
            mutex.release(thread)
        except BaseException:
            try:
                mutex.abandon(thread)
            except BaseException:  # a second one, before it was at work
                mutex.abandon(thread)
                raise
            raise
        self._sweep()
        return freed

    def _sweep(self) -> None:
        """Unlink arena segments of former lives, whoever left them, and drop our mappings of them."""
        start = f"/{names.prefix(self.store.uuid)}a"
        found = names.belongings(self.store.uuid)[0]  # before the words: what stood then has words that stand now
        current = {names.arena(self.store.uuid, a, self.w[arena_at(a) + A_LIFE]) for a in range(self.w[ARENAS])}
        for name in found:
            if name.startswith(start) and name not in current:
                segment.unlink(name)
        with self.store.growing:
            for number, (life, mapped) in list(self._mapped.items()):
                if life != self.w[arena_at(number) + A_LIFE]:
                    self.located.clear()
                    mapped.close()
                    del self._mapped[number]
