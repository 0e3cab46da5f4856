"""Arrays of any size: what is large lies in a nameless temporary file, of which only the part in use is in memory.

`release`, which `diffuseg.blocks.blocks` calls after every block, takes the pages of all such files out of this process; their
values stay. Whatever walks a large array in blocks thus needs memory for a block. Neighbouring tiles lie on the same pages and
would fetch them anew each time: they say how much they used, and KEPT bytes of it stay, or a row of tiles if that is more. The
files are in the folder for temporary files (TMPDIR) and vanish with the arrays, or with the process, however that ends.
"""

import errno
import math
import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuseg.errors import UserError

IN_MEMORY = 2**24  # bytes: a larger array is a file
PIECE = 2**24
PAGE = mmap.PAGESIZE
KEPT = 2**26  # bytes of pages that may stay in memory after their use

_maps: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()
_lock = threading.Lock()
_used = 0


def zeros(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """An array of zeros [*shape].

    Raises:
        UserError: There is no room for its file.
    """
    kind, shape = np.dtype(dtype), tuple(int(n) for n in shape)
    size = math.prod(shape) * kind.itemsize
    if size <= IN_MEMORY:
        return np.zeros(shape, kind)
    return np.frombuffer(_mapped(size), kind).reshape(shape)


def tensor(shape: Sequence[int], device: Any = "cpu", dtype: Any = np.float32) -> Any:
    """The same as a tensor; on a GPU it is in the memory of the GPU, whatever its size.

    Raises:
        UserError: There is no room for its file.
    """
    import torch

    made = torch.from_numpy(zeros(shape if torch.device(device).type == "cpu" else (0,), dtype))
    return made if torch.device(device).type == "cpu" else torch.zeros(tuple(shape), dtype=made.dtype, device=device)


def is_large(shape: Sequence[int], dtype: Any = np.float32) -> bool:
    """Whether an array of this size would be a file."""
    return math.prod(shape) * np.dtype(dtype).itemsize > IN_MEMORY


def release(used: int | None = None) -> None:
    """Take the pages of all files out of this process; where the system cannot do so it decides by itself.

    Args:
        used: Bytes of pages that were used since the last call; nothing is done until these sum up to KEPT. None: at once.
    """
    global _used
    if not _maps or sys.platform != "linux":
        return
    _used += KEPT if used is None else used
    if _used < KEPT:
        return
    _used = 0
    with _lock:
        maps = list(_maps)
    for one in maps:
        one.madvise(mmap.MADV_DONTNEED)  # of a shared file: what was written stays


def _mapped(size: int) -> mmap.mmap:
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(prefix="diffuseg-", dir=folder) as file:
            _reserve(file, size)
            made = mmap.mmap(file.fileno(), size)
    except OSError as error:
        what = f"no room for {size / 1e9:.1f} GB of values that memory is not to hold ({error.strerror or error})"
        raise UserError(what, file=folder, do="Make room there, or let TMPDIR name another folder") from None
    with _lock:
        _maps.add(made)
    return made


def _reserve(file: Any, size: int) -> None:
    """Take the room now: a file that could not grow later would end the process."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # a system without it
        pass
    except OSError as error:  # or a file system
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    for start in range(0, size, PIECE):
        file.write(bytes(min(PIECE, size - start)))
    file.flush()
