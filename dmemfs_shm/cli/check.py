"""``dmemfs-shm check``."""

from __future__ import annotations

import click

from .common import attached, emit, json_option, say, store_argument
from .errors import FOUND, OK
from .text import count


@click.command()
@store_argument
@json_option
@click.pass_context
def command(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Check every invariant of the store NAME; what is wrong is listed, and the exit code is 1.

    Others wait meanwhile, and it waits for them. `inspect` waits for nobody, and sees less.
    """
    with attached(name) as fs:
        findings = fs.check()
    if as_json:
        emit({"store": name, "sound": not findings, "findings": findings})
        ctx.exit(FOUND if findings else OK)
    for finding in findings:
        say(finding)
    if findings:
        say(f"{count(len(findings), 'finding')}: the store {name} is damaged.")
        ctx.exit(FOUND)
    say(f"The store {name} is sound.")
