"""Ten writers and a reader, as threads and as processes."""

from __future__ import annotations

import pytest

from .conftest import Program


@pytest.mark.parametrize(("arguments", "processes"), [((), 1), (("--processes",), 10)])
def test_ten_writers(program: Program, arguments: tuple[str, ...], processes: int) -> None:
    done = program("tools/staging_example.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"1,000 rows in 10 files from {processes} process(es)" in done.stdout
    assert "the values add up to 49500" in done.stdout
