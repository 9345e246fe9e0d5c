"""What the control program asks a machine that runs: another config, its last messages, a heartbeat, an edge's size."""

import pytest
import trio
import trio.testing
from tests.svm.succession import Program, control_program, living

from retinue.pipes import Message, PathError, Rejected, SocketTransport, open_path, socket_pair, tracing
from retinue.pipes.beat import read_beat
from retinue.pipes.message import close_all

RELOADING = """
import attrs
import trio
from retinue.pipes import Rejected
from retinue.svm.errors import ConfigError, ConfigMistake

@attrs.frozen
class Config:
    word: str = "one"

async def main(vm):
    async def take(config):
        await trio.lowlevel.checkpoint()
        assert vm.config.word != config.word, "a bug"
        if config.word == "wrong":
            raise ConfigError((ConfigMistake(("word",), "not this one"),))
        if config.word == "never":
            raise Rejected("not-now", "perhaps later")
    async def handler(message):
        return vm.config.word
    {declare}
    await vm.serve(handler)
"""

UNKNOWN = "unknown key; {path} knows word"


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


# -- reload ------------------------------------------------------------------------------------------------------------


async def test_another_config(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    """Is put into effect by the program, or refused: then the old one is."""
    async with living() as life, control_program(life) as cp:
        name = program.make(RELOADING.format(declare="vm.on_reload(take)"))
        await cp.start(name)
        async with open_path(SocketTransport(await cp.offer())) as path:
            assert await path.call() == "one"
            await cp.call("reload", config={"word": "two"})
            assert await path.call() == "two"
            for config, code, detail in (
                ({"word": "wrong"}, "bad-config", [{"keys": ["word"], "text": "not this one"}]),
                ({"word": 3}, "bad-config", [{"keys": ["word"], "text": "expected a text, got the number 3"}]),
                ({"wrod": "x"}, "bad-config", [{"keys": ["wrod"], "text": UNKNOWN.format(path=name)}]),
                ({"word": "never"}, "not-now", None),
                ({"word": "two"}, "failed", None),
            ):
                with pytest.raises(Rejected) as caught:
                    await cp.call("reload", config=config)
                assert (caught.value.code, caught.value.detail) == (code, detail)
                assert await path.call() == "two"
            assert "could not take another config" in caplog.text
            await cp.call("stop")
            await life.ended.wait()


async def test_program_that_takes_no_other_config(program: Program) -> None:
    """Says so, whatever the config is."""
    async with living() as life, control_program(life) as cp:
        with pytest.raises(Rejected) as caught:
            await cp.call("reload", config={})
        assert caught.value.code == "not-ready"
        await cp.start(program.make(RELOADING.format(declare="")))
        with pytest.raises(Rejected) as caught:
            await cp.call("reload", config={"word": "two"})
        assert caught.value.code == "not-reloadable"
        await cp.call("stop")
        await life.ended.wait()


async def test_reload_is_finished_when_the_control_program_dies(program: Program) -> None:
    """It must not be left half done."""
    text = """
import attrs
import trio

@attrs.frozen
class Config:
    word: str = "one"

async def main(vm):
    begun, go = trio.Event(), trio.Event()
    async def take(config):
        begun.set()
        await go.wait()
    async def handler(message):
        if message.body == "begun":
            await begun.wait()
        elif message.body == "go":
            go.set()
        return vm.config.word
    vm.on_reload(take)
    await vm.serve(handler)
"""
    async with living() as life, control_program(life) as first, trio.open_nursery() as nursery:
        await first.start(program.make(text))
        end = await first.offer()

        async def reload() -> None:
            with pytest.raises(PathError):
                await first.call("reload", config={"word": "two"})

        nursery.start_soon(reload)
        async with open_path(SocketTransport(end)) as path:
            assert await path.call("begun") == "one"
            first.control.let_go()
            life.bring_another()
            async with control_program(life) as second:
                await second.call("meters")
                await path.call("go")
                await second.call("meters")
                assert await path.call("word") == "two"
                await second.call("stop")
                await life.ended.wait()


# -- last messages -----------------------------------------------------------------------------------------------------


async def test_last_messages(program: Program) -> None:
    """Those of this end that nobody has answered, along every edge, or one."""
    text = """
import trio
from retinue.svm import new_trace, tracing
async def main(vm):
    path = await vm.connect("stock")
    async with trio.open_nursery() as nursery:
        incoming = vm.listen()
        await vm.ready()
        for number in range(7):
            with tracing(new_trace() if number % 2 else None):
                nursery.start_soon(path.call, {"number": number, "text": "x" * 1000})
            await trio.lowlevel.checkpoint()
        served = await anext(incoming)
        nursery.start_soon(served.send, "note")
        await vm.stopping.wait()
        nursery.cancel_scope.cancel()
"""
    async with living() as life, control_program(life) as cp, trio.open_nursery() as nursery:
        assert await cp.call("last", edge=None) == {"uses": {}, "serves": {}}
        asked = trio.Event()

        async def serve(end: SocketTransport) -> None:
            async with open_path(end) as path:
                for _ in range(4):
                    await path.receive()
                asked.set()
                await path.wait_severed()

        async def connect(message: Message) -> None:
            ours, theirs = socket_pair()
            nursery.start_soon(serve, SocketTransport(ours))
            with theirs:
                await message.reply({"path": 1}, descriptors=(theirs.fileno(),))

        cp.connect = connect
        await cp.start(program.make(text))
        async with open_path(SocketTransport(await cp.offer())) as caller:
            await asked.wait()
            while caller.pending < 1:
                await trio.lowlevel.checkpoint()
            told = await cp.call("last", edge=None)
            assert {name: len(found) for name, found in told["uses"].items()} == {"stock": 4}
            for ident, kind, size, age, head in told["uses"]["stock"]:
                assert 1 <= ident <= 4
                assert kind == "call"
                assert size > 1000
                assert age >= 0
                assert head.startswith("{'number': ")
                assert len(head) == 200
            ((ident, kind, size, age, head),) = told["serves"]["CALLER.shop"]
            assert (ident, kind, head) == (1, "send", "'note'")
            assert (await cp.call("last", edge="stock"))["serves"] == {}
            assert list((await cp.call("last", edge="CALLER.shop"))["uses"]) == []
            await cp.call("stop")
            await life.ended.wait()


# -- the others --------------------------------------------------------------------------------------------------------


async def test_number_of_machines_behind_an_edge(program: Program) -> None:
    """Refused for an edge that it has not."""
    async with living() as life, control_program(life) as cp:
        with pytest.raises(Rejected, match="not loaded"):
            await cp.call("edge", name="stock", instances=3)
        edges = {"stock": {"limit": 4, "overflow": "block", "instances": 2, "to": "STOCK"}}
        await cp.start(program.make(RELOADING.format(declare="")), edges=edges)
        await cp.call("edge", name="stock", instances=3)
        with pytest.raises(Rejected) as caught:
            await cp.call("edge", name="stick", instances=3)
        assert caught.value.code == "no-such-edge"
        await cp.call("stop")
        await life.ended.wait()


async def test_heartbeat_of_a_machine(program: Program) -> None:
    """When it is asked for, until it is not; the reply has a descriptor with stacks that were not told."""
    async with living() as life, control_program(life) as cp:
        reply = await cp.control.call_reply(["watch", {"every": 3600}])
        assert len(reply.descriptors) == 1
        await cp.start(program.make(RELOADING.format(declare="")))
        while (beat := read_beat(life.log.recv(100))) is None:
            pass
        assert beat.stuck == 0.0
        close_all(reply.descriptors)
        reply = await cp.control.call_reply(["watch", {"every": 0}])
        assert reply.descriptors == ()
        await cp.control.call(["watch", {"every": 60}])
        await cp.call("stop")
        await life.ended.wait()


class Pulse:
    """A heart that a simulation may have: without a thread."""

    def __init__(self) -> None:
        self.every: list[float] = []
        self.closed = False

    def watch(self, every: float) -> int | None:
        self.every.append(every)
        if every == 13:
            raise RuntimeError("can't start new thread")
        return None

    def close(self) -> None:
        self.closed = True


async def test_another_heart(program: Program) -> None:
    """Whoever runs a machine may say how it tells that it lives."""
    pulse = Pulse()
    async with living(pulse) as life, control_program(life) as cp:
        await cp.call("watch", every=2)
        with pytest.raises(Rejected, match="can't start new thread") as caught:
            await cp.call("watch", every=13)
        assert caught.value.code == "exhausted"
        await cp.call("stop")
        await life.ended.wait()
    assert pulse.every == [2, 13]
    assert pulse.closed


# -- traces ------------------------------------------------------------------------------------------------------------


async def test_program_is_in_nobodys_trace(program: Program) -> None:
    """However it came to be started, or to have its paths; only the handler of a message is in that of the message."""
    text = """
import trio
from retinue.svm import trace
async def main(vm):
    mine = trace()
    paths = []
    async def answer(message):
        if not paths:
            paths.append(await vm.connect("stock"))
        return [mine, trace(), await paths[0].call(None)]
    await vm.serve(answer)
"""
    async with living() as life, control_program(life) as cp, trio.open_nursery() as nursery:
        asked: list[str | None] = []

        async def stock(message: Message) -> str | None:
            return message.trace

        async def serve(end: SocketTransport) -> None:
            async with open_path(end) as path:
                await path.serve(stock)

        async def connect(message: Message) -> None:
            asked.append(message.trace)
            ours, theirs = socket_pair()
            nursery.start_soon(serve, SocketTransport(ours))
            with theirs:
                await message.reply({"path": 1}, descriptors=(theirs.fileno(),))

        cp.connect = connect
        with tracing("a" * 32):
            await cp.start(program.make(text))
            end = await cp.offer()
        async with open_path(SocketTransport(end)) as caller:
            for ident in ("b" * 32, "c" * 32, None):
                with tracing(ident):
                    assert await caller.call(None) == [None, ident, ident]
        assert asked == [None]
        await cp.call("stop")
        await life.ended.wait()
        nursery.cancel_scope.cancel()
