"""What is told of the edges: the meters of both ends, as far as they answer and make sense."""

import pathlib
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from retinue.cp import directory, edges
from retinue.cp.declaration import Declaration
from retinue.cp.edges import Books, checked_meter, survey
from retinue.cp.host.interface import Host
from retinue.cp.system import ControlProgram
from retinue.pipes import Meter, PathSevered, Rejected, SocketTransport, open_path

TOPOLOGY = """
[system]
name = "TEST"
[machines.WEB]
program = "desk"
uses.app = { to = "SHOP", limit = 9, on_restart = "reconnect", overflow = "drop-oldest" }
uses.cp = "*CP"
[machines.SHOP]
program = "desk"
"""


def meter(**counts: Any) -> dict[str, Any]:
    return Meter().as_dict() | counts


@pytest.fixture
async def cp(tmp_path: pathlib.Path) -> AsyncIterator[ControlProgram]:
    """A control program that runs nothing; machines answer as the test says."""
    (tmp_path / "desk.py").write_text("async def main(vm):\n    pass\n")
    (tmp_path / "test.toml").write_text(TOPOLOGY)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            made = ControlProgram(
                Declaration(directory.load(tmp_path / "test.toml")), cast(Host, None), tmp_path, nursery
            )
            nursery.start_soon(made.switchboard.watch)
            await trio.testing.wait_all_tasks_blocked()
            yield made
            nursery.cancel_scope.cancel()


def answering(cp: ControlProgram, name: str, answer: Any) -> None:
    async def meters() -> Any:
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await trio.sleep_forever()
        return answer

    cp.lives[name].meters = meters  # type: ignore[method-assign]


async def test_edges_are_told_with_the_meters_of_both_ends(cp: ControlProgram) -> None:
    """In the order of the topology; a machine that has no path along an edge has a meter of nothing."""
    answering(cp, "WEB", {"uses": {"app": meter(sent=3)}, "serves": {}})
    answering(cp, "SHOP", {"uses": {}, "serves": {"WEB.app": meter(received=3)}})
    about = {"from": "WEB", "name": "app", "to": "SHOP", "limit": 9}
    policies = {"on_restart": "reconnect", "overflow": "drop-oldest"}
    star = {"from": "WEB", "name": "cp", "to": "*CP", "limit": 64, "on_restart": None, "overflow": None}
    assert await survey(cp) == [
        {**about, **policies, "paths": 0, "meters": {"from": meter(sent=3), "to": meter(received=3)}},
        {**star, "paths": 0, "meters": {"from": meter(), "to": meter()}},
    ]


async def test_star_services_have_meters_as_well(cp: ControlProgram) -> None:
    """Over open paths and those that have ended."""
    answering(cp, "WEB", {"uses": {}, "serves": {}})
    answering(cp, "SHOP", {"uses": {}, "serves": {}})
    edge = cp.topology.machine("WEB").uses[1]
    for number in 1, 3:
        made = await cp.switchboard.connect("WEB", 1, edge, wait=True)
        assert made.ident > 0
        async with open_path(SocketTransport(socket.socket(fileno=made.descriptor))) as path:
            await path.call(["ps", {}])
            found = (await survey(cp))[1]
            assert (found["paths"], found["meters"]["to"]["received"]) == (1, number)
            assert (await path.call(["edges", {}]))["edges"][1]["name"] == "cp"
        await trio.testing.wait_all_tasks_blocked()
    answering(cp, "WEB", Rejected("not-ready", "it has no process"))
    found = (await survey(cp))[1]
    assert (found["paths"], found["meters"]["to"]["received"], found["meters"]["from"]) == (0, 4, None)


@pytest.mark.parametrize("silence", [None, Rejected("not-ready", "WEB is STARTING"), PathSevered("lost")])
async def test_machine_that_does_not_answer(
    cp: ControlProgram, silence: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has no meters; the other end's are told all the same, after a bounded time."""
    monkeypatch.setattr(edges, "METERS_TIME", 0.01)
    answering(cp, "WEB", silence)
    answering(cp, "SHOP", {"uses": {}, "serves": {"WEB.app": meter(received=3)}})
    app, star = await survey(cp)
    assert app["meters"] == {"from": None, "to": meter(received=3)}
    assert star["meters"] == {"from": None, "to": meter()}


@pytest.mark.parametrize(
    "untrusted",
    [
        *(None, [], 5, {}, "meter"),
        {name: count for name, count in meter().items() if name != "sent"},
        meter(more=1),
        meter(sent="5"),
        meter(sent=True),
        meter(sent=-1),
        meter(latency=None),
        meter(latency=[0] * 31),
        meter(latency=["0"] * 32),
    ],
)
async def test_meter_that_is_none_is_left_out(cp: ControlProgram, untrusted: Any) -> None:
    """Whatever a machine says of its edges, nobody else is harmed."""
    assert checked_meter(untrusted) is None
    answering(cp, "WEB", {"uses": {"app": untrusted}, "serves": {}})
    answering(cp, "SHOP", {"uses": {}, "serves": {"WEB.app": untrusted}})
    assert (await survey(cp))[0]["meters"] == {"from": None, "to": None}


@pytest.mark.parametrize("untrusted", [None, 5, [], {}, {"uses": 1, "serves": []}, {"uses": {5: 5}, "serves": {}}])
def test_books_that_are_none_are_empty(untrusted: Any) -> None:
    """As if nothing had passed."""
    books = Books(untrusted)
    assert books.of_use("app") == books.of_service("WEB.app") == meter()


def test_meter_of_a_machine_is_taken_as_it_is() -> None:
    """With all its counts."""
    whole = {name: count + 1 for name, count in meter().items() if name != "latency"} | {"latency": list(range(32))}
    assert checked_meter(whole) == whole
