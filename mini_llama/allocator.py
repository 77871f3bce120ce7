"""What glibc's malloc does with memory that is freed: kept for later, or given back at once."""

import ctypes

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BYTES = 1 << 20


def give_back_large_blocks() -> bool:
    """From now on blocks of a MiB or more go back to the system when they are freed; whether this
    system's malloc can do so.

    By default glibc keeps freed blocks of up to 32 MiB. Those of one batch rarely fit the next
    one's, of another length, so a training process grows to more than twice what it needs. It
    costs time: the system clears each block that it hands out.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES))
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return False
