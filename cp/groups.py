"""What is to be done when a machine has failed: the groups of a topology and the budgets of their restarts.

The semantics are those of OTP's supervisors. A group spends one restart of its budget for each failure of a member,
and restarts what its strategy says. Without one to spend it fails as a whole, as a member of the group that contains
it, which then restarts all of it; a group that nobody contains is given up with all that is in it. A group that is
restarted as a whole begins anew, and so do those in it.

A machine may have a budget of its own beside that of its group. When that one is spent, the machine is given up with
all that its group would have restarted with it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from retinue.cp.directory import Budget, Directory, Group, start_order
from retinue.cp.directory.quantities import as_duration

#: In each strategy: whether the members before the failed one, and those after it, are restarted with it.
STRATEGIES: Final = {"one_for_one": (False, False), "rest_for_one": (False, True), "one_for_all": (True, True)}


@frozen
class Verdict:
    """What is to be done because of one failure.

    ``restart`` are the machines to start again, the failed one first and the others in the order in which to stop
    those of them that run. ``broken`` are those that are given up, in the same order; one of the two is empty.
    ``why`` is a sentence, empty if the failed machine is merely started again.
    """

    restart: tuple[str, ...]
    broken: tuple[str, ...]
    why: str


class GroupPolicy:
    """The groups of one topology, with what they have spent. Machines behind one name are named ``SHOP@1``.

    ``clock`` tells the time in seconds and never goes back. A death that was asked for, or is the consequence of a
    verdict, is no failure.
    """

    def __init__(self, topology: Directory, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: dict[str, list[float]] = {}  # by the name of a machine or group: when it was restarted
        self._broken: set[str] = set()
        self.change(topology)

    def change(self, topology: Directory) -> None:
        """Go on with another topology: machines and groups that it still has keep what they have spent."""
        topology = topology.expanded()
        waves = start_order(topology)
        self._stop_order = [machine.name for wave in reversed(waves) for machine in reversed(wave)]
        self._machines = {machine.name: machine for machine in topology.machines}
        self._groups = {group.name: group for group in topology.groups}
        self._group_of = {member: group for group in topology.groups for member in group.members}
        self._behind: dict[str, list[str]] = {}  # by the name in the file
        for machine in topology.machines:
            self._behind.setdefault(machine.declared, []).append(machine.name)
        known = self._machines.keys() | self._groups.keys()
        self._spent = {name: times for name, times in self._spent.items() if name in known}
        self._broken &= self._machines.keys()

    def failed(self, machine: str) -> Verdict:
        """What to do about this failure, which is counted. Raises KeyError if there is no such machine.

        A machine that was given up is given up again, until :meth:`renew` says that somebody wants it nevertheless.
        """
        entry, now = self._machines[machine], self._clock()
        if machine in self._broken:
            return Verdict((), (machine,), f"{machine} was given up")
        group = self._group_of.get(entry.declared)
        if entry.restarts is not None and not self._spend(machine, entry.restarts, now):
            lost = {machine} if group is None else self._with(group, entry.declared, {machine})
            return self._give_up(machine, lost, f"{machine} failed after {_described(entry.restarts)} of its own")
        if group is None:
            return Verdict((machine,), (), "")
        member, affected, story = entry.declared, {machine}, f"{machine} failed"
        while not self._spend(group.name, group.restarts, now):
            story += f", after {_described(group.restarts)} in the group {group.name}"
            member, affected = group.name, self._all(group)
            outer = self._group_of.get(group.name)
            if outer is None:
                return self._give_up(machine, affected, story)
            group = outer
        affected = self._with(group, member, affected)
        self._begin_anew(group, affected)
        alone = affected == {machine}
        return Verdict(
            self._in_order(machine, affected - self._broken),
            (),
            "" if alone else f"{story}, and the group {group.name} is {group.strategy}",
        )

    def renew(self, machine: str) -> None:
        """Somebody starts this machine: it is no longer given up, and its budget and those around it begin anew."""
        self._broken.discard(machine)
        self._spent.pop(machine, None)
        group = self._group_of.get(self._machines[machine].declared)
        while group is not None:
            self._spent.pop(group.name, None)
            group = self._group_of.get(group.name)

    def note(self) -> dict[str, Any]:
        """What has been spent and given up, as plain values; its times are those of the clock."""
        return {"spent": {name: list(times) for name, times in self._spent.items()}, "broken": sorted(self._broken)}

    def restore(self, note: Mapping[str, Any]) -> None:
        """Go on where another policy, with the same clock, has made this note."""
        known = self._machines.keys() | self._groups.keys()
        self._spent = {name: list(times) for name, times in note["spent"].items() if name in known}
        self._broken = set(note["broken"]) & self._machines.keys()

    def _spend(self, name: str, budget: Budget, now: float) -> bool:
        """Count a restart, if the budget has one left."""
        spent = self._spent[name] = [then for then in self._spent.get(name, ()) if now - then < budget.within]
        if len(spent) >= budget.most:
            return False
        spent.append(now)
        return True

    def _give_up(self, machine: str, lost: set[str], why: str) -> Verdict:
        broken = self._in_order(machine, lost - self._broken)
        self._broken |= lost
        return Verdict((), broken, why)

    def _with(self, group: Group, member: str, failed: set[str]) -> set[str]:
        """The machines that a group restarts because of these, which are in (or are all of) one of its members."""
        before, after = STRATEGIES[group.strategy]
        at = group.members.index(member)
        others = (*(group.members[:at] if before else ()), *(group.members[at + 1 :] if after else ()))
        # One instance is as good as another: the others belong to the group as a whole, but come after none.
        same = self._of(member) if before else set()
        return failed.union(same, *map(self._of, others))

    def _of(self, member: str) -> set[str]:
        """The machines that a member is, or contains."""
        group = self._groups.get(member)
        return set(self._behind[member]) if group is None else self._all(group)

    def _all(self, group: Group) -> set[str]:
        return set().union(*map(self._of, group.members))

    def _begin_anew(self, group: Group, affected: set[str]) -> None:
        """Forget what the groups in this one have spent that are restarted as a whole."""
        for member in group.members:
            inner = self._groups.get(member)
            if inner is not None and self._all(inner) <= affected:
                self._spent.pop(inner.name, None)
                self._begin_anew(inner, affected)

    def _in_order(self, first: str, machines: Iterable[str]) -> tuple[str, ...]:
        others = {*machines} - {first}
        return (first, *(name for name in self._stop_order if name in others))


def _described(budget: Budget) -> str:
    """``3 restarts within 10s``."""
    return f"{budget.most} restart{'s' if budget.most != 1 else ''} within {as_duration(budget.within)}"
