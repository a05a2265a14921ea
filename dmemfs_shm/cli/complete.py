"""What the shell offers when a word is completed: stores, and paths in them. Attaches nothing and waits for nobody.

The names in a store come from a read-only look, so that TAB neither takes a slot nor hangs behind a stopped process. What a
shell could not put into the command line as one word is not offered.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem

from ..store import names
from ..store.layout import ROOT
from ..store.observer import Observer


def store_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """This user's stores; private ones only after an @."""
    found = [name for _, name in names.stores(os.geteuid()) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in found if incomplete.startswith("@") or not name.startswith("@")]


def local(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What is outside of stores: the shell's own business."""
    return [CompletionItem(incomplete, type="file")]


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What is in the store whose name was given before."""
    try:
        observer = Observer(names.check_name(ctx.params.get("name")), os.geteuid())
    except (OSError, ValueError, TypeError):
        return []
    try:
        layout = observer.head_layout()
        if layout is not None:
            observer.use(layout)
            return [CompletionItem(path) for path in _paths(observer, incomplete)]
    except (OSError, ValueError):  # damaged: a completion has nowhere to say so
        pass
    finally:
        observer.close()
    return []


def _paths(observer: Observer, incomplete: str) -> list[str]:
    """A directory that is the only answer comes with what is in it: the shell would end the word after it."""
    folder, _, start = incomplete.rpartition("/")
    node: int | None = ROOT
    for part in folder.split("/"):
        if part and node is not None:
            node = next((each for name, is_dir, each in observer.entries(node) if is_dir and name == part), None)
    if node is None:
        return []
    found = [entry for entry in observer.entries(node) if entry[0].startswith(start) and _is_a_word(entry[0])]
    answers = sorted(f"{folder}/{name}{'/' if is_dir else ''}" for name, is_dir, _ in found)
    if len(found) == 1 and found[0][1]:
        below = observer.entries(found[0][2])
        answers += sorted(f"{answers[0]}{name}{'/' if is_dir else ''}" for name, is_dir, _ in below if _is_a_word(name))
    return answers


def _is_a_word(name: str) -> bool:
    return name.isprintable() and not any(char in name for char in " \"'\\$`&|;<>()*?[]{}!#~:")
