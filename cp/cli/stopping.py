"""Stopping a running system from outside: order it, watch, and if need be kill the nucleus."""

import time
from typing import Final

import trio

from retinue.cp import runtime
from retinue.cp.cli.board import Board
from retinue.cp.cli.errors import CommandError, NoAnswer, SystemFailed, SystemGone
from retinue.cp.cli.live import REFRESH, Display, display
from retinue.cp.cli.output import tell
from retinue.cp.cli.session import (
    BURY_WAIT,
    FORCE_WAIT,
    STOP_PATIENCE,
    NucleusProcess,
    Patience,
    ask,
    message_of,
    operator,
    survives,
)
from retinue.pipes import Path

# A killed nucleus ends in milliseconds; longer means that the kernel holds it (a dead disk).
KILL_WAIT: Final = 10.0


async def stop(system: runtime.Running, force: bool) -> None:
    """Stop a running system and wait until its nucleus is gone. Raises NoAnswer or SystemFailed if it does not stop."""
    if system.nucleus_pid is None:
        async with operator(system) as path:
            pid = int((await ask(path, system, "status"))["nucleus_pid"])
    else:
        pid = system.nucleus_pid
    nucleus = NucleusProcess.of(system, pid)
    if nucleus is None:
        return
    gone = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, nucleus, gone)
            try:
                await _stop_in_order(system, nucleus, gone, force)
            except NoAnswer:
                if not force:
                    raise
                await _kill(system, nucleus, gone, "its control program does not answer")
            nursery.cancel_scope.cancel()
    finally:
        nucleus.close()


async def _watch(nucleus: NucleusProcess, gone: trio.Event) -> None:
    await nucleus.wait()
    gone.set()


async def _stop_in_order(system: runtime.Running, nucleus: NucleusProcess, gone: trio.Event, force: bool) -> None:
    patience, why = Patience(STOP_PATIENCE), "it does not end"
    board = Board(system.system, (), time.monotonic)
    in_time, ordered = True, False
    with display(board) as shown:
        # A successor of a control program that dies meanwhile has to be told, too.
        while in_time and not gone.is_set():
            try:
                in_time, ordered = await _order_down(system, board, shown, patience, gone, force), True
            except SystemGone:
                pass  # faster than our questions, or its control program has died of them
            except NoAnswer:
                if not ordered:
                    if not force:
                        raise
                    in_time, why = False, "its control program does not answer"
                break
            if not await survives(system):
                break
        in_time = in_time and await patience.wait(gone)
        if in_time:
            board.end()
    if in_time:
        return
    if not force:
        slow = ", ".join(
            status.name for status in board.machines.values() if status.state not in {"STOPPED", "DEFINED"}
        )
        raise SystemFailed(
            system.system,
            "does not stop",
            f"nothing has happened for {STOP_PATIENCE:g} s" + (f"; not stopped: {slow}" if slow else ""),
            cure=f"retinue down --force --system {system.system}",
        )
    await _kill(system, nucleus, gone, why)


async def _order_down(
    system: runtime.Running, board: Board, shown: Display, patience: Patience, gone: trio.Event, force: bool
) -> bool:
    """Order it, and wait until the system or the path has ended; False if patience ran out first."""
    ended = trio.Event()
    raised: CommandError | None = None
    in_time = False
    async with operator(system) as path, trio.open_nursery() as nursery:
        try:
            if force:  # first of all: whatever else is asked may hang
                await ask(path, system, "down", force=True, within=FORCE_WAIT)
                patience.limit(BURY_WAIT)
            else:
                board.doubt()
                board.prime(await ask(path, system, "ps"))
            nursery.start_soon(_show, path, board, shown, patience, ended)
            nursery.start_soon(_draw, shown)
            nursery.start_soon(_pass_on, gone, ended)
            if not force:
                await ask(path, system, "follow", machine=None, events=True, records=False)
                await ask(path, system, "down", force=False)
            in_time = await patience.wait(ended)
        except CommandError as error:
            raised = error  # raised here it would leave the nursery in a group
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
    return in_time


async def _show(path: Path, board: Board, shown: Display, patience: Patience, ended: trio.Event) -> None:
    async for message in path:
        kind, content = message_of(message.body)
        if kind == "event":
            patience.progress()
            line = board.apply(content)
            if line is not None:
                shown.event(line)
    ended.set()


async def _pass_on(gone: trio.Event, ended: trio.Event) -> None:
    await gone.wait()
    ended.set()


async def _draw(shown: Display) -> None:
    while True:
        await trio.sleep(REFRESH)
        shown.draw()


async def _kill(system: runtime.Running, nucleus: NucleusProcess, gone: trio.Event, why: str) -> None:
    tell(f"{system.system}: {why}; the nucleus (pid {nucleus.pid}) is killed")
    nucleus.kill()
    with trio.move_on_after(KILL_WAIT):
        await gone.wait()
    if not gone.is_set():
        raise CommandError(f"the nucleus (pid {nucleus.pid}) of {system.system} does not end, though it was killed")
