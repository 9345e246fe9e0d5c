"""The nucleus: parent and reaper of everything, and no policy. Standard library only, one thread, one poll loop.

Messages from the CP::

    {"verb": "spawn", "birth": {...}}                        with two descriptors, control and log
    {"verb": "signal", "machine", "generation", "number"}
    {"verb": "end", "how": str, "text": str, "exit_code": int}

and to it::

    {"event": "ready", "layers": [[system, layer, present, why], ...]}    every saved system is
    {"event": "born", "machine", "generation", "pid", "seal": [layer, ...]}
    {"event": "failed", "machine", "generation", "step", "errno", "hint"}
    {"event": "exit", "machine", "generation", "pid", "status", "user_s", "system_s", "peak_kib", "ended": str|null}
    {"event": "terminate"}                                   the nucleus got SIGTERM or SIGINT
    {"event": "saved-died", "system": str, "text": str}

What must hold is in docs/explanation/nucleus.md.
"""

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from retinue.cp.host import children, folders, image, libc, process, saved
from retinue.cp.host.errors import LinkError, LinkLimit
from retinue.cp.host.link import Link, close_all, descriptor_list, field, link_pair

__all__ = ["CP_ENTRY", "ENTRY", "EXIT_RUNNING", "SPAWNS_AT_ONCE", "main"]

ENTRY = "retinue.cp.host.nucleus:main"
CP_ENTRY = "retinue.cp.main:main"
"""What the CP process runs: ``main(args: dict)``; what it returns is its exit status."""

EXIT_ENDED_BADLY = 1
EXIT_CANNOT_CREATE = 73
EXIT_RUNNING = 75

SPAWNS_AT_ONCE = 64
"""Births asked of one saved system and not yet answered: each holds two descriptors, and those on their way between
processes are limited per user (unix(7), ETOOMANYREFS: RLIMIT_NOFILE, often 1024)."""

CP_LEAVES_SECONDS = 5.0
"""How long a CP that has ended the system may take to leave by itself."""

CP_ENDS_SECONDS = 3.0
"""How long the CP may take to end the system after a saved system has died."""

REAP_SECONDS = 10.0
"""How long killed processes may take to be gone: one in an uninterruptible sleep cannot be waited for for ever."""


class _Saved:
    """A saved system as the nucleus sees it."""

    def __init__(self, system: str, link: Link, pid: int) -> None:
        self.system = system
        self.link = link
        self.pid = pid
        self.outer = 0
        """Pid of the process that made the namespaces, while it is not reaped and the one inside waits for that."""
        self.layers: list[list[Any]] | None = None
        self.spawns = 0
        self.broken = ""


class _Resident(NamedTuple):
    """A machine that is alive."""

    pid: int
    pidfd: int
    saved: _Saved


class _End(Exception):
    """The system ends now."""

    def __init__(self, how: str, text: str, exit_code: int = EXIT_ENDED_BADLY, *, asked: bool = False) -> None:
        super().__init__(how, text)
        self.asked = asked
        """By the CP, which leaves by itself then."""
        self.how = how
        self.text = text
        self.exit_code = exit_code


def main(arguments: dict[str, Any]) -> int:
    """Run a system; returns its exit status once nothing of it is left.

    Arguments: ``console`` (descriptor, handed to the CP), ``secrets`` (descriptor or -1, handed to the CP and kept
    open as long as the nucleus lives, for a CP that is started again; not looked into), ``system``, ``topology``,
    ``runtime``, ``state`` (absolute paths), ``network`` (bool: a saved system for machines with the host's network is
    wanted), ``preload`` (modules), ``cp_entry``, ``boot_entry``.
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
        self._residents: dict[tuple[str, int], _Resident] = {}
        self._saved: dict[str, _Saved] = {}
        self._links: dict[int, Link] = {}
        self._poll = select.poll()
        self._deadline: float | None = None
        self._terminated = False
        self._last_words = _End("failed", "the system did not start")
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._cp: Link
        self._cp_pid = 0

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
        left = self._bury(patient=end.asked)
        if left:
            end = _End(end.how, f"{end.text}; {left}")
        try:
            folders.release(self._arguments["runtime"], self._arguments["state"], how=end.how, text=end.text)
        except OSError:
            traceback.print_exc()
        return end.exit_code

    def _start(self) -> None:
        arguments = self._arguments
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        # A pidfd for each machine, and the CP keeps both ends of every path: as many descriptors as the site allows.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        about = {name: arguments[name] for name in ("system", "topology", "state")}
        folders.describe_system(arguments["runtime"], **about)
        self._poll.register(self._wake, select.POLLIN)
        for system in ("sealed", "network") if arguments["network"] else ("sealed",):
            self._start_saved(system)
        self._start_cp()

    def _start_saved(self, system: str) -> None:
        ours, theirs = link_pair()
        with theirs:
            arguments = {name: self._arguments[name] for name in ("path", "system", "preload", "boot_entry")}
            arguments |= {"entry": saved.ENTRY, "title": f"saved-{system}", "kind": system, "link": theirs.fileno()}
            pid = process.start(arguments, inherit=[theirs.fileno()], environment=image.environment(dict(os.environ)))
        self._saved[system] = _Saved(system, self._register(ours), pid)

    def _start_cp(self) -> None:
        ours, theirs = link_pair()
        console = self._arguments["console"]
        with theirs:
            arguments = {name: self._arguments[name] for name in ("path", "system", "topology", "runtime", "state")}
            arguments |= {"entry": self._arguments["cp_entry"], "title": "control-program"}
            secrets = self._arguments["secrets"]
            arguments |= {"link": theirs.fileno(), "console": console, "secrets": secrets}
            inherit = [theirs.fileno(), console, *([secrets] if secrets >= 0 else [])]
            self._cp_pid = process.start(arguments, inherit=inherit, environment=dict(os.environ))
        # The CP alone holds the operator's console, so that its death is seen there.
        os.close(console)
        self._cp = self._register(ours)

    def _register(self, sock: socket.socket) -> Link:
        link = self._links[sock.fileno()] = Link(sock)
        self._poll.register(sock.fileno(), select.POLLIN)
        return link

    # One turn of the loop.

    def _turn(self) -> None:
        for descriptor, link in self._links.items():
            self._poll.modify(descriptor, select.POLLIN | (select.POLLOUT if link.waiting else 0))
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000
        for descriptor, events in self._poll.poll(timeout):
            if descriptor == self._wake:
                self._woken()
            elif (ready := self._links.get(descriptor)) is not None:
                if events & select.POLLOUT:
                    with contextlib.suppress(ConnectionError):  # its death is on its way here
                        ready.flush()
                if events & ~select.POLLOUT:
                    self._receive(ready)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise self._last_words

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wake, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    name = signal.Signals(number).name
                    if self._terminated:
                        raise _End("terminated", f"the nucleus got {name} a second time")
                    if any(one.layers is None for one in self._saved.values()):
                        # There are no machines yet, and a CP that waits for the saved systems hears nothing else.
                        raise _End("terminated", f"the nucleus got {name} before the system had started")
                    self._terminated = True
                    self._tell({"event": "terminate"})
        for pid, status, usage in children.reaped():
            self._ended(pid, status, usage)

    def _ended(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        if pid == self._cp_pid:
            self._cp_pid = 0
            while self._receive(self._cp):  # how it wants the system to end may be the last thing it said
                pass
            if self._last_words.how == "saved-system-died":
                raise self._last_words  # which is why the CP has left
            raise _End("cp-died", f"the control program {children.describe(status)}")
        for one in self._saved.values():
            if pid in (one.pid, one.outer):
                while self._receive(one.link):  # that it moved, or why it cannot go on
                    pass
                if pid == one.outer:
                    one.outer = 0
                    self._send(one, {"verb": "go"})
                else:
                    self._saved_died(one, one.broken or f"it {children.describe(status)}")
                return
        for (machine, generation), resident in self._residents.items():
            if pid == resident.pid:  # an orphan: its saved system died, and it with it
                self._gone(machine, generation, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
                return

    def _receive(self, link: Link) -> bool:
        """Take one message from a link. Returns False if there was none."""
        if link.fileno() not in self._links:
            return False
        one = next((one for one in self._saved.values() if one.link is link), None)
        try:
            received = link.receive()
            if received is not None:
                message, descriptors = received
                try:
                    if one is None:
                        self._cp_said(message, descriptors)
                    else:
                        self._saved_said(one, message, descriptors)
                finally:
                    close_all(descriptors)
                return True
        except BlockingIOError:
            return False
        except LinkError as error:
            if one is None:
                raise _End("cp-died", f"the control program spoke out of turn: {error}") from error
            one.broken = str(error)
        # It has hung up: it is dying, or made to.
        self._poll.unregister(link.fileno())
        del self._links[link.fileno()]
        if one is not None:
            children.kill(one.pid)
        elif self._deadline is None:
            self._deadline = time.monotonic() + CP_LEAVES_SECONDS
            self._last_words = _End("cp-died", "the control program closed its link")
        return False

    def _cp_said(self, message: dict[str, Any], descriptors: list[int]) -> None:
        verb = field(message, "verb", str)
        if verb == "spawn":
            self._spawn(field(message, "birth", dict), descriptors)
        elif verb == "signal":
            key = field(message, "machine", str), field(message, "generation", int)
            if (resident := self._residents.get(key)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(resident.pidfd, field(message, "number", int))
        elif verb == "end":
            how, text = field(message, "how", str), field(message, "text", str)
            raise _End(how, text, field(message, "exit_code", int), asked=True)
        else:
            raise LinkError(f"unknown verb {verb!r}")

    def _spawn(self, birth: dict[str, Any], descriptors: list[int]) -> None:
        machine, generation = field(birth, "machine", str), field(birth, "generation", int)
        one = self._saved.get("network" if field(birth, "network", bool) else "sealed")
        if len(descriptors) != 2:
            raise LinkError("spawn wants two descriptors")
        failed = {"event": "failed", "machine": machine, "generation": generation, "step": "saved system"}
        if one is None:
            hint = "the system was started without machines that keep the host's network"
            self._tell({**failed, "errno": errno.ENOENT, "hint": hint})
        elif one.link.fileno() not in self._links:
            self._tell({**failed, "errno": errno.ESRCH, "hint": "it has died"})
        elif one.spawns >= SPAWNS_AT_ONCE:
            self._tell({**failed, "errno": errno.EAGAIN, "hint": f"more than {SPAWNS_AT_ONCE} births at once"})
        else:
            one.spawns += 1
            self._send(one, {"verb": "spawn", "birth": birth}, descriptor_list(descriptors))

    def _saved_said(self, one: _Saved, message: dict[str, Any], descriptors: list[int]) -> None:
        event = field(message, "event", str)
        if event == "exit":
            machine, generation = field(message, "machine", str), field(message, "generation", int)
            user_s, system_s = field(message, "user_s", float), field(message, "system_s", float)
            status, peak_kib = field(message, "status", int), field(message, "peak_kib", int)
            ended = None if message.get("ended") is None else field(message, "ended", str)
            self._gone(machine, generation, status, user_s, system_s, peak_kib, ended)
        elif event == "born":
            machine, generation, [pidfd] = (
                field(message, "machine", str),
                field(message, "generation", int),
                descriptors,
            )
            one.spawns -= 1
            resident = _Resident(children.host_pid(pidfd), os.dup(pidfd), one)
            self._residents[machine, generation] = resident
            seal = [layer for layer, present, _ in one.layers or () if present]
            born = {"event": "born", "machine": machine, "generation": generation, "pid": resident.pid, "seal": seal}
            self._tell(born)
        elif event == "failed":
            one.spawns -= 1
            self._tell(message)
        elif event == "ready":
            one.layers = field(message, "layers", list)
            if all(other.layers is not None for other in self._saved.values()):
                report = [[other.system, *layer] for other in self._saved.values() for layer in other.layers or ()]
                self._tell({"event": "ready", "layers": report})
        elif event == "moved":
            one.outer, one.pid = one.pid, children.host_pid(*descriptors)
        elif event == "broken":
            one.broken = field(message, "text", str)
        else:
            raise LinkError(f"unknown event {event!r}")

    def _gone(
        self, machine: str, generation: int, status: int, user_s: float, system_s: float, peak_kib: int,
        ended: str | None = None,
    ) -> None:  # fmt: skip
        resident = self._residents.pop((machine, generation))
        os.close(resident.pidfd)
        exit = {"event": "exit", "machine": machine, "generation": generation, "pid": resident.pid, "status": status}
        self._tell({**exit, "user_s": user_s, "system_s": system_s, "peak_kib": peak_kib, "ended": ended})

    def _saved_died(self, one: _Saved, text: str) -> None:
        """Its machines are dead or dying. The CP is told and may end the system in its own words, but not for long."""
        one.pid = 0
        self._tell({"event": "saved-died", "system": one.system, "text": text})
        contained = ["pid-ns", True] in [layer[:2] for layer in one.layers or ()]
        for (machine, generation), resident in list(self._residents.items()):
            if resident.saved is one:
                children.kill_by_descriptor(resident.pidfd)
                if contained:
                    # The kernel killed it with its PID namespace, and its wait status went to nobody.
                    self._gone(machine, generation, signal.SIGKILL, 0.0, 0.0, 0)
        self._deadline = time.monotonic() + CP_ENDS_SECONDS
        self._last_words = _End("saved-system-died", f"the saved system for {one.system} machines failed: {text}")

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._cp.post(message)
        except ConnectionError:
            pass  # it is dead, and its end will be reaped
        except LinkLimit as error:
            raise _End("cp-died", f"the control program has stopped listening: {error}") from error

    def _send(self, one: _Saved, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        with contextlib.suppress(ConnectionError):
            one.link.post(message, descriptors)

    # The end.

    def _bury(self, *, patient: bool) -> str:
        """Kill and reap everything. Returns what could not be, in words, or an empty string.

        ``patient``: a CP that is alive may finish by itself, for a while.
        """
        for resident in self._residents.values():
            children.kill_by_descriptor(resident.pidfd)
        for one in self._saved.values():
            children.kill(one.pid)
            children.kill(one.outer)
            one.link.close()
        now = time.monotonic()
        leaves, gone = now + (CP_LEAVES_SECONDS if patient else 0), now + CP_LEAVES_SECONDS + REAP_SECONDS
        while True:
            for pid, _, _ in children.reaped():
                if pid == self._cp_pid:
                    self._cp_pid = 0
            if not children.any_left():
                return ""
            now = time.monotonic()
            if now >= leaves and self._cp_pid:
                children.kill(self._cp_pid)
                leaves = gone
            if now >= gone:
                return "some of its processes cannot be killed"
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            waiting.poll((min(leaves, gone) - now) * 1000)
            with contextlib.suppress(BlockingIOError):
                signals = os.read(self._wake, 4096)
                if signal.SIGTERM in signals or signal.SIGINT in signals:
                    leaves = now
