"""Every prefix of what an operation stores, and every prefix of its recovery: the survivors find it done or not begun.

An operation is done once, in the sight of a camera (`images`), which takes a picture before each store. Each picture is a
store whose user was killed there. It is revived, a survivor takes back what the dead one held, and then
  * `check` finds nothing, every file can be locked, and the quota is what the files cost;
  * what is there is what was before the operation, or what is after it, or what was before with the file that was being
    written marked abandoned; and never an earlier one of these than a shorter prefix had;
  * with all of the operation done, it is what is after it.

Survivors differ by turns: they were there before, or come and take over the dead one's slot; and in what they do first. The
worlds are what the store is like before (`WORLDS`). Operations come alone, in every pair and in sampled triples of the same
process, and in pairs of two processes of which one does all of its operation between two sections of the other.

Whoever waits for a lock that the operation gives back stands still while it is filmed, and is dead in the pictures, too:
nobody moves in a picture. What becomes of those who go on is shown by really killing (`test_operation_points`).

Recoveries: what the survivor of a prefix stores is pictured as well, up to the moment when everything is taken back, and of
each prefix of that there is another survivor, who must come to the same end as the one who was not disturbed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSAbandonedFileError, MFSFileOpenError, MFSLockTimeoutError
from dmemfs_shm.store.attachment import Attachment
from dmemfs_shm.store.layout import MUTEXES, NO_CLAIM, S_CLAIM
from dmemfs_shm.store.rwlock import _Request
from dmemfs_shm.store.space import _Wait

from ..figures import PREFIXES, RECOVERY_PREFIXES
from ..processes import DEADLINE_S
from .harness import SEED, short_slices
from .images import (
    CHECK,
    READ,
    REAP,
    UNLOCK,
    Camera,
    Known,
    Outcome,
    Picture,
    Place,
    Seat,
    apart,
    attach_apart,
    plain_memory,
    remember,
    sit,
    survive,
    take_back,
)
from .operations import OPERATIONS, Case, Operation, State, differences, in_pieces, is_cut_short, setup_of

pytestmark = pytest.mark.crash

#: Nobody who lives holds a mutex when a survivor comes: there is nothing to be patient for.
SLICE_S = 0.0002

#: What an operation may be answered in a world in which it can't be done. Then it must have changed nothing.
REFUSALS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    MFSLockTimeoutError,
    MFSFileOpenError,
    MFSAbandonedFileError,
)

FIRST_THERE = 0, 2, 1  # slots: the peer's, and those of two who never do anything

#: Those that are tried in pairs, and whose recoveries are cut short.
CORE = "create", "append", "write-bytes-over-small", "remove", "rename-file", "replace", "mkdir", "read", "write-over"
#: How survivors come in by turns: whether they were there before, and what they do first. Who takes over a dead one's slot
#: enters every mutex by that, so what is read first matters with those who were there.
WAYS = (True, READ), (False, REAP), (True, REAP), (True, READ), (False, CHECK), (True, UNLOCK)
_NOTHING = Operation(lambda fs, _: None)
SIMPLE = [
    name
    for name, operation in OPERATIONS.items()
    if operation._replace(do=_NOTHING.do, written=()) == _NOTHING and name not in ("close", "close-under-a-view")
]
#: Who must not believe what is stored and not committed: a reaper what a writer has, a reader what is there.
SHARP = [
    ("truncate-large", REAP),
    ("remove-large", READ),
    ("rename-file", READ),
    ("replace", READ),
    ("write-bytes-over-small", READ),
    ("copy-tree", READ),
]
#: A camera films its own process: what one does after a fork is for those tests that really fork.
FILMED = [name for name in OPERATIONS if name != "use-after-fork"]
HANDED_OVER = [name for name in OPERATIONS if re.search("hands?-over", name)]
#: Who waits there has to go on: only really killing shows what becomes of it.
ALIVE = frozenset(("space-free-for-others",))
LATE = 60
TRIPLES = 40
RECOVERY_PART = 3

World = Callable[[Case, contextlib.ExitStack], None]
Record = Callable[[str, object], None]


def always() -> bool:
    return True


def every(part: int) -> list[Any]:
    """The two variants of a test: one prefix in so many, and all of them."""
    return [pytest.param(part, id="a-part"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _pictured() -> Iterator[None]:
    with short_slices(SLICE_S), plain_memory():
        yield


# ---- what the store is like


def plain(case: Case, stack: contextlib.ExitStack) -> None:
    pass


def looked_at(case: Case, stack: contextlib.ExitStack) -> None:
    """The peer has views of two files."""
    case.look_at_small()
    case.look_at_large()


def being_read(case: Case, stack: contextlib.ExitStack) -> None:
    """The peer reads two files."""
    for path in "/d/small", "/large":
        stack.callback(case.fs.open(path).close)


def after_a_death(case: Case, stack: contextlib.ExitStack) -> None:
    """Somebody else has died, and nobody has taken back anything of his."""
    case.leave_a_dead_one()


def scattered(case: Case, stack: contextlib.ExitStack) -> None:
    """Free blocks and free nodes between used ones; a file in pieces."""
    fs = case.fs
    for number in range(12):
        fs.write_bytes(f"/empty/{number}", bytes(200 + number % 3 * 4000))
    for number in range(0, 12, 2):
        fs.remove(f"/empty/{number}")
    in_pieces(case)


WORLDS: dict[str, World] = {
    each.__name__.replace("_", "-"): each for each in (plain, looked_at, being_read, after_a_death, scattered)
}


# ---- what is done in it


class Film(NamedTuple):
    """Pictures of what was done to a store by those who are dead in them.

    living: the slots of those who did nothing, and the first of them is the peer, unless he waits for a lock. done: which
    picture shows each operation done. views: what the pin records of the first keep. known: what was there before.
    """

    place: Place
    living: tuple[int, ...]
    pictures: list[Picture]
    done: list[int]
    views: dict[int, bytes]
    known: Known = Known()

    def with_paths_of(self, states: Sequence[State]) -> Film:
        """The same, and survivors remember what was there at first, and know what may stand in the store."""
        seat = Seat(self.living[:-1], self.living[0], self.living[-1], READ)
        return self._replace(known=remember(self.place, self.pictures[0], seat, sorted(set().union(*states))))


@contextlib.contextmanager
def scene(first: Operation, backend: str, wanted: Callable[[], bool]) -> Iterator[tuple[Case, Camera, contextlib.ExitStack]]:
    """A store, a camera, the peer in slot 0, and in slots 1 and 2 two others who never do anything."""
    with setup_of(first, backend)() as case, contextlib.ExitStack() as stack:
        for slot in sorted(FIRST_THERE[1:]):
            other = attach_apart(case.name)
            stack.callback(other.close)
            assert other._store is not None and other._store.slot == slot
        camera = Camera(Place(case.fs), wanted)
        stack.enter_context(standing_still(case))
        camera.ask = case.answer
        yield case, camera, stack


@contextlib.contextmanager
def standing_still(case: Case) -> Iterator[None]:
    """A thread of the case that waits for a lock, or for space, does so until the block ends, whatever it is given. Who makes
    one wait goes on when it stands still."""
    go_on, still = threading.Event(), threading.Semaphore(0)
    sleeps: dict[Any, Any] = {each: each._sleep for each in (_Request, _Wait)}
    answer = case.answer
    filming = threading.current_thread()

    def stand_still(waiting: Any, semaphore: Any) -> bool:
        if threading.current_thread() is not filming and not go_on.is_set():
            still.release()
            assert go_on.wait(DEADLINE_S)
        return bool(sleeps[type(waiting)](waiting, semaphore))

    def answer_and_see(request: str) -> None:
        waiting = len(case.tasks)
        answer(request)
        for _ in range(len(case.tasks) - waiting):
            assert still.acquire(timeout=DEADLINE_S)

    for each in sleeps:
        each._sleep = stand_still
    case.answer = answer_and_see  # type: ignore[method-assign]
    try:
        yield
    finally:
        for each, sleep in sleeps.items():
            each._sleep = sleep
        go_on.set()


def enter(case: Case, stack: contextlib.ExitStack) -> MemoryFileSystem:
    """A participant of its own, who is not patient: whoever is in his way is this process, too."""
    actor = attach_apart(case.name, default_lock_timeout=0.05)
    stack.callback(actor.close)
    return actor


def shoot(steps: Sequence[Operation], world: World, backend: str = "generation", wanted: Callable[[], bool] = always) -> Film:
    """One participant does some operations, one after another."""
    with scene(steps[0], backend, wanted) as (case, camera, stack):
        actor = None if steps[0].joins else enter(case, stack)
        world(case, stack)
        held = steps[0].ready(actor, camera)  # type: ignore[arg-type]
        views = {case.pin_of(view): data for view, data in case.views}
        camera.arm(actor and actor._store)
        done = []
        for step in steps:
            with contextlib.suppress(*(REFUSALS if world is not plain or len(steps) > 1 else ())):
                if step.joins:
                    with apart():
                        stack.callback(step.do(None, case).close)
                else:
                    step.do(actor, camera, *([held] if held is not None else []))
            camera.point("end")
            done.append(len(camera.pictures) - 1)
        camera.disarm()
        return Film(camera.place, FIRST_THERE[bool(case.tasks) :], camera.pictures, done, {} if case.tasks else views)


def shoot_two(first: Operation, second: Operation, gap: int, wanted: Callable[[], bool]) -> Film:
    """Two participants: the second does all of its operation in a gap between two sections of the first."""
    with scene(first, "generation", wanted) as (case, camera, stack):
        one, two = enter(case, stack), enter(case, stack)
        one.check()  # it has every mutex open by now
        gaps = itertools.count()
        done = []

        def in_gap() -> None:
            if next(gaps) == gap:
                with contextlib.suppress(*REFUSALS):
                    second.do(two, camera)
                done.append(len(camera.pictures))

        camera.arm(one._store, two._store)
        at_each_gap(one._store, in_gap)
        with contextlib.suppress(*REFUSALS):
            first.do(one, camera)
        camera.disarm()
        return Film(camera.place, FIRST_THERE, camera.pictures, done, {})


def at_each_gap(store: Attachment | None, do: Callable[[], None]) -> None:
    """Call *do* whenever the participant is about to enter a section and is in none."""
    assert store is not None
    claims = range(at := store.layout.slot_at(store.slot) + S_CLAIM, at + MUTEXES)

    def try_token(real: Callable[[bool], bool], block: bool) -> bool:
        if all(store.w[claim] == NO_CLAIM for claim in claims):
            do()
        return real(block)

    for mutex in store.mutexes:
        mutex._try_token = functools.partial(try_token, mutex._try_token)


def shoot_recovery(film: Film, picture: Picture, seat: Seat, wanted: Callable[[], bool]) -> Film:
    """What a survivor of a picture does until everything is taken back."""
    camera = Camera(film.place, wanted)
    with film.place.revive(picture, seat.living):
        camera.arm(None)
        fs = sit(film.place, seat)
        try:
            take_back(fs, seat.first, film.known)
            camera.disarm()
        finally:
            fs.close()
    return film._replace(living=seat.living, pictures=camera.pictures)


# ---- what comes of it


def seat_of(number: int, living: tuple[int, ...]) -> Seat:
    """By turns a survivor is the last of the living, or somebody who comes and takes over the slot of a dead one."""
    was_there, first = WAYS[number % len(WAYS)]
    return Seat(living[:-1], living[0], living[-1], first) if was_there else Seat(living, living[0], None, first)


def outcome(film: Film, number: int, where: str) -> Outcome:
    """What a survivor makes of a picture; nothing is wrong in the end."""
    picture, seat = film.pictures[number], seat_of(number + len(where) + SEED, film.living)
    where = f"{where}: {picture.where}, picture {number} of {len(film.pictures)}, in {seat}, seed {SEED}"
    try:
        found = survive(film.place, picture, seat, film.views, film.known)
    except Exception as error:
        raise AssertionError(where) from error
    assert not found.findings, f"{where}: {found.findings}"
    return found


def replay(film: Film, written: Sequence[Collection[str]], part: int, where: str) -> int:
    """Let them be killed at each point of a film, or at one in *part*; how many there were."""
    states = [outcome(film, number, where).state for number in (0, *film.done)]
    film = film.with_paths_of(states)
    stage, chosen = 0, sample(len(film.pictures), part)
    for number in chosen:
        found = outcome(film, number, where).state
        step = sum(number > done for done in film.done)
        possible = [each for each in stages(found, states, written) if max(stage, 2 * step) <= each <= 2 * step + 2]
        assert possible, (
            f"{where}: {film.pictures[number].where}, seed {SEED}: neither before nor after, or older than what a shorter "
            f"prefix gave: {differences(states[step], found)}"
        )
        stage = possible[0]
    return len(chosen)


def stages(found: State, states: Sequence[State], written: Sequence[Collection[str]]) -> list[int]:
    """How far a series of operations may have come: 2n when n of them are done, 2n + 1 when the next one was cut short."""
    whole = [2 * number for number, state in enumerate(states) if found == state]
    return whole or [
        2 * number + 1
        for number, around in enumerate(itertools.pairwise(states))
        if any(is_cut_short(found, state, written[number]) for state in around)
    ]


def replay_recoveries(film: Film, part: int, where: str) -> tuple[int, int]:
    """Let the survivors of a film be killed as well: how many prefixes there were, and prefixes of recoveries.

    Either half of the latter, of a part of the former; or of each of the former one in RECOVERY_PART, for those of its
    neighbours are much the same.
    """
    chance = random.Random(f"{SEED} {where}")
    rate = RECOVERY_PART if part == 1 else 2
    film = film.with_paths_of([outcome(film, number, where).state for number in (0, *film.done)])
    chosen, count = sample(len(film.pictures), part), 0
    for number in chosen:
        expected = outcome(film, number, where).state
        seat = seat_of(chance.randrange(len(WAYS)), film.living)
        recovery = shoot_recovery(film, film.pictures[number], seat, lambda: chance.randrange(rate) == 0)
        for second in range(len(recovery.pictures)):
            again = f"{where}: {film.pictures[number].where}, then a survivor in {seat}"
            found = outcome(recovery, second, again).state
            assert found == expected, f"{again}, picture {second}, seed {SEED}: {differences(expected, found)}"
        count += len(recovery.pictures)
    return len(chosen), count


def sample(count: int, part: int) -> list[int]:
    """Numbers below *count*, or one in *part* of them, in their order, and at least two."""
    if part == 1:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), min(count, max(2, count // part))))


def some_of(names: Sequence[str], part: int, what: str) -> Sequence[str]:
    """All of them, or two if only a part is wanted."""
    return names if part == 1 else random.Random(f"{SEED} {what}").sample(names, 2)


# ---- one process


def worlds_for(name: str) -> list[str]:
    operation = OPERATIONS[name]
    if operation.bare or name == "trim":  # which has nothing to free while anything stands
        return ["plain"]
    busy = {"being-read"} if name in HANDED_OVER or name == "reap-a-claimer" else set()  # others have, or had, the file
    busy |= {"scattered"} if operation.prepare is not _NOTHING.prepare else set()
    return [world for world in WORLDS if world not in busy]


@pytest.mark.parametrize("part", every(10))
@pytest.mark.parametrize("name", [name for name in FILMED if name not in ALIVE])
def test_one_operation(name: str, part: int, record_property: Record) -> None:
    """Each operation in each world; in a part only in one, which the seed chooses."""
    worlds = worlds_for(name)
    if part > 1:
        worlds = [random.Random(f"{SEED} {name}").choice(worlds)]
    count = 0
    for world in worlds:
        film = shoot([OPERATIONS[name]], WORLDS[world])
        count += replay(film, [OPERATIONS[name].written], part, f"{name}, {world}")
    record_property(PREFIXES, count)


@pytest.mark.parametrize(("name", "first"), SHARP)
def test_every_late_prefix(name: str, first: int, record_property: Record) -> None:
    """Each of the last prefixes, where the commits are, with the survivor that it is hardest for."""
    film = shoot([OPERATIONS[name]], plain)
    film = film.with_paths_of([outcome(film, number, name).state for number in (0, *film.done)])
    *living, own = film.living
    late = film.pictures[-LATE:]
    for picture in late:
        found = survive(film.place, picture, Seat(tuple(living), living[0], own, first), film.views, film.known)
        assert not found.findings, f"{name}: {picture.where}: {found.findings}"
    record_property(PREFIXES, len(late))


@pytest.mark.parametrize("name", CORE)
def test_one_operation_on_the_other_backend(name: str, record_property: Record) -> None:
    film = shoot([OPERATIONS[name]], plain, "ofd")
    record_property(PREFIXES, replay(film, [OPERATIONS[name].written], 10, f"{name}, ofd"))


def replay_series(names: Sequence[str], part: int) -> int:
    steps = [OPERATIONS[name] for name in names]
    return replay(shoot(steps, plain), [step.written for step in steps], part, " and ".join(names))


@pytest.mark.parametrize("part", every(15))
@pytest.mark.parametrize("name", CORE)
def test_pairs(name: str, part: int, record_property: Record) -> None:
    """Each core operation, and each after it; in a part only some."""
    record_property(PREFIXES, sum(replay_series((name, other), part) for other in some_of(CORE, part, name)))


@pytest.mark.parametrize("part", every(40))
def test_triples(part: int, record_property: Record) -> None:
    """Some series of any three operations."""
    chance = random.Random(SEED)
    series = [chance.choices(SIMPLE, k=3) for _ in range(TRIPLES)]
    record_property(PREFIXES, sum(replay_series(names, part) for names in (series if part == 1 else series[:4])))


# ---- two processes


@functools.cache
def ends(*names: str) -> list[State]:
    """What is there before some operations, and after each."""
    film = shoot([_NOTHING, *(OPERATIONS[name] for name in names)], plain, wanted=lambda: False)
    return [outcome(film, number, f"the ends of {names}").state for number in film.done]


def replay_two(first: str, second: str, part: int) -> int:
    """One operation in each gap of another: what comes of them is what comes of one, or both, in either order."""
    written = {*OPERATIONS[first].written, *OPERATIONS[second].written}
    known = [*ends(first, second), *ends(second, first)]
    chance, count = random.Random(f"{SEED} {first} {second}"), 0
    for gap in itertools.count(1):
        film = shoot_two(OPERATIONS[first], OPERATIONS[second], gap, lambda: part == 1 or chance.randrange(part) == 0)
        if not film.done:
            return count
        film = film.with_paths_of(known)
        where = f"{second} in gap {gap} of {first}"
        for number in range(len(film.pictures)):
            found = outcome(film, number, where).state
            whole = number == len(film.pictures) - 1
            assert any(found == each or (not whole and is_cut_short(found, each, written)) for each in known), (
                f"{where}: {film.pictures[number].where}, seed {SEED}: {differences(known[0], found)}"
            )
        count += len(film.pictures)
    return count


@pytest.mark.parametrize("part", every(40))
@pytest.mark.parametrize("name", CORE)
def test_two_processes(name: str, part: int, record_property: Record) -> None:
    """Two processes are killed at the same moment, each in an operation or after it."""
    record_property(PREFIXES, sum(replay_two(name, other, part) for other in some_of(CORE, part, name)))


# ---- recoveries


@pytest.mark.parametrize("part", every(30))
@pytest.mark.parametrize("name", CORE)
def test_recoveries(name: str, part: int, record_property: Record) -> None:
    """Somebody is killed in an operation, and then somebody who takes back what he held."""
    prefixes, more = replay_recoveries(shoot([OPERATIONS[name]], plain), part, name)
    record_property(PREFIXES, prefixes)
    record_property(RECOVERY_PREFIXES, more)
