"""Model of light holds: readers who take and leave a file's lock without the mutex, against all who want readers out.

One step is one store, one load, one fence, or what a mutex makes indivisible. Every store goes into the store buffer of its
processor (x86: first in, first out, a load sees one's own) and from there into memory at any later moment; a fence, and
entering or leaving the mutex, waits until the buffer is empty. The mutex is assumed right (model_mutex.py), with its journal:
who enters after a death finds the last transaction undone if it was not committed. There is one file:

    L       its lock word: readers counted, WRITER, MORE, LIGHT    queue   of those who wait; in the mutex
    gen     its generation                                         rec     of each reader: its word in the table of light holds

and these are what the processes do, once or *loops* times:

    reader    tries to hold lightly if MORE and LIGHT stand; else takes the mutex, waits if somebody writes or waits
    writer    settles; holds, or waits; a *trying* one gives up instead
    remover   settles; makes the node another file's, one that is read again and again, or refuses

Settling: MORE cleared, a fence, a look at every record, LIGHT cleared if none holds lightly. Who leaves pumps: grants what
can be granted from the head of the queue.

What is checked: a writer holds alone, a reader holds only a file that was not removed since; everybody comes to an end without
anybody looking by himself, unless somebody was killed: then whoever waits looks, and frees what the dead one held.

What is not: several files, threads of one process, exceptions (what they leave behind is what a death leaves, until the
owner frees it), the namespace word, which is as the generation; other mutexes than m[k]; processors that are not x86's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from explorer import FAIR, UNFAIR, Model, Mutant, Step, main, put

NOBODY = -1
FIRST, REUSED = 1, 3  # generations of the node: of the file that everybody wants, of another one
READER, WRITER, TRYING, REMOVER = "reader", "writer", "trying", "remover"
HOLDS, OVER, REFUSED, KILLED = "holds", "over", "refused", "killed"  # places in the program


class Lock(NamedTuple):
    """A lock word."""

    readers: int = 0
    writer: bool = False
    more: bool = False
    light: bool = False

    @property
    def come(self) -> bool:
        return self.more and self.light


class Process(NamedTuple):
    """Where it is, what it is in the mutex for, its store buffer, and how often it has yet to begin."""

    at: str = "start"
    then: str = ""  # where it goes on after settling and pumping
    buffer: tuple[tuple[str, object], ...] = ()
    looked: int = 0  # records it has looked at
    loops: int = 1
    lightly: bool = False  # its record says so
    counted: bool = False  # the lock word counts it
    granted: bool = False


class State(NamedTuple):
    """Everything. undo: the lock word before the open transaction."""

    lock: Lock
    gen: int
    rec: tuple[int, ...]
    queue: tuple[int, ...]
    mutex: int
    undo: Lock | None
    processes: tuple[Process, ...]
    kills: int


@dataclass(frozen=True)
class Light(Model):
    """programs: what each process does. warm: light holds are to be had from the beginning."""

    programs: tuple[str, ...]
    kills: int = 0
    loops: int = 1
    warm: bool = True
    mutant: str = ""

    def initial(self) -> State:
        lock = Lock(more=self.warm, light=self.warm)
        processes = tuple(Process(loops=self.loops) for _ in self.programs)
        return State(lock, FIRST, (0,) * len(self.programs), (), NOBODY, None, processes, self.kills)

    # ---- the explorer's questions

    def ended(self, s: State) -> bool:
        return all(p.at in (OVER, KILLED) and not p.buffer for p in s.processes)

    def end_fault(self, s: State) -> str | None:
        return None

    def fault(self, s: State) -> str | None:
        holders = [i for i, p in enumerate(s.processes) if p.at == HOLDS]
        writers = [i for i in holders if self.programs[i] != READER]
        if writers and len(holders) > 1:
            return "a writer does not hold alone"
        if holders and s.gen == REUSED:
            return "a file was removed under whoever holds it"
        return None

    def steps(self, s: State) -> Iterator[Step]:
        for i, p in enumerate(s.processes):
            if p.buffer:
                yield f"{i}:drain", FAIR, self._drain(s, i)
            if p.at in (OVER, KILLED):
                continue
            if s.kills and self.programs[i] != REMOVER:
                yield f"{i}:KILL", UNFAIR, self._killed(s, i)
            for label, successor in self._program(s, i, p):
                yield f"{i}:{label}", FAIR, successor

    # ---- memory

    def _drain(self, s: State, i: int) -> State:
        p = s.processes[i]
        (word, value), rest = p.buffer[0], p.buffer[1:]
        s = s._replace(processes=put(s.processes, i, p._replace(buffer=rest)))
        if word == "L":
            return s._replace(lock=value)
        return s._replace(rec=put(s.rec, int(word), int(value)))

    def _store(self, s: State, i: int, word: str, value: object) -> State:
        p = s.processes[i]
        return s._replace(processes=put(s.processes, i, p._replace(buffer=(*p.buffer, (word, value)))))

    def _lock(self, s: State, i: int) -> Lock:
        """The lock word as this process loads it."""
        own = [value for word, value in s.processes[i].buffer if word == "L"]
        return own[-1] if own else s.lock  # type: ignore[return-value]

    def _go(self, s: State, i: int, at: str, **changes: object) -> State:
        p = s.processes[i]._replace(at=at, **changes)
        return s._replace(processes=put(s.processes, i, p))

    def _killed(self, s: State, i: int) -> State:
        """What it had stored comes to memory; what it held stands until somebody frees it."""
        while s.processes[i].buffer:
            s = self._drain(s, i)
        s = self._go(s, i, KILLED)
        if s.mutex == i:
            s = s._replace(mutex=NOBODY)
        return s._replace(kills=s.kills - 1)

    def _undone(self, s: State) -> State:
        """Whoever enters the mutex undoes what a dead one has begun, and frees what dead ones held and waited for."""
        if s.undo is not None:
            s = s._replace(lock=s.undo, undo=None)
        for i, p in enumerate(s.processes):
            if p.at == KILLED:
                s = s._replace(rec=put(s.rec, i, 0), queue=tuple(j for j in s.queue if j != i))
                if p.counted:
                    s = self._go(s._replace(lock=self._given(s.lock, i)), i, KILLED, counted=False)
        return s

    # ---- programs

    def _program(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        yield from getattr(self, "_" + p.at)(s, i, p)

    def _start(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if self.programs[i] == READER and self._lock(s, i).come:
            yield "look", self._go(s, i, "say")
        else:
            yield "look", self._go(s, i, "enter", then="ask")

    # A reader that would hold lightly.

    def _say(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        at = {"no_fence": "check", "no_check": HOLDS}.get(self.mutant, "fence")
        yield "say", self._go(self._store(s, i, str(i), FIRST), i, at, lightly=True)

    def _fence(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if not p.buffer:
            yield "fence", self._go(s, i, "check")

    def _check(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if not self._lock(s, i).come:
            yield "late", self._go(s, i, "enter", then="ask")
        else:
            yield "may", self._go(s, i, HOLDS if self.mutant == "no_generation" else "same")

    def _same(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "same", self._go(s, i, HOLDS) if s.gen == FIRST else self._go(s, i, "enter", then="ask")

    def _holds(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "end", self._go(s, i, "leave", then="over") if p.lightly else self._go(s, i, "enter", then="give")

    def _leave(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if self._lock(s, i).come:
            at = "left" if self.mutant == "leave_no_fence" else "leave2"
            yield "unsay", self._go(self._store(s, i, str(i), 0), i, at)
        else:
            yield "wanted", self._go(s, i, "enter", then="free, " + p.then)

    def _leave2(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if not p.buffer:
            yield "fence", self._go(s, i, "left")

    def _left(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if self._lock(s, i).come or self.mutant == "leave_blind":
            yield "gone", self._after(s, i, p.then)
        else:
            yield "wanted", self._go(s, i, "enter", then="free, " + p.then)

    # In the mutex.

    def _enter(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if s.mutex == NOBODY and not p.buffer:
            s = self._undone(s)._replace(mutex=i)
            what, _, then = p.then.partition(", ")
            if what == "ask":
                yield "enter", self._asks(s, i)
            elif what == "give":
                yield "enter", self._gives(s, i)
            else:
                s = self._store(s, i, str(i), 0) if what == "free" else s
                yield "enter", self._settles(s, i, "pump, " + then) if s.queue else self._leaves(s, i, then)

    def _settles(self, s: State, i: int, then: str) -> State:
        if not self._lock(s, i).light:
            return self._go(s, i, "settled", then=then, looked=-1)
        return self._go(s, i, "settle", then=then, looked=0)

    def _settle(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        lock = self._lock(s, i)
        if self.mutant != "settle_keeps_more":
            s = self._store(s, i, "L", lock._replace(more=False))
        yield "close", self._go(s, i, "search" if self.mutant == "settle_no_fence" else "settle2")

    def _settle2(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if not p.buffer:
            yield "fence", self._go(s, i, "search")

    def _search(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.looked == len(self.programs):
            lock = self._lock(s, i)._replace(light=False)
            yield "none", self._go(self._store(s, i, "L", lock), i, "settled")
        elif s.rec[p.looked] == s.gen and not (p.looked == i and p.buffer):
            yield "one", self._go(s, i, "settled")
        else:
            yield "not", self._go(s, i, "search", looked=p.looked + 1)

    def _settled(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        what, _, then = p.then.partition(", ")
        if what == "pump":
            yield "pump", self._leaves(self._pumped(s, i), i, then)
        else:
            yield "decide", self._decides(s, i)

    def _asks(self, s: State, i: int) -> State:
        lock, lightly = self._lock(s, i), s.processes[i].lightly
        if lightly and s.gen == FIRST and lock.light:
            return self._leaves(s, i, HOLDS)
        if lightly:
            s = self._go(self._store(s, i, str(i), 0), i, "", lightly=False)
        if s.gen != FIRST:
            return self._leaves(s, i, "over")
        if self.programs[i] != READER:
            return self._settles(s, i, "decide")
        if lock.writer or s.queue:
            return self._leaves(s._replace(queue=(*s.queue, i)), i, "wait")
        new = lock._replace(readers=lock.readers + 1)
        if self.mutant == "light_in_transaction":
            new = new._replace(more=True, light=True)
        return self._go(self._store(s._replace(undo=lock), i, "L", new), i, "counted")

    def _counted(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "commit", self._go(s._replace(undo=None), i, "lit", counted=True)

    def _lit(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "light", self._leaves(self._store(s, i, "L", self._lock(s, i)._replace(more=True, light=True)), i, HOLDS)

    def _busy(self, lock: Lock) -> bool:
        return bool(lock.readers or lock.writer or (lock.light and self.mutant != "light_is_free"))

    def _decides(self, s: State, i: int) -> State:
        lock, program = self._lock(s, i), self.programs[i]
        if program == REMOVER:
            if not self._busy(lock) and not s.queue:
                s = self._store(s._replace(gen=REUSED), i, "L", Lock(more=True, light=True))
            return self._leaves(s, i, "over")
        if not self._busy(lock) and not s.queue:
            return self._leaves(self._go(self._store(s, i, "L", lock._replace(writer=True)), i, "", counted=True), i, HOLDS)
        if program == TRYING:
            return self._leaves(s, i, "over")
        return self._leaves(s._replace(queue=(*s.queue, i)), i, "wait")

    def _given(self, lock: Lock, i: int) -> Lock:
        """The lock word without this one."""
        return (
            lock._replace(readers=lock.readers - 1) if self.programs[i] == READER else lock._replace(writer=False, more=False)
        )

    def _gives(self, s: State, i: int) -> State:
        s = self._go(self._store(s, i, "L", self._given(self._lock(s, i), i)), i, "", counted=False, granted=False)
        return self._settles(s, i, "pump, over") if s.queue else self._leaves(s, i, "over")

    def _pumped(self, s: State, i: int) -> State:
        """Grant what can be granted; each who is granted it holds it from now on."""
        while s.queue:
            head, lock = s.queue[0], self._lock(s, i)
            reads = self.programs[head] == READER
            if lock.writer or (not reads and self._busy(lock)):
                break
            new = lock._replace(readers=lock.readers + 1) if reads else lock._replace(writer=True)
            s = self._store(s._replace(queue=s.queue[1:]), i, "L", new)
            s = self._go(s, head, s.processes[head].at, counted=True, granted=True)
        return s

    def _leaves(self, s: State, i: int, then: str) -> State:
        return self._go(s, i, "exit", then=then)

    def _exit(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        if not p.buffer:
            s = s._replace(mutex=NOBODY)
            yield "exit", self._after(s, i, p.then)

    def _after(self, s: State, i: int, then: str) -> State:
        p = s.processes[i]
        if then == "over":
            return self._go(s, i, "start" if p.loops > 1 else OVER, then="", loops=p.loops - 1, lightly=False, looked=0)
        return self._go(s, i, then, then="", looked=0)

    # Waiting.

    def _wait(self, s: State, i: int, p: Process) -> Iterator[tuple[str, State]]:
        """Until it is granted; when somebody was killed it looks by itself."""
        if p.granted:
            yield "has it", self._go(s, i, HOLDS)
        elif any(each.at == KILLED for each in s.processes):
            yield "slice", self._go(s, i, "enter", then="slice, wait")


# ---------------------------------------------------------------------------------------------------------------------
# What is run.

CONFIGS: dict[str, Model] = {
    "readers2writer": Light((READER, READER, WRITER)),
    "readers2cold": Light((READER, READER, WRITER), loops=2, warm=False),
    "reader2loops": Light((READER, WRITER), loops=3),
    "readerwriters2": Light((READER, WRITER, WRITER), loops=2),
    "readertrying": Light((READER, TRYING, WRITER), loops=2),
    "readersremover": Light((READER, READER, REMOVER), loops=2),
    "writerremover": Light((READER, WRITER, REMOVER), loops=2),
    "kill2": Light((READER, WRITER), kills=1, loops=2),
    "kill3": Light((READER, READER, WRITER), kills=2),
    "kill3cold": Light((READER, READER, WRITER), kills=1, warm=False),
    "kill3remover": Light((READER, WRITER, REMOVER), kills=2, loops=2),
    "kill4": Light((READER, READER, WRITER, WRITER), kills=1),
}
QUICK = ("readers2writer", "reader2loops", "readersremover", "kill2", "kill3")


def _mutant(breaks: str, config: Light) -> Mutant:
    return Mutant(breaks, lambda name: replace(config, mutant=name))


_PAIR = Light((READER, WRITER))
MUTANTS: dict[str, Mutant] = {
    "no_fence": _mutant("the reader's record is still in the store buffer when it looks at the lock word", _PAIR),
    "no_check": _mutant("the reader does not look again after it has stored its record", _PAIR),
    "no_generation": _mutant("the reader does not compare the generation", replace(_PAIR, programs=(READER, REMOVER))),
    "settle_no_fence": _mutant("MORE is still in the store buffer when the records are looked at", _PAIR),
    "settle_keeps_more": _mutant("MORE stands while the records are looked at", _PAIR),
    "light_is_free": _mutant("LIGHT does not make the lock word busy", _PAIR),
    "leave_no_fence": _mutant("the record's end is still in the store buffer when the leaver looks who waits", _PAIR),
    "leave_blind": _mutant("the leaver does not look again who waits", _PAIR),
    "light_in_transaction": _mutant(
        "LIGHT comes with the transaction, and goes with its undoing",
        Light((READER, READER, WRITER), kills=1, warm=False),
    ),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], CONFIGS, QUICK, MUTANTS))
