"""What has to be done to a running system so that it becomes what another topology declares.

Nothing is done here. What is the same in both topologies is left alone.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from attrs import evolve, frozen

from retinue.cp.directory import Directory, MachineEntry, code_folders, start_order
from retinue.cp.directory.definition import NONE, Difference, differences, group_keys, machine_keys, system_keys
from retinue.cp.directory.order import on_demand
from retinue.cp.redaction import Redaction

Kind = Literal["impossible", "system", "set", "add", "replace", "reload", "remove"]

#: What changes while the machine runs: only the control program and the host know of it.
SETTINGS: Final = (
    *("storage", "share", "cpu", "restart", "pause", "restarts", "essential", "start", "idle", "watchdog", "grace"),
    *("replace", "reserve", "priority", "idle_page_out", "log"),
)

# What the processes of a system are made with, and the reason.
_LASTING: Final = {
    "name": "the folders, the lock and the users of the running system have its name",
    "preload": "modules are imported once, before any machine starts",
    "seal": "the seal is tried once, before any machine starts",
    "paging": "the paging volume is opened once, before any machine starts",
}
_NO_NETWORK: Final = "no machine had the network when the system started, and such machines are prepared for then"


@frozen
class Change:
    """One thing to do.

    ``machine`` is the name of a machine, or empty for the system as a whole. ``why`` says what differs, each as
    ``share: 100 -> 200``. ``line`` is where it stands: in the topology that is to be, but for what only the other has.

    ==========  ==========================================================
    impossible  the system has to go down and up for it
    system      it is about all machines, or about groups
    set         it is done in place, and the machine does not notice
    add         the machine is started
    replace     a successor takes the place of the machine
    reload      the machine takes a new config, or is replaced if it cannot
    remove      the machine is stopped
    ==========  ==========================================================
    """

    kind: Kind
    machine: str
    why: tuple[str, ...]
    line: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``; the machine of a change of the system is None."""
        return {"kind": self.kind, "machine": self.machine or None, "why": list(self.why), "line": self.line}


def changes(before: Directory, after: Directory) -> tuple[Change, ...]:
    """What makes a system of ``before`` one of ``after``, in the order in which to do it; nothing if they are the same.

    First comes what makes it impossible, then what is done in place. Then machines are added and replaced, servers
    before their users, and at last those are removed that nobody uses any more. Each instance is a machine. A
    ``before`` without machines is a system that does not run.
    """
    before, after = before.expanded(), after.expanded()
    loser = next((machine.name for machine in before.machines if machine.network), "")
    gainer = next((machine.name for machine in after.machines if machine.network and machine.name != loser), "")
    late = _users(after, gainer)

    def turn(change: Change) -> int:
        match change.kind:
            case "impossible" | "system" | "set":
                return ("impossible", "system", "set").index(change.kind)
            case "remove":
                # One machine has the network: who has it lets it go before another takes it.
                return 3 if gainer and change.machine == loser else 6
            case _:
                return 5 if loser and change.machine in late else 4

    made = [*_system_changes(before, after), *_machine_changes(before, after), *_removals(before, after)]
    for at, change in enumerate(made):
        if gainer and change.machine == gainer and not loser and before.machines:
            made[at] = evolve(change, kind="impossible", why=(*change.why, _NO_NETWORK))
        elif gainer and change.machine == gainer and loser in late:
            reason = f"{loser} has the network until it is replaced, and its successor waits for {gainer}"
            made[at] = evolve(change, kind="impossible", why=(*change.why, reason))
    return tuple(sorted(made, key=turn))


def _users(directory: Directory, machine: str) -> set[str]:
    """The machines that start after this one because of it, and itself."""
    found = {machine}
    demanded = on_demand(directory.machines)
    for wave in start_order(directory):
        for user in wave:
            if any(edge.to in found and not edge.lazy and edge.to not in demanded for edge in user.uses):
                found.add(user.name)
                # Edges name what stands in the file.
                found.add(user.declared)
    return found


def _system_changes(before: Directory, after: Directory) -> Iterator[Change]:
    for difference in differences(system_keys(before), system_keys(after)):
        line = after.line("system", *difference.path)
        if reason := _LASTING.get(difference.path[0]):
            yield Change("impossible", "", (difference.text, reason), line)
        else:
            yield Change("system", "", (difference.text,), line)
    by_group: dict[str, list[Difference]] = {}
    for difference in differences(group_keys(before), group_keys(after), "groups"):
        by_group.setdefault(difference.path[1], []).append(difference)
    for name, found in by_group.items():
        directory = after if any(group.name == name for group in after.groups) else before
        yield Change("system", "", tuple(each.text for each in found), directory.line(*found[0].path))


def _machine_changes(before: Directory, after: Directory) -> Iterator[Change]:
    """What becomes of the machines of ``after``, in its start order."""
    was = {machine.name: machine for machine in before.machines}
    redaction = Redaction((*before.system.secret, *after.system.secret))
    for wave in start_order(after):
        for machine in wave:
            if machine.name not in was:
                yield _change("add", machine, before, after)
            elif found := list(_differences(before, after, was[machine.name], machine, redaction)):
                line = after.line("machines", machine.declared, *found[0].path)
                yield Change(_kind(machine, found), machine.name, tuple(each.text for each in found), line)


def _removals(before: Directory, after: Directory) -> Iterator[Change]:
    """The machines that ``after`` has not, in the stop order of ``before``."""
    names = {machine.name for machine in after.machines}
    for wave in reversed(start_order(before)):
        for machine in reversed(wave):
            if machine.name not in names:
                yield _change("remove", machine, before, after)


def _change(kind: Kind, machine: MachineEntry, before: Directory, after: Directory) -> Change:
    """A machine that only one of the two has."""
    was, now = (
        sum(other.declared == machine.declared for other in directory.machines) for directory in (before, after)
    )
    name = machine.declared
    if was and now:
        why, line = f"instances: {was} -> {now}", after.line("machines", name, "instances")
    elif now:
        why, line = f"machines.{name}: {NONE} -> {machine.program}", after.line("machines", name)
    else:
        why, line = f"machines.{name}: {machine.program} -> {NONE}", before.line("machines", name)
    return Change(kind, machine.name, (why,), line)


def _kind(machine: MachineEntry, found: list[Difference]) -> Kind:
    """What becomes of a machine with these differences."""
    # Who may link to a disk is asked when a machine links to it, and is nothing to its owner.
    heads = {
        difference.path[0]
        for difference in found
        if difference.path[0] not in SETTINGS
        and (difference.path[0] != "disks" or difference.path[2:3] != ("linked_by",))
    }
    if not heads:
        return "set"
    return "reload" if heads == {"config"} else "replace"


def _differences(
    before: Directory, after: Directory, was: MachineEntry, now: MachineEntry, redaction: Redaction
) -> Iterator[Difference]:
    def hide(config: Any) -> Any:
        return redaction.apply(copy.deepcopy(config)).value

    yield from differences(machine_keys(was, hide), machine_keys(now, hide))
    if before.folder != after.folder and _beside(before, was) != _beside(after, now):
        yield Difference((now.kind,), f"folder: {before.folder} -> {after.folder}")


def _beside(directory: Directory, machine: MachineEntry) -> tuple[str, ...]:
    """The places that a machine depends on and that are relative to the folder of the topology."""
    files = [secret.file for secret in machine.secrets if secret.file is not None]
    if machine.kind == "exec" and machine.program.startswith("./"):
        files.append(machine.program)
    code = () if machine.kind == "exec" else code_folders(directory, machine)
    return (*code, *(str(directory.folder / file) for file in files))


def with_settings(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by key, and these after them: a table takes the place of what was said of its keys, as ``log.rate``."""
    tables = tuple(f"{key}." for key in settings)
    kept = {key: value for key, value in before.items() if key not in settings and not key.startswith(tables)}
    return {**kept, **settings}
