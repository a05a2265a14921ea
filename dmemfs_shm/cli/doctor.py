"""``dmemfs-shm doctor``."""

from __future__ import annotations

import dataclasses

import click

from .common import display, emit, json_option, say
from .errors import FOUND
from .health import OK, WARN, Finding, findings
from .report import BAD, GOOD, Cell, Column, Lines, Section, Table, Words
from .report import WARN as YELLOW
from .text import count


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also what is in order.")
@json_option
@click.pass_context
def command(ctx: click.Context, *, everything: bool, as_json: bool) -> None:
    """Look at this machine, and say what is in the way of stores, each with what to do; the exit code is 1 then.

    /dev/shm and memory limits, systemd's RemoveIPC, limits of processes and of the kernel, stores that are damaged or deserted
    and what is left of those that are gone. Limits are those of this shell: run it as the job runs. Changes nothing.
    """
    found = [*findings()]
    wrong = [finding for finding in found if finding.level != OK]
    if as_json:
        emit({"findings": [dataclasses.asdict(finding) for finding in found], "wrong": len(wrong)})
    else:
        if wrong or everything:
            display(_sections(found if everything else wrong))
        if not wrong:
            say(f"Nothing is wrong: {count(len(found), 'look')}{'' if everything else ', shown with --all'}.")
    if wrong:
        ctx.exit(FOUND)


def _sections(found: list[Finding]) -> list[Section]:
    styles = {OK: GOOD, WARN: YELLOW}
    rows: list[list[Words]] = [
        [finding.subject, Cell(finding.level, styles.get(finding.level, BAD)), finding.text] for finding in found
    ]
    columns = [Column("WHAT"), Column("STATE"), Column("FOUND", folds=True)]
    remedies: list[Words] = [f"{finding.subject}: {finding.remedy}" for finding in found if finding.remedy]
    sections: list[Section] = [Table("", columns, rows)] if rows else []
    return [*sections, Lines("What to do", remedies)] if remedies else sections
