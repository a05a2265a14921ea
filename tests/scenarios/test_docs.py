"""Every page of the documentation that shows code is played through, from top to bottom, in an empty directory.

A block of Python that begins with a comment that names a file is put into that file; another one runs by itself. A block of
shell commands runs as it stands. Blocks of other kinds (output, JSON) are not run. (The bad night of how-to-operate.md, which
leaves stopped processes if it ends early, has a test of its own.)
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from dmemfs_shm import MemoryFileSystem

from .conftest import REPOSITORY, Program

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MADE = re.compile(r"dmemfs-shm init (\S+)")
NAMED = re.compile(r"# (\w+\.py)\n")
PAGES = [
    page
    for page in sorted(DOCS.glob("*.md"))
    if BLOCK.search(page.read_text(encoding="utf-8")) and page.stem != "how-to-operate"
]
IN_ORDER = """
import subprocess, sys
for step in sys.argv[2:]:
    done = subprocess.run(["bash", "-euc", step], cwd=sys.argv[1])
    if done.returncode:
        sys.exit(f"{done.returncode} from:\\n{step}")
"""


def steps(page: Path, directory: Path) -> list[str]:
    """The commands that a page has its reader type; its files are written."""
    found = []
    for number, (language, block) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
        name = NAMED.match(block)
        if language == "python":
            (directory / (name[1] if name else f"block{number}.py")).write_text(block, encoding="utf-8")
        if language == "sh":
            found.append(block)
        elif name is None:
            found.append(f"python block{number}.py")
    return found


#: One of its libraries aborts at the end of the process now and then, on a loaded machine ("terminate called without an active
#: exception"): not what every change must pass.
UNSTEADY = ("how-to-pandas",)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in UNSTEADY else (), id=page.stem) for page in PAGES],
)
def test_page(program: Program, tmp_path: Path, page: Path) -> None:
    try:
        done = program("-c", IN_ORDER, tmp_path, *steps(page, tmp_path))
    finally:  # what the page makes goes at its end, unless it did not come so far
        for name in MADE.findall(page.read_text(encoding="utf-8")):
            with contextlib.suppress(FileNotFoundError):
                MemoryFileSystem.destroy(name)
    assert done.returncode == 0, done.stdout + done.stderr
