"""Imports that wait until something is first needed, because they take as long as importing all the rest.

Guarantees: no process forks in the middle of one. A child would keep a module that a thread it does not have is still
importing, and whoever imports it there would wait for ever.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from typing import Any

_importing = threading.RLock()
os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release)


@functools.cache
def load(name: str) -> Any:
    """The module of this full name. ImportError."""
    with _importing:
        return importlib.import_module(name)
