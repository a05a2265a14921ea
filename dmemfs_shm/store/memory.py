"""How much memory the machine has left: RAM, and the limits of the cgroups that this process is in.

A cgroup may have a limit, and so may each group that it lies in: the least of what they leave counts. Version 2 and
version 1 are read, also side by side. In a container the files often show the container's own group as the root, while
/proc/self/cgroup still has its path outside: folders that are not there are passed over, the root is always looked at.

What is asked here is no reservation. Others may take the memory at the same moment, and then the OOM killer decides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ..errors import MFSNoSpaceError

PROC = "/proc"
CGROUPS = "/sys/fs/cgroup"

#: Version 1 says "no limit" by a number near the largest there is.
_UNLIMITED = 1 << 60


def check_headroom(size: int) -> None:
    """MFSNoSpaceError (ENOMEM) if RAM or the cgroup has no *size* bytes left."""
    for what, available in (("RAM", available_ram()), ("this cgroup", available_cgroup())):
        if available is not None and size > available:
            raise MFSNoSpaceError(
                f"{size} bytes of memory are wanted and {what} has {available} left: "
                "end other programs, raise the limit, or use a smaller quota.",
                size,
                errno.ENOMEM,
            )


def available_bytes() -> int | None:
    """What RAM and the cgroups have left; None if it is not to be found out."""
    known = [size for size in (available_ram(), available_cgroup()) if size is not None]
    return min(known) if known else None


def available_ram(proc: str = PROC) -> int | None:
    """MemAvailable in bytes; None if it is not to be found out."""
    try:
        with open(f"{proc}/meminfo", "rb") as info:
            for line in info:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def available_cgroup(proc: str = PROC, cgroups: str = CGROUPS) -> int | None:
    """Bytes to the nearest memory limit of our cgroups, clean page cache counted as available; None without a limit."""
    known = []
    for folder, limit, used, cache in _folders(proc, cgroups):
        try:
            most = _number(f"{folder}/{limit}")
            if most is not None:
                known.append(max(0, most - (_number(f"{folder}/{used}") or 0) + _clean_cache(folder, cache)))
        except (OSError, ValueError):
            continue
    return min(known) if known else None


def _folders(proc: str, cgroups: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Each group that holds this process, inmost first: its folder, and what the files in it are called."""
    for path in _with_ancestors(_path_of(proc, "")):
        yield f"{cgroups}{path}", "memory.max", "memory.current", ("inactive_file", "active_file")
    for path in _with_ancestors(_path_of(proc, "memory")):
        yield (
            f"{cgroups}/memory{path}",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_inactive_file", "total_active_file"),
        )


def _path_of(proc: str, controller: str) -> str:
    """The group of this process in the hierarchy of a controller of version 1, or ("") in that of version 2."""
    try:
        with open(f"{proc}/self/cgroup", encoding="utf-8", errors="surrogateescape") as groups:
            for line in groups:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if controller in controllers.split(","):
                    return os.path.normpath(path)
    except (OSError, ValueError):
        pass
    return "/"


def _with_ancestors(path: str) -> Iterator[str]:
    """/a/b as "/a/b", "/a", ""."""
    while path not in ("/", ""):
        yield path
        path = os.path.dirname(path)
    yield ""


def _number(path: str) -> int | None:
    """The number in a file; None for "no limit"."""
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    number = _UNLIMITED if text == "max" else int(text)
    return number if number < _UNLIMITED else None


def _clean_cache(folder: str, names: tuple[str, ...]) -> int:
    """Page cache of the group and those in it, which the kernel gives up before it kills anybody."""
    try:
        with open(f"{folder}/memory.stat", encoding="ascii") as stat:
            fields = dict(line.split() for line in stat)
        return sum(int(fields.get(name, 0)) for name in names)
    except (OSError, ValueError):
        return 0
