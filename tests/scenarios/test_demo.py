"""The ETL job of `make demo`, on fewer rows: the same result however it is run, or one clear line."""

from __future__ import annotations

import re

import pytest

from .conftest import Program

SMALL = ("tools/demo.py", "--rows", 30_000, "--parts", 40, "--workers", 3, "--timeout", 60)


def number_before(words: str, output: str) -> int:
    """The number that stands in front of these words."""
    found = re.search(rf"([\d,]+) {words}", output)
    assert found, output
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method(program: Program, method: str) -> None:
    done = program(*SMALL, "--start-method", method)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the result is equal" in done.stdout
    assert "The store is sound." in done.stdout
    assert number_before("rows in", done.stdout) == 30_000


@pytest.mark.crash
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_killed_again_and_again(program: Program, method: str) -> None:
    done = program(*SMALL, "--start-method", method, "--kill", "--seed", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the result is equal" in done.stdout
    assert "The store is sound." in done.stdout
    assert number_before("killed and replaced", done.stdout) >= 10


def test_quota_just_above_the_need(program: Program) -> None:
    roomy = program(*SMALL)
    need = number_before("of [0-9,]+ bytes of quota used", roomy.stdout)
    done = program(*SMALL, "--quota", need * 102 // 100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the result is equal" in done.stdout


def test_quota_too_small_for_the_parts(program: Program) -> None:
    done = program(*SMALL, "--quota", "4MiB")
    assert done.returncode == 1
    assert re.fullmatch(r"demo: MFS quota exceeded: requested \d+ bytes, only \d+ bytes available\.\n", done.stderr)
    assert "The store is sound." in done.stdout


def test_quota_too_small_for_the_results(program: Program) -> None:
    # What is staged fits to the byte, and then the first partial result does not: its part is there until it stands.
    quota = number_before("of [0-9,]+ bytes of quota used", program(*SMALL).stdout) - 50_000
    refused = re.search(r"requested (\d+) bytes, only (\d+) bytes available", program(*SMALL, "--quota", quota).stderr)
    assert refused
    done = program(*SMALL, "--quota", quota + int(refused[1]) - int(refused[2]))
    assert done.returncode == 1
    assert done.stderr == "demo: quota exceeded: the partial results need more than is left of it\n"
    assert "The store is sound." in done.stdout
