"""``dmemfs-shm mv``."""

from __future__ import annotations

import click

from . import complete
from .common import attached, base_of, into, lock_timeout_option, store_argument


@click.command()
@store_argument
@click.argument("sources", nargs=-1, required=True, metavar="PATH...", shell_complete=complete.paths)
@click.argument("target", shell_complete=complete.paths)
@click.option("-f", "--force", is_flag=True, help="Replace a file that stands, in one step.")
@lock_timeout_option
def command(name: str, sources: tuple[str, ...], target: str, lock_timeout: float, *, force: bool) -> None:
    """Move PATH... within the store NAME to TARGET. What is open anywhere is not moved.

    If TARGET is a directory, or ends with a slash, or there are several PATH, they go into it under their own names; otherwise
    TARGET is the new name. Directories that are missing above it are made.
    """
    with attached(name, lock_timeout) as fs:
        inside = into(fs, sources, target)
        for source in sources:
            moved = f"{target.rstrip('/')}/{base_of(source)}" if inside else target
            if force and fs.is_file(source) and fs.is_file(moved):
                fs.replace(source, moved)
            else:
                fs.move(source, moved)
