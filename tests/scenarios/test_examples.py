"""Every program in docs/examples runs, says what its text promises, and leaves nothing behind."""

from __future__ import annotations

import os
import re

import pytest

from .conftest import REPOSITORY, Program

EXAMPLES = REPOSITORY / "docs" / "examples"

#: What each says, among other things, as patterns.
SAYS: dict[str, list[str]] = {
    "archive_extraction.py": [
        r"^/in/data/08\.csv has 9 lines$",
        r"^4 new files, 12 in all$",
        r"^refused: MFS quota exceeded: requested 67108\d{3} bytes",
        r"^left of it: False$",
        r"^entry by entry, until it was refused: \['/quarantine/bomb', '/quarantine/etc', '/quarantine/etc/passwd'\]$",
        r"^one file$",
    ],
    "memory_guard_streaming.py": [
        r"^/first: 1,048,576 bytes$",
        r"^/second: 2,097,152 bytes$",
        r"^/too long: the quota ended it: MFS quota exceeded",
        r"^stored: first, second - 3,145,984 bytes of quota$",
        r"^64 TiB: max_quota \(70,368,744,177,664 bytes\) exceeds available physical RAM",
    ],
    "sqlite_fixtures.py": ["9 checks passed in worker processes"],
    "sqlite_shared_store.py": ["{'one': 12, 'two': 24}"],
    "threaded_staging.py": ["900 rows in 18 parts were transformed in this process"],
    "threaded_staging.py --processes": ["900 rows in 18 parts were transformed in other processes"],
}


def test_all_are_run() -> None:
    assert {name.split()[0] for name in SAYS} == {name for name in os.listdir(EXAMPLES) if name.endswith(".py")}


@pytest.mark.parametrize("name", SAYS)
def test_example(program: Program, name: str) -> None:
    file, *arguments = name.split()
    done = program(EXAMPLES / file, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for pattern in SAYS[name]:
        assert re.search(pattern, done.stdout, re.MULTILINE), f"{pattern} is not in:\n{done.stdout}"
