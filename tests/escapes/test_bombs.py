"""Bombs: what one machine uses up is its own. Each goes off in a machine of its own, which may die of it."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
import trio
from tests.escapes.conftest import PrisonOf
from tests.escapes.known import expect
from tests.escapes.prison import Died, Prison
from tests.escapes.rungs import PLACES

MACHINES: Final = {"program": "BOMB", "exec": "NATBOMB"}
# More than fits into a packet: it travels as a descriptor.
LARGE: Final = "x" * 100_000

# What a machine with storage = "64M" may get, by bomb and in its unit. It may as well die of it.
MOST: Final = {
    "memory/private": 64,
    "memory/shared": 64,
    "memory/many-small": 64,
    "memory/memfd": 64,
    "memory/file-backed": 160,  # of a persistent disk: pages go back to it, they are not lost to others
    "memory/stack": 200,
    "memory/pipes": 64,
    "memory/socket-buffers": 64,
    "descriptors/open": 4096,
    "descriptors/in-flight": 6000,  # it is what others can do meanwhile that counts
    "descriptors/epoll": 20_000,
    "tasks/threads": 1024,
    "tasks/processes": 1024,
    "disks/inodes-of-temporary": 1024,  # 4 KiB each
    "disks/deep-folders": 1200,
    "limits/file-locks": 5000,
}
# Bombs on disks of 4 MiB.
DISKS: Final = ("disks/fill-persistent", "disks/fill-temporary", "disks/inodes-of-persistent")
# Seconds until the watch, which looks once a second, must have ended a machine; and until it is clear that it will not.
WATCH: Final = 10.0
NO_WATCH: Final = 1.5
# After these the next generation must come up as if nothing had happened.
REMAINS: Final = ("disks/deep-folders", "disks/inodes-of-temporary")
# Seconds within which another machine must answer while the bomb goes off or just after it.
LATENCY: Final = 2.0


# Landlock bounds nothing that can be used up: without it there would be nothing else to see. Nor would there be without
# user namespaces where root starts the system: the others are there.
_PLACES: Final = [
    (rung, profile)
    for rung, profile in PLACES
    if profile in MACHINES and (rung == "full" or (rung == "no-user-namespaces" and profile == "program"))
]
# A program makes no process at all: processes/fork.
_BOMBS: Final = [
    (*place, name) for place in _PLACES for name in MOST if (place[1], name) != ("program", "tasks/processes")
]


@pytest.mark.parametrize(("rung", "profile", "name"), _BOMBS)
def test_bomb_harms_its_machine_alone(
    request: pytest.FixtureRequest, prison_of: PrisonOf, rung: str, profile: str, name: str
) -> None:
    prison = prison_of(rung)
    machine = MACHINES[profile]
    known = expect(request, name, prison, profile, machine)
    before = prison.machines()
    for other in ("OTHER", "PEER"):
        prison.ask(other, ["echo", "there is a path"])
    try:
        got = prison.ask(machine, ["bomb", name, prison.world(profile, machine, "OTHER")])["got"]
    except Died:
        got = -1  # it says why in its certificate
    try:
        if got > MOST[name]:  # the kernel lets it through: then the watch must not
            wait_for(
                lambda: prison.machines()[machine]["generation"] > before[machine]["generation"],
                NO_WATCH if known else WATCH,
            )
            cause = prison.machines()[machine]["cause"]
            assert "out of storage" in cause or "is full" in cause, f"{got} of at most {MOST[name]}: {cause}"
            prison.forget(machine)
        if name == "descriptors/in-flight":
            check_messages(prison, machine, before)
        else:
            check_others(prison, machine, before)
    finally:
        ask_again(prison, machine, ["release"])
        if name in REMAINS:
            prison.restart(machine)
    check_others(prison, machine, before)
    assert ask_again(prison, machine, ["echo", "again"]) == "again"


@pytest.mark.parametrize("name", DISKS)
@pytest.mark.parametrize(("rung", "profile"), _PLACES)
def test_disk_over_its_size_stops_its_machine_alone(prison_of: PrisonOf, rung: str, profile: str, name: str) -> None:
    """A disk of 4 MiB takes no more, or the machine that has written more is stopped, with a certificate."""
    prison = prison_of(rung)
    machine = MACHINES[profile]
    before = prison.machines()
    disk = "t" if name == "disks/fill-temporary" else "s"
    with contextlib.suppress(Died):
        got = prison.ask(machine, ["bomb", name, prison.world(profile, machine, "OTHER")])["got"]
        if got <= 4:
            return
    assert disk != "t" or "mount-ns" not in prison.layers(machine), "it should be a file system of its own"
    try:

        def stopped() -> bool:
            about = prison.machines()[machine]
            if about["pid"] != before[machine]["pid"]:
                return f"disk {disk} is full" in (about["cause"] or "")
            # The watch looks at who has run for a tick of the clock, which is 10 ms.
            with contextlib.suppress(Died, trio.TooSlowError):
                prison.ask(machine, ["echo", LARGE], patience=0.5)
            return False

        wait_for(stopped, WATCH)
        check_others(prison, machine, before)
    finally:
        for file in (prison.state / "disks" / machine / "s").iterdir():
            file.unlink()
    prison.forget(machine)
    assert ask_again(prison, machine, ["echo", "again"]) == "again"


def ask_again(prison: Prison, machine: str, order: Any) -> Any:
    """Ask a machine that may be about to die, or dead and not yet buried."""
    give_up = time.monotonic() + WATCH
    while True:
        try:
            return prison.ask(machine, order)
        except Died:
            assert time.monotonic() < give_up, "it dies again and again"


def check_others(prison: Prison, machine: str, before: dict[str, dict[str, object]]) -> None:
    """All others live on and answer, and are given paths with descriptors as before."""
    begun = time.monotonic()
    prison.forget("OTHER")  # a new path: the control program passes a descriptor
    assert prison.ask("OTHER", ["echo", LARGE]) == LARGE  # a bulk message: it travels as a descriptor
    assert time.monotonic() - begun < LATENCY
    check_generations(prison, machine, before)


def check_generations(prison: Prison, machine: str, before: dict[str, dict[str, object]]) -> None:
    """No other machine has been started again."""
    after = prison.machines()
    assert {name: each["generation"] for name, each in after.items() if name != machine} == {
        name: each["generation"] for name, each in before.items() if name != machine
    }


def check_messages(prison: Prison, machine: str, before: dict[str, dict[str, object]]) -> None:
    """Descriptors on their way are counted for the user: others' may have to wait, but no path is lost for it."""
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        assert prison.ask("OTHER", ["echo", "small"]) == "small"
        large = pool.submit(prison.ask, "OTHER", ["echo", LARGE])
        assert prison.ask("PEER", ["echo", "small"]) == "small"
        assert time.monotonic() - begun < LATENCY
        check_generations(prison, machine, before)
        prison.ask(machine, ["release"])
        assert large.result() == LARGE


def wait_for(condition: Callable[[], object], patience: float) -> None:
    """Ask the control program until it is so."""
    give_up = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < give_up, "the watch let it pass"
        time.sleep(0.01)
