"""May one machine reach another? By which edges, which line of which file says so, and what would have to stand there.

A path along an edge carries messages in both directions, so whoever is reached answers, and may also send. What no
edge leads to cannot be reached: there is no descriptor that could be used.
"""

import contextlib
import re
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from retinue.cp.directory import Directory, Edge, MachineEntry
from retinue.cp.directory.model import LOCAL_NAME_LIMIT, STAR_SERVICES
from retinue.cp.directory.order import cycles

# Ways through other machines that are told: the shortest.
WAYS: Final = 5


@attrs.frozen
class MachineState:
    """What a machine is doing now, and why it last ended."""

    state: str
    cause: str | None = None


@attrs.frozen
class Step:
    """One edge, with the ``line`` that declares it. ``why_not`` says why nobody gets through just now, if so."""

    machine: str
    edge: str
    to: str
    line: int
    text: str
    lazy: bool
    usable: bool | None
    why_not: str = ""


@attrs.frozen
class Explanation:
    """Whether ``origin`` may reach ``target``.

    ``direct`` are edges from one to the other, ``back`` edges in the other direction, ``through`` the shortest ways by
    way of others, each a list of edges, ``disks`` the disks of the one that the other may read or write. Without a
    direct edge ``missing`` says what to add, where. All lines are those of the file as it was read; ``stale``
    says that it has changed since.
    """

    origin: str
    target: str
    file: str
    direct: tuple[Step, ...]
    back: tuple[Step, ...]
    through: tuple[tuple[Step, ...], ...]
    disks: tuple[str, ...]
    missing: "Missing | None"
    stale: bool = False

    @property
    def allowed(self) -> bool:
        """Whether there is an edge."""
        return bool(self.direct)

    @property
    def usable(self) -> bool | None:
        """Whether one of the edges leads to somebody who answers now; None when no system was looked at."""
        known = [step.usable for step in self.direct if step.usable is not None]
        return any(known) if known or not self.direct else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for messages and JSON."""
        return {"allowed": self.allowed, "usable": self.usable, **attrs.asdict(self)}


@attrs.frozen
class Missing:
    """What would make a way: ``text`` after line ``after`` of the file, or in the place of line ``instead``.

    ``why`` says why nothing would, or what else is to be known.
    """

    text: str | None
    after: int | None = None
    instead: int | None = None
    why: str = ""


def explain(
    topology: Directory, origin: str, target: str, states: Mapping[str, MachineState] | None = None
) -> Explanation:
    """Whether one machine may reach another, or a star service. Instances are meant by their common name.

    Raises KeyError with the name that is not there, and those that are.
    """
    topology = _declared(topology)
    machines = {machine.name: machine for machine in topology.machines}
    origin, target = (name.partition("@")[0] for name in (origin, target))
    for name, known in ((origin, [*machines]), (target, [*machines, *STAR_SERVICES])):
        if name not in known:
            raise KeyError(name, known)
    lines = topology.text.split("\n")

    def step(machine: MachineEntry, edge: Edge) -> Step:
        line = topology.line("machines", machine.name, "uses", edge.name)
        said = lines[line - 1].strip() if line <= len(lines) else ""
        why_not = None if states is None or edge.star else _trouble(edge.to, states)
        usable = None if states is None else why_not is None
        quoted = said if edge.name in said or edge.to in said else ""
        return Step(machine.name, edge.name, edge.to, line, quoted, edge.lazy, usable, why_not or "")

    def steps(one: str, other: str) -> tuple[Step, ...]:
        return tuple(step(machines[one], edge) for edge in machines[one].uses if edge.to == other)

    direct = steps(origin, target)
    through = [tuple(step(machines[name], edge) for name, edge in way) for way in _ways(machines, origin, target)]
    return Explanation(
        origin,
        target,
        str(topology.path),
        direct,
        steps(target, origin) if target in machines and target != origin else (),
        tuple(through),
        tuple(_disks(machines, origin, target)),
        None if direct else _missing(topology, machines[origin], target, topology.text),
        _has_changed(topology),
    )


def _declared(topology: Directory) -> Directory:
    """The machines as the file declares them, also when those behind one name are listed one by one."""
    declared = {machine.declared: attrs.evolve(machine, name=machine.declared) for machine in topology.machines}
    return attrs.evolve(topology, machines=tuple(declared.values()))


def with_base(names: Iterable[str]) -> list[str]:
    """The names, with the common ones of instances (``SHOP`` of ``SHOP@1``)."""
    return list(dict.fromkeys(each for name in names for each in (name.partition("@")[0], name)))


def _has_changed(topology: Directory) -> bool:
    """Whether the file says something else by now, or is gone."""
    try:
        return topology.path.read_text(encoding="utf-8-sig") != topology.text
    except (OSError, ValueError):
        return True


_GONE: Final = {
    "BROKEN": "it is BROKEN and is not started again by itself: retinue start {name}",
    "STOPPED": "it is STOPPED: retinue start {name}",
    "STOPPING": "it is being stopped",
    "WAITING": "it has died and is started again after a pause; a connect waits for it",
    "ABEND": "it has just died; a connect waits for its successor",
    "STARTING": "it is not ready yet; a connect waits for it",
    "DEFINED": "it has not been started yet; a connect waits for it",
}


def _trouble(name: str, states: Mapping[str, MachineState]) -> str | None:
    """Why a machine, or all behind one name, does not answer now; None if one does (or will, when it is woken)."""
    found = {each: state for each, state in states.items() if each.partition("@")[0] == name}
    if any(state.state in ("READY", "DORMANT", "DRAINING") for state in found.values()):
        return None
    for each, state in found.items():
        text = _GONE.get(state.state, f"it is {state.state}").format(name=each)
        more = f" (it last ended: {state.cause}; retinue why {each})" if state.cause else ""
        return f"{each}: {text}{more}"
    return f"{name} does not run: retinue apply"


def _ways(machines: Mapping[str, MachineEntry], origin: str, target: str) -> list[list[tuple[str, Edge]]]:
    """The shortest ways from one to the other through at least one machine between them."""
    found: list[list[tuple[str, Edge]]] = []
    shortest: int | None = None
    pending: deque[tuple[str, list[tuple[str, Edge]]]] = deque([(origin, [])])
    depth_of = {origin: 0}
    while pending and len(found) < WAYS:
        name, way = pending.popleft()
        if shortest is not None and len(way) >= shortest:
            break
        for edge in machines[name].uses:
            if edge.to == target:
                if way:
                    found.append([*way, (name, edge)])
                    shortest = len(way) + 1
            elif edge.to in machines and depth_of.setdefault(edge.to, len(way) + 1) == len(way) + 1:
                pending.append((edge.to, [*way, (name, edge)]))
    return found[:WAYS]


def _disks(machines: Mapping[str, MachineEntry], origin: str, target: str) -> list[str]:
    """In words, what the two share without a path."""
    return [
        f"{one} may {'read and write' if link.mode == 'rw' else 'read'} the disk {other}.{link.disk}"
        for one, other in ((origin, target), (target, origin))
        if one in machines
        for link in machines[one].links
        if link.machine == other
    ]


# -- what is missing -------------------------------------------------------------------------------------------------


def _missing(topology: Directory, origin: MachineEntry, target: str, text: str) -> Missing:
    """The line that makes an edge, and the line after which it is to stand in the file as it is."""
    machines = {machine.name: machine for machine in topology.machines}
    if target == origin.name:
        return Missing(None, why="a machine has no edge to itself")
    if target.startswith("*") and origin.kind == "exec":
        why = f"{origin.name} runs a native program, which has byte streams, and {target} answers messages"
        return Missing(None, why=why)
    if target in machines and machines[target].kind == "exec" and not _listens(machines[target]):
        why = f"{target} runs a native program without a socket that others can connect to (sockets, listen)"
        return Missing(None, why=why)
    name = _free_name(origin, target)
    value: dict[str, Any] | str = target
    notes = []
    if _waits_in_a_circle(topology, origin, Edge(name, target)):
        value = {"to": target, "lazy": True}
        notes.append(f"It is lazy: {target} starts before {origin.name}, or does not wait for it.")
    if origin.kind == "exec":
        notes.append(f'Its program connects by  sockets.{name} = "connect"  in [machines.{origin.name}].')
    edge = f'{name} = "{target}"' if value == target else f'{name} = {{ to = "{target}", lazy = true }}'
    for after, instead, added in _places(topology, origin.name, text, edge):
        if _makes(text, after, instead, added, origin.name, name, value):
            return Missing(added, after, instead, " ".join(notes))
    line = topology.line("machines", origin.name, "uses")
    return Missing(None, why=f"add  {edge}  to the edges of {origin.name} (line {line}: uses)")


def _places(topology: Directory, name: str, text: str, edge: str) -> list[tuple[int | None, int | None, str]]:
    """Where an edge may stand, and how it is written there: after a line, instead of a line."""
    lines = text.split("\n")
    table, uses = topology.line("machines", name), topology.line("machines", name, "uses")
    inline = lines[uses - 1].rstrip() if uses <= len(lines) else ""
    empty = inline.removesuffix("}").rstrip().endswith("{")
    return [
        (table, None, f"uses.{edge}"),
        (uses, None, edge),
        (None, uses, f"{inline.removesuffix('}').rstrip()}{'' if empty else ','} {edge} }}"),
        (len(text.rstrip("\n").split("\n")), None, f"\n[machines.{name}.uses]\n{edge}"),
        (table, None, f"{name}.uses.{edge}"),
        (table, None, f"machines.{name}.uses.{edge}"),
    ]


def _listens(machine: MachineEntry) -> bool:
    return any(socket.side == "listen" for socket in machine.sockets)


def _free_name(origin: MachineEntry, target: str) -> str:
    """A local name for an edge to it that the machine does not use yet."""
    name = wanted = re.sub(r"[^a-z0-9_]", "", target.lower())[: LOCAL_NAME_LIMIT - 2] or "edge"
    taken = {edge.name for edge in origin.uses}
    number = 2
    while name in taken:
        name, number = f"{wanted}{number}", number + 1
    return name


def _waits_in_a_circle(topology: Directory, origin: MachineEntry, edge: Edge) -> bool:
    """Whether nobody could be started first any more, were this edge not lazy."""
    if edge.star:
        return False
    if origin.name == topology.system.syslog:  # it starts before everybody
        return True
    uses = {machine.name: machine.uses for machine in topology.machines if machine.name != topology.system.syslog}
    uses[origin.name] = (*origin.uses, edge)
    return bool(cycles(uses))


def _makes(text: str, after: int | None, instead: int | None, added: str, machine: str, name: str, value: Any) -> bool:
    """Whether the file says the edge, and nothing else that it did not say, with this text in that place."""
    lines = text.split("\n")
    start, end = (after, after) if after is not None else ((instead or 1) - 1, instead)
    with contextlib.suppress(ValueError, RecursionError, KeyError):
        before = tomllib.loads(text)
        now = tomllib.loads("\n".join([*lines[:start], added, *lines[end:]]))
        if now["machines"][machine]["uses"].pop(name, None) != value:
            return False
        if not now["machines"][machine]["uses"] and "uses" not in before["machines"][machine]:
            del now["machines"][machine]["uses"]
        return bool(now == before)
    return False
