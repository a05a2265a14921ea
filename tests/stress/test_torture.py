"""Short runs of tools/torture.py; a long one on demand. Seeds repeat the choices, not the moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..lockstore import BOTH

REPOSITORY = Path(__file__).parents[2]
SEED = int(os.environ.get("STRESS_SEED", "1"))

#: How much longer than the run itself everything about it may take; reaching it means a hang.
GRACE_S = 90.0


def torture(seconds: float, **options: Any) -> dict[str, Any]:
    """The figures of a run in a process group of its own, of which nothing is left."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, str(REPOSITORY / "tools" / "torture.py"), "--json", f"--seconds={seconds}", *words]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = run.communicate(timeout=seconds + GRACE_S)
    except BaseException:
        os.killpg(run.pid, 9)
        run.communicate()
        raise
    assert out, err
    print(out, err)
    figures: dict[str, Any] = json.loads(out)
    return figures


def expect_sound(figures: dict[str, Any], kills: int) -> None:
    """Nothing is wrong, and the run was one. How long anything took is printed: a guess about the machine is no test."""
    assert figures["findings"] == []
    assert figures["kills"] >= kills
    assert figures["operations"] > figures["refused"] > 0
    assert figures["own_operations"] and figures["compared_readings"]


@pytest.mark.crash
@pytest.mark.parametrize("backend", BOTH)
def test_short(backend: str) -> None:
    """Four workers are killed, stopped and replaced for some seconds."""
    expect_sound(torture(4, seed=SEED, backend=backend, processes=4, kills_per_second=6, stops_per_second=1), 5)


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
@pytest.mark.parametrize("backend", BOTH)
def test_long(backend: str, seed: int) -> None:
    """Eight workers, a minute, some three hundred kills."""
    expect_sound(torture(60, seed=seed, backend=backend, processes=8, kills_per_second=5, stops_per_second=0.5), 200)
