"""SQLite test fixtures: a master database is made once, kept in a store, and each test begins with a copy of it.

The tests run in worker processes, as pytest-xdist would run them. Each loads the master straight from shared memory into a
connection of its own, changes what it likes, and leaves nothing behind. No disk is touched.

    python docs/examples/sqlite_fixtures.py
"""

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from dmemfs_shm import MemoryFileSystem

MASTER = "/fixtures/master.db"
WORKERS = 3


def make_master(fs: MemoryFileSystem) -> None:
    """What is slow: schema and rows. Done once."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE accounts (name TEXT PRIMARY KEY, balance INTEGER NOT NULL)")
        db.executemany("INSERT INTO accounts VALUES (?, ?)", [(f"customer {n}", 100) for n in range(1000)])
        db.commit()
        fs.mkdir("/fixtures")
        fs.write_bytes(MASTER, db.serialize())


@contextmanager
def database(fs: MemoryFileSystem) -> Iterator[sqlite3.Connection]:
    """The fixture: a database with the master's content, for one test alone."""
    with closing(sqlite3.connect(":memory:")) as db:
        with fs.view(MASTER) as master:
            db.deserialize(master)  # SQLite takes its copy from the shared memory itself
        yield db


def total(db: sqlite3.Connection) -> int:
    """All balances together."""
    return int(db.execute("SELECT sum(balance) FROM accounts").fetchone()[0])


def check_transfer(db: sqlite3.Connection) -> None:
    """A transfer changes no total."""
    db.execute("UPDATE accounts SET balance = balance - 30 WHERE name = 'customer 1'")
    db.execute("UPDATE accounts SET balance = balance + 30 WHERE name = 'customer 2'")
    assert total(db) == 100_000


def check_closing_an_account(db: sqlite3.Connection) -> None:
    """It takes its balance with it."""
    db.execute("DELETE FROM accounts WHERE name = 'customer 1'")
    assert total(db) == 99_900


def check_nothing_is_left(db: sqlite3.Connection) -> None:
    """Whatever other tests did, here all is as it was made."""
    assert db.execute("SELECT count(*), min(balance), max(balance) FROM accounts").fetchone() == (1000, 100, 100)


CHECKS: list[Callable[[sqlite3.Connection], None]] = [check_transfer, check_closing_an_account, check_nothing_is_left]


def work(fs: MemoryFileSystem, number: int) -> tuple[int, int]:
    """One worker: every check, beginning with another one in each worker. Returns its pid and how many it ran."""
    for check in CHECKS[number:] + CHECKS[:number]:
        with database(fs) as db:
            check(db)
    return os.getpid(), len(CHECKS)


def main() -> None:
    """Make the master, run the workers, and see that the master is what it was."""
    with closing(MemoryFileSystem(max_quota=16 << 20)) as fs:
        make_master(fs)
        before = fs.stat(MASTER)
        with multiprocessing.Pool(WORKERS) as pool:
            results = pool.starmap(work, [(fs, number) for number in range(WORKERS)])
        assert fs.stat(MASTER) == before
        checks = sum(count for _, count in results)
        print(f"{checks} checks passed in worker processes; the master of {before['size']:,} bytes was loaded {checks} times")


if __name__ == "__main__":
    main()
