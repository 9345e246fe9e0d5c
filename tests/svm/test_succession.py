"""The control program dies, and the machine goes on under the next one."""

import contextlib

import pytest
import trio
import trio.testing
from tests.svm.succession import Program, control_program, living

from retinue.pipes import Message, PathError, Rejected, SocketTransport, open_path, socket_pair
from retinue.svm import runtime

SERVING = """
async def main(vm):
    async def handler(message):
        return message.body
    await vm.serve(handler)
"""

USING = """
async def main(vm):
    await vm.ready()
    path = await vm.connect("stock")
    await path.call("made")
    await vm.stopping.wait()
"""


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


async def test_machine_goes_on_without_a_control_program(program: Program) -> None:
    """Its paths work meanwhile; the next one finds it as it was, and can stop it."""
    async with living() as life:
        async with control_program(life) as first:
            await first.start(program.make(SERVING))
            end = await first.offer()
        async with open_path(SocketTransport(end)) as path:
            assert await path.call("alone") == "alone"
            life.bring_another()
            async with control_program(life) as second:
                meters = await second.call("meters")
                assert meters["serves"]["CALLER.shop"]["received"] == 1
                assert second.told == []
                assert await path.call("again") == "again"
                await second.call("stop")
                await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_many_control_programs(program: Program) -> None:
    """One after the other, some of whom die before the machine has heard of them."""
    async with living() as life:
        async with control_program(life) as cp:
            await cp.start(program.make(SERVING))
        for number in range(30):
            life.bring_another()
            if number % 3:
                async with control_program(life) as cp:
                    if number % 2:
                        await cp.call("meters")
        life.bring_another()
        async with control_program(life) as cp:
            assert await cp.call("meters")
            with contextlib.suppress(PathError):
                await cp.call("stop")
            await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_what_the_machine_asked_is_asked_again(program: Program) -> None:
    """Of the successor, marked as redelivered; the program waits and sees nothing."""
    async with living() as life:
        async with control_program(life) as first:
            await first.start(program.make(USING))
            await first.wait_told(2)
            assert first.told[1] == ["connect", {"edge": "stock", "wait": True}]
        life.bring_another()
        async with control_program(life) as second, trio.open_nursery() as nursery:
            made = trio.Event()

            async def serve(path_end: SocketTransport) -> None:
                async with open_path(path_end) as path:
                    message = await path.receive()
                    assert message.body == "made"
                    await message.reply()
                    made.set()
                    await path.wait_severed()

            async def connect(message: Message) -> None:
                ours, theirs = socket_pair()
                nursery.start_soon(serve, SocketTransport(ours))
                with theirs:
                    await message.reply({"path": 1}, descriptors=(theirs.fileno(),))

            second.connect = connect
            await made.wait()
            assert second.told == [["connect", {"edge": "stock", "wait": True}]]
            assert second.redelivered == [True]
            await second.call("stop")
            await life.ended.wait()


async def test_what_the_old_one_asked_is_answered_to_nobody(program: Program) -> None:
    """An offer that waits for a program that does not listen: the successor hears nothing of it."""
    text = "import trio\nasync def main(vm):\n    await vm.ready()\n    await vm.stopping.wait()\n"
    async with living() as life:
        async with control_program(life) as first, trio.open_nursery() as nursery:
            await first.start(program.make(text))

            async def offer() -> None:
                with pytest.raises(PathError):
                    await first.offer()

            nursery.start_soon(offer)
            await trio.testing.wait_all_tasks_blocked()
            first.control.let_go()
        life.bring_another()
        async with control_program(life) as second:
            for _ in range(5):
                assert await second.call("meters") == {
                    "uses": {"stock": (await second.call("meters"))["uses"]["stock"]},
                    "serves": {},
                    "engaged": 0,
                    "streams": 0,
                }
            await second.call("stop")
            await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK


async def test_severed_control_path_is_the_end(program: Program) -> None:
    """A word is another thing than a death."""
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(SERVING))
        cp.control.sever("lost")
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_CP_GONE


async def test_nobody_can_bring_another(program: Program) -> None:
    """When nobody holds the other end of the log either, there will be no control program."""
    async with living() as life:
        async with control_program(life) as cp:
            await cp.start(program.make(SERVING))
        assert life.kept is not None
        life.kept.close()
        life.log.close()
        await life.ended.wait()
    assert life.exit_code == runtime.EXIT_CP_GONE


async def test_program_that_returns_while_nobody_is_there(program: Program) -> None:
    """The machine ends as ever."""
    text = """
import trio
async def main(vm):
    async def handler(message):
        over.set()
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        incoming = vm.listen()
        await vm.ready()
        path = await anext(incoming)
        nursery.start_soon(path.serve, handler)
        await over.wait()
        nursery.cancel_scope.cancel()
"""
    async with living() as life:
        async with control_program(life) as cp:
            await cp.start(program.make(text))
            end = await cp.offer()
        assert life.kept is not None
        life.kept.close()
        async with open_path(SocketTransport(end)) as path:
            with contextlib.suppress(PathError, Rejected):
                await path.call("end")
            await life.ended.wait()
    assert life.exit_code == runtime.EXIT_OK
