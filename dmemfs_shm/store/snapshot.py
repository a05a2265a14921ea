"""What an observer saw of a store: plain records, and the document that `inspect --json` prints.

Sizes are bytes, times are seconds since the epoch; a field says so in its name or here. What could not be read is None,
and `problems` says why. A new field may come at any time; taking one away or changing its meaning raises SCHEMA_VERSION.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

SCHEMA_VERSION: Final = 1

READY: Final = "ready"  # nothing wrong was seen
DAMAGED: Final = "damaged"  # a word has a value that it cannot have
UNFINISHED: Final = "unfinished"  # its creator is at work, or died
DESTROYED: Final = "destroyed"
INCOMPATIBLE: Final = "incompatible"  # written by a build that lays words out differently
FOREIGN: Final = "foreign"  # not a store of this package
UNREADABLE: Final = "unreadable"  # another user's


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be. half_done: a critical section was open meanwhile, so it may be only half of a change."""

    section: str
    text: str
    half_done: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """owner_uid and created are what the head says; the name's uid is the inspection's."""

    uuid: str
    owner_uid: int
    created: float
    layout_version: int
    layout_fingerprint: int


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryQuota:
    """path: None if the directory or its quota is gone, and only readers and views have what is charged to it."""

    path: str | None
    limit_bytes: int
    used_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Quota:
    """orphaned: the part of used that no name leads to any more. contents: how many are charged file_charge_bytes each."""

    quota_bytes: int
    used_bytes: int
    free_bytes: int
    orphaned_bytes: int
    contents: int
    file_charge_bytes: int
    directories: tuple[DirectoryQuota, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """What the store takes of /dev/shm now. strays: arenas that were trimmed and are not yet swept."""

    total_bytes: int
    index_bytes: int
    index_virtual_bytes: int
    arenas_bytes: int
    semaphores: int
    semaphores_bytes: int
    strays_bytes: int
    shm_total_bytes: int
    shm_free_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Nodes:
    """in_use counts what names, runs and pins take beside files and directories; None where the scan was cut short."""

    files: int
    directories: int
    max_nodes: int | None
    in_use: int | None
    backed: int
    cap: int
    abandoned: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Arena:
    """size: address space. backed: with memory. break: from here on nothing is in use."""

    number: int
    segment: str
    size_bytes: int
    backed_bytes: int
    break_bytes: int
    trims: int


@dataclasses.dataclass(frozen=True, slots=True)
class Participant:
    """pid is that of its own pid namespace; stopped is None where that cannot be told from here.

    started: of its process, clock ticks since boot (0: unknown); with it a pid that was used again is told from this one.
    sleepers: threads that wait for a file to come.
    """

    slot: int
    pid: int
    pid_namespace: int
    command: str
    alive: bool
    stopped: bool | None
    since: float
    locks_held: int
    locks_waited_for: int
    views: int
    started: int
    sleepers: int


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """mode "shared" or "exclusive"; state "held", "granted" (will be taken any moment) or "waiting"."""

    path: str
    mode: str
    state: str
    slot: int
    pid: int
    alive: bool
    thread: int
    command: str
    since: float


@dataclasses.dataclass(frozen=True, slots=True)
class SpaceWait:
    """Somebody who waits for space. directory: whose quota has none; None if it is the store's."""

    slot: int
    pid: int
    alive: bool
    command: str
    wanted_bytes: int
    directory: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Mutex:
    """state "free", "held", "dead" (its holder died; whoever comes next repairs it) or "revoked" (just now)."""

    number: int
    guards: str
    generation: int
    state: str
    holder_slot: int | None
    holder_pid: int | None
    journal_entries: int


@dataclasses.dataclass(frozen=True, slots=True)
class Activity:
    """recoveries, reaps, name_changes (commits that made, moved or removed names): so far. The others: whether somebody is
    at it now. life_held: of a private store, its users."""

    recoveries: int
    reaps: int
    name_changes: int
    creating: bool
    attaching: bool
    recovering: bool
    moving_directories: bool
    trash_waiting: bool
    importing: bool
    life_held: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """lock "free", "shared" or "exclusive"; pieces: runs of blocks."""

    path: str
    size_bytes: int
    charged_bytes: int
    pieces: int
    modified: float
    abandoned: bool
    lock: str


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """A store as it was between taken_at and a moment later; what changed meanwhile may be seen in part."""

    name: str
    uid: int
    private: bool
    condition: str
    reason: str
    taken_at: float
    problems: tuple[Problem, ...]
    identity: Identity | None = None
    parameters: dict[str, Any] | None = None
    quota: Quota | None = None
    memory: Memory | None = None
    nodes: Nodes | None = None
    arenas: tuple[Arena, ...] | None = None
    largest_free_run_bytes: int | None = None
    participants: tuple[Participant, ...] | None = None
    locks: tuple[Lock, ...] | None = None
    space_waits: tuple[SpaceWait, ...] | None = None
    mutexes: tuple[Mutex, ...] | None = None
    activity: Activity | None = None
    largest_files: tuple[File, ...] | None = None
    abandoned_files: tuple[str, ...] | None = None

    @property
    def alive(self) -> int:
        """How many participants live."""
        return sum(participant.alive for participant in self.participants or ())

    def to_dict(self) -> dict[str, Any]:
        """The document: fields by name, with ``schema_version``; tuples are lists in JSON."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """One line of `list`."""

    name: str
    uid: int
    private: bool
    condition: str
    quota_bytes: int | None = None
    used_bytes: int | None = None
    memory_bytes: int | None = None
    files: int | None = None
    alive: int | None = None
    dead: int | None = None
    created: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
