"""Staging for an ETL job: extractors write parts, transformers take them up as they come, and a loader collects the results.

The stages are threads of one process or, with --processes, processes: nothing else differs. A part appears when it is
complete, because it is written under another name and renamed; and of those who want it one gets it, because a rename has
one winner.

    python docs/examples/threaded_staging.py [--processes]
"""

import argparse
import csv
import io
import multiprocessing
import os
import threading
import time
from contextlib import closing

from dmemfs_shm import MemoryFileSystem

EXTRACTORS, TRANSFORMERS, PARTS, ROWS = 3, 2, 6, 50


def extract(fs: MemoryFileSystem, extractor: int) -> None:
    """Write parts, as if rows came from somewhere."""
    for part in range(PARTS):
        name = f"{extractor}-{part}.csv"
        with fs.open(f"/tmp/{name}", "wb") as raw:
            text = io.TextIOWrapper(raw, "utf-8", newline="")
            csv.writer(text).writerows((extractor, part, row, row % 7) for row in range(ROWS))
            text.flush()
        fs.rename(f"/tmp/{name}", f"/ready/{name}")


def transform(fs: MemoryFileSystem, transformer: int) -> None:
    """Take up parts until as many results stand as there are parts."""
    while len(fs.listdir("/done")) < EXTRACTORS * PARTS:
        for path in fs.glob("/ready/*.csv"):
            mine = f"/work/{transformer}-{path.rsplit('/', 1)[1]}"
            try:
                fs.rename(path, mine)
            except FileNotFoundError:
                continue  # another one was quicker
            with fs.open(mine) as raw:
                values = [int(row[3]) for row in csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""))]
            fs.write_bytes(f"/done/{path.rsplit('/', 1)[1]}", f"{len(values)},{sum(values)},{os.getpid()}".encode())
            fs.remove(mine)
        time.sleep(0.002)


def main() -> None:
    """Run the stages, and load what they have made."""
    parser = argparse.ArgumentParser(description="Extractors, transformers and a loader share a staging area.")
    parser.add_argument("--processes", action="store_true", help="stages are processes, not threads")
    kind = multiprocessing.Process if parser.parse_args().processes else threading.Thread

    with closing(MemoryFileSystem(max_quota=16 << 20)) as fs:
        for directory in ("/tmp", "/ready", "/work", "/done"):
            fs.mkdir(directory)
        stages = [kind(target=extract, args=(fs, number)) for number in range(EXTRACTORS)]
        stages += [kind(target=transform, args=(fs, number)) for number in range(TRANSFORMERS)]
        for stage in stages:
            stage.start()
        for stage in stages:
            stage.join()
        results = [list(map(int, data.split(b","))) for data in fs.export_tree("/done").values()]
        rows, total = sum(row[0] for row in results), sum(row[1] for row in results)
        assert rows == EXTRACTORS * PARTS * ROWS and fs.listdir("/ready") == fs.listdir("/work") == []
        where = "other processes" if os.getpid() not in {row[2] for row in results} else "this process"
        print(f"{rows:,} rows in {len(results)} parts were transformed in {where}; their values add up to {total:,}")


if __name__ == "__main__":
    main()
