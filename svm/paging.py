"""Paging out on the control program's word: where nobody may do it from outside, a machine does it to itself.

The program has no part in it. A sealed machine cannot see which of its pages are in real storage, so it is told. What
it touches until it sleeps again comes back at once, from the swap cache: some hundred pages.
"""

import ctypes
import os
from typing import Any, Final

_MADV_PAGEOUT: Final = 21
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# What the kernel can address from here; the largest address is no page.
_HIGHEST: Final = 1 << 56

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]


def page_out(ranges: Any) -> int:
    """Take the pages in ``[[first address, address behind the last], ...]`` out of real storage (madvise(2)).

    Returns how many ranges the kernel took; one that was unmapped meanwhile is left out. Without swap nothing happens.
    ValueError: these are no ranges.
    """
    match ranges:
        case list() if all(type(each) is list and len(each) == 2 for each in ranges):
            pass
        case _:
            raise ValueError("ranges are pairs of addresses")
    for first, last in ranges:
        if not (type(first) is int and type(last) is int and 0 <= first <= last < _HIGHEST) or first % _PAGE:
            raise ValueError("an address is a whole number, and the first one that of a page")
    return sum(_madvise(first, last - first, _MADV_PAGEOUT) == 0 for first, last in ranges)


def give_back() -> None:
    """Give the host what this process has freed and its allocator holds on to (malloc_trim(3); nothing without it)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
