"""A machine that is asked to give storage back."""

import pytest
from tests.svm.succession import Program, control_program, living

from retinue.pipes import SocketTransport, open_path

SHRINKING = """
async def main(vm):
    wanted = []
    def shrink(size):
        wanted.append(size)
        if size == 13:
            raise ValueError("an unlucky number")
    async def handler(message):
        return wanted
    {declare}
    await vm.serve(handler)
"""


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


async def test_program_is_told_how_much_is_wanted(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    """What its handler raises is logged, and the machine goes on."""
    async with living() as life, control_program(life) as cp:
        assert await cp.call("shrink", bytes=1) == {"heeded": False}
        await cp.start(program.make(SHRINKING.format(declare="vm.on_shrink(shrink)")))
        async with open_path(SocketTransport(await cp.offer())) as path:
            assert await cp.call("shrink", bytes=4096) == {"heeded": True}
            assert await cp.call("shrink", bytes=13) == {"heeded": True}
            assert await path.call() == [4096, 13]
            assert "an unlucky number" in caplog.text
        await cp.call("stop")
        await life.ended.wait()


async def test_program_without_a_handler_is_left_alone(program: Program) -> None:
    async with living() as life, control_program(life) as cp:
        await cp.start(program.make(SHRINKING.format(declare="")))
        async with open_path(SocketTransport(await cp.offer())) as path:
            assert await cp.call("shrink", bytes=4096) == {"heeded": False}
            assert await path.call() == []
        await cp.call("stop")
        await life.ended.wait()
