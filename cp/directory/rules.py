"""The rules that no machine of a topology file can break alone.

Each function checks one of them over all machines, right or wrong, and reports what it finds.
"""

import pathlib
from collections.abc import Sequence

from retinue.cp.directory import commands, programs
from retinue.cp.directory.model import STAR_SERVICES, MachineEntry, System
from retinue.cp.directory.names import instance_of
from retinue.cp.directory.order import cycles, on_demand
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.table import Mistakes, did_you_mean, listed, quoted


def check_targets(mistakes: Mistakes, machines: Sequence[MachineEntry]) -> None:
    """Every edge leads to a machine of the file or to a star service."""
    names = [machine.name for machine in machines]
    for machine in machines:
        for edge in machine.uses:
            if edge.to in names or edge.to in STAR_SERVICES:
                continue
            if base := instance_of(edge.to, names):
                message = f"{quoted(edge.to)} is one instance, and an edge leads to all of them"
                hint = f"did you mean {quoted(base)}?"
            elif edge.star:
                message = f"there is no star service {quoted(edge.to)}"
                hint = did_you_mean(edge.to, STAR_SERVICES)
            else:
                message = f"there is no machine {quoted(edge.to)}"
                hint = did_you_mean(edge.to, [name for name in names if name != machine.name])
            path: KeyPath = ("machines", machine.name, "uses", edge.name, "to")
            mistakes.add(path, path[:3], f"{edge.name}: {message}", hint)


def check_syslog(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry]) -> None:
    """The syslog machine exists, and it waits for no other since it starts first."""
    names = [machine.name for machine in machines]
    demanded = on_demand(machines)
    if system.syslog is not None and names and system.syslog not in names:
        message = f"syslog: there is no machine {quoted(system.syslog)}"
        mistakes.add(("system", "syslog"), ("system",), message, did_you_mean(system.syslog, names))
    for machine in machines:
        for edge in machine.uses if machine.name == system.syslog else ():
            if edge.to in names and edge.to not in demanded and not edge.lazy:
                path: KeyPath = ("machines", machine.name, "uses", edge.name)
                message = f"{edge.name}: the syslog machine starts before all others and cannot wait for {edge.to}"
                hint = f'write uses.{edge.name} = {{ to = "{edge.to}", lazy = true }}'
                mistakes.add(path, path[:3], message, hint)


def check_restarts(mistakes: Mistakes, machines: Sequence[MachineEntry]) -> None:
    """A machine that is restarted with its target may be restarted at all, and it is plain when it is."""
    by_name = {machine.name: machine for machine in machines}
    for machine in machines:
        for edge in machine.uses:
            if edge.on_restart != "restart" or edge.star:
                continue
            path: KeyPath = ("machines", machine.name, "uses", edge.name, "on_restart")
            if problem := _not_restarted(mistakes, machine, by_name.get(edge.to)):
                mistakes.add(path, path[:4], f'on_restart is "restart", {problem[0]}', problem[1])


def _not_restarted(mistakes: Mistakes, machine: MachineEntry, target: MachineEntry | None) -> tuple[str, str] | None:
    """Why a machine cannot be restarted with its target, and what would cure it."""
    if machine.restart == "never":
        place = mistakes.place("machines", machine.name, "restart")
        return f"and {machine.name} is never started again ({place})", 'write restart = "on-failure" there'
    if target is not None and target.start == "on-demand":
        place = mistakes.place("machines", target.name, "start")
        order = f"which starts the machine after its target, and {target.name} starts on demand ({place})"
        return order, 'write "keep" or "reconnect"'
    if target is not None and target.instances > 1:
        place = mistakes.place("machines", target.name, "instances")
        return f"and {target.name} has instances ({place}), of which one can die alone", 'write "keep" or "reconnect"'
    return None


def check_network(mistakes: Mistakes, machines: Sequence[MachineEntry]) -> None:
    """At most one machine has the network."""
    connected = [machine.name for machine in machines if machine.network]
    for name in connected[1:]:
        first = connected[0]
        path: KeyPath = ("machines", name, "network")
        place = mistakes.place("machines", first, "network")
        message = f"{name} and {first} ({place}) both have the network, and only one machine can"
        mistakes.add(path, path[:2], message, "let one of them use the other by an edge")


def check_commands(mistakes: Mistakes, machines: Sequence[MachineEntry]) -> None:
    """A native program has the sockets and whatever else its command names, and can be reached by its edges."""
    silent = {
        machine.name: machine
        for machine in machines
        if machine.kind == "exec" and not any(socket.side == "listen" for socket in machine.sockets)
    }
    for machine in machines:
        if machine.kind == "exec":
            commands.check_sockets(mistakes, machine)
            commands.check_command(mistakes, machine)
        for edge in machine.uses:
            path: KeyPath = ("machines", machine.name, "uses", edge.name, "to")
            if edge.star and machine.kind == "exec":
                message = f"{edge.name}: a native program has byte streams, and {edge.to} answers messages"
                mistakes.add(path, path[:3], message, "remove this edge")
            if edge.to in silent:
                message = f"{edge.name}: {edge.to} runs a native program without a socket that others can connect to"
                hint = f'write  sockets.{edge.name} = "listen"  under [machines.{edge.to}], and tell its program'
                mistakes.add(path, path[:3], message, hint)


def check_order(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry]) -> None:
    """The start order has no cycle."""
    # What the syslog machine waits for is a mistake of its own, and no cycle goes through it once that is cured.
    uses = {machine.name: machine.uses for machine in machines if machine.name != system.syslog}
    for cycle in cycles(uses, on_demand(machines)):
        steps = []
        for step in cycle:
            places = [
                f"{edge.name} ({mistakes.place('machines', step.machine, 'uses', edge.name)})" for edge in step.edges
            ]
            steps.append(f"{step.machine} uses {step.to} as {listed(places)}")
        path: KeyPath = ("machines", cycle[0].machine, "uses", cycle[0].edges[0].name)
        message = f"the start order has a cycle: {', '.join(steps)}"
        edge = cycle[-1].edges[0]
        hint = f'make one of them lazy, as in uses.{edge.name} = {{ to = "{edge.to}", lazy = true }}'
        mistakes.add(path, path[:3], message, hint)


def check_programs(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry], folder: pathlib.Path) -> None:
    """Every program can be found and has its entry, and those in ``folder`` lie in a folder of their own."""
    for index, module in enumerate(system.preload):
        if problem := programs.check_preload(module, folder):
            path: KeyPath = ("system", "preload", index)
            mistakes.add(path, ("system",), f"preload: {problem.message}", problem.hint)
    refused = programs.broad(folder)
    for machine in machines:
        if not machine.program:
            continue
        path = ("machines", machine.name, machine.kind)
        if machine.kind == "exec":
            if isinstance(missing := commands.find(machine.program, folder), programs.Problem):
                mistakes.add(path, path[:2], missing.message, missing.hint)
            continue
        if problem := programs.check(machine.kind, machine.program, folder, system.preload):
            mistakes.add(path, path[:2], problem.message, problem.hint)
        if refused and programs.lies_beside(machine.module, folder):
            message = f"the program lies in {folder}, {refused}, and its machine may read all code in it"
            mistakes.add(path, path[:2], message, "put the topology and its programs in a folder of their own")
            # The cure is the same for all machines.
            refused = None
