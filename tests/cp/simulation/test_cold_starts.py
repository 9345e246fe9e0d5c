"""A system starts in the order of its edges, every time."""

import os
import random
from typing import Any, Final

import trio
import trio.testing

from retinue.pipes import Message
from retinue.svm import Machine
from retinue.testing import open_system

# Each takes a quarter of a second; a release is tried with RETINUE_COLD_STARTS=500.
STARTS: Final = int(os.environ.get("RETINUE_COLD_STARTS", "8"))
SIZE: Final = 20
# Edges of a machine, at most: to others that are declared before it.
MOST: Final = 3


def topology(chance: random.Random) -> str:
    """Twenty machines with edges at random, and no circle."""
    lines = ["[system]", 'name = "COLD"']
    for number in range(SIZE):
        lines += [f"[machines.M{number}]", f'program = "m{number}"']
        targets = chance.sample(range(number), min(number, chance.randint(0, MOST)))
        lines += [f'uses.to_{target} = "M{target}"' for target in targets]
    return "\n".join(lines) + "\n"


async def program(vm: Machine[None]) -> None:
    """Uses every edge before it is ready: a server that is not there would be noticed at once."""
    for edge in vm.edges:
        path = await vm.connect(edge, wait=False)
        assert await path.call(vm.name) == vm.name
    await vm.serve(echo)


async def echo(message: Message) -> Any:
    return message.body


async def start(seed: int) -> list[str]:
    """The machines in the order in which they became READY; those that used an edge too early did not."""
    fakes = {f"M{number}": program for number in range(SIZE)}
    begun = trio.current_time()
    async with open_system(topology(random.Random(seed)), fakes=fakes, seed=seed, record=False) as system:
        ready = [str(each["fields"]["of"]) for each in system.records("CP") if each["fields"].get("event") == "READY"]
        places = {name: place for place, name in enumerate(ready)}
        for entry in system.topology.machines:
            for edge in entry.uses:
                assert places[edge.to] < places[entry.name], f"{entry.name} was READY before {edge.to}"
        assert [life.generation for life in system.control_program.lives.values()] == [1] * SIZE
        assert trio.current_time() - begun < 0.1, "somebody has slept"
        return ready


def test_no_order_is_ever_violated() -> None:
    """Cold starts of 20 machines with edges at random, each in another order of scheduling: servers before users."""
    orders = set()
    for seed in range(STARTS):
        ready = trio.run(start, seed, clock=trio.testing.MockClock(autojump_threshold=0))
        orders.add(tuple(ready))
    assert len(orders) == STARTS, "chance has had no part in it"
