"""``dmemfs-shm locks``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..store.inspection import inspect
from ..store.snapshot import Inspection, Lock, Mutex
from . import complete
from .common import display, emit, json_option, store_argument, user_option
from .errors import DAMAGED, Failure
from .inspect import space_waits
from .report import BAD, DIM, PLAIN, WARN, Cell, Column, Section, Table, Words
from .text import age


@click.command()
@store_argument
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete.paths)
@click.option("-w", "--waited-for", is_flag=True, help="Only files that somebody waits for.")
@user_option
@json_option
def command(name: str, paths: tuple[str, ...], user: int | None, *, waited_for: bool, as_json: bool) -> None:
    """Show who has which file of the store NAME open and who waits for it; with PATH, only these and what is below them.

    Of each file the holders come first, then those who wait, in their order. Also who is inside a mutex, for longer than
    anybody should be, and who waits for space. Takes no part, as `inspect`.
    """
    seen = inspect(name, user)
    if seen.locks is None:
        raise Failure(f"The store {name!r} is {seen.condition}: no locks can be read. {seen.reason}".rstrip(), DAMAGED)
    shown = [lock for lock in seen.locks or () if _is_asked_for(lock.path, paths)]
    if waited_for:
        busy = {lock.path for lock in shown if lock.state == "waiting"}
        shown = [lock for lock in shown if lock.path in busy]
    mutexes = [mutex for mutex in seen.mutexes or () if mutex.state in ("held", "dead") and mutex.holder_slot is not None]
    if as_json:
        emit(
            {
                "store": name,
                "taken_at": seen.taken_at,
                "locks": [_with_process(lock, seen) for lock in shown],
                "mutexes": [dataclasses.asdict(mutex) for mutex in mutexes],
                "space_waits": [dataclasses.asdict(wait) for wait in seen.space_waits or ()],
            }
        )
    else:
        display([_table(shown, seen), *_held(mutexes, seen), *space_waits(seen)])


def _is_asked_for(path: str, paths: tuple[str, ...]) -> bool:
    wanted = ["/" + each.strip("/") for each in paths]
    return not wanted or any(path == each or path.startswith(each.rstrip("/") + "/") for each in wanted)


def _stopped(seen: Inspection) -> set[int]:
    return {who.slot for who in seen.participants or () if who.stopped}


def _with_process(lock: Lock, seen: Inspection) -> dict[str, Any]:
    return dataclasses.asdict(lock) | {"stopped": lock.slot in _stopped(seen)}


def _table(shown: list[Lock], seen: Inspection) -> Table:
    columns = [
        Column("FILE", folds=True),
        Column("MODE", since=60),
        Column("STATE"),
        Column("PID", right=True),
        Column("PROCESS", since=60),
        Column("SINCE", right=True),
        Column("THREAD", right=True, since=110),
        Column("COMMAND", folds=True, since=90),
    ]
    stopped = _stopped(seen)
    rows: list[list[Words]] = [
        [
            lock.path,
            lock.mode,
            Cell(lock.state, WARN if lock.state == "waiting" else PLAIN),
            Cell(str(lock.pid), process(alive=lock.alive, stopped=lock.slot in stopped).style),
            process(alive=lock.alive, stopped=lock.slot in stopped),
            age(lock.since, seen.taken_at),
            str(lock.thread),
            lock.command,
        ]
        for lock in shown
    ]
    return Table("", columns, rows, empty="No such file is open." if seen.locks else "No file is open.")


def process(*, alive: bool, stopped: bool | None) -> Cell:
    """How a process is, in a word."""
    return Cell("dead", BAD) if not alive else Cell("stopped", WARN) if stopped else Cell("alive", DIM)


def _held(mutexes: list[Mutex], seen: Inspection) -> list[Section]:
    stopped = _stopped(seen)
    rows: list[list[Words]] = [
        [
            str(mutex.number),
            str(mutex.holder_pid),
            process(alive=mutex.state != "dead", stopped=mutex.holder_slot in stopped),
            mutex.guards,
        ]
        for mutex in mutexes
    ]
    columns = [Column("MUTEX", right=True), Column("PID", right=True), Column("PROCESS"), Column("GUARDS", folds=True)]
    return [Table("Inside a mutex", columns, rows)] if rows else []
