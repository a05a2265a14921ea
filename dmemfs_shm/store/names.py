"""Builds and parses the name of each segment and semaphore. No other module spells one.

    dmemfs-<uid>-<name>            index of a named store; name is [a-z0-9][a-z0-9._-]{0,62}
    dmemfs-<uid>-@<uuid>           index of a private store
    dmemfs-<uuid>.a<arena>.<life>  an arena
    dmemfs-<uuid>.m<mutex>.<gen>   semaphore of one generation of a mutex
    dmemfs-<uuid>.spare<n>         a semaphore of value 1 that nobody has opened yet
    dmemfs-<uuid>.p<slot>.<park>   semaphore on which a thread of that slot waits
    dmemfs-<uuid>.f<slot>          semaphore that a process is about to take as its fence

Two users may both have a store "etl", and a store that is made again has another uuid, so that nothing of the old one
can be taken for the new one's.
"""

from __future__ import annotations

import os
import re
import uuid as uuids

from ..errors import MFSParameterError

SHM_DIR = "/dev/shm"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def check_name(name: object) -> str:
    """Return *name* if a store may be called so; TypeError or MFSParameterError otherwise."""
    if not isinstance(name, str):
        raise TypeError(f"a store's name must be str, not {type(name).__name__}")
    if not _NAME.match(name):
        raise MFSParameterError(
            f"Invalid store name {name!r}: it must match [a-z0-9][a-z0-9._-]{{0,62}} "
            "(lower-case letters, digits, '.', '_', '-'; at most 63)."
        )
    return name


def index_name(name: str, uid: int | None = None) -> str:
    """Name of a store's index segment; *name* is the store's, or "@<uuid>" for a private one."""
    return f"/dmemfs-{os.geteuid() if uid is None else uid}-{name}"


def private_name(uuid: uuids.UUID) -> str:
    return "@" + uuid.hex


def prefix(uuid: uuids.UUID) -> str:
    """What the names of all segments and semaphores but the index begin with (without the slash)."""
    return f"dmemfs-{uuid.hex}."


def arena(uuid: uuids.UUID, number: int, life: int) -> str:
    return f"/{prefix(uuid)}a{number}.{life}"


def mutex(uuid: uuids.UUID, number: int, generation: int) -> str:
    return f"/{prefix(uuid)}m{number}.{generation}"


def spare(uuid: uuids.UUID, number: int) -> str:
    return f"/{prefix(uuid)}spare{number}"


def park(uuid: uuids.UUID, slot: int, number: int) -> str:
    return f"/{prefix(uuid)}p{slot}.{number}"


def fence(uuid: uuids.UUID, slot: int) -> str:
    return f"/{prefix(uuid)}f{slot}"


def is_park(name: str) -> bool:
    """Whether this is the name of a parking semaphore."""
    return name.rpartition(".")[0].rpartition(".")[2].startswith("p")


def semaphore_path(name: str) -> str:
    """The file behind a named semaphore (glibc)."""
    return f"{SHM_DIR}/sem.{name.lstrip('/')}"


def stores(uid: int | None = None) -> list[tuple[int, str]]:
    """(uid, name) of every store whose index stands in /dev/shm, private ones as "@<uuid>"; of one user if given."""
    found = []
    for entry in sorted(os.listdir(SHM_DIR)):
        parts = entry.split("-", 2)
        if len(parts) == 3 and parts[0] == "dmemfs" and parts[1].isdigit() and (uid is None or int(parts[1]) == uid):
            found.append((int(parts[1]), parts[2]))
    return found


def belongings(uuid: uuids.UUID) -> tuple[list[str], list[str]]:
    """(segments, semaphores) that carry the uuid, as names to unlink; the index is not among them."""
    start = prefix(uuid)
    entries = os.listdir(SHM_DIR)
    return (
        ["/" + e for e in entries if e.startswith(start)],
        ["/" + e[4:] for e in entries if e.startswith("sem." + start)],
    )
