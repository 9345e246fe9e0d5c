"""Objects whose references are not counted any more, so that machines do not copy the pages they lie in.

To use an object is to write to it: its reference count. A machine that runs the code of the image so copies most of the
pages of that code, one by one. CPython 3.12 and 3.13 leave the count of an immortal object alone (PEP 683); they make
only some of their own immortal, and here all that the image has are. Measured on 3.13: 2.6 MiB of its own for a machine
instead of 4.5, and 700 page faults at its start instead of 1,160.

None of these objects is ever freed in the process and its forks, which is no loss: they are the image. Standard library
only.
"""

import ctypes
import gc
import sys
from typing import Final

__all__ = ["POSSIBLE", "immortalise"]

POSSIBLE: Final = (
    sys.implementation.name == "cpython"
    and sys.version_info[:2] in ((3, 12), (3, 13))
    and sys.maxsize > 1 << 32
    and sys.byteorder == "little"
    and "t" not in sys.abiflags  # free threads count references in another way
    and not hasattr(sys, "gettotalrefcount")
)
"""Whether this interpreter has immortal objects in the one form that is known here."""

_REFERENCES: Final = 0xFFFF_FFFF
"""_Py_IMMORTAL_REFCNT of 64-bit builds, the lower half of ob_refcnt (Include/object.h of 3.12 and 3.13)."""


def immortalise() -> int:
    """Make all objects immortal that the collector knows or that these lead to; returns how many, 0 if not POSSIBLE.

    Call it once, in a process with one thread, when everything is imported and before anything is forked.
    """
    if not POSSIBLE:
        return 0
    gc.collect()
    seen: set[int] = set()
    level = gc.get_objects()
    found: list[int] = []
    while level:
        fresh = []
        for each in level:
            if id(each) not in seen:
                seen.add(id(each))
                fresh.append(each)
        found += map(id, fresh)
        level = gc.get_referents(*fresh)
    # Only now: what this function itself has made is not among them, and dies with it.
    for address in found:
        ctypes.c_uint32.from_address(address).value = _REFERENCES
    return len(found)
