"""``dmemfs-shm top``."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..errors import MFSCorruptStoreError
from ..store.inspection import inspect
from ..store.sampling import Sampler, Traffic
from ..store.snapshot import Inspection
from .advice import advice
from .common import display, emit, json_option, on_terminal, store_argument, user_option
from .inspect import space_waits
from .locks import process
from .report import BAD, DIM, GOOD, PLAIN, WARN, Cell, Column, Facts, Lines, Section, Table, Words, bar, level
from .sizes import format_size
from .text import age, count

LOOK_S = 0.1
FIRST_S = 0.5  # the first picture on a terminal comes early
WAITS_SHOWN = 15
PATHS_SHOWN = 12


@click.command()
@store_argument
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="From picture to picture.",
)
@click.option("-n", "--count", "pictures", type=click.IntRange(1), metavar="N", help="End after N pictures.")
@click.option("--once", is_flag=True, help="As --count 1.")
@user_option
@json_option
def command(name: str, interval: float, pictures: int | None, user: int | None, *, once: bool, as_json: bool) -> None:
    """Show what goes on in the store NAME: space, who waits for whom, who holds what, and which files are busiest.

    Ctrl-C ends it. In a pipe, a report an interval; with --json, a document a line. Takes no part, as `inspect`: nothing is
    counted for it by those at work, so figures come from differences and samples.

    \b
    names/s    commits that made, moved or removed names: a tree that is imported or removed is one
    changes/s  writers' closes, and changes of content or name; a file that is made by open and closed has two
    open       files open on average of ten looks a second; reading leaves no other trace
    HELD       share of the looks that found the file open
    WAIT       how many waited for it, on average
    ASLEEP     threads that wait for a file to come (wait_for, claim)
    """  # noqa: D301  (click keeps lines after a backspace as they are)
    most = 1 if once else pictures
    with contextlib.suppress(KeyboardInterrupt), _shown(live=on_terminal() and not as_json and most != 1) as show:
        for number, (seen, traffic) in enumerate(_pictures(name, user, interval, most)):
            if as_json:
                emit(_document(seen, traffic), indent=None)
            else:
                show(_sections(seen, traffic), number)


@contextlib.contextmanager
def _shown(*, live: bool) -> Iterator[Callable[[list[Section], int], None]]:
    """How a picture is shown: in the place of the last one on a terminal, below it elsewhere."""
    if live:
        from .terminal import Screen

        with Screen() as screen:
            yield lambda sections, _: screen.show(sections)
    else:

        def append(sections: list[Section], number: int) -> None:
            if number:
                click.echo()
            display(sections)

        yield append


def _pictures(name: str, uid: int | None, interval: float, most: int | None) -> Iterator[tuple[Inspection, Traffic | None]]:
    """The store and what happened in it, an interval each."""
    length = interval if most == 1 or not on_terminal() else min(interval, FIRST_S)
    seen = inspect(name, uid)
    sampler = _sampler(seen)
    try:
        for _ in itertools.count() if most is None else range(most):
            traffic = _sample(sampler, length)
            before, seen, length = seen, inspect(name, uid), interval
            if not _is_same(before, seen):  # made anew under its name
                if sampler is not None:
                    sampler.close()
                sampler, traffic = _sampler(seen), None
            yield seen, traffic
    finally:
        if sampler is not None:
            sampler.close()


def _is_same(one: Inspection, other: Inspection) -> bool:
    return one.identity is None or other.identity is None or one.identity.uuid == other.identity.uuid


def _sampler(seen: Inspection) -> Sampler | None:
    with contextlib.suppress(MFSCorruptStoreError):
        return Sampler(seen.name, seen.uid)
    return None


def _sample(sampler: Sampler | None, length: float) -> Traffic | None:
    """Look for so many seconds; None where the store is too damaged for it."""
    end = time.monotonic() + length
    while (left := end - time.monotonic()) > 0:
        if sampler is not None:
            sampler.look()
        time.sleep(min(LOOK_S, left))
    return sampler.traffic() if sampler is not None else None


def _document(seen: Inspection, traffic: Traffic | None) -> dict[str, Any]:
    about = None
    if traffic is not None:
        about = traffic._asdict() | {"busiest": [busy._asdict() for busy in traffic.busiest]}
    return {
        "store": seen.name,
        "taken_at": seen.taken_at,
        "condition": seen.condition,
        "quota": dataclasses.asdict(seen.quota) if seen.quota else None,
        "memory": dataclasses.asdict(seen.memory) if seen.memory else None,
        "participants": [dataclasses.asdict(who) for who in seen.participants or ()],
        "waits": [dataclasses.asdict(lock) for lock in seen.locks or () if lock.state == "waiting"],
        "space_waits": [dataclasses.asdict(wait) for wait in seen.space_waits or ()],
        "traffic": about,
        "advice": advice(seen),
    }


# ---- what is shown


def _sections(seen: Inspection, traffic: Traffic | None) -> list[Section]:
    said = advice(seen)
    lines: list[Words] = [*said]
    return [
        _head(seen, traffic),
        *([Lines("", lines)] if said else []),
        *_waits(seen),
        *space_waits(seen),
        _participants(seen),
        *_paths(traffic),
    ]


def _head(seen: Inspection, traffic: Traffic | None) -> Section:
    clock = time.strftime("%H:%M:%S", time.localtime(seen.taken_at))
    rows: list[tuple[str, Words]] = []
    if seen.condition != "ready":
        rows.append(("condition", Cell(seen.condition, BAD)))
    if seen.quota:
        quota = seen.quota
        share = quota.used_bytes / quota.quota_bytes if quota.quota_bytes else 0.0
        drawn = f"{bar(share, 10)} " if on_terminal() else ""
        used = f"{format_size(quota.used_bytes)} of {format_size(quota.quota_bytes)}"
        rows.append(("quota", Cell(f"{drawn}{share:.0%}, {used}", level(share))))
        for each in quota.directories:
            share = each.used_bytes / each.limit_bytes if each.limit_bytes else 0.0
            if share >= 0.5:
                text = f"{share:.0%}, {format_size(each.used_bytes)} of {format_size(each.limit_bytes)}"
                rows.append((f"of {each.path or 'a removed directory'}", Cell(text, level(share))))
    if seen.memory:
        memory = seen.memory
        rows.append(("memory", f"{format_size(memory.total_bytes)}; /dev/shm has {format_size(memory.shm_free_bytes)} left"))
    if seen.nodes:
        rows.append(("files", f"{seen.nodes.files:,} in {count(seen.nodes.directories, 'directory', 'directories')}"))
    if traffic:
        figures = f"{_rate(traffic.name_changes, traffic)} names/s, {_rate(traffic.file_changes, traffic)} changes/s"
        rows.append(("traffic", f"{figures}, {traffic.files_open:.1f} open, {traffic.threads_waiting:.1f} waiting"))
        if traffic.is_partial:
            rows.append(("", Cell("not all files are followed: there are too many", DIM)))
    if seen.activity:
        recoveries = count(seen.activity.recoveries, "recovery", "recoveries")
        rows.append(("so far", f"{recoveries}, {count(seen.activity.reaps, 'reap')} of dead participants"))
    return Facts(f"{seen.name}  {clock}", rows)


def _rate(number: int, traffic: Traffic) -> str:
    rate = number / traffic.seconds
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


def _waits(seen: Inspection) -> list[Section]:
    """Who waits for which file, and who has it."""
    rows: list[list[Words]] = []
    waits = sorted((lock for lock in seen.locks or () if lock.state == "waiting"), key=lambda lock: lock.since)
    holders: dict[str, list[str]] = {}
    stopped = {who.slot for who in seen.participants or () if who.stopped}
    for lock in seen.locks or ():
        if lock.state != "waiting":
            how = " dead" if not lock.alive else " stopped" if lock.slot in stopped else ""
            holders.setdefault(lock.path, []).append(f"{lock.pid}{how}")
    for lock in waits[:WAITS_SHOWN]:
        by = holders.get(lock.path, [])
        rows.append(
            [
                lock.path,
                f"{lock.pid}" if lock.alive else Cell(f"{lock.pid} dead", BAD),
                lock.mode,
                Cell(age(lock.since, seen.taken_at), WARN),
                ", ".join(by[:3]) + (f" and {len(by) - 3} more" if len(by) > 3 else ""),
            ]
        )
    columns = [
        Column("WAITED FOR", folds=True),
        Column("BY", right=True),
        Column("MODE", since=72),
        Column("SINCE", right=True),
        Column("HELD BY", folds=True),
    ]
    hidden = len(waits) - len(rows)
    return [Table("Waits", columns, rows, more=f"and {hidden:,} more" if hidden else "")] if rows else []


def _participants(seen: Inspection) -> Section:
    inside: dict[int, list[int]] = {}
    for mutex in seen.mutexes or ():
        if mutex.holder_slot is not None and mutex.state in ("held", "dead"):
            inside.setdefault(mutex.holder_slot, []).append(mutex.number)
    columns = [
        Column("PID", right=True),
        Column("STATE"),
        Column("HOLDS", right=True),
        Column("WAITS", right=True),
        Column("VIEWS", right=True, since=60),
        Column("ASLEEP", right=True, since=90),
        Column("MUTEX", right=True, since=90),
        Column("COMMAND", folds=True, since=60),
    ]
    order = sorted(
        seen.participants or (),
        key=lambda who: (not who.stopped, who.alive, -who.locks_held, -who.locks_waited_for, who.pid),
    )
    rows: list[list[Words]] = [
        [
            str(who.pid) if who.pid else "?",
            process(alive=who.alive, stopped=who.stopped),
            f"{who.locks_held:,}",
            f"{who.locks_waited_for:,}",
            f"{who.views:,}",
            f"{who.sleepers:,}",
            ", ".join(map(str, inside.get(who.slot, ()))),
            who.command,
        ]
        for who in order
    ]
    return Table("Participants", columns, rows, empty="nobody is attached")


def _paths(traffic: Traffic | None) -> list[Section]:
    if traffic is None:
        return []
    columns = [
        Column("CHANGES/S", right=True),
        Column("HELD", right=True),
        Column("WAIT", right=True, since=60),
        Column("SIZE", right=True, since=60),
        Column("FILE", folds=True),
    ]
    rows: list[list[Words]] = [
        [
            _rate(busy.changes, traffic),
            Cell(f"{busy.held:.0%}", GOOD if busy.held < 0.8 else PLAIN),
            f"{busy.waiting:.1f}",
            format_size(busy.size_bytes),
            busy.path,
        ]
        for busy in (traffic.busiest[:PATHS_SHOWN] if on_terminal() else traffic.busiest)
    ]
    return [Table("Busiest files", columns, rows, empty="no file was changed or open")]
