"""Break the protocol's modules in small ways, one at a time, and see whether the tests notice.

    python tools/mutate.py [--sample N] [--seed S] [--jobs J] [--match TEXT] [module ...]

A mutant is a module in which one comparison, operator, integer or condition is another, or one statement is missing. It is
compiled in place of the real one in a forked child with a /dev/shm of its own, where the tests run that reach its line, the
quickest first, until one fails. A mutant is killed by a failing test, or by a hang (a test's timeout, or the deadline). One
that lives is explained in `mutants_alive.txt`, or it makes this program fail: then a test is missing, or the code is dead.

Not mutated: texts, annotations, numbers of seconds, and what is outside of functions. Which tests reach a line is measured in
the test's own process alone, so a mutant that lives here may yet die in the crash suites. (mutmut is not used: it puts a
frame of its own in front of every function, and sections of the store are told by the frames below them; see `in_section`.)
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STORE = os.path.join(ROOT, "dmemfs_shm", "store")
MODULES = ("journal", "mutex", "recovery", "rwlock")
TESTS = [f"tests/unit/test_{name}.py" for name in ("journal", "recovery", "mutex_steps", "rwlock_steps", "mutex", "rwlock")]
#: These strike at random moments in a child, for seconds: their findings would not be this mutant's alone.
LEFT_OUT = [f"--deselect=tests/unit/test_mutex.py::test_{name}" for name in ("exceptions_from_another_thread", "signals")]
ALIVE = os.path.join(ROOT, "tools", "mutants_alive.txt")
TEST_TIMEOUT_S, DEADLINE_S = 20, 120
HANG, BROKEN = 98, 99  # exit codes; those of pytest are small
PYTEST = ["-q", "-x", "-p", "no:cacheprovider", "--rootdir", ROOT, *LEFT_OUT, f"--timeout={TEST_TIMEOUT_S}"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported once, before the children, is not rewritten

OTHER: dict[type[ast.AST], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Break: ast.Continue, ast.Continue: ast.Break,
}  # fmt: skip

#: Texts, imports, and what stands in the head of a function.
NO_CODE = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arguments)
NO_PLACES = ("annotation", "returns", "decorator_list")


# ---- making mutants


class Mutant(NamedTuple):
    """One change of one module. `key` names it without its line, which moves with every edit above it;
    the second of the same name in a function is called " (2)"."""

    module: str
    line: int
    key: str
    code: Any


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    path = os.path.join(STORE, f"{module}.py")
    with open(path) as file:
        tree = ast.parse(file.read())
    same = Counter[str]()
    for function, place in list(places(tree)):
        node = place.get()
        for old, changed in changes(node):
            place.put(changed)
            key = f"{module}.{function}: {ast.unparse(old)} -> {ast.unparse(changed)}".replace("\n", " ")
            same[key] += 1
            key += f" ({same[key]})" if same[key] > 1 else ""
            yield Mutant(module, node.lineno, key, compile(ast.fix_missing_locations(copy.deepcopy(tree)), path, "exec"))
            place.put(node)


class Place(NamedTuple):
    """Where a node stands: a field of its parent, or an item of it."""

    parent: Any
    field: str
    index: int | None

    def get(self) -> Any:
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: Any) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def places(parent: ast.AST, function: str = "") -> Iterator[tuple[str, Place]]:
    """(function, place) of all that stands in functions and may be changed."""
    for field, value in ast.iter_fields(parent):
        for place in (
            [Place(parent, field, n) for n in range(len(value))] if isinstance(value, list) else [Place(parent, field, None)]
        ):
            child = place.get()
            if not isinstance(child, ast.AST) or isinstance(child, NO_CODE) or field in NO_PLACES:
                continue
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                yield from places(child, function or (child.name if isinstance(child, ast.FunctionDef) else ""))
                continue
            if function and hasattr(child, "lineno"):
                yield function, place
            yield from places(child, function)


def changes(node: Any) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(what stands there, what stands there in the mutant)."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            ops = [*node.ops[:index], OTHER[type(op)](), *node.ops[index + 1 :]]
            yield node, ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield node, ast.BoolOp(OTHER[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        yield node, node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        yield node, ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign):
        yield node, ast.AugAssign(node.target, OTHER[type(node.op)](), node.value)
        yield node, ast.Pass()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        yield node, ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield node, OTHER[type(node)]()
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield node.test, changed
    elif is_dispensable(node):
        yield node, ast.Pass()


def is_dispensable(node: Any) -> bool:
    """Whether it is a statement that may be missing without any name being missed."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, (ast.Constant, ast.Yield))
    if isinstance(node, (ast.Assign, ast.Delete)):
        return any(not isinstance(target, ast.Name) for target in node.targets)
    return isinstance(node, ast.Raise)


# ---- running tests


class Reach:
    """A pytest plugin that finds out which tests reach which lines, and how long they take."""

    def __init__(self) -> None:
        import coverage

        self.cov = coverage.Coverage(data_file=None, source=["dmemfs_shm.store"], concurrency=["thread"], config_file=False)
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.cov.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def measure(self) -> dict[str, dict[int, list[str]]]:
        import pytest

        self.cov.start()
        failed = pytest.main([*PYTEST, *TESTS], plugins=[self])
        self.cov.stop()
        if failed:
            raise SystemExit("the tests fail without a mutant")
        data, found = self.cov.get_data(), {}
        for module in MODULES:
            lines = data.contexts_by_lineno(os.path.join(STORE, f"{module}.py"))
            found[module] = {n: sorted((t for t in tests if t), key=lambda t: self.seconds[t]) for n, tests in lines.items()}
        return found


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != f"dmemfs_shm.store.{self.mutant.module}":
            return None
        return importlib.util.spec_from_file_location(name, os.path.join(STORE, f"{self.mutant.module}.py"), loader=self)

    def exec_module(self, module: Any) -> None:
        exec(self.mutant.code, module.__dict__)


def fork(work: Any) -> int:
    """Do work() in a child that is the head of its own group, has a /dev/shm of its own, and is silent."""
    pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        from tests.own_shm import own_shm

        own_shm(0)
        code = int(work())
    finally:
        os._exit(code)


def try_mutant(mutant: Mutant, tests: list[str]) -> int:
    import pytest

    sys.meta_path.insert(0, Instead(mutant))
    return pytest.main([*PYTEST, *tests])


def end_of(pid: int, deadline: float) -> int | None:
    """The exit code of a child, HANG if it had to be killed at the deadline; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        if time.monotonic() < deadline:
            return None
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HANG
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it left behind
    return abs(os.waitstatus_to_exitcode(status))


def measure() -> dict[str, dict[int, list[str]]]:
    reads, writes = os.pipe()
    pid = fork(lambda: os.fdopen(writes, "wb").write(pickle.dumps(Reach().measure())) and 0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    if not data:
        raise SystemExit("the tests fail without a mutant, or there is no /dev/shm of our own to be had")
    return pickle.loads(data)


def try_all(todo: list[Mutant], reach: dict[str, dict[int, list[str]]], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """(mutant, its end) of each, in the order of their ends: killed, hang, ALIVE, NOT REACHED."""
    running: dict[int, tuple[Mutant, float]] = {}
    for mutant in todo:
        tests = reach[mutant.module].get(mutant.line)
        if not tests:
            yield mutant, "NOT REACHED"
            continue
        while len(running) >= jobs:
            yield from ended(running)
        running[fork(lambda m=mutant, t=tests: try_mutant(m, t))] = mutant, time.monotonic() + DEADLINE_S
    while running:
        yield from ended(running)


def ended(running: dict[int, tuple[Mutant, float]]) -> Iterator[tuple[Mutant, str]]:
    """Those of the running ones that are over by now, which run no longer."""
    time.sleep(0.05)
    for pid, (mutant, deadline) in list(running.items()):
        code = end_of(pid, deadline)
        if code is not None:
            del running[pid]
            assert code != BROKEN, f"no tests could be run: {mutant.key}"
            yield mutant, "hang" if code == HANG else "killed" if code else "ALIVE"


def explained() -> set[str]:
    """The names of the mutants that are known to live."""
    with open(ALIVE) as file:
        return {line.partition("  # ")[0].strip() for line in file if not line.startswith("#")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--sample", type=int, default=0, help="try so many of them, chosen by the seed; 0: all")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CRASH_SEED", "1")))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--match", default="", help="only those whose name contains this")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, ROOT)
    every = [mutant for module in chosen.modules for mutant in mutants_of(module) if chosen.match in mutant.key]
    todo = random.Random(chosen.seed).sample(every, min(chosen.sample or len(every), len(every)))
    print(f"{len(todo)} of {len(every)} mutants, seed {chosen.seed}", flush=True)
    reach = measure()
    for name in ("pytest", "hypothesis", "msgpack", "posix_ipc"):
        importlib.import_module(name)  # once, not in each child
    known, ends = explained(), Counter[str]()
    for number, (mutant, end) in enumerate(try_all(todo, reach, chosen.jobs), 1):
        if number % 50 == 0:
            print(f"... {number} {dict(ends)}", flush=True)
        verdict = "explained" if end == "ALIVE" and mutant.key in known else end
        ends[verdict] += 1
        if verdict != "killed":
            print(f"{verdict}  line {mutant.line}  {mutant.key}", flush=True)
    print(dict(ends), f"{100 * (ends['killed'] + ends['hang']) / max(1, len(todo)):.1f} % dead")
    return bool(ends["ALIVE"] or ends["NOT REACHED"])


if __name__ == "__main__":
    sys.exit(main())
