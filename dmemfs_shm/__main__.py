"""``python -m dmemfs_shm``: the command line."""

from .cli import main

main()
