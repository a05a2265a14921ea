"""What the calls of a filesystem do when they are made one at a time: the model that histories are compared with.

A file is its content (a sequence of numbered chunks of one size), its generation, and whether it is abandoned. Who has it
open is part of the state, too: opening and closing are calls like others, so a lock that two have, or that is refused for
no reason, is a result that no order explains.

What is promised to happen at one moment, and so is one step: every call but `copy`, which reads at one moment and creates
at a later one. (`listdir` promises less for directories of more than 512 entries; these are smaller.) Looking at the size
of a file that is open for writing shows what has been written so far; the other words of `stat` mean nothing then.

A death is a step of its own for each thread of the process, between the last thing that it is known to have done and the
moment at which its parent had it back. It frees what the thread had open, and leaves abandoned what it was changing; until
somebody comes upon the dead one's lock, `stat` does not know that yet.

A lock may be refused because of somebody who has the file open, and that is in the state. It may also be refused because of
a call that is under way: waiting, or having the file for the length of the call. Such a refusal is *excused*, and not judged.

Paths are relative to a directory that always stands and is called "".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from linearizability import Step

DIRECTORY = "directory"
UNKNOWN = None  # the content or generation of a file that a death has left anyhow

TIMEOUT = "MFSLockTimeoutError"
IS_OPEN = "MFSFileOpenError"
DEADLOCK = "MFSDeadlockError"
ABANDONED = "MFSAbandonedFileError"
MISSING = "FileNotFoundError"
EXISTS = "FileExistsError"
IS_DIRECTORY = "IsADirectoryError"
NOT_DIRECTORY = "NotADirectoryError"
REFUSALS = (TIMEOUT, IS_OPEN)
DIED = "died"
STRANGER = -1  # the handle of nobody

Content = tuple[int, ...] | None


class Call(NamedTuple):
    """A call as it was recorded. The result is ("ok", value), the name of an exception, or DIED (and then no end)."""

    client: Hashable  # the thread
    call: int
    end: int
    what: tuple[Any, ...]  # the name of the call and its arguments
    result: Any


class File(NamedTuple):
    """A file that stands."""

    content: Content = ()
    generation: int | None = 0
    abandoned: bool = False


class Handle(NamedTuple):
    """A file that a client has open. ``path`` is None when another file has taken the name since (for readers only)."""

    client: Hashable
    path: str | None
    writes: bool
    dirty: bool = False
    snapshot: Content = ()  # what a reader reads


class State(NamedTuple):
    """Everything, as sorted pairs: what stands at each path, what is open, and what each unfinished copy has read."""

    names: tuple[tuple[str, File | str], ...] = ()
    handles: tuple[tuple[int, Handle], ...] = ()
    read: tuple[tuple[Hashable, Content], ...] = ()


class Event(NamedTuple):
    """What a step of a history is."""

    client: Hashable
    what: tuple[Any, ...]
    result: Any
    excused: str | None = None  # the path that a call under way may have had open

    def __str__(self) -> str:
        name, *arguments = self.what
        excused = " (excused)" if self.excused is not None else ""
        return f"{self.client}: {name}({', '.join(map(repr, arguments))}) -> {self.result}{excused}"


Outcome = tuple[Any, State]


# ---- the calls, each as a function of the state: (result, the state afterwards)


def _ok(state: State, value: Any = None) -> Outcome:
    return ("ok", value), state


def _get(pairs: Iterable[tuple[Any, Any]], key: Any) -> Any:
    for name, value in pairs:
        if name == key:
            return value
    return None


def _put(pairs: Iterable[tuple[Any, Any]], key: Any, value: Any) -> Any:
    """The pairs with another value for a key; without it if the value is None."""
    changed = dict(pairs)
    if value is None:
        changed.pop(key, None)
    else:
        changed[key] = value
    return tuple(sorted(changed.items()))


def _set(state: State, path: str, value: File | str | None) -> State:
    return state._replace(names=_put(state.names, path, value))


def _hold(state: State, number: int, handle: Handle | None) -> State:
    return state._replace(handles=_put(state.handles, number, handle))


def _has_parent(state: State, path: str) -> bool:
    parent = path.rpartition("/")[0]
    return not parent or _get(state.names, parent) == DIRECTORY


def _is_held(state: State, path: str, *, writers_only: bool = False, by: Hashable = None) -> bool:
    return any(
        handle.path == path and (handle.writes or not writers_only) and by in (None, handle.client)
        for _, handle in state.handles
    )


def _beneath(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _is_held_beneath(state: State, directory: str) -> bool:
    return any(handle.path is not None and _beneath(handle.path, directory) for _, handle in state.handles)


def _more(generation: int | None) -> int | None:
    return None if generation is None else generation + 1


def _orphan(state: State, path: str) -> State:
    """The readers of the file at the path keep it; the name goes to another one."""
    handles = tuple((number, handle._replace(path=None) if handle.path == path else handle) for number, handle in state.handles)
    return state._replace(handles=handles)


def open_(state: State, client: Hashable, number: int, path: str, mode: str, allow_abandoned: bool) -> Outcome:
    file = _get(state.names, path)
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    if file is None:
        if mode in ("rb", "r+b") or not _has_parent(state, path):
            return MISSING, state
        return _ok(_hold(_set(state, path, File()), number, Handle(client, path, writes=True, dirty=True)))
    if mode == "xb":
        return EXISTS, state
    if _is_held(state, path, writers_only=mode == "rb"):
        return (DEADLOCK if _is_held(state, path, writers_only=mode == "rb", by=client) else TIMEOUT), state
    if mode == "wb":
        state = _set(state, path, file._replace(content=(), generation=_more(file.generation)))
        return _ok(_hold(state, number, Handle(client, path, writes=True, dirty=True)))
    if file.abandoned and not allow_abandoned:
        return ABANDONED, state
    if mode == "rb":
        return _ok(_hold(state, number, Handle(client, path, writes=False, snapshot=file.content)))
    return _ok(_hold(state, number, Handle(client, path, writes=True)))


def read(state: State, client: Hashable, number: int) -> Outcome:
    handle = _get(state.handles, number)
    return _ok(state, _get(state.names, handle.path).content if handle.writes else handle.snapshot)


def _change(state: State, number: int, content: Content) -> State:
    handle = _get(state.handles, number)
    file = _get(state.names, handle.path)
    state = _set(state, handle.path, file._replace(content=content, generation=_more(file.generation)))
    return state if handle.dirty else _hold(state, number, handle._replace(dirty=True))


def write(state: State, client: Hashable, number: int, chunk: int, place: str) -> Outcome:
    """Write one chunk, at the "end" or over the "first"."""
    content = _get(state.names, _get(state.handles, number).path).content
    if content is not None:
        content = (*content, chunk) if place == "end" else (chunk, *content[1:])
    return _ok(_change(state, number, content))


def truncate(state: State, client: Hashable, number: int, chunks: int) -> Outcome:
    content = _get(state.names, _get(state.handles, number).path).content
    if content is None:
        return _ok(_change(state, number, () if not chunks else None))
    return _ok(state if len(content) == chunks else _change(state, number, content[:chunks]))


def close(state: State, client: Hashable, number: int) -> Outcome:
    handle = _get(state.handles, number)
    if handle.writes:
        state = _set(state, handle.path, _get(state.names, handle.path)._replace(abandoned=False))
    return _ok(_hold(state, number, None))


def death(state: State, client: Hashable) -> Outcome:
    for number, handle in state.handles:
        if handle.client == client:
            if handle.dirty:
                state = _set(state, handle.path, _get(state.names, handle.path)._replace(abandoned=True))
            state = _hold(state, number, None)
    return _ok(state)


def read_bytes(state: State, client: Hashable, path: str) -> Outcome:
    """Also `view`, whose bytes are those of the moment at which it was made."""
    file = _get(state.names, path)
    if file is None:
        return MISSING, state
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    if _is_held(state, path, writers_only=True):
        return TIMEOUT, state
    if file.abandoned:
        return ABANDONED, state
    return _ok(state, file.content)


def write_bytes(state: State, client: Hashable, path: str, chunks: tuple[int, ...]) -> Outcome:
    file = _get(state.names, path)
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    if not _has_parent(state, path):
        return MISSING, state
    if file is None:
        return _ok(_set(state, path, File(chunks, 1 if chunks else 0)))
    if _is_held(state, path, writers_only=True):
        return TIMEOUT, state
    return _ok(_set(_orphan(state, path), path, File(chunks, _more(file.generation))))


def exists(state: State, client: Hashable, path: str) -> Outcome:
    return _ok(state, _get(state.names, path) is not None)


def get_size(state: State, client: Hashable, path: str) -> Outcome:
    """In chunks."""
    file = _get(state.names, path)
    if file is None:
        return MISSING, state
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    return _ok(state, UNKNOWN if file.content is None else len(file.content))


def stat(state: State, client: Hashable, path: str) -> Outcome:
    """(is a directory, chunks, generation, abandoned); None stands for anything."""
    file = _get(state.names, path)
    if file is None:
        return MISSING, state
    if file == DIRECTORY:
        return _ok(state, (True, 0, 0, False))
    if _is_held(state, path, writers_only=True):
        return _ok(state, (False, None, None, None))
    chunks = None if file.content is None else len(file.content)
    return _ok(state, (False, chunks, file.generation, None if file.abandoned else False))


def remove(state: State, client: Hashable, path: str) -> Outcome:
    file = _get(state.names, path)
    if file is None:
        return MISSING, state
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    if _is_held(state, path):
        return IS_OPEN, state
    return _ok(_set(state, path, None))


def rename(state: State, client: Hashable, source: str, target: str) -> Outcome:
    thing = _get(state.names, source)
    if thing is None:
        return MISSING, state
    if _get(state.names, target) is not None:
        return EXISTS, state
    if thing == DIRECTORY and _beneath(target, source):
        return "ValueError", state
    if not _has_parent(state, target):
        return MISSING, state
    if _is_held_beneath(state, source):
        return IS_OPEN, state
    names = ((target + path[len(source) :] if _beneath(path, source) else path, what) for path, what in state.names)
    return _ok(state._replace(names=tuple(sorted(names))))


def replace(state: State, client: Hashable, source: str, target: str) -> Outcome:
    file, old = _get(state.names, source), _get(state.names, target)
    if file is None:
        return MISSING, state
    if file == DIRECTORY:
        return IS_DIRECTORY, state
    if source == target:
        return _ok(state)
    if old == DIRECTORY:
        return IS_DIRECTORY, state
    if _is_held(state, source):
        return IS_OPEN, state
    if not _has_parent(state, target):
        return MISSING, state
    if old is not None:
        if _is_held(state, target, writers_only=True):
            return TIMEOUT, state
        file = file._replace(generation=_more(old.generation))
    return _ok(_set(_set(_orphan(state, target), source, None), target, file))


def mkdir(state: State, client: Hashable, path: str) -> Outcome:
    if _get(state.names, path) is not None:
        return EXISTS, state
    return _ok(_set(state, path, DIRECTORY))


def rmtree(state: State, client: Hashable, path: str) -> Outcome:
    thing = _get(state.names, path)
    if thing is None:
        return MISSING, state
    if thing != DIRECTORY:
        return NOT_DIRECTORY, state
    if _is_held_beneath(state, path):
        return IS_OPEN, state
    return _ok(state._replace(names=tuple(pair for pair in state.names if not _beneath(pair[0], path))))


def listdir(state: State, client: Hashable, path: str) -> Outcome:
    thing = _get(state.names, path) if path else DIRECTORY
    if thing is None:
        return MISSING, state
    if thing != DIRECTORY:
        return NOT_DIRECTORY, state
    return _ok(state, tuple(name.rpartition("/")[2] for name, _ in state.names if name.rpartition("/")[0] == path))


def copy_begun(state: State, client: Hashable, source: str, target: str) -> Outcome:
    """The first moment of a copy: the source is read. What fails, fails at one moment, here or at the second."""
    result, _ = read_bytes(state, client, source)
    if result[0] == "ok":
        return _ok(state._replace(read=_put(state.read, client, result[1])))
    return result, state


def copy_done(state: State, client: Hashable, source: str, target: str) -> Outcome:
    content = _get(state.read, client)
    state = state._replace(read=_put(state.read, client, None))
    if not _has_parent(state, target):
        return MISSING, state
    if _get(state.names, target) is not None:
        return EXISTS, state
    return _ok(_set(state, target, File(content, 1 if content else 0)))


def copy_failed(state: State, client: Hashable, source: str, target: str, error: str) -> Outcome:
    """A copy that ended with this error: what stands in the way of either moment."""
    result, _ = read_bytes(state, client, source)
    if error == MISSING and not _has_parent(state, target):
        return MISSING, state
    if error == EXISTS and _get(state.names, target) is not None:
        return EXISTS, state
    return result, state


CALLS: dict[str, Callable[..., Outcome]] = {
    function.__name__.rstrip("_"): function
    for function in (
        open_,
        read,
        write,
        truncate,
        close,
        death,
        read_bytes,
        write_bytes,
        exists,
        get_size,
        stat,
        remove,
        rename,
        replace,
        mkdir,
        rmtree,
        listdir,
        copy_begun,
        copy_done,
        copy_failed,
    )
}
CALLS["view"] = read_bytes
WITH_HANDLES = ("read", "write", "truncate", "close")


def apply(state: State, event: Event) -> State | None:
    """The state after an event, None if it could not have happened in this one."""
    name, *arguments = event.what
    if name in WITH_HANDLES and _get(state.handles, arguments[0]) is None:
        return None
    result, after = CALLS[name](state, event.client, *arguments)
    if event.result == DIED:
        return _half_done(state, after, name, arguments) if result[0] == "ok" else None
    if event.excused is not None:
        held = _hold(state, STRANGER, Handle(None, event.excused, writes=True))
        result, _ = CALLS[name](held, event.client, *arguments)
        return state if result == event.result else None
    return after if _agree(result, event.result) else None


def _agree(expected: Any, seen: Any) -> bool:
    """Whether a result is the expected one, in which None stands for anything."""
    if expected is None or expected == seen:
        return True
    if not isinstance(expected, tuple) or not isinstance(seen, tuple) or len(expected) != len(seen):
        return False
    return all(map(_agree, expected, seen))


def _half_done(before: State, after: State, name: str, arguments: list[Any]) -> State:
    """The state in which a death leaves what it interrupted: changing a file is nothing that happens at one moment."""
    number = arguments[0]
    if name == "open" and _get(before.names, arguments[1]) is not None and arguments[2] != "wb":
        return before  # the lock alone: nobody can tell
    if name in ("open", "write", "truncate"):
        path = _get(after.handles, number).path
        if _get(before.names, path) is not None:
            return _set(after, path, _get(after.names, path)._replace(content=UNKNOWN, generation=UNKNOWN))
    return after


# ---- from what was recorded to steps


def histories(calls: Sequence[Call], deaths: dict[Hashable, int]) -> list[list[Step]]:
    """The steps of a recorded history, as the histories of groups of paths that have nothing to do with each other.

    A history is linearizable if each of these is, since none has a part in the state of another. *deaths*: when the
    parent knew that a client was gone.
    """
    paths = _paths_of(calls)
    groups = _Groups()
    for each in paths:
        groups.join(*each)
    parts: dict[str, list[tuple[int, Call]]] = {}
    for number, each in enumerate(paths):
        parts.setdefault(groups.find(each[0]), []).append((number, calls[number]))
    refused = {number: _excuse(calls, deaths, number) for number, call in enumerate(calls) if call.result in REFUSALS}
    return [_steps(part, deaths, refused) for part in parts.values()]


class _Groups:
    """Paths that are linked by calls (union-find). A path is linked to the directory that it needs."""

    def __init__(self) -> None:
        self.leader: dict[str, str] = {}

    def find(self, path: str) -> str:
        while (above := self.leader.setdefault(path, path)) != path:
            path = above
        return path

    def join(self, *paths: str) -> None:
        for path in paths:
            self.leader[self.find(path)] = self.find(paths[0])


def _paths_of(calls: Sequence[Call]) -> list[list[str]]:
    """The paths that each call depends on or changes, by number of the call."""
    opened = {call.what[1]: call.what[2] for call in calls if call.what[0] == "open"}
    found = []
    for call in calls:
        name, *arguments = call.what
        if name in WITH_HANDLES:
            paths = [opened[arguments[0]]]
        elif name == "open":
            paths = [arguments[1]]
        else:
            paths = [argument for argument in arguments if isinstance(argument, str)]
        found.append(paths + [parent for path in paths if (parent := path.rpartition("/")[0])])
    everything = {path for paths in found for path in paths}
    for call, paths in zip(calls, found, strict=True):
        if call.what[0] == "listdir":
            paths += [path for path in everything if path.rpartition("/")[0] == call.what[1] and path != ""]
    return found


def _steps(part: list[tuple[int, Call]], deaths: dict[Hashable, int], refused: dict[int, str | None]) -> list[Step]:
    steps: list[Step] = []
    interrupted: dict[Hashable, list[int]] = {}
    last: dict[Hashable, int] = {}
    for number, call in part:
        died = call.result == DIED
        event = Event(call.client, call.what, call.result, refused.get(number))
        end = float("inf") if died else call.end
        last[call.client] = max(last.get(call.client, 0), call.call if died else call.end + 1)
        first = len(steps)
        if call.what[0] == "copy":
            steps += _copy(call, event, end, first)
        else:
            steps.append(Step(call.call, end, event, must=not died))
        if died:
            interrupted.setdefault(call.client, []).extend(range(first, len(steps)))
    for client, end in deaths.items():
        if client in last:
            event = Event(client, ("death",), ("ok", None))
            steps.append(Step(last[client], end, event, ends=tuple(interrupted.get(client, ()))))
    return steps


def _copy(call: Call, event: Event, end: float, number: int) -> list[Step]:
    source, target = call.what[1:]
    if isinstance(event.result, str) and event.result != DIED:
        return [Step(call.call, end, event._replace(what=("copy_failed", source, target, event.result)))]
    must = event.result != DIED
    begun, done = (event._replace(what=(name, source, target)) for name in ("copy_begun", "copy_done"))
    return [Step(call.call, end, begun, must=must), Step(call.call, end, done, must=must, after=number)]


#: Where calls have or wait for the lock of a file for their own length: place of the path among the call's words.
_PASSING = {"open": 2, "read_bytes": 1, "view": 1, "write_bytes": 1, "copy": 1, "replace": 2}


def _excuse(calls: Sequence[Call], deaths: dict[Hashable, int], number: int) -> str | None:
    """The path for which a call was refused, if another call was under way that may have had, or waited for, its lock."""
    refused = calls[number]
    name, *arguments = refused.what
    path = arguments[1] if name == "open" or (name == "replace" and refused.result == TIMEOUT) else arguments[0]
    for call in calls:
        end = deaths[call.client] if call.result == DIED else call.end
        meets = call.call <= refused.end and end >= refused.call and call.client != refused.client
        if meets and call.what[0] in _PASSING and _beneath(call.what[_PASSING[call.what[0]]], path):
            return path
    return None
