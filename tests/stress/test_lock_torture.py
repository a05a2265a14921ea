"""A short run of `lock_torture`; longer ones are `python -m tests.stress.lock_torture`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from .. import figures
from ..lockstore import BOTH
from .herd import Conditions
from .lock_torture import torture

SEED = int(os.environ.get("CRASH_SEED", "1"))
pytestmark = pytest.mark.crash


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("seconds", "processes"),
    [pytest.param(2, 4, id="short"), pytest.param(30, 8, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(200)])],
)
def test_torture(backend: str, seconds: float, processes: int, record_property: Callable[[str, object], None]) -> None:
    """Exclusion holds, nobody hangs, nothing is left over, whoever is killed or stopped."""
    seen = torture(
        Conditions(
            seed=SEED,
            backend=backend,
            seconds=seconds,
            processes=processes,
            storms_per_second=0.5,
            stops_per_second=2,
            long_stops_per_second=0.1,
        )
    )
    print(seen)
    record_property(figures.KILLS, seen.deaths)
    record_property(figures.OPERATIONS, seen.operations)
    record_property(figures.LONGEST_STALL_MS, seen.longest_stall_ms)
    record_property(figures.P99_STALL_MS, seen.p99_stall_ms)
    assert seen.findings == []
    assert seen.held and seen.kills
