"""What the seal is known to let pass: attempts and channels, where, why, and where the threat model says so.

The tests expect each of them to fail (``xfail(strict=True)``): one that is gone is noticed, and leaves this table and
the page. tests/escapes/test_known.py holds the two together.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import pytest
from tests.escapes.prison import Prison


class Situation(NamedTuple):
    """What it may depend on whether something passes."""

    profile: str
    layers: frozenset[str]
    """The layers of the machine's seal."""
    storage_counted: bool
    """The host counts the storage of each machine, in the kernel too: it has a memory cgroup for it."""

    @property
    def one_user(self) -> bool:
        """Other machines are of the same user."""
        return "own-uid" not in self.layers


class Known(NamedTuple):
    """One thing that is known to pass."""

    names: tuple[str, ...]
    """Attempts, channels or bombs, by the name that the tests give them."""
    where: Callable[[Situation], bool]
    reason: str
    heading: str
    """The heading of the page below which each of the names stands."""


def _everywhere(_: Situation) -> bool:
    return True


KNOWN: Final = (
    Known(
        (
            "flock-of-a-shared-file",
            "flock-of-a-device",
            "record-lock-of-a-device",
            "record-lock-of-a-shared-file",
            "description-lock-of-a-shared-file",
        ),
        _everywhere,
        "locks need no right to write, and a filter cannot tell files apart",
        "Channels that remain",
    ),
    Known(
        ("size-of-a-file-on-the-own-disk", "text-of-a-link-on-the-own-disk"),
        lambda at: "mount-ns" not in at.layers and at.one_user,
        "Landlock does not look at stat and readlink",
        "Channels that remain",
    ),
    Known(
        ("memory/socket-buffers",),
        lambda at: not at.storage_counted,
        "buffers of sockets are memory of the kernel's, which only a memory cgroup counts",
        "What remains at each level",
    ),
    Known(
        ("sockets/pair-with-a-name",),
        lambda at: at.profile == "network" and "landlock" not in at.layers,
        "it binds its ports, and a filter cannot tell the kinds of sockets apart",
        "What remains at each level",
    ),
)


def expect(request: pytest.FixtureRequest, name: str, prison: Prison, profile: str, machine: str = "") -> bool:
    """Mark the running test as one that is known to fail, if it is; and say so."""
    situation = Situation(profile, prison.layers(machine or prison.machine(profile)), prison.storage_counted)
    for known in KNOWN:
        if name in known.names and known.where(situation):
            reason = f"{known.reason}: docs/explanation/security.md, {known.heading}"
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))
            return True
    return False
