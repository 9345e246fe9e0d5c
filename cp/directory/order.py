"""The start order: it is the graph of the edges, servers first, and nobody writes it down.

A machine starts when every machine that it uses is ready. Lazy edges make no order, and neither do edges to star
services and to machines that start on demand. The machine that keeps the records of ``*LOG`` starts before all others,
so that their first records find it. The stop order is the reverse.
"""

from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from retinue.cp.directory.model import Directory, Edge, MachineEntry


@frozen
class Step:
    """One step of a cycle: ``machine`` waits for ``to`` because of these edges of its own (more than one if it uses
    the same target under several names)."""

    machine: str
    to: str
    edges: tuple[Edge, ...]


def start_order(directory: Directory) -> list[list[MachineEntry]]:
    """The machines in waves: those of one wave may start together once all earlier waves are ready.

    The syslog machine, if there is one, is alone in the first wave. Within a wave the order is that of the file.
    Raises ValueError if the edges have a cycle, which a directory that was loaded cannot have.
    """
    syslog = directory.system.syslog
    machines = {machine.name: machine for machine in directory.machines}
    demanded = on_demand(directory.machines)
    waves = [[machine] for machine in directory.machines if machine.name == syslog]
    waiting = {
        machine.name: {step.to for step in _steps(machine.name, machine.uses, demanded)}
        for machine in directory.machines
        if machine.name != syslog
    }
    while waiting:
        # Who uses a machine with instances waits for all of them.
        declared = {machines[name].declared for name in waiting}
        wave = [name for name, servers in waiting.items() if not servers & declared]
        if not wave:
            raise ValueError(f"the start order has a cycle among {', '.join(waiting)}")
        for name in wave:
            del waiting[name]
        waves.append([machines[name] for name in wave])
    return waves


def on_demand(machines: Sequence[MachineEntry]) -> frozenset[str]:
    """The names of those that start on demand, and for which therefore nobody waits."""
    return frozenset(machine.declared for machine in machines if machine.start == "on-demand")


def cycles(uses: Mapping[str, Sequence[Edge]], demanded: Collection[str] = ()) -> list[list[Step]]:
    """The cycles that the ordering edges of these machines make: each is a list of steps back to its first machine.

    ``demanded`` are the machines that start on demand.

    Not every cycle of the graph is listed, of which there may be very many, but enough of them: no cycle is left once
    the last step of each is lazy. Edges to machines that are not among the keys are ignored.
    """
    found: list[list[Step]] = []
    done: set[str] = set()
    for start in uses:
        if start in done:
            continue
        # Depth first without recursion: the trail is the way from the start to the machine that is looked at.
        trail: list[Step] = []
        entered = {start: 0}
        pending = [iter(_steps(start, uses[start], demanded))]
        while pending:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                left = trail.pop().to if trail else start
                done.add(left)
                del entered[left]
            elif step.to in entered:
                found.append([*trail[entered[step.to] :], step])
            elif step.to in uses and step.to not in done:
                trail.append(step)
                entered[step.to] = len(trail)
                pending.append(iter(_steps(step.to, uses[step.to], demanded)))
    return found


def _steps(machine: str, uses: Sequence[Edge], demanded: Collection[str]) -> list[Step]:
    """The machines that ``machine`` waits for, each once."""
    by_target: dict[str, list[Edge]] = {}
    for edge in uses:
        if not edge.star and not edge.lazy and edge.to not in demanded:
            by_target.setdefault(edge.to, []).append(edge)
    return [Step(machine, to, tuple(edges)) for to, edges in by_target.items()]
