"""A progress bar for copies that take long, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Any, Self

from .text import printable

#: Copies of less than this, in fewer files, are over before anybody could read a bar.
BYTES_LEAST = 64 << 20
FILES_LEAST = 200


class Progress:
    """A bar over bytes, or nothing if stderr is no terminal or there is little to do."""

    def __init__(self, what: str, total_bytes: int, files: int) -> None:
        self._what = what
        self._total = total_bytes
        self._files = files
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and (self._total >= BYTES_LEAST or self._files >= FILES_LEAST):
            from .terminal import progress_bar

            self._bar = progress_bar()
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def tell(self, path: str) -> None:
        """What is being copied."""
        if self._bar is not None:
            name = printable(path)
            self._bar.update(self._task, description=name if len(name) <= 24 else "..." + name[-21:])

    def advance(self, size_bytes: int) -> None:
        """So many bytes more are done."""
        if self._bar is not None:
            self._bar.advance(self._task, size_bytes)
