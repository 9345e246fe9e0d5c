"""The control program: one running system."""

import contextlib
import os
import pathlib
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from retinue.cp import directory
from retinue.cp.administration import Administration
from retinue.cp.certificates import Certificates
from retinue.cp.death import Death
from retinue.cp.declaration import Declaration
from retinue.cp.errors import ConfigRejected, Misfit
from retinue.cp.host import levels, measure
from retinue.cp.host.interface import (
    Exit,
    Host,
    LimitFailed,
    Restored,
    SavedSystemDied,
    SpareFailed,
    SpareReady,
    Terminate,
)
from retinue.cp.host_sockets import HostSockets
from retinue.cp.incarnation import Incarnation
from retinue.cp.inheritance import inherit
from retinue.cp.journal import Journal
from retinue.cp.life import GRACE, Life
from retinue.cp.log_policy import LogPolicies
from retinue.cp.offences import Offences
from retinue.cp.operator import LOOK, READ
from retinue.cp.outfit import Outfit
from retinue.cp.pager.pager import KEY as PAGER
from retinue.cp.pager.pager import Pager
from retinue.cp.postmortem import last_messages
from retinue.cp.reception import Reception
from retinue.cp.secrets import Secrets
from retinue.cp.segments import Segments, place
from retinue.cp.selftest import Report, profiles, test_until
from retinue.cp.states import State
from retinue.cp.supervision import Supervision
from retinue.cp.switchboard import Switchboard
from retinue.cp.syslog import CRITICAL, ERROR, INFO, NOTICE, WARNING, Syslog
from retinue.cp.users import given_users
from retinue.cp.volume import open_volume
from retinue.cp.watch import Watch
from retinue.pipes import Path

EXIT_FAILED: Final = 1
EXIT_CANNOT_CREATE: Final = 73  # EX_CANTCREAT
EXIT_CONFIG: Final = 78  # EX_CONFIG

# Seconds the followers have at the end.
FAREWELL: Final = 2.0
# Seconds a control program that has taken over has for its machines before it gives itself a successor.
SETTLED: Final = 1.0
# Characters of the reason of an end that the next control program is told, and the nucleus.
TEXT: Final = 8000


class ControlProgram:
    """Brings a system up, keeps it as declared and takes it down; or goes on where an earlier one has died."""

    def __init__(
        self,
        declared: Declaration,
        host: Host,
        state_folder: pathlib.Path,
        nursery: trio.Nursery,
        *,
        journal: Journal | None = None,
        runtime: pathlib.Path | None = None,
    ) -> None:
        topology = self.topology = declared.topology
        secrets = self.secrets = Secrets(declared.secrets)
        self.name = topology.system.name
        self.host = host
        self.nursery = nursery
        self.grace: float | None = None
        """Seconds every machine has to end at the end of the system; None: as many as its own ``grace``."""
        self.state = "STARTING"
        self.was_ready = False
        self.stopping = False
        self.syslog = Syslog(secrets, journal, LogPolicies(topology), state_folder / "spill")
        self.offences = Offences(self.syslog, nursery)
        self.host_sockets = HostSockets(self.offences, self.syslog, nursery)
        self.certificates = Certificates(state_folder, self.syslog, self.name, secrets)
        self.lives = {name: Life(entry, self) for name, entry in topology.entries.items()}
        self.supervision = Supervision(self)
        self.administration = Administration(self, declared)
        self.reception = Reception(self, nursery, lambda attended: self.keep())
        self.switchboard = Switchboard(
            dict(self.lives), {"*CP": self.reception.star(LOOK), "*LOG": self.reception.star(READ)}, nursery, host
        )
        self.outfit = Outfit(topology.expanded(), state_folder, secrets, runtime, self.syslog)
        folder = place(topology.system, state_folder)
        self.segments = Segments(folder, host, lambda name: self.outfit.users.get(name, -1))
        self.watch = Watch(self.lives, self.outfit, host, self.syslog, self.segments)
        self.pager = Pager(self, self.segments)
        self.self_test: Report | None = None
        self._since = time.time()
        self._state_folder = state_folder
        self._over = trio.Event()
        self._machines: trio.Nursery | None = None
        self._ending: list[Any] | None = None  # how, text and exit code of the end that has begun

    # -- the whole -----------------------------------------------------------------------------------------------------

    async def run(self, console: socket.socket | None, operators: socket.socket) -> None:
        """Run the system to its end. ``console`` is the path of whoever started it, ``operators`` listens for more."""
        if self.host.restored.first and not self._prepare():
            return
        try:
            await self._run(self.host.restored, console, operators)
        finally:
            self.switchboard.leave()

    async def _run(self, restored: Restored, console: socket.socket | None, operators: socket.socket) -> None:
        self.nursery.start_soon(self._read_host_events)
        self.nursery.start_soon(self.certificates.run)
        if restored.first:
            self.keep()
            self._keep_declaration()
        else:
            self._take_over(restored)
        await open_volume(self.topology.system, self.host, self._state_folder, self.syslog)
        self.nursery.start_soon(self._read_exits)
        self.nursery.start_soon(self.watch.run)
        self.nursery.start_soon(self.pager.run)
        self.nursery.start_soon(self.switchboard.watch)
        if console is not None:
            self.nursery.start_soon(self.reception.serve_console, console)
        if self.topology.system.syslog is not None:
            self.nursery.start_soon(self._keep_records, self.lives[self.topology.system.syslog])
        async with trio.open_nursery() as machines:
            self._machines = machines
            if restored.first:
                self.nursery.start_soon(self.reception.accept, operators)
            tested = not restored.first and self.self_test is not None
            if tested or await self._seal_holds():
                for life in list(self.lives.values()):
                    machines.start_soon(life.run)
                if not restored.first:
                    for life in list(self.lives.values()):
                        await life.wait_adopted()
                    self.nursery.start_soon(self.reception.accept, operators)
                    if self.administration.applying:
                        self.nursery.start_soon(self.administration.finish)
                machines.start_soon(self._expect_ready)
                machines.start_soon(self._expect_end)
                if self._ending is not None:
                    how, text, exit_code = self._ending
                    self.nursery.start_soon(self._take_down, how, text, exit_code)
            await self._over.wait()
            with trio.move_on_after(FAREWELL):
                await self.certificates.settle()
                await self.syslog.broadcast.finish()
            machines.cancel_scope.cancel()
        sys.stderr.writelines(f"{told}\n" for told in (self.syslog.finish(),) if told)  # of who was ended by force

    def _prepare(self) -> bool:
        """Before the first start: whether this host can seal machines as the topology asks, and has room for disks."""
        report, root = self.host.seal_report(), os.geteuid() == 0
        if text := levels.refusal(self.topology.system.seal, report, root=root):
            self._end("failed", text, EXIT_FAILED)
            return False
        for system in dict.fromkeys(layer.system for layer in report):
            for lack in levels.missing("full", report, system=system, root=root):
                self.syslog.write(WARNING, f"the seal of {system} machines lacks {lack.layer}: {lack.why}")
        try:
            self.outfit.make(self._give_users(), self._since)
        except OSError as exc:
            cure = "make room there, or choose a place with --state DIR"
            text = f"the disk {exc.filename} cannot be made: {exc.strerror} ({cure})"
            self._end("failed", text, EXIT_CANNOT_CREATE)
            return False
        self.watch.tell()
        return True

    # -- over the death of a control program ---------------------------------------------------------------------------

    def keep(self) -> None:
        """Have the nucleus remember what the next control program must know."""
        note = {"state": self.state, "was_ready": self.was_ready, "since": self._since}
        note |= {"ending": self._ending and [self._ending[0], self._ending[1][:TEXT], self._ending[2]]}
        note |= {"console": self.reception.attended, "users": dict(self.outfit.users), "grace": self.grace}
        note |= {"budgets": self.supervision.note()}
        note |= {"self_test": None if self.self_test is None else self.self_test.as_dict()}
        self.host.keep("system", note)

    def _keep_declaration(self) -> None:
        admin = self.administration
        Declaration(self.topology, admin.settings, self.secrets.values, admin.held, admin.applying).keep(self.host)

    def _take_over(self, restored: Restored) -> None:
        note = restored.kept["system"].note
        self.state, self.was_ready, self._since = note["state"], note["was_ready"], note["since"]
        self._ending, self.stopping = note["ending"], note["ending"] is not None
        self.self_test = None if note["self_test"] is None else Report.from_dict(note["self_test"])
        self.outfit.users, self.grace = note["users"], note["grace"]
        self.supervision.restore(note["budgets"])
        self.pager.restore(restored.kept[PAGER].note if PAGER in restored.kept else {})
        if note["console"]:
            self.nursery.start_soon(self.reception.expect_console)
        exits: dict[tuple[str, int], Exit] = {}
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                exit = self.host.exits.receive_nowait()
                exits[exit.machine, exit.generation] = exit
        adopted = inherit(self, restored, exits)
        self.segments.adopt(restored.kept, [life.current for life in self.lives.values() if life.current is not None])

        def ended(machine: str, generation: int) -> str | None:
            life = self.lives.get(machine)
            if life is not None and life.current is not None and life.generation == generation:
                return None
            return f"{machine} has ended while the control program was replaced"

        self.switchboard.adopt(restored.kept, ended)
        for (machine, generation), exit in exits.items():
            if (life := self.lives.get(machine)) is not None:
                life.exited(exit)
            else:
                self.host.buried(machine, generation)
        text = f"control program {os.getpid()} has taken over {adopted} machines"
        self.syslog.write(NOTICE, f"{text} and {self.switchboard.open_paths} paths")

    async def _seal_holds(self) -> bool:
        """Whether scratch machines could do nothing that they must not; else the system ends before it began."""
        if not self.host.seal_report():
            self.syslog.write(WARNING, "this host seals nothing")
            return True
        entries = self.topology.machines
        storage = max(entry.storage for entry in entries)
        report = await test_until(self._over, self.host, self.syslog, profiles(entries), storage=storage)
        if report is None or self.stopping:
            return False  # and the scratch machines may have been ended with everything else
        self.self_test, text = report, report.text
        if self.self_test.passed:
            self.syslog.write(INFO, text)
        else:
            self._turn("FAILED", text, EXIT_FAILED)
            self._end("failed", text, EXIT_FAILED)
        return self.self_test.passed

    async def _expect_ready(self) -> None:
        with trio.move_on_after(SETTLED if self.was_ready else float("inf")):
            await self.supervision.until_up()
        if not self.stopping:
            if not self.was_ready:
                self.was_ready = True
                self._turn("READY")
            self.host.spare()

    async def _expect_end(self) -> None:
        """A system in which nothing runs any more, and nothing will, has ended."""
        await self.supervision.until_over()
        if not self.stopping and not self.supervision.not_started:
            broken = [life.name for life in self.lives.values() if life.state is State.BROKEN]
            text = f"every machine has ended, {', '.join(broken)} out of order" if broken else "every machine has ended"
            self._turn("STOPPED", text)
            self._end("finished", text, EXIT_FAILED if broken else 0)

    def _end(self, how: str, text: str, exit_code: int) -> None:
        """The last word: the nucleus removes what is left, the control program leaves."""
        told = filter(None, (self.secrets.hide(text)[:TEXT], self.syslog.finish()))
        self.host.end(how, " ".join(told), exit_code)
        self._over.set()

    def _turn(self, state: str, cause: str | None = None, exit_code: int | None = None) -> None:
        previous, self.state = self.state, state
        self.keep()
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
        fields = {"event": state, "of": machine, "generation": generation, "previous": previous, "cause": cause}
        text = f"{who} is {state}" + (f": {cause}" if cause else "")
        self.syslog.write(ERROR if bad else INFO, text, fields=fields)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _give_users(self) -> dict[str, int]:
        """The user of each machine that gets one for itself from the host."""
        able = {layer.system for layer in self.host.seal_report() if layer.layer == "own-uid" and layer.present}
        return given_users(self.topology.expanded(), able, self.outfit.users) if able else {}

    def live(self, entry: directory.MachineEntry) -> Life:
        """A machine that was added while the system runs."""
        life = self.lives[entry.name] = Life(entry, self)
        self.switchboard.add_target(life)
        assert self._machines is not None
        self._machines.start_soon(life.run)
        return life

    def remove(self, life: Life) -> None:
        """A machine that has ended is no part of the system any more."""
        del self.lives[life.name]
        self.switchboard.remove_target(life.name)
        self.pager.admission.forget(life.name)
        life.forget()

    def declare(self, topology: directory.Directory) -> None:
        """From now on the system is to be so. OSError: a disk cannot be made."""
        before, self.topology = self.topology, topology
        try:
            self.outfit.declare(topology.expanded(), self._give_users(), self._since)
        except OSError:
            self.topology = before
            raise
        self.syslog.declare(topology)
        self.supervision.redeclare()
        self.pager.redeclare()
        self.keep()  # with the users of machines that are new
        self._keep_declaration()

    def certify(self, life: Life, dead: Incarnation, death: Death) -> None:
        """Write the certificate of a death; what neighbours know of it is added when they have said it."""
        told = [
            (user.name, edge.name, edge.on_restart)
            for user in self.lives.values()
            for edge in user.entry.uses
            if edge.to == life.base
        ]
        now = trio.current_time()
        self.certificates.issue(
            machine=life.name,
            generation=dead.generation,
            cause=death.cause.value,
            text=death.text,
            exit=dead.exit,
            ready=dead.ready_for,
            lived=0.0 if dead.born_at is None else now - dead.born_at,
            storage=dead.entry.storage,
            told=told,
        )
        if not death.asked:
            self.nursery.start_soon(self._hear, life, dead)

    async def _hear(self, life: Life, dead: Incarnation) -> None:
        """Ask the neighbours of a dead process what it has not answered; its successor soon will."""
        users = [(user, edge) for user in self.lives.values() for edge in user.entry.uses if edge.to == life.base]
        servers = [
            (server, f"{life.name}.{edge.name}")
            for edge in dead.entry.uses
            for server in self.lives.values()
            if server.base == edge.to
        ]
        messages = await last_messages([(user, edge.name) for user, edge in users], servers)
        self.certificates.heard(life.name, dead.generation, messages)

    def misfit(self, entry: directory.MachineEntry, untrusted_mistake: Any) -> Misfit:
        """A mistake that a program found in its config, with the line of the topology file."""
        match untrusted_mistake:
            case {"keys": list(untrusted_keys), "text": str(text)}:
                pass
            case _:
                untrusted_keys, text = [], "its program told a mistake that cannot be read"
        keys = tuple(key for key in untrusted_keys if isinstance(key, str | int))
        machine = entry.base or entry.name
        line = self.topology.line("machines", machine, "config", *keys)
        return Misfit(self.topology.path.name, line, machine, keys, self.secrets.hide(text))

    # -- stop ----------------------------------------------------------------------------------------------------------

    def stop(self, how: str, text: str, *, force: bool = False, exit_code: int = 0) -> None:
        """Take the system down: in order, or with ``force`` at once. Once begun it cannot be called off."""
        if force:
            self._end(how, text + ", by force", 0 if how == "down" else EXIT_FAILED)
        elif not self.stopping and not self.supervision.not_started:
            self.nursery.start_soon(self._take_down, how, text, exit_code)

    async def fail(self, error: Exception) -> None:
        """The system cannot be started."""
        code = EXIT_CONFIG if isinstance(error, ConfigRejected) else EXIT_FAILED
        self._turn("FAILED", str(error), code)
        await self._take_down("failed", str(error), code)

    async def _take_down(self, how: str, text: str, exit_code: int) -> None:
        self.stopping, self._ending = True, [how, text, exit_code]
        if how != "failed":
            self._turn("STOPPING", text)
        self.keep()
        await self.supervision.stop_all()
        if how != "failed":
            self._turn("STOPPED")
        self._end(how, text, exit_code)

    async def settle_records(self) -> None:
        """Until the machine that keeps the records has them all, if it is there."""
        if self.syslog.keeper.there:
            with trio.move_on_after(GRACE):
                await self.syslog.keeper.settle()

    # -- what the host tells -------------------------------------------------------------------------------------------

    async def _read_exits(self) -> None:
        async for exit in self.host.exits:
            life = self.lives.get(exit.machine)
            if life is not None:
                life.exited(exit)
            else:  # a scratch machine, or one that is no part of the system any more
                self.host.buried(exit.machine, exit.generation)

    async def _read_host_events(self) -> None:
        async for event in self.host.events:
            match event:
                case Terminate():
                    self.stop("terminated", "the nucleus was asked to end by a signal")
                case LimitFailed():
                    self.watch.failed(event)
                case SpareReady() | SpareFailed():
                    self.administration.spare(event)
                case SavedSystemDied():
                    self.syslog.write(CRITICAL, f"the saved system {event.system} died: {event.text}")
                    self._turn("FAILED", f"the saved system died: {event.text}", EXIT_FAILED)

    # -- records -------------------------------------------------------------------------------------------------------

    async def _keep_records(self, keeper: Life) -> None:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Path]:
            await keeper.wait_until(lambda: keeper.ready)
            async with self.switchboard.open_to("*LOG", keeper) as path:
                try:
                    yield path
                finally:
                    self.offences.tell_violation(keeper.name, path)

        await self.syslog.keeper.run(connect)

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
            "unkept_records": self.syslog.keeper.unkept,
            "seal": [attrs.asdict(layer) for layer in self.host.seal_report()],
            "limits": [attrs.asdict(limit) for limit in self.host.limits_report()],
            "self_test": None if self.self_test is None else self.self_test.as_dict(),
        }

    def listing(self) -> list[dict[str, Any]]:
        """Every machine, for the verb ``ps``. Sizes in bytes, times in seconds."""
        now = trio.current_time()
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
                "essential": life.entry.essential,
                "of": life.entry.base or None,
                "uses": [{"name": edge.name, "to": edge.to} for edge in life.entry.uses],
                "cause": life.cause,
                "seal": list(life.seal),
            }
            for life in self.lives.values()
        ]
