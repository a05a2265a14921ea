"""A second store beside the main one, which anybody destroys and creates anew while others use it.

Who has it attached sees what that store holds, or that it is gone: never anything of its successor. Every document in it
bears the low half of the uuid of the store that it was written to.
"""

from __future__ import annotations

import contextlib
import os

from dmemfs_shm import (
    MemoryFileSystem,
    MFSAbandonedFileError,
    MFSFileOpenError,
    MFSQuotaExceededError,
    MFSStoreGoneError,
    MFSUnfinishedStoreError,
)

from .documents import document, documents
from .herd import ViolationError
from .player import Player, RefusedError

QUOTA = 1 << 20
NOT_THERE = (FileNotFoundError, MFSUnfinishedStoreError, MFSStoreGoneError)  # while one goes and another comes


class Neighbour(Player):
    """A player that uses the second store, too."""

    def use_second(self):
        """Attach it, creating it if need be; read, write, look, or take it away."""
        name = f"{self.fs.name}.second"
        if self.second is None:
            self.come(name)
        deed = self.rng.choice((self.write_second, self.write_second, self.read_second, self.read_second, self.view_second))
        if self.rng.random() < 0.05:
            deed = self.destroy_second
        elif self.rng.random() < 0.1:
            deed = self.leave_second
        elif self.rng.random() < 0.1:
            deed = self.compare_second
        try:
            deed(name)
        except RefusedError as refusal:
            if type(refusal.args[0]) is MFSStoreGoneError:
                self.expect_gone()
            raise

    def come(self, name):
        """Attach it, or create it."""
        board = self.board
        self.settled_before = sum(board.destroyed)
        try:
            self.second = self.call("second", MemoryFileSystem.attach, name, accepted=NOT_THERE)
        except RefusedError:
            options = {"max_participants": 64, "backend": self.fs.info()["backend"], "accepted": (*NOT_THERE, FileExistsError)}
            self.second = self.call("second", MemoryFileSystem.create, name, QUOTA, **options)
            board.created[self.place] += 1

    def mark(self):
        """What documents of this store bear in place of a number."""
        return self.second.uuid.int & (1 << 64) - 1

    def expect_gone(self):
        """We were told so: somebody must have begun to destroy a store since we came."""
        board = self.board
        board.gone[self.place] += 1
        if sum(board.destroying) <= self.settled_before:
            raise ViolationError("the second store is said to be gone, and nobody destroyed it")
        self.leave_second()

    def leave_second(self, _name=""):
        second, self.second = self.second, None
        second.close()

    def write_second(self, _name):
        path = f"/{self.rng.choice('abcdef')}"
        size = self.rng.choice((10, 300, 5000, 100_000))
        accepted = (MFSStoreGoneError, MFSQuotaExceededError)
        self.call("second", self.second.write_bytes, path, document(self.place, self.mark(), size), accepted=accepted)

    def read_second(self, _name):
        path = f"/{self.rng.choice('abcdef')}"
        accepted = (MFSStoreGoneError, FileNotFoundError, MFSAbandonedFileError)
        self.expect_of_this_store(path, self.call("second", self.second.read_bytes, path, accepted=accepted))
        with contextlib.suppress(RefusedError):
            self.call("second", self.second.remove, path, accepted=(*accepted, MFSFileOpenError))

    def view_second(self, _name):
        """A view of it that is kept: it shows the same when the store is gone."""
        path = f"/{self.rng.choice('abcdef')}"
        accepted = (MFSStoreGoneError, FileNotFoundError, MFSAbandonedFileError, MFSQuotaExceededError)
        view = self.call("second", self.second.view, path, accepted=accepted)
        self.expect_of_this_store(path, bytes(view))
        self.look_at(f"second store:{path}", view)

    def expect_of_this_store(self, path, data):
        foreign = [number for _, number in documents(data, f"second store:{path}") if number != self.mark()]
        if foreign:
            raise ViolationError(f"{path} of the second store {self.second.uuid} shows what {foreign} has")

    def compare_second(self, name):
        """If another store has its name, this one is gone."""
        other = self.call("second", MemoryFileSystem.attach, name, accepted=NOT_THERE)
        is_other = other.uuid != self.second.uuid
        other.close()
        if is_other:
            self.expect_every_call_to_fail()

    def destroy_second(self, name):
        """Take it away; whichever store we have, it is gone then."""
        board, place = self.board, self.place
        board.destroying[place] += 1
        try:
            with contextlib.suppress(RefusedError):
                self.call("second", MemoryFileSystem.destroy, name, accepted=(FileNotFoundError, MFSUnfinishedStoreError))
        finally:
            board.destroyed[place] = board.destroying[place]
        self.expect_every_call_to_fail()

    def expect_every_call_to_fail(self):
        try:
            self.call("second", self.second.stats, accepted=(MFSStoreGoneError,))
        except RefusedError:
            self.leave_second()
        else:
            raise ViolationError(f"the second store {self.second.uuid} was destroyed and goes on in {os.getpid()}")
