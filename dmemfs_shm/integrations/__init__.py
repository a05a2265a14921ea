"""Doors to other libraries, each in a module that needs its extra: ``pip install 'dmemfs-shm[fsspec]'``."""
