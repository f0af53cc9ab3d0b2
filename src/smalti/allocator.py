"""The setting of the C library's allocator that the commands run with."""

import ctypes
import os
import sys

KEPT = 1 << 28
"""Bytes of freed memory that the process keeps at most, and of the largest piece of memory that is used again."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Variables of the environment by which a user sets it."""


def keep_freed_memory() -> bool:
    """Let this process use freed memory again, up to `KEPT` bytes, instead of giving it back; return whether it will.

    By default glibc gives back every piece above 32 MB and asks the system for zeroed pages at the next layer: 1.2
    times as long for a large image. For a whole process to decide, so that commands call it and no function of the
    library does. It changes nothing where the C library is another one, or where the environment sets it already.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    # Before glibc 2.35 no piece above 32 MB can be kept: the second setting is then refused.
    return set_option is not None and all(set_option(name, KEPT) for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
