"""What the commands share: their arguments, attaching a store, and the lines they print."""

from __future__ import annotations

import contextlib
import json
import logging
import pwd
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..filesystem import MemoryFileSystem
from ..store.snapshot import SCHEMA_VERSION
from . import complete
from .report import Section, plain
from .text import printable


def remember_store(ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Note the store's name, for the hints of errors."""
    if isinstance(ctx.obj, list):
        ctx.obj.append(value)
    return value


store_argument = click.argument("name", callback=remember_store, shell_complete=complete.store_names)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document; see docs/command-json.md.")
yes_option = click.option("--yes", is_flag=True, help="Do it, and do not only say what would be done.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Say nothing when it is done.")
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


def into(fs: MemoryFileSystem, sources: tuple[str, ...], path: str) -> bool:
    """Whether PATH is the directory that the sources go into, under their own names; else it is their new name."""
    return len(sources) > 1 or path.endswith("/") or fs.is_dir(path)


def base_of(path: str) -> str:
    """The last name of a path in a store; "" of the root."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


@contextlib.contextmanager
def attached(
    name: str, lock_timeout: float | None = 30.0, *, tell: Callable[[str], None] | None = None
) -> Iterator[MemoryFileSystem]:
    """The store, for the length of the block; what recovery does meanwhile is told on stderr, or to *tell*."""
    log, teller = logging.getLogger("dmemfs_shm"), _Teller(tell or note)
    level = log.level
    log.addHandler(teller)
    log.setLevel(min(logging.INFO, log.getEffectiveLevel()))
    try:
        fs = MemoryFileSystem.attach(name, default_lock_timeout=lock_timeout)
        try:
            yield fs
        finally:
            fs.close()
    finally:
        log.setLevel(level)
        log.removeHandler(teller)


class _Teller(logging.Handler):
    """Passes the engine's records on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


def say(text: str) -> None:
    click.echo(printable(text))


def note(text: str) -> None:
    """Something worth knowing that is no error."""
    click.echo(f"dmemfs-shm: {printable(text)}", err=True)


def emit(document: dict[str, Any], *, indent: int | None = 2) -> None:
    """Print what a program asked for."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION} | document, indent=indent))


def on_terminal() -> bool:
    return sys.stdout.isatty()


def display(sections: list[Section]) -> None:
    """Print a report: for people on a terminal, for programs elsewhere."""
    if on_terminal():
        from .terminal import show

        show(sections)
    else:
        click.echo(plain(sections))
