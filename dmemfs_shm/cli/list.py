"""``dmemfs-shm list``."""

from __future__ import annotations

import json
import os
import time

import click

from ..store.inspection import survey
from ..store.snapshot import SCHEMA_VERSION, Summary
from .common import display, user_option
from .report import BAD, DIM, WARN, Cell, Column, Table, Words, level
from .sizes import format_size
from .text import age, user


@click.command()
@user_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document; see docs/inspect-schema.md.")
def command(user: int | None, *, as_json: bool) -> None:
    """List the stores of this user; for root, of all users.

    A private store (one made without a name) is called @ and its uuid. One that no process uses any more goes when its
    user makes the next one.
    """
    everybody = user is None and os.geteuid() == 0
    found: list[Summary] = survey(user if user is not None else None if everybody else os.geteuid())
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "stores": [store.to_dict() for store in found]}, indent=2))
        return
    several = len({store.uid for store in found}) > 1
    display([_table(sorted(found, key=lambda store: (store.private, store.uid, store.name)), with_users=several)])


def _table(stores: list[Summary], *, with_users: bool) -> Table:
    columns = [
        Column("STORE", folds=True),
        *([Column("USER")] if with_users else []),
        Column("CONDITION"),
        Column("QUOTA", right=True, since=60),
        Column("USED", right=True),
        Column("MEMORY", right=True, since=90),
        Column("FILES", right=True, since=80),
        Column("ALIVE", right=True, since=50),
        Column("DEAD", right=True, since=80),
        Column("AGE", right=True, since=60),
    ]
    return Table("", columns, [_row(store, with_users=with_users) for store in stores], empty="No stores.")


def _row(store: Summary, *, with_users: bool) -> list[Words]:
    def size(value: int | None) -> str:
        return "?" if value is None else format_size(value)

    def number(value: int | None) -> str:
        return "?" if value is None else f"{value:,}"

    share = (store.used_bytes or 0) / store.quota_bytes if store.quota_bytes else 0.0
    style = DIM if store.private else "bold"
    condition = "private" if store.private and store.condition == "ready" else store.condition
    return [
        Cell(store.name, style),
        *([user(store.uid)] if with_users else []),
        Cell(condition, DIM if condition in ("ready", "private") else BAD),
        size(store.quota_bytes),
        Cell(size(store.used_bytes), level(share)),
        size(store.memory_bytes),
        number(store.files),
        number(store.alive),
        Cell(number(store.dead), WARN if store.dead else ""),
        "?" if store.created is None else age(store.created, time.time()),
    ]
