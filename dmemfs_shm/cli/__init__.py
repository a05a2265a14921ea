"""The command line ``dmemfs-shm``: one small file a command, which parses and prints; the work is done below.

Reading order: `group` (how commands are found, and what becomes of their errors), `errors` (exit codes), any command.
What they share: `common` (stores, files, lines), `sizes`, `text` (ages, names), `report` (tables), `advice`.

click and rich are loaded here and nowhere else, a command's own module when it runs.
"""

from .group import main

__all__ = ["main"]
