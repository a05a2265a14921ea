"""Dask: a store on each host of a cluster, for tasks that stage under ``dshm://STORE/path``.

    client.register_plugin(HostStore("staging", max_quota=8 << 30))
    client.submit(task, "dshm://staging/parts/0.csv")      # the file is on the host on which the task runs

Guarantees. From the first task on, every worker's host has the store: the first worker of a host makes it, the last one
removes it, in whatever way they end (`keeper` says how): closed, restarted, SIGKILLed one by one or all at once. A worker that
dies leaves the store to the others of its host, with what it had published there and without what it had half written; the
last one takes it along, and a successor begins with an empty one. The URL is the same on every host, and in a process pool
that a task makes.

What is staged is known to its host only. A task must expect that what an earlier one staged is not there (it ran elsewhere, or
all workers of the host died since) and stage it again; results that others wait for go to a URL that all hosts share.

Workers on one machine share one store. To have them act as on several hosts, set DMEMFS_SHM_HOST for them, to a text that may
be part of a store's name: ``dshm://staging`` is the store "staging-a" where it is "a".

Needs the extra ``dask``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..store import names
from .fsspec import name_here
from .keeper import HeldStore, hold

try:
    from distributed import Worker
    from distributed.diagnostics.plugin import WorkerPlugin
except ImportError as error:
    raise ImportError("A store on each Dask host needs distributed: pip install 'dmemfs-shm[dask]'") from error


class HostStore(WorkerPlugin):
    """Gives each host of a cluster the store *store*. Registered by ``client.register_plugin(HostStore(...))``.

    max_quota: bytes, on each host. options: others of `MemoryFileSystem.create`. Registering it again changes nothing.

    A worker without the store does not start: MFSParameterError if a store of that name stands with other parameters,
    MFSNoSpaceError if /dev/shm has no room for its index, and what else `hold` raises.
    """

    idempotent = True

    def __init__(self, store: str, max_quota: int, **options: Any) -> None:
        self.name = f"dshm-{names.check_name(store)}"
        self.store = store
        self.max_quota = max_quota
        self.options = options
        self._held: HeldStore | None = None

    async def setup(self, worker: Worker) -> None:
        # In a thread, for it may have to wait until a store that is being removed is gone.
        self._held = await asyncio.to_thread(hold, name_here(self.store), self.max_quota, **self.options)

    async def teardown(self, worker: Worker) -> None:
        held, self._held = self._held, None
        if held is not None:
            await asyncio.to_thread(held.release)
