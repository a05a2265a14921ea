"""What everything is made of: nanoseconds of each primitive, and the bytecodes of each operation, function by function.

The bytecodes are exact and the same on every machine; on the ones that we know an operation takes 6 to 7 ns for each of
them, calls of C included. So they say where the time goes, and what a change is worth, where a clock would not.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.handle import MemoryFileHandle
from dmemfs_shm.store.layout import REC_WRITER

from .timing import MIB, PAGE, without_gc

PRIMITIVES, BYTECODES = "primitives", "bytecodes"
TIMES, BATCHES = 2000, 60


def nanoseconds(code: str, names: dict[str, Any]) -> float:
    """Of a line of code, the best of many batches; the loop around it is taken off."""

    def best(line: str) -> float:
        scope: dict[str, Any] = dict(names)
        exec(f"def run():\n for _ in range({TIMES}):\n  {line}", scope)
        run: Callable[[], None] = scope["run"]
        times = []
        for _ in range(BATCHES):
            begin = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - begin)
        return min(times) / TIMES

    return best(code) - best("pass")


def primitives() -> dict[str, float]:
    """Nanoseconds, by what."""
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs, without_gc():
        fs.write_bytes("/f", PAGE)
        fs.read_bytes("/f")
        store = fs._store
        assert store is not None
        node, generation, namespace = store.names.files["/f"]
        lease, mutex, thread = store.rw.lease(), store.mutexes[3], store.threads.thread
        names = {
            "w": store.w,
            "m": mutex,
            "t": thread,
            "fs": fs,
            "rw": store.rw,
            "n": node,
            "g": generation,
            "ns": namespace,
            "r": lease.word,
            "writer": REC_WRITER,
            "Handle": MemoryFileHandle,
            "store": store,
            "time_ns": time.time_ns,
            "take": mutex._try_token,
            "give": mutex._give_token,
            "fence": mutex._fence,
            "gate": {},
        }
        lines = {
            "read a word": "w[100]",
            "store a word": "w[100] = 7",
            "the time": "time_ns()",
            "gate of a mutex": "gate.setdefault(0, t); del gate[0]",
            "token of a mutex, taken and given": "take(False); give()",
            "fence": "fence()",
            "mutex, entered and left": "m.acquire(t, None); m.release(t)",
            "lock, exclusive, taken and given back": "rw.lock(n, g, ns, r, writer, None); rw.unlock(r)",
            "lock, shared, lightly": "rw.lock(n, g, ns, r, 0, None); rw.unlock(r)",
            "handle, made": "Handle(fs, store, n, [], '/f', 'rb')",
        }
        found = {what: nanoseconds(line, names) for what, line in lines.items()}
        store.rw.give_back(lease)
    return found


def bytecodes() -> dict[str, dict[str, int]]:
    """How many each operation executes, by function, in the steady state of one process."""
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def write(path: str) -> None:
            with fs.open(path, "wb") as file:
                file.write(PAGE)

        def read(path: str) -> None:
            with fs.open(path, "rb") as file:
                file.read()

        def view(path: str) -> None:
            with fs.view(path) as whole:
                whole[0]

        for _ in range(2):
            for number in range(40):
                write(f"/{number}")
            for number in range(40):
                fs.remove(f"/{number}")
        fs.write_bytes("/f", PAGE)
        operations: dict[str, tuple[Callable[[str], object], str]] = {
            "create": (write, "/new"),
            "overwrite, the first time": (write, "/new"),
            "overwrite": (write, "/new"),
            "read, the first time": (read, "/new"),
            "read": (read, "/new"),
            "write_bytes, the first time": (lambda path: fs.write_bytes(path, PAGE), "/new"),
            "write_bytes": (lambda path: fs.write_bytes(path, PAGE), "/new"),
            "read_bytes": (fs.read_bytes, "/new"),
            "stat": (fs.stat, "/new"),
            "exists": (fs.exists, "/new"),
            "remove": (fs.remove, "/new"),
            "view": (view, "/f"),
        }
        view("/f")  # its pin is what the next one takes over
        fs.stats()
        found = {name: counted(operation, path) for name, (operation, path) in operations.items() if name != "view"}
        view("/f")
        return {**found, "view": counted(view, "/f")}


def counted(operation: Callable[[str], object], path: str) -> dict[str, int]:
    counts: Counter[str] = Counter()

    def trace(frame: Any, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            counts[frame.f_code.co_qualname] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation(path)
    finally:
        sys.settrace(before)
    ours = {name: count for name, count in counts.most_common() if not name.startswith(("bytecodes.", "counted"))}
    return {"all": sum(ours.values()), **ours}
