"""The checker of histories: what can not have happened is refused, and the like of it that can is not."""

import itertools
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import model_files
from linearizability import Step, linearize
from model_files import ABANDONED, DIED, EXISTS, IS_OPEN, MISSING, TIMEOUT, Call, Event, File, State

OK = ("ok", None)


def call(client, begin, end, what, result=OK):
    return Call(client, begin, end, what, result)


def value(it):
    return ("ok", it)


def is_linearizable(calls, deaths=None):
    parts = model_files.histories(calls, deaths or {})
    return all(linearize(steps, State(), model_files.apply).order is not None for steps in parts)


def opened(client, begin, end, number, path, mode, result=OK):
    return call(client, begin, end, ("open", number, path, mode, False), result)


CREATED = call("A", 0, 1, ("write_bytes", "a", (1,)))


def update(second):
    """Two clients read a chunk and write another one in its place, one after the other; what the second one read."""
    return [
        CREATED,
        opened("B", 2, 3, 1, "a", "r+b"),
        call("B", 4, 5, ("read", 1), value((1,))),
        call("B", 6, 7, ("write", 1, 2, "first")),
        call("B", 8, 9, ("close", 1)),
        opened("C", 2, 11, 2, "a", "r+b"),
        call("C", 12, 13, ("read", 2), value((second,))),
        call("C", 14, 15, ("write", 2, 3, "first")),
        call("C", 16, 17, ("close", 2)),
        call("D", 18, 19, ("read_bytes", "a"), value((3,))),
    ]


def read_after(begin):
    """A file is written at 2 to 5; somebody reads the old content from *begin* on."""
    return [CREATED, call("B", 2, 5, ("write_bytes", "a", (2,))), call("C", begin, 9, ("read_bytes", "a"), value((1,)))]


def two_writers(released):
    """B has the file open for writing until *released*, C from 6 to 7."""
    return [
        CREATED,
        opened("B", 2, 3, 1, "a", "r+b"),
        opened("C", 4, 5, 2, "a", "r+b"),
        call("C", 6, 7, ("close", 2)),
        call("B", released, released + 5, ("close", 1)),
    ]


def reader_beside_writer(mode):
    return [
        CREATED,
        opened("B", 2, 3, 1, "a", mode),
        opened("C", 4, 5, 2, "a", "rb"),
        call("C", 6, 7, ("close", 2)),
        call("B", 8, 9, ("close", 1)),
    ]


def removed_and_seen(there):
    return [CREATED, call("B", 2, 3, ("remove", "a")), call("C", 4, 5, ("exists", "a"), value(there))]


def seen(chunks):
    return [
        CREATED,
        call("B", 2, 9, ("write_bytes", "a", (2, 3))),
        call("C", 3, 8, ("read_bytes", "a"), value(chunks)),
    ]


def renamed_by_two(second):
    return [
        CREATED,
        call("B", 2, 9, ("rename", "a", "b")),
        call("C", 2, 9, ("rename", "a", "c"), second),
    ]


def removed_by_two(second):
    return [CREATED, call("B", 2, 9, ("remove", "a")), call("C", 2, 9, ("remove", "a"), second)]


def created_by_two(second):
    return [
        opened("A", 0, 9, 1, "a", "xb"),
        opened("B", 0, 9, 2, "a", "xb", second),
        call("A", 10, 11, ("close", 1)),
    ]


def written_by_a_dead_one(*reads):
    """B dies while it writes; C reads from 20 on, one after the other."""
    calls = [CREATED, call("B", 2, 0, ("write_bytes", "a", (2,)), DIED)]
    return [*calls, *(call("C", 20 + n, 20 + n, ("read_bytes", "a"), value((it,))) for n, it in enumerate(reads))]


def dead_writer(begin, *, wrote=True):
    """B dies with the file open for writing, at 6 at the latest; C reads at *begin*."""
    change = [call("B", 4, 5, ("write", 1, 2, "end"))] if wrote else []
    result = ABANDONED if wrote else value((1,))
    return [CREATED, opened("B", 2, 3, 1, "a", "r+b"), *change, call("C", begin, begin, ("read_bytes", "a"), result)]


def listed(*names):
    return [
        CREATED,
        call("B", 2, 9, ("write_bytes", "b", ())),
        call("C", 3, 4, ("listdir", ""), value(names)),
        call("C", 10, 11, ("listdir", ""), value(("a", "b"))),
    ]


def refused(begin, what, result, *others):
    """A call is refused at *begin* beside a reader that has the file open from 2 to 9."""
    reader = [CREATED, opened("B", 2, 3, 1, "a", "rb"), call("B", 8, 9, ("close", 1))]
    return [*reader, call("C", begin, begin + 1, what, result), *others]


def copied(before_begins):
    """The copy has the old content, and somebody finds that it is not there at *before_begins*, the new one being written."""
    return [
        CREATED,
        call("B", 2, 20, ("copy", "a", "b")),
        call("C", 3, 4, ("write_bytes", "a", (2,))),
        call("C", before_begins, before_begins + 1, ("exists", "b"), value(False)),
        call("D", 30, 31, ("read_bytes", "b"), value((1,))),
    ]


def kept_open(begin):
    """A reader of a file that was replaced at 4 reads the old one; who opens it at *begin* also does."""
    return [
        CREATED,
        call("A", 0, 1, ("write_bytes", "b", (2,))),
        opened("B", 2, 3, 1, "a", "rb"),
        call("C", 4, 5, ("replace", "b", "a")),
        call("B", 6, 7, ("read", 1), value((1,))),
        opened("D", begin, 9, 2, "a", "rb"),
        call("D", 10, 11, ("read", 2), value((1,))),
    ]


def moved(found):
    """A directory is renamed; afterwards somebody looks at its file under the old name."""
    return [
        call("A", 0, 1, ("mkdir", "d")),
        call("A", 2, 3, ("write_bytes", "d/x", (1,))),
        call("B", 4, 5, ("rename", "d", "e")),
        call("C", 6, 7, ("read_bytes", "d/x"), found),
        call("C", 8, 9, ("read_bytes", "e/x"), value((1,))),
    ]


def measured(generation):
    return [
        CREATED,
        call("B", 2, 3, ("write_bytes", "a", ())),
        call("C", 4, 5, ("stat", "a"), value((False, 0, generation, False))),
    ]


DIES = {"B": 10}
CASES = {
    "lost update": (update(1), update(2), {}),
    "stale read": (read_after(6), read_after(4), {}),
    "double lock": (two_writers(10), two_writers(3), {}),
    "reader beside a writer": (reader_beside_writer("r+b"), reader_beside_writer("rb"), {}),
    "resurrected file": (removed_and_seen(True), removed_and_seen(False), {}),
    "torn content": (seen((2,)), seen((2, 3)), {}),
    "content from two writes": (seen((1, 3)), seen((1,)), {}),
    "content out of thin air": (seen((7,)), seen((1,)), {}),
    "bytes of no write": (seen("torn"), seen((2, 3)), {}),
    "two winners of a rename": (renamed_by_two(OK), renamed_by_two(MISSING), {}),
    "removed twice": (removed_by_two(OK), removed_by_two(MISSING), {}),
    "created twice": (created_by_two(OK), created_by_two(EXISTS), {}),
    "effect of a dead one comes and goes": (written_by_a_dead_one(2, 1), written_by_a_dead_one(2, 2), DIES),
    "effect of a dead one comes late": (written_by_a_dead_one(1, 2), written_by_a_dead_one(1, 1), DIES),
    "half written and not abandoned": (dead_writer(3), dead_writer(9), DIES),
    "a death changes what was not written": (dead_writer(12)[:-1] + dead_writer(12, wrote=False)[-1:], dead_writer(12), DIES),
    "directory without a file that stands": (listed("b"), listed("a", "b"), {}),
    "directory with a file that does not": (listed("a", "c"), listed("a"), {}),
    "removed while open": (refused(5, ("remove", "a"), OK), refused(5, ("remove", "a"), IS_OPEN), {}),
    "refused for nobody": (refused(10, ("remove", "a"), IS_OPEN), refused(8, ("remove", "a"), IS_OPEN), {}),
    "refused for a reader": (
        refused(5, ("open", 2, "a", "rb", False), TIMEOUT),
        refused(5, ("open", 2, "a", "rb", False), TIMEOUT, opened("D", 4, 10, 3, "a", "wb")),
        {},
    ),
    "refused for a dead one": (
        [*dead_writer(12), call("C", 13, 14, ("remove", "a"), IS_OPEN)],
        [*dead_writer(12), call("C", 9, 10, ("remove", "a"), IS_OPEN)],
        DIES,
    ),
    "copy of two moments": (copied(21), copied(5), {}),
    "old content under a replaced name": (kept_open(6), kept_open(4), {}),
    "file under a name that moved": (moved(value((1,))), moved(MISSING), {}),
    "generation that stays": (measured(1), measured(2), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_can_not_have_happened_is_refused(case):
    bad, _, deaths = CASES[case]
    assert not is_linearizable(bad, deaths)


@pytest.mark.parametrize("case", CASES)
def test_the_like_of_it_that_can_is_not(case):
    _, good, deaths = CASES[case]
    assert is_linearizable(good, deaths)


# ---- the search, compared with trying every order


def random_steps(rng, count):
    """Calls on two files at random times with random results; some are of the dead, some come in pairs."""
    steps = []
    for number in range(count):
        begin, length = rng.randrange(20), rng.randrange(12)
        client = rng.choice("AB")
        what, result = rng.choice(
            [
                (("write_bytes", "a", (rng.randrange(2),)), OK),
                (("read_bytes", "a"), rng.choice([value((0,)), value((1,)), MISSING])),
                (("rename", "a", "b"), rng.choice([OK, MISSING, EXISTS])),
                (("remove", "b"), rng.choice([OK, MISSING])),
                (("exists", "a"), value(rng.random() < 0.5)),
                (("copy_begun", "a", "b"), OK),
            ]
        )
        died = rng.random() < 0.2
        must, result, end = (False, DIED, float("inf")) if died else (True, result, begin + length)
        steps.append(Step(begin, end, Event(client, what, result), must))
        if what[0] == "copy_begun" and len(steps) < count:
            steps.append(Step(begin, end, Event(client, ("copy_done", "a", "b"), result), must, after=len(steps) - 1))
        elif died and number % 2:
            ends = (len(steps) - 1,)
            steps.append(Step(begin, begin + 5, Event(client, ("death",), OK), ends=ends))
    return steps


def is_order(steps, order, state):
    """Whether these steps can be done in this order, to the definition's letter."""
    for place, number in enumerate(order):
        step = steps[number]
        before = order[:place]
        if any(steps[later].end < step.call for later in order[place + 1 :]):
            return False
        if step.after is not None and step.after not in before:
            return False
        if any(number in steps[earlier].ends for earlier in before):
            return False
        state = model_files.apply(state, step.what)
        if state is None:
            return False
    return True


def every_order(steps):
    must = {number for number, step in enumerate(steps) if step.must}
    may = [number for number in range(len(steps)) if number not in must]
    for count in range(len(may) + 1):
        for some in itertools.combinations(may, count):
            yield from itertools.permutations([*must, *some])


def test_search_finds_what_trying_every_order_finds():
    rng = random.Random(1)
    found = 0
    for _ in range(400):
        steps = random_steps(rng, rng.randrange(2, 6))
        start = State((("a", File((0,), 1)),)) if rng.random() < 0.7 else State()
        verdict = linearize(steps, start, model_files.apply)
        assert (verdict.order is not None) == any(is_order(steps, order, start) for order in every_order(steps)), steps
        if verdict.order is not None:
            found += 1
            assert is_order(steps, tuple(verdict.order), start)
    assert 100 < found < 300
