"""Every example of the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Program

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    """The blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", examples("python"), ids=["quick-start", "ten-writers", "passing-files-on"])
def test_python(program: Program, tmp_path: Path, example: str) -> None:
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    done = program(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("example", examples("sh"), ids=["command-line"])
def test_shell(program: Program, example: str) -> None:
    in_bash = "import subprocess, sys; sys.exit(subprocess.call(['bash', '-euc', sys.argv[1]]))"
    done = program("-c", in_bash, example)
    assert (done.returncode, done.stderr) == (0, "")
