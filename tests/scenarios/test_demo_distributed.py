"""The ETL job of `make demo-distributed`, on fewer rows: the same result, though workers die, and a picture of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Program


@pytest.mark.crash
@pytest.mark.slow
def test_two_hosts(program: Program, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "plot.svg"
    done = program("tools/demo_distributed.py", "--rows", 20_000, "--parts", 12, "--seed", 3, "--timeout", 90, "--plot", plot)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the result is equal" in done.stdout
    assert "The stores went with their workers." in done.stdout
    assert "20,000 rows in" in done.stdout
    assert len(re.findall(r"[ab][01]\s+after", done.stdout)) >= 5
    assert plot.read_bytes().startswith(b"<?xml")
    for host in "ab":
        peak = re.search(rf"host {host}: at most ([\d,]+) bytes", done.stdout)
        assert peak and int(peak[1].replace(",", "")) > 0
