"""The command line as tests run it: in this process, in a pipe, and on a terminal of any width."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from click.testing import CliRunner, Result

from dmemfs_shm.cli import main

from .processes import DEADLINE_S

REPOSITORY = Path(__file__).parents[1]
Run = Callable[..., Result]


def run_here(*arguments: object, stdin: bytes | str | None = None) -> Result:
    """Run it in this process; what is on stderr is a line each."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1):
        assert re.fullmatch(r"(dmemfs-shm: [^\n]+\n)+", result.stderr), result.stderr
    return result


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dmemfs_shm", *map(str, arguments)]


def in_pipe(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, without a terminal."""
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, cwd=REPOSITORY, timeout=DEADLINE_S, check=False
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What is started in this block can be interrupted: a shell starts what is in its background without that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def on_terminal(*arguments: object, columns: int = 100, answer: str = "", interrupt_after: str = "") -> tuple[str, int]:
    """What the command line prints on a terminal of that width, and its exit code; Ctrl-C once a text was printed."""
    primary, secondary = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    ends = {"stdin": secondary, "stdout": secondary, "stderr": secondary}
    out = b""
    with interruptible():
        process = subprocess.Popen(command(*arguments), cwd=REPOSITORY, env=environment, start_new_session=True, **ends)
    with process:
        os.close(secondary)
        if answer:
            os.write(primary, answer.encode())
        deadline = time.monotonic() + DEADLINE_S
        try:
            while select.select([primary], [], [], max(0.0, deadline - time.monotonic()))[0]:
                try:
                    chunk = os.read(primary, 65536)
                except OSError:  # EIO: the other end is closed
                    break
                if not chunk:
                    break
                out += chunk
                if interrupt_after and interrupt_after.encode() in out:
                    process.send_signal(signal.SIGINT)
                    interrupt_after = ""
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
            os.close(primary)
    return out.decode().replace("\r\n", "\n"), code


def bare(text: str) -> str:
    """The text without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
