"""A short run of `lock_torture`; longer ones are `python -m tests.stress.lock_torture`."""

from __future__ import annotations

import os

import pytest

from ..lockstore import BOTH
from .lock_torture import torture

SEED = int(os.environ.get("STRESS_SEED", "1"))


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(("seconds", "processes"), [(3, 4), pytest.param(60, 8, marks=pytest.mark.slow)], ids=["short", "long"])
def test_torture(backend: str, seconds: float, processes: int) -> None:
    """Exclusion holds, nobody hangs, nothing is left over, whoever is killed or stopped."""
    figures = torture(
        seed=SEED,
        backend=backend,
        seconds=seconds,
        processes=processes,
        threads=2,
        kills_per_second=5,
        stops_per_second=2,
    )
    print(figures)
    assert figures.findings == []
    assert figures.held and figures.kills
