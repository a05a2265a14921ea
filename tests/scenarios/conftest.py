"""`program` runs a script as a user would, and sees that it leaves nothing in /dev/shm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..processes import in_use

REPOSITORY = Path(__file__).parents[2]
SHM = Path("/dev/shm")

#: Longer than any of the programs may take; reaching it means a hang.
DEADLINE_S = 100.0
#: How long another test's store may look abandoned, between a death and the next attach.
GRACE_S = 60.0

Program = Callable[..., "subprocess.CompletedProcess[str]"]


def ours() -> set[str]:
    """The names in /dev/shm of all stores there are."""
    return {entry for entry in os.listdir(SHM) if entry.startswith(("dmemfs-", "sem.dmemfs-"))}


@pytest.fixture
def program() -> Program:
    """Runs Python with these arguments in the repository; returns the completed process, with its output as text.

    Afterwards every name that came to /dev/shm meanwhile must go or be in use: other tests may run at the same time.
    """

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        before = ours()
        command = [sys.executable, *map(str, arguments)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment
        environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "default::ResourceWarning"}
        settings = {"cwd": REPOSITORY, "env": environment, "start_new_session": True, "text": True}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
            try:
                out, err = process.communicate(timeout=DEADLINE_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        left, deadline = ours() - before, time.monotonic() + GRACE_S
        while left and time.monotonic() < deadline:
            left &= ours() - in_use()  # another test's may still go; what comes from now on is not ours
            time.sleep(0.1)
        assert not left, f"left in /dev/shm: {sorted(left)}\n{out}{err}"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run
