"""How the C library hands memory back between steps."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets glibc keep what a step frees for the next one, in place of giving it to the kernel and
    faulting it in again: a quarter of the CPU time of small steps on a CPU. Peak memory stays what
    it is. True where the C library took the settings (Linux with glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}
    return all([mallopt(name, value) for name, value in settings.items()])
