"""What a campaign does to a system, each fault once: by signals, by limits, and by an operator's own commands."""

import contextlib
import random
import resource
import signal as signals
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from retinue.cp.campaign.world import Machine, World, signal
from retinue.pipes import PathError, Rejected

# Seconds that a slow consumer stands still.
SHORT, LONG = 0.01, 0.2
# Seconds that a process gets no descriptor, or no byte onto a disk.
EXHAUSTED: Final = 0.05


@attrs.frozen
class Done:
    """What was done, in words; ``gone`` are the processes that must not be part of the system afterwards."""

    text: str
    gone: frozenset[int] = frozenset()


Inject = Callable[[World, random.Random], Awaitable[Done | None]]
"""One fault. None when there is nobody just now to whom it could be done."""


async def kill(world: World, rng: random.Random) -> Done | None:
    """kill -9 of a machine."""
    machine = await _running(world, rng)
    if machine is None or not signal(machine.pid, signals.SIGKILL):
        return None
    return Done(f"{machine.name} killed", frozenset({machine.pid or 0}))


async def kill_two(world: World, rng: random.Random) -> Done | None:
    """kill -9 of two machines at once."""
    running = [each for each in (await world.machines()).values() if each.state == "READY"]
    victims = rng.sample(running, min(2, len(running)))
    gone = frozenset(each.pid for each in victims if each.pid and signal(each.pid, signals.SIGKILL))
    return Done(f"{' and '.join(each.name for each in victims)} killed", gone) if gone else None


async def stall(world: World, rng: random.Random) -> Done | None:
    """A machine stands still for a moment: a slow consumer for all who use it."""
    machine = await _running(world, rng)
    if machine is None or not signal(machine.pid, signals.SIGSTOP):
        return None
    seconds = rng.uniform(SHORT, LONG)
    try:
        await trio.sleep(seconds)
    finally:
        signal(machine.pid, signals.SIGCONT)
    return Done(f"{machine.name} stood still for {seconds * 1000:.0f} ms")


async def hang(world: World, rng: random.Random) -> Done | None:
    """A machine stands still for ever; its watchdog must end it."""
    machine = await _running(world, rng)
    if machine is None or not signal(machine.pid, signals.SIGSTOP):
        return None
    return Done(f"{machine.name} hangs", frozenset({machine.pid or 0}))


async def stop(world: World, rng: random.Random) -> Done | None:
    """A machine is asked to end by somebody who may not (SIGTERM), and may or may not do so."""
    machine = await _running(world, rng)
    if machine is None or not signal(machine.pid, signals.SIGTERM):
        return None
    return Done(f"{machine.name} got SIGTERM")


async def kill_control_program(world: World, rng: random.Random) -> Done | None:
    """kill -9 of the control program."""
    pid = await world.control_program()
    return Done("the control program killed", frozenset({pid})) if signal(pid, signals.SIGKILL) else None


async def kill_spare(world: World, rng: random.Random) -> Done | None:
    """kill -9 of the control program that waits."""
    return Done("the spare control program killed") if signal(world.spare(), signals.SIGKILL) else None


async def kill_both(world: World, rng: random.Random) -> Done | None:
    """kill -9 of a machine and of the control program at the same moment."""
    machine = await _running(world, rng)
    pid = await world.control_program()
    if machine is None or not signal(machine.pid, signals.SIGKILL):
        return None
    signal(pid, signals.SIGKILL)
    return Done(f"{machine.name} and the control program killed", frozenset({machine.pid or 0, pid}))


async def cut(world: World, rng: random.Random) -> Done | None:
    """Every path along an edge is cut, twice: a tap is put in and taken out again."""
    listed = (await world.ask("edges"))["edges"]
    edges = [f"{each['from']}.{each['name']}" for each in listed if not each["to"].startswith("*")]
    if not edges:
        return None
    edge = rng.choice(sorted(edges))
    with contextlib.suppress(PathError, OSError):
        async with world.operator() as path:
            await path.call(["tap", {"edge": edge}])
    return Done(f"the paths of {edge} cut")


async def replace(world: World, rng: random.Random) -> Done | None:
    """An operator replaces a machine."""
    return await _order(world, rng, "replace")


async def restart(world: World, rng: random.Random) -> Done | None:
    """An operator restarts a machine."""
    return await _order(world, rng, "restart")


async def descriptors(world: World, rng: random.Random) -> Done | None:
    """A machine, or the control program, gets no descriptor for a moment."""
    return await _limited(world, rng, resource.RLIMIT_NOFILE, 8, "had no descriptors left")


async def full_disk(world: World, rng: random.Random) -> Done | None:
    """A machine, or the control program, can put no byte onto a disk for a moment."""
    return await _limited(world, rng, resource.RLIMIT_FSIZE, 0, "found its disks full")


FAULTS: Final[dict[str, tuple[Inject, int]]] = {
    "kill": (kill, 36),
    "kill-two": (kill_two, 8),
    "stall": (stall, 8),
    "stop": (stop, 4),
    "hang": (hang, 1),
    "kill-cp": (kill_control_program, 6),
    "kill-spare": (kill_spare, 2),
    "kill-both": (kill_both, 3),
    "cut": (cut, 12),
    "replace": (replace, 8),
    "restart": (restart, 4),
    "descriptors": (descriptors, 4),
    "full-disk": (full_disk, 4),
}
"""Each with how often it comes, relative to the others."""


async def _running(world: World, rng: random.Random) -> Machine | None:
    running = [each for each in (await world.machines()).values() if each.state == "READY" and each.pid]
    return rng.choice(running) if running else None


async def _order(world: World, rng: random.Random, verb: str) -> Done | None:
    machine = await _running(world, rng)
    if machine is None:
        return None
    with contextlib.suppress(Rejected):  # that it does not work out is an answer
        await world.ask(verb, machine=machine.name)
    return Done(f"{machine.name}: {verb}")


async def _limited(world: World, rng: random.Random, limit: int, low: int, text: str) -> Done | None:
    machine = await _running(world, rng)
    name, pid = "the control program", await world.control_program()
    if machine is not None and machine.pid and rng.random() < 0.7:
        name, pid = machine.name, machine.pid
    try:
        soft, hard = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (low, hard))
    except (ProcessLookupError, PermissionError):
        return None
    try:
        await trio.sleep(EXHAUSTED)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, limit, (soft, hard))
    return Done(f"{name} {text}")
