"""Streams that end in an exception before the machine runs out of memory.

Processes write a stream each, chunk by chunk. The quota says how much all of them may have together; the memory guard
compares each write with what RAM and cgroup have left. Whoever meets either takes his file away, and those of the others stay.
"""

from contextlib import closing
from multiprocessing import get_context

from dmemfs_shm import MemoryFileSystem, MFSQuotaExceededError

MIB = 1 << 20


def receive(fs, path, size, chunk=64 << 10):
    """Write a stream of so many bytes; returns what became of it."""
    written = 0
    try:
        with fs.open(path, "wb") as file:
            while written < size:
                written += file.write(bytes(min(chunk, size - written)))
    except MFSQuotaExceededError as error:
        fs.remove(path)
        return f"{path}: the quota ended it: {error}"
    except MemoryError as error:
        fs.remove(path)
        return f"{path}: the guard ended it: {error}"
    return f"{path}: {written:,} bytes"


def main():
    guarded = {"memory_guard": "per_write", "memory_guard_action": "raise", "memory_guard_interval": 1.0}
    with closing(MemoryFileSystem(8 * MIB, **guarded)) as fs:  # the guard goes with it to the workers
        with get_context("forkserver").Pool(2) as pool:
            for outcome in pool.starmap(receive, [(fs, "/first", MIB), (fs, "/second", 2 * MIB)], chunksize=1):
                print(outcome)
            print(pool.apply(receive, (fs, "/too long", 9 * MIB)))
        print("stored:", ", ".join(sorted(fs.listdir("/"))), "-", f"{fs.stats()['used_bytes']:,} bytes of quota")

    try:
        MemoryFileSystem(64 * 1024**2 * MIB, memory_guard="init", memory_guard_action="raise")
    except MemoryError as error:
        print("64 TiB:", error)


if __name__ == "__main__":
    main()
