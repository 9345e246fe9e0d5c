"""The rungs of the ladder that this host can build, by taking away what a weaker host would not have."""

import os
from typing import Final, NamedTuple

AS_ROOT: Final = os.geteuid() == 0


class Rung(NamedTuple):
    """One kind of host."""

    name: str
    level: str
    """What ``[system] seal`` accepts there."""
    has_exec: bool
    """Whether exec machines can be had there: they need a root of their own."""
    without: tuple[str, ...]
    """What such a host does not have, as in tests/cp/host/rungs.py."""


# Machines by the profile of their system calls.
PROFILES: Final = ("program", "network", "exec")

RUNGS: Final = {
    rung.name: rung
    for rung in (
        Rung("full", "full", True, ()),
        # Root needs no user namespace for the others: its machines have a root of their own there, too.
        Rung("no-user-namespaces", "strong", AS_ROOT, ("user-namespaces",)),
        Rung("no-landlock", "basic", True, ("landlock",)),
    )
}

PLACES: Final = [
    (rung.name, profile) for rung in RUNGS.values() for profile in PROFILES if profile != "exec" or rung.has_exec
]
"""Every kind of machine at every rung where it can be had."""

FILTERS: Final = [(rung, profile) for rung, profile in PLACES if rung == "full" or not RUNGS[rung].has_exec]
"""Every filter of system calls: one differs by profile, and by whether the machine has a root of its own."""
