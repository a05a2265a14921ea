"""What a player does with processes: it forks in the middle of everything, and hands its filesystem object on by pickle.

The child has the place of the thread that started it, which meanwhile waits: so what the child leaves, however it ends, is
held against what is noted outside the store, as for any successor. The children of a worker that is killed go with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal

from dmemfs_shm import MFSForkedError

from ..crash.harness import WordBuffer, instrument
from .documents import documents
from .herd import Fate, ViolationError, fork
from .player import Player

OPERATIONS_MOST = 40
STORES_MEAN = 500  # of a suicide
KEPT = "/kept"  # a file that nobody ever changes: a child that waited for its parent's lock would wait for ever


class Parent(Player):
    """A player that has children. *apprentices* is a list that the threads of a worker share."""

    def __init__(self, *args, childrens_deeds=(), apprentices=(), **options):
        super().__init__(*args, **options)
        self.childrens_deeds = childrens_deeds
        self.apprentices = apprentices

    def fork(self):
        """A child goes on with the filesystem object that it inherited, beside views and an open file of ours."""
        self.board.forks[self.place] += 1
        seed = self.rng.random()
        handle = self.call("open", self.fs.open, KEPT, insists=True)
        try:
            self.entrust(fork(lambda: self.as_child(seed, self.fs, handle)))
            documents(self.call("read", handle.read), KEPT)
        finally:
            self.call("close", handle.close)

    def fork_a_nomad(self):
        """A child attaches the store and closes it again and again."""
        self.board.forks[self.place] += 1
        self.work_off()
        seed = self.rng.random()
        self.entrust(fork(lambda: self.as_nomad(seed)))

    def pickle(self):
        """A process that never had the store gets the filesystem object by pickle."""
        if self.apprentices:
            with contextlib.suppress(IndexError):
                apprentice, pipe = self.apprentices.pop()
                self.board.pickles[self.place] += 1
                self.work_off()
                with os.fdopen(pipe, "wb") as file:
                    pickle.dump((self.place, self.rng.random(), self.impatient, pickle.dumps(self.fs)), file)
                self.entrust(apprentice)

    def entrust(self, child):
        """Leave the place to a child until it ends."""
        code = child.wait()
        text = child.told()
        self.board.begin_life(self.place)
        if code == -signal.SIGKILL:
            self.board.offspring_deaths[self.place] += 1
        elif code or text:
            raise ViolationError(f"a child in place {self.place} ended with {code}: {text}")
        self.succeed()

    # ---- in the child

    def as_child(self, seed, fs, handle=None):
        """Go on with *fs*, for some operations; then end in order, or without a word, or by a kill at some store."""
        self.rng.seed(seed)
        self.deeds = self.childrens_deeds
        self.left, self.fs = self.rng.randrange(OPERATIONS_MOST), fs
        self.second = None
        if handle is not None:
            with contextlib.suppress(MFSForkedError):
                handle.read()
                raise ViolationError("a child read from a handle that it inherited")
        store = self.call("attach", fs._attached, insists=True)  # which the first use would do, and nobody would insist
        if self.rng.random() < 0.5:
            fate = Fate(self.board, self.place, int(self.rng.expovariate(1 / STORES_MEAN)))
            instrument(store, lambda words: WordBuffer(words, fate))
        self.play()
        if self.rng.random() < 0.5:
            fs.close()
        return ""

    def as_nomad(self, seed):
        self.rng.seed(seed)
        name = self.fs.name
        self.deeds = self.childrens_deeds
        for _ in range(self.rng.randrange(1, 6)):
            self.left = self.rng.randrange(10)
            self.fs = self.attach(name)
            self.play()
            self.fs.close()
        return ""


def apprentice(reads, make_player):
    """What a process does that was forked before its worker attached: wait for a filesystem object, and use it."""
    with os.fdopen(reads, "rb") as file:
        data = file.read()
    if not data:
        return ""  # it was not needed
    place, seed, impatient, pickled = pickle.loads(data)
    player = make_player(place, impatient)
    return player.as_child(seed, player.call("attach", pickle.loads, pickled, insists=True))
