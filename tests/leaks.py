"""Which descriptors this process has open: for tests that must leave none."""

import contextlib
import os


def descriptors() -> frozenset[str]:
    """Every open descriptor with what it is, as far as it tells: two sockets differ, even under the same number."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return frozenset(found)


def assert_none_left(before: frozenset[str]) -> None:
    """Nothing is open that was not before. (Less may be: what earlier tests left may have been collected.)"""
    left = descriptors() - before
    assert not left, f"left open: {', '.join(sorted(left))}"


def count_of(pid: int) -> int:
    """How many descriptors another process has; 0 where only root may look: the kernel hides what is not dumpable."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        assert os.geteuid() != 0
        return 0
