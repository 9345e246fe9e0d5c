import pathlib

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.directory import Directory, Edge, MachineEntry, System, load, start_order
from retinue.cp.directory.order import cycles

GOOD = pathlib.Path(__file__).parents[2] / "topologies" / "good"


def directory(uses: dict[str, list[Edge]], syslog: str | None = None) -> Directory:
    machines = (MachineEntry(name, "program", "x", uses=tuple(edges)) for name, edges in uses.items())
    return Directory(pathlib.Path("/srv/shop/shop.toml"), System("SHOP", syslog=syslog), tuple(machines))


def names(waves: list[list[MachineEntry]]) -> list[list[str]]:
    return [[machine.name for machine in wave] for wave in waves]


def test_start_order_has_servers_first_and_the_syslog_machine_before_them() -> None:
    waves = start_order(load(GOOD / "diamond.toml"))
    assert names(waves) == [["LOG"], ["BOTTOM", "ALONE"], ["LEFT", "RIGHT"], ["TOP"]]


def test_start_order_has_the_syslog_machine_alone_even_if_nobody_uses_it() -> None:
    assert names(start_order(directory({"A": [], "B": [], "LOG": []}, "LOG"))) == [["LOG"], ["A", "B"]]
    assert names(start_order(directory({"A": [], "LOG": []}))) == [["A", "LOG"]]


def test_start_order_ignores_lazy_edges_and_star_services() -> None:
    uses = {"A": [Edge("b", "B", lazy=True), Edge("cp", "*CP"), Edge("log", "*LOG")], "B": [Edge("a", "A")]}
    assert names(start_order(directory(uses))) == [["A"], ["B"]]


def test_start_order_ignores_edges_to_machines_that_start_on_demand() -> None:
    """They themselves start after those they use, when they start."""
    demand = load(GOOD / "demand.toml")
    assert names(start_order(demand)) == [["LOG"], ["ASK"], ["MAIL"]]
    with pytest.raises(ValueError, match="MAIL, ASK"):
        start_order(evolve(demand, machines=tuple(evolve(machine, start="up") for machine in demand.machines)))


def test_start_order_has_every_instance_before_those_who_use_them() -> None:
    assert names(start_order(load(GOOD / "demand.toml").expanded())) == [["LOG"], ["ASK@1", "ASK@2"], ["MAIL"]]


def test_start_order_refuses_a_directory_that_was_not_validated() -> None:
    with pytest.raises(ValueError, match="A, B"):
        start_order(directory({"A": [Edge("b", "B")], "B": [Edge("a", "A")], "C": []}))


def test_start_order_and_cycles_follow_long_chains() -> None:
    """Longer than Python's own stack is deep."""
    uses = {f"M{number}": [Edge("next", f"M{number + 1}")] for number in range(3000)}
    assert cycles(uses) == []
    uses["M3000"] = [Edge("next", "M0")]
    (cycle,) = cycles(uses)
    assert len(cycle) == 3001


def test_cycles_reports_two_circles_that_share_a_machine_as_two() -> None:
    uses = {
        "A": [Edge("b", "B"), Edge("c", "C")],
        "B": [Edge("a", "A")],
        "C": [Edge("a", "A"), Edge("x", "NOBODY"), Edge("cp", "*CP")],
    }
    found = [[(step.machine, step.to) for step in cycle] for cycle in cycles(uses)]
    assert found == [[("A", "B"), ("B", "A")], [("A", "C"), ("C", "A")]]


MACHINES = "ABCDEFG"
edges = st.builds(
    lambda to, lazy: (to, lazy), st.sampled_from([*MACHINES, "*CP", "NOBODY"]), st.sampled_from([False, False, True])
)
graphs = st.fixed_dictionaries({name: st.lists(edges, max_size=4) for name in MACHINES}).map(
    lambda graph: {
        name: [Edge(f"e{at}", to, lazy=lazy) for at, (to, lazy) in enumerate(targets) if to != name]
        for name, targets in graph.items()
    }
)


@given(graphs)
def test_cycles_are_cycles_and_the_order_exists_once_the_last_step_of_each_is_lazy(
    uses: dict[str, list[Edge]],
) -> None:
    found = cycles(uses)
    lazy: set[tuple[str, str]] = set()
    for cycle in found:
        assert [step.to for step in cycle] == [step.machine for step in [*cycle[1:], cycle[0]]]
        assert len({step.machine for step in cycle}) == len(cycle)
        for step in cycle:
            waits = [edge for edge in uses[step.machine] if edge.to == step.to and not edge.lazy]
            assert list(step.edges) == waits != []
        lazy |= {(cycle[-1].machine, edge.name) for edge in cycle[-1].edges}
    cured = {
        name: [Edge(edge.name, edge.to, lazy=edge.lazy or (name, edge.name) in lazy) for edge in targets]
        for name, targets in uses.items()
    }
    assert cycles(cured) == []
    waves = names(start_order(directory(cured)))
    wave_of = {name: number for number, wave in enumerate(waves) for name in wave}
    assert sorted(wave_of) == sorted(MACHINES)
    for name, targets in cured.items():
        for edge in targets:
            if not edge.lazy and edge.to in wave_of:
                assert wave_of[edge.to] < wave_of[name]
    if found:
        with pytest.raises(ValueError, match="cycle"):
            start_order(directory(uses))
