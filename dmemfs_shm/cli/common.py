"""What the commands share: their arguments, attaching a store, and the lines they print."""

from __future__ import annotations

import contextlib
import logging
import pwd
import sys
from collections.abc import Iterator

import click

from ..filesystem import MemoryFileSystem
from .report import Section, plain
from .text import printable


def remember_store(ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Note the store's name, for the hints of errors."""
    if isinstance(ctx.obj, list):
        ctx.obj.append(value)
    return value


store_argument = click.argument("name", callback=remember_store)
lock_timeout_option = click.option(
    "--lock-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long to wait for a file that somebody writes; 0 tries once.",
)
allow_abandoned_option = click.option(
    "--allow-abandoned", is_flag=True, help="Also files whose writer died before it closed them."
)
user_option = click.option("--user", metavar="USER", callback=lambda _c, _p, v: _uid(v), help="Another user's (root only).")


def _uid(who: str | None) -> int | None:
    if who is None:
        return None
    if who.isdigit():
        return int(who)
    try:
        return pwd.getpwnam(who).pw_uid
    except KeyError:
        raise click.BadParameter(f"there is no user {who!r}.") from None


@contextlib.contextmanager
def attached(name: str, lock_timeout: float | None = 30.0) -> Iterator[MemoryFileSystem]:
    """The store, for the length of the block; what recovery does meanwhile is told on stderr."""
    log, teller = logging.getLogger("dmemfs_shm"), _Teller()
    log.addHandler(teller)
    try:
        fs = MemoryFileSystem.attach(name, default_lock_timeout=lock_timeout)
        try:
            yield fs
        finally:
            fs.close()
    finally:
        log.removeHandler(teller)


class _Teller(logging.Handler):
    """Prints the engine's records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def say(text: str) -> None:
    click.echo(printable(text))


def note(text: str) -> None:
    """Something worth knowing that is no error."""
    click.echo(f"dmemfs-shm: {printable(text)}", err=True)


def on_terminal() -> bool:
    return sys.stdout.isatty()


def display(sections: list[Section]) -> None:
    """Print a report: for people on a terminal, for programs elsewhere."""
    if on_terminal():
        from .terminal import show

        show(sections)
    else:
        click.echo(plain(sections))
