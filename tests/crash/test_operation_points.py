"""Every operation of the filesystem, killed at every point of it, on both backends.

Afterwards somebody else is in the store: what is there is what was before the operation, or what is after it, or (a
file that was being written) what was before with that file marked abandoned; `check` finds nothing, everything can be
locked, and the quota is what the files cost.

A case is made afresh for each point. The test's own process is the peer: attached before, it lives on. Each point is tried
twice: the victim dies alone, and in the company of threads of the peer. One of them reads all files without a lock, from
the beginning of the operation; others want, when the victim is about to die, every file and the tree, and so run into what
the victim holds. Each of them must come to its end, and whatever they read is what was before or what is after.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from ..figures import KILL_POINTS
from ..lockstore import BOTH
from .harness import SEED, kill_everywhere
from .operations import OPERATIONS, run, setup_of, verdict, what_comes_of

pytestmark = pytest.mark.crash


def cases() -> list[Any]:
    """Every operation on both backends. In `make test` some points of each, but of few with OFD locks."""
    found = []
    for name, backend in itertools.product(OPERATIONS, BOTH):
        if backend == "generation" or not zlib.crc32(f"{name} {SEED}".encode()) % 4:
            found.append(pytest.param(name, 30, backend, id=f"{name}-a-part-{backend}"))
        found.append(pytest.param(name, 1, backend, id=f"{name}-all-{backend}", marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "every", "backend"), cases())
def test_operation(name: str, every: int, backend: str, record_property: Callable[[str, object], None]) -> None:
    """Before, after, or (a file being written) abandoned; sound; all locks free; the quota exact."""
    operation = OPERATIONS[name]
    setup = setup_of(operation, backend)
    after = what_comes_of(operation, setup)
    points = kill_everywhere(setup, run(operation), verdict(operation, after), every=every)
    record_property(KILL_POINTS, points)
