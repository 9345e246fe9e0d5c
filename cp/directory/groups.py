"""The groups of a topology file, ``[groups.NAME]``: which machines belong together when one of them fails."""

from collections.abc import Mapping, Sequence
from typing import Final, cast, get_args

from retinue.cp.directory.lives import read_budget
from retinue.cp.directory.model import GROUP_BUDGET, Group, MachineEntry, Strategy
from retinue.cp.directory.names import check_name, instance_of, read_word
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.table import Mistakes, Table, did_you_mean, quoted

GROUP_KEYS: Final = ("members", "strategy", "restarts")

_MEMBERS: Final = 'a list of machines and groups such as ["SHOP", "CART"]'


def read_groups(root: Table) -> tuple[Group, ...]:
    """The tables ``[groups.NAME]`` of the document ``root``, right or wrong, in the order of the file."""
    groups = root.table("groups", None, f"a table of groups, as in [groups.FRONT] members = {_MEMBERS[-16:]}")
    return () if groups is None else tuple(_group(groups, name) for name in groups.values)


def _group(groups: Table, name: str) -> Group:
    check_name(groups, name, name, "a group")
    table = groups.table(name, GROUP_KEYS, 'a table, as in [groups.FRONT] members = ["SHOP", "CART"]')
    if table is None:
        return Group(name, ())
    members = tuple(member for _, member in table.words("members", _MEMBERS))
    if not table.given("members") or table.values.get("members") == []:
        table.wrong("members", "the group has no members", f"write members = {_MEMBERS[-16:]}")
    strategy = cast(Strategy, read_word(table, "strategy", get_args(Strategy)) or "one_for_one")
    return Group(name, members, strategy, read_budget(table, 0) or GROUP_BUDGET)


def check_groups(mistakes: Mistakes, groups: Sequence[Group], machines: Sequence[MachineEntry]) -> None:
    """Members exist and are in one group, once; no group contains itself; what a group restarts may be restarted."""
    by_name = {machine.name: machine for machine in machines}
    names = [*by_name, *(group.name for group in groups)]
    held: dict[str, tuple[str, int]] = {}  # by member: its group, and where it is named there
    for group in groups:
        if group.name in by_name:
            message = f"{group.name} is the name of a machine as well ({mistakes.place('machines', group.name)})"
            mistakes.add(("groups", group.name), ("groups", group.name), message, "give one of them another name")
        for index, member in enumerate(group.members):
            if problem := _problem(mistakes, group, member, by_name, names, held):
                path: KeyPath = ("groups", group.name, "members", index)
                mistakes.add(path, path[:2], f"members has {quoted(member)} in it, {problem[0]}", problem[1])
            held.setdefault(member, (group.name, index))
    for cycle in _cycles(groups, held):
        steps = []
        for inner in cycle:
            outer, index = held[inner]
            steps.append(f"{outer} has {inner} ({mistakes.place('groups', outer, 'members', index)})")
        outer, index = held[cycle[0]]
        path = ("groups", outer, "members", index)
        mistakes.add(path, path[:2], f"groups contain each other: {', '.join(steps)}", "remove one of these members")


def _problem(
    mistakes: Mistakes,
    group: Group,
    member: str,
    machines: Mapping[str, MachineEntry],
    names: Sequence[str],
    held: Mapping[str, tuple[str, int]],
) -> tuple[str, str] | None:
    """What is wrong with one member of a group, and what would cure it."""
    if member == group.name:
        return "which is the group itself", "remove it"
    if base := instance_of(member, names):
        return "which is one instance, and a group has all of them", f"did you mean {quoted(base)}?"
    if member not in names:
        others = [name for name in names if name != group.name]
        return "and there is no machine and no group of that name", did_you_mean(member, others)
    if member in held:
        outer, index = held[member]
        if outer == group.name:
            return "which is in it already", "remove one of the two"
        place = mistakes.place("groups", outer, "members", index)
        return f"which is a member of {outer} already ({place})", f"remove one of the two, or make {outer} a member"
    if member in machines and machines[member].restart == "never":
        place = mistakes.place("machines", member, "restart")
        return f"which is never started again ({place})", 'write restart = "on-failure" there, or remove it here'
    return None


def _cycles(groups: Sequence[Group], held: Mapping[str, tuple[str, int]]) -> list[list[str]]:
    """The circles in which groups contain each other, each from inside out; a group that has itself is none."""
    found: list[list[str]] = []
    done: set[str] = set()
    for group in groups:
        trail: list[str] = []
        name = group.name
        while name in held and name not in trail and name not in done:
            trail.append(name)
            name = held[name][0]
        if name in trail and held[name][0] != name:
            found.append(trail[trail.index(name) :])
        done |= {*trail, name}
    return found
