"""Text over a binary handle: D-MemFS's `MFSTextHandle`.

It keeps no bytes back. After a call the binary handle stands right behind what was returned, so that both may be used in
turn; only a character too many (the one that showed that a carriage return stood alone) waits here for the next call.

Two ways lead to the same text. The slow one takes a byte at a time and is the definition, for every encoding, error
handler and file object. The fast one takes whole pieces, where a piece is known to mean the same: encodings in which a
line end is always its own byte, our own handles, which can go back, and bytes that decode without an error. Whatever it
meets besides, it goes back to where it began and leaves to the slow one.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, BinaryIO, Self

from .handle import MemoryFileHandle

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As `codecs.lookup` names them: without state or byte order mark, and "\n" and "\r" are nowhere part of something else.
_PLAIN = frozenset(("utf-8", "ascii", "iso8859-1"))


class MFSTextHandle:
    r"""Reads and writes text through *handle*, an open binary file; does not close it, in a `with` neither.

    encoding, errors: as for `str.encode`; looked up when they are first needed (LookupError). Sizes are characters, and
    line ends are neither translated nor added: "\n", "\r\n" and "\r" each end a line when one is read.
    For one thread at a time, as the handle.
    """

    def __init__(self, handle: MemoryFileHandle | BinaryIO, encoding: str = "utf-8", errors: str = "strict") -> None:
        self._handle = handle
        self._encoding = encoding
        self._errors = errors
        self._ahead = ""  # characters that were read and not yet returned
        self._plain: bool | None = None  # whether the fast way is open; None until somebody reads

    @property
    def encoding(self) -> str:
        return self._encoding

    @property
    def errors(self) -> str:
        return self._errors

    def write(self, text: str) -> int:
        """Store the text, encoded, at the handle's position; returns how many characters it has.

        UnicodeEncodeError, and what `MemoryFileHandle.write` raises.
        """
        self._handle.write(text.encode(self._encoding, self._errors))
        return len(text)

    def read(self, size: int = -1) -> str:
        """Up to *size* characters, all if it is negative; "" at the end. UnicodeDecodeError."""
        if size < 0:
            rest = self._handle.read()
            ahead, self._ahead = self._ahead, ""
            return ahead + rest.decode(self._encoding, self._errors)
        text, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(text) == size:
            return text
        more = self._read_pieces(size - len(text)) if self._is_plain() else None
        return text + (self._read_bytewise(size - len(text)) if more is None else more)

    def readline(self, limit: int = -1) -> str:
        r"""One line with its end, or up to *limit* characters of it (a "\r\n" is not cut in two); "" at the end."""
        if limit < 0 and self._is_plain():
            line = self._line_in_one_piece()
            if line is not None:
                return line
        return self._line_by_characters(limit)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing: the `with` of the binary handle closes it."""

    # ---- a byte at a time

    def _read_bytewise(self, size: int) -> str:
        """*size* characters, each byte asked for only when the ones before it do not make enough."""
        decoder = codecs.getincrementaldecoder(self._encoding)(errors=self._errors)
        found = ""
        while len(found) < size:
            byte = self._handle.read(1)
            found += decoder.decode(byte, final=not byte)
            if not byte:
                break
        self._ahead = found[size:]
        return found[:size]

    def _line_by_characters(self, limit: int) -> str:
        line = ""
        while limit < 0 or len(line) < limit:
            character = self.read(1)
            line += character
            if character == "\r":
                return line + self._line_feed()
            if character in ("", "\n"):
                break
        return line

    def _line_feed(self) -> str:
        r"""The "\n" that follows, if one does; another character that does waits."""
        following = self.read(1)
        if following == "\n":
            return following
        self._ahead = following + self._ahead
        return ""

    # ---- in pieces

    def _is_plain(self) -> bool:
        if self._plain is None:
            self._plain = isinstance(self._handle, MemoryFileHandle) and codecs.lookup(self._encoding).name in _PLAIN
        return self._plain

    def _read_pieces(self, size: int) -> str | None:
        """*size* characters; None, the handle where it was, if there is a byte that is not part of one."""
        handle = self._handle
        start = handle.tell()
        decoder = codecs.getincrementaldecoder(self._encoding)()
        found = ""
        try:
            while len(found) < size:
                piece = handle.read(size - len(found))  # no character is shorter than a byte: these are not too many
                found += decoder.decode(piece, final=not piece)
                if not piece:
                    break
        except UnicodeDecodeError:
            handle.seek(start)
            return None
        return found

    def _line_in_one_piece(self) -> str | None:
        """One line; None, everything as it was, if it holds a byte that is not part of a character."""
        ahead, handle = self._ahead, self._handle
        if "\n" in ahead or "\r" in ahead:
            return None
        start = handle.tell()
        line = handle.readline()
        end = line.find(b"\r") + 1
        alone = end > 0 and line[end:] != b"\n"
        if alone:
            line = line[:end]
        try:
            text = ahead + line.decode(self._encoding)
        except UnicodeDecodeError:
            handle.seek(start)
            return None
        self._ahead = ""
        if alone:
            handle.seek(start + end)
            self._line_feed()
        return text
