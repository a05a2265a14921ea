"""``dmemfs-shm prune``."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import click

from ..store import names as shm
from ..store import segment
from ..store.attachment import destroy_if_deserted
from ..store.inspection import Leftover, inspect, leftovers, survey, why_deserted
from ..store.semaphores import unlink_semaphore
from . import complete
from .common import display, emit, json_option, say, yes_option
from .errors import OK
from .report import Column, Table, Words
from .sizes import format_size
from .text import age, count


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.store_names)
@click.option("--left", is_flag=True, help="Also named stores that everybody left in order.")
@yes_option
@json_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], *, left: bool, yes: bool, as_json: bool) -> None:
    """Show what no process of this user has any more in /dev/shm, and with --yes remove it.

    That are named stores whose participants are all dead, private stores that nobody has, stores whose creator died, and
    segments and semaphores whose store is gone; with NAME, only these stores. What is in a store goes with it: save it first
    (snapshot, get). A store that somebody attaches meanwhile is left alone.
    """
    for name in names:
        inspect(name)  # which says what is wrong with it
    stores = _stores(names, even_if_left=left)
    rests = [] if names else leftovers()
    if yes:
        for store in stores:
            store["removed"] = _destroy(store["name"])
    removed = [_remove(rest) if yes else False for rest in rests]
    rest_lines = [_rest_line(rest, removed=gone) for rest, gone in zip(rests, removed, strict=True)]
    if as_json:
        emit({"stores": stores, "leftovers": rest_lines})
        ctx.exit(OK)
    if not stores and not rests:
        say("Nothing to remove.")
        return
    display([_table(stores, rest_lines)])
    total = sum(line["memory_bytes"] or 0 for line in (*stores, *rest_lines) if line["removed"] == yes)
    parts = [count(len(some), what) for some, what in ((stores, "store"), (rests, "leftover")) if some]
    what = f"{' and '.join(parts)}, {format_size(total)}"
    say(f"Removed {what}." if yes else f"Nothing was removed. Give --yes to remove {what}.")


def _stores(names: tuple[str, ...], *, even_if_left: bool) -> list[dict[str, Any]]:
    found = []
    for line in survey(os.geteuid()):
        if names and line.name not in names:
            continue
        with contextlib.suppress(FileNotFoundError):
            why = why_deserted(line.name, even_if_left=even_if_left)
            if why:
                about = line.to_dict()
                kept = {key: about[key] for key in ("name", "condition", "memory_bytes", "used_bytes", "files", "created")}
                found.append(kept | {"reason": why, "removed": False})
    return found


def _destroy(name: str) -> bool:
    try:
        return destroy_if_deserted(name)
    except FileNotFoundError:
        return True


def _remove(rest: Leftover) -> bool:
    for name in rest.segments:
        segment.unlink(name)
    for name in rest.semaphores:
        unlink_semaphore(name)
    return True


def _rest_line(rest: Leftover, *, removed: bool) -> dict[str, Any]:
    entries = len(rest.segments) + len(rest.semaphores)
    return {"uuid": rest.uuid, "entries": entries, "memory_bytes": rest.memory_bytes, "removed": removed}


def _table(stores: list[dict[str, Any]], rests: list[dict[str, Any]]) -> Table:
    columns = [
        Column("STORE", folds=True),
        Column("MEMORY", right=True),
        Column("FILES", right=True, since=60),
        Column("AGE", right=True, since=60),
        Column("WHY", folds=True),
    ]
    rows: list[list[Words]] = []
    for store in stores:
        why = store["reason"] if store["removed"] is not None else ""
        files = "?" if store["files"] is None else f"{store['files']:,}"
        created = "?" if store["created"] is None else age(store["created"], time.time())
        memory = "?" if store["memory_bytes"] is None else format_size(store["memory_bytes"])
        rows.append([store["name"], memory, files, created, why])
    for rest in rests:
        why = f"{count(rest['entries'], 'entry', 'entries')} of a store that is gone"
        rows.append([f"{shm.SHM_DIR}/*{rest['uuid']}*", format_size(rest["memory_bytes"]), "", "", why])
    return Table("", columns, rows)
