"""``dmemfs-shm recover``."""

from __future__ import annotations

import uuid as uuids
from typing import Any

import click

from ..store.inspection import inspect
from ..store.snapshot import Inspection
from .advice import advice
from .common import attached, emit, json_option, say, store_argument
from .sizes import format_size
from .text import count


@click.command()
@store_argument
@json_option
def command(name: str, *, as_json: bool) -> None:
    """Do for the dead of the store NAME now what is otherwise done when somebody needs it, and say what was done.

    Their locks, views and space are freed, and what they died in the middle of is undone or ended. Nothing of the living is
    touched. A process that is stopped inside a mutex is not dead: `inspect` names it, `kick` ends it.
    """
    done = recover(name)
    if as_json:
        emit({"store": name} | done)
        return
    report(name, done)


def recover(name: str) -> dict[str, Any]:
    """Do it: what the engine says, what the dead held before and not after, and what is left to people."""
    events: list[str] = []
    before = inspect(name)
    mark = f"store {uuids.UUID(before.identity.uuid).hex}: " if before.identity else ""
    with attached(name, tell=events.append) as fs:
        fs.recover()
    after = inspect(name)
    return {
        "events": [event.removeprefix(mark) for event in events],
        "freed_locks": _held_by_dead(before) - _held_by_dead(after),
        "freed_views": _views_of_dead(before) - _views_of_dead(after),
        "freed_bytes": max(0, _used(before) - _used(after)),
        "advice": advice(after),
    }


def report(name: str, done: dict[str, Any]) -> None:
    """Say it."""
    freed = [count(done[key], what) for key, what in (("freed_locks", "lock"), ("freed_views", "view")) if done[key] > 0]
    if done["freed_bytes"]:
        freed.append(f"{format_size(done['freed_bytes'])} of quota")
    for event in done["events"]:
        say(event[0].upper() + event[1:] + ".")
    if freed:
        say(f"Freed {', '.join(freed)} in the store {name}.")
    elif not done["events"]:
        say(f"Nothing was left to do in the store {name}.")
    for sentence in done["advice"]:
        say(f"! {sentence}")


def _held_by_dead(seen: Inspection) -> int:
    return sum(who.locks_held + who.locks_waited_for for who in seen.participants or () if not who.alive)


def _views_of_dead(seen: Inspection) -> int:
    return sum(who.views for who in seen.participants or () if not who.alive)


def _used(seen: Inspection) -> int:
    return seen.quota.used_bytes if seen.quota else 0
