"""A machine pages itself out where it is told to; what is no range is refused before anything is done."""

import mmap
from typing import Any

import pytest

from retinue.svm.paging import page_out


@pytest.mark.parametrize(
    "ranges",
    [
        None,
        "x",
        {},
        [1],
        [[0]],
        [[0, 4096, 1]],
        [[0, "4096"]],
        [[True, 4096]],
        [[8192, 4096]],
        [[1, 4096]],
        [[0, 1 << 60]],
    ],
)
def test_what_is_no_range_is_refused(ranges: Any) -> None:
    """The control program sends none of that."""
    with pytest.raises(ValueError, match="address"):
        page_out(ranges)


def test_a_range_that_is_not_there_is_left_out() -> None:
    """It was unmapped meanwhile; of the others the contents are as they were, with swap or without."""
    with mmap.mmap(-1, 1 << 20) as memory:
        memory[:3] = b"abc"
        first = _address(memory)
        assert page_out([[first, first + (1 << 20)], [4096, 8192]]) == 1
        assert memory[:3] == b"abc"
    assert page_out([]) == 0


def _address(memory: mmap.mmap) -> int:
    import ctypes

    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    address = ctypes.addressof(view)
    del view
    return address
