"""The control program: one running system."""

import os
import pathlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from retinue.cp import directory
from retinue.cp.errors import ConfigRejected, Misfit, StartFailed
from retinue.cp.host import levels, measure
from retinue.cp.host.interface import Host, LimitFailed, SavedSystemDied, Terminate
from retinue.cp.life import GRACE, Life
from retinue.cp.offences import Offences
from retinue.cp.operator import LOOK, READ
from retinue.cp.outfit import Outfit
from retinue.cp.reception import Reception
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.cp.selftest import Report, profiles, self_test
from retinue.cp.states import FINAL, State
from retinue.cp.switchboard import Switchboard
from retinue.cp.syslog import CRITICAL, ERROR, INFO, NOTICE, WARNING, Syslog, checked_records
from retinue.cp.users import own_users
from retinue.cp.watch import Watch
from retinue.pipes import Path, PathError

EXIT_FAILED: Final = 1
EXIT_CANNOT_CREATE: Final = 73  # EX_CANTCREAT
EXIT_CONFIG: Final = 78  # EX_CONFIG

# Seconds the followers have at the end to take what was said last.
FAREWELL: Final = 2.0
# Seconds a query of the kept records may take before the ring answers instead.
QUERY_LIMIT: Final = 10.0


class ControlProgram:
    """Brings a system up, keeps it as declared and takes it down."""

    def __init__(
        self,
        topology: directory.Directory,
        host: Host,
        state_folder: pathlib.Path,
        nursery: trio.Nursery,
        *,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self.topology = topology
        self.name = topology.system.name
        self.host = host
        self.grace = GRACE
        self.state = "STARTING"
        self.was_ready = False
        self.secrets = secrets
        self.syslog = Syslog(secrets)
        self.offences = Offences(self.syslog, nursery)
        self.lives = {entry.name: Life(entry, self) for entry in topology.machines}
        self.reception = Reception(self, nursery)
        self.switchboard = Switchboard(
            dict(self.lives), {"*CP": self.reception.star(LOOK), "*LOG": self.reception.star(READ)}, nursery
        )
        self.outfit = Outfit(topology, state_folder, secrets)
        self.watch = Watch(
            self.lives, {entry.name: entry for entry in topology.machines}, self.outfit.disks, host, self.syslog
        )
        self.self_test: Report | None = None
        self._since = time.time()
        self._nursery = nursery
        self._failed: list[tuple[Life, str]] = []
        self._stopping = False
        self._over = trio.Event()
        self._keeping: Path | None = None

    # -- the whole ---------------------------------------------------------------------------------------------------

    async def run(self, console: socket.socket, operators: socket.socket) -> None:
        """Run the system to its end. ``console`` is the path of whoever started it, ``operators`` listens for more."""
        report, root = self.host.seal_report(), os.geteuid() == 0
        if text := levels.refusal(self.topology.system.seal, report, root=root):
            self._end("failed", text, EXIT_FAILED)
            return
        for system in dict.fromkeys(layer.system for layer in report):
            for lack in levels.missing("full", report, system=system, root=root):
                self.syslog.write(WARNING, f"the seal of {system} machines lacks {lack.layer}: {lack.why}")
        try:
            self.outfit.make(self._give_users())
        except OSError as exc:
            cure = "make room there, or choose a place with --state DIR"
            text = f"the disk {exc.filename} cannot be made: {exc.strerror} ({cure})"
            self._end("failed", text, EXIT_CANNOT_CREATE)
            return
        self._nursery.start_soon(self._read_exits)
        self._nursery.start_soon(self._read_host_events)
        self.watch.tell()
        self._nursery.start_soon(self.watch.run)
        self._nursery.start_soon(self.switchboard.watch)
        self._nursery.start_soon(self.reception.serve_console, console)
        self._nursery.start_soon(self.reception.accept, operators)
        if self.topology.system.syslog is not None:
            self._nursery.start_soon(self._keep_records, self.lives[self.topology.system.syslog])
        async with trio.open_nursery() as machines:
            if await self._seal_holds():
                for life in self.lives.values():
                    machines.start_soon(life.run)
                machines.start_soon(self._expect_ready)
                machines.start_soon(self._expect_end)
            await self._over.wait()
            with trio.move_on_after(FAREWELL):
                await self.syslog.broadcast.finish()
            machines.cancel_scope.cancel()

    async def _seal_holds(self) -> bool:
        """Whether scratch machines could do nothing that they must not; else the system ends before it began."""
        entries = self.topology.machines
        storage = max(entry.storage for entry in entries)
        self.self_test = await self_test(self.host, self.syslog, profiles(entries), storage=storage)
        text = self.self_test.text
        if self._stopping:
            return False  # and the scratch machines may have been ended with everything else
        if self.self_test.passed:
            self.syslog.write(INFO, text)
        else:
            self._turn("FAILED", text, EXIT_FAILED)
            self._end("failed", text, EXIT_FAILED)
        return self.self_test.passed

    async def _expect_ready(self) -> None:
        for life in self.lives.values():
            await life.wait_for(lambda state: state is State.READY or state in FINAL)
        if not self._stopping:
            self.was_ready = True
            self._turn("READY")

    async def _expect_end(self) -> None:
        """A system in which nothing runs any more, and nothing will, has ended."""
        for life in self.lives.values():
            await life.wait_for(lambda state: state in FINAL)
        if not self._stopping and not self._failed:
            broken = [life.name for life in self.lives.values() if life.state is State.BROKEN]
            text = f"every machine has ended, {', '.join(broken)} out of order" if broken else "every machine has ended"
            self._turn("STOPPED", text)
            self._end("finished", text, EXIT_FAILED if broken else 0)

    def _end(self, how: str, text: str, exit_code: int) -> None:
        """The last word: the nucleus removes what is left, the control program leaves."""
        self.host.end(how, self.secrets.hide(text), exit_code)
        self._over.set()

    def _turn(self, state: str, cause: str | None = None, exit_code: int | None = None) -> None:
        previous, self.state = self.state, state
        self.announce(None, None, state, previous, cause, exit_code)

    def announce(
        self,
        machine: str | None,
        generation: int | None,
        state: str,
        previous: str,
        cause: str | None,
        exit_code: int | None = None,
    ) -> None:
        """Tell everybody who follows that the state of a machine (or of the system) has changed; leaves a record."""
        cause = cause and self.secrets.hide(cause)
        event = {"time": time.time(), "machine": machine, "generation": generation}
        event |= {"state": state, "previous": previous, "cause": cause}
        if exit_code is not None:
            event["exit_code"] = exit_code
        self.syslog.broadcast.publish(["event", event])
        who = machine or f"the system {self.name}"
        bad = state in ("ABEND", "BROKEN", "FAILED")
        fields = {"event": state, "of": machine, "generation": generation}
        text = f"{who} is {state}" + (f": {cause}" if cause else "")
        self.syslog.write(ERROR if bad else INFO, text, fields=fields)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _give_users(self) -> dict[str, int]:
        """The user of each machine that gets one for itself from the host."""
        able = {layer.system for layer in self.host.seal_report() if layer.layer == "own-uid" and layer.present}
        users = own_users(self.topology) if able else {}
        systems = {entry.name: "network" if entry.network else "sealed" for entry in self.topology.machines}
        return {name: user for name, user in users.items() if systems[name] in able}

    async def turn_of(self, life: Life) -> None:
        """Until a loaded machine may run: at the first start every program is loaded; always its servers are there."""
        if not self.was_ready:
            for other in self.lives.values():
                await other.settled.wait()
            if self._failed:
                await trio.sleep_forever()
        servers = self.servers_of(life)
        while down := [server for server in servers if server.state is not State.READY and server.state not in FINAL]:
            await down[0].wait_for(lambda state: state is State.READY or state in FINAL)

    def restart_users(self, dead: Life) -> None:
        """A machine has died and is started again: so are those that said so of their edges to it."""
        for life in self.lives.values():
            for edge in life.entry.uses:
                if edge.to == dead.name and edge.on_restart == "restart":
                    life.follow(dead.name, edge.name, dead.cause)

    def servers_of(self, life: Life) -> list[Life]:
        """The machines that must be ready before this one; SYSLOG before everybody."""
        names = {edge.to for edge in life.entry.uses if not edge.star and not edge.lazy}
        keeper = self.topology.system.syslog
        if keeper is not None and keeper != life.name:
            names.add(keeper)
        return [self.lives[name] for name in names]

    def first_start_failed(self, life: Life, cause: str) -> None:
        """A machine could not be started when the system was: the system does not start."""
        self._failed.append((life, cause))
        if len(self._failed) == 1:
            self._nursery.start_soon(self._fail)

    async def _fail(self) -> None:
        # Others may fail to load as well: tell everything at once.
        for life in self.lives.values():
            await life.settled.wait()
        misfits = tuple(misfit for life, _ in self._failed for misfit in life.misfits)
        error: Exception
        if misfits:
            error, code = ConfigRejected(misfits), EXIT_CONFIG
        else:
            error, code = StartFailed(self._failed[0][0].name, self._failed[0][1]), EXIT_FAILED
        self._turn("FAILED", str(error), code)
        await self._stop_machines()
        self._end("failed", str(error), code)

    def misfit(self, machine: str, untrusted_mistake: Any) -> Misfit:
        """A mistake that a program found in its config, with the line of the topology file."""
        match untrusted_mistake:
            case {"keys": list(untrusted_keys), "text": str(text)}:
                pass
            case _:
                untrusted_keys, text = [], "its program told a mistake that cannot be read"
        keys = tuple(key for key in untrusted_keys if isinstance(key, str | int))
        line = self.topology.line("machines", machine, "config", *keys)
        return Misfit(self.topology.path.name, line, machine, keys, self.secrets.hide(text))

    # -- stop ----------------------------------------------------------------------------------------------------------

    def stop(self, how: str, text: str, *, force: bool = False) -> None:
        """Take the system down: in order, or with ``force`` at once. Once begun it cannot be called off."""
        if force:
            self._end(how, text + ", by force", 0 if how == "down" else EXIT_FAILED)
        elif not self._stopping and not self._failed:
            self._stopping = True
            self._nursery.start_soon(self._take_down, how, text)

    async def _take_down(self, how: str, text: str) -> None:
        self._turn("STOPPING", text)
        await self._stop_machines()
        self._turn("STOPPED")
        self._end(how, text, 0)

    async def _stop_machines(self) -> None:
        """Each machine after everybody who uses it; SYSLOG last, so that it hears of everything."""
        self._stopping = True
        async with trio.open_nursery() as nursery:
            for life in self.lives.values():
                nursery.start_soon(self._stop_machine, life)

    async def _stop_machine(self, life: Life) -> None:
        for user in self.lives.values():
            if user is not life and life in self.servers_of(user):
                await user.wait_for(lambda state: state in FINAL or state is State.ABEND)
        if life.name == self.topology.system.syslog and self._keeping is not None:
            with trio.move_on_after(self.grace):
                await self.syslog.settle()
        life.ask_to_stop()
        await life.wait_for(lambda state: state in FINAL or state is State.ABEND)

    # -- what the host tells -------------------------------------------------------------------------------------------

    async def _read_exits(self) -> None:
        async for exit in self.host.exits:
            life = self.lives.get(exit.machine)
            if life is not None:
                life.exited(exit)

    async def _read_host_events(self) -> None:
        async for event in self.host.events:
            match event:
                case Terminate():
                    self.stop("terminated", "the nucleus was asked to end by a signal")
                case LimitFailed():
                    self.watch.failed(event)
                case SavedSystemDied():
                    self.syslog.write(CRITICAL, f"the saved system {event.system} died: {event.text}")
                    self._turn("FAILED", f"the saved system died: {event.text}", EXIT_FAILED)

    # -- records -------------------------------------------------------------------------------------------------------

    async def _keep_records(self, keeper: Life) -> None:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Path]:
            await keeper.wait_for(lambda state: state is State.READY)
            async with self.switchboard.open_to("*LOG", keeper) as path:
                self._keeping = path
                try:
                    yield path
                finally:
                    self._keeping = None
                    self.offences.tell_violation(keeper.name, path)

        await self.syslog.keep(connect)

    async def records(self, machine: str | None, count: int) -> list[dict[str, Any]]:
        """The newest records, oldest first: from the machine that keeps them, else from the control program's ring."""
        if (path := self._keeping) is not None:
            with trio.move_on_after(QUERY_LIMIT):
                try:
                    await self.syslog.settle()
                    answer = await path.call(["query", {"machine": machine, "count": count}])
                    return checked_records(answer)
                except PathError as exc:
                    self.syslog.write(NOTICE, f"the syslog machine did not answer a query: {exc}")
        return self.syslog.recent(machine, count)

    # -- listings ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The system as a whole, for the verb ``status``."""
        from retinue import __version__

        return {
            "system": self.name,
            "state": self.state,
            "topology": str(self.topology.path),
            "nucleus_pid": os.getppid(),
            "cp_pid": os.getpid(),
            "since": self._since,
            "version": __version__,
            "paths": self.switchboard.open_paths,
            "unkept_records": self.syslog.unkept,
            "seal": [attrs.asdict(layer) for layer in self.host.seal_report()],
            "limits": [attrs.asdict(limit) for limit in self.host.limits_report()],
            "self_test": None if self.self_test is None else self.self_test.as_dict(),
        }

    def listing(self) -> list[dict[str, Any]]:
        """Every machine, for the verb ``ps``. Sizes in bytes, times in seconds."""
        now = time.monotonic()
        return [
            {
                "name": life.name,
                "state": life.state.value,
                "pid": life.pid,
                "generation": life.generation,
                "storage": {"limit": life.entry.storage, "resident": measure.resident(life.pid)},
                "uptime": None if life.born_at is None else round(now - life.born_at, 3),
                "restarts": life.restarts,
                "kind": life.entry.kind,
                "program": life.entry.program,
                "network": life.entry.network,
                "uses": [{"name": edge.name, "to": edge.to} for edge in life.entry.uses],
                "cause": life.cause,
                "seal": list(life.seal),
            }
            for life in self.lives.values()
        ]
