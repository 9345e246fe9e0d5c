"""Which descriptors this process has open: for tests that must leave none, or must do with few."""

import contextlib
import gc
import os
import re
import resource
from collections import Counter
from collections.abc import Iterator


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


@contextlib.contextmanager
def few_left(spare: int = 0) -> Iterator[None]:
    """At most so many descriptors can be had in the block, besides those that are open."""
    gc.collect()  # what earlier tests have left in cycles would give some back meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def kinds_of(pid: int) -> Counter[str]:
    """What another process has open, without numbers; nothing where only root may look (who is not dumpable)."""
    found: Counter[str] = Counter()
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found[re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
    except PermissionError:
        assert os.geteuid() != 0
    return found


def count_of(pid: int) -> int:
    """How many descriptors another process has; 0 where only root may look."""
    return kinds_of(pid).total()
