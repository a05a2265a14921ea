"""Views: a file's bytes in the store's own memory, pinned for as long as anybody looks at them.

`View` is what `MemoryFileSystem.view` returns. Below it stand, each keeping the next:

    the memoryview of a ``with``, a slice, an array, an Arrow buffer     what the user has, any number of them
    one memoryview, ``_bytes``                                           its end is the end of the pin (`Leases.follow`)
    a mapping of the arena that can only be read (`Segment.readonly`)    one a process

Slices of a memoryview keep what it was made of and not itself; so what is handed out is never a slice of ``_bytes`` but a
memoryview made of it, by way of a `pickle.PickleBuffer`. All of it is read-only, down to the page tables: who asks for a
buffer to write gets TypeError or BufferError, and native code that does not ask (torch) dies of it and damages nothing.

A `View` lends ``_bytes`` itself, so that ``numpy.frombuffer(fs.view(path))`` needs no ``with``. Python 3.12 has
``__buffer__`` for that; in 3.11 only types made in C can do it. `_lender` makes one with the very function by which a
PickleBuffer lends what it was made of.

`lend` is the same for a handle that is written through (`MemoryFileHandle.getbuffer`).

Cost, measured: a view 0.2 us beside its pin; the mapping 60 us an arena, and 60 us a MiB for its page faults, once.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .handle import MemoryFileHandle
    from .store.attachment import Attachment
    from .store.lease import Lease
    from .store.segment import Segment


def _lender() -> Any:
    """A type whose instances lend the buffer of the object in their second word after the head.

    For 3.11 alone, whose layouts do not change any more: a PickleBuffer is its head and a Py_buffer, and the second word of
    that is the object that it redirects to. Not for use by itself: it has no words, subclasses give it some.
    """
    import ctypes

    class Slot(ctypes.Structure):
        _fields_ = (("slot", ctypes.c_int), ("function", ctypes.c_void_p))

    class Spec(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("basic_size", ctypes.c_int),
            ("item_size", ctypes.c_int),
            ("flags", ctypes.c_uint),
            ("slots", ctypes.POINTER(Slot)),
        )

    get_slot, make_type = ctypes.pythonapi.PyType_GetSlot, ctypes.pythonapi.PyType_FromSpec
    get_slot.restype, get_slot.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_int]
    make_type.restype, make_type.argtypes = ctypes.py_object, [ctypes.POINTER(Spec)]
    getbuffer, releasebuffer, is_default_and_base = 1, 2, 1 << 18 | 1 << 10
    taken = [Slot(slot, get_slot(pickle.PickleBuffer, slot)) for slot in (getbuffer, releasebuffer)]
    slots = (Slot * 3)(*taken, Slot(0, None))
    name = f"{__name__}.Lender".encode()
    return make_type(ctypes.byref(Spec(name, object.__basicsize__, 0, is_default_and_base, slots)))


if sys.version_info >= (3, 12):

    class _Lender:
        """Lends the buffer of ``_bytes``."""

        __slots__ = ()

        def __buffer__(self, flags: int) -> memoryview:
            return self._look()  # type: ignore[attr-defined,no-any-return]

else:
    _Lender: Any = _lender()


class View(_Lender):  # type: ignore[misc,unused-ignore]
    """A read-only look at a file's bytes, in place of a memoryview of format "B", which it is inside a `with`."""

    __slots__ = ("_a_word", "_bytes", "_lent")  # laid out in the order of the alphabet: see `_lender`

    _bytes: memoryview
    _lent: list[memoryview]

    def __init__(self, looked_at: memoryview) -> None:
        self._bytes = looked_at
        self._lent = []

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` is told: it stands in for a memoryview."""
        return memoryview

    def _look(self) -> memoryview:
        try:
            return memoryview(pickle.PickleBuffer(self._bytes))
        except AttributeError:
            raise ValueError("operation forbidden on released view") from None

    def __enter__(self) -> memoryview:
        view = self._look()
        self._lent.append(view)
        return view

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Stop looking. The pin goes at once unless something derived from the view lives, else with the last of it."""
        try:  # noqa: SIM105  (twice as fast as `suppress`, as the one below: 0.4 us each)
            del self._bytes
        except AttributeError:
            pass
        lent = self._lent
        while lent:
            try:  # noqa: SIM105
                lent.pop().release()
            except BufferError:  # something derived from it lives on, and so does the pin
                pass

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
        return self._look() == other

    def __hash__(self) -> int:
        return hash(self._look())

    def __bytes__(self) -> bytes:
        return bytes(self._look())

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a view; pickle its bytes")

    def __repr__(self) -> str:
        return f"<read-only view of {len(self)} bytes>" if hasattr(self, "_bytes") else "<released view>"


def make_view(store: Attachment, pin: Lease, run: int, size: int) -> View:
    """A view of a pinned file, of *size* bytes in one run, 0 if it is empty; takes over the pin."""
    if not run:
        store.content.leases.free.append(pin)
        return View(memoryview(b""))
    return view_pinned(store, pin.word, run, size)


def view_pinned(store: Attachment, pin: int, run: int, size: int) -> View:
    """As `make_view`, of the word of a pin."""
    segment, offset = store.arenas.locate(run)
    looked_at = memoryview(segment.readonly())[offset : offset + size]
    store.content.leases.follow(pin, looked_at)
    return View(looked_at)


class Loan(weakref.ref[memoryview]):
    """Keeps a handle, and with it the lock on the file, for as long as bytes that it lent may be written."""

    __slots__ = ("handle",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    handle: MemoryFileHandle


_loans: set[Loan] = set()


def lend(handle: MemoryFileHandle, segment: Segment, offset: int, size: int) -> tuple[memoryview, weakref.ref[memoryview]]:
    """A writable memoryview, and a reference that is dead when nothing derived from it is left."""
    lent = memoryview(segment.mm)[offset : offset + size]
    loan = Loan(lent, _loans.discard)
    loan.handle = handle
    _loans.add(loan)
    return memoryview(pickle.PickleBuffer(lent)), weakref.ref(lent)
