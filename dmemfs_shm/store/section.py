"""Sections of m[0]: the one place where changes of names, blocks, quota and the locks of several nodes become true.

A step of the engine is a function of a `Section`: it reads words, fills ``section.plan``, and returns. `Sections.run`
enters m[0], calls it, commits the plan through the journal of m[0], and leaves; whatever is raised on the way leaves the
store as it was. The step may enter mutexes of nodes (`Section.enter`); what it changes in their domains goes through the
journal of m[0] too, so that all of it commits by one store.

Steps are plain computation: no system calls, no waiting, nothing of the user's. Lock order: m[0], then node mutexes in
ascending order; R, the lock of recovery, innermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..errors import raise_if_damage
from .journal import Plan, Words, commit
from .layout import INODE_MUTEXES, INTENT, N_SEQ, NAMESPACE, NODE_WORDS, SPACE_FIRST, TREE_SEQ
from .mutex import Mutex, Thread

if TYPE_CHECKING:
    from .attachment import Attachment

T = TypeVar("T")


class Section:
    """One visit to m[0]: the plan, and the node mutexes entered beside it."""

    __slots__ = ("_even", "_inner", "_names", "_sections", "frees", "plan", "thread", "timeout", "w")

    def __init__(self, sections: Sections, thread: Thread, timeout: float | None) -> None:
        self._sections = sections
        self._inner: list[Mutex] = []
        self._even: list[int] = []
        self._names = False
        self.frees = False  # the plan gives back what somebody may wait for (see `space`)
        self.thread = thread
        self.timeout = timeout
        self.w: Words = sections.w
        self.plan = Plan(sections.w)

    def enter(self, *nodes: int) -> None:
        """Enter the mutexes of these nodes. Once a section, with all the nodes that it will need."""
        assert not self._inner
        for number in sorted({1 + node % INODE_MUTEXES for node in nodes}):
            mutex = self._sections.mutexes[number]
            self._inner.append(mutex)
            mutex.acquire(self.thread, self.timeout)

    def renames(self) -> None:
        """The plan changes names: those who look for one without a lock and do not find it must look again."""
        self._names = True

    def sequence_odd(self, node: int) -> None:
        """The plan makes the node's sequence odd until the commit is done. REQUIRES the node's mutex."""
        at = self._sections.nodes_at + node * NODE_WORDS + N_SEQ
        sequence = self.w[at] & ~1
        self.plan[at] = sequence + 1
        self.plan.never_back(at, sequence + 2)
        self._even.append(at)

    def even(self, word: int) -> None:
        """This sequence word is odd now and is to be even once the commit is done."""
        self._even.append(word)

    def commit(self) -> None:
        """Make the plan true now, and start another one in the same visit."""
        plan = self.plan
        if not plan:
            return
        w = self.w
        if self._names:
            w[TREE_SEQ] = names = w[TREE_SEQ] | 1
            commit(w, self._sections.mutexes[0].journal, plan)
            w[TREE_SEQ] = names + 1
        else:
            commit(w, self._sections.mutexes[0].journal, plan)
        for at in self._even:
            w[at] = (w[at] | 1) + 1
        if w[NAMESPACE] & 1 and not w[INTENT]:
            w[NAMESPACE] = w[NAMESPACE] + 1
        self._even.clear()
        self._names = False
        self.plan = Plan(w)

    def set(self, node: int, word: int, value: int) -> None:
        """Plan one word of a node."""
        self.plan[self._sections.nodes_at + node * NODE_WORDS + word] = value

    def forget(self) -> None:
        """Drop the plan: nothing of it becomes true."""
        self.plan = Plan(self.w)
        self._even.clear()
        self._names = False

    def unsettle_namespace(self) -> None:
        """From here to the commit nobody finds anything without m[0]; and until its end, if an import is what is committed.

        If we die or fail, the next visitor to m[0] evens the word.
        """
        self.w[NAMESPACE] = self.w[NAMESPACE] | 1

    def freeze_namespace(self) -> None:
        """As `unsettle_namespace`, and nobody takes a lock that was looked up before; whoever was about to, has it by now."""
        self.unsettle_namespace()
        for mutex in self._sections.mutexes[1:]:
            self._inner.append(mutex)
            mutex.acquire(self.thread, self.timeout)
            self.leave_nodes()

    def leave_nodes(self) -> None:
        """Leave the node mutexes; what was planned in their domains must have been committed."""
        while self._inner:
            self._inner[-1].release_inner()
            self._inner.pop()

    def abandon(self) -> None:
        """After an exception: m[0] first, whose roll-back may concern the domains of the others, which must still be ours.

        Idempotent. An asynchronous exception ends it anywhere: call it again.
        """
        self._sections.mutexes[0].abandon(self.thread, self._inner)


class Sections:
    """How one attached process visits m[0]."""

    __slots__ = ("mutexes", "nodes_at", "store", "w")

    def __init__(self, store: Attachment) -> None:
        self.store = store
        self.w: Words = store.w
        self.mutexes = store.mutexes
        self.nodes_at = store.layout.nodes_at

    def run(self, step: Callable[[Section], T], timeout: float | None = None) -> T:
        """Enter, do the step, commit, leave. MFSStoreBusyError if m[0] was not to be had in *timeout* seconds."""
        thread = self.store.threads.enter()
        section = Section(self, thread, timeout)
        mutex, w = self.mutexes[0], self.w
        try:
            mutex.acquire(thread, timeout)
            if w[NAMESPACE] & 1:
                self._settle_namespace(section)
            if w[TREE_SEQ] & 1:
                w[TREE_SEQ] = w[TREE_SEQ] + 1
            result = step(section)
            section.commit()
            section.leave_nodes()
            woken = self.store.space.ready() if section.frees and w[SPACE_FIRST] else None
            mutex.release(thread)
        except BaseException:
            try:
                section.abandon()
            except BaseException:  # a second one, before it was at work
                section.abandon()
                raise
            raise_if_damage()
            raise
        if woken:
            self.store.space.wake(woken)
        return result

    def _settle_namespace(self, section: Section) -> None:
        """A directory operation died, and its journal is rolled back by now; or an import was committed, and is brought to
        its end before anything else, a part a visit, by everybody who comes."""
        mutex, w = self.mutexes[0], self.w
        while w[INTENT] and self.store.grafts.settle(section):
            mutex.release(section.thread)
            mutex.acquire(section.thread, section.timeout)
        if w[NAMESPACE] & 1:
            w[NAMESPACE] = w[NAMESPACE] + 1
