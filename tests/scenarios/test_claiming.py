"""Workers that claim files and are killed at any moment: every file is done exactly once, or is among the dead letters.

Eight processes claim the files of a directory. A ledger says what became of each: a worker notes a file, by one write to a
file opened for appending, after it has its claim and again after `done`. Workers are killed at random, some of them
deliberately in the middle of a claim, and replaced. In the end

  * no file is left in the directory, and none that was there is neither done nor a dead letter;
  * none was done twice, and none that was done is a dead letter;
  * a dead letter was begun at least as often as a file may be;
  * every worker that lived long enough had work.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem, MFSTimeoutError

from ..crash.harness import SEED
from ..figures import KILLS
from ..lockstore import clear_away, fresh_name
from ..processes import DEADLINE_S, until

MIB = 1 << 20
WORKERS = 8
ATTEMPTS = 3


def note(ledger: int, what: str, path: str) -> None:
    os.write(ledger, f"{what} {path} {os.getpid()}\n".encode())


def work(name: str, ledger: int, seed: int) -> None:
    """A worker: it takes what there is until nothing comes any more. Poison is never done."""
    chance = random.Random(seed)
    fs = MemoryFileSystem.attach(name)
    while True:
        try:
            with fs.claim("/in/*", 1.5, ATTEMPTS, "/dead") as claim:
                note(ledger, "begun", claim.path)
                assert claim.read_bytes() == claim.path.encode()
                if "poison" in claim.path:
                    continue
                time.sleep(chance.random() * 0.004)
                claim.done()
                note(ledger, "done", claim.path)
        except MFSTimeoutError:
            break
    fs.close()


def start(name: str, ledger: int, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work(name, ledger, seed)
            code = 0
        os._exit(code)
    return pid


def kill_some(workers: list[int], name: str, ledger: int, chance: random.Random, fs: MemoryFileSystem, count: int) -> int:
    """Kill one of the workers every few milliseconds, while there is work, and start another; how many died."""
    kills = 0
    while kills < count and fs.listdir("/in"):
        time.sleep(chance.random() * 0.01)
        place = chance.randrange(len(workers))
        os.kill(workers[place], 9)
        os.waitpid(workers[place], 0)
        workers[place] = start(name, ledger, chance.randrange(1 << 30))
        kills += 1
    return kills


@pytest.mark.parametrize(
    ("files", "kills"),
    [pytest.param(2000, 40, id="2000"), pytest.param(10_000, 400, id="10000", marks=[pytest.mark.slow, pytest.mark.crash])],
)
def test_every_file_is_done_once(tmp_path: Path, record_property: Any, files: int, kills: int) -> None:
    chance, name = random.Random(SEED), fresh_name()
    ledger = os.open(tmp_path / "ledger", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    fs = MemoryFileSystem.create(name, 64 * MIB, max_participants=64)
    workers: list[int] = []
    try:
        fs.mkdir("/in")
        paths = {f"/in/{number}{'-poison' if number % 500 == 7 else ''}" for number in range(files)}
        for path in sorted(paths):
            fs.write_bytes(path, path.encode())
        workers += [start(name, ledger, chance.randrange(1 << 30)) for _ in range(WORKERS)]
        killed = kill_some(workers, name, ledger, chance, fs, kills)
        until(lambda: not fs.listdir("/in"), "no file is left")
        while workers:
            _, status = os.waitpid(workers.pop(), 0)
            assert status == 0
        record_property(KILLS, killed)
        lines = [line.split() for line in (tmp_path / "ledger").read_text().splitlines()]
        begun = Counter(path for what, path, _ in lines if what == "begun")
        done = Counter(path for what, path, _ in lines if what == "done")
        dead = {f"/in/{fs_name}" for fs_name in fs.listdir("/dead")}
        assert set(done.values()) == {1}
        assert not dead & done.keys()
        # Whoever is killed between done() and the note has noted only the beginning, and that last.
        missing = paths - done.keys() - dead
        assert len(missing) <= killed and all(begun[path] for path in missing)
        assert {path for path in paths if "poison" in path} <= dead
        assert all(begun[path] <= ATTEMPTS for path in begun)
        assert all(begun[path] == ATTEMPTS or len(dead) <= killed + files // 500 for path in dead)
        assert fs.locks() == [] and fs.check() == []
        share = Counter(pid for what, _, pid in lines if what == "done")
        record_property("files done by the most and the least busy", f"{max(share.values())} {min(share.values())}")
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        os.close(ledger)
        fs.close()
        assert clear_away(name) == []


def test_workers_have_equal_shares(tmp_path: Path) -> None:
    """Nobody goes hungry: each of four that start together has some of the files, if each file takes a while."""
    name, files, workers = fresh_name(), 400, 4
    fs = MemoryFileSystem.create(name, 16 * MIB, max_participants=16)
    pids: list[int] = []
    try:
        fs.mkdir("/in")
        for _ in range(workers):
            pids.append(os.fork())
            if pids[-1] == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    share(name, workers)
                    code = 0
                os._exit(code)
        until(lambda: len(fs.participants()) == workers + 1, "all are there")
        for number in range(files):
            fs.write_bytes(f"/in/{number}", b"x")
        fs.write_bytes("/go", b"")
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        pids.clear()
        shares = [int(fs.read_bytes(path)) for path in fs.glob("/shares/*")]
        assert sum(shares) == files and len(shares) == workers
        assert min(shares) >= files / workers / 4, shares
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        fs.close()
        assert clear_away(name) == []


def share(name: str, workers: int) -> None:
    fs = MemoryFileSystem.attach(name)
    fs.wait_for("/go", DEADLINE_S)
    count = 0
    while True:
        try:
            with fs.claim("/in/*", 0) as claim:
                time.sleep(0.001)
                claim.done()
        except MFSTimeoutError:
            break
        count += 1
    fs.mkdir("/shares", exist_ok=True)
    fs.write_bytes(f"/shares/{os.getpid()}", str(count).encode())
    fs.close()
