"""Patterns of paths, as D-MemFS's glob reads them: ``*``, ``?`` and ``[...]`` within a name, ``**`` any number of directories.

A `Pattern` finds the entries that match in the store, and says of the names that lead to one whether they do.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .paths import AnyPath, canonical, decode, parse
from .store.layout import KIND_DIR
from .store.listing import Entry

if TYPE_CHECKING:
    from .store.attachment import Attachment

_MAGIC = re.compile(r"[*?[]").search
_Matcher = Callable[[str], object]


def pattern(text: AnyPath) -> Pattern:
    """The pattern that a text is."""
    return _known(os.fspath(text))


class Pattern:
    """A pattern. is_path: it has nothing that makes it a pattern, and means the one entry with that path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_path = not _MAGIC(self.text)
        parts = [part for part in self.text.replace("\\", "/").split("/") if part]
        self._matchers: list[_Matcher | None] = [
            None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts
        ]

    def matches(self, names: list[str]) -> bool:
        """Whether the names that lead from the root to an entry are those of the path, or match."""
        if self.is_path:
            return [decode(part) for part in parse(self.text).parts] == names
        return self._matches(names, 0)

    def _matches(self, names: list[str], index: int) -> bool:
        matchers = self._matchers
        for at, matcher in enumerate(matchers[index:]):
            if matcher is None:
                if index + at + 1 == len(matchers):
                    return len(names) > at
                return any(self._matches(names[start:], index + at + 1) for start in range(at, len(names)))
            if at >= len(names) or not matcher(names[at]):
                return False
        return len(names) == len(matchers) - index

    def entries(self, store: Attachment, timeout: float | None) -> Iterator[tuple[str, Entry]]:
        """The entry that has the path, or all that match, as `walk`."""
        if not self.is_path:
            yield from self.walk(store, timeout)
            return
        path = parse(self.text)
        while (found := store.names.find(path, timeout))[0]:
            kind = store.names.kind_of(found)
            if kind:
                yield canonical(path.parts), Entry(path.parts[-1] if path.parts else b"", kind, *found[:2])
                return

    def walk(self, store: Attachment, timeout: float | None) -> Iterator[tuple[str, Entry]]:
        """Every entry that matches, with its path, in no order; if there is a ``**`` some of them twice."""
        matchers = self._matchers
        if not matchers:
            return
        root = store.names.find(parse("/"), timeout)
        todo = [("", root[0], root[1], 0)]
        while todo:
            path, node, generation, index = todo.pop()
            matcher, last = matchers[index], index + 1 == len(matchers)
            if matcher is None and not last:
                todo.append((path, node, generation, index + 1))
            for entry in store.listing.entries_of(node, generation, timeout):
                name = decode(entry.name)
                if matcher is not None and not matcher(name):
                    continue
                below = f"{path}/{name}"
                if last:
                    yield below, entry
                if entry.kind == KIND_DIR and (matcher is None or not last):
                    todo.append((below, entry.node, entry.generation, index if matcher is None else index + 1))


_known = functools.lru_cache(maxsize=256)(Pattern)
