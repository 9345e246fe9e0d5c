"""A machine that leaves its paths to a successor: nothing is lost and nothing comes twice."""

import contextlib
from collections import Counter

import pytest
import trio
import trio.testing
from tests.svm.succession import Cp, Program, control_program, living

from retinue.pipes import Message, Path, PathError, PathSevered, Rejected, SocketTransport, Transport, open_path
from retinue.svm import runtime
from retinue.svm.asgi import DRAIN_TIME
from retinue.svm.drain import SETTLE

SERVING = """
import trio
async def main(vm):
    async def handler(message):
        if message.redelivered:
            return "redelivered"
        if message.body == "draining":
            await vm.draining.wait()
        elif message.body == "stopping":
            await vm.stopping.wait()
        else:
            for _ in range(hash(message.body) % 4):
                await trio.lowlevel.checkpoint()
        return message.body
    await vm.serve(handler)
"""

# Its own loop, as a program has it that knows nothing of drains: it looks at the end of listen() alone.
LISTENING = """
import trio
async def main(vm):
    async def handler(message):
        return "redelivered" if message.redelivered else message.body
    async with trio.open_nursery() as nursery:
        incoming = vm.listen()
        await vm.ready()
        async for path in incoming:
            nursery.start_soon(path.serve, handler)
        nursery.cancel_scope.cancel()
"""

STREAMING = """
import trio
async def main(vm):
    incoming = vm.listen()
    await vm.ready()
    path = await anext(incoming)
    await path.wait_stream()
    stream = path.stream()
    async for data in stream:
        await stream.send_all(data)
    assert vm.stopping.is_set()
    await stream.aclose()
"""

ASGI = """
import trio
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["query_string"]})
"""


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Board:
    """The switchboard's part: paths of callers, which go to the machine that is the present one."""

    def __init__(self, cp: Cp) -> None:
        self.cp = cp
        self.rebound = 0

    async def rebind(self, _: Path) -> Transport:
        try:
            end = await self.cp.offer()
        except Rejected as exc:
            raise PathSevered("lost", str(exc)) from None
        self.rebound += 1
        return SocketTransport(end)

    async def open(self) -> Path:
        return Path(SocketTransport(await self.cp.offer()), limit=32, rebind=self.rebind)


def http(number: int) -> dict[str, object]:
    scope = {"method": "POST", "scheme": "http", "http_version": "1.1", "path": "/", "root_path": "", "raw_path": b"/"}
    return {
        "type": "http",
        "id": number,
        "scope": {**scope, "query_string": str(number).encode(), "headers": [], "client": None, "server": None},
        "body": b"",
        "more_body": False,
    }


@pytest.mark.parametrize("main", [SERVING, LISTENING, ASGI], ids=["serve", "listen", "asgi"])
async def test_replacements_under_load(program: Program, main: str) -> None:
    """Thousands of calls over some paths while machine follows machine: each is answered, once, and never again."""
    calls, generations, paths = 4000, 12, 4
    answered: Counter[int] = Counter()
    left = iter(range(calls))
    finished = trio.Event()
    name, more = program.make(main), {}
    if main == ASGI:
        name, more = f"{name}:app", {"kind": "asgi"}

    async def client(path: Path) -> None:
        for number in left:
            if main == ASGI:
                answered[int((await path.call(http(number)))["body"])] += 1
            else:
                answered[await path.call(number)] += 1

    async def no_caller(_: Message) -> None:
        # At the end a caller may leave while it waits for another descriptor: the machine's end hears no word of it.
        raise Rejected("severed", "the caller has left")

    async def clients(opened: list[Path]) -> None:
        async with trio.open_nursery() as nursery:
            for each in range(40):
                nursery.start_soon(client, opened[each % paths])
        finished.set()

    async with trio.open_nursery() as nursery:
        board: Board | None = None
        opened: list[Path] = []
        generation = 0

        async def live_until_replaced(started: trio.Event, leave: trio.Event) -> None:
            nonlocal board
            async with living() as life, control_program(life) as cp:
                cp.connect = no_caller
                await cp.start(name, **more)
                if board is None:
                    board = Board(cp)
                board.cp = cp
                started.set()
                await leave.wait()
                await cp.call("drain")
                await life.ended.wait()
                assert life.exit_code == runtime.EXIT_OK

        leave = trio.Event()
        started = trio.Event()
        nursery.start_soon(live_until_replaced, started, leave)
        await started.wait()
        assert board is not None
        for _ in range(paths):
            path = await board.open()
            await nursery.start(path.run)
            opened.append(path)
        nursery.start_soon(clients, opened)
        while generation < generations or not finished.is_set():
            generation += 1
            before = len(answered)
            while len(answered) < min(before + calls // generations // 2, calls):
                await trio.lowlevel.checkpoint()
            next_leave, started = trio.Event(), trio.Event()
            nursery.start_soon(live_until_replaced, started, next_leave)
            await started.wait()
            leave.set()
            leave = next_leave
        assert answered == Counter(range(calls))
        assert sum(path.meter.redelivered for path in opened) == 0
        assert board.rebound >= generations
        for path in opened:
            assert path.severed is None
            path.sever()
        leave.set()


async def test_program_sees_the_drain_before_the_stop(program: Program) -> None:
    """A call that is kept waiting for one or the other is answered; new paths are refused."""
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(SERVING))
        async with open_path(SocketTransport(await cp.offer())) as path, trio.open_nursery() as nursery:
            answers: list[str] = []

            async def ask(body: str) -> None:
                answers.append(await path.call(body))

            nursery.start_soon(ask, "draining")
            nursery.start_soon(ask, "stopping")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(cp.call, "drain")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Rejected, match="stopping"):
                await cp.offer()
            await path.wait_severed()
            assert isinstance(path.severed, PathSevered)
            assert path.severed.code == "lost"  # without a word, that is
            assert answers == ["draining", "stopping"]
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_byte_stream_goes_on_to_its_end(program: Program) -> None:
    """While the machine drains, and its stop is not delayed by it."""
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(STREAMING))
        async with open_path(SocketTransport(await cp.offer())) as path:
            await path.wait_open()
            stream = path.stream()
            await stream.send_all(b"one")
            assert await stream.receive_some() == b"one"
            await cp.call("drain")
            await stream.send_all(b"two")
            assert await stream.receive_some() == b"two"
            await stream.send_eof()
            assert await stream.receive_some() == b""
            await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_paths_that_are_left_end_without_a_word(program: Program) -> None:
    """The program returns although a call is not answered: its caller asks the successor."""
    text = """
async def main(vm):
    incoming = vm.listen()
    await vm.ready()
    path = await anext(incoming)
    await path.receive()
    await vm.stopping.wait()
"""
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(text))
        async with open_path(SocketTransport(await cp.offer())) as path:

            async def ask() -> None:
                with pytest.raises(PathSevered) as caught:
                    await path.call("a question")
                assert caught.value.code == "lost"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                await cp.call("drain")
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_asgi_request_that_never_ends(program: Program, autojump_clock: trio.testing.MockClock) -> None:
    """Holds the others of its path up for a bounded time; then it is refused and they go to the successor."""
    text = """
import trio
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await trio.sleep_forever()
"""
    async with living() as life, control_program(life) as cp:
        await cp.start(f"{program.make(text)}:app", kind="asgi")
        async with open_path(SocketTransport(await cp.offer())) as path, trio.open_nursery() as nursery:
            codes: list[str] = []

            async def ask() -> None:
                try:
                    await path.call(http(1))
                except Rejected as exc:
                    codes.append(exc.code)

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await cp.call("drain")
            assert trio.current_time() == pytest.approx(SETTLE)
            await path.wait_severed()
            assert trio.current_time() == pytest.approx(SETTLE + DRAIN_TIME)
            assert codes == ["stopping"]
            assert isinstance(path.severed, PathSevered)
            assert path.severed.code == "lost"
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


@pytest.mark.parametrize("loaded", [False, True])
async def test_drain_of_what_does_not_run(program: Program, loaded: bool) -> None:
    """There is nothing to leave to anybody."""
    async with living() as life, control_program(life) as cp:
        if loaded:
            await cp.load(program.make(SERVING))
        with contextlib.suppress(PathError):
            await cp.call("drain")
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_program_that_heeds_nothing_is_cancelled(program: Program) -> None:
    """As at a stop."""
    async with living() as life, control_program(life) as cp:
        await cp.start(
            program.make("import trio\nasync def main(vm):\n    await vm.ready()\n    await trio.sleep_forever()\n")
        )
        await cp.call("drain")
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_drain_goes_on_when_the_control_program_dies(program: Program) -> None:
    """And the next one may ask for it again."""
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(SERVING))
        end = await cp.offer()
        async with trio.open_nursery() as nursery:
            path = Path(SocketTransport(end))
            await nursery.start(path.run)
            answers: list[str] = []

            async def ask() -> None:
                answers.append(await path.call("stopping"))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()

            async def drain() -> None:
                with pytest.raises(PathError):
                    await cp.call("drain")

            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            cp.control.let_go()
            life.bring_another()
            async with control_program(life) as second:
                await second.call("drain")
                await life.ended.wait()
            assert answers == ["stopping"]
    assert life.exit_code == runtime.EXIT_OK
