"""``dmemfs-shm df``."""

from __future__ import annotations

import os
from typing import Any

import click

from ..store import names as shm
from ..store.inspection import inspect, survey
from . import complete
from .common import display, emit, json_option, user_option
from .report import BAD, DIM, Cell, Column, Table, Words, level
from .sizes import format_size


@click.command()
@click.argument("stores", nargs=-1, metavar="[NAME]...", shell_complete=complete.store_names)
@click.option("--bytes", "exact", is_flag=True, help="Sizes as plain numbers of bytes.")
@user_option
@json_option
def command(stores: tuple[str, ...], user: int | None, *, exact: bool, as_json: bool) -> None:
    """Show how full the stores are: those given, with the quotas of their directories, or else all of this user.

    SIZE is the quota; USED and FREE are of it. MEMORY is what the store takes of /dev/shm now, which has the last line: all
    stores share it, whatever their quotas are.
    """
    uid = os.geteuid() if user is None else user
    lines = [line for name in stores for line in _lines(name, uid)] if stores else _survey(uid)
    lines.append(_shm())
    if as_json:
        emit({"filesystems": lines})
    else:
        display([_table(lines, exact=exact)])


def _line(
    store: str | None, path: str | None, condition: str | None, size: int | None, used: int | None, memory: int | None
) -> dict[str, Any]:
    free = None if size is None or used is None else max(0, size - used)
    return {
        "store": store,
        "path": path,
        "condition": condition,
        "size_bytes": size,
        "used_bytes": used,
        "free_bytes": free,
        "memory_bytes": memory,
    }


def _survey(uid: int) -> list[dict[str, Any]]:
    return [
        _line(store.name, "/", store.condition, store.quota_bytes, store.used_bytes, store.memory_bytes)
        for store in survey(uid)
    ]


def _lines(name: str, uid: int) -> list[dict[str, Any]]:
    """The line of a store, and one of each of its directories that has a quota."""
    seen = inspect(name, uid)
    memory = seen.memory.total_bytes if seen.memory else None
    if seen.quota is None:
        return [_line(name, "/", seen.condition, None, None, memory)]
    return [
        _line(name, "/", seen.condition, seen.quota.quota_bytes, seen.quota.used_bytes, memory),
        *(_line(name, each.path, seen.condition, each.limit_bytes, each.used_bytes, None) for each in seen.quota.directories),
    ]


def _shm() -> dict[str, Any]:
    shm_stat = os.statvfs(shm.SHM_DIR)
    size, free = shm_stat.f_blocks * shm_stat.f_frsize, shm_stat.f_bavail * shm_stat.f_frsize
    return _line(None, shm.SHM_DIR, None, size, size - free, size - free)


def _table(lines: list[dict[str, Any]], *, exact: bool) -> Table:
    columns = [
        Column("STORE", folds=True),
        Column("SIZE", right=True),
        Column("USED", right=True, since=60),
        Column("FREE", right=True),
        Column("USE%", right=True),
        Column("MEMORY", right=True, since=72),
    ]
    return Table("", columns, [_row(line, exact=exact) for line in lines])


def _row(line: dict[str, Any], *, exact: bool) -> list[Words]:
    def size(value: int | None) -> str:
        return "-" if value is None else str(value) if exact else format_size(value)

    share = (line["used_bytes"] or 0) / line["size_bytes"] if line["size_bytes"] else 0.0
    if line["store"] is None:
        name: Words = Cell(line["path"], DIM)
    elif line["path"] == "/":
        good = line["condition"] == "ready"
        name = line["store"] if good else Cell(f"{line['store']} ({line['condition']})", BAD)
    else:
        name = Cell(f"  {line['path'] or '(a removed directory)'}")
    return [
        name,
        size(line["size_bytes"]),
        size(line["used_bytes"]),
        size(line["free_bytes"]),
        Cell(f"{share:.0%}" if line["size_bytes"] is not None else "-", level(share)),
        size(line["memory_bytes"]),
    ]
