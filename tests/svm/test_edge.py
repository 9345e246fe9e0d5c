"""An edge keeps a record of whoever breaks the protocol on one of its paths, and no log is full of them."""

import logging

import pytest
import trio
import trio.testing

from retinue.pipes import MemoryTransport, Path, memory_pair
from retinue.svm.edge import VIOLATIONS_PAUSE, Edge


async def break_path(edge: Edge, nursery: trio.Nursery, peer: str = "") -> MemoryTransport:
    """A path along the edge that ends because its peer writes what is no frame."""
    ours, theirs = memory_pair()
    path = Path(ours, name="stock", peer=peer)
    await nursery.start(edge.run, path, nursery)
    theirs.send(b"\xc1")
    await path.wait_severed()
    await trio.testing.wait_all_tasks_blocked()
    return theirs


async def test_violations_are_recorded_and_counted(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """The first one at once, those after it together once a second, the last ones when the machine ends."""
    edge = Edge("stock", 4, to="SHOP")
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            (await break_path(edge, nursery)).close()
        assert len(caplog.records) == 1
        await trio.sleep(VIOLATIONS_PAUSE * 3)
        assert [record.__dict__["count"] for record in caplog.records] == [1, 49]
        for _ in range(3):
            (await break_path(edge, nursery)).close()
        nursery.cancel_scope.cancel()
    assert [record.__dict__["count"] for record in caplog.records] == [1, 49, 1, 2]
    first, second = caplog.records[:2]
    rule = first.__dict__["rule"]
    assert first.getMessage() == f"the path stock was severed: SHOP broke the protocol: {rule}"
    assert second.getMessage() == f"49 paths like stock were severed: SHOP broke the protocol, lately: {rule}"
    assert first.levelno == logging.WARNING
    assert (first.__dict__["edge"], first.__dict__["peer"]) == ("stock", "SHOP")


async def test_peer_of_an_accepted_path_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As the control program has stamped it."""
    edge = Edge("WEB.stock", 4)
    async with trio.open_nursery() as nursery:
        (await break_path(edge, nursery, "WEB")).close()
        nursery.cancel_scope.cancel()
    assert "WEB broke the protocol" in caplog.records[0].getMessage()


async def test_accusation_is_no_violation_of_the_accuser(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that says that this end broke the protocol has not broken it thereby."""
    edge = Edge("stock", 4, to="SHOP")
    ours, theirs = memory_pair()
    path, peer = Path(ours, name="stock"), Path(theirs)
    async with trio.open_nursery() as nursery:
        await nursery.start(edge.run, path, nursery)
        await nursery.start(peer.run)
        peer.session.give_up("violation", "nothing at all")
        peer.flush()
        await path.wait_severed()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not caplog.records
