"""``dmemfs-shm inspect``."""

from __future__ import annotations

import json
import os

import click

from ..store import snapshot
from ..store.inspection import inspect
from ..store.snapshot import Inspection
from .advice import advice
from .common import display, on_terminal, store_argument, user_option
from .errors import FOUND
from .report import BAD, DIM, GOOD, PLAIN, WARN, Cell, Column, Facts, Lines, Section, Table, Words, bar, level
from .sizes import format_size
from .text import age, ago, count, moment, user

LOCKS_SHOWN = 40
ARENAS_SHOWN = 12
_GOOD_CONDITIONS = {snapshot.READY: GOOD, snapshot.DESTROYED: WARN, snapshot.UNFINISHED: WARN}


@click.command()
@store_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON document; see docs/inspect-schema.md.")
@user_option
@click.pass_context
def command(ctx: click.Context, name: str, user: int | None, *, as_json: bool) -> None:
    """Show who is attached to the store NAME, what is locked, and where quota and memory went.

    Takes no part: it waits for nobody, changes nothing, and works when all others are dead or stopped, and on stores that
    are damaged, unfinished or of another version. Then the exit code is 1. Root sees other users' stores with --user.
    """
    seen = inspect(name, user)
    if as_json:
        click.echo(json.dumps(seen.to_dict() | {"advice": advice(seen)}, indent=2, default=str))
    else:
        display(report(seen))
    if seen.condition != snapshot.READY:
        ctx.exit(FOUND)


def report(seen: Inspection) -> list[Section]:
    """What there is to say, the most urgent first."""
    return [
        _head(seen),
        *_problems(seen),
        *_advice(seen),
        *_space(seen),
        *_participants(seen),
        *locks(seen),
        *space_waits(seen),
        *_mutexes(seen),
        *_files(seen),
        *_arenas(seen),
        *_parameters(seen),
    ]


def _head(seen: Inspection) -> Section:
    rows: list[tuple[str, Words]] = [("condition", Cell(seen.condition, _GOOD_CONDITIONS.get(seen.condition, BAD)))]
    if seen.reason and not seen.problems:
        rows.append(("", Cell(seen.reason, WARN)))
    if seen.identity:
        rows += [
            ("created", f"{ago(seen.identity.created, seen.taken_at)}, {moment(seen.identity.created)}"),
            ("owner", f"{user(seen.identity.owner_uid)} (uid {seen.identity.owner_uid})"),
            ("uuid", seen.identity.uuid),
            ("layout", f"version {seen.identity.layout_version}, fingerprint {seen.identity.layout_fingerprint:#x}"),
        ]
    if seen.participants is not None:
        dead = len(seen.participants) - seen.alive
        text = f"{seen.alive} alive" + (f", {dead} dead" if dead else "")
        rows.append(("participants", Cell(text, WARN if dead else PLAIN)))
    if seen.activity:
        life = seen.activity
        busy = [
            what
            for what, at_it in (
                ("attaching", life.attaching),
                ("recovering", life.recovering),
                ("moving or removing a directory", life.moving_directories),
                ("trash left to free", life.trash_waiting),
                ("publishing an import", life.importing),
            )
            if at_it
        ]
        rows.append(
            ("so far", f"{count(life.recoveries, 'recovery', 'recoveries')}, {count(life.reaps, 'reap')} of dead participants")
        )
        if life.life_held is False and not seen.alive:
            rows.append(("in use", Cell("by nobody: it goes when its user makes the next private store", WARN)))
        if busy:
            rows.append(("just now", ", ".join(busy)))
    kind = "Private store" if seen.private else "Store"
    return Facts(f"{kind} {seen.name}", rows)


def _problems(seen: Inspection) -> list[Section]:
    if not seen.problems:
        return []
    lines: list[Words] = [
        Cell(f"{problem.section}: {problem.text}" + (" (a change is open)" if problem.half_done else ""), BAD)
        for problem in seen.problems
    ]
    return [Lines("What is wrong", lines, mark="x")]


def _advice(seen: Inspection) -> list[Section]:
    lines: list[Words] = [*advice(seen)]
    return [Lines("What to do", lines)] if lines else []


def _space(seen: Inspection) -> list[Section]:
    rows: list[tuple[str, Words]] = []
    if seen.quota:
        quota = seen.quota
        share = quota.used_bytes / quota.quota_bytes if quota.quota_bytes else 0.0
        used = f"{format_size(quota.used_bytes)} of {format_size(quota.quota_bytes)}"
        drawn = f"{bar(share)} " if on_terminal() else ""
        rows.append(("quota used", Cell(f"{drawn}{used}, {share:.0%}", level(share))))
        rows.append(("quota free", format_size(quota.free_bytes)))
        if quota.orphaned_bytes:
            rows.append(("orphaned", f"{format_size(quota.orphaned_bytes)} of files without a name: looked at, or unpublished"))
        for each in quota.directories:
            share = each.used_bytes / each.limit_bytes if each.limit_bytes else 0.0
            used = f"{format_size(each.used_bytes)} of {format_size(each.limit_bytes)}"
            rows.append((f"of {each.path or 'a removed directory'}", Cell(f"{used}, {share:.0%}", level(share))))
    if seen.memory:
        memory = seen.memory
        parts = f"index {format_size(memory.index_bytes)}, files {format_size(memory.arenas_bytes)}"
        parts += f", {memory.semaphores} semaphores {format_size(memory.semaphores_bytes)}"
        if memory.strays_bytes:
            parts += f", trimmed {format_size(memory.strays_bytes)}"
        rows.append(("memory", f"{format_size(memory.total_bytes)}: {parts}"))
        shm = f"{format_size(memory.shm_free_bytes)} free of {format_size(memory.shm_total_bytes)}"
        rows.append(("/dev/shm", shm))
    if seen.largest_free_run_bytes is not None:
        rows.append(("largest free run", f"{format_size(seen.largest_free_run_bytes)} of the memory that is there"))
    if seen.nodes:
        nodes = seen.nodes
        limit = f", at most {nodes.max_nodes:,}" if nodes.max_nodes else ""
        rows.append(("files", f"{nodes.files:,} in {count(nodes.directories, 'directory', 'directories')}{limit}"))
        used = "?" if nodes.in_use is None else f"{nodes.in_use:,}"
        rows.append(("nodes", f"{used} in use, memory for {nodes.backed:,}, room for {nodes.cap:,}"))
        if nodes.abandoned:
            rows.append(("abandoned", Cell(count(nodes.abandoned, "file"), WARN)))
    return [Facts("Space", rows)] if rows else []


def _participants(seen: Inspection) -> list[Section]:
    if seen.participants is None:
        return []
    columns = [
        Column("PID", right=True),
        Column("STATE"),
        Column("SINCE", right=True),
        Column("HOLDS", right=True),
        Column("WAITS", right=True),
        Column("VIEWS", right=True, since=72),
        Column("SLOT", right=True, since=90),
        Column("COMMAND", folds=True),
    ]
    rows: list[list[Words]] = []
    namespaces = {who.pid_namespace for who in seen.participants if who.pid_namespace}
    for who in seen.participants:
        state = Cell("dead", BAD) if not who.alive else Cell("stopped", WARN) if who.stopped else Cell("alive", GOOD)
        foreign = len(namespaces) > 1 and who.pid_namespace != _pid_namespace()
        rows.append(
            [
                f"{who.pid}@{who.pid_namespace}" if foreign else str(who.pid) if who.pid else "?",
                state if who.pid else Cell("joining", DIM),
                age(who.since, seen.taken_at),
                f"{who.locks_held:,}",
                f"{who.locks_waited_for:,}",
                f"{who.views:,}",
                str(who.slot),
                who.command,
            ]
        )
    return [Table("Participants", columns, rows, empty="nobody is attached")]


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def locks(seen: Inspection) -> list[Section]:
    """The table of file locks."""
    if seen.locks is None:
        return []
    columns = [
        Column("FILE", folds=True),
        Column("MODE"),
        Column("STATE"),
        Column("PID", right=True),
        Column("SINCE", right=True),
        Column("THREAD", right=True, since=110),
        Column("COMMAND", folds=True, since=90),
    ]
    styles = {"waiting": WARN, "granted": DIM}
    rows: list[list[Words]] = [
        [
            lock.path,
            lock.mode,
            Cell(lock.state, styles.get(lock.state, PLAIN)),
            str(lock.pid) if lock.alive else Cell(f"{lock.pid} dead", BAD),
            age(lock.since, seen.taken_at),
            str(lock.thread),
            lock.command,
        ]
        for lock in (seen.locks[:LOCKS_SHOWN] if on_terminal() else seen.locks)
    ]
    hidden = len(seen.locks) - len(rows)
    more = f"and {hidden:,} more: --json has them all" if hidden else ""
    return [Table("File locks", columns, rows, more=more, empty="no file is open")]


def space_waits(seen: Inspection) -> list[Section]:
    """Who waits for space, if anybody does."""
    if not seen.space_waits:
        return []
    columns = [
        Column("PID", right=True),
        Column("WANTS", right=True),
        Column("OF", folds=True),
        Column("COMMAND", folds=True, since=72),
    ]
    rows: list[list[Words]] = [
        [
            str(wait.pid) if wait.alive else Cell(f"{wait.pid} dead", BAD),
            format_size(wait.wanted_bytes),
            wait.directory or "the store",
            wait.command,
        ]
        for wait in seen.space_waits
    ]
    return [Table("Waiting for space", columns, rows)]


def _mutexes(seen: Inspection) -> list[Section]:
    if seen.mutexes is None:
        return []
    columns = [
        Column("MUTEX", right=True),
        Column("STATE"),
        Column("HOLDER", right=True),
        Column("GENERATION", right=True),
        Column("JOURNAL", right=True),
        Column("GUARDS", folds=True, since=80),
    ]
    styles = {"dead": BAD, "revoked": WARN}
    rows: list[list[Words]] = [
        [
            str(mutex.number),
            Cell(mutex.state, styles.get(mutex.state, PLAIN)),
            "-" if mutex.holder_pid is None else str(mutex.holder_pid),
            f"{mutex.generation:,}",
            f"{count(mutex.journal_entries, 'word')} open" if mutex.journal_entries else "closed",
            mutex.guards,
        ]
        for mutex in seen.mutexes
        if mutex.state != "free" or mutex.generation
    ]
    rest = len(seen.mutexes) - len(rows)
    quiet = f"all {rest} are free and of generation 0" if rest == len(seen.mutexes) else ""
    more = f"the other {rest} are free and of generation 0" if rest else ""
    return [Table("Mutexes", columns, rows, more=more, empty=quiet)]


def _files(seen: Inspection) -> list[Section]:
    if not seen.largest_files:
        return []
    columns = [
        Column("SIZE", right=True),
        Column("CHARGED", right=True, since=72),
        Column("PIECES", right=True, since=90),
        Column("CHANGED", right=True),
        Column("STATE"),
        Column("FILE", folds=True),
    ]
    words = {"free": "closed", "shared": "read", "exclusive": "written"}
    rows: list[list[Words]] = [
        [
            format_size(file.size_bytes),
            format_size(file.charged_bytes),
            f"{file.pieces:,}",
            ago(file.modified, seen.taken_at),
            Cell("abandoned", WARN) if file.abandoned else Cell(words[file.lock], DIM if file.lock == "free" else PLAIN),
            file.path,
        ]
        for file in seen.largest_files
    ]
    return [Table("Largest files", columns, rows)]


def _arenas(seen: Inspection) -> list[Section]:
    if not seen.arenas:
        return []
    columns = [
        Column("ARENA", right=True),
        Column("SIZE", right=True),
        Column("MEMORY", right=True),
        Column("IN USE TO", right=True),
        Column("TRIMS", right=True, since=72),
        Column("SEGMENT", folds=True, since=100),
    ]
    rows: list[list[Words]] = [
        [
            str(arena.number),
            format_size(arena.size_bytes),
            format_size(arena.backed_bytes),
            format_size(arena.break_bytes),
            str(arena.trims),
            arena.segment,
        ]
        for arena in (seen.arenas[:ARENAS_SHOWN] if on_terminal() else seen.arenas)
    ]
    hidden = len(seen.arenas) - len(rows)
    return [Table("Arenas", columns, rows, more=f"and {hidden} more" if hidden else "")]


def _parameters(seen: Inspection) -> list[Section]:
    if not seen.parameters:
        return []
    rows: list[tuple[str, Words]] = []
    for key, value in seen.parameters.items():
        size = isinstance(value, int) and key in ("max_quota", "file_charge")
        number = f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((key, format_size(value) if size else "unlimited" if value is None else number))
    return [Facts("Parameters", rows)]
