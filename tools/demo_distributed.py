"""The job of the demo, the flights that left New York City in 2013, on a Dask cluster of two hosts with a store each.

The hosts are stood in for by two groups of worker processes. The tasks know two URLs: one of the store of the host on which
they run, whichever that is, and one that all hosts share. They stage there what they need more than once, or later, and
hand on here what the others are to see. Workers are killed on the way, one at a time, and once all of a host, whose store
goes with them: a task that does not find what an earlier one staged stages it again.

At last one process computes the same without a cluster: the results must be equal. A plot says what was staged where and when.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import demo
import flights
import fsspec
import matplotlib as mpl
import matplotlib.pyplot as plt
import msgpack
from dask import config
from distributed import Client, Nanny, Scheduler, SpecCluster
from rich.console import Console
from rich.progress import Progress

from dmemfs_shm import MemoryFileSystem, MFSStoreGoneError
from dmemfs_shm.integrations.dask import HostStore

HOSTS = ("a", "b")
WORKERS_A_HOST = 2
MIB = 1 << 20


# ---- the tasks. They know nothing of stores, hosts or workers.


def prepare(part, here, shared):
    """Stage a part on this host. Returns its bytes."""
    with fsspec.open(f"{shared}/parts/{part:04}.csv", "rb", compression="gzip") as source:
        data = source.read()
    with fsspec.open(f"{here}/parts/{part:04}.csv", "wb") as staged:
        staged.write(data)
    return len(data)


def summarize(part, prepared, here, shared):
    """Add up a part that some host has *prepared*, perhaps this one, and hand the sums on."""
    fs, path = fsspec.url_to_fs(f"{here}/parts/{part:04}.csv")
    if not fs.exists(path):  # it was another host, or nobody who was there then is alive
        prepare(part, here, shared)
    totals = flights.tally(flights.records(fs.open(path, "r", newline="")), references(here, shared))
    with fsspec.open(f"{shared}/sums/{part:04}", "wb") as sums:
        sums.write(msgpack.packb(totals))
    fs.rm(path)
    return prepared


def references(here, shared):
    """What flights are joined with, from this host; who comes first stages it."""
    fs, folder = fsspec.url_to_fs(f"{here}/tables")
    for table in flights.TABLES:
        if not fs.exists(f"{folder}/{table}"):
            with fsspec.open(f"{shared}/tables/{table}", "rb") as source, fs.open(f"{folder}/{table}", "wb") as copy:
                shutil.copyfileobj(source, copy)
    return flights.references(lambda table: fs.open(f"{folder}/{table}", "r", newline=""))


# ---- what all hosts share


def hand_out(shared, parts, rows):
    """Put the flights, in parts, and the tables where all hosts find them. Returns the number of flights."""
    header, *lines = flights.unpack()
    lines = lines[:rows]
    for part in range(parts):
        with fsspec.open(f"{shared}/parts/{part:04}.csv", "wb", compression="gzip", auto_mkdir=True) as file:
            file.write(header + b"".join(lines[part::parts]))
    for table in flights.TABLES:
        copied = fsspec.open(f"{shared}/tables/{table}", "wb", auto_mkdir=True)
        with open(flights.data() / table, "rb") as source, copied as copy:
            shutil.copyfileobj(source, copy)
    fsspec.filesystem("file").makedirs(f"{shared.removeprefix('file://')}/sums")
    return len(lines)


def collect(shared):
    """The totals of all parts."""
    totals = {}
    for sums in fsspec.open_files(f"{shared}/sums/*", "rb"):
        with sums as file:
            flights.merge(totals, msgpack.unpackb(file.read()))
    return totals


# ---- the cluster


@contextlib.contextmanager
def cluster():
    """A scheduler, and a nanny for each worker; the environment says on which host it is."""
    workers = {
        f"{host}{number}": {
            "cls": Nanny,
            "options": {"name": f"{host}{number}", "nthreads": 1, "env": {"DMEMFS_SHM_HOST": host}, "dashboard_address": None},
        }
        for host in HOSTS
        for number in range(WORKERS_A_HOST)
    }
    scheduler = {"cls": Scheduler, "options": {"port": 0, "dashboard": False}}
    with (
        config.set({"distributed.scheduler.allowed-failures": 100}),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=60) as running,
        Client(running) as client,
    ):
        client.wait_for_workers(len(workers), timeout=60)
        yield running, client


class Killer:
    """Kills a worker each time when so much is done, and once all those of a host."""

    def __init__(self, workers, tasks, seed):
        self.workers, self.chance = workers, random.Random(seed)
        sixth = max(1, tasks // 6)
        self.due = [(sixth, 1), (2 * sixth, 1), (3 * sixth, WORKERS_A_HOST), (4 * sixth, 1), (5 * sixth, 1)]
        self.killed = []  # (seconds since the beginning, name of the worker)

    def look(self, done, now):
        """Kill who is due now that so many tasks are *done*."""
        while self.due and done >= self.due[0][0]:
            _, count = self.due.pop(0)
            host = self.chance.choice(HOSTS)
            for name in self.chance.sample([name for name in self.workers if name.startswith(host)], count):
                with contextlib.suppress(ProcessLookupError, TypeError):  # the last one's successor is on its way
                    os.kill(self.workers[name].pid, signal.SIGKILL)
                    self.killed.append((now, name))


class Watch:
    """What is staged on each host, as anybody sees who attaches its store."""

    def __init__(self, name):
        self.stores = {host: f"{name}-{host}" for host in HOSTS}
        self.seen = {host: [(0.0, 0, 0)] for host in HOSTS}  # (seconds, bytes, files)
        self.attached = {}

    def look(self, now):
        for host, store in self.stores.items():
            try:
                fs = self.attached.get(host) or self.attached.setdefault(host, MemoryFileSystem.attach(store))
                stats = fs.stats()
            except (FileNotFoundError, MFSStoreGoneError):
                self.forget(host)
                stats = {"used_bytes": 0, "file_count": 0}
            self.seen[host].append((now, stats["used_bytes"], stats["file_count"]))

    def forget(self, host):
        fs = self.attached.pop(host, None)
        if fs is not None:
            fs.close()

    def close(self):
        for host in HOSTS:
            self.forget(host)


def run(name, shared, options, progress):
    """The job on the cluster. Returns rows, what was seen, who was killed."""
    begin, watch = time.perf_counter(), Watch(name)
    rows = hand_out(shared, options.parts, options.rows)
    here, parts = f"dshm://{name}", range(options.parts)
    bar = progress.add_task("Tasks", total=2 * options.parts)
    with cluster() as (running, client), contextlib.closing(watch):
        client.register_plugin(HostStore(name, options.quota))
        prepared = [client.submit(prepare, part, here, shared, pure=False) for part in parts]
        sums = [client.submit(summarize, part, of, here, shared, pure=False) for part, of in zip(parts, prepared, strict=True)]
        killer = Killer(running.workers, 2 * options.parts, options.seed)
        done, deadline = 0, time.perf_counter() + options.timeout
        while not all(future.done() for future in sums):
            now = time.perf_counter()
            done = max(done, sum(future.done() for future in [*prepared, *sums]))  # what died with its worker is done again
            watch.look(now - begin)
            killer.look(done, now - begin)
            progress.update(bar, completed=done, refresh=True)
            if now > deadline:
                raise TimeoutError(f"not done after {options.timeout} seconds")
            time.sleep(0.02)
        for future in sums:
            if future.status == "error":
                future.result()
        progress.update(bar, completed=2 * options.parts, refresh=True)
    for host in HOSTS:
        watch.seen[host].append((time.perf_counter() - begin, 0, 0))
    return rows, watch.seen, killer.killed


def plot(seen, killed, path):
    """What was staged on each host, over time; a cross where a worker was killed."""
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for host, colour in zip(HOSTS, ("tab:blue", "tab:orange"), strict=True):
        times, used, _ = zip(*seen[host], strict=True)
        axes.step(times, [each / MIB for each in used], where="post", color=colour, label=f"host {host}")
        for now, worker in killed:
            if worker.startswith(host):
                axes.axvline(now, color=colour, linewidth=0.8, linestyle=":")
                axes.plot(now, -0.3, "x", color=colour, clip_on=False)
    axes.set(xlabel="seconds", ylabel="MiB staged", title="Staged on each host (x: a worker of it killed)")
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def left(name):
    """What /dev/shm still has of the stores."""
    return [entry for entry in os.listdir("/dev/shm") if name in entry]


def main():
    """Run the job on a cluster of its own, show the result, prove it."""
    options = arguments()
    console, begin = Console(), time.perf_counter()
    name = f"flights-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="flights-") as folder, Progress(console=console, auto_refresh=False) as progress:
        shared = f"file://{folder}"
        rows, seen, killed = run(name, shared, options, progress)
        totals = collect(shared)
    took = time.perf_counter() - begin

    console.print(flights.table(totals))
    console.print(f"{rows:,} rows in {took:.1f} s, {len(HOSTS)} hosts of {WORKERS_A_HOST} workers each")
    console.print("killed:", ", ".join(f"{worker} after {now:.1f} s" for now, worker in killed))
    for host in HOSTS:
        peak, files = max(used for _, used, _ in seen[host]), max(count for _, _, count in seen[host])
        console.print(f"host {host}: at most {peak:,} bytes in {files} files staged")
    plot(seen, killed, options.plot)
    console.print(f"plot: {options.plot}")
    remains = left(name)
    console.print("The stores", f"left {remains}." if remains else "went with their workers.")
    equal = totals == flights.plain(options.rows)
    console.print("one process, no cluster: the result is", "equal" if equal else "NOT EQUAL")
    sys.exit(bool(remains) or not equal)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    option = parser.add_argument
    option("--parts", type=int, default=48, help="default: %(default)s")
    option("--rows", type=int, help="take only the first ones")
    option("--quota", type=demo.size, default="64MiB", help="of each host's store; default: %(default)s")
    option("--plot", type=Path, default=Path("build/distributed.svg"), help="default: %(default)s")
    option("--seed", type=int, help="of the choice whom to kill")
    option("--timeout", type=float, default=300, help="seconds to give up after; default: 300")
    options = parser.parse_args()
    if options.parts < 1:
        parser.error("there must be a part")
    return options


if __name__ == "__main__":
    demo.command("demo-distributed", main)
