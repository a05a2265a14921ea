"""The programs of docs/examples about SQLite and staging run as they stand there."""

from __future__ import annotations

import pytest

from .conftest import Program


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sqlite_fixtures.py",), "9 checks passed in worker processes"),
        (("sqlite_shared_store.py",), "{'one': 12, 'two': 24}"),
        (("threaded_staging.py",), "900 rows in 18 parts were transformed in this process"),
        (("threaded_staging.py", "--processes"), "900 rows in 18 parts were transformed in other processes"),
    ],
    ids=["fixtures", "shared store", "threads", "processes"],
)
def test_example(program: Program, arguments: tuple[str, ...], said: str) -> None:
    done = program(f"docs/examples/{arguments[0]}", *arguments[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
