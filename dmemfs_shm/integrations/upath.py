"""Paths of universal_pathlib into a store: ``UPath("dshm://etl/in/a.csv")``.

Guarantees. `str` of a path is its URL, the store included, so that a path can be handed on as a text, to another process or to
a library that takes URLs. Renaming does not leave the store: OSError(EXDEV). Needs the extra ``fsspec``, and universal_pathlib.
"""

from __future__ import annotations

import errno
from typing import Any

from .fsspec import SharedMemoryFileSystem

try:
    from fsspec import register_implementation
    from upath import UPath
except ImportError as error:
    raise ImportError("UPath('dshm://...') needs universal_pathlib: pip install universal_pathlib") from error

# universal_pathlib asks the class how to read a URL, and does not look for one that fsspec has not loaded.
register_implementation("dshm", SharedMemoryFileSystem, clobber=True)


class SharedMemoryPath(UPath):
    """A path in a store; all that `upath.UPath` has."""

    __slots__ = ()

    def __str__(self) -> str:
        text = super().__str__()
        store = self.storage_options.get("store")
        return text.replace("dshm:///", f"dshm://{store}/", 1) if store and text.startswith("dshm:///") else text

    def rename(self, target: Any, **options: Any) -> Any:
        store = SharedMemoryFileSystem._get_kwargs_from_urls(str(target)).get("store", self.fs.store)
        if store != self.fs.store:
            raise OSError(errno.EXDEV, f"{target} is in another store", str(self))
        return super().rename(target, **options)
