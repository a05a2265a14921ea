"""``dmemfs-shm metrics``.

The text format of Prometheus, version 0.0.4. Names, types and labels are a promise: a family may be added, none goes or
changes its meaning.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click

from ..store import names as shm
from ..store import snapshot
from ..store.inspection import inspect, survey
from ..store.snapshot import Inspection
from . import complete
from .common import user_option

PREFIX = "dmemfs_shm_"
CONDITIONS = (
    snapshot.READY,
    snapshot.DAMAGED,
    snapshot.UNFINISHED,
    snapshot.DESTROYED,
    snapshot.INCOMPATIBLE,
    snapshot.FOREIGN,
    snapshot.UNREADABLE,
)

#: name: (type, what it is)
FAMILIES = {
    "condition": ("gauge", "1 for the condition that the store is in, 0 for the others."),
    "created_timestamp_seconds": ("gauge", "When the store was created, since the epoch."),
    "quota_bytes": ("gauge", "What the files of the store may be charged."),
    "used_bytes": ("gauge", "What they are charged."),
    "orphaned_bytes": ("gauge", "Part of used: content that no name leads to."),
    "directory_quota_bytes": ("gauge", "What may be charged to a directory with a quota of its own."),
    "directory_used_bytes": ("gauge", "What is charged to it."),
    "memory_bytes": ("gauge", "What the store takes of /dev/shm, by part."),
    "files": ("gauge", "Files."),
    "directories": ("gauge", "Directories, the root included."),
    "nodes_limit": ("gauge", "Most files and directories together; only where there is a limit."),
    "abandoned_files": ("gauge", "Files whose writer died before closing them."),
    "participants": ("gauge", "Processes attached, by state; dead: not yet succeeded."),
    "locks": ("gauge", "File locks, by mode (shared, exclusive) and state (held, granted, waiting)."),
    "lock_wait_max_seconds": ("gauge", "How long the longest living waiter for a file has waited; 0 if nobody waits."),
    "space_waiters": ("gauge", "Threads that wait for space."),
    "space_wanted_bytes": ("gauge", "Bytes that they wait for together."),
    "mutexes": ("gauge", "Mutexes, by state; held ones are so for microseconds, unless their holder is stopped."),
    "name_changes_total": ("counter", "Commits that made, moved or removed names."),
    "recoveries_total": ("counter", "Mutexes recovered from the dead."),
    "reaps_total": ("counter", "Dead participants reaped."),
    "shm_size_bytes": ("gauge", "Size of /dev/shm."),
    "shm_free_bytes": ("gauge", "Free in /dev/shm, which all stores share."),
}


class Sample(NamedTuple):
    """One line: family, labels, value."""

    family: str
    labels: dict[str, str]
    value: float


@click.command()
@click.argument("stores", nargs=-1, metavar="[NAME]...", shell_complete=complete.store_names)
@user_option
def command(stores: tuple[str, ...], user: int | None) -> None:
    """Print figures of the stores given, or else of all of this user, as Prometheus reads them.

    Takes no part, as `inspect`. Labels store and uid say which; private stores are in it, too. For node_exporter's textfile
    collector: dmemfs-shm metrics > etl.tmp && mv etl.tmp etl.prom
    """
    uid = os.geteuid() if user is None else user
    samples = [*_shm()]
    for name in stores:
        samples += _samples(inspect(name, uid))
    for line in survey(uid) if not stores else ():
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            if line.condition == snapshot.UNREADABLE:
                samples += _conditions(line.condition, {"store": line.name, "uid": str(line.uid)})
            else:
                samples += _samples(inspect(line.name, line.uid))
    click.echo(exposition(samples), nl=False)


def exposition(samples: Iterable[Sample]) -> str:
    """The text: the lines of a family together, under its help and type."""
    by_family: dict[str, list[Sample]] = {family: [] for family in FAMILIES}
    for sample in samples:
        by_family[sample.family].append(sample)
    lines = []
    for family, members in by_family.items():
        if members:
            kind, text = FAMILIES[family]
            lines += [f"# HELP {PREFIX}{family} {text}", f"# TYPE {PREFIX}{family} {kind}"]
            lines += [_line(sample) for sample in members]
    return "".join(f"{line}\n" for line in lines)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    return f"{PREFIX}{sample.family}{{{labels}}} {sample.value!r}" if labels else f"{PREFIX}{sample.family} {sample.value!r}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # a name that is no UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _shm() -> Iterator[Sample]:
    stat = os.statvfs(shm.SHM_DIR)
    yield Sample("shm_size_bytes", {}, stat.f_blocks * stat.f_frsize)
    yield Sample("shm_free_bytes", {}, stat.f_bavail * stat.f_frsize)


def _conditions(condition: str, labels: dict[str, str]) -> Iterator[Sample]:
    for each in CONDITIONS:
        yield Sample("condition", labels | {"condition": each}, int(each == condition))


def _samples(seen: Inspection) -> Iterator[Sample]:
    labels = {"store": seen.name, "uid": str(seen.uid)}
    yield from _conditions(seen.condition, labels)
    if seen.identity:
        yield Sample("created_timestamp_seconds", labels, seen.identity.created)
    yield from _space(seen, labels)
    yield from _people(seen, labels)
    if seen.mutexes is not None:
        states = Counter(mutex.state for mutex in seen.mutexes)
        for state in ("free", "held", "dead", "revoked"):
            yield Sample("mutexes", labels | {"state": state}, states[state])
    if seen.activity:
        yield Sample("name_changes_total", labels, seen.activity.name_changes)
        yield Sample("recoveries_total", labels, seen.activity.recoveries)
        yield Sample("reaps_total", labels, seen.activity.reaps)


def _space(seen: Inspection, labels: dict[str, str]) -> Iterator[Sample]:
    if seen.quota:
        yield Sample("quota_bytes", labels, seen.quota.quota_bytes)
        yield Sample("used_bytes", labels, seen.quota.used_bytes)
        yield Sample("orphaned_bytes", labels, seen.quota.orphaned_bytes)
        for each in seen.quota.directories:
            if each.path is not None:
                yield Sample("directory_quota_bytes", labels | {"path": each.path}, each.limit_bytes)
                yield Sample("directory_used_bytes", labels | {"path": each.path}, each.used_bytes)
    if seen.memory:
        for part in ("index", "arenas", "semaphores", "strays"):
            yield Sample("memory_bytes", labels | {"part": part}, getattr(seen.memory, f"{part}_bytes"))
    if seen.nodes:
        yield Sample("files", labels, seen.nodes.files)
        yield Sample("directories", labels, seen.nodes.directories)
        if seen.nodes.max_nodes is not None:
            yield Sample("nodes_limit", labels, seen.nodes.max_nodes)
        if seen.nodes.abandoned is not None:
            yield Sample("abandoned_files", labels, seen.nodes.abandoned)


def _people(seen: Inspection, labels: dict[str, str]) -> Iterator[Sample]:
    if seen.participants is not None:
        states = Counter("dead" if not who.alive else "stopped" if who.stopped else "running" for who in seen.participants)
        for state in ("running", "stopped", "dead"):
            yield Sample("participants", labels | {"state": state}, states[state])
    if seen.locks is not None:
        kinds = Counter((lock.mode, lock.state) for lock in seen.locks)
        for mode in ("shared", "exclusive"):
            for state in ("held", "granted", "waiting"):
                yield Sample("locks", labels | {"mode": mode, "state": state}, kinds[mode, state])
        waits = [seen.taken_at - lock.since for lock in seen.locks if lock.state == "waiting" and lock.alive]
        yield Sample("lock_wait_max_seconds", labels, max([0.0, *waits]))
    if seen.space_waits is not None:
        waiting = [wait for wait in seen.space_waits if wait.alive]
        yield Sample("space_waiters", labels, len(waiting))
        yield Sample("space_wanted_bytes", labels, sum(wait.wanted_bytes for wait in waiting))
