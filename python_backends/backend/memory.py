"""What a model's process does with memory that it has freed. Needs no torch."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of activations, where it would return it and fault it in again at every call.

    Call it once the weights are loaded: what converting and rearranging them takes is to be returned.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)
