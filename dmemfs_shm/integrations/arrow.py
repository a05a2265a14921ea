"""Arrow tables and numpy arrays in a store, without copies between processes.

    write_table(fs, "/flights.arrow", table)      one process; copied once, into the store
    table = read_table(fs, "/flights.arrow")      another one; on the store's own memory, nothing is copied
    write_array(fs, "/delays.npy", array)
    array = read_array(fs, "/delays.npy")

Guarantees. A file is written out of sight and published whole, in the place of the one that is there. What is read is
read-only and lies in the store's memory (`MemoryFileSystem.view`): the bytes stay what they were as long as anything that
was derived from them lives (columns, slices, arrays), whatever becomes of the file, and are charged until then. The formats
are Arrow's IPC file and numpy's npy, which other programs read as well.

Two kinds of files are copied when they are read: compressed Arrow files, and what others wrote unaligned. Tables need the
extra ``arrow``, arrays numpy.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..filesystem import MemoryFileSystem
from ..paths import AnyPath

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("Arrow tables need pyarrow: pip install 'dmemfs-shm[arrow]'") from error
    return pyarrow


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("arrays need numpy: pip install numpy") from error
    return numpy


def write_table(fs: MemoryFileSystem, path: AnyPath, table: pa.Table | pa.RecordBatch) -> int:
    """Write a table as an Arrow IPC file; returns its size in bytes. It is copied once, from its buffers into the store's.

    MFSQuotaExceededError, MFSNoSpaceError and what `MemoryFileSystem.open` raises: then nothing has changed.
    """
    pyarrow = _pyarrow()
    measured = pyarrow.MockOutputStream()
    _write_ipc(pyarrow, measured, table)
    size: int = measured.size()
    with (
        fs.open(path, "wb", atomic=True, preallocate=size) as file,
        file.getbuffer() as buffer,
        pyarrow.FixedSizeBufferWriter(pyarrow.py_buffer(buffer)) as target,
    ):
        _write_ipc(pyarrow, target, table)
        del target  # or it would keep the buffer
    return size


def _write_ipc(pyarrow: Any, target: Any, table: Any) -> None:
    with pyarrow.ipc.new_file(target, table.schema) as writer:
        writer.write(table)


def read_table(fs: MemoryFileSystem, path: AnyPath, *, allow_abandoned: bool = False) -> pa.Table:
    """The table of an Arrow IPC file, on the store's own memory.

    ValueError if the file is none; otherwise as `MemoryFileSystem.view`.
    """
    pyarrow = _pyarrow()
    view = fs.view(path, allow_abandoned=allow_abandoned)
    try:
        with pyarrow.ipc.open_file(pyarrow.py_buffer(memoryview(view))) as reader:
            return reader.read_all()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"Not an Arrow file: {path!r}: {error}") from None
    finally:
        view.release()  # what was derived from it keeps the memory


def write_array(fs: MemoryFileSystem, path: AnyPath, array: np.ndarray[Any, Any]) -> int:
    """Write an array in numpy's npy format; returns the size of the file in bytes. It is copied once.

    Of any shape, C and Fortran order kept; others are written in C order. ValueError, before anything is written, for arrays
    of Python objects, which have no bytes that another process could use. Otherwise as `write_table`.
    """
    numpy = _numpy()
    source = numpy.asanyarray(array)
    if source.dtype.hasobject:
        raise ValueError("an array of Python objects can't be shared")
    header = io.BytesIO()
    fortran = bool(source.flags.f_contiguous and not source.flags.c_contiguous)
    facts = {"descr": numpy.lib.format.dtype_to_descr(source.dtype), "fortran_order": fortran, "shape": source.shape}
    try:
        numpy.lib.format.write_array_header_1_0(header, facts)
    except ValueError:  # too many fields for it
        numpy.lib.format.write_array_header_2_0(header, facts)
    head = header.getvalue()
    size: int = len(head) + source.nbytes
    with fs.open(path, "wb", atomic=True, preallocate=size) as file:
        file.write(head)
        if source.nbytes:
            with file.getbuffer(len(head)) as buffer:
                target = numpy.frombuffer(buffer, source.dtype).reshape(source.shape, order="F" if fortran else "C")
                target[...] = source
                del target
    return size


def read_array(fs: MemoryFileSystem, path: AnyPath, *, allow_abandoned: bool = False) -> np.ndarray[Any, Any]:
    """The array of an npy file, on the store's own memory, read-only.

    ValueError if the file is none, is shorter than it says, or has Python objects; otherwise as `MemoryFileSystem.view`.
    """
    numpy = _numpy()
    view = fs.view(path, allow_abandoned=allow_abandoned)
    try:
        return _array_in(numpy, memoryview(view), path)  # type: ignore[no-any-return]
    finally:
        view.release()


def _array_in(numpy: Any, whole: memoryview, path: AnyPath) -> Any:
    head = io.BytesIO(bytes(whole[: 1 << 16]))
    try:
        version = numpy.lib.format.read_magic(head)
        read_header = numpy.lib.format.read_array_header_1_0 if version == (1, 0) else numpy.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
    except ValueError as error:
        raise ValueError(f"Not an npy file: {path!r}: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"It has Python objects, which can't be shared: {path!r}")
    count = 1
    for length in shape:
        count *= length
    start = head.tell()
    if len(whole) < start + count * dtype.itemsize:
        raise ValueError(f"Not an npy file: {path!r}: it ends before its array does")
    if not count:
        return numpy.empty(shape, dtype, order="F" if fortran else "C")
    flat = numpy.frombuffer(whole, dtype, count, start)
    return flat.reshape(shape, order="F" if fortran else "C")
