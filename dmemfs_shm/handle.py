"""Open files.

A `MemoryFileHandle` is a raw binary stream that holds its file's lock from `open` to `close`: shared for "rb", exclusive
for the other modes. While it does, nobody else changes the file, so it keeps the size and the place of the bytes to itself
and touches no lock, and few shared words, until it closes. A write stores the bytes first, then the size, each whole; only
growing beyond the blocks that the file has is a transaction.

Like D-MemFS's, a handle is for one thread at a time.
"""

from __future__ import annotations

import io
import operator
import time
import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from .errors import MFSCorruptStoreError, MFSForkedError, MFSStoreGoneError
from .store.layout import (
    LOW32,
    N_CAPACITY,
    N_CONTENT,
    N_MODIFIED,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SIZE,
    NODE_WORDS,
    REC_DIRTY,
    RUN_UNITS_SHIFT,
    STATE_READY,
    UNIT,
    W_FILE_CHARGE,
    W_STATE,
    WORD,
    WORD_MAX,
)
from .store.segment import LARGE
from .store.space import until

if TYPE_CHECKING:
    from .filesystem import MemoryFileSystem
    from .store.arenas import Piece
    from .store.attachment import Attachment
    from .store.lease import Lease
    from .store.segment import Segment

#: By mode: whether it reads, writes, and holds its lock with what says that the content changes from the start.
_ABLE = {
    "rb": (True, False, False),
    "wb": (False, True, True),
    "xb": (False, True, True),
    "ab": (False, True, False),
    "r+b": (True, True, False),
}
_ALL = -1
_NOTHING_LENT: list[weakref.ref[memoryview]] = []


class MemoryFileHandle(io.RawIOBase):
    """Binary file handle returned by `MemoryFileSystem.open`; use it in a `with`."""

    __slots__ = (
        "_at",
        "_base",
        "_capacity",
        "_closed",
        "_dirty",
        "_fs",
        "_held",
        "_lent",
        "_mm",
        "_mode",
        "_node",
        "_path",
        "_pieces",
        "_pos",
        "_readable",
        "_record",
        "_segment",
        "_size",
        "_space",
        "_store",
        "_w",
        "_writable",
    )

    _pieces: list[Piece] | None
    _lent: list[weakref.ref[memoryview]]

    def __init__(
        self,
        fs: MemoryFileSystem,
        store: Attachment,
        node: int,
        held: list[Lease],
        path: str,
        mode: str,
        space_timeout: float | None = 0.0,
    ) -> None:
        """Take over a lock record that is held, its lease in a list; or (none) read under a lock that somebody else looks
        after. Do not call: `MemoryFileSystem.open` does."""
        self._fs = fs
        self._store = store
        self._w = w = store.w
        self._node = node
        self._at = at = store.rw.nodes_at + node * NODE_WORDS
        self._held = held  # whoever takes the lease out ends the hold
        self._record = held[0].word if held else 0
        self._path = path
        self._mode = mode
        self._space = space_timeout
        self._pos = 0
        self._lent = _NOTHING_LENT  # until something is lent
        self._closed = True  # until all of this has worked: the record is still the caller's
        self._readable, self._writable, self._dirty = _ABLE[mode]
        self._size = size = w[at + N_SIZE]
        run, capacity = w[at + N_RUN], w[at + N_CAPACITY]
        known = store.arenas.located.get(run)
        self._pieces = None
        if known is not None and w[known[2]] == known[3] and size <= capacity == (run >> RUN_UNITS_SHIFT) * UNIT:
            # `_locate`, as it nearly always ends; a file in several pieces has more capacity than its first run.
            self._segment = segment = known[0]
            self._mm = segment.mm
            self._base = known[1]
            self._capacity = capacity
        elif run or capacity or size:
            self._locate()
        else:
            self._base = -1
            self._capacity = 0
        if mode == "ab":
            self._pos = size
        self._closed = False

    def _locate(self) -> None:
        """Learn where the bytes are: one piece, nearly always, or several. Mapping an arena may fail."""
        self._forget()
        w, at = self._w, self._at
        run, capacity = w[at + N_RUN], w[at + N_CAPACITY]
        blocks = (run >> RUN_UNITS_SHIFT) * UNIT
        if run:
            arenas = self._store.arenas
            if w[at + N_RUNS]:
                self._pieces = arenas.pieces(self._store.content.runs(w, at))
                blocks = self._pieces[-1][1]
            else:
                segment, base = arenas.locate(run)
                self._segment = segment
                self._mm = segment.mm
                self._base = base
        if not w[at + N_SIZE] <= capacity == blocks:
            raise MFSCorruptStoreError("index", (at + N_CAPACITY) * WORD, f"{blocks}, and a size of at most that", capacity)
        self._capacity = capacity

    def _forget(self) -> None:
        """No byte is within reach from here on, until `_locate` has worked: whoever needs one calls it.

        Comes before blocks change, for an exception does not tell whether they have changed.
        """
        self._capacity = 0
        self._pieces = None
        self._base = -1

    # ---- state

    @property
    def name(self) -> str:
        """The path that the file was opened with."""
        return self._path

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._closed

    def _check(self) -> None:
        """ValueError if closed, MFSForkedError in a forked child, MFSStoreGoneError after destroy."""
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        if self._store.forked:
            raise MFSForkedError(f"The handle of '{self._path}' belongs to the parent of this process.")
        if self._store.is_left or self._w[W_STATE] != STATE_READY:
            raise MFSStoreGoneError("The store was destroyed.")

    def _check_readable(self) -> None:
        self._check()
        if not self._readable:
            raise io.UnsupportedOperation(f"not readable in mode '{self._mode}'")

    def _check_writable(self) -> None:
        self._check()
        if not self._writable:
            raise io.UnsupportedOperation(f"not writable in mode '{self._mode}'")

    def readable(self) -> bool:
        self._check()
        return self._readable

    def writable(self) -> bool:
        self._check()
        return self._writable

    def seekable(self) -> bool:
        self._check()
        return True

    # ---- reading

    def read(self, size: int | None = -1) -> bytes:
        """Up to *size* bytes from the position on; all with -1 or None; b"" at or past the end.

        ValueError if closed, io.UnsupportedOperation in "wb", "ab", "xb".
        """
        if self._closed or not self._readable or self._store.forked or self._w[W_STATE] != STATE_READY:
            self._check_readable()
        pos, end = self._pos, self._size
        if size is not _ALL and size is not None:
            if size.__class__ is not int:
                size = operator.index(size)
            if 0 <= size < end - pos:
                end = pos + size
        if pos >= end:
            return b""
        base = self._base
        if base >= 0:
            self._pos = end
            return self._mm[base + pos : base + end]
        data = b"".join(bytes(part) for part in self._parts(pos, end))
        self._pos = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill *buffer* from the position on; returns how many bytes there were."""
        self._check_readable()
        with memoryview(buffer) as view, view.cast("B") as target:
            pos = self._pos
            end = min(self._size, pos + len(target))
            if pos >= end:
                return 0
            if self._base >= 0:
                target[: end - pos] = self._segment.view[self._base + pos : self._base + end]
            else:
                done = 0
                for part in self._parts(pos, end):
                    target[done : done + len(part)] = part
                    done += len(part)
            self._pos = end
            return end - pos

    def readline(self, size: int | None = -1) -> bytes:
        """One line, or up to *size* bytes of it."""
        self._check_readable()
        pos, end = self._pos, self._size
        if size is not None and 0 <= size < end - pos:
            end = pos + size
        if pos >= end:
            return b""
        if self._base < 0:
            return super().readline(-1 if size is None else size)
        found = self._mm.find(b"\n", self._base + pos, self._base + end)
        if found >= 0:
            end = found + 1 - self._base
        self._pos = end
        return self._mm[self._base + pos : self._base + end]

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """The lines from the position on; with a positive *hint*, until they have more bytes than that."""
        lines, total = [], 0
        while line := self.readline():
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    def __iter__(self) -> Self:
        self._check()
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def _places(self, pos: int, end: int) -> Iterable[tuple[Segment, int, int]]:
        """Where the bytes pos..end of the file are, piece by piece: segment, offset in it, how many."""
        if self._base < 0 and self._pieces is None:
            self._locate()
        if self._base >= 0:
            yield self._segment, self._base + pos, end - pos
            return
        for start, stop, segment, at in self._pieces or ():
            first, last = max(pos, start), min(end, stop)
            if first < last:
                yield segment, at + first - start, last - first

    def _parts(self, pos: int, end: int) -> Iterable[memoryview]:
        """The bytes pos..end of the file, piece by piece, in the store's memory."""
        for segment, at, count in self._places(pos, end):
            yield segment.view[at : at + count]

    # ---- writing

    def write(self, data: Any) -> int:
        """Store *data* (any C-contiguous buffer) at the position, in "ab" at the end; returns its size in bytes.

        A gap before the position is filled with zeros. MFSQuotaExceededError (after ``space_timeout`` of `open`) or
        MFSNoSpaceError before a byte changes;
        TypeError for str; io.UnsupportedOperation in "rb".
        """
        if self._closed or not self._writable or self._store.forked or self._w[W_STATE] != STATE_READY:
            self._check_writable()
        if type(data) is bytes:
            count = len(data)
        else:
            data = bytes_of(data)
            count = len(data)
        if self._mode == "ab":
            self._pos = self._size
        if not count:
            return 0
        w, at, pos, size = self._w, self._at, self._pos, self._size
        end = pos + count
        if pos != size and self._fs._sequential:
            raise io.UnsupportedOperation(
                "Random-access write on a sequential-only file: promotion is disabled (default_storage='sequential')."
            )
        if end > size and self._fs._write_guard is not None:
            self._fs._write_guard.check_before_write(end - size + (w[W_FILE_CHARGE] if pos == size else 0))
        if end > self._capacity or w[at + N_PIN] & LOW32:
            self._make_room(max(end, size), size)
        if not self._dirty:
            self._mark_dirty()
        if pos > size:
            self._fill_zeros(size, pos)
        base = self._base
        if base < 0:
            self._store_parts(pos, data)
        elif count < LARGE:
            self._mm[base + pos : base + end] = data
        else:
            self._segment.put(base + pos, data)
        if end > size:
            w[at + N_SIZE] = self._size = end
        w[at + N_CONTENT] = w[at + N_CONTENT] + 1 & WORD_MAX
        w[at + N_MODIFIED] = time.time_ns()
        self._pos = end
        return count

    def _make_room(self, size: int, keep: int) -> None:
        """Blocks of our own for *size* bytes, the first *keep* of which stay."""
        if self._base < 0 and not self._capacity and not self._w[self._at + N_PIN]:
            # The first blocks of a file, nearly always: there is nothing to forget, and nothing can be lent.
            run = self._store.fast.grow(self._at, size, self._fs._timeout)
            if run:
                known = self._store.arenas.located.get(run)
                if known is not None and self._w[known[2]] == known[3]:
                    self._segment = known[0]
                    self._mm = known[0].mm
                    self._base = known[1]
                    self._capacity = (run >> RUN_UNITS_SHIFT) * UNIT
                else:
                    self._locate()
                return
        self.check_lent()
        store, timeout, wait_until = self._store, self._fs._timeout, until(self._space) if self._space != 0.0 else 0.0
        store.work_off()  # a view that is gone may not have given its pin back yet
        self._forget()
        if self._w[self._at + N_PIN] & LOW32:
            store.placement.unshare(self._node, keep, size, timeout, wait_until)
        store.placement.grow(self._node, size, timeout, wait_until)
        self._locate()

    def _mark_dirty(self) -> None:
        """From here on our death leaves the file abandoned: a plain store into our own record, before the first change."""
        self._w[self._record] = self._w[self._record] | REC_DIRTY
        self._dirty = True

    def _store_parts(self, pos: int, data: Any) -> None:
        with memoryview(data) as source:
            done = 0
            for segment, at, count in self._places(pos, pos + len(source)):
                segment.put(at, source[done : done + count])
                done += count

    def _fill_zeros(self, pos: int, end: int) -> None:
        for part in self._parts(pos, end):
            for start in range(0, len(part), len(_ZEROS)):
                piece = part[start : start + len(_ZEROS)]
                piece[:] = _ZEROS[: len(piece)]

    def truncate(self, size: int | None = None) -> int:
        """Make the file *size* bytes long (the position by default), zero-filled where it grows; returns the size.

        Blocks that are not needed are given back at once. ValueError if negative.
        """
        self._check_writable()
        target = self._pos if size is None else operator.index(size)
        if target < 0:
            raise ValueError("truncate size must be >= 0")
        self._resize(target, self._size)
        self._pos = min(self._pos, target)
        return target

    def _resize(self, target: int, before: int) -> None:
        self.check_lent()
        if target > before and self._fs._write_guard is not None:
            self._fs._write_guard.check_before_write(target - before + self._w[W_FILE_CHARGE])
        pinned = self._w[self._at + N_PIN] & LOW32
        if target > before:
            if target > self._capacity or pinned:
                self._make_room(target, before)
            self._change(target, lambda: self._fill_zeros(before, target))
        elif target < before:
            if pinned:
                if not self._dirty:
                    self._mark_dirty()
                self._forget()
                try:
                    self._store.placement.unshare(self._node, target, target, self._fs._timeout)
                finally:
                    self._size = self._w[self._at + N_SIZE]
                self._locate()
            self._change(target, lambda: None)
        if not pinned:
            self._forget()
            self._store.placement.fit(self._node)
            self._locate()

    def _change(self, size: int, store_bytes: Any) -> None:
        """Change the size, after the bytes that become part of the file were stored."""
        if not self._dirty:
            self._mark_dirty()
        store_bytes()
        self._w[self._at + N_SIZE] = self._size = size
        self._stamp()

    def _preallocate(self, size: int) -> None:
        """Make the file at least *size* bytes long, zero-filled, and charge it."""
        before = self._size
        if size > before:
            if self._fs._write_guard is not None:
                self._fs._write_guard.check_before_write(size - before + self._w[W_FILE_CHARGE])
            modified = self._w[self._at + N_MODIFIED]
            if size > self._capacity or self._w[self._at + N_PIN] & LOW32:
                self._make_room(size, before)
            self._change(size, lambda: self._fill_zeros(before, size))
            self._w[self._at + N_MODIFIED] = modified

    # ---- lending

    def getbuffer(self, offset: int = 0, size: int | None = None) -> memoryview:
        """A writable memoryview of bytes offset..offset+size of the file (to its end by default), in the store's memory.

        To be filled in place (``recv_into``, ``numpy.frombuffer``) after `preallocate=` or `truncate` made room. What is stored
        there is part of a file that is being written: nobody reads it before the close, and a death leaves it abandoned.

        While it lives, or anything derived from it, BufferError is raised by `close`, `truncate`, and writes that need more
        room; a handle that is dropped stays open until then. In a forked child it must not be written to.

        ValueError for a range beyond the end; io.UnsupportedOperation in "rb" and "ab" and in sequential stores;
        MFSViewError if the file is in pieces and there is no run that it fits into; MFSQuotaExceededError if views look at
        the file and there is no room for a copy.
        """
        self._check_writable()
        if self._mode == "ab" or self._fs._sequential:
            raise io.UnsupportedOperation("filling in place is random access: not in 'ab', nor in a sequential-only store")
        offset = operator.index(offset)
        end = self._size if size is None else offset + operator.index(size)
        if not 0 <= offset <= end <= self._size:
            raise ValueError(f"bytes {offset} to {end} are not all in the file, which has {self._size}")
        if offset == end:
            return memoryview(bytearray())
        from .view import lend

        self._unite()
        if not self._dirty:
            self._mark_dirty()
        segment, base = self._store.arenas.locate(self._w[self._at + N_RUN])
        living = [each for each in self._lent if each() is not None]
        try:
            self._stamp()
            buffer, alive = lend(self, segment, base + offset, end - offset)
            self._lent = [*living, alive]
            return buffer
        except BaseException:
            self._lent = living  # nobody has got it, though a traceback may keep it
            raise

    def _unite(self) -> None:
        """Have the bytes in one run that no view looks at."""
        if self._w[self._at + N_PIN] & LOW32:
            self._make_room(self._size, self._size)
        if self._base < 0 and self._pieces is None:
            self._locate()
        if self._base < 0:
            self.check_lent()
            self._forget()
            self._store.placement.unite(self._node, self._size, self._fs._timeout)
            self._locate()

    def check_lent(self) -> None:
        """BufferError if bytes that `getbuffer` gave may still be written."""
        if self._lent and any(each() is not None for each in self._lent):
            raise BufferError("Existing exports of data: the file can be neither closed nor re-sized")

    def _stamp(self) -> None:
        """The content has changed."""
        w, at = self._w, self._at
        w[at + N_CONTENT] = w[at + N_CONTENT] + 1 & WORD_MAX
        w[at + N_MODIFIED] = time.time_ns()

    # ---- position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position and return it; past the end is allowed, but for SEEK_END with a positive offset (ValueError)."""
        self._check()
        offset = operator.index(offset)
        if whence == 0:
            if offset < 0:
                raise ValueError("seek offset must be >= 0 for SEEK_SET")
            pos = offset
        elif whence == 1:
            pos = self._pos + offset
        elif whence == 2:
            if offset > 0:
                raise ValueError("Seeking past end-of-file (SEEK_END with positive offset) is not supported in MFS.")
            pos = self._size + offset
        else:
            raise ValueError(f"Invalid whence value: {whence}. Must be 0, 1, or 2.")
        if pos < 0:
            raise ValueError(f"Resulting cursor position {pos} is negative.")
        self._pos = pos
        return pos

    def tell(self) -> int:
        self._check()
        return self._pos

    # ---- the end

    def flush(self) -> None:
        """Nothing to do: what was written is there. ValueError if closed."""
        if not self._store.forked:
            self._check()

    def close(self) -> None:
        """Give back the lock, and the blocks that the file does not need. Idempotent.

        BufferError while something that `getbuffer` gave lives.
        """
        if self._lent:
            self._check_paid_back()
        self._closed = True
        try:
            store = self._store
            if not self._held or store.forked or store.is_left or self._w[W_STATE] != STATE_READY:
                return
            self._fs._handles.pop(self._record, None)
            try:
                lease = self._held.pop()
            except IndexError:  # a signal handler has closed it
                return
            store.rw.give_back(lease, clears=True)
        except BaseException as error:
            self._close_again()
            if isinstance(error, MFSStoreGoneError) and store.state != STATE_READY:
                return  # it was destroyed just now, and nothing is left to give back
            raise

    def _check_paid_back(self) -> None:
        """Before a close: nobody writes any more what was lent, and it was written until now."""
        store = self._store
        if self._closed or store.forked or store.is_left or self._w[W_STATE] != STATE_READY:
            return
        self.check_lent()
        self._lent = _NOTHING_LENT
        self._w[self._at + N_MODIFIED] = time.time_ns()

    def abandon_lent(self) -> None:
        """The process ends: what was lent is not written any more."""
        self._lent = _NOTHING_LENT

    def _leave(self) -> None:
        """The filesystem object is being closed, and the handle is open."""
        self.close()

    def discard(self) -> None:
        """Drop what was written, of a file that was opened with ``atomic=True``; io.UnsupportedOperation of another one."""
        raise io.UnsupportedOperation("only what was opened with atomic=True can be discarded")

    def _close_again(self) -> None:
        """An exception ended close(): do at once what it has not done, since others may be waiting for the file."""
        store = self._store
        if store.forked or store.is_left or self._w[W_STATE] != STATE_READY:
            return
        if self._held:
            store.rw.give_back(self._held.pop(), clears=True)
        store.work_off()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        """A handle that was not closed: a ResourceWarning. Its lease is lost with it: the next operation closes it."""
        if getattr(self, "_closed", True) or not self._held:
            return
        self._closed = True
        store = self._store
        if store.forked or store.is_left:
            return
        self._fs._handles.pop(self._record, None)
        store.rw.mark_dropped(self._record)
        warnings.warn(
            "MFS MemoryFileHandle was not closed properly. Always use 'with mfs.open(...) as f:' to ensure cleanup.",
            ResourceWarning,
            stacklevel=1,
            source=self,
        )

    def __reduce__(self) -> Any:
        raise TypeError("an open file can't be pickled; pickle the filesystem and open the file there")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"mode={self._mode!r}"
        return f"<MemoryFileHandle {self._path!r} {state}>"


_ZEROS = bytes(1 << 20)


def bytes_of(data: Any) -> Any:
    """The data as something that can be stored: a flat view of bytes. TypeError, BufferError."""
    if isinstance(data, bytearray):
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError("a bytes-like object is required") from None
    if not view.c_contiguous:
        raise BufferError("a C-contiguous buffer is required")
    return view if view.ndim == 1 and view.format == "B" else view.cast("B") if view.nbytes else memoryview(b"")
