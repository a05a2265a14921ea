"""Interrupt an operation at every instruction, and see whether the others, and the process itself, go on.

An asynchronous exception (KeyboardInterrupt from a signal handler, `PyThreadState_SetAsyncExc`) strikes where the
interpreter looks for one: at the start of a function, after a call, at the end of a loop. `Interruption` raises it from a
trace function, before the instruction with a given number, of all instructions that the operation executes in Python,
those of contextlib, of `__del__` and of the caller's `with` among them. So the instructions 0, 1, 2, ... are more than all
the places where an interruption can strike, each of them once.

Left out are the instructions between the body of a `with` and the call that leaves it, those of an `except` or `finally` up
to its first call, and NOP: CPython does not look for exceptions there (after the last call of the body it has looked already,
and that call is in the range of the `with`), or else no `with lock:` anywhere would be safe.

A second interruption strikes the handlers of the first. It is raised from a profile function where it can come: at the
start of a function, after a call of C, and instead of one that waits.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

#: Where the beginning of an `except` or `finally` ends: what calls, jumps or leaves.
CALLS = frozenset(("CALL", "CALL_FUNCTION_EX", "BEFORE_WITH"))
TURNS = frozenset(("JUMP_BACKWARD", "JUMP_FORWARD", "RETURN_VALUE", "RERAISE", "RAISE_VARARGS", "FOR_ITER"))
#: Modules of C whose calls end with a KeyboardInterrupt of their own accord.
WAITING = frozenset(("fcntl", "posix", "posix_ipc", "time"))


class Interruption:
    """Acts before the instruction number *first*, and raises at the call number *second* after that.

    act: raises KeyboardInterrupt unless another is given. ``where`` says where it struck; nowhere if the operation ended
    before that, or the interpreter would not have looked for an exception there.
    """

    def __init__(self, first: int | None, second: int | None = None, act: Callable[[], None] | None = None) -> None:
        self.first = first
        self.second = second
        self.act = act
        self.count = 0
        self.calls = 0
        self.where: list[str] = []

    def run(self, function: Callable[[], None]) -> None:
        sys.settrace(self._trace)
        try:
            function()
        finally:
            sys.setprofile(None)
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            if self.count == self.first and frame.f_lasti not in _unreachable(frame.f_code):
                self.count += 1
                self._strike(frame)
            self.count += 1
        return self._trace

    def _strike(self, frame: FrameType) -> None:
        self.where.append(_place(frame))
        if self.act is not None:
            self.act()
            return
        if self.second is not None:
            sys.setprofile(self._profile)
        raise KeyboardInterrupt

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        waits = event == "c_call" and argument.__module__ in WAITING
        if frame.f_code is Interruption.run.__code__ or not (event in ("call", "c_return") or waits):
            return
        if self.calls == self.second:
            self.where.append(f"{event} {_place(frame)}")
            raise KeyboardInterrupt
        self.calls += 1


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}+{frame.f_lasti}"


_known: dict[CodeType, frozenset[int]] = {}


def _unreachable(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions that no exception can come before."""
    known = _known.get(code)
    if known is None:
        some = list(dis.get_instructions(code))
        found = {i.offset for i in some if i.opname == "NOP"}
        for start in range(len(some)):
            if some[start].opname == "PUSH_EXC_INFO":
                found.update(_beginning_of_handler(some[start:]))
            end = _end_of_with(some, start)
            found.update(i.offset for i in some[start:end])
            if end and some[start - 1].opname == "SWAP":  # what the body returns
                found.add(some[start - 1].offset)
        known = _known[code] = frozenset(found)
    return known


def _beginning_of_handler(some: list[dis.Instruction]) -> Iterator[int]:
    """What an `except` or `finally` does until its first call has begun: the interpreter, which looks for signals after calls
    and at jumps back, has not looked since the exception."""
    for one in some:
        if one.opname in TURNS:
            return
        yield one.offset
        if one.opname in CALLS:
            return


def _end_of_with(some: list[dis.Instruction], start: int) -> int:
    """One past the call `__exit__(None, None, None)` that begins here; 0 if none does."""
    if [i.argval for i in some[start : start + 3] if i.opname == "LOAD_CONST"] != [None, None, None]:
        return 0
    at = start + 3
    while some[at].opname == "PRECALL":
        at += 1
    return at + 1 if some[at].opname == "CALL" and some[at].arg in (2, 3) else 0
