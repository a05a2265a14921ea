"""Short runs of tools/torture.py; minutes in `make crash`, hours by hand. Seeds repeat the choices, not the moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .. import figures, own_shm
from ..lockstore import BOTH

REPOSITORY = Path(__file__).parents[2]
SEED = int(os.environ.get("CRASH_SEED", "1"))
pytestmark = pytest.mark.crash

#: How much longer than the run itself everything about it may take; reaching it means a hang.
GRACE_S = 150.0

needs_own_shm = pytest.mark.skipif(
    os.geteuid() != 0 or not own_shm.is_possible(), reason="mounting a small /dev/shm needs root and a mount namespace"
)


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
    seen: dict[str, Any] = json.loads(out)
    return seen


def expect_sound(seen: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    """Nothing is wrong, and the run was one. How long anything took is reported: a guess about the machine is no test."""
    record_property(figures.KILLS, seen["kills"] + seen["suicides"] + seen["offspring_deaths"])
    record_property(figures.OPERATIONS, seen["operations"])
    record_property(figures.LONGEST_STALL_MS, seen["longest_stall_ms"])
    record_property(figures.P99_STALL_MS, seen["p99_stall_ms"])
    assert seen["findings"] == [], f"seed {seen['seed']}"
    assert seen["lost_bytes"] == seen["stuck_locks"] == seen["corrupt_entries"] == 0
    assert seen["kills"]
    assert seen["operations"] > seen["refused"] > 0
    assert seen["own_operations"]


@pytest.mark.parametrize("backend", BOTH)
def test_short(backend: str, record_property: Callable[[str, object], None]) -> None:
    """A few workers are killed, stopped and replaced for some seconds, one by one and in storms."""
    seen = torture(
        6, seed=SEED, backend=backend, processes=4, kills_per_second=6, storms_per_second=0.5, long_stops_per_second=0.2
    )
    expect_sound(seen, record_property)


@needs_own_shm
def test_short_with_little_memory(record_property: Callable[[str, object], None]) -> None:
    """The same in a /dev/shm that is smaller than the quota, and full at times."""
    seen = torture(4, seed=SEED, shm_mib=6, quota=16 << 20, processes=4, kills_per_second=6, storms_per_second=0.5)
    expect_sound(seen, record_property)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="the-mix"),
        pytest.param({"backend": "ofd"}, id="ofd"),
        pytest.param({"long_stops_per_second": 0.5, "impatient": 0.8, "storms_per_second": 0.05}, id="stops"),
        pytest.param({"shm_mib": 6, "quota": 16 << 20, "processes": 5}, id="little-memory", marks=needs_own_shm),
    ],
)
def test_long(options: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    """A minute, some hundreds of deaths; everything has happened at least once."""
    seen = torture(60, seed=SEED, **options)
    expect_sound(seen, record_property)
    assert seen["massacres"] + seen["storms"] and seen["suicides"] and seen["stops"] and seen["long_stops"]
    assert seen["forks"] and seen["pickles"] and seen["offspring_deaths"] and seen["compared_readings"]
    assert seen["second_stores_destroyed"] and seen["told_gone"]
    assert bool(seen["no_space"]) == bool(options.get("shm_mib"))
