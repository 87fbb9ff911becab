"""Freed memory kept for the next pass, where the C library would give it back to the system.

Logits of a vocabulary of 262,000 words are blocks of hundreds of megabytes. glibc maps such a block
anew each time, and the system clears every page of it: half of the time that a default fit on real
models took (`docs/performance.md`).
"""

from __future__ import annotations

import ctypes
import os
import platform

_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
# Numbers of mallopt(3), and what they are set to.
_MMAP_MAX = (-4, 0)  # no block is mapped by itself
_TRIM_THRESHOLD = (-1, 2**31 - 1)  # the end of the heap stays
_TOP_PAD = (-2, 1 << 28)  # and grows in large steps


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; True where that was done.

    For programs of our own only: it is a setting of the whole process. Nothing is done with a C
    library other than glibc, nor where the environment says how its allocator should work.
    """
    chosen = [name for name in _VARIABLES if name in os.environ]
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another allocator stands in its place
        return False
    return all(mallopt(*option) for option in (_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD))
