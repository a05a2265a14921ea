"""What the crash suites count, for the summary at the end of a run: how much was really tried, and the worst that was seen.

A test says `record_property(KILL_POINTS, 120)`; the session adds up what its tests said, also over the processes of
pytest-xdist, and prints one line for each figure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STATES = "states of the models"
MUTANTS = "mutants of the models caught"
PREFIXES = "prefixes replayed"
RECOVERY_PREFIXES = "prefixes of recoveries replayed"
KILL_POINTS = "kill points"
STOP_POINTS = "stop points"
KILLS = "kills survived in torture"
OPERATIONS = "operations in torture"
HISTORIES = "histories linearized"
HANDOVERS = "hand-overs of locks in order"
FAULTS = "system calls failed"
ALLOCATIONS = "allocations failed"
INTERRUPTIONS = "interruptions"
CYCLES = "attach-and-kill cycles"
DAMAGES = "damaged stores opened"
LONGEST_STALL_MS = "longest stall, ms"
P99_STALL_MS = "p99 of stalls, ms (of the worst run)"

#: Of these the largest counts; all others are added up.
MAXIMA = frozenset({LONGEST_STALL_MS, P99_STALL_MS})
ORDER = tuple(value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str))


def add_up(said: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """The figures of a session, in their order, from what each test said."""
    total: dict[str, float] = {}
    for name, value in said:
        if name in ORDER:
            total[name] = max(total.get(name, 0), value) if name in MAXIMA else total.get(name, 0) + value
    return {name: total[name] for name in ORDER if name in total}
