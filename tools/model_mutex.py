"""Model of the generation mutex, its undo journal, its recovery and the attaching of slots. See explorer.py.

Every interleaving of threads that each run a program: take one mutex, or m[0] and then m[1], change journaled words, release.
One step is one store, load, or system call; so are the names of the steps, which are those of `mutex` and `recovery`:

    a0 the gate of the process    a1 read gen; odd means RECOVER    a2 take the token of S(k,gen), or lose patience: RECOVER
    a3 claim = gen                a4 fence                          a5 gen unchanged: holder      a6 else decide under R
    s  the section: entries, one store of n, new values, perhaps a second batch, n=0 commits
    r1 claim = NONE               r2 post, at most once             r3 open the gate
    q0 value > 0, and gen even: nothing wrong     q1 a live claim: BUSY        q2 a fresh semaphore for gen+2
    q3 gen+1 (revoke)   q4 membarrier             q5 scan the claims           q6 live: gen back, BUSY
    q7 dead: if it claims m[0] too, recover m[0] first; undo in reverse, n=0, claim = NONE
    q8 gen+2            q9 worthless posts to the old semaphore wake its sleepers
    x  an exception: for each mutex whose gate is ours, m[0] first: let go of R; nothing claimed: RECOVER; a valid claim (put
       back under R if it is being revoked): undo, unclaim, post; else unclaim; open the gate
    i  an exception that hits the handler itself: gates stay shut. The thread comes back as another one; whoever finds such a
       gate does x for it, under the process's half of R
    t1 a new tenant of a dead slot: RECOVER where its claim is current, clear other claims; t2 lock the byte

A process can be killed before any step; an exception can strike at any step, also where R ought to be freed. Claim stores pass
through a store buffer (TSO), drained by a fence, by a system call, by the GIL, or at any time; other stores are sequentially
consistent. RECOVER may be tried at any time, so false suspicion is covered. A forked child has its parent's descriptors, so
that a dead parent looks alive and keeps R, until its hook has closed them.

What is checked in every state: one holder and at most one current claim per mutex; one token at most, none beside a claim; a
journal is open only under a current claim; whoever enters finds exactly what the last commit left (`wanted`, a ghost), so
sections are atomic and durable. From every state the end is reachable by steps of the living alone (AG EF end), unless the
bound on generations is met; at the end no claim of the living, no shut gate and no R is left.

What is not: the order at the gate; poisoning after a lost liveness lock; weak memory beyond the buffered claims; failures of
system calls other than q2's and the deadline of R; more than two mutexes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from explorer import FAIR, UNFAIR, Model, Mutant, Step, main, put

# ---------------------------------------------------------------------------------------------------------------------
# The states of the mutex.

NONE = -1
DOMAIN = {"a": 0, "x": 1, "y": 1}  # the journaled words and the mutex that guards each
WORDS = tuple(DOMAIN)


class Mutex(NamedTuple):
    """The words of m[k] and its semaphores, one for each even generation."""

    gen: int
    tokens: tuple[int, ...]
    n: int = 0  # of the journal
    entries: tuple[tuple[int, int], ...] = ((0, 0), (0, 0), (0, 0))  # (word, old value)


class Call(NamedTuple):
    """A RECOVER in progress."""

    k: int
    gen: int = 0
    dead: int = NONE
    back: str = "a1"


class Abandoning(NamedTuple):
    """The giving up of mutexes after an exception, one's own, or (mending) those of a thread that left its gate shut."""

    todo: tuple[int, ...]
    who: int
    mends: bool = False
    claim: int = NONE


class Thread(NamedTuple):
    """One thread of a tenant of a slot. It is another one to gates (`life`) after it left a section by two exceptions."""

    pc: str
    left: int  # operations still to do
    depth: int = 0  # how many mutexes of its program it holds
    at: int = 0  # place in the section, in a scan, in an undo
    gens: tuple[int, ...] = ()  # the generation under which it took each of them
    calls: tuple[Call, ...] = ()
    giving: Abandoning | None = None
    buffer: tuple[tuple[int, int], ...] = ()  # claim stores on their way: (k, value)
    life: int = 0


class Slot(NamedTuple):
    """What the threads of a process share."""

    locked: bool = True  # the OFD byte: what others take for its life
    gates: tuple[int, ...] = (NONE, NONE)  # who shut it: the number of a thread and its life
    local: int = NONE  # the thread that has the process's half of R


class State(NamedTuple):
    """Everything. `wanted` is a ghost: the words as the last commit left them."""

    mutexes: tuple[Mutex, ...]
    claims: tuple[tuple[int, ...], ...]
    memory: tuple[int, ...]
    wanted: tuple[int, ...]
    recoverer: int  # the slot that has R; the kernel frees it with its holder
    slots: tuple[Slot, ...]
    threads: tuple[Thread, ...]
    child: int  # the slot whose process has forked a child that has not closed its descriptors yet
    budget: Budget


class Budget(NamedTuple):
    """What the environment may still do."""

    kills: int
    exceptions: int
    tenants: int
    forks: int


DEAD = Thread("dead", 0)
LIVES = 100  # thread 2 in its third life is 202 to a gate
WORKING = "asrqx"  # the first letters of what is done inside the package


def stable(gen: int) -> int:
    """The even generation that a word stands for: odd means that gen-1 is being revoked."""
    return gen & ~1


def section(program: tuple[int, ...], *, batches: int, mutant: str) -> tuple[tuple[str, int, int], ...]:
    """The stores of a section: ("entry", journal, word), ("count", journal, n), ("store", 0, word), ("commit", journal, 0)."""
    words = [WORDS.index(word) for word in {(0,): "a", (1,): "xy", (0, 1): "ax"}[program]]
    home = program[0]
    journal = {word: DOMAIN[WORDS[word]] if mutant == "two_journals" else home for word in words}
    entries = [("entry", journal[word], word) for word in words]
    used = sorted(set(journal.values()))
    counts = [("count", k, sum(journal[word] == k for word in words)) for k in used]
    stores = [("store", 0, word) for word in words]
    script = entries + counts + stores
    if mutant == "count_before_entries":
        script = counts + entries + stores
    if mutant == "value_before_count":
        script = entries + stores[:1] + counts + stores[1:]
    if batches == 2:
        script += [("entry", home, words[0]), ("count", home, len(words) + 1), ("store", 0, words[0])]
    return (*script, *(("commit", k, 0) for k in used))


@dataclass(frozen=True)
class Generations:
    """One configuration. programs[t]: the mutexes that thread t takes, in order; owners[t]: its slot, if not t."""

    programs: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...] = ()
    loops: int = 1
    kills: int = 0
    exceptions: int = 0
    tenants: int = 0
    forks: int = 0
    generations: int = 2  # how often a mutex can be revoked
    fence: str = "local"  # or "membarrier", or "none"
    batches: int = 1
    wake: bool = False  # q9
    late: bool = False  # R may not be had by the deadline
    outer_first: bool = False  # release m[0] before m[1]
    inside: bool = False  # thread 0 begins in its section
    mutant: str = ""

    def initial(self) -> State:
        mutexes = tuple(Mutex(0, (1,) + (0,) * self.generations) for _ in range(2))
        zero = (0,) * len(WORDS)
        slots = 1 + max(self.slot(t) for t in range(len(self.programs)))
        threads = tuple(Thread("a1", self.loops) for _ in self.programs)
        budget = Budget(self.kills, self.exceptions, self.tenants, self.forks)
        s = State(mutexes, ((NONE, NONE),) * slots, zero, zero, NONE, (Slot(),) * slots, threads, NONE, budget)
        return self._begun_inside(s, self.programs[0]) if self.inside else s

    def _begun_inside(self, s: State, program: tuple[int, ...]) -> State:
        for k in program:
            s = self._claim(self._gate(self._post(s, k, 0, -1), 0, k, 0), self.slot(0), k, 0)
        return self._go(s, 0, s.threads[0]._replace(depth=len(program), gens=(0,) * len(program)), "s")

    def slot(self, t: int) -> int:
        """The slot of a thread's process."""
        return self.owners[t] if self.owners else t

    # ----- the invariants

    def released_at(self, t: int, depth: int) -> int:
        """The mutex that goes when `depth` are held."""
        program = self.programs[t]
        return program[-depth] if self.outer_first else program[depth - 1]

    def held(self, t: int, p: Thread) -> tuple[int, ...]:
        """The mutexes whose words this thread may believe and change."""
        if p.giving:
            return ()
        if p.pc in ("r2", "r3"):  # unclaimed
            return tuple(self.released_at(t, depth) for depth in range(1, p.depth))
        if p.pc == "r1":
            return tuple(self.released_at(t, depth) for depth in range(1, p.depth + 1))
        return self.programs[t][: p.depth] if p.pc[0] in "asq" else ()

    def fault(self, s: State) -> str | None:
        """I1 to I3 and what an entrant must find."""
        held = [self.held(t, p) for t, p in enumerate(s.threads)]
        for k, m in enumerate(s.mutexes):
            if sum(k in mutexes for mutexes in held) > 1:
                return f"two holders of m[{k}]"
            claimed = sum(claim[k] == stable(m.gen) for claim in s.claims)
            if claimed > 1:
                return f"two claims of one generation of m[{k}]"
            if m.tokens[m.gen // 2] + claimed > 1 and m.gen % 2 == 0:
                return f"a second token of m[{k}]"
            on_the_way = any((k, stable(m.gen)) in p.buffer for p in s.threads)
            if m.n and not claimed and not on_the_way:
                return f"J[{k}] is open and nobody claims it"
        for t, p in enumerate(s.threads):
            fresh = p.pc in ("a1", "a2", "a3", "a5", "a6", "s") and not p.at
            for k in held[t] if fresh else ():
                if s.mutexes[k].n:
                    return f"thread {t} enters m[{k}] with an open journal"
                if any(s.memory[w] != s.wanted[w] for w, word in enumerate(WORDS) if DOMAIN[word] == k):
                    return f"thread {t} enters m[{k}] and finds what nobody committed"
        return None

    def ended(self, s: State) -> bool:
        """Everybody is through; or the bound on generations is met and says nothing more."""
        return all(p.pc in ("done", "dead") for p in s.threads) or any(m.gen // 2 >= self.generations for m in s.mutexes)

    def end_fault(self, s: State) -> str | None:
        """The living leave no claim behind, which nobody else may ever clear, no gate shut and R free."""
        bounded = not all(p.pc in ("done", "dead") for p in s.threads)
        for t, p in enumerate(s.threads):
            slot = s.slots[self.slot(t)]
            if p.pc != "done" or p.buffer or bounded:
                continue
            for k, m in enumerate(s.mutexes):
                if s.claims[self.slot(t)][k] == stable(m.gen):
                    return f"slot {self.slot(t)} is through and still claims m[{k}]"
                if slot.gates[k] != NONE:
                    return f"the gate of m[{k}] stays shut"
            if s.recoverer == self.slot(t):
                return f"slot {self.slot(t)} is through and has R"
        return None

    # ----- the steps

    def steps(self, s: State) -> Iterator[Step]:
        """All that can happen next."""
        yield from self._environment(s)
        for t, p in enumerate(s.threads):
            if p.buffer:
                yield f"drain{t}", FAIR, self._drained(s, t)
            others = [q for u, q in enumerate(s.threads) if u != t and self.slot(u) == self.slot(t)]
            if p.pc in ("done", "dead") or any(q.buffer for q in others):  # the GIL comes with a barrier
                continue
            if s.budget.exceptions and p.pc[0] in WORKING and not (p.pc == "a1" and not p.depth):
                for how, successor in self._raised(s, t, p):
                    spent = s.budget._replace(exceptions=s.budget.exceptions - 1)
                    yield f"{how}{t}@{p.pc}", UNFAIR, successor._replace(budget=spent)
            for label, successor in getattr(self, "_" + p.pc)(s, t, p):
                yield f"{label}{t}", FAIR, successor

    def _environment(self, s: State) -> Iterator[Step]:
        for slot in range(len(s.slots)):
            mine = [p for t, p in enumerate(s.threads) if self.slot(t) == slot]
            dead = all(p.pc == "dead" for p in mine)
            if s.budget.kills and not dead and any(p.pc != "done" for p in mine):
                yield f"KILL{slot}", UNFAIR, self._killed(s, slot)
            if s.budget.tenants and dead and s.child != slot and not any(q.pc[0] == "t" for q in s.threads):  # A: one at a time
                yield f"attach{slot}", UNFAIR, self._attach(s, slot)
            if s.budget.forks and not dead:
                forked = s.budget._replace(forks=s.budget.forks - 1)
                yield f"fork{slot}", UNFAIR, s._replace(child=slot, budget=forked)
        if s.child != NONE:
            yield from self._hook(s, s.child)

    def _killed(self, s: State, slot: int) -> State:
        """SIGKILL: stores that were issued arrive, the kernel's locks are freed, unless a child has the descriptors, too."""
        for t in range(len(s.threads)):
            while self.slot(t) == slot and s.threads[t].buffer:
                s = self._drained(s, t)
        inherited = s.child == slot
        if s.recoverer == slot and self.mutant != "r_not_robust" and not inherited:
            s = s._replace(recoverer=NONE)
        threads = tuple(DEAD if self.slot(t) == slot else p for t, p in enumerate(s.threads))
        slots = put(s.slots, slot, Slot(locked=inherited))
        return s._replace(threads=threads, slots=slots, budget=s.budget._replace(kills=s.budget.kills - 1))

    def _hook(self, s: State, slot: int) -> Iterator[Step]:
        """The child, first of all, closes the descriptors, and has nothing of what its parent was about."""
        dead = all(p.pc == "dead" for t, p in enumerate(s.threads) if self.slot(t) == slot)
        after = s._replace(child=NONE)
        if dead:
            after = after._replace(slots=put(s.slots, slot, Slot(locked=False)))
            if s.recoverer == slot:
                after = after._replace(recoverer=NONE)
        if self.mutant == "child_unclaims":
            after = self._claim(after, slot, 1, NONE)
        yield f"hook{slot}", FAIR, after

    def _raised(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """An exception. The handler begins, or begins again; or it hits the handler where nothing is caught.

        On the way out the process's half of R goes; the byte does as well, unless the exception came just before.
        """
        slot = s.slots[self.slot(t)]
        if self.mutant == "post_retried" and p.pc == "r2":
            yield "RAISE", self._go(s, t, p, "r3x")
            return
        ours = tuple(k for k in self.programs[t] if slot.gates[k] == self._name(t, p))
        has_r = slot.local == t
        out = self._slot(s, t, local=NONE) if has_r else s
        freed = out._replace(recoverer=NONE) if has_r and s.recoverer == self.slot(t) else out
        handler = p._replace(calls=(), depth=0, giving=Abandoning(ours, self._name(t, p)))
        for how, after in (("RAISE", freed), ("RAISE+R", out))[: 1 + (freed != out)]:
            yield how, self._go(after, t, handler, "x0" if ours else "x5")
            if p.giving and not p.giving.mends and ours:
                yield "ESCAPE" + how, self._go(after, t, handler._replace(giving=None), "i")

    def _name(self, t: int, p: Thread) -> int:
        """What a gate knows it by."""
        return t + LIVES * p.life

    def _drained(self, s: State, t: int) -> State:
        p = s.threads[t]
        (k, value), rest = p.buffer[0], p.buffer[1:]
        s = self._claim(s, self.slot(t), k, value)
        return s._replace(threads=put(s.threads, t, p._replace(buffer=rest)))

    @staticmethod
    def _go(s: State, t: int, p: Thread, pc: str, at: int = 0) -> State:
        return s._replace(threads=put(s.threads, t, p._replace(pc=pc, at=at)))

    @staticmethod
    def _mutex(s: State, k: int, **changes: Any) -> State:
        return s._replace(mutexes=put(s.mutexes, k, s.mutexes[k]._replace(**changes)))

    def _slot(self, s: State, t: int, **changes: Any) -> State:
        slot = self.slot(t)
        return s._replace(slots=put(s.slots, slot, s.slots[slot]._replace(**changes)))

    def _gate(self, s: State, t: int, k: int, who: int) -> State:
        return self._slot(s, t, gates=put(s.slots[self.slot(t)].gates, k, who))

    @staticmethod
    def _claim(s: State, slot: int, k: int, value: int) -> State:
        """A claim store that has arrived."""
        return s._replace(claims=put(s.claims, slot, put(s.claims[slot], k, value)))

    def _post(self, s: State, k: int, gen: int, tokens: int = 1) -> State:
        m = s.mutexes[k]
        return self._mutex(s, k, tokens=put(m.tokens, gen // 2, m.tokens[gen // 2] + tokens))

    def _operation_over(self, s: State, t: int, p: Thread) -> State:
        left = p.left - 1
        fresh = p._replace(left=left, depth=0, gens=(), calls=(), giving=None)
        return self._go(s, t, fresh, "a1" if left else "done")

    # ----- ACQ

    def _i(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Outside, having left gates shut: whoever comes mends them; so we are another thread from here on."""
        renewed = p if self.mutant == "gate_knows_thread" else p._replace(life=p.life + 1)
        yield "enter", self._go(s, t, renewed, "a1")

    def _a1(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """a0 and a1: the gate, then the generation."""
        k, slot, me = self.programs[t][p.depth], s.slots[self.slot(t)], self._name(t, p)
        shut = slot.gates[k]
        if shut not in (NONE, me):
            if not self._in_section(s, shut) and slot.local == NONE:
                giving = Abandoning((k,), shut, mends=True)
                yield "mend", self._go(self._slot(s, t, local=t), t, p._replace(giving=giving), "x0")
            return
        gen = s.mutexes[k].gen
        s = self._gate(s, t, k, me)
        if gen % 2:
            yield "odd", self._recover(s, t, p, k, "a1")
        else:
            yield "gen", self._go(s, t, p._replace(gens=(*p.gens[: p.depth], gen)), "a2")

    def _in_section(self, s: State, name: int) -> bool:
        """Whether the thread that shut a gate is still at it: frames of the package are on its stack."""
        t, life = name % LIVES, name // LIVES
        if self.mutant == "gate_of_the_living":
            return s.threads[t].pc != "dead"
        return s.threads[t].life == life and s.threads[t].pc[0] in WORKING

    def _a2(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        if p.buffer:
            return  # a locked instruction waits for the buffer
        k, gen = self.programs[t][p.depth], p.gens[p.depth]
        if s.mutexes[k].tokens[gen // 2]:
            yield "take", self._go(self._post(s, k, gen, -1), t, p, "a3")
        yield "patience", self._recover(s, t, p, k, "a1")

    def _a3(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen = self.programs[t][p.depth], p.gens[p.depth]
        yield "claim", self._go(s, t, p._replace(buffer=(*p.buffer, (k, gen))), "a5")

    def _a5(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        if p.buffer and self.fence == "local" and self.mutant != "no_fence":
            return  # a4
        k, gen = self.programs[t][p.depth], p.gens[p.depth]
        if s.mutexes[k].gen == gen or self.mutant == "no_a5":
            yield "valid", self._entered(s, t, p)
        else:
            yield "revoked", self._go(s, t, p, "a6")

    def _entered(self, s: State, t: int, p: Thread) -> State:
        deeper = p._replace(depth=p.depth + 1)
        return self._go(s, t, deeper, "a1" if deeper.depth < len(self.programs[t]) else "s")

    def _r_is_free(self, s: State, t: int, p: Thread) -> bool:
        """Both halves of R could be ours now: a system call, so the buffer is empty. The byte may be ours already."""
        return not p.buffer and s.slots[self.slot(t)].local in (NONE, t) and s.recoverer in (NONE, self.slot(t))

    def _a6(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Under R, in one step: nobody who matters can see what is between; but for an exception that leaves R locked."""
        k, gen = self.programs[t][p.depth], p.gens[p.depth]
        if not self._r_is_free(s, t, p):
            if self.late and s.budget.exceptions:  # R is not to be had in time: the claim goes without it
                withdrawn = self._claim(s, self.slot(t), k, NONE)
                spent = s.budget._replace(exceptions=s.budget.exceptions - 1)
                for how, after in self._raised(withdrawn, t, p):
                    yield "late" + how, after._replace(budget=spent)
            return
        s = s._replace(recoverer=NONE)
        if stable(s.mutexes[k].gen) == gen:
            kept = self._mutex(s, k, gen=gen)
            yield "keep", self._entered(kept, t, p)
            if s.budget.exceptions:
                spent = s.budget._replace(exceptions=s.budget.exceptions - 1)
                for how, after in self._raised(self._slot(kept, t, local=t)._replace(recoverer=self.slot(t)), t, p):
                    yield "keep" + how, after._replace(budget=spent)
        else:
            if self.mutant == "a6_posts" and s.mutexes[k].gen % 2 == 0:
                s = self._post(s, k, s.mutexes[k].gen)
            yield "drop", self._go(self._claim(s, self.slot(t), k, NONE), t, p, "a1")

    # ----- the section and REL

    def _s(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        script = section(self.programs[t], batches=self.batches, mutant=self.mutant)
        if p.at == len(script):
            yield "leave", self._go(s, t, p, "r2" if self.mutant == "post_before_unclaim" else "r1")
            return
        what, k, value = script[p.at]
        if what == "entry":
            place = sum(op[0] == "entry" and op[1] == k for op in script[: p.at])
            s = self._mutex(s, k, entries=put(s.mutexes[k].entries, place, (value, s.memory[value])))
        elif what == "count":
            s = self._mutex(s, k, n=value)
        elif what == "store":
            s = s._replace(memory=put(s.memory, value, s.memory[value] + 1))
        else:
            if k == self.programs[t][0]:  # the store that commits
                mine = [DOMAIN[word] in self.programs[t] for word in WORDS]
                s = s._replace(
                    wanted=tuple(new if own else old for own, new, old in zip(mine, s.memory, s.wanted, strict=True))
                )
            s = self._mutex(s, k, n=0)
        yield f"{what}{value}@", self._go(s, t, p, "s", p.at + 1)

    def _r1(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k = self.released_at(t, p.depth)
        buffered = p._replace(buffer=(*p.buffer, (k, NONE)))
        yield "unclaim", self._go(s, t, buffered, "r3" if self.mutant == "post_before_unclaim" else "r2")

    def _r2(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        if p.buffer:
            return
        k = self.released_at(t, p.depth)
        s = self._post(s, k, p.gens[self.programs[t].index(k)])
        if self.mutant == "post_retried" and s.budget.exceptions:  # it strikes when the post is done and not yet noted
            spent = s.budget._replace(exceptions=s.budget.exceptions - 1)
            yield "post", self._go(s, t, p, "r3x")._replace(budget=spent)
        yield "post", self._go(s, t, p, "r1" if self.mutant == "post_before_unclaim" else "r3")

    def _r3x(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Only in the mutant that posts once more after an exception."""
        yield "again", self._go(self._post(s, self.programs[t][0], p.gens[0]), t, p, "r3")

    def _r3(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        s = self._gate(s, t, self.released_at(t, p.depth), NONE)
        if p.depth > 1:
            yield "gate", self._go(s, t, p._replace(depth=p.depth - 1), "r1")
        else:
            yield "gate", self._operation_over(s, t, p)

    # ----- RECOVER

    def _recover(self, s: State, t: int, p: Thread, k: int, back: str) -> State:
        return self._go(s, t, p._replace(calls=(*p.calls, Call(k, back=back))), "q")

    def _returned(self, s: State, t: int, p: Thread, *, all_: bool = False) -> State:
        """The innermost RECOVER is over (or all of them); the outermost frees R."""
        call, calls = (p.calls[0], ()) if all_ else (p.calls[-1], p.calls[:-1])
        if not calls:
            s = self._r_freed(s, t, p)
        return self._go(s, t, p._replace(calls=calls), call.back)

    def _r_freed(self, s: State, t: int, p: Thread) -> State:
        mends = p.giving is not None and p.giving.mends
        return self._slot(s, t, local=t if mends else NONE)._replace(recoverer=NONE)

    def _q(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        if self._r_is_free(s, t, p):
            yield "R", self._go(self._slot(s, t, local=t)._replace(recoverer=self.slot(t)), t, p, "q0")
        elif self.late and not p.buffer:  # MFSStoreBusyError
            busy = "x4" if p.giving else "x0"
            ours = tuple(k for k in self.programs[t] if s.slots[self.slot(t)].gates[k] == self._name(t, p))
            giving = p.giving or Abandoning(ours, self._name(t, p))
            yield "late", self._go(s, t, p._replace(calls=(), depth=0, giving=giving), busy)

    def _q0(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        call = p.calls[-1]
        m = s.mutexes[call.k]
        p = p._replace(calls=(*p.calls[:-1], call._replace(gen=stable(m.gen))))
        if m.gen % 2 == 0 and m.tokens[m.gen // 2]:
            yield "fine", self._returned(s, t, p)
        else:
            yield "suspect", self._go(s, t, p, "q1")

    def _q1(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Who claims it? A live one: nothing is wrong, and a revocation that its recoverer died in is taken back."""
        k, gen = p.calls[-1][:2]
        claimer = next((slot for slot, claim in enumerate(s.claims) if claim[k] == gen), NONE)
        if claimer != NONE and s.slots[claimer].locked:
            yield "busy", self._returned(self._mutex(s, k, gen=gen), t, p)
        elif self.mutant == "outer_early" and claimer != NONE and k and self._claims_zero(s, claimer):
            yield "outer", self._go(s, t, p._replace(calls=(*p.calls, Call(0, back="q2"))), "q0")
        elif self.mutant == "post_on_behalf" and claimer == NONE:
            yield "behalf", self._returned(self._post(s, k, gen), t, p)
        else:
            yield "q1", self._go(s, t, p, "q2")

    def _claims_zero(self, s: State, slot: int) -> bool:
        """Does it claim m[0], too? At gen-1, if another recoverer died while it revoked m[0]."""
        gen = s.mutexes[0].gen
        return s.claims[slot][0] == (gen if self.mutant == "outer_exact" else stable(gen))

    def _q2(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        spare = gen // 2 + 1
        if spare > self.generations:  # stands for ENOSPC, too: whatever is odd stays odd
            yield "nospare", self._returned(s, t, p, all_=True)
        else:
            tokens = put(s.mutexes[k].tokens, spare, 2 if self.mutant == "spare_two" else 1)
            yield "spare", self._go(self._mutex(s, k, tokens=tokens), t, p, "q3")

    def _q3(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        yield "revoke", self._go(self._mutex(s, k, gen=gen + 1), t, p, "q4")

    def _q4(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        if self.fence == "membarrier":
            for other in range(len(s.threads)):
                while s.threads[other].buffer:
                    s = self._drained(s, other)
        yield "barrier", self._go(s, t, p, "q5")

    def _q5(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        call = p.calls[-1]
        if p.at == len(s.slots):
            nobody = "q7e" if self.mutant == "undo_for_nobody" else "q8"
            yield "scanned", self._go(s, t, p, "q6" if call.dead != NONE else nobody)
            return
        if s.claims[p.at][call.k] == call.gen:
            p = p._replace(calls=(*p.calls[:-1], call._replace(dead=p.at)))
        yield f"scan{p.at}@", self._go(s, t, p, "q5", p.at + 1)

    def _q6(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen, dead, _ = p.calls[-1]
        if s.slots[dead].locked and self.mutant != "undo_the_living":
            yield "abort", self._returned(self._mutex(s, k, gen=gen), t, p)
        elif k and self._claims_zero(s, dead) and self.mutant not in ("inner_first", "outer_early"):
            yield "outer", self._go(s, t, p._replace(calls=(*p.calls, Call(0, back="q7"))), "q0")
        else:
            yield "dead", self._go(s, t, p, "q7")

    def _q7(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, _, dead, _ = p.calls[-1]
        if self.mutant == "claim_before_undo" and s.claims[dead][k] != NONE:
            yield "clear", self._go(self._claim(s, dead, k, NONE), t, p, "q7")
        else:
            yield from self._undo(s, t, p, k, "q7c")

    def _q7e(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Only in the variant that undoes although nobody claims."""
        yield from self._undo(s, t, p, p.calls[-1].k, "q8")

    def _q7c(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, _, dead, _ = p.calls[-1]
        yield "clear", self._go(self._claim(s, dead, k, NONE), t, p, "q8")

    def _undo(self, s: State, t: int, p: Thread, k: int, then: str) -> Iterator[tuple[str, State]]:
        """Old values in reverse order, then n=0. `at` counts what is done; a second run begins at the beginning."""
        m = s.mutexes[k]
        count = p.at // 8 if self.mutant == "count_before_undo" and p.at >= 8 else m.n
        done = p.at % 8
        if self.mutant == "count_before_undo" and m.n:
            yield "n=0", self._go(self._mutex(s, k, n=0), t, p, p.pc, 8 * m.n)
        elif done < count:
            word, old = m.entries[done if self.mutant == "undo_forward" else count - 1 - done]
            s = s._replace(memory=put(s.memory, word, old))
            yield f"undo{word}@", self._go(s, t, p, p.pc, p.at + 1)
        else:
            yield "n=0", self._go(self._mutex(s, k, n=0), t, p, then)

    def _q8(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        s = self._mutex(s, k, gen=gen + 2)
        yield "commit", self._go(s, t, p, "q9") if self.wake else self._returned(s, t, p)

    def _q9(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        yield "wake", self._returned(self._post(s, k, gen, len(s.slots)), t, p)

    # ----- abandon, in the handler of an exception, or for a thread that left its gate shut

    def _x0(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Let go of R, if an exception kept us from it; then, what is claimed?"""
        giving = p.giving
        assert giving
        if p.buffer or s.slots[self.slot(t)].local not in (NONE, t):
            return
        if s.recoverer == self.slot(t) and self.mutant != "r_kept":
            s = s._replace(recoverer=NONE)
        k = giving.todo[0]
        claim = s.claims[self.slot(t)][k]
        p = p._replace(giving=giving._replace(claim=claim))
        if claim == NONE:
            yield "xlost", self._recover(s, t, p, k, "x4")
        else:
            yield "xclaims", self._go(s, t, p, "x1")

    def _x1(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Is the claim valid? A revocation that was begun is taken back, under R, which is waited for without a deadline."""
        giving = p.giving
        assert giving
        k, claim = giving.todo[0], giving.claim
        gen = s.mutexes[k].gen
        roll_back = "x2" if self.mutant == "ax_no_rollback" else "x1u"
        if gen == claim:
            yield "xvalid", self._go(s, t, p, roll_back)
        elif self._r_is_free(s, t, p):
            s = s._replace(recoverer=NONE)
            if stable(gen) == claim and self.mutant != "ax_exact":
                yield "xkeep", self._go(self._mutex(s, k, gen=claim), t, p, roll_back)
            else:
                yield "xgone", self._go(s, t, p._replace(giving=giving._replace(claim=NONE)), "x2")
        elif self.mutant == "r_deadline":
            yield "xlate", self._go(s, t, p, "x4")

    def _x1u(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        assert p.giving
        yield from self._undo(s, t, p, p.giving.todo[0], "x2")

    def _x2(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Unclaim; post if the claim was valid."""
        giving = p.giving
        assert giving
        buffered = p._replace(buffer=(*p.buffer, (giving.todo[0], NONE)))
        yield "xunclaim", self._go(s, t, buffered, "x3" if giving.claim != NONE else "x4")

    def _x3(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        giving = p.giving
        assert giving
        if not p.buffer:
            yield "xpost", self._go(self._post(s, giving.todo[0], giving.claim), t, p, "x4")

    def _x4(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """The gate opens, whoever has it."""
        giving = p.giving
        assert giving
        s = self._gate(s, t, giving.todo[0], NONE)
        rest = giving._replace(todo=giving.todo[1:])
        yield "xgate", self._go(s, t, p._replace(giving=rest), "x0" if rest.todo else "x5")

    def _x5(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        giving = p.giving
        assert giving
        if giving.mends:
            yield "xmended", self._go(self._slot(s, t, local=NONE), t, p._replace(giving=None), "a1")
        elif any(shut != NONE and not self._in_section(s, shut) for shut in s.slots[self.slot(t)].gates):
            # A gate that was left shut waits for the process's next visit: there is one more.
            yield "xagain", self._go(s, t, p._replace(giving=None, gens=()), "a1")
        else:
            yield "xdone", self._operation_over(s, t, p)

    # ----- a new tenant

    def _attach(self, s: State, slot: int) -> State:
        pc = "t2" if self.mutant == "attach_blind" else "t1"
        slots = put(s.slots, slot, Slot(locked=self.mutant == "attach_lock_first"))
        first = next(t for t in range(len(s.threads)) if self.slot(t) == slot)
        threads = put(s.threads, first, Thread(pc, 1))
        return s._replace(threads=threads, slots=slots, budget=s.budget._replace(tenants=s.budget.tenants - 1))

    def _t1(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        """Before the byte is locked: recover what the dead one holds, make its other claims void."""
        for k, claim in enumerate(s.claims[self.slot(t)]):
            gen = s.mutexes[k].gen
            if claim == (gen if self.mutant == "attach_exact" else stable(gen)):
                yield "trecover", self._recover(s, t, p, k, "t1")
                return
            if claim != NONE:
                yield "tclear", self._claim(s, self.slot(t), k, NONE)
                return
        yield "clean", self._go(s, t, p, "t2")

    def _t2(self, s: State, t: int, p: Thread) -> Iterator[tuple[str, State]]:
        yield "lockbyte", self._go(self._slot(s, t, locked=True), t, p, "a1")


# ---------------------------------------------------------------------------------------------------------------------
# What is run.

OUTER, INNER, BOTH = (0,), (1,), (0, 1)

CONFIGS: dict[str, Model] = {
    "one2": Generations((INNER, INNER), loops=2, kills=1, batches=2),
    "one2wake": Generations((INNER, INNER), kills=2, wake=True, generations=3),
    "one2raise": Generations((INNER, INNER), exceptions=1, kills=1),
    "one2raise2": Generations((INNER, INNER), exceptions=2, fence="membarrier"),
    "one2raisekill": Generations((INNER, INNER), exceptions=2, kills=1, generations=1),
    "one2attach": Generations((INNER, INNER), kills=2, tenants=1, generations=3),
    "one2fork": Generations((INNER, INNER), kills=2, forks=1, tenants=1),
    "one2late": Generations((INNER, INNER), exceptions=1, kills=1, late=True),
    "nested2": Generations((BOTH, INNER), kills=2),
    "nested2raise": Generations((BOTH, INNER), kills=1, exceptions=1),
    "nested2raise2": Generations((BOTH, INNER), exceptions=2, generations=1),
    "nested2outer": Generations((BOTH, BOTH), kills=1, outer_first=True),
    "nested2attach": Generations((BOTH, INNER), kills=2, tenants=1),
    "one3": Generations((INNER, INNER, INNER), kills=2),
    "one3membarrier": Generations((INNER, INNER, INNER), kills=1, fence="membarrier"),
    "one3attach": Generations((INNER, INNER, INNER), kills=1, tenants=1, generations=1),
    "nested3": Generations((BOTH, INNER, OUTER), kills=1, generations=1),
    "nested3kill2": Generations((BOTH, INNER, INNER), kills=2, generations=1),
    # Threads 0 and 1 are one process's.
    "threads2": Generations((INNER, INNER), (0, 0), loops=2, exceptions=2),
    "threads2raise3": Generations((INNER, INNER), (0, 0), exceptions=3, generations=1),
    "threads2nested": Generations((BOTH, BOTH), (0, 0), exceptions=2, generations=1),
    "threads3": Generations((INNER, INNER, INNER), (0, 0, 1), exceptions=1, kills=1, generations=1),
    "threads3raise2": Generations((INNER, INNER, INNER), (0, 0, 1), exceptions=2, generations=1),
    # Undoing although nobody claims is no error here: an open journal always has its claim, so there is nothing to undo.
    "undo_for_nobody": Generations((INNER,) * 3, kills=2, generations=1, mutant="undo_for_nobody"),
}
QUICK = ("one2wake", "nested2", "nested2outer", "threads2raise3")


def _mutant(breaks: str, config: Generations) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


_PAIR = Generations((INNER, INNER), kills=1, generations=1)
_PAIR2 = replace(_PAIR, kills=2, generations=2)
_RAISE = Generations((INNER, INNER), exceptions=1, generations=1)
_NEST = Generations((BOTH, INNER), kills=1, generations=1)
_TENANT = Generations((INNER, INNER), kills=1, tenants=1, generations=2)
_THREADS = Generations((INNER, INNER), (0, 0), exceptions=2, generations=1)

MUTANTS: dict[str, Mutant] = {
    "no_fence": _mutant("the claim is still in the store buffer when gen is read", _PAIR),
    "no_a5": _mutant("the claim is not followed by a look at gen", _PAIR),
    "a6_posts": _mutant("whoever lost its generation gives a token to the new one", _PAIR),
    "post_before_unclaim": _mutant("the token is given away while the claim stands", _PAIR),
    "post_on_behalf": _mutant("the lost token is put back instead of revoked", _PAIR),
    "spare_two": _mutant("the next semaphore begins at 2", _PAIR),
    "r_not_robust": _mutant("R stays with a dead recoverer", _PAIR2),
    "undo_the_living": _mutant("the claimer's life is not asked for", replace(_PAIR, generations=1)),
    "undo_forward": _mutant("undo in the order of the entries", replace(_PAIR, batches=2)),
    "count_before_undo": _mutant("n=0 before the old values are back", replace(_PAIR2, kills=1, exceptions=1)),
    "claim_before_undo": _mutant("the dead claim goes before its journal is undone", _PAIR2),
    "count_before_entries": _mutant("n is published before the entries", replace(_PAIR, loops=2)),
    "value_before_count": _mutant("a new value is stored before n is published", _PAIR),
    "ax_no_rollback": _mutant("an exception unclaims and leaves the journal", _RAISE),
    "ax_exact": _mutant("the handler takes an odd gen for the loss of its claim", replace(_RAISE, kills=1)),
    "r_kept": _mutant("the handler leaves R locked where an exception kept it from being freed", replace(_RAISE, kills=1)),
    "r_deadline": _mutant("the handler waits for R no longer than a deadline", _RAISE),
    "gate_knows_thread": _mutant("a thread that left its gate shut walks through it", _THREADS),
    "gate_of_the_living": _mutant("only the gates of threads that ended are mended", _THREADS),
    "child_unclaims": _mutant("a forked child ends its parent's section", replace(_PAIR, kills=0, forks=1)),
    "post_retried": _mutant("an exception in REL makes it post again", _RAISE),
    "inner_first": _mutant("RECOVER(k) does not look at the dead one's m[0]", _NEST),
    "outer_exact": _mutant(
        "RECOVER(k) takes an odd gen[0] for no claim of m[0]",
        replace(_NEST, programs=(BOTH, INNER, OUTER), kills=2, inside=True),
    ),
    "outer_early": _mutant("RECOVER(k) looks at the dead one's m[0] before it revokes", _NEST),
    "two_journals": _mutant("a section under m[0] journals words of domain k into J[k]", _NEST),
    "attach_blind": _mutant("a new tenant takes over current claims", _TENANT),
    "attach_exact": _mutant("a new tenant takes an odd gen for a claim that is inert", replace(_TENANT, kills=2)),
    "attach_lock_first": _mutant("a new tenant locks its byte before the claims are clean", _TENANT),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
