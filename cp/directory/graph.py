"""Pictures of a directory: machines are the nodes, edges and links carry the local name that the machine uses.

Every function returns text that ends with a newline. The names in a directory that was loaded need no escaping, but
what is drawn is not trusted to have been loaded.
"""

from collections.abc import Callable, Iterator
from typing import Any

from attrs import asdict

from retinue.cp.directory.model import STAR_SERVICES, Budget, Directory, Edge, LinkedDisk, MachineEntry
from retinue.cp.directory.order import start_order


def text(directory: Directory) -> str:
    """A tree for a terminal, from the machines that nobody uses down along the edges; a machine's links come first.

    A machine that has been drawn already is marked ``(above)`` and its own edges are not repeated.
    """
    machines = {machine.name: machine for machine in directory.machines}
    drawn: set[str] = set()
    count = len(directory.machines)
    lines = [f"system {_plain(directory.system.name)}: {count} machine{'s' if count != 1 else ''}"]
    for root in _roots(directory, drawn):
        # Each entry is what stands before the node's own branch, the branch, what stands before its children, the node.
        pending: list[tuple[str, str, str, Edge]] = [("", "", "", Edge("", root.name))]
        while pending:
            before, branch, below, edge = pending.pop()
            marks = list(_marks(directory, machines.get(edge.to)))
            if edge.lazy:
                marks.append("lazy")
            again = edge.to in drawn
            if again:
                marks.append("above")
            label = f"{_plain(edge.name)}: " if branch else ""
            suffix = f" ({', '.join(marks)})" if marks else ""
            lines.append(f"{before}{branch}{label}{_plain(edge.to)}{suffix}")
            if again or edge.to not in machines:
                continue
            drawn.add(edge.to)
            uses, links = machines[edge.to].uses, machines[edge.to].links
            for index, link in enumerate(links):
                stem = "└═ " if index == len(links) - 1 and not uses else "├═ "
                lines.append(f"{below}{stem}{_plain(_link_label(link))}: {_plain(_linked_disk(link))}")
            for index, used in reversed(list(enumerate(uses))):
                last = index == len(uses) - 1
                stem = ("└" if last else "├") + ("╌ " if used.lazy else "─ ")
                pending.append((below, stem, below + ("   " if last else "│  "), used))
    return "\n".join(lines) + "\n"


def mermaid(directory: Directory) -> str:
    """A Mermaid flowchart, for Markdown pages."""
    # Identifiers are made up: Mermaid gives some words, such as "end", a meaning of their own.
    ids = {machine.name: f"m{index}" for index, machine in enumerate(directory.machines)}
    lines = ["flowchart TD"]
    for machine in directory.machines:
        marks = "".join(f"<br/>({mark})" for mark in _marks(directory, machine))
        lines.append(f'    {ids[machine.name]}["{_entities(machine.name)}{marks}"]')
    for index, star in enumerate(_stars(directory)):
        ids[star] = f"s{index}"
        lines.append(f'    {ids[star]}(["{_entities(star)}"])')
    for machine, edge in _edges(directory):
        arrow = "-.->" if edge.lazy else "-->"
        lines.append(f'    {ids[machine.name]} {arrow}|"{_entities(edge.name)}"| {ids[edge.to]}')
    for machine, link in _links(directory):
        label = _entities(f"{_link_label(link)}: {link.disk} ({link.mode})")
        lines.append(f'    {ids[machine.name]} ==>|"{label}"| {ids[link.machine]}')
    return "\n".join(lines) + "\n"


def dot(directory: Directory) -> str:
    """A Graphviz digraph."""
    lines = [f"digraph {_string(directory.system.name)} {{", "    node [shape=box];"]
    for machine in directory.machines:
        marks = list(_marks(directory, machine))
        label = "\n".join([machine.name, *(f"({mark})" for mark in marks)])
        style = ", style=bold" if marks else ""
        lines.append(f"    {_string(machine.name)} [label={_string(label)}{style}];")
    for star in _stars(directory):
        lines.append(f"    {_string(star)} [shape=ellipse];")
    for machine, edge in _edges(directory):
        style = ", style=dashed" if edge.lazy else ""
        lines.append(f"    {_string(machine.name)} -> {_string(edge.to)} [label={_string(edge.name)}{style}];")
    for machine, link in _links(directory):
        label = _string(f"{_link_label(link)}: {link.disk} ({link.mode})")
        ends = f"{_string(machine.name)} -> {_string(link.machine)}"
        lines.append(f"    {ends} [label={label}, style=bold, arrowhead=box];")
    lines.append("}")
    return "\n".join(lines) + "\n"


def as_json(directory: Directory) -> dict[str, Any]:
    """The same as plain values for ``json.dumps``: the system, its machines, its edges and the start order.

    ``storage`` and ``size`` are in bytes, times in seconds, ``cpu`` in processors. What is off, or without a bound,
    is None. ``config`` is left out: it belongs to the program. Of a secret there is only its name.
    """
    return {
        "system": directory.system.name,
        "topology": str(directory.path),
        "syslog": directory.system.syslog,
        "secret": list(directory.system.secret),
        "seal": directory.system.seal,
        "storage": directory.system.storage,
        "idle_page_out": directory.system.idle_page_out or None,
        "paging": None if directory.system.paging is None else asdict(directory.system.paging),
        "machines": [
            {
                "name": machine.name,
                "kind": machine.kind,
                "program": machine.program,
                "command": list(machine.command),
                "threads": machine.threads if machine.kind == "wsgi" else None,
                "network": machine.network,
                "host_sockets": list(machine.host_sockets),
                "storage": machine.storage,
                "segments": machine.most_segments or None,
                "share": machine.share,
                "cpu": machine.cpu or None,
                "restart": machine.restart,
                "pause": machine.pause,
                "backoff": asdict(machine.backoff),
                "restarts": _budget(machine.restarts),
                "essential": machine.essential,
                "instances": machine.instances,
                "start": machine.start,
                "idle": machine.idle if machine.start == "on-demand" else None,
                "watchdog": machine.watchdog or None,
                "grace": machine.grace,
                "replace": machine.replace,
                "reserve": machine.reserve,
                "priority": machine.priority,
                "idle_page_out": _idle_page_out(directory, machine),
                "log": asdict(machine.log),
                "sockets": {socket.name: socket.side for socket in machine.sockets},
                "disks": [
                    {
                        "name": disk.name,
                        "size": disk.size,
                        "temporary": disk.temporary,
                        "linked_by": dict(disk.linked_by),
                    }
                    for disk in machine.disks
                ],
                "secrets": [secret.name for secret in machine.secrets],
            }
            for machine in directory.machines
        ],
        "edges": [
            {
                "from": machine.name,
                "name": edge.name,
                "to": edge.to,
                "limit": edge.limit,
                "lazy": edge.lazy,
                "on_restart": edge.on_restart,
                "overflow": edge.overflow,
            }
            for machine in directory.machines
            for edge in machine.uses
        ],
        "links": [
            {"from": machine.name, "name": link.name, "to": link.machine, "disk": link.disk, "mode": link.mode}
            for machine in directory.machines
            for link in machine.links
        ],
        "groups": [
            {
                "name": group.name,
                "members": list(group.members),
                "strategy": group.strategy,
                "restarts": _budget(group.restarts),
            }
            for group in directory.groups
        ],
        "start_order": [[machine.name for machine in wave] for wave in start_order(directory)],
    }


def _idle_page_out(directory: Directory, machine: MachineEntry) -> float | None:
    own = machine.idle_page_out
    return (directory.system.idle_page_out if own is None else own) or None


def _budget(budget: Budget | None) -> dict[str, float] | None:
    return None if budget is None else asdict(budget)


def _roots(directory: Directory, drawn: set[str]) -> Iterator[MachineEntry]:
    """The machines to start a tree from, until all are drawn: those that nobody uses come first.

    What is left then uses itself in a circle, which takes a lazy edge; that is where the circle is cut open.
    """
    used: Callable[[Edge], bool]
    for used in (lambda edge: True, lambda edge: not edge.lazy):
        targets = {edge.to for _, edge in _edges(directory) if used(edge)}
        for machine in directory.machines:
            if machine.name not in targets and machine.name not in drawn:
                yield machine
    for machine in directory.machines:
        if machine.name not in drawn:
            yield machine


def _edges(directory: Directory) -> Iterator[tuple[MachineEntry, Edge]]:
    """Every edge with the machine it belongs to, but for those whose target does not exist."""
    targets = {*STAR_SERVICES, *(machine.name for machine in directory.machines)}
    for machine in directory.machines:
        for edge in machine.uses:
            if edge.to in targets:
                yield machine, edge


def _links(directory: Directory) -> Iterator[tuple[MachineEntry, LinkedDisk]]:
    """Every link with the machine it belongs to, but for those to a machine that does not exist."""
    names = {machine.name for machine in directory.machines}
    for machine in directory.machines:
        for link in machine.links:
            if link.machine in names:
                yield machine, link


def _link_label(link: LinkedDisk) -> str:
    return f"link {link.name}"


def _linked_disk(link: LinkedDisk) -> str:
    return f"{link.machine}.{link.disk} ({link.mode})"


def _stars(directory: Directory) -> list[str]:
    """The star services that some machine has an edge to."""
    used = {edge.to for _, edge in _edges(directory)}
    return [star for star in STAR_SERVICES if star in used]


def _marks(directory: Directory, machine: MachineEntry | None) -> Iterator[str]:
    if machine is not None and machine.network:
        yield "network"
    if machine is not None and machine.name == directory.system.syslog:
        yield "syslog"
    if machine is not None and machine.instances > 1:
        yield f"{machine.instances} instances"
    if machine is not None and machine.start != "up":
        yield machine.start


def _plain(word: str) -> str:
    """For a terminal: nothing that it could take for a command."""
    return word if word.isprintable() else word.encode("unicode_escape").decode()


def _entities(word: str) -> str:
    """For Mermaid, whose labels are HTML with entities spelt ``#name;``."""
    return "".join(char if char.isalnum() or char in " *_-.:" else f"#{ord(char)};" for char in word)


def _string(word: str) -> str:
    """For Graphviz, whose only escapes are these."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
