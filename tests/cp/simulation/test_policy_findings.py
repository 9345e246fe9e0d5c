"""What the simulation has found in the policy, each as small as it was made."""

from typing import Any

import pytest
import trio
import trio.testing

from retinue.pipes import Message
from retinue.svm import Machine
from retinue.testing import open_system

PAIR = """\
[system]
name = "PAIR"
[machines.SERVER]
program = "server"
[machines.USER]
program = "user"
uses.server = "SERVER"
"""


async def user(vm: Machine[None]) -> None:
    path = await vm.connect("server")

    async def ask(message: Message) -> Any:
        return await path.call(message.body)

    await vm.serve(ask)


FAKES: dict[str, Any] = {"SERVER": {...: "yes"}, "USER": user}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("machine", ["SERVER", "USER"])
async def test_who_waits_for_an_adopted_machine_learns_that_it_is_ready(
    machine: str, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever asked a new control program before it had its control path to the machine was never woken."""
    async with open_system(PAIR, fakes=FAKES, record=False, seed=seed) as system:
        system.kill_control_program()
        await system.wait_until(lambda: True)
        with trio.fail_after(5):
            assert await system[machine].call("there?") == "yes"


@pytest.mark.parametrize("seed", range(3))
async def test_machine_that_was_starting_can_be_stopped_after_a_takeover(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """It was stopped while its stray process was being ended, and started all the same."""
    async with open_system(PAIR, fakes=FAKES, record=False, seed=seed) as system:
        system["USER"].next_start(lost_ready=True)
        system["USER"].kill()
        await system.jump(1)
        assert system["USER"].state == "STARTING"
        system.kill_control_program()
        await system.wait_until(lambda: True)
        with trio.fail_after(60):
            await system["USER"].stop()
        assert system["USER"].state == "STOPPED"
        await system.jump(100)
        assert system["USER"].state == "STOPPED"
        with trio.fail_after(60):
            await system["USER"].start()


async def test_memory_error_inside_serve_is_told_as_such(autojump_clock: trio.testing.MockClock) -> None:
    """Its traceback ends with the frame of a group, which is no cause."""
    async with open_system(PAIR, fakes=FAKES, record=False) as system:
        system["SERVER"].exhaust()
        await system["SERVER"].wait_ready(generation=2)
        assert "out of storage" in str(system["SERVER"].cause)


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_operator_who_leaves_in_the_middle_of_a_replacement_does_no_harm(
    verb: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The request is cancelled with the operator's path; what it has begun is finished, or undone."""
    async with open_system(PAIR, fakes=FAKES, record=False) as system:
        server = system["SERVER"]
        server.next_start(slow=30)
        with trio.move_on_after(10):
            await getattr(server, verb)()
        await system.jump(100)
        assert system.states == {"SERVER": "READY", "USER": "READY"}
        assert len(system.nucleus.machines) == 2, "a process is left over"
        with trio.fail_after(5):
            assert await system["USER"].call("there?") == "yes"
        server.kill()
        await system.jump(100)
        with trio.fail_after(5):
            assert await system["USER"].call("there?") == "yes"
        assert len(system.nucleus.machines) == 2, "a process is left over"


async def test_target_that_hung_and_was_replaced_serves_again(autojump_clock: trio.testing.MockClock) -> None:
    """Who is started while its target hangs comes up when that has a successor."""
    async with open_system(PAIR, fakes=FAKES, record=False) as system:
        system["SERVER"].hang()
        system["SERVER"].next_start(slow=30)
        with trio.move_on_after(30):
            await system["SERVER"].replace()
        system["USER"].kill()
        await system.jump(300)
        assert system.states == {"SERVER": "READY", "USER": "READY"}
        with trio.fail_after(5):
            assert await system["USER"].call("there?") == "yes"
