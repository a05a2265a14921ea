"""``dmemfs-shm kick``: ending a participant that holds others up.

What is killed is a process, not a number. Of the process that has PID now its pid namespace, the pid that it has there and its
start time are compared with what the participant wrote of itself when it attached; that happens between opening a pidfd of it
and signalling through the same pidfd, which never means another process. So neither a pid that was used again, nor the same
number in another container, is ever hit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
from collections.abc import Iterator
from typing import Any

import click

from ..store import names
from ..store.identity import start_time, visible_namespace
from ..store.inspection import inspect
from ..store.snapshot import Inspection, Participant
from .common import display, emit, json_option, note, say, user_option, yes_option
from .errors import IN_USE, MISSING, NOT_PERMITTED, USAGE, Failure
from .recover import recover, report
from .report import BAD, GOOD, WARN, Cell, Column, Facts, Section, Table, Words
from .text import age, ago, count

DEATH_S = 10.0


@dataclasses.dataclass(frozen=True)
class Process:
    """A process: its pid here, a descriptor of it, and who the kernel says it is."""

    pid: int
    fd: int
    uid: int  # effective
    namespace: int
    own_pid: int  # in its own pid namespace
    started: int

    def is_that_of(self, who: Participant) -> bool:
        """Whether this is the participant's process. One that could not find out its start time is nobody's."""
        return (self.namespace, self.own_pid, self.started) == (who.pid_namespace, who.pid, who.started) and who.started > 0


@click.command()
@click.argument("pid", type=click.IntRange(1))
@yes_option
@user_option
@json_option
def command(pid: int, user: int | None, *, yes: bool, as_json: bool) -> None:
    """Show what the process PID holds up in the stores that it has attached; with --yes, kill it (SIGKILL) and recover.

    For a process that is stopped or hung. It is killed only if it really is a participant of one of the stores, still the one
    that attached. Its locks are freed then, and files that it was writing are marked as abandoned.
    """
    uid = os.geteuid() if user is None else user
    with _opened(pid) as process:
        parts = list(_parts(process, uid))
        if not parts:
            raise Failure(f"Process {pid} is attached to no store of {'this user' if user is None else 'that user'}.", MISSING)
        if not as_json:
            for seen, who in parts:
                display(_sections(seen, who, process))
        killed = yes and _kill(process)
    recovered = _recover([seen for seen, _ in parts], uid) if killed else {}
    if as_json:
        stores = [_document(seen, who, recovered.get(seen.name)) for seen, who in parts]
        emit({"pid": pid, "killed": killed, "stores": stores})
    elif not yes:
        say(f"Nothing was done. Give --yes to kill process {pid}.")
    else:
        say(f"Killed process {pid}.")
        for name, done in recovered.items():
            report(name, done)


# ---- who it is


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[Process]:
    """The process of that pid, which keeps its pid as long as the descriptor is looked at."""
    if pid == os.getpid():
        raise Failure("That is this command itself.", USAGE)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Failure(f"There is no process {pid}. If it died: dmemfs-shm recover STORE", MISSING) from None
    except OSError as error:  # a thread's id, for one
        raise Failure(f"Process {pid}: {error.strerror}.", MISSING) from None
    try:
        if visible_namespace() == -1:
            raise Failure("/proc shows another pid namespace's processes here: run kick where it is ours.", NOT_PERMITTED)
        try:
            namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
            uid, own_pid = _status(pid)
        except FileNotFoundError:
            raise Failure(f"There is no process {pid}. If it died: dmemfs-shm recover STORE", MISSING) from None
        except PermissionError:
            raise Failure(f"Process {pid} may not be looked at: it is another user's, or protected.", NOT_PERMITTED) from None
        process = Process(pid, fd, uid, namespace, own_pid, start_time(pid))
        _signal(process, 0)  # it has not been reaped, so that what /proc said was said of it
        yield process
    finally:
        os.close(fd)


def _status(pid: int) -> tuple[int, int]:
    """(effective uid, pid in its own pid namespace) of a process."""
    with open(f"/proc/{pid}/status", "rb") as status:
        fields = dict(line.split(b":", 1) for line in status if b":" in line)
    return int(fields[b"Uid"].split()[1]), int(fields[b"NSpid"].split()[-1])


def _parts(process: Process, uid: int) -> Iterator[tuple[Inspection, Participant]]:
    """The stores in which the process is a living participant, as they are now.

    Only their owner attaches them: what another user's store says of somebody else's process, it was made to say.
    """
    for _, name in names.stores(uid) if process.uid == uid else ():
        with contextlib.suppress(OSError, ValueError):
            seen = inspect(name, uid)
            for who in seen.participants or ():
                if who.alive and process.is_that_of(who):
                    yield seen, who


# ---- what it holds up


def _inside(seen: Inspection, who: Participant) -> list[int]:
    return [mutex.number for mutex in seen.mutexes or () if mutex.holder_slot == who.slot and mutex.state == "held"]


def _files(seen: Inspection, who: Participant) -> list[dict[str, Any]]:
    """The files it has open, with those who wait for them."""
    waiting = [lock for lock in seen.locks or () if lock.state == "waiting" and lock.alive and lock.slot != who.slot]
    return [
        {
            "path": lock.path,
            "mode": lock.mode,
            "since": lock.since,
            "waiting": [
                {"pid": other.pid, "command": other.command, "since": other.since}
                for other in waiting
                if other.path == lock.path
            ],
        }
        for lock in seen.locks or ()
        if lock.slot == who.slot and lock.state != "waiting"
    ]


def _document(seen: Inspection, who: Participant, recovered: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": seen.name,
        "slot": who.slot,
        "command": who.command,
        "stopped": who.stopped,
        "since": who.since,
        "mutexes": _inside(seen, who),
        "files": _files(seen, who),
        "views": who.views,
        "recovered": recovered,
    }


def _sections(seen: Inspection, who: Participant, process: Process) -> list[Section]:
    inside, files = _inside(seen, who), _files(seen, who)
    state = Cell("stopped", WARN) if who.stopped else Cell("runs", GOOD)
    rows: list[tuple[str, Words]] = [
        ("process", f"{process.pid}  {who.command}"),
        ("state", state),
        ("attached", ago(who.since, seen.taken_at)),
    ]
    if process.own_pid != process.pid:
        rows.append(("own pid", f"{process.own_pid} in pid namespace {process.namespace}"))
    if inside:
        numbers = ", ".join(map(str, inside))
        rows.append(("mutexes", Cell(f"inside {numbers}: everybody who needs that waits", BAD)))
    waiting = sum(len(file["waiting"]) for file in files)
    rows.append(("files", f"{len(files):,} open, {count(waiting, 'other waits', 'others wait')} for them"))
    if who.views:
        rows.append(("views", f"{who.views:,}, which keep their content in memory"))
    sections: list[Section] = [Facts(f"In the store {seen.name}", rows)]
    if files:
        columns = [
            Column("FILE", folds=True),
            Column("MODE", since=60),
            Column("SINCE", right=True),
            Column("WAITING", right=True),
            Column("THESE WAIT", folds=True, since=72),
        ]
        files.sort(key=lambda file: (-len(file["waiting"]), file["path"]))
        table: list[list[Words]] = [
            [
                file["path"],
                file["mode"],
                age(file["since"], seen.taken_at),
                str(len(file["waiting"])),
                ", ".join(f"{other['pid']} ({age(other['since'], seen.taken_at)})" for other in file["waiting"]),
            ]
            for file in files
        ]
        sections.append(Table("It has open", columns, table))
    return sections


# ---- ending it


def _signal(process: Process, number: int) -> None:
    try:
        signal.pidfd_send_signal(process.fd, number)
    except ProcessLookupError:
        raise Failure(f"Process {process.pid} has just ended. Now: dmemfs-shm recover STORE", MISSING) from None
    except PermissionError:
        raise Failure(f"Process {process.pid} may not be killed: it is another user's, or protected.", NOT_PERMITTED) from None


def _kill(process: Process) -> bool:
    """SIGKILL, and its end awaited: a process that the kernel has in hand (state D) may not end now."""
    _signal(process, signal.SIGKILL)
    if not select.select([process.fd], [], [], DEATH_S)[0]:
        raise Failure(
            f"Process {process.pid} was sent SIGKILL and has not ended in {DEATH_S:.0f} s: see its kernel stack.", IN_USE
        )
    return True


def _recover(stores: list[Inspection], uid: int) -> dict[str, dict[str, Any]]:
    """What its end leaves to be done. (Only the owner attaches a store: root leaves it to who comes next.)"""
    done = {}
    for seen in stores:
        if uid != os.geteuid():
            note(f"the store {seen.name} is another user's: what the process held is freed by who needs it next.")
            continue
        with contextlib.suppress(FileNotFoundError):  # destroyed, or private and it was the last to have it
            done[seen.name] = recover(seen.name)
    return done
