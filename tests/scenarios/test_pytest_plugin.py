"""The fixture `mfs`, in a project that asks for it by D-MemFS's line or by ours, and in one that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Program

TESTS = """
from multiprocessing import get_context

import pytest


def test_write_read(mfs):
    mfs.mkdir("/tmp")
    with mfs.open("/tmp/hello.txt", "wb") as f:
        f.write(b"hello")
    with mfs.open("/tmp/hello.txt", "rb") as f:
        assert f.read() == b"hello"


@pytest.mark.parametrize("number", [1, 2])
def test_each_has_its_own(mfs, number):
    assert mfs.listdir("/") == []
    assert mfs.stats()["quota_bytes"] == 1 << 20
    mfs.mkdir("/d")


def test_it_is_of_the_package(mfs):
    assert type(mfs).__module__.split(".")[0] == "PACKAGE"
"""

OURS_TOO = """

def work(fs):
    with fs.open("/result", "wb") as file:
        file.write(b"done")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_with_a_worker(mfs, method):
    worker = get_context(method).Process(target=work, args=(mfs,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert mfs.read_bytes("/result") == b"done"


def test_what_is_left_open(mfs):
    with pytest.warns(ResourceWarning):
        handle = mfs.open("/f", "wb")
        mfs.close()


kept = []


def test_closed_by_the_test(mfs):
    kept.append(mfs)
    mfs.close()


def test_keeps_it(mfs):
    kept.append(mfs)


@pytest.mark.parametrize("number", [0, 1])
def test_closed_when_the_test_is_over(number):
    with pytest.raises(ValueError, match="closed"):
        kept[number].listdir("/")


def test_fails(mfs):
    mfs.mkdir("/d")
    assert mfs.listdir("/") == []
"""


def run(program: Program, folder: Path, tests: str, *plugins: str) -> tuple[dict[str, int], str]:
    """pytest in a project of its own: its outcomes, and what it printed."""
    (folder / "conftest.py").write_text(f"pytest_plugins = {list(plugins)!r}\n")
    (folder / "test_it.py").write_text(tests)
    arguments = ("-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null", "--rootdir", folder, folder)
    done = program("-m", "pytest", *arguments)
    summary = done.stdout.splitlines()[-1]
    return {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|errors?)", summary)}, done.stdout


def test_ours(program: Program, tmp_path: Path) -> None:
    outcomes, said = run(program, tmp_path, TESTS.replace("PACKAGE", "dmemfs_shm") + OURS_TOO, "dmemfs_shm._pytest_plugin")
    assert outcomes == {"passed": 11, "failed": 1}, said


@pytest.mark.parametrize("package", ["dmemfs_shm", "dmemfs"])
def test_the_same_tests(program: Program, tmp_path: Path, package: str) -> None:
    outcomes, said = run(program, tmp_path, TESTS.replace("PACKAGE", package), f"{package}._pytest_plugin")
    assert outcomes == {"passed": 4}, said


def test_only_who_asks_has_it(program: Program, tmp_path: Path) -> None:
    outcomes, said = run(program, tmp_path, TESTS)
    assert outcomes == {"errors": 4}, said
    assert "fixture 'mfs' not found" in said
