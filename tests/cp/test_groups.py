"""What is done when a machine fails: groups, their strategies, and the budgets of restarts."""

import pathlib

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.directory import Budget, Directory, Edge, Group, MachineEntry, System, start_order
from retinue.cp.directory.model import Strategy
from retinue.cp.groups import GroupPolicy, Verdict


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def machine(name: str, uses: str = "", instances: int = 1, restarts: Budget | None = None) -> MachineEntry:
    edges = tuple(Edge(target.lower(), target) for target in uses)
    return MachineEntry(name, "program", "x", uses=edges, instances=instances, restarts=restarts)


def topology(machines: list[MachineEntry], *groups: Group) -> Directory:
    return Directory(pathlib.Path("/srv/shop/shop.toml"), System("SHOP"), tuple(machines), groups=groups)


def policy(machines: str | list[MachineEntry], *groups: Group) -> tuple[GroupPolicy, Clock]:
    """One of these machines, or of those with these letters, each of which uses the next one."""
    if isinstance(machines, str):
        machines = [machine(name, machines[at + 1 : at + 2]) for at, name in enumerate(machines)]
    clock = Clock()
    return GroupPolicy(topology(machines, *groups), clock), clock


def test_machine_without_a_group_is_alone() -> None:
    groups, _ = policy("AB", Group("G", ("B",)))
    assert [groups.failed("A") for _ in range(100)] == [Verdict(("A",), (), "")] * 100


def test_failure_of_a_machine_that_is_not_there_is_an_error() -> None:
    groups, _ = policy("AB")
    with pytest.raises(KeyError):
        groups.failed("C")


@pytest.mark.parametrize(
    ("strategy", "failed", "restart"),
    [
        ("one_for_one", "C", "C"),
        ("one_for_all", "C", "CABDE"),
        ("rest_for_one", "B", "BACE"),
        ("rest_for_one", "E", "E"),
        ("rest_for_one", "D", "DABCE"),
    ],
)
def test_strategies_restart_what_they_say_in_the_order_to_stop_it(strategy: str, failed: str, restart: str) -> None:
    """A uses B, which uses C, and so on: A is stopped first. The members stand in another order."""
    groups, _ = policy("ABCDEF", Group("G", tuple("DBCAE"), strategy))  # type: ignore[arg-type]
    verdict = groups.failed(failed)
    assert (verdict.restart, verdict.broken) == (tuple(restart), ())
    why = f"{failed} failed, and the group G is {strategy}"
    assert verdict.why == (why if len(restart) > 1 else "")


def test_budget_is_spent_within_its_window_and_not_before() -> None:
    groups, clock = policy("AB", Group("G", ("A", "B"), restarts=Budget(2, 10.0)))
    assert groups.failed("A").restart == ("A",)
    clock.now += 9.0
    assert groups.failed("B").restart == ("B",)
    clock.now += 1.0  # the first one does not count any more
    assert groups.failed("A").restart == ("A",)
    clock.now += 7.0
    assert groups.failed("B") == Verdict((), ("B", "A"), "B failed, after 2 restarts within 10s in the group G")


def test_group_without_restarts_fails_at_once() -> None:
    groups, _ = policy("AB", Group("G", ("A", "B"), restarts=Budget(0, 1.0)))
    assert groups.failed("B") == Verdict((), ("B", "A"), "B failed, after 0 restarts within 1s in the group G")


def test_group_that_fails_is_restarted_by_the_one_that_contains_it_and_begins_anew() -> None:
    inner = Group("INNER", ("A", "B"), restarts=Budget(1, 10.0))
    outer = Group("OUTER", ("INNER", "C"), restarts=Budget(1, 100.0))
    groups, _ = policy("ABCD", inner, outer)
    assert groups.failed("A").restart == ("A",)
    assert groups.failed("B") == Verdict(
        ("B", "A"), (), "B failed, after 1 restart within 10s in the group INNER, and the group OUTER is one_for_one"
    )
    assert groups.failed("A").restart == ("A",)
    assert groups.failed("B") == Verdict(
        (),
        ("B", "A", "C"),
        "B failed, after 1 restart within 10s in the group INNER, after 1 restart within 100s in the group OUTER",
    )


def test_strategy_of_the_outer_group_holds_for_a_member_that_is_a_group() -> None:
    inner = Group("INNER", ("B", "C"), restarts=Budget(0, 10.0))
    for strategy, of_b, of_a in (
        ("one_for_all", "BACD", "ABCD"),
        ("rest_for_one", "BCD", "ABCD"),
        ("one_for_one", "BC", "A"),
    ):
        outer = Group("OUTER", ("A", "INNER", "D"), strategy)  # type: ignore[arg-type]
        groups, _ = policy("ABCD", inner, outer)
        assert groups.failed("B").restart == tuple(of_b)
        assert groups.failed("A").restart == tuple(of_a)


def test_group_that_is_restarted_with_another_member_begins_anew() -> None:
    inner = Group("INNER", ("B", "C"), restarts=Budget(1, 10.0))
    outer = Group("OUTER", ("A", "INNER"), "rest_for_one", Budget(5, 10.0))
    groups, _ = policy("ABC", inner, outer)
    for _ in range(3):
        assert groups.failed("B").restart == ("B",)
        assert groups.failed("A").restart == ("A", "B", "C")


def test_instances_fail_one_by_one_in_the_group_of_their_machine() -> None:
    machines = [machine("A", "B"), machine("B", instances=3), machine("C")]
    for strategy, restart in (
        ("one_for_one", ("B@2",)),
        ("rest_for_one", ("B@2", "C")),
        ("one_for_all", ("B@2", "A", "C", "B@3", "B@1")),
    ):
        groups, _ = policy(machines, Group("G", ("A", "B", "C"), strategy))  # type: ignore[arg-type]
        assert groups.failed("B@2").restart == restart
    assert policy(machines, Group("G", ("A", "B"), "rest_for_one"))[0].failed("A").restart == (
        *("A", "B@3", "B@2", "B@1"),
    )
    assert policy(machines)[0].failed("B@3").restart == ("B@3",)


def test_own_budget_gives_up_the_machine_with_what_its_group_restarts_with_it() -> None:
    for strategy, broken in (("one_for_one", "B"), ("rest_for_one", "BC"), ("one_for_all", "BAC")):
        machines = [machine("A", "B"), machine("B", "C", restarts=Budget(1, 60.0)), machine("C")]
        groups, clock = policy(machines, Group("G", ("A", "B", "C"), strategy))  # type: ignore[arg-type]
        assert groups.failed("B").restart == tuple(broken)
        clock.now += 59.0
        assert groups.failed("B") == Verdict((), tuple(broken), "B failed after 1 restart within 1m of its own")
    alone, _ = policy([machine("A", restarts=Budget(2, 60.0))])
    assert [alone.failed("A").restart for _ in range(3)] == [("A",), ("A",), ()]


def test_what_was_given_up_stays_so_until_somebody_wants_it() -> None:
    groups, clock = policy("ABC", Group("G", ("A", "B", "C"), "one_for_all", Budget(1, 10.0)))
    groups.failed("A")
    assert groups.failed("A").broken == ("A", "B", "C")
    clock.now += 1000.0
    assert groups.failed("B") == Verdict((), ("B",), "B was given up")
    groups.renew("B")
    assert groups.failed("B").restart == ("B",)
    groups.renew("C")
    assert groups.failed("C").restart == ("C", "B")


def test_another_topology_keeps_what_has_been_spent() -> None:
    group = Group("G", ("A", "B"), restarts=Budget(2, 10.0))
    groups, _ = policy("AB", group)
    groups.failed("A")
    groups.change(topology([machine("A"), machine("C")], Group("G", ("A", "C"), restarts=Budget(2, 10.0))))
    assert groups.failed("C").restart == ("C",)
    assert groups.failed("C").broken == ("C", "A")
    with pytest.raises(KeyError):
        groups.failed("B")
    groups.change(topology([machine("A"), machine("B")]))
    assert groups.failed("A").broken == ("A",)


NAMES = "ABCDEF"
budgets = st.builds(Budget, st.integers(0, 4), st.sampled_from([1.0, 5.0, 20.0]))
own_budgets = st.none() | st.builds(Budget, st.integers(1, 4), st.sampled_from([1.0, 5.0, 20.0]))
strategies: st.SearchStrategy[Strategy] = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])


@st.composite
def topologies(draw: st.DrawFn) -> Directory:
    """A topology of six machines, each of which may use later ones, in groups that may contain each other."""
    machines = []
    for at, name in enumerate(NAMES):
        uses = "".join(draw(st.sets(st.sampled_from(NAMES[at + 1 :]), max_size=2))) if at < 5 else ""
        machines.append(machine(name, uses, draw(st.sampled_from([1, 1, 1, 3])), draw(own_budgets)))
    free = list(NAMES)
    groups: list[Group] = []
    for number in range(draw(st.integers(0, 4))):
        members = draw(st.lists(st.sampled_from(free), min_size=1, max_size=3, unique=True)) if free else []
        if members:
            free = [*(name for name in free if name not in members), f"G{number}"]
            groups.append(Group(f"G{number}", tuple(members), draw(strategies), draw(budgets)))
    return topology(machines, *draw(st.permutations(groups)))


def outermost(directory: Directory, machine: str) -> set[str]:
    """All machines in the group around this one that no other contains."""
    outer = {member: group.name for group in directory.groups for member in group.members}
    members = {group.name: group.members for group in directory.groups}
    name = machine.partition("@")[0]
    if name not in outer:
        return {machine}
    while name in outer:
        name = outer[name]
    inside, pending = set[str](), [name]
    while pending:
        name = pending.pop()
        pending += members.get(name, ())
        inside.update(directory.instances(name) if name not in members else ())
    return inside


def most_within(times: list[float], window: float) -> int:
    return max((sum(1 for other in times if at <= other < at + window) for at in times), default=0)


happenings = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0, 4.0])), max_size=60)


@given(topologies(), happenings)
def test_verdicts_keep_to_the_outermost_group(directory: Directory, failures: list[tuple[int, float]]) -> None:
    clock = Clock()
    groups = GroupPolicy(directory, clock)
    names = [entry.name for entry in directory.expanded().machines]
    order = [entry.name for wave in start_order(directory.expanded()) for entry in wave][::-1]
    broken: set[str] = set()
    for choice, pause in failures:
        clock.now += pause
        failed = names[choice % len(names)]
        verdict = groups.failed(failed)
        named = verdict.restart or verdict.broken
        assert not (verdict.restart and verdict.broken)
        assert named[0] == failed
        assert set(named) <= outermost(directory, failed)
        assert list(named[1:]) == [name for name in order if name in named[1:]]
        assert not set(verdict.restart) & broken
        assert bool(verdict.why) == (len(named) > 1 or bool(verdict.broken))
        broken.update(verdict.broken)


class Supervisor:
    """What OTP has for a group: a process that remembers its restarts, and which another takes the place of."""

    def __init__(self, directory: Directory, group: Group) -> None:
        self._directory, self._group = directory, group
        self._restarts: list[float] = []
        inner = {found.name: found for found in directory.groups}
        self.children = {name: Supervisor(directory, inner[name]) if name in inner else name for name in group.members}

    def machines(self) -> set[str]:
        return {name for child in self.children for name in self.machines_of(child)}

    def machines_of(self, name: str) -> set[str]:
        child = self.children[name]
        return child.machines() if isinstance(child, Supervisor) else set(self._directory.instances(child))

    def failed(self, machine: str, now: float) -> set[str] | None:
        """The machines that are started again; None if it ends itself."""
        (at,) = (name for name in self.children if machine in self.machines_of(name))
        child = self.children[at]
        restarted = child.failed(machine, now) if isinstance(child, Supervisor) else None
        if restarted is not None:
            return restarted
        self._restarts = [then for then in (*self._restarts, now) if then > now - self._group.restarts.within]
        if len(self._restarts) > self._group.restarts.most:
            return None
        names = list(self.children)
        if self._group.strategy == "one_for_one":
            names = [at]
        elif self._group.strategy == "rest_for_one":
            names = names[names.index(at) :]
        fresh = Supervisor(self._directory, self._group)
        self.children |= {name: fresh.children[name] for name in names}
        whole = {name for other in names for name in self.machines_of(other)}
        if isinstance(child, str) and self._group.strategy != "one_for_all":
            whole -= self.machines_of(at) - {machine}
        return whole


@given(topologies(), happenings)
def test_groups_do_what_supervisors_of_otp_do(directory: Directory, failures: list[tuple[int, float]]) -> None:
    """With objects that are thrown away and made again, instead of counts that are forgotten."""
    directory = evolve(directory, machines=tuple(evolve(entry, restarts=None) for entry in directory.machines))
    clock = Clock()
    groups = GroupPolicy(directory, clock)
    inner = {member for group in directory.groups for member in group.members}
    trees = [Supervisor(directory, group) for group in directory.groups if group.name not in inner]
    names = [entry.name for entry in directory.expanded().machines]
    for choice, pause in failures:
        clock.now += pause
        failed = names[choice % len(names)]
        verdict = groups.failed(failed)
        tree = next((tree for tree in trees if failed in tree.machines()), None)
        if tree is None:
            assert verdict.restart == (failed,)
            continue
        expected = tree.failed(failed, clock.now)
        if expected is None:
            assert set(verdict.broken) == tree.machines()
            break
        assert set(verdict.restart) == expected


@given(st.permutations(NAMES), strategies, budgets, happenings)
def test_restarts_of_a_group_are_within_its_budget(
    members: list[str], strategy: Strategy, budget: Budget, failures: list[tuple[int, float]]
) -> None:
    """In any window, whenever it begins."""
    groups, clock = policy(NAMES, Group("G", tuple(members[:4]), strategy, budget))
    granted = []
    for choice, pause in failures:
        clock.now += pause
        if groups.failed(members[choice % 4]).restart:
            granted.append(clock.now)
    assert most_within(granted, budget.within) <= budget.most


@given(topologies(), happenings)
def test_restarts_of_a_machine_are_within_its_own_budget(
    directory: Directory, failures: list[tuple[int, float]]
) -> None:
    clock = Clock()
    groups = GroupPolicy(directory, clock)
    machines = directory.expanded().machines
    granted: dict[str, list[float]] = {}
    for choice, pause in failures:
        clock.now += pause
        failed = machines[choice % len(machines)]
        if groups.failed(failed.name).restart:
            granted.setdefault(failed.name, []).append(clock.now)
    for entry in machines:
        if entry.restarts is not None:
            assert most_within(granted.get(entry.name, []), entry.restarts.within) <= entry.restarts.most


@given(topologies(), happenings, st.integers(0, 60))
def test_successor_of_a_control_program_goes_on_with_the_budgets(
    directory: Directory, failures: list[tuple[int, float]], cut: int
) -> None:
    """What it decides is what its predecessor would have decided."""
    clock = Clock()
    whole = groups = GroupPolicy(directory, clock)
    names = [entry.name for entry in directory.expanded().machines]
    for number, (choice, pause) in enumerate(failures):
        clock.now += pause
        if number == cut:
            groups = GroupPolicy(directory, clock)
            groups.restore(whole.note())
        expected = whole.failed(names[choice % len(names)])
        if groups is not whole:
            assert groups.failed(names[choice % len(names)]) == expected
