"""A SQLite database that lives while somebody uses it, and is kept in a store when the last one closes it.

Within one process, connections share a database in memory (SQLite's shared cache). The last one to close it saves it, as
one file that others see whole or not at all; the first one to open it again, in this process or another one, finds what was
saved. Processes take turns: who has the database holds the lock file of it in the store, and should he be killed, the lock
goes with him and the last saved state counts.

    python docs/examples/sqlite_shared_store.py
"""

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from dmemfs_shm import MemoryFileSystem

WORKERS = 4
THREADS = 3


class SharedDatabase:
    """A database by the name of a file in the store; `connection` may be used by any thread, any number at a time."""

    def __init__(self, fs: MemoryFileSystem, path: str) -> None:
        self.fs = fs
        self.path = path
        self.uri = f"file:{path.strip('/').replace('/', '-')}-{fs.uuid}?mode=memory&cache=shared"
        self.mutex = threading.Lock()
        self.users = 0

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """One more connection to the live database; the first loads it, the last saves it."""
        with self.mutex:
            if not self.users:
                self.load()
            self.users += 1
        try:
            with closing(sqlite3.connect(self.uri, uri=True, timeout=30)) as db:
                yield db
        finally:
            with self.mutex:
                self.users -= 1
                if not self.users:
                    self.save()

    def load(self) -> None:
        """Our process's turn begins: nobody else has the database until `save`."""
        self.turn = self.fs.open(self.path + ".lock", "ab", lock_timeout=60)
        self.anchor = sqlite3.connect(self.uri, uri=True, check_same_thread=False)  # keeps the database alive
        if self.fs.exists(self.path):
            with closing(sqlite3.connect(":memory:")) as saved:
                with self.fs.view(self.path) as content:
                    saved.deserialize(content)
                saved.backup(self.anchor)

    def save(self) -> None:
        """Our turn ends, with what is in the database now."""
        with self.turn:
            self.fs.write_bytes(self.path, self.anchor.serialize())
            self.anchor.close()


def count_words(database: SharedDatabase, words: list[str]) -> None:
    """What one thread does with a connection of its own."""
    with database.connection() as db:
        db.execute("PRAGMA busy_timeout = 30000")
        for word in words:
            while True:
                try:
                    with db:
                        db.execute("INSERT INTO words VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (word,))
                    break
                except sqlite3.OperationalError as error:  # connections that share a cache do not wait for each other
                    if "locked" not in str(error):
                        raise


def work(fs: MemoryFileSystem) -> None:
    """One process: threads that share the live database; it is saved when the last of them is through."""
    database = SharedDatabase(fs, "/db/words.db")
    threads = [threading.Thread(target=count_words, args=(database, ["one", "two", "two"])) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Make the table, let processes and their threads count, and look at what was saved."""
    with closing(MemoryFileSystem(max_quota=16 << 20)) as fs:
        fs.mkdir("/db")
        with SharedDatabase(fs, "/db/words.db").connection() as db:
            db.execute("CREATE TABLE words (word TEXT PRIMARY KEY, count INTEGER NOT NULL)")
        workers = [multiprocessing.Process(target=work, args=(fs,)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with SharedDatabase(fs, "/db/words.db").connection() as db:
            counts = dict(db.execute("SELECT word, count FROM words"))
        assert counts == {"one": WORKERS * THREADS, "two": 2 * WORKERS * THREADS}, counts
        print(f"{WORKERS} processes with {THREADS} threads each have counted {counts}")


if __name__ == "__main__":
    main()
