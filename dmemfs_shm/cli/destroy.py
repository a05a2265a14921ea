"""``dmemfs-shm destroy``."""

from __future__ import annotations

import sys

import click

from ..filesystem import MemoryFileSystem
from ..store.inspection import inspect
from .common import say, store_argument
from .errors import IN_USE, Failure
from .text import count


@click.command()
@store_argument
@click.option("--yes", is_flag=True, help="Do not ask, even if processes use it.")
@click.pass_context
def command(ctx: click.Context, name: str, *, yes: bool) -> None:
    """Take the store NAME away, with all that is in it, whatever its condition.

    Asks when processes are attached. Their calls fail from then on; views that they have stay readable.
    """
    seen = inspect(name)
    if seen.alive and not yes:
        users = count(seen.alive, "process uses", "processes use")
        if not sys.stdin.isatty():
            raise Failure(f"{users} the store {name!r}. Give --yes to destroy it all the same.", IN_USE)
        for who in (seen.participants or ())[:10]:
            if who.alive:
                say(f"  {who.pid}  {who.command}")
        if not click.confirm(f"{users} the store {name!r}. Destroy it all the same?"):
            say("Nothing was destroyed.")
            ctx.exit(IN_USE)
    MemoryFileSystem.destroy(name)
    say(f"Destroyed the store {name}.")
