"""Runs a native program, as it is, inside a machine (``exec = [...]``).

The machine's own process starts the program as its child and speaks for it:

=====================  =============================================================================================
standard output        one record a line, as of a Python program; standard error, too
sockets.X = "listen"   each path that another machine opens becomes one connection to {sockets.X}; the machine is
                       ready when that socket accepts connections
sockets.X = "connect"  each connection of the program to {sockets.X} becomes one path along the edge X
other edges            an inherited descriptor, RETINUE_EDGE_X: the bytes of one path along that edge
secrets                an inherited descriptor, RETINUE_SECRET_X: a sealed memfd with the value
stop                   SIGTERM to the program; who does not end in time is killed, with all it has started
exit                   the machine ends as the program does; with 128 and the number of the signal that killed it
=====================  =============================================================================================

The program sees no path and no message: a path carries bytes from the moment in which its other end calls ``stream()``.
``docs/reference/program-api.md`` tells program and topology what to expect.
"""

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from retinue.svm import secret, unix
from retinue.svm.child import FIRST, Child
from retinue.svm.command import Command
from retinue.svm.connector import Connector
from retinue.svm.machine import Machine
from retinue.svm.unix import log

# What a shell answers when it cannot run a program, or does not find it.
EXIT_NOT_RUN: Final = 126
EXIT_NOT_FOUND: Final = 127

# How long what the program has sent before its end may take to be received, in seconds.
FLUSH_TIME: Final = 1.0


def main_of(command: Command) -> Callable[[Machine[Any]], Awaitable[None]]:
    """The ``main`` of a machine that runs the command; raises SystemExit with the program's status unless that is 0."""

    async def main(vm: Machine[Any]) -> None:
        if status := await Native(vm, command).run():
            raise SystemExit(status)

    return main


class Native:
    """One life of a native program: what it inherits, its start, its end."""

    def __init__(self, vm: Machine[Any], command: Command) -> None:
        self._vm = vm
        self._command = command

    async def run(self) -> int:
        """Until the program has ended; returns what the machine's exit status is to be."""
        vm, command = self._vm, self._command
        incoming = vm.listen()
        connections: dict[str, trio.SocketStream] = {}
        listeners: dict[str, trio.socket.SocketType] = {}
        try:
            for name in command.connecting:
                listeners[name] = unix.listen(command.socket(name))
            child = self._start(connections)
        except OSError as exc:
            log.critical("%s cannot be run: %s", command.executable, exc.strerror)
            for each in (*listeners.values(), *(connection.socket for connection in connections.values())):
                each.close()
            return EXIT_NOT_FOUND if exc.errno == errno.ENOENT else EXIT_NOT_RUN
        async with trio.open_nursery() as relaying:
            # What is no relay yet when the program ends will never be one.
            async with trio.open_nursery() as opening:
                connector = Connector(vm, command, child, opening, relaying)
                opening.start_soon(self._stop_when_asked, child)
                opening.start_soon(self._say_ready)
                opening.start_soon(connector.take_paths, incoming)
                for name, listener in listeners.items():
                    opening.start_soon(connector.take_connections, name, listener)
                for edge, connection in connections.items():
                    opening.start_soon(connector.carry, edge, connection)
                await child.run()
                opening.cancel_scope.cancel()
            relaying.cancel_scope.deadline = trio.current_time() + FLUSH_TIME
        return self._judge(child)

    def _start(self, connections: dict[str, trio.SocketStream]) -> Child:
        """Start the program; ``connections`` becomes our end of what it inherits for its edges."""
        command = self._command
        if command.listening is not None:
            unix.remove(command.socket(command.listening))
        with contextlib.ExitStack() as theirs:
            inherited: dict[str, int] = {}
            for edge in command.inherited:
                connections[edge], end = unix.pair()
                inherited[f"RETINUE_EDGE_{edge.upper()}"] = theirs.enter_context(end).fileno()
            for name, value in command.secrets.items():
                inherited[f"RETINUE_SECRET_{name.upper()}"] = descriptor = secret.as_descriptor(name, value)
                theirs.callback(os.close, descriptor)
            numbers = {variable: number for number, variable in enumerate(inherited, FIRST)}
            paths = {
                name: secret.as_path(
                    command.run, name, command.secrets[name], numbers[f"RETINUE_SECRET_{name.upper()}"]
                )
                for name in command.told
            }
            environment = command.environment(numbers)
            return Child(command.executable, command.arguments(paths), environment, tuple(inherited.values()))

    async def _say_ready(self) -> None:
        """When its socket accepts a connection; at once if it has none."""
        if self._command.listening is not None:
            probe = await unix.dial(self._command.socket(self._command.listening), absent=True)
            await trio.aclose_forcefully(probe)
        await self._vm.ready()

    async def _stop_when_asked(self, child: Child) -> None:
        await self._vm.stopping.wait()
        child.terminate()

    def _judge(self, child: Child) -> int:
        """The machine's exit status, with a record of why it is not 0: its last line becomes the cause of death."""
        status, name = child.status, self._command.name
        assert status is not None
        stopping = self._vm.stopping.is_set()
        if status == 0 or (stopping and status == -signal.SIGTERM):
            return 0
        how = "failed" if status > 0 else f"was killed by {_signal_name(-status)}"
        said = f"; its last line: {child.last_line}" if child.last_line else ""
        log.log(logging.WARNING if stopping else logging.CRITICAL, "%s %s%s", name, how, said)
        return status if status > 0 else 128 - status


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
