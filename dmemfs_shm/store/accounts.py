"""Accounts: the quotas of directories, beside the quota of the store.

A directory that has a quota has an *account*, a node with the limit and with what is charged to it. Whatever is charged to the
store names the account that it is charged to as well (the high half of N_PIN; 0 is none). The rule is XFS's for projects:

    a new entry belongs to what its directory belongs to: to the directory's own account if it has one, else to that of the
    nearest directory above that has one. Only the nearest counts, so a quota within a quota is not charged to the outer one
    a quota is given to an empty directory, and taken from one; in between the limit may change at any time, also below what
    is used, which refuses what would be charged from then on
    what has no quota of its own is not renamed into where another account counts; a directory that has one goes anywhere

So what an entry belongs to is in the directory that it is in, no step is linear in what is below a directory, and the sum of
what names an account is its figure: it changes in `Content.charge` and `Content.assign`, in the transaction that changes the
store's.

Content that has lost its file keeps its account as long as it is charged, whatever became of the directory. So an account
outlives its directory, or the quota of it, until nothing is charged to it. Then it is freed, by the transaction that took the
last of it; but not while anything is being prepared in the store (DRAFTED, DRAFTS), which may be about to be charged to it.
What is left for that reason is freed when the next quota is given (`sweep`).

REQUIRES m[0].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import MFSCorruptStoreError, MFSDirectoryQuotaError
from .journal import Plan
from .layout import (
    DRAFTED,
    DRAFTS,
    KIND_QUOTA,
    KIND_SHIFT,
    N_NAME,
    N_PARENT,
    N_PIN,
    N_SIBLINGS,
    Q_DIRECTORY,
    Q_LIMIT,
    Q_USED,
    QUOTAS,
    ROOT,
    WORD,
)

if TYPE_CHECKING:
    from .content import Content
    from .section import Section


class Account(NamedTuple):
    """An account as it stands: the directory that has it, 0 when it has lost it."""

    directory: int
    limit: int
    used: int


class Accounts:
    """The accounts of a store."""

    __slots__ = ("content", "tree", "w")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.tree = content.tree
        self.w = content.w

    def check(self, account: int, referrer: int) -> int:
        """The word of an account that word *referrer* leads to. MFSCorruptStoreError if it is none."""
        at = self.tree.check_node(account, referrer)
        if self.w[at + N_NAME] >> KIND_SHIFT & 0xFF != KIND_QUOTA:
            raise MFSCorruptStoreError("index", referrer * WORD, "the account of a quota", account)
        return at

    def own(self, directory: int) -> int:
        """The account of the directory's own quota, or 0."""
        account = self.w[self.content.at(directory) + N_PIN] >> 32
        if not account or self.tree.kind(account) != KIND_QUOTA:  # what is in the trash may name one that is gone
            return 0
        return account if self.w[self.content.at(account) + Q_DIRECTORY] == directory else 0

    def all(self) -> list[Account]:
        """Every account."""
        found = []
        for account in self.content.ring(QUOTAS):
            at = self.check(account, QUOTAS)
            found.append(Account(self.w[at + Q_DIRECTORY], self.w[at + Q_LIMIT], self.w[at + Q_USED]))
        return found

    # ---- what is charged

    def require(self, plan: Plan, account: int, more: int, whole: int = 0) -> None:
        """MFSDirectoryQuotaError unless so much more can be charged. *whole*: see `Content._require`."""
        at = self.check(account, QUOTAS)
        free = max(0, plan[at + Q_LIMIT] - plan[at + Q_USED])
        if more > free:
            directory = plan[at + Q_DIRECTORY]
            path = self.tree.path(directory) if directory else "(removed)"
            error = MFSDirectoryQuotaError(path, requested=more, available=free)
            error._account, error._hopeless = account, whole > plan[at + Q_LIMIT]
            raise error

    def book(self, section: Section, account: int, more: int) -> None:
        """Charge so much more, or less, to an account."""
        if not more:
            return
        plan, at = section.plan, self.check(account, QUOTAS)
        used = plan[at + Q_USED] + more
        if used < 0:
            raise MFSCorruptStoreError("index", (at + Q_USED) * WORD, f"at least {-more} bytes", plan[at + Q_USED])
        plan[at + Q_USED] = used
        if not used:
            self._close(section, account)

    # ---- the life of an account

    def open(self, section: Section, directory: int, limit: int) -> None:
        """Give an empty directory a quota of its own, which it must not have."""
        plan, w = section.plan, self.w
        account = self.tree.take_node(section)
        at = self.content.at(account)
        for word, value in (
            (N_NAME, KIND_QUOTA << KIND_SHIFT),
            (Q_LIMIT, limit),
            (Q_USED, 0),
            (Q_DIRECTORY, directory),
            (N_SIBLINGS, 0),
        ):
            w[at + word] = value
        self.content.enter_ring(section, QUOTAS, account)
        plan[self.content.at(directory) + N_PIN] = account << 32

    def set_limit(self, section: Section, account: int, limit: int) -> None:
        section.plan[self.content.at(account) + Q_LIMIT] = limit
        section.frees = True

    def part(self, section: Section, directory: int) -> None:
        """Take the quota of a directory that is empty, or goes, from it; silent if it has none of its own."""
        account = self.own(directory)
        if not account:
            return
        plan, at = section.plan, self.content.at(directory)
        parent = plan[at + N_PARENT]
        plan[at + N_PIN] = plan[self.content.at(parent) + N_PIN] if parent and directory != ROOT else 0
        plan[self.content.at(account) + Q_DIRECTORY] = 0
        self._close(section, account)

    def sweep(self, section: Section) -> bool:
        """Free one of the accounts that were left; whether there was one."""
        return any(self._close(section, account) for account in self.content.ring(QUOTAS))

    def _close(self, section: Section, account: int) -> bool:
        """Free an account that nobody has, nothing is charged to, and nothing will be; whether it is one."""
        plan, at = section.plan, self.content.at(account)
        if plan[at + Q_USED] or plan[at + Q_DIRECTORY] or plan[DRAFTED] or plan[DRAFTS]:
            return False
        self.content.leave_ring(section, QUOTAS, account)
        self.tree.free_node(section, account)
        return True
