"""Small operations, each on a file of 4 KiB, and the names of many.

Two things to know when reading them. It is the steady state of one process: caches of paths are warm, and memory that a
removed file gave back is used again. And LMDB and D-MemFS promise other things than a filesystem of many processes does: an
LMDB value is put or got in a transaction of its own, without sync, in a writable map; it has no open and no stat.
"""

import functools
from typing import Any, NamedTuple

from .backends import DMEMFS, MARK, Backend
from .timing import PAGE, Check, Plan, Sample, checks_of, compared, each, in_rounds, timed


class Workload(NamedTuple):
    """What is timed: *operation* on each of *files* files, or on their folder. before, after: on each file, untimed."""

    name: str
    what: str
    files: int = 50
    repeat: int = 1
    on_folder: bool = False
    before: str = ""
    after: str = ""
    does: str = ""  # the operation, if it is not called as the workload is

    @property
    def operation(self) -> str:
        return self.does or self.name


WORKLOADS = [
    Workload("create", "create, write 4 KiB, close", after="remove"),
    Workload("overwrite", 'open "wb", write 4 KiB, close'),
    Workload("read", "open, read 4 KiB, close"),
    Workload("read-changed", "the same, of a file that was just written over", before="overwrite", does="read"),
    Workload("write_bytes", "overwrite in one call; where there is none, open, write, close"),
    Workload("read_bytes", "read in one call; where there is none, open, read, close"),
    Workload("stat", "size and times", repeat=10),
    Workload("exists", "of a file that does", repeat=10),
    Workload("remove", "a file of 4 KiB", before="create"),
    Workload("listdir", "the names of 1,000 files", files=1000, on_folder=True),
]

#: Our time over theirs: at most.
MARKS = {
    "create": {MARK: 0.7},
    "overwrite": {MARK: 0.45, DMEMFS: 0.7},
    "read": {MARK: 0.55, DMEMFS: 0.75},
    "write_bytes": {MARK: 0.45},
    "read_bytes": {MARK: 0.3},
    "stat": {MARK: 0.5},
    "exists": {MARK: 0.5},
    "remove": {MARK: 0.6},
}


def same_work(backend: Backend, path: Any) -> None:
    """Whether a backend does what is to be compared at all: a mistake here makes it look fast."""
    do = backend.operations
    do["create"](path)
    assert bytes(do["read"](path)) == bytes(do["read_bytes"](path)) == PAGE  # type: ignore[call-overload]
    assert "exists" not in do or do["exists"](path)
    assert "listdir" not in do or len(do["listdir"](backend.folder)) == 1  # type: ignore[arg-type]
    do["remove"](path)
    assert "exists" not in do or not do["exists"](path)


def small(workload: Workload, among: list[Backend], plan: Plan) -> dict[str, Any]:
    """A workload on many small files."""
    able = [backend for backend in among if workload.operation in backend.operations]
    paths = {backend.name: [backend.path(number) for number in range(workload.files)] for backend in able}
    stand = workload.before != "create" and not workload.after

    def batch(backend: Backend) -> Sample:
        do, mine = backend.operations, paths[backend.name]
        if workload.before:
            each(do[workload.before], mine)
        items = [backend.folder] if workload.on_folder else mine
        sample = timed(do[workload.operation], items * workload.repeat)
        if workload.after:
            each(do[workload.after], mine)
        return sample

    for backend in able:
        same_work(backend, paths[backend.name][0])
        if stand:
            each(backend.operations["create"], paths[backend.name])
    samples = in_rounds({backend.name: functools.partial(batch, backend) for backend in able}, plan.seconds)
    for backend in able:
        if stand:
            each(backend.operations["remove"], paths[backend.name])
    return compared(workload.name, workload.what, samples, workload.repeat * (1 if workload.on_folder else workload.files))


def checks(results: list[dict[str, Any]]) -> list[Check]:
    return [check for result in results for check in checks_of(result, MARKS.get(result["workload"], {}))]
