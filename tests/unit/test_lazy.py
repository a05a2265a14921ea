"""Imports when something is first needed, beside forks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dmemfs_shm.store import lazy

from ..processes import DEADLINE_S, Link, Task, child, until


def load_and_tell(link: Link, name: str) -> None:
    link.send(lazy.load(name).VALUE)


def test_a_fork_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a fork in the middle of one would wait for ever for the thread that imports."""
    name, begun = f"slow_{os.getpid()}", tmp_path / "begun"
    (tmp_path / f"{name}.py").write_text(
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(0.3)\nVALUE = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = Task(lazy.load, name)
    until(begun.exists, "the import has begun")
    with child("fork", load_and_tell, name) as forked:
        assert forked.link.poll(DEADLINE_S / 3)
        assert forked.receive() == 7
    assert task.result().VALUE == 7
    del sys.modules[name]


def test_what_is_not_there() -> None:
    with pytest.raises(ImportError):
        lazy.load("dmemfs_shm.nothing_of_this_name")
