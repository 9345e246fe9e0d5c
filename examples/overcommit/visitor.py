"""Asks every machine for rows of its table, round after round, and prints how long the answers took."""

import random
import statistics
import time

import attrs
import trio

from retinue.pipes import Path
from retinue.svm import Machine


@attrs.frozen
class Config:
    """How many machines there are, how many rounds are made, and how many seconds lie between them."""

    machines: int = 50
    rounds: int = 3
    pause: float = 2.0


async def main(vm: Machine[Config]) -> None:
    config = vm.config
    paths: dict[int, Path] = {}
    await vm.ready()
    for number in range(config.rounds):
        times = []
        for table in range(1, config.machines + 1):
            begun = time.perf_counter()
            if table not in paths:
                paths[table] = await vm.connect_instance("tables", table)
            assert await paths[table].call(random.randrange(1 << 30)), "a row is not what it was"
            times.append(time.perf_counter() - begun)
        middle, longest = statistics.median(times) * 1000, max(times) * 1000
        print(f"round {number + 1}: {len(times)} right answers, {middle:.1f} ms each, {longest:.1f} ms at most")
        await trio.sleep(config.pause)
    print("the visit is over")
    await vm.stopping.wait()
