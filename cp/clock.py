"""The time of the control program: trio's clock, and stamps that the next control program understands."""

import sys
import time

import trio

__all__ = ["from_stamp", "stamp"]


def stamp() -> float:
    """Now, as a number that any process of this host can read (CLOCK_MONOTONIC); on a virtual clock its own."""
    return trio.current_time() if _is_virtual() else time.monotonic()


def from_stamp(stamp: float) -> float:
    """The ``trio.current_time()`` of this process at the moment of a stamp."""
    return stamp if _is_virtual() else trio.current_time() - (time.monotonic() - stamp)


def _is_virtual() -> bool:
    # Not imported for this: it brings much with it.
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock)
