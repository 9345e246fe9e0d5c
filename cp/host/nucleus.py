"""The nucleus: parent and reaper of everything, and no policy. Standard library only, one thread, one poll loop.

Of the programs it starts for the CP one is in office. What a program says::

    {"verb": "loaded"}                                       it has imported everything, and waits for its office
    {"verb": "spawn", "birth": {...}}                        with two descriptors, control and log
    {"verb": "signal", "machine", "generation", "number"}
    {"verb": "keep", "key": str, "note": {...}}              with descriptors; both are for its successor
    {"verb": "drop", "key": str}
    {"verb": "buried", "machine", "generation"}              it took note of an exit
    {"verb": "spare"}                                        start another program, to wait until this one dies
    {"verb": "hand-over"}                                    the last word of a CP that leaves on purpose
    {"verb": "end", "how": str, "text": str, "exit_code": int}

and what it is told when it is in office, first of all what its predecessor left::

    {"event": "restored", "first": bool, "died": str, "residents": int, "kept": int}
    {"event": "resident", "machine", "generation", "pid", "seal"}      so many; -1 for a pid: not born yet
    {"event": "kept", "all": [[key, note, descriptors], ...]}    so many, with descriptors; then exits not buried
    {"event": "ready", "layers": [[system, layer, present, why], ...]}    every saved system is
    {"event": "born", "machine", "generation", "pid", "seal": [layer, ...]}
    {"event": "failed", "machine", "generation", "step", "errno", "hint"}
    {"event": "exit", "machine", "generation", "pid", "status", "user_s", "system_s", "peak_kib", "ended": str|null}
    {"event": "spare", "ready": bool, "text": str}           the spare has loaded, or why there is none
    {"event": "terminate"}                                   the nucleus got SIGTERM or SIGINT
    {"event": "saved-died", "system": str, "text": str}

What must hold is in docs/explanation/nucleus.md.
"""

import contextlib
import errno
import functools
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any, NamedTuple

from retinue.cp.host import children, folders, image, libc, saved
from retinue.cp.host.children import Child, Children
from retinue.cp.host.errors import LinkError, LinkLimit
from retinue.cp.host.holdings import Holdings
from retinue.cp.host.link import QUEUE_MAX, Link, field
from retinue.cp.host.loop import Loop
from retinue.cp.host.process import TITLE

__all__ = ["CP_ENTRY", "ENTRY", "EXIT_RUNNING", "SPAWNS_AT_ONCE", "main"]

ENTRY = "retinue.cp.host.nucleus:main"
CP_ENTRY = "retinue.cp.main:main"
"""What the CP process runs: ``main(args: dict)``; what it returns is its exit status."""

EXIT_ENDED_BADLY, EXIT_CANNOT_CREATE, EXIT_RUNNING = 1, 73, 75

SPAWNS_AT_ONCE = 64
"""Births asked of one saved system and not yet answered: each holds two descriptors, and those on their way between
processes are limited per user (unix(7), ETOOMANYREFS: RLIMIT_NOFILE, often 1024)."""

CP_DEATHS = 3
"""Programs in a row that die in office and never had a spare: whatever kills them, another would not live either."""

CP_LEAVES_SECONDS = 5.0
"""How long a CP that has ended the system may take to leave by itself."""

CP_ENDS_SECONDS = 3.0
"""How long the CP may take to end the system after a saved system has died."""

REAP_SECONDS = 10.0
"""How long killed processes may take to be gone: one in an uninterruptible sleep cannot be waited for for ever."""

_Key = tuple[str, int]
"""A machine's name and generation."""


class _Program(Child):
    """A control program, in office or not."""

    proven = False
    """It has lived long enough to ask for a spare."""
    leaves = False
    """On purpose."""


class _Saved(Child):
    """A saved system."""

    def __init__(self, link: Link, pid: int, system: str) -> None:
        super().__init__(link, pid)
        self.system = system
        self.layers: list[list[Any]] | None = None
        self.unborn: set[_Key] = set()

    def seal(self) -> list[str]:
        """The layers that its machines have."""
        return [layer for layer, present, _ in self.layers or () if present]


class _Resident(NamedTuple):
    """A machine that is alive."""

    pid: int
    pidfd: int
    saved: _Saved


class _End(Exception):
    """The system ends now."""

    def __init__(self, how: str, text: str, exit_code: int = EXIT_ENDED_BADLY, *, asked: bool = False) -> None:
        super().__init__(how, text)
        self.how, self.text, self.exit_code = how, text, exit_code
        self.asked = asked
        """By the CP, which leaves by itself then."""


def main(arguments: dict[str, Any]) -> int:
    """Run a system; returns its exit status once nothing of it is left.

    Arguments: ``console`` (descriptor, handed to the first CP), ``secrets`` (descriptor or -1, kept open for every CP
    and not looked into), ``system``, ``topology``, ``runtime``, ``state`` (absolute paths), ``network`` (bool: a saved
    system for machines with the host's network is wanted), ``preload`` (modules), ``cp_entry``, ``boot_entry``.
    """
    for descriptor in (arguments["console"], arguments["secrets"]):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    try:
        lock = folders.claim(arguments["runtime"])
    except OSError as error:
        print(f"cannot make {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_CANNOT_CREATE
    if lock < 0:
        return EXIT_RUNNING
    return Nucleus(arguments).run()


class Nucleus:
    """The processes of one system and what they have said."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._loop = Loop(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._children = Children(self._loop)
        self._saved: dict[str, _Saved] = {}
        self._residents: dict[_Key, _Resident] = {}
        self._holdings = Holdings()
        self._cp: _Program
        self._spare: _Program | None = None
        self._deaths = 0
        self._terminated = False
        self._deadline: tuple[float, _End] | None = None

    def run(self) -> int:
        """Start everything, serve until the end, leave nothing behind."""
        try:
            self._start()
            while True:
                self._turn()
        except _End as reason:
            end = reason
        except Exception as error:
            traceback.print_exc()
            end = _End("failed", f"the nucleus failed: {error!r}")
        for resident in self._residents.values():
            children.kill_by_descriptor(resident.pidfd)
        left = self._children.bury(self._cp if end.asked else None, CP_LEAVES_SECONDS, REAP_SECONDS)
        try:
            text = f"{end.text}; {left}" if left else end.text
            folders.release(self._arguments["runtime"], self._arguments["state"], how=end.how, text=text)
        except OSError:
            traceback.print_exc()
        return end.exit_code

    def _start(self) -> None:
        arguments = self._arguments
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        # A pidfd for each machine, and one end of every path: as many descriptors as the site allows.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        folders.describe_system(**{name: arguments[name] for name in ("runtime", "system", "topology", "state")})
        clean = image.environment(dict(os.environ))
        for system in ("sealed", "network") if arguments["network"] else ("sealed",):
            told = {name: arguments[name] for name in ("path", "system", "preload", "boot_entry")}
            told |= {"entry": saved.ENTRY, "title": f"saved-{system}", "kind": system}
            one = self._saved[system] = _Saved(*self._children.start(told, {}, clean), system)
            self._children.add(one, functools.partial(self._saved_said, one))
        self._give_office(self._start_program(arguments["console"]), first=True)
        # The CP alone holds the operator's console, so that its death is seen there.
        os.close(arguments["console"])

    def _start_program(self, console: int = -1, title: str = TITLE) -> _Program:
        told = {name: self._arguments[name] for name in ("path", "system", "topology", "runtime", "state")}
        told |= {"entry": self._arguments["cp_entry"], "title": title}
        inherited = {"console": console, "secrets": self._arguments["secrets"]}
        program = _Program(*self._children.start(told, inherited, os.environ))
        self._children.add(program, functools.partial(self._program_said, program))
        return program

    # One turn of the loop.

    def _turn(self) -> None:
        signals = self._loop.turn(None if self._deadline is None else max(0.0, self._deadline[0] - time.monotonic()))
        for number in signals:
            if number != signal.SIGCHLD:
                self._asked_to_end(signal.Signals(number).name)
        for child, pid, status, usage in self._children.reap():
            if isinstance(child, _Saved):
                self._saved_died(child, child.broken)
            elif isinstance(child, _Program):
                self._program_died(child, child.broken)
            for key, resident in list(self._residents.items()):
                if pid == resident.pid:  # an orphan: its saved system died, and it with it
                    self._gone(key, children.exit_report(key, status, usage))
        if self._deadline is not None and time.monotonic() >= self._deadline[0]:
            raise self._deadline[1]

    def _asked_to_end(self, name: str) -> None:
        if self._terminated:
            raise _End("terminated", f"the nucleus got {name} a second time")
        if any(one.layers is None for one in self._saved.values()):
            # There are no machines yet, and a CP that waits for the saved systems hears nothing else.
            raise _End("terminated", f"the nucleus got {name} before the system had started")
        self._terminated = True
        self._tell({"event": "terminate"})

    # The CP.

    def _give_office(self, program: _Program, *, first: bool = False, died: str = "") -> None:
        """Have a program be the CP: it is told what there is, and from here on what happens."""
        self._cp, self._spare = program, None
        children.give_way(program.pids[0], yes=False)
        residents = [(key, one.pid, one.saved.seal()) for key, one in self._residents.items()]
        residents += [(key, -1, []) for one in self._saved.values() for key in one.unborn]
        kept = len(self._holdings)
        program.link.longest = QUEUE_MAX + len(residents) + kept + len(self._holdings.exits)
        self._tell({"event": "restored", "first": first, "died": died, "residents": len(residents), "kept": kept})
        for (machine, generation), pid, seal in residents:
            self._tell({"event": "resident", "machine": machine, "generation": generation, "pid": pid, "seal": seal})
        self._holdings.show(program.link)
        for message in [*self._holdings.exits.values(), *([{"event": "terminate"}] if self._terminated else [])]:
            self._tell(message)
        self._tell_ready()

    def _program_died(self, program: _Program, text: str) -> None:
        if program is self._spare:
            self._spare = None
            self._tell({"event": "spare", "ready": False, "text": f"the spare {text}"})
        elif program is self._cp:
            if self._deadline is not None:
                raise self._deadline[1]  # which is why it has left
            text = f"the control program {text}"
            self._deaths = 0 if program.proven else self._deaths + 1
            if self._deaths == CP_DEATHS:
                raise _End("cp-died", text)
            try:
                self._give_office(self._spare or self._start_program(), died="" if program.leaves else text)
            except OSError as error:
                raise _End("cp-died", f"{text}, and no other can be started: {error}") from error

    def _program_said(self, program: _Program, message: dict[str, Any], descriptors: list[int]) -> None:
        verb = field(message, "verb", str)
        if verb == "loaded":
            if program is self._spare:
                self._tell({"event": "spare", "ready": True, "text": ""})
        elif program is not self._cp or program.link.lends:
            raise LinkError(f"{verb!r} of a program that is not in office")
        elif verb == "spawn":
            self._spawn(field(message, "birth", dict), descriptors)
        elif verb == "signal":
            if (resident := self._residents.get(_key(message))) is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(resident.pidfd, field(message, "number", int))
        elif verb == "keep":
            self._holdings.keep(field(message, "key", str), field(message, "note", dict), descriptors)
        elif verb == "drop":
            self._holdings.drop(field(message, "key", str))
        elif verb == "buried":
            self._holdings.exits.pop(_key(message), None)
        elif verb == "spare":
            program.proven = True
            self._replace_spare()
        elif verb == "hand-over":
            program.proven = program.leaves = True
            self._children.kill(program)
        elif verb == "end":
            how, text = field(message, "how", str), field(message, "text", str)
            raise _End(how, text, field(message, "exit_code", int), asked=True)
        else:
            raise LinkError(f"unknown verb {verb!r}")

    def _replace_spare(self) -> None:
        before, self._spare = self._spare, None
        try:
            self._spare = self._start_program(title="spare")
            children.give_way(self._spare.pids[0], yes=True)  # to the CP, which has work to do
        except OSError as error:
            self._tell({"event": "spare", "ready": False, "text": f"the spare cannot be started: {error}"})
        if before is not None:
            self._children.kill(before)

    def _spawn(self, birth: dict[str, Any], descriptors: list[int]) -> None:
        key = _key(birth)
        one = self._saved.get("network" if field(birth, "network", bool) else "sealed")
        lives = key in self._residents or any(key in other.unborn for other in self._saved.values())
        if len(descriptors) != 2 or lives:
            raise LinkError("spawn wants two descriptors, and a generation that does not live")
        if one is None:
            why = errno.ENOENT, "the system was started without machines that keep the host's network"
        elif one.link not in self._loop:
            why = errno.ESRCH, "it has died"
        elif len(one.unborn) >= SPAWNS_AT_ONCE:
            why = errno.EAGAIN, f"more than {SPAWNS_AT_ONCE} births at once"
        else:
            one.unborn.add(key)
            one.send({"verb": "spawn", "birth": birth}, descriptors)
            return
        failed = {"event": "failed", "machine": key[0], "generation": key[1], "step": "saved system"}
        self._tell({**failed, "errno": why[0], "hint": why[1]})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._cp.send(message)
        except LinkLimit as error:
            self._cp.broken = f"has stopped listening: {error}"
            self._children.kill(self._cp)

    # The saved systems.

    def _saved_said(self, one: _Saved, message: dict[str, Any], descriptors: list[int]) -> None:
        event = field(message, "event", str)
        if event == "exit":
            self._gone(_key(message), message)
        elif event == "born":
            key, [pidfd] = _key(message), descriptors
            descriptors.clear()
            one.unborn.discard(key)
            resident = self._residents[key] = _Resident(children.host_pid(pidfd), pidfd, one)
            self._tell({**message, "pid": resident.pid, "seal": one.seal()})
        elif event == "failed":
            one.unborn.discard(_key(message))
            self._tell(message)
        elif event == "ready":
            one.layers = field(message, "layers", list)
            self._tell_ready()
        elif event == "moved":
            one.pids.append(children.host_pid(*descriptors))
        elif event == "broken":
            one.broken = field(message, "text", str)
        else:
            raise LinkError(f"unknown event {event!r}")

    def _tell_ready(self) -> None:
        if all(one.layers is not None for one in self._saved.values()):
            report = [[one.system, *layer] for one in self._saved.values() for layer in one.layers or ()]
            self._tell({"event": "ready", "layers": report})

    def _gone(self, key: _Key, report: dict[str, Any]) -> None:
        resident = self._residents.pop(key)
        os.close(resident.pidfd)
        exit = self._holdings.exits[key] = {**report, "pid": resident.pid}
        self._tell(exit)

    def _saved_died(self, one: _Saved, text: str) -> None:
        """Its machines are dead or dying. The CP is told and may end the system in its own words, but not for long."""
        self._tell({"event": "saved-died", "system": one.system, "text": text})
        for key, resident in list(self._residents.items()):
            if resident.saved is one:
                children.kill_by_descriptor(resident.pidfd)
                if "pid-ns" in one.seal():
                    # The kernel killed it with its PID namespace, and its wait status went to nobody.
                    self._gone(key, children.exit_report(key, signal.SIGKILL))
        text = f"the saved system for {one.system} machines failed: {text}"
        self._deadline = time.monotonic() + CP_ENDS_SECONDS, _End("saved-system-died", text)


def _key(message: dict[str, Any]) -> _Key:
    return field(message, "machine", str), field(message, "generation", int)
