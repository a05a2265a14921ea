"""``dmemfs-shm cp``."""

from __future__ import annotations

import click

from ..filesystem import MemoryFileSystem
from . import complete
from .cat import copy_out
from .common import allow_abandoned_option, attached, base_of, into, lock_timeout_option, store_argument


@click.command()
@store_argument
@click.argument("sources", nargs=-1, required=True, metavar="PATH...", shell_complete=complete.paths)
@click.argument("target", shell_complete=complete.paths)
@click.option("-r", "--recursive", is_flag=True, help="Directories too, with everything in them.")
@click.option("-f", "--force", is_flag=True, help="Replace a file that stands, in one step.")
@lock_timeout_option
@allow_abandoned_option
def command(
    name: str,
    sources: tuple[str, ...],
    target: str,
    lock_timeout: float,
    *,
    recursive: bool,
    force: bool,
    allow_abandoned: bool,
) -> None:
    """Copy PATH... within the store NAME to TARGET.

    If TARGET is a directory, or ends with a slash, or there are several PATH, they go into it under their own names; otherwise
    TARGET is the new name. Directories that are missing above it are made. A copy appears when it is complete.
    """
    with attached(name, lock_timeout) as fs:
        inside = into(fs, sources, target)
        for source in sources:
            copy = f"{target.rstrip('/')}/{base_of(source)}" if inside else target
            is_dir = fs.stat(source)["is_dir"]
            if is_dir and not recursive:
                raise IsADirectoryError(f"Is a directory: '{source}'")
            fs.mkdir(copy.rpartition("/")[0] or "/", exist_ok=True)
            if is_dir:
                fs.copy_tree(source, copy, allow_abandoned=allow_abandoned)
            elif force and fs.is_file(copy):
                _replace(fs, source, copy, allow_abandoned=allow_abandoned)
            else:
                fs.copy(source, copy, allow_abandoned=allow_abandoned)


def _replace(fs: MemoryFileSystem, source: str, copy: str, *, allow_abandoned: bool) -> None:
    with fs.open(copy, "wb", atomic=True) as out:
        copy_out(fs, source, out, allow_abandoned=allow_abandoned)
