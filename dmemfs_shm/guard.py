"""Guards that compare what is asked for with the memory the machine has left: D-MemFS's memory_guard.

    none       no check (the engine itself still asks RAM and cgroup before it takes memory)
    init       once, when the filesystem object is made: is the quota more than there is?
    per_write  also before a file grows; the machine is asked at most every *interval* seconds

What is found is a ResourceWarning (action "warn") or a MemoryError ("raise").
"""

from __future__ import annotations

import threading
import time
import warnings

from .store.arenas import available_cgroup, available_ram


def available_bytes() -> int | None:
    """What RAM and the cgroup have left; None if it is not to be found out."""
    known = [size for size in (available_ram(), available_cgroup()) if size is not None]
    return min(known) if known else None


class MemoryGuard:
    """One filesystem object's guard. ValueError for an unknown mode or action."""

    def __init__(self, mode: str = "none", action: str = "warn", interval: float = 1.0) -> None:
        if action not in ("warn", "raise"):
            raise ValueError(f"Invalid memory_guard_action: {action!r}. Expected 'warn' or 'raise'.")
        if mode not in ("none", "init", "per_write"):
            raise ValueError(f"Invalid memory_guard: {mode!r}. Expected 'none', 'init', or 'per_write'.")
        self.mode, self.action, self.interval = mode, action, interval
        self._lock = threading.Lock()
        self._checked = 0.0
        self._available: int | None = None

    def arguments(self) -> tuple[str, str, float]:
        return self.mode, self.action, self.interval

    def check_init(self, max_quota: int) -> None:
        if self.mode == "none":
            return
        available = self._ask()
        if available is not None and max_quota > available:
            self._complain(
                f"max_quota ({max_quota:,} bytes) exceeds available physical RAM "
                f"({available:,} bytes). MemoryError may occur before quota limit is reached."
            )

    def check_before_write(self, size: int) -> None:
        """Before *size* bytes more are taken."""
        if self.mode != "per_write" or size <= 0:
            return
        with self._lock:
            age = time.monotonic() - self._checked
            available = self._available if age < self.interval else None
        if available is None:
            available, age = self._ask(), 0.0
        if available is not None and size > available:
            self._complain(
                f"Write of {size:,} bytes requested but only {available:,} bytes of "
                f"physical RAM available (checked {age:.1f}s ago)."
            )

    def _ask(self) -> int | None:
        available = available_bytes()
        with self._lock:
            self._available, self._checked = available, time.monotonic()
        return available

    def _complain(self, message: str) -> None:
        if self.action == "raise":
            raise MemoryError(message)
        warnings.warn(message, ResourceWarning, stacklevel=4)
