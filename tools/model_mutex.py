"""Model of the generation mutex, its undo journal, its recovery and the attaching of slots. See explorer.py.

What is modelled.  Breadth-first, every interleaving of processes that each run a program: take one mutex, or m[0] and then
m[1], change journaled words, release.  One step is one store, load, or system call.  A process can be killed before any step;
an exception can strike it at any step.  Claim stores pass through a store buffer (TSO), drained by a fence, by a system call,
or at any time; other stores are sequentially consistent.  RECOVER may be tried at any time, so false suspicion is covered.

    a1 read gen; odd means RECOVER        a2 take the token of S(k,gen), or lose patience and RECOVER
    a3 claim = gen      a4 fence          a5 gen unchanged: holder      a6 else decide under R;
                                                                                       R too late: unclaim
    s  the section: entries, one store of n, new values, perhaps a second batch, n=0 commits
    r1 claim = NONE     r2 post, at most once
    q0 value > 0, and gen even: nothing wrong     q1 a live claim: BUSY        q2 a fresh semaphore for gen+2
    q3 gen+1 (revoke)   q4 membarrier             q5 scan the claims           q6 live: gen back, BUSY
    q7 dead: if it claims m[0] too, recover m[0] first; undo in reverse, n=0, claim = NONE
    q8 gen+2            q9 worthless posts to the old semaphore wake its sleepers
    x0 an exception: under R roll back the own journal, if the own claim is current; x2 unclaim all; then RECOVER them
    t1 a new tenant of a dead slot: RECOVER where its claim is current, clear other claims; t2 lock the byte

What is checked in every state: one holder and at most one current claim per mutex; one token at most, none beside a claim; a
journal is open only under a current claim; whoever enters finds exactly what the last commit left (`wanted`, a ghost), so
sections are atomic and durable.  From every state the end is reachable by steps of the living alone (AG EF end), unless the
bound on generations is met.

What is not: the local gate and threads, R's own two layers, poisoning after a lost liveness lock, fork, weak memory beyond the
buffered claims, failures of system calls other than q2's, more than two mutexes.
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


class Process(NamedTuple):
    """One tenant of a slot."""

    pc: str
    left: int  # operations still to do
    depth: int = 0  # how many mutexes of its program it holds
    at: int = 0  # place in the section, in a scan, in an undo
    gens: tuple[int, ...] = ()  # the generation under which it took each of them
    calls: tuple[Call, ...] = ()
    buffer: tuple[tuple[int, int], ...] = ()  # claim stores on their way: (k, value)
    locked: bool = True  # the OFD byte: what others take for its life


class State(NamedTuple):
    """Everything. `wanted` is a ghost: the words as the last commit left them."""

    mutexes: tuple[Mutex, ...]
    claims: tuple[tuple[int, ...], ...]
    memory: tuple[int, ...]
    wanted: tuple[int, ...]
    recoverer: int  # who has R; the kernel frees it with its holder
    processes: tuple[Process, ...]
    kills: int
    exceptions: int
    tenants: int


DEAD = Process("dead", 0, locked=False)


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
    """One configuration. programs[s]: the mutexes that slot s takes, in order."""

    programs: tuple[tuple[int, ...], ...]
    loops: int = 1
    kills: int = 0
    exceptions: int = 0
    tenants: int = 0
    generations: int = 2  # how often a mutex can be revoked
    fence: str = "local"  # or "membarrier", or "none"
    batches: int = 1
    wake: bool = False  # q9
    outer_first: bool = False  # release m[0] before m[1]
    mutant: str = ""

    def initial(self) -> State:
        mutexes = tuple(Mutex(0, (1,) + (0,) * self.generations) for _ in range(2))
        zero = (0,) * len(WORDS)
        processes = tuple(Process("a1", self.loops) for _ in self.programs)
        claims = ((NONE, NONE),) * len(self.programs)
        return State(mutexes, claims, zero, zero, NONE, processes, self.kills, self.exceptions, self.tenants)

    # ----- the invariants

    def released_at(self, slot: int, depth: int) -> int:
        """The mutex that goes when `depth` are held."""
        program = self.programs[slot]
        return program[-depth] if self.outer_first else program[depth - 1]

    def held(self, slot: int, p: Process) -> tuple[int, ...]:
        """The mutexes whose words this process may believe and change."""
        if p.pc == "r2":  # unclaimed, not yet posted
            return tuple(self.released_at(slot, depth) for depth in range(1, p.depth))
        if p.pc == "r1":
            return tuple(self.released_at(slot, depth) for depth in range(1, p.depth + 1))
        return self.programs[slot][: p.depth] if p.pc[0] in "asbq" else ()

    def fault(self, s: State) -> str | None:
        """I1 to I3 and what an entrant must find."""
        held = [self.held(slot, p) for slot, p in enumerate(s.processes)]
        for k, m in enumerate(s.mutexes):
            if sum(k in mutexes for mutexes in held) > 1:
                return f"two holders of m[{k}]"
            claimed = sum(claim[k] == stable(m.gen) for claim in s.claims)
            if claimed > 1:
                return f"two claims of one generation of m[{k}]"
            if m.tokens[m.gen // 2] + claimed > 1 and m.gen % 2 == 0:
                return f"a second token of m[{k}]"
            on_the_way = any((k, stable(m.gen)) in p.buffer for p in s.processes)
            if m.n and not claimed and not on_the_way:
                return f"J[{k}] is open and nobody claims it"
        for slot, p in enumerate(s.processes):
            fresh = p.pc in ("a1", "a2", "a3", "a5", "a6", "s") and not p.at
            for k in held[slot] if fresh else ():
                if s.mutexes[k].n:
                    return f"slot {slot} enters m[{k}] with an open journal"
                if any(s.memory[w] != s.wanted[w] for w, word in enumerate(WORDS) if DOMAIN[word] == k):
                    return f"slot {slot} enters m[{k}] and finds what nobody committed"
        return None

    def ended(self, s: State) -> bool:
        """Everybody is through; or the bound on generations is met and says nothing more."""
        return all(p.pc in ("done", "dead") for p in s.processes) or any(m.gen // 2 >= self.generations for m in s.mutexes)

    def end_fault(self, s: State) -> str | None:
        """The living leave no claim behind: nobody else may ever clear it."""
        for slot, p in enumerate(s.processes):
            for k, m in enumerate(s.mutexes):
                if p.pc == "done" and not p.buffer and s.claims[slot][k] == stable(m.gen):
                    return f"slot {slot} is through and still claims m[{k}]"
        return None

    # ----- the steps

    def steps(self, s: State) -> Iterator[Step]:
        """All that can happen next."""
        for slot, p in enumerate(s.processes):
            if p.pc == "dead":
                if s.tenants and p == DEAD and not any(q.pc[0] == "t" for q in s.processes):  # A lets one in at a time
                    yield f"attach{slot}", UNFAIR, self._attach(s, slot)
                continue
            if p.buffer:
                yield f"drain{slot}", FAIR, self._drained(s, slot)
            if p.pc == "done":
                continue
            if s.kills:
                yield f"KILL{slot}@{p.pc}", UNFAIR, self._killed(s, slot)
            if s.exceptions and p.pc != "a1" and p.pc[0] in "asrqx":
                yield f"RAISE{slot}@{p.pc}", UNFAIR, self._raised(s, slot)
            if s.exceptions and p.pc == "a6" and s.recoverer not in (NONE, slot):
                yield f"LATE{slot}", UNFAIR, self._late(s, slot, p)
            for label, successor in getattr(self, "_" + p.pc)(s, slot, p):
                yield f"{label}{slot}", FAIR, successor

    def _killed(self, s: State, slot: int) -> State:
        """SIGKILL: stores that were issued arrive, the kernel's locks are freed."""
        while s.processes[slot].buffer:
            s = self._drained(s, slot)
        if s.recoverer == slot and self.mutant != "r_not_robust":
            s = s._replace(recoverer=NONE)
        return s._replace(processes=put(s.processes, slot, DEAD), kills=s.kills - 1)

    def _raised(self, s: State, slot: int) -> State:
        """An exception: R is freed on the way out, the handler begins, or begins again."""
        p, recoverer = s.processes[slot], NONE if s.recoverer == slot else s.recoverer
        if self.mutant == "post_retried" and p.pc == "r2":
            return self._go(s, slot, p, "r3")._replace(exceptions=s.exceptions - 1)
        return self._go(s, slot, p._replace(calls=(), depth=0), "x0")._replace(recoverer=recoverer, exceptions=s.exceptions - 1)

    def _late(self, s: State, slot: int, p: Process) -> State:
        """R is not to be had in time: the claim is withdrawn without R, and its token is lost."""
        if self.mutant != "late_claim_stays":
            p = p._replace(buffer=(*p.buffer, (self.programs[slot][p.depth], NONE)))
        return self._go(s, slot, p, "a1")._replace(exceptions=s.exceptions - 1)

    @staticmethod
    def _drained(s: State, slot: int) -> State:
        p = s.processes[slot]
        (k, value), rest = p.buffer[0], p.buffer[1:]
        claims = put(s.claims, slot, put(s.claims[slot], k, value))
        return s._replace(claims=claims, processes=put(s.processes, slot, p._replace(buffer=rest)))

    @staticmethod
    def _go(s: State, slot: int, p: Process, pc: str, at: int = 0) -> State:
        return s._replace(processes=put(s.processes, slot, p._replace(pc=pc, at=at)))

    @staticmethod
    def _mutex(s: State, k: int, **changes: Any) -> State:
        return s._replace(mutexes=put(s.mutexes, k, s.mutexes[k]._replace(**changes)))

    @staticmethod
    def _claim(s: State, slot: int, k: int, value: int) -> State:
        """A claim store made under R, whose release is a system call: it needs no buffer."""
        return s._replace(claims=put(s.claims, slot, put(s.claims[slot], k, value)))

    def _post(self, s: State, k: int, gen: int, tokens: int = 1) -> State:
        m = s.mutexes[k]
        return self._mutex(s, k, tokens=put(m.tokens, gen // 2, m.tokens[gen // 2] + tokens))

    def _operation_over(self, s: State, slot: int, p: Process) -> State:
        left = p.left - 1
        return self._go(s, slot, p._replace(left=left, depth=0, gens=(), calls=()), "a1" if left else "done")

    # ----- ACQ

    def _a1(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k = self.programs[slot][p.depth]
        gen = s.mutexes[k].gen
        if gen % 2:
            yield "odd", self._recover(s, slot, p, k, "a1")
        else:
            yield "gen", self._go(s, slot, p._replace(gens=(*p.gens[: p.depth], gen)), "a2")

    def _a2(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.buffer:
            return  # a locked instruction waits for the buffer
        k, gen = self.programs[slot][p.depth], p.gens[p.depth]
        if s.mutexes[k].tokens[gen // 2]:
            yield "take", self._go(self._post(s, k, gen, -1), slot, p, "a3")
        yield "patience", self._recover(s, slot, p, k, "a1")

    def _a3(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = self.programs[slot][p.depth], p.gens[p.depth]
        yield "claim", self._go(s, slot, p._replace(buffer=(*p.buffer, (k, gen))), "a5")

    def _a5(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.buffer and self.fence == "local" and self.mutant != "no_fence":
            return  # a4
        k, gen = self.programs[slot][p.depth], p.gens[p.depth]
        if s.mutexes[k].gen == gen or self.mutant == "no_a5":
            yield "valid", self._entered(s, slot, p)
        else:
            yield "revoked", self._go(s, slot, p, "a6")

    def _entered(self, s: State, slot: int, p: Process) -> State:
        deeper = p._replace(depth=p.depth + 1)
        return self._go(s, slot, deeper, "a1" if deeper.depth < len(self.programs[slot]) else "s")

    def _a6(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        """Under R, in one step: nobody who matters can see what is between."""
        if s.recoverer != NONE or p.buffer:
            return
        k, gen = self.programs[slot][p.depth], p.gens[p.depth]
        if stable(s.mutexes[k].gen) == gen:
            yield "keep", self._entered(self._mutex(s, k, gen=gen), slot, p)
        else:
            if self.mutant == "a6_posts" and s.mutexes[k].gen % 2 == 0:
                s = self._post(s, k, s.mutexes[k].gen)
            yield "drop", self._go(self._claim(s, slot, k, NONE), slot, p, "a1")

    # ----- the section and REL

    def _s(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        script = section(self.programs[slot], batches=self.batches, mutant=self.mutant)
        if p.at == len(script):
            yield "leave", self._go(s, slot, p, "r2" if self.mutant == "post_before_unclaim" else "r1")
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
            if k == self.programs[slot][0]:  # the store that commits
                mine = [DOMAIN[word] in self.programs[slot] for word in WORDS]
                s = s._replace(
                    wanted=tuple(new if own else old for own, new, old in zip(mine, s.memory, s.wanted, strict=True))
                )
            s = self._mutex(s, k, n=0)
        yield f"{what}{value}@", self._go(s, slot, p, "s", p.at + 1)
        if s.exceptions and what == "store":  # an ordinary exception: the holder rolls back and releases in the ordinary way
            yield "fails", self._go(s, slot, p, "b")._replace(exceptions=s.exceptions - 1)

    def _b(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        yield from self._undo(s, slot, p, self.programs[slot][0], "r1")

    def _r1(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k = self.released_at(slot, p.depth)
        buffered = p._replace(buffer=(*p.buffer, (k, NONE)))
        if self.mutant != "post_before_unclaim":
            yield "unclaim", self._go(s, slot, buffered, "r2")
        elif p.depth > 1:
            yield "unclaim", self._go(s, slot, buffered._replace(depth=p.depth - 1), "r2")
        else:
            yield "unclaim", self._operation_over(s, slot, buffered)

    def _r2(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.buffer:
            return
        k = self.released_at(slot, p.depth)
        s = self._post(s, k, p.gens[self.programs[slot].index(k)])
        if self.mutant == "post_before_unclaim":
            yield "post", self._go(s, slot, p, "r1")
        elif self.mutant == "post_retried" and s.exceptions:  # the exception strikes when the post is done and not yet noted
            yield "post", self._go(s, slot, p, "r3")._replace(exceptions=s.exceptions - 1)
            yield "post", self._posted(s, slot, p)
        else:
            yield "post", self._posted(s, slot, p)

    def _r3(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        """Only in the mutant that posts once more after an exception."""
        yield "again", self._posted(self._post(s, self.programs[slot][0], p.gens[0]), slot, p)

    def _posted(self, s: State, slot: int, p: Process) -> State:
        if p.depth > 1:
            return self._go(s, slot, p._replace(depth=p.depth - 1), "r1")
        return self._operation_over(s, slot, p)

    # ----- RECOVER

    def _recover(self, s: State, slot: int, p: Process, k: int, back: str) -> State:
        return self._go(s, slot, p._replace(calls=(*p.calls, Call(k, back=back))), "q")

    def _returned(self, s: State, slot: int, p: Process) -> State:
        """The innermost RECOVER is over; the outermost frees R."""
        back, calls = p.calls[-1].back, p.calls[:-1]
        if not calls:
            s = s._replace(recoverer=NONE)
        return self._go(s, slot, p._replace(calls=calls), back, p.calls[-1].k + 1 if back == "x3" else 0)

    def _q(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if s.recoverer == NONE and not p.buffer:
            yield "R", self._go(s._replace(recoverer=slot), slot, p, "q0")

    def _q0(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        call = p.calls[-1]
        m = s.mutexes[call.k]
        p = p._replace(calls=(*p.calls[:-1], call._replace(gen=stable(m.gen))))
        if m.gen % 2 == 0 and m.tokens[m.gen // 2]:
            yield "fine", self._returned(s, slot, p)
        else:
            yield "suspect", self._go(s, slot, p, "q1")

    def _q1(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        if any(claim[k] == gen and q.locked for claim, q in zip(s.claims, s.processes, strict=True)):
            yield "busy", self._returned(s, slot, p)
        elif self.mutant == "post_on_behalf" and not any(claim[k] == gen for claim in s.claims):
            yield "behalf", self._returned(self._post(s, k, gen), slot, p)
        else:
            yield "q1", self._go(s, slot, p, "q2")

    def _q2(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        spare = gen // 2 + 1
        if spare > self.generations:  # stands for ENOSPC, too: whatever is odd stays odd
            yield "nospare", self._go(s._replace(recoverer=NONE), slot, p._replace(calls=()), p.calls[0].back)
        else:
            tokens = put(s.mutexes[k].tokens, spare, 2 if self.mutant == "spare_two" else 1)
            yield "spare", self._go(self._mutex(s, k, tokens=tokens), slot, p, "q3")

    def _q3(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        yield "revoke", self._go(self._mutex(s, k, gen=gen + 1), slot, p, "q4")

    def _q4(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if self.fence == "membarrier":
            for other in range(len(s.processes)):
                while s.processes[other].buffer:
                    s = self._drained(s, other)
        yield "barrier", self._go(s, slot, p, "q5")

    def _q5(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        call = p.calls[-1]
        if p.at == len(s.processes):
            nobody = "q7e" if self.mutant == "undo_for_nobody" else "q8"
            yield "scanned", self._go(s, slot, p, "q6" if call.dead != NONE else nobody)
            return
        if s.claims[p.at][call.k] == call.gen:
            p = p._replace(calls=(*p.calls[:-1], call._replace(dead=p.at)))
        yield f"scan{p.at}@", self._go(s, slot, p, "q5", p.at + 1)

    def _q6(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen, dead, _ = p.calls[-1]
        if s.processes[dead].locked and self.mutant != "undo_the_living":
            yield "abort", self._returned(self._mutex(s, k, gen=gen), slot, p)
        elif k and self._claims_zero(s, dead) and self.mutant != "inner_first":
            yield "outer", self._go(s, slot, p._replace(calls=(*p.calls, Call(0, back="q7"))), "q0")
        else:
            yield "dead", self._go(s, slot, p, "q7")

    def _claims_zero(self, s: State, slot: int) -> bool:
        """Does it claim m[0], too? At gen-1, if another recoverer died while it revoked m[0]."""
        gen = s.mutexes[0].gen
        return s.claims[slot][0] == (gen if self.mutant == "outer_exact" else stable(gen))

    def _q7(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, _, dead, _ = p.calls[-1]
        if self.mutant == "claim_before_undo" and s.claims[dead][k] != NONE:
            yield "clear", self._go(self._claim(s, dead, k, NONE), slot, p, "q7")
        else:
            yield from self._undo(s, slot, p, k, "q7c")

    def _q7e(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        """Only in the variant that undoes although nobody claims."""
        yield from self._undo(s, slot, p, p.calls[-1].k, "q8")

    def _q7c(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, _, dead, _ = p.calls[-1]
        yield "clear", self._go(self._claim(s, dead, k, NONE), slot, p, "q8")

    def _undo(self, s: State, slot: int, p: Process, k: int, then: str) -> Iterator[tuple[str, State]]:
        """Old values in reverse order, then n=0. `at` counts what is done; a second run begins at the beginning."""
        m = s.mutexes[k]
        count = p.at // 8 if self.mutant == "count_before_undo" and p.at >= 8 else m.n
        done = p.at % 8
        if self.mutant == "count_before_undo" and m.n:
            yield "n=0", self._go(self._mutex(s, k, n=0), slot, p, p.pc, 8 * m.n)
        elif done < count:
            word, old = m.entries[done if self.mutant == "undo_forward" else count - 1 - done]
            s = s._replace(memory=put(s.memory, word, old))
            yield f"undo{word}@", self._go(s, slot, p, p.pc, p.at + 1)
        else:
            yield "n=0", self._go(self._mutex(s, k, n=0), slot, p, then)

    def _q8(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        s = self._mutex(s, k, gen=gen + 2)
        yield "commit", self._go(s, slot, p, "q9") if self.wake else self._returned(s, slot, p)

    def _q9(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k, gen = p.calls[-1][:2]
        yield "wake", self._returned(self._post(s, k, gen, len(s.processes)), slot, p)

    # ----- the handler of an exception

    def _x0(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        if s.recoverer == NONE and not p.buffer:
            yield "xR", self._go(s._replace(recoverer=slot), slot, p, "x2" if self.mutant == "ax_no_rollback" else "x1")

    def _x1(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        home = self.programs[slot][0]
        gen = s.mutexes[home].gen
        if s.claims[slot][home] == (gen if self.mutant == "ax_exact" else stable(gen)):
            yield from self._undo(s, slot, p, home, "x2")
        else:
            yield "inert", self._go(s, slot, p, "x2")

    def _x2(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        """Unclaim, the inner one first, unless the generation is odd and a current claim was not seen (the mutant)."""
        for k in reversed(self.programs[slot]):
            current = s.claims[slot][k] == stable(s.mutexes[k].gen) != s.mutexes[k].gen
            if s.claims[slot][k] != NONE and not (self.mutant == "ax_exact" and current):
                yield "xunclaim", self._go(self._claim(s, slot, k, NONE), slot, p, "x2")
                return
        yield "xfree", self._go(s._replace(recoverer=NONE), slot, p, "x3")

    def _x3(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        k = next((k for k in self.programs[slot] if k >= p.at), None)
        if k is None:
            yield "xdone", self._operation_over(s, slot, p)
        else:
            yield "xrecover", self._recover(s, slot, p, k, "x3")

    # ----- a new tenant

    def _attach(self, s: State, slot: int) -> State:
        pc = {"attach_blind": "t2", "attach_lock_first": "t1"}.get(self.mutant, "t1")
        tenant = Process(pc, 1, locked=self.mutant == "attach_lock_first")
        return s._replace(processes=put(s.processes, slot, tenant), tenants=s.tenants - 1)

    def _t1(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        for k, claim in enumerate(s.claims[slot]):
            gen = s.mutexes[k].gen
            if claim == (gen if self.mutant == "attach_exact" else stable(gen)):
                yield "trecover", self._recover(s, slot, p, k, "t1")
                return
            if claim != NONE:
                if s.recoverer == NONE:
                    yield "tclear", self._claim(s, slot, k, NONE)
                return
        yield "clean", self._go(s, slot, p, "t2")

    def _t2(self, s: State, slot: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "lockbyte", self._go(s, slot, p._replace(locked=True), "a1")


# ---------------------------------------------------------------------------------------------------------------------
# What is run.

OUTER, INNER, BOTH = (0,), (1,), (0, 1)

CONFIGS: dict[str, Model] = {
    "one2": Generations((INNER, INNER), loops=2, kills=1, batches=2),
    "one2wake": Generations((INNER, INNER), kills=2, wake=True, generations=3),
    "one2raise": Generations((INNER, INNER), loops=2, exceptions=1, kills=1),
    "one2raise2": Generations((INNER, INNER), exceptions=2, kills=1, fence="membarrier"),
    "one2attach": Generations((INNER, INNER), kills=2, tenants=1, generations=3),
    "nested2": Generations((BOTH, INNER), kills=2),
    "nested2raise": Generations((BOTH, INNER), kills=1, exceptions=1),
    "nested2outer": Generations((BOTH, BOTH), kills=1, outer_first=True),
    "nested2attach": Generations((BOTH, INNER), kills=2, tenants=1),
    "one3": Generations((INNER, INNER, INNER), kills=2),
    "one3membarrier": Generations((INNER, INNER, INNER), kills=2, fence="membarrier"),
    "one3attach": Generations((INNER, INNER, INNER), kills=1, tenants=1),
    "nested3": Generations((BOTH, INNER, OUTER), kills=1, generations=1),
    "nested3kill2": Generations((BOTH, INNER, INNER), kills=2, generations=1),
    # Undoing although nobody claims is no error here: an open journal always has its claim, so there is nothing to undo.
    "undo_for_nobody": Generations((INNER,) * 3, kills=2, generations=1, mutant="undo_for_nobody"),
}
QUICK = ("one2", "one2raise", "one2attach", "nested2", "nested2raise")


def _mutant(breaks: str, config: Generations) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


_PAIR = Generations((INNER, INNER), kills=1, generations=1)
_PAIR2 = replace(_PAIR, kills=2, generations=2)
_RAISE = Generations((INNER, INNER), exceptions=1, generations=1)
_NEST = Generations((BOTH, INNER), kills=1, generations=1)
_TENANT = Generations((INNER, INNER), kills=1, tenants=1, generations=2)

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
    "post_retried": _mutant("an exception in REL makes it post again", _RAISE),
    "late_claim_stays": _mutant("whoever can't have R in time goes away and leaves a claim", replace(_RAISE, kills=1)),
    "inner_first": _mutant("RECOVER(k) does not look at the dead one's m[0]", _NEST),
    "outer_exact": _mutant(
        "RECOVER(k) takes an odd gen[0] for no claim of m[0]", replace(_NEST, programs=(BOTH, INNER, OUTER), kills=2)
    ),
    "two_journals": _mutant("a section under m[0] journals words of domain k into J[k]", _NEST),
    "attach_blind": _mutant("a new tenant takes over current claims", _TENANT),
    "attach_exact": _mutant("a new tenant takes an odd gen for a claim that is inert", replace(_TENANT, kills=2)),
    "attach_lock_first": _mutant("a new tenant locks its byte before the claims are clean", _TENANT),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
