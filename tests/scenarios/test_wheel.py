"""The wheel, installed alone in a clean environment with what it declares and nothing else, runs the README's quick start; and
the reference, made from the docstrings, has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

import dmemfs_shm

from .conftest import REPOSITORY
from .test_readme import examples

MODULES = (
    "dmemfs_shm",
    "dmemfs_shm.aio",
    *(f"dmemfs_shm.integrations.{name}" for name in ("fsspec", "arrow", "dask", "keeper")),
)


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has nothing of this environment; it must succeed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def declared(name: str, seen: set[str]) -> Iterator[Distribution]:
    """The distributions that one needs, and what they need, without extras."""
    for requirement in distribution(name).requires or ():
        if "extra ==" in requirement or "sys_platform" in requirement or "python_version" in requirement:
            continue
        needed = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()
        if needed not in seen:
            seen.add(needed)
            yield distribution(needed)
            yield from declared(needed, seen)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binaries of an environment in which the wheel is, and the very files of what it declares."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    wheel = folder / run(sys.executable, "-c", build, folder, cwd=REPOSITORY).stdout.split()[-1]
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for needed in declared("dmemfs-shm", set()):
        for top in {file.parts[0] for file in needed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(Path(str(needed.locate_file(top))))
    return folder / "venv" / "bin"


def test_quick_start(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(examples("python")[0], encoding="utf-8")
    done = run(installed / "python", "-W", "error", "start.py", cwd=tmp_path)
    assert "bytes of quota used" in done.stdout and done.stderr == ""
    where = run(installed / "python", "-c", "import dmemfs_shm; print(dmemfs_shm.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)


def test_command_line(installed: Path, tmp_path: Path) -> None:
    """The wheel's entry point, and the fixtures' and extras' modules say what they lack."""
    code = "import sys; from dmemfs_shm.cli import main; sys.argv = ['dmemfs-shm', '--version']; main()"
    assert dmemfs_shm.__version__ in run(installed / "python", "-c", code, cwd=tmp_path).stdout
    lacking = "import dmemfs_shm.integrations.fsspec"
    done = subprocess.run([installed / "python", "-c", lacking], capture_output=True, text=True, timeout=100, check=False)
    assert "pip install 'dmemfs-shm[fsspec]'" in done.stderr


def test_reference(tmp_path: Path) -> None:
    """Made without a warning, and complete."""
    run(sys.executable, "-W", "error", "-m", "pdoc", *MODULES, "-o", tmp_path, cwd=REPOSITORY, PYTHONPATH=str(REPOSITORY))
    page = (tmp_path / "dmemfs_shm.html").read_text(encoding="utf-8")
    for name in dmemfs_shm.__all__:
        assert f'id="{name}"' in page, name
    for name in (name for name in dir(dmemfs_shm.MemoryFileSystem) if not name.startswith("_")):
        assert f'id="MemoryFileSystem.{name}"' in page, name
        assert getattr(dmemfs_shm.MemoryFileSystem, name).__doc__ or name in ("is_dir", "is_file"), name
