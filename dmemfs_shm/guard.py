"""Guards that compare what is asked for with the memory the machine has left: D-MemFS's memory_guard.

    none       no check (the engine itself still asks RAM and cgroup before it takes memory)
    init       once, when a store is created or attached: may it take more than there is?
    per_write  then too, and before each write, truncate, preallocate or copy that makes files larger; the machine is
               asked at most every *interval* seconds, and what it said is compared in between

What is found is a ResourceWarning (action "warn"), and the operation goes on, or a MemoryError ("raise"), and nothing was
changed. Memory is what RAM and the cgroups of this process have left, as `store.memory` reads it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings

from .store.memory import available_bytes

_PACKAGE = __name__.partition(".")[0]


class MemoryGuard:
    """One filesystem object's guard. ValueError for an unknown mode or action."""

    def __init__(self, mode: str = "none", action: str = "warn", interval: float = 1.0) -> None:
        if action not in ("warn", "raise"):
            raise ValueError(f"Invalid memory_guard_action: {action!r}. Expected 'warn' or 'raise'.")
        if mode not in ("none", "init", "per_write"):
            raise ValueError(f"Invalid memory_guard: {mode!r}. Expected 'none', 'init', or 'per_write'.")
        self.mode, self.action, self.interval = mode, action, interval
        self.watches_writes = mode == "per_write"
        self._lock = threading.Lock()
        self._checked = -math.inf
        self._available: int | None = None

    def arguments(self) -> tuple[str, str, float]:
        return self.mode, self.action, self.interval

    def check_init(self, max_quota: int) -> None:
        """Before a store with that quota is created."""
        self._check_at_first(max_quota, f"max_quota ({max_quota:,} bytes) exceeds available physical RAM")

    def check_attached(self, growth: int) -> None:
        """When a store was attached that may take *growth* bytes of memory more than it has."""
        self._check_at_first(growth, f"What the store may still take ({growth:,} bytes) exceeds available physical RAM")

    def _check_at_first(self, size: int, what: str) -> None:
        if self.mode == "none":
            return
        available, _ = self._ask(0.0)
        if available is not None and size > available:
            self._complain(f"{what} ({available:,} bytes). MemoryError may occur before quota limit is reached.")

    def check_before_write(self, size: int) -> None:
        """Before *size* bytes more are taken; nothing but in mode "per_write"."""
        if not self.watches_writes or size <= 0:
            return
        available, age = self._ask(self.interval)
        if available is not None and size > available:
            self._complain(
                f"Write of {size:,} bytes requested but only {available:,} bytes of "
                f"physical RAM available (checked {age:.1f}s ago)."
            )

    def _ask(self, interval: float) -> tuple[int | None, float]:
        """What is available, and how many seconds ago that was so: at most *interval*."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= interval:
                self._available, self._checked = available_bytes(), now
            return self._available, now - self._checked

    def _complain(self, message: str) -> None:
        if self.action == "raise":
            raise MemoryError(message)
        warnings.warn(message, ResourceWarning, stacklevel=_levels_to_the_caller())


def _levels_to_the_caller() -> int:
    """The stacklevel, for a warning from the function that asks, of the first line outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
