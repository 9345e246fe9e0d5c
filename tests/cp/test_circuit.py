"""How many paths there may be, and for whom."""

import pytest

from retinue.cp import circuit
from retinue.cp.circuit import Circuit, Circuits
from retinue.cp.directory import Edge
from retinue.pipes import Rejected


def test_one_machine_cannot_take_all_paths_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets as many as are left for others; what it gives back others can have, and other targets are not full."""
    monkeypatch.setattr(circuit, "MAX_TAKEN", 16)
    circuits = Circuits(lambda _: None)
    refusals: list[tuple[str, str]] = []

    def take(origin: str, target: str = "SHOP") -> list[Circuit]:
        """As many paths as it can get."""
        taken: list[Circuit] = []
        while True:
            one = Circuit(origin, 1, Edge("x", target))
            circuits.add(one)
            try:
                circuits.use(one)
            except Rejected as exc:
                refusals.append((exc.code, exc.text))
                circuits.forget(one)
                return taken
            taken.append(one)

    first = take("GREEDY")
    second = take("ALSO")
    assert (len(first), len(second)) == (8, 4)
    assert len(take("LATE")) == 2
    assert len(take("GREEDY", "OTHER")) == 8
    assert take("GREEDY") == []
    for one in first:
        circuits.forget(one)
    assert len(take("LATE")) == 4
    assert refusals[0] == ("exhausted", "8 paths lead to SHOP: GREEDY has its share of 16")
    assert circuits.opened["GREEDY"] == 8
