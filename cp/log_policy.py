"""The policy of each machine's records, and what is left of the rate at which it may write."""

from collections.abc import Callable
from typing import Final

from retinue.cp.directory import Directory
from retinue.cp.directory.model import LogPolicy, LogRate

# Bytes that wait when nobody has said how many may: the journal itself is the bound.
_ANY: Final = 2**63
UNDECLARED: Final = LogPolicy(buffer=_ANY, spill=0)


class LogPolicies:
    """Which machine has which. One that no topology declares has the policy of the system."""

    def __init__(self, topology: Directory | None = None) -> None:
        self._of: dict[str, LogPolicy] = {}
        self._default = UNDECLARED
        if topology is not None:
            self.declare(topology)

    def declare(self, topology: Directory) -> None:
        """From now on they are as this topology says."""
        self._of = {name: entry.log for name, entry in topology.entries.items()}
        log = topology.system.log
        # The control program cannot wait for itself, and a machine that is none any more has nobody to wait.
        self._default = LogPolicy("spill" if log.policy == "block" else log.policy, log.buffer, log.spill)

    def every(self, policy: LogPolicy) -> None:
        """From now on this is everybody's."""
        self._of, self._default = {}, policy

    def of(self, machine: str) -> LogPolicy:
        """The policy of a machine."""
        return self._of.get(machine, self._default)


class Allowance:
    """How much a machine may still write in the present span of its rate. Debts are carried over.

    ``clock`` gives seconds. Another ``rate`` counts from the next span on.
    """

    def __init__(self, rate: LogRate, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._end = clock() + rate.within
        self.left = rate.most
        """Records; below zero of one that could not be stopped in time."""
        self._told = 0  # records about it in this span that are no records of its own

    def wait(self) -> float:
        """Seconds until there is something left: 0 if there is."""
        self._turn()
        if self.left > 0:
            return 0.0
        spans = -self.left // self.rate.most
        return max(0.0, self._end - self._clock() + spans * self.rate.within)

    def until_next(self) -> float:
        """Seconds until the span ends."""
        self._turn()
        return max(0.0, self._end - self._clock())

    def _turn(self) -> None:
        now = self._clock()
        if now < self._end:
            return
        spans = int((now - self._end) / self.rate.within) + 1
        self._end += spans * self.rate.within
        self._told = 0
        self.left = min(self.rate.most, self.left + spans * self.rate.most)

    def take(self, count: int) -> None:
        """Use up so many, whether or not they are left."""
        self._turn()
        self.left -= count

    def tell(self) -> bool:
        """Whether one more record may be made about the machine: as many in a span as it may write itself."""
        self._turn()
        self._told += 1
        return self._told <= self.rate.most

    def grant(self, wanted: int) -> int:
        """Use up as many as are left and wanted; returns how many these are."""
        self._turn()
        granted = max(0, min(wanted, self.left))
        self.left -= granted
        return granted
