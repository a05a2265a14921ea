"""Small operations side by side, in one run: dmemfs_shm, files in /dev/shm, D-MemFS in one process, and LMDB.

A workload goes in rounds. In each round every backend does the same batch, one after the other, so that what the machine
does meanwhile happens to all of them. The batches are short, a millisecond or so, to be rarely interrupted; the first round
is a warm-up and not counted. A ratio is that of two batches of the same round: the backend's time over the time of the mark,
which is the builtin open() on tmpfs as everybody writes it. Given are medians and, as their spread, the percentiles 5 and 95.
The garbage collector is off. "CPU" is this process's own time: where it is far below the wall time, something else had the
processor, and the ratio of the CPU times is the one to believe.

It is a baseline and no gate: nothing here is too slow. Three things to know when reading it:

- It is the steady state of one process: caches of paths are warm, and memory that a removed file gave back is used again.
- LMDB and D-MemFS promise other things than a filesystem of many processes does. An LMDB value is put or got in a
  transaction of its own, without sync, in a writable map; it has no open and no stat.
- Creating a store looks for what dead processes left in /dev/shm, and takes longer the more stands there.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import mmap
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import dmemfs_shm
from dmemfs_shm import MemoryFileSystem, MFSTimeoutError

KIB, MIB = 1 << 10, 1 << 20
PAGE = bytes(range(256)) * 16
SHM = "/dev/shm"
MARK = "open()"
ROUNDS_MIN = 3
LOOKED_AT = MIB
LARGE = 256 * MIB

Operation = Callable[[Any], object]


@dataclass(frozen=True)
class Plan:
    """How much of everything is done."""

    seconds: float  # for each workload, with its untimed parts
    stores: int  # created and closed
    imports: int  # each in a process of its own
    large: int  # bytes of the file that is viewed
    waiting: int  # files that wait to be claimed
    wakes: int
    idle: float  # seconds that eight processes wait in vain


FULL = Plan(seconds=1.0, stores=50, imports=7, large=LARGE, waiting=10_000, wakes=100, idle=5.0)
QUICK = Plan(seconds=0.03, stores=3, imports=1, large=8 * MIB, waiting=100, wakes=3, idle=0.1)


class Workload(NamedTuple):
    """What is timed: *operation* on each of *files* files, or on their folder. before, after: on each file, untimed."""

    operation: str
    what: str
    files: int = 50
    repeat: int = 1
    on_folder: bool = False
    before: str = ""
    after: str = ""


WORKLOADS = [
    Workload("create", "create, write 4 KiB, close", after="remove"),
    Workload("overwrite", 'open "wb", write 4 KiB, close'),
    Workload("read", "open, read 4 KiB, close"),
    Workload("write_bytes", "overwrite in one call; where there is none, open, write, close"),
    Workload("read_bytes", "read in one call; where there is none, open, read, close"),
    Workload("stat", "size and times", repeat=10),
    Workload("exists", "of a file that does", repeat=10),
    Workload("remove", "a file of 4 KiB", before="create"),
    Workload("listdir", "the names of 1,000 files", files=1000, on_folder=True),
]
VIEW = "view"
FIGURES = ("store", "import", "claim", "wake", "idle")
NAMES = [workload.operation for workload in WORKLOADS] + [VIEW, *FIGURES]


@dataclass(frozen=True)
class Backend:
    """One of those compared. An operation that it does not have, or that is the mark's own, is missing."""

    name: str
    folder: Any
    path: Callable[[int], Any]
    operations: dict[str, Operation]


# ---- the backends


def files(name: str, folder: str, buffering: int) -> Backend:
    """Files on tmpfs. What does not open a file is the same for every buffering: it is timed once, as the mark."""
    os.mkdir(folder)

    def write(path: str) -> None:
        with open(path, "wb", buffering) as file:
            file.write(PAGE)

    def read(path: str) -> bytes:
        with open(path, "rb", buffering) as file:
            return file.read()

    operations: dict[str, Operation] = {
        "create": write,
        "overwrite": write,
        "read": read,
        "write_bytes": write,
        "read_bytes": read,
        "remove": os.remove,
    }
    if name == MARK:
        operations |= {"stat": os.stat, "exists": os.path.exists, "listdir": os.listdir}
    return Backend(name, folder, lambda number: f"{folder}/{number:04}", operations)


def filesystem(name: str, fs: Any) -> Backend:
    """Ours or D-MemFS, which have the same methods; only ours reads and writes whole files in one call."""
    fs.mkdir("/files")

    def write(path: str) -> None:
        with fs.open(path, "wb") as file:
            file.write(PAGE)

    def read(path: str) -> object:
        with fs.open(path, "rb") as file:
            return file.read()

    def write_bytes(path: str) -> None:
        fs.write_bytes(path, PAGE)

    has = hasattr(fs, "write_bytes")
    operations: dict[str, Operation] = {
        "create": write,
        "overwrite": write,
        "read": read,
        "write_bytes": write_bytes if has else write,
        "read_bytes": fs.read_bytes if has else read,
        "stat": fs.stat,
        "exists": fs.exists,
        "remove": fs.remove,
        "listdir": fs.listdir,
    }
    return Backend(name, "/files", lambda number: f"/files/{number:04}", operations)


def lmdb(name: str, environment: Any) -> Backend:
    """Values under keys, each in a transaction of its own."""

    def put(key: bytes) -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(key, PAGE)

    def get(key: bytes) -> object:
        with environment.begin() as transaction:
            return transaction.get(key)

    def exists(key: bytes) -> bool:
        with environment.begin(buffers=True) as transaction:  # a copy of the value is not asked for
            return transaction.get(key) is not None

    def delete(key: bytes) -> None:
        with environment.begin(write=True) as transaction:
            transaction.delete(key)

    def keys(_: None) -> list[bytes]:
        with environment.begin() as transaction:
            return list(transaction.cursor().iternext(values=False))

    operations: dict[str, Operation] = {
        "create": put,
        "overwrite": put,
        "read": get,
        "write_bytes": put,
        "read_bytes": get,
        "exists": exists,
        "remove": delete,
        "listdir": keys,
    }
    return Backend(name, None, b"%04d".__mod__, operations)


def optional(module: str) -> Any:
    """A module of the extra `bench`, None if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@contextlib.contextmanager
def backends(folder: str) -> Iterator[list[Backend]]:
    """All that can be compared here, the mark first; ours comes next to it."""
    with ExitStack() as stack:
        ours = stack.enter_context(closing(MemoryFileSystem(max_quota=64 * MIB)))
        found = [
            files(MARK, f"{folder}/buffered", -1),
            filesystem("dmemfs_shm", ours),
            files("open(buffering=0)", f"{folder}/unbuffered", 0),
        ]
        if ancestor := optional("dmemfs"):
            found.append(filesystem("D-MemFS", ancestor.MemoryFileSystem(max_quota=64 * MIB)))
        if module := optional("lmdb"):
            environment = module.open(f"{folder}/lmdb", map_size=32 * MIB, sync=False, metasync=False, writemap=True)
            found.append(lmdb("LMDB", stack.enter_context(closing(environment))))
        yield found


# ---- timing


class Sample(NamedTuple):
    """Nanoseconds of one batch."""

    wall: int
    cpu: int


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """The collector off, after it has had its turn."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed(operation: Operation, items: Sequence[Any]) -> Sample:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for item in items:
        operation(item)
    wall = time.perf_counter_ns() - wall
    return Sample(wall, time.process_time_ns() - cpu)


def each(operation: Operation, items: Sequence[Any]) -> None:
    for item in items:
        operation(item)


def in_rounds(batches: dict[str, Callable[[], Sample]], seconds: float) -> dict[str, list[Sample]]:
    """Batch after batch, round after round, until the time is over; the samples by backend, without the first round's."""
    samples: dict[str, list[Sample]] = {name: [] for name in batches}
    with without_gc():
        end = time.perf_counter() + seconds
        while len(samples[next(iter(samples))]) <= ROUNDS_MIN or time.perf_counter() < end:
            for name, batch in batches.items():
                samples[name].append(batch())
    return {name: taken[1:] for name, taken in samples.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the percentiles 5 and 95, as they are among the values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {key: ordered[round(last * part)] for key, part in (("median", 0.5), ("p5", 0.05), ("p95", 0.95))}


def compared(workload: str, what: str, samples: dict[str, list[Sample]], batch: int) -> dict[str, Any]:
    """The result of a workload; the first backend is the mark."""
    mark = next(iter(samples))
    results = [
        {
            "backend": backend,
            "wall_us": spread([sample.wall / batch / 1e3 for sample in taken]),
            "cpu_us": spread([sample.cpu / batch / 1e3 for sample in taken]),
            "ratio": spread([one.wall / other.wall for one, other in zip(taken, samples[mark], strict=True)]),
            "cpu_ratio": spread([one.cpu / max(other.cpu, 1) for one, other in zip(taken, samples[mark], strict=True)]),
        }
        for backend, taken in samples.items()
    ]
    return {
        "workload": workload,
        "what": what,
        "mark": mark,
        "batch": batch,
        "rounds": len(samples[mark]),
        "results": results,
    }


# ---- the workloads


def same_work(backend: Backend, path: Any) -> None:
    """Whether a backend does what is to be compared at all: a mistake here makes it look fast."""
    do = backend.operations
    do["create"](path)
    assert bytes(do["read"](path)) == bytes(do["read_bytes"](path)) == PAGE  # type: ignore[call-overload]
    assert "exists" not in do or do["exists"](path)
    assert "listdir" not in do or len(do["listdir"](backend.folder)) == 1  # type: ignore[arg-type]
    do["remove"](path)
    assert "exists" not in do or not do["exists"](path)


def small(workload: Workload, among: list[Backend], plan: Plan) -> dict[str, Any]:
    """A workload on many small files."""
    able = [backend for backend in among if workload.operation in backend.operations]
    paths = {backend.name: [backend.path(number) for number in range(workload.files)] for backend in able}
    stand = not workload.before and not workload.after

    def batch(backend: Backend) -> Sample:
        do, mine = backend.operations, paths[backend.name]
        if workload.before:
            each(do[workload.before], mine)
        items = [backend.folder] if workload.on_folder else mine
        sample = timed(do[workload.operation], items * workload.repeat)
        if workload.after:
            each(do[workload.after], mine)
        return sample

    for backend in able:
        same_work(backend, paths[backend.name][0])
        if stand:
            each(backend.operations["create"], paths[backend.name])
    samples = in_rounds({backend.name: functools.partial(batch, backend) for backend in able}, plan.seconds)
    for backend in able:
        if stand:
            each(backend.operations["remove"], paths[backend.name])
    return compared(workload.operation, workload.what, samples, workload.repeat * (1 if workload.on_folder else workload.files))


def view(folder: str, plan: Plan) -> dict[str, Any]:
    """A slice of a large file, looked at where it is: a byte of each of its pages. In the store, the mapping stands."""
    room = os.statvfs(SHM)
    size = max(1, min(plan.large, room.f_bavail * room.f_frsize // 4) // MIB) * MIB
    offsets = [number * LOOKED_AT % size for number in range(16)]
    chunk = PAGE * (MIB // len(PAGE))
    path = f"{folder}/large"

    def look(whole: memoryview, offset: int) -> bytes:
        with whole[offset : offset + LOOKED_AT : mmap.PAGESIZE] as pages:
            return bytes(pages)

    def map_and_look(offset: int) -> bytes:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
            memoryview(mapping) as whole,
        ):
            return look(whole, offset)

    def view_and_look(offset: int) -> bytes:
        with fs.view("/large") as whole:
            return look(whole, offset)

    with ExitStack() as stack:
        fs = stack.enter_context(closing(MemoryFileSystem(max_quota=size + MIB)))
        with open(path, "w+b") as plain, fs.open("/large", "wb", preallocate=size) as ours:
            for _ in range(size // MIB):
                plain.write(chunk)
                ours.write(chunk)
            plain.flush()
            kept = stack.enter_context(mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ))
        whole = stack.enter_context(memoryview(kept))
        ways: dict[str, Operation] = {
            "mmap": map_and_look,
            "dmemfs_shm": view_and_look,
            "mmap, kept open": functools.partial(look, whole),
        }
        assert len({way(0) for way in ways.values()}) == 1
        samples = in_rounds({name: functools.partial(timed, way, offsets) for name, way in ways.items()}, plan.seconds)
    os.remove(path)
    what = f"look at 1 MiB inside {size // MIB} MiB; view() against open and mmap"
    return compared(VIEW, what, samples, len(offsets))


# ---- single figures


def figure(name: str, what: str, walls: Sequence[float], cpus: Sequence[float]) -> dict[str, Any]:
    return {"figure": name, "what": what, "samples": len(walls), "wall_ms": spread(walls), "cpu_ms": spread(cpus)}


def stores(plan: Plan) -> list[dict[str, Any]]:
    """A private store, created and closed."""

    def create(made: list[MemoryFileSystem]) -> None:
        made.append(MemoryFileSystem(max_quota=64 * MIB))

    def close(fs: MemoryFileSystem) -> None:
        fs.close()

    creations, closings = [], []
    with without_gc():
        for _ in range(plan.stores + 1):
            made: list[MemoryFileSystem] = []
            try:
                creations.append(timed(create, [made]))
            finally:
                closings.append(timed(close, made))
    return [
        figure(name, what, [one.wall / 1e6 for one in samples[1:]], [one.cpu / 1e6 for one in samples[1:]])
        for name, what, samples in (
            ("create", "create a private store", creations),
            ("close", "close it", closings),
        )
    ]


def started(code: str) -> tuple[float, float]:
    """Milliseconds, wall and CPU, of a Python that runs *code*."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(dmemfs_shm.__file__)))
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1e3, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def imports(plan: Plan) -> list[dict[str, Any]]:
    """`import dmemfs_shm`: how much longer a Python takes that does it than the one before, which does nothing."""
    pairs = [(started("pass"), started("import dmemfs_shm")) for _ in range(plan.imports + 1)][1:]
    walls, cpus = ([longer[clock] - bare[clock] for bare, longer in pairs] for clock in (0, 1))
    return [figure("import", "import dmemfs_shm, beyond a bare python", walls, cpus)]


def claims(plan: Plan) -> list[dict[str, Any]]:
    """The oldest of many files that wait, claimed and done. The first claim, which looks at all of them, is not timed."""

    def claim_and_finish(fs: MemoryFileSystem) -> None:
        with fs.claim("/in/*", 0) as claim:
            claim.done()

    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs, without_gc():
        fs.mkdir("/in")
        for number in range(plan.waiting + 1):
            fs.write_bytes(f"/in/{number}", b"x")
        claim_and_finish(fs)
        samples = [timed(claim_and_finish, [fs]) for _ in range(plan.waiting // 5)]
    what = f"claim one of {plan.waiting:,} files, and done"
    return [figure("claim", what, [one.wall / 1e6 for one in samples], [one.cpu / 1e6 for one in samples])]


def in_children(fs: MemoryFileSystem, count: int, do: Callable[[Callable[[int], None]], None]) -> tuple[list[int], int]:
    """Processes that do(tell); their ids, and where what they tell is to be read, eight bytes each."""
    reads, writes = os.pipe()
    pids = []
    for _ in range(count):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                do(lambda value: os.write(writes, value.to_bytes(8, "little")) and None)
            finally:
                fs.close()
                os._exit(0)
    os.close(writes)
    return pids, reads


def told(reads: int) -> int:
    return int.from_bytes(os.read(reads, 8), "little")


def wakes(plan: Plan) -> list[dict[str, Any]]:
    """From before write_bytes to the return of wait_for in another process that sleeps there."""
    walls = []
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def wait(tell: Callable[[int], None]) -> None:
            for number in range(plan.wakes):
                tell(0)
                fs.wait_for(f"/{number}", 10)
                tell(time.perf_counter_ns())

        pids, reads = in_children(fs, 1, wait)
        for number in range(plan.wakes):
            told(reads)
            time.sleep(0.01)
            begin = time.perf_counter_ns()
            fs.write_bytes(f"/{number}", b"x")
            walls.append((told(reads) - begin) / 1e6)
        os.close(reads)
        os.waitpid(pids[0], 0)
    return [figure("wake", "write_bytes until wait_for returns elsewhere", walls, walls)]


def idleness(plan: Plan) -> list[dict[str, Any]]:
    """The CPU time of eight processes that wait in vain."""
    with closing(MemoryFileSystem(max_quota=16 * MIB)) as fs:

        def wait(tell: Callable[[int], None]) -> None:
            with contextlib.suppress(MFSTimeoutError):
                fs.wait_for("/none", 0.01)  # what is done the first time only
            begin = time.process_time_ns()
            with contextlib.suppress(MFSTimeoutError):
                fs.wait_for("/none", plan.idle)
            tell(time.process_time_ns() - begin)

        pids, reads = in_children(fs, 8, wait)
        spent = sum(told(reads) for _ in pids) / 1e6
        os.close(reads)
        for pid in pids:
            os.waitpid(pid, 0)
    return [figure("idle", f"eight that wait for {plan.idle} s, their CPU together", [plan.idle * 1e3], [spent])]


# ---- what is said


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    versions = {}
    for name in "dmemfs-shm", "D-MemFS", "lmdb":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {"dmemfs-shm": dmemfs_shm.__version__, **versions},
        "load_average": os.getloadavg(),
    }


def above_1(workloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "backend": result["backend"],
            "workload": workload["workload"],
            **{key: result[key]["median"] for key in ("ratio", "cpu_ratio")},
        }
        for workload in workloads
        for result in workload["results"]
        if result["ratio"]["median"] > 1
    ]


def say(what: str) -> None:
    """One line for who waits at a terminal; not a live display, whose thread would be measured too."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def measure(names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Everything that *names* names, as what --json prints. Leaves nothing in /dev/shm."""
    begin, here = time.perf_counter(), machine()
    workloads, figures = [], []
    with tempfile.TemporaryDirectory(prefix=f"bench-{os.getpid()}-", dir=SHM) as folder:
        with backends(folder) as among:
            for workload in WORKLOADS:
                if workload.operation in names:
                    say(workload.what)
                    workloads.append(small(workload, among, plan))
        if VIEW in names:
            say(VIEW)
            workloads.append(view(folder, plan))
        for name, take in zip(FIGURES, (stores, imports, claims, wakes, idleness), strict=True):
            if name in names:
                say(name)
                figures += take(plan)
    say("")
    here["load_average_after"] = os.getloadavg()
    return {
        "schema": 1,
        "machine": here,
        "seconds": time.perf_counter() - begin,
        "backends": [backend.name for backend in among],
        "missing": [name for name, module in (("D-MemFS", "dmemfs"), ("LMDB", "lmdb")) if not optional(module)],
        "workloads": workloads,
        "figures": figures,
        "above_1": above_1(workloads),
    }


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def between(values: dict[str, float]) -> str:
    return f"{number(values['p5'])}..{number(values['p95'])}"


def rows_of(report: dict[str, Any]) -> list[list[list[str]]]:
    """The cells of the two tables, each with its heading."""
    compared_rows = [["workload", "backend", "us", "p5..p95", "CPU us", "ratio", "p5..p95", "CPU ratio"]]
    for workload in report["workloads"]:
        for index, result in enumerate(workload["results"]):
            wall, cpu, ratio = result["wall_us"], result["cpu_us"], result["ratio"]
            of_mark = index == 0
            compared_rows.append(
                [
                    workload["workload"] if of_mark else "",
                    result["backend"],
                    number(wall["median"]),
                    between(wall),
                    number(cpu["median"]),
                    "1" if of_mark else number(ratio["median"]),
                    "" if of_mark else between(ratio),
                    "1" if of_mark else number(result["cpu_ratio"]["median"]),
                ]
            )
    figure_rows = [["figure", "ms", "p5..p95", "CPU ms", "samples"]]
    for one in report["figures"]:
        wall, cpu = one["wall_ms"], one["cpu_ms"]
        figure_rows.append([one["what"], number(wall["median"]), between(wall), number(cpu["median"]), str(one["samples"])])
    return [rows for rows in (compared_rows, figure_rows) if len(rows) > 1]


def show(rows: list[list[str]], console: Console) -> None:
    """A table: ruled on a terminal, else columns of plain text, as wide as they need to be."""
    texts = {"workload", "backend", "figure"}
    left = [heading in texts for heading in rows[0]]
    if console.is_terminal:
        table = Table()
        for heading, is_left in zip(rows[0], left, strict=True):
            table.add_column(heading, justify="left" if is_left else "right", overflow="fold")
        for index, row in enumerate(rows[1:], 2):
            table.add_row(*row, end_section=index < len(rows) and bool(rows[index][0]) and rows[0][0] == "workload")
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in zip(row, widths, left, strict=True)
        )
        print("  ".join(cells).rstrip())
    print()


def summary(report: dict[str, Any]) -> str:
    """Which ratios are above 1, by backend, and those of the CPU times."""
    slower: dict[str, list[str]] = {}
    for one in report["above_1"]:
        slower.setdefault(one["backend"], []).append(
            f"{one['workload']} {number(one['ratio'])} (CPU {number(one['cpu_ratio'])})"
        )
    return "Ratios above 1: " + ("; ".join(f"{name}: {', '.join(some)}" for name, some in slower.items()) or "none") + "."


def load(averages: Sequence[float]) -> str:
    return " ".join(map("{:.2f}".format, averages))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="about a second: shows that it runs, and little else")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"again and again if need be: {', '.join(NAMES)}"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = arguments(argv)
    plan, names = QUICK if options.quick else FULL, options.only or NAMES
    report = measure(names, plan)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    console = Console(highlight=False)
    for rows in rows_of(report):
        show(rows, console)
    for workload in report["workloads"]:
        print(f"{workload['workload']}: {workload['what']}")
    here = report["machine"]
    print(f"{here['cpu']}, {here['cpus']} CPUs; {here['kernel']}; {here['python']}")
    print("; ".join(f"{name} {version}" for name, version in here["versions"].items()))
    print(f"Load average {load(here['load_average'])} before, {load(here['load_average_after'])} after.")
    if report["missing"]:
        print(f"Not installed, so not compared: {', '.join(report['missing'])}.")
    if report["workloads"]:
        print(summary(report))


def leave(*_: object) -> None:
    """SIGTERM: end in order, so that /dev/shm is cleaned up."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
