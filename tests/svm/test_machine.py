"""The machine as its program sees it; the control program is played by the test."""

import logging
import pathlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import (
    AccessDenied,
    Message,
    Path,
    PathError,
    PathSevered,
    Rejected,
    SocketTransport,
    open_path,
    socket_pair,
    wire,
)
from retinue.svm import ConnectRefused, EdgeNotDeclared, Machine, NoSuchDisk


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert_none_left(before)


class Cp:
    """What the control program does for one machine."""

    def __init__(self, machine: Machine[Any], control: Path, nursery: trio.Nursery) -> None:
        self.machine = machine
        self.control = control
        self.nursery = nursery
        self.asked: list[Any] = []
        self.refusal: Rejected | None = None
        self.hold = trio.Event()
        self.hold.set()
        self.servers: list[Path] = []

    async def answer(self, message: Message) -> None:
        self.asked.append(message.body)
        await self.hold.wait()
        match message.body:
            case ["ready", {}]:
                return
            case ["connect", {"edge": str(), "wait": bool()}]:
                if self.refusal is not None:
                    raise self.refusal
                theirs, ours = socket_pair()
                with theirs:
                    path = Path(SocketTransport(ours), name="server")
                    await self.nursery.start(path.run)
                    self.servers.append(path)
                    await message.reply(None, descriptors=(theirs.fileno(),))
                return
        raise AssertionError(f"the machine asked for {message.body}")

    @asynccontextmanager
    async def offer(self, peer: str = "CALLER", limit: int = 4) -> AsyncIterator[Path]:
        """Connect to the machine, as another one would."""
        ours, theirs = socket_pair()
        await self.machine.offer(peer, limit, theirs.detach())
        async with open_path(SocketTransport(ours), name="to the machine") as path:
            yield path


@pytest.fixture
async def cp() -> AsyncIterator[Cp]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ours, theirs = socket_pair()
            async with open_path(SocketTransport(ours)) as control, open_path(SocketTransport(theirs)) as other:
                machine: Machine[Any] = Machine(
                    name="SHOP",
                    config=None,
                    edges={"stock": 4, "log": 1},
                    disks={"a": "/disks/SHOP/a"},
                    control=control,
                    nursery=nursery,
                )
                made = Cp(machine, other, nursery)
                nursery.start_soon(other.serve, made.answer)
                yield made
                nursery.cancel_scope.cancel()


# -- what it has -------------------------------------------------------------------------------------------------------


async def test_disks_are_its_own_by_name(cp: Cp) -> None:
    """Any other name is an error that says what would give it one."""
    assert cp.machine.disk("a") == pathlib.Path("/disks/SHOP/a")
    with pytest.raises(NoSuchDisk, match=r'SHOP has no disk "b" \(it has a\).*disks\.b = \{\}') as caught:
        cp.machine.disk("b")
    assert (caught.value.machine, caught.value.disk, caught.value.declared) == ("SHOP", "b", ("a",))


async def test_edges_are_told(cp: Cp) -> None:
    """By their local names, which is all that a program knows of others."""
    assert cp.machine.edges == ("stock", "log")
    assert repr(cp.machine) == "<Machine SHOP>"


async def test_ready_is_told_once(cp: Cp) -> None:
    """However often the program says it."""
    await cp.machine.ready()
    await cp.machine.ready()
    assert cp.asked == [["ready", {}]]


# -- connect -----------------------------------------------------------------------------------------------------------


async def test_connect_gives_a_path_that_works(cp: Cp) -> None:
    """With the edge's name and limit."""
    path = await cp.machine.connect("stock")
    assert (path.name, path.limit) == ("stock", 4)
    assert cp.asked == [["connect", {"edge": "stock", "wait": True}]]

    async def double(message: Message) -> Any:
        return message.body * 2

    cp.nursery.start_soon(cp.servers[0].serve, double)
    assert await path.call(21) == 42
    path.sever()


async def test_connect_along_an_edge_that_is_not_declared(cp: Cp) -> None:
    """Denied without asking anybody; the text holds the line that would allow it."""
    with pytest.raises(EdgeNotDeclared, match=r'uses\.bank = "MACHINE"  under \[machines\.SHOP\]') as caught:
        await cp.machine.connect("bank")
    assert isinstance(caught.value, AccessDenied)
    assert caught.value.declared == ("stock", "log")
    assert cp.asked == []


@pytest.mark.parametrize("code", ["not-ready", "broken", "not-listening", "stopping", "exhausted", "their own"])
async def test_connect_that_is_refused(cp: Cp, code: str) -> None:
    """ConnectRefused with the code and the text."""
    cp.refusal = Rejected(code, "because")
    with pytest.raises(ConnectRefused) as caught:
        await cp.machine.connect("stock", wait=False)
    assert (caught.value.edge, caught.value.code, caught.value.text) == ("stock", code, "because")
    assert cp.asked[-1] == ["connect", {"edge": "stock", "wait": False}]


async def test_connect_that_policy_denies(cp: Cp) -> None:
    """An AccessDenied stays one."""
    cp.refusal = AccessDenied("no such edge")
    with pytest.raises(AccessDenied):
        await cp.machine.connect("stock")


async def test_connect_can_be_given_up(cp: Cp) -> None:
    """A program that waits no longer leaves nothing behind."""
    cp.hold = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cp.machine.connect, "stock")
            await trio.testing.wait_all_tasks_blocked()
            assert len(cp.asked) == 1
            scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert cp.control.session.outstanding == (0, 0)
    cp.hold.set()
    path = await cp.machine.connect("stock")
    assert not path.severed


async def test_connect_when_the_control_program_is_gone(cp: Cp) -> None:
    """A PathSevered, not a wait for ever."""
    cp.control.sever("gone")
    with pytest.raises(PathSevered):
        await cp.machine.connect("stock")


# -- listen ------------------------------------------------------------------------------------------------------------


async def test_listen_gives_accepted_paths_with_the_peers_name(cp: Cp) -> None:
    """The name is the control program's word."""
    incoming = cp.machine.listen()
    async with cp.offer("CALLER", limit=7) as caller:
        path = await anext(incoming)
        assert (path.peer, path.limit) == ("CALLER", 7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.send, "hello")
            assert (await path.receive()).body == "hello"


async def test_caller_that_is_turned_away_learns_why(cp: Cp) -> None:
    """By severing the accepted path."""
    incoming = cp.machine.listen()
    async with cp.offer() as caller:
        (await anext(incoming)).sever("closed-today", "it is Sunday")
        with pytest.raises(PathSevered, match="it is Sunday"):
            await caller.call("x")


async def test_listen_ends_when_the_machine_stops(cp: Cp) -> None:
    """After the paths that were accepted before."""
    incoming = cp.machine.listen()
    async with cp.offer("ONE"), cp.offer("TWO"):
        cp.machine.stop()
        assert [path.peer async for path in incoming] == ["ONE", "TWO"]
        with pytest.raises(Rejected) as caught:
            await cp.machine.offer("THREE", 1, dup())
        assert caught.value.code == "stopping"


def dup() -> int:
    """A descriptor to give away."""
    ours, theirs = socket_pair()
    ours.close()
    return theirs.detach()


async def test_offer_waits_for_a_program_that_listens_a_little_later(cp: Cp) -> None:
    """It may say ready first."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cp.machine.offer, "CALLER", 1, dup())
            await trio.testing.wait_all_tasks_blocked()
            path = await anext(cp.machine.listen())
            await path.wait_severed()


async def test_offer_to_a_program_that_never_listens(cp: Cp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused after some time, with what the program would have to do."""
    monkeypatch.setattr("retinue.svm.machine.LISTEN_PATIENCE", 0.01)
    with pytest.raises(Rejected, match=r"SHOP accepts no paths: its program never called listen\(\)") as caught:
        await cp.machine.offer("CALLER", 1, dup())
    assert caught.value.code == "not-listening"


async def test_offer_that_is_withdrawn_leaves_no_descriptor(cp: Cp) -> None:
    """Before the program listens, and when too many paths wait for it."""
    for _ in range(2):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(150):
                    nursery.start_soon(cp.machine.offer, "CALLER", 1, dup())
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        cp.machine.listen()


async def test_offers_that_wait_when_the_machine_stops_are_refused(cp: Cp) -> None:
    """Those that found no place any more."""
    cp.machine.listen()
    refused = 0

    async def offer() -> None:
        nonlocal refused
        try:
            await cp.machine.offer("CALLER", 1, dup())
        except Rejected as exc:
            refused += exc.code == "stopping"

    async with trio.open_nursery() as nursery:
        for _ in range(150):
            nursery.start_soon(offer)
        await trio.testing.wait_all_tasks_blocked()
        cp.machine.stop()
    assert refused == 150 - 128


# -- serve -------------------------------------------------------------------------------------------------------------


async def test_serve_says_ready_and_answers_every_path(cp: Cp) -> None:
    """One handler for all; the message tells whose it is."""

    async def handler(message: Message) -> Any:
        return [message.path.peer, message.body]

    cp.nursery.start_soon(cp.machine.serve, handler)
    async with cp.offer("ONE") as one, cp.offer("TWO") as two:
        assert await one.call(1) == ["ONE", 1]
        assert await two.call(2) == ["TWO", 2]
        await two.send("one way")
    assert cp.asked == [["ready", {}]]


async def test_serve_finishes_what_is_being_handled_when_the_machine_stops(cp: Cp) -> None:
    """And returns then, not before."""
    go, done = trio.Event(), trio.Event()

    async def handler(message: Message) -> Any:
        await go.wait()
        return message.body

    async def serve() -> None:
        await cp.machine.serve(handler)
        done.set()

    cp.nursery.start_soon(serve)
    async with cp.offer() as caller:
        answers = []

        async def call(number: int) -> None:
            answers.append(await caller.call(number))

        async with trio.open_nursery() as callers:
            for number in range(3):
                callers.start_soon(call, number)
            await trio.testing.wait_all_tasks_blocked()
            cp.machine.stop()
            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            go.set()
        await done.wait()
        assert sorted(answers) == [0, 1, 2]


async def test_serve_returns_at_once_when_nothing_is_being_handled(cp: Cp) -> None:
    """Open paths do not hold it up."""
    done = trio.Event()

    async def serve() -> None:
        await cp.machine.serve(echo)
        done.set()

    cp.nursery.start_soon(serve)
    async with cp.offer() as caller:
        assert await caller.call(1) == 1
        cp.machine.stop()
        await done.wait()


async def echo(message: Message) -> Any:
    return message.body


@pytest.mark.parametrize(
    ("body", "result"),
    [("raise", None), ("unsendable", {1, 2}), ("key", {1: 2}), ("detail", object())],
)
async def test_failing_handler_is_logged_and_the_machine_goes_on(
    cp: Cp, caplog: pytest.LogCaptureFixture, body: str, result: Any
) -> None:
    """An exception, a result that cannot be sent, a refusal that cannot be sent."""

    async def handler(message: Message) -> Any:
        match message.body:
            case "raise":
                raise KeyError("a bug")
            case "detail":
                raise Rejected("no", "", result)
            case "fine":
                return "fine"
        return result

    cp.nursery.start_soon(cp.machine.serve, handler)
    async with cp.offer("CALLER") as caller:
        with caplog.at_level(logging.ERROR), pytest.raises(Rejected) as caught:
            await caller.call(body)
        assert caught.value.code == "failed"
        assert await caller.call("fine") == "fine"
    (record,) = caplog.records
    assert record.getMessage() == "the handler failed on a message from CALLER"
    assert record.exc_info is not None


async def test_refusal_by_the_handler_is_no_failure(cp: Cp, caplog: pytest.LogCaptureFixture) -> None:
    """It is an answer like another."""

    async def handler(_: Message) -> Any:
        raise Rejected("sold-out", "no shoes", {"size": 43})

    cp.nursery.start_soon(cp.machine.serve, handler)
    async with cp.offer() as caller:
        with pytest.raises(Rejected) as caught:
            await caller.call("shoes")
        assert (caught.value.code, caught.value.text, caught.value.detail) == ("sold-out", "no shoes", {"size": 43})
    assert not caplog.records


async def test_hostile_caller_harms_only_its_own_path(cp: Cp, caplog: pytest.LogCaptureFixture) -> None:
    """A record says who broke the protocol; the others are served."""
    cp.nursery.start_soon(cp.machine.serve, echo)
    async with cp.offer("HONEST") as honest:
        assert await honest.call(1) == 1
        for packet in (
            b"\xc1",
            wire.encode([wire.Kind.HELLO, 1, 1]) * 2,
            wire.encode([wire.Kind.HELLO, 1, 1]) + wire.encode([wire.Kind.STREAM]),
            wire.encode([wire.Kind.HELLO, 1, 1]) + wire.encode([wire.Kind.CALL, 1, [[[]]] * 100]),
            b"",
        ):
            ours, theirs = socket_pair()
            with ours:
                await cp.machine.offer("HOSTILE", 1, theirs.detach())
                ours.send(packet)
                await trio.testing.wait_all_tasks_blocked()
                assert await honest.call(2) == 2
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all("HOSTILE broke the protocol" in text for text in told)


async def test_caller_that_withdraws_cancels_the_handler(cp: Cp) -> None:
    """And it counts as finished."""
    begun, over = trio.Event(), trio.Event()

    async def handler(_: Message) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            over.set()

    done = trio.Event()

    async def serve() -> None:
        await cp.machine.serve(handler)
        done.set()

    cp.nursery.start_soon(serve)
    async with cp.offer() as caller:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.call, "x")
                await begun.wait()
                cp.machine.stop()
                await trio.testing.wait_all_tasks_blocked()
                assert not done.is_set()
                scope.cancel()
        await over.wait()
        await done.wait()


# -- stopping ----------------------------------------------------------------------------------------------------------


async def test_program_that_looks_at_stopping_heeds_it(cp: Cp) -> None:
    """So the runtime knows that it need not be cancelled."""
    assert not cp.machine.heeds_stopping
    assert not cp.machine.stopping.is_set()
    assert cp.machine.heeds_stopping
    cp.machine.stop()
    assert cp.machine.stopping.is_set()


async def test_program_that_listens_heeds_stopping(cp: Cp) -> None:
    """It sees the end of listen."""
    cp.machine.listen()
    assert cp.machine.heeds_stopping


def test_connect_refused_is_a_path_error() -> None:
    """A program may treat both alike."""
    assert issubclass(ConnectRefused, PathError)
