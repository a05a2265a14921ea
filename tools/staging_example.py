"""Ten writers stage a file each, at the same time; then one reader collects them.

The writers are threads or, with --processes, processes. Nothing else differs.
"""

import argparse
import multiprocessing
import os
import threading
from contextlib import closing

from dmemfs_shm import MemoryFileSystem

WRITERS = 10


def stage(fs: MemoryFileSystem, writer: int) -> None:
    """Write one file, as if it had been downloaded."""
    with fs.open(f"/staging/raw/{writer:02}.csv", "wb") as file:
        file.write(b"writer,pid,value\n")
        for value in range(100):
            file.write(f"{writer},{os.getpid()},{value}\n".encode())


def main() -> None:
    """Stage, wait, collect."""
    parser = argparse.ArgumentParser(description="Ten writers stage a file each; one reader collects them.")
    parser.add_argument("--processes", action="store_true", help="write from processes, not threads")
    kind = multiprocessing.Process if parser.parse_args().processes else threading.Thread

    with closing(MemoryFileSystem(max_quota=16 << 20)) as fs:
        fs.mkdir("/staging/raw")
        writers = [kind(target=stage, args=(fs, writer)) for writer in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

        rows = [
            row.split(",")
            for path in sorted(fs.glob("/staging/raw/*.csv"))
            for row in fs.read_bytes(path).decode().splitlines()[1:]
        ]
        pids = {pid for _, pid, _ in rows}
        print(f"{len(rows):,} rows in {len(fs.listdir('/staging/raw'))} files from {len(pids)} process(es)")
        print("the values add up to", sum(int(value) for _, _, value in rows))
        usage = fs.stats()
        print(f"{usage['used_bytes']:,} of {usage['quota_bytes']:,} bytes of quota used")


if __name__ == "__main__":
    main()
