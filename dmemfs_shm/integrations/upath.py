"""Paths of universal_pathlib in a store: ``UPath("dshm://etl/in/a.csv")``; as text they are that URL again."""

from __future__ import annotations

import fsspec
from upath import UPath

fsspec.get_filesystem_class("dshm")  # loaded from here on: universal_pathlib asks those that are for what it must know


class SharedMemoryPath(UPath):  # type: ignore[misc,unused-ignore]
    """A path in a store, by entry point what `UPath` makes of ``dshm://STORE/path``."""

    __slots__ = ()

    def __str__(self) -> str:
        """With the store, which other filesystems' paths keep to themselves."""
        text = super().__str__()
        return f"dshm://{self.storage_options['store']}{text[len('dshm://') :]}" if text.startswith("dshm:///") else text
