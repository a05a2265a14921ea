"""Model of reads and lookups that take no lock, against transactions that become visible store by store. See explorer.py.

One step is one store, or one load of a lock-free reader.  A transaction publishes its undo entries, stores its values
one by one, commits, makes the sequence word even; a death before the commit is undone store by store, in reverse, perhaps
twice.  What makes lock-free reads and lookups right, as the mutants and variants below show:

    a section that lets a name mean another inode or another content (RELEASE of a writer, publish, rename) stores its sequence
        word odd first, to be undone to s+2 last, and even after the commit; LOCK, reap, creation, removal need not
    the reader:  name, generation (odd), name again, L == 0, sequence (even), data, L == 0, generation, the same sequence LAST
    a lookup:    name, generation (odd), name again; a miss counts only under m[0]
    creation and publication undo the generation to g+2 (modelled with the generation stored last)
    a rename stores the generation twice: even (g+1, undone to g+4) before the names, odd (g+2, undone to g+3) after them

Checked: what a reader accepts was the committed content of that name at some moment of the read, an absence too; who locks
after a lock-free lookup locks what the name means.

What is not modelled: directories; walks of chains; r+b; blocks but for two; weak memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from explorer import FAIR, UNFAIR, Model, Mutant, Step, ViolationError, main, put

# ---------------------------------------------------------------------------------------------------------------------
# The state.

ABSENT, UNREADABLE = -1, -2  # what a name means, besides the version of its content
GONE, KILLED = -1, -2  # stages
WRITER, ABANDONED = 1, 2  # bits of L
NONE = -1


class Plan(NamedTuple):
    """A transaction: (word, new value, undo value), then plain stores after the commit; what it makes true."""

    stores: tuple[tuple[str, int, int], ...]
    after: tuple[tuple[str, int], ...] = ()
    truth: tuple[tuple[int, int, int], ...] = ()  # (name, inode, version)
    stage: int = GONE  # of its worker, when done
    seen: tuple[int, ...] = ()  # what its worker knows then: the inode, the block


class Worker(NamedTuple):
    """One process and its single job."""

    stage: int
    plan: Plan | None = None
    at: int = 0
    seen: tuple[int, ...] = ()
    valid: frozenset[int] = frozenset()  # what the name of a reader has meant since it began


class Shared(NamedTuple):
    """Everything. truth is a ghost: the inode and the version that each name means by what is committed."""

    memory: tuple[int, ...]
    workers: tuple[Worker, ...]
    holder: int
    journal: tuple[tuple[str, int], ...]
    undone: int
    truth: tuple[tuple[int, int], ...]
    kills: int


@dataclass(frozen=True)
class Job:
    """What one worker does, once."""

    kind: str  # read, open, write, create, remove, move, publish, reap
    name: int = 0
    inode: int = NONE  # of a new file
    block: int = NONE


@dataclass(frozen=True)
class Words:
    """One configuration: name 0 is inode 0 in block 0; one mutex guards everything."""

    jobs: tuple[Job, ...]
    kills: int = 0
    mutant: str = ""
    address: dict[str, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        words = [f"{word}{n}" for word in ("name", "ig", "seq", "L", "blk", "d0.", "d1.") for n in range(2)]
        words += [f"rec{i}" for i in range(len(self.jobs))]
        object.__setattr__(self, "address", {word: n for n, word in enumerate(words)})

    def initial(self) -> Shared:
        start = {"name1": NONE, "ig0": 1, "blk1": NONE, "d0.1": UNREADABLE, "d1.1": UNREADABLE}
        memory = tuple(start.get(word, 0) for word in self.address)
        workers = (Worker(0),) * len(self.jobs)
        return Shared(memory, workers, NONE, (), 0, ((0, 0), (NONE, ABSENT)), self.kills)

    def get(self, s: Shared, word: str, n: int) -> int:
        """Load one word."""
        return s.memory[self.address[f"{word}{n}"]]

    def _set(self, s: Shared, word: str, value: int) -> Shared:
        return s._replace(memory=put(s.memory, self.address[word], value))

    @staticmethod
    def _work(s: Shared, i: int, **changes: Any) -> Shared:
        return s._replace(workers=put(s.workers, i, s.workers[i]._replace(**changes)))

    # ----- the steps

    def steps(self, s: Shared) -> Iterator[Step]:
        """All that can happen next."""
        if s.holder != NONE and s.workers[s.holder].stage == KILLED:
            yield from self._recovery(s)
        for i, worker in enumerate(s.workers):
            if worker.stage < 0:
                continue
            if s.kills and self.jobs[i].kind not in ("read", "open"):
                killed = self._work(s, i, stage=KILLED, plan=None, at=0)
                yield f"KILL{i}", UNFAIR, killed._replace(kills=s.kills - 1)
            if worker.plan:
                yield f"step{i}.{worker.at}", FAIR, self._executed(s, i, worker, worker.plan)
            elif self.jobs[i].kind == "read" or (self.jobs[i].kind == "open" and worker.stage < 3):
                yield f"read{i}.{worker.stage}", FAIR, self._loaded(s, i, worker)
            elif self._content(i, worker.stage):
                word = f"d{self._content(i, worker.stage) - 1}.{worker.seen[-1]}"
                yield f"{word}={i}", FAIR, self._work(self._set(s, word, i + 1), i, stage=worker.stage + 1)
            elif s.holder == NONE:
                yield f"begin{i}", FAIR, self._begun(s, i)

    def _recovery(self, s: Shared) -> Iterator[Step]:
        """Whoever comes undoes the dead holder's journal; he may be killed and another begin again."""
        if s.kills and s.undone:
            yield "KILLrecoverer", UNFAIR, s._replace(undone=0, kills=s.kills - 1)
        if s.undone < len(s.journal):
            word, old = s.journal[s.undone if self.mutant == "undo_forward" else -1 - s.undone]
            yield f"undo:{word}={old}", FAIR, self._set(s, word, old)._replace(undone=s.undone + 1)
        else:
            yield "recovered", FAIR, s._replace(holder=NONE, journal=(), undone=0)

    def _content(self, i: int, stage: int) -> int:
        """1 or 2 if this stage of the job stores one half of the content, outside any section; else 0."""
        first = {"write": 1, "create": 1, "publish": 1}.get(self.jobs[i].kind, NONE)
        return stage - first + 1 if first <= stage <= first + 1 and first > 0 else 0

    def _begun(self, s: Shared, i: int) -> Shared:
        """Take the mutex, plan the transaction, publish its undo entries; or find that there is nothing to do."""
        if self.jobs[i].kind == "open":
            self._opened(s, self.jobs[i], *s.workers[i].seen[:2])
        plan = self._plan(s, i)
        if plan is None:
            return self._work(s, i, stage=GONE)
        touched = {word[3:] for word, _, _ in plan.stores if word.startswith("seq")}
        touched |= {word[1:] for word, _, _ in plan.stores if word.startswith("L")}
        for n in sorted(touched):
            leftover = self.get(s, "seq", int(n))
            if leftover % 2 and self.mutant != "leftover_stays":
                plan = Plan((), ((f"seq{n}", leftover + 1),), (), s.workers[i].stage, s.workers[i].seen)
                break
        journal = tuple((word, old) for word, _, old in plan.stores)
        return self._work(s, i, plan=plan, at=0)._replace(holder=i, journal=journal)

    def _executed(self, s: Shared, i: int, worker: Worker, plan: Plan) -> Shared:
        """One new value; or the commit; or one plain store after it; then the mutex is free."""
        at, count = worker.at, len(plan.stores)
        s = self._work(s, i, at=at + 1)
        if at < count:
            return self._set(s, *plan.stores[at][:2])
        if at == count:
            return self._made_true(s._replace(journal=()), plan)
        if at <= count + len(plan.after):
            return self._set(s, *plan.after[at - count - 1])
        return self._work(s, i, plan=None, at=0, stage=plan.stage, seen=plan.seen)._replace(holder=NONE)

    def _made_true(self, s: Shared, plan: Plan) -> Shared:
        for name, inode, version in plan.truth:
            s = s._replace(truth=put(s.truth, name, (inode, version)))
            for i, job in enumerate(self.jobs):
                if job.kind == "read" and job.name == name and s.workers[i].stage > 0:
                    s = self._work(s, i, valid=s.workers[i].valid | {version})
        return s

    # ----- the transactions

    def _plan(self, s: Shared, i: int) -> Plan | None:
        job, worker = self.jobs[i], s.workers[i]
        if job.kind == "open":
            return None
        if job.kind in ("write", "create") and worker.stage == 3:
            return self._planned_release(s, i, job, worker.seen[0])
        plan = getattr(self, "_planned_" + job.kind)(s, i, job)
        assert plan is None or isinstance(plan, Plan)
        return plan

    def _sequence(self, s: Shared, f: int, stores: list[tuple[str, int, int]], part: str = "") -> Plan:
        """Put the sequence word before the other values; after the commit it becomes even again."""
        seq, mutant = self.get(s, "seq", f), self.mutant
        if part and mutant == part:
            return Plan(tuple(stores))
        entry = (f"seq{f}", seq + 1, seq if mutant == "seq_true_old" else seq + 2)
        if mutant == "seq_not_odd":
            return Plan(tuple(stores), ((f"seq{f}", seq + 2),))
        return Plan((*stores, entry) if mutant == "seq_last" else (entry, *stores), ((f"seq{f}", seq + 2),))

    def _opened(self, s: Shared, job: Job, f: int, gen: int) -> None:
        """LOCK after a lock-free lookup: compare the generation. That it holds is the end of the job."""
        free = self.get(s, "ig", f) == gen and not self.get(s, "L", f) & WRITER
        if free and s.truth[job.name][0] != f:
            raise ViolationError("locks a file that the name does not mean")

    def _planned_write(self, s: Shared, i: int, job: Job) -> Plan | None:
        """LOCK for wb: DIRTY from the start; the sequence stays."""
        f = self.get(s, "name", job.name)
        word = self.get(s, "L", f) if f != NONE else WRITER
        if word & WRITER:
            return None
        return Plan(((f"L{f}", word | WRITER, word), (f"rec{i}", f + 1, 0)), stage=1, seen=(f, self.get(s, "blk", f)))

    def _planned_release(self, s: Shared, i: int, job: Job, f: int) -> Plan:
        stores = [(f"L{f}", 0, self.get(s, "L", f)), (f"rec{i}", 0, f + 1)]
        return self._sequence(s, f, stores)._replace(truth=((job.name, f, i + 1),))

    def _planned_reap(self, s: Shared, _i: int, _job: Job) -> Plan | None:
        for j, worker in enumerate(s.workers):
            f = self.get(s, "rec", j) - 1
            if worker.stage == KILLED and f >= 0:
                stores = [(f"L{f}", ABANDONED, self.get(s, "L", f)), (f"rec{j}", 0, f + 1)]
                truth = tuple((name, f, UNREADABLE) for name, (inode, _) in enumerate(s.truth) if inode == f)
                return self._sequence(s, f, stores, "reap_no_seq")._replace(truth=truth)
        return None

    def _usable(self, s: Shared, job: Job) -> bool:
        """The inode is free, or left by a dead publisher, and no other has the block."""
        private = any(
            other.kind == "publish" and other.inode == job.inode and worker.stage > 0
            for other, worker in zip(self.jobs, s.workers, strict=True)
        )
        taken = self.get(s, "blk", 1 - job.inode) == job.block
        return self.get(s, "ig", job.inode) % 2 == 0 and not private and not taken

    def _planned_create(self, s: Shared, i: int, job: Job) -> Plan | None:
        """The hold first, the generation last, hence undone first, to a value that nobody has seen."""
        f, gen = job.inode, self.get(s, "ig", job.inode)
        if self.get(s, "name", job.name) != NONE or not self._usable(s, job):
            return None
        made = (f"ig{f}", gen + 1, gen if self.mutant == "create_true_old" else gen + 2)
        stores = [(f"L{f}", WRITER, self.get(s, "L", f)), (f"rec{i}", f + 1, 0)]
        stores += [(f"blk{f}", job.block, NONE), (f"name{job.name}", f, NONE)]
        stores = [made, *stores] if self.mutant == "create_gen_first" else [*stores, made]
        return Plan(tuple(stores), (), ((job.name, f, UNREADABLE),), 1, (f, job.block))

    def _planned_remove(self, s: Shared, _i: int, job: Job) -> Plan | None:
        f = self.get(s, "name", job.name)
        if f == NONE or self.get(s, "L", f) & WRITER:
            return None
        gen = self.get(s, "ig", f)
        stores = [(f"name{job.name}", NONE, f), (f"ig{f}", gen + 1, gen), (f"blk{f}", NONE, self.get(s, "blk", f))]
        stores.append((f"L{f}", 0, self.get(s, "L", f)))
        return self._sequence(s, f, stores, "remove_no_seq")._replace(truth=((job.name, NONE, ABSENT),))

    def _planned_move(self, s: Shared, _i: int, job: Job) -> Plan | None:
        """The generation goes even before the names and odd after them; no undo brings g+2 back."""
        f, target = self.get(s, "name", job.name), 1 - job.name
        if f == NONE or self.get(s, "L", f) & WRITER or self.get(s, "name", target) != NONE:
            return None
        gen = self.get(s, "ig", f)
        gone, back = (f"ig{f}", gen + 1, gen + 4), (f"ig{f}", gen + 2, gen + 3)
        names = [(f"name{target}", f, NONE), (f"name{job.name}", NONE, f)]
        stores = {
            "move_keeps_gen": names,
            "move_true_old": [(f"ig{f}", gen + 1, gen), *names, (f"ig{f}", gen + 2, gen + 1)],
            "move_gen_first": [(f"ig{f}", gen + 2, gen + 4), *names],
            "move_gen_last": [*names, (f"ig{f}", gen + 2, gen + 4)],
        }.get(self.mutant, [gone, *names, back])
        truth = ((job.name, NONE, ABSENT), (target, f, s.truth[job.name][1]))
        return self._sequence(s, f, stores, "move_no_seq")._replace(truth=truth)

    def _planned_publish(self, s: Shared, i: int, job: Job) -> Plan | None:
        """Stage 0 takes a block, 1 and 2 store the content, 3 puts the new inode under the name."""
        h, f = job.inode, self.get(s, "name", job.name)
        if not self._usable(s, job) and s.workers[i].stage == 0:
            return None
        if s.workers[i].stage == 0:
            return Plan(((f"blk{h}", job.block, self.get(s, "blk", h)),), stage=1, seen=(h, job.block))
        if f == NONE or self.get(s, "L", f) & WRITER or self.get(s, "ig", h) % 2:
            return None
        new, old = self.get(s, "ig", h), self.get(s, "ig", f)
        undo = new if self.mutant == "publish_true_old" else new + 2
        stores = [(f"name{job.name}", h, f), (f"ig{f}", old + 1, old), (f"blk{f}", NONE, self.get(s, "blk", f))]
        stores.append((f"ig{h}", new + 1, undo))
        if self.mutant != "publish_old_seq":
            stores = [*self._sequence(s, f, []).stores, *stores]
        plan = self._sequence(s, h, stores, "publish_no_seq")
        after = (*plan.after, (f"seq{f}", self.get(s, "seq", f) + 2)) if self.mutant != "publish_old_seq" else plan.after
        return plan._replace(truth=((job.name, h, i + 1),), after=after)

    # ----- the lock-free reader

    def _loaded(self, s: Shared, i: int, worker: Worker) -> Shared:
        """One load; a value that is no good ends the job, that is, sends the reader to the shared lock."""
        job, stage, seen = self.jobs[i], worker.stage, worker.seen
        if stage == 0:
            f = self.get(s, "name", job.name)
            s = self._work(s, i, valid=frozenset({s.truth[job.name][1]}))
            if f == NONE and self.mutant == "trust_absent" and s.truth[job.name][1] != ABSENT:
                raise ViolationError("a name is reported absent that was there all the time")
            return self._work(s, i, stage=GONE if f == NONE else 1, seen=(f,))
        word, wanted = self._load(job, stage, seen)
        value = self.get(s, *word)
        if not wanted(value):
            return self._work(s, i, stage=GONE, seen=())
        if stage < len(self._order(job)):
            return self._work(s, i, stage=stage + 1, seen=(*seen, value))
        if job.kind == "open":
            return self._work(s, i, stage=3, seen=(*seen, value))
        self._accepted(job, worker)
        return self._work(s, i, stage=GONE, seen=())

    def _order(self, job: Job) -> tuple[str, ...]:
        """The loads after the first one, which is the name."""
        if job.kind == "open":
            return ("ig", "name")
        after = {
            "no_ig_after": ("L", "seq"),
            "no_L_after": ("ig", "seq"),
            "no_seq_after": ("L", "ig"),
            "seq_before_L": ("seq", "ig", "L"),
        }.get(self.mutant, ("L", "ig", "seq"))
        return ("ig", "name", "L", "seq", "blk", "d0.", "d1.", *after)

    def _load(self, job: Job, stage: int, seen: tuple[int, ...]) -> tuple[tuple[str, int], Any]:
        """Which word this stage reads, and which values let it go on. seen: f, ig, name, L, seq, blk, d0, d1, ..."""
        word, f = self._order(job)[stage - 1], seen[0]
        if word == "name":
            return ("name", job.name), lambda value: value == f or self.mutant == "no_name_again"
        if word == "ig":
            return ("ig", f), lambda value: value % 2 == 1 if stage == 1 else value == seen[1]
        if word == "L":
            return ("L", f), lambda value: value == 0 or (value == ABANDONED and self.mutant == "abandoned_read")
        if word == "seq":
            return ("seq", f), lambda value: (value % 2 == 0 or self.mutant == "odd_read") if stage == 4 else value == seen[4]
        if word == "blk":
            return ("blk", f), lambda value: value != NONE
        return (word, seen[5]), lambda _: True

    def _accepted(self, job: Job, worker: Worker) -> None:
        first, second = worker.seen[6:8]
        if first != second:
            raise ViolationError("a reader accepts torn data")
        if first not in worker.valid:
            raise ViolationError(f"a reader of name {job.name} accepts version {first}, which it never meant")

    # ----- the invariants are in the reader's steps

    def fault(self, _: Shared) -> None:
        """Nothing in every state."""

    def ended(self, s: Shared) -> bool:
        """All jobs are over."""
        return all(worker.stage < 0 for worker in s.workers) and (s.holder == NONE or s.workers[s.holder].stage != KILLED)

    def end_fault(self, _: Shared) -> None:
        """Nothing at the end."""


# ---------------------------------------------------------------------------------------------------------------------
# What is run.


_READ, _OPEN, _WRITE, _REAP = Job("read"), Job("open"), Job("write"), Job("reap")
_READ1, _OPEN1, _REMOVE, _MOVE = Job("read", 1), Job("open", 1), Job("remove"), Job("move")
_CREATE1, _CREATE0 = Job("create", 1, 1, 1), Job("create", 0, 1, 1)
_REUSE, _REUSE0 = Job("create", 1, 0, 0), Job("create", 0, 0, 0)
_PUBLISH = Job("publish", 0, 1, 1)

CONFIGS: dict[str, Model] = {
    # Lock-free reads.
    "read_write": Words((_READ, _WRITE, _REAP), kills=2),
    "read_write2": Words((_READ, _WRITE, _WRITE, _REAP), kills=1),
    "read_remove": Words((_READ, _REMOVE, _REUSE, _READ1), kills=1),
    "read_create": Words((_READ1, _CREATE1, _CREATE1, _REAP), kills=2),
    "read_move": Words((_READ1, _READ, _MOVE, _MOVE), kills=2),
    "read_publish": Words((_READ, _PUBLISH, _WRITE, _REAP), kills=1),
    "read_publish2": Words((_READ, _PUBLISH, Job("publish", 0, 0, 0)), kills=2),
    "open_create": Words((_OPEN1, _CREATE1, _REMOVE, _CREATE0), kills=2),
    "open_move": Words((_OPEN1, _OPEN, _MOVE, _MOVE, _REMOVE), kills=2),
    "open_publish": Words((_OPEN, _OPEN1, _PUBLISH, _CREATE1, _REMOVE), kills=2),
    # Where the sequence word may stay as it is: L or the generation already tells the reader.
    "reap_no_seq": Words((_READ, _WRITE, _WRITE, _REAP), kills=2, mutant="reap_no_seq"),
    "remove_no_seq": Words((_READ, _REMOVE, _REUSE, _READ1), kills=2, mutant="remove_no_seq"),
    "publish_old_seq": Words((_READ, _PUBLISH, _WRITE, _REAP), kills=2, mutant="publish_old_seq"),
}
QUICK = (
    "read_write",
    "read_remove",
    "read_publish",
    "open_create",
)


def _mutant(breaks: str, config: Words) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


MUTANTS: dict[str, Mutant] = {
    # lock-free reads
    "seq_true_old": _mutant("the undo of the sequence is s", Words((_READ, _WRITE, _REAP), kills=1)),
    "seq_not_odd": _mutant("the sequence only moves after the commit", Words((_READ, _WRITE))),
    "seq_last": _mutant("the sequence goes odd after the other values", Words((_READ, _WRITE, _REAP), kills=1)),
    "leftover_stays": _mutant("an odd sequence of the dead is taken for even", Words((_READ, _WRITE, _WRITE, _REAP), kills=1)),
    "odd_read": _mutant("a reader accepts an odd sequence", Words((_READ, _WRITE))),
    "no_seq_after": _mutant("the reader does not look at the sequence again", Words((_READ, _WRITE))),
    "no_L_after": _mutant("the reader does not look at L again", Words((_READ, _WRITE))),
    "seq_before_L": _mutant("the reader looks at the sequence again before L", Words((_READ, _WRITE))),
    "no_ig_after": _mutant("the reader does not look at the generation again", Words((_READ, _REMOVE, _REUSE))),
    "abandoned_read": _mutant("a reader accepts an ABANDONED file", Words((_READ, _WRITE, _REAP), kills=1)),
    "undo_forward": _mutant("the sequence is undone before L", Words((_READ, _WRITE, _REAP), kills=1)),
    "publish_no_seq": _mutant("the sequence of a published inode does not go odd", Words((_READ, _PUBLISH), kills=1)),
    "move_no_seq": _mutant("the sequence of a renamed inode does not go odd", Words((_READ1, _MOVE), kills=1)),
    "trust_absent": _mutant("an absence seen without m[0] is believed", Words((_READ, _REMOVE), kills=1)),
    # lock-free lookups
    "no_name_again": _mutant(
        "the name is not compared after the generation", Words((_OPEN1, _CREATE1, _CREATE0, _REMOVE), kills=1)
    ),
    "create_true_old": _mutant(
        "the undo of a creation brings the old generation back", Words((_OPEN1, _CREATE1, _REMOVE, _CREATE0), kills=1)
    ),
    "publish_true_old": _mutant(
        "the undo of a publication brings the old generation back", Words((_OPEN, _PUBLISH, _CREATE1), kills=1)
    ),
    "move_true_old": _mutant(
        "the undo of a rename brings the old generation back", Words((_OPEN1, _MOVE, _REMOVE, _REUSE0), kills=1)
    ),
    "move_keeps_gen": _mutant("a rename does not change the generation", Words((_OPEN, _MOVE))),
    "move_gen_first": _mutant("a rename stores its generation once, first", Words((_OPEN, _MOVE))),
    "move_gen_last": _mutant("a rename stores its generation once, last", Words((_OPEN1, _MOVE), kills=1)),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
