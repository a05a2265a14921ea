"""Model of the layer on the mutex: file locks, reaping, and the namespace as far as it meets them. See explorer.py.

The mutex is assumed right (model_mutex.py). A section happens whole or not at all; all between sections (posts, waits, judging
who is dead, cleaning a slot) is a step of its own, before and after which a process may be killed, time out, or be overtaken.

    record     FREE | QUEUED, GRANTED (by another, not known yet), HELD (known); mode, inode, next, park; DIRTY; DROPPED
    inode      nread, writer, head, tail, ABANDONED: a cache of the records; generation: odd is live; orphan or free
    try        LOCK: compare generation and namespace word NS, pump, then hold, or queue, or refuse after judging and reaping
    slow       NS odd or changed: the same under m[0], where an odd NS that a death left is made even
    wait       a token or a slice -> chk, a time-out -> tmo: reap, compare the generation, pump, look at the own record
    hold       release; r+b stores DIRTY before the first change; a finaliser stores DROPPED, its process works it off
    create, rm, pub (replace, publish), bury (free an orphan), d0-d3 (rename of a directory, rmtree), at_* (a new tenant)

Checked: V1 a writer excludes all, the cache equals the records; V2 the queue is the arrival order; V3 no head that could hold
is left waiting; V4 who believes to hold has a HELD record on the inode that its path means, or an orphan it held before; V5 a
refusal has a cause that was not dead when judged; V6 nothing leaks, ABANDONED is set for what a death left half changed and
for nothing else, an orphan is freed exactly once, after its readers; V7 the end is reachable by fair steps alone.

What is not modelled: creations that are half done when their creator dies (model_reads.py); publishing that waits behind a
writer as a reader does, and begins anew when it has the file; the list of records that wait for a mutex not to be had in time;
redo of import_tree; threads that move parks; quota and blocks; weak memory; more than 2 tokens on a park; a stop (it is a
process that takes no step). An orphan without readers is freed by the next section of m[0], whoever does it in the engine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from explorer import FAIR, UNFAIR, Model, Mutant, Step, ViolationError, main, put

# ---------------------------------------------------------------------------------------------------------------------
# The state.

NONE = -1
QUEUED, GRANTED, HELD = "queued", "granted", "held"
LIVE, ORPHAN, UNUSED = "live", "orphan", "unused"
TOKENS_MAX = 2
ALL_AT_ONCE = 99


class Record(NamedTuple):
    """One lock record; None stands for FREE."""

    state: str
    mode: str  # R, or W (wb: changed by opening), or U (r+b: exclusive, changed by the first write)
    inode: int
    next: int
    park: int
    dirty: bool = False
    dropped: bool = False


class Inode(NamedTuple):
    """The lock word L, the generation, and whether it is linked, orphaned or free."""

    gen: int
    kind: str
    nread: int = 0
    writer: int = 0
    head: int = NONE
    tail: int = NONE
    abandoned: bool = False

    def idle(self) -> bool:
        """No holder and no waiter."""
        return not self.nread and not self.writer and self.head == NONE


def next_epoch(epoch: int) -> int:
    """The epoch of the next tenant of a slot that has this one."""
    return epoch + 1 | 1


class Slot(NamedTuple):
    """One participant: what others can see (epoch, byte, clean), and whether the process lives.

    An even epoch is nobody's: the last tenant is dead. What tenants of epochs below *clean* held has been given back.
    """

    epoch: int
    locked: bool
    alive: bool
    clean: int


class Request(NamedTuple):
    """What an actor asks for, and what its lookup found."""

    op: str  # open, remove, move, publish, moveall
    name: int
    mode: str
    patience: str  # wait, timed, try
    inode: int = NONE
    gen: int = 0
    ns: int = 0
    path: int = 0  # how often the directory had been renamed


class Actor(NamedTuple):
    """One thread."""

    pc: str
    left: int = 0
    want: Request | None = None
    record: int = NONE
    posts: tuple[int, ...] = ()  # parks still to be posted
    judged: tuple[tuple[int, int], ...] | None = None  # (slot, epoch below which all are dead) as seen before this section
    outer: tuple[Request, int] | None = None  # what it holds while it asks for a second file
    nested: bool = False
    at: int = 0
    changed: bool = False  # ghost: bytes were changed
    then: Actor | None = None  # after a further batch of grants


class Budget(NamedTuple):
    """What the environment may still do."""

    kills: int
    tenants: int
    strays: int
    forks: int


class State(NamedTuple):
    """Everything. order, ruined, tainted are ghosts: arrivals; changed at a death; DIRTY at a death."""

    records: tuple[Record | None, ...]
    inodes: tuple[Inode, ...]
    order: tuple[tuple[int, ...], ...]
    names: tuple[int, ...]
    ns: int
    moved: int
    slots: tuple[Slot, ...]
    tokens: tuple[int, ...]
    actors: tuple[Actor, ...]
    m0: int  # who is inside m[0] for more than one step
    mk: tuple[int, ...]  # who is inside m[k] for more than one step
    pending: tuple[int, State] | None  # a section whose words stand uncommitted: its actor, the state after
    ruined: tuple[bool, ...]
    tainted: tuple[bool, ...]
    child: tuple[str, int, int] | None  # a forked child: (stage, parent's slot, inherited record)
    budget: Budget


DONE, DEAD, JANITOR = Actor("done"), Actor("dead"), Actor("j0")


class Section:
    """The words that one critical section may change, as mutable copies."""

    def __init__(self, model: Locks, s: State) -> None:
        self.model, self.before = model, s
        self.records, self.inodes, self.order = list(s.records), list(s.inodes), list(s.order)
        self.names, self.ns, self.moved = list(s.names), s.ns, s.moved
        self.ruined, self.tainted = list(s.ruined), list(s.tainted)
        self.posts: list[int] = []

    def record(self, r: int) -> Record:
        """A record that is known not to be free."""
        found = self.records[r]
        if found is None:
            raise ViolationError(f"record {r} is free")
        return found

    def inode(self, f: int, **changes: Any) -> None:
        """Change words of one inode."""
        self.inodes[f] = self.inodes[f]._replace(**changes)

    def grantable(self, f: int) -> bool:
        """Could the head of the queue hold now?"""
        node = self.inodes[f]
        if node.head == NONE or node.writer:
            return False
        return self.record(node.head).mode == "R" or not node.nread or self.model.mutant == "writer_over_readers"

    def pump(self, f: int) -> None:
        """Grant from the head: one writer, or every leading reader, at most a batch."""
        granted = 0
        while self.grantable(f) and granted < self.model.batch:
            node, r = self.inodes[f], self.inodes[f].head
            record = self.record(r)
            if self.order[f][0] != r:
                raise ViolationError(f"{r} is granted before {self.order[f][0]}")
            self.records[r] = record._replace(state=GRANTED, next=NONE)
            self._count(f, record.mode, 1)
            self.inode(f, head=record.next, tail=node.tail if record.next != NONE else NONE)
            self.order[f] = self.order[f][1:]
            self.posts.append(record.park)
            granted += 1

    def _count(self, f: int, mode: str, change: int) -> None:
        node = self.inodes[f]
        if mode == "R":
            self.inode(f, nread=node.nread + change)
        else:
            self.inode(f, writer=node.writer + change)

    def hold(self, r: int, want: Request, park: int) -> None:
        """FREE to HELD at once."""
        self.records[r] = Record(HELD, want.mode, want.inode, NONE, park, dirty=want.mode == "W")
        self._count(want.inode, want.mode, 1)

    def enqueue(self, r: int, want: Request, park: int) -> None:
        """FREE to QUEUED, in the last place."""
        node = self.inodes[want.inode]
        self.records[r] = Record(QUEUED, want.mode, want.inode, NONE, park)
        if node.tail != NONE:
            self.records[node.tail] = self.record(node.tail)._replace(next=r)
        self.inode(want.inode, head=r if node.head == NONE else node.head, tail=r)
        self.order[want.inode] += (r,)

    def drop(self, r: int, *, reaped: bool = False) -> None:
        """Free one record, whatever its state; the caller pumps in the same transaction."""
        record = self.record(r)
        f = record.inode
        if record.state == QUEUED:
            self._unlink(r, record)
        else:
            self._count(f, record.mode, -1)
            if record.mode != "R":
                self._closed(f, record, reaped=reaped)
            elif self.model.mutant == "reader_clears" and not reaped:
                self.inode(f, abandoned=False)
        self.records[r] = None

    def _unlink(self, r: int, record: Record) -> None:
        f, node = record.inode, self.inodes[record.inode]
        if node.head == r:
            self.inode(f, head=record.next, tail=node.tail if record.next != NONE else NONE)
        else:
            before = node.head
            while self.record(before).next != r:
                before = self.record(before).next
            self.records[before] = self.record(before)._replace(next=record.next)
            if node.tail == r and self.model.mutant != "unlink_keeps_tail":
                self.inode(f, tail=before)
        self.order[f] = tuple(x for x in self.order[f] if x != r)

    def _closed(self, f: int, record: Record, *, reaped: bool) -> None:
        """A writer goes: a clean close clears ABANDONED, a death with DIRTY sets it, another death leaves it."""
        mutant = self.model.mutant
        if not reaped:
            if record.state == HELD:  # a grant that is given back was no close
                self.inode(f, abandoned=False)
                self.ruined[f] = self.tainted[f] = False
        elif record.dropped:  # its process had given it up, not died with it; what was written counts as complete
            return
        elif record.dirty or mutant == "granted_is_dirty" or (mutant == "held_is_dirty" and record.state == HELD):
            self.inode(f, abandoned=True)

    def link(self, name: int) -> int:
        """Bind a name to a free inode; the generation becomes odd. NONE if there is none."""
        free = next((f for f, node in enumerate(self.inodes) if node.kind == UNUSED), NONE)
        if free != NONE:
            self.inodes[free] = Inode(self.inodes[free].gen + 1, LIVE)
            self.names[name] = free
            self.ruined[free] = self.tainted[free] = False
        return free

    def bury(self, f: int) -> None:
        """Free an orphan."""
        if self.inodes[f].kind != ORPHAN:
            raise ViolationError(f"inode {f} is freed twice")
        if not self.inodes[f].idle():
            raise ViolationError(f"inode {f} is freed under its readers")
        self.inode(f, kind=UNUSED, abandoned=False)

    def words(self) -> dict[str, Any]:
        """All of it, for State._replace."""
        return {
            "records": tuple(self.records),
            "inodes": tuple(self.inodes),
            "order": tuple(self.order),
            "names": tuple(self.names),
            "ns": self.ns,
            "moved": self.moved,
            "ruined": tuple(self.ruined),
            "tainted": tuple(self.tainted),
        }


# ---------------------------------------------------------------------------------------------------------------------
# The steps.


@dataclass(frozen=True)
class Locks:
    """One configuration. menu[slot]: what its threads may ask, chosen anew each time."""

    menu: tuple[tuple[Request, ...], ...]
    files: int = 1  # linked at the start; name i means inode i
    spare_inodes: int = 0
    spare_names: int = 0
    loops: int = 1
    threads: int = 1
    per_slot: int = 1  # records
    nest: tuple[Request, ...] = ()
    kills: int = 0
    tenants: int = 0
    strays: int = 0
    forks: int = 0
    janitors: tuple[int, ...] = ()  # slots whose process looks after dead slots now and then
    keepers: tuple[int, ...] = ()  # slots that never release what they got
    slices: bool = True  # the 50 ms look of a waiter
    batch: int = ALL_AT_ONCE  # grants in one transaction
    interrupts: bool = False  # an exception in a wait
    drops: bool = False  # handles may be left to their finaliser
    timeouts_fair: bool = False
    split: bool = False  # LOCK compares in one step and changes words in the next
    uncommitted: bool = False  # sections that change others' records stand open for a step
    mutant: str = ""
    owner: tuple[int, ...] = field(init=False)  # the slot of each actor

    def __post_init__(self) -> None:
        mains = [slot for slot in range(len(self.menu)) for _ in range(self.threads)]
        object.__setattr__(self, "owner", (*mains, *self.janitors))

    def initial(self) -> State:
        count = self.files + self.spare_inodes
        mains = len(self.owner) - len(self.janitors)
        inodes = tuple(Inode(1, LIVE) if f < self.files else Inode(0, UNUSED) for f in range(count))
        return State(
            records=(None,) * (len(self.menu) * self.per_slot),
            inodes=inodes,
            order=((),) * count,
            names=(*range(self.files), *([NONE] * self.spare_names)),
            ns=0,
            moved=0,
            slots=(Slot(1, locked=True, alive=True, clean=1),) * len(self.menu),
            tokens=(0,) * mains,
            actors=(Actor("idle", self.loops),) * mains + (JANITOR,) * len(self.janitors),
            m0=NONE,
            mk=(NONE,) * count,
            pending=None,
            ruined=(False,) * count,
            tainted=(False,) * count,
            child=None,
            budget=Budget(self.kills, self.tenants, self.strays, self.forks),
        )

    def steps(self, s: State) -> Iterator[Step]:
        """All that can happen next."""
        yield from self._environment(s)
        for i, a in enumerate(s.actors):
            if s.pending and s.pending[0] == i:
                yield f"commit{i}", FAIR, s.pending[1]
            elif a.posts:
                yield f"post{i}>{a.posts[0]}", FAIR, self._posted(s, i, a)
            elif a.pc not in ("done", "dead"):
                for label, fair, successor in getattr(self, "_" + a.pc)(s, i, a):
                    yield f"{label}{i}", fair, successor

    # ----- the environment

    def _environment(self, s: State) -> Iterator[Step]:
        budget = s.budget
        for slot, process in enumerate(s.slots):
            mine = [a for a, owner in zip(s.actors, self.owner, strict=True) if owner == slot]
            if budget.kills and process.alive and any(a.pc not in ("done", "j0") or a.posts for a in mine):
                yield f"KILL{slot}", UNFAIR, self._killed(s, slot)
            if budget.tenants and not process.alive and not process.locked:
                yield f"attach{slot}", UNFAIR, self._attached(s, slot)
            if process.alive and not s.pending and self.mutant != "dropped_forgotten":
                yield from self._work_off(s, slot)
        for i, count in enumerate(s.tokens):
            if budget.strays and count < TOKENS_MAX:
                tokens = put(s.tokens, i, count + 1)
                yield f"stray{i}", UNFAIR, s._replace(tokens=tokens, budget=budget._replace(strays=budget.strays - 1))
        if s.child:
            yield from self._forked_child(s, *s.child)

    def _killed(self, s: State, slot: int) -> State:
        """SIGKILL of a process: its threads end, the kernel frees its byte and its mutexes, open sections are undone."""
        ruined, tainted, actors = list(s.ruined), list(s.tainted), list(s.actors)
        for i, owner in enumerate(self.owner):
            if owner == slot:
                for want, _ in self._believed(s, i):
                    ruined[want.inode] |= want.mode == "W" or (want.mode == "U" and s.actors[i].changed)
                actors[i] = DEAD
        for record in s.records[slot * self.per_slot : (slot + 1) * self.per_slot]:
            if record and record.state == HELD and record.dirty and not record.dropped:
                tainted[record.inode] = True
        inherited = s.child is not None and s.child[:2] == ("hook", slot)
        mine = [i for i, owner in enumerate(self.owner) if owner == slot]
        return s._replace(
            actors=tuple(actors),
            ruined=tuple(ruined),
            tainted=tuple(tainted),
            slots=put(s.slots, slot, s.slots[slot]._replace(locked=inherited, alive=False)),
            m0=NONE if s.m0 in mine else s.m0,
            mk=tuple(NONE if i in mine else i for i in s.mk),
            pending=None if s.pending and s.pending[0] in mine else s.pending,
            budget=s.budget._replace(kills=s.budget.kills - 1),
        )

    def _attached(self, s: State, slot: int) -> State:
        """A new process says that a tenant is dead and locks its byte; it is a participant before the slot is clean."""
        mains = len(self.owner) - len(self.janitors)
        actors = tuple(
            a if owner != slot else Actor("at_ep", self.loops) if i < mains else JANITOR
            for i, (a, owner) in enumerate(zip(s.actors, self.owner, strict=True))
        )
        early = self.mutant == "epoch_before_lock"
        old = s.slots[slot]
        process = old._replace(epoch=next_epoch(old.epoch) if early else old.epoch + 1 & ~1, locked=not early, alive=True)
        budget = s.budget._replace(tenants=s.budget.tenants - 1)
        return s._replace(actors=actors, slots=put(s.slots, slot, process), budget=budget)

    def _work_off(self, s: State, slot: int) -> Iterator[Step]:
        """The next operation of a process releases what its finalisers noted."""
        for r in range(slot * self.per_slot, (slot + 1) * self.per_slot):
            record = s.records[r]
            if record and record.dropped and s.mk[record.inode] == NONE:
                section = Section(self, s)
                section.drop(r)
                section.pump(record.inode)
                tokens = list(s.tokens)
                for park in section.posts:  # posted in the same step: a lost post is the kill of any other releaser
                    tokens[park] = min(TOKENS_MAX, tokens[park] + 1)
                yield f"workoff{slot}", FAIR, s._replace(**section.words(), tokens=tuple(tokens))

    def _forked_child(self, s: State, stage: str, slot: int, r: int) -> Iterator[Step]:
        """The hook closes the inherited descriptor; the inherited handle touches nothing shared."""
        if stage == "hook":
            process = s.slots[slot]
            closed = s.slots if process.alive else put(s.slots, slot, process._replace(locked=False))
            yield "child:hook", FAIR, s._replace(slots=closed, child=("close", slot, r))
        elif self.mutant == "child_releases" and s.records[r] and not s.pending:
            section = Section(self, s)
            f = section.record(r).inode
            section.drop(r)
            section.pump(f)
            yield "child:release", FAIR, s._replace(**section.words(), child=None)
        else:
            yield "child:close", FAIR, s._replace(child=None)

    # ----- small tools of the steps

    @staticmethod
    def _act(s: State, i: int, a: Actor, **words: Any) -> State:
        return s._replace(actors=put(s.actors, i, a), **words)

    def _posted(self, s: State, i: int, a: Actor) -> State:
        park = a.posts[0]
        count = s.tokens[park] + (self.mutant != "no_post")
        return self._act(s, i, a._replace(posts=a.posts[1:]), tokens=put(s.tokens, park, min(TOKENS_MAX, count)))

    def _dead_now(self, s: State) -> tuple[tuple[int, int], ...]:
        """Where the dead have held something: (slot, the epoch below which all tenants are dead)."""
        return tuple(self._unreaped(s, blind=self.mutant == "tenant_hides"))

    @staticmethod
    def _unreaped(s: State, *, blind: bool = False) -> Iterator[tuple[int, int]]:
        for slot, process in enumerate(s.slots):
            below = next_epoch(process.epoch) if not process.locked or process.epoch % 2 == 0 else process.epoch
            if process.clean < below and not (blind and process.locked):
                yield slot, below

    def _is_overtaken(self, s: State, slot: int, below: int) -> bool:
        """Whether what stands in a slot may belong to others than the judged."""
        return s.slots[slot].clean >= below and self.mutant != "reap_no_recheck"

    @staticmethod
    def _over(a: Actor) -> Actor:
        """The operation is over: back to the first hold, or to the next operation."""
        if a.outer:
            return Actor("hold", a.left, *a.outer, nested=True, changed=a.changed)
        return Actor("idle", a.left - 1) if a.left > 1 else DONE

    @staticmethod
    def _enterable(s: State, i: int, *inodes: int) -> bool:
        return s.pending is None and all(f == NONE or s.mk[f] in (NONE, i) for f in inodes)

    def _close(self, s: State, i: int, section: Section, after: Actor, f: int = NONE) -> State:
        """End a section: its posts are to be done, one by one; grants beyond the batch need a further section."""
        after = after._replace(posts=after.posts + tuple(section.posts))
        looks = self.mutant == "no_pump_on_slice" and after.pc in ("wait", "hold")
        if self.batch < ALL_AT_ONCE and f != NONE and section.grantable(f) and not looks:
            after = Actor("more", after.left, posts=after.posts, at=f, then=after._replace(posts=()))
        mk = tuple(NONE if holder == i else holder for holder in s.mk)
        result = self._act(s, i, after, **section.words(), mk=mk)
        own = range(self.owner[i] * self.per_slot, (self.owner[i] + 1) * self.per_slot)
        foreign = any(x != y and r not in own for r, (x, y) in enumerate(zip(s.records, section.records, strict=True)))
        return s._replace(pending=(i, result)) if self.uncommitted and foreign else result

    def _more(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        if self._enterable(s, i, a.at) and a.then:
            section = Section(self, s)
            section.pump(a.at)
            yield "more", FAIR, self._close(s, i, section, a.then, a.at)

    def _reaped(self, s: State, i: int, a: Actor, f: int) -> State | None:
        """In m[f]: free one record on f of the dead that were judged, if it is theirs."""
        for slot, below in a.judged or ():
            if slot == self.owner[i] or self._is_overtaken(s, slot, below):
                continue
            for r in range(slot * self.per_slot, (slot + 1) * self.per_slot):
                record = s.records[r]
                if record and record.inode == f:
                    section = Section(self, s)
                    section.drop(r, reaped=True)
                    if self.mutant != "reap_no_pump":
                        section.pump(f)
                    return self._close(s, i, section, a, f)
        return None

    def _refused(self, s: State, i: int, a: Actor, f: int) -> None:
        """V5: somebody else, not dead when judged and not our own process's note, is on this inode."""
        judged = {slot for slot, below in a.judged or () if s.slots[slot].clean < below}
        if self.mutant in ("refuse_no_reap", "late_no_reap", "tenant_hides"):
            judged = {slot for slot, _ in self._unreaped(s)}
        for r, record in enumerate(s.records):
            slot = r // self.per_slot
            noted = record is not None and record.dropped and slot == self.owner[i]
            if record and record.inode == f and r != a.record and slot not in judged and not noted:
                return
        raise ViolationError("refused although only the dead, or an own note, stood in the way")

    def _own_note(self, s: State, i: int, f: int) -> bool:
        """A note of the own process stands in the way: it is worked off before a refusal."""
        own = s.records[self.owner[i] * self.per_slot : (self.owner[i] + 1) * self.per_slot]
        return any(record and record.dropped and record.inode == f for record in own)

    @staticmethod
    def _acquired(s: State, want: Request) -> None:
        """V4, at the moment of LOCK or of the confirmation."""
        if s.inodes[want.inode].gen != want.gen or s.names[want.name] != want.inode or s.moved != want.path:
            raise ViolationError("locks an inode that its path does not mean")

    def _m0_first(self, s: State) -> tuple[str, dict[str, Any]] | None:
        """What every section of m[0] does before its own work: an odd NS made even, an orphan that nobody holds freed."""
        if s.ns % 2 and self.mutant != "odd_stays":
            return "even", {"ns": s.ns + 1}
        for f, node in enumerate(s.inodes):
            if node.kind == ORPHAN and node.idle() and s.mk[f] == NONE and self.mutant != "orphan_forgotten":
                section = Section(self, s)
                section.bury(f)
                return "bury", section.words()
        return None

    # ----- lookup and LOCK

    def _idle(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        tokens = s.tokens if self.mutant == "drain_late" else put(s.tokens, i, 0)  # drained strictly before the section
        for want in self.menu[self.owner[i]]:
            asked = self._looked_up(s, a, want)
            yield f"{want.op}:{want.mode}{want.name}{want.patience}@", FAIR, self._act(s, i, asked, tokens=tokens)

    def _looked_up(self, s: State, a: Actor, want: Request) -> Actor:
        pc = {"remove": "rm", "move": "rm", "publish": "pub", "moveall": "d0"}.get(want.op, "try")
        f = s.names[want.name]
        if pc == "try" and f == NONE:
            if want.mode != "W":
                return self._over(a)
            pc = "create"
        found = want._replace(inode=f, gen=s.inodes[f].gen if f != NONE else 0, ns=s.ns, path=s.moved)
        return a._replace(pc=pc, want=found, record=NONE, judged=None)

    def _look(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """The lookup once more; a path through a directory that was renamed is gone."""
        assert a.want
        if a.want.path != s.moved:
            yield "gone", FAIR, self._act(s, i, self._over(a))
        else:
            yield "look", FAIR, self._act(s, i, self._looked_up(s, a, a.want))

    def _try(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        want = a.want
        assert want
        if not self._enterable(s, i, want.inode):
            return
        if s.mk[want.inode] != i:
            if want.gen != s.inodes[want.inode].gen and self.mutant != "no_gen_check":
                yield "stale", FAIR, self._act(s, i, a._replace(pc="look", judged=None))
                return
            if (want.ns != s.ns or s.ns % 2) and self.mutant != "ns_not_compared":
                yield "nschanged", FAIR, self._act(s, i, a._replace(pc="slow"))
                return
            if self.split:
                yield "compare", FAIR, self._act(s, i, a, mk=put(s.mk, want.inode, i))
                return
        yield from self._lock(s, i, a)

    def _slow(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """LOCK under m[0], with a fresh lookup."""
        assert a.want
        f = s.names[a.want.name]
        if s.m0 != NONE or not self._enterable(s, i, f):
            return
        first = self._m0_first(s)
        if first:
            yield first[0], FAIR, s._replace(**first[1])
        elif a.want.path != s.moved or f == NONE:
            yield "gone", FAIR, self._act(s, i, self._over(a) if a.want.path != s.moved else a._replace(pc="look"))
        else:
            want = a.want._replace(inode=f, gen=s.inodes[f].gen, ns=s.ns)
            yield from self._lock(s, i, a._replace(want=want))

    def _lock(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """LOCK after the comparisons: hold, queue, or refuse."""
        want = a.want
        assert want
        f = want.inode
        reaped = self._reaped(s, i, a, f)
        if reaped:
            yield "reap", FAIR, reaped
            return
        section = Section(self, s)
        section.pump(f)
        mine = range(self.owner[i] * self.per_slot, (self.owner[i] + 1) * self.per_slot)
        r = next((r for r in mine if section.records[r] is None), NONE)
        if r == NONE:
            if not self._own_note(s, i, f) and not any(x and x.dropped for x in (s.records[r] for r in mine)):
                raise ViolationError("no free record")
            return
        again = want.mode == "R" and a.outer is not None and a.outer[0].mode == "R" and a.outer[0].inode == f
        if self._passes_queue(s, i, want, again=again) or self._admits(section.inodes[f], want):
            self._acquired(s, want)
            if not again and any(s.slots[q // self.per_slot].alive for q in section.order[f]):
                raise ViolationError("held at once past a live waiter")
            section.hold(r, want, i)
            held = a._replace(pc="hold", record=r, judged=None, nested=False, changed=want.mode == "W")
            yield "lock", FAIR, self._close(s, i, section, held, f)
        elif want.patience != "try":
            section.enqueue(r, want, i)
            yield "queue", FAIR, self._close(s, i, section, a._replace(pc="wait", record=r, judged=None), f)
        elif a.judged is None and self.mutant != "refuse_no_reap":
            yield "judge", FAIR, self._close(s, i, section, a._replace(judged=self._dead_now(s)), f)
        elif not self._own_note(s, i, f):
            self._refused(s, i, a, f)
            yield "refuse", FAIR, self._close(s, i, section, self._over(a), f)

    def _passes_queue(self, s: State, i: int, want: Request, *, again: bool) -> bool:
        """A second shared open by a thread that holds the file shared: the one exception to first come, first served."""
        if self.mutant == "reentrant_by_slot" and want.mode == "R":
            held = s.records[self.owner[i] * self.per_slot : (self.owner[i] + 1) * self.per_slot]
            return any(x and x.state == HELD and x.mode == "R" and x.inode == want.inode for x in held)
        return again and self.mutant != "reentrant_queues"

    def _admits(self, node: Inode, want: Request) -> bool:
        if node.writer or (node.head != NONE and not (self.mutant == "reader_overtakes" and want.mode == "R")):
            return False
        return not node.nread or (want.mode == "R" and self.mutant != "enqueue_if_held")

    # ----- WAIT, the look, the end of a wait

    def _wait(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        assert a.want
        if self.mutant == "drain_late" and not a.at:
            yield "drain", FAIR, self._act(s, i, a._replace(at=1), tokens=put(s.tokens, i, 0))
            return
        if self.mutant == "poll":
            views = [s.records, s.pending[1].records] if s.pending else [s.records]
            if any(view[a.record] and view[a.record].state == GRANTED for view in views):  # type: ignore[union-attr]
                yield "polled", FAIR, self._act(s, i, a._replace(pc="hold"))
        if s.tokens[i]:
            tokens = put(s.tokens, i, s.tokens[i] - 1)
            yield "token", FAIR, self._act(s, i, a._replace(pc="chk"), tokens=tokens)
            if a.want.patience == "timed":  # and the deadline has passed
                judged = None if self.mutant == "late_no_reap" else self._dead_now(s)
                yield "latetoken", self.timeouts_fair, self._act(s, i, a._replace(pc="tmo", judged=judged), tokens=tokens)
        if self.slices:
            dead = () if self.mutant == "slice_no_reap" else self._dead_now(s)
            yield "slice", FAIR, self._act(s, i, a._replace(pc="chk", judged=dead))
        if a.want.patience == "timed":
            yield "timeout", self.timeouts_fair, self._act(s, i, a._replace(pc="tmo", judged=self._dead_now(s)))

    def _chk(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """The only place that reads the own record: inside m[k]."""
        want = a.want
        assert want
        if want.op == "publish":
            yield from self._pub(s, i, a)
            return
        f = want.inode
        if not self._enterable(s, i, f):
            return
        reaped = self._reaped(s, i, a, f)
        if reaped:
            yield "reap", FAIR, reaped
            return
        section = Section(self, s)
        if section.inodes[f].gen != want.gen and self.mutant != "waiter_no_gen":
            section.drop(a.record)
            section.pump(f)
            patience = "try" if a.pc == "tmo" else want.patience
            again = a._replace(pc="look", want=want._replace(patience=patience), record=NONE, judged=None)
            yield "replaced", FAIR, self._close(s, i, section, again, f)
            return
        if self.mutant != "no_pump_on_slice":
            section.pump(f)
        yield from self._looked(s, i, a, section)

    _tmo = _chk

    def _looked(self, s: State, i: int, a: Actor, section: Section) -> Iterator[Step]:
        """Granted: confirm, even after the deadline. Still queued: wait on, or leave."""
        want = a.want
        assert want
        f, record = want.inode, section.record(a.record)
        if record.state == GRANTED:
            if a.pc == "tmo" and self.mutant == "timeout_leaves_grant":
                yield "timeout", FAIR, self._close(s, i, section, self._over(a), f)
                return
            self._acquired(s, want)
            section.records[a.record] = record._replace(state=HELD, dirty=want.mode == "W")
            held = a._replace(pc="hold", judged=None, at=0, changed=want.mode == "W")
            yield "confirm", FAIR, self._close(s, i, section, held, f)
            if a.pc == "tmo" and self.interrupts:  # an exception instead of a time-out: the grant is given back
                section = Section(self, s)
                section.drop(a.record)
                section.pump(f)
                yield "interrupt", FAIR, self._close(s, i, section, self._over(a), f)
        elif a.pc == "chk":
            yield "queued", FAIR, self._close(s, i, section, a._replace(pc="wait", judged=None), f)
        elif not self._own_note(s, i, f):
            self._refused(s, i, a, f)
            section.drop(a.record)
            if self.mutant != "timeout_no_pump":
                section.pump(f)
            yield "timedout", FAIR, self._close(s, i, section, self._over(a), f)

    # ----- the holder

    def _hold(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        want = a.want
        assert want
        yield from self._released(s, i, a, want)
        record = s.records[a.record]
        if want.mode == "U" and record:
            if not record.dirty and (a.changed or self.mutant != "change_before_dirty"):
                # A plain store, outside any section: while HELD nobody else writes the record.
                yield "dirty", FAIR, self._act(s, i, a, records=put(s.records, a.record, record._replace(dirty=True)))
            elif not a.changed:
                yield "change", FAIR, self._act(s, i, a._replace(changed=True))
        if self.drops and record and not a.nested:
            note = None if self.mutant == "dropped_frees" else record._replace(dropped=True)
            yield "note", FAIR, self._act(s, i, self._over(a), records=put(s.records, a.record, note))
        if not a.outer and not a.nested:
            for second in self.nest:
                again = second.name == want.name
                if not again or (second.mode == "R" == want.mode):
                    inner = self._looked_up(s, a._replace(outer=(want, a.record)), second)
                    yield f"nest:{second.mode}{second.name}@", FAIR, self._act(s, i, inner, tokens=put(s.tokens, i, 0))
        if s.budget.forks and not s.child:
            budget = s.budget._replace(forks=s.budget.forks - 1)
            yield "fork", UNFAIR, s._replace(child=("hook", self.owner[i], a.record), budget=budget)

    def _released(self, s: State, i: int, a: Actor, want: Request) -> Iterator[Step]:
        f = want.inode
        if self.owner[i] in self.keepers or not self._enterable(s, i, f):
            return
        section = Section(self, s)
        section.drop(a.record)
        if self.mutant != "release_no_pump":
            section.pump(f)
        if self.mutant == "post_before_grant" and section.posts:
            if not a.at:
                tokens = put(s.tokens, section.posts[0], min(TOKENS_MAX, s.tokens[section.posts[0]] + 1))
                yield "early", FAIR, self._act(s, i, a._replace(at=1), tokens=tokens)
                return
            section.posts = []
        after = self._over(a)
        if section.inodes[f].kind == ORPHAN and section.inodes[f].idle():
            after = a._replace(pc="bury", at=f, record=NONE)
        yield "release", FAIR, self._close(s, i, section, after, f)

    def _bury(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Under m[0]: the orphan may have been freed by another meanwhile, even be a new file."""
        if s.m0 == NONE and self._enterable(s, i, a.at):
            section = Section(self, s)
            node = section.inodes[a.at]
            if (node.kind == ORPHAN and node.idle()) or self.mutant == "bury_blind":
                section.bury(a.at)
            yield "bury", FAIR, self._close(s, i, section, self._over(a))

    # ----- the namespace

    def _create(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Under m[0] and m[k]: the name, the generation and the exclusive hold in one transaction."""
        want = a.want
        assert want
        if s.m0 != NONE or s.pending:
            return
        first = self._m0_first(s)
        section = Section(self, s)
        if first:
            yield first[0], FAIR, s._replace(**first[1])
        elif s.names[want.name] != NONE or want.path != s.moved:
            yield "exists", FAIR, self._act(s, i, a._replace(pc="look"))
        else:
            f = section.link(want.name)
            r = self.owner[i] * self.per_slot
            if f == NONE or any(section.records[r : r + self.per_slot]):
                yield "nospace", FAIR, self._act(s, i, self._over(a))
                return
            made = want._replace(inode=f, gen=section.inodes[f].gen, ns=s.ns)
            section.hold(r, made, i)
            yield "create", FAIR, self._close(s, i, section, a._replace(pc="hold", want=made, record=r, changed=True))

    def _rm(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Remove, or rename a file: never waits, and exact: no open slips in."""
        want = a.want
        assert want
        f = s.names[want.name]
        if s.m0 != NONE or not self._enterable(s, i, f):
            return
        first = self._m0_first(s)
        if first:
            yield first[0], FAIR, s._replace(**first[1])
            return
        target = s.names.index(NONE) if NONE in s.names else NONE
        if f == NONE or (want.op == "move" and target == NONE):
            yield "absent", FAIR, self._act(s, i, self._over(a))
            return
        reaped = self._reaped(s, i, a, f)
        if reaped:
            yield "reap", FAIR, reaped
            return
        section = Section(self, s)
        section.pump(f)
        if section.inodes[f].idle():
            self._unlinked(section, want, f, target)
            yield want.op, FAIR, self._close(s, i, section, self._over(a))
        elif a.judged is None and self.mutant != "refuse_no_reap":
            yield "judge", FAIR, self._close(s, i, section, a._replace(judged=self._dead_now(s)), f)
        elif not self._own_note(s, i, f):
            self._refused(s, i, a, f)
            yield "isopen", FAIR, self._close(s, i, section, self._over(a), f)

    @staticmethod
    def _unlinked(section: Section, want: Request, f: int, target: int) -> None:
        section.names[want.name] = NONE
        if want.op == "move":
            section.names[target] = f
            section.inode(f, gen=section.inodes[f].gen + 2)
        else:
            section.inode(f, gen=section.inodes[f].gen + 1, kind=UNUSED, abandoned=False)

    def _pub(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Replace, publish: past readers and waiters at once; behind a writer in the queue, as a reader."""
        want = a.want
        assert want
        f = s.names[want.name]
        old = s.records[a.record].inode if a.record != NONE else NONE  # type: ignore[union-attr]
        if s.m0 != NONE or not self._enterable(s, i, f, old):
            return
        first = self._m0_first(s)
        if first:
            yield first[0], FAIR, s._replace(**first[1])
            return
        section = Section(self, s)
        if a.record != NONE and (old != f or s.inodes[f].gen != want.gen):  # replaced by another meanwhile
            section.drop(a.record)
            section.pump(old)
            patience = "try" if a.pc == "tmo" else want.patience
            again = a._replace(pc="pub", want=want._replace(patience=patience), record=NONE)
            yield "replaced", FAIR, self._close(s, i, section, again, old)
            return
        reaped = self._reaped(s, i, a, f)
        if reaped:
            yield "reap", FAIR, reaped
            return
        if f != NONE:
            section.pump(f)
        if f == NONE or not section.inodes[f].writer or self.mutant == "publish_past_writer":
            self._replaced(section, a, want, f)
            yield "publish", FAIR, self._close(s, i, section, self._over(a), f)
        else:
            yield from self._behind_writer(s, i, a, section, f)

    def _replaced(self, section: Section, a: Actor, want: Request, f: int) -> None:
        """The name to the new inode, the old one to the orphans; its readers keep it."""
        linked = section.link(want.name)
        if a.record != NONE:
            section.drop(a.record)
        if NONE in (f, linked):
            if f != NONE:
                section.pump(f)
            return
        section.inode(f, gen=section.inodes[f].gen + 1, kind=ORPHAN)
        section.pump(f)
        if section.inodes[f].idle() or self.mutant == "bury_at_once":
            section.bury(f)

    def _behind_writer(self, s: State, i: int, a: Actor, section: Section, f: int) -> Iterator[Step]:
        assert a.want
        want = a.want._replace(inode=f, gen=s.inodes[f].gen)
        if a.pc == "tmo" or (want.patience == "try" and a.judged is not None):
            if self._own_note(s, i, f):
                return
            self._refused(s, i, a, f)
            if a.record != NONE:
                section.drop(a.record)
                section.pump(f)
            yield "refuse", FAIR, self._close(s, i, section, self._over(a), f)
        elif want.patience == "try":
            yield "judge", FAIR, self._close(s, i, section, a._replace(judged=self._dead_now(s)), f)
        elif a.record != NONE:
            yield "queued", FAIR, self._close(s, i, section, a._replace(pc="wait", judged=None), f)
        else:
            r = self.owner[i] * self.per_slot
            section.enqueue(r, want, i)
            waiting = a._replace(pc="wait", want=want, record=r, judged=None)
            yield "queue", FAIR, self._close(s, i, section, waiting, f)

    def _d0(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """A rename of a directory, rmtree: m[0] for all of it; NS goes odd, so that opens take the path through m[0]."""
        if s.m0 != NONE or s.pending:
            return
        first = self._m0_first(s)
        if first:
            yield first[0], FAIR, s._replace(**first[1])
        else:
            yield "odd", FAIR, self._act(s, i, a._replace(pc="d2" if self.mutant == "no_pass" else "d1"), m0=i, ns=s.ns + 1)

    def _d1(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Once through every m[k]: an open that compared the old NS is through now."""
        if a.at == len(s.inodes):
            yield "passed", FAIR, self._act(s, i, a._replace(pc="d2", at=0))
        elif self._enterable(s, i, a.at):
            yield f"pass{a.at}@", FAIR, self._act(s, i, a._replace(at=a.at + 1))

    def _d2(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Scan the records, slot by slot; the dead are judged and reaped, a live one refuses."""
        if a.at == len(s.slots):
            yield "scanned", FAIR, self._act(s, i, a._replace(pc="d3"))
            return
        found = next((x for x in s.records[a.at * self.per_slot : (a.at + 1) * self.per_slot] if x), None)
        if found is None:
            yield f"scan{a.at}@", FAIR, self._act(s, i, a._replace(at=a.at + 1))
        elif self._enterable(s, i, found.inode):
            reaped = self._reaped(s, i, a, found.inode)
            if reaped:
                yield "reap", FAIR, reaped
            elif a.judged is None and self.mutant != "refuse_no_reap":
                yield "judge", FAIR, self._act(s, i, a._replace(judged=self._dead_now(s)))
            elif not self._own_note(s, i, found.inode):
                self._refused(s, i, a, found.inode)
                yield "isopen", FAIR, self._act(s, i, self._over(a), m0=NONE, ns=s.ns + 1)

    def _d3(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        ns = s.ns - 1 if self.mutant == "ns_back" else s.ns + 1
        yield "moveall", FAIR, self._act(s, i, self._over(a), m0=NONE, ns=ns, moved=s.moved + 1)

    # ----- a new tenant, the janitor

    def _at_ep(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        slot, process = self.owner[i], s.slots[self.owner[i]]
        a = a._replace(pc="at_sc" if self.mutant == "attach_scans" else "at_cl")
        cleaner = self._cleaned(s, a) if self.mutant == "attach_no_clean" else a
        if self.mutant == "epoch_before_lock":
            yield "lockbyte", FAIR, self._act(s, i, cleaner, slots=put(s.slots, slot, process._replace(locked=True)))
        else:
            yield (
                "epoch",
                FAIR,
                self._act(s, i, cleaner, slots=put(s.slots, slot, process._replace(epoch=next_epoch(process.epoch)))),
            )

    def _at_sc(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Only in the mutant that scans its slot outside m[k], where uncommitted words are seen."""
        own = slice(self.owner[i] * self.per_slot, (self.owner[i] + 1) * self.per_slot)
        for records in [s.records, s.pending[1].records] if s.pending else [s.records]:
            yield "scanned", FAIR, self._act(s, i, a._replace(pc="at_cl") if any(records[own]) else self._cleaned(s, a))

    @staticmethod
    def _cleaned(s: State, a: Actor) -> Actor:
        """It takes its slot for cleaned."""
        return a._replace(pc="at_cl", at=len(s.inodes), nested=True)

    def _at_cl(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Free the predecessor's records, inside each m[k] in turn; note that; and, as somebody else may have been at the same
        before it was noted, once more through each m[k] (nested: this is the second time)."""
        slot = self.owner[i]
        process = s.slots[slot]
        if a.at == len(s.inodes):
            if s.m0 == NONE and not s.pending:
                slots = put(s.slots, slot, process._replace(clean=max(process.clean, process.epoch)))
                last = a.nested or self.mutant == "attach_one_pass"
                after = a._replace(pc="idle", nested=False, at=0) if last else a._replace(nested=True, at=0)
                yield "clean", FAIR, self._act(s, i, after, slots=slots)
        elif self._enterable(s, i, a.at):
            mine = range(slot * self.per_slot, (slot + 1) * self.per_slot)
            r = next((r for r in mine if (x := s.records[r]) and x.inode == a.at), NONE)
            if r == NONE:
                yield f"clean{a.at}@", FAIR, self._act(s, i, a._replace(at=a.at + 1))
            else:
                section = Section(self, s)
                section.drop(r, reaped=True)
                section.pump(a.at)
                yield "cleanup", FAIR, self._close(s, i, section, a, a.at)

    def _j0(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Judge: the epoch first, then the byte; a stall before the section makes the judgement stale."""
        for slot, below in self._dead_now(s):
            if slot != self.owner[i]:
                yield f"judge{slot}@", FAIR, self._act(s, i, a._replace(pc="j1", judged=((slot, below),), at=0))

    def _j1(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Into each m[k] in turn, unless overtaken; in the end it notes that the slot is clean."""
        assert a.judged
        slot, below = a.judged[0]
        process = s.slots[slot]
        if a.at == len(s.inodes):
            if s.m0 == NONE and not s.pending:
                slots = put(s.slots, slot, process._replace(clean=max(process.clean, below)))
                yield "noted", FAIR, self._act(s, i, JANITOR, slots=slots)
        elif self._enterable(s, i, a.at):
            if self._is_overtaken(s, slot, below):
                yield "overtaken", FAIR, self._act(s, i, JANITOR)
            else:
                yield f"enter{a.at}@", FAIR, self._act(s, i, a._replace(pc="j2"), mk=put(s.mk, a.at, i))

    def _j2(self, s: State, i: int, a: Actor) -> Iterator[Step]:
        """Inside: whatever stands there is taken for the dead one's. What is done in m[0] alone may come before."""
        assert a.judged
        slot = a.judged[0][0]
        mine = range(slot * self.per_slot, (slot + 1) * self.per_slot)
        r = next((r for r in mine if (x := s.records[r]) and x.inode == a.at), NONE)
        if s.pending:
            return
        section = Section(self, s)
        if r == NONE:
            yield f"leave{a.at}@", FAIR, self._close(s, i, section, a._replace(pc="j1", at=a.at + 1))
        else:
            section.drop(r, reaped=True)
            section.pump(a.at)
            yield "janitor", FAIR, self._close(s, i, section, a._replace(pc="j1"), a.at)

    # ----- the invariants

    def _believed(self, s: State, i: int) -> Iterator[tuple[Request, int]]:
        """What this actor believes to hold, and with which record."""
        a = s.actors[i]
        a = a.then or a
        if a.pc == "hold" and a.want:
            yield a.want, a.record
        if a.outer:
            yield a.outer

    def fault(self, s: State) -> str | None:
        """V1 to V4 in every state."""
        for f, node in enumerate(s.inodes):
            fault = self._inode_fault(s, f, node)
            if fault:
                return fault
        for i, a in enumerate(s.actors):
            for want, r in self._believed(s, i):
                record = s.records[r]
                if s.pending and self.mutant == "poll":
                    record = s.pending[1].records[r]
                if not record or (record.state != HELD and self.mutant != "poll") or record[1:3] != (want.mode, want.inode):
                    return f"actor {i} believes to hold, its record says {record or 'FREE'}"
                node = s.inodes[want.inode]
                if node.kind == UNUSED or (node.gen != want.gen and (node.kind == LIVE or want.mode != "R")):
                    return f"actor {i} holds an inode that was removed or given away"
                if node.kind == LIVE and (s.moved != want.path or s.names[want.name] != want.inode):
                    return f"actor {i} holds a file that was moved"
            if a.pc in ("wait", "chk", "tmo"):
                mine = s.records[a.record]
                if not mine or mine.park != i or mine.state == HELD:
                    return f"actor {i} waits, its record says {mine or 'FREE'}"
        return None

    def _inode_fault(self, s: State, f: int, node: Inode) -> str | None:
        records = [(r, x) for r, x in enumerate(s.records) if x and x.inode == f]
        readers = sum(x.mode == "R" for _, x in records if x.state != QUEUED)
        writers = sum(x.mode != "R" for _, x in records if x.state != QUEUED)
        if writers > 1 or (writers and readers):
            return f"a writer beside another holder of {f}"
        if (readers, writers) != (node.nread, node.writer):
            return f"the counts of {f} are not those of its records"
        chain: list[int] = []
        r = node.head
        while r != NONE and len(chain) <= len(s.records):
            record = s.records[r]
            if not record or record.state != QUEUED or record.inode != f:
                return f"the queue of {f} runs into record {r}"
            chain.append(r)
            r = record.next
        if tuple(chain) != s.order[f] or node.tail != (chain[-1] if chain else NONE):
            return f"the queue of {f} is not the order of arrival"
        if sum(x.state == QUEUED for _, x in records) != len(chain):
            return f"a waiter of {f} is not in its queue"
        unfinished = self.batch < ALL_AT_ONCE and (s.budget.kills < self.kills or any(a.pc == "more" for a in s.actors))
        if chain and not unfinished and Section(self, s).grantable(f) and self.mutant != "writer_over_readers":
            return f"the head of {f} could hold and is left waiting"
        return None

    def ended(self, s: State) -> bool:
        """Everybody is through, and nothing waits to be worked off."""
        if s.child or s.pending or any(x and x.dropped and self._alive(s, r) for r, x in enumerate(s.records)):
            return False
        for a, slot in zip(s.actors, self.owner, strict=True):
            kept = a.pc == "hold" and slot in self.keepers
            if a.posts or not (kept or a.pc in ("done", "dead", "j0", "j1")):
                return False
        return True

    def _alive(self, s: State, r: int) -> bool:
        return s.slots[r // self.per_slot].alive

    def end_fault(self, s: State) -> str | None:
        """V6: no record of the living is left; one full REAP and one section of m[0] free all the rest."""
        section = Section(self, s)
        for r, record in enumerate(s.records):
            if record:
                kept = r // self.per_slot in self.keepers
                if self._alive(s, r) and not kept:
                    return f"record {r} of a live slot leaks"
                section.drop(r, reaped=not kept)
                section.pump(record.inode)
        first = self._m0_first(s._replace(**section.words()))
        while first:
            section = Section(self, s._replace(**{**section.words(), **first[1]}))
            first = self._m0_first(s._replace(**section.words()))
        if any(section.records) or any(not node.idle() or node.kind == ORPHAN for node in section.inodes):
            return "REAP leaves something"
        for f, node in enumerate(section.inodes):
            if node.kind == LIVE and not section.ruined[f] <= node.abandoned <= section.tainted[f]:
                return f"ABANDONED of {f} is {node.abandoned}"
            if node.kind == LIVE and f not in section.names:
                return f"inode {f} is live and has no name"
        return None


# ---------------------------------------------------------------------------------------------------------------------
# What is run.


def menu(*requests: str) -> tuple[Request, ...]:
    """R0 reads name 0 and waits, R0t is timed, R0? tries. W: wb, U: r+b, X: remove, M: move, P: publish, D: moveall."""
    ops = {"X": "remove", "M": "move", "P": "publish", "D": "moveall"}
    patience = {"t": "timed", "?": "try"}
    return tuple(
        Request(ops.get(r[0], "open"), int(r[1]), "R" if r[0] in "RP" else r[0], patience.get(r[2:], "wait")) for r in requests
    )


RW, RWT = menu("R0", "W0"), menu("R0", "W0", "W0t")
ALL = menu("R0", "W0", "R0t", "W0t", "W0?")

_NESTED = Locks((menu("R0", "W0", "R1", "W1t"),) * 3, files=2, per_slot=2, nest=menu("R1t", "W1t", "R0t"), timeouts_fair=True)

CONFIGS: dict[str, Model] = {
    # Without kills progress must not lean on the slice, whatever stray tokens there are.
    "noslice3": Locks((RW,) * 3, loops=2, slices=False, strays=1),
    "noslice3timed": Locks((menu("R0", "W0", "R0t", "W0t", "R0?", "W0?"),) * 3, slices=False, strays=1, interrupts=True),
    "noslice4": Locks((RWT,) * 4, slices=False),
    "noslice2threads": Locks((RWT,) * 2, threads=2, per_slot=2, slices=False, strays=1),
    "noslice2files": replace(_NESTED, slices=False),
    "kill2files": replace(_NESTED, menu=(menu("R0"), menu("R1", "W1"), menu("W0", "W1t")), kills=2),
    "again3": Locks((menu("R0", "W0"),) * 3, per_slot=2, nest=menu("R0"), slices=False),
    "again2kill": Locks((RW, menu("W0", "P0"), RW), per_slot=2, nest=menu("R0"), kills=1, spare_inodes=1),
    # Deaths.
    "kill2": Locks((ALL, ALL), kills=1, strays=1),
    "kill3": Locks((ALL,) * 3, kills=2),
    "kill3loops2": Locks((RW,) * 3, loops=2, kills=1),
    "kill3update": Locks((menu("U0", "W0"), menu("U0", "R0"), menu("R0", "W0t")), kills=2, loops=1),
    "kill3open": Locks((RWT,) * 3, kills=2, uncommitted=True, interrupts=True),
    "kill2threads": Locks((RWT,) * 2, threads=2, per_slot=2, kills=1),
    "kill4batch1": Locks((menu("W0"), menu("R0"), menu("R0", "W0"), menu("R0")), kills=1, batch=1),
    "kill3janitor": Locks((RWT,) * 3, kills=2, janitors=(0,)),
    "drop2": Locks((menu("U0", "R0", "W0?"),) * 2, loops=2, per_slot=2, drops=True, kills=1),
    "drop3": Locks((menu("U0", "R0"), menu("W0t"), menu("X0", "R0")), per_slot=2, drops=True, kills=1),
    # Slots used again, with stale judgements.
    "attach2": Locks((menu("R0", "W0", "W0?"),) * 2, kills=2, tenants=2, janitors=(1,), uncommitted=True),
    "attach3": Locks((RW,) * 3, kills=1, tenants=1, janitors=(2,)),
    "fork3": Locks((RW,) * 3, kills=1, forks=1),
    # The namespace.
    "remove3": Locks((menu("X0", "W0"), RW, menu("W0t", "R0?", "M0")), kills=1, spare_names=1),
    "remove3attach": Locks((menu("X0"), RW, menu("W0", "X0")), kills=1, tenants=1, janitors=(2,)),
    "publish2": Locks((menu("P0", "R0"), menu("P0t", "W0", "R0")), spare_inodes=2, kills=1, loops=2),
    "publish3": Locks((menu("P0", "W0"), menu("P0", "R0", "R0t"), menu("W0", "R0")), spare_inodes=1, kills=1),
    "publish3remove": Locks((menu("P0", "P0?"), menu("X0", "R0"), menu("W0", "R0")), spare_inodes=1, kills=1),
    "moveall2": Locks((menu("D0", "R0"), menu("W0", "R0", "P0")), spare_inodes=1, kills=1, loops=2, split=True),
    "moveall3": Locks((menu("D0"), menu("D0", "R0", "W0"), menu("R0?", "W0")), kills=2, split=True),
}
QUICK = (
    "again3",
    "kill2",
    "remove3",
    "publish2",
    "moveall2",
)


def _mutant(breaks: str, config: Locks) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


_R, _W, _MIX = menu("R0"), menu("W0"), Locks((RW,) * 3)
_TIMED = Locks((menu("R0", "W0t"), menu("W0", "W0t"), RW))
_KILL = replace(_MIX, kills=1)
_TENANT = Locks((RW,) * 2, kills=1, tenants=1, janitors=(1,))
_REFUSED = Locks((menu("W0"), menu("W0?")), kills=1, tenants=1)
_CREATES = Locks((menu("W0"), menu("X0")), kills=1, tenants=1, janitors=(1,), spare_inodes=1)
_MOVEALL = Locks((menu("D0"), menu("R0", "W0")), split=True)
_KEPT = Locks((menu("W0t"), _R, _R, _R), kills=1, batch=1, keepers=(1, 2, 3), timeouts_fair=True)
_REPLACE = Locks((menu("P0"), RW, _R), spare_inodes=1)

MUTANTS: dict[str, Mutant] = {
    # the queue
    "enqueue_if_held": _mutant("readers queue behind readers", _MIX),
    "reader_overtakes": _mutant("a reader joins readers past a queued writer", _MIX),
    "writer_over_readers": _mutant("the head writer is granted while readers hold", _MIX),
    "timeout_no_pump": _mutant("a time-out unlinks, and nobody grants what stood behind", _TIMED),
    "release_no_pump": _mutant("a release frees and does not grant", _MIX),
    "reap_no_pump": _mutant("reaping frees and does not grant", _KILL),
    "timeout_leaves_grant": _mutant("a time-out leaves a grant behind", _TIMED),
    "unlink_keeps_tail": _mutant("leaving the last place keeps the tail", _TIMED),
    "no_post": _mutant("a grant without a post: only the slice wakes", replace(_MIX, slices=False)),
    "drain_late": _mutant("stale tokens are drained after the enqueue", replace(_MIX, slices=False)),
    "post_before_grant": _mutant("the post precedes the grant", replace(_MIX, slices=False)),
    "no_pump_on_slice": _mutant("grants in batches, and a look does not grant", _KEPT),
    "reentrant_queues": _mutant("a second shared open waits behind a writer", replace(_MIX, per_slot=2, nest=_R)),
    "reentrant_by_slot": _mutant("a thread passes the queue on another thread's hold", Locks((_R, _W), threads=2, per_slot=2)),
    # deaths
    "slice_no_reap": _mutant("a slice looks and does not reap", _KILL),
    "late_no_reap": _mutant(
        "a token at the deadline makes up for no look at the dead", Locks((menu("R0", "W0t"), _W), kills=1, strays=1)
    ),
    "refuse_no_reap": _mutant("try and remove refuse without reaping", Locks((menu("W0?", "X0"), _R, _R), kills=1)),
    "poll": _mutant("a grant is believed outside m[k]", Locks((RW,) * 3, kills=2, uncommitted=True)),
    "granted_is_dirty": _mutant("a writer that never knew marks the file ABANDONED", _KILL),
    "held_is_dirty": _mutant("r+b that changed nothing marks the file ABANDONED", Locks((menu("U0"), _R), kills=1)),
    "change_before_dirty": _mutant("bytes change before DIRTY is stored", Locks((menu("U0"), _R), kills=1)),
    "reader_clears": _mutant("a reader's close clears ABANDONED", Locks((_W, _R), kills=1)),
    "dropped_frees": _mutant("a finaliser frees its record outside m[k]", Locks((RW,) * 2, drops=True)),
    "dropped_forgotten": _mutant("nobody works a finaliser's note off", Locks((RW,) * 2, drops=True)),
    "reap_no_recheck": _mutant("the reaper does not compare the epoch again", _TENANT),
    "epoch_before_lock": _mutant("a tenant bumps the epoch before it locks its byte", _TENANT),
    "tenant_hides": _mutant("a locked byte hides what its tenant has not given back yet", _REFUSED),
    "attach_one_pass": _mutant("a tenant does not pass through each m[k] once more when its slot is clean", _CREATES),
    "attach_no_clean": _mutant("a tenant does not clean its slot", _TENANT),
    "attach_scans": _mutant("a tenant scans its slot outside m[k]", Locks((_W, _W), kills=2, tenants=1, uncommitted=True)),
    "child_releases": _mutant("a forked child releases what its parent holds", Locks((RW,) * 2, forks=1)),
    # the namespace
    "no_gen_check": _mutant("LOCK does not compare the generation", Locks((menu("X0", "W0"),) * 2)),
    "waiter_no_gen": _mutant("a waiter does not compare the generation", replace(_REPLACE, menu=(menu("P0"), _W, _R))),
    "publish_past_writer": _mutant("publish does not wait for the writer", _REPLACE),
    "bury_at_once": _mutant("publish frees what readers still hold", _REPLACE),
    "bury_blind": _mutant(
        "the last reader frees an orphan that another freed", replace(_REPLACE, menu=(menu("P0"), _R, menu("P0")))
    ),
    "orphan_forgotten": _mutant("only the last release frees an orphan", replace(_REPLACE, menu=(menu("P0"), _R), kills=1)),
    "ns_not_compared": _mutant("LOCK does not compare NS", _MOVEALL),
    "no_pass": _mutant("the scan begins before the opens under way are through", _MOVEALL),
    "ns_back": _mutant("NS returns to the value it had", _MOVEALL),
    "odd_stays": _mutant(
        "an odd NS left by a death is taken for even", replace(_MOVEALL, menu=(menu("D0"), menu("D0"), _R), kills=1)
    ),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
