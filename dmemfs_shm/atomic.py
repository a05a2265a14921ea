"""Files that are written out of sight and published at once: what `MemoryFileSystem.open` returns with ``atomic=True``.

    with fs.open("/report", "wb", atomic=True) as f:     # published at the end of the block, dropped if it raises
        table.to_parquet(f)

Until it is published the file has no name: nobody finds, opens, lists or waits for it, and what stood at the path stands.
Publication is one step: everybody sees the old file or the new one. Whatever ends the handle otherwise (`discard`, an
exception, collection, the death of the process) drops what was written.

Wrappers close what they wrap, whether all went well or not, and do not say which. So inside of a `with` a close only ends
writing, and the block's own end decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from .handle import MemoryFileHandle
from .store.layout import STATE_READY, W_STATE
from .store.namespace import Path

if TYPE_CHECKING:
    from .filesystem import MemoryFileSystem
    from .store.attachment import Attachment
    from .store.lease import Lease


class AtomicFileHandle(MemoryFileHandle):
    """A handle in mode "wb" or "xb" whose file gets its name at the end."""

    __slots__ = ("_in_block", "_target", "_timeout")

    def __init__(
        self,
        fs: MemoryFileSystem,
        store: Attachment,
        node: int,
        held: list[Lease],
        target: Path,
        mode: str,
        timeout: float | None,
        space_timeout: float | None = 0.0,
    ) -> None:
        """Take over a lock record that holds a draft. Do not call: `MemoryFileSystem.open` does."""
        super().__init__(fs, store, node, held, target.text, mode, space_timeout)
        self._target = target
        self._timeout = timeout
        self._in_block = False

    def close(self) -> None:
        """Publish the file; in a `with`, only end writing, and the end of the block publishes. Idempotent.

        FileNotFoundError (its directory is gone), IsADirectoryError, FileExistsError ("xb", and somebody made it meanwhile),
        MFSLockTimeoutError (the file there is being written or claimed), MFSNodeLimitExceededError: what was written is
        dropped, and the old file stays.
        """
        self._closed = True
        if not self._in_block:
            self._end(publishes=True)

    def discard(self) -> None:
        """Drop what was written; the old file stays. Nothing happens if the file is published, or was dropped before."""
        self._closed = True
        self._end(publishes=False)

    def _leave(self) -> None:
        self.discard()

    def __enter__(self) -> Self:
        self._check()
        self._in_block = True
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        self._in_block = False
        if kind is None:
            self.close()
        else:
            self.discard()

    def _end(self, *, publishes: bool) -> None:
        """Whoever takes the lease out ends the hold; a record that is not free when it is given back drops the draft."""
        try:
            store = self._store
            if not self._held or store.forked or store.is_left or self._w[W_STATE] != STATE_READY:
                return
            self._fs._handles.pop(self._record, None)
            try:
                lease = self._held.pop()
            except IndexError:  # a signal handler has ended it
                return
            try:
                if publishes:
                    store.placement.fit(self._node)
                    exclusive = self._mode == "xb"
                    store.names.publish(self._target, lease.word, self._timeout, exclusive=exclusive)
            finally:
                store.rw.give_back(lease)
        except BaseException:
            self._drop_again()
            raise

    def _drop_again(self) -> None:
        """An exception ended `_end`: drop at once what it has not ended, since it is charged."""
        store = self._store
        if store.forked or store.is_left or self._w[W_STATE] != STATE_READY:
            return
        if self._held:
            store.rw.give_back(self._held.pop())
        store.work_off()
