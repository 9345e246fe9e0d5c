"""The machine as its program sees it; the control program is played by the test."""

import contextlib
import logging
import pathlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from retinue.pipes import (
    AccessDenied,
    LimitExceeded,
    Message,
    Path,
    PathError,
    PathSevered,
    Rejected,
    SocketTransport,
    Transport,
    open_path,
    socket_pair,
    wire,
)
from retinue.svm import ConnectRefused, EdgeNotDeclared, Machine, NoSuchDisk
from retinue.svm.edge import Edge

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Cp:
    """What the control program does for one machine."""

    def __init__(self, machine: Machine[Any], control: Path, nursery: trio.Nursery) -> None:
        self.machine = machine
        self.control = control
        self.nursery = nursery
        self.asked: list[Any] = []
        self.refusal: Rejected | None = None
        self.asleep = False
        self.hold = trio.Event()
        self.hold.set()
        self.servers: list[Path] = []
        self.cuts: list[socket.socket] = []  # by path number
        self.ends: list[socket.socket] = []  # for servers that come back

    def cut(self, ident: int = 0) -> None:
        """End the descriptor under a path without a word: the newest, or that of a number."""
        self.cuts[ident - 1].shutdown(socket.SHUT_RDWR)

    def join(self) -> tuple[socket.socket, socket.socket]:
        left, right = socket_pair()
        self.cuts.append(left.dup())
        return left, right

    async def come_back(self, path: Path) -> Transport:
        """A server whose path was cut gets what the machine got the other end of."""
        while not self.ends:
            await trio.testing.wait_all_tasks_blocked(0.001)
        return SocketTransport(self.ends.pop())

    async def answer(self, message: Message) -> None:
        self.asked.append(message.body)
        await self.hold.wait()
        match message.body:
            case ["ready", {}]:
                return
            case ["connect", {"edge": str(), "wait": bool()}]:
                if self.refusal is not None:
                    raise self.refusal
                theirs, ours = self.join()
                with theirs:
                    path = Path(SocketTransport(ours), name="server", rebind=self.come_back)
                    await self.nursery.start(path.run)
                    self.servers.append(path)
                    await message.reply({"path": len(self.cuts)}, descriptors=(theirs.fileno(),))
                return
            case ["rebind", {"path": int(), "stream": bool(), "wanted": bool(wanted)}]:
                if self.refusal is not None:
                    raise self.refusal
                if self.asleep and not wanted:
                    raise Rejected("asleep", "STOCK sleeps")
                theirs, ours = self.join()
                self.ends.append(ours)
                with theirs:
                    await message.reply(None, descriptors=(theirs.fileno(),))
                return
        raise AssertionError(f"the machine asked for {message.body}")

    @asynccontextmanager
    async def offer(self, peer: str = "CALLER", limit: int = 4, **more: Any) -> AsyncIterator[Path]:
        """Connect to the machine, as another one would."""
        ours, theirs = self.join()
        await self.machine.offer(peer, limit, theirs.detach(), **more)
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
                    edges={"stock": Edge("stock", 4), "log": Edge("log", 1, "drop-oldest")},
                    disks={"a": "/disks/SHOP/a"},
                    control=control,
                    nursery=nursery,
                )
                made = Cp(machine, other, nursery)
                nursery.start_soon(other.serve, made.answer)
                yield made
                for each in (*made.cuts, *made.ends):
                    each.close()
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


# -- paths that are cut ------------------------------------------------------------------------------------------------


async def double(message: Message) -> Any:
    return message.body * 2


async def test_path_that_is_cut_is_bound_again(cp: Cp) -> None:
    """By its number, as often as it happens; what is outstanding is answered."""
    path = await cp.machine.connect("stock")
    (server,) = cp.servers
    for number in range(3):
        answers: list[Any] = []

        async def call(body: Any, answers: list[Any] = answers) -> None:
            answers.append(await path.call(body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, number)
            message = await server.receive()
            cp.cut()
            await trio.testing.wait_all_tasks_blocked()
            await message.reply("answered")
        assert answers == ["answered"]
    assert cp.asked[1:] == [["rebind", {"path": 1, "stream": False, "wanted": True}]] * 3
    assert not path.severed
    path.sever()


async def test_byte_stream_that_is_cut_says_so(cp: Cp) -> None:
    """The control program decides by it."""
    path = await cp.machine.connect("stock")
    server = cp.servers[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(path.call, "a stream follows")
        await (await server.receive()).reply()
    stream, other = path.stream(), server.stream()
    await stream.send_all(b"x")
    assert await other.receive_some(1) == b"x"
    cp.cut()
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(b"y")
    assert await other.receive_some(1) == b"y"
    assert cp.asked[-1] == ["rebind", {"path": 1, "stream": True, "wanted": True}]
    path.sever()


@pytest.mark.parametrize("verb", ["call", "send", "send_nowait", "send_many"])
async def test_path_to_a_machine_that_sleeps(cp: Cp, verb: str) -> None:
    """It stays without a descriptor, and asks again when the program has something to say."""
    path = await cp.machine.connect("stock")
    (server,) = cp.servers
    cp.asleep = True
    cp.cut()
    await trio.testing.wait_all_tasks_blocked()
    assert cp.asked[1:] == [["rebind", {"path": 1, "stream": False, "wanted": False}]]
    assert not path.severed
    assert cp.machine.engagements() == {"engaged": 0, "streams": 0}  # nor does it keep this end awake
    async with trio.open_nursery() as nursery:
        match verb:
            case "call":
                nursery.start_soon(path.call, "good morning")
            case "send":
                nursery.start_soon(path.send, "good morning")
            case "send_many":
                nursery.start_soon(path.send_many, ["good morning"])
            case "send_nowait":
                path.send_nowait("good morning")
        message = await server.receive()
        assert message.body == "good morning"
        if verb == "call":
            await message.reply()
    assert cp.asked[2:] == [["rebind", {"path": 1, "stream": False, "wanted": True}]]
    path.sever()


@pytest.mark.parametrize("verb", ["call", "send", "send_nowait"])
async def test_path_that_was_released_and_sleeps(cp: Cp, verb: str) -> None:
    """Also where there is no room, since the one before took no more messages: to ask for room is to want it."""
    path = await cp.machine.connect("stock")
    (server,) = cp.servers
    cp.asleep = True
    await server.release()
    await trio.testing.wait_all_tasks_blocked()
    assert cp.asked[1:] == [["rebind", {"path": 1, "stream": False, "wanted": False}]]
    assert path.held
    async with trio.open_nursery() as nursery:
        match verb:
            case "call":
                nursery.start_soon(path.call, "good morning")
            case "send":
                nursery.start_soon(path.send, "good morning")
            case "send_nowait":
                with pytest.raises(trio.WouldBlock):
                    path.send_nowait("good morning")
        while not cp.ends:
            await trio.testing.wait_all_tasks_blocked(0.001)
        async with open_path(SocketTransport(cp.ends.pop())) as successor:
            if verb == "send_nowait":
                nursery.start_soon(path.call, "good morning")
            message = await successor.receive()
            assert message.body == "good morning"
            assert not message.redelivered
            if message.wants_reply:
                await message.reply()
    assert cp.asked[2:] == [["rebind", {"path": 1, "stream": False, "wanted": True}]]
    path.sever()


@pytest.mark.parametrize("released", [False, True])
async def test_byte_stream_to_a_machine_that_sleeps(cp: Cp, released: bool) -> None:
    """It has not begun at its other end, so that it can begin at the successor's."""
    path = await cp.machine.connect("stock")
    (server,) = cp.servers
    cp.asleep = True
    if released:
        await server.release()
    else:
        server.let_go()
    await trio.testing.wait_all_tasks_blocked()
    stream = path.stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"good morning")
        while not cp.ends:
            await trio.testing.wait_all_tasks_blocked(0.001)
        async with open_path(SocketTransport(cp.ends.pop())) as successor:
            await successor.wait_stream()
            other = successor.stream()
            assert await other.receive_some() == b"good morning"
            await other.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.aclose()
            assert await other.receive_some() == b""
    assert cp.asked[1:] == [["rebind", {"path": 1, "stream": False, "wanted": wanted}] for wanted in (False, True)]


async def test_path_that_sleeps_and_is_severed(cp: Cp) -> None:
    """By its program: nobody is asked for anything."""
    path = await cp.machine.connect("stock")
    cp.asleep = True
    cp.cut()
    await trio.testing.wait_all_tasks_blocked()
    path.sever()
    await path.wait_severed()
    await trio.testing.wait_all_tasks_blocked()
    assert len(cp.asked) == 2


async def test_path_that_is_not_bound_again_ends_with_the_reason(cp: Cp) -> None:
    """The control program's code and text."""
    path = await cp.machine.connect("stock")
    cp.refusal = Rejected("lost", "STOCK died: killed by SIGKILL")

    async def cut() -> None:
        await cp.servers[0].receive()
        cp.cut()

    cp.nursery.start_soon(cut)
    with pytest.raises(PathSevered, match="STOCK died: killed by SIGKILL") as caught:
        await path.call(1)
    assert caught.value.code == "lost"


async def test_accepted_path_is_bound_again_as_well(cp: Cp) -> None:
    """By the number that came with the offer; its handlers are cancelled when it is not."""
    begun, over = trio.Event(), trio.Event()

    async def handler(_: Message) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            over.set()

    cp.nursery.start_soon(cp.machine.serve, handler)
    async with cp.offer(ident=77, edge="CALLER.shop") as caller:
        cp.nursery.start_soon(_ignore_end, caller)
        await begun.wait()
        cp.refusal = Rejected("lost", "CALLER died: exit status 3")
        cp.cut()
        await over.wait()
    assert cp.asked[-1] == ["rebind", {"path": 77, "stream": False, "wanted": False}]


async def _ignore_end(path: Path) -> None:
    with contextlib.suppress(PathError):
        await path.call("x")


async def test_cut_path_without_a_control_program_is_lost(cp: Cp) -> None:
    """A PathSevered, not a wait for ever; also for one that waits already."""
    one, other = await cp.machine.connect("stock"), await cp.machine.connect("stock")
    cp.hold = trio.Event()
    cp.cut(1)
    await trio.testing.wait_all_tasks_blocked()
    assert not one.severed
    cp.control.sever("gone")
    await one.wait_severed()
    cp.cut(2)
    await other.wait_severed()
    for path in one, other:
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == ("lost", "the control program is gone")


async def test_abandoned_machine_leaves_without_a_word(cp: Cp) -> None:
    """As if it had been killed: whoever is at the other end asks the control program what comes of the path."""
    one = await cp.machine.connect("stock")
    cp.machine.listen()
    async with cp.offer(ident=9):
        cp.machine.abandon("SHOP failed")
        await one.wait_severed()
        assert isinstance(one.severed, PathSevered)
        assert (one.severed.code, one.severed.text) == ("lost", "SHOP failed")
        await trio.testing.wait_all_tasks_blocked()
        assert cp.servers[0].severed is None
    assert cp.asked == [["connect", {"edge": "stock", "wait": True}]]


# -- meters and drops --------------------------------------------------------------------------------------------------


async def test_meters_are_kept_over_ended_paths(cp: Cp) -> None:
    """By edge: its own and those of others."""
    cp.nursery.start_soon(cp.machine.serve, echo)
    for _ in range(2):
        path = await cp.machine.connect("stock")
        cp.nursery.start_soon(cp.servers[-1].serve, double)
        for number in range(3):
            assert await path.call(number) == number * 2
        path.sever()
        await trio.testing.wait_all_tasks_blocked()
        async with cp.offer("ONE", edge="ONE.shop") as caller:
            assert await caller.call(5) == 5
    async with cp.offer("TWO", edge="TWO.shop"):
        meters = cp.machine.meters()
    assert {name: meter["sent"] for name, meter in meters["uses"].items()} == {"stock": 6, "log": 0}
    assert {name: meter["received"] for name, meter in meters["serves"].items()} == {"ONE.shop": 2, "TWO.shop": 0}
    assert sum(meters["uses"]["stock"]["latency"]) == 6
    assert meters["uses"]["stock"]["high_water"] == 1


async def test_engagements_are_messages_of_either_end_and_byte_streams(cp: Cp) -> None:
    """Of paths that run: who has none of them disturbs nobody by stopping."""
    go = trio.Event()

    async def wait(message: Message) -> None:
        await go.wait()

    cp.nursery.start_soon(cp.machine.serve, wait)
    assert cp.machine.engagements() == {"engaged": 0, "streams": 0}
    async with cp.offer("ONE", edge="ONE.shop") as caller, trio.open_nursery() as nursery:
        nursery.start_soon(caller.call, None)
        await trio.testing.wait_all_tasks_blocked()
        assert cp.machine.engagements() == {"engaged": 1, "streams": 0}
        path = await cp.machine.connect("stock")
        nursery.start_soon(path.call, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert cp.machine.engagements() == {"engaged": 2, "streams": 0}
        cp.nursery.start_soon(cp.servers[-1].serve, double)
        go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert cp.machine.engagements() == {"engaged": 0, "streams": 0}
    (await cp.machine.connect("stock")).stream()
    await trio.testing.wait_all_tasks_blocked()
    assert cp.machine.engagements() == {"engaged": 0, "streams": 1}


async def test_drops_are_recorded_with_exact_counts(
    cp: Cp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one at once, those after it together; none is lost when the path has ended."""
    monkeypatch.setattr("retinue.svm.edge.DROPS_PAUSE", 0.05)
    path = await cp.machine.connect("log")  # limit 1: one on its way, the others are dropped
    await trio.testing.wait_all_tasks_blocked()  # the greeting has been read: before it nothing is sent, nor dropped
    while not path.meter.dropped:
        path.send_nowait("x")
    assert [record.__dict__["count"] for record in caplog.records] == [1]
    for _ in range(9):
        path.send_nowait("x")
    path.sever()
    dropped = path.meter.dropped
    assert dropped == 10
    while len(caplog.records) < 2:
        await trio.testing.wait_all_tasks_blocked(0.01)
    first, second = caplog.records
    assert first.getMessage() == "edge log: a message was dropped (overflow = drop-oldest)"
    assert second.getMessage() == "edge log: 9 messages were dropped (overflow = drop-oldest)"
    for record in first, second:
        assert record.levelno == logging.WARNING
        assert (record.__dict__["edge"], record.__dict__["policy"]) == ("log", "drop-oldest")
    assert first.__dict__["count"] + second.__dict__["count"] == dropped


async def test_edge_tells_each_drop_once(caplog: pytest.LogCaptureFixture, autojump_clock: object) -> None:
    """At once after a quiet second, once a second while they go on, and what is left when the machine ends."""
    edge = Edge("log", 1, "drop-newest")

    def counts() -> list[int]:
        return [record.__dict__["count"] for record in caplog.records]

    async with trio.open_nursery() as nursery:
        edge.drop(nursery)
        assert counts() == [1]
        for _ in range(25):
            await trio.sleep(0.1)
            edge.drop(nursery)
        assert counts()[0] == 1
        assert len(counts()) == 3
        await trio.sleep(5)
        assert (len(counts()), sum(counts())) == (4, 26)
        edge.drop(nursery)
        assert counts()[4:] == [1]
        await trio.testing.wait_all_tasks_blocked()
        edge.drop(nursery)
        edge.drop(nursery)
        nursery.cancel_scope.cancel()
    assert counts()[4:] == [1, 2]


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


async def test_acceptor_can_lower_the_limit(cp: Cp) -> None:
    """Not raise it; what is no limit is an error."""
    for wrong in 0, wire.MAX_LIMIT + 1:
        with pytest.raises(LimitExceeded):
            cp.machine.listen(limit=wrong)
    incoming = cp.machine.listen(limit=2)
    for offered, effective in (4, 2), (1, 1):
        async with cp.offer(limit=offered) as caller:
            path = await anext(incoming)
            assert path.limit == effective
            await trio.testing.wait_all_tasks_blocked()
            with contextlib.suppress(trio.WouldBlock):
                for _ in range(offered + 1):
                    caller.send_nowait("x")
            assert caller.meter.high_water == effective


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


HELLO = wire.encode([wire.Kind.HELLO, wire.VERSION, 1, 5, 0, 0, 0, 0, 0])


async def test_hostile_caller_harms_only_its_own_path(
    cp: Cp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records say who broke the protocol and how often; the others are served."""
    monkeypatch.setattr("retinue.svm.edge.VIOLATIONS_PAUSE", 0.05)
    cp.nursery.start_soon(cp.machine.serve, echo)
    async with cp.offer("HONEST") as honest:
        assert await honest.call(1) == 1
        for packet in (
            b"\xc1",
            HELLO * 2,
            HELLO + wire.encode([wire.Kind.STREAM]),
            HELLO + wire.encode([wire.Kind.CALL, 1, [[[]]] * 100]),
            b"",
        ):
            ours, theirs = socket_pair()
            with ours:
                await cp.machine.offer("HOSTILE", 1, theirs.detach())
                ours.send(packet)
                await trio.testing.wait_all_tasks_blocked()
                assert await honest.call(2) == 2
    while (count := sum(record.__dict__["count"] for record in caplog.records)) < 2:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert count == 2
    assert all("HOSTILE broke the protocol" in record.getMessage() for record in caplog.records)


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
