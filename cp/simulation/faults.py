"""What can be made to go wrong in a simulation, beside a kill, a stop and a frozen process."""

import errno
from collections import defaultdict, deque
from typing import Final

import attrs

__all__ = ["NONE", "Faults", "Flaws"]


@attrs.frozen
class Flaws:
    """What goes wrong with one process of a machine."""

    unborn: int = 0
    """It cannot be made: the number of the error that the host gives, such as ``errno.ENOMEM``."""
    slow: float = 0.0
    """Seconds from its birth until it listens to the control program."""
    hung: bool = False
    """It never does anything at all; only SIGKILL ends it."""
    lost_ready: bool = False
    """Its program says that it is ready, and that is never heard."""
    dies_before_ready: bool = False
    """It is killed when its program says that it is ready."""
    dies_at: int = 0
    """It is killed when it has received so many messages."""
    out_of_storage: bool = False
    """Its program gets a MemoryError in its first step."""


NONE: Final = Flaws()

NO_MEMORY: Final = Flaws(unborn=errno.ENOMEM)
"""The host has no room for another process."""


class Faults:
    """Which machines are born with which flaws. A name is that of one instance, such as ``SHOP@2``."""

    def __init__(self) -> None:
        self._plans: defaultdict[str, deque[Flaws]] = defaultdict(deque)

    def plan(self, machine: str, *flaws: Flaws) -> None:
        """The next births of a machine have these flaws, one each; after those that were planned before."""
        self._plans[machine] += flaws

    def forget(self) -> None:
        """Nothing that was planned and has not happened will."""
        self._plans.clear()

    def of_birth(self, machine: str) -> Flaws:
        """The flaws of a machine that is made now."""
        plan = self._plans.get(machine)
        return plan.popleft() if plan else NONE
