"""The night of docs/how-to-operate.md, from its beginning to its end: every command that it shows is run, in its order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.cli.group import COMMANDS
from dmemfs_shm.store.inspection import inspect

from .conftest import REPOSITORY, Program

TEXT = (REPOSITORY / "docs" / "how-to-operate.md").read_text(encoding="utf-8")
STORES = ("night", "night2")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def clear_up() -> None:
    """What the night leaves if it ends early: a writer that is stopped, readers, stores."""
    for name in STORES:
        with contextlib.suppress(FileNotFoundError):
            for who in inspect(name).participants or ():
                if who.alive and "night.py" in who.command:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(who.pid, signal.SIGKILL)
            MemoryFileSystem.destroy(name)


def test_the_night(program: Program, tmp_path: Path) -> None:
    (script,) = blocks("python")
    (tmp_path / "night.py").write_text(script, encoding="utf-8")
    commands = "\n".join(blocks("sh"))
    in_bash = "import os, sys; os.chdir(sys.argv[2]); os.execlp('bash', 'bash', '-euo', 'pipefail', '-c', sys.argv[1])"
    try:
        done = program("-c", in_bash, commands, tmp_path)
    finally:
        clear_up()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^/in/orders\.csv +exclusive +held +\d+ +stopped ", done.stdout, re.MULTILINE)
    assert re.search(r"^Killed process \d+\.$", done.stdout, re.MULTILINE)
    assert (tmp_path / "saved.csv").read_bytes() in (b"", b"id,value\n")
    assert "dmemfs_shm_used_bytes{" in (tmp_path / "stores.prom").read_text()
    used = set(re.findall(r"dmemfs-shm ([a-z]+)", commands))
    assert set(COMMANDS) - used == {"put", "cat"}  # the README has them
