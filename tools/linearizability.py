"""Whether a history of concurrent calls could have happened one call at a time.

A history is linearizable if each call can be given one moment between its beginning and its end, so that, done in the order
of these moments, every call gives the result that it gave. What the calls do one at a time is the business of a model
(model_files.py); this file only looks for the moments.

The search is that of Wing and Gong: take away a call that nothing else must precede, do it to the state, and go on with the
rest. What keeps it short: a pair (calls done, state) is looked at once (Lowe); the call that ends first is tried first, so
that calls are done as late as they can be (Lowe's just-in-time linearization); a call that changes nothing and may be done
now is done now, without trying others before it, since putting it first in any order that works gives one that works.

Histories of processes that are killed need three things more. A call in which its process died may have had its effect or
not: its step need not be done. But nothing of a process happens after its death, which is a step, too: the steps that it
`ends` can not come after it. And a call that does two things, one after the other, is two steps, the second `after` the first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

#: So many configurations of one history are looked at before the search gives up.
MOST = 50_000


class Step(NamedTuple):
    """One thing that happened at one moment. Times are any numbers; a step that need not be done has no end."""

    call: int
    end: float
    what: Any
    must: bool = True
    after: int | None = None  # the step that comes before it
    ends: tuple[int, ...] = ()  # the steps that can not come after it


class Verdict(NamedTuple):
    """What a search found."""

    order: list[int] | None  # numbers of steps in an order that works; None if there is none
    longest: list[int]  # the longest order that works as far as it goes
    tried: int  # configurations


class SearchTooLongError(Exception):
    """Neither an order was found, nor that there is none."""


#: What a step does to a state: the state after it, the same object if nothing changes; None if it can not be done there.
Apply = Callable[[Any, Any], Hashable | None]


def linearize(steps: Sequence[Step], state: Hashable, apply: Apply, *, most: int = MOST) -> Verdict:
    """Look for an order of the steps from that state on. SearchTooLongError after *most* configurations."""
    return _Search(steps, apply, most).run(state)


class _Node(NamedTuple):
    """A configuration, and how it was come to. ``done`` has a bit for each step that is done, or can not be any more."""

    done: int
    state: Any
    trail: tuple[int, Any] | None  # the last step and the trail before it
    length: int
    ended: int  # the steps up to here, in the order of their ends, are done
    begun: int  # the steps up to here, in the order of their calls, are done


class _Search:
    def __init__(self, steps: Sequence[Step], apply: Apply, most: int) -> None:
        self.steps = steps
        self.apply = apply
        self.most = most
        self.by_call = sorted(range(len(steps)), key=lambda number: steps[number].call)
        self.by_end = sorted((n for n, step in enumerate(steps) if step.must), key=lambda number: steps[number].end)

    def run(self, state: Hashable) -> Verdict:
        start = _Node(0, state, None, 0, 0, 0)
        stack, seen, longest = [start], {(0, state)}, start
        while stack:
            node = stack.pop()
            node, moves = self._advance(node)
            if node.length > longest.length:
                longest = node
            if node.ended == len(self.by_end):
                return Verdict(_path(node), _path(node), len(seen))
            for _, number, following in sorted(moves, key=lambda move: move[0], reverse=True):
                reached = self._done(node, number, following)
                key = reached.done, following
                if key not in seen:
                    seen.add(key)
                    stack.append(reached)
            if len(seen) > self.most:
                raise SearchTooLongError(f"{len(seen)} configurations of {len(self.steps)} steps")
        return Verdict(None, _path(longest), len(seen))

    def _advance(self, node: _Node) -> tuple[_Node, list[tuple[float, int, Any]]]:
        """Do all that may be done without a choice; then the choices: (end, step, state after it)."""
        while True:
            node = self._skip(node)
            moves: list[tuple[float, int, Any]] = []
            free = None
            for number in self._candidates(node):
                step = self.steps[number]
                following = self.apply(node.state, step.what)
                if following is None:
                    continue
                if following is not node.state or step.ends:
                    moves.append((step.end, number, following))
                elif step.must:
                    free = number
                    break
            if free is None:
                return node, moves
            node = self._done(node, free, node.state)

    def _skip(self, node: _Node) -> _Node:
        done, ended, begun = node.done, node.ended, node.begun
        while ended < len(self.by_end) and done >> self.by_end[ended] & 1:
            ended += 1
        while begun < len(self.by_call) and done >> self.by_call[begun] & 1:
            begun += 1
        return node._replace(ended=ended, begun=begun)

    def _candidates(self, node: _Node) -> Iterator[int]:
        """Steps that began before any that is not done had ended."""
        if node.ended == len(self.by_end):
            return
        horizon = self.steps[self.by_end[node.ended]].end
        for place in range(node.begun, len(self.by_call)):
            number = self.by_call[place]
            step = self.steps[number]
            if step.call > horizon:
                return
            if not node.done >> number & 1 and (step.after is None or node.done >> step.after & 1):
                yield number

    def _done(self, node: _Node, number: int, state: Any) -> _Node:
        done = node.done | 1 << number
        for other in self.steps[number].ends:
            done |= 1 << other
        return _Node(done, state, (number, node.trail), node.length + 1, node.ended, node.begun)


def _path(node: _Node) -> list[int]:
    order, trail = [], node.trail
    while trail is not None:
        number, trail = trail
        order.append(number)
    return order[::-1]


# ---- for people

SHOWN = 25  # steps before the one that fits nowhere


def explain(steps: Sequence[Step], verdict: Verdict, state: Any, apply: Apply) -> str:
    """How far the best order comes: its last steps, the state then, and what could have come next and does not fit.

    Times in microseconds from the first call.
    """
    for number in verdict.longest:
        state = apply(state, steps[number].what)
    rest = [number for number in range(len(steps)) if number not in set(verdict.longest)]
    horizon = min(steps[number].end for number in rest if steps[number].must)
    rest = sorted((number for number in rest if steps[number].call <= horizon), key=lambda number: steps[number].end)
    start = min(step.call for step in steps)
    return "\n".join(
        (
            f"{len(verdict.longest)} of {len(steps)} steps have an order; the last of them:",
            *(_line(steps[number], start) for number in verdict.longest[-SHOWN:]),
            "then:",
            f"  {state}",
            "and of these each fits nowhere, or leads nowhere:",
            *(_line(steps[number], start) for number in rest),
        )
    )


def _line(step: Step, start: int) -> str:
    end = f"{(step.end - start) / 1000:9.1f}" if step.must else "     died"
    return f"  {(step.call - start) / 1000:9.1f} {end}  {step.what}"
