"""A real ETL job in a shared store: all flights that left New York City in 2013, in many processes.

One process unpacks the table into CSV parts in the store. Workers claim parts, join them with the
weather, the planes, the airlines and the airports, and publish partial sums. A reducer merges these.
At last one process computes the same without a store: the results must be equal.

Each part counts exactly once, whoever dies: the claim of a worker that dies goes to another. The
partial result is named after its part and published in one step, and the part goes only when its
partial result stands: done twice, it is the same file twice.
"""

import argparse
import errno
import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from multiprocessing.connection import wait

import flights
import msgpack
from rich.console import Console
from rich.progress import Progress

from dmemfs_shm import MemoryFileSystem, MFSQuotaExceededError, MFSTimeoutError


def stage(fs, parts, rows):
    """Fill the store: the flights in parts, then what the workers wait for. Returns the number of flights."""
    header, *lines = flights.unpack()
    lines = lines[:rows]
    for part in range(parts):
        fs.write_bytes(f"/parts/{part:04}.csv", header + b"".join(lines[part::parts]))
    for table in flights.TABLES:
        path = flights.data() / table
        with open(path, "rb") as source, fs.open(f"/tables/{table}", "wb", path.stat().st_size, atomic=True) as copy:
            shutil.copyfileobj(source, copy)
    return len(lines)


def work(fs):
    """A worker process: claims parts, and publishes partial results, until no part is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        joined = flights.references(lambda table: text(fs.open(fs.wait_for(f"/tables/{table}"))))
        while fs.listdir("/parts"):  # what others have claimed is listed, and may yet be ours
            try:
                with fs.claim("/parts/*", timeout=0.1) as part:
                    totals = flights.tally(flights.records(text(part.open())), joined)
                    fs.write_bytes(f"/partials/{os.path.basename(part.path)}", msgpack.packb(totals))
                    part.done()
            except MFSTimeoutError:
                continue
    except MFSQuotaExceededError:
        sys.exit(errno.ENOSPC)  # said once, by the parent


def text(file):
    """A file of the store as text."""
    return io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8", newline="")


def reduce(fs):
    """The totals of all partial results."""
    totals = {}
    for partial in fs.glob("/partials/*"):
        with fs.view(partial) as packed:
            flights.merge(totals, msgpack.unpackb(packed))
    return totals


class Crew:
    """Worker processes, replaced when killed."""

    def __init__(self, fs, size, context):
        """Hire `size` workers, started by the method of `context`."""
        self.fs, self.context = fs, context
        self.workers, self.killed = [], 0
        for _ in range(size):
            self.hire()

    def hire(self):
        """Start one more worker."""
        self.workers.append(self.context.Process(target=work, args=(self.fs,), daemon=True))
        self.workers[-1].start()

    def tend(self):
        """Dismiss those who found no part left; replace the killed."""
        ended = [worker for worker in self.workers if worker.exitcode is not None]
        for worker in ended:
            self.workers.remove(worker)
            if worker.exitcode == -signal.SIGKILL:
                self.killed += 1
                self.hire()
            elif worker.exitcode == errno.ENOSPC:
                raise OSError("quota exceeded: the partial results need more than is left of it")
            elif worker.exitcode:
                raise ChildProcessError(f"a worker failed with exit status {worker.exitcode}")

    def kill(self, victims):
        """SIGKILL, and see them dead."""
        for worker in victims:
            worker.kill()
        for worker in victims:
            worker.join(10)


def run(fs, options, progress):
    """The job in the store. Returns totals, rows, workers killed and the peak use of the quota."""
    chance, deadline = random.Random(options.seed), time.monotonic() + options.timeout
    bar = progress.add_task("Parts", total=options.parts)
    for folder in "/tables", "/parts", "/partials":
        fs.mkdir(folder)
    crew = Crew(fs, options.workers, multiprocessing.get_context(options.start_method))
    try:
        rows = stage(fs, options.parts, options.rows)
        peak = fs.stats()["used_bytes"]
        while crew.workers:
            wait([worker.sentinel for worker in crew.workers], timeout=0.02)
            crew.tend()
            done = len(fs.listdir("/partials"))
            peak = max(peak, fs.stats()["used_bytes"])
            progress.update(bar, completed=done, refresh=True)
            if options.kill:  # one at the start, and one for each twentieth of the work
                due = 1 + 20 * done // options.parts - crew.killed
                crew.kill(chance.sample(crew.workers, min(max(due, 0), len(crew.workers))))
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {options.timeout} seconds")
    finally:
        crew.kill(crew.workers)
    return reduce(fs), rows, crew.killed, peak


def main():
    """Run the job in a store of its own, show the result, prove it."""
    options = arguments()
    console, begin = Console(), time.perf_counter()
    name = f"demo-{os.getpid()}"
    fs = MemoryFileSystem.create(name, max_quota=options.quota)
    try:
        with Progress(console=console, auto_refresh=False) as progress:
            totals, rows, killed, peak = run(fs, options, progress)
        took = time.perf_counter() - begin
    finally:
        try:
            findings = fs.check()
            console.print("The store is", "damaged:" if findings else "sound.", *findings)
        finally:
            fs.close()
            MemoryFileSystem.destroy(name)

    console.print(flights.table(totals))
    console.print(f"{rows:,} rows in {took:.1f} s, {rows / took:,.0f} a second")
    console.print(f"{options.workers} workers, {killed} killed and replaced")
    console.print(f"{peak:,} of {options.quota:,} bytes of quota used at the peak")
    begin = time.perf_counter()
    equal = totals == flights.plain(options.rows)
    took = time.perf_counter() - begin
    console.print(f"one process, no store, {took:.1f} s: the result is", "equal" if equal else "NOT EQUAL")
    sys.exit(bool(findings) or not equal)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    option = parser.add_argument
    option("--workers", type=int, default=os.cpu_count(), help="default: one a core")
    option("--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers")
    option("--kill", action="store_true", help="SIGKILL a random worker again and again")
    option("--quota", type=size, default="48MiB", help="of the store; default: %(default)s")
    option("--parts", type=int, default=96, help="default: %(default)s")
    option("--rows", type=int, help="take only the first ones")
    option("--seed", type=int, help="of the choice whom to kill")
    option("--timeout", type=float, default=300, help="seconds to give up after; default: 300")
    options = parser.parse_args()
    if min(options.workers, options.parts) < 1:
        parser.error("there must be a worker and a part")
    return options


def size(text):
    """Bytes, from what people write: 48MiB, 1 GiB, 5000."""
    match = re.fullmatch(r"(\d+) ?([KMG]?)(?:i?B)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 48MiB")
    return int(match[1]) << 10 * " KMG".index(match[2] or " ")


def command(name, main):
    """Run `main` as the command `name`: an error of the system is one line, and Ctrl-C none."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    command("demo", main)
