"""Random use of a store by processes that are killed and stopped at random: python tools/torture.py --seconds 60.

Workers with several threads do everything that the public API offers, on a small tree of paths. The parent kills random
workers with SIGKILL, one by one and in storms, starts others in their place, and now and then stops one for a moment or
for seconds. Some workers kill themselves at a random store into the store: a kill from outside seldom meets the few
microseconds of a transaction. What a file contains says itself who wrote it and whether it is all there: any other content
is a violation, unless the file is marked abandoned. (tests/stress: `player` for what is true outside the store, `offspring`
for forks and pickles, `second` for the store that is destroyed and created anew, `herd` for the rest.)

At the end, and whenever a storm has left nobody, a fresh process finds the store sound: check() finds nothing, nobody holds a
lock, every lock can be had, and the quota is what the files cost. Where that is allowed (root), the run has a /dev/shm of its
own: nobody else is hurt, and in the end it must be empty. --shm-mib makes that a small one, which somebody fills up.

--seed repeats all choices of a run, though not the moments at which the processes get to them. A finding keeps what was in
/dev/shm, in a directory that the findings name.
"""

import contextlib
import dataclasses
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import threading
import traceback

from dmemfs_shm import MemoryFileSystem, MFSAbandonedFileError
from dmemfs_shm.store.layout import REAPS, RECOVERIES
from tests import own_shm
from tests.crash.harness import WordBuffer, instrument
from tests.stress.documents import document, documents
from tests.stress.herd import HANG_S, Conditions, Fate, Figures, Herd, ViolationError, adopt_orphans, fork, option
from tests.stress.offspring import KEPT, Parent, apprentice
from tests.stress.player import DEEDS, NAMES, Player, Truth
from tests.stress.second import Neighbour

SHM = "/dev/shm"
STORES_MEAN = 2000  # of a suicide


@dataclasses.dataclass
class Mix(Conditions):
    """What a run consists of."""

    quota: int = option(8 << 20, "bytes of the store; little enough that it is reached")
    scarcity: bool = option(True, "phases in which the quota is used up")
    forks: bool = option(True, "workers fork in the middle of everything; the child goes on with what it inherited")
    pickles: bool = option(True, "workers pickle the filesystem object to a process that never had the store")
    nomads: bool = option(True, "processes that attach and close again and again")
    second_store: bool = option(True, "a second store that is destroyed and created anew while others use it")
    impatient: float = option(0.3, "share of the workers that wait for nobody longer than a second or so")
    shm_mib: int = option(0, "size of a /dev/shm of the run's own, which somebody fills up now and then; 0: large, and not")
    json: bool = option(False, "print the figures as one JSON object")


class Worker(Parent, Neighbour):
    """All that the threads of a worker do."""


@dataclasses.dataclass(kw_only=True)
class Seen(Figures):
    """What a run saw."""

    own_operations: int
    compared_readings: int
    found_before: int
    found_after: int
    found_abandoned: int
    attaches: int
    forks: int
    pickles: int
    offspring_deaths: int
    second_stores: int
    second_stores_destroyed: int
    told_gone: int
    busy: int  # refused while somebody was stopped inside a section, and done later
    busy_unnamed: int  # of these, errors that did not name who is stopped
    no_space: int  # refused because /dev/shm was full
    late: int  # locks that were not had in little more than a second, and later
    recoveries: int
    reaps: int
    abandoned_at_end: int
    lost_bytes: int
    stuck_locks: int
    corrupt_entries: int
    shm_entries: tuple[int, int]  # after the first tenth, and the most from then on
    shm_kib: tuple[int, int]

    @property
    def deaths(self):
        return self.kills + self.suicides + self.offspring_deaths


class Torture(Herd):
    """The herd and the store that it is in."""

    def __init__(self, name, mix):
        super().__init__(mix, Truth(mix.processes * mix.threads))
        self.name, self.mix = name, mix
        self.full = mix.shm_mib > 0
        self.filled = False
        self.shm = [[0, 0], [0, 0]]  # entries, KiB: at the beginning, and the most
        self.marks = [name]
        self.evidence = ""
        self.last = {}
        self.turns = self.schedule("scarcity", 0.5 if mix.scarcity else 0)
        self.fills = self.schedule("filling", 2.0 if self.full else 0)
        chosen = {
            Parent.fork: mix.forks,
            Parent.fork_a_nomad: mix.nomads,
            Parent.pickle: mix.pickles,
            Player.ballast: mix.scarcity,
        }
        self.childrens_deeds = [deed for deed, weight in DEEDS for _ in range(weight)] + [
            Neighbour.use_second
        ] * 6 * mix.second_store
        self.deeds = self.childrens_deeds + [deed for deed, is_chosen in chosen.items() if is_chosen]

    # ---- in a worker

    def player(self, place, seed, **options):
        rng = random.Random(f"{self.mix.seed}:{seed}")
        return Worker(self.board, place, rng, self.deeds, childrens_deeds=self.childrens_deeds, full=self.full, **options)

    def work(self, worker):
        warnings.simplefilter("ignore")  # some handles are left to the collector, and forks are what we do
        life, rng, places = f"{worker.index}:{worker.life}", worker.rng, self.places_of(worker.index)
        apprentices = [self.apprentice(f"{life}:a")] if self.mix.pickles and rng.random() < 0.4 else []
        options = {"operations": rng.choice((-1, -1, -1, 300)), "impatient": rng.random() < self.mix.impatient}
        options["apprentices"] = apprentices
        players = [self.player(place, f"{life}:{place}", **options) for place in places]
        fs = players[0].attach(self.name)
        if worker.is_mortal:
            fate = Fate(self.board, places[0], int(rng.expovariate(1 / STORES_MEAN)))
            instrument(fs._store, lambda words: WordBuffer(words, fate))
        failures = []

        def run(player):
            try:
                player.fs = fs
                player.succeed()
                player.play()
                if player.second is not None:
                    player.second.close()
            except BaseException:  # noqa: BLE001  (the parent is told)
                failures.append(f"place {player.place}: {traceback.format_exc()}")
                self.board.ending[0] = 1

        running = [threading.Thread(target=run, args=(player,)) for player in players]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        for child, pipe in apprentices:
            os.close(pipe)
            child.wait()
        fs.close()
        return "\n".join(failures)

    def apprentice(self, seed):
        """A process that waits for a filesystem object, and the pipe on which it does."""
        reads, writes = os.pipe()

        def wait():
            os.close(writes)
            return apprentice(reads, lambda place, impatient: self.player(place, seed, impatient=impatient))

        child = fork(wait)
        os.close(reads)
        return child, writes

    # ---- in the parent

    def each_turn(self, now):
        if self.turns.due(now):
            self.board.scarce[0] ^= 1
        if self.fills.due(now):
            self.fill(not self.filled)

    def fill(self, full):
        """Somebody else takes all of /dev/shm, or gives it back."""
        self.filled = full
        (own_shm.fill_shm if full else own_shm.free_shm)()

    def gauge(self, *, first):
        super().gauge(first=first)
        for figure, now in zip(self.shm, self.look_at_shm(), strict=True):
            figure[1] = max(figure[1], now)
            if first:
                figure[0] = figure[1]

    def look_at_shm(self):
        """(entries, KiB) of the run in /dev/shm."""
        sizes = []
        for entry in self.entries():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.stat(f"{SHM}/{entry}").st_blocks // 2)
        return len(sizes), sum(sizes)

    def entries(self):
        """Of a /dev/shm of our own all, else those that carry the name of a store of ours or its uuid."""
        return sorted(e for e in os.listdir(SHM) if "dmemfs-" in e and (not self.marks or any(m in e for m in self.marks)))

    def examine(self):
        """A fresh process attaches the store that everybody has left, and looks at everything."""
        if self.full:
            self.fill(False)
        child = fork(self.inspect)
        end = time.monotonic() + 2 * HANG_S
        while (code := child.wait(os.WNOHANG)) is None:
            if time.monotonic() > end:
                os.kill(child.pid, signal.SIGUSR1)
                select.select([], [], [], 0.5)
                os.kill(child.pid, signal.SIGKILL)
                code = child.wait()
                break
            select.select([], [], [], 0.002)
        text = child.told()
        if code:
            return [f"a fresh process could not look at the store ({code}): {text}"]
        self.last = json.loads(text)
        if self.last["findings"]:
            self.keep_evidence()
        return self.last["findings"]

    def inspect(self):
        """Nobody else is in the store: what is there? As JSON."""
        warnings.simplefilter("ignore")
        player = self.player(0, "inspection")
        player.fs = fs = player.attach(self.name)
        fs.trim()  # gives back whatever the dead held
        checks = [f"check: {finding}" for finding in fs.check()]
        locks = [f"a lock is left: {lock}" for lock in fs.locks()]
        corrupt, cost, files, directories, abandoned = [], 0, [], 0, 0
        for folder, _, names in fs.walk("/"):
            directories += 1
            for path in (f"{folder.rstrip('/')}/{name}" for name in names):
                files.append(path)
                cost += charge(fs.get_size(path))
                abandoned += fs.stat(path)["abandoned"]
                try:
                    documents(fs.read_bytes(path), path)
                except MFSAbandonedFileError:
                    if not fs.stat(path)["abandoned"]:
                        corrupt.append(f"{path}: abandoned or not?")
                except ViolationError as violation:
                    corrupt.append(str(violation))
        for path in files:  # everything can be locked, though not opened: that would clear the mark of an abandoned file
            try:
                fs.open(path, "r+b", lock_timeout=5.0).close()
            except MFSAbandonedFileError:
                pass
            except OSError as error:
                locks.append(f"{path} can't be locked: {error}")
        stats, info = fs.stats(), fs.info()
        lost = stats["used_bytes"] - cost
        findings = [f"{lost} bytes of quota are lost, {info['orphaned']} are orphaned"] if lost or info["orphaned"] else []
        if (len(files), directories) != (stats["file_count"], stats["dir_count"]):
            corrupt.append(f"{stats}; {len(files)} files and {directories} directories found")
        checks += [f"check, at last: {finding}" for finding in fs.check()]
        for place in range(self.board.places):
            player.place, player.home = place, f"/own/{place}"
            try:
                player.succeed()
            except ViolationError as violation:
                corrupt.append(str(violation))
        last = {
            "findings": [finding[:1500] for finding in (findings + checks + locks + corrupt)[:20]],
            "lost_bytes": abs(lost) + abs(info["orphaned"]),
            "stuck_locks": len(locks),
            "corrupt_entries": len(corrupt) + len(checks),
            "abandoned_at_end": abandoned,
            "recoveries": fs._store.w[RECOVERIES],
            "reaps": fs._store.w[REAPS],
        }
        fs.close()
        return json.dumps(last)

    def keep_evidence(self):
        """Copy what the run has in /dev/shm, once."""
        if self.evidence:
            return
        self.evidence = tempfile.mkdtemp(prefix="torture-")
        subprocess.run(["cp", "--sparse=always", *(f"{SHM}/{entry}" for entry in self.entries()), self.evidence], check=False)
        self.findings.append(f"what was in /dev/shm: {self.evidence}")

    def seen(self):
        board = self.board
        unknown = dict.fromkeys(("lost_bytes", "stuck_locks", "corrupt_entries", "abandoned_at_end", "recoveries", "reaps"), -1)
        last = {**unknown, **{key: value for key, value in self.last.items() if key != "findings"}}
        return Seen(
            **self.figures(),
            **last,
            own_operations=sum(board.own),
            compared_readings=sum(board.peeks),
            found_before=sum(board.found_before),
            found_after=sum(board.found_after),
            found_abandoned=sum(board.found_abandoned),
            attaches=sum(board.done[place * len(NAMES) + NAMES.index("attach")] for place in range(board.places)),
            forks=sum(board.forks),
            pickles=sum(board.pickles),
            offspring_deaths=sum(board.offspring_deaths),
            second_stores=sum(board.created),
            second_stores_destroyed=sum(board.destroyed),
            told_gone=sum(board.gone),
            busy=sum(board.busy),
            busy_unnamed=sum(board.busy_unnamed),
            no_space=sum(board.no_space),
            late=sum(board.late),
            shm_entries=tuple(self.shm[0]),
            shm_kib=tuple(self.shm[1]),
        )


def charge(size):
    """What the quota is charged for a closed file."""
    if not size:
        return 0
    unit = 256 if size < 4096 else 4096
    return -(-size // unit) * unit + 128


def furnish(name, mix):
    """The store as the first workers find it."""
    warnings.simplefilter("ignore")
    fs = MemoryFileSystem.create(
        name, mix.quota, backend=mix.backend, max_participants=min(256, 8 * mix.processes), max_nodes=1200
    )
    for path in "/all/x/y", "/ballast", *(f"/own/{place}" for place in range(mix.processes * mix.threads)):
        fs.mkdir(path)
    fs.write_bytes(KEPT, document(0, 0, 1000))
    fs.close()
    return fs.uuid.hex


def torture(mix):
    """One run; its findings are empty if all went well."""
    adopt_orphans()
    is_own = own_shm.is_possible()
    if is_own:
        own_shm.own_shm(mix.shm_mib)
    elif mix.shm_mib:
        sys.exit("--shm-mib needs the right to mount")
    name = f"t-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    run = Torture(name, mix)
    try:
        run.marks = [] if is_own else [name, furnish(name, mix)]
        if is_own:
            furnish(name, mix)
        run.run()
        run.look()
        if run.findings:
            run.keep_evidence()
    finally:
        for store in name, f"{name}.second":
            with contextlib.suppress(FileNotFoundError):
                MemoryFileSystem.destroy(store)
        own_shm.free_shm() if run.full else None
    seen = run.seen()
    seen.findings += [f"left in /dev/shm: {entry}" for entry in run.entries()]
    return seen


def main():
    mix = Mix.from_command_line(__doc__.splitlines()[0])
    print(f"seed {mix.seed}", flush=True, file=sys.stderr)
    logging.getLogger("dmemfs_shm").setLevel(logging.CRITICAL)
    seen = torture(mix)
    print(json.dumps(dataclasses.asdict(seen)) if mix.json else seen)
    return bool(seen.findings)


if __name__ == "__main__":
    sys.exit(main())
