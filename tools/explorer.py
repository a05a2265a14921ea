"""Explicit-state model checking: what all models share. It knows nothing of mutexes, locks or files.

A model is an initial state, the steps that can be taken from a state, and what is wrong with a state or a step. `Explorer`
visits every state that can be reached, breadth first, so that the way to a fault is a shortest one, and says

    a fault      of a state, or of a step (`ViolationError`)
    deadlock     a state that is no end and has no step
    no fair way  a state from which fair steps alone, those that nobody can keep from happening, do not reach an end

A mutant is a model with one error seeded. It must be caught, and its repaired twin, the same model without the error, must
pass: only then the model shows that what the error breaks is needed.

`main` is the command line of every model:

    python tools/model_X.py            every configuration
    python tools/model_X.py quick      the small ones
    python tools/model_X.py mutants    each seeded error must be caught, and its repaired twin must pass
    python tools/model_X.py NAME ...   some configurations or mutants

The exit status is 1 on a violation or on a mutant that survives, 2 on a name that there is not.
"""

from __future__ import annotations

import gc
import sys
import time
from array import array
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

FAIR, UNFAIR = True, False  # an unfair step (a kill, an exception, a time-out) is never needed to reach the end

Step = tuple[str, bool, Any]  # label, fairness, successor
Item = TypeVar("Item")


class ViolationError(Exception):
    """A step did something that is wrong in itself, whatever state it leads to."""


class Model(Protocol):
    """What the explorer needs to know."""

    def initial(self) -> Hashable: ...
    def steps(self, state: Any) -> Iterator[Step]: ...
    def fault(self, state: Any) -> str | None: ...
    def ended(self, state: Any) -> bool: ...
    def end_fault(self, state: Any) -> str | None: ...


@dataclass(frozen=True)
class Outcome:
    """What one exploration found; `fault` is None when every state is sound."""

    states: int
    edges: int
    seconds: float
    fault: str | None = None
    trace: str = ""


def put(items: tuple[Item, ...], index: int, item: Item) -> tuple[Item, ...]:
    """The tuple with one item exchanged."""
    return (*items[:index], item, *items[index + 1 :])


class Explorer:
    """Breadth-first search forward for safety, then backward from the ends for liveness."""

    def __init__(self, model: Model) -> None:
        self.model = model
        first = model.initial()
        self.index: dict[Hashable, int] = {first: 0}
        self.states: list[Hashable] = [first]
        self.parent = array("i", [-1])
        self.sources, self.targets = array("I"), array("I")  # the fair edges
        self.ends: list[int] = []
        self.edges = 0

    def run(self) -> Outcome:
        """Explore everything; stop at the first fault."""
        start, collecting = time.perf_counter(), gc.isenabled()
        gc.disable()  # millions of tuples, and not a cycle among them
        try:
            found = self._forward() or self._backward()
        finally:
            if collecting:
                gc.enable()
        fault, where = found or (None, 0)
        trace = self._trace(where) if fault else ""
        return Outcome(len(self.states), self.edges, time.perf_counter() - start, fault, trace)

    def _forward(self) -> tuple[str, int] | None:
        number = 0
        while number < len(self.states):  # self.states grows meanwhile: it is the queue, too
            try:
                found = self._expand(number)
            except ViolationError as error:
                return str(error), number
            if found:
                return found
            number += 1
        return None

    def _expand(self, number: int) -> tuple[str, int] | None:
        state, moved = self.states[number], False
        for _, fair, successor in self.model.steps(state):
            moved = True
            self.edges += 1
            target = self.index.get(successor)
            if target is None:
                target = self.index[successor] = len(self.states)
                self.states.append(successor)
                self.parent.append(number)
                fault = self.model.fault(successor)
                if fault:
                    return fault, target
            if fair:
                self.sources.append(number)
                self.targets.append(target)
        if self.model.ended(state):
            self.ends.append(number)
            fault = self.model.end_fault(state)
            return (fault, number) if fault else None
        return None if moved else ("deadlock", number)

    def _backward(self) -> tuple[str, int] | None:
        """The first state from which fair steps do not reach an end."""
        count = len(self.states)
        first = array("I", bytes(4 * (count + 1)))  # predecessors of t: into[first[t] : first[t + 1]], a counting sort
        for target in self.targets:
            first[target + 1] += 1
        for number in range(count):
            first[number + 1] += first[number]
        place, into = array("I", first), array("I", bytes(4 * len(self.sources)))
        for source, target in zip(self.sources, self.targets, strict=True):
            into[place[target]] = source
            place[target] += 1
        reached, todo = bytearray(count), list(self.ends)
        for number in todo:
            reached[number] = 1
        while todo:
            target = todo.pop()
            for source in into[first[target] : first[target + 1]]:
                if not reached[source]:
                    reached[source] = 1
                    todo.append(source)
        lost = reached.find(0)
        return ("no fair way to the end", lost) if lost >= 0 else None

    def _trace(self, number: int) -> str:
        path: list[str] = []
        while self.parent[number] >= 0:
            state, number = self.states[number], self.parent[number]
            path.append(next(label for label, _, z in self.model.steps(self.states[number]) if z == state))
        return " ".join(reversed(path))


@dataclass(frozen=True)
class Mutant:
    """A seeded error: what is broken, and the smallest model that shows it."""

    breaks: str
    model: Callable[[str], Model]  # called with the mutant's name, or with "" for the repaired twin

    def run(self, name: str) -> tuple[Outcome, Outcome]:
        """What the repaired twin comes to, and the mutant."""
        return _twin(self.model("")), Explorer(self.model(name)).run()


@cache
def _twin(model: Model) -> Outcome:
    """Many mutants have the same twin."""
    return Explorer(model).run()


# ---- the command line


def main(arguments: list[str], configs: dict[str, Model], quick: tuple[str, ...], mutants: dict[str, Mutant]) -> int:
    """Run what the arguments name, a line for each, and the sum."""
    unknown = set(arguments) - {"quick", "mutants", *configs, *mutants}
    if unknown:
        print(f"unknown: {' '.join(sorted(unknown))}; known: quick mutants {' '.join([*configs, *mutants])}", file=sys.stderr)
        return 2
    names = [*quick] if "quick" in arguments else [name for name in configs if name in arguments or not arguments]
    seeded = [*mutants] if "mutants" in arguments else [name for name in mutants if name in arguments]
    runs = [_explored(name, configs[name]) for name in names] + [_caught(name, mutants[name]) for name in seeded]
    passed = sum(good for good, _ in runs)
    print(f"{'total':<22} {sum(states for _, states in runs):>9} states, {passed} of {len(runs)} as they should be")
    return 0 if passed == len(runs) else 1


def _explored(name: str, model: Model) -> tuple[bool, int]:
    """Print one line; whether the configuration passed, and its states."""
    outcome = Explorer(model).run()
    verdict = f"VIOLATION: {outcome.fault} | {outcome.trace}" if outcome.fault else "ok"
    print(f"{name:<22} {outcome.states:>9} states {outcome.edges:>9} edges {outcome.seconds:>5.1f} s  {verdict}", flush=True)
    return outcome.fault is None, outcome.states


def _caught(name: str, mutant: Mutant) -> tuple[bool, int]:
    """Print one line; whether the mutant was caught and its repaired twin passed, and the states of both."""
    twin, bad = mutant.run(name)
    verdict = bad.fault or "MISSED"
    if twin.fault:
        verdict = f"TWIN FAILS: {twin.fault} | {twin.trace}"
    print(f"{name:<22} {bad.states:>9} states, twin {twin.states:>7}  {verdict} [{mutant.breaks}]", flush=True)
    return bad.fault is not None and twin.fault is None, bad.states + twin.states
