"""Views: a file's bytes in the store's own memory, pinned for as long as anybody looks at them.

`View` is what `MemoryFileSystem.view` returns. It exports the buffer itself (a ctypes array over the arena's mapping), so
that every buffer derived from it, a memoryview, a slice of one, a numpy or Arrow array, keeps it alive; when the last is
gone, its lease is lost (see `lease`), and the next operation of the process gives the pin back. In a `with` it is a read-only
memoryview; what was derived from that may outlive the block.

(A memoryview itself would not do: its slices do not keep it alive, and leaving its `with` is an error while an array
looks at it. An own mapping for each view would, and costs its page faults again.)

Whoever takes the buffer of a `View` itself (``numpy.frombuffer(fs.view(path))``) gets it writable, because that is how
ctypes exports it and Python 3.11 has no other exporter; what he writes there changes a file behind everybody's back. The
memoryview of the `with`, and slices of either, are read-only.

Cost, measured: 16 us for the first view of some size (a ctypes type is made for it), 1 us from then on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store.lease import Lease
    from .store.segment import Segment


class View:
    """A read-only look at a file's bytes, in place of a memoryview of format "B", which it is inside a `with`."""

    _lease: Lease | None
    _lent: weakref.ref[memoryview] | None
    _released: bool

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` is told: it stands in for a memoryview."""
        return memoryview

    def _look(self) -> memoryview:
        if self._released:
            raise ValueError("operation forbidden on released view")
        size = ctypes.sizeof(self)  # type: ignore[arg-type]
        return memoryview(self).cast("B").toreadonly() if size else memoryview(b"")

    def __enter__(self) -> memoryview:
        view = self._look()
        self._lent = weakref.ref(view)
        return view

    def __exit__(self, *exc: object) -> None:
        view = self._lent() if self._lent is not None else None
        if view is not None:
            with contextlib.suppress(BufferError):  # something derived from it lives on, and so does the pin
                view.release()

    def release(self) -> None:
        """Stop looking. The pin goes at once unless something derived from the view lives, else with the last of it."""
        self._released = True
        if sys.getrefcount(self) <= _UNSEEN_REFERENCES:
            self._lease = None

    def __getattr__(self, name: str) -> Any:
        """Everything else that memoryviews have: readonly, nbytes, tobytes, cast, hex, ..."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._look(), name)

    def __len__(self) -> int:
        return len(self._look())

    def __getitem__(self, key: Any) -> Any:
        return self._look()[key]

    def __setitem__(self, key: Any, value: object) -> None:
        raise TypeError("cannot modify read-only memory")

    def __iter__(self) -> Iterator[int]:
        return iter(self._look())

    def __contains__(self, value: object) -> bool:
        return value in self._look()

    def __eq__(self, other: object) -> bool:
        return self._look() == (other._look() if isinstance(other, View) else other)

    def __hash__(self) -> int:
        return hash(self._look())

    def __bytes__(self) -> bytes:
        return bytes(self._look())

    def __repr__(self) -> str:
        return "<released view>" if self._released else f"<read-only view of {len(self)} bytes>"


@functools.lru_cache(maxsize=256)
def _exporter(size: int) -> Any:
    return type(
        "View", (View, ctypes.c_ubyte * size), {"__module__": __name__, "_lease": None, "_lent": None, "_released": False}
    )


def make_view(segment: Segment | None, offset: int, size: int, lease: Lease) -> View:
    """A view of *size* bytes at *offset* of a mapped segment; takes over the pin. An empty file has no segment, and no pin."""
    kind = _exporter(size)
    if segment is None:
        return kind()  # type: ignore[no-any-return]
    view = kind.from_buffer(segment.mm, offset)
    view._lease = lease
    return view  # type: ignore[no-any-return]


def _count_unseen_references() -> int:
    """How many references `release` sees to a view that only a caller's variable holds."""
    seen: list[int] = []

    class Probe:
        def release(self) -> None:
            seen.append(sys.getrefcount(self))

    probe = Probe()
    probe.release()
    return seen[0]


_UNSEEN_REFERENCES = _count_unseen_references()
