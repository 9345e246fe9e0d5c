"""The saved system: a process with everything imported that machines are forked from (z/VM's named saved system).

A plain blocking program with one thread and no open file. The standard library alone until it stands in its namespaces.

Messages from the nucleus::

    {"verb": "go"}                                  the process that made the namespaces is gone
    {"verb": "spawn", "birth": {...}}               with two descriptors, control and log

and to it::

    {"event": "moved"}                              with a pidfd of the process that goes on, in its namespaces
    {"event": "ready", "layers": [[layer, present, why], ...]}
    {"event": "broken", "text": str}                it cannot be made; it exits
    {"event": "born", "machine", "generation"}      with a pidfd
    {"event": "failed", "machine", "generation", "step", "errno", "hint"}
    {"event": "exit", "machine", "generation", "status", "user_s", "system_s", "peak_kib", "ended": str|null}
"""

import contextlib
import gc
import mmap
import os
import signal
import socket
import sys
import traceback
from typing import Any, NamedTuple, NoReturn

from retinue.cp.host import children, image, libc
from retinue.cp.host.errors import LinkError, PreloadFailed, SealFailed
from retinue.cp.host.link import Link, clipped, field, send_now
from retinue.cp.host.loop import Loop
from retinue.cp.host.seal import SealKit, hygiene, namespaces

__all__ = ["BOOT_ENTRY", "ENTRY", "main"]

ENTRY = "retinue.cp.host.saved:main"
BOOT_ENTRY = "retinue.svm.boot:boot"
"""What a machine runs: ``boot(birth: dict, seal: Seal, control_fd: int, log_fd: int)``, which does not return."""

_HOUSE = ("trio", "msgpack", "attrs", "attr", "cattrs", "retinue.pipes", "retinue.svm")
"""What every machine uses, imported whole before the ``[system] preload`` of the topology."""

EXIT_BOOT = 70
"""Exit status of a machine whose boot raised: EX_SOFTWARE."""

NOTE_SIZE = 4096
"""Bytes in which a machine can leave word of why its boot failed, when no other way is open to it."""


class _Machine(NamedTuple):
    name: str
    generation: int
    note: mmap.mmap


def main(arguments: dict[str, Any]) -> int:
    """Become a saved system and serve until the nucleus goes away.

    Arguments: ``link`` (descriptor), ``kind`` (``"sealed"`` or ``"network"``), ``system`` (name), ``preload``
    (modules), ``boot_entry``.
    """
    sys.dont_write_bytecode = True
    link = Link(socket.socket(fileno=arguments["link"]))
    try:
        saved = SavedSystem(link, arguments)
    except (ConnectionError, LinkError):
        return 1
    except Exception as error:
        traceback.print_exc()
        known = isinstance(error, (SealFailed, PreloadFailed))
        text = str(error) if known else traceback.format_exc()
        with contextlib.suppress(OSError):
            send_now(link, {"event": "broken", "text": clipped(text)})
        return 1
    return saved.serve()


class SavedSystem:
    """The image, the namespaces, and the machines forked from them that are still alive."""

    def __init__(self, link: Link, arguments: dict[str, Any]) -> None:
        self._link = link
        self._machines: dict[int, _Machine] = {}
        network = arguments["kind"] == "network"
        with contextlib.suppress(PermissionError):  # only root may; others keep groups that Landlock makes useless
            os.setgroups([])
        # Of a process that is not dumpable root owns the files in /proc, and it could not write its uid_map (proc(5)).
        libc.prctl(libc.PR_SET_DUMPABLE, 1)
        hygiene.empty_cores()
        self._inside = namespaces.go_inside(link, arguments["system"], network=network)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
        libc.set_process_name(arguments["title"])
        self._boot = image.warm_up(_HOUSE, arguments["preload"], arguments["boot_entry"])
        self._kit = SealKit(sys.path, network=network, inside=self._inside)
        self._loop = Loop(signal.SIGCHLD)
        self._kit.complete()
        gc.collect()
        # Without this a machine's first full collection would write to, and so copy, every object of the image.
        gc.freeze()
        send_now(link, {"event": "ready", "layers": [list(layer) for layer in self._kit.layers]})

    def serve(self) -> int:
        """Fork a machine for each request, report each end; returns when the nucleus is gone."""
        self._loop.add(self._link, self._request, lambda why: None)
        with contextlib.suppress(ConnectionError):
            while self._link in self._loop:
                self._loop.turn()
                self._reap()
        return 1

    def _request(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if field(message, "verb", str) != "spawn" or len(descriptors) != 2:
            raise LinkError("a saved system knows spawn with two descriptors")
        self._spawn(field(message, "birth", dict), *descriptors)

    def _spawn(self, birth: dict[str, Any], control: int, log: int) -> None:
        name, generation = field(birth, "machine", str), field(birth, "generation", int)
        answer = {"machine": name, "generation": generation}
        step = "pid namespace"
        note = mmap.mmap(-1, NOTE_SIZE)
        try:
            self._kit.prepare(birth)
            home = self._inside.home
            with namespaces.own_pid_namespace(home) if home >= 0 else contextlib.nullcontext():
                step = "fork"
                pid = os.fork()
                if pid == 0:
                    self._become(birth, control, log, note)
            # The next machine shall not share this one's note.
            note.madvise(mmap.MADV_DONTFORK)
            step = "pidfd"
            pidfd = os.pidfd_open(pid)
        except SealFailed as error:
            told = {"step": f"{error.step}: {error.object}", "errno": error.errno, "hint": error.hint}
            send_now(self._link, {"event": "failed", **answer, **told})
            return
        except OSError as error:
            hint = "too many processes for this user (ulimit -u) or in this container" if error.errno == 11 else ""
            send_now(self._link, {"event": "failed", **answer, "step": step, "errno": error.errno or 0, "hint": hint})
            return
        self._machines[pid] = _Machine(name, generation, note)
        send_now(self._link, {"event": "born", **answer}, [pidfd])

    def _become(self, birth: dict[str, Any], control: int, log: int, note: mmap.mmap) -> NoReturn:
        """Everything a machine does from its fork on. Never comes back to the loop it was forked from."""
        try:
            signal.set_wakeup_fd(-1)
            seal = self._kit.seal(birth)
            for door in birth["groups"]:
                # By itself, because that is a hundred times quicker than to be moved. Who cannot, is.
                with contextlib.suppress(OSError), open(door, "wb", buffering=0) as file:
                    file.write(b"0")
            # From the first moment, though the seal does it again: nothing may survive a nucleus that is killed now.
            seal.parent()
            self._link.close()
            sys.path[:0] = birth["code"]
            self._boot(birth, seal, control, log)
        except BaseException as error:
            text = str(error) if isinstance(error, OSError) else traceback.format_exc()
            note.write(clipped(text).encode(errors="replace")[:NOTE_SIZE])
        finally:
            os._exit(EXIT_BOOT)

    def _reap(self) -> None:
        for pid, status, usage in children.reaped():
            if (machine := self._machines.pop(pid, None)) is not None:
                ended = machine.note[:].rstrip(b"\0").decode(errors="replace") or None
                machine.note.close()
                key = machine.name, machine.generation
                send_now(self._link, children.exit_report(key, status, usage, ended))
