"""What a person should know first about a store: what holds others up, what is about to run out, and what to do."""

from __future__ import annotations

from ..store import snapshot
from ..store.snapshot import Inspection
from .sizes import format_size
from .text import age, count

WAITED_LONG_S = 30.0
NEARLY_FULL = 0.95


def advice(seen: Inspection) -> list[str]:
    """Sentences, the most urgent first; empty when there is nothing to do."""
    return [*_condition(seen), *_stuck(seen), *_dead(seen), *_waiting(seen), *_space(seen), *_abandoned(seen)]


def _condition(seen: Inspection) -> list[str]:
    name = seen.name
    if seen.condition == snapshot.DAMAGED:
        return [f"The store is damaged. Save what can be read (dmemfs-shm get {name} / DIRECTORY), then destroy it."]
    if any(problem.half_done for problem in seen.problems):
        return ["A change was open while we looked, so what looks wrong may be only half of it. Look again."]
    return []


def _stuck(seen: Inspection) -> list[str]:
    """Living processes that are stopped with something in hand."""
    found = []
    for who in seen.participants or ():
        if not who.stopped:
            continue
        inside = [mutex.number for mutex in seen.mutexes or () if mutex.holder_slot == who.slot and mutex.state == "held"]
        what = f"Process {who.pid} ({who.command}) is stopped"
        cure = f"Let it go on (kill -CONT {who.pid}) or end it (dmemfs-shm kick {who.pid} --yes)."
        if inside:
            numbers = " and ".join(map(str, inside))
            found.append(f"{what} inside mutex {numbers}, and everybody who needs that waits for it. {cure}")
        elif who.locks_held:
            found.append(f"{what} and keeps {count(who.locks_held, 'file')} locked. {cure}")
    return found


def _dead(seen: Inspection) -> list[str]:
    dead = [who for who in seen.participants or () if not who.alive]
    broken = [mutex for mutex in seen.mutexes or () if mutex.state == "dead"]
    if broken:
        inside = " and ".join(f"process {mutex.holder_pid} inside mutex {mutex.number}" for mutex in broken)
        return [f"Died: {inside}. The next who changes the store undoes what was half done; you need not do anything."]
    held = sum(who.locks_held + who.views for who in dead)
    if held:
        what = f"The dead still hold {count(held, 'lock or view', 'locks and views')}."
        return [f"{what} Whoever needs one of them next frees it; you need not do anything."]
    return []


def _waiting(seen: Inspection) -> list[str]:
    found = []
    waits: dict[str, list[float]] = {}
    for lock in seen.locks or ():
        if lock.state == "waiting" and lock.alive:
            waits.setdefault(lock.path, []).append(lock.since)
    for path, since in waits.items():
        if seen.taken_at - min(since) < WAITED_LONG_S:
            continue
        holders = [lock for lock in seen.locks or () if lock.path == path and lock.state != "waiting"]
        who = ", ".join(f"process {lock.pid} ({lock.command})" for lock in holders[:3]) or "nobody"
        long = age(min(since), seen.taken_at)
        waiting = "1 waits" if len(since) == 1 else f"{len(since)} wait"
        found.append(f"{waiting} for {path}, the longest for {long}. It is held by {who}.")
    return found


def _space(seen: Inspection) -> list[str]:
    found = []
    quota, memory = seen.quota, seen.memory
    if quota and quota.quota_bytes and quota.used_bytes >= NEARLY_FULL * quota.quota_bytes:
        text = f"The quota is nearly used up: {format_size(quota.free_bytes)} are left."
        if quota.orphaned_bytes * 10 > quota.quota_bytes:
            text += f" {format_size(quota.orphaned_bytes)} of it belong to files without a name."
        found.append(text)
    if quota and memory:
        missing = quota.quota_bytes - memory.arenas_bytes - memory.shm_free_bytes
        if missing > 0:
            found.append(
                f"/dev/shm has {format_size(memory.shm_free_bytes)} left, {format_size(missing)} less than the quota may "
                "still want: writes can end in MFSNoSpaceError. Free memory there, or mount it larger."
            )
    nodes = seen.nodes
    if nodes and nodes.max_nodes and nodes.files + nodes.directories >= NEARLY_FULL * nodes.max_nodes:
        left = max(0, nodes.max_nodes - nodes.files - nodes.directories)
        found.append(f"Of {nodes.max_nodes:,} files and directories, {left:,} more may be made.")
    return found


def _abandoned(seen: Inspection) -> list[str]:
    if not seen.nodes or not seen.nodes.abandoned:
        return []
    some = ", ".join((seen.abandoned_files or ())[:3])
    more = "" if seen.nodes.abandoned <= 3 else ", ..."
    it = "it" if seen.nodes.abandoned == 1 else "them"
    what = f"{count(seen.nodes.abandoned, 'file')} whose writer died before closing {it}: {some}{more}."
    return [f"{what} Write {it} anew, remove {it}, or read with --allow-abandoned."]
