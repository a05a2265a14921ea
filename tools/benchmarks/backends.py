"""Those that are compared on small files. Each is used as its own documentation has it, with the options that make it fast."""

import contextlib
import importlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.managers import BaseManager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from dmemfs_shm import MemoryFileSystem

from .timing import MIB, OURS, PAGE, Operation

MARK, DMEMFS, MANAGER, LMDB = "open()", "D-MemFS", "D-MemFS, Manager", "LMDB"
SHARED_MEMORY, DISKCACHE, REDIS = "shared_memory", "diskcache", "Redis"


@dataclass(frozen=True)
class Backend:
    """One of those compared. An operation that it does not have, or that is the mark's own, is missing."""

    name: str
    folder: Any
    path: Callable[[int], Any]
    operations: dict[str, Operation]


# ---- the backends


def whole(put: Operation, get: Operation) -> dict[str, Operation]:
    """What those have in common who only know whole values: to create is to overwrite is to put."""
    return {"create": put, "overwrite": put, "write_bytes": put, "read": get, "read_bytes": get}


def files(name: str, folder: str, buffering: int) -> Backend:
    """Files on tmpfs. What does not open a file is the same for every buffering: it is timed once, as the mark."""
    os.mkdir(folder)

    def write(path: str) -> None:
        with open(path, "wb", buffering) as file:
            file.write(PAGE)

    def read(path: str) -> bytes:
        with open(path, "rb", buffering) as file:
            return file.read()

    operations = whole(write, read) | {
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

    operations = whole(put, get) | {
        "exists": exists,
        "remove": delete,
        "listdir": keys,
    }
    return Backend(name, None, b"%04d".__mod__, operations)


class Remote:
    """D-MemFS in the manager's process: whole files in one call each, as few round trips as it can do with."""

    def __init__(self) -> None:
        self.fs = optional("dmemfs").MemoryFileSystem(max_quota=256 * MIB)
        self.fs.mkdir("/files")

    def write(self, path: str, data: bytes) -> None:
        with self.fs.open(path, "wb") as file:
            file.write(data)

    def read(self, path: str) -> bytes:
        with self.fs.open(path, "rb") as file:
            return bytes(file.read())

    def stat(self, path: str) -> Any:
        return self.fs.stat(path)

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(path))

    def remove(self, path: str) -> None:
        self.fs.remove(path)

    def listdir(self, path: str) -> list[str]:
        return list(self.fs.listdir(path))


class Manager(BaseManager):
    """Its server has one `Remote`."""


Manager.register("Remote", Remote)


def manager(name: str, remote: Any) -> Backend:
    """D-MemFS shared by processes, as the standard library shares objects."""

    def write(path: str) -> None:
        remote.write(path, PAGE)

    operations = whole(write, remote.read) | {
        "stat": remote.stat,
        "exists": remote.exists,
        "remove": remote.remove,
        "listdir": remote.listdir,
    }
    return Backend(name, "/files", lambda number: f"/files/{number:04}", operations)


def without_tracker() -> None:
    """multiprocessing's tracker takes segments away that others still use, and costs a pipe's write for each."""
    resource_tracker.register = resource_tracker.unregister = lambda *_: None  # type: ignore[assignment]


def shared_memory(name: str, prefix: str) -> Backend:
    """A segment a file, of the size of its content."""

    def create(path: str) -> None:
        segment = SharedMemory(path, create=True, size=len(PAGE))
        segment.buf[:] = PAGE
        segment.close()

    def overwrite(path: str) -> None:
        segment = SharedMemory(path)
        segment.buf[: len(PAGE)] = PAGE
        segment.close()

    def read(path: str) -> bytes:
        segment = SharedMemory(path)
        data = bytes(segment.buf[: len(PAGE)])
        segment.close()
        return data

    def remove(path: str) -> None:
        segment = SharedMemory(path)
        segment.close()
        segment.unlink()

    operations: dict[str, Operation] = {
        "create": create,
        "overwrite": overwrite,
        "read": read,
        "write_bytes": overwrite,
        "read_bytes": read,
        "remove": remove,
    }
    return Backend(name, None, lambda number: f"{prefix}-{number:04}", operations)


def diskcache(name: str, cache: Any) -> Backend:
    """A value a file; values of more than 32 KiB are files beside its SQLite database."""

    def put(key: str) -> None:
        cache.set(key, PAGE)

    operations = whole(put, cache.get) | {
        "exists": cache.__contains__,
        "remove": cache.__delitem__,
        "listdir": lambda _: list(cache.iterkeys()),
    }
    return Backend(name, None, lambda number: f"{number:04}", operations)


def redis(name: str, client: Any) -> Backend:
    """A value a file, in a server of its own, over a unix socket."""

    def put(key: str) -> None:
        client.set(key, PAGE)

    operations = whole(put, client.get) | {
        "exists": client.exists,
        "remove": client.delete,
        "listdir": lambda _: client.keys(),
    }
    return Backend(name, None, lambda number: f"{number:04}", operations)


def optional(module: str) -> Any:
    """A module of the extra `bench`, None if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def missing() -> list[str]:
    """Those that can't be compared here."""
    absent = [name for name, module in ((DMEMFS, "dmemfs"), (LMDB, "lmdb"), (DISKCACHE, "diskcache")) if not optional(module)]
    return absent if optional("redis") and shutil.which("redis-server") else [*absent, REDIS]


@contextlib.contextmanager
def redis_server(folder: str) -> Iterator[str]:
    """The socket of a Redis of our own, which keeps nothing on disk."""
    path = f"{folder}/redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not os.path.exists(path):
            if server.poll() is not None:
                raise RuntimeError("redis-server ended")
            time.sleep(0.01)
        yield path
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def backends(folder: str) -> Iterator[list[Backend]]:
    """All that can be compared on small files here, the mark first; ours comes next to it."""
    absent = missing()
    with ExitStack() as stack:
        ours = stack.enter_context(closing(MemoryFileSystem(max_quota=64 * MIB)))
        found = [
            files(MARK, f"{folder}/buffered", -1),
            filesystem(OURS, ours),
            files("open(buffering=0)", f"{folder}/unbuffered", 0),
        ]
        if DMEMFS not in absent:
            found.append(filesystem(DMEMFS, optional("dmemfs").MemoryFileSystem(max_quota=64 * MIB)))
            server = stack.enter_context(Manager(ctx=get_context("fork")))
            found.append(manager(MANAGER, server.Remote()))  # type: ignore[attr-defined]
        if LMDB not in absent:
            environment = optional("lmdb").open(f"{folder}/lmdb", map_size=32 * MIB, sync=False, metasync=False, writemap=True)
            found.append(lmdb(LMDB, stack.enter_context(closing(environment))))
        found.append(shared_memory(SHARED_MEMORY, f"{os.path.basename(folder)}-segment"))
        if DISKCACHE not in absent:
            found.append(diskcache(DISKCACHE, stack.enter_context(closing(optional("diskcache").Cache(f"{folder}/cache")))))
        if REDIS not in absent:
            socket = stack.enter_context(redis_server(folder))
            found.append(redis(REDIS, optional("redis").Redis(unix_socket_path=socket)))
        yield found
