"""The system under a campaign, as it is seen from outside: its machines, its control programs, and who hurts them."""

import contextlib
import os
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path, PathError, Rejected, SocketTransport, open_path

# States in which a machine needs nothing: what it should be is not the business of the control program alone.
AT_REST: Final = frozenset({"DORMANT", "STOPPED"})
# Seconds between two looks at a system that recovers: shorter at first.
FIRST_LOOK, LONGEST_LOOK = 0.002, 0.05
# Seconds until a control program that was just killed is asked again.
_TRY_AGAIN: Final = 0.005
# What a control program is called in ps while it waits.
SPARE: Final = "spare"


class NotRecovered(Exception):
    """The system has not reached its declared state in time. ``found`` is what it was."""

    def __init__(self, seconds: float, found: str) -> None:
        self.seconds, self.found = seconds, found
        super().__init__(f"not as declared after {seconds:g} s: {found}")


@attrs.frozen
class Machine:
    """A line of the listing."""

    name: str
    state: str
    pid: int | None
    generation: int
    restarts: int


@attrs.define
class World:
    """``runtime`` is where the operator's socket is, ``patience`` how many seconds a recovery may take."""

    runtime: pathlib.Path
    nucleus: int
    patience: float
    declared: frozenset[str] = frozenset()
    """The machines that should be READY."""

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Path]:
        """A path to the control program that there is now."""
        async with open_path(SocketTransport(connect_operator(self.runtime)), name="*CP", peer="*CP") as path:
            yield path

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask the control program; the next one if it dies meanwhile. Rejected as it says."""
        with trio.move_on_after(self.patience):
            while True:
                try:
                    async with self.operator() as path:
                        return await path.call([verb, arguments])
                except* Rejected as group:
                    raise group.exceptions[0] from None
                except* (PathError, OSError):
                    pass
                await trio.sleep(_TRY_AGAIN)
        raise NotRecovered(self.patience, "no control program answers")

    async def machines(self) -> dict[str, Machine]:
        """The listing, by name."""
        listed = (await self.ask("ps"))["machines"]
        fields = [attribute.name for attribute in attrs.fields(Machine)]
        return {each["name"]: Machine(**{name: each[name] for name in fields}) for each in listed}

    async def settle(self, gone: frozenset[int] = frozenset()) -> float:
        """Until the system is as declared, and none of the processes in ``gone`` is of it; the seconds it took.

        Raises :exc:`NotRecovered`.
        """
        begun = trio.current_time()
        pause = FIRST_LOOK
        while True:
            machines = await self.machines()
            wrong = [
                f"{each.name} is {each.state}"
                for each in machines.values()
                if (each.name in self.declared and each.state != "READY") or each.pid in gone
            ]
            if not wrong and self.declared <= machines.keys():
                return trio.current_time() - begun
            if trio.current_time() - begun > self.patience:
                raise NotRecovered(self.patience, ", ".join(wrong))
            await trio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_LOOK)

    async def control_program(self) -> int:
        """The process id of the one in office."""
        found: int = (await self.ask("status"))["cp_pid"]
        return found

    def spare(self) -> int | None:
        """The process id of the control program that waits, if there is one now."""
        return next((pid for pid, name in self.children().items() if name == SPARE), None)

    async def wait_spare(self) -> int:
        """Until a control program waits."""
        while True:
            if (pid := self.spare()) is not None:
                return pid
            await trio.sleep(LONGEST_LOOK)

    def children(self) -> dict[int, str]:
        """The nucleus' own children: process id and name."""
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):
            for pid in map(int, pathlib.Path(f"/proc/{self.nucleus}/task/{self.nucleus}/children").read_text().split()):
                with contextlib.suppress(OSError):
                    found[pid] = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        return found


def signal(pid: int | None, number: int) -> bool:
    """Send a signal; whether there was anybody to get it."""
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
