"""A real cluster of two hosts, stood in for by groups of worker processes: the same URL is each host's own store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest

pytest.importorskip("distributed")

from dask import config
from distributed import Client, Nanny, Scheduler, SpecCluster

from dmemfs_shm.integrations.dask import HostStore
from dmemfs_shm.store import names

from ..conftest import Stores
from ..processes import DEADLINE_S, until

MIB = 1 << 20
#: Which host each worker is on.
HOSTS = {"a0": "a", "a1": "a", "b0": "b"}


def worker(name: str, host: str) -> dict[str, Any]:
    options = {"name": name, "nthreads": 1, "resources": {host: 1, name: 1}, "env": {"DMEMFS_SHM_HOST": host}}
    return {"cls": Nanny, "options": options | {"dashboard_address": None}}


@pytest.fixture
def cluster(stores: Stores) -> Iterator[tuple[SpecCluster, Client, str]]:
    """The cluster, a client, and the name of the hosts' store; at the end both stores are gone."""
    store = stores.name()
    specs = {name: worker(name, host) for name, host in HOSTS.items()}
    scheduler = {"cls": Scheduler, "options": {"port": 0, "dashboard": False}}
    with config.set({"distributed.scheduler.allowed-failures": 20, "distributed.worker.daemon": False}):
        with SpecCluster(workers=specs, scheduler=scheduler, silence_logs=60) as running, Client(running) as client:
            client.wait_for_workers(len(HOSTS), timeout=DEADLINE_S)
            client.register_plugin(HostStore(store, 16 * MIB))
            yield running, client, store
    until(lambda: not any(stands(store, host) for host in "ab"), "the stores go with the workers")


def stands(store: str, host: str) -> bool:
    return os.path.exists(f"/dev/shm{names.index_name(f'{store}-{host}')}")


def write(url: str, text: str) -> None:
    with fsspec.open(url, "w") as file:
        file.write(text)


def read(url: str) -> str:
    with fsspec.open(url, "r") as file:
        return str(file.read())


def find(url: str) -> list[str]:
    fs, path = fsspec.url_to_fs(url)
    return list(fs.ls(path, detail=False))


def die_half_way(url: str, once: str) -> str:
    """The first run is killed with the file open and half written; the second one finds nothing of it."""
    fs, path = fsspec.url_to_fs(url)
    found = fs.exists(path)
    with fs.open(path, "wb") as file:
        file.write(b"half")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(b" and half")
    return f"{found} {read(url)}"


def test_hosts(cluster: tuple[SpecCluster, Client, str], tmp_path: Any) -> None:
    running, client, store = cluster
    url = f"dshm://{store}/staged"

    def on(where: str, function: Any, *arguments: Any) -> Any:
        return client.submit(function, *arguments, resources={where: 1}, pure=False).result(DEADLINE_S)

    def kill(name: str) -> None:
        pid = running.workers[name].pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: running.workers[name].pid not in (None, pid), "the nanny starts another one")

    on("a0", write, url, "on a")
    on("b", write, url, "on b")
    assert (on("a1", read, url), on("b", read, url)) == ("on a", "on b")

    # One worker of a host dies: the other one keeps the store, and its successor finds it.
    kill("a0")
    assert on("a0", read, url) == "on a"

    # A task that is killed while it writes runs again, and finds nothing half.
    assert on("a", die_half_way, f"{url}.2", str(tmp_path / "once")) == "False half and half"

    # All workers of a host die: its store goes along, and only its own.
    before = os.stat(f"/dev/shm{names.index_name(f'{store}-b')}").st_ino
    kill("b0")
    assert on("b", find, f"dshm://{store}/") == []
    assert os.stat(f"/dev/shm{names.index_name(f'{store}-b')}").st_ino != before
    assert on("a", read, url) == "on a"

    # Registered again it changes nothing.
    client.register_plugin(HostStore(store, 16 * MIB))
    assert on("a", read, url) == "on a"


def pooled(url: str) -> list[str]:
    """What processes that a task starts read under its URL."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        return list(pool.map(read, [url] * 2, timeout=DEADLINE_S))


def test_processes_of_a_task(cluster: tuple[SpecCluster, Client, str]) -> None:
    """They are on the task's host."""
    _, client, store = cluster
    url = f"dshm://{store}/staged"
    for host in "ab":
        client.submit(write, url, f"on {host}", resources={host: 1}, pure=False).result(DEADLINE_S)
    for host in "ab":
        found = client.submit(pooled, url, resources={host: 1}, pure=False).result(DEADLINE_S)
        assert found == [f"on {host}"] * 2


def test_restarted(cluster: tuple[SpecCluster, Client, str]) -> None:
    """All workers end and others come: they have empty stores, made for them."""
    _, client, store = cluster
    url = f"dshm://{store}/staged"
    client.submit(write, url, "before", resources={"a": 1}, pure=False).result(DEADLINE_S)
    client.restart(timeout=DEADLINE_S)
    for host in "ab":
        assert client.submit(find, f"dshm://{store}/", resources={host: 1}, pure=False).result(DEADLINE_S) == []
    client.submit(write, url, "after", resources={"a": 1}, pure=False).result(DEADLINE_S)
    assert client.submit(read, url, resources={"a": 1}, pure=False).result(DEADLINE_S) == "after"


CLUSTER = """
import sys
from distributed import Client, LocalCluster
from dmemfs_shm.integrations.dask import HostStore

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.register_plugin(HostStore(sys.argv[1], 16 << 20))
        print("ready", flush=True)
        sys.stdin.read()
"""


def members(session: int) -> list[int]:
    """The processes of a session, but for the one of multiprocessing's own that unlinks its semaphores when all others end."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_everybody_is_killed(stores: Stores, tmp_path: Any) -> None:
    """Scheduler, nannies, workers and all: the store goes."""
    store, script = stores.name(), tmp_path / "cluster.py"
    script.write_text(CLUSTER, encoding="utf-8")
    command = [sys.executable, str(script), store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            assert os.path.exists(f"/dev/shm{names.index_name(store)}")
        finally:
            for pid in members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/dev/shm{names.index_name(store)}"), "the store goes with its cluster")
