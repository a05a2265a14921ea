"""Model of names and contents at the grain of single stores: reads and walks without a lock, against all that changes them.

One step is one store, or one load of a reader; see explorer.py. Two mutexes are assumed right (model_mutex.py): m[0], and one
m[k] for all nodes, each with its journal. A transaction is

    plain stores                of words that nobody trusts yet: a free node's, a sequence, TREE_SEQ, the namespace word
    the count of undo entries   from here on it can be undone
    new values, one by one
    the commit
    plain stores                sequences even again

A death in front of the commit leaves the journal open; whoever comes undoes it store by store, in reverse, and may die at it.
The lock-free code is written as the engine's is (`look_up`, `find`, `settled`, `read`): as generators that yield the words that
they load. In memory there are

    tree       TREE_SEQ: odd while names change               ns     odd while a directory moves or vanishes
    head, next of a node    one bucket of names, a chain      gen    of a node: odd in use
    leaf, par  of a node: what it is called, and where        seq    of a node: odd while it is not to be trusted
    L          WRITER, ABANDONED                              blk    its content: two words, which a reader can see torn
    rec        of each participant: the node that it holds

and these are what happens:

    open, read, stat       look the path up, then LOCK under m[k], or read without it, or only say whether it is there
    write                  open; store the content; RELEASE: sequence odd, record, L
    create, mkdir, put     a free node becomes a file that its creator holds, a directory, or a complete file
    remove, move, swap     of a closed file: its name goes, becomes another one, or gets another content
    replace                the name goes to a new node
    movedir, rmtree        namespace word odd; once through m[k]; nobody holds anything beneath; then the name changes
    reap                   frees what a dead participant holds

What is checked: what a reader accepts was the content that its path meant at some moment of the read, whole, an absence too;
what a walk finds was meant by its path; who locks after a walk locks what the path means then; who holds has its hold in L and
in its record whatever happens to others; and no reader takes a change for damage.

What it showed, beside that the order of loads and stores is right: every node of a path must be settled, not the last one
alone, its directory compared too, the sequence on both sides of the name; and whoever reaps must see an unfinished creation
taken back first, since a creation stores its record under m[0] alone.

What is not: threads; text of names; splitting of buckets; siblings and free lists; r+b; readers' holds, waiting, orphans
(model_rw.py); arenas; weak memory.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from explorer import FAIR, UNFAIR, Model, Mutant, Step, ViolationError, main, put

# ---------------------------------------------------------------------------------------------------------------------
# The state.

NONE, ROOT = -1, -2  # no node, no block; the directory in which all begins
FILE, DIRECTORY = 10, 20  # kinds, added to a leaf's number in the word `leaf`; 0 is free
ABSENT, UNREADABLE, FOLDER = -1, -2, -3  # what a path means, besides the version of its content
WRITER, ABANDONED = 1, 2  # bits of L
OVER, KILLED = "over", "killed"  # stages
NODE_WORDS = ("gen", "seq", "L", "leaf", "par", "next", "blk")

Word = tuple[str, int]
Path = tuple[int, ...]
Loads = Generator[Word, int, Any]  # a lock-free reader: yields words, is sent their values


class Plan(NamedTuple):
    """A transaction, and the worker after it. Truth: what each node means by it."""

    before: tuple[tuple[Word, int], ...] = ()
    stores: tuple[tuple[Word, int, int], ...] = ()  # word, value, what a roll-back stores
    after: tuple[tuple[Word, int], ...] = ()
    truth: tuple[tuple[int, Entry | None], ...] = ()
    stage: str = OVER
    journal: int = 0
    node: int = NONE  # that its worker deals with afterwards
    keeps: bool = False  # stays in its mutexes


class Entry(NamedTuple):
    """A committed name."""

    parent: int
    leaf: int
    meaning: int  # the version of its content, UNREADABLE or FOLDER


class Worker(NamedTuple):
    """One process and its single job."""

    stage: str = "start"
    loaded: tuple[int, ...] = ()  # what its lock-free code has loaded, as far as that still counts
    found: tuple[int, int, int] = (NONE, 0, 0)  # node, generation, namespace
    plan: Plan | None = None
    at: int = 0
    meant: frozenset[tuple[int, int]] = frozenset()  # (node, meaning) of its path at any moment since it began


class State(NamedTuple):
    """Everything. truth is a ghost: what is committed."""

    memory: tuple[int, ...]
    workers: tuple[Worker, ...]
    holders: tuple[int, int]  # of m[0], of m[k]
    journals: tuple[tuple[tuple[Word, int], ...], ...]
    undone: tuple[int, int]
    truth: tuple[Entry | None, ...]
    kills: int


@dataclass(frozen=True)
class Job:
    """What one worker does, once."""

    kind: str
    path: Path = (0,)
    to: Path = ()  # where it moves to
    node: int = NONE  # that a new file or directory takes
    block: int = NONE
    cached: bool = False  # the path was looked up before the operation began


class Unsettled(Exception):
    """The reader goes on under the lock."""


class Program:
    """Lock-free code as a state machine: what it loads next after what it has loaded, or what it returns.

    A generator cannot be copied, so it is run again for every history; two histories after which it stands at the same place
    with the same variables are one state.
    """

    def __init__(self, model: Reads, job: Job) -> None:
        self.model, self.job = model, job
        self._known: dict[tuple[int, ...], tuple[tuple[int, ...], Word | None, Any]] = {}
        self._same: dict[Any, tuple[int, ...]] = {}

    def after(self, loaded: tuple[int, ...]) -> tuple[tuple[int, ...], Word | None, Any]:
        """(an equivalent history, the next word, None) or (the history, None, the result)."""
        known = self._known.get(loaded)
        if known is None:
            known = self._known[loaded] = self._run(loaded)
        return known

    def _run(self, loaded: tuple[int, ...]) -> tuple[tuple[int, ...], Word | None, Any]:
        code = self.model.code(self.job)
        try:
            word = next(code)
            for value in loaded:
                word = code.send(value)
        except StopIteration as end:
            return loaded, None, end.value
        except (Unsettled, ViolationError) as error:
            return loaded, None, error
        place: list[Any] = []
        frame: Any = code
        while frame is not None:
            place.append((frame.gi_frame.f_lasti, tuple((k, v) for k, v in frame.gi_frame.f_locals.items() if k != "self")))
            frame = frame.gi_yieldfrom
        return self._same.setdefault(tuple(place), loaded), word, None


# ---------------------------------------------------------------------------------------------------------------------
# Transactions.


class Change:
    """A transaction in the making: reads answer with what it is about to store."""

    def __init__(self, model: Reads, s: State) -> None:
        self.model, self.s = model, s
        self.before: list[tuple[Word, int]] = []
        self.values: dict[Word, int] = {}
        self.undo: dict[Word, int] = {}
        self.after: list[tuple[Word, int]] = []
        self.truth: list[tuple[int, Entry | None]] = []
        self.names = False

    def __getitem__(self, word: Word) -> int:
        return self.values.get(word, self.model.get(self.s, *word))

    def __setitem__(self, word: Word, value: int) -> None:
        self.values[word] = value

    def plan(self, stage: str = OVER, journal: int = 0, node: int = NONE) -> Plan:
        """In the order of `Section.commit`: TREE_SEQ odd, the journal, the values, TREE_SEQ even, the sequences even."""
        s, mutant = self.s, self.model.mutant
        before, after = self.before, self.after
        if self.names:
            tree = self.model.get(s, "tree", 0) | 1
            after = [(("tree", 0), tree + 1), *after]
            if mutant != "tree_stays":
                before = [*before, (("tree", 0), tree)]
        stores = tuple((w, v, self.undo.get(w, self.model.get(s, *w))) for w, v in self.values.items())
        return Plan(tuple(before), stores, tuple(after), tuple(self.truth), stage, journal, node)

    def odd(self, node: int) -> None:
        """The node's sequence is odd from the first store on, and until after the commit."""
        at, mutant = ("seq", node), self.model.mutant
        odd = (self[at] & ~1) + 1
        if mutant == "leftover_ignored":
            odd = self[at] + 1
        if mutant != "seq_not_odd":
            self[at] = odd
            self.undo[at] = odd - 1 if mutant == "seq_true_old" else odd + 1
        self.after.append((at, odd + 1))

    def add(self, node: int, parent: int, leaf: int, *, lock: int = 0, block: int = NONE) -> None:
        """A free node gets a name; it is nobody's before the commit."""
        mutant = self.model.mutant
        odd = self[("seq", node)] + 1 | 1
        if mutant != "add_no_seq":
            self.before.append((("seq", node), odd))
            self.after.append((("seq", node), odd + 1))
        plain = {"L": lock, "leaf": leaf, "par": parent, "blk": block}
        self.before += [((word, node), value) for word, value in plain.items() if self.model.get(self.s, word, node) != value]
        gen = self[("gen", node)]
        self[("gen", node)] = gen + 1
        self.undo[("gen", node)] = gen if mutant == "add_true_old" else gen + 2
        self._chain(node)

    def _chain(self, node: int) -> None:
        self[("next", node)] = self[("head", 0)]
        self[("head", 0)] = node
        self.names = True

    def unlink(self, node: int) -> None:
        """Out of its chain; what it is called stays."""
        before = ("head", 0)
        while self[before] != node:
            before = ("next", self[before])
        self[before] = self[("next", node)]
        self.names = True

    def free(self, node: int) -> None:
        """A nameless node goes."""
        self[("blk", node)] = NONE
        if self.model.mutant != "free_keeps_gen":
            self[("gen", node)] = self[("gen", node)] + 1 & ~1
        self[("leaf", node)] = 0
        self[("next", node)] = NONE
        self.truth.append((node, None))

    def rename(self, node: int, parent: int, leaf: int) -> None:
        """Sequence first, names, the generation last; undone the other way round."""
        mutant = self.model.mutant
        gen = self[("gen", node)]
        if mutant != "move_no_seq":
            self.odd(node)
        if mutant == "move_gen_first":
            self[("gen", node)] = gen + 2
        self.unlink(node)
        self[("par", node)] = parent
        self[("leaf", node)] = leaf
        self._chain(node)
        if mutant != "move_keeps_gen":
            self[("gen", node)] = gen + 2
            self.undo[("gen", node)] = gen if mutant == "move_true_old" else gen + 4
        entry = self.s.truth[node]
        assert entry
        self.truth.append((node, Entry(parent, leaf % 10, entry.meaning)))


# ---------------------------------------------------------------------------------------------------------------------
# The steps.


@dataclass(frozen=True)
class Reads:
    """One configuration. files: (parent, leaf) of the files and directories there are at first; node i has block i."""

    jobs: tuple[Job, ...]
    files: tuple[tuple[int, int], ...] = ((ROOT, FILE),)
    nodes: int = 2
    blocks: int = 2
    kills: int = 0
    mutant: str = ""
    address: dict[Word, int] = field(init=False, compare=False)
    programs: tuple[Program, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        words = [("tree", 0), ("ns", 0), ("head", 0), *((word, n) for word in NODE_WORDS for n in range(self.nodes))]
        words += [(half, b) for half in ("d0", "d1") for b in range(self.blocks)] + [("rec", i) for i in range(len(self.jobs))]
        object.__setattr__(self, "address", {word: number for number, word in enumerate(words)})
        object.__setattr__(self, "programs", tuple(Program(self, job) for job in self.jobs))

    def initial(self) -> State:
        start = {("head", 0): len(self.files) - 1}
        for n in range(self.nodes):
            there = n < len(self.files)
            parent, leaf = self.files[n] if there else (NONE, 0)
            start |= {("gen", n): int(there), ("par", n): parent, ("leaf", n): leaf, ("next", n): n - 1 if there else NONE}
            start[("blk", n)] = n if FILE <= leaf < DIRECTORY else NONE
        memory = tuple(start.get(word, 0) for word in self.address)
        truth = tuple(Entry(parent, leaf % 10, 0 if leaf < DIRECTORY else FOLDER) for parent, leaf in self.files)
        truth += (None,) * (self.nodes - len(self.files))
        return State(memory, (Worker(),) * len(self.jobs), (NONE, NONE), ((), ()), (0, 0), truth, self.kills)

    def get(self, s: State, word: str, n: int) -> int:
        """Load one word."""
        return s.memory[self.address[word, n]]

    def _set(self, s: State, word: Word, value: int) -> State:
        return s._replace(memory=put(s.memory, self.address[word], value))

    @staticmethod
    def _work(s: State, i: int, **changes: Any) -> State:
        return s._replace(workers=put(s.workers, i, s.workers[i]._replace(**changes)))

    def steps(self, s: State) -> Iterator[Step]:
        """All that can happen next."""
        for m in (1, 0):
            if s.holders[m] != NONE and s.workers[s.holders[m]].stage == KILLED:
                yield from self._recovery(s, m)
        for i, worker in enumerate(s.workers):
            if worker.stage in (OVER, KILLED):
                continue
            kind = self.jobs[i].kind
            if s.kills and kind not in ("open", "read", "stat"):
                yield f"KILL{i}", UNFAIR, self._work(s, i, stage=KILLED, plan=None, at=0, loaded=())._replace(kills=s.kills - 1)
            if worker.plan:
                yield f"step{i}.{worker.at}", FAIR, self._executed(s, i, worker, worker.plan)
            elif kind in ("open", "read", "stat", "write") and worker.stage == "start":
                yield from self._loads(s, i, worker)
            elif worker.stage in ("d0", "d1"):
                word = (worker.stage, self.get(s, "blk", worker.found[0]))
                then = {"d0": "d1", "d1": "release"}[worker.stage]
                yield f"{word}={i}", FAIR, self._work(self._set(s, word, i + 1), i, stage=then)
            elif kind == "reap" and worker.stage != "reap":
                yield from self._judged(s, i, worker)
            elif self._enterable(s, i):
                yield f"{kind}{i}.{worker.stage}", FAIR, self._begun(s, i)

    # ----- recovery

    def _recovery(self, s: State, m: int) -> Iterator[Step]:
        """Whoever comes undoes the dead holder's journal, that of m[0] first; he may be killed and another begin again."""
        if m and s.holders[0] == s.holders[1]:
            return
        done, journal = s.undone[m], s.journals[m]
        if s.kills and done:
            yield "KILLrecoverer", UNFAIR, s._replace(undone=put(s.undone, m, 0), kills=s.kills - 1)
        if done < len(journal):
            word, old = journal[done if self.mutant == "undo_forward" else -1 - done]
            yield f"undo:{word}={old}", FAIR, self._set(s, word, old)._replace(undone=put(s.undone, m, done + 1))
        else:
            free = s._replace(journals=put(s.journals, m, ()), undone=put(s.undone, m, 0), holders=put(s.holders, m, NONE))
            yield f"recovered{m}", FAIR, free

    # ----- a transaction

    def _mutexes(self, i: int, stage: str) -> tuple[int, ...]:
        """What this stage of a job takes."""
        kind = self.jobs[i].kind
        if kind in ("open", "write", "reap") or stage == "release":
            return (1,)
        return (0, 1) if kind in ("move", "remove", "replace", "swap") else (0,)

    def _enterable(self, s: State, i: int) -> bool:
        needed = (0, 1) if s.workers[i].stage == "scan" else self._mutexes(i, s.workers[i].stage)  # once through m[k]
        return all(s.holders[m] in (NONE, i) for m in needed)

    def _begun(self, s: State, i: int) -> State:
        """In the mutexes: mend what a death left odd, then plan; or find that there is nothing to do."""
        needed = self._mutexes(i, s.workers[i].stage)
        mine = s._replace(holders=tuple(i if m in needed else holder for m, holder in enumerate(s.holders)))  # type: ignore[arg-type]
        again = s.workers[i].stage
        if 0 in needed and s.holders[0] != i:
            for word in (("ns", 0), ("tree", 0)):
                value = self.get(s, *word)
                if value % 2:
                    return self._work(mine, i, plan=Plan(((word, value + 1),), stage=again), at=0)
        plan = self._plan(s, i)
        if plan is None:
            return self._left(self._work(mine, i, stage=OVER), i)
        return self._work(mine, i, plan=plan, at=0)

    @staticmethod
    def _left(s: State, i: int) -> State:
        return s._replace(holders=tuple(NONE if holder == i else holder for holder in s.holders))  # type: ignore[arg-type]

    def _executed(self, s: State, i: int, worker: Worker, plan: Plan) -> State:
        """One store, in the order of the module's docstring; with the last one the mutexes are free."""
        script: list[tuple[str, Any]] = [("store", store) for store in plan.before]
        if plan.stores:
            script += [("count", None), *(("store", store[:2]) for store in plan.stores), ("commit", None)]
        script += [("store", store) for store in plan.after]
        what, store = script[worker.at]
        s = self._work(s, i, at=worker.at + 1)
        if what == "store":
            s = self._set(s, *store)
        elif what == "count":
            entries = tuple((word, old) for word, _, old in plan.stores)
            s = s._replace(journals=put(s.journals, plan.journal, entries))
        else:
            s = self._made_true(s._replace(journals=put(s.journals, plan.journal, ())), plan)
        if worker.at + 1 == len(script):
            found = worker.found if plan.node == NONE else (plan.node, 0, 0)
            s = self._work(s, i, plan=None, at=0, stage=plan.stage, found=found)
            return s if plan.keeps else self._left(s, i)
        return s

    def _made_true(self, s: State, plan: Plan) -> State:
        for node, entry in plan.truth:
            s = s._replace(truth=put(s.truth, node, entry))
        for i, job in enumerate(self.jobs):
            if s.workers[i].meant:
                s = self._work(s, i, meant=s.workers[i].meant | {self.meaning(s, job.path)})
        return s

    def meaning(self, s: State, path: Path) -> tuple[int, int]:
        """(node, version) that a path means by what is committed."""
        node, meaning = ROOT, FOLDER
        for leaf in path:
            if meaning != FOLDER:
                return NONE, ABSENT
            node = next((n for n, entry in enumerate(s.truth) if entry and entry[:2] == (node, leaf)), NONE)
            if node == NONE:
                return NONE, ABSENT
            entry = s.truth[node]
            assert entry
            meaning = entry.meaning
        return node, meaning

    # ----- the transactions

    def _plan(self, s: State, i: int) -> Plan | None:
        job, stage = self.jobs[i], s.workers[i].stage
        if stage == "release":
            return self._release(s, i, s.workers[i].found[0])
        plan = getattr(self, "_plan_" + job.kind)(s, i, job)
        assert plan is None or isinstance(plan, Plan)
        return plan

    def _free_node(self, s: State, job: Job) -> bool:
        """The job's node is free, and its block is nobody's."""
        taken = any(self.get(s, "blk", n) == job.block and self.get(s, "gen", n) % 2 for n in range(self.nodes))
        return self.get(s, "gen", job.node) % 2 == 0 and (job.block == NONE or not taken)

    def _place(self, s: State, path: Path) -> tuple[int, int] | None:
        """(parent, leaf) for a new name; None if the name stands or its directory does not."""
        parent, meaning = self.meaning(s, path[:-1])
        return (parent, path[-1]) if meaning == FOLDER and self.meaning(s, path)[1] == ABSENT else None

    def _closed(self, s: State, path: Path) -> int:
        """The file of that path, if nobody holds it."""
        node, meaning = self.meaning(s, path)
        return node if node >= 0 and meaning != FOLDER and not self.get(s, "L", node) & WRITER else NONE

    def _version(self, s: State, node: int, meaning: int) -> tuple[int, Entry | None]:
        """The node means another content from now on."""
        entry = s.truth[node]
        return node, entry and entry._replace(meaning=meaning)

    def _plan_open(self, s: State, i: int, job: Job) -> None:
        """LOCK: compare generation and namespace. That it holds what its path means is all that there is to check."""
        self._admitted(s, i, job)

    def _admitted(self, s: State, i: int, job: Job) -> int:
        node, gen, ns = s.workers[i].found
        same = self.get(s, "gen", node) == gen and (self.get(s, "ns", 0) == ns or self.mutant == "lock_no_ns")
        if not same or self.get(s, "L", node) & WRITER:
            return NONE
        if self.meaning(s, job.path)[0] != node:
            raise ViolationError("locks a file that its path does not mean")
        return node

    def _plan_write(self, s: State, i: int, job: Job) -> Plan | None:
        node = self._admitted(s, i, job)
        if node == NONE or self.get(s, "blk", node) == NONE:
            return None
        change = Change(self, s)
        change["rec", i] = node + 1
        change["L", node] = self.get(s, "L", node) | WRITER
        return change.plan("d0", 1)

    def _release(self, s: State, i: int, node: int) -> Plan:
        change = Change(self, s)
        if self.mutant != "seq_last":
            change.odd(node)
        change["rec", i] = 0
        change["L", node] = 0
        if self.mutant == "seq_last":
            change.odd(node)
        change.truth.append(self._version(s, node, i + 1))
        return change.plan(OVER, 1)

    def _judged(self, s: State, i: int, worker: Worker) -> Iterator[Step]:
        """Who is dead; then m[0] is visited if its journal is open, so that what it was about is settled."""
        if worker.stage == "start":
            yield f"rest{i}", FAIR, self._work(s, i, stage=OVER)
            for j, other in enumerate(s.workers):
                if other.stage == KILLED and self.get(s, "rec", j):
                    yield f"judge{i}>{j}@", FAIR, self._work(s, i, stage="judged", found=(j, 0, 0))
        elif not s.journals[0] or self.mutant == "reap_blind":
            yield f"visit{i}", FAIR, self._work(s, i, stage="reap")

    def _plan_reap(self, s: State, i: int, _job: Job) -> Plan | None:
        dead = s.workers[i].found[0]
        node = self.get(s, "rec", dead) - 1
        if node < 0:
            return None
        change = Change(self, s)
        change.odd(node)
        change["rec", dead] = 0
        change["L", node] = self.get(s, "L", node) & ~WRITER | ABANDONED
        change.truth.append(self._version(s, node, UNREADABLE))
        return change.plan(OVER, 1)

    def _plan_create(self, s: State, i: int, job: Job) -> Plan | None:
        place = self._place(s, job.path)
        if place is None or not self._free_node(s, job):
            return None
        change = Change(self, s)
        change.add(job.node, place[0], FILE + place[1], lock=WRITER, block=job.block)
        change["rec", i] = job.node + 1
        change.truth.append((job.node, Entry(*place, UNREADABLE)))
        return change.plan("d0", node=job.node)

    def _plan_mkdir(self, s: State, _i: int, job: Job) -> Plan | None:
        place = self._place(s, job.path)
        if place is None or not self._free_node(s, job):
            return None
        change = Change(self, s)
        change.add(job.node, place[0], DIRECTORY + place[1])
        change.truth.append((job.node, Entry(*place, FOLDER)))
        return change.plan()

    def _filled(self, s: State, i: int, job: Job, change: Change) -> None:
        """Store the content into blocks that are nobody's, before they are anybody's."""
        change.before += [((half, job.block), i + 1) for half in ("d0", "d1")]

    def _plan_put(self, s: State, i: int, job: Job) -> Plan | None:
        place = self._place(s, job.path)
        if place is None or not self._free_node(s, job):
            return None
        return self._put(s, i, job, place, Change(self, s))

    def _put(self, s: State, i: int, job: Job, place: tuple[int, int], change: Change) -> Plan:
        change.add(job.node, place[0], FILE + place[1])
        self._filled(s, i, job, change)
        change["blk", job.node] = job.block
        change.truth.append((job.node, Entry(*place, i + 1)))
        return change.plan()

    def _plan_replace(self, s: State, i: int, job: Job) -> Plan | None:
        node = self._closed(s, job.path)
        entry = s.truth[node] if node != NONE else None
        if entry is None or not self._free_node(s, job):
            return None
        change = Change(self, s)
        change.unlink(node)
        change.free(node)
        return self._put(s, i, job, (entry.parent, entry.leaf), change)

    def _plan_swap(self, s: State, i: int, job: Job) -> Plan | None:
        node = self._closed(s, job.path)
        if node == NONE or any(self.get(s, "blk", n) == job.block for n in range(self.nodes)):
            return None
        change = Change(self, s)
        self._filled(s, i, job, change)
        if self.mutant != "swap_no_seq":
            change.odd(node)
        change["blk", node] = job.block
        change["L", node] = self.get(s, "L", node) & ~ABANDONED
        change.truth.append(self._version(s, node, i + 1))
        return change.plan()

    def _plan_remove(self, s: State, _i: int, job: Job) -> Plan | None:
        node = self._closed(s, job.path)
        if node == NONE:
            return None
        change = Change(self, s)
        change.unlink(node)
        change.free(node)
        return change.plan()

    def _plan_move(self, s: State, _i: int, job: Job) -> Plan | None:
        node, place = self._closed(s, job.path), self._place(s, job.to)
        if node == NONE or place is None:
            return None
        change = Change(self, s)
        change.rename(node, place[0], FILE + place[1])
        return change.plan()

    # ----- directories

    def _beneath(self, s: State, node: int) -> list[int]:
        return [n for n, entry in enumerate(s.truth) if entry and entry.parent == node]

    def _frozen(self, s: State, i: int, job: Job) -> tuple[int, Plan | None]:
        """(the directory, None) when nothing of it is held; else what is to be done instead, if it stands at all."""
        ns = self.get(s, "ns", 0)
        if s.workers[i].stage == "start":
            node, meaning = self.meaning(s, job.path)
            if meaning != FOLDER:
                return NONE, None
            return NONE, Plan(((("ns", 0), ns | 1),), stage="scan", keeps=True)
        node = self.meaning(s, job.path)[0]
        if any(self.get(s, "rec", j) - 1 in self._beneath(s, node) for j in range(len(self.jobs))):
            return NONE, Plan(((("ns", 0), ns + 1),))
        return node, None

    def _thawed(self, s: State, plan: Plan) -> Plan:
        ns = self.get(s, "ns", 0)
        even = {"ns_back": ns - 1}.get(self.mutant, ns + 1)
        return plan._replace(after=(*plan.after, (("ns", 0), even)))

    def _plan_movedir(self, s: State, i: int, job: Job) -> Plan | None:
        node, instead = self._frozen(s, i, job)
        place = self._place(s, job.to)
        if node == NONE or place is None:
            return instead
        change = Change(self, s)
        change.rename(node, place[0], DIRECTORY + place[1])
        return self._thawed(s, change.plan())

    def _plan_rmtree(self, s: State, i: int, job: Job) -> Plan | None:
        """Detach the directory; then free what was in it, then itself."""
        change = Change(self, s)
        if s.workers[i].stage == "trash":
            node = s.workers[i].found[0]
            children = self._beneath(s, node)
            if children:
                change.unlink(children[0])
            change.free(children[0] if children else node)
            return change.plan("trash" if children else OVER)
        node, instead = self._frozen(s, i, job)
        if node == NONE:
            return instead
        change.unlink(node)
        gen = self.get(s, "gen", node)
        change["gen", node] = gen + 2
        change.undo["gen", node] = gen + 4
        change["par", node] = NONE
        change["next", node] = NONE
        change.truth.append((node, Entry(NONE, 0, FOLDER)))
        return self._thawed(s, change.plan("trash", node=node))

    # ----- the lock-free code

    def _loads(self, s: State, i: int, worker: Worker) -> Iterator[Step]:
        """One load; at the end, what is to be made of the result."""
        job, program = self.jobs[i], self.programs[i]
        _, word, _ = program.after(worker.loaded)
        assert word
        if not worker.meant:
            worker = worker._replace(meant=frozenset({self.meaning(s, job.path)}))
        if word[0] == "begin":  # a path looked up before: only what it means from here on counts
            value = 0
            worker = worker._replace(meant=frozenset({self.meaning(s, job.path)}))
        else:
            value = self.get(s, *word)
        loaded, following, result = program.after((*worker.loaded, value))
        s = s._replace(workers=put(s.workers, i, worker._replace(loaded=loaded)))
        yield f"load{i}{word}={value}@", FAIR, s if following else self._returned(s, i, job, worker, result)

    def _returned(self, s: State, i: int, job: Job, worker: Worker, result: Any) -> State:
        s = self._work(s, i, loaded=(), meant=frozenset(), stage=OVER)
        if isinstance(result, ViolationError):
            raise result
        if isinstance(result, Unsettled):
            return s
        if result == ABSENT and (NONE, ABSENT) not in worker.meant:
            raise ViolationError("a path is reported absent that was there all the time")
        if isinstance(result, tuple):
            if not any(node == result[0] for node, _ in worker.meant):
                raise ViolationError("a walk finds what its path never meant")
            if job.kind in ("open", "write") and (meaning := s.truth[result[0]]) and meaning.meaning != FOLDER:
                return self._work(s, i, stage="lock", found=result)
        if job.kind == "read" and isinstance(result, int) and result != ABSENT:
            if result == UNREADABLE:
                raise ViolationError("a reader accepts torn data")
            if not any(meaning == result for _, meaning in worker.meant):
                raise ViolationError(f"a reader accepts version {result}, which its path never meant")
        return s

    def code(self, job: Job) -> Loads:
        """The program of a job: look the path up, and read if it is a read."""
        return self.read(job) if job.kind == "read" else self.look_up(job.path)

    def look_up(self, path: Path) -> Loads:
        """`Tree.look_up`."""
        names = yield "tree", 0
        ns = yield "ns", 0
        node, gen, kind = ROOT, 1, DIRECTORY
        for depth, leaf in enumerate(path):
            found = NONE
            if kind == DIRECTORY:
                found = yield from self.find(node, leaf, names)
            if found == NONE:
                if self.mutant != "trust_absent" and (names % 2 or (yield "tree", 0) != names):
                    raise Unsettled
                return ABSENT
            last = depth == len(path) - 1
            if last or self.mutant != "walk_on":
                gen, kind = yield from self.settled(found, node, leaf)
            else:
                kind = (yield "leaf", found) // 10 * 10
            node = found
        if self.mutant != "walk_no_ns" and (ns % 2 or (yield "ns", 0) != ns):
            raise Unsettled
        return node, gen, ns

    def find(self, parent: int, leaf: int, names: int) -> Loads:
        """`Tree.find`. A chain that does not end is damage, unless names changed meanwhile."""
        node = yield "head", 0
        steps = 0
        while node != NONE and steps <= self.nodes:
            if (yield "leaf", node) in (FILE + leaf, DIRECTORY + leaf) and (yield "par", node) == parent:
                return node
            node = yield "next", node
            steps += 1
        if node == NONE:
            return NONE
        if self.mutant != "trust_damage" and (names % 2 or (yield "tree", 0) != names):
            raise Unsettled
        raise ViolationError("a change is taken for damage")

    def settled(self, node: int, parent: int, leaf: int) -> Loads:
        """`Tree._settled`: generation, sequence, name, sequence."""
        mutant = self.mutant
        gen = yield "gen", node
        if gen % 2 == 0:
            raise Unsettled
        seq = 0
        if mutant not in ("walk_no_seq", "no_seq_before_name"):
            seq = yield "seq", node
            if seq % 2:
                raise Unsettled
        name = yield "leaf", node
        if mutant != "no_name_again" and name not in (FILE + leaf, DIRECTORY + leaf):
            raise Unsettled
        if mutant not in ("no_name_again", "no_parent_again") and (yield "par", node) != parent:
            raise Unsettled
        if mutant == "no_seq_before_name" and (yield "seq", node) % 2:
            raise Unsettled
        if mutant not in ("walk_no_seq", "no_seq_after_name", "no_seq_before_name") and (yield "seq", node) != seq:
            raise Unsettled
        return gen, name // 10 * 10

    def read(self, job: Job) -> Loads:
        """`_read_unlocked`: sequence, L, generation; the content; L, generation, namespace, the sequence last."""
        found = yield from self.look_up(job.path)
        if not isinstance(found, tuple):
            return found
        if job.cached:
            yield "begin", 0
        node, gen, ns = found
        bad = WRITER if self.mutant == "abandoned_read" else WRITER | ABANDONED
        seq = yield "seq", node
        if seq % 2 and self.mutant != "odd_read":
            raise Unsettled
        if (yield "L", node) & bad or (yield "gen", node) != gen:
            raise Unsettled
        block = yield "blk", node
        if block == NONE:
            raise Unsettled
        first = yield "d0", block
        second = yield "d1", block
        order = {
            "no_L_after": ("gen", "ns", "seq"),
            "no_gen_after": ("L", "ns", "seq"),
            "no_ns_after": ("L", "gen", "seq"),
            "no_seq_after": ("L", "gen", "ns"),
            "seq_before_L": ("seq", "L", "gen", "ns"),
        }.get(self.mutant, ("L", "gen", "ns", "seq"))
        for word in order:
            value = yield word, 0 if word == "ns" else node
            if value & bad if word == "L" else value != {"gen": gen, "ns": ns, "seq": seq}[word]:
                raise Unsettled
        return first if first == second else UNREADABLE

    # ----- the invariants that are not in the readers' steps

    def fault(self, s: State) -> str | None:
        """Who holds is held to hold."""
        for i, worker in enumerate(s.workers):
            if worker.stage in ("d0", "d1", "release") and not worker.plan:
                node = worker.found[0]
                if self.get(s, "rec", i) != node + 1 or not self.get(s, "L", node) & WRITER:
                    return f"worker {i} has lost its hold"
        return None

    def ended(self, s: State) -> bool:
        """All jobs are over, and nothing is left to be recovered."""
        dead = any(holder != NONE and s.workers[holder].stage == KILLED for holder in s.holders)
        return not dead and all(worker.stage in (OVER, KILLED) for worker in s.workers)

    def end_fault(self, _: State) -> None:
        """Nothing at the end."""


# ---------------------------------------------------------------------------------------------------------------------
# What is run.

A, B, C, D, E = range(5)  # leaves

# One file, /a, which is node 0 with block 0; others are /b.
OPEN, READ, CACHED, WRITE = Job("open"), Job("read"), Job("read", cached=True), Job("write")
OPEN_B, READ_B, STAT_B = Job("open", (B,)), Job("read", (B,)), Job("stat", (B,))
SWAP, REPLACE, REMOVE, REMOVE_B = Job("swap", block=1), Job("replace", node=1, block=1), Job("remove"), Job("remove", (B,))
CREATE, PUT, REUSE = Job("create", (B,), node=1, block=1), Job("put", (B,), node=1, block=1), Job("put", (B,), node=0, block=0)
MOVE, BACK, REAP = Job("move", (A,), (B,)), Job("move", (B,), (A,)), Job("reap")
PAIR, MOVE_D = ((ROOT, FILE + A), (ROOT, FILE + D)), Job("move", (D,), (E,))  # a chain of two names

# With directories: /b, which becomes /c, and the file /b/a in it.
IN, IN_C = (B, A), (C, A)
FLAT = ((ROOT, FILE + A), (ROOT, DIRECTORY + B))  # /a, /b/
DEEP = ((ROOT, DIRECTORY + B), (0, FILE + A))  # /b/, /b/a
OPEN_IN, READ_IN, CACHED_IN, SWAP_C = Job("open", IN), Job("read", IN), Job("read", IN, cached=True), Job("swap", IN_C, block=0)
INTO, OUT, MOVE_DIR, RMTREE = Job("move", (A,), IN), Job("move", IN, (A,)), Job("movedir", (B,), (C,)), Job("rmtree", (B,))
MKDIR, MKDIR_C, PUT_C = Job("mkdir", (B,), node=0), Job("mkdir", (C,), node=0), Job("put", IN_C, node=1, block=1)

CONFIGS: dict[str, Model] = {
    # One file, and what happens to it.
    "read_write": Reads((READ, WRITE, REAP), kills=2),
    "read_write2": Reads((READ, WRITE, WRITE, REAP), kills=1),
    "read_swap": Reads((READ, SWAP, WRITE), kills=2),
    "read_remove": Reads((READ, REMOVE, REUSE, READ_B), kills=1),
    "read_create": Reads((READ_B, CREATE, REAP), kills=2),
    "read_move": Reads((READ_B, READ, MOVE, BACK)),
    "read_move_kill": Reads((READ_B, MOVE, BACK), kills=2),
    "read_replace": Reads((READ, REPLACE, WRITE, REAP), kills=1),
    "read_cached": Reads((CACHED, REPLACE, REUSE, REMOVE), kills=1),
    "open_create": Reads((OPEN_B, CREATE, REMOVE, REAP), kills=1),
    "open_move": Reads((OPEN_B, OPEN, MOVE, REMOVE), kills=1),
    "open_replace": Reads((OPEN, REPLACE, REUSE), kills=2),
    "create_reap": Reads((CREATE, CREATE, REAP), kills=2),
    "chain": Reads((Job("stat", (D,)), Job("stat", (C,)), MOVE, MOVE_D), PAIR),
    "chain_kill": Reads((Job("open", (D,)), MOVE, MOVE_D), PAIR, kills=1),
    # Directories.
    "into_directory": Reads((OPEN, OPEN_IN, INTO), FLAT, kills=1),
    "out_and_in": Reads((OPEN_IN, OUT, INTO), DEEP, kills=1),
    "moved_directory": Reads((OPEN_IN, MOVE_DIR, Job("open", IN_C)), DEEP, kills=1),
    "read_moved": Reads((READ_IN, MOVE_DIR, SWAP_C), DEEP, kills=1),
    "read_moved_cached": Reads((CACHED_IN, MOVE_DIR, SWAP_C), DEEP, kills=1),
    "removed_directory": Reads((OPEN_IN, RMTREE, MKDIR_C, PUT_C), DEEP, kills=1),
    "undone_directory": Reads((OPEN_IN, MKDIR, MKDIR_C, PUT_C), (), kills=1),
    "through_file": Reads((OPEN_IN, REMOVE_B, MKDIR_C, PUT_C), ((ROOT, FILE + B),), kills=1),
    # What could be otherwise, since the sequence tells it already: undo to the old generation, a generation stored first.
    "add_true_old": Reads((OPEN_B, PUT, CREATE), kills=1, mutant="add_true_old"),
    "move_true_old": Reads((STAT_B, MOVE, MOVE), kills=2, mutant="move_true_old"),
    "move_gen_first": Reads((OPEN_B, OPEN, MOVE), kills=1, mutant="move_gen_first"),
}
QUICK = ("read_write", "read_swap", "create_reap", "out_and_in", "undone_directory", "through_file")


def _mutant(breaks: str, config: Reads) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


_WRITTEN = Reads((READ, WRITE))
_KILLED = Reads((READ, WRITE, REAP), kills=1)
_RENAMED = Reads((STAT_B, MOVE, MOVE), kills=1)

MUTANTS: dict[str, Mutant] = {
    # contents
    "seq_true_old": _mutant("the undo of the sequence is s", _KILLED),
    "seq_not_odd": _mutant("the sequence only moves after the commit", _WRITTEN),
    "seq_last": _mutant("the sequence goes odd after the other values", _KILLED),
    "leftover_ignored": _mutant(
        "an odd sequence of the dead is counted up to an even one", Reads((READ, SWAP, WRITE), kills=1)
    ),
    "swap_no_seq": _mutant(
        "the sequence does not go odd when a closed file gets other blocks", Reads((READ, SWAP, WRITE), kills=1)
    ),
    "odd_read": _mutant("a reader accepts an odd sequence", _WRITTEN),
    "no_seq_after": _mutant("the reader does not look at the sequence again", _WRITTEN),
    "no_L_after": _mutant("the reader does not look at L again", _WRITTEN),
    "seq_before_L": _mutant("the reader looks at the sequence again before L", _WRITTEN),
    "no_gen_after": _mutant(
        "the reader does not look at the generation again", Reads((READ, REMOVE, Job("put", (B,), node=1, block=0)))
    ),
    "no_ns_after": _mutant("the reader does not look at the namespace word", Reads((CACHED_IN, MOVE_DIR, SWAP_C), DEEP)),
    "abandoned_read": _mutant("a reader accepts an ABANDONED file", _KILLED),
    "undo_forward": _mutant("undo in the order of the entries", _KILLED),
    # walks
    "trust_absent": _mutant("an absence is believed while names change", Reads((STAT_B, Job("stat"), MOVE))),
    "trust_damage": _mutant(
        "a chain without an end is reported while names change", Reads((Job("stat", (C,)), MOVE, MOVE_D), PAIR)
    ),
    "tree_stays": _mutant("TREE_SEQ only moves after the commit", Reads((Job("stat"), PUT), kills=1)),
    "no_name_again": _mutant("the name is not compared after the generation", Reads((OPEN, REMOVE, REUSE))),
    "no_parent_again": _mutant("the directory is not compared after the generation", Reads((OPEN, INTO), FLAT)),
    "no_seq_before_name": _mutant("a walk looks at the sequence only after the name", _RENAMED),
    "no_seq_after_name": _mutant("a walk does not look at the sequence again after the name", _RENAMED),
    "walk_no_seq": _mutant("a walk does not look at the sequence", Reads((OPEN_B, MOVE), kills=1)),
    "walk_on": _mutant(
        "only the last node of a path is settled", Reads((OPEN_IN, REMOVE_B, MKDIR_C, PUT_C), ((ROOT, FILE + B),))
    ),
    "walk_no_ns": _mutant("a walk does not look at the namespace word again", Reads((OPEN_IN, MOVE_DIR), DEEP)),
    "lock_no_ns": _mutant("LOCK does not compare the namespace word", Reads((OPEN_IN, MOVE_DIR), DEEP)),
    "ns_back": _mutant("the namespace word returns to the value it had", Reads((OPEN_IN, MOVE_DIR), DEEP)),
    # names
    "add_no_seq": _mutant("the sequence of a new node is not odd before its commit", Reads((OPEN_B, PUT), kills=1)),
    "move_no_seq": _mutant("the sequence of a renamed node does not go odd", Reads((READ_B, MOVE), kills=1)),
    "move_keeps_gen": _mutant("a rename does not change the generation", Reads((OPEN, MOVE))),
    "free_keeps_gen": _mutant("a removal does not change the generation", Reads((OPEN, REMOVE, REUSE))),
    "reap_blind": _mutant(
        "reaping does not wait for m[0] to take an unfinished creation back", Reads((CREATE, CREATE, REAP), kills=1)
    ),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
