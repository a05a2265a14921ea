"""The fixture `mfs`, in a project that asks for it by D-MemFS's line or by ours, and in one that does not."""

from __future__ import annotations

import os
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


# ---- one filesystem for the whole run

PREPARED = """
import os
import signal

import pytest

pytest_plugins = ["dmemfs_shm._pytest_plugin"]


@pytest.fixture(scope="session")
def mfs_prepare():
    def prepare(fs):
        HOW
        assert fs.listdir("/") == []
        fs.write_bytes("/table", b"prepared")
        with open(os.environ["PREPARATIONS"], "a") as file:
            file.write("once\\n")
    return prepare
"""

SHARED = """
import os

import pytest


@pytest.mark.parametrize("number", range(12))
def test_it_is_there(mfs_shared, number):
    assert mfs_shared.read_bytes("/table") == b"prepared"
    mfs_shared.write_bytes(f"/by-{os.getpid()}", b"")
    with open(os.environ["NAMES"], "a") as file:
        file.write(mfs_shared.name + "\\n")
"""


def run_shared(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, *options: str
) -> tuple[dict[str, int], str, int, set[str]]:
    """Outcomes, output, how often it was prepared, and the names of the stores that the tests had."""
    folder.mkdir(exist_ok=True)
    (folder / "conftest.py").write_text(PREPARED.replace("HOW", how))
    (folder / "test_it.py").write_text(SHARED)
    files = [folder / "preparations", folder / "names"]
    for file in files:
        file.write_text("")
    monkeypatch.setenv("PREPARATIONS", str(files[0]))
    monkeypatch.setenv("NAMES", str(files[1]))
    arguments = ("-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", folder, *options, folder)
    done = program("-m", "pytest", *arguments)
    outcomes = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout.splitlines()[-1])}
    names = set(files[1].read_text().split())
    for name in names:
        assert not [entry for entry in os.listdir("/dev/shm") if name in entry], "it goes with the run"
    return outcomes, done.stdout, files[0].read_text().count("once"), names


@pytest.mark.parametrize("options", [(), ("-n", "3")], ids=["alone", "xdist"])
def test_prepared_once_for_all(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    outcomes, said, times, names = run_shared(program, tmp_path, monkeypatch, "pass", *options)
    assert outcomes == {"passed": 12}, said
    assert times == 1 and len(names) == 1


def test_a_preparation_that_fails(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody runs without; each says why; it is not tried again."""
    how = "open(os.environ['PREPARATIONS'], 'a').write('once'); raise ZeroDivisionError('no table today')"
    outcomes, said, times, _ = run_shared(program, tmp_path, monkeypatch, how, "-n", "2")
    assert outcomes == {"errors": 12}, said
    assert "no table today" in said and times == 1


def test_a_preparation_whose_worker_is_killed(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker does it from the beginning. (pytest-xdist counts the test that was under way as failed.)"""
    flag = tmp_path / "died"
    how = f"""if not os.path.exists({str(flag)!r}):
            open({str(flag)!r}, "w").close()
            fs.write_bytes("/half", b"")
            os.kill(os.getpid(), signal.SIGKILL)"""
    outcomes, said, times, names = run_shared(program, tmp_path / "project", monkeypatch, how, "-n", "2")
    assert outcomes == {"passed": 11, "failed": 1}, said
    assert flag.exists() and times == 1 and len(names) == 1
