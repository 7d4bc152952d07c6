"""What a model's process does with memory that it has freed. Needs no torch."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""


RETURNED_BYTES, KEPT_BYTES = 2**17, 2**30
"""Of single tensors: larger ones than the first are returned while weights are loaded, none below the second after."""


def return_freed_memory() -> None:
    """Has glibc return the memory of every large tensor: converting and rearranging weights leaves holes otherwise.

    By itself glibc raises the size from which it does so to 32 MiB, which few weights have: of SDXL's UNet, read from
    float16, 5.6 GiB would stay.
    """
    _set(RETURNED_BYTES, M_MMAP_THRESHOLD)


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of activations, where it would return it and fault it in again at every call.

    Call it once the weights are loaded.
    """
    _set(KEPT_BYTES, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)


def _set(nbytes: int, *options: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in options:
            libc.mallopt(option, nbytes)
