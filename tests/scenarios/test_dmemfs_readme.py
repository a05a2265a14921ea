"""The examples of D-MemFS's own README, taken from the installed package: with the import changed they print the same."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import dmemfs_shm

from .conftest import Program

README = str(importlib.metadata.distribution("D-MemFS").read_text("METADATA"))
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def example(words: str) -> str:
    """The only block of Python with these words in it."""
    [block] = [block for block in BLOCKS if words in block]
    return str(block)


EXAMPLES = {
    "quick-start": example("from dmemfs import MemoryFileSystem, MFSQuotaExceededError"),
    "text-mode": example("from dmemfs import MemoryFileSystem, MFSTextHandle"),
    "async-usage": example("from dmemfs import AsyncMemoryFileSystem") + "\n\nimport asyncio\nasyncio.run(run())\n",
    "memory-guard": example('memory_guard="per_write"').replace("8 * 1024**3", "64 << 20"),  # a machine may have less
}


def missing(text: str) -> str:
    """What an example imports that is not here yet."""
    imported = re.findall(r"from dmemfs import (.*)", text)
    return ", ".join(name for line in imported for name in line.split(", ") if name not in dmemfs_shm.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(program: Program, tmp_path: Path, name: str) -> None:
    text = EXAMPLES[name]
    if missing(text):
        pytest.skip(f"not here yet: {missing(text)}")
    said = []
    for package in ("dmemfs", "dmemfs_shm"):
        script = tmp_path / f"{package}_example.py"
        script.write_text(text.replace("from dmemfs import", f"from {package} import"), encoding="utf-8")
        done = program(script)
        assert (done.returncode, done.stderr) == (0, ""), package
        said.append(done.stdout)
    theirs, ours = (re.sub(r"only \d+ bytes available", "only so many bytes available", text) for text in said)
    assert ours == theirs  # what is free differs by what a small file is charged


PLUGIN = ("pytest_plugins =", "def test_write_read(mfs):")


def test_pytest_plugin(program: Program, tmp_path: Path) -> None:
    """The README's conftest.py and test_example.py."""
    conftest, test = map(example, PLUGIN)
    if not (Path(dmemfs_shm.__file__).parent / "_pytest_plugin.py").exists():
        pytest.skip("not here yet: the pytest plugin")
    (tmp_path / "conftest.py").write_text(conftest.replace("dmemfs.", "dmemfs_shm."), encoding="utf-8")
    (tmp_path / "test_example.py").write_text(test, encoding="utf-8")
    done = program("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path / "test_example.py")
    assert done.returncode == 0, done.stdout + done.stderr
