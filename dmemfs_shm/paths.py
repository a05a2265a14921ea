"""Paths, as D-MemFS reads them: relative ones start at the root, "" is "/", backslashes are slashes, ".." resolves."""

from __future__ import annotations

import errno
import os
import re

from .errors import MFSCorruptStoreError
from .store.layout import NAME_BYTES_MAX, PATH_BYTES_MAX
from .store.namespace import Path

#: Absolute, ASCII, nothing to resolve: what nearly every path is.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+", re.ASCII).fullmatch

AnyPath = str | os.PathLike[str]


def parse(path: AnyPath) -> Path:
    """The parts of a path. ValueError for an escape above the root or a NUL, OSError(ENAMETOOLONG), TypeError."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be str or os.PathLike[str], not {type(path).__name__}")
    if "\0" in text:
        raise ValueError(f"Path contains a NUL character: {text!r}")
    if len(text) <= NAME_BYTES_MAX and _PLAIN(text):
        return Path(text, text[1:].encode().split(b"/"))
    parts: list[bytes] = []
    for part in text.replace("\\", "/").split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f"Path traversal attempt detected: '{text}'")
            parts.pop()
        elif part and part != ".":
            name = part.encode("utf-8", "surrogatepass")
            if len(name) > NAME_BYTES_MAX:
                raise OSError(errno.ENAMETOOLONG, f"A name has more than {NAME_BYTES_MAX} bytes", text)
            parts.append(name)
    if sum(map(len, parts)) + len(parts) > PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"A path has more than {PATH_BYTES_MAX} bytes", text)
    return Path(text, parts)


def decode(name: bytes) -> str:
    """A name of the store as text. MFSCorruptStoreError if nobody can have given it."""
    if b"\0" not in name and b"/" not in name:
        try:
            return name.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            pass
    raise MFSCorruptStoreError("index", -1, "a name", repr(name))


def canonical(parts: list[bytes]) -> str:
    """The absolute path of some parts."""
    return "/" + "/".join(decode(part) for part in parts)
